"""What gives atoms their first positions: a network, or conformers fitted to the beads."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mdbackmap.geometry.superpose import superpose
from mdbackmap.graph.chunks import BeadGraph
from mdbackmap.graph.neighbours import find_pairs, pairs_in_groups, relations
from mdbackmap.mapping.chains import chains_of
from mdbackmap.mapping.conformers import conformers
from mdbackmap.mapping.system import System
from mdbackmap.mapping.template import Template
from mdbackmap.models import checkpoint as checkpoints
from mdbackmap.models.checkpoint import Checkpoint
from mdbackmap.models.fast import Atoms, Pairs, fast
from mdbackmap.models.hierarchical import place_atoms
from mdbackmap.models.library import resolve
from mdbackmap.models.predict import Chunk, ResidueKind, predict_in_chunks, predict_residues
from mdbackmap.vocabulary import match

FEW_BEADS = 20_000
"""Below, neighbours are kept for all layers rather than laid out again for each."""
FEWEST = 3
"""Beads that must be fitted, for a conformer not to turn freely."""


class Predictor(Protocol):
    """Places all atoms of one system, frame by frame."""

    system: System

    def __call__(self, beads: np.ndarray, box: np.ndarray | None, noise: float) -> Tensor:
        """Return positions of the atoms, on the CPU, shape (n_atoms, 3), float32, Å.

        Parameters
        ----------
        beads : ndarray, shape=(n_beads, 3), float32, Å
            Molecules must be whole.
        box : ndarray, shape=(3, 3), Å, or None
        noise : float, Å
            Standard deviation per axis the bead positions are believed to have.
        """


class Model:
    """A model by name, file or object: loaded when first needed, pickled by what it was given by.

    Parameters
    ----------
    given : str, Path or Checkpoint
    device : str
    """

    def __init__(self, given: str | Path | Checkpoint, device: str = "cpu") -> None:
        self.given, self.device = given, device
        self._checkpoint: Checkpoint | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """The loaded model; read again where a process got this object by pickle."""
        if self._checkpoint is None:
            given = self.given
            loaded = given if isinstance(given, Checkpoint) else checkpoints.load(resolve(given))
            loaded.network.to(self.device)
            self._checkpoint = loaded
        return self._checkpoint

    @property
    def name(self) -> str:
        """Its name, for people."""
        return str(self.checkpoint.card.get("name") or self.given)

    def __getstate__(self) -> dict:
        kept = self._checkpoint if isinstance(self.given, Checkpoint) else None
        return {**self.__dict__, "_checkpoint": kept}


class NetworkPredictor:
    """Predicts with a network.

    Parameters
    ----------
    system : System
    model : Model
    chunk_size : int
        Beads predicted together; changes memory, not the answer.

    Raises
    ------
    ModelError
        The model does not know beads of the system; lists the residues.
    """

    def __init__(self, system: System, model: Model, chunk_size: int) -> None:
        self.system, self.model, self.chunk_size = system, model, chunk_size
        self.vocabulary = match(system, model.checkpoint)
        self._atoms_by_bead = np.argsort(system.atom_bead, kind="stable")
        self._atom_count = np.bincount(system.atom_bead, minlength=system.n_beads)
        self._first_atom = np.cumsum(self._atom_count) - self._atom_count
        self._anchors = torch.from_numpy(system.anchors)
        self._levels = torch.from_numpy(system.levels)
        self._atom_bead = torch.from_numpy(system.atom_bead)

    def __call__(self, beads: np.ndarray, box: np.ndarray | None, noise: float) -> Tensor:
        """Return positions of the atoms; see `Predictor`."""
        noise = min(noise, self.model.checkpoint.largest_noise)
        network = self.model.checkpoint.network
        alone = network.encoder.config.alone
        run = fast(network) if self.model.device == "cpu" else None
        if run:
            words = self.vocabulary
            vectors = torch.from_numpy(run(
                words.bead, words.residue, noise, self._pairs(beads, box), self._atoms,
                self.chunk_size, self._inside[2] if alone else None,
            ))  # fmt: skip
        elif alone:
            vectors = predict_residues(
                network,
                self._kinds,
                torch.from_numpy(beads).to(self.model.device),
                noise,
                self.chunk_size,
                self.system.n_atoms,
            )
        else:
            vectors = self._in_chunks(beads, box, noise)
        return place_atoms(
            vectors.cpu(), self._anchors, self._levels, self._atom_bead, torch.from_numpy(beads)
        )

    @functools.cached_property
    def _atoms(self) -> Atoms:
        # A copy: to send a tensor to another process torch moves its numbers to another place.
        return Atoms(
            np.append(self._first_atom, len(self._atoms_by_bead)), self._atoms_by_bead,
            self.vocabulary.atom.numpy().copy(),
        )  # fmt: skip

    @functools.cached_property
    def _inside(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of beads of one residue, both ways, and the first bead of every residue."""
        residue = self.system.bead_residue
        return *pairs_in_groups(residue), np.flatnonzero(np.diff(residue, prepend=-1))

    def _pairs(self, beads: np.ndarray, box: np.ndarray | None) -> Pairs:
        """Beads that see one another in a frame."""
        if self.model.checkpoint.network.encoder.config.alone:
            first, second, _ = self._inside
            relation, vectors = np.zeros(0, np.int64), beads[second] - beads[first]
        else:
            graph = self._graph(beads, box)
            first, second = graph.first, graph.second
            relation, vectors = graph.relation, graph.vectors
        count = np.bincount(first, minlength=self.system.n_beads)
        return Pairs(np.append(0, np.cumsum(count)), second, relation, vectors)

    @functools.cached_property
    def _kinds(self) -> list[ResidueKind]:
        """The residues by kind, for networks whose beads see their own residue only."""
        system, words, found = self.system, self.vocabulary, []
        for number, template in enumerate(system.templates):
            beads, atoms = _rows(system, number)
            one = words.bead[beads[0]], words.residue[beads[0]], words.atom[atoms[0]]
            arrays = (*one, *map(torch.from_numpy, (template.atom_bead, beads, atoms)))
            found.append(ResidueKind(*(a.to(self.model.device) for a in arrays)))
        return found

    def _in_chunks(self, beads: np.ndarray, box: np.ndarray | None, noise: float) -> Tensor:
        graph, device = self._graph(beads, box), self.model.device
        chunks = [functools.partial(self._chunk, graph, own)
                  for own in graph.chunks(self.chunk_size)]  # fmt: skip
        if graph.n_beads <= FEW_BEADS:
            chunks = [functools.cache(make) for make in chunks]
        return predict_in_chunks(
            self.model.checkpoint.network,
            self.vocabulary.bead.to(device),
            self.vocabulary.residue.to(device),
            torch.full((self.system.n_beads,), float(noise), device=device),
            chunks,
            self.vocabulary.atom.to(device),
        )

    def _graph(self, beads: np.ndarray, box: np.ndarray | None) -> BeadGraph:
        system, encoder = self.system, self.model.checkpoint.network.encoder.config
        first, second, vectors = find_pairs(beads, box, encoder.cutoff)
        relation = relations(
            first, second, system.bead_residue, system.next_residue, system.bridges,
            encoder.relations,
        )  # fmt: skip
        return BeadGraph(system.n_beads, first, second, vectors, relation)

    def _chunk(self, graph: BeadGraph, beads: np.ndarray) -> Chunk:
        near, count = graph.neighbours(beads), self._atom_count[beads]
        owner = np.repeat(np.arange(len(beads)), count)
        place = np.arange(len(owner)) + np.repeat(
            self._first_atom[beads] - np.cumsum(count) + count, count
        )
        arrays = (beads, self._atoms_by_bead[place], owner,
                  near.index, near.vectors, near.relation, near.present)  # fmt: skip
        return Chunk(*(torch.from_numpy(a).to(self.model.device) for a in arrays))


def _rows(system: System, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Beads, shape (m, b), and atoms, (m, a), of all residues of a template."""
    here, template = np.flatnonzero(system.residue_template == number), system.templates[number]
    return (
        np.searchsorted(system.bead_residue, here)[:, None] + np.arange(template.n_beads),
        np.searchsorted(system.atoms.residue, here)[:, None] + np.arange(template.n_atoms),
    )


class ConformerPredictor:
    """Lays the best of a molecule's conformers on its beads, for molecules no model has learnt.

    Each bead's atoms are then moved with it, so that every bead is where it should be; what that
    does to the bonds between beads is for idealisation to mend. Alkyl chains play no part in the
    fit.

    Parameters
    ----------
    system : System
    drawn : bool
        Alkyl chains are drawn later (`mdbackmap.tails`); until then their atoms are on their beads.

    Raises
    ------
    MappingError
        RDKit is not installed, or finds no conformer.
    """

    def __init__(self, system: System, *, drawn: bool) -> None:
        self.system = system
        self._kinds = [_Fitted(system, k, drawn=drawn) for k in range(len(system.templates))]

    def __call__(self, beads: np.ndarray, box: np.ndarray | None, noise: float) -> Tensor:
        """Return positions of the atoms; see `Predictor`. Other molecules play no part."""
        positions = np.empty((self.system.n_atoms, 3), dtype=np.float32)
        for kind in self._kinds:
            kind.place(beads, positions)
        return torch.from_numpy(positions)


class _Fitted:
    """All residues of one template."""

    def __init__(self, system: System, number: int, *, drawn: bool) -> None:
        template: Template = system.templates[number]
        chains = chains_of(template)
        self.beads, self.atoms = _rows(system, number)
        self.atom_bead = template.atom_bead
        stiff = np.setdiff1d(np.arange(template.n_beads), [b for c in chains for b in c.beads])
        enough = len(stiff) >= FEWEST
        self.fitted = stiff if enough else np.arange(template.n_beads)
        if drawn and enough:
            # Two carbons of a chain stand for what is drawn from there on.
            later = tuple(a for chain in chains for a in chain.atoms[2:].tolist())
            self.atoms_at = conformers(template, later).copy()
            self.atoms_at[:, [a for chain in chains for a in chain.atoms]] = 0.0
        else:
            self.atoms_at = conformers(template)
        bead, atom = template.members.T
        self.beads_at = np.zeros((len(self.atoms_at), template.n_beads, 3))
        for k in range(len(bead)):
            self.beads_at[:, bead[k]] += template.weights[k] * self.atoms_at[:, atom[k]]

    def place(self, beads: np.ndarray, positions: np.ndarray) -> None:
        """Write the positions of the atoms, given those of all beads."""
        target = beads[self.beads].astype(np.float64)
        turn, shift, error = superpose(
            self.beads_at[None, :, self.fitted], target[:, None, self.fitted]
        )
        best = error.argmin(axis=1)
        row = np.arange(len(target))
        turn, shift = turn[row, best], shift[row, best]

        def laid(points: np.ndarray) -> np.ndarray:
            return np.einsum("mni,mji->mnj", points[best], turn) + shift[:, None]

        moved = (target - laid(self.beads_at))[:, self.atom_bead]
        positions[self.atoms] = laid(self.atoms_at) + moved


def place_parts(
    parts: Sequence[tuple[Predictor, np.ndarray, np.ndarray]], beads: np.ndarray,
    box: np.ndarray | None, noise: float, n_atoms: int,
) -> Tensor:  # fmt: skip
    """Return positions of all atoms from predictors of parts of a system.

    Parameters
    ----------
    parts : sequence of (Predictor, ndarray, ndarray)
        With the beads and the atoms of each in the whole.
    beads, box, noise
        As in `Predictor`, of the whole.
    n_atoms : int
    """
    positions = torch.empty(n_atoms, 3)
    for predictor, own_beads, own_atoms in parts:
        positions[torch.from_numpy(own_atoms)] = predictor(beads[own_beads], box, noise)
    return positions
