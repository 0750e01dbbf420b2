"""Boxes, bonds of beads, and the Ramachandran plot."""

from __future__ import annotations

import numpy as np
import pytest
from mdbackmap.geometry import ramachandran
from mdbackmap.geometry.bead_bonds import as_simulated, bead_pairs, pair_kinds, unlike
from mdbackmap.geometry.boxes import (
    Unwrapper,
    box_from_dimensions,
    heights,
    minimum_image,
    spanning_tree,
)
from mdbackmap.geometry.constraints import Constraints

DODECAHEDRON = (70.0, 70.0, 70.0, 60.0, 60.0, 90.0)
OCTAHEDRON = (70.0, 70.0, 70.0, 70.528779, 109.471221, 70.528779)
BOXES = [(60.0, 70.0, 80.0, 90.0, 90.0, 90.0), DODECAHEDRON, OCTAHEDRON]


# Boxes


@pytest.mark.parametrize("dimensions", BOXES)
def test_box_vectors_have_the_lengths_and_angles_asked_for(dimensions):
    box = box_from_dimensions(np.array(dimensions))
    length = np.linalg.norm(box, axis=1)
    assert length == pytest.approx(dimensions[:3])
    for k, angle in enumerate(dimensions[3:]):
        i, j = (k + 1) % 3, (k + 2) % 3
        cosine = box[i] @ box[j] / length[i] / length[j]
        assert np.degrees(np.arccos(cosine)) == pytest.approx(angle)
    assert np.prod(heights(np.diag([3.0, 4.0, 5.0]))) == pytest.approx(60.0)


@pytest.mark.parametrize("none", [None, np.zeros(6), np.full(6, np.nan)])
def test_what_is_no_box_is_none(none):
    assert box_from_dimensions(none) is None


def test_angles_that_close_to_no_cell_are_refused():
    with pytest.raises(ValueError, match="angles do not fit"):
        box_from_dimensions(np.array([50.0, 50, 50, 30, 30, 120]))


@pytest.mark.parametrize(
    "dimensions", [[50, 50, 0.5, 90, 90, 90], [1e-5] * 3 + [90] * 3, [50, 50, 50, 90, 90, 0.1]]
)
def test_cells_too_thin_are_refused(dimensions):
    with pytest.raises(ValueError, match="is no cell: less than 1 Å between opposite faces"):
        box_from_dimensions(np.array(dimensions, dtype=np.float32))


def test_a_flat_cell_is_refused():
    with pytest.raises(ValueError, match="is no cell"):
        box_from_dimensions(np.array([50.0, 50, 50, 90, 90, 180]))


@pytest.mark.parametrize("dimensions", BOXES)
def test_minimum_image_of_short_vectors_is_exact(dimensions):
    box, rng = box_from_dimensions(np.array(dimensions)), np.random.default_rng(0)
    short = rng.normal(size=(500, 3))
    short *= (rng.uniform(0, 0.499, 500) * heights(box).min() / np.linalg.norm(short, axis=1))[
        :, None
    ]
    shifted = short + rng.integers(-3, 4, (500, 3)) @ box
    assert minimum_image(shifted, box) == pytest.approx(short, abs=1e-9)


@pytest.mark.parametrize("dimensions", BOXES)
def test_unwrapping_undoes_any_shift_but_the_roots(dimensions):
    box, rng = box_from_dimensions(np.array(dimensions)), np.random.default_rng(1)
    n = 400
    # Two chains whose links run back and forth in memory; a third point set stands alone.
    order = rng.permutation(n)
    bonds = np.concatenate([order[:150].repeat(2)[1:-1].reshape(-1, 2),
                            order[150:390].repeat(2)[1:-1].reshape(-1, 2)])  # fmt: skip
    whole = np.zeros((n, 3))
    whole[order] = np.cumsum(rng.normal(0, 3.0, (n, 3)), axis=0)
    parent = spanning_tree(bonds, n)
    broken = whole + rng.integers(-2, 3, (n, 3)) @ box
    found = Unwrapper(parent)(broken, box)
    gap = found - whole
    lattice = gap @ np.linalg.inv(box)
    assert lattice == pytest.approx(np.round(lattice), abs=1e-6)
    for part in (order[:150], order[150:390]):
        assert gap[part] == pytest.approx(np.broadcast_to(gap[part[0]], (len(part), 3)), abs=1e-6)
    roots = parent < 0
    assert roots.sum() == 2 + 10
    assert np.array_equal(found[roots], broken[roots])


def test_unwrapping_without_a_box_or_points_does_nothing():
    points = np.random.default_rng(0).normal(size=(5, 3))
    assert Unwrapper(np.full(5, -1))(points, None) is points
    empty = Unwrapper(np.zeros(0, np.int64))(np.zeros((0, 3)), np.eye(3) * 50)
    assert empty.shape == (0, 3)


def test_a_spanning_tree_has_one_root_per_part_and_uses_only_bonds():
    bonds = np.array([[0, 1], [1, 2], [2, 0], [4, 3], [5, 4]])
    parent = spanning_tree(bonds, 7)
    assert (parent < 0).sum() == 3  # {0 1 2}, {3 4 5}, {6}
    assert parent[6] == -1
    allowed = {frozenset(bond) for bond in bonds.tolist()}
    assert all(frozenset((i, p)) in allowed for i, p in enumerate(parent.tolist()) if p >= 0)
    assert spanning_tree(np.zeros((0, 2), np.int64), 3).tolist() == [-1, -1, -1]


# Bonds of beads


def test_a_difference_must_be_beyond_chance():
    mean, spread = np.full(4, 3.0), np.full(4, 0.3)
    observed = np.array([3.3, 3.3, 3.01, 3.3])
    count = np.array([4, 400, 100_000, 0])  # chance; real; real but tiny; nothing seen
    assert unlike(observed, count, mean, spread).tolist() == [False, True, False, False]
    assert not unlike(observed, count, np.full(4, np.nan), spread).any()


def test_beads_of_a_simulation_are_told_by_their_bonds():
    mapped, simulated = np.array([3.0, 3.0, 3.0, 3.0]), np.array([4.0, 4.0, 2.5, 3.1])
    count, spread = np.array([10.0, 10, 10, 1000]), np.full(4, 0.1)
    # The last kind is nearly the same in both, and has no say.
    for observed, expected in (
        ([3.9, 3.6, 2.7, 3.0], (True, 1.0)), ([3.1, 3.2, 2.9, 3.1], (False, 0.0)),
        ([3.9, 3.2, 2.6, 3.0], (True, 2 / 3)), ([3.9, 3.2, 2.9, 3.1], (False, 1 / 3)),
    ):  # fmt: skip
        found = as_simulated(np.array(observed), count, mapped, spread, simulated)
        assert found == (expected[0], pytest.approx(expected[1]))
    # Without them, the spread of mapped structures decides.
    unknown = np.full(4, np.nan)
    assert as_simulated(mapped + 1, count, mapped, spread, unknown) == (True, 1.0)
    assert as_simulated(mapped, count, mapped, spread, unknown) == (False, 0.0)


def test_pairs_of_beads_are_bonded_or_two_bonds_apart_in_one_residue():
    # Beads 0-1-2 in residue 0 and 3-4 in residue 1, bonded 2-3; one atom each.
    bonds = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    residue = np.array([0, 0, 0, 1, 1])
    pairs, inside = bead_pairs(np.arange(5), bonds, residue)
    order = np.lexsort(pairs.T[::-1])
    pairs, inside = pairs[order], inside[order]
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2], [2, 3], [3, 4]]
    assert inside.tolist() == [True, True, True, False, True]
    # Keys in another order than their letters; two residues of one name.
    words = np.array([2, 1, 0, 4, 3]), residue, list("cbaed"), ["X", "Y"]
    names, kind = pair_kinds(pairs, inside, *words)
    assert names[kind].tolist() == ["X|a|b", "X|a|c", "X|b|c", "|c|d", "Y|d|e"]
    assert names.tolist() == sorted(names.tolist())
    names, kind = pair_kinds(pairs, inside, *words[:3], ["X", "X"])
    assert names[kind].tolist() == ["X|a|b", "X|a|c", "X|b|c", "|c|d", "X|d|e"]
    same = pair_kinds(pairs[[0, 4]], inside[[0, 4]], np.zeros(5, int), residue, "a", ["X", "X"])
    assert (same[0].tolist(), same[1].tolist()) == (["X|a|a"], [0, 0])
    names, kind = pair_kinds(pairs[:0], inside[:0], *words)
    assert len(names) == len(kind) == 0


# Ramachandran plot


@pytest.mark.parametrize(
    ("name", "phi", "psi", "expected"),
    [("ALA", -60, -45, False), ("ALA", -120, 130, False), ("ALA", 60, 40, False),
     ("ALA", 120, -60, True), ("GLY", 60, -120, False), ("ALA", 0, 0, True),
     ("GLY", 0, 0, True), ("PRO", 60, 40, True), ("PRO", -150, 150, True), ("PRO", -65, 145, False),
     ("ILE", 60, 120, True), ("VAL", -65, -40, False), ("ALA", -179.9, 179.9, False),
     ("ALA", 180.0, -180.0, False), ("ALA", np.nan, 0, False)],
)  # fmt: skip
def test_ramachandran_regions(name, phi, psi, expected):
    kind = ramachandran.kind_of(np.array([name]), np.array([False]))
    found = ramachandran.percentile(np.array([phi], float), np.array([psi], float), kind)
    assert (found > ramachandran.ALLOWED).tolist() == [expected]


def test_kinds_of_residues_in_the_ramachandran_plot():
    names = np.array(["ALA", "ILE", "VAL", "SER", "PRO", "GLY", "PRO", "GLY", "VAL"])
    before = np.array([False] * 3 + [True] * 1 + [False] * 2 + [True] * 3)
    assert ramachandran.kind_of(names, before).tolist() == [0, 1, 1, 2, 3, 4, 3, 4, 2]


@pytest.mark.parametrize("contour", [0.9, ramachandran.FAVOURED])
def test_the_way_back_leads_inside_and_is_the_shortest(contour):
    shares, ways = ramachandran.table(), ramachandran.way_back(contour)
    n = shares.shape[1]
    steps = np.round(ways * n / (2 * np.pi)).astype(int)
    kind, phi, psi = np.indices(shares.shape)
    there = shares[kind, (phi + steps[..., 0]) % n, (psi + steps[..., 1]) % n]
    assert (there <= contour).all()
    assert (steps[shares <= contour] == 0).all()
    inside = np.argwhere(shares[0] <= contour)
    for cell in [(36, 36), (60, 10), (0, 40)]:
        gap = np.abs(inside - cell)
        gap = np.minimum(gap, n - gap)
        assert np.hypot(*steps[0][cell]) == pytest.approx(np.hypot(*gap.T).min())


# Constraints


def test_constraints_of_some_atoms_are_those_that_need_no_other():
    index = [np.array([range(k, k + width) for k in range(4)]) for width in (2, 3, 4, 4)]
    value = np.arange(4.0)
    whole = Constraints(index[0], value, value, index[1], value, index[2], value, index[3], value)
    # Atom 1 goes, and the others change places.
    number = np.array([5, -1, 4, 3, 2, 1, 0])
    part = whole.of_atoms(number)
    assert part.bonds.tolist() == [[4, 3], [3, 2]]
    assert part.bond_order.tolist() == part.bond_length.tolist() == [2.0, 3.0]
    assert part.angles.tolist() == [[4, 3, 2], [3, 2, 1]]
    assert part.angle.tolist() == [2.0, 3.0]
    assert part.volumes.tolist() == part.torsions.tolist() == [[4, 3, 2, 1], [3, 2, 1, 0]]
    assert part.volume.tolist() == part.torsion.tolist() == [2.0, 3.0]
    nothing = whole.of_atoms(np.full(7, -1))
    assert all(np.array_equal(getattr(nothing, name), table) and getattr(nothing, name).shape
               == table.shape for name, table in vars(Constraints.none()).items())  # fmt: skip
