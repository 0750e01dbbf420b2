"""Atomistic membranes of lipids that no published trajectory at hand holds, to learn from.

``build`` lays lipids of any Martini 3 mapping out as beads, backmaps and relaxes them with this
package, and adds water and ions; ``run`` simulates the patch at constant pressure and temperature
(CHARMM36, tensionless) and writes heavy atoms of lipids, whole, ready for ``mdbackmap prepare``.
The two halves may run on different machines: ``run`` needs OpenMM and NumPy only, and takes the
fastest platform that there is.

    python -m benchmarks.membrane_md build DOPE:40 DOPS:20 CER180:12 -o patch.cif
    python -m benchmarks.membrane_md run patch.cif -o made/patch --minutes 8
    mdbackmap prepare made/patch.cif made/patch.xtc -o lipids_md.npz
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import click
import numpy as np
import openmm as mm
import openmm.app as app
from openmm import unit

FORCE_FIELD = ("charmm36_2024.xml", "charmm36_2024/water.xml")
AREA = 75.0
"""Å^2 per lipid to begin with; the barostat finds the right one."""
WATER = 18.0
"""Å of water on either side of the outermost bead."""
SALT = 0.15
"""mol/l."""
TOP, RISE, APART = 16.0, 3.7, 4.7
"""Å: height of the beads where tails begin, height from one bead to the next, and the distance
that beads keep."""
CORE = 14.0
"""Å from the middle within which water is taken out."""
SOLVENT = {"HOH", "NA", "CL"}


@click.group()
def main() -> None:
    """Make atomistic membranes to learn from."""


@main.command()
@click.argument("composition", nargs=-1, required=True, metavar="NAME:NUMBER...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A .cif.")
@click.option("--seed", type=int, default=1, show_default=True)
def build(composition: tuple[str, ...], output: Path, seed: int) -> None:
    """Lay out, backmap, relax and solvate a patch with so many lipids in both leaflets together."""
    from mdbackmap import backmap
    from mdbackmap.mapping.library import Library

    rng = np.random.default_rng(seed)
    library = Library.load()
    names = [name for part in composition for name in _several(part)]
    templates = [library.candidates(name)[0] for name in rng.permutation(names).tolist()]
    beads, side = _lay_out(templates, rng)
    click.echo(f"{len(templates)} lipids laid out, {side:.1f} Å across")
    dry = output.with_suffix(".dry.cif")
    done = backmap(universe_of(templates, beads, side), dry, force_field="charmm36", relax=True,
                   max_force=5000.0, seed=seed)  # fmt: skip
    click.echo(f"{dry}: {done.n_atoms} atoms, {done.outcome}")
    topology, positions = _solvated(dry, side, beads)
    with output.open("w") as handle:
        app.PDBxFile.writeFile(topology, positions, handle, keepIds=True)
    click.echo(f"{output}: {topology.getNumAtoms()} atoms, box {side:.1f} Å")


def _several(part: str) -> list[str]:
    name, _, number = part.partition(":")
    if not number.isdigit():
        raise click.UsageError(f"{part}: expected NAME:NUMBER")
    return [name] * int(number)


def _lay_out(templates: list, rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
    """Return beads of every lipid, Å, and the side of the box.

    Beads are pulled to the height that their distance from the glycerol (or whatever polar bead
    bears the tails) suggests, keep their distance, and are bonded; steepest descent does the rest.
    """
    import torch
    from mdbackmap.graph.neighbours import close_pairs

    per_leaflet = (len(templates) + 1) // 2
    across = int(np.ceil(np.sqrt(per_leaflet)))
    side = float(np.sqrt(per_leaflet * AREA))
    start, height, bonds, molecule = [], [], [], []
    for k, template in enumerate(templates):
        up = 1.0 if k % 2 else -1.0
        cell = np.divmod(k // 2, across)
        z, pairs = _heights(template)
        place = (np.array(cell) + 0.5) * side / across + rng.normal(scale=1.5, size=(len(z), 2))
        bonds += [pair + len(molecule) for pair in pairs]
        start.append(np.column_stack([place, up * z]))
        height += (up * z).tolist()
        molecule += [k] * len(z)
    x = torch.tensor(np.concatenate(start), dtype=torch.float32, requires_grad=True)
    height, bonds = torch.tensor(height, dtype=torch.float32), torch.tensor(np.array(bonds))
    box = np.diag([side, side, 1000.0])
    optimizer = torch.optim.Adam([x], lr=0.1)
    for step in range(600):
        if step % 10 == 0:
            first, second, vectors = close_pairs(x.detach().numpy(), box, APART + 2)
            apart = ~_among(first, second, bonds.numpy())
            first, second = torch.from_numpy(first[apart]), torch.from_numpy(second[apart])
            image = torch.from_numpy(vectors[apart]) - (x[second] - x[first]).detach()
        optimizer.zero_grad()
        distance = (x[second] - x[first] + image).norm(dim=1)
        length = (x[bonds[:, 0]] - x[bonds[:, 1]]).norm(dim=1)
        energy = ((APART - distance).clamp(min=0) ** 2).sum() + 2 * ((length - 4.0) ** 2).sum()
        (energy + 0.3 * ((x[:, 2] - height) ** 2).sum()).backward()
        optimizer.step()
    places = x.detach().numpy()
    return np.split(places, np.flatnonzero(np.diff(molecule)) + 1), side


def _among(first: np.ndarray, second: np.ndarray, bonds: np.ndarray) -> np.ndarray:
    n = bonds.max() + 1
    return np.isin(first * n + second, bonds.min(1) * n + bonds.max(1))


def _heights(template) -> tuple[np.ndarray, np.ndarray]:
    """Return how high each bead should be, and which beads are bonded."""
    pairs = np.unique(np.sort(template.atom_bead[template.constraints.bonds], axis=1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    hops = np.full((template.n_beads,) * 2, np.inf)
    np.fill_diagonal(hops, 0)
    hops[pairs[:, 0], pairs[:, 1]] = hops[pairs[:, 1], pairs[:, 0]] = 1
    for k in range(len(hops)):
        hops = np.minimum(hops, hops[:, k : k + 1] + hops[k])
    polar = np.unique(template.atom_bead[template.elements != "C"])
    tail = np.setdiff1d(np.arange(len(hops)), polar)
    bears = polar[(hops[np.ix_(polar, tail)] == 1).any(1)]
    height = TOP + RISE * hops[:, bears].min(1)
    height[tail] = TOP - RISE * hops[np.ix_(tail, polar)].min(1)
    return height, pairs


def universe_of(templates: list, beads: list[np.ndarray], side: float):
    """Return the beads as a Universe of MDAnalysis."""
    import MDAnalysis as mda

    sizes = [t.n_beads for t in templates]
    universe = mda.Universe.empty(
        sum(sizes), len(sizes), atom_resindex=np.repeat(np.arange(len(sizes)), sizes),
        trajectory=True,
    )  # fmt: skip
    universe.add_TopologyAttr("name", [name for t in templates for name in t.bead_names])
    universe.add_TopologyAttr("resname", [t.residue for t in templates])
    universe.add_TopologyAttr("resid", np.arange(1, len(sizes) + 1))
    universe.add_TopologyAttr("segid", ["MEMB"])
    universe.atoms.positions = np.concatenate(beads)
    universe.dimensions = [side, side, 2 * _half(beads), 90, 90, 90]
    return universe


def _half(beads: list[np.ndarray]) -> float:
    return float(max(np.abs(own[:, 2]).max() for own in beads)) + WATER


def _solvated(dry: Path, side: float, beads: list[np.ndarray]) -> tuple[app.Topology, list]:
    force_field = app.ForceField(*FORCE_FIELD)
    pdb = app.PDBxFile(str(dry))
    middle = np.array([side / 2, side / 2, _half(beads)])
    places = pdb.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    modeller = app.Modeller(pdb.topology, (places + middle * [0, 0, 1]) * unit.angstrom)
    modeller.topology.setPeriodicBoxVectors(np.diag(2 * middle) * unit.angstrom)
    modeller.addSolvent(force_field, ionicStrength=SALT * unit.molar,
                        residueTemplates=_templates(modeller.topology))  # fmt: skip
    now = np.array(modeller.positions.value_in_unit(unit.angstrom))
    inside = [r for r in modeller.topology.residues() if r.name == "HOH"
              and abs(now[next(r.atoms()).index, 2] - middle[2]) < CORE]  # fmt: skip
    modeller.delete(inside)
    return modeller.topology, modeller.positions


def _templates(topology: app.Topology) -> dict:
    """Templates by name where graphs do not tell: some inositides differ in charges only."""
    return {r: r.name for r in topology.residues() if "PI" in r.name}


@main.command()
@click.argument("patch", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True,
              help="Without suffix: .cif and .xtc are added.")  # fmt: skip
@click.option("--minutes", type=float, default=8.0, show_default=True, help="Wall-clock, in all.")
@click.option("--every", type=float, default=40.0, show_default=True, help="ps between frames.")
@click.option("--skip", type=float, default=400.0, show_default=True, help="ps left out.")
@click.option("--temperature", type=float, default=318.0, show_default=True, help="K.")
@click.option("--seed", type=int, default=1, show_default=True)
def run(patch, output, minutes, every, skip, temperature, seed) -> None:
    """Simulate a patch and keep the lipids' heavy atoms."""
    end = time.monotonic() + 60 * minutes
    pdb = app.PDBxFile(str(patch))
    system = app.ForceField(*FORCE_FIELD).createSystem(
        pdb.topology, nonbondedMethod=app.PME, nonbondedCutoff=1.2, switchDistance=1.0,
        constraints=app.HBonds, hydrogenMass=3.0, residueTemplates=_templates(pdb.topology),
    )  # fmt: skip
    mend(system, pdb.topology)
    gentle = mm.LangevinMiddleIntegrator(temperature, 10.0, 0.0005)
    simulation = app.Simulation(pdb.topology, system, gentle)
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy(tolerance=100, maxIterations=2000)
    simulation.context.setVelocitiesToTemperature(temperature, seed)
    for step in (0.0005, 0.001, 0.002):
        gentle.setStepSize(step)
        simulation.step(5000)
    state = simulation.context.getState(getPositions=True, getVelocities=True)
    system.addForce(mm.MonteCarloMembraneBarostat(
        1.0, 0.0, temperature, mm.MonteCarloMembraneBarostat.XYIsotropic,
        mm.MonteCarloMembraneBarostat.ZFree, 50))  # fmt: skip
    simulation = app.Simulation(pdb.topology, system,
                                mm.LangevinMiddleIntegrator(temperature, 1.0, 0.004))  # fmt: skip
    simulation.context.setState(state)
    platform = simulation.context.getPlatform().getName()
    click.echo(f"{platform}: {system.getNumParticles()} atoms, ready after "
               f"{60 * minutes - (end - time.monotonic()):.0f} s")  # fmt: skip
    kept = [a.index for a in pdb.topology.atoms()
            if a.residue.name not in SOLVENT and a.element is not app.element.hydrogen]  # fmt: skip
    _follow(simulation, kept, output, end, round(every / 0.004), round(skip / every))


def mend(system: mm.System, topology: app.Topology) -> None:
    """Bond the inositol of inositides to its phosphate.

    `charmm36_2024.xml` of OpenMM 8.6 has no parameters for that bond, its angles and torsions, and
    leaves them out without a word; those of choline are taken.
    """
    forces = {type(force).__name__: force for force in system.getForces()}
    names = ("HarmonicBondForce", "HarmonicAngleForce", "PeriodicTorsionForce")
    stretch, bend, turn = (forces[name] for name in names)
    pairs = [stretch.getBondParameters(k)[:2] for k in range(stretch.getNumBonds())]
    pairs += [system.getConstraintParameters(k)[:2] for k in range(system.getNumConstraints())]
    known = {frozenset(pair) for pair in pairs}
    bonds = [frozenset(atom.index for atom in bond) for bond in topology.bonds()]
    near: dict[int, set[int]] = {}
    for i, j in bonds:
        near.setdefault(i, set()).add(j)
        near.setdefault(j, set()).add(i)
    element = [atom.element.symbol for atom in topology.atoms()]
    for pair in set(bonds) - known:
        p, o = sorted(pair, key=lambda k: element[k] != "P")
        (c,) = near[o] - {p}
        if [element[k] for k in (p, o, c)] != ["P", "O", "C"]:
            raise click.ClickException(
                f"CHARMM36 has no parameters for a bond {element[p]}-{element[o]}"
            )
        stretch.addBond(p, o, 0.16, 225936.0)
        bend.addAngle(c, o, p, math.radians(120.0), 167.36)
        for x in near[p] - {o}:
            ester = len(near[x]) > 1
            bend.addAngle(x, p, o, *((math.radians(104.3), 669.44) if ester
                                     else (math.radians(111.6), 827.5952)))  # fmt: skip
            terms = ((1, math.pi, 5.0208), (2, math.pi, 0.4184), (3, math.pi, 0.4184))
            for term in terms if ester else ((3, 0.0, 0.4184),):
                turn.addTorsion(c, o, p, x, *term)
        for x in near[c] - {o}:
            if element[x] != "H":
                turn.addTorsion(x, c, o, p, 2, 0.0, 1.702888)
                turn.addTorsion(x, c, o, p, 1, math.pi, 1.008344)


def _follow(simulation, kept: list[int], output: Path, end: float, steps: int, skip: int) -> None:
    """Write frames until time is up."""
    modeller = app.Modeller(simulation.topology, np.zeros((simulation.topology.getNumAtoms(), 3)))
    inside = set(kept)
    modeller.delete([a for a in simulation.topology.atoms() if a.index not in inside])
    trajectory, written, began = output.with_suffix(".xtc"), 0, time.monotonic()
    trajectory.unlink(missing_ok=True)
    writer = app.XTCFile(str(trajectory), modeller.topology, 0.004, 0, steps)
    frame = 0
    while time.monotonic() < end:
        simulation.step(steps)
        frame += 1
        state = simulation.context.getState(getPositions=True, enforcePeriodicBox=False)
        if frame <= skip:
            continue
        places = state.getPositions(asNumpy=True)[kept]
        vectors = state.getPeriodicBoxVectors()
        writer.writeModel(places, periodicBoxVectors=vectors)
        written += 1
        if written == 1:
            modeller.topology.setPeriodicBoxVectors(vectors)
            with output.with_suffix(".cif").open("w") as handle:
                app.PDBxFile.writeFile(modeller.topology, places, handle, keepIds=True)
    nanoseconds = frame * steps * 4e-6
    area = vectors[0][0]._value * vectors[1][1]._value * 100
    speed = nanoseconds / (time.monotonic() - began) * 86400
    click.echo(f"{output}: {written} frames of {nanoseconds:.2f} ns ({speed:.0f} ns/day), "
               f"box {area:.0f} Å^2")  # fmt: skip


if __name__ == "__main__":
    main()
