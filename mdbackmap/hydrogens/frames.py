"""Local frames of the atoms that bear hydrogens, and hydrogens as chemistry alone has them."""

from __future__ import annotations

import numpy as np

from mdbackmap.compiled import compiled, part

LOST = 1e-4
"""Square of a direction that is none."""


@compiled
def local_frames(heavy, bearers, neighbours, kind):
    """Return the axes of every bearer's frame as rows, shape (n, 3, 3), float32.

    Parameters
    ----------
    heavy : ndarray, shape=(n_heavy, 3), float32, Å
    bearers, neighbours, kind : ndarray
        As in `mdbackmap.hydrogens.recipes.Recipes`.
    """
    frames = np.zeros((len(bearers), 3, 3), np.float32)
    for k in range(len(bearers)):
        i, one, two, three = bearers[k], neighbours[k, 0], neighbours[k, 1], neighbours[k, 2]
        if kind[k] == 0:
            for x in range(3):
                frames[k, x, x] = 1
        elif kind[k] == 1:
            # The bond away from the one neighbour, and towards the neighbour's reference.
            first = _unit(_way(heavy, one, i))
            towards = _way(heavy, one, three) if three >= 0 else (0.0, 0.0, 0.0)
            along = _dot(towards, first)
            second = (towards[0] - along * first[0], towards[1] - along * first[1],
                      towards[2] - along * first[2])  # fmt: skip
            second = _unit_or_across(second, first)
            _set(frames[k], first, second, _cross(first, second))
        elif kind[k] == 2:
            # Away from two neighbours, and the normal of their plane.
            a, b = _unit(_way(heavy, i, one)), _unit(_way(heavy, i, two))
            first = _unit_or_across((-a[0] - b[0], -a[1] - b[1], -a[2] - b[2]), a)
            third = _unit_or_across(_cross(a, b), first)
            _set(frames[k], first, _cross(third, first), third)
        else:
            # The direction that makes equal angles with three neighbours.
            a, b, c = (_unit(_way(heavy, i, one)), _unit(_way(heavy, i, two)),
                       _unit(_way(heavy, i, three)))  # fmt: skip
            normal = _cross((b[0] - a[0], b[1] - a[1], b[2] - a[2]),
                            (c[0] - a[0], c[1] - a[1], c[2] - a[2]))  # fmt: skip
            if _dot(normal, (a[0] + b[0] + c[0], a[1] + b[1] + c[1], a[2] + b[2] + c[2])) > 0:
                normal = (-normal[0], -normal[1], -normal[2])
            first = _unit_or_across(normal, a)
            frames[k, 0, 0], frames[k, 0, 1], frames[k, 0, 2] = first
    return frames


@compiled
def usual_places(frames, owner, coefficients):
    """Return hydrogens seen from their bearers where nothing is near, shape (h, 3), float32, Å."""
    offsets = np.empty((len(owner), 3), np.float32)
    for h in range(len(owner)):
        frame = frames[owner[h]]
        for x in range(3):
            offsets[h, x] = (coefficients[h, 0] * frame[0, x] + coefficients[h, 1] * frame[1, x]
                             + coefficients[h, 2] * frame[2, x])  # fmt: skip
    return offsets


@part
def _way(points, i, j):
    return (np.float64(points[j, 0]) - points[i, 0], np.float64(points[j, 1]) - points[i, 1],
            np.float64(points[j, 2]) - points[i, 2])  # fmt: skip


@part
def _set(frame, first, second, third):
    frame[0, 0], frame[0, 1], frame[0, 2] = first
    frame[1, 0], frame[1, 1], frame[1, 2] = second
    frame[2, 0], frame[2, 1], frame[2, 2] = third


@part
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@part
def _cross(a, b):
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@part
def _unit(a):
    length = max(np.sqrt(_dot(a, a)), 1e-6)
    return a[0] / length, a[1] / length, a[2] / length


@part
def _unit_or_across(a, axis):
    """Unit vector; where there is nearly none, any across an axis."""
    if _dot(a, a) >= LOST:
        return _unit(a)
    x, y, z = abs(axis[0]), abs(axis[1]), abs(axis[2])
    if x <= y and x <= z:
        return _unit(_cross(axis, (1.0, 0.0, 0.0)))
    if y <= z:
        return _unit(_cross(axis, (0.0, 1.0, 0.0)))
    return _unit(_cross(axis, (0.0, 0.0, 1.0)))
