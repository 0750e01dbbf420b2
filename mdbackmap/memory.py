"""How much memory a conversion takes, and what can be done about it.

Measured on proteins and membranes of up to 244,200 beads (2.5 million atoms), with hydrogens, on
the CPU: estimates are off by up to a tenth.
"""

from __future__ import annotations

import ctypes
import functools
import sys

from mdbackmap.errors import MemoryLimitError

PROCESS = 610_000_000
"""Bytes of a process that has everything imported and a model loaded."""
PER_BEAD, PER_ATOM = 2_000, 1_400
"""Bytes that a frame takes for every bead and every heavy atom."""
PER_SOLVENT_ATOM = 1_200
"""Bytes for every atom of water and ions; most of it is taken while a topology is written."""
PER_BEAD_IN_CHUNK = 70_000
"""Bytes for every bead that is predicted together with others."""
SMALLEST_CHUNK = 32
"""Beads; smaller chunks save nothing."""


KEPT = 256 << 20
"""Bytes at the end of a process's memory that it keeps although they are free."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""What glibc's mallopt calls two of its settings."""


@functools.cache
def keep_freed() -> None:
    """Have the C library keep memory that is freed for what is allocated next.

    By default it gives arrays of some megabytes back to the system, and the next frame asks for the
    same again, of which the system clears every page. Of use with glibc; other C libraries are left
    as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, KEPT)


def needed(n_beads: int, n_atoms: int, chunk_size: int, n_solvent: int = 0) -> int:
    """Return the bytes that backmapping takes at most, about.

    Parameters
    ----------
    n_atoms : int
        Heavy atoms.
    n_solvent : int
        Atoms of water and ions, hydrogens included.
    """
    frame = PER_BEAD * n_beads + PER_ATOM * n_atoms + PER_SOLVENT_ATOM * n_solvent
    return PROCESS + frame + PER_BEAD_IN_CHUNK * min(chunk_size, n_beads)


def chunk_size(
    n_beads: int, n_atoms: int, limit: float, largest: int, n_solvent: int = 0
) -> int:  # fmt: skip
    """Return the number of beads to predict together so that a process stays below a limit.

    Parameters
    ----------
    n_atoms : int
        Heavy atoms.
    limit : float
        Bytes.
    largest : int
        Beads; more would gain nothing.
    n_solvent : int
        Atoms of water and ions, hydrogens included.

    Raises
    ------
    MemoryLimitError
        Not even the smallest chunk fits.
    """
    least = needed(n_beads, n_atoms, SMALLEST_CHUNK, n_solvent)
    if least > limit:
        what, hint = f"{n_beads} beads", "--select"
        if n_solvent:
            what, hint = f"{what} and {n_solvent} atoms of water and ions", "--solvent drop"
        raise MemoryLimitError(
            f"{what} take about {_words(least)} in every process, but only "
            f"{_words(limit)} are allowed for one\n  Hint: allow more, use fewer --jobs, or "
            f"backmap a part of the system with {hint}."
        )
    spare = limit - needed(n_beads, n_atoms, 0, n_solvent)
    return max(SMALLEST_CHUNK, min(largest, int(spare / PER_BEAD_IN_CHUNK)))


def frames(
    n_beads: int, n_atoms: int, limit: float, most: int, chunk_size: int, n_solvent: int = 0
) -> int:  # fmt: skip
    """Return how many frames may be worked out together so that a process stays below a limit.

    Parameters
    ----------
    most : int
        More would gain nothing.
    chunk_size : int
        As `chunk_size` returned it; one frame then fits.
    """
    one = needed(n_beads, n_atoms, 0, n_solvent) - PROCESS
    spare = limit - needed(n_beads, n_atoms, chunk_size, n_solvent)
    return max(1, min(most, 1 + int(spare / one)))


def _words(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
