"""How every hydrogen is built from heavy atoms: index arrays and coefficients, made once.

Each atom that bears hydrogens gets a local frame from its heavy neighbours, and each hydrogen
fixed coefficients in it. Which frame, and which coefficients, follows from how many heavy atoms
and hydrogens there are about the bearer:

=====  ==========================  =====================================================
heavy  frame                       hydrogens
=====  ==========================  =====================================================
3      away from the three         one, opposite to them
2      their bisector and normal   two, of a tetrahedron; one in their plane (sp2), or
                                   one on either side of it (amine)
1      the bond, and a neighbour   in the plane of the neighbour (sp2), or turning about
       of the neighbour            the bond (methyl, ammonium, hydroxyl, thiol, amine)
0      fixed in space              of a tetrahedron
=====  ==========================  =====================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mdbackmap.errors import MappingFileError, listing
from mdbackmap.hydrogens.alike import alike
from mdbackmap.hydrogens.atoms import AllAtoms
from mdbackmap.mapping.system import System

LENGTH = {"C": 1.09, "N": 1.0, "O": 0.96, "S": 1.335, "P": 1.42, "B": 1.19, "SI": 1.48,
          "SE": 1.46}  # fmt: skip
"""Å of a bond to hydrogen: within 3 % of those of CHARMM36 and of Amber ff14SB."""
SP2_LENGTH, AMMONIUM_LENGTH = 1.08, 1.025
TETRAHEDRAL, METHYLENE, TRIGONAL = 109.5, 107.5, 120.0
"""Degrees; the middle one is H-C-H between two carbons, whose C-C-C is wider."""
PYRAMID = 55.0
"""Degrees between the hydrogen of an amine and the plane of its two neighbours."""
DONORS = ("N", "O", "S", "SE")
BENT = {"O": 107.0, "S": 96.0, "SE": 95.0}
"""Degrees of X-O-H and the like."""
IMINE = 112.0
FULL_TURN = np.radians(np.arange(60, 420, 20))
"""Torsions tried for what has no threefold symmetry."""
THIRD_TURN = np.radians([0, 20, -20, 40, -40, 60])
"""Turns away from staggered tried for what has."""
STAGGERED, LOOSE, ANTI_ACID = 0.35, 0.1, 2.5
"""Cost of a torsion at its worst, where a good hydrogen bond is worth 1: about a single bond, about
one beside a double bond, and of an acid's hydrogen away from the other oxygen."""


@dataclass(frozen=True, eq=False)
class Turning:
    """Groups of one kind whose hydrogens can stand in several ways.

    Attributes
    ----------
    bearers : ndarray, shape=(r,), int64
        Into `Recipes.bearers`.
    first : ndarray, shape=(r,), int64
        The first hydrogen of each; the others follow.
    candidates : ndarray, shape=(t, k, 3)
        Coefficients of the ``k`` hydrogens in each of ``t`` ways; the first is the usual one.
    cost : ndarray, shape=(t,)
    polar : bool
        Whether it can donate a hydrogen bond; others only turn away from clashes.
    """

    bearers: np.ndarray
    first: np.ndarray
    candidates: np.ndarray
    cost: np.ndarray
    polar: bool


@dataclass(frozen=True, eq=False)
class Recipes:
    """How the hydrogens of one system are built.

    Attributes
    ----------
    bearers : ndarray, shape=(n,), int64
        Heavy atoms that bear hydrogens.
    neighbours : ndarray, shape=(n, 3), int64
        Heavy atoms that span their frames, -1 where there is none: three neighbours, or two, or
        one and a neighbour of it in the last column.
    kind : ndarray, shape=(n,), int64
        Heavy neighbours of each, at most 3.
    owner : ndarray, shape=(h,), int64
        Into ``bearers``.
    coefficients : ndarray, shape=(h, 3), float32, Å
        Of each hydrogen in the frame of its bearer, where nothing is near.
    turning : tuple of Turning
        Polar ones first.
    first, count : ndarray, shape=(n_heavy,), int64
        The first hydrogen of every heavy atom, and how many it has.
    polar : ndarray, shape=(n_heavy,), bool
        Atoms whose hydrogens are donated.
    accepts : ndarray, shape=(n_heavy,), bool
        Atoms with a lone pair for a hydrogen bond.
    bonded, within_two : ndarray, shape=(n_heavy, m), int32
        Heavy atoms of higher numbers bonded to each, and those at most two bonds from each, padded
        with -1.
    """

    bearers: np.ndarray
    neighbours: np.ndarray
    kind: np.ndarray
    owner: np.ndarray
    coefficients: np.ndarray
    turning: tuple[Turning, ...]
    first: np.ndarray
    count: np.ndarray
    polar: np.ndarray
    accepts: np.ndarray
    bonded: np.ndarray
    within_two: np.ndarray

    @property
    def n_hydrogens(self) -> int:
        return len(self.owner)


def recipes_for(system: System, atoms: AllAtoms) -> Recipes:
    """Work out how the hydrogens of a system are built.

    Raises
    ------
    MappingFileError
        An atom with more bonds and hydrogens than chemistry has; lists them.
    """
    n, elements = system.n_atoms, system.atoms.elements
    count = np.bincount(atoms.bearers, minlength=n)
    bonded = _padded(system.constraints.bonds, n)
    heavy = (bonded >= 0).sum(axis=1)
    bearers = np.flatnonzero(count)
    _refuse_crowded(system, bearers, heavy, count)

    total = heavy + count
    flat = _flat(elements, bonded, total)
    neighbours = np.full((len(bearers), 3), -1, dtype=np.int64)
    width = min(3, bonded.shape[1])
    neighbours[:, :width] = bonded[bearers, :width]
    single = heavy[bearers] == 1
    neighbours[single, 2] = _references(bearers[single], bonded, elements, heavy, count)

    owner = np.repeat(np.arange(len(bearers)), count[bearers])
    first = np.cumsum(count) - count
    coefficients = np.zeros((len(owner), 3))
    turning = []
    for site, rows in _sites(system, bearers, neighbours, heavy, count, flat):
        candidates, cost = _ways(site)
        hydrogens = first[bearers[rows]][:, None] + np.arange(candidates.shape[1])
        coefficients[hydrogens] = candidates[0]
        if len(candidates) > 1:
            polar = site.element in DONORS
            turning.append(Turning(rows, hydrogens[:, 0], candidates.astype(np.float32),
                                   cost.astype(np.float32), polar))  # fmt: skip
    turning.sort(key=lambda t: not t.polar)
    donors = np.isin(elements, DONORS) & (count > 0)
    return Recipes(
        bearers=bearers, neighbours=neighbours, kind=np.minimum(heavy[bearers], 3), owner=owner,
        coefficients=coefficients.astype(np.float32), turning=tuple(turning), first=first,
        count=count, polar=donors, accepts=_accepts(elements, total, flat),
        bonded=_table(np.sort(system.constraints.bonds, axis=1), n),
        within_two=_within_two(bonded),
    )  # fmt: skip


def _padded(bonds: np.ndarray, n: int) -> np.ndarray:
    """Neighbours of every atom in ascending order, padded with -1."""
    return _table(np.concatenate([bonds, bonds[:, ::-1]]), n)


def _within_two(bonded: np.ndarray) -> np.ndarray:
    """Atoms of higher numbers at most two bonds from each, padded with -1."""
    n, width = bonded.shape
    near = np.repeat(np.arange(n), width)[bonded.ravel() >= 0]
    middle = bonded.ravel()[bonded.ravel() >= 0]
    far, beyond = np.repeat(near, width), bonded[middle].ravel()
    here, there = np.concatenate([near, far]), np.concatenate([middle, beyond])
    key = np.unique((here * n + there)[there > here])
    return _table(np.stack([key // n, key % n], axis=1), n)


def _table(pairs: np.ndarray, n: int) -> np.ndarray:
    """The second of each pair, a row for each first, padded with -1."""
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    degree = np.bincount(pairs[:, 0], minlength=n)
    table = np.full((n, max(1, int(degree.max(initial=0)))), -1, dtype=np.int64)
    start = np.cumsum(degree) - degree
    table[pairs[:, 0], np.arange(len(pairs)) - np.repeat(start, degree)] = pairs[:, 1]
    return table.astype(np.int32)


def _refuse_crowded(
    system: System, bearers: np.ndarray, heavy: np.ndarray, count: np.ndarray
) -> None:
    most = np.array([4, 3, 2, 1])
    bad = bearers[(heavy[bearers] > 4) | (count[bearers] > most[np.minimum(heavy[bearers], 3)])]
    if not len(bad):
        return
    atoms = system.atoms
    templates = [system.templates[system.residue_template[atoms.residue[i]]] for i in bad]
    rows = dict.fromkeys(
        f"{t.source}: residue {t.residue}, atom {atoms.names[i]}: {heavy[i]} bonds to heavy atoms "
        f"and {count[i]} hydrogens" for i, t in zip(bad, templates, strict=True)
    )  # fmt: skip
    raise MappingFileError(
        f"atoms with more hydrogens than can be placed:\n{listing(rows)}\n  Hint: list the "
        "hydrogens of each atom in the mapping, or write heavy atoms only with --no-hydrogens."
    )


def _flat(elements: np.ndarray, bonded: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Atoms whose neighbours lie in a plane with them, shape (n,), bool."""
    sp2 = (elements == "C") & (total == 3)
    beside = (sp2[bonded] & (bonded >= 0)).any(axis=1)
    # Lone pairs of nitrogen and oxygen lean on the double bond beside them.
    return sp2 | (np.isin(elements, ("N", "O", "S")) & (total <= 3) & beside)


def _references(
    bearers: np.ndarray, bonded: np.ndarray, elements: np.ndarray, heavy: np.ndarray,
    count: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """For atoms with one neighbour: the neighbour of it that torsions are counted from.

    For one or three hydrogens the free oxygen of a carbonyl or acid, if there is one, else the
    first; -1 without any.
    """
    if not len(bearers):
        return np.zeros(0, dtype=np.int64)
    near = bonded[bonded[bearers, 0]]
    other = (near >= 0) & (near != bearers[:, None])
    free_oxygen = (elements[near] == "O") & (heavy[near] == 1) & (count[near] == 0)
    # The two hydrogens of an amide are named by the first neighbour.
    free_oxygen &= (count[bearers] != 2)[:, None]
    column = np.argmax(np.where(other, 1 + free_oxygen, 0), axis=1)
    rows = np.arange(len(bearers))
    return np.where(other[rows, column], near[rows, column], -1)


@dataclass(frozen=True)
class _Site:
    """What the places of an atom's hydrogens depend on.

    ``heavy`` neighbours (4 count as 3), ``hydrogens``, ``total`` of both; whether it and its first
    neighbour are flat; whether it is the hydroxyl of an acid; on which side of it the first of two
    hydrogens is.
    """

    element: str
    heavy: int
    hydrogens: int
    total: int
    flat: bool
    beside_flat: bool
    acid: bool
    right: bool

    @property
    def length(self) -> float:
        """Å from the atom to its hydrogens."""
        if self.element == "C" and self.total < 4:
            return SP2_LENGTH
        if self.element == "N" and self.total == 4:
            return AMMONIUM_LENGTH
        return LENGTH.get(self.element, 1.3)


def _sites(
    system: System, bearers: np.ndarray, neighbours: np.ndarray, heavy: np.ndarray,
    count: np.ndarray, flat: np.ndarray,
) -> Iterator[tuple[_Site, np.ndarray]]:  # fmt: skip
    """Yield kinds of sites, and which bearers are of each."""
    elements = system.atoms.elements
    near, reference = neighbours[:, 0], neighbours[:, 2]
    acid = (heavy[bearers] == 1) & (elements[near] == "C") & (reference >= 0)
    acid &= (elements[reference] == "O") & (heavy[reference] == 1) & (count[reference] == 0)
    right = np.array([t.spec.methylenes == "right" for t in system.templates])
    right = right[system.residue_template][system.atoms.residue[bearers]]
    names, element = np.unique(elements[bearers], return_inverse=True)
    columns = (
        element, np.minimum(heavy[bearers], 3), count[bearers], (heavy + count)[bearers],
        flat[bearers], flat[near] & (near >= 0), acid, right,
    )  # fmt: skip
    for (code, n_heavy, hydrogens, total, *flags), rows in alike(*columns):
        yield _Site(str(names[code]), n_heavy, hydrogens, total, *map(bool, flags)), rows


def _ways(site: _Site) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients, shape (ways, hydrogens, 3), Å, and the cost of each way of placing."""
    if site.heavy == 1 and not (site.element == "C" and site.total == 2):
        return _turned(site)
    if site.heavy == 2 and site.hydrogens == 1 and site.element in ("N", "P") and not site.flat:
        return _on_sides(site.length, PYRAMID)[:, None], np.zeros(2)
    if site.heavy == 2 and site.hydrogens == 2:
        places = _on_sides(site.length, METHYLENE / 2)[:: -1 if site.right else 1]
    elif site.heavy == 0:
        places = site.length * _TETRAHEDRON[: site.hydrogens]
    else:
        places = np.array([[site.length, 0.0, 0.0]])
    return places[None], np.zeros(1)


def _turned(site: _Site) -> tuple[np.ndarray, np.ndarray]:
    """The same for what is bonded to one heavy atom, and may turn about that bond."""
    if site.hydrogens == 3:
        # Beside a double bond one hydrogen lies in its plane, else all are staggered.
        base = np.radians([0, 120, 240]) + (0.0 if site.beside_flat else np.pi / 3)
        torsions = base + THIRD_TURN[:, None]
        cost = _threefold(THIRD_TURN, LOOSE if site.beside_flat else STAGGERED)
        return _about_bond(site.length, TETRAHEDRAL, torsions), cost
    angle = BENT.get(site.element, IMINE)
    if site.hydrogens == 2:
        angle = TRIGONAL if site.flat else TETRAHEDRAL
    both = np.radians([0, 120])[: site.hydrogens]
    torsions, cost = FULL_TURN[:, None] + both, _threefold(FULL_TURN - np.pi / 3, STAGGERED)
    if site.flat and site.hydrogens == 2:
        torsions, cost = np.array([[0, np.pi]]), np.zeros(1)
    elif site.flat or (site.total == 2 and site.element == "N"):
        torsions, cost = np.array([[0], [np.pi]]), np.array([0, ANTI_ACID if site.acid else 0])
    return _about_bond(site.length, angle, torsions), cost


_TETRAHEDRON = np.array([[1, 1, 1], [-1, -1, 1], [1, -1, -1], [-1, 1, -1]]) / np.sqrt(3)


def _threefold(turn: np.ndarray, worst: float) -> np.ndarray:
    """Cost of turning away from a minimum."""
    return worst * (1 - np.cos(3 * turn)) / 2


def _on_sides(length: float, angle: float) -> np.ndarray:
    """Two places on either side of a plane, so many degrees from the bisector."""
    along, across = length * np.cos(np.radians(angle)), length * np.sin(np.radians(angle))
    return np.array([[along, 0, across], [along, 0, -across]])


def _about_bond(length: float, angle: float, torsions: np.ndarray) -> np.ndarray:
    """Places about a bond, shape (*torsions.shape, 3)."""
    along, across = -length * np.cos(np.radians(angle)), length * np.sin(np.radians(angle))
    return np.stack([np.full(torsions.shape, along), across * np.cos(torsions),
                     across * np.sin(torsions)], axis=-1)  # fmt: skip


def _accepts(elements: np.ndarray, total: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """Oxygens, and nitrogens whose lone pair is free."""
    nitrogen = (elements == "N") & ((total < 3) | ((total == 3) & ~flat))
    return (elements == "O") | nitrogen
