"""Which tautomer a residue is, from the hydrogen bonds it would have in one frame."""

from __future__ import annotations

import numpy as np

from mdbackmap.hydrogens.atoms import AllAtoms
from mdbackmap.hydrogens.nearby import Nearby, ranges
from mdbackmap.hydrogens.place import HydrogenPlacer, bond_worth
from mdbackmap.hydrogens.protonation import Protonation
from mdbackmap.hydrogens.recipes import Recipes, recipes_for
from mdbackmap.mapping.system import System

ANY_BETTER = 0.1
"""Worth in hydrogen bonds that a tautomer must gain over the first to be taken."""


def settle(
    system: System, protonation: Protonation, heavy: np.ndarray, pairs: Nearby
) -> Protonation:
    """Decide on all tautomers that are open.

    Each is tried with all others that are open in turn; what has the best hydrogen bonds stays.

    Parameters
    ----------
    heavy : ndarray, shape=(n_heavy, 3), float32, Å
    pairs : Nearby
        Heavy atoms near one another, each pair once, the lower number first.
    """
    if not protonation.open:
        return protonation
    residues = np.array(sorted(protonation.open))
    most = max(map(len, protonation.open.values()))
    worth = np.full((most, len(residues)), -np.inf)
    for k in range(most):
        has = [r for r in residues.tolist() if k < len(protonation.open[r])]
        tried = protonation.with_states({r: protonation.open[r][k] for r in has}, "")
        recipes = recipes_for(system, AllAtoms.of(system, tried))
        placed = HydrogenPlacer(recipes)(heavy, pairs)
        of_residue = _worth(system, recipes, placed - heavy[recipes.bearers[recipes.owner]], pairs)
        worth[k, np.isin(residues, has)] = of_residue[has]
    worth[0] += ANY_BETTER
    best = np.argmax(worth, axis=0)
    chosen = {
        r: protonation.open[r][k] for r, k in zip(residues.tolist(), best.tolist(), strict=True)
    }
    return protonation.with_states(chosen, "hydrogen bonds")


def _worth(system: System, recipes: Recipes, offsets: np.ndarray, pairs: Nearby) -> np.ndarray:
    """Hydrogen bonds of every residue, less donors that face donors, shape (n_residues,)."""
    donor = np.concatenate([pairs.first, pairs.second])
    other = np.concatenate([pairs.second, pairs.first])
    gaps = np.concatenate([pairs.gaps, -pairs.gaps])
    residue = system.atoms.residue
    polar = recipes.accepts | recipes.polar
    usable = recipes.polar[donor] & polar[other] & (residue[donor] != residue[other])
    donor, other, gaps = donor[usable], other[usable], gaps[usable]
    rows, which = ranges(recipes.count[donor])
    hydrogen = recipes.first[donor[rows]] + which
    near = bond_worth(np.linalg.norm(gaps[rows] - offsets[hydrogen], axis=1))
    worth = np.where(recipes.accepts[other[rows]], near, -near)
    total = np.bincount(residue[donor[rows]], worth, len(system.residue_template))
    return total + np.bincount(residue[other[rows]], worth, len(system.residue_template))
