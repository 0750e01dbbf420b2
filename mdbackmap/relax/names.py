"""Atoms and residues called as a force field calls them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from mdbackmap.relax.kinds import Kind
from mdbackmap.relax.templates import Graph, Templates, residues_of
from mdbackmap.structure import AtomTable, tight

_TERMINAL = re.compile(r"[NC]([A-Z0-9]{3})")
_RESIDUE = re.compile(r"[\w+-]{1,6}")
"""What can be a residue name in a file; templates of ligands may be called by their SMILES."""


def renamed(
    atoms: AtomTable, kinds: Sequence[Kind], names: Sequence[str | None],
    patched: Sequence, templates: Templates,
) -> AtomTable:  # fmt: skip
    """Return the table with atoms and residues called as in their templates.

    Parameters
    ----------
    names : sequence of str or None
        Template of every residue of one molecule of each kind; None for residues with patches.
    patched : sequence
        What OpenMM found for each of them, None where it patched several residues together.
    """
    own, resnames = atoms.names.astype("U16"), atoms.resnames.astype("U16")
    row = 0
    for kind in kinds:
        ends = np.append(kind.starts[1:], len(kind.residue))
        for start, end, residue in zip(kind.starts, ends, residues_of(atoms, kind), strict=True):
            name, found = names[row], patched[row]
            row += 1
            if name is not None:
                graph = templates.graph(name)
            else:
                graph = Graph.of_template(found) if found is not None else None
            base = _residue_name(graph.name if graph else residue.name, residue.name, templates)
            places = kind.atoms[:, start:end]
            own[places] = _atom_names(residue, graph, base, templates)
            resnames[places] = base
    return dataclasses.replace(atoms, names=tight(own), resnames=tight(resnames))


def _residue_name(template: str, given: str, templates: Templates) -> str:
    """Name of the residue a template is of: without patches, and marks of chain ends."""
    known = templates.by_name
    while template not in known and "-" in template:
        template = template.rpartition("-")[0]
    if template not in known or not _RESIDUE.fullmatch(template):
        return given
    end = _TERMINAL.fullmatch(template)
    return end[1] if end and end[1] in known else template


def _atom_names(residue: Graph, graph: Graph | None, base: str, templates: Templates) -> list[str]:
    place = residue.onto(graph, whole=False) if graph else None
    if place is not None:
        return [graph.names[j] for j in place.tolist()]
    if base in templates.by_name:
        return _beside(residue, templates.graph(base))
    return residue.names


def _beside(residue: Graph, template: Graph) -> list[str]:
    """Names where only most of a template fits, as with bridges: hydrogens follow their bearers."""
    bearer = {j: i for i, j in _both_ways(residue) if residue.elements[j] == "H"}
    hydrogens: dict[str, list[str]] = {}
    for i, j in _both_ways(template):
        if template.elements[j] == "H":
            hydrogens.setdefault(template.names[i], []).append(template.names[j])
    names, taken = list(residue.names), set(residue.names) & set(template.names)
    for j, i in bearer.items():
        free = [h for h in hydrogens.get(residue.names[i], ()) if h not in taken]
        if names[j] not in template.names and free:
            names[j] = free[0]
            taken.add(free[0])
    return names


def _both_ways(graph: Graph) -> list[list[int]]:
    return [*graph.bonds.tolist(), *graph.bonds[:, ::-1].tolist()]
