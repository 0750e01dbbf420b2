"""Peak memory of ``mdbackmap convert`` over short and long trajectories.

Frames of insulin, each moved by a little noise, are written to a temporary file; every conversion
runs in a process of its own.

    python -m benchmarks.memory --frames 50 --frames 5000
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import MDAnalysis as mda
import numpy as np
from mdbackmap.io.files import open_universe

DATA = Path(__file__).parents[1] / "tests" / "data"
UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which the operating system counts memory."""


def write_trajectory(path: Path, n_frames: int) -> None:
    """Write ``n_frames`` frames of insulin in its water."""
    universe = open_universe(DATA / "insulin.tpr", DATA / "insulin.gro")
    positions, noise = universe.atoms.positions.copy(), np.random.default_rng(1)
    with mda.Writer(str(path), len(universe.atoms)) as writer:
        for k in range(n_frames):
            universe.atoms.positions = positions + noise.normal(0, 0.1, positions.shape)
            universe.trajectory.ts.data["time"] = 100.0 * k
            writer.write(universe.atoms)


def peak_memory(trajectory: Path, output: Path, model: str) -> tuple[float, float]:
    """Convert a trajectory in another process; return its peak resident memory, MB, and seconds."""
    command = [sys.executable, "-m", "mdbackmap", "convert", trajectory, "-s",
               DATA / "insulin.tpr", "-o", output, "--model", model, "--threads", "1",
               "--solvent", "drop"]  # fmt: skip
    began = time.perf_counter()
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"convert failed with exit code {process.returncode}")
    return usage.ru_maxrss * UNIT / 1e6, time.perf_counter() - began


@click.command()
@click.option("--frames", multiple=True, type=click.IntRange(1), default=(50, 5000),
              show_default=True, help="Frames to convert; repeatable.")  # fmt: skip
@click.option("--model", default="martini3", show_default=True, metavar="NAME|PATH")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(frames: tuple[int, ...], model: str, as_json: bool) -> None:
    """Print the peak memory of conversions of different lengths, and their ratio."""
    found: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in frames:
            trajectory = Path(folder) / f"cg{n}.xtc"
            write_trajectory(trajectory, n)
            found[n], seconds = peak_memory(trajectory, Path(folder) / f"aa{n}.xtc", model)
            if not as_json:
                click.echo(f"{n:6d} frames: {found[n]:6.1f} MB at most, {seconds:.0f} s")
    ratio = found[frames[-1]] / found[frames[0]]
    if as_json:
        click.echo(json.dumps({"peak_mb": found, "ratio": ratio}))
    else:
        click.echo(f"{frames[-1]} frames take {ratio:.3f} times the memory of {frames[0]}")


if __name__ == "__main__":
    main()
