"""Restrained minimisation of frames."""

from __future__ import annotations

import csv
import dataclasses
import pickle
from pathlib import Path

import MDAnalysis as mda
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mdbackmap.errors import FrameError
from mdbackmap.geometry.boxes import heights, minimum_image
from mdbackmap.io.source import CGSource
from mdbackmap.io.transformation import inspected, lay_out
from mdbackmap.mapping.conformers import conformers
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import one_molecule
from mdbackmap.pipeline import Backmapper, Options
from mdbackmap.relax import minimise
from mdbackmap.relax.force_fields import assign
from mdbackmap.relax.minimise import Relaxer, reduced_box
from mdbackmap.relax.potential import Potential
from mdbackmap.relax.reference import Reference
from mdbackmap.validation.checks import Checker
from mdbackmap.validation.measures import torsions

from helpers_io import DATA, TPR, XTC, fails, ok, run

PROTEIN = DATA / "1l2y.pdb"
MUST_HOLD = ("stereocentres", "double_bonds", "cis_peptides", "pierced_rings", "overlaps")


@pytest.fixture(scope="module")
def made() -> tuple[Backmapper, list]:
    """Backmapped frames of ubiquitin that nobody relaxed, with what relaxing needs."""
    source = CGSource.open(XTC, TPR)
    backmapper = inspected(Backmapper(lay_out(source)), source)
    frames = []
    for k in range(2):
        frame = source.read(k)
        beads = backmapper.unwrap(frame.positions[backmapper.layout.bead_source], frame.box)
        frames.append((backmapper(beads, frame.box, k), beads, frame.box))
    return backmapper, frames


@pytest.fixture(scope="module")
def reference(made: tuple[Backmapper, list]) -> Reference:
    backmapper, _ = made
    return Reference.of(backmapper.layout, backmapper.atoms, backmapper.all_atoms.heavy)


@pytest.fixture(scope="module")
def relaxer(reference: Reference) -> Relaxer:
    found = assign(reference.atoms, "amber14")
    return Relaxer(Potential(reference, found, periodic=True), threads=1)


def wrong(backmapper: Backmapper, positions: np.ndarray, box: np.ndarray | None) -> dict[str, int]:
    found = Checker(backmapper.layout)(positions[backmapper.all_atoms.heavy], box).counts
    return {term: found[term].wrong for term in MUST_HOLD}


def test_frames_relax(made: tuple[Backmapper, list], relaxer: Relaxer) -> None:
    backmapper, frames = made
    context = relaxer.context
    for k, (positions, beads, box) in enumerate(frames):
        found = relaxer(positions, beads, box, k)
        assert found.converged, found.problems
        assert found.force_after <= 500 < found.force_before
        assert found.energy_after < found.energy_before
        assert 0 < found.shift < 0.5
        assert set(wrong(backmapper, found.positions, box).values()) == {0}
        moved = np.linalg.norm(found.positions - positions, axis=1)
        heavy = backmapper.all_atoms.heavy
        assert found.shift == pytest.approx(moved[heavy].mean(), rel=1e-3)
    assert relaxer.context is context


def test_beads_hold(made: tuple[Backmapper, list], relaxer: Relaxer, reference: Reference) -> None:
    positions, beads, box = made[1][0]
    found = relaxer(positions, beads, box)
    moved = reference.beads_of(found.positions) - reference.beads_of(positions)
    assert np.linalg.norm(moved, axis=1).mean() < 0.4


def test_any_image_of_the_beads_will_do(made: tuple[Backmapper, list], relaxer: Relaxer) -> None:
    positions, beads, box = made[1][0]
    other = beads + np.random.default_rng(0).integers(-2, 3, (len(beads), 1)) @ box[:1]
    one, two = relaxer(positions, beads, box), relaxer(positions, other, box)
    assert np.linalg.norm(one.positions - two.positions, axis=1).mean() < 0.1


def test_without_a_force_field(made: tuple[Backmapper, list], reference: Reference) -> None:
    backmapper, frames = made
    positions, beads, _ = frames[0]
    found = Relaxer(Potential(reference, periodic=False), threads=1)(positions, beads)
    assert found.converged, found.problems
    assert set(wrong(backmapper, found.positions, None).values()) == {0}


@pytest.mark.parametrize("name", ["CAFF", "INDO"])
def test_any_molecule_relaxes(name: str, library: Library) -> None:
    template = next(t for t in library.templates if t.residue == name)
    system = one_molecule(template)
    beads = system.map_positions(conformers(template)[0]).astype(np.float32)
    backmapper = Backmapper(system)
    start = backmapper(beads)
    start = start + np.random.default_rng(1).normal(0, 0.1, start.shape)
    reference = Reference.of(system, backmapper.atoms, backmapper.all_atoms.heavy)
    found = Relaxer(Potential(reference, periodic=False), threads=1)(start, beads)
    assert found.converged, found.problems
    counts = Checker(system)(found.positions[backmapper.all_atoms.heavy]).counts
    assert all(counts[t].wrong == 0 for t in ("bonds", "angles", "stereocentres", "double_bonds"))


def test_hands_are_held(made: tuple[Backmapper, list], relaxer: Relaxer) -> None:
    """Flattened centres go back to the hand they had, not over."""
    backmapper, frames = made
    positions, beads, box = frames[0]
    flat = positions.astype(np.float64).copy()
    centres = relaxer.potential.centres[::7]
    for x, a, b, c in centres.tolist():
        normal = np.cross(flat[b] - flat[a], flat[c] - flat[a])
        normal /= np.linalg.norm(normal)
        flat[x] -= 0.8 * ((flat[x] - flat[a]) @ normal) * normal
    found = relaxer(flat, beads, box)
    assert wrong(backmapper, found.positions, box)["stereocentres"] == 0


def test_clashes_do_not_explode(made: tuple[Backmapper, list], relaxer: Relaxer) -> None:
    positions, beads, box = made[1][0]
    mixed = positions.copy()
    polar = np.flatnonzero(relaxer.atoms.elements == "H")[::40]
    mixed[polar] = positions[np.roll(polar, 1) - 1] + 0.05
    found = relaxer(mixed, beads, box)
    assert np.isfinite(found.positions).all()
    assert found.energy_after < found.energy_before


def test_a_frame_that_does_not_converge_is_marked(
    made: tuple[Backmapper, list], reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minimise, "STEPS", 20)
    positions, beads, box = made[1][0]
    strict = Relaxer(Potential(reference, periodic=True), max_force=1e-3, threads=1)
    found = strict(positions, beads, box, 4)
    assert not found.converged
    assert "largest force" in found.problems[0]
    assert reference.atoms.resnames[found.worst] in found.problems[0]
    assert np.isfinite(found.positions).all()


def test_an_explosion_leaves_the_frame_as_it_was(
    made: tuple[Backmapper, list], relaxer: Relaxer, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions, beads, box = made[1][0]
    blown = positions.astype(np.float64).copy()
    blown[7] = np.nan
    monkeypatch.setattr(relaxer, "_positions", lambda: blown)
    found = relaxer(positions, beads, box)
    assert not found.converged
    assert "blew up" in found.problems[0]
    np.testing.assert_array_equal(found.positions, positions)


def test_an_explosion_that_openmm_refuses_is_told_too(
    made: tuple[Backmapper, list], relaxer: Relaxer, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions, beads, box = made[1][0]
    descend = relaxer._descend

    def blown(*given):
        places = relaxer._positions() / 10
        places[7] = np.nan
        relaxer.context.setPositions(places)
        return descend(*given)

    monkeypatch.setattr(relaxer, "_descend", blown)
    found = relaxer(positions, beads, box)
    assert "blew up" in found.problems[0]
    np.testing.assert_array_equal(found.positions, positions)
    monkeypatch.undo()
    assert relaxer(positions, beads, box).converged


def test_frames_that_cannot_be_relaxed(made: tuple[Backmapper, list], relaxer: Relaxer) -> None:
    positions, beads, box = made[1][0]
    with pytest.raises(FrameError, match=r"frame 3: expected positions of shape \(1231, 3\)"):
        relaxer(np.where(np.arange(len(positions))[:, None] == 5, np.nan, positions), beads, box, 3)
    with pytest.raises(FrameError, match="frame 4: has no box"):
        relaxer(positions, beads, None, 4)
    with pytest.raises(FrameError, match=r"frame 5: the box has 1\.\d+ nm between opposite faces"):
        relaxer(positions, beads, box * 0.3, 5)


@given(st.lists(st.floats(-200, 200), min_size=3, max_size=3), st.floats(20, 90))
def test_reduced_boxes_span_the_same_lattice(skew: list[float], side: float) -> None:
    box = np.array([[side, 0, 0], [skew[0], side, 0], [skew[1], skew[2], side]])
    found = reduced_box(box)
    assert abs(found[1, 0]) <= found[0, 0] / 2
    assert abs(found[2, 0]) <= found[0, 0] / 2
    assert abs(found[2, 1]) <= found[1, 1] / 2
    steps = found @ np.linalg.inv(box)
    # The same lattice, but for the hair that keeps a box off the edge.
    assert np.abs(steps - np.round(steps)).max() < 1e-5
    assert heights(found).min() > 0


@pytest.mark.parametrize("box", [None, np.array([[20.0, 0, 0], [7, 19, 0], [-6, 5, 18]])])
def test_atoms_around_others(box: np.ndarray | None) -> None:
    positions = np.random.default_rng(3).uniform(-30, 30, (300, 3))
    chosen = np.isin(np.arange(300), (4, 17))
    gaps = minimum_image(positions[:, None] - positions[chosen], box)
    expected = (np.linalg.norm(gaps, axis=2) < minimise.AROUND).any(axis=1)
    assert 0 < expected.sum() < 300
    assert (minimise.around(positions, chosen, box) == expected).all()
    assert not minimise.around(positions, np.zeros(300, dtype=bool), box).any()


def test_cis_peptides_stay_cis(made: tuple[Backmapper, list], reference: Reference) -> None:
    positions, beads, box = made[1][0]
    may = np.arange(len(reference.omegas)) == 3
    turned = dataclasses.replace(reference, may_be_cis=may)
    potential = Potential(turned, periodic=True)
    relaxer = Relaxer(potential, threads=1)
    relaxer(positions, beads, box)
    row = len(turned.constraints.torsions) + 3
    assert potential.sides.values[row, 0] == -1.0
    mirrored = -positions
    potential.hold(relaxer.context, mirrored, -beads)
    assert potential.sides.values[row, 0] == -1.0


def test_backmapper_relaxes_and_can_be_sent(made: tuple[Backmapper, list]) -> None:
    plain, frames = made
    _, beads, box = frames[0]
    source = CGSource.open(XTC, TPR)
    options = Options(relax=True, force_field="amber14")
    backmapper = inspected(Backmapper(lay_out(source), None, options), source)
    assert "H1" in backmapper.atoms.names
    positions = backmapper(beads, box, 0)
    assert backmapper.stage.results[0].converged
    assert backmapper.stage.results[0].positions is None
    sent = pickle.loads(pickle.dumps(backmapper))  # noqa: S301 (made on this line)
    assert np.linalg.norm(sent(beads, box, 0) - positions, axis=1).mean() < 0.1
    assert len(plain.atoms) == len(backmapper.atoms)


def test_a_kept_structure_is_laid_onto_the_beads(tmp_path: Path) -> None:
    """A structure mapped to beads comes back as it was."""
    ok("map", PROTEIN, "-o", tmp_path / "cg.pdb")
    source = CGSource.open(tmp_path / "cg.pdb")
    backmapper = inspected(
        Backmapper(lay_out(source), None, Options(keep=PROTEIN, hydrogens=False)), source
    )
    frame = source.read(0)
    positions = backmapper(frame.positions[backmapper.layout.bead_source], None, 0)
    known = mda.Universe(str(PROTEIN)).select_atoms("not element H")
    place = {(a.resid, a.name): a.position for a in known}
    table = backmapper.atoms
    want = np.array([place[int(r), n] for r, n in zip(table.resids, table.names, strict=True)])
    assert np.sqrt(((positions - want) ** 2).sum(axis=1).mean()) < 0.15


def test_a_structure_of_something_else_is_refused(tmp_path: Path) -> None:
    message = fails("convert", XTC, "-s", TPR, "-o", tmp_path / "aa.xtc", "--keep", PROTEIN)
    assert "no chain of the beads has" in message


def test_convert(tmp_path: Path) -> None:
    out = ok("convert", XTC, "-s", TPR, "-o", tmp_path / "aa.xtc", "--stop", 2, "--relax",
             "--force-field", "amber14", "--write-topology")  # fmt: skip
    assert "relaxed: 2 of 2 frames" in out
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"aa.xtc", "aa.pdb", "aa_relax.csv", "aa_system.xml", "aa.top", "aa.gro"}
    with (tmp_path / "aa_relax.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["relaxed"] for row in rows] == ["True", "True"]
    assert all(float(row["force_after_kJ_nm"]) <= 500 for row in rows)
    import openmm.app as app

    structure = app.PDBFile(str(tmp_path / "aa.pdb"))
    system = app.ForceField("amber14-all.xml").createSystem(structure.topology)
    assert system.getNumParticles() == 1231


def test_convert_says_what_did_not_relax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minimise, "STEPS", 20)
    result = run("convert", XTC, "-s", TPR, "-o", tmp_path / "aa.xtc", "--stop", 1, "--relax",
                 "--force-field", "none", "--max-force", 0.001)  # fmt: skip
    assert result.code == 0
    assert "frame 0: not relaxed" in result.err
    assert "not relaxed, but written: frames 0" in result.err
    assert "False" in (tmp_path / "aa_relax.csv").read_text()
    assert mda.Universe(str(tmp_path / "aa.pdb")).atoms.n_atoms == 1231


def test_topologies_need_a_force_field(tmp_path: Path) -> None:
    where = ("convert", XTC, "-s", TPR, "-o", tmp_path / "aa.xtc")
    assert "give --force-field" in fails(*where, "--write-topology", code=2)
    message = fails(*where, "--force-field", "amber14", "--force-field-file", tmp_path / "no.xml")
    assert "no force field" in message
    message = fails(*where, "--force-field", "amber14", "--no-hydrogens")
    assert "leave out --no-hydrogens" in message


def test_peptides_do_not_turn(made: tuple[Backmapper, list], relaxer: Relaxer) -> None:
    backmapper, frames = made
    positions, beads, box = frames[1]
    found = relaxer(positions, beads, box)
    heavy = backmapper.all_atoms.heavy
    omegas = heavy[backmapper.layout.omegas]
    before, after = torsions(positions, omegas), torsions(found.positions, omegas)
    assert (np.cos(np.radians(before - after)) > 0.5).all()


def test_strained_beads_do_not_twist_peptides() -> None:
    source = CGSource.open(DATA / "lysozyme_go.gro")
    backmapper = inspected(Backmapper(lay_out(source), None, Options(relax=True)), source)
    stage, frame, system = backmapper.stage, source.read(0), backmapper.layout
    beads = backmapper.unwrap(frame.positions[system.bead_source], frame.box)
    relaxed = backmapper(beads, frame.box)
    assert stage.results[0].converged
    off = 180 - np.abs(torsions(relaxed[stage.heavy], system.omegas, None))
    # 13 of 128, 8.0 degrees in the mean, where angles may relax into peptides.
    assert (off > 20).sum() <= 4
    assert off.mean() < 7.2
