"""What mappings know of an atom table: ideal geometry and beads, in the table's own indices."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from mdbackmap.geometry.constraints import Constraints
from mdbackmap.mapping.system import System
from mdbackmap.structure import AtomTable


@dataclass(frozen=True, eq=False)
class Reference:
    """Ideal geometry and beads over an atom table.

    Attributes
    ----------
    atoms : AtomTable
        All atoms; may hold more than mappings do, such as hydrogens and water.
    constraints : Constraints
        Of the heavy atoms that have a mapping.
    omegas : ndarray, shape=(m, 4), int64; may_be_cis : ndarray, shape=(m,), bool
        CA C N CA of peptide bonds, and those before proline.
    phi_psi : ndarray, shape=(r, 5), int64
        C N CA C N of residues with both neighbours.
    members, weights : ndarray, shape=(k, 2) and (k,)
        Bead-atom rows and weights: beads = sum of weights x atoms.
    heavy : ndarray, shape=(n_heavy,), int64
        The mapped heavy atoms.
    """

    atoms: AtomTable
    constraints: Constraints
    omegas: np.ndarray
    may_be_cis: np.ndarray
    phi_psi: np.ndarray
    members: np.ndarray
    weights: np.ndarray
    heavy: np.ndarray

    @classmethod
    def of(cls, system: System, atoms: AtomTable, heavy: np.ndarray) -> Reference:
        """Carry what a system knows over to an atom table.

        Parameters
        ----------
        heavy : ndarray, shape=(system.n_atoms,), int64
            Place of each atom of the system in the table.
        """
        ideal = system.constraints
        # Peptides are listed on their own: some are cis.
        other = ~_about(ideal.torsions, system.omegas, system.n_atoms)
        moved = dataclasses.replace(
            ideal, bonds=heavy[ideal.bonds], angles=heavy[ideal.angles],
            volumes=heavy[ideal.volumes], torsions=heavy[ideal.torsions[other]],
            torsion=ideal.torsion[other],
        )  # fmt: skip
        members = np.stack([system.members[:, 0], heavy[system.members[:, 1]]], axis=1)
        return cls(atoms, moved, heavy[system.omegas], system.omega_may_be_cis,
                   heavy[system.backbone.phi_psi], members, system.weights, heavy)  # fmt: skip

    @property
    def n_beads(self) -> int:
        return int(self.members[:, 0].max(initial=-1)) + 1

    def beads_of(self, positions: np.ndarray) -> np.ndarray:
        """Return bead positions of atom positions, shape (n_beads, 3)."""
        beads = np.zeros((self.n_beads, 3))
        np.add.at(beads, self.members[:, 0], self.weights[:, None] * positions[self.members[:, 1]])
        return beads


def _about(rows: np.ndarray, others: np.ndarray, n_atoms: int) -> np.ndarray:
    """Whether the central bond of each row is that of any of the others."""

    def key(torsions: np.ndarray) -> np.ndarray:
        bond = np.sort(torsions[:, 1:3], axis=1)
        return bond[:, 0] * n_atoms + bond[:, 1]

    return np.isin(key(rows), key(others))
