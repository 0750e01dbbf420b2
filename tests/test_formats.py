"""What is written can be read again: by MDAnalysis, by MDTraj, by OpenMM."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace

import MDAnalysis as mda
import numpy as np
import pytest
from mdbackmap.errors import FrameError, OutputFileError
from mdbackmap.hydrogens.atoms import AllAtoms
from mdbackmap.hydrogens.protonation import decide
from mdbackmap.io.conversion import backmap
from mdbackmap.io.segments import write_frames
from mdbackmap.io.topology import bead_universe, blank_universe
from mdbackmap.io.writing import Parts, plan_outputs
from mdbackmap.mapping.conformers import conformers
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import from_beads, one_molecule
from mdbackmap.structure import Frame, Particles

from helpers_io import DATA, GRO, MEMBRANE, TPR, XTC, load, ok, positions, unchanged

TRICLINIC = np.array([[60.0, 0, 0], [12.0, 55.0, 0], [-9.0, 14.0, 70.0]])
HOLDS_TIMES = ("xtc", "trr", "dcd", "nc")


@pytest.fixture(scope="module")
def insulin_pair(weights, tmp_path_factory):
    """Two chains with disulfides: a trajectory of one frame and its topology."""
    folder = tmp_path_factory.mktemp("insulin")
    # Untrained weights could find either tautomer of histidine.
    (folder / "states.yaml").write_text("HIS: HIE")
    ok("convert", DATA / "insulin.gro", "-s", DATA / "insulin.tpr", "-o", folder / "aa.xtc",
       "--model", weights, "--protonation", folder / "states.yaml")  # fmt: skip
    return folder / "aa.pdb", folder / "aa.xtc"


@pytest.fixture(scope="module")
def insulin_atoms(insulin_system):
    """The atoms of that pair."""
    return AllAtoms.of(insulin_system, decide(insulin_system)).table


def beads_of(*residues, letters=""):
    """Particles of residues given as (name, number of residues)."""
    library = Library.load("martini3")
    rows = []
    for name, count in residues:
        beads = library.candidates(name)[0].bead_names
        start = rows[-1][2] + 1 if rows else 1
        rows += [(b, name, start + k) for k in range(count) for b in beads]
    names, resnames, resids = (np.array(column) for column in zip(*rows, strict=True))
    return Particles(names, resnames, resids, np.full(len(names), letters))


def laid_out(particles, *, spacing=3.5):
    """A system whose residues follow each other along x, so that chains are bonded."""
    x = spacing * (particles.resids - particles.resids[0]) % 3000
    place = np.stack([x, 0.1 * (np.arange(len(x)) % 7), 0 * x], axis=1).astype(np.float32)
    return from_beads(particles, Library.load("martini3"), Frame(place))


def write(universe, output, topology=None, frames=3, box=TRICLINIC, dt=20.0, t0=100.0):
    """Write random positions; return them, shape (n_frames, n_atoms, 3), and the outcome."""
    points = np.random.default_rng(1).uniform(0, 90, (frames, len(universe.atoms), 3))
    points = points.astype(np.float32)
    done = write_frames(
        range(frames), lambda k: Frame(points[k], box * (1 + 0.01 * k), t0 + dt * k, k),
        lambda frame: frame.positions, universe, output, topology, dt=dt,
    )  # fmt: skip
    return points, done


def same_atoms(found, expected, *names):
    for name in names:
        assert (getattr(found.atoms, name) == getattr(expected.atoms, name)).all(), name


# Every format


@pytest.mark.parametrize("suffix", ["xtc", "trr", "dcd", "nc", "pdb"])
def test_trajectory_formats(insulin_system, tmp_path, suffix):
    universe = blank_universe(insulin_system)
    points, done = write(universe, tmp_path / f"aa.{suffix}", tmp_path / "top.pdb")
    assert (done.written, done.failed) == (3, 0)
    found = load(tmp_path / "top.pdb", tmp_path / f"aa.{suffix}")
    np.testing.assert_allclose(positions(found), points, atol=0.011)
    for k, ts in enumerate(found.trajectory):
        boxes = mda.lib.mdamath.triclinic_vectors(ts.dimensions)
        np.testing.assert_allclose(boxes, TRICLINIC * (1 + 0.01 * k), atol=0.02)
        if suffix in HOLDS_TIMES:
            assert ts.time == pytest.approx(100 + 20 * k, abs=1e-3)
    same_atoms(found, universe, "names", "resnames", "resids", "chainIDs", "elements", "segids",
               "record_types")  # fmt: skip
    assert (found.bonds.indices == universe.bonds.indices).all()


@pytest.mark.parametrize("suffix", ["xtc", "trr", "dcd", "nc", "pdb", "gro"])
def test_single_frame_formats(insulin_system, tmp_path, suffix):
    universe = blank_universe(insulin_system)
    points, _ = write(universe, tmp_path / f"aa.{suffix}", frames=1)
    if suffix in ("pdb", "gro"):
        found = load(tmp_path / f"aa.{suffix}")
    else:
        found = mda.Universe(universe._topology, str(tmp_path / f"aa.{suffix}"), to_guess=())
    np.testing.assert_allclose(found.atoms.positions, points[0], atol=0.011)
    np.testing.assert_allclose(
        mda.lib.mdamath.triclinic_vectors(found.dimensions), TRICLINIC, atol=0.02
    )
    same_atoms(found, universe, "names", "resnames", "resids")


@pytest.mark.parametrize("suffix", ["xtc", "trr", "dcd", "pdb"])
def test_no_box_stays_no_box(insulin_system, tmp_path, suffix):
    universe = blank_universe(insulin_system)
    frame = Frame(np.ones((insulin_system.n_atoms, 3), np.float32))
    write_frames(range(2), lambda k: frame, lambda f: f.positions, universe,
                 tmp_path / f"aa.{suffix}")  # fmt: skip
    found = mda.Universe(universe._topology, str(tmp_path / f"aa.{suffix}"), to_guess=())
    assert [ts.dimensions for ts in found.trajectory] == [None, None]


def test_convert_keeps_names_times_and_boxes(weights, tmp_path):
    cg = load(GRO, MEMBRANE)
    expected = [(ts.time, ts.dimensions.copy()) for ts in cg.trajectory]
    for suffix in ("xtc", "trr", "dcd", "pdb"):
        ok("convert", MEMBRANE, "-s", GRO, "-o", tmp_path / f"aa.{suffix}", "--model", weights,
           "--select", "resname CHOL PSM")  # fmt: skip
        found = load(tmp_path / "aa.pdb", tmp_path / f"aa.{suffix}")
        lipids = cg.select_atoms("resname CHOL PSM").residues
        assert (found.residues.resids == lipids.resids).all()
        assert set(found.residues.resnames) == {"CHL1", "PSM"}
        for ts, (time, box) in zip(found.trajectory, expected, strict=True):
            np.testing.assert_allclose(ts.dimensions, box, atol=0.02)
            if suffix in HOLDS_TIMES:
                assert ts.time == pytest.approx(time, abs=1e-2)


def test_compressed_pdb(insulin_system, tmp_path):
    universe = blank_universe(insulin_system)
    points, _ = write(universe, tmp_path / "aa.pdb.gz", frames=2)
    np.testing.assert_allclose(positions(load(tmp_path / "aa.pdb.gz")), points, atol=0.001)


# PDB


def test_columns_of_a_pdb(insulin_pair, insulin_atoms):
    lines = insulin_pair[0].read_text().splitlines()
    atoms = [line for line in lines if line.startswith(("ATOM", "HETATM"))]
    assert {line[:6] for line in atoms} == {"ATOM  "}
    assert {len(line) for line in atoms} == {80}
    assert [int(line[6:11]) for line in atoms] == list(range(1, len(atoms) + 1))
    assert {line[76:78].strip() for line in atoms} == {"C", "H", "N", "O", "S"}
    n_first = int((insulin_atoms.residue < 21).sum())
    # Names start in the second column, but those of four letters.
    assert all(line[12] == " " or " " not in line[12:16] for line in atoms)
    assert [line[21] for line in atoms] == list("A" * n_first + "B" * (len(atoms) - n_first))
    assert lines[0].startswith("CRYST1")
    assert lines[-1] == "END"


def test_chains_end_with_ter(insulin_pair):
    lines = insulin_pair[0].read_text().splitlines()
    before = [lines[k - 1] for k, line in enumerate(lines) if line.startswith("TER")]
    assert [(line[21], line[12:16].strip()) for line in before] == [("A", "OXT"), ("B", "OXT")]


def test_lipids_are_hetatm_without_ter(membrane_system, tmp_path):
    write(blank_universe(membrane_system), tmp_path / "aa.pdb", frames=1)
    lines = (tmp_path / "aa.pdb").read_text().splitlines()
    assert {line[:6].strip() for line in lines} == {"CRYST1", "HETATM", "CONECT", "END"}


def test_a_gap_in_a_chain_is_a_ter(tmp_path):
    particles = beads_of(("ALA", 6), letters="C")
    system = laid_out(particles)
    later = np.where(particles.resids > 3, particles.resids + 3, particles.resids)
    gap = laid_out(replace(particles, resids=later))
    for case, ends in ((system, ["6"]), (gap, ["3", "9"])):
        write(blank_universe(case), tmp_path / "aa.pdb", frames=1)
        lines = (tmp_path / "aa.pdb").read_text().splitlines()
        before = [lines[k - 1] for k, line in enumerate(lines) if line == "TER"]
        assert [line[22:26].strip() for line in before] == ends
        assert {line[21] for line in before} == {"C"}, "the letter of the file is kept"


def test_conect_holds_every_bond_both_ways(insulin_system, tmp_path):
    write(blank_universe(insulin_system), tmp_path / "aa.pdb", frames=1)
    pairs = set()
    for line in (tmp_path / "aa.pdb").read_text().splitlines():
        if line.startswith("CONECT"):
            first, *others = map(int, line[6:].split())
            pairs |= {(first - 1, other - 1) for other in others}
    bonds = {tuple(pair) for pair in insulin_system.atoms.bonds.tolist()}
    assert pairs == bonds | {(j, i) for i, j in bonds}
    names = insulin_system.atoms.names
    assert sum((names[i], names[j]) == ("SG", "SG") for i, j in bonds) == 3


def test_names_too_long_for_a_format(tmp_path):
    beads = Particles(np.array(["LONGNAME"]), np.array(["MOL"]), np.array([1]), np.array([""]))
    for suffix, columns in (("pdb", 4), ("gro", 5)):
        with unchanged(tmp_path), pytest.raises(OutputFileError, match=f"{columns} letters.*LONGN"):
            write(bead_universe(beads), tmp_path / f"cg.{suffix}", frames=1)


def test_coordinates_beyond_the_columns(insulin_system, tmp_path):
    far = Frame(np.full((insulin_system.n_atoms, 3), 12345.0, np.float32))
    blank = blank_universe(insulin_system)
    with unchanged(tmp_path), pytest.raises(OutputFileError, match="do not fit the columns"):
        write_frames(range(1), lambda k: far, lambda f: f.positions, blank, tmp_path / "aa.xtc",
                     tmp_path / "aa.pdb")  # fmt: skip


def test_neighbours_with_one_number_stay_apart(tmp_path):
    particles = beads_of(("POPC", 3))
    alike = replace(particles, resids=np.ones(len(particles), int))
    write(blank_universe(laid_out(alike)), tmp_path / "aa.pdb", frames=1)
    assert len(load(tmp_path / "aa.pdb").residues) == 3


# Many atoms


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """120,000 atoms: a chain of 11,000 residues and 1,500 lipids, written as PDB, GRO and XTC."""
    folder = tmp_path_factory.mktemp("many")
    universe = blank_universe(laid_out(beads_of(("ALA", 9000), ("GLY", 2000), ("POPC", 1300))))
    points, _ = write(universe, folder / "aa.xtc", folder / "aa.pdb", frames=1)
    write(universe, folder / "aa.gro", frames=1)
    return folder, universe, points


@pytest.mark.parametrize("suffix", ["pdb", "gro"])
def test_more_atoms_than_the_columns_number(many, suffix):
    folder, universe, points = many
    assert len(universe.atoms) > 120_000
    found = load(folder / f"aa.{suffix}", folder / "aa.xtc")
    assert len(found.atoms) == len(universe.atoms)
    assert len(found.residues) == len(universe.residues)
    same_atoms(found, universe, "names", "resnames", "resids", "resindices")
    np.testing.assert_allclose(found.atoms.positions, points[0], atol=0.011)
    if suffix == "pdb":
        same_atoms(found, universe, "chainIDs", "elements", "record_types")
        assert "CONECT" not in (folder / "aa.pdb").read_text()


def test_more_atoms_with_mdtraj(many):
    mdtraj = pytest.importorskip("mdtraj")
    folder, universe, points = many
    found = mdtraj.load(str(folder / "aa.xtc"), top=str(folder / "aa.pdb"))
    assert found.n_atoms == len(universe.atoms)
    assert found.n_residues == len(universe.residues)
    np.testing.assert_allclose(found.xyz * 10, points, atol=0.011)


# Other programs


def test_mdtraj_loads_the_pair(insulin_pair, insulin_atoms):
    mdtraj = pytest.importorskip("mdtraj")
    pdb, xtc = map(str, insulin_pair)
    found = mdtraj.load(xtc, top=pdb)
    atoms = insulin_atoms
    assert [a.name for a in found.top.atoms] == atoms.names.tolist()
    assert [a.residue.name for a in found.top.atoms] == atoms.resnames.tolist()
    assert [a.element.symbol for a in found.top.atoms] == atoms.elements.tolist()
    assert found.top.n_chains == 2
    bonds = {tuple(sorted((i.index, j.index))) for i, j in found.top.bonds}
    assert bonds == {tuple(sorted(pair)) for pair in atoms.bonds.tolist()}
    ours = load(*insulin_pair)
    np.testing.assert_allclose(found.xyz[0] * 10, ours.atoms.positions, atol=0.011)
    np.testing.assert_allclose(found.unitcell_vectors[0] * 10, ours.trajectory.ts
                               .triclinic_dimensions, atol=0.02)  # fmt: skip


def test_openmm_reads_the_protein(insulin_pair, insulin_atoms):
    app = pytest.importorskip("openmm.app")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = app.PDBFile(io.StringIO(insulin_pair[0].read_text())).topology
    assert found.getNumAtoms() == len(insulin_atoms)
    assert found.getNumChains() == 2
    bonds = {tuple(sorted((b[0].index, b[1].index))) for b in found.bonds()}
    assert bonds == {tuple(sorted(pair)) for pair in insulin_atoms.bonds.tolist()}


# Complete or not at all


def test_two_outputs_appear_together_or_not_at_all(insulin_system, tmp_path):
    universe = blank_universe(insulin_system)

    def work(frame):
        if frame.index == 2:
            raise RuntimeError("power cut")
        return frame.positions

    def read(k):
        return Frame(np.ones((insulin_system.n_atoms, 3), np.float32), None, 0.0, k)

    with unchanged(tmp_path), pytest.raises(RuntimeError, match="power cut"):
        write_frames(range(4), read, work, universe, tmp_path / "aa.xtc", tmp_path / "aa.pdb")


def test_an_old_output_stays_until_the_new_one_is_complete(tmp_path):
    (tmp_path / "aa.xtc").write_bytes(b"old")

    def write_new(then=None):
        with Parts() as parts:
            parts.add(tmp_path / "aa.xtc").write_bytes(b"new")
            if then:
                raise then

    with unchanged(tmp_path), pytest.raises(KeyboardInterrupt):
        write_new(KeyboardInterrupt)
    write_new()
    assert (tmp_path / "aa.xtc").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["aa.xtc"]


def test_frames_that_fail_are_left_out(insulin_system, tmp_path):
    def work(frame):
        if frame.index in (0, 2):
            raise FrameError(f"frame {frame.index}: no")
        return frame.positions

    def read(k):
        return Frame(np.full((insulin_system.n_atoms, 3), k, np.float32), TRICLINIC, 10.0 * k, k)

    universe = blank_universe(insulin_system)
    done = write_frames(range(4), read, work, universe, tmp_path / "aa.xtc", tmp_path / "aa.pdb")
    assert (done.written, done.failed) == (2, 2)
    assert done.messages == ["frame 0: no", "frame 2: no"]
    found = load(tmp_path / "aa.pdb", tmp_path / "aa.xtc")
    assert [ts.time for ts in found.trajectory] == [10, 30]
    assert load(tmp_path / "aa.pdb").atoms.positions[0, 0] == 1
    with unchanged(tmp_path), pytest.raises(FrameError, match="no frame could be written"):
        write_frames(range(0, 4, 2), read, work, universe, tmp_path / "bb.xtc")


def test_plan_of_outputs(tmp_path):
    assert plan_outputs(tmp_path / "aa.xtc", None, 2) == tmp_path / "aa.pdb"
    assert plan_outputs(tmp_path / "aa.pdb", None, 2) is None
    assert plan_outputs(tmp_path / "aa.gro", None, 1) is None
    assert plan_outputs(tmp_path / "aa.gro", tmp_path / "b.pdb", 1) == tmp_path / "b.pdb"
    with pytest.raises(OutputFileError, match="holds 2 frames; use xtc, trr, dcd, h5md"):
        plan_outputs(tmp_path / "aa.gro", None, 2)


def test_links_to_an_input_are_seen(tmp_path):
    (tmp_path / "cg.xtc").write_bytes(XTC.read_bytes())
    (tmp_path / "link.xtc").symlink_to(tmp_path / "cg.xtc")
    with pytest.raises(OutputFileError, match="is an input file"):
        plan_outputs(tmp_path / "link.xtc", None, 2, [TPR, tmp_path / "cg.xtc"])


def test_names_that_a_pdb_cannot_hold_get_another_topology(library, tmp_path):
    """CER180 has six letters."""
    pytest.importorskip("rdkit")
    template = library.candidates("CER180")[0]
    system = one_molecule(template)
    beads = Particles(
        np.array(template.bead_names), np.full(template.n_beads, "CER180"),
        np.ones(template.n_beads, dtype=int), np.full(template.n_beads, ""),
    )  # fmt: skip
    universe = bead_universe(beads)
    universe.atoms.positions = system.map_positions(conformers(template)[0])
    done = backmap(universe, tmp_path / "aa.xtc", hydrogens=False)
    assert done.topology == tmp_path / "aa.cif"
    assert set(load(done.topology, tmp_path / "aa.xtc").residues.resnames) == {"CER180"}
    with pytest.raises(OutputFileError, match=r"4 letters of a name; longer are CER180\)\n.*\.cif"):
        backmap(universe, tmp_path / "aa.pdb", hydrogens=False)
