"""A coarse-grained input: found, opened, and handed out as arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import MDAnalysis as mda
import numpy as np

from mdbackmap.errors import InputFileError, listing
from mdbackmap.io.files import frame, open_universe, particles
from mdbackmap.structure import Frame, Particles

TOPOLOGY_SUFFIXES = (".tpr", ".psf", ".gro", ".pdb", ".pdbx", ".cif", ".gro.gz", ".pdb.gz",
                     ".itp", ".top")  # fmt: skip
"""Files that may name the particles of a trajectory, best first."""
_STRUCTURES = (".gro", ".pdb", ".gro.gz", ".pdb.gz", ".ent", ".crd", ".pqr", ".mol2", ".xyz")


def is_structure(path: str | Path) -> bool:
    """Tell whether a file names its particles itself (and so needs no topology)."""
    return str(path).lower().endswith(_STRUCTURES)


def find_topology(trajectory: str | Path) -> Path:
    """Find the topology that belongs to a trajectory.

    A file of the same stem beside it; else the one file there whose particle count fits.

    Raises
    ------
    InputFileError
        Lists the candidates with their particle counts.
    """
    path = Path(trajectory)
    if not path.is_file():
        raise InputFileError(f"{path}: no such file")
    beside = sorted(p for p in path.parent.iterdir() if _is_topology(p) and p != path)
    same = [p for p in beside if _stem(p) == _stem(path)]
    if same:
        return min(same, key=lambda p: _rank(p))
    wanted = n_particles(path)
    counts = {p: _count(p) for p in beside}
    fitting = [p for p in beside if counts[p] == wanted]
    best = [p for p in fitting if _rank(p) == min(map(_rank, fitting))]
    if len(best) == 1:
        return best[0]
    rows = [f"{p.name}: {'unreadable' if n is None else f'{n} particles'}"
            for p, n in counts.items()]  # fmt: skip
    raise InputFileError(
        f"{path}: no topology of its name beside it, and "
        + ("several files fit" if best else "no file there fits")
        + f" its {wanted} particles\n{listing(rows) or '  (the folder holds no topology)'}\n"
        "  Hint: name the topology with -s FILE."
    )


def _is_topology(path: Path) -> bool:
    return path.is_file() and any(path.name.lower().endswith(s) for s in TOPOLOGY_SUFFIXES[:-2])


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name[: -len(Path(name).suffix)] if Path(name).suffix else name


def _rank(path: Path) -> int:
    return next(k for k, s in enumerate(TOPOLOGY_SUFFIXES) if path.name.lower().endswith(s))


def n_particles(trajectory: str | Path) -> int:
    """Return the number of particles in a trajectory's frames.

    Raises
    ------
    InputFileError
        The file cannot be read, or is no trajectory.
    """
    try:
        reader = mda.coordinates.core.get_reader_for(str(trajectory))
        return int(reader.parse_n_atoms(str(trajectory)))
    except Exception as error:  # any builtin on damaged or unknown files
        raise InputFileError(
            f"{trajectory}: cannot be read as a trajectory ({error})\n"
            "  Hint: give the topology with -s FILE."
        ) from error


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
    """A coarse-grained Universe as arrays, with an optional selection.

    Parameters
    ----------
    universe : MDAnalysis.Universe
    select : str, optional
        MDAnalysis selection of the beads to use; default all.
    name : str, optional
        What to call it in messages.

    Raises
    ------
    InputFileError
        The selection is not valid or selects nothing.
    """

    def __init__(
        self, universe: mda.Universe, select: str | None = None, name: str | None = None
    ) -> None:
        self.universe = universe
        table = particles(universe, name)
        self.index: np.ndarray | None = None
        if select:
            try:
                chosen = universe.select_atoms(select)
            except (mda.SelectionError, AttributeError, ValueError) as error:
                raise InputFileError(f"selection '{select}': {error}") from error
            if not len(chosen):
                raise InputFileError(f"selection '{select}' selects no bead of {table.source}")
            self.index = chosen.ix
            table = _subset(table, chosen.ix)
        self.particles = table

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
        return cls(universe, select, str(topology or trajectory))

    def frame(self) -> Frame:
        """Copy the current frame."""
        now = frame(self.universe.trajectory.ts)
        if self.index is not None:
            now.positions = now.positions[self.index]
        return now

    def sample(self, most: int = 10) -> list[Frame]:
        """Copy up to ``most`` frames spread over the trajectory; goes back to where it was."""
        trajectory = self.universe.trajectory
        here = trajectory.frame
        picked = np.unique(np.linspace(0, len(trajectory) - 1, most).astype(int))
        frames = []
        for k in picked:
            try:
                trajectory[int(k)]
            except (OSError, EOFError, ValueError, IndexError):
                # A damaged frame is reported when it is its turn.
                continue
            frames.append(self.frame())
        trajectory[here]
        return frames

    def frames(self, start: int | None, stop: int | None, step: int | None) -> Iterator[Frame]:
        """Yield frames of a slice.

        Raises
        ------
        InputFileError
            Names the first frame that cannot be read.
        """
        trajectory = self.universe.trajectory
        for k in range(*slice(start, stop, step).indices(len(trajectory))):
            try:
                trajectory[k]
            except (OSError, EOFError, ValueError, IndexError, RuntimeError) as error:
                raise InputFileError(
                    f"{trajectory.filename}: frame {k} of {len(trajectory)} cannot be read "
                    f"({error}); the file is truncated or damaged\n"
                    f"  Hint: convert what is whole with --stop {k}."
                ) from error
            yield self.frame()


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
