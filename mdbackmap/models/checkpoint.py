"""Weights on disk: safetensors with JSON metadata, never pickle.

The metadata says everything needed to rebuild the network and to check that it fits the mapping
in use: architecture, vocabularies, hashes of the mappings, bead-distance statistics, training
data, metrics, units, licence.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from mdbackmap.errors import ModelError
from mdbackmap.models.encoder import EncoderConfig
from mdbackmap.models.hierarchical import HierarchicalVectors

FORMAT = 1
HEAD = "hierarchical"


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
    simulated_distances : dict of str
        The same in training data with beads as in simulations; empty without such data.
    card : dict
        Model card: name, date, data, metrics, limits, licence, seed, command. What the package
        reads of it: ``largest_noise``, ``for_mapped_beads`` and ``beside``, see the properties.
    """

    network: HierarchicalVectors
    bead_keys: list[str]
    atom_keys: list[str]
    residues: list[str]
    digests: dict[str, str]
    bead_distances: dict[str, tuple[float, float]]
    card: dict[str, Any]
    simulated_distances: dict[str, tuple[float, float]] = field(default_factory=dict)
    source: str = ""

    @property
    def cutoff(self) -> float:
        """Radius within which beads see one another, Å."""
        return self.network.encoder.config.cutoff

    @property
    def largest_noise(self) -> float:
        """Largest noise on its beads the network has been told of in training, Å."""
        return float(self.card.get("largest_noise", math.inf))

    @property
    def for_mapped_beads(self) -> str:
        """Name of the shipped model for beads that lie at the centres of their atoms, if any."""
        return str(self.card.get("for_mapped_beads", ""))

    @property
    def beside(self) -> list[str]:
        """Names of shipped models that place what they know where this one is used."""
        return [str(name) for name in self.card.get("beside", ())]


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint; the file appears under its name only when complete."""
    path = Path(path)
    header = {
        "format": FORMAT,
        "head": HEAD,
        "units": "Å",
        "encoder": checkpoint.network.encoder.config.to_dict(),
        "bead_keys": checkpoint.bead_keys,
        "atom_keys": checkpoint.atom_keys,
        "residues": checkpoint.residues,
        "digests": checkpoint.digests,
        "bead_distances": checkpoint.bead_distances,
        "simulated_distances": checkpoint.simulated_distances,
        "card": checkpoint.card,
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.network.state_dict().items()}
    part = path.with_name(path.name + ".part")
    part.write_bytes(to_bytes(tensors, metadata={"mdbackmap": json.dumps(header)}))
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
    if not 1 <= version <= FORMAT or header.get("head") != HEAD:
        raise ModelError(
            f"{path}: format {version} with head '{header.get('head')}'; this version of "
            f"mdbackmap reads up to format {FORMAT} with head '{HEAD}'; update mdbackmap"
        )
    return header


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    ModelError
        As `read_header`, and tensors whose names, shapes or values do not fit the description.
    """
    header = read_header(path)
    try:
        known = {f.name for f in fields(EncoderConfig)}
        config = EncoderConfig(**{k: v for k, v in header["encoder"].items() if k in known})
        words = {key: _words(header, key) for key in ("bead_keys", "residues", "atom_keys")}
        with safe_open(path, framework="pt") as handle:
            tensors = {
                # A copy: the file itself may change or go while the network is in use.
                key: handle.get_tensor(key).to(torch.float32, copy=True)
                for key in handle.keys()  # noqa: SIM118
            }
        bad = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if bad:
            raise ValueError(f"{', '.join(bad[:3])}: not all numbers")
        # Without memory of its own until the shapes are known to be those of the file.
        with torch.device("meta"):
            network = HierarchicalVectors(config, *map(len, words.values()))
        network.load_state_dict(tensors, assign=True)
        return Checkpoint(
            network=network.eval(),
            **words,
            digests={str(k): str(v) for k, v in header["digests"].items()},
            bead_distances={k: _pair(row) for k, row in header["bead_distances"].items()},
            card=dict(header["card"]),
            simulated_distances={
                k: _pair(row) for k, row in header.get("simulated_distances", {}).items()
            },
            source=str(path),
        )
    except (
        AttributeError, KeyError, OSError, TypeError, ValueError, RuntimeError, SafetensorError
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{path}: these weights do not fit their description ({reason})"
        ) from error


def _words(header: dict[str, Any], key: str) -> list[str]:
    words = header[key]
    if not isinstance(words, list) or len({str(word) for word in words}) < len(words):
        raise ValueError(f"{key}: expected different words")
    return [str(word) for word in words]


def _pair(row: list[float]) -> tuple[float, float]:
    mean, spread = map(float, row)
    if not (math.isfinite(mean) and math.isfinite(spread)):
        raise ValueError("bead_distances: not all numbers")
    return mean, spread
