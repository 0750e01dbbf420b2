"""Alkyl chains drawn from their rotamers, so that their beads come to lie where they should.

The mean of the rotamers a chain may be in is no chain: it is short, and neither gauche nor anti.
Here a chain is grown bead by bead from libraries of conformers of each bead's atoms, made of
ideal bonds and angles and of torsions as chains in fluid membranes have them. A few growing
chains per molecule (particles) are weighted by how well their beads fit the given ones, those of
the next two beads included, and drawn anew after every bead (sequential Monte Carlo, see Doucet
and Johansen, "A tutorial on particle filtering and smoothing", Oxford Handbook of Nonlinear
Filtering (2011), sections 3.4 and 4.2). The answer is one draw from the conformers that fit,
with their frequencies; it is not the best fit.

Everything is worked out in the frame of the three atoms before a chain, so the answer turns with
the beads. The same random numbers in every frame make chains differ only where beads do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm, qmc
from torch import Tensor

from mdbackmap.threads import spread

CELLS = 72
"""Cells of the table of torsions, over -180 to 180 degrees."""
GAUCHE = math.radians(120.0)
"""A torsion nearer to cis than this is gauche."""
BEND, TWIST = math.radians(3.0), math.radians(7.0)
"""Standard deviations of bond angles, and of torsions about double bonds."""
WITHIN = math.radians(12.0)
"""Standard deviation of a torsion within its rotamer."""
CANDIDATES, PARTICLES = 512, 8
"""Conformers in a library, and growing chains of a molecule."""
FLEXES = 3
"""Steps of making a chain's beads fit."""
AHEAD = 2
"""Beads after the one that is placed that a conformer is judged by."""
AT_ONCE, MANY = 1 << 18, 1024
"""Weights worked out together, 1 MB, which fits caches; chains made to fit together."""
GROUP = 64
"""Weights of which only the sum is looked at first."""


@functools.cache
def table() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What torsions chains have; counted with ``python -m benchmarks.torsion_table``.

    Returns
    -------
    dict of str to ndarray, shape=(CELLS,)
        Share of each cell, by the kind of torsion (see `mdbackmap.mapping.chains.kind_of`).
    ndarray, shape=(3, 3)
        How often neighbours have two states (see `state_of`), over the product of their shares.
    """
    with np.load(Path(__file__).with_name("rotamers.npz"), allow_pickle=False) as archive:
        shares = dict(zip(archive["kinds"].tolist(), archive["shares"], strict=True))
        return shares, archive["ratios"]


def cell_of(torsion: np.ndarray) -> np.ndarray:
    """Cell of the table that a torsion in radians lies in."""
    return np.floor((torsion / (2 * math.pi) + 0.5) * CELLS).astype(np.int64) % CELLS


def state_of(torsion: np.ndarray) -> np.ndarray:
    """0, 1, 2 for gauche-, anti and gauche+; radians."""
    torsion = np.remainder(torsion + math.pi, 2 * math.pi) - math.pi
    return np.where(np.abs(torsion) < GAUCHE, np.sign(torsion), 0).astype(np.int64) + 1


def frames(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return axes (as columns, (..., 3, 3)) and origin of the frame of three atoms in a row."""
    first, second, third = points.unbind(-2)
    x = torch.nn.functional.normalize(third - second, dim=-1)
    z = torch.nn.functional.normalize(torch.linalg.cross(second - first, x), dim=-1)
    return torch.stack([x, torch.linalg.cross(z, x), z], dim=-1), third


@dataclass(frozen=True, eq=False)
class Block:
    """Atoms of one bead of a chain.

    Attributes
    ----------
    kinds : sequence of str, length n
        Of the torsion that each atom ends.
    fixed : ndarray, shape=(n,), radians
        The torsion where chemistry fixes it, else NaN.
    length, angle : ndarray, shape=(n,), Å, radians
        Of the bond and the angle that each atom ends.
    weights : ndarray, shape=(n,)
        With which the atoms place the bead; their sum is 1.
    """

    kinds: Sequence[str]
    fixed: np.ndarray
    length: np.ndarray
    angle: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, eq=False)
class Conformers:
    """Conformers of a block, in the frame of the three atoms before it.

    Attributes
    ----------
    atoms : Tensor, shape=(k, n, 3), Å
    bead : Tensor, shape=(k, 3), Å
    turn : Tensor, shape=(k, 3, 3); shift : Tensor, shape=(k, 3), Å
        Frame of the last three atoms.
    favour : Tensor, shape=(3, k)
        Logarithm of how the state of the torsion before favours each.
    last : Tensor, shape=(k, 3)
        State of the last torsion, one of three.
    """

    atoms: Tensor
    bead: Tensor
    turn: Tensor
    shift: Tensor
    favour: Tensor
    last: Tensor


def conformers(block: Block, number: int) -> Conformers:
    """Draw conformers of a block, evenly spread over what is likely (a Sobol sequence)."""
    n = len(block.kinds)
    dice = qmc.Sobol(2 * n, scramble=True, rng=0).random(number).clip(1e-6, 1 - 1e-6)
    points = torch.zeros(number, n + 3, 3, dtype=torch.float64)
    points[:, 0] = torch.tensor([-2.0, 1.4, 0.0])
    points[:, 1] = torch.tensor([-1.5, 0.0, 0.0])
    state = np.ones((n, number), dtype=np.int64)
    for k in range(n):
        if np.isnan(block.fixed[k]):
            before = state[k - 1] if k and _minds(block, k) else None
            torsion = _draw(_shares(block.kinds[k]), before, dice[:, 2 * k])
        else:
            torsion = block.fixed[k] + TWIST * norm.ppf(dice[:, 2 * k])
        angle = block.angle[k] + BEND * norm.ppf(dice[:, 2 * k + 1])
        state[k] = state_of(torsion)
        turn, shift = frames(points[:, k : k + 3])
        way = [-np.cos(angle), np.sin(angle) * np.cos(torsion), np.sin(angle) * np.sin(torsion)]
        step = torch.from_numpy(block.length[k] * np.stack(way, axis=-1))
        points[:, k + 3] = shift + torch.einsum("kij,kj->ki", turn, step)
    turn, shift = frames(points[:, -3:])
    atoms = points[:, 3:]
    bead = torch.einsum("n,knd->kd", torch.from_numpy(block.weights), atoms)
    favour = np.log(table()[1][:, state[0]]) if _minds(block, 0) else np.zeros((3, number))
    return Conformers(
        atoms.float(), bead.float(), turn.float(), shift.float(),
        torch.from_numpy(favour).float(), torch.eye(3)[torch.from_numpy(state[-1])],
    )  # fmt: skip


def _shares(kind: str) -> np.ndarray:
    shares, _ = table()
    if kind in shares:
        return shares[kind]
    flat = {"CD", "CO"} & set(kind.split("-")[1:3])
    return shares["CD-CD-CT-CT" if flat else "CT-CT-CT-CT"]


def _minds(block: Block, k: int) -> bool:
    """Whether a torsion minds its neighbour: gauche+ and gauche- do not follow one another."""
    own, before = block.kinds[k], block.kinds[max(k - 1, 0)]
    return all(kind.split("-")[1:3] == ["CT", "CT"] for kind in (own, before))


def _draw(shares: np.ndarray, before: np.ndarray | None, dice: np.ndarray) -> np.ndarray:
    """Torsions, radians, from uniform numbers."""
    edges = np.arange(CELLS + 1) * (2 * math.pi / CELLS) - math.pi
    row, rows = np.zeros(len(dice), dtype=np.int64), shares[None]
    if before is not None:
        row, rows = before, shares * table()[1][:, state_of(edges[:-1] + math.pi / CELLS)]
    result = np.empty(len(dice))
    for k, share in enumerate(rows):
        total = np.append(0.0, np.cumsum(share))
        result[row == k] = np.interp(dice[row == k], total / total[-1], edges)
    return result


class ChainSampler:
    """Draws chains of one kind, many molecules at once.

    Parameters
    ----------
    blocks : sequence of Block
        In order; each starts where the one before ends.
    fit : sequence of float, Å
        Standard deviation per axis that is allowed each block's bead while chains grow.
    hold : float, Å
        The same at the end, when a chain may flex.
    candidates, particles : int
        Size of the libraries, and chains grown per molecule.
    """

    def __init__(
        self, blocks: Sequence[Block], fit: Sequence[float], *, hold: float = 0.05,
        candidates: int = CANDIDATES, particles: int = PARTICLES,
    ) -> None:  # fmt: skip
        self.candidates, self.particles = candidates, particles
        self._flexer = _Flexer(blocks, hold)
        self.variances = torch.tensor([slack**2 for slack in fit])
        self._steps: list[_Step] = []
        for block, slack in reversed(list(zip(blocks, fit, strict=True))):
            self._steps.insert(0, _Step(conformers(block, candidates), slack**2, self._steps[:1]))

    def __call__(self, anchors: Tensor, beads: Tensor, dice: Tensor) -> Tensor:
        """Draw one chain per molecule.

        Parameters
        ----------
        anchors : Tensor, shape=(m, 3, 3), float32, Å
            The three atoms before each chain; molecules must be whole.
        beads : Tensor, shape=(m, n_blocks, 3), float32, Å
        dice : Tensor, shape=(m, n_blocks), float32
            Uniform random numbers.

        Returns
        -------
        Tensor, shape=(m, n_atoms, 3), Å
        """
        size = max(1, AT_ONCE // (self.particles * self.candidates))
        pieces = zip(*(table.split(size) for table in (anchors, beads, dice)), strict=True)
        chains = torch.cat(spread(lambda piece: self._pick(*piece), list(pieces)))
        pieces = zip(chains.split(MANY), beads.split(MANY), strict=True)
        return torch.cat(spread(lambda piece: self._flexer(*piece), list(pieces)))

    def _pick(self, anchors: Tensor, beads: Tensor, dice: Tensor) -> Tensor:
        """Grow chains, and keep one per molecule; those that must flex less have better chances."""
        grown = self._grow(anchors, beads, dice)
        before = anchors[:, None].expand(-1, self.particles, -1, -1)
        grown = torch.cat([before, grown], dim=2)
        chance = self._flexer.chance(
            grown.flatten(0, 1), beads.repeat_interleave(self.particles, 0), self.variances
        )
        pick = _resample(chance.view(len(beads), -1), dice[:, -1:], 1)[:, 0]
        return grown[torch.arange(len(beads)), pick]

    def _grow(self, anchors: Tensor, beads: Tensor, dice: Tensor) -> Tensor:
        molecule = torch.arange(len(anchors))[:, None]
        turn, shift = (table[:, None] for table in frames(anchors))
        state = torch.zeros(len(anchors), 1, 3)
        owed = torch.zeros(len(anchors), 1)
        atoms = torch.empty(len(anchors), 1, 0, 3)
        for k, step in enumerate(self._steps):
            ahead = beads[:, None, k : k + step.n_beads]
            chance = step.chance((ahead - shift[:, :, None]) @ turn, state, owed).flatten(1)
            pick = _resample(chance, dice[:, k : k + 1], self.particles)
            parent, own = pick // self.candidates, pick % self.candidates
            turn, shift = turn[molecule, parent], shift[molecule, parent]
            new = step.atoms[own] @ turn.mT + shift[:, :, None]
            atoms = torch.cat([atoms[molecule, parent], new], dim=2)
            shift = shift + (turn @ step.shift[own][..., None])[..., 0]
            turn, state = turn @ step.turn[own], step.last[own]
            owed = step.looked_ahead(turn, shift, beads[:, None, k + 1 :])
        return atoms


class _Flexer:
    """Bends and twists chains a little, within their rotamers, until their beads fit."""

    def __init__(self, blocks: Sequence[Block], hold: float) -> None:
        self.hold = hold
        size = np.cumsum([0] + [len(b.kinds) for b in blocks])
        weights = torch.zeros(len(blocks), int(size[-1]))
        for k, block in enumerate(blocks):
            weights[k, size[k] : size[k + 1]] = torch.from_numpy(block.weights)
        self.weights = weights
        fixed = np.concatenate([np.isfinite(b.fixed) for b in blocks])
        twist = torch.from_numpy(np.where(fixed, TWIST, WITHIN)).float()
        self.spread = torch.stack([twist, torch.full_like(twist, BEND)], dim=1)

    def __call__(self, points: Tensor, beads: Tensor) -> Tensor:
        """Return the atoms after the first three; points (m, 3 + n, 3), beads (m, b, 3), Å."""
        points = points.clone()
        moved = torch.zeros(len(points), self.spread.numel(), 1)
        for _ in range(FLEXES):
            off, slope, normal = self._slopes(points, beads)
            # Gauss-Newton: what has been moved before is paid for once.
            wanted = slope.mT @ torch.linalg.solve(normal, off + slope @ moved)
            step = (wanted - moved).clamp_(-2, 2)
            moved += step
            self._turn(points, step.view(len(points), -1, 2) * self.spread)
        return points[:, 3:]

    def chance(self, points: Tensor, beads: Tensor, variances: Tensor) -> Tensor:
        """Logarithm of how likely the beads are for chains that may flex, over for stiff ones."""
        off, _, normal = self._slopes(points, beads)
        factor = torch.linalg.cholesky(normal)
        cost = torch.linalg.solve_triangular(factor, off, upper=False).square().sum((1, 2)) / 2
        stiff = (off.view(len(off), -1, 3).square().sum(-1) / (2 * variances)).sum(1)
        return stiff - cost - factor.diagonal(dim1=1, dim2=2).log().sum(1)

    def _slopes(self, points: Tensor, beads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How far beads are off (m, 3 b, 1), their change with every angle, and its square.

        Every atom's bond is turned about itself and its angle opened at the atom before, with
        all that follows, by so many standard deviations.
        """
        axes = self._axes(points) * self.spread[..., None]
        atoms, pivot = points[:, 3:], points[:, 2:-1]
        share = self.weights.flip(1).cumsum(1).flip(1)
        moment = (self.weights[..., None] * atoms[:, None]).flip(2).cumsum(2).flip(2)
        arm = moment - share[..., None] * pivot[:, None]
        slope = _crossed(axes.unbind(-1), arm.unbind(-1)).flatten(3).flatten(1, 2)
        m, b = arm.shape[:2]
        off = (beads - moment[:, :, 0]).reshape(m, 3 * b, 1)
        normal = slope @ slope.mT
        normal.diagonal(dim1=1, dim2=2).add_(self.hold**2)
        return off, slope, normal

    def _turn(self, points: Tensor, angles: Tensor) -> None:
        """Turn in place by angles (m, n, 2), radians, from the first atom on."""
        turns = _rotations((angles[..., None] * self._axes(points)).sum(2))
        # Each turn is about axes that the turns before have turned, so all act in their order.
        step = 1
        while step < turns.shape[1]:
            turns[:, step:] = turns[:, :-step] @ turns[:, step:]
            step *= 2
        bonds = points.diff(dim=1)[:, 2:]
        points[:, 3:] = points[:, 2:3] + (turns @ bonds[..., None])[..., 0].cumsum(1)

    @staticmethod
    def _axes(points: Tensor) -> Tensor:
        """Unit vectors of twist and bend of every atom after the third, shape (m, n, 2, 3)."""
        bonds = torch.nn.functional.normalize(points.diff(dim=1), dim=-1)[:, 1:]
        bend = torch.linalg.cross(bonds[:, :-1], bonds[:, 1:], dim=-1)
        return torch.stack([bonds[:, :-1], torch.nn.functional.normalize(bend, dim=-1)], dim=2)


def _crossed(axes: Sequence[Tensor], arms: Sequence[Tensor]) -> Tensor:
    """Cross products of axes (m, n, 2) and arms (m, b, n), by component, (m, b, 3, n, 2)."""
    (m, b, n), kinds = arms[0].shape, axes[0].shape[2]
    result = torch.empty(m, b, 3, n, kinds)
    axes, arms = [x[:, None] for x in axes], [x[..., None] for x in arms]
    for k in range(3):
        one, other = (k + 1) % 3, (k + 2) % 3
        torch.mul(axes[one], arms[other], out=result[:, :, k])
        result[:, :, k].addcmul_(axes[other], arms[one], value=-1)
    return result


def _rotations(turn: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3) (Rodrigues)."""
    size = turn.norm(dim=-1, keepdim=True).clamp_(min=1e-9)
    axis, size = turn / size, size[..., None]
    zero = torch.zeros_like(axis[..., 0])
    x, y, z = axis.unbind(-1)
    sideways = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    along = axis[..., :, None] * axis[..., None, :]
    return along + torch.cos(size) * (torch.eye(3) - along) + torch.sin(size) * sideways


class _Step:
    """One block of a chain, and where its bead and the beads after it are to be expected."""

    def __init__(self, own: Conformers, variance: float, later: Sequence[_Step]) -> None:
        self.atoms, self.turn, self.shift, self.last = own.atoms, own.turn, own.shift, own.last
        self._later = [g for step in later for g in step.expected][:AHEAD]
        number = len(own.bead)
        own_spread = (variance * torch.eye(3)).expand(number, 3, 3)
        means = [own.bead, *(own.shift + own.turn @ g.mean for g in self._later)]
        spreads = [own_spread, *(own.turn @ g.spread @ own.turn.mT for g in self._later)]
        self.n_beads = len(means)
        # Small numbers: rounding would otherwise decide between conformers.
        self._centre = torch.stack([mean.mean(0) for mean in means])
        near = [mean - centre for mean, centre in zip(means, self._centre, strict=True)]
        self._table = torch.cat(
            [*map(_quadratic, near, spreads), own.favour, torch.ones(1, number)]
        )
        # Seen from before this block.
        self.expected = [
            _Gaussian(mean.mean(0), torch.cov(mean.T) + spread.mean(0))
            for mean, spread in zip(means, spreads, strict=True)
        ]

    def chance(self, beads: Tensor, state: Tensor, owed: Tensor) -> Tensor:
        """Logarithm of the weights of all conformers after each particle, shape (m, p, k).

        Parameters
        ----------
        beads : Tensor, shape=(m, p, b, 3)
            This block's and later ones, in the frame of each particle.
        state : Tensor, shape=(m, p, 3); owed : Tensor, shape=(m, p)
        """
        x, y, z = (beads - self._centre).unbind(-1)
        terms = [x * x, y * y, z * z, x * y, x * z, y * z, x, y, z, torch.ones_like(x)]
        known = torch.stack(terms, dim=-1).flatten(2)
        return torch.cat([known, state, -owed[..., None]], dim=-1) @ self._table

    def looked_ahead(self, turn: Tensor, shift: Tensor, beads: Tensor) -> Tensor:
        """What later beads added to the weights; the next step judges them itself."""
        total = torch.zeros(shift.shape[:2])
        for k, later in enumerate(self._later):
            off = ((beads[:, :, k] - shift)[..., None, :] @ turn)[..., 0, :] - later.mean
            total -= ((off @ later.inverse) * off).sum(-1) / 2
        return total


@dataclass(frozen=True)
class _Gaussian:
    """Where a bead is expected: mean (3,), covariance (3, 3)."""

    mean: Tensor
    spread: Tensor

    @functools.cached_property
    def inverse(self) -> Tensor:
        return torch.linalg.inv(self.spread)


def _quadratic(mean: Tensor, spread: Tensor) -> Tensor:
    """Coefficients of log exp(-(b - mean) spread^-1 (b - mean) / 2), shape (10, k).

    Of x², y², z², xy, xz, yz, x, y, z and 1, for every mean (k, 3) and covariance (k, 3, 3).
    """
    inverse = torch.linalg.inv(spread)
    pull = (inverse @ mean[..., None])[..., 0]
    first, second = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    return torch.cat([
        -inverse.diagonal(dim1=1, dim2=2) / 2, -inverse[:, first, second], pull,
        -(mean * pull).sum(1, keepdim=True) / 2,
    ], dim=1).T  # fmt: skip


def _resample(chance: Tensor, dice: Tensor, number: int) -> Tensor:
    """Systematic resampling: ``number`` columns per row, in proportion to their weights.

    The logarithms of the weights are lost.
    """
    # Numbers next to nothing would be thirty times slower to work out.
    weight = chance.sub_(chance.amax(1, keepdim=True)).clamp_(min=-30).exp_()
    # Sums of groups first: running sums are slow, and most of them are asked for by nobody.
    groups = weight.unflatten(1, (-1, math.gcd(weight.shape[1], GROUP)))
    sums = groups.sum(-1)
    total = torch.cumsum(sums, dim=1)
    place = (dice + torch.arange(number)) * (total[:, -1:] / number)
    group = torch.searchsorted(total, place).clamp_(max=sums.shape[1] - 1)
    place += (sums - total).gather(1, group)
    inside = groups[torch.arange(len(groups))[:, None], group].cumsum(-1)
    own = torch.searchsorted(inside, place[..., None])[..., 0].clamp_(max=groups.shape[2] - 1)
    return group * groups.shape[2] + own
