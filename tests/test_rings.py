"""Rings of molecules, and bonds through them that are taken out again."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from mdbackmap.geometry import rings
from mdbackmap.geometry.boxes import box_from_dimensions
from mdbackmap.geometry.contacts import ContactRules
from mdbackmap.geometry.idealise import kept_apart
from mdbackmap.geometry.rings import Freed, RingGuard, find_rings, near, pierced_rings
from mdbackmap.geometry.sweeps import LANES, Apart
from mdbackmap.io import files
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import System, from_atoms
from mdbackmap.structure import Frame, Particles
from mdbackmap.validation import Checker
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from helpers_io import DATA

BOX = box_from_dimensions(np.array([130.0, 120, 140, 80, 75, 65]))
RINGS = {
    "A of cholesterol": ("CHL1", ("C1", "C2", "C3", "C4", "C5", "C10")),
    "B of cholesterol": ("CHL1", ("C5", "C6", "C7", "C8", "C9", "C10")),
    "C of cholesterol": ("CHL1", ("C8", "C9", "C11", "C12", "C13", "C14")),
    "D of cholesterol": ("CHL1", ("C13", "C14", "C15", "C16", "C17")),
    "TRP, pyrrole": ("TRP", ("CG", "CD1", "NE1", "CE2", "CD2")),
    "TRP, benzene": ("TRP", ("CD2", "CE2", "CE3", "CZ2", "CZ3", "CH2")),
    "PRO": ("PRO", ("N", "CA", "CB", "CG", "CD")),
    "HIS": ("HIS", ("CG", "ND1", "CD2", "CE1", "NE2")),
    "PHE": ("PHE", ("CG", "CD1", "CD2", "CE1", "CE2", "CZ")),
}


# Finding rings


def graph(*paths: list[int]) -> np.ndarray:
    return np.array([pair for path in paths for pair in itertools.pairwise(path)])


def found(bonds: np.ndarray, n: int) -> list[list[int]]:
    return [list(dict.fromkeys(ring)) for ring in find_rings(bonds, n).tolist()]


@pytest.mark.parametrize("size", range(3, 11))
def test_rings_of_four_to_eight_are_found(size):
    around = [*range(size), 0]
    assert found(graph(around), size) == ([around[:-1]] if 4 <= size <= 8 else [])


@pytest.mark.parametrize("seed", range(5))
def test_a_ring_begins_with_its_lowest_atom_whatever_the_numbering(seed):
    names = np.random.default_rng(seed).permutation(20)
    around = names[[2, 3, 4, 5, 6, 7, 2]].tolist()
    (ring,) = found(graph([*names[:3].tolist(), *around[1:]], names[8:].tolist()), 20)
    assert ring[0] == min(around)
    assert ring[1] < ring[-1]
    k = around.index(ring[0])
    turned = (around[:-1] * 2)[k : k + 6]
    assert ring in (turned, [turned[0], *turned[:0:-1]])


def test_fused_spiro_and_caged_rings_are_found_once_each():
    naphthalene = graph([*range(10), 0], [4, 9])
    assert [set(r) for r in found(naphthalene, 10)] == [{0, 1, 2, 3, 4, 9}, set(range(4, 10))]
    spiro = graph([*range(5), 0], [0, *range(5, 10), 0])
    assert sorted(map(len, found(spiro, 10))) == [5, 6]
    assert found(graph([*range(6), 0], [0, 2]), 6) == [[0, 2, 3, 4, 5]], "what a chord leaves"
    cube = [(i, j) for i, j in itertools.combinations(range(8), 2) if bin(i ^ j).count("1") == 1]
    assert [len(r) for r in found(np.array(cube), 8)].count(4) == 6
    assert found(np.zeros((0, 2), np.int64), 5) == []
    assert found(graph(list(range(5))), 5) == []


def test_many_molecules_have_many_rings(monkeypatch):
    steps = np.arange(50)[:, None, None] * 10
    bonds = (graph([*range(10), 0], [4, 9]) + steps).reshape(-1, 2)
    whole = find_rings(bonds, 500)
    assert len(whole) == 100
    monkeypatch.setattr(rings, "_AT_ONCE", 7)
    assert np.array_equal(find_rings(bonds, 500), whole)


# Neighbours


@pytest.mark.parametrize("box", [None, BOX / 10])
def test_pairs_near_centres_are_those_of_brute_force(box):
    rng = np.random.default_rng(1)
    centres, points = rng.uniform(-8, 12, (7, 3)), rng.uniform(-8, 12, (300, 3))
    shifts = np.zeros((1, 3))
    if box is not None:
        shifts = np.array(list(itertools.product(range(-4, 5), repeat=3))) @ box
    gaps = (points[None, :, None] - centres[:, None, None] + shifts).reshape(7, 300, -1, 3)
    i, j, k = np.nonzero(np.linalg.norm(gaps, axis=3) <= 4.0)
    wanted = np.column_stack([i, j, gaps[i, j, k]])
    rows = np.column_stack(near(centres, points, box, 4.0))
    wanted, rows = (r[np.lexsort((*np.round(r[:, 2:], 3).T, r[:, 1], r[:, 0]))]
                    for r in (wanted, rows))  # fmt: skip
    assert len(wanted) > 5
    assert rows == pytest.approx(wanted, abs=1e-6)


# Spears


@pytest.fixture(scope="module")
def scene() -> tuple[System, np.ndarray]:
    """Cholesterol, two peptides and two lipids that do not meet."""
    return together("rings.pdb", "popc.pdb", "ubiquitin_12.pdb", "popc.pdb")


@pytest.fixture(scope="module")
def checker(scene) -> Checker:
    return Checker(scene[0])


@pytest.fixture(scope="module")
def guard(scene) -> RingGuard:
    return guard_of(scene[0])


def together(*names: str) -> tuple[System, np.ndarray]:
    """Files as one system, 60 Å apart, each a segment of its own."""
    tables, points = [], []
    for k, name in enumerate(names):
        universe = files.open_universe(DATA / name)
        table = files.particles(universe)
        tables.append((table.names, table.resnames, table.resids, [f"{k}"] * len(table.names)))
        points.append(files.frame(universe.trajectory.ts).positions + np.float32([0, 60 * k, 0]))
    fields = (np.concatenate(column) for column in zip(*tables, strict=True))
    points = np.concatenate(points)
    system = from_atoms(Particles(*fields), Library.load("martini3"), Frame(points))
    return system, system.take(points)


def guard_of(system: System) -> RingGuard:
    rules = ContactRules(system.constraints, system.atoms.elements)
    return RingGuard(
        system.constraints, rules, system.members, system.weights, system.backbone,
        hold=0.06, contour=0.95,
    )  # fmt: skip


def atoms_of(system: System, resname: str, names: tuple[str, ...], which: int = 0) -> np.ndarray:
    table = system.atoms
    return np.array(
        [np.flatnonzero((table.resnames == resname) & (table.names == n))[which] for n in names]
    )


def segment(system: System, atom: int) -> np.ndarray:
    """Atoms of the same molecule; pieces of one file lie 30 Å apart."""
    residue, table = system.atoms.residue, system.atoms
    same = table.segids == table.segids[atom]
    lipid = np.isin(table.resnames, ("CHL1", "POPC"))
    own = residue == residue[atom] if lipid[atom] else same & ~lipid
    return np.flatnonzero(own)


def posed(
    x: np.ndarray, ring: np.ndarray, bond: np.ndarray, movers: np.ndarray, seed: int = 0,
    aside: float = 0.5,
) -> np.ndarray:  # fmt: skip
    """Positions with a molecule carried so that its bond goes through the ring.

    Of many ways to turn it the one in which the two molecules are least in each other's way.
    """
    rng, others = np.random.default_rng(seed), np.setdiff1d(np.arange(len(x)), movers)
    tree, best = cKDTree(x[others]), (np.inf, x)
    centre = x[ring].mean(0)
    normal = np.linalg.svd(x[ring] - centre)[2][2]
    along = x[bond[1]] - x[bond[0]]
    for _ in range(40):
        target = normal * rng.choice([-1, 1]) + 0.2 * rng.normal(size=3)
        target /= np.linalg.norm(target)
        turn, _ = Rotation.align_vectors([target], [along / np.linalg.norm(along)])
        turn = Rotation.from_rotvec(target * rng.uniform(0, 2 * np.pi)) * turn
        off = np.cross(normal, rng.normal(size=3))
        y = x.copy()
        y[movers] = turn.apply(x[movers] - x[bond].mean(0)) + centre
        y[movers] += rng.uniform(0, aside) * off / np.linalg.norm(off)
        close = tree.count_neighbors(cKDTree(y[movers]), 2.2)
        best = min(best, (close, y), key=lambda pair: pair[0])
    return best[1]


def through(scene, ring: str, bond: tuple[str, str] = ("C35", "C36"), which=0, seed=0):
    """Positions with a lipid's tail through a ring of this name."""
    system, x = scene
    ends = atoms_of(system, "POPC", bond, which)
    return posed(x, atoms_of(system, *RINGS[ring]), ends, segment(system, ends[0]), seed)


def wrong(checker: Checker, x: np.ndarray, box: np.ndarray | None = None) -> dict[str, int]:
    return {term: c.wrong for term, c in checker(x, box).counts.items() if c.wrong}


def free(guard: RingGuard, system: System, x: np.ndarray, box=None) -> Freed:
    return guard(x, system.map_positions(x), box)


def assert_no_worse(checker: Checker, x: np.ndarray, box: np.ndarray | None = None) -> None:
    """No ring is pierced, and bonds and hands are right; molecules may still be close."""
    assert set(wrong(checker, x, box)) <= {"angles", "ramachandran", "clashes"}


def test_the_scene_is_sound(scene, checker):
    assert set(wrong(checker, scene[1])) <= {"angles"}
    assert checker(scene[1]).counts["pierced_rings"].of == len(RINGS)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bond", [("C35", "C36"), ("C24", "C25"), ("C314", "C315")])
@pytest.mark.parametrize("ring", RINGS)
def test_a_tail_is_taken_out_of_a_ring(scene, checker, guard, ring, bond, seed):
    system, _ = scene
    x = through(scene, ring, bond, seed=seed)
    assert wrong(checker, x)["pierced_rings"] >= 1
    freed = free(guard, system, x)
    assert freed.found >= 1
    assert len(freed.left) == 0
    assert_no_worse(checker, freed.positions)
    # Nothing further away than bonds pull has moved, not even by rounding.
    own = np.unique(np.concatenate([atoms_of(system, *RINGS[ring]),
                                    atoms_of(system, "POPC", bond)]))  # fmt: skip
    moved = np.flatnonzero((freed.positions != x).any(axis=1))
    assert set(moved.tolist()) <= set(guard._around(own, rings.LOOSE + 8)[0].tolist())
    assert 0 < len(moved) < system.n_atoms / 2
    assert np.abs(freed.positions - x).max() < 6.0


def test_nothing_is_done_where_no_ring_is_pierced(scene, guard):
    system, x = scene
    for given in (x, x.astype(np.float32)):
        freed = free(guard, system, given)
        assert freed.positions is given
        assert (freed.found, freed.left.shape) == (0, (0, 3))


def test_the_input_is_left_alone_and_the_answer_is_always_the_same(scene, guard):
    x = through(scene, "B of cholesterol").astype(np.float32)
    copy, beads = x.copy(), scene[0].map_positions(x)
    first, second = (guard(x, beads).positions for _ in range(2))
    assert np.array_equal(x, copy)
    assert first.dtype == np.float32
    assert np.array_equal(first, second)


@pytest.mark.parametrize("ring", ["A of cholesterol", "PHE", "PRO"])
def test_the_answer_turns_and_moves_with_the_input(scene, guard, ring):
    system, _ = scene
    x = through(scene, ring)
    turn, move = Rotation.random(None, 3), np.array([12.0, -7, 40])
    one = turn.apply(free(guard, system, x).positions) + move
    other = free(guard, system, turn.apply(x) + move).positions
    assert other == pytest.approx(one, abs=5e-3)


@pytest.mark.parametrize("image", [(1, 0, 0), (0, -1, 2), (-1, 1, -1)])
def test_rings_are_freed_through_the_box(scene, checker, guard, image):
    system, _ = scene
    x, shift = through(scene, "C of cholesterol"), np.array(image) @ BOX
    tail = segment(system, atoms_of(system, "POPC", ("C35",))[0])
    inside = free(guard, system, x, BOX)
    y = x.copy()
    y[tail] += shift
    assert checker(y).counts["pierced_rings"].wrong == 0, "in the box only"
    freed = free(guard, system, y, BOX)
    assert freed.found == inside.found >= 1
    assert_no_worse(checker, freed.positions, BOX)
    expected = inside.positions.copy()
    expected[tail] += shift
    assert freed.positions == pytest.approx(expected, abs=5e-3)


def test_two_tails_are_taken_out_of_one_ring(scene, checker, guard):
    system, _ = scene
    x = through(scene, "PHE", ("C35", "C36"))
    ends = atoms_of(system, "POPC", ("C211", "C212"), 1)
    x = posed(x, atoms_of(system, *RINGS["PHE"]), ends, segment(system, ends[0]), 1)
    freed = free(guard, system, x)
    assert freed.found >= 2
    assert len(freed.left) == 0
    assert_no_worse(checker, freed.positions)


def test_interlocked_rings_come_apart(scene, checker, guard):
    system, x = scene
    bond = atoms_of(system, "CHL1", ("C1", "C2"))
    ring = atoms_of(system, *RINGS["PHE"])
    x = posed(x, ring, bond, segment(system, bond[0]), aside=0.2)
    assert wrong(checker, x)["pierced_rings"] == 2, "each has a bond through the other"
    freed = free(guard, system, x)
    assert_no_worse(checker, freed.positions)


def test_a_side_chain_is_taken_out_of_another(scene, checker, guard):
    system, x = scene
    bond = atoms_of(system, "LYS", ("CG", "CD"))
    x = posed(x, atoms_of(system, *RINGS["TRP, benzene"]), bond, segment(system, bond[0]))
    assert "pierced_rings" in wrong(checker, x)
    freed = free(guard, system, x)
    assert freed.found >= 1
    assert_no_worse(checker, freed.positions)


def test_a_molecule_is_taken_out_of_an_image_of_itself(scene, checker, guard):
    system, x = scene
    ring = x[atoms_of(system, *RINGS["PHE"])]
    centre, normal = ring.mean(0), np.linalg.svd(ring - ring.mean(0))[2][2]
    # A box whose first vector puts the side chain into the ring of the next image.
    bond = atoms_of(system, "THR", ("CB", "CG2"))
    step = x[bond].mean(0) - centre
    across = np.cross(step, normal) / np.linalg.norm(np.cross(step, normal))
    wide = np.cross(step, across) / np.linalg.norm(step)
    box = np.array([step, 400 * across, 400 * wide])
    assert wrong(checker, x, box)["pierced_rings"] == 1
    freed = free(guard, system, x, box)
    assert (freed.found, len(freed.left)) == (1, 0)
    assert_no_worse(checker, freed.positions, box)


def no_contacts(*_) -> Apart:
    return kept_apart(LANES)


def test_what_cannot_be_undone_is_said(scene, checker, guard, monkeypatch):
    monkeypatch.setattr(RingGuard, "_way_out", lambda *_: np.zeros(3))
    monkeypatch.setattr(RingGuard, "_kept_apart", no_contacts)
    system, _ = scene
    x = through(scene, "PHE")
    freed = free(guard, system, x)
    assert freed.found == 1
    ring = atoms_of(system, *RINGS["PHE"]).min()
    assert freed.left.tolist() == [[*atoms_of(system, "POPC", ("C35", "C36")), ring]]
    assert checker(freed.positions).counts["pierced_rings"].wrong == 1
    # And the geometry is no worse for the tries.
    assert not {"stereocentres", "d_residues"} & set(wrong(checker, freed.positions))


def test_rings_and_bonds_that_are_no_numbers_are_left_out(scene, guard):
    system, _ = scene
    x = through(scene, "PHE")
    x[atoms_of(system, "CHL1", ("C3",))] = np.nan
    measured, ring, _ = pierced_rings(x, guard.rings, system.constraints.bonds, None)
    assert np.flatnonzero(~measured).tolist() == [0]
    assert len(ring) == 1
