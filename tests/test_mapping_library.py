"""The shipped mappings and how a library finds a template."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from mdbackmap.errors import MappingError, MappingFileError
from mdbackmap.mapping import hierarchy
from mdbackmap.mapping import library as libraries
from mdbackmap.mapping.library import (
    SOLVENT,
    Library,
    mappings_root,
    shipped,
    terminal_variant,
)
from mdbackmap.mapping.template import Template, link_constraints

AMINO_ACIDS = {
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE",
    "LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL",
}  # fmt: skip
PROTEINS = ["martini3", "martini2", "ca", "bb-on-ca"]


@functools.cache
def library(*mappings: str) -> Library:
    return Library.load(mappings)


def every_template() -> list:
    """All shipped templates that have atoms, with their terminal variants."""
    result = []
    for family in shipped():
        for template in library(family).templates:
            if template.has_atoms:
                path = Path(template.source).relative_to(mappings_root()).with_suffix("")
                result.append(pytest.param(template, id=str(path)))
                last = terminal_variant(template)
                if last is not template:
                    result.append(pytest.param(last, id=f"{path}-last"))
    return result


templates = pytest.mark.parametrize("template", every_template())


def place(template: Template, vectors: np.ndarray, beads: np.ndarray) -> np.ndarray:
    """Place atoms level by level from their anchors."""
    positions = beads[template.atom_bead] + vectors
    for level in range(2, template.levels.max() + 1):
        here = template.levels == level
        positions[here] = positions[template.anchors[here]] + vectors[here]
    return positions


# Every shipped template


@templates
def test_oracle_round_trip(template: Template):
    """True anchor-to-atom vectors give the atoms back: the hierarchy loses nothing."""
    rng = np.random.default_rng(len(template.names))
    atoms = rng.normal(scale=5.0, size=(template.n_atoms, 3))
    beads = np.zeros((template.n_beads, 3))
    np.add.at(
        beads, template.members[:, 0], template.weights[:, None] * atoms[template.members[:, 1]]
    )
    hung = template.anchors >= 0
    start = np.where(hung[:, None], atoms[template.anchors], beads[template.atom_bead])
    np.testing.assert_allclose(place(template, atoms - start, beads), atoms, rtol=0, atol=1e-9)


@templates
def test_levels(template: Template):
    hung = template.anchors >= 0
    assert (template.levels[~hung] == 1).all()
    assert (template.levels[hung] == template.levels[template.anchors[hung]] + 1).all()
    assert set(template.levels) == set(range(1, template.levels.max() + 1))
    assert template.levels.max() <= 6
    assert (template.anchors < template.n_atoms).all()
    assert ((template.atom_bead >= 0) & (template.atom_bead < template.n_beads)).all()


@templates
def test_atoms_hang_from_a_bead_they_belong_to(template: Template):
    members = {tuple(row) for row in template.members.tolist()}
    for atom, bead in enumerate(template.atom_bead.tolist()):
        assert (bead, atom) in members


@templates
def test_bead_weights(template: Template):
    total = np.bincount(template.members[:, 0], template.weights, minlength=template.n_beads)
    np.testing.assert_allclose(total, 1.0, rtol=0, atol=1e-12)
    assert (template.weights >= 0).all()
    for b, spec in enumerate(template.spec.beads.values()):
        if spec and spec.on:
            place = int(np.flatnonzero(template.names == spec.on)[0])
            row = (template.members[:, 0] == b) & (template.members[:, 1] == place)
            assert template.weights[row].tolist() == [1.0]


@templates
def test_names_are_unique(template: Template):
    assert len(set(template.bead_names)) == template.n_beads
    assert len(set(template.names)) == template.n_atoms
    assert len(set(template.atom_keys)) == template.n_atoms
    assert len(set(template.bead_keys)) == template.n_beads


@templates
def test_bonds_make_one_molecule(template: Template):
    bonded = hierarchy.neighbours(template.n_atoms, template.constraints.bonds)
    assert len(hierarchy.distances(0, bonded)) == template.n_atoms


@templates
def test_ideal_geometry_is_possible(template: Template):
    terms = template.constraints
    assert ((terms.bond_length > 1.1) & (terms.bond_length < 2.2)).all()
    assert ((terms.angle > 55) & (terms.angle <= 180)).all()
    bonds = {tuple(sorted(pair)) for pair in terms.bonds.tolist()}
    for first, centre, last in terms.angles.tolist():
        assert {tuple(sorted((first, centre))), tuple(sorted((centre, last)))} <= bonds
    # Every angle of the molecule is there once.
    degree = np.bincount(terms.bonds.ravel(), minlength=template.n_atoms)
    assert len(terms.angles) == (degree * (degree - 1) // 2).sum()
    assert len({tuple(row) for row in terms.angles.tolist()}) == len(terms.angles)


@templates
def test_stereocentres_have_three_bonded_neighbours(template: Template):
    names = template.names.tolist()
    bonded = hierarchy.neighbours(template.n_atoms, template.constraints.bonds)
    for centre, around in template.spec.chiral.items():
        assert len({centre, *around}) == 4
        assert {names.index(atom) for atom in around} <= set(bonded[names.index(centre)])
    signed = template.constraints.volumes[template.constraints.volume > 0]
    assert len(signed) == len(template.spec.chiral)


@templates
def test_swaps_change_nothing_but_names(template: Template):
    bonds = {tuple(sorted(pair)) for pair in template.constraints.bonds.tolist()}
    for swap in template.swaps:
        assert sorted(swap.tolist()) == list(range(template.n_atoms))
        assert (swap[swap] == np.arange(template.n_atoms)).all()
        assert (template.elements[swap] == template.elements).all()
        assert {tuple(sorted(swap[list(pair)].tolist())) for pair in bonds} == bonds


@pytest.mark.parametrize("family", PROTEINS)
def test_proteins_have_all_amino_acids(family):
    residues = {t.residue for t in library(family).templates if t.kind == "protein"}
    assert residues == AMINO_ACIDS


@pytest.mark.parametrize("family", PROTEINS)
@pytest.mark.parametrize("residue", sorted(AMINO_ACIDS))
def test_amino_acids_are_l_and_end_in_oxt(family, residue):
    (template,) = library(family).candidates(residue)
    bonds = {frozenset(template.names[pair]) for pair in template.constraints.bonds}
    assert {frozenset(p) for p in (("N", "CA"), ("CA", "C"), ("C", "O"))} <= bonds
    if residue != "GLY":
        assert template.spec.chiral["CA"] == ("N", "C", "CB")
    last = terminal_variant(template)
    assert last.names.tolist() == [*template.names.tolist(), "OXT"]
    assert last.bead_names == template.bead_names
    assert terminal_variant(template) is last


@pytest.mark.parametrize("family", PROTEINS)
@pytest.mark.parametrize(("first", "second"), [("ALA", "GLY"), ("GLY", "PRO"), ("PRO", "PRO")])
def test_peptide_bond(family, first, second):
    a, b = (library(family).candidates(name)[0] for name in (first, second))
    terms = link_constraints(a, b, a.spec.link)
    names = [*a.names.tolist(), *(f"+{name}" for name in b.names.tolist())]
    assert [[names[k] for k in row] for row in terms.bonds] == [["C", "+N"]]
    assert [[names[k] for k in row] for row in terms.torsions] == [["CA", "C", "+N", "+CA"]]
    assert terms.torsion.tolist() == [180.0]
    angles = [[names[k] for k in row] for row in terms.angles]
    assert (["C", "+N", "+CD"] in angles) == (second == "PRO")
    assert len(terms.volumes)
    assert (terms.volume == 0).all()


@pytest.mark.parametrize("family", PROTEINS)
def test_only_cysteine_is_bridged(family):
    bridged = [t.residue for t in library(family).templates if t.spec.bridge]
    assert bridged == ["CYS"]


# Names


@pytest.mark.parametrize("family", PROTEINS)
@pytest.mark.parametrize("name", ["HIS", "HSD", "HSE", "HSP", "HID", "HIE", "HIP", "HISH"])
def test_histidine_by_any_name(family, name):
    (template,) = library(family).candidates(name)
    assert template.residue == "HIS"
    assert library(family).match_beads(name, template.bead_names)[0] is template


@pytest.mark.parametrize(
    ("name", "residue"),
    [("CHOL", "CHL1"), ("CHL1", "CHL1"), ("DUPE", "DLPE"), ("CYX", "CYS"), ("POPC", "POPC")],
)
def test_other_names(name, residue):
    (template,) = library("martini3").candidates(name)
    assert template.residue == residue
    matched, order = library("martini3").match_beads(name, template.bead_names)
    assert matched is template
    assert order == list(range(template.n_beads))


def test_dupc_is_dilauroyl():
    """Martini 3 DUPC has two tails of twelve carbons, which CHARMM calls DLPC."""
    beads = ["NC3", "PO4", "GL1", "GL2", "C1A", "C2A", "C3A", "C1B", "C2B", "C3B"]
    template, _ = library("martini3").match_beads("DUPC", beads)
    names = set(template.names)
    assert {"C212", "C312"} <= names
    assert not {"C213", "C313"} & names
    assert not any(order == 2 and {"C2", "C3"} == {n[:2] for n in pair}
                   for order, pair in zip(template.constraints.bond_order,
                                          template.names[template.constraints.bonds],
                                          strict=True))  # fmt: skip


def test_no_two_shipped_templates_answer_the_same_beads():
    for family in shipped():
        seen: dict[tuple[str, frozenset[str]], str] = {}
        for template in library(family).templates:
            for name in {template.residue, *template.spec.aliases}:
                key = (name, frozenset(template.bead_names))
                assert key not in seen, f"{family}: {template.source} and {seen[key]}"
                seen[key] = template.source


@pytest.mark.parametrize("family", shipped())
@pytest.mark.parametrize(
    ("resname", "beads", "kind"),
    [
        ("W", ["W"], "solvent"), ("PW", ["W", "WP", "WM"], "solvent"), ("WF", ["WF"], "solvent"),
        ("SW", ["SW"], "solvent"), ("TW", ["TW"], "solvent"), ("NA", ["NA"], "ion"),
        ("CL", ["CL"], "ion"), ("ION", ["NA+"], "ion"), ("ION", ["CL-"], "ion"),
        ("CA", ["CA"], "ion"), ("ZN", ["ZN"], "ion"),
    ],
)  # fmt: skip
def test_water_and_ions_under_any_mapping(family, resname, beads, kind):
    template, _ = library(family).match_beads(resname, beads)
    assert template.kind == kind
    assert not template.has_atoms


def test_beads_in_any_order_and_with_virtual_sites():
    found = library("martini3")
    template, order = found.match_beads("TRP", ["SC3", "BB", "CA", "SC1", "SC5", "SC2", "SC4"])
    assert [["SC3", "BB", "CA", "SC1", "SC5", "SC2", "SC4"][k] for k in order] == list(
        template.bead_names
    )
    assert found.match_beads("LYS", ["BB", "SC1"]) is None
    assert found.match_beads("LYS", ["BB", "SC1", "SC2", "SC2"]) is None
    assert found.match_beads("LYS", ["BB", "SC1", "SC2", "XX"]) is None
    assert found.is_skipped("LYS", ["CA"]) == "Go virtual site"
    assert found.is_skipped("LYS", ["CA", "BB"]) is None


def test_atoms_find_the_template():
    found = library("martini3")
    names = ["N", "HN", "CA", "CB", "CG", "CD", "CE", "NZ", "C", "OT1", "OT2"]
    assert found.match_atoms("LYS", names).residue == "LYS"
    assert found.match_atoms("LYS", ["N", "CA"]) is None
    assert found.match_atoms("XXX", names) is None
    assert found.match_atoms("NA", ["NA"]) is None


def test_explanations():
    found = library("martini3")
    assert found.explain("LYS", ["BB", "SC1"]) == (
        "LYS: bead SC2 is missing (expected BB SC1 SC2; found BB SC1)"
    )
    assert "bead SC4 is not in the mapping" in found.explain("LYS", ["BB", "SC1", "SC2", "SC4"])
    assert "a bead stands twice" in found.explain("GLY", ["BB", "BB"])
    assert found.explain("CAFE", ["C1"]).endswith("no mapping of that name (did you mean CAFF?)")
    assert found.explain("QQQQ", ["Q"]).endswith("no mapping of that name")


# Loading

USER_POPC = """\
residue: POPC
name: mine
like: martini3/lipid/POPC
"""
LIGAND = """\
residue: LIG
beads: {X: }
atoms:
  C1: {bead: X}
"""


def test_a_file_alone_is_added_to_martini3(tmp_path: Path):
    path = tmp_path / "LIG.yaml"
    path.write_text(LIGAND)
    for argument in (path, str(path), [path], [str(path)]):
        found = Library.load(argument)
        assert found.match_beads("LIG", ["X"])[0].residue == "LIG"
        assert found.match_beads("GLY", ["BB"])
        assert found.source == f"martini3 + {path}"


def test_a_file_with_a_mapping_is_not(tmp_path: Path):
    path = tmp_path / "LIG.yaml"
    path.write_text(LIGAND)
    found = Library.load(["ca", path])
    assert found.match_beads("GLY", ["CA"])
    assert found.match_beads("GLY", ["BB"]) is None
    assert found.match_beads("LIG", ["X"])


@pytest.mark.parametrize("order", [1, -1])
def test_the_later_file_wins(tmp_path: Path, order):
    path = tmp_path / "POPC.yaml"
    path.write_text(USER_POPC)
    found = Library.load(["martini3", str(path)][::order])
    beads = library("martini3").candidates("POPC")[0].bead_names
    assert found.match_beads("POPC", beads)[0].spec.name == ("mine" if order == 1 else "")


def test_folders_with_a_family_file(tmp_path: Path):
    (tmp_path / "_family.yaml").write_text("kind: lipid\nhydrogens: ignored\n")
    (tmp_path / "bead_types.yaml").write_text("LIG.X: 0\n")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "LIG.yml").write_text(LIGAND)
    (tmp_path / "deeper" / "LIG2.yaml").write_text(LIGAND.replace("LIG", "LIG2"))
    found = Library.load([tmp_path])
    assert found.candidates("LIG")[0].spec.hydrogens == "ignored"
    assert found.candidates("LIG2")[0].kind == "molecule"
    assert not found.candidates("GLY")


def test_an_edited_file_is_read_again(tmp_path: Path):
    path = tmp_path / "LIG.yaml"
    path.write_text(LIGAND)
    assert Library.load([path]).candidates("LIG")
    path.write_text(LIGAND.replace("LIG", "NEW"))
    assert Library.load([path]).candidates("NEW")


def test_a_folder_here_does_not_hide_a_shipped_mapping(tmp_path: Path, monkeypatch):
    (tmp_path / "martini3").mkdir()
    (tmp_path / "martini3" / "LIG.yaml").write_text(LIGAND)
    monkeypatch.chdir(tmp_path)
    assert Library.load(["martini3"]).candidates("POPC")
    assert Library.load(["./martini3"]).candidates("LIG")


@pytest.mark.parametrize("family", [*shipped(), SOLVENT])
def test_names_of_shipped_files_are_known_before_they_are_compiled(family):
    for entry in libraries._load_shipped(family):
        spec = entry.template.spec
        assert entry.names == (spec.residue, *spec.aliases), entry.path


def test_shipped_files_are_compiled_when_they_are_asked_for(monkeypatch):
    read, real = [], libraries.load_spec
    monkeypatch.setattr(libraries, "load_spec", lambda path: read.append(path.stem) or real(path))
    found = Library([libraries._Shipped(p) for p in libraries._files("martini3")], "martini3")
    assert found.match_beads("GLY", ["BB"])
    assert found.candidates("GLY")[0] is found.candidates("GLY")[0]
    assert found.match_beads("QQQ", ["BB"]) is None
    assert "no mapping of that name" in found.explain("QQQ", ["BB"])
    assert read == ["GLY"]
    assert len(found.templates) == len(read) > 100


def test_a_misspelt_mapping_lists_the_shipped_ones():
    with pytest.raises(MappingError) as caught:
        Library.load(["martini33"])
    text = str(caught.value)
    assert "martini33" in text
    assert all(name in text for name in shipped())
    assert SOLVENT not in shipped()
    with pytest.raises(MappingError, match="neither a shipped mapping"):
        Library.load([""])
    with pytest.raises(MappingError, match="neither a shipped mapping"):
        Library.load(["x" * 5000])


def test_empty_folders_and_bad_files_are_reported_together(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "X.yaml").write_text("residue: X\n")
    with pytest.raises(MappingFileError) as caught:
        Library.load([tmp_path / "empty", tmp_path / "X.yaml", "nothing"])
    text = str(caught.value)
    assert "empty: holds no mapping file" in text
    assert "X.yaml, line 1: 'beads' is missing" in text
    assert "mapping 'nothing': neither" in text
