"""CGmap/HEroBM mapping files: the grammar, and what becomes of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mdbackmap.errors import MappingError, MappingFileError
from mdbackmap.mapping import cgmap, strict_yaml
from mdbackmap.mapping.library import Library, load_spec, terminal_variant
from mdbackmap.mapping.schema import MappingSpec
from mdbackmap.mapping.template import Template, compile_template

# A made-up residue that uses every rule of the grammar.
EXAMPLE = """\
molecule: XYZ

atoms:
  N:        BB   P2AA
  H,HN:     BB   !
  CA:       BB   P1A  CM
  C:        BB   P2AB
  O:        BB   P3BA
  CB:       SC1  P1A
  HB2,HB1:  SC1  !
  HB3,HB2:  SC1  !
  CG:       SC1      P2AA
  CD1,CD:   SC1,SC2  P3AA,P1A  1/3,2/3
  CE1:      SC2      0.5  P2AB   # columns in any order
"""


def spec_of(text: str) -> MappingSpec:
    table = strict_yaml.loads(text, "file.yaml")
    assert cgmap.is_cgmap(table)
    return cgmap.convert(table, "file.yaml")


def template_of(text: str) -> Template:
    return compile_template(spec_of(text), "file.yaml")


def atoms(*lines: str, molecule: str = "XYZ") -> str:
    return f"molecule: {molecule}\natoms:\n" + "".join(f"  {line}\n" for line in lines)


def message(*lines: str) -> str:
    with pytest.raises(MappingFileError, match=r"^file\.yaml: [0-9]+ problem") as caught:
        spec_of(atoms(*lines))
    return str(caught.value)


def anchors(template: Template) -> dict[str, str]:
    beads = [template.bead_names[b] for b in template.atom_bead]
    return {
        str(name): str(template.names[anchor]) if anchor >= 0 else bead
        for name, anchor, bead in zip(template.names, template.anchors, beads, strict=True)
    }


# What a file says


def test_the_example():
    template = template_of(EXAMPLE)
    assert template.residue == "XYZ"
    assert template.bead_names == ("BB", "SC1", "SC2")
    assert template.names.tolist() == ["N", "CA", "C", "O", "CB", "CG", "CD1", "CE1"]
    assert anchors(template) == {
        "N": "CA", "CA": "BB", "C": "CA", "O": "C", "CB": "SC1", "CG": "CB", "CD1": "SC2",
        "CE1": "CD1",
    }  # fmt: skip
    assert template.levels.tolist() == [2, 1, 2, 3, 1, 2, 1, 2]


def test_beads_sit_at_the_centre_of_mass():
    template = template_of(atoms("C1: A P1A", "O1: A P2AA"))
    assert template.weights.tolist() == pytest.approx([12.011 / 28.01, 15.999 / 28.01])


def test_cm_puts_the_bead_on_the_atom():
    spec = spec_of(EXAMPLE)
    assert spec.beads["BB"].on == "CA"
    assert spec.beads["SC1"] is None
    template = compile_template(spec, "x")
    rows = template.members[:, 0] == 0
    assert dict(zip(template.names[template.members[rows, 1]], template.weights[rows],
                    strict=True)) == {"N": 0, "CA": 1, "C": 0, "O": 0}  # fmt: skip


def test_weights():
    spec = spec_of(EXAMPLE)
    assert spec.atoms["CD1"].bead == {"SC1": pytest.approx(1 / 3), "SC2": pytest.approx(2 / 3)}
    assert spec.atoms["CE1"].bead == {"SC2": 0.5}
    shared = spec_of(atoms("C1: A,B", "C2: A", "C3: B"))
    assert shared.atoms["C1"].bead == {"A": 0.5, "B": 0.5}


@pytest.mark.parametrize("cell", ["1/2", ".5", "0.5", "5/10", "1/2.0"])
def test_ways_to_write_a_half(cell):
    assert spec_of(atoms(f"C1: A {cell}", "C2: A")).atoms["C1"].bead == {"A": 0.5}


def test_exclamation_mark_is_weight_zero():
    template = template_of(atoms("C1: A P1A", "C2: A P2AA !"))
    assert template.names.tolist() == ["C1", "C2"]
    assert template.weights.tolist() == [1.0, 0.0]
    # One bead of two, the other keeps its share.
    assert spec_of(atoms("C1: A,B !,1/2", "C2: A", "C3: B")).atoms["C1"].bead == {"B": 0.5}


def test_alternative_names():
    spec = spec_of(EXAMPLE)
    assert spec.atom_aliases == {"CD": "CD1"}
    spec = spec_of(atoms("C1, C01 ,CX: A", molecule="LIG, LIG2"))
    assert (spec.residue, spec.aliases) == ("LIG", ["LIG2"])
    assert spec.atom_aliases == {"C01": "C1", "CX": "C1"}


def test_hydrogens_are_never_predicted():
    template = template_of(atoms("C1: A P1A", "H1: A P2AA", "1H: A P2AB", "O1: A P2AC"))
    assert template.names.tolist() == ["C1", "O1"]


def test_without_labels_every_heavy_atom_is_predicted():
    template = template_of(atoms("C1: A", "H1: A", "C2: A,B", "C3: B"))
    assert template.names.tolist() == ["C1", "C2", "C3"]
    assert set(template.levels) == {1}


def test_with_labels_only_those_with_one_are_predicted():
    spec = spec_of(atoms("C1: A P1A", "C2: A", "C3: A P2AA", "C4: B"))
    assert list(spec.atoms) == ["C1", "C3"]
    assert list(spec.beads) == ["A"]
    assert spec.skip_beads == {"B": "bead without predicted atoms"}
    assert compile_template(spec, "x").n_atoms == 2


def test_a_bead_without_predicted_atoms_may_be_in_the_input(tmp_path: Path):
    path = tmp_path / "xyz.yaml"
    path.write_text(atoms("C1: A P1A", "C4: B"))
    template, order = Library.load([path]).match_beads("XYZ", ["B", "A"])
    assert (template.residue, order) == ("XYZ", [1])


# Hierarchy labels


@pytest.mark.parametrize(
    ("label", "anchor"),
    [
        ("P2AB", "C1"),  # letter A of level 1
        ("P2B", "A"),  # no anchor letter: the bead
        ("P2QB", "A"),  # a letter that nobody has: the bead
        ("P3AB", "A"),  # nobody is on level 2
        ("P1B", "A"),
        ("P1AB", "A"),  # nobody is on level 0
    ],
)
def test_anchor_of_a_label(label, anchor):
    template = template_of(atoms("C1: A P1A", f"C2: A {label}"))
    assert anchors(template)["C2"] == anchor


def test_levels_may_start_at_zero():
    template = template_of(atoms("CA: BB P0A CM", "N: BB P1AA", "CB: BB P1AC", "CG: BB P2CA"))
    assert anchors(template) == {"CA": "BB", "N": "CA", "CB": "CA", "CG": "CB"}
    assert template.levels.tolist() == [1, 2, 2, 3]


def test_letters_belong_to_their_bead():
    template = template_of(atoms("C1: A P1A", "C2: B P1A", "C3: B P2AA", "C4: A P2AA"))
    assert anchors(template) == {"C1": "A", "C2": "B", "C3": "C2", "C4": "C1"}


@pytest.mark.parametrize(
    ("weights", "anchor"), [("1/3,2/3", "C2"), ("2/3,1/3", "C1"), ("1/2,1/2", "C1"), ("", "C1")]
)
def test_a_shared_atom_hangs_where_its_share_is_largest(weights, anchor):
    template = template_of(atoms("C1: A P1A", "C2: B P1A", f"C3: A,B P2AA,P2AA {weights}"))
    assert anchors(template)["C3"] == anchor


def test_a_label_in_one_of_two_beads():
    template = template_of(atoms("C1: A P1A", "C2: B P1A", "C3: A,B ,P2AA 2/3,1/3"))
    assert anchors(template)["C3"] == "C2"


def test_a_bead_with_the_name_of_its_atom():
    template = template_of(atoms("CA: CA P1A CM", "N: CA P2AA"))
    assert template.anchors.tolist() == [-1, 0]


def test_anchors_stand_in_for_bonds():
    template = template_of(EXAMPLE)
    names = template.names
    assert [[str(n) for n in names[pair]] for pair in template.constraints.bonds] == [
        ["N", "CA"], ["CA", "C"], ["C", "O"], ["CB", "CG"], ["CD1", "CE1"],
    ]  # fmt: skip


# Chemistry comes from a shipped residue with the same atoms, where there is one

LYSINE = atoms(
    "N: A P2AA", "CA: A P1A CM", "C: A P2AB", "O,OT1: A P3BA", "CB: B P1A", "CG: B P2AA",
    "CD: B P3AA", "CE: B P4AA", "NZ: B P5AA", molecule="LYS",
)  # fmt: skip


def loaded(tmp_path: Path, text: str) -> Template:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    return Library.load([path]).templates[0]


def test_a_known_residue_gets_its_chemistry(tmp_path: Path):
    ours = loaded(tmp_path, LYSINE)
    (known,) = Library.load().candidates("LYS")
    assert anchors(ours) == anchors(template_of(LYSINE))
    assert ours.kind == "protein"
    assert ours.names.tolist() == known.names.tolist()
    assert (ours.constraints.bonds == known.constraints.bonds).all()
    assert (ours.constraints.volume == known.constraints.volume).all()
    assert ours.spec.link == known.spec.link
    assert ours.spec.source.endswith("bonds and angles as shipped for LYS")
    last = terminal_variant(ours)
    assert last.names[-1] == "OXT"
    assert last.bead_names[last.atom_bead[-1]] == "A"


def test_of_a_part_of_a_known_residue_what_is_there(tmp_path: Path):
    template = loaded(tmp_path, atoms("CA: A P1A CM", "CB: A P2AA", "CG: A P3AA", molecule="HSD"))
    assert template.residue == "HSD"
    assert template.constraints.bonds.tolist() == [[0, 1], [1, 2]]
    assert template.spec.link is None
    assert terminal_variant(template) is template
    assert not template.spec.chiral


def test_other_atoms_of_the_same_name_get_none(tmp_path: Path):
    template = loaded(tmp_path, atoms("CA: A P1A CM", "CZZ: A P2AA", molecule="LYS"))
    assert template.kind == "molecule"
    assert template.spec.link is None


# Mistakes, each with its line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("C2: A P1", "line 4: atom C2: cannot read 'P1'; expected !, CM, a weight"),
        ("C2: A PA", "cannot read 'PA'"),
        ("C2: A P1a", "cannot read 'P1a'"),
        ("C2: A P1ABC", "cannot read 'P1ABC'"),
        ("C2: A P9999A", "cannot read 'P9999A'"),
        ("C2: A p1B", "cannot read 'p1B'"),
        ("C2: A ?", "cannot read '?'"),
        ("C2: A -1", "cannot read '-1'"),
        ("C2: A 1e5", "cannot read '1e5'"),
        ("C2: A 1/0", "line 4: atom C2: weight '1/0': expected a number or a fraction"),
        ("C2: A 1/00", "weight '1/00'"),
        ("C2: A 1.2.3", "weight '1.2.3'"),
        ("C2: A 1//2", "cannot read '1//2'"),
        ("C2: A,B P1B", "line 4: atom C2: 'P1B' has 1 cell(s) for 2 bead(s)"),
        ("C2: A P1B,P2B", "'P1B,P2B' has 2 cell(s) for 1 bead(s)"),
        ("C2: A,A P1B,P1C", "line 4: atom C2: a bead stands twice in 'A,A'"),
        ("C2: A P1A", "line 4: atom C2: label P1A of bead A: letter A of level 1 is already that "
                      "of C1 (line 3)"),
        ("C2: A P1BA", "letter A of level 1 is already that of C1 (line 3)"),
        ("C2: A P1B P2AA", "line 4: atom C2: 'P2AA' is its second label in bead A"),
        ("C2: A P1B CM", "line 4: atom C2: bead A already sits on C1 (line 3)"),
        ("C2: B CM", "line 4: atom C2: bead B sits on it (CM), but it is not predicted"),
        ("C3,C1: A P1B", "line 4: atom name C1 was already given on line 3"),
        ("C2:", "line 4: 'C2': expected NAMES: BEADS [columns], as 'CA: BB P1A'"),
        ("C2: A,,B", "line 4: 'C2': expected NAMES: BEADS"),
        ("C2: [A, P1B]", "line 4: 'C2': expected NAMES: BEADS"),
        ("C2: {A: P1B}", "line 4: 'C2': expected NAMES: BEADS"),
        ("',': A P1B", "line 4: ',': expected NAMES: BEADS"),
    ],
)  # fmt: skip
def test_mistakes_name_their_line(line, expected):
    assert expected in message("C1: A P1A CM", line)


def test_all_mistakes_are_reported_together():
    text = message("C1: A P1A", "C2: A P1A", "C3: A P2", "C4: A 1/0")
    assert text.startswith("file.yaml: 3 problem(s)")
    assert [f"line {n}" in text for n in (3, 4, 5, 6)] == [True, True, True, True]


@pytest.mark.parametrize(
    "text",
    ["molecule: X\n", "molecule: X\natoms:\n", "molecule: X\natoms: [A]\n", "molecule:\natoms: 1\n",
     "molecule: ','\natoms: {C: A}\n", "molecule: [X]\natoms: {C: A}\n"],
)  # fmt: skip
def test_files_without_content(text):
    with pytest.raises(MappingFileError, match="expected 'molecule: NAME' and a table"):
        spec_of(text)


def test_nothing_to_predict():
    assert "no heavy atom is predicted" in message("H1: A")
    assert "no heavy atom is predicted" in message("H1: A P1A", "C1: A")


def test_unknown_keys():
    with pytest.raises(MappingFileError, match="line 4: key 'bonds' is none of this format"):
        spec_of(atoms("C1: A") + "bonds: []\n")


def test_names_no_file_can_hold_are_refused():
    with pytest.raises(MappingFileError, match=r"line 3: 'atoms\.C123.* expected a name"):
        spec_of(atoms("C1234567890123456789: A"))


def test_the_format_is_told_by_its_keys(tmp_path: Path):
    path = tmp_path / "xyz.yaml"
    path.write_text(EXAMPLE)
    assert load_spec(path).residue == "XYZ"
    assert not cgmap.is_cgmap(strict_yaml.loads("residue: X\natoms: {}\n"))
    assert not cgmap.is_cgmap(strict_yaml.loads("residue: X\nmolecule: Y\natoms: {}\n"))


_CELLS = st.sampled_from(["P1A", "P2AB", "P2B", "P0A", "!", "CM", "1/3", "2", "", "P", "x", "1/0"])
_LINE = st.builds(
    lambda beads, columns: " ".join([",".join(beads), *(",".join(c) for c in columns)]),
    st.lists(st.sampled_from(["A", "B", "BB", ""]), min_size=1, max_size=3),
    st.lists(st.lists(_CELLS, min_size=1, max_size=3), max_size=3),
)


@given(st.dictionaries(st.sampled_from(["C1", "C2", "O1,O2", "H1", "O2", "A", ",", "CL"]), _LINE))
@settings(max_examples=300, deadline=None)
def test_any_file_is_read_or_refused(lines):
    table = strict_yaml.Located(lines, dict.fromkeys(lines, 3))
    top = strict_yaml.Located({"molecule": "X", "atoms": table}, {"molecule": 1, "atoms": 2})
    with contextlib.suppress(MappingError):
        compile_template(cgmap.convert(top, "x"), "x")
