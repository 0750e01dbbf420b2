"""Which backbone torsions proteins have: a table of phi and psi, and the way back to it.

The table holds, for every cell of phi and psi, the share of residues of crystal structures that
lie in cells at least as crowded (0: the most crowded, 1: empty). Contours of it are the regions
crystallographers draw: 98 % favoured, 99.8 % allowed (Lovell et al., Proteins 50, 437 (2003),
doi:10.1002/prot.10286, who also tell the kinds of residue apart). It was counted for this
package with ``python -m benchmarks.ramachandran_table``.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from scipy import ndimage

KINDS = ("general", "ILE or VAL", "before PRO", "PRO", "GLY")
"""Kinds of residue with a table of their own, in the order of the table."""
FAVOURED, ALLOWED = 0.98, 0.998
"""Contours; beyond the second a residue is an outlier."""


@functools.cache
def table() -> np.ndarray:
    """Share of residues in cells at least as crowded, shape (5, n, n) over kind, phi, psi.

    Cells start at -180 degrees.
    """
    with np.load(Path(__file__).with_name("ramachandran.npz"), allow_pickle=False) as archive:
        return archive["percentile"].astype(np.float32) / 1e4


def kind_of(residue_names: np.ndarray, before_proline: np.ndarray) -> np.ndarray:
    """Return the kind of every residue as an index into `KINDS`, shape (n,), int64.

    Glycine and proline are their own kind also before a proline.
    """
    kind = np.zeros(len(residue_names), dtype=np.int64)
    kind[np.isin(residue_names, ("ILE", "VAL"))] = 1
    kind[before_proline] = 2
    kind[residue_names == "PRO"] = 3
    kind[residue_names == "GLY"] = 4
    return kind


def percentile(phi: np.ndarray, psi: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Look up phi and psi, degrees; returns shares as in `table`, NaN for NaN."""
    shares = table()
    n = shares.shape[1]
    known = np.isfinite(phi) & np.isfinite(psi)
    row, column = (
        np.floor((angle[known] + 180) * (n / 360)).astype(np.int64) % n for angle in (phi, psi)
    )
    result = np.full(len(phi), np.nan)
    result[known] = shares[kind[known], row, column]
    return result


@functools.cache
def way_back(contour: float) -> np.ndarray:
    """Where the nearest cell within a contour is, seen from every cell.

    Returns
    -------
    ndarray, shape=(5, n, n, 2), float32, radians
        Change of phi and psi; zero within the contour.
    """
    shares = table()
    n = shares.shape[1]
    ways = np.zeros((*shares.shape, 2), dtype=np.float32)
    here = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), axis=-1)
    for kind, share in enumerate(shares):
        tiled = np.tile(share > contour, (3, 3))
        nearest = ndimage.distance_transform_edt(tiled, return_distances=False, return_indices=True)
        ways[kind] = np.moveaxis(nearest, 0, -1)[n : 2 * n, n : 2 * n] - n - here
    return ways * np.float32(2 * np.pi / n)
