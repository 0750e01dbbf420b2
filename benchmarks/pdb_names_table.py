"""Find what the PDB calls lipids and small molecules, for mdbackmap/mapping/pdb_names.json.

    python -m benchmarks.pdb_names_table

Of the wwPDB's Chemical Component Dictionary, as biotite ships it: released components with the
heavy atoms, bonds, hydrogens on carbon, bond orders, stereocentres and double bonds of a mapping.
Protonation may differ. Needs biotite and RDKit.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import biotite
import biotite.structure.info as info
import click
import numpy as np
from mdbackmap.mapping import pdb_names
from mdbackmap.mapping.library import Library, shipped
from mdbackmap.mapping.template import Template
from rdkit import Chem
from rdkit.Chem import rdCIPLabeler

ORDERS = {"SING": 1, "DOUB": 2, "TRIP": 3}
COORDINATES = ("pdbx_model_Cartn_{}_ideal", "model_Cartn_{}")
VALENCE = {"N": 3, "O": 2}
MOST_MATCHES = 100_000
FLAT = 0.3
"""Å^3; a smaller signed volume is no hand."""


@functools.cache
def column(category: str, name: str, kind: type = str) -> np.ndarray:
    """One column of the dictionary."""
    empty = np.nan if kind is float else None
    return info.get_ccd()[category][name].as_array(kind, masked_value=empty)


def stated(component: str, name: str) -> str:
    """What the dictionary says of a component as a whole."""
    return str(column("chem_comp", name)[column("chem_comp", "id") == component][0])


@functools.cache
def _rows(category: str) -> dict[str, np.ndarray]:
    owner = column(category, "comp_id")
    order = np.argsort(owner, kind="stable")
    names, start = np.unique(owner[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, start[1:]), strict=True))


@dataclass(eq=False)
class Component:
    """One component; heavy atoms first, in the dictionary's order."""

    id: str

    def __post_init__(self) -> None:
        rows = _rows("chem_comp_atom")[self.id]
        light = np.isin(column("chem_comp_atom", "type_symbol")[rows], ["H", "D"])
        self.rows = rows = np.concatenate([rows[~light], rows[light]])
        self.n_heavy = int((~light).sum())
        self.names = column("chem_comp_atom", "atom_id")[rows].tolist()
        self.elements = column("chem_comp_atom", "type_symbol")[rows].tolist()
        place = {name: i for i, name in enumerate(self.names)}
        bonds = _rows("chem_comp_bond").get(self.id, np.zeros(0, np.int64))
        first, second, orders, turns = (
            column("chem_comp_bond", key)[bonds].tolist()
            for key in ("atom_id_1", "atom_id_2", "value_order", "pdbx_stereo_config")
        )
        pairs = [frozenset((place[i], place[j])) for i, j in zip(first, second, strict=True)]
        self.orders = dict(zip(pairs, map(ORDERS.get, orders), strict=True))
        self.turns = dict(zip(pairs, turns, strict=True))
        self.hands = column("chem_comp_atom", "pdbx_stereo_config")[rows].tolist()
        self.hydrogens: list[list[int]] = [[] for _ in range(self.n_heavy)]
        for pair in pairs:
            if max(pair) >= self.n_heavy > min(pair):
                self.hydrogens[min(pair)].append(max(pair))

    @property
    def bonds(self) -> list[list[int]]:
        """Between heavy atoms."""
        return [sorted(pair) for pair in self.orders if max(pair) < self.n_heavy]

    def coordinates(self) -> Iterator[np.ndarray]:
        """Positions, shape (n, 3), Å, that have the hands and turns the component states."""
        for key in COORDINATES:
            places = np.stack([column("chem_comp_atom", key.format(axis), float)[self.rows]
                               for axis in "xyz"], axis=1)  # fmt: skip
            if not np.isnan(places).any() and self._as_stated(places):
                yield places

    def _as_stated(self, places: np.ndarray) -> bool:
        kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
        mol = Chem.RWMol()
        valence = Counter()
        for pair, order in self.orders.items():
            valence.update(dict.fromkeys(pair, order))
        for i, element in enumerate(self.elements):
            atom = Chem.Atom(element.capitalize())
            # Stated charges are not always where bonds need them.
            atom.SetFormalCharge(valence[i] - VALENCE.get(element, valence[i]))
            atom.SetNoImplicit(True)
            mol.AddAtom(atom)
        for (i, j), order in ((sorted(pair), order) for pair, order in self.orders.items()):
            mol.AddBond(i, j, kinds[order])
        conformer = Chem.Conformer(len(places))
        conformer.SetPositions(places)
        mol.AddConformer(conformer)
        if Chem.SanitizeMol(mol, catchErrors=True):
            click.echo(f"  {self.id}: valences that cannot be")
            return False
        Chem.AssignStereochemistryFrom3D(mol)
        rdCIPLabeler.AssignCIPLabels(mol)
        atoms = all(_cip(mol.GetAtomWithIdx(i)) == hand for i, hand in enumerate(self.hands)
                    if hand in ("R", "S") and self.elements[i] == "C")  # fmt: skip
        return atoms and all(
            _cip(mol.GetBondBetweenAtoms(*pair)) == turn
            for pair, turn in self.turns.items() if turn in ("E", "Z")
        )  # fmt: skip


def _cip(thing: Chem.Atom | Chem.Bond) -> str:
    return thing.GetProp("_CIPCode") if thing.HasProp("_CIPCode") else ""


def _labels(elements: list[str], n_hydrogens: list[int], lipid: bool) -> list[tuple[str, int]]:
    """What heavy atoms must have in common; nitrogen and oxygen of lipids may have more protons."""
    return [(e, 0 if lipid and e != "C" else n)
            for e, n in zip(elements, n_hydrogens, strict=True)]  # fmt: skip


@functools.cache
def _by_formula() -> dict[tuple, list[str]]:
    released = column("chem_comp", "id")[column("chem_comp", "pdbx_release_status") == "REL"]
    elements = column("chem_comp_atom", "type_symbol")
    found: dict[tuple, list[str]] = {}
    for name in released.tolist():
        rows = _rows("chem_comp_atom").get(name, [])
        found.setdefault(_formula(elements[rows].tolist()), []).append(name)
    return found


def _formula(elements: list[str]) -> tuple:
    return tuple(sorted(Counter(e for e in elements if e not in ("H", "D")).items()))


def _graph(labels: list[tuple[str, int]], bonds: list[list[int]]) -> Chem.Mol:
    mol = Chem.RWMol()
    for element, count in labels:
        atom = Chem.Atom(element.capitalize())
        atom.SetIsotope(count)
        mol.AddAtom(atom)
    for i, j in bonds:
        mol.AddBond(i, j, Chem.BondType.SINGLE)
    return mol.GetMol()


def matches(template: Template, component: Component) -> Iterator[list[int]]:
    """Yield atoms of the component for those of the template, of the same graph and orders."""
    terms, lipid = template.constraints, template.kind == "lipid"
    ours = _labels(template.elements.tolist(), template.n_hydrogens.tolist(), lipid)
    theirs = _labels(component.elements[: component.n_heavy],
                     [len(own) for own in component.hydrogens], lipid)  # fmt: skip
    if Counter(ours) != Counter(theirs) or len(component.bonds) != len(terms.bonds):
        return
    found = _graph(theirs, component.bonds).GetSubstructMatches(
        _graph(ours, terms.bonds.tolist()), uniquify=False, maxMatches=MOST_MATCHES
    )
    # Hydrogens everywhere leave no choice; mappings of small molecules have orders by length.
    # Where charge is spread, and at phosphorus, orders are a matter of taste.
    plain = [(i, j, order) for (i, j), order in zip(
                 terms.bonds.tolist(), terms.bond_order.tolist(), strict=True)
             if lipid and order in (1, 2, 3) and "P" not in template.elements[[i, j]]]  # fmt: skip
    for match in found:
        if all(component.orders[frozenset((match[i], match[j]))] == order for i, j, order in plain):
            yield list(match)


def same_stereo(template: Template, component: Component, match: list[int], places) -> bool:
    """Whether positions of a component have all hands and turns of the template, and no more."""
    terms, p = template.constraints, places[match]
    handed = terms.volumes[np.abs(terms.volume) > 0.5]
    a, b, c = (p[handed[:, k]] - p[handed[:, 0]] for k in (1, 2, 3))
    right = np.einsum("ij,ij->i", a, np.cross(b, c)) > FLAT
    theirs = {k for k, i in enumerate(match) if component.hands[i] in ("R", "S")}
    strangers = theirs - set(handed[:, 0].tolist())
    if not right.all() or any(template.elements[k] == "C" for k in strangers):
        return False
    turns = {}
    for quad, torsion in zip(terms.torsions.tolist(), terms.torsion.tolist(), strict=True):
        pair = frozenset((match[quad[1]], match[quad[2]]))
        if component.orders[pair] == 2:
            turns[pair] = _is_cis(p[quad]) == (torsion == 0)
    theirs = {pair for pair, turn in component.turns.items() if turn in ("E", "Z")}
    return all(turns.values()) and theirs <= set(turns)


def _is_cis(p: np.ndarray) -> bool:
    b = np.diff(p, axis=0)
    return bool(np.dot(np.cross(b[0], b[1]), np.cross(b[1], b[2])) > 0)


def hydrogens(template: Template, component: Component, match: list[int], places) -> list:
    """Names of the hydrogens of each heavy atom, in the template's order."""
    bonded = [[] for _ in match]
    for i, j in template.constraints.bonds.tolist():
        bonded[i].append(j)
        bonded[j].append(i)
    result = []
    for k, i in enumerate(match):
        theirs = component.hydrogens[i]
        if len(theirs) == 2 and len(bonded[k]) == 2:
            a, b = (places[match[j]] - places[i] for j in sorted(bonded[k]))
            left = np.dot(places[theirs[0]] - places[i], np.cross(a, b)) > 0
            theirs = theirs if left == (template.spec.methylenes == "left") else theirs[::-1]
        result.append([component.names[h] for h in theirs])
    return result


def named(template: Template, component: Component, match: list[int], places) -> dict:
    """What the table says of a template: names of the component for its atoms."""
    light, taken = {}, set(component.names)
    theirs = hydrogens(template, component, match, places)
    for name, found in zip(template.names.tolist(), theirs, strict=True):
        for k, own in enumerate(template.spec.atoms[name].hydrogens):
            if k == len(found):
                # The component has fewer protons; the next name of their kind that is free.
                found.append(next(new for new in _after(found[-1]) if new not in taken))
                taken.add(found[-1])
            light[own] = found[k]
    heavy = dict(zip(template.names.tolist(), [component.names[i] for i in match], strict=True))
    return {"component": component.id, "atoms": heavy, "hydrogens": light}


def _after(name: str) -> Iterator[str]:
    """Names that go on as HN1, HN2 and HNA, HNB do."""
    stem, digits = re.fullmatch(r"(.*?)(\d*)", name).groups()
    if digits:
        yield from (f"{stem}{k}" for k in itertools.count(int(digits) + 1))
    yield from (f"{stem[:-1]}{letter}" for letter in string.ascii_uppercase if letter > stem[-1])


def _protons_off(template: Template, component: Component, match: list[int]) -> int:
    theirs = [len(component.hydrogens[i]) for i in match]
    return int(np.abs(template.n_hydrogens - theirs).sum())


def best(template: Template) -> dict | None:
    """What the table says of a template; None where there is no component."""
    found = []
    for name in _by_formula().get(_formula(template.elements.tolist()), ()):
        component = Component(name)
        fitting = list(matches(template, component))
        for places in component.coordinates() if fitting else ():
            right = [(_protons_off(template, component, m), m) for m in fitting
                     if same_stereo(template, component, m, places)]  # fmt: skip
            if right:
                off, match = min(right)
                found.append((off, stated(name, "pdbx_initial_date"), component, match, places))
                break
    if not found:
        return None
    *_, component, match, places = min(found, key=lambda row: row[:2])
    if len(found) > 1:
        click.echo(f"  {template.residue}: {[(r[2].id, *r[:2]) for r in found]}")
    return named(template, component, match, places)


@click.command()
def main() -> None:
    """Write the table, and say what has a component."""
    templates = {t.residue: t for t in Library.load(shipped()).templates
                 if t.kind in pdb_names.KINDS}  # fmt: skip
    table, without = {}, []
    for residue, template in sorted(templates.items()):
        found = best(template)
        if found is None:
            without.append(residue)
            continue
        table[residue] = found
        click.echo(f"{residue} {found['component']} ({stated(found['component'], 'name')})")
    click.echo(f"{len(table)} of {len(templates)}; none for {' '.join(without)}")
    until = max(column("chem_comp", "pdbx_modified_date").tolist())
    head = {
        "source": f"Chemical Component Dictionary of the wwPDB as of {until}, by way of biotite "
        f"{biotite.__version__}",
        "licence": "CC0 1.0",
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in table.items()]
    text = json.dumps(head)[:-1] + ', "components": {\n' + ",\n".join(lines) + "\n}}\n"
    path = pdb_names.TABLE
    path.write_text(text, encoding="utf-8")
    click.echo(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
