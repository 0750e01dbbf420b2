"""Neighbours of every bead within the cutoff, as padded arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from mdbackmap.geometry.boxes import with_images
from mdbackmap.threads import spread

SLAB = 50_000
"""Points in a slab of a large system; they fit the processor's cache."""

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
    positions: np.ndarray, box: np.ndarray | None, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every pair within the cutoff once, ``first`` < ``second``, in no order.

    Parameters and returns as in `find_pairs`. Pairs of a point with an image of itself are left
    out.
    """
    return _half_of_pairs(positions, box, cutoff, own_images=False)


def _half_of_pairs(
    positions: np.ndarray, box: np.ndarray | None, cutoff: float, *, own_images: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs with ``first`` < ``second``, and with ``own_images`` those of a point with its own."""
    n = len(positions)
    points, owner = with_images(np.asarray(positions, dtype=np.float64), box, cutoff)
    here, there = _within(points, cutoff).T
    second = owner.take(there)
    # A pair across a face is met twice, once from either side.
    kept = np.flatnonzero((here < n) & (here < second + own_images))
    here, there = here.take(kept), there.take(kept)
    vectors = points.take(there, axis=0)
    vectors -= points.take(here, axis=0)
    return here, second.take(kept), vectors.astype(np.float32)


def _within(points: np.ndarray, cutoff: float) -> np.ndarray:
    """Pairs of points within the cutoff, lower number first; shape (m, 2).

    Many points are cut into slabs, for threads to share; a pair is of the slab its lower end is in.
    """
    slabs = len(points) // SLAB
    if slabs < 2:
        return _tree_pairs(points, cutoff)
    height = points[:, np.ptp(points, axis=0).argmax()]
    order = np.argsort(height)
    points, height = points.take(order, axis=0), height.take(order)
    starts = np.linspace(0, len(points), slabs + 1).astype(int)
    # Up to where the neighbours of a slab's last point may be.
    ends = np.searchsorted(height, height[starts[1:] - 1] + cutoff, side="right")

    def slab(k: int) -> np.ndarray:
        pairs = _tree_pairs(points[starts[k] : ends[k]], cutoff)
        own = pairs.compress(pairs[:, 0] < starts[k + 1] - starts[k], axis=0)
        own = order.take(own + starts[k])
        own.sort(axis=1)
        return own

    return np.concatenate(spread(slab, range(slabs)))


def _tree_pairs(points: np.ndarray, cutoff: float) -> np.ndarray:
    tree = cKDTree(points, balanced_tree=False, compact_nodes=False)
    return tree.query_pairs(cutoff, output_type="ndarray")


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
