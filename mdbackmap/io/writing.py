"""Writing trajectories and topologies: beside first, renamed when complete."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from types import TracebackType

import MDAnalysis as mda
import numpy as np

from mdbackmap.errors import OutputFileError
from mdbackmap.io.files import quiet_guesses
from mdbackmap.structure import Frame

MOST_NUMBERED = 99_999
"""Atoms that the fixed columns of PDB and GRO can number."""


def check_output(path: str | Path, n_atoms: int, n_frames: int) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises
    ------
    OutputFileError
        Folder missing or not writable, unknown format, a format for one frame only.
    """
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        raise OutputFileError(f"{path}: the folder {folder} does not exist")
    if path.is_dir():
        raise OutputFileError(f"{path}: is a folder")
    if not os.access(folder, os.W_OK):
        raise OutputFileError(f"{path}: the folder {folder} cannot be written to")
    try:
        writer = mda.coordinates.core.get_writer_for(str(path), multiframe=n_frames > 1)
    except (TypeError, ValueError) as error:
        hint = "xtc, trr, dcd or pdb" if n_frames > 1 else "pdb, gro, xtc or trr"
        raise OutputFileError(
            f"{path}: no writer for {n_frames} frame(s) in this format; use {hint}"
        ) from error
    del writer, n_atoms


class SafeWriter:
    """Writes frames of a Universe to ``NAME.part`` files that get their name when complete.

    Parameters
    ----------
    path : str or Path
    universe : MDAnalysis.Universe
        With coordinates in memory or none; its positions are set frame by frame.
    n_frames : int
        Frames to come; one-frame formats are written as such.

    Use it as a context manager; leaving it by an exception removes the unfinished file.
    """

    def __init__(self, path: str | Path, universe: mda.Universe, n_frames: int) -> None:
        self.path = Path(path)
        self.universe = universe
        tag = f".{uuid.uuid4().hex[:8]}.part"
        self.part = self.path.with_name(f".{self.path.stem}{tag}{self.path.suffix}")
        self.written = 0
        options = {}
        if self.path.suffix.lower() in (".pdb", ".ent"):
            options["bonds"] = "conect" if len(universe.atoms) <= MOST_NUMBERED else None
        with quiet_guesses():
            try:
                self.writer = mda.Writer(
                    str(self.part), n_atoms=len(universe.atoms), multiframe=n_frames > 1, **options
                )
            except (OSError, TypeError, ValueError) as error:
                raise OutputFileError(f"{path}: cannot be written ({error})") from error

    def write(self, frame: Frame, positions: np.ndarray) -> None:
        """Write positions (n_atoms, 3), Å, with the box and time of ``frame``."""
        ts = self.universe.trajectory.ts
        ts.positions = positions
        ts.triclinic_dimensions = frame.box
        ts.frame = self.written
        ts.data["time"] = frame.time
        try:
            with quiet_guesses():
                self.writer.write(self.universe.atoms)
        except (OSError, ValueError) as error:
            raise OutputFileError(
                f"{self.path}: frame {frame.index} cannot be written ({error})"
            ) from error
        self.written += 1

    def __enter__(self) -> SafeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        with quiet_guesses():
            self.writer.close()
        if kind is None and self.written:
            try:
                self.part.replace(self.path)
            except OSError as problem:
                raise OutputFileError(f"{self.path}: cannot be written ({problem})") from problem
        else:
            self.part.unlink(missing_ok=True)
            for sidecar in self.part.parent.glob(f".{self.part.name}_offsets.*"):
                sidecar.unlink()


def write_topology(
    path: str | Path, universe: mda.Universe, frame: Frame, positions: np.ndarray
) -> None:
    """Write one frame as a structure file that names every atom."""
    with SafeWriter(path, universe, 1) as writer:
        writer.write(frame, positions)
