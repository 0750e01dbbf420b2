"""Boxes, calibration of beads, and the idealiser on sound and spoilt structures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from mdbackmap.geometry import ramachandran
from mdbackmap.geometry.boxes import (
    Unwrapper,
    box_from_dimensions,
    heights,
    minimum_image,
    spanning_tree,
)
from mdbackmap.geometry.calibration import BeadCalibration, bead_pairs, changes, pair_names
from mdbackmap.geometry.constraints import Backbone, Constraints
from mdbackmap.geometry.idealise import Idealiser
from mdbackmap.mapping.system import System
from mdbackmap.validation import Checker, measures

DODECAHEDRON = (70.0, 70.0, 70.0, 60.0, 60.0, 90.0)
OCTAHEDRON = (70.0, 70.0, 70.0, 70.528779, 109.471221, 70.528779)
BOXES = [(60.0, 70.0, 80.0, 90.0, 90.0, 90.0), DODECAHEDRON, OCTAHEDRON]


def rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q * np.linalg.det(q)


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


# Calibration of beads


def test_calibration_changes_lengths_by_what_it_is_told_and_keeps_fluctuations():
    rng = np.random.default_rng(2)
    pairs = np.array([[0, 1], [1, 2], [3, 4]])
    beads = np.array([[0.0, 0, 0], [3.4, 0, 0], [3.4, 3.0, 0], [20, 0, 0], [24, 0, 0]])
    beads += rng.normal(0, 0.1, beads.shape)
    change = np.array([-1.0, 0.5, 0.0])
    before = np.linalg.norm(beads[pairs[:, 1]] - beads[pairs[:, 0]], axis=1)
    moved = BeadCalibration(pairs, change, np.ones(5))(beads, sweeps=100)
    after = np.linalg.norm(moved[pairs[:, 1]] - moved[pairs[:, 0]], axis=1)
    assert after - before == pytest.approx(change, abs=1e-3)
    assert moved[3:] == pytest.approx(beads[3:], abs=1e-12)


def test_beads_that_hardly_move_leave_the_way_to_others():
    pairs, beads = np.array([[0, 1]]), np.array([[0.0, 0, 0], [4.0, 0, 0]])
    moved = BeadCalibration(pairs, np.array([-1.0]), np.array([0.05, 1.0]))(beads)
    assert abs(moved[0, 0]) < 0.06
    assert abs(moved[1, 0] - 3.0) < 0.06


@pytest.mark.parametrize("change", [np.zeros(1), np.zeros(0)])
def test_nothing_to_change_changes_not_a_bit(change):
    beads = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    pairs = np.array([[0, 1]])[: len(change)]
    assert BeadCalibration(pairs, change, np.ones(2))(beads) is beads


def test_a_difference_must_be_beyond_chance():
    mean, spread = np.full(4, 3.0), np.full(4, 0.3)
    observed = np.array([3.3, 3.3, 3.01, 3.3])
    count = np.array([4, 400, 100_000, 0])  # chance; real; real but tiny; nothing seen
    assert changes(observed, count, mean, spread) == pytest.approx([0, -0.3, 0, 0])
    assert changes(observed, count, np.full(4, np.nan), spread).tolist() == [0, 0, 0, 0]


def test_pairs_of_beads_are_bonded_or_two_bonds_apart_in_one_residue():
    # Beads 0-1-2 in residue 0 and 3-4 in residue 1, bonded 2-3; one atom each.
    bonds = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    residue = np.array([0, 0, 0, 1, 1])
    pairs, inside = bead_pairs(np.arange(5), bonds, residue)
    order = np.lexsort(pairs.T[::-1])
    pairs, inside = pairs[order], inside[order]
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2], [2, 3], [3, 4]]
    assert inside.tolist() == [True, True, True, False, True]
    names = pair_names(pairs, inside, np.array(list("abcde")), np.array(["X", "X", "X", "Y", "Y"]))
    assert names.tolist() == ["X|a|b", "X|a|c", "X|b|c", "|c|d", "Y|d|e"]
    none = pair_names(pairs[:0], inside[:0], np.array(list("abcde")), residue.astype(str))
    assert len(none) == 0


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


# Idealisation


def idealiser(system: System, **options) -> Idealiser:
    return Idealiser(
        system.constraints, system.n_atoms, system.members, system.weights, system.n_beads,
        system.backbone, **options,
    )  # fmt: skip


def mend(system: System, positions: np.ndarray, beads: np.ndarray) -> np.ndarray:
    arrays = (torch.from_numpy(a.astype(np.float32)) for a in (positions, beads))
    return idealiser(system)(*arrays).numpy().astype(np.float64)


def faults(system: System, positions: np.ndarray) -> dict[str, int]:
    """What is wrong, but for contacts and backbone angles, which idealisation does not see to."""
    skipped = ("overlaps", "clashes", "ramachandran")
    counts = Checker(system)(positions).counts
    return {term: c.wrong for term, c in counts.items() if c.wrong and term not in skipped}


def rms(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(((first - second) ** 2).sum(1).mean()))


def about(points: np.ndarray, start: np.ndarray, stop: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate points about the axis from start to stop (Rodrigues)."""
    axis, angle = (stop - start) / np.linalg.norm(stop - start), np.radians(degrees)
    v = points - start
    along = (v @ axis)[:, None] * axis
    return start + along + (v - along) * np.cos(angle) + np.cross(axis, v) * np.sin(angle)


def atoms(system: System, *names: str) -> list[int]:
    """The first atom of each name."""
    return [int(np.flatnonzero(system.atoms.names == name)[0]) for name in names]


def beyond(system: System, start: int, stop: int) -> list[int]:
    """Atoms on the side of ``stop`` of the bond start-stop."""
    bonds, reached, front = system.constraints.bonds, {start, stop}, [stop]
    while front:
        touching = bonds[(bonds == front.pop()).any(axis=1)]
        front += list(set(touching.ravel().tolist()) - reached)
        reached |= set(front)
    return sorted(reached - {start})


@pytest.mark.parametrize("name", ["peptide", "lipid"])
def test_a_sound_structure_is_left_alone(name, request):
    system, positions = request.getfixturevalue(name)
    result = mend(system, positions, system.map_positions(positions))
    assert rms(result, positions) < 0.05
    assert faults(system, result) == {}


@pytest.mark.parametrize("name", ["peptide", "lipid"])
def test_noise_is_taken_out_and_beads_are_kept(name, request):
    system, positions = request.getfixturevalue(name)
    beads, rng = system.map_positions(positions), np.random.default_rng(4)
    for _ in range(10):
        noisy = positions + rng.normal(0, 0.3, positions.shape)
        before, result = faults(system, noisy), mend(system, noisy, beads)
        assert before["bonds"] > len(system.constraints.bonds) / 2
        assert faults(system, result) == {}
        shift = np.linalg.norm(system.map_positions(result) - beads, axis=1)
        assert np.median(shift) < 0.05
        assert shift.max() < 0.25


def test_a_mirror_image_is_turned_to_the_right_hand(peptide):
    system, positions = peptide
    mirrored = positions * [-1, 1, 1]
    assert faults(system, mirrored)["d_residues"] == 11
    result = faults(system, mend(system, mirrored, system.map_positions(mirrored)))
    assert "d_residues" not in result
    assert "stereocentres" not in result
    assert "prochiral" not in result


def test_a_mirrored_stereocentre_is_turned_and_the_rest_stays(lipid):
    system, positions = lipid
    centre, *around = atoms(system, "C2", "C1", "O21", "C3")
    a, b, c = positions[around]
    normal = np.cross(b - a, c - a) / np.linalg.norm(np.cross(b - a, c - a))
    spoilt = positions.copy()
    spoilt[centre] -= 2 * ((spoilt[centre] - a) @ normal) * normal
    assert faults(system, spoilt)["stereocentres"] == 1
    result = mend(system, spoilt, system.map_positions(positions))
    assert faults(system, result) == {}
    assert rms(result, positions) < 0.2


@pytest.mark.parametrize("degrees", [120.0, 150.0, 180.0, -150.0])
@pytest.mark.parametrize("bond", [("C29", "C210"), ("O21", "C21"), ("O31", "C31")])
def test_double_bonds_and_esters_on_the_wrong_side_are_put_right(lipid, bond, degrees):
    system, positions = lipid
    start, stop = atoms(system, *bond)
    tail = beyond(system, start, stop)
    spoilt = positions.copy()
    spoilt[tail] = about(positions[tail], positions[start], positions[stop], degrees)
    assert faults(system, spoilt)["double_bonds"] == 1
    # Once as if the beads said so, and once where they contradict it.
    for beads in (system.map_positions(spoilt), system.map_positions(positions)):
        assert "double_bonds" not in faults(system, mend(system, spoilt, beads))


@pytest.mark.parametrize("inner", ["C29", "C210"])
def test_a_trans_double_bond_between_fixed_ends_comes_back_cis(lipid, inner):
    system, positions = lipid
    first, last, moved = atoms(system, "C28", "C211", inner)
    axis = positions[last] - positions[first]
    axis /= np.linalg.norm(axis)
    spoilt = positions.copy()
    arm = spoilt[moved] - spoilt[first]
    spoilt[moved] -= 2 * (arm - (arm @ axis) * axis)
    assert faults(system, spoilt)["double_bonds"] == 1
    result = mend(system, spoilt, system.map_positions(positions))
    assert faults(system, result) == {}


@pytest.mark.parametrize("twist", [60.0, 110.0, 180.0])
def test_peptides_are_made_trans_unless_they_may_be_cis(peptide, twist):
    system, positions = peptide
    spoilt = positions.copy()
    _, carbon, nitrogen, _ = system.omegas[5]
    chain = beyond(system, carbon, nitrogen)
    spoilt[chain] = about(positions[chain], positions[carbon], positions[nitrogen], twist)
    beads = system.map_positions(spoilt)
    result = faults(system, mend(system, spoilt, beads))
    assert not {"cis_peptides", "twisted_peptides"} & set(result)

    system = dataclasses.replace(system, omega_may_be_cis=np.arange(len(system.omegas)) == 5)
    omega = measures.torsions(mend(system, spoilt, beads), system.omegas)
    assert abs(omega[5]) == pytest.approx(0.0 if twist > 90 else 180.0, abs=30)


@pytest.mark.parametrize("name", ["peptide", "lipid"])
def test_no_noise_makes_a_right_hand_left(name, request):
    system, positions = request.getfixturevalue(name)
    beads, rng = system.map_positions(positions), np.random.default_rng(5)
    inverted = 0
    for _ in range(20):
        noisy = positions + rng.normal(0, 0.7, positions.shape)
        inverted += faults(system, noisy).get("stereocentres", 0)
        result = faults(system, mend(system, noisy, beads))
        assert not {"stereocentres", "d_residues", "double_bonds", "planar"} & set(result)
    assert inverted > 0


def test_idealising_turns_and_moves_with_its_input(peptide):
    system, positions = peptide
    noisy = positions + np.random.default_rng(1).normal(0, 0.3, positions.shape)
    beads, turn, move = system.map_positions(positions), rotation(0), np.array([3.0, -20, 11])
    one = mend(system, noisy, beads) @ turn.T + move
    other = mend(system, noisy @ turn.T + move, beads @ turn.T + move)
    assert other == pytest.approx(one, abs=2e-3)


def test_idealising_is_deterministic_and_leaves_its_input_alone(peptide):
    system, positions = peptide
    start = torch.from_numpy(positions.astype(np.float32)) + 0.1
    copy, beads = start.clone(), torch.from_numpy(system.map_positions(positions)).float()
    mender = idealiser(system)
    results = [mender(start.requires_grad_(), beads) for _ in range(3)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(start, copy)
    assert not results[0].requires_grad


@pytest.mark.parametrize("place", ["one point", "far away"])
def test_hopeless_input_stays_finite(peptide, place):
    system, positions = peptide
    start = np.zeros_like(positions) if place == "one point" else positions * 1e4
    assert np.isfinite(mend(system, start, system.map_positions(positions))).all()


def test_no_constraints_at_all_only_keep_the_beads():
    none = Constraints.none()
    members = np.array([[0, 0], [0, 1], [1, 2]])
    mender = Idealiser(none, 3, members, np.array([0.5, 0.5, 1.0]), 2, Backbone.none())
    beads = torch.tensor([[0.0, 0, 0], [5, 0, 0]])
    start = torch.tensor([[1.0, 0, 0], [2, 0, 0], [5, 1, 0]])
    result = mender(start, beads)
    assert result[0] - result[1] == pytest.approx(start[0] - start[1], abs=1e-5)
    assert (result[:2].mean(0) - beads[0]).norm() < 0.2
    assert (result[2] - beads[1]).norm() < 0.2


def test_a_molecule_without_angles_or_torsions_gets_its_bond_length():
    pair = dataclasses.replace(
        Constraints.none(), bonds=np.array([[0, 1]]), bond_length=np.array([1.5]),
        bond_order=np.ones(1),
    )  # fmt: skip
    mender = Idealiser(pair, 2, np.array([[0, 0], [0, 1]]), np.full(2, 0.5), 1, Backbone.none())
    result = mender(torch.tensor([[0.0, 0, 0], [2.5, 0, 0]]), torch.tensor([[1.25, 0, 0]]))
    assert (result[1] - result[0]).norm() == pytest.approx(1.5, abs=1e-3)
    assert result.mean(0) == pytest.approx([1.25, 0, 0], abs=1e-3)
