"""Atomistic structures whose beads lie as a simulation's do.

A coarse-grained force field puts beads elsewhere than the centres of their atoms: bonds are
longer and fluctuate, rings are larger. A network that has seen only mapped structures tears such
residues. Here the beads of a structure are moved until the distances of bonded beads follow what
simulations have, and the atoms follow as far as chemistry lets them: the pairs of simulated beads
and sound atoms that no experiment can give.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mdbackmap.geometry.boxes import Unwrapper
from mdbackmap.geometry.contacts import REACH, ContactRules
from mdbackmap.geometry.idealise import SystemIdealiser
from mdbackmap.graph.neighbours import close_pairs
from mdbackmap.mapping.system import System

SPREAD = (0.1, 0.5)
"""Å per axis; the noise of one copy's beads is drawn between these."""
SWEEPS, HOLD, CONTOUR = 64, 0.1, 0.95
"""Of the idealisation that lets atoms follow their beads."""


@dataclass(frozen=True)
class BeadStatistics:
    """Mean and spread, Å, of the distance of bonded beads in simulations, by kind of pair.

    Kinds are named as by `mdbackmap.geometry.bead_bonds.pair_kinds`.
    """

    distances: dict[str, tuple[float, float]]

    @classmethod
    def measured(
        cls, simulations: Iterable[tuple[System, list[np.ndarray], list[np.ndarray | None]]]
    ) -> BeadStatistics:
        """Measure them.

        Parameters
        ----------
        simulations : iterable of (System, beads, boxes)
            Frames of beads, shape (n_beads, 3), Å, in any image, and their boxes (3, 3).
        """
        found: dict[str, list[np.ndarray]] = {}
        for system, frames, boxes in simulations:
            pairs, kinds, code = system.bead_pairs()
            unwrap = Unwrapper(system.bead_parent)
            for beads, box in zip(frames, boxes, strict=True):
                length = _lengths(unwrap(beads, box), pairs)
                for k, kind in enumerate(kinds.tolist()):
                    found.setdefault(kind, []).append(length[code == k])
        joined = {kind: np.concatenate(values) for kind, values in found.items()}
        return cls({k: (float(v.mean()), float(v.std())) for k, v in joined.items()})


class Simulator:
    """Makes copies of one system with beads as in simulations.

    Parameters
    ----------
    system : System
    statistics : BeadStatistics
        Kinds it does not know keep their mapped lengths.
    """

    def __init__(self, system: System, statistics: BeadStatistics) -> None:
        self.system = system
        self.pairs, kinds, code = system.bead_pairs()
        known = [statistics.distances.get(name, (np.nan, np.nan)) for name in kinds.tolist()]
        self.mean, self.spread = np.array(known).reshape(-1, 2)[code].T
        self.inside = system.bead_residue[self.pairs[:, 0]] == system.bead_residue[self.pairs[:, 1]]
        self.idealiser = SystemIdealiser(
            system.constraints, system.n_atoms, system.members, system.weights, system.n_beads,
            system.backbone, sweeps=SWEEPS, hold=HOLD, contour=CONTOUR,
        )  # fmt: skip
        self.rules = ContactRules(system.constraints, system.atoms.elements)
        self.rate = 1.0 / np.maximum(np.bincount(self.pairs.ravel(), minlength=system.n_beads), 1)

    def __call__(
        self, positions: np.ndarray, box: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return atoms (n_atoms, 3) and beads (n_beads, 3) of one copy, Å.

        Parameters
        ----------
        positions : ndarray, shape=(n_atoms, 3), Å
            Molecules whole.
        """
        system = self.system
        mapped = system.map_positions(positions)
        beads = mapped + rng.normal(0, rng.uniform(*SPREAD), mapped.shape)
        beads = self._bonded(beads, self._wanted(mapped, rng))
        start = positions + (beads - mapped)[system.atom_bead]
        near = self.rules.between(*close_pairs(start, box, REACH, self.rules.bonded))
        (atoms,) = self.idealiser(start[None], beads[None], [near])
        return atoms.astype(np.float64), beads

    def _wanted(self, mapped: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Distances of the copy's pairs, Å.

        Inside a residue they are drawn anew. Across residues they tell the fold (3.1 Å in a
        helix, 3.6 in a strand), so that they only fluctuate.
        """
        length = _lengths(mapped, self.pairs)
        chance = self.spread * rng.normal(size=len(length))
        wanted = np.where(self.inside, self.mean + chance, length + 0.5 * chance)
        return np.where(np.isfinite(wanted), np.maximum(wanted, 1.0), length)

    def _bonded(self, beads: np.ndarray, wanted: np.ndarray, sweeps: int = 60) -> np.ndarray:
        """Move beads until their pairs have the wanted distances."""
        first, second = self.pairs.T
        moved, n = beads.copy(), len(beads)
        for _ in range(sweeps):
            gap = moved[second] - moved[first]
            length = np.maximum(np.linalg.norm(gap, axis=1), 1e-3)
            push = 0.8 * gap * ((length - wanted) / length)[:, None]
            for axis in range(3):
                step = np.bincount(first, push[:, axis], minlength=n)
                step -= np.bincount(second, push[:, axis], minlength=n)
                moved[:, axis] += step * self.rate
        return moved


def _lengths(beads: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    return np.linalg.norm(beads[pairs[:, 1]] - beads[pairs[:, 0]], axis=1)
