"""The atom list with hydrogens: made once, the same in every frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdbackmap.hydrogens.protonation import Protonation
from mdbackmap.mapping.hydrogens import hydrogen_names
from mdbackmap.mapping.system import System
from mdbackmap.structure import AtomTable, tight


@dataclass(frozen=True, eq=False)
class AllAtoms:
    """Heavy atoms of a system with their hydrogens, each behind the atom that bears it.

    Attributes
    ----------
    table : AtomTable
    heavy : ndarray, shape=(n_heavy,), int64
        Place in ``table`` of each atom of the system.
    hydrogens : ndarray, shape=(n_hydrogens,), int64
        Place in ``table`` of each hydrogen.
    bearers : ndarray, shape=(n_hydrogens,), int64
        Atom of the system, not of ``table``, that bears each hydrogen.
    protonation : Protonation
    """

    table: AtomTable
    heavy: np.ndarray
    hydrogens: np.ndarray
    bearers: np.ndarray
    protonation: Protonation

    @classmethod
    def of(cls, system: System, protonation: Protonation) -> AllAtoms:
        """Name the hydrogens of a system."""
        start = np.searchsorted(system.atoms.residue, np.arange(len(system.residue_template)))
        count = np.zeros(system.n_atoms, dtype=np.int64)
        named = []
        for k, place, residues in protonation.groups(system):
            names = hydrogen_names(system.templates[k], place)
            rows = start[residues][:, None] + np.arange(len(names))
            count[rows] = [len(own) for own in names]
            named.append((residues, [name for own in names for name in own]))
        bearers = np.repeat(np.arange(system.n_atoms), count)
        hydrogens = bearers + 1 + np.arange(len(bearers))
        names = np.zeros(len(bearers), dtype="U16")
        before = np.cumsum(count) - count
        for residues, own in named:
            names[before[start[residues]][:, None] + np.arange(len(own))] = own
        heavy = np.arange(system.n_atoms) + before
        return cls(_table(system.atoms, heavy, hydrogens, bearers, names), heavy, hydrogens,
                   bearers, protonation)  # fmt: skip

    def join(self, heavy: np.ndarray, hydrogens: np.ndarray) -> np.ndarray:
        """Return positions of all atoms from those of the two kinds, shape (n, 3), Å."""
        positions = np.empty((len(self.table), 3), dtype=heavy.dtype)
        positions[self.heavy] = heavy
        positions[self.hydrogens] = hydrogens
        return positions


def _table(
    atoms: AtomTable, heavy: np.ndarray, hydrogens: np.ndarray, bearers: np.ndarray,
    names: np.ndarray,
) -> AtomTable:  # fmt: skip
    source = np.empty(len(heavy) + len(hydrogens), dtype=np.int64)
    source[heavy], source[hydrogens] = np.arange(len(heavy)), bearers
    all_names = atoms.names[source].astype(np.result_type(atoms.names, names))
    elements = atoms.elements[source]
    all_names[hydrogens], elements[hydrogens] = names, "H"
    bonds = np.concatenate([heavy[atoms.bonds], np.stack([heavy[bearers], hydrogens], axis=1)])
    return AtomTable(
        names=tight(all_names), elements=elements, resnames=atoms.resnames[source],
        resids=atoms.resids[source], segids=atoms.segids[source], residue=atoms.residue[source],
        bonds=bonds,
    )  # fmt: skip
