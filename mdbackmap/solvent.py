"""Water and ions of a frame: placed about their beads, pushed off what they meet, turned.

What is random is drawn once, so every bead has its own orientation in all frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mdbackmap.graph.neighbours import close_pairs
from mdbackmap.mapping.solvent import Solvent
from mdbackmap.structure import AtomTable

BOND, ANGLE = 0.9572, math.radians(104.52)
"""Å and radians; TIP3P's."""
APART = 2.8
"""Å between neighbouring oxygens of one bead."""
SIZE = {"O": 1.4, "N": 1.4, "C": 1.75, "S": 1.85, "P": 2.0, "F": 1.4, "NA": 1.0, "MG": 0.7,
        "ZN": 0.7, "CA": 1.0, "K": 1.35, "CL": 1.8, "BR": 1.95}  # fmt: skip
OTHER_SIZE, HYDROGEN_SIZE = 1.75, (0.4, 1.0)
"""Å; two of them are how near centres may come. Hydrogens on N, O, S, and on others."""
FIRST_REACH, REACH, FADE = 4.0, 3.5, 0.3
"""Å within which neighbours are looked for, first for heavy atoms whose hydrogens may be near, then
for all; and over which, short of it, they cease to turn one another."""
ROUNDS, MORE_ROUNDS, TURNS = 10, 8, 7
"""Pushes with the first neighbours, then with those found anew; turns of hydrogens."""
PUSH, DRIFT, PULL, STEP = 0.4, 0.5, 0.2, 0.4
"""Share of an overlap that a push takes; of the last push that goes on; of the way back that the
centre of a bead's waters goes; and Å that a push moves at most."""
LEASH = 1.0
"""Å that the centre of a bead's waters, or an ion, may be off it in the end."""
TURN, FARTHEST_TURN = 0.3, 0.6
"""Å per unit of force that a hydrogen goes, and at most."""
STIFF = 5.0
"""Repulsion per Å that a hydrogen is too near, beside the pull of a charge of 1 at 1 Å."""
NEAR_HYDROGEN, NEAR_POLAR, NEAR_OTHER, NEAR_ION = 2.0, 1.8, 2.4, 1.2
"""Å of hydrogens of water from hydrogens, from N and O, others; from ions beyond their size."""
OXYGEN_CHARGE, ION_CHARGE = -2.0, 3.0
"""In charges of a hydrogen; and of an ion for each of its own."""
CHUNK = 1 << 15
"""Pairs looked at together, which fit caches."""


class SolventPlacer:
    """Places the atoms of water and ions; what does not change between frames is made here.

    Parameters
    ----------
    solvent : Solvent
    atoms : AtomTable
        The other atoms.
    hydrogens : bool
        Water has its hydrogens.
    seed : int
        Another seed is another draw of orientations.
    """

    def __init__(self, solvent: Solvent, atoms: AtomTable, *, hydrogens: bool, seed: int) -> None:
        self.hydrogens, self.n_waters = hydrogens, solvent.n_waters
        self.n_movable = solvent.n_waters + solvent.n_ions
        # An ion is a site of its bead, like the oxygens of a water bead.
        each = np.maximum(solvent.waters, 1)
        self.owner = np.repeat(np.arange(solvent.n_beads), each)
        rng = np.random.default_rng([seed, 0x501])
        self.offsets = _clusters(each, rng)
        self._owner, self._each = torch.from_numpy(self.owner), torch.from_numpy(each)
        self.turned = torch.zeros(0)
        if hydrogens:
            drawn = rng.standard_normal((6, self.n_waters), dtype=np.float32)
            self.turned = _rigid(torch.from_numpy(drawn))
        elements = np.append(np.full(self.n_waters, "O"), solvent.elements)
        self.size = np.append(_sizes(elements), _sizes(atoms.elements)).astype(np.float32)
        near, charge = _seen_by_hydrogens(atoms.elements)
        ions = self.size[self.n_waters : self.n_movable] + NEAR_ION
        water = np.full(self.n_waters, NEAR_POLAR), np.full(self.n_waters, OXYGEN_CHARGE)
        self.near = np.concatenate([water[0], ions, near]).astype(np.float32)
        self.charge = np.concatenate([water[1], ION_CHARGE * solvent.charges, charge])
        self.charge = self.charge.astype(np.float32)
        self._add_hydrogens(atoms)

    def _add_hydrogens(self, atoms: AtomTable) -> None:
        """Learn sizes and charges of the other atoms' hydrogens from what bears them."""
        light = atoms.elements == "H"
        self.heavy, self.light = np.flatnonzero(~light), np.flatnonzero(light)
        pairs = np.concatenate([atoms.bonds, atoms.bonds[:, ::-1]])
        pairs = pairs[light[pairs[:, 1]]]
        self.bearer = np.zeros(len(atoms), dtype=np.int64)
        self.bearer[pairs[:, 1]] = pairs[:, 0]
        polar = np.isin(atoms.elements[self.bearer[self.light]], ("N", "O", "S"))
        self.size[self.n_movable + self.light] = np.where(polar, *HYDROGEN_SIZE)
        self.near[self.n_movable + self.light] = NEAR_HYDROGEN
        self.charge[self.n_movable + self.light] = polar

    def __call__(self, beads: np.ndarray, atoms: np.ndarray, box: np.ndarray | None) -> np.ndarray:
        """Place one frame.

        Parameters
        ----------
        beads : ndarray, shape=(n_beads, 3), float32, Å
            Of water and ions, in any image.
        atoms : ndarray, shape=(n_atoms, 3), float32, Å
            The other atoms; stay where they are.
        box : ndarray, shape=(3, 3), Å, or None

        Returns
        -------
        ndarray, shape=(n, 3), float32, Å
            Every molecule whole, about the image of its bead that was given.
        """
        sites = self.place(beads)
        sites, touched = self._push(sites, atoms, self.heavy, FIRST_REACH, ROUNDS, box)[:2]
        others = self._with_hydrogens(touched)
        sites, _, pairs = self._push(sites, atoms, others, REACH, MORE_ROUNDS, box)
        sites = self._on_leash(sites, beads)
        if not self.hydrogens:
            return sites
        n = self.n_waters
        oxygens, light = sites[:n], self._turn(*pairs)
        water = np.empty((n, 3, 3), dtype=np.float32)
        water[:, 0] = oxygens
        water[:, 1:] = oxygens[:, None] + light.view(2, 3, n).permute(2, 0, 1).numpy()
        return np.concatenate([water.reshape(-1, 3), sites[n:]])

    def place(self, beads: np.ndarray) -> np.ndarray:
        """Return oxygens, then ions, about their beads, before they meet anything; Å."""
        return beads[self.owner] + self.offsets

    def _with_hydrogens(self, heavy: np.ndarray) -> np.ndarray:
        """Some heavy atoms with the hydrogens they bear."""
        chosen = np.zeros(len(self.bearer), dtype=bool)
        chosen[heavy] = True
        return np.append(heavy, self.light[chosen[self.bearer[self.light]]])

    def _push(
        self, sites: np.ndarray, atoms: np.ndarray, others: np.ndarray, reach: float, rounds: int,
        box: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray, tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
        """Push sites off one another and off some of the atoms.

        Returns
        -------
        sites : ndarray, shape=(n_movable, 3), Å
        touched : ndarray, shape=(n,), int64
            The atoms within reach of a site.
        first, second, vectors : Tensor, shape=(m,), (m,) and (3, m)
            Neighbours afterwards; the second may be an atom, counted on from the sites.
        """
        n = self.n_movable
        first, second, vectors = close_pairs(np.concatenate([sites, atoms[others]]), box, reach)
        kept = first < n
        first, second, vectors = first[kept], second[kept], vectors[kept]
        row = np.append(np.arange(n), n + others)
        second = row[second]
        apart = torch.from_numpy(self.size[first] + self.size[second])
        moved = _pushed(
            torch.from_numpy(first), torch.from_numpy(second), torch.from_numpy(vectors.T.copy()),
            apart, self._owner, self._each, rounds,
        )  # fmt: skip
        touched = np.unique(second[second >= n]) - n
        found = torch.from_numpy(first), torch.from_numpy(second), moved[1]
        return sites + moved[0].T.numpy(), touched, found

    def _on_leash(self, sites: np.ndarray, beads: np.ndarray) -> np.ndarray:
        """Bring centres that were pushed too far back."""
        off = _centres(torch.from_numpy((sites - beads[self.owner]).T.copy()), self._owner,
                       self._each)  # fmt: skip
        size = off.square().sum(0).sqrt().clamp(min=1e-6)
        back = off * (1 - LEASH / size).clamp(min=0)
        return sites - back.index_select(1, self._owner).T.numpy()

    def _turn(self, first: Tensor, second: Tensor, vectors: Tensor) -> Tensor:
        """Turn hydrogens of water off one another and towards what they bind to.

        Returns
        -------
        Tensor, shape=(6, n_waters), Å
            x, y and z of the first, then of the second hydrogen from the oxygen.
        """
        n = self.n_waters
        water = first < n
        both = water & (second < n)
        one = water & ~both
        weight = ((REACH - vectors.square().sum(0).sqrt()) / FADE).clamp(0, 1)
        pairs = first[both], second[both], vectors[:, both], weight[both]
        # An ion comes behind the water it meets.
        near, charge = torch.from_numpy(self.near), torch.from_numpy(self.charge)
        rows = (first[one], vectors[:, one], weight[one], near[second[one]], charge[second[one]])
        light, last = self.turned, torch.zeros(())
        for _ in range(TURNS):
            force = torch.zeros_like(light)
            for a, b, v, w in _chunks(*pairs):
                _between_waters(force, light, a, b, v, w)
            for a, v, w, r, q in _chunks(*rows):
                own = light.index_select(1, a).view(2, 3, -1)
                force.index_add_(1, a, (w * _towards(v - own, r, q)).view(6, -1))
            step = (TURN * force + DRIFT * last).view(2, 3, -1)
            size = step.square().sum(1, keepdim=True).sqrt()
            step = step * (FARTHEST_TURN / size.clamp(min=FARTHEST_TURN))
            new = _rigid(light + step.view(6, -1))
            light, last = new, new - light
        return light


def _clusters(each: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sites about their beads, turned at random; shape (each.sum(), 3), float32, Å."""
    start = np.cumsum(each) - each
    result = np.zeros((int(each.sum()), 3), dtype=np.float32)
    turns = _rotations(len(each), rng)
    for count, shape in _SHAPES.items():
        own = np.flatnonzero(each == count)
        rows = start[own][:, None] + np.arange(count)
        result[rows] = shape @ turns[own]
    return result


_SHAPES = {
    1: np.zeros((1, 3)),
    2: APART / 2 * np.array([[1.0, 0, 0], [-1, 0, 0]]),
    3: APART / 2 * np.array([[1, -(3**-0.5), 0], [-1, -(3**-0.5), 0], [0, 2 * 3**-0.5, 0]]),
    4: APART / 8**0.5 * np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]),
}
"""Waters about a bead: one, two in line, a triangle, a tetrahedron."""


def _rotations(n: int, rng: np.random.Generator) -> np.ndarray:
    """Rotation matrices, evenly distributed, shape (n, 3, 3)."""
    quaternion = rng.standard_normal((n, 4), dtype=np.float32)
    quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
    w, x, y, z = quaternion.T
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return np.stack(rows, axis=1).reshape(n, 3, 3)


def _sizes(elements: np.ndarray) -> np.ndarray:
    kinds, which = np.unique(elements, return_inverse=True)
    return np.array([SIZE.get(kind, OTHER_SIZE) for kind in kinds.tolist()])[which]


def _seen_by_hydrogens(elements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest distance, Å, and charge of atoms for the hydrogens of water."""
    polar = np.isin(elements, ("N", "O"))
    return np.where(polar, NEAR_POLAR, NEAR_OTHER), np.where(polar, OXYGEN_CHARGE, 0.0)


def _centres(points: Tensor, owner: Tensor, each: Tensor) -> Tensor:
    """Mean of the points of every bead, shape (3, n_beads)."""
    total = torch.zeros(3, len(each)).index_add_(1, owner, points)
    return total / each


def _pushed(
    first: Tensor, second: Tensor, vectors: Tensor, apart: Tensor, owner: Tensor, each: Tensor,
    rounds: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return how far sites were pushed, shape (3, n), and vectors of the pairs afterwards, Å."""
    n = len(owner)
    # What stays where it is shares one more column.
    second = second.clamp(max=n)
    share = torch.where(second < n, 0.5, 1.0)
    shift = last = torch.zeros(3, n + 1)
    for k in range(rounds + 1):
        now = vectors + shift.index_select(1, second) - shift.index_select(1, first)
        if k == rounds:
            break
        distance = now.square().sum(0).sqrt_().clamp_(min=0.1)
        (near,) = torch.nonzero(distance < apart, as_tuple=True)
        i, j = first[near], second[near]
        now = now.index_select(1, near) * (PUSH * share[near] * (apart / distance - 1)[near])
        step = DRIFT * last
        step.index_add_(1, j, now).index_add_(1, i, now, alpha=-1)
        step[:, n] = 0
        size = step.square().sum(0).sqrt()
        last = step * (STEP / size.clamp(min=STEP))
        shift = shift + last
        shift[:, :n] -= PULL * _centres(shift[:, :n], owner, each).index_select(1, owner)
    return shift[:, :n], now


def _chunks(*arrays: Tensor) -> Iterator[tuple[Tensor, ...]]:
    for start in range(0, arrays[0].shape[-1], CHUNK):
        yield tuple(a[..., start : start + CHUNK] for a in arrays)


def _towards(vectors: Tensor, near: Tensor | float, charge: Tensor | float) -> Tensor:
    """Force on hydrogens from what lies at vectors of shape (..., 3, m), Å."""
    square = vectors.square().sum(-2, keepdim=True).clamp_(min=0.1)
    distance = square.sqrt()
    pull = -charge / (square.clamp(min=NEAR_POLAR**2) * distance)
    return vectors * (pull - STIFF * (near - distance).clamp_(min=0) / distance)


def _between_waters(
    force: Tensor, light: Tensor, a: Tensor, b: Tensor, vectors: Tensor, weight: Tensor
) -> None:
    """Add what waters a and b, oxygens at vectors from one another, do to their hydrogens."""
    of_a, of_b = (light.index_select(1, k).view(2, 3, -1) for k in (a, b))
    between = _towards(vectors + of_b[None] - of_a[:, None], NEAR_HYDROGEN, 1.0)
    on_a = _towards(vectors - of_a, NEAR_POLAR, OXYGEN_CHARGE) + between.sum(1)
    on_b = _towards(-vectors - of_b, NEAR_POLAR, OXYGEN_CHARGE) - between.sum(0)
    force.index_add_(1, a, (weight * on_a).view(6, -1))
    force.index_add_(1, b, (weight * on_b).view(6, -1))


def _rigid(light: Tensor) -> Tensor:
    """Fit rigid water to two hydrogens from their oxygen; shapes (6, n), Å."""
    one, two = light.view(2, 3, -1)
    axis = _unit(one + two)
    side = one - two
    side = _unit(side - (side * axis).sum(0) * axis)
    axis, side = axis * (BOND * math.cos(ANGLE / 2)), side * (BOND * math.sin(ANGLE / 2))
    return torch.cat([axis + side, axis - side])


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.square().sum(0).sqrt().clamp(min=1e-6)
