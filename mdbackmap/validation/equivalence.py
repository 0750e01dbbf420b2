"""Atoms of a molecule that differ in name only."""

from __future__ import annotations

import numpy as np

from mdbackmap.mapping.system import System


def name_swaps(system: System) -> list[np.ndarray]:
    """Spread the templates' swaps over all atoms.

    Returns
    -------
    list of ndarray, shape=(n_atoms,), int64
        The k-th holds the k-th swap of every residue; residues with fewer swaps stay as they are.
    """
    starts = np.searchsorted(system.atoms.residue, np.arange(len(system.residue_template)))
    orders = []
    for k in range(max(len(t.swaps) for t in system.templates)):
        order = np.arange(system.n_atoms)
        for number, template in enumerate(system.templates):
            if k < len(template.swaps):
                here = starts[system.residue_template == number][:, None]
                order[here + np.arange(template.n_atoms)] = here + template.swaps[k]
        orders.append(order)
    return orders
