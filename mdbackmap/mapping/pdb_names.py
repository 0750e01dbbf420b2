"""Lipids and small molecules called as in the PDB: by its Chemical Component Dictionary.

The table beside this file is made by ``benchmarks/pdb_names_table.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdbackmap.errors import listing
from mdbackmap.mapping.system import System
from mdbackmap.mapping.template import Template
from mdbackmap.structure import AtomTable, tight

_log = logging.getLogger("mdbackmap")

TABLE = Path(__file__).with_suffix(".json")
KINDS = ("lipid", "molecule")
"""What has other names in the PDB than in mappings; proteins, water and ions have those."""


@dataclass(frozen=True)
class Component:
    """What the PDB calls a molecule.

    Attributes
    ----------
    component : str
        Its residue name.
    atoms, hydrogens : dict of str to str
        Its atom names, by those of the mapping.
    """

    component: str
    atoms: dict[str, str]
    hydrogens: dict[str, str]


@functools.cache
def components() -> dict[str, Component]:
    """Return the components that are known, by residue name of the mapping."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))["components"]
    return {residue: Component(**entry) for residue, entry in table.items()}


def component_of(template: Template) -> Component | None:
    """Return the component of a template that has the name and heavy atoms of a shipped one."""
    found = components().get(template.residue) if template.kind in KINDS else None
    return found if found and set(found.atoms) == set(template.names.tolist()) else None


def renamed(atoms: AtomTable, system: System) -> AtomTable:
    """Return the table with the PDB's names; what has none is warned about, and keeps its own.

    Parameters
    ----------
    atoms : AtomTable
        With or without hydrogens, water and ions behind the residues of the system.
    system : System
    """
    names, resnames = atoms.names.astype("U16"), atoms.resnames.astype("U16")
    n_solvent = atoms.residue.max(initial=-1) + 1
    which = np.append(system.residue_template, np.full(n_solvent, -1))
    template_of, without = which[atoms.residue], {}
    for k, template in enumerate(system.templates):
        rows = template_of == k
        own, code = np.unique(atoms.names[rows], return_inverse=True)
        found = component_of(template)
        table = found.atoms | found.hydrogens if found else {}
        if template.kind in KINDS and not table.keys() >= set(own.tolist()):
            without[template.residue] = int((system.residue_template == k).sum())
        elif found:
            names[rows] = np.array([table[name] for name in own.tolist()])[code]
            resnames[rows] = found.component
    if without:
        _log.warning(
            "the PDB has no component that is this molecule, or none that is known here; names "
            "stay as they are there\n%s",
            listing(f"{name}, {count} times" for name, count in without.items()),
        )
    return dataclasses.replace(atoms, names=tight(names), resnames=tight(resnames))
