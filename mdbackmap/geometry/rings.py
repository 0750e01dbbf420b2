"""Rings, bonds that go through them, and how to get them out again.

A bond through a ring cannot come from a simulation, and no minimiser undoes it: the bond would
have to be cut. The idealiser keeps atoms apart, but on whichever side they are. So pierced rings
are searched afterwards, the bond is carried over the nearest edge of the ring, and what is within
a few bonds of it is idealised anew; nothing else moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from mdbackmap.compiled import compiled, part
from mdbackmap.geometry import cells
from mdbackmap.geometry.boxes import box_vectors, minimum_image, spanning_tree, with_images
from mdbackmap.geometry.constraints import Backbone, Constraints
from mdbackmap.geometry.contacts import ContactRules
from mdbackmap.geometry.idealise import Idealiser, kept_apart
from mdbackmap.geometry.sweeps import LANES, Apart

RING_SIZES = (4, 5, 6, 7, 8)
"""Nothing fits through three atoms; larger rings may hold a chain."""
LONGEST_BOND = 3.0
"""Å; a longer bond is broken, and not asked whether it goes through a ring."""
WIDEST_RING = 2.5
"""Å from the centre to an atom; a ring of eight has 2.0."""
PARALLEL = 1e-9
"""Å^3; a bond and a triangle that span less lie in one plane."""
ROUNDS = 6
"""Times each pierced ring is tried at most, each time over another edge or further."""
MARGIN = 1.2
"""Å a bond is carried beyond the edge of the ring; contacts do the rest."""
FURTHER = 0.4
"""Å more from try to try."""
FADE = 5
"""Bonds over which the neighbours of what is carried follow less and less."""
LOOSE = 10
"""Bonds from ring and spear within which atoms are idealised anew."""
ANCHORAGE = 3
"""Bonds further that are seen but not moved; no angle or plane reaches further."""
WATCHED = 5.0
"""Å around loose atoms within which others are kept away."""
SWEEPS, MOMENTUM = 128, 0.8
"""Of the idealiser: few atoms are moved, but far, and between others that stand still."""
_AT_ONCE = 8192


def find_rings(bonds: np.ndarray, n_atoms: int) -> np.ndarray:
    """Find the rings of a bond graph that have no chord, each once.

    Parameters
    ----------
    bonds : ndarray, shape=(n_bonds, 2), int64
    n_atoms : int

    Returns
    -------
    ndarray, shape=(n_rings, 8), int64
        In order round the ring from its lowest atom; smaller rings repeat their last atom.
    """
    table = neighbour_table(bonds, n_atoms)
    parent = spanning_tree(bonds, n_atoms)
    first, second = bonds.T
    # Every ring has a bond that a tree over the molecule does without.
    closing = bonds[(parent[first] != second) & (parent[second] != first)]
    found: list[np.ndarray] = [np.zeros((0, max(RING_SIZES)), dtype=np.int64)]
    for start in range(0, len(closing), _AT_ONCE):
        for rings in _cycles(closing[start : start + _AT_ONCE], table):
            last = np.repeat(rings[:, -1:], max(RING_SIZES) - rings.shape[1], axis=1)
            found.append(np.concatenate([rings, last], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def neighbour_table(bonds: np.ndarray, n_atoms: int) -> np.ndarray:
    """Return the atoms bonded to each, shape (n_atoms + 1, most), padded with ``n_atoms``.

    Places without a neighbour point at atom ``n_atoms``, which is bonded to itself only.
    """
    both = np.concatenate([bonds, bonds[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    count = np.bincount(both[:, 0], minlength=n_atoms)
    column = np.arange(len(both)) - np.repeat(np.cumsum(count) - count, count)
    table = np.full((n_atoms + 1, max(1, int(count.max(initial=0)))), n_atoms)
    table[both[:, 0], column] = both[:, 1]
    return table


def _cycles(bonds: np.ndarray, table: np.ndarray) -> Iterator[np.ndarray]:
    """Rings through any of the bonds, one array (n, size) for every size."""
    path, nobody = bonds, len(table) - 1
    for size in range(2, max(RING_SIZES) + 1):
        after = table[path[:, -1]]
        if size in RING_SIZES:
            ring = path[(after == path[:, :1]).any(axis=1)]
            inside = (table[ring][..., None] == ring[:, None, None, :]).any(axis=3).sum(axis=2)
            yield _from_lowest(ring[(inside == 2).all(axis=1)])
        new = (after != nobody) & (after[..., None] != path[:, None, :]).all(axis=2)
        row, column = np.nonzero(new)
        path = np.concatenate([path[row], after[row, column, None]], axis=1)


def _from_lowest(rings: np.ndarray) -> np.ndarray:
    """Rings turned to begin with their lowest atom and go on with its lower neighbour."""
    size = rings.shape[1]
    turned = (rings.argmin(axis=1)[:, None] + np.arange(size)) % size
    rings = np.take_along_axis(rings, turned, axis=1)
    other = np.concatenate([rings[:, :1], rings[:, :0:-1]], axis=1)
    return np.where((rings[:, 1] < rings[:, -1])[:, None], rings, other)


def pierced_rings(
    positions: np.ndarray, rings: np.ndarray, bonds: np.ndarray, box: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find bonds that pass through rings they have no atom in.

    A ring is the fan of triangles from its centre to its edges.

    Parameters
    ----------
    positions : ndarray, shape=(n_atoms, 3), Å
        Rings and bonds with a NaN position are left out.
    rings : ndarray, shape=(n_rings, k), int64
        As `find_rings` returns them.
    bonds : ndarray, shape=(n_bonds, 2), int64
    box : ndarray, shape=(3, 3), Å, or None

    Returns
    -------
    measured : ndarray, shape=(n_rings,), bool
    ring, bond : ndarray, shape=(m,), int64
        One row per bond through a ring.
    """
    if not len(rings):
        none = np.zeros(0, dtype=np.int64)
        return none.astype(bool), none, none
    points, cell = np.ascontiguousarray(positions, dtype=np.float64), box_vectors(box)
    inverse = np.linalg.inv(cell) if len(cell) else cell
    centre, corner, radius = _fans(points, rings, cell, inverse)
    middle, along, longest = _rods(points, bonds, cell, inverse)
    measured = np.isfinite(centre).all(axis=1)
    at, usable = np.flatnonzero(measured), np.flatnonzero(np.isfinite(middle[:, 0]))
    reach = min(radius, WIDEST_RING) + longest / 2
    ring, bond, offset = near(centre[at], middle[usable], box, reach)
    ring, bond = at[ring], usable[bond]
    hit = _crosses(offset, along, corner, rings, bonds, ring, bond)
    return measured, ring[hit], bond[hit]


@part
def _way(points, i, j, cell, inverse):
    """From a point to the nearest image of another."""
    x, y, z = points[j, 0] - points[i, 0], points[j, 1] - points[i, 1], points[j, 2] - points[i, 2]
    if not len(cell):
        return x, y, z
    a = np.round(x * inverse[0, 0] + y * inverse[1, 0] + z * inverse[2, 0])
    b = np.round(x * inverse[0, 1] + y * inverse[1, 1] + z * inverse[2, 1])
    c = np.round(x * inverse[0, 2] + y * inverse[1, 2] + z * inverse[2, 2])
    return (
        x - a * cell[0, 0] - b * cell[1, 0] - c * cell[2, 0],
        y - a * cell[0, 1] - b * cell[1, 1] - c * cell[2, 1],
        z - a * cell[0, 2] - b * cell[1, 2] - c * cell[2, 2],
    )


@compiled
def _fans(points, rings, cell, inverse):
    """Centres (n, 3) of rings, corners (n, k, 3) from there, and the largest radius, Å."""
    n, k = rings.shape
    centre, corner, most = np.empty((n, 3)), np.empty((n, k, 3)), 0.0
    for r in range(n):
        for x in range(3):
            centre[r, x] = 0.0
        size = 0
        for c in range(k):
            way = _way(points, rings[r, 0], rings[r, c], cell, inverse)
            corner[r, c, 0], corner[r, c, 1], corner[r, c, 2] = way
            if c == 0 or rings[r, c] != rings[r, c - 1]:
                size += 1
                for x in range(3):
                    centre[r, x] += corner[r, c, x]
        for x in range(3):
            centre[r, x] /= size
        for c in range(k):
            square = 0.0
            for x in range(3):
                corner[r, c, x] -= centre[r, x]
                square += corner[r, c, x] ** 2
            # False of what is no number.
            if square > most:
                most = square
        for x in range(3):
            centre[r, x] += points[rings[r, 0], x]
    return centre, corner, np.sqrt(most)


@compiled
def _rods(points, bonds, cell, inverse):
    """Middles (m, 3) of bonds, NaN where one is broken, ways along them, and the longest, Å."""
    middle, along = np.empty((len(bonds), 3)), np.empty((len(bonds), 3))
    most = 0.0
    for b in range(len(bonds)):
        i = bonds[b, 0]
        along[b, 0], along[b, 1], along[b, 2] = _way(points, i, bonds[b, 1], cell, inverse)
        square = along[b, 0] ** 2 + along[b, 1] ** 2 + along[b, 2] ** 2
        whole = square < LONGEST_BOND * LONGEST_BOND
        if whole and square > most:
            most = square
        for x in range(3):
            middle[b, x] = points[i, x] + along[b, x] / 2 if whole else np.nan
    return middle, along, np.sqrt(most)


def near(
    centres: np.ndarray, points: np.ndarray, box: np.ndarray | None, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find pairs of centre and point within the cutoff; meant for few centres.

    Parameters
    ----------
    centres : ndarray, shape=(n, 3), Å; points : ndarray, shape=(m, 3), Å
        Finite; any image of each.
    box : ndarray, shape=(3, 3), Å, or None
        No lower than the cutoff between any two faces.

    Returns
    -------
    centre, point : ndarray, shape=(k,), int64
    vectors : ndarray, shape=(k, 3), Å
        From one to the other.
    """
    if not len(centres) or not len(points):
        none = np.zeros(0, dtype=np.int64)
        return none, none, np.zeros((0, 3))
    centres, _ = with_images(np.ascontiguousarray(centres, dtype=np.float64), box, 0.0)
    points, _, owner, *grid = cells.sorted_into_cells(
        np.ascontiguousarray(points, dtype=np.float64), box_vectors(box), float(cutoff)
    )
    pairs, vectors = cells.pairs_of_two(centres, points, *grid, float(cutoff))
    centre, point = pairs[:, 0], owner[pairs[:, 1]]
    rows = np.lexsort((point, centre))
    return centre[rows], point[rows], vectors[rows].astype(np.float64)


@compiled
def _crosses(offset, along, corner, rings, bonds, ring, bond):
    """Whether each bond crosses its ring, of which it must be no part.

    Parameters
    ----------
    offset : ndarray, shape=(m, 3), Å
        From the centre of the ring to the middle of the bond.
    along : ndarray, shape=(n_bonds, 3); corner : ndarray, shape=(n_rings, k, 3), Å
    ring, bond : ndarray, shape=(m,), int64

    References
    ----------
    Möller and Trumbore's ray-triangle intersection, with the centre as the first corner.
    """
    found, k = np.zeros(len(ring), np.bool_), rings.shape[1]
    for m in range(len(ring)):
        r, b = ring[m], bond[m]
        own = False
        for c in range(k):
            own |= rings[r, c] == bonds[b, 0] or rings[r, c] == bonds[b, 1]
        if own:
            continue
        dx, dy, dz = along[b, 0], along[b, 1], along[b, 2]
        sx, sy, sz = offset[m, 0] - dx / 2, offset[m, 1] - dy / 2, offset[m, 2] - dz / 2
        for c in range(k):
            ax, ay, az = corner[r, c, 0], corner[r, c, 1], corner[r, c, 2]
            after = c + 1 if c + 1 < k else 0
            bx, by, bz = corner[r, after, 0], corner[r, after, 1], corner[r, after, 2]
            # The normal of the way and the second corner; the side is start times first corner.
            nx, ny, nz = dy * bz - dz * by, dz * bx - dx * bz, dx * by - dy * bx
            scale = ax * nx + ay * ny + az * nz
            if abs(scale) < PARALLEL:
                continue
            qx, qy, qz = sy * az - sz * ay, sz * ax - sx * az, sx * ay - sy * ax
            u = (sx * nx + sy * ny + sz * nz) / scale
            v = (dx * qx + dy * qy + dz * qz) / scale
            t = (bx * qx + by * qy + bz * qz) / scale
            if u >= 0 and v >= 0 and u + v <= 1 and t >= 0 and t <= 1:
                found[m] = True
                break
    return found


@dataclass(frozen=True)
class Freed:
    """One frame after its rings were looked at.

    Attributes
    ----------
    positions : ndarray, shape=(n_atoms, 3), Å
        Where no ring was pierced, the very array that was given.
    found : int
        Bonds that went through rings.
    left : ndarray, shape=(m, 3), int64
        Those that still do: both atoms of the bond, and the lowest atom of the ring.
    """

    positions: np.ndarray
    found: int = 0
    left: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int64))


class RingGuard:
    """Frees the pierced rings of a system's frames; what is static is worked out once.

    Parameters
    ----------
    constraints : Constraints
        Over all atoms of the system.
    contacts : ContactRules
        Of the same atoms.
    members : ndarray, shape=(k, 2), int64; weights : ndarray, shape=(k,)
        Bead-atom rows and normalised weights.
    backbone : Backbone
    **options
        As of `Idealiser`; sweeps and momentum are its own.

    Attributes
    ----------
    rings : ndarray, shape=(n_rings, 8), int64
        See `find_rings`.
    """

    def __init__(
        self, constraints: Constraints, contacts: ContactRules, members: np.ndarray,
        weights: np.ndarray, backbone: Backbone, **options: float,
    ) -> None:  # fmt: skip
        n_atoms = len(contacts.polar)
        self.constraints, self.contacts, self.backbone = constraints, contacts, backbone
        self.members, self.weights = members, weights
        self.options = {**options, "sweeps": SWEEPS, "rounds": 1, "momentum": MOMENTUM}
        self.rings = find_rings(constraints.bonds, n_atoms)
        self._table = neighbour_table(constraints.bonds, n_atoms)
        self._molecule = _parts(constraints.bonds, n_atoms)
        edges = np.stack([self.rings, np.roll(self.rings, -1, axis=1)], axis=2).reshape(-1, 2)
        self._fused = _parts(edges, n_atoms)
        self._in_ring = np.zeros(n_atoms, dtype=bool)
        self._in_ring[self.rings] = True

    def __call__(
        self, positions: np.ndarray, beads: np.ndarray, box: np.ndarray | None = None
    ) -> Freed:
        """Return the frame with bonds taken out of rings.

        Parameters
        ----------
        positions : ndarray, shape=(n_atoms, 3), Å
            Idealised; molecules whole. Not changed.
        beads : ndarray, shape=(n_beads, 3), Å
            Where the beads of the answer should be, at the images of their atoms.
        box : ndarray, shape=(3, 3), Å, or None
        """
        ring, bond = self._pierced(positions, box)
        found = len(ring)
        if not found:
            return Freed(positions)
        points, tried = positions.astype(np.float64), Counter()
        for _ in range(ROUNDS):
            for r, b in self._apart(ring, bond):
                pair = r, int(self._molecule[self.constraints.bonds[b, 0]])
                self._free(points, beads, box, r, b, tried[pair])
                tried[pair] += 1
            result = points.astype(positions.dtype)
            ring, bond = self._pierced(result, box)
            if not len(ring):
                break
        left = np.concatenate([self.constraints.bonds[bond], self.rings[ring, :1]], axis=1)
        return Freed(result, found, left)

    def _pierced(
        self, positions: np.ndarray, box: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        return pierced_rings(positions, self.rings, self.constraints.bonds, box)[1:]

    def _apart(self, ring: np.ndarray, bond: np.ndarray) -> Iterator[tuple[int, int]]:
        """Pierced rings of which no two share a ring or a spear; the others wait a round."""
        taken: set[int] = set()
        for r, b in zip(ring[::-1].tolist(), bond[::-1].tolist(), strict=True):
            bodies = set(np.concatenate(self._bodies(r, b)).tolist())
            if not bodies & taken:
                taken |= bodies
                yield r, b

    def _bodies(self, ring: int, bond: int) -> tuple[np.ndarray, np.ndarray]:
        """Atoms that move as one with the bond, and with the ring: rings move whole."""
        corners, ends = np.unique(self.rings[ring]), self.constraints.bonds[bond]
        fused = np.flatnonzero(self._fused == self._fused[corners[0]])
        if np.isin(ends, fused).any():
            return ends, corners
        rings = self._fused[ends[self._in_ring[ends]]]
        of_spear = np.flatnonzero(np.isin(self._fused, rings) & self._in_ring)
        return np.union1d(ends, of_spear), fused

    def _free(
        self, points: np.ndarray, beads: np.ndarray, box: np.ndarray | None, ring: int,
        bond: int, attempt: int,
    ) -> None:  # fmt: skip
        """Carry one bond out of one ring, in place."""
        spear, frame = self._bodies(ring, bond)
        ends = points[self.constraints.bonds[bond]]
        centre = points[np.unique(self.rings[ring])].mean(axis=0)
        offset = ends.mean(axis=0) - centre
        lattice = minimum_image(offset, box) - offset
        way = self._way_out(points, ring, ends + lattice, attempt)

        own = self._molecule[spear[0]] == self._molecule[frame[0]]
        if own and np.abs(lattice).max() > 1.0:
            # A molecule through an image of itself: only one of the two can be moved.
            frame = np.zeros(0, dtype=np.int64)
        atoms, steps = self._around(np.concatenate([spear, frame]), LOOSE + ANCHORAGE)
        follow, pull = self._following(spear, atoms), self._following(frame, atoms)
        share = pull.sum() / (follow.sum() + pull.sum()) if len(frame) else 1.0
        points[atoms] += (share * follow - (1 - share) * pull)[:, None] * way
        of_spear = self._molecule[atoms] == self._molecule[spear[0]]
        origin = centre - lattice * (of_spear & (not own))[:, None]
        loose = steps <= LOOSE
        settled = self._settled(points, beads, box, atoms, loose, origin)
        points[atoms[loose]] = settled[loose]

    def _settled(
        self, points: np.ndarray, beads: np.ndarray, box: np.ndarray | None, atoms: np.ndarray,
        loose: np.ndarray, origin: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """Some atoms idealised, those that are loose; the others and all around stand still.

        Parameters
        ----------
        origin : ndarray, shape=(len(atoms), 3), Å
            Where each atom is seen from, so that single precision will do.
        """
        place = np.full(len(points), -1)
        place[atoms] = np.arange(len(atoms))
        free = np.zeros(len(points), dtype=bool)
        free[atoms[loose]] = True
        members, weights, bead, bead_atom = self._whole_beads(free)
        work = Idealiser(
            self.constraints.of_atoms(place), len(atoms),
            np.stack([members[:, 0], place[members[:, 1]]], axis=1), weights, len(bead),
            _backbone_within(self.backbone, place), **self.options,
        )  # fmt: skip
        work.terms.rate[~loose] = 0.0
        here = points[atoms] - origin
        apart = self._kept_apart(points, here, box, atoms, place, free)
        return work(here, beads[bead] - origin[place[bead_atom]], apart) + origin

    def _whole_beads(
        self, free: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the beads of which every atom is free, numbered anew; beads; an atom of each."""
        rows = np.flatnonzero(free[self.members[:, 1]])
        bead = self.members[rows, 0]
        broken = self.members[~free[self.members[:, 1]], 0]
        rows = rows[~np.isin(bead, broken)]
        bead, first, number = np.unique(
            self.members[rows, 0], return_index=True, return_inverse=True
        )
        members = np.stack([number, self.members[rows, 1]], axis=1)
        return members, self.weights[rows], bead, self.members[rows[first], 1]

    def _kept_apart(
        self, points: np.ndarray, here: np.ndarray, box: np.ndarray | None, atoms: np.ndarray,
        place: np.ndarray, free: np.ndarray,
    ) -> Apart:  # fmt: skip
        """Contacts of the free atoms with one another, and with what stands still."""
        mine = np.flatnonzero(free)
        first, second, vectors = near(points[mine], points, box, WATCHED)
        first = mine[first]
        once = ~free[second] | (first < second)
        first, second, vectors = first[once], second[once], vectors[once]
        turned = (first > second)[:, None]
        contacts = self.contacts(
            np.minimum(first, second),
            np.maximum(first, second),
            np.where(turned, -vectors, vectors),
        )
        first, second = place[contacts.first], place[contacts.second]
        inside = (first >= 0) & (second >= 0)
        jump = here[first] + contacts.vectors - here[second]
        inside &= np.abs(jump).max(axis=1) < 0.1
        # What is seen of others, and of images, is a point beside the one that sees it.
        sees, seen = [], []
        for one, side in ((first, 1), (second, -1)):
            rows = np.flatnonzero(~inside & (one >= 0) & free[atoms[one]])
            sees.append(np.stack([one[rows], rows], axis=1))
            seen.append(here[one[rows]] + side * contacts.vectors[rows])
        outer, still = np.concatenate(sees), np.concatenate(seen)
        nearest = np.concatenate([contacts.nearest[inside], contacts.nearest[outer[:, 1]]])
        outside = np.stack([outer[:, 0], len(atoms) + np.arange(len(still))], axis=1)
        pairs = np.concatenate([np.stack([first[inside], second[inside]], axis=1), outside])
        return kept_apart(LANES, pairs, nearest, still, len(atoms))

    def _way_out(self, points: np.ndarray, ring: int, ends: np.ndarray, attempt: int) -> np.ndarray:
        """How the bond should move against the ring, shape (3,), Å."""
        atoms = self.rings[ring]
        size = 1 + int((atoms[1:] != atoms[:-1]).sum())
        atoms = atoms[:size]
        centre = points[atoms].mean(axis=0)
        corner, start, along = points[atoms] - centre, ends[0] - centre, ends[1] - ends[0]
        edge = np.roll(corner, -1, axis=0) - corner
        normal = np.cross(corner, edge).sum(axis=0)
        normal /= np.linalg.norm(normal)
        steep = along @ normal
        place = -(start @ normal) / steep if abs(steep) > 1e-3 else 0.5
        hole = start + np.clip(place, 0, 1) * along
        outward = np.cross(edge, normal)
        outward /= np.linalg.norm(outward, axis=1, keepdims=True)
        gap = ((corner - hole) * outward).sum(axis=1)
        # Over an edge that two rings share the way leads into the other.
        gap[self._shared(atoms)] += 2 * WIDEST_RING
        best = np.argsort(gap, kind="stable")[attempt % size]
        gap = float(((corner[best] - hole) * outward[best]).sum())
        return (max(gap, 0.0) + MARGIN + FURTHER * attempt) * outward[best]

    def _shared(self, atoms: np.ndarray) -> np.ndarray:
        """Which edges of a ring another ring has too."""
        after = np.roll(atoms, -1)
        near_by = self.rings[(self._fused[self.rings[:, 0]] == self._fused[atoms[0]])]
        has = [(near_by == a).any(axis=1) & (near_by == b).any(axis=1)
               for a, b in zip(atoms, after, strict=True)]  # fmt: skip
        return np.array([both.sum() > 1 for both in has])

    def _following(self, body: np.ndarray, atoms: np.ndarray) -> np.ndarray:
        """How far each of some sorted atoms follows a body: 1 within it, less with every bond."""
        close, steps = self._around(body, FADE)
        result = np.zeros(len(atoms))
        result[np.searchsorted(atoms, close)] = 1 - steps / (FADE + 1)
        return result

    def _around(self, body: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Atoms at most so many bonds from a body, sorted, and by how many."""
        nobody = len(self._table) - 1
        reached = shell = np.unique(body)
        steps = np.zeros(len(shell), dtype=np.int64)
        for step in range(1, most + 1):
            after = np.unique(self._table[shell])
            shell = np.setdiff1d(after[after != nobody], reached, assume_unique=True)
            reached = np.concatenate([reached, shell])
            steps = np.concatenate([steps, np.full(len(shell), step)])
        order = np.argsort(reached)
        return reached[order], steps[order]


def _parts(bonds: np.ndarray, n_atoms: int) -> np.ndarray:
    """Number of the connected part every atom is in."""
    graph = sparse.csr_matrix(
        (np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1])), shape=(n_atoms, n_atoms)
    )
    return csgraph.connected_components(graph, directed=False)[1]


def _backbone_within(backbone: Backbone, place: np.ndarray) -> Backbone:
    """Torsions of which every atom has a place, in terms of places."""
    own = (place[backbone.omegas] >= 0).all(axis=1)
    mine = (place[backbone.phi_psi] >= 0).all(axis=1)
    return Backbone(
        place[backbone.omegas[own]], backbone.cis[own], backbone.may_be_cis[own],
        place[backbone.phi_psi[mine]], backbone.kind[mine],
    )  # fmt: skip
