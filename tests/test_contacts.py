"""Which close pairs are contacts, and how close they may come."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from mdbackmap.geometry.boxes import box_from_dimensions
from mdbackmap.geometry.constraints import Constraints
from mdbackmap.geometry.contacts import OTHER, POLAR, REACH, ContactRules
from mdbackmap.graph.neighbours import close_pairs

TRICLINIC = (12.0, 14.0, 13.0, 75.0, 80.0, 65.0)
"""Smaller than the twelve residues of ``peptide``, which then touch their images."""


def bonded(*bonds: tuple[int, int]) -> Constraints:
    index = np.array(bonds, dtype=np.int64).reshape(-1, 2)
    ones = np.ones(len(index))
    return dataclasses.replace(
        Constraints.none(), bonds=index, bond_order=ones, bond_length=1.5 * ones
    )


def kept(rules: ContactRules, n: int) -> set[tuple[int, int]]:
    """Of all pairs of atoms, those that are contacts."""
    first, second = np.triu_indices(n, 1)
    found = rules(first, second, np.zeros((len(first), 3), np.float32))
    return set(zip(found.first.tolist(), found.second.tolist(), strict=True))


def more_than_three_apart(bonds: np.ndarray, n: int) -> np.ndarray:
    """Which atoms four bonds or more, or nothing at all, lie between; shape (n, n)."""
    step = np.eye(n, dtype=int)
    step[bonds[:, 0], bonds[:, 1]] = step[bonds[:, 1], bonds[:, 0]] = 1
    return np.linalg.matrix_power(step, 3) == 0


@pytest.mark.parametrize("numbering", [range(7), [3, 6, 0, 5, 1, 4, 2]])
def test_three_bonds_apart_is_left_out_and_four_is_kept(numbering):
    chain = list(numbering)
    rules = ContactRules(bonded(*itertools.pairwise(chain)), np.full(7, "C"))
    far = [(chain[i], chain[j]) for i in range(7) for j in range(i + 4, 7)]
    assert kept(rules, 7) == {(min(pair), max(pair)) for pair in far}


def test_the_shorter_way_round_a_ring_counts():
    ring = [(k, (k + 1) % 9) for k in range(9)]
    rules = ContactRules(bonded(*ring), np.full(9, "C"))
    far = {(i, j) for i, j in itertools.combinations(range(9), 2) if 4 <= j - i <= 5}
    assert kept(rules, 9) == far


@pytest.mark.parametrize("name", ["peptide", "lipid", "insulin"])
def test_bonds_of_whole_molecules_are_followed(name, request):
    found = request.getfixturevalue("insulin_system" if name == "insulin" else name)
    system = found if name == "insulin" else found[0]
    apart = more_than_three_apart(system.constraints.bonds, system.n_atoms)
    wanted = zip(*np.nonzero(np.triu(apart, 1)), strict=True)
    assert kept(ContactRules(system.constraints, system.atoms.elements), system.n_atoms) == {
        (int(i), int(j)) for i, j in wanted
    }


def test_without_bonds_every_pair_is_a_contact():
    assert len(kept(ContactRules(Constraints.none(), np.full(4, "C")), 4)) == 6
    # Atoms at the end of the numbering may be bonded to nothing.
    assert len(kept(ContactRules(bonded((0, 1)), np.full(4, "C")), 4)) == 5
    none = ContactRules(Constraints.none(), np.zeros(0, "U2"))
    assert len(none(*close_pairs(np.zeros((0, 3)), None, REACH)).first) == 0


def test_only_nitrogen_and_oxygen_may_form_hydrogen_bonds():
    elements = np.array(["N", "O", "C", "S", "P"])
    first, second = np.triu_indices(5)
    found = ContactRules(Constraints.none(), elements)(first, second, np.zeros((15, 3)))
    limits = {
        frozenset(elements[[i, j]].tolist()): float(limit)
        for i, j, limit in zip(found.first, found.second, found.nearest, strict=True)
    }
    polar = {frozenset("N"), frozenset("O"), frozenset("NO")}
    assert {pair for pair, limit in limits.items() if limit == np.float32(POLAR)} == polar
    assert {limits[pair] for pair in set(limits) - polar} == {np.float32(OTHER)}
    assert POLAR < OTHER < REACH


@pytest.mark.parametrize("dimensions", [None, TRICLINIC])
def test_contacts_of_a_structure_are_those_of_brute_force(peptide, dimensions):
    system, positions = peptide
    box = None if dimensions is None else box_from_dimensions(np.array(dimensions))
    rng = np.random.default_rng(0)
    positions = positions + rng.normal(0, 0.5, positions.shape)
    shifts = np.zeros((1, 3))
    if box is not None:
        shifts = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=3))) @ box
    apart = more_than_three_apart(system.constraints.bonds, system.n_atoms)
    wanted = []
    for i, j in itertools.combinations(range(system.n_atoms), 2):
        gaps = positions[j] - positions[i] + shifts
        near = gaps[np.linalg.norm(gaps, axis=1) <= REACH]
        wanted += [(i, j, *gap) for gap in near.tolist() if apart[i, j]]
    rules = ContactRules(system.constraints, system.atoms.elements)
    found = rules(*close_pairs(positions, box, REACH))
    assert len(wanted) > 30
    rows = np.column_stack([found.first, found.second, found.vectors]).astype(float)
    wanted = np.array(wanted)
    rows, wanted = (r[np.lexsort((*np.round(r[:, 2:], 2).T, r[:, 1], r[:, 0]))]
                    for r in (rows, wanted))  # fmt: skip
    assert rows == pytest.approx(wanted, abs=1e-4)
    polar = np.isin(system.atoms.elements, ("N", "O"))
    both = polar[found.first] & polar[found.second]
    assert (found.nearest == np.where(both, np.float32(POLAR), np.float32(OTHER))).all()
