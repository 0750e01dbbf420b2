"""Templates for lipids that a force field lacks, from lipids it has.

Lipids are modular: palmitoyl is palmitoyl on every head. An atom takes type and charge of the atom
whose surroundings, as far along the bonds as possible, are the same in a template. Only what agrees
to some bonds all round, and comes out with a whole charge, is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mdbackmap.relax.templates import Graph, Templates, residue_xml

NEAREST, FURTHEST = 3, 8
"""Bonds along which surroundings must agree, and are compared."""
FEWEST_ATOMS = 40
"""Of a donor; smaller molecules have charges of their own."""
WHOLE = 0.02
"""Elementary charges by which the sum may miss a whole number; it is spread over all atoms."""


class Transfer:
    """Makes templates from those of a force field.

    Parameters
    ----------
    templates : Templates
    """

    def __init__(self, templates: Templates) -> None:
        self.templates = templates
        self._codes: dict[tuple, int] = {}
        self._donors: list[dict[int, Counter]] = [{} for _ in range(FURTHEST + 1)]
        for name, template in templates.by_name.items():
            if len(template.atoms) < FEWEST_ATOMS or template.externalBonds:
                continue
            values = [(a.type, a.parameters.get("charge")) for a in template.atoms]
            for table, codes in zip(self._donors, self._rings(templates.graph(name)), strict=True):
                for code, value in zip(codes, values, strict=True):
                    table.setdefault(code, Counter())[value] += 1

    def _rings(self, graph: Graph) -> list[list[int]]:
        """For every radius, a number for each atom that is the same where surroundings are."""
        near: list[list[int]] = [[] for _ in graph.names]
        for i, j in graph.bonds.tolist():
            near[i].append(j)
            near[j].append(i)
        codes = [self._code((e,)) for e in graph.elements]
        result = [codes]
        for _ in range(FURTHEST):
            codes = [self._code((codes[i], *sorted(codes[j] for j in js)))
                     for i, js in enumerate(near)]  # fmt: skip
            result.append(codes)
        return result

    def _code(self, key: tuple) -> int:
        return self._codes.setdefault(key, len(self._codes))

    def residue(self, residue: Graph) -> str | None:
        """Return a template for a residue as XML; None where donors do not cover it."""
        if any(residue.outside):
            return None
        rings = self._rings(residue)
        atoms: list[tuple[str, str, float]] = []
        for i, name in enumerate(residue.names):
            found = self._donor([codes[i] for codes in rings])
            if found is None:
                return None
            atoms.append((name, *found))
        total = sum(charge for *_, charge in atoms)
        missing = round(total) - total
        if abs(missing) > WHOLE:
            return None
        atoms = [(name, kind, charge + missing / len(atoms)) for name, kind, charge in atoms]
        bonds = [(residue.names[i], residue.names[j]) for i, j in np.sort(residue.bonds).tolist()]
        return residue_xml(residue.name, atoms, bonds)

    def _donor(self, codes: Sequence[int]) -> tuple[str, float] | None:
        for radius in range(FURTHEST, NEAREST - 1, -1):
            found = self._donors[radius].get(codes[radius])
            if found:
                kind, charge = found.most_common(1)[0][0]
                return (kind, charge) if charge is not None else None
        return None
