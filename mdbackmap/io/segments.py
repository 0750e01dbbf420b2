"""Conversions piece by piece, so that what is done stays done.

A trajectory is cut into segments of consecutive frames. Each is converted into a file of its own
in a folder beside the output (``aa.xtc.part``), here or by any process that sees the folder, and
joined to the output in order. A checkpoint in the folder says what was asked and how much of it is
done, and is always behind what is on the disk, never ahead; so the work can be cut off at any
moment and go on from there. Outputs get their names when all is complete.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import MDAnalysis as mda
import numpy as np

from mdbackmap.errors import FrameError, MdbackmapError, OutputFileError, listing
from mdbackmap.io.joining import checksum, joiner, to_disk
from mdbackmap.io.writing import NAMELESS, FrameWriter, Outcome, Parts, check_names
from mdbackmap.memory import keep_freed
from mdbackmap.structure import Frame
from mdbackmap.threads import Behind

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LEAST_ATOMS, MOST_ATOMS = 30_000, 1_000_000
"""Atoms, of all its frames together, that a segment should have: enough that handing it out does
not count, and some seconds of work."""
SEGMENTS = 64
"""Into so many pieces a long trajectory is cut: enough for many workers to end together."""
VERSION = 1
"""Of the checkpoint."""
_CHECKPOINT, _LOCK = "checkpoint.json", "lock"
_OURS = re.compile(r"\d{6,}-|start-|trajectory\.|topology\.|\.part-|checkpoint\.json$")
_WAITS = (0, 1, 2, 4, 8, 16)
"""Seconds after which a file that another machine wrote is looked for again."""

T, R = TypeVar("T"), TypeVar("R")
Tick = Callable[[int, int], None]
"""Told the frames done and the frames there are."""


def segment_size(n_frames: int, n_atoms: int, together: int = 1) -> int:
    """Return the number of frames in a segment, a multiple of those worked out together.

    >>> segment_size(500, 1_231), segment_size(100_000, 1_231), segment_size(7, 4_000_000)
    (24, 812, 1)
    >>> segment_size(500, 1_231, 16), segment_size(7, 4_000_000, 2)
    (32, 2)
    """
    least, most = (max(1, atoms // n_atoms) for atoms in (LEAST_ATOMS, MOST_ATOMS))
    size = min(most, max(least, n_frames // SEGMENTS))
    return -(-size // together) * together


def folder_of(output: str | Path) -> Path:
    """Return the folder where the unfinished parts of an output are."""
    return Path(f"{output}.part")


@dataclass
class Segment:
    """What is known of a segment that is converted.

    Attributes
    ----------
    frames : list of int
        Its first and the one behind its last, counted among the frames asked for.
    size, checksum : int
        Of its file, bytes.
    box : list of float, Å and degrees, or None
        Of its first frame.
    first : int
        Place of the first frame that was written.
    outcome : Outcome
    """

    frames: list[int]
    size: int = 0
    checksum: int = 0
    box: list[float] | None = None
    first: int = -1
    outcome: Outcome = field(default_factory=Outcome)

    @classmethod
    def read(cls, path: Path) -> Segment | None:
        """Read from the file that `Job.convert` writes; None where it is none."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "outcome": Outcome(**values["outcome"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclass
class Job:
    """What it takes to convert any segment of a trajectory; fit to be pickled.

    Attributes
    ----------
    read : callable
        Number of a frame → `Frame`.
    work : callable
        `Frame` → positions, shape (n_atoms, 3), Å.
    blank : callable
        Returns the Universe that is written, with one frame in memory.
    frames : range
        Numbers of the frames.
    n_atoms : int
    output : Path
        Final name; its suffix decides on the format.
    dt : float, ps
        Time between frames.
    size : int
        Frames per segment; 0: chosen here.
    token : str
        In the names of segments: files of a job that was given up are none of this one's.
    note_of : callable, optional
        `Frame` → what is noted of it, after ``work``; None: nothing.
    many : callable, optional
        Frames → for each what ``work`` returns or the `FrameError` it raises; None: one by one.
    together : int
        Frames that ``many`` is given at once.
    """

    read: Callable[[int], Frame]
    work: Callable[[Frame], np.ndarray]
    blank: Callable[[], mda.Universe]
    frames: range
    n_atoms: int
    output: Path
    dt: float = 1.0
    size: int = 0
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    note_of: Callable[[Frame], dict | None] | None = None
    many: Callable[[Sequence[Frame]], Iterable[np.ndarray | FrameError]] | None = None
    together: int = 1

    def __post_init__(self) -> None:
        self.output = Path(self.output)
        self.size = self.size or segment_size(len(self.frames), self.n_atoms, self.together)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("named", "universe")}

    @functools.cached_property
    def named(self) -> mda.Universe:
        """The Universe that is written."""
        return self.blank()

    @functools.cached_property
    def universe(self) -> mda.Universe:
        """The same without names where the format has none."""
        if str(self.output).lower().endswith(NAMELESS):
            return mda.Universe.empty(self.n_atoms, trajectory=True)
        return self.named

    @property
    def folder(self) -> Path:
        """Where the parts are, which other processes see by this name."""
        return folder_of(self.output)

    @property
    def n_segments(self) -> int:
        return -(-len(self.frames) // self.size)

    def places(self, k: int) -> range:
        """Places of the frames of segment ``k`` among all frames."""
        return range(k * self.size, min((k + 1) * self.size, len(self.frames)))

    def path(self, k: int) -> Path:
        """The file of segment ``k``; beside it stands what is known of it."""
        return self.folder / f"{k:06d}-{self.token}{_suffix(self.output)}"

    def note(self, k: int) -> Path:
        """The file that says what is known of segment ``k``; it appears last."""
        return self.folder / f"{k:06d}-{self.token}.json"

    @property
    def start(self) -> Path:
        """Positions of the first frame that was written, if the first segment has any."""
        return self.folder / f"start-{self.token}.npy"

    def convert(self, k: int, count: Callable[[int], None] | None = None) -> None:
        """Convert a segment into its file.

        Frames that raise `FrameError` are left out and counted.

        Parameters
        ----------
        count : callable, optional
            Told of every frame that is done: 1.

        Raises
        ------
        InputFileError
            A frame cannot be read.
        OutputFileError
        """
        keep_freed()
        places = self.places(k)
        done = Segment([places.start, places.stop])
        with Parts() as parts:
            path = parts.add(self.path(k))
            with self._writer(path) as writer, Behind() as behind:
                for first in range(places.start, places.stop, self.together):
                    batch = range(first, min(first + self.together, places.stop))
                    answers = list(self._answers(batch))
                    behind.do(self._take, answers, writer, done, parts, count)
            with _written(self.output):
                path.touch()
                done.size, done.checksum = path.stat().st_size, checksum(path)
                parts.add(self.note(k)).write_text(json.dumps(asdict(done)), encoding="utf-8")

    def _take(
        self, answers: list[tuple[int, Frame | None, np.ndarray | FrameError]],
        writer: FrameWriter, done: Segment, parts: Parts, count: Callable[[int], None] | None,
    ) -> None:  # fmt: skip
        for place, frame, answer in answers:
            if isinstance(answer, FrameError):
                done.outcome.leave_out(self.frames[place], answer)
            else:
                self._write(place, frame, answer, writer, done, parts)
            if count:
                count(1)

    def _answers(
        self, places: range
    ) -> Iterator[tuple[int, Frame | None, np.ndarray | FrameError]]:
        """Read some frames and work on them; in order."""
        read = [_or_error(self.read, self.frames[place]) for place in places]
        frames = [frame for frame in read if not isinstance(frame, FrameError)]
        many = self.many or (lambda few: [_or_error(self.work, frame) for frame in few])
        found = iter(many(frames) if frames else ())
        for place, frame in zip(places, read, strict=True):
            if isinstance(frame, FrameError):
                yield place, None, frame
            else:
                yield place, frame, next(found)

    def _write(
        self, place: int, frame: Frame, positions: np.ndarray, writer: FrameWriter, done: Segment,
        parts: Parts,
    ) -> None:  # fmt: skip
        writer.write(frame, positions, place)
        if done.first < 0:
            done.first = place
            box = writer.universe.trajectory.ts.dimensions
            done.box = None if box is None else box.tolist()
            if place < self.size:
                with _written(self.output):
                    np.save(parts.add(self.start), positions)
        done.outcome.written += 1
        if self.note_of and (said := self.note_of(frame)):
            done.outcome.notes.append(said)

    def _writer(self, path: Path) -> FrameWriter:
        return FrameWriter(self.output, path, self.universe, len(self.frames), self.dt, bare=True)


def _or_error(make: Callable[[T], R], of: T) -> R | FrameError:
    """What is made of something, or the `FrameError` this raises."""
    try:
        return make(of)
    except FrameError as error:
        return error


class Run(Protocol):
    """Converts segments of a job, wherever."""

    def __call__(
        self, job: Job, todo: Iterable[int], count: Callable[[int], None]
    ) -> Iterator[int]:
        """Yield the number of each segment when it is done; tell ``count`` of frames done."""


@dataclass
class Checkpoint:
    """What was asked, and how much of it is done.

    Attributes
    ----------
    asked : dict
        Whatever decides on the result, as JSON holds it.
    size : int
        Frames per segment.
    token : str
        See `Job`.
    joined : int
        Segments that are in the output.
    n_bytes : int
        Bytes of the output that hold them.
    outcome : Outcome
        Of their frames.
    complete : bool
        The outputs wait to get their names.
    """

    asked: dict[str, Any]
    size: int
    token: str
    joined: int = 0
    n_bytes: int = 0
    outcome: Outcome = field(default_factory=Outcome)
    complete: bool = False
    version: int = VERSION

    @classmethod
    def read(cls, path: Path) -> Checkpoint | None:
        """Read a checkpoint; None where there is none that can be understood."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found = cls(**{**values, "outcome": Outcome(**values["outcome"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if found.version == VERSION else None

    def write(self, path: Path) -> None:
        """Write it so that the old one or the new one is there, whatever happens."""
        with Parts() as parts:
            part = parts.add(path)
            part.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
            to_disk(part)
        to_disk(path.parent)


class Assembly:
    """Puts the segments of a job together and keeps the checkpoint.

    Use it as a context manager. Where it is left by an exception, what is done is kept and a note
    of the exception says so; with nothing done, or nothing ``asked`` that could be compared, the
    folder is removed.

    Parameters
    ----------
    job : Job
        Gets the segment size of the work that is continued.
    topology : Path or None
        Where the first frame is written with names.
    asked : dict, optional
        Whatever decides on the result, as JSON holds it.
    resume : bool
        Continue where a folder is found.
    restart : bool
        Forget what is found.

    Raises
    ------
    OutputFileError
        Another process is at it, unfinished work is found and nothing said of it, or what was
        asked is not what is asked now.
    """

    def __init__(
        self, job: Job, topology: Path | None, asked: dict[str, Any] | None = None, *,
        resume: bool = False, restart: bool = False,
    ) -> None:  # fmt: skip
        self.job, self.topology = job, topology
        self.asked = json.loads(json.dumps(asked or {}))
        self.resume, self.restart = resume, restart
        self.removed = False
        self.ready: set[int] = set()
        for path in filter(None, (job.output, topology)):
            check_names(path, job.named)
        whole = self.job.folder / f"trajectory{_suffix(job.output)}"
        self.join = joiner(whole, lambda: job.universe, len(job.frames), job.dt)
        self.parts = {whole: job.output}
        if topology:
            self.parts[job.folder / f"topology{_suffix(topology)}"] = topology

    @property
    def place(self) -> Path:
        """The checkpoint's file."""
        return self.job.folder / _CHECKPOINT

    def __enter__(self) -> Assembly:
        check_folder(self.job.output)
        new = not self.job.folder.exists()
        with _written(self.job.output):
            self.job.folder.mkdir(exist_ok=True)
            self._lock = _lock(self.job.folder)
            try:
                self._begin()
            except BaseException:
                if new:
                    with suppress(OSError):
                        self._remove()
                self._lock.close()
                raise
        return self

    def _begin(self) -> None:
        job, found = self.job, None if self.restart else unfinished(self.job.output)
        if found:
            if not self.resume:
                refuse_unfinished(job.output)
            _refuse_differences(job.output, found.asked, self.asked)
            self.state, job.size, job.token = found, found.size, found.token
            if not found.complete:
                self.join.start_from(found.n_bytes)
        else:
            self._clear()
            self.state = Checkpoint(self.asked, job.size, job.token)
            self.state.write(self.place)
        for leftover in job.folder.glob(".part-*"):
            leftover.unlink(missing_ok=True)

    def todo(self) -> list[int]:
        """Return the segments still to be converted; forgets those that were written badly."""
        job, left = self.job, []
        listed = {path.name for path in job.folder.iterdir()}
        for k in range(self.state.joined, 0 if self.state.complete else job.n_segments):
            # What is not listed is not asked for: a network file system may remember the answer.
            if {job.note(k).name, job.path(k).name} <= listed and self._is_sound(k):
                self.ready.add(k)
            else:
                left.append(k)
        return left

    def _is_sound(self, k: int) -> bool:
        places, path, found = self.job.places(k), self.job.path(k), Segment.read(self.job.note(k))
        if found is None or found.frames != [places.start, places.stop]:
            return False
        return (path.stat().st_size, checksum(path)) == (found.size, found.checksum)

    @property
    def frames_done(self) -> int:
        """Frames that need not be looked at again."""
        if self.state.complete:
            return len(self.job.frames)
        return sum(len(self.job.places(k)) for k in {*range(self.state.joined), *self.ready})

    def take(self, *converted: int) -> None:
        """Join the segments that are converted and next in turn."""
        self.ready.update(converted)
        while self.state.joined in self.ready:
            with _written(self.job.output):
                self._join(self.state.joined)

    def _join(self, k: int) -> None:
        state, path, done = self.state, self.job.path(k), _patiently(self.job.note(k))
        if checksum(path) != done.checksum:
            self.job.note(k).unlink()
            raise OutputFileError(f"{path}: is not what was written; is the disk damaged?")
        if done.outcome.written:
            if not state.outcome.written:
                self._write_topology(done)
            box = None if done.box is None else np.array(done.box, dtype=np.float32)
            state.n_bytes = self.join.add(path, box)
        state.joined += 1
        state.outcome.add(done.outcome)
        state.write(self.place)
        self.ready.discard(k)
        if state.n_bytes:
            path.unlink()

    def _write_topology(self, done: Segment) -> None:
        if self.topology is None:
            return
        frame = self.job.read(self.job.frames[done.first])
        positions = np.load(self.job.start) if self.job.start.exists() else self.job.work(frame)
        part = next(part for part, final in self.parts.items() if final == self.topology)
        with FrameWriter(self.topology, part, self.job.named) as writer:
            writer.write(frame, positions)
        to_disk(part)

    def finish(self) -> Outcome:
        """Complete the outputs, give them their names and remove the folder.

        Raises
        ------
        FrameError
            No frame could be written.
        """
        state = self.state
        if not state.outcome.written:
            self._remove()
            reasons = "\n".join(state.outcome.messages[:5])
            raise FrameError(f"no frame could be written:\n{reasons}")
        with _written(self.job.output):
            if not state.complete:
                pieces = [self.job.path(k) for k in range(self.job.n_segments)]
                pieces = [path for path in pieces if path.exists() and path.stat().st_size]
                self.join.finish(pieces, state.outcome.written)
                to_disk(self.join.part)
                state.complete = True
                state.write(self.place)
            for part, final in self.parts.items():
                if part.exists():
                    _rename(part, final)
        self._remove()
        return state.outcome

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_) -> None:
        try:
            if error is not None and not self.job.folder.exists():
                if not self.removed:
                    error.add_note(
                        f"{self.job.folder} is not there any more, and what was done with it"
                    )
            elif error is not None:
                with suppress(OSError):
                    # Workers may have done more than has been heard of.
                    self.todo()
                done = self.frames_done
                if not done or not self.asked:
                    with suppress(OSError):
                        self._remove()
                else:
                    error.add_note(
                        f"{done} of {len(self.job.frames)} frames are done and kept in "
                        f"{self.job.folder}\n  Hint: the same command with --resume goes on."
                    )
        finally:
            self._lock.close()

    def _clear(self) -> None:
        """Remove what was written here, except the lock; the checkpoint last."""
        for path in sorted(self.job.folder.iterdir(), key=lambda path: path == self.place):
            if _OURS.match(path.name):
                path.unlink(missing_ok=True)

    def _remove(self) -> None:
        self.removed = True
        self._clear()
        (self.job.folder / _LOCK).unlink(missing_ok=True)
        # Somebody else's files are left alone, and with them the folder.
        if not any(self.job.folder.iterdir()):
            self.job.folder.rmdir()


def convert_segments(
    job: Job, topology: Path | None = None, asked: dict[str, Any] | None = None, *,
    resume: bool = False, restart: bool = False, tick: Tick | None = None,
    run: Run | None = None,
) -> Outcome:  # fmt: skip
    """Convert all segments of a job and put them together.

    Parameters
    ----------
    topology, asked, resume, restart
        As in `Assembly`.
    tick : callable, optional
        Told the frames done and the frames there are.
    run : callable, optional
        Converts segments elsewhere than here.

    Raises
    ------
    FrameError
        No frame could be written.
    InputFileError, OutputFileError
    """
    with Assembly(job, topology, asked, resume=resume, restart=restart) as assembly:
        todo = assembly.todo()
        done = assembly.frames_done

        def count(more: int) -> None:
            nonlocal done
            done += more
            if tick:
                tick(done, len(job.frames))

        count(0)
        assembly.take()
        if todo:
            for k in (run or here)(job, todo, count):
                assembly.take(k)
        return assembly.finish()


def here(job: Job, todo: Iterable[int], count: Callable[[int], None]) -> Iterator[int]:
    """Convert segments in this process; see `Run`."""
    for k in todo:
        job.convert(k, count)
        yield k


def write_frames(
    frames: range, read: Callable[[int], Frame], work: Callable[[Frame], np.ndarray],
    universe: mda.Universe, output: str | Path, topology: str | Path | None = None, *,
    dt: float = 1.0, tick: Tick | None = None,
) -> Outcome:  # fmt: skip
    """Write ``work(frame)`` of every frame, and the first also as a topology; or nothing at all.

    Parameters
    ----------
    frames, read, work, dt
        As in `Job`.
    universe : MDAnalysis.Universe
        What is written, with one frame in memory.
    tick : callable, optional
        Told the frames done and the frames there are.

    Raises
    ------
    FrameError
        No frame could be written.
    InputFileError, OutputFileError
    """
    job = Job(read, work, lambda: universe, frames, len(universe.atoms), Path(output), dt)
    return convert_segments(job, Path(topology) if topology else None, tick=tick)


def unfinished(output: str | Path) -> Checkpoint | None:
    """Return the checkpoint of unfinished work; None where there is nothing worth to go on with."""
    folder = folder_of(output)
    found = Checkpoint.read(folder / _CHECKPOINT)
    if found is None:
        return None
    any_done = found.joined or found.complete or any(folder.glob(f"*-{found.token}.json"))
    return found if any_done else None


def check_folder(output: str | Path) -> None:
    """Refuse a place where the unfinished parts of an output cannot be kept.

    Raises
    ------
    OutputFileError
    """
    folder = folder_of(output)
    if folder.exists() and not folder.is_dir():
        problem = "is no folder, but unfinished work would be kept there"
    elif folder.exists() and not os.access(folder, os.W_OK):
        problem = "unfinished work is kept there, but the folder cannot be written to"
    else:
        return
    raise OutputFileError(f"{folder}: {problem}\n  Hint: move it away, or choose another output.")


def refuse_unfinished(output: str | Path) -> None:
    """Refuse to begin where unfinished work would be lost.

    Raises
    ------
    OutputFileError
    """
    if unfinished(output):
        raise OutputFileError(
            f"{output}: an unfinished conversion of it is kept in {folder_of(output)}\n"
            "  Hint: --resume goes on with it, --restart forgets it and starts anew."
        )


def _refuse_differences(output: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to continue what was begun with something else.

    Raises
    ------
    OutputFileError
        Lists the differences.
    """
    old, new = _flat(before), _flat(now)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if keys:
        rows = [f"{key}: {old.get(key, 'nothing')} then, {new.get(key, 'nothing')} now"
                for key in keys]  # fmt: skip
        raise OutputFileError(
            f"{output}: what is kept in {folder_of(output)} was begun with something else\n"
            f"{listing(rows, 20)}\n"
            "  Hint: ask for the same as then, or forget what is kept with --restart."
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, with keys such as 'input: cg.xtc: bytes'."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}: ")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _lock(folder: Path) -> IO[str]:
    """Take a folder for this process, as long as the file returned stays open.

    Raises
    ------
    OutputFileError
        Another process has it.
    """
    while True:
        handle = (folder / _LOCK).open("a")
        if fcntl is None:
            return handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.close()
            raise OutputFileError(
                f"{folder}: another process is at work there; wait for it, or stop it"
            ) from error
        except OSError:
            # A network file system without locks: nothing to hold on to.
            return handle
        # Whoever had it may have removed the file meanwhile.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle.fileno()), (folder / _LOCK).stat()):
                return handle
        handle.close()


def _patiently(note: Path) -> Segment:
    """Read what is known of a segment that is converted.

    Raises
    ------
    OSError
        The file does not come to be seen.
    """
    for seconds in _WAITS:
        time.sleep(seconds)
        if found := Segment.read(note):
            return found
    raise OSError(errno.ENOENT, f"{note} cannot be seen from here; is the folder shared?")


@contextmanager
def _written(output: Path) -> Iterator[None]:
    """Turn what the operating system says into an error that names the output."""
    try:
        yield
    except MdbackmapError:
        raise
    except OSError as error:
        raise OutputFileError(f"{output}: cannot be written ({error})") from error


def _suffix(path: Path) -> str:
    """Return the end of a name that decides on the format, such as .pdb.gz.

    >>> _suffix(Path("run.1.PDB.gz")), _suffix(Path("run.1.xtc"))
    ('.pdb.gz', '.xtc')
    """
    ends = path.suffixes[-2:] if path.suffix.lower() in (".gz", ".bz2") else [path.suffix]
    return "".join(ends).lower()


def _rename(part: Path, final: Path) -> None:
    """Give a file its name, also in a folder on another disk."""
    try:
        part.replace(final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with Parts() as parts:
            copy = parts.add(final)
            shutil.copyfile(part, copy)
            to_disk(copy)
        part.unlink()
    to_disk(final.parent)
