"""How much memory a conversion takes, and what can be done about it.

Measured on proteins and membranes of up to 244,200 beads (2.5 million atoms), with hydrogens, on
the CPU: estimates are off by up to a tenth.
"""

from __future__ import annotations

from mdbackmap.errors import MemoryLimitError

PROCESS = 490_000_000
"""Bytes of a process that has everything imported and a model loaded."""
PER_BEAD, PER_ATOM = 2_000, 1_400
"""Bytes that a frame takes for every bead and every heavy atom."""
PER_BEAD_IN_CHUNK = 70_000
"""Bytes for every bead that is predicted together with others."""
SMALLEST_CHUNK = 32
"""Beads; smaller chunks save nothing."""


def needed(n_beads: int, n_atoms: int, chunk_size: int) -> int:
    """Return the bytes that backmapping takes at most, about.

    Parameters
    ----------
    n_atoms : int
        Heavy atoms.
    """
    chunk = min(chunk_size, n_beads)
    return PROCESS + PER_BEAD * n_beads + PER_ATOM * n_atoms + PER_BEAD_IN_CHUNK * chunk


def chunk_size(n_beads: int, n_atoms: int, limit: float, largest: int) -> int:
    """Return the number of beads to predict together so that a process stays below a limit.

    Parameters
    ----------
    n_atoms : int
        Heavy atoms.
    limit : float
        Bytes.
    largest : int
        Beads; more would gain nothing.

    Raises
    ------
    MemoryLimitError
        Not even the smallest chunk fits.
    """
    least = needed(n_beads, n_atoms, SMALLEST_CHUNK)
    if least > limit:
        raise MemoryLimitError(
            f"{n_beads} beads take about {_words(least)} in every process, but only "
            f"{_words(limit)} are allowed for one\n  Hint: allow more, use fewer --jobs, or "
            "backmap a part of the system with --select."
        )
    spare = limit - needed(n_beads, n_atoms, 0)
    return max(SMALLEST_CHUNK, min(largest, int(spare / PER_BEAD_IN_CHUNK)))


def _words(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
