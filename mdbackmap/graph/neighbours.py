"""Neighbours of every bead within the cutoff, as padded arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from mdbackmap.compiled import compiled
from mdbackmap.geometry.boxes import with_images
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
    first, second, vectors = _half_of_pairs(positions, box, cutoff, own_images=True)
    # A pair of a point with an image of itself is there both ways already.
    other = np.flatnonzero(first != second)
    back = second[other], first[other], -vectors[other]
    first, second, vectors = (
        np.concatenate(both) for both in zip((first, second, vectors), back, strict=True)
    )
    order = _stable_order(first, len(positions))
    return first.take(order), second.take(order), vectors.take(order, axis=0)


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
    points, owner = with_images(np.asarray(positions, dtype=np.float64), box, cutoff)
    if but is None:
        but = np.zeros((0, 0), dtype=np.int32)
    if not len(points):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.float32)
    low = points.min(axis=0)
    extent = points.max(axis=0) - low
    size, shape = _grid(extent, cutoff, len(points))
    order, start = _sorted_by_cell(points, low, size, shape)
    points, owner = points[order], owner[order]
    columns = shape[0] * shape[1]
    pieces = max(1, min(int(columns), len(points) // PIECE))
    cuts = np.linspace(0, columns, pieces + 1).astype(np.int64)
    found = spread(
        lambda k: _pairs_in_cells(
            points, order, owner, start, shape, cuts[k], cuts[k + 1], cutoff, n, own_images, but
        ),
        range(pieces),
    )
    pairs, vectors = (np.concatenate(column) for column in zip(*found, strict=True))
    return pairs[:, 0].copy(), pairs[:, 1].copy(), vectors


def _grid(extent: np.ndarray, cutoff: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Size of cells, Å, none smaller than the cutoff, and how many there are along each axis."""
    size = np.full(3, max(cutoff, 1e-3))
    while True:
        shape = np.floor(extent / size) + 1
        if shape.prod() <= max(2 * n, 64):
            return size, shape.astype(np.int64)
        # Far more cells than points: the widest axes are cut more coarsely.
        size = np.where(shape == shape.max(), 2 * size, size)


@compiled
def _sorted_by_cell(points, low, size, shape):
    """Points in the order of their cells, and where each cell starts."""
    n = len(points)
    cell = np.empty(n, np.int64)
    start = np.zeros(shape[0] * shape[1] * shape[2] + 1, np.int64)
    for i in range(n):
        number = 0
        for x in range(3):
            place = int((points[i, x] - low[x]) / size[x])
            number = number * shape[x] + min(max(place, 0), shape[x] - 1)
        cell[i] = number
        start[number + 1] += 1
    for k in range(len(start) - 1):
        start[k + 1] += start[k]
    order, place = np.empty(n, np.int64), np.zeros(len(start), np.int64)
    for i in range(n):
        order[start[cell[i]] + place[cell[i]]] = i
        place[cell[i]] += 1
    return order, start


@compiled
def _pairs_in_cells(points, number, owner, start, shape, begin, end, cutoff, n, own_images, but):
    """Pairs whose first point, in the order of cells, lies in some columns of cells.

    Points are sorted by cell; ``number`` is what each was before, ``owner`` whose image it is.
    """
    size = 1024
    pairs, vectors = np.empty((size, 2), np.int64), np.empty((size, 3), np.float32)
    found, limit = 0, cutoff * cutoff
    for column in range(begin, end):
        x, y = column // shape[1], column % shape[1]
        for z in range(shape[2]):
            here = column * shape[2] + z
            for i in range(start[here], start[here + 1]):
                # Cells along z follow one another, so that half of the 27 are five runs.
                for run in range(5):
                    if run == 0:
                        low, high = i + 1, start[here - z + min(z + 2, shape[2])]
                    else:
                        across = x + (0 if run == 1 else 1)
                        beside = y + (1 if run == 1 else run - 3)
                        if across >= shape[0] or beside < 0 or beside >= shape[1]:
                            continue
                        base = (across * shape[1] + beside) * shape[2]
                        low = start[base + max(z - 1, 0)]
                        high = start[base + min(z + 2, shape[2])]
                    for j in range(low, high):
                        dx = points[j, 0] - points[i, 0]
                        dy = points[j, 1] - points[i, 1]
                        dz = points[j, 2] - points[i, 2]
                        if dx * dx + dy * dy + dz * dz > limit:
                            continue
                        a, b = (i, j) if number[i] < number[j] else (j, i)
                        # A pair across a face is met twice, once from either side.
                        if number[a] >= n or owner[a] > owner[b]:
                            continue
                        if owner[a] == owner[b] and not own_images:
                            continue
                        listed = False
                        if len(but):
                            for k in range(but.shape[1]):
                                if but[owner[a], k] == owner[b]:
                                    listed = True
                        if listed:
                            continue
                        if found == size:
                            size *= 2
                            pairs, vectors = _longer(pairs, vectors, size)
                        pairs[found, 0], pairs[found, 1] = owner[a], owner[b]
                        way = 1 if a == i else -1
                        vectors[found, 0] = way * dx
                        vectors[found, 1] = way * dy
                        vectors[found, 2] = way * dz
                        found += 1
    return _longer(pairs, vectors, found)


@compiled
def _longer(pairs, vectors, size):
    """The same rows in longer arrays."""
    more, further = np.empty((size, 2), np.int64), np.empty((size, 3), np.float32)
    for k in range(min(len(pairs), size)):
        for x in range(2):
            more[k, x] = pairs[k, x]
        for x in range(3):
            further[k, x] = vectors[k, x]
    return more, further


def _stable_order(numbers: np.ndarray, most: int) -> np.ndarray:
    """Return what sorts numbers below ``most``, by counting them."""
    ones = np.ones(len(numbers), dtype=np.int8)
    shape = len(numbers), most
    return sparse.csr_array((ones, numbers, np.arange(len(numbers) + 1)), shape).tocsc().indices


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
