"""Alkyl chains of a molecule: which atoms, in which beads, and what kind each torsion is of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdbackmap.mapping.template import Template

SHORTEST = 5
"""Atoms; shorter chains are left to the network."""


@dataclass(frozen=True, eq=False)
class Chain:
    """An unbranched chain of carbons that ends in a methyl, cut where beads end.

    Attributes
    ----------
    anchors : ndarray, shape=(3,), int64
        Atoms before the chain, each bonded to the next, the last to the chain.
    atoms : ndarray, shape=(n,), int64
        From the anchors on.
    blocks : tuple of slice
        Of ``atoms``, one for every bead; all atoms of a bead are in its block.
    beads : ndarray, shape=(len(blocks),), int64
    kinds : tuple of str, length n
        Of the torsion that each atom ends, such as ``CT-CT-CT-CD`` (see `kind_of`).
    fixed : ndarray, shape=(n,), degrees
        The torsion where chemistry fixes it (about double bonds), else NaN.
    length : ndarray, shape=(n,), Å; angle : ndarray, shape=(n,), degrees
        Of the bond and the angle that each atom ends.
    """

    anchors: np.ndarray
    atoms: np.ndarray
    blocks: tuple[slice, ...]
    beads: np.ndarray
    kinds: tuple[str, ...]
    fixed: np.ndarray
    length: np.ndarray
    angle: np.ndarray


def chains_of(template: Template) -> tuple[Chain, ...]:
    """Find the alkyl chains of a template.

    A chain consists of carbons with at most two heavy neighbours and starts where all atoms of
    a bead, and of all later ones, belong to it.
    """
    bonded: list[list[int]] = [[] for _ in range(template.n_atoms)]
    for i, j in template.constraints.bonds.tolist():
        bonded[i].append(j)
        bonded[j].append(i)
    ends = [a for a, near in enumerate(bonded) if template.elements[a] == "C" and len(near) == 1]
    found = (_chain(template, bonded, end) for end in ends)
    return tuple(chain for chain in found if chain)


def kind_of(types: list[str]) -> str:
    """Name a torsion by the types of its four atoms, the same read from either end."""
    return "-".join(min(types, types[::-1]))


def _chain(template: Template, bonded: list[list[int]], end: int) -> Chain | None:
    path = [end]
    while len(bonded[path[-1]]) <= 2 and template.elements[path[-1]] == "C":
        onward = [a for a in bonded[path[-1]] if a not in path]
        if not onward:
            return None  # a ring, or an alkane that hangs from nothing
        path.append(onward[0])
    root = path.pop()
    before = _anchors(template, bonded, root, path[-1])
    path.reverse()
    if before is None:
        return None
    atoms, beads, starts = _whole_beads(template, path)
    if len(atoms) < SHORTEST:
        return None
    full = [*before, *path]
    at = full.index(atoms[0])
    length, angle, fixed = _geometry(template, full[at - 3 : at] + atoms)
    types = _types(template, bonded)
    kinds = tuple(kind_of([types[a] for a in full[k - 3 : k + 1]]) for k in range(at, len(full)))
    stops = [*starts[1:], len(atoms)]
    return Chain(
        np.array(full[at - 3 : at]), np.array(atoms),
        tuple(slice(a, b) for a, b in zip(starts, stops, strict=True)),
        np.array(beads), kinds, fixed, length, angle,
    )  # fmt: skip


def _anchors(
    template: Template, bonded: list[list[int]], root: int, first: int
) -> list[int] | None:
    """Three atoms in a row that end at the root, by way of the atom with most neighbours."""
    way, last = [root], first
    while len(way) < 3:
        onward = [a for a in bonded[way[0]] if a != last and a not in way]
        if not onward:
            return None
        last = way[0]
        # Of an ester's two oxygens the one the molecule goes on from.
        way.insert(0, max(onward, key=lambda a: (len(bonded[a]), -a)))
    return way


def _whole_beads(template: Template, path: list[int]) -> tuple[list[int], list[int], list[int]]:
    """The end of a path that is whole beads, the beads, and where each starts."""
    bead, atom = template.members.T
    beads_of: dict[int, set[int]] = {a: set(bead[atom == a].tolist()) for a in path}
    atoms_of = {b: set(atom[bead == b].tolist()) for b in range(template.n_beads)}
    atoms: list[int] = []
    beads: list[int] = []
    sizes: list[int] = []
    place = len(path)
    while place:
        mine = beads_of[path[place - 1]]
        if len(mine) != 1:
            break
        here = next(iter(mine))
        size = len(atoms_of[here])
        if size > place or set(path[place - size : place]) != atoms_of[here]:
            break
        atoms, beads, sizes = path[place - size : place] + atoms, [here, *beads], [size, *sizes]
        place -= size
    return atoms, beads, np.concatenate([[0], np.cumsum(sizes)])[:-1].astype(int).tolist()


def _types(template: Template, bonded: list[list[int]]) -> list[str]:
    """O, N, ...; CT, CM, CD, CO: carbon of a chain, methyl, alkene, bonded to O or N by sp2."""
    bonds = template.constraints
    flat = set(bonds.bonds[bonds.bond_order > 1].ravel().tolist())
    types = []
    for a, element in enumerate(template.elements.tolist()):
        if element != "C":
            types.append(element)
        elif a not in flat:
            types.append("CM" if len(bonded[a]) == 1 else "CT")
        else:
            types.append("CD" if all(template.elements[b] == "C" for b in bonded[a]) else "CO")
    return types


def _geometry(template: Template, row: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bond length, angle and fixed torsion of each atom after the first three."""
    ideal = template.constraints
    length = {frozenset(b): x for b, x in zip(ideal.bonds.tolist(), ideal.bond_length, strict=True)}
    angle = {
        (frozenset((a, c)), b): x
        for (a, b, c), x in zip(ideal.angles.tolist(), ideal.angle, strict=True)
    }
    fixed = {}
    for quad, x in zip(ideal.torsions.tolist(), ideal.torsion, strict=True):
        fixed[tuple(quad)] = fixed[tuple(quad[::-1])] = x
    table = [
        (length[frozenset((c, d))], angle[frozenset((b, d)), c], fixed.get((a, b, c, d), np.nan))
        for a, b, c, d in zip(row, row[1:], row[2:], row[3:], strict=False)
    ]
    columns = np.array(table, dtype=np.float64).T
    return columns[0], columns[1], columns[2]
