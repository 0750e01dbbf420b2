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


def all_of(*steps):
    with Behind() as behind:
        for step in steps:
            behind.do(step)


def fail():
    raise OSError("disk full")


def test_what_goes_wrong_is_raised_at_the_end():
    with pytest.raises(OSError, match="disk full"):
        all_of(fail)


def test_what_goes_wrong_is_raised_before_the_next():
    done = []
    with pytest.raises(OSError, match="disk full"):
        all_of(fail, lambda: done.append(1))
    assert not done


def test_whoever_is_interrupted_is_told_of_that():
    def interrupted():
        with Behind() as behind:
            behind.do(fail)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


@pytest.mark.parametrize(
    ("beads", "threads", "expected"),
    [(166, 2, 16), (3_000, 2, 10), (244_200, 1, 1), (244_200, 2, 2), (244_200, 8, 2),
     (1_000_000, 2, 1)],
)  # fmt: skip
def test_frames_at_once(monkeypatch, beads, threads, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    one = SimpleNamespace(system=SimpleNamespace(n_beads=beads))
    assert Backmapper.together.fget(one) == expected
