"""The network's symmetries and locality, and weights on disk."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from e3nn import o3
from mdbackmap.errors import ModelError
from mdbackmap.graph.chunks import BeadGraph
from mdbackmap.graph.neighbours import find_pairs, pairs_in_groups
from mdbackmap.models import checkpoint, library
from mdbackmap.models.checkpoint import Checkpoint
from mdbackmap.models.encoder import SAME_RESIDUE, EncoderConfig, RadialBasis
from mdbackmap.models.fast import Atoms, FastNetwork, Pairs, fast, supports
from mdbackmap.models.hierarchical import HierarchicalVectors, place_atoms
from mdbackmap.models.predict import Chunk, predict_in_chunks
from safetensors.torch import load_file, save_file

N, PER_BEAD = 40, 3
CUTOFF = 8.0
MIRROR = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))


class ModelContract:
    """What every network here must do; a subclass gives the fixture ``network``, in float64."""

    def test_rotated_beads_give_rotated_atoms(self, network):
        beads = cluster()
        for seed in range(5):
            torch.manual_seed(seed)
            turn = o3.rand_matrix(dtype=torch.float64)
            one, other = predict(network, beads) @ turn.T, predict(network, beads @ turn.T)
            assert torch.allclose(one, other, atol=1e-10)

    def test_moved_beads_give_the_same_vectors(self, network):
        beads = cluster()
        moved = beads + torch.tensor([10.0, -20, 30], dtype=torch.float64)
        assert torch.allclose(predict(network, beads), predict(network, moved), atol=1e-10)

    def test_a_mirror_image_of_the_beads_is_not_answered_with_one_of_the_atoms(self, network):
        beads = cluster()
        vectors = predict(network, beads)
        off = predict(network, beads @ MIRROR) @ MIRROR - vectors
        assert off.norm() > 0.1 * vectors.norm()

    def test_the_order_of_beads_does_not_matter(self, network):
        beads, kind = cluster(), kinds()
        order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
        mixed = predict(network, beads[order], kind[order]).view(N, PER_BEAD, 3)
        plain = predict(network, beads, kind).view(N, PER_BEAD, 3)
        assert torch.allclose(mixed, plain[order], atol=1e-10)

    def test_nothing_beyond_the_receptive_field_matters(self, network):
        # Beads 6 Å apart on a line: bead 0 sees one bead further per layer.
        layers = network.encoder.config.layers
        beads = torch.zeros(layers + 4, 3, dtype=torch.float64)
        beads[:, 0] = 6.0 * torch.arange(layers + 4)
        before = predict(network, beads)[:PER_BEAD]
        for bead in range(1, layers + 3):
            moved = beads.clone()
            moved[bead, 1] += 0.5
            change = (predict(network, moved)[:PER_BEAD] - before).abs().max()
            assert (change > 1e-6) if bead <= layers else (change == 0.0), bead

    def test_a_bead_that_crosses_the_cutoff_changes_nothing_at_once(self, network):
        def at(distance: float) -> torch.Tensor:
            beads = torch.tensor([[0.0, 0, 0], [4, 1, 0], [0, distance, 0]], dtype=torch.float64)
            return predict(network, beads)[: 2 * PER_BEAD]

        just_inside, just_outside = at(CUTOFF - 1e-3), at(CUTOFF + 1e-3)
        assert (just_inside - just_outside).abs().max() < 1e-6
        assert (at(CUTOFF - 3) - just_outside).abs().max() > 1e-3
        # Slopes are continuous too.
        steps = torch.stack([at(CUTOFF + 0.01 * k) for k in range(-100, 20)])
        bends = (steps[2:] - 2 * steps[1:-1] + steps[:-2]).abs().amax(dim=(1, 2))
        assert bends.max() < 1e-4

    def test_the_width_of_the_padding_does_not_matter(self, network):
        beads = cluster()
        padded = predict(network, beads, extra=5)
        assert torch.allclose(predict(network, beads), padded, atol=1e-12)

    @pytest.mark.parametrize("apart", [0.0, 1e-6, 0.01, 0.3])
    def test_beads_on_top_of_one_another_do_not_blow_up(self, network, apart):
        crowd = predict(network, cluster() * apart / 10)
        assert torch.isfinite(crowd).all()
        assert crowd.abs().max() < 20 * predict(network, cluster()).abs().max()

    def test_single_precision_is_enough(self, network):
        beads = cluster()
        single = predict(copy.deepcopy(network).float(), beads.float())
        assert torch.allclose(single.double(), predict(network, beads), atol=1e-4)

    def test_gradients_are_finite_with_coinciding_beads(self, network):
        network = copy.deepcopy(network)
        vectors = predict(network, torch.zeros(5, 3, dtype=torch.float64), grad=True)
        vectors.square().sum().backward()
        grads = [p.grad for p in network.parameters() if p.grad is not None]
        assert grads
        assert all(torch.isfinite(g).all() for g in grads)


class TestHierarchicalVectors(ModelContract):
    @pytest.fixture
    def network(self) -> HierarchicalVectors:
        torch.manual_seed(0)
        config = EncoderConfig(scalars=16, vectors=8, radial=4, cutoff=CUTOFF)
        network = HierarchicalVectors(config, 5, 4, 7).double().eval()
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, torch.nn.Linear):
                    # As drawn, weights give vectors of 0.001 Å, in which nothing could be seen.
                    module.weight *= 2.5
        return network

    def test_without_cross_products_it_could_not_tell_hands_apart(self, network):
        """The mirror test of the contract does fail for an O(3) network."""
        blind = copy.deepcopy(network)
        with torch.no_grad():
            for layer in blind.encoder.layers:
                layer.cross.weight.zero_()
                width = layer.mix_vector.in_features // 3
                if not layer.first:
                    layer.mix_vector.weight[:, 2 * width :] = 0.0
            blind.expand.weight[:, blind.expand.in_features // 2 :] = 0.0
        beads = cluster()
        one, other = predict(blind, beads @ MIRROR) @ MIRROR, predict(blind, beads)
        assert one.norm() > 0
        assert torch.allclose(one, other, atol=1e-10)

    def test_features_rotate_as_their_irreps_say(self, network):
        beads, encoder = cluster(), network.encoder

        def features(positions: torch.Tensor) -> list[torch.Tensor]:
            bead, residue, noise, index, displacement, relation, present, *_ = inputs(positions)
            scalars, vectors = encoder.embed(bead, residue, noise)
            radial, unit = encoder.geometry(displacement, present)
            found = []
            for layer in encoder.layers:
                here = torch.arange(len(bead))
                scalars, vectors = layer(scalars, vectors, here, index, radial, unit, relation)
                # e3nn keeps the three components of one vector together.
                found.append(torch.cat([scalars, vectors.transpose(1, 2).flatten(1)], dim=1))
            return found

        torch.manual_seed(1)
        turn = o3.rand_matrix(dtype=torch.float64)
        matrix = encoder.config.irreps.D_from_matrix(turn)
        assert matrix.shape == (16 + 3 * 8,) * 2
        with torch.no_grad():
            for one, other in zip(features(beads), features(beads @ turn.T), strict=True):
                # e3nn's matrices are good to 1e-7.
                assert torch.allclose(one @ matrix.T, other, atol=1e-5)

    def test_relations_residues_and_noise_are_seen(self, network):
        beads = cluster()
        given = list(inputs(beads))
        with torch.no_grad():
            before = network(*given)
            for place, value in ((1, (given[1] + 1) % 4), (2, given[2] + 0.3),
                                 (5, (given[5] + 1) % 5)):  # fmt: skip
                changed = [*given[:place], value, *given[place + 1 :]]
                assert (network(*changed) - before).abs().max() > 1e-3

    @pytest.mark.parametrize("size", [1, 7, 39, 40, 1000])
    def test_chunks_of_any_size_give_the_same_answer(self, network, size):
        beads = cluster()
        first, second, vectors = find_pairs(beads.numpy(), None, CUTOFF)
        relation = (kinds()[first] + kinds()[second]).numpy() % 5
        graph = BeadGraph(N, first, second, vectors, relation)

        def chunk(some):
            near = graph.neighbours(some)
            atoms, owner = np.nonzero(atom_bead.numpy()[:, None] == some)
            arrays = (some, atoms, owner, near.index, near.vectors.astype(np.float64),
                      near.relation, near.present)  # fmt: skip
            return Chunk(*map(torch.from_numpy, arrays))

        bead, residue, noise, *_, atom_bead, atom_key = inputs(beads)
        chunks = [functools.partial(chunk, some) for some in graph.chunks(size)]
        found = predict_in_chunks(network, bead, residue, noise, chunks, atom_key)
        assert torch.allclose(found, predict(network, beads), atol=1e-6)


def cluster(seed: int = 0) -> torch.Tensor:
    """Beads as dense as those of a protein."""
    points = np.random.default_rng(seed).uniform(0, 17, (N, 3))
    # As vectors between beads are kept: rounded to float32.
    return torch.from_numpy(points.astype(np.float32).astype(np.float64))


def kinds(n: int = N) -> torch.Tensor:
    return torch.arange(n) * 7 % 5


def inputs(beads: torch.Tensor, kind: torch.Tensor | None = None, extra: int = 0) -> tuple:
    """What the network is given for some beads; relations depend on the kinds only."""
    n, kind = len(beads), kinds(len(beads)) if kind is None else kind
    first, second, _ = find_pairs(beads.detach().numpy(), None, CUTOFF)
    relation = ((kind[first] + kind[second]) % 5).numpy()
    graph = BeadGraph(n, first, second, np.zeros((len(first), 3), np.float32), relation)
    near = graph.neighbours(np.arange(n))
    index = torch.from_numpy(near.index)
    present = torch.from_numpy(near.present)
    displacement = (beads[index] - beads[:, None]) * present[..., None]
    if extra:
        index = torch.cat([index, torch.zeros(n, extra, dtype=torch.int64)], dim=1)
        displacement = torch.cat([displacement, beads.new_zeros(n, extra, 3)], dim=1)
        present = torch.cat([present, torch.zeros(n, extra, dtype=torch.bool)], dim=1)
    relation = torch.nn.functional.pad(torch.from_numpy(near.relation), (0, extra))
    atom_bead = torch.arange(n).repeat_interleave(PER_BEAD)
    atom_key = (kind[:, None] + torch.arange(PER_BEAD)).flatten() % 7
    noise = torch.full((n,), 0.1, dtype=beads.dtype)
    return kind, kind % 4, noise, index, displacement, relation, present, atom_bead, atom_key


def predict(network, beads, kind=None, extra: int = 0, grad: bool = False) -> torch.Tensor:
    with torch.set_grad_enabled(grad):
        return network(*inputs(beads, kind, extra))


def test_the_radial_basis_ends_smoothly_at_the_cutoff():
    basis = RadialBasis(6, CUTOFF).double()
    x = torch.tensor([CUTOFF], dtype=torch.float64, requires_grad=True)
    for function in range(6):
        value = basis(x)[0, function]
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        (bend,) = torch.autograd.grad(slope, x)
        assert max(abs(v.item()) for v in (value, slope, bend)) < 1e-9
    inside = basis(torch.linspace(0, CUTOFF - 0.5, 100, dtype=torch.float64))
    assert torch.isfinite(inside).all()
    assert (inside.abs().amax(dim=0) > 0.1).all()
    assert not basis(torch.tensor([CUTOFF + 0.1, 100.0], dtype=torch.float64)).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": 0},
        {"vectors": -3},
        {"cutoff": math.nan},
        {"scalars": 10**9},
        {"radial": "8"},
        {"radial": 2.5},
    ],
)
def test_an_architecture_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EncoderConfig(**wrong)


# Placing atoms


def hierarchy() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Anchors, levels and beads of eight atoms, in an order where anchors come later."""
    anchors = torch.tensor([3, -1, 0, 1, 1, -1, 5, 6])
    levels = torch.tensor([3, 1, 4, 2, 2, 1, 2, 3])
    atom_bead = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    return anchors, levels, atom_bead


def test_true_vectors_give_the_true_atoms():
    anchors, levels, atom_bead = hierarchy()
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    beads = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    start = torch.where((anchors < 0)[:, None], beads[atom_bead], atoms[anchors])
    found = place_atoms(atoms - start, anchors, levels, atom_bead, beads)
    assert torch.allclose(found, atoms, atol=1e-12)


def test_placing_turns_and_moves_with_its_input_and_has_gradients():
    anchors, levels, atom_bead = hierarchy()
    torch.manual_seed(2)
    vectors = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    beads = torch.randn(2, 3, dtype=torch.float64)
    turn, move = o3.rand_matrix(dtype=torch.float64), torch.tensor([5.0, -1, 2])
    one = place_atoms(vectors, anchors, levels, atom_bead, beads)
    other = place_atoms(vectors @ turn.T, anchors, levels, atom_bead, beads @ turn.T + move)
    assert torch.allclose(one @ turn.T + move, other, atol=1e-12)
    one[2].sum().backward()  # atom 2 hangs from 0, 3, 1
    assert vectors.grad.any(dim=1).tolist() == [True, True, True, True] + [False] * 4


def test_no_atoms_are_placed_without_complaint():
    none = torch.zeros(0, dtype=torch.int64)
    assert place_atoms(torch.zeros(0, 3), none, none, none, torch.zeros(4, 3)).shape == (0, 3)


# Weights on disk

OLD = Path(__file__).parent / "checkpoints" / "format1.safetensors"


@pytest.fixture
def saved(tiny_model, tmp_path) -> Path:
    path = tmp_path / "tiny.safetensors"
    checkpoint.save(tiny_model, path)
    return path


def answers(model: Checkpoint) -> torch.Tensor:
    """Vectors of a fixed little system, shape (9, 3)."""
    beads = torch.tensor([[0.0, 0, 0], [2.5, 0.5, 0], [1, 3.5, 1], [9, 3, 1]])
    kind = torch.tensor([0, 1, 0, 1])
    given = list(inputs(beads, kind))
    given[1] = kind
    given[-2:] = torch.tensor([0, 0, 1, 2, 2, 3]), torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        return model.network(*given)


def test_a_checkpoint_comes_back_as_it_was(tiny_model, saved):
    loaded = checkpoint.load(saved)
    for field in dataclasses.fields(Checkpoint):
        if field.name not in ("network", "source"):
            assert getattr(loaded, field.name) == getattr(tiny_model, field.name)
    assert loaded.source == str(saved)
    assert loaded.cutoff == tiny_model.cutoff
    assert torch.equal(answers(loaded), answers(tiny_model))
    assert not loaded.network.training
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_loading_leaves_the_random_numbers_alone(saved):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    checkpoint.load(saved)
    assert torch.equal(torch.rand(4), expected)


def test_weights_stay_usable_when_their_file_changes(saved):
    model = checkpoint.load(saved)
    before = answers(model)
    saved.write_bytes(b"\0" * saved.stat().st_size)
    assert torch.equal(answers(model), before)


def test_no_pickle_is_ever_read(saved, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a pickle was read")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"),
                        (torch, "load")):  # fmt: skip
        monkeypatch.setattr(owner, name, refuse)
    checkpoint.load(saved)
    saved.write_bytes(pickle.dumps({"format": 1}))
    with pytest.raises(ModelError, match="cannot be read as weights"):
        checkpoint.load(saved)


def test_distances_in_simulations_are_kept(tiny_model, tmp_path):
    table = {"ALA|BB:C,CA,N,O|SC1:CB": (2.7, 0.004)}
    model = dataclasses.replace(tiny_model, simulated_distances=table)
    checkpoint.save(model, tmp_path / "m.safetensors")
    assert checkpoint.load(tmp_path / "m.safetensors").simulated_distances == table
    assert not tiny_model.simulated_distances


def test_weights_of_the_first_format_still_load_and_give_the_same():
    model = checkpoint.load(OLD)
    assert model.bead_keys == ["BB:C,CA,N,O", "SC1:CB", "W1:O1*0.5"]
    assert model.residues == ["", "ALA", "GLY"]
    assert model.bead_distances == {"ALA|BB:C,CA,N,O|SC1:CB": (2.51, 0.08)}
    assert model.card["metrics"] == {"rmsd": 1.5}
    assert answers(model).numpy() == pytest.approx(np.array(OLD_ANSWERS), abs=1e-4)


OLD_ANSWERS = [
    [0.1717, -0.8690, -0.1161],
    [0.0865, -0.1066, 0.0270],
    [-0.0211, 0.1957, -0.0544],
    [0.5182, 0.6284, 0.0409],
    [0.2531, -0.0878, 0.0696],
    [0.0011, 0.0004, 0.0002],
]


def rewrite(path: Path, change) -> None:
    """Save a file again with its metadata or tensors changed."""
    header, tensors, metadata = checkpoint.read_header(path), load_file(path), {}
    change(header, tensors, metadata)
    save_file(tensors, path, metadata=metadata or {"mdbackmap": json.dumps(header)})


def newer(header, tensors, metadata):
    header["format"] = 99


def other_head(header, tensors, metadata):
    header["head"] = "flow"


def foreign(header, tensors, metadata):
    metadata["format"] = "pt"


def no_json(header, tensors, metadata):
    metadata["mdbackmap"] = "{"


def no_table(header, tensors, metadata):
    metadata["mdbackmap"] = "[1, 2]"


def no_encoder(header, tensors, metadata):
    del header["encoder"]


def odd_encoder(header, tensors, metadata):
    header["encoder"] = [1, 2]


def wrong_size(header, tensors, metadata):
    header["encoder"]["scalars"] = 32


def absurd_size(header, tensors, metadata):
    header["encoder"]["vectors"] = 10**12


def one_bead_less(header, tensors, metadata):
    header["bead_keys"].pop()


def bead_twice(header, tensors, metadata):
    header["bead_keys"][1] = header["bead_keys"][0]


def tensor_missing(header, tensors, metadata):
    del tensors["read.weight"]


def tensor_extra(header, tensors, metadata):
    tensors["more"] = torch.zeros(1)


def not_a_number(header, tensors, metadata):
    tensors["read.weight"][3, 2] = math.nan


def infinite_distance(header, tensors, metadata):
    header["bead_distances"] = {"a|b|c": [math.inf, 0.1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (newer, "format 99.*update mdbackmap"),
        (other_head, "head 'flow'"),
        (foreign, "not one of mdbackmap's models"),
        (no_json, "metadata is damaged"),
        (no_table, "metadata is damaged"),
        (no_encoder, "encoder"),
        (odd_encoder, "do not fit"),
        (wrong_size, "size mismatch"),
        (absurd_size, "vectors 1000000000000"),
        (one_bead_less, "size mismatch.*encoder.bead.weight"),
        (bead_twice, "bead_keys"),
        (tensor_missing, "read.weight"),
        (tensor_extra, "more"),
        (not_a_number, "read.weight: not all numbers"),
        (infinite_distance, "bead_distances"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ModelError, match=message) as caught:
        checkpoint.load(saved)
    assert str(caught.value).startswith(f"{saved}: ")


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "pickle", "folder", "missing"])
def test_damaged_weights_are_refused_by_name(saved, damage):
    content = saved.read_bytes()
    if damage in ("folder", "missing"):
        saved.unlink()
    if damage == "folder":
        saved.mkdir()
    elif damage == "pickle":
        torch.save({"a": torch.zeros(2)}, saved)
    elif damage != "missing":
        saved.write_bytes({"empty": b"", "text": b"hello there, this is text" * 10,
                           "truncated": content[: len(content) // 2]}[damage])  # fmt: skip
    with pytest.raises(ModelError, match="cannot be read as weights") as caught:
        checkpoint.load(saved)
    assert str(caught.value).startswith(f"{saved}: ")


def test_models_are_found_by_name_or_path(saved, monkeypatch, tmp_path):
    monkeypatch.setattr(library, "weights_root", lambda: tmp_path)
    assert library.shipped() == ["tiny"]
    assert library.resolve("tiny") == saved
    assert library.resolve(str(saved)) == saved
    with pytest.raises(ModelError, match=r"model 'tinny': neither a shipped model \(tiny\) nor"):
        library.resolve("tinny")
    with pytest.raises(ModelError, match="neither"):
        library.resolve("../tiny")


# Without small operations


@pytest.mark.parametrize("size", [1, 7, 40, 1000])
@pytest.mark.parametrize("shape", [(16, 8, 3), (8, 16, 1), (24, 8, 2)])
@pytest.mark.parametrize("alone", [False, True])
def test_the_fast_way_gives_what_the_network_gives(shape, size, alone):
    torch.manual_seed(3)
    scalars, vectors, layers = shape
    config = EncoderConfig(scalars=scalars, vectors=vectors, layers=layers, radial=6,
                           cutoff=CUTOFF, alone=alone)  # fmt: skip
    network = HierarchicalVectors(config, 5, 4, 7).float().eval()
    beads = cluster().float()
    if alone:
        # Residues of four beads, which see their own.
        group = np.arange(N) // 4
        first, second = pairs_in_groups(group)
        gaps = (beads[second] - beads[first]).numpy()
        relation = np.full(len(first), SAME_RESIDUE)
    else:
        first, second, gaps = find_pairs(beads.numpy(), None, CUTOFF)
        relation = (kinds()[first] + kinds()[second]).numpy() % 5
    near = BeadGraph(N, first, second, gaps, relation).neighbours(np.arange(N))
    atom_bead = torch.arange(N).repeat_interleave(PER_BEAD)
    key = (kinds()[:, None] + torch.arange(PER_BEAD)).flatten() % 7
    with torch.no_grad():
        expected = network(
            kinds(), kinds() % 4, torch.full((N,), 0.1), torch.from_numpy(near.index),
            torch.from_numpy(near.vectors), torch.from_numpy(near.relation),
            torch.from_numpy(near.present), atom_bead, key,
        ).numpy()  # fmt: skip
    start = np.append(0, np.cumsum(np.bincount(first, minlength=N)))
    atoms = Atoms(np.arange(N + 1) * PER_BEAD, np.arange(len(key)), key.numpy())
    groups = np.flatnonzero(np.diff(group, prepend=-1)) if alone else None
    fast_one = FastNetwork(network)
    found = fast_one(
        kinds(), kinds() % 4, 0.1, Pairs(start, second, relation, gaps), atoms, size, groups
    )
    # An untrained network gives small vectors.
    size = np.abs(expected).max()
    assert size > 1e-4
    assert np.abs(found - expected).max() < 1e-4 * size


def test_which_networks_can_be_run_fast():
    assert supports(EncoderConfig(scalars=16, vectors=8))
    assert not supports(EncoderConfig(scalars=12, vectors=8))
    assert not supports(EncoderConfig(scalars=16, vectors=6))
    odd = HierarchicalVectors(EncoderConfig(scalars=12, vectors=8), 5, 4, 7)
    assert fast(odd) is None
    even = HierarchicalVectors(EncoderConfig(scalars=16, vectors=8), 5, 4, 7)
    assert fast(even) is fast(even)
