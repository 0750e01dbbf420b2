"""A known structure laid onto beads instead of a prediction.

Every residue moves as a rigid piece with the beads about it, so that the structure follows the
beads where they have moved and keeps its own conformations; idealisation closes the seams.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from mdbackmap.errors import StructureError, listing
from mdbackmap.mapping.system import System

_log = logging.getLogger("mdbackmap")

NEAREST = 24
"""Beads about a residue that decide on how it lies; a tenth of the weight is left at the last."""
FEWEST = 3
"""Points that tell how a piece is turned."""


@dataclass(frozen=True, eq=False)
class _Piece:
    """One residue.

    Attributes
    ----------
    atoms, points : ndarray, shape=(k,) int64, and (k, 3), Å
        Its atoms that the structure has, and where they are there.
    missing : ndarray, shape=(m,), int64
    beads, homes : ndarray, shape=(n,) int64, and (n, 3), Å
        Beads about it, and where they are in the structure.
    weights : ndarray, shape=(n,)
    """

    atoms: np.ndarray
    points: np.ndarray
    missing: np.ndarray
    beads: np.ndarray
    homes: np.ndarray
    weights: np.ndarray


class Kept:
    """Lays a structure onto the beads of a system.

    Parameters
    ----------
    system : System
        What is backmapped.
    structure : System
        Laid out from the atoms of the structure.
    positions : ndarray, shape=(structure.n_atoms, 3), Å
        NaN for atoms it lacks.

    Raises
    ------
    StructureError
        A chain of the structure is none of the system's.
    """

    def __init__(self, system: System, structure: System, positions: np.ndarray) -> None:
        pairs = matched_residues(system, structure)
        points = np.full((system.n_atoms, 3), np.nan)
        theirs = zip(structure.atoms.residue.tolist(), structure.atoms.names.tolist(), strict=True)
        place = {key: k for k, key in enumerate(theirs)}
        own = np.full(len(system.residue_template), -1)
        own[list(pairs)] = list(pairs.values())
        residue = system.atoms.residue
        for i in np.flatnonzero(own[residue] >= 0).tolist():
            k = place.get((int(own[residue[i]]), str(system.atoms.names[i])))
            if k is not None:
                points[i] = positions[k]
        self.n_residues = len(pairs)
        self._pieces = list(self._cut(system, points, sorted(pairs)))
        lost = [r for r in pairs if r not in self._laid]
        if lost:
            _log.warning(
                "%d residues of the structure to keep have too few atoms, or beads near them, and "
                "are predicted", len(lost),
            )  # fmt: skip

    def _cut(self, system: System, points: np.ndarray, residues: list[int]):
        """Yield the pieces of the structure."""
        homes = np.full((system.n_beads, 3), np.nan)
        known = np.isfinite(points).all(axis=1)
        bead, atom = system.members.T
        used = system.weights > 0
        whole = np.bincount(bead[used], ~known[atom[used]], system.n_beads) == 0
        full = system.map_positions(np.where(known[:, None], points, 0.0))
        homes[whole] = full[whole]
        self._laid: set[int] = set()
        for molecule in np.unique(system.bead_molecule[whole]):
            near = np.flatnonzero(whole & (system.bead_molecule == molecule))
            if len(near) < FEWEST:
                continue
            tree = cKDTree(homes[near])
            inside = set(system.bead_residue[near].tolist())
            for r in residues:
                if r not in inside:
                    continue
                mine = np.flatnonzero(system.atoms.residue == r)
                here = mine[known[mine]]
                distance, row = tree.query(points[here].mean(axis=0), min(NEAREST, len(near)))
                weights = np.exp(-2.3 * (distance / distance.max()) ** 2)
                self._laid.add(r)
                yield _Piece(here, points[here], mine[~known[mine]], near[row], homes[near[row]],
                             weights / weights.sum())  # fmt: skip

    def __call__(self, positions: np.ndarray, beads: np.ndarray) -> np.ndarray:
        """Return positions with the structure in place of what was predicted.

        Parameters
        ----------
        positions : ndarray, shape=(n_atoms, 3), float32, Å
        beads : ndarray, shape=(n_beads, 3), float32, Å
            Molecules must be whole.
        """
        result, given = positions.astype(np.float64), beads.astype(np.float64)
        for piece in self._pieces:
            laid = _moved(piece.points, piece.homes, given[piece.beads], piece.weights)
            if len(piece.missing) and len(piece.atoms) >= FEWEST:
                even = np.full(len(piece.atoms), 1 / len(piece.atoms))
                result[piece.missing] = _moved(
                    result[piece.missing], result[piece.atoms], laid, even
                )
            result[piece.atoms] = laid
        return result.astype(np.float32)


def _moved(
    points: np.ndarray, start: np.ndarray, goal: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Move points by the rotation and shift that lay one set of weighted points on another."""
    middle, aim = weights @ start, weights @ goal
    u, _, vt = np.linalg.svd((weights[:, None] * (goal - aim)).T @ (start - middle))
    mirror = np.array([1.0, 1.0, np.linalg.det(u) * np.linalg.det(vt)])
    return (points - middle) @ ((u * mirror) @ vt).T + aim


def matched_residues(system: System, structure: System) -> dict[int, int]:
    """Find the residues of a structure in a system: chains by sequence, others by name in order.

    Stretches of a chain, as missing loops leave them, are looked for one by one; of several places
    the one with the same numbers is taken, then the one in the same chain, then the first.

    Returns
    -------
    dict of int to int
        Residue of the system → residue of the structure.

    Raises
    ------
    StructureError
        Names the stretches that are nowhere.
    """
    names, other = system.residue_names, structure.residue_names
    starts = np.searchsorted(system.atoms.residue, np.arange(len(names)))
    numbers = system.atoms.resids[np.minimum(starts, system.n_atoms - 1)]
    other_starts = np.searchsorted(structure.atoms.residue, np.arange(len(other)))
    other_numbers = structure.atoms.resids[other_starts]
    follows = system.next_residue
    taken: dict[int, int] = {}
    lost = []
    for run in sorted(_runs(structure), key=len, reverse=True):
        want = other[run].tolist()
        best = None
        for first in np.flatnonzero(names == want[0]).tolist():
            rows = [first]
            while len(rows) < len(run) and follows[rows[-1]] >= 0:
                rows.append(int(follows[rows[-1]]))
            if (
                len(rows) < len(run)
                or names[rows].tolist() != want
                or any(r in taken for r in rows)
            ):
                continue
            same = bool((numbers[rows] == other_numbers[run]).all())
            chain = system.chain_letters[first] == structure.chain_letters[run[0]]
            score = (not same, not chain, first)
            best = min(best, (score, rows)) if best else (score, rows)
        if best:
            taken |= dict(zip(best[1], run, strict=True))
        elif len(run) > 1:
            lost.append(f"{other[run[0]]} {other_numbers[run[0]]} to {other[run[-1]]} "
                        f"{other_numbers[run[-1]]}")  # fmt: skip
    if lost or not taken:
        found = listing(lost) if lost else "  no residue in common"
        raise StructureError(
            f"the structure to keep has stretches that no chain of the beads has:\n{found}\n"
            "  Hint: it must have the sequence that was coarse-grained; cut off tags and mutate "
            "back first."
        )
    return taken


def _runs(system: System) -> list[list[int]]:
    """Residues of each unbroken stretch of a chain; others are stretches of one."""
    begins = np.ones(len(system.next_residue), dtype=bool)
    begins[system.next_residue[system.next_residue >= 0]] = False
    result = []
    for first in np.flatnonzero(begins).tolist():
        run = [first]
        while system.next_residue[run[-1]] >= 0:
            run.append(int(system.next_residue[run[-1]]))
        result.append(run)
    return result
