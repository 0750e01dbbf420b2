"""Alkyl chains: found in templates, drawn from rotamers, the same whatever surrounds them."""

import math

import numpy as np
import pytest
from mdbackmap.geometry import rotamers
from mdbackmap.geometry.rotamers import Block, ChainSampler, conformers, frames, state_of
from mdbackmap.graph.neighbours import close_pairs
from mdbackmap.mapping.chains import chains_of, kind_of
from mdbackmap.mapping.library import Library
from mdbackmap.pipeline import Backmapper, Options
from mdbackmap.validation import measures
from scipy.spatial.transform import Rotation


@pytest.fixture(scope="module")
def templates():
    return {t.residue: t for t in Library.load(["martini3"]).templates}


def chains(template):
    return {template.names[c.atoms[-1]]: c for c in chains_of(template)}


def blocks_of(template, chain):
    bead, atom = template.members.T
    for part, own in zip(chain.blocks, chain.beads, strict=True):
        weight = dict(zip(atom[bead == own], template.weights[bead == own], strict=True))
        weights = np.array([weight[a] for a in chain.atoms[part]])
        yield Block(chain.kinds[part], np.radians(chain.fixed[part]), chain.length[part],
                    np.radians(chain.angle[part]), weights)  # fmt: skip


def test_the_chains_of_popc(templates):
    found = chains(templates["POPC"])
    assert set(found) == {"C218", "C316"}
    oleoyl = found["C218"]
    names = templates["POPC"].names
    assert names[oleoyl.anchors].tolist() == ["C2", "O21", "C21"]
    assert names[oleoyl.atoms].tolist() == [f"C2{k}" for k in range(2, 19)]
    assert [templates["POPC"].bead_names[b] for b in oleoyl.beads] == ["C1A", "D2A", "C3A", "C4A"]
    fixed = np.flatnonzero(np.isfinite(oleoyl.fixed))
    assert names[oleoyl.atoms[fixed]].tolist() == ["C211"]
    assert oleoyl.fixed[fixed] == [0.0]


@pytest.mark.parametrize("name", ["CHL1", "TRP", "LYS", "LEU", "ILE", "W"])
def test_no_chain_where_there_is_none(templates, name):
    assert chains_of(templates[name]) == ()


def test_every_lipid_with_tails_has_chains(templates):
    without = {
        name for name, t in templates.items()
        if t.kind == "lipid" and len(chains_of(t)) < 2
    }  # fmt: skip
    assert without <= {"CHL1"}, "tails left to the mean"


def test_a_torsion_is_of_one_kind_from_either_end():
    assert kind_of(["CT", "CT", "CD", "CD"]) == kind_of(["CD", "CD", "CT", "CT"])


@pytest.fixture(scope="module")
def palmitoyl(templates):
    chain = chains(templates["POPC"])["C316"]
    blocks = list(blocks_of(templates["POPC"], chain))
    return blocks, ChainSampler(blocks, [0.2] * len(blocks))


def drawn_beads(blocks, sampler, n=200, seed=0):
    """Chains grown freely, their anchors and their beads."""
    dice = np.random.default_rng(seed)
    anchors = dice.normal(size=(n, 3, 3))
    anchors += np.array([[0.0, 0.0, 0.0], [1.4, 0.0, 0.0], [2.0, 1.4, 0.0]])
    turn, shift = frames(anchors)
    atoms, beads = [], []
    for block in blocks:
        pool = conformers(block, 256)
        pick = dice.integers(0, 256, n)
        new = pool.atoms[pick] @ turn.mT + shift[:, None]
        atoms.append(new)
        beads.append(np.einsum("k,nkd->nd", block.weights, new))
        shift = shift + (turn @ pool.shift[pick][..., None])[..., 0]
        turn = turn @ pool.turn[pick]
    return anchors, np.concatenate(atoms, 1), np.stack(beads, 1)


def dice_for(beads, seed):
    return np.random.default_rng(seed).random(beads.shape[:2])


def test_beads_of_drawn_chains_are_where_they_should_be(palmitoyl):
    blocks, sampler = palmitoyl
    anchors, truth, beads = drawn_beads(blocks, sampler)
    atoms, _ = sampler(anchors, beads, dice_for(beads, 1))
    off = np.linalg.norm(np.einsum("bk,nkd->nbd", sampler.flex.weights, atoms) - beads, axis=-1)
    assert np.median(off) < 0.05
    assert (off > 0.5).mean() < 0.02
    bonds = np.linalg.norm(np.diff(np.concatenate([anchors[:, 2:], atoms], 1), axis=1), axis=-1)
    assert np.abs(bonds - np.concatenate([b.length for b in blocks])).max() < 1e-3
    # One draw from what fits lies nearer to the truth than chance, and is not the truth.
    error = np.sqrt(((atoms - truth) ** 2).sum(-1).mean())
    assert 0.4 < error < 1.2


def test_rotamers_are_as_frequent_as_in_the_table(palmitoyl):
    blocks, sampler = palmitoyl
    anchors, truth, beads = drawn_beads(blocks, sampler, n=600)
    atoms, _ = sampler(anchors, beads, dice_for(beads, 5))
    shares = []
    for points in (truth, atoms):
        rows = np.arange(11)[:, None] + np.arange(4)
        flat = points.reshape(-1, 3).astype(np.float64)
        index = (np.arange(600)[:, None, None] * points.shape[1] + rows).reshape(-1, 4)
        torsion = np.radians(measures.torsions(flat, index, None)).reshape(600, -1)
        shares.append((state_of(torsion) != 1).mean(0))
        assert (np.abs(torsion) < math.radians(30)).mean() < 0.01
    assert np.abs(shares[0] - shares[1]).mean() < 0.06


def test_the_draw_turns_with_the_beads(palmitoyl):
    blocks, sampler = palmitoyl
    anchors, _, beads = drawn_beads(blocks, sampler)
    dice = dice_for(beads, 2)
    turn, shift = Rotation.random(None, 3).as_matrix(), np.array([10.0, -3.0, 5.0])
    straight = sampler(anchors, beads, dice)[0] @ turn.T + shift
    turned, _ = sampler(anchors @ turn.T + shift, beads @ turn.T + shift, dice)
    # Rounding may tip a draw to the next conformer.
    same = np.abs(straight - turned).max((1, 2)) < 0.02
    assert same.mean() > 0.97


def test_molecules_are_drawn_one_by_one(palmitoyl):
    blocks, sampler = palmitoyl
    anchors, _, beads = drawn_beads(blocks, sampler)
    dice = dice_for(beads, 2)
    together, alone = sampler(anchors, beads, dice), sampler(anchors[7:8], beads[7:8], dice[7:8])
    for all_of_them, one in zip(together, alone, strict=True):
        assert np.array_equal(all_of_them[7:8], one)


def test_chains_that_fit_with_an_eclipsed_torsion_only_are_told(palmitoyl):
    blocks, sampler = palmitoyl
    anchors, _, beads = drawn_beads(blocks, sampler)
    # Beads that no chain reaches as they lie.
    beads = beads + np.random.default_rng(3).normal(0.0, 0.8, beads.shape)
    atoms, eclipsed = sampler(anchors, beads, dice_for(beads, 4))
    points = np.concatenate([anchors, atoms], 1).astype(np.float64)
    n = points.shape[1]
    rows = np.arange(n - 3)[:, None] + np.arange(4)
    index = (np.arange(len(points))[:, None, None] * n + rows).reshape(-1, 4)
    torsion = measures.torsions(points.reshape(-1, 3), index, None).reshape(len(points), -1)
    saturated = np.array([k.split("-")[1:3] == ["CT", "CT"] for b in blocks for k in b.kinds])
    flat = (np.abs(torsion[:, saturated]) < 30).any(1)
    assert 0 < eclipsed.sum() < len(eclipsed)
    assert np.array_equal(eclipsed, flat)


def test_pentane_is_not_pinched(palmitoyl):
    pool = conformers(palmitoyl[0][1], 4096)
    before = np.array([[-2.0, 1.4, 0.0], [-1.5, 0.0, 0.0], [0.0, 0.0, 0.0]])
    points = np.concatenate([np.broadcast_to(before, (4096, 3, 3)), pool.atoms], 1)
    rows = np.arange(points.shape[1] - 3)[:, None] + np.arange(4)
    index = (np.arange(4096)[:, None, None] * points.shape[1] + rows).reshape(-1, 4)
    torsion = measures.torsions(points.reshape(-1, 3), index, None)
    state = state_of(np.radians(torsion)).reshape(4096, -1)
    opposite = (state[:, :-1] - 1) * (state[:, 1:] - 1) == -1
    assert opposite.mean() < 0.03
    assert 0.2 < (state != 1).mean() < 0.4


def test_the_table_is_of_shares():
    shares, ratios = rotamers.table()
    assert all(s.shape == (rotamers.CELLS,) and abs(s.sum() - 1) < 1e-5 for s in shares.values())
    assert (ratios == ratios.T).all()
    assert (ratios == ratios[::-1, ::-1]).all()


@pytest.fixture
def drawn(membrane, membrane_system):
    """Backmap the patch with some options; raw chains, heavy atoms."""
    membrane.universe.trajectory[0]
    frame = membrane.frame()
    beads = frame.positions[membrane_system.bead_source]

    def backmap(shift=0.0, **options):
        settings = Options(idealise=False, hydrogens=False, **options)
        return Backmapper(membrane_system, "martini3", settings)(beads + shift, frame.box)

    return backmap


def unlike(system, one, other):
    """Share of the lipids that differ by more than rounding."""
    off = np.abs(one - other).max(axis=1) > 0.05
    return len(np.unique(system.atoms.residue[off])) / len(system.residue_template)


def test_only_chains_are_drawn(membrane_system, drawn):
    mean, chains = drawn(draw=False), drawn()
    moved = (mean != chains).any(axis=1)
    names = membrane_system.atoms.names[moved]
    assert 0.3 < moved.mean() < 0.9
    assert {name[0] for name in names} == {"C"}
    assert not {"C1", "C21", "C31"} & set(names)


def test_a_chain_is_tipped_by_rounding_only_now_and_then(membrane_system, drawn):
    one = drawn()
    assert unlike(membrane_system, one, drawn(chunk_size=50)) < 0.02
    shift = np.float32([64.0, -32.0, 16.0])
    assert unlike(membrane_system, one, drawn(shift) - shift) < 0.15


def test_another_seed_is_another_draw(membrane_system, drawn):
    assert np.array_equal(drawn(seed=3), drawn(seed=3))
    assert unlike(membrane_system, drawn(seed=3), drawn(seed=4)) > 0.7  # the rest is cholesterol


def test_no_chain_runs_into_another_molecule(membrane, membrane_system, drawn):
    membrane.universe.trajectory[0]
    first, second, _ = close_pairs(drawn(), membrane.frame().box, 1.0)
    residue = membrane_system.atoms.residue
    assert (residue[first] != residue[second]).sum() <= 2
