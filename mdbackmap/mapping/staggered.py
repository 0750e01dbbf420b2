"""Bonds between saturated carbons, about which molecules are staggered."""

from __future__ import annotations

import functools

import numpy as np

from mdbackmap.mapping.chains import chains_of
from mdbackmap.mapping.system import System
from mdbackmap.mapping.template import Template


def staggered_torsions(system: System, kinds: set[str]) -> np.ndarray:
    """Return one torsion for each such bond of residues of some kinds.

    Bonds in rings are left out, and those of alkyl chains, which are drawn from rotamers.

    Returns
    -------
    ndarray, shape=(m, 4), int64
        Sorted by residue kind.
    """
    found = [np.zeros((0, 4), dtype=np.int64)]
    for number, template in enumerate(system.templates):
        if template.kind in kinds:
            here = np.flatnonzero(system.residue_template == number)
            first = np.searchsorted(system.atoms.residue, here)
            found.append((first[:, None, None] + _of_template(template)).reshape(-1, 4))
    return np.concatenate(found)


@functools.lru_cache(maxsize=512)
def _of_template(template: Template) -> np.ndarray:
    terms = template.constraints
    flat = np.zeros(template.n_atoms, dtype=bool)
    flat[terms.bonds[terms.bond_order > 1]] = True
    flat[terms.volumes[terms.volume < 0.5, 0]] = True
    carbon = (template.elements == "C") & ~flat
    near: list[list[int]] = [[] for _ in range(template.n_atoms)]
    for i, j in terms.bonds.tolist():
        near[i].append(j)
        near[j].append(i)
    drawn = [set(chain.atoms.tolist()) for chain in chains_of(template)]
    rows = [
        (next(a for a in near[i] if a != j), i, j, next(a for a in near[j] if a != i))
        for i, j in terms.bonds.tolist()
        if carbon[i] and carbon[j] and min(len(near[i]), len(near[j])) > 1
        and not any(i in chain and j in chain for chain in drawn)
        and not _in_ring(i, j, near)
    ]  # fmt: skip
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def _in_ring(first: int, second: int, near: list[list[int]]) -> bool:
    """Whether two bonded atoms are joined in another way as well."""
    reached, edge = {first}, [a for a in near[first] if a != second]
    while edge:
        reached.update(edge)
        edge = [b for a in edge for b in near[a] if b not in reached]
    return second in reached
