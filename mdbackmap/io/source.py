"""A coarse-grained input: found, opened, and handed out as arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import MDAnalysis as mda
import numpy as np
from MDAnalysis.coordinates.chain import ChainReader
from MDAnalysis.coordinates.memory import MemoryReader

from mdbackmap.errors import FrameError, InputFileError, listing
from mdbackmap.io import whole
from mdbackmap.io.files import frame, n_particles, open_universe, particles, quiet_guesses
from mdbackmap.structure import Frame, Particles

TOPOLOGY_SUFFIXES = (".tpr", ".psf", ".gro", ".pdb", ".pdbx", ".cif", ".gro.gz", ".pdb.gz")
"""Files that may name the particles of a trajectory, best first."""
_STRUCTURES = (".gro", ".pdb", ".gro.gz", ".pdb.gz", ".ent", ".crd", ".pqr", ".mol2")
_WITHOUT_FRAMES = (".tpr", ".psf", ".itp", ".top")
_UNREADABLE = (OSError, EOFError, ValueError, IndexError, RuntimeError, TypeError)
"""What MDAnalysis' readers raise where a frame is damaged."""


def is_structure(path: str | Path) -> bool:
    """Tell whether a file names its particles itself (and so needs no topology)."""
    return str(path).lower().endswith(_STRUCTURES)


def find_topology(trajectory: str | Path) -> Path:
    """Find the topology that belongs to a trajectory, by its particle count.

    A file of the same stem beside it that fits; else the one file there that does. Of several
    kinds the best wins (`TOPOLOGY_SUFFIXES`).

    Raises
    ------
    InputFileError
        Lists the candidates with their particle counts.
    """
    path = Path(trajectory)
    if path.is_file() and path.suffix.lower() in _WITHOUT_FRAMES:
        raise InputFileError(
            f"{path}: names particles but holds no frames\n"
            "  Hint: give the trajectory or a .gro, and this file with -s."
        )
    wanted = n_particles(path)
    beside = [p for p in sorted(path.parent.iterdir()) if _is_topology(p) and p != path]
    same = [p for p in beside if _stem(p) == _stem(path)]
    counts: dict[Path, int | None] = {}
    for group in (same, [p for p in beside if p not in same]):
        counts |= {p: _count(p) for p in group}
        fitting = [p for p in group if counts[p] == wanted]
        best = [p for p in fitting if _rank(p) == min(map(_rank, fitting))]
        if len(best) == 1:
            return best[0]
    rows = [f"{p.name}: {'unreadable' if n is None else f'{n} particles'}"
            for p, n in counts.items()]  # fmt: skip
    problem = "several files beside it fit" if best else "no file beside it fits"
    raise InputFileError(
        f"{path}: {problem} its {wanted} particles, so its topology is not clear\n"
        f"{listing(rows) or '  (the folder holds no topology)'}\n"
        "  Hint: name the topology with -s FILE."
    )


def _is_topology(path: Path) -> bool:
    name = path.name.lower()
    return path.is_file() and name.endswith(TOPOLOGY_SUFFIXES) and not name.startswith(".")


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem


def _rank(path: Path) -> int:
    return next(k for k, s in enumerate(TOPOLOGY_SUFFIXES) if path.name.lower().endswith(s))


def _count(path: Path) -> int | None:
    try:
        if path.name.endswith(".gro"):
            with path.open() as handle:
                handle.readline()
                return int(handle.readline())
        return len(open_universe(path).atoms)
    except (InputFileError, ValueError, OSError):
        return None


class CGSource:
    """A coarse-grained (or atomistic) Universe as arrays, with an optional selection.

    Of alternate locations in a PDB file, the first of each residue is used.

    Parameters
    ----------
    universe : MDAnalysis.Universe
    select : str, optional
        MDAnalysis selection of the beads to use; default all.
    name : str, optional
        What to call it in messages.

    Attributes
    ----------
    particles : Particles
        Names of the particles in use.
    index : ndarray, shape=(n,), int64, or None
        Their places in the Universe; None where all are used.
    files : tuple of Path
        What it was opened from.

    Raises
    ------
    InputFileError
        The selection is not valid or selects nothing.
    """

    def __init__(
        self, universe: mda.Universe, select: str | None = None, name: str | None = None
    ) -> None:
        self.universe = universe
        self.files: tuple[Path, ...] = ()
        table, chosen = particles(universe, name), universe.atoms
        if select is not None:
            try:
                with quiet_guesses():
                    chosen = universe.select_atoms(select)
            except (mda.SelectionError, AttributeError, ValueError, TypeError) as error:
                raise InputFileError(f"selection '{select}': {error}") from error
            if not len(chosen):
                raise InputFileError(f"selection '{select}' selects nothing of {table.source}")
        chosen = _one_conformer(chosen)
        self.index: np.ndarray | None = chosen.ix if len(chosen) < len(table) else None
        self.particles = table if self.index is None else _subset(table, self.index)

    @classmethod
    def open(
        cls, trajectory: str | Path, topology: str | Path | None = None, select: str | None = None
    ) -> CGSource:
        """Open files; the topology is looked for beside the trajectory where none is given."""
        if topology is None and not is_structure(trajectory):
            topology = find_topology(trajectory)
        if topology is None or Path(topology) == Path(trajectory):
            universe = open_universe(trajectory)
        else:
            universe = open_universe(topology, trajectory)
        _refuse_unread_frames(Path(trajectory))
        source = cls(universe, select, str(topology or trajectory))
        source.files = tuple(Path(p) for p in (trajectory, topology) if p)
        return source

    @property
    def dt(self) -> float:
        """Time between frames, ps; 1 where the file does not say."""
        with quiet_guesses():
            return float(self.universe.trajectory.dt) or 1.0

    @property
    def has_times(self) -> bool:
        """Whether the trajectory says when its frames were; structures do not."""
        return "time" in self.universe.trajectory.ts.data

    def frame(self) -> Frame:
        """Copy the current frame."""
        now = frame(self.universe.trajectory.ts)
        if self.index is not None:
            now.positions = now.positions[self.index]
        return now

    def read(self, k: int) -> Frame:
        """Go to frame ``k`` and copy it.

        Raises
        ------
        InputFileError
            It cannot be read.
        FrameError
            It was read, but its box is no cell.
        """
        trajectory = self.universe.trajectory
        offsets = self._offsets()
        try:
            if offsets is not None and not whole.is_sound(
                trajectory.filename, int(offsets[k]), trajectory.n_atoms
            ):
                raise ValueError("its header makes no sense")
            with quiet_guesses():
                trajectory[k]
        except _UNREADABLE as error:
            for path in self.files:
                if not path.exists():
                    raise InputFileError(f"{path}: is not there any more") from error
            hint = f"\n  Hint: use what is whole with --stop {k}." if k else ""
            raise InputFileError(
                f"{trajectory.filename}: frame {k} of {len(trajectory)} cannot be read "
                f"({error}); the file is truncated or damaged{hint}"
            ) from error
        return self.frame()

    def _offsets(self) -> np.ndarray | None:
        """Bytes where the frames of an XTC or TRR file start."""
        if isinstance(self.universe.trajectory, ChainReader):
            return None
        return getattr(getattr(self.universe.trajectory, "_xdr", None), "offsets", None)

    def sample(self, most: int = 10) -> list[Frame]:
        """Copy up to ``most`` usable frames spread over the trajectory; goes back to where it was.

        Frames that cannot be read, and those that hold what is no number as long as there are
        others, are left out: they are reported when it is their turn.
        """
        here = self.universe.trajectory.frame
        frames = []
        for k in np.unique(np.linspace(0, len(self.universe.trajectory) - 1, most).astype(int)):
            try:
                frames.append(self.read(int(k)))
            except (InputFileError, FrameError):
                continue
        with suppress(InputFileError, FrameError):
            self.read(here)
        return [f for f in frames if f.usable] or frames

    def usable_frame(self) -> Frame:
        """Copy the first usable frame of a sample; the current one if none is."""
        found = self.sample(1)
        if not (found and found[0].usable):
            found = self.sample() or found
        return found[0] if found else self.frame()

    def choose(self, start: int | None, stop: int | None, step: int | None) -> range:
        """Return the numbers of the frames of a slice.

        Raises
        ------
        InputFileError
            The slice is empty, or reaches a frame that is cut short.
        """
        trajectory = self.universe.trajectory
        n = len(trajectory)
        chosen = range(*slice(start, stop, step).indices(n))
        if not chosen:
            given = {"--start": start, "--stop": stop, "--step": step}
            options = " ".join(f"{k} {v}" for k, v in given.items() if v is not None)
            raise InputFileError(f"{trajectory.filename}: {options} leaves none of its {n} frames")
        if self.files and not isinstance(trajectory, (ChainReader, MemoryReader)):
            self._refuse_cut_frames(chosen, open_end=stop is None)
        return chosen

    def _refuse_cut_frames(self, chosen: range, *, open_end: bool) -> None:
        trajectory, offsets = self.universe.trajectory, self._offsets()
        last = int(offsets[-1]) if offsets is not None else None
        n_whole, complete = whole.whole_frames(trajectory.filename, len(trajectory), last)
        if not complete and (open_end or max(chosen) >= n_whole):
            raise InputFileError(
                f"{trajectory.filename}: the file is cut short after {n_whole} whole frames\n"
                f"  Hint: use them with --stop {n_whole}."
            )

    def frames(
        self, start: int | None = None, stop: int | None = None, step: int | None = None
    ) -> Iterator[Frame]:
        """Yield the frames of a slice; see `choose` and `read` for what they raise."""
        for k in self.choose(start, stop, step):
            yield self.read(k)


def _refuse_unread_frames(path: Path) -> None:
    """Refuse a .gro of several frames: MDAnalysis reads the first and says nothing of the others.

    Raises
    ------
    InputFileError
    """
    if not path.name.lower().endswith(".gro"):
        return
    with path.open("rb") as handle:
        handle.readline()
        for _ in range(int(handle.readline()) + 1):
            handle.readline()
        if handle.readline().strip():
            raise InputFileError(
                f"{path}: holds several frames, of which only the first could be read\n"
                "  Hint: turn it into a trajectory: gmx trjconv -f FILE.gro -o FILE.xtc"
            )


def _one_conformer(atoms: mda.AtomGroup) -> mda.AtomGroup:
    """Leave out alternate locations but the first of each residue."""
    letters = getattr(atoms, "altLocs", np.zeros(0))
    marked = np.flatnonzero(letters != "")
    if not len(marked):
        return atoms
    residues, first = np.unique(atoms.resindices[marked], return_index=True)
    kept = np.full(atoms.resindices.max() + 1, "", dtype=object)
    kept[residues] = letters[marked[first]]
    return atoms[(letters == "") | (letters == kept[atoms.resindices])]


def _subset(table: Particles, index: np.ndarray) -> Particles:
    bonds = table.bonds
    if bonds is not None:
        place = np.full(len(table), -1)
        place[index] = np.arange(len(index))
        bonds = place[bonds]
        bonds = bonds[(bonds >= 0).all(axis=1)]
    return dataclasses.replace(
        table, names=table.names[index], resnames=table.resnames[index],
        resids=table.resids[index], segids=table.segids[index], bonds=bonds,
    )  # fmt: skip
