"""Lengths, angles, torsions, volumes and heights of rows of atoms.

Array work only: what counts as wrong is decided in `checks`. Every function takes ``positions``
(n_atoms, 3) in Å, ``rows`` of atom indices and a box (rows are its vectors, Å) or None; with a
box, each vector between bonded atoms is its nearest image, so broken molecules are measured as if
whole. A row that touches a NaN position gives NaN.
"""

from __future__ import annotations

import numpy as np

from mdbackmap.geometry.boxes import minimum_image

_TINY = 1e-12


def _between(positions, start, stop, box) -> np.ndarray:
    return minimum_image(positions[stop] - positions[start], box)


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("...k,...k->...", first, second)


def _norm(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(_dot(vectors, vectors))


def lengths(positions: np.ndarray, rows: np.ndarray, box: np.ndarray | None = None) -> np.ndarray:
    """Return the distance of each pair, shape (n,), Å."""
    return _norm(_between(positions, rows[:, 0], rows[:, 1], box))


def angles(positions: np.ndarray, rows: np.ndarray, box: np.ndarray | None = None) -> np.ndarray:
    """Return the angle at the middle atom of each row, shape (n,), degrees."""
    first = _between(positions, rows[:, 1], rows[:, 0], box)
    second = _between(positions, rows[:, 1], rows[:, 2], box)
    size = np.maximum(_norm(first) * _norm(second), _TINY)
    return np.degrees(np.arccos(np.clip(_dot(first, second) / size, -1.0, 1.0)))


def torsions(positions: np.ndarray, rows: np.ndarray, box: np.ndarray | None = None) -> np.ndarray:
    """Return the torsion of each row of four, shape (n,), degrees in [-180, 180]; 0 is cis."""
    first, axis, last = (_between(positions, rows[:, k], rows[:, k + 1], box) for k in range(3))
    before, after = np.cross(first, axis), np.cross(axis, last)
    sine = _dot(np.cross(before, after), axis) / np.maximum(_norm(axis), _TINY)
    return np.degrees(np.arctan2(sine, _dot(before, after)))


def volumes(positions: np.ndarray, rows: np.ndarray, box: np.ndarray | None = None) -> np.ndarray:
    """Return (a-x)·((b-x)×(c-x)) of rows x, a, b, c; shape (n,), Å^3."""
    a, b, c = (_between(positions, rows[:, 0], rows[:, k], box) for k in (1, 2, 3))
    return _dot(a, np.cross(b, c))


def heights_of_centres(
    positions: np.ndarray, rows: np.ndarray, box: np.ndarray | None = None
) -> np.ndarray:
    """Return how far x lies from the plane of its neighbours a, b, c; shape (n,), Å."""
    a, b, c = (_between(positions, rows[:, 0], rows[:, k], box) for k in (1, 2, 3))
    normal = np.cross(b - a, c - a)
    return np.abs(_dot(a, normal)) / np.maximum(_norm(normal), _TINY)


def heights_of_ends(
    positions: np.ndarray, rows: np.ndarray, box: np.ndarray | None = None
) -> np.ndarray:
    """Return how far the last atom of each chain i, j, k, m lies from plane ijk; (n,), Å."""
    first, axis, last = (_between(positions, rows[:, k], rows[:, k + 1], box) for k in range(3))
    normal = np.cross(first, axis)
    return np.abs(_dot(last, normal)) / np.maximum(_norm(normal), _TINY)


def heights_of_rings(
    positions: np.ndarray, rings: np.ndarray, box: np.ndarray | None = None
) -> np.ndarray:
    """Return how far the furthest atom of each ring lies from the ring's plane, shape (n,), Å.

    The plane is the one of least squares. Rings are padded by repeating their last atom.
    """
    result = np.full(len(rings), np.nan)
    sizes = 1 + (np.diff(rings, axis=1) != 0).sum(axis=1) if len(rings) else np.zeros(0, int)
    for size in np.unique(sizes):
        here = np.flatnonzero(sizes == size)
        points = positions[rings[here, :size]]
        points = minimum_image(points - points[:, :1], box)
        points = points - points.mean(axis=1, keepdims=True)
        sound = np.isfinite(points).all(axis=(1, 2))
        _, _, axes = np.linalg.svd(points[sound])
        height = np.abs(np.einsum("nij,nj->ni", points[sound], axes[:, 2]))
        result[here[sound]] = height.max(axis=1)
    return result
