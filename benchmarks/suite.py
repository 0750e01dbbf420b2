"""All speed benchmarks in one run: numbers as JSON, a page with plots, what became slower.

Every measurement is a process of its own (`benchmarks.stages`), so that its peak memory is its
own. The quick selection takes about three minutes on two idle cores; the full one goes up to a
million beads.

    python -m benchmarks.suite --data data/cg --name after-the-change
    python -m benchmarks.suite --compare benchmarks/results/2026-11-21-first.json
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

RESULTS = Path(__file__).parent / "results"
UBIQUITIN = Path(__file__).parents[1] / "tutorials" / "data" / "ubiquitin.xtc"
CASES = {"ubiquitin_en": 64, "a2a_caff": 16, "big_bilayer": 2}
"""Frames of each case."""
SLOWER = 1.25
"""Times the CPU time of before, from which on a measurement is called slower."""


def cases(data: Path | None, *, full: bool) -> dict[str, tuple[Path, Path | None, int]]:
    """Return the trajectories there are, their topologies, and the frames to convert."""
    found: dict[str, tuple[Path, Path | None, int]] = {"ubiquitin": (UBIQUITIN, None, 62)}
    for name, n_frames in CASES.items() if data else ():
        folder = data / name
        names = [folder / file for file in ("dry.tpr", "topol.tpr") if (folder / file).exists()]
        if names and (full or name != "big_bilayer"):
            found[name] = folder / "traj.xtc", names[0], n_frames
    return found


def tiled(data: Path, folder: Path, times: int) -> Path:
    """Write so many by so many copies of a membrane with a protein as .gro."""
    unit, out = data / "million_beads", folder / f"tiled{times}.gro"
    command = [sys.executable, unit / "tile.py", unit / "unit.gro.xz", unit / "unit.top",
               times, times, 1, out, out.with_suffix(".top")]  # fmt: skip
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return out


def measured(trajectory: Path, topology: Path | None, **options) -> dict:
    """Run `benchmarks.stages` in a process of its own; options without a value are flags."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "row.json"
        words = [trajectory, *(["-s", topology] if topology else []), "--json", output]
        for name, value in options.items():
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
        subprocess.run(
            [sys.executable, "-m", "benchmarks.stages", *map(str, words)], check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return json.loads(output.read_text())


def whole_run(trajectory: Path, topology: Path | None, *options: str) -> dict:
    """Time ``mdbackmap convert`` as users run it, from nothing to files."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "aa.xtc"
        words = [trajectory, *(["-s", topology] if topology else []), "-o", output, *options]
        command = [sys.executable, "-m", "mdbackmap", "convert", *map(str, words)]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise click.ClickException(f"convert failed with exit code {process.returncode}")
        unit = 1 if sys.platform == "darwin" else 1024
        return {"seconds": time.perf_counter() - began, "peak_mb": usage.ru_maxrss * unit / 1e6,
                "cpu_seconds": usage.ru_utime + usage.ru_stime}  # fmt: skip


def run(data: Path | None, *, full: bool) -> dict:
    """Take all measurements."""
    rows: dict[str, dict] = {}
    threads = min(2, os.cpu_count() or 1)

    def add(name: str, *given, **options) -> None:
        rows[name] = measured(*given, **options)
        click.echo(f"{name}: {rows[name]['cpu_atoms_per_second']:,.0f} atoms per second of CPU, "
                   f"{rows[name]['atoms_per_second']:,.0f} on the clock", err=True)  # fmt: skip

    found = cases(data, full=full)
    for name, (trajectory, topology, n_frames) in found.items():
        add(name, trajectory, topology, frames=n_frames)
        add(f"{name}, {threads} threads", trajectory, topology, frames=n_frames, threads=threads)
        add(f"{name}, heavy atoms", trajectory, topology, frames=n_frames, no_hydrogens=True)
    if "ubiquitin_en" in found:
        add("ubiquitin_en, with its water", *found["ubiquitin_en"][:2], frames=8, solvent="keep")
    last = list(found)[-1] if not full else "a2a_caff" if "a2a_caff" in found else "ubiquitin"
    trajectory, topology, n_frames = found[last]
    for size in (64, 128, 512, 1024):
        add(f"{last}, chunks of {size}", trajectory, topology, frames=n_frames, chunk_size=size)
    for count in (8, 32, 128, *((512,) if full else ())):
        add(f"ubiquitin, {count} frames", UBIQUITIN, None, frames=count)
    if data and (data / "million_beads").exists():
        with tempfile.TemporaryDirectory() as folder:
            for times in (1, 2, 4, *((8, 12) if full else ())):
                add(f"tiled {times} x {times}", tiled(data, Path(folder), times), None, frames=1)
    runs = {"start-up and one frame": whole_run(UBIQUITIN, None, "--stop", "1"),
            "ubiquitin, 31 frames": whole_run(UBIQUITIN, None)}  # fmt: skip
    if full and "ubiquitin_en" in found:
        for jobs in ("1", "2"):
            runs[f"ubiquitin_en, --jobs {jobs}"] = whole_run(
                *found["ubiquitin_en"][:2], "--jobs", jobs, "--threads", "1"
            )
    return {"rows": rows, "runs": runs, "peers": peers() if full else {}}


def peers() -> dict:
    """Time other programs that can be imported in turns with this one."""
    if not importlib.util.find_spec("cgback"):
        return {}
    structure = Path(__file__).parents[1] / "tests" / "data" / "1l2y.pdb"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "peer.json"
        words = [structure, "--peer", "--peer-batch", 16, "--threads", 1, "--json", output]
        command = [sys.executable, "-m", "benchmarks.speed", *map(str, words)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(output.read_text())


def exponent(rows: dict[str, dict]) -> float | None:
    """With which power of the number of beads the CPU time of one frame grows."""
    tiles = [row for name, row in rows.items() if name.startswith("tiled")]
    tiles = [row for row in tiles if row["beads"] >= 10_000]
    if len(tiles) < 2:
        return None
    beads, seconds = (np.log([row[key] for row in tiles]) for key in ("beads", "cpu_seconds"))
    return float(np.polyfit(beads, seconds, 1)[0])


def page(results: dict, picture: str) -> str:
    """Return the results as Markdown tables."""
    lines = [
        f"Measured {results['date']} on {results['machine']}. Rates are atoms per second; *CPU* "
        "is of the time that processors spent, which other programs disturb less.", "",
        "| | beads | atoms | frames | threads | atoms/s | atoms/s CPU | frames/s | times the floor "
        "| MB |", "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in results["rows"].items():
        lines.append(
            f"| {name} | {row['beads']} | {row['atoms']} | {row['frames']} | {row['threads']} | "
            f"{row['atoms_per_second']:,.0f} | {row['cpu_atoms_per_second']:,.0f} | "
            f"{row['frames_per_second']:.3g} | {row['times_floor']:.1f} | {row['peak_mb']:.0f} |"
        )
    staged = {k: r for k, r in results["rows"].items() if r["stages"] and "," not in k}
    lines += ["", "CPU time of one frame by stage, ms, one thread:", "",
              "| | " + " | ".join(staged) + " |", "|---" * (len(staged) + 1) + "|"]  # fmt: skip
    for stage in next(iter(staged.values()))["stages"]:
        values = [1e3 * r["stages"][stage] / r["frames"] for r in staged.values()]
        lines.append(f"| {stage} | " + " | ".join(f"{v:,.2f}" for v in values) + " |")
    lines += ["", "Whole runs of `mdbackmap convert`:", "", "| | seconds | CPU s | MB |",
              "|---|---|---|---|"]  # fmt: skip
    for name, row in results["runs"].items():
        lines.append(f"| {name} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | "
                     f"{row['peak_mb']:.0f} |")  # fmt: skip
    for ours, ratio in results["peers"].get("ratios", {}).items():
        lines += ["", f"{ours}: {ratio:.0f} times the heavy atoms per second of cgback "
                  f"{results['peers']['peer_version']} from carbon alphas."]  # fmt: skip
    if results["exponent"]:
        lines += ["", "From 10,000 beads on the time of a frame grows with the number of beads to "
                  f"the power of {results['exponent']:.2f}."]  # fmt: skip
    return "\n".join([*lines, "", f"![Speed]({picture})", ""])


def plot(results: dict, path: Path) -> None:
    """Draw rates against the number of beads, frames and beads in a chunk, and the stages."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = results["rows"]
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axis, key, label, chosen in (
        (axes[0, 0], "beads", "beads", "tiled"), (axes[0, 1], "frames", "frames", " frames"),
        (axes[1, 0], "chunk_size", "beads in a chunk", "chunks of"),
    ):  # fmt: skip
        points = [row for name, row in rows.items() if chosen in name]
        axis.set(xlabel=label, ylabel="atoms per second of CPU", xscale="log")
        axis.plot([row[key] for row in points], [row["cpu_atoms_per_second"] for row in points],
                  "o-")  # fmt: skip
        axis.set_ylim(bottom=0)
    staged = {k: r for k, r in rows.items() if r["stages"] and "," not in k}
    start = np.zeros(len(staged))
    for stage in next(iter(staged.values()))["stages"]:
        width = np.array([r["stages"][stage] / r["cpu_seconds"] for r in staged.values()])
        axes[1, 1].barh(list(staged), width, left=start, label=stage)
        start += width
    axes[1, 1].set(xlabel="share of the CPU time")
    axes[1, 1].legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def slower(now: dict, before: dict) -> list[str]:
    """Say what takes longer than before, and by how much."""
    return [
        f"{name}: {ratio:.2f} times the CPU time of before"
        for name, row in now["rows"].items()
        if (old := before["rows"].get(name))
        and (ratio := old["cpu_atoms_per_second"] / row["cpu_atoms_per_second"]) > SLOWER
    ]


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder of the larger cases, each with traj.xtc and topol.tpr; without it only "
              "what ships is converted.")  # fmt: skip
@click.option("--full", is_flag=True, help="All cases, up to a million beads; and peers.")
@click.option("--name", default="run", show_default=True, help="Of the results.")
@click.option("--compare", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Earlier results; exit code 1 where something became slower.")  # fmt: skip
@click.option("--page", "page_path", type=click.Path(path_type=Path),
              help="Also write a Markdown page there, and its picture beside it.")  # fmt: skip
def main(data: Path | None, full: bool, name: str, compare: Path | None,
         page_path: Path | None) -> None:  # fmt: skip
    """Take all speed measurements and keep them."""
    results = {"date": datetime.date.today().isoformat(),
               "machine": f"{os.cpu_count()} cores, {platform.machine()}",
               **run(data, full=full)}  # fmt: skip
    results["exponent"] = exponent(results["rows"])
    RESULTS.mkdir(exist_ok=True)
    place = RESULTS / f"{results['date']}-{name}.json"
    place.write_text(json.dumps(results, indent=1) + "\n")
    click.echo(f"{place}: {len(results['rows'])} measurements")
    if page_path:
        picture = page_path.with_suffix(".png")
        plot(results, picture)
        page_path.write_text(page(results, picture.name))
    if compare:
        worse = slower(results, json.loads(compare.read_text()))
        click.echo("\n".join(worse) or "nothing became slower")
        sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
