"""Frames added up, and shown: as JSON, as a table, as a page."""

from __future__ import annotations

import base64
import html
import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from mdbackmap.errors import OutputFileError
from mdbackmap.validation.checks import BOND_ERROR_EDGES, PER_ATOM, TERMS, Count, FrameReport

_KEPT_EXAMPLES = 5
_COLUMNS = ("bonds", "angles", "stereocentres", "clashes")
_BEAD_EDGES = np.append(np.arange(0.0, 20.0, 0.01), np.inf)


class Summary:
    """Adds up reports; its size does not grow with the number of frames.

    Examples
    --------
    >>> summary = Summary()
    >>> for ts in trajectory:                                       # doctest: +SKIP
    ...     summary.add(checker(positions, box), label=f"frame {ts.frame}")
    >>> print(summary.to_text())                                    # doctest: +SKIP
    """

    def __init__(self) -> None:
        self.n_frames = 0
        self.counts = dict.fromkeys(TERMS, Count(0, 0))
        self.residues: dict[str, dict[str, Count]] = {}
        self.examples: dict[str, list[str]] = {term: [] for term in TERMS}
        self.planarity_max = math.nan
        self._bond_errors = np.zeros(len(BOND_ERROR_EDGES) - 1, dtype=np.int64)
        self._beads = np.zeros(len(_BEAD_EDGES) - 1, dtype=np.int64)
        self._bead_max = math.nan
        self._rmsd: dict[tuple[str, ...], tuple[float, int]] = {}
        self._last: FrameReport | None = None

    def add(
        self, report: FrameReport, *, label: str | None = None, rmsd: dict[str, Any] | None = None
    ) -> None:
        """Add one frame.

        Parameters
        ----------
        report : FrameReport
        label : str, optional
            What this frame is, for examples of what is wrong; ``frame 0``, ``frame 1``, ... by
            default. Frames may be of different systems.
        rmsd : dict, optional
            What `mdbackmap.validation.rmsd` returned for this frame.
        """
        label = f"frame {self.n_frames}" if label is None else label
        self.n_frames += 1
        _add_counts(self.counts, report.counts)
        for name, counts in report.residues.items():
            _add_counts(self.residues.setdefault(name, {}), counts)
        for term, kept in self.examples.items():
            room = _KEPT_EXAMPLES - len(kept)
            if room > 0:
                kept += [f"{label}: {place}" for place in report.where(term, room)]
        self.planarity_max = _larger(self.planarity_max, report.planarity_max)
        self._bond_errors += report.bond_errors
        if report.bead_distances is not None:
            distance = report.bead_distances[np.isfinite(report.bead_distances)]
            self._beads += np.histogram(distance, _BEAD_EDGES)[0]
            self._bead_max = _larger(self._bead_max, distance.max(initial=0.0))
        for key, value in _leaves(rmsd or {}):
            if key != ("n_atoms",) and math.isfinite(value):
                total, n = self._rmsd.get(key, (0.0, 0))
                self._rmsd[key] = total + value**2, n + 1
        self._last = report

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain numbers, strings, lists and dicts; None for no value."""
        result: dict[str, Any] = {
            "frames": self.n_frames,
            "atoms": self.counts["missing"].of,
            "counts": {term: _plain(term, count) for term, count in self.counts.items()},
            "residues": {
                name: {term: _plain(term, count) for term, count in counts.items()}
                for name, counts in sorted(self.residues.items())
            },
            "planarity_max": _number(self.planarity_max),
            "examples": {term: list(kept) for term, kept in self.examples.items() if kept},
        }
        if self._beads.any():
            result["bead_shift"] = {
                "n_beads": int(self._beads.sum()),
                "median": self._bead_quantile(0.5),
                "p95": self._bead_quantile(0.95),
                "max": float(self._bead_max),
            }
        if self._rmsd:
            result["rmsd"] = self._pooled_rmsd()
        return result

    def _bead_quantile(self, share: float) -> float:
        """Quantile of the bead distances, Å, to the 0.01 Å of the histogram."""
        below = np.cumsum(self._beads) / self._beads.sum()
        middle = _BEAD_EDGES[int(np.searchsorted(below, share))] + 0.005
        return float(min(round(middle, 3), self._bead_max))

    def _pooled_rmsd(self) -> dict[str, Any]:
        """Root of the mean square over frames, in the shape the frames gave it."""
        result: dict[str, Any] = {}
        for key, (total, n) in self._rmsd.items():
            table = result
            for part in key[:-1]:
                table = table.setdefault(part, {})
            table[key[-1]] = math.sqrt(total / n)
        return result

    def to_text(self) -> str:
        """Return a table for people, narrower than 80 columns."""
        rows = [self._head(), ""]
        rows.append(f"{'':<40}{'wrong':>10}{'of':>12}{'%':>9}")
        for term, count in self.counts.items():
            if count.of:
                rows.append(
                    f"{TERMS[term]:<40}{count.wrong:>10}{count.of:>12}{_rate(term, count):>9}"
                )
        rows += ["(pairs: per 1000 atoms)", *self._text_of_values()]
        rows += ["", f"{'residue':<18}{'atoms':>10}{'bonds %':>12}{'angles %':>12}"
                 f"{'stereo %':>12}{'clashes':>12}"]  # fmt: skip
        worst = sorted(self.residues.items(), key=lambda item: -_badness(item[1]))
        for name, counts in worst[:12]:
            cells = [_rate(t, counts[t]) if t in counts else "-" for t in _COLUMNS]
            atoms = f"{counts['missing'].of:>10}"
            rows.append(f"{name:<18}{atoms}" + "".join(f"{cell:>12}" for cell in cells))
        if len(worst) > 12:
            rows.append(f"... and {len(worst) - 12} residue names that are no worse")
        examples = [(term, kept) for term, kept in self.examples.items() if kept]
        if examples:
            rows += ["", "for example"]
        for term, kept in examples:
            rows.append(f"  {term:<18}{kept[0]}"[:79])
        return "\n".join(rows)

    def _head(self) -> str:
        frames = "1 frame" if self.n_frames == 1 else f"{self.n_frames} frames"
        return f"{frames}, {self.counts['missing'].of} heavy atoms checked"

    def _text_of_values(self) -> list[str]:
        rows = []
        table = self.to_json()
        if math.isfinite(self.planarity_max):
            rows.append(f"most an atom lies out of its plane: {self.planarity_max:.2f} Å")
        if beads := table.get("bead_shift"):
            rows.append(
                "beads of the answer from those given: median {median:.2f}, "
                "95 % {p95:.2f}, max {max:.2f} Å".format(**beads)
            )
        if rmsd := table.get("rmsd"):
            parts = [
                f"{label} {rmsd[key]:.2f}"
                for key, label in (("all", "all"), ("backbone", "backbone"),
                                   ("side_chains", "side chains"))
                if key in rmsd
            ]  # fmt: skip
            rows.append(f"RMSD: {', '.join(parts)} Å")
        return rows

    def to_html(self, path: str | Path) -> None:
        """Write a page of one file: the tables, and plots where there is something to plot.

        Raises
        ------
        OutputFileError
            The file cannot be written.
        """
        page = _PAGE.format(
            head=html.escape(self._head()),
            terms=_html_table(
                ("", "wrong", "of", "%"),
                [(TERMS[t], c.wrong, c.of, _rate(t, c)) for t, c in self.counts.items() if c.of],
            ),
            values="<br>".join(html.escape(row) for row in self._text_of_values()),
            plots=self._plots(),
            examples=_html_table(
                ("what", "where"),
                [(t, place) for t, kept in self.examples.items() for place in kept],
            ),
        )
        try:
            Path(path).write_text(page, encoding="utf-8")
        except OSError as error:
            raise OutputFileError(f"{path}: cannot be written: {error.strerror}") from error

    def _plots(self) -> str:
        from matplotlib.figure import Figure

        with_torsions = self._last is not None and len(self._last.phi_psi) > 0
        figure = Figure(figsize=(9.0 if with_torsions else 4.5, 4.0), layout="constrained")
        axes = figure.subplots(1, 2 if with_torsions else 1, squeeze=False)[0]
        axes[0].stairs(self._bond_errors, BOND_ERROR_EDGES, fill=True, color="#4c72b0")
        axes[0].set(xlabel="bond length, % off the ideal", ylabel="bonds", xlim=(-25, 25))
        if self._bond_errors.any():
            axes[0].set_yscale("log")
        axes[0].axvspan(-10, 10, color="0.93", zorder=0)
        if with_torsions:
            (phi, psi), outlier = self._last.phi_psi.T, self._last.outlier
            axes[1].scatter(phi[~outlier], psi[~outlier], s=5, color="#4c72b0")
            axes[1].scatter(phi[outlier], psi[outlier], s=9, color="#c44e52")
            axes[1].set(
                xlabel="phi, last frame", ylabel="psi", xlim=(-180, 180), ylim=(-180, 180),
                xticks=range(-180, 181, 90), yticks=range(-180, 181, 90), aspect="equal",
            )  # fmt: skip
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110)
        data = base64.b64encode(picture.getvalue()).decode("ascii")
        return f'<img alt="bond errors and backbone torsions" src="data:image/png;base64,{data}">'


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>mdbackmap check</title>
<style>
body {{ font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; color: #222; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
td, th {{ padding: .15em .8em; border-bottom: 1px solid #ddd; text-align: left; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
img {{ max-width: 100%; }}
</style>
<h1>What is wrong with this structure</h1>
<p>{head}. Pairs are given per 1000 atoms.</p>
{terms}
<p>{values}</p>
{plots}
{examples}
</html>
"""


def _html_table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    def cell(value: object) -> str:
        number = isinstance(value, int) or str(value).replace(".", "").isdigit()
        style = ' class="number"' if number else ""
        return f"<td{style}>{html.escape(str(value))}</td>"

    if not rows:
        return ""
    lines = "\n".join("<tr>" + "".join(cell(v) for v in row) + "</tr>" for row in rows)
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    return f"<table><tr>{titles}</tr>\n{lines}\n</table>"


def _add_counts(total: dict[str, Count], more: dict[str, Count]) -> None:
    for term, count in more.items():
        before = total.get(term, Count(0, 0))
        total[term] = Count(before.wrong + count.wrong, before.of + count.of)


def _badness(counts: dict[str, Count]) -> float:
    """Percentages of the columns of the table of residues, added up."""
    shares = [counts[term].percent for term in _COLUMNS if term in counts]
    return sum(share for share in shares if math.isfinite(share))


def _rate(term: str, count: Count) -> str:
    return f"{count.percent * (10 if term in PER_ATOM else 1):.2f}"


def _plain(term: str, count: Count) -> dict[str, int | float | None]:
    rate = "per_1000_atoms" if term in PER_ATOM else "percent"
    value = count.percent * (10 if term in PER_ATOM else 1)
    return {"wrong": count.wrong, "of": count.of, rate: _number(value)}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _larger(first: float, second: float) -> float:
    return float(np.fmax(first, second))


def _leaves(table: dict[str, Any], path: tuple[str, ...] = ()):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value
