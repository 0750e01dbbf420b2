"""Bonds between saturated carbons, about which molecules are staggered."""

from __future__ import annotations

import functools

import numpy as np

from mdbackmap.geometry.idealise import Staggered
from mdbackmap.mapping.chains import chains_of
from mdbackmap.mapping.system import System
from mdbackmap.mapping.template import Template

SLANT, SLANT_DRAWN = 10.0, 27.0
"""Degrees by which torsions may be off; those of chains have been drawn, and are only kept from
being bent into eclipsed ones when beads pull at them."""


def staggered_bonds(system: System, kinds: set[str], seed: int) -> Staggered:
    """Return one torsion for each such bond of residues of some kinds.

    Bonds in rings are left out. Where both carbons bear nitrogen or an oxygen that is no hydroxyl,
    these two are gauche: in atomistic membranes O12-C11-C12-N of PC, PE and PS, O31-C3-C2-O21 and
    O11-C1-C2-O21 are so to 77-100, 96-100 and 83-99 % (GAFF: 25 % of the last), O-C-C-OH of PG to
    20-46 %. To which side they go where the network's mean of both is anti, is drawn, once for all
    frames.
    """
    found, gauche = [np.zeros((0, 4), dtype=np.int64)], [np.zeros(0, dtype=bool)]
    slant = [np.zeros(0)]
    for number, template in enumerate(system.templates):
        if template.kind in kinds:
            first = np.searchsorted(
                system.atoms.residue, np.flatnonzero(system.residue_template == number)
            )
            rows, own, give = _of_template(template)
            found.append((first[:, None, None] + rows).reshape(-1, 4))
            gauche.append(np.tile(own, len(first)))
            slant.append(np.tile(give, len(first)))
    sides = np.random.default_rng(seed).choice([-1.0, 1.0], sum(map(len, gauche)))
    return Staggered(np.concatenate(found), np.concatenate(slant), sides * np.concatenate(gauche))


@functools.lru_cache(maxsize=512)
def _of_template(template: Template) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    terms = template.constraints
    flat = np.zeros(template.n_atoms, dtype=bool)
    flat[terms.bonds[terms.bond_order > 1]] = True
    flat[terms.volumes[terms.volume < 0.5, 0]] = True
    carbon = (template.elements == "C") & ~flat
    near: list[list[int]] = [[] for _ in range(template.n_atoms)]
    for i, j in terms.bonds.tolist():
        near[i].append(j)
        near[j].append(i)
    number = np.array([len(own) for own in near])
    polar = (template.elements == "N") | ((template.elements == "O") & (number > 1))
    drawn = [set(chain.atoms.tolist()) for chain in chains_of(template)]
    rows, slant = [], []
    for i, j in terms.bonds.tolist():
        ends = [[a for a in near[i] if a != j], [a for a in near[j] if a != i]]
        if (
            carbon[i] and carbon[j] and all(ends) and not _in_ring(i, j, near)
        ):  # fmt: skip
            first, last = (max(own, key=polar.__getitem__) for own in ends)
            rows.append((first, i, j, last))
            slant.append(
                SLANT_DRAWN if any(i in chain and j in chain for chain in drawn) else SLANT
            )
    torsions = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return torsions, polar[torsions[:, 0]] & polar[torsions[:, 3]], np.array(slant)


def _in_ring(first: int, second: int, near: list[list[int]]) -> bool:
    """Whether two bonded atoms are joined in another way as well."""
    reached, edge = {first}, [a for a in near[first] if a != second]
    while edge:
        reached.update(edge)
        edge = [b for a in edge for b in near[a] if b not in reached]
    return second in reached
