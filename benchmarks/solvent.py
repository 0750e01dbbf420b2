"""Water and ions as they are placed: what is too near, how far beads move, and how fast it is.

    python -m benchmarks.solvent traj.xtc topol.tpr [traj.xtc topol.tpr ...]

Of every trajectory some frames are backmapped. A water is crowded where its oxygen has another
oxygen, or a heavy atom that is none of its own bead's, within 2.4 Å.
"""

from __future__ import annotations

import time

import click
import numpy as np
import torch
from mdbackmap.graph.neighbours import close_pairs
from mdbackmap.io.source import CGSource
from mdbackmap.io.transformation import inspected, lay_out
from mdbackmap.pipeline import Backmapper

FRAMES = 3
CROWDED, CLASH = 2.4, 1.5
"""Å between heavy atoms, and between hydrogens."""


def measure(trajectory: str, topology: str) -> dict[str, float]:
    """Return means over some frames of a trajectory."""
    source = CGSource.open(trajectory, topology)
    backmapper = inspected(Backmapper(lay_out(source, solvent="keep")), source)
    table, solvent = backmapper.atoms, backmapper.layout.solvent
    placer, n_waters = backmapper.solvent_placer, solvent.n_waters
    start = len(table) - solvent.n_atoms(hydrogens=True)
    rows = []
    for frame in source.sample(FRAMES):
        positions = backmapper(frame.positions[backmapper.layout.file_beads], frame.box)
        beads = frame.positions[solvent.bead_source]
        took, placed = _timed(lambda: placer(beads, positions[:start], frame.box))  # noqa: B023
        alone, _ = _timed(lambda: placer.place(beads))  # noqa: B023
        oxygens = placed[: 3 * n_waters : 3]
        sites = np.concatenate([oxygens, placed[3 * n_waters :]])
        each = np.maximum(solvent.waters, 1)
        centres = np.add.reduceat(sites, np.cumsum(each) - each) / each[:, None]
        off = np.linalg.norm(centres - beads, axis=1)
        rows.append({
            **_contacts(table, positions, frame.box, start, n_waters),
            "centre off, mean Å": off.mean(), "centre off, most Å": off.max(),
            "atoms/s placed": len(placed) / alone, "atoms/s in all": len(placed) / took,
        })  # fmt: skip
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _timed(work):
    """CPU seconds of the fastest of three runs, and what it returns."""
    took = []
    for _ in range(3):
        began = time.process_time_ns()
        result = work()
        took.append(max(time.process_time_ns() - began, 1) / 1e9)
    return min(took), result


def _contacts(table, positions, box, start, n_waters) -> dict[str, float]:
    """Waters that are crowded, and hydrogens that meet, where one of the two is of solvent."""
    first, second, vectors = close_pairs(positions, box, CROWDED)
    apart = (table.residue[first] != table.residue[second]) & (second >= start)
    first, second = first[apart], second[apart]
    distance = np.linalg.norm(vectors[apart], axis=1)
    light = table.elements == "H"
    water = np.zeros(len(table), dtype=bool)
    water[start : start + 3 * n_waters : 3] = True
    ion = np.arange(len(table)) >= start + 3 * n_waters
    heavy = ~(light | ion)
    near = np.concatenate([first, second])[np.tile(heavy[first] & heavy[second], 2)]
    clashes = light[first] & light[second] & (distance < CLASH)
    n_solvent = len(table) - start
    return {
        "crowded waters, %": 100 * np.isin(np.flatnonzero(water), near).mean(),
        "H-H < 1.5 Å per 1000 atoms of solvent": 1000 * clashes.sum() / n_solvent,
        "of them between waters": 1000 * (clashes & (first >= start)).sum() / n_solvent,
        "O-H < 1.5 Å per 1000": 1000 * ((light[first] ^ light[second]) & (distance < CLASH)).sum()
        / n_solvent,
    }  # fmt: skip


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True))
def main(files: tuple[str, ...]) -> None:
    """Measure FILES: trajectories, each followed by its topology."""
    torch.set_num_threads(1)
    for trajectory, topology in zip(files[::2], files[1::2], strict=True):
        click.echo(trajectory)
        for what, value in measure(trajectory, topology).items():
            click.echo(f"  {what:40s} {value:12,.3f}")


if __name__ == "__main__":
    main()
