"""The all-atom reader, the transformation, and the Universes they make."""

from __future__ import annotations

import pickle

import MDAnalysis as mda
import mdbackmap
import numpy as np
import pytest
from MDAnalysis.analysis.base import AnalysisBase
from MDAnalysis.analysis.rms import RMSF
from MDAnalysis.coordinates.memory import MemoryReader
from MDAnalysis.transformations import center_in_box, translate
from mdbackmap.errors import FrameError, MdbackmapError, StructureError
from mdbackmap.io.source import CGSource
from mdbackmap.models.library import shipped
from mdbackmap.pipeline import Backmapper

from helpers_io import GRO, MEMBRANE, TPR, XTC, XTC_PRECISION, load, ok, positions

FRAMES = 31
"""Frames of the ubiquitin trajectory."""


@pytest.fixture(scope="module")
def opened(converted):
    """What ``convert`` wrote, as a Universe."""
    return load(converted / "aa.pdb", converted / "aa.xtc")


@pytest.fixture(scope="module")
def written(opened):
    return positions(opened)


@pytest.fixture
def cg():
    return load(TPR, XTC)


@pytest.fixture
def aa(cg, weights):
    return mdbackmap.universe(cg, weights, solvent="drop")


@pytest.fixture
def calls(monkeypatch):
    """Frames the network was run for."""
    seen = []
    run = Backmapper.__call__

    def counted(self, beads, box=None, frame=0):
        seen.append(frame)
        return run(self, beads, box, frame)

    monkeypatch.setattr(Backmapper, "__call__", counted)
    return seen


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=XTC_PRECISION)


# Access


def test_topology_is_the_one_convert_writes(aa, opened):
    for name in ("names", "resnames", "resids", "chainIDs", "elements", "segids", "record_types"):
        assert (getattr(aa.atoms, name) == getattr(opened.atoms, name)).all(), name
    assert (aa.bonds.indices == opened.bonds.indices).all()


@pytest.mark.parametrize("frame", [5, 0, 30, -1, -31])
def test_any_frame_is_that_of_the_file(aa, written, frame):
    close(aa.trajectory[frame].positions, written[frame])
    assert aa.trajectory.frame == frame % FRAMES


@pytest.mark.parametrize(
    "index",
    [slice(2, 9, 3), slice(20, 2, -7), slice(-2, None), [4, 1, 1, 30], np.arange(31) % 10 == 0],
    ids=["slice", "backwards", "tail", "list", "mask"],
)
def test_slices_and_fancy_indices(aa, written, index):
    frames = [(ts.frame, ts.positions.copy()) for ts in aa.trajectory[index]]
    expected = np.arange(FRAMES)[index]
    assert [frame for frame, _ in frames] == expected.tolist()
    close([found for _, found in frames], written[expected])


def test_iteration_starts_over(aa):
    for _ in range(2):
        assert [ts.frame for ts in aa.trajectory] == list(range(FRAMES))
    assert aa.trajectory.frame == 0
    assert next(aa.trajectory).frame == 1


def test_out_of_range(aa):
    with pytest.raises(IndexError):
        aa.trajectory[FRAMES]


def test_times_and_boxes_are_carried_over(cg, aa):
    assert aa.trajectory.n_frames == FRAMES
    assert aa.trajectory.dt == cg.trajectory.dt == 1000
    assert aa.trajectory.totaltime == cg.trajectory.totaltime
    for theirs, ours in zip(cg.trajectory, aa.trajectory, strict=True):
        assert ours.time == theirs.time
        assert ours.data["step"] == theirs.data["step"]
        np.testing.assert_array_equal(ours.dimensions, theirs.dimensions)


def test_write_all_frames(aa, written, tmp_path):
    aa.select_atoms("name CA").write(str(tmp_path / "ca.xtc"), frames=aa.trajectory[:5])
    aa.atoms.write(str(tmp_path / "all.trr"), frames="all")
    names = aa.atoms.names == "CA"
    close(load(tmp_path / "ca.xtc").trajectory.timeseries(), written[:5, names])
    again = load(tmp_path / "all.trr").trajectory
    close(again.timeseries(), written)
    assert again[7].time == 7000


def test_timeseries_and_transfer_to_memory(aa, written):
    chosen = aa.select_atoms("resid 3 and name CA")
    close(aa.trajectory.timeseries(chosen, stop=4)[:, 0], written[:4, chosen.ix[0]])
    aa.transfer_to_memory(start=2, stop=8, step=2)
    assert isinstance(aa.trajectory, MemoryReader)
    close(positions(aa), written[2:8:2])
    assert aa.trajectory.dt == 2000


def test_atoms_can_be_moved_until_the_next_frame(aa, written):
    aa.atoms.translate([1.0, 2.0, 3.0])
    close(aa.atoms.positions, written[0] + [1.0, 2.0, 3.0])
    aa.trajectory[0]
    close(aa.atoms.positions, written[0])
    aa.trajectory.ts.positions = np.ones((len(aa.atoms), 3))
    assert (aa.atoms.positions == 1).all()


# Copies and pickles


def pickled(universe):
    return pickle.loads(pickle.dumps(universe))  # noqa: S301 (made on this line)


cloned = pytest.mark.parametrize("clone", [mda.Universe.copy, pickled], ids=["copy", "pickle"])


@cloned
def test_clones_are_independent(aa, written, clone):
    aa.trajectory[3]
    other = clone(aa)
    assert other.trajectory.frame == 3
    close(other.atoms.positions, written[3])
    other.trajectory[8]
    assert aa.trajectory.frame == 3
    close(aa.atoms.positions, written[3])
    close(other.atoms.positions, written[8])
    assert other.trajectory.cg is not aa.trajectory.cg


def test_clones_and_pickles_run_no_network(aa, calls):
    other = pickled(aa).copy()
    aa.trajectory.ts.copy()
    assert calls == []
    _ = other.atoms.positions
    assert calls == [0]


def test_a_copied_timestep_stays_what_it_was(aa, written):
    aa.trajectory[4]
    kept = aa.trajectory.ts.copy()
    aa.trajectory[9]
    close(kept.positions, written[4])
    close(aa.trajectory[4].copy_slice([0, 5]).positions, written[4, [0, 5]])


def test_two_readers_of_one_universe(cg, weights, written):
    cg.trajectory[6]
    one = mdbackmap.universe(cg, weights, solvent="drop")
    two = mdbackmap.universe(cg, weights, solvent="drop")
    for ts, other in zip(one.trajectory[:3], two.trajectory[5:2:-1], strict=True):
        close(ts.positions, written[ts.frame])
        close(other.positions, written[other.frame])
    assert cg.trajectory.frame == 6


def test_the_users_universe_is_left_alone(cg, weights):
    cg.trajectory[2]
    cg.atoms.translate([5.0, 0.0, 0.0])
    before = cg.atoms.positions.copy()
    mdbackmap.Backmap(cg, weights, solvent="drop")
    aa = mdbackmap.universe(cg, weights, solvent="drop")
    aa.trajectory[9]
    assert cg.trajectory.frame == 2
    np.testing.assert_array_equal(cg.atoms.positions, before)


# Laziness


def test_the_network_waits_until_positions_are_asked_for(aa, calls):
    for ts in aa.trajectory:
        _ = ts.time, ts.dimensions
    aa.trajectory.rewind()
    aa.trajectory[12]
    assert calls == []
    for _ in range(2):
        _ = aa.select_atoms("name CA").positions
    assert calls == [12]


def test_a_slice_runs_the_network_once_per_frame(aa, calls):
    RMSF(aa.select_atoms("name CA")).run(start=3, stop=9, step=2)
    assert calls == [3, 5, 7]


def test_a_frame_that_fails_keeps_failing(cg, weights):
    memory = mda.Universe(cg._topology, positions(cg)[:3], to_guess=())
    memory.trajectory.coordinate_array[1] = np.nan
    aa = mdbackmap.universe(memory, weights, solvent="drop")
    aa.trajectory[1]
    for _ in range(2):
        with pytest.raises(FrameError, match="frame 1: 166 beads have no usable position"):
            _ = aa.atoms.positions
    assert np.isfinite(aa.trajectory[2].positions).all()
    assert np.isfinite(aa.trajectory[0].positions).all()


# Analysis


class Radius(AnalysisBase):
    """Radius of gyration of every frame, parallel."""

    _analysis_algorithm_is_parallelizable = True

    @classmethod
    def get_supported_backends(cls):
        return ("serial", "multiprocessing", "dask")

    def __init__(self, atoms):
        super().__init__(atoms.universe.trajectory)
        self.atoms = atoms

    def _prepare(self):
        self.results.radius = []

    def _single_frame(self):
        self.results.radius.append(self.atoms.radius_of_gyration())

    def _get_aggregator(self):
        from MDAnalysis.analysis.results import ResultsGroup

        return ResultsGroup(lookup={"radius": ResultsGroup.ndarray_hstack})


def test_rmsf_agrees_with_the_written_file(aa, opened):
    lazy, from_file = (
        RMSF(u.select_atoms("name CA")).run(stop=12).results.rmsf for u in (aa, opened)
    )
    np.testing.assert_allclose(lazy, from_file, atol=XTC_PRECISION)
    assert lazy.min() > 0.1


@pytest.mark.parametrize("backend", ["multiprocessing", "dask"])
def test_parallel_backends_agree_with_serial(aa, opened, backend):
    if backend == "dask":
        pytest.importorskip("dask.distributed")
    serial = Radius(aa.select_atoms("name CA")).run(stop=12).results.radius
    parallel = Radius(aa.select_atoms("name CA")).run(stop=12, backend=backend, n_workers=2)
    np.testing.assert_allclose(parallel.results.radius, serial, atol=1e-4)
    with_masses = opened.select_atoms("name CA")
    with_masses.universe.add_TopologyAttr("masses", np.full(len(opened.atoms), 12.011))
    from_file = Radius(with_masses).run(stop=12).results.radius
    np.testing.assert_allclose(serial, from_file, atol=XTC_PRECISION)


# The carrier


def test_carrier_with_a_transformation(weights, written):
    u = mdbackmap.carrier(TPR, XTC, solvent="drop")
    with pytest.raises(StructureError, match="has no atoms yet"):
        _ = u.atoms.positions
    u.trajectory.add_transformations(mdbackmap.Backmap(model=weights), translate([1.0, 0.0, 0.0]))
    close(u.trajectory[5].positions, written[5] + [1.0, 0.0, 0.0])
    close(u.trajectory[-1].positions, written[-1] + [1.0, 0.0, 0.0])
    assert u.trajectory.ts.data["beads"].shape == (166, 3)


@cloned
def test_a_carrier_can_be_cloned(weights, written, clone):
    empty = mdbackmap.carrier(TPR, XTC, solvent="drop")
    other = clone(empty)
    other.trajectory.add_transformations(mdbackmap.Backmap(model=weights))
    again = clone(other)
    again.trajectory[4]
    close(other.atoms.positions, written[0])
    close(again.atoms.positions, written[4])
    with pytest.raises(StructureError, match="has no atoms yet"):
        _ = empty.atoms.positions


def test_a_carrier_in_a_parallel_analysis(weights, written):
    u = mdbackmap.carrier(TPR, XTC, solvent="drop")
    u.trajectory.add_transformations(mdbackmap.Backmap(model=weights))
    atoms = u.select_atoms("name CA")
    found = Radius(atoms).run(stop=6, backend="multiprocessing", n_workers=2).results.radius
    ca = written[:6, atoms.ix]
    expected = np.sqrt(((ca - ca.mean(axis=1, keepdims=True)) ** 2).sum(axis=2).mean(axis=1))
    close(found, expected)


def test_carrier_of_a_selection(weights):
    u = mdbackmap.carrier(GRO, MEMBRANE, select="resname CHOL")
    u.trajectory.add_transformations(mdbackmap.Backmap(model=weights))
    whole = mdbackmap.universe(load(GRO, MEMBRANE), weights, select="resname CHOL")
    assert set(u.atoms.resnames) == {"CHL1"}
    np.testing.assert_allclose(u.trajectory[1].positions, whole.trajectory[1].positions, atol=1e-3)


def test_one_transformation_fills_one_universe(weights):
    backmap = mdbackmap.Backmap(model=weights)
    first, second = (mdbackmap.carrier(TPR, XTC, solvent="drop") for _ in range(2))
    first.trajectory.add_transformations(backmap)
    with pytest.raises(StructureError, match="another Universe already"):
        second.trajectory.add_transformations(backmap)


# On a CG Universe


@pytest.fixture
def mirrored(cg, weights):
    backmap = mdbackmap.Backmap(cg, weights, solvent="drop")
    cg.trajectory.add_transformations(backmap)
    return cg, backmap


def test_either_side_drives_the_other(mirrored, written):
    cg, backmap = mirrored
    aa = backmap.universe
    cg.trajectory[7]
    assert aa.trajectory.frame == 7
    close(aa.atoms.positions, written[7])
    aa.trajectory[3]
    assert cg.trajectory.frame == 3
    for ts in cg.trajectory[10:13]:
        close(aa.atoms.positions, written[ts.frame])
    for ts in aa.trajectory[4:8:2]:
        assert cg.trajectory.frame == ts.frame
        close(ts.positions, written[ts.frame])


def test_the_cg_timestep_is_left_alone(mirrored):
    cg, backmap = mirrored
    plain = load(TPR, XTC)
    for ours, theirs in zip(cg.trajectory[:4], plain.trajectory[:4], strict=True):
        assert ours.n_atoms == theirs.n_atoms == len(cg.atoms)
        np.testing.assert_array_equal(ours.positions, theirs.positions)
        assert set(ours.data) == set(theirs.data)
    assert len(backmap.universe.atoms) == 1231


def test_the_mirror_is_lazy(mirrored, calls):
    cg, backmap = mirrored
    for _ in cg.trajectory:
        pass
    assert calls == []
    cg.trajectory[4]
    _ = backmap.universe.atoms.positions
    assert calls == [4]


def middle(dimensions):
    """Middle of a box, shape (3,), Å."""
    return mda.lib.mdamath.triclinic_vectors(dimensions).sum(axis=0) / 2


@pytest.mark.parametrize(
    "idealise",
    [False, pytest.param(True, marks=pytest.mark.skipif(
        "martini3" not in shipped(), reason="needs the shipped weights"))],
)  # fmt: skip
def test_transformations_before_it_are_seen(cg, weights, idealise):
    # What untrained weights predict has no one ideal geometry nearby.
    model = "martini3" if idealise else weights
    plain = mdbackmap.universe(cg, model, solvent="drop", idealise=idealise)
    backmap = mdbackmap.Backmap(cg, model, solvent="drop", idealise=idealise)
    protein = cg.select_atoms("name BB SC1 SC2 SC3 SC4 SC5")
    unmoved = [protein.positions.mean(axis=0) for _ in cg.trajectory[:5]]
    cg.trajectory.add_transformations(
        translate([0.0, 0.0, 4.0]), center_in_box(protein, center="geometry"), backmap
    )
    for ts in cg.trajectory[3:5]:
        here = protein.positions.mean(axis=0)
        np.testing.assert_allclose(here, middle(cg.dimensions), atol=1e-3)
        mirror = backmap.universe.trajectory
        beads = cg.atoms.positions[mirror.system.bead_source]
        np.testing.assert_array_equal(mirror.ts.data["beads"], beads)
        moved = mirror.ts.positions - plain.trajectory[ts.frame].positions
        expected = np.broadcast_to(here - unmoved[ts.frame], moved.shape)
        assert np.abs(expected).max() > 1
        np.testing.assert_allclose(moved, expected, atol=2 * XTC_PRECISION)


def test_copies_of_the_cg_universe_do_not_drive_the_mirror(mirrored, written):
    cg, backmap = mirrored
    cg.trajectory[2]
    for other in (cg.copy(), pickled(cg)):
        assert other.trajectory.frame == 2
        other.trajectory[9]
        assert len(other.trajectory.ts) == len(cg.atoms)
        assert backmap.universe.trajectory.frame == 2
    close(backmap.universe.atoms.positions, written[2])
    assert pickled(cg).trajectory.transformations[0].universe is None


@cloned
def test_a_cloned_mirror_stands_alone(mirrored, written, clone):
    cg, backmap = mirrored
    other = clone(backmap.universe)
    other.trajectory[6]
    close(other.atoms.positions, written[6])
    assert cg.trajectory.frame == 0
    cg.trajectory[11]
    assert other.trajectory.frame == 6
    assert not other.trajectory.live
    assert backmap.universe.trajectory.frame == 11


def test_a_mirror_in_a_parallel_analysis(mirrored):
    _, backmap = mirrored
    atoms = backmap.universe.select_atoms("name CA")
    serial = Radius(atoms).run(stop=6).results.radius
    parallel = Radius(atoms).run(stop=6, backend="multiprocessing", n_workers=2).results.radius
    np.testing.assert_allclose(parallel, serial, atol=1e-4)


def test_backmap_must_know_its_universe(cg, weights):
    with pytest.raises(StructureError, match=r"write Backmap\(u\)"):
        cg.trajectory.add_transformations(mdbackmap.Backmap(model=weights))


def test_transformations_of_the_original_are_copied_with_what_they_look_at(cg, weights, written):
    protein = cg.select_atoms("name BB SC1 SC2 SC3 SC4 SC5")
    cg.trajectory.add_transformations(center_in_box(protein, center="geometry"))
    aa = mdbackmap.universe(cg, weights, solvent="drop")
    cg.trajectory[20]
    aa.trajectory[4]
    beads = aa.trajectory.ts.data["beads"]
    np.testing.assert_allclose(beads.mean(axis=0), middle(aa.dimensions), atol=1e-3)
    assert cg.trajectory.frame == 20


def test_in_memory(cg, weights, written):
    cg.transfer_to_memory(stop=6)
    aa = mdbackmap.universe(cg, weights, solvent="drop")
    found = positions(aa)
    assert len(found) == 6
    # Bead bond lengths were learnt from other frames: the same to a few hundredths.
    close(found[5], written[5])
    with pytest.raises(StructureError, match=r"use mdbackmap\.universe\(cg\)"):
        mdbackmap.Backmap(cg, weights, solvent="drop")


def test_single_structure(weights):
    cg = load(GRO)
    aa = mdbackmap.universe(cg, weights, solvent="drop")
    assert [ts.frame for ts in aa.trajectory] == [0]
    assert aa.trajectory.n_frames == 1
    assert np.isfinite(aa.atoms.positions).all()
    source = CGSource(cg)
    np.testing.assert_allclose(aa.dimensions, cg.dimensions)
    assert source.dt == 1.0


def test_trajectory_in_pieces(weights, written, tmp_path):
    whole = load(TPR, XTC)
    for k, part in enumerate((slice(0, 3), slice(3, 7))):
        whole.atoms.write(str(tmp_path / f"{k}.xtc"), frames=whole.trajectory[part])
    pieces = mda.Universe(str(TPR), [str(tmp_path / "0.xtc"), str(tmp_path / "1.xtc")],
                          to_guess=())  # fmt: skip
    aa = mdbackmap.universe(pieces, weights, solvent="drop")
    close(positions(aa), written[:7])
    backmap = mdbackmap.Backmap(pieces, weights, solvent="drop")
    pieces.trajectory.add_transformations(backmap)
    pieces.trajectory[5]
    assert backmap.universe.trajectory.frame == 5
    close(backmap.universe.atoms.positions, written[5])


def test_selection_of_a_universe(weights):
    cg = load(GRO, MEMBRANE)
    part = mdbackmap.universe(cg, weights, solvent="drop", select="resname PSM")
    assert set(part.residues.resnames) == {"PSM"}
    with pytest.raises(MdbackmapError, match="selects nothing"):
        mdbackmap.universe(cg, weights, solvent="drop", select="resname XXX")


def test_a_carrier_of_mapped_beads(tmp_path):
    ok("convert", XTC, "-o", tmp_path / "aa.xtc", "--stop", 3)
    ok("map", tmp_path / "aa.xtc", "-s", tmp_path / "aa.pdb", "-o", tmp_path / "cg.xtc",
       "--topology-out", tmp_path / "cg.gro")  # fmt: skip
    u = mdbackmap.carrier(tmp_path / "cg.gro", tmp_path / "cg.xtc")
    backmap = mdbackmap.Backmap()
    u.trajectory.add_transformations(backmap)
    frames = [u.atoms.positions.copy() for _ in u.trajectory]
    assert len(frames) == 3
    assert backmap.backmapper.noise == 0.0
    aa = mdbackmap.universe(mda.Universe(tmp_path / "cg.gro", tmp_path / "cg.xtc"))
    for ts, frame in zip(aa.trajectory, frames, strict=True):
        np.testing.assert_array_equal(ts.positions, frame)
