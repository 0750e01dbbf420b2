"""Opening structures and trajectories; MDAnalysis objects in, plain arrays out."""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import MDAnalysis as mda
import numpy as np

from mdbackmap.errors import FrameError, InputFileError
from mdbackmap.geometry.boxes import box_from_dimensions
from mdbackmap.io import whole
from mdbackmap.structure import Frame, Particles

_log = logging.getLogger("mdbackmap")


@contextmanager
def quiet_guesses() -> Iterator[None]:
    """Keep MDAnalysis' warnings about what a file does not hold to the log file.

    CG files have no masses and elements, some no times; nothing here uses the guesses.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for item in caught:
        _log.debug("MDAnalysis: %s", item.message)


def check_file(path: str | Path) -> None:
    """Refuse what is no file, is empty, or is visibly not what its name says.

    Raises
    ------
    InputFileError
    """
    where = Path(path)
    if where.is_dir():
        raise InputFileError(f"{path}: is a folder")
    if not where.is_file():
        raise InputFileError(f"{path}: no such file")
    try:
        if where.stat().st_size == 0:
            raise InputFileError(f"{path}: the file is empty")
        if where.suffix.lower() in (".xtc", ".trr"):
            whole.check_start(where)
    except PermissionError as error:
        raise InputFileError(f"{path}: cannot be read ({error.strerror})") from error


def open_universe(topology: str | Path, trajectory: str | Path | None = None) -> mda.Universe:
    """Open files as an MDAnalysis Universe, guessing nothing.

    Raises
    ------
    InputFileError
        One message that names the file and what went wrong.
    """
    files = [str(topology)] + ([str(trajectory)] if trajectory else [])
    for name in files:
        check_file(name)
    # MDAnalysis takes any .top for one of Amber's.
    kind = {"topology_format": "ITP"} if _is_gromacs(files[0]) else {}
    try:
        with quiet_guesses():
            return mda.Universe(*files, to_guess=(), **kind)
    except Exception as error:  # MDAnalysis' parsers raise any builtin on damaged files
        reason = _reason(error)
        free_quietly(error)
        raise InputFileError(_explain(files, reason)) from error


def _is_gromacs(topology: str) -> bool:
    """Tell whether a .top file is one of GROMACS."""
    if not topology.lower().endswith(".top"):
        return False
    with Path(topology).open("rb") as handle:
        return not handle.read(200).lstrip().startswith(b"%VERSION")


def _explain(files: list[str], reason: str) -> str:
    """Say which of the files is to blame."""
    if len(files) == 1:
        return _unread(files[0], reason)
    topology, trajectory = files
    try:
        n_named = len(open_universe(topology).atoms)
    except InputFileError as error:
        return str(error)
    if "same number of atoms" in reason:
        n_held = n_particles(trajectory)
        return (f"{trajectory}: holds {n_held} particles, but {topology} names {n_named}\n"
                "  Hint: give the topology of exactly these particles with -s.")  # fmt: skip
    return _unread(trajectory, reason)


def _unread(path: str, reason: str) -> str:
    hint = "it is damaged, or of another kind than its name says"
    if reason.startswith("no format"):
        hint = "its name must end as its format's files do, such as .xtc or .gro"
    return f"{path}: cannot be read: {reason}\n  Hint: {hint}."


def n_particles(trajectory: str | Path) -> int:
    """Return the number of particles in a trajectory's frames.

    Raises
    ------
    InputFileError
        The file cannot be read, or is no trajectory.
    """
    check_file(trajectory)
    try:
        reader = mda.coordinates.core.get_reader_for(str(trajectory))
        return int(reader.parse_n_atoms(str(trajectory)))
    except Exception as error:  # any builtin on damaged or unknown files
        reason = _reason(error)
        free_quietly(error)
        raise InputFileError(
            f"{trajectory}: cannot be read as a trajectory ({reason})\n"
            "  Hint: give the topology with -s FILE."
        ) from error


def _reason(error: Exception) -> str:
    """What went wrong, in one line: of MDAnalysis' messages the part that says so."""
    lines = str(error).split("Error: ", 1)[-1].split()
    text = " ".join(lines) or type(error).__name__
    unknown = re.match(r"(?:Unknown coordinate trajectory format )?'(\w*)' (?:isn't a|for )", text)
    if unknown:
        return f"no format is known by the suffix '{unknown[1].lower()}'"
    return text[:300]


@contextmanager
def quiet_destructors() -> Iterator[None]:
    """Let what is freed here not complain.

    A reader or writer that could not be opened has nothing to close, one that could not be closed
    tries again, and both say so with a traceback.
    """
    before = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = before


def free_quietly(error: BaseException) -> None:
    """Free what failed code left in the traceback, without its destructors' complaints."""
    with quiet_destructors():
        here: BaseException | None = error
        while here is not None:
            traceback.clear_frames(here.__traceback__)
            here = here.__context__


def particles(universe: mda.Universe, source: str | None = None) -> Particles:
    """Read names of all particles of a Universe into arrays.

    Raises
    ------
    InputFileError
        The topology names no particles or no residues.
    """
    atoms = universe.atoms
    source = source or str(universe.filename or "Universe")
    missing = [what for what in ("names", "resnames") if not hasattr(atoms, what)]
    if missing:
        raise InputFileError(
            f"{source}: the file holds no {' and no '.join(missing)}, so it cannot say what its "
            "particles are; use a .tpr, .gro or .pdb"
        )
    segids = atoms.segids if hasattr(atoms, "segids") else np.full(len(atoms), "")
    if hasattr(atoms, "chainIDs") and all(s in ("", "SYSTEM") for s in set(segids)):
        segids = atoms.chainIDs
    bonds = bond_table(universe)
    return Particles(
        names=np.asarray(atoms.names, dtype=str),
        resnames=np.asarray(atoms.resnames, dtype=str),
        resids=np.asarray(atoms.resids, dtype=np.int64),
        segids=np.asarray(segids, dtype=str),
        source=source,
        bonds=bonds if bonds is not None and len(bonds) else None,
    )


def bond_table(universe: mda.Universe) -> np.ndarray | None:
    """Return the bonds of a Universe, shape (m, 2), int64; None where it has no list of them.

    Read from the topology: ``Universe.bonds`` sorts them anew, seconds for a million.
    """
    bonds = getattr(universe._topology, "bonds", None)
    return None if bonds is None else np.array(bonds.values, dtype=np.int64).reshape(-1, 2)


def frame(timestep: mda.coordinates.timestep.Timestep) -> Frame:
    """Copy an MDAnalysis Timestep into a `Frame`.

    Raises
    ------
    FrameError
        The box is no cell.
    """
    data = timestep.data
    try:
        box = box_from_dimensions(timestep.dimensions)
    except ValueError as error:
        raise FrameError(f"frame {timestep.frame}: {error}") from error
    # Timestep.time would warn for files without times; frames then count as 1 ps apart.
    time = data.get("time", timestep.frame * data.get("dt", 1.0)) + data.get("time_offset", 0.0)
    return Frame(
        positions=np.array(timestep.positions, dtype=np.float32),
        box=box,
        time=float(time),
        index=int(timestep.frame),
    )
