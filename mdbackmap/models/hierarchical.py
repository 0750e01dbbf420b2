"""Hierarchical vectors: one l = 1 vector per atom, from its anchor (HEroBM, arXiv 2404.16911)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mdbackmap.models.encoder import Encoder, EncoderConfig, cross, embedding


class HierarchicalVectors(nn.Module):
    """Encoder and read-out of anchor-to-atom vectors.

    Parameters
    ----------
    config : EncoderConfig
    n_bead_keys, n_residues, n_atom_keys : int
        Sizes of the vocabularies.
    """

    def __init__(
        self, config: EncoderConfig, n_bead_keys: int, n_residues: int, n_atom_keys: int
    ) -> None:
        super().__init__()
        self.encoder = Encoder(config, n_bead_keys, n_residues)
        c, v = config.scalars, config.vectors
        self.width = 3 * v
        self.left = nn.Linear(v, v, bias=False)
        self.right = nn.Linear(v, v, bias=False)
        self.expand = nn.Linear(2 * v, self.width, bias=False)
        self.gate = nn.Sequential(nn.Linear(c + v, 2 * c), nn.SiLU(), nn.Linear(2 * c, self.width))
        self.read = embedding(n_atom_keys, self.width, 0.0, self.width**-0.5)

    def bead_vectors(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        """Return the vectors a bead's atoms are read from, shape (n, 3, width)."""
        left, right = self.left(vectors), self.right(vectors)
        both = torch.cat([vectors, cross(left, right)], dim=2)
        gate = self.gate(torch.cat([scalars, (left * right).sum(1)], dim=1))
        return self.expand(both) * gate[:, None]

    def atom_vectors(self, bead_vectors: Tensor, atom_bead: Tensor, atom_key: Tensor) -> Tensor:
        """Return anchor-to-atom vectors, shape (n_atoms, 3), Å."""
        return (bead_vectors[atom_bead] * self.read(atom_key)[:, None]).sum(2)

    def forward(
        self, bead: Tensor, residue: Tensor, noise: Tensor, index: Tensor | None,
        displacement: Tensor, relation: Tensor | None, present: Tensor, atom_bead: Tensor,
        atom_key: Tensor,
    ) -> Tensor:  # fmt: skip
        """Predict all atoms of a system at once; see `mdbackmap.models.predict` for chunks.

        Parameters
        ----------
        bead, residue : Tensor, shape=(n,), int64
        noise : Tensor, shape=(n,), Å
        index, relation : Tensor, shape=(n, k), int64, or None
            None: residues of k beads, which see their own residue (and ``present`` all others).
        displacement : Tensor, shape=(n, k, 3), Å
        present : Tensor, shape=(n, k), bool
        atom_bead, atom_key : Tensor, shape=(n_atoms,), int64

        Returns
        -------
        Tensor, shape=(n_atoms, 3), Å
            Vectors from each atom's anchor to the atom.
        """
        scalars, vectors = self.encoder.embed(bead, residue, noise)
        radial, angular = self.encoder.geometry(displacement, present)
        everyone = torch.arange(len(bead), device=bead.device)
        for layer in self.encoder.layers:
            scalars, vectors = layer(scalars, vectors, everyone, index, radial, angular, relation)
        return self.atom_vectors(self.bead_vectors(scalars, vectors), atom_bead, atom_key)


def place_atoms(
    vectors: Tensor, anchors: Tensor, levels: Tensor, atom_bead: Tensor, beads: Tensor
) -> Tensor:
    """Place atoms level by level from their anchors.

    Parameters
    ----------
    vectors : Tensor, shape=(n_atoms, 3), Å
        Anchor-to-atom vectors (l = 1).
    anchors : Tensor, shape=(n_atoms,), int64
        Anchor atom, -1 where an atom hangs from its bead.
    levels : Tensor, shape=(n_atoms,), int64
        1 for atoms that hang from a bead; an anchor is always one level above.
    atom_bead : Tensor, shape=(n_atoms,), int64
    beads : Tensor, shape=(n_beads, 3), Å
        Molecules must be whole.

    Returns
    -------
    Tensor, shape=(n_atoms, 3), Å
        Differentiable. Bond lengths are as predicted, not corrected.

    References
    ----------
    Angioletti et al., arXiv 2404.16911, section 2.1 (hierarchical reconstruction).
    """
    positions = beads[atom_bead] + vectors
    for level in range(2, int(levels.max()) + 1 if len(levels) else 0):
        here = torch.nonzero(levels == level).squeeze(1)
        positions = positions.index_copy(0, here, positions[anchors[here]] + vectors[here])
    return positions
