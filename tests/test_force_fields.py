"""Names, Systems and topologies of force fields."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from pathlib import Path

import numpy as np
import openmm as mm
import openmm.app as app
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mdbackmap.errors import ForceFieldError, InputFileError
from mdbackmap.hydrogens.atoms import AllAtoms
from mdbackmap.hydrogens.protonation import decide
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import System, from_beads, one_molecule
from mdbackmap.relax import force_fields
from mdbackmap.relax.force_fields import Assignment, assign, openmm_topology
from mdbackmap.relax.kinds import find_kinds
from mdbackmap.relax.matching import match
from mdbackmap.relax.templates import Templates, residues_of
from mdbackmap.relax.tiling import tiled
from mdbackmap.relax.topology import gromacs_topology, system_xml
from mdbackmap.relax.transfer import Transfer
from mdbackmap.structure import AtomTable, Frame

# OpenMM's reader of .top files leaves them open.
LEAKS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
CHAIN = np.array([[0, 1], [1, 2], [2, 3], [1, 4], [1, 5]])


def all_atoms(system: System) -> AtomTable:
    return AllAtoms.of(system, decide(system)).table


def lone(library: Library, *names: str) -> AtomTable:
    """Molecules one behind the other."""
    tables = [all_atoms(one_molecule(next(t for t in library.templates if t.residue == name)))
              for name in names]  # fmt: skip
    start = np.cumsum([0, *(len(t) for t in tables)])
    columns = {
        key: np.concatenate([getattr(t, key) for t in tables])
        for key in ("names", "elements", "resnames", "resids", "segids")
    }
    bonds = np.concatenate([t.bonds + s for t, s in zip(tables, start, strict=False)])
    return AtomTable(**columns, residue=np.repeat(np.arange(len(tables)), np.diff(start)),
                     bonds=bonds)  # fmt: skip


def energy(system: mm.System, positions: np.ndarray) -> float:
    context = mm.Context(system, mm.VerletIntegrator(0.001),
                         mm.Platform.getPlatformByName("Reference"))  # fmt: skip
    context.setPositions(positions / 10)
    return context.getState(getEnergy=True).getPotentialEnergy()._value


@pytest.fixture(scope="module")
def many(crowd: tuple[System, np.ndarray], library: Library) -> AtomTable:
    """Two peptides and two lipids, whole as they are made from beads."""
    system, positions = crowd
    beads = Frame(system.map_positions(positions))
    return all_atoms(from_beads(system.beads, library, beads))


@pytest.fixture(scope="module", params=["charmm36", "amber14"])
def assigned(request: pytest.FixtureRequest, many: AtomTable) -> Assignment:
    return assign(many, request.param)


@pytest.fixture(scope="module")
def scattered(many: AtomTable) -> np.ndarray:
    """Positions without sense, but none on top of another."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(12)] * 3), axis=-1).reshape(-1, 3)[: len(many)]
    return 3.0 * grid + rng.uniform(-0.5, 0.5, (len(many), 3))


def test_kinds(many: AtomTable) -> None:
    kinds = find_kinds(many)
    assert [len(kind.atoms) for kind in kinds] == [2, 2]
    assert sorted(np.concatenate([k.atoms.ravel() for k in kinds])) == list(range(len(many)))
    for kind in kinds:
        first, second = many.names[kind.atoms]
        assert first.tolist() == second.tolist()
        lines = {tuple(sorted(b)) for b in many.bonds.tolist()}
        assert {tuple(sorted(b)) for b in kind.atoms[1][kind.bonds].tolist()} <= lines


def test_kinds_differ_by_a_name(many: AtomTable) -> None:
    names = many.names.astype("U5").copy()
    names[0] = "N9"
    assert len(find_kinds(dataclasses.replace(many, names=names))) == 3


@given(st.permutations(range(6)))
def test_match_undoes_any_order(order: list[int]) -> None:
    names, elements = list("abcdef"), ["N", "C", "C", "O", "H", "H"]
    back = np.argsort(order)
    found = match(names, elements, CHAIN, [names[i] for i in order], [elements[i] for i in order],
                  back[CHAIN])  # fmt: skip
    assert [order[j] for j in found] == list(range(6))


def test_match_tells_graphs_apart() -> None:
    names, elements = list("abcdef"), ["N", "C", "C", "O", "H", "H"]
    other = CHAIN.copy()
    other[4] = [2, 5]
    assert match(names, elements, CHAIN, names, elements, other) is None


NAMES = {
    "charmm36": {"HT1", "HN", "HG11", "CD", "HB1"},
    "amber14": {"H1", "H2", "H3", "HB2", "HB3", "CD1"},
}


def test_names_of_a_peptide(assigned: Assignment, many: AtomTable) -> None:
    found = assigned
    assert not found.missing
    assert NAMES[found.name] <= set(found.atoms.names.tolist())
    assert found.atoms.elements.tolist() == many.elements.tolist()
    # No name twice in a residue, and heavy atoms of lipids keep theirs.
    for r in range(int(many.residue.max()) + 1):
        assert Counter(found.atoms.names[many.residue == r].tolist()).most_common(1)[0][1] == 1
    lipid = many.resnames == "POPC"
    assert (found.atoms.names == many.names)[lipid].all()
    if found.name == "charmm36":
        isoleucine = (many.resnames == "ILE") & (many.names == "CG2")
        assert (found.atoms.names[isoleucine] == "CG2").all()


def test_copies_get_what_one_gets(assigned: Assignment, scattered: np.ndarray) -> None:
    found = assigned
    ours = found.system(removeCMMotion=False)
    theirs = found.force_field.createSystem(
        openmm_topology(found.atoms), removeCMMotion=False, record={}
    )
    assert energy(ours, scattered) == pytest.approx(energy(theirs, scattered), rel=1e-9)
    assert ours.getNumConstraints() == theirs.getNumConstraints()


@LEAKS
def test_gromacs_topology_has_the_same_energy(
    assigned: Assignment, scattered: np.ndarray, tmp_path: Path
) -> None:
    found = assigned
    path = tmp_path / "many.top"
    path.write_text(gromacs_topology(found))
    read = app.GromacsTopFile(str(path))
    elements = np.char.capitalize(found.atoms.elements).tolist()
    assert [a.element.symbol for a in read.topology.atoms()] == elements
    theirs = read.createSystem(nonbondedMethod=app.NoCutoff, removeCMMotion=False)
    ours = found.system(removeCMMotion=False, rigidWater=False)
    assert energy(theirs, scattered) == pytest.approx(energy(ours, scattered), rel=1e-6)


def test_system_xml_is_ready_to_simulate(many: AtomTable) -> None:
    found = assign(many, "amber14")
    box = 60.0 * np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0.7071]])
    system = mm.XmlSerializer.deserialize(system_xml(found, box))
    assert system.getNumParticles() == len(many)
    assert system.usesPeriodicBoundaryConditions()
    assert system.getNumConstraints() == (many.elements == "H").sum()
    alone = mm.XmlSerializer.deserialize(system_xml(found, None))
    assert not alone.usesPeriodicBoundaryConditions()


STATES = {"HIE": "HSE", "HID": "HSD", "HIP": "HSP"}


@pytest.mark.parametrize("state", STATES)
def test_histidine_is_called_by_its_state(state: str, ubiquitin_system: System) -> None:
    states = decide(ubiquitin_system, 7.4, {"HIS": state})
    table = AllAtoms.of(ubiquitin_system, states).table
    assert state in assign(table, "amber14").atoms.resnames


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_histidine_of_charmm(state: str, ubiquitin_system: System) -> None:
    states = decide(ubiquitin_system, 7.4, {"HIS": state})
    table = AllAtoms.of(ubiquitin_system, states).table
    assert STATES[state] in assign(table, "charmm36").atoms.resnames


@pytest.mark.parametrize("name", ["amber14", pytest.param("charmm36", marks=pytest.mark.slow)])
def test_disulfides(name: str, insulin_system: System) -> None:
    found = assign(all_atoms(insulin_system), name)
    assert not found.others
    cysteine = found.atoms.resnames == {"charmm36": "CYS", "amber14": "CYX"}[name]
    assert cysteine.any()
    assert not (found.atoms.names[cysteine] == {"charmm36": "HG1", "amber14": "HG"}[name]).any()


@LEAKS
def test_water_and_ions(library: Library, tmp_path: Path) -> None:
    names = ["N1", "OW", "HW1", "HW2", "NA", "CL"]
    lipid = lone(library, "POPC")
    n = len(lipid)
    table = AtomTable(
        names=np.append(lipid.names, names[1:]),
        elements=np.append(lipid.elements, ["O", "H", "H", "NA", "CL"]),
        resnames=np.append(lipid.resnames, ["SOL"] * 3 + ["NA", "CL"]),
        resids=np.append(lipid.resids, [2, 2, 2, 3, 4]), segids=np.append(lipid.segids, [""] * 5),
        residue=np.append(lipid.residue, [1, 1, 1, 2, 3]),
        bonds=np.concatenate([lipid.bonds, [[n, n + 1], [n, n + 2]]]),
    )  # fmt: skip
    found = assign(table, "charmm36")
    assert found.atoms.resnames[n:].tolist() == ["TIP3"] * 3 + ["SOD", "CLA"]
    system = found.system(constraints=app.HBonds, rigidWater=True)
    assert system.getNumConstraints() == (table.elements == "H").sum() + 1
    path = tmp_path / "all.top"
    path.write_text(gromacs_topology(found))
    read = app.GromacsTopFile(str(path)).createSystem(nonbondedMethod=app.NoCutoff)
    assert read.getNumParticles() == len(table)
    assert read.getNumConstraints() == 3


def test_cholesterol_is_not_taken_for_another(library: Library) -> None:
    table = lone(library, "CHL1", "POPC")
    found = assign(table, "charmm36")
    assert not found.others
    plain = app.ForceField(*found.files)
    with pytest.raises(Exception, match="Multiple non-identical"):
        plain.createSystem(openmm_topology(found.atoms))
    plain.loadFile(io.StringIO(found.residues))
    assert plain.createSystem(openmm_topology(found.atoms)).getNumParticles() == len(table)


def test_lipids_put_together_are_those_of_the_force_field(library: Library) -> None:
    force_field = app.ForceField(*force_fields.FILES["charmm36"][0])
    official = force_field._templates.pop("POPE")
    transfer = Transfer(Templates(force_field))
    table = lone(library, "POPE")
    (residue,) = residues_of(table, find_kinds(table)[0])
    force_field.loadFile(io.StringIO(force_fields.file_of([transfer.residue(residue)])))
    made = force_field._templates["POPE"]
    want = {a.name: (a.type, a.parameters["charge"]) for a in official.atoms}
    have = {a.name: (a.type, a.parameters["charge"]) for a in made.atoms}
    assert {k: v[0] for k, v in have.items()} == {k: v[0] for k, v in want.items()}
    assert all(abs(have[k][1] - want[k][1]) < 1e-6 for k in want)


@pytest.mark.slow
def test_every_shipped_lipid_is_covered_by_charmm36(library: Library) -> None:
    lipids = [t.residue for t in library.templates if t.kind == "lipid" and t.has_atoms]
    bad = []
    for name in lipids:
        found = assign(lone(library, name), "charmm36")
        plain = app.ForceField(*found.files)
        if found.residues:
            plain.loadFile(io.StringIO(found.residues))
        if found.others or plain.createSystem(
            openmm_topology(found.atoms)
        ).getNumParticles() != len(found.atoms):
            bad.append(name)
    assert len(lipids) > 80
    assert not bad


def test_residues_without_a_template_are_named(library: Library) -> None:
    table = lone(library, "POPC", "CAFF", "CAFF")
    found = assign(table, "charmm36")
    assert found.missing == {"CAFF": 2}
    assert [len(k.atoms) for k in found.kinds] == [1]
    with pytest.raises(ForceFieldError, match=r"CAFF, 2 times\n.*--force-field-file"):
        found.system()


LIGAND = """<ForceField>
 <AtomTypes><Type name="lx" class="lx" element="C" mass="12.011"/>
  <Type name="lh" class="lh" element="H" mass="1.008"/></AtomTypes>
 <Residues><Residue name="LIG">
  <Atom name="C1" type="lx" charge="-0.3"/><Atom name="C2" type="lx" charge="-0.3"/>
  {hydrogens}<Bond atomName1="C1" atomName2="C2"/>{bonds}</Residue></Residues>
 <HarmonicBondForce><Bond class1="lx" class2="lx" length="0.153" k="200000"/>
  <Bond class1="lx" class2="lh" length="0.109" k="{k}"/></HarmonicBondForce>
 <NonbondedForce coulomb14scale="0.833333" lj14scale="0.5">
  <UseAttributeFromResidue name="charge"/>
  <Atom type="lx" sigma="0.34" epsilon="0.4"/><Atom type="lh" sigma="0.25" epsilon="0.1"/>
 </NonbondedForce></ForceField>"""


def ethane() -> AtomTable:
    names = np.array(["C1", "C2", *(f"H{k}" for k in range(6))])
    bonds = np.array([[0, 1], *([k // 3, k + 2] for k in range(6))])
    n = len(names)
    return AtomTable(names, np.array(["C", "C", *["H"] * 6]), np.full(n, "LIG"),
                     np.ones(n, int), np.full(n, "A"), np.zeros(n, int), bonds)  # fmt: skip


def ligand_file(path: Path, *, bonds_to_hydrogen: bool = True) -> Path:
    hydrogens = "".join(f'<Atom name="X{k}" type="lh" charge="0.1"/>' for k in range(6))
    bonds = "".join(f'<Bond atomName1="C{k // 3 + 1}" atomName2="X{k}"/>' for k in range(6))
    text = LIGAND.format(hydrogens=hydrogens, bonds=bonds, k=300000)
    if not bonds_to_hydrogen:
        text = text.replace('<Bond class1="lx" class2="lh" length="0.109" k="300000"/>', "")
    path.write_text(text)
    return path


def test_a_force_field_of_the_user(tmp_path: Path) -> None:
    found = assign(ethane(), "amber14", [ligand_file(tmp_path / "ligand.xml")])
    assert not found.missing
    assert found.atoms.names.tolist() == ["C1", "C2", *(f"X{k}" for k in range(6))]
    assert found.system().getNumParticles() == 8
    assert found.charge == pytest.approx(0)


def test_templates_called_by_their_smiles_name_no_residues(tmp_path: Path) -> None:
    file = ligand_file(tmp_path / "ligand.xml")
    file.write_text(file.read_text().replace('"LIG"', '"[H]C([H])([H])C([H])([H])[H]"'))
    found = assign(ethane(), "amber14", [file])
    assert set(found.atoms.resnames) == {"LIG"}
    assert "X5" in found.atoms.names


def test_bonds_without_parameters_are_refused(tmp_path: Path) -> None:
    file = ligand_file(tmp_path / "ligand.xml", bonds_to_hydrogen=False)
    with pytest.raises(ForceFieldError, match=r"no parameters for 6 bonds\n  LIG C1-"):
        assign(ethane(), "amber14", [file])


def test_errors(many: AtomTable, tmp_path: Path) -> None:
    with pytest.raises(ForceFieldError, match="'gromos': expected charmm36, amber14 or none"):
        assign(many, "gromos")
    heavy = many.elements != "H"
    number = np.cumsum(heavy) - 1
    bonds = number[many.bonds[heavy[many.bonds].all(axis=1)]]
    names = ("names", "elements", "resnames", "resids", "segids", "residue")
    columns = {key: getattr(many, key)[heavy] for key in names}
    with pytest.raises(ForceFieldError, match="have no hydrogens"):
        assign(AtomTable(**columns, bonds=bonds), "amber14")
    broken = tmp_path / "broken.xml"
    broken.write_text("<ForceField><Residues>")
    with pytest.raises(InputFileError, match=r"broken\.xml: no force field"):
        assign(many, "amber14", [broken])


def test_what_is_wrong_with_a_chain_is_said(peptide: tuple[System, np.ndarray]) -> None:
    """The structure ends without its second oxygen."""
    found = assign(all_atoms(peptide[0]), "amber14")
    ((label, count),) = found.missing.items()
    assert label.startswith("THR 12 of a chain (")
    assert count == 1


def test_forces_that_cannot_be_repeated_are_named() -> None:
    system = mm.System()
    system.addParticle(12.0)
    system.addForce(mm.GayBerneForce())
    with pytest.raises(ForceFieldError, match=r"GayBerneForce.*\n.*--force-field-file"):
        tiled(system, [np.zeros((1, 1), int)], 1)
