"""One frame in, one frame out: composes the rooms, knows no file format."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mdbackmap.errors import ConfigError, FrameError, ModelError, listing
from mdbackmap.geometry.bead_bonds import as_simulated, lengths_by_kind
from mdbackmap.geometry.boxes import Unwrapper, heights
from mdbackmap.geometry.contacts import REACH, ContactRules
from mdbackmap.geometry.idealise import Staggered, SystemIdealiser
from mdbackmap.geometry.rings import RingGuard
from mdbackmap.graph.neighbours import close_pairs
from mdbackmap.hydrogens import protonation
from mdbackmap.hydrogens.atoms import AllAtoms
from mdbackmap.hydrogens.nearby import Nearby
from mdbackmap.hydrogens.place import REACH as HYDROGEN_REACH
from mdbackmap.hydrogens.place import HydrogenPlacer
from mdbackmap.hydrogens.protonation import DEFAULT_PH, Choices, Protonation
from mdbackmap.hydrogens.recipes import recipes_for
from mdbackmap.hydrogens.tautomers import settle
from mdbackmap.kept import Kept
from mdbackmap.mapping import pdb_names
from mdbackmap.mapping.staggered import staggered_bonds
from mdbackmap.mapping.system import System
from mdbackmap.models.checkpoint import Checkpoint
from mdbackmap.models.encoder import SIMULATED_NOISE
from mdbackmap.models.library import DEFAULT_MODEL, shipped
from mdbackmap.predictors import ConformerPredictor, Model, NetworkPredictor, place_parts
from mdbackmap.solvent import SolventPlacer
from mdbackmap.structure import FAR, AtomTable
from mdbackmap.tails import Tails
from mdbackmap.threads import shared, spread
from mdbackmap.validation.measures import torsions
from mdbackmap.vocabulary import HINT, Vocabulary, drawn_beads, known_templates, match, twin

if TYPE_CHECKING:
    from mdbackmap.relax.stage import Stage

_log = logging.getLogger("mdbackmap")

CHUNK_SIZE = 256
"""Beads predicted together; about 5 MB of memory, which fits caches."""
FRAMES_FOR_CIS, CIS_COSINE = 5, 0.3
"""A peptide that may be cis is so where its mean cosine over so many frames exceeds this."""
IDEALISE_MAPPED = {"hold": 0.1, "contour": 1.0}
IDEALISE_SIMULATED = {"hold": 0.06, "contour": 0.95, "rounds": 3}
"""Simulated beads are where chemistry cannot follow, and say little of phi and psi; from mapped
ones the network makes fewer outliers than crystal structures have."""
STAGGERED = {"lipid", "molecule"}
"""Kinds of residue whose saturated carbons are staggered over simulated beads, which say little of
their torsions. Side chains of proteins would leave their beads further behind, and gain nothing."""
PROTEIN_MOMENTUM = 0.3
"""Of idealisation on mapped beads: proteins are nearly right and need little; lipids do not."""
SMALLEST_BOX = 6.0
"""Å between opposite faces; less is no periodic box (files of single structures say 1 x 1 x 1)."""
SOLVENT = ("keep", "drop")
BEADS_TOGETHER, MOST_TOGETHER = 30_000, 16
"""Beads, and frames, that are worked out together: eight molecules of a kind take idealisation no
longer than one does."""
BEADS_SHARED = 600_000
"""Beads of frames of a large system that are worked out at once, a thread each: frames are what
threads share best. They are all in memory."""


@dataclass(frozen=True)
class Options:
    """How frames are backmapped.

    Attributes
    ----------
    chunk_size : int
        Beads predicted together. Changes memory, not the answer.
    device : str
        ``cpu`` or ``cuda``.
    idealise : bool
        Put local geometry right afterwards.
    draw : bool
        Draw alkyl chains from the conformers that fit their beads, instead of answering with
        the network's mean of them. Rotamers are then as frequent as in membranes.
    seed : int
        Another seed is another draw. Frames of one run share their random numbers.
    noise : float or None
        Å per axis the bead positions are believed to be off; None: 0 for beads that have the
        bond lengths of mapped structures, `SIMULATED_NOISE` otherwise.
    hydrogens : bool
        Give all atoms; False: heavy atoms only.
    ph : float
        Decides on protonation states, once for all frames.
    protonation : str, Path or mapping, optional
        States chosen for single residues: a YAML file, or its content, ``{"A:HIS 15": "HIP"}``.
    force_field : str, optional
        Names of atoms and residues: ``charmm36`` or ``amber14``; as mappings have them by default
        and with ``none``, which also relaxes without a force field.
    force_field_files : tuple of str or Path
        More force-field files in OpenMM's format, for ligands.
    pdb_names : bool
        Residues and atoms of lipids and small molecules called as in the PDB's Chemical Component
        Dictionary, where it has the same molecule of the same stereochemistry.
    relax : bool
        Minimise every frame, restrained, until no force exceeds ``max_force`` (kJ/mol/nm).
    keep : str or Path, optional
        A file with an atomistic structure, laid onto its beads instead of predicted.
    solvent : str
        ``keep``: water and ions of the input come back as atoms, behind all others; ``drop``: they
        are left out. Whoever lays out the system asks for this.
    """

    chunk_size: int = CHUNK_SIZE
    device: str = "cpu"
    idealise: bool = True
    draw: bool = True
    seed: int = 0
    noise: float | None = None
    hydrogens: bool = True
    ph: float = DEFAULT_PH
    protonation: Choices | None = None
    force_field: str | None = None
    force_field_files: tuple[str | Path, ...] = ()
    pdb_names: bool = False
    relax: bool = False
    max_force: float = 500.0
    keep: str | Path | None = None
    solvent: str = "keep"

    def __post_init__(self) -> None:
        if self.solvent not in SOLVENT:
            raise ConfigError(f"solvent '{self.solvent}': expected {' or '.join(SOLVENT)}")
        if self.pdb_names and self.force_field not in (None, "none"):
            raise ConfigError(
                f"force field '{self.force_field}' has names of its own; leave out either it or "
                "pdb_names"
            )


@dataclass(frozen=True, eq=False)
class _Asked:
    """A frame to be backmapped: its place among others, its number, and what is in it."""

    place: int
    frame: int
    beads: np.ndarray
    box: np.ndarray | None
    solvent: np.ndarray


class Backmapper:
    """Backmaps frames of one system with one model; everything static is worked out here.

    Parameters
    ----------
    system : System
    model : str, Path or Checkpoint, or a sequence of them, optional
        Names of shipped models, weights files, or loaded checkpoints; by default the shipped
        model that knows the system's beads. Of several that know a residue the last places it.
    options : Options, optional

    Raises
    ------
    ModelError
        The model does not know beads of the system; lists the residues.
    ProtonationError
        A pH, or states chosen, that cannot be.

    Attributes
    ----------
    layout : System
        What was given.
    system : System
        The same with chain ends read as the beads tell (see `System.with_open_ends`).
    noise : float, Å
        What the network is told of the beads.
    protonation : Protonation or None
        States of the residues; None where only heavy atoms are given.
    kept : Kept or None
        A structure to lay onto its beads; set by whoever read the file.
    """

    def __init__(
        self, system: System,
        model: str | Path | Checkpoint | Sequence[str | Path | Checkpoint] | None = None,
        options: Options | None = None,
    ) -> None:  # fmt: skip
        self.layout = self.system = system
        self.options = options or Options()
        _check_device(self.options.device)
        given = [model] if isinstance(model, (str, Path, Checkpoint)) else model
        if not given:
            name = fitting_model(system)
            given = [name] if name else []
        self._shares = share_out(system, in_company(given, self.options.device))
        self._borrowed: set[str] = set()
        self._use(mapped=False)
        self.unwrap = Unwrapper(system.bead_parent)
        self.backbone = system.backbone
        self.contact_rules = ContactRules(system.constraints, system.atoms.elements)
        self._trust(self.options.noise, simulated=True)
        self._foretold: tuple[np.ndarray, np.ndarray | None, np.ndarray] | None = None
        self._undecided = (
            protonation.decide(system, self.options.ph, self.options.protonation)
            if self.options.hydrogens else None
        )  # fmt: skip
        self.protonate(self._undecided)
        self.kept: Kept | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_foretold": None}

    def protonate(self, states: Protonation | None) -> None:
        """Go on with other protonation states; None: with heavy atoms only."""
        self.protonation = states
        for name in ("all_atoms", "hydrogen_placer", "solvent_placer", "_placed", "stage", "atoms"):
            self.__dict__.pop(name, None)

    @functools.cached_property
    def all_atoms(self) -> AllAtoms:
        """The atom list with hydrogens; of use only where hydrogens are given."""
        return AllAtoms.of(self.layout, self.protonation)

    @functools.cached_property
    def hydrogen_placer(self) -> HydrogenPlacer:
        """What places hydrogens; made when the first frame needs it."""
        return HydrogenPlacer(recipes_for(self.layout, self.all_atoms))

    @functools.cached_property
    def atoms(self) -> AtomTable:
        """What the answer holds: all atoms, or heavy atoms only. Settled by `inspect`."""
        atoms = self.stage.atoms if self.stage else self._placed[0]
        return pdb_names.renamed(atoms, self.layout) if self.options.pdb_names else atoms

    @functools.cached_property
    def solvent_placer(self) -> SolventPlacer:
        """What places water and ions; of use only where there are some."""
        atoms = self.all_atoms.table if self.protonation else self.layout.atoms
        return SolventPlacer(self.layout.solvent, atoms, hydrogens=bool(self.protonation),
                             seed=self.options.seed)  # fmt: skip

    @functools.cached_property
    def _placed(self) -> tuple[AtomTable, np.ndarray]:
        """What is placed, as mappings name it, and where the heavy atoms are in it.

        Water and ions are at the end, and not among the heavy atoms.
        """
        atoms, heavy = self.layout.atoms, np.arange(self.layout.n_atoms)
        if self.protonation:
            atoms, heavy = self.all_atoms.table, self.all_atoms.heavy
        if self.layout.solvent:
            atoms = self.layout.solvent.behind(atoms, hydrogens=bool(self.protonation))
        return atoms, heavy

    @functools.cached_property
    def stage(self) -> Stage | None:
        """What names and relaxes atoms last; None where nothing of the kind is asked for."""
        options = self.options
        if not options.relax and options.force_field in (None, "none"):
            return None
        # OpenMM takes a while to import, and most conversions do without.
        from mdbackmap.relax.stage import Stage

        atoms, _ = self._placed
        solvent = len(atoms) - len(self.all_atoms.table if self.protonation else self.layout.atoms)
        if options.relax and 2 * solvent > len(atoms):
            _log.warning(
                "%d of the %d atoms to relax are water and ions, which take as long as any others; "
                "--solvent drop leaves them out", solvent, len(atoms),
            )  # fmt: skip
        return Stage(
            self.layout, *self._placed, force_field=options.force_field, relax=options.relax,
            files=options.force_field_files, max_force=options.max_force, device=options.device,
        )  # fmt: skip

    @functools.cached_property
    def idealiser(self) -> SystemIdealiser:
        """What puts local geometry right; made when the first frame needs it."""
        system = self.system
        return SystemIdealiser(
            system.constraints, system.n_atoms, system.members, system.weights, system.n_beads,
            self.backbone, staggered=self._staggered, **self._idealising,
        )  # fmt: skip

    @property
    def _staggered(self) -> Staggered | None:
        if not self.noise:
            return None
        return staggered_bonds(self.system, STAGGERED, self.options.seed)

    @functools.cached_property
    def tails(self) -> Tails:
        """What draws alkyl chains; made when the first frame needs it."""
        return Tails(self.system, self.noise, self.options.seed)

    @functools.cached_property
    def ring_guard(self) -> RingGuard:
        """What takes bonds out of rings; made when the first frame needs it."""
        system = self.system
        return RingGuard(
            system.constraints, self.contact_rules, system.members, system.weights,
            self.backbone, **self._idealising,
        )  # fmt: skip

    @property
    def _idealising(self) -> dict[str, float | np.ndarray]:
        if self.noise:
            return IDEALISE_SIMULATED
        protein = (self.system.residue_kinds == "protein")[self.system.atoms.residue]
        return {**IDEALISE_MAPPED, "momentum": np.where(protein, PROTEIN_MOMENTUM, 0.6)}

    def _forget_geometry(self) -> None:
        """Have what depends on the backbone and on the kind of beads made anew."""
        for name in ("idealiser", "ring_guard", "tails"):
            self.__dict__.pop(name, None)

    def _use(self, *, mapped: bool) -> None:
        """Take models into use, or with ``mapped`` those that they name for mapped beads."""
        self._mapped = mapped
        self._parts = []
        for own, residues in self._shares:
            if own and mapped and own.checkpoint.for_mapped_beads:
                own = Model(own.checkpoint.for_mapped_beads, self.options.device)
            whole = residues.all()
            part, beads, atoms = (
                (self.system, np.arange(self.system.n_beads), np.arange(self.system.n_atoms))
                if whole else self.system.of_residues(residues)
            )  # fmt: skip
            if own is None:
                self._parts.append(
                    (ConformerPredictor(part, drawn=self.options.draw), beads, atoms)
                )
                continue
            predictor = NetworkPredictor(part, own, self.options.chunk_size)
            self._parts.append((predictor, beads, atoms))
            borrowed = predictor.vocabulary.borrowed
            drawn = drawn_beads(part) if self.options.draw else set()
            for key in borrowed.keys() - self._borrowed:
                quiet = borrowed[key] == twin(key) or key in drawn
                level = logging.INFO if quiet else logging.WARNING
                text = "bead %s is new to the model; it borrows weights of %s"
                _log.log(level, text, key, borrowed[key])
            self._borrowed |= borrowed.keys()
        self._forget_geometry()

    def _trust(self, noise: float | None, *, simulated: bool) -> None:
        """Settle what the network is told of the beads, and which of a pair of models it is."""
        if noise is None:
            noise = SIMULATED_NOISE if simulated else 0.0
        if self._mapped != (noise == 0.0):
            self._use(mapped=noise == 0.0)
        self.noise = min(noise, self.checkpoint.largest_noise) if self.checkpoint else noise
        self._forget_geometry()

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The first model; None where conformers are all there is."""
        first = self._parts[0][0]
        return first.model.checkpoint if isinstance(first, NetworkPredictor) else None

    @property
    def vocabulary(self) -> Vocabulary:
        """What the first model knows of the beads it places."""
        return self._parts[0][0].vocabulary

    @property
    def networks(self) -> list[Model]:
        """The models in use."""
        return [part.model for part, _, _ in self._parts if isinstance(part, NetworkPredictor)]

    @property
    def models(self) -> list[str]:
        """Names of what places the atoms: models, and "conformers of LIG"."""
        return [
            part.model.name if isinstance(part, NetworkPredictor)
            else "conformers of " + " ".join(t.residue for t in part.system.templates)
            for part, _, _ in self._parts
        ]  # fmt: skip

    def inspect(self, frames: Iterable[np.ndarray], boxes: Iterable[np.ndarray | None]) -> None:
        """Learn from some frames what holds for all: kind of beads, cis peptides, tautomers.

        Without it, beads are taken to be simulated, every frame decides for itself which
        peptides before proline are cis, and tautomers are the first that a mapping names.

        Parameters
        ----------
        frames : iterable of ndarray, shape=(n_beads, 3), Å
            Beads of the system, in any image.
        boxes : iterable of ndarray, shape=(3, 3), Å, or None
        """
        # A damaged frame is reported when it is its turn.
        sound = [
            (f, b)
            for f, b in zip(frames, boxes, strict=True)
            if (np.abs(f) < FAR).all() and (b is None or _is_box(np.asarray(b)))
        ]
        frames, boxes = [f.astype(np.float32) for f, _ in sound], [b for _, b in sound]
        self._adopt(self.layout)
        self.backbone, self._foretold = self.layout.backbone, None
        self._measure_beads(frames, boxes)
        if self.noise == 0.0:
            # Most chains of structures end where they were not resolved further, without OXT.
            self._adopt(self.layout.with_open_ends(self.layout.chain_ends))
        self._settle_cis(frames[:FRAMES_FOR_CIS], boxes[:FRAMES_FOR_CIS])
        if self._undecided:
            self.protonate(self._undecided)
            self._settle_tautomers(frames[:1], boxes[:1])
            _log.info("%s", self.protonation.summary(self.layout))
            _log.info("%s", listing(self.protonation.details(self.layout), 20))

    def _adopt(self, system: System) -> None:
        """Go on with another reading of the same beads."""
        if system is self.system:
            return
        self.system = system
        self._use(mapped=self._mapped)
        self._forget_geometry()

    def _settle_cis(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray | None]) -> None:
        """Decide once which peptides are cis, so that none flips between frames."""
        backbone = self.system.backbone
        # Before other residues one in 2,000 is cis: mapped beads tell, simulated ones do not.
        asked = np.flatnonzero(backbone.may_be_cis | (self.noise == 0.0))
        if not len(asked) or not frames:
            return
        cosines = []
        with torch.inference_mode(), shared():
            for beads, box in zip(frames, boxes, strict=True):
                whole = self.unwrap(beads, box)
                atoms = self._predict(whole, box)
                # The first frame is what is asked for next, as a rule.
                self._foretold = self._foretold or (whole, box, atoms)
                omega = torsions(atoms, backbone.omegas[asked], None)
                cosines.append(np.cos(np.radians(omega)))
        cis = np.zeros(len(backbone.cis), dtype=bool)
        cis[asked] = np.mean(cosines, axis=0) > CIS_COSINE
        self.backbone = replace(backbone, cis=cis, may_be_cis=np.zeros_like(cis))
        self._forget_geometry()

    def _settle_tautomers(
        self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray | None]
    ) -> None:
        """Decide once which tautomers there are, from the hydrogen bonds of one frame."""
        if not self.protonation.open or not frames:
            return
        first = _Asked(0, 0, self.unwrap(frames[0], boxes[0]), boxes[0], frames[0][:0])
        with shared(), torch.inference_mode():
            (heavy,) = self._idealised([self._predicted(first)], [first])
        near = Nearby(*close_pairs(heavy, boxes[0], HYDROGEN_REACH))
        self.protonate(settle(self.layout, self.protonation, heavy, near))

    def _bead_distances(self) -> tuple[np.ndarray, ...]:
        """Pairs of beads whose distance tells simulated from mapped ones, and what models know.

        As in `Vocabulary`, of all models that saw many kinds of residue.
        """
        found, kinds = [], 0
        for part, own, _ in self._parts:
            if not isinstance(part, NetworkPredictor):
                continue
            if found and not part.model.checkpoint.simulated_distances:
                continue
            pairs, kind, *known = part.vocabulary.bead_distances
            found.append((own[pairs], kind + kinds, *known))
            kinds += len(known[0])
        return tuple(np.concatenate(column) for column in zip(*found, strict=True))

    def _measure_beads(
        self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray | None]
    ) -> None:
        """Find out whether the beads are simulated: their bonds are longer or shorter then."""
        if self.checkpoint is None:
            return
        pairs, kind, mean, spread, elsewhere = self._bead_distances()
        if not len(pairs):
            return
        total, count, n_frames = np.zeros(len(mean)), np.zeros(len(mean)), 0
        for beads, box in zip(frames, boxes, strict=True):
            sums, numbers = lengths_by_kind(self.unwrap(beads, box), pairs, kind, len(mean))
            total, count, n_frames = total + sums, count + numbers, n_frames + 1
        if not n_frames:
            return
        observed = total / count
        # Frames of one trajectory are not independent of one another.
        simulated, share = as_simulated(
            observed, count / np.sqrt(n_frames), mean, spread, elsewhere
        )
        self._trust(self.options.noise, simulated=simulated)
        wanted = SIMULATED_NOISE if simulated else 0.0
        wanted = wanted if self.options.noise is None else self.options.noise
        if wanted > self.noise:
            _log.warning(
                "model %s was trained on beads at most %g Å from the centres of their atoms; these "
                "are taken to lie %g Å off%s, and its atoms will be poorer. Choose another model, "
                "or none: then the one that fits is taken",
                self.checkpoint.card.get("name"), self.checkpoint.largest_noise, wanted,
                " as in simulations" if self.options.noise is None else "",
            )  # fmt: skip
        _log.info(
            "bead bonds: %.0f %% of them as in simulations; noise level %.2f Å, model %s",
            100 * share, self.noise, self.checkpoint.card.get("name"),
        )  # fmt: skip

    def __call__(
        self, beads: np.ndarray, box: np.ndarray | None = None, frame: int = 0
    ) -> np.ndarray:
        """Backmap one frame.

        Parameters
        ----------
        beads : ndarray, shape=(n, 3), Å
            Beads of the system in the order of its ``file_beads``, in any image.
        box : ndarray, shape=(3, 3), Å, or None
        frame : int
            Number of the frame, for messages.

        Returns
        -------
        ndarray, shape=(len(self.atoms), 3), float32, Å
            Molecules are whole; each stays at the image of its first bead.

        Raises
        ------
        FrameError
            A wrong number of beads, beads that are no numbers, a box that is none.
        """
        (answer,) = self.many([beads], [box], [frame])
        if isinstance(answer, FrameError):
            raise answer
        return answer

    @property
    def together(self) -> int:
        """How many frames `many` should get at once; more would gain nothing."""
        n_beads = max(1, self.system.n_beads)
        at_once = min(torch.get_num_threads(), BEADS_SHARED // n_beads)
        return max(1, min(MOST_TOGETHER, max(BEADS_TOGETHER // n_beads, at_once)))

    def many(
        self, beads: Sequence[np.ndarray], boxes: Sequence[np.ndarray | None],
        frames: Sequence[int],
    ) -> list[np.ndarray | FrameError]:  # fmt: skip
        """Backmap several frames together: the same answers, sooner where the system is small.

        Parameters
        ----------
        beads, boxes, frames
            As in a call, of every frame.

        Returns
        -------
        list of (ndarray, shape=(len(self.atoms), 3), float32, Å, or FrameError)
            In the order of the frames; for those that cannot be backmapped the reason.
        """
        answers: list[np.ndarray | FrameError] = [FrameError()] * len(frames)
        asked: list[_Asked] = []
        for k, (points, box, frame) in enumerate(zip(beads, boxes, frames, strict=True)):
            # A copy: the caller's array may be read-only, or change.
            points = np.array(points, dtype=np.float32)
            try:
                self._check(points, box, frame)
                points, solvent = np.split(points, [self.layout.n_beads])
                asked.append(_Asked(k, frame, self.unwrap(points, box), box, solvent))
            except FrameError as error:
                answers[k] = error
        with shared(), torch.inference_mode():
            predicted = spread(self._predicted, asked)
            sound = [bool(np.isfinite(positions).all()) for positions in predicted]
            for one in itertools.compress(asked, (not good for good in sound)):
                answers[one.place] = FrameError(
                    f"frame {one.frame}: the prediction is not a number; please report this"
                )
            asked = list(itertools.compress(asked, sound))
            if not asked:
                return answers
            heavy = self._idealised(list(itertools.compress(predicted, sound)), asked)
            both = list(zip(heavy, asked, strict=True))
            atoms = spread(lambda given: self._completed(*given), both)
        for one, found in zip(asked, atoms, strict=True):
            try:
                answers[one.place] = (
                    self.stage(found, one.beads, one.box, one.frame) if self.stage else found
                )
            except FrameError as error:
                answers[one.place] = error
        return answers

    def _predicted(self, one: _Asked) -> np.ndarray:
        """Heavy atoms before their geometry is put right, shape (n_atoms, 3), Å."""
        known = self._foretold
        if known and np.array_equal(known[0], one.beads) and np.array_equal(known[1], one.box):
            positions = known[2]
        else:
            self._foretold = None
            positions = self._predict(one.beads, one.box)
        if self.options.draw:
            positions = self.tails(positions, one.beads, one.box)
        return self.kept(positions, one.beads) if self.kept else positions

    def _idealised(
        self, positions: Sequence[np.ndarray], asked: Sequence[_Asked]
    ) -> Sequence[np.ndarray]:
        """Put local geometry right, where that is asked for; of each frame, shape (n_atoms, 3)."""
        if not self.options.idealise:
            return positions
        rules, rows = self.contact_rules, range(len(asked))
        contacts = spread(
            lambda k: rules.between(*close_pairs(positions[k], asked[k].box, REACH, rules.bonded)),
            rows,
        )
        better = self.idealiser(np.stack(positions), np.stack([o.beads for o in asked]), contacts)
        return spread(lambda k: self._out_of_rings(better[k], asked[k]), rows)

    def _completed(self, heavy: np.ndarray, one: _Asked) -> np.ndarray:
        """Add hydrogens, water and ions, where they are asked for."""
        atoms = heavy
        if self.protonation:
            place = self.hydrogen_placer
            near = Nearby(*close_pairs(heavy, one.box, HYDROGEN_REACH, place.recipes.bonded))
            atoms = self.all_atoms.join(heavy, place(heavy, near))
        if len(one.solvent):
            solvent = self.solvent_placer(one.solvent, atoms, one.box)
            atoms = np.concatenate([atoms, solvent])
        return atoms

    def _out_of_rings(self, positions: np.ndarray, one: _Asked) -> np.ndarray:
        """Take bonds out of rings, and say which could not be."""
        freed = self.ring_guard(positions, one.beads, one.box)
        if len(freed.left):
            atoms = self.system.atoms
            rows = [
                f"{atoms.resnames[i]} {atoms.resids[i]} {atoms.names[i]}-{atoms.names[j]} through "
                f"the ring of {atoms.resnames[k]} {atoms.resids[k]} {atoms.names[k]}"
                for i, j, k in freed.left.tolist()
            ]
            _log.warning(
                "frame %d: %d bonds go through rings\n%s", one.frame, len(rows), listing(rows, 5)
            )
        return freed.positions

    def _predict(self, beads: np.ndarray, box: np.ndarray | None) -> np.ndarray:
        """Positions as the models give them, shape (n_atoms, 3), Å."""
        if len(self._parts) == 1:
            return self._parts[0][0](beads, box, self.noise).numpy()
        return place_parts(self._parts, beads, box, self.noise, self.system.n_atoms).numpy()

    def _check(self, beads: np.ndarray, box: np.ndarray | None, frame: int) -> None:
        n = len(self.layout.file_beads)
        if beads.shape != (n, 3):
            raise FrameError(
                f"frame {frame}: positions of shape {beads.shape}, expected ({n}, 3): one row per "
                "bead of the system"
            )
        bad = np.flatnonzero(~(np.abs(beads) < FAR).all(axis=1))
        if len(bad):
            rows = [f"{self._name(i)}: {beads[i].tolist()}" for i in bad.tolist()]
            hint = ""
            if np.isnan(beads[bad]).any():
                hint = (
                    "\n  Hint: martinize2 writes nan for beads whose atoms the structure lacks; "
                    "complete its side chains first, with PDBFixer for example."
                )
            raise FrameError(
                f"frame {frame}: {len(bad)} beads have no usable position\n{listing(rows, 5)}{hint}"
            )
        if box is not None and not _is_box(np.asarray(box)):
            raise FrameError(
                f"frame {frame}: box {np.asarray(box).tolist()} is no periodic box: three vectors "
                f"with at least {SMALLEST_BOX:g} Å between opposite faces are expected\n"
                "  Hint: a structure without a box has none (dimensions = None)."
            )

    def _name(self, bead: int) -> str:
        """What a bead of the file is called."""
        table = self.layout.beads
        if bead >= len(table):
            bead, table = bead - len(table), self.layout.solvent.beads
        return f"{table.resnames[bead]} {table.resids[bead]} {table.names[bead]}"


def fitting_model(system: System) -> str | None:
    """Return the name of the shipped model that knows a system's beads.

    Small molecules and lipids may be unknown to it: conformers are fitted to their beads. Of
    models that leave some unknown the one that knows most kinds of residue is taken; None where
    all of the system is such molecules.

    Raises
    ------
    ModelError
        None does; says what the default model lacks.
    """
    names = [DEFAULT_MODEL, *(name for name in shipped() if name != DEFAULT_MODEL)]
    protein = np.array([t.kind == "protein" for t in system.templates])
    best, most = None, 0
    for name in names:
        known = np.any([known_templates(system, m.checkpoint) for m in in_company([name])], axis=0)
        if known.all():
            return name
        if known.sum() > most and not (protein & ~known).any():
            best, most = name, known.sum()
    if best is None and protein.any():
        match(system, Model(DEFAULT_MODEL).checkpoint)
    return best


def in_company(given: Sequence[str | Path | Checkpoint], device: str = "cpu") -> list[Model]:
    """Return models, each followed by those that are to be used beside it."""
    models = []
    for one in given:
        model = Model(one, device)
        beside = (name for name in model.checkpoint.beside if name not in given)
        models += [model, *(Model(name, device) for name in beside)]
    return models


def share_out(system: System, models: Sequence[Model]) -> list[tuple[Model | None, np.ndarray]]:
    """Decide which model places which residues.

    Of several models that know a residue the last is taken. Molecules and lipids that none knows
    are placed by fitting conformers to their beads (model None), and a warning says so.

    Returns
    -------
    list of (Model or None, ndarray of bool, shape=(n_residues,))

    Raises
    ------
    ModelError
        Proteins that no model knows.
    """
    owner = np.full(len(system.templates), -1)
    for k, model in enumerate(models):
        owner[known_templates(system, model.checkpoint)] = k
    unknown = [t for t, k in zip(system.templates, owner.tolist(), strict=True) if k < 0]
    if any(t.kind == "protein" for t in unknown):
        rest, *_ = system.of_residues((owner < 0)[system.residue_template])
        others = [model for k, model in enumerate(models) if k in owner]
        match(rest, models[0].checkpoint, _hint(rest, others))
    if unknown:
        _log.warning(
            "no model knows %s: conformers are fitted to the beads, which is rougher; "
            "'mdbackmap train --molecule FILE' learns a molecule in minutes",
            ", ".join(t.residue for t in unknown),
        )
    shares = [(model, owner == k) for k, model in enumerate(models)] + [(None, owner < 0)]
    return [(model, mine[system.residue_template]) for model, mine in shares if mine.any()]


def _hint(rest: System, models: Sequence[Model]) -> str:
    """Say which shipped model knows what is left, beside the models that know the others."""
    try:
        name = fitting_model(rest)
    except ModelError:
        return HINT
    given = (m.checkpoint.source if isinstance(m.given, Checkpoint) else m.given for m in models)
    words = " ".join(f"--model {word}" for word in (name, *given))
    return f"model {name} knows these: {words}"


def _is_box(box: np.ndarray) -> bool:
    fits = box.shape == (3, 3) and np.isfinite(box).all() and abs(np.linalg.det(box)) > 1e-9
    return bool(fits and heights(box).min() >= SMALLEST_BOX)


def _check_device(device: str) -> None:
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device '{device}': expected cpu, cuda or cuda:N") from error
    if wanted.type not in ("cpu", "cuda"):
        raise ModelError(f"device '{device}': expected cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if wanted.type == "cuda" else 1
    if (wanted.index or 0) >= count:
        seen = f"{count} GPUs" if count else "no GPU"
        raise ModelError(f"device '{device}': this torch sees {seen}; use --device cpu")
