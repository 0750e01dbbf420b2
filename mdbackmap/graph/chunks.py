"""Pairs of a whole system, handed out as padded chunks of beads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mdbackmap.graph.neighbours import Neighbours

WINDOW = 16
"""Chunks made together: beads with like numbers of neighbours share one, for less padding."""


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

    @cached_property
    def count(self) -> np.ndarray:
        """Neighbours of each bead, shape (n_beads,)."""
        return np.bincount(self.first, minlength=self.n_beads)

    @cached_property
    def _start(self) -> np.ndarray:
        return np.cumsum(self.count) - self.count

    def neighbours(self, beads: np.ndarray) -> Neighbours:
        """Neighbours of some beads, shape (n,), in the numbering of the whole system."""
        count = self.count[beads][:, None]
        column = np.arange(max(1, int(count.max(initial=0))))
        present = column < count
        if not len(self.first):
            shape = present.shape
            return Neighbours(
                np.repeat(beads[:, None], len(column), axis=1), np.zeros((*shape, 3), np.float32),
                np.zeros(shape, np.int64), present,
            )  # fmt: skip
        pair = np.where(present, self._start[beads][:, None] + column, 0)
        return Neighbours(
            np.where(present, self.second[pair], beads[:, None]),
            self.vectors[pair] * present[..., None],
            self.relation[pair] * present,
            present,
        )

    def chunks(self, size: int) -> list[np.ndarray]:
        """Return the beads of chunks of at most ``size``, so that every bead comes once.

        The order is of the graph's choice.
        """
        if size < 1:
            raise ValueError(f"chunk size {size}: expected at least one bead")
        found = []
        for start in range(0, self.n_beads, WINDOW * size):
            near_together = np.arange(start, min(start + WINDOW * size, self.n_beads))
            order = near_together[np.argsort(-self.count[near_together], kind="stable")]
            found += [order[k : k + size] for k in range(0, len(order), size)]
        return found
