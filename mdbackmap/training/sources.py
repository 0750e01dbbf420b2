"""Prepared sets as one: their joint vocabulary, and random pieces drawn from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mdbackmap.errors import ConfigError
from mdbackmap.models.encoder import SIMULATED_NOISE, EncoderConfig
from mdbackmap.training.batches import Batch, far_apart, make_batch, random_piece, surround
from mdbackmap.training.config import TrainConfig
from mdbackmap.training.dataset import PreparedSet, Sample

AHEAD = 4
"""Steps that each process prepares ahead."""


class Vocabulary:
    """Joins the vocabularies of several prepared sets.

    Raises
    ------
    ConfigError
        A residue was prepared with different mappings.
    """

    def __init__(self, sets: list[PreparedSet]) -> None:
        self.beads = self._union([s.bead_keys for s in sets])
        self.atoms = self._union([s.atom_keys for s in sets])
        self.residues = self._union([s.residues for s in sets])
        self.digests: dict[str, str] = {}
        for data in sets:
            for residue, digest in data.digests.items():
                if self.digests.setdefault(residue, digest) != digest:
                    raise ConfigError(
                        f"residue {residue} was prepared with two different mappings; prepare "
                        "the data again with one"
                    )

    @staticmethod
    def _union(tables: list[list[str]]) -> list[str]:
        return list(dict.fromkeys(key for table in tables for key in table))

    def translate(self, data: PreparedSet, sample: Sample) -> Sample:
        """Renumber one set's keys into the joint vocabulary; unknown ones become -1."""
        tables = []
        for own, joint in ((data.bead_keys, self.beads), (data.atom_keys, self.atoms),
                           (data.residues, self.residues)):  # fmt: skip
            place = {key: k for k, key in enumerate(joint)}
            tables.append(np.array([place.get(key, -1) for key in own], dtype=np.int64))
        return replace(
            sample, bead_key=tables[0][sample.bead_key], atom_key=tables[1][sample.atom_key],
            residue_name=np.maximum(tables[2][sample.residue_name], 0),
        )  # fmt: skip

    def known(self, data: PreparedSet) -> list[Sample]:
        """Translate the systems of a set of which every bead and atom is known."""
        samples = (self.translate(data, sample) for sample in data)
        return [s for s in samples if (s.bead_key >= 0).all() and (s.atom_key >= 0).all()]


class Source:
    """Endless random training pieces of one prepared set."""

    def __init__(self, data: PreparedSet, vocabulary: Vocabulary, batch_beads: int) -> None:
        self.samples = [vocabulary.translate(data, sample) for sample in data]
        sizes = np.minimum(data.n_beads(), batch_beads)
        self.odds = sizes / sizes.sum()
        self.batch_beads = batch_beads
        self.simulated = data.simulated

    def one(self, rng: np.random.Generator) -> Sample:
        """Return one system or a piece of a large one."""
        return random_piece(
            self.samples[rng.choice(len(self.samples), p=self.odds)], self.batch_beads, rng
        )

    def draw(self, rng: np.random.Generator, others: list[Source]) -> Sample:
        """Return one batch worth of beads; small systems are put beside pieces of ``others``."""
        sample = self.one(rng)
        if sample.n_beads > self.batch_beads // 4 and not others:
            return sample
        pieces, total = [], 0
        while total < self.batch_beads // 2 and len(pieces) < 24:
            if others and rng.random() < 0.7:
                source = others[rng.integers(len(others))]
                sample = surround(sample, source.one(rng), rng)
            pieces.append(sample)
            total += sample.n_beads
            sample = self.one(rng)
        return far_apart(pieces)


class Draws(IterableDataset):
    """Batches without end, from all sources in turn.

    Parameters
    ----------
    config : TrainConfig
    sources : list of Source
        One for each of the configuration's data.
    encoder : EncoderConfig
    """

    def __init__(self, config: TrainConfig, sources: list[Source], encoder: EncoderConfig) -> None:
        self.config, self.sources, self.encoder = config, sources, encoder
        shares = np.array([data.share for data in config.data])
        self.shares = shares / shares.sum()
        self.seed = (config.seed, 0)

    def begin(self, *seed: int) -> Iterator[Batch]:
        """Draw from a seed on."""
        self.seed = seed
        if not self.config.workers:
            return iter(self)
        return iter(DataLoader(self, batch_size=None, num_workers=self.config.workers,
                               prefetch_factor=AHEAD))  # fmt: skip

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        rng = np.random.default_rng([*self.seed, worker.id] if worker else self.seed)
        while True:
            yield self._draw(rng)

    def _draw(self, rng: np.random.Generator) -> Batch:
        config = self.config
        which = rng.choice(len(self.sources), p=self.shares)
        others = []
        if config.data[which].surround:
            others = [s for s, d in zip(self.sources, config.data, strict=True) if not d.surround]
        sample = self.sources[which].draw(rng, others)
        told = SIMULATED_NOISE if self.sources[which].simulated else None
        return make_batch(sample, self.encoder, config.noise, rng, config.forget_residue, told=told)
