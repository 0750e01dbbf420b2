"""``mdbackmap convert``: the main job."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import click

from mdbackmap import warm_start
from mdbackmap.cli.common import (
    bytes_of,
    counted,
    mapping_option,
    progress_bar,
    say_error,
    set_threads,
    slice_options,
    threads_option,
    wrapped,
)

if TYPE_CHECKING:
    from mdbackmap.io.writing import Outcome
    from mdbackmap.mapping.system import System
    from mdbackmap.pipeline import Backmapper

COMPILING = "compiling for this processor, which takes up to a minute, once"


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
              "OUTPUT with the suffix .pdb (.cif where names need it), unless OUTPUT itself names "
              "its atoms.")  # fmt: skip
@click.option("--skip-unknown", is_flag=True, help="Leave out beads that no mapping knows.")
@click.option("--chunk-size", type=click.IntRange(1), default=None, help="Beads predicted "
              "together: changes speed and memory, not the answer.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, callback=_device,
              help="cpu, cuda or cuda:N.")  # fmt: skip
@threads_option
@click.option("--noise", type=click.FloatRange(0), help="Å that beads are believed to be off. "
              "Default: 0 for beads of mapped structures, 0.2 for simulated ones; which they are "
              "is found out.")  # fmt: skip
@click.option("--no-hydrogens", is_flag=True, help="Write heavy atoms only.")
@click.option(
    "--solvent",
    type=click.Choice(["keep", "drop"]),
    default="keep",
    show_default=True,
    help="Water and ions of the input: given back as atoms, at the end, or left out.",
)
@click.option("--ph", type=float, default=7.4, show_default=True, help="Decides on protonation "
              "states, once for all frames.")  # fmt: skip
@click.option("--protonation", type=click.Path(), help="YAML file of states chosen for single "
              "residues: 'A:HIS 15: HIP'.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the "
              "draw of what beads leave open: lipid tails, how water is turned.")  # fmt: skip
@click.option("--no-draw", is_flag=True, help="Leave lipid tails as predicted: the mean of what "
              "fits, which is closer to the truth but no chain.")  # fmt: skip
@click.option("--no-idealise", is_flag=True, help="Leave bonds and angles as predicted.")
@click.option("--force-field", type=click.Choice(["charmm36", "amber14", "none"]), help="Names of "
              "atoms and residues, and what --relax minimises in. Default: names as mappings have "
              "them; charmm36 to relax in.")  # fmt: skip
@click.option("--force-field-file", multiple=True, type=click.Path(), help="Force field in "
              "OpenMM's format for what that one lacks, such as ligands; repeatable.")  # fmt: skip
@click.option("--pdb-names", is_flag=True, help="Lipids and small molecules called as in the PDB's "
              "Chemical Component Dictionary, where it has them.")  # fmt: skip
@click.option("--relax", is_flag=True, help="Minimise every frame, restrained; OUTPUT with the "
              "ending _relax.csv says how it went.")  # fmt: skip
@click.option("--max-force", type=click.FloatRange(0, min_open=True), default=500.0,
              show_default=True, help="kJ/mol/nm that no force has after --relax.")  # fmt: skip
@click.option("--write-topology", is_flag=True, help="Write files to simulate with: OpenMM's "
              "system.xml, and .top and .gro for GROMACS; of the force field.")  # fmt: skip
@click.option("--keep", type=click.Path(), help="Known atomistic structure, laid onto its beads "
              "instead of predicted.")  # fmt: skip
@click.option("--max-memory", metavar="SIZE", callback=bytes_of, help="Memory that all processes "
              "here, or one worker of a scheduler, may take, such as 4G: chooses --chunk-size, and "
              "refuses what cannot fit.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes to "
              "share the work, of one thread each.")  # fmt: skip
@click.option("--scheduler", metavar="ADDRESS|FILE", help="Dask scheduler whose workers do the "
              "work; they must see the files.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with what an earlier run left unfinished, if "
              "there is anything.")  # fmt: skip
@click.option("--restart", is_flag=True, help="Forget what an earlier run left unfinished.")
def convert(
    trajectory, output, topology, mapping, model, select, start, stop, step, topology_out,
    skip_unknown, chunk_size, device, threads, noise, no_hydrogens, solvent, ph, protonation, seed,
    no_draw, no_idealise, force_field, force_field_file, pdb_names, relax, max_force,
    write_topology, keep, max_memory, jobs, scheduler, resume, restart,
) -> None:  # fmt: skip
    """Turn a coarse-grained TRAJECTORY (or a single structure) into atoms.

    Writes the trajectory and, beside it, the all-atom topology that fits it.
    """
    if scheduler and jobs > 1:
        raise click.UsageError("--jobs starts workers here, --scheduler has its own: give one")
    if pdb_names and force_field not in (None, "none"):
        raise click.UsageError("--force-field has names of its own, as --pdb-names: give one")
    if write_topology and force_field in (None, "none"):
        raise click.UsageError("--write-topology writes a force field: give --force-field")
    if chunk_size and max_memory:
        raise click.UsageError("--max-memory chooses the --chunk-size: give one")
    if resume and restart:
        raise click.UsageError("--resume keeps what --restart forgets: give one")
    began = time.perf_counter()
    if jobs > 1:
        warm_start.begin()

    with warm_start.quick_imports():
        from mdbackmap.compiled import tell_when_compiling
        from mdbackmap.io.conversion import backmap
        from mdbackmap.pipeline import CHUNK_SIZE

    set_threads(threads)
    if sys.stderr.isatty():
        tell_when_compiling(lambda: say_error(COMPILING))
    with progress_bar("frames") as tick:
        made = backmap(
            trajectory, output, model, mapping, topology=topology, select=select,
            start=start, stop=stop, step=step, topology_out=topology_out,
            skip_unknown=skip_unknown, jobs=jobs, client=scheduler, resume=resume,
            restart=restart, tick=tick, max_memory=max_memory,
            chunk_size=chunk_size or CHUNK_SIZE, device=device, noise=noise,
            idealise=not no_idealise, hydrogens=not no_hydrogens, solvent=solvent, ph=ph,
            protonation=protonation, seed=seed, draw=not no_draw, force_field=force_field,
            force_field_files=force_field_file, pdb_names=pdb_names, relax=relax,
            max_force=max_force, keep=keep, write_topology=write_topology,
        )  # fmt: skip
    seconds = time.perf_counter() - began
    done, names, backmapper = made.outcome, made.topology, made.backmapper
    n_atoms = made.n_atoms
    speed = done.written * n_atoms / seconds
    click.echo(f"{output}: {counted(done.written, 'frame')} of {n_atoms} atoms "
               f"({speed:,.0f} atoms/s, {seconds:.1f} s in all)")  # fmt: skip
    if names:
        click.echo(f"{names}: the matching topology")
        if n_atoms > 99_999 and names.suffix.lower() == ".pdb":
            click.echo("  without bonds, for PDB files number no more than 99,999 atoms; mmCIF has "
                       "them: --topology-out NAME.cif")  # fmt: skip
    for path in made.written:
        click.echo(f"{path}: {made.written[path]}")
    if topology is None and len(made.source.files) > 1:
        click.echo(f"  beads named by {made.source.files[-1]}")
    _say_what(made.system, backmapper)
    beads = "taken for simulated" if backmapper.noise else "taken for mapped from atoms"
    click.echo(f"  model: {' + '.join(backmapper.models)}; beads {beads} (noise "
               f"{backmapper.noise:g} Å)")  # fmt: skip
    if relax:
        _say_relaxed(done)
    done.report(say_error)
    if done.failed:
        sys.exit(1)


def _say_relaxed(done: Outcome) -> None:
    """Say how frames relaxed."""
    notes = done.notes
    well = [note for note in notes if note["relaxed"]]
    named = ("force_before_kJ_nm", "force_after_kJ_nm", "shift_A", "seconds")
    mean = {key: sum(note[key] for note in notes) / max(len(notes), 1) for key in named}
    click.echo(f"  relaxed: {len(well)} of {counted(len(notes), 'frame')}; largest force "
               f"{mean['force_before_kJ_nm']:.0f} before, {mean['force_after_kJ_nm']:.0f} "
               f"kJ/mol/nm after; heavy atoms moved {mean['shift_A']:.2f} Å; "
               f"{mean['seconds']:.1f} s per frame (means)")  # fmt: skip
    if len(well) < len(notes):
        bad = ", ".join(str(note["frame"]) for note in notes if not note["relaxed"])
        say_error(f"  not relaxed, but written: frames {bad[:200]}")


def said(counts: dict[str, int]) -> str:
    """Return how many waters and ions there are, in words.

    >>> said({"water": 7872, "Na+": 1})
    '7,872 waters, 1 Na+'
    """
    words = (f"{n:,} {'waters' if kind == 'water' and n != 1 else kind}"
             for kind, n in counts.items())  # fmt: skip
    return ", ".join(words)


def _say_what(system: System, backmapper: Backmapper) -> None:
    """Say what was backmapped and what was left out."""
    kinds = Counter(system.residue_kinds.tolist())
    parts = [
        counted(n, f"{kind} residue" if kind == "protein" else kind) for kind, n in kinds.items()
    ]
    states = backmapper.protonation
    click.echo(f"  backmapped: {', '.join(parts)} from {system.n_beads} beads; "
               f"{'all atoms' if states else 'heavy atoms, no hydrogens'}")  # fmt: skip
    if states:
        click.echo(wrapped(states.summary(system)))
    if system.solvent:
        click.echo(f"  solvent: {said(system.solvent.counts())} from {system.solvent.n_beads:,} "
                   "beads")  # fmt: skip
    for what, count in system.left_out.items():
        click.echo(f"  left out: {count} x {what}")
