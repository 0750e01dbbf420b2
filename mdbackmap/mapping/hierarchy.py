"""Anchors and levels: from what each atom hangs.

An atom hangs from its bead (level 1) or from an earlier atom (one level deeper). Where a file
gives no anchors, they follow from the bond graph: in each bonded piece of a bead the most central
atom hangs from the bead and the others hang from their bonded neighbour on the way to it.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from mdbackmap.errors import HierarchyError

MAX_LEVEL = 100
"""Steps from a bead to the last atom that hangs from it; shipped mappings need 5."""


def neighbours(n_atoms: int, bonds: np.ndarray) -> list[list[int]]:
    """Return the bonded neighbours of every atom, as lists of indices."""
    result: list[list[int]] = [[] for _ in range(n_atoms)]
    for i, j in bonds:
        result[i].append(int(j))
        result[j].append(int(i))
    return result


def distances(
    start: int, bonded: list[list[int]], *, without: int = -1, furthest: int | None = None
) -> dict[int, int]:
    """Return the atoms that can be reached over bonds, with their number of bonds from start.

    Parameters
    ----------
    without : int
        An atom that no path may pass.
    furthest : int, optional
        Where to stop.
    """
    found = {start: 0}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        if found[here] == furthest:
            break
        for there in bonded[here]:
            if there != without and there not in found:
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
    bonded = neighbours(len(atom_bead), bonds)
    beads = atom_bead.tolist()
    within = [[b for b in around if beads[b] == beads[a]] for a, around in enumerate(bonded)]
    anchors = np.full(len(beads), -1, dtype=np.int64)
    done: set[int] = set()
    for start in range(len(beads)):
        if start in done:
            continue
        # One connected piece of a bead. Fewest bonds to the others, then most neighbours, then
        # file order.
        piece = distances(start, within)
        # Where no atom can be near enough to all others, `levels` says so.
        hopeless = max(piece.values()) > 2 * MAX_LEVEL
        trees = {atom: distances(atom, within) for atom in ([start] if hopeless else sorted(piece))}
        root = min(trees, key=lambda a: (max(trees[a].values()), -len(bonded[a]), a))
        tree = trees[root]
        for atom, depth in tree.items():
            if depth:
                anchors[atom] = min(b for b in within[atom] if tree[b] == depth - 1)
        done |= set(tree)
    return anchors


def levels(anchors: np.ndarray, names: np.ndarray, source: str) -> np.ndarray:
    """Return the level of every atom, 1 for those that hang from a bead.

    Raises
    ------
    HierarchyError
        If the anchors form a cycle or a chain longer than `MAX_LEVEL`.
    """
    level = np.where(anchors < 0, 1, 0).astype(np.int64)
    for step in range(2, MAX_LEVEL + 1):
        ready = (level == 0) & (level[anchors] == step - 1) & (anchors >= 0)
        if not ready.any():
            break
        level[ready] = step
    stuck = np.flatnonzero(level == 0)
    if len(stuck) == 0:
        return level
    listed = ", ".join(names[stuck[:10]]) + (" ..." if len(stuck) > 10 else "")
    here = stuck[0]
    for _ in anchors:
        here = anchors[here] if anchors[here] >= 0 else here
    if anchors[here] < 0:
        raise HierarchyError(
            f"{source}: the anchors of atoms {listed} form a chain of more than {MAX_LEVEL} "
            "levels; let some of them hang from their beads"
        )
    raise HierarchyError(
        f"{source}: the anchors of atoms {listed} form a cycle; let one of them hang from its bead"
    )
