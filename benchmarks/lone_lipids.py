"""Conformations of lipids that no published membrane at hand holds, made on a CPU.

One molecule at a time, in CHARMM36 with implicit water (Onufriev, Bashford & Case 2004), its tails
held in the shape of a leaflet by a mean field (as Pastor, Venable & Karplus 1988, J. Chem. Phys.
89, 1112): carbons of tails gain `INSERTION` inside the core and keep within a cylinder, phosphates
and nitrogens pay to enter it. Molecules are heated and cooled again and again; every cycle leaves
one frame of heavy atoms, ready for ``mdbackmap prepare``. What neighbours do is not in it: learn
heads from such frames, not packing. A frame takes 2 to 6 s on one core.

    python -m benchmarks.lone_lipids POPI24 CER160 -o made --frames 100
    mdbackmap prepare made/POPI24.cif made/POPI24.xtc -o lipids_alone.npz
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np
import openmm as mm
import openmm.app as app
from mdbackmap.geometry.rings import find_rings
from mdbackmap.validation.measures import torsions
from openmm import unit
from scipy.spatial.transform import Rotation

from benchmarks.membrane_md import mend, universe_of

HOT, COLD = 600.0, 318.0
"""K. Rotamers change within picoseconds at the first; frames are kept at the second."""
STEP = 0.004
"""ps, with hydrogens of 3 u."""
HEATING, COOLING, SETTLING, STAIRS = 1000, 1250, 250, 5
"""Steps of a cycle; cooling goes down so many stairs."""
INSERTION, EXPULSION = 4.0, 8.0
"""kJ/mol: of a carbon of a tail going into the core, of a phosphate or amine going there."""
FIELD = """up * INSERTION / (1 + exp(-z / 0.15))
+ (1 - up) * EXPULSION / (1 + exp((z - 0.3) / 0.15))
+ up * 100 * (step(-1.6 - z) * (z + 1.6)^2 + step(r - 0.45) * (r - 0.45)^2);
r = sqrt(x^2 + y^2 + 1e-6)"""
"""kJ/mol and nm; the core begins at z = 0 and ends at the middle of the membrane, at -1.6."""
CHAIR = 57.0
"""Degrees."""
BORN = {"H": (0.12, 0.85), "C": (0.17, 0.72), "N": (0.155, 0.79), "O": (0.15, 0.85),
        "P": (0.185, 0.86)}  # fmt: skip
"""Radii, nm (Bondi), and scales of the generalized Born model."""


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A folder.")
@click.option("--frames", type=int, default=100, show_default=True, help="Of each lipid.")
@click.option("--seed", type=int, default=1, show_default=True)
def main(names: tuple[str, ...], output: Path, frames: int, seed: int) -> None:
    """Make conformations of lipids by name, from any mapping that CHARMM36 knows as well."""
    output.mkdir(parents=True, exist_ok=True)
    for name in names:
        start = output / f"{name}.start.cif"
        tails = _build(name, start, seed)
        began = time.monotonic()
        _cycles(start, tails, output / name, frames, seed)
        click.echo(f"{name}: {frames} frames, {time.monotonic() - began:.0f} s")


def _build(name: str, path: Path, seed: int) -> set[str]:
    """Write one lipid in all atoms; return the names of the carbons of its tails."""
    from mdbackmap import backmap
    from mdbackmap.mapping.chains import chains_of
    from mdbackmap.mapping.conformers import conformers
    from mdbackmap.mapping.library import Library
    from mdbackmap.mapping.system import one_molecule

    template = Library.load().candidates(name)[0]
    # Rings of six are chairs here, and stay so.
    beads = one_molecule(template).map_positions(conformers(template)[0])
    backmap(universe_of([template], [beads], side=200.0), path, force_field="charmm36",
            relax=True, noise=0.0, max_force=5000.0, seed=seed)  # fmt: skip
    return {str(template.names[a]) for chain in chains_of(template) for a in chain.atoms}


def _system(topology: app.Topology) -> mm.System:
    """Build CHARMM36 with implicit water, out of forces that OpenMM computes fast on a CPU."""
    system = app.ForceField("charmm36_2024.xml").createSystem(
        topology, constraints=app.HBonds, hydrogenMass=3.0,
        residueTemplates={residue: residue.name for residue in topology.residues()},
    )  # fmt: skip
    place = {type(force).__name__: k for k, force in enumerate(system.getForces())}
    charges = system.getForce(place["NonbondedForce"])
    dispersion = system.getForce(place["CustomNonbondedForce"])
    tables = [dispersion.getTabulatedFunction(k).getFunctionParameters() for k in range(2)]
    repulsion, attraction = (np.reshape(values, (n, m)) for n, m, values in tables)
    water = mm.GBSAOBCForce()
    water.setSurfaceAreaEnergy(0)
    for atom in topology.atoms():
        kind = int(dispersion.getParticleParameters(atom.index)[0])
        a, b = repulsion[kind, kind], attraction[kind, kind]
        charge = charges.getParticleParameters(atom.index)[0]
        charges.setParticleParameters(
            atom.index, charge, (a / b) ** (1 / 6) if b else 0.1, b * b / (4 * a) if a else 0.0
        )
        water.addParticle(charge, *BORN[atom.element.symbol])
    # CMAP is for proteins: empty here, and half of the time all the same.
    replaced = ("CustomNonbondedForce", "CMMotionRemover", "CMAPTorsionForce")
    for name in sorted(replaced, key=place.get, reverse=True):
        system.removeForce(place[name])
    system.addForce(water)
    return system


def _hold(system: mm.System, topology: app.Topology, places: np.ndarray, tails: set[str]):
    """Add the mean field; return the molecule upright in it, nm."""
    phosphorus = {a.index for bond in topology.bonds() for a in bond
                  if "P" in {b.element.symbol for b in bond}}  # fmt: skip
    heavy = [a for a in topology.atoms() if a.element.symbol != "H"]
    inside = [a.index for a in heavy if a.name in tails]
    head = [a.index for a in heavy if a.element.symbol == "N" or a.index in phosphorus]
    text = FIELD.replace("INSERTION", str(INSERTION)).replace("EXPULSION", str(EXPULSION))
    field = mm.CustomExternalForce(text)
    field.addPerParticleParameter("up")
    for atoms, up in ((inside, 1.0), (head, 0.0)):
        for atom in atoms:
            field.addParticle(atom, [up])
    system.addForce(field)
    middle = places[inside].mean(axis=0)
    up = places[head].mean(axis=0) - middle
    turn, _ = Rotation.align_vectors([[0, 0, 1]], [up])
    placed = turn.apply(places - middle)
    return placed - [0, 0, placed[inside, 2].max()]


def _keep_rings(system: mm.System, topology: app.Topology, places: np.ndarray) -> None:
    """Hold rings of six in the shape they start with, which the heat would change.

    As chairs, if that is what they are, with torsions of `CHAIR`.
    """
    bonds = np.array([[atom.index for atom in bond] for bond in topology.bonds()])
    hold = mm.CustomTorsionForce("500 * (1 - cos(theta - held))")
    hold.addPerTorsionParameter("held")
    rings = [ring[:6] for ring in find_rings(bonds, topology.getNumAtoms())
             if len(np.unique(ring)) == 6]  # fmt: skip
    rows = np.array([np.roll(ring, -k)[:4] for ring in rings for k in range(6)])
    rows = rows.reshape(-1, 4).astype(np.int64)
    held = torsions(places, rows)
    puckered = (np.abs(held) > 35.0).reshape(-1, 6).all(axis=1).repeat(6)
    held = np.radians(np.where(puckered, np.sign(held) * CHAIR, held))
    for row, angle in zip(rows, held, strict=True):
        hold.addTorsion(*row.tolist(), [angle])
    system.addForce(hold)


def _cycles(start: Path, tails: set[str], output: Path, frames: int, seed: int) -> None:
    """Heat and cool, and write heavy atoms after each cycle."""
    pdb = app.PDBxFile(str(start))
    pdb.topology.setPeriodicBoxVectors(None)
    system = _system(pdb.topology)
    mend(system, pdb.topology)
    places = pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    _keep_rings(system, pdb.topology, places)
    places = _hold(system, pdb.topology, places, tails)
    integrator = mm.LangevinMiddleIntegrator(COLD, 2.0, STEP)
    integrator.setRandomNumberSeed(seed)
    platform = mm.Platform.getPlatformByName("CPU")
    simulation = app.Simulation(pdb.topology, system, integrator, platform, {"Threads": "1"})
    simulation.context.setPositions(places)
    simulation.minimizeEnergy(maxIterations=500)
    simulation.context.setVelocitiesToTemperature(COLD, seed)
    modeller = app.Modeller(pdb.topology, places)
    heavy = [a.index for a in pdb.topology.atoms() if a.element is not app.element.hydrogen]
    modeller.delete([a for a in pdb.topology.atoms() if a.element is app.element.hydrogen])
    trajectory = output.with_suffix(".xtc")
    trajectory.unlink(missing_ok=True)
    cycle = HEATING + COOLING + SETTLING
    writer = app.XTCFile(str(trajectory), modeller.topology, STEP, 0, cycle)
    for number in range(frames):
        for temperature, steps in _stairs():
            integrator.setTemperature(temperature)
            simulation.step(steps)
        state = simulation.context.getState(getPositions=True)
        now = state.getPositions(asNumpy=True)[heavy]
        writer.writeModel(now, periodicBoxVectors=np.eye(3) * 20 * unit.nanometer)
        if not number:
            with output.with_suffix(".cif").open("w") as handle:
                app.PDBxFile.writeFile(modeller.topology, now, handle, keepIds=True)


def _stairs() -> list[tuple[float, int]]:
    """Temperatures of a cycle, K, and the steps spent at each."""
    down = np.linspace(HOT, COLD, STAIRS + 1)[1:]
    return [(HOT, HEATING), *((t, COOLING // STAIRS) for t in down), (COLD, SETTLING)]


if __name__ == "__main__":
    main()
