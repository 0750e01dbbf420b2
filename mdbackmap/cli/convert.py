"""``mdbackmap convert``: the main job."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from mdbackmap.cli.common import (
    mapping_option,
    progress,
    set_threads,
    slice_options,
    threads_option,
)


@click.command()
@click.argument("trajectory", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="Trajectory to write.")
@click.option("-s", "--topology", type=click.Path(), help="Topology of the beads. Default: the "
              "file beside the trajectory with its name, else the one there that fits.")  # fmt: skip
@mapping_option
@click.option("--model", default="martini3", show_default=True, metavar="NAME|PATH",
              help="Shipped model or weights file.")  # fmt: skip
@click.option("--select", help="MDAnalysis selection of the beads to use. Default: all.")
@slice_options
@click.option("--topology-out", type=click.Path(), help="All-atom topology to write. Default: "
              "OUTPUT with the suffix .pdb.")  # fmt: skip
@click.option("--skip-unknown", is_flag=True, help="Leave out beads that no mapping knows.")
@click.option("--chunk-size", type=click.IntRange(1), default=None, help="Beads predicted "
              "together: more is faster and needs more memory, the answer is the same.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@threads_option
@click.option("--no-calibration", is_flag=True, help="Take the beads as they are, without moving "
              "them to the distances of mapped structures.")  # fmt: skip
@click.option("--no-idealise", is_flag=True, help="Leave bonds and angles as predicted.")
def convert(
    trajectory, output, topology, mapping, model, select, start, stop, step, topology_out,
    skip_unknown, chunk_size, device, threads, no_calibration, no_idealise,
) -> None:  # fmt: skip
    """Turn a coarse-grained TRAJECTORY (or a single structure) into atoms.

    Writes the trajectory and, beside it, the all-atom topology that fits it.
    """
    from mdbackmap.errors import FrameError, InputFileError, OutputFileError
    from mdbackmap.io.source import CGSource
    from mdbackmap.io.topology import atom_topology
    from mdbackmap.io.transformation import calibrated, lay_out
    from mdbackmap.io.writing import SafeWriter, check_output, write_topology
    from mdbackmap.pipeline import CHUNK_SIZE, Backmapper, Options

    began = time.perf_counter()
    set_threads(threads)
    source = CGSource.open(trajectory, topology, select)
    frames = range(*slice(start, stop, step).indices(len(source.universe.trajectory)))
    if not frames:
        raise InputFileError(
            f"{trajectory}: --start/--stop/--step leave none of its "
            f"{len(source.universe.trajectory)} frames"
        )
    output = Path(output)
    names = Path(topology_out) if topology_out else output.with_suffix(".pdb")
    inputs = {Path(p).resolve() for p in (trajectory, topology) if p}
    for path in {output, names}:
        if path.resolve() in inputs:
            raise OutputFileError(f"{path}: is an input file; choose another name")
    check_output(output, 0, len(frames))
    check_output(names, 0, 1)

    system = lay_out(source, mapping, skip_unknown=skip_unknown)
    options = Options(chunk_size=chunk_size or CHUNK_SIZE, device=device,
                      calibrate=not no_calibration, idealise=not no_idealise)  # fmt: skip
    backmapper = calibrated(Backmapper(system, model, options), source)
    universe = _empty(atom_topology(system))
    place = system.bead_source
    if source.index is not None:
        import numpy as np

        place = np.searchsorted(source.index, place)

    failed: list[str] = []
    first = None
    with SafeWriter(output, universe, len(frames)) as writer:
        for frame in progress(source.frames(start, stop, step), "frames", len(frames)):
            try:
                positions = backmapper(frame.positions[place], frame.box, frame.index)
            except FrameError as error:
                failed.append(str(error))
                continue
            writer.write(frame, positions)
            if first is None:
                first = frame, positions
        if first is None:
            raise FrameError("no frame could be backmapped:\n" + "\n".join(failed[:5]))
    if names.resolve() != output.resolve():
        write_topology(names, universe, *first)
    _summary(writer.written, system, time.perf_counter() - began, output, names, failed,
             backmapper)  # fmt: skip
    if failed:
        sys.exit(1)


def _empty(topology):
    """A Universe whose coordinates are set frame by frame."""
    import MDAnalysis as mda
    import numpy as np

    universe = mda.Universe(topology, to_guess=())
    universe.load_new(np.zeros((1, topology.n_atoms, 3), dtype=np.float32))
    return universe


def _summary(n_frames, system, seconds, output, names, failed, backmapper) -> None:
    from collections import Counter

    click.echo(f"{output}: {n_frames} frames of {system.n_atoms} atoms "
               f"({n_frames * system.n_atoms / seconds:,.0f} atoms/s, {seconds:.1f} s in all)")  # fmt: skip
    if names != output:
        click.echo(f"{names}: the matching topology")
    kinds = Counter(system.residue_kinds.tolist())
    click.echo("  backmapped: " + ", ".join(f"{n} {kind} residues" if kind == "protein"
               else f"{n} {kind}s" for kind, n in kinds.items())
               + f" from {system.n_beads} beads; heavy atoms, no hydrogens")  # fmt: skip
    for what, count in system.left_out.items():
        click.echo(f"  left out: {count} x {what}")
    for new, old in backmapper.vocabulary.borrowed.items():
        click.echo(f"  bead {new} is new to the model; it borrowed the weights of {old}")
    for line in failed[:10]:
        click.echo(f"  FAILED, not written: {line}", err=True)
    if len(failed) > 10:
        click.echo(f"  ... and {len(failed) - 10} more failed frames", err=True)
