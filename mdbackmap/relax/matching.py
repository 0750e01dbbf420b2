"""Which atom of a molecule is which of a template: bond graphs laid over one another.

Pure functions on names, elements and bonds; nothing of OpenMM. Where the chemistry leaves a choice
(hydrogens of a methylene, methyls), atoms that have the same name are matched first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

MOST_STEPS = 200_000
"""Assignments tried before two graphs are taken to differ."""


def match(
    names: Sequence[str], elements: Sequence[str], bonds: np.ndarray,
    other_names: Sequence[str], other_elements: Sequence[str], other_bonds: np.ndarray,
) -> np.ndarray | None:  # fmt: skip
    """Lay one bond graph over another of the same size.

    Parameters
    ----------
    names, elements : sequence of str
    bonds : ndarray, shape=(m, 2), int64
        Of the first graph; then the same of the other.

    Returns
    -------
    ndarray, shape=(n,), int64, or None
        Atom of the other graph for each of the first; None where the two differ.
    """
    n = len(names)
    if n != len(other_names) or len(bonds) != len(other_bonds):
        return None
    near, far = _neighbours(n, bonds), _neighbours(n, other_bonds)
    colour = _colours([*elements, *other_elements], [*near, *([j + n for j in js] for js in far)])
    here, there = colour[:n], colour[n:]
    if Counter(here) != Counter(there):
        return None
    return _Search(names, other_names, near, far, here, there).run()


def _neighbours(n: int, bonds: np.ndarray) -> list[list[int]]:
    result: list[list[int]] = [[] for _ in range(n)]
    for i, j in np.asarray(bonds).tolist():
        result[i].append(j)
        result[j].append(i)
    return result


def _colours(elements: Sequence[str], bonded: Sequence[Sequence[int]]) -> list[int]:
    """Give atoms numbers that differ where their surroundings do, until that settles."""
    number = {e: k for k, e in enumerate(sorted(set(elements)))}
    colour = [number[e] for e in elements]
    while True:
        seen = [(colour[i], tuple(sorted(colour[j] for j in js))) for i, js in enumerate(bonded)]
        number = {key: k for k, key in enumerate(sorted(set(seen)))}
        new = [number[key] for key in seen]
        if len(number) == len(set(colour)):
            return new
        colour = new


class _Search:
    """Depth first, from atoms whose names agree outwards along bonds."""

    def __init__(self, names, other_names, near, far, here, there) -> None:
        self.names, self.other_names = list(names), list(other_names)
        self.near, self.far = near, [set(js) for js in far]
        self.here = here
        self.of_colour: dict[int, list[int]] = {}
        for j, c in enumerate(there):
            self.of_colour.setdefault(c, []).append(j)
        self.order = self._walk()
        self.place = [-1] * len(names)
        self.taken = [False] * len(names)
        self.steps = 0

    def _walk(self) -> list[int]:
        """Atoms in an order in which each, but the first of a part, follows a neighbour."""
        size = Counter(self.here)
        start = sorted(range(len(self.names)), key=lambda i: size[self.here[i]])
        order: list[int] = []
        seen = [False] * len(self.names)
        for root in start:
            front = [] if seen[root] else [root]
            seen[root] = True
            while front:
                i = front.pop(0)
                order.append(i)
                for j in sorted(self.near[i], key=lambda j: size[self.here[j]]):
                    if not seen[j]:
                        seen[j] = True
                        front.append(j)
        return order

    def _candidates(self, i: int) -> list[int]:
        placed = [self.place[j] for j in self.near[i] if self.place[j] >= 0]
        found = [
            k for k in self.of_colour[self.here[i]]
            if not self.taken[k] and all(k in self.far[p] for p in placed)
        ]  # fmt: skip
        # One whose own name is wanted elsewhere is left for the atom that has it.
        own, wanted = self.names[i], set(self.names)
        return sorted(
            found, key=lambda k: (self.other_names[k] != own, self.other_names[k] in wanted)
        )

    def run(self) -> np.ndarray | None:
        stack = [iter(self._candidates(self.order[0]))] if self.order else []
        while stack:
            i = self.order[len(stack) - 1]
            if self.place[i] >= 0:
                self.taken[self.place[i]] = False
                self.place[i] = -1
            k = next(stack[-1], None)
            self.steps += 1
            if self.steps > MOST_STEPS:
                return None
            if k is None:
                stack.pop()
                continue
            self.place[i], self.taken[k] = k, True
            if len(stack) == len(self.order):
                return np.array(self.place)
            stack.append(iter(self._candidates(self.order[len(stack)])))
        return None if self.order else np.zeros(0, dtype=np.int64)
