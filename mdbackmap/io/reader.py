"""The all-atom reader: wraps a coarse-grained trajectory and backmaps its frames on demand.

MDAnalysis fixes the number of atoms of a trajectory when it is opened, so a transformation that
returns a larger Timestep is unsound. This reader owns an all-atom Timestep which it fills in
place; the network runs when positions are first asked for.
"""

from __future__ import annotations

import os
from typing import Any

import MDAnalysis as mda
import numpy as np
import torch
from MDAnalysis.coordinates.base import ReaderBase
from MDAnalysis.coordinates.timestep import Timestep
from MDAnalysis.lib.util import store_init_arguments

from mdbackmap.errors import StructureError
from mdbackmap.geometry.boxes import box_from_dimensions
from mdbackmap.mapping.system import System
from mdbackmap.pipeline import Backmapper

# torch's thread pool does not survive a fork; a child that uses it would wait for ever.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class LazyTimestep(Timestep):
    """A Timestep whose positions are worked out when they are first asked for."""

    pending: Any = None

    def fill_with(self, work: Any) -> None:
        """Set a callable that returns positions, shape (n_atoms, 3), Å."""
        self.has_positions = True
        self.pending = work

    @property
    def positions(self) -> np.ndarray:
        """Positions of all atoms, shape (n_atoms, 3), Å."""
        if self.pending is not None:
            work, self.pending = self.pending, None
            self._pos[:] = work()
        return Timestep.positions.fget(self)

    @positions.setter
    def positions(self, new: np.ndarray) -> None:
        self.pending = None
        Timestep.positions.fset(self, new)

    def __getstate__(self) -> dict:
        if self.pending is not None:
            _ = self.positions
        return self.__dict__


class BackmapReader(ReaderBase):
    """All-atom frames of a coarse-grained trajectory.

    Parameters
    ----------
    filename : str
        Name of the CG trajectory, for show.
    cg : MDAnalysis.Universe
        Copied, unless ``live``.
    system : System
    backmapper : Backmapper, optional
        Without one the reader only sets the shape and leaves the bead positions in
        ``ts.data["beads"]``; a `mdbackmap.Backmap` transformation fills the atoms.
    live : bool
        Follow (and drive) the given Universe itself instead of a copy.
    """

    format = "MDBACKMAP"
    units = {"time": "ps", "length": "Angstrom"}  # noqa: RUF012 (MDAnalysis' interface)
    _Timestep = LazyTimestep

    @store_init_arguments
    def __init__(
        self, filename: str, *, cg: mda.Universe, system: System,
        backmapper: Backmapper | None = None, live: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(filename, **kwargs)
        self.cg = cg if live else cg.copy()
        self.live = live
        self.system, self.backmapper = system, backmapper
        self.n_atoms = system.n_atoms
        self.ts = self._Timestep(self.n_atoms, **self._ts_kwargs)
        self.take(self.cg.trajectory.ts)

    @property
    def n_frames(self) -> int:
        """Frames of the CG trajectory."""
        return self.cg.trajectory.n_frames

    @property
    def dt(self) -> float:
        """Time between frames, ps."""
        return self.cg.trajectory.dt

    def take(self, cg: Timestep) -> Timestep:
        """Fill the Timestep from a CG Timestep; the network runs only when asked for positions."""
        ts = self.ts
        ts.frame = cg.frame
        ts.data.update({k: v for k, v in cg.data.items() if k != "beads"})
        ts.dimensions = cg.dimensions
        beads = cg.positions[self.system.bead_source].copy()
        ts.data["beads"] = beads
        if self.backmapper is None:
            ts.fill_with(self._unfilled)
        else:
            backmapper, frame = self.backmapper, int(cg.frame)
            box = box_from_dimensions(cg.dimensions)
            ts.fill_with(lambda: backmapper(beads, box, frame))
        return ts

    def _unfilled(self) -> np.ndarray:
        raise StructureError(
            "this Universe has no atoms yet: add the transformation that fills them with "
            "universe.trajectory.add_transformations(mdbackmap.Backmap(...))"
        )

    def _read_next_timestep(self, ts: Timestep | None = None) -> Timestep:
        try:
            return self.take(self.cg.trajectory.next())
        except StopIteration as error:
            raise EOFError from error

    def _read_frame(self, frame: int) -> Timestep:
        return self.take(self.cg.trajectory[frame])

    def _reopen(self) -> None:
        self.cg.trajectory.rewind()
        self.take(self.cg.trajectory.ts)
        self.ts.frame = -1

    def rewind(self) -> Timestep:
        """Go to the first frame."""
        self._read_frame_with_aux(0)
        return self.ts

    def close(self) -> None:
        """Close the CG trajectory, unless it belongs to somebody else."""
        if not self.live:
            self.cg.trajectory.close()
