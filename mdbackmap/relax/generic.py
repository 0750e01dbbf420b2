"""A force for molecules no force field knows: the geometry of their mapping, and their size.

Bonds, angles, planes and double bonds are harmonic about what the mapping says (ideal values by
element and coordination where it says nothing, as for hydrogens); atoms of different parts repel
and attract each other weakly, without charges. Enough to take strain out of anything, and nothing
to simulate with.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import openmm as mm
import openmm.app as app

from mdbackmap.geometry.constraints import Constraints
from mdbackmap.relax.kinds import Kind
from mdbackmap.structure import AtomTable

LENGTH = {"C": 1.09, "N": 1.01, "O": 0.97, "S": 1.34, "P": 1.42, "B": 1.19, "SI": 1.48}
"""Å of a bond to hydrogen."""
COVALENT = {"H": 0.31, "C": 0.76, "N": 0.71, "O": 0.66, "F": 0.57, "P": 1.07, "S": 1.05,
            "CL": 1.02, "BR": 1.20, "I": 1.39, "SI": 1.11, "B": 0.84, "SE": 1.20}  # fmt: skip
"""Å; two of them make a bond that no mapping gives a length."""
SIZE = {
    "H": (2.4, 0.06), "C": (3.45, 0.3), "N": (3.2, 0.5), "O": (3.0, 0.6), "F": (2.9, 0.25),
    "P": (3.7, 0.8), "S": (3.6, 1.0), "CL": (3.4, 1.1), "BR": (3.6, 1.5), "I": (3.8, 2.0),
}  # fmt: skip
"""Lennard-Jones diameter, Å, and depth, kJ/mol."""
OTHER_SIZE, POLAR_HYDROGEN = (3.5, 0.5), (0.4, 0.2)
BOND, ANGLE, PLANE, DOUBLE = 250_000.0, 420.0, 40.0, 60.0
"""kJ/mol per nm^2, per rad^2; barriers of planes and of double bonds, kJ/mol."""
SHARE_14 = 0.5
"""Of what atoms three bonds apart do to one another."""


def generic_system(atoms: AtomTable, kinds: Sequence[Kind], constraints: Constraints) -> mm.System:
    """Return a System of one molecule of each kind.

    Parameters
    ----------
    constraints : Constraints
        Over the atom table; what it does not cover gets ideal values.
    """
    system = mm.System()
    forces = [mm.HarmonicBondForce(), mm.HarmonicAngleForce(), mm.PeriodicTorsionForce(),
              mm.NonbondedForce()]  # fmt: skip
    start, pairs = 0, []
    for kind in kinds:
        molecule = _Molecule(atoms, kind, constraints)
        for element in molecule.elements:
            system.addParticle(app.Element.getBySymbol(element.capitalize()).mass)
        molecule.add(forces, start)
        pairs += (kind.bonds + start).tolist()
        start += len(kind.first)
    forces[3].createExceptionsFromBonds(pairs, SHARE_14, SHARE_14)
    for force in forces:
        system.addForce(force)
    return system


class _Molecule:
    """One molecule of a kind, in its own numbering."""

    def __init__(self, atoms: AtomTable, kind: Kind, constraints: Constraints) -> None:
        self.kind = kind
        self.elements = np.char.upper(atoms.elements[kind.first]).tolist()
        number = np.full(len(atoms), -1, dtype=np.int64)
        number[kind.first] = np.arange(len(kind.first))
        self.ideal = constraints.of_atoms(number)
        self.bonded: list[list[int]] = [[] for _ in self.elements]
        for i, j in kind.bonds.tolist():
            self.bonded[i].append(j)
            self.bonded[j].append(i)
        self.flat = self._flat()

    def _flat(self) -> list[bool]:
        double = set(self.ideal.bonds[self.ideal.bond_order > 1].ravel().tolist())
        double |= set(self.ideal.volumes[self.ideal.volume == 0, 0].tolist())
        sp2 = [len(js) == 3 and self.elements[i] == "C" and i in double
               for i, js in enumerate(self.bonded)]  # fmt: skip
        return [
            own or (self.elements[i] == "N" and len(js) == 3
                    and (i in double or any(sp2[j] for j in js)))
            for i, (own, js) in enumerate(zip(sp2, self.bonded, strict=True))
        ]  # fmt: skip

    def add(self, forces: Sequence[mm.Force], start: int) -> None:
        bonds, angles, torsions, nonbonded = forces
        ideal = self.ideal
        rows = zip(ideal.bonds.tolist(), ideal.bond_length.tolist(), strict=True)
        lengths = {tuple(sorted(pair)): length for pair, length in rows}
        for i, j in self.kind.bonds.tolist():
            length = lengths.get((min(i, j), max(i, j))) or self._length(i, j)
            bonds.addBond(i + start, j + start, length / 10, BOND)
        rows = zip(ideal.angles.tolist(), ideal.angle.tolist(), strict=True)
        given = {(min(i, k), j, max(i, k)): angle for (i, j, k), angle in rows}
        for j, near in enumerate(self.bonded):
            for i, k in itertools.combinations(sorted(near), 2):
                angle = given.get((i, j, k)) or self._angle(j)
                angles.addAngle(i + start, j + start, k + start, np.radians(angle), ANGLE)
        planes = ideal.volumes[ideal.volume == 0].tolist()
        planes += [[j, *near] for j, near in enumerate(self.bonded) if self.flat[j]]
        for row in planes:
            torsions.addTorsion(*(i + start for i in row), 2, np.pi, PLANE / 2)
        for row, value in zip(ideal.torsions.tolist(), ideal.torsion, strict=True):
            torsions.addTorsion(*(i + start for i in row), 1, np.radians(value) - np.pi, DOUBLE / 2)
        for i, element in enumerate(self.elements):
            polar = element == "H" and any(self.elements[j] in "NOS" for j in self.bonded[i])
            sigma, epsilon = POLAR_HYDROGEN if polar else SIZE.get(element, OTHER_SIZE)
            nonbonded.addParticle(0.0, sigma / 10, epsilon)

    def _length(self, i: int, j: int) -> float:
        first, second = self.elements[i], self.elements[j]
        if "H" in (first, second):
            return LENGTH.get(second if first == "H" else first, 1.3)
        return COVALENT.get(first, 1.3) + COVALENT.get(second, 1.3)

    def _angle(self, centre: int) -> float:
        n = len(self.bonded[centre])
        if n == 2 and self.elements[centre] in ("O", "S"):
            return 107.0 if self.elements[centre] == "O" else 96.0
        return 120.0 if n == 2 or (n < 4 and self.flat[centre]) else 109.47
