"""Options and helpers that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

import click

mapping_option = click.option(
    "--mapping", multiple=True, metavar="NAME|PATH", default=("martini3",), show_default=True,
    help="Shipped mapping, or a mapping file or folder; repeatable, later ones win.",
)  # fmt: skip


def slice_options(command: Any) -> Any:
    """Add --start, --stop and --step."""
    for name, text in (("step", "Use every n-th frame."),
                       ("stop", "Frame to stop before; negative counts from the end."),
                       ("start", "First frame, from 0; negative counts from the end.")):  # fmt: skip
        command = click.option(f"--{name}", type=int, default=None, help=text)(command)
    return command


def threads_option(command: Any) -> Any:
    """Add --threads."""
    return click.option(
        "--threads", type=click.IntRange(1), default=None,
        help="CPU threads; default: the cores this process may use.",
    )(command)  # fmt: skip


def set_threads(threads: int | None) -> int:
    """Set torch's threads; by default the cores that are free for this process."""
    import torch

    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = threads or free or 1
    torch.set_num_threads(count)
    return count


def progress(items: Iterable[Any], what: str, total: int | None = None) -> Iterable[Any]:
    """Wrap an iterable in a progress bar on stderr, shown only to a person."""
    from tqdm import tqdm

    return tqdm(items, desc=what, total=total, file=sys.stderr, disable=None, unit="")
