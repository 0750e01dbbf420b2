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
from mdbackmap.mapping.solvent import Solvent
from mdbackmap.mapping.system import CHAIN_LETTERS, System
from mdbackmap.structure import AtomTable, Particles, split_residues


def atom_topology(system: System, atoms: AtomTable | None = None) -> Topology:
    """Return the all-atom topology, with bonds, elements, masses and chain letters.

    Parameters
    ----------
    system : System
    atoms : AtomTable, optional
        What the topology holds of the system's residues; its heavy atoms by default.

    Notes
    -----
    Residues keep the numbers of the file, unless two neighbours could then not be told apart.
    """
    table = system.atoms if atoms is None else atoms
    letters, kind = system.chain_letters, system.residue_kinds
    residue = table.residue
    first = np.flatnonzero(np.diff(residue, prepend=-1))
    if len(first) > len(letters):
        letters, kind = _with_solvent(letters, kind, system.solvent)
    names, segment = np.unique(letters, return_inverse=True)
    n_atoms, n_residues = len(table), len(first)
    kinds = kind[residue]
    resids = _distinct(table.resids[first], table.resnames[first], letters)
    attributes = [
        Atomnames(table.names.astype(object)),
        Elements(np.char.capitalize(table.elements).astype(object)),
        Masses(masses(table.elements)),
        Occupancies(np.ones(n_atoms)),
        Tempfactors(np.zeros(n_atoms)),
        RecordTypes(np.where(kinds == "protein", "ATOM", "HETATM").astype(object)),
        ChainIDs(letters[residue].astype(object)),
        _bonds(table.bonds),
        Resids(resids),
        Resnums(resids),
        Resnames(table.resnames[first].astype(object)),
        ICodes(np.full(n_residues, "", dtype=object)),
        Segids(names.astype(object)),
    ]
    return Topology(n_atoms, n_residues, len(names), attrs=attributes,
                    atom_resindex=residue, residue_segindex=segment)  # fmt: skip


def _bonds(pairs: np.ndarray) -> Bonds:
    """Return bonds (m, 2) as MDAnalysis has them.

    Its constructor looks at the type of every number, which takes longer than all else about a
    large topology; these are known to be whole, and are put in order here.
    """
    bonds = Bonds(())
    bonds.values = list(zip(*np.sort(pairs, axis=1).T.tolist(), strict=True))
    bonds.types = bonds.order = [None] * len(pairs)
    bonds._guessed = [False] * len(pairs)
    return bonds


def _with_solvent(
    letters: np.ndarray, kinds: np.ndarray, solvent: Solvent
) -> tuple[np.ndarray, np.ndarray]:
    """Return chain letters and kinds of residues with those of water and ions behind them.

    Each of the two gets a letter of its own, as long as there are some.
    """
    used = set(letters.tolist())
    free = [letter for letter in CHAIN_LETTERS if letter not in used]
    own = (free * 2)[:2] if free else [CHAIN_LETTERS[-1]] * 2
    numbers = [solvent.n_waters, solvent.n_ions]
    return np.append(letters, np.repeat(own, numbers)), np.append(
        kinds, np.repeat(["solvent", "ion"], numbers)
    )


def _distinct(resids: np.ndarray, resnames: np.ndarray, letters: np.ndarray) -> np.ndarray:
    """Return residue numbers that neighbours of one name and chain never share.

    PDB files hold four digits, so numbers that differ by 10,000 count as the same.
    """
    same = np.diff(resids) % 10000 == 0
    same &= (resnames[1:] == resnames[:-1]) & (letters[1:] == letters[:-1])
    return np.arange(1, len(resids) + 1) if same.any() else resids


def blank_universe(system: System, atoms: AtomTable | None = None) -> mda.Universe:
    """Return the all-atom Universe of a system with one frame in memory, to be filled.

    Parameters as in `atom_topology`.
    """
    universe = mda.Universe(atom_topology(system, atoms), to_guess=())
    universe.load_new(np.zeros((1, len(universe.atoms), 3), dtype=np.float32))
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
