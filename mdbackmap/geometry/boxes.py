"""Periodic boxes: images, whole molecules. Pure functions on arrays.

A box is a (3, 3) array whose rows are its vectors, Å, or None. Triclinic boxes are treated
exactly for distances below half the smallest height of the cell, which holds for bonds.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from mdbackmap.geometry import cells

THINNEST = 1.0
"""Å between opposite faces of a cell; the number of images that matter grows without end below."""


def box_from_dimensions(dimensions: np.ndarray | None) -> np.ndarray | None:
    """Turn ``[a, b, c, alpha, beta, gamma]`` (Å, degrees) into box vectors; None without a box.

    Raises
    ------
    ValueError
        If the angles close to no cell, or one that is too thin to have room for anything.
    """
    if dimensions is None or not np.all(np.isfinite(dimensions)) or np.any(dimensions[:3] <= 0):
        return None
    a, b, c = (float(x) for x in dimensions[:3])
    cos = np.cos(np.radians(np.asarray(dimensions[3:6], dtype=np.float64)))
    cos[np.abs(cos) < 1e-9] = 0.0
    sin_gamma = np.sqrt(1 - cos[2] ** 2)
    with np.errstate(all="ignore"):
        cx, cy = c * cos[1], c * (cos[0] - cos[1] * cos[2]) / sin_gamma
        height = c**2 - cx**2 - cy**2
    if not height > 0:
        raise ValueError(f"box {np.asarray(dimensions).tolist()} is no cell: its angles do not fit")
    box = np.array([[a, 0, 0], [b * cos[2], b * sin_gamma, 0], [cx, cy, np.sqrt(height)]])
    if not heights(box).min() >= THINNEST:
        raise ValueError(
            f"box {np.asarray(dimensions).tolist()} is no cell: less than {THINNEST:g} Å between "
            "opposite faces"
        )
    return box


def heights(box: np.ndarray) -> np.ndarray:
    """Return the three distances between opposite faces, Å, shape (3,)."""
    return 1.0 / np.linalg.norm(np.linalg.inv(box), axis=0)


def minimum_image(vectors: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    """Return the nearest image of each vector.

    Parameters
    ----------
    vectors : ndarray, shape=(..., 3), Å
    box : ndarray, shape=(3, 3), Å, or None

    Returns
    -------
    ndarray, shape=(..., 3), Å
        Exact where the answer is shorter than half the smallest height of the cell.
    """
    if box is None:
        return vectors
    shift = np.round(vectors @ np.linalg.inv(box))
    return vectors - shift @ box


def with_images(
    points: np.ndarray, box: np.ndarray | None, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """Put points into the cell and append the images within the cutoff of it.

    Returns
    -------
    points : ndarray, shape=(n + images, 3), Å
    owner : ndarray, shape=(n + images,), int64
        The point each row is an image of; ``arange(n)`` first.
    """
    if box is None or not len(points):
        return points, np.arange(len(points))
    points = np.ascontiguousarray(points, dtype=np.float64)
    return cells.with_images(points, box_vectors(box), float(cutoff))


def box_vectors(box: np.ndarray | None) -> np.ndarray:
    """Return a box as compiled loops take it: (3, 3), float64; without a box (0, 3)."""
    return np.zeros((0, 3)) if box is None else np.ascontiguousarray(box, dtype=np.float64)


class Unwrapper:
    """Makes molecules whole along a fixed tree, in a logarithmic number of array steps.

    Parameters
    ----------
    parent : ndarray, shape=(n,), int64
        The tree: each point's parent, -1 at roots.
    """

    def __init__(self, parent: np.ndarray) -> None:
        here = np.arange(len(parent))
        self.parent = np.where(parent < 0, here, parent)
        self.jumps = [self.parent]
        while True:
            above = self.jumps[-1][self.jumps[-1]]
            if (above == self.jumps[-1]).all():
                break
            self.jumps.append(above)

    def __call__(self, positions: np.ndarray, box: np.ndarray | None) -> np.ndarray:
        """Return positions with every point at the image nearest its parent.

        Roots stay where they are. Shape (n, 3), Å; the input is not changed.
        """
        if box is None:
            return positions
        inverse = np.linalg.inv(box)
        step = positions - positions[self.parent]
        shift = -np.round(step @ inverse)
        # Each point's shift is the sum of its own and all its ancestors' (pointer jumping);
        # a root adds zero.
        for jump in self.jumps:
            shift = shift + shift[jump]
        return (positions + shift @ box).astype(positions.dtype)


def spanning_tree(bonds: np.ndarray, n: int) -> np.ndarray:
    """Return a parent per point that spans every connected part; -1 at roots.

    Parameters
    ----------
    bonds : ndarray, shape=(m, 2), int64
    n : int

    Returns
    -------
    ndarray, shape=(n,), int64
    """
    graph = sparse.csr_matrix((np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1])), shape=(n, n))
    _, part = csgraph.connected_components(graph, directed=False)
    _, roots = np.unique(part, return_index=True)
    # One more point, bonded to one of every part, lets a single search span them all.
    ends = np.concatenate([bonds, np.stack([np.full(len(roots), n), roots], axis=1)])
    joined = sparse.csr_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n + 1,) * 2)
    _, parent = csgraph.breadth_first_order(joined, n, directed=False)
    parent = parent[:n].astype(np.int64)
    parent[parent == n] = -1
    return parent
