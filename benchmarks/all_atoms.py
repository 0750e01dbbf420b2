"""Are all atoms right, and ready to simulate?

* ``--hydrogens``: hydrogens put on the true heavy atoms of structures whose hydrogens are known;
* ``--proteins``: bonds and clashes of structures backmapped from their Martini 3 beads, of the
  first by name that are small enough;
* ``--trajectories``: real coarse-grained trajectories, frames spread over each: what hydrogens
  look like, whether OpenMM's force fields take the written structure, what ``--relax`` makes of
  the frames, and what hydrogens and idealisation cost beside the network;
* ``--peer``: so many lipids of one such trajectory, whole run, beside the speed known of mstool.

    python -m benchmarks.all_atoms --hydrogens test_hydrogens.tar.xz --proteins test.tar.xz \\
        --trajectories cg --peer cg/popc/traj.xtc --json all.json --markdown all.md
"""

from __future__ import annotations

import itertools
import json
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import numpy as np
import openmm as mm
import openmm.app as app
from mdbackmap.cli.common import progress, set_threads
from mdbackmap.errors import MdbackmapError
from mdbackmap.geometry.rings import neighbour_table
from mdbackmap.graph.neighbours import close_pairs
from mdbackmap.hydrogens.atoms import AllAtoms
from mdbackmap.hydrogens.nearby import Nearby
from mdbackmap.hydrogens.place import REACH, HydrogenPlacer
from mdbackmap.hydrogens.protonation import decide
from mdbackmap.hydrogens.recipes import recipes_for
from mdbackmap.hydrogens.tautomers import settle
from mdbackmap.io.conversion import backmap
from mdbackmap.io.files import open_universe
from mdbackmap.io.prepare import systems
from mdbackmap.io.simulation import beside
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import from_beads
from mdbackmap.pipeline import Backmapper, Options
from mdbackmap.relax.force_fields import FILES, Assignment, assign
from mdbackmap.relax.tiling import terms
from mdbackmap.structure import AtomTable, Frame
from mdbackmap.validation.contacts import BondGraph
from scipy.spatial import cKDTree

from benchmarks.stability import BENT, ERRORS, Stand
from benchmarks.stages import measure

LONGEST = 1.4
"""Å of a bond to hydrogen in a file; what is further from any heavy atom belongs to none."""
MEETING, OVERLAP = 1.5, 1.2
"""Å between hydrogens of different atoms, and between atoms of different residues: a clash."""
HYDROGEN_BOND, BOND = 0.03, 0.10
"""Share of its length that a bond to hydrogen, and any bond, may be off."""
MSTOOL = 23.0
"""Atoms per CPU second of mstool 0.3.9, 16 POPC, whole process, on two cores."""
LEFT_OUT = ("million_beads", "big_bilayer")
COST = {
    "network": ("neighbours of beads", "network", "placement"), "chains drawn": ("lipid tails",),
    "idealisation": ("neighbours of atoms", "idealisation", "rings"), "hydrogens": ("hydrogens",),
}  # fmt: skip
"""Stages of a conversion; what all but the first take together is compared with it."""


def unpacked(archive: Path) -> Iterator[Path]:
    """Yield the files of an archive, by name."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as tar:
        for member in sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name):
            tar.extract(member, folder, filter="data")
            yield Path(folder) / member.name


# Hydrogens on true heavy atoms


class Known:
    """Squared distances of placed hydrogens from known ones."""

    def __init__(self) -> None:
        self.squared: dict[tuple[str, bool], list[np.ndarray]] = {}
        self.structures = self.other_count = self.bearers = 0

    def add(self, path: Path, library: Library) -> None:
        """Add one structure."""
        system, heavy, _, usable = next(systems(path, None, library))
        true, owner = _true_hydrogens(path, system.atom_source)
        near = Nearby(*close_pairs(heavy, None, REACH))
        heavy = heavy.astype(np.float32)
        atoms = AllAtoms.of(system, settle(system, decide(system), heavy, near))
        recipes = recipes_for(system, atoms)
        placed = HydrogenPlacer(recipes)(heavy, near)
        turning = np.zeros(system.n_atoms, dtype=bool)
        for group in recipes.turning:
            turning[recipes.bearers[group.bearers]] = True
        there = np.bincount(owner, minlength=system.n_atoms)
        bearers = np.flatnonzero(usable & ((recipes.count > 0) | (there > 0)))
        # A residue whose hydrogens were not resolved says nothing.
        named = np.isin(system.atoms.residue[bearers], system.atoms.residue[owner])
        bearers = bearers[named]
        self.structures += 1
        self.bearers += len(bearers)
        same = recipes.count[bearers] == there[bearers]
        self.other_count += int((~same).sum())
        order = np.argsort(owner, kind="stable")
        first = np.searchsorted(owner[order], np.arange(system.n_atoms))
        elements = system.atoms.elements
        for n, element, turns in itertools.product((1, 2, 3, 4), "CNOS", (False, True)):
            rows = bearers[same & (recipes.count[bearers] == n) & (elements[bearers] == element)
                           & (turning[bearers] == turns)]  # fmt: skip
            if not len(rows):
                continue
            mine = placed[recipes.first[rows][:, None] + np.arange(n)]
            theirs = true[order[first[rows][:, None] + np.arange(n)]]
            ways = [((mine[:, way] - theirs) ** 2).sum(axis=2)
                    for way in map(list, itertools.permutations(range(n)))]  # fmt: skip
            best = np.argmin([way.sum(axis=1) for way in ways], axis=0)
            found = np.stack(ways)[best, np.arange(len(rows))].ravel()
            label = f"{element}H{n if n > 1 else ''}"
            self.squared.setdefault((label, turns), []).append(found)

    def to_json(self) -> dict:
        """Return RMSD, Å, of what can turn about a bond, of what cannot, and of every kind."""

        def rmsd(chosen: Iterable[np.ndarray]) -> dict:
            values = np.concatenate([*chosen, np.zeros(0)])
            return {"hydrogens": len(values), "rmsd": float(np.sqrt(values.mean()))}

        kinds = {key: np.concatenate(rows) for key, rows in sorted(self.squared.items())}
        return {
            "structures": self.structures, "bearers": self.bearers,
            "other_count": self.other_count,
            "fixed": rmsd(v for (_, turns), v in kinds.items() if not turns),
            "rotatable": rmsd(v for (_, turns), v in kinds.items() if turns),
            "kinds": {f"{label}{', turns' if turns else ''}": rmsd([v])
                      for (label, turns), v in kinds.items()},
        }  # fmt: skip


def _true_hydrogens(path: Path, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Known hydrogens, and the atom of the system that bears each."""
    universe = open_universe(path)
    positions = universe.atoms.positions.astype(np.float64)
    hydrogen = universe.atoms.elements == "H"
    heavy = np.flatnonzero(~hydrogen)
    gap, nearest = cKDTree(positions[heavy]).query(positions[hydrogen])
    number = np.full(len(positions), -1, dtype=np.int64)
    number[source] = np.arange(len(source))
    owner = number[heavy[nearest]]
    fine = (gap < LONGEST) & (owner >= 0)
    return positions[hydrogen][fine], owner[fine]


# What is wrong with all atoms


def close_hydrogens(table: AtomTable, positions: np.ndarray, box: np.ndarray | None) -> int:
    """Count pairs of hydrogens of different atoms that are too near one another."""
    rows = np.flatnonzero(table.elements == "H")
    bearer = neighbour_table(table.bonds, len(table))[rows, 0]
    first, second, _ = close_pairs(positions[rows], box, MEETING)
    return int((bearer[first] != bearer[second]).sum())


def clashing(
    table: AtomTable, positions: np.ndarray, box: np.ndarray | None, chosen: np.ndarray
) -> np.ndarray:
    """Residues with an atom, of some, that overlaps one of another residue."""
    rows = np.flatnonzero(chosen)
    first, second, _ = close_pairs(positions[rows], box, OVERLAP)
    first, second = rows[first], rows[second]
    apart = table.residue[first] != table.residue[second]
    apart &= ~BondGraph(table.bonds, len(table)).within_three_bonds(first, second)
    return np.unique(table.residue[np.concatenate([first[apart], second[apart]])])


def bond_errors(found: Assignment, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share by which every bond is longer than in a force field; whether hydrogen is in it."""
    errors, light = [], []
    starts = np.cumsum([0, *(len(k.first) for k in found.kinds)])
    bonded = [set(map(frozenset, kind.bonds.tolist())) for kind in found.kinds]
    for force in found.flexible.getForces():
        if not isinstance(force, mm.HarmonicBondForce):
            continue
        for (i, j), (length, _) in terms(force, "Bond", 2):
            k = int(np.searchsorted(starts, i, side="right")) - 1
            kind = found.kinds[k]
            i, j = i - starts[k], j - starts[k]
            if frozenset((i, j)) not in bonded[k]:
                continue  # Urey-Bradley
            ends = positions[kind.atoms[:, [i, j]]]
            errors.append(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1) / (10 * length) - 1)
            hydrogen = (found.atoms.elements[kind.first[[i, j]]] == "H").any()
            light.append(np.full(len(ends), hydrogen))
    return np.concatenate(errors), np.concatenate(light)


# Structures from their beads


def mapped_structures(archive: Path, n: int, most: int) -> dict:
    """Score the first structures of an archive that have fewer residues than ``most``."""
    library, rows = Library.load(["martini3"]), []
    for path in unpacked(archive):
        if len(rows) == n:
            break
        truth, positions, box, _ = next(systems(path, None, library))
        if len(truth.residue_template) < most:
            beads = truth.map_positions(positions).astype(np.float32)
            rows.append({"name": path.stem, **_scored(truth.beads, beads, box, library)})
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key != "name"}
    return {
        "structures": [row["name"] for row in rows], "atoms": total["atoms"],
        "bond_score": _percent(total["bonds"] - total["bonds_off"], total["bonds"]),
        "bond_score_heavy": _percent(total["heavy_bonds"] - total["heavy_bonds_off"],
                                     total["heavy_bonds"]),
        "residues": total["residues"],
        "clash_all": _percent(total["clash_all"], total["residues"]),
        "clash_heavy": _percent(total["clash_heavy"], total["residues"]),
        "close_hydrogens_per_1000": 1000 * total["close_hydrogens"] / total["atoms"],
    }  # fmt: skip


def _scored(particles, beads: np.ndarray, box: np.ndarray | None, library: Library) -> dict:
    backmapper = Backmapper(from_beads(particles, library, Frame(beads, box)))
    backmapper.inspect([beads], [box])
    atoms, table = backmapper(beads, box).astype(np.float64), backmapper.atoms
    errors, light = bond_errors(assign(table, "charmm36"), atoms)
    off = np.abs(errors) > BOND
    heavy = table.elements != "H"
    return {
        "residues": int(table.residue.max()) + 1, "atoms": len(table), "bonds": len(off),
        "bonds_off": int(off.sum()), "heavy_bonds": int((~light).sum()),
        "heavy_bonds_off": int((off & ~light).sum()),
        "clash_all": len(clashing(table, atoms, box, np.ones(len(table), dtype=bool))),
        "clash_heavy": len(clashing(table, atoms, box, heavy)),
        "close_hydrogens": close_hydrogens(table, atoms, box),
    }  # fmt: skip


def _percent(part: float, whole: float) -> float:
    return 100 * part / max(whole, 1)


# Real trajectories


def case(trajectory: Path, frames: int, force_field: str) -> dict:
    """Backmap and relax frames of one trajectory."""
    stand = Stand(trajectory, None, force_field)
    system, table = stand.backmapper.layout, stand.stage.given
    n_frames = stand.source.universe.trajectory.n_frames
    chosen = np.unique(np.linspace(0, n_frames - 1, min(frames, n_frames)).astype(int))
    found = stand.assignment
    of = {"ramachandran": len(system.backbone.phi_psi), "twisted_peptides": len(system.omegas)}
    close = off = bonds = 0
    done = []
    for k in progress(chosen.tolist(), trajectory.parent.name):
        note, _, box = stand.relaxed(k)
        done.append(note)
        placed = stand.placed.astype(np.float64)
        close += close_hydrogens(table, placed, box)
        errors, light = bond_errors(found, placed)
        off += int((np.abs(errors[light]) > HYDROGEN_BOND).sum())
        bonds += int(light.sum())
    relaxed = [note.relaxation for note in done]
    below = [row["force_after_kJ_nm"] <= stand.stage.max_force for row in relaxed]
    mean = {key: float(np.mean([row[key] for row in relaxed])) for key in ("seconds", "shift_A")}
    return {
        "frames": len(done), "atoms": len(table), "hydrogens": int((table.elements == "H").sum()),
        "close_hydrogens_per_1000": 1000 * close / len(table) / len(done),
        "hydrogen_bonds_off_%": _percent(off, bonds),
        "below_threshold": sum(below), "relaxed": sum(row["relaxed"] for row in relaxed),
        "largest_force_kJ_nm": max(row["force_after_kJ_nm"] for row in relaxed), **mean,
        "seconds_per_1000_atoms": mean["seconds"] / len(table) * 1000,
        "errors_before": sum(sum(n.errors_before[t] for t in ERRORS) for n in done),
        "errors": sum(sum(n.errors[t] for t in ERRORS) for n in done),
        **{f"{term}_%": [_percent(sum(getattr(n, when)[term] for n in done),
                                  of[term] * len(done)) for when in ("errors_before", "errors")]
           for term in BENT},
        "problems": [p for row in relaxed for p in [row["problems"]] if p],
    }  # fmt: skip


def cost(trajectory: Path, frames: int) -> dict[str, float]:
    """CPU milliseconds per frame of a conversion: the network, and what follows it."""
    row = measure(trajectory, None, frames, 1, Options(solvent="drop"))
    spent = {part: 1e3 * sum(row["stages"][stage] for stage in stages) / frames
             for part, stages in COST.items()}  # fmt: skip
    return spent | {"ratio": sum(spent.values()) / spent["network"] - 1}


def created(trajectory: Path, force_field: str) -> dict:
    """Write the first frame with a force field's names, and have OpenMM make a System of it."""
    without: set[str] = set()
    stand = Stand(trajectory, None, force_field)
    for label in stand.assignment.missing:
        without.add(label.split()[0])
    select = f"not resname {' '.join(sorted(without))}" if without else None
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "aa.pdb"
        try:
            made = backmap(trajectory, output, select=select, stop=1, force_field=force_field)
        except MdbackmapError as error:
            return {"without": sorted(without), "error": str(error).splitlines()[0]}
        files = list(made.backmapper.stage.assignment.files)
        extra = beside(output, "_residues.xml")
        text = made.backmapper.stage.assignment.residues
        if text:
            extra.write_text(text, encoding="utf-8")
            files.append(str(extra))
        pdb = app.PDBFile(str(output))
        system = app.ForceField(*files).createSystem(pdb.topology)
        return {"without": sorted(without), "atoms": system.getNumParticles(), "files": files[:2]}


def peer(trajectory: Path, n: int) -> dict:
    """Time the whole road of a few lipids, with hydrogens and with relaxation."""
    universe = open_universe(trajectory.with_name("first.gro"))
    lipids = universe.select_atoms("resname POPC").residues[:n]
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "cg.gro"
        lipids.atoms.write(str(start))
        for label, options in (("all atoms", {}), ("relaxed", {"relax": True})):
            seconds = []
            for turn in range(2):
                began = time.process_time()
                made = backmap(start, Path(folder) / f"{label[:3]}{turn}.gro", **options)
                seconds.append(time.process_time() - began)
            # The first run reads models and force fields.
            result[label] = {"atoms": made.n_atoms, "seconds": seconds[0], "again": seconds[1],
                             "atoms_per_second": made.n_atoms / seconds[0],
                             "times_mstool": made.n_atoms / seconds[0] / MSTOOL}  # fmt: skip
    return result


def to_markdown(results: dict) -> str:
    """Return the results as tables."""
    lines: list[str] = []
    if found := results.get("hydrogens"):
        lines += ["| hydrogens on true heavy atoms | number | RMSD, Å |", "|---|---|---|"]
        rows = {"cannot turn": found["fixed"], "can turn": found["rotatable"], **found["kinds"]}
        lines += [f"| {k} | {v['hydrogens']} | {v['rmsd']:.3f} |" for k, v in rows.items()]
        lines.append("")
    if found := results.get("proteins"):
        lines += ["| from Martini 3 beads | here |", "|---|---|"]
        lines += [f"| {k.replace('_', ' ')} | {v:.2f} |" for k, v in found.items()
                  if isinstance(v, float)]  # fmt: skip
        lines.append("")
    if found := results.get("trajectories"):
        lines += [
            "| case | atoms | H-H < 1.5 Å per 1000 | relaxed | largest force | shift, Å | errors | "
            "Ramachandran, % | twisted, % | s per frame | s per 1000 atoms |",
            "|" + "---|" * 11,
        ]
        for name, row in found.items():
            bent = [" → ".join(f"{v:.1f}" for v in row[f"{t}_%"]) for t in BENT]
            lines.append(
                f"| {name} | {row['atoms']} | {row['close_hydrogens_per_1000']:.2f} | "
                f"{row['relaxed']}/{row['frames']} | {row['largest_force_kJ_nm']:.0f} | "
                f"{row['shift_A']:.2f} | {row['errors_before']} → {row['errors']} | {bent[0]} | "
                f"{bent[1]} | {row['seconds']:.1f} | {row['seconds_per_1000_atoms']:.2f} |"
            )
        lines.append("")
    if found := results.get("cost"):
        lines += ["| CPU ms per frame | " + " | ".join(COST) + " | all but the first / network |",
                  "|---|" + "---|" * (len(COST) + 1)]  # fmt: skip
        lines += [f"| {name} | " + " | ".join(f"{row[part]:.1f}" for part in COST)
                  + f" | {row['ratio']:.2f} |" for name, row in found.items()]  # fmt: skip
        lines.append("")
    if found := results.get("created"):
        lines += ["| createSystem | " + " | ".join(FILES) + " |", "|---|" + "---|" * len(FILES)]
        for name, row in found.items():
            cells = [_cell(row[field]) for field in FILES if field in row]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    if found := results.get("peer"):
        lines += ["| lipids, whole run | atoms | CPU s | atoms/s | times mstool |",
                  "|---|---|---|---|---|"]  # fmt: skip
        lines += [f"| {k} | {v['atoms']} | {v['seconds']:.1f} | {v['atoms_per_second']:.0f} | "
                  f"{v['times_mstool']:.0f} |" for k, v in found.items()]  # fmt: skip
    return "\n".join(lines) + "\n"


def _cell(row: dict) -> str:
    left_out = f" without {', '.join(row['without'])}" if row["without"] else ""
    return row.get("error") or f"{row['atoms']} atoms{left_out}"


@click.command()
@click.option("--hydrogens", type=click.Path(exists=True, path_type=Path), multiple=True,
              help="Archive of structures with known hydrogens; repeatable.")  # fmt: skip
@click.option("--proteins", type=click.Path(exists=True, path_type=Path),
              help="Archive of structures to map and bring back.")  # fmt: skip
@click.option("--structures", default=16, show_default=True, help="How many of those.")
@click.option("--residues", default=300, show_default=True, help="That they have fewer of.")
@click.option("--trajectories", type=click.Path(exists=True, path_type=Path),
              help="Folder of cases with traj.xtc and a topology.")  # fmt: skip
@click.option("--only", multiple=True, help="Cases to use; repeatable. Default: all small ones.")
@click.option("--frames", default=3, show_default=True, help="Of every trajectory; 0 for none.")
@click.option("--cost", "timed", default=0, show_default=True, help="Frames of every trajectory to "
              "time, stage by stage.")  # fmt: skip
@click.option("--force-field", type=click.Choice(["charmm36", "amber14"]), default="charmm36",
              show_default=True)  # fmt: skip
@click.option("--no-create", is_flag=True, help="Leave out createSystem.")
@click.option("--peer", "popc", type=click.Path(exists=True, path_type=Path),
              help="Trajectory of POPC, first.gro beside it.")  # fmt: skip
@click.option("--lipids", default=16, show_default=True, help="POPC of it.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the numbers there.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write tables there.")
def main(hydrogens, proteins, structures, residues, trajectories, only, frames, timed, force_field,
         no_create, popc, lipids, output, markdown) -> None:  # fmt: skip
    """Measure hydrogens, force fields and relaxation."""
    set_threads(None)
    results: dict = {}

    def keep(section: str, value: dict) -> None:
        """Write what there is so far: some of it takes hours."""
        results[section] = value
        for path, text in ((output, json.dumps(results, indent=1)),
                           (markdown, to_markdown(results))):  # fmt: skip
            if path:
                path.write_text(text, encoding="utf-8")

    if hydrogens:
        known, library = Known(), Library.load(["martini3"])
        for archive in hydrogens:
            for path in progress(unpacked(archive), archive.name):
                known.add(path, library)
        keep("hydrogens", known.to_json())
    if proteins:
        keep("proteins", mapped_structures(proteins, structures, residues))
    if popc:
        keep("peer", peer(popc, lipids))
    paths = sorted(trajectories.glob("*/traj.xtc")) if trajectories else []
    wanted = [p for p in paths
              if (p.parent.name in only if only else p.parent.name not in LEFT_OUT)]  # fmt: skip
    for path in wanted if frames else ():
        done = results.get("trajectories", {})
        keep("trajectories", done | {path.parent.name: case(path, frames, force_field)})
    for path in wanted if timed else ():
        keep("cost", results.get("cost", {}) | {path.parent.name: cost(path, timed)})
    for path in () if no_create else wanted:
        done = results.get("created", {})
        keep("created", done | {path.parent.name: {name: created(path, name) for name in FILES}})
    click.echo(to_markdown(results))


if __name__ == "__main__":
    main()
