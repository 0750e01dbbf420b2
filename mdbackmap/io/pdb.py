"""PDB files as the next program needs them: TER, CONECT, and a box for every model.

MDAnalysis' writer leaves out TER, without which programs that build bonds from residues join
chains, and writes the box of the first frame only.
"""

from __future__ import annotations

import functools

import MDAnalysis as mda
import numpy as np

from mdbackmap.io.files import bond_table

MOST_NUMBERED = 99_999
"""Atoms that the columns of CONECT can number; larger files are written without bonds."""
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
    def _columns(self) -> tuple[list[str], list[str]]:
        return _columns(self.universe)

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
        heads, tails = self._columns
        # Flat lists of numbers are nothing for the garbage collector to go through.
        for head, x, y, z, tail in zip(heads, *positions.T.tolist(), tails, strict=True):
            lines.append(f"{head}{x:8.3f}{y:8.3f}{z:8.3f}{tail}")
        if self.models:
            lines.append("ENDMDL\n")
        return "".join(lines)

    def tail(self) -> str:
        """Return what stands behind the last frame: the bonds."""
        return "".join([*_conect(self.universe), "END\n"])


def _columns(universe: mda.Universe) -> tuple[list[str], list[str]]:
    """Return what stands before and behind the coordinates of every atom."""
    atoms = universe.atoms
    refuse_long_names(universe, 4)
    ends = _chain_ends(universe)
    heads, tails = [], []
    rows = zip(atoms.record_types, atoms.names, atoms.resnames, atoms.chainIDs,
               atoms.resids.tolist(), atoms.elements, strict=True)  # fmt: skip
    for i, (record, name, resname, chain, resid, element) in enumerate(rows):
        if len(name) < 4 and len(element) < 2:
            name = f" {name}"
        number = resid % 10000 if resid >= 0 else resid
        heads.append(f"{record:6s}{(i + 1) % 100000:5d} {name:4s} {resname:4s}{chain or ' '}"
                     f"{number:4d}    ")  # fmt: skip
        ter = "TER\n" if i in ends else ""
        tails.append(f"  1.00  0.00          {element.upper():>2s}  \n{ter}")
    return heads, tails


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
