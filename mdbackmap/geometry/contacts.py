"""How close atoms may come that are not bonded to one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdbackmap.geometry.constraints import Constraints

POLAR, OTHER = 2.6, 2.9
"""Å between two atoms of N, O (a short hydrogen bond has 2.5), between any others."""
REACH = 3.4
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
    near = np.concatenate([bonds, bonds[:, ::-1]])
    near = near[np.argsort(near[:, 0], kind="stable")]
    start = np.searchsorted(near[:, 0], np.arange(n_atoms + 1))
    reached = [near]
    for _ in range(2):
        first, middle = reached[-1].T
        count = start[middle + 1] - start[middle]
        column = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        last = near[np.repeat(start[middle], count) + column, 1]
        reached.append(np.stack([np.repeat(first, count), last], axis=1))
    pairs = np.concatenate(reached)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    # numpy.unique would hash, which is five times slower for so many.
    key = np.sort(pairs[:, 0] * n_atoms + pairs[:, 1])
    key = key[np.diff(key, prepend=-1) > 0]
    first, second = key // n_atoms, key % n_atoms
    count = np.bincount(first, minlength=n_atoms)
    table = np.full((n_atoms, max(1, int(count.max(initial=0)))), -1, dtype=np.int32)
    table[first, np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)] = second
    return table
