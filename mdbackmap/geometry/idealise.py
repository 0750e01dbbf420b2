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

import copy
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mdbackmap.geometry import ramachandran
from mdbackmap.geometry.constraints import Backbone, Constraints
from mdbackmap.geometry.contacts import Contacts
from mdbackmap.threads import spread

CLOSEST_14, CLOSEST_SATURATED = 2.6, 2.75
"""Å; atoms three bonds apart come no closer, the second about bonds of saturated atoms (a gauche
butane has 3.0, one turned to 40 degrees 2.75, an eclipsed one 2.6)."""
GIVE_13 = 0.08
"""Å the ends of an angle may be off (4 degrees); angles of sound structures scatter by as much."""
SLACK = 0.3
"""Å^3 the volume of a stereocentre may be off; planes have none."""
TURN = 1.0
"""Radians of a torsion's error that one sweep takes back at most."""
DRIFT = 1.5
"""Share of the way of phi and psi that one sweep asks for."""
ROUNDS = 6
"""Rounds of sweeps at most; a second one is needed where a torsion had far to turn."""
LOOSER = 0.1
"""Factor of the hold on beads from round to round."""
EASIER = 0.7
"""Factor of the pull on phi and psi from round to round."""
OBLIQUE = 10.0
"""Degrees beyond what a staggered torsion may be off that call for a second round, but no third."""
LANES = 16
"""Angles worked out together by the processor. Those left over at the end of an array would come
out otherwise in the last digit, and an answer depend on what is worked out beside it."""
SETTLED = math.cos(math.radians(30))
"""Cosine of the error of a fixed torsion that calls for another round."""


@dataclass(frozen=True)
class Pairs:
    """Distances between pairs of points to be kept within limits.

    Attributes
    ----------
    first, second : Tensor, shape=(m,), int64
    nearest, furthest : Tensor, shape=(m,), float32, Å
    """

    first: Tensor
    second: Tensor
    nearest: Tensor
    furthest: Tensor

    def joined(self, other: Pairs) -> Pairs:
        """Return these pairs and others."""
        return Pairs(
            *(
                torch.cat(both)
                for both in zip(vars(self).values(), vars(other).values(), strict=True)
            )
        )

    def repeated(self, copies: int, n_points: int) -> Pairs:
        """Return these pairs once per copy of ``n_points`` points."""
        return Pairs(
            _shifted(self.first, copies, n_points), _shifted(self.second, copies, n_points),
            self.nearest.repeat(copies), self.furthest.repeat(copies),
        )  # fmt: skip

    def add_to(self, step: Tensor, positions: Tensor) -> None:
        """Add what either point would have to move; both arrays (3, n), Å."""
        gap = positions.index_select(1, self.second) - positions.index_select(1, self.first)
        length = (gap * gap).sum(0).add_(1e-8).sqrt_()
        error = length - length.clamp(self.nearest, self.furthest)
        gap *= error.div_(length).mul_(0.5)
        step.index_add_(1, self.first, gap)
        step.index_add_(1, self.second, gap.neg_())


@dataclass(frozen=True, eq=False)
class Staggered:
    """Torsions that are turned to the nearest of 60, 180 and 300 degrees.

    Attributes
    ----------
    torsions : ndarray, shape=(m, 4), int64
    gauche : ndarray, shape=(m,), float
        1 or -1: not to 180 degrees, but to 60 or -60 in its stead; 0: to all three.
    """

    torsions: np.ndarray
    gauche: np.ndarray

    @classmethod
    def none(cls) -> Staggered:
        """No such torsions."""
        return cls(np.zeros((0, 4), dtype=np.int64), np.zeros(0))

    def of_block(self, number: int, cuts: np.ndarray) -> Staggered:
        """Return those of a block of atoms, counted from its start."""
        own = _block_of(self.torsions, cuts) == number
        return Staggered(self.torsions[own] - cuts[number], self.gauche[own])


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
    backbone : Backbone
        Peptide bonds are made trans; where cis is allowed the prediction decides. Phi and psi
        that hardly any protein has are turned to the nearest that many have.
    sweeps : int
        Jacobi sweeps per round; rounds are added while a fixed torsion is far off.
    hold : float
        How strongly beads are kept where they were given, 0 to 1 per sweep.
    contour : float
        Phi and psi beyond this contour (see `mdbackmap.geometry.ramachandran`) are turned to it.
    momentum : float or ndarray, shape=(n_atoms,)
        Share of a sweep's step that the next one takes again; converges further, moves more.
    staggered : Staggered, optional
    slant : float, degrees
        By which they may be off.
    """

    def __init__(
        self, constraints: Constraints, n_atoms: int, members: np.ndarray, weights: np.ndarray,
        n_beads: int, backbone: Backbone, *, sweeps: int = 32, hold: float = 0.1,
        contour: float = ramachandran.ALLOWED, momentum: float | np.ndarray = 0.6,
        staggered: Staggered | None = None, slant: float = 10.0,
    ) -> None:  # fmt: skip
        self.sweeps, self.hold, self.n_atoms, self.copies = sweeps, hold, n_atoms, 1
        self.n_beads = n_beads
        self._repeated: dict[int, Idealiser] = {}
        self.momentum = _reals(np.broadcast_to(momentum, n_atoms))
        pairs, distance = _exact_pairs(constraints)
        apart, closest = _pairs_14(constraints, pairs)
        n_exact, pairs = len(pairs), np.concatenate([pairs, apart])
        give = np.where(np.arange(n_exact) < len(constraints.bonds), 0.0, GIVE_13)
        nearest = _reals(np.append(distance - give, closest))
        furthest = _reals(np.append(distance + give, np.full(len(apart), np.inf)))

        torsions, torsion, may_be_cis = _fixed_torsions(constraints, backbone)
        # Both sides of a fixed torsion are flat, so its plane must not hold it on the wrong one.
        loose = ~np.isin(_middle(constraints.volumes, n_atoms), _middle(torsions, n_atoms))
        staggered = staggered or Staggered.none()
        free = np.arange(len(torsions) + len(staggered.torsions)) >= len(torsions)
        torsions = np.concatenate([torsions, staggered.torsions])
        more = np.zeros(len(staggered.torsions))
        turned, strays = _filled_up(len(torsions)), _filled_up(len(backbone.kind))
        free = free[turned]
        self.torsion = _reals(np.append(torsion, more)[turned])
        self.may_be_cis = torch.from_numpy(np.append(may_be_cis, more > 0)[turned])
        self.gauche = _reals(np.append(np.zeros(len(torsion)), staggered.gauche)[turned])
        self.free = torch.from_numpy(free)
        self.give = _reals(np.where(free, math.radians(slant), 0.0))
        self.oblique = math.cos(math.radians(slant + OBLIQUE))

        quads, volume = constraints.volumes[loose], constraints.volume[loose]
        slack = np.where(volume > 0.5, SLACK, 0.0)
        self.smallest, self.largest = _reals(volume - slack), _reals(volume + slack)
        self.least = _reals(np.where(volume > 0.5, 0.3 * volume, -np.inf))

        self.pairs = Pairs(*_columns(pairs).chunk(2), nearest, furthest)
        self.centres, self.around = _columns(quads[:, :1]), _columns(quads[:, 1:])
        # The gradients are cross products of neighbouring columns, going round.
        self.quads = _columns(quads[:, [0, 1, 2, 3, 1, 2]])
        self.torsions = _columns(torsions[turned])
        phi_psi = backbone.phi_psi[strays]
        self.turning = _columns(np.concatenate([torsions[turned], phi_psi[:, :4], phi_psi[:, 1:]]))
        counts = [np.arange(len(turned)) < len(torsions),
                  *[np.arange(len(strays)) < len(backbone.kind)] * 2]  # fmt: skip
        self.counts = _reals(np.concatenate(counts))
        self.kind = torch.from_numpy(backbone.kind[strays])
        self.way_back = torch.from_numpy(ramachandran.way_back(contour))
        count = np.bincount(pairs[:n_exact].ravel(), minlength=n_atoms)
        count += np.bincount(quads.ravel(), minlength=n_atoms)
        count += np.bincount(torsions.ravel(), minlength=n_atoms)
        # Dividing by the full count is safe but slow; constraints rarely all pull one way.
        self.rate = _reals(1.0 / np.maximum(count, 1.0) ** 0.5)

        self.bead, self.member = _columns(members).chunk(2)
        self.weights = _reals(weights)
        share = np.bincount(members[:, 1], minlength=n_atoms)
        self.share = _reals(1.0 / share[members[:, 1]])

    def repeated(self, copies: int) -> Idealiser:
        """Return what restores so many copies of the system together, as if each were alone."""
        if copies == self.copies:
            return self
        if copies not in self._repeated:
            # Batches are of one size but for the last; others are not worth their memory.
            self._repeated = {copies: self._repeat(copies)}
        return self._repeated[copies]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_repeated": {}}

    def _repeat(self, copies: int) -> Idealiser:
        if copies == 1:
            return self
        many, n = copy.copy(self), self.n_atoms
        many.copies, many.pairs = copies, self.pairs.repeated(copies, n)
        for name in ("centres", "around", "quads", "torsions", "member"):
            columns = {"around": 3, "quads": 6, "torsions": 4}.get(name, 1)
            setattr(many, name, _shifted(getattr(self, name), copies, n, columns))
        sizes = [len(self.torsion), len(self.kind), len(self.kind)]
        ends = self.turning.view(4, -1).split(sizes, dim=1)
        many.turning = torch.cat(
            [_shifted(part.flatten(), copies, n, 4).view(4, -1) for part in ends], dim=1
        ).flatten()
        many.counts = torch.cat([part.repeat(copies) for part in self.counts.split(sizes)])
        many.bead = _shifted(self.bead, copies, self.n_beads)
        for name in ("torsion", "free", "gauche", "give", "may_be_cis", "smallest", "largest",
                     "least", "kind", "rate", "momentum", "weights", "share"):  # fmt: skip
            setattr(many, name, getattr(self, name).repeat(copies))
        return many

    @torch.no_grad()
    def __call__(
        self, positions: Tensor, beads: Tensor, contacts: Pairs | None = None,
        still: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return positions with ideal local geometry.

        Parameters
        ----------
        positions : Tensor, shape=(n_atoms, 3), float32, Å
            Or of several copies of the system, one behind the other.
        beads : Tensor, shape=(n_beads, 3), float32, Å
            Where the beads of the answer should be; of as many copies.
        contacts : Pairs, optional
            Atoms to be kept apart. The second of a pair may be one of ``still``, numbered on
            from the atoms.
        still : Tensor, shape=(m, 3), float32, Å, optional
            Points that do not move.

        Returns
        -------
        Tensor, shape=(n_atoms, 3), Å
            Bond lengths and angles within a few per cent, stereocentres and fixed torsions on
            their side, few contacts too close. Torsions about other single bonds are left to
            the rest.
        """
        work = self.repeated(max(1, len(positions) // max(self.n_atoms, 1)))
        n_moving = len(positions)
        if still is not None:
            positions = torch.cat([positions, still])
        # Rows x, y, z, x, y: cross products are then differences of products of slices.
        rows = positions.T[[0, 1, 2, 0, 1]]
        beads = beads.T.contiguous()
        target = work._torsion_targets(rows)
        frames = torch.arange(work.copies)
        result = torch.empty(3, work.copies, self.n_atoms)
        for k in range(ROUNDS):
            work._sweep(rows, beads, target, contacts, self.hold * LOOSER**k, DRIFT * EASIER**k)
            result[:, frames] = rows[:3, :n_moving].view(3, work.copies, -1)
            again = work._unsettled(rows, target, staggered=k == 0)
            if not again.any():
                break
            if not again.all():
                # The copies that need no more are done.
                rows, n_moving, contacts = self._some(rows, n_moving, contacts, again)
                beads = beads.view(3, work.copies, -1)[:, again].flatten(1)
                target = target.view(work.copies, -1)[again].flatten()
                frames, work = frames[again], self._repeat(int(again.sum()))
        return result.flatten(1).T.contiguous()

    def _some(
        self, rows: Tensor, n_moving: int, contacts: Pairs | None, chosen: Tensor
    ) -> tuple[Tensor, int, Pairs | None]:
        """Return some copies, how many atoms they have, and their contacts; points stay."""
        n, still = self.n_atoms, rows[:, n_moving:]
        moving = rows[:, :n_moving].view(5, len(chosen), n)[:, chosen].flatten(1)
        if contacts is not None:
            kept = torch.nonzero(chosen[contacts.first // n]).squeeze(1)
            place = torch.full((rows.shape[1],), -1)
            place[:n_moving].view(-1, n)[chosen] = torch.arange(moving.shape[1]).view(-1, n)
            place[n_moving:] = moving.shape[1] + torch.arange(still.shape[1])
            contacts = Pairs(place[contacts.first[kept]], place[contacts.second[kept]],
                             contacts.nearest[kept], contacts.furthest[kept])  # fmt: skip
        return torch.cat([moving, still], dim=1), moving.shape[1], contacts

    def _sweep(
        self, rows: Tensor, beads: Tensor, target: Tensor, contacts: Pairs | None, hold: float,
        drift: float,
    ) -> None:  # fmt: skip
        """Move the atoms in place, one round of sweeps."""
        moving, again = rows[:3], rows[3:]
        speed = torch.zeros_like(moving)
        pairs = self.pairs if contacts is None else self.pairs.joined(contacts)
        n_still = moving.shape[1] - len(self.rate)
        momentum, rate = (torch.nn.functional.pad(t, (0, n_still)) for t in
                          (self.momentum, self.rate))  # fmt: skip
        for sweep in range(self.sweeps):
            step = torch.zeros_like(moving)
            pairs.add_to(step, moving)
            if len(self.centres):
                self._add_volumes(step, rows)
            # Beads and staggered torsions are let go at the end: bonds have the last word.
            grip = max(0.0, min(1.0, 2.0 * (1 - sweep / self.sweeps) - 0.5))
            if len(self.turning):
                self._add_torsions(step, rows, target, drift, grip)
            step *= rate
            if grip:
                self._add_beads(step, moving, beads, grip * hold)
            speed = step.addcmul_(speed, momentum) if sweep > 3 else step
            moving += speed
            again.copy_(moving[:2])

    def _unsettled(self, rows: Tensor, target: Tensor, *, staggered: bool) -> Tensor:
        """Copies in which a fixed torsion is still far from where it should be, or a hand wrong."""
        result = torch.zeros(self.copies, dtype=torch.bool)
        if len(target):
            angle = _torsion_angle(*_torsion_planes(rows, self.torsions))
            near = torch.where(self.free, self.oblique if staggered else -2.0, SETTLED)
            result |= (torch.cos(angle - target) < near).view(self.copies, -1).any(1)
        if len(self.centres):
            arms, gradients = self._volume_gradients(rows)
            wrong = (arms[:3, 0] * gradients[:, 0]).sum(0) < self.least
            result |= wrong.view(self.copies, -1).any(1)
        return result

    def _add_volumes(self, step: Tensor, rows: Tensor) -> None:
        arms, gradients = self._volume_gradients(rows)
        centre = gradients.sum(1)
        volume = (arms[:3, 0] * gradients[:, 0]).sum(0)
        error = volume - volume.clamp(self.smallest, self.largest)
        size = (gradients * gradients).sum(0).sum(0) + (centre * centre).sum(0)
        error /= size.clamp_(min=1.0)
        step.index_add_(1, self.centres, centre.mul_(error))
        step.index_add_(1, self.around, gradients.mul_(error).neg_().flatten(1))

    def _volume_gradients(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Arms from each centre, and the gradients of its signed volume at their ends."""
        points = rows.index_select(1, self.quads).view(5, 6, -1)
        arms = points[:, 1:] - points[:, :1]
        return arms, _cross(arms[:, 1:4], arms[:, 2:5])

    def _add_torsions(
        self, step: Tensor, rows: Tensor, target: Tensor, drift: float, grip: float
    ) -> None:
        arms, normals = _torsion_planes(rows, self.turning)
        angle = _torsion_angle(arms, normals)
        error = angle[: len(target)] - target
        error -= 2 * math.pi * torch.round(error / (2 * math.pi))
        error -= error.clamp(-self.give, self.give)
        error *= torch.where(self.free, grip, 1.0)
        if len(self.kind):
            error = torch.cat([error, drift * self._strays(angle[len(target) :])])
        # Gradients after Blondel and Karplus, J. Comput. Chem. 17, 1132 (1996), eq. 27: along
        # the normals at the ends, what keeps force and torque zero between them.
        axis = arms[:, 1:2]
        square = axis.square().sum(0).clamp_(min=0.1)
        ends = normals * (square.sqrt() / normals.square().sum(0).clamp_(min=0.5))
        start, stop = ends.unbind(1)
        before, after = (arms[:, ::2] * axis).sum(0) / square
        second = (1 + before) * start + after * stop
        gradients = torch.stack([-start, second, start - stop - second, stop], dim=1)
        error = error.clamp_(-TURN, TURN).mul_(self.counts)
        error /= gradients.square().sum(0).sum(0).clamp_(min=1.0)
        step.index_add_(1, self.turning, gradients.mul_(error).neg_().flatten(1))

    def _strays(self, angle: Tensor) -> Tensor:
        """How far phi, then psi, lie from where proteins have them, radians."""
        cells = self.way_back.shape[1]
        cell = ((angle / (2 * math.pi) + 0.5) * cells).long().clamp_(0, cells - 1)
        phi, psi = cell.chunk(2)
        return self.way_back[self.kind, phi, psi].T.flatten().neg()

    def _add_beads(self, step: Tensor, positions: Tensor, beads: Tensor, hold: float) -> None:
        inside = positions.index_select(1, self.member) * self.weights
        off = beads - torch.zeros_like(beads).index_add_(1, self.bead, inside)
        step.index_add_(1, self.member, off.index_select(1, self.bead) * (hold * self.share))

    def _torsion_targets(self, rows: Tensor) -> Tensor:
        """Angles the fixed torsions are turned to, radians; some stay as they are predicted."""
        if not (self.may_be_cis | self.free).any():
            return self.torsion
        angle = _torsion_angle(*_torsion_planes(rows, self.torsions))
        cis = self.may_be_cis & (angle.cos() > 0)
        third = 2 * math.pi / 3
        nearest = third * (torch.floor(angle / third) + 0.5)
        instead = torch.where((angle.abs() > third) & (self.gauche != 0), self.gauche, 0.0)
        nearest = torch.where(instead != 0, instead * third / 2, nearest)
        return torch.where(self.free, nearest, torch.where(cis, 0.0, self.torsion))


def _reals(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _columns(table: np.ndarray) -> Tensor:
    """All of the first column, then all of the second, ..."""
    return torch.from_numpy(np.ascontiguousarray(table.T, dtype=np.int64).ravel())


def _filled_up(n: int) -> np.ndarray:
    """Rows of a table of torsions, some of them again to have a multiple of `LANES`."""
    return np.append(np.arange(n), np.zeros(-n % LANES if n else 0, np.int64)).astype(np.int64)


def _shifted(index: Tensor, copies: int, step: int, columns: int = 1) -> Tensor:
    """Columns of indices, one behind the other, each as often as there are copies."""
    shift = step * torch.arange(copies)[:, None]
    return (index.view(columns, 1, -1) + shift).flatten()


def _cross(first: Tensor, second: Tensor) -> Tensor:
    """Cross product of vectors with rows x, y, z, x, y."""
    return first[1:4] * second[2:5] - first[2:5] * second[1:4]


def _torsion_planes(rows: Tensor, torsions: Tensor) -> tuple[Tensor, Tensor]:
    """The three bonds of each torsion, shape (3, 3, n), and its planes' normals, (3, 2, n)."""
    points = rows.index_select(1, torsions).view(5, 4, -1)
    arms = points[:, 1:] - points[:, :-1]
    return arms[:3], _cross(arms[:, :2], arms[:, 1:])


def _torsion_angle(arms: Tensor, normals: Tensor) -> Tensor:
    sine = arms[:, 1].square().sum(0).sqrt_() * (arms[:, 0] * normals[:, 1]).sum(0)
    return torch.atan2(sine, (normals[:, 0] * normals[:, 1]).sum(0))


def _exact_pairs(constraints: Constraints) -> tuple[np.ndarray, np.ndarray]:
    """Bonds and the ends of angles, each pair once, bonds first; and their distances, Å."""
    bonds, angles = constraints.bonds, constraints.angles
    n = 1 + max(int(bonds.max(initial=0)), int(angles.max(initial=0)))
    key = _pair_key(bonds, n)
    order = np.argsort(key)

    def length(pairs: np.ndarray) -> np.ndarray:
        return constraints.bond_length[order[np.searchsorted(key[order], _pair_key(pairs, n))]]

    a, b = length(angles[:, :2]), length(angles[:, 1:])
    across = np.sqrt(a**2 + b**2 - 2 * a * b * np.cos(np.radians(constraints.angle)))
    pairs = np.concatenate([bonds, angles[:, [0, 2]]])
    distance = np.concatenate([constraints.bond_length, across])
    _, first = np.unique(_pair_key(pairs, n), return_index=True)
    first = np.sort(first)
    return pairs[first], distance[first]


def _fixed_torsions(
    constraints: Constraints, backbone: Backbone
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Torsions held cis or trans with their angles, radians, and which may be cis all the same."""
    n = 1 + int(constraints.bonds.max(initial=0))
    other = ~np.isin(_middle(constraints.torsions, n), _middle(backbone.omegas, n))
    torsion = np.radians(constraints.torsion[other])
    return (
        np.concatenate([constraints.torsions[other], backbone.omegas]),
        np.concatenate([torsion, np.where(backbone.cis, 0.0, math.pi)]),
        np.concatenate([np.zeros(len(torsion), dtype=bool), backbone.may_be_cis]),
    )


def _pairs_14(constraints: Constraints, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Atoms three bonds apart that no other pair fixes, and how close they may come, Å."""
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
    middle, third = triples[rows, 1:].T
    flat = np.zeros(n, dtype=bool)
    flat[bonds[constraints.bond_order > 1]] = True
    flat[constraints.volumes[constraints.volume < 0.5, 0]] = True
    ends = (last != middle) & (pairs[:, 0] != last)
    saturated = ~(flat[middle] | flat[third])[ends]
    # A pair that is joined in several ways may come as close as any of them allows.
    key, which = np.unique(_pair_key(pairs[ends], n), return_inverse=True)
    closest = np.full(len(key), CLOSEST_SATURATED)
    np.minimum.at(closest, which, np.where(saturated, CLOSEST_SATURATED, CLOSEST_14))
    new = ~np.isin(key, _pair_key(known, n))
    return np.stack([key // n, key % n], axis=1)[new], closest[new]


def _pair_key(pairs: np.ndarray, n: int) -> np.ndarray:
    pairs = pairs.astype(np.int64)
    return np.minimum(pairs[:, 0], pairs[:, 1]) * n + np.maximum(pairs[:, 0], pairs[:, 1])


def _middle(rows: np.ndarray, n: int) -> np.ndarray:
    """One number per central bond of rows of four."""
    return _pair_key(rows[:, 1:3], n)


class BlockIdealiser:
    """An `Idealiser` that works block by block of whole molecules.

    Blocks fit the processor's cache, which is several times faster for large systems, and only
    blocks that need more rounds of sweeps take them. Parameters as in `Idealiser`; a call too.

    Parameters
    ----------
    block : int
        Atoms per block; a larger molecule is a block of its own.
    **options
        As of `Idealiser`.
    """

    def __init__(
        self, constraints: Constraints, n_atoms: int, members: np.ndarray, weights: np.ndarray,
        n_beads: int, backbone: Backbone, *, block: int = 12_000,
        momentum: float | np.ndarray = 0.6, staggered: Staggered | None = None, **options: float,
    ) -> None:  # fmt: skip
        momentum = np.broadcast_to(momentum, n_atoms)
        staggered = staggered or Staggered.none()
        cuts = _cuts(constraints.bonds, members, n_atoms, block)
        # Beads lie in the order of their atoms' molecules.
        bead_cuts = np.append(np.searchsorted(_first_atoms(members, n_beads), cuts[:-1]), n_beads)
        terms = _split_constraints(constraints, cuts)
        of_member = _block_of(members[:, 1:], cuts)
        self.blocks: list[tuple[slice, slice, Idealiser]] = []
        for k, (start, stop) in enumerate(itertools.pairwise(cuts)):
            first, last = int(bead_cuts[k]), int(bead_cuts[k + 1])
            own = of_member == k
            self.blocks.append((
                slice(int(start), int(stop)), slice(first, last),
                Idealiser(
                    terms[k], int(stop - start), members[own] - [first, start], weights[own],
                    last - first, backbone.within(start, stop), momentum=momentum[start:stop],
                    staggered=staggered.of_block(k, cuts), **options,
                ),
            ))  # fmt: skip

    def __call__(
        self, positions: Tensor, beads: Tensor, contacts: Contacts | None = None
    ) -> Tensor:
        """Return positions with ideal local geometry, shape (n_atoms, 3), Å.

        Parameters
        ----------
        positions : Tensor, shape=(n_atoms, 3), float32, Å
            Or of several copies of the system, one behind the other.
        beads : Tensor, shape=(n_beads, 3), float32, Å
            Of as many copies.
        contacts : Contacts, optional
            Pairs of the given positions to be kept apart, also across blocks and images.
        """
        n_atoms, n_beads = self.blocks[-1][0].stop, self.blocks[-1][1].stop
        near = self._in_blocks(contacts, positions) if contacts else [()] * len(self.blocks)
        if len(self.blocks) == 1:
            return self.blocks[0][2](positions, beads, *near[0])
        copies = positions.view(-1, n_atoms, 3), beads.view(-1, n_beads, 3)

        def work(k: int) -> Tensor:
            atoms, own, idealise = self.blocks[k]
            given = copies[0][:, atoms].flatten(0, 1), copies[1][:, own].flatten(0, 1)
            return idealise(*given, *near[k]).view(len(copies[0]), -1, 3)

        return torch.cat(spread(work, range(len(self.blocks))), dim=1).flatten(0, 1)

    def _in_blocks(self, contacts: Contacts, positions: Tensor) -> list[tuple[Pairs, Tensor]]:
        """Contacts of every block; what a block sees of others and of images stands still."""
        first, second, vectors, nearest = (
            torch.from_numpy(array) for array in vars(contacts).values()
        )
        n_atoms = self.blocks[-1][0].stop
        starts = torch.tensor([atoms.start for atoms, _, _ in self.blocks])
        sizes = torch.tensor([atoms.stop - atoms.start for atoms, _, _ in self.blocks])

        def place(atoms: Tensor) -> tuple[Tensor, Tensor]:
            """Block of some atoms, and their number among its copies."""
            frame = atoms // n_atoms
            block = torch.bucketize(atoms - frame * n_atoms, starts, right=True) - 1
            return block, atoms - frame * n_atoms - starts[block] + frame * sizes[block]

        (block, one), (other_block, other) = place(first), place(second)
        jump = positions[first] + vectors - positions[second]
        inside = (block == other_block) & (jump.abs().amax(1) < 0.1)
        own, across = (torch.nonzero(rows).squeeze(1) for rows in (inside, ~inside))
        # Seen from either side, and as far away as if the other had done its half already.
        gap = vectors[across]
        length = gap.norm(dim=1).clamp(min=0.1)
        gap = gap * (1 + 0.5 * (nearest[across] / length - 1).clamp(min=0))[:, None]
        still = torch.cat([positions[first[across]] + gap, positions[second[across]] - gap])
        point = torch.cat([one[across], other[across]])
        limit = nearest[across].repeat(2)
        n_copies = len(positions) // n_atoms
        result = []
        for k, (mine, theirs) in enumerate(zip(
            _by_block(block[own], len(starts)),
            _by_block(torch.cat([block[across], other_block[across]]), len(starts)), strict=True,
        )):  # fmt: skip
            rows = own[mine]
            near = torch.cat([nearest[rows], limit[theirs]])
            outside = n_copies * sizes[k] + torch.arange(len(theirs))
            result.append((
                Pairs(
                    torch.cat([one[rows], point[theirs]]), torch.cat([other[rows], outside]),
                    near, torch.full_like(near, math.inf),
                ),
                still[theirs],
            ))  # fmt: skip
        return result


def _by_block(block: Tensor, n_blocks: int) -> tuple[Tensor, ...]:
    """Rows of each block, in their order."""
    order = torch.argsort(block, stable=True)
    return order.split(torch.bincount(block, minlength=n_blocks).tolist())


def _first_atoms(members: np.ndarray, n_beads: int) -> np.ndarray:
    first = np.full(n_beads, np.iinfo(np.int64).max)
    np.minimum.at(first, members[:, 0], members[:, 1])
    return np.maximum.accumulate(first)


def _cuts(bonds: np.ndarray, members: np.ndarray, n_atoms: int, block: int) -> np.ndarray:
    """Atoms at which blocks start, and ``n_atoms``: nothing is bonded, or shares a bead, across."""
    reach = np.arange(n_atoms)
    ends = np.sort(bonds, axis=1)
    np.maximum.at(reach, ends[:, 0], ends[:, 1])
    order = np.lexsort((members[:, 1], members[:, 0]))
    bead, atom = members[order].T
    same = bead[1:] == bead[:-1]
    np.maximum.at(reach, atom[:-1][same], atom[1:][same])
    free = np.flatnonzero(np.maximum.accumulate(reach)[:-1] < np.arange(1, n_atoms)) + 1
    cuts = [0]
    for place in range(block, n_atoms, block):
        k = np.searchsorted(free, max(place, cuts[-1] + 1))
        if k < len(free) and free[k] > cuts[-1]:
            cuts.append(int(free[k]))
    return np.array([*cuts, n_atoms])


def _block_of(rows: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    return np.searchsorted(cuts, rows[:, 0], side="right") - 1


def _split_constraints(constraints: Constraints, cuts: np.ndarray) -> list[Constraints]:
    """The constraints of every block, in its own numbering."""
    columns: list[list[np.ndarray]] = []
    for index, values in (
        (constraints.bonds, (constraints.bond_order, constraints.bond_length)),
        (constraints.angles, (constraints.angle,)),
        (constraints.volumes, (constraints.volume,)),
        (constraints.torsions, (constraints.torsion,)),
    ):
        block = _block_of(index, cuts)
        order = np.argsort(block, kind="stable")
        places = np.searchsorted(block[order], np.arange(1, len(cuts) - 1))
        local = (index - cuts[block][:, None])[order]
        columns += [np.split(table, places) for table in (local, *(v[order] for v in values))]
    return [Constraints(*tables) for tables in zip(*columns, strict=True)]
