"""A short restrained minimisation per frame; the OpenMM Context is built once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openmm as mm
from scipy.spatial import cKDTree

from mdbackmap.errors import ConfigError, FrameError, listing
from mdbackmap.geometry.boxes import heights, minimum_image, with_images
from mdbackmap.geometry.rings import find_rings, pierced_rings
from mdbackmap.relax.potential import PHYSICAL, Group, Potential
from mdbackmap.structure import AtomTable
from mdbackmap.validation.measures import torsions, volumes

MAX_FORCE = 500.0
"""kJ/mol/nm of the largest force a relaxed frame may have."""
FIRST = (
    ({Group.COVALENT, Group.SOFT}, 150, 0.2, 20.0, 0.5),
    (PHYSICAL, 60, 0.4, 5.0, 0.5),
)
"""What comes first: groups of forces, most steps, share of the largest force at which it ends, and
how much more firmly torsions are held, and less tightly beads and places. Strained angles and
clashes must give way by moving atoms, not by turning peptides."""
STEPS = 400
"""Most steps of every attempt with the force field."""
ATTEMPTS, AROUND = 16, 6.0
"""Times the force field is tried; from the second on what holds atoms within so many Å of those
with too large a force is loosened, and loosened again."""
MARGIN = 0.8
"""Share of the largest force at which minimising ends; restraints count there, and not after."""
PLATFORMS = ("CUDA", "OpenCL", "CPU", "Reference")
FARTHEST = 1e6
"""Å; an atom beyond was blown away."""


@dataclass(frozen=True, eq=False)
class Relaxed:
    """One frame after its minimisation.

    Attributes
    ----------
    positions : ndarray, shape=(n_atoms, 3), float32, Å, or None
        As given where the minimisation blew up; None where a report does without.
    converged : bool
        No force is larger than asked for, and nothing is wrong that was right before.
    energy_before, energy_after : float, kJ/mol
    force_before, force_after : float, kJ/mol/nm
        Largest force on an atom, of the force field alone.
    worst : int
        The atom of the largest force.
    shift : float, Å
        Mean distance mapped heavy atoms moved.
    steps : int
    seconds : float
    problems : tuple of str
        What is wrong, with names of atoms; empty where converged.
    """

    positions: np.ndarray | None = field(repr=False)
    converged: bool
    energy_before: float
    energy_after: float
    force_before: float
    force_after: float
    worst: int
    shift: float
    steps: int
    seconds: float
    problems: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """Return what a report says of it, numbers rounded."""
        return {
            "relaxed": self.converged, "energy_before_kJ": round(self.energy_before, 1),
            "energy_after_kJ": round(self.energy_after, 1),
            "force_before_kJ_nm": round(self.force_before, 1),
            "force_after_kJ_nm": round(self.force_after, 1), "shift_A": round(self.shift, 3),
            "steps": self.steps, "seconds": round(self.seconds, 2),
            "problems": "; ".join(self.problems),
        }  # fmt: skip


class Relaxer:
    """Relaxes frames of one atom table.

    Parameters
    ----------
    potential : Potential
    max_force : float, kJ/mol/nm
    platform : str, optional
        Of OpenMM; by default the fastest there is.
    threads : int, optional
        CPU threads; by default as OpenMM has it.
    """

    def __init__(
        self, potential: Potential, *, max_force: float = MAX_FORCE, platform: str | None = None,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        self.potential, self.max_force = potential, max_force
        self.atoms: AtomTable = potential.reference.atoms
        self.context = _context(potential.system, platform, threads)
        self.rings = find_rings(self.atoms.bonds, len(self.atoms))

    def __call__(
        self, positions: np.ndarray, beads: np.ndarray, box: np.ndarray | None = None,
        frame: int = 0,
    ) -> Relaxed:  # fmt: skip
        """Relax one frame.

        Parameters
        ----------
        positions : ndarray, shape=(n_atoms, 3), Å
            Whole molecules.
        beads : ndarray, shape=(n_beads, 3), Å
            Where centres of beads are held, in any image.
        box : ndarray, shape=(3, 3), Å, or None
        frame : int
            For messages.

        Raises
        ------
        FrameError
            Positions that are no numbers, or a box that does not fit the potential.
        """
        began = time.perf_counter()
        start = np.asarray(positions, dtype=np.float64)
        if start.shape != (len(self.atoms), 3) or not np.isfinite(start).all():
            raise FrameError(
                f"frame {frame}: expected positions of shape ({len(self.atoms)}, 3), all numbers"
            )
        self._place(start, beads, box, frame)
        wrong = set(self._wrong(start, box))
        before = after = self._measure()
        now, steps = start, 0
        for groups, most, share, firm, tie in FIRST:
            self.potential.pull(self.context, firm=firm, tie=tie)
            steps += self._descend(groups, most, share)
        self.potential.pull(self.context)
        problems: list[str] = []
        for attempt in range(ATTEMPTS):
            steps += self._descend(PHYSICAL, STEPS)
            found, reached = self._measure(), self._positions()
            if not (found.largest < np.inf and np.abs(reached).max() < FARTHEST):
                problems.append(f"the minimisation blew up near {self._name(before.worst)}")
                break
            now, after = reached, found
            if found.largest <= self.max_force:
                break
            if attempt < ATTEMPTS - 1:
                self._loosen(now, found, box, attempt)
        else:
            problems.append(
                f"largest force {after.largest:.0f} kJ/mol/nm, on {self._name(after.worst)}"
            )
        problems += [row for row in self._wrong(now, box) if row not in wrong]
        heavy = self.potential.reference.heavy
        shift = np.linalg.norm(now[heavy] - start[heavy], axis=1)
        return Relaxed(
            now.astype(np.float32), not problems, before.energy, after.energy, before.largest,
            after.largest, after.worst, float(shift.mean()) if len(shift) else 0.0, steps,
            time.perf_counter() - began, tuple(problems),
        )  # fmt: skip

    def _place(self, positions, beads, box, frame) -> None:
        """Hand a frame to OpenMM: nm, reduced box, targets of restraints."""
        potential = self.potential
        if potential.periodic:
            if box is None:
                raise FrameError(f"frame {frame}: has no box, and others have one")
            reduced = reduced_box(box)
            room = heights(reduced).min() / 20
            if room < potential.cutoff:
                raise FrameError(
                    f"frame {frame}: the box has {2 * room:.2f} nm between opposite faces; "
                    f"relaxing needs {2 * potential.cutoff:.2f}"
                )
            self.context.setPeriodicBoxVectors(*(reduced / 10))
        self.context.setPositions(positions / 10)
        own = potential.reference.beads_of(positions)
        target = own + minimum_image(np.asarray(beads, dtype=np.float64) - own, box)
        potential.hold(self.context, positions, target)

    def _descend(self, groups: set[int], steps: int, share: float = MARGIN) -> int:
        """Minimise in some of the forces, and what holds the frame; returns steps taken."""
        self.context.getIntegrator().setIntegrationForceGroups(groups | {Group.HOLDS})
        watch = _Watch(self.max_force * share)
        with _blown_up_quietly():
            mm.LocalEnergyMinimizer.minimize(self.context, 1e-3, steps, watch)
        return watch.steps

    def _loosen(
        self, positions: np.ndarray, found: _Forces, box: np.ndarray | None, stage: int
    ) -> None:
        """Let go of what is held around atoms whose force is still too large."""
        near = around(positions, found.forces > self.max_force, box)
        self.potential.release(self.context, near, stage)

    def _measure(self) -> _Forces:
        """Energy and forces of the force field alone; no numbers where atoms are nowhere."""
        with _blown_up_quietly():
            state = self.context.getState(getEnergy=True, getForces=True, groups=PHYSICAL)
            size = np.linalg.norm(state.getForces(asNumpy=True)._value, axis=1)
            return _Forces(state.getPotentialEnergy()._value, size)
        return _Forces(np.nan, np.full(len(self.atoms), np.inf))

    def _positions(self) -> np.ndarray:
        return self.context.getState(getPositions=True).getPositions(asNumpy=True)._value * 10

    def _wrong(self, positions: np.ndarray, box: np.ndarray | None) -> list[str]:
        """Name inverted centres, torsions on the wrong side and bonds through rings."""
        potential = self.potential
        turned = potential.centres[volumes(positions, potential.centres) <= 0]
        rows = [f"{self._name(row[0])} has the wrong hand" for row in turned]
        sides = potential.sides
        cosine = np.cos(np.radians(torsions(positions, sides.atoms)))
        rows += [f"{self._name(row[1])}-{self._name(row[2])} is turned to the wrong side"
                 for row in sides.atoms[cosine * sides.values[:, 0] < 0]]  # fmt: skip
        bonds = self.atoms.bonds
        _, ring, bond = pierced_rings(positions, self.rings, bonds, box)
        rows += [
            f"{self._name(bonds[b, 0])}-{self._name(bonds[b, 1])} goes through the ring of "
            f"{self._name(self.rings[r, 0])}" for r, b in zip(ring, bond, strict=True)
        ]  # fmt: skip
        return rows

    def _name(self, atom: int) -> str:
        atoms = self.atoms
        return f"{atoms.resnames[atom]} {atoms.resids[atom]} {atoms.names[atom]}"


@dataclass(frozen=True, eq=False)
class _Forces:
    """Energy, kJ/mol, and the size of the force on every atom, kJ/mol/nm."""

    energy: float
    forces: np.ndarray

    @property
    def worst(self) -> int:
        """The atom with the largest force, or with one that is no number."""
        return int(np.argmax(np.where(np.isfinite(self.forces), self.forces, np.inf)))

    @property
    def largest(self) -> float:
        return float(self.forces[self.worst])


class _Watch(mm.MinimizationReporter):
    """Ends a minimisation when no force is too large any more, or when it blows up."""

    def __init__(self, goal: float) -> None:
        super().__init__()
        self.goal, self.steps = goal, 0

    def report(self, iteration, x, grad, args) -> bool:
        self.steps = iteration + 1
        force = np.asarray(grad).reshape(-1, 3)
        largest = np.sqrt((force * force).sum(axis=1).max())
        return not largest > self.goal


def around(positions: np.ndarray, chosen: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    """Return which atoms are within `AROUND` of any chosen ones, shape (n_atoms,), bool."""
    points, owner = with_images(positions, box, AROUND)
    crowd = points[: len(positions)][chosen]
    near = np.zeros(len(positions), dtype=bool)
    if len(crowd):
        gap, _ = cKDTree(crowd).query(points, distance_upper_bound=AROUND)
        near[owner[np.isfinite(gap)]] = True
    return near


def reduced_box(box: np.ndarray) -> np.ndarray:
    """Return the same lattice in the form OpenMM asks for: rows as short as may be, Å."""
    a, b, c = np.array(box, dtype=np.float64)
    c = c - b * np.round(c[1] / b[1])
    c = c - a * np.round(c[0] / a[0])
    b = b - a * np.round(b[0] / a[0])
    # On the edge, rounding of a file decides.
    b[0] = np.clip(b[0], -0.4999999 * a[0], 0.4999999 * a[0])
    c[0] = np.clip(c[0], -0.4999999 * a[0], 0.4999999 * a[0])
    c[1] = np.clip(c[1], -0.4999999 * b[1], 0.4999999 * b[1])
    return np.stack([a, b, c])


@contextmanager
def _blown_up_quietly() -> Iterator[None]:
    """Go on where OpenMM refuses coordinates that are no numbers; the caller looks at them."""
    try:
        yield
    except mm.OpenMMException as error:
        if "NaN" not in str(error):
            raise


def _context(system: mm.System, platform: str | None, threads: int | None) -> mm.Context:
    known = [mm.Platform.getPlatform(i).getName() for i in range(mm.Platform.getNumPlatforms())]
    if platform is not None and platform not in known:
        raise ConfigError(f"platform '{platform}': this OpenMM has\n{listing(known)}")
    for name in [platform] if platform else [p for p in PLATFORMS if p in known]:
        options = {"Threads": str(threads)} if name == "CPU" and threads else {}
        try:
            return mm.Context(system, mm.VerletIntegrator(0.001),
                              mm.Platform.getPlatformByName(name), options)  # fmt: skip
        except mm.OpenMMException as error:
            failure = error
    raise ConfigError(f"OpenMM platform {name}: {failure}")
