"""``mdbackmap map``: the forward mapping, atoms to beads."""

from __future__ import annotations

from pathlib import Path

import click

from mdbackmap.cli.common import mapping_option, progress, slice_options


@click.command()
@click.argument("trajectory", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="CG trajectory to write.")
@click.option("-s", "--topology", type=click.Path(), help="Atomistic topology. Default: looked "
              "for beside the trajectory.")  # fmt: skip
@mapping_option
@click.option("--select", help="MDAnalysis selection of the atoms to use. Default: all.")
@slice_options
@click.option("--topology-out", type=click.Path(), help="CG topology to write. Default: OUTPUT "
              "with the suffix .pdb.")  # fmt: skip
def map(  # noqa: A001 (the command's name)
    trajectory, output, topology, mapping, select, start, stop, step, topology_out
) -> None:
    """Turn an atomistic TRAJECTORY into beads, by the rule of the mapping.

    Residues with missing atoms and residues no mapping knows are left out and counted.
    """
    from mdbackmap.errors import OutputFileError
    from mdbackmap.io.forward import ForwardMapper
    from mdbackmap.io.source import CGSource
    from mdbackmap.io.topology import bead_universe
    from mdbackmap.io.writing import SafeWriter, check_output, write_topology
    from mdbackmap.mapping.library import Library

    source = CGSource.open(trajectory, topology, select)
    mapper = ForwardMapper(source, Library.load(mapping))
    frames = range(*slice(start, stop, step).indices(len(source.universe.trajectory)))
    output = Path(output)
    names = Path(topology_out) if topology_out else output.with_suffix(".pdb")
    if output.resolve() == Path(trajectory).resolve():
        raise OutputFileError(f"{output}: is an input file; choose another name")
    check_output(output, 0, len(frames))
    check_output(names, 0, 1)
    universe = bead_universe(mapper.system.beads)
    first = None
    with SafeWriter(output, universe, len(frames)) as writer:
        for frame in progress(source.frames(start, stop, step), "frames", len(frames)):
            beads = mapper(frame)
            writer.write(frame, beads)
            first = first or (frame, beads)
    if names.resolve() != output.resolve():
        write_topology(names, universe, *first)
    click.echo(f"{output}: {writer.written} frames of {mapper.system.n_beads} beads")
    for what, count in mapper.system.left_out.items():
        click.echo(f"  left out: {count} x {what}")
