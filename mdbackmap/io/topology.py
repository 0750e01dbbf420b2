"""Output topologies: our atom table as an MDAnalysis Universe."""

from __future__ import annotations

import MDAnalysis as mda
import numpy as np
from MDAnalysis.core.topology import Topology
from MDAnalysis.core.topologyattrs import (
    Atomnames,
    Bonds,
    ChainIDs,
    Elements,
    ICodes,
    Masses,
    Occupancies,
    RecordTypes,
    Resids,
    Resnames,
    Resnums,
    Segids,
    Tempfactors,
)

from mdbackmap.mapping.chemistry import masses
from mdbackmap.mapping.system import System
from mdbackmap.structure import Particles, split_residues

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def chain_letters(system: System) -> np.ndarray:
    """Return a chain letter per residue, shape (n_residues,).

    Protein chains are lettered as the file does where it has single letters, else in order;
    everything that is no polymer shares one letter per kind.
    """
    kinds = system.residue_kinds
    first = np.flatnonzero(np.diff(system.atoms.residue, prepend=-1))
    segids = system.atoms.segids[first]
    polymer = np.array([t.spec.link is not None for t in system.templates])
    polymer = polymer[system.residue_template]
    starts = np.ones(len(kinds), dtype=bool)
    starts[1:] = system.next_residue[:-1] < 0
    if np.all(np.char.str_len(segids) == 1) and np.all(np.char.isalnum(segids)):
        # One letter for chains that each start anew says nothing.
        rises = np.all(np.diff(system.atoms.resids[first][polymer]) >= 0)
        if rises or len(np.unique(segids)) > 1:
            return segids
    chain = np.cumsum(starts & polymer) - 1
    letters = np.array(list(_LETTERS))
    n_chains = int(chain.max(initial=-1)) + 1
    result = letters[np.maximum(chain, 0) % len(letters)]
    others = [kind for kind in ("lipid", "molecule") if (kinds == kind).any()]
    for k, kind in enumerate(others):
        result[(kinds == kind) & ~polymer] = letters[(n_chains + k) % len(letters)]
    return result


def atom_topology(system: System) -> Topology:
    """Return the all-atom topology, with bonds, elements, masses and chain letters.

    Residues keep the numbers of the file, unless two neighbours could then not be told apart.
    """
    table = system.atoms
    letters = chain_letters(system)
    residue = table.residue
    first = np.flatnonzero(np.diff(residue, prepend=-1))
    names, segment = np.unique(letters, return_inverse=True)
    n_atoms, n_residues = len(table), len(first)
    kinds = system.residue_kinds[residue]
    resids = _distinct(table.resids[first], table.resnames[first], letters)
    attributes = [
        Atomnames(table.names.astype(object)),
        Elements(np.char.capitalize(table.elements).astype(object)),
        Masses(masses(table.elements)),
        Occupancies(np.ones(n_atoms)),
        Tempfactors(np.zeros(n_atoms)),
        RecordTypes(np.where(kinds == "protein", "ATOM", "HETATM").astype(object)),
        ChainIDs(letters[residue].astype(object)),
        Bonds([tuple(pair) for pair in table.bonds.tolist()]),
        Resids(resids),
        Resnums(resids),
        Resnames(table.resnames[first].astype(object)),
        ICodes(np.full(n_residues, "", dtype=object)),
        Segids(names.astype(object)),
    ]
    return Topology(n_atoms, n_residues, len(names), attrs=attributes,
                    atom_resindex=residue, residue_segindex=segment)  # fmt: skip


def _distinct(resids: np.ndarray, resnames: np.ndarray, letters: np.ndarray) -> np.ndarray:
    """Return residue numbers that neighbours of one name and chain never share.

    PDB files hold four digits, so numbers that differ by 10,000 count as the same.
    """
    same = np.diff(resids) % 10000 == 0
    same &= (resnames[1:] == resnames[:-1]) & (letters[1:] == letters[:-1])
    return np.arange(1, len(resids) + 1) if same.any() else resids


def blank_universe(system: System) -> mda.Universe:
    """Return the all-atom Universe of a system with one frame in memory, to be filled."""
    universe = mda.Universe(atom_topology(system), to_guess=())
    universe.load_new(np.zeros((1, system.n_atoms, 3), dtype=np.float32))
    return universe


def bead_universe(beads: Particles) -> mda.Universe:
    """Return a Universe of beads with one frame in memory, to be filled."""
    residue = split_residues(beads)
    first = np.flatnonzero(np.diff(residue, prepend=-1))
    universe = mda.Universe.empty(
        len(beads), n_residues=len(first), atom_resindex=residue,
        residue_segindex=np.zeros(len(first), int), trajectory=True,
    )  # fmt: skip
    universe.add_TopologyAttr("names", beads.names)
    universe.add_TopologyAttr("types", beads.names)
    universe.add_TopologyAttr("resnames", beads.resnames[first])
    universe.add_TopologyAttr("resids", beads.resids[first])
    universe.add_TopologyAttr("segids", ["SYSTEM"])
    letters = np.array([s if len(s) == 1 else "" for s in beads.segids])
    universe.add_TopologyAttr("chainIDs", letters)
    universe.add_TopologyAttr("occupancies", np.ones(len(beads)))
    universe.add_TopologyAttr("tempfactors", np.zeros(len(beads)))
    universe.add_TopologyAttr("elements", np.full(len(beads), ""))
    universe.add_TopologyAttr("record_types", np.full(len(beads), "ATOM"))
    return universe
