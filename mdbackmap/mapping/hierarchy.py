"""Anchors and levels: from what each atom hangs.

An atom hangs from its bead (level 1) or from an earlier atom (one level deeper). Where a file
gives no anchors, they follow from the bond graph: in each bead the most central atom hangs
from the bead and the others hang from their bonded neighbour on the way to it.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from mdbackmap.errors import HierarchyError


def neighbours(n_atoms: int, bonds: np.ndarray) -> list[list[int]]:
    """Return the bonded neighbours of every atom, as lists of indices."""
    result: list[list[int]] = [[] for _ in range(n_atoms)]
    for i, j in bonds:
        result[i].append(int(j))
        result[j].append(int(i))
    return result


def _distances(start: int, bonded: list[list[int]], inside: set[int]) -> dict[int, int]:
    found = {start: 0}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        for there in bonded[here]:
            if there in inside and there not in found:
                found[there] = found[here] + 1
                queue.append(there)
    return found


def derive_anchors(atom_bead: np.ndarray, bonds: np.ndarray) -> np.ndarray:
    """Derive anchors from the bond graph.

    Parameters
    ----------
    atom_bead : ndarray, shape=(n,), dtype=int64
        The bead each atom is predicted from.
    bonds : ndarray, shape=(m, 2), dtype=int64

    Returns
    -------
    ndarray, shape=(n,), dtype=int64
        Index of the anchor atom, -1 for an atom that hangs from its bead.
    """
    n = len(atom_bead)
    bonded = neighbours(n, bonds)
    anchors = np.full(n, -1, dtype=np.int64)
    for bead in np.unique(atom_bead):
        left = set(np.flatnonzero(atom_bead == bead).tolist())
        while left:
            # Fewest bonds to the others, then most neighbours, then file order.
            trees = {atom: _distances(atom, bonded, left) for atom in sorted(left)}
            root = min(
                trees,
                key=lambda a: (-len(trees[a]), max(trees[a].values()), -len(bonded[a]), a),
            )
            tree = trees[root]
            for atom, depth in tree.items():
                if depth:
                    anchors[atom] = min(b for b in bonded[atom] if tree.get(b, -1) == depth - 1)
            left -= set(tree)
    return anchors


def levels(anchors: np.ndarray, names: np.ndarray, source: str) -> np.ndarray:
    """Return the level of every atom, 1 for those that hang from a bead.

    Raises
    ------
    HierarchyError
        If the anchors form a cycle.
    """
    level = np.where(anchors < 0, 1, 0).astype(np.int64)
    for step in range(2, len(anchors) + 2):
        ready = (level == 0) & (level[anchors] == step - 1) & (anchors >= 0)
        if not ready.any():
            break
        level[ready] = step
    if (level == 0).any():
        stuck = ", ".join(names[level == 0][:10])
        raise HierarchyError(
            f"{source}: the anchors of atoms {stuck} form a cycle; let one of them hang from "
            "its bead"
        )
    return level
