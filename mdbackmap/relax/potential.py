"""The potential a frame is relaxed in, as one OpenMM System with groups of forces.

Groups are switched on and off by `mdbackmap.relax.minimise`: covalent terms and the soft
repulsion first, then the whole force field; beads and handedness are held throughout.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import openmm as mm

from mdbackmap.errors import ForceFieldError
from mdbackmap.relax.force_fields import Assignment
from mdbackmap.relax.generic import generic_system
from mdbackmap.relax.kinds import Kind, find_kinds
from mdbackmap.relax.reference import Reference
from mdbackmap.relax.tiling import plain, terms, tiled_force
from mdbackmap.validation.measures import torsions

CUTOFF = 0.9
"""nm; of the Lennard-Jones potential and of the reaction field, while a frame is relaxed."""
SOFT_SHARE, SOFT_STRENGTH = 0.85, 15_000.0
"""Of the Lennard-Jones diameter, within which atoms repel softly; kJ/mol/nm^2."""
SMALLEST = 0.03
"""nm; radius of atoms without Lennard-Jones terms, such as polar hydrogens."""
HOLD, MOST_HOLD = 4000.0, 80.0
"""kJ/mol/nm^2 of the spring at a bead's centre, and kJ/mol/nm that no atom ever feels more of: the
force field must be able to win, or its own forces stay."""
LOOSER = 0.2
"""Share of its strength that is left of what holds an atom with too large a force."""
STAY, MOST_STAY = 1200.0, 40.0
"""The same of the spring that keeps every heavy atom near where it was."""
STEREO_VOLUME, STEREO_KEPT, STEREO_HOLD = 0.5, 0.3, 100.0
"""Å^3 beyond which a centre is one; share of its volume below which it is held; kJ/mol/Å^6."""
TORSION_FREE, TORSION_HOLD, MOST_TORSION = 8.0, 600.0, 60.0
"""Degrees from 0 or 180 beyond which double bonds and peptides are held; kJ/mol/rad^2, and
kJ/mol/rad that no torsion ever feels more of. Angles of simulated beads are strained, and would
rather twist peptides than relax."""
TURN_FREE, TURN_HOLD, MOST_TURN = 5.0, 300.0, 15.0
"""The same of phi and psi, from where they were; more would twist peptides instead."""
PLANE_FREE, PLANE_HOLD = 6.0, 400.0
"""Degrees from their plane beyond which planar groups are held; kJ/mol."""


class Group(IntEnum):
    """Force groups."""

    COVALENT = 0
    NONBONDED = 1
    HOLDS = 2
    SOFT = 3


# Harmonic near by, linear further out.
_SPRING = (
    "tie*grip*most^2/{stiff}*(sqrt(1+({stiff}/most)^2*far)-1); far=({x}-x0)^2+({y}-y0)^2+({z}-z0)^2"
)
_BOW = (
    "firm*grip*{most}^2/{stiff}*(sqrt(1+({stiff}/{most})^2*far^2)-1); far=max(0, off-{free}); "
    "off=acos(0.999999*{cosine})"
)
PHYSICAL = {Group.COVALENT, Group.NONBONDED}


class Potential:
    """A System of all atoms, and the restraints whose targets change from frame to frame.

    Parameters
    ----------
    reference : Reference
    assignment : Assignment, optional
        A force field; molecules it does not cover, or all without one, get a generic force.
    periodic : bool
    cutoff : float, nm

    Attributes
    ----------
    system : openmm.System
    generic : list of Kind
        Molecules that got the generic force.
    """

    def __init__(
        self, reference: Reference, assignment: Assignment | None = None, *,
        periodic: bool, cutoff: float = CUTOFF,
    ) -> None:  # fmt: skip
        self.reference, self.periodic, self.cutoff = reference, periodic, cutoff
        self.system = mm.System()
        parts = []
        if assignment is not None and assignment.kinds:
            parts.append((assignment.flexible, assignment.kinds))
        self.generic = find_kinds(reference.atoms) if assignment is None else assignment.others
        if self.generic:
            made = generic_system(reference.atoms, self.generic, reference.constraints)
            parts.append((made, self.generic))
        for mass in _masses(parts, len(reference.atoms)).tolist():
            self.system.addParticle(mass)
        pairs = Pairwise(parts, len(reference.atoms))
        for prototype, kinds in parts:
            places = [k.atoms for k in kinds]
            for force in prototype.getForces():
                if not isinstance(force, _NOT_COVALENT):
                    self._add(tiled_force(force, places, np.zeros(0, int)), Group.COVALENT)
        for force in pairs.forces(periodic, cutoff):
            self._add(force, Group.NONBONDED)
        self._add(pairs.soft(periodic), Group.SOFT)
        self.beads, self.places = self._hold_beads(), self._hold_places()
        self.sides, self.turns = self._hold_sides(), self._hold_turns()
        self.holds = [self.beads, self.places, self.turns, self._hold_planes(), self.sides]
        for hold in self.holds:
            self._add(hold.force, Group.HOLDS)
        self._add(self._volume_force(), Group.HOLDS)

    def _add(self, force: mm.Force, group: Group) -> None:
        force.setForceGroup(group)
        self.system.addForce(force)

    def hold(self, context: mm.Context, positions: np.ndarray, beads: np.ndarray) -> None:
        """Hold a frame where it is and as it is.

        Parameters
        ----------
        positions : ndarray, shape=(n_atoms, 3), Å
        beads : ndarray, shape=(n_beads, 3), Å
            At the image of their atoms.
        """
        self.beads.values[:, :3] = beads[self.held] / 10
        self.places.values[:, :3] = positions[self.reference.heavy] / 10
        self.turns.values[:, 0] = np.radians(torsions(positions, self.turns.atoms))
        rows = np.flatnonzero(self.may_turn)
        cosine = np.cos(np.radians(torsions(positions, self.sides.atoms[rows])))
        self.sides.values[rows, 0] = np.where(cosine > 0, 1.0, -1.0)
        for hold in self.holds:
            hold.values[:, -1] = 1.0
            hold.apply(context)

    def pull(self, context: mm.Context, *, firm: float = 1.0, tie: float = 1.0) -> None:
        """Multiply what holds torsions (``firm``), and what holds beads and places (``tie``)."""
        context.setParameter("firm", firm)
        context.setParameter("tie", tie)

    def release(self, context: mm.Context, atoms: np.ndarray, stage: int) -> None:
        """Loosen what holds any of some atoms, shape (n_atoms,), bool.

        First beads, places, phi and psi; from stage 3 on planes, from stage 5 on peptides and
        double bonds. Stereocentres stay held.
        """
        for hold in self.holds[: 3 + (stage >= 3) + (stage >= 5)]:
            hold.values[hold.touches(atoms), -1] *= LOOSER
            hold.apply(context)

    def _hold_beads(self) -> Hold:
        """A spring from every bead's centre to a point of its own."""
        reference = self.reference
        force = mm.CustomCentroidBondForce(1, _SPRING.format(x="x1", y="y1", z="z1", stiff=HOLD))
        force.addGlobalParameter("tie", 1.0)
        for name in ("x0", "y0", "z0", "most", "grip"):
            force.addPerBondParameter(name)
        order = np.argsort(reference.members[:, 0], kind="stable")
        bead, atom = reference.members[order].T
        weight = reference.weights[order]
        self.held = np.unique(bead)
        groups, most = [], []
        for own in np.split(np.arange(len(bead)), np.flatnonzero(np.diff(bead)) + 1):
            own = own[weight[own] > 0]
            groups.append(atom[own])
            most.append(MOST_HOLD / weight[own].max())
            force.addGroup(atom[own].tolist(), weight[own].tolist())
            force.addBond([len(groups) - 1], [0.0] * 5)
        values = np.ones((len(groups), 5))
        values[:, 3] = most
        return Hold(force, "Bond", groups, values, [[[k]] for k in range(len(groups))])

    def _hold_places(self) -> Hold:
        """A spring from every mapped heavy atom to where it was."""
        force = mm.CustomExternalForce(_SPRING.format(x="x", y="y", z="z", stiff=STAY))
        force.addGlobalParameter("tie", 1.0)
        for name in ("x0", "y0", "z0", "most", "grip"):
            force.addPerParticleParameter(name)
        heavy = self.reference.heavy
        for atom in heavy.tolist():
            force.addParticle(atom, [0.0] * 5)
        values = np.ones((len(heavy), 5))
        values[:, 3] = MOST_STAY
        return Hold(force, "Particle", heavy[:, None], values, heavy[:, None].tolist())

    def _hold_sides(self) -> Hold:
        """Nothing near 0 or 180, as a torsion should be; torque beyond some degrees from it."""
        ideal, omegas = self.reference.constraints, self.reference.omegas
        atoms = np.concatenate([ideal.torsions, omegas])
        cosine = np.append(np.cos(np.radians(ideal.torsion)), -np.ones(len(omegas)))
        self.may_turn = np.append(np.zeros(len(ideal.torsions), bool), self.reference.may_be_cis)
        energy = _BOW.format(cosine="side*cos(theta)", free=np.radians(TORSION_FREE),
                             stiff=TORSION_HOLD, most=MOST_TORSION)  # fmt: skip
        return _torsion_hold(energy, atoms, side=np.where(cosine > 0, 1.0, -1.0))

    def _hold_turns(self) -> Hold:
        """Nothing while phi and psi are near what they were: secondary structure stays."""
        rows = self.reference.phi_psi
        energy = _BOW.format(cosine="cos(theta-before)", free=np.radians(TURN_FREE),
                             stiff=TURN_HOLD, most=MOST_TURN)  # fmt: skip
        atoms = np.concatenate([rows[:, :4], rows[:, 1:]])
        return _torsion_hold(energy, atoms, before=np.zeros(len(atoms)))

    def _hold_planes(self) -> Hold:
        """Nothing near the plane of four atoms, steep outside."""
        ideal, free = self.reference.constraints, np.sin(np.radians(PLANE_FREE))
        rows = ideal.volumes[ideal.volume == 0]
        # Peptides have a hold of their own, and bend.
        bonds = {tuple(sorted(pair)) for pair in self.reference.omegas[:, 1:3].tolist()}
        own = [not any(pair in bonds for pair in itertools.combinations(sorted(row), 2))
               for row in rows.tolist()]  # fmt: skip
        energy = f"grip*{PLANE_HOLD}*max(0, abs(sin(theta)) - {free})^2"
        return _torsion_hold(energy, rows[np.array(own, dtype=bool)])

    def _volume_force(self) -> mm.CustomCompoundBondForce:
        """Nothing while a stereocentre has most of its volume, steep when it flattens."""
        ideal = self.reference.constraints
        cross = "(b{0}*c{1}-b{1}*c{0})"
        volume = "+".join(f"a{u}*" + cross.format(v, w) for u, v, w in ("xyz", "yzx", "zxy"))
        lines = [f"{STEREO_HOLD}*max(0, least - 1000*volume)^2", f"volume={volume}"]
        lines += [f"{p}{u}={u}{k}-{u}1" for k, p in ((2, "a"), (3, "b"), (4, "c")) for u in "xyz"]
        force = mm.CustomCompoundBondForce(4, "; ".join(lines))
        force.addPerBondParameter("least")
        centre = ideal.volume > STEREO_VOLUME
        self.centres = ideal.volumes[centre]
        least = STEREO_KEPT * ideal.volume[centre]
        for row, value in zip(self.centres.tolist(), least.tolist(), strict=True):
            force.addBond(row, [value])
        return force


class Hold:
    """A force that holds something of every frame, each term with a grip of its own.

    Parameters
    ----------
    force : openmm.Force
    term : str
        What OpenMM calls its terms.
    atoms : ndarray, shape=(n_terms, k), int64, or list of ndarray
        Atoms of every term.
    values : ndarray, shape=(n_terms, n_parameters)
        The last is the grip, 1 where nothing was loosened.
    heads : list of list
        What stands before the parameters when a term is set.
    """

    def __init__(self, force, term: str, atoms, values: np.ndarray, heads: list[list]) -> None:
        self.force, self.atoms, self.values, self.heads = force, atoms, values, heads
        self._set = getattr(force, f"set{term}Parameters")

    def touches(self, chosen: np.ndarray) -> np.ndarray:
        """Return which terms have one of some atoms, shape (n_terms,), bool."""
        if isinstance(self.atoms, np.ndarray):
            return chosen[self.atoms].any(axis=1)
        return np.array([chosen[own].any() for own in self.atoms], dtype=bool)

    def apply(self, context: mm.Context) -> None:
        """Hand the parameters to a context."""
        if not len(self.values):
            return
        for k, (head, row) in enumerate(zip(self.heads, self.values.tolist(), strict=True)):
            self._set(k, *head, row)
        self.force.updateParametersInContext(context)


def _torsion_hold(energy: str, atoms: np.ndarray, **parameters: np.ndarray) -> Hold:
    force = mm.CustomTorsionForce(energy)
    force.addGlobalParameter("firm", 1.0)
    for name in (*parameters, "grip"):
        force.addPerTorsionParameter(name)
    values = np.stack([*parameters.values(), np.ones(len(atoms))], axis=1)
    heads = atoms.tolist()
    for head, row in zip(heads, values.tolist(), strict=True):
        force.addTorsion(*head, row)
    return Hold(force, "Torsion", atoms, values, heads)


class Pairwise:
    """Charges, sizes and exceptions of all atoms, gathered from systems of single molecules.

    CHARMM's Lennard-Jones tables are taken apart: one fast force with combination rules for all
    atoms, and one for the few pairs of types that have values of their own.
    """

    def __init__(self, parts: Sequence[tuple[mm.System, Sequence[Kind]]], n_atoms: int) -> None:
        self.charge, self.sigma, self.epsilon = np.zeros((3, n_atoms))
        self.exceptions: list[tuple[np.ndarray, tuple[float, float, float]]] = []
        self.tables: list[_Table] = []
        for system, kinds in parts:
            places = [k.atoms for k in kinds]
            forces = {type(f): f for f in system.getForces() if isinstance(f, _PAIRWISE)}
            nonbonded = forces[mm.NonbondedForce]
            rows = range(nonbonded.getNumParticles())
            values = np.array([plain(nonbonded.getParticleParameters(i)) for i in rows])
            values = values.reshape(-1, 3)
            if mm.CustomNonbondedForce in forces:
                table = _Table(forces[mm.CustomNonbondedForce], places, n_atoms)
                values[:, 1:] = table.sigma_epsilon[table.own]
                self.tables.append(table)
            start = 0
            for place in places:
                rows = slice(start, start + place.shape[1])
                self.charge[place], self.sigma[place], self.epsilon[place] = values[rows].T[:, None]
                start += place.shape[1]
            starts = np.cumsum([0, *(p.shape[1] for p in places)])
            for (i, j), numbers in terms(nonbonded, "Exception", 2):
                k = int(np.searchsorted(starts, i, side="right")) - 1
                self.exceptions.append((places[k][:, [i - starts[k], j - starts[k]]], numbers))

    def forces(self, periodic: bool, cutoff: float) -> list[mm.Force]:
        """Electrostatics and Lennard-Jones forces."""
        force = mm.NonbondedForce()
        for row in zip(self.charge.tolist(), self.sigma.tolist(), self.epsilon.tolist(),
                       strict=True):  # fmt: skip
            force.addParticle(*row)
        for pairs, numbers in self.exceptions:
            for i, j in pairs.tolist():
                force.addException(i, j, *numbers)
        method = force.CutoffPeriodic if periodic else force.CutoffNonPeriodic
        force.setNonbondedMethod(method)
        force.setCutoffDistance(cutoff)
        force.setUseDispersionCorrection(False)
        return [force, *filter(None, (self._corrected(t, periodic, cutoff) for t in self.tables))]

    def _corrected(self, table: _Table, periodic: bool, cutoff: float) -> mm.Force | None:
        """What pairs of types with values of their own differ by from the combination rules."""
        groups = table.corrections()
        if not groups:
            return None
        n = len(table.sigma_epsilon)
        force = mm.CustomNonbondedForce("da(type1, type2)/r^12 - db(type1, type2)/r^6")
        for name, values in zip(("da", "db"), table.differences(), strict=True):
            force.addTabulatedFunction(name, mm.Discrete2DFunction(n, n, values.T.ravel().tolist()))
        force.addPerParticleParameter("type")
        for k in table.type_of.tolist():
            force.addParticle([max(k, 0)])
        for first, second in groups:
            force.addInteractionGroup(first, second)
        self._exclude(force)
        method = force.CutoffPeriodic if periodic else force.CutoffNonPeriodic
        force.setNonbondedMethod(method)
        force.setCutoffDistance(cutoff)
        return force

    def soft(self, periodic: bool) -> mm.CustomNonbondedForce:
        """A repulsion that stays small however close two atoms are."""
        force = mm.CustomNonbondedForce(f"{SOFT_STRENGTH / 2}*max(0, size1+size2-r)^2")
        force.addPerParticleParameter("size")
        size = np.where(self.epsilon > 0, self.sigma * SOFT_SHARE / 2, SMALLEST)
        for value in size.tolist():
            force.addParticle([value])
        self._exclude(force)
        method = force.CutoffPeriodic if periodic else force.CutoffNonPeriodic
        force.setNonbondedMethod(method)
        force.setCutoffDistance(2 * float(size.max(initial=SMALLEST)) + 1e-3)
        return force

    def _exclude(self, force: mm.CustomNonbondedForce) -> None:
        for pairs, _ in self.exceptions:
            for i, j in pairs.tolist():
                force.addExclusion(i, j)


class _Table:
    """A table of Lennard-Jones coefficients by pairs of types, as OpenMM writes CHARMM's."""

    def __init__(
        self, force: mm.CustomNonbondedForce, places: Sequence[np.ndarray], n_atoms: int
    ) -> None:
        named = {force.getTabulatedFunctionName(i): force.getTabulatedFunction(i)
                 for i in range(force.getNumTabulatedFunctions())}  # fmt: skip
        if set(named) != {"acoef", "bcoef"}:
            raise ForceFieldError(
                f"force field with a CustomNonbondedForce {force.getEnergyFunction()!r}: relaxing "
                "knows tables of Lennard-Jones coefficients only, as CHARMM's\n"
                "  Hint: leave that force out of the --force-field-file."
            )
        n, _, values = named["acoef"].getFunctionParameters()
        self.a = np.array(values).reshape(n, n)
        self.b = np.array(named["bcoef"].getFunctionParameters()[2]).reshape(n, n)
        self.own = np.array([int(force.getParticleParameters(i)[0])
                             for i in range(force.getNumParticles())], dtype=np.int64)  # fmt: skip
        self.type_of = np.full(n_atoms, -1)
        start = 0
        for place in places:
            self.type_of[place] = self.own[start : start + place.shape[1]]
            start += place.shape[1]
        a, b = np.diag(self.a), np.diag(self.b)
        with np.errstate(divide="ignore", invalid="ignore"):
            sigma = np.where(b > 0, (a / b) ** (1 / 6), 0.1)
            epsilon = np.where(a > 0, b * b / (4 * a), 0.0)
        self.sigma_epsilon = np.stack([sigma, epsilon], axis=1)

    def differences(self) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients less those of the combination rules, shape (n_types, n_types) each."""
        sigma, epsilon = self.sigma_epsilon.T
        six = ((sigma[:, None] + sigma) / 2) ** 6
        b = 4 * np.sqrt(epsilon[:, None] * epsilon) * six
        return self.a - b * six, self.b - b

    def corrections(self) -> list[tuple[list[int], list[int]]]:
        """Atoms of the types, two by two, that differ from the combination rules."""
        da, db = self.differences()
        differs = (np.abs(da) > 1e-3 * np.abs(self.a)) | (np.abs(db) > 1e-3 * np.abs(self.b))
        rows = np.argwhere(np.triu(differs)).tolist()
        return [(np.flatnonzero(self.type_of == t).tolist(),
                 np.flatnonzero(self.type_of == u).tolist()) for t, u in rows]  # fmt: skip


_PAIRWISE = (mm.NonbondedForce, mm.CustomNonbondedForce)
_NOT_COVALENT = (*_PAIRWISE, mm.CMMotionRemover)


def _masses(parts: Sequence[tuple[mm.System, Sequence[Kind]]], n_atoms: int) -> np.ndarray:
    masses = np.zeros(n_atoms)
    for system, kinds in parts:
        own = plain([system.getParticleMass(i) for i in range(system.getNumParticles())])
        start = 0
        for kind in kinds:
            masses[kind.atoms] = own[start : start + len(kind.first)]
            start += len(kind.first)
    return masses
