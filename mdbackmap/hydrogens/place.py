"""Placing the hydrogens of one frame: array work from `mdbackmap.hydrogens.recipes`.

Hydrogens that chemistry fixes are put straight into their local frames. What can turn (hydroxyl,
thiol, amine, ammonium) is put where it is furthest from others and nearest to an acceptor, of a
few torsions; methyls stay staggered unless they clash. Hydrogens that still meet give way.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mdbackmap.compiled import compiled, part
from mdbackmap.geometry.cells import listed
from mdbackmap.hydrogens.frames import local_frames, usual_places
from mdbackmap.hydrogens.nearby import Nearby, meeting
from mdbackmap.hydrogens.recipes import Recipes
from mdbackmap.hydrogens.spread import clashing, spread_out

REACH = 3.7
"""Å within which heavy atoms must be known to one another: hydrogens of two that are further apart
are more than 1.5 Å apart."""
NEAREST = np.array([[2.5, 2.4, 2.1, 2.1], [2.5, 1.6, 2.1, 2.2]])
"""Å from a hydrogen on carbon, and from a donated one, to: heavy atom, acceptor, hydrogen, donated
hydrogen; nearer is a clash."""
WIDTH = 0.4
"""Å; a clash so deep costs 1."""
BOND_STARTS, BOND_FULL = 2.7, 1.9
"""Å from a donated hydrogen to an acceptor: where a hydrogen bond begins and is worth 1."""
ROUNDS = 2
"""Times that all donors choose, each seeing what those before it have chosen."""
TURN = 1.1
"""Å that hydrogens of a methyl move at most when it turns."""
WATCHED = 0.35
"""Å beyond what is too near, within which hydrogens are watched while others move."""
HEAVY, ACCEPTOR, HYDROGEN, DONATED = range(4)


class Groups(NamedTuple):
    """What turns: hydrogens of one atom, donors first, that can stand in several ways.

    Attributes
    ----------
    bearer : ndarray, shape=(g,), int64
        Into `Recipes.bearers`.
    first : ndarray, shape=(g,), int64
        The first hydrogen; the others follow.
    kind : ndarray, shape=(g,), int64
    ways, size : ndarray, shape=(kinds,), int64
        Ways that a kind can stand in, and its hydrogens.
    polar : ndarray, shape=(kinds,), bool
    candidates : ndarray, shape=(kinds, t, k, 3), float32, Å
        Coefficients in the bearer's frame.
    cost : ndarray, shape=(kinds, t), float32
    """

    bearer: np.ndarray
    first: np.ndarray
    kind: np.ndarray
    ways: np.ndarray
    size: np.ndarray
    polar: np.ndarray
    candidates: np.ndarray
    cost: np.ndarray

    @classmethod
    def of(cls, recipes: Recipes) -> Groups:
        """Return the groups of a system."""
        turning = recipes.turning
        shapes = np.array([t.candidates.shape[:2] for t in turning], np.int64).reshape(-1, 2)
        ways, size = (int(n) for n in shapes.max(axis=0, initial=1))
        candidates = np.zeros((len(turning), ways, size, 3), np.float32)
        cost = np.zeros((len(turning), ways), np.float32)
        for k, one in enumerate(turning):
            candidates[k, : shapes[k, 0], : shapes[k, 1]] = one.candidates
            cost[k, : shapes[k, 0]] = one.cost
        none = np.zeros(0, np.int64)
        return cls(
            np.concatenate([none, *(t.bearers for t in turning)]),
            np.concatenate([none, *(t.first for t in turning)]),
            np.repeat(np.arange(len(turning)), [len(t.bearers) for t in turning]),
            shapes[:, 0].copy(), shapes[:, 1].copy(), np.array([t.polar for t in turning], bool),
            candidates, cost,
        )  # fmt: skip


class HydrogenPlacer:
    """Places the hydrogens of frames of one system.

    Parameters
    ----------
    recipes : Recipes
    """

    def __init__(self, recipes: Recipes) -> None:
        self.recipes = recipes
        self.groups = Groups.of(recipes)
        self._n_donors = sum(len(t.bearers) for t in recipes.turning if t.polar)
        # The group that each heavy atom turns, -1 for none.
        self._group = np.full(len(recipes.count), -1, dtype=np.int64)
        self._group[recipes.bearers[self.groups.bearer]] = np.arange(len(self.groups.bearer))
        self._group_of = np.repeat(self._group, recipes.count)
        # Methyls may still turn when hydrogens that meet are looked for.
        turns = self._group_of >= self._n_donors
        self._watched = np.where(turns, WATCHED + TURN, WATCHED).astype(np.float32)
        self._seen_as = np.where(recipes.accepts, ACCEPTOR, HEAVY)
        self._first = np.repeat(recipes.first, recipes.count)

    def __call__(self, heavy: np.ndarray, pairs: Nearby) -> np.ndarray:
        """Place hydrogens.

        Parameters
        ----------
        heavy : ndarray, shape=(n_heavy, 3), float32, Å
        pairs : Nearby
            Heavy atoms within `REACH` of one another, each pair once, the lower number first.

        Returns
        -------
        ndarray, shape=(n_hydrogens, 3), float32, Å
        """
        recipes = self.recipes
        heavy = np.ascontiguousarray(heavy, dtype=np.float32)
        frames = local_frames(heavy, recipes.bearers, recipes.neighbours, recipes.kind)
        offsets = usual_places(frames, recipes.owner, recipes.coefficients)
        asked = np.arange(len(self.groups.bearer)) < self._n_donors
        for _ in range(ROUNDS if asked.any() else 0):
            offsets = self._turned(asked, frames, offsets, pairs)
        near = vars(meeting(pairs, recipes, offsets, self._watched)).values()
        asked = np.zeros(len(asked) + 1, dtype=bool)
        asked[self._group_of[clashing(*near, offsets)]] = True
        asked[: self._n_donors] = False
        if asked[:-1].any():
            offsets = self._turned(asked[:-1], frames, offsets, pairs)
        spread_out(*near, offsets, self._first, WATCHED)
        return heavy[recipes.bearers[recipes.owner]] + offsets

    def _turned(
        self, asked: np.ndarray, frames: np.ndarray, offsets: np.ndarray, pairs: Nearby
    ) -> np.ndarray:
        """Choose anew how some groups stand, bool (g,); returns all offsets."""
        r = self.recipes
        return _turned(
            asked, frames, offsets, pairs.first, pairs.second, pairs.gaps, self._group,
            self._n_donors, self._seen_as, self.groups, r.first, r.count, r.polar, r.within_two,
        )  # fmt: skip


@compiled
def _turned(asked, frames, offsets, first, second, gaps, group, n_donors, seen_as, groups, start,
            count, polar, within_two):  # fmt: skip
    # Pairs by group: for each the pair, and which end turns.
    n_groups = len(asked)
    begin = np.zeros(n_groups + 1, np.int64)
    usable = np.zeros(len(first), np.bool_)
    for m in range(len(first)):
        g, other = group[first[m]], group[second[m]]
        one, two = g >= 0 and asked[g], other >= 0 and asked[other]
        if (one or two) and not listed(within_two, first[m], second[m]):
            usable[m] = True
            if one:
                begin[g + 1] += 1
            if two:
                begin[other + 1] += 1
    for g in range(n_groups):
        begin[g + 1] += begin[g]
    place, rows = begin.copy(), np.empty(begin[n_groups], np.int64)
    for m in range(len(first)):
        if usable[m]:
            g, other = group[first[m]], group[second[m]]
            if g >= 0 and asked[g]:
                rows[place[g]] = m
                place[g] += 1
            if other >= 0 and asked[other]:
                rows[place[other]] = -1 - m
                place[other] += 1
    chosen = offsets.copy()
    ways = groups.candidates.shape[1]
    spots = np.empty((ways, groups.candidates.shape[2], 3), np.float32)
    cost = np.empty(ways, np.float64)
    for g in range(n_groups):
        if not asked[g]:
            continue
        kind, frame = groups.kind[g], frames[groups.bearer[g]]
        donates = 1 if groups.polar[kind] else 0
        for t in range(groups.ways[kind]):
            cost[t] = groups.cost[kind, t]
            for k in range(groups.size[kind]):
                own = groups.candidates[kind, t, k]
                for x in range(3):
                    spots[t, k, x] = (own[0] * frame[0, x] + own[1] * frame[1, x]
                                      + own[2] * frame[2, x])  # fmt: skip
        for r in range(begin[g], begin[g + 1]):
            m, way = (rows[r], 1) if rows[r] >= 0 else (-1 - rows[r], -1)
            other = second[m] if way == 1 else first[m]
            x, y, z = way * gaps[m, 0], way * gaps[m, 1], way * gaps[m, 2]
            # Groups defer to those before them, donors to methyls, which move only if they must.
            theirs = group[other]
            counts = theirs < g or (g < n_donors and theirs >= n_donors)
            _add_cost(cost, spots, groups, kind, x, y, z, seen_as[other], donates)
            if counts:
                seen = DONATED if polar[other] else HYDROGEN
                for h in range(start[other], start[other] + count[other]):
                    _add_cost(cost, spots, groups, kind, x + offsets[h, 0], y + offsets[h, 1],
                              z + offsets[h, 2], seen, donates)  # fmt: skip
        best = 0
        for t in range(1, groups.ways[kind]):
            if cost[t] < cost[best]:
                best = t
        for k in range(groups.size[kind]):
            for x in range(3):
                chosen[groups.first[g] + k, x] = spots[best, k, x]
    return chosen


@part
def _add_cost(cost, spots, groups, kind, x, y, z, seen, donates):
    """Add the clashes and hydrogen bonds of every way of a group with a point."""
    nearest = NEAREST[donates, seen]
    for t in range(groups.ways[kind]):
        for k in range(groups.size[kind]):
            distance = np.sqrt((spots[t, k, 0] - x) ** 2 + (spots[t, k, 1] - y) ** 2
                               + (spots[t, k, 2] - z) ** 2)  # fmt: skip
            short = max(nearest - distance, 0.0)
            cost[t] += short * short / (WIDTH * WIDTH)
            if donates and seen == ACCEPTOR:
                worth = (BOND_STARTS - distance) / (BOND_STARTS - BOND_FULL)
                cost[t] -= min(max(worth, 0.0), 1.0)


def bond_worth(distance: np.ndarray) -> np.ndarray:
    """Worth of hydrogen bonds, 0 to 1, from distances of hydrogen and acceptor, Å."""
    return np.clip((BOND_STARTS - distance) / (BOND_STARTS - BOND_FULL), 0, 1)
