"""``mdbackmap train``: weights from prepared data, or of one molecule."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from mdbackmap.cli.common import set_threads, threads_option


@click.command()
@click.argument("config", type=click.Path(dir_okay=False), required=False)
@click.option("--molecule", type=click.Path(exists=True, dir_okay=False), metavar="MAPPING",
              help="Train a small model of this one molecule instead.")  # fmt: skip
@click.option("--conformers", multiple=True, type=click.Path(exists=True, dir_okay=False),
              metavar="FILE", help="With --molecule: a structure of it, and a trajectory if there "
              "is one. Default: conformers and short dynamics, made with RDKit.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="With --molecule: weights "
              "to write. Default: MAPPING with the suffix .safetensors.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=5.0,
              show_default=True, help="With --molecule: length of the training.")  # fmt: skip
@threads_option
@click.pass_context
def train(
    ctx: click.Context, config: str | None, molecule: str | None, conformers: tuple[str, ...],
    output: str | None, minutes: float, threads: int | None,
) -> None:  # fmt: skip
    """Train a model as CONFIG (YAML) says; a stopped run goes on where it was.

    Every option of CONFIG, its default and its meaning: docs/training.md.
    """
    if (config is None) == (molecule is None):
        raise click.UsageError("expected either CONFIG or --molecule MAPPING")
    if molecule:
        _train_molecule(Path(molecule), list(map(Path, conformers)), output, minutes, threads)
        return
    options = ("conformers", "output", "minutes", "threads")
    given = [f"--{o}" for o in options if ctx.get_parameter_source(o) != ParameterSource.DEFAULT]
    if given:
        raise click.UsageError(f"{', '.join(given)}: of --molecule only; CONFIG says it itself")
    from mdbackmap.training.config import load
    from mdbackmap.training.trainer import Trainer

    options = load(config)
    metrics = Trainer(options, click.echo).run()
    click.echo(f"{options.output / 'best.safetensors'}: best checkpoint; log.csv and "
               "learning.png beside it")  # fmt: skip
    for name, value in metrics.items():
        click.echo(f"  {name}: {value:.4f}")


def _train_molecule(
    mapping: Path, conformers: list[Path], output: str | None, minutes: float, threads: int | None
) -> None:
    import numpy as np

    from mdbackmap.errors import ConfigError
    from mdbackmap.io.prepare import systems
    from mdbackmap.mapping.library import Library, load_templates
    from mdbackmap.training import molecule as molecules

    # So small a network gains nothing from a second thread.
    set_threads(threads or 1)
    templates = load_templates(mapping)
    if len(templates) != 1:
        raise ConfigError(f"{mapping}: {len(templates)} residues; expected one molecule")
    source = {}
    if conformers:
        structure, trajectory = conformers[0], conformers[1] if len(conformers) > 1 else None
        library = Library(templates, str(mapping))
        frames = [positions for _, positions, *_ in systems(structure, trajectory, library)]
        learnt, held_out = molecules.split(np.array(frames))
        source = {"source": ", ".join(path.name for path in conformers)}
    else:
        click.echo(f"{mapping}: making conformers of {templates[0].residue}")
        learnt, held_out = molecules.frames_of(templates[0])
    weights = Path(output) if output else mapping.with_suffix(".safetensors")
    found = molecules.train_molecule(
        templates[0], learnt, held_out, weights, minutes, click.echo, **source
    )
    click.echo(f"{found.weights}: learnt from {found.frames} frames; on {found.held_out} held out, "
               "mean RMSD of all heavy atoms:")  # fmt: skip
    for level, value in found.error.items():
        click.echo(f"  noise of {level.partition('@')[2]} Å on the beads: {value:.2f} Å")
    click.echo(f"  conformers fitted to the beads without training: {found.fitted:.2f} Å")
    click.echo(f"Use it: mdbackmap convert cg.xtc -o aa.xtc --mapping {mapping} "
               f"--model martini3 --model {found.weights}")  # fmt: skip
