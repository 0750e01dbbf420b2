"""Heavy atoms that are near one another in a frame, and hydrogens that meet something."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdbackmap.compiled import compiled, part
from mdbackmap.geometry.cells import listed
from mdbackmap.hydrogens.recipes import Recipes
from mdbackmap.threads import spread

APART = 1.66
"""Å between hydrogens of different atoms that is aimed at."""
FREE_HEAVY, FREE_ACCEPTOR = 1.95, 1.6
"""Å to heavy atoms more than two bonds from the bearer; to acceptors, for a donated hydrogen."""
FAR = 3.3
"""Å between heavy atoms, beyond which neither minds the other's hydrogens."""
PIECE = 200_000
"""Pairs that a thread looks through at a time."""


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


@dataclass(frozen=True, eq=False)
class Meeting:
    """Hydrogens near one another, and near heavy atoms.

    Attributes
    ----------
    rows : ndarray, shape=(m, 2), int64
        A hydrogen, and one of another atom; -1 where it meets a heavy atom.
    gaps : ndarray, shape=(m, 3), float32, Å
        From the bearer of the first to that of the second, or to the heavy atom.
    limit : ndarray, shape=(m,), float32, Å
        How near they should be at least.
    """

    rows: np.ndarray
    gaps: np.ndarray
    limit: np.ndarray


def meeting(pairs: Nearby, recipes: Recipes, offsets: np.ndarray, more: np.ndarray) -> Meeting:
    """Find hydrogens that are no further from something than they should be, and a little more.

    Parameters
    ----------
    pairs : Nearby
        All heavy atoms that are near one another, the first of each lower than the second.
    offsets : ndarray, shape=(n_hydrogens, 3), float32, Å
        Of hydrogens from their bearers.
    more : ndarray, shape=(n_hydrogens,), float32, Å
    """
    begins = range(0, max(1, len(pairs.first)), PIECE)
    r = recipes
    found = spread(
        lambda k: _meeting(
            pairs.first[k : k + PIECE], pairs.second[k : k + PIECE], pairs.gaps[k : k + PIECE],
            offsets, more, r.first, r.count, r.polar, r.accepts, r.bonded, r.within_two,
        ),
        begins,
    )  # fmt: skip
    return Meeting(*(np.concatenate(column) for column in zip(*found, strict=True)))


@compiled
def _meeting(
    first, second, gaps, offsets, more, start, count, polar, accepts, bonded, within_two
):  # fmt: skip
    size, found = 1024, 0
    rows, places = np.empty((size, 2), np.int64), np.empty((size, 3), np.float32)
    limits = np.empty(size, np.float32)
    for m in range(len(first)):
        i, j = first[m], second[m]
        if count[i] + count[j] == 0 or listed(bonded, i, j):
            continue
        x, y, z = gaps[m, 0], gaps[m, 1], gaps[m, 2]
        if found + count[i] * count[j] + count[i] + count[j] > size:
            size *= 2
            rows, places, limits = _longer(rows, places, limits, size)
        for p in range(start[i], start[i] + count[i]):
            for q in range(start[j], start[j] + count[j]):
                limit = APART + max(more[p], more[q])
                square = ((x + offsets[q, 0] - offsets[p, 0]) ** 2
                          + (y + offsets[q, 1] - offsets[p, 1]) ** 2
                          + (z + offsets[q, 2] - offsets[p, 2]) ** 2)  # fmt: skip
                if square < limit * limit:
                    _write(rows, places, limits, found, p, q, x, y, z, APART)
                    found += 1
        if x * x + y * y + z * z >= FAR * FAR or listed(within_two, i, j):
            continue
        for side in range(2):
            own, other, way = (i, j, 1) if side == 0 else (j, i, -1)
            bond = accepts[other] and polar[own]
            least = FREE_ACCEPTOR if bond else FREE_HEAVY
            for p in range(start[own], start[own] + count[own]):
                square = ((way * x - offsets[p, 0]) ** 2 + (way * y - offsets[p, 1]) ** 2
                          + (way * z - offsets[p, 2]) ** 2)  # fmt: skip
                limit = least + more[p]
                if square < limit * limit:
                    _write(rows, places, limits, found, p, -1, way * x, way * y, way * z, least)
                    found += 1
    return _longer(rows, places, limits, found)


@part
def _write(rows, places, limits, k, p, q, x, y, z, limit):
    rows[k, 0], rows[k, 1], limits[k] = p, q, limit
    places[k, 0], places[k, 1], places[k, 2] = x, y, z


@part
def _longer(rows, places, limits, size):
    """The same in longer arrays."""
    new = np.empty((size, 2), np.int64), np.empty((size, 3), np.float32), np.empty(size, np.float32)
    for k in range(min(size, len(rows))):
        new[0][k, 0], new[0][k, 1], new[2][k] = rows[k, 0], rows[k, 1], limits[k]
        for x in range(3):
            new[1][k, x] = places[k, x]
    return new


def ranges(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return so many rows for each of some things: whose row it is, and its number there.

    >>> ranges(np.array([2, 0, 1]))
    (array([0, 0, 2]), array([0, 1, 0]))
    """
    whose = np.repeat(np.arange(len(counts)), counts)
    return whose, np.arange(len(whose)) - np.repeat(np.cumsum(counts) - counts, counts)
