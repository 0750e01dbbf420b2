"""Putting local geometry right: bonds, angles, stereocentres, planes, cis/trans.

A network trained on squared errors answers with means: bonds a little short, rings puckered,
on real frames worse. Here every atom is moved as little as possible so that bond lengths, 1-3
distances, signed volumes and fixed torsions hold, by position-based projection (Jacobi sweeps
with momentum), all constraints of a system in one array operation. Distances alone would create
mirror images; the signed volumes do not allow it.

After Müller et al., "Position based dynamics", J. Vis. Commun. Image Represent. 18, 109 (2007),
doi:10.1016/j.jvcir.2007.01.005.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mdbackmap.geometry.constraints import Constraints

CLOSEST_14 = 2.6
"""Å; atoms three bonds apart come no closer (a gauche butane has 3.0, an eclipsed one 2.6)."""
TRANS_PEPTIDE, CIS_PEPTIDE = 3.80, 2.94
"""Å between the CA atoms of a planar peptide bond."""


class Idealiser:
    """Restores the local geometry of one system; static arrays are built once.

    Parameters
    ----------
    constraints : Constraints
        Over all atoms of the system.
    n_atoms : int
    members : ndarray, shape=(k, 2), int64; weights : ndarray, shape=(k,)
        Bead-atom rows and normalised weights, to keep beads where they are.
    n_beads : int
    omegas : ndarray, shape=(m, 4), int64; may_be_cis : ndarray, shape=(m,), bool
        Peptide bonds. They are made trans; where cis is allowed the prediction decides.
    sweeps : int
        Jacobi sweeps.
    hold : float
        How strongly beads are kept where they were given, 0 to 1 per sweep.
    """

    def __init__(
        self, constraints: Constraints, n_atoms: int, members: np.ndarray, weights: np.ndarray,
        n_beads: int, omegas: np.ndarray, may_be_cis: np.ndarray, *, sweeps: int = 24,
        hold: float = 0.1,
    ) -> None:  # fmt: skip
        self.n_atoms, self.n_beads, self.sweeps, self.hold = n_atoms, n_beads, sweeps, hold
        pairs, distance = _exact_pairs(constraints, omegas)
        apart = _pairs_14(constraints, pairs)
        self.n_exact = len(pairs)
        self.n_omega = len(omegas)
        pairs = np.concatenate([omegas[:, [0, 3]], pairs, apart])
        self.pairs = torch.from_numpy(np.ascontiguousarray(pairs))
        self.distance = torch.from_numpy(
            np.concatenate([
                np.full(len(omegas), TRANS_PEPTIDE), distance, np.full(len(apart), CLOSEST_14)
            ]).astype(np.float32)
        )  # fmt: skip
        torsions, ends, halfway = _fixed_torsions(constraints, omegas)
        # A 1-4 distance alone hardly resists twisting near cis; the plane does.
        quads = np.concatenate([constraints.volumes, torsions])
        volume = np.concatenate([constraints.volume, np.zeros(len(torsions))])
        self.n_volumes = len(constraints.volumes)
        self.halfway = torch.from_numpy(halfway.astype(np.float32))
        self.wants_cis = torch.from_numpy(ends < halfway)
        self.quads = torch.from_numpy(np.ascontiguousarray(quads))
        self.volume = torch.from_numpy(volume.astype(np.float32))
        self.omegas = torch.from_numpy(np.ascontiguousarray(omegas))
        self.may_be_cis = torch.from_numpy(may_be_cis)
        count = np.bincount(pairs[:-len(apart) or None].ravel(), minlength=n_atoms)
        count = count + np.bincount(quads.ravel(), minlength=n_atoms)
        # Dividing by the full count is safe but slow; constraints rarely all pull one way.
        self.rate = torch.from_numpy((1.0 / np.maximum(count, 1.0) ** 0.75).astype(np.float32))
        self.members = torch.from_numpy(np.ascontiguousarray(members))
        self.weights = torch.from_numpy(weights.astype(np.float32))
        share = np.zeros(n_atoms)
        np.add.at(share, members[:, 1], 1.0)
        self.per_atom = torch.from_numpy((1.0 / np.maximum(share, 1.0)).astype(np.float32))

    def __call__(self, positions: Tensor, beads: Tensor) -> Tensor:
        """Return positions with ideal local geometry.

        Parameters
        ----------
        positions : Tensor, shape=(n_atoms, 3), float32, Å
        beads : Tensor, shape=(n_beads, 3), float32, Å
            Where the beads of the answer should be.

        Returns
        -------
        Tensor, shape=(n_atoms, 3), Å
            Bond lengths and angles within a few per cent, stereocentres and fixed torsions on
            their side. Torsions about single bonds are not touched; clashes between residues
            are not looked for.
        """
        distance = self._with_cis(positions)
        before = positions
        for sweep in range(self.sweeps):
            step = self._distance_step(positions, distance) + self._volume_step(positions)
            step = step * self.rate[:, None]
            # Beads are let go at the end: bonds have the last word.
            hold = self.hold * min(1.0, 2.0 * (1 - sweep / self.sweeps) - 0.5)
            if hold > 0:
                step = step + hold * self._bead_step(positions, beads)
            momentum = 0.6 if sweep > 2 else 0.0
            positions, before = positions + step + momentum * (positions - before), positions
        return positions

    def _with_cis(self, positions: Tensor) -> Tensor:
        if not self.n_omega:
            return self.distance
        ends = positions[self.omegas[:, 3]] - positions[self.omegas[:, 0]]
        cis = self.may_be_cis & (ends.norm(dim=1) < 0.5 * (TRANS_PEPTIDE + CIS_PEPTIDE))
        distance = self.distance.clone()
        distance[: self.n_omega] = torch.where(cis, CIS_PEPTIDE, TRANS_PEPTIDE)
        return distance

    def _distance_step(self, positions: Tensor, distance: Tensor) -> Tensor:
        first, second = self.pairs[:, 0], self.pairs[:, 1]
        gap = positions[second] - positions[first]
        length = torch.sqrt((gap * gap).sum(1) + 1e-8)
        error = length - distance
        loose = self.n_omega + self.n_exact
        error[loose:] = error[loose:].clamp(max=0.0)
        push = gap * (0.5 * error / length)[:, None]
        step = torch.zeros_like(positions)
        step.index_add_(0, first, push)
        step.index_add_(0, second, -push)
        return step

    def _volume_step(self, positions: Tensor) -> Tensor:
        step = torch.zeros_like(positions)
        if not len(self.quads):
            return step
        x, a, b, c = positions[self.quads].unbind(1)
        a, b, c = a - x, b - x, c - x
        ga, gb, gc = torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)
        gx = -(ga + gb + gc)
        error = (a * ga).sum(1) - self.volume
        # Stereocentres may breathe a little; planes may not.
        slack = torch.where(self.volume > 0.5, 0.3, 0.0)
        error = torch.sign(error) * (error.abs() - slack).clamp(min=0.0)
        # Both sides of a fixed torsion are flat: its plane counts once it is on its side.
        own = slice(self.n_volumes, None)
        last = positions[self.quads[own, 3]] - positions[self.quads[own, 0]]
        on_side = (last.norm(dim=1) < self.halfway) == self.wants_cis
        error = torch.cat([error[: self.n_volumes], error[own] * on_side])
        size = (ga * ga).sum(1) + (gb * gb).sum(1) + (gc * gc).sum(1) + (gx * gx).sum(1)
        scale = (-error / size.clamp(min=1.0))[:, None]
        for column, gradient in enumerate((gx, ga, gb, gc)):
            step.index_add_(0, self.quads[:, column], gradient * scale)
        return step

    def _bead_step(self, positions: Tensor, beads: Tensor) -> Tensor:
        bead, atom = self.members[:, 0], self.members[:, 1]
        centre = torch.zeros_like(beads)
        centre.index_add_(0, bead, positions[atom] * self.weights[:, None])
        step = torch.zeros_like(positions)
        step.index_add_(0, atom, (beads - centre)[bead])
        return step * self.per_atom[:, None]


def _exact_pairs(constraints: Constraints, omegas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bonds, 1-3 pairs from angles, 1-4 pairs of fixed torsions; each pair once, bonds first."""
    bonds, angles, torsions = constraints.bonds, constraints.angles, constraints.torsions
    n = 1 + max((int(t.max(initial=0)) for t in (bonds, angles, torsions)), default=0)
    length, _ = _look_ups(constraints, n)
    a, b = length(angles[:, :2]), length(angles[:, 1:])
    across = np.sqrt(a**2 + b**2 - 2 * a * b * np.cos(np.radians(constraints.angle)))
    torsions, ends, _ = _fixed_torsions(constraints, omegas)
    pairs = np.concatenate([bonds, angles[:, [0, 2]], torsions[:, [0, 3]]])
    distance = np.concatenate([constraints.bond_length, across, ends])
    _, first = np.unique(_pair_key(pairs, n), return_index=True)
    first = np.sort(first)
    return pairs[first], distance[first]


def _look_ups(constraints: Constraints, n: int):
    """Functions that give bond lengths (Å) of pairs and angles (radians) of triples of atoms."""
    key = _pair_key(constraints.bonds, n)
    order = np.argsort(key)
    triples = constraints.angles
    triple_key = triples[:, 1].astype(np.int64) * n * n + _pair_key(triples[:, [0, 2]], n)
    triple_order = np.argsort(triple_key)

    def length(pairs: np.ndarray) -> np.ndarray:
        place = np.searchsorted(key[order], _pair_key(pairs, n))
        return constraints.bond_length[order][place]

    def angle(rows: np.ndarray) -> np.ndarray:
        wanted = rows[:, 1].astype(np.int64) * n * n + _pair_key(rows[:, [0, 2]], n)
        place = np.searchsorted(triple_key[triple_order], wanted)
        return np.radians(constraints.angle[triple_order[place]])

    return length, angle


def _fixed_torsions(
    constraints: Constraints, omegas: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Torsions held cis or trans, the distance of their ends there, and that at 90 degrees, Å.

    Peptide torsions are not among them: those before proline are decided frame by frame.
    """
    torsions = constraints.torsions
    n = 1 + int(constraints.bonds.max(initial=0))
    keep = ~np.isin(_quad_key(torsions, n), _quad_key(omegas, n))
    torsions, sign = torsions[keep], np.cos(np.radians(constraints.torsion[keep]))
    if not len(torsions):
        return torsions, np.zeros(0), np.zeros(0)
    length, angle = _look_ups(constraints, n)
    b1, b2, b3 = (length(torsions[:, [k, k + 1]]) for k in range(3))
    t1, t2 = angle(torsions[:, :3]), angle(torsions[:, 1:])
    along = b2 - b1 * np.cos(t1) - b3 * np.cos(t2)
    left, right = b1 * np.sin(t1), b3 * np.sin(t2)
    ends = np.sqrt(along**2 + left**2 + right**2 - 2 * sign * left * right)
    return torsions, ends, np.sqrt(along**2 + left**2 + right**2)


def _pairs_14(constraints: Constraints, known: np.ndarray) -> np.ndarray:
    """Atoms three bonds apart that no other pair fixes."""
    bonds, angles = constraints.bonds, constraints.angles
    n = 1 + int(bonds.max(initial=0))
    both = np.concatenate([bonds, bonds[:, ::-1]])
    order = np.argsort(both[:, 0], kind="stable")
    start = np.searchsorted(both[order, 0], np.arange(n + 1))
    triples = np.concatenate([angles, angles[:, ::-1]])
    count = start[triples[:, 2] + 1] - start[triples[:, 2]]
    rows = np.repeat(np.arange(len(triples)), count)
    column = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    last = both[order, 1][start[triples[rows, 2]] + column]
    pairs = np.stack([triples[rows, 0], last], axis=1)
    middle = triples[rows, 1]
    pairs = pairs[(last != middle) & (pairs[:, 0] != last)]
    key = np.unique(_pair_key(pairs, n))
    key = key[~np.isin(key, _pair_key(known, n))]
    return np.stack([key // n, key % n], axis=1)


def _pair_key(pairs: np.ndarray, n: int) -> np.ndarray:
    pairs = pairs.astype(np.int64)
    return np.minimum(pairs[:, 0], pairs[:, 1]) * n + np.maximum(pairs[:, 0], pairs[:, 1])


def _quad_key(quads: np.ndarray, n: int) -> np.ndarray:
    return quads[:, 0].astype(np.int64) * n + quads[:, 3]
