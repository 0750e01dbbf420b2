"""The command line: every command, on real small files."""

from __future__ import annotations

import atexit
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import MDAnalysis as mda
import numpy as np
import pytest
from mdbackmap.io.files import open_universe, quiet_guesses
from mdbackmap.models.library import shipped
from mdbackmap.threads import Behind
from mdbackmap.warm_start import quick_imports

from helpers_io import (
    DATA,
    GRO,
    TPR,
    XTC,
    XTC_PRECISION,
    fails,
    load,
    ok,
    positions,
    run,
    unchanged,
    write_top,
)

LAZY = """
import sys, json
sys.argv = {argv!r}
from mdbackmap.cli.main import main
try:
    main()
except SystemExit as stop:
    code = stop.code
heavy = [m for m in ("torch", "MDAnalysis", "numpy", "yaml", "pydantic") if m in sys.modules]
sys.stderr.write(json.dumps([code, heavy]))
"""


# Light


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["convert", "--help"], 0),
        (["map", "-h"], 0),
        (["validate", "--help"], 0),
        (["mapping", "--help"], 0),
        (["mapping", "show", "--help"], 0),
        (["mapping", "new", "--help"], 0),
        (["models", "show", "--help"], 0),
        (["prepare", "--help"], 0),
        (["train", "--help"], 0),
        ([], 2),
        (["nonsense"], 2),
        (["convert"], 2),
        (["convert", "cg.xtc"], 2),
        (["convert", "cg.xtc", "-o", "aa.xtc", "--nonsense"], 2),
        (["convert", "cg.xtc", "-o", "aa.xtc", "--threads", "0"], 2),
        (["convert", "cg.xtc", "-o", "aa.xtc", "--chunk-size", "0"], 2),
        (["convert", "cg.xtc", "-o", "aa.xtc", "--step", "0"], 2),
        (["convert", "cg.xtc", "-o", "aa.xtc", "--start", "x"], 2),
        (["convert", "cg.xtc", "-o", "aa.xtc", "--device", "banana"], 2),
        (["mapping", "check", "no-such-file.yaml"], 2),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else str(value),
)
def test_help_and_usage_errors_import_nothing_heavy(words, code):
    command = [sys.executable, "-c", LAZY.format(argv=["mdbackmap", *words])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    text, found = done.stderr[: done.stderr.rindex("[" + str(code))], done.stderr
    assert json.loads(found[len(text) :]) == [code, []]
    assert "Traceback" not in text
    if code:
        assert "Usage: mdbackmap" in text
        assert done.stdout == ""
    else:
        assert text == ""


def test_help_is_fast():
    took = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mdbackmap", "--help"], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        took.append(time.perf_counter() - began)
    assert min(took) < 0.5


def test_imports_leave_garbage_collection_as_it_was(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    monkeypatch.setattr(atexit, "register", lambda what: frozen.append(what))
    with quick_imports():
        frozen.append(gc.isenabled())
    assert gc.isenabled()
    assert frozen == [False, False, gc.freeze]


def test_import_is_light():
    script = "import sys, mdbackmap; sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_public_name_can_be_had():
    import mdbackmap

    for name in mdbackmap.__all__:
        assert getattr(mdbackmap, name) is not None
    assert set(mdbackmap.__all__) <= set(dir(mdbackmap))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = mdbackmap.nonsense


# convert: finding the topology


def test_the_topology_of_the_same_name_is_found(folder, weights):
    shutil.copy(TPR, folder / "other.tpr")
    said = ok("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights,
              "--stop", 2)  # fmt: skip
    assert f"beads named by {folder / 'cg.tpr'}" in said
    assert "2 frames of 1231 atoms" in said
    assert "76 protein residues from 166 beads" in said
    assert "left out: 1447 x W (solvent)" in said


def test_the_only_topology_that_fits_is_found(folder, weights):
    (folder / "cg.tpr").rename(folder / "topol.tpr")
    shutil.copy(GRO, folder / "dry.gro")
    (folder / "broken.tpr").write_text("not a tpr")
    said = ok("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights,
              "--stop", 1)  # fmt: skip
    assert f"beads named by {folder / 'topol.tpr'}" in said


def test_a_name_that_does_not_fit_gives_way(folder, weights):
    (folder / "cg.tpr").rename(folder / "topol.tpr")
    shutil.copy(GRO, folder / "cg.gro")
    said = ok("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights,
              "--stop", 1)  # fmt: skip
    assert f"beads named by {folder / 'topol.tpr'}" in said


def test_a_topology_of_gromacs(folder, weights):
    write_top(load(TPR), folder / "cg.top")
    ok("convert", folder / "cg.xtc", "-s", folder / "cg.top", "-o", folder / "top.xtc",
       "--model", weights, "--stop", 2)  # fmt: skip
    ok("convert", folder / "cg.xtc", "-s", folder / "cg.tpr", "-o", folder / "tpr.xtc",
       "--model", weights, "--stop", 2)  # fmt: skip
    assert (folder / "top.xtc").read_bytes() == (folder / "tpr.xtc").read_bytes()
    (folder / "cg.top").write_text('#include "nowhere.itp"\n[ system ]\nx\n[ molecules ]\nx 1\n')
    said = fails("convert", folder / "cg.xtc", "-s", folder / "cg.top", "-o", folder / "a.xtc")
    assert "cg.top: cannot be read" in said


def test_the_better_kind_of_topology_wins(folder, weights):
    (folder / "cg.tpr").rename(folder / "topol.tpr")
    load(TPR, XTC).atoms.write(str(folder / "first.gro"))
    said = ok("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights,
              "--stop", 1)  # fmt: skip
    assert f"beads named by {folder / 'topol.tpr'}" in said


def test_several_topologies_fit(folder, weights):
    (folder / "cg.tpr").rename(folder / "em.tpr")
    shutil.copy(TPR, folder / "md.tpr")
    shutil.copy(GRO, folder / "dry.gro")
    said = fails("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights)
    assert "several files beside it fit its 1651 particles" in said
    for row in ("em.tpr: 1651 particles", "md.tpr: 1651 particles", "dry.gro: 2442 particles"):
        assert row in said
    assert "-s FILE" in said


def test_no_topology_fits(folder, weights):
    (folder / "cg.tpr").unlink()
    said = fails("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights)
    assert "no file beside it fits" in said
    assert "the folder holds no topology" in said


# convert: inputs and outputs


@pytest.mark.parametrize("suffix", ["gro", "pdb"])
@pytest.mark.parametrize("written", ["gro", "pdb", "xtc"])
def test_single_structures(weights, tmp_path, suffix, written):
    lipids = load(GRO).select_atoms("resname POPC")
    with quiet_guesses():
        lipids.write(str(tmp_path / f"cg.{suffix}"))
    said = ok("convert", tmp_path / f"cg.{suffix}", "-o", tmp_path / f"aa.{written}",
              "--model", weights)  # fmt: skip
    found = load(tmp_path / ("aa.pdb" if written == "xtc" else f"aa.{written}"))
    assert f"1 frame of {len(found.atoms)} atoms" in said
    assert len(found.residues) == len(lipids.residues)
    assert set(found.residues.resnames) == {"POPC"}
    np.testing.assert_allclose(found.dimensions, lipids.dimensions, atol=0.01)
    names = {"xtc": {"aa.xtc", "aa.pdb"}, "pdb": {"aa.pdb"}, "gro": {"aa.gro"}}[written]
    assert {p.name for p in tmp_path.glob("aa.*")} == names


def test_structure_with_its_topology(weights, tmp_path):
    ok("convert", DATA / "insulin.gro", "-s", DATA / "insulin.tpr", "-o", tmp_path / "aa.pdb",
       "--model", weights)  # fmt: skip
    found = load(tmp_path / "aa.pdb")
    assert set(found.atoms.chainIDs) == {"A", "B"}


def test_go_model_without_topology(weights, tmp_path):
    said = ok("convert", DATA / "lysozyme_go.gro", "-o", tmp_path / "aa.pdb", "--model", weights)
    assert "129 x Go virtual site" in said
    assert len(load(tmp_path / "aa.pdb").select_atoms("name CA").residues) == 129


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        (["--stop", 3], [0, 1, 2]),
        (["--start", 28], [28, 29, 30]),
        (["--start", -2], [29, 30]),
        (["--stop", -29], [0, 1]),
        (["--start", 4, "--stop", 11, "--step", 3], [4, 7, 10]),
        (["--start", 3, "--stop", 0, "--step", -2], [3, 1]),
        (["--start", 0, "--stop", 99, "--step", 15], [0, 15, 30]),
    ],
)
def test_slices(converted, weights, tmp_path, options, frames):
    ok("convert", XTC, "-o", tmp_path / "aa.xtc", "--model", weights, *options)
    whole = load(converted / "aa.pdb", converted / "aa.xtc")
    part = load(tmp_path / "aa.pdb", tmp_path / "aa.xtc")
    np.testing.assert_allclose(positions(part), positions(whole)[frames], atol=2 * XTC_PRECISION)
    assert [ts.time for ts in part.trajectory] == [1000.0 * k for k in frames]


ways = pytest.mark.parametrize(
    "way",
    ["as predicted", pytest.param("shipped model", marks=pytest.mark.skipif(
        "martini3" not in shipped(), reason="needs the shipped weights"))],
)  # fmt: skip
"""Structures so far off as untrained weights make them have no one ideal geometry nearby."""


def assert_same_atoms(folder, weights, way, *options):
    """Two frames converted with options are those converted without."""
    words = ["--no-idealise", "--model", weights] if way == "as predicted" else []
    found = []
    for name, more in (("plain", []), ("other", options)):
        ok("convert", XTC, "-o", folder / f"{name}.xtc", "--stop", 2, *words, *more)
        found.append(positions(load(folder / f"{name}.pdb", folder / f"{name}.xtc")))
    np.testing.assert_allclose(found[1], found[0], atol=2 * XTC_PRECISION)


@pytest.mark.parametrize(
    ("options", "said"),
    [((), "model: martini3; beads taken for simulated (noise 0.2 Å)"),
     (("--noise", 0.35), "model: martini3; beads taken for simulated (noise 0.35 Å)"),
     (("--noise", 0), "model: martini3-mapped; beads taken for mapped from atoms (noise 0 Å)")],
)  # fmt: skip
def test_what_the_beads_were_taken_for_is_said(tmp_path, options, said):
    assert said in ok("convert", XTC, "-o", tmp_path / "aa.xtc", "--stop", 1, *options)


@pytest.mark.parametrize("mapping", ["martini3", "bb-on-ca"])
def test_mapped_beads_find_their_model_and_come_back(tmp_path, mapping):
    ok("convert", XTC, "-o", tmp_path / "aa.pdb", "--stop", 1)
    ok("map", tmp_path / "aa.pdb", "-o", tmp_path / "cg.pdb", "--mapping", mapping)
    said = ok("convert", tmp_path / "cg.pdb", "-o", tmp_path / "back.pdb", "--mapping", mapping)
    model = {"martini3": "martini3-mapped"}.get(mapping, mapping)
    assert f"model: {model}; beads taken for mapped from atoms" in said
    there, back = load(tmp_path / "aa.pdb"), load(tmp_path / "back.pdb")
    assert back.atoms.names.tolist() == there.atoms.names.tolist()
    off = back.atoms.positions - there.atoms.positions
    assert np.sqrt((off**2).sum(axis=1).mean()) < 1.0


def test_select(weights, tmp_path):
    said = ok("convert", XTC, "-o", tmp_path / "aa.xtc", "--model", weights, "--stop", 2,
              "--select", "resid 1:20")  # fmt: skip
    assert "20 protein residues" in said
    assert "left out" not in said
    assert load(tmp_path / "aa.pdb").residues.resids.tolist() == list(range(1, 21))


@ways
def test_select_gives_the_same_atoms_as_the_whole(weights, tmp_path, way):
    assert_same_atoms(tmp_path, weights, way, "--select", "not resname W NA CL")


@pytest.mark.parametrize("name", ["names.gro", "names.pdb", "aa.pdb"])
def test_topology_out(weights, tmp_path, name):
    ok("convert", XTC, "-o", tmp_path / "aa.xtc", "--model", weights, "--stop", 2,
       "--topology-out", tmp_path / name)  # fmt: skip
    assert sorted(p.name for p in tmp_path.glob("*.*") if "offsets" not in p.name) == sorted(
        ["aa.xtc", name]
    )
    found = load(tmp_path / name, tmp_path / "aa.xtc")
    assert found.atoms.names[:6].tolist() == ["N", "H", "H2", "H3", "CA", "HA"]


@ways
def test_chunk_size_and_threads_change_nothing(weights, tmp_path, way):
    assert_same_atoms(tmp_path, weights, way, "--chunk-size", 17, "--threads", 1,
                      "--device", "cpu")  # fmt: skip


LIGAND = """
residue: LIG
kind: molecule
beads: {A1: , A2: }
atoms:
  C1: {bead: A1, anchor: A1}
  C2: {bead: A1}
  C3: {bead: A2}
  O1: {bead: A2}
bonds: [[C1, C2], [C2, C3], [C3, O1]]
"""


def with_ligand(folder):
    """A structure of two POPC and a ligand of two beads."""
    with quiet_guesses():
        load(GRO).select_atoms("resname POPC").residues[:2].atoms.write(str(folder / "cg.gro"))
    title, count, *rows, box = (folder / "cg.gro").read_text().splitlines()
    rows += [f"    7LIG     A{k}{k:5d}{k:8.3f}{0:8.3f}{0:8.3f}" for k in (1, 2)]
    text = "\n".join([title, str(int(count) + 2), *rows, box])
    (folder / "cg.gro").write_text(text + "\n")
    return folder / "cg.gro"


def test_several_mappings_and_unknown_beads(weights, tmp_path):
    cg = with_ligand(tmp_path)
    said = fails("convert", cg, "-o", tmp_path / "aa.pdb", "--model", weights)
    assert "1 x LIG with beads A1 A2: no mapping of that name" in said
    assert "residue 7" in said
    assert "--skip-unknown" in said

    said = ok("convert", cg, "-o", tmp_path / "aa.pdb", "--model", weights, "--skip-unknown")
    assert "left out: 1 x unknown: LIG" in said
    assert set(load(tmp_path / "aa.pdb").residues.resnames) == {"POPC"}

    (tmp_path / "lig.yaml").write_text(LIGAND)
    ok("mapping", "check", tmp_path / "lig.yaml")
    for mappings in (["martini3", tmp_path / "lig.yaml"], [tmp_path / "lig.yaml"]):
        words = [word for m in mappings for word in ("--mapping", m)]
        result = run("convert", cg, "-o", tmp_path / "bb.pdb", "--model", weights, *words)
        assert "model: tiny + conformers of LIG;" in result.out, "known, not learnt"
        assert "no model knows LIG: conformers are fitted" in result.err
    peptide = LIGAND.replace("kind: molecule", "kind: protein")
    assert peptide != LIGAND
    (tmp_path / "lig.yaml").write_text(peptide)
    said = fails("convert", cg, "-o", tmp_path / "bb.pdb", "--model", weights, *words)
    assert "does not fit the mapping of these residues:\n  LIG" in said, "no mere molecule"


@pytest.mark.skipif("martini3" not in shipped(), reason="needs the shipped weights")
def test_the_shipped_model_makes_sound_atoms(tmp_path):
    ok("convert", XTC, "-o", tmp_path / "aa.xtc", "--stop", 3)
    ok("validate", tmp_path / "aa.xtc", "--cg", XTC, "--json", tmp_path / "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["counts"]["bonds"]["percent"] < 5
    assert report["bead_shift"]["median"] < 1.0


def test_verbose_says_what_is_decided(weights, tmp_path):
    result = run("-v", "convert", XTC, "-o", tmp_path / "aa.xtc", "--model", weights, "--stop", 1)
    assert result.code == 0
    assert "Traceback" not in result.err


# validate


def report(tmp_path, *words):
    ok("validate", *words, "--json", tmp_path / "report.json")
    return json.loads((tmp_path / "report.json").read_text())


@pytest.fixture(scope="module")
def few(converted, tmp_path_factory):
    """The first three converted frames."""
    out = tmp_path_factory.mktemp("few")
    whole = load(converted / "aa.pdb", converted / "aa.xtc")
    whole.atoms.write(str(out / "aa.xtc"), frames=whole.trajectory[:3])
    shutil.copy(converted / "aa.pdb", out / "aa.pdb")
    return out


def test_validate_alone(few, tmp_path):
    found = report(tmp_path, few / "aa.xtc")
    assert found["frames"] == 3
    assert found["atoms"] == 3 * 602
    assert "rmsd" not in found
    assert "bead_shift" not in found


def test_validate_with_everything(few, tmp_path):
    said = ok("validate", few / "aa.xtc", "-s", few / "aa.pdb", "--cg", XTC, "--cg-topology", TPR,
              "--reference", few / "aa.xtc", "--html", tmp_path / "r.html",
              "--json", tmp_path / "r.json")  # fmt: skip
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["rmsd"]["all"] == 0
    assert found["bead_shift"]["n_beads"] == 3 * 166
    assert "3 frames, 1806 heavy atoms checked" in said
    page = (tmp_path / "r.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "data:image/png;base64" in page


def reference(few, out, change):
    """Write the second frame, changed, as a reference; return the file."""
    universe = load(few / "aa.pdb", few / "aa.xtc")
    universe.trajectory[1]
    table = {
        name: getattr(universe.atoms, name).copy()
        for name in ("names", "resnames", "resids", "elements")
    }
    table["positions"] = universe.atoms.positions.copy()
    table["residue"] = universe.atoms.resindices.copy()
    table = change(table) or table
    n_residues = len(np.unique(table["residue"]))
    new = mda.Universe.empty(
        len(table["names"]), n_residues=n_residues, atom_resindex=table["residue"], trajectory=True
    )
    first = np.unique(table["residue"], return_index=True)[1]
    new.add_TopologyAttr("names", table["names"])
    new.add_TopologyAttr("resnames", table["resnames"][first])
    new.add_TopologyAttr("resids", table["resids"][first])
    new.atoms.positions = table["positions"]
    new.dimensions = universe.dimensions
    new.atoms.write(str(out / "true.gro"))
    return out / "true.gro"


def shuffled(table):
    """Atoms of every residue in another order."""
    order = np.lexsort((np.random.default_rng(2).random(len(table["names"])), table["residue"]))
    return {name: values[order] for name, values in table.items()}


def renumbered(table):
    table["resids"] = table["resids"] + 500


def protonated(table):
    """A hydrogen beside every atom."""
    double = {name: np.repeat(values, 2, axis=0) for name, values in table.items()}
    double["names"][1::2] = [f"H{k % 100}" for k in range(len(table["names"]))]
    double["positions"][1::2] += 1.0
    return double


def cut_short(table):
    """Only residues 5 to 60, numbered as before."""
    keep = (table["resids"] >= 5) & (table["resids"] <= 60)
    short = {name: values[keep] for name, values in table.items()}
    short["residue"] -= short["residue"][0]
    return short


@pytest.mark.parametrize("change", [shuffled, renumbered, protonated, cut_short])
@pytest.mark.filterwarnings("ignore::UserWarning:MDAnalysis")
def test_references_of_all_kinds(few, tmp_path, change):
    true = reference(few, tmp_path, change)
    found = report(tmp_path, few / "aa.xtc", "--start", 1, "--stop", 2, "--reference", true)
    # The .gro is rounded to 0.01 Å.
    assert found["rmsd"]["all"] < 0.02
    other = report(tmp_path, few / "aa.xtc", "--stop", 1, "--reference", true)
    assert other["rmsd"]["all"] > 0.3


def test_a_reference_of_another_protein(few, tmp_path):
    said = fails("validate", few / "aa.xtc", "--reference", DATA / "popc.pdb")
    assert "residues do not fit the 76 checked ones" in said


@pytest.mark.parametrize("suffix", ["xtc", "dcd"])
def test_a_sliced_conversion_is_matched_by_time(converted, weights, tmp_path, suffix):
    ok("convert", XTC, "-o", tmp_path / f"aa.{suffix}", "--model", weights,
       "--start", 3, "--stop", 20, "--step", 6)  # fmt: skip
    found = report(tmp_path, tmp_path / f"aa.{suffix}", "--cg", XTC,
                   "--reference", converted / "aa.xtc")  # fmt: skip
    assert found["frames"] == 3
    assert found["rmsd"]["all"] < 0.02
    whole = report(tmp_path, converted / "aa.xtc", "--cg", XTC)
    assert abs(found["bead_shift"]["median"] - whole["bead_shift"]["median"]) < 0.1


def test_what_cannot_be_matched(converted, weights, tmp_path):
    ok("convert", XTC, "-o", tmp_path / "aa.pdb", "--model", weights, "--start", 3, "--stop", 5)
    said = fails("validate", tmp_path / "aa.pdb", "--cg", XTC)
    assert "31 frames where 2 are checked, and one of the two files holds no times" in said
    ok("convert", XTC, "-o", tmp_path / "aa.xtc", "--model", weights, "--stop", 2)
    moved = load(tmp_path / "aa.pdb", tmp_path / "aa.xtc")
    with mda.Writer(str(tmp_path / "moved.xtc"), len(moved.atoms)) as writer:
        for ts in moved.trajectory:
            ts.time += 0.5
            writer.write(moved.atoms)
    said = fails("validate", tmp_path / "moved.xtc", "-s", tmp_path / "aa.pdb", "--cg", XTC)
    assert "none has the time of frame 0 (0.5 ps)" in said


def test_reports_never_overwrite_inputs(few):
    with unchanged(few):
        said = fails("validate", few / "aa.xtc", "--json", few / "aa.pdb")
    assert "is an input file" in said


# mapping and models


def test_mapping_list():
    said = ok("mapping", "list")
    assert "martini3\n" in said
    assert "  protein: ALA ARG ASN ASP" in said
    assert "POPC" in said
    assert all(len(line) <= 100 for line in said.splitlines())


def test_mapping_show():
    said = ok("mapping", "show", "LYS")
    assert said.startswith("LYS")
    for line in ("  BB", "  SC1", "  SC2"):
        assert line in said.splitlines()
    assert "level 1, hangs from bead SC2" in said
    assert "bears HZ1 HZ2 HZ3" in said
    assert "states: LYS, LYN (above pH 10, NZ: HZ1 HZ2)" in said
    assert "states at the start of a chain: NH3+ (N: H H2 H3), NH2 (N: H H2)" in said
    assert "CYX (bridged, SG: no hydrogen)" in ok("mapping", "show", "CYS")
    assert "CHL1" in ok("mapping", "show", "CHOL")
    assert "residue 'XYZ': not in martini3" in fails("mapping", "show", "XYZ")


def test_mapping_check(tmp_path):
    (tmp_path / "lig.yaml").write_text(LIGAND)
    said = ok("mapping", "check", tmp_path / "lig.yaml")
    assert "LIG, 2 beads, 4 heavy atoms, 3 bonds, 0 stereocentres" in said
    (tmp_path / "bad.yaml").write_text(LIGAND.replace("kind:", "kidn:"))
    said = fails("mapping", "check", tmp_path / "bad.yaml")
    assert "bad.yaml, line 3: 'kidn' is not a key" in said
    assert "did you mean 'kind'" in said


def test_models(weights):
    said = ok("models", "show", weights)
    assert said.startswith("tiny")
    assert "licence: MIT" in said
    assert "POPC" in said
    assert run("models", "list").code == 0
    assert "neither a shipped model" in fails("models", "show", "nonsense")


# Stopping


class Interrupted:
    """Raises in the middle of writing."""

    def __init__(self, error, after=2):
        self.error, self.left = error, after

    def __call__(self, *args):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.write(*args)


@pytest.fixture
def interrupt(monkeypatch):
    """Make the XTC writer raise at the third frame."""

    def arm(error):
        writer = mda.coordinates.XTC.XTCWriter
        stop = Interrupted(error)
        original = writer._write_next_frame

        def write(self, atoms):
            stop.write = lambda *a: original(self, *a)
            return stop(atoms)

        monkeypatch.setattr(writer, "_write_next_frame", write)

    return arm


def test_ctrl_c(folder, weights, interrupt):
    interrupt(KeyboardInterrupt())
    with unchanged(folder):
        result = run("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights)
    assert result.code == 130
    assert result.err.strip() == "stopped; no unfinished file is left behind"


def test_disk_full(folder, weights, interrupt):
    interrupt(OSError(28, "No space left on device"))
    with unchanged(folder):
        said = fails("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights)
    assert "aa.xtc: frame 2 cannot be written" in said
    assert "No space left on device" in said


def test_a_bug_keeps_its_traceback_but_leaves_nothing(folder, weights, interrupt):
    interrupt(ZeroDivisionError("a bug"))
    with unchanged(folder), pytest.raises(ZeroDivisionError, match="a bug"):
        run("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights)


@pytest.fixture
def small_disk():
    """Let the operating system refuse to write files of more than 60 kB."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", ["xtc", "trr", "dcd", "h5md", "nc", "xyz", "pdb", "cif"])
def test_a_disk_that_is_really_full(folder, weights, small_disk, suffix):
    output = folder / f"aa.{suffix}"
    # A topology small enough to be written.
    names = ["--topology-out", output if suffix in ("pdb", "cif") else folder / "aa.gro"]
    if suffix == "h5md":
        pytest.importorskip("h5py")
    with unchanged(folder):
        said = fails("convert", folder / "cg.xtc", "-o", output, "--model", weights, *names)
    assert said.startswith(f"error: {output}:")
    assert "cannot be written" in said


def test_no_handler_of_signals_is_left_behind():
    before = signal.getsignal(signal.SIGTERM)
    for words in (["models"], ["nonsense"], ["--help"]):
        run(*words)
        assert signal.getsignal(signal.SIGTERM) is before


def test_terminated(folder, weights, monkeypatch):
    """A batch system's TERM leaves as little behind as Ctrl-C."""
    do = Behind.do

    # In the thread that works on frames, which is the one that hears of signals.
    def once(self, work, *given):
        do(self, work, *given)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Behind, "do", once)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with unchanged(folder):
        result = run("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights)
    signal.signal(signal.SIGTERM, before)
    assert (result.code, result.err) == (143, "")


def test_the_index_of_mdanalysis_is_no_output(folder, weights):
    ok("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights, "--stop", 1)
    assert not list(folder.glob(".part*"))
    assert open_universe(folder / "aa.pdb", folder / "aa.xtc").trajectory.n_frames == 1


# Memory


@pytest.mark.slow
def test_memory_does_not_grow_with_the_trajectory(weights):
    root = DATA.parents[1]
    command = [sys.executable, "-m", "benchmarks.memory", "--frames", "50", "--frames", "2000",
               "--model", str(weights), "--json"]  # fmt: skip
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    # A copy of all frames would take 2000 x 829 beads x 12 bytes: 20 MB of about 450.
    assert found["ratio"] < 1.02
    assert found["peak_mb"]["2000"] - found["peak_mb"]["50"] < 10
