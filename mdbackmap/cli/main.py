"""The command line: knows the commands' names, imports one only when it is used."""

from __future__ import annotations

import importlib
import logging
import signal
import sys
from types import FrameType

import click

from mdbackmap import __version__
from mdbackmap.errors import MdbackmapError

COMMANDS = {
    "convert": ("mdbackmap.cli.convert", "Coarse-grained trajectory to atoms."),
    "map": ("mdbackmap.cli.map", "Atomistic trajectory to beads."),
    "validate": ("mdbackmap.cli.validate", "Count what is wrong with an atomistic trajectory."),
    "mapping": ("mdbackmap.cli.mapping", "List, show, check and draft mappings."),
    "models": ("mdbackmap.cli.models", "List and show trained models."),
    "prepare": ("mdbackmap.cli.prepare", "Atomistic structures to a training set."),
    "train": ("mdbackmap.cli.train", "Train a model."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[name][0])
        return getattr(module, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mdbackmap")
@click.option("-v", "--verbose", is_flag=True, help="Say what is decided on the way.")
def cli(verbose: bool) -> None:
    """Coarse-grained molecular dynamics trajectories, back in atoms."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    # What other libraries warn of is shown with -v only; our own warnings are logged by name.
    logging.captureWarnings(True)
    for name, shown in (("mdbackmap", True), ("py.warnings", verbose)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler] if shown else [logging.NullHandler()]
        logger.propagate = False
        logger.setLevel(logging.INFO if verbose else logging.WARNING)


def main() -> None:
    """Run the command line; expected errors become one message and exit code 1."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        code = _code()
    finally:
        # Processes that the caller forks later would have it too, and can miss a TERM with it.
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    sys.exit(code)


def _code() -> int:
    """Run the command line; return its exit code."""
    try:
        code = cli.main(prog_name="mdbackmap", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort as error:
        if isinstance(error.__cause__, EOFError):
            # click takes any EOFError for Ctrl-D; ours would be a bug to see.
            raise error.__cause__ from None
        code = _stopped(error.__cause__)
    except KeyboardInterrupt as error:
        code = _stopped(error)
    except SystemExit as error:
        click.echo("".join(f"stopped; {note}\n" for note in _notes(error)), err=True, nl=False)
        raise
    except MdbackmapError as error:
        click.echo("\n".join([f"error: {error}", *_notes(error)]), err=True)
        code = 1
    except BrokenPipeError:
        code = 1
    return code if isinstance(code, int) else 0


def _notes(error: BaseException | None) -> list[str]:
    """Return what was noted of an error on its way: what is kept, and how to go on."""
    return getattr(error, "__notes__", [])


def _stopped(error: BaseException | None) -> int:
    notes = _notes(error) or ["no unfinished file is left behind"]
    click.echo("\n".join(f"stopped; {note}" for note in notes), err=True)
    return 130


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave as on Ctrl-C, so that unfinished files are removed."""
    raise SystemExit(128 + number)
