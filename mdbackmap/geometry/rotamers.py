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
from scipy.special import ndtri

from mdbackmap.geometry.growth import QUADRATIC, Flex, Steps, fitted, grown
from mdbackmap.lanes import LANES
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
PIECE = 64
"""Molecules that a thread works out at a time."""


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


def frames(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return axes (as columns, (..., 3, 3)) and origin of the frame of three atoms in a row."""
    first, second, third = np.moveaxis(points, -2, 0)
    x = _unit(third - second)
    z = _unit(np.cross(second - first, x))
    return np.stack([x, np.cross(z, x), z], axis=-1), third


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


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
    atoms : ndarray, shape=(k, n, 3), Å
    bead : ndarray, shape=(k, 3), Å
    turn : ndarray, shape=(k, 3, 3); shift : ndarray, shape=(k, 3), Å
        Frame of the last three atoms.
    favour : ndarray, shape=(3, k)
        Logarithm of how the state of the torsion before favours each.
    last : ndarray, shape=(k,), int64
        State of the last torsion.
    """

    atoms: np.ndarray
    bead: np.ndarray
    turn: np.ndarray
    shift: np.ndarray
    favour: np.ndarray
    last: np.ndarray


def conformers(block: Block, number: int) -> Conformers:
    """Draw conformers of a block, evenly spread over what is likely (a Sobol sequence)."""
    # It takes a second to import, and proteins do without.
    from scipy.stats import qmc

    n = len(block.kinds)
    dice = qmc.Sobol(2 * n, scramble=True, rng=0).random(number).clip(1e-6, 1 - 1e-6)
    points = np.zeros((number, n + 3, 3))
    points[:, 0] = [-2.0, 1.4, 0.0]
    points[:, 1] = [-1.5, 0.0, 0.0]
    state = np.ones((n, number), dtype=np.int64)
    for k in range(n):
        if np.isnan(block.fixed[k]):
            before = state[k - 1] if k and _minds(block, k) else None
            torsion = _draw(_shares(block.kinds[k]), before, dice[:, 2 * k])
        else:
            torsion = block.fixed[k] + TWIST * ndtri(dice[:, 2 * k])
        angle = block.angle[k] + BEND * ndtri(dice[:, 2 * k + 1])
        state[k] = state_of(torsion)
        turn, shift = frames(points[:, k : k + 3])
        way = [-np.cos(angle), np.sin(angle) * np.cos(torsion), np.sin(angle) * np.sin(torsion)]
        step = block.length[k] * np.stack(way, axis=-1)
        points[:, k + 3] = shift + np.einsum("kij,kj->ki", turn, step)
    turn, shift = frames(points[:, -3:])
    atoms = points[:, 3:]
    bead = np.einsum("n,knd->kd", block.weights, atoms)
    favour = np.log(table()[1][:, state[0]]) if _minds(block, 0) else np.zeros((3, number))
    return Conformers(atoms, bead, turn, shift, favour, state[-1])


def _shares(kind: str) -> np.ndarray:
    shares, _ = table()
    if kind in shares:
        return shares[kind]
    flat = {"CD", "CO"} & set(kind.split("-")[1:3])
    return shares["CD-CD-CT-CT" if flat else "CT-CT-CT-CT"]


def _minds(block: Block, k: int) -> bool:
    """Whether a torsion minds its neighbour: gauche+ and gauche- do not follow one another."""
    return all(map(_about_saturated, (block.kinds[k], block.kinds[max(k - 1, 0)])))


def _about_saturated(kind: str) -> bool:
    """Whether a torsion is about a bond of two saturated carbons."""
    return kind.split("-")[1:3] == ["CT", "CT"]


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
        # Lanes are filled up.
        self.particles = -(-particles // LANES) * LANES
        self.variances = np.array([slack**2 for slack in fit], dtype=np.float32)
        self.flex = _flex(blocks, hold)
        steps: list[_Step] = []
        for block, slack in reversed(list(zip(blocks, fit, strict=True))):
            steps.insert(0, _Step(conformers(block, candidates), slack**2, steps[:1]))
        self.steps = _stacked(steps)

    def __call__(
        self, anchors: np.ndarray, beads: np.ndarray, dice: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw one chain per molecule.

        Parameters
        ----------
        anchors : ndarray, shape=(m, 3, 3), Å
            The three atoms before each chain; molecules must be whole.
        beads : ndarray, shape=(m, n_blocks, 3), Å
        dice : ndarray, shape=(m, n_blocks)
            Uniform random numbers.

        Returns
        -------
        ndarray, shape=(m, n_atoms, 3), float32, Å
        ndarray, shape=(m,), bool
            Chains that could not be made to fit without an eclipsed torsion.
        """
        given = [np.ascontiguousarray(table, dtype=np.float32) for table in (anchors, beads, dice)]

        def work(start: int) -> tuple[np.ndarray, np.ndarray]:
            anchors, beads, dice = (table[start : start + PIECE] for table in given)
            points = grown(
                anchors, beads, dice, self.steps, self.flex, self.variances, self.particles
            )
            return fitted(points, beads, self.flex, FLEXES)

        pieces = spread(work, range(0, len(anchors), PIECE))
        points, eclipsed = map(np.concatenate, zip(*pieces, strict=True))
        return points, eclipsed


def _flex(blocks: Sequence[Block], hold: float) -> Flex:
    stop = np.cumsum([len(block.kinds) for block in blocks])
    weights = np.zeros((len(blocks), int(stop[-1])), dtype=np.float32)
    for row, block, end in zip(weights, blocks, stop.tolist(), strict=True):
        row[end - len(block.kinds) : end] = block.weights
    fixed = np.concatenate([np.isfinite(block.fixed) for block in blocks])
    spread = np.stack([np.where(fixed, TWIST, WITHIN), np.full(len(fixed), BEND)], axis=1)
    staggered = [_about_saturated(kind) for block in blocks for kind in block.kinds]
    return Flex(weights, stop, spread.astype(np.float32), float(hold), np.array(staggered))


class _Step:
    """One block of a chain, and where its bead and the beads after it are to be expected."""

    def __init__(self, own: Conformers, variance: float, later: Sequence[_Step]) -> None:
        self.own = own
        self.later = [g for step in later for g in step.expected][:AHEAD]
        number = len(own.bead)
        own_spread = np.broadcast_to(variance * np.eye(3), (number, 3, 3))
        means = [own.bead, *(own.shift + own.turn @ g.mean for g in self.later)]
        spreads = [own_spread, *(own.turn @ g.spread @ own.turn.mT for g in self.later)]
        # Small numbers: rounding would otherwise decide between conformers.
        self.centres = [mean.mean(0) for mean in means]
        near = [mean - centre for mean, centre in zip(means, self.centres, strict=True)]
        terms = list(map(_quadratic, near, spreads))
        self.table = np.concatenate([term[:QUADRATIC] for term in terms])
        self.favour = own.favour + sum(term[QUADRATIC] for term in terms)
        # Seen from before this block.
        self.expected = [
            _Gaussian(mean.mean(0), np.cov(mean.T) + spread.mean(0))
            for mean, spread in zip(means, spreads, strict=True)
        ]


def _stacked(steps: Sequence[_Step]) -> Steps:
    """All steps of a chain in arrays, filled up to the largest."""
    candidates = len(steps[0].own.last)
    beads = max(len(step.centres) for step in steps)

    def stacked(tables: Sequence[Sequence[np.ndarray]], shape: tuple[int, ...]) -> np.ndarray:
        result = np.zeros((len(steps), *shape), dtype=np.float32)
        for row, own in zip(result, tables, strict=True):
            if len(own):
                row[: len(own)] = own
        return result

    most = max(step.own.atoms.shape[1] for step in steps)
    atoms = stacked([np.moveaxis(step.own.atoms, 1, 0) for step in steps], (most, candidates, 3))
    lanes = candidates // LANES, LANES
    table = stacked([step.table for step in steps], (QUADRATIC * beads, candidates))
    favour = stacked([step.favour for step in steps], (3, candidates))
    return Steps(
        size=np.array([step.own.atoms.shape[1] for step in steps]),
        n_beads=np.array([len(step.centres) for step in steps]),
        atoms=np.ascontiguousarray(np.moveaxis(atoms, 1, 2)),
        turn=stacked([step.own.turn for step in steps], (candidates, 3, 3)),
        shift=stacked([step.own.shift for step in steps], (candidates, 3)),
        last=np.array([step.own.last for step in steps]),
        centre=stacked([step.centres for step in steps], (beads, 3)),
        table=table.reshape(*table.shape[:2], *lanes),
        favour=favour.reshape(*favour.shape[:2], *lanes),
        mean=stacked([[g.mean for g in step.later] for step in steps], (beads - 1, 3)),
        inverse=stacked([[np.linalg.inv(g.spread) for g in step.later] for step in steps],
                        (beads - 1, 3, 3)),
    )  # fmt: skip


@dataclass(frozen=True)
class _Gaussian:
    """Where a bead is expected: mean (3,), covariance (3, 3)."""

    mean: np.ndarray
    spread: np.ndarray


def _quadratic(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Coefficients of log exp(-(b - mean) spread^-1 (b - mean) / 2), shape (10, k).

    Of x², y², z², xy, xz, yz, x, y, z and 1, for every mean (k, 3) and covariance (k, 3, 3).
    """
    inverse = np.linalg.inv(spread)
    pull = np.einsum("kij,kj->ki", inverse, mean)
    diagonal = np.einsum("kii->ki", inverse)
    return np.concatenate([
        -diagonal / 2, -inverse[:, [0, 0, 1], [1, 2, 2]], pull,
        -(mean * pull).sum(1, keepdims=True) / 2,
    ], axis=1).T  # fmt: skip
