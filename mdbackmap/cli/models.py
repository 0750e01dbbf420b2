"""``mdbackmap models``: the trained models that ship with the package."""

from __future__ import annotations

import click

from mdbackmap.cli.common import wrapped


@click.group()
def models() -> None:
    """List and show trained models."""


@models.command("list")
def list_() -> None:
    """List the shipped models."""
    from mdbackmap.models.checkpoint import read_header
    from mdbackmap.models.library import resolve, shipped

    for name in shipped():
        header = read_header(resolve(name))
        card = header["card"]
        click.echo(f"{name}  {card.get('date', '')}  {len(header['digests'])} residues  "
                   f"licence {card.get('licence', '?')}")  # fmt: skip


@models.command()
@click.argument("model", default="martini3")
def show(model: str) -> None:
    """Show the model card of MODEL (name or weights file)."""
    from mdbackmap.models.checkpoint import read_header
    from mdbackmap.models.library import resolve

    path = resolve(model)
    header = read_header(path)
    card = header["card"]
    encoder = header["encoder"]
    size = path.stat().st_size / 1e6
    click.echo(f"{card.get('name', model)}  ({size:.1f} MB, format {header['format']}, "
               f"head {header['head']}, lengths in {header['units']})")  # fmt: skip
    click.echo(f"network: {encoder['scalars']} scalars + {encoder['vectors']} vectors per bead, "
               f"{encoder['layers']} layers, cutoff {encoder['cutoff']} Å")  # fmt: skip
    for key in ("date", "licence", "data", "limits", "command", "seed", "minutes", "steps"):
        if card.get(key) not in (None, ""):
            click.echo(f"{key}: {card[key]}")
    if card.get("metrics"):
        click.echo("metrics on held-out data:")
        for name, value in card["metrics"].items():
            click.echo(f"  {name}: {value}")
    click.echo(wrapped(f"residues: {' '.join(sorted(header['digests']))}", indent=""))
