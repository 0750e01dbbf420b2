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

    Parameters
    ----------
    system : System
        Of ``checked``.
    checked : CGSource
        What is compared.
    library : Library
    reference : str or Path
    topology : str or Path, optional

    Raises
    ------
    InputFileError
        The residues of the two do not fit.
    """

    def __init__(
        self, system: System, checked: CGSource, library: Library, reference: str | Path,
        topology: str | Path | None = None,
    ) -> None:  # fmt: skip
        self.checked, self.source = checked, CGSource.open(reference, topology)
        other = from_atoms(self.source.particles, library, self.source.usable_frame())
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

    def __call__(self, frame: Frame) -> np.ndarray:
        """Return the positions, shape (n_atoms, 3), Å, that belong to a checked frame."""
        return _taken(_frame_of(self.source, frame, self.checked).positions, self.rows)


class BeadsOf:
    """Given beads in the order of a system's own beads; beads of solvent are passed over.

    Parameters and errors are those of `ReferenceOf`.
    """

    def __init__(
        self, system: System, checked: CGSource, library: Library, cg: str | Path,
        topology: str | Path | None = None,
    ) -> None:  # fmt: skip
        self.checked, self.source = checked, CGSource.open(cg, topology)
        other = from_beads(
            self.source.particles, library, self.source.usable_frame(), skip_unknown=True
        )
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

    def __call__(self, frame: Frame) -> np.ndarray:
        """Return the beads, shape (n_beads, 3), Å, molecules whole, of a checked frame."""
        now = _frame_of(self.source, frame, self.checked)
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


def _frame_of(source: CGSource, wanted: Frame, checked: CGSource) -> Frame:
    """The frame that belongs to a checked one: the only one, the same place, or the same time."""
    trajectory, name = source.universe.trajectory, source.files[0]
    n_frames = len(checked.universe.trajectory)
    if len(trajectory) == 1:
        return source.read(0)
    if len(trajectory) == n_frames:
        return source.read(wanted.index)
    problem = f"{name}: {len(trajectory)} frames where {n_frames} are checked, and "
    if not (source.has_times and checked.has_times):
        raise InputFileError(f"{problem}one of the two files holds no times to match them by")
    # Converted with --start/--step: look on from where the last one was found, then round.
    here, near = trajectory.frame, max(1e-3, 1e-6 * abs(wanted.time))
    for k in (*range(here, len(trajectory)), *range(here)):
        now = source.read(k)
        if abs(now.time - wanted.time) < near:
            return now
    raise InputFileError(f"{problem}none has the time of frame {wanted.index} ({wanted.time:g} ps)")


def _taken(positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
    result = positions[rows].astype(np.float64)
    result[rows < 0] = np.nan
    return result
