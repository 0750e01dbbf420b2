"""Accuracy of a model on structures it was not trained on, and on real CG trajectories.

Every structure takes the road a user's would: mapped to beads, laid out from bead names and
positions alone, backmapped, idealised, compared atom by atom without superposition.

    python -m benchmarks.accuracy --proteins test_public.tar.xz --lipids lipids/test \\
        --ligands ligands --trajectories cg --json accuracy.json
"""

from __future__ import annotations

import json
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from mdbackmap.cli.common import progress, set_threads
from mdbackmap.io.prepare import systems
from mdbackmap.io.source import CGSource
from mdbackmap.io.transformation import inspected, lay_out
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import System, from_beads
from mdbackmap.models.checkpoint import Checkpoint, load
from mdbackmap.models.library import resolve
from mdbackmap.pipeline import Backmapper, Options, in_company
from mdbackmap.structure import Frame
from mdbackmap.validation import Checker, Summary, rmsd
from mdbackmap.validation.measures import torsions
from mdbackmap.vocabulary import known_templates

SKIPPED_TRAJECTORIES = ("million_beads",)


def backmap_structure(truth, positions, box, usable, library, model, options):
    """Map one structure and bring it back; returns its layout, atoms, true atoms (NaN: none)."""
    beads = truth.map_positions(positions).astype(np.float32)
    system = from_beads(truth.beads, library, Frame(beads, box))
    backmapper = Backmapper(system, model, options)
    backmapper.inspect([beads], [box])
    atoms = backmapper(beads, box).astype(np.float64)
    place = {
        key: k
        for k, key in enumerate(
            zip(truth.atoms.residue.tolist(), truth.atoms.names.tolist(), strict=True)
        )
    }
    rows = np.array(
        [place.get(key, -1)
         for key in zip(system.atoms.residue.tolist(), system.atoms.names.tolist(), strict=True)]
    )  # fmt: skip
    reference = positions[rows]
    reference[(rows < 0) | ~usable[rows]] = np.nan
    return system, atoms, reference, beads


def score(cases, library, model, options) -> dict:
    """Score structures; means are over structures, counts over all atoms."""
    summary, rows, kinds, peptides = Summary(), [], {}, Counter()
    for name, truth, positions, box, usable in cases:
        system, atoms, reference, beads = backmap_structure(
            truth, positions, box, usable, library, model, options
        )
        compared = rmsd(system, atoms, reference, box)
        summary.add(Checker(system)(atoms, box, beads), label=name, rmsd=compared)
        peptides.update(_peptides(system, atoms, reference, box))
        rows.append({"name": name, "residues": len(truth.residue_template),
                     "chains": int((truth.next_residue < 0).sum()),
                     **{k: compared[k] for k in ("all", "backbone", "side_chains")}})  # fmt: skip
        for residue, value in compared["residues"].items():
            kinds.setdefault(residue, []).append(value)
    mean = {k: float(np.nanmean([r[k] for r in rows])) if any(np.isfinite(r[k]) for r in rows)
            else None for k in ("all", "backbone", "side_chains")}  # fmt: skip
    parts = {
        "several chains": [r["all"] for r in rows if r["chains"] > 1],
        "above 2,000 residues": [r["all"] for r in rows if r["residues"] > 2000],
    }
    return {
        "structures": len(rows), "mean_rmsd": mean, "peptides": dict(peptides),
        "mean_rmsd_of": {k: float(np.nanmean(v)) for k, v in parts.items() if v}, "worst": sorted(
            rows, key=lambda r: -r["all"])[:10],
        "mean_rmsd_by_residue": {k: float(np.nanmean([_number(v) for v in values]))
                                 for k, values in sorted(kinds.items())},
        "checks": summary.to_json()["counts"], "bead_shift": summary.to_json().get("bead_shift"),
        "text": summary.to_text(),
    }  # fmt: skip


def _peptides(system, atoms, reference, box) -> dict[str, int]:
    """Peptide bonds of the answer beside those of the reference; what has none is not counted."""
    given, true = (
        np.abs(torsions(positions, system.omegas, box)) for positions in (atoms, reference)
    )
    return {
        "trans made cis": int(((given < 90) & (true > 90)).sum()),
        "cis made trans": int(((given > 90) & (true < 90)).sum()),
        "cis kept": int(((given < 90) & (true < 90)).sum()),
    }


def _number(value) -> float:
    return float(value["rmsd"] if isinstance(value, dict) else value)


def _protein_cases(archive: str, library: Library, limit: int):
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile()]
        for member in progress(members[:limit] if limit else members, "proteins"):
            tar.extract(member, folder, filter="data")
            for case in systems(Path(folder) / member.name, None, library):
                yield Path(member.name).stem, *case


def known_systems(path: Path, library: Library, model: Checkpoint, stride: int = 1) -> Iterator:
    """Yield what `systems` does of a file, and a trajectory of its name, that a model can place."""
    trajectory = path.with_suffix(".xtc")
    files = path, trajectory if trajectory.exists() else None
    known = without_unknown(next(systems(*files, library))[0], library, model)
    yield from systems(*files, known, stride=stride)


def without_unknown(system: System, library: Library, model: Checkpoint) -> Library:
    """Return a library without the templates of a system that no model beside this can place."""
    known = np.any([known_templates(system, m.checkpoint) for m in in_company([model])], axis=0)
    unknown = [t for t, fine in zip(system.templates, known, strict=True) if not fine]
    return Library([t for t in library.templates if t not in unknown], library.source)


def _lipid_cases(folder: str, library: Library, model: Checkpoint):
    for path in progress(sorted(Path(folder).glob("*.gro")), "lipids"):
        for case in known_systems(path, library, model):
            yield path.stem, *case


def _ligand_cases(folder: str, library: Library, split: str = "test", stride: int = 5):
    for path in progress(sorted(Path(folder).glob("*.pdb")), "ligands"):
        trajectory = Path(folder) / split / f"{path.stem}.xtc"
        if trajectory.exists():
            try:
                cases = list(systems(path, trajectory, library, stride=stride))
            except ValueError:
                # No bead table, so no mapping: not one of the shipped molecules.
                continue
            if _same_molecule(cases[0][0], cases[0][1]):
                yield from ((path.stem, *case) for case in cases)


def _same_molecule(system, positions) -> bool:
    """False for another molecule (or other atom names) under the same residue name."""
    ends = positions[system.constraints.bonds]
    length = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
    return bool((np.abs(length / system.constraints.bond_length - 1) < 0.2).all())


def real_trajectories(folder: str, model, options, every: int) -> dict:
    """Counts over frames of real CG trajectories; there is no true answer to compare with."""
    results = {}
    for path in sorted(Path(folder).glob("*/traj.xtc")):
        if path.parent.name in SKIPPED_TRAJECTORIES:
            continue
        source = CGSource.open(path)
        system = lay_out(source)
        backmapper = inspected(Backmapper(system, model, options), source)
        checker, summary = Checker(system), Summary()
        step = max(1, len(source.universe.trajectory) // every)
        seconds = 0.0
        for frame in progress(list(source.frames(None, None, step)), path.parent.name):
            beads = frame.positions[system.bead_source]
            began = time.perf_counter()
            atoms = backmapper(beads, frame.box, frame.index)
            seconds += time.perf_counter() - began
            given = backmapper.unwrap(beads, frame.box)
            summary.add(checker(atoms.astype(np.float64), frame.box, given),
                        label=f"frame {frame.index}")  # fmt: skip
        report = summary.to_json()
        results[path.parent.name] = {
            "frames": report["frames"], "atoms_per_frame": system.n_atoms,
            "atoms_per_second": report["atoms"] / seconds, "noise": backmapper.noise,
            "checks": report["counts"], "bead_shift": report.get("bead_shift"),
        }  # fmt: skip
        click.echo(f"== {path.parent.name}\n{summary.to_text()}")
    return results


@click.command()
@click.option("--proteins", help="A .tar of PDB files.")
@click.option("--lipids", help="A folder of .gro (+ .xtc).")
@click.option("--ligands", help="A folder of .pdb with test/*.xtc.")
@click.option("--trajectories", help="A folder of cases with traj.xtc and a topology.")
@click.option("--model", default="martini3", show_default=True)
@click.option("--mapping", default="martini3", show_default=True)
@click.option("--limit", default=0, help="Use only so many proteins.")
@click.option("--every", default=10, show_default=True, help="Frames per trajectory.")
@click.option("--no-idealise", is_flag=True)
@click.option("--noise", type=float, default=None)
@click.option("--threads", type=int, default=None)
@click.option("--json", "output", type=click.Path())
def main(proteins, lipids, ligands, trajectories, model, mapping, limit, every, no_idealise,
         noise, threads, output) -> None:  # fmt: skip
    """Measure a model."""
    set_threads(threads)
    library, weights = Library.load([mapping]), load(resolve(model))
    options = Options(idealise=not no_idealise, noise=noise, hydrogens=False)
    results: dict = {"model": weights.card.get("name"), "date": weights.card.get("date")}
    sets = {
        "proteins": proteins and _protein_cases(proteins, library, limit),
        "lipids": lipids and _lipid_cases(lipids, library, weights),
        "ligands": ligands and _ligand_cases(ligands, library),
    }
    for name, cases in sets.items():
        if cases:
            results[name] = score(cases, library, weights, options)
            click.echo(f"== {name}\n{results[name].pop('text')}")
            click.echo(json.dumps({k: results[name][k] for k in
                                   ("mean_rmsd", "mean_rmsd_of", "peptides",
                                    "mean_rmsd_by_residue")}, indent=1))  # fmt: skip
    if trajectories:
        results["trajectories"] = real_trajectories(trajectories, weights, options, every)
    if output:
        Path(output).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
