"""Copies of atomistic structures whose beads lie as in simulations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mdbackmap.geometry.boxes import minimum_image
from mdbackmap.models import checkpoint
from mdbackmap.models.encoder import SIMULATED_NOISE, EncoderConfig
from mdbackmap.training import sources
from mdbackmap.training import trainer as trainers
from mdbackmap.training.config import Noise, TrainConfig
from mdbackmap.training.dataset import ATOM_STEP, BEAD_STEP, Builder, PreparedSet
from mdbackmap.training.simulated import BeadStatistics, Simulator
from mdbackmap.training.trainer import Trainer
from mdbackmap.validation import Checker

from helpers_io import DATA, XTC, fails, ok

COPIES = 50


def lengths(beads: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    return np.linalg.norm(beads[pairs[:, 1]] - beads[pairs[:, 0]], axis=1)


@pytest.fixture(scope="module")
def mapped(peptide) -> dict[str, np.ndarray]:
    """Distances of the mapped structure by kind of pair, Å."""
    system, positions = peptide
    pairs, kinds, kind = system.bead_pairs()
    names = kinds[kind]
    length = lengths(system.map_positions(positions), pairs)
    return {name: length[names == name] for name in np.unique(names).tolist()}


@pytest.fixture(scope="module")
def statistics(mapped) -> BeadStatistics:
    """Every kind 0.4 Å longer than mapped and spread by 0.2 Å."""
    return BeadStatistics({k: (float(v.mean()) + 0.4, 0.2) for k, v in mapped.items()})


@pytest.fixture(scope="module")
def copies(peptide, statistics) -> tuple[np.ndarray, np.ndarray]:
    """Atoms and beads of some copies, shapes (COPIES, n, 3)."""
    simulator, rng = Simulator(peptide[0], statistics), np.random.default_rng(0)
    atoms, beads = zip(*(simulator(peptide[1], None, rng) for _ in range(COPIES)), strict=True)
    return np.array(atoms), np.array(beads)


def found(system, beads: np.ndarray) -> dict[str, np.ndarray]:
    """Distances of copies by kind of pair, shape (copies, pairs)."""
    pairs, kinds, kind = system.bead_pairs()
    names = kinds[kind]
    length = np.array([lengths(b, pairs) for b in beads])
    return {name: length[:, names == name] for name in np.unique(names).tolist()}


# Statistics


def test_statistics_are_mean_and_spread_over_all_frames_by_kind(ubiquitin, ubiquitin_system):
    system = ubiquitin_system
    frames = list(ubiquitin.frames(stop=4))
    beads = [f.positions[system.bead_source] for f in frames]
    boxes = [f.box for f in frames]
    table = BeadStatistics.measured([(system, beads, boxes)]).distances
    pairs, kinds, kind = system.bead_pairs()
    names = kinds[kind]
    assert set(table) == set(names.tolist())
    gaps = [
        minimum_image((b[pairs[:, 1]] - b[pairs[:, 0]]).astype(np.float64), box)
        for b, box in zip(beads, boxes, strict=True)
    ]
    length = np.linalg.norm(gaps, axis=2)
    for name, pair in table.items():
        values = length[:, names == name]
        assert pair == pytest.approx((values.mean(), values.std()), abs=2e-3), name
    # Two simulations are one sample, whatever box or image the beads are in.
    moved = [b + np.float32([30, -20, 10]) for b in beads]
    parts = [(system, beads[:1], boxes[:1]), (system, moved[1:], boxes[1:])]
    again = BeadStatistics.measured(parts).distances
    assert {k: pytest.approx(v, abs=1e-4) for k, v in again.items()} == table


def test_no_simulations_give_no_statistics():
    assert BeadStatistics.measured([]).distances == {}


# Copies


def test_distances_inside_residues_follow_the_statistics(peptide, copies, statistics):
    system, _ = peptide
    pairs, kinds, kind = system.bead_pairs()
    names = kinds[kind]
    inside = system.bead_residue[pairs[:, 0]] == system.bead_residue[pairs[:, 1]]
    samples = found(system, copies[1])
    checked = 0
    for name in np.unique(names[inside]).tolist():
        mean, spread = statistics.distances[name]
        values = samples[name]
        # Four standard errors; a pair that others hold has less room.
        chance = 4 * spread / np.sqrt(values.size)
        assert values.mean() == pytest.approx(mean, abs=chance + 0.05), name
        assert values.std() == pytest.approx(spread, rel=0.45), name
        checked += 1
    assert checked > 10


def test_distances_across_residues_fluctuate_with_the_fold(peptide, copies):
    system, positions = peptide
    pairs, *_ = system.bead_pairs()
    across = system.bead_residue[pairs[:, 0]] != system.bead_residue[pairs[:, 1]]
    assert across.sum() == 11
    length = np.array([lengths(b, pairs[across]) for b in copies[1]])
    before = lengths(system.map_positions(positions), pairs[across])
    fold = length.mean(axis=0) - length.mean() - (before - before.mean())
    assert np.abs(fold).max() < 0.12, "what tells one pair from the next is kept"
    assert length.std(axis=0).mean() == pytest.approx(0.1, abs=0.05)


def test_kinds_that_no_simulation_had_keep_their_mapped_lengths(peptide, mapped):
    system, positions = peptide
    rng = np.random.default_rng(1)
    simulator = Simulator(system, BeadStatistics({}))
    beads = np.array([simulator(positions, None, rng)[1] for _ in range(5)])
    for name, values in found(system, beads).items():
        assert values == pytest.approx(np.broadcast_to(mapped[name], values.shape), abs=0.1), name
    assert np.abs(beads - system.map_positions(positions)).max() > 0.3, "but beads have moved"

    (one,) = (k for k in mapped if k.startswith("VAL|"))
    simulator = Simulator(system, BeadStatistics({one: (5.0, 0.0)}))
    for name, values in found(system, simulator(positions, None, rng)[1][None]).items():
        expected = 5.0 if name == one else mapped[name]
        assert values[0] == pytest.approx(expected, abs=0.1), name


def test_copies_are_sound_and_keep_their_hand(peptide, copies):
    system, positions = peptide
    checker, wrong, measured = Checker(system), {}, {}
    for atoms in copies[0]:
        for term, count in checker(atoms).counts.items():
            wrong[term] = wrong.get(term, 0) + count.wrong
            measured[term] = measured.get(term, 0) + count.of
    share = {term: wrong[term] / max(measured[term], 1) for term in wrong}
    for term in ("stereocentres", "d_residues", "prochiral", "cis_peptides", "planar",
                 "flat_rings", "overlaps", "pierced_rings", "not_a_number"):  # fmt: skip
        assert wrong[term] == 0, term
    assert measured["d_residues"] == 11 * COPIES
    assert share["bonds"] < 0.001
    assert share["angles"] < 0.02
    assert share["twisted_peptides"] < 0.01
    assert share["clashes"] < 0.001
    assert share["ramachandran"] < 0.01
    # Atoms follow their beads, and do not stay where they were.
    shift = [
        np.linalg.norm(system.map_positions(a) - b, axis=1) for a, b in zip(*copies, strict=True)
    ]
    assert np.median(shift) < 0.35
    assert np.median(np.linalg.norm(copies[0] - positions, axis=2)) > 0.3


def test_the_same_seed_gives_the_same_copies(peptide, statistics):
    system, positions = peptide
    first, second, other = (
        Simulator(system, statistics)(positions, None, np.random.default_rng(seed))
        for seed in (3, 3, 4)
    )
    for one, two, three in zip(first, second, other, strict=True):
        assert np.array_equal(one, two)
        assert not np.allclose(one, three, atol=0.05)
        assert one.dtype == np.float64
    assert not positions.flags.writeable


def test_lipids_are_copied_too(lipid):
    system, positions = lipid
    pairs, kinds, kind = system.bead_pairs()
    names = kinds[kind]
    before = lengths(system.map_positions(positions), pairs)
    wide = {
        name: (float(before[names == name].mean()) + 0.5, 0.05)
        for name in np.unique(names).tolist()
    }
    atoms, beads = Simulator(system, BeadStatistics(wide))(
        positions, np.diag([60.0, 70, 80]), np.random.default_rng(0)
    )
    assert lengths(beads, pairs).mean() - before.mean() == pytest.approx(0.5, abs=0.15)
    counts = Checker(system)(atoms).counts
    assert counts["stereocentres"].wrong == counts["double_bonds"].wrong == 0


# prepare --like, and training with what it writes


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """A folder of the same peptide prepared as it is and as in the tutorial's trajectory."""
    folder = tmp_path_factory.mktemp("sets")
    ok("prepare", DATA / "ubiquitin_12.pdb", "-o", folder / "mapped.npz")
    said = ok("prepare", DATA / "ubiquitin_12.pdb", "-o", folder / "moved.npz", "--like", XTC)
    assert said == f"{folder / 'moved.npz'}: 1 systems; left out 0\n"
    return folder


def test_prepare_like_a_trajectory(sets, peptide, tmp_path):
    system, positions = peptide
    plain, moved = PreparedSet(sets / "mapped.npz"), PreparedSet(sets / "moved.npz")
    assert not plain.simulated
    assert moved.simulated
    assert plain[0].bead_position == pytest.approx(
        system.map_positions(positions), abs=0.51 * BEAD_STEP
    )
    pairs, kinds, kind = system.bead_pairs()
    names = kinds[kind]
    ring = names == next(k for k in names.tolist() if k.startswith("PHE|SC2"))
    # Martini's ring is wide and stiff, the centres of its atoms are 1.9 Å apart.
    assert lengths(plain[0].bead_position, pairs)[ring] == pytest.approx(1.9, abs=0.05)
    assert lengths(moved[0].bead_position, pairs)[ring] == pytest.approx(2.9, abs=0.1)
    sample = moved[0]
    atoms = sample.bead_position[sample.atom_bead] + sample.offset
    counts = Checker(system)(atoms.astype(np.float64)).counts
    assert counts["bonds"].wrong == counts["d_residues"].wrong == 0
    off = np.abs(system.map_positions(atoms) - sample.bead_position).max()
    assert off > 20 * ATOM_STEP, "beads are not the centres of their atoms"

    words = ("prepare", DATA / "ubiquitin_12.pdb", "--like", XTC)
    for name, seed in (("again", 0), ("other", 1)):
        ok(*words, "-o", tmp_path / f"{name}.npz", "--seed", seed)
    again, other = (PreparedSet(tmp_path / f"{name}.npz")[0] for name in ("again", "other"))
    assert np.array_equal(again.bead_position, sample.bead_position)
    assert np.array_equal(again.offset, sample.offset)
    assert not np.allclose(other.bead_position, sample.bead_position, atol=0.05)


def test_atoms_of_occupancy_0_are_not_learnt_from(tmp_path):
    """Unless all are of 0: some programs fill the column with noughts."""
    text = (DATA / "popc.pdb").read_text()
    atoms = [line for line in text.splitlines() if line.startswith("HETATM")]
    few = text.replace(atoms[3], atoms[3].replace(" 1.00 ", " 0.00 "))
    for name, content, missing in (("few", few, 1), ("all", text.replace(" 1.00 ", " 0.00 "), 0)):
        (tmp_path / f"{name}.pdb").write_text(content)
        ok("prepare", tmp_path / f"{name}.pdb", "-o", tmp_path / f"{name}.npz")
        (sample,) = PreparedSet(tmp_path / f"{name}.npz")
        assert (~sample.usable.astype(bool)).sum() == missing


def test_prepare_like_what_is_no_trajectory(tmp_path):
    said = fails("prepare", DATA / "ubiquitin_12.pdb", "-o", tmp_path / "set.npz",
                 "--like", DATA / "README.md")  # fmt: skip
    assert "README.md" in said
    assert not (tmp_path / "set.npz").exists()


def test_sets_of_before_are_not_simulated(peptide, tmp_path, monkeypatch):
    builder = Builder(simulated=True)
    builder.add("one", *peptide, None)
    dumps = json.dumps

    def older(header):
        header.pop("simulated")
        return dumps(header)

    monkeypatch.setattr("mdbackmap.training.dataset.json.dumps", older)
    builder.save(tmp_path / "old.npz")
    assert not PreparedSet(tmp_path / "old.npz").simulated


@pytest.fixture
def options(sets, tmp_path) -> dict:
    return {
        "data": [{"path": sets / "mapped.npz"}, {"path": sets / "moved.npz"}],
        "validation": [sets / "moved.npz", sets / "mapped.npz"],
        "output": tmp_path / "run",
        "network": {"scalars": 16, "vectors": 8, "radial": 4, "layers": 1},
        "batch_beads": 50,
        "minutes": 10,
        "steps": 8,
        "validate_every": 100,
    }


def test_the_network_is_told_that_beads_are_simulated(options, monkeypatch):
    seen = []
    make = trainers.make_batch

    def spied(sample, cutoff, noise, rng, *more, **named):
        batch = make(sample, cutoff, noise, rng, *more, **named)
        moved = np.abs(batch.beads.numpy() - sample.bead_position).max()
        seen.append((named, float(batch.inputs[2][0]), float(moved)))
        return batch

    monkeypatch.setattr(sources, "make_batch", spied)
    monkeypatch.setattr(trainers, "make_batch", spied)
    trainer = Trainer(TrainConfig(**options), lambda _: None)
    metrics = trainer.run()
    assert set(metrics) == {"moved@simulated", "mapped@0.0", "mapped@0.3"}
    assert all(np.isfinite(value) for value in metrics.values())
    steps = seen[: options["steps"]]
    simulated = [row for row in steps if row[0]["told"] is not None]
    assert 0 < len(simulated) < len(steps)
    # Beads that lie as in simulations get no noise on top.
    assert all(row[1:] == (pytest.approx(SIMULATED_NOISE), 0.0) for row in simulated)
    checks = [row for row in seen[len(steps) :] if "told" in row[0]]
    assert len(checks) == 1
    assert checks[0][1:] == (pytest.approx(SIMULATED_NOISE), 0.0)


@pytest.mark.parametrize(
    ("data", "noise", "largest"),
    [(["moved"], {"clean": 1.0}, SIMULATED_NOISE), (["mapped"], {"clean": 1.0}, 0.0),
     (["mapped", "moved"], {"largest": 0.5}, 0.5), (["mapped", "moved"], {"largest": 0.1}, 0.2)],
)  # fmt: skip
def test_the_card_tells_the_largest_noise_of_training(options, sets, data, noise, largest):
    chosen = {"data": [{"path": sets / f"{name}.npz"} for name in data], "noise": noise, "steps": 1}
    trainer = Trainer(TrainConfig(**options | chosen), lambda _: None)
    trainer.run()
    card = checkpoint.load(trainer.output / "best.safetensors")
    assert card.largest_noise == pytest.approx(largest)
    assert card.for_mapped_beads == ""


def test_a_sample_may_be_used_as_it_is_whatever_is_told(sets):
    sample, rng = PreparedSet(sets / "moved.npz")[0], np.random.default_rng(0)
    noise = Noise(clean=0.0)
    batch = trainers.make_batch(sample, EncoderConfig(), noise, rng, told=0.2)
    assert np.array_equal(batch.beads.numpy(), sample.bead_position)
    assert batch.inputs[2].tolist() == pytest.approx([0.2] * sample.n_beads)
    other = trainers.make_batch(sample, EncoderConfig(), noise, rng)
    assert not np.allclose(other.beads.numpy(), sample.bead_position, atol=0.01)


def test_structures_listed_in_a_file_are_left_out(tmp_path):
    (tmp_path / "names.txt").write_text("# not these\nubiquitin_12\n")
    words = ("prepare", DATA / "ubiquitin_12.pdb", DATA / "popc.pdb", "-o", tmp_path / "set.npz")
    ok(*words, "--exclude", tmp_path / "names.txt")
    assert PreparedSet(tmp_path / "set.npz").names == ["popc"]
    said = fails(*words, "--exclude", "nmes.txt", code=2)
    assert "neither a structure among the inputs nor a file: nmes.txt" in said
    ok(*words, "--exclude", "popc")
    assert PreparedSet(tmp_path / "set.npz").names == ["ubiquitin_12"]
