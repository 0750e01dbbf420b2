"""What atoms do to atoms they are not bonded to: clashes; and the rings of a system."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from mdbackmap.errors import StructureError
from mdbackmap.geometry import rings
from mdbackmap.geometry.boxes import with_images
from mdbackmap.mapping.system import System

MOST_NEIGHBOURS = 50
"""On average within a bond's reach; a sound structure has three."""


class BondGraph:
    """Who is bonded to whom, as a padded table.

    Parameters
    ----------
    bonds : ndarray, shape=(m, 2), int64
    n_atoms : int
    """

    def __init__(self, bonds: np.ndarray, n_atoms: int) -> None:
        self._table = rings.neighbour_table(bonds, n_atoms)

    def bonded(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return whether each pair is bonded, shape (n,), bool."""
        return (self._table[first] == second[:, None]).any(axis=1)

    def within_three_bonds(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return whether each pair is at most three bonds apart, shape (n,), bool."""
        result = self.bonded(first, second)
        rest = np.flatnonzero(~result)
        first, second = first[rest], second[rest]
        two = self._table[self._table[first]].reshape(len(rest), self._table.shape[1] ** 2)
        ends = self._table[second]
        ends = np.where(ends == len(self._table) - 1, -1, ends)
        result[rest] = (two == second[:, None]).any(axis=1)
        result[rest] |= (two[:, :, None] == ends[:, None, :]).any(axis=(1, 2))
        return result


def close_pairs(
    points: np.ndarray, box: np.ndarray | None, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each pair of points within the cutoff once, periodic images included.

    Parameters
    ----------
    points : ndarray, shape=(n, 3), Å
        Finite; any image of each.
    box : ndarray, shape=(3, 3), Å, or None
        No lower than twice the cutoff between any two faces.

    Returns
    -------
    first, second : ndarray, shape=(m,), int64
    distance : ndarray, shape=(m,), Å

    Raises
    ------
    StructureError
        More pairs than memory should hold: the points are no structure.
    """
    n = len(points)
    points, owner = with_images(points, box, cutoff)
    tree = cKDTree(points)
    if tree.count_neighbors(tree, cutoff) > MOST_NEIGHBOURS * len(points):
        raise StructureError(
            f"validation: atoms have more than {MOST_NEIGHBOURS} others within {cutoff} Å on "
            "average: they lie on top of each other.\n  Hint: are this frame's positions all "
            "zero, or in nm instead of Å?"
        )
    pairs = tree.query_pairs(cutoff, output_type="ndarray")
    # A pair across a face is met twice, once from either side.
    pairs = pairs[(pairs[:, 0] < n) & ((pairs[:, 1] < n) | (pairs[:, 0] < owner[pairs[:, 1]]))]
    gap = points[pairs[:, 1]] - points[pairs[:, 0]]
    return pairs[:, 0], owner[pairs[:, 1]], np.linalg.norm(gap, axis=1)


def find_rings(system: System) -> tuple[np.ndarray, np.ndarray]:
    """Find the rings of a system.

    Returns
    -------
    rings : ndarray, shape=(n_rings, 8), int64
        See `mdbackmap.geometry.rings.find_rings`.
    flat : ndarray, shape=(n_rings,), bool
        Whether the mapping holds every four neighbours round the ring in one plane.
    """
    ideal = system.constraints
    found = rings.find_rings(ideal.bonds, system.n_atoms)
    in_ring = np.zeros(system.n_atoms, dtype=bool)
    in_ring[found] = True
    planes = ideal.volumes[(ideal.volume == 0) & in_ring[ideal.volumes].all(axis=1)]
    # Where a smaller ring repeats its last atom, the window is one of fewer atoms.
    size = 1 + (np.diff(found, axis=1) != 0).sum(axis=1)
    place = (np.arange(found.shape[1])[:, None] + np.arange(4)) % size[:, None, None]
    fours = np.take_along_axis(found[:, None], place, axis=2).reshape(-1, 4)
    rows = np.sort(np.concatenate([planes, fours]), axis=1)
    _, number = np.unique(rows, axis=0, return_inverse=True)
    held = np.isin(number[len(planes) :], number[: len(planes)])
    return found, held.reshape(found.shape).all(axis=1)
