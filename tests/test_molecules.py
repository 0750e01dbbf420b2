"""Molecules that no model has learnt: conformers, their fit to beads, models of one molecule."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from mdbackmap.errors import ConfigError, MappingError, ModelError
from mdbackmap.geometry.idealise import Idealiser
from mdbackmap.geometry.superpose import superpose
from mdbackmap.mapping.chains import chains_of
from mdbackmap.mapping.conformers import conformers, dynamics
from mdbackmap.mapping.library import Library, load_templates, mappings_root
from mdbackmap.mapping.system import from_beads, one_molecule
from mdbackmap.models import checkpoint
from mdbackmap.models.library import shipped
from mdbackmap.pipeline import Backmapper, Options
from mdbackmap.predictors import ConformerPredictor
from mdbackmap.structure import Frame, Particles
from mdbackmap.training.molecule import train_molecule
from mdbackmap.validation import Checker
from mdbackmap.validation.measures import torsions
from scipy.spatial.transform import Rotation

from helpers_io import fails, load, ok, run

pytest.importorskip("rdkit")
needs_weights = pytest.mark.skipif("martini3" not in shipped(), reason="needs the shipped weights")
SMALL = mappings_root() / "martini3" / "small_molecule"
DRUG = """
residue: DRG
name: a hydroxy acid with a double bond and both kinds of stereo
beads: {B1: , B2: , B3: , B4: }
atoms:
  C1: {bead: B1, hydrogens: [H1, H2, H3]}
  C2: {bead: B1, hydrogens: [H4]}
  C3: {bead: B2, hydrogens: [H5]}
  C4: {bead: B2, hydrogens: [H6, H7]}
  C5: {bead: B3, hydrogens: [H8]}
  O1: {bead: B3, hydrogens: [H9]}
  C6: {bead: B4}
  O2: {bead: B4}
  O3: {bead: B4, charge: -1}
bonds: [[C1, C2], [C2, C3, 2], [C3, C4], [C4, C5], [C5, O1], [C5, C6], [C6, O2, 1.5], [C6, O3, 1.5]]
STEREO: [[C1, C2, C3, C4]]
chiral: {C5: HAND}
symmetric: [{O2: O3}]
"""


def drug(folder: Path, stereo: str = "trans", hand: str = "[O1, C4, C6]") -> Path:
    path = folder / "drug.yaml"
    path.write_text(DRUG.replace("STEREO", stereo).replace("HAND", hand))
    return path


def volumes(points: np.ndarray, index: np.ndarray) -> np.ndarray:
    x, a, b, c = np.moveaxis(points[:, index], 2, 0)
    return np.einsum("kni,kni->kn", a - x, np.cross(b - x, c - x))


# Superposition


def test_points_are_laid_on_their_targets():
    rng = np.random.default_rng(0)
    points, turns = rng.normal(size=(5, 7, 3)), Rotation.random(5, 1).as_matrix()
    target = np.einsum("kni,kji->knj", points, turns) + rng.normal(size=(5, 1, 3))
    rotation, shift, error = superpose(points, target)
    assert rotation == pytest.approx(turns)
    assert np.einsum("kni,kji->knj", points, rotation) + shift[:, None] == pytest.approx(target)
    assert error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_a_superposition_is_never_a_mirror_image(n):
    points = np.random.default_rng(n).normal(size=(n, 3))
    rotation, _, error = superpose(points, points * [-1, 1, 1])
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert (error < 1e-9) == (n <= 3), "up to three points are their own mirror image"


# Conformers


@pytest.mark.parametrize("stereo", ["cis", "trans"])
@pytest.mark.parametrize("hand", ["[O1, C4, C6]", "[C4, O1, C6]"])
def test_conformers_have_the_stereo_of_the_mapping(tmp_path, stereo, hand):
    (template,) = load_templates(drug(tmp_path, stereo, hand))
    terms, found = template.constraints, conformers(template)
    assert len(found) > 3
    hands = terms.volumes[np.abs(terms.volume) > 0.5]
    assert (volumes(found, hands) > 0.5).all() == (terms.volume.max() > 0.5)
    names = template.names.tolist()
    a, b = (found[:, names.index(name)] for name in ("C1", "C4"))
    assert ((np.linalg.norm(a - b, axis=1) < 3.4) == (stereo == "cis")).all()
    length = np.linalg.norm(found[:, terms.bonds[:, 0]] - found[:, terms.bonds[:, 1]], axis=2)
    assert length == pytest.approx(np.broadcast_to(terms.bond_length, length.shape), rel=0.1)


@pytest.mark.parametrize("name", ["CAFF", "NECA", "ZMA", "4NIAN", "CHEX"])
def test_shipped_molecules_have_conformers_with_their_geometry(name):
    (template,) = load_templates(SMALL / f"{name}.yaml")
    terms, found = template.constraints, conformers(template)
    assert conformers(template) is found, "made once"
    length = np.linalg.norm(found[:, terms.bonds[:, 0]] - found[:, terms.bonds[:, 1]], axis=2)
    assert length == pytest.approx(np.broadcast_to(terms.bond_length, length.shape), rel=0.1)
    hands = np.abs(terms.volume) > 0.5
    assert (np.sign(volumes(found, terms.volumes[hands])) == np.sign(terms.volume[hands])).all()


@pytest.mark.parametrize("momentum", [0.3, 0.6])
@pytest.mark.parametrize(
    "smiles",
    ["c1cc2ccc3cccc4ccc(c1)c2c34", "c1cc2ccc3ccc4ccc5ccc6ccc1c1c2c3c4c5c61", "C12C3C4C1C5C2C3C45"],
    ids=["pyrene", "coronene", "cubane"],
)
def test_fused_rings_come_to_rest(tmp_path, smiles, momentum):
    (tmp_path / "fused.smi").write_text(smiles + "\n")
    carbons = [f"C{k + 1}" for k in range(smiles.lower().count("c"))]
    beads = "".join(f"B{k // 4} {name}\n" for k, name in enumerate(carbons))
    (tmp_path / "fused.map.tsv").write_text(beads)
    ok("mapping", "new", tmp_path / "fused.smi", "--beads", tmp_path / "fused.map.tsv",
       "-o", tmp_path / "fused.yaml", "--allow-open-stereo")  # fmt: skip
    system = one_molecule(load_templates(tmp_path / "fused.yaml")[0])
    (sound, *_) = conformers(system.templates[0])
    noise = np.random.default_rng(1).normal(0.0, 0.3, (16, *sound.shape))
    idealiser = Idealiser(
        system.constraints, system.n_atoms, system.members, system.weights, system.n_beads,
        system.backbone, rounds=3, momentum=momentum,
    )  # fmt: skip
    beads_at = np.broadcast_to(system.map_positions(sound), (16, system.n_beads, 3))
    for positions in idealiser((sound + noise).astype(np.float32), beads_at).astype(np.float64):
        wrong = {k: c.wrong for k, c in Checker(system)(positions).counts.items()}
        assert not wrong["bonds"] + wrong["angles"] + wrong["planar"] + wrong["flat_rings"]


def test_dynamics_stay_near_and_move(tmp_path):
    (template,) = load_templates(drug(tmp_path))
    runs = dynamics(template, 3, 5, every=50)
    assert runs.shape == (3, 5, template.n_atoms, 3)
    terms = template.constraints
    ends = runs[:, :, terms.bonds]
    length = np.linalg.norm(ends[..., 0, :] - ends[..., 1, :], axis=-1)
    off = np.abs(length - terms.bond_length)
    assert 0.01 < off.mean() < 0.06, "bonds at 300 K fluctuate by 0.03 Å"
    assert off.max() < 0.3
    flat = runs.reshape(-1, template.n_atoms, 3)
    hands = terms.volumes[np.abs(terms.volume) > 0.5]
    assert (volumes(flat, hands) > 0.5).all()


def test_chemistry_that_cannot_be_is_refused(tmp_path):
    text = drug(tmp_path).read_text().replace("hydrogens: [H4]", "hydrogens: [H4, HX, HY, HZ]")
    (tmp_path / "drug.yaml").write_text(text)
    (template,) = load_templates(tmp_path / "drug.yaml")
    with pytest.raises(MappingError, match="residue DRG: RDKit cannot make conformers"):
        conformers(template)


# Fitted to beads


def frames_of(template, count: int = 6) -> np.ndarray:
    return dynamics(template, 3, count, every=50)[1]


@needs_weights
@pytest.mark.parametrize("idealise", [True, False])
def test_an_unknown_molecule_is_fitted_and_said(tmp_path, caplog, idealise):
    path = drug(tmp_path)
    (template,) = load_templates(path)
    system = one_molecule(template)
    backmapper = Backmapper(system, options=Options(idealise=idealise, hydrogens=False))
    assert "no model knows DRG: conformers are fitted" in caplog.text
    assert backmapper.models == ["conformers of DRG"]
    backmapper.inspect([], [])
    hands = np.abs(template.constraints.volume) > 0.5
    for positions in frames_of(template):
        beads = system.map_positions(positions)
        found = backmapper(beads)
        assert np.sqrt(((found - positions) ** 2).sum(axis=1).mean()) < 1.2
        assert system.map_positions(found) == pytest.approx(beads, abs=0.5 if idealise else 1e-3)
        assert (volumes(found[None], template.constraints.volumes[hands]) > 0.5).all()


def side_by_side(library, systems, beads):
    """Lay several systems out as one."""
    tables = [system.beads for system in systems]
    names, resnames, segids = (
        np.concatenate([getattr(table, key) for table in tables])
        for key in ("names", "resnames", "segids")
    )
    resids = np.concatenate([table.resids + 100 * k for k, table in enumerate(tables)])
    particles = Particles(names, resnames, resids, segids)
    return from_beads(particles, library, Frame(beads.astype(np.float32)))


@needs_weights
def test_a_molecule_among_others_has_a_part_of_its_own(tmp_path):
    """Two molecules beside each other: each is placed as if it were alone."""
    path = drug(tmp_path)
    (template,) = load_templates(path)
    library = Library.load(["martini3", path])
    one, caffeine = map(one_molecule, (template, load_templates(SMALL / "CAFF.yaml")[0]))
    frames = frames_of(template)
    beads = np.concatenate(
        [one.map_positions(frames[0]), 30 + np.arange(3 * caffeine.n_beads).reshape(-1, 3),
         one.map_positions(frames[1]) + 90]
    )  # fmt: skip
    system = side_by_side(library, [one, caffeine, one], beads)
    raw = Options(idealise=False, hydrogens=False)
    found = Backmapper(system, options=raw)
    assert found.models == ["martini3", "conformers of DRG"]
    atoms, alone = found(beads), Backmapper(one, options=raw)
    n = one.n_atoms
    assert atoms[:n] == pytest.approx(alone(beads[: one.n_beads]), abs=1e-4)
    assert atoms[-n:] == pytest.approx(alone(beads[-one.n_beads :]), abs=1e-4)
    middle = slice(one.n_beads, -one.n_beads)
    assert atoms[n:-n] == pytest.approx(
        Backmapper(caffeine, options=raw)(beads[middle]), abs=1e-4
    )  # fmt: skip


# A model of one molecule


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A model of the drug, after seconds of training."""
    path = drug(tmp_path_factory.mktemp("learnt"))
    ok("train", "--molecule", path, "--minutes", 0.15, "--threads", 1)
    return path, path.with_suffix(".safetensors")


def test_a_model_of_one_molecule_is_trained_and_used(learnt, tmp_path):
    path, weights = learnt
    model = checkpoint.load(weights)
    assert model.card["name"] == "DRG"
    assert "this molecule alone" in model.card["limits"]
    (template,) = load_templates(path)
    system = one_molecule(template)
    backmapper = Backmapper(system, ["martini3", weights], Options(noise=0.0, hydrogens=False))
    assert backmapper.models == ["DRG"]
    errors = []
    for positions in frames_of(template):
        found = backmapper(system.map_positions(positions))
        errors.append(np.sqrt(((found - positions) ** 2).sum(axis=1).mean()))
    assert np.mean(errors) < 0.6


@needs_weights
def test_models_beside_one_another_from_the_command_line(learnt, tmp_path):
    path, weights = learnt
    (template,) = load_templates(path)
    x = frames_of(template)[0]
    rows = [
        f"{1:5d}{'DRG':5s}{name:>5s}{k + 1:5d}{p[0]:8.3f}{p[1]:8.3f}{p[2]:8.3f}"
        for k, (name, p) in enumerate(zip(template.names, x / 10, strict=True))
    ]
    (tmp_path / "aa.gro").write_text("\n".join(["drug", str(len(rows)), *rows, "3 3 3", ""]))
    ok("map", tmp_path / "aa.gro", "-o", tmp_path / "cg.gro", "--mapping", path)
    words = ["convert", tmp_path / "cg.gro", "-o", tmp_path / "back.gro", "--mapping", path]
    said = ok(*words, "--model", "martini3", "--model", weights)
    assert "model: DRG;" in said
    back = load(tmp_path / "back.gro").select_atoms("not name H*").positions
    assert np.sqrt(((back - x) ** 2).sum(axis=1).mean()) < 1.0
    for model in (["--model", "martini3"], []):
        result = run(*words, *model)
        assert "model: conformers of DRG;" in result.out
        assert "no model knows DRG" in result.err


@needs_weights
def test_a_model_of_a_molecule_beside_a_protein_needs_another(learnt, ubiquitin_system):
    path, weights = learnt
    one = one_molecule(load_templates(path)[0])
    with pytest.raises(ModelError, match=r"knows these: --model martini3$"):
        Backmapper(ubiquitin_system, weights)
    beads = np.zeros((ubiquitin_system.n_beads + one.n_beads, 3))
    system = side_by_side(Library.load([path]), [ubiquitin_system, one], beads)
    with pytest.raises(ModelError) as caught:
        Backmapper(system, weights)
    assert str(caught.value).endswith(f"--model martini3 --model {weights}")
    assert "\n  DRG (" not in str(caught.value)


def test_frames_of_ones_own(learnt, tmp_path):
    path, _ = learnt
    (template,) = load_templates(path)
    runs = dynamics(template, 2, 20, every=20).reshape(-1, template.n_atoms, 3)
    lines = []
    for k, x in enumerate(runs):
        lines.append(f"MODEL     {k + 1:4d}")
        lines += [
            f"HETATM{n + 1:5d} {name:^4s} DRG A   1    {p[0]:8.3f}{p[1]:8.3f}{p[2]:8.3f}"
            f"  1.00  0.00          {name[0]:>2s}"
            for n, (name, p) in enumerate(zip(template.names, x, strict=True))
        ]
        lines.append("ENDMDL")
    (tmp_path / "mine.pdb").write_text("\n".join([*lines, "END", ""]))
    shutil.copy(path, tmp_path / "drug.yaml")
    said = ok("train", "--molecule", tmp_path / "drug.yaml", "--minutes", 0.02, "--threads", 1,
              "--conformers", tmp_path / "mine.pdb", "-o", tmp_path / "x.safetensors")  # fmt: skip
    assert "learnt from 32 frames; on 8 held out" in said
    assert checkpoint.load(tmp_path / "x.safetensors").card["data"] == "mine.pdb"


def test_too_few_frames_and_too_many_molecules_are_refused(tmp_path):
    (template,) = load_templates(drug(tmp_path))
    frames = np.zeros((5, template.n_atoms, 3))
    with pytest.raises(ConfigError, match="residue DRG: 10 frames; at least 25"):
        train_molecule(template, frames, frames, tmp_path / "x", 1, str)
    assert "is a directory" in fails("train", "--molecule", SMALL, code=2)
    assert "either CONFIG or --molecule" in fails("train", code=2)
    words = ["-o", "y", "--minutes", 5, "--threads", 1]
    said = fails("train", "x.yaml", *words, code=2)
    assert "--output, --minutes, --threads: of --molecule only" in said


def test_a_protein_that_no_model_knows_is_not_fitted(tmp_path, tiny_model):
    path = drug(tmp_path)
    path.write_text(path.read_text() + "kind: protein\n")
    (template,) = load_templates(path)
    with pytest.raises(ModelError, match=r"DRG(.|\n)*Hint: choose the mapping"):
        Backmapper(one_molecule(template), tiny_model)


@needs_weights
@pytest.mark.parametrize("name", ["CER160", "POPI"])
def test_a_lipid_with_an_unknown_head_has_its_head_fitted_and_its_tails_drawn(name, caplog):
    (template,) = load_templates(mappings_root() / "martini3" / "lipid" / f"{name}.yaml")
    system = one_molecule(template)
    # What knows proteins only; beads of a conformer are exact.
    backmapper = Backmapper(system, "ca", options=Options(hydrogens=False, noise=0.0))
    assert f"no model knows {name}: conformers are fitted" in caplog.text
    backmapper.inspect([], [])
    checker = Checker(system)
    for truth in conformers(template)[:3]:
        beads = system.map_positions(truth)
        found = backmapper(beads)
        counts = checker(found, None).residues[name]
        for what in ("bonds", "stereocentres", "double_bonds"):
            assert counts[what].wrong == 0, what
        assert np.linalg.norm(system.map_positions(found) - beads, axis=1).max() < 0.5


@needs_weights
@pytest.mark.parametrize(
    ("name", "model"),
    [("SAPI24", "martini3-rare-lipids"), ("CER181", "martini3-rare-lipids"),
     ("PVCL2", "martini3-rare-lipids"), ("POPC", "martini3-lipids")],
)  # fmt: skip
def test_lipids_with_rare_heads_have_a_model_of_their_own(name, model, caplog):
    (template,) = load_templates(mappings_root() / "martini3" / "lipid" / f"{name}.yaml")
    backmapper = Backmapper(one_molecule(template), options=Options(hydrogens=False))
    assert backmapper.models == [model]
    assert "conformers" not in caplog.text


@pytest.mark.parametrize("name", ["POPI", "POPI24", "SAPI33"])
def test_inositol_is_a_chair_with_one_oxygen_upright(name):
    """With phosphates on it, in vacuum, it would be a boat."""
    (template,) = load_templates(mappings_root() / "martini3" / "lipid" / f"{name}.yaml")
    later = tuple(a for chain in chains_of(template) for a in chain.atoms[2:].tolist())
    at = {name: k for k, name in enumerate(template.names.tolist())}
    ring = [at[f"C1{k}"] for k in range(1, 7)]
    oxygens = [at[name] for name in ("O12", "O2", "O3", "O4", "O5", "O6")]
    around = np.array([[ring[k - 2], ring[k - 1], ring[k], ring[(k + 1) % 6]] for k in range(6)])
    outward = np.array([[ring[k - 2], ring[k - 1], ring[k], oxygens[k]] for k in range(6)])
    found = conformers(template, later)
    assert len(found) > 3
    for positions in found:
        turns = torsions(positions, around)
        assert (np.abs(np.abs(turns) - 55) < 12).all()
        assert (np.sign(turns) == -np.sign(np.roll(turns, 1))).all()
        upright = np.abs(torsions(positions, outward)) < 120
        assert upright.tolist() == [False, True, False, False, False, False]


@pytest.mark.parametrize("name", ["POPC", "POPS", "PSM"])
def test_heads_with_ammonium_have_conformers(name):
    (template,) = load_templates(mappings_root() / "martini3" / "lipid" / f"{name}.yaml")
    later = tuple(a for chain in chains_of(template) for a in chain.atoms[2:].tolist())
    found = conformers(template, later)
    kept = np.isfinite(found[0]).all(axis=1)
    assert kept.sum() == template.n_atoms - len(later)
    bonds = template.constraints.bonds
    inside = kept[bonds].all(axis=1)
    length = np.linalg.norm(found[:, bonds[inside, 0]] - found[:, bonds[inside, 1]], axis=2)
    assert np.abs(length / template.constraints.bond_length[inside] - 1).max() < 0.12


def test_chains_that_are_drawn_need_no_conformers():
    """The rest keeps its hands and bonds, and is where it would be with them."""
    template = Library.load().candidates("SAPI24")[0]
    chains = [a for chain in chains_of(template) for a in chain.atoms.tolist()]
    later = tuple(a for chain in chains_of(template) for a in chain.atoms[2:].tolist())
    found, terms = conformers(template, later), template.constraints
    kept = np.setdiff1d(np.arange(template.n_atoms), later)
    assert np.isnan(found[:, later]).all()
    assert np.isfinite(found[:, kept]).all()
    bonds = np.isin(terms.bonds, kept).all(axis=1)
    assert 0 < bonds.sum() < len(bonds)
    for positions in found:
        ends = positions[terms.bonds[bonds]]
        length = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
        assert length == pytest.approx(terms.bond_length[bonds], abs=0.15)
        centres = (np.abs(terms.volume) > 1) & np.isin(terms.volumes, kept).all(axis=1)
        assert centres.sum() == 7
        signs = volumes(positions[None], terms.volumes[centres])[0]
        assert (np.sign(signs) == np.sign(terms.volume[centres])).all()
    system, truth = one_molecule(template), np.nan_to_num(found[1])
    beads = system.map_positions(truth).astype(np.float32)
    rest = np.setdiff1d(np.arange(template.n_atoms), chains)
    laid = ConformerPredictor(system, drawn=True)(beads, None, 0.0).numpy()
    assert laid[rest] == pytest.approx(truth[rest], abs=0.01)
