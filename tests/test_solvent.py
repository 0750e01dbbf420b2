"""Water and ions: from beads to atoms, through every way out of the package."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import mdbackmap
import numpy as np
import openmm.app as app
import pytest
import yaml
from mdbackmap.errors import ConfigError, FrameError, MappingFileError, StructureError
from mdbackmap.graph.neighbours import close_pairs
from mdbackmap.hydrogens.atoms import AllAtoms
from mdbackmap.hydrogens.protonation import decide
from mdbackmap.io.conversion import Atoms
from mdbackmap.io.source import CGSource
from mdbackmap.io.topology import atom_topology
from mdbackmap.io.transformation import inspected, lay_out
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.solvent import Solvent
from mdbackmap.mapping.system import System, from_beads
from mdbackmap.pipeline import Backmapper, Options
from mdbackmap.relax import force_fields
from mdbackmap.relax.topology import gromacs_topology
from mdbackmap.solvent import LEASH, SolventPlacer
from mdbackmap.structure import AtomTable, Frame, Particles

from helpers_io import TPR, XTC, XTC_PRECISION, fails, load, ok, positions

BOX = np.diag([38.0, 38.0, 38.0])
TRICLINIC = np.array([[40.0, 0, 0], [13.0, 38, 0], [-13.0, 13, 36]])
COUNTS = {"water": 5788, "Na+": 19, "Cl-": 19}
"""What water and ions of ubiquitin come to."""
N_SOLVENT = 3 * 5788 + 38
SPACING = 4.75
"""Å between neighbouring water beads, as dense as water."""
NO_ATOMS = AtomTable(*(np.zeros(0, t) for t in ("U4", "U2", "U4", "int64", "U4", "int64")))
NOWHERE = np.zeros((0, 3), np.float32)


def particles(rows: list[tuple[str, str]]) -> Particles:
    """Residues of one bead each, (residue, bead)."""
    resnames, names = np.array(rows).T
    return Particles(names=names, resnames=resnames, resids=np.arange(1, len(rows) + 1),
                     segids=np.full(len(rows), ""))  # fmt: skip


def joined(first: Particles, second: Particles) -> Particles:
    return Particles(*(np.concatenate([getattr(t, name) for t in (first, second)])
                       for name in ("names", "resnames", "resids", "segids")))  # fmt: skip


@pytest.fixture(scope="module")
def lay(peptide, library):
    """Lay out a peptide with more residues behind it; returns its system."""

    def laid(rows: list[tuple[str, str]], library: Library = library) -> System:
        solute = peptide[0]
        beads = np.concatenate([solute.map_positions(peptide[1]), np.full((len(rows), 3), 90.0)])
        table = joined(solute.beads, particles(rows))
        return from_beads(table, library, Frame(beads.astype(np.float32)), solvent=True)

    return laid


def lattice(box: np.ndarray, away_from: np.ndarray = NOWHERE, clear: float = 4.5) -> np.ndarray:
    """Beads on a jittered lattice that fills a box, float32, Å."""
    n = np.floor(np.linalg.norm(box, axis=1) / SPACING).astype(int)
    grid = np.stack(np.meshgrid(*map(np.arange, n), indexing="ij"), axis=-1).reshape(-1, 3)
    jitter = np.random.default_rng(3).uniform(-0.08, 0.08, grid.shape)
    points = (((grid + 0.5 + jitter) / n) @ box).astype(np.float32)
    first, second, _ = close_pairs(np.concatenate([points, away_from]), box, clear)
    near = first[(first < len(points)) & (second >= len(points))]
    return np.delete(points, np.unique(near), axis=0)


@pytest.fixture(scope="module")
def wet(lay, peptide):
    """A peptide in a box of water with ions: system, all its atoms, their table, beads."""
    heavy = (peptide[1] - peptide[1].mean(axis=0) + BOX.sum(axis=0) / 2).astype(np.float32)
    beads = lattice(BOX, heavy)
    rows = [("W", "W")] * len(beads)
    rows[10], rows[200], rows[201] = ("NA", "NA"), ("CL", "CL"), ("CL", "CL")
    system = lay(rows)
    order = np.argsort([name != "W" for name, _ in rows], kind="stable")
    return system, heavy, beads[order]


@pytest.fixture(scope="module")
def placed(wet, peptide):
    system, heavy, beads = wet
    placer = SolventPlacer(system.solvent, peptide[0].atoms, hydrogens=True, seed=0)
    return placer(beads, heavy, BOX)


def waters(solvent: Solvent, atoms: np.ndarray) -> np.ndarray:
    return atoms[: 3 * solvent.n_waters].reshape(-1, 3, 3)


# What beads stand for

BEADS = [
    ("W", "W", "water", 4), ("PW", "W", "water", 4), ("SW", "W", "water", 3),
    ("TW", "TW", "water", 2), ("WF", "WF", "water", 4), ("ION", "NA+", "Na+", 1),
    ("NA+", "NA+", "Na+", 1), ("CL-", "CL", "Cl-", 1), ("ION", "CL-", "Cl-", 1),
    ("K", "K", "K+", 1), ("MG", "BB", "Mg2+", 1), ("CA", "CA", "Ca2+", 1), ("ZN", "BB", "Zn2+", 1),
]  # fmt: skip


@pytest.mark.parametrize(("resname", "bead", "what", "count"), BEADS)
def test_a_bead_stands_for(lay, resname, bead, what, count):
    system = lay([(resname, bead)])
    assert system.solvent.counts() == {what: count}
    assert not system.left_out


def test_polarisable_water_is_one_bead(peptide, library):
    solute, positions = peptide
    names = ["W", "WP", "WM"] * 2
    table = joined(solute.beads, dataclasses.replace(
        particles([("PW", name) for name in names]), resids=np.repeat([90, 91], 3)))  # fmt: skip
    beads = np.concatenate([solute.map_positions(positions), np.zeros((6, 3))])
    system = from_beads(table, library, Frame(beads.astype(np.float32)), solvent=True)
    assert system.solvent.counts() == {"water": 8}
    assert system.solvent.bead_source.tolist() == [solute.n_beads, solute.n_beads + 3]


def test_any_ion_is_no_ion(library):
    assert library.match_beads("ION", ["BB"]) is None


def test_waters_come_before_ions_each_in_the_order_of_the_file(lay):
    rows = [("CL", "CL"), ("W", "W"), ("NA", "NA"), ("TW", "TW"), ("CL", "CL"), ("SW", "SW")]
    system = lay(rows)
    solvent, n = system.solvent, system.n_beads
    assert (solvent.bead_source - n).tolist() == [1, 3, 5, 0, 2, 4]
    assert solvent.waters.tolist() == [4, 2, 3, 0, 0, 0]
    assert solvent.ions.tolist() == ["CL", "NA", "CL"]
    assert solvent.charges.tolist() == [-1, 1, -1]
    assert system.file_beads.tolist() == [*range(n), *(n + np.array([1, 3, 5, 0, 2, 4]))]


def test_atoms_of_the_answer(lay):
    system = lay([("TW", "TW"), ("CA", "CA")])
    whole = system.solvent.behind(system.atoms, hydrogens=True)
    n, last = system.n_atoms, int(system.atoms.residue[-1])
    assert whole.names[n:].tolist() == ["O", "H1", "H2"] * 2 + ["CA"]
    assert whole.elements[n:].tolist() == ["O", "H", "H"] * 2 + ["CA"]
    assert whole.resnames[n:].tolist() == ["HOH"] * 6 + ["CA"]
    assert (whole.residue[n:] - last).tolist() == [1, 1, 1, 2, 2, 2, 3]
    assert (whole.resids[n:] - system.atoms.resids.max()).tolist() == [1, 1, 1, 2, 2, 2, 3]
    assert (whole.bonds[len(system.atoms.bonds) :] - n).tolist() == [[0, 1], [3, 4], [0, 2], [3, 5]]
    heavy = system.solvent.behind(system.atoms, hydrogens=False)
    assert heavy.names[n:].tolist() == ["O", "O", "CA"]
    assert len(heavy.bonds) == len(system.atoms.bonds)


def test_left_out_unless_asked_for(ubiquitin):
    assert lay_out(ubiquitin).solvent is None
    assert lay_out(ubiquitin).left_out == {"W (solvent)": 1447, "NA (ion)": 19, "CL (ion)": 19}
    assert lay_out(ubiquitin, solvent="keep").solvent.counts() == COUNTS
    assert not lay_out(ubiquitin, solvent="keep").left_out


def test_nothing_but_water(ubiquitin):
    water = CGSource(ubiquitin.universe, "resname W")
    with pytest.raises(StructureError, match="nothing to backmap; left out: 5788 water"):
        lay_out(water, solvent="keep")


# Mapping files


def template_of(path: Path, text: str):
    path.write_text(text)
    return Library.load([path]).templates[0]


def test_a_water_bead_of_the_user(tmp_path, lay):
    path = tmp_path / "water.yaml"
    assert (
        template_of(path, "residue: DW\nkind: solvent\nbeads: {D: }\nwaters: 1\n").spec.waters == 1
    )
    system = lay([("DW", "D")] * 3, Library.load([path]))
    assert system.solvent.counts() == {"water": 3}


def test_an_ion_of_the_user(tmp_path, lay):
    text = "residue: LA\nkind: ion\nbeads: {B: }\natoms: {LA: {bead: B, element: FE, charge: 3}}\n"
    (tmp_path / "ion.yaml").write_text(text)
    system = lay([("LA", "B")], Library.load([tmp_path / "ion.yaml"]))
    assert system.solvent.counts() == {"Fe3+": 1}
    assert system.solvent.ions.tolist() == ["LA"]


def test_a_solvent_without_waters_is_left_out(tmp_path, lay):
    (tmp_path / "x.yaml").write_text("residue: HD\nkind: solvent\nbeads: {H: }\n")
    system = lay([("HD", "H")], Library.load([tmp_path / "x.yaml"]))
    assert (system.solvent, system.left_out) == (None, {"HD (solvent)": 1})


ION = "residue: X\nkind: ion\nbeads: {X: }\natoms: {NA: {bead: X}}\n"
BAD = {
    "residue: X\nkind: solvent\nbeads: {W: }\nwaters: 5\n": "line 4: 'waters'.*less than or equal",
    "residue: X\nkind: solvent\nbeads: {W: }\nwaters: 0\n": "'waters'.*greater than or equal to 1",
    "residue: X\nkind: solvent\nbeads: {W: }\nwaters: many\n": "'waters' expected a whole number",
    "residue: X\nkind: solvent\nbeads: {W: }\nwater: 4\n": "did you mean 'waters'",
    "residue: X\nkind: ion\nbeads: {W: }\nwaters: 4\n": "'waters' is for kind 'solvent', not 'ion'",
    "residue: X\nkind: molecule\nbeads: {W: }\nwaters: 4\n": "only kind 'solvent' or 'ion' may",
    "residue: X\nkind: solvent\nbeads: {W: }\nwaters: 4\natoms: {C: {bead: W}}\n": "both 'waters'",
    ION.replace("NA:", "QQ:"): "atom QQ: element Q is no heavy element",
    ION.replace("bead: X", "bead: Y"): "bead Y is not listed",
    ION.replace("bead: X", "bead: X, hydrogens: [H1]"): "an ion has no hydrogens",
    ION.replace("X}}", "X}, CL: {bead: X}}"): "has 2 atoms, and an ion has one",
}


@pytest.mark.parametrize("text", BAD, ids=BAD.values())
def test_bad_files_are_refused(tmp_path, text):
    with pytest.raises(MappingFileError, match=BAD[text]):
        template_of(tmp_path / "bad.yaml", text)


def test_mapping_commands_say_what_a_bead_stands_for(tmp_path):
    assert "stands for 4 waters" in ok("mapping", "show", "W")
    assert "stands for NA, charge +1" in ok("mapping", "show", "NA")
    (tmp_path / "x.yaml").write_text("residue: HD\nkind: solvent\nbeads: {H: }\nwaters: 1\n")
    assert "HD, stands for 1 water: good" in ok("mapping", "check", tmp_path / "x.yaml")


def test_every_shipped_file_says_what_it_stands_for():
    for path in (Path(__file__).parents[1] / "mappings" / "solvent").iterdir():
        table = yaml.safe_load(path.read_text())
        assert ("waters" in table) == (table["kind"] == "solvent")
        assert ("atoms" in table) == (table["kind"] == "ion")


# Placing


@pytest.mark.parametrize(("bead", "count"), [("W", 4), ("SW", 3), ("TW", 2)])
def test_waters_lie_about_their_bead(lay, bead, count):
    system = lay([(bead, bead)] * 50)
    placer = SolventPlacer(system.solvent, NO_ATOMS, hydrogens=True, seed=0)
    beads = np.random.default_rng(0).uniform(0, 500, (50, 3)).astype(np.float32)
    oxygens = placer.place(beads).reshape(50, count, 3)
    np.testing.assert_allclose(oxygens.mean(axis=1), beads, atol=1e-3)
    i, j = np.triu_indices(count, 1)
    np.testing.assert_allclose(
        np.linalg.norm(oxygens[:, i] - oxygens[:, j], axis=2), 2.8, atol=1e-3
    )
    # Each bead is turned its own way, evenly: no direction is preferred.
    arms = (oxygens - beads[:, None])[:, 0]
    assert np.abs((arms / np.linalg.norm(arms, axis=1)[:, None]).mean(axis=0)).max() < 0.3


def test_far_from_anything_nothing_is_pushed(lay):
    system = lay([("W", "W")] * 8 + [("K", "K")])
    placer = SolventPlacer(system.solvent, NO_ATOMS, hydrogens=True, seed=0)
    beads = (20.0 * np.arange(27).reshape(9, 3)).astype(np.float32)
    atoms = placer(beads, NOWHERE, None)
    np.testing.assert_allclose(atoms[:96:3], placer.place(beads)[:32], atol=1e-3)
    np.testing.assert_allclose(atoms[96:], beads[8:], atol=1e-3)


def test_water_is_rigid(wet, placed):
    water = waters(wet[0].solvent, placed)
    to_first, to_second = water[:, 1] - water[:, 0], water[:, 2] - water[:, 0]
    for bond in (to_first, to_second):
        np.testing.assert_allclose(np.linalg.norm(bond, axis=1), 0.9572, atol=1e-4)
    angle = np.degrees(np.arccos((to_first * to_second).sum(axis=1) / 0.9572**2))
    np.testing.assert_allclose(angle, 104.52, atol=0.05)


def test_nothing_is_too_near(wet, placed, peptide):
    system, heavy, _ = wet
    atoms, solute = placed, peptide[0].atoms
    n, n_ions = system.solvent.n_waters, system.solvent.n_ions
    whole = system.solvent.behind(solute, hydrogens=True)
    points = np.concatenate([heavy, atoms])
    first, second, vectors = close_pairs(points, BOX, 2.6)
    apart = (whole.residue[first] != whole.residue[second]) & (second >= len(heavy))
    first, second = first[apart], second[apart]
    distance = np.linalg.norm(vectors[apart], axis=1)
    light = whole.elements == "H"
    both_light, none = light[first] & light[second], ~light[first] & ~light[second]
    ion = (first >= len(points) - n_ions) | (second >= len(points) - n_ions)
    assert n > 1000
    assert (both_light & (distance < 1.5)).sum() <= 0.2 * len(atoms) / 1000
    assert (none & ~ion & (distance < 2.4)).sum() <= 0.001 * n
    assert not (none & ion & (distance < 2.1)).any()
    assert distance[light[first] ^ light[second]].min() > 1.45
    # Hydrogens bind to oxygens rather than point anywhere.
    bonds = (light[first] ^ light[second]) & (distance < 2.3)
    assert bonds.sum() > 0.9 * n


def test_centres_stay_near_their_beads(wet, placed):
    system, _, beads = wet
    solvent = system.solvent
    centres = waters(solvent, placed)[:, 0].reshape(-1, 4, 3).mean(axis=1)
    ions = placed[-solvent.n_ions :]
    off = np.linalg.norm(np.concatenate([centres, ions]) - beads, axis=1)
    assert off.max() < LEASH + 1e-3
    assert off.mean() < 0.15


def test_beads_on_top_of_one_another_are_no_trouble(lay):
    system = lay([("W", "W")] * 4 + [("NA", "NA")])
    placer = SolventPlacer(system.solvent, NO_ATOMS, hydrogens=True, seed=0)
    atoms = placer(np.full((5, 3), 7.0, np.float32), NOWHERE, BOX)
    assert np.isfinite(atoms).all()
    assert np.abs(atoms - 7.0).max() < 6


@pytest.mark.parametrize("box", [BOX, TRICLINIC], ids=["cube", "triclinic"])
def test_images_of_beads_move_their_molecules_and_nothing_else(lay, box):
    beads = lattice(box)
    system = lay([("W", "W")] * (len(beads) - 5) + [("NA", "NA")] * 5)
    placer = SolventPlacer(system.solvent, NO_ATOMS, hydrogens=True, seed=0)
    here = placer(beads, NOWHERE, box)
    shift = np.random.default_rng(1).integers(-2, 3, (len(beads), 3)) @ box
    there = placer((beads + shift).astype(np.float32), NOWHERE, box)
    each = np.where(system.solvent.waters, 3 * system.solvent.waters, 1)
    # Float32 of other coordinates, and sixteen sweeps that let differences grow.
    np.testing.assert_allclose(there - np.repeat(shift, each, axis=0), here, atol=0.005)


def test_frames_share_orientations_and_seeds_do_not(lay):
    system = lay([("W", "W")] * 20)
    beads = (30.0 * np.arange(60).reshape(20, 3)).astype(np.float32)
    first, again, other = (SolventPlacer(system.solvent, NO_ATOMS, hydrogens=True, seed=seed)
                           for seed in (0, 0, 1))  # fmt: skip
    moved = first(beads + np.float32(1.5), NOWHERE, None)
    np.testing.assert_allclose(moved - 1.5, again(beads, NOWHERE, None), atol=1e-3)
    assert np.abs(other.offsets - first.offsets).max() > 1


def test_oxygens_alone(wet, peptide):
    system, heavy, beads = wet
    placer = SolventPlacer(system.solvent, peptide[0].atoms, hydrogens=False, seed=0)
    atoms = placer(beads, heavy, BOX)
    assert atoms.shape == (system.solvent.n_atoms(hydrogens=False), 3)
    assert atoms.dtype == np.float32


# Through the pipeline


@pytest.fixture(scope="module")
def wet_ubiquitin() -> System:
    return lay_out(CGSource.open(XTC, TPR), solvent="keep")


@pytest.fixture(scope="module")
def backmapper(wet_ubiquitin, tiny_model) -> Backmapper:
    return inspected(Backmapper(wet_ubiquitin, tiny_model), CGSource.open(XTC, TPR))


def test_solvent_comes_last_and_changes_nothing_before(
    backmapper, ubiquitin_system, tiny_model, ubiquitin
):
    frame = ubiquitin.frame()
    wet = backmapper(frame.positions[backmapper.layout.file_beads], frame.box)
    dry = inspected(Backmapper(ubiquitin_system, tiny_model), ubiquitin)
    alone = dry(frame.positions[ubiquitin_system.bead_source], frame.box)
    assert len(wet) == len(backmapper.atoms) == len(alone) + N_SOLVENT
    np.testing.assert_array_equal(wet[: len(alone)], alone)
    assert (backmapper.atoms.names[: len(alone)] == dry.atoms.names).all()


def test_another_process_places_the_same(backmapper, ubiquitin):
    work = Atoms(backmapper)
    frame = ubiquitin.read(3)
    other = pickle.loads(pickle.dumps(work))  # noqa: S301 (made on this line)
    np.testing.assert_array_equal(other(frame), work(frame))


def test_water_without_a_place_is_named(backmapper, ubiquitin):
    beads = ubiquitin.frame().positions[backmapper.layout.file_beads].copy()
    beads[-1] = np.nan
    with pytest.raises(FrameError, match=r"1 beads have no usable position\n  CL \d+ CL: \[nan"):
        backmapper(beads, None)
    with pytest.raises(FrameError, match=r"expected \(1651, 3\)"):
        backmapper(beads[:166], None)


def test_options_are_checked():
    with pytest.raises(ConfigError, match="solvent 'wet': expected keep or drop"):
        Options(solvent="wet")


def test_universe_carrier_and_transformation_agree(weights):
    cg = load(TPR, XTC)
    plain = mdbackmap.universe(cg, weights)
    assert plain.select_atoms("resname HOH").n_residues == 5788
    assert plain.atoms.fragments[-1].names.tolist() == ["CL"]
    carried = mdbackmap.carrier(TPR, XTC)
    carried.trajectory.add_transformations(mdbackmap.Backmap(model=weights))
    backmap = mdbackmap.Backmap(cg, weights)
    cg.trajectory.add_transformations(backmap)
    for universe in (carried, backmap.universe):
        assert (universe.atoms.names == plain.atoms.names).all()
        np.testing.assert_allclose(universe.trajectory[2].positions,
                                   plain.trajectory[2].positions, atol=1e-3)  # fmt: skip
    dry = mdbackmap.carrier(TPR, XTC, solvent="drop")
    assert len(dry.atoms) == 1231
    carried = mdbackmap.carrier(TPR, XTC)
    with pytest.raises(StructureError, match="and solvent to"):
        carried.trajectory.add_transformations(mdbackmap.Backmap(model=weights, solvent="drop"))


def test_a_selection_of_the_water(weights):
    cg = load(TPR, XTC)
    near = mdbackmap.universe(cg, weights, select="not resname W NA CL or resid 100:140")
    water = near.select_atoms("resname HOH and name O")
    beads = cg.select_atoms("resname W and resid 100:140").positions
    assert len(water) == 4 * len(beads) > 0
    off = water.positions.reshape(-1, 4, 3).mean(axis=1) - beads
    assert np.linalg.norm(off, axis=1).max() < LEASH + 1e-3


# Files


@pytest.mark.parametrize("ending", [".pdb", ".cif", ".gro", ".xtc", ".trr", ".dcd"])
def test_every_format_holds_it(weights, tmp_path, ending, backmapper, ubiquitin):
    out = tmp_path / f"aa{ending}"
    said = ok("convert", XTC, "-s", TPR, "-o", out, "--model", weights, "--solvent", "keep",
              "--stop", 1)  # fmt: skip
    assert "solvent: 5,788 waters, 19 Na+, 19 Cl- from 1,485 beads" in said
    assert "1 frame of 18633 atoms" in said
    names = [out] if ending in (".pdb", ".gro", ".cif") else [tmp_path / "aa.pdb", out]
    if ending == ".cif":
        topology = app.PDBxFile(str(out)).topology
        assert sum(r.name == "HOH" for r in topology.residues()) == 5788
        assert topology.getNumBonds() == len(backmapper.atoms.bonds)
        return
    written = load(*names)
    water = written.select_atoms("resname HOH")
    assert (len(water), water.n_residues) == (3 * 5788, 5788)
    frame = ubiquitin.read(0)
    expected = backmapper(frame.positions[backmapper.layout.file_beads], frame.box)
    np.testing.assert_allclose(positions(written)[0][-N_SOLVENT:], expected[-N_SOLVENT:],
                               atol=2 * XTC_PRECISION)  # fmt: skip


def test_drop_leaves_it_out(weights, tmp_path):
    said = ok("convert", XTC, "-s", TPR, "-o", tmp_path / "aa.gro", "--model", weights, "--stop",
              1, "--solvent", "drop")  # fmt: skip
    assert "left out: 1447 x W (solvent)" in said
    assert "1 frame of 1231 atoms" in said
    said = ok("convert", XTC, "-s", TPR, "-o", tmp_path / "o.gro", "--model", weights, "--stop", 1,
              "--solvent", "keep", "--no-hydrogens")  # fmt: skip
    assert f"1 frame of {602 + 5788 + 38} atoms" in said
    assert "'wet' is not one of 'keep', 'drop'" in fails(
        "convert", XTC, "-o", tmp_path / "x.gro", "--solvent", "wet", code=2
    )


def test_validate_counts_it(weights, tmp_path):
    ok("convert", XTC, "-s", TPR, "-o", tmp_path / "aa.xtc", "--model", weights, "--stop", 1,
       "--solvent", "keep")  # fmt: skip
    said = ok("validate", tmp_path / "aa.xtc", "--cg", XTC, "--cg-topology", TPR)
    assert "not checked: 19 x CL (ion)" in said
    assert "not checked: 5788 x HOH (solvent)" in said


def test_chain_letters(lay):
    system = lay([("W", "W"), ("NA", "NA")])
    topology = atom_topology(system, system.solvent.behind(system.atoms, hydrogens=True))
    letters = topology.chainIDs.values
    peptide, water, ion = letters[0], letters[-2], letters[-1]
    assert len({peptide, water, ion}) == 3
    assert set(letters[: system.n_atoms]) == {peptide}
    assert topology.record_types.values[-1] == "HETATM"


# To simulate


@pytest.fixture(scope="module")
def dissolved(crowd, library):
    """Two peptides, two lipids, water and every kind of ion: the atom table."""
    system, positions = crowd
    ions = ["NA", "CL", "K", "MG", "CA", "ZN"]
    rows = [("W", "W")] * 30 + [(name, name) for name in ions]
    table = joined(system.beads, particles(rows))
    beads = np.concatenate([system.map_positions(positions), np.full((len(rows), 3), 200.0)])
    made = from_beads(table, library, Frame(beads.astype(np.float32)), solvent=True)
    atoms = AllAtoms.of(made, decide(made)).table
    return made.solvent.behind(atoms, hydrogens=True)


NAMES = {
    "charmm36": ["TIP3", "SOD", "CLA", "POT", "MG", "CAL", "ZN2"],
    "amber14": ["HOH", "NA", "CL", "K", "MG", "CA", "ZN"],
}


@pytest.mark.parametrize("name", NAMES)
def test_force_fields_cover_it(dissolved, name, tmp_path):
    found = force_fields.assign(dissolved, name)
    assert not found.missing
    first = np.flatnonzero(np.diff(found.atoms.residue, prepend=-1))
    names = found.atoms.resnames[first].tolist()
    assert list(dict.fromkeys(names[-126:])) == NAMES[name]
    system = found.system(rigidWater=True, constraints=app.HBonds)
    # Three constraints hold each water; ions carry their formal charges.
    assert system.getNumConstraints() == (dissolved.elements == "H").sum() + 120
    nonbonded = next(f for f in system.getForces() if type(f).__name__ == "NonbondedForce")
    charges = [nonbonded.getParticleParameters(i)[0]._value for i in range(len(dissolved))]
    np.testing.assert_allclose(charges[-6:], [1, -1, 1, 2, 2, 2])
    np.testing.assert_allclose(charges[-9:-6], [-0.834, 0.417, 0.417])
    text = gromacs_topology(found)
    assert text.rstrip().endswith("\n".join(f"{n} {120 if k == 0 else 1}"
                                            for k, n in enumerate(NAMES[name])))  # fmt: skip


def test_openmm_reads_water_without_bonds_in_the_file(weights, tmp_path):
    """Beyond 99,999 atoms a PDB file has no CONECT records."""
    ok("convert", XTC, "-s", TPR, "-o", tmp_path / "aa.pdb", "--stop", 1, "--solvent", "keep",
       "--force-field", "amber14")  # fmt: skip
    lines = (tmp_path / "aa.pdb").read_text().splitlines(keepends=True)
    (tmp_path / "no.pdb").write_text("".join(x for x in lines if not x.startswith("CONECT")))
    read = app.PDBFile(str(tmp_path / "no.pdb"))
    field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    assert field.createSystem(read.topology).getNumParticles() == 18633


def test_residue_numbers_wrap_in_pdb_files(lay, tmp_path):
    """12,000 waters have 12,000 residues, though the columns hold four digits."""
    from mdbackmap.io.pdb import PDBText
    from mdbackmap.io.topology import blank_universe

    system = lay([("W", "W")] * 3000)
    atoms = system.solvent.behind(system.atoms, hydrogens=True)
    universe = blank_universe(system, atoms)
    path = tmp_path / "many.pdb"
    path.write_text(PDBText(universe, models=False).frame(0, universe.atoms.positions, None)
                    + "END\n")  # fmt: skip
    assert load(path).select_atoms("resname HOH").n_residues == 12000
    assert sum(r.name == "HOH" for r in app.PDBFile(str(path)).topology.residues()) == 12000


def test_relaxing_with_water_and_ions(lay, peptide):
    solute = peptide[0]
    heavy = (peptide[1] - peptide[1].mean(axis=0) + BOX.sum(axis=0) / 2).astype(np.float32)
    water = lattice(BOX, heavy)
    far = np.argsort(-np.linalg.norm(water - BOX.sum(axis=0) / 2, axis=1))
    water = np.delete(water, far[:300], axis=0)
    rows = [("W", "W")] * (len(water) - 1) + [("CL", "CL")]
    system = lay(rows)
    backmapper = Backmapper(system, None, Options(relax=True, force_field="charmm36"))
    beads = np.concatenate([solute.map_positions(heavy.astype(float)), water])
    atoms = backmapper(beads, BOX)
    assert backmapper.stage.results[0].converged
    table = backmapper.atoms
    oxygen = np.flatnonzero((table.resnames == "TIP3") & (table.elements == "O"))
    bonds = np.linalg.norm(atoms[oxygen + 1] - atoms[oxygen], axis=1)
    assert np.abs(bonds - 0.9572).max() < 0.1
    centres = atoms[oxygen].reshape(-1, 4, 3).mean(axis=1)
    assert np.linalg.norm(centres - water[:-1], axis=1).mean() < 1.0
