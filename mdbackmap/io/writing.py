"""Writing trajectories and topologies: beside first, renamed when all is complete."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import MDAnalysis as mda
import numpy as np
from MDAnalysis.lib.formats.libdcd import DCDFile

from mdbackmap.errors import FrameError, OutputFileError
from mdbackmap.io.files import free_quietly, quiet_guesses
from mdbackmap.io.pdb import PDBFile, refuse_long_names
from mdbackmap.structure import Frame

_PDB = (".pdb", ".ent", ".pdb.gz", ".pdb.bz2")
_GRO = (".gro", ".gro.gz", ".gro.bz2")
_DCD_STEPS = 1000
"""Steps that a .dcd file is said to have between frames."""
_KEPT = 20
"""Messages of failed frames that are kept."""


def plan_outputs(
    output: str | Path, topology: str | Path | None, n_frames: int, inputs: Iterable[Path] = ()
) -> Path | None:
    """Say where the topology of an output goes, and refuse what cannot be written.

    Parameters
    ----------
    output : str or Path
        Trajectory to write.
    topology : str or Path, optional
        Where the user wants the topology; default: beside the output, as PDB.
    n_frames : int
        Frames of the trajectory.
    inputs : iterable of Path
        Files that must not be written over.

    Returns
    -------
    Path or None
        None where the output names its particles itself and no topology was asked for.

    Raises
    ------
    OutputFileError
        Folder missing or not writable, an input file, unknown format, a format for one frame
        only.
    """
    inputs = tuple(inputs)
    _check_format(output, n_frames, inputs)
    if topology is None:
        if str(output).lower().endswith(_PDB + _GRO):
            return None
        topology = Path(output).with_suffix(".pdb")
    if Path(topology) == Path(output):
        return None
    _check_format(topology, 1, inputs)
    return Path(topology)


def _check_format(path: str | Path, n_frames: int, inputs: tuple[Path, ...]) -> None:
    check_place(path, inputs)
    try:
        mda.coordinates.core.get_writer_for(str(path), multiframe=n_frames > 1)
    except (TypeError, ValueError) as error:
        number, known = "one frame", "xtc, trr, dcd, pdb or gro"
        if n_frames > 1:
            number, known = f"{n_frames} frames", "xtc, trr, dcd or pdb"
        raise OutputFileError(
            f"{path}: no format known by this suffix holds {number}; use {known}"
        ) from error


def check_place(path: str | Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse a place where no file can be put, or where an input stands.

    Raises
    ------
    OutputFileError
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise OutputFileError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise OutputFileError(f"{path}: is a folder")
    if not os.access(path.parent, os.W_OK):
        raise OutputFileError(f"{path}: the folder {path.parent} cannot be written to")
    for other in inputs:
        if path.exists() and path.samefile(other):
            raise OutputFileError(f"{path}: is an input file; choose another name")


class Parts:
    """Files under passing names, which all get their own when the work is done.

    Use it as a context manager; leaving it by an exception removes them.
    """

    def __init__(self) -> None:
        self._parts: dict[Path, Path] = {}

    def add(self, path: str | Path) -> Path:
        """Return the name to write a file under until it is complete."""
        path = Path(path)
        self._parts[path] = path.with_name(f".part-{uuid.uuid4().hex[:8]}-{path.name}")
        return self._parts[path]

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            if kind is None:
                for path, part in self._parts.items():
                    part.replace(path)
        except OSError as problem:
            raise OutputFileError(f"{path}: cannot be written ({problem})") from problem
        finally:
            for part in self._parts.values():
                part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file, or none.

    Raises
    ------
    OutputFileError
    """
    with Parts() as parts:
        try:
            parts.add(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputFileError(f"{path}: cannot be written ({error})") from error


class FrameWriter:
    """Writes frames of one Universe in any format.

    Parameters
    ----------
    path : str or Path
        Final name; its suffix decides on the format.
    part : Path
        The name to write under.
    universe : MDAnalysis.Universe
        With coordinates in memory; its positions are set frame by frame.
    n_frames : int
        Frames to come.
    dt : float, ps
        Time between them, for formats that state it once.

    Raises
    ------
    OutputFileError
        From any method; names the file.
    """

    def __init__(
        self, path: str | Path, part: Path, universe: mda.Universe, n_frames: int = 1,
        dt: float = 1.0,
    ) -> None:  # fmt: skip
        self.path, self.part, self.universe = Path(path), part, universe
        self.n_frames, self.dt, self.written = n_frames, dt, 0
        self._writer: PDBFile | mda.coordinates.base.WriterBase | None = None

    def write(self, frame: Frame, positions: np.ndarray) -> None:
        """Write positions (n_atoms, 3), Å, with the box and time of ``frame``."""
        ts = self.universe.trajectory.ts
        ts.positions = positions
        ts.triclinic_dimensions = frame.box
        ts.frame = self.written
        ts.data["time"] = frame.time
        try:
            with quiet_guesses():
                self._writer = self._writer or self._open(frame)
                if isinstance(self._writer, PDBFile):
                    self._writer.write(positions, ts.dimensions)
                else:
                    self._writer.write(self.universe.atoms)
        except (OSError, ValueError, RuntimeError) as error:
            free_quietly(error)
            raise OutputFileError(
                f"{self.path}: frame {frame.index} cannot be written ({error})"
            ) from error
        self.written += 1

    def _open(self, first: Frame) -> PDBFile | mda.coordinates.base.WriterBase:
        name = str(self.part)
        if name.lower().endswith(_PDB):
            return PDBFile(name, self.universe, models=self.n_frames > 1)
        if name.lower().endswith(_GRO):
            refuse_long_names(self.universe, 5)
        options = {}
        if name.lower().endswith(".dcd"):
            # The format counts time in steps from the start: the finer, the more exact.
            start = round(first.time / self.dt * _DCD_STEPS)
            options = {"dt": self.dt, "nsavc": _DCD_STEPS, "istart": start}
        n_atoms = len(self.universe.atoms)
        return mda.Writer(name, n_atoms=n_atoms, multiframe=self.n_frames > 1, **options)

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is None:
            return
        try:
            with quiet_guesses():
                self._writer.close()
            if kind is None and self.part.suffix.lower() == ".dcd":
                _check_dcd(self.part, self.written)
        except (OSError, ValueError) as error:
            # An earlier error is the one to report.
            if kind is None:
                raise OutputFileError(f"{self.path}: cannot be written ({error})") from error


def _check_dcd(path: Path, n_frames: int) -> None:
    """Count the frames of a written file: MDAnalysis' DCD writer does not see a full disk.

    Raises
    ------
    OSError
    """
    with DCDFile(str(path)) as file:
        if file.n_frames != n_frames:
            raise OSError(f"only {file.n_frames} of {n_frames} frames are in it; disk full?")


@dataclass
class Outcome:
    """What became of the frames.

    Attributes
    ----------
    written, failed : int
    messages : list of str
        Why frames failed, the first few.
    """

    written: int = 0
    failed: int = 0
    messages: list[str] = field(default_factory=list)

    def report(self, say: Callable[[str], None]) -> None:
        """Say which frames were left out."""
        for message in self.messages:
            say(f"  left out: {message}")
        if self.failed > len(self.messages):
            say(f"  ... and {self.failed - len(self.messages)} more frames")


def write_frames(
    frames: Iterable[int],
    read: Callable[[int], Frame],
    work: Callable[[Frame], np.ndarray],
    universe: mda.Universe,
    output: str | Path,
    topology: str | Path | None,
    *,
    n_frames: int,
    dt: float = 1.0,
) -> Outcome:
    """Write ``work(frame)`` of every frame, and the first also as a topology.

    Frames that raise `FrameError` are left out and counted; on any other error nothing is left
    behind.

    Parameters
    ----------
    frames : iterable of int
        Numbers that ``read`` turns into frames.
    work : callable
        Frame → positions of ``universe``, shape (n_atoms, 3), Å.
    n_frames : int
        How many they are.
    dt : float, ps
        Time between them.

    Raises
    ------
    FrameError
        No frame could be written.
    OutputFileError
    """
    done = Outcome()
    with Parts() as parts:
        with ExitStack() as stack:
            writer = FrameWriter(output, parts.add(output), universe, n_frames, dt)
            writers = [stack.enter_context(writer)]
            if topology:
                named = FrameWriter(topology, parts.add(topology), universe)
                writers.append(stack.enter_context(named))
            for k in frames:
                try:
                    frame = read(k)
                    positions = work(frame)
                except FrameError as error:
                    done.failed += 1
                    if len(done.messages) < _KEPT:
                        done.messages.append(str(error))
                    continue
                for each in writers if not done.written else (writer,):
                    each.write(frame, positions)
                done.written += 1
        if not done.written:
            raise FrameError("no frame could be written:\n" + "\n".join(done.messages[:5]))
    return done
