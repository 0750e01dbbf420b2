"""The network on a CPU without small operations: large products by torch, the rest compiled.

The same numbers as `mdbackmap.models.encoder` and `mdbackmap.models.hierarchical` give, to
rounding, in half the time: sums over neighbours are made where they are needed, from a list of
pairs without padding, and what happens at a bead is one loop. Eight features at a time are worked
out together (`mdbackmap.lanes`), so their numbers must be multiples of eight.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mdbackmap.compiled import compiled, part
from mdbackmap.lanes import LANES, at, exponential, least, most, put, root
from mdbackmap.models.encoder import SAME_RESIDUE, EncoderConfig, Layer
from mdbackmap.models.hierarchical import HierarchicalVectors
from mdbackmap.threads import spread

_R = np.float32
FEW_BEADS = 20_000
"""Below, what depends on distances is worked out once for all layers."""
NEAREST, FLATTEST = _R(0.2), _R(0.1)
"""Å; radial functions and unit vectors of shorter distances are those of this one."""
_EPSILON = _R(1e-5)
"""Of layer norms, as torch has it."""


def supports(config: EncoderConfig) -> bool:
    """Tell whether networks of a kind can be run by this module."""
    return config.scalars % LANES == config.vectors % LANES == 0


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of beads that see one another, sorted by the first.

    Attributes
    ----------
    start : ndarray, shape=(n_beads + 1,), int64
        Where the pairs of each bead begin.
    second, relation : ndarray, shape=(m,), int64
    vectors : ndarray, shape=(m, 3), float32, Å
    """

    start: np.ndarray
    second: np.ndarray
    relation: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True, eq=False)
class Atoms:
    """Which atoms belong to beads, sorted by bead.

    Attributes
    ----------
    start : ndarray, shape=(n_beads + 1,), int64
    rows : ndarray, shape=(n_atoms,), int64
        Rows of the answer.
    key : ndarray, shape=(n_atoms,), int64
        What the network knows of each, in the order of the answer.
    """

    start: np.ndarray
    rows: np.ndarray
    key: np.ndarray


class FastNetwork:
    """Runs one network; its weights must not change afterwards.

    Parameters
    ----------
    network : HierarchicalVectors
        On the CPU; one that `supports` allows.
    """

    def __init__(self, network: HierarchicalVectors) -> None:
        self.network, self.config = network, network.encoder.config
        with torch.no_grad():
            self.layers = [_FastLayer(layer, self.config) for layer in network.encoder.layers]
            self.sides = _side_by_side(network.left, network.right)
            self.expand = network.expand.weight.T.contiguous()
            self.gate = [_weights(network.gate[0]), _weights(network.gate[2])]
            self.read = network.read.weight.detach().numpy().copy()

    def __call__(
        self, bead: Tensor, residue: Tensor, noise: float, pairs: Pairs, atoms: Atoms,
        chunk_size: int, groups: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Predict the anchor-to-atom vectors of a system.

        Parameters
        ----------
        bead, residue : Tensor, shape=(n,), int64
        noise : float, Å
            Standard deviation per axis the bead positions are believed to have.
        pairs : Pairs
        atoms : Atoms
        chunk_size : int
            Beads worked out together.
        groups : ndarray, shape=(g,), int64, optional
            First beads of residues that see themselves only, so that some of them can be taken
            through all layers at once.

        Returns
        -------
        ndarray, shape=(n_atoms, 3), float32, Å
        """
        with torch.no_grad():
            scalars, _ = self.network.encoder.embed(
                bead, residue, torch.full((len(bead),), float(noise))
            )
        n, v = len(bead), self.config.vectors
        features = scalars.numpy(), np.zeros((n, 3 * v), np.float32)
        result = np.empty((len(atoms.rows), 3), np.float32)
        cuts = np.arange(0, n, chunk_size)
        if groups is not None:
            cuts = groups[np.unique(np.searchsorted(groups, cuts, side="right") - 1)]
        pieces = list(itertools.pairwise([*cuts.tolist(), n]))
        if groups is not None:

            def work(piece: tuple[int, int]) -> None:
                low, high = piece
                own = tuple(table[low:high].copy() for table in features)
                rows = slice(pairs.start[low], pairs.start[high])
                inside = Pairs(
                    pairs.start[low : high + 1] - pairs.start[low], pairs.second[rows] - low,
                    pairs.relation, pairs.vectors[rows],
                )  # fmt: skip
                seen = self._seen(inside.vectors)
                for layer in self.layers:
                    sent = layer.sent(own[0])
                    own = layer(own, sent, inside, seen, 0, high - low)
                self._read(own, atoms, low, high, result)

            spread(work, pieces)
            return result
        # Of large systems they are worked out again for each layer rather than kept.
        keep = functools.cache if n <= FEW_BEADS else lambda function: function
        seen = keep(lambda low, high: self._seen(
            pairs.vectors[pairs.start[low] : pairs.start[high]]
        ))  # fmt: skip
        for layer in self.layers:
            sent, new = layer.sent(features[0]), tuple(map(np.empty_like, features))

            def update(
                piece: tuple[int, int], layer: _FastLayer = layer, sent: np.ndarray = sent,
                old: tuple = features, new: tuple = new,
            ) -> None:  # fmt: skip
                low, high = piece
                own = layer(old, sent, pairs, seen(low, high), low, high)
                new[0][low:high], new[1][low:high] = own

            spread(update, pieces)
            features = new
        spread(
            lambda piece: self._read(
                tuple(table[slice(*piece)] for table in features), atoms, *piece, result
            ),
            pieces,
        )
        return result

    def _seen(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _geometry(vectors, float(self.config.cutoff), self.config.radial)

    def _read(
        self, own: tuple[np.ndarray, np.ndarray], atoms: Atoms, low: int, high: int,
        result: np.ndarray,
    ) -> None:  # fmt: skip
        """Write the vectors of the atoms of some beads."""
        scalars, vectors = own
        n, v = high - low, self.config.vectors
        sides = _product(vectors.reshape(3 * n, v), self.sides)
        wide = np.empty((3 * n, 2 * v), np.float32)
        known = np.empty((n, scalars.shape[1] + v), np.float32)
        _prepare_reading(_lanes(scalars), _lanes(vectors, 3 * n), _lanes(sides), _lanes(wide),
                         _lanes(known))  # fmt: skip
        gates = _two_layers(known, self.gate)
        read = _product(wide, self.expand)
        _read_atoms(_lanes(read), _lanes(gates), _lanes(self.read), atoms.start[low : high + 1],
                    atoms.rows, atoms.key, result)  # fmt: skip


class _FastLayer:
    """One message step; see `mdbackmap.models.encoder.Layer`."""

    def __init__(self, layer: Layer, config: EncoderConfig) -> None:
        self.c, self.v, self.r = config.scalars, config.vectors, config.radial
        self.first = layer.first
        self.send = _weights(layer.send)
        relation = layer.relation.weight.detach().numpy().copy()
        self.relation = relation[[SAME_RESIDUE]] if config.alone else relation
        self.mix_scalar = _weights(layer.mix_scalar)
        self.mix_vector = layer.mix_vector.weight.T.contiguous()
        self.sides = _side_by_side(layer.left, layer.right)
        self.update = [_weights(layer.update[0]), _weights(layer.update[2])]
        self.cross = layer.cross.weight.T.contiguous()
        self.norm = np.stack([layer.norm.weight.detach().numpy(), layer.norm.bias.detach().numpy()])

    def sent(self, scalars: np.ndarray) -> np.ndarray:
        """What beads send to neighbours, before it is multiplied by how the two are bonded."""
        return _product(scalars, *self.send)

    def __call__(
        self, features: tuple[np.ndarray, np.ndarray], sent: np.ndarray, pairs: Pairs,
        seen: tuple[np.ndarray, np.ndarray], low: int, high: int,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Return new features of the beads from ``low`` to ``high``.

        Parameters
        ----------
        features : (n, c) and (n, 3 v)
            Of all beads that pairs name.
        seen : (m, r) and (m, 3)
            Radial functions and unit vectors of the pairs of these beads.
        """
        n, c, v, r = high - low, self.c, self.v, self.r
        scalars, vectors = (table[low:high] for table in features)
        sum_s = np.zeros((n, r * (c if self.first else c + v)), np.float32)
        sum_v = np.zeros((3 * n, r * (v if self.first else 3 * v)), np.float32)
        _add_neighbours(
            _lanes(sum_s), _lanes(sum_v), _lanes(sent), _lanes(features[1]), _lanes(self.relation),
            pairs.start[low : high + 1], pairs.second, pairs.relation, *seen, c // LANES,
            self.first,
        )  # fmt: skip
        message_s = _product(sum_s, *self.mix_scalar)
        message_v = _product(sum_v, self.mix_vector)
        _add_bounded(_lanes(message_v), _lanes(vectors, 3 * n))
        sides = _product(message_v, self.sides)
        known = np.empty((n, 2 * (c + v)), np.float32)
        turned = np.empty((3 * n, v), np.float32)
        _describe(_lanes(scalars), _lanes(message_s), _lanes(message_v), _lanes(sides),
                  _lanes(known), _lanes(turned))  # fmt: skip
        update = _two_layers(known, self.update)
        turned = _product(turned, self.cross)
        result = np.empty((n, c), np.float32), np.empty((n, 3 * v), np.float32)
        _renew(
            _lanes(result[0]), _lanes(result[1], 3 * n), _lanes(scalars), _lanes(vectors, 3 * n),
            _lanes(message_v), _lanes(sides), _lanes(turned), _lanes(update), _lanes(self.norm),
        )  # fmt: skip
        return result


def _weights(linear: torch.nn.Linear) -> tuple[Tensor, Tensor]:
    return linear.weight.detach().T.contiguous(), linear.bias.detach()


def _side_by_side(left: torch.nn.Linear, right: torch.nn.Linear) -> Tensor:
    """Weights that do both at once."""
    return torch.cat([left.weight, right.weight]).detach().T.contiguous()


def _product(values: np.ndarray, weight: Tensor, bias: Tensor | None = None) -> np.ndarray:
    rows = torch.from_numpy(values)
    return (torch.mm(rows, weight) if bias is None else torch.addmm(bias, rows, weight)).numpy()


def _two_layers(values: np.ndarray, weights: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    """A perceptron with one hidden layer."""
    hidden = _product(values, *weights[0])
    _silu(_lanes(hidden))
    return _product(hidden, *weights[1])


def _lanes(table: np.ndarray, rows: int | None = None) -> np.ndarray:
    """The same numbers with eight in the last axis."""
    return table.reshape(len(table) if rows is None else rows, -1, LANES)


@compiled
def _geometry(vectors, cutoff, size):
    """Radial functions, shape (m, size), and unit vectors, (m, 3), of pairs.

    See `mdbackmap.models.encoder.RadialBasis`.
    """
    radial = np.empty((len(vectors), size), np.float32)
    unit = np.empty((len(vectors), 3), np.float32)
    scale, frequency = math.sqrt(2 / cutoff), math.pi / cutoff
    for m in range(len(vectors)):
        square = 1e-12
        for x in range(3):
            square += np.float64(vectors[m, x]) ** 2
        distance = math.sqrt(square)
        for x in range(3):
            unit[m, x] = vectors[m, x] / max(distance, FLATTEST)
        part = min(distance / cutoff, 1.0)
        cube = part * part * part
        envelope = (1 - cube * cube * (28 - part * (48 - 21 * part))) * scale
        safe = max(distance, NEAREST)
        # Frequencies are multiples of the first, so each sine follows from the two before.
        before, wave = 0.0, math.sin(frequency * safe)
        twice = 2 * math.cos(frequency * safe)
        for k in range(size):
            radial[m, k] = wave / safe * envelope
            before, wave = wave, twice * wave - before
    return radial, unit


@compiled
def _add_neighbours(
    sum_s, sum_v, sent, vectors, relations, start, second, relation, radial, unit, c, first
):  # fmt: skip
    """Add up what neighbours send, with every radial function.

    Of each bead the sums of scalars, and of products of unit vectors with vectors; and for each of
    its three axes sums of unit vectors times scalars, of vectors, and of their cross products. With
    ``first`` neighbours have no vectors. ``c`` and all columns are counted in lanes.
    """
    v, r, alike = vectors.shape[1] // 3, radial.shape[1], len(relations) == 1
    for i in range(len(start) - 1):
        for pair in range(start[i], start[i + 1]):
            j, kind, m = second[pair], 0 if alike else relation[pair], pair - start[0]
            for b in range(c):
                value = at(sent, j, b) * at(relations, kind, b)
                for k in range(r):
                    put(sum_s, i, k * c + b, at(sum_s, i, k * c + b) + radial[m, k] * value)
            x, y, z = unit[m, 0], unit[m, 1], unit[m, 2]
            for b in range(v):
                value = at(sent, j, c + b) * at(relations, kind, c + b)
                one, two, three = x * value, y * value, z * value
                for k in range(r):
                    share, place = radial[m, k], k * v + b
                    put(sum_v, 3 * i, place, at(sum_v, 3 * i, place) + share * one)
                    put(sum_v, 3 * i + 1, place, at(sum_v, 3 * i + 1, place) + share * two)
                    put(sum_v, 3 * i + 2, place, at(sum_v, 3 * i + 2, place) + share * three)
                if first:
                    continue
                p, q, s = at(vectors, j, b), at(vectors, j, v + b), at(vectors, j, 2 * v + b)
                along = x * p + y * q + z * s
                one, two, three = y * s - z * q, z * p - x * s, x * q - y * p
                for k in range(r):
                    share, place = radial[m, k], k * v + b
                    row = r * c + place
                    put(sum_s, i, row, at(sum_s, i, row) + share * along)
                    row = r * v + place
                    put(sum_v, 3 * i, row, at(sum_v, 3 * i, row) + share * p)
                    put(sum_v, 3 * i + 1, row, at(sum_v, 3 * i + 1, row) + share * q)
                    put(sum_v, 3 * i + 2, row, at(sum_v, 3 * i + 2, row) + share * s)
                    row = 2 * r * v + place
                    put(sum_v, 3 * i, row, at(sum_v, 3 * i, row) + share * one)
                    put(sum_v, 3 * i + 1, row, at(sum_v, 3 * i + 1, row) + share * two)
                    put(sum_v, 3 * i + 2, row, at(sum_v, 3 * i + 2, row) + share * three)


@part
def _total(value):
    lanes = np.empty((1, 1, LANES), np.float32)
    put(lanes, 0, 0, value)
    total = np.float32(0)
    for lane in range(LANES):
        total += lanes[0, 0, lane]
    return total


@part
def _bound(vectors, i):
    """Scale the vectors of a bead, in place; see `mdbackmap.models.encoder.bounded`."""
    square = 0.0 * at(vectors, 3 * i, 0)
    for row in range(3 * i, 3 * i + 3):
        for b in range(vectors.shape[1]):
            square = square + at(vectors, row, b) * at(vectors, row, b)
    scale = 1 / np.sqrt(_R(1) + _total(square) / _R(vectors.shape[1] * LANES))
    for row in range(3 * i, 3 * i + 3):
        for b in range(vectors.shape[1]):
            put(vectors, row, b, scale * at(vectors, row, b))


@compiled
def _add_bounded(message, own):
    for i in range(len(message) // 3):
        for row in range(3 * i, 3 * i + 3):
            for b in range(message.shape[1]):
                put(message, row, b, at(message, row, b) + at(own, row, b))
        _bound(message, i)


@compiled
def _silu(values):
    for i in range(len(values)):
        for b in range(values.shape[1]):
            value = at(values, i, b)
            power = exponential(least(most(-value, -60.0), 60.0))
            put(values, i, b, value / (1.0 + power))


@compiled
def _describe(scalars, message_s, message_v, sides, known, turned):
    """Gather what a bead knows of itself: scalars, and products of its vectors."""
    c, v = scalars.shape[1], message_v.shape[1]
    for i in range(len(scalars)):
        for b in range(c):
            put(known, i, b, at(scalars, i, b))
            put(known, i, c + b, at(message_s, i, b))
        for b in range(v):
            x, y, z = at(sides, 3 * i, b), at(sides, 3 * i + 1, b), at(sides, 3 * i + 2, b)
            p, q = at(sides, 3 * i, v + b), at(sides, 3 * i + 1, v + b)
            s = at(sides, 3 * i + 2, v + b)
            put(known, i, 2 * c + b, x * p + y * q + z * s)
            put(turned, 3 * i, b, y * s - z * q)
            put(turned, 3 * i + 1, b, z * p - x * s)
            put(turned, 3 * i + 2, b, x * q - y * p)
            x, y = at(message_v, 3 * i, b), at(message_v, 3 * i + 1, b)
            z = at(message_v, 3 * i + 2, b)
            put(known, i, 2 * c + v + b, root(x * x + y * y + z * z + _R(1e-6)))


@compiled
def _renew(new_s, new_v, scalars, vectors, message, sides, turned, update, norm):
    """Write new features: gated vectors, and scalars that are brought to one size."""
    c, v = scalars.shape[1], message.shape[1]
    count = _R(c * LANES)
    for i in range(len(scalars)):
        for b in range(v):
            one, two = at(update, i, c + b), at(update, i, c + v + b)
            three = at(update, i, c + 2 * v + b)
            for row in range(3 * i, 3 * i + 3):
                value = at(vectors, row, b) + one * at(message, row, b)
                value = value + two * at(turned, row, b) + three * at(sides, row, b)
                put(new_v, row, b, value)
        _bound(new_v, i)
        total = 0.0 * at(scalars, i, 0)
        for b in range(c):
            value = at(scalars, i, b) + at(update, i, b)
            put(new_s, i, b, value)
            total = total + value
        mean, total = _total(total) / count, 0.0 * total
        for b in range(c):
            off = at(new_s, i, b) - mean
            total = total + off * off
        scale = 1 / np.sqrt(_total(total) / count + _EPSILON)
        for b in range(c):
            value = scale * (at(new_s, i, b) - mean)
            put(new_s, i, b, value * at(norm, 0, b) + at(norm, 1, b))


@compiled
def _prepare_reading(scalars, vectors, sides, wide, known):
    """Gather what a bead's atoms are read from."""
    c, v = scalars.shape[1], vectors.shape[1]
    for i in range(len(scalars)):
        for b in range(c):
            put(known, i, b, at(scalars, i, b))
        for b in range(v):
            x, y, z = at(sides, 3 * i, b), at(sides, 3 * i + 1, b), at(sides, 3 * i + 2, b)
            p, q = at(sides, 3 * i, v + b), at(sides, 3 * i + 1, v + b)
            s = at(sides, 3 * i + 2, v + b)
            put(known, i, c + b, x * p + y * q + z * s)
            put(wide, 3 * i, v + b, y * s - z * q)
            put(wide, 3 * i + 1, v + b, z * p - x * s)
            put(wide, 3 * i + 2, v + b, x * q - y * p)
            for row in range(3 * i, 3 * i + 3):
                put(wide, row, b, at(vectors, row, b))


@compiled
def _read_atoms(read, gates, weights, start, rows, key, result):
    width = gates.shape[1]
    for i in range(len(start) - 1):
        for place in range(start[i], start[i + 1]):
            atom = rows[place]
            for x in range(3):
                total = 0.0 * at(gates, i, 0)
                for b in range(width):
                    value = at(read, 3 * i + x, b) * at(gates, i, b)
                    total = total + value * at(weights, key[atom], b)
                result[atom, x] = _total(total)


@functools.lru_cache(maxsize=16)
def _cached(network: HierarchicalVectors) -> FastNetwork:
    return FastNetwork(network)


def fast(network: HierarchicalVectors) -> Callable | None:
    """Return what runs a loaded network fast, made once; None where it cannot be."""
    return _cached(network) if supports(network.encoder.config) else None
