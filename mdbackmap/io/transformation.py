"""``u.trajectory.add_transformations(Backmap(...))`` and the Universes it works on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import MDAnalysis as mda
import numpy as np
from MDAnalysis.coordinates.memory import MemoryReader
from MDAnalysis.coordinates.timestep import Timestep
from MDAnalysis.transformations.base import TransformationBase

from mdbackmap.errors import StructureError
from mdbackmap.geometry.boxes import box_from_dimensions
from mdbackmap.io.reader import BackmapReader, LazyTimestep
from mdbackmap.io.source import CGSource
from mdbackmap.io.topology import atom_topology
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import System, from_beads
from mdbackmap.pipeline import Backmapper, Options

Mapping = str | Path | Sequence[str | Path]


def lay_out(
    source: CGSource, mapping: Mapping = "martini3", *, skip_unknown: bool = False
) -> System:
    """Lay out the system of a CG source; bead indices are those of the whole file."""
    names = [mapping] if isinstance(mapping, (str, Path)) else list(mapping)
    system = from_beads(
        source.particles, Library.load(names), source.frame(), skip_unknown=skip_unknown
    )
    if source.index is not None:
        system.bead_source[:] = source.index[system.bead_source]
    return system


def calibrated(backmapper: Backmapper, source: CGSource) -> Backmapper:
    """Let a backmapper learn the bead bond lengths of a source."""
    frames = source.sample()
    place = backmapper.system.bead_source
    if source.index is not None:
        place = np.searchsorted(source.index, place)
    backmapper.calibrate([f.positions[place] for f in frames], [f.box for f in frames])
    return backmapper


def universe(
    cg: mda.Universe, model: str | Path = "martini3", mapping: Mapping = "martini3",
    *, select: str | None = None, skip_unknown: bool = False, **options: Any,
) -> mda.Universe:  # fmt: skip
    """Return the all-atom Universe of a coarse-grained one.

    Frames are backmapped when they are looked at; nothing is written. The CG Universe is copied
    with its transformations and not touched.

    Parameters
    ----------
    cg : MDAnalysis.Universe
    model : str or Path
        Name of a shipped model or a weights file.
    mapping : str, Path or sequence of them
        Shipped mappings by name, files and folders by path; later ones win.
    select : str, optional
        Selection of the beads to use.
    skip_unknown : bool
        Leave out beads that no mapping knows instead of raising.
    **options
        Fields of `mdbackmap.Options`.

    Returns
    -------
    MDAnalysis.Universe
        Heavy atoms with names, elements, bonds, residues and chain letters.

    Raises
    ------
    UnknownBeadError, ModelError, InputFileError

    Examples
    --------
    >>> aa = mdbackmap.universe(mda.Universe("cg.tpr", "cg.xtc"))  # doctest: +SKIP
    """
    source = CGSource(cg, select)
    system = lay_out(source, mapping, skip_unknown=skip_unknown)
    backmapper = calibrated(Backmapper(system, model, Options(**options)), source)
    return _all_atom(cg, system, backmapper)


def carrier(
    topology: str | Path, trajectory: str | Path | None = None, mapping: Mapping = "martini3",
    *, select: str | None = None, skip_unknown: bool = False,
) -> mda.Universe:  # fmt: skip
    """Return an all-atom Universe over CG files whose atoms a `Backmap` transformation fills.

    Parameters are those of `universe`; the files are opened here.
    """
    source = CGSource.open(trajectory or topology, topology, select)
    system = lay_out(source, mapping, skip_unknown=skip_unknown)
    return _all_atom(source.universe, system, None, frames=source.sample())


def _all_atom(
    cg: mda.Universe, system: System, backmapper: Backmapper | None, *, live: bool = False,
    frames: list | None = None,
) -> mda.Universe:  # fmt: skip
    result = mda.Universe(atom_topology(system), to_guess=())
    name = str(getattr(cg.trajectory, "filename", None) or "memory")
    result.load_new(
        name, format=BackmapReader, cg=cg, system=system, backmapper=backmapper, live=live
    )
    if frames is not None:
        beads = [f.positions[system.bead_source] for f in frames]
        result.trajectory.ts.data["carrier"] = _Carrier(system, beads, [f.box for f in frames])
    return result


class _Carrier:
    """What a transformation needs to know of the Universe it is added to."""

    def __init__(self, system: System, beads: list[np.ndarray], boxes: list) -> None:
        self.system, self.beads, self.boxes = system, beads, boxes

    def __deepcopy__(self, memo: dict) -> _Carrier:
        return self


class Backmap(TransformationBase):
    """On-the-fly backmapping as an MDAnalysis transformation.

    Two ways to use it, both sound because no Timestep changes its number of atoms:

    * on an all-atom carrier: ``u = mdbackmap.carrier("cg.tpr", "cg.xtc")`` and
      ``u.trajectory.add_transformations(mdbackmap.Backmap())``;
    * on a CG Universe: ``backmap = mdbackmap.Backmap(u)``,
      ``u.trajectory.add_transformations(backmap)``; the CG Timestep is left alone and
      ``backmap.universe`` is an all-atom Universe in step with it. Transformations added before
      it, such as unwrap, are seen.

    Parameters
    ----------
    cg : MDAnalysis.Universe, optional
        The CG Universe it is added to; not needed on a carrier.
    model, mapping, select, skip_unknown, **options
        As in `mdbackmap.universe`. On a carrier the mapping is the carrier's.

    Raises
    ------
    StructureError
        Added to a CG Universe that was not given, or to one in memory (MDAnalysis transforms
        such a trajectory once, when it is added, so nothing would stay in step).
    """

    def __init__(
        self, cg: mda.Universe | None = None, model: str | Path = "martini3",
        mapping: Mapping = "martini3", *, select: str | None = None, skip_unknown: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(max_threads=None, parallelizable=True)
        self.model, self.options = model, Options(**options)
        self.universe: mda.Universe | None = None
        self.backmapper: Backmapper | None = None
        if cg is not None:
            if isinstance(cg.trajectory, MemoryReader):
                raise StructureError(
                    "Backmap on a Universe in memory would not stay in step; use "
                    "mdbackmap.universe(cg) instead"
                )
            source = CGSource(cg, select)
            system = lay_out(source, mapping, skip_unknown=skip_unknown)
            self.backmapper = calibrated(Backmapper(system, model, self.options), source)
            self.universe = _all_atom(cg, system, self.backmapper, live=True)

    def _transform(self, ts: Timestep) -> Timestep:
        if self.universe is not None:
            self.universe.trajectory.take(ts)
            return ts
        held = ts.data.get("carrier")
        if not isinstance(ts, LazyTimestep) or held is None:
            raise StructureError(
                "Backmap was added to a coarse-grained Universe it does not know: write "
                "Backmap(u), or add it to mdbackmap.carrier(topology, trajectory)"
            )
        if self.backmapper is None:
            self.backmapper = Backmapper(held.system, self.model, self.options)
            self.backmapper.calibrate(held.beads, held.boxes)
        backmapper, beads, frame = self.backmapper, ts.data["beads"], int(ts.frame)
        box = box_from_dimensions(ts.dimensions)
        ts.fill_with(lambda: backmapper(beads, box, frame))
        return ts
