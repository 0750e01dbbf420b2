"""Elements, and ideal bond lengths and angles where a mapping file gives none.

Rules of thumb good to a few hundredths of an Å: enough to keep a molecule a molecule. Files
that know better say so (keys ``bonds`` and ``angles``).
"""

from __future__ import annotations

import numpy as np

MASS = {
    "H": 1.008, "B": 10.81, "C": 12.011, "N": 14.007, "O": 15.999, "F": 18.998, "NA": 22.990,
    "MG": 24.305, "SI": 28.085, "P": 30.974, "S": 32.06, "CL": 35.45, "K": 39.098, "CA": 40.078,
    "MN": 54.938, "FE": 55.845, "CO": 58.933, "CU": 63.546, "ZN": 65.38, "SE": 78.971,
    "BR": 79.904, "I": 126.904,
}  # fmt: skip
"""Standard atomic weights, u (IUPAC 2021, abridged)."""

# Single-bond covalent radii, Å (Cordero et al. 2008, doi:10.1039/b801115j, rounded for sp3 C).
_RADIUS = {"H": 0.31, "B": 0.84, "C": 0.765, "N": 0.71, "O": 0.66, "F": 0.57, "SI": 1.11,
           "P": 1.07, "S": 1.05, "CL": 1.02, "SE": 1.20, "BR": 1.20, "I": 1.39}  # fmt: skip
_SHRINK = {1: 1.0, 1.5: 0.915, 2: 0.87, 3: 0.78}


# Two-letter elements told by a name that is nothing else but digits. CA, CD, CO and NA are not
# among them: they are atoms of proteins and cofactors.
_TOLD = {"BR", "CL", "FE", "MG", "MN", "SE", "SI", "ZN"}


def element_of(atom: str) -> str:
    """Guess an element from an atom name.

    >>> element_of("CA"), element_of("CL12"), element_of("1HB"), element_of("2")
    ('C', 'CL', 'H', '')
    """
    letters = "".join(c for c in atom if not c.isdigit()).upper()
    if letters in _TOLD:
        return letters
    return next((c for c in letters if c.isalpha()), "")


def bond_length(first: str, second: str, order: float) -> float:
    """Return an ideal bond length, Å, from elements and bond order."""
    total = _RADIUS.get(first, 0.8) + _RADIUS.get(second, 0.8)
    key = min(_SHRINK, key=lambda known: abs(known - order))
    return total * _SHRINK[key]


def angle(n_neighbours: int, ring: int, planar: bool) -> float:
    """Return an ideal angle, degrees.

    Parameters
    ----------
    n_neighbours : int
        Neighbours of the central atom, hydrogens included.
    ring : int
        Size of the smallest ring that holds the angle, 0 for none.
    planar : bool
        Whether the centre is sp2.
    """
    if ring and (planar or ring < 5):
        return 180.0 - 360.0 / ring
    if ring == 5:
        return 104.5
    if planar or n_neighbours == 3:
        return 120.0
    return 111.5


def masses(elements: np.ndarray) -> np.ndarray:
    """Return atomic masses, u; unknown elements count as carbon's neighbour weight 12."""
    symbols = elements.tolist()
    known = {symbol: MASS.get(symbol.upper(), 12.0) for symbol in set(symbols)}
    return np.array([known[symbol] for symbol in symbols], dtype=np.float64)
