"""Names of the PDB's Chemical Component Dictionary."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from pathlib import Path

import MDAnalysis as mda
import numpy as np
import pytest
from mdbackmap.errors import ConfigError
from mdbackmap.hydrogens.atoms import AllAtoms
from mdbackmap.hydrogens.protonation import decide
from mdbackmap.mapping.chemistry import element_of
from mdbackmap.mapping.library import Library, shipped
from mdbackmap.mapping.pdb_names import component_of, components, renamed
from mdbackmap.mapping.system import System, one_molecule
from mdbackmap.mapping.template import Template, compile_template
from mdbackmap.pipeline import Options
from mdbackmap.structure import AtomTable

from helpers_io import GRO, MEMBRANE, fails, ok


def all_atoms(system: System) -> AtomTable:
    return AllAtoms.of(system, decide(system)).table


@pytest.fixture(scope="module")
def known() -> list[Template]:
    return [t for t in Library.load(shipped()).templates if component_of(t)]


def template(library: Library, residue: str) -> Template:
    return next(t for t in library.templates if t.residue == residue)


def test_every_entry_is_that_of_a_mapping(known: list[Template]) -> None:
    assert {t.residue for t in known} == set(components())


def test_every_atom_has_one_name_of_its_element(known: list[Template]) -> None:
    for t in known:
        found, hydrogens = component_of(t), [h for a in t.spec.atoms.values() for h in a.hydrogens]
        assert set(found.hydrogens) == set(hydrogens), t.residue
        new = [*found.atoms.values(), *found.hydrogens.values()]
        assert Counter(new).most_common(1)[0][1] == 1, t.residue
        assert all(1 <= len(name) <= 4 for name in new), t.residue
        elements = [element_of(found.atoms[name]) for name in t.names.tolist()]
        assert elements == t.elements.tolist(), t.residue
        assert {name[0] for name in found.hydrogens.values()} <= {"H"}, t.residue


def test_names_change_and_nothing_else(
    membrane_system: System, caplog: pytest.LogCaptureFixture
) -> None:
    before = all_atoms(membrane_system)
    after = renamed(before, membrane_system)
    assert not caplog.records
    for key in ("elements", "resids", "segids", "residue", "bonds"):
        assert (getattr(after, key) == getattr(before, key)).all()
    pairs = dict(zip(before.resnames.tolist(), after.resnames.tolist(), strict=True))
    assert pairs == {"CHL1": "CLR", "POPC": "LBN", "POPE": "6OU", "DOPC": "PCW", "DPPC": "PCF",
                     "POPS": "D39", "PSM": "HWP"}  # fmt: skip
    same = Counter(zip(after.residue.tolist(), after.names.tolist(), strict=True))
    assert set(same.values()) == {1}


def test_atoms_of_cholesterol_are_those_of_the_dictionary(library: Library) -> None:
    """As the PDB numbers steroids: O1 is on C3, C18 and C19 are the methyls, H6 is on C5=C6."""
    system = one_molecule(template(library, "CHL1"))
    after = renamed(all_atoms(system), system)
    bonded = {frozenset(after.names[bond].tolist()) for bond in after.bonds}
    for bond in ("O1 C3", "O1 H1", "C13 C18", "C10 C19", "C5 C6", "C6 H6", "C17 C20", "C20 C21",
                 "C25 C26", "C25 C27", "C3 H3"):  # fmt: skip
        assert frozenset(bond.split()) in bonded, bond


def test_heavy_atoms_are_called_the_same(membrane_system: System) -> None:
    table = AllAtoms.of(membrane_system, decide(membrane_system))
    whole = renamed(table.table, membrane_system)
    heavy = renamed(membrane_system.atoms, membrane_system)
    assert (heavy.names == whole.names[table.heavy]).all()


def test_proteins_keep_their_names(crowd: tuple[System, np.ndarray]) -> None:
    system, _ = crowd
    before = all_atoms(system)
    after = renamed(before, system)
    lipid = before.resnames == "POPC"
    assert (after.names == before.names)[~lipid].all()
    assert (after.resnames == np.where(lipid, "LBN", before.resnames)).all()


def test_what_has_no_component_is_said_once(
    library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    system = one_molecule(template(library, "DOPG"))
    before = all_atoms(system)
    with caplog.at_level(logging.WARNING, "mdbackmap"):
        after = renamed(before, system)
    assert [r.getMessage().splitlines()[-1].strip() for r in caplog.records] == ["DOPG, 1 times"]
    assert after.names.tolist() == before.names.tolist()
    assert set(after.resnames) == {"DOPG"}


def test_another_molecule_of_the_name_is_left_alone(library: Library) -> None:
    """A user's own DPPC with another tail than ours."""
    spec = template(library, "DMPC").spec.model_copy(update={"residue": "DPPC"})
    assert component_of(template(library, "DPPC")).component == "PCF"
    assert component_of(compile_template(spec, "own.yaml")) is None


def test_other_hydrogens_than_ours(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    system = one_molecule(template(library, "CHL1"))
    before = all_atoms(system)
    names = before.names.copy()
    names[before.names == "H3"] = "HX"
    after = renamed(dataclasses.replace(before, names=names), system)
    assert "CHL1" in caplog.text
    assert after.names.tolist() == names.tolist()


def test_convert_writes_them(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "aa.xtc"
    ok("convert", MEMBRANE, "-s", GRO, "-o", out, "--stop", 1, "--model", weights, "--pdb-names")
    atoms = mda.Universe(str(out.with_suffix(".pdb")), str(out)).atoms
    assert set(atoms.residues.resnames) == {"CLR", "LBN", "6OU", "PCW", "PCF", "D39", "HWP"}
    sterol = atoms.select_atoms("resname CLR").residues[0].atoms
    assert {"O1", "C3", "C27", "H6"} <= set(sterol.names)
    assert {(a.name[0], a.element) for a in sterol} == {("C", "C"), ("O", "O"), ("H", "H")}


def test_a_force_field_has_names_of_its_own(tmp_path: Path) -> None:
    where = ("convert", MEMBRANE, "-s", GRO, "-o", tmp_path / "aa.xtc", "--pdb-names")
    assert "give one" in fails(*where, "--force-field", "amber14", code=2)
    with pytest.raises(ConfigError, match="force field 'charmm36' has names of its own"):
        Options(force_field="charmm36", pdb_names=True)
    Options(force_field="none", pdb_names=True)
