"""Bending hydrogens apart that stand too close to one another, bond lengths kept.

Heavy atoms do not move here: where beads put carbons 3 Å apart, hydrogens between them give way
by some degrees instead of sitting on one another, and a minimisation has something to start from.
"""

from __future__ import annotations

import numpy as np

from mdbackmap.compiled import compiled, part

SIBLINGS = 1.55
"""Å between hydrogens of one atom; undisturbed they have 1.6 to 1.8."""
SWEEPS = 9
PULL = np.float32(0.1)
"""Share of the way back to where chemistry has it, per sweep; none in the last quarter."""
_TINY = np.float32(1e-6)


@compiled
def clashing(rows, gaps, limit, offsets):
    """Return which hydrogens are nearer to something than they should be, shape (h,), bool.

    Parameters
    ----------
    rows, gaps, limit : ndarray
        As in `mdbackmap.hydrogens.nearby.Meeting`.
    offsets : ndarray, shape=(h, 3), float32, Å
    """
    found = np.zeros(len(offsets), np.bool_)
    for m in range(len(rows)):
        if _square(rows[m, 0], rows[m, 1], gaps[m], offsets) < limit[m] * limit[m]:
            found[rows[m, 0]] = True
            if rows[m, 1] >= 0:
                found[rows[m, 1]] = True
    return found


@compiled
def spread_out(rows, gaps, limit, offsets, first, watched):
    """Change offsets of hydrogens from their bearers, of those that meet, in place.

    Parameters
    ----------
    rows, gaps, limit, offsets
        As in `clashing`.
    first : ndarray, shape=(h,), int64
        The first hydrogen of each one's bearer.
    watched : float, Å
        Beyond the limits, within which pairs count.
    """
    n = len(offsets)
    moved, near = np.zeros(n, np.bool_), np.zeros(len(rows), np.bool_)
    for m in range(len(rows)):
        reach = limit[m] + watched
        if _square(rows[m, 0], rows[m, 1], gaps[m], offsets) < reach * reach:
            near[m] = moved[rows[m, 0]] = True
            if rows[m, 1] >= 0:
                moved[rows[m, 1]] = True
    # Those that count, in short arrays.
    pairs, those = np.flatnonzero(near), np.flatnonzero(moved)
    usual, step = np.empty((len(those), 3), np.float32), np.zeros((n, 3), np.float32)
    length = np.empty(len(those), np.float32)
    for k in range(len(those)):
        p = those[k]
        for x in range(3):
            usual[k, x] = offsets[p, x]
        length[k] = np.sqrt(usual[k, 0] ** 2 + usual[k, 1] ** 2 + usual[k, 2] ** 2) + _TINY
    for sweep in range(SWEEPS):
        for m in pairs:
            _push(step, offsets, rows[m, 0], rows[m, 1], gaps[m, 0], gaps[m, 1], gaps[m, 2],
                  limit[m])  # fmt: skip
        for p in those:
            for q in range(first[p], p):
                if moved[q]:
                    _push(step, offsets, q, p, 0.0, 0.0, 0.0, SIBLINGS)
        for k in range(len(those)):
            p, size = those[k], np.float32(0)
            for x in range(3):
                new = offsets[p, x] + step[p, x]
                if sweep < SWEEPS * 3 // 4:
                    new += PULL * (usual[k, x] - offsets[p, x])
                offsets[p, x], step[p, x] = new, 0
                size += new * new
            scale = length[k] / (np.sqrt(size) + _TINY)
            for x in range(3):
                offsets[p, x] *= scale


@part
def _square(p, q, gap, offsets):
    """Square of the distance of a hydrogen and what it meets."""
    total = np.float32(0)
    for x in range(3):
        way = gap[x] - offsets[p, x]
        if q >= 0:
            way += offsets[q, x]
        total += way * way
    return total


@part
def _push(step, offsets, p, q, x, y, z, limit):
    """Add what a hydrogen, and the other one if there is one, would have to move."""
    x, y, z = x - offsets[p, 0], y - offsets[p, 1], z - offsets[p, 2]
    if q >= 0:
        x, y, z = x + offsets[q, 0], y + offsets[q, 1], z + offsets[q, 2]
    length = np.sqrt(x * x + y * y + z * z) + _TINY
    if length >= limit:
        return
    share = (limit - length) / length
    if q >= 0:
        share *= np.float32(0.5)
        step[q, 0] += share * x
        step[q, 1] += share * y
        step[q, 2] += share * z
    step[p, 0] -= share * x
    step[p, 1] -= share * y
    step[p, 2] -= share * z
