"""Memory is what was asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import click
import pytest
from mdbackmap import memory
from mdbackmap.cli.common import bytes_of
from mdbackmap.errors import MemoryLimitError

from helpers_io import GRO, MEMBRANE, TPR, XTC, fails

PEAK = """
import json, resource, sys
sys.argv = {words!r}
from mdbackmap.cli.main import main
try:
    main()
except SystemExit as stop:
    print(json.dumps([stop.code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def test_chunks_shrink_until_nothing_fits():
    n_beads, n_atoms = 10_000, 40_000
    frame = memory.needed(n_beads, n_atoms, 0)
    assert memory.chunk_size(n_beads, n_atoms, 1e12, 256) == 256
    assert memory.chunk_size(n_beads, n_atoms, frame + 100 * memory.PER_BEAD_IN_CHUNK, 256) == 100
    least = memory.needed(n_beads, n_atoms, memory.SMALLEST_CHUNK)
    assert memory.chunk_size(n_beads, n_atoms, least, 256) == memory.SMALLEST_CHUNK
    with pytest.raises(MemoryLimitError, match="10000 beads take about 688 MB in every process"):
        memory.chunk_size(n_beads, n_atoms, least - 1, 256)


def test_as_many_frames_at_once_as_fit():
    one = memory.needed(1000, 4000, 0) - memory.PROCESS
    least = memory.needed(1000, 4000, 256)
    for more, fits in ((-1, 1), (0, 1), (0.9, 1), (1, 2), (6.5, 7), (1e6, 16)):
        assert memory.frames(1000, 4000, least + more * one, 16, 256) == fits


@pytest.mark.parametrize(
    ("text", "size"),
    [("4G", 4e9), ("500M", 5e8), ("1.5 GB", 1.5e9), ("2GiB", 2 * 2**30), ("1e9", None),
     ("0", None), ("-1G", None), ("4X", None), ("G", None), ("123456789", 123456789.0)],
)  # fmt: skip
def test_sizes(text, size):
    if size is None:
        with pytest.raises(click.BadParameter, match="expected a size such as 4G"):
            bytes_of(None, None, text)
    else:
        assert bytes_of(None, None, text) == size


def test_what_cannot_fit_is_refused_before_it_starts(weights, tmp_path):
    words = ["convert", XTC, "-s", TPR, "-o", tmp_path / "aa.xtc", "--model", weights]
    said = fails(*words, "--max-memory", "100M")
    assert "166 beads take about 613 MB in every process, but only 100 MB are allowed" in said
    assert not list(tmp_path.glob("aa*"))
    said = fails(*words, "--max-memory", "1.5G", "--jobs", 2)
    assert "but only 500 MB are allowed for one" in said
    said = fails(*words, "--max-memory", "100M", "--solvent", "keep")
    assert "166 beads and 17402 atoms of water and ions take about" in said
    assert "--solvent drop" in said
    assert "give one" in fails(*words, "--max-memory", "1G", "--chunk-size", 9, code=2)


@pytest.mark.slow
def test_a_conversion_stays_below_the_limit(tmp_path):
    words = ["mdbackmap", "convert", MEMBRANE, "-s", GRO, "-o", tmp_path / "aa.xtc", "--max-memory",
             "640M", "--threads", 1]  # fmt: skip
    script = PEAK.format(words=[str(word) for word in words])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    code, peak = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    assert peak < 1.1 * 640e6


@pytest.mark.parametrize("library", ["glibc", "another"])
def test_freed_memory_is_kept(monkeypatch, library):
    asked = {}
    known = {"mallopt": asked.__setitem__} if library == "glibc" else {}
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace(**known))
    monkeypatch.setattr(memory.sys, "platform", "linux")
    memory.keep_freed.__wrapped__()
    # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD.
    assert asked == ({-1: 256 << 20, -3: 1 << 30} if known else {})


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("not asked"))
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    memory.keep_freed.__wrapped__()
