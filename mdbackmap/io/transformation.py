"""``u.trajectory.add_transformations(Backmap(...))`` and the Universes it works on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import MDAnalysis as mda
from MDAnalysis.coordinates.memory import MemoryReader
from MDAnalysis.coordinates.timestep import Timestep
from MDAnalysis.transformations.base import TransformationBase

from mdbackmap.errors import StructureError
from mdbackmap.hydrogens.protonation import DEFAULT_PH, Choices, decide
from mdbackmap.io.reader import BackmapReader, Carrier, LazyTimestep, independent, later
from mdbackmap.io.source import CGSource
from mdbackmap.io.topology import atom_topology
from mdbackmap.kept import Kept
from mdbackmap.mapping.library import Library, inner_variant
from mdbackmap.mapping.system import System, from_atoms, from_beads
from mdbackmap.pipeline import Backmapper, Options

Mapping = str | Path | Sequence[str | Path]
Models = str | Path | Sequence[str | Path] | None


def lay_out(
    source: CGSource, mapping: Mapping = "martini3", *, skip_unknown: bool = False,
    solvent: str = "drop",
) -> System:  # fmt: skip
    """Lay out the system of a CG source; bead indices are those of its selection.

    The first usable frame is consulted where the file states no bonds.
    """
    names = [mapping] if isinstance(mapping, (str, Path)) else list(mapping)
    return from_beads(
        source.particles, Library.load(names), source.usable_frame(), skip_unknown=skip_unknown,
        solvent=solvent == "keep",
    )  # fmt: skip


def inspected(backmapper: Backmapper, source: CGSource) -> Backmapper:
    """Let a backmapper look at some frames of a source, and at a structure to keep."""
    if backmapper.options.keep is not None and backmapper.kept is None:
        backmapper.kept = read_kept(backmapper.options.keep, backmapper.layout)
    frames, place = source.sample(), backmapper.system.bead_source
    backmapper.inspect([f.positions[place] for f in frames], [f.box for f in frames])
    return backmapper


def read_kept(path: str | Path, system: System) -> Kept:
    """Read a structure that is to be laid onto its beads.

    Raises
    ------
    InputFileError, StructureError
    """
    source = CGSource.open(path)
    own = {t.residue: t for t in map(inner_variant, system.templates)}
    frame = source.read(0)
    structure = from_atoms(source.particles, Library(tuple(own.values()), "the beads"), frame)
    return Kept(system, structure, structure.take(frame.positions))


def universe(
    cg: mda.Universe, model: Models = None, mapping: Mapping = "martini3",
    *, select: str | None = None, skip_unknown: bool = False, **options: Any,
) -> mda.Universe:  # fmt: skip
    """Return the all-atom Universe of a coarse-grained one.

    Frames are backmapped when they are looked at; nothing is written. The CG Universe is copied
    with its transformations and not touched.

    Parameters
    ----------
    cg : MDAnalysis.Universe
    model : str, Path or sequence of them, optional
        Names of shipped models or weights files; of several that know a residue the last places
        it. By default the shipped model that knows the beads.
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
        All atoms with names, elements, bonds, residues and chain letters.

    Raises
    ------
    UnknownBeadError, ModelError, InputFileError

    Examples
    --------
    >>> aa = mdbackmap.universe(mda.Universe("cg.tpr", "cg.xtc"))  # doctest: +SKIP
    """
    source = CGSource(independent(cg), select)
    chosen = Options(**options)
    system = lay_out(source, mapping, skip_unknown=skip_unknown, solvent=chosen.solvent)
    backmapper = inspected(Backmapper(system, model, chosen), source)
    return _all_atom(source.universe, source, system, backmapper=backmapper)


def carrier(
    topology: str | Path, trajectory: str | Path | None = None, mapping: Mapping = "martini3",
    *, select: str | None = None, skip_unknown: bool = False, hydrogens: bool = True,
    ph: float = DEFAULT_PH, protonation: Choices | None = None, solvent: str = "keep",
) -> mda.Universe:  # fmt: skip
    """Return an all-atom Universe over CG files whose atoms a `Backmap` transformation fills.

    Parameters are those of `universe`; the files are opened here. Which hydrogens there are is
    settled here, without a model: tautomers are the first that a mapping names, unless chosen.
    """
    source = CGSource.open(trajectory or topology, topology, select)
    chosen = Options(solvent=solvent)
    system = lay_out(source, mapping, skip_unknown=skip_unknown, solvent=chosen.solvent)
    frames = source.sample()
    beads = [f.positions[system.bead_source] for f in frames]
    states = decide(system, ph, protonation) if hydrogens else None
    held = Carrier(system, states, beads, [f.box for f in frames])
    return _all_atom(source.universe, source, system, carrier=held)


def _all_atom(cg: mda.Universe, source: CGSource, system: System, **options: Any) -> mda.Universe:
    """Return the all-atom Universe over a CG one, which may be a source's or its original."""
    atoms = (options.get("backmapper") or options["carrier"]).atoms
    result = mda.Universe(atom_topology(system, atoms), to_guess=())
    if source.index is not None:
        system = system.within(source.index)
    name = str(getattr(cg.trajectory, "filename", None) or "memory")
    result.load_new(name, format=BackmapReader, cg=cg, system=system, **options)
    return result


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

    Attributes
    ----------
    universe : MDAnalysis.Universe or None
        The all-atom Universe in step with ``cg``; None on a carrier. It belongs to ``cg`` alone:
        on copies of ``cg``, also those that workers of a parallel analysis get, the
        transformation does nothing. A copy or a pickle of the all-atom Universe itself has beads
        of its own and is in step with nothing.

    Raises
    ------
    StructureError
        Added to a CG Universe that was not given, or to one in memory (MDAnalysis transforms
        such a trajectory once, when it is added, so nothing would stay in step).
    """

    def __init__(
        self, cg: mda.Universe | None = None, model: Models = None,
        mapping: Mapping = "martini3", *, select: str | None = None, skip_unknown: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(max_threads=None, parallelizable=True)
        self.model, self.options = model, Options(**options)
        self.universe: mda.Universe | None = None
        self.backmapper: Backmapper | None = None
        self._mirrors = cg is not None
        if cg is None:
            return
        if isinstance(cg.trajectory, MemoryReader):
            raise StructureError(
                "Backmap on a Universe in memory would not stay in step; use "
                "mdbackmap.universe(cg) instead"
            )
        # Looking at frames must not move, or undo changes to, the Universe of the user.
        source = CGSource(independent(cg), select)
        system = lay_out(
            source, mapping, skip_unknown=skip_unknown, solvent=self.options.solvent
        )  # fmt: skip
        self.backmapper = inspected(Backmapper(system, model, self.options), source)
        self.universe = _all_atom(cg, source, system, backmapper=self.backmapper, live=True)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "universe": None}

    def _transform(self, ts: Timestep) -> Timestep:
        if self._mirrors:
            self._follow(ts)
            return ts
        held = ts.data.get("carrier")
        if not isinstance(ts, LazyTimestep) or held is None:
            raise StructureError(
                "Backmap was added to a Universe it does not know: on a coarse-grained Universe "
                "u write Backmap(u); or add it to mdbackmap.carrier(topology, trajectory)"
            )
        if self.backmapper is None:
            self._refuse_other_hydrogens(held)
            heavy = dataclasses.replace(self.options, hydrogens=False)
            self.backmapper = Backmapper(held.system, self.model, heavy)
            self.backmapper.inspect(held.beads, held.boxes)
            self.backmapper.protonate(held.protonation)
        elif self.backmapper.layout is not held.system:
            raise StructureError("this Backmap fills another Universe already; make one for each")
        ts.fill_with(later(self.backmapper, ts.data["beads"], ts))
        return ts

    def _refuse_other_hydrogens(self, held: Carrier) -> None:
        options, usual = self.options, Options()
        asked = (options.ph, options.protonation) != (usual.ph, usual.protonation)
        asked |= options.solvent != usual.solvent and held.system.solvent is not None
        if asked or (held.protonation is not None and not options.hydrogens):
            raise StructureError(
                "the atoms of this Universe are settled already: give hydrogens, ph, protonation "
                "and solvent to mdbackmap.carrier() instead"
            )

    def _follow(self, ts: Timestep) -> None:
        """Take a frame of the CG Universe; frames of its copies pass by."""
        if self.universe is not None:
            reader = self.universe.trajectory
            if ts is reader.cg.trajectory.ts:
                reader.take(ts)
