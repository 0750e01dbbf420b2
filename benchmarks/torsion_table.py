"""Count torsions of lipid tails into mdbackmap/geometry/rotamers.npz.

    python -m benchmarks.torsion_table lipids/train/*.gro

Give fluid membranes without sterols: what a chain does there is where sampling starts from. A
trajectory of the same name beside a file (.xtc) is read with it.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import click
import numpy as np
from mdbackmap.geometry import rotamers
from mdbackmap.io.prepare import systems
from mdbackmap.mapping.chains import chains_of
from mdbackmap.mapping.library import Library
from mdbackmap.validation import measures
from scipy import ndimage

SMOOTHING = 1.0
"""Standard deviation of the Gaussian, cells."""
FEWEST = 60
"""Torsions of a kind; of rarer ones nothing is said."""


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
def main(files: tuple[str, ...]) -> None:
    """Count FILES."""
    library = Library.load(["martini3"])
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(rotamers.CELLS))
    pairs = np.zeros((3, 3))
    for path in map(Path, files):
        trajectory = path.with_suffix(".xtc")
        for system, positions, box, _ in systems(
            path, trajectory if trajectory.exists() else None, library
        ):
            first = np.searchsorted(system.atoms.residue, np.arange(len(system.residue_template)))
            for number, template in enumerate(system.templates):
                starts = first[system.residue_template == number]
                for chain in chains_of(template):
                    count(chain, positions, starts, box, counts, pairs)
    kinds = sorted(kind for kind, cells in counts.items() if cells.sum() >= FEWEST)
    shares = []
    for kind in kinds:
        cells = ndimage.gaussian_filter1d(counts[kind], SMOOTHING, mode="wrap")
        if set(kind.split("-")) <= {"CT", "CM", "CD"}:
            cells = cells + cells[::-1]  # nothing in the chain tells left from right
        shares.append(cells / cells.sum())
        click.echo(f"{kind}: {int(counts[kind].sum())}")
    pairs = pairs + pairs.T
    pairs = pairs + pairs[::-1, ::-1]
    expected = np.outer(pairs.sum(1), pairs.sum(0)) / pairs.sum()
    path = Path(rotamers.__file__).with_name("rotamers.npz")
    np.savez_compressed(
        path, kinds=np.array(kinds), shares=np.array(shares, np.float32),
        ratios=(pairs / expected).astype(np.float32),
    )  # fmt: skip
    click.echo(f"{path}: {path.stat().st_size} bytes; pairs of neighbours\n{pairs / expected}")


def count(chain, positions, starts, box, counts, pairs) -> None:
    """Add the torsions of one chain in all its molecules."""
    row = np.concatenate([chain.anchors, chain.atoms])
    rows = np.stack([row[k : k + 4] for k in range(len(chain.atoms))])
    index = (starts[:, None, None] + rows).reshape(-1, 4)
    angle = measures.torsions(positions, index, box).reshape(len(starts), -1)
    cell = rotamers.cell_of(np.radians(angle))
    state = rotamers.state_of(np.radians(angle))
    for k, kind in enumerate(chain.kinds):
        if np.isnan(chain.fixed[k]):
            counts[kind] += np.bincount(cell[:, k], minlength=rotamers.CELLS)
        if k and {chain.kinds[k], chain.kinds[k - 1]} == {"CT-CT-CT-CT"}:
            np.add.at(pairs, (state[:, k - 1], state[:, k]), 1)


if __name__ == "__main__":
    main()
