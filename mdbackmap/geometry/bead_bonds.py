"""Distances of bonded beads: what tells a force field's beads from those of mapped structures.

A force field's equilibrium bond lengths are not the distances of mapped centres: Martini 3 puts
the ring beads of PHE 3.4 Å apart where the mapped centres are 2.4 Å apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

TOLD_APART, FEWEST, NEARER = 0.2, 3, 0.6
"""Å by which a kind's length in simulations and in mapped structures differs, for it to tell one
from the other; kinds that it takes; and share of bonds as in simulations beyond which beads are
simulated: mapped membranes of other force fields reach 0.45, single frames of simulations start at
0.8."""
UNLIKE = 0.4
"""Share of bonds of kinds unlike those of mapped structures, beyond which beads are simulated;
mapped proteins reach 0.27, single frames of simulations start at 0.54."""
SIGNIFICANT = 3.0
"""Standard errors a difference of means must exceed to be no chance."""


def bead_pairs(
    atom_bead: np.ndarray, bonds: np.ndarray, bead_residue: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of beads whose distance says something of the force field.

    Beads joined by an atomic bond, and inside a residue also beads two such bonds apart.

    Parameters
    ----------
    atom_bead : ndarray, shape=(n_atoms,), int64
    bonds : ndarray, shape=(m, 2), int64
    bead_residue : ndarray, shape=(n_beads,), int64

    Returns
    -------
    pairs : ndarray, shape=(p, 2), int64
    inside : ndarray, shape=(p,), bool
        Both beads belong to one residue.
    """
    n = len(bead_residue)
    ends = atom_bead[bonds]
    ends = ends[ends[:, 0] != ends[:, 1]]
    ones = np.ones(len(ends), dtype=np.int32)
    bonded = sparse.csr_matrix((ones, (ends[:, 0], ends[:, 1])), shape=(n, n))
    bonded = bonded + bonded.T
    reach = sparse.triu(bonded + bonded @ bonded, k=1).tocoo()
    pairs = np.stack([reach.row, reach.col], axis=1).astype(np.int64)
    inside = bead_residue[pairs[:, 0]] == bead_residue[pairs[:, 1]]
    direct = np.asarray(bonded[pairs[:, 0], pairs[:, 1]]).ravel() > 0
    keep = inside | direct
    return pairs[keep], inside[keep]


def pair_kinds(
    pairs: np.ndarray, inside: np.ndarray, key: np.ndarray, residue: np.ndarray,
    keys: Sequence[str], residues: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Tell the kinds of pairs: their two bead keys, with the residue where they share one.

    Parameters
    ----------
    key, residue : ndarray, shape=(n_beads,), int64
        Into ``keys`` and ``residues``.
    keys, residues : sequence of str

    Returns
    -------
    names : ndarray, shape=(k,), str
        Of the kinds, sorted.
    kind : ndarray, shape=(p,), int64
        Of every pair.
    """
    first, second = np.sort(key[pairs], axis=1).T
    own = np.where(inside, residue[pairs[:, 0]] + 1, 0) if len(pairs) else first
    _, rows, code = np.unique(
        (own * len(keys) + first) * len(keys) + second, return_index=True, return_inverse=True
    )
    names = [
        "|".join((residues[r - 1] if r else "", *sorted((keys[i], keys[j]))))
        for r, i, j in zip(*(t[rows].tolist() for t in (own, first, second)), strict=True)
    ]
    # Residues of one name are of one kind.
    names, kind = np.unique(np.array(names, dtype=str), return_inverse=True)
    return names, kind[code]


def lengths_by_kind(
    beads: np.ndarray, pairs: np.ndarray, kind: np.ndarray, n_kinds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of distances and number of pairs per kind, shapes (n_kinds,)."""
    length = np.linalg.norm(beads[pairs[:, 1]] - beads[pairs[:, 0]], axis=1)
    return np.bincount(kind, length, minlength=n_kinds), np.bincount(kind, minlength=n_kinds)


def unlike(
    mean: np.ndarray, count: np.ndarray, mapped_mean: np.ndarray, mapped_spread: np.ndarray
) -> np.ndarray:
    """Return whether each kind's mean length is unlike that of mapped structures beyond chance.

    Parameters
    ----------
    mean, count : ndarray, shape=(k,)
        Observed mean length, Å, and number of pairs it is over.
    mapped_mean, mapped_spread : ndarray, shape=(k,)
        Over mapped structures; NaN where unknown, and then False.
    """
    error = SIGNIFICANT * mapped_spread / np.sqrt(np.maximum(count, 1)) + 0.02
    return (count > 0) & (np.abs(mapped_mean - mean) > error)


def as_simulated(
    mean: np.ndarray, count: np.ndarray, mapped_mean: np.ndarray, mapped_spread: np.ndarray,
    simulated_mean: np.ndarray,
) -> tuple[bool, float]:  # fmt: skip
    """Tell beads of a simulation from beads mapped from atoms, by the lengths of their bonds.

    Kinds whose length differs between the two decide, each for what it is nearer to; where too
    few are known, the share of kinds that are `unlike` those of mapped structures.

    Parameters
    ----------
    mean, count, mapped_mean, mapped_spread
        As in `unlike`.
    simulated_mean : ndarray, shape=(k,)
        Over simulations; NaN where unknown.

    Returns
    -------
    bool
    float
        Share of bonds that say so.
    """
    apart = (count > 0) & (np.abs(simulated_mean - mapped_mean) > TOLD_APART)
    if apart.sum() >= FEWEST:
        nearer = np.abs(mean - simulated_mean) < np.abs(mean - mapped_mean)
        share, most = np.average(nearer[apart], weights=count[apart]), NEARER
    else:
        share = np.average(unlike(mean, count, mapped_mean, mapped_spread), weights=count)
        most = UNLIKE
    return bool(share > most), float(share)
