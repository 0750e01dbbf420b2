"""Weights on disk: safetensors with JSON metadata, never pickle.

The metadata says everything needed to rebuild the network and to check that it fits the mapping
in use: architecture, vocabularies, hashes of the mappings, bead-distance statistics, training
data, metrics, units, licence.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mdbackmap.errors import ModelError
from mdbackmap.models.encoder import EncoderConfig
from mdbackmap.models.hierarchical import HierarchicalVectors

FORMAT = 1
_MAX_VOCABULARY = 1_000_000


@dataclass(frozen=True)
class Checkpoint:
    """A network with what it knows about itself.

    Attributes
    ----------
    network : HierarchicalVectors
    bead_keys, atom_keys, residues : list of str
        Vocabularies, in the order of the embeddings.
    digests : dict of str
        Residue name → hash of the mapping it was trained with.
    bead_distances : dict of str
        ``"KEY|KEY"`` → mean and standard deviation of bonded-bead distances in the training
        structures, Å.
    card : dict
        Model card: name, date, data, metrics, limits, licence, seed, command.
    """

    network: HierarchicalVectors
    bead_keys: list[str]
    atom_keys: list[str]
    residues: list[str]
    digests: dict[str, str]
    bead_distances: dict[str, tuple[float, float]]
    card: dict[str, Any]
    source: str = ""

    @property
    def cutoff(self) -> float:
        """Radius within which beads see one another, Å."""
        return self.network.encoder.config.cutoff


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint; the file appears under its name only when complete."""
    path = Path(path)
    header = {
        "format": FORMAT,
        "head": "hierarchical",
        "units": "Å",
        "encoder": checkpoint.network.encoder.config.to_dict(),
        "bead_keys": checkpoint.bead_keys,
        "atom_keys": checkpoint.atom_keys,
        "residues": checkpoint.residues,
        "digests": checkpoint.digests,
        "bead_distances": checkpoint.bead_distances,
        "card": checkpoint.card,
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.network.state_dict().items()}
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata={"mdbackmap": json.dumps(header)})
    part.replace(path)


def read_header(path: str | Path) -> dict[str, Any]:
    """Read only the metadata.

    Raises
    ------
    ModelError
        Not a safetensors file, not ours, or of a newer format.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            text = (handle.metadata() or {}).get("mdbackmap")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as weights ({error})") from error
    if text is None:
        raise ModelError(f"{path}: a safetensors file, but not one of mdbackmap's models")
    try:
        header = json.loads(text)
        version = int(header["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: its metadata is damaged ({error})") from error
    if not 1 <= version <= FORMAT:
        raise ModelError(
            f"{path}: format {version}, this version of mdbackmap reads up to {FORMAT}; "
            "update mdbackmap"
        )
    return header


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    ModelError
        As `read_header`, and tensors whose names or shapes do not fit the architecture.
    """
    header = read_header(path)
    try:
        known = {f.name for f in fields(EncoderConfig)}
        config = EncoderConfig(**{k: v for k, v in header["encoder"].items() if k in known})
        sizes = [len(header[k]) for k in ("bead_keys", "residues", "atom_keys")]
        if max(sizes) > _MAX_VOCABULARY or config.scalars * config.vectors > 1_000_000:
            raise ValueError("sizes beyond any real model")
        network = HierarchicalVectors(config, *sizes)
        with safe_open(path, framework="pt") as handle:
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        network.load_state_dict(tensors)
        if not all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point()):
            raise ValueError("weights that are not numbers")
        network.eval()
        return Checkpoint(
            network=network,
            bead_keys=header["bead_keys"],
            atom_keys=header["atom_keys"],
            residues=header["residues"],
            digests=header["digests"],
            bead_distances={k: (float(m), float(s)) for k, (m, s) in
                            header["bead_distances"].items()},
            card=header["card"],
            source=str(path),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path}: these weights do not fit their description ({reason})") from error
