"""The shared encoder: beads and their neighbours in, scalar and vector features out.

Tensors only. Features are e3nn irreps without parity labels that matter: ``C x 0e + V x 1e``,
so that cross products are allowed and the network is equivariant under SO(3) but not under
mirror images; beads alone cannot tell L from D, chirality must come from the weights.

A layer is an atomic-cluster-expansion step (one-particle basis, then products at the centre):

1. the neighbours' features are summed with every radial function and with 1 and the unit
   vector as angular part (one batched matrix product each),
2. the sums are mixed linearly per irrep,
3. products at the bead (dot and cross products of its vectors, gates from its scalars) raise
   the body order.

Strictly local: after L layers a bead has seen what lies within L cutoffs, nothing else.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

LARGEST = 10_000
"""Bound on layers and features: beyond is a damaged file, not a network."""
SAME_RESIDUE = 1
"""Place in `graph.neighbours.RELATIONS`."""
SIMULATED_NOISE = 0.2
"""Å per axis; what a network is told of beads that a force field moved."""


@dataclass(frozen=True)
class EncoderConfig:
    """Architecture of the encoder; saved with the weights."""

    scalars: int = 64
    """Scalar features per bead."""
    vectors: int = 32
    """Vector features per bead."""
    radial: int = 8
    """Radial functions."""
    layers: int = 3
    """Message layers; the receptive field is layers x cutoff."""
    cutoff: float = 8.0
    """Radius within which beads see one another, Å."""
    relations: int = 5
    """Kinds of neighbours told apart: the first so many of `graph.neighbours.RELATIONS`."""
    alone: bool = False
    """Beads see those of their own residue only."""

    def __post_init__(self) -> None:
        if not isinstance(self.alone, bool):
            raise ValueError(f"encoder: alone {self.alone!r}, expected true or false")
        for name, value in asdict(self).items():
            if name == "alone":
                continue
            whole = name == "cutoff" or (isinstance(value, int) and value <= LARGEST)
            if not (isinstance(value, (int, float)) and whole and 0 < value < math.inf):
                raise ValueError(f"encoder: {name} {value!r} makes no network")
        if self.relations not in (5, 7, 9, 11):
            raise ValueError(f"encoder: {self.relations} relations make no network")

    @property
    def irreps(self) -> Irreps:
        """Irreps of a bead's features."""
        # A third of the time it takes to start; only who asks for them needs it.
        from e3nn.o3 import Irreps

        return Irreps(f"{self.scalars}x0e + {self.vectors}x1e")

    def to_dict(self) -> dict:
        """Return the fields as plain values, for checkpoints."""
        return asdict(self)


def embedding(rows: int, width: int, mean: float = 0.0, spread: float = 1.0) -> nn.Embedding:
    """Return a table of normally distributed numbers; without any where it has no memory.

    Where tables have no memory (torch's meta device), to draw them would only make torch import its
    compiler, for two seconds.
    """
    weight = torch.empty(rows, width)
    if not weight.is_meta:
        # Twice, as it always was: a seed gives the network that it gave.
        nn.init.normal_(weight)
        if (mean, spread) != (0.0, 1.0):
            nn.init.normal_(weight, mean, spread)
    return nn.Embedding.from_pretrained(weight, freeze=False)


class RadialBasis(nn.Module):
    """Bessel functions under a smooth cutoff (Gasteiger et al., DimeNet, arXiv 2003.03123, eq. 7).

    Zero with two continuous derivatives at the cutoff, so that a bead crossing it changes nothing.
    """

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        waves = [math.pi * k / cutoff for k in range(1, size + 1)]
        self.register_buffer("frequency", torch.tensor(waves, dtype=torch.float32))

    def forward(self, distance: Tensor) -> Tensor:
        """Return the basis, shape (..., size), for distances in Å."""
        x = (distance / self.cutoff).clamp(max=1.0)
        cube = x * x * x
        envelope = 1 - cube * cube * (28 - x * (48 - 21 * x))
        safe = distance.clamp(min=0.2)[..., None]
        wave = torch.sin(self.frequency * safe) / safe
        return wave * (envelope * math.sqrt(2 / self.cutoff))[..., None]


def bounded(vectors: Tensor) -> Tensor:
    """Scale a bead's vectors so that their root mean square stays below 1.

    Products of vectors would otherwise grow without limit where beads lie closer together than
    in any training structure.
    """
    return vectors * torch.rsqrt(1 + (vectors * vectors).sum(1, keepdim=True).mean(2, keepdim=True))


def cross(a: Tensor, b: Tensor) -> Tensor:
    """Cross products along the second axis of (n, 3, v); several times faster than torch's."""
    x, y, z = a.unbind(1)
    u, v, w = b.unbind(1)
    return torch.stack([y * w - z * v, z * u - x * w, x * v - y * u], dim=1)


def _gathered(values: Tensor, index: Tensor | None) -> Tensor:
    """Values (n, ...) of neighbours (n, k, ...); as they are where residues are blocks."""
    if index is None:
        return values
    return values.index_select(0, index.reshape(-1)).view(*index.shape, -1)


def _summed(weights: Tensor, values: Tensor) -> Tensor:
    """Sums over neighbours (n, m, c) with weights (n, m, k), of values (n, k, c).

    Or of values (n, c) that beads of a residue share, k of them: few large products, no copies.
    """
    if values.dim() == 3:
        return torch.bmm(weights, values)
    n, m, k = weights.shape
    sums = torch.bmm(weights.view(n // k, k * m, k), values.view(n // k, k, -1))
    return sums.view(n, m, -1)


class Layer(nn.Module):
    """One message step; ``first`` layers see neighbours without vector features."""

    def __init__(self, config: EncoderConfig, *, first: bool) -> None:
        super().__init__()
        c, v, r = config.scalars, config.vectors, config.radial
        self.first, self.c, self.v, self.r = first, c, v, r
        self.send = nn.Linear(c, c + v)
        self.relation = embedding(config.relations, c + v, 1.0, 0.3)
        self.mix_scalar = nn.Linear(r * c + (0 if first else r * v), c)
        self.mix_vector = nn.Linear((1 if first else 3) * r * v, v, bias=False)
        self.left = nn.Linear(v, v, bias=False)
        self.right = nn.Linear(v, v, bias=False)
        self.update = nn.Sequential(nn.Linear(2 * c + 2 * v, 2 * c), nn.SiLU(),
                                    nn.Linear(2 * c, c + 3 * v))  # fmt: skip
        self.cross = nn.Linear(v, v, bias=False)
        self.norm = nn.LayerNorm(c)

    def offer(self, scalars: Tensor, *, compact: bool = False) -> Tensor:
        """Return what beads send to neighbours, which depends on how the two are bonded.

        Shape (n, relations, c + v); or, with ``compact``, (n, c + v) that is multiplied by the
        relation later: slower, but a fifth of the memory.
        """
        sent = self.send(scalars)
        return sent if compact else sent[:, None] * self.relation.weight

    def forward(
        self, scalars: Tensor, vectors: Tensor, here: Tensor, index: Tensor | None, radial: Tensor,
        angular: Tensor, relation: Tensor | None, sent: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Update the features of some beads.

        Parameters
        ----------
        scalars : Tensor, shape=(n_all, c); vectors : Tensor, shape=(n_all, 3, v)
            Features of all beads the neighbours may be among.
        here : Tensor, shape=(n,), int64
            The beads to update.
        index, relation : Tensor, shape=(n, k), int64, or None
            None: the beads are all there are, residues of k beads, and see their own residue.
        radial : Tensor, shape=(n, r, k); angular : Tensor, shape=(n, 3 r, k)
            See `Encoder.geometry`.
        sent : Tensor, optional
            What `offer` returned, worked out once where a layer is run in chunks.
        """
        r, c, v = self.r, self.c, self.v
        n = len(here)
        own_s, own_v = scalars[here], vectors[here]
        sent = self.offer(scalars, compact=index is None) if sent is None else sent
        if index is None:
            sent = sent * self.relation.weight[SAME_RESIDUE]
        elif sent.dim() == 3:
            flat = index * len(self.relation.weight) + relation
            sent = _gathered(sent.flatten(0, 1), flat)
        else:
            sent = _gathered(sent, index) * self.relation(relation)
        sum_s = _summed(radial, sent[..., :c]).flatten(1)
        sum_v = _summed(angular, sent[..., c:]).view(n, 3, r * v)
        if self.first:
            message_s, message_v = self.mix_scalar(sum_s), self.mix_vector(sum_v)
        else:
            theirs = _gathered(vectors.flatten(1), index)
            carried = _summed(radial, theirs).view(n, r, 3, v).transpose(1, 2)
            # unit vector (first axis) times neighbour's vector (second axis): its trace and its
            # antisymmetric part are the sums of dot and cross products.
            x, y, z = _summed(angular, theirs).view(n, 3, r, 3, v).unbind(1)
            along = x[:, :, 0] + y[:, :, 1] + z[:, :, 2]
            turned = torch.stack(
                [y[:, :, 2] - z[:, :, 1], z[:, :, 0] - x[:, :, 2], x[:, :, 1] - y[:, :, 0]], dim=1
            )
            message_s = self.mix_scalar(torch.cat([sum_s, along.flatten(1)], dim=1))
            message_v = self.mix_vector(
                torch.cat([sum_v, carried.flatten(2), turned.flatten(2)], dim=2)
            )
        message_v = bounded(message_v + own_v)
        left, right = self.left(message_v), self.right(message_v)
        dots = (left * right).sum(1)
        size = torch.sqrt((message_v * message_v).sum(1) + 1e-6)
        update = self.update(torch.cat([own_s, message_s, dots, size], dim=1))
        grow, gates = update[:, : own_s.shape[1]], update[:, own_s.shape[1] :]
        gate_a, gate_b, gate_c = gates[:, None].split(self.v, dim=2)
        turned = cross(left, right)
        new_v = own_v + gate_a * message_v + gate_b * self.cross(turned) + gate_c * left
        return self.norm(own_s + grow), bounded(new_v)


class Encoder(nn.Module):
    """Features of beads from their kinds and neighbourhoods.

    Parameters
    ----------
    config : EncoderConfig
    n_bead_keys, n_residues : int
        Sizes of the vocabularies. Residue 0 is the unknown residue.
    """

    def __init__(self, config: EncoderConfig, n_bead_keys: int, n_residues: int) -> None:
        super().__init__()
        self.config = config
        self.basis = RadialBasis(config.radial, config.cutoff)
        self.bead = embedding(n_bead_keys, config.scalars)
        self.residue = embedding(n_residues, config.scalars)
        self.noise = nn.Sequential(nn.Linear(2, config.scalars), nn.SiLU(),
                                   nn.Linear(config.scalars, config.scalars))  # fmt: skip
        self.layers = nn.ModuleList(Layer(config, first=k == 0) for k in range(config.layers))

    def embed(self, bead: Tensor, residue: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features beads start with.

        Parameters
        ----------
        bead, residue : Tensor, shape=(n,), int64
        noise : Tensor, shape=(n,), Å
            Standard deviation per axis the bead positions are believed to have.
        """
        level = torch.stack([noise, (noise < 1e-3).to(noise.dtype)], dim=1)
        scalars = self.bead(bead) + self.residue(residue) + self.noise(level)
        return scalars, scalars.new_zeros(len(bead), 3, self.config.vectors)

    def geometry(self, displacement: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return radial functions of padded neighbours, and their products with unit vectors.

        Shapes (n, r, k) and (n, 3 r, k), the axis of the unit vector first.
        """
        distance = torch.sqrt((displacement * displacement).sum(-1) + 1e-12)
        unit = displacement / distance.clamp(min=0.1)[..., None]
        radial = self.basis(distance) * present[..., None]
        radial = radial.transpose(1, 2).contiguous()
        angular = unit.transpose(1, 2)[:, :, None] * radial[:, None]
        return radial, angular.flatten(1, 2)
