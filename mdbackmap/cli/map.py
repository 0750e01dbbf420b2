"""``mdbackmap map``: the forward mapping, atoms to beads."""

from __future__ import annotations

import sys

import click

from mdbackmap.cli.common import counted, mapping_option, progress_bar, say_error, slice_options
from mdbackmap.warm_start import quick_imports


@click.command()
@click.argument("trajectory", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="CG trajectory to write.")
@click.option("-s", "--topology", type=click.Path(), help="Atomistic topology. Default: looked "
              "for beside the trajectory.")  # fmt: skip
@mapping_option
@click.option("--select", help="MDAnalysis selection of the atoms to use. Default: all.")
@slice_options
@click.option("--topology-out", type=click.Path(), help="CG topology to write. Default: OUTPUT "
              "with the suffix .pdb, unless OUTPUT itself names its beads.")  # fmt: skip
def map(trajectory, output, topology, mapping, select, start, stop, step, topology_out) -> None:
    """Turn an atomistic TRAJECTORY into beads, by the rule of the mapping.

    Residues with missing atoms and residues no mapping knows are left out and counted.
    """
    with quick_imports():
        from mdbackmap.io.forward import ForwardMapper
        from mdbackmap.io.segments import write_frames
        from mdbackmap.io.source import CGSource
        from mdbackmap.io.topology import bead_universe
        from mdbackmap.io.writing import plan_outputs
        from mdbackmap.mapping.library import Library

    source = CGSource.open(trajectory, topology, select)
    frames = source.choose(start, stop, step)
    names = plan_outputs(output, topology_out, len(frames), source.files)

    mapper = ForwardMapper(source, Library.load(mapping))
    with progress_bar("frames") as tick:
        done = write_frames(
            frames, source.read, mapper, bead_universe(mapper.system.beads), output, names,
            dt=source.dt * frames.step, tick=tick,
        )  # fmt: skip
    click.echo(f"{output}: {counted(done.written, 'frame')} of {mapper.system.n_beads} beads")
    if names:
        click.echo(f"{names}: the matching topology")
    if topology is None and len(source.files) > 1:
        click.echo(f"  atoms named by {source.files[-1]}")
    for what, count in mapper.system.left_out.items():
        click.echo(f"  left out: {count} x {what}")
    done.report(say_error)
    if done.failed:
        sys.exit(1)
