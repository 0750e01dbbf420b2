"""Options and helpers that several commands share."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click

mapping_option = click.option(
    "--mapping", multiple=True, metavar="NAME|PATH", default=("martini3",), show_default=True,
    help="Shipped mapping, or a mapping file or folder; repeatable, later ones win.",
)  # fmt: skip


def _not_zero(ctx: click.Context, option: click.Parameter, value: int | None) -> int | None:
    if value == 0:
        raise click.BadParameter("0 goes nowhere; expected 1 or more, or negative to go back")
    return value


def slice_options(command: Any) -> Any:
    """Add --start, --stop and --step."""
    for name, check, text in (
        ("step", _not_zero, "Use every n-th frame; negative goes backwards."),
        ("stop", None, "Frame to stop before; negative counts from the end."),
        ("start", None, "First frame, from 0; negative counts from the end."),
    ):
        add = click.option(f"--{name}", type=int, default=None, callback=check, help=text)
        command = add(command)
    return command


def threads_option(command: Any) -> Any:
    """Add --threads."""
    return click.option(
        "--threads", type=click.IntRange(1), default=None,
        help="CPU threads; default: OMP_NUM_THREADS, else the cores this process may use.",
    )(command)  # fmt: skip


def bytes_of(ctx: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """Read a size such as 4G, 500 MB or 1.5GiB; a click callback."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)(i?)B?", value)
    if not found or float(found[1]) == 0:
        raise click.BadParameter(f"'{value}'; expected a size such as 4G or 500M")
    return float(found[1]) * (1024 if found[3] else 1000) ** " kMGT".index(found[2] or " ")


def set_threads(threads: int | None) -> int:
    """Set torch's threads; by default the cores that are free for this process."""
    import torch

    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    count = threads or (int(asked) if asked.isdecimal() else 0) or free or 1
    torch.set_num_threads(count)
    return count


def progress(items: Iterable[Any], what: str, total: int | None = None) -> Iterable[Any]:
    """Wrap an iterable in a progress bar on stderr, shown only to a person."""
    from tqdm import tqdm

    return tqdm(items, desc=what, total=total, file=sys.stderr, disable=None, unit="")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give what shows how many of how many are done on stderr, to a person only."""
    from tqdm import tqdm

    with tqdm(desc=what, file=sys.stderr, disable=None, unit="") as bar:

        def tell(done: int, total: int) -> None:
            if bar.total is None:
                # What was done before is not counted as speed.
                bar.total, bar.initial, bar.n = total, done, done
                bar.refresh()
            bar.update(done - bar.n)

        yield tell


def wrapped(text: str, indent: str = "  ") -> str:
    """Return a long line as several of 96 columns, the later ones indented."""
    return click.wrap_text(text, 96, initial_indent=indent, subsequent_indent=indent + "  ")


def counted(number: int, what: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "frame"), counted(2, "frame")
    ('1 frame', '2 frames')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def say_error(text: str) -> None:
    """Print a line on stderr."""
    click.echo(text, err=True)
