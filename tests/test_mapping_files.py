"""Mapping files: what they may say, and that every mistake is one clear message."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mdbackmap.errors import HierarchyError, MappingError, MappingFileError, MdbackmapError
from mdbackmap.mapping import hierarchy, strict_yaml
from mdbackmap.mapping.library import Library, load_spec
from mdbackmap.mapping.schema import MappingSpec, parse
from mdbackmap.mapping.template import MAX_ATOMS, Template, compile_template

ETHANOL = """\
residue: EOH
beads:
  A:
  B:
atoms:
  C1: {bead: A}
  C2: {bead: A}
  O: {bead: B}
bonds:
  - [C1, C2]
  - [C2, O]
"""


def compiled(text: str) -> Template:
    return compile_template(parse(strict_yaml.loads(text, "file.yaml"), "file.yaml"), "file.yaml")


def message(text: str) -> str:
    """The message a file is refused with."""
    with pytest.raises(MappingError) as caught:
        compiled(text)
    assert str(caught.value).startswith("file.yaml")
    return str(caught.value)


# YAML without surprises


def test_words_stay_strings():
    words = ["NO", "Y", "ON", "OFF", "yes", "true", "1e5", "01", "0x1F", "1_000", ".5", "12:30"]
    table = strict_yaml.loads("".join(f"{w}: {w}\n" for w in words))
    assert list(table.items()) == [(w, w) for w in words]


def test_only_nothing_is_none():
    table = strict_yaml.loads("a:\nb: ~\nc: null\nd: ''\ne: 'null'\n")
    assert list(table.values()) == [None, None, None, "", "null"]


def test_atoms_with_awkward_names():
    spec = compiled(
        "residue: 2T\nbeads: {N: , 1: }\natoms:\n  NO: {bead: N}\n  ON: {bead: 1}\n"
        "  01C: {bead: 1}\nbonds: [[NO, ON], [ON, 01C]]\n"
    )
    assert spec.residue == "2T"
    assert spec.names.tolist() == ["NO", "ON", "01C"]
    assert spec.elements.tolist() == ["N", "O", "C"]


def test_every_key_knows_its_line():
    table = strict_yaml.loads("a: 1\n\nb:\n  c: 2\n")
    assert table.lines == {"a": 1, "b": 3}
    assert table["b"].lines == {"c": 4}


def test_duplicate_keys_are_reported_together_with_both_lines():
    with pytest.raises(MappingFileError) as caught:
        strict_yaml.loads("a: 1\nb: {c: 1, c: 2}\na: 2\n", "file.yaml")
    assert str(caught.value).splitlines() == [
        "file.yaml, line 2: key 'c' was already given on line 2; keep one of the two",
        "file.yaml, line 3: key 'a' was already given on line 1; keep one of the two",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2\nb: 3\n", "line 2: not valid YAML"),
        ("a:\n\t- 1\n", "line 2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "line 2: not valid YAML"),
        ("a: *nowhere\n", "line 1: not valid YAML"),
        ("a: \x07\n", "not valid YAML"),
        ("a: \ud800\n", "not valid YAML"),
        ("- a\n- b\n", "expected 'key: value' lines"),
        ("just text\n", "expected 'key: value' lines"),
        ("", "expected 'key: value' lines"),
        ("# nothing\n", "expected 'key: value' lines"),
        ("? [a, b]\n: 1\n", "line 1: a key must be a plain name"),
        ("{a: 1}: 2\n", "line 1: a key must be a plain name"),
        ("a: &x [*x]\n", "nested or repeated beyond any real mapping"),
    ],
)
def test_broken_yaml(text, expected):
    with pytest.raises(MappingFileError, match=r"^file\.yaml") as caught:
        strict_yaml.loads(text, "file.yaml")
    assert expected in str(caught.value)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_refused_before_it_is_read(opening):
    with pytest.raises(MappingFileError, match=r"line 1: .*nested or repeated"):
        strict_yaml.loads("a: " * (opening == "[") + opening * 300_000)


def test_alias_bomb():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(MappingFileError, match="nested or repeated"):
        strict_yaml.loads("\n".join(lines))


def test_few_aliases_are_fine():
    table = strict_yaml.loads("a: &x {bead: A}\nb: *x\n")
    assert table["b"] == {"bead": "A"}


def test_files_that_are_no_text(tmp_path: Path):
    path = tmp_path / "X.yaml"
    with pytest.raises(MappingFileError, match=r"X\.yaml: cannot be read"):
        strict_yaml.load(path)
    with pytest.raises(MappingFileError, match="is no file"):
        strict_yaml.load(tmp_path)
    path.write_bytes(b"residue: \xff\xfe\n")
    with pytest.raises(MappingFileError, match=r"X\.yaml: is not UTF-8 text"):
        strict_yaml.load(path)
    path.write_bytes(b"#" * (strict_yaml.MAX_BYTES + 1))
    with pytest.raises(MappingFileError, match="larger than"):
        strict_yaml.load(path)


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path):
    path = tmp_path / "EOH.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + ETHANOL.replace("\n", "\r\n").encode())
    assert load_spec(path).residue == "EOH"


# The schema: file, line, key


def test_a_minimal_file():
    template = compiled(ETHANOL)
    assert template.names.tolist() == ["C1", "C2", "O"]
    assert template.constraints.bonds.tolist() == [[0, 1], [1, 2]]
    assert template.spec.bonds == [("C1", "C2", 1.0, 0.0), ("C2", "O", 1.0, 0.0)]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("residue: EOH\n", "", "line 1: 'residue' is missing"),
        ("residue: EOH", "residue:", "line 1: 'residue' expected text"),
        ("residue: EOH", "residue: A B", "'residue' expected a name: 1 to 16 ASCII"),
        ("residue: EOH", "residue: [EOH]", "line 1: 'residue' expected text"),
        ("beads:\n  A:\n  B:\n", "", "line 1: 'beads' is missing"),
        ("beads:\n  A:\n  B:\n", "beads: [A, B]\n", "line 2: 'beads' expected a table"),
        ("beads:\n  A:\n  B:\n", "beads: {}\n", "line 2: 'beads'"),
        ("  A:\n", "  A: {sits: C1}\n", "line 3: 'beads.A.sits' is not a key"),
        ("  A:\n", "  A: {on: }\n  A B:\n", "line 4: 'beads.A B' expected a name"),
        ("bonds:", "chirall: {}\nbonds:", "line 9: 'chirall' is not a key of a mapping file; did "
                                          "you mean 'chiral'? (docs: mapping-files)"),
        ("O: {bead: B}", "O: {}", "line 8: 'atoms.O.bead' is missing"),
        ("O: {bead: B}", "O:", "line 8: 'atoms.O' expected a table"),
        ("O: {bead: B}", "O: B", "line 8: 'atoms.O' expected a table"),
        ("O: {bead: B}", "O: {bed: B}", "line 8: 'atoms.O.bed' is not a key of a mapping file; "
                                        "did you mean 'bead'?"),
        ("O: {bead: B}", "O: {bead: {B: x/3}}", "line 8: 'atoms.O.bead.B' expected a number or a "
                                                "fraction such as 1/3, found 'x/3'"),
        ("O: {bead: B}", "O: {bead: {B: 1/0}}", "'atoms.O.bead.B' expected a number or a fract"),
        ("O: {bead: B}", "O: {bead: {B: 1/2/3}}", "'atoms.O.bead.B' expected a number or a fract"),
        ("O: {bead: B}", "O: {bead: {B: -1}}", "line 8: 'atoms.O.bead.B'"),
        ("O: {bead: B}", "O: {bead: {B: nan}}", "line 8: 'atoms.O.bead.B' expected "),
        ("O: {bead: B}", "O: {bead: {B: 1e999}}", "line 8: 'atoms.O.bead.B' expected "),
        ("O: {bead: B}", "O: {bead: {B: 1e999999999}}", "line 8: 'atoms.O.bead.B' expected"),
        ("O: {bead: B}", "O: {bead: []}", "line 8: 'atoms.O.bead'"),
        ("O: {bead: B}", "O: {bead: {}}", "line 8: 'atoms.O.bead'"),
        ("O: {bead: B}", "O: {bead: [B, B]}", "line 8: 'atoms.O.bead' B stands there twice"),
        ("O: {bead: B}", "O: {bead: B, charge: x}", "'atoms.O.charge' expected a whole number"),
        ("[C2, O]", "[C2, O, x]", "line 11: 'bonds.2.3' expected a number"),
        ("[C2, O]", "[C2, O, 0]", "line 11: 'bonds.2.3'"),
        ("[C2, O]", "[C2, O, 1, 14]", "line 11: 'bonds.2.4'"),
        ("[C2, O]", "[C2, O, 1, nan]", "line 11: 'bonds.2.4'"),
        ("[C2, O]", "[C2]", "line 11: 'bonds.2"),
        ("[C2, O]", "[C2, O, 1, 1.4, 1]", "line 11: 'bonds.2"),
        ("[C2, O]", "[O, O]", "line 11: 'bonds.2' O stands there twice"),
        ("[C2, O]", "C2 O", "line 11: 'bonds.2' expected a list"),
        ("bonds:", "angles: [[C1, C2, O, 181]]\nbonds:", "line 9: 'angles.1.4'"),
        ("bonds:", "planar: [[C1, C2, O]]\nbonds:", "line 9: 'planar.1'"),
        ("bonds:", "chiral: {C2: [C1, C1, O]}\nbonds:", "line 9: 'chiral' C1 stands there twice"),
        ("bonds:", "symmetric: [{C1: C2, O: C2}]\nbonds:", "line 9: 'symmetric.1' C2 stands"),
        ("bonds:", "link: {chiral: {}}\nbonds:", "line 9: 'link.chiral' is not a key"),
        ("bonds:", "kind: metal\nbonds:", "line 9: 'kind'"),
    ],
)  # fmt: skip
def test_schema_errors_name_line_and_key(old, new, expected):
    assert old in ETHANOL
    found = message(ETHANOL.replace(old, new))
    assert expected in found


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("O: {bead: B}", "O: {bead: C}", "atom O: bead C is not listed under 'beads' (A, B)"),
        ("O: {bead: B}", "X1: {bead: B}", "atom X1: element X is no heavy element; give 'el"),
        ("O: {bead: B}", "H1: {bead: B}", "atom H1: element H is no heavy element"),
        ("O: {bead: B}", "12: {bead: B}", "atom 12: element ? is no heavy element"),
        ("O: {bead: B}", "O: {bead: B, element: Qq}", "atom O: element QQ is no heavy element"),
        ("O: {bead: B}", "O: {bead: A}", "bead B: holds no atom; list it under 'skip_beads'"),
        ("O: {bead: B}", "O: {bead: {B: 0}}", "no atom has a weight in bead B"),
        ("O: {bead: B}", "O: {bead: B, hydrogens: [C1]}", "atom C1: the name is given to 2"),
        ("  A:\n", "  A: {on: O}\n", "bead A: sits on atom O, which is none of its atoms"),
        ("  A:\n", "  A: {on: CX}\n", "bead A: sits on atom CX, which is none of its atoms"),
        ("[C2, O]", "[C2, OX]", "bond C2 OX: no atom OX"),
        ("[C2, O]", "[C2, C1]", "bond C2 C1: given twice"),
        ("bonds:", "angles: [[C2, C1, O, 90]]\nbonds:", "angle C2 C1 O: atoms are not bonded in"),
        ("bonds:", "chiral: {C1: [C2, O, N]}\nbonds:", "chiral C1 C2 O N: no atom N"),
        ("bonds:", "bead_aliases: {Z: C}\nbonds:", "bead_aliases Z: C is not listed under"),
        ("bonds:", "symmetric: [{C1: C9}]\nbonds:", "symmetric C1 C9: no atom C9"),
        ("bonds:", "trans: [[O, C1, C2, N]]\nbonds:", "torsion O C1 C2 N: no atom N"),
        ("bonds:", "planar: [[O, C1, C2, N]]\nbonds:", "planar O C1 C2 N: no atom N"),
        ("bonds:", "link: {}\nbonds:", "link: its first bond must go from an atom"),
        ("bonds:", "link: {bonds: [[C1, C2]]}\nbonds:", "link: its first bond must go from"),
        ("bonds:", "link: {bonds: [[CX, +CY]]}\nbonds:", "link: its first bond must go from"),
        ("bonds:", "bridge: {bonds: [[O, +C1]]}\nbonds:", "bridge: its first bond must join an"),
    ],
)  # fmt: skip
def test_chemistry_errors_name_residue_and_atom(old, new, expected):
    found = message(ETHANOL.replace(old, new))
    assert found.startswith("file.yaml: residue EOH")
    assert expected in found


def test_stereocentre_needs_bonded_neighbours():
    text = ETHANOL.replace("  O: {bead: B}", "  O: {bead: B}\n  N: {bead: B}\n  F: {bead: B}")
    text = text.replace("[C2, O]", "[C2, O]\n  - [C2, N]\n  - [O, F]")
    assert "chiral C2: F not bonded to it" in message(text + "chiral: {C2: [C1, O, F]}\n")
    assert len(compiled(text + "chiral: {C2: [C1, O, N]}\n").constraints.volumes) == 1
    assert "torsion C1 C2 F O: atoms are not bonded" in message(text + "cis: [[C1, C2, F, O]]\n")


def test_problems_of_a_file_are_reported_together():
    found = message(ETHANOL.replace("residue: EOH\n", "").replace("{bead: B}", "{bed: B}"))
    assert {"'residue' is missing", "'atoms.O.bead' is missing"} <= {
        line.split(": ", 1)[1] for line in found.splitlines()
    }
    assert "'atoms.O.bed' is not a key" in found
    text = ETHANOL.replace("{bead: B}", "{bead: C, element: Qq}").replace("[C1, C2]", "[C1, CX]")
    found = message(text + "angles: [[C1, C2, CY, 100]]\nsymmetric: [{C1: CZ}]\n")
    for problem in ("element QQ", "bead C is not listed", "no atom CX", "no atom CY", "no atom CZ",
                    "bead B: holds no atom"):  # fmt: skip
        assert problem in found


def test_errors_of_all_files_of_a_folder_are_reported_together(tmp_path: Path):
    (tmp_path / "A.yaml").write_text(ETHANOL.replace("bead: B", "bead: C"))
    (tmp_path / "B.yaml").write_text("- nothing\n")
    (tmp_path / "C.yaml").write_text(ETHANOL)
    with pytest.raises(MappingFileError) as caught:
        Library.load([tmp_path])
    assert "A.yaml: residue EOH" in str(caught.value)
    assert "B.yaml: expected 'key: value' lines" in str(caught.value)
    assert "C.yaml" not in str(caught.value)


def test_a_bad_terminal_variant_is_found_when_the_file_is_loaded(tmp_path: Path):
    path = tmp_path / "X.yaml"
    path.write_text(ETHANOL + "termini: {last: {atoms: {OXT: {bead: Q}}}}\n")
    with pytest.raises(MappingFileError, match="atom OXT: bead Q is not listed"):
        Library.load([path])


def test_lists_need_atoms_or_be_solvent():
    text = "residue: X\nkind: {}\nbeads: {{W: }}\n"
    assert "only kind 'solvent' or 'ion' may" in message(text.format("molecule"))
    assert not compiled(text.format("solvent")).has_atoms


def test_like_takes_the_rest_from_a_shipped_file(tmp_path: Path):
    path = tmp_path / "ALA.yaml"
    path.write_text("residue: ALX\nlike: martini3/protein/ALA\nbeads: {BB: {on: CA}, SC1: }\n")
    spec = load_spec(path)
    assert (spec.residue, spec.kind) == ("ALX", "protein")
    assert spec.beads["BB"].on == "CA"
    assert list(spec.atoms) == ["N", "CA", "C", "O", "CB"]
    path.write_text("residue: ALX\nlike: martini3/protein/NIX\n")
    with pytest.raises(MappingFileError, match="line 2: like: martini3/protein/NIX names no ship"):
        load_spec(path)


# Elements


@pytest.mark.parametrize(
    ("name", "element"),
    [("CA", "C"), ("CL", "CL"), ("CL12", "CL"), ("Br1", "BR"), ("CLA", "C"), ("NE2", "N"),
     ("FE", "FE"), ("SD", "S"), ("1HB", "H"), ("O3'", "O"), ("P", "P"), ("ZN", "ZN")],
)  # fmt: skip
def test_elements_are_told_from_names(name, element):
    from mdbackmap.mapping.chemistry import element_of

    assert element_of(name) == element


# Anchors


def with_anchors(**anchors: str) -> str:
    text = ETHANOL
    for atom, anchor in anchors.items():
        bead = "B" if atom == "O" else "A"
        old, new = f"{atom}: {{bead: {bead}}}", f"{atom}: {{bead: {bead}, anchor: {anchor}}}"
        text = text.replace(old, new)
    return text


def test_anchors_follow_from_the_bonds():
    template = compiled(ETHANOL)
    # C2 has the most neighbours, so it is the middle of its bead.
    assert template.anchors.tolist() == [1, -1, -1]
    assert template.levels.tolist() == [2, 1, 1]


def test_given_anchors_win():
    template = compiled(with_anchors(C2="C1", C1="A", O="C2"))
    assert template.anchors.tolist() == [-1, 0, 1]
    assert template.levels.tolist() == [1, 2, 3]


def test_a_bead_as_anchor_is_the_one_an_atom_is_predicted_from():
    template = compiled(with_anchors(C2="B"))
    assert template.anchors[1] == -1
    assert template.bead_names[template.atom_bead[1]] == "B"


def test_where_atom_and_bead_share_a_name_the_atom_is_meant():
    text = ETHANOL.replace("A:", "C1:").replace("bead: A", "bead: C1")
    text = text.replace("C1: {bead: C1}", "C1: {bead: C1, anchor: C1}")
    template = compiled(text.replace("C2: {bead: C1}", "C2: {bead: C1, anchor: C1}"))
    assert template.anchors.tolist() == [-1, 0, -1]


def test_an_anchor_that_does_not_exist():
    with pytest.raises(HierarchyError, match=r"residue EOH\n  atom O: anchor CX is neither"):
        compiled(with_anchors(O="CX"))


@pytest.mark.parametrize("anchors", [{"C1": "C1"}, {"C1": "C2", "C2": "C1"},
                                     {"C1": "C2", "C2": "O", "O": "C1"}])  # fmt: skip
def test_cyclic_anchors(anchors):
    with pytest.raises(HierarchyError, match=r"EOH: the anchors of atoms C1.* form a cycle"):
        compiled(with_anchors(**anchors))


def chain(n: int, last: str) -> str:
    atoms = "".join(f"  C{i}: {{bead: A, anchor: C{i + 1}}}\n" for i in range(n - 1))
    return f"residue: X\nbeads: {{A: }}\natoms:\n{atoms}  C{n - 1}: {{bead: A, anchor: {last}}}\n"


def test_long_chains_of_anchors():
    assert compiled(chain(hierarchy.MAX_LEVEL, "A")).levels[0] == hierarchy.MAX_LEVEL
    with pytest.raises(HierarchyError, match="atoms C0 form a chain of more than"):
        compiled(chain(hierarchy.MAX_LEVEL + 1, "A"))
    with pytest.raises(HierarchyError, match="form a chain of more than"):
        compiled(chain(MAX_ATOMS, "A"))
    with pytest.raises(HierarchyError, match="form a cycle"):
        compiled(chain(MAX_ATOMS, "C0"))
    with pytest.raises(MappingFileError, match=f"{MAX_ATOMS + 1} atoms; split what has more"):
        compiled(chain(MAX_ATOMS + 1, "A"))


def test_too_many_bonds():
    atoms = "".join(f"  C{i}: {{bead: A}}\n" for i in range(20))
    bonds = "".join(f"  - [C0, C{i}]\n" for i in range(1, 20))
    text = f"residue: X\nbeads: {{A: }}\natoms:\n{atoms}bonds:\n{bonds}"
    assert "more than 12 bonds at atom C0" in message(text)


@given(st.integers(1, 30), st.data())
@settings(max_examples=50, deadline=None)
def test_derived_anchors_are_bonded_and_of_the_same_bead(n, data):
    atom = st.integers(0, n - 1)
    bonds = data.draw(st.lists(st.tuples(atom, atom), max_size=40))
    bonds = np.array([b for b in bonds if b[0] != b[1]], dtype=np.int64).reshape(-1, 2)
    beads = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    anchors = hierarchy.derive_anchors(beads, bonds)
    levels = hierarchy.levels(anchors, np.arange(n).astype(str), "x")
    pairs = {tuple(sorted(pair)) for pair in bonds.tolist()}
    for atom, anchor in enumerate(anchors):
        if anchor >= 0:
            assert tuple(sorted((atom, int(anchor)))) in pairs
            assert beads[atom] == beads[anchor]
            assert levels[atom] == levels[anchor] + 1


# Whatever stands in a file, the answer is a template or one of our errors

_WORDS = st.sampled_from(
    ["A", "B", "C1", "C2", "O", "+C1", "bead", "1", "0", "-1", "1/2", "1/0", "nan", "inf", "-.inf",
     "1e999", "9" * 400, "1e99999999", "", "~", "NO", "H1", "+", "a b", "é", "x" * 99, "B:"]
)  # fmt: skip
_ANY = st.recursive(
    _WORDS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
_KEYS = [*MappingSpec.model_fields, "like", "molecule", "other"]
_BASE = {
    "residue": "EOH", "beads": {"A": None, "B": None},
    "atoms": {"C1": {"bead": "A"}, "C2": {"bead": "A"}, "O": {"bead": "B"}},
    "bonds": [["C1", "C2"], ["C2", "O"]],
}  # fmt: skip
_ROW = st.lists(_WORDS, max_size=5)
_PLAUSIBLE = st.fixed_dictionaries(
    {},
    optional={
        "bonds": st.lists(_ROW, max_size=4),
        "angles": st.lists(_ROW, max_size=3),
        "planar": st.lists(_ROW, max_size=3),
        "chiral": st.dictionaries(_WORDS, _ROW, max_size=3),
        "trans": st.lists(_ROW, max_size=3),
        "link": st.fixed_dictionaries({"bonds": st.lists(_ROW, max_size=2)}),
        "symmetric": st.lists(st.dictionaries(_WORDS, _WORDS, max_size=3), max_size=2),
        "atoms": st.dictionaries(
            _WORDS,
            st.fixed_dictionaries(
                {"bead": _WORDS | _ROW | st.dictionaries(_WORDS, _WORDS, max_size=3)},
                optional={"anchor": _WORDS, "element": _WORDS, "hydrogens": _ROW, "charge": _WORDS},
            ),
            max_size=4,
        ),
        "molecule": _WORDS,
    },
)


def load_or_refuse(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    with contextlib.suppress(MdbackmapError):
        template = Library.load([path]).templates[0]
        assert np.isfinite(template.weights).all()
        assert np.isfinite(template.constraints.bond_length).all()


@given(table=st.dictionaries(st.sampled_from(_KEYS), _ANY, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_table_is_read_or_refused(tmp_path_factory, table):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    load_or_refuse(path, yaml.safe_dump(_BASE | table, allow_unicode=True))


@given(table=_PLAUSIBLE)
@settings(max_examples=300, deadline=None)
def test_nearly_right_tables_are_read_or_refused(tmp_path_factory, table):
    path = tmp_path_factory.getbasetemp() / "nearly.yaml"
    merged = _BASE | table | {"atoms": _BASE["atoms"] | table.get("atoms", {})}
    load_or_refuse(path, yaml.safe_dump(merged, allow_unicode=True))


@given(text=st.text(alphabet="{}[]:,-? \n\t#&*!|>'\"%@`aA1~", max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(MappingFileError):
        strict_yaml.loads(text)
