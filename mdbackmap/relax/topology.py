"""Topologies to simulate with: OpenMM's system.xml, and a .top file for GROMACS.

The .top file holds every parameter it needs, molecule type by molecule type, in the order of the
trajectory. OpenMM's own reader of such files gets the same energies from it, which is tested.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import openmm as mm
import openmm.app as app
from openmm import unit

from mdbackmap.errors import ForceFieldError
from mdbackmap.relax.force_fields import Assignment
from mdbackmap.relax.minimise import reduced_box
from mdbackmap.relax.potential import Pairwise
from mdbackmap.relax.tiling import plain, terms
from mdbackmap.structure import AtomTable

CUTOFF, SWITCH = {"charmm36": 1.2, "amber14": 0.9}, {"charmm36": 1.0}
"""nm; what the force fields were made with."""


def system_xml(assignment: Assignment, box: np.ndarray | None) -> str:
    """Return the System of all atoms, ready to simulate, in OpenMM's XML.

    Bonds to hydrogens and water are rigid. With a box electrostatics are PME; without one nothing
    is cut off.

    Parameters
    ----------
    box : ndarray, shape=(3, 3), Å, or None
    """
    options = {"constraints": app.HBonds, "rigidWater": True}
    if box is not None:
        name = assignment.name
        options |= {"nonbondedMethod": app.PME, "nonbondedCutoff": CUTOFF[name] * unit.nanometer}
        if name in SWITCH:
            options["switchDistance"] = SWITCH[name] * unit.nanometer
    system = assignment.system(**options)
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*(reduced_box(box) / 10))
    return mm.XmlSerializer.serialize(system)


def gromacs_topology(assignment: Assignment, title: str = "system") -> str:
    """Return a topology for GROMACS with all parameters in it.

    Raises
    ------
    ForceFieldError
        Residues without a template, or a molecule whose atoms are not one behind the other.
    """
    assignment.require_all()
    return "\n".join(_Gromacs(assignment).lines(title)) + "\n"


class _Gromacs:
    """One topology file; numbers are nm, kJ/mol, degrees."""

    def __init__(self, assignment: Assignment) -> None:
        self.kinds, self.table = assignment.kinds, assignment.atoms
        self.system = assignment.flexible
        self.first = np.concatenate([k.first for k in self.kinds])
        self.starts = np.cumsum([0, *(len(k.first) for k in self.kinds)])
        self.pairwise = Pairwise([(self.system, [_Alone(k, s) for k, s in
                                                 zip(self.kinds, self.starts, strict=False)])],
                                 int(self.starts[-1]))  # fmt: skip
        self.types = [re.sub(r"\W", "_", name) for name in assignment.types]
        self.forces: dict[type, list[mm.Force]] = {}
        for force in self.system.getForces():
            self.forces.setdefault(type(force), []).append(force)
        self.names = _type_names(self.table, self.kinds)
        self.fudge = self._fudge()

    def lines(self, title: str) -> Iterator[str]:
        yield f"; {title}: written by mdbackmap, every parameter in place"
        yield from ("[ defaults ]", f"1 2 no 1.0 {self.fudge:.10g}", "")
        yield from self._types()
        for k in range(len(self.kinds)):
            yield from self._molecule(k)
        yield from ("[ system ]", title, "", "[ molecules ]")
        yield from self._molecules()

    def _all(self, kind: type, term: str, n: int) -> list[tuple[tuple[int, ...], tuple]]:
        return [row for force in self.forces.get(kind, ()) for row in terms(force, term, n)]

    def _fudge(self) -> float:
        """Share of the electrostatics of atoms three bonds apart."""
        charge = self.pairwise.charge
        shares = [
            round(values[0] / (charge[i] * charge[j]), 5)
            for (i, j), values in self._all(mm.NonbondedForce, "Exception", 2)
            if values[0] and abs(charge[i] * charge[j]) > 1e-3
        ]
        if not shares:
            return 1.0
        share = Counter(shares).most_common(1)[0][0]
        # Amber's is a fraction, of which files hold six digits.
        return 1 / 1.2 if abs(share - 1 / 1.2) < 1e-4 else share

    def _types(self) -> Iterator[str]:
        pairs = self.pairwise
        yield "[ atomtypes ]"
        seen: dict[str, int] = {}
        for i, name in enumerate(self.types):
            if name in seen:
                continue
            seen[name] = i
            element = app.Element.getBySymbol(str(self.table.elements[self.first[i]]).capitalize())
            yield (f"{name} {element.atomic_number} {element.mass._value:.4f} 0.0 A "
                   f"{pairs.sigma[i]:.10g} {pairs.epsilon[i]:.10g}")  # fmt: skip
        yield ""
        rows = [row for table in pairs.tables for row in self._special_pairs(table)]
        yield from (["[ nonbond_params ]", *dict.fromkeys(rows), ""] if rows else [])
        cmaps = dict(self._cmap_types())
        yield from (["[ cmaptypes ]", *cmaps.values(), ""] if cmaps else [])

    def _special_pairs(self, table) -> Iterator[str]:
        for first, second in table.corrections():
            for t in sorted({self.types[i] for i in first}):
                for u in sorted({self.types[i] for i in second}):
                    i, j = table.type_of[first[0]], table.type_of[second[0]]
                    a, b = table.a[i, j], table.b[i, j]
                    sigma, epsilon = ((a / b) ** (1 / 6), b * b / (4 * a)) if b > 0 else (0.1, 0.0)
                    yield " ".join([*sorted((t, u)), "1", f"{sigma:.10g} {epsilon:.10g}"])

    def _cmaps(self) -> Iterator[tuple[list[int], mm.CMAPTorsionForce, int]]:
        for force in self.forces.get(mm.CMAPTorsionForce, ()):
            for i in range(force.getNumTorsions()):
                number, *atoms = force.getTorsionParameters(i)
                yield [*atoms[:4], atoms[7]], force, number

    def _cmap_types(self) -> Iterator[tuple[tuple[str, ...], str]]:
        for atoms, force, number in self._cmaps():
            size, energy = force.getMapParameters(number)
            grid = np.array(plain(energy)).reshape(size, size)
            # GROMACS begins at -180 degrees and turns the second angle first.
            values = np.roll(grid, (-(size // 2), -(size // 2)), axis=(0, 1)).T.ravel()
            key = tuple(self.types[i] for i in atoms)
            yield key, " ".join([*key, f"1 {size} {size}", *(f"{v:.8g}" for v in values)])

    def _molecule(self, k: int) -> Iterator[str]:
        start, stop = self.starts[k : k + 2]
        table, kind = self.table, self.kinds[k]
        yield from ("[ moleculetype ]", f"{self.names[k]} 3", "", "[ atoms ]")
        for n, i in enumerate(range(start, stop)):
            row = kind.first[n]
            mass = plain([self.system.getParticleMass(i)])[0]
            named = f"{table.resids[row]} {table.resnames[row]} {table.names[row]}"
            charge = self.pairwise.charge[i]
            yield f"{n + 1} {self.types[i]} {named} {n + 1} {charge:.8g} {mass:.6g}"
        yield ""
        is_water = Counter(table.elements[kind.first].tolist()) == {"O": 1, "H": 2}
        yield from self._water(k) if is_water else self._covalent(k)

    def _inside(self, k: int, rows: Iterable) -> Iterator[tuple[str, tuple[int, ...], tuple]]:
        """Terms of one kind, with its atoms in words, counted from 1."""
        start, stop = self.starts[k : k + 2].tolist()
        for atoms, values in rows:
            if start <= atoms[0] < stop:
                yield " ".join(str(i - start + 1) for i in atoms), atoms, values

    def _covalent(self, k: int) -> Iterator[str]:
        kind, start = self.kinds[k], int(self.starts[k])
        bonded = {tuple(sorted(pair)) for pair in (kind.bonds + start).tolist()}
        bonds, spans = [], {}
        for words, atoms, (length, strength) in self._inside(
            k, self._all(mm.HarmonicBondForce, "Bond", 2)
        ):
            if tuple(sorted(atoms)) in bonded:
                bonds.append(f"{words} 1 {length:.8g} {strength:.8g}")
            else:
                spans[tuple(sorted(atoms))] = (length, strength)
        yield from _section("bonds", bonds)
        yield from _section("pairs", self._pairs(k))
        angles = []
        for words, atoms, (angle, strength) in self._inside(
            k, self._all(mm.HarmonicAngleForce, "Angle", 3)
        ):
            length, spring = spans.get(tuple(sorted((atoms[0], atoms[2]))), (0.0, 0.0))
            kind_of = f"5 {np.degrees(angle):.8g} {strength:.8g}"
            angles.append(f"{words} {kind_of} {length:.8g} {spring:.8g}")
        yield from _section("angles", angles)
        torsions = [
            f"{words} 9 {np.degrees(phase):.8g} {strength:.8g} {n}"
            for words, _, (n, phase, strength) in self._inside(
                k, self._all(mm.PeriodicTorsionForce, "Torsion", 4)
            )
        ]
        yield from _section("dihedrals", torsions)
        yield from _section("dihedrals", self._impropers(k))
        maps = [f"{words} 1" for words, *_ in
                self._inside(k, ((atoms, ()) for atoms, *_ in self._cmaps()))]  # fmt: skip
        yield from _section("cmap", maps)

    def _pairs(self, k: int) -> list[str]:
        """Atoms three bonds apart, with their Lennard-Jones parameters."""
        found: dict[tuple[int, ...], tuple[str, float, float]] = {}
        for words, atoms, (charge, sigma, epsilon) in self._inside(
            k, self._all(mm.NonbondedForce, "Exception", 2)
        ):
            if charge or epsilon:
                found[tuple(sorted(atoms))] = (words, sigma, epsilon)
        for force in self.forces.get(mm.CustomBondForce, ()):
            share = re.match(r"([\d.e+-]+)\*epsilon", force.getEnergyFunction())
            if share is None:
                raise ForceFieldError(
                    f"a term that no .top file holds: {force.getEnergyFunction()}"
                )
            for words, atoms, ((sigma, epsilon),) in self._inside(k, terms(force, "Bond", 2)):
                found[tuple(sorted(atoms))] = (words, sigma, epsilon * float(share[1]) / 4)
        return [f"{words} 1 {sigma:.8g} {epsilon:.8g}" for words, sigma, epsilon in found.values()]

    def _impropers(self, k: int) -> list[str]:
        rows = []
        for force in self.forces.get(mm.CustomTorsionForce, ()):
            names = [force.getPerTorsionParameterName(i)
                     for i in range(force.getNumPerTorsionParameters())]  # fmt: skip
            for words, _, (values,) in self._inside(k, terms(force, "Torsion", 4)):
                value = dict(zip(names, values, strict=True))
                angle = np.degrees(value["theta0"])
                rows.append(f"{words} 2 {angle:.8g} {2 * value['k']:.8g}")
        return rows

    def _water(self, k: int) -> Iterator[str]:
        """Rigid water, as GROMACS wants it."""
        start = int(self.starts[k])
        bonds = self._inside(k, self._all(mm.HarmonicBondForce, "Bond", 2))
        lengths = {tuple(sorted(atoms)): values[0] for _, atoms, values in bonds}
        angles = self._inside(k, self._all(mm.HarmonicAngleForce, "Angle", 3))
        _, (first, oxygen, _), (angle, _) = next(angles)
        side = lengths[tuple(sorted((first, oxygen)))]
        base = 2 * side * np.sin(angle / 2)
        yield from ("[ settles ]", f"{oxygen - start + 1} 1 {side:.8g} {base:.8g}", "")
        rows = (f"{i + 1} {' '.join(str(j + 1) for j in range(3) if j != i)}" for i in range(3))
        yield from _section("exclusions", rows)

    def _molecules(self) -> Iterator[str]:
        """Names of molecules in the order of the trajectory, with how many follow one another."""
        kind_of = np.empty(len(self.table), dtype=np.int64)
        lone = np.zeros(len(self.table), dtype=bool)
        for k, kind in enumerate(self.kinds):
            gaps = np.diff(kind.atoms, axis=1)
            if (gaps != 1).any():
                name = self.names[k]
                raise ForceFieldError(
                    f"molecule {name}: its atoms do not follow one another, as GROMACS wants them\n"
                    "  Hint: chains joined by a disulfide stand apart in the input; reorder them."
                )
            kind_of[kind.atoms] = k
            lone[kind.atoms[:, 0]] = True
        order = kind_of[lone]
        runs = np.flatnonzero(np.diff(order, prepend=-1))
        for start, stop in zip(runs, np.append(runs[1:], len(order)), strict=True):
            yield f"{self.names[order[start]]} {stop - start}"


class _Alone:
    """A kind of molecule in a table that holds one of each."""

    def __init__(self, kind, start: int) -> None:
        self.atoms = (start + np.arange(len(kind.first)))[None]


def _section(name: str, rows: Iterable[str]) -> Iterator[str]:
    rows = list(rows)
    if rows:
        yield from (f"[ {name} ]", *rows, "")


def _type_names(table: AtomTable, kinds: Sequence) -> list[str]:
    """A name for every molecule type: its residue, or Protein_A and on."""
    names, n_chains = [], 0
    for kind in kinds:
        resname = str(table.resnames[kind.first[0]])
        if len(kind.starts) > 1:
            n_chains += 1
            resname = f"Chain_{n_chains}"
        while resname in names:
            resname += "x"
        names.append(resname)
    return names
