"""mmCIF files: what other programs read in them."""

from __future__ import annotations

import gzip
import io
import shlex

import numpy as np
import pytest
from mdbackmap.hydrogens.atoms import AllAtoms
from mdbackmap.hydrogens.protonation import decide
from mdbackmap.io.cif import CIFText
from mdbackmap.io.segments import write_frames
from mdbackmap.io.topology import bead_universe, blank_universe
from mdbackmap.structure import Frame, Particles

from helpers_io import load

BOX = np.array([[60.0, 0, 0], [12.0, 55.0, 0], [-9.0, 14.0, 70.0]])


def written(system, path, n_frames=2):
    """Write random positions of all atoms of a system; return its table and the positions."""
    atoms = AllAtoms.of(system, decide(system)).table
    points = np.random.default_rng(3).uniform(-20, 90, (n_frames, len(atoms), 3)).astype("f4")
    write_frames(range(n_frames), lambda k: Frame(points[k], BOX, 10.0 * k, k),
                 lambda frame: frame.positions, blank_universe(system, atoms), path)  # fmt: skip
    return atoms, points


@pytest.fixture(scope="module")
def insulin(insulin_system, tmp_path_factory):
    path = tmp_path_factory.mktemp("cif") / "aa.cif"
    return path, *written(insulin_system, path)


@pytest.fixture(scope="module")
def lipids(membrane_system, tmp_path_factory):
    path = tmp_path_factory.mktemp("cif") / "aa.cif"
    return path, *written(membrane_system, path, 1)


def pairs(rows):
    return {tuple(sorted(row)) for row in rows}


@pytest.mark.parametrize("which", ["insulin", "lipids"])
def test_openmm(which, request):
    app = pytest.importorskip("openmm.app")
    path, atoms, points = request.getfixturevalue(which)
    found = app.PDBxFile(str(path))
    assert [a.name for a in found.topology.atoms()] == atoms.names.tolist()
    names = [residue.name for residue in found.topology.residues()]
    first = np.flatnonzero(np.diff(atoms.residue, prepend=-1))
    assert len(names) == len(first)
    bonds = [(b[0].index, b[1].index) for b in found.topology.bonds()]
    assert len(bonds) == len(pairs(bonds)), "none stands there twice"
    assert pairs(bonds) == pairs(atoms.bonds.tolist())
    assert found.getNumFrames() == len(points)
    for k, expected in enumerate(points):
        positions = found.getPositions(asNumpy=True, frame=k)._value * 10
        np.testing.assert_allclose(positions, expected, atol=0.001)


def test_mdtraj(insulin):
    mdtraj = pytest.importorskip("mdtraj")
    path, atoms, points = insulin
    found = mdtraj.load(str(path))
    assert [a.name for a in found.top.atoms] == atoms.names.tolist()
    bonds = pairs((i.index, j.index) for i, j in found.top.bonds)
    # MDTraj does not take in bonds between chains.
    missing = pairs(atoms.bonds.tolist()) - bonds
    assert bonds <= pairs(atoms.bonds.tolist())
    assert {atoms.names[i] for pair in missing for i in pair} <= {"SG"}
    assert len(missing) <= 2
    np.testing.assert_allclose(found.xyz * 10, points, atol=0.001)


def test_gemmi_and_mdanalysis(insulin, insulin_system):
    gemmi = pytest.importorskip("gemmi")
    path, atoms, points = insulin
    found = gemmi.read_structure(str(path))
    assert [chain.name for chain in found[0]] == ["A", "B"]
    assert len(found) == len(points)
    assert found.cell.a == pytest.approx(60, abs=1e-3)
    universe = load(path)
    expected = blank_universe(insulin_system, atoms)
    for name in ("names", "resnames", "resids", "chainIDs", "elements", "record_types"):
        assert (getattr(universe.atoms, name) == getattr(expected.atoms, name)).all(), name


def test_words():
    """Every row has as many words as its loop has columns, whatever the names."""
    names = np.array(["C5'", "H5''", '"Q"', "_a", "#", "?", "CA", "O 1", "loop_"])
    n = len(names)
    beads = Particles(names, np.full(n, "L'G"), np.arange(n), np.full(n, ""))
    text = CIFText(bead_universe(beads), models=False)
    rows = text.frame(0, np.zeros((n, 3)), None).splitlines()
    gemmi = pytest.importorskip("gemmi")
    block = gemmi.cif.read_string(text.head(None) + "\n".join(rows) + "\n" + text.tail())[0]
    found = [gemmi.cif.as_string(word) for word in block.find_values("_atom_site.label_atom_id")]
    assert found == names.tolist()
    assert len(shlex.split(rows[6])) == 18


def test_a_compressed_file_is_the_same(insulin_system, tmp_path):
    written(insulin_system, tmp_path / "aa.cif")
    written(insulin_system, tmp_path / "aa.cif.gz")
    text = (tmp_path / "aa.cif").read_text()
    with gzip.open(tmp_path / "aa.cif.gz", "rt") as handle:
        assert io.StringIO(handle.read()).getvalue() == text
