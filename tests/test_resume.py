"""Work that is cut off goes on where it was, to the same file; whatever goes wrong is said."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import MDAnalysis as mda
import numpy as np
import pytest
from benchmarks import kills
from mdbackmap import pipeline
from mdbackmap.errors import FrameError, InputFileError, OutputFileError
from mdbackmap.io import segments
from mdbackmap.io.conversion import backmap
from mdbackmap.io.files import quiet_guesses
from mdbackmap.io.segments import Checkpoint, Job, convert_segments, folder_of, segment_size
from mdbackmap.io.topology import blank_universe
from mdbackmap.structure import Frame

from helpers_io import DRY, TPR, XTC, fails, load, ok, run, unchanged

ASKED = {"what": "this"}
BOX = np.array([[60.0, 0, 0], [12.0, 55.0, 0], [-9.0, 14.0, 70.0]])
BYTES = ["xtc", "trr", "dcd", "pdb", "pdb.gz", "cif"]
"""Formats that are the same byte for byte."""
FRAMES = ["nc", "h5md", "xyz"]


class Made:
    """A trajectory of random positions, some frames of which fail; its own reader and worker."""

    def __init__(self, n_atoms, bad=()):
        self.n_atoms, self.bad = n_atoms, bad

    def read(self, k):
        points = np.random.default_rng(k).uniform(0, 90, (self.n_atoms, 3))
        return Frame(points.astype(np.float32), BOX * (1 + 0.01 * k), 100 + 20.0 * k, k)

    def work(self, frame):
        if frame.index in self.bad:
            raise FrameError(f"frame {frame.index}: no")
        return frame.positions


@pytest.fixture(scope="module")
def made(insulin_system):
    """Make a job of so many frames in segments of so many; of real atoms."""

    def make(output, n_frames=7, size=2, bad=()):
        source = Made(insulin_system.n_atoms, bad)
        return Job(source.read, source.work, lambda: blank_universe(insulin_system),
                   range(n_frames), insulin_system.n_atoms, output, 20.0, size)  # fmt: skip

    return make


def same(first: Path, second: Path, names: Path) -> None:
    """Check that two trajectories are equal, byte for byte where the format allows it."""
    if first.suffix[1:] not in FRAMES:
        assert first.read_bytes() == second.read_bytes()
        return
    a, b = load(names, first).trajectory, load(names, second).trajectory
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert (x.positions == y.positions).all()
        assert np.array_equal(x.dimensions, y.dimensions)
        assert x.data.get("time") == y.data.get("time")


def without_formats_that_lack(suffix):
    if suffix == "h5md":
        pytest.importorskip("h5py")


# Segments


@pytest.mark.parametrize("suffix", BYTES + FRAMES)
def test_segments_do_not_show(made, tmp_path, suffix):
    without_formats_that_lack(suffix)
    for size in (7, 1, 3):
        output = tmp_path / f"{size}.{suffix}"
        done = convert_segments(made(output, size=size, bad=(0, 4)), tmp_path / f"{size}.top.pdb")
        assert (done.written, done.left_out) == (5, [0, 4])
        assert done.messages == ["frame 0: no", "frame 4: no"]
        same(tmp_path / f"7.{suffix}", output, tmp_path / "7.top.pdb")
        assert not folder_of(output).exists()
    names = {path.read_bytes() for path in tmp_path.glob("*.top.pdb")}
    assert len(names) == 1, "the topology is of the first frame that was written"
    if suffix == "cif":
        return
    found = load(tmp_path / "1.top.pdb", tmp_path / f"1.{suffix}").trajectory
    assert len(found) == 5
    if suffix in ("xtc", "trr", "nc", "h5md"):
        assert [round(ts.time, 3) for ts in found] == [120, 140, 160, 200, 220]


def test_size_of_segments():
    assert segment_size(1, 10) == 3000
    assert segment_size(10**6, 1000) == 1000
    assert segment_size(5, 10**8) == 1
    assert segment_size(5, 10**8, together=2) == 2
    assert segment_size(1, 10, together=16) == 3008


# Cut off


def cut_off(job, topology, at):
    """Convert in another process that dies when it touches a file for the ``at``-th time.

    Returns whether it died.
    """
    child = os.fork()
    if child == 0:
        left = at

        def count(event, _):
            nonlocal left
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
                left -= 1
                if left < 0:
                    os._exit(9)

        job.named  # noqa: B018 (made before the count begins)
        sys.addaudithook(count)
        code = 1
        try:
            convert_segments(job, topology, ASKED, resume=True)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("suffix", ["xtc", "dcd", "cif", "nc"])
def test_cut_off_at_any_file(made, tmp_path, suffix):
    """Killed at every single opening, renaming and removal of a file, each continued once."""
    whole = tmp_path / f"whole.{suffix}"
    convert_segments(made(whole, bad=(3,)), tmp_path / "whole.pdb", ASKED)
    # In small steps where few frames lie between, so that all kinds of moments are met.
    points = range(0, 1000) if suffix == "xtc" else range(1, 1000, 7)
    for at in points:
        output, names = tmp_path / f"cut.{suffix}", tmp_path / "cut.pdb"
        died = cut_off(made(output, bad=(3,)), names, at)
        if died:
            if output.exists():
                same(whole, output, tmp_path / "whole.pdb")
            done = convert_segments(made(output, bad=(3,)), names, ASKED, resume=True)
            assert (done.written, done.left_out, done.messages) == (6, [3], ["frame 3: no"])
        same(whole, output, tmp_path / "whole.pdb")
        assert names.read_bytes() == (tmp_path / "whole.pdb").read_bytes()
        assert not folder_of(output).exists()
        output.unlink()
        names.unlink()
        if not died:
            break
    assert not died
    assert at > 20


def test_cut_off_again_and_again(made, tmp_path):
    whole, output = tmp_path / "whole.xtc", tmp_path / "cut.xtc"
    convert_segments(made(whole), None, ASKED)
    died = [cut_off(made(output), None, 26) for _ in range(3)]
    assert died == [True] * 3
    before = Checkpoint.read(folder_of(output) / "checkpoint.json")
    assert before.joined
    while cut_off(made(output), None, 26):
        pass
    assert whole.read_bytes() == output.read_bytes()


def half_done(made, output, stop=4, **options):
    """Leave a conversion that was stopped before frame ``stop``."""
    job = made(output, **options)

    def work(frame):
        if frame.index == stop:
            raise KeyboardInterrupt
        return frame.positions

    job.work = work
    with pytest.raises(KeyboardInterrupt) as caught:
        convert_segments(job, output.with_suffix(".pdb"), ASKED)
    return caught.value


def test_what_is_kept_is_said(made, tmp_path):
    error = half_done(made, tmp_path / "aa.xtc")
    assert error.__notes__ == [
        f"4 of 7 frames are done and kept in {tmp_path}/aa.xtc.part\n"
        "  Hint: the same command with --resume goes on."
    ]
    error = half_done(made, tmp_path / "bb.xtc", stop=1)
    assert not hasattr(error, "__notes__")
    assert not folder_of(tmp_path / "bb.xtc").exists(), "nothing was done"


def test_unfinished_work_is_not_lost_by_accident(made, tmp_path):
    output = tmp_path / "aa.xtc"
    half_done(made, output)
    with unchanged(tmp_path), pytest.raises(OutputFileError, match="--resume goes on with it"):
        convert_segments(made(output), output.with_suffix(".pdb"), ASKED)
    with (
        unchanged(tmp_path),
        pytest.raises(OutputFileError, match="begun with something else\n  what: this then, that"),
    ):
        convert_segments(made(output), None, {"what": "that"}, resume=True)
    convert_segments(made(output, size=3), None, {"what": "that"}, restart=True)
    assert not folder_of(output).exists()


def test_segments_are_those_of_the_beginning(made, tmp_path):
    half_done(made, tmp_path / "aa.xtc")
    calls = []
    job = made(tmp_path / "aa.xtc", size=5)
    job.read, read = lambda k: calls.append(k) or read(k), job.read
    convert_segments(job, tmp_path / "aa.pdb", ASKED, resume=True)
    assert calls == [4, 5, 6]
    convert_segments(made(tmp_path / "whole.xtc"), None)
    assert (tmp_path / "aa.xtc").read_bytes() == (tmp_path / "whole.xtc").read_bytes()


def test_without_anything_to_resume(made, tmp_path):
    ticks = []
    convert_segments(made(tmp_path / "aa.xtc"), None, ASKED, resume=True,
                     tick=lambda done, total: ticks.append((done, total)))  # fmt: skip
    assert ticks == [(k, 7) for k in range(8)]


@pytest.mark.parametrize("harm", ["cut", "zeros", "gone", "note"])
def test_segments_that_a_power_cut_damaged(made, tmp_path, harm):
    """Files whose names reached the disk but whose contents did not."""
    output = tmp_path / "aa.xtc"
    half_done(made, output)
    job = made(output)
    job.token = Checkpoint.read(folder_of(output) / "checkpoint.json").token
    job.convert(3)
    assert job.path(3).stat().st_size
    if harm == "cut":
        os.truncate(job.path(3), 100)
    elif harm == "zeros":
        job.path(3).write_bytes(bytes(job.path(3).stat().st_size))
    elif harm == "gone":
        job.path(3).unlink()
    else:
        os.truncate(job.note(3), 0)
    convert_segments(made(output), output.with_suffix(".pdb"), ASKED, resume=True)
    convert_segments(made(tmp_path / "whole.xtc"), None)
    assert output.read_bytes() == (tmp_path / "whole.xtc").read_bytes()


def test_segments_of_another_job_do_not_count(made, tmp_path):
    """A worker that outlives its job may still write one."""
    output = tmp_path / "aa.xtc"
    half_done(made, output)
    late = made(output, bad=(5,))
    late.token = Checkpoint.read(folder_of(output) / "checkpoint.json").token
    job = made(output)
    run = job.work

    def work(frame):
        if frame.index == 0:
            late.convert(2)
        return run(frame)

    job.work = work
    done = convert_segments(job, None, ASKED, restart=True)
    assert done.left_out == []


def test_a_folder_with_files_of_others(made, tmp_path):
    folder = folder_of(tmp_path / "aa.xtc")
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    convert_segments(made(tmp_path / "aa.xtc"), None, ASKED)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_two_at_once(made, tmp_path):
    output = tmp_path / "aa.xtc"
    job = made(output)
    read = job.read

    def meanwhile(k):
        if k == 3:
            for way in ({"resume": True}, {"restart": True}):
                with pytest.raises(OutputFileError, match="another process is at work there"):
                    convert_segments(made(output), None, ASKED, **way)
        return read(k)

    job.read = meanwhile
    convert_segments(job, None, ASKED)
    convert_segments(made(tmp_path / "whole.xtc"), None)
    assert output.read_bytes() == (tmp_path / "whole.xtc").read_bytes()


def test_a_lock_that_was_given_back_meanwhile(tmp_path, monkeypatch):
    """The one who had it removes the file after another has opened it."""
    original, taken = segments.fcntl.flock, []

    def flock(handle, how):
        if not taken:
            taken.append(handle)
            (tmp_path / "lock").unlink()
        return original(handle, how)

    monkeypatch.setattr(segments.fcntl, "flock", flock)
    with segments._lock(tmp_path), pytest.raises(OutputFileError, match="another process"):
        segments._lock(tmp_path)


def test_nothing_is_left_where_nothing_can_be_begun(made, tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoint, "write", full)
    with unchanged(tmp_path), pytest.raises(OutputFileError, match="No space left"):
        convert_segments(made(tmp_path / "aa.xtc"), None, ASKED)
    assert not folder_of(tmp_path / "aa.xtc").exists()


def test_the_folder_goes_in_the_middle(made, tmp_path):
    job = made(tmp_path / "aa.xtc")
    job.work = lambda frame: shutil.rmtree(job.folder) if frame.index == 4 else frame.positions
    with pytest.raises(OutputFileError) as caught:
        convert_segments(job, None, ASKED)
    assert caught.value.__notes__ == [
        f"{job.folder} is not there any more, and what was done with it"
    ]


def test_places_where_unfinished_work_cannot_be_kept(made, tmp_path, monkeypatch):
    job = made(tmp_path / "aa.xtc")
    job.folder.write_text("mine")
    with unchanged(tmp_path), pytest.raises(OutputFileError, match=r"aa\.xtc\.part: is no folder"):
        convert_segments(job, None, ASKED, restart=True)
    job.folder.unlink()
    job.folder.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != job.folder)
    with pytest.raises(OutputFileError, match=r"aa\.xtc\.part: unfinished .* cannot be written to"):
        convert_segments(job, None, ASKED, resume=True)


def test_failures_are_remembered(made, tmp_path):
    output = tmp_path / "aa.xtc"
    half_done(made, output, stop=5, bad=())
    path = folder_of(output) / "checkpoint.json"
    state = json.loads(path.read_text())
    state["outcome"] |= {"left_out": [1], "messages": ["frame 1: no"]}
    path.write_text(json.dumps(state))
    done = convert_segments(made(output, bad=(6,)), output.with_suffix(".pdb"), ASKED, resume=True)
    assert done.left_out == [1, 6]
    assert done.messages == ["frame 1: no", "frame 6: no"]


def test_a_topology_on_another_disk(made, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    original = Path.replace

    def refuse(self, target):
        if Path(target).parent != self.parent and Path(target).parent == other:
            raise OSError(18, "Invalid cross-device link")
        return original(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    convert_segments(made(tmp_path / "aa.xtc"), other / "aa.pdb", ASKED)
    assert [path.name for path in other.iterdir()] == ["aa.pdb"]
    assert load(other / "aa.pdb", tmp_path / "aa.xtc").trajectory.n_frames == 7


# A conversion


@pytest.fixture
def short_segments(monkeypatch):
    """Cut trajectories of ubiquitin into segments of five frames."""
    monkeypatch.setattr(segments, "LEAST_ATOMS", 602 * 5)
    monkeypatch.setattr(pipeline, "MOST_TOGETHER", 5)


@pytest.fixture
def convert(folder, weights, short_segments):
    def go(*options, output="aa.xtc", command=run):
        return command("convert", folder / "cg.xtc", "-o", folder / output, "--model", weights,
                       "--no-hydrogens", *options)  # fmt: skip

    return go


@pytest.fixture(scope="module")
def straight(weights, tmp_path_factory):
    """The trajectory of ``folder``, without a break."""
    out = tmp_path_factory.mktemp("straight") / "aa.xtc"
    ok("convert", XTC, "-s", TPR, "-o", out, "--model", weights, "--no-hydrogens")
    return out


def interrupt(monkeypatch, error, at):
    """Make the XTC writer raise at its ``at``-th frame."""
    writer = mda.coordinates.XTC.XTCWriter
    original, left = writer._write_next_frame, at

    def write(self, atoms):
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        return original(self, atoms)

    monkeypatch.setattr(writer, "_write_next_frame", write)


def test_ctrl_c_and_on(convert, folder, straight, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, KeyboardInterrupt(), 12)
        result = convert()
    assert result.code == 130
    kept = f"10 of 31 frames are done and kept in {folder}/aa.xtc.part\n"
    assert result.err.strip() == f"stopped; {kept}  Hint: the same command with --resume goes on."
    assert not (folder / "aa.xtc").exists()
    said = convert(command=fails)
    assert "an unfinished conversion of it is kept in" in said
    assert "--resume goes on with it, --restart forgets it" in said
    assert "31 frames" in convert("--resume", command=ok)
    assert (folder / "aa.xtc").read_bytes() == straight.read_bytes()
    assert (folder / "aa.pdb").read_bytes() == straight.with_suffix(".pdb").read_bytes()
    assert not (folder / "aa.xtc.part").exists()


def test_terminated_and_on(convert, folder, straight, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, SystemExit(143), 12)
        result = convert()
    assert result.code == 143
    assert result.err.startswith("stopped; 10 of 31 frames are done and kept")
    convert("--resume", command=ok)
    assert (folder / "aa.xtc").read_bytes() == straight.read_bytes()


def test_full_disk_and_on(convert, folder, straight):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (straight.stat().st_size // 2, before[1]))
    try:
        said = convert("--topology-out", folder / "aa.gro", command=fails)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert said.startswith(f"error: {folder / 'aa.xtc'}: cannot be written")
    assert "frames are done and kept in" in said
    convert("--topology-out", folder / "aa.gro", "--resume", command=ok)
    assert (folder / "aa.xtc").read_bytes() == straight.read_bytes()


def test_vanished_input_and_on(convert, folder, straight, monkeypatch):
    original = mda.coordinates.XTC.XTCWriter._write_next_frame
    left = 12

    def write(self, atoms):
        nonlocal left
        left -= 1
        if left == 0:
            (folder / "cg.xtc").rename(folder / "away")
        return original(self, atoms)

    monkeypatch.setattr(mda.coordinates.XTC.XTCWriter, "_write_next_frame", write)
    said = convert(command=fails)
    assert f"{folder / 'cg.xtc'}: is not there any more" in said
    # The frames of a segment had been read together.
    assert "15 of 31 frames are done" in said
    assert "--stop" not in said
    (folder / "away").rename(folder / "cg.xtc")
    convert("--resume", command=ok)
    assert (folder / "aa.xtc").read_bytes() == straight.read_bytes()


def test_a_damaged_frame_and_on(convert, folder, straight):
    """The trajectory is mended, and converted on from where it was."""
    whole = (folder / "cg.xtc").read_bytes()
    stamp = (folder / "cg.xtc").stat()
    offsets = load(TPR, XTC).trajectory._xdr.offsets
    (folder / "cg.xtc").write_bytes(
        whole[: offsets[12] + 4] + b"\xff" * 4 + whole[offsets[12] + 8 :]
    )
    os.utime(folder / "cg.xtc", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    said = convert(command=fails)
    assert "frame 12 of 31 cannot be read" in said
    assert "10 of 31 frames are done" in said
    (folder / "cg.xtc").write_bytes(whole)
    os.utime(folder / "cg.xtc", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    convert("--resume", command=ok)
    assert (folder / "aa.xtc").read_bytes() == straight.read_bytes()


def test_other_options_are_refused(convert, folder, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, KeyboardInterrupt(), 12)
        convert()
    (folder / "cg.xtc").touch()
    with unchanged(folder):
        said = convert("--resume", "--seed", 5, "--stop", 25, "--no-idealise", command=fails)
    assert "was begun with something else" in said
    assert "option: seed: 0 then, 5 now" in said
    assert "option: idealise: True then, False now" in said
    assert "frames: range(0, 31) then, range(0, 25) now" in said
    assert re.search(r"cg\.xtc: \d+ bytes of 20\d\d-\d\d-\d\d .* UTC then, \d+ bytes of", said)
    convert("--restart", "--seed", 5, "--stop", 25, command=ok)
    assert load(folder / "aa.pdb", folder / "aa.xtc").trajectory.n_frames == 25


def test_both_ways_at_once(folder):
    words = ["convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--resume", "--restart"]
    assert "give one" in fails(*words, code=2)


def test_the_python_function(folder, weights, straight, short_segments, monkeypatch):
    universe = load(folder / "cg.tpr", folder / "cg.xtc")
    with monkeypatch.context() as patch:
        interrupt(patch, KeyboardInterrupt(), 12)
        with pytest.raises(KeyboardInterrupt):
            backmap(universe, folder / "aa.xtc", weights, **DRY)
    with pytest.raises(OutputFileError, match="unfinished"):
        backmap(universe, folder / "aa.xtc", weights, **DRY)
    done = backmap(universe, folder / "aa.xtc", weights, **DRY, resume=True)
    assert (done.outcome.written, done.n_atoms) == (31, 602)
    assert done.topology == folder / "aa.pdb"
    assert (folder / "aa.xtc").read_bytes() == straight.read_bytes()
    with pytest.raises(InputFileError, match="no such file"):
        backmap(folder / "nowhere.xtc", folder / "aa.xtc")
    with quiet_guesses():
        memory = mda.Universe(str(TPR), universe.trajectory.timeseries(order="fac")[:3])
    done = backmap(memory, folder / "m.trr", weights, **DRY, restart=True)
    assert done.outcome.written == 3


def test_names_are_checked_before_the_work(made, tmp_path):
    job = made(tmp_path / "aa.pdb")
    job.named.atoms.names = ["TOOLONG"] * job.n_atoms
    job.work = None
    with unchanged(tmp_path), pytest.raises(OutputFileError, match="4 letters of a name"):
        convert_segments(job, None, ASKED)


# Killed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_kills", "n_frames", "suffix", "options"),
    [
        (20, 500, "xtc", ["--solvent", "drop"]),
        (20, 500, "xtc", ["--solvent", "drop", "--jobs", "2"]),
        (5, 100, "trr", ["--solvent", "drop"]),
        (5, 100, "dcd", ["--solvent", "drop"]),
        (5, 100, "h5md", ["--solvent", "drop"]),
        (5, 100, "pdb", ["--solvent", "drop"]),
        (10, 100, "xtc", []),
        (10, 100, "xtc", ["--jobs", "2"]),
    ],
)
def test_killed_at_random(tmp_path, n_kills, n_frames, suffix, options):
    """kill -9 at random moments, each continued; also with water."""
    without_formats_that_lack(suffix)
    if "--jobs" in options:
        pytest.importorskip("distributed")
    long = kills.repeat(TPR, XTC, n_frames, tmp_path)
    found = kills.survive(long, suffix, n_frames, n_kills, options)
    assert sum(found.moments.values()) == n_kills
    assert found.compared > 0


def test_frames_lost_or_doubled_are_seen(tmp_path, folder):
    """By what checks conversions that were killed."""
    cg = load(TPR, XTC)
    with quiet_guesses():
        cg.atoms.write(str(tmp_path / "aa.pdb"))
    for name, frames in (("lost", [0, 1, 3, 4]), ("doubled", [0, 1, 1, 3]), ("whole", range(4))):
        with mda.Writer(str(tmp_path / "aa.xtc"), len(cg.atoms)) as writer:
            for k in frames:
                cg.trajectory[k].data["time"] = 100.0 * k
                writer.write(cg.atoms)
        if name == "whole":
            kills._check_frames(tmp_path / "aa.xtc", 4)
        else:
            with pytest.raises(AssertionError):
                kills._check_frames(tmp_path / "aa.xtc", 4)


# Many atoms


@pytest.fixture(scope="module")
def crowd_of_lipids(membrane_system):
    """A Universe of more than 99,999 atoms."""
    atoms = membrane_system.atoms
    times = 100_000 // len(atoms) + 1
    universe = blank_universe(membrane_system)
    many = mda.Merge(*[universe.atoms] * times)
    many.dimensions = None
    many.add_TopologyAttr("resids", np.arange(1, len(many.residues) + 1))
    return many


@pytest.mark.parametrize("suffix", ["xtc", "trr", "dcd", "h5md", "nc", "pdb", "cif", "gro"])
def test_more_than_99_999_atoms(crowd_of_lipids, tmp_path, suffix):
    without_formats_that_lack(suffix)
    universe = crowd_of_lipids
    source = Made(len(universe.atoms))
    n_frames = 1 if suffix == "gro" else 2
    job = Job(source.read, source.work, lambda: universe, range(n_frames), source.n_atoms,
              tmp_path / f"aa.{suffix}", 20.0, 1)  # fmt: skip
    convert_segments(job, None)
    expected = [source.read(k).positions for k in range(n_frames)]
    if suffix == "cif":
        gemmi = pytest.importorskip("gemmi")
        found = gemmi.read_structure(str(tmp_path / "aa.cif"))
        assert len(found) == 2
        for model, points in zip(found, expected, strict=True):
            rows = [atom for chain in model for residue in chain for atom in residue]
            assert len({atom.serial for atom in rows}) == len(points)
            np.testing.assert_allclose([atom.pos.tolist() for atom in rows], points, atol=0.001)
        return
    if suffix in ("pdb", "gro"):
        found = load(tmp_path / f"aa.{suffix}")
        for name in ("names", "resnames"):
            assert (getattr(found.atoms, name) == getattr(universe.atoms, name)).all()
        assert len(found.residues) == len(universe.residues)
    else:
        found = mda.Universe(universe._topology, str(tmp_path / f"aa.{suffix}"), to_guess=())
    assert len(found.trajectory) == n_frames
    for ts, points in zip(found.trajectory, expected, strict=True):
        np.testing.assert_allclose(ts.positions, points, atol=0.011)
