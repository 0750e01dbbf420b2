"""Molecules of one kind, so that what a force field says of one is said of all its copies."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from mdbackmap.structure import AtomTable


@dataclass(frozen=True, eq=False)
class Kind:
    """Molecules that differ in nothing but place and residue numbers.

    Attributes
    ----------
    atoms : ndarray, shape=(n_copies, n_atoms), int64
        Place of every atom of every copy in the atom table.
    bonds : ndarray, shape=(m, 2), int64
        Of one copy, counted from its first atom.
    residue : ndarray, shape=(n_atoms,), int64
        Residue of each atom of one copy, from 0.
    """

    atoms: np.ndarray
    bonds: np.ndarray
    residue: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """Atoms of the first copy, shape (n_atoms,)."""
        return self.atoms[0]

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """First atom of every residue of one copy."""
        return np.flatnonzero(np.diff(self.residue, prepend=-1))


def find_kinds(atoms: AtomTable) -> list[Kind]:
    """Sort the molecules of an atom table by kind, in order of first appearance.

    A molecule is what bonds hold together; two are of one kind where names, elements, residue
    names and bonds agree.
    """
    n, bonds = len(atoms), np.sort(atoms.bonds, axis=1)
    graph = sparse.csr_matrix((np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1])), shape=(n, n))
    n_molecules, part = csgraph.connected_components(graph, directed=False)
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[order], np.arange(n_molecules + 1))
    local = np.empty(n, dtype=np.int64)
    local[order] = np.arange(n) - np.repeat(bounds[:-1], np.diff(bounds))
    within = local[bonds]
    bond_part = part[bonds[:, 0]] if len(bonds) else np.zeros(0, dtype=np.int64)
    bond_order = np.lexsort((within[:, 1], within[:, 0], bond_part))
    within = np.ascontiguousarray(within[bond_order])
    bond_bounds = np.searchsorted(bond_part[bond_order], np.arange(n_molecules + 1))

    change = np.diff(atoms.residue[order], prepend=-1) != 0
    change[bounds[:-1]] = True
    residue = np.cumsum(change)
    residue -= residue[bounds[part[order]]]
    columns = [np.unique(c, return_inverse=True)[1]
               for c in (atoms.names, atoms.elements, atoms.resnames)]  # fmt: skip
    code = np.ascontiguousarray(
        np.stack([*(c[order] for c in columns), residue], axis=1).astype(np.int32)
    )
    groups: dict[tuple[bytes, bytes], list[int]] = {}
    for k in range(n_molecules):
        rows, links = slice(*bounds[k : k + 2]), slice(*bond_bounds[k : k + 2])
        groups.setdefault((code[rows].tobytes(), within[links].tobytes()), []).append(k)
    kinds = []
    for members in groups.values():
        k = members[0]
        places = np.stack([order[slice(*bounds[m : m + 2])] for m in members])
        kinds.append(Kind(places, within[slice(*bond_bounds[k : k + 2])],
                          residue[slice(*bounds[k : k + 2])]))  # fmt: skip
    return sorted(kinds, key=lambda kind: int(kind.atoms[0, 0]))
