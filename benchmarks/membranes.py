"""A backmapped membrane beside an atomistic one: what an analysis would make of it.

* order parameters of the tails' carbons: S_CD = <3 cos²θ - 1> / 2 of the angle between C-H and
  the membrane normal z. Hydrogens are not in the files: for both membranes they are put where the
  heavy neighbours leave room, CH2 with H-C-H of 109.5°, CH opposite to its neighbours;
* radial distribution functions of P, N and tail ends, in the plane of each leaflet or in space;
* area per lipid, thickness, and gauche fractions of the tails.

    mdbackmap convert cg.xtc -o aa.xtc
    python -m benchmarks.membranes aa.xtc --top aa.pdb --reference atomistic.gro --plot page.png

The membranes must lie in the xy plane, and what is compared are the species both have.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from mdbackmap.cli.common import progress
from mdbackmap.geometry.boxes import heights, minimum_image
from mdbackmap.io.prepare import systems
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import System
from mdbackmap.mapping.template import Template
from mdbackmap.validation import measures
from mdbackmap.validation.contacts import close_pairs

from benchmarks.lipids import (
    Species,
    is_gauche,
    lipids_of,
    neighbours,
    over_molecules,
    species,
    tail_of,
)

HALF_ANGLE = np.radians(109.5 / 2)
"""Of H-C-H."""
REACH, WIDTH = 15.0, 0.5
"""Å: how far radial distribution functions go, and their bins."""
TALL = 1e4
"""Å; height of the box in which leaflets are flat."""


class Shown(NamedTuple):
    """How a result that has a value for every place along the tails is shown.

    Attributes
    ----------
    place, value : str
        Keys of its rows.
    title : str
    sign, digits : int
    """

    place: str
    value: str
    title: str
    sign: int
    digits: int


ALONG_TAILS = {
    "order": Shown("carbon", "value", "-S_CD", -1, 3),
    "torsions": Shown("bond", "percent", "%", 1, 1),
}


@dataclass(frozen=True, eq=False)
class Carbons:
    """Tail carbons with one or two hydrogens, in order along each tail.

    Attributes
    ----------
    centres : ndarray, shape=(m,), int64
    bonded : ndarray, shape=(m, 3), int64
        Heavy neighbours; the carbon itself where it has but two.
    n_hydrogens : ndarray, shape=(m,), int64
    tails : ndarray, shape=(m,), str
    """

    centres: np.ndarray
    bonded: np.ndarray
    n_hydrogens: np.ndarray
    tails: np.ndarray


@functools.cache
def carbons(template: Template) -> Carbons:
    """Find the carbons whose order parameters are measured."""
    kind, bonded = species(template), neighbours(template)
    tails = np.array([tail_of(bead) for bead in kind.beads], dtype=str)
    found = [
        c for c in np.flatnonzero(kind.in_tail & (template.elements == "C"))
        if len(bonded[c]) > 1 and template.n_hydrogens[c] in (1, 2)
    ]  # fmt: skip
    found.sort(key=lambda c: (tails[c], kind.depth[c], c))
    centres = np.array(found, dtype=np.int64)
    rows = [[*sorted(bonded[c]), c][:3] for c in found]
    return Carbons(centres, np.array(rows, dtype=np.int64).reshape(-1, 3),
                   template.n_hydrogens[centres], tails[centres])  # fmt: skip


def hydrogen_directions(vectors: np.ndarray, n_hydrogens: np.ndarray) -> np.ndarray:
    """Return where the hydrogens of carbons point.

    Parameters
    ----------
    vectors : ndarray, shape=(..., 3, 3), Å
        From each carbon to its heavy neighbours, zero for a third one that is not there.
    n_hydrogens : ndarray, shape=(...,), int64
        1 or 2.

    Returns
    -------
    ndarray, shape=(..., 2, 3)
        Unit vectors, twice the same for a single hydrogen.
    """
    unit = _unit(vectors)
    away = _unit(-unit.sum(axis=-2))
    across = _unit(np.cross(unit[..., 0, :], unit[..., 1, :]))
    half = np.where(n_hydrogens == 2, HALF_ANGLE, 0.0)[..., None]
    return np.stack(
        [np.cos(half) * away + np.sin(half) * across, np.cos(half) * away - np.sin(half) * across],
        axis=-2,
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(size > 0, size, 1.0)


def order_parameters(
    positions: np.ndarray, starts: np.ndarray, which: Carbons, box: np.ndarray | None
) -> np.ndarray:
    """Return S_CD of every molecule's carbons about z, shape (n, m).

    Parameters
    ----------
    positions : ndarray, shape=(n_atoms, 3), Å
    starts : ndarray, shape=(n,), int64
        First atoms of the molecules.
    """
    centre = positions[starts[:, None] + which.centres]
    around = positions[starts[:, None, None] + which.bonded]
    vectors = minimum_image(around - centre[:, :, None], box)
    directions = hydrogen_directions(vectors, which.n_hydrogens)
    return (1.5 * directions[..., 2] ** 2 - 0.5).mean(axis=-1)


class Distribution:
    """A radial distribution function, added up over frames.

    Parameters
    ----------
    dimensions : int
        2: within the plane xy; 3: in space.
    """

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.edges = np.arange(0.0, REACH + WIDTH / 2, WIDTH)
        self.pairs = np.zeros(len(self.edges) - 1)
        self.expected = np.zeros(len(self.edges) - 1)

    def add(self, points: np.ndarray, box: np.ndarray) -> None:
        """Add one set of points, shape (n, 3), Å."""
        if len(points) < 2:
            return
        if self.dimensions == 2:
            points = points * [1.0, 1.0, 0.0]
            box = np.array([box[0], box[1], [0.0, 0.0, TALL]])
        reach = min(REACH, heights(box).min() / 2)
        distance = close_pairs(points, box, reach)[2]
        # Beyond half the box nothing is known.
        known = self.edges[1:] <= reach
        self.pairs += np.where(known, np.histogram(distance, self.edges)[0], 0)
        size = np.pi * self.edges**2 if self.dimensions == 2 else 4 / 3 * np.pi * self.edges**3
        whole = abs(np.linalg.det(box)) / (TALL if self.dimensions == 2 else 1.0)
        n_pairs = len(points) * (len(points) - 1) / 2
        self.expected += np.where(known, n_pairs * np.diff(size) / whole, 0.0)

    def values(self) -> np.ndarray:
        """Return g at the middle of each bin; NaN where nothing is known."""
        none = self.expected == 0
        return np.where(none, np.nan, self.pairs / np.where(none, 1.0, self.expected))


class Membrane:
    """What is measured of a membrane, or of several alike, added up over frames.

    Parameters
    ----------
    dimensions : int
        Of the radial distribution functions.
    """

    def __init__(self, dimensions: int = 2) -> None:
        self.dimensions = dimensions
        self.kinds: dict[str, Species] = {}
        # By species: of each source the sum over its frames, one row per molecule.
        self.order: dict[str, dict[str, np.ndarray]] = {}
        self.gauche: dict[str, dict[str, np.ndarray]] = {}
        self.frames: dict[str, int] = {}
        self.distributions: dict[str, Distribution] = {}
        self.areas: list[float] = []
        self.thickness: list[float] = []
        self.leaflets: list[tuple[int, int]] = []

    def add(self, source: str, system: System, positions: np.ndarray, box: np.ndarray) -> None:
        """Add one frame; molecules must be whole.

        Parameters
        ----------
        source : str
            The file it is of, whose frames have the same molecules.
        system : System
        positions : ndarray, shape=(n_atoms, 3), Å
        box : ndarray, shape=(3, 3), Å
        """
        self.frames[source] = self.frames.get(source, 0) + 1
        for kind, starts in lipids_of(system):
            name = kind.name
            self.kinds[name] = kind
            order = order_parameters(positions, starts, carbons(kind.template), box)
            torsion = over_molecules(measures.torsions, positions, starts, kind.torsions, box)
            state = is_gauche(torsion, kind.skew)
            for kept, value in ((self.order, order), (self.gauche, state)):
                sums = kept.setdefault(name, {})
                sums[source] = sums.get(source, 0.0) + value
        upper, lipid = leaflets(system, positions)
        n_upper = int(upper.sum())
        if self.frames[source] == 1:
            self.leaflets.append((n_upper, len(upper) - n_upper))
        area = abs(np.linalg.det(box[:2, :2]))
        self.areas.append(area * 2 / len(upper))
        self.thickness.append(_thickness(system, positions, box, upper, lipid))
        for title, atoms in groups(system).items():
            found = self.distributions.setdefault(title, Distribution(self.dimensions))
            side = upper[lipid[atoms]]
            flat = self.dimensions == 2
            for points in (atoms[side], atoms[~side]) if flat else (atoms,):
                found.add(positions[points], box)

    def to_json(self) -> dict[str, Any]:
        """Return all results as plain numbers, strings, lists and dicts."""
        return {
            "frames": sum(self.frames.values()),
            "lipids_per_leaflet": [list(numbers) for numbers in self.leaflets],
            "area_per_lipid": _mean(self.areas),
            "thickness": _mean(self.thickness),
            "species": {name: self._of_species(name) for name in sorted(self.kinds)},
            "rdf": {
                title: {
                    "r": ((found.edges[1:] + found.edges[:-1]) / 2).tolist(),
                    "g": [float(g) if np.isfinite(g) else None for g in found.values()],
                }
                for title, found in self.distributions.items()
            },
        }

    def _of_species(self, name: str) -> dict[str, Any]:
        kind = self.kinds[name]
        which = carbons(kind.template)
        order, gauche = (
            np.concatenate([total / self.frames[source] for source, total in kept[name].items()])
            for kept in (self.order, self.gauche)
        )
        root = np.sqrt(len(order))
        return {
            "molecules": len(order),
            "order": [
                {"carbon": kind.label([c]), "tail": str(which.tails[k]), "place":
                 int(kind.depth[c]), "value": float(order[:, k].mean()),
                 "standard_error": float(order[:, k].std() / root)}
                for k, c in enumerate(which.centres)
            ],
            "torsions": [
                {"bond": kind.label(row[1:3]), "tail": str(kind.tails[k]), "place":
                 int(kind.depth[row[1:3]].min()), "state": "skew" if kind.skew[k] else "gauche",
                 "percent": float(100 * gauche[:, k].mean()),
                 "standard_error": float(100 * gauche[:, k].std() / root)}
                for k, row in enumerate(kind.torsions)
            ],
        }  # fmt: skip


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def leaflets(system: System, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell the leaflets apart by which end of each molecule is up.

    Returns
    -------
    upper : ndarray, shape=(n_lipids,), bool
        Whether the head is above the tails.
    lipid : ndarray, shape=(n_atoms,), int64
        The lipid each atom is of, -1 for none.
    """
    lipid = np.full(system.n_atoms, -1, dtype=np.int64)
    upper: list[np.ndarray] = []
    count = 0
    for kind, starts in lipids_of(system):
        where = starts[:, None] + np.arange(kind.template.n_atoms)
        lipid[where] = count + np.arange(len(starts))[:, None]
        count += len(starts)
        # A sterol has no head of its own: its rings are nearer to it than its side chain.
        tail = kind.in_tail
        height = positions[where, 2]
        upper.append(height[:, ~tail].mean(axis=1) > height[:, tail].mean(axis=1))
    return np.concatenate(upper), lipid


def _thickness(
    system: System, positions: np.ndarray, box: np.ndarray, upper: np.ndarray, lipid: np.ndarray
) -> float:
    """Distance between the mean planes of P of the leaflets, Å, across whichever face is nearer."""
    ends = groups(system)
    tails = np.concatenate([atoms for title, atoms in ends.items() if title.startswith("end")])
    phosphorus = ends.get("P-P", np.zeros(0, dtype=np.int64))
    if not len(phosphorus):
        return float("nan")
    tall = box[2, 2]
    turn = 2 * np.pi / tall
    middle = np.angle(np.exp(1j * turn * positions[tails, 2]).mean()) / turn
    height = positions[phosphorus, 2] - middle
    height -= tall * np.round(height / tall)
    side = upper[lipid[phosphorus]]
    return float(height[side].mean() - height[~side].mean())


def groups(system: System) -> dict[str, np.ndarray]:
    """Return the atoms whose radial distribution functions are measured, int64 by title."""
    found: dict[str, list[np.ndarray]] = {}
    for kind, starts in lipids_of(system):
        if not (kind.parts == "tails").any():
            continue
        template, bonded = kind.template, neighbours(kind.template)
        ends = [a for a in np.flatnonzero(kind.in_tail) if len(bonded[a]) == 1]
        head = kind.parts == "head"
        chosen = {
            "P-P": np.flatnonzero(head & (template.elements == "P")),
            "N-N": np.flatnonzero(head & (template.elements == "N")),
            **{f"ends of tails {tail_of(kind.beads[a])}": np.array([a]) for a in ends},
        }
        for title, atoms in chosen.items():
            if len(atoms):
                found.setdefault(title, []).append((starts[:, None] + atoms).ravel())
    return {title: np.concatenate(atoms) for title, atoms in found.items()}


def measure(
    sources: list[tuple[Path, Path | None]], library: Library, dimensions: int, stride: int,
    stop: int | None,
) -> Membrane:  # fmt: skip
    """Measure the frames of files, each a topology and perhaps a trajectory.

    Raises
    ------
    click.UsageError
        A frame has no box, so there is no area.
    """
    membrane = Membrane(dimensions)
    for topology, trajectory in sources:
        frames = islice(systems(topology, trajectory, library, stride=stride), stop)
        for system, positions, box, _ in progress(frames, topology.stem):
            if box is None:
                raise click.UsageError(f"{trajectory or topology}: has no box, which areas need")
            membrane.add(str(topology), system, positions, box)
    return membrane


def compare(given: dict[str, Any], true: dict[str, Any]) -> dict[str, Any]:
    """Return how far the results of one membrane are from those of another."""
    result: dict[str, Any] = {
        key: given[key] - true[key] for key in ("area_per_lipid", "thickness")
    }
    for what, shown in ALONG_TAILS.items():
        for name in sorted(given["species"].keys() & true["species"].keys()):
            rows = _side_by_side(given, true, name, what)
            for tail in sorted({row["tail"] for row, _ in rows}):
                off = [row[shown.value] - other[shown.value] for row, other in rows
                       if row["tail"] == tail and row.get("state") != "skew"]  # fmt: skip
                if off:
                    result.setdefault(what, {})[f"{name} {tail}".strip()] = {
                        "rms": float(np.sqrt(np.mean(np.square(off)))),
                        "largest": float(max(off, key=abs)),
                    }
    result["rdf"] = {
        title: {"rms": _rms(given["rdf"][title]["g"], true["rdf"][title]["g"]),
                "peak": _peak(given["rdf"][title]), "peak_reference": _peak(true["rdf"][title])}
        for title in given["rdf"] if title in true["rdf"]
    }  # fmt: skip
    return result


def _side_by_side(given: dict, true: dict, name: str, what: str) -> list[tuple[dict, dict]]:
    """Rows of one species in both membranes; both follow the same template."""
    return list(zip(given["species"][name][what], true["species"][name][what], strict=True))


def _rms(first: list[float | None], second: list[float | None]) -> float:
    off = np.array(first, dtype=float) - np.array(second, dtype=float)
    return float(np.sqrt(np.nanmean(off**2)))


def _peak(curve: dict[str, list]) -> list[float]:
    """Where the highest peak is, and how high, Å and 1."""
    g = np.array(curve["g"], dtype=float)
    k = int(np.nanargmax(g))
    return [curve["r"][k], float(g[k])]


def text(given: dict[str, Any], true: dict[str, Any]) -> str:
    """Return the tables for people."""
    off = compare(given, true)
    lines = [f"{'':<26}{'given':>12}{'reference':>12}{'difference':>12}"]
    lines += [f"{'frames':<26}{given['frames']:>12}{true['frames']:>12}"]
    lines += [
        f"{label:<26}{given[key]:>12.2f}{true[key]:>12.2f}{off[key]:>+12.2f}"
        for key, label in (("area_per_lipid", "area per lipid, Å²"),
                           ("thickness", "thickness (P to P), Å"))
    ]  # fmt: skip
    for what, title, digits in (
        ("order", "-S_CD", 3), ("torsions", "gauche, % (skew beside double bonds, not summed)", 1)
    ):  # fmt: skip
        lines += ["", f"{title}, differences by tail"]
        lines += [f"{name:<26}rms {d['rms']:.{digits}f}   largest {abs(d['largest']):.{digits}f}"
                  for name, d in off.get(what, {}).items()]  # fmt: skip
    lines += ["", f"{'g(r)':<26}{'rms':>8}{'peak given':>20}{'peak reference':>20}"]
    for title, d in off["rdf"].items():
        peaks = [f"{g:.2f} at {r:.2f} Å" for r, g in (d["peak"], d["peak_reference"])]
        lines.append(f"{title:<26}{d['rms']:>8.2f}{peaks[0]:>20}{peaks[1]:>20}")
    for name in sorted(given["species"].keys() & true["species"].keys()):
        for what in ALONG_TAILS:
            lines += ["", *_rows(given, true, name, what)]
    return "\n".join(lines)


def _rows(given: dict, true: dict, name: str, what: str) -> list[str]:
    place, value, title, sign, digits = ALONG_TAILS[what]
    rows = [f"{name:<8}{place:<12}{title:>8}{'±':>8}{'reference':>12}{'±':>8}{'off':>9}"]
    for here, other in _side_by_side(given, true, name, what):
        ours, theirs = sign * here[value], sign * other[value]
        rows.append(
            f"{'':<8}{here[place]:<12}{ours:>8.{digits}f}{here['standard_error']:>8.{digits}f}"
            f"{theirs:>12.{digits}f}{other['standard_error']:>8.{digits}f}"
            f"{ours - theirs:>+9.{digits}f}  {here.get('state', '')}".rstrip()
        )
    return rows


def plot(given: dict[str, Any], true: dict[str, Any], path: str | Path) -> None:
    """Draw one page: order parameters, gauche fractions, radial distribution functions."""
    from matplotlib.figure import Figure

    panels = [
        (name, tail, what)
        for name in sorted(given["species"].keys() & true["species"].keys())
        for what in ALONG_TAILS
        for tail in sorted({row["tail"] for row in given["species"][name][what]})
    ]
    titles = [title for title in given["rdf"] if title in true["rdf"]]
    n_rows = -(-(len(panels) + len(titles)) // 4)
    figure = Figure(figsize=(14, 3.4 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, 4, squeeze=False).ravel()
    sides = (("atomistic", true, "0.35", "s"), ("backmapped", given, "#c44e52", "o"))
    for axis, (name, tail, what) in zip(axes, panels, strict=False):
        for label, results, colour, marker in sides:
            rows = [r for r in results["species"][name][what] if r["tail"] == tail]
            _, key, _, sign, _ = ALONG_TAILS[what]
            # Torsions lie between the carbons they turn about.
            place = [r["place"] + (0.0 if what == "order" else 0.5) for r in rows]
            axis.errorbar(place, [sign * r[key] for r in rows],
                          yerr=[r["standard_error"] for r in rows], color=colour, marker=marker,
                          markersize=4, linewidth=1.2, label=label)  # fmt: skip
        label = "$-S_{CD}$" if what == "order" else "gauche or skew, %"
        axis.set(title=f"{name} {tail and f'tail {tail}'}", xlabel="place along the tail",
                 ylabel=label)  # fmt: skip
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8)
    for axis, title in zip(axes[len(panels) :], titles, strict=False):
        for label, results, colour, _ in sides:
            curve = results["rdf"][title]
            axis.plot(curve["r"], np.array(curve["g"], dtype=float), color=colour, label=label)
        axis.axhline(1.0, color="0.8", linewidth=0.8, zorder=0)
        axis.set(title=title, xlabel="r, Å", ylabel="g(r)", xlim=(0, REACH))
        axis.legend(fontsize=8)
    for axis in axes[len(panels) + len(titles) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=100)


def _references(
    ctx: click.Context, option: click.Parameter, given: tuple[str, ...]
) -> list[tuple[Path, Path | None]]:
    sources = []
    for text in given:
        paths = [Path(part) for part in text.split(",")]
        missing = [str(path) for path in paths if not path.is_file()]
        if missing or len(paths) > 2:
            raise click.BadParameter(
                f"expected FILE or TOPOLOGY,TRAJECTORY; no such file: {', '.join(missing) or text}"
            )
        sources.append((paths[0], paths[1] if len(paths) > 1 else None))
    return sources


@click.command()
@click.argument("trajectory", type=click.Path(exists=True, dir_okay=False))
@click.option("--top", required=True, type=click.Path(exists=True, dir_okay=False),
              help="Its topology.")  # fmt: skip
@click.option("--reference", "references", required=True, multiple=True, callback=_references,
              metavar="REF[,TRAJECTORY]", help="An atomistic membrane; repeatable.")  # fmt: skip
@click.option("--mapping", default="martini3", show_default=True)
@click.option("--dimensions", type=click.Choice(["2", "3"]), default="2", show_default=True,
              help="Of g(r): in the plane of each leaflet, or in space.")  # fmt: skip
@click.option("--stride", type=click.IntRange(1), default=1, help="Use every n-th frame.")
@click.option("--stop", type=click.IntRange(1), help="Use no more frames of a file.")
@click.option("--json", "output", type=click.Path())
@click.option("--plot", "picture", type=click.Path(), help="PNG to draw.")
def main(trajectory, top, references, mapping, dimensions, stride, stop, output,
         picture) -> None:  # fmt: skip
    """Compare a backmapped membrane in TRAJECTORY with an atomistic one."""
    library = Library.load([mapping])
    rest = (library, int(dimensions), stride, stop)
    given = measure([(Path(top), Path(trajectory))], *rest).to_json()
    true = measure(references, *rest).to_json()
    click.echo(text(given, true))
    if picture:
        plot(given, true, picture)
    if output:
        everything = {"given": given, "reference": true, "differences": compare(given, true)}
        Path(output).write_text(json.dumps(everything, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
