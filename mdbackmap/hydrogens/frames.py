"""Local frames of the atoms that bear hydrogens: array work, nothing else."""

from __future__ import annotations

import numpy as np

from mdbackmap.hydrogens.recipes import Recipes


def local_frames(heavy: np.ndarray, recipes: Recipes) -> np.ndarray:
    """Return the axes of every bearer's frame as rows, shape (n, 3, 3), float32."""
    frames = np.zeros((len(recipes.bearers), 3, 3), dtype=np.float32)
    frames[recipes.kind == 0] = np.eye(3)
    for kind, axes in ((3, _away), (2, _between), (1, _along)):
        rows = np.flatnonzero(recipes.kind == kind)
        if len(rows):
            frames[rows] = axes(heavy, recipes.bearers[rows], recipes.neighbours[rows])
    return frames


def _away(positions: np.ndarray, bearer: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The direction that makes equal angles with three neighbours."""
    centre = positions[bearer]
    a, b, c = (_unit(positions[near[:, k]] - centre) for k in range(3))
    normal = _cross(b - a, c - a)
    normal = np.where(_dot(normal, a + b + c) > 0, -normal, normal)
    frames = np.zeros((len(bearer), 3, 3), dtype=np.float32)
    frames[:, 0] = _unit_or_across(normal, a)
    return frames


def _between(positions: np.ndarray, bearer: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Away from two neighbours, and the normal of their plane."""
    centre = positions[bearer]
    a, b = (_unit(positions[near[:, k]] - centre) for k in range(2))
    first = _unit_or_across(-(a + b), a)
    third = _unit_or_across(_cross(a, b), first)
    return np.stack([first, _cross(third, first), third], axis=1)


def _along(positions: np.ndarray, bearer: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The bond away from the one neighbour, and towards the neighbour's reference."""
    neighbour = positions[near[:, 0]]
    first = _unit(positions[bearer] - neighbour)
    towards = np.where(near[:, 2:] >= 0, positions[near[:, 2]] - neighbour, 0)
    second = _unit_or_across(towards - _dot(towards, first) * first, first)
    return np.stack([first, second, _cross(first, second)], axis=1)


def _unit_or_across(vectors: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Unit vectors; where there is nearly none, any across an axis."""
    lost = _dot(vectors, vectors)[:, 0] < 1e-4
    if lost.any():
        other = np.eye(3, dtype=np.float32)[np.argmin(np.abs(axes[lost]), axis=1)]
        vectors[lost] = _cross(axes[lost], other)
    return _unit(vectors)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("nx,nx->n", a, b)[:, None]


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # numpy's own takes several times as long.
    (a0, a1, a2), (b0, b1, b2) = a.T, b.T
    return np.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], axis=1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.sqrt(_dot(vectors, vectors)), 1e-6)
