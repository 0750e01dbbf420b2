"""Atomistic files to systems with complete residues, for training and for `map`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mdbackmap.io.files import frame, open_universe, particles
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import System, from_atoms


def systems(
    topology: Path,
    trajectory: Path | None,
    library: Library,
    *,
    stride: int = 1,
    residue: str | None = None,
) -> Iterator[tuple[System, np.ndarray, np.ndarray | None, np.ndarray]]:
    """Yield system, positions (n_atoms, 3), box and usable atoms of every frame of a file.

    Residues with missing atoms are left out; atoms with occupancy 0 are not usable, unless all
    are of 0, as some programs (OpenMM's mmCIF) write them.
    """
    universe = open_universe(topology, trajectory)
    table = particles(universe, str(topology))
    if residue:
        table = dataclasses.replace(table, resnames=np.full(len(table), residue))
    occupancy = getattr(universe.atoms, "occupancies", np.ones(len(table)))
    system = from_atoms(table, library, frame(universe.trajectory.ts), complete=True)
    usable = (occupancy[system.atom_source] > 0) | ~np.any(occupancy)
    for timestep in universe.trajectory[::stride]:
        now = frame(timestep)
        yield system, now.positions[system.atom_source].astype(np.float64), now.box, usable
