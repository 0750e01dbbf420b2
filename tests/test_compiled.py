"""Kernels: kept between processes, whoever comes first; eight numbers at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mdbackmap.compiled import compiled, tell_when_compiling
from mdbackmap.lanes import LANES, at, exponential, least, most, put, root, size, where_less

CALL = """
import sys
import numpy as np
from mdbackmap.compiled import tell_when_compiling
from mdbackmap.hydrogens.frames import usual_places
tell_when_compiling(lambda: print("compiles"))
frames = np.eye(3, dtype=np.float32)[None]
for kind in sys.argv[1:]:
    owner = np.zeros(2, np.dtype(kind))
    found = usual_places(frames, owner, np.arange(6, dtype=np.float32).reshape(2, 3))
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]], found
"""
TYPES = ("int64", "int32", "uint8", "int16")


def start(cache: Path, *kinds: str) -> subprocess.Popen:
    """A process that calls a kernel with arrays of some types."""
    return subprocess.Popen(
        [sys.executable, "-c", CALL, *kinds], env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_processes_that_compile_at_once_leave_what_all_can_use(tmp_path):
    first = [start(tmp_path, kind) for kind in TYPES]
    assert [(p.communicate()[0], p.returncode) for p in first] == [("compiles\n", 0)] * len(TYPES)
    assert len(list(tmp_path.rglob("*.nbc"))) == len(TYPES)
    # Nothing is compiled again, and everyone gets the code for their own types.
    later = start(tmp_path, *TYPES)
    assert (later.communicate()[0], later.returncode) == ("", 0)


def test_without_a_folder_to_write_to_each_process_compiles(monkeypatch):
    def nowhere(function):
        raise RuntimeError("no locator available")

    monkeypatch.setattr("mdbackmap.compiled._Cache", nowhere)
    told = []
    tell_when_compiling(lambda: told.append(1))
    assert compiled(lambda x: x + 1)(2) == 3
    assert told == [1]


@compiled
def _every_operation(a, b, result):
    one, two = at(a, 0, 0), at(b, 0, 0)
    put(result, 0, 0, one + two)
    put(result, 0, 1, one - 2.0)
    put(result, 0, 2, 3 * two)
    put(result, 0, 3, one / two)
    put(result, 0, 4, -one)
    put(result, 0, 5, root(two))
    put(result, 0, 6, size(one))
    put(result, 0, 7, least(one, two))
    put(result, 0, 8, most(one, 0.5))
    put(result, 0, 9, where_less(one, two, 1.0, one))
    put(result, 0, 10, exponential(one))
    put(result, 0, 11, 7.0)


def test_eight_numbers_at_once():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 3, (2, 1, 1, LANES)).astype(np.float32)
    b = np.abs(b) + np.float32(0.1)
    result = np.zeros((1, 12, LANES), np.float32)
    _every_operation(a, b, result)
    a, b = a[0, 0].astype(float), b[0, 0].astype(float)
    expected = [a + b, a - 2, 3 * b, a / b, -a, np.sqrt(b), np.abs(a), np.minimum(a, b),
                np.maximum(a, 0.5), np.where(a < b, 1, a), np.exp(a),
                np.full(LANES, 7)]  # fmt: skip
    assert result[0] == pytest.approx(np.array(expected), rel=3e-6)


def test_exponentials_from_end_to_end():
    result = np.zeros((1, 12, LANES), np.float32)
    b = np.ones((1, 1, LANES), np.float32)
    for low in np.arange(-80, 80, 2.0):
        x = np.linspace(low, low + 1.9, LANES).astype(np.float32).reshape(1, 1, LANES)
        _every_operation(x, b, result)
        assert result[0, 10] == pytest.approx(np.exp(x[0, 0].astype(float)), rel=2e-5)
