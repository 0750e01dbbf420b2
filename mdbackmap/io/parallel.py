"""Segments converted by the workers of a Dask cluster, on this machine or on many."""

from __future__ import annotations

import logging
import pickle
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import cloudpickle
import dask
from distributed import Client, LocalCluster, as_completed, get_worker
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.scheduler import KilledWorker

from mdbackmap import __version__, warm_start
from mdbackmap.errors import WorkerError
from mdbackmap.io.segments import Job, Run

_log = logging.getLogger("mdbackmap")
_PATIENCE = 30
"""Seconds to wait for a scheduler."""
_SETTINGS = {
    "distributed.worker.multiprocessing-method": warm_start.METHOD,
    # Dask would have memory given back to the system and asked for again in every frame.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
    "distributed.worker.profile.enabled": False,
}


@contextmanager
def workers(jobs: int, client: Client | str | Path | None = None) -> Iterator[Run]:
    """Give what runs segments on workers; ends those that were started for it.

    Parameters
    ----------
    jobs : int
        Processes to start on this machine where no client is given.
    client : distributed.Client, str or Path, optional
        A client, or the address or the file of a scheduler.

    Raises
    ------
    WorkerError
        The scheduler cannot be reached.
    """
    with ExitStack() as stack:
        if client is None:
            client = stack.enter_context(_local(jobs))
        elif not isinstance(client, Client):
            client = stack.enter_context(_remote(client))
        yield lambda job, todo, count: _run(client, job, todo, count)


@contextmanager
def _local(jobs: int) -> Iterator[Client]:
    warm_start.begin()
    # No limit of memory: Dask would end workers that come near it.
    with (
        dask.config.set(_SETTINGS),
        LocalCluster(
            n_workers=jobs, threads_per_worker=1, processes=True, memory_limit=0,
            dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


@contextmanager
def _remote(scheduler: str | Path) -> Iterator[Client]:
    where = {"scheduler_file": str(scheduler)} if Path(scheduler).is_file() else {
        "address": str(scheduler)
    }  # fmt: skip
    try:
        client = Client(**where, timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"scheduler {scheduler}: cannot be reached ({error or 'no answer'})"
        ) from error
    with client:
        yield client


class _Share(WorkerPlugin):
    """Brings a job to every worker, also to those that come later or are started again.

    Parameters
    ----------
    job : Job
    """

    def __init__(self, job: Job) -> None:
        self.name = f"mdbackmap-{uuid.uuid4().hex}"
        self.packed, self.version = cloudpickle.dumps(job), __version__
        self._job: Job | None = None
        self._turn: threading.Lock | None = None

    def setup(self, worker) -> None:
        """Take note of what a worker has for itself."""
        self._turn, self._threads = threading.Lock(), worker.state.nthreads

    def convert(self, k: int) -> list[tuple[int, str]]:
        """Convert a segment; return the warnings it gave rise to, with their levels."""
        import torch

        if self.version != __version__:
            raise WorkerError(
                f"a worker has mdbackmap {__version__}, but {self.version} is at the other end"
            )
        # A trajectory has one place at a time: the threads of a worker take turns.
        with self._turn, _collected() as said:
            if self._job is None:
                torch.set_num_threads(self._threads)
                self._job = pickle.loads(self.packed)  # noqa: S301 (sent by our own client)
            self._job.convert(k)
        return said


def _convert(share: str, k: int) -> list[tuple[int, str]]:
    """Convert a segment with what this worker was brought."""
    return get_worker().plugins[share].convert(k)


@contextmanager
def _collected() -> Iterator[list[tuple[int, str]]]:
    """Collect our warnings, which are for the person at the other end."""
    said: list[tuple[int, str]] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append((record.levelno, record.getMessage()))

    keeper, propagates = Keeper(logging.WARNING), _log.propagate
    _log.addHandler(keeper)
    _log.propagate = False
    try:
        yield said
    finally:
        _log.removeHandler(keeper)
        _log.propagate = propagates


def _run(
    client: Client, job: Job, todo: Iterable[int], count: Callable[[int], None]
) -> Iterator[int]:
    """Convert segments on the workers of a client; see `Run`."""
    if not client.scheduler_info()["workers"]:
        _log.warning("no worker is there yet; waiting for the first")
    share = _Share(job)
    client.register_plugin(share)
    futures = {
        client.submit(_convert, share.name, k, key=f"{share.name}-{k}", priority=-k): k
        for k in todo
    }
    try:
        for future in as_completed(list(futures)):
            k = futures.pop(future)
            for level, message in _result(future, job.places(k)):
                _log.log(level, "%s", message)
            count(len(job.places(k)))
            yield k
    finally:
        # A cluster that is being stopped as well may be gone.
        with suppress(OSError):
            client.cancel(list(futures))
            client.unregister_worker_plugin(share.name)


def _result(future, places: range) -> list[tuple[int, str]]:
    try:
        return future.result()
    except KilledWorker as error:
        raise WorkerError(
            f"frames {places.start} to {places.stop - 1}: every worker that tried them died; "
            "not enough memory?"
        ) from error
