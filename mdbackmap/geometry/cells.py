"""Points sorted into cells, and pairs of them that are near one another: compiled loops."""

from __future__ import annotations

import numpy as np

from mdbackmap.compiled import compiled, part

LEAST = 1e-3
"""Å; no cell is smaller."""


@compiled
def sorted_into_cells(points, box, cutoff):
    """Sort points, and their images within the cutoff of the cell, into cells of a grid.

    Parameters
    ----------
    points : ndarray, shape=(n, 3), float64, Å
        At least one.
    box : ndarray, shape=(3, 3) or (0, 3), float64, Å

    Returns
    -------
    points : ndarray, shape=(m, 3), float64, Å
        In the order of their cells.
    number, owner : ndarray, shape=(m,), int64
        What each was before it was sorted, images behind points, and the point it is an image of.
    start : ndarray, int64
        Where each cell starts.
    low, size : ndarray, shape=(3,), Å; shape : ndarray, shape=(3,), int64
        Where cells begin, their size, no smaller than the cutoff, and their numbers.
    """
    owner = np.arange(len(points))
    if len(box):
        points, owner = with_images(points, box, cutoff)
    low, size, shape = _grid(points, cutoff)
    number, start = _sorted_by_cell(points, low, size, shape)
    new, owners = np.empty((len(points), 3), np.float64), np.empty(len(points), np.int64)
    for k in range(len(points)):
        owners[k] = owner[number[k]]
        for x in range(3):
            new[k, x] = points[number[k], x]
    return new, number, owners, start, low, size, shape


@part
def _grid(points, cutoff):
    low, size, extent = np.empty(3), np.full(3, max(cutoff, LEAST)), np.empty(3)
    for x in range(3):
        least = most = points[0, x]
        for i in range(len(points)):
            least, most = min(least, points[i, x]), max(most, points[i, x])
        low[x], extent[x] = least, most - least
    while True:
        shape = np.floor(extent / size) + 1
        if shape[0] * shape[1] * shape[2] <= max(2 * len(points), 64):
            return low, size, shape.astype(np.int64)
        # Far more cells than points: the widest axes are cut more coarsely.
        widest = shape.max()
        for x in range(3):
            if shape[x] == widest:
                size[x] *= 2


@part
def _sorted_by_cell(points, low, size, shape):
    """The order of points by their cells, and where each cell starts."""
    n = len(points)
    cell = np.empty(n, np.int64)
    start = np.zeros(shape[0] * shape[1] * shape[2] + 1, np.int64)
    for i in range(n):
        number = 0
        for x in range(3):
            number = number * shape[x] + _place(points[i, x], low[x], size[x], shape[x])
        cell[i] = number
        start[number + 1] += 1
    for k in range(len(start) - 1):
        start[k + 1] += start[k]
    order, place = np.empty(n, np.int64), np.zeros(len(start), np.int64)
    for i in range(n):
        order[start[cell[i]] + place[cell[i]]] = i
        place[cell[i]] += 1
    return order, start


@part
def _place(at, low, size, count):
    return min(max(int((at - low) / size), 0), count - 1)


@compiled
def pairs_in_cells(points, number, owner, start, shape, begin, end, cutoff, n, own_images, but):
    """Find pairs whose first point, in the order of cells, lies in some columns of cells.

    Parameters
    ----------
    points, number, owner, start, shape
        As `sorted_into_cells` returns them.
    n : int
        Points that are no images; numbered first.
    own_images : bool
        With pairs of a point and an image of itself.
    but : ndarray, shape=(n, k) or (0, 0), int32
        Points of higher numbers that are no neighbours of each; padded with -1.

    Returns
    -------
    ndarray, shape=(k, 2), int64; ndarray, shape=(k, 3), float32
        Pairs, the lower number first, and the way from one to the other.
    """
    size, found, limit = 1024, 0, cutoff * cutoff
    pairs, vectors = np.empty((size, 2), np.int64), np.empty((size, 3), np.float32)
    low, high = np.empty(5, np.int64), np.empty(5, np.int64)
    for column in range(begin, end):
        x, y = column // shape[1], column % shape[1]
        for z in range(shape[2]):
            here = column * shape[2] + z
            own = start[here + 1] - start[here]
            if own == 0:
                continue
            # Cells along z follow one another, so that half of the 27 are five runs.
            seen = 0
            for run in range(5):
                across, beside = x + (run > 1), y + (run == 1) + (run - 3 if run > 1 else 0)
                low[run] = high[run] = 0
                if across < shape[0] and 0 <= beside < shape[1]:
                    base = (across * shape[1] + beside) * shape[2]
                    low[run] = start[base + max(z - 1, 0)] if run else start[here]
                    high[run] = start[base + min(z + 2, shape[2])]
                    seen += high[run] - low[run]
            # Room for all at once: an array that may change inside the loops makes them slow.
            if found + own * seen > size:
                size = 2 * size + own * seen
                pairs, vectors = _longer(pairs, vectors, size)
            for i in range(start[here], start[here + 1]):
                low[0] = i + 1
                found = _pairs_of_one(points, number, owner, low, high, i, limit, n, own_images,
                                      but, pairs, vectors, found)  # fmt: skip
    return _longer(pairs, vectors, found)


@part
def _pairs_of_one(
    points, number, owner, low, high, i, limit, n, own_images, but, pairs, vectors, found
):  # fmt: skip
    """Write pairs of a point and those in runs of others; return how many there are then."""
    here_x, here_y, here_z = points[i, 0], points[i, 1], points[i, 2]
    for run in range(len(low)):
        for j in range(low[run], high[run]):
            dx, dy, dz = points[j, 0] - here_x, points[j, 1] - here_y, points[j, 2] - here_z
            if dx * dx + dy * dy + dz * dz > limit:
                continue
            a, b = (i, j) if number[i] < number[j] else (j, i)
            # A pair across a face is met twice, once from either side.
            if number[a] >= n or owner[a] > owner[b]:
                continue
            if owner[a] == owner[b] and not own_images:
                continue
            if len(but) and listed(but, owner[a], owner[b]):
                continue
            way = 1 if a == i else -1
            _write(pairs, vectors, found, owner[a], owner[b], way * dx, way * dy, way * dz)
            found += 1
    return found


@compiled
def pairs_of_two(centres, points, start, low, size, shape, cutoff):
    """Find pairs of a centre and a point within a cutoff.

    Parameters
    ----------
    centres : ndarray, shape=(m, 3), float64, Å
    points, start, low, size, shape
        As `sorted_into_cells` returns them. Points are numbered as they are given here.
    """
    room = 1024
    pairs, vectors = np.empty((room, 2), np.int64), np.empty((room, 3), np.float32)
    found, limit = 0, cutoff * cutoff
    for i in range(len(centres)):
        x = int(np.floor((centres[i, 0] - low[0]) / size[0]))
        y = int(np.floor((centres[i, 1] - low[1]) / size[1]))
        z = int(np.floor((centres[i, 2] - low[2]) / size[2]))
        first, last = max(z - 1, 0), min(z + 2, shape[2])
        if first >= last:
            continue
        for across in range(max(x - 1, 0), min(x + 2, shape[0])):
            for beside in range(max(y - 1, 0), min(y + 2, shape[1])):
                base = (across * shape[1] + beside) * shape[2]
                for j in range(start[base + first], start[base + last]):
                    dx = points[j, 0] - centres[i, 0]
                    dy = points[j, 1] - centres[i, 1]
                    dz = points[j, 2] - centres[i, 2]
                    if dx * dx + dy * dy + dz * dz > limit:
                        continue
                    if found == room:
                        room *= 2
                        pairs, vectors = _longer(pairs, vectors, room)
                    _write(pairs, vectors, found, i, j, dx, dy, dz)
                    found += 1
    return _longer(pairs, vectors, found)


@compiled
def with_images(points, box, cutoff):
    """Put points into the cell and append images within the cutoff of it.

    Parameters
    ----------
    points : ndarray, shape=(n, 3), float64, Å
    box : ndarray, shape=(3, 3), float64, Å

    Returns
    -------
    ndarray, shape=(n + images, 3), float64, Å; ndarray, shape=(n + images,), int64
        And the point each is an image of.
    """
    inverse, margins = _inverse(box), np.empty(3)
    for x in range(3):
        # A column is as long as faces are near.
        margins[x] = cutoff * np.sqrt(inverse[0, x] ** 2 + inverse[1, x] ** 2 + inverse[2, x] ** 2)
    shares, owner = _images(_wrapped(points, inverse), margins)
    placed = np.empty((len(shares), 3), np.float64)
    for i in range(len(shares)):
        for x in range(3):
            placed[i, x] = (shares[i, 0] * box[0, x] + shares[i, 1] * box[1, x]
                            + shares[i, 2] * box[2, x])  # fmt: skip
    return placed, owner


@part
def _inverse(box):
    """The inverse of a matrix (3, 3), by cross products of its rows."""
    result = np.empty((3, 3))
    for x in range(3):
        one, two = box[(x + 1) % 3], box[(x + 2) % 3]
        result[0, x] = one[1] * two[2] - one[2] * two[1]
        result[1, x] = one[2] * two[0] - one[0] * two[2]
        result[2, x] = one[0] * two[1] - one[1] * two[0]
    volume = box[0, 0] * result[0, 0] + box[0, 1] * result[1, 0] + box[0, 2] * result[2, 0]
    return result / volume


@part
def _wrapped(points, inverse):
    """Shares of box vectors between 0 and 1."""
    inside = np.empty((len(points), 3), np.float64)
    for i in range(len(points)):
        for x in range(3):
            share = (points[i, 0] * inverse[0, x] + points[i, 1] * inverse[1, x]
                     + points[i, 2] * inverse[2, x])  # fmt: skip
            inside[i, x] = share - np.floor(share)
    return inside


@part
def _images(inside, margins):
    """Shares of box vectors, and those of images within margins, shares as well, of the cell."""
    count = np.int64(len(inside))
    room = count + count // 8 + 64
    points, owner = _room(inside, room)
    for axis in range(3):
        margin, before = margins[axis], count
        for step in range(1, 1 + int(np.ceil(margin))):
            for way in (step, -step):
                low, high = -margin - way, 1 + margin - way
                more = 0
                for i in range(before):
                    more += low < points[i, axis] < high
                if count + more > room:
                    room = 2 * room + more
                    points, owner = _more_room(points, owner, room)
                if more:
                    _shift(points, owner, before, count, axis, way, low, high)
                count += more
    return _more_room(points, owner, count)


@part
def _shift(points, owner, before, count, axis, way, low, high):
    """Append images of points between two places along an axis."""
    for i in range(before):
        if low < points[i, axis] < high:
            for x in range(3):
                points[count, x] = points[i, x]
            points[count, axis] += way
            owner[count] = owner[i]
            count += 1


@part
def _room(inside, room):
    points, owner = np.empty((room, 3), np.float64), np.empty(room, np.int64)
    for i in range(len(inside)):
        owner[i] = i
        for x in range(3):
            points[i, x] = inside[i, x]
    return points, owner


@part
def _more_room(points, owner, room):
    more, owners = np.empty((room, 3), np.float64), np.empty(room, np.int64)
    for i in range(min(room, len(points))):
        owners[i] = owner[i]
        for x in range(3):
            more[i, x] = points[i, x]
    return more, owners


@part
def listed(table, i, j):
    """Whether j is in row i of a table."""
    found = False
    for k in range(table.shape[1]):
        found |= table[i, k] == j
    return found


@part
def _write(pairs, vectors, k, i, j, x, y, z):
    pairs[k, 0], pairs[k, 1] = i, j
    vectors[k, 0], vectors[k, 1], vectors[k, 2] = x, y, z


@part
def _longer(pairs, vectors, size):
    """The same rows in longer arrays."""
    more, further = np.empty((size, 2), np.int64), np.empty((size, 3), np.float32)
    for k in range(min(len(pairs), size)):
        for x in range(2):
            more[k, x] = pairs[k, x]
        for x in range(3):
            further[k, x] = vectors[k, x]
    return more, further
