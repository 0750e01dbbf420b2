"""Coarse-grained and all-atom topologies and frames as plain arrays.

Only data lives here: no file formats, no mapping rules, no physics. Lengths are Å, times ps.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

FAR = 1e6
"""Å; a coordinate beyond is as good as no number."""


@dataclass(frozen=True)
class Particles:
    """Names of the particles of a file, in file order; beads or atoms alike.

    Attributes
    ----------
    names, resnames, segids : ndarray, shape=(n,), dtype=str
    resids : ndarray, shape=(n,), dtype=int64
        As the file gives them: they may wrap or repeat.
    source : str
        The file they came from, for messages.
    bonds : ndarray, shape=(m, 2), dtype=int64, optional
        Bonds the file states, None where it states none. Evidence about chain ends only:
        connectivity comes from the mapping.
    """

    names: np.ndarray
    resnames: np.ndarray
    resids: np.ndarray
    segids: np.ndarray
    source: str = "input"
    bonds: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class Frame:
    """One time point.

    Attributes
    ----------
    positions : ndarray, shape=(n, 3), dtype=float32, Å
    box : ndarray, shape=(3, 3), dtype=float64, Å, or None
        Rows are the box vectors; None where the frame has no box.
    time : float, ps
    index : int
        Number of the frame in its trajectory, for messages.
    """

    positions: np.ndarray
    box: np.ndarray | None = None
    time: float = 0.0
    index: int = 0

    @property
    def usable(self) -> bool:
        """Whether all positions are numbers."""
        return bool((np.abs(self.positions) < FAR).all())


@dataclass
class AtomTable:
    """Names of atoms in output order, with their bonds.

    Attributes
    ----------
    names, elements, resnames, segids : ndarray, shape=(n,), dtype=str
    resids : ndarray, shape=(n,), dtype=int64
    residue : ndarray, shape=(n,), dtype=int64
        Index of the residue an atom belongs to, from 0, never wrapping.
    bonds : ndarray, shape=(m, 2), dtype=int64
    """

    names: np.ndarray
    elements: np.ndarray
    resnames: np.ndarray
    resids: np.ndarray
    segids: np.ndarray
    residue: np.ndarray
    bonds: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.names)


def tight(words: np.ndarray) -> np.ndarray:
    """Return words in an array no wider than the longest of them.

    >>> tight(np.array(["CA", "N"], dtype="U16")).dtype.str[1:]
    'U2'
    """
    return words.astype(f"U{max(map(len, np.unique(words).tolist()), default=1)}")


def split_residues(particles: Particles) -> np.ndarray:
    """Return the residue index of every particle, from 0 in file order.

    A new residue starts where number, name or segment changes, and where a particle name comes
    back that the running residue already holds (files that repeat or wrap residue numbers).

    Returns
    -------
    ndarray, shape=(n,), dtype=int64
    """
    n = len(particles)
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    change = np.ones(n, dtype=bool)
    change[1:] = (
        (particles.resids[1:] != particles.resids[:-1])
        | (particles.resnames[1:] != particles.resnames[:-1])
        | (particles.segids[1:] != particles.segids[:-1])
    )
    residue = np.cumsum(change) - 1
    # A name that comes back within one run starts a new residue there.
    _, name_code = np.unique(particles.names, return_inverse=True)
    key = residue * (name_code.max() + 1) + name_code
    if len(np.unique(key)) < n:
        bounds = np.flatnonzero(np.append(change, True))
        for start, stop in itertools.pairwise(bounds):
            codes = name_code[start:stop]
            if len(np.unique(codes)) == stop - start:
                continue
            seen: set[int] = set()
            for offset, code in enumerate(codes):
                if code in seen:
                    change[start + offset] = True
                    seen = set()
                seen.add(int(code))
        residue = np.cumsum(change) - 1
    return residue.astype(np.int64)
