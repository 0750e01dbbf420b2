"""Which hydrogens every heavy atom of a residue has, and what they are called.

As the mapping lists them; where it lists none at all, as many as valences leave room for. Where
they stand is the business of `mdbackmap.hydrogens`.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np

from mdbackmap.mapping.schema import MappingSpec, State
from mdbackmap.mapping.template import Template

VALENCES = {
    "B": (3,), "C": (4,), "SI": (4,), "N": (3,), "P": (3, 5), "O": (2,), "S": (2, 4, 6),
    "SE": (2, 4, 6), "F": (1,), "CL": (1,), "BR": (1,), "I": (1,),
}  # fmt: skip
"""Bonds of neutral atoms; elements that are not listed bear no hydrogens."""
_TETRELS = ("B", "C", "SI")
_SUFFIXES = ("", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"123456789")


@dataclass(frozen=True)
class Place:
    """What a residue is bonded to, and the names of its states; None where it has none.

    Attributes
    ----------
    starts, ends : bool
        No residue is bonded before it, after it.
    bridged : bool
    state, first, last : str or None
        Of the mapping's ``states``, ``states_first``, ``states_last``.
    """

    starts: bool = False
    ends: bool = False
    bridged: bool = False
    state: str | None = None
    first: str | None = None
    last: str | None = None


@functools.lru_cache(maxsize=4096)
def hydrogen_names(template: Template, place: Place) -> tuple[tuple[str, ...], ...]:
    """Return the names of the hydrogens of every heavy atom of a residue.

    Examples
    --------
    >>> hydrogen_names(alanine, Place(starts=True, first="NH3+"))[0]    # doctest: +SKIP
    ('H', 'H2', 'H3')
    """
    spec = template.spec
    if not template.n_hydrogens.any():
        return _by_valence(template, place)
    patched = spec.termini.last.atoms if spec.termini.last else {}
    listed = {name: tuple(atom.hydrogens) for name, atom in (patched | spec.atoms).items()}
    state = _state(spec.states, place.state)
    if place.bridged and not (state and state.bridged == "yes"):
        site = spec.bridge.bonds[0][0]
        listed[site] = listed[site][:-1]
    for chosen in (state, _state(spec.states_first, place.first),
                   _state(spec.states_last, place.last)):  # fmt: skip
        if chosen:
            listed |= {name: tuple(hydrogens) for name, hydrogens in chosen.hydrogens.items()}
    return tuple(listed[name] for name in template.names.tolist())


def _state(states: dict[str, State] | None, name: str | None) -> State | None:
    return states[name] if states and name else None


def _by_valence(template: Template, place: Place) -> tuple[tuple[str, ...], ...]:
    """Fill valences; a mapping without bonds says nothing of them, so there are none."""
    constraints = template.constraints
    if template.n_atoms > 1 and not len(constraints.bonds):
        return ((),) * template.n_atoms
    used = np.zeros(template.n_atoms)
    np.add.at(used, constraints.bonds.ravel(), np.repeat(constraints.bond_order, 2))
    for atom, order in _outer_bonds(template.spec, place):
        used[template.names == atom] += order
    charges = [_charge(template.spec, name) for name in template.names.tolist()]
    taken = set(template.names.tolist())
    result = []
    for name, element, sum_of_orders, charge in zip(
        template.names.tolist(), template.elements.tolist(), used, charges, strict=True
    ):
        names = _invented(name, element, free_valence(element, sum_of_orders, charge), taken)
        taken.update(names)
        result.append(names)
    return tuple(result)


def _charge(spec: MappingSpec, name: str) -> int:
    patched = spec.termini.last.atoms if spec.termini.last else {}
    return (spec.atoms.get(name) or patched[name]).charge


def _outer_bonds(spec: MappingSpec, place: Place) -> list[tuple[str, float]]:
    """Atoms that are bonded to other residues, with the order."""
    found = []
    if spec.link:
        here, there, order, _ = spec.link.bonds[0]
        found += [] if place.ends else [(here, order)]
        found += [] if place.starts else [(there.removeprefix("+"), order)]
    if spec.bridge and place.bridged:
        found.append((spec.bridge.bonds[0][0], spec.bridge.bonds[0][2]))
    return found


def free_valence(element: str, orders: float, charge: int = 0) -> int:
    """Return how many hydrogens an atom has.

    Parameters
    ----------
    element : str
    orders : float
        Sum of the orders of its bonds; 1.5 for aromatic and delocalised ones.
    charge : int
        Formal charge.

    >>> free_valence("C", 1.0), free_valence("N", 1.0, 1), free_valence("O", 1.5)
    (3, 3, 0)
    """
    shift = -abs(charge) if element in _TETRELS else charge
    room = [valence + shift - orders for valence in VALENCES.get(element, ())]
    enough = [left for left in room if left > -0.25]
    if not enough:
        return 0
    # Half a bond is left over where electrons are delocalised: nitrogen holds on to a hydrogen,
    # the oxygens of acids do not.
    left = enough[0]
    return max(0, math.ceil(left - 0.25) if element == "N" else math.floor(left + 0.25))


def _invented(name: str, element: str, count: int, taken: set[str]) -> tuple[str, ...]:
    """Make up names: ``H12A``, ``H12B`` for those of ``C12``."""
    if not count:
        return ()
    rest = name[len(element) :] if name.upper().startswith(element) else name
    suffixes = _SUFFIXES[:1] if count == 1 else _SUFFIXES[1 : count + 1]
    for stem in (rest, name):
        names = tuple(f"H{stem}{suffix}" for suffix in suffixes)
        if max(map(len, names)) <= 4 and not taken & set(names) and rest:
            return names
    numbers = (f"H{k}" for k in itertools.count(1))
    return tuple(itertools.islice((n for n in numbers if n not in taken), count))
