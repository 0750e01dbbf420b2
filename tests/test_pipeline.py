"""From beads to atoms: symmetries, periodic boxes, calibration, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle

import numpy as np
import pytest
import torch
from mdbackmap.errors import FrameError, ModelError
from mdbackmap.geometry.boxes import Unwrapper
from mdbackmap.graph.neighbours import find_pairs, pad, relations
from mdbackmap.models import checkpoint
from mdbackmap.models.hierarchical import place_atoms
from mdbackmap.pipeline import SIMULATED_NOISE, Backmapper, Options
from mdbackmap.vocabulary import match

RAW = Options(idealise=False, calibrate=False)


def rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q * np.linalg.det(q)


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
    atoms = Backmapper(ubiquitin_system, tiny_model)(*protein)
    assert atoms.shape == (ubiquitin_system.n_atoms, 3)
    assert atoms.dtype == np.float32
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
    relation = relations(first, second, system.bead_residue, system.next_residue, system.bridges)
    near = pad(system.n_beads, first, second, vectors, relation)
    index, displacement, kind, present = map(
        torch.from_numpy, (near.index, near.vectors, near.relation, near.present)
    )
    atom_bead = torch.from_numpy(system.atom_bead)
    assert (atom_bead.diff() < 0).any()  # atoms are not sorted by bead
    with torch.no_grad():
        vectors = tiny_model.network(
            found.bead, found.residue, torch.zeros(system.n_beads), index, displacement, kind,
            present, atom_bead, found.atom,
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
        turn = rotation(seed)
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
    assert "Hint: choose the mapping" in text


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
    assert f"bead {key} is new to the model; it borrows the weights of {near}" in caplog.text
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


def test_only_beads_that_hold_a_chain_together_are_slow(
    ubiquitin_system, membrane_system, tiny_model
):
    slow = match(ubiquitin_system, tiny_model).mobility < 0.1
    assert slow.tolist() == (ubiquitin_system.beads.names == "BB").tolist()
    assert (match(membrane_system, tiny_model).mobility == 1).all()


# Calibration


def statistics(source, system, frames=range(0, 20), shape=lambda beads: beads):
    """Mean and spread of every kind of bead pair, as if mapped structures were these frames."""
    pairs, names = system.bead_pairs()
    unwrap, lengths = Unwrapper(system.bead_parent), []
    for k in frames:
        whole = shape(unwrap(*beads_of(source, system, k)))
        lengths.append(np.linalg.norm(np.diff(whole[pairs], axis=1)[:, 0], axis=1))
    lengths = np.array(lengths)
    return {
        name: (float(lengths[:, names == name].mean()), float(lengths[:, names == name].std()))
        for name in np.unique(names)
    }


def calibrated(system, model, source, frames=range(0, 20), **options) -> Backmapper:
    backmapper = Backmapper(system, model, Options(**options))
    beads, boxes = zip(*(beads_of(source, system, k) for k in frames), strict=True)
    backmapper.calibrate(beads, boxes)
    return backmapper


def mean_lengths(system, beads: np.ndarray) -> dict[str, float]:
    pairs, names = system.bead_pairs()
    length = np.linalg.norm(beads[pairs[:, 1]] - beads[pairs[:, 0]], axis=1)
    return {name: float(length[names == name].mean()) for name in np.unique(names)}


def test_beads_like_mapped_ones_stay_as_they_are(ubiquitin, ubiquitin_system, tiny_model):
    model = dataclasses.replace(tiny_model, bead_distances=statistics(ubiquitin, ubiquitin_system))
    # Other frames of the same trajectory: the same means but for chance.
    backmapper = calibrated(ubiquitin_system, model, ubiquitin, frames=range(20, 30))
    whole = backmapper.unwrap(*beads_of(ubiquitin, ubiquitin_system, 5))
    moved = backmapper.calibration(whole)
    untouched = (moved == whole).all(axis=1)
    assert untouched.mean() > 0.8
    assert backmapper.noise == 0.0

    same = calibrated(ubiquitin_system, model, ubiquitin)
    assert not same.calibration.active
    assert same.calibration(whole) is whole


def test_rings_too_wide_become_as_wide_as_mapped_ones(ubiquitin, ubiquitin_system, tiny_model):
    system = ubiquitin_system
    phenyl = system.residue_names[system.bead_residue] == "PHE"
    first, second, third = (
        np.flatnonzero(phenyl & (system.beads.names == name)) for name in ("SC1", "SC2", "SC3")
    )

    def narrow(beads: np.ndarray) -> np.ndarray:
        """Martini's rings are stiff and wider than those of mapped centres."""
        beads = beads.copy()
        for outer in (second, third):
            beads[outer] = beads[first] + 0.7 * (beads[outer] - beads[first])
        return beads

    table = statistics(ubiquitin, system, shape=narrow)
    model = dataclasses.replace(tiny_model, bead_distances=table)
    backmapper = calibrated(system, model, ubiquitin)
    before, after = [], []
    for k in range(20):
        whole = backmapper.unwrap(*beads_of(ubiquitin, system, k))
        before.append(mean_lengths(system, whole))
        after.append(mean_lengths(system, backmapper.calibration(whole)))
    for name, (mean, _) in table.items():
        was, now = (np.mean([lengths[name] for lengths in rows]) for rows in (before, after))
        assert now == pytest.approx(mean, abs=0.05)
        if name.startswith("PHE|SC"):
            assert was - now > 0.5
    off = calibrated(system, model, ubiquitin, calibrate=False)
    assert off.calibration(whole) is whole


def test_a_difference_that_may_be_chance_is_left(ubiquitin, ubiquitin_system, tiny_model):
    table = statistics(ubiquitin, ubiquitin_system, frames=[0])
    shifted = {name: (mean + 0.4, 0.3) for name, (mean, _) in table.items()}
    model = dataclasses.replace(tiny_model, bead_distances=shifted)
    backmapper = calibrated(ubiquitin_system, model, ubiquitin, frames=[0])
    pairs, names = ubiquitin_system.bead_pairs()
    assert np.array_equal(backmapper.calibration.pairs, pairs)
    changed = backmapper.calibration.change != 0
    _, kind, count = np.unique(names, return_inverse=True, return_counts=True)
    # Three standard errors of 0.3 Å are below 0.4 Å from six pairs on.
    assert changed.tolist() == (count[kind] >= 6).tolist()
    assert 0 < changed.sum() < len(changed)


def test_beads_that_differ_are_taken_for_simulated_ones(ubiquitin, ubiquitin_system, tiny_model):
    table = {name: (mean - 0.5, spread) for name, (mean, spread) in
             statistics(ubiquitin, ubiquitin_system).items()}  # fmt: skip
    model = dataclasses.replace(tiny_model, bead_distances=table)
    assert calibrated(ubiquitin_system, model, ubiquitin).noise == SIMULATED_NOISE
    assert calibrated(ubiquitin_system, model, ubiquitin, noise=0.1).noise == 0.1
    assert calibrated(ubiquitin_system, model, ubiquitin, noise=0.0).noise == 0.0
    assert calibrated(ubiquitin_system, tiny_model, ubiquitin).noise == 0.0


def test_calibration_does_without_damaged_frames(ubiquitin, ubiquitin_system, tiny_model):
    table = {name: (mean - 0.5, spread) for name, (mean, spread) in
             statistics(ubiquitin, ubiquitin_system).items()}  # fmt: skip
    model = dataclasses.replace(tiny_model, bead_distances=table)
    beads, box = beads_of(ubiquitin, ubiquitin_system)
    damaged = beads.copy()
    damaged[3] = np.nan
    backmapper = Backmapper(ubiquitin_system, model)
    backmapper.calibrate([damaged], [box])
    assert not backmapper.calibration.active
    backmapper.calibrate([], [])
    assert not backmapper.calibration.active
    backmapper.calibrate([damaged, beads], [box, box])
    plain = Backmapper(ubiquitin_system, model)
    plain.calibrate([beads], [box])
    assert np.array_equal(backmapper.calibration.change, plain.calibration.change)
