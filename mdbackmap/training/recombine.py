"""More molecules from those there are: what comes before the tails, taken from one another.

A lipid's beads leave the rotamers of its head open, and a network that sees each of a few thousand
heads some ten times knows them by heart. Torsions about bonds that are not next to one another are
nearly independent, so a head whose phosphate lies as in one molecule and whose choline as in
another is one that a membrane might have. Bond lengths, angles and coupled torsions stay those of
the molecules they come from.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mdbackmap.geometry.contacts import BONDS
from mdbackmap.mapping.chains import chains_of
from mdbackmap.mapping.system import System
from mdbackmap.mapping.template import Template

SHARE = 0.8
"""Of the parts that are taken from another molecule."""
FLAT = 1.0
"""Å^3 that the arms of a centre span; less has no handedness."""
NEAREST = 2.7
"""Å between atoms more than three bonds apart; 0.3 % of the heads of membranes have less."""
TRIES = 20
"""Draws until no atoms run into one another; then the molecule stays as it is."""


@dataclass(frozen=True, eq=False)
class Part:
    """Atoms of a molecule that are placed by a frame, up to where the next part begins.

    Attributes
    ----------
    frame : ndarray, shape=(3,), int64
        Three atoms in a row; the part hangs from the last.
    atoms, beyond : ndarray, int64
        The part; all that is beyond the frame, later parts included.
    centres : ndarray, shape=(c, 4), int64
        Atoms of frame and part that have three neighbours in them, with these.
    label : tuple of str
        Equal for parts that can take each other's place.
    """

    frame: np.ndarray
    atoms: np.ndarray
    beyond: np.ndarray
    centres: np.ndarray
    label: tuple[str, ...]

    def hands(self, positions: np.ndarray) -> tuple[int, ...]:
        """Return the handedness of every centre: names must mean the same in both molecules."""
        arms = positions[self.centres[:, 1:]] - positions[self.centres[:, :1]]
        volume = np.linalg.det(arms) if len(arms) else np.zeros(0)
        return tuple((np.sign(volume) * (np.abs(volume) > FLAT)).astype(int).tolist())


class Recombiner:
    """Makes new molecules from the parts of those of one membrane.

    Force fields differ too much for parts of one to be taken by another: O12-C11-C12-N of PC is
    anti in 8 % of CHARMM's and 35 % of Lipid14's.

    Parameters
    ----------
    structures : iterable of (System, ndarray, ndarray)
        Frames: systems with positions of their atoms, shape (n_atoms, 3), Å, molecules whole, and
        the atoms that are usable, shape (n_atoms,), bool.
    """

    def __init__(self, structures: Iterable[tuple[System, np.ndarray, np.ndarray]]) -> None:
        # By label and handedness, frames and atoms of all parts there are.
        self._donors: dict[tuple, list[np.ndarray]] = {}
        for system, positions, usable in structures:
            for template, rows in _residues(system):
                if not usable[rows].all():
                    continue
                here = positions[rows]
                for part in parts_of(template):
                    key = part.label, part.hands(here)
                    own = np.concatenate([part.frame, part.atoms])
                    self._donors.setdefault(key, []).append(here[own])

    def __call__(
        self, system: System, positions: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Return positions in which molecules have parts of others, shape (n_atoms, 3), Å."""
        result = positions.copy()
        for template, rows in _residues(system):
            if parts_of(template):
                result[rows] = self._recombined(template, positions[rows], rng)
        return result

    def _recombined(
        self, template: Template, positions: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        parts, (first, second) = parts_of(template), _strangers(template)
        for _ in range(TRIES):
            here = positions.copy()
            for part in parts:
                donors = self._donors.get((part.label, part.hands(positions)), ())
                if len(donors) and rng.random() < SHARE:
                    _take(here, part, parts, donors[rng.integers(len(donors))])
            gap = np.linalg.norm(here[first] - here[second], axis=1)
            before = np.linalg.norm(positions[first] - positions[second], axis=1)
            # Molecules may be as crowded as they were.
            if (gap >= np.minimum(NEAREST, before - 0.1)).all():
                return here
        return positions


def _take(here: np.ndarray, part: Part, parts: tuple[Part, ...], donor: np.ndarray) -> None:
    """Put a part where the donor's is as seen from the frame; later parts follow, in place."""
    after = [later for later in parts if later.frame[2] in part.atoms]
    seen = [_seen(here[later.frame], here[later.beyond]) for later in after]
    here[part.atoms] = _put(here[part.frame], _seen(donor[:3], donor[3:]))
    for later, points in zip(after, seen, strict=True):
        here[later.beyond] = _put(here[later.frame], points)


def _seen(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    origin, axes = _frame(frame)
    return (points - origin) @ axes.T


def _put(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    origin, axes = _frame(frame)
    return points @ axes + origin


def _frame(three: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last of three atoms, and axes along the last bond, in their plane, and across it."""
    along = three[2] - three[1]
    along = along / np.linalg.norm(along)
    beside = three[0] - three[1]
    beside = beside - (beside @ along) * along
    beside = beside / np.linalg.norm(beside)
    return three[2], np.stack([along, beside, np.cross(along, beside)])


@functools.lru_cache(maxsize=512)
def parts_of(template: Template) -> tuple[Part, ...]:
    """Return the parts of a molecule on the side of a bond where there are no alkyl chains.

    Cut are single bonds between carbons, and between carbon and oxygen, outside rings, whose end
    on the side of the chains does not branch: torsions next to a branch, and those of a phosphate,
    depend on one another. The part nearest to the chains comes first.
    """
    n, terms = template.n_atoms, template.constraints
    near: list[list[int]] = [[] for _ in range(n)]
    for i, j in terms.bonds.tolist():
        near[i].append(j)
        near[j].append(i)
    chains = {atom for chain in chains_of(template) for atom in chain.atoms.tolist()}
    cuts = []
    for (one, other), order in zip(terms.bonds.tolist(), terms.bond_order.tolist(), strict=True):
        for i, j in ((one, other), (other, one)):
            beyond = _beyond(near, i, j)
            ends = {str(template.elements[i]), str(template.elements[j])}
            if (
                chains and order == 1 and ends <= {"C", "O"} and "C" in ends and len(near[i]) == 2
                and beyond and i not in beyond and not beyond & chains
            ):  # fmt: skip
                (h,) = (a for a in near[i] if a != j)
                cuts.append(((h, i, j), beyond))
    cuts.sort(key=lambda cut: -len(cut[1]))
    parts = []
    for frame, beyond in cuts:
        inner = [b for f, b in cuts if f[2] in beyond]
        later = set().union(*inner)
        # In an order that other molecules share.
        own = sorted(beyond - later, key=template.atom_keys.__getitem__)
        known = [*frame, *own]
        centres = [
            (a, *[b for b in known if b in near[a]][:3])
            for a in known
            if sum(b in known for b in near[a]) >= 3
        ]
        names = tuple(template.atom_keys[a] for a in (*frame, *own))
        parts.append(Part(
            np.array(frame), np.array(own), np.array(sorted(beyond)),
            np.array(centres, dtype=np.int64).reshape(-1, 4), names,
        ))  # fmt: skip
    return tuple(parts)


def _beyond(near: list[list[int]], i: int, j: int) -> set[int]:
    """Atoms that are reached from j without passing i; j is not among them."""
    reached, edge = {j}, [a for a in near[j] if a != i]
    while edge:
        reached.update(edge)
        edge = [b for a in edge for b in near[a] if b not in reached]
    return reached - {j}


@functools.lru_cache(maxsize=512)
def _strangers(template: Template) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of atoms more than three bonds apart."""
    bonds = template.constraints.bonds
    step = np.eye(template.n_atoms, dtype=np.int64)
    step[bonds[:, 0], bonds[:, 1]] = step[bonds[:, 1], bonds[:, 0]] = 1
    return np.nonzero(np.triu(np.linalg.matrix_power(step, BONDS) == 0))


def _residues(system: System) -> Iterable[tuple[Template, np.ndarray]]:
    """Templates of residues, and their atoms."""
    start = np.searchsorted(system.atoms.residue, np.arange(len(system.residue_template) + 1))
    for k, number in enumerate(system.residue_template.tolist()):
        yield system.templates[number], np.arange(start[k], start[k + 1])
