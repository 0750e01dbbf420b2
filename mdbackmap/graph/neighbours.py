"""Neighbours of every bead within the cutoff, as padded arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from vesin import NeighborList

RELATIONS = ("other", "same residue", "next residue", "previous residue", "bridged residue")
"""How a neighbour is bonded to a bead's residue; the network tells them apart."""


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
    first, second, vectors = _pairs(positions, box, cutoff, both_ways=True)
    order = np.argsort(first * len(positions) + second, kind="stable")
    return first[order], second[order], vectors[order].astype(np.float32)


def close_pairs(
    positions: np.ndarray, box: np.ndarray | None, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every pair within the cutoff once, ``first`` < ``second``, in no order.

    Parameters and returns as in `find_pairs`. Pairs of a point with an image of itself are left
    out.
    """
    first, second, vectors = _pairs(positions, box, cutoff, both_ways=False)
    turned = first > second
    vectors = np.where(turned[:, None], -vectors, vectors).astype(np.float32)
    first, second = np.minimum(first, second), np.maximum(first, second)
    keep = first != second
    return first[keep], second[keep], vectors[keep]


def _pairs(
    positions: np.ndarray, box: np.ndarray | None, cutoff: float, *, both_ways: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cell = np.zeros((3, 3)) if box is None else np.asarray(box, dtype=np.float64)
    first, second, vectors = NeighborList(cutoff=cutoff, full_list=both_ways, sorted=False).compute(
        points=np.ascontiguousarray(positions, dtype=np.float64),
        box=cell, periodic=box is not None, quantities="ijD",
    )  # fmt: skip
    return first.astype(np.int64), second.astype(np.int64), vectors


def relations(
    first: np.ndarray,
    second: np.ndarray,
    residue: np.ndarray,
    next_residue: np.ndarray,
    bridges: np.ndarray,
) -> np.ndarray:
    """Return the relation of each pair (see `RELATIONS`), shape=(m,), int64."""
    here, there = residue[first], residue[second]
    bridge = np.full(len(next_residue), -2, dtype=np.int64)
    if len(bridges):
        bridge[bridges[:, 0]] = bridges[:, 1]
        bridge[bridges[:, 1]] = bridges[:, 0]
    return np.select(
        [here == there, next_residue[here] == there, next_residue[there] == here,
         bridge[here] == there],
        [1, 2, 3, 4],
        default=0,
    ).astype(np.int64)  # fmt: skip


def pad(
    n: int, first: np.ndarray, second: np.ndarray, vectors: np.ndarray, relation: np.ndarray
) -> Neighbours:
    """Lay sorted pairs out as padded rows."""
    count = np.bincount(first, minlength=n)
    k = max(1, int(count.max(initial=0)))
    column = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    index = np.repeat(np.arange(n)[:, None], k, axis=1)
    padded = np.zeros((n, k, 3), dtype=np.float32)
    kind = np.zeros((n, k), dtype=np.int64)
    index[first, column] = second
    padded[first, column] = vectors
    kind[first, column] = relation
    return Neighbours(index, padded, kind, np.arange(k) < count[:, None])
