"""Heavy atoms per second for one protein from Martini 3 beads, on the CPU.

An atomistic structure is mapped to beads and brought back again and again, without a periodic
box: the network with the placement of atoms alone, and the whole frame as shipped. With --peer,
cgback (carbon alphas to atoms) backmaps the same residues in turns with it, in the same process
with the same number of threads, heavy atoms only as ours are. The frame with hydrogens is timed
beside them. Reading files and models, which either does once, is not timed.

    python -m benchmarks.speed protein.pdb --threads 2 --peer --json speed.json
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from unittest import mock

import click
import numpy as np
import torch
from mdbackmap.cli.common import set_threads
from mdbackmap.io.prepare import systems
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import System, from_beads
from mdbackmap.models.checkpoint import load
from mdbackmap.models.library import resolve
from mdbackmap.pipeline import Backmapper, Options
from mdbackmap.structure import Frame
from mdbackmap.threads import shared

WARM_UP = 5
"""Frames that are not counted."""
OURS, WHOLE = "network and placement", "whole frame, heavy atoms"
EVERY = "whole frame with hydrogens"
PEER, PEER_WHOLE = "cgback, sampling", "cgback, sampling and repair"
RATIOS = {OURS: PEER, WHOLE: PEER_WHOLE}

Seconds = dict[str, list[float]]


class Frames:
    """A protein's beads, and what makes its atoms of them."""

    def __init__(self, truth: System, positions: np.ndarray, model: str) -> None:
        self.beads = truth.map_positions(positions).astype(np.float32)
        self.system = from_beads(truth.beads, Library.load(["martini3"]), Frame(self.beads))
        checkpoint = load(resolve(model))
        self.every = Backmapper(self.system, checkpoint)
        self.backmapper = Backmapper(self.system, checkpoint, Options(hydrogens=False))
        for backmapper in (self.every, self.backmapper):
            backmapper.inspect([self.beads], [None])

    def network(self) -> None:
        """Find neighbours, run the network, place atoms."""
        with shared(), torch.inference_mode():
            self.backmapper._predict(self.beads, None)

    def whole(self) -> None:
        """Make the heavy atoms of a frame."""
        self.backmapper(self.beads, None)

    def with_hydrogens(self) -> None:
        """Make a frame as users get it."""
        self.every(self.beads, None)


class Peer:
    """cgback with its own defaults but for hydrogens; reads its file and its model once.

    Its default batch of 1024 residues is several times slower on a CPU than one of 16.
    """

    def __init__(self, truth: System, positions: np.ndarray, batch: int | None) -> None:
        words = ["--skip-add-hydrogen", *(["--batch", str(batch)] if batch else [])]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ca.pdb"
            path.write_text(carbon_alphas(truth, positions))
            self.app = _cgback([str(path), *words])
            self.start = self.app.setup_system()
        # Its repair would read the model again from the disk, which is no backmapping.
        self.app.unload_model = self.app.load_m_model = lambda: None
        self.n_atoms = 0

    def __call__(self, seconds: Seconds) -> None:
        """Backmap once; add the time until it has sampled, and until it has repaired the atoms."""
        began = time.perf_counter()
        system = copy.deepcopy(self.start)
        self.app.sampling(system, *self.app.setup_data(system), suffix=None)
        seconds[PEER].append(time.perf_counter() - began)
        self.app.fix_structure(system)
        seconds[PEER_WHOLE].append(time.perf_counter() - began)
        self.n_atoms = int(np.isfinite(system.heavy_coordinates).all(axis=-1).sum())


def _cgback(words: list[str]):
    """cgback's application; only its own main() knows the defaults of its options."""
    from cgback import backmapper_app

    caught = []
    with (
        mock.patch.object(sys, "argv", ["cgback", *words]),
        mock.patch.object(backmapper_app, "Backmapper",
                          lambda options: caught.append(options) or mock.Mock()),
    ):  # fmt: skip
        backmapper_app.main()
    from cgback.backmapper import Backmapper as Application

    return Application(*caught)


def carbon_alphas(truth: System, positions: np.ndarray) -> str:
    """Write the carbon alphas of a system as a PDB file with TER after every chain."""
    lines = []
    for row in np.flatnonzero(truth.atoms.names == "CA"):
        k = truth.atoms.residue[row]
        x, y, z = positions[row]
        name, number = truth.residue_names[k], k % 9999 + 1
        lines.append(f"ATOM  {number:5d}  CA  {name:3s} A{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}")
        if truth.next_residue[k] < 0:
            lines.append("TER")
    return "\n".join([*lines, "END\n"])


def measure(frames: Frames, repeats: int, peer: Peer | None, peer_repeats: int) -> Seconds:
    """Time everything in turns; a peer that takes seconds needs no warming up."""
    for _ in range(WARM_UP):
        frames.network()
        frames.whole()
        frames.with_hydrogens()
    seconds: Seconds = defaultdict(list)
    turns = np.linspace(0, repeats - 1, peer_repeats).astype(int) if peer else ()
    for k in range(repeats):
        for what, run in ((OURS, frames.network), (WHOLE, frames.whole),
                          (EVERY, frames.with_hydrogens)):  # fmt: skip
            began = time.perf_counter()
            run()
            seconds[what].append(time.perf_counter() - began)
        for _ in range(np.count_nonzero(turns == k) if peer else 0):
            peer(seconds)
    return seconds


def describe(seconds: list[float], n_atoms: int) -> dict:
    """Return the median, the quartiles and the extremes of some timings, ms, and the rate."""
    ms = 1e3 * np.array(seconds)
    return {
        "ms": float(np.median(ms)), "quartiles_ms": np.percentile(ms, [25, 75]).tolist(),
        "range_ms": [float(ms.min()), float(ms.max())], "repeats": len(ms),
        "atoms": n_atoms, "atoms_per_second": n_atoms / float(np.median(seconds)),
    }  # fmt: skip


def to_text(results: dict) -> str:
    """Return the results as lines."""
    lines = [
        f"{results['residues']} residues, {results['beads']} beads, {results['every_atom']} atoms, "
        f"of which {results['atoms']} heavy",
        f"model {results['model']}, told of {results['noise']:.2f} Å of noise",
        f"threads: {results['threads']}",
        f"{'':28s}{'atoms/s':>10s}{'ms':>10s}   quartiles (range), ms",
    ]
    for what, row in results["timings"].items():
        low, high = row["quartiles_ms"]
        least, most = row["range_ms"]
        lines.append(
            f"{what:28s}{row['atoms_per_second']:10.0f}{row['ms']:10.1f}   "
            f"{low:.1f} to {high:.1f} ({least:.1f} to {most:.1f}), n = {row['repeats']}"
        )
    if "peer_batch" in results:
        lines.append(
            f"cgback {results['peer_version']} samples {results['peer_batch']} residues at a time"
        )
    lines += [f"{what}: {ratio:.0f} times the atoms per second of {RATIOS[what]}"
              for what, ratio in results["ratios"].items()]  # fmt: skip
    return "\n".join(lines)


@click.command()
@click.argument("structure", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True,
              help="torch's CPU threads.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True)
@click.option("--peer", is_flag=True, help="Time cgback as well; it has to be installed.")
@click.option("--peer-repeats", type=click.IntRange(1), default=3, show_default=True,
              help="cgback takes a minute.")  # fmt: skip
@click.option("--peer-batch", type=click.IntRange(1), default=None,
              help="Residues cgback samples together, if not its own 1024.")  # fmt: skip
@click.option("--model", default="martini3", show_default=True, metavar="NAME|PATH")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the numbers there.")
def main(structure: Path, threads: int, repeats: int, peer: bool, peer_repeats: int,
         peer_batch: int | None, model: str, output: Path | None) -> None:  # fmt: skip
    """Time the backmapping of an atomistic protein structure (PDB) that is mapped first."""
    if peer and not importlib.util.find_spec("cgback"):
        raise click.ClickException("cgback is not installed; install it: pip install cgback")
    threads = set_threads(threads)
    truth, positions, _, _ = next(systems(structure, None, Library.load(["martini3"])))
    frames = Frames(truth, positions, model)
    other = Peer(truth, positions, peer_batch) if peer else None
    seconds = measure(frames, repeats, other, peer_repeats)
    counts = {what: other.n_atoms if other and what in RATIOS.values() else frames.system.n_atoms
              for what in seconds} | {EVERY: len(frames.every.atoms)}  # fmt: skip
    timings = {what: describe(seconds[what], counts[what]) for what in seconds}
    results = {
        "structure": structure.stem, "residues": len(truth.residue_template),
        "beads": frames.system.n_beads, "atoms": frames.system.n_atoms,
        "every_atom": len(frames.every.atoms),
        "model": frames.backmapper.checkpoint.card.get("name"), "noise": frames.backmapper.noise,
        "threads": threads, "timings": timings,
        "ratios": {ours: timings[ours]["atoms_per_second"] / timings[theirs]["atoms_per_second"]
                   for ours, theirs in RATIOS.items() if theirs in timings},
    }  # fmt: skip
    if other:
        results["peer_version"] = importlib.metadata.version("cgback")
        results["peer_batch"] = other.app.args.batch
    click.echo(to_text(results))
    if output:
        output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
