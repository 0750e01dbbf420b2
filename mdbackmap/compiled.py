"""Loops compiled for this processor, by numba.

What many small steps of array work would carry through memory again and again is written as a loop
and compiled. Compiling takes some seconds, the first time that a kernel is called on a machine;
numba keeps the result beside the source, or in the user's cache where that is read-only.
Kernels hold no lock of the interpreter, so that threads of `mdbackmap.threads` share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numba
from numba.core import event
from numba.core.caching import FunctionCache

_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function when it is first called, and keep the result for the next process.

    Arrays must be C-contiguous, and of the same type in every call: each other type is compiled
    anew. Sums are not reordered, so that the same input gives the same output bit for bit.
    """
    kernel = numba.njit(**_OPTIONS)(function)
    try:
        kernel._cache = _Cache(function)
    except RuntimeError:
        # No folder can be written to. Each process then compiles for itself.
        return kernel
    return kernel


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function as a part of others, with which it is kept."""
    return numba.njit(**_OPTIONS)(function)


class _Cache(FunctionCache):
    """Kept kernels, which one process at a time may look at.

    numba numbers its files by what it finds. Of two processes that compile a kernel for arrays of
    different types at once, one could be left with the code of the other, and crash.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with self._alone():
            return super().load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        with self._alone():
            super().save_overload(sig, data)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        folder = Path(self.cache_path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(folder / f"{self._impl.filename_base}.lock")
            lock.acquire()
        except OSError:
            # Where nothing can be written, nothing changes either.
            yield
            return
        try:
            yield
        finally:
            lock.release()


def tell_when_compiling(tell: Callable[[], None]) -> None:
    """Call a function, once, when something is compiled that no earlier process has left behind."""

    class Listener(event.Listener):
        told = False

        def on_start(self, event_: event.Event) -> None:
            if not self.told:
                self.told = True
                tell()

        def on_end(self, event_: event.Event) -> None:
            pass

    event.register("numba:compile", Listener())
