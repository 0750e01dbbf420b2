"""Loops compiled for this processor, by numba.

What many small steps of array work would carry through memory again and again is written as a loop
and compiled. Compiling takes some seconds, the first time that a kernel is called on a machine;
numba keeps the result beside the source, or in the user's cache where that is read-only.
Kernels hold no lock of the interpreter, so that threads of `mdbackmap.threads` share the work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba.core import event


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function when it is first called, and keep the result for the next process.

    Arrays must be C-contiguous, and of the same type in every call: each other type is compiled
    anew. Sums are not reordered, so that the same input gives the same output bit for bit.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # No folder can be written to. Each process then compiles for itself.
        return numba.njit(**options)(function)


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
