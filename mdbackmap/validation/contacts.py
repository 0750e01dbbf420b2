"""What atoms do to atoms they are not bonded to: clashes, and bonds through rings."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from mdbackmap.errors import StructureError
from mdbackmap.geometry.boxes import heights, minimum_image
from mdbackmap.mapping.system import System

RING_SIZES = (5, 6, 7)
LONGEST_BOND = 3.0
"""Å; a longer bond is broken, and not asked whether it goes through a ring."""
MOST_NEIGHBOURS = 50
"""On average within a bond's reach; a sound structure has three."""
_RING_RADIUS = 1.8
"""Å; no wider than a stretched ring of seven."""


class BondGraph:
    """Who is bonded to whom, as a padded table.

    Parameters
    ----------
    bonds : ndarray, shape=(m, 2), int64
    n_atoms : int
    """

    def __init__(self, bonds: np.ndarray, n_atoms: int) -> None:
        both = np.concatenate([bonds, bonds[:, ::-1]])
        both = both[np.argsort(both[:, 0], kind="stable")]
        count = np.bincount(both[:, 0], minlength=n_atoms)
        column = np.arange(len(both)) - np.repeat(np.cumsum(count) - count, count)
        # Places without a neighbour point at atom n_atoms, which is bonded to itself only.
        self._table = np.full((n_atoms + 1, max(1, int(count.max(initial=0)))), n_atoms)
        self._table[both[:, 0], column] = both[:, 1]

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
    points, owner = _with_images(points, box, cutoff)
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


def _with_images(
    points: np.ndarray, box: np.ndarray | None, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """Put points into the cell and append the images within the cutoff of it.

    Returns
    -------
    points : ndarray, shape=(n + images, 3), Å
    owner : ndarray, shape=(n + images,), int64
        The point each row is an image of; ``arange(n)`` first.
    """
    owner = np.arange(len(points))
    if box is None:
        return points, owner
    inside = points @ np.linalg.inv(box)
    inside -= np.floor(inside)
    for axis, margin in enumerate(cutoff / heights(box)):
        for step, near in ((1, inside[:, axis] < margin), (-1, inside[:, axis] > 1 - margin)):
            if step == 1:
                low, low_owner = inside[near], owner[near]
                low[:, axis] += 1
            else:
                high, high_owner = inside[near], owner[near]
                high[:, axis] -= 1
        inside = np.concatenate([inside, low, high])
        owner = np.concatenate([owner, low_owner, high_owner])
    return inside @ box, owner


def find_rings(system: System) -> tuple[np.ndarray, np.ndarray]:
    """Find the rings of five to seven atoms, once per template.

    Returns
    -------
    rings : ndarray, shape=(n_rings, 7), int64
        In order round the ring; smaller rings repeat their last atom.
    flat : ndarray, shape=(n_rings,), bool
        Whether the mapping holds every four neighbours round the ring in one plane.
    """
    starts = np.searchsorted(system.atoms.residue, np.arange(len(system.residue_template)))
    found = [np.zeros((0, max(RING_SIZES)), dtype=np.int64)]
    flat = [np.zeros(0, dtype=bool)]
    for number, template in enumerate(system.templates):
        rings = _cycles(template.constraints.bonds, template.n_atoms)
        ideal = template.constraints
        planes = {frozenset(row) for row in ideal.volumes[ideal.volume == 0].tolist()}
        here = starts[system.residue_template == number]
        padded = [ring + ring[-1:] * (max(RING_SIZES) - len(ring)) for ring in rings]
        if padded:
            found.append((here[:, None, None] + np.array(padded)).reshape(-1, max(RING_SIZES)))
            flat.append(np.tile([_in_planes(ring, planes) for ring in rings], len(here)))
    return np.concatenate(found), np.concatenate(flat)


def _in_planes(ring: list[int], planes: set[frozenset[int]]) -> bool:
    return all(frozenset((ring * 2)[k : k + 4]) in planes for k in range(len(ring)))


def _cycles(bonds: np.ndarray, n_atoms: int) -> list[list[int]]:
    """Cycles without a chord, each once, of the sizes of interest."""
    bonded: list[set[int]] = [set() for _ in range(n_atoms)]
    for i, j in bonds.tolist():
        bonded[i].add(j)
        bonded[j].add(i)
    found: dict[frozenset[int], list[int]] = {}

    def walk(path: list[int]) -> None:
        for atom in bonded[path[-1]]:
            if atom == path[0] and len(path) in RING_SIZES:
                ring = set(path)
                if all(len(bonded[a] & ring) == 2 for a in path):
                    found.setdefault(frozenset(path), list(path))
            elif atom > path[0] and atom not in path and len(path) < max(RING_SIZES):
                walk([*path, atom])

    for start in range(n_atoms):
        walk([start])
    return list(found.values())


def pierced_rings(
    positions: np.ndarray, rings: np.ndarray, bonds: np.ndarray, box: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find bonds that pass through rings they have no atom in.

    A ring is the fan of triangles from its centre to its edges.

    Parameters
    ----------
    positions : ndarray, shape=(n_atoms, 3), Å
        Rings and bonds with a NaN position are left out.
    rings : ndarray, shape=(n_rings, 7), int64
    bonds : ndarray, shape=(n_bonds, 2), int64

    Returns
    -------
    measured : ndarray, shape=(n_rings,), bool
    ring, bond : ndarray, shape=(m,), int64
        One row per bond through a ring.
    """
    corner = minimum_image(positions[rings] - positions[rings[:, :1]], box)
    own = np.ones(rings.shape, dtype=bool)
    own[:, 1:] = rings[:, 1:] != rings[:, :-1]
    centre = (corner * own[..., None]).sum(1) / own.sum(1, keepdims=True)
    corner -= centre[:, None]
    centre += positions[rings[:, 0]]
    along = minimum_image(positions[bonds[:, 1]] - positions[bonds[:, 0]], box)
    middle = positions[bonds[:, 0]] + along / 2

    measured = np.isfinite(centre).all(axis=1)
    usable = np.flatnonzero(np.einsum("ij,ij->i", along, along) < LONGEST_BOND**2)
    at = np.flatnonzero(measured)
    ring, bond, offset = _near(centre[at], middle[usable], box, _RING_RADIUS + LONGEST_BOND / 2)
    ring, bond = at[ring], usable[bond]
    apart = (rings[ring][:, :, None] != bonds[bond][:, None, :]).all(axis=(1, 2))
    ring, bond, offset = ring[apart], bond[apart], offset[apart]
    hit = _crosses(offset - along[bond] / 2, along[bond], corner[ring])
    return measured, ring[hit], bond[hit]


def _near(
    centres: np.ndarray, points: np.ndarray, box: np.ndarray | None, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of centre and point within the cutoff, with the vector from one to the other."""
    if not len(centres) or not len(points):
        none = np.zeros(0, dtype=np.int64)
        return none, none, np.zeros((0, 3))
    centres, _ = _with_images(centres, box, 0.0)
    points, owner = _with_images(points, box, cutoff)
    table = cKDTree(centres).sparse_distance_matrix(cKDTree(points), cutoff, output_type="ndarray")
    i, j = table["i"].astype(np.int64), table["j"].astype(np.int64)
    return i, owner[j], points[j] - centres[i]


def _crosses(start: np.ndarray, along: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Whether each segment crosses its ring, all relative to the ring's centre.

    References
    ----------
    Möller and Trumbore's ray-triangle intersection, with the centre as the first corner.
    """
    first, second = corner, np.roll(corner, -1, axis=1)
    start, along = start[:, None], along[:, None]
    normal = np.cross(along, second)
    scale = np.einsum("ijk,ijk->ij", first, normal)
    parallel = np.abs(scale) < 1e-9
    scale = np.where(parallel, 1.0, scale)
    side = np.cross(np.broadcast_to(start, first.shape), first)
    u = np.einsum("ijk,ijk->ij", np.broadcast_to(start, normal.shape), normal) / scale
    v = np.einsum("ijk,ijk->ij", np.broadcast_to(along, side.shape), side) / scale
    t = np.einsum("ijk,ijk->ij", second, side) / scale
    inside = (u >= 0) & (v >= 0) & (u + v <= 1) & (t >= 0) & (t <= 1)
    return (inside & ~parallel).any(axis=1)
