"""The training loop: resumable, with a log, plots, best and last checkpoint."""

from __future__ import annotations

import csv
import datetime
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mdbackmap.errors import ConfigError, ModelError
from mdbackmap.geometry.calibration import bead_pairs, pair_names
from mdbackmap.models import checkpoint
from mdbackmap.models.checkpoint import Checkpoint
from mdbackmap.models.encoder import EncoderConfig
from mdbackmap.models.hierarchical import HierarchicalVectors, place_atoms
from mdbackmap.training.batches import (
    Batch,
    far_apart,
    make_batch,
    random_piece,
    surround,
)
from mdbackmap.training.config import TrainConfig
from mdbackmap.training.dataset import PreparedSet, Sample
from mdbackmap.training.losses import best_names, loss_terms

_STATE = "state.pt"


class Vocabulary:
    """Joins the vocabularies of several prepared sets."""

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
        return Sample(**{
            **vars(sample), "bead_key": tables[0][sample.bead_key],
            "atom_key": tables[1][sample.atom_key],
            "residue_name": np.maximum(tables[2][sample.residue_name], 0),
        })  # fmt: skip


class Source:
    """Endless random training pieces of one prepared set."""

    def __init__(self, data: PreparedSet, vocabulary: Vocabulary, batch_beads: int) -> None:
        self.samples = [vocabulary.translate(data, sample) for sample in data]
        sizes = np.minimum(data.n_beads(), batch_beads)
        self.odds = sizes / sizes.sum()
        self.batch_beads = batch_beads

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


def bead_distances(
    sources: list[Source], vocabulary: Vocabulary, most: int = 500
) -> dict[str, tuple[float, float]]:
    """Mean and spread of the distances of bonded beads over (up to ``most`` systems of) each set.

    Calibration compares the beads of a trajectory with them.
    """
    found: dict[str, list[np.ndarray]] = {}
    keys, names = np.array(vocabulary.beads), np.array(vocabulary.residues)
    for source in sources:
        for k in np.random.default_rng(0).permutation(len(source.samples))[:most]:
            sample = source.samples[k]
            pairs, inside = bead_pairs(sample.atom_bead, sample.bonds[0], sample.bead_residue)
            kinds = pair_names(pairs, inside, keys[sample.bead_key],
                               names[sample.residue_name[sample.bead_residue]])  # fmt: skip
            ends = sample.bead_position[pairs]
            length = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
            order = np.argsort(kinds, kind="stable")
            labels, starts = np.unique(kinds[order], return_index=True)
            for label, values in zip(labels.tolist(), np.split(length[order], starts[1:]),
                                     strict=True):  # fmt: skip
                found.setdefault(label, []).append(values)
    table = {label: np.concatenate(pieces) for label, pieces in sorted(found.items())}
    return {
        label: (round(float(values.mean()), 3), round(float(values.std()), 3))
        for label, values in table.items()
        if len(values) >= 10
    }


def rmsd(positions: torch.Tensor, batch: Batch) -> float:
    """Heavy-atom RMSD of usable atoms without superposition, Å."""
    squared = ((positions - best_names(positions, batch)) ** 2).sum(1)[batch.usable]
    return float(squared.mean().sqrt()) if len(squared) else float("nan")


def predict(network: HierarchicalVectors, batch: Batch) -> torch.Tensor:
    """Positions of all atoms of a batch, shape (n_atoms, 3), Å, as the network gives them."""
    vectors = network(*batch.inputs)
    return place_atoms(vectors, batch.anchors, batch.levels, batch.inputs[7], batch.beads)


class Trainer:
    """Trains one model from a configuration.

    Parameters
    ----------
    config : TrainConfig
    say : callable
        Takes one line of text at a time.

    Raises
    ------
    ConfigError, StructureError
        Data that is missing, damaged or contradictory.
    """

    def __init__(self, config: TrainConfig, say: Callable[[str], None] = print) -> None:
        self.config, self.say = config, say
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.rng = np.random.default_rng(config.seed)
        sets = [PreparedSet(source.path) for source in config.data]
        self.vocabulary = Vocabulary(sets)
        self.sources = [Source(s, self.vocabulary, config.batch_beads) for s in sets]
        self.shares = np.array([s.share for s in config.data])
        self.shares = self.shares / self.shares.sum()
        self.checks = [(p, PreparedSet(p)) for p in config.validation]
        self.encoder = EncoderConfig(**config.network.model_dump())
        self.network = self._fresh().to(config.device)
        self.average = self._fresh().to(config.device)
        if config.start_from:
            self._start_from(config.start_from)
        self.average.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=1e-5
        )
        self.step, self.spent, self.best = 0, 0.0, math.inf
        self.output = Path(config.output)
        self.distances = bead_distances(self.sources, self.vocabulary)

    def _fresh(self) -> HierarchicalVectors:
        v = self.vocabulary
        return HierarchicalVectors(self.encoder, len(v.beads), len(v.residues), len(v.atoms))

    def _start_from(self, path: Path) -> None:
        """Copy weights that fit; rows of embeddings are matched by key."""
        old = checkpoint.load(path)
        if old.network.encoder.config != self.encoder:
            raise ModelError(f"{path}: another architecture than this configuration's")
        state, before = self.network.state_dict(), old.network.state_dict()
        keys = {
            "encoder.bead.weight": (old.bead_keys, self.vocabulary.beads),
            "encoder.residue.weight": (old.residues, self.vocabulary.residues),
            "read.weight": (old.atom_keys, self.vocabulary.atoms),
        }
        for name, value in before.items():
            if name not in keys:
                state[name] = value
                continue
            place = {key: k for k, key in enumerate(keys[name][0])}
            for row, key in enumerate(keys[name][1]):
                if key in place:
                    state[name][row] = value[place[key]]
        self.network.load_state_dict(state)

    def run(self) -> dict[str, float]:
        """Train for the configured time, going on from an earlier run's state if there is one.

        Returns
        -------
        dict
            Metrics of the best checkpoint on the validation and test sets.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        self._resume()
        network = torch.compile(self.network, dynamic=True) if self.config.compile else self.network
        budget = self.config.minutes * 60
        next_check = self.spent + min(60.0, self.config.validate_every * 60)
        began, sums, count = time.monotonic() - self.spent, {}, 0
        while self.spent < budget:
            terms = self._step(network, self.spent / budget)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value
            count += 1
            self.spent = time.monotonic() - began
            if self.spent >= next_check or self.spent >= budget:
                row = {name: value / count for name, value in sums.items()}
                self._check(row)
                sums, count = {}, 0
                # Evaluation costs time too, but not training time.
                began = time.monotonic() - self.spent
                next_check = self.spent + self.config.validate_every * 60
        return self.finish()

    def _step(self, network: torch.nn.Module, progress: float) -> dict[str, float]:
        config = self.config
        which = self.rng.choice(len(self.sources), p=self.shares)
        others = []
        if config.data[which].surround:
            others = [s for s, d in zip(self.sources, config.data, strict=True) if not d.surround]
        sample = self.sources[which].draw(self.rng, others)
        batch = make_batch(sample, self.encoder.cutoff, config.noise, self.rng,
                           config.forget_residue).to(config.device)  # fmt: skip
        warm = min(1.0, (self.step + 1) / 200)
        rate = config.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        vectors = network(*batch.inputs)
        positions = place_atoms(vectors, batch.anchors, batch.levels, batch.inputs[7], batch.beads)
        terms = loss_terms(positions, batch, config.losses)
        loss = sum(terms.values())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.step += 1
        keep = min(config.average, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        return {name: float(value.detach()) for name, value in terms.items()}

    def evaluate(self, data: PreparedSet, level: float = 0.0, limit: int = 40) -> float:
        """Mean RMSD over (at most ``limit`` evenly picked) systems, at a fixed noise, Å."""
        rng = np.random.default_rng(0)
        values = []
        picked = np.unique(np.linspace(0, len(data) - 1, min(limit, len(data))).astype(int))
        with torch.no_grad():
            for k in picked:
                sample = self.vocabulary.translate(data, data[k])
                if (sample.bead_key < 0).any() or (sample.atom_key < 0).any():
                    continue
                sample = random_piece(sample, 3000, rng)
                batch = make_batch(sample, self.encoder.cutoff, self.config.noise, rng,
                                   level=level).to(self.config.device)  # fmt: skip
                values.append(rmsd(predict(self.average, batch), batch))
        return float(np.mean(values)) if values else float("nan")

    def _check(self, row: dict[str, float]) -> None:
        metrics: dict[str, float] = {}
        for path, data in self.checks:
            for level in (0.0, 0.3):
                metrics[f"{path.stem}@{level}"] = self.evaluate(data, level)
        score = float(np.nansum(list(metrics.values()))) if metrics else sum(row.values())
        self._save("last")
        if score < self.best:
            self.best = score
            self._save("best", metrics)
        torch.save(
            {"network": self.network.state_dict(), "average": self.average.state_dict(),
             "optimizer": self.optimizer.state_dict(), "step": self.step, "spent": self.spent,
             "best": self.best},
            self.output / (_STATE + ".part"),
        )  # fmt: skip
        (self.output / (_STATE + ".part")).replace(self.output / _STATE)
        line = {"minutes": self.spent / 60, "step": self.step, **row, **metrics}
        self._log(line)
        self.say("  ".join(f"{k} {v:.4g}" for k, v in line.items()))

    def _log(self, line: dict[str, float]) -> None:
        path = self.output / "log.csv"
        new = not path.exists()
        with path.open("a", newline="") as handle:
            writer = csv.writer(handle)
            if new:
                writer.writerow(line)
            writer.writerow([f"{value:.5g}" for value in line.values()])

    def _save(self, which: str, metrics: dict[str, float] | None = None) -> None:
        card = {
            "name": self.config.name,
            "date": datetime.date.today().isoformat(),
            "data": self.config.sources,
            "licence": self.config.licence,
            "seed": self.config.seed,
            "minutes": round(self.spent / 60, 1),
            "steps": self.step,
            "noise": self.config.noise.model_dump(),
            "losses": self.config.losses.model_dump(),
            "command": "mdbackmap train",
            "metrics": {k: round(v, 4) for k, v in (metrics or {}).items()},
        }
        v = self.vocabulary
        checkpoint.save(
            Checkpoint(self.average, v.beads, v.atoms, v.residues, v.digests, self.distances, card),
            self.output / f"{which}.safetensors",
        )

    def _resume(self) -> None:
        path = self.output / _STATE
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location=self.config.device)
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{path}: is of another configuration; remove the folder or choose another "
                "'output'"
            ) from error
        self.step, self.spent, self.best = state["step"], state["spent"], state["best"]
        self.rng = np.random.default_rng([self.config.seed, self.step])
        self.say(f"going on from {path} at {self.spent / 60:.1f} minutes, step {self.step}")

    def finish(self) -> dict[str, float]:
        """Evaluate the best checkpoint on the test sets and draw the learning curve."""
        best = checkpoint.load(self.output / "best.safetensors")
        self.average.load_state_dict(best.network.state_dict())
        metrics = dict(best.card.get("metrics", {}))
        for path in self.config.test:
            data = PreparedSet(path)
            for level in (0.0, 0.3):
                metrics[f"{path.stem}@{level}"] = self.evaluate(data, level, limit=len(data))
        self._save("best", metrics)
        self._plot()
        return metrics

    def _plot(self) -> None:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt

        with (self.output / "log.csv").open() as handle:
            rows = list(csv.DictReader(handle))
        figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for name in rows[0]:
            if name in ("minutes", "step"):
                continue
            axis = axes[1] if "@" in name else axes[0]
            axis.plot([float(r["minutes"]) for r in rows], [float(r[name]) for r in rows],
                      label=name)  # fmt: skip
        axes[0].set(xlabel="minutes", ylabel="loss", yscale="log", title="training loss")
        axes[1].set(xlabel="minutes", ylabel="RMSD (Å)", title="held-out structures")
        for axis in axes:
            axis.legend(fontsize=7)
        figure.savefig(self.output / "learning.png", dpi=120)
        plt.close(figure)
