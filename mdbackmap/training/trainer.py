"""The training loop: resumable, with a log, plots, best and last checkpoint."""

from __future__ import annotations

import csv
import datetime
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mdbackmap.errors import ConfigError, ModelError, listing
from mdbackmap.geometry.bead_bonds import bead_pairs, pair_kinds
from mdbackmap.models import checkpoint
from mdbackmap.models.checkpoint import Checkpoint
from mdbackmap.models.encoder import SIMULATED_NOISE, EncoderConfig
from mdbackmap.models.hierarchical import HierarchicalVectors, place_atoms
from mdbackmap.training.batches import Batch, make_batch, random_piece
from mdbackmap.training.config import TrainConfig
from mdbackmap.training.dataset import PreparedSet, Sample
from mdbackmap.training.losses import best_names, loss_terms
from mdbackmap.training.optimizer import Optimizer
from mdbackmap.training.sources import Draws, Source, Vocabulary

STATE = "state.pt"
LOG = "log.csv"
NOISY = 0.3
"""Noise on the beads, Å, at which held-out structures are also predicted."""
WARM_UP = 200
"""Steps over which the learning rate rises, or a tenth of them all if that is less."""
MAX_BAD_STEPS = 50
"""Steps in a row whose gradient may be no number; they are skipped."""


@dataclass(frozen=True)
class HeldOut:
    """Systems to evaluate on, and whether their beads lie as in simulations."""

    samples: list[Sample]
    simulated: bool


def bead_distances(
    sources: list[Source], vocabulary: Vocabulary, most: int = 500
) -> dict[str, tuple[float, float]]:
    """Mean and spread of the distances of bonded beads over (up to ``most`` systems of) each set.

    The beads of a trajectory are compared with them.
    """
    found: dict[str, list[np.ndarray]] = {}
    for source in sources:
        for k in np.random.default_rng(0).permutation(len(source.samples))[:most]:
            sample = source.samples[k]
            pairs, inside = bead_pairs(sample.atom_bead, sample.bonds[0], sample.bead_residue)
            names, kind = pair_kinds(
                pairs, inside, sample.bead_key, sample.residue_name[sample.bead_residue],
                vocabulary.beads, vocabulary.residues,
            )  # fmt: skip
            ends = sample.bead_position[pairs]
            length = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
            starts = np.cumsum(np.bincount(kind, minlength=len(names)))[:-1]
            pieces = np.split(length[np.argsort(kind, kind="stable")], starts)
            for name, values in zip(names.tolist(), pieces, strict=True):
                found.setdefault(name, []).append(values)
    table = {label: np.concatenate(pieces) for label, pieces in sorted(found.items())}
    return {
        label: (round(float(values.mean()), 3), round(float(values.std()), 3))
        for label, values in table.items()
        if len(values) >= 10
    }


def rmsd(positions: torch.Tensor, batch: Batch) -> float:
    """Heavy-atom RMSD of usable atoms without superposition, Å."""
    squared = ((positions - best_names(positions, batch)) ** 2).sum(1)[batch.usable]
    return float(squared.mean().sqrt())


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
    ConfigError, StructureError, InputFileError
        Data that is missing, damaged or contradictory; nothing held out that can be evaluated.
    """

    def __init__(self, config: TrainConfig, say: Callable[[str], None] = print) -> None:
        self.config, self.say = config, say
        _check_device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        sets = [PreparedSet(source.path) for source in config.data]
        self.vocabulary = Vocabulary(sets)
        self.sources = [Source(s, self.vocabulary, config.batch_beads) for s in sets]
        self.checks = self._held_out("validation", config.validation)
        self.tests = self._held_out("test", config.test)
        self.encoder = EncoderConfig(**config.network.model_dump())
        self.draws = Draws(config, self.sources, self.encoder)
        self.network = self._fresh().to(config.device)
        self.average = self._fresh().to(config.device)
        if config.start_from:
            self._take_from(config.start_from, self.network)
        self.average.load_state_dict(self.network.state_dict())
        self.optimizer = Optimizer(self.network, config.learning_rate, config.weight_decay)
        self.step, self.spent, self.best, self.bad_steps = 0, 0.0, math.inf, 0
        self.output = Path(config.output)
        self.distances, self.simulated_distances = (
            bead_distances([s for s in self.sources if s.simulated == kind], self.vocabulary)
            for kind in (False, True)
        )

    def _held_out(self, option: str, paths: list[Path]) -> dict[str, HeldOut]:
        """Systems to evaluate by the name of their file; says which cannot be."""
        result: dict[str, HeldOut] = {}
        for path in paths:
            data = PreparedSet(path)
            known = self.vocabulary.known(data)
            if len(known) < len(data):
                keys = [k for k in data.bead_keys if k not in set(self.vocabulary.beads)]
                text = (
                    f"{option} {path}: {len(data) - len(known)} of {len(data)} systems hold beads "
                    f"or atoms that no training data has\n{listing(keys, 10)}"
                )
                if not known:
                    raise ConfigError(text)
                self.say(f"{text}\n  They are left out.")
            if path.stem in result:
                raise ConfigError(f"{option}: two files are called {path.stem}; rename one")
            result[path.stem] = HeldOut(known, data.simulated)
        return result

    def _fresh(self) -> HierarchicalVectors:
        v = self.vocabulary
        return HierarchicalVectors(self.encoder, len(v.beads), len(v.residues), len(v.atoms))

    def _take_from(self, path: Path, network: HierarchicalVectors, share: float = 1.0) -> None:
        """Mix in weights that fit, or copy them; rows of embeddings are matched by key."""
        old = checkpoint.load(path)
        if old.network.encoder.config != self.encoder:
            raise ModelError(f"{path}: another architecture than this configuration's")
        state, before = network.state_dict(), old.network.state_dict()
        keys = {
            "encoder.bead.weight": (old.bead_keys, self.vocabulary.beads),
            "encoder.residue.weight": (old.residues, self.vocabulary.residues),
            "read.weight": (old.atom_keys, self.vocabulary.atoms),
        }
        for name, value in before.items():
            if name not in keys:
                state[name] = torch.lerp(state[name], value.to(state[name]), share)
                continue
            place = {key: k for k, key in enumerate(keys[name][0])}
            for row, key in enumerate(keys[name][1]):
                if key in place:
                    theirs = value[place[key]].to(state[name])
                    state[name][row] = torch.lerp(state[name][row], theirs, share)
        network.load_state_dict(state)

    def run(self) -> dict[str, float]:
        """Train for the configured time, going on from an earlier run's state if there is one.

        Returns
        -------
        dict
            Metrics of the best checkpoint on the validation and test sets.

        Raises
        ------
        ConfigError
            The state in the output folder is of another run; the loss is no number.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        self._resume()
        self._batches = self.draws.begin(self.config.seed, self.step)
        network = torch.compile(self.network, dynamic=True) if self.config.compile else self.network
        budget, most = self.config.minutes * 60, self.config.steps or math.inf
        next_check = self.spent + min(60.0, self.config.validate_every * 60)
        began, sums, count = time.monotonic() - self.spent, {}, 0
        try:
            while self.spent < budget and self.step < most:
                terms = self._step(network, max(self.spent / budget, self.step / most))
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value
                count += bool(terms)
                self.spent = time.monotonic() - began
                if self.spent >= min(next_check, budget) or self.step >= most:
                    self._check({name: float(value) / count for name, value in sums.items()})
                    sums, count = {}, 0
                    # Evaluation costs time too, but not training time.
                    began = time.monotonic() - self.spent
                    next_check = self.spent + self.config.validate_every * 60
        except KeyboardInterrupt:
            self._keep()
            self.say(f"stopped at step {self.step}; the same command goes on from here")
            raise
        return self.finish()

    def _step(self, network: torch.nn.Module, progress: float) -> dict[str, torch.Tensor]:
        config = self.config
        batch = next(self._batches).to(config.device)
        warm_up = min(WARM_UP, 1 + config.steps // 10) if config.steps else WARM_UP
        warm = min(1.0, (self.step + 1) / warm_up)
        falling = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
        self.optimizer.set_learning_rate(config.learning_rate * warm * falling)
        terms = loss_terms(predict(network, batch), batch, config.losses)
        loss = sum(terms.values())
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.step += 1
        if not torch.isfinite(norm):
            self._skip(batch.name)
            return {}
        self.bad_steps = 0
        self.optimizer.step()
        keep = min(config.average, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        return {name: value.detach() for name, value in terms.items()}

    def _skip(self, name: str) -> None:
        self.bad_steps += 1
        if self.bad_steps >= MAX_BAD_STEPS:
            raise ConfigError(
                f"step {self.step}: the loss has been no number for {self.bad_steps} steps, last "
                f"on {name}; lower 'learning_rate' and start again from "
                f"{self.output / 'best.safetensors'} ('start_from')"
            )

    def evaluate(
        self, network: HierarchicalVectors, name: str, held_out: HeldOut,
        limit: int | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Mean RMSD over (at most ``limit`` evenly picked) systems, Å.

        By ``name@level``, the level being the noise added to the beads, or ``simulated`` where
        they lie as in simulations as they are.
        """
        if held_out.simulated:
            told = {"told": SIMULATED_NOISE}
            return {f"{name}@simulated": self._mean_rmsd(network, held_out.samples, told, limit)}
        return {
            f"{name}@{level}": self._mean_rmsd(network, held_out.samples, {"level": level}, limit)
            for level in ((0.0, NOISY) if self.config.noise.used else (0.0,))
        }

    def _mean_rmsd(
        self, network: HierarchicalVectors, samples: list[Sample], noise: dict[str, float],
        limit: int | None,
    ) -> float:  # fmt: skip
        rng = np.random.default_rng(0)
        most = min(limit or len(samples), len(samples))
        values = []
        with torch.no_grad():
            for k in np.unique(np.linspace(0, len(samples) - 1, most).astype(int)):
                sample = random_piece(samples[k], 3000, rng)
                if not sample.usable.any():
                    continue
                batch = make_batch(sample, self.encoder, self.config.noise, rng,
                                   **noise).to(self.config.device)  # fmt: skip
                values.append(rmsd(predict(network, batch), batch))
        return float(np.mean(values)) if values else math.nan

    def _check(self, row: dict[str, float]) -> None:
        metrics: dict[str, float] = {}
        for name, held_out in self.checks.items():
            metrics |= self.evaluate(self.average, name, held_out, limit=40)
        score = sum((metrics or row).values()) if row else math.nan
        self._save("last", metrics)
        # Never true of a score that is no number.
        if score < self.best:
            self.best = score
            self._save("best", metrics)
        self._keep()
        line = {"minutes": self.spent / 60, "step": self.step, **row, **metrics}
        self._log(line)
        self.say("  ".join(f"{k} {v:.4g}" for k, v in line.items()))

    def _keep(self) -> None:
        """Write all that is needed to go on later."""
        part = self.output / f"{STATE}.part"
        torch.save(
            {"network": self.network.state_dict(), "average": self.average.state_dict(),
             "optimizer": self.optimizer.state_dict(), "step": self.step, "spent": self.spent,
             "best": self.best, "keys": self._keys()},
            part,
        )  # fmt: skip
        part.replace(self.output / STATE)

    def _keys(self) -> list[list[str]]:
        return [self.vocabulary.beads, self.vocabulary.atoms, self.vocabulary.residues]

    def _log(self, line: dict[str, float]) -> None:
        """Add a row; columns may differ from those of an earlier run."""
        path = self.output / LOG
        rows = self._logged()
        rows.append({name: f"{value:.5g}" for name, value in line.items()})
        part = path.with_name(f"{LOG}.part")
        with part.open("w", newline="") as handle:
            names = dict.fromkeys(name for row in rows for name in row)
            writer = csv.DictWriter(handle, list(names))
            writer.writeheader()
            writer.writerows(rows)
        part.replace(path)

    def _logged(self) -> list[dict[str, str]]:
        path = self.output / LOG
        if not path.exists():
            return []
        with path.open(newline="") as handle:
            return list(csv.DictReader(handle))

    def _save(self, which: str, metrics: dict[str, float]) -> None:
        card = {
            "name": self.config.name,
            "date": datetime.date.today().isoformat(),
            "data": self.config.sources,
            "licence": self.config.licence,
            "seed": self.config.seed,
            "minutes": round(self.spent / 60, 1),
            "steps": self.step,
            "noise": self.config.noise.model_dump(),
            "largest_noise": self._largest_noise(),
            "for_mapped_beads": self.config.for_mapped_beads,
            "beside": self.config.beside,
            "losses": self.config.losses.model_dump(),
            "command": "mdbackmap train",
            "metrics": {k: round(v, 4) for k, v in metrics.items()},
        }
        v = self.vocabulary
        checkpoint.save(
            Checkpoint(
                self.average,
                v.beads,
                v.atoms,
                v.residues,
                v.digests,
                self.distances,
                card,
                self.simulated_distances,
            ),
            self.output / f"{which}.safetensors",
        )

    def _largest_noise(self) -> float:
        noise = self.config.noise
        levels = [noise.largest if noise.used else 0.0]
        levels += [SIMULATED_NOISE for source in self.sources if source.simulated]
        return max(levels)

    def _resume(self) -> None:
        path = self.output / STATE
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True, map_location=self.config.device)
            if state.get("keys", self._keys()) != self._keys():
                raise ValueError("other data")
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.spent, self.best = state["step"], state["spent"], state["best"]
        except (OSError, RuntimeError, ValueError, KeyError, AttributeError, EOFError,
                pickle.UnpicklingError) as error:  # fmt: skip
            raise ConfigError(
                f"{path}: is damaged or of another configuration; remove the folder or choose "
                "another 'output'"
            ) from error
        self.say(f"going on from {path} at {self.spent / 60:.1f} minutes, step {self.step}")

    def finish(self) -> dict[str, float]:
        """Evaluate the best checkpoint on the test sets and draw the learning curve.

        Returns
        -------
        dict
            Metrics of the best checkpoint, which are also added to its card.
        """
        path = self.output / "best.safetensors"
        best = checkpoint.load(path)
        if self.config.start_from and self.config.keep:
            self._take_from(self.config.start_from, best.network, self.config.keep)
        best.network.to(self.config.device)
        metrics = dict(best.card.get("metrics", {}))
        for name, held_out in self.tests.items():
            found = self.evaluate(best.network, name, held_out)
            metrics |= {key: round(value, 4) for key, value in found.items()}
        checkpoint.save(replace(best, card={**best.card, "metrics": metrics}), path)
        self._plot()
        return metrics

    def _plot(self) -> None:
        from matplotlib.figure import Figure

        rows = self._logged()
        figure = Figure(figsize=(10, 4), layout="constrained")
        loss, held_out = figure.subplots(1, 2)
        for name in rows[-1]:
            if name in ("minutes", "step"):
                continue
            points = [(float(r["minutes"]), float(r[name])) for r in rows if r[name]]
            (held_out if "@" in name else loss).plot(*zip(*points, strict=True), ".-", label=name)
        loss.set(xlabel="minutes", ylabel="loss", yscale="log", title="training loss")
        held_out.set(xlabel="minutes", ylabel="RMSD (Å)", title="held-out structures")
        for axis in (loss, held_out):
            if axis.lines:
                axis.legend(fontsize=7)
        figure.savefig(self.output / "learning.png", dpi=120)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device '{device}': torch cannot use it here; cpu always works"
        ) from error
