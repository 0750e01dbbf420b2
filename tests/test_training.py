"""Prepared data, batches, losses, and a training run of seconds."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mdbackmap.errors import ConfigError, InputFileError, ModelError, StructureError
from mdbackmap.graph.neighbours import find_pairs
from mdbackmap.models import checkpoint
from mdbackmap.models.encoder import EncoderConfig
from mdbackmap.models.hierarchical import HierarchicalVectors
from mdbackmap.pipeline import Backmapper
from mdbackmap.training import config as configs
from mdbackmap.training import trainer as trainers
from mdbackmap.training.batches import (
    cut,
    far_apart,
    join,
    make_batch,
    random_piece,
    random_rotation,
    shake,
    surround,
)
from mdbackmap.training.config import Losses, Noise, TrainConfig
from mdbackmap.training.dataset import ATOM_STEP, Builder, PreparedSet, Sample
from mdbackmap.training.losses import best_names, loss_terms
from mdbackmap.training.optimizer import Optimizer
from mdbackmap.training.trainer import Trainer

QUIET = Noise(clean=1.0)


@pytest.fixture(scope="module")
def prepared(peptide, lipid, tmp_path_factory) -> Path:
    """A peptide, and a lipid in a box of which the choline is not to be learnt."""
    path = tmp_path_factory.mktemp("data") / "both.npz"
    builder = Builder()
    builder.add("peptide", *peptide, None)
    usable = np.arange(lipid[0].n_atoms) >= 5
    builder.add("lipid", *lipid, np.diag([60.0, 70, 80]), usable)
    builder.save(path, note="tests")
    return path


@pytest.fixture(scope="module")
def data(prepared) -> PreparedSet:
    return PreparedSet(prepared)


@pytest.fixture
def peptide_sample(data) -> Sample:
    return data[0]


@pytest.fixture
def lipid_sample(data) -> Sample:
    return data[1]


def place(sample: Sample) -> np.ndarray:
    """Positions of all atoms, shape (n_atoms, 3), Å."""
    return sample.bead_position[sample.atom_bead] + sample.offset


def rows(term: tuple[np.ndarray, np.ndarray]) -> set[tuple]:
    return {(*index, round(value, 3)) for index, value in zip(*map(np.ndarray.tolist, term),
                                                              strict=True)}  # fmt: skip


# Prepared files


@pytest.mark.parametrize("which", [0, 1])
def test_a_prepared_system_comes_back(which, data, peptide, lipid):
    system, positions = (peptide, lipid)[which]
    sample = data[which]
    assert np.abs(place(sample) - positions).max() <= ATOM_STEP / 2 + 1e-4
    assert sample.bead_position == pytest.approx(system.map_positions(positions), abs=1e-3)
    assert [data.bead_keys[k] for k in sample.bead_key] == [
        system.bead_keys[k] for k in system.bead_key
    ]
    assert [data.atom_keys[k] for k in sample.atom_key] == [
        system.atom_keys[k] for k in system.atom_key
    ]
    assert [data.residues[k] for k in sample.residue_name] == system.residue_names.tolist()
    for mine, theirs in (
        (sample.bead_residue, system.bead_residue), (sample.next_residue, system.next_residue),
        (sample.atom_bead, system.atom_bead), (sample.anchor, system.anchors),
        (sample.level, system.levels), (sample.atom_residue, system.atoms.residue),
    ):  # fmt: skip
        assert np.array_equal(mine, theirs)
    ideal = system.constraints
    for term, value, step in (
        ("bonds", ideal.bond_length, 1e-3), ("angles", ideal.angle, 0.1),
        ("volumes", ideal.volume, 1e-3), ("torsions", ideal.torsion, 0.1),
    ):  # fmt: skip
        index, kept = getattr(sample, term)
        order = np.argsort(getattr(ideal, term)[:, 0], kind="stable")
        assert np.array_equal(index, getattr(ideal, term)[order])
        assert kept == pytest.approx(value[order], abs=step / 2 + 1e-6)


def test_what_belongs_to_a_whole_set_comes_back(data, library):
    assert len(data) == 2
    assert data.names == ["peptide", "lipid"]
    assert data.kinds == ["protein", "lipid"]
    assert data.note == "tests"
    assert data.residues[0] == ""
    assert data.digests["POPC"] == library.candidates("POPC")[0].placement
    assert data.n_beads().tolist() == [data[0].n_beads, 12]
    assert data[0].box is None
    assert data[1].box.tolist() == np.diag([60.0, 70, 80]).tolist()
    assert data[0].usable.all()
    assert (~data[1].usable).sum() == 5
    assert [s.name for s in data] == data.names


def test_bridges_are_kept_in_both_directions(insulin_system, tmp_path):
    system = insulin_system
    positions = np.zeros((system.n_atoms, 3))
    builder = Builder()
    builder.add("insulin", system, positions, None)
    sample = sample_of(builder, tmp_path)
    assert len(system.bridges) == 3
    expected = np.full(len(system.next_residue), -1)
    for i, j in system.bridges:
        expected[i], expected[j] = j, i
    assert np.array_equal(sample.bridge, expected)


def test_a_prepared_file_is_read_with_numpy_alone(prepared, data):
    with np.load(prepared, allow_pickle=False) as archive:
        header = json.loads(archive["header"].tobytes())
        assert header["format"] == 1
        assert header["beads"] == data.bead_keys
        assert archive["offset"].dtype == np.int16
        assert not any(archive[name].dtype.hasobject for name in archive.files)
    assert [p.name for p in prepared.parent.iterdir()] == [prepared.name]


def test_swaps_name_equivalent_atoms(lipid_sample, lipid):
    names = lipid[0].atoms.names
    assert {(names[i], names[j]) for i, j in enumerate(lipid_sample.swap[:, 0]) if i != j} == {
        ("C13", "C14"), ("C14", "C13")
    }  # fmt: skip
    assert {names[j] for i, j in enumerate(lipid_sample.swap[:, 3]) if i != j} == {"O13", "O14"}


def test_atoms_without_a_position_are_refused(lipid):
    system, positions = lipid
    positions = positions.copy()
    positions[3] = np.nan
    with pytest.raises(StructureError, match="bad: atoms without a position"):
        Builder().add("bad", system, positions, None)


def test_molecules_that_are_not_whole_are_refused(lipid):
    system, positions = lipid
    positions = positions.copy()
    positions[-1] += 2000
    with pytest.raises(StructureError, match="are the molecules whole"):
        Builder().add("bad", system, positions, None)


def test_an_empty_set_is_not_written(tmp_path):
    with pytest.raises(StructureError, match="no system to learn from"):
        Builder().save(tmp_path / "empty.npz")
    assert not list(tmp_path.iterdir())


def damaged(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    flipped = content[:middle] + bytes(b ^ 255 for b in content[middle : middle + 64])
    return {
        "empty": b"", "text": b"not a zip", "half": content[:middle],
        "flipped": flipped + content[middle + 64 :],
    }[how]  # fmt: skip


@pytest.mark.parametrize("how", ["empty", "text", "half", "flipped"])
def test_damaged_sets_are_refused_by_name(prepared, tmp_path, how):
    path = tmp_path / "set.npz"
    path.write_bytes(damaged(prepared.read_bytes(), how))
    with pytest.raises(StructureError, match="training set") as caught:
        PreparedSet(path)
    assert str(caught.value).startswith(f"{path}: ")


def rewritten(prepared: Path, path: Path, **changes) -> Path:
    with np.load(prepared) as archive:
        columns = {name: archive[name] for name in archive.files}
    header = json.loads(columns["header"].tobytes())
    for name, value in changes.items():
        if name in header:
            header[name] = value
        elif value is None:
            del columns[name]
        else:
            columns[name] = value
    columns["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    np.savez(path, **columns)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 7}, "format 7, this version reads 1; prepare it again"),
        ({"offset": None}, "offset"),
        ({"size_bonds": np.array([3])}, "bonds has not the length"),
        ({"names": ["one"]}, "has not the length"),
        ({"swap": np.array([{}])}, "Object arrays cannot be loaded"),
    ],
)
def test_sets_that_contradict_themselves_are_refused(prepared, tmp_path, changes, message):
    path = rewritten(prepared, tmp_path / "set.npz", **changes)
    with pytest.raises(StructureError, match=message):
        PreparedSet(path)


def test_other_arrays_and_missing_files_are_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(StructureError, match="is no training set"):
        PreparedSet(tmp_path / "array.npy")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(StructureError, match="is no training set"):
        PreparedSet(tmp_path / "other.npz")
    with pytest.raises(InputFileError, match="No such file"):
        PreparedSet(tmp_path / "none.npz")


# Batches


def lengths(sample: Sample) -> np.ndarray:
    ends = place(sample)[sample.bonds[0]]
    return np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)


def test_cutting_keeps_whole_residues_with_all_that_is_theirs(peptide_sample):
    sample = peptide_sample
    keep = np.isin(sample.bead_residue, [2, 3, 7])
    some = keep & (np.arange(sample.n_beads) % 2 == 0)
    some[np.flatnonzero(keep)[[0, 2, -1]]] = True
    piece = cut(sample, some)
    atoms = np.isin(sample.atom_residue, [2, 3, 7])
    assert np.array_equal(piece.bead_position, sample.bead_position[keep])
    assert np.array_equal(place(piece), place(sample)[atoms])
    assert np.array_equal(piece.atom_key, sample.atom_key[atoms])
    assert piece.next_residue.tolist() == [1, -1, -1]
    number = np.cumsum(atoms) - 1
    for term in ("bonds", "angles", "volumes", "torsions"):
        index, value = getattr(sample, term)
        inside = atoms[index].all(axis=1)
        assert rows(getattr(piece, term)) == rows((number[index[inside]], value[inside]))
    hanging = piece.anchor >= 0
    assert (piece.atom_residue[piece.anchor[hanging]] == piece.atom_residue[hanging]).all()
    assert (piece.atom_residue[piece.swap] == piece.atom_residue[:, None]).all()


def test_a_random_piece_is_made_of_whole_residues(membrane_system, tmp_path):
    rng = np.random.default_rng(0)
    system = membrane_system
    builder = Builder()
    beads = rng.uniform(0, 80, (system.n_beads, 3))
    builder.add("m", system, beads[system.atom_bead], None)
    sample = sample_of(builder, tmp_path)
    piece = random_piece(sample, 300, rng)
    assert 300 <= piece.n_beads < 300 * 14
    size = np.bincount(sample.bead_residue)
    assert set(np.bincount(piece.bead_residue)) <= set(size)
    assert random_piece(piece, piece.n_beads, rng) is piece


def sample_of(builder: Builder, folder: Path) -> Sample:
    """The first system of a builder, by way of a file."""
    builder.save(folder / "sample.npz")
    return PreparedSet(folder / "sample.npz")[0]


def test_joining_keeps_every_atom_of_every_sample(peptide_sample, lipid_sample):
    lipid_sample = dataclasses.replace(lipid_sample, box=None)
    both = join([peptide_sample, lipid_sample, peptide_sample])
    parts = [place(s) for s in (peptide_sample, lipid_sample, peptide_sample)]
    assert np.array_equal(place(both), np.concatenate(parts))
    assert lengths(both) == pytest.approx(
        np.concatenate([lengths(s) for s in (peptide_sample, lipid_sample, peptide_sample)])
    )
    n, b, r = len(peptide_sample.atom_key), peptide_sample.n_beads, 12
    second = slice(n, n + len(lipid_sample.atom_key))
    assert np.array_equal(both.atom_bead[second], lipid_sample.atom_bead + b)
    assert np.array_equal(both.swap[second], lipid_sample.swap + n)
    assert both.next_residue[r - 1] == -1
    assert both.next_residue[r + 1] == r + 2
    assert (both.atom_residue[both.swap] == both.atom_residue[:, None]).all()


def test_samples_far_apart_do_not_see_one_another(peptide_sample, lipid_sample):
    samples = [peptide_sample, lipid_sample, lipid_sample, peptide_sample]
    joined = far_apart(samples)
    assert joined.box is None
    assert lengths(joined) == pytest.approx(np.concatenate([lengths(s) for s in samples]), abs=1e-4)
    owner = np.repeat(np.arange(4), [s.n_beads for s in samples])
    first, second, _ = find_pairs(joined.bead_position, None, 50.0)
    assert (owner[first] == owner[second]).all()


def test_only_the_surrounded_molecule_is_learnt_from(peptide_sample, lipid_sample):
    rng = np.random.default_rng(3)
    sizes = set()
    lipid_sample = dataclasses.replace(
        lipid_sample, bead_position=lipid_sample.bead_position + np.float32([200, 0, 0])
    )
    for _ in range(20):
        joined = surround(lipid_sample, peptide_sample, rng)
        n, b = len(lipid_sample.atom_key), lipid_sample.n_beads
        assert joined.box is None
        assert place(joined)[:n] == pytest.approx(place(lipid_sample), abs=1e-5)
        assert np.array_equal(joined.usable[:n], lipid_sample.usable)
        assert not joined.usable[n:].any()
        # What is beside it is whole, in place, and not in its way.
        gap = joined.bead_position[b:, None] - joined.bead_position[None, :b]
        nearest = np.linalg.norm(gap, axis=2).min(axis=1)
        assert nearest.min(initial=9) > 3.4
        assert nearest.max(initial=9) < 20
        later = dataclasses.replace(joined, bonds=tuple(
            part[(joined.bonds[0] >= n).all(axis=1)] for part in joined.bonds))  # fmt: skip
        assert np.abs(lengths(later) - later.bonds[1]).max(initial=0) < 0.2
        sizes.add(joined.n_beads - b)
    assert len(sizes) > 3
    assert peptide_sample.usable.all()


def test_random_rotations_are_proper():
    rng = np.random.default_rng(0)
    turns = np.array([random_rotation(rng) for _ in range(300)])
    assert np.linalg.det(turns) == pytest.approx(np.ones(300))
    assert turns @ turns.transpose(0, 2, 1) == pytest.approx(
        np.broadcast_to(np.eye(3), (300, 3, 3))
    )
    assert np.abs(turns.mean(axis=0)).max() < 0.12


def test_noise_is_as_large_as_the_network_is_told(peptide_sample):
    rng = np.random.default_rng(0)
    told = []
    for _ in range(50):
        beads, level = shake(peptide_sample, Noise(clean=0.5, largest=0.5), rng)
        told.append(level)
        off = beads - peptide_sample.bead_position
        if not level:
            assert not off.any()
        else:
            assert off.std() == pytest.approx(level, rel=0.4)
    assert 10 < told.count(0.0) < 40
    assert 0.3 < max(told) <= 0.5
    assert shake(peptide_sample, Noise(clean=0.0, largest=0.0), rng)[1] == 0.0


def test_stretching_changes_bond_lengths_beyond_the_noise(peptide_sample):
    start = peptide_sample.bead_position
    for seed in range(3):
        moved = {
            stretch: shake(
                peptide_sample, Noise(clean=0.0, largest=0.02, stretch=stretch),
                np.random.default_rng(seed),
            )[0]
            for stretch in (0.0, 0.1)
        }  # fmt: skip
        assert np.abs(moved[0.0] - start).max() < 0.1
        assert np.abs(moved[0.1] - start).max() > 0.15


def backbone(sample: Sample) -> list[int]:
    """The first bead of every residue."""
    return np.flatnonzero(np.diff(sample.bead_residue, prepend=-1)).tolist()


def test_beads_that_see_their_residue_only_are_given_nothing_else(peptide_sample):
    rng = np.random.default_rng(0)
    batch = make_batch(peptide_sample, EncoderConfig(alone=True), Noise(clean=1.0), rng)
    index, displacement, relation, present = batch.inputs[3:7]
    residue = torch.from_numpy(peptide_sample.bead_residue)
    here = torch.arange(len(residue))[:, None].expand_as(index)
    assert torch.equal(present.sum(1), torch.bincount(residue)[residue] - 1)
    assert (residue[here] == residue[index])[present].all()
    assert (relation[present] == 1).all()
    assert torch.allclose(displacement[present], (batch.beads[index] - batch.beads[here])[present])


def test_a_batch_holds_what_the_losses_compare_with(lipid_sample):
    rng = np.random.default_rng(0)
    batch = make_batch(lipid_sample, EncoderConfig(), QUIET, rng, forget_residue=1.0)
    assert batch.target.numpy() == pytest.approx(place(lipid_sample), abs=1e-5)
    assert not batch.inputs[1].any()
    assert batch.inputs[2].tolist() == [0.0] * 12
    # Terms that touch atoms not to be learnt from are left out.
    assert lipid_sample.usable[batch.bonds[0].numpy()].all()
    assert 0 < len(batch.bonds[0]) < len(lipid_sample.bonds[0])
    told = make_batch(lipid_sample, EncoderConfig(), QUIET, rng, level=0.3)
    assert told.inputs[2].tolist() == pytest.approx([0.3] * 12)
    assert told.beads.numpy() != pytest.approx(lipid_sample.bead_position, abs=0.05)
    moved = batch.to("cpu")
    assert torch.equal(moved.bonds[0], batch.bonds[0])
    assert moved.n_residues == batch.n_residues


# Losses


@pytest.fixture
def batch(peptide_sample, lipid_sample):
    lipid_sample = dataclasses.replace(
        lipid_sample, box=None, usable=np.ones(len(lipid_sample.atom_key), bool)
    )
    return make_batch(
        join([peptide_sample, lipid_sample]), EncoderConfig(), QUIET, np.random.default_rng(0)
    )


def test_the_truth_costs_nothing(batch):
    terms = loss_terms(batch.target, batch, Losses(bond_tolerance=0.1, angle_tolerance=0.3))
    assert float(terms["positions"]) == 0.0
    assert float(terms["bonds"]) == 0.0
    assert float(terms["angles"]) == 0.0
    assert float(terms["volumes"]) < 0.01
    assert float(terms["torsions"]) < 0.01


def test_every_fault_costs_in_its_term(batch):
    truth = {k: float(v) for k, v in loss_terms(batch.target, batch, Losses()).items()}

    def cost(positions: torch.Tensor) -> dict[str, float]:
        return {k: float(v) for k, v in loss_terms(positions, batch, Losses()).items()}

    moved = cost(batch.target + torch.tensor([0.5, 0, 0]))
    assert moved["positions"] == pytest.approx(0.25, rel=1e-4)
    for term in ("bonds", "angles", "volumes", "torsions"):
        assert moved[term] == pytest.approx(truth[term], abs=1e-5)
    assert cost(batch.target * 1.2)["bonds"] > truth["bonds"] + 0.05
    mirrored = cost(batch.target * torch.tensor([-1.0, 1, 1]))
    assert mirrored["volumes"] > truth["volumes"] + 0.3
    assert mirrored["bonds"] == pytest.approx(truth["bonds"], abs=1e-5)
    torch.manual_seed(0)
    shaken = cost(batch.target + 0.5 * torch.randn_like(batch.target))
    assert all(shaken[term] > truth[term] for term in truth)


def test_weights_scale_their_terms_and_zero_switches_off(batch):
    torch.manual_seed(0)
    positions = batch.target + 0.3 * torch.randn_like(batch.target)
    names = ("positions", "bonds", "angles", "volumes", "torsions")
    one = loss_terms(positions, batch, Losses(**dict.fromkeys(names, 1.0)))
    two = loss_terms(positions, batch, Losses(**dict.fromkeys(names, 2.0)))
    none = loss_terms(positions, batch, Losses(**dict.fromkeys(names, 0.0)))
    for name in names:
        assert float(two[name]) == pytest.approx(2 * float(one[name]))
        assert float(none[name]) == 0.0


def traded(batch, *, within_beads: bool) -> tuple[torch.Tensor, int]:
    """The target with all equivalent names traded that one bead holds (or several), and how many.

    The trades of one residue count as one: rings have two pairs on either side.
    """
    positions, bead, count = batch.target.clone(), batch.inputs[7], 0
    for order in batch.swap.T:
        apart = torch.zeros(batch.n_residues, dtype=torch.bool)
        apart[batch.atom_residue[bead[order] != bead]] = True
        here = (order != torch.arange(len(order))) & (apart[batch.atom_residue] != within_beads)
        positions = torch.where(here[:, None], positions[order], positions)
        count += len(batch.atom_residue[here].unique())
    return positions, count


def test_equivalent_names_cost_nothing(batch):
    swapped, count = traded(batch, within_beads=True)
    assert count >= 2
    assert not torch.equal(swapped, batch.target)
    assert torch.allclose(best_names(swapped, batch), swapped)
    assert float(loss_terms(swapped, batch, Losses())["positions"]) == 0.0
    # Names that mean something are not traded.
    torch.manual_seed(0)
    other = batch.target[torch.randperm(len(batch.target))]
    assert float(loss_terms(other, batch, Losses())["positions"]) > 1.0


def test_names_that_beads_tell_apart_are_not_traded(batch):
    """The sides of a ring have a bead each: an answer that mixes them up is wrong."""
    swapped, count = traded(batch, within_beads=False)
    assert count == 1  # of PHE 4
    assert torch.equal(best_names(swapped, batch), batch.target)
    assert float(loss_terms(swapped, batch, Losses())["positions"]) > 0.05


def test_torsions_that_the_structure_itself_disobeys_cost_nothing(batch):
    index, degrees = batch.torsions
    other_side = dataclasses.replace(batch, torsions=(index, 180 - degrees))
    torch.manual_seed(0)
    for positions in (batch.target, batch.target + torch.randn_like(batch.target)):
        assert float(loss_terms(positions, other_side, Losses())["torsions"]) == 0.0


def test_gradients_are_finite_even_where_all_atoms_coincide(batch):
    positions = torch.zeros_like(batch.target).requires_grad_()
    sum(loss_terms(positions, batch, Losses()).values()).backward()
    assert torch.isfinite(positions.grad).all()


def test_a_sample_without_any_usable_atom_has_a_loss_of_zero(lipid_sample):
    sample = dataclasses.replace(lipid_sample, usable=np.zeros_like(lipid_sample.usable))
    batch = make_batch(sample, EncoderConfig(), QUIET, np.random.default_rng(0))
    positions = torch.zeros_like(batch.target).requires_grad_()
    loss = sum(loss_terms(positions, batch, Losses()).values())
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.isfinite(positions.grad).all()


# Configuration


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_configuration_is_read_with_paths_beside_it(tmp_path):
    path = write(
        tmp_path / "run.yaml",
        """
name: mine
data:
  - {path: a.npz, share: 2, surround: true}
validation: [b.npz]
output: out
network: {layers: 4}
minutes: 1e3
""",
    )
    config = configs.load(path)
    assert config.data[0].path == tmp_path / "a.npz"
    assert config.data[0].surround is True
    assert config.validation == [tmp_path / "b.npz"]
    assert config.output == tmp_path / "out"
    assert (config.network.layers, config.network.cutoff, config.minutes) == (4, 8.0, 1000.0)
    assert config.start_from is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epochs: 4", r"run.yaml, line 2: 'epochs' is no option"),
        ("network: {width: 4}", r"line 2: 'network.width' is no option"),
        ("minutes: -1", r"line 2: 'minutes': .*greater than 0, found '-1'"),
        ("minutes: soon", r"'minutes': .*number.*, found 'soon'"),
        ("noise: {clean: 2}", r"'noise.clean': .*, found '2'"),
        ("batch_beads: 3", r"'batch_beads': .*50"),
        ("seed: 1.5", r"'seed': "),
        ("compile: perhaps", r"'compile': "),
        ("losses: 3", r"'losses': "),
        ("minutes: 1\nminutes: 2", r"line 3: key 'minutes' was already given"),
    ],
)
def test_bad_options_are_named_with_their_line(tmp_path, line, message):
    path = write(tmp_path / "run.yaml", f"data: [{{path: a.npz}}]\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        configs.load(path)


def test_every_problem_is_told_at_once(tmp_path):
    path = write(tmp_path / "run.yaml", "epochs: 4\nminutes: 0\ndata: []\n")
    with pytest.raises(ConfigError) as caught:
        configs.load(path)
    text = str(caught.value)
    assert all(word in text for word in ("'epochs'", "'minutes'", "'data'", "docs/training.md"))


@pytest.mark.parametrize("text", ["", "- a\n", "data: [\n", "name: x\n"])
def test_files_that_are_no_configuration_are_refused(tmp_path, text):
    path = write(tmp_path / "run.yaml", text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        configs.load(path)


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: .*No such file"):
        configs.load(tmp_path / "none.yaml")


def test_every_option_is_documented_with_its_default():
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    documented = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            name, default = (cell.strip().strip("`") for cell in line.split("|")[1:3])
            documented.setdefault(name, []).append(default)
    models = (configs.TrainConfig, configs.DataSource, configs.Network, configs.Noise,
              configs.Losses)  # fmt: skip
    for model in models:
        for name, field in model.model_fields.items():
            assert name in documented, f"docs/training.md says nothing of {name}"
            assert field.description or name in ("network", "noise", "losses")
            if isinstance(field.default, (int, float, str)):
                assert shown(field.default) in documented[name]


def shown(default: float | str) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default) or "empty"


# The optimizer


def small_network() -> HierarchicalVectors:
    torch.manual_seed(0)
    return HierarchicalVectors(EncoderConfig(scalars=8, vectors=4, radial=3, layers=2), 5, 4, 9)


def steps(network: torch.nn.Module, optimizer: Optimizer, which: range) -> None:
    """Take steps along gradients drawn from the number of the step."""
    for k in which:
        generator = torch.Generator().manual_seed(k)
        optimizer.set_learning_rate(0.01 / (1 + k))
        optimizer.zero_grad()
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def groups(optimizer: Optimizer) -> list[list[torch.Tensor]]:
    """Parameters of the rule for matrices, and of that for the rest."""
    return [[p for g in part.param_groups for p in g["params"]] for part in optimizer._parts]


def test_every_parameter_follows_exactly_one_rule():
    network = small_network()
    matrices, rest = groups(Optimizer(network, 0.01))
    both = [id(p) for p in (*matrices, *rest)]
    assert len(both) == len(set(both))
    assert set(both) == {id(p) for p in network.parameters()}
    # Embeddings are tables: only some rows of them have a gradient.
    linear = {id(m.weight) for m in network.modules() if isinstance(m, torch.nn.Linear)}
    assert {id(p) for p in matrices} == linear
    assert any(p.ndim == 2 for p in rest)
    assert len(matrices) > 10


def test_every_parameter_takes_steps_of_the_learning_rate():
    network = small_network()
    optimizer = Optimizer(network, 0.01)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    steps(network, optimizer, range(1))
    for name, parameter in network.named_parameters():
        # With either rule the step's root mean square is a share of the rate.
        size = float((parameter.detach() - before[name]).square().mean().sqrt())
        assert 0.05 * 0.01 < size < 2 * 0.01, name
    optimizer.set_learning_rate(0.0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())


def test_gradients_are_forgotten():
    network = small_network()
    optimizer = Optimizer(network, 0.01)
    steps(network, optimizer, range(1))
    optimizer.zero_grad()
    assert all(p.grad is None for p in network.parameters())


def test_an_optimizer_goes_on_to_the_bit(tmp_path):
    straight = small_network()
    steps(straight, Optimizer(straight, 0.01), range(6))
    network = small_network()
    first = Optimizer(network, 0.01)
    steps(network, first, range(3))
    torch.save({"network": network.state_dict(), "optimizer": first.state_dict()}, tmp_path / "s")

    state = torch.load(tmp_path / "s", weights_only=True)
    resumed = small_network()
    resumed.load_state_dict(state["network"])
    second = Optimizer(resumed, 0.5)
    second.load_state_dict(state["optimizer"])
    steps(resumed, second, range(3, 6))
    forgetful = small_network()
    forgetful.load_state_dict(state["network"])
    steps(forgetful, Optimizer(forgetful, 0.01), range(3, 6))
    for one, other, third in zip(
        straight.parameters(), resumed.parameters(), forgetful.parameters(), strict=True
    ):
        assert torch.equal(one, other)
        assert not torch.equal(one, third)


def test_the_state_of_another_optimizer_is_refused():
    network = small_network()
    adam = torch.optim.AdamW(network.parameters())
    with pytest.raises(KeyError):
        Optimizer(network, 0.01).load_state_dict(adam.state_dict())


# The trainer


def save_alone(name: str, example, folder: Path) -> Path:
    """Write a set of one system."""
    builder, path = Builder(), folder / f"{name}.npz"
    builder.add(name, *example, None)
    builder.save(path)
    return path


@pytest.fixture
def options(prepared, tmp_path) -> dict:
    return {
        "data": [{"path": prepared}],
        "validation": [prepared],
        "output": tmp_path / "run",
        "network": {"scalars": 16, "vectors": 8, "radial": 4},
        "batch_beads": 50,
        "learning_rate": 0.02,
        "average": 0.5,
        "minutes": 10,
        "steps": 20,
        "validate_every": 1e-6,
        "noise": {"clean": 1.0},
    }


def train(options: dict, **changes) -> tuple[Trainer, list[str], dict[str, float]]:
    said: list[str] = []
    trainer = Trainer(TrainConfig(**options | changes), said.append)
    return trainer, said, trainer.run()


def logged(options: dict) -> list[dict[str, str]]:
    with (Path(options["output"]) / "log.csv").open() as handle:
        return list(csv.DictReader(handle))


def test_twenty_steps_lower_the_loss_and_leave_everything_behind(options, data, prepared):
    trainer, said, metrics = train(options, test=[prepared])
    log = logged(options)
    assert [int(row["step"]) for row in log] == list(range(1, 21))
    assert len(said) == 20
    first, last = ([float(row["positions"]) + float(row["bonds"]) for row in part]
                   for part in (log[:4], log[-4:]))  # fmt: skip
    assert np.mean(last) < 0.8 * np.mean(first)
    assert float(log[-1]["both@0.0"]) < float(log[0]["both@0.0"])
    output = Path(options["output"])
    assert {p.name for p in output.iterdir()} == {
        "best.safetensors", "last.safetensors", "log.csv", "learning.png", "state.pt"
    }  # fmt: skip
    assert (output / "learning.png").read_bytes()[:4] == b"\x89PNG"
    best = checkpoint.load(output / "best.safetensors")
    assert best.card["metrics"] == metrics
    assert set(metrics) == {"both@0.0"}
    assert best.card["name"] == "model"
    assert best.bead_keys == data.bead_keys
    assert best.digests == data.digests
    assert trainer.step == 20


def test_held_out_beads_get_noise_only_where_training_has_some(options, prepared):
    _, _, metrics = train(options, steps=2, noise={"clean": 0.5}, test=[prepared])
    assert set(metrics) == {"both@0.0", "both@0.3"}
    assert metrics["both@0.0"] != metrics["both@0.3"]
    for number, noise in enumerate(({"clean": 1.0}, {"clean": 0.0, "largest": 0.0})):
        output = Path(options["output"]) / str(number)
        assert set(train(options, steps=2, noise=noise, output=output)[2]) == {"both@0.0"}


def test_a_run_goes_on_where_it_stopped(options):
    train(options, steps=8)
    before = checkpoint.load(Path(options["output"]) / "last.safetensors")
    trainer, said, _ = train(options, steps=12)
    assert said[0].startswith("going on from")
    assert "step 8" in said[0]
    assert trainer.step == 12
    assert [int(row["step"]) for row in logged(options)] == list(range(1, 13))
    after = checkpoint.load(Path(options["output"]) / "last.safetensors")
    assert not torch.equal(before.network.read.weight, after.network.read.weight)
    # Nothing is left to do: the same answer, no further step.
    assert train(options, steps=12)[0].step == 12


def test_a_run_that_goes_on_does_not_see_the_same_again(options):
    first = train(options, steps=3)[0].draws
    again = train(options, steps=4)[0].draws
    assert first.seed == (1, 0)
    assert again.seed == (1, 3)
    one, other = (next(iter(draws)).target for draws in (first, again))
    assert one.shape != other.shape or not torch.equal(one, other)


def test_processes_prepare_steps(options):
    """Each draws for itself."""
    trainer, _, metrics = train(options, steps=4, workers=2, noise={"clean": 0.0, "largest": 0.3})
    assert trainer.step == 4
    assert np.isfinite(list(metrics.values())).all()
    beads = [next(trainer._batches).beads for _ in range(2)]
    assert beads[0].shape != beads[1].shape or not torch.equal(*beads)


def test_the_best_weights_are_those_of_the_smallest_held_out_error(options, monkeypatch):
    errors = iter([3.0, 3.0, 1.0, 1.0, math.nan, 0.0, 2.0, 2.0])
    monkeypatch.setattr(
        Trainer, "evaluate",
        lambda *_, **__: {"both@0.0": next(errors), "both@0.3": next(errors)},
    )  # fmt: skip
    _, _, metrics = train(options, steps=4)
    assert metrics == {"both@0.0": 1.0, "both@0.3": 1.0}
    assert checkpoint.load(Path(options["output"]) / "best.safetensors").card["steps"] == 2
    assert checkpoint.load(Path(options["output"]) / "last.safetensors").card["steps"] == 4


def test_a_run_stopped_by_hand_keeps_its_place(options, monkeypatch):
    step = Trainer._step

    def stop_at_five(self, *arguments):
        if self.step == 5:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        train(options, validate_every=5)
    monkeypatch.setattr(Trainer, "_step", step)
    trainer, said, _ = train(options, validate_every=5, steps=7)
    assert "step 5" in said[0]
    assert trainer.step == 7


def test_the_same_seed_gives_the_same_weights(options, tmp_path):
    weights = [
        train(options, output=tmp_path / str(k), seed=seed, steps=4)[0].network.read.weight
        for k, seed in enumerate((1, 1, 2))
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "change", [{"network": {"scalars": 8, "vectors": 8, "radial": 4}}, {"data": "lipid"}]
)
def test_the_state_of_another_run_is_refused(options, change, lipid, tmp_path):
    train(options, steps=2)
    if change == {"data": "lipid"}:
        other = save_alone("lipid", lipid, tmp_path)
        change = {"data": [{"path": other}], "validation": [other]}
    with pytest.raises(ConfigError, match=r"state\.pt: is damaged or of another configuration"):
        train(options, **change)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 cut off"])
def test_a_damaged_state_is_refused(options, content):
    train(options, steps=2)
    (Path(options["output"]) / "state.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"state\.pt: is damaged"):
        train(options)


def test_training_starts_from_weights_by_key(options, tmp_path, lipid):
    save_alone("lipid", lipid, tmp_path)
    only = {"data": [{"path": tmp_path / "lipid.npz"}], "validation": []}
    train(options | only, output=tmp_path / "first", steps=3)
    first = checkpoint.load(tmp_path / "first" / "best.safetensors")
    config = TrainConfig(**options, start_from=tmp_path / "first" / "best.safetensors")
    trainer = Trainer(config, lambda _: None)
    for name, table, mine in (
        ("encoder.bead.weight", first.bead_keys, trainer.vocabulary.beads),
        ("read.weight", first.atom_keys, trainer.vocabulary.atoms),
    ):
        old, new = first.network.state_dict()[name], trainer.network.state_dict()[name]
        for row, key in enumerate(table):
            assert torch.equal(new[mine.index(key)], old[row])
    assert torch.equal(
        trainer.network.encoder.layers[0].send.weight, first.network.encoder.layers[0].send.weight
    )
    with pytest.raises(ModelError, match="another architecture"):
        Trainer(config.model_copy(update={"network": configs.Network()}), print)


def test_some_of_the_weights_it_started_from_is_kept(options, tmp_path):
    train(options, output=tmp_path / "first", steps=3)
    start = tmp_path / "first" / "best.safetensors"
    train(options, output=tmp_path / "all", steps=3, start_from=start)
    train(options, output=tmp_path / "half", steps=3, start_from=start, keep=0.5)
    old, new, mean = (
        checkpoint.load(tmp_path / name / "best.safetensors").network.state_dict()
        for name in ("first", "all", "half")
    )
    for name, value in mean.items():
        assert torch.allclose(value, (old[name] + new[name]) / 2, atol=1e-6), name
    assert any(not torch.equal(mean[name], new[name]) for name in mean)


def test_held_out_systems_with_unknown_beads_are_told(options, tmp_path, lipid, prepared):
    save_alone("lipid", lipid, tmp_path)
    lipids_only = {"data": [{"path": tmp_path / "lipid.npz"}]}
    _, said, metrics = train(options | lipids_only, steps=2)
    assert "validation " in said[0]
    assert f"{prepared}: 1 of 2 systems hold beads or atoms that no training data has" in said[0]
    assert "\n  BB:C,CA,N,O\n" in said[0]
    assert said[0].endswith("They are left out.")
    assert math.isfinite(metrics["both@0.0"])


def test_held_out_data_of_which_nothing_is_known_is_refused(options, tmp_path, lipid, peptide):
    save_alone("lipid", lipid, tmp_path)
    save_alone("peptide", peptide, tmp_path)
    changed = options | {"data": [{"path": tmp_path / "lipid.npz"}]}
    for option in ("validation", "test"):
        with pytest.raises(ConfigError, match=f"{option} .*peptide.npz: 1 of 1 systems"):
            Trainer(TrainConfig(**changed | {option: [tmp_path / "peptide.npz"]}), print)


def test_the_same_residue_prepared_two_ways_is_refused(options, prepared, tmp_path, data):
    digests = data.digests | {"POPC": "0" * 16}
    other = rewritten(prepared, tmp_path / "other.npz", digests=digests)
    with pytest.raises(ConfigError, match="residue POPC was prepared with two different mappings"):
        Trainer(TrainConfig(**options | {"data": [{"path": prepared}, {"path": other}]}), print)


def test_missing_data_and_devices_are_named(options, tmp_path):
    with pytest.raises(InputFileError, match=r"none\.npz: cannot be read \(No such file"):
        Trainer(TrainConfig(**options | {"data": [{"path": tmp_path / "none.npz"}]}), print)
    with pytest.raises(ConfigError, match="device 'abacus'"):
        Trainer(TrainConfig(**options, device="abacus"), print)


def test_one_bad_step_is_skipped_and_many_stop_the_run(options, monkeypatch):
    true_terms = trainers.loss_terms
    broken = {3, 4}

    def sometimes(positions, batch, weights):
        terms = true_terms(positions, batch, weights)
        steps.append(len(steps))
        return {k: v * math.nan for k, v in terms.items()} if steps[-1] in broken else terms

    steps: list[int] = []
    monkeypatch.setattr(trainers, "loss_terms", sometimes)
    trainer, _, _ = train(options, steps=8)
    assert all(torch.isfinite(p).all() for p in trainer.network.parameters())
    log = logged(options)
    assert log[3]["positions"] == ""
    assert log[5]["positions"] != ""
    steps.clear()
    broken |= set(range(1000))
    with pytest.raises(ConfigError, match=r"no number for 50 steps.*lower 'learning_rate'"):
        train(options, steps=100, output=Path(options["output"]) / "other")


def test_a_log_may_gain_columns(options, prepared, tmp_path):
    train(options, steps=2, validation=[])
    assert "both@0.0" not in logged(options)[0]
    train(options, steps=4)
    log = logged(options)
    assert [row["both@0.0"] != "" for row in log] == [False, False, True, True]


def test_small_molecules_are_put_beside_other_data(options, tmp_path, lipid, peptide):
    save_alone("lipid", lipid, tmp_path)
    save_alone("peptide", peptide, tmp_path)
    sources = [{"path": tmp_path / "lipid.npz", "surround": True, "share": 9},
               {"path": tmp_path / "peptide.npz"}]  # fmt: skip
    trainer, _, _ = train(options, data=sources, validation=[], steps=6)
    rng = np.random.default_rng(0)
    sample = trainer.sources[0].draw(rng, [trainer.sources[1]])
    assert sample.usable.any()
    assert not sample.usable.all()


def test_distances_of_bonded_beads_are_those_of_the_data(options, data):
    trainer = Trainer(TrainConfig(**options), print)
    # Ten pairs at least of a kind: the backbone of the peptide only.
    (name,) = [k for k in trainer.distances if k.startswith("|BB")]
    sample = data[0]
    gaps = np.linalg.norm(np.diff(sample.bead_position[backbone(sample)], axis=0), axis=1)
    assert trainer.distances[name] == pytest.approx((gaps.mean(), gaps.std()), abs=1e-3)


def test_a_trained_model_backmaps(options, peptide):
    train(options, steps=3)
    system, positions = peptide
    backmapper = Backmapper(system, Path(options["output"]) / "best.safetensors")
    assert np.isfinite(backmapper(system.map_positions(positions))).all()
