"""Heavy atoms that are near one another in a frame without being bonded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mdbackmap.hydrogens.recipes import Recipes


@dataclass(frozen=True, eq=False)
class Nearby:
    """Pairs of heavy atoms.

    Attributes
    ----------
    first, second : ndarray, shape=(m,), int64
    gaps : ndarray, shape=(m, 3), float32, Å
        From the first to the nearest image of the second.
    """

    first: np.ndarray
    second: np.ndarray
    gaps: np.ndarray

    @classmethod
    def of_frames(cls, pairs: Sequence[Nearby], n_heavy: int) -> Nearby:
        """Return the pairs of several frames of so many heavy atoms, one behind the other."""
        if len(pairs) == 1:
            return pairs[0]
        shift = np.repeat(n_heavy * np.arange(len(pairs)), [len(p.first) for p in pairs])
        first, second = (np.concatenate([getattr(p, name) for p in pairs])
                         for name in ("first", "second"))  # fmt: skip
        return cls(first + shift, second + shift, np.concatenate([p.gaps for p in pairs]))

    def __getitem__(self, rows: np.ndarray) -> Nearby:
        return Nearby(self.first[rows], self.second[rows], self.gaps[rows])


def nearby(pairs: Nearby, recipes: Recipes) -> tuple[Nearby, Nearby]:
    """Return pairs of which both bear hydrogens, not bonded; and pairs of which one does, more
    than two bonds apart.

    Parameters
    ----------
    pairs : Nearby
        All pairs that are near one another, the first of each lower than the second.
    """
    bearing = recipes.count > 0
    one, other = bearing[pairs.first], bearing[pairs.second]
    usable = (one | other) & ~_listed(recipes.bonded, pairs)
    near = pairs[usable]
    return near[(one & other)[usable]], near[~_listed(recipes.within_two, near)]


def _listed(table: np.ndarray, pairs: Nearby) -> np.ndarray:
    """Whether the second of each pair is in the first's column of a table."""
    found = np.zeros(len(pairs.first), dtype=bool)
    second = pairs.second.astype(table.dtype)
    for row in table:
        found |= row[pairs.first] == second
    return found


def ranges(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return so many rows for each of some things: whose row it is, and its number there.

    >>> ranges(np.array([2, 0, 1]))
    (array([0, 0, 2]), array([0, 1, 0]))
    """
    whose = np.repeat(np.arange(len(counts)), counts)
    return whose, np.arange(len(whose)) - np.repeat(np.cumsum(counts) - counts, counts)
