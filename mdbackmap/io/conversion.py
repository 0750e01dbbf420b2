"""Whole conversions: from coarse-grained files to all-atom files."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import MDAnalysis as mda
import numpy as np

from mdbackmap import __version__, memory
from mdbackmap.errors import FrameError, ModelError, WorkerError
from mdbackmap.io.reader import independent
from mdbackmap.io.segments import Job, Run, Tick, check_folder, convert_segments, refuse_unfinished
from mdbackmap.io.simulation import check_simulation, write_notes, write_simulation
from mdbackmap.io.source import CGSource
from mdbackmap.io.topology import blank_universe
from mdbackmap.io.transformation import Mapping, Models, inspected, lay_out
from mdbackmap.io.writing import Outcome, fits_pdb, plan_outputs
from mdbackmap.mapping.system import System
from mdbackmap.pipeline import CHUNK_SIZE, Backmapper, Options
from mdbackmap.structure import Frame

if TYPE_CHECKING:
    from distributed import Client

_DECIDERS = ("MDAnalysis", "numpy", "torch")
"""Packages that decide on the last digits."""


@dataclass(frozen=True)
class Conversion:
    """What `backmap` did.

    Attributes
    ----------
    output : Path
    topology : Path or None
        The matching topology; None where the output names its atoms.
    outcome : Outcome
        How many frames were written, and which failed.
    source : CGSource
    backmapper : Backmapper
    written : dict of Path to str
        Other files that were written, and what they are.
    """

    output: Path
    topology: Path | None
    outcome: Outcome
    source: CGSource
    backmapper: Backmapper
    written: dict[Path, str] = field(default_factory=dict)

    @property
    def system(self) -> System:
        """What was backmapped."""
        return self.backmapper.layout

    @property
    def n_atoms(self) -> int:
        return len(self.backmapper.atoms)


def backmap(
    cg: str | Path | mda.Universe, output: str | Path, model: Models = None,
    mapping: Mapping = "martini3", *, topology: str | Path | None = None,
    select: str | None = None, start: int | None = None, stop: int | None = None,
    step: int | None = None, topology_out: str | Path | None = None, skip_unknown: bool = False,
    jobs: int = 1, client: Client | str | Path | None = None, resume: bool = False,
    restart: bool = False, tick: Tick | None = None, max_memory: float | None = None,
    write_topology: bool = False, **options: Any,
) -> Conversion:  # fmt: skip
    """Convert a coarse-grained trajectory into an all-atom one, as ``mdbackmap convert`` does.

    Parameters
    ----------
    cg : str, Path or MDAnalysis.Universe
        A trajectory or structure; a Universe is copied with its transformations and not touched.
    output : str or Path
        Trajectory to write.
    model, mapping, select, skip_unknown
        As in `mdbackmap.universe`.
    topology : str or Path, optional
        Topology of the beads; by default the file beside the trajectory that fits it.
    start, stop, step : int, optional
        Frames to convert.
    topology_out : str or Path, optional
        All-atom topology to write; by default beside the output, unless that names its atoms: a
        PDB file, or mmCIF where names of residues are too long for one.
    jobs : int
        Processes to share the work on this machine. Scripts that ask for several must guard their
        top level with ``if __name__ == "__main__":``.
    client : distributed.Client, str or Path, optional
        A Dask cluster to do the work instead, or the address or file of its scheduler. Its workers
        must see inputs and outputs under the same names.
    resume : bool
        Go on with what an earlier conversion left unfinished, if there is anything.
    restart : bool
        Forget what an earlier conversion left unfinished.
    tick : callable, optional
        Told the frames done and the frames there are.
    max_memory : float, optional
        Bytes that all processes of this machine, or every worker of a ``client``, may take;
        chooses the ``chunk_size``.
    write_topology : bool
        Also write files to simulate with; needs the option ``force_field``.
    **options
        Fields of `mdbackmap.Options`.

    Returns
    -------
    Conversion
        Frames that failed are in its ``outcome``; the others were written.

    Raises
    ------
    InputFileError, UnknownBeadError, ModelError
    OutputFileError
        The output cannot be written, or is unfinished and neither ``resume`` nor ``restart`` say
        what to do.
    FrameError
        No frame could be written.
    MemoryLimitError
        The system cannot fit into ``max_memory``.
    WorkerError
        Workers cannot be had, or die.

    Notes
    -----
    Interrupted, it keeps what is done in a folder beside the output (``OUTPUT.part``).

    Examples
    --------
    >>> mdbackmap.backmap("cg.xtc", "aa.xtc", jobs=4, resume=True)  # doctest: +SKIP
    """
    output = Path(output)
    source = _source(cg, topology, select)
    frames = source.choose(start, stop, step)
    names = plan_outputs(output, topology_out, len(frames), source.files)
    check_folder(output)
    if not (resume or restart):
        refuse_unfinished(output)
    with _runner(jobs, client) as run:
        asked = Options(**options)
        system = lay_out(source, mapping, skip_unknown=skip_unknown, solvent=asked.solvent)
        if max_memory is not None:
            share = max_memory / (jobs + 1 if jobs > 1 else 1)
            largest = CHUNK_SIZE if asked.device == "cpu" else system.n_beads
            solvent = system.solvent
            n_solvent = solvent.n_atoms(hydrogens=asked.hydrogens) if solvent else 0
            options["chunk_size"] = memory.chunk_size(
                system.n_beads, system.n_atoms, share, largest, n_solvent
            )
        backmapper = inspected(Backmapper(system, model, Options(**options)), source)
        together = backmapper.together
        if max_memory is not None:
            together = memory.frames(system.n_beads, system.n_atoms, share, together,
                                     options["chunk_size"], n_solvent)  # fmt: skip
        if topology_out is None and names and not fits_pdb(backmapper.atoms):
            names = plan_outputs(output, names.with_suffix(".cif"), len(frames), source.files)
        if write_topology:
            check_simulation(backmapper)
        blank = functools.partial(blank_universe, system, backmapper.atoms)
        work = Atoms(backmapper)
        job = Job(source.read, work, blank, frames, len(backmapper.atoms), output,
                  source.dt * frames.step, note_of=work.note, many=work.many,
                  together=together)  # fmt: skip
        facts = _asked(source, frames, output, names, backmapper)
        outcome = convert_segments(
            job, names, facts, resume=resume, restart=restart, tick=tick, run=run
        )
    written = {}
    if outcome.notes:
        written |= write_notes(output, outcome.notes)
    if write_topology:
        written |= write_simulation(output, names, backmapper)
    return Conversion(output, names, outcome, source, backmapper, written)


def _source(
    cg: str | Path | mda.Universe, topology: str | Path | None, select: str | None
) -> CGSource:
    if not isinstance(cg, mda.Universe):
        return CGSource.open(cg, topology, select)
    source = CGSource(independent(cg), select)
    given = [cg.filename, *getattr(cg.trajectory, "filenames", [cg.trajectory.filename])]
    source.files = tuple(Path(str(f)) for f in given if f and Path(str(f)).is_file())
    return source


@contextmanager
def _runner(jobs: int, client: Client | str | Path | None) -> Iterator[Run | None]:
    """Give what runs segments elsewhere; None: here."""
    if client is None and jobs == 1:
        yield None
        return
    if importlib.util.find_spec("distributed") is None:
        raise WorkerError("several processes need Dask: pip install 'mdbackmap[parallel]'")
    from mdbackmap.io import parallel

    with parallel.workers(jobs, client) as run:
        yield run


class Atoms:
    """Makes the atoms of a frame of a trajectory, in any process.

    Parameters
    ----------
    backmapper : Backmapper
    """

    def __init__(self, backmapper: Backmapper) -> None:
        self.backmapper = backmapper
        self.weights = weights_of(backmapper)
        self._checked = True

    def __call__(self, frame: Frame) -> np.ndarray:
        """Return positions, shape (n_atoms, 3), Å.

        Raises
        ------
        FrameError
        ModelError
            The weights that are found here are not those of the process that sent this.
        """
        (found,) = self.many([frame])
        if isinstance(found, FrameError):
            raise found
        return found

    def many(self, frames: Sequence[Frame]) -> list[np.ndarray | FrameError]:
        """Return the positions of several frames, or why there are none; see a call."""
        if not self._checked:
            self._check()
        source = self.backmapper.layout.file_beads
        return self.backmapper.many(
            [frame.positions[source] for frame in frames], [frame.box for frame in frames],
            [frame.index for frame in frames],
        )  # fmt: skip

    def note(self, frame: Frame) -> dict[str, Any] | None:
        """Return how a frame relaxed, where it did."""
        stage = self.backmapper.stage
        found = stage.results.pop(frame.index, None) if stage else None
        return found and {"frame": frame.index, "time_ps": frame.time, **found.row()}

    def _check(self) -> None:
        found = weights_of(self.backmapper)
        if found != self.weights:
            other = [name for name in found if found[name] != self.weights.get(name)]
            raise ModelError(f"model {', '.join(other)}: other weights here than where it began")
        self._checked = True

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checked": False}


def weights_of(backmapper: Backmapper) -> dict[str, str]:
    """Return a digest of the weights of every model in use, by name."""
    return {model.name: _digest(model.checkpoint.network.state_dict())
            for model in backmapper.networks}  # fmt: skip


def _asked(
    source: CGSource, frames: range, output: Path, names: Path | None, backmapper: Backmapper
) -> dict[str, Any]:
    """Return whatever decides on the result, for a later process to compare."""
    options = dataclasses.asdict(backmapper.options)
    return {
        "input": {str(path.resolve()): _stamp(path) for path in source.files},
        "transformations": [
            type(t).__qualname__ for t in source.universe.trajectory.transformations
        ],
        "beads": _digest(source.index),
        "frames": str(frames),
        "topology": str(names and names.resolve()),
        "option": {name: _told(value) for name, value in options.items()},
        "weights": weights_of(backmapper),
        "mappings and what they make of the beads": _digest(backmapper.system),
        "states of residues": _digest(backmapper.atoms),
        "kind of beads": backmapper.noise,
        "cis peptides": _digest(backmapper.backbone.cis),
        "version": {"mdbackmap": __version__, **{name: version(name) for name in _DECIDERS}},
    }  # fmt: skip


def _told(value: Any) -> Any:
    """Return an option as JSON can hold it; of a file also what changes when it does."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_told(part) for part in value]
    named = isinstance(value, (str, Path)) and Path(value).is_file()
    return f"{value} ({_stamp(Path(value))})" if named else str(value)


def _stamp(path: Path) -> str:
    """Return what changes when a file does."""
    there = path.stat()
    changed = datetime.fromtimestamp(there.st_mtime, UTC)
    return f"{there.st_size} bytes of {changed:%Y-%m-%d %H:%M:%S.%f} UTC"


def _digest(thing: Any) -> str:
    """Return a short digest of arrays, and of what is made of arrays."""
    total = hashlib.sha256()
    _feed(total, thing)
    return total.hexdigest()[:16]


def _feed(total: Any, thing: Any) -> None:
    if dataclasses.is_dataclass(thing):
        names = [f.name for f in dataclasses.fields(thing) if f.name != "source"]
        thing = {name: getattr(thing, name) for name in names}
    if hasattr(thing, "model_dump"):
        thing = thing.model_dump()
    if isinstance(thing, dict):
        thing = [part for pair in thing.items() for part in pair]
    if hasattr(thing, "detach"):
        thing = thing.detach().cpu().numpy()
    if isinstance(thing, np.ndarray) and thing.dtype != object:
        total.update(f"{thing.dtype}{thing.shape}".encode())
        total.update(np.ascontiguousarray(thing).view(np.uint8))
    elif isinstance(thing, Sequence) and not isinstance(thing, (str, bytes)):
        total.update(f"{len(thing)}".encode())
        for part in thing:
            _feed(total, part)
    else:
        total.update(str(thing).encode())
