"""Do backmapped frames survive a simulation?

Frames are backmapped and relaxed as ``mdbackmap convert --relax`` does, then simulated in OpenMM at
constant volume: proteins in implicit solvent (Amber14, OBC2), with --water in explicit TIP3P, which
membranes need. Told are: how relaxation went (cost, largest forces, errors of chirality and the
like), RMSD of heavy atoms from the relaxed frame over time, potential energy, and for proteins the
secondary structure (DSSP: helix, strand, other) that is still what it was in the relaxed frame.

    python -m benchmarks.stability cg.xtc --frames 5 --picoseconds 20 --json stability.json
    python -m benchmarks.stability membrane.xtc --force-field charmm36 --water --frames 1
    python -m benchmarks.stability cg.xtc --frames 50 --picoseconds 0      # relaxation only

With --control an atomistic structure, as a crystal has it, goes the same way from its first
minimisation on: what simulating does to a sound structure.

Water is put in by OpenMM, which knows nothing of membranes: molecules between the tails are taken
out again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import MDAnalysis as mda
import numpy as np
import openmm as mm
import openmm.app as app
from MDAnalysis.analysis.dssp import DSSP
from mdbackmap.cli.common import progress, set_threads
from mdbackmap.geometry.superpose import superpose
from mdbackmap.io.files import quiet_guesses
from mdbackmap.io.source import CGSource
from mdbackmap.io.topology import blank_universe
from mdbackmap.io.transformation import inspected, lay_out
from mdbackmap.pipeline import Backmapper, Options
from mdbackmap.relax.force_fields import FILES, Assignment, load, openmm_topology
from mdbackmap.relax.minimise import reduced_box
from mdbackmap.validation.checks import Checker
from openmm import unit

ERRORS = (
    "stereocentres",
    "d_residues",
    "double_bonds",
    "cis_peptides",
    "pierced_rings",
    "overlaps",
)
BENT = ("ramachandran", "twisted_peptides")
"""Terms that sound structures have some of, too."""
GB = {"H": (0.12, 0.85), "C": (0.17, 0.72), "N": (0.155, 0.79), "O": (0.15, 0.85),
      "S": (0.18, 0.96)}  # fmt: skip
"""Radius, nm, and scale of elements in OBC2 (Onufriev, Bashford, Case 2004,
doi:10.1002/prot.20033); hydrogens on nitrogen have 0.13 nm."""
TEMPERATURE, STEP, FRICTION = 300.0, 0.002, 1.0
"""K, ps, 1/ps."""
REPORT = 1.0
"""ps between the points of a curve."""
SETTLE, FIRST = 150, 100
"""Steps of minimisation of water that was put in, and of all, as before any simulation."""
CORE = 10.0
"""Å from the middle of a membrane within which water is taken out."""


@dataclass
class Frame:
    """What became of one frame.

    Attributes
    ----------
    frame : int
    relaxation : dict
        See `mdbackmap.relax.minimise.Relaxed.row`.
    errors_before, errors : dict of str to int
        Counts of `ERRORS` and `BENT`, before and after relaxation.
    time, rmsd, energy, kept : list of float
        ps, Å, kJ/mol, % of residues with their secondary structure.
    seconds : float
        Of the simulation.
    """

    frame: int
    relaxation: dict
    errors_before: dict[str, int]
    errors: dict[str, int]
    time: list[float] = field(default_factory=list)
    rmsd: list[float] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Stand:
    """One system, ready to be backmapped, relaxed and simulated.

    ``placed`` is the last frame as it was before it was relaxed.
    """

    def __init__(self, trajectory: Path, topology: Path | None, force_field: str) -> None:
        self.source = CGSource.open(trajectory, topology)
        options = Options(relax=True, force_field=force_field)
        self.backmapper = inspected(Backmapper(lay_out(self.source), None, options), self.source)
        # The same without its last step, to see what relaxation changes.
        self.stage, self.backmapper.__dict__["stage"] = self.backmapper.stage, None
        self.checker = Checker(self.backmapper.layout)
        self.heavy = self.stage.heavy
        kinds = self.backmapper.layout.residue_kinds
        self.protein = (kinds == "protein")[self.backmapper.layout.atoms.residue]
        self.universe = blank_universe(self.backmapper.layout, self.stage.atoms)

    @property
    def assignment(self) -> Assignment:
        return self.stage.assignment

    def relaxed(self, k: int) -> tuple[Frame, np.ndarray, np.ndarray | None]:
        """Backmap and relax frame ``k``; returns its atoms and box."""
        frame = self.source.read(k)
        whole = self.backmapper.unwrap(
            frame.positions[self.backmapper.layout.bead_source], frame.box
        )
        self.placed = placed = self.backmapper(whole, frame.box, k)
        atoms = self.stage(placed, whole, frame.box, k)
        found = Frame(k, self.stage.results[k].row(), self.count(placed, frame.box),
                      self.count(atoms, frame.box))  # fmt: skip
        return found, atoms, frame.box

    def count(self, atoms: np.ndarray, box: np.ndarray | None) -> dict[str, int]:
        counts = self.checker(atoms[self.heavy], box).counts
        return {term: counts[term].wrong for term in (*ERRORS, *BENT)}

    def structure(self, atoms: np.ndarray) -> np.ndarray:
        """Helix, strand or other of every residue of the protein; empty without one."""
        if not self.protein.any():
            return np.zeros(0, "U1")
        self.universe.atoms.positions = atoms
        return _dssp(self.universe)


def _dssp(universe: mda.Universe) -> np.ndarray:
    with quiet_guesses():
        found = DSSP(universe, hydrogen_name="H HN H1 HT1", guess_hydrogens=True).run()
    return found.results.dssp[0]


def simulation(
    stand: Stand, atoms: np.ndarray, box: np.ndarray | None, *, water: bool, seed: int
) -> app.Simulation:
    """Return a simulation of a frame, at rest; the atoms of the frame come first."""
    found = stand.assignment
    topology = openmm_topology(found.atoms)
    options = {"constraints": app.HBonds, "removeCMMotion": True}
    if water:
        modeller = app.Modeller(topology, atoms / 10 * unit.nanometer)
        modeller.topology.setPeriodicBoxVectors(reduced_box(box) / 10 * unit.nanometer)
        force_field = load(found.files)
        modeller.addSolvent(force_field, model="tip3p", neutralize=False)
        modeller.delete(list(_in_core(modeller, len(atoms))))
        topology, places = modeller.topology, modeller.positions
        options |= {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.9 * unit.nanometer}
    else:
        force_field, places = found.force_field, atoms / 10
        options |= {"nonbondedMethod": app.NoCutoff}
    system = force_field.createSystem(topology, record={}, **options)
    if not water:
        system.addForce(_born(system, topology))
    integrator = mm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, STEP)
    integrator.setRandomNumberSeed(seed)
    made = app.Simulation(topology, system, integrator)
    made.context.setPositions(places)
    if water:
        _settle(made, len(atoms))
    mm.LocalEnergyMinimizer.minimize(made.context, 10, FIRST)
    made.context.setVelocitiesToTemperature(TEMPERATURE, seed)
    return made


def _born(system: mm.System, topology: app.Topology) -> mm.GBSAOBCForce:
    """Implicit solvent."""
    charges = next(f for f in system.getForces() if isinstance(f, mm.NonbondedForce))
    on_nitrogen = {pair[k].index for pair in topology.bonds() for k in (0, 1)
                   if pair[1 - k].element is app.element.nitrogen}  # fmt: skip
    force = mm.GBSAOBCForce()
    for atom in topology.atoms():
        radius, scale = GB[atom.element.symbol]
        if atom.element is app.element.hydrogen and atom.index in on_nitrogen:
            radius = 0.13
        force.addParticle(charges.getParticleParameters(atom.index)[0], radius, scale)
    return force


def _in_core(modeller: app.Modeller, n_atoms: int) -> Iterator[app.Residue]:
    """Water between the tails."""
    places = np.array(modeller.positions.value_in_unit(unit.angstrom))
    phosphorus = [a.index for a in modeller.topology.atoms()
                  if a.index < n_atoms and a.element is app.element.phosphorus]  # fmt: skip
    if not phosphorus:
        return
    middle = places[phosphorus, 2].mean()
    for residue in modeller.topology.residues():
        first = next(residue.atoms()).index
        if first >= n_atoms and abs(places[first, 2] - middle) < CORE:
            yield residue


def _settle(made: app.Simulation, n_atoms: int) -> None:
    """Let water find its place about atoms that stand still."""
    system = made.context.getSystem()
    hold = mm.CustomExternalForce("5000*periodicdistance(x, y, z, x0, y0, z0)^2")
    for name in ("x0", "y0", "z0"):
        hold.addPerParticleParameter(name)
    places = made.context.getState(getPositions=True).getPositions(asNumpy=True)._value
    for i in range(n_atoms):
        hold.addParticle(i, places[i].tolist())
    number = system.addForce(hold)
    made.context.reinitialize(preserveState=True)
    mm.LocalEnergyMinimizer.minimize(made.context, 10, SETTLE)
    system.removeForce(number)
    made.context.reinitialize(preserveState=True)


def follow(
    stand: Stand, found: Frame, atoms: np.ndarray, box: np.ndarray | None, *,
    picoseconds: float, water: bool, seed: int,
) -> None:  # fmt: skip
    """Simulate a relaxed frame and note what becomes of it."""
    made = simulation(stand, atoms, box, water=water, seed=seed)
    chosen = stand.heavy[stand.protein] if stand.protein.any() else stand.heavy
    before = stand.structure(atoms)
    _run(made, found, atoms, chosen, before, stand.structure, picoseconds)


def _run(made, found, atoms, chosen, before, structure, picoseconds) -> None:
    """Step on and take notes."""
    began = time.perf_counter()
    for k in range(round(picoseconds / REPORT) + 1):
        made.step(round(REPORT / STEP) if k else 0)
        state = made.context.getState(getPositions=True, getEnergy=True)
        now = state.getPositions(asNumpy=True)._value[: len(atoms)] * 10
        found.time.append(k * REPORT)
        found.energy.append(round(state.getPotentialEnergy()._value, 1))
        if not np.isfinite(found.energy[-1]):
            break
        found.rmsd.append(round(float(superpose(now[chosen], atoms[chosen])[2]), 3))
        if len(before):
            found.kept.append(round(100 * float((structure(now) == before).mean()), 1))
    found.seconds = round(time.perf_counter() - began, 1)


def control(path: Path, *, picoseconds: float, seed: int) -> Frame:
    """Simulate a structure as it is, with hydrogens of OpenMM, in implicit solvent."""
    pdb = app.PDBFile(str(path))
    force_field = load(FILES["amber14"][0])
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.delete([a for a in modeller.topology.atoms() if a.element is app.element.hydrogen])
    # Water of a crystal evaporates.
    modeller.deleteWater()
    modeller.addHydrogens(force_field)
    system = force_field.createSystem(modeller.topology, record={}, constraints=app.HBonds)
    system.addForce(_born(system, modeller.topology))
    made = app.Simulation(modeller.topology, system,
                          mm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, STEP))  # fmt: skip
    made.integrator.setRandomNumberSeed(seed)
    made.context.setPositions(modeller.positions)
    mm.LocalEnergyMinimizer.minimize(made.context, 10, FIRST)
    made.context.setVelocitiesToTemperature(TEMPERATURE, seed)
    atoms = np.array(modeller.positions.value_in_unit(unit.angstrom))
    universe = mda.Universe(app.Modeller(modeller.topology, modeller.positions))
    heavy = np.array([a.element is not app.element.hydrogen for a in modeller.topology.atoms()])
    found = Frame(0, {}, {}, {})

    def structure(now: np.ndarray) -> np.ndarray:
        universe.atoms.positions = now
        return _dssp(universe)

    before = structure(atoms)
    _run(made, found, atoms, np.flatnonzero(heavy), before, structure, picoseconds)
    return found


def _summary(frames: list[Frame], n_atoms: int) -> dict[str, float]:
    """Means over frames."""
    relaxed = [f.relaxation for f in frames]
    told = (*ERRORS, *BENT)
    keys = ("seconds", "steps", "shift_A", "force_before_kJ_nm", "force_after_kJ_nm")
    mean = {key: float(np.mean([row[key] for row in relaxed])) for key in keys}
    result = {
        "frames": len(frames), "atoms": n_atoms,
        "relaxed_%": 100 * float(np.mean([row["relaxed"] for row in relaxed])),
        **mean, "largest_force_kJ_nm": max(row["force_after_kJ_nm"] for row in relaxed),
        "seconds_per_1000_atoms": mean["seconds"] / n_atoms * 1000,
        **{f"{term}_before": sum(f.errors_before[term] for f in frames) for term in told},
        **{f"{term}_after": sum(f.errors[term] for f in frames) for term in told},
    }  # fmt: skip
    ran = [f for f in frames if f.rmsd]
    if ran:
        result |= {
            "picoseconds": ran[0].time[-1],
            "survived": sum(bool(np.isfinite(f.energy).all()) for f in ran),
            "rmsd_end_A": float(np.mean([f.rmsd[-1] for f in ran])),
            "energy_start_kJ": float(np.mean([f.energy[0] for f in ran])),
            "energy_end_kJ": float(np.mean([f.energy[-1] for f in ran])),
        }
        if ran[0].kept:
            result["secondary_structure_kept_%"] = float(np.mean([f.kept[-1] for f in ran]))
    return result


@click.command()
@click.argument("trajectory", type=click.Path(path_type=Path))
@click.option("-s", "--topology", type=click.Path(path_type=Path), help="Topology of the beads.")
@click.option("--force-field", type=click.Choice(["charmm36", "amber14"]), default="amber14",
              show_default=True)  # fmt: skip
@click.option("--frames", type=click.IntRange(1), default=3, show_default=True,
              help="Spread over the trajectory.")  # fmt: skip
@click.option("--picoseconds", type=click.FloatRange(0), default=20.0, show_default=True)
@click.option("--water", is_flag=True, help="Explicit water instead of implicit.")
@click.option("--control", "structure", type=click.Path(path_type=Path), help="Atomistic structure "
              "to simulate for comparison.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File to write.")
def main(
    trajectory, topology, force_field, frames, picoseconds, water, structure, seed, json_file
) -> None:
    """Backmap, relax and simulate frames of TRAJECTORY."""
    set_threads(None)
    if picoseconds and not water and force_field != "amber14":
        raise click.UsageError("implicit solvent here is Amber's: give --water, or amber14")
    stand = Stand(trajectory, topology, force_field)
    n_frames = stand.source.universe.trajectory.n_frames
    chosen = np.unique(np.linspace(0, n_frames - 1, min(frames, n_frames)).astype(int))
    done = []
    for k in progress(chosen.tolist(), "frames"):
        found, atoms, box = stand.relaxed(k)
        if picoseconds:
            follow(stand, found, atoms, box, picoseconds=picoseconds, water=water, seed=seed)
        done.append(found)
    summary = _summary(done, len(stand.stage.atoms))
    if structure:
        done.append(control(structure, picoseconds=picoseconds, seed=seed))
        summary |= {"control_rmsd_end_A": done[-1].rmsd[-1],
                    "control_kept_%": done[-1].kept[-1]}  # fmt: skip
    for key, value in summary.items():
        click.echo(f"{key:28s}{value:14.3f}")
    if json_file:
        json_file.write_text(json.dumps({"summary": summary, "frames": [asdict(f) for f in done]},
                                        indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
