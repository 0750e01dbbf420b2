"""Count phi and psi of crystal structures into mdbackmap/geometry/ramachandran.npz.

    python -m benchmarks.ramachandran_table train.tar.xz train.csv val.tar.xz val.csv

The tables are those of the training data: structures of at most 2.0 Å resolution, residues with a
B factor of at most 35. Needs gemmi.
"""

from __future__ import annotations

import csv
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path

import click
import gemmi
import numpy as np
from mdbackmap.geometry import ramachandran
from scipy import ndimage

CELL = 5
"""Degrees."""
SMOOTHING = 1.2
"""Standard deviation of the Gaussian, cells."""


def crystal_structures(archive: str, table: str) -> Iterator[gemmi.Structure]:
    """Structures of an archive that its table calls experimental and sharp."""
    with open(table, newline="") as handle:
        rows = {row["file"].partition(":")[2]: row for row in csv.DictReader(handle)}
    with tarfile.open(archive) as tar:
        for member in tar:
            row = rows.get(member.name)
            if row and "X-RAY" in row["method"] and row["kind"] != "rosetta-loaded" \
                    and row["resolution"] and float(row["resolution"]) <= 2.0:  # fmt: skip
                yield gemmi.read_pdb_string(tar.extractfile(member).read().decode())


def torsions(chain: gemmi.Chain) -> Iterator[tuple[str, bool, float, float]]:
    """Name, whether before a proline, phi and psi in degrees."""
    residues = list(chain)
    for before, here, after in zip(residues, residues[1:], residues[2:], strict=False):
        wanted = ((before, "C"), (here, "N"), (here, "CA"), (here, "C"), (after, "N"))
        if any(name not in residue for residue, name in wanted):
            continue
        atoms = [residue[name][0] for residue, name in wanted]
        points = [atom.pos for atom in atoms]
        bonded = points[0].dist(points[1]) < 1.45 and points[3].dist(points[4]) < 1.45
        if bonded and all(atom.occ > 0.5 and atom.b_iso <= 35 for atom in atoms):
            yield (
                here.name,
                after.name == "PRO",
                *(math.degrees(gemmi.calculate_dihedral(*points[k : k + 4])) for k in (0, 1)),
            )


def shares(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """Share of the smoothed counts in cells at least as crowded, per cell."""
    edges = np.arange(-180, 181, CELL)
    counts = np.histogram2d(phi, psi, bins=[edges, edges])[0]
    density = ndimage.gaussian_filter(counts, SMOOTHING, mode="wrap").ravel()
    order = np.argsort(-density)
    result = np.empty_like(density)
    result[order] = np.cumsum(density[order]) / density.sum()
    return result.reshape(counts.shape)


@click.command()
@click.argument("files", nargs=-1, required=True)
def main(files: tuple[str, ...]) -> None:
    """Count FILES: archives and their tables, in turn."""
    rows = [
        row
        for archive, table in zip(files[::2], files[1::2], strict=True)
        for structure in crystal_structures(archive, table)
        for chain in structure[0]
        for row in torsions(chain)
    ]
    names, before, phi, psi = (np.array(column) for column in zip(*rows, strict=True))
    kind = ramachandran.kind_of(names, before)
    tables = []
    for k, label in enumerate(ramachandran.KINDS):
        a, b = phi[kind == k], psi[kind == k]
        click.echo(f"{label}: {len(a)} residues")
        if label == "GLY":
            # It has no hand.
            a, b = np.concatenate([a, -a]), np.concatenate([b, -b])
        tables.append(shares(a, b))
    path = Path(ramachandran.__file__).with_name("ramachandran.npz")
    np.savez_compressed(path, percentile=np.round(np.array(tables) * 1e4).astype(np.uint16))
    click.echo(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
