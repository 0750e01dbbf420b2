"""From beads to atoms: symmetries, periodic boxes, what beads are taken for, what is refused."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mdbackmap.errors import FrameError, ModelError
from mdbackmap.geometry.boxes import Unwrapper
from mdbackmap.graph.chunks import BeadGraph
from mdbackmap.graph.neighbours import find_pairs, relations
from mdbackmap.models import checkpoint
from mdbackmap.models.checkpoint import Checkpoint
from mdbackmap.models.hierarchical import HierarchicalVectors, place_atoms
from mdbackmap.models.library import shipped
from mdbackmap.pipeline import SIMULATED_NOISE, Backmapper, Options, fitting_model
from mdbackmap.validation import measures
from mdbackmap.vocabulary import match, twin
from scipy.spatial.transform import Rotation

RAW = Options(idealise=False, draw=False, hydrogens=False)
HEAVY = Options(hydrogens=False)


def beads_of(source, system, frame: int = 0) -> tuple[np.ndarray, np.ndarray]:
    source.universe.trajectory[frame]
    now = source.frame()
    return now.positions[system.bead_source], now.box


@pytest.fixture
def protein(ubiquitin, ubiquitin_system) -> tuple[np.ndarray, np.ndarray]:
    """Beads and box."""
    return beads_of(ubiquitin, ubiquitin_system)


@pytest.fixture
def patch(membrane, membrane_system) -> tuple[np.ndarray, np.ndarray]:
    return beads_of(membrane, membrane_system)


def test_the_answer_has_a_place_for_every_atom(ubiquitin_system, tiny_model, protein):
    backmapper = Backmapper(ubiquitin_system, tiny_model)
    every = backmapper(*protein)
    assert every.shape == (len(backmapper.atoms), 3) == (1231, 3)
    assert every.dtype == np.float32
    assert np.isfinite(every).all()
    atoms = Backmapper(ubiquitin_system, tiny_model, HEAVY)(*protein)
    assert atoms.shape == (ubiquitin_system.n_atoms, 3)
    assert np.array_equal(every[backmapper.all_atoms.heavy], atoms)
    assert np.isfinite(atoms).all()
    whole = Backmapper(ubiquitin_system, tiny_model).unwrap(*protein)
    near = np.linalg.norm(atoms - whole[ubiquitin_system.atom_bead], axis=1)
    assert np.median(near) < 5


def test_the_answer_is_the_networks(membrane_system, tiny_model, patch):
    """All beads at once, step by step, against the pipeline."""
    system, found = membrane_system, match(membrane_system, tiny_model)
    backmapper = Backmapper(system, tiny_model, RAW)
    whole, box = backmapper.unwrap(*patch), patch[1]
    first, second, vectors = find_pairs(whole, box, tiny_model.cutoff)
    relation = relations(first, second, system.bead_residue, system.next_residue, system.bridges, 5)
    graph = BeadGraph(system.n_beads, first, second, vectors, relation)
    near = graph.neighbours(np.arange(system.n_beads))
    index, displacement, kind, present = map(
        torch.from_numpy, (near.index, near.vectors, near.relation, near.present)
    )
    atom_bead = torch.from_numpy(system.atom_bead)
    assert (atom_bead.diff() < 0).any()  # atoms are not sorted by bead
    with torch.no_grad():
        vectors = tiny_model.network(
            found.bead, found.residue, torch.full((system.n_beads,), SIMULATED_NOISE), index,
            displacement, kind, present, atom_bead, found.atom,
        )  # fmt: skip
    atoms = place_atoms(
        vectors, torch.from_numpy(system.anchors), torch.from_numpy(system.levels), atom_bead,
        torch.from_numpy(whole),
    )  # fmt: skip
    assert backmapper(*patch) == pytest.approx(atoms.numpy(), abs=2e-4)


@pytest.mark.parametrize("size", [1, 7, 100, 165])
def test_chunks_of_any_size_give_the_same_answer(ubiquitin_system, tiny_model, protein, size):
    whole = Backmapper(ubiquitin_system, tiny_model, RAW)(*protein)
    options = dataclasses.replace(RAW, chunk_size=size)
    assert Backmapper(ubiquitin_system, tiny_model, options)(*protein) == pytest.approx(
        whole, abs=2e-4
    )


@pytest.mark.parametrize("size", [300, 1000])
def test_a_membrane_may_be_cut_anywhere(membrane_system, tiny_model, patch, size):
    whole = Backmapper(membrane_system, tiny_model, dataclasses.replace(RAW, chunk_size=9999))
    parts = Backmapper(membrane_system, tiny_model, dataclasses.replace(RAW, chunk_size=size))
    assert parts(*patch) == pytest.approx(whole(*patch), abs=2e-4)


def test_the_answer_turns_and_moves_with_the_beads(ubiquitin_system, tiny_model, protein):
    backmapper = Backmapper(ubiquitin_system, tiny_model, RAW)
    beads = backmapper.unwrap(*protein).astype(np.float64)
    beads -= beads.mean(axis=0)
    move = np.array([12.0, -7, 3])
    for seed in range(3):
        turn = Rotation.random(None, seed).as_matrix()
        one = backmapper(beads) @ turn.T + move
        assert backmapper(beads @ turn.T + move) == pytest.approx(one, abs=1e-3)


def test_the_mirror_image_has_other_atoms(ubiquitin_system, tiny_model, protein):
    backmapper = Backmapper(ubiquitin_system, tiny_model, RAW)
    beads = backmapper.unwrap(*protein)
    mirror = np.float32([-1, 1, 1])
    off = np.linalg.norm(backmapper(beads * mirror) * mirror - backmapper(beads), axis=1)
    assert np.median(off) > 0.2


@pytest.mark.parametrize("what", ["beads", "molecules"])
def test_lattice_shifts_give_the_same_molecules(membrane_system, tiny_model, patch, what):
    system, (beads, box) = membrane_system, patch
    rng = np.random.default_rng(0)
    count = system.n_beads if what == "beads" else system.bead_molecule.max() + 1
    shift = rng.integers(-2, 3, (count, 3)) @ box
    if what == "molecules":
        shift = shift[system.bead_molecule]
    backmapper = Backmapper(system, tiny_model, RAW)
    one, other = backmapper(beads, box), backmapper(beads + shift.astype(np.float32), box)
    gap = (other - one).astype(np.float64)
    lattice = np.round(gap @ np.linalg.inv(box)) @ box
    assert gap == pytest.approx(lattice, abs=5e-3)
    # Every molecule moved as a whole.
    molecule = system.bead_molecule[system.atom_bead]
    first = np.unique(molecule, return_index=True)[1]
    assert lattice == pytest.approx(lattice[first][molecule], abs=1e-6)
    assert np.abs(lattice).max() > 1


def test_the_same_beads_give_the_same_atoms_to_the_bit(ubiquitin_system, tiny_model, protein):
    backmapper = Backmapper(ubiquitin_system, tiny_model)
    one = backmapper(*protein)
    backmapper(protein[0] + 1, protein[1])
    assert np.array_equal(backmapper(*protein), one)
    assert np.array_equal(Backmapper(ubiquitin_system, tiny_model)(*protein), one)


@pytest.mark.parametrize("boxed", [True, False])
def test_beads_are_neither_changed_nor_kept(ubiquitin_system, tiny_model, protein, boxed):
    beads, box = protein[0], protein[1] if boxed else None
    before = beads.copy()
    beads.flags.writeable = False
    backmapper = Backmapper(ubiquitin_system, tiny_model)
    answer = backmapper(beads, box)
    copied = answer.copy()
    assert np.array_equal(beads, before)
    backmapper(before + 1, box)
    assert np.array_equal(answer, copied)


def test_double_precision_and_lists_are_taken_as_they_come(ubiquitin_system, tiny_model, protein):
    backmapper = Backmapper(ubiquitin_system, tiny_model, RAW)
    beads, box = protein
    assert np.array_equal(backmapper(beads.astype(np.float64), box), backmapper(beads, box))
    assert np.array_equal(backmapper(beads.tolist(), box), backmapper(beads, box))


def test_idealising_keeps_beads_and_mends_bonds(ubiquitin_system, tiny_model, protein):
    system = ubiquitin_system
    whole = Backmapper(system, tiny_model).unwrap(*protein)

    def bonds_off(atoms: np.ndarray) -> float:
        ends = atoms[system.constraints.bonds]
        length = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
        return float((np.abs(length / system.constraints.bond_length - 1) > 0.1).mean())

    before = Backmapper(system, tiny_model, RAW)(*protein)
    after = Backmapper(system, tiny_model, dataclasses.replace(RAW, idealise=True))(*protein)
    assert bonds_off(before) > 0.5
    assert bonds_off(after) < 0.15
    shift = np.linalg.norm(system.map_positions(after) - whole, axis=1)
    assert np.median(shift) < 0.7


@pytest.mark.skipif("martini3" not in shipped(), reason="needs the shipped weights")
@pytest.mark.parametrize("threads", [1, 3])
def test_frames_together_are_as_one_by_one(ubiquitin, ubiquitin_system, threads):
    """In one idealisation some of them need more rounds than others."""
    numbers = [0, 7, 15, 22, 30]
    frames, boxes = zip(*(beads_of(ubiquitin, ubiquitin_system, k) for k in numbers), strict=True)
    backmapper = Backmapper(ubiquitin_system, "martini3")
    backmapper.inspect(frames, boxes)
    alone = [backmapper(*one) for one in zip(frames, boxes, numbers, strict=True)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        broken = frames[1].copy()
        broken[3] = np.nan
        many = backmapper.many([*frames, broken], [*boxes, boxes[1]], [*numbers, 8])
    finally:
        torch.set_num_threads(before)
    for mine, theirs in zip(many, alone, strict=False):
        assert (mine == theirs).all()
    assert isinstance(many[-1], FrameError)
    assert "frame 8: 1 beads" in str(many[-1])


def test_threads_are_given_back(ubiquitin_system, tiny_model, protein):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        Backmapper(ubiquitin_system, tiny_model)(*protein)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# Pickling


def through_pickle(backmapper: Backmapper) -> Backmapper:
    return pickle.loads(pickle.dumps(backmapper))  # noqa: S301 (made on this line)


def test_a_pickled_backmapper_gives_the_same(ubiquitin_system, tiny_model, protein):
    backmapper = Backmapper(ubiquitin_system, tiny_model)
    other = through_pickle(backmapper)
    assert np.array_equal(other(*protein), backmapper(*protein))
    assert np.array_equal(copy.deepcopy(backmapper)(*protein), backmapper(*protein))


def test_weights_given_by_path_are_pickled_by_path(ubiquitin_system, tiny_model, tmp_path, protein):
    path = tmp_path / "tiny.safetensors"
    checkpoint.save(tiny_model, path)
    backmapper = Backmapper(ubiquitin_system, path)
    pickled = pickle.dumps(backmapper)
    weights = sum(p.numel() for p in tiny_model.network.parameters()) * 4
    by_value = pickle.dumps(Backmapper(ubiquitin_system, tiny_model))
    assert len(by_value) - len(pickled) > weights / 2
    assert np.array_equal(through_pickle(backmapper)(*protein), backmapper(*protein))
    other = through_pickle(backmapper)
    path.unlink()
    with pytest.raises(ModelError, match="tiny"):
        other(*protein)


# What is refused


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e9])
def test_unusable_positions_name_frame_and_bead(ubiquitin_system, tiny_model, protein, value):
    beads, box = protein[0].copy(), protein[1]
    beads[[0, 5], [1, 2]] = value
    with pytest.raises(FrameError) as caught:
        Backmapper(ubiquitin_system, tiny_model)(beads, box, frame=17)
    names = ubiquitin_system.beads
    text = str(caught.value)
    assert text.startswith("frame 17: 2 beads have no usable position\n  MET 1 BB: ")
    assert f"{names.resnames[5]} {names.resids[5]} {names.names[5]}: " in text


@pytest.mark.parametrize("shape", [(165, 3), (166, 2), (166,), (0, 3)])
def test_a_wrong_number_of_beads_names_the_frame(ubiquitin_system, tiny_model, shape):
    with pytest.raises(FrameError, match=r"frame 3: positions of shape .* expected \(166, 3\)"):
        Backmapper(ubiquitin_system, tiny_model)(np.zeros(shape), None, frame=3)


@pytest.mark.parametrize("box", [np.eye(3), np.zeros((3, 3)), np.full((3, 3), np.nan),
                                 np.ones((3, 3)) * 50, np.ones(6) * 50])  # fmt: skip
def test_a_box_that_is_none_is_refused(ubiquitin_system, tiny_model, protein, box):
    with pytest.raises(FrameError, match=r"frame 4: box .* is no periodic box"):
        Backmapper(ubiquitin_system, tiny_model)(protein[0], box, frame=4)


@pytest.mark.parametrize("device", ["tpu", "mps", "cuda:99", "cpu:x"])
def test_devices_that_are_not_there_are_refused(ubiquitin_system, tiny_model, device):
    with pytest.raises(ModelError, match=f"device '{device}'"):
        Backmapper(ubiquitin_system, tiny_model, Options(device=device))


def test_a_model_that_is_no_file_is_refused(ubiquitin_system):
    with pytest.raises(ModelError, match="model 'nothing': neither a shipped model"):
        Backmapper(ubiquitin_system, "nothing")


# Vocabulary


def without(model, *beads: str):
    """The model as if it had never seen some beads (by name and atoms)."""
    keys = [f"{key}/" for key in beads]
    return dataclasses.replace(
        model,
        bead_keys=[k if k not in beads else f"?{k}" for k in model.bead_keys],
        atom_keys=[
            f"?{k}" if any(k.startswith(key) for key in keys) else k for k in model.atom_keys
        ],
    )


def test_every_key_means_its_own_row(ubiquitin_system, tiny_model):
    found = match(ubiquitin_system, tiny_model)
    keys = [ubiquitin_system.bead_keys[k] for k in ubiquitin_system.bead_key]
    assert [tiny_model.bead_keys[k] for k in found.bead] == keys
    atoms = [ubiquitin_system.atom_keys[k] for k in ubiquitin_system.atom_key]
    assert [tiny_model.atom_keys[k] for k in found.atom] == atoms
    names = ubiquitin_system.residue_names[ubiquitin_system.bead_residue]
    assert [tiny_model.residues[k] for k in found.residue] == names.tolist()
    assert found.borrowed == {}


def test_beads_the_model_does_not_know_list_their_residues(ubiquitin_system, tiny_model):
    strange = [k for k in tiny_model.bead_keys if k.startswith(("SC2:", "SC3:", "SC4:"))]
    model = without(tiny_model, *strange)
    with pytest.raises(ModelError) as caught:
        Backmapper(ubiquitin_system, model)
    text = str(caught.value)
    assert "model tiny (tests/conftest.py) does not fit the mapping of these residues:" in text
    for residue in ("PHE", "LYS", "ARG", "TYR", "HIS"):
        assert f"\n  {residue} (" in text
    assert "ALA" not in text
    assert "PHE.yaml): beads SC2, SC3" in text
    if "martini3" in shipped():
        assert "Hint: model martini3 knows these: --model martini3 --model tests/conftest" in text


def test_a_bead_that_is_nearly_known_borrows_weights_and_says_so(
    ubiquitin_system, tiny_model, caplog, protein
):
    key, near = "SC1:CB,CD,CG,NE2,OE1", "SC1:CB,CD,CG,OE1,OE2"
    assert key in ubiquitin_system.bead_keys  # of GLN
    model = dataclasses.replace(
        tiny_model,
        bead_keys=[near if k == key else k for k in tiny_model.bead_keys],
        atom_keys=[k.replace(key, near).replace("/NE2", "/OE2") if k.startswith(f"{key}/") else k
                   for k in tiny_model.atom_keys],
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "mdbackmap"):
        backmapper = Backmapper(ubiquitin_system, model)
    assert backmapper.vocabulary.borrowed == {key: near}
    assert f"bead {key} is new to the model; it borrows weights of {near}" in caplog.text
    assert np.isfinite(backmapper(*protein)).all()
    atoms = {ubiquitin_system.atom_keys[k]: model.atom_keys[v] for k, v in
             zip(ubiquitin_system.atom_key, backmapper.vocabulary.atom, strict=True)}  # fmt: skip
    assert atoms[f"{key}/CD"] == f"{near}/CD"
    # An atom the lending bead lacks starts at one it has.
    assert atoms[f"{key}/NE2"].startswith(f"{near}/")


def test_a_bead_of_which_no_atom_is_known_is_refused(ubiquitin_system, tiny_model):
    atoms = [f"?{k}" if k.startswith("SC2:CE,NZ/") else k for k in tiny_model.atom_keys]
    with pytest.raises(ModelError, match=r"LYS \(.*\): beads SC2"):
        Backmapper(ubiquitin_system, dataclasses.replace(tiny_model, atom_keys=atoms))


def test_a_residue_name_the_model_does_not_know_is_the_unknown_one(ubiquitin_system, tiny_model):
    residues = [r if r != "LYS" else "XXX" for r in tiny_model.residues]
    found = match(ubiquitin_system, dataclasses.replace(tiny_model, residues=residues))
    lysine = ubiquitin_system.residue_names[ubiquitin_system.bead_residue] == "LYS"
    assert (found.residue.numpy() == 0).tolist() == lysine.tolist()


def test_beads_placed_otherwise_than_in_training_are_refused(ubiquitin_system, tiny_model):
    digests = tiny_model.digests | {"PHE": "0" * 16}
    with pytest.raises(ModelError, match=r"PHE .*: places its beads otherwise than the mapping"):
        Backmapper(ubiquitin_system, dataclasses.replace(tiny_model, digests=digests))


# Simulated or mapped


def statistics(source, system, frames=range(0, 20)):
    """Mean and spread of every kind of bead pair, as if mapped structures were these frames."""
    pairs, kinds, kind = system.bead_pairs()
    names = kinds[kind]
    unwrap, lengths = Unwrapper(system.bead_parent), []
    for k in frames:
        whole = unwrap(*beads_of(source, system, k))
        lengths.append(np.linalg.norm(np.diff(whole[pairs], axis=1)[:, 0], axis=1))
    lengths = np.array(lengths)
    return {
        name: (float(lengths[:, names == name].mean()), float(lengths[:, names == name].std()))
        for name in np.unique(names)
    }


def inspected(system, model, source, frames=range(0, 20), **options) -> Backmapper:
    backmapper = Backmapper(system, model, Options(**options))
    beads, boxes = zip(*(beads_of(source, system, k) for k in frames), strict=True)
    backmapper.inspect(beads, boxes)
    return backmapper


def test_beads_like_mapped_ones_are_mapped_ones(ubiquitin, ubiquitin_system, tiny_model):
    model = dataclasses.replace(tiny_model, bead_distances=statistics(ubiquitin, ubiquitin_system))
    # Other frames of the same trajectory: the same means but for chance.
    assert inspected(ubiquitin_system, model, ubiquitin, frames=range(20, 30)).noise == 0.0
    assert inspected(ubiquitin_system, model, ubiquitin, frames=[25]).noise == 0.0


def test_the_fold_makes_no_beads_simulated(ubiquitin, ubiquitin_system, tiny_model):
    # As if mapped structures were all of another secondary structure.
    table = {name: (mean + 0.5 * name.startswith("|"), spread) for name, (mean, spread) in
             statistics(ubiquitin, ubiquitin_system).items()}  # fmt: skip
    model = dataclasses.replace(tiny_model, bead_distances=table)
    assert inspected(ubiquitin_system, model, ubiquitin).noise == 0.0


def test_a_difference_that_may_be_chance_proves_nothing(ubiquitin, ubiquitin_system, tiny_model):
    wide = {name: (mean + 0.4, 3.0) for name, (mean, _) in
            statistics(ubiquitin, ubiquitin_system).items()}  # fmt: skip
    narrow = {name: (mean, 0.1) for name, (mean, _) in wide.items()}
    for table, noise in ((wide, 0.0), (narrow, SIMULATED_NOISE)):
        model = dataclasses.replace(tiny_model, bead_distances=table)
        assert inspected(ubiquitin_system, model, ubiquitin, frames=[0]).noise == noise


def test_beads_that_differ_are_taken_for_simulated_ones(ubiquitin, ubiquitin_system, tiny_model):
    table = {name: (mean - 0.5, spread) for name, (mean, spread) in
             statistics(ubiquitin, ubiquitin_system).items()}  # fmt: skip
    model = dataclasses.replace(tiny_model, bead_distances=table)
    assert inspected(ubiquitin_system, model, ubiquitin).noise == SIMULATED_NOISE
    assert inspected(ubiquitin_system, model, ubiquitin, noise=0.1).noise == 0.1
    assert inspected(ubiquitin_system, model, ubiquitin, noise=0.0).noise == 0.0
    # A model that cannot compare expects the worst.
    assert inspected(ubiquitin_system, tiny_model, ubiquitin).noise == SIMULATED_NOISE


def test_damaged_frames_are_not_looked_at(ubiquitin, ubiquitin_system, tiny_model):
    model = dataclasses.replace(tiny_model, bead_distances=statistics(ubiquitin, ubiquitin_system))
    beads, box = beads_of(ubiquitin, ubiquitin_system)
    damaged = beads.copy()
    damaged[3] = np.nan
    backmapper = Backmapper(ubiquitin_system, model)
    backmapper.inspect([damaged], [box])
    assert backmapper.noise == SIMULATED_NOISE
    backmapper.inspect([], [])
    assert backmapper.noise == SIMULATED_NOISE
    backmapper.inspect([damaged, beads], [box, box])
    assert backmapper.noise == 0.0


# What the network is told of the beads, and which of two models it is


def carded(model, **card):
    return dataclasses.replace(model, card={**model.card, **card})


@pytest.mark.parametrize(
    ("asked", "largest", "told"),
    [(None, None, SIMULATED_NOISE), (None, 0.05, 0.05), (None, 0.5, SIMULATED_NOISE),
     (0.3, None, 0.3), (0.3, 0.25, 0.25), (0.0, 0.25, 0.0), (0.3, 0.0, 0.0)],
)  # fmt: skip
def test_the_network_is_told_no_more_noise_than_it_was_trained_with(
    ubiquitin, ubiquitin_system, tiny_model, asked, largest, told
):
    table = {name: (mean - 0.5, spread) for name, (mean, spread) in
             statistics(ubiquitin, ubiquitin_system).items()}  # fmt: skip
    model = dataclasses.replace(tiny_model, bead_distances=table)
    if largest is not None:
        model = carded(model, largest_noise=largest)
    assert inspected(ubiquitin_system, model, ubiquitin, noise=asked).noise == told
    assert Backmapper(ubiquitin_system, model, Options(noise=asked)).noise == told


def test_what_the_package_reads_of_a_card_is_kept_with_the_weights(tiny_model, tmp_path):
    assert tiny_model.largest_noise == np.inf
    assert tiny_model.for_mapped_beads == ""
    model = carded(tiny_model, largest_noise=0.4, for_mapped_beads="other")
    checkpoint.save(model, tmp_path / "model.safetensors")
    again = checkpoint.load(tmp_path / "model.safetensors")
    assert again.largest_noise == 0.4
    assert again.for_mapped_beads == "other"


@pytest.fixture
def companion(tiny_model, tmp_path) -> str:
    """Other weights than those of ``tiny_model``, for beads at the centres of their atoms."""
    network = copy.deepcopy(tiny_model.network)
    with torch.no_grad():
        network.read.weight *= 0.5
    other = dataclasses.replace(carded(tiny_model, name="mapped"), network=network)
    checkpoint.save(other, tmp_path / "mapped.safetensors")
    return str(tmp_path / "mapped.safetensors")


def test_mapped_beads_go_to_the_model_for_them(
    ubiquitin, ubiquitin_system, tiny_model, companion, protein
):
    system, table = ubiquitin_system, statistics(ubiquitin, ubiquitin_system)
    first = dataclasses.replace(
        carded(tiny_model, for_mapped_beads=companion), bead_distances=table
    )
    mapped = inspected(system, first, ubiquitin, idealise=False, hydrogens=False)
    assert mapped.checkpoint.card["name"] == "mapped"
    assert mapped.noise == 0.0
    opened = system.with_open_ends(system.chain_ends)
    direct = Backmapper(opened, companion, dataclasses.replace(RAW, noise=0.0))
    expected = direct(*protein)
    assert np.array_equal(mapped(*protein), expected)
    assert np.array_equal(through_pickle(mapped)(*protein), expected)

    longer = {name: (mean + 0.5, spread) for name, (mean, spread) in table.items()}
    simulated = inspected(
        system, dataclasses.replace(first, bead_distances=longer), ubiquitin, idealise=False,
        hydrogens=False,
    )  # fmt: skip
    assert simulated.checkpoint.card["name"] == "tiny"
    assert simulated.noise == SIMULATED_NOISE
    assert not np.allclose(simulated(*protein), expected, atol=0.05)


@pytest.mark.parametrize(("noise", "name"), [(0.0, "mapped"), (0.1, "tiny"), (None, "tiny")])
def test_who_says_how_the_beads_lie_chooses_the_model(
    ubiquitin_system, tiny_model, companion, protein, noise, name
):
    first = carded(tiny_model, for_mapped_beads=companion)
    backmapper = Backmapper(ubiquitin_system, first, dataclasses.replace(RAW, noise=noise))
    assert backmapper.checkpoint.card["name"] == name
    # The same in both vocabularies, whatever their order.
    turned = dataclasses.replace(checkpoint.load(companion))
    order = torch.randperm(len(turned.bead_keys), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        turned.network.encoder.bead.weight.copy_(turned.network.encoder.bead.weight[order])
    turned = dataclasses.replace(turned, bead_keys=[turned.bead_keys[k] for k in order.tolist()])
    checkpoint.save(turned, companion)
    again = Backmapper(ubiquitin_system, first, dataclasses.replace(RAW, noise=noise))
    assert again(*protein) == pytest.approx(backmapper(*protein), abs=1e-5)


def test_a_model_for_mapped_beads_that_is_not_there_is_named(ubiquitin_system, tiny_model):
    model = carded(tiny_model, for_mapped_beads="nowhere")
    with pytest.raises(ModelError, match="model 'nowhere': neither a shipped model"):
        Backmapper(ubiquitin_system, model, Options(noise=0.0))
    assert Backmapper(ubiquitin_system, model).checkpoint is model


# Models whose beads see their own residue only


@pytest.fixture(scope="module")
def alone(tiny_model) -> Checkpoint:
    """The weights of ``tiny_model`` for beads that see their own residue only."""
    network = copy.deepcopy(tiny_model.network)
    network.encoder.config = dataclasses.replace(network.encoder.config, alone=True)
    return dataclasses.replace(carded(tiny_model, name="alone"), network=network)


@pytest.mark.parametrize("size", [1, 40, 9999])
def test_a_residue_that_sees_itself_only_is_as_if_it_were_alone(
    membrane_system, tiny_model, alone, patch, size
):
    system, (beads, box) = membrane_system, patch
    found = Backmapper(system, alone, dataclasses.replace(RAW, chunk_size=size))(beads, box)
    whole = Backmapper(system, tiny_model, RAW).unwrap(beads, box)
    for number in np.unique(system.residue_template, return_index=True)[1]:
        only = np.arange(len(system.residue_template)) == number
        part, own_beads, own_atoms = system.of_residues(only)
        # A network that sees neighbours, where there are none.
        expected = Backmapper(part, tiny_model, RAW)(whole[own_beads])
        assert found[own_atoms] == pytest.approx(expected, abs=2e-4)


def test_others_do_not_matter_to_a_residue_that_sees_itself_only(
    membrane_system, tiny_model, alone, patch
):
    beads, box = patch
    squeezed = beads + 2.0 * (membrane_system.bead_residue % 2)[:, None].astype(np.float32)
    change = [
        np.abs((backmapper(squeezed, box) - backmapper(beads, box))[
            membrane_system.atoms.residue % 2 == 0]).max()
        for backmapper in (Backmapper(membrane_system, model, RAW) for model in (alone, tiny_model))
    ]  # fmt: skip
    assert change[0] < 1e-4
    assert change[1] > 0.01


def alone_for_mapped(alone: Checkpoint, folder: Path) -> str:
    """A file of ``alone`` that names another model for mapped beads."""
    other, path = folder / "mapped.safetensors", folder / "both.safetensors"
    checkpoint.save(carded(alone, name="mapped"), other)
    checkpoint.save(carded(alone, for_mapped_beads=str(other)), path)
    return str(path)


def test_a_model_brings_those_it_is_used_with(
    membrane_system, ubiquitin_system, tiny_model, alone, patch, protein, tmp_path
):
    checkpoint.save(alone, tmp_path / "alone.safetensors")
    first = carded(tiny_model, beside=[str(tmp_path / "alone.safetensors")])
    both = Backmapper(membrane_system, first, RAW)
    assert both.models == ["alone"]
    assert np.array_equal(both(*patch), Backmapper(membrane_system, alone, RAW)(*patch))
    # The last that was asked for still has the last word.
    assert Backmapper(membrane_system, [first, tiny_model], RAW).models == ["tiny"]
    assert through_pickle(both).models == ["alone"]
    # Beads at the centres of their atoms go to those it names for them.
    twice = carded(first, beside=[alone_for_mapped(alone, tmp_path)])
    for noise, name in ((0.0, "mapped"), (None, "alone")):
        options = dataclasses.replace(RAW, noise=noise)
        assert Backmapper(membrane_system, twice, options).models == [name]
    again = Backmapper(ubiquitin_system, carded(tiny_model, beside=[]), RAW)
    assert again.models == ["tiny"]


# Peptides before proline


def prolines(system) -> np.ndarray:
    return np.flatnonzero(system.backbone.may_be_cis)


@pytest.fixture
def predicted(monkeypatch):
    """Let the network predict these angles of the peptides before proline, frame by frame."""

    def arm(frames: list[list[float]]) -> None:
        left = iter(np.array(frames, dtype=float))
        monkeypatch.setattr("mdbackmap.pipeline.torsions", lambda *_: next(left))

    return arm


def settled(system, model, source, frames: list[np.ndarray]) -> Backmapper:
    backmapper = Backmapper(system, model)
    backmapper.inspect(frames, [beads_of(source, system)[1]] * len(frames))
    return backmapper


def test_peptides_before_proline_are_settled_by_the_mean_over_frames(
    ubiquitin, ubiquitin_system, tiny_model, protein, predicted
):
    system = ubiquitin_system
    assert len(prolines(system)) == 3
    # Always cis; cis in two of three; in one of three, with an angle of no meaning beside it.
    predicted([[0, 10, 180], [20, -20, 175], [-30, 170, 10]])
    backbone = settled(system, tiny_model, ubiquitin, [protein[0]] * 3).backbone
    assert np.flatnonzero(backbone.cis).tolist() == prolines(system)[:2].tolist()
    assert not backbone.may_be_cis.any()
    assert np.array_equal(backbone.omegas, system.backbone.omegas)
    assert not system.backbone.cis.any(), "the system is shared"


def test_a_damaged_frame_has_no_say(ubiquitin, ubiquitin_system, tiny_model, protein, predicted):
    damaged = protein[0].copy()
    damaged[7] = np.nan
    for frames in ([damaged, protein[0]], [protein[0], damaged, damaged]):
        # One prediction only: a second would be of the damaged frame.
        predicted([[0, 180, 0]])
        backbone = settled(ubiquitin_system, tiny_model, ubiquitin, frames).backbone
        assert backbone.cis[prolines(ubiquitin_system)].tolist() == [True, False, True]


@pytest.mark.parametrize("damaged", [True, False])
def test_without_a_usable_frame_every_prediction_decides_for_itself(
    ubiquitin, ubiquitin_system, tiny_model, protein, damaged
):
    frames = [np.full_like(protein[0], np.nan)] if damaged else []
    backbone = settled(ubiquitin_system, tiny_model, ubiquitin, frames).backbone
    assert len(np.flatnonzero(backbone.may_be_cis)) == 3


def test_a_system_without_proline_needs_no_frames(membrane, membrane_system, tiny_model, patch):
    backmapper = Backmapper(membrane_system, tiny_model)
    backmapper.inspect([patch[0]], [patch[1]])
    assert backmapper.backbone is membrane_system.backbone


@pytest.mark.skipif("martini3" not in shipped(), reason="needs the shipped weights")
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_settled_peptide_is_the_same_whatever_a_frame_predicts(
    ubiquitin, ubiquitin_system, monkeypatch, which
):
    system = ubiquitin_system
    here = system.backbone.omegas[prolines(system)]
    frames = [beads_of(ubiquitin, system, k)[0] for k in (30, 15, 0)]
    backmapper, undecided = (Backmapper(system, "martini3", options=HEAVY) for _ in range(2))
    # It may have been in use before.
    backmapper(*beads_of(ubiquitin, system))
    backmapper.inspect(frames, [None] * 3)
    assert not backmapper.backbone.cis.any(), "ubiquitin has no cis peptide"
    predict = Backmapper._predict

    def flipped(self, beads, box):
        """What is predicted, all beyond the peptide turned by 150 degrees."""
        atoms = predict(self, beads, box).copy()
        _, carbon, nitrogen, _ = here[which]
        beyond = np.arange(len(atoms)) >= nitrogen
        axis = atoms[nitrogen] - atoms[carbon]
        turn = Rotation.from_rotvec(np.radians(150) * axis / np.linalg.norm(axis))
        atoms[beyond] = turn.apply(atoms[beyond] - atoms[carbon]) + atoms[carbon]
        return atoms

    monkeypatch.setattr(Backmapper, "_predict", flipped)
    for found, cis in ((undecided, True), (backmapper, False), (through_pickle(backmapper), False)):
        omega = measures.torsions(found(*beads_of(ubiquitin, system)), here)
        assert ((np.abs(omega) < 90) == (cis & (np.arange(3) == which))).all(), omega


@pytest.mark.skipif("martini3" not in shipped(), reason="needs the shipped weights")
def test_no_shipped_model_needs_naming_for_a_protein(ubiquitin_system, membrane_system):
    for system in (ubiquitin_system, membrane_system):
        assert fitting_model(system) == "martini3"


# Chain ends


def test_ends_of_mapped_beads_are_open_and_of_simulated_ones_not(ubiquitin_system):
    beads = np.random.default_rng(0).normal(size=(ubiquitin_system.n_beads, 3))
    for noise, counted in ((0.0, False), (0.2, True)):
        backmapper = Backmapper(ubiquitin_system, "martini3", Options(noise=noise))
        backmapper.inspect([beads], [None])
        system = backmapper.system
        assert any("OXT" in system.bead_keys[k] for k in system.bead_key) == counted
        oxygen = np.flatnonzero(system.atoms.names == "OXT")
        known = backmapper.checkpoint.atom_keys[int(backmapper.vocabulary.atom[oxygen[0]])]
        assert known.endswith("/OXT")


def test_a_second_look_undoes_the_first(ubiquitin, ubiquitin_system):
    backmapper = Backmapper(ubiquitin_system, "martini3", HEAVY)
    simulated = beads_of(ubiquitin, ubiquitin_system)
    backmapper.inspect(*zip(simulated, strict=True))
    expected = backmapper(*simulated)
    mapped = ubiquitin_system.map_positions(expected), simulated[1]
    backmapper.inspect(*zip(mapped, strict=True))
    assert (backmapper.noise, backmapper.checkpoint.card["name"]) == (0.0, "martini3-mapped")
    assert backmapper.layout is ubiquitin_system
    assert backmapper.system is not ubiquitin_system
    backmapper.inspect(*zip(simulated, strict=True))
    assert (backmapper.noise, backmapper.checkpoint.card["name"]) == (SIMULATED_NOISE, "martini3")
    assert backmapper.system is ubiquitin_system
    assert np.array_equal(backmapper(*simulated), expected)


@pytest.mark.skipif("martini3" not in shipped(), reason="needs the shipped weights")
def test_a_model_that_does_not_fit_the_beads_is_warned_about(ubiquitin, ubiquitin_system, caplog):
    system = ubiquitin_system
    frames, boxes = zip(*(beads_of(ubiquitin, system, k) for k in (0, 15)), strict=True)
    Backmapper(system, "martini3-mapped").inspect(frames, boxes)
    assert "martini3-mapped was trained on beads at most 0 Å" in caplog.text
    caplog.clear()
    Backmapper(system, "martini3", Options(noise=0.9)).inspect(frames, boxes)
    assert "at most 0.5 Å" in caplog.text
    assert "0.9 Å off" in caplog.text
    caplog.clear()
    Backmapper(system, "martini3").inspect(frames, boxes)
    Backmapper(system, "martini3-mapped", Options(noise=0.0)).inspect(frames, boxes)
    assert not caplog.text


@pytest.mark.parametrize(
    ("key", "other"),
    [("D2B:C310,C36,C37", "D2A:C210,C26,C27"), ("C1A:C22,C23,C24", "C1B:C32,C33,C34"),
     ("NC3:C12,N", "NC3:C12,N"), ("C1A:C22,O22", "C1A:C22,O22"), ("R1A:C21", "R1A:C21")],
)  # fmt: skip
def test_twins_are_the_same_piece_of_the_other_tail(key, other):
    assert twin(key) == other
    assert twin(other) == key


def test_a_tail_the_model_knows_of_the_other_chain_only_is_its_twin(
    membrane_system, tiny_model, patch, caplog
):
    """Without the sn-1 beads of a tail, a model gives what the sn-2 beads' weights give."""
    system = membrane_system
    gone = {k for k in tiny_model.bead_keys if twin(k) != k and k.partition(":")[0].endswith("B")}
    missing = {k for k in gone if twin(k) in tiny_model.bead_keys} & set(system.bead_keys)
    assert missing
    bead, atom = (
        [k for k in table if k.partition("/")[0] not in missing]
        for table in (tiny_model.bead_keys, tiny_model.atom_keys)
    )
    network = HierarchicalVectors(
        tiny_model.network.encoder.config, len(bead), len(tiny_model.residues), len(atom)
    )
    state = tiny_model.network.state_dict()
    for name, kept, table in (("encoder.bead.weight", bead, tiny_model.bead_keys),
                              ("read.weight", atom, tiny_model.atom_keys)):  # fmt: skip
        state[name] = state[name][[table.index(k) for k in kept]]
    network.load_state_dict(state)
    model = dataclasses.replace(tiny_model, network=network.eval(), bead_keys=bead, atom_keys=atom)
    found = match(system, model)
    assert {k: v for k, v in found.borrowed.items() if k in missing} == {
        k: twin(k) for k in missing
    }
    with caplog.at_level(logging.WARNING, "mdbackmap"):
        atoms = Backmapper(system, model, RAW)(*patch)
    assert not [r for r in caplog.records if any(k in r.getMessage() for k in missing)]
    assert np.isfinite(atoms).all()
    names = np.array(system.atom_keys)[system.atom_key]
    for key, lent in zip(names, found.atom.tolist(), strict=True):
        here, _, name = key.rpartition("/")
        if here in missing:
            assert atom[lent] == f"{twin(here)}/C2{name[2:]}"
