"""From prepared systems to the tensors of one training step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mdbackmap.geometry.bead_bonds import bead_pairs
from mdbackmap.graph.chunks import BeadGraph
from mdbackmap.graph.neighbours import find_pairs, pairs_in_groups, relations
from mdbackmap.models.encoder import EncoderConfig
from mdbackmap.training.config import Noise
from mdbackmap.training.dataset import Sample


@dataclass(frozen=True)
class Batch:
    """Inputs of the network, then what the losses compare with. Shapes as in `Sample`."""

    name: str
    inputs: tuple[Tensor, ...]
    beads: Tensor
    anchors: Tensor
    levels: Tensor
    target: Tensor
    usable: Tensor
    swap: Tensor
    atom_residue: Tensor
    n_residues: int
    bonds: tuple[Tensor, Tensor]
    angles: tuple[Tensor, Tensor]
    volumes: tuple[Tensor, Tensor]
    torsions: tuple[Tensor, Tensor]

    def to(self, device: str) -> Batch:
        """Move every tensor to a device."""

        def move(value):
            if isinstance(value, Tensor):
                return value.to(device)
            return tuple(move(v) for v in value) if isinstance(value, tuple) else value

        return Batch(**{name: move(value) for name, value in vars(self).items()})


def cut(sample: Sample, beads: np.ndarray) -> Sample:
    """Keep whole residues that own one of the given beads.

    Parameters
    ----------
    beads : ndarray, shape=(n_beads,), bool
    """
    residue = np.zeros(len(sample.residue_name), dtype=bool)
    residue[sample.bead_residue[beads]] = True
    bead = residue[sample.bead_residue]
    atom = residue[sample.atom_residue]
    new_residue, new_bead, new_atom = (_renumber(kept) for kept in (residue, bead, atom))

    def term(pair: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        inside = atom[pair[0]].all(axis=1)
        return new_atom[pair[0][inside]], pair[1][inside]

    def link(index: np.ndarray) -> np.ndarray:
        return np.where(index < 0, -1, new_residue[index])[residue]

    anchor = sample.anchor[atom]
    return Sample(
        name=sample.name, kind=sample.kind, box=sample.box,
        bead_key=sample.bead_key[bead], bead_residue=new_residue[sample.bead_residue[bead]],
        bead_position=sample.bead_position[bead], residue_name=sample.residue_name[residue],
        next_residue=link(sample.next_residue), bridge=link(sample.bridge),
        atom_key=sample.atom_key[atom], atom_bead=new_bead[sample.atom_bead[atom]],
        anchor=np.where(anchor < 0, -1, new_atom[anchor]), level=sample.level[atom],
        atom_residue=new_residue[sample.atom_residue[atom]], usable=sample.usable[atom],
        offset=sample.offset[atom], swap=new_atom[sample.swap[atom]],
        bonds=term(sample.bonds), angles=term(sample.angles), volumes=term(sample.volumes),
        torsions=term(sample.torsions),
    )  # fmt: skip


def _renumber(kept: np.ndarray) -> np.ndarray:
    return np.where(kept, np.cumsum(kept) - 1, -1)


def random_piece(sample: Sample, n_beads: int, rng: np.random.Generator) -> Sample:
    """Cut a compact piece of about ``n_beads`` around a random bead; small systems stay whole."""
    if sample.n_beads <= n_beads * 1.3:
        return sample
    centre = sample.bead_position[rng.integers(sample.n_beads)]
    distance = np.linalg.norm(sample.bead_position - centre, axis=1)
    nearest = np.zeros(sample.n_beads, dtype=bool)
    nearest[np.argpartition(distance, n_beads)[:n_beads]] = True
    return cut(sample, nearest)


def surround(sample: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """Put a small molecule beside a piece of another system; only the molecule is learnt from.

    The molecule stays as it is; the piece is brought to it and loses the residues in its way.
    """
    spot = other.bead_position[rng.integers(other.n_beads)] + rng.normal(0, 4, 3)
    middle = sample.bead_position.mean(axis=0)
    turn = random_rotation(rng)
    position = ((other.bead_position - spot) @ turn.T + middle).astype(np.float32)
    offset = (other.offset @ turn.T).astype(np.float32)
    gap = np.linalg.norm(position[:, None] - sample.bead_position[None], axis=2).min(axis=1)
    clash = np.zeros(len(other.residue_name), dtype=bool)
    clash[other.bead_residue[gap < rng.uniform(3.5, 4.5)]] = True
    keep = (gap < 12.0) & ~clash[other.bead_residue]
    sample = replace(sample, box=None)
    if not keep.any():
        return sample
    context = replace(other, box=None, bead_position=position, offset=offset,
                      usable=np.zeros_like(other.usable))  # fmt: skip
    return join([sample, cut(context, keep)])


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Return a uniformly random proper rotation, shape (3, 3)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def join(samples: list[Sample]) -> Sample:
    """Lay samples side by side in one set of arrays; boxes must agree (or be None)."""
    shifts = np.cumsum(
        [[0, 0, 0]] + [[s.n_beads, len(s.residue_name), len(s.atom_key)] for s in samples],
        axis=0,
    )

    def stack(name: str, kind: int | None = None) -> np.ndarray:
        pieces = []
        for sample, shift in zip(samples, shifts, strict=False):
            value = getattr(sample, name)
            if kind is not None:
                value = np.where(value < 0, -1, value + shift[kind])
            pieces.append(value)
        return np.concatenate(pieces)

    def term(name: str) -> tuple[np.ndarray, np.ndarray]:
        pairs = [getattr(s, name) for s in samples]
        index = [p[0] + shift[2] for p, shift in zip(pairs, shifts, strict=False)]
        return np.concatenate(index), np.concatenate([p[1] for p in pairs])

    return Sample(
        name=samples[0].name, kind=samples[0].kind, box=samples[0].box,
        bead_key=stack("bead_key"), bead_residue=stack("bead_residue", 1),
        bead_position=stack("bead_position"), residue_name=stack("residue_name"),
        next_residue=stack("next_residue", 1), bridge=stack("bridge", 1),
        atom_key=stack("atom_key"), atom_bead=stack("atom_bead", 0), anchor=stack("anchor", 2),
        level=stack("level"), atom_residue=stack("atom_residue", 1), usable=stack("usable"),
        offset=stack("offset"), swap=stack("swap", 2), bonds=term("bonds"),
        angles=term("angles"), volumes=term("volumes"), torsions=term("torsions"),
    )  # fmt: skip


def far_apart(samples: list[Sample], gap: float = 60.0) -> Sample:
    """Join independent samples so that they do not see one another (boxes are dropped)."""
    moved, here = [], 0.0
    for sample in samples:
        beads = sample.bead_position - sample.bead_position.min(axis=0)
        place = beads + np.float32([here, 0, 0])
        moved.append(replace(sample, box=None, bead_position=place))
        here += float(beads[:, 0].max()) + gap
    return join(moved)


def shake(sample: Sample, noise: Noise, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return bead positions as a simulation might give them, and the noise level told, Å."""
    if rng.random() < noise.clean or not noise.largest:
        return sample.bead_position, 0.0
    level = rng.uniform(0.02, noise.largest)
    beads = sample.bead_position + rng.normal(0, level, sample.bead_position.shape)
    if noise.stretch:
        pairs, _ = bead_pairs(sample.atom_bead, sample.bonds[0], sample.bead_residue)
        code = np.sort(sample.bead_key[pairs], axis=1) @ np.array([100_000, 1])
        _, kind = np.unique(code, return_inverse=True)
        factor = rng.normal(0, noise.stretch * level / noise.largest, kind.max(initial=0) + 1)
        along = beads[pairs[:, 1]] - beads[pairs[:, 0]]
        same = np.linalg.norm(along, axis=1) < 12.0
        push = 0.5 * (factor[kind] * same)[:, None] * along
        np.add.at(beads, pairs[:, 1], push)
        np.add.at(beads, pairs[:, 0], -push)
    return beads.astype(np.float32), float(level)


def make_batch(
    sample: Sample, encoder: EncoderConfig, noise: Noise, rng: np.random.Generator,
    forget_residue: float = 0.0, level: float | None = None, told: float | None = None,
) -> Batch:  # fmt: skip
    """Build the tensors of one step.

    Parameters
    ----------
    level : float, optional
        Fixed noise, Å, for evaluation; default: drawn from ``noise``.
    told : float, optional
        Noise the network is told of, Å, where the sample is to be used as it is.
    """
    if told is not None:
        beads = sample.bead_position
    elif level is None:
        beads, told = shake(sample, noise, rng)
    else:
        beads = sample.bead_position + rng.normal(0, level, sample.bead_position.shape)
        beads, told = beads.astype(np.float32), level
    if encoder.alone:
        first, second = pairs_in_groups(sample.bead_residue)
        vectors = beads[second] - beads[first]
    else:
        first, second, vectors = find_pairs(beads, sample.box, encoder.cutoff)
    bridges = np.stack([np.flatnonzero(sample.bridge >= 0),
                        sample.bridge[sample.bridge >= 0]], axis=1)  # fmt: skip
    relation = relations(first, second, sample.bead_residue, sample.next_residue, bridges,
                         encoder.relations)  # fmt: skip
    graph = BeadGraph(sample.n_beads, first, second, vectors, relation)
    near = graph.neighbours(np.arange(sample.n_beads))
    names = sample.residue_name.copy()
    names[rng.random(len(names)) < forget_residue] = 0
    target = sample.bead_position[sample.atom_bead] + sample.offset

    def term(pair: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
        inside = sample.usable[pair[0]].all(axis=1)
        return torch.from_numpy(pair[0][inside]), torch.from_numpy(pair[1][inside])

    t = torch.from_numpy
    return Batch(
        name=sample.name,
        inputs=(
            t(sample.bead_key), t(names[sample.bead_residue]),
            torch.full((sample.n_beads,), told), t(near.index), t(near.vectors),
            t(near.relation), t(near.present), t(sample.atom_bead), t(sample.atom_key),
        ),
        beads=t(beads), anchors=t(sample.anchor), levels=t(sample.level), target=t(target),
        usable=t(sample.usable), swap=t(sample.swap), atom_residue=t(sample.atom_residue),
        n_residues=len(names), bonds=term(sample.bonds), angles=term(sample.angles),
        volumes=term(sample.volumes), torsions=term(sample.torsions),
    )  # fmt: skip
