"""Work that is done behind its owner's back, and frames that threads share."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from mdbackmap.pipeline import Backmapper
from mdbackmap.threads import Behind


def test_one_thing_after_another_in_another_thread():
    done = []

    def take(k):
        done.append((k, threading.current_thread() is threading.main_thread()))

    with Behind() as behind:
        for k in range(5):
            behind.do(take, k)
    assert done == [(k, False) for k in range(5)]


def test_its_owner_goes_on_meanwhile():
    begun, go_on = threading.Event(), threading.Event()

    def take():
        begun.set()
        assert go_on.wait(10)

    with Behind() as behind:
        behind.do(take)
        assert begun.wait(10)
        go_on.set()


@pytest.mark.parametrize("at", ["the next", "the end"])
def test_what_goes_wrong_is_raised(at):
    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Behind() as behind:
        behind.do(fail)
        if at == "the next":
            behind.do(lambda: pytest.fail("nothing comes after it"))


def test_whoever_is_interrupted_is_told_of_that():
    def fail():
        raise OSError("disk full")

    with pytest.raises(KeyboardInterrupt), Behind() as behind:
        behind.do(fail)
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("beads", "threads", "expected"),
    [(166, 2, 16), (3_000, 2, 10), (244_200, 1, 1), (244_200, 2, 2), (244_200, 8, 2),
     (1_000_000, 2, 1)],
)  # fmt: skip
def test_frames_at_once(monkeypatch, beads, threads, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    one = SimpleNamespace(system=SimpleNamespace(n_beads=beads))
    assert Backmapper.together.fget(one) == expected
