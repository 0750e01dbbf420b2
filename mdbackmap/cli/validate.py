"""``mdbackmap validate``: what is wrong with an atomistic trajectory, counted."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mdbackmap.cli.common import mapping_option, progress, slice_options
from mdbackmap.warm_start import quick_imports


@click.command()
@click.argument("trajectory", type=click.Path())
@click.option("-s", "--topology", type=click.Path(), help="Its topology. Default: looked for "
              "beside it.")  # fmt: skip
@click.option("--reference", type=click.Path(), help="True atoms: a structure, or a trajectory "
              "with as many frames.")  # fmt: skip
@click.option("--reference-topology", type=click.Path(), help="Topology of the reference.")
@click.option("--cg", type=click.Path(), help="The beads it was made from, frame by frame.")
@click.option("--cg-topology", type=click.Path(), help="Topology of the beads.")
@mapping_option
@click.option("--select", help="MDAnalysis selection of the atoms to check. Default: all.")
@slice_options
@click.option("--json", "json_out", type=click.Path(dir_okay=False), help="Write all counts here.")
@click.option("--html", "html_out", type=click.Path(dir_okay=False), help="Write a page with "
              "plots here.")  # fmt: skip
def validate(
    trajectory, topology, reference, reference_topology, cg, cg_topology, mapping, select, start,
    stop, step, json_out, html_out,
) -> None:  # fmt: skip
    """Count what is wrong with an atomistic TRAJECTORY.

    Bonds and angles out of range, stereocentres, peptide bonds, double bonds, planes, clashes,
    pierced rings, beads that moved, RMSD to a reference. It counts; it does not judge.
    """
    with quick_imports():
        from mdbackmap.io.compare import BeadsOf, ReferenceOf
        from mdbackmap.io.source import CGSource
        from mdbackmap.io.writing import check_place, write_text
        from mdbackmap.mapping.library import Library
        from mdbackmap.mapping.system import from_atoms
        from mdbackmap.validation import Checker, Summary, rmsd

    source = CGSource.open(trajectory, topology, select)
    chosen = source.choose(start, stop, step)
    inputs = [*source.files, *(Path(p) for p in (reference, cg) if p and Path(p).is_file())]
    for path in (json_out, html_out):
        if path:
            check_place(path, inputs)
    library = Library.load(mapping)
    system = from_atoms(source.particles, library, source.usable_frame())
    compare = system, source, library
    truth = ReferenceOf(*compare, reference, reference_topology) if reference else None
    beads = BeadsOf(*compare, cg, cg_topology) if cg else None
    checker, summary = Checker(system), Summary()
    for k in progress(chosen, "frames"):
        frame = source.read(k)
        atoms = system.take(frame.positions)
        given = beads(frame) if beads else None
        report = checker(atoms, frame.box, given)
        compared = rmsd(system, atoms, truth(frame), frame.box) if truth else None
        summary.add(report, label=f"frame {k}", rmsd=compared)
    click.echo(summary.to_text())
    for what, count in system.left_out.items():
        click.echo(f"  not checked: {count} x {what}")
    if json_out:
        write_text(json_out, json.dumps(summary.to_json(), indent=1))
    if html_out:
        summary.to_html(html_out)
