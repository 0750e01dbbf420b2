"""``mdbackmap train``: weights from prepared data."""

from __future__ import annotations

import click


@click.command()
@click.argument("config", type=click.Path(dir_okay=False))
def train(config: str) -> None:
    """Train a model as CONFIG (YAML) says; a stopped run goes on where it was.

    Every option, its default and its meaning: docs/training.md.
    """
    from mdbackmap.training.config import load
    from mdbackmap.training.trainer import Trainer

    options = load(config)
    metrics = Trainer(options, click.echo).run()
    click.echo(f"{options.output / 'best.safetensors'}: best checkpoint; log.csv and "
               "learning.png beside it")  # fmt: skip
    for name, value in metrics.items():
        click.echo(f"  {name}: {value:.4f}")
