"""The compiled half of `mdbackmap.geometry.rotamers`: chains grown and made to fit their beads.

Conformers are weighted eight at a time, and eight chains at a time are bent and twisted, one in
each lane of a vector (`mdbackmap.lanes`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mdbackmap.compiled import compiled, part
from mdbackmap.lanes import LANES, at, exponential, least, most, put, root

GROUP = 64
"""Weights of which only the sum is looked at first."""
LOWEST = np.float32(-30)
"""Logarithm of the least weight, over the largest; smaller numbers would be slow to work out."""
QUADRATIC = 9
"""Coefficients of x², y², z², xy, xz, yz, x, y, z."""
FURTHEST = np.float32(2)
"""Standard deviations that an angle is changed by at most in one step."""
ECLIPSED = np.float32(math.cos(math.radians(30.0)))
"""Cosine of a torsion that is nearer to cis than any chain is."""
_TINY = np.float32(1e-18)


class Steps(NamedTuple):
    """Conformers of each block of a chain, and how they are weighted; whole numbers are int64.

    Attributes
    ----------
    size : ndarray, shape=(s,)
        Atoms of each block.
    n_beads : ndarray, shape=(s,)
        Beads that a conformer is judged by: its own, and some of those after it.
    atoms : ndarray, shape=(s, k, n, 3), float32, Å
    turn : ndarray, shape=(s, k, 3, 3); shift : ndarray, shape=(s, k, 3), float32, Å
        As in `mdbackmap.geometry.rotamers.Conformers`.
    last : ndarray, shape=(s, k)
        State of the last torsion.
    centre : ndarray, shape=(s, b, 3), float32, Å
        What is taken off beads first.
    table : ndarray, shape=(s, 9 b, k / 8, 8), float32
        Coefficients of the logarithm of a conformer's weight.
    favour : ndarray, shape=(s, 3, k / 8, 8), float32
        What is added, by the state of the torsion before.
    mean : ndarray, shape=(s, b - 1, 3), inverse : ndarray, shape=(s, b - 1, 3, 3), float32
        Where later beads are expected, and how surely, seen from the end of the block.
    """

    size: np.ndarray
    n_beads: np.ndarray
    atoms: np.ndarray
    turn: np.ndarray
    shift: np.ndarray
    last: np.ndarray
    centre: np.ndarray
    table: np.ndarray
    favour: np.ndarray
    mean: np.ndarray
    inverse: np.ndarray


class Flex(NamedTuple):
    """How far a chain bends and twists.

    Attributes
    ----------
    weights : ndarray, shape=(b, n), float32
        With which atoms place beads.
    stop : ndarray, shape=(b,), int64
        The first atom after each bead's.
    spread : ndarray, shape=(n, 2), float32, radians
        Standard deviations of twist and bend of every atom.
    hold : float, Å
        Standard deviation per axis that beads are allowed.
    staggered : ndarray, shape=(n,), bool
        Atoms that end a torsion about a bond of two saturated atoms.
    """

    weights: np.ndarray
    stop: np.ndarray
    spread: np.ndarray
    hold: float
    staggered: np.ndarray


@compiled
def grown(anchors, beads, dice, steps, flex, variances, particles):
    """Grow chains, and keep one per molecule; those that must flex less have better chances.

    Parameters
    ----------
    anchors : ndarray, shape=(m, 3, 3), float32, Å
    beads : ndarray, shape=(m, s, 3), float32, Å
    dice : ndarray, shape=(m, s), float32
    steps : Steps
    flex : Flex
    variances : ndarray, shape=(s,), float32, Å^2
        That are allowed beads while chains grow.
    particles : int
        Chains grown per molecule, a multiple of `LANES`.

    Returns
    -------
    ndarray, shape=(m, 3 + n, 3), float32, Å
        The anchors in front.
    """
    n_steps, candidates = steps.last.shape
    n = flex.weights.shape[1]
    result = np.empty((len(beads), 3 + n, 3), np.float32)
    # Of every particle, now and after the next block.
    points = np.empty((2, particles, 3 + n, 3), np.float32)
    turn = np.empty((2, particles, 3, 3), np.float32)
    shift = np.empty((2, particles, 3), np.float32)
    state, owed = np.empty((2, particles), np.int64), np.empty((2, particles), np.float32)
    weights = np.empty((particles, candidates // LANES, LANES), np.float32)
    picks = np.empty(particles, np.int64)
    known = np.empty(QUADRATIC * steps.centre.shape[1], np.float32)
    chances = np.empty((1, particles // LANES, LANES), np.float32)
    scratch = _room(n, n_steps)
    lanes, goal = np.empty((3 + n, 3, LANES), np.float32), np.empty((n_steps, 3, LANES), np.float32)
    for m in range(len(beads)):
        now, count, begin = 0, 1, 3
        _copy(points[0, 0], anchors[m], 3)
        for x in range(3):
            shift[0, 0, x] = anchors[m, 2, x]
        _frame(turn[0, 0], anchors[m])
        state[0, 0], owed[0, 0] = -1, 0
        for s in range(n_steps):
            for p in range(count):
                _describe(known, beads[m], s, steps, turn[now, p], shift[now, p])
                _weigh(weights, p, known, steps, s, state[now, p], owed[now, p])
            _draw(picks, particles, weights, count, dice[m, s])
            after, size = 1 - now, steps.size[s]
            for p in range(particles):
                parent, own = picks[p] // candidates, picks[p] % candidates
                _copy(points[after, p], points[now, parent], begin)
                for i in range(size):
                    _add_turned(points[after, p, begin + i], turn[now, parent],
                                steps.atoms[s, own, i], shift[now, parent])  # fmt: skip
                _add_turned(shift[after, p], turn[now, parent], steps.shift[s, own],
                            shift[now, parent])  # fmt: skip
                _multiply(turn[after, p], turn[now, parent], steps.turn[s, own])
                state[after, p] = steps.last[s, own]
                owed[after, p] = _looked_ahead(beads[m], s, steps, turn[after, p], shift[after, p])
            now, count, begin = after, particles, begin + size
        for lane in range(LANES):
            _into(goal, lane, beads[m])
        for first in range(0, particles, LANES):
            for lane in range(LANES):
                _into(lanes, lane, points[now, first + lane])
            _chance(chances, first // LANES, lanes, goal, flex, variances, scratch)
        _draw(picks, 1, chances, 1, dice[m, n_steps - 1])
        _copy(result[m], points[now, picks[0]], begin)
    return result


@compiled
def fitted(points, beads, flex, times):
    """Bend and twist chains a little, within their rotamers, until their beads fit.

    Parameters
    ----------
    points : ndarray, shape=(m, 3 + n, 3), float32, Å
    beads : ndarray, shape=(m, b, 3), float32, Å
    flex : Flex
    times : int
        Steps.

    Returns
    -------
    ndarray, shape=(m, n, 3), float32, Å
    ndarray, shape=(m,), bool
        Chains with a torsion that is eclipsed and should be staggered: their beads lie where no
        sound chain reaches that was grown.
    """
    n, b = flex.weights.shape[1], flex.weights.shape[0]
    result = np.empty((len(points), n, 3), np.float32)
    eclipsed = np.zeros(len(points), np.bool_)
    scratch = _room(n, b)
    lanes, goal = np.empty((3 + n, 3, LANES), np.float32), np.empty((b, 3, LANES), np.float32)
    moved = np.empty((n, 2, LANES), np.float32)
    for first in range(0, len(points), LANES):
        for lane in range(LANES):
            k = min(first + lane, len(points) - 1)
            _into(lanes, lane, points[k])
            _into(goal, lane, beads[k])
        for j in range(n):
            put(moved, j, 0, 0.0 * at(lanes, 0, 0))
            put(moved, j, 1, 0.0 * at(lanes, 0, 0))
        for _ in range(times):
            _slopes(lanes, goal, flex, scratch)
            off, slope, normal, axes, _, _ = scratch
            # Gauss-Newton: what has been moved before is paid for once.
            for row in range(3 * b):
                total = at(off, row, 0)
                for j in range(flex.stop[row // 3]):
                    total = total + at(slope[row], j, 0) * at(moved, j, 0)
                    total = total + at(slope[row], j, 1) * at(moved, j, 1)
                put(off, row, 0, total)
            _factorise(normal)
            _solve(normal, off)
            for j in range(n):
                for k in range(2):
                    wanted = 0.0 - at(moved, j, k)
                    for row in range(3 * b):
                        if j < flex.stop[row // 3]:
                            wanted = wanted + at(slope[row], j, k) * at(off, row, 0)
                    step = least(most(wanted, -FURTHEST), FURTHEST)
                    put(moved, j, k, at(moved, j, k) + step)
                    # The axes are as long as a standard deviation.
                    for x in range(3):
                        put(axes[j], k, x, step * at(axes[j], k, x))
            _turn(lanes, axes, scratch)
        for lane in range(min(LANES, len(points) - first)):
            for i in range(n):
                eclipsed[first + lane] |= flex.staggered[i] and _is_eclipsed(lanes, lane, i)
                for x in range(3):
                    result[first + lane, i, x] = lanes[3 + i, x, lane]
    return result, eclipsed


@part
def _is_eclipsed(lanes, lane, i):
    """Whether a torsion, numbered by its first atom, is within 30 degrees of cis."""
    a, b, c, d = lanes[i], lanes[i + 1], lanes[i + 2], lanes[i + 3]
    axis = np.empty(3, np.float32)
    square = before = after = np.float32(0)
    for x in range(3):
        axis[x] = c[x, lane] - b[x, lane]
        square += axis[x] * axis[x]
        before += axis[x] * (a[x, lane] - b[x, lane])
        after += axis[x] * (d[x, lane] - c[x, lane])
    both = one = other = np.float32(0)
    for x in range(3):
        # What is left of both ends at right angles to the bond.
        p = a[x, lane] - b[x, lane] - before / square * axis[x]
        q = d[x, lane] - c[x, lane] - after / square * axis[x]
        both += p * q
        one += p * p
        other += q * q
    return both > ECLIPSED * math.sqrt(one * other)


@part
def _copy(result, points, number):
    # Assigning slices would take the compiler seconds.
    for i in range(number):
        for x in range(3):
            result[i, x] = points[i, x]


@part
def _into(lanes, lane, points):
    for i in range(len(points)):
        for x in range(3):
            lanes[i, x, lane] = points[i, x]


@part
def _normal(turn, k, x, y, z):
    """Make a unit vector a column."""
    length = max(math.sqrt(x * x + y * y + z * z), 1e-12)
    turn[0, k], turn[1, k], turn[2, k] = x / length, y / length, z / length


@part
def _across(turn, k, x, y, z, i):
    """Make the unit vector at right angles to a vector and column i a column."""
    a, b, c = turn[0, i], turn[1, i], turn[2, i]
    _normal(turn, k, y * c - z * b, z * a - x * c, x * b - y * a)


@part
def _frame(turn, points):
    """Axes, as columns, of the frame of three atoms in a row."""
    _normal(turn, 0, points[2, 0] - points[1, 0], points[2, 1] - points[1, 1],
            points[2, 2] - points[1, 2])  # fmt: skip
    _across(turn, 2, points[1, 0] - points[0, 0], points[1, 1] - points[0, 1],
            points[1, 2] - points[0, 2], 0)  # fmt: skip
    _across(turn, 1, turn[0, 2], turn[1, 2], turn[2, 2], 0)


@part
def _seen(bead, turn, shift, k):
    """One coordinate of a point in a frame."""
    return ((bead[0] - shift[0]) * turn[0, k] + (bead[1] - shift[1]) * turn[1, k]
            + (bead[2] - shift[2]) * turn[2, k])  # fmt: skip


@part
def _describe(known, beads, s, steps, turn, shift):
    """Products of the coordinates of the beads that conformers are judged by."""
    for b in range(steps.n_beads[s]):
        x = _seen(beads[s + b], turn, shift, 0) - steps.centre[s, b, 0]
        y = _seen(beads[s + b], turn, shift, 1) - steps.centre[s, b, 1]
        z = _seen(beads[s + b], turn, shift, 2) - steps.centre[s, b, 2]
        row = QUADRATIC * b
        known[row], known[row + 1], known[row + 2] = x * x, y * y, z * z
        known[row + 3], known[row + 4], known[row + 5] = x * y, x * z, y * z
        known[row + 6], known[row + 7], known[row + 8] = x, y, z


@part
def _weigh(weights, p, known, steps, s, state, owed):
    """Logarithms of the weights of all conformers after one particle, shape (k / 8, 8)."""
    table, favour = steps.table[s], steps.favour[s]
    rows, state = QUADRATIC * steps.n_beads[s], max(state, 0)
    for q in range(0, weights.shape[1], 4):
        one, two = at(favour, state, q) - owed, at(favour, state, q + 1) - owed
        three, four = at(favour, state, q + 2) - owed, at(favour, state, q + 3) - owed
        for r in range(rows):
            one = one + known[r] * at(table, r, q)
            two = two + known[r] * at(table, r, q + 1)
            three = three + known[r] * at(table, r, q + 2)
            four = four + known[r] * at(table, r, q + 3)
        put(weights, p, q, one)
        put(weights, p, q + 1, two)
        put(weights, p, q + 2, three)
        put(weights, p, q + 3, four)


@part
def _draw(picks, count, weights, rows, place):
    """Systematic resampling: draw in proportion to weights, given their logarithms, which are lost.

    Parameters
    ----------
    picks : ndarray, shape=(p,), int64
        Written: numbers of what is drawn, in the order of the weights.
    count : int
        How many are drawn.
    weights : ndarray, shape=(p, q, 8), float32
    rows : int
        Those of the first axis that are drawn from.
    place : float
        A uniform random number.
    """
    across = weights.shape[1]
    vectors = rows * across
    best = at(weights, 0, 0)
    for k in range(1, vectors):
        best = most(best, at(weights, k // across, k % across))
    lanes = np.empty((1, 1, LANES), np.float32)
    put(lanes, 0, 0, best)
    highest = lanes[0, 0, 0]
    for lane in range(1, LANES):
        highest = max(highest, lanes[0, 0, lane])
    per = GROUP // LANES if vectors % (GROUP // LANES) == 0 else 1
    sums = np.empty(vectors // per, np.float32)
    total = np.float32(0)
    for g in range(len(sums)):
        weight = 0.0 * best
        for k in range(g * per, (g + 1) * per):
            i, j = k // across, k % across
            own = exponential(most(at(weights, i, j) - highest, LOWEST))
            put(weights, i, j, own)
            weight = weight + own
        put(lanes, 0, 0, weight)
        sums[g] = 0
        for lane in range(LANES):
            sums[g] += lanes[0, 0, lane]
        total += sums[g]
    group, before = 0, np.float32(0)
    for number in range(count):
        goal = (place + np.float32(number)) * (total / np.float32(count))
        while group < len(sums) - 1 and before + sums[group] <= goal:
            before += sums[group]
            group += 1
        inside, found = before, (group + 1) * per * LANES - 1
        for k in range(group * per * LANES, (group + 1) * per * LANES):
            inside += weights[k // LANES // across, k // LANES % across, k % LANES]
            if inside > goal:
                found = k
                break
        picks[number] = found


@part
def _add_turned(result, turn, point, shift):
    for x in range(3):
        result[x] = (shift[x] + turn[x, 0] * point[0] + turn[x, 1] * point[1]
                     + turn[x, 2] * point[2])  # fmt: skip


@part
def _multiply(result, one, other):
    for x in range(3):
        for y in range(3):
            result[x, y] = (one[x, 0] * other[0, y] + one[x, 1] * other[1, y]
                            + one[x, 2] * other[2, y])  # fmt: skip


@part
def _looked_ahead(beads, s, steps, turn, shift):
    """What later beads added to the logarithm of a weight; the next step judges them itself."""
    total = np.float32(0)
    for b in range(steps.n_beads[s] - 1):
        mean, inverse = steps.mean[s, b], steps.inverse[s, b]
        x = _seen(beads[s + 1 + b], turn, shift, 0) - mean[0]
        y = _seen(beads[s + 1 + b], turn, shift, 1) - mean[1]
        z = _seen(beads[s + 1 + b], turn, shift, 2) - mean[2]
        along = (x * (inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2] * z)
                 + y * (inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2] * z)
                 + z * (inverse[2, 0] * x + inverse[2, 1] * y + inverse[2, 2] * z))  # fmt: skip
        total -= along / np.float32(2)
    return total


@part
def _room(n, b):
    """Arrays that `_slopes` writes: how far beads are off, their change with every angle, its
    square, axes of twist and bend, bonds, and turns."""
    return (
        np.zeros((3 * b, 1, LANES), np.float32), np.zeros((3 * b, n, 2, LANES), np.float32),
        np.zeros((3 * b, 3 * b, LANES), np.float32), np.zeros((n, 2, 3, LANES), np.float32),
        np.zeros((n + 2, 3, LANES), np.float32), np.zeros((2, 9, LANES), np.float32),
    )  # fmt: skip


@part
def _way(points, i):
    """Unit vector from a point to the next."""
    x = at(points, i + 1, 0) - at(points, i, 0)
    y = at(points, i + 1, 1) - at(points, i, 1)
    z = at(points, i + 1, 2) - at(points, i, 2)
    scale = 1.0 / root(x * x + y * y + z * z + _TINY)
    return scale * x, scale * y, scale * z


@part
def _slopes(points, goal, flex, room):
    """Work out how far beads are off, and how that changes with every angle.

    Every atom's bond is turned about itself and its angle opened at the atom before, with all that
    follows, by so many standard deviations.
    """
    off, slope, normal, axes, bonds, _ = room
    n = flex.weights.shape[1]
    for i in range(1, n + 2):
        way = _way(points, i)
        for x in range(3):
            put(bonds, i, x, way[x])
    for j in range(n):
        ax, ay, az = at(bonds, j + 1, 0), at(bonds, j + 1, 1), at(bonds, j + 1, 2)
        bx, by, bz = at(bonds, j + 2, 0), at(bonds, j + 2, 1), at(bonds, j + 2, 2)
        x, y, z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        twist = flex.spread[j, 0]
        bend = flex.spread[j, 1] / root(x * x + y * y + z * z + _TINY)
        put(axes[j], 0, 0, twist * ax)
        put(axes[j], 0, 1, twist * ay)
        put(axes[j], 0, 2, twist * az)
        put(axes[j], 1, 0, bend * x)
        put(axes[j], 1, 1, bend * y)
        put(axes[j], 1, 2, bend * z)
    for b in range(len(flex.stop)):
        x, y, z = 0.0 * at(points, 0, 0), 0.0 * at(points, 0, 0), 0.0 * at(points, 0, 0)
        share = np.float32(0)
        for j in range(flex.stop[b] - 1, -1, -1):
            weight = flex.weights[b, j]
            share += weight
            x = x + weight * at(points, j + 3, 0)
            y = y + weight * at(points, j + 3, 1)
            z = z + weight * at(points, j + 3, 2)
            u = x - share * at(points, j + 2, 0)
            v = y - share * at(points, j + 2, 1)
            w = z - share * at(points, j + 2, 2)
            for k in range(2):
                p, q, r = at(axes[j], k, 0), at(axes[j], k, 1), at(axes[j], k, 2)
                put(slope[3 * b], j, k, q * w - r * v)
                put(slope[3 * b + 1], j, k, r * u - p * w)
                put(slope[3 * b + 2], j, k, p * v - q * u)
        put(off, 3 * b, 0, at(goal, b, 0) - x)
        put(off, 3 * b + 1, 0, at(goal, b, 1) - y)
        put(off, 3 * b + 2, 0, at(goal, b, 2) - z)
    for row in range(len(off)):
        for column in range(row + 1):
            total = 0.0 * at(points, 0, 0)
            # Beads do not change with atoms after them.
            for j in range(flex.stop[column // 3]):
                total = total + at(slope[row], j, 0) * at(slope[column], j, 0)
                total = total + at(slope[row], j, 1) * at(slope[column], j, 1)
            put(normal, row, column, total)
        put(normal, row, row, at(normal, row, row) + np.float32(flex.hold * flex.hold))


@part
def _factorise(normal):
    """Cholesky factor, in place, in the lower half."""
    for i in range(len(normal)):
        for j in range(i + 1):
            total = at(normal, i, j)
            for k in range(j):
                total = total - at(normal, i, k) * at(normal, j, k)
            if i == j:
                put(normal, i, i, root(most(total, _TINY)))
            else:
                put(normal, i, j, total / at(normal, j, j))


@part
def _forward(factor, right):
    for i in range(len(factor)):
        total = at(right, i, 0)
        for k in range(i):
            total = total - at(factor, i, k) * at(right, k, 0)
        put(right, i, 0, total / at(factor, i, i))


@part
def _solve(factor, right):
    """Solve, in place, given a Cholesky factor."""
    _forward(factor, right)
    for i in range(len(factor) - 1, -1, -1):
        total = at(right, i, 0)
        for k in range(i + 1, len(factor)):
            total = total - at(factor, k, i) * at(right, k, 0)
        put(right, i, 0, total / at(factor, i, i))


@part
def _chance(chances, place, points, goal, flex, variances, room):
    """Logarithm of how likely the beads are for chains that may flex, over for stiff ones."""
    _slopes(points, goal, flex, room)
    off, _, normal, _, _, _ = room
    chance = 0.0 * at(points, 0, 0)
    for row in range(len(off)):
        chance = chance + at(off, row, 0) * at(off, row, 0) / (2.0 * variances[row // 3])
    _factorise(normal)
    _forward(normal, off)
    size = 1.0 + chance * 0.0
    for row in range(len(off)):
        chance = chance - 0.5 * at(off, row, 0) * at(off, row, 0)
        size = size * at(normal, row, row)
    put(chances, 0, place, chance)
    lanes = np.empty((1, 1, LANES), np.float32)
    put(lanes, 0, 0, size)
    for lane in range(LANES):
        own = chances[0, place, lane] - np.log(lanes[0, 0, lane])
        chances[0, place, lane] = own if np.isfinite(own) else np.float32(-1e30)


@part
def _turn(points, axes, room):
    """Turn in place by rotation vectors, twist and bend of every atom, from the first atom on.

    Each turn is about axes that the turns before have turned, so all act in their order.
    """
    bonds, whole = room[4], room[5]
    n = len(axes)
    for i in range(2, n + 2):
        for x in range(3):
            put(bonds, i, x, at(points, i + 1, x) - at(points, i, x))
    for k in range(9):
        put(whole, 0, k, (1.0 if k % 4 == 0 else 0.0) + 0.0 * at(points, 0, 0))
    for j in range(n):
        x = at(axes[j], 0, 0) + at(axes[j], 1, 0)
        y = at(axes[j], 0, 1) + at(axes[j], 1, 1)
        z = at(axes[j], 0, 2) + at(axes[j], 1, 2)
        square = x * x + y * y + z * z
        # Sine of the angle over it, and 1 less its cosine over its square; angles are below 30°.
        sine = 1.0 - square / 6.0 * (1.0 - square / 20.0 * (1.0 - square / 42.0))
        rest = 0.5 - square / 24.0 * (1.0 - square / 30.0 * (1.0 - square / 56.0))
        own = (
            1.0 - rest * (y * y + z * z), rest * x * y - sine * z, rest * x * z + sine * y,
            rest * x * y + sine * z, 1.0 - rest * (x * x + z * z), rest * y * z - sine * x,
            rest * x * z - sine * y, rest * y * z + sine * x, 1.0 - rest * (x * x + y * y),
        )  # fmt: skip
        for a in range(3):
            for b in range(3):
                total = at(whole, 0, 3 * a) * own[b]
                total = total + at(whole, 0, 3 * a + 1) * own[3 + b]
                total = total + at(whole, 0, 3 * a + 2) * own[6 + b]
                put(whole, 1, 3 * a + b, total)
        for k in range(9):
            put(whole, 0, k, at(whole, 1, k))
        for a in range(3):
            total = at(points, j + 2, a)
            for b in range(3):
                total = total + at(whole, 0, 3 * a + b) * at(bonds, j + 2, b)
            put(points, j + 3, a, total)
