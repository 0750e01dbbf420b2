"""Backbone torsions, and a coarse answer to whether they are ones that proteins have.

Three rectangles per class of residue, drawn round the torsions of 10,099 residues of crystal
structures at 2.0 Å or better, of which 0.5 % lie outside. That is enough to see a backbone go
wrong; it is no replacement for the contours of a structure validation service, and a few
outliers are normal.
"""

from __future__ import annotations

import numpy as np

from mdbackmap.mapping.system import System


def backbone_torsions(system: System) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay out phi and psi of every protein residue that has both neighbours.

    Returns
    -------
    phi, psi : ndarray, shape=(n, 4), int64
        C N CA C and N CA C N.
    residue : ndarray, shape=(n,), int64
    """
    local = np.full((len(system.templates), 3), -1, dtype=np.int64)
    for k, template in enumerate(system.templates):
        names = template.names.tolist()
        if template.kind == "protein" and {"N", "CA", "C"} <= set(names):
            local[k] = [names.index(name) for name in ("N", "CA", "C")]
    starts = np.searchsorted(system.atoms.residue, np.arange(len(system.residue_template)))
    n, ca, c = (local[system.residue_template] + starts[:, None]).T
    usable = local[system.residue_template, 0] >= 0
    before = np.full(len(usable), -1, dtype=np.int64)
    linked = np.flatnonzero(system.next_residue >= 0)
    before[system.next_residue[linked]] = linked
    after = system.next_residue
    # Index -1 reads the last residue, and the first two conditions take it out again.
    here = np.flatnonzero((before >= 0) & (after >= 0) & usable & usable[before] & usable[after])
    phi = np.stack([c[before[here]], n[here], ca[here], c[here]], axis=1)
    psi = np.stack([n[here], ca[here], c[here], n[after[here]]], axis=1)
    return phi, psi, here


def is_outlier(phi: np.ndarray, psi: np.ndarray, residue_names: np.ndarray) -> np.ndarray:
    """Return whether each residue lies outside the coarse regions, shape (n,), bool.

    Parameters
    ----------
    phi, psi : ndarray, shape=(n,), degrees in [-180, 180]
        NaN is no outlier.
    residue_names : ndarray, shape=(n,), str

    Notes
    -----
    Regions, in degrees:

    - left half: phi -180 to -40, any psi but -150 to -75 (proline: phi -120 to -40);
    - left-handed helix: phi 30 to 90, psi -30 to 75 (not proline);
    - across the edge: phi above 160, psi beyond +-120 (not proline);
    - glycine: all of these and their mirror images, and psi beyond +-105 where phi is beyond +-40.
    """
    proline, glycine = residue_names == "PRO", residue_names == "GLY"
    allowed = _left_half(phi, psi) & ~(proline & (phi < -120)) | ~proline & _right_half(phi, psi)
    mirrored = _left_half(-phi, -psi) | _right_half(-phi, -psi)
    extended = (np.abs(phi) >= 40) & (np.abs(psi) >= 105)
    allowed |= glycine & (mirrored | extended)
    return ~allowed & np.isfinite(phi) & np.isfinite(psi)


def _left_half(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
    return (phi <= -40) & ~((psi > -150) & (psi < -75))


def _right_half(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
    helix = (phi >= 30) & (phi <= 90) & (psi >= -30) & (psi <= 75)
    return helix | (phi >= 160) & (np.abs(psi) >= 120)
