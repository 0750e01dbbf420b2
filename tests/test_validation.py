"""Structures that are wrong in one known way, and checks that must find just that."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from mdbackmap.errors import OutputFileError, StructureError
from mdbackmap.io import files
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import System, from_atoms
from mdbackmap.structure import Frame, Particles
from mdbackmap.validation import Checker, Summary, bead_shift, check, checks, measures, rmsd
from mdbackmap.validation.contacts import BondGraph, close_pairs, find_rings

DATA = Path(__file__).parent / "data"
BOX = np.array([[80.0, 0, 0], [20, 90, 0], [-15, 25, 100]])


@dataclasses.dataclass
class Example:
    """A small system with sound positions."""

    system: System
    positions: np.ndarray

    def atom(self, resid: int, name: str, resname: str | None = None) -> int:
        atoms = self.system.atoms
        found = (atoms.resids == resid) & (atoms.names == name)
        if resname:
            found &= atoms.resnames == resname
        (index,) = np.flatnonzero(found)
        return int(index)

    def check(self, positions: np.ndarray | None = None, box: np.ndarray | None = None):
        return check(self.system, self.positions if positions is None else positions, box)


def load(*names: str, without: tuple[int, str] | None = None) -> Example:
    """Read files into one system, optionally without one atom."""
    tables, points = [], []
    for name in names:
        universe = files.open_universe(DATA / name)
        tables.append(files.particles(universe))
        points.append(files.frame(universe.trajectory.ts).positions)
    fields = ("names", "resnames", "resids", "segids")
    table = {field: np.concatenate([getattr(t, field) for t in tables]) for field in fields}
    points = np.concatenate(points)
    if without:
        keep = (table["resids"] != without[0]) | (table["names"] != without[1])
        table, points = {k: v[keep] for k, v in table.items()}, points[keep]
    system = from_atoms(Particles(**table), Library.load("martini3"), Frame(points))
    there = system.atom_source >= 0
    return Example(system, np.where(there[:, None], points[system.atom_source], np.nan))


@pytest.fixture(scope="module")
def peptide() -> Example:
    return load("ubiquitin_12.pdb")


@pytest.fixture(scope="module")
def lipid() -> Example:
    return load("popc.pdb")


@pytest.fixture(scope="module")
def both() -> Example:
    return load("ubiquitin_12.pdb", "popc.pdb")


def wrong(report) -> dict[str, int]:
    """Terms with something wrong."""
    return {term: count.wrong for term, count in report.counts.items() if count.wrong}


def turn(points: np.ndarray, start: np.ndarray, stop: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate points about the axis from start to stop (Rodrigues)."""
    axis = (stop - start) / np.linalg.norm(stop - start)
    angle, v = np.radians(degrees), points - start
    along = (v @ axis)[:, None] * axis
    return start + along + (v - along) * np.cos(angle) + np.cross(axis, v) * np.sin(angle)


# Sound structures


@pytest.mark.parametrize("name", ["peptide", "lipid"])
def test_a_clean_structure_has_zero_counts(name, request):
    report = request.getfixturevalue(name).check()
    assert wrong(report) == {}
    assert report.counts["bonds"].of == len(report.atoms.bonds)
    assert all(report.where(term) == [] for term in checks.TERMS)


def test_everything_that_can_be_measured_is(peptide, lipid):
    counts = peptide.check().counts
    assert counts["d_residues"].of == 11  # all but GLY
    assert counts["stereocentres"].of == 11 + 1 + 3  # CB of ILE and three THR
    assert counts["prochiral"].of == 2
    assert counts["cis_peptides"].of == counts["twisted_peptides"].of == 11
    assert counts["ramachandran"].of == 10
    assert counts["pierced_rings"].of == 1
    assert counts["double_bonds"].of == 0  # peptide bonds have terms of their own
    assert lipid.check().counts["double_bonds"].of == 3


def test_a_rotation_changes_nothing(both):
    x, is_lipid = both.positions.copy(), both.system.atoms.resnames == "POPC"
    x[is_lipid] += 60
    checker, rng = Checker(both.system), np.random.default_rng(3)
    for _ in range(20):
        report = checker(turn(x, np.zeros(3), rng.normal(size=3), rng.uniform(0, 360)))
        assert wrong(report) == {}


@pytest.mark.parametrize(("resname", "sizes"), [("TRP", [5, 6]), ("CHL1", [5, 6, 6, 6])])
def test_fused_rings_are_found_once_each(resname, sizes):
    template = Library.load("martini3").candidates(resname)[0]
    table = Particles(
        names=template.names, resnames=np.full(template.n_atoms, resname),
        resids=np.ones(template.n_atoms, np.int64), segids=np.full(template.n_atoms, "A"),
    )  # fmt: skip
    frame = Frame(np.zeros((template.n_atoms, 3)))
    rings, _ = find_rings(from_atoms(table, Library.load("martini3"), frame))
    assert sorted(len(set(ring)) for ring in rings.tolist()) == sizes


@pytest.mark.parametrize("broken", [False, True])
def test_a_lattice_shift_changes_nothing(both, broken):
    rng = np.random.default_rng(0)
    size = both.system.n_atoms if broken else 2
    shift = rng.integers(-2, 3, (size, 3)) @ BOX
    if not broken:
        shift = shift[both.system.bead_molecule[both.system.atom_bead]]
    # With the lipid laid over the peptide, some counts are not zero.
    x, is_lipid = both.positions.copy(), both.system.atoms.resnames == "POPC"
    x[is_lipid] += x[~is_lipid].mean(0) - x[is_lipid].mean(0)
    before, after = both.check(x, BOX), both.check(x + shift, BOX)
    assert wrong(before) == wrong(after)
    assert before.counts["clashes"].wrong > 0
    assert before.planarity_max == pytest.approx(after.planarity_max, abs=1e-3)
    assert before.phi_psi == pytest.approx(after.phi_psi, abs=1e-2)


# One thing wrong


def test_every_residue_of_the_mirror_image_is_d(peptide):
    counts = peptide.check(peptide.positions * [-1, 1, 1]).counts
    for term in ("d_residues", "stereocentres", "prochiral"):
        assert counts[term].wrong == counts[term].of > 0
    assert counts["bonds"].wrong == counts["angles"].wrong == 0
    assert counts["ramachandran"].wrong > 5


def test_an_inverted_alpha_carbon_is_found_by_name(peptide):
    n, ca, c = (peptide.positions[peptide.atom(2, name)] for name in ("N", "CA", "C"))
    normal = np.cross(n - ca, c - ca)
    normal /= np.linalg.norm(normal)
    atoms = peptide.system.atoms
    side = (atoms.resids == 2) & ~np.isin(atoms.names, ["N", "CA", "C", "O"])
    positions = peptide.positions.copy()
    positions[side] -= 2 * ((positions[side] - ca) @ normal)[:, None] * normal
    report = peptide.check(positions)
    assert report.counts["d_residues"].wrong == report.counts["stereocentres"].wrong == 1
    assert report.where("d_residues") == ["A GLN 2 CA-N-C-CB"]
    assert report.residues["GLN"]["d_residues"] == (1, 1)
    assert report.residues["LYS"]["d_residues"] == (0, 2)
    assert report.counts["bonds"].wrong == 0


def test_exchanged_methyls_are_prochiral_only(peptide):
    first, second = peptide.atom(5, "CG1"), peptide.atom(5, "CG2")
    positions = peptide.positions.copy()
    positions[[first, second]] = positions[[second, first]]
    assert wrong(peptide.check(positions)) == {"prochiral": 1}


@pytest.mark.parametrize(("factor", "expected"), [(1.2, {"bonds": 1}), (1.05, {})])
def test_a_stretched_bond(peptide, factor, expected):
    start, end = peptide.atom(6, "CE"), peptide.atom(6, "NZ")
    positions = peptide.positions.copy()
    positions[end] = positions[start] + factor * (positions[end] - positions[start])
    report = peptide.check(positions)
    assert wrong(report) == expected
    if expected:
        assert report.where("bonds") == ["A LYS 6 CE-NZ"]
        assert report.bond_errors[-10:].sum() == 1


def test_a_bent_angle(peptide):
    cd, ce, nz = (peptide.atom(6, name) for name in ("CD", "CE", "NZ"))
    x = peptide.positions.copy()
    axis = np.cross(x[cd] - x[ce], x[nz] - x[ce])
    x[[nz]] = turn(x[[nz]], x[ce], x[ce] + axis, 25)
    assert peptide.check(x).where("angles") == ["A LYS 6 CD-CE-NZ"]


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(180, {"cis_peptides"}), (75, {"twisted_peptides"}),
     (130, {"cis_peptides", "twisted_peptides"}), (10, set())],
)  # fmt: skip
def test_a_turned_peptide_bond(peptide, degrees, expected):
    c, n = peptide.positions[peptide.atom(6, "C")], peptide.positions[peptide.atom(7, "N")]
    positions = peptide.positions.copy()
    after = peptide.system.atoms.resids >= 7
    positions[after] = turn(positions[after], c, n, degrees)
    report = peptide.check(positions)
    terms = {"cis_peptides", "cis_proline", "twisted_peptides", "planar", "bonds", "angles"}
    assert wrong(report).keys() & terms == expected
    for term in expected:
        assert report.counts[term].wrong == 1
        assert report.where(term) == ["A LYS 6 CA-C / A THR 7 N-CA"]


def test_cis_before_proline_is_counted_apart(peptide):
    system = dataclasses.replace(
        peptide.system, omega_may_be_cis=np.ones(len(peptide.system.omegas), bool)
    )
    counts = check(system, peptide.positions).counts
    assert (counts["cis_proline"].of, counts["cis_peptides"].of) == (11, 0)


def test_a_trans_double_bond(lipid):
    names = lipid.system.atoms.names.tolist()
    tail = [names.index(f"C2{k}") for k in range(11, 19)]
    x = lipid.positions.copy()
    x[tail] = turn(x[tail], x[names.index("C29")], x[names.index("C210")], 180)
    report = lipid.check(x)
    assert wrong(report) == {"double_bonds": 1}
    assert report.where("double_bonds") == ["A POPC 1 C28-C29-C210-C211"]
    ideal = lipid.system.constraints
    ideal = dataclasses.replace(ideal, torsion=np.full_like(ideal.torsion, 180.0))
    system = dataclasses.replace(lipid.system, constraints=ideal)
    assert check(system, x).counts["double_bonds"] == (2, 3)


def test_equivalent_ends_have_no_wrong_side():
    """NH1 of ARG is cis to CD by name only."""
    template = Library.load("martini3").candidates("ARG")[0]
    assert len(template.constraints.torsions) > 0
    table = Particles(
        names=template.names, resnames=np.full(template.n_atoms, "ARG"),
        resids=np.ones(template.n_atoms, np.int64), segids=np.full(template.n_atoms, "A"),
    )  # fmt: skip
    points = np.random.default_rng(0).normal(size=(template.n_atoms, 3))
    system = from_atoms(table, Library.load("martini3"), Frame(points))
    assert check(system, points).counts["double_bonds"].of == 0


def test_a_ring_hardly_bent(peptide):
    ring = [peptide.atom(4, name) for name in ("CG", "CD1", "CD2", "CE1", "CE2", "CZ")]
    x = peptide.positions.copy()
    assert wrong(peptide.check(x)) == {}
    normal = np.cross(x[ring[1]] - x[ring[0]], x[ring[2]] - x[ring[0]])
    x[ring[-1]] += 0.2 * normal / np.linalg.norm(normal)
    report = peptide.check(x)
    assert report.counts["flat_rings"].wrong == 1
    assert set(report.offenders["flat_rings"][0]) == set(ring)


def test_an_atom_out_of_its_plane(peptide):
    ring = [peptide.atom(4, name) for name in ("CG", "CD1", "CD2", "CE1", "CE2", "CZ")]
    x = peptide.positions.copy()
    normal = np.cross(x[ring[1]] - x[ring[0]], x[ring[2]] - x[ring[0]])
    x[ring[-1]] += 0.5 * normal / np.linalg.norm(normal)
    report = peptide.check(x)
    assert set(wrong(report)) == {"planar", "flat_rings"}
    assert report.planarity_max == pytest.approx(0.85, abs=0.05)


def test_residues_on_top_of_each_other_clash(peptide):
    x = peptide.positions.copy()
    second = peptide.system.atoms.resids == 7
    first = np.flatnonzero(peptide.system.atoms.resids == 12)[: second.sum()]
    x[second] = x[first] + 0.3
    report = peptide.check(x)
    assert report.counts["overlaps"].wrong >= second.sum()
    assert report.counts["clashes"].wrong > report.counts["overlaps"].wrong
    assert report.residues["THR"]["overlaps"].wrong == report.counts["overlaps"].wrong
    assert all("THR 7" in place and "THR 12" in place for place in report.where("overlaps"))


def test_clashes_see_periodic_images():
    pair = load("popc.pdb", "popc.pdb")
    x = pair.positions.copy()
    x[52:] += BOX[1] - BOX[2] + 0.5
    assert wrong(pair.check(x)) == {}
    report = pair.check(x, BOX)
    assert report.counts["overlaps"].wrong >= 52
    assert report.counts["bonds"].wrong == 0


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize(("beside", "pierced"), [(0.0, 1), (0.7, 1), (2.5, 0)])
def test_a_bond_through_a_ring(both, box, beside, pierced):
    x = both.positions.copy()
    ring = x[[both.atom(4, n, "PHE") for n in ("CG", "CD1", "CE1", "CZ", "CE2", "CD2")]]
    centre = ring.mean(0)
    normal = np.cross(ring[0] - centre, ring[1] - centre)
    tail = np.flatnonzero(both.system.atoms.resnames == "POPC")
    ends = [both.atom(1, name, "POPC") for name in ("C35", "C36")]
    bond = x[ends[1]] - x[ends[0]]
    # Turn the bond onto the ring's normal, then carry it there.
    axis = np.cross(bond, normal)
    angle = np.degrees(np.arctan2(np.linalg.norm(axis), bond @ normal))
    x[tail] = turn(x[tail], x[ends[0]], x[ends[0]] + axis, angle)
    aside = ring[0] - centre
    target = centre + beside * aside / np.linalg.norm(aside)
    x[tail] += target - x[ends].mean(0)
    if box is not None:
        x[tail] += np.array([1, -2, 1]) @ box
    report = both.check(x, box)
    assert report.counts["pierced_rings"] == (pierced, 1)
    assert report.where("pierced_rings") == ["A POPC 1 C35-C36 / A PHE 4 CG"] * pierced


# Atoms that are not there


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_positions_that_are_no_numbers_are_counted(peptide, value):
    x = peptide.positions.copy()
    x[peptide.atom(6, "NZ")] = value
    report = peptide.check(x)
    assert wrong(report) == {"not_a_number": 1}
    assert report.where("not_a_number") == ["A LYS 6 NZ"]
    assert report.counts["bonds"].of == len(report.atoms.bonds) - 1


@pytest.mark.parametrize("box", [None, BOX])
def test_a_frame_of_nothing_is_counted_too(both, box):
    report = both.check(np.full_like(both.positions, np.nan), box)
    assert wrong(report) == {"not_a_number": both.system.n_atoms}
    assert report.counts["bonds"].of == report.counts["clashes"].of == 0
    assert np.isnan(report.planarity_max)


def test_missing_atoms_are_skipped():
    example = load("ubiquitin_12.pdb", without=(4, "CZ"))
    report = example.check()
    assert wrong(report) == {"missing": 1}
    assert report.where("missing") == ["A PHE 4 CZ"]
    assert report.counts["not_a_number"].of == example.system.n_atoms - 1
    assert report.counts["bonds"].of == len(report.atoms.bonds) - 2
    assert report.counts["pierced_rings"].of == 0


def test_an_answer_from_beads_misses_nothing_by_right(peptide):
    system = dataclasses.replace(peptide.system, atom_source=np.full(peptide.system.n_atoms, -1))
    x = peptide.positions.copy()
    x[3] = np.nan
    assert wrong(check(system, x)) == {"not_a_number": 1}


@pytest.mark.parametrize(
    ("change", "text"),
    [(lambda x: (x[:-1], None), r"expected \(94, 3\)"),
     (lambda x: (x, np.eye(3)), "pass None"),
     (lambda x: (x, np.zeros((3, 3))), "pass None"),
     (lambda x: (np.zeros_like(x), None), "on top of each other")],
)  # fmt: skip
def test_what_is_no_frame_is_refused(peptide, change, text):
    with pytest.raises(StructureError, match=text):
        check(peptide.system, *change(peptide.positions))


# Parts against theory


def test_measures_against_theory():
    points = np.array([[1.0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 1]])
    row = np.array([[0, 1, 2, 3]])
    assert measures.lengths(points, row[:, :2]) == pytest.approx([1])
    assert measures.angles(points, row[:, :3]) == pytest.approx([90])
    # Seen from atom 2 to atom 1, the first bond turns onto the last clockwise: -90 by IUPAC.
    assert measures.torsions(points, row) == pytest.approx([-90])
    assert measures.heights_of_ends(points, row) == pytest.approx([1])
    axes = np.vstack([np.zeros(3), np.eye(3)])
    assert measures.volumes(axes, row) == pytest.approx([1])
    assert measures.volumes(axes, row[:, [0, 2, 1, 3]]) == pytest.approx([-1])
    assert measures.heights_of_centres(axes, row) == pytest.approx([1 / np.sqrt(3)])


@pytest.mark.parametrize("box", [None, np.diag([12.0, 9, 10]), BOX / 8])
def test_close_pairs_agree_with_brute_force(box):
    points = np.random.default_rng(1).uniform(-15, 15, (120, 3))
    images = np.zeros((1, 3))
    if box is not None:
        images = np.stack(np.meshgrid(*[np.arange(-5, 6)] * 3), -1).reshape(-1, 3) @ box
    i, j = np.triu_indices(len(points), 1)
    gap = np.array([np.linalg.norm(v + images, axis=1).min() for v in points[j] - points[i]])
    expected = {(a, b): d for a, b, d in zip(i, j, gap, strict=True) if d <= 2.2}
    first, second, distance = close_pairs(points, box, 2.2)
    found = {(min(a, b), max(a, b)): d for a, b, d in zip(first, second, distance, strict=True)}
    assert found.keys() == expected.keys()
    assert len(first) == len(found) > 0
    assert all(found[k] == pytest.approx(expected[k]) for k in found)


def test_neighbours_up_to_three_bonds():
    chain = BondGraph(np.array([[0, 1], [1, 2], [2, 3], [3, 4]]), 6)
    others = np.arange(1, 6)
    near = chain.within_three_bonds(np.zeros(5, np.int64), others)
    assert near.tolist() == [True, True, True, False, False]


# Beads and references


def test_bead_shift(both):
    system, beads = both.system, both.system.map_positions(both.positions)
    scatter = np.random.default_rng(2).integers(-1, 2, (system.n_atoms, 3)) @ BOX
    same = bead_shift(system, both.positions + scatter, beads, BOX)
    assert same["max"] == pytest.approx(0, abs=1e-4)
    beads[3] += [0, 3.0, 4.0]
    moved = bead_shift(system, both.positions, beads)
    assert moved["max"] == pytest.approx(5)
    assert moved["median"] == pytest.approx(0, abs=1e-6)
    assert moved["n_beads"] == system.n_beads
    nothing = bead_shift(system, np.full_like(both.positions, np.nan), beads)
    assert nothing["n_beads"] == 0
    assert np.isnan(nothing["max"])


def test_rmsd_of_a_shift_is_the_shift(both):
    result = rmsd(both.system, both.positions + np.array([0, 0.3, 0.4]), both.positions)
    for value in (result["all"], result["backbone"], result["side_chains"],
                  result["kinds"]["lipid"], result["residues"]["GLY"]):  # fmt: skip
        assert value == pytest.approx(0.5)
    assert result["n_atoms"] == both.system.n_atoms


def test_rmsd_tells_backbone_from_side_chains(peptide):
    x = peptide.positions.copy()
    x[peptide.atom(6, "NZ")] += [1.0, 0, 0]
    result = rmsd(peptide.system, x, peptide.positions)
    assert result["backbone"] == 0
    assert result["side_chains"] > 0
    assert result["residues"]["LYS"] == pytest.approx(np.sqrt(1 / 18))
    assert result["residues"]["MET"] == 0


@pytest.mark.parametrize(
    "methyls", [[], [("C13", "C14"), ("C14", "C15")], [("C14", "C15"), ("C13", "C14")]]
)
def test_rmsd_ignores_swaps_of_equivalent_names(both, methyls):
    x = both.positions.copy()
    for resname, pairs in {
        "PHE": [("CD1", "CD2"), ("CE1", "CE2")],
        "POPC": [*methyls, ("O13", "O14")],
    }.items():
        resid = 4 if resname == "PHE" else 1
        for one, other in pairs:
            swap = [both.atom(resid, one, resname), both.atom(resid, other, resname)]
            x[swap] = x[swap[::-1]]
    assert rmsd(both.system, x, both.positions)["all"] == 0
    half = [both.atom(4, "CD1", "PHE"), both.atom(4, "CD2", "PHE")]
    x[half] = x[half[::-1]]
    assert rmsd(both.system, x, both.positions)["all"] > 0


@pytest.mark.parametrize("seed", [0, 1, 33, 39, 53])
def test_rmsd_finds_the_best_names_in_two_rounds(lipid, seed):
    """The last three seeds need the second round."""
    methyls = [lipid.atom(1, name) for name in ("C13", "C14", "C15")]
    reference, x = lipid.positions, lipid.positions.copy()
    x[methyls] += np.random.default_rng(seed).normal(0, 2, (3, 3))
    best = min(
        ((x[methyls] - reference[list(order)]) ** 2).sum()
        for order in itertools.permutations(methyls)
    )
    found = rmsd(lipid.system, x, reference)["all"] ** 2 * len(x)
    assert found == pytest.approx(best)


def test_rmsd_takes_the_nearest_image_of_a_molecule(both):
    molecule = both.system.bead_molecule[both.system.atom_bead]
    shift = (np.array([[1, -1, 2], [0, 3, 0]]) @ BOX)[molecule]
    moved = both.positions + shift + [0.3, 0, 0]
    assert rmsd(both.system, moved, both.positions, BOX)["all"] == pytest.approx(0.3)
    assert rmsd(both.system, moved, both.positions)["all"] > 50


def test_rmsd_of_nothing_is_nan(lipid):
    result = rmsd(lipid.system, lipid.positions, lipid.positions)
    assert np.isnan(result["backbone"])
    assert np.isnan(result["side_chains"])
    reference = lipid.positions.copy()
    reference[:10] = np.nan
    assert rmsd(lipid.system, lipid.positions, reference)["n_atoms"] == 42
    assert rmsd(lipid.system, lipid.positions, reference)["all"] == 0
    with pytest.raises(StructureError, match="reference"):
        rmsd(lipid.system, lipid.positions, reference[:5])


# Reports


@pytest.fixture
def summary(both) -> Summary:
    """Two frames, one sound and one with a stretched bond."""
    system, x = both.system, both.positions.copy()
    x[system.atoms.resnames == "POPC"] += 60
    beads = system.map_positions(x)
    checker, summary = Checker(system), Summary()
    summary.add(checker(x, BOX, beads))
    x[both.atom(6, "NZ")] += [0.9, 0, 0]
    summary.add(checker(x, BOX, beads + 0.2), rmsd=rmsd(system, x, x + 1), label="bad")
    return summary


def test_a_summary_adds_frames_up(summary, both):
    table = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert table["frames"] == 2
    assert table["atoms"] == 2 * both.system.n_atoms
    bonds = table["counts"]["bonds"]
    assert (bonds["wrong"], bonds["of"]) == (1, 2 * len(both.system.atoms.bonds))
    assert bonds["percent"] == pytest.approx(100 / bonds["of"])
    assert table["residues"]["LYS"]["bonds"]["wrong"] == 1
    assert table["residues"]["POPC"]["bonds"]["wrong"] == 0
    assert table["examples"]["bonds"] == ["bad: A LYS 6 CE-NZ"]
    assert table["counts"]["cis_proline"]["percent"] is None
    assert table["counts"]["clashes"]["per_1000_atoms"] == 0
    assert table["rmsd"]["all"] == pytest.approx(np.sqrt(3))
    assert table["rmsd"]["kinds"]["lipid"] == pytest.approx(np.sqrt(3))
    shift = table["bead_shift"]
    assert shift["n_beads"] == 2 * both.system.n_beads
    assert shift["p95"] == pytest.approx(0.2 * np.sqrt(3), abs=0.02)


def test_a_summary_as_text_and_page(summary, tmp_path):
    text = summary.to_text()
    assert max(map(len, text.splitlines())) < 80
    assert "bad: A LYS 6 CE-NZ" in text
    path = tmp_path / "report.html"
    summary.to_html(path)
    page = path.read_text()
    assert "data:image/png;base64," in page
    assert "2 frames" in page
    with pytest.raises(OutputFileError, match="cannot be written"):
        summary.to_html(tmp_path / "no" / "report.html")


def test_an_empty_summary_shows_itself(tmp_path):
    assert Summary().to_json()["frames"] == 0
    assert "0 frames" in Summary().to_text()
    Summary().to_html(tmp_path / "empty.html")


def test_names_are_escaped_on_the_page(lipid, tmp_path):
    atoms = dataclasses.replace(lipid.system.atoms, segids=np.full(52, "<b>"))
    system = dataclasses.replace(lipid.system, atoms=atoms)
    summary = Summary()
    summary.add(check(system, lipid.positions * 1.5))
    summary.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt; POPC" in page
    assert "<b>" not in page


def test_a_summary_does_not_grow(both):
    checker, summary, sizes = Checker(both.system), Summary(), []
    for _ in range(30):
        summary.add(checker(both.positions))
        sizes.append(len(pickle.dumps(summary)))
    assert sizes[-1] < 1.02 * sizes[1]
