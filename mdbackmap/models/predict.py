"""Running a network over a whole system in chunks that fit memory.

The network is strictly local, so each layer can be run chunk by chunk: a chunk needs the
features of the layer before of its own beads and of their neighbours (its halo, one cutoff
wide). Keeping one layer's features of all beads costs a few hundred bytes a bead and saves
computing a halo of layers x cutoff again for every chunk. The answer does not depend on the
chunk size, to rounding.

Where beads see their own residue only, residues of a kind have the same neighbours in every frame
and are run through all layers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mdbackmap.models.encoder import Encoder, Layer
from mdbackmap.models.hierarchical import HierarchicalVectors
from mdbackmap.threads import spread

MANY_BEADS = 50_000
"""Beyond, features are sent in their compact form (100 MB otherwise)."""


@dataclass
class Chunk:
    """Some beads, their neighbours, and the places of their atoms; shapes as in the encoder.

    ``atoms`` are rows of the answer, ``owner`` the places of their beads in ``beads``.
    """

    beads: Tensor
    atoms: Tensor
    owner: Tensor
    index: Tensor
    vectors: Tensor
    relation: Tensor
    present: Tensor
    _geometry: tuple[Tensor, Tensor] | None = None

    def geometry(self, encoder: Encoder) -> tuple[Tensor, Tensor]:
        """`Encoder.geometry`, worked out once for all layers."""
        if self._geometry is None:
            self._geometry = encoder.geometry(self.vectors, self.present)
        return self._geometry


def predict_in_chunks(
    network: HierarchicalVectors,
    bead: Tensor,
    residue: Tensor,
    noise: Tensor,
    chunks: Sequence[Callable[[], Chunk]],
    atom_key: Tensor,
) -> Tensor:
    """Predict the anchor-to-atom vectors of a system.

    Parameters
    ----------
    chunks : sequence of callable
        Make chunks that cover all beads; each is called once for every layer.
    atom_key : Tensor, shape=(n_atoms,), int64

    Returns
    -------
    Tensor, shape=(n_atoms, 3), Å
    """
    encoder = network.encoder
    *inner, last = encoder.layers
    with torch.inference_mode():
        features = encoder.embed(bead, residue, noise)
        for layer in inner:
            features = _update(encoder, layer, features, chunks)
        result = features[1].new_empty(len(atom_key), 3)
        run = _run(encoder, last, features)

        def read(make: Callable[[], Chunk]) -> None:
            chunk = make()
            result[chunk.atoms] = network.atom_vectors(
                network.bead_vectors(*run(chunk)), chunk.owner, atom_key[chunk.atoms]
            )

        spread(read, chunks)
        return result


Features = tuple[Tensor, Tensor]


def _run(encoder: Encoder, layer: Layer, features: Features) -> Callable[[Chunk], Features]:
    """Return what gives a layer's features of a chunk's beads."""
    scalars, vectors = features
    sent = layer.offer(scalars, compact=len(scalars) > MANY_BEADS)

    def run(chunk: Chunk) -> Features:
        radial, angular = chunk.geometry(encoder)
        return layer(
            scalars, vectors, chunk.beads, chunk.index, radial, angular, chunk.relation, sent
        )  # fmt: skip

    return run


def _update(
    encoder: Encoder, layer: Layer, features: Features, chunks: Sequence[Callable[[], Chunk]]
) -> Features:
    """Return a layer's features of all beads."""
    run = _run(encoder, layer, features)
    scalars, vectors = map(torch.empty_like, features)

    def work(make: Callable[[], Chunk]) -> None:
        chunk = make()
        scalars[chunk.beads], vectors[chunk.beads] = run(chunk)

    spread(work, chunks)
    return scalars, vectors


@dataclass
class ResidueKind:
    """All residues of one kind, for networks whose beads see their own residue only.

    Attributes
    ----------
    bead, residue : Tensor, shape=(b,), int64
        What the network is told of the beads of one residue.
    atom_key, owner : Tensor, shape=(a,), int64
        Its atoms, and which of its beads they belong to.
    beads : Tensor, shape=(m, b), int64; atoms : Tensor, shape=(m, a), int64
        Where the beads and atoms of each residue are in the system.
    """

    bead: Tensor
    residue: Tensor
    atom_key: Tensor
    owner: Tensor
    beads: Tensor
    atoms: Tensor

    def inputs(self, positions: Tensor, noise: float) -> tuple[Tensor | None, ...]:
        """Return the network's inputs for bead positions (c, b, 3), Å, of some residues."""
        c, b, _ = positions.shape
        before = b * torch.arange(c, device=positions.device)[:, None]
        displacement = positions[:, None] - positions[:, :, None]
        others = ~torch.eye(b, dtype=torch.bool, device=positions.device)
        return (
            self.bead.repeat(c), self.residue.repeat(c), positions.new_full((b * c,), noise),
            None, displacement.flatten(0, 1), None, others.repeat(c, 1),
            (self.owner + before).flatten(), self.atom_key.repeat(c),
        )  # fmt: skip


def predict_residues(
    network: HierarchicalVectors, kinds: Sequence[ResidueKind], beads: Tensor, noise: float,
    chunk_size: int, n_atoms: int,
) -> Tensor:  # fmt: skip
    """Predict the anchor-to-atom vectors of residues that see themselves only.

    Parameters
    ----------
    beads : Tensor, shape=(n_beads, 3), Å
        Molecules must be whole.
    noise : float, Å
    chunk_size : int
        Beads predicted together.

    Returns
    -------
    Tensor, shape=(n_atoms, 3), Å
    """
    result = beads.new_empty(n_atoms, 3)

    def work(piece: tuple[ResidueKind, int, int]) -> None:
        kind, start, stop = piece
        inputs = kind.inputs(beads[kind.beads[start:stop]], noise)
        result[kind.atoms[start:stop].flatten()] = network(*inputs)

    with torch.inference_mode():
        pieces = []
        for kind in kinds:
            many, each = kind.beads.shape
            step = max(1, chunk_size // each)
            pieces += [(kind, k, min(k + step, many)) for k in range(0, many, step)]
        spread(work, pieces)
    return result
