"""How far an answer is from the atoms it should be."""

from __future__ import annotations

from typing import Any

import numpy as np

from mdbackmap.errors import StructureError
from mdbackmap.mapping.system import System
from mdbackmap.validation.equivalence import name_swaps

BACKBONE = ("N", "CA", "C", "O", "OXT")
"""Atom names of proteins that are no side chain."""


def rmsd(
    system: System,
    positions: np.ndarray,
    reference: np.ndarray,
    box: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compare heavy atoms with their reference, without superposition.

    Atoms that differ in name only may exchange names: each swap of a residue's mapping is taken
    where it lowers that residue's squared distance, in order, twice over. Among three equivalent
    atoms far from their reference this can miss the very best order.

    Parameters
    ----------
    system : System
    positions, reference : ndarray, shape=(n_atoms, 3), Å
        Molecules whole; atoms that are NaN in either are left out.
    box : ndarray, shape=(3, 3), Å, optional
        With a box each molecule is compared with its nearest image.

    Returns
    -------
    dict
        ``n_atoms`` compared; RMSD in Å (NaN where nothing was compared) under ``all``,
        ``backbone`` and ``side_chains`` of proteins, and as tables by name under ``kinds``
        (protein, lipid, molecule) and ``residues``.

    Raises
    ------
    StructureError
        An array has not one row per atom of the system.
    """
    for what, array in (("positions", positions), ("reference", reference)):
        if np.shape(array) != (system.n_atoms, 3):
            raise StructureError(
                f"rmsd: {what} have shape {np.shape(array)}, expected ({system.n_atoms}, 3): "
                "one row per heavy atom of the system"
            )
    positions, reference = (
        np.where(np.isfinite(array), array, np.nan).astype(np.float64)
        for array in (positions, reference)
    )
    reference = _best_names(system, positions, _nearest_image(system, positions, reference, box))
    squared = ((positions - reference) ** 2).sum(axis=1)
    compared = np.isfinite(squared)

    residue = system.atoms.residue
    kind, name = system.residue_kinds[residue], system.atoms.resnames
    protein = kind == "protein"
    backbone = protein & np.isin(system.atoms.names, BACKBONE)

    def over(chosen: np.ndarray) -> float:
        chosen = chosen & compared
        return float(np.sqrt(squared[chosen].mean())) if chosen.any() else float("nan")

    return {
        "n_atoms": int(compared.sum()),
        "all": over(np.ones(system.n_atoms, dtype=bool)),
        "backbone": over(backbone),
        "side_chains": over(protein & ~backbone),
        "kinds": {str(k): over(kind == k) for k in np.unique(kind)},
        "residues": {str(n): over(name == n) for n in np.unique(name)},
    }


def _nearest_image(
    system: System, positions: np.ndarray, reference: np.ndarray, box: np.ndarray | None
) -> np.ndarray:
    """Shift each molecule of the reference as a whole to the image nearest the positions."""
    if box is None:
        return reference
    molecule = system.bead_molecule[system.atom_bead]
    gap = (positions - reference) @ np.linalg.inv(box)
    known = np.isfinite(gap).all(axis=1)
    size = int(molecule.max()) + 1
    count = np.maximum(np.bincount(molecule[known], minlength=size), 1)
    mean = np.stack(
        [np.bincount(molecule[known], gap[known, k], minlength=size) / count for k in range(3)],
        axis=1,
    )
    return reference + (np.round(mean) @ box)[molecule]


def _best_names(system: System, positions: np.ndarray, reference: np.ndarray) -> np.ndarray:
    residue = system.atoms.residue
    orders = name_swaps(system)
    for order in orders * 2:
        moved = np.flatnonzero(order != np.arange(system.n_atoms))
        if not len(moved):
            continue
        swapped = ((positions[moved] - reference[order[moved]]) ** 2).sum(axis=1)
        change = swapped - ((positions[moved] - reference[moved]) ** 2).sum(axis=1)
        # A swap with an unknown atom sums to NaN, which is no gain: it is not taken.
        total = np.bincount(residue[moved], change, minlength=len(system.residue_template))
        taken = moved[(total < 0)[residue[moved]]]
        reference = reference.copy()
        reference[taken] = reference[order[taken]]
    return reference
