"""Pieces of work shared by the threads of this process.

A piece is worked out by one thread from start to end, and torch's own threads rest meanwhile:
they wait for one another after every operation, which takes hundreds of times longer beside a
busy process. The answer does not depend on the number of threads.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

T, R = TypeVar("T"), TypeVar("R")

_threads: ContextVar[int] = ContextVar("threads", default=1)


@contextmanager
def shared() -> Iterator[None]:
    """Give torch's threads to `spread`; torch itself works in the thread that calls it."""
    before = torch.get_num_threads()
    given = _threads.set(max(before, _threads.get()))
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _threads.reset(given)
        torch.set_num_threads(before)


def spread(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return ``work(item)`` of all items, which threads share where `shared` says so."""
    threads = min(_threads.get(), len(items))
    if threads <= 1:
        return [work(item) for item in items]
    mode = torch.is_inference_mode_enabled()

    def piece(item: T) -> R:
        with torch.inference_mode(mode):
            return work(item)

    return list(_pool(threads).map(piece, items))


class Behind:
    """Does one thing after another in a thread of its own, while its owner prepares the next.

    What goes wrong is raised where the next thing is given, or on leaving.
    """

    def __enter__(self) -> Behind:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mdbackmap-behind")
        self._last: Future | None = None
        return self

    def do(self, work: Callable[..., None], *given: object) -> None:
        """Do this when what was given before is done; waits for that."""
        self._wait()
        self._last = self._thread.submit(work, *given)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._thread:
            # Whoever was interrupted is told of that, not of what came of it here.
            if kind is None:
                self._wait()

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last:
            last.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(
        threads, thread_name_prefix="mdbackmap", initializer=torch.set_num_threads, initargs=(1,)
    )


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork.
    os.register_at_fork(after_in_child=_pool.cache_clear)
