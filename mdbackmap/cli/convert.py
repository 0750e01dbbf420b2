"""``mdbackmap convert``: the main job."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import click

from mdbackmap.cli.common import (
    counted,
    mapping_option,
    progress,
    say_error,
    set_threads,
    slice_options,
    threads_option,
)

if TYPE_CHECKING:
    from mdbackmap.mapping.system import System


def _device(ctx: click.Context, option: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f"'{value}'; expected cpu, cuda or cuda:N")
    return value


@click.command()
@click.argument("trajectory", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="Trajectory to write.")
@click.option("-s", "--topology", type=click.Path(), help="Topology of the beads. Default: the "
              "file of its name beside the trajectory, else the one that fits.")  # fmt: skip
@mapping_option
@click.option("--model", multiple=True, metavar="NAME|PATH", help="Shipped model or weights file; "
              "of several that know a residue the last places it. Default: the shipped model that "
              "knows the beads.")  # fmt: skip
@click.option("--select", help="MDAnalysis selection of the beads to use. Default: all.")
@slice_options
@click.option("--topology-out", type=click.Path(), help="All-atom topology to write. Default: "
              "OUTPUT with the suffix .pdb, unless OUTPUT itself names its atoms.")  # fmt: skip
@click.option("--skip-unknown", is_flag=True, help="Leave out beads that no mapping knows.")
@click.option("--chunk-size", type=click.IntRange(1), default=None, help="Beads predicted "
              "together: changes speed and memory, not the answer.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, callback=_device,
              help="cpu, cuda or cuda:N.")  # fmt: skip
@threads_option
@click.option("--noise", type=click.FloatRange(0), help="Å that beads are believed to be off. "
              "Default: 0 for beads of mapped structures, 0.2 for simulated ones; which they are "
              "is found out.")  # fmt: skip
@click.option("--no-idealise", is_flag=True, help="Leave bonds and angles as predicted.")
def convert(
    trajectory, output, topology, mapping, model, select, start, stop, step, topology_out,
    skip_unknown, chunk_size, device, threads, noise, no_idealise,
) -> None:  # fmt: skip
    """Turn a coarse-grained TRAJECTORY (or a single structure) into atoms.

    Writes the trajectory and, beside it, the all-atom topology that fits it.
    """
    from mdbackmap.io.source import CGSource
    from mdbackmap.io.topology import blank_universe
    from mdbackmap.io.transformation import inspected, lay_out
    from mdbackmap.io.writing import plan_outputs, write_frames
    from mdbackmap.pipeline import CHUNK_SIZE, Backmapper, Options

    began = time.perf_counter()
    set_threads(threads)
    source = CGSource.open(trajectory, topology, select)
    frames = source.choose(start, stop, step)
    names = plan_outputs(output, topology_out, len(frames), source.files)

    system = lay_out(source, mapping, skip_unknown=skip_unknown)
    options = Options(chunk_size=chunk_size or CHUNK_SIZE, device=device,
                      noise=noise, idealise=not no_idealise)  # fmt: skip
    backmapper = inspected(Backmapper(system, model, options), source)
    done = write_frames(
        progress(frames, "frames"), source.read,
        lambda frame: backmapper(frame.positions[system.bead_source], frame.box, frame.index),
        blank_universe(system), output, names, n_frames=len(frames),
        dt=source.dt * frames.step,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    speed = done.written * system.n_atoms / seconds
    click.echo(f"{output}: {counted(done.written, 'frame')} of {system.n_atoms} atoms "
               f"({speed:,.0f} atoms/s, {seconds:.1f} s in all)")  # fmt: skip
    if names:
        click.echo(f"{names}: the matching topology")
    if topology is None and len(source.files) > 1:
        click.echo(f"  beads named by {source.files[-1]}")
    _say_what(system)
    beads = "taken for simulated" if backmapper.noise else "taken for mapped from atoms"
    click.echo(f"  model: {' + '.join(backmapper.models)}; beads {beads} (noise "
               f"{backmapper.noise:g} Å)")  # fmt: skip
    done.report(say_error)
    if done.failed:
        sys.exit(1)


def _say_what(system: System) -> None:
    """Say what was backmapped and what was left out."""
    kinds = Counter(system.residue_kinds.tolist())
    parts = [
        counted(n, f"{kind} residue" if kind == "protein" else kind) for kind, n in kinds.items()
    ]
    click.echo(f"  backmapped: {', '.join(parts)} from {system.n_beads} beads; "
               "heavy atoms, no hydrogens")  # fmt: skip
    for what, count in system.left_out.items():
        click.echo(f"  left out: {count} x {what}")
