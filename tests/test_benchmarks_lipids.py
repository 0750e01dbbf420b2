"""What `benchmarks.lipids` and `benchmarks.membranes` measure, on structures with known faults."""

from __future__ import annotations

import dataclasses
import json

import MDAnalysis
import numpy as np
import pytest
from benchmarks import accuracy, lipids, lone_lipids, membranes
from benchmarks.lipids import Totals, lipids_of, neighbours, overall, species
from click.testing import CliRunner
from mdbackmap.io.prepare import systems
from mdbackmap.mapping.library import Library, load_templates, mappings_root
from mdbackmap.validation import Checker

from helpers_io import DATA, GRO, load, ok


@pytest.fixture(scope="module")
def popc(library):
    return species(_template(library, "POPC"))


def _template(library, residue):
    return next(t for t in library.templates if t.residue == residue)


def _measured(system, atoms, reference, box=None):
    totals = Totals()
    totals.add("file", system, atoms, np.array(reference), box)
    return totals.to_json()


def _place(system, name, residue=0):
    names = system.atoms.names[system.atoms.residue == residue].tolist()
    return np.searchsorted(system.atoms.residue, residue) + names.index(name)


def _turned(system, positions, bond, degrees):
    """Turn all atoms beyond the second one of a bond about it."""
    template = system.templates[0]
    first, second = (template.names.tolist().index(name) for name in bond)
    bonded, beyond, queue = neighbours(template), {second}, [second]
    while queue:
        for atom in bonded[queue.pop()] - beyond - {first}:
            beyond.add(atom)
            queue.append(atom)
    moved = sorted(beyond)
    axis = positions[second] - positions[first]
    axis /= np.linalg.norm(axis)
    angle = np.radians(degrees)
    offset = positions[moved] - positions[first]
    result = np.array(positions)
    result[moved] = (
        positions[first]
        + offset * np.cos(angle)
        + np.cross(axis, offset) * np.sin(angle)
        + np.outer(offset @ axis, axis) * (1 - np.cos(angle))
    )
    return result


# What is measured


def test_parts_follow_the_beads(library):
    parts = {
        residue: dict(zip(kind.beads.tolist(), kind.parts.tolist(), strict=True))
        for residue in ("POPC", "POPG", "PSM")
        for kind in [species(_template(library, residue))]
    }
    assert [k for k, v in parts["POPC"].items() if v == "head"] == ["NC3", "PO4"]
    assert {k for k, v in parts["POPC"].items() if v == "glycerol"} == {"GL1", "GL2"}
    assert parts["POPG"]["GL0"] == "head"
    assert {k for k, v in parts["PSM"].items() if v == "glycerol"} == {"OH1", "AM2"}
    assert parts["PSM"]["T1A"] == "tails"


def test_the_rings_of_cholesterol_are_its_fused_rings(library):
    kind = species(_template(library, "CHL1"))
    names = set(kind.template.names[kind.rings].tolist())
    assert names == {f"C{k}" for k in range(1, 18)}
    assert set(kind.parts.tolist()) == {"rings", "side chain"}


def test_tails_have_one_torsion_for_every_single_bond_from_the_head_on(popc):
    bonds = [popc.label(row[1:3]) for row in popc.torsions]
    assert len(bonds) == len(set(bonds)) == 27
    assert bonds[:2] == ["C22-C23", "C23-C24"]
    assert popc.tails.tolist() == ["A"] * 14 + ["B"] * 13
    assert [b for b, skew in zip(bonds, popc.skew, strict=True) if skew] == [
        "C28-C29", "C210-C211",
    ]  # fmt: skip


def test_torsions_of_ends_that_may_exchange_names_are_left_out(library):
    kind = species(_template(library, "CHL1"))
    assert [kind.label(row[1:3]) for row in kind.torsions] == ["C20-C22", "C22-C23", "C23-C24"]


# What is found


def test_the_reference_itself_has_no_error(lipid):
    system, positions = lipid
    result = _measured(system, positions, positions)["POPC"]
    assert result["molecules"] == 1
    assert all(value == 0 for value in result["rmsd"].values())
    assert all(count["wrong"] == 0 for count in result["terms"].values())
    assert all(row["difference"] == 0 for row in result["torsions"])
    assert all(row["same_rotamer"] == 100 for row in result["torsions"])


def test_counts_agree_with_the_checks_of_validation(crowd):
    system, positions = crowd
    atoms = positions + np.random.default_rng(3).normal(0, 0.25, positions.shape)
    terms = _measured(system, atoms, positions)["POPC"]["terms"]
    counts = Checker(system)(atoms).residues["POPC"]
    for term in ("bonds", "angles", "stereocentres"):
        assert (terms[term]["wrong"], terms[term]["of"]) == counts[term]
    assert terms["bonds"]["wrong"] > 10
    double = [terms["double_bonds"], terms["esters"]]
    assert sum(t["wrong"] for t in double) == counts["double_bonds"].wrong


def test_a_moved_head_is_found_in_the_head_alone(lipid, popc):
    system, positions = lipid
    atoms = positions + 2.0 * (popc.parts == "head")[:, None] * [0.0, 0.0, 1.0]
    result = _measured(system, atoms, positions)["POPC"]["rmsd"]
    assert result["head"] == pytest.approx(2.0)
    assert result["bead PO4"] == pytest.approx(2.0)
    assert result["glycerol"] == result["tails"] == 0


def test_exchanged_methyls_of_choline_cost_nothing(lipid):
    system, positions = lipid
    first, second = (_place(system, name) for name in ("C13", "C14"))
    atoms = np.array(positions)
    atoms[[first, second]] = atoms[[second, first]]
    assert _measured(system, atoms, positions)["POPC"]["rmsd"]["all"] == 0


def test_methyls_on_top_of_each_other_are_found(lipid):
    system, positions = lipid
    atoms = np.array(positions)
    atoms[_place(system, "C13")] = atoms[_place(system, "C14")] + [0.0, 0.0, 1.0]
    given, true = _measured(system, atoms, positions)["POPC"]["methyls"]
    assert given["min"] == pytest.approx(1.0)
    assert true["min"] == pytest.approx(2.45, abs=0.1)


def test_a_mirror_image_has_the_wrong_hand_and_the_right_sides(lipid):
    system, positions = lipid
    terms = _measured(system, positions * [1, 1, -1], positions)["POPC"]["terms"]
    assert terms["stereocentres"]["wrong"] == terms["stereocentres"]["of"] == 1
    assert terms["double_bonds"]["wrong"] == 0


@pytest.mark.parametrize(("bond", "term"), [("C29-C210", "double_bonds"), ("O21-C21", "esters")])
def test_a_bond_turned_to_its_other_side_is_found(lipid, bond, term):
    system, positions = lipid
    terms = _measured(system, _turned(system, positions, bond.split("-"), 180), positions)
    terms = terms["POPC"]["terms"]
    assert {t: terms[t]["wrong"] for t in ("double_bonds", "esters")} == {
        "double_bonds": 0, "esters": 0, term: 1,
    }  # fmt: skip


@pytest.mark.parametrize(("target", "percent"), [(60, 100), (-60, 100), (175, 0)])
def test_a_turned_bond_changes_the_fraction_of_that_bond_alone(lipid, popc, target, percent):
    system, positions = lipid
    angle = _torsion_of(system, positions, popc, "C37-C38")
    atoms = _turned(system, positions, ("C37", "C38"), target - angle)
    before, after = (
        {row["bond"]: row["percent"] for row in _measured(system, a, positions)["POPC"]["torsions"]}
        for a in (positions, atoms)
    )
    assert after == before | {"C37-C38": percent}


def test_rotamers_are_told_apart_by_their_side():
    given, true = np.array([[170.0, 60.0, 60.0, np.nan]]), np.array([[-170.0, 65.0, -65.0, 60.0]])
    same = lipids.same_rotamer(given, true)[0]
    assert same[:3].tolist() == [1, 1, 0]
    assert np.isnan(same[3])


def _torsion_of(system, positions, kind, bond):
    row = next(row for row in kind.torsions if kind.label(row[1:3]) == bond)
    return lipids.measures.torsions(positions, row[None])[0]


def test_a_chain_as_cis_as_no_chain_is_found(lipid, popc):
    system, positions = lipid
    angle = _torsion_of(system, positions, popc, "C37-C38")
    atoms = _turned(system, positions, ("C37", "C38"), 20 - angle)
    count = _measured(system, atoms, positions)["POPC"]["terms"]["collapsed"]
    assert count == {"wrong": 1, "of": 25, "reference_wrong": 0}


def test_atoms_two_bonds_apart_must_keep_away(lipid):
    system, positions = lipid
    atoms = np.array(positions)
    atoms[_place(system, "C37")] = atoms[_place(system, "C35")] + [0.0, 2.0, 0.0]
    result = _measured(system, atoms, positions)["POPC"]
    assert result["terms"]["short"]["wrong"] >= 1
    worst = {row["atoms"] for row in result["worst"]["angles"]}
    assert any("C37" in atoms for atoms in worst)


def test_distortion_is_what_no_turn_can_mend():
    rng = np.random.default_rng(0)
    ring = rng.normal(size=(1, 17, 3))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    assert lipids.distortion(ring @ turn + 5.0, ring)[0] == pytest.approx(0, abs=1e-6)
    assert lipids.distortion(-ring, ring)[0] > 0.3


def test_proteins_are_passed_over(crowd):
    system, positions = crowd
    assert [kind.name for kind, _ in lipids_of(system)] == ["POPC"]
    assert list(_measured(system, positions, positions)) == ["POPC"]


def test_overall_weighs_species_by_their_atoms():
    one, other = (
        {"molecules": n, "rmsd": {"all": r}, "atoms": {"all": n}, "terms": {}}
        for n, r in ((30, 1.0), (10, 3.0))
    )
    total = overall({"A": one, "B": other})
    assert total["molecules"] == 40
    assert total["rmsd"]["all"] == pytest.approx(np.sqrt((30 + 90) / 40))


def test_the_table_of_training_molecules(tmp_path):
    path = tmp_path / "totals.tsv"
    path.write_text("residue\tatoms\ttrain\ttest\nPOPC\t134\t977\t739\n")
    assert lipids.training_molecules(path) == {"POPC": 977}


def test_command_says_which_values_are_beyond_their_bars(weights, tmp_path):
    words = [DATA / "popc.pdb", "--model", weights, "--json", tmp_path / "out.json"]
    result = CliRunner().invoke(lipids.main, [*map(str, words), "--bar", "all=0.01"])
    assert result.exit_code == 0, result.output
    line = next(row for row in result.output.splitlines() if row.startswith("POPC"))
    assert line.split()[2].endswith("!")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["bars"]["all"] == 0.01
    assert found["species"]["POPC"]["rmsd"]["all"] > 0.01


@pytest.fixture
def knows_no_choline(tiny_model):
    beads = [k for k in tiny_model.bead_keys if not k.startswith("NC3:")]
    return dataclasses.replace(tiny_model, bead_keys=beads)


def test_what_a_model_does_not_know_is_left_out(lipid, library, tiny_model, knows_no_choline):
    system, _ = lipid
    assert accuracy.without_unknown(system, library, tiny_model).templates == library.templates
    kept = accuracy.without_unknown(system, library, knows_no_choline).templates
    assert {t.residue for t in library.templates} - {t.residue for t in kept} == {"POPC"}


def test_accuracy_is_that_of_the_lipids_a_model_knows(library, knows_no_choline, tmp_path):
    pieces = [load(DATA / name).atoms for name in ("popc.pdb", "ubiquitin_12.pdb")]
    both = MDAnalysis.Merge(*pieces)
    both.dimensions = [90.0] * 6
    both.atoms.write(tmp_path / "aa.gro")
    ((name, system, *_),) = accuracy._lipid_cases(tmp_path, library, knows_no_choline)
    assert name == "aa"
    assert set(system.residue_kinds) == {"protein"}
    assert system.left_out == {"POPC (unknown)": 1}


def test_an_unknown_bar_is_refused():
    result = CliRunner().invoke(lipids.main, [str(DATA / "popc.pdb"), "--bar", "feet=3"])
    assert result.exit_code == 2
    assert "feet" in result.output
    assert "glycerol" in result.output


# Membranes

ZIGZAG = np.array([[0.9 * (k % 2), 0.0, 1.25 * k] for k in range(5)])
BOX = np.diag([60.0, 60.0, 80.0])


def _chain(n_hydrogens):
    rows = [[a, c, b] for a, b, c in zip(range(3), range(1, 4), range(2, 5), strict=True)]
    return membranes.Carbons(
        np.arange(1, 4), np.array(rows), np.full(3, n_hydrogens), np.full(3, "A")
    )


def test_hydrogens_of_a_straight_chain_lie_across_it():
    start = np.zeros(1, dtype=np.int64)
    along = membranes.order_parameters(ZIGZAG, start, _chain(2), None)
    assert along == pytest.approx(np.full((1, 3), -0.5), abs=1e-9)
    # Lying down, with the hydrogens 54.75 degrees from z.
    flat = membranes.order_parameters(ZIGZAG[:, [1, 2, 0]], start, _chain(2), None)
    assert flat == pytest.approx(np.full((1, 3), 1.5 * np.cos(np.radians(54.75)) ** 2 - 0.5))


def test_a_single_hydrogen_points_away_from_its_neighbours():
    vectors = np.array([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    found = membranes.hydrogen_directions(vectors, np.array(1))
    assert found == pytest.approx(np.array([[-1.0, 0, 0], [-1.0, 0, 0]]))
    # Three neighbours at right angles, as those of a corner of a cube.
    found = membranes.hydrogen_directions(np.eye(3), np.array(1))
    assert found == pytest.approx(np.full((2, 3), -1 / np.sqrt(3)))


def test_carbons_with_one_or_two_hydrogens_have_order_parameters(library):
    template = _template(library, "POPC")
    which = membranes.carbons(template)
    names = template.names[which.centres].tolist()
    assert names[:2] == ["C22", "C23"]
    assert len(names) == 16 + 14
    assert not {"C218", "C316", "C21"} & set(names)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_points_without_order_have_a_flat_distribution(dimensions):
    rng = np.random.default_rng(5)
    found = membranes.Distribution(dimensions)
    for _ in range(20):
        found.add(rng.random((100, 3)) @ BOX, BOX)
    assert np.average(found.values(), weights=found.expected) == pytest.approx(1.0, abs=0.05)
    assert found.values()[10:] == pytest.approx(np.ones(len(found.values()) - 10), abs=0.35)


def test_distances_in_the_plane_cross_the_faces_and_ignore_height():
    found = membranes.Distribution(2)
    found.add(np.array([[1.0, 30.0, 0.0], [57.8, 30.0, 40.0]]), BOX)
    assert np.flatnonzero(found.pairs).tolist() == [6]


def test_beyond_half_the_box_nothing_is_known():
    found = membranes.Distribution(3)
    found.add(np.random.default_rng(1).random((30, 3)) * 20, np.eye(3) * 20.0)
    assert np.isnan(found.values()[-1])
    assert np.isfinite(found.values()[19])


@pytest.fixture
def bilayer(crowd):
    """Two lipids, the second upside down below the first."""
    system, positions = crowd
    ((kind, starts),) = lipids_of(system)
    atoms, size = np.array(positions), kind.template.n_atoms
    one, other = (np.arange(start, start + size) for start in starts)
    atoms[one] -= atoms[one].mean(axis=0)
    atoms[other] = atoms[one] * [1, -1, -1] - [0, 0, 25.0]
    return system, atoms, one, other


def test_leaflets_are_told_by_which_way_lipids_point(bilayer):
    system, atoms, one, other = bilayer
    upper, lipid = membranes.leaflets(system, atoms)
    assert sorted(upper.tolist()) == [False, True]
    assert lipid[one[0]] == 0
    assert lipid[other[0]] == 1
    assert (lipid[system.residue_kinds[system.atoms.residue] == "protein"] == -1).all()


def test_area_and_thickness_of_two_lipids(bilayer):
    system, atoms, one, other = bilayer
    membrane = membranes.Membrane()
    # The molecules may lie in any image.
    atoms = atoms.copy()
    atoms[other] += BOX[2]
    membrane.add("file", system, atoms, BOX)
    result = membrane.to_json()
    assert result["area_per_lipid"] == pytest.approx(3600.0)
    p = [_place(system, "P", system.atoms.residue[rows[0]]) for rows in (one, other)]
    height = atoms[p[0], 2] - (atoms[p[1], 2] - BOX[2, 2])
    assert abs(result["thickness"]) == pytest.approx(abs(height), abs=1e-6)


def test_frames_are_averaged_and_files_pooled(bilayer):
    system, atoms, *_ = bilayer
    membrane = membranes.Membrane()
    for source in ("one", "one", "other"):
        membrane.add(source, system, atoms, BOX)
    single = membranes.Membrane()
    single.add("one", system, atoms, BOX)
    several, once = membrane.to_json(), single.to_json()
    assert several["frames"] == 3
    assert several["species"]["POPC"]["molecules"] == 2 * once["species"]["POPC"]["molecules"]
    for first, second in zip(
        several["species"]["POPC"]["order"], once["species"]["POPC"]["order"], strict=True
    ):
        assert first["value"] == pytest.approx(second["value"])


def test_a_membrane_beside_itself(weights, tmp_path):
    ok("convert", GRO, "-o", tmp_path / "aa.gro", "--model", weights)
    words = [tmp_path / "aa.gro", "--top", tmp_path / "aa.gro", "--reference",
             tmp_path / "aa.gro", "--json", tmp_path / "out.json", "--plot",
             tmp_path / "page.png"]  # fmt: skip
    result = CliRunner().invoke(membranes.main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    off = json.loads((tmp_path / "out.json").read_text())["differences"]
    assert off["area_per_lipid"] == 0
    assert off["order"]
    assert all(d["rms"] == 0 for what in ("order", "torsions", "rdf") for d in off[what].values())
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_a_reference_that_is_no_file_is_named(tmp_path):
    here = str(DATA / "popc.pdb")
    words = [here, "--top", here, "--reference", str(tmp_path / "none.gro")]
    result = CliRunner().invoke(membranes.main, words)
    assert result.exit_code == 2
    assert "none.gro" in result.output


def test_a_file_without_a_box_is_refused():
    here = str(DATA / "popc.pdb")
    result = CliRunner().invoke(membranes.main, [here, "--top", here, "--reference", here])
    assert result.exit_code == 2
    assert "has no box" in result.output


@pytest.mark.slow
def test_a_lipid_on_its_own_stays_what_it_is(tmp_path):
    """OpenMM's CHARMM36 has no bond between phosphate and inositol."""
    pytest.importorskip("rdkit")
    result = CliRunner().invoke(lone_lipids.main, ["POPI24", "-o", str(tmp_path), "--frames", "2"])
    assert result.exit_code == 0, result.output
    (template,) = load_templates(mappings_root() / "martini3" / "lipid" / "POPI24.yaml")
    files = tmp_path / "POPI24.cif", tmp_path / "POPI24.xtc"
    found = list(systems(*files, Library([template], "test")))
    assert len(found) == 2
    for system, positions, _, usable in found:
        assert usable.all()
        counts = Checker(system)(positions, None).residues["POPI24"]
        for what in ("bonds", "stereocentres", "double_bonds"):
            assert counts[what].wrong == 0, what
