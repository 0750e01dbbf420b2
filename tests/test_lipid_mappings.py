"""Which lipid a residue of beads is, and that what its file says is that lipid."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.template import Template

HEADS = {
    "PC": "NC3 PO4 GL1 GL2", "PE": "NH3 PO4 GL1 GL2", "PS": "CNO PO4 GL1 GL2",
    "PG": "GL0 PO4 GL1 GL2", "PA": "PO4 GL1 GL2", "PI": "C1 C2 C3 C4 PO4 GL1 GL2",
    "SM": "NC3 PO4 OH1 AM2", "CER": "COH OH1 AM2", "SM2": "NC3 PO4 AM1 AM2", "CER2": "AM1 AM2",
    "PI2": "C1 C2 C3 PO4 GL1 GL2", "": "",
}  # fmt: skip
SHORT = "C1A C2A C3A C1B C2B C3B"
OLEOYL = "C1A D2A C3A C4A C1B C2B C3B C4B"
LINOLEOYL = "C1A D2A D3A C4A C1B C2B C3B C4B"
DILINOLEOYL = "C1A D2A D3A C4A C1B D2B D3B C4B"
ARACHIDONOYL = "C1A D2A D3A D4A C5A C1B C2B C3B C4B"
OLD_ARACHIDONOYL = "D1A D2A D3A D4A C5A C1B C2B C3B C4B"
SPHINGOSINE = "T1A C2A C3A C4A"
INSANE = "GL5 PO41 GL1 GL2 C1A C2A D3A C4A C5A C1B C2B D3B C4B C5B PO42 GL3 GL4 "


def arms(first: str, tail: str) -> list[str]:
    return [f"{bead}{side}{arm}" for arm in first for side in "AB" for bead in tail.split()]


def cardiolipin(tail: str, core: str = "GLC") -> str:
    one, two = arms("1", tail), arms("2", tail)
    return " ".join([core, "PO41", "GL11", "GL21", *one, "PO42", "GL12", "GL22", *two])


@functools.cache
def library(family: str) -> Library:
    return Library.load([family])


def lipids(family: str) -> list[Template]:
    return [t for t in library(family).templates if t.kind == "lipid"]


def every_lipid() -> list:
    return [
        pytest.param(t, id=f"{family}-{t.residue}")
        for family in ("martini3", "martini2")
        for t in lipids(family)
    ]


def keys(template: Template) -> dict[str, str]:
    return dict(key.split(":") for key in template.bead_keys)


# Names


@pytest.mark.parametrize(
    ("family", "resname", "head", "tails", "residue"),
    [
        # One name, two lipids: the beads tell.
        ("martini3", "DLPC", "PC", SHORT, "DLPC"), ("martini3", "DUPC", "PC", SHORT, "DLPC"),
        ("martini3", "DLPC", "PC", DILINOLEOYL, "DUPC"),
        ("martini3", "DUPC", "PC", DILINOLEOYL, "DUPC"),
        ("martini3", "DLPE", "PE", SHORT, "DLPE"), ("martini3", "DUPE", "PE", SHORT, "DLPE"),
        ("martini3", "DLPE", "PE", DILINOLEOYL, "DLIPE"),
        ("martini3", "CDL2", "", cardiolipin("C1 D2 C3 C4"), "TOCL2"),
        ("martini3", "CDL2", "", cardiolipin("C1 D2 D3 C4"), "TLCL2"),
        # The first Martini 3 lipids, as Martini 2 named them.
        ("martini3", "DIPC", "PC", DILINOLEOYL, "DUPC"),
        ("martini3", "PIPC", "PC", LINOLEOYL, "PLPC"),
        ("martini3", "PIPS", "PS", LINOLEOYL, "PLPS"),
        ("martini3", "PAPC", "PC", OLD_ARACHIDONOYL, "PAPC"),
        ("martini3", "PAPC", "PC", ARACHIDONOYL, "PAPC"),
        ("martini3", "SAPI", "PI", OLD_ARACHIDONOYL, "SAPI"),
        # The lipids of 2025.
        ("martini3", "PLPC", "PC", LINOLEOYL, "PLPC"),
        ("martini3", "SOPS", "PS", OLEOYL, "SOPS"),
        ("martini3", "POPI", "PI", OLEOYL, "POPI"),
        ("martini3", "POP1", "PI", f"P3 {OLEOYL}", "POPI13"),
        ("martini3", "POP4", "PI", f"P4 {OLEOYL}", "POPI14"),
        ("martini3", "POP2", "PI", f"P3 P4 {OLEOYL}", "POPI2C"),
        ("martini3", "POP2", "PI", f"P4 P5 {OLEOYL}", "POPI24"),
        ("martini3", "SAP6", "PI", f"P4 P5 {ARACHIDONOYL}", "SAPI24"),
        ("martini3", "POP3", "PI", f"P3 P4 P5 {OLEOYL}", "POPI33"),
        ("martini3", "NSM", "SM", f"{SPHINGOSINE} C1B C2B C3B D4B C5B C6B", "NSM"),
        ("martini3", "XSM", "SM", f"{SPHINGOSINE} C1B C2B C3B C4B C5B C6B", "LSM"),
        ("martini3", "PCER", "CER", f"{SPHINGOSINE} C1B C2B C3B C4B", "CER160"),
        ("martini3", "TMCL", "", cardiolipin("C1 C2 C3"), "TMCL2"),
        ("martini3", "CHOL", "", "ROH R1 R2 R3 R4 R5 R6 C1 C2", "CHL1"),
        # Martini 2.
        ("martini2", "DLPC", "PC", SHORT, "DLPC"), ("martini2", "DIPC", "PC", DILINOLEOYL, "DUPC"),
        ("martini2", "PUPS", "PS", "D1A D2A D3A D4A D5A C1B C2B C3B C4B", "PDPS"),
        ("martini2", "POPI", "PI2", OLEOYL, "POPI"),
        ("martini2", "POP2", "PI2", f"P1 P2 {OLEOYL}", "POPI2C"),
        ("martini2", "PI45C", "PI2", f"P4 P5 {OLD_ARACHIDONOYL}", "SAPI24"),
        ("martini2", "DPSM", "SM2", "T1A C2A C3A C1B C2B C3B C4B", "SSM"),
        ("martini2", "DPCE", "CER2", "T1A C2A C3A C1B C2B C3B C4B", "CER180"),
        ("martini2", "CHOL", "", "ROH R1 R2 R3 R4 R5 C1 C2", "CHL1"),
        ("martini2", "CDL2", "", cardiolipin("C1 C2 D3 C4 C5", "GL0"), "TOCL2"),
        ("martini2", "CDL2", "", INSANE + "C1C C2C C3C C4C C5C C1D C2D D3D C4D C5D", "TOCL2"),
    ],
)  # fmt: skip
def test_beads_tell_the_lipid(family, resname, head, tails, residue):
    beads = [*HEADS[head].split(), *tails.split()]
    template, order = library(family).match_beads(resname, beads)
    assert template.residue == residue
    spec = template.spec
    assert [spec.bead_aliases.get(beads[k], beads[k]) if beads[k] not in spec.beads else beads[k]
            for k in order] == list(template.bead_names)  # fmt: skip


def test_eight_beads_are_no_martini_3_cholesterol():
    eight = ["ROH", "R1", "R2", "R3", "R4", "R5", "C1", "C2"]
    assert library("martini3").match_beads("CHOL", eight) is None
    assert library("martini2").match_beads("CHOL", [*eight, "R6"]) is None


@pytest.mark.parametrize("residue", ["DLPC", "DLPE", "DUPC", "DLIPE", "POPI13", "POPI14", "SAPI24"])
def test_atoms_tell_the_lipid(residue):
    """Names that stand for several lipids, and those a file cut to five letters."""
    atoms = next(t for t in lipids("martini3") if t.residue == residue).names.tolist()
    names = {residue, residue[:5]} & set(library("martini3")._by_name)
    names |= {"DUPC": {"DLPC", "DIPC"}, "DLIPE": {"DLPE"}, "POPI13": {"POP1"}}.get(residue, set())
    for name in names:
        assert library("martini3").match_atoms(name, atoms).residue == residue


# Chemistry


@pytest.mark.parametrize("template", every_lipid())
def test_bead_names_tell_double_bonds(template: Template):
    """``D2A`` holds a double bond between carbons and ``C2A`` none of its own."""
    order = template.constraints.bond_order
    double = [
        {template.bead_names[template.atom_bead[atom]] for atom in pair}
        for pair, n in zip(template.constraints.bonds, order, strict=True)
        if n == 2 and set(template.elements[pair]) == {"C"}
    ]
    inside = {bead for pair in double if len(pair) == 1 for bead in pair}
    tails = {
        bead
        for bead in template.bead_names
        if len(bead) > 2 and bead[0] in "CD" and bead[1] in "123456"
    }
    assert {bead for bead in tails if bead[0] == "D"} == inside & tails
    assert not {bead for pair in double if len(pair) == 2 for bead in pair if bead[0] == "C"}


@pytest.mark.parametrize("template", every_lipid())
def test_double_bonds_of_chains_have_a_side(template: Template):
    spec = template.spec
    sides = {frozenset(row[1:3]) for row in (*spec.cis, *spec.trans)}
    rings = {"C5", "C6"} if template.residue == "CHL1" else set()
    for first, second, order, _ in spec.bonds:
        if order == 2 and first[0] == second[0] == "C" and {first, second} != rings:
            assert frozenset((first, second)) in sides
    assert {tuple(row) for row in spec.trans} <= {("C3S", "C4S", "C5S", "C6S"),
                                                  ("C6S", "C5S", "C4S", "C3S")}  # fmt: skip


@pytest.mark.parametrize("template", every_lipid())
def test_valences(template: Template):
    orders = Counter()
    for first, second, order, _ in template.spec.bonds:
        orders[first] += order
        orders[second] += order
    for name, element, hydrogens in zip(
        template.names.tolist(), template.elements, template.n_hydrogens, strict=True
    ):
        total = orders[name] + hydrogens
        if element == "C":
            assert total == 4, name
        elif element == "N":
            assert total in (3, 4), name
        elif element == "O":
            assert total in (1.5, 2), name


@pytest.mark.parametrize("template", every_lipid())
def test_hands(template: Template):
    """CIP labels of what nature makes: sn-glycerol-3-phosphate, D-erythro-sphingosine, L-serine."""
    labels = cip(template)
    glycerol = {"C2": "R"} if "O21" in template.names else {}
    if template.residue.startswith(("TLCL", "TOCL", "TMCL", "PVCL")):
        glycerol = {"C12": "R", "C32": "R"}
    sphingosine = {"C2S": "S", "C3S": "R"} if "NF" in template.names else {}
    serine = {"C12": "S"} if "O13A" in template.names else {}
    sterol = {"C3": "S", "C8": "S", "C9": "S", "C10": "R", "C13": "R", "C14": "S", "C17": "R",
              "C20": "R"}  # fmt: skip
    sterol = sterol if template.residue == "CHL1" else {}
    expected = {**glycerol, **sphingosine, **serine, **sterol}
    assert expected
    assert {atom: labels.get(atom) for atom in expected} == expected


def cip(template: Template) -> dict[str, str]:
    """CIP labels of the centres of a template, from its ``chiral`` alone."""
    chem = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import rdCIPLabeler

    molecule = chem.RWMol()
    names = template.names.tolist()
    for name, element, hydrogens in zip(
        names, template.elements, template.n_hydrogens, strict=True
    ):
        atom = chem.Atom(str(element).capitalize())
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(int(hydrogens))
        if (
            element == "N"
            and len([r for r in template.spec.bonds if name in r[:2]]) + hydrogens == 4
        ):
            atom.SetFormalCharge(1)
        molecule.AddAtom(atom)
    charged = set()
    for first, second, order, _ in template.spec.bonds:
        if order == 1.5:
            # One of the equivalent oxygens takes the double bond, the others the charge.
            centre, oxygen = (second, first) if first[0] == "O" else (first, second)
            order = 1 if centre in charged else 2
            if centre in charged:
                molecule.GetAtomWithIdx(names.index(oxygen)).SetFormalCharge(-1)
            charged.add(centre)
        kind = chem.BondType.DOUBLE if order == 2 else chem.BondType.SINGLE
        molecule.AddBond(names.index(first), names.index(second), kind)
    for centre, around in template.spec.chiral.items():
        atom = molecule.GetAtomWithIdx(names.index(centre))
        # Seen from the neighbour that is not listed, the three run with the clock; RDKit looks
        # from the first neighbour and takes a hydrogen for the last.
        listed = [names.index(a) for a in around]
        rest = [b.GetOtherAtomIdx(atom.GetIdx()) for b in atom.GetBonds()]
        fourth = [b for b in rest if b not in listed] or [-1]
        wanted = [*fourth, *listed]
        present = [*rest, -1][:4]
        even = parity([present.index(k) for k in wanted])
        clockwise, counter = chem.ChiralType.CHI_TETRAHEDRAL_CW, chem.ChiralType.CHI_TETRAHEDRAL_CCW
        atom.SetChiralTag(clockwise if even else counter)
    molecule.UpdatePropertyCache(strict=False)
    chem.FastFindRings(molecule)
    rdCIPLabeler.AssignCIPLabels(molecule)
    return {
        names[atom.GetIdx()]: atom.GetProp("_CIPCode")
        for atom in molecule.GetAtoms()
        if atom.HasProp("_CIPCode")
    }


def parity(order: list[int]) -> bool:
    swaps = sum(order[i] > order[j] for i in range(len(order)) for j in range(i + 1, len(order)))
    return swaps % 2 == 0


@pytest.mark.parametrize("template", [p for p in every_lipid() if "PI" in p.values[0].residue])
def test_inositol_is_d_myo(template: Template):
    """1,2,3,5/4,6: with numbers running against the clock, oxygens 1, 2, 3 and 5 point up."""
    ring = ["C11", "C12", "C13", "C14", "C15", "C16"]
    oxygens = ["O12", "O2", "O3", "O4", "O5", "O6"]
    up = []
    for k, (carbon, oxygen) in enumerate(zip(ring, oxygens, strict=True)):
        first, *others = template.spec.chiral[carbon]
        assert first == oxygen
        up.append(others == [ring[(k + 1) % 6], ring[k - 1]])
    assert up == [True, True, True, False, True, False]


def test_beads_of_the_ring_run_the_same_way():
    """C2 has carbons 5 and 6 in Martini 3 and 3 and 4 in Martini 2; P3, P4, P5 are as named."""
    for family, bead in (("martini3", "C3"), ("martini2", "C2")):
        template = next(t for t in lipids(family) if t.residue == "POPI")
        assert keys(template)[bead] == "C13,C14,O3,O4"
    for template in lipids("martini3"):
        for number in "345":
            if f"P{number}" in template.bead_names:
                atom = template.names.tolist().index(f"P{number}")
                assert template.bead_names[template.atom_bead[atom]] == f"P{number}"
                bonded = {a for row in template.spec.bonds for a in row[:2]
                          if f"P{number}" in row[:2]}  # fmt: skip
                assert f"O{number}" in bonded


# What lipids have in common


@pytest.mark.parametrize(
    ("one", "other", "beads"),
    [
        ("POPC", "SOPE", "PO4 GL1 GL2 C1A D2A C3A C4A"), ("DSPC", "SLPS", "C1B C2B C3B C4B"),
        ("PLPC", "DUPC", "C1A D2A D3A C4A"), ("SAPC", "SAPI24", "C1A D2A D3A D4A C5A"),
        ("SDPC", "PDPE", "D1A D2A D3A D4A D5A"), ("POPI", "SAPI24", "C1 C2 C3 PO4"),
        ("PSM", "NSM", "NC3 PO4 OH1 AM2 T1A C2A C3A C4A C1B C2B"),
        ("NSM", "CER241", "AM2 T1A C2A C3A C4A C1B C2B C3B D4B C5B C6B"),
        ("TLCL2", "TOCL2", "GLC PO41 GL11 GL21 C1A1 D2A1 C4A1"),
    ],
)  # fmt: skip
def test_equal_parts_have_equal_keys(one, other, beads):
    first, second = (next(t for t in lipids("martini3") if t.residue == n) for n in (one, other))
    for bead in beads.split():
        assert keys(first)[bead] == keys(second)[bead]


def test_martini_2_sits_at_the_centre_of_mass():
    ours = {t.residue: t for t in lipids("martini2")}
    theirs = {t.residue: t for t in lipids("martini3")}
    assert {t.spec.centre for t in ours.values()} == {"mass"}
    assert {t.spec.centre for t in theirs.values()} == {"geometry"}
    assert ours["POPC"].bead_keys == theirs["POPC"].bead_keys
    assert ours["POPC"].placement != theirs["POPC"].placement
    assert set(ours["CHL1"].names) == set(theirs["CHL1"].names)
