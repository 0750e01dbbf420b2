"""Every error mdbackmap raises on purpose.

::

    MdbackmapError                    caught by the command line: one message, exit code 1
    ├── MappingError (ValueError)         a mapping file, or a bead no mapping explains
    │   ├── MappingFileError                  the file itself: syntax, keys, chemistry
    │   ├── HierarchyError                    an anchor that is not on an earlier level
    │   └── UnknownBeadError                  beads of the input that no mapping knows
    ├── StructureError (ValueError)       an input structure that does not fit
    ├── InputFileError (OSError)          a trajectory or topology that cannot be read
    ├── OutputFileError (OSError)         an output that cannot be written
    ├── ModelError (ValueError)           weights that cannot be used here
    ├── ProtonationError (ValueError)     a pH or a choice of protonation states that is none
    ├── ForceFieldError (ValueError)      molecules that a force field does not cover
    ├── MemoryLimitError (MemoryError)    a system that does not fit into the memory allowed
    ├── WorkerError (RuntimeError)        processes that share the work cannot be had, or die
    ├── FrameError (RuntimeError)         one frame failed; the message names it
    └── ConfigError (ValueError)          a training configuration that makes no sense

Each class also inherits from the builtin a caller would expect, so either ``except`` works.
Messages say where, what was expected, what was found and what to do, for all offenders at once.
"""

from __future__ import annotations

from collections.abc import Iterable


class MdbackmapError(Exception):
    """Base of every error raised on purpose; its text is written for the user."""


class MappingError(MdbackmapError, ValueError):
    """A mapping does not say what it must, or does not fit the input."""


class MappingFileError(MappingError):
    """A mapping file that cannot be read; names file, line and key."""


class HierarchyError(MappingError):
    """The anchors of a mapping form a cycle or point at no atom."""


class UnknownBeadError(MappingError):
    """Beads of the input that no loaded mapping explains."""


class StructureError(MdbackmapError, ValueError):
    """A structure whose atoms or beads are not what the operation needs."""


class InputFileError(MdbackmapError, OSError):
    """A trajectory or topology that is missing, truncated or unreadable."""


class OutputFileError(MdbackmapError, OSError):
    """An output that cannot be written."""


class ModelError(MdbackmapError, ValueError):
    """Weights that are not ours, are damaged, or do not know the mapping in use."""


class ProtonationError(MdbackmapError, ValueError):
    """A pH that is none, or protonation states chosen for residues that cannot have them."""


class ForceFieldError(MdbackmapError, ValueError):
    """A force field that is none, or that does not cover the molecules it is asked for."""


class FrameError(MdbackmapError, RuntimeError):
    """One frame could not be backmapped."""


class MemoryLimitError(MdbackmapError, MemoryError):
    """A system that takes more memory than is allowed."""


class WorkerError(MdbackmapError, RuntimeError):
    """Processes that were to share the work cannot be had, or died at it."""


class ConfigError(MdbackmapError, ValueError):
    """A training configuration that cannot be used."""


LONGEST = 1000
"""Characters of a row that are shown."""


def listing(items: Iterable[object], limit: int = 10, indent: str = "  ") -> str:
    """Return the items one per line, cut at a readable number with a count of the rest.

    >>> print(listing(["a", "b", "c"], limit=2))
      a
      b
      ... and 1 more
    """
    rows = [row if len(row) <= LONGEST else f"{row[:LONGEST]} ..." for row in map(str, items)]
    shown = [f"{indent}{row}" for row in rows[:limit]]
    if len(rows) > limit:
        shown.append(f"{indent}... and {len(rows) - limit} more")
    return "\n".join(shown)
