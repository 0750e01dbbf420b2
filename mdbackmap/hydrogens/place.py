"""Placing the hydrogens of one frame: array work from `mdbackmap.hydrogens.recipes`.

Hydrogens that chemistry fixes are put straight into their local frames. What can turn (hydroxyl,
thiol, amine, ammonium) is put where it is furthest from others and nearest to an acceptor, of a
few torsions; methyls stay staggered unless they clash. Hydrogens that still meet give way.
"""

from __future__ import annotations

import numpy as np

from mdbackmap.hydrogens.frames import local_frames
from mdbackmap.hydrogens.nearby import Nearby, nearby, ranges
from mdbackmap.hydrogens.recipes import Recipes, Turning
from mdbackmap.hydrogens.spread import WATCHED, Spreader

REACH = 3.7
"""Å within which heavy atoms must be known to one another: hydrogens of two that are further apart
are more than 1.5 Å apart."""
NEAREST = {
    # of a donated hydrogen to: heavy atom, acceptor, hydrogen, donated hydrogen
    True: np.array([2.5, 1.6, 2.1, 2.2], dtype=np.float32),
    # of a hydrogen on carbon to the same
    False: np.array([2.5, 2.4, 2.1, 2.1], dtype=np.float32),
}
"""Å; nearer is a clash."""
WIDTH = 0.4
"""Å; a clash so deep costs 1."""
BOND_STARTS, BOND_FULL = 2.7, 1.9
"""Å from a donated hydrogen to an acceptor: where a hydrogen bond begins and is worth 1."""
ROUNDS = 2
"""Times that all donors choose, each seeing what those before it have chosen."""
TURN = 1.1
"""Å that hydrogens of a methyl move at most when it turns."""
HEAVY, ACCEPTOR, HYDROGEN, DONATED = range(4)


class HydrogenPlacer:
    """Places the hydrogens of frames of one system.

    Parameters
    ----------
    recipes : Recipes
    """

    def __init__(self, recipes: Recipes) -> None:
        self.recipes = recipes
        self._repeated: dict[int, HydrogenPlacer] = {}
        self.spreader = Spreader(recipes)
        turning = recipes.turning
        rows = np.concatenate([t.bearers for t in turning] or [np.zeros(0, np.int64)])
        self._bearers = recipes.bearers[rows]
        self._starts = np.cumsum([0, *(len(t.bearers) for t in turning)])
        self._n_donors = sum(len(t.bearers) for t in turning if t.polar)
        # The group that each heavy atom turns, -1 for none; donors come first.
        self._group = np.full(len(recipes.count), -1, dtype=np.int64)
        self._group[self._bearers] = np.arange(len(rows))
        self._group_of = np.repeat(self._group, recipes.count)
        # Methyls may still turn when hydrogens that meet are looked for.
        turns = self._group_of >= self._n_donors
        self._watched = np.where(turns, WATCHED + TURN, WATCHED).astype(np.float32)
        self._seen_as = np.where(recipes.accepts, ACCEPTOR, HEAVY)

    def repeated(self, copies: int) -> HydrogenPlacer:
        """Return what places those of so many copies of the system together."""
        if copies == 1:
            return self
        if copies not in self._repeated:
            self._repeated = {copies: HydrogenPlacer(self.recipes.repeated(copies))}
        return self._repeated[copies]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_repeated": {}}

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
        frames = local_frames(heavy, recipes)
        offsets = np.einsum("hk,hkx->hx", recipes.coefficients, frames[recipes.owner])
        near, far = nearby(pairs, recipes)
        donors = np.arange(self._n_donors)
        for _ in range(ROUNDS if len(donors) else 0):
            self._turn(donors, frames, offsets, far)
        meeting = self.spreader.meeting(near, far, offsets, self._watched)
        clashing = meeting.within(offsets, np.zeros_like(self._watched)).hydrogens(len(offsets))
        methyls = np.unique(self._group_of[clashing])
        methyls = methyls[methyls >= self._n_donors]
        if len(methyls):
            self._turn(methyls, frames, offsets, far)
        self.spreader(meeting.within(offsets, np.full_like(self._watched, WATCHED)), offsets)
        return heavy[recipes.bearers[recipes.owner]] + offsets

    def _turn(
        self, groups: np.ndarray, frames: np.ndarray, offsets: np.ndarray, near: Nearby
    ) -> None:
        """Choose anew how some groups stand; writes into ``offsets``."""
        asked = np.zeros(len(self._bearers), dtype=bool)
        asked[groups] = True
        group, points, kind = self._surroundings(asked, offsets, near)
        for k, turning in enumerate(self.recipes.turning):
            start, stop = self._starts[k : k + 2]
            chosen = np.flatnonzero(asked[start:stop])
            if not len(chosen):
                continue
            low, high = np.searchsorted(group, [start, stop])
            number = np.cumsum(asked[start:stop]) - 1
            own = number[group[low:high] - start]
            ways = np.einsum("tkc,rcx->rtkx", turning.candidates, frames[turning.bearers[chosen]])
            cost = _cost(ways, own, points[low:high], kind[low:high], turning) + turning.cost
            best = ways[np.arange(len(chosen)), np.argmin(cost, axis=1)]
            offsets[turning.first[chosen][:, None] + np.arange(best.shape[1])] = best

    def _surroundings(
        self, asked: np.ndarray, offsets: np.ndarray, near: Nearby
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is near groups: group, ascending, point seen from its bearer, and kind of point."""
        recipes = self.recipes
        group = self._group[np.concatenate([near.first, near.second])]
        rows = np.flatnonzero((group >= 0) & asked[group])
        rows = rows[np.argsort(group[rows], kind="stable")]
        group = group[rows]
        other = np.concatenate([near.second, near.first])[rows]
        turned = rows >= len(near.first)
        rows = np.where(turned, rows - len(near.first), rows)
        gaps = np.where(turned[:, None], -near.gaps[rows], near.gaps[rows])
        # One row for the heavy atom, then one for each of its hydrogens.
        rows, within = ranges(recipes.count[other] + 1)
        light = within > 0
        hydrogen = np.where(light, recipes.first[other[rows]] + within - 1, 0)
        points = gaps[rows] + np.where(light[:, None], offsets[hydrogen], 0)
        kind = np.where(light, np.where(recipes.polar[other[rows]], DONATED, HYDROGEN),
                        self._seen_as[other[rows]])  # fmt: skip
        # Groups defer to those before them, and donors to methyls, which move only if they must.
        theirs = np.where(light, self._group_of[hydrogen], -1)
        donor = group[rows] < self._n_donors
        counts = (theirs < group[rows]) | (donor & (theirs >= self._n_donors))
        return group[rows][counts], points[counts], kind[counts]


def _cost(
    ways: np.ndarray, own: np.ndarray, points: np.ndarray, kind: np.ndarray, turning: Turning
) -> np.ndarray:
    """Clashes and hydrogen bonds of every way of every group, shape (groups, ways)."""
    total = np.zeros(ways.shape[:2], dtype=np.float32)
    if not len(own):
        return total
    step = ways[own] - points[:, None, None]
    distance = np.sqrt(np.einsum("mtkx,mtkx->mtk", step, step))
    nearest = NEAREST[turning.polar][kind][:, None, None]
    cost = np.maximum(nearest - distance, 0) ** 2 / WIDTH**2
    if turning.polar:
        cost -= np.where((kind == ACCEPTOR)[:, None, None], bond_worth(distance), 0)
    starts = np.flatnonzero(np.diff(own, prepend=-1))
    total[own[starts]] = np.add.reduceat(cost.sum(axis=2), starts, axis=0)
    return total


def bond_worth(distance: np.ndarray) -> np.ndarray:
    """Worth of hydrogen bonds, 0 to 1, from distances of hydrogen and acceptor, Å."""
    return np.clip((BOND_STARTS - distance) / (BOND_STARTS - BOND_FULL), 0, 1)
