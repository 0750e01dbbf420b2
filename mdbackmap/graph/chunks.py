"""Pairs of a whole system, handed out as padded chunks of consecutive beads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mdbackmap.graph.neighbours import Neighbours, pad


@dataclass(frozen=True)
class BeadGraph:
    """All pairs of beads within the cutoff, sorted by the first bead.

    Attributes
    ----------
    n_beads : int
    first, second : ndarray, shape=(m,), int64
    vectors : ndarray, shape=(m, 3), float32, Å
    relation : ndarray, shape=(m,), int64
    """

    n_beads: int
    first: np.ndarray
    second: np.ndarray
    vectors: np.ndarray
    relation: np.ndarray

    def chunks(self, size: int) -> Iterator[tuple[int, int, Neighbours]]:
        """Yield ``start, stop, neighbours`` that cover all beads in order.

        The indices of the neighbours are those of the whole system.
        """
        if size < 1:
            raise ValueError(f"chunk size {size}: expected at least one bead")
        for start in range(0, self.n_beads, size):
            stop = min(start + size, self.n_beads)
            a, b = np.searchsorted(self.first, [start, stop])
            near = pad(
                stop - start, self.first[a:b] - start, self.second[a:b], self.vectors[a:b],
                self.relation[a:b],
            )  # fmt: skip
            # Padding points at a bead of the chunk, in the numbering of the whole.
            index = np.where(near.present, near.index, near.index + start)
            yield start, stop, Neighbours(index, near.vectors, near.relation, near.present)
