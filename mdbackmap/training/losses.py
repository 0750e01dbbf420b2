"""Losses: positions, and the chemistry a mean of structures would lose."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mdbackmap.training.batches import Batch
from mdbackmap.training.config import Losses
from mdbackmap.training.dataset import SWAPS


def best_names(positions: Tensor, batch: Batch) -> Tensor:
    """Return the target with equivalent atoms renamed to fit each residue best.

    A swap is taken per residue where it lowers the squared distance (carboxylates, phosphate
    oxygens, choline methyls). Where beads tell the atoms apart (the sides of a ring) it is not.
    """
    target, bead = batch.target, batch.inputs[7]
    with torch.no_grad():
        for k in range(SWAPS):
            order = batch.swap[:, k]
            change = ((positions - target[order]) ** 2).sum(1) - ((positions - target) ** 2).sum(1)
            change = torch.where(bead[order] == bead, change, math.inf)
            total = torch.zeros(batch.n_residues, dtype=change.dtype, device=change.device)
            total.index_add_(0, batch.atom_residue, change)
            target = torch.where((total < 0)[batch.atom_residue][:, None], target[order], target)
    return target


def signed_volumes(positions: Tensor, index: Tensor) -> Tensor:
    """Return (a-x)·((b-x)×(c-x)) of rows x, a, b, c; shape (n,), Å^3."""
    x, a, b, c = positions[index].unbind(1)
    return ((a - x) * torch.linalg.cross(b - x, c - x)).sum(1)


def torsion_cosines(positions: Tensor, index: Tensor) -> Tensor:
    """Return cosines of torsion angles, shape (n,); 1 for cis."""
    a, b, c, d = positions[index].unbind(1)
    first = torch.linalg.cross(b - a, c - b)
    second = torch.linalg.cross(c - b, d - c)
    size = torch.sqrt((first**2).sum(1) * (second**2).sum(1) + 1e-4)
    return (first * second).sum(1) / size


def _beyond(error: Tensor, tolerance: float) -> Tensor:
    return torch.relu(error.abs() - tolerance) ** 2


def _mean(values: Tensor) -> Tensor:
    return values.mean() if len(values) else values.sum()


def loss_terms(positions: Tensor, batch: Batch, weights: Losses) -> dict[str, Tensor]:
    """Return the weighted loss terms of predicted positions (n_atoms, 3), Å.

    References
    ----------
    Angioletti et al., arXiv 2404.16911, section 4.3: positions, bonds and angles with tolerance;
    signed volumes and cis/trans torsions are added here.
    """
    target = best_names(positions, batch)
    squared = ((positions - target) ** 2).sum(1)[batch.usable]
    terms = {"positions": weights.positions * _mean(squared)}
    pairs, length = batch.bonds
    gap = positions[pairs[:, 0]] - positions[pairs[:, 1]]
    distance = torch.sqrt((gap**2).sum(1) + 1e-6)
    terms["bonds"] = weights.bonds * _mean(_beyond(distance - length, weights.bond_tolerance))
    triples, degrees = batch.angles
    first = positions[triples[:, 0]] - positions[triples[:, 1]]
    second = positions[triples[:, 2]] - positions[triples[:, 1]]
    size = torch.sqrt((first**2).sum(1) * (second**2).sum(1) + 1e-2)
    error = (first * second).sum(1) / size - torch.cos(torch.deg2rad(degrees))
    terms["angles"] = weights.angles * _mean(_beyond(error, weights.angle_tolerance))
    quads, volume = batch.volumes
    off = (signed_volumes(positions, quads) - volume) / 2.5
    terms["volumes"] = weights.volumes * _mean(off**2)
    quads, degrees = batch.torsions
    # Only what the data itself obeys: cis prolines keep their peptide bond.
    wanted = torch.cos(torch.deg2rad(degrees))
    true = torsion_cosines(batch.target, quads)
    error = (1 - wanted * torsion_cosines(positions, quads)) * (true * wanted > 0)
    terms["torsions"] = weights.torsions * _mean(error)
    return terms
