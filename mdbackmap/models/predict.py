"""Running a network over a whole system in chunks that fit memory.

The network is strictly local, so each layer can be run chunk by chunk: a chunk needs the
features of the layer before of its own beads and of their neighbours (its halo, one cutoff
wide). Keeping one layer's features of all beads costs a few hundred bytes a bead and saves
computing a halo of layers x cutoff again for every chunk. The answer does not depend on the
chunk size, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mdbackmap.models.encoder import Encoder
from mdbackmap.models.hierarchical import HierarchicalVectors

MANY_BEADS = 50_000
"""Beyond, features are sent in their compact form (100 MB otherwise)."""


@dataclass
class Chunk:
    """Neighbours of the beads ``start`` to ``stop``; shapes as in the encoder."""

    start: int
    stop: int
    index: Tensor
    vectors: Tensor
    relation: Tensor
    present: Tensor
    _geometry: tuple[Tensor, Tensor] | None = None

    def geometry(self, encoder: Encoder) -> tuple[Tensor, Tensor]:
        """Radial functions and unit vectors, worked out once for all layers."""
        if self._geometry is None:
            self._geometry = encoder.geometry(self.vectors, self.present)
        return self._geometry


def predict_in_chunks(
    network: HierarchicalVectors,
    bead: Tensor,
    residue: Tensor,
    noise: Tensor,
    chunks: Callable[[], Iterable[Chunk]],
    atom_bead: Tensor,
    atom_key: Tensor,
) -> Tensor:
    """Predict the anchor-to-atom vectors of a system.

    Parameters
    ----------
    chunks : callable
        Gives chunks that cover all beads in order, once for every layer.
    atom_bead, atom_key : Tensor, shape=(n_atoms,), int64
        Sorted by ``atom_bead``.

    Returns
    -------
    Tensor, shape=(n_atoms, 3), Å
    """
    with torch.inference_mode():
        encoder = network.encoder
        scalars, vectors = encoder.embed(bead, residue, noise)
        result = vectors.new_empty(len(atom_bead), 3)
        last = len(encoder.layers) - 1
        for depth, layer in enumerate(encoder.layers):
            new_scalars, new_vectors = torch.empty_like(scalars), torch.empty_like(vectors)
            sent = layer.offer(scalars, compact=len(scalars) > MANY_BEADS)
            for chunk in chunks():
                here = torch.arange(chunk.start, chunk.stop, device=bead.device)
                radial, unit = chunk.geometry(encoder)
                s, v = layer(
                    scalars, vectors, here, chunk.index, radial, unit, chunk.relation, sent
                )
                if depth < last:
                    new_scalars[here], new_vectors[here] = s, v
                    continue
                first, stop = torch.searchsorted(
                    atom_bead, torch.tensor([chunk.start, chunk.stop], device=bead.device)
                ).tolist()
                own = slice(first, stop)
                result[own] = network.atom_vectors(
                    network.bead_vectors(s, v), atom_bead[own] - chunk.start, atom_key[own]
                )
            scalars, vectors = new_scalars, new_vectors
        return result
