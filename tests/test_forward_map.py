"""``mdbackmap map``: beads of atomistic files, against sums done by hand."""

from __future__ import annotations

import MDAnalysis as mda
import numpy as np
import pytest
from mdbackmap.io.files import quiet_guesses
from mdbackmap.mapping.library import Library

from helpers_io import DATA, GRO, TPR, XTC, fails, load, ok, run, save

PEPTIDE, LIPID = DATA / "ubiquitin_12.pdb", DATA / "popc.pdb"
MASS = {"H": 1.008, "C": 12.011, "N": 14.007, "O": 15.999, "S": 32.06, "P": 30.974}

BEADS_OF_PEPTIDE = {
    "MET": {"BB": "N CA C O", "SC1": "CB CG SD CE"},
    "GLN": {"BB": "N CA C O", "SC1": "CB CG CD OE1 NE2"},
    "ILE": {"BB": "N CA C O", "SC1": "CB CG1 CG2 CD1"},
    "VAL": {"BB": "N CA C O", "SC1": "CB CG1 CG2"},
    "LYS": {"BB": "N CA C O", "SC1": "CB CG CD", "SC2": "CE NZ"},
    "THR": {"BB": "N CA C O", "SC1": "CB OG1 CG2"},
    "LEU": {"BB": "N CA C O", "SC1": "CB CG CD1 CD2"},
    "GLY": {"BB": "N CA C O"},
}
"""The Martini 3 mapping of martinize2, in words; atoms that are shared are done apart."""
PHE = {
    "BB": {"N": 1, "CA": 1, "C": 1, "O": 1},
    "SC1": {"CB": 1, "CG": 1, "CD1": 1 / 3, "CD2": 1 / 3},
    "SC2": {"CD1": 2 / 3, "CE1": 1, "CZ": 1 / 2},
    "SC3": {"CD2": 2 / 3, "CE2": 1, "CZ": 1 / 2},
}


def centre(positions, weights):
    weights = np.asarray(weights, dtype=float)
    return (weights[:, None] * positions).sum(axis=0) / weights.sum()


def by_hand(residue):
    """Beads of one protein residue: centres of mass of the heavy atoms."""
    place = dict(zip(residue.atoms.names, residue.atoms.positions, strict=True))
    table = PHE if residue.resname == "PHE" else {
        bead: dict.fromkeys(atoms.split(), 1)
        for bead, atoms in BEADS_OF_PEPTIDE[residue.resname].items()
    }  # fmt: skip
    return {
        bead: centre([place[a] for a in atoms], [MASS[a[0]] * w for a, w in atoms.items()])
        for bead, atoms in table.items()
    }


def mapped(source, out, *words):
    """Map a file; return the beads as a Universe and what was said."""
    said = ok("map", source, "-o", out / "cg.xtc", *words)
    return load(out / "cg.pdb", out / "cg.xtc"), said


def exact(source, out, *words):
    """The same in a format without rounding."""
    ok("map", source, "-o", out / "cg.trr", *words)
    return load(out / "cg.pdb", out / "cg.trr")


def hydrogens(residue, library):
    """(name, heavy atom) of every hydrogen that the mapping lists for a residue."""
    spec = library.candidates(residue.resname)[0].spec
    return [(h, name) for name, atom in spec.atoms.items() for h in atom.hydrogens]


def with_hydrogens(source, out, *, leave_out=()):
    """Write a structure with hydrogens at made-up places; return the file."""
    universe, library = load(source), Library.load("martini3")
    chance = np.random.default_rng(4)
    rows = []
    for residue in universe.residues:
        place = dict(zip(residue.atoms.names, residue.atoms.positions, strict=True))
        atoms = list(place.items())
        atoms += [
            (h, place[a] + chance.normal(0, 0.6, 3))
            for h, a in hydrogens(residue, library)
            if a in place and h not in leave_out
        ]
        order = chance.permutation(len(atoms))
        rows += [(residue, *atoms[k]) for k in order]
    lines = [
        f"ATOM  {k % 100000:5d} {name:4s} {residue.resname:4s}A{residue.resid:4d}    "
        f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00\n"
        for k, (residue, name, (x, y, z)) in enumerate(rows, start=1)
    ]
    (out / "h.pdb").write_text("".join(lines) + "END\n")
    return out / "h.pdb"


# The rule


def test_protein_of_heavy_atoms(tmp_path):
    cg = exact(PEPTIDE, tmp_path)
    atoms = load(PEPTIDE)
    assert cg.residues.resnames.tolist() == atoms.residues.resnames.tolist()
    assert cg.residues.resids.tolist() == atoms.residues.resids.tolist()
    assert set(cg.atoms.chainIDs) == {"A"}
    for found, residue in zip(cg.residues, atoms.residues, strict=True):
        expected = by_hand(residue)
        assert found.atoms.names.tolist() == list(expected)
        np.testing.assert_allclose(found.atoms.positions, list(expected.values()), atol=1e-3)


def test_hydrogens_of_a_protein_do_not_count(tmp_path):
    heavy = exact(PEPTIDE, tmp_path).atoms.positions.copy()
    found = exact(with_hydrogens(PEPTIDE, tmp_path), tmp_path).atoms.positions
    np.testing.assert_allclose(found, heavy, atol=1e-3)


@pytest.mark.parametrize("leave_out", [(), ("H11A", "H18T")], ids=["all", "some missing"])
def test_hydrogens_of_a_lipid_count(tmp_path, leave_out):
    """At the centre of geometry; one that is missing counts at its heavy atom."""
    path = with_hydrogens(LIPID, tmp_path, leave_out=leave_out)
    cg = exact(path, tmp_path)
    (residue,) = load(path).residues
    place = dict(zip(residue.atoms.names, residue.atoms.positions, strict=True))
    spec = Library.load("martini3").candidates("POPC")[0].spec
    for bead in cg.atoms:
        own = {a: spec.atoms[a].hydrogens for a in spec.atoms if spec.atoms[a].bead == bead.name}
        points = [place[a] for a in own]
        points += [place.get(h, place[a]) for a, hydrogens in own.items() for h in hydrogens]
        np.testing.assert_allclose(bead.position, np.mean(points, axis=0), atol=1e-3)


def test_lipid_without_hydrogens(tmp_path):
    """The tail's last bead by hand: C215 to C217 carry two hydrogens each, C218 three."""
    cg, atoms = exact(LIPID, tmp_path), load(LIPID)
    place = dict(zip(atoms.atoms.names, atoms.atoms.positions, strict=True))
    expected = centre([place[f"C{k}"] for k in (215, 216, 217, 218)], [3, 3, 3, 4])
    np.testing.assert_allclose(cg.select_atoms("name C4A").positions[0], expected, atol=1e-3)


@pytest.mark.parametrize("source", [PEPTIDE, LIPID], ids=["protein", "lipid"])
def test_molecules_cut_by_the_box(tmp_path, source):
    """Wherever the box cuts, beads are the same but for whole box vectors."""
    structure = with_hydrogens(source, tmp_path)
    u = load(structure)
    box = np.array([[62.0, 0, 0], [18.0, 58.0, 0], [-11.0, 16.0, 60.0]])
    with quiet_guesses(), mda.Writer(str(tmp_path / "cut.trr"), len(u.atoms)) as writer:
        for shift in np.random.default_rng(3).uniform(-90, 90, (8, 3)):
            ts = u.trajectory[0]
            ts.triclinic_dimensions = box
            u.atoms.translate(shift)
            u.atoms.wrap()
            writer.write(u.atoms)
    whole = exact(structure, tmp_path).atoms.positions.copy()
    cg = exact(tmp_path / "cut.trr", tmp_path, "-s", structure)
    assert cg.trajectory.n_frames == 8
    for ts in cg.trajectory:
        inner = ts.positions - ts.positions[0]
        np.testing.assert_allclose(inner, whole - whole[0], atol=2e-3)
        np.testing.assert_allclose(ts.triclinic_dimensions, box, atol=1e-3)


def test_other_mappings(tmp_path):
    cg = exact(PEPTIDE, tmp_path, "--mapping", "ca")
    atoms = load(PEPTIDE).select_atoms("name CA")
    assert set(cg.atoms.names) == {"CA"}
    np.testing.assert_allclose(cg.atoms.positions, atoms.positions, atol=1e-3)
    cg = exact(PEPTIDE, tmp_path, "--mapping", "bb-on-ca")
    beads = cg.select_atoms("name BB")
    np.testing.assert_allclose(beads.positions, atoms.positions, atol=1e-3)


# Files


def test_times_and_boxes_are_kept(tmp_path):
    u = load(PEPTIDE)
    with mda.Writer(str(tmp_path / "md.xtc"), len(u.atoms)) as writer:
        for k in range(5):
            u.trajectory.ts.dimensions = [50 + k, 60, 70, 90, 90, 120]
            u.trajectory.ts.data["time"] = 500.0 + 25 * k
            writer.write(u.atoms)
    (tmp_path / "md.pdb").write_bytes(PEPTIDE.read_bytes())
    cg, said = mapped(tmp_path / "md.xtc", tmp_path, "--start", 1, "--step", 2)
    assert f"atoms named by {tmp_path / 'md.pdb'}" in said
    assert "2 frames of 27 beads" in said
    assert [ts.time for ts in cg.trajectory] == [525, 575]
    boxes = [ts.dimensions.tolist() for ts in cg.trajectory]
    np.testing.assert_allclose(boxes, [[51, 60, 70, 90, 90, 120], [53, 60, 70, 90, 90, 120]],
                               atol=0.01)  # fmt: skip


@pytest.mark.parametrize("suffix", ["gro", "pdb"])
def test_structures_out(tmp_path, suffix):
    ok("map", PEPTIDE, "-o", tmp_path / f"cg.{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == [f"cg.{suffix}"]
    found = load(tmp_path / f"cg.{suffix}")
    assert found.atoms.names[:4].tolist() == ["BB", "SC1", "BB", "SC1"]
    assert len(found.residues) == 12


def test_incomplete_and_unknown_residues_are_counted(tmp_path):
    lines = PEPTIDE.read_text().splitlines()
    kept = [line for line in lines if line[12:16].strip() not in ("SD", "CD2")]
    for k, (name, resname) in enumerate((("O", "HOH"), ("ZZ", "XXX")), start=901):
        kept.insert(-1, f"HETATM{k:5d}  {name:2s}  {resname} A{k:4d}      30.000  30.000  30.000")
    (tmp_path / "gaps.pdb").write_text("\n".join(kept) + "\n")
    cg, said = mapped(tmp_path / "gaps.pdb", tmp_path)
    assert set(cg.residues.resnames) == {"GLN", "ILE", "VAL", "LYS", "THR", "GLY"}
    for row in ("1 x MET (incomplete)", "1 x PHE (incomplete)", "1 x LEU (incomplete)",
                "1 x XXX (unknown)"):  # fmt: skip
        assert f"  left out: {row}" in said.splitlines()
    assert "HOH" in said


def test_alternate_locations(tmp_path):
    """Of a side chain given twice, the first is mapped."""
    rows = []
    for line in PEPTIDE.read_text().splitlines():
        if line[12:16].strip() in ("OG1", "CG2") and line[22:26].strip() == "7":
            rows.append(line[:16] + "A" + line[17:])
            rows.append(line[:16] + "B" + line[17:30] + "   1.000   2.000   3.000" + line[54:])
        else:
            rows.append(line)
    (tmp_path / "alt.pdb").write_text("\n".join(rows) + "\n")
    expected = exact(PEPTIDE, tmp_path).atoms.positions.copy()
    found = exact(tmp_path / "alt.pdb", tmp_path)
    np.testing.assert_allclose(found.atoms.positions, expected, atol=1e-3)
    other = exact(tmp_path / "alt.pdb", tmp_path, "--select", "not altLoc A")
    assert len(other.residues) == 12
    assert np.abs(other.atoms.positions - expected).max() > 1


def test_selection(tmp_path):
    cg, said = mapped(PEPTIDE, tmp_path, "--select", "resid 3:5")
    assert cg.residues.resids.tolist() == [3, 4, 5]
    assert "left out" not in said


def test_frames_without_numbers_are_left_out(tmp_path):
    u = load(PEPTIDE)
    points = u.atoms.positions.copy()
    with quiet_guesses(), mda.Writer(str(tmp_path / "md.trr"), len(u.atoms)) as writer:
        for k in range(3):
            u.atoms.positions = points
            if k == 0:
                u.atoms[5].position = [np.nan] * 3
            writer.write(u.atoms)
    result = run("map", tmp_path / "md.trr", "-s", PEPTIDE, "-o", tmp_path / "cg.trr")
    assert result.code == 1
    assert "left out: frame 0: atoms without a usable position" in result.err
    found = load(tmp_path / "cg.pdb", tmp_path / "cg.trr")
    assert found.trajectory.n_frames == 2
    np.testing.assert_allclose(
        found.atoms.positions, exact(PEPTIDE, tmp_path).atoms.positions, atol=1e-3
    )


def test_the_input_is_not_written_over(tmp_path):
    (tmp_path / "aa.pdb").write_bytes(PEPTIDE.read_bytes())
    assert "is an input file" in fails("map", tmp_path / "aa.pdb", "-o", tmp_path / "aa.pdb")
    assert "is an input file" in fails("map", tmp_path / "aa.pdb", "-o", tmp_path / "aa.xtc")
    assert (tmp_path / "aa.pdb").read_bytes() == PEPTIDE.read_bytes()


def test_there_and_back(tiny_model, tmp_path):
    """Atoms that convert made are mapped onto as many beads, by the same names."""
    model = save(tiny_model, tmp_path)
    ok("convert", XTC, "-s", TPR, "-o", tmp_path / "aa.xtc", "--model", model, "--stop", 2)
    cg, said = mapped(tmp_path / "aa.xtc", tmp_path)
    assert "2 frames of 166 beads" in said
    beads = load(TPR, XTC).atoms[:166]
    assert cg.residues.resids.tolist() == beads.residues.resids.tolist()
    for ours, theirs in zip(cg.residues, beads.residues, strict=True):
        assert set(ours.atoms.names) == set(theirs.atoms.names)


def test_beads_of_a_membrane_can_be_converted_again(tiny_model, tmp_path):
    model = save(tiny_model, tmp_path)
    ok("convert", GRO, "-o", tmp_path / "aa.pdb", "--model", model)
    ok("map", tmp_path / "aa.pdb", "-o", tmp_path / "cg.gro")
    assert load(tmp_path / "cg.gro").atoms.names.tolist() == load(GRO).atoms.names.tolist()
    said = ok("convert", tmp_path / "cg.gro", "-o", tmp_path / "again.pdb", "--model", model)
    assert "214 lipids from 2442 beads" in said
