"""Whatever is wrong with an input: one message that says what, and nothing half-written."""

from __future__ import annotations

import json
import os
import re
import struct
import time

import MDAnalysis as mda
import numpy as np
import pytest
import torch
from mdbackmap.io.files import quiet_guesses
from mdbackmap.io.source import CGSource
from safetensors.torch import save_file
from scipy.io import netcdf_file

from helpers_io import DATA, GRO, TPR, XTC, fails, load, ok, run, unchanged


@pytest.fixture
def refused(folder, weights):
    """Run convert, which must fail with one message and leave the folder as it is."""

    def convert(trajectory="cg.xtc", *options, output="aa.xtc", model=weights, code=1):
        with unchanged(folder):
            return fails("convert", folder / trajectory, "-o", folder / output, "--model", model,
                         *options, code=code)  # fmt: skip

    return convert


def starts(path):
    """Bytes at which the frames of an XTC file start."""
    data, here = path.read_bytes(), 0
    while here < len(data):
        yield here
        here += 92 + -(-struct.unpack_from(">i", data, here + 88)[0] // 4) * 4


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


# Files that are not there, or are something else


def test_missing_file(refused):
    assert "nowhere.xtc: no such file" in refused("nowhere.xtc")


def test_folder_for_a_file(refused, folder):
    (folder / "sub.xtc").mkdir()
    assert "sub.xtc: is a folder" in refused("sub.xtc")


def test_missing_topology(refused, folder):
    assert "none.tpr: no such file" in refused("cg.xtc", "-s", folder / "none.tpr")


@pytest.mark.parametrize("name", ["cg.xtc", "cg.tpr"])
def test_empty_files(refused, folder, name):
    (folder / name).write_bytes(b"")
    said = refused("cg.xtc", "-s", folder / "cg.tpr")
    assert f"{name}: the file is empty" in said


@pytest.mark.parametrize("suffix", ["xtc", "trr", "dcd"])
@pytest.mark.parametrize("topology", [True, False], ids=["-s", "found"])
def test_text_under_the_name_of_a_trajectory(refused, folder, suffix, topology):
    (folder / f"text.{suffix}").write_text("these are not coordinates\n" * 20)
    options = ["-s", folder / "cg.tpr"] if topology else []
    said = refused(f"text.{suffix}", *options)
    assert f"text.{suffix}" in said
    assert "is no" in said or "cannot be read" in said


@pytest.mark.parametrize("name", ["bad.tpr", "bad.gro", "bad.pdb", "bad.psf", "bad.xyz", "bad"])
@pytest.mark.parametrize("content", [b"\x00\x01garbage\xff" * 50, b"title\n  12\nnothing\n"])
def test_garbage_for_a_topology(refused, folder, name, content):
    (folder / name).write_bytes(content)
    said = refused("cg.xtc", "-s", folder / name)
    assert f"{name}: " in said
    assert "cg.xtc with" not in said


@pytest.mark.parametrize("name", ["bad.gro", "bad.pdb", "bad.nonsense", "cg.tpr"])
def test_garbage_for_a_structure(refused, folder, name):
    if name != "cg.tpr":
        (folder / name).write_bytes(b"title\n  12\nnothing\n")
    said = refused(name)
    assert name in said


def test_a_structure_without_residues(refused, folder):
    (folder / "cg.xyz").write_text("1\ncomment\nBB 0.0 0.0 0.0\n")
    said = refused("cg.xyz", "-s", folder / "cg.xyz")
    assert "holds no resnames" in said


def test_several_frames_in_a_gro(refused, folder):
    (folder / "two.gro").write_text(2 * GRO.read_text())
    said = refused("two.gro")
    assert "holds several frames, of which only the first could be read" in said


def test_a_blank_line_at_the_end_of_a_gro_is_no_frame(folder):
    (folder / "one.gro").write_text(GRO.read_text() + "\n\n")
    assert len(CGSource.open(folder / "one.gro").particles) == 2442


# Trajectories that are cut, or of something else


@pytest.mark.parametrize("size", [1, 3, 4, 30, 60, 90, 100, 4000])
def test_cut_in_the_first_frame(refused, folder, size):
    cut(folder / "cg.xtc", size)
    said = refused()
    assert "cg.xtc: " in said
    assert "is no XTC file" in said or "cut short within its first frame" in said


@pytest.mark.parametrize("more", [1, 4, 30, 60, 91, 92, 200, -1])
def test_cut_in_the_second_frame(refused, folder, more):
    frames = list(starts(folder / "cg.xtc"))
    cut(folder / "cg.xtc", frames[1 if more > 0 else 2] + more)
    assert "cut short within its second frame; only the first is whole" in refused()


@pytest.mark.parametrize("frame", [2, 17, 30])
@pytest.mark.parametrize("more", [1, 4, 30, 60, 91, 92, 200, 4000])
def test_cut_in_a_later_frame(refused, folder, weights, frame, more):
    cut(folder / "cg.xtc", list(starts(folder / "cg.xtc"))[frame] + more)
    said = refused()
    assert f"cut short after {frame} whole frames" in said
    assert f"--stop {frame}" in said
    refused("cg.xtc", "--start", 1)
    if more in (4, 200):
        ok("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights,
           "--start", frame - 1, "--stop", frame)  # fmt: skip


def test_junk_behind_the_last_frame(refused, folder):
    (folder / "cg.xtc").write_bytes((folder / "cg.xtc").read_bytes() + b"junk" * 30)
    assert "cut short after 31 whole frames" in refused()


@pytest.mark.parametrize("suffix", ["trr", "dcd", "nc"])
@pytest.mark.parametrize("lost", [1, 4000, 15000, 40000, 59000])
def test_other_formats_cut(folder, refused, suffix, lost):
    cg = load(TPR, XTC)
    name = folder / f"short.{suffix}"
    with quiet_guesses():
        cg.atoms.write(str(name), frames=cg.trajectory[:3])
    cut(name, name.stat().st_size - lost)
    said = refused(name.name, "-s", folder / "cg.tpr")
    assert f"short.{suffix}" in said


@pytest.mark.parametrize("n_beads", [3, 9, 10])
def test_few_beads_are_whole(tmp_path, n_beads):
    """Frames of up to nine particles are not compressed."""
    u = mda.Universe.empty(n_beads, trajectory=True)
    u.atoms.positions = np.arange(3 * n_beads).reshape(-1, 3)
    for name in ("a.xtc", "a.trr"):
        with mda.Writer(str(tmp_path / name), n_beads) as writer:
            for _ in range(3):
                writer.write(u.atoms)
    rows = [f"{k:5d}GLY     BB{k:5d}{0:8.3f}{0:8.3f}{0:8.3f}" for k in range(1, n_beads + 1)]
    (tmp_path / "a.gro").write_text("\n".join(["t", str(n_beads), *rows, "0 0 0"]) + "\n")
    for name in ("a.xtc", "a.trr"):
        source = CGSource.open(tmp_path / name)
        assert len(list(source.frames())) == 3


@pytest.mark.parametrize(
    ("at", "content"),
    [(52, struct.pack(">i", 1000)), (84, struct.pack(">i", -5)), (56, b"\xff" * 4),
     (60, b"\x7f" * 12)],
    ids=["particles", "compression", "precision", "bounds"],
)  # fmt: skip
def test_nonsense_in_the_header_of_a_frame(refused, folder, at, content):
    """MDAnalysis would return garbage, or end the process."""
    data = bytearray((folder / "cg.xtc").read_bytes())
    at += list(starts(folder / "cg.xtc"))[12]
    data[at : at + len(content)] = content
    (folder / "cg.xtc").write_bytes(bytes(data))
    assert "frame 12 of 31 cannot be read (its header makes no sense)" in refused()


def test_atom_counts_that_do_not_fit(refused):
    said = refused("cg.xtc", "-s", GRO)
    assert "cg.xtc: holds 1651 particles, but" in said
    assert "membrane.gro names 2442" in said
    assert "Hint: give the topology of exactly these particles" in said


# Beads


@pytest.fixture
def edited(folder):
    """Write membrane.gro with some lines changed; return its name."""

    def edit(change):
        title, _, *rows, box = GRO.read_text().splitlines()
        rows = [new for row in rows if (new := change(row)) is not None]
        text = "\n".join([title, str(len(rows)), *rows, box]) + "\n"
        (folder / "edited.gro").write_text(text)
        return "edited.gro"

    return edit


def test_unknown_bead(refused, edited):
    said = refused(edited(lambda row: row.replace("  PO4 ", "  PX4 ")))
    assert "bead PO4 is missing, bead PX4 is not in the mapping" in said
    assert "POPC" in said
    assert "first residue" in said


def test_unknown_residue(refused, edited):
    said = refused(edited(lambda row: row.replace("POPC ", "POPX ")))
    assert "no mapping of that name (did you mean" in said


def test_missing_bead(refused, edited):
    first = next(row for row in GRO.read_text().splitlines() if "POPC" in row and "C2B" in row)
    said = refused(edited(lambda row: None if row == first else row))
    assert "1 x POPC: bead C2B is missing" in said


def test_nothing_to_backmap(refused, folder):
    with quiet_guesses():
        load(TPR, XTC).select_atoms("resname W").write(str(folder / "water.gro"))
    said = refused("water.gro")
    assert "nothing to backmap; left out: 1447 W (solvent)" in said


# Options


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("residue: [", "not valid YAML"),
        ("just words", "expected 'key: value' lines"),
        ("residue: LIG\nkidn: molecule", "did you mean 'kind'"),
        ("residue: LIG\nresidue: LIG", "was already given on line 1"),
        ("", "expected 'key: value' lines"),
        (b"\xff\xfe\x00binary", "mapping"),
    ],
)
def test_malformed_mapping(refused, folder, content, problem):
    path = folder / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refused("cg.xtc", "--mapping", path)
    assert "bad.yaml" in said
    assert problem in said


def test_unknown_mapping(refused):
    said = refused("cg.xtc", "--mapping", "martini9")
    assert "mapping 'martini9': neither a shipped mapping (" in said


def test_unknown_model(refused):
    assert "model 'martini9': neither a shipped model" in refused(model="martini9")


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "cut header", "foreign", "tpr"])
def test_wrong_weights(refused, folder, weights, kind):
    path = folder / "weights.safetensors"
    whole = weights.read_bytes()
    contents = {"text": b"no weights\n", "empty": b"", "tpr": TPR.read_bytes(),
                "cut": whole[:-100], "cut header": whole[:50]}  # fmt: skip
    if kind == "foreign":
        save_file({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(contents[kind])
    said = refused(model=path)
    assert "weights.safetensors: " in said
    if kind == "foreign":
        assert "not one of mdbackmap's models" in said


def test_weights_with_other_shapes(refused, folder, weights):
    header_size = struct.unpack("<Q", weights.read_bytes()[:8])[0]
    header = json.loads(weights.read_bytes()[8 : 8 + header_size])
    meta = json.loads(header["__metadata__"]["mdbackmap"])
    for name, change in (("newer", {"format": 99}), ("other", {"encoder": {"scalars": 8}})):
        path = folder / f"{name}.safetensors"
        text = json.dumps({**meta, **change})
        save_file({"weight": torch.zeros(3)}, path, metadata={"mdbackmap": text})
        said = refused(model=path)
        assert "update mdbackmap" in said or "do not fit their description" in said


def test_selections(refused):
    assert "selection 'resname': " in refused("cg.xtc", "--select", "resname")
    assert "selection 'nonsense here': " in refused("cg.xtc", "--select", "nonsense here")
    assert "selects nothing of" in refused("cg.xtc", "--select", "resname XYZ")
    assert "selects nothing of" in refused("cg.xtc", "--select", "")
    assert "selection 'prop x > a': " in refused("cg.xtc", "--select", "prop x > a")


@pytest.mark.parametrize(
    "options", [["--stop", 0], ["--start", 31], ["--start", 9, "--stop", 4], ["--stop", -31]]
)
def test_slices_that_leave_nothing(refused, options):
    said = refused("cg.xtc", *options)
    assert " ".join(map(str, options)) + " leaves none of its 31 frames" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu(refused):
    assert "this torch sees no GPU; use --device cpu" in refused("cg.xtc", "--device", "cuda")


# Outputs


def test_output_folder_is_missing(refused):
    assert "does not exist" in refused(output="nowhere/aa.xtc")


def test_topology_folder_is_missing(refused, folder):
    said = refused("cg.xtc", "--topology-out", folder / "nowhere" / "aa.pdb")
    assert "does not exist" in said


def test_output_is_a_folder(refused, folder):
    (folder / "aa.xtc").mkdir()
    assert "aa.xtc: is a folder" in refused()


def test_folder_that_cannot_be_written(refused, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    assert "cannot be written to" in refused()


def test_place_that_cannot_be_written_after_all(refused, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mda, "Writer", refuse)
    said = refused()
    assert "aa.xtc: " in said
    assert "Permission denied" in said


@pytest.mark.parametrize("output", ["aa", "aa.nonsense", "aa.tpr", "aa.yaml"])
def test_unknown_output_format(refused, output):
    assert "use xtc, trr, dcd, h5md, nc, pdb or cif" in refused(output=output)


def test_one_frame_format_for_many(refused):
    assert "no format known by this suffix holds 31 frames" in refused(output="aa.gro")


@pytest.mark.parametrize("output", ["cg.xtc", "cg.gro", "cg.dcd"])
def test_inputs_are_never_written_over(refused, folder, output):
    """Neither by the output, nor by the topology beside it, named or found."""
    if output == "cg.dcd":
        (folder / "cg.tpr").unlink()
        with quiet_guesses():
            load(TPR, XTC).atoms.write(str(folder / "cg.pdb"))
    elif output == "cg.gro":
        with quiet_guesses():
            load(TPR, XTC).atoms.write(str(folder / "cg.gro"))
        (folder / "cg.tpr").unlink()
    options = ["--stop", 1] if output == "cg.gro" else []
    assert "is an input file; choose another name" in refused("cg.xtc", *options, output=output)


# Frames


def with_numbers(folder, frames, value, rows=slice(None)):
    """The first four frames as a .trr, some with other coordinates."""
    cg = load(TPR, XTC)
    with mda.Writer(str(folder / "four.trr"), len(cg.atoms)) as writer:
        for ts in cg.trajectory[:4]:
            if ts.frame in frames:
                ts.positions[rows] = value
            writer.write(cg.atoms)
    return folder / "four.trr"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9, 1e37])
@pytest.mark.parametrize("frame", [0, 2])
def test_a_frame_without_numbers_is_left_out(folder, weights, frame, value):
    trajectory = with_numbers(folder, [frame], value, rows=[5, 6])
    result = run("convert", trajectory, "-s", folder / "cg.tpr", "-o", folder / "aa.trr",
                 "--model", weights)  # fmt: skip
    assert result.code == 1
    assert f"left out: frame {frame}: 2 beads have no usable position" in result.err
    assert "3 frames of 1231 atoms" in result.out
    whole = folder / "whole.trr"
    ok("convert", with_numbers(folder, [], 0), "-s", folder / "cg.tpr", "-o", whole,
       "--model", weights)  # fmt: skip
    kept = [k for k in range(4) if k != frame]
    found, expected = load(folder / "aa.pdb", folder / "aa.trr"), load(folder / "aa.pdb", whole)
    assert [ts.time for ts in found.trajectory] == [1000.0 * k for k in kept]
    for ts, k in zip(found.trajectory, kept, strict=True):
        np.testing.assert_allclose(ts.positions, expected.trajectory[k].positions, atol=1e-3)


def test_no_frame_with_numbers(refused, folder):
    with_numbers(folder, [0], np.nan)
    said = refused("four.trr", "-s", folder / "cg.tpr", "--stop", 1, output="aa.trr")
    assert "no frame could be written:\nframe 0: 166 beads have no usable position" in said
    assert "Hint: martinize2 writes nan for beads whose atoms the structure lacks" in said
    assert "not there any more" not in said


def test_water_without_numbers_does_not_matter(folder, weights):
    trajectory = with_numbers(folder, range(4), np.nan, rows=slice(400, 500))
    said = ok("convert", trajectory, "-s", folder / "cg.tpr", "-o", folder / "aa.trr",
              "--model", weights)  # fmt: skip
    assert "4 frames" in said
    assert len(CGSource.open(trajectory, folder / "cg.tpr").sample()) == 4


def test_a_box_that_is_no_cell(folder, weights):
    cg = load(TPR, XTC)
    with quiet_guesses(), mda.Writer(str(folder / "four.nc"), len(cg.atoms)) as writer:
        for ts in cg.trajectory[:4]:
            if ts.frame == 1:
                ts.dimensions = [60, 60, 60, 170, 170, 170]
            writer.write(cg.atoms)
    result = run("convert", folder / "four.nc", "-s", folder / "cg.tpr", "-o", folder / "aa.trr",
                 "--model", weights)  # fmt: skip
    assert result.code == 1
    assert "left out: frame 1: box [60.0, 60.0, 60.0, 170.0, 170.0, 170.0] is no cell" in result.err
    assert "3 frames" in result.out


@pytest.mark.parametrize("length", [1e-5, 4.0])
def test_boxes_too_small(folder, weights, length):
    """Also where they are in the first frame, which much is learnt from."""
    cg = load(TPR, XTC)
    with mda.Writer(str(folder / "four.trr"), len(cg.atoms)) as writer:
        for ts in cg.trajectory[:4]:
            if ts.frame in (0, 2):
                ts.dimensions = [length] * 3 + [90] * 3
            writer.write(cg.atoms)
    began = time.process_time()
    result = run("convert", folder / "four.trr", "-s", folder / "cg.tpr", "-o", folder / "aa.trr",
                 "--model", weights)  # fmt: skip
    assert time.process_time() - began < 20
    assert result.code == 1
    assert result.err.count("left out: frame") == 2
    assert re.search("left out: frame 2: box .* is no ", result.err)
    assert "2 frames" in result.out


def test_a_frame_of_netcdf_without_its_box(folder, weights):
    cg = load(TPR, XTC)
    with quiet_guesses(), mda.Writer(str(folder / "four.nc"), len(cg.atoms)) as writer:
        for _ in cg.trajectory[:4]:
            writer.write(cg.atoms)
    with netcdf_file(folder / "four.nc", "a", mmap=False) as file:
        file.variables["cell_lengths"][2] = 0
    said = fails("convert", folder / "four.nc", "-s", folder / "cg.tpr", "-o", folder / "aa.trr",
                 "--model", weights)  # fmt: skip
    assert "four.nc: frame 2 of 4 cannot be read" in said


# The other commands


@pytest.mark.parametrize("command", ["map", "validate"])
def test_other_commands_refuse_bad_trajectories(folder, command):
    out = ["-o", folder / "out.xtc"] if command == "map" else []
    cut(folder / "cg.xtc", 100_000)
    with unchanged(folder):
        assert "no such file" in fails(command, folder / "nowhere.pdb", *out)
        assert "leaves none" in fails(command, DATA / "ubiquitin_12.pdb", "--stop", 0, *out)
        assert "selects nothing" in fails(
            command, DATA / "ubiquitin_12.pdb", "--select", "resname XYZ", *out
        )
        assert "no residue fits the mapping" in fails(command, GRO, *out)
        assert "cut short after" in fails(command, folder / "cg.xtc", *out)


def test_validate_refuses_bad_reports(folder):
    for option in ("--json", "--html"):
        with unchanged(folder):
            said = fails("validate", DATA / "popc.pdb", option, folder / "nowhere" / "report")
        assert "does not exist" in said


def test_prepare_refuses_bad_files(folder):
    peptide = DATA / "ubiquitin_12.pdb"
    (folder / "not.tar").write_text("no archive")
    (folder / "bad.pdb").write_text("no structure")
    with unchanged(folder):
        said = fails("prepare", peptide, "-o", folder / "nowhere" / "set.npz")
        assert "does not exist" in said
        said = fails("prepare", folder / "not.tar", "-o", folder / "set.npz")
        assert "cannot be read as a .tar archive" in said
        assert "no system to learn from" in fails(
            "prepare", folder / "bad.pdb", "-o", folder / "set.npz"
        )
        assert "is an input file" in fails("prepare", peptide, "-o", peptide)
    assert "left out 1" in ok("prepare", peptide, folder / "bad.pdb", "-o", folder / "set.npz")
