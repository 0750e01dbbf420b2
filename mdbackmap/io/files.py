"""Opening structures and trajectories; MDAnalysis objects in, plain arrays out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import MDAnalysis as mda
import numpy as np

from mdbackmap.errors import InputFileError
from mdbackmap.geometry.boxes import box_from_dimensions
from mdbackmap.structure import Frame, Particles

_log = logging.getLogger("mdbackmap")


@contextmanager
def quiet_guesses() -> Iterator[None]:
    """Keep MDAnalysis' per-bead warnings about guessed masses and elements to the log file.

    CG files have neither; nothing here uses the guesses.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for item in caught:
        _log.debug("MDAnalysis: %s", item.message)


def open_universe(topology: str | Path, trajectory: str | Path | None = None) -> mda.Universe:
    """Open files as an MDAnalysis Universe, guessing nothing.

    Raises
    ------
    InputFileError
        One message that names the file and what went wrong.
    """
    files = [str(topology)] + ([str(trajectory)] if trajectory else [])
    for name in files:
        path = Path(name)
        if not path.is_file():
            raise InputFileError(f"{name}: no such file")
        if path.stat().st_size == 0:
            raise InputFileError(f"{name}: the file is empty")
    try:
        with quiet_guesses():
            return mda.Universe(*files, to_guess=())
    except InputFileError:
        raise
    except Exception as error:  # MDAnalysis' parsers raise any builtin on damaged files
        counts = _mismatch(files, error)
        raise InputFileError(counts or f"{' with '.join(files)}: cannot be read: "
                             f"{_first_line(error)}") from error  # fmt: skip


def _mismatch(files: list[str], error: Exception) -> str | None:
    if len(files) == 2 and "same number of atoms" in str(error):
        return (f"{files[1]} does not fit {files[0]}: {_first_line(error)}\n"
                "  Hint: give the topology of exactly these particles with -s.")  # fmt: skip
    return None


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def particles(universe: mda.Universe, source: str | None = None) -> Particles:
    """Read names of all particles of a Universe into arrays."""
    atoms = universe.atoms
    segids = atoms.segids if hasattr(atoms, "segids") else np.full(len(atoms), "")
    if hasattr(atoms, "chainIDs") and all(s in ("", "SYSTEM") for s in set(segids)):
        segids = atoms.chainIDs
    bonds = None
    if hasattr(universe, "bonds") and len(universe.bonds):
        bonds = np.asarray(universe.bonds.indices, dtype=np.int64)
    return Particles(
        names=np.asarray(atoms.names, dtype=str),
        resnames=np.asarray(atoms.resnames, dtype=str),
        resids=np.asarray(atoms.resids, dtype=np.int64),
        segids=np.asarray(segids, dtype=str),
        source=source or str(universe.filename or "Universe"),
        bonds=bonds,
    )


def frame(timestep: mda.coordinates.timestep.Timestep) -> Frame:
    """Copy an MDAnalysis Timestep into a `Frame`."""
    data = timestep.data
    # Timestep.time would warn for files without times; frames then count as 1 ps apart.
    time = data.get("time", timestep.frame * data.get("dt", 1.0))
    return Frame(
        positions=np.array(timestep.positions, dtype=np.float32),
        box=box_from_dimensions(timestep.dimensions),
        time=float(time),
        index=int(timestep.frame),
    )
