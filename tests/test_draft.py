"""Drafting mapping files: every input format, the chemistry found, and every refusal."""

from __future__ import annotations

import builtins
import re
from pathlib import Path

import numpy as np
import pytest
from mdbackmap.errors import InputFileError
from mdbackmap.io.bead_files import read_beads
from mdbackmap.mapping import conformers
from mdbackmap.mapping.library import load_templates
from mdbackmap.mapping.template import Template

from helpers_io import fails, ok, unchanged

Chem = pytest.importorskip("rdkit.Chem")
rdDistGeom = pytest.importorskip("rdkit.Chem.rdDistGeom")

IBUPROFEN = "CC(C)Cc1ccc(cc1)[C@H](C)C(=O)O"
BEADS = {"C1": [1, 2, 3, 4], "R2": [5, 6, 7], "R3": [8, 9, 10], "P4": [11, 12, 13, 14, 15]}


def ndx(folder: Path, beads: dict[str, list[int]] = BEADS) -> Path:
    path = folder / "beads.ndx"
    path.write_text("".join(f"[ {b} ]\n{' '.join(map(str, a))}\n" for b, a in beads.items()))
    return path


def every(number: int, n_atoms: int) -> dict[str, list[int]]:
    """Beads of so many atoms in a row."""
    starts = range(0, n_atoms, number)
    return {f"B{k}": list(range(s + 1, min(s + number, n_atoms) + 1)) for k, s in enumerate(starts)}


def smi(folder: Path, smiles: str) -> Path:
    path = folder / "lig.smi"
    path.write_text(smiles + "\n")
    return path


def placed(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    return mol


def new(ligand: Path, *words: object, output: str = "out.yaml") -> tuple[Template, str]:
    """Draft a mapping; return it as it is read back, and what the command said."""
    path = ligand.parent / output
    said = ok("mapping", "new", ligand, "-o", path, *words)
    return load_templates(path)[0], said


def draft(folder: Path, smiles: str, size: int = 4, *words: object) -> tuple[Template, str]:
    n_atoms = Chem.MolFromSmiles(smiles).GetNumAtoms()
    beads = ndx(folder, every(size, n_atoms))
    return new(smi(folder, smiles), "--beads", beads, *words)


def refused(folder: Path, smiles: str, *words: object) -> str:
    ligand, beads = smi(folder, smiles), ndx(folder, {"A": [1, 2], "B": [3, 4, 5, 6]})
    with unchanged(folder):
        return fails("mapping", "new", ligand, "--beads", beads, "-o", folder / "out.yaml", *words)


def hand(template: Template, mol: Chem.Mol) -> list[float]:
    """Signed volumes of the stereocentres in coordinates of the same atom order."""
    points = mol.GetConformer().GetPositions()
    table = template.constraints
    x, a, b, c = points[table.volumes[table.volume > 0.5]].transpose(1, 0, 2)
    return list(((a - x) * np.cross(b - x, c - x)).sum(axis=1))


# Chemistry


def test_ibuprofen_from_smiles(tmp_path):
    template, said = new(smi(tmp_path, IBUPROFEN), "--beads", ndx(tmp_path), "--name", "IBP")
    spec = template.spec
    assert (spec.residue, list(spec.beads), template.n_atoms) == ("IBP", list(BEADS), 15)
    assert list(template.names[:3]) == ["C1", "C2", "C3"]
    assert "stereocentres: C11 S" in said
    assert spec.hydrogens == "ignored"
    assert len(spec.atoms["C1"].hydrogens) == 3
    assert len(spec.chiral) == 1
    assert min(hand(template, placed(IBUPROFEN))) > 0
    mirror = IBUPROFEN.replace("@", "@@")
    assert max(hand(template, placed(mirror))) < 0
    lengths = {frozenset(row[:2]): row[2:] for row in spec.bonds}
    assert lengths[frozenset(("C13", "O1"))] == (2, pytest.approx(1.22, abs=0.02))
    assert lengths[frozenset(("C5", "C6"))] == (1.5, pytest.approx(1.40, abs=0.02))
    assert any({"C5", "C6", "C7", "C8", "C9", "C10", "C4", "C11"} == set(g) for g in spec.planar)
    assert {"C1": "C3"} in spec.symmetric
    assert {"C6": "C10", "C7": "C9"} in spec.symmetric


def test_a_draft_can_be_checked_and_shown(tmp_path):
    new(smi(tmp_path, IBUPROFEN), "--beads", ndx(tmp_path), "--name", "IBP")
    assert "good" in ok("mapping", "check", tmp_path / "out.yaml")
    assert "hangs from" in ok("mapping", "show", "IBP", "--mapping", tmp_path / "out.yaml")


def test_the_same_input_gives_the_same_file(tmp_path):
    draft(tmp_path, IBUPROFEN)
    first = (tmp_path / "out.yaml").read_text()
    draft(tmp_path, IBUPROFEN, 4, "--force")
    assert (tmp_path / "out.yaml").read_text() == first


def test_double_bonds_keep_their_side(tmp_path):
    template, said = draft(tmp_path, "CC/C(C)=C(/C)Cl")
    assert template.constraints.torsions.shape == (4, 4)
    rows = {(r[0], r[3]) for r in template.spec.cis} | {(r[3], r[0]) for r in template.spec.cis}
    mol = Chem.MolFromSmiles("CC/C(C)=C(/C)Cl")
    bond = mol.GetBondBetweenAtoms(2, 4)
    assert f"C3=C5 {'E' if bond.GetStereo() == Chem.BondStereo.STEREOE else 'Z'}" in said
    # As drawn, the ethyl and the methyl beyond stand on opposite sides.
    assert ("C2", "CL1") in rows
    assert ("C2", "C6") not in rows


def test_amides_and_esters_are_assumed_z_and_said(tmp_path):
    template, said = draft(tmp_path, "CCNC(=O)CC(=O)OC")
    assert "taken as Z: C2 N1 C3 O1, C6 O3 C5 O2" in said.replace("\n    ", " ")
    assert template.spec.cis == [("C2", "N1", "C3", "O1"), ("C6", "O3", "C5", "O2")]
    assert draft(tmp_path, "O=C1CCCN1C", 4, "--force")[0].spec.cis == []


@pytest.mark.parametrize(
    ("smiles", "swaps"),
    [
        ("CCC(=O)[O-]", [{"O1": "O2"}]),
        ("CCC(=O)O", []),
        ("CCCS(=O)(=O)C(C)C", [{"O1": "O2"}, {"C5": "C6"}]),
        ("c1ccccc1", [{"C1": "C3", "C4": "C6"}]),
        # Branches of the same hand, and mirror images: their exchange would exchange R and S.
        (
            "CCN(O[C@H](C)Cl)O[C@H](C)Cl",
            [{"O1": "O2", "C3": "C5", "C4": "C6", "CL1": "CL2"}],
        ),
        ("CCN(O[C@H](C)Cl)O[C@@H](C)Cl", []),
    ],
)
def test_equivalent_atoms(tmp_path, smiles, swaps):
    assert draft(tmp_path, smiles, 3)[0].spec.symmetric == swaps


def test_delocalised_ends_share_their_order(tmp_path):
    template, _ = draft(tmp_path, "CCC(=O)[O-]")
    rows = {row[:2]: row[2] for row in template.spec.bonds}
    assert rows["C3", "O1"] == rows["C3", "O2"] == 1.5
    assert template.spec.atoms["O2"].charge == -1


def test_phosphates_are_no_stereocentres(tmp_path):
    template, _ = draft(tmp_path, "CCOP(=O)([O-])OC")
    assert template.spec.chiral == {}


def test_elements_that_names_hide(tmp_path):
    mol = placed("C[Si](C)(C)OC")
    ligand = tmp_path / "lig.pdb"
    for k, atom in enumerate(mol.GetAtoms()):
        info = Chem.AtomPDBResidueInfo(f" X{k:<2d}", residueName="LIG", isHeteroAtom=True)
        atom.SetMonomerInfo(info)
    Chem.MolToPDBFile(mol, str(ligand), flavor=4)
    template, _ = new(
        ligand, "--beads", ndx(tmp_path, every(3, 6)), "--smiles", "C[Si](C)(C)OC"
    )  # fmt: skip
    assert list(template.elements) == ["C", "SI", "C", "C", "O", "C"]


# Molecule files


def test_sdf_keeps_coordinates_stereo_and_numbers_hydrogens(tmp_path):
    mol = placed(IBUPROFEN)
    ligand = tmp_path / "ibuprofen.sdf"
    Chem.SDWriter(str(ligand)).write(mol)
    hydrogens = {b: [*a, *_hydrogens(mol, a)] for b, a in BEADS.items()}
    template, said = new(ligand, "--beads", ndx(tmp_path, hydrogens))
    spec = template.spec
    assert (spec.residue, spec.aliases) == ("IBUP", ["IBUPROFEN"])
    assert list(template.names[-2:]) == ["O14", "O15"]
    assert spec.hydrogens == "counted"
    assert "C11 S" in said
    assert spec.atoms["C1"].hydrogens == ["H16", "H17", "H18"]


def _hydrogens(mol: Chem.Mol, atoms: list[int]) -> list[int]:
    return [
        other.GetIdx() + 1
        for i in atoms
        for other in mol.GetAtomWithIdx(i - 1).GetNeighbors()
        if other.GetAtomicNum() == 1
    ]


@pytest.mark.parametrize("bonded", [True, False])
@pytest.mark.parametrize("smiles", [IBUPROFEN, ""])
def test_pdb_finds_orders_with_and_without_smiles(tmp_path, bonded, smiles):
    ligand = tmp_path / "lig.pdb"
    Chem.MolToPDBFile(placed(IBUPROFEN), str(ligand))
    if not bonded:
        lines = [line for line in ligand.read_text().splitlines() if line[:6] != "CONECT"]
        ligand.write_text("\n".join(lines))
    template, said = new(ligand, "--beads", ndx(tmp_path), "--smiles", smiles)
    assert "C11 S" in said
    assert sorted(row[2] for row in template.spec.bonds) == [1] * 8 + [1.5] * 6 + [2]


def test_pdb_without_hydrogens_needs_a_smiles(tmp_path):
    ligand = tmp_path / "lig.pdb"
    Chem.MolToPDBFile(Chem.RemoveHs(placed(IBUPROFEN)), str(ligand))
    words = ("mapping", "new", ligand, "--beads", ndx(tmp_path), "-o", tmp_path / "out.yaml")
    assert "--smiles" in fails(*words)
    assert "18 that lig.pdb lacks were added" in ok(*words, "--smiles", IBUPROFEN)
    assert "another stereoisomer" in fails(
        *words, "--force", "--smiles", IBUPROFEN.replace("@", "@@")
    )
    assert "not the same molecule" in fails(*words, "--force", "--smiles", "CCO")


def test_pdb_with_another_protonation(tmp_path):
    ligand = tmp_path / "lig.pdb"
    Chem.MolToPDBFile(placed(IBUPROFEN), str(ligand))
    words = ("mapping", "new", ligand, "--beads", ndx(tmp_path), "-o", tmp_path / "out.yaml")
    message = fails(*words, "--smiles", IBUPROFEN[:-1] + "[O-]")
    assert "atom O2: 1 hydrogens in the file, 0 in the SMILES" in message


MOL2 = """@<TRIPOS>MOLECULE
LAC
 6 5 1
SMALL
NO_CHARGES

@<TRIPOS>ATOM
 1 CM   1.4   0.5   0.9  C.3  1 LAC 0
 2 CA   0.0   0.0   0.5  C.3  1 LAC 0
 3 OH  -0.9   1.1   0.4  O.3  1 LAC 0
 4 C    0.0  -0.7  -0.85 C.2  1 LAC 0
 5 O1   0.9  -1.4  -1.2  O.co2 1 LAC 0
 6 O2  -1.1  -0.6  -1.6  O.co2 1 LAC 0
@<TRIPOS>BOND
 1 1 2 1
 2 2 3 1
 3 2 4 1
 4 4 5 ar
 5 4 6 ar
"""


def test_mol2_keeps_names(tmp_path):
    ligand = tmp_path / "lac.mol2"
    ligand.write_text(MOL2)
    template, _ = new(ligand, "--beads", ndx(tmp_path, {"C1": [1, 2, 3], "Q2": [4, 5, 6]}))
    assert list(template.names) == ["CM", "CA", "OH", "C", "O1", "O2"]
    assert {row[:2]: row[2] for row in template.spec.bonds}["C", "O1"] == 1.5
    mol = Chem.MolFromMol2File(str(ligand), sanitize=False)
    assert min(hand(template, mol)) > 0
    assert template.spec.symmetric == [{"O1": "O2"}]


# Bead files


def test_itp_names_the_groups_of_an_ndx(tmp_path):
    itp = tmp_path / "cg.itp"
    rows = ["1 TC5 1 PHOL A1 1 0", "2 TC5 1 PHOL A2 2 0", "3 VS 1 PHOL V3 3 0"]
    text = "[ moleculetype ]\nPHOL 1\n[ atoms ]\n; comment\n" + "\n".join(rows)
    itp.write_text(text + "\n[ virtual_sitesn ]\n3 1 1 2\n")
    beads = ndx(tmp_path, {"G1": [1, 2, 3, 4], "G2": [5, 6, 7, 4]})
    template, _ = new(smi(tmp_path, "Oc1ccccc1"), "--beads", beads, "--beads", itp)
    assert (template.residue, template.bead_names) == ("PHOL", ("A1", "A2"))
    assert template.spec.skip_beads == {"V3": "virtual site"}
    assert template.spec.atoms["C3"].bead == ["A1", "A2"]
    itp.write_text(text.replace("A2", "A1") + "\n[ virtual_sitesn ]\n9 1 1 2\n")
    message = fails(
        "mapping", "new", tmp_path / "lig.smi", "--beads", beads, "--beads", itp,
        "-o", tmp_path / "new.yaml",
    )  # fmt: skip
    assert "line 6: two beads are called A1" in message
    assert "line 9: virtual site 9" in message


def test_itp_alone_says_what_is_missing(tmp_path):
    with pytest.raises(InputFileError, match=r"(?s)which atoms belong to them.*\.ndx"):
        read_beads([tmp_path / "cg.itp"])


def test_map_files_share_by_repetition(tmp_path):
    path = tmp_path / "phol.map"
    path.write_text(
        "; shared\n[ molecule ]\nPHOL\n[ martini ]\nA B\n[ mapping ]\ncharmm36\n[ atoms ]\n"
        "1 O1 A\n2 C1 A A B\n3 C2 A\n4 C3 B\n5 C4 B !A\n6 C5 B\n7 C6 A B\n[ chiral ]\nCB CA N C\n"
    )
    template, _ = new(smi(tmp_path, "Oc1ccccc1"), "--beads", path)
    atoms = template.spec.atoms
    assert template.residue == "PHOL"
    assert atoms["C1"].bead == {"A": pytest.approx(2 / 3), "B": pytest.approx(1 / 3)}
    assert atoms["C4"].bead == {"B": 1, "A": 0}
    assert atoms["C6"].bead == ["A", "B"]


@pytest.mark.parametrize(
    "text",
    [
        "A\tO1\nA\tC1\t1/2\nA\tC2\nB\tC1\t1/2\nB\tC3\nB\tC4\nB\tC5\nB\tC6\n",
        "id,atom,bead\nlig,1,A\nlig,2,A\nlig,3,A\nlig,2,B\nlig,4,B\nlig,5,B\nlig,6,B\nlig,7,B\nx,1,A\n",
        "bead atom\nA O1\nA C1\nA C2\nB C1\nB C3\nB C4\nB C5\nB C6\n",
    ],
)
def test_tables(tmp_path, text):
    path = tmp_path / "beads.tsv"
    path.write_text(text)
    template, _ = new(smi(tmp_path, "Oc1ccccc1"), "--beads", path)
    assert template.spec.atoms["C1"].bead == ["A", "B"]
    assert template.spec.atoms["C6"].bead == "B"


def test_a_table_of_several_needs_a_name(tmp_path):
    path = tmp_path / "beads.tsv"
    path.write_text("id\tbead\tatom\nPHOL\tA\tO1\nBENZ\tA\tC1\n")
    with pytest.raises(InputFileError, match=r"holds 2 molecules.*PHOL"):
        read_beads([path], ["PHEN"])


# What is refused


def test_bad_beads_are_all_named(tmp_path):
    path = tmp_path / "beads.tsv"
    path.write_text("A\tO1\nA\tC11\nA\t40\nB,B\tC1\nB\tC2\nH\tH6\n")
    message = fails(
        "mapping", "new", smi(tmp_path, "Oc1ccccc1"), "--beads", path, "-o", tmp_path / "o.yaml"
    )
    for part in (
        "line 2: bead A: lig.smi has no atom C11; did you mean C1",
        "line 3: bead A: atom number 40, but lig.smi holds 13 atoms",
        "bead 'B,B'",
        "bead H (beads.tsv): holds hydrogens only",
        "heavy atoms in no bead of beads.tsv: C3 C4 C5 C6",
    ):
        assert part in message
    assert not (tmp_path / "o.yaml").exists()


@pytest.mark.parametrize("text", ["A C1,C2,\nB C3", "A\tC1 C2\nB\tC3", "A\tC1, C2\nB\tC3\t1"])
def test_a_row_may_hold_several_atoms(tmp_path, text):
    path = tmp_path / "beads.tsv"
    path.write_text(text)
    beads = read_beads([path]).beads
    assert {bead: [m.atom for m in members] for bead, members in beads.items()} == {
        "A": ["C1", "C2"], "B": ["C3"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("b.ndx", "1 2\n[ A ]\n1 x 0\n[ A ]\n3\n", "line 1.*line 3: .*x 0.*line 4: two groups"),
        ("b.ndx", "[ A ]\n1 1\n", "line 2: atom 1 stands twice in bead A"),
        ("b.ndx", "; nothing\n", "holds no bead"),
        ("b.map", "[ martini ]\nA B\n[ atoms ]\n1 C1 A\nC2 B\n", "line 5.*bead B is listed"),
        ("b.tsv", "A C1\nB\t,", "line 2: the bead or the atom is missing"),
        ("b.tsv", "A C1 1/0\nB\nB C1 -1\n", "line 2: expected the columns.*line 1: weight 1/0"),
        ("b.txt", "A C1 1 x y\n", "found 5 cells"),
    ],
)
def test_bad_bead_files_name_their_lines(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputFileError, match="(?s)" + message):
        read_beads([path])


def test_bead_files_of_no_known_kind(tmp_path):
    with pytest.raises(InputFileError, match=r"b\.gro.*expected \.ndx"):
        read_beads([tmp_path / "b.gro"])
    with pytest.raises(InputFileError, match="no such file"):
        read_beads([tmp_path / "b.ndx"])


def test_a_group_of_all_atoms(tmp_path):
    beads = ndx(tmp_path, {"System": [1, 2, 3], "A": [1, 2, 3]})
    message = fails(
        "mapping", "new", smi(tmp_path, "CCO"), "--beads", beads, "-o", tmp_path / "o.yaml"
    )
    assert "bead System (beads.ndx): holds all atoms" in message


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ("CC(=O)[O-].[Na+]", "2 molecules that no bond joins"),
        ("CC(C)(C)(C)C", "atom C2: .*valence"),
        ("CC(C", "RDKit cannot read it.*parenthes"),
        ("CC[CH]C", "unpaired electrons at atom C3"),
        ("c1cccc1", "atom C1 C2 C3 C4 C5"),
        ("CC[Pt]CC", "atom PT1: element Pt is not known"),
        ("CCCC(F)CCC(F)CC", "stereocentre C4: .*\n.*stereocentre C7: .*--allow-open-stereo"),
        ("CCC=CCC", "double bond C3=C4"),
        ("CCCCCC\nCCO", "one line with one SMILES, found 2"),
    ],
)
def test_bad_molecules(tmp_path, smiles, message):
    assert re.search(message, refused(tmp_path, smiles))


def test_stereocentres_that_no_ring_can_have_are_not_tried_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(conformers, "PATIENCE", 1)
    # Quinine with the two ends of its bridge on different sides.
    quinine = "COc1ccc2nccc([C@@H](O)[C@@H]3C[C@@H]4CC[N@]3C[C@@H]4C=C)c2c1"
    beads = ndx(tmp_path, {"A": list(range(1, 13)), "B": list(range(13, 25))})
    message = fails(
        "mapping", "new", smi(tmp_path, quinine), "--beads", beads, "-o", tmp_path / "o.yaml"
    )
    assert "finds no conformer; are its rings and stereocentres" in message


def test_open_stereo_may_be_allowed_and_is_said(tmp_path):
    template, said = draft(tmp_path, "CCC(F)Cl", 3, "--allow-open-stereo")
    assert "taken as it came: stereocentre C3" in said
    assert len(template.spec.chiral) == 1


def test_an_existing_file_is_kept(tmp_path):
    draft(tmp_path, "CCOCC")
    with unchanged(tmp_path):
        message = fails(
            "mapping", "new", tmp_path / "lig.smi", "--beads", tmp_path / "beads.ndx",
            "-o", tmp_path / "out.yaml",
        )  # fmt: skip
    assert "--force" in message


def test_other_places_are_refused(tmp_path):
    ligand, beads = smi(tmp_path, "CCO"), ndx(tmp_path, {"A": [1, 2, 3]})
    for output, message in (("x.txt", ".yaml"), ("no/x.yaml", "does not exist")):
        words = ("mapping", "new", ligand, "--beads", beads, "-o", tmp_path / output)
        assert message in fails(*words)
    assert "suffix '.xyz'" in fails(
        "mapping", "new", tmp_path / "a.xyz", "--beads", beads, "-o", tmp_path / "x.yaml"
    )


def test_without_rdkit(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name.startswith("rdkit"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert "pip install 'mdbackmap[ligands]'" in refused(tmp_path, "CCO")
