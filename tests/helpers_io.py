"""Running the command line within a test, and small files to run it on."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import MDAnalysis as mda
import numpy as np
from mdbackmap.cli import main
from mdbackmap.io.files import quiet_guesses
from mdbackmap.models import checkpoint

DATA = Path(__file__).parent / "data"
TUTORIALS = Path(__file__).parents[1] / "tutorials" / "data"
TPR, XTC = TUTORIALS / "ubiquitin.tpr", TUTORIALS / "ubiquitin.xtc"
GRO, MEMBRANE = DATA / "membrane.gro", DATA / "membrane.xtc"
DRY = {"hydrogens": False, "solvent": "drop"}
"""Options of tests that need no more than a few atoms."""
XTC_PRECISION = 0.011
"""Å by which a rounded coordinate may be off: half of 0.001 nm per rounding, and float32."""


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str


def run(*words: object) -> Result:
    """Run ``mdbackmap WORDS`` in this process, as the console script does.

    ``convert`` leaves out water unless told otherwise: most inputs have 15 times more of it than of
    what a test looks at.
    """
    if words[:1] == ("convert",) and "--solvent" not in words:
        words = (*words, "--solvent", "drop")
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["mdbackmap", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main.main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = argv
    return Result(code, out.getvalue(), err.getvalue())


def ok(*words: object) -> str:
    """Run a command that must succeed without a word on stderr; return what it said."""
    result = run(*words)
    assert (result.code, result.err) == (0, ""), result
    return result.out


def fails(*words: object, code: int = 1) -> str:
    """Run a command that must fail with one message; return it."""
    result = run(*words)
    assert result.code == code, result
    assert "Traceback" not in result.err, result
    assert result.out == "", result
    if code == 1:
        assert result.err.startswith("error: ")
        assert result.err.count("error:") == 1
    return result.err


def save(model: checkpoint.Checkpoint, folder: Path) -> Path:
    """Write a checkpoint into a folder; return the file."""
    checkpoint.save(model, folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


def load(*files: Path) -> mda.Universe:
    """Open files with MDAnalysis itself."""
    with quiet_guesses():
        return mda.Universe(*map(str, files), to_guess=())


def write_top(universe: mda.Universe, path: Path) -> None:
    """Write a GROMACS topology of one molecule that is all of a Universe."""
    rows = ["[ moleculetype ]", "all 1", "[ atoms ]"]
    rows += [f"{k} P4 {a.resid} {a.resname} {a.name} {k} 0.0 72.0"
             for k, a in enumerate(universe.atoms, 1)]  # fmt: skip
    rows += ["[ bonds ]", *(f"{i + 1} {j + 1} 1" for i, j in universe.bonds.indices)]
    rows += ["[ system ]", "all", "[ molecules ]", "all 1"]
    path.write_text("\n".join(rows) + "\n")


def positions(universe: mda.Universe) -> np.ndarray:
    """Return the positions of all frames, shape (n_frames, n_atoms, 3), Å."""
    return np.array([ts.positions.copy() for ts in universe.trajectory])


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Check that nothing appears, goes or changes in a folder; MDAnalysis' own index aside."""
    before = _contents(folder)
    yield
    assert _contents(folder) == before


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "_offsets." not in p.name
    }
