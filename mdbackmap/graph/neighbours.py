"""Neighbours of every bead within the cutoff, as padded arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from vesin import NeighborList

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
