"""Where the time of a conversion goes: stage by stage, and against the floor, in one process.

The floor is what no method can do without: to read the beads of the same frames, and to write as
many atoms. Stages are timed around the functions that do them, with one thread; with several, only
the whole is timed. CPU time is counted beside the time on the clock, for on a busy machine it says
more.

    python -m benchmarks.stages traj.xtc -s topol.tpr --frames 20 --json stages.json
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import click
from mdbackmap import pipeline, predictors, tails
from mdbackmap.cli.common import set_threads
from mdbackmap.geometry.boxes import Unwrapper
from mdbackmap.geometry.idealise import SystemIdealiser
from mdbackmap.geometry.rings import RingGuard
from mdbackmap.hydrogens.place import HydrogenPlacer
from mdbackmap.io import conversion
from mdbackmap.io.segments import Job
from mdbackmap.io.source import CGSource
from mdbackmap.io.topology import blank_universe
from mdbackmap.io.transformation import inspected, lay_out
from mdbackmap.io.writing import FrameWriter
from mdbackmap.models.fast import FastNetwork
from mdbackmap.pipeline import CHUNK_SIZE, Backmapper, Options
from mdbackmap.solvent import SolventPlacer
from mdbackmap.tails import Tails

STAGES: dict[str, list[tuple[object, str]]] = {
    "read": [(CGSource, "read")],
    "make whole": [(Unwrapper, "__call__")],
    "neighbours of beads": [(predictors, "find_pairs")],
    "neighbours of atoms": [(pipeline, "close_pairs"), (tails, "close_pairs"), (tails, "near")],
    "network": [(FastNetwork, "__call__")],
    "placement": [(predictors, "place_atoms")],
    "lipid tails": [(Tails, "__call__")],
    "idealisation": [(SystemIdealiser, "__call__")],
    "rings": [(RingGuard, "__call__")],
    "hydrogens": [(HydrogenPlacer, "__call__")],
    "water and ions": [(SolventPlacer, "__call__")],
    "write": [(FrameWriter, "write")],
}  # fmt: skip
"""What does the work of each stage. What one calls of another counts for the other."""
UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which the operating system counts memory."""


class Clock(threading.local):
    """Adds up CPU time in stages, not counting what they call of others.

    Frames are written by another thread than the one that makes them.
    """

    def __init__(self, everywhere: dict[str, float]) -> None:
        self.seconds = everywhere
        self._inner: list[float] = []

    def timed(self, stage: str, function: Callable) -> Callable:
        def run(*args, **options):
            began = time.thread_time()
            self._inner.append(0.0)
            try:
                return function(*args, **options)
            finally:
                whole = time.thread_time() - began
                self.seconds[stage] += whole - self._inner.pop()
                if self._inner:
                    self._inner[-1] += whole

        return run

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time the stages of everything that runs meanwhile."""
        with ExitStack() as stack:
            for stage, places in STAGES.items():
                for owner, name in places:
                    timed = self.timed(stage, getattr(owner, name))
                    stack.enter_context(mock.patch.object(owner, name, timed))
            yield


def job_of(source: CGSource, backmapper: Backmapper, output: Path, n_frames: int) -> Job:
    """Return what converts so many frames; the trajectory begins anew where it ends."""
    work, n = conversion.Atoms(backmapper), len(source.universe.trajectory)
    return Job(
        lambda k: source.read(k % n), work, lambda: blank_universe(backmapper.layout,
        backmapper.atoms), range(n_frames), len(backmapper.atoms), output, many=work.many,
        together=backmapper.together, size=n_frames,
    )  # fmt: skip


def floor(job: Job) -> float:
    """Seconds to read the frames and to write as many atoms."""
    positions = job.work(job.read(0))
    began = time.process_time()
    with FrameWriter(job.output, job.output, job.universe, len(job.frames), bare=True) as writer:
        for k in job.frames:
            writer.write(job.read(k), positions)
    return time.process_time() - began


def measure(
    trajectory: Path, topology: Path | None, n_frames: int, threads: int, options: Options,
    *, warm: bool = True,
) -> dict:  # fmt: skip
    """Convert frames; return what it took."""
    threads = set_threads(threads)
    source = CGSource.open(trajectory, topology)
    system = lay_out(source, "martini3", solvent=options.solvent)
    backmapper = inspected(Backmapper(system, None, options), source)
    clock = Clock(defaultdict(float))
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "aa.xtc"
        job = job_of(source, backmapper, output, n_frames)
        job.folder.mkdir()
        if warm:
            job_of(source, backmapper, output, min(n_frames, backmapper.together)).convert(0)
        # What was predicted to learn of the trajectory is no gift to a file of one frame.
        backmapper._foretold = None
        began, before = time.perf_counter(), time.process_time()
        with ExitStack() as stack:
            if threads == 1:
                stack.enter_context(clock.watching())
            job.convert(0)
        seconds, cpu = time.perf_counter() - began, time.process_time() - before
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT / 1e6
        least = floor(job)
    stages = {stage: clock.seconds[stage] for stage in STAGES} if threads == 1 else {}
    if stages:
        stages["the rest"] = cpu - sum(stages.values())
    return {
        "beads": system.n_beads, "heavy_atoms": system.n_atoms, "atoms": len(backmapper.atoms),
        "frames": n_frames, "threads": threads, "chunk_size": options.chunk_size,
        "seconds": seconds, "cpu_seconds": cpu, "atoms_per_second":
        n_frames * len(backmapper.atoms) / seconds, "frames_per_second": n_frames / seconds,
        "cpu_atoms_per_second": n_frames * len(backmapper.atoms) / cpu,
        "floor_cpu_seconds": least, "times_floor": cpu / least, "peak_mb": peak,
        "stages": stages,
    }  # fmt: skip


def to_text(row: dict) -> str:
    """Return the results as lines."""
    lines = [
        f"{row['beads']} beads, {row['atoms']} atoms, {row['frames']} frames, "
        f"{row['threads']} threads",
        f"{row['atoms_per_second']:,.0f} atoms/s ({row['cpu_atoms_per_second']:,.0f} per second of "
        f"CPU), {row['frames_per_second']:.3g} frames/s, {row['times_floor']:.1f} times the floor, "
        f"{row['peak_mb']:.0f} MB",
    ]
    for stage, seconds in row["stages"].items():
        lines.append(f"  {stage:20s}{1e3 * seconds / row['frames']:10.2f} ms per frame"
                     f"{seconds / row['cpu_seconds']:8.1%}")  # fmt: skip
    return "\n".join(lines)


@click.command()
@click.argument("trajectory", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-s", "--topology", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--frames", type=click.IntRange(1), default=10, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--chunk-size", type=click.IntRange(1), default=CHUNK_SIZE, show_default=True)
@click.option("--no-hydrogens", is_flag=True)
@click.option("--solvent", type=click.Choice(["keep", "drop"]), default="drop", show_default=True)
@click.option("--cold", is_flag=True, help="Count the first frame as well.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the numbers there.")
def main(trajectory: Path, topology: Path | None, frames: int, threads: int, chunk_size: int,
         no_hydrogens: bool, solvent: str, cold: bool, output: Path | None) -> None:  # fmt: skip
    """Time the conversion of TRAJECTORY, stage by stage."""
    options = Options(chunk_size=chunk_size, hydrogens=not no_hydrogens, solvent=solvent)
    row = measure(trajectory, topology, frames, threads, options, warm=not cold)
    click.echo(to_text(row))
    if output:
        output.write_text(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
