"""What `benchmarks.all_atoms` measures, on structures with known faults."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from benchmarks import all_atoms
from benchmarks.all_atoms import Known, bond_errors, clashing, close_hydrogens
from click.testing import CliRunner
from mdbackmap.io.source import CGSource
from mdbackmap.io.transformation import inspected, lay_out
from mdbackmap.mapping.library import Library
from mdbackmap.pipeline import Backmapper
from mdbackmap.relax.force_fields import assign
from mdbackmap.structure import AtomTable

from helpers_io import DATA

PROTEIN = DATA / "1l2y.pdb"


@pytest.fixture(scope="module")
def placed() -> tuple[AtomTable, np.ndarray, np.ndarray]:
    """All atoms of one frame of insulin."""
    source = CGSource.open(DATA / "insulin.gro", DATA / "insulin.tpr")
    backmapper = inspected(Backmapper(lay_out(source)), source)
    frame = source.read(0)
    beads = frame.positions[backmapper.layout.bead_source]
    return backmapper.atoms, backmapper(beads, frame.box).astype(np.float64), frame.box


def test_hydrogens_that_meet_are_counted(placed: tuple) -> None:
    table, positions, box = placed
    assert close_hydrogens(table, positions, box) == 0
    moved = positions.copy()
    first, last = np.flatnonzero(table.elements == "H")[[0, -1]]
    moved[first] = moved[last] + [0, 0, 1.0]
    assert close_hydrogens(table, moved, box) >= 1


def test_residues_that_overlap_are_found(placed: tuple) -> None:
    table, positions, box = placed
    heavy = table.elements != "H"
    before = clashing(table, positions, box, heavy)
    moved = positions.copy()
    carbons = np.flatnonzero(table.names == "CA")[[2, 12]]
    moved[carbons[0]] = moved[carbons[1]] + [0, 0, 0.5]
    found = set(clashing(table, moved, box, heavy)) - set(before)
    assert set(table.residue[carbons]) <= found


def test_bonds_are_those_of_the_force_field(placed: tuple) -> None:
    table, positions, _ = placed
    errors, light = bond_errors(assign(table, "amber14"), positions)
    assert len(errors) == len(table.bonds)
    assert light.sum() == (table.elements == "H").sum()
    assert np.abs(errors[light]).max() < 0.03
    longer, _ = bond_errors(assign(table, "amber14"), 1.2 * positions)
    assert longer == pytest.approx(1.2 * (1 + errors) - 1)


def test_known_hydrogens() -> None:
    known = Known()
    known.add(PROTEIN, Library.load(["martini3"]))
    found = known.to_json()
    assert found["other_count"] == 0
    assert found["fixed"]["rmsd"] < 0.15 < found["rotatable"]["rmsd"]
    total = sum(row["hydrogens"] for row in found["kinds"].values())
    assert total == found["fixed"]["hydrogens"] + found["rotatable"]["hydrogens"] == 150


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    archive = tmp_path / "all.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(PROTEIN, "1l2y.pdb")
    folder = tmp_path / "cg" / "insulin"
    folder.mkdir(parents=True)
    for name, to in (("insulin.gro", "first.gro"), ("insulin.tpr", "topol.tpr")):
        (folder / to).write_bytes((DATA / name).read_bytes())
    source = CGSource.open(folder / "first.gro", folder / "topol.tpr")
    source.universe.trajectory.ts.dt = 1.0
    source.universe.atoms.write(str(folder / "traj.xtc"))
    words = ["--hydrogens", archive, "--proteins", archive, "--frames", "1",
             "--trajectories", tmp_path / "cg", "--json", tmp_path / "a.json",
             "--markdown", tmp_path / "a.md"]  # fmt: skip
    result = CliRunner().invoke(all_atoms.main, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["trajectories"]["insulin"]["relaxed"] == 1
    assert found["created"]["insulin"]["charmm36"]["atoms"] >= 782
    assert found["proteins"]["bond_score"] > 99.9
    assert "| insulin | 782 |" in (tmp_path / "a.md").read_text()
