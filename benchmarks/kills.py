"""A conversion that is killed again and again (``kill -9``), each time continued by ``--resume``.

A trajectory is repeated to as many frames as wanted, each with a time of its own, and converted
once without a break. Then it is converted with ``--resume``, and the process is killed at random
moments of five kinds in equal parts: while it starts, at its first frames, between segments, while
a segment is joined to the output, and while the output is completed and named. Whenever a
conversion gets to its end, its files are compared with those of the unbroken one, byte for byte or
frame for frame, and it begins anew.

    python -m benchmarks.kills cg.xtc -s cg.tpr --frames 500 --kills 20 --jobs 2 -- --solvent drop
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import MDAnalysis as mda
import numpy as np
from mdbackmap.io.files import open_universe, quiet_guesses
from mdbackmap.io.segments import Checkpoint, folder_of
from mdbackmap.io.writing import CHAINED

MOMENTS = ("starting", "first frames", "between segments", "joining", "finishing")
LATE = 600.0
"""Seconds after which a conversion is taken to hang."""


@dataclass
class Survival:
    """What became of a conversion that was killed.

    Attributes
    ----------
    frames : int
        Of the trajectory.
    moments : dict of str to int
        Kills by what the conversion was doing.
    done : list of int
        Segments done at each kill, in order.
    compared : int
        Conversions that got to their end, all with the same files as the unbroken one.
    orphans : float
        Seconds that worker processes outlived the one that was killed, at most.
    """

    frames: int
    moments: dict[str, int] = field(default_factory=Counter)
    done: list[int] = field(default_factory=list)
    compared: int = 0
    orphans: float = 0.0


def repeat(topology: Path, trajectory: Path, n_frames: int, folder: Path) -> Path:
    """Write a trajectory of so many frames, 100 ps apart, and its topology beside it."""
    cg = open_universe(topology, trajectory)
    output = folder / "cg.xtc"
    shutil.copyfile(topology, output.with_suffix(topology.suffix))
    with mda.Writer(str(output), len(cg.atoms)) as writer:
        for k in range(n_frames):
            ts = cg.trajectory[k % len(cg.trajectory)]
            ts.data["time"] = 100.0 * k
            writer.write(cg.atoms)
    return output


def survive(
    trajectory: Path, suffix: str, n_frames: int, kills: int, options: Sequence[str] = (),
    seed: int = 0,
) -> Survival:  # fmt: skip
    """Kill a conversion at random moments until it was killed often enough; compare its files.

    Parameters
    ----------
    trajectory : Path
        Its folder is where outputs go.
    suffix : str
        Format of the output.
    n_frames : int
        Frames of the trajectory.
    options : sequence of str
        Of ``mdbackmap convert``.

    Raises
    ------
    AssertionError
        Frames are lost or doubled or files differ, or a conversion fails.
    """
    whole, output = (trajectory.with_name(f"{name}.{suffix}") for name in ("whole", "killed"))
    command = [sys.executable, "-m", "mdbackmap", "convert", str(trajectory), *options, "-o"]
    began = time.monotonic()
    process = _start([*command, str(whole)])
    _wait(process, lambda: _state(whole) is not None)
    start_up = time.monotonic() - began
    assert process.wait(LATE) == 0, "the unbroken conversion failed"
    _check_frames(whole, n_frames)
    chance, found = random.Random(seed), Survival(n_frames)
    wanted = list(itertools.islice(itertools.cycle(MOMENTS), kills))
    chance.shuffle(wanted)
    while wanted:
        process = _start([*command, str(output), "--resume"])
        if _meet(wanted[0], process, output, n_frames, start_up, chance):
            process.send_signal(signal.SIGKILL)
        if process.wait(LATE) == -signal.SIGKILL:
            found.moments[wanted.pop(0)] += 1
            found.orphans = max(found.orphans, _orphans(process.pid))
            found.done.append(_done(output))
        else:
            _finished(process, output, whole, found)
    _finished(_start([*command, str(output), "--resume"]), output, whole, found)
    return found


def _start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def _wait(process: subprocess.Popen, until: Callable[[], bool]) -> bool:
    """Wait for something to happen while a process runs; return whether it did."""
    late = time.monotonic() + LATE
    while process.poll() is None and time.monotonic() < late:
        if until():
            return True
        time.sleep(0.001)
    return False


def _meet(
    moment: str, process: subprocess.Popen, output: Path, n_frames: int, start_up: float,
    chance: random.Random,
) -> bool:  # fmt: skip
    """Wait for a moment of a kind; return whether it came while the process ran."""
    begun = _done(output)
    if moment == "starting":
        came, later = True, start_up
    elif moment == "first frames":
        left = _parts(output)
        came, later = _wait(process, lambda: bool(_parts(output) - left)), 0.3
    elif moment == "between segments":
        more = begun + chance.choice([1, 2, 5, 10])
        came, later = _wait(process, lambda: _done(output) >= more), 0.5
    elif moment == "joining":
        more = _joined(output) + chance.choice([1, 2, 5, 10])
        came, later = _wait(process, lambda: _joined(output) >= more), 0.01
    else:
        came = _wait(process, lambda: _all_joined(output, n_frames))
        later = chance.choice([0.003, 0.03, 0.3])
    time.sleep(chance.uniform(0, later))
    return came


def _state(output: Path) -> Checkpoint | None:
    return Checkpoint.read(folder_of(output) / "checkpoint.json")


def _parts(output: Path) -> set[str]:
    """Files that are being written."""
    return {path.name for path in folder_of(output).glob(".part-*")}


def _joined(output: Path) -> int:
    """Segments that are joined to the output."""
    state = _state(output)
    return state.joined if state else 0


def _done(output: Path) -> int:
    """Segments that are done, joined or not."""
    state = _state(output)
    return len(list(folder_of(output).glob(f"*-{state.token}.json"))) if state else 0


def _all_joined(output: Path, n_frames: int) -> bool:
    state = _state(output)
    return bool(state) and (state.complete or state.joined * state.size >= n_frames)


def _orphans(group: int) -> float:
    """Wait until no process of a group is left; return the seconds that took."""
    began = time.monotonic()
    while time.monotonic() - began < LATE:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    return time.monotonic() - began


def _finished(process: subprocess.Popen, output: Path, whole: Path, found: Survival) -> None:
    """Wait for the end of a conversion, compare its files and remove them."""
    assert process.wait(LATE) == 0, "a conversion that was continued failed"
    _check_frames(output, found.frames)
    pairs = [(path.with_suffix(".pdb"), path) for path in (output, whole)]
    assert pairs[0][0].read_bytes() == pairs[1][0].read_bytes(), "the topology differs"
    if output.name.endswith(CHAINED):
        assert output.read_bytes() == whole.read_bytes(), "the trajectory differs"
    else:
        _compare(output, whole)
    assert not folder_of(output).exists()
    for path in pairs[0]:
        path.unlink(missing_ok=True)
    found.compared += 1


def _opened(output: Path) -> mda.Universe:
    names = output.with_suffix(".pdb")
    return open_universe(names, output if output != names else None)


def _check_frames(output: Path, n_frames: int) -> None:
    """Check that every frame is there once, by their times where the format holds them."""
    with quiet_guesses():
        trajectory = _opened(output).trajectory
        assert len(trajectory) == n_frames, f"{output}: {len(trajectory)} frames, not {n_frames}"
        if output.suffix not in (".pdb", ".cif"):
            times = [ts.time for ts in trajectory]
            np.testing.assert_allclose(times, 100.0 * np.arange(n_frames), rtol=1e-6)


def _compare(ours: Path, theirs: Path) -> None:
    """Check that two trajectories are equal frame for frame."""
    with quiet_guesses():
        for a, b in zip(_opened(ours).trajectory, _opened(theirs).trajectory, strict=True):
            assert (a.positions == b.positions).all(), f"{ours}: frame {a.frame}"
            assert np.array_equal(a.dimensions, b.dimensions), f"{ours}: frame {a.frame}"


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("trajectory", type=click.Path(exists=True, path_type=Path))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("-s", "--topology", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--frames", type=click.IntRange(1), default=500, show_default=True)
@click.option("--kills", type=click.IntRange(1), default=20, show_default=True)
@click.option("--format", "suffix", default="xtc", show_default=True, metavar="SUFFIX")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the moments.")
def main(
    trajectory: Path, options: tuple[str, ...], topology: Path, frames: int, kills: int,
    suffix: str, seed: int,
) -> None:  # fmt: skip
    """Kill conversions of TRAJECTORY; OPTIONS behind -- are given to ``mdbackmap convert``."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        long = repeat(topology, trajectory, frames, Path(folder))
        found = survive(long, suffix, frames, kills, options, seed)
    click.echo(json.dumps(found.moments))
    click.echo(f"segments done at the kills: {found.done}")
    click.echo(f"{suffix}: {sum(found.moments.values())} kills, {found.compared} conversions of "
               f"{frames} frames compared, all the same as the unbroken one; workers outlived the "
               f"killed process by {found.orphans:.1f} s at most; "
               f"{time.monotonic() - began:.0f} s in all")  # fmt: skip


if __name__ == "__main__":
    main()
