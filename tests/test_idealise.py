"""The idealiser on sound and spoilt structures, alone, in blocks, and among neighbours."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from mdbackmap.geometry import idealise, ramachandran
from mdbackmap.geometry.constraints import Backbone, Constraints
from mdbackmap.geometry.contacts import REACH, ContactRules, Contacts
from mdbackmap.geometry.idealise import (
    Idealiser,
    Staggered,
    SystemIdealiser,
    kept_apart,
)
from mdbackmap.geometry.sweeps import LANES, Apart
from mdbackmap.graph.neighbours import close_pairs
from mdbackmap.mapping.staggered import SLANT, SLANT_DRAWN, staggered_bonds
from mdbackmap.mapping.system import System
from mdbackmap.validation import Checker, measures
from scipy.spatial.transform import Rotation


def parts(system: System) -> tuple:
    """What both kinds of idealiser are made from."""
    return (system.constraints, system.n_atoms, system.members, system.weights, system.n_beads,
            system.backbone)  # fmt: skip


def mend_all(system: System, positions: np.ndarray, beads: np.ndarray, **options) -> np.ndarray:
    """The same, molecule by molecule."""
    (result,) = SystemIdealiser(*parts(system), **options)(positions[None], beads[None])
    return result.astype(np.float64)


def mend(system: System, positions: np.ndarray, beads: np.ndarray, **options) -> np.ndarray:
    mender = Idealiser(*parts(system), **options)
    return mender(positions, beads).astype(np.float64)


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


def turned(system: System, positions: np.ndarray, start: int, stop: int, degrees: float):
    """Positions with all beyond the bond start-stop rotated about it."""
    tail, spoilt = beyond(system, start, stop), positions.copy()
    spoilt[tail] = about(positions[tail], positions[start], positions[stop], degrees)
    return spoilt


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
    spoilt = turned(system, positions, *atoms(system, *bond), degrees)
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
    spoilt = turned(system, positions, *system.omegas[5, 1:3], twist)
    beads = system.map_positions(spoilt)
    result = faults(system, mend(system, spoilt, beads))
    assert not {"cis_peptides", "twisted_peptides"} & set(result)

    system = dataclasses.replace(system, omega_may_be_cis=np.arange(len(system.omegas)) == 5)
    omega = measures.torsions(mend(system, spoilt, beads), system.omegas)
    assert abs(omega[5]) == pytest.approx(0.0 if twist > 90 else 180.0, abs=30)


@pytest.mark.parametrize("start", [180.0, 0.0])
def test_peptides_settled_to_be_cis_become_cis_whatever_is_predicted(peptide, start):
    system, positions = peptide
    which = np.arange(len(system.omegas)) == 5
    twist = 0.0 if start else 180.0
    spoilt = turned(system, positions, *system.omegas[5, 1:3], twist)
    beads = system.map_positions(turned(system, positions, *system.omegas[5, 1:3], 180.0))
    for cis in (True, False):
        settled = dataclasses.replace(
            system.backbone, cis=which & cis, may_be_cis=np.zeros_like(which)
        )
        mender = Idealiser(*parts(system)[:-1], settled)
        omega = measures.torsions(mender(spoilt, beads), system.omegas)
        assert abs(omega[5]) == pytest.approx(0.0 if cis else 180.0, abs=30)
        assert np.abs(omega[~which]).min() > 150


@pytest.mark.parametrize("which", [3, 5, 8])
def test_more_rounds_are_taken_where_one_makes_no_peptide_trans(peptide, which, monkeypatch):
    system, positions = peptide
    spoilt = turned(system, positions, *system.omegas[which, 1:3], 180.0)
    results = []
    for rounds in (idealise.ROUNDS, 1):
        monkeypatch.setattr(idealise, "ROUNDS", rounds)
        results.append([mend(system, p, system.map_positions(p)) for p in (spoilt, positions)])
    (mended, sound), (once, sound_once) = results
    assert "twisted_peptides" in faults(system, once)
    assert not {"twisted_peptides", "cis_peptides"} & set(faults(system, mended))
    assert np.array_equal(sound, sound_once), "one round is enough"


# Backbone angles


WITHIN = 0.95
"""A contour well within what is allowed."""


def shares(system: System, positions: np.ndarray) -> np.ndarray:
    """Where every residue lies in the Ramachandran plot, from 0, crowded, to 1, empty."""
    rows = system.backbone.phi_psi
    return ramachandran.percentile(
        measures.torsions(positions, rows[:, :4]), measures.torsions(positions, rows[:, 1:]),
        system.backbone.kind,
    )  # fmt: skip


def with_bad(system: System, positions: np.ndarray, row: int, angle: str, degrees: float):
    """Positions with phi or psi of one residue turned."""
    nitrogen, alpha, carbon = system.backbone.phi_psi[row, 1:4]
    axis = (nitrogen, alpha) if angle == "phi" else (alpha, carbon)
    return turned(system, positions, *axis, degrees)


@pytest.mark.parametrize(
    ("row", "angle", "degrees"),
    [(0, "phi", 90), (1, "phi", 90), (1, "phi", -90), (2, "phi", -90), (3, "phi", -90),
     (4, "phi", 90), (4, "phi", -90), (7, "phi", -90), (9, "phi", 90), (1, "psi", 90),
     (6, "psi", -90)],
)  # fmt: skip
def test_backbone_angles_no_protein_has_are_turned_back(peptide, row, angle, degrees):
    system, positions = peptide
    spoilt = with_bad(system, positions, row, angle, degrees)
    assert shares(system, spoilt)[row] > 0.999
    # As if the beads said so.
    beads = system.map_positions(spoilt)
    result = mend(system, spoilt, beads, contour=WITHIN)
    assert shares(system, result).max() < ramachandran.ALLOWED
    assert not {"bonds", "d_residues", "cis_peptides"} & set(faults(system, result))
    # By default no further than to the edge of what is allowed.
    little = shares(system, mend(system, spoilt, beads))
    assert shares(system, result)[row] < little[row] < shares(system, spoilt)[row]


def test_few_of_many_backbone_angles_stay_where_no_protein_has_them(peptide):
    system, positions = peptide
    before = after = 0
    for row in range(len(system.backbone.kind)):
        for angle in ("phi", "psi"):
            for degrees in (90, 150, -90):
                spoilt = with_bad(system, positions, row, angle, degrees)
                result = mend(system, spoilt, system.map_positions(spoilt), contour=WITHIN)
                before += (shares(system, spoilt) > ramachandran.ALLOWED).sum()
                after += (shares(system, result) > ramachandran.ALLOWED).sum()
    assert before > 20
    assert after < 0.2 * before


def test_backbone_angles_that_proteins_have_are_not_touched(crowd):
    system, positions = crowd
    beads = system.map_positions(positions)
    assert shares(system, positions).max() < WITHIN
    without = dataclasses.replace(
        system.backbone, phi_psi=system.backbone.phi_psi[:0], kind=system.backbone.kind[:0]
    )
    free = Idealiser(*parts(system)[:-1], without)(positions, beads)
    assert mend(system, positions, beads, contour=WITHIN) == pytest.approx(free, abs=1e-4)
    # The trouble of one chain is none of another's.
    spoilt = with_bad(system, positions, 1, "phi", 90)
    result = mend(system, spoilt, system.map_positions(spoilt), contour=WITHIN)
    other = system.atoms.residue > 11
    assert result[other] == pytest.approx(free[other], abs=1e-4)
    assert not np.allclose(result[~other], free[~other], atol=0.5)


def test_a_part_of_a_backbone_counts_from_its_start(crowd):
    system, _ = crowd
    residue = system.atoms.residue
    whole = dataclasses.replace(system.backbone, kind=np.arange(20))
    start, stop = np.flatnonzero((residue >= 13) & (residue <= 24))[[0, -1]] + [0, 1]
    omega, row = residue[whole.omegas[:, 0]], residue[whole.phi_psi[:, 2]]
    marked = dataclasses.replace(whole, cis=omega == 14, may_be_cis=omega == 15)
    second = marked.within(start, stop)
    assert np.array_equal(second.omegas + start, whole.omegas[omega >= 13])
    assert np.array_equal(second.phi_psi + start, whole.phi_psi[row >= 13])
    assert np.array_equal(second.kind, whole.kind[row >= 13])
    assert (len(second.omegas), len(second.kind)) == (11, 10)
    for found, number in ((second.cis, 14), (second.may_be_cis, 15)):
        assert residue[second.omegas[found, 0] + start].tolist() == [number]
    nothing = whole.within(stop, system.n_atoms)
    assert [len(column) for column in vars(nothing).values()] == [0] * 5


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
    beads, move = system.map_positions(positions), np.array([3.0, -20, 11])
    turn = Rotation.random(None, 0).as_matrix()
    one = mend(system, noisy, beads) @ turn.T + move
    other = mend(system, noisy @ turn.T + move, beads @ turn.T + move)
    assert other == pytest.approx(one, abs=2e-3)


def test_idealising_is_deterministic_and_leaves_its_input_alone(peptide):
    system, positions = peptide
    start = positions.astype(np.float32) + 0.1
    copy, beads = start.copy(), system.map_positions(positions)
    mender = Idealiser(*parts(system))
    results = [mender(start, beads) for _ in range(3)]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    assert np.array_equal(start, copy)


def test_many_molecules_come_out_as_each_would_alone(lipid):
    system, positions = lipid
    rng, many = np.random.default_rng(6), LANES + 3
    noisy = positions + rng.normal(0, 0.4, (many, *positions.shape))
    # Some need more rounds than others.
    noisy[4] *= [-1, 1, 1]
    beads = np.stack([system.map_positions(one) for one in noisy])
    mender = Idealiser(*parts(system))
    together = mender(noisy, beads)
    assert together.shape == noisy.shape
    for one, points, targets in zip(together, noisy, beads, strict=True):
        assert np.array_equal(one, mender(points, targets))


@pytest.mark.parametrize("place", ["one point", "far away"])
def test_hopeless_input_stays_finite(peptide, place):
    system, positions = peptide
    start = np.zeros_like(positions) if place == "one point" else positions * 1e4
    assert np.isfinite(mend(system, start, system.map_positions(positions))).all()


def test_no_constraints_at_all_only_keep_the_beads():
    none = Constraints.none()
    members = np.array([[0, 0], [0, 1], [1, 2]])
    mender = Idealiser(none, 3, members, np.array([0.5, 0.5, 1.0]), 2, Backbone.none())
    beads = np.array([[0.0, 0, 0], [5, 0, 0]])
    start = np.array([[1.0, 0, 0], [2, 0, 0], [5, 1, 0]])
    result = mender(start, beads)
    assert result[0] - result[1] == pytest.approx(start[0] - start[1], abs=1e-5)
    assert np.linalg.norm(result[:2].mean(0) - beads[0]) < 0.2
    assert np.linalg.norm(result[2] - beads[1]) < 0.2


def test_a_molecule_without_angles_or_torsions_gets_its_bond_length():
    pair = dataclasses.replace(
        Constraints.none(), bonds=np.array([[0, 1]]), bond_length=np.array([1.5]),
        bond_order=np.ones(1),
    )  # fmt: skip
    mender = Idealiser(pair, 2, np.array([[0, 0], [0, 1]]), np.full(2, 0.5), 1, Backbone.none())
    result = mender(np.array([[0.0, 0, 0], [2.5, 0, 0]]), np.array([[1.25, 0, 0]]))
    assert np.linalg.norm(result[1] - result[0]) == pytest.approx(1.5, abs=1e-3)
    assert result.mean(0) == pytest.approx([1.25, 0, 0], abs=1e-3)


# Staggered bonds


def bonds_named(system: System, torsions: np.ndarray) -> dict[str, str]:
    """Bonds by name, and the outer atoms of their torsions."""
    names = system.atoms.names
    rows = [[names[a] for a in row] for row in torsions.tolist()]
    rows = [row if row[1] < row[2] else row[::-1] for row in rows]
    return {f"{row[1]}-{row[2]}": f"{row[0]} {row[3]}" for row in rows}


def angles_of(positions: np.ndarray, torsions: np.ndarray) -> np.ndarray:
    return measures.torsions(positions, torsions) % 360


def test_bonds_of_saturated_carbons_outside_rings_are_staggered(lipid, crowd):
    system, _ = lipid
    found = staggered_bonds(system, {"lipid"}, 0)
    # Where both carbons bear nitrogen or an oxygen that is no hydroxyl, these are the ends.
    strict = found.slant == SLANT
    assert bonds_named(system, found.torsions[strict]) == {
        "C11-C12": "O12 N", "C1-C2": "O11 O21", "C2-C3": "O21 O31"
    }  # fmt: skip
    assert set(np.abs(found.gauche[strict])) == {1.0}
    # Those of chains are free to be as they were drawn; oleoyl's about and at the end of C=C are
    # left out, and those at the ends of chains.
    tails = bonds_named(system, found.torsions[~strict])
    assert {"C22-C23", "C27-C28", "C211-C212", "C32-C33"} <= set(tails)
    assert not {"C28-C29", "C210-C29", "C210-C211", "C21-C22"} & set(tails)
    assert not found.gauche[~strict].any()
    assert set(found.slant) == {SLANT, SLANT_DRAWN}
    many, _ = crowd
    found = staggered_bonds(many, {"lipid"}, 0)
    assert (many.residue_kinds[many.atoms.residue[found.torsions]] == "lipid").all()
    assert (found.slant == SLANT).sum() == 3 * (many.residue_kinds == "lipid").sum()
    assert not len(staggered_bonds(system, {"protein"}, 0).torsions)
    side_chains = bonds_named(many, staggered_bonds(many, {"protein"}, 0).torsions)
    assert "CB-CG" in side_chains
    assert not {"C-CA", "CD1-CG"} & set(side_chains)


def test_sides_are_drawn_evenly_and_again_by_the_same_seed(membrane_system):
    one, again, other = (staggered_bonds(membrane_system, {"lipid"}, s).gauche for s in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    drawn = one[one != 0]
    assert abs(drawn.mean()) < 4 / np.sqrt(len(drawn))


@pytest.mark.parametrize("eclipsed", [128, 232])
def test_eclipsed_carbons_are_staggered(lipid, eclipsed):
    system, positions = lipid
    found = staggered_bonds(system, {"lipid"}, 0)
    torsions = found.torsions[found.slant == SLANT]
    staggered = Staggered(torsions, np.full(len(torsions), SLANT), np.zeros(len(torsions)))
    names = system.atoms.names.tolist()
    head = (np.isin(torsions[:, 1:3], [names.index("C11"), names.index("C12")])).all(1)
    turn = eclipsed - angles_of(positions, torsions[head])[0]
    spoilt = turned(system, positions, names.index("C11"), names.index("C12"), turn)
    assert angles_of(spoilt, torsions[head]) == pytest.approx(eclipsed, abs=1)
    beads = system.map_positions(spoilt)
    left = mend(system, spoilt, beads)
    result = mend(system, spoilt, beads, staggered=staggered)
    assert np.array_equal(mend_all(system, spoilt, beads, staggered=staggered), result)
    off, before = (np.abs(angles_of(x, torsions) % 120 - 60) for x in (result, left))
    assert off[head] < before[head] - 20
    assert off.max() < before.max()
    assert not faults(system, result)
    assert rms(system.map_positions(result), beads) < 0.35


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_an_anti_head_goes_to_the_side_that_was_drawn(lipid, side):
    system, positions = lipid
    names = system.atoms.names.tolist()
    torsion = np.array([[names.index(n) for n in ("O12", "C11", "C12", "N")]])
    turn = 180 - angles_of(positions, torsion)[0]
    anti = turned(system, positions, names.index("C11"), names.index("C12"), turn)
    assert np.cos(np.radians(angles_of(anti, torsion)[0])) < -0.99
    work = Idealiser(
        *parts(system),
        rounds=2,
        staggered=Staggered(torsion, np.array([SLANT]), np.array([side])),
    )
    result = work(anti, system.map_positions(anti))
    assert abs(angles_of(result, torsion)[0] - side * 60 % 360) < 50
    # Each of many molecules has a side of its own.
    other = work(np.stack([anti] * 2), np.stack([system.map_positions(anti)] * 2),
                 gauche=np.array([[-side], [side]]))  # fmt: skip
    assert abs(angles_of(other[0], torsion)[0] + side * 60 - 360 * (side > 0)) < 50
    assert np.array_equal(other[1], result)
    free = Idealiser(*parts(system), staggered=Staggered(torsion, np.array([SLANT]), np.zeros(1)))
    kept = free(anti, system.map_positions(anti))
    assert abs(angles_of(kept, torsion)[0] - 180) < 15


# Contacts


def loose(n: int) -> Idealiser:
    """Atoms that nothing holds but one bead each."""
    members = np.column_stack([np.arange(n)] * 2)
    return Idealiser(Constraints.none(), n, members, np.ones(n), n, Backbone.none(), hold=0.0)


def pair(first: int, second: int, nearest: float, still=None, n: int = 9) -> Apart:
    return kept_apart(LANES, np.array([[first, second]]), np.array([nearest]), still, n)


def test_atoms_too_close_are_pushed_apart_and_others_left():
    start = np.array([[0.0, 0, 0], [1, 0, 0], [0, 0, 5]])
    result = loose(3)(start, start, pair(0, 1, 2.9))
    assert np.linalg.norm(result[1] - result[0]) == pytest.approx(2.9, abs=1e-3)
    assert result[:2].mean(0) == pytest.approx(start[:2].mean(0), abs=1e-4)
    assert np.array_equal(result[2], start[2])
    far = np.array([[0.0, 0, 0], [3, 0, 0], [0, 0, 5]])
    assert np.array_equal(loose(3)(far, far, pair(0, 1, 2.9)), far)


def test_points_that_stand_still_push_and_are_not_part_of_the_answer():
    start = np.array([[0.0, 0, 0], [9, 0, 0]])
    still = np.array([[0.0, 1, 0], [9, 0, 4]])
    result = loose(2)(start, start, pair(0, 2, 2.6, still, 2))
    assert result.shape == (2, 3)
    # Momentum may carry it a little further than it must go.
    assert result[0, [0, 2]].tolist() == [0, 0]
    assert 2.6 - 1e-3 < 1 - result[0, 1] < 2.9
    assert np.array_equal(result[1], start[1])
    assert np.array_equal(still, np.array([[0.0, 1, 0], [9, 0, 4]]))


def contacts(system: System, positions: np.ndarray, box: np.ndarray | None = None) -> Contacts:
    rules = ContactRules(system.constraints, system.atoms.elements)
    return rules(*close_pairs(positions, box, REACH))


def mend_apart(system: System, positions: np.ndarray, box=None, **options) -> np.ndarray:
    """Idealise molecule by molecule, with the contacts of the given positions."""
    work = SystemIdealiser(*parts(system), **options)
    beads, near = system.map_positions(positions), contacts(system, positions, box)
    return work(positions[None], beads[None], [near])[0].astype(np.float64)


def closest(system: System, positions: np.ndarray, box: np.ndarray | None = None) -> float:
    """Distance of the closest two atoms that are not bonded to one another, Å."""
    return float(np.linalg.norm(contacts(system, positions, box).vectors, axis=1).min())


BOX = np.array([[150.0, 0, 0], [20, 160, 0], [-15, 25, 170]])
SECOND, FOURTH = 12, 25
"""Residues of ``crowd`` that are lipids."""


def overlapping(crowd, image: tuple[int, int, int] = (0, 0, 0)) -> tuple[System, np.ndarray]:
    """A crowd whose second lipid lies in an image of the first, 3.5 Å beside it."""
    system, positions = crowd
    one, other = (system.atoms.residue == k for k in (SECOND, FOURTH))
    moved = positions.copy()
    moved[other] = positions[one] + [2.5, 2.5, 0] + np.array(image) @ BOX
    return system, moved


@pytest.mark.parametrize("image", [(0, 0, 0), (1, 0, 0), (-1, 1, 2)])
@pytest.mark.parametrize("rounds", [1, 3])
def test_molecules_that_overlap_are_pushed_apart_and_stay_sound(crowd, rounds, image):
    system, positions = overlapping(crowd, image)
    assert closest(system, positions, BOX) < 1.2
    result = mend_apart(system, positions, BOX, rounds=rounds)
    assert closest(system, result, BOX) > 2.4
    assert set(faults(system, result)) <= {"angles"}
    assert np.linalg.norm(result - positions, axis=1).max() < 2.5
    # Nobody told: nothing is done about it.
    alone = mend_all(system, positions, system.map_positions(positions))
    assert closest(system, alone, BOX) < 1.5


def test_a_molecule_is_pushed_by_an_image_of_itself(lipid):
    system, positions = lipid
    box = np.diag([8.0, 90, 90])
    assert closest(system, positions, box) < 2.4
    result = mend_apart(system, positions, box)
    assert closest(system, result, box) > closest(system, positions, box) + 0.2
    assert "bonds" not in faults(system, result)


def test_it_is_all_one_whether_the_next_molecule_or_an_image_is_in_the_way(crowd):
    system, positions = overlapping(crowd)
    beside = mend_apart(system, positions)
    _, far = overlapping(crowd, (1, -1, 1))
    shift = far - positions
    assert np.abs(shift).max() > 100
    assert mend_apart(system, far, BOX) - shift == pytest.approx(beside, abs=2e-3)


# Molecules of a system


@pytest.mark.parametrize("near", [True, False])
def test_molecules_of_a_system_come_out_as_if_it_were_one(crowd, near):
    system, positions = crowd
    noisy = positions + np.random.default_rng(2).normal(0, 0.3, positions.shape)
    beads, given = system.map_positions(positions), contacts(system, noisy)
    ends = np.stack([given.first, given.second], axis=1)
    whole = Idealiser(*parts(system))(
        noisy, beads, kept_apart(LANES, ends, given.nearest, None, system.n_atoms) if near else None
    )
    work = SystemIdealiser(*parts(system))
    assert len(work.kinds) > 1
    (result,) = work(noisy[None], beads[None], [given] if near else [])
    assert result == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize("piece", [1, 2, 100])
@pytest.mark.parametrize("many", [0, 1000])
def test_threads_may_share_the_work_in_any_way(lipids, piece, many, monkeypatch):
    monkeypatch.setattr(idealise, "MANY", many)
    system, positions = lipids
    beads, near = system.map_positions(positions)[None], contacts(system, positions)
    assert len(near.first) > 100
    results = []
    for given in (8, piece):
        work = SystemIdealiser(*parts(system), piece=given)
        assert [len(kind.atoms) for kind in work.kinds] == [19]
        results.append(work(positions[None], beads, [near]))
    assert np.array_equal(*results)


@pytest.mark.parametrize("name", ["crowd", "peptide", "lipids"])
def test_frames_come_out_as_each_would_alone(name, request):
    system, positions = request.getfixturevalue(name)
    rng = np.random.default_rng(3)
    frames = positions + rng.normal(0, 0.3, (2 * LANES + 1, *positions.shape))
    beads = np.stack([system.map_positions(one) for one in frames])
    near = [contacts(system, one) for one in frames]
    work = SystemIdealiser(*parts(system))
    together = work(frames, beads, near)
    for k in (0, 1, LANES, 2 * LANES):
        alone = work(frames[k : k + 1], beads[k : k + 1], near[k : k + 1])
        assert np.array_equal(alone[0], together[k])


def test_a_molecule_that_needs_more_rounds_leaves_the_others_as_they_are(crowd):
    system, positions = crowd
    (which,) = np.flatnonzero(system.atoms.residue[system.omegas[:, 0]] == 5)
    spoilt = turned(system, positions, *system.omegas[which, 1:3], 180.0)
    sound, mended = (mend_all(system, p, system.map_positions(p)) for p in (positions, spoilt))
    other = system.atoms.residue > 11
    assert np.array_equal(sound[other], mended[other])
    assert "cis_peptides" not in faults(system, mended)


@pytest.mark.parametrize("name", ["insulin", "membrane"])
def test_nothing_is_lost_between_molecules(name, request):
    system = request.getfixturevalue(f"{name}_system")
    work = SystemIdealiser(*parts(system))
    if name == "insulin":
        assert [len(kind.atoms) for kind in work.kinds] == [1], "the chains are bridged"
    for column, n in (("atoms", system.n_atoms), ("beads", system.n_beads)):
        found = np.concatenate([getattr(kind, column).ravel() for kind in work.kinds])
        assert np.array_equal(np.sort(found), np.arange(n))
    assert sum(len(kind.atoms) for kind in work.kinds) == system.bead_molecule.max() + 1
    whole = Idealiser(*parts(system))
    for column in ("pairs", "quads", "torsions", "phi_psi"):
        rows = [kind.atoms[:, getattr(kind.idealiser.terms, column)] for kind in work.kinds]
        mine = np.concatenate([r.reshape(-1, r.shape[2]) for r in rows])
        theirs = getattr(whole.terms, column)
        assert len(mine) == len(theirs), column
        assert np.array_equal(*(np.unique(t, axis=0) for t in (mine, theirs))), column
    shares = [len(kind.atoms) * kind.idealiser.terms.weights.sum() for kind in work.kinds]
    assert sum(shares) == pytest.approx(whole.terms.weights.sum(), rel=1e-5)
