"""The forward mapping of atomistic frames, hydrogens counted as each mapping says."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from mdbackmap.errors import FrameError
from mdbackmap.geometry.boxes import Unwrapper, minimum_image, spanning_tree
from mdbackmap.io.source import CGSource
from mdbackmap.mapping.chemistry import MASS, masses
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import System, from_atoms
from mdbackmap.structure import Frame, Particles, split_residues


class ForwardMapper:
    """Maps frames of one atomistic source to beads; the weights are worked out once.

    Parameters
    ----------
    source : CGSource
        The atomistic files.
    library : Library

    Attributes
    ----------
    system : System
        Its ``beads`` name the beads, in output order.
    """

    def __init__(self, source: CGSource, library: Library) -> None:
        self.system = from_atoms(source.particles, library, source.usable_frame(), complete=True)
        self.unwrap = Unwrapper(spanning_tree(self.system.atoms.bonds, self.system.n_atoms))
        self.hydrogens, self.heavy = _hydrogens(self.system, source.particles)
        self.weights = self._weights()

    def _weights(self) -> sparse.csr_matrix:
        """Sparse (n_beads, n_atoms + n_hydrogens) weights that sum to 1 over each bead."""
        system, n_found = self.system, len(self.hydrogens)
        specs = [t.spec for t in system.templates]
        residue = system.residue_template[system.atoms.residue]
        by_mass = np.array([s.centre == "mass" for s in specs])[residue]
        own = np.where(by_mass, masses(system.atoms.elements), 1.0)
        light = np.where(by_mass, MASS["H"], 1.0)
        light = light * np.array([s.hydrogens == "counted" for s in specs])[residue]
        expected = np.concatenate([t.n_hydrogens for t in system.templates_of_residues()])
        missing = np.maximum(expected - np.bincount(self.heavy, minlength=system.n_atoms), 0)

        bead, atom = system.members.T
        shares = np.concatenate([t.shares for t in system.templates_of_residues()])
        shape = (system.n_beads, system.n_atoms)
        share = sparse.csr_matrix((shares, _member_order(system)), shape=shape)
        of_heavy = share @ sparse.diags(own + light * missing)
        rows = (light[self.heavy], (self.heavy, np.arange(n_found)))
        of_hydrogens = share @ sparse.csr_matrix(rows, shape=(system.n_atoms, n_found))
        # Beads that sit on one atom keep the weights of the template.
        fixed = np.array([bool(b and b.on) for t in system.templates_of_residues()
                          for b in t.spec.beads.values()])  # fmt: skip
        exact = sparse.csr_matrix((system.weights, (bead, atom)), shape=shape)
        free = sparse.diags((~fixed).astype(float))
        of_heavy = free @ of_heavy + sparse.diags(fixed.astype(float)) @ exact
        both = sparse.hstack([of_heavy, free @ of_hydrogens]).tocsr()
        return sparse.diags(1.0 / np.asarray(both.sum(axis=1)).ravel()) @ both

    def __call__(self, frame: Frame) -> np.ndarray:
        """Return bead positions of a frame, shape (n_beads, 3), float32, Å; molecules whole."""
        heavy = frame.positions[self.system.atom_source].astype(np.float64)
        light = frame.positions[self.hydrogens].astype(np.float64)
        if not (np.isfinite(heavy).all() and np.isfinite(light).all()):
            raise FrameError(f"frame {frame.index}: atoms without a usable position")
        bond = minimum_image(light - heavy[self.heavy], frame.box)
        whole = self.unwrap(heavy, frame.box)
        return (self.weights @ np.concatenate([whole, whole[self.heavy] + bond])).astype(np.float32)


def _member_order(system: System) -> tuple[np.ndarray, np.ndarray]:
    """Beads and atoms of the membership rows, residue by residue."""
    beads, atoms = [], []
    bead_start = atom_start = 0
    for template in system.templates_of_residues():
        beads.append(template.members[:, 0] + bead_start)
        atoms.append(template.members[:, 1] + atom_start)
        bead_start += template.n_beads
        atom_start += template.n_atoms
    return np.concatenate(beads), np.concatenate(atoms)


def _hydrogens(system: System, table: Particles) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the file that are hydrogens the mapping lists, and the atom each belongs to."""
    residue = split_residues(table)
    start = np.searchsorted(residue, np.arange(residue[-1] + 2))
    first = np.flatnonzero(np.diff(system.atoms.residue, prepend=-1))
    rows, atoms = [], []
    for atom, template in zip(first, system.templates_of_residues(), strict=True):
        names = [h for spec in template.spec.atoms.values() for h in spec.hydrogens]
        owner = [k for k, spec in enumerate(template.spec.atoms.values()) for _ in spec.hydrogens]
        here = residue[system.atom_source[atom]]
        found = {str(table.names[r]): r for r in range(start[here], start[here + 1])}
        for name, k in zip(names, owner, strict=True):
            if name in found:
                rows.append(found[name])
                atoms.append(atom + k)
    return np.array(rows, dtype=np.int64), np.array(atoms, dtype=np.int64)
