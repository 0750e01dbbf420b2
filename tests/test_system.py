"""Laying out systems: which beads are which residue, what is bonded, what is left out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from mdbackmap.errors import StructureError, UnknownBeadError
from mdbackmap.geometry.boxes import Unwrapper, box_from_dimensions
from mdbackmap.mapping.library import Library, terminal_variant
from mdbackmap.mapping.system import System, from_atoms, from_beads, one_molecule
from mdbackmap.structure import Frame, Particles

LIBRARY = Library.load(["martini3"])
BEADS = {
    name: LIBRARY.candidates(name)[0].bead_names
    for name in ("ALA", "CYS", "GLY", "HIS", "LYS", "PHE", "PRO", "POPC", "CHOL")
} | {"W": ("W",), "NA": ("NA",), "CL": ("CL",)}
TRICLINIC = np.array([[40.0, 0.0, 0.0], [15.0, 35.0, 0.0], [-10.0, 12.0, 30.0]])


class Builder:
    """Collects beads or atoms, residue by residue, as a file lists them."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, int, str]] = []
        self.positions: list[np.ndarray] = []
        self.bonds: list[tuple[int, int]] = []

    def residue(self, resname, resid, at, *, names=None, segid="", spread=1.0) -> int:
        """Add one residue whose first bead is at a place; return the index of that bead."""
        first = len(self.rows)
        names = BEADS[resname] if names is None else names
        for k, name in enumerate(names):
            self.rows.append((name, resname, resid, segid))
            self.positions.append(np.add(at, (0.0, spread * k, 0.0)))
        return first

    def chain(self, sequence, *, first=1, at=(0.0, 0.0, 0.0), step=3.5, segid="") -> list[int]:
        """Add residues in a row along x; return the indices of their BB beads."""
        x, y, z = at
        return [
            self.residue(name, first + k, (x + step * k, y, z), segid=segid)
            for k, name in enumerate(sequence)
        ]

    def file(self, *, bonds=None) -> Particles:
        names, resnames, resids, segids = zip(*self.rows, strict=True)
        return Particles(
            np.array(names), np.array(resnames), np.array(resids), np.array(segids), "cg.gro",
            None if bonds is None else np.array(bonds, dtype=np.int64).reshape(-1, 2),
        )  # fmt: skip

    def frame(self, box=None) -> Frame:
        return Frame(np.array(self.positions, dtype=np.float32), box)

    def system(self, *, bonds=None, box=None, **options) -> System:
        return from_beads(self.file(bonds=bonds), LIBRARY, self.frame(box), **options)


def residues(system: System) -> list[str]:
    return system.residue_names.tolist()


def molecules(system: System) -> list[list[int]]:
    """Residues of every molecule."""
    of = [sorted(set(system.bead_residue[system.bead_molecule == m].tolist()))
          for m in np.unique(system.bead_molecule)]  # fmt: skip
    return sorted(of)


def peptide_bonds(system: System) -> set[tuple[int, int]]:
    table = system.atoms
    return {
        (int(table.residue[i]), int(table.residue[j]))
        for i, j in table.bonds.tolist()
        if table.residue[i] != table.residue[j] and {table.names[i], table.names[j]} == {"C", "N"}
    }


SEQUENCE = ["ALA", "LYS", "GLY", "PRO", "PHE"]


# Chains


def test_a_chain_without_bonds():
    build = Builder()
    build.chain(SEQUENCE)
    system = build.system()
    assert residues(system) == SEQUENCE
    assert system.next_residue.tolist() == [1, 2, 3, 4, -1]
    assert peptide_bonds(system) == {(0, 1), (1, 2), (2, 3), (3, 4)}
    assert molecules(system) == [[0, 1, 2, 3, 4]]
    assert system.left_out == {}
    assert system.bead_source.tolist() == list(range(system.n_beads))
    assert (system.atom_source == -1).all()


def test_atoms_in_output_order():
    build = Builder()
    build.chain(SEQUENCE, first=7)
    table = build.system().atoms
    expected = []
    for name in SEQUENCE:
        expected += LIBRARY.candidates(name)[0].names.tolist()
    assert table.names.tolist() == [*expected, "OXT"]
    assert table.resids.tolist() == [7 + r for r in table.residue]
    assert [table.resnames[table.residue == r][0] for r in range(5)] == SEQUENCE
    assert set(table.elements) <= {"C", "N", "O", "S"}


def test_only_the_last_residue_has_oxt():
    build = Builder()
    build.chain(SEQUENCE)
    build.chain(SEQUENCE, at=(0, 30, 0))
    table = build.system().atoms
    assert table.residue[table.names == "OXT"].tolist() == [4, 9]


def test_every_index_points_into_its_own_residue():
    build = Builder()
    build.chain(SEQUENCE)
    build.residue("POPC", 6, (0, 30, 0))
    system = build.system()
    owner = system.atoms.residue
    assert (system.bead_residue[system.atom_bead] == owner).all()
    hung = system.anchors >= 0
    assert (owner[system.anchors[hung]] == owner[hung]).all()
    assert (system.levels[system.anchors[hung]] == system.levels[hung] - 1).all()
    assert (system.bead_residue[system.members[:, 0]] == owner[system.members[:, 1]]).all()
    total = np.bincount(system.members[:, 0], system.weights, minlength=system.n_beads)
    np.testing.assert_allclose(total, 1.0)
    keys = np.array(system.bead_keys)[system.bead_key]
    assert [key.split(":")[0] for key in keys] == system.beads.names.tolist()


@pytest.mark.parametrize(("distance", "linked"), [(3.5, True), (5.1, True), (5.4, False)])
def test_without_bonds_distance_decides(distance, linked):
    build = Builder()
    build.chain(["GLY", "GLY"], step=distance)
    assert (build.system().next_residue[0] == 1) == linked


@pytest.mark.parametrize(
    ("numbers", "linked"),
    [((1, 2), True), ((7, 7), True), ((1, 3), False), ((2, 1), False), ((9, 1), False),
     ((9999, 0), True), ((99999, 0), True), ((10000, 0), False)],
)  # fmt: skip
def test_without_bonds_numbers_decide(numbers, linked):
    """Numbers go on, repeat (insertion codes), or wrap where the file format ends."""
    build = Builder()
    build.residue("ALA", numbers[0], (0, 0, 0))
    build.residue("GLY", numbers[1], (3.5, 0, 0))
    assert (build.system().next_residue[0] == 1) == linked


def test_numbers_that_wrap_inside_a_system():
    build = Builder()
    first = 99_998
    for k, name in enumerate(SEQUENCE):
        build.residue(name, (first + k) % 100_000, (3.5 * k, 0, 0))
    build.residue("W", 3, (50, 0, 0))
    build.residue("W", 3, (60, 0, 0))
    system = build.system()
    assert system.next_residue.tolist() == [1, 2, 3, 4, -1]
    assert system.atoms.residue.max() == 4
    assert sorted(set(system.atoms.resids.tolist())) == [0, 1, 2, 99_998, 99_999]
    assert system.left_out == {"W (solvent)": 2}


def test_a_segment_ends_a_chain():
    build = Builder()
    build.chain(["GLY", "ALA"], segid="A")
    build.chain(["GLY", "ALA"], first=3, at=(7.0, 0, 0), segid="B")
    system = build.system()
    assert system.next_residue.tolist() == [1, -1, 3, -1]
    assert system.atoms.segids[system.atoms.residue == 2].tolist() == ["B"] * 4


def test_two_chains_whose_numbering_restarts():
    build = Builder()
    build.chain(SEQUENCE)
    build.chain(SEQUENCE, at=(17.5, 0, 0))
    system = build.system()
    assert system.next_residue.tolist() == [1, 2, 3, 4, -1, 6, 7, 8, 9, -1]
    assert molecules(system) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_the_box_is_seen_when_distances_are_measured():
    build = Builder()
    build.chain(["GLY"] * 4)
    build.positions[2] = build.positions[2] + TRICLINIC[1] - TRICLINIC[2]
    assert build.system(box=TRICLINIC).next_residue.tolist() == [1, 2, 3, -1]
    assert build.system(box=None).next_residue.tolist() == [1, -1, -1, -1]


def test_bonds_decide_where_the_file_has_them():
    build = Builder()
    bb = build.chain(["ALA", "LYS", "GLY", "PHE"], first=5)
    # Numbers and distances say one chain; the bonds say two.
    system = build.system(bonds=[(bb[1], bb[0]), (bb[2], bb[3])])
    assert system.next_residue.tolist() == [1, -1, 3, -1]
    # Numbers that mean nothing and molecules cut without a box.
    build = Builder()
    bb = [build.residue("ALA", number, (x, 0, 0)) for number, x in ((9, 0), (4, 3.5), (4, 60))]
    assert build.system(bonds=[(bb[0], bb[1]), (bb[1], bb[2])]).next_residue.tolist() == [1, 2, -1]


def test_bonds_of_a_ligand_say_nothing_of_the_backbone():
    build = Builder()
    build.chain(["ALA", "LYS", "GLY"])
    first = build.residue("POPC", 4, (0, 30, 0))
    assert build.system(bonds=[(first, first + 1)]).next_residue.tolist() == [1, 2, -1, -1]


def test_bonds_of_an_elastic_network_are_no_peptide_bonds():
    build = Builder()
    bb = build.chain(["ALA", "LYS"]) + build.chain(["GLY", "PHE"], first=4, at=(10.5, 0, 0))
    system = build.system(bonds=[(bb[0], bb[1]), (bb[2], bb[3]), (bb[1], bb[2]), (bb[0], bb[2])])
    assert system.next_residue.tolist() == [1, -1, 3, -1]


def test_peptide_bonds_have_their_geometry():
    build = Builder()
    build.chain(SEQUENCE)
    system = build.system()
    names = system.atoms.names[system.omegas]
    assert names.tolist() == [["CA", "C", "N", "CA"]] * 4
    owners = system.atoms.residue[system.omegas]
    cis = dict(zip(owners[:, 0].tolist(), system.omega_may_be_cis.tolist(), strict=True))
    assert cis == {0: False, 1: False, 2: True, 3: False}


# Names and order of beads


def test_beads_in_another_order():
    build = Builder()
    build.residue("LYS", 1, (0, 0, 0), names=["SC2", "BB", "SC1"])
    build.residue("PHE", 2, (0, 4.5, 0), names=["BB", "SC3", "SC2", "SC1"])
    system = build.system()
    assert system.beads.names.tolist() == ["BB", "SC1", "SC2", "BB", "SC1", "SC2", "SC3"]
    assert system.bead_source.tolist() == [1, 2, 0, 3, 6, 5, 4]
    assert system.next_residue.tolist() == [1, -1]


def test_other_residue_names_are_kept_apart_from_the_output_name():
    build = Builder()
    build.residue("HIS", 1, (0, 0, 0))
    build.rows = [(name, "HSD", resid, segid) for name, _, resid, segid in build.rows]
    build.residue("CHOL", 2, (0, 30, 0))
    assert residues(build.system()) == ["HIS", "CHL1"]


def test_residues_without_a_number_of_their_own():
    """Names that come back start a new residue."""
    build = Builder()
    for x in range(3):
        build.residue("GLY", 1, (3.5 * x, 0, 0))
    assert build.system().next_residue.tolist() == [1, 2, -1]


# What is left out


def test_go_beads_after_the_chain_are_counted():
    build = Builder()
    build.chain(SEQUENCE)
    for k, name in enumerate(SEQUENCE):
        build.residue(name, 1 + k, (3.5 * k, 0, 0), names=["CA"])
    system = build.system()
    assert residues(system) == SEQUENCE
    assert system.left_out == {"Go virtual site": 5}


def test_go_beads_inside_their_residues_are_counted():
    build = Builder()
    for k, name in enumerate(SEQUENCE):
        build.residue(name, 1 + k, (3.5 * k, 0, 0), names=[*BEADS[name], "CA"])
    system = build.system()
    assert system.next_residue.tolist() == [1, 2, 3, 4, -1]
    assert system.left_out == {"Go virtual site": 5}
    assert "CA" not in system.beads.names


def test_lipids_water_and_ions():
    build = Builder()
    for k in range(3):
        build.residue("POPC", 1 + k, (0, 0, 9.0 * k), spread=2.0)
    build.residue("CHOL", 4, (20, 0, 0))
    for k in range(5):
        build.residue("W", 5 + k, (30, 0, 0))
    build.residue("NA", 10, (30, 5, 0))
    build.residue("CL", 11, (30, 9, 0))
    system = build.system()
    assert residues(system) == ["POPC"] * 3 + ["CHL1"]
    assert system.residue_kinds.tolist() == ["lipid"] * 4
    assert system.left_out == {"W (solvent)": 5, "NA (ion)": 1, "CL (ion)": 1}
    assert molecules(system) == [[0], [1], [2], [3]]
    assert (system.next_residue == -1).all()


def test_beads_of_each_residue_hang_together():
    build = Builder()
    build.residue("POPC", 1, (0, 0, 0))
    system = build.system()
    assert (system.bead_parent == -1).sum() == 1
    names = system.beads.names
    parent = {str(names[b]): str(names[p]) for b, p in enumerate(system.bead_parent) if p >= 0}
    assert parent["PO4"] == "NC3"
    assert parent["D2A"] == "C1A"
    assert parent["C4B"] == "C3B"


def test_unknown_beads_are_listed_with_counts():
    build = Builder()
    build.chain(["ALA"])
    for k in range(3):
        build.residue("XYZ", 2 + k, (9, 9, 9), names=["Q1", "Q2"])
    build.residue("LYS", 5, (20, 0, 0), names=["BB", "SC1"], segid="B")
    build.residue("POPE", 6, (30, 0, 0), names=["NC3", "PO4"])
    with pytest.raises(UnknownBeadError) as caught:
        build.system()
    text = str(caught.value)
    assert text.startswith("cg.gro: 5 residues have beads that the mapping (martini3) does not")
    assert "3 x XYZ with beads Q1 Q2: no mapping of that name; first residue 2" in text
    assert (
        "1 x LYS: bead SC2 is missing (expected BB SC1 SC2; found BB SC1); first residue 5, "
        "segment B" in text
    )
    assert "POPE: bead" in text
    assert "--skip-unknown" in text


@pytest.mark.parametrize(
    ("resname", "names", "advice"),
    [
        ("TRP", ["BB", "SC1", "SC2", "SC3", "SC4"], "mapping martini2 knows them"),
        ("ALA", ["N", "CA", "C", "O", "CB"], "'mdbackmap map' makes beads of atoms"),
    ],
)
def test_what_unknown_beads_may_be(resname, names, advice):
    build = Builder()
    build.residue(resname, 1, (0, 0, 0), names=names)
    with pytest.raises(UnknownBeadError, match=advice):
        build.system()


def test_unknown_beads_are_counted_when_they_are_skipped():
    build = Builder()
    build.chain(["ALA", "GLY"])
    build.residue("LYS", 3, (7.0, 0, 0), names=["BB", "SC1"])
    build.chain(["ALA", "GLY"], first=4, at=(10.5, 0, 0))
    system = build.system(skip_unknown=True)
    assert residues(system) == ["ALA", "GLY", "ALA", "GLY"]
    assert system.next_residue.tolist() == [1, -1, 3, -1]
    ((text, count),) = system.left_out.items()
    assert (text.startswith("unknown: LYS: bead SC2 is missing"), count) == (True, 1)


def test_nothing_to_backmap():
    build = Builder()
    build.residue("W", 1, (0, 0, 0))
    with pytest.raises(StructureError, match=r"nothing to backmap; left out: 1 W \(solvent\)"):
        build.system()
    empty = Particles(*(np.zeros(0, t) for t in ("U4", "U4", "int64", "U4")))
    for build_system in (from_beads, from_atoms):
        with pytest.raises(StructureError):
            build_system(empty, LIBRARY, Frame(np.zeros((0, 3), np.float32)))


def test_a_frame_of_another_file():
    build = Builder()
    build.chain(["ALA", "GLY"])
    with pytest.raises(StructureError, match="3 particles, but frame 0 has 2 positions"):
        from_beads(build.file(), LIBRARY, Frame(build.frame().positions[:2]))


# Disulfides


def two_cysteines(distance: float) -> Builder:
    """Two chains, each with a cysteine whose SC1 beads are that far apart."""
    build = Builder()
    build.chain(["ALA", "CYS", "GLY"], segid="A")
    build.chain(["GLY", "CYS", "ALA", "LYS"], at=(0, 2.0 + distance, 0), segid="B")
    site = [i for i, row in enumerate(build.rows) if row[:2] == ("SC1", "CYS")]
    build.positions[site[1]] = build.positions[site[0]] + [0.0, distance, 0.0]
    return build


def sulfur_bonds(system: System) -> list[list[int]]:
    table = system.atoms
    pairs = [pair for pair in table.bonds if (table.names[pair] == "SG").all()]
    return [table.residue[pair].tolist() for pair in pairs]


@pytest.mark.parametrize(("distance", "bridged"), [(2.4, True), (3.1, True), (3.4, False)])
def test_disulfides_by_distance(distance, bridged):
    system = two_cysteines(distance).system()
    assert system.bridges.tolist() == ([[1, 4]] if bridged else [])
    assert sulfur_bonds(system) == ([[1, 4]] if bridged else [])
    assert molecules(system) == ([list(range(7))] if bridged else [[0, 1, 2], [3, 4, 5, 6]])


def test_disulfides_by_bond():
    build = two_cysteines(8.0)
    sites = [i for i, row in enumerate(build.rows) if row[:2] == ("SC1", "CYS")]
    system = build.system(bonds=[sites[::-1], sites])
    assert system.bridges.tolist() == [[1, 4]]
    assert molecules(system) == [list(range(7))]


def test_bridged_chains_are_made_whole_as_one():
    build = two_cysteines(2.4)
    whole = np.array(build.positions)
    system = build.system(box=TRICLINIC)
    # Chain B is in another image, and cut there.
    second = np.array([row[3] == "B" for row in build.rows])
    cut = whole + np.where(second[:, None], TRICLINIC[0] - TRICLINIC[2], 0.0)
    cut[-3:] += TRICLINIC[1]
    found = Unwrapper(system.bead_parent)(cut[system.bead_source], TRICLINIC)
    moved = found - whole[system.bead_source]
    np.testing.assert_allclose(moved, moved[0] * np.ones_like(moved), atol=1e-9)


def test_a_bridge_inside_a_chain_makes_no_cycle():
    build = Builder()
    build.chain(["CYS", "GLY", "GLY", "CYS"])
    sites = [1, 5]
    build.positions[5] = build.positions[1] + [0.0, 2.4, 0.0]
    system = build.system()
    assert system.bridges.tolist() == [[0, 3]]
    assert (system.bead_parent == -1).sum() == 1
    assert [system.beads.names[s] for s in sites] == ["SC1", "SC1"]


def test_each_cysteine_has_one_partner():
    build = Builder()
    for k, x in enumerate([0.0, 2.8, 5.2, 20.0]):
        build.residue("CYS", 10 * k, (x, 0, 0))
    assert build.system().bridges.tolist() == [[1, 2]]


# Atomistic input


def atomistic(sequence, *, drop=(), rename=None, hydrogens=True, oxt="OXT") -> Builder:
    """A straight chain of atoms: C of a residue is 1.3 Å from N of the next."""
    build = Builder()
    for k, resname in enumerate(sequence):
        template = LIBRARY.candidates(resname)[0]
        names = template.names.tolist()
        if k == len(sequence) - 1 and oxt:
            names = [*names, oxt]
        for j, name in enumerate(names):
            if (k, name) in drop:
                continue
            x = {"N": 0.0, "CA": 1.0, "C": 2.0}.get(name)
            at = (3.3 * k + x, 0.0, 0.0) if x is not None else (3.3 * k, 2.0 + j, 5.0)
            build.rows.append(((rename or {}).get(name, name), resname, k + 1, ""))
            build.positions.append(np.array(at))
            if hydrogens:
                build.rows.append((f"H{j}", resname, k + 1, ""))
                build.positions.append(np.array(at) + 0.3)
    return build


def system_of(build: Builder, **options) -> System:
    return from_atoms(build.file(), LIBRARY, build.frame(), **options)


@pytest.mark.parametrize("hydrogens", [True, False])
@pytest.mark.parametrize("residue", ["ARG", "ASN", "GLN", "GLU", "ILE", "LEU", "LYS", "PRO", "TRP"])
def test_atoms_are_found_and_hydrogens_ignored(residue, hydrogens):
    build = atomistic(["ALA", residue, "GLY"], hydrogens=hydrogens)
    system = system_of(build, complete=True)
    assert residues(system) == ["ALA", residue, "GLY"]
    names = build.file().names
    assert (names[system.atom_source] == system.atoms.names).all()
    assert system.next_residue.tolist() == [1, 2, -1]
    assert system.left_out == {}


@pytest.mark.parametrize("oxt", ["OXT", "OT2", "OC2"])
def test_the_terminal_oxygen_makes_the_variant(oxt):
    rename = {"O": oxt.replace("2", "1")} if oxt != "OXT" else {}
    system = system_of(atomistic(["ALA", "LYS"], oxt=oxt, rename=rename))
    assert (system.atom_source >= 0).all()
    assert system.atoms.names.tolist().count("OXT") == 1
    assert system.templates[system.residue_template[1]] is terminal_variant(
        LIBRARY.candidates("LYS")[0]
    )


def test_without_terminal_oxygen_no_variant():
    system = system_of(atomistic(["ALA", "LYS"], oxt=None))
    assert "OXT" not in system.atoms.names


def test_missing_atoms():
    build = atomistic(["ALA", "LYS", "GLY"], drop={(1, "NZ"), (1, "CE")})
    system = system_of(build)
    missing = system.atom_source < 0
    assert system.atoms.names[missing].tolist() == ["CE", "NZ"]
    assert system.next_residue.tolist() == [1, 2, -1]
    complete = system_of(build, complete=True)
    assert residues(complete) == ["ALA", "GLY"]
    assert complete.left_out == {"LYS (incomplete)": 1}
    assert complete.next_residue.tolist() == [-1, -1]


def test_a_missing_backbone_atom_ends_the_chain():
    assert system_of(atomistic(["ALA", "LYS"], drop={(1, "N")})).next_residue.tolist() == [-1, -1]


def test_an_alias_of_the_family_is_no_alias_in_a_residue_that_has_the_name():
    """CD is CD1 in isoleucine (CHARMM, GROMACS) and itself in lysine."""
    system = system_of(atomistic(["ILE", "LYS"], rename={"CD1": "CD"}), complete=True)
    assert residues(system) == ["ILE", "LYS"]


def test_what_no_template_knows_is_counted():
    build = atomistic(["ALA", "GLY"])
    build.residue("HEM", 3, (50, 0, 0), names=["FE", "NA", "NB"])
    build.residue("LYS", 4, (60, 0, 0), names=["N", "CA"])
    build.residue("CL", 5, (70, 0, 0), names=["CL"])
    assert system_of(build).left_out == {
        "HEM (unknown)": 1, "LYS (does not fit)": 1, "CL (ion)": 1,
    }  # fmt: skip


def test_no_residue_fits():
    build = Builder()
    build.residue("HEM", 3, (50, 0, 0), names=["FE"])
    with pytest.raises(StructureError, match=r"fits the mapping \(martini3\); found 1 HEM"):
        system_of(build)


def test_atoms_and_beads_give_the_same_layout():
    build = Builder()
    build.chain(SEQUENCE)
    ours, theirs = build.system(), system_of(atomistic(SEQUENCE))
    for name in ("anchors", "levels", "atom_bead", "bead_parent", "bead_molecule", "next_residue"):
        assert (getattr(ours, name) == getattr(theirs, name)).all()
    assert (ours.atoms.names == theirs.atoms.names).all()
    positions = np.random.default_rng(0).normal(size=(theirs.n_atoms, 3))
    np.testing.assert_allclose(ours.map_positions(positions), theirs.map_positions(positions))
    assert ours.atom_keys == theirs.atom_keys


# Caps and other polymers


def test_a_cap_is_linked_on_one_side(tmp_path):
    path = tmp_path / "ACE.yaml"
    path.write_text(
        "residue: ACE\nkind: protein\nbeads: {BB: }\n"
        "atoms:\n  CH3: {bead: BB}\n  C: {bead: BB}\n  O: {bead: BB}\n"
        "bonds: [[CH3, C], [C, O, 2]]\nlink: {bonds: [[C, +N]]}\n"
    )
    build = Builder()
    build.residue("ACE", 1, (0, 0, 0), names=["BB"])
    build.chain(["ALA", "GLY"], first=2, at=(3.5, 0, 0))
    build.residue("ACE", 4, (10.5, 0, 0), names=["BB"])
    system = from_beads(build.file(), Library.load([path]), build.frame())
    assert system.next_residue.tolist() == [1, 2, -1, -1]
    assert (0, 1) in peptide_bonds(system)
    # The cap has no N and CA: psi of the residue after it is known, phi is not.
    assert system.backbone_residues.tolist() == []


# Backbones


def rows_of(system: System) -> dict[int, list[tuple[int, str]]]:
    """Residue and name of each atom of every row of phi and psi, by residue."""
    table = system.atoms
    return {
        int(residue): [(int(table.residue[i]), str(table.names[i])) for i in row]
        for residue, row in zip(system.backbone_residues, system.backbone.phi_psi, strict=True)
    }


def around(k: int) -> list[tuple[int, str]]:
    return [(k - 1, "C"), (k, "N"), (k, "CA"), (k, "C"), (k + 1, "N")]


def test_phi_and_psi_of_every_residue_with_both_neighbours():
    build = Builder()
    build.chain(["LYS", "GLY", "PHE", "ALA"])
    build.chain(["PRO", "ALA"], at=(0, 40, 0), segid="B")
    build.chain(["ALA", "CYS", "ALA"], at=(0, 80, 0), segid="C")
    build.residue("POPC", 20, (0, 120, 0))
    system = build.system()
    assert system.backbone_residues.tolist() == [1, 2, 7]
    assert rows_of(system) == {k: around(k) for k in (1, 2, 7)}
    assert system_of(atomistic(SEQUENCE)).backbone_residues.tolist() == list(
        range(1, len(SEQUENCE) - 1)
    )


def test_a_break_in_a_chain_ends_it_on_both_sides():
    build = Builder()
    build.chain(["ALA"] * 3)
    build.chain(["ALA"] * 4, first=4, at=(25, 0, 0))
    assert build.system().backbone_residues.tolist() == [1, 4, 5]


@pytest.mark.parametrize(
    ("sequence", "kinds"),
    [(["ALA", "LYS", "GLY", "PRO", "ALA"], [0, 4, 3]), (["ALA", "LYS", "PRO", "PRO"], [2, 3]),
     (["GLY", "PHE", "HIS", "PRO"], [0, 2]), (["PRO", "ALA", "GLY"], [0])],
)  # fmt: skip
def test_kinds_of_backbone_residues(sequence, kinds):
    build = Builder()
    build.chain(sequence)
    assert build.system().backbone.kind.tolist() == kinds


def test_the_last_residue_is_no_neighbour_of_the_first():
    build = Builder()
    build.chain(["ALA", "PRO"])
    backbone = build.system().backbone
    assert backbone.phi_psi.shape == (0, 5)
    assert len(backbone.kind) == 0
    assert len(backbone.omegas) == 1
    assert backbone.may_be_cis.tolist() == [True]


def test_peptides_of_the_backbone_are_those_of_the_system():
    build = Builder()
    build.chain(SEQUENCE)
    system = build.system()
    table, backbone = system.atoms, system.backbone
    assert np.array_equal(backbone.omegas, system.omegas)
    assert (table.names[backbone.omegas] == ["CA", "C", "N", "CA"]).all()
    before_proline = system.residue_names[table.residue[backbone.omegas[:, 2]]] == "PRO"
    assert np.array_equal(backbone.may_be_cis, before_proline)
    assert not backbone.cis.any()


def test_lipids_have_no_backbone():
    build = Builder()
    build.residue("POPC", 1, (0, 0, 0))
    backbone = build.system().backbone
    assert [len(column) for column in vars(backbone).values()] == [0] * 5


@pytest.mark.parametrize("bonds", [True, False])
def test_rings_of_residues_are_followed_round(bonds):
    """A cyclic peptide whose last residue is bonded to its first has no ends."""
    build = Builder()
    build.chain(["ALA"] * 4)
    system = build.system()
    closed = replace(system, next_residue=np.array([1, 2, 3, 0 if bonds else -1]))
    expected = [0, 1, 2, 3] if bonds else [1, 2]
    assert closed.backbone_residues.tolist() == expected
    if bonds:
        assert rows_of(closed)[0][0] == (3, "C")
        assert rows_of(closed)[3][4] == (0, "N")


# Whole molecules


def random_tree(rng: np.random.Generator, n: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    parent = np.array([-1] + [int(rng.integers(max(0, k - 4), k)) for k in range(1, n)])
    positions = np.zeros((n, 3))
    for k in range(1, n):
        turn = rng.normal(size=3)
        positions[k] = positions[parent[k]] + step * turn / np.linalg.norm(turn)
    return parent, positions


@given(stn.arrays(np.int64, (40, 3), elements=st.integers(-3, 3)), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_cut_molecules_come_back_identical(shifts, seed):
    parent, whole = random_tree(np.random.default_rng(seed), len(shifts), 5.0)
    shifts[0] = 0
    for box in (TRICLINIC, box_from_dimensions(np.array([30.0, 40, 35, 60, 60, 90]))):
        found = Unwrapper(parent)(whole + shifts @ box, box)
        np.testing.assert_allclose(found, whole, rtol=0, atol=1e-9)


@given(stn.arrays(np.int64, (7, 3), elements=st.integers(-2, 2)))
@settings(max_examples=30, deadline=None)
def test_beads_of_a_chain_come_back_identical(shifts):
    build = Builder()
    build.chain(SEQUENCE[:3] + SEQUENCE[:1])
    whole = np.array(build.positions)
    shifts = np.resize(shifts, (len(whole), 3))
    shifts[0] = 0
    cut = Frame((whole + shifts @ TRICLINIC).astype(np.float32), TRICLINIC)
    system = from_beads(build.file(), LIBRARY, cut)
    assert system.next_residue.tolist() == [1, 2, 3, -1]
    found = Unwrapper(system.bead_parent)(cut.positions[system.bead_source], TRICLINIC)
    np.testing.assert_allclose(found, whole[system.bead_source], rtol=0, atol=1e-4)


def test_a_chain_much_longer_than_the_box():
    n = 1000
    rng = np.random.default_rng(1)
    whole = np.cumsum(rng.normal(size=(n, 3)) * 0.5 + [3.0, 1.0, 0.5], axis=0)
    parent = np.arange(n) - 1
    cell = whole @ np.linalg.inv(TRICLINIC)
    wrapped = (cell - np.floor(cell)) @ TRICLINIC
    found = Unwrapper(parent)(wrapped, TRICLINIC)
    np.testing.assert_allclose(found - found[0], whole - whole[0], rtol=0, atol=1e-9)
    assert (wrapped[0] == found[0]).all()
    # Without a box nothing moves.
    assert Unwrapper(parent)(wrapped, None) is wrapped


def test_the_tree_may_be_in_any_order():
    rng = np.random.default_rng(2)
    parent, whole = random_tree(rng, 60, 4.0)
    order = rng.permutation(60)
    place = np.argsort(order)
    shuffled = np.where(parent[order] < 0, -1, place[parent[order]])
    cut = whole + rng.integers(-2, 3, size=(60, 3)) @ TRICLINIC
    found = Unwrapper(shuffled)(cut[order], TRICLINIC)[place]
    np.testing.assert_allclose(found - found[0], whole - whole[0], rtol=0, atol=1e-9)


def test_bonds_of_a_file_are_evidence_only():
    """The same system with and without bonds has the same connectivity."""
    build = Builder()
    bb = build.chain(SEQUENCE)
    ours = build.system()
    bonds = list(itertools.pairwise(bb))
    theirs = from_beads(replace(build.file(), bonds=np.array(bonds)), LIBRARY, build.frame())
    assert (ours.atoms.bonds == theirs.atoms.bonds).all()
    assert (ours.bead_parent == theirs.bead_parent).all()


# Chain ends


def test_an_open_end_is_placed_as_within_the_chain(insulin_system):
    system, ends = insulin_system, insulin_system.chain_ends
    assert system.atoms.names[np.isin(system.atoms.residue, ends)].tolist().count("OXT") == 2
    opened = system.with_open_ends(ends)
    atoms = np.random.default_rng(0).normal(size=(system.n_atoms, 3))
    before, after = system.map_positions(atoms), opened.map_positions(atoms)
    moved = np.flatnonzero(np.abs(before - after).max(axis=1) > 1e-9)
    assert system.bead_residue[moved].tolist() == ends.tolist()
    mass = {"C": 12.011, "N": 14.007, "O": 15.999}
    for bead in moved:
        inside = system.members[system.members[:, 0] == bead, 1]
        inside = inside[system.atoms.names[inside] != "OXT"]
        weight = np.array([mass[e] for e in system.atoms.elements[inside]])
        assert after[bead] == pytest.approx(weight @ atoms[inside] / weight.sum(), abs=0.01)
    keys = np.array(opened.bead_keys)[opened.bead_key]
    assert not any("OXT" in key for key in keys)
    changed = keys != np.array(system.bead_keys)[system.bead_key]
    assert np.flatnonzero(changed).tolist() == moved.tolist()
    assert opened.with_open_ends(ends).bead_keys == opened.bead_keys
    assert opened.atoms is system.atoms


def test_one_end_may_be_open_and_another_not(insulin_system):
    first, second = insulin_system.chain_ends
    opened = insulin_system.with_open_ends(np.array([second]))
    keys = np.array(opened.bead_keys)[opened.bead_key]
    oxygen = ["OXT" in "".join(keys[opened.bead_residue == end]) for end in (first, second)]
    assert oxygen == [True, False]


def test_lipids_have_no_ends(membrane_system):
    assert len(membrane_system.chain_ends) == 0


# Parts


def of_part(kept: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Indices into the whole; those of what is not kept are -1."""
    return np.where(np.isin(values, kept), values, -1)


def of_whole(kept: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Indices into a part as those into the whole, -1 stays."""
    return np.where(values < 0, -1, kept[values])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["insulin_system", "membrane_system"])
def test_some_residues_alone_are_as_in_the_whole(request, name, seed):
    whole, rng = request.getfixturevalue(name), np.random.default_rng(seed)
    wanted = rng.random(len(whole.residue_template)) < 0.6
    part, beads, atoms = whole.of_residues(wanted)
    kept = np.flatnonzero(wanted)
    positions = rng.normal(size=(whole.n_atoms, 3))
    assert part.map_positions(positions[atoms]) == pytest.approx(
        whole.map_positions(positions)[beads]
    )
    assert [t.residue for t in part.templates_of_residues()] == whole.residue_names[kept].tolist()
    assert set(part.residue_template) == set(range(len(part.templates)))
    for key in ("names", "elements", "resnames", "resids", "segids"):
        assert (getattr(part.atoms, key) == getattr(whole.atoms, key)[atoms]).all()
    assert (part.beads.names == whole.beads.names[beads]).all()
    assert (part.bead_source == whole.bead_source[beads]).all()
    for kind, here in (("bead", beads), ("atom", atoms)):
        ours, theirs = (
            np.array(getattr(s, f"{kind}_keys"))[getattr(s, f"{kind}_key")] for s in (part, whole)
        )
        assert (ours == theirs[here]).all()
    # Indices mean what they did, and what they meant may be gone.
    assert (kept[part.bead_residue] == whole.bead_residue[beads]).all()
    assert (kept[part.atoms.residue] == whole.atoms.residue[atoms]).all()
    assert (beads[part.atom_bead] == whole.atom_bead[atoms]).all()
    for table, here in (("bead_parent", beads), ("anchors", atoms), ("next_residue", kept)):
        ours, theirs = getattr(part, table), getattr(whole, table)
        assert (of_whole(here, ours) == of_part(here, theirs[here])).all()
    for table, here in (("omegas", atoms), ("bridges", kept)):
        rows = getattr(whole, table)
        inside = np.isin(rows, here).all(axis=1)
        assert (here[getattr(part, table)] == rows[inside]).all()
    assert (part.levels == whole.levels[atoms]).all()
    bonds = whole.constraints.bonds
    assert (atoms[part.atoms.bonds] == bonds[np.isin(bonds, atoms).all(axis=1)]).all()


def test_all_residues_are_the_whole(insulin_system):
    part, beads, atoms = insulin_system.of_residues(np.ones(51, dtype=bool))
    assert beads.tolist() == list(range(insulin_system.n_beads))
    assert atoms.tolist() == list(range(insulin_system.n_atoms))
    assert part.templates == insulin_system.templates
    assert part.bead_keys == insulin_system.bead_keys
    assert len(part.bridges) == len(insulin_system.bridges) == 3
    assert (part.members == insulin_system.members).all()


@pytest.mark.parametrize("residue", ["POPC", "CAFF", "LYS"])
def test_one_molecule_is_its_template(residue):
    (template,) = LIBRARY.candidates(residue)
    system = one_molecule(template)
    assert system.templates == (template,)
    assert system.residue_names.tolist() == [residue]
    assert (system.atoms.names == template.names).all()
    assert tuple(system.beads.names) == template.bead_names
    assert (system.atom_source == np.arange(template.n_atoms)).all()
    for name in ("atom_bead", "anchors", "levels", "members", "weights"):
        assert (getattr(system, name) == getattr(template, name)).all()
    assert (system.constraints.bonds == template.constraints.bonds).all()
