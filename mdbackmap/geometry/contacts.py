"""How close atoms may come that are not bonded to one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdbackmap.compiled import compiled
from mdbackmap.geometry.constraints import Constraints

POLAR, OTHER = 2.6, 2.9
"""Å between two atoms of N, O (a short hydrogen bond has 2.5), between any others."""
BONDS = 3
"""Bonds within which atoms are not in contact."""
REACH = 3.8
"""Å within which predicted atoms are watched; idealising moves few by more than the difference."""


@dataclass(frozen=True)
class Contacts:
    """Pairs of atoms to be kept apart in one frame.

    Attributes
    ----------
    first, second : ndarray, shape=(m,), int64
    vectors : ndarray, shape=(m, 3), Å
        From the first to the image of the second that is near it.
    nearest : ndarray, shape=(m,), float32, Å
    """

    first: np.ndarray
    second: np.ndarray
    vectors: np.ndarray
    nearest: np.ndarray


class ContactRules:
    """Which close pairs count, and how close they may come; the static half of `Contacts`.

    Parameters
    ----------
    constraints : Constraints
        Atoms up to three bonds apart are not in contact.
    elements : ndarray, shape=(n_atoms,), str

    Attributes
    ----------
    bonded : ndarray, shape=(n_atoms, k), int32
        Atoms of higher numbers up to three bonds from each, padded with -1.
    """

    def __init__(self, constraints: Constraints, elements: np.ndarray) -> None:
        self.polar = np.isin(elements, ("N", "O"))
        self.bonded = _within_three_bonds(constraints.bonds, len(elements))

    def __call__(self, first: np.ndarray, second: np.ndarray, vectors: np.ndarray) -> Contacts:
        """Pick contacts from pairs within `REACH`, ``first`` < ``second``; see `Contacts`."""
        apart = ~(self.bonded[first] == second[:, None]).any(axis=1)
        return self.between(first[apart], second[apart], vectors[apart])

    def between(self, first: np.ndarray, second: np.ndarray, vectors: np.ndarray) -> Contacts:
        """Return contacts of pairs of which none is bonded."""
        nearest = np.where(self.polar[first] & self.polar[second], POLAR, OTHER)
        return Contacts(first, second, vectors, nearest.astype(np.float32))


def _within_three_bonds(bonds: np.ndarray, n_atoms: int) -> np.ndarray:
    """Atoms of a higher number at most three bonds away, one row per atom, padded with -1."""
    near = np.concatenate([bonds, bonds[:, ::-1]]).astype(np.int64)
    start = np.append(0, np.cumsum(np.bincount(near[:, 0], minlength=n_atoms)))
    near = near[np.argsort(near[:, 0], kind="stable"), 1]
    none = np.zeros((n_atoms, 0), dtype=np.int32)
    table = np.full((n_atoms, max(1, _reach(start, near, BONDS, none))), -1, dtype=np.int32)
    _reach(start, near, BONDS, table)
    return table


@compiled
def _reach(start, near, steps, table):
    """Write atoms of a higher number that are so many bonds away; return the most of any atom."""
    n, most = len(start) - 1, 0
    met, queue = np.full(n, -1, np.int64), np.empty(n, np.int64)
    for i in range(n):
        met[i], queue[0], head, tail, found = i, i, 0, 1, 0
        for _ in range(steps):
            stop = tail
            while head < stop:
                here = queue[head]
                head += 1
                for k in range(start[here], start[here + 1]):
                    j = near[k]
                    if met[j] == i:
                        continue
                    met[j], queue[tail] = i, j
                    tail += 1
                    if j > i:
                        if found < table.shape[1]:
                            table[i, found] = j
                        found += 1
        most = max(most, found)
    return most
