"""Neighbours of every bead within the cutoff, as padded arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdbackmap.compiled import compiled
from mdbackmap.geometry import cells
from mdbackmap.geometry.boxes import box_vectors
from mdbackmap.threads import spread

PIECE = 20_000
"""Points of a large system whose pairs one thread looks for at a time."""

RELATIONS = (
    "other", "same residue", "next residue", "previous residue", "bridged residue",
    "second next", "second previous", "third next", "third previous",
    "fourth next", "fourth previous",
)  # fmt: skip
"""How a neighbour is bonded to a bead's residue; a network tells the first few or all apart."""


@dataclass(frozen=True)
class Neighbours:
    """Neighbours of ``n`` beads, padded to the largest count ``k``.

    Attributes
    ----------
    index : ndarray, shape=(n, k), int64
        Neighbouring beads; padding repeats the bead itself.
    vectors : ndarray, shape=(n, k, 3), float32, Å
        From the bead to the neighbour's nearest image; zero for padding.
    relation : ndarray, shape=(n, k), int64
        Place in `RELATIONS`.
    present : ndarray, shape=(n, k), bool
        False for padding.
    """

    index: np.ndarray
    vectors: np.ndarray
    relation: np.ndarray
    present: np.ndarray


def find_pairs(
    positions: np.ndarray, box: np.ndarray | None, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all pairs within the cutoff, each in both directions, sorted by the first bead.

    Parameters
    ----------
    positions : ndarray, shape=(n, 3), Å
        Any image of each bead.
    box : ndarray, shape=(3, 3), Å, or None

    Returns
    -------
    first, second : ndarray, shape=(m,), int64
    vectors : ndarray, shape=(m, 3), float32, Å
    """
    pairs = _half_of_pairs(positions, box, cutoff, own_images=True)
    return _both_ways(*pairs, len(positions))


@compiled
def _both_ways(first, second, vectors, n):
    """Pairs both ways, sorted by the first; those of a point with its image are so already."""
    start = np.zeros(n + 1, np.int64)
    for m in range(len(first)):
        start[first[m] + 1] += 1
        start[second[m] + 1] += first[m] != second[m]
    for i in range(n):
        start[i + 1] += start[i]
    here, there = np.empty(start[n], np.int64), np.empty(start[n], np.int64)
    ways = np.empty((start[n], 3), np.float32)
    for way in (1, -1):
        for m in range(len(first)):
            i, j = (first[m], second[m]) if way == 1 else (second[m], first[m])
            if way == -1 and i == j:
                continue
            place = start[i]
            start[i] += 1
            here[place], there[place] = i, j
            for x in range(3):
                ways[place, x] = way * vectors[m, x]
    return here, there, ways


def close_pairs(
    positions: np.ndarray, box: np.ndarray | None, cutoff: float, but: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every pair within the cutoff once, ``first`` < ``second``, in no order.

    Parameters and returns as in `find_pairs`. Pairs of a point with an image of itself are left
    out, and so are those that ``but`` lists.

    Parameters
    ----------
    but : ndarray, shape=(n, k), int32, optional
        Points of higher numbers that are no neighbours of each, whatever image; padded with -1.
    """
    return _half_of_pairs(positions, box, cutoff, own_images=False, but=but)


def _half_of_pairs(
    positions: np.ndarray, box: np.ndarray | None, cutoff: float, *, own_images: bool,
    but: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Pairs with ``first`` < ``second``, and with ``own_images`` those of a point with its own."""
    n = len(positions)
    if but is None:
        but = np.zeros((0, 0), dtype=np.int32)
    if not n:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.float32)
    points, number, owner, start, *_, shape = cells.sorted_into_cells(
        np.ascontiguousarray(positions, dtype=np.float64), box_vectors(box), float(cutoff)
    )
    columns = shape[0] * shape[1]
    pieces = max(1, min(int(columns), len(points) // PIECE))
    cuts = [columns * k // pieces for k in range(pieces + 1)]
    found = spread(
        lambda k: cells.pairs_in_cells(
            points, number, owner, start, shape, cuts[k], cuts[k + 1], cutoff, n, own_images, but
        ),
        range(pieces),
    )
    pairs, vectors = (np.concatenate(column) for column in zip(*found, strict=True))
    return pairs[:, 0].copy(), pairs[:, 1].copy(), vectors


def pairs_in_groups(group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs of different members of a group, both ways, sorted by the first.

    Parameters
    ----------
    group : ndarray, shape=(n,), int64
        Members of a group follow one another.

    Returns
    -------
    first, second : ndarray, shape=(m,), int64
    """
    begins = np.flatnonzero(np.diff(group, prepend=-1))
    size = np.diff(np.append(begins, len(group)))
    start, others = np.repeat(begins, size), np.repeat(size, size) - 1
    first = np.repeat(np.arange(len(group)), others)
    place = np.arange(len(first)) - np.repeat(np.cumsum(others) - others, others)
    second = start[first] + place
    return first, second + (second >= first)


def relations(
    first: np.ndarray,
    second: np.ndarray,
    residue: np.ndarray,
    next_residue: np.ndarray,
    bridges: np.ndarray,
    kinds: int,
) -> np.ndarray:
    """Return the relation of each pair, one of the first ``kinds`` of `RELATIONS`.

    Shape (m,), int64; what a network does not tell apart is "other".
    """
    here, there = residue[first], residue[second]
    bridge = np.full(len(next_residue), -2, dtype=np.int64)
    if len(bridges):
        bridge[bridges[:, 0]] = bridges[:, 1]
        bridge[bridges[:, 1]] = bridges[:, 0]
    # One more place for "no residue", so that steps beyond the end of a chain stay there.
    following = np.append(np.where(next_residue < 0, len(next_residue), next_residue),
                          len(next_residue))  # fmt: skip
    conditions = [here == there]
    after, before = following[here], following[there]
    for _ in range(1 + (kinds - 5) // 2):
        conditions += [after == there, before == here]
        after, before = following[after], following[before]
    conditions.insert(3, bridge[here] == there)
    return np.select(conditions, range(1, kinds), default=0).astype(np.int64)
