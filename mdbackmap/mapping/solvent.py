"""Water and ions of a coarse-grained file: which atoms stand for which bead, worked out once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mdbackmap.mapping.template import Template
from mdbackmap.structure import AtomTable, Particles

RESIDUE, OXYGEN, HYDROGENS = "HOH", "O", ("H1", "H2")
"""Native names of water; those of a force field replace them."""


@dataclass(frozen=True, eq=False)
class Solvent:
    """Beads of water, then those of ions, each in the order of the file.

    Attributes
    ----------
    beads : Particles
        One for each molecule of the file: its bead that waters are placed about, or an ion.
    bead_source : ndarray, shape=(n,), int64
        Their places in the CG file.
    waters : ndarray, shape=(n,), int64
        Waters each stands for, 0 for an ion.
    ions, elements : ndarray, shape=(n_ions,), str
        Name and element of every ion.
    charges : ndarray, shape=(n_ions,), int64
        Formal charges.
    """

    beads: Particles
    bead_source: np.ndarray
    waters: np.ndarray
    ions: np.ndarray
    elements: np.ndarray
    charges: np.ndarray

    @property
    def n_beads(self) -> int:
        return len(self.bead_source)

    @functools.cached_property
    def n_waters(self) -> int:
        """Water molecules of the answer."""
        return int(self.waters.sum())

    @property
    def n_ions(self) -> int:
        return len(self.ions)

    @property
    def owner(self) -> np.ndarray:
        """Bead of every water, shape (n_waters,), int64."""
        return np.repeat(np.arange(self.n_beads), self.waters)

    def n_atoms(self, *, hydrogens: bool) -> int:
        """Atoms of the answer, with hydrogens or without."""
        return (3 if hydrogens else 1) * self.n_waters + self.n_ions

    def counts(self) -> dict[str, int]:
        """Return how many waters and ions there are: ``{"water": 7872, "Na+": 21}``."""
        result = {"water": self.n_waters} if self.n_waters else {}
        labels = [_label(*pair) for pair in
                  zip(self.elements.tolist(), self.charges.tolist(), strict=True)]  # fmt: skip
        return result | {label: labels.count(label) for label in dict.fromkeys(labels)}

    def behind(self, atoms: AtomTable, *, hydrogens: bool) -> AtomTable:
        """Return an atom table with water and ions at its end.

        Residues are numbered on from the largest number in it.

        Parameters
        ----------
        atoms : AtomTable
        hydrogens : bool
            Water has its hydrogens.
        """
        own = self._table(hydrogens)
        columns = {
            key: np.concatenate([getattr(atoms, key), getattr(own, key)])
            for key in ("names", "elements", "resnames", "segids")
        }
        after = int(atoms.residue.max(initial=-1)) + 1
        return AtomTable(
            **columns, resids=np.append(atoms.resids, own.resids + atoms.resids.max(initial=0)),
            residue=np.append(atoms.residue, own.residue + after),
            bonds=np.concatenate([atoms.bonds, own.bonds + len(atoms)]),
        )  # fmt: skip

    def _table(self, hydrogens: bool) -> AtomTable:
        own = [OXYGEN, *HYDROGENS] if hydrogens else [OXYGEN]
        n, size = self.n_waters, len(own)
        oxygens = size * np.arange(n)
        residue = np.append(np.repeat(np.arange(n), size), n + np.arange(self.n_ions))
        return AtomTable(
            names=np.append(np.tile(own, n), self.ions),
            elements=np.append(np.tile(["O", "H", "H"][:size], n), self.elements),
            resnames=np.append(np.full(n * size, RESIDUE), self.ions),
            resids=residue + 1, segids=np.full(len(residue), ""), residue=residue,
            bonds=np.concatenate([np.stack([oxygens, oxygens + k], axis=1)
                                  for k in range(1, size)] or [np.zeros((0, 2), np.int64)]),
        )  # fmt: skip


def _label(element: str, charge: int) -> str:
    size = str(abs(charge)) if abs(charge) > 1 else ""
    return element.capitalize() + (size + "+-"[charge < 0] if charge else "")


class Collector:
    """Gathers residues of water and ions while a file is read."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Template, np.ndarray, list[int]]] = {}

    def add(self, template: Template, order: np.ndarray, start: int) -> bool:
        """Take a residue; False where its template stands for no atoms.

        Parameters
        ----------
        order : ndarray, shape=(n_beads,), int64
            Place in the residue of each bead of the template.
        start : int
            Its first particle in the file.
        """
        if not (template.spec.waters or template.ion):
            return False
        self._found.setdefault(id(order), (template, order, []))[2].append(start)
        return True

    def solvent(self, particles: Particles) -> Solvent | None:
        """Return what was gathered; None where nothing was."""
        found = [_Kind(template, np.array(starts) + order[_bead(template)])
                 for template, order, starts in self._found.values()]  # fmt: skip
        if not found:
            return None
        water, ions = ([k for k in found if bool(k.template.ion) == is_ion]
                       for is_ion in (False, True))  # fmt: skip
        n_waters = _column(water, [k.template.spec.waters for k in water])
        names = _column(ions, [k.template.ion[0] for k in ions], "U16")
        elements = _column(ions, [_element(k.template) for k in ions], "U2")
        charges = _column(ions, [k.template.ion[1].charge for k in ions])
        source = np.concatenate([_sources(water), _sources(ions)])
        return Solvent(
            beads=Particles(
                names=particles.names[source], resnames=particles.resnames[source],
                resids=particles.resids[source], segids=particles.segids[source],
                source=particles.source,
            ),
            bead_source=source, waters=np.append(n_waters, np.zeros(len(names), np.int64)),
            ions=names, elements=elements, charges=charges,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Kind:
    """Beads of one template."""

    template: Template
    source: np.ndarray


def _bead(template: Template) -> int:
    """The bead that waters are placed about, or that is the ion."""
    if not template.ion:
        return 0
    bead = template.ion[1].bead
    return template.bead_names.index(bead if isinstance(bead, str) else next(iter(bead)))


def _element(template: Template) -> str:
    name, atom = template.ion
    return (atom.element or name).upper()


def _sources(kinds: Sequence[_Kind]) -> np.ndarray:
    return np.sort(np.concatenate([k.source for k in kinds] or [np.zeros(0, np.int64)]))


def _column(kinds: Sequence[_Kind], values: Sequence, dtype: type | str = np.int64) -> np.ndarray:
    """One value per bead, in the order of the file."""
    source = np.concatenate([k.source for k in kinds] or [np.zeros(0, np.int64)])
    each = np.repeat(np.array(values, dtype=dtype), [len(k.source) for k in kinds])
    return each[np.argsort(source)]
