"""The all-atom reader: wraps a coarse-grained trajectory and backmaps its frames on demand.

MDAnalysis fixes the number of atoms of a trajectory when it is opened, so a transformation that
returns a larger Timestep is unsound. This reader owns an all-atom Timestep which it fills in
place; the network runs when positions are first asked for.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable
from typing import Any

import MDAnalysis as mda
import numpy as np
import torch
from MDAnalysis.coordinates.base import ReaderBase
from MDAnalysis.coordinates.timestep import Timestep
from MDAnalysis.lib.util import store_init_arguments

from mdbackmap.errors import FrameError, StructureError
from mdbackmap.geometry.boxes import box_from_dimensions
from mdbackmap.hydrogens.atoms import AllAtoms
from mdbackmap.hydrogens.protonation import Protonation
from mdbackmap.mapping.system import System
from mdbackmap.pipeline import Backmapper
from mdbackmap.structure import AtomTable

if hasattr(os, "register_at_fork"):
    # torch's thread pool does not survive a fork; a child that uses it would wait for ever.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def independent(universe: mda.Universe) -> mda.Universe:
    """Return a copy of a Universe that follows nothing of the original.

    ``Universe.copy`` shares transformations, and with them the AtomGroups of the original that
    they look at; a pickled copy has its own. Transformations that cannot be pickled are shared.
    """
    if universe.trajectory.transformations:
        try:
            return pickle.loads(pickle.dumps(universe))  # noqa: S301 (made on this line)
        except (pickle.PicklingError, AttributeError, TypeError):
            pass
    return universe.copy()


def later(backmapper: Backmapper, beads: np.ndarray, ts: Timestep) -> Callable[[], np.ndarray]:
    """Return the work of backmapping one frame, fit to be pickled.

    Parameters
    ----------
    beads : ndarray, shape=(n_beads, 3), Å
        Must not change afterwards.
    ts : Timestep
        Consulted for box and frame number now.

    Returns
    -------
    callable
        Returns positions, shape (n_atoms, 3), Å; raises FrameError.
    """
    dimensions = None if ts.dimensions is None else ts.dimensions.copy()
    return functools.partial(_backmapped, backmapper, beads, dimensions, int(ts.frame))


def _backmapped(
    backmapper: Backmapper, beads: np.ndarray, dimensions: np.ndarray | None, frame: int
) -> np.ndarray:
    try:
        box = box_from_dimensions(dimensions)
    except ValueError as error:
        raise FrameError(f"frame {frame}: {error}") from error
    return backmapper(beads, box, frame)


def _unfilled() -> np.ndarray:
    raise StructureError(
        "this Universe has no atoms yet: add the transformation that fills them with "
        "universe.trajectory.add_transformations(mdbackmap.Backmap(...))"
    )


class Carrier:
    """What a transformation must know to fill the atoms of a Universe that has no model.

    Parameters
    ----------
    system : System
    protonation : Protonation or None
        None: heavy atoms only.
    beads : list of ndarray, shape=(n_beads, 3), Å
        Some frames, to learn bead bond lengths from.
    boxes : list of ndarray, shape=(3, 3), Å, or None
    """

    def __init__(
        self, system: System, protonation: Protonation | None, beads: list[np.ndarray], boxes: list
    ) -> None:
        self.system, self.protonation = system, protonation
        self.beads, self.boxes = beads, boxes

    @functools.cached_property
    def atoms(self) -> AtomTable:
        """What the Universe holds."""
        with_hydrogens = self.protonation is not None
        atoms = self.system.atoms
        if with_hydrogens:
            atoms = AllAtoms.of(self.system, self.protonation).table
        solvent = self.system.solvent
        return solvent.behind(atoms, hydrogens=with_hydrogens) if solvent else atoms

    def __deepcopy__(self, memo: dict) -> Carrier:
        return self


class LazyTimestep(Timestep):
    """A Timestep whose positions are worked out when they are first asked for."""

    pending: Callable[[], np.ndarray] | None = None

    def fill_with(self, work: Callable[[], np.ndarray]) -> None:
        """Set a callable, fit to be pickled, that returns positions, shape (n_atoms, 3), Å."""
        self.has_positions = True
        self.pending = work

    @property
    def positions(self) -> np.ndarray:
        """Positions of all atoms, shape (n_atoms, 3), Å."""
        if self.pending is not None:
            # Work that fails stays pending, so that it fails again and old positions never show.
            self.positions = self._work()
        return Timestep.positions.__get__(self)

    @positions.setter
    def positions(self, new: np.ndarray) -> None:
        Timestep.positions.__set__(self, new)
        self.pending = None

    def _work(self) -> np.ndarray:
        try:
            return self.pending()
        except AttributeError as error:
            # MDAnalysis would take it for "this Timestep has no positions".
            raise RuntimeError(f"frame {self.frame}: {error}") from error

    def __deepcopy__(self, memo: dict | None = None) -> LazyTimestep:
        work, self.pending = self.pending, None
        try:
            new = self.from_timestep(self)
        finally:
            self.pending = work
        new.pending = work
        return new

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "pending": self.pending}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.pending = state["pending"]


class BackmapReader(ReaderBase):
    """All-atom frames of a coarse-grained trajectory.

    Parameters
    ----------
    filename : str
        Name of the CG trajectory, for show.
    cg : MDAnalysis.Universe
        The reader moves through its trajectory and closes it at the end; see ``live``.
    system : System
        Laid out over all beads of ``cg``.
    backmapper : Backmapper, optional
        Without one the reader only sets the shape and leaves the bead positions in
        ``ts.data["beads"]``; a `mdbackmap.Backmap` transformation fills the atoms.
    carrier : Carrier, optional
        For that transformation; found in ``ts.data["carrier"]``.
    live : bool
        ``cg`` belongs to somebody else: follow and drive it. A copy of a live reader, or one
        that was pickled, has a CG Universe of its own and is live no more.
    """

    format = "MDBACKMAP"
    units = {"time": "ps", "length": "Angstrom"}  # noqa: RUF012 (MDAnalysis' interface)
    _Timestep = LazyTimestep
    cg: mda.Universe | None = None
    live = False

    @store_init_arguments
    def __init__(
        self, filename: str, *, cg: mda.Universe, system: System,
        backmapper: Backmapper | None = None, carrier: Carrier | None = None, live: bool = False,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(filename, **kwargs)
        self.cg, self.live = cg, live
        self.system, self.backmapper = system, backmapper
        self.n_atoms = len((backmapper or carrier or system).atoms)
        self.ts = self._Timestep(self.n_atoms, **self._ts_kwargs)
        if carrier is not None:
            self.ts.data["carrier"] = carrier
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
        beads = cg.positions[self.system.file_beads]
        ts.data["beads"] = beads
        ts.fill_with(later(self.backmapper, beads, cg) if self.backmapper else _unfilled)
        return ts

    def _read_next_timestep(self, ts: Timestep | None = None) -> Timestep:
        # By number: readers of one frame know no next, and a live Universe may have been moved.
        if self.ts.frame + 1 >= self.n_frames:
            raise EOFError
        return self._read_frame(self.ts.frame + 1)

    def _read_frame(self, frame: int) -> Timestep:
        return self.take(self.cg.trajectory[frame])

    def _reopen(self) -> None:
        self.ts.frame = -1

    def rewind(self) -> Timestep:
        """Go to the first frame."""
        self._read_frame_with_aux(0)
        return self.ts

    def copy(self) -> BackmapReader:
        """Return an independent reader over a copy of the CG Universe."""
        kwargs, self._kwargs = self._kwargs, {
            **self._kwargs, "cg": independent(self.cg), "live": False,
        }  # fmt: skip
        try:
            return super().copy()
        finally:
            self._kwargs = kwargs

    def __getstate__(self) -> dict:
        kwargs = {**self._kwargs, "live": False}
        return {**self.__dict__, "live": False, "_kwargs": kwargs}

    def close(self) -> None:
        """Close the CG trajectory, unless it belongs to somebody else."""
        if self.cg is not None and not self.live:
            self.cg.trajectory.close()
