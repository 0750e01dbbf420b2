"""Damaged trajectories and topologies: used rightly or refused with a message, and soon.

Every case runs in a process of its own, for the C libraries below can end one.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import struct
import time
import traceback
from pathlib import Path

import MDAnalysis as mda
import numpy as np
import pytest
from mdbackmap.errors import MdbackmapError
from mdbackmap.io.files import quiet_guesses
from mdbackmap.io.source import CGSource
from mdbackmap.io.transformation import lay_out

from helpers_io import DATA, GRO, TPR, XTC, load, run, write_top

CASES = int(os.environ.get("MDBACKMAP_FUZZ", 500))
SOON, LATE = 5.0, 120.0
"""Seconds of work that a case may take, and of waiting for it beside other processes."""
MEMORY = 6 << 30
"""Bytes that a case may ask for."""
KINDS = ["xtc", "trr", "dcd", "nc", "pdb", "gro", "tpr", "gro of insulin", "tpr of insulin", "top"]
NUMBERS = [0, -1, 1, 9, 10, 1650, 1652, 2**31 - 1, -(2**31), 2**24, 255, 1995, 2023]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Sound files: pairs of a topology and a trajectory, and which of them is to be harmed."""
    folder = tmp_path_factory.mktemp("originals")
    cg = load(TPR, XTC)
    with quiet_guesses():
        for suffix in ("xtc", "trr", "dcd", "nc", "pdb"):
            atoms = cg.atoms if suffix != "pdb" else cg.select_atoms("not resname W")
            atoms.write(str(folder / f"cg.{suffix}"), frames=cg.trajectory[:4])
        cg.atoms.write(str(folder / "cg.gro"))
    (folder / "cg.tpr").write_bytes(TPR.read_bytes())
    write_top(cg, folder / "cg.top")
    return folder


def pair(originals: Path, kind: str) -> tuple[Path, Path, Path]:
    """Return a topology, a trajectory, and which of them is harmed."""
    if kind.endswith("insulin"):
        top, frames = DATA / "insulin.tpr", DATA / "insulin.gro"
        return top, frames, top if kind.startswith("tpr") else frames
    if kind in ("pdb", "gro"):
        return originals / f"cg.{kind}", originals / f"cg.{kind}", originals / f"cg.{kind}"
    if kind in ("tpr", "top"):
        return originals / f"cg.{kind}", originals / "cg.xtc", originals / f"cg.{kind}"
    return originals / "cg.tpr", originals / f"cg.{kind}", originals / f"cg.{kind}"


def harmed(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with some damage, often near the start, where the headers are."""
    new = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        if not new:
            break
        reach = chance.choice([100, 400, len(new)])
        at = chance.randrange(min(reach, len(new)))
        size = chance.choice([1, 4, 64, 1000])
        how = chance.randrange(9)
        if how == 0:
            for _ in range(chance.choice([1, 20])):
                new[chance.randrange(min(reach, len(new)))] ^= 1 << chance.randrange(8)
        elif how == 1:
            del new[at:]
        elif how == 2:
            del new[at : at + size]
        elif how == 3:
            new[at:at] = chance.randbytes(size)
        elif how == 4:
            new[at : at + size] = bytes(len(new[at : at + size]))
        elif how == 5:
            new[at : at + size] = b"\xff" * len(new[at : at + size])
        elif how == 6:
            number = struct.pack(chance.choice("<>") + "i", chance.choice(NUMBERS))
            at -= at % 4
            new[at : at + 4] = number
        elif how == 7:
            new[at:at] = new[at : at + size]
        else:
            other = chance.randrange(len(new))
            new[at : at + size] = new[other : other + size]
    return bytes(new)


def apart(work, folder: Path) -> dict:
    """Do work in another process; return what it returns.

    Whatever ends that process, keeps it busy, or makes it raise is an error here.
    """
    answer = folder / "answer"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            answer.write_text(json.dumps(work()))
        except BaseException:  # noqa: BLE001 (told to the parent)
            answer.write_text(json.dumps({"raised": traceback.format_exc()}))
        finally:
            os._exit(0)
    began = time.monotonic()
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > LATE:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("hangs")
        time.sleep(0.002)
    assert status == 0, f"ended by {os.waitstatus_to_exitcode(status)}"
    assert usage.ru_utime + usage.ru_stime < SOON
    found = json.loads(answer.read_text())
    assert "raised" not in found, found["raised"]
    return found


def opened(topology: Path, trajectory: Path) -> dict:
    """Open and lay out files, and read all frames."""
    try:
        source = CGSource.open(trajectory, topology)
        lay_out(source)
        frames = list(source.frames())
    except MdbackmapError as error:
        return {"error": str(error)}
    sizes = {len(frame.positions) for frame in frames}
    assert sizes == {len(source.particles)}
    return {"frames": len(frames)}


def converted(topology: Path, trajectory: Path, output: Path, weights: Path) -> dict:
    """Convert files on the command line."""
    done = run("convert", trajectory, "-s", topology, "-o", output, "--model", weights)
    found = {"code": done.code, "out": done.out, "err": done.err}
    if output.exists():
        with quiet_guesses():
            made = mda.Universe(str(output.with_suffix(".pdb")), str(output))
            found["finite"] = all(bool(np.isfinite(t.positions).all()) for t in made.trajectory)
    return found


def damaged(originals: Path, folder: Path, number: int) -> tuple[Path, Path, Path]:
    """Write the files of one case."""
    kind = KINDS[number % len(KINDS)]
    topology, trajectory, which = pair(originals, kind)
    new = folder / f"harmed{which.suffix}"
    for old in folder.glob(".harmed*"):
        old.unlink()
    new.write_bytes(harmed(which.read_bytes(), random.Random(number)))
    return tuple(new if path == which else path for path in (topology, trajectory, which))


def test_sound_files_are_read(originals, tmp_path):
    for kind in KINDS:
        topology, trajectory, _ = pair(originals, kind)
        n_frames = 1 if "gro" in kind or "insulin" in kind else 4
        done = apart(lambda t=topology, x=trajectory: opened(t, x), tmp_path)
        assert done == {"frames": n_frames}, kind


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(originals, tmp_path, kind):
    for number in range(KINDS.index(kind), 100, len(KINDS)):
        topology, trajectory, which = damaged(originals, tmp_path, number)
        found = apart(lambda t=topology, x=trajectory: opened(t, x), tmp_path)
        if "error" in found:
            assert which.name in found["error"] or found["error"].startswith("frame ")
            assert len(found["error"]) < 5000


@pytest.mark.slow
def test_hundreds_of_damaged_files(originals, tmp_path, weights):
    refused = 0
    for number in range(1000, 1000 + CASES):
        topology, trajectory, which = damaged(originals, tmp_path, number)
        output = tmp_path / "aa.xtc"
        for path in (output, output.with_suffix(".pdb")):
            path.unlink(missing_ok=True)
        try:
            found = apart(
                lambda t=topology, x=trajectory, o=output: converted(t, x, o, weights), tmp_path
            )
            assert "Traceback" not in found["err"]
            assert found["code"] in (0, 1)
            if output.exists():
                assert found["finite"]
                assert found["out"]
            else:
                refused += 1
                assert found["code"] == 1
                assert found["err"].startswith("error: ")
                assert which.name in found["err"] or "residue" in found["err"] or (
                    "no frame could be written" in found["err"]
                )  # fmt: skip
            left = {path.name for path in tmp_path.iterdir()}
            assert not any(name.endswith(".part") for name in left)
        except AssertionError as error:
            raise AssertionError(f"case {number}, {which}: {error}") from error
    assert refused > CASES / 4
    assert refused < CASES


def test_gro_of_another_system(tmp_path, originals):
    done = apart(lambda: opened(GRO, originals / "cg.xtc"), tmp_path)
    assert "holds 1651 particles" in done["error"]
