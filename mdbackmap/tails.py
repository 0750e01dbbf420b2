"""The alkyl chains of a system, drawn anew on top of what a network predicts."""

from __future__ import annotations

import math

import numpy as np

from mdbackmap.geometry.rings import near
from mdbackmap.geometry.rotamers import PARTICLES, Block, ChainSampler
from mdbackmap.graph.neighbours import close_pairs
from mdbackmap.mapping.chains import Chain, chains_of
from mdbackmap.mapping.system import System
from mdbackmap.mapping.template import Template

FIT, HOLD = 0.2, 0.05
"""Å per axis that a bead of a chain may be off while it grows, no finer than the libraries are,
and in the end."""
LOOSE = 2.5
"""Times the noise, which is added to the first: force fields stretch some beads' bonds by 1 Å."""
MANY = 64
"""Chains grown per molecule where beads are precise, and few conformers fit them."""
ROOT = 0.3
"""Å per axis, at which the network places the atoms a chain hangs from."""
CROSSED, DRAWS = 1.4, 3
"""Å between atoms of two molecules, nearer than which a chain is drawn again: chains grow blind to
one another, and bonds that cross cannot be taken apart later; and draws at most. Chains that fit
with an eclipsed torsion only are drawn again as well."""


class Tails:
    """Draws the chains of lipids, and of whatever else ends in one; static work is done once.

    Parameters
    ----------
    system : System
    noise : float, Å
        Standard deviation per axis the bead positions are believed to have.
    seed : int
        Another seed is another draw.
    """

    def __init__(self, system: System, noise: float, seed: int) -> None:
        dice = np.random.default_rng(seed)
        self._residue = system.atoms.residue
        self._owner = np.full(system.n_atoms, -1)
        n_chains = 0
        first_atom = np.searchsorted(system.atoms.residue, np.arange(len(system.residue_template)))
        first_bead = np.searchsorted(system.bead_residue, np.arange(len(system.residue_template)))
        self._kinds: list[tuple[ChainSampler, *tuple[np.ndarray, ...]]] = []
        for number, template in enumerate(system.templates):
            here = np.flatnonzero(system.residue_template == number)
            for chain in chains_of(template):
                atoms, anchors = (
                    first_atom[here, None] + own for own in (chain.atoms, chain.anchors)
                )
                beads = first_bead[here, None] + chain.beads
                numbers = dice.random((DRAWS, *beads.shape), dtype=np.float32)
                sampler = _sampler(template, chain, noise)
                self._owner[atoms] = n_chains + np.arange(len(here))[:, None]
                n_chains += len(here)
                self._kinds.append((sampler, anchors, atoms, beads, numbers))

    def __call__(
        self, positions: np.ndarray, beads: np.ndarray, box: np.ndarray | None
    ) -> np.ndarray:
        """Return positions in which the chains are drawn anew.

        Parameters
        ----------
        positions : ndarray, shape=(n_atoms, 3), float32, Å
            Molecules must be whole.
        beads : ndarray, shape=(n_beads, 3), float32, Å
        box : ndarray, shape=(3, 3), Å, or None
        """
        if not self._kinds:
            return positions
        positions = positions.copy()
        wanted = None
        eclipsed = np.zeros(self._owner.max() + 1, dtype=bool)
        for draw in range(DRAWS):
            first = 0
            for sampler, anchors, atoms, own, dice in self._kinds:
                mine = slice(None) if wanted is None else wanted[first : first + len(atoms)]
                strained = eclipsed[first : first + len(atoms)]
                first += len(atoms)
                if wanted is not None and not mine.any():
                    continue
                positions[atoms[mine]], strained[mine] = sampler(
                    positions[anchors[mine]], beads[own[mine]], dice[draw, mine]
                )
            wanted = self._crossed(positions, box, wanted, first) | eclipsed
            if not wanted.any():
                break
        return positions

    def _crossed(
        self, positions: np.ndarray, box: np.ndarray | None, drawn: np.ndarray | None, n_chains: int
    ) -> np.ndarray:
        """Chains that run into another molecule, shape (n_chains,), bool; one of every two."""
        if drawn is None:
            first, second, _ = close_pairs(positions, box, CROSSED)
        else:
            moved = np.flatnonzero(np.append(drawn, False)[self._owner])
            one, other, _ = near(positions[moved], positions, box, CROSSED)
            first, second = np.sort(np.stack([moved[one], other]), axis=0)
        apart = self._residue[first] != self._residue[second]
        one, other = self._owner[first[apart]], self._owner[second[apart]]
        crossed = np.zeros(n_chains + 1, dtype=bool)
        crossed[np.where(other < 0, one, other)] = True
        return crossed[:-1]


def _sampler(template: Template, chain: Chain, noise: float) -> ChainSampler:
    bead, atom = template.members.T
    blocks, fit = [], []
    for here, own in zip(chain.blocks, chain.beads.tolist(), strict=True):
        weight = dict(zip(atom[bead == own].tolist(), template.weights[bead == own], strict=True))
        weights = np.array([weight[a] for a in chain.atoms[here].tolist()])
        blocks.append(Block(
            chain.kinds[here], np.radians(chain.fixed[here]), chain.length[here],
            np.radians(chain.angle[here]), weights / weights.sum(),
        ))  # fmt: skip
        fit.append(math.hypot(FIT, LOOSE * noise, 0.0 if fit else ROOT))
    particles = PARTICLES if noise else MANY
    return ChainSampler(blocks, fit, hold=max(HOLD, noise), particles=particles)
