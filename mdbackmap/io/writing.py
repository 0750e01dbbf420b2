"""Writing trajectories and topologies: beside first, renamed when all is complete."""

from __future__ import annotations

import bz2
import functools
import gzip
import importlib.util
import io
import os
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import MDAnalysis as mda
import numpy as np
from MDAnalysis.coordinates.H5MD import H5MDWriter
from MDAnalysis.lib.formats.libdcd import DCDFile

from mdbackmap.errors import FrameError, OutputFileError
from mdbackmap.io.cif import CIFText
from mdbackmap.io.files import free_quietly, quiet_destructors, quiet_guesses
from mdbackmap.io.pdb import PDBText, refuse_long_names
from mdbackmap.structure import AtomTable, Frame

PDB = (".pdb", ".ent", ".pdb.gz", ".pdb.bz2")
CIF = (".cif", ".mmcif", ".cif.gz", ".mmcif.gz")
CHAINED = (".xtc", ".trr", ".dcd", *PDB, *CIF)
"""Formats whose frames lie one behind the other, so that files are joined by joining bytes."""
NAMELESS = (".xtc", ".trr", ".dcd", ".nc", ".ncdf", ".h5md")
"""Formats that hold no names."""
FOR_TRAJECTORIES = (*CHAINED, ".nc", ".ncdf", ".h5md", ".xyz")
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
        if str(output).lower().endswith(PDB + CIF + _GRO):
            return None
        topology = Path(output).with_suffix(".pdb")
    if Path(topology) == Path(output):
        return None
    _check_format(topology, 1, inputs)
    return Path(topology)


def _check_format(path: str | Path, n_frames: int, inputs: tuple[Path, ...]) -> None:
    check_place(path, inputs)
    name = str(path).lower()
    if name.endswith(".h5md") and importlib.util.find_spec("h5py") is None:
        raise OutputFileError(f"{path}: needs h5py (pip install h5py); or use xtc, trr or dcd")
    if name.endswith(FOR_TRAJECTORIES):
        return
    number, known = f"{n_frames} frames", "xtc, trr, dcd, h5md, nc, pdb or cif"
    if n_frames == 1:
        number, known = "one frame", f"gro, {known}"
        if name.endswith(_GRO) or _is_known_to_mdanalysis(name):
            return
    raise OutputFileError(f"{path}: no format known by this suffix holds {number}; use {known}")


def _is_known_to_mdanalysis(name: str) -> bool:
    try:
        mda.coordinates.core.get_writer_for(name, multiframe=False)
    except (TypeError, ValueError):
        return False
    return True


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
        Final name, for messages.
    part : Path
        The name to write under; its suffix decides on the format.
    universe : MDAnalysis.Universe
        With coordinates in memory; its positions are set frame by frame.
    n_frames : int
        Frames of the whole trajectory.
    dt : float, ps
        Time between them, for formats that state it once.
    bare : bool
        Write frames that are a piece of a longer file: of a text without its head and its tail.

    Raises
    ------
    OutputFileError
        From any method; names the file.
    """

    def __init__(
        self, path: str | Path, part: Path, universe: mda.Universe, n_frames: int = 1,
        dt: float = 1.0, *, bare: bool = False,
    ) -> None:  # fmt: skip
        self.path, self.part, self.universe = Path(path), part, universe
        self.n_frames, self.dt, self.bare, self.written = n_frames, dt, bare, 0
        self._writer: TextFile | H5MDFile | mda.coordinates.base.WriterBase | None = None

    def write(self, frame: Frame, positions: np.ndarray, place: int | None = None) -> None:
        """Write positions (n_atoms, 3), Å, with the box and time of ``frame``.

        ``place`` is its number in the trajectory that is written; by default frames count from 0.
        """
        ts = self.universe.trajectory.ts
        ts.positions = positions
        ts.triclinic_dimensions = frame.box
        ts.frame = self.written if place is None else place
        ts.data["time"] = frame.time
        try:
            with quiet_guesses():
                self._writer = self._writer or self._open(frame)
                self._writer.write(self.universe.atoms)
        except (OSError, ValueError, RuntimeError) as error:
            free_quietly(error)
            raise OutputFileError(
                f"{self.path}: frame {frame.index} cannot be written ({error})"
            ) from error
        self.written += 1

    def _open(self, first: Frame) -> TextFile | H5MDFile | mda.coordinates.base.WriterBase:
        name, many = str(self.part), self.n_frames > 1
        if text := text_format(name):
            return TextFile(self.part, text(self.universe, models=many), bare=self.bare)
        if name.lower().endswith(_GRO):
            refuse_long_names(self.universe, 5)
        n_atoms, options = len(self.universe.atoms), {}
        if name.lower().endswith(".h5md"):
            return H5MDFile(self.part, n_atoms)
        if name.lower().endswith(".dcd"):
            # The format counts time in steps from the start: the finer, the more exact.
            start = round(first.time / self.dt * _DCD_STEPS)
            options = {"dt": self.dt, "nsavc": _DCD_STEPS, "istart": start}
        return mda.Writer(name, n_atoms=n_atoms, multiframe=many, **options)

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
        except (OSError, ValueError, RuntimeError) as error:
            free_quietly(error)
            with quiet_destructors():
                self._writer = None
            # An earlier error is the one to report.
            if kind is None:
                raise OutputFileError(f"{self.path}: cannot be written ({error})") from error


class H5MDFile:
    """Writes frames as H5MD.

    Parameters
    ----------
    path : Path
    n_atoms : int
    """

    def __init__(self, path: Path, n_atoms: int) -> None:
        self._file = _PatientFile(path, "w+")
        self._writer = H5MDWriter(
            self._file, n_atoms, timeunit="ps", lengthunit="Angstrom", creator="mdbackmap"
        )

    def write(self, atoms: mda.AtomGroup) -> None:
        """Write the current frame."""
        self._writer.write(atoms)
        self._file.refuse()

    def close(self) -> None:
        """Close the file."""
        with self._file:
            if self._writer.h5md_file:
                # MDAnalysis' own close does nothing.
                self._writer.h5md_file.close()
        self._file.refuse()


class _PatientFile(io.FileIO):
    """A file that keeps to itself what went wrong, until it is asked.

    HDF5 cannot close a file that it cannot write to, and ends the process over it.
    """

    failed: OSError | None = None

    def write(self, data: memoryview) -> int:
        """Write all of some bytes."""
        left = memoryview(data).cast("B")
        try:
            while left:
                left = left[super().write(left) :]
        except OSError as error:
            self.failed = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Cut the file, or make it longer."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.failed = error
            return size or 0

    def refuse(self) -> None:
        """Raise what went wrong."""
        if self.failed:
            raise self.failed


class TextFile:
    """Writes frames in words, compressed where the name says so.

    Parameters
    ----------
    path : Path
    text : PDBText or CIFText
    bare : bool
        Write frames only.
    """

    def __init__(self, path: Path, text: PDBText | CIFText, *, bare: bool) -> None:
        self.text, self.bare, self._empty = text, bare, True
        self._squeeze = squeezer(path)
        self._file = path.open("wb")

    def write(self, atoms: mda.AtomGroup) -> None:
        """Write the current frame."""
        ts = atoms.universe.trajectory.ts
        if self._empty and not self.bare:
            self._say(self.text.head(ts.dimensions))
        self._empty = False
        self._say(self.text.frame(ts.frame, ts.positions, ts.dimensions))

    def _say(self, words: str) -> None:
        self._file.write(self._squeeze(words.encode()) if words else b"")

    def close(self) -> None:
        """Write what stands behind the frames and close the file."""
        with self._file:
            if not (self.bare or self._file.closed):
                self._say(self.text.tail())


def text_format(path: str | Path) -> type[PDBText] | type[CIFText] | None:
    """Return what writes a file of this name in words; None for other formats."""
    name = str(path).lower()
    return PDBText if name.endswith(PDB) else CIFText if name.endswith(CIF) else None


def squeezer(path: str | Path) -> Callable[[bytes], bytes]:
    """Return what compresses a piece of a file of this name; pieces may follow one another."""
    # Without a time of its own, the same frames make the same file.
    known = {".gz": functools.partial(gzip.compress, mtime=0), ".bz2": bz2.compress}
    return known.get(Path(path).suffix.lower(), bytes)


def fits_pdb(atoms: AtomTable) -> bool:
    """Whether a PDB file has room for the names of atoms and residues."""
    return max(np.char.str_len(own).max() for own in (atoms.names, atoms.resnames)) <= 4


def check_names(path: str | Path, universe: mda.Universe) -> None:
    """Refuse, before any work, names that a format cannot hold.

    Raises
    ------
    OutputFileError
    """
    name = str(path).lower()
    columns = 4 if name.endswith(PDB) else 5 if name.endswith(_GRO) else None
    try:
        if columns:
            refuse_long_names(universe, columns)
    except ValueError as error:
        raise OutputFileError(
            f"{path}: cannot be written ({error})\n  Hint: .cif has room for any name."
        ) from error


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
    written : int
    left_out : list of int
        Numbers of the frames that failed.
    messages : list of str
        Why, of the first few.
    notes : list of dict
        What there is to say of frames that were written, such as how they relaxed.
    """

    written: int = 0
    left_out: list[int] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    notes: list[dict] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """How many frames failed."""
        return len(self.left_out)

    def leave_out(self, frame: int, why: FrameError) -> None:
        """Count a frame that failed."""
        self.left_out.append(frame)
        self.messages = [*self.messages, str(why)][:_KEPT]

    def add(self, later: Outcome) -> None:
        """Count what became of frames behind these."""
        self.written += later.written
        self.left_out += later.left_out
        self.messages = [*self.messages, *later.messages][:_KEPT]
        self.notes += later.notes

    def report(self, say: Callable[[str], None]) -> None:
        """Say which frames were left out."""
        for message in self.messages:
            say(f"  left out: {message}")
        if self.failed > len(self.messages):
            say(f"  ... and {self.failed - len(self.messages)} more frames")
