"""PDB files as the next program needs them: TER, CONECT, and a box for every model.

MDAnalysis' writer leaves out TER, without which programs that build bonds from residues join
chains, and writes the box of the first frame only.
"""

from __future__ import annotations

import functools
import itertools

import MDAnalysis as mda
import numpy as np

from mdbackmap.compiled import compiled, part
from mdbackmap.io.files import bond_table

MOST_NUMBERED = 99_999
"""Atoms that the columns of CONECT can number; larger files are written without bonds."""
ZERO, MINUS, POINT, SPACE = (ord(letter) for letter in "0-. ")
_LOWEST, _HIGHEST = -999.9995, 9999.9995
"""Å that the columns of a coordinate can hold."""


class PDBText:
    """Puts frames of a Universe into words.

    Parameters
    ----------
    universe : MDAnalysis.Universe
        Names, residues, chain IDs, elements, record types and, if it has them, bonds.
    models : bool
        There are several frames.

    Numbers wrap as usual: atoms after 99,999, residues after 9,999.
    """

    def __init__(self, universe: mda.Universe, *, models: bool) -> None:
        self.models, self.universe = models, universe

    @functools.cached_property
    def _lines(self) -> np.ndarray:
        return _lines(self.universe)

    @functools.cached_property
    def _ends(self) -> list[int]:
        return sorted(_chain_ends(self.universe))

    def head(self, dimensions: np.ndarray | None) -> str:
        """Return what stands before the first frame."""
        return ""

    def frame(self, number: int, positions: np.ndarray, dimensions: np.ndarray | None) -> str:
        """Return one frame.

        Parameters
        ----------
        number : int
            Its place among the frames, from 0.
        positions : ndarray, shape=(n_atoms, 3), Å
        dimensions : ndarray, shape=(6,), Å and degrees, or None

        Raises
        ------
        ValueError
            Coordinates or names that the columns cannot hold.
        """
        low, high = positions.min(), positions.max()
        if not (low > _LOWEST and high < _HIGHEST):
            raise ValueError(
                f"coordinates from {low:.0f} to {high:.0f} Å do not fit the columns of a PDB file; "
                "use another format"
            )
        lines = []
        if dimensions is not None:
            sides = "".join(f"{side:9.3f}" for side in dimensions[:3])
            angles = "".join(f"{angle:7.2f}" for angle in dimensions[3:])
            lines.append(f"CRYST1{sides}{angles} P 1           1\n")
        if self.models:
            lines.append(f"MODEL     {(number + 1) % 10000:4d}\n")
        rows = self._lines
        for axis, values in enumerate(positions.T):
            _write_thousandths(rows[:, 30 + 8 * axis : 38 + 8 * axis], values)
        # Behind the last atom of a chain stands TER.
        cuts = [0, *(end + 1 for end in self._ends), len(rows)]
        pieces = [rows[a:b].tobytes().decode("ascii") for a, b in itertools.pairwise(cuts)]
        lines.append("TER\n".join(pieces))
        if self.models:
            lines.append("ENDMDL\n")
        return "".join(lines)

    def tail(self) -> str:
        """Return what stands behind the last frame: the bonds."""
        return "".join([*_conect(self.universe), "END\n"])


def _lines(universe: mda.Universe) -> np.ndarray:
    """Return a line for every atom, shape (n_atoms, 81), uint8; coordinates are to be written."""
    atoms = universe.atoms
    refuse_long_names(universe, 4)
    lines = np.full((len(atoms), 81), SPACE, dtype=np.uint8)
    lines[:, 80] = ord("\n")
    residue = atoms.resindices
    lines[:, :6] = _letters(atoms.record_types, 6)
    names, elements = _letters(atoms.names, 4), _letters(atoms.elements, 2)
    # Names of one-letter elements begin in the second column, where they fit.
    aside = (names[:, 3] == SPACE) & (elements[:, 1] == SPACE)
    names[aside] = np.roll(names[aside], 1, axis=1)
    lines[:, 12:16] = names
    lines[:, 17:21] = _letters(universe.residues.resnames, 4)[residue]
    lines[:, 21:22] = _letters(atoms.chainIDs, 1)
    elements -= 32 * ((elements >= ord("a")) & (elements <= ord("z"))).astype(np.uint8)
    short = elements[:, 1] == SPACE
    elements[short] = elements[short][:, ::-1]
    lines[:, 76:78] = elements
    lines[:, 54:66] = np.frombuffer(b"  1.00  0.00", np.uint8)
    _write_numbers(lines[:, 6:11], np.arange(1, len(atoms) + 1) % 100000)
    resids = universe.residues.resids[residue]
    _write_numbers(lines[:, 22:26], np.where(resids >= 0, resids % 10000, resids))
    return lines


def _letters(words: np.ndarray, width: int) -> np.ndarray:
    """Return words from the left of so many columns, shape (n, width), uint8."""
    letters = words.astype(f"S{width}").view(np.uint8).reshape(-1, width).copy()
    letters[letters == 0] = SPACE
    return letters


@compiled
def _write_numbers(columns, numbers):
    """Write whole numbers into columns (n, width) of lines, from the right."""
    for i in range(len(columns)):
        rest, below = abs(numbers[i]), numbers[i] < 0
        for k in range(columns.shape[1] - 1, -1, -1):
            more = rest > 0 or k == columns.shape[1] - 1
            columns[i, k] = _digit(rest, more, below)
            below = below and more
            rest //= 10


@compiled
def _write_thousandths(columns, values):
    """Write numbers with three decimals into eight columns of lines."""
    for i in range(len(columns)):
        whole = int(np.rint(np.float64(values[i]) * 1000))
        rest, below = abs(whole), whole < 0
        columns[i, 4] = POINT
        for k in (7, 6, 5, 3, 2, 1, 0):
            more = rest > 0 or k >= 3
            columns[i, k] = _digit(rest, more, below)
            below = below and more
            rest //= 10


@part
def _digit(rest, more, below):
    """The last digit, or where there is none a sign, once, or nothing."""
    if more:
        return ZERO + rest % 10
    return MINUS if below else SPACE


def refuse_long_names(universe: mda.Universe, columns: int) -> None:
    """Refuse names that a format would cut off.

    Raises
    ------
    ValueError
        Lists them.
    """
    names = {*universe.atoms.names, *universe.residues.resnames}
    long = sorted(name for name in names if len(name) > columns)
    if long:
        raise ValueError(
            f"this format holds {columns} letters of a name; longer are {' '.join(long[:10])}"
        )


def _chain_ends(universe: mda.Universe) -> set[int]:
    """Return the last atom of every chain of a polymer.

    A chain ends where its letter does and, if bonds are known, where a residue is not bonded to
    the next.
    """
    residues, atoms = universe.residues, universe.atoms
    last = np.flatnonzero(np.diff(atoms.resindices, append=len(residues)))
    polymer = atoms.record_types[last] == "ATOM"
    chain = atoms.chainIDs[last]
    joined = np.zeros(len(residues), dtype=bool)
    joined[:-1] = polymer[1:] & (chain[1:] == chain[:-1])
    bonds = bond_table(universe)
    if bonds is not None:
        bonded = np.zeros(len(residues), dtype=bool)
        pairs = np.sort(atoms.resindices[bonds], axis=1)
        bonded[pairs[pairs[:, 1] == pairs[:, 0] + 1, 0]] = True
        joined &= bonded
    return set(last[polymer & ~joined].tolist())


def _conect(universe: mda.Universe) -> list[str]:
    """Return the CONECT lines, both ways round as the format asks."""
    one_way = bond_table(universe)
    if one_way is None or len(universe.atoms) > MOST_NUMBERED:
        return []
    pairs = np.concatenate([one_way, one_way[:, ::-1]])
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))] + 1
    partners: dict[int, list[int]] = {}
    for i, j in pairs.tolist():
        partners.setdefault(i, []).append(j)
    return [
        f"CONECT{i:5d}" + "".join(f"{j:5d}" for j in others[k : k + 4]) + "\n"
        for i, others in partners.items()
        for k in range(0, len(others), 4)
    ]
