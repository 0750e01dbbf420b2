"""Neighbours against brute force, and chunks that do not change them."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from mdbackmap.geometry.boxes import box_from_dimensions, heights
from mdbackmap.graph import neighbours
from mdbackmap.graph.chunks import BeadGraph
from mdbackmap.graph.neighbours import RELATIONS, close_pairs, find_pairs, relations

CUTOFF = 8.0
BOXES = {
    "none": None,
    "orthorhombic": (30.0, 25.0, 40.0, 90.0, 90.0, 90.0),
    "dodecahedron": (32.0, 32.0, 32.0, 60.0, 60.0, 90.0),
    "octahedron": (30.0, 30.0, 30.0, 70.528779, 109.471221, 70.528779),
    "smaller than two cutoffs": (11.0, 13.0, 30.0, 90.0, 90.0, 90.0),
    "smaller than a cutoff, triclinic": (7.0, 9.0, 12.0, 75.0, 80.0, 70.0),
}


def box_of(name: str) -> np.ndarray | None:
    return None if BOXES[name] is None else box_from_dimensions(np.array(BOXES[name]))


def points_in(box: np.ndarray | None, n: int, seed: int = 0) -> np.ndarray:
    """Random points, most of them outside the cell."""
    place = np.random.default_rng(seed).uniform(-1.5, 2.5, (n, 3))
    return (place @ (np.eye(3) * 10 if box is None else box)).astype(np.float32)


def brute_force(points: np.ndarray, box: np.ndarray | None) -> list[tuple[int, int, np.ndarray]]:
    """All images of all pairs within the cutoff."""
    points = points.astype(np.float64)
    shifts = np.zeros((1, 3))
    if box is not None:
        # Wrapped points differ by less than a cell, so this many images on each side do.
        points = points - np.floor(points @ np.linalg.inv(box)) @ box
        reach = np.ceil(CUTOFF / heights(box)).astype(int) + 1
        shifts = np.array(list(itertools.product(*(range(-r, r + 1) for r in reach)))) @ box
    found = []
    for i, j in itertools.product(range(len(points)), repeat=2):
        gap = points[j] - points[i] + shifts
        length = np.linalg.norm(gap, axis=1)
        found += [(i, j, v) for v in gap[(length <= CUTOFF) & ((i != j) | (length > 1e-9))]]
    return found


def in_order(first, second, vectors):
    order = np.lexsort((*np.round(vectors, 2).T, second, first))
    return first[order], second[order], vectors[order]


@pytest.mark.parametrize("name", BOXES)
def test_pairs_are_those_of_brute_force(name):
    box = box_of(name)
    points = points_in(box, 40 if box is None or heights(box).min() > 8 else 12)
    expected = brute_force(points, box)
    first, second, vectors = find_pairs(points, box, CUTOFF)
    assert (np.diff(first) >= 0).all()
    assert vectors.dtype == np.float32
    assert len(expected) > 20
    wanted = in_order(*(np.array(column) for column in zip(*expected, strict=True)))
    for mine, theirs in zip(in_order(first, second, vectors), wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=2e-5)


@pytest.mark.parametrize("name", BOXES)
def test_every_pair_is_found_in_both_directions(name):
    box = box_of(name)
    first, second, vectors = find_pairs(points_in(box, 60, seed=1), box, CUTOFF)
    forth, back = in_order(first, second, vectors), in_order(second, first, -vectors)
    for mine, theirs in zip(forth, back, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("name", BOXES)
def test_close_pairs_are_those_of_brute_force_once_each(name):
    box = box_of(name)
    points = points_in(box, 40 if box is None or heights(box).min() > 8 else 12)
    expected = [(i, j, gap) for i, j, gap in brute_force(points, box) if i < j]
    first, second, vectors = close_pairs(points, box, CUTOFF)
    assert (first < second).all()
    assert vectors.dtype == np.float32
    assert len(expected) > 10
    wanted = in_order(*(np.array(column) for column in zip(*expected, strict=True)))
    for mine, theirs in zip(in_order(first, second, vectors), wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=2e-5)


def test_a_point_is_not_close_to_its_own_images():
    first, *_ = close_pairs(np.zeros((1, 3)), np.eye(3) * 4, CUTOFF)
    assert len(first) == 0


@pytest.mark.parametrize("name", [name for name, box in BOXES.items() if box])
def test_shifting_single_beads_by_lattice_vectors_changes_nothing(name):
    box, rng = box_of(name), np.random.default_rng(2)
    points = points_in(box, 80, seed=3).astype(np.float64)
    moved = points + rng.integers(-2, 3, (80, 3)) @ box
    one = in_order(*find_pairs(points, box, CUTOFF))
    for mine, theirs in zip(one, in_order(*find_pairs(moved, box, CUTOFF)), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_beads_for_pairs(n):
    first, second, vectors = find_pairs(np.zeros((n, 3)), None, CUTOFF)
    assert len(first) == len(second) == 0
    assert vectors.shape == (0, 3)
    near = BeadGraph(n, first, second, vectors, first).neighbours(np.arange(n))
    assert near.index.shape == (n, 1)
    assert not near.present.any()


def test_relations_say_how_residues_are_bonded():
    # Residues 0-1-2 in a chain, 3 bridged to 0, 4 alone; two beads each.
    residue = np.repeat(np.arange(5), 2)
    pairs = {(0, 1): 1, (0, 2): 2, (2, 0): 3, (3, 5): 2, (0, 6): 4, (7, 1): 4, (0, 4): 0, (8, 1): 0}
    first, second = np.array(list(pairs)).T
    chain = np.array([1, 2, -1, -1, -1])
    found = relations(first, second, residue, chain, np.array([[0, 3]]), 5)
    assert found.tolist() == list(pairs.values())
    without = relations(first, second, residue, chain, np.zeros((0, 2), np.int64), 5)
    assert without.tolist() == [k if k < 4 else 0 for k in pairs.values()]


@pytest.mark.parametrize("kinds", [5, 7, 9, 11])
def test_relations_along_the_chain(kinds):
    # A chain 0..5, a second one 6-7, and 8 alone; one bead each.
    following = np.array([1, 2, 3, 4, 5, -1, 7, -1, -1])
    first, second = (a.ravel() for a in np.indices((9, 9)))
    found = relations(first, second, np.arange(9), following, np.zeros((0, 2), np.int64), kinds)
    step = second - first
    same_chain = np.digitize(first, [6, 8]) == np.digitize(second, [6, 8])
    names = {0: "same residue", 1: "next residue", -1: "previous residue"}
    for k, word in enumerate(["second", "third", "fourth"], start=2):
        names |= {k: f"{word} next", -k: f"{word} previous"}
    wanted = [
        RELATIONS.index(names[d]) if together and d in names else 0
        for d, together in zip(step.tolist(), same_chain.tolist(), strict=True)
    ]
    assert found.tolist() == [k if k < kinds else 0 for k in wanted]


@pytest.fixture(scope="module")
def graph() -> BeadGraph:
    box = box_of("octahedron")
    points = points_in(box, 103, seed=4)
    points[7] = 500.0  # a bead of few neighbours beside crowded ones
    first, second, vectors = find_pairs(points, box, CUTOFF)
    return BeadGraph(103, first, second, vectors, (first + second) % 5)


def test_padding_marks_what_is_no_neighbour(graph):
    near = graph.neighbours(np.arange(graph.n_beads))
    assert near.present.sum() == len(graph.first)
    rows = np.broadcast_to(np.arange(graph.n_beads)[:, None], near.present.shape)
    assert (rows[near.present] == graph.first).all()
    assert (near.index[near.present] == graph.second).all()
    assert (near.vectors[near.present] == graph.vectors).all()
    assert (near.relation[near.present] == graph.relation).all()
    assert (near.index[~near.present] == rows[~near.present]).all()
    assert not near.vectors[~near.present].any()


@pytest.mark.parametrize("size", [1, 7, 50, 102, 103, 1000])
def test_chunks_of_any_size_hold_the_same_rows(graph, size):
    whole = graph.neighbours(np.arange(graph.n_beads))
    seen, padding = [], 0
    for beads in graph.chunks(size):
        near = graph.neighbours(beads)
        assert 1 <= len(beads) <= size
        seen += beads.tolist()
        padding += near.present.size - near.present.sum()
        assert (near.present.sum(1) == whole.present[beads].sum(1)).all()
        for name in ("index", "vectors", "relation"):
            mine, theirs = getattr(near, name), getattr(whole, name)[beads]
            assert (mine[near.present] == theirs[whole.present[beads]]).all()
        own = np.broadcast_to(beads[:, None], near.index.shape)
        assert (near.index[~near.present] == own[~near.present]).all()
    assert sorted(seen) == list(range(graph.n_beads))
    # Beads of like numbers of neighbours share a chunk.
    assert padding <= whole.present.size - whole.present.sum()


def test_a_chunk_holds_at_least_one_bead(graph):
    with pytest.raises(ValueError, match="chunk size 0"):
        graph.chunks(0)


def test_a_hundred_thousand_beads_take_seconds():
    n = 100_000
    length = (n * 100.0) ** (1 / 3)  # Å^3 per bead in water and membranes
    points = np.random.default_rng(0).uniform(0, length, (n, 3))
    began = time.process_time()
    first, second, vectors = find_pairs(points, np.eye(3) * length, CUTOFF)
    residue = np.arange(n) // 4
    following = np.append(np.arange(1, residue[-1] + 1), -1)
    kind = relations(first, second, residue, following, np.zeros((0, 2), np.int64), 5)
    graph = BeadGraph(n, first, second, vectors, kind)
    beads = sum(len(graph.neighbours(some).index) for some in graph.chunks(4000))
    assert beads == n
    assert len(first) / n == pytest.approx(4 / 3 * np.pi * CUTOFF**3 / 100, rel=0.02)
    # One second on one idle core.
    assert time.process_time() - began < 10


@pytest.mark.parametrize("name", ["none", "orthorhombic", "octahedron"])
@pytest.mark.parametrize("slab", [7, 60, 299])
def test_pieces_find_what_one_search_finds(monkeypatch, name, slab):
    box = box_of(name)
    points = np.random.default_rng(3).uniform(0, 20, (600, 3))
    # Many at one height, where slabs meet.
    points[::3, 1] = 10.0
    expected = close_pairs(points, box, 4.0)
    monkeypatch.setattr(neighbours, "PIECE", slab)
    found = close_pairs(points, box, 4.0)
    assert len(found[0]) == len(expected[0]) > 1000
    assert (found[0] < found[1]).all()
    for one, other in zip(in_order(*found), in_order(*expected), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
