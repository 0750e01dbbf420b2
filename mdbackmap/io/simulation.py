"""Files to go on with: how frames relaxed, and topologies for simulation programs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import MDAnalysis as mda
import numpy as np

from mdbackmap.errors import ForceFieldError, OutputFileError
from mdbackmap.geometry.boxes import box_from_dimensions
from mdbackmap.io.files import quiet_guesses
from mdbackmap.io.topology import blank_universe
from mdbackmap.io.writing import FrameWriter, Parts, write_text
from mdbackmap.pipeline import Backmapper
from mdbackmap.structure import Frame


def beside(output: str | Path, ending: str) -> Path:
    """Return the name of a file beside an output.

    >>> beside("runs/aa.xtc", "_relax.csv").as_posix()
    'runs/aa_relax.csv'
    """
    path = Path(output)
    stem = path.name
    while Path(stem).suffix.lower() in (".gz", ".bz2"):
        stem = Path(stem).stem
    return path.with_name(Path(stem).stem + ending)


def write_notes(output: Path, notes: Sequence[dict]) -> dict[Path, str]:
    """Write what was noted of frames, one row each.

    Raises
    ------
    OutputFileError
    """
    path = beside(output, "_relax.csv")
    with Parts() as parts:
        try:
            with parts.add(path).open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, list(notes[0]))
                table.writeheader()
                table.writerows(notes)
        except OSError as error:
            raise OutputFileError(f"{path}: cannot be written ({error})") from error
    return {path: "how every frame relaxed"}


def check_simulation(backmapper: Backmapper) -> None:
    """Refuse, before any work, to write a topology that lacks molecules.

    Raises
    ------
    ForceFieldError
    """
    stage = backmapper.stage
    if stage is None or stage.force_field in (None, "none"):
        raise ForceFieldError(
            "a topology to simulate with needs a force field: charmm36 or amber14"
        )
    stage.assignment.require_all()


def write_simulation(
    output: Path, topology: Path | None, backmapper: Backmapper
) -> dict[Path, str]:
    """Write OpenMM's system.xml, and .top and .gro, of the first frame that was written.

    Parameters
    ----------
    output : Path
        The trajectory; other names are made from it.
    topology : Path or None
        What names its atoms; None where it does so itself.

    Raises
    ------
    OutputFileError
    """
    # OpenMM takes a while to import, and most conversions do without.
    from mdbackmap.relax.topology import gromacs_topology, system_xml

    with quiet_guesses():
        given = mda.Universe(str(output if topology is None else topology))
    ts = given.trajectory[0]
    box = box_from_dimensions(ts.dimensions)
    assignment = backmapper.stage.assignment
    charge = round(assignment.charge, 2)
    charge = f"charge {charge:+g}" if charge else "no net charge"
    files = {beside(output, end): what for end, what in (
        ("_system.xml", f"OpenMM's System, {charge}"), (".top", "GROMACS' topology"),
        (".gro", "the first frame, for GROMACS"))}  # fmt: skip
    xml, top, gro = files
    write_text(xml, system_xml(assignment, box))
    write_text(top, gromacs_topology(assignment, output.stem))
    if assignment.residues:
        extra = beside(output, "_residues.xml")
        write_text(extra, assignment.residues)
        files[extra] = f"templates to load behind {assignment.files[0]}"
    if gro != output:
        _write_frame(gro, backmapper, Frame(ts.positions.copy(), box))
    return files


def _write_frame(path: Path, backmapper: Backmapper, frame: Frame) -> None:
    universe = blank_universe(backmapper.layout, backmapper.atoms)
    with Parts() as parts, FrameWriter(path, parts.add(path), universe) as writer:
        writer.write(frame, np.asarray(frame.positions))
