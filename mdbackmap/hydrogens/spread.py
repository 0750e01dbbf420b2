"""Bending hydrogens apart that stand too close to one another, bond lengths kept.

Heavy atoms do not move here: where beads put carbons 3 Å apart, hydrogens between them give way
by some degrees instead of sitting on one another, and a minimisation has something to start from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdbackmap.hydrogens.nearby import Nearby, ranges
from mdbackmap.hydrogens.recipes import Recipes

APART = 1.66
"""Å between hydrogens of different atoms that is aimed at."""
SIBLINGS = 1.55
"""Å between hydrogens of one atom; undisturbed they have 1.6 to 1.8."""
FREE_HEAVY, FREE_ACCEPTOR = 1.95, 1.6
"""Å to heavy atoms more than two bonds from the bearer; to acceptors, for a donated hydrogen."""
WATCHED = 0.35
"""Å beyond these limits within which pairs are watched."""
BLOCK = 16384
"""Pairs of heavy atoms looked at together: what is worked out for them fits caches."""
SWEEPS = 9
PULL = 0.1
"""Share of the way back to where chemistry has it, per sweep; none in the last quarter."""


@dataclass(frozen=True, eq=False)
class Meeting:
    """Hydrogens near one another, and near heavy atoms.

    Attributes
    ----------
    first, second : ndarray, shape=(m,), int64
        Hydrogens of different atoms.
    gaps : ndarray, shape=(m, 3), float32, Å
        From the bearer of the first to that of the second.
    lone : ndarray, shape=(k,), int64
        Hydrogens.
    to_heavy : ndarray, shape=(k, 3), float32, Å
        From the bearer of each to a heavy atom.
    least : ndarray, shape=(k,), float32, Å
        How near it may be.
    """

    first: np.ndarray
    second: np.ndarray
    gaps: np.ndarray
    lone: np.ndarray
    to_heavy: np.ndarray
    least: np.ndarray

    def within(self, offsets: np.ndarray, more: np.ndarray) -> Meeting:
        """Return those that are no further apart than they should be, and a little more.

        Parameters
        ----------
        offsets : ndarray, shape=(n_hydrogens, 3), float32, Å
            Of hydrogens from their bearers.
        more : ndarray, shape=(n_hydrogens,), float32, Å
        """
        steps = self.gaps + offsets[self.second] - offsets[self.first]
        limit = APART + np.maximum(more[self.first], more[self.second])
        near = np.flatnonzero(_square(steps) < limit**2)
        steps = self.to_heavy - offsets[self.lone]
        close = np.flatnonzero(_square(steps) < (self.least + more[self.lone]) ** 2)
        return Meeting(self.first[near], self.second[near], self.gaps[near], self.lone[close],
                       self.to_heavy[close], self.least[close])  # fmt: skip

    def hydrogens(self, n: int) -> np.ndarray:
        """Those of ``n`` hydrogens that are near something, each once."""
        named = np.zeros(n, dtype=bool)
        for column in (self.first, self.second, self.lone):
            named[column] = True
        return np.flatnonzero(named)


class Spreader:
    """Bends hydrogens of one system apart.

    Parameters
    ----------
    recipes : Recipes
    """

    def __init__(self, recipes: Recipes) -> None:
        self.recipes = recipes
        bearer = recipes.bearers[recipes.owner]
        self._polar = recipes.polar[bearer]
        rows = np.arange(len(bearer))
        self._siblings = np.concatenate(
            [np.stack([rows[:-k], rows[k:]], axis=1)[bearer[:-k] == bearer[k:]] for k in (1, 2)]
        )

    def meeting(self, near: Nearby, far: Nearby, offsets: np.ndarray, more: np.ndarray) -> Meeting:
        """Find hydrogens that meet something.

        Parameters
        ----------
        near, far : Nearby
            Bearers that are not bonded; bearers and others more than two bonds apart.
        offsets, more : ndarray
            As in `Meeting.within`.
        """
        far = far[_square(far.gaps) < (FREE_HEAVY + WATCHED + 1.0) ** 2]
        most = max(len(near.first), len(far.first), 1)
        blocks = (slice(k, k + BLOCK) for k in range(0, most, BLOCK))
        found = [self._possible(near[b], far[b]).within(offsets, more) for b in blocks]
        return Meeting(
            *(np.concatenate(column) for column in zip(*map(_values, found), strict=True))
        )

    def _possible(self, near: Nearby, far: Nearby) -> Meeting:
        recipes = self.recipes
        count = recipes.count[near.second]
        rows, within = ranges(recipes.count[near.first] * count)
        one, two = np.divmod(within, count[rows])
        first, second = recipes.first[near.first], recipes.first[near.second]
        bearer = np.concatenate([far.first, far.second])
        other = np.concatenate([far.second, far.first])
        whose, which = ranges(recipes.count[bearer])
        lone = recipes.first[bearer[whose]] + which
        bond = recipes.accepts[other[whose]] & self._polar[lone]
        return Meeting(
            first[rows] + one, second[rows] + two, near.gaps[rows],
            lone, np.concatenate([far.gaps, -far.gaps])[whose],
            np.where(bond, np.float32(FREE_ACCEPTOR), np.float32(FREE_HEAVY)),
        )  # fmt: skip

    def __call__(self, meeting: Meeting, offsets: np.ndarray) -> None:
        """Change offsets of hydrogens from their bearers, of those that meet, in place."""
        moved = meeting.hydrogens(len(offsets))
        if not len(moved):
            return
        number = np.full(len(offsets), -1, dtype=np.int64)
        number[moved] = np.arange(len(moved))
        siblings = number[self._siblings]
        siblings = siblings[(siblings >= 0).all(axis=1)]
        first = np.concatenate([number[meeting.first], siblings[:, 0]])
        second = np.concatenate([number[meeting.second], siblings[:, 1]])
        gaps = np.concatenate([meeting.gaps, np.zeros((len(siblings), 3), np.float32)])
        limit = np.repeat(np.float32([APART, SIBLINGS]), [len(meeting.first), len(siblings)])
        lone, n = number[meeting.lone], len(moved)
        here = usual = offsets[moved]
        length = _length(usual)
        ends = np.concatenate([first, second, lone])
        for sweep in range(SWEEPS):
            half = 0.5 * _shortfall(gaps + here[second] - here[first], limit)
            away = _shortfall(meeting.to_heavy - here[lone], meeting.least)
            steps = np.concatenate([-half, half, -away])
            move = np.stack([np.bincount(ends, steps[:, k], n) for k in range(3)], axis=1)
            if sweep < SWEEPS * 3 // 4:
                move += PULL * (usual - here)
            here = (here + move).astype(np.float32)
            here *= (length / _length(here))[:, None]
        offsets[moved] = here


def _values(meeting: Meeting) -> tuple[np.ndarray, ...]:
    return tuple(vars(meeting).values())


def _square(steps: np.ndarray) -> np.ndarray:
    return np.einsum("nx,nx->n", steps, steps)


def _length(steps: np.ndarray) -> np.ndarray:
    return np.sqrt(_square(steps)) + np.float32(1e-6)


def _shortfall(steps: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """By how much steps are too short, along them."""
    length = _length(steps)
    return (np.maximum(limit - length, 0) / length)[:, None] * steps
