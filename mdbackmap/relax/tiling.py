"""Systems of many molecules from systems of one molecule of each kind.

OpenMM works out atom types and terms molecule by molecule, which takes minutes for a large
membrane; what it says of one copy holds for all. Particles, terms, exceptions and exclusions are
repeated; everything else a force knows (functions, maps, cutoffs) stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
import openmm as mm
from openmm import unit

from mdbackmap.errors import ForceFieldError

# What is repeated of a force: plural of the term, and how many atoms it has. Atoms come first,
# except in CMAP, where the number of the map does.
_TERMS: dict[str, tuple[tuple[str, int], ...]] = {
    "HarmonicBondForce": (("Bond", 2),),
    "HarmonicAngleForce": (("Angle", 3),),
    "PeriodicTorsionForce": (("Torsion", 4),),
    "RBTorsionForce": (("Torsion", 4),),
    "CustomBondForce": (("Bond", 2),),
    "CustomAngleForce": (("Angle", 3),),
    "CustomTorsionForce": (("Torsion", 4),),
    "CMAPTorsionForce": (("Torsion", 8),),
    "NonbondedForce": (("Particle", 0), ("Exception", 2)),
    "CustomNonbondedForce": (("Particle", 0), ("Exclusion", 2)),
    "GBSAOBCForce": (("Particle", 0),),
    "CustomGBForce": (("Particle", 0), ("Exclusion", 2)),
}
_LISTS = ("Bonds", "Angles", "Torsions", "Particles", "Exceptions", "Exclusions")


def tiled(system: mm.System, places: Sequence[np.ndarray], n_atoms: int) -> mm.System:
    """Repeat a system of one molecule of each kind.

    Parameters
    ----------
    system : openmm.System
        The molecules one behind the other.
    places : sequence of ndarray, shape=(n_copies, n_atoms of the kind), int64
        Where the atoms of every copy go, by kind.
    n_atoms : int
        Atoms of the result; each has one place.
    """
    result = mm.System()
    source = np.empty(n_atoms, dtype=np.int64)
    start = 0
    for place in places:
        source[place] = start + np.arange(place.shape[1])
        start += place.shape[1]
    masses = [system.getParticleMass(i) for i in range(system.getNumParticles())]
    for i in source.tolist():
        result.addParticle(masses[i])
    spread = _Spread(places)
    for i in range(system.getNumConstraints()):
        first, second, length = system.getConstraintParameters(i)
        for row in spread((first, second)):
            result.addConstraint(*row, length)
    for force in system.getForces():
        result.addForce(tiled_force(force, places, source))
    if any(force.usesPeriodicBoundaryConditions() for force in system.getForces()):
        result.setDefaultPeriodicBoxVectors(*system.getDefaultPeriodicBoxVectors())
    return result


def tiled_force(force: mm.Force, places: Sequence[np.ndarray], source: np.ndarray) -> mm.Force:
    """Repeat a force; arguments as in `tiled`, ``source`` is the atom of the original of each.

    Raises
    ------
    ForceFieldError
        A kind of force that cannot be repeated.
    """
    name = type(force).__name__
    if name == "CMMotionRemover":
        return mm.CMMotionRemover(force.getFrequency())
    if name not in _TERMS:
        raise ForceFieldError(
            f"force field with a {name}: only forces within molecules and between pairs of "
            "atoms can be used here\n  Hint: leave that force out of the --force-field-file."
        )
    new = emptied(force)
    spread = _Spread(places)
    for term, n in _TERMS[name]:
        add = getattr(new, f"add{term}")
        if n == 0:
            values = [plain(getattr(force, f"get{term}Parameters")(i))
                      for i in range(getattr(force, f"getNum{term}s")())]  # fmt: skip
            whole = isinstance(force, mm.CustomNonbondedForce | mm.CustomGBForce)
            for i in source.tolist():
                add(values[i]) if whole else add(*values[i])
            continue
        for atoms, values in terms(force, term, n):
            head, tail = (values[:1], values[1:]) if name == "CMAPTorsionForce" else ((), values)
            for row in spread(atoms):
                add(*head, *row, *tail)
    return new


def terms(force: mm.Force, term: str, n: int) -> list[tuple[tuple[int, ...], tuple]]:
    """Return atoms and values, without units, of every term of a force."""
    get = getattr(force, f"get{term}Particles" if term == "Exclusion" else f"get{term}Parameters")
    result = []
    for i in range(getattr(force, f"getNum{term}s")()):
        row = plain(get(i))
        head = 1 if isinstance(force, mm.CMAPTorsionForce) else 0
        result.append((tuple(row[head : head + n]), tuple(row[:head] + row[head + n :])))
    return result


def plain(values: Sequence) -> list:
    """Return values without units, those of nm, ps and kJ/mol taken off."""
    return [
        v.value_in_unit_system(unit.md_unit_system) if unit.is_quantity(v) else v for v in values
    ]


def emptied(force: mm.Force) -> mm.Force:
    """Return a force with everything it knows but particles and terms."""
    tree = ElementTree.fromstring(mm.XmlSerializer.serialize(force))
    for name in _LISTS:
        for item in tree.findall(name):
            item.clear()
    return mm.XmlSerializer.deserialize(ElementTree.tostring(tree, encoding="unicode"))


class _Spread:
    """Turns atoms of the originals into those of every copy."""

    def __init__(self, places: Sequence[np.ndarray]) -> None:
        self.places = places
        self.starts = np.cumsum([0, *(place.shape[1] for place in places)])

    def __call__(self, atoms: Sequence[int]) -> list[list[int]]:
        kind = int(np.searchsorted(self.starts, atoms[0], side="right")) - 1
        return self.places[kind][:, np.asarray(atoms) - self.starts[kind]].tolist()
