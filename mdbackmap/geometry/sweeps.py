"""The compiled half of `mdbackmap.geometry.idealise`: sweeps over the terms of a molecule.

Every sweep adds up what all terms ask of every atom, and moves the atoms together (Jacobi), so that
the order of the terms decides nothing but rounding. Eight molecules of a kind are worked out at
once, one in each lane of a vector (`mdbackmap.lanes`): the last axis of arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mdbackmap.compiled import compiled, part
from mdbackmap.lanes import LANES, at, least, most, put, root, size, where_less

FIRM = 4
"""Sweeps that take nothing over from the one before."""
LOOK = 2
"""Sweeps from one look at contacts to the next: they are many, and few of them are too close."""

_R = np.float32
HALF, TINY = _R(0.5), _R(1e-8)
TURN = _R(1.0)
"""Radians of a torsion's error that one sweep takes back at most."""
SHORTEST, FLATTEST = _R(0.1), _R(0.5)
"""Å^2 of a torsion's axis, and Å^4 of its normals, at least."""
PI, THIRD = _R(np.pi), _R(2 * np.pi / 3)
ATAN = tuple(map(_R, (0.99997726, -0.33262347, 0.19354346, -0.11643287, 0.05265332, -0.01172120)))
"""Coefficients of odd powers of the arc tangent from -1 to 1, to 1e-5."""


class Terms(NamedTuple):
    """What holds of the atoms of a molecule; whole numbers are int32, all others float32.

    Attributes
    ----------
    pairs : shape=(m, 2); nearest, furthest : shape=(m,), Å
        Limits of distances.
    quads : shape=(v, 4); smallest, largest : shape=(v,), Å^3
        Limits of signed volumes of a centre and three atoms about it.
    least : shape=(v,), Å^3
        A smaller volume is a wrong hand.
    torsions : shape=(t, 4); torsion, give : shape=(t,), radians
        Torsions with a target, and by how much they may be off.
    may_be_cis, free : shape=(t,), bool
        Those for which the prediction decides, and those that are turned to the nearest of 60, 180
        and 300 degrees and let go before the end.
    phi_psi : shape=(r, 5); kind : shape=(r,)
        See `mdbackmap.geometry.constraints.Backbone`.
    members : shape=(k, 2); weights, share : shape=(k,)
        Bead and atom, how much the atom counts in the bead, and the bead for the atom.
    rate, momentum : shape=(n,)
        What atoms take of a step, and of the step before.
    """

    pairs: np.ndarray
    nearest: np.ndarray
    furthest: np.ndarray
    quads: np.ndarray
    smallest: np.ndarray
    largest: np.ndarray
    least: np.ndarray
    torsions: np.ndarray
    torsion: np.ndarray
    give: np.ndarray
    may_be_cis: np.ndarray
    free: np.ndarray
    phi_psi: np.ndarray
    kind: np.ndarray
    members: np.ndarray
    weights: np.ndarray
    share: np.ndarray
    rate: np.ndarray
    momentum: np.ndarray


class Apart(NamedTuple):
    """Atoms to be kept apart from one another, and from points that do not move in a round.

    Rows are sorted by the bundle of `LANES` molecules they are of; an atom's slot in its bundle is
    its number in the molecule times `LANES`, and its lane.

    Attributes
    ----------
    pairs : ndarray, shape=(m, 2), int32
        Slots of two atoms of a molecule.
    pair_nearest : ndarray, shape=(m,), float32, Å
    pair_start : ndarray, shape=(bundles + 1,), int64
    ends : ndarray, shape=(k,), int32
        Slots of atoms that see points.
    points : ndarray, shape=(k, 3), float32, Å
    nearest : ndarray, shape=(k,), float32, Å
    start : ndarray, shape=(bundles + 1,), int64
    """

    pairs: np.ndarray
    pair_nearest: np.ndarray
    pair_start: np.ndarray
    ends: np.ndarray
    points: np.ndarray
    nearest: np.ndarray
    start: np.ndarray


@compiled
def sweep(positions, target, beads, left, terms, apart, way_back, sweeps, hold, drift):
    """Move some molecules of a kind, one round of sweeps.

    Parameters
    ----------
    positions : ndarray, shape=(m, n, 3), float32, Å
        Of m molecules, a multiple of `LANES`; changed in place.
    target : ndarray, shape=(m, t), float32, radians
        What torsions are turned to.
    beads : ndarray, shape=(m, n_beads, 3), float32, Å
    left : ndarray, shape=(m,), bool
        Those to be moved.
    terms : Terms
    apart : Apart
    way_back : ndarray, shape=(kinds, cells, cells, 2), float32, radians
        See `mdbackmap.geometry.ramachandran.way_back`.
    sweeps : int; hold, drift : float
        See `mdbackmap.geometry.idealise`.
    """
    n, n_beads = positions.shape[1], beads.shape[1]
    points, goal = np.empty((n, 3, LANES), np.float32), np.empty((n_beads, 3, LANES), np.float32)
    turns = np.empty((target.shape[1], 2, LANES), np.float32)
    step, speed = np.empty_like(points), np.empty_like(points)
    off = np.empty_like(goal)
    for bundle in range(len(positions) // LANES):
        first = bundle * LANES
        if not _any(left, first):
            continue
        _load(points, positions, bundle)
        _load(goal, beads, bundle)
        _aim(turns, target, bundle)
        _clear(speed)
        for number in range(sweeps):
            _clear(step)
            _add_distances(step, points, terms)
            if number % LOOK == 0:
                _add_contacts(step, points, apart, bundle)
            _add_volumes(step, points, terms)
            # Beads and staggered torsions are let go at the end: bonds have the last word.
            grip = max(0.0, min(1.0, 2.0 * (1 - number / sweeps) - 0.5))
            _add_torsions(step, points, turns, terms, grip)
            _add_phi_psi(step, points, terms, way_back, drift)
            _add_beads(step, points, goal, off, terms, grip * hold)
            _move(points, speed, step, terms, number >= FIRM)
        for lane in range(LANES):
            if left[first + lane]:
                for i in range(n):
                    for x in range(3):
                        positions[first + lane, i, x] = points[i, x, lane]


@compiled
def targets(positions, gauche, terms):
    """Choose what torsions are turned to; some stay as they are predicted.

    Parameters
    ----------
    positions : ndarray, shape=(m, n, 3), float32, Å
    gauche : ndarray, shape=(m, t), float32
        Sides of the torsions that are to be gauche; see `mdbackmap.geometry.idealise.Staggered`.
    terms : Terms

    Returns
    -------
    ndarray, shape=(m, t), float32, radians
    """
    points = np.empty((positions.shape[1], 3, LANES), np.float32)
    angle = np.empty((1, 1, LANES), np.float32)
    found = np.empty(gauche.shape, np.float32)
    for bundle in range(len(positions) // LANES):
        _load(points, positions, bundle)
        first = bundle * LANES
        for t in range(found.shape[1]):
            a, b, c, d = terms.torsions[t]
            put(angle, 0, 0, _arc(*_sine_cosine(points, a, b, c, d)))
            for lane in range(LANES):
                own, side, goal = angle[0, 0, lane], gauche[first + lane, t], terms.torsion[t]
                if terms.free[t]:
                    goal = THIRD * (np.floor(own / THIRD) + HALF)
                    if abs(own) > THIRD and side != 0:
                        goal = side * HALF * THIRD
                elif terms.may_be_cis[t] and abs(own) < HALF * PI:
                    goal = _R(0)
                found[first + lane, t] = goal
    return found


@compiled
def unsettled(positions, target, left, terms, near):
    """Return those of some molecules in which a fixed torsion or a hand is not as it should be.

    Parameters
    ----------
    positions, target, left, terms
        As in `sweep`.
    near : float
        Cosine of the error that torsions may have.

    Returns
    -------
    ndarray, shape=(m,), bool
    """
    points = np.empty((positions.shape[1], 3, LANES), np.float32)
    turns = np.empty((target.shape[1], 2, LANES), np.float32)
    lacks = np.empty((1, 1, LANES), np.float32)
    found = np.zeros(len(left), np.bool_)
    for bundle in range(len(positions) // LANES):
        first = bundle * LANES
        if not _any(left, first):
            continue
        _load(points, positions, bundle)
        _aim(turns, target, bundle)
        put(lacks, 0, 0, _least_margin(points, turns, terms, near))
        for lane in range(LANES):
            found[first + lane] = left[first + lane] and lacks[0, 0, lane] < 0
    return found


@part
def _any(left, first):
    found = False
    for lane in range(LANES):
        found |= left[first + lane]
    return found


@part
def _load(points, positions, bundle):
    """Put molecules into the lanes."""
    for lane in range(LANES):
        k = bundle * LANES + lane
        for i in range(len(points)):
            for x in range(3):
                points[i, x, lane] = positions[k, i, x]


@part
def _aim(turns, target, bundle):
    """Cosines and sines of the targets of the molecules in the lanes."""
    for lane in range(LANES):
        k = bundle * LANES + lane
        for t in range(len(turns)):
            turns[t, 0, lane], turns[t, 1, lane] = np.cos(target[k, t]), np.sin(target[k, t])


@part
def _clear(array):
    for i in range(len(array)):
        for x in range(3):
            put(array, i, x, 0.0)


@part
def _move(points, speed, step, terms, again):
    for i in range(len(points)):
        share = terms.momentum[i] if again else 0.0
        for x in range(3):
            new = at(step, i, x) + share * at(speed, i, x)
            put(speed, i, x, new)
            put(points, i, x, at(points, i, x) + new)


@part
def _arm(points, i, j):
    return (at(points, j, 0) - at(points, i, 0), at(points, j, 1) - at(points, i, 1),
            at(points, j, 2) - at(points, i, 2))  # fmt: skip


@part
def _cross(a, b):
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@part
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@part
def _times(factor, a):
    return factor * a[0], factor * a[1], factor * a[2]


@part
def _push(step, i, way):
    put(step, i, 0, at(step, i, 0) + way[0])
    put(step, i, 1, at(step, i, 1) + way[1])
    put(step, i, 2, at(step, i, 2) + way[2])


@part
def _pull(step, i, way):
    put(step, i, 0, at(step, i, 0) - way[0])
    put(step, i, 1, at(step, i, 1) - way[1])
    put(step, i, 2, at(step, i, 2) - way[2])


@part
def _add_distances(step, points, terms):
    for m in range(len(terms.pairs)):
        i, j = terms.pairs[m]
        arm = _arm(points, i, j)
        length = root(_dot(arm, arm) + TINY)
        limit = least(most(length, terms.nearest[m]), terms.furthest[m])
        way = _times(HALF - HALF * limit / length, arm)
        _push(step, i, way)
        _pull(step, j, way)


@part
def _add_contacts(step, points, apart, bundle):
    for m in range(apart.pair_start[bundle], apart.pair_start[bundle + 1]):
        one, other = apart.pairs[m]
        i, j, k = one // LANES, other // LANES, one % LANES
        x = points[j, 0, k] - points[i, 0, k]
        y = points[j, 1, k] - points[i, 1, k]
        z = points[j, 2, k] - points[i, 2, k]
        share = _too_close(x, y, z, apart.pair_nearest[m])
        if share != 0:
            step[i, 0, k] -= share * x
            step[i, 1, k] -= share * y
            step[i, 2, k] -= share * z
            step[j, 0, k] += share * x
            step[j, 1, k] += share * y
            step[j, 2, k] += share * z
    for m in range(apart.start[bundle], apart.start[bundle + 1]):
        i, k = apart.ends[m] // LANES, apart.ends[m] % LANES
        x = apart.points[m, 0] - points[i, 0, k]
        y = apart.points[m, 1] - points[i, 1, k]
        z = apart.points[m, 2] - points[i, 2, k]
        share = _too_close(x, y, z, apart.nearest[m])
        if share != 0:
            step[i, 0, k] -= share * x
            step[i, 1, k] -= share * y
            step[i, 2, k] -= share * z


@part
def _too_close(x, y, z, nearest):
    """Half of what two points lack of a distance, as a share of the way between them."""
    square = x * x + y * y + z * z + TINY
    if square >= nearest * nearest:
        return _R(0)
    return HALF * nearest / np.sqrt(square) - HALF


@part
def _add_volumes(step, points, terms):
    for v in range(len(terms.quads)):
        centre, one, two, three = terms.quads[v]
        a, b, c = _arm(points, centre, one), _arm(points, centre, two), _arm(points, centre, three)
        to_a, to_b, to_c = _cross(b, c), _cross(c, a), _cross(a, b)
        both = (to_a[0] + to_b[0] + to_c[0], to_a[1] + to_b[1] + to_c[1],
                to_a[2] + to_b[2] + to_c[2])  # fmt: skip
        volume = _dot(a, to_a)
        weight = _dot(to_a, to_a) + _dot(to_b, to_b) + _dot(to_c, to_c) + _dot(both, both)
        error = volume - least(most(volume, terms.smallest[v]), terms.largest[v])
        error = error / most(weight, 1.0)
        _push(step, centre, _times(error, both))
        _pull(step, one, _times(error, to_a))
        _pull(step, two, _times(error, to_b))
        _pull(step, three, _times(error, to_c))


@part
def _arc(sine, cosine):
    """Return the angle of a sine and cosine of any scale, radians, to 1e-5."""
    high, low = size(sine), size(cosine)
    ratio = least(high, low) / most(most(high, low), TINY)
    square = ratio * ratio
    total = ((((ATAN[5] * square + ATAN[4]) * square + ATAN[3]) * square + ATAN[2]) * square
             + ATAN[1]) * square + ATAN[0]  # fmt: skip
    angle = ratio * total
    angle = where_less(low, high, HALF * PI - angle, angle)
    angle = where_less(cosine, 0.0, PI - angle, angle)
    return where_less(sine, 0.0, -angle, angle)


@part
def _sine_cosine(points, a, b, c, d):
    """Sine and cosine of a torsion, of one scale."""
    first, axis, last = _arm(points, a, b), _arm(points, b, c), _arm(points, c, d)
    one, other = _cross(first, axis), _cross(axis, last)
    return root(_dot(axis, axis)) * _dot(first, other), _dot(one, other)


@part
def _turn(step, points, a, b, c, d, error):
    """Turn torsions back by their errors.

    Gradients after Blondel and Karplus, J. Comput. Chem. 17, 1132 (1996), eq. 27: along the normals
    at the ends, what keeps force and torque zero between them.
    """
    first, axis, last = _arm(points, a, b), _arm(points, b, c), _arm(points, c, d)
    one, other = _cross(first, axis), _cross(axis, last)
    square = most(_dot(axis, axis), SHORTEST)
    length = root(square)
    start = _times(length / most(_dot(one, one), FLATTEST), one)
    stop = _times(length / most(_dot(other, other), FLATTEST), other)
    before, after = 1.0 + _dot(first, axis) / square, _dot(last, axis) / square
    second = (before * start[0] + after * stop[0], before * start[1] + after * stop[1],
              before * start[2] + after * stop[2])  # fmt: skip
    third = (start[0] - stop[0] - second[0], start[1] - stop[1] - second[1],
             start[2] - stop[2] - second[2])  # fmt: skip
    weight = _dot(start, start) + _dot(second, second) + _dot(third, third) + _dot(stop, stop)
    error = least(most(error, -TURN), TURN) / most(weight, 1.0)
    _push(step, a, _times(error, start))
    _pull(step, b, _times(error, second))
    _pull(step, c, _times(error, third))
    _pull(step, d, _times(error, stop))


@part
def _add_torsions(step, points, turns, terms, grip):
    for t in range(len(turns)):
        a, b, c, d = terms.torsions[t]
        give, share = terms.give[t], grip if terms.free[t] else 1.0
        if share == 0:
            continue
        sine, cosine = _sine_cosine(points, a, b, c, d)
        ahead, side = at(turns, t, 0), at(turns, t, 1)
        error = _arc(sine * ahead - cosine * side, cosine * ahead + sine * side)
        error = share * (error - least(most(error, -give), give))
        _turn(step, points, a, b, c, d, error)


@part
def _add_phi_psi(step, points, terms, way_back, drift):
    errors = np.zeros((2, 2, LANES), np.float32)
    for r in range(len(terms.kind)):
        a, b, c, d, e = terms.phi_psi[r]
        put(errors, 0, 0, _arc(*_sine_cosine(points, a, b, c, d)))
        put(errors, 0, 1, _arc(*_sine_cosine(points, b, c, d, e)))
        strays = False
        for lane in range(LANES):
            row = _cell(errors[0, 0, lane], way_back.shape[1])
            column = _cell(errors[0, 1, lane], way_back.shape[1])
            for k in range(2):
                way = way_back[terms.kind[r], row, column, k]
                errors[1, k, lane] = -drift * way
                strays |= way != 0
        if strays:
            _turn(step, points, a, b, c, d, at(errors, 1, 0))
            _turn(step, points, b, c, d, e, at(errors, 1, 1))


@part
def _cell(angle, cells):
    """Place of an angle in a table of so many cells, from -180 degrees."""
    return min(max(int((angle / (PI + PI) + HALF) * _R(cells)), 0), cells - 1)


@part
def _add_beads(step, points, goal, off, terms, hold):
    """Make steps what atoms take of them, and add what beads ask for."""
    for i in range(len(step)):
        for x in range(3):
            put(step, i, x, terms.rate[i] * at(step, i, x))
    if hold == 0:
        return
    for b in range(len(off)):
        for x in range(3):
            put(off, b, x, at(goal, b, x))
    for k in range(len(terms.members)):
        bead, atom = terms.members[k]
        for x in range(3):
            put(off, bead, x, at(off, bead, x) - terms.weights[k] * at(points, atom, x))
    for k in range(len(terms.members)):
        bead, atom = terms.members[k]
        for x in range(3):
            put(step, atom, x, at(step, atom, x) + hold * terms.share[k] * at(off, bead, x))


@part
def _least_margin(points, turns, terms, near):
    """How far fixed torsions and hands are from being wrong at least; negative where one is."""
    margin = most(at(points, 0, 0), _R(np.inf))
    for t in range(len(turns)):
        if terms.free[t]:
            continue
        a, b, c, d = terms.torsions[t]
        sine, cosine = _sine_cosine(points, a, b, c, d)
        along = cosine * at(turns, t, 0) + sine * at(turns, t, 1)
        margin = least(margin, along - near * root(sine * sine + cosine * cosine))
    for v in range(len(terms.quads)):
        centre, one, two, three = terms.quads[v]
        a, b, c = _arm(points, centre, one), _arm(points, centre, two), _arm(points, centre, three)
        margin = least(margin, _dot(a, _cross(b, c)) - terms.least[v])
    return margin
