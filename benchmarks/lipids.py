"""Lipids atom by atom: how far from the structures they were mapped from, and what is wrong.

Every frame takes the road of `benchmarks.accuracy`: mapped to beads, laid out from bead names and
positions alone, backmapped with its surroundings, idealised, compared without superposition. What
the structures themselves have is given in brackets: no force field keeps to the ideal geometry.

    python -m benchmarks.lipids lipids/test/*.gro --totals lipids/totals.tsv --json lipids.json

A trajectory of the same name beside a file (.xtc) is read with it.
"""

from __future__ import annotations

import csv
import functools
import json
import logging
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from mdbackmap.cli.common import progress, set_threads
from mdbackmap.geometry.boxes import minimum_image
from mdbackmap.geometry.rings import RING_SIZES
from mdbackmap.graph.neighbours import close_pairs
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import System
from mdbackmap.mapping.template import Template
from mdbackmap.models.checkpoint import load
from mdbackmap.models.library import resolve
from mdbackmap.pipeline import Options
from mdbackmap.validation import Checker, measures, rmsd
from mdbackmap.validation.checks import ANGLE_TOLERANCE, BOND_TOLERANCE, STEREO_VOLUME

from benchmarks.accuracy import backmap_structure, known_systems

GLYCEROL = re.compile(r"(GL(?!0)|AM|OH)\w+$")
"""Beads between head and tails: glycerol with its esters, or the like of it in sphingolipids; GL0
is the head of PG."""
TAIL = re.compile(r"[A-Z]\d([A-Z]\d?)$")
"""Tail beads; the group says which tail."""
PARTS = ("head", "glycerol", "tails", "rings", "side chain")
"""Of a molecule; the last two are what sterols have."""
TAILS = ("tails", "side chain")
GAUCHE, COLLAPSED = 120.0, 30.0
"""Degrees: a torsion nearer to cis than this is gauche; no chain is as near to cis as the other."""
SKEW = (60.0, 150.0)
"""Degrees between which a torsion beside a double bond is skew, as nearly all are."""
OVERLAP = 2.0
"""Å between atoms of two molecules, nearer than which neither can be right."""
SHORT = 2.3
"""Å between atoms two bonds apart in a chain; 2.5 is usual."""
BARS = {
    "all": 0.95, "head": 0.8, "glycerol": 0.8, "sterol": 0.5, "rings": 0.15,
    "bonds": 0.05, "angles": 0.5, "gauche": 5.0, "methyls": 2.3,
}  # fmt: skip
"""Å; % of bonds and angles; percentage points; Å the methyls of a choline must be apart.
What has no bar here must be zero."""
FEW = 10
"""Molecules below which fractions of a species are left out of the list of the worst."""
ENOUGH = 50
"""Molecules of training that a species needs for its RMSD to have a bar."""
MUST_BE_ZERO = {
    "stereocentres": "stereocentres", "double_bonds": "C=C", "esters": "esters",
    "pierced_rings": "pierced", "collapsed": "collapsed", "short": "1-3",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Species:
    """What is measured in the molecules of one template; atoms count from the first of each.

    Attributes
    ----------
    name : str
    parts, beads : ndarray, shape=(n_atoms,), str
        One of `PARTS`, and the bead of each atom.
    depth : ndarray, shape=(n_atoms,), int64
        Bonds to the nearest atom that is of no tail.
    torsions : ndarray, shape=(t, 4), int64
        One torsion for every single bond along the tails, from the head on.
    tails : ndarray, shape=(t,), str
        The tail of each: A, B, ...; empty in a sterol.
    skew : ndarray, shape=(t,), bool
        Those beside a double bond, which are neither gauche nor anti.
    triples : ndarray, shape=(k, 3), int64
        Carbons in a row along the tails.
    methyls : ndarray, shape=(m, 3), int64
        Methyl carbons of cholines.
    rings : ndarray, shape=(r,), int64
        Atoms of the fused rings.
    unsaturated : ndarray, shape=(len(template.constraints.torsions),), bool
        Which of the template's torsions are about C=C; the others are of esters and amides.
    """

    template: Template
    name: str
    parts: np.ndarray
    beads: np.ndarray
    depth: np.ndarray
    torsions: np.ndarray
    tails: np.ndarray
    skew: np.ndarray
    triples: np.ndarray
    methyls: np.ndarray
    rings: np.ndarray
    unsaturated: np.ndarray

    @property
    def in_tail(self) -> np.ndarray:
        """Atoms of tails, and of the side chain of a sterol, shape=(n_atoms,), bool."""
        return np.isin(self.parts, TAILS)

    def label(self, row: Iterable[int]) -> str:
        """Name atoms of one row, such as ``C22-C23``."""
        return "-".join(self.template.names[list(row)].tolist())


@functools.cache
def species(template: Template) -> Species:
    """Work out what to measure in the molecules of a template."""
    ideal = template.constraints
    carbon = template.elements == "C"
    bonded = neighbours(template)
    beads = np.array(template.bead_names)[template.atom_bead]
    rings = _ring_atoms(bonded)
    parts = _parts(template, beads, rings)
    depth = _from_head(bonded, parts)
    torsions, skew = _tail_torsions(template, bonded, parts, depth)
    tails = np.array([tail_of(beads[row[1]]) for row in torsions], dtype=str)
    order = np.lexsort((depth[torsions[:, 1:3]].min(axis=1), tails))
    in_tail = np.isin(parts, TAILS)
    triples = ideal.angles[in_tail[ideal.angles[:, 1]] & carbon[ideal.angles].all(axis=1)]
    cholines = [
        [a for a in sorted(bonded[n]) if carbon[a] and len(bonded[a]) == 1]
        for n in np.flatnonzero(template.elements == "N")
    ]
    double = {frozenset(b) for b in ideal.bonds[ideal.bond_order == 2].tolist()}
    unsaturated = [frozenset(row[1:3]) in double for row in ideal.torsions.tolist()]
    return Species(
        template, template.residue, parts, beads, depth, torsions[order], tails[order], skew[order],
        triples, np.array([c for c in cholines if len(c) == 3], np.int64).reshape(-1, 3),
        np.array(sorted(rings), np.int64), np.array(unsaturated, dtype=bool),
    )  # fmt: skip


def tail_of(bead: str) -> str:
    """Return the letter of a tail bead's tail, empty where it has none.

    >>> tail_of("D2A"), tail_of("C1")
    ('A', '')
    """
    found = TAIL.match(bead)
    return found[1] if found else ""


def neighbours(template: Template) -> list[set[int]]:
    """Return the atoms bonded to each atom of a template."""
    bonded: list[set[int]] = [set() for _ in range(template.n_atoms)]
    for i, j in template.constraints.bonds.tolist():
        bonded[i].add(j)
        bonded[j].add(i)
    return bonded


def _ring_atoms(bonded: list[set[int]]) -> set[int]:
    """Atoms that bonds lead back to without turning, within the largest ring."""

    def leads_back(path: list[int]) -> bool:
        if len(path) > max(RING_SIZES):
            return False
        if len(path) > 2 and path[0] in bonded[path[-1]]:
            return True
        return any(leads_back([*path, a]) for a in bonded[path[-1]] if a not in path)

    return {atom for atom in range(len(bonded)) if leads_back([atom])}


def _parts(template: Template, beads: np.ndarray, rings: set[int]) -> np.ndarray:
    names = list(template.bead_names)
    middle = [k for k, name in enumerate(names) if GLYCEROL.match(name)]
    if not middle:
        return np.array(["rings" if a in rings else "side chain" for a in range(len(beads))])
    # A cardiolipin has a second phosphate after its first tails.
    phosphate = set(beads[template.elements == "P"])
    part = {
        name: "glycerol" if k in middle
        else "head" if k < middle[0] or name in phosphate
        else "tails"
        for k, name in enumerate(names)
    }  # fmt: skip
    return np.array([part[bead] for bead in beads])


def _from_head(bonded: list[set[int]], parts: np.ndarray) -> np.ndarray:
    """Bonds from each atom to the nearest that is of no tail, shape (n_atoms,)."""
    far = np.where(np.isin(parts, TAILS), len(parts), 0)
    queue = deque(np.flatnonzero(far == 0).tolist())
    while queue:
        here = queue.popleft()
        for atom in bonded[here]:
            if far[atom] > far[here] + 1:
                far[atom] = far[here] + 1
                queue.append(atom)
    return far


def _tail_torsions(
    template: Template, bonded: list[set[int]], parts: np.ndarray, depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One torsion per single bond between tail carbons, and whether it is beside a double bond."""
    ideal = template.constraints
    carbon = template.elements == "C"
    flat = set(ideal.bonds[ideal.bond_order > 1].ravel().tolist())
    alike = {a for swap in template.swaps for a in np.flatnonzero(swap != np.arange(len(swap)))}
    rows, skew = [], []
    for bond, order in zip(ideal.bonds.tolist(), ideal.bond_order, strict=True):
        j, k = sorted(bond, key=lambda a: (depth[a], a))
        if order != 1 or not {parts[j], parts[k]} <= set(TAILS):
            continue
        # Ends that may exchange names say nothing about the bond.
        ends = [
            sorted(a for a in bonded[x] - {y} if carbon[a] and a not in alike)
            for x, y in ((j, k), (k, j))
        ]
        if all(ends) and carbon[[j, k]].all():
            rows.append([ends[0][0], j, k, ends[1][0]])
            skew.append(bool({j, k} & flat))
    return np.array(rows, dtype=np.int64).reshape(-1, 4), np.array(skew, dtype=bool)


def lipids_of(system: System) -> Iterator[tuple[Species, np.ndarray]]:
    """Yield each species of lipid with the first atoms of its molecules, shape (n,), int64."""
    starts = np.searchsorted(system.atoms.residue, np.arange(len(system.residue_template)))
    for number, template in enumerate(system.templates):
        here = starts[system.residue_template == number]
        if template.kind == "lipid" and len(here):
            yield species(template), here


def over_molecules(
    measure: Callable, positions: np.ndarray, starts: np.ndarray, rows: np.ndarray, box
) -> np.ndarray:
    """Measure the same rows of atoms in every molecule.

    Parameters
    ----------
    measure : callable
        One of `mdbackmap.validation.measures`.
    positions : ndarray, shape=(n_atoms, 3), Å
    starts : ndarray, shape=(n,), int64
    rows : ndarray, shape=(m, k), int64

    Returns
    -------
    ndarray, shape=(n, m)
    """
    everywhere = (starts[:, None, None] + rows).reshape(-1, rows.shape[1])
    return measure(positions, everywhere, box).reshape(len(starts), len(rows))


def is_gauche(torsions: np.ndarray, skew: np.ndarray) -> np.ndarray:
    """Return 1 for gauche torsions (skew ones beside double bonds), 0 for others, NaN for NaN.

    Parameters
    ----------
    torsions : ndarray, shape=(n, t), degrees
    skew : ndarray, shape=(t,), bool
    """
    size = np.abs(torsions)
    state = np.where(skew, (size > SKEW[0]) & (size < SKEW[1]), size < GAUCHE)
    return np.where(np.isfinite(size), state, np.nan)


def same_rotamer(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return 1 where two torsions are of one rotamer (anti, g+, g-), 0 elsewhere, NaN for NaN."""
    state = [np.where(np.abs(t) < GAUCHE, np.sign(t), 0.0) for t in (first, second)]
    return np.where(np.isfinite(first + second), state[0] == state[1], np.nan)


def distortion(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the RMSD of each set of points after superposition, shape (n,), Å.

    Parameters
    ----------
    points, reference : ndarray, shape=(n, k, 3), Å
    """
    points, reference = (p - p.mean(axis=1, keepdims=True) for p in (points, reference))
    covariance = np.einsum("nki,nkj->nij", points, reference)
    sizes = np.linalg.svd(covariance, compute_uv=False)
    sizes[:, 2] *= np.sign(np.linalg.det(covariance))
    squared = (points**2 + reference**2).sum(axis=(1, 2)) - 2 * sizes.sum(axis=1)
    return np.sqrt(np.maximum(squared, 0.0) / points.shape[1])


class Totals:
    """Everything measured, added up over frames and files."""

    def __init__(self) -> None:
        self.species: dict[str, _OfSpecies] = {}
        self.files: dict[tuple[str, str], np.ndarray] = {}
        self.left_out: Counter[str] = Counter()

    def add(
        self, label: str, system: System, atoms: np.ndarray, reference: np.ndarray, box
    ) -> None:
        """Add one frame.

        Parameters
        ----------
        label : str
            The file it is of.
        system : System
        atoms, reference : ndarray, shape=(n_atoms, 3), Å
            NaN in the reference: not compared.
        box : ndarray, shape=(3, 3), Å, or None
        """
        squared = _squared_by_group(system, atoms, reference, box)
        checker = Checker(system)
        reports = [checker(positions, box).residues for positions in (atoms, reference)]
        for kind, starts in lipids_of(system):
            here = self.species.setdefault(kind.name, _OfSpecies(kind))
            here.molecules += len(starts)
            for group, (total, n) in squared.get(kind.name, {}).items():
                before = here.squared.get(group, (0.0, 0))
                here.squared[group] = before[0] + total, before[1] + n
            total, n = squared.get(kind.name, {}).get("all", (0.0, 0))
            before = self.files.setdefault((label, kind.name), np.zeros(3))
            before += (len(starts), total, n)
            for which, positions in enumerate((atoms, reference)):
                here.measure(which, positions, starts, box)
                here.pierced[which] += np.array(
                    reports[which][kind.name].get("pierced_rings", (0, 0))
                )
            here.measure_rings(atoms, reference, starts, box)

    def to_json(self) -> dict[str, Any]:
        """Return all results as plain numbers, strings, lists and dicts, by species."""
        return {name: here.to_json() for name, here in sorted(self.species.items())}

    def by_file(self) -> list[dict[str, Any]]:
        """Return how far each species is from the reference in each file."""
        return [
            {"file": label, "species": name, "molecules": int(molecules),
             "rmsd": float(np.sqrt(total / n)) if n else None}
            for (label, name), (molecules, total, n) in self.files.items()
        ]  # fmt: skip


def _squared_by_group(
    system: System, atoms: np.ndarray, reference: np.ndarray, box
) -> dict[str, dict[str, tuple[float, int]]]:
    """Sums of squared distances and numbers of atoms, by residue name and group of atoms."""
    part, bead = np.full((2, system.n_atoms), "", dtype="U16")
    for kind, starts in lipids_of(system):
        where = starts[:, None] + np.arange(kind.template.n_atoms)
        part[where], bead[where] = kind.parts, kind.beads
    chosen = {"all": part != ""}
    chosen |= {name: part == name for name in PARTS}
    chosen |= {f"bead {name}": bead == name for name in np.unique(bead[bead != ""])}
    known = np.isfinite(reference).all(axis=1)
    result: dict[str, dict[str, tuple[float, int]]] = {}
    for group, mask in chosen.items():
        mask = mask & known
        # Equivalent atoms are of one group, so that names are exchanged as for the whole.
        value = rmsd(system, atoms, np.where(mask[:, None], reference, np.nan), box)["residues"]
        for name in np.unique(system.atoms.resnames[mask]).tolist():
            n = int((mask & (system.atoms.resnames == name)).sum())
            result.setdefault(name, {})[group] = value[name] ** 2 * n, n
    return result


class _OfSpecies:
    """Results of one species; lists of arrays hold the answer first, then the reference."""

    def __init__(self, kind: Species) -> None:
        self.kind = kind
        self.molecules = 0
        self.squared: dict[str, tuple[float, int]] = {}
        self.pierced = np.zeros((2, 2), dtype=np.int64)
        names = ("bonds", "angles", "stereo", "double", "torsions", "triples", "methyls")
        self.values: dict[str, tuple[list, list]] = {name: ([], []) for name in names}
        self.ring_distortion: list[np.ndarray] = []

    def measure(self, which: int, positions: np.ndarray, starts: np.ndarray, box) -> None:
        """Keep what there is to see in one structure."""
        kind, ideal = self.kind, self.kind.template.constraints

        def of(measure: Callable, rows: np.ndarray) -> np.ndarray:
            return over_molecules(measure, positions, starts, rows, box)

        pairs = kind.methyls[:, list(combinations(range(3), 2))].reshape(-1, 2)
        for name, value in {
            "bonds": of(measures.lengths, ideal.bonds) / ideal.bond_length - 1,
            "angles": of(measures.angles, ideal.angles) - ideal.angle,
            "stereo": of(measures.volumes, ideal.volumes[ideal.volume > STEREO_VOLUME]),
            "double": of(measures.torsions, ideal.torsions) - ideal.torsion,
            "torsions": of(measures.torsions, kind.torsions),
            "triples": of(measures.lengths, kind.triples[:, [0, 2]]),
            "methyls": of(measures.lengths, pairs),
        }.items():
            self.values[name][which].append(value.astype(np.float32))

    def measure_rings(self, atoms: np.ndarray, reference: np.ndarray, starts, box) -> None:
        """Keep how much the fused rings are distorted."""
        if not len(self.kind.rings):
            return
        where = starts[:, None] + self.kind.rings
        points = [minimum_image(p[where] - p[where[:, :1]], box) for p in (atoms, reference)]
        known = np.isfinite(points[1]).all(axis=(1, 2))
        self.ring_distortion.append(distortion(points[0][known], points[1][known]))

    def all(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return values of all molecules, of the answer and of the reference."""
        answer, reference = (np.concatenate(values) for values in self.values[name])
        return answer, reference

    def to_json(self) -> dict[str, Any]:
        kind, ideal = self.kind, self.kind.template.constraints
        stereo = ideal.volumes[ideal.volume > STEREO_VOLUME]
        double = np.cos(np.radians(self.all("double"))) < 0
        gauche = ~kind.skew
        collapsed = np.abs(np.array(self.all("torsions"))[:, :, gauche]) < COLLAPSED
        result: dict[str, Any] = {
            "molecules": self.molecules,
            "rmsd": {g: float(np.sqrt(total / n)) for g, (total, n) in self.squared.items()},
            "atoms": {g: n for g, (_, n) in self.squared.items()},
            "terms": {
                "bonds": _share(np.abs(self.all("bonds")) > BOND_TOLERANCE),
                "angles": _share(np.abs(self.all("angles")) > ANGLE_TOLERANCE),
                "stereocentres": _share(np.array(self.all("stereo")) <= 0),
                "double_bonds": _share(double[:, :, kind.unsaturated]),
                "esters": _share(double[:, :, ~kind.unsaturated]),
                "pierced_rings": _counted(self.pierced),
                "collapsed": _share(collapsed),
                "short": _share(np.array(self.all("triples")) < SHORT),
            },
            "torsions": self._torsions(),
            "worst": {
                "angles": self._worst("angles", ideal.angles, ANGLE_TOLERANCE),
                "bonds": self._worst("bonds", ideal.bonds, BOND_TOLERANCE),
                "stereocentres": [
                    {"atoms": kind.label(row[:1]), "wrong": int(n)}
                    for row, n in zip(stereo, (self.all("stereo")[0] <= 0).sum(axis=0), strict=True)
                    if n
                ],
            },
        }
        if len(kind.methyls):
            result["methyls"] = [
                {"min": float(np.nanmin(v)), "mean": float(np.nanmean(v))}
                for v in self.all("methyls")
            ]
        if self.ring_distortion:
            squared = np.concatenate(self.ring_distortion) ** 2
            result["rmsd"]["rings superposed"] = float(np.sqrt(squared.mean()))
        return result

    def _torsions(self) -> list[dict[str, Any]]:
        given, true = self.all("torsions")
        states = [is_gauche(t, self.kind.skew) for t in (given, true)]
        error = np.nanstd(states[0] - states[1], axis=0) / np.sqrt(len(given))
        middle = [np.nanmedian(np.abs(t), axis=0) for t in (given, true)]
        shares = [100 * np.nanmean(state, axis=0) for state in states]
        same = 100 * np.nanmean(same_rotamer(given, true), axis=0)
        return [
            {
                "bond": self.kind.label(row[1:3]), "tail": str(self.kind.tails[k]),
                "state": "skew" if self.kind.skew[k] else "gauche",
                "percent": float(shares[0][k]), "reference": float(shares[1][k]),
                "difference": float(shares[0][k] - shares[1][k]),
                "standard_error": float(100 * error[k]), "same_rotamer": float(same[k]),
                "median_size": float(middle[0][k]), "median_size_reference": float(middle[1][k]),
            }
            for k, row in enumerate(self.kind.torsions)
        ]  # fmt: skip

    def _worst(self, name: str, rows: np.ndarray, tolerance: float) -> list[dict[str, Any]]:
        """Rows that are off in some molecule, most often off first."""
        given, true = self.all(name)
        wrong = (np.abs(given) > tolerance).sum(axis=0)
        also = (np.abs(true) > tolerance).sum(axis=0)
        return [
            {
                "atoms": self.kind.label(rows[k]), "wrong": int(wrong[k]),
                "percent": float(100 * wrong[k] / len(given)),
                "reference": float(100 * also[k] / len(given)),
                "mean": float(np.nanmean(given[:, k])),
                "mean_reference": float(np.nanmean(true[:, k])),
            }
            for k in np.argsort(-wrong, kind="stable") if wrong[k]
        ]  # fmt: skip


def _share(wrong: np.ndarray) -> dict[str, Any]:
    """Counts of a table of answer and reference; NaN compares as sound."""
    wrong = np.asarray(wrong)
    return _counted(np.array([[w.sum(), w.size] for w in wrong]))


def _counted(counts: np.ndarray) -> dict[str, Any]:
    return {
        "wrong": int(counts[0][0]), "of": int(counts[0][1]), "reference_wrong": int(counts[1][0]),
    }  # fmt: skip


def overall(results: dict[str, Any]) -> dict[str, Any]:
    """Add up the species: RMSD over all their atoms, counts."""
    terms: dict[str, Counter] = {}
    squared: Counter[str] = Counter()
    atoms: Counter[str] = Counter()
    for result in results.values():
        for term, count in result["terms"].items():
            terms.setdefault(term, Counter()).update(count)
        for group, n in result["atoms"].items():
            if not group.startswith("bead "):
                squared[group] += result["rmsd"][group] ** 2 * n
                atoms[group] += n
    return {
        "molecules": sum(r["molecules"] for r in results.values()),
        "rmsd": {group: float(np.sqrt(squared[group] / n)) for group, n in atoms.items()},
        "terms": {term: dict(count) for term, count in terms.items()},
    }


def gauche_differences(result: dict[str, Any], tail: str | None = None) -> list[float]:
    """Return differences of the gauche fraction of one species, percentage points."""
    return [
        row["difference"] for row in result["torsions"]
        if row["state"] == "gauche" and tail in (None, row["tail"])
    ]  # fmt: skip


class Report:
    """Tables for people; values beyond their bar are marked with an exclamation mark."""

    def __init__(self, results: dict[str, Any], bars: dict[str, float], exempt: set[str]) -> None:
        self.results, self.bars, self.exempt = results, bars, exempt

    def text(self, most: int) -> str:
        """Return all tables, lists no longer than ``most``."""
        return "\n\n".join(
            [self._rmsd(), self._chemistry(), self._tails(), self._beads(),
             self._worst("angles", "°", 1.0, most), self._worst("bonds", "%", 100.0, most),
             self._worst_torsions(most)]
        )  # fmt: skip

    def _mark(self, value: float | None, bar: str, width: int = 10, *, low: bool = False) -> str:
        if value is None:
            return f"{'-':>{width}} "
        limit = self.bars.get(bar, np.inf)
        beyond = value < limit if low else abs(value) > limit
        return f"{value:>{width}.2f}" + ("!" if beyond else " ")

    def _rmsd(self) -> str:
        columns = ("all", *PARTS, "rings superposed")
        titles = ("all", "head", "glycerol", "tails", "rings", "side chain", "superposed")
        lines = ["RMSD, Å, without superposition; superposed: rings alone, after superposition",
                 f"{'':<8}{'molecules':>10}" + "".join(f"{t:>10} " for t in titles)]  # fmt: skip
        for name, result in {**self.results, "overall": overall(self.results)}.items():
            cells = "".join(
                self._mark(result["rmsd"].get(column), self._bar(name, column))
                for column in columns
            )
            star = "*" if name in self.exempt else ""
            lines.append(f"{name + star:<8}{result['molecules']:>10}{cells}")
        bars = [self.bars.get(self._bar("", column), "-") for column in columns]
        lines.append(f"{'bar':<18}" + "".join(f"{bar:>10} " for bar in bars))
        lines.append(f"{'bar of sterols':<18}{self.bars['sterol']:>10}")
        if self.exempt:
            lines.append("* no bar: too few molecules to train on")
        return "\n".join(lines)

    def _bar(self, name: str, column: str) -> str:
        """Name of the bar of one number of the table of RMSD; empty where there is none."""
        if name in self.exempt or name == "overall":
            return ""
        if column == "all" and "rings" in self.results.get(name, {}).get("rmsd", {}):
            return "sterol"
        return "rings" if column == "rings superposed" else column

    def _chemistry(self) -> str:
        head = f"{'':<8}{'bonds %':>15}{'angles %':>15}"
        lines = ["Wrong, in brackets the reference's own",
                 head + "".join(f"{t:>14}" for t in MUST_BE_ZERO.values())]  # fmt: skip
        for name, result in {**self.results, "overall": overall(self.results)}.items():
            cells = ""
            for term in ("bonds", "angles"):
                count = result["terms"][term]
                value, true = (
                    100 * count[key] / max(1, count["of"]) for key in ("wrong", "reference_wrong")
                )
                cells += f"{self._mark(value, term, 6).strip() + f' ({true:.2f})':>15}"
            for term in MUST_BE_ZERO:
                count = result["terms"][term]
                mark = "!" if count["wrong"] else ""
                text = f"{count['wrong']}{mark} ({count['reference_wrong']})"
                cells += f"{text if count['of'] else '-':>14}"
            lines.append(f"{name:<8}{cells}")
        bars = [f"{self.bars[term]:g}" for term in ("bonds", "angles")]
        lines.append(f"{'bar':<8}" + "".join(f"{b:>15}" for b in bars)
                     + f"{0:>14}" * len(MUST_BE_ZERO))  # fmt: skip
        return "\n".join(lines)

    def _tails(self) -> str:
        lines = ["Gauche fraction against the reference, percentage points; methyls of choline, Å",
                 f"{'':<8}{'tail':>6}{'torsions':>10}{'mean |d|':>11}{'largest':>11}"
                 f"{'same state %':>14}{'methyls min':>13}{'(reference)':>13}"]  # fmt: skip
        for name, result in self.results.items():
            for n, tail in enumerate(sorted({row["tail"] for row in result["torsions"]})):
                off = gauche_differences(result, tail)
                if not off:
                    continue
                same = np.mean([r["same_rotamer"] for r in result["torsions"]
                                if r["tail"] == tail and r["state"] == "gauche"])  # fmt: skip
                largest = max(off, key=abs)
                mean = float(np.mean(np.abs(off)))
                cells = self._mark(mean, "gauche") + self._mark(largest, "gauche")
                title = "" if n else name
                line = f"{title:<8}{tail or '-':>6}{len(off):>10}{cells}{same:>14.0f}"
                if "methyls" in result and not n:
                    given, true = (m["min"] for m in result["methyls"])
                    line += f"{self._mark(given, 'methyls', 12, low=True)}{true:>13.2f}"
                lines.append(line)
        lines.append(f"{'bar':<24}{'':>11}{self.bars['gauche']:>10g}{'':>15}"
                     f"{self.bars['methyls']:>12}")  # fmt: skip
        return "\n".join(lines)

    def _beads(self) -> str:
        lines = ["RMSD by bead, Å"]
        for name, result in self.results.items():
            cells = [f"{g[5:]} {v:.2f}" for g, v in result["rmsd"].items() if g.startswith("bead ")]
            lines.append(f"{name:<8}{'  '.join(cells)}")
        return "\n".join(lines)

    def _worst(self, what: str, unit: str, scale: float, most: int) -> str:
        rows = [(row["wrong"], name, row) for name, result in self.results.items()
                for row in result["worst"][what]]  # fmt: skip
        lines = [f"{what} most often off: in % of molecules, mean deviation in {unit}; "
                 "in brackets the reference's",
                 f"{'':<8}{'atoms':<22}{'wrong':>7}{'%':>18}{'mean':>18}"]  # fmt: skip
        for wrong, name, row in sorted(rows, key=lambda r: -r[0])[:most]:
            share = f"{row['percent']:.1f} ({row['reference']:.1f})"
            mean = f"{scale * row['mean']:+.1f} ({scale * row['mean_reference']:+.1f})"
            lines.append(f"{name:<8}{row['atoms']:<22}{wrong:>7}{share:>18}{mean:>18}")
        return "\n".join(lines)

    def _worst_torsions(self, most: int) -> str:
        rows = [(name, row) for name, result in self.results.items() for row in result["torsions"]
                if result["molecules"] >= FEW]  # fmt: skip
        rows.sort(key=lambda item: -abs(item[1]["difference"]))
        lines = ["tail torsions furthest from the reference, % gauche (skew beside double bonds)",
                 f"{'':<8}{'bond':<14}{'state':<8}{'given':>8}{'true':>8}{'difference':>12}"
                 f"{'std. error':>12}{'same state %':>14}{'median |t|, °':>18}"]  # fmt: skip
        lines += [
            f"{name:<8}{row['bond']:<14}{row['state']:<8}{row['percent']:>8.1f}"
            f"{row['reference']:>8.1f}{row['difference']:>+12.1f}{row['standard_error']:>12.1f}"
            f"{row['same_rotamer']:>14.0f}"
            f"{row['median_size']:>9.0f} ({row['median_size_reference']:.0f})"
            for name, row in rows[:most]
        ]
        return "\n".join(lines)


def training_molecules(path: str | Path) -> dict[str, int]:
    """Read how many molecules of each species there are to train on.

    The file is a table with tabs between columns, among them ``residue`` and ``train``.
    """
    with Path(path).open(encoding="utf-8", newline="") as lines:
        return {r["residue"]: int(r["train"]) for r in csv.DictReader(lines, delimiter="\t")}


def _bars(ctx: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
    bars = dict(BARS)
    for text in given:
        name, _, value = text.partition("=")
        if name not in BARS:
            raise click.BadParameter(f"'{name}' has no bar; expected one of {', '.join(BARS)}")
        try:
            bars[name] = float(value)
        except ValueError as error:
            raise click.BadParameter(f"{text}: expected NAME=NUMBER") from error
    return bars


def sound_molecules(system: System, positions: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    """Tell residues from those that overlap another one: boxes of some files are not theirs.

    Parameters
    ----------
    positions : ndarray, shape=(system.n_atoms, 3), Å
    box : ndarray, shape=(3, 3), Å, or None

    Returns
    -------
    ndarray, shape=(n_residues,), bool
    """
    residue = system.atoms.residue
    first, second, _ = close_pairs(positions, box, OVERLAP)
    met = residue[np.stack([first, second])[:, residue[first] != residue[second]]]
    sound = np.ones(len(system.residue_template), dtype=bool)
    sound[met.ravel()] = False
    return sound


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--model", default="martini3", show_default=True, help="Shipped model or file.")
@click.option("--mapping", default="martini3", show_default=True)
@click.option("--noise", type=float, help="Å the beads are believed to be off.")
@click.option("--no-idealise", is_flag=True)
@click.option("--stride", type=click.IntRange(1), default=1, help="Use every n-th frame.")
@click.option("--stop", type=click.IntRange(1), help="Use no more frames of a file.")
@click.option(
    "--bar",
    "bars",
    multiple=True,
    callback=_bars,
    metavar="NAME=NUMBER",
    help="Another bar than " + ", ".join(f"{k}={v:g}" for k, v in BARS.items()) + ".",
)
@click.option(
    "--totals",
    type=click.Path(exists=True),
    help="Table of molecules in training; without, the RMSD of every species has a bar.",
)
@click.option(
    "--enough",
    default=ENOUGH,
    show_default=True,
    help="Molecules in training that a species needs to have a bar.",
)
@click.option("--worst", default=10, show_default=True, help="Rows of the lists.")
@click.option("--threads", type=int)
@click.option("--verbose", is_flag=True, help="Say what beads are taken for, and more.")
@click.option("--json", "output", type=click.Path())
def main(files, model, mapping, noise, no_idealise, stride, stop, bars, totals, enough, worst,
         threads, verbose, output) -> None:  # fmt: skip
    """Measure a model on atomistic lipids in FILES."""
    set_threads(threads)
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    library, weights = Library.load([mapping]), load(resolve(model))
    options = Options(idealise=not no_idealise, noise=noise, hydrogens=False)
    measured = Totals()
    for name in progress(files, "files"):
        path = Path(name)
        frames = known_systems(path, library, weights, stride)
        for truth, positions, box, usable in islice(frames, stop):
            sound = sound_molecules(truth, positions, box)
            if not sound.all():
                names = truth.residue_names[~sound].tolist()
                measured.left_out.update(f"{name} (overlaps others in {path.name})"
                                         for name in names)  # fmt: skip
                truth, _, own = truth.of_residues(sound)
                positions, usable = positions[own], usable[own]
            system, atoms, reference, _ = backmap_structure(
                truth, positions, box, usable, library, weights, options
            )
            measured.add(path.stem, system, atoms, reference, box)
            measured.left_out.update(truth.left_out)
    results = measured.to_json()
    trained = training_molecules(totals) if totals else dict.fromkeys(results, enough)
    exempt = {name for name in results if trained.get(name, 0) < enough}
    click.echo(Report(results, bars, exempt).text(worst))
    click.echo("\nRMSD by file, Å")
    for row in measured.by_file():
        value = "-" if row["rmsd"] is None else f"{row['rmsd']:.2f}"
        click.echo(f"{row['file']:<24}{row['species']:<8}{row['molecules']:>10}{value:>10}")
    for what, count in measured.left_out.items():
        click.echo(f"left out: {count} x {what}")
    if output:
        card = {key: weights.card.get(key) for key in ("name", "date")}
        everything = {"model": card, "files": [Path(f).stem for f in files], "bars": bars,
                      "without_bar": sorted(exempt), "species": results,
                      "by_file": measured.by_file(), "overall": overall(results)}  # fmt: skip
        Path(output).write_text(json.dumps(everything, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
