"""Several processes share a conversion: real workers, one of which dies in the middle."""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import cloudpickle
import MDAnalysis as mda
import pytest
import torch
from mdbackmap import pipeline
from mdbackmap.errors import OutputFileError, WorkerError
from mdbackmap.io import segments
from mdbackmap.io.conversion import backmap
from mdbackmap.io.segments import folder_of

from helpers_io import DRY, TPR, XTC, fails, load, ok

distributed = pytest.importorskip("distributed")
from mdbackmap.io import parallel  # noqa: E402


@pytest.fixture(scope="module")
def cluster():
    """A client of two worker processes."""
    with parallel._local(2) as client:
        yield client


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    """Cut trajectories of ubiquitin into segments of two frames."""
    monkeypatch.setattr(segments, "LEAST_ATOMS", 602 * 2)
    monkeypatch.setattr(pipeline, "MOST_TOGETHER", 2)


@pytest.fixture(scope="module")
def straight(weights, tmp_path_factory):
    """The trajectory of ``folder``, converted by one process."""
    out = tmp_path_factory.mktemp("straight") / "aa.xtc"
    backmap(XTC, out, weights, topology=TPR, **DRY)
    return out


def pids(client):
    """Processes of the workers."""
    return list(client.run(os.getpid).values())


class Kill:
    """Kills a worker when so many frames are done."""

    def __init__(self, client, at):
        self.client, self.left = client, list(at)

    def __call__(self, done, total):
        if self.left and done >= self.left[0]:
            self.left.pop(0)
            os.kill(pids(self.client)[0], signal.SIGKILL)


def test_a_cluster_gives_the_same_file(cluster, folder, weights, straight):
    ticks = []
    done = backmap(folder / "cg.xtc", folder / "aa.xtc", weights, **DRY, client=cluster,
                   tick=lambda *now: ticks.append(now))  # fmt: skip
    assert done.outcome.written == 31
    assert (folder / "aa.xtc").read_bytes() == straight.read_bytes()
    assert (folder / "aa.pdb").read_bytes() == straight.with_suffix(".pdb").read_bytes()
    assert ticks[0] == (0, 31)
    assert ticks[-1] == (31, 31)
    assert len(ticks) == 17
    assert not folder_of(folder / "aa.xtc").exists()
    assert not any(name.startswith("mdbackmap") for name in _plugins(cluster))


def _plugins(client):
    found = client.run(lambda dask_worker: list(dask_worker.plugins))
    return [name for names in found.values() for name in names]


def test_every_worker_takes_part_and_loads_once(cluster, folder, weights):
    backmap(folder / "cg.xtc", folder / "aa.xtc", weights, **DRY, client=cluster)
    log = cluster.run(lambda dask_worker: dask_worker.state.executed_count)
    assert min(log.values()) > 2


def test_a_worker_is_killed_in_the_middle(cluster, folder, weights, straight):
    before = set(pids(cluster))
    kill = Kill(cluster, [6, 16])
    done = backmap(folder / "cg.xtc", folder / "aa.xtc", weights, **DRY, client=cluster,
                   tick=kill)  # fmt: skip
    assert not kill.left
    assert done.outcome.written == 31
    assert (folder / "aa.xtc").read_bytes() == straight.read_bytes()
    cluster.wait_for_workers(2, timeout=30)
    assert set(pids(cluster)) != before


def test_errors_of_workers_arrive_as_they_are(cluster, folder, weights):
    damaged = bytearray((folder / "cg.xtc").read_bytes())
    start = int(load(TPR, XTC).trajectory._xdr.offsets[20])
    damaged[start + 4 : start + 8] = b"\xff" * 4
    (folder / "cg.xtc").write_bytes(bytes(damaged))
    with pytest.raises(OSError, match="frame 20 of 31 cannot be read") as caught:
        backmap(folder / "cg.xtc", folder / "aa.xtc", weights, **DRY, client=cluster)
    assert "frames are done and kept in" in caught.value.__notes__[-1]


def test_warnings_of_workers_are_heard_here(cluster, folder, weights, caplog):
    job = Loud(folder / "aa.xtc")
    with caplog.at_level("INFO"):
        list(parallel._run(cluster, job, [0, 1], lambda n: None))
    said = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "mdbackmap"]
    assert sorted(said) == [("WARNING", "loud 0"), ("WARNING", "loud 1")]
    assert "loud" not in caplog.text.replace("loud 0", "").replace("loud 1", "")


class Loud:
    """A job that only warns."""

    def __init__(self, output):
        self.output = output

    def places(self, k):
        return range(k, k + 1)

    def convert(self, k):
        logging.getLogger("mdbackmap").warning("loud %d", k)
        logging.getLogger("mdbackmap").info("only for those who ask")


class Deadly(Loud):
    """A job that ends the process."""

    def convert(self, k):
        os._exit(1)


@pytest.mark.slow
def test_a_segment_that_kills_every_worker(cluster, tmp_path):
    with pytest.raises(WorkerError, match="frames 0 to 0: every worker that tried them died"):
        list(parallel._run(cluster, Deadly(tmp_path / "aa.xtc"), [0], lambda n: None))
    cluster.wait_for_workers(2, timeout=60)


def test_another_version_is_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "__version__", "9.9")
    with pytest.raises(WorkerError, match=r"a worker has mdbackmap .*, but 9\.9 is at the other"):
        list(parallel._run(cluster, Loud(tmp_path / "aa.xtc"), [0], lambda n: None))


def test_a_scheduler_by_its_address(cluster, folder, weights, straight):
    address = cluster.scheduler.address
    said = ok("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights,
              "--no-hydrogens", "--scheduler", address)  # fmt: skip
    assert "31 frames" in said
    assert (folder / "aa.xtc").read_bytes() == straight.read_bytes()


def test_a_scheduler_that_is_not_there(folder, weights, monkeypatch):
    monkeypatch.setattr(parallel, "_PATIENCE", 0.5)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        said = fails("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights,
                     "--scheduler", address)  # fmt: skip
        assert f"scheduler {address}: cannot be reached" in said
    assert not folder_of(folder / "aa.xtc").exists()


def test_jobs_or_a_scheduler(folder):
    words = ["--jobs", 2, "--scheduler", "tcp://x:1"]
    assert "give one" in fails("convert", "cg.xtc", "-o", "aa.xtc", *words, code=2)


def test_without_dask(folder, weights, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = fails("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights,
                 "--jobs", 2)  # fmt: skip
    assert "several processes need Dask: pip install 'mdbackmap[parallel]'" in said


def test_jobs_of_universes_and_membranes_are_picklable(membrane, weights, tmp_path):
    """What a worker gets is small, and does the same."""
    done = backmap(membrane.universe, tmp_path / "aa.xtc", weights, stop=1)
    job = segments.Job(done.source.read, lambda frame: None, None, range(1), 1, tmp_path / "x.xtc")
    again = pickle.loads(cloudpickle.dumps(job))  # noqa: S301 (made on this line)
    assert (again.read(0).positions == job.read(0).positions).all()
    assert len(cloudpickle.dumps(done.backmapper)) < 20e6


def test_unfinished_work_of_one_process_is_finished_by_many(cluster, folder, weights, straight):
    """And the other way round."""
    for first, second in ((None, cluster), (cluster, None)):

        def stop(done, total):
            if done >= 10:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            backmap(folder / "cg.xtc", folder / "aa.xtc", weights, **DRY, client=first,
                    tick=stop)  # fmt: skip
        with pytest.raises(OutputFileError, match="unfinished"):
            backmap(folder / "cg.xtc", folder / "aa.xtc", weights, **DRY, client=second)
        backmap(folder / "cg.xtc", folder / "aa.xtc", weights, **DRY, client=second,
                resume=True)  # fmt: skip
        assert (folder / "aa.xtc").read_bytes() == straight.read_bytes()
        (folder / "aa.xtc").unlink()


def jobs(trajectory, *more) -> list[str]:
    """A conversion by two processes."""
    return [sys.executable, "-m", "mdbackmap", "convert", str(trajectory), "-s", str(TPR),
            "--no-hydrogens", "--solvent", "drop", "--jobs", "2", *map(str, more)]  # fmt: skip


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A trajectory that takes some seconds."""
    path = tmp_path_factory.mktemp("long") / "cg.xtc"
    universe = mda.Universe(TPR, XTC)
    with mda.Writer(str(path), len(universe.atoms)) as writer:
        for k in range(40):
            for ts in universe.trajectory:
                ts.time = 1000.0 * (31 * k + ts.frame)
                writer.write(universe.atoms)
    return path


@pytest.mark.slow
def test_processes_of_one_machine(weights, straight, tmp_path):
    done = subprocess.run(jobs(XTC, "-o", tmp_path / "aa.xtc", "--model", weights),
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stderr == ""
    assert (tmp_path / "aa.xtc").read_bytes() == straight.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_as_from_a_terminal(weights, long, tmp_path, number):
    """Ctrl-C reaches the workers as well; they leave without a word."""
    straight = tmp_path / "straight.xtc"
    backmap(long, straight, weights, topology=TPR, **DRY)
    command = jobs(long, "-o", tmp_path / "aa.xtc", "--model", weights, "--resume")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    folder = folder_of(tmp_path / "aa.xtc")
    while not list(folder.glob("0*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    began = time.perf_counter()
    os.killpg(process.pid, number)
    said = process.communicate()[1]
    assert time.perf_counter() - began < 15
    assert process.returncode == 128 + number, said
    assert said.strip().startswith("stopped; ")
    assert re.search(r"of 1240 frames are done and kept in", said), said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 2
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "aa.xtc").read_bytes() == straight.read_bytes()


def test_threads_of_one_worker_take_turns(folder, weights, straight):
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=4, processes=False,
                                 dashboard_address="127.0.0.1:0") as local,
        distributed.Client(local) as client,
    ):  # fmt: skip
        before = torch.get_num_threads()
        backmap(folder / "cg.xtc", folder / "aa.xtc", weights, **DRY, client=client)
        torch.set_num_threads(before)
    assert (folder / "aa.xtc").read_bytes() == straight.read_bytes()
