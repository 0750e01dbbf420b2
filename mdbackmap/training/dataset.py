"""Prepared training data: one compact file, readable with numpy alone.

A data set is a list of systems (a protein with all its chains, a membrane patch, one conformer
of a ligand). Atom positions are kept relative to the bead they are predicted from, as int16 of
0.01 Å; everything a loss needs (anchors, bonds, angles, signed volumes) is an index array.
Nothing here knows MDAnalysis or mapping files' syntax.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mdbackmap.errors import InputFileError, StructureError
from mdbackmap.mapping.system import System

FORMAT = 1
ATOM_STEP = 0.01
"""Å per unit of a stored atom offset."""
BEAD_STEP = 2**-9
"""Å to which bead positions are rounded; short numbers compress."""

_PER_BEAD = {"bead_key": np.int16, "bead_residue": np.int32, "bead_position": np.float32}
_PER_RESIDUE = {"residue_name": np.int16, "next_residue": np.int32, "bridge": np.int32}
_PER_ATOM = {
    "atom_key": np.int16, "atom_bead": np.int32, "anchor": np.int32, "level": np.int8,
    "atom_residue": np.int32, "usable": np.int8, "offset": np.int16, "swap": np.int8,
}  # fmt: skip
_TERMS = ("bonds", "angles", "volumes", "torsions")
_DAMAGE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
SWAPS = 8
"""Swaps of equivalent names a residue may have."""


@dataclass(frozen=True)
class Sample:
    """One system; see `mdbackmap.mapping.system.System` for the meaning of the indices.

    Attributes
    ----------
    offset : ndarray, shape=(n_atoms, 3), float32, Å
        From the atom's bead to the atom.
    usable : ndarray, shape=(n_atoms,), bool
        False for atoms that are context only.
    swap : ndarray, shape=(n_atoms, SWAPS), int64
        The atom each atom may trade places with, itself where there is none.
    bonds, angles, volumes, torsions : (indices, ideal values in Å, degrees, Å^3, degrees)
    """

    name: str
    kind: str
    box: np.ndarray | None
    bead_key: np.ndarray
    bead_residue: np.ndarray
    bead_position: np.ndarray
    residue_name: np.ndarray
    next_residue: np.ndarray
    bridge: np.ndarray
    atom_key: np.ndarray
    atom_bead: np.ndarray
    anchor: np.ndarray
    level: np.ndarray
    atom_residue: np.ndarray
    usable: np.ndarray
    offset: np.ndarray
    swap: np.ndarray
    bonds: tuple[np.ndarray, np.ndarray]
    angles: tuple[np.ndarray, np.ndarray]
    volumes: tuple[np.ndarray, np.ndarray]
    torsions: tuple[np.ndarray, np.ndarray]

    @property
    def n_beads(self) -> int:
        return len(self.bead_key)


class Builder:
    """Collects systems and writes a prepared file.

    Parameters
    ----------
    simulated : bool
        The beads to come lie as in simulations, not at the centres of their atoms.
    """

    def __init__(self, *, simulated: bool = False) -> None:
        self.simulated = simulated
        self.beads: dict[str, int] = {}
        self.atoms: dict[str, int] = {}
        self.residues: dict[str, int] = {"": 0}
        self.digests: dict[str, str] = {}
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.boxes: list[np.ndarray] = []
        self.columns: dict[str, list[np.ndarray]] = {}

    def add(
        self, name: str, system: System, positions: np.ndarray, box: np.ndarray | None,
        usable: np.ndarray | None = None, beads: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Add one system.

        Parameters
        ----------
        positions : ndarray, shape=(n_atoms, 3), Å
            All heavy atoms of the system, molecules whole.
        usable : ndarray, shape=(n_atoms,), bool, optional
            Atoms to learn from; default all.
        beads : ndarray, shape=(n_beads, 3), Å, optional
            Where the beads are, if not at the centres of their atoms.

        Raises
        ------
        StructureError
            Atoms without a position, or molecules that are not whole.
        """
        beads = system.map_positions(positions) if beads is None else beads
        beads = np.round(beads / BEAD_STEP) * BEAD_STEP
        offset = (positions - beads[system.atom_bead]) / ATOM_STEP
        if not np.isfinite(offset).all():
            raise StructureError(f"{name}: atoms without a position; complete residues are needed")
        if np.abs(offset).max(initial=0) > 32000:
            raise StructureError(f"{name}: an atom is more than 320 Å from its bead; are the "
                                 "molecules whole?")  # fmt: skip
        bridge = np.full(len(system.next_residue), -1)
        for i, j in system.bridges:
            bridge[i], bridge[j] = j, i
        bead_table = np.array([self._code(self.beads, key) for key in system.bead_keys])
        atom_table = np.array([self._code(self.atoms, key) for key in system.atom_keys])
        residue_table = np.array([self._code(self.residues, t.residue) for t in system.templates])
        swap = np.zeros((system.n_atoms, SWAPS), dtype=np.int64)
        start = np.concatenate([[0], np.cumsum([system.templates[t].n_atoms
                                                for t in system.residue_template])])  # fmt: skip
        for t, template in enumerate(system.templates):
            here = start[:-1][system.residue_template == t]
            if len(template.swaps) > SWAPS:
                raise StructureError(f"{name}: {template.residue} has {len(template.swaps)} swaps "
                                     f"of equivalent atoms; {SWAPS} can be kept")  # fmt: skip
            for k, order in enumerate(template.swaps):
                rows = here[:, None] + np.arange(template.n_atoms)
                swap[rows, k] = order - np.arange(template.n_atoms)
        values = {
            "bead_key": bead_table[system.bead_key],
            "bead_residue": system.bead_residue,
            "bead_position": beads,
            "residue_name": residue_table[system.residue_template],
            "next_residue": system.next_residue,
            "bridge": bridge,
            "atom_key": atom_table[system.atom_key],
            "atom_bead": system.atom_bead,
            "anchor": system.anchors,
            "level": system.levels,
            "atom_residue": system.atoms.residue,
            "usable": np.ones(system.n_atoms) if usable is None else usable,
            "offset": np.round(offset),
            "swap": swap,
        }
        pieces = {
            column: _packed(column, values[column], dtype)
            for column, dtype in {**_PER_BEAD, **_PER_RESIDUE, **_PER_ATOM}.items()
        }
        terms = system.constraints
        for term, scale, ideal in (
            ("bonds", 1000, terms.bond_length), ("angles", 10, terms.angle),
            ("volumes", 1000, terms.volume), ("torsions", 10, terms.torsion),
        ):  # fmt: skip
            index = getattr(terms, term)
            order = np.argsort(index[:, 0], kind="stable")
            index = index[order]
            # Differences compress far better than running numbers.
            packed = np.diff(index, axis=1, prepend=0)
            packed[1:, 0] -= index[:-1, 0]
            pieces[term] = _packed(term, packed, np.int32)
            ideals = f"{term}_ideal"
            pieces[ideals] = _packed(ideals, np.round(ideal[order] * scale), np.int16)
        # Nothing is kept of a system that is refused.
        for column, values in pieces.items():
            self.columns.setdefault(column, []).append(values)
        self.names.append(name)
        self.kinds.append(str(system.residue_kinds[0]))
        self.boxes.append(np.zeros((3, 3)) if box is None else np.asarray(box))
        self.digests |= {template.residue: template.placement for template in system.templates}

    def save(self, path: str | Path, note: str = "") -> None:
        """Write the file, which appears when complete; ``note`` says where the data came from.

        Raises
        ------
        StructureError
            No system was added.
        """
        if not self.names:
            raise StructureError(f"{path}: no system to learn from, nothing is written")
        sizes = {}
        arrays = {}
        for column, pieces in self.columns.items():
            sizes[column] = np.array([len(p) for p in pieces], dtype=np.int64)
            arrays[column] = np.concatenate(pieces)
        header = {
            "format": FORMAT, "beads": list(self.beads), "atoms": list(self.atoms),
            "residues": list(self.residues), "digests": self.digests, "names": self.names,
            "kinds": self.kinds, "note": note, "simulated": self.simulated,
        }  # fmt: skip
        part = Path(f"{path}.part")
        arrays |= {
            "header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
            "boxes": np.array(self.boxes, dtype=np.float32),
            **{f"size_{column}": size for column, size in sizes.items()},
        }
        # As numpy.savez_compressed writes it, but a third smaller; numpy.load reads both.
        with zipfile.ZipFile(part, "w", zipfile.ZIP_BZIP2) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as handle:
                    np.lib.format.write_array(handle, array, allow_pickle=False)
        part.replace(path)

    @staticmethod
    def _code(table: dict[str, int], key: str) -> int:
        return table.setdefault(key, len(table))


def _packed(column: str, values: np.ndarray, dtype: type) -> np.ndarray:
    if np.issubdtype(dtype, np.integer) and len(values):
        limits = np.iinfo(dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise StructureError(f"{column}: {values.min():g} to {values.max():g} does not fit the "
                                 f"{limits.bits} bits it is kept in")  # fmt: skip
    return values.astype(dtype)


class PreparedSet:
    """A prepared file in memory.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    InputFileError, StructureError
        The file is missing; it is damaged, something else, or of another format.

    Attributes
    ----------
    bead_keys, atom_keys, residues : list of str
        Vocabularies; residue 0 is the unknown one.
    digests : dict
        Hash of the mapping of every residue.
    simulated : bool
        Beads lie as in simulations, not at the centres of their atoms.
    """

    def __init__(self, path: str | Path) -> None:
        self.source = str(path)
        try:
            handle = open(path, "rb")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise InputFileError(f"{path}: cannot be read ({error.strerror}); training sets are "
                                 "made with 'mdbackmap prepare'") from error  # fmt: skip
        try:
            with handle, np.load(handle, allow_pickle=False) as archive:
                self._columns = {key: archive[key] for key in archive.files}
            header = json.loads(self._columns.pop("header").tobytes())
            version = header["format"]
        except _DAMAGE as error:
            raise StructureError(f"{path}: is no training set, or a damaged one ({error}); make "
                                 "one with 'mdbackmap prepare'") from error  # fmt: skip
        if version != FORMAT:
            raise StructureError(f"{path}: training set of format {version}, this version reads "
                                 f"{FORMAT}; prepare it again")  # fmt: skip
        try:
            self.bead_keys, self.atom_keys = header["beads"], header["atoms"]
            self.residues, self.digests = header["residues"], header["digests"]
            self.names, self.kinds, self.note = header["names"], header["kinds"], header["note"]
            self.simulated = bool(header.get("simulated", False))
            self._starts = self._lay_out()
        except _DAMAGE as error:
            raise StructureError(f"{path}: damaged training set ({error})") from error

    def _lay_out(self) -> dict[str, np.ndarray]:
        """Where each system starts in each column."""
        starts = {}
        ideals = [f"{term}_ideal" for term in _TERMS]
        for column in (*_PER_BEAD, *_PER_RESIDUE, *_PER_ATOM, *_TERMS, *ideals):
            starts[column] = np.append(0, np.cumsum(self._columns.pop(f"size_{column}")))
            ends = len(starts[column]) - 1, starts[column][-1]
            if ends != (len(self.names), len(self._columns[column])):
                raise ValueError(f"{column} has not the length it should have")
        return starts

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Sample]:
        return (self[k] for k in range(len(self)))

    def n_beads(self) -> np.ndarray:
        """Beads of every system, shape (n_systems,)."""
        return np.diff(self._starts["bead_key"])

    def _get(self, column: str, k: int) -> np.ndarray:
        start = self._starts[column]
        return self._columns[column][start[k] : start[k + 1]]

    def _term(self, term: str, k: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        packed = self._get(term, k).astype(np.int64)
        packed[:, 0] = np.cumsum(packed[:, 0])
        index = np.cumsum(packed, axis=1)
        return index, self._get(f"{term}_ideal", k).astype(np.float32) / scale

    def __getitem__(self, k: int) -> Sample:
        box = self._columns["boxes"][k].astype(np.float64)
        wide = {
            column: self._get(column, k).astype(np.int64)
            for column in ("bead_key", "bead_residue", "residue_name", "next_residue", "bridge",
                           "atom_key", "atom_bead", "anchor", "level", "atom_residue")
        }  # fmt: skip
        swap = self._get("swap", k).astype(np.int64)
        # Older files have room for fewer.
        swap = np.pad(swap, [(0, 0), (0, SWAPS - swap.shape[1])])
        return Sample(
            name=self.names[k],
            kind=self.kinds[k],
            box=box if box.any() else None,
            bead_position=self._get("bead_position", k),
            usable=self._get("usable", k).astype(bool),
            offset=self._get("offset", k).astype(np.float32) * ATOM_STEP,
            swap=swap + np.arange(len(swap))[:, None],
            bonds=self._term("bonds", k, 1000),
            angles=self._term("angles", k, 10),
            volumes=self._term("volumes", k, 1000),
            torsions=self._term("torsions", k, 10),
            **wide,
        )
