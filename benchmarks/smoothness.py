"""Do side chains flip between frames without cause?

A rotamer change is chi1 or chi2 that turns by more than 60 degrees. Two tests count them:

* consecutive frames of real CG trajectories, against how much the beads around a residue moved:
  the RMS change of the distances from its beads to all beads within 8 Å of them;
* one and the same frame after a small random displacement of all beads, which does not depend on
  how far apart frames are. A smooth map answers a small displacement with a small one.

    python -m benchmarks.smoothness cg/*/traj.xtc --every 2 --plot smoothness.png
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import click
import numpy as np
from mdbackmap.cli.common import progress, set_threads
from mdbackmap.geometry.boxes import minimum_image
from mdbackmap.graph.neighbours import find_pairs
from mdbackmap.io.source import CGSource
from mdbackmap.io.transformation import inspected, lay_out
from mdbackmap.mapping.system import System
from mdbackmap.models.checkpoint import load
from mdbackmap.models.library import resolve
from mdbackmap.pipeline import Backmapper, Options
from mdbackmap.validation.measures import torsions

FLIP = 60.0
"""Degrees between consecutive frames that make a rotamer change."""
AROUND = 8.0
"""Å within which beads belong to a residue's surroundings."""
EDGES = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.5, np.inf])
"""Bins of bead motion, Å."""
AMPLITUDES = (0.02, 0.05, 0.1, 0.2)
"""Å per axis by which all beads are displaced in the controlled test."""
SEED = 1
HEAVY = Options(hydrogens=False)

GAMMA, DELTA = ("CG", "CG1", "SG", "OG", "OG1"), ("CD", "CD1", "OD1", "ND1", "SD")
CHI = (("N", "CA", "CB", GAMMA), ("CA", "CB", GAMMA, DELTA))
ALIKE = ("PHE", "TYR", "ASP")
"""Residues whose chi2 turned by 180 degrees is the same."""
RING = ("PRO",)
"""Residues without rotamers: their chi angles only pucker a ring."""


class Chi:
    """Where the chi1 and chi2 of a system's protein residues are.

    Attributes
    ----------
    rows : tuple of ndarray, shape=(m, 4), int64
        Atoms of every chi1, of every chi2.
    residue : tuple of ndarray, shape=(m,), int64
    period : tuple of ndarray, shape=(m,), degrees
    """

    def __init__(self, system: System) -> None:
        starts = np.searchsorted(system.atoms.residue, np.arange(len(system.residue_template)))
        alike = np.isin(system.residue_names, ALIKE)
        self.rows, self.residue, self.period = (), (), ()
        for number, names in enumerate(CHI):
            local = np.array([_places(template, names) for template in system.templates])
            has = np.flatnonzero((local >= 0).all(axis=1)[system.residue_template])
            self.rows += (local[system.residue_template[has]] + starts[has, None],)
            self.residue += (has,)
            self.period += (np.where(alike[has] & (number == 1), 180.0, 360.0),)

    def angles(self, atoms: np.ndarray) -> list[np.ndarray]:
        """Return every chi1, every chi2 of whole molecules, degrees."""
        return [torsions(atoms, rows, None) for rows in self.rows]

    def flips(self, before: list[np.ndarray], after: list[np.ndarray]) -> list[np.ndarray]:
        """Return which chi1, which chi2 changed their rotamer."""
        turns = [b - a for a, b in zip(before, after, strict=True)]
        return [np.abs(turn - period * np.round(turn / period)) > FLIP
                for turn, period in zip(turns, self.period, strict=True)]  # fmt: skip


def _places(template, names) -> list[int]:
    """Places of four atoms in a template, -1 for those it does not have."""
    if template.kind != "protein" or template.residue in RING:
        return [-1] * 4
    own = template.names.tolist()
    choices = [(name,) if isinstance(name, str) else name for name in names]
    return [next((own.index(n) for n in some if n in own), -1) for some in choices]


def motion(
    system: System, first: np.ndarray, second: np.ndarray, box: np.ndarray | None,
    later_box: np.ndarray | None,
) -> np.ndarray:  # fmt: skip
    """RMS change of the distances around each residue's beads, shape (n_residues,), Å."""
    here, there, between = find_pairs(first, box, AROUND)
    later = minimum_image(second[there] - second[here], later_box)
    change = np.linalg.norm(later, axis=1) - np.linalg.norm(between, axis=1)
    owner, n = system.bead_residue[here], len(system.residue_template)
    count = np.bincount(owner, minlength=n)
    return np.sqrt(np.bincount(owner, change**2, minlength=n) / np.maximum(count, 1))


def consecutive(backmapper: Backmapper, chi: Chi, frames) -> np.ndarray:
    """Count chi angles and their changes per bin of motion: array of (chi, bin, [all, changed])."""
    system, counts = backmapper.system, np.zeros((2, len(EDGES) - 1, 2), dtype=np.int64)
    parts = ((frame, chi.angles(backmapper(frame.positions[system.bead_source], frame.box,
                                           frame.index))) for frame in frames)  # fmt: skip
    for (one, before), (two, after) in itertools.pairwise(parts):
        beads = [frame.positions[system.bead_source] for frame in (one, two)]
        moved = np.digitize(motion(system, *beads, one.box, two.box), EDGES[1:-1])
        for k, flipped in enumerate(chi.flips(before, after)):
            place = moved[chi.residue[k]]
            counts[k, :, 0] += np.bincount(place, minlength=len(EDGES) - 1)
            counts[k, :, 1] += np.bincount(place[flipped], minlength=len(EDGES) - 1)
    return counts


def controlled(backmapper: Backmapper, chi: Chi, frames) -> list[list[np.ndarray]]:
    """Displace all beads of some frames at random.

    Returns
    -------
    list of [chi1, chi2, moved, around] per amplitude
        Which chi angles changed their rotamer; how far protein atoms moved, Å; the change around
        each residue with a chi1, as in `motion`, Å.
    """
    system, random = backmapper.system, np.random.default_rng(SEED)
    protein = (system.residue_kinds == "protein")[system.atoms.residue]
    found = [[[], [], [], []] for _ in AMPLITUDES]
    for frame in frames:
        beads = backmapper.unwrap(frame.positions[system.bead_source], frame.box)
        atoms = backmapper(beads, frame.box, frame.index)
        # The same directions for every amplitude.
        direction = random.normal(size=beads.shape)
        for amplitude, (*flipped, moved, around) in zip(AMPLITUDES, found, strict=True):
            shifted = (beads + amplitude * direction).astype(np.float32)
            other = backmapper(shifted, frame.box, frame.index)
            changed = chi.flips(chi.angles(atoms), chi.angles(other))
            for parts, part in zip(flipped, changed, strict=True):
                parts.append(part)
            step = minimum_image((other - atoms)[protein], frame.box)
            moved.append(np.linalg.norm(step, axis=1))
            around.append(motion(system, beads, shifted, frame.box, frame.box)[chi.residue[0]])
    return [[np.concatenate(parts) for parts in arrays] for arrays in found]


def displaced(found: list[list[np.ndarray]]) -> list[dict]:
    """Return the answers to displacements as rows, one per amplitude."""
    return [
        {"displacement_per_axis": amplitude, "residues": len(chi1),
         "percent_chi1": _percent(chi1.sum(), len(chi1)),
         "percent_chi2": _percent(chi2.sum(), len(chi2)),
         "moved": float(np.median(around)), "atoms_median": float(np.median(moved)),
         "atoms_95_percentile": float(np.percentile(moved, 95))}
        for amplitude, (chi1, chi2, moved, around) in zip(AMPLITUDES, found, strict=True)
    ]  # fmt: skip


def _percent(part: float, whole: float) -> float | None:
    return 100.0 * float(part) / float(whole) if whole else None


def bins(counts: np.ndarray) -> list[dict]:
    """Return counts per bin as rows; the last is over all bins."""
    table = np.concatenate([counts, counts.sum(1, keepdims=True)], axis=1)
    labels = [*(f"{a:g}-{b:g}" for a, b in itertools.pairwise(EDGES[:-1])), f">{EDGES[-2]:g}"]
    return [
        {"moved": label, "pairs": int(table[0, k, 0]),
         "percent_chi1": _percent(table[0, k, 1], table[0, k, 0]),
         "percent_chi2": _percent(table[1, k, 1], table[1, k, 0])}
        for k, label in enumerate([*labels, "all"])
    ]  # fmt: skip


def to_text(name: str, result: dict) -> str:
    """Return one result as two tables."""
    lines = [
        f"== {name}",
        f"{'beads moved, Å':>16s}{'residue pairs':>15s}{'% chi1':>9s}{'% chi2':>9s}",
        *(f"{row['moved']:>16s}{row['pairs']:15d}{_cell(row['percent_chi1'])}"
          f"{_cell(row['percent_chi2'])}" for row in result["consecutive"]),
        f"{'displaced, Å':>16s}{'residues':>15s}{'% chi1':>9s}{'% chi2':>9s}"
        "   median around, Å   atoms moved, Å: median  95 %",
        *(f"{row['displacement_per_axis']:16.2f}{row['residues']:15d}{_cell(row['percent_chi1'])}"
          f"{_cell(row['percent_chi2'])}{row['moved']:19.3f}{row['atoms_median']:25.3f}"
          f"{row['atoms_95_percentile']:6.2f}" for row in result["controlled"]),
    ]  # fmt: skip
    return "\n".join(lines)


def _cell(percent: float | None) -> str:
    return f"{'-':>9s}" if percent is None else f"{percent:9.2f}"


def plot(results: dict, path: Path) -> None:
    """Draw rotamer changes against bead motion, and both answers to a displacement."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    frames, rotamers, atoms = figure.subplots(1, 3)
    for name, result in results.items():
        style = {"label": name, "color": "black" if name == "all" else None}
        rows = result["consecutive"][:-1]
        frames.plot([row["moved"] for row in rows],
                    [np.nan if row["percent_chi1"] is None else row["percent_chi1"]
                     for row in rows], ".-", **style)  # fmt: skip
        given = [row["displacement_per_axis"] for row in result["controlled"]]
        for axis, key in ((rotamers, "percent_chi1"), (atoms, "atoms_median")):
            values = [row[key] for row in result["controlled"]]
            axis.plot(given, [np.nan if v is None else v for v in values], ".-", **style)
    frames.set(xlabel="change around a residue (Å)", ylabel="chi1 changed (%)",
               title="consecutive frames")  # fmt: skip
    rotamers.set(xlabel="displacement per axis (Å)", ylabel="chi1 changed (%)",
                 title="random displacement of beads")  # fmt: skip
    atoms.set(xlabel="displacement per axis (Å)", ylabel="median of atoms (Å)",
              title="random displacement of beads")  # fmt: skip
    for axis in (frames, rotamers, atoms):
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def _name(path: Path) -> str:
    return path.resolve().parent.name if path.stem == "traj" else path.stem


@click.command()
@click.argument("trajectories", nargs=-1, required=True,
                type=click.Path(exists=True, dir_okay=False, path_type=Path))  # fmt: skip
@click.option("--every", type=click.IntRange(1), default=1, show_default=True,
              help="Use every n-th frame.")  # fmt: skip
@click.option("--displace", type=click.IntRange(1), default=5, show_default=True,
              help="Frames per trajectory for the controlled test.")  # fmt: skip
@click.option("--model", default="martini3", show_default=True, metavar="NAME|PATH")
@click.option("--threads", type=click.IntRange(1), default=None)
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw a PNG there.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the numbers there.")
def main(trajectories: tuple[Path, ...], every: int, displace: int, model: str,
         threads: int | None, picture: Path | None, output: Path | None) -> None:  # fmt: skip
    """Count rotamer changes of backmapped side chains against the motion of beads."""
    set_threads(threads)
    weights = load(resolve(model))
    results, counts, found = {}, [], []
    for path in trajectories:
        # The topology is found beside the trajectory.
        source = CGSource.open(path)
        backmapper = inspected(Backmapper(lay_out(source), weights, HEAVY), source)
        chi, name = Chi(backmapper.system), _name(path)
        if not len(chi.rows[0]):
            raise click.ClickException(f"{path}: no residue has a chi1")
        frames = progress(source.frames(None, None, every), name)
        counts.append(consecutive(backmapper, chi, frames))
        found.append(controlled(backmapper, chi, source.sample(displace)))
        results[name] = {"consecutive": bins(counts[-1]), "controlled": displaced(found[-1])}
        click.echo(to_text(name, results[name]))
    if len(trajectories) > 1:
        joined = [[np.concatenate(parts) for parts in zip(*arrays, strict=True)]
                  for arrays in zip(*found, strict=True)]  # fmt: skip
        results["all"] = {"consecutive": bins(np.sum(counts, axis=0)),
                          "controlled": displaced(joined)}  # fmt: skip
        click.echo(to_text("all", results["all"]))
    if picture:
        plot(results, picture)
    if output:
        card = {"model": weights.card.get("name"), "date": weights.card.get("date")}
        output.write_text(json.dumps({**card, "trajectories": results}, indent=1))


if __name__ == "__main__":
    main()
