"""PDBx/mmCIF files: no column is ever too narrow, so numbers, names and bonds are all there."""

from __future__ import annotations

import functools
import re
from collections import defaultdict

import MDAnalysis as mda
import numpy as np

from mdbackmap.io.files import bond_table

_COLUMNS = (
    "group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id",
    "label_asym_id", "label_entity_id", "label_seq_id", "auth_seq_id", "auth_asym_id",
    "pdbx_PDB_ins_code", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy", "B_iso_or_equiv",
    "pdbx_PDB_model_num",
)  # fmt: skip
_RESERVED = re.compile(r"(data_|save_|loop_$|stop_$|global_$)", re.IGNORECASE)


class CIFText:
    """Puts frames of a Universe into words; several frames become several models.

    The format has one box for all frames, that of the first, and no times.

    Parameters
    ----------
    universe : MDAnalysis.Universe
        Names, residues, chain IDs, elements, record types and, if it has them, bonds.
    models : bool
        There are several frames; here they look like one.
    """

    def __init__(self, universe: mda.Universe, *, models: bool) -> None:
        self.universe = universe

    @functools.cached_property
    def _number(self) -> np.ndarray:
        return _numbers(self.universe)

    @functools.cached_property
    def _rows(self) -> tuple[list[str], list[str]]:
        return self.universe.atoms.record_types.tolist(), _names(self.universe, self._number)

    def head(self, dimensions: np.ndarray | None) -> str:
        """Return what stands before the first frame: the box (6,), Å and degrees, or None."""
        lines = ["data_mdbackmap\n#\n"]
        if dimensions is not None:
            keys = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
            lines += [f"_cell.{key} {value:.4f}\n" for key, value in zip(keys, dimensions,
                                                                         strict=True)]  # fmt: skip
            lines.append("_symmetry.space_group_name_H-M 'P 1'\n#\n")
        return "".join([*lines, _loop("atom_site", _COLUMNS)])

    def frame(self, number: int, positions: np.ndarray, dimensions: np.ndarray | None) -> str:
        """Return one frame.

        Parameters
        ----------
        number : int
            Its place among the frames, from 0.
        positions : ndarray, shape=(n_atoms, 3), Å
        dimensions : ndarray, shape=(6,), or None
            Has no place here; see `head`.
        """
        first = number * len(positions) + 1
        groups, names = self._rows
        numbers = range(first, first + len(positions))
        rows = zip(groups, numbers, names, positions.tolist(), strict=True)
        return "".join(
            f"{group} {i} {names} {x:.3f} {y:.3f} {z:.3f} 1.00 0.00 {number + 1}\n"
            for group, i, names, (x, y, z) in rows
        )

    def tail(self) -> str:
        """Return what stands behind the last frame: the bonds that programs do not know."""
        atoms, bonds = self.universe.atoms, bond_table(self.universe)
        if bonds is None:
            return "#\n"
        residue, names, comp = atoms.resindices, atoms.names, atoms.resnames
        within = residue[bonds[:, 0]] == residue[bonds[:, 1]]
        known = (atoms.record_types[bonds] == "ATOM").all(axis=1)
        inner: dict[str, dict[tuple[str, str], None]] = defaultdict(dict)
        for i, j in bonds[within & ~known].tolist():
            inner[comp[i]][names[i], names[j]] = None
        rows = [f"{_word(name)} {_word(i)} {_word(j)} ?\n"
                for name, pairs in inner.items() for i, j in pairs]  # fmt: skip
        chem = _loop("chem_comp_bond", ("comp_id", "atom_id_1", "atom_id_2", "value_order"))
        text = [chem, *rows, "#\n"] if rows else []
        peptide = known & (names[bonds] == ["C", "N"]).all(axis=1)
        peptide |= known & (names[bonds] == ["N", "C"]).all(axis=1)
        links = bonds[~within & ~peptide].tolist()
        if links:
            sides = ("label_asym_id", "label_comp_id", "label_seq_id", "label_atom_id")
            columns = [f"ptnr{k}_{side}" for k in (1, 2) for side in sides]
            text.append(_loop("struct_conn", ("id", "conn_type_id", *columns)))
        for k, (i, j) in enumerate(links, start=1):
            kind = "disulf" if names[i] == names[j] == "SG" else "covale"
            ends = " ".join(f"{_word(atoms.chainIDs[a])} {_word(comp[a])} {self._number[a]} "
                            f"{_word(names[a])}" for a in (i, j))  # fmt: skip
            text.append(f"{kind}{k} {kind} {ends}\n")
        return "".join(["#\n", *text])


def _loop(category: str, columns: tuple[str, ...]) -> str:
    return "".join(["loop_\n", *(f"_{category}.{column}\n" for column in columns)])


def _numbers(universe: mda.Universe) -> np.ndarray:
    """Return of every atom the number of its residue in its chain, from 1, shape (n_atoms,).

    Also what is no polymer gets such a number: programs tell residues apart by it.
    """
    atoms = universe.atoms
    first = np.flatnonzero(np.diff(atoms.resindices, prepend=-1))
    seen: dict[str, int] = defaultdict(int)
    number = np.zeros(len(first), dtype=np.int64)
    for k, letter in enumerate(atoms.chainIDs[first]):
        seen[letter] += 1
        number[k] = seen[letter]
    return number[atoms.resindices]


def _names(universe: mda.Universe, number: np.ndarray) -> list[str]:
    """Return what stands between the number of an atom and its coordinates."""
    atoms = universe.atoms
    rows = zip(atoms.elements, atoms.names, atoms.resnames, atoms.chainIDs, number.tolist(),
               atoms.resids.tolist(), strict=True)  # fmt: skip
    return [
        f"{element or '?'} {_word(name)} . {_word(comp)} {_word(chain)} ? {k} {resid} "
        f"{_word(chain)} ?"
        for element, name, comp, chain, k, resid in rows
    ]


def _word(value: str) -> str:
    """Return a value as the format's grammar wants it.

    >>> _word("CA"), _word("O5'"), _word("")
    ('CA', '"O5\\'"', '.')
    """
    if not value:
        return "."
    if "'" in value or value[0] in "_#$[];" or value in (".", "?") or _RESERVED.match(value):
        return f'"{value}"'
    return f"'{value}'" if '"' in value or " " in value else value
