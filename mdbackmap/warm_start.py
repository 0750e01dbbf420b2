"""Importing, which takes longer than many a conversion: quickly, and once for all workers.

Workers are copies of a process that imports what they need. Nothing heavy is imported here, so that
a command can begin with it.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""How worker processes are started."""
_MODULES = ["mdbackmap.io.preload"]
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def begin() -> None:
    """Start the process, unless it runs already or the platform has none; does not wait for it."""
    if METHOD != "forkserver":
        return
    from multiprocessing import forkserver, resource_tracker

    # It would let signals in again.
    resource_tracker.ensure_running()
    multiprocessing.get_context(METHOD).set_forkserver_preload(_MODULES)
    with _one_thread(), _deaf():
        forkserver.ensure_running()


@contextmanager
def _deaf() -> Iterator[None]:
    """Have processes started here not hear of Ctrl-C and the like: this one will end them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have processes started here use one thread: libraries look once, when they are imported."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without looking for garbage.

    What modules hold stays; to look through it while it grows, and again at the end, takes a third
    of the time of a short command.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)
