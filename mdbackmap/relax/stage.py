"""What is done last with all atoms of a frame: names of a force field, and relaxation."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdbackmap.errors import listing
from mdbackmap.geometry.boxes import heights
from mdbackmap.mapping.system import System
from mdbackmap.relax.force_fields import Assignment, assign
from mdbackmap.relax.minimise import MAX_FORCE, Relaxed, Relaxer, reduced_box
from mdbackmap.relax.potential import CUTOFF, Potential
from mdbackmap.relax.reference import Reference
from mdbackmap.structure import AtomTable

_log = logging.getLogger("mdbackmap")

NONE, DEFAULT = "none", "charmm36"
"""No force field at all, and the one that relaxation takes where none was asked for."""
ROOM = 0.45
"""Of the distance of opposite faces that a cutoff may have; boxes of a trajectory differ."""


class Stage:
    """Names and relaxes all atoms of frames of one system.

    Parameters
    ----------
    system : System
    atoms : AtomTable
        What frames hold.
    heavy : ndarray, shape=(system.n_atoms,), int64
        Place of each atom of the system in it.
    force_field : str, optional
        ``charmm36``, ``amber14`` or ``none``; by default names stay as they are, and relaxation
        takes charmm36 for what it covers.
    files : sequence of str or Path
        More force-field files in OpenMM's format.
    relax : bool
    max_force : float, kJ/mol/nm
    device : str
        ``cpu`` or ``cuda``.

    Attributes
    ----------
    results : dict of int to Relaxed
        What became of every frame relaxed here, without positions.

    Raises
    ------
    ForceFieldError, InputFileError
        A force field that is none.
    """

    def __init__(
        self, system: System, atoms: AtomTable, heavy: np.ndarray, *,
        force_field: str | None = None, files: Sequence[str | Path] = (), relax: bool = False,
        max_force: float = MAX_FORCE, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.system, self.heavy, self.given = system, heavy, atoms
        self.force_field, self.files = force_field, tuple(files)
        self.relax, self.max_force, self.device = relax, max_force, device
        self.results: dict[int, Relaxed] = {}

    def __getstate__(self) -> dict[str, Any]:
        # What OpenMM makes stays here; another process makes its own.
        made = ("assignment", "_relaxers", "reference")
        return {k: v for k, v in self.__dict__.items() if k not in made} | {"results": {}}

    @functools.cached_property
    def assignment(self) -> Assignment | None:
        """The force field laid over the atoms; None without one."""
        if self.force_field == NONE:
            return None
        if self.force_field is None and not (self.given.elements == "H").any():
            _log.warning(
                "without hydrogens no force field fits: a generic force relaxes the frames"
            )
            return None
        found = assign(self.given, self.force_field or DEFAULT, self.files)
        if found.missing:
            rows = [f"{name}, {count} times" for name, count in found.missing.items()]
            _log.warning(
                "force field %s has no template for some residues; names stay as they are there%s\n"
                "%s", found.name, ", and a generic force relaxes them" if self.relax else "",
                listing(rows),
            )  # fmt: skip
        return found

    @property
    def atoms(self) -> AtomTable:
        """All atoms, with the names of the force field that was asked for."""
        if self.force_field in (None, NONE):
            return self.given
        return self.assignment.atoms

    @functools.cached_property
    def reference(self) -> Reference:
        return Reference.of(self.system, self.given, self.heavy)

    @functools.cached_property
    def _relaxers(self) -> dict[bool, Relaxer]:
        return {}

    def relaxer(self, box: np.ndarray | None) -> Relaxer:
        """What relaxes frames with such a box, or without; made for the first of them."""
        periodic = box is not None
        if periodic not in self._relaxers:
            room = heights(reduced_box(box)).min() / 10 * ROOM if periodic else CUTOFF
            potential = Potential(
                self.reference, self.assignment, periodic=periodic, cutoff=min(CUTOFF, room)
            )
            self._relaxers[periodic] = Relaxer(
                potential, max_force=self.max_force, threads=torch.get_num_threads(),
                platform="CUDA" if self.device.startswith("cuda") else None,
            )  # fmt: skip
        return self._relaxers[periodic]

    def __call__(
        self, positions: np.ndarray, beads: np.ndarray, box: np.ndarray | None, frame: int
    ) -> np.ndarray:
        """Relax one frame if that was asked for; arguments as of `Relaxer`.

        A frame that does not converge is kept as far as it came; `results` and a warning say so.
        """
        if not self.relax:
            return positions
        found = self.relaxer(box)(positions, beads, box, frame)
        self.results[frame] = dataclasses.replace(found, positions=None)
        if not found.converged:
            _log.warning("frame %d: not relaxed\n%s", frame, listing(found.problems, 5))
        return found.positions
