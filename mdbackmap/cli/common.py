"""Options and helpers that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import click

mapping_option = click.option(
    "--mapping", multiple=True, metavar="NAME|PATH", default=("martini3",), show_default=True,
    help="Shipped mapping, or a mapping file or folder; repeatable, later ones win.",
)  # fmt: skip


def progress(items: Iterable[Any], what: str, total: int | None = None) -> Iterable[Any]:
    """Wrap an iterable in a progress bar on stderr, shown only to a person."""
    from tqdm import tqdm

    return tqdm(items, desc=what, total=total, file=sys.stderr, disable=None, unit="")
