"""A small model of one molecule in minutes: frames of it, a network of its own, its weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mdbackmap.errors import ConfigError
from mdbackmap.mapping.conformers import dynamics
from mdbackmap.mapping.system import System, one_molecule
from mdbackmap.mapping.template import Template
from mdbackmap.models import checkpoint
from mdbackmap.predictors import ConformerPredictor
from mdbackmap.training.config import DataSource, Losses, Network, Noise, TrainConfig
from mdbackmap.training.dataset import Builder
from mdbackmap.training.trainer import Trainer

STARTS, FRAMES = 30, 25
"""Conformers that dynamics starts from, and frames of each run."""
HELD_OUT = 0.2
"""Share of the runs (of the frames, at the end of a trajectory) that is not learnt from."""
FEWEST = 20
"""Frames below which nothing is learnt."""


@dataclass(frozen=True)
class Learnt:
    """What came of it; errors are mean heavy-atom RMSDs over held-out frames, Å.

    Attributes
    ----------
    weights : Path
    frames, held_out : int
    error : dict of str
        By level of noise on the beads.
    fitted : float
        That of conformers fitted to the same beads without noise.
    """

    weights: Path
    frames: int
    held_out: int
    error: dict[str, float]
    fitted: float


def frames_of(template: Template) -> tuple[np.ndarray, np.ndarray]:
    """Return frames of a molecule to learn from and to hold out, from dynamics in vacuum.

    Returns
    -------
    learnt, held_out : ndarray, shape=(n, n_atoms, 3), Å
        From different runs, and different conformers if the molecule has many.

    Raises
    ------
    MappingError
        See `mdbackmap.mapping.conformers.dynamics`.
    """
    runs = dynamics(template, STARTS, FRAMES)
    last = len(runs) - max(1, round(HELD_OUT * len(runs)))
    learnt, held_out = runs[:last], runs[last:]
    return learnt.reshape(-1, *runs.shape[2:]), held_out.reshape(-1, *runs.shape[2:])


def split(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hold out the end of a trajectory, shape (n, n_atoms, 3)."""
    last = len(frames) - round(HELD_OUT * len(frames))
    return frames[:last], frames[last:]


def train_molecule(
    template: Template, learnt: np.ndarray, held_out: np.ndarray, output: Path, minutes: float,
    say: Callable[[str], None],
    *, source: str = "conformers and dynamics in vacuum (RDKit, MMFF94)", threads: int = 0,
) -> Learnt:  # fmt: skip
    """Train a model of one molecule.

    Parameters
    ----------
    template : Template
    learnt, held_out : ndarray, shape=(n, n_atoms, 3), Å
    output : Path
        Weights to write; a folder of the same stem beside it keeps log and state.
    minutes : float
    say : callable
        Takes one line of text at a time.
    source : str
        Where the frames came from, for the model card.

    Raises
    ------
    ConfigError
        Too few frames.
    """
    if len(learnt) < FEWEST or not len(held_out):
        raise ConfigError(
            f"residue {template.residue}: {len(learnt) + len(held_out)} frames; at least "
            f"{round(FEWEST / (1 - HELD_OUT))} are needed to learn from and to test on"
        )
    system = one_molecule(template)
    folder = output.with_name(f"{output.stem}_training")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "learnt.npz", folder / "held_out.npz"]
    for path, frames in zip(paths, (learnt, held_out), strict=True):
        builder = Builder()
        for k, positions in enumerate(frames):
            builder.add(f"{template.residue}{k}", system, positions, None)
        builder.save(path)
    config = TrainConfig(
        name=template.residue, data=[DataSource(path=paths[0])], validation=[paths[1]],
        output=folder, minutes=minutes, batch_beads=50 * template.n_beads, threads=threads,
        network=Network(scalars=48, vectors=24, layers=2, cutoff=14.0),
        noise=Noise(clean=0.3, largest=0.5, stretch=0.03), losses=Losses(bonds=4.0, angles=1.0),
        forget_residue=0.0, validate_every=1.0, average=0.995, sources=source,
        licence="that of the molecule's data",
    )  # fmt: skip
    error = Trainer(config, say).run()
    best = checkpoint.load(folder / "best.safetensors")
    card = {
        **best.card, "command": f"mdbackmap train --molecule {Path(template.source).name}",
        "data": source, "limits": "knows this molecule alone, not what lies around it",
    }  # fmt: skip
    checkpoint.save(replace(best, card=card), folder / "best.safetensors")
    shutil.copyfile(folder / "best.safetensors", part := output.with_name(f"{output.name}.part"))
    part.replace(output)
    return Learnt(output, len(learnt), len(held_out), error, _fitted(system, held_out))


def _fitted(system: System, frames: np.ndarray) -> float:
    """Mean RMSD of conformers fitted to the beads of frames, Å."""
    predictor = ConformerPredictor(system, drawn=False)
    errors = []
    for positions in frames:
        found = predictor(system.map_positions(positions).astype(np.float32), None, 0.0).numpy()
        errors.append(np.sqrt(((found - positions) ** 2).sum(axis=1).mean()))
    return float(np.mean(errors))
