"""Rigid superposition of sets of points, many at a time."""

from __future__ import annotations

import numpy as np


def superpose(points: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay points on targets by a rotation and a shift (Kabsch 1976, doi:10.1107/S0567739476001873).

    Parameters
    ----------
    points, target : ndarray, shape=(..., n, 3), Å
        Leading axes are broadcast.

    Returns
    -------
    rotation : ndarray, shape=(..., 3, 3)
        Proper; points @ rotation.T + shift lie on the target.
    shift : ndarray, shape=(..., 3), Å
    error : ndarray, shape=(...), Å
        Root mean square distance that is left.
    """
    middle, aim = points.mean(axis=-2), target.mean(axis=-2)
    centred, wanted = points - middle[..., None, :], target - aim[..., None, :]
    u, _, vt = np.linalg.svd(np.einsum("...ni,...nj->...ij", wanted, centred))
    mirror = np.ones(u.shape[:-1])
    mirror[..., 2] = np.linalg.det(u) * np.linalg.det(vt)
    rotation = (u * mirror[..., None, :]) @ vt
    shift = aim - np.einsum("...ij,...j->...i", rotation, middle)
    laid = np.einsum("...ni,...ji->...nj", centred, rotation)
    error = np.sqrt(((laid - wanted) ** 2).sum(axis=-1).mean(axis=-1))
    return rotation, shift, error
