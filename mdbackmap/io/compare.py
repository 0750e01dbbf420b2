"""Reference atoms and given beads in the order of a system, for validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mdbackmap.errors import InputFileError
from mdbackmap.geometry.boxes import Unwrapper
from mdbackmap.io.source import CGSource
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import System, from_atoms, from_beads
from mdbackmap.structure import Frame


class ReferenceOf:
    """True positions for a system's atoms; atoms the reference lacks are NaN.

    Residues are matched in order by name, so chains may be numbered otherwise; residues that
    only one of the two has must be at the ends or numbered.

    Raises
    ------
    InputFileError
        The residues of the two do not fit.
    """

    def __init__(
        self, system: System, library: Library, reference: str | Path,
        topology: str | Path | None = None,
    ) -> None:  # fmt: skip
        self.source = CGSource.open(reference, topology)
        other = from_atoms(self.source.particles, library, self.source.frame())
        pairs = _match_residues(system, other, str(reference))
        place = {
            (r, name): source
            for r, name, source in zip(other.atoms.residue.tolist(), other.atoms.names.tolist(),
                                       other.atom_source.tolist(), strict=True)
        }  # fmt: skip
        self.rows = np.array(
            [place.get((pairs[r], name), -1)
             for r, name in zip(system.atoms.residue.tolist(), system.atoms.names.tolist(),
                                strict=True)],
            dtype=np.int64,
        )  # fmt: skip

    def __call__(self, frame: Frame, n_frames: int) -> np.ndarray:
        """Return positions (n_atoms, 3), Å, of a frame."""
        return _taken(_frame_of(self.source, frame, n_frames).positions, self.rows)


class BeadsOf:
    """Given beads in the order of a system's own beads; beads of solvent are passed over."""

    def __init__(
        self, system: System, library: Library, cg: str | Path, topology: str | Path | None = None
    ) -> None:
        self.source = CGSource.open(cg, topology)
        other = from_beads(self.source.particles, library, self.source.frame(), skip_unknown=True)
        pairs = _match_residues(system, other, str(cg))
        place = {
            (r, name): b
            for b, (r, name) in enumerate(zip(other.bead_residue.tolist(),
                                              other.beads.names.tolist(), strict=True))
        }  # fmt: skip
        rows = [
            place.get((pairs[r], name), -1)
            for r, name in zip(system.bead_residue.tolist(), system.beads.names.tolist(),
                               strict=True)
        ]  # fmt: skip
        self.rows = np.array(rows, dtype=np.int64)
        self.other, self.unwrap = other, Unwrapper(other.bead_parent)

    def __call__(self, frame: Frame, n_frames: int) -> np.ndarray:
        """Return beads (n_beads, 3), Å, molecules whole, of a frame."""
        now = _frame_of(self.source, frame, n_frames)
        whole = self.unwrap(now.positions[self.other.bead_source], now.box)
        return _taken(whole, self.rows)


def _match_residues(system: System, other: System, name: str) -> dict[int, int]:
    """Residue of ``system`` → residue of ``other``: in order where names agree, else by number."""
    own, theirs = system.residue_names, other.residue_names
    if len(own) == len(theirs) and (own == theirs).all():
        return {r: r for r in range(len(own))}

    def labels(table: System) -> list[tuple]:
        first = np.flatnonzero(np.diff(table.atoms.residue, prepend=-1))
        rows = zip(table.residue_names.tolist(), table.atoms.resids[first].tolist(), strict=True)
        seen: dict[tuple, int] = {}
        result = []
        for row in rows:
            seen[row] = seen.get(row, 0) + 1
            result.append((*row, seen[row]))
        return result

    place = {label: r for r, label in enumerate(labels(other))}
    pairs = {r: place.get(label, -1) for r, label in enumerate(labels(system))}
    found = sum(r >= 0 for r in pairs.values())
    if found < 0.5 * len(own):
        raise InputFileError(
            f"{name}: its {len(theirs)} residues do not fit the {len(own)} checked ones "
            f"(only {found} agree in name and number)"
        )
    return pairs


def _frame_of(source: CGSource, wanted: Frame, n_frames: int) -> Frame:
    """The frame that belongs to a checked one: the only one, the same place, or the same time."""
    trajectory = source.universe.trajectory
    if len(trajectory) == 1:
        trajectory[0]
        return source.frame()
    if len(trajectory) == n_frames:
        trajectory[wanted.index]
        return source.frame()
    # Converted with --start/--step: look on from where the last one was found, then round.
    here = trajectory.frame
    for k in [*range(here, len(trajectory)), *range(here)]:
        trajectory[k]
        now = source.frame()
        if abs(now.time - wanted.time) < 1e-3:
            return now
    raise InputFileError(
        f"{trajectory.filename}: {len(trajectory)} frames where {n_frames} are checked, and none "
        f"has the time of frame {wanted.index} ({wanted.time:g} ps)"
    )


def _taken(positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
    result = positions[rows].astype(np.float64)
    result[rows < 0] = np.nan
    return result
