"""Residue templates of a force field, found by bond graph; and residues as graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import openmm.app as app

from mdbackmap.relax.kinds import Kind
from mdbackmap.relax.matching import match
from mdbackmap.structure import AtomTable


@dataclass(frozen=True, eq=False)
class Graph:
    """A residue, or a template of one.

    Attributes
    ----------
    name : str
    names, elements : list of str
    bonds : ndarray, shape=(m, 2), int64
    outside : list of int
        Bonds of every atom to other residues.
    """

    name: str
    names: list[str]
    elements: list[str]
    bonds: np.ndarray
    outside: list[int]

    @property
    def formula(self) -> tuple:
        """Elements with their numbers."""
        return tuple(sorted(Counter(self.elements).items()))

    @property
    def labels(self) -> list[str]:
        """Elements, with a star for every bond out of the residue."""
        return [e + "*" * n for e, n in zip(self.elements, self.outside, strict=True)]

    def onto(self, other: Graph, *, whole: bool = True) -> np.ndarray | None:
        """Atom of another graph for each of this; None where they differ.

        ``whole`` compares bonds out of the residue too.
        """
        mine, theirs = (self.labels, other.labels) if whole else (self.elements, other.elements)
        return match(self.names, mine, self.bonds, other.names, theirs, other.bonds)

    @classmethod
    def of_template(cls, template) -> Graph:
        """Return the graph of one of OpenMM's templates."""
        outside = Counter(template.externalBonds)
        return cls(
            template.name, [a.name for a in template.atoms],
            [a.element.symbol if a.element is not None else "" for a in template.atoms],
            np.array(template.bonds, dtype=np.int64).reshape(-1, 2),
            [outside[i] for i in range(len(template.atoms))],
        )  # fmt: skip


def residues_of(atoms: AtomTable, kind: Kind) -> Iterator[Graph]:
    """Yield the residues of one molecule of a kind."""
    ends = np.append(kind.starts[1:], len(kind.residue))
    inside = kind.residue[kind.bonds[:, 0]] == kind.residue[kind.bonds[:, 1]]
    outside = np.bincount(kind.bonds[~inside].ravel(), minlength=len(kind.residue))
    owner = kind.residue[kind.bonds[:, 0]]
    for r, (start, end) in enumerate(zip(kind.starts.tolist(), ends.tolist(), strict=True)):
        rows = kind.first[start:end]
        yield Graph(
            str(atoms.resnames[rows[0]]), atoms.names[rows].tolist(),
            np.char.capitalize(atoms.elements[rows]).tolist(),
            kind.bonds[inside & (owner == r)] - start, outside[start:end].tolist(),
        )  # fmt: skip


class Templates:
    """The templates of a force field.

    Parameters
    ----------
    force_field : openmm.app.ForceField
    """

    def __init__(self, force_field: app.ForceField) -> None:
        self.by_name = force_field._templates
        self._graphs: dict[str, Graph] = {}
        self._of_formula: dict[tuple, list[str]] = {}
        for name, template in self.by_name.items():
            count = Counter(a.element.symbol for a in template.atoms if a.element is not None)
            self._of_formula.setdefault(tuple(sorted(count.items())), []).append(name)
        self._found: dict[tuple, list[str]] = {}

    def graph(self, name: str) -> Graph:
        """Return the graph of a template."""
        if name not in self._graphs:
            self._graphs[name] = Graph.of_template(self.by_name[name])
        return self._graphs[name]

    def fitting(self, residue: Graph) -> list[str]:
        """Names of the templates a residue fits, the best name first."""
        key = (residue.name, tuple(residue.names), residue.bonds.tobytes(), *residue.outside)
        if key not in self._found:
            fits = [name for name in self._of_formula.get(residue.formula, ())
                    if residue.onto(self.graph(name)) is not None]  # fmt: skip
            own = set(residue.names)
            alike = {name: len(own & set(self.graph(name).names)) for name in fits}
            fits.sort(key=lambda name: (name != residue.name, -alike[name]))
            self._found[key] = fits
        return self._found[key]

    def template_of(self, residue: Graph) -> str | None:
        """Name of the template of a residue; None where there is none."""
        return next(iter(self.fitting(residue)), None)

    def rivals(self, residue: Graph) -> list[str]:
        """Other templates it fits that say something else; OpenMM would not know which to take."""
        fits = self.fitting(residue)
        says = {name: sorted((a.type, round(a.parameters.get("charge", 0.0), 6))
                             for a in self.by_name[name].atoms) for name in fits}  # fmt: skip
        return [name for name in fits[1:] if says[name] != says[fits[0]]]

    def as_xml(self, name: str, called: str | None = None, override: bool = False) -> str:
        """Return a template as OpenMM's files have it, under another name if so asked."""
        template = self.by_name[name]
        atoms = [(a.name, a.type, a.parameters.get("charge")) for a in template.atoms]
        names = [a.name for a in template.atoms]
        bonds = [(names[i], names[j]) for i, j in template.bonds]
        return residue_xml(called or name, atoms, bonds, override=override)


def residue_xml(
    name: str, atoms: Sequence[tuple[str, str, float | None]],
    bonds: Sequence[tuple[str, str]], *, override: bool = False,
) -> str:  # fmt: skip
    """Return a template without bonds to other residues as OpenMM's files have it."""
    head = f'  <Residue name="{name}"' + (' override="1">' if override else ">")
    rows = [f'    <Atom name="{atom}" type="{kind}"'
            + ("" if charge is None else f' charge="{charge:.8g}"') + "/>"
            for atom, kind, charge in atoms]  # fmt: skip
    rows += [f'    <Bond atomName1="{i}" atomName2="{j}"/>' for i, j in bonds]
    return "\n".join([head, *rows, "  </Residue>"])


def file_of(residues: Sequence[str]) -> str:
    """Return a force-field file of some templates; empty without any."""
    if not residues:
        return ""
    body = "\n".join(residues)
    return f"<ForceField>\n <Residues>\n{body}\n </Residues>\n</ForceField>\n"
