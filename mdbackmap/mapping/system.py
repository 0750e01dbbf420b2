"""A whole system laid out once: which bead is which, which atom hangs from what.

`System` is built from a coarse-grained or an atomistic file and holds only index arrays; every
frame is array work on them. Building it is the last place that knows mapping files.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mdbackmap.errors import StructureError, UnknownBeadError, listing
from mdbackmap.geometry.bead_bonds import bead_pairs, pair_kinds
from mdbackmap.geometry.boxes import minimum_image
from mdbackmap.geometry.constraints import Backbone, Constraints
from mdbackmap.geometry.ramachandran import kind_of
from mdbackmap.mapping.library import Library, inner_variant, shipped, terminal_variant
from mdbackmap.mapping.solvent import Collector, Solvent
from mdbackmap.mapping.template import Template, link_constraints
from mdbackmap.structure import AtomTable, Frame, Particles, split_residues

MAX_LINK = 5.2
"""Å between backbone beads of bonded neighbours; Martini's is 3.5, stretched it reaches 4.5."""
MAX_NETWORK = 12.0
"""Å that a bond of an elastic network may span; such a bond is none of the chain's."""
MAX_BRIDGE = 3.2
"""Å between the SC1 beads of a disulfide; Martini's constraint is 2.4, free pairs stay over 3.5."""
MAX_ATOM_BOND = 2.2
"""Å between atoms of two residues that are bonded (C-N 1.33, S-S 2.05)."""
CHAIN_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True)
class System:
    """Static description of what is backmapped.

    Attributes
    ----------
    atoms : AtomTable
        The answer, in output order; never changes between frames.
    beads : Particles
        The beads in use, in output order.
    bead_source : ndarray, shape=(n_beads,), int64
        Place of each bead in the CG file (-1 where the system came from atoms).
    atom_source : ndarray, shape=(n_atoms,), int64
        Place of each atom in the atomistic file, -1 where it is missing there or where the
        system came from beads.
    templates : tuple of Template; residue_template : ndarray, shape=(n_residues,), int64
    bead_residue, bead_molecule, bead_parent : ndarray, shape=(n_beads,), int64
        ``bead_parent`` spans each molecule with a tree (-1 at its root).
    bead_key, atom_key : ndarray of int64 into ``bead_keys``, ``atom_keys`` (tuples of str)
    next_residue : ndarray, shape=(n_residues,), int64
        The residue bonded after each, -1 at chain ends.
    atom_bead, anchors, levels : ndarray, shape=(n_atoms,), int64
    members, weights : ndarray, shape=(k, 2) and (k,)
        Bead-atom rows and normalised weights: beads = sum of weights x atoms.
    constraints : Constraints
        Ideal geometry over all atoms.
    omegas : ndarray, shape=(m, 4), int64
        CA C N CA of every peptide bond; ``omega_may_be_cis`` marks those before proline.
    bridges : ndarray, shape=(m, 2), int64
        Residues joined by a bond that is not along the chain (disulfides).
    given_names : ndarray, shape=(n_residues,), str
        Residue names as the file has them, such as HSD.
    left_out : dict
        What was recognised and left out, with counts.
    solvent : Solvent or None
        Water and ions, which are no part of what stands above.
    """

    atoms: AtomTable
    beads: Particles
    bead_source: np.ndarray
    atom_source: np.ndarray
    templates: tuple[Template, ...]
    residue_template: np.ndarray
    bead_residue: np.ndarray
    bead_molecule: np.ndarray
    bead_parent: np.ndarray
    bead_keys: tuple[str, ...]
    bead_key: np.ndarray
    atom_keys: tuple[str, ...]
    atom_key: np.ndarray
    next_residue: np.ndarray
    atom_bead: np.ndarray
    anchors: np.ndarray
    levels: np.ndarray
    members: np.ndarray
    weights: np.ndarray
    constraints: Constraints
    omegas: np.ndarray
    omega_may_be_cis: np.ndarray
    bridges: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    given_names: np.ndarray = field(default_factory=lambda: np.zeros(0, "U1"))
    left_out: dict[str, int] = field(default_factory=dict)
    solvent: Solvent | None = None

    @property
    def n_beads(self) -> int:
        return len(self.bead_residue)

    @functools.cached_property
    def file_beads(self) -> np.ndarray:
        """Place in the CG file of every bead a frame is made from: those of water and ions last."""
        if self.solvent is None:
            return self.bead_source
        return np.concatenate([self.bead_source, self.solvent.bead_source])

    def within(self, index: np.ndarray) -> System:
        """Return this system of a larger file, of which particle k of its own is ``index[k]``."""
        solvent = self.solvent and dataclasses.replace(
            self.solvent, bead_source=index[self.solvent.bead_source]
        )
        return dataclasses.replace(self, bead_source=index[self.bead_source], solvent=solvent)

    @property
    def n_atoms(self) -> int:
        return len(self.atoms)

    @property
    def residue_names(self) -> np.ndarray:
        """Residue name of every residue, shape=(n_residues,)."""
        return np.array([t.residue for t in self.templates])[self.residue_template]

    @property
    def residue_kinds(self) -> np.ndarray:
        """Kind of every residue (protein, lipid, ...), shape=(n_residues,)."""
        return np.array([t.kind for t in self.templates])[self.residue_template]

    @functools.cached_property
    def backbone_residues(self) -> np.ndarray:
        """Protein residues with both neighbours, shape (r,), int64."""
        return self._backbone_rows()[0]

    @functools.cached_property
    def backbone(self) -> Backbone:
        """Torsions of the protein backbones."""
        here, rows = self._backbone_rows()
        names = self.residue_names
        kind = kind_of(names[here], names[self.next_residue[here]] == "PRO")
        none = np.zeros(len(self.omegas), dtype=bool)
        return Backbone(self.omegas, none, self.omega_may_be_cis, rows, kind)

    def _backbone_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Residues with both neighbours, and their C N CA C N."""
        local = np.full((len(self.templates), 3), -1, dtype=np.int64)
        for k, template in enumerate(self.templates):
            names = template.names.tolist()
            if template.kind == "protein" and {"N", "CA", "C"} <= set(names):
                local[k] = [names.index(name) for name in ("N", "CA", "C")]
        starts = np.searchsorted(self.atoms.residue, np.arange(len(self.residue_template)))
        n, ca, c = (local[self.residue_template] + starts[:, None]).T
        usable = local[self.residue_template, 0] >= 0
        before = np.full(len(usable), -1, dtype=np.int64)
        linked = np.flatnonzero(self.next_residue >= 0)
        before[self.next_residue[linked]] = linked
        after = self.next_residue
        # Index -1 reads the last residue, and the first two conditions take it out again.
        here = np.flatnonzero(
            (before >= 0) & (after >= 0) & usable & usable[before] & usable[after]
        )
        return here, np.stack([c[before[here]], n[here], ca[here], c[here], n[after[here]]], axis=1)

    @functools.cached_property
    def chain_ends(self) -> np.ndarray:
        """Residues whose terminal atoms count towards their beads, shape (n,), int64."""
        differs = [
            template.has_atoms and template.bead_keys != inner_variant(template).bead_keys
            for template in self.templates
        ]
        return np.flatnonzero(np.array(differs, dtype=bool)[self.residue_template])

    def with_open_ends(self, residues: np.ndarray) -> System:
        """Return this system with beads of some chain ends placed as within a chain.

        Where a structure stops because it was not resolved further, or its file lacks the
        terminal oxygen, the bead was placed without it. The atoms stay the same.

        Parameters
        ----------
        residues : ndarray, shape=(n,), int64
            Of `chain_ends`.
        """
        bead_keys, atom_keys = list(self.bead_keys), list(self.atom_keys)
        bead_key, atom_key = self.bead_key.copy(), self.atom_key.copy()
        weights = self.weights.copy()

        def code(table: list[str], key: str) -> int:
            if key not in table:
                table.append(key)
            return table.index(key)

        for residue in residues.tolist():
            inner = inner_variant(self.templates[self.residue_template[residue]])
            own = dict(zip(inner.names.tolist(), inner.atom_keys, strict=True))
            share = {
                (int(bead), inner.names[atom]): weight
                for (bead, atom), weight in zip(inner.members, inner.weights, strict=True)
            }
            beads = np.flatnonzero(self.bead_residue == residue)
            bead_key[beads] = [code(bead_keys, key) for key in inner.bead_keys]
            for atom in np.flatnonzero(self.atoms.residue == residue):
                name = self.atoms.names[atom]
                bead = inner.bead_keys[self.atom_bead[atom] - beads[0]]
                atom_key[atom] = code(atom_keys, own.get(name, f"{bead}/{name}"))
            for row in np.flatnonzero(np.isin(self.members[:, 0], beads)):
                bead, atom = self.members[row]
                weights[row] = share.get((int(bead - beads[0]), self.atoms.names[atom]), 0.0)
        return dataclasses.replace(
            self, bead_keys=tuple(bead_keys), atom_keys=tuple(atom_keys), bead_key=bead_key,
            atom_key=atom_key, weights=weights,
        )  # fmt: skip

    def of_residues(self, residues: np.ndarray) -> tuple[System, np.ndarray, np.ndarray]:
        """Return a system of some residues alone, and which beads and atoms of this one it has.

        Bonds to other residues are not part of it.

        Parameters
        ----------
        residues : ndarray, shape=(n_residues,), bool

        Returns
        -------
        system : System
        beads, atoms : ndarray of int64
        """
        beads = np.flatnonzero(residues[self.bead_residue])
        atoms = np.flatnonzero(residues[self.atoms.residue])
        residue = np.where(residues, np.cumsum(residues) - 1, -1)
        bead = _renumbered(beads, self.n_beads)
        atom = _renumbered(atoms, self.n_atoms)

        def link(table: np.ndarray, index: np.ndarray, rows: np.ndarray) -> np.ndarray:
            """Rows of a table of indices (-1: none) in the new numbering."""
            return np.where(table[rows] < 0, -1, index[table[rows]])

        constraints = self.constraints.of_atoms(atom)
        table = self.atoms
        names = {
            key: getattr(table, key)[atoms]
            for key in ("names", "elements", "resnames", "resids", "segids")
        }
        omegas = (atom[self.omegas] >= 0).all(axis=1)
        members = atom[self.members[:, 1]] >= 0
        bridges = residues[self.bridges].all(axis=1)
        molecule = np.unique(self.bead_molecule[beads], return_inverse=True)[1]
        templates, template = _used(self.templates, self.residue_template[residues])
        bead_keys, bead_key = _used(self.bead_keys, self.bead_key[beads])
        atom_keys, atom_key = _used(self.atom_keys, self.atom_key[atoms])
        system = dataclasses.replace(
            self,
            atoms=AtomTable(**names, residue=residue[table.residue[atoms]],
                            bonds=constraints.bonds),
            beads=Particles(
                names=self.beads.names[beads], resnames=self.beads.resnames[beads],
                resids=self.beads.resids[beads], segids=self.beads.segids[beads],
            ),
            bead_source=self.bead_source[beads], atom_source=self.atom_source[atoms],
            templates=templates, residue_template=template,
            bead_residue=residue[self.bead_residue[beads]], bead_molecule=molecule,
            bead_parent=link(self.bead_parent, bead, beads),
            bead_keys=bead_keys, bead_key=bead_key, atom_keys=atom_keys, atom_key=atom_key,
            next_residue=link(self.next_residue, residue, np.flatnonzero(residues)),
            atom_bead=bead[self.atom_bead[atoms]], anchors=link(self.anchors, atom, atoms),
            levels=self.levels[atoms],
            members=np.stack([bead[self.members[members, 0]], atom[self.members[members, 1]]],
                             axis=1),
            weights=self.weights[members], constraints=constraints,
            omegas=atom[self.omegas[omegas]], omega_may_be_cis=self.omega_may_be_cis[omegas],
            bridges=residue[self.bridges[bridges]], given_names=self.given_names[residues],
            left_out={}, solvent=None,
        )  # fmt: skip
        return system, beads, atoms

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Pick this system's atoms from a file's positions; missing atoms are NaN.

        Returns
        -------
        ndarray, shape=(n_atoms, 3), float64, Å
        """
        taken = positions[self.atom_source].astype(np.float64)
        taken[self.atom_source < 0] = np.nan
        return taken

    def templates_of_residues(self) -> list[Template]:
        """Template of every residue, in order."""
        return [self.templates[t] for t in self.residue_template]

    def bead_pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of beads that are bonded, or nearly, the names of their kinds, and each one's."""
        pairs, inside = bead_pairs(self.atom_bead, self.atoms.bonds, self.bead_residue)
        residues = [template.residue for template in self.templates]
        return pairs, *pair_kinds(pairs, inside, self.bead_key,
                                  self.residue_template[self.bead_residue], self.bead_keys,
                                  residues)  # fmt: skip

    @functools.cached_property
    def chain_letters(self) -> np.ndarray:
        """A chain letter per residue, shape (n_residues,), str.

        Protein chains are lettered as the file does where it has single letters, else in order;
        everything that is no polymer shares one letter per kind.
        """
        kinds = self.residue_kinds
        first = np.flatnonzero(np.diff(self.atoms.residue, prepend=-1))
        segids = self.atoms.segids[first]
        polymer = np.array([t.spec.link is not None for t in self.templates])
        polymer = polymer[self.residue_template]
        starts = np.ones(len(kinds), dtype=bool)
        starts[1:] = self.next_residue[:-1] < 0
        if np.all(np.char.str_len(segids) == 1) and np.all(np.char.isalnum(segids)):
            # One letter for chains that each start anew says nothing.
            rises = np.all(np.diff(self.atoms.resids[first][polymer]) >= 0)
            if rises or len(np.unique(segids)) > 1:
                return segids
        chain = np.cumsum(starts & polymer) - 1
        letters = np.array(list(CHAIN_LETTERS))
        n_chains = int(chain.max(initial=-1)) + 1
        result = letters[np.maximum(chain, 0) % len(letters)]
        others = [kind for kind in ("lipid", "molecule") if (kinds == kind).any()]
        for k, kind in enumerate(others):
            result[(kinds == kind) & ~polymer] = letters[(n_chains + k) % len(letters)]
        return result

    def map_positions(self, positions: np.ndarray) -> np.ndarray:
        """Return bead positions of all-heavy-atom positions, shape (n_beads, 3), Å."""
        beads = np.zeros((self.n_beads, 3))
        np.add.at(beads, self.members[:, 0], self.weights[:, None] * positions[self.members[:, 1]])
        return beads


def _renumbered(kept: np.ndarray, n: int) -> np.ndarray:
    """New number of each of ``n`` old ones, -1 for those not kept."""
    index = np.full(n, -1, dtype=np.int64)
    index[kept] = np.arange(len(kept))
    return index


def _used(table: tuple, code: np.ndarray) -> tuple[tuple, np.ndarray]:
    """Leave out of a table what no code points at."""
    used, code = np.unique(code, return_inverse=True)
    return tuple(table[k] for k in used.tolist()), code.astype(np.int64)


@dataclass
class _Residue:
    """One residue of the input: its template and where its particles are in the file."""

    template: Template
    source: np.ndarray
    resid: int
    segid: str
    file_index: int
    given_name: str


def from_beads(
    particles: Particles, library: Library, frame: Frame, *, skip_unknown: bool = False,
    solvent: bool = False,
) -> System:  # fmt: skip
    """Lay out a system from a coarse-grained file.

    Parameters
    ----------
    particles : Particles
    library : Library
    frame : Frame
        Any frame; consulted for chain ends and disulfides where the file states no bonds.
    skip_unknown : bool
        Leave out beads that no mapping knows instead of raising.
    solvent : bool
        Lay out water and ions too, instead of leaving them out.

    Raises
    ------
    UnknownBeadError
        Lists every kind of residue that no mapping explains, with counts.
    StructureError
        Nothing is left to backmap.
    """
    _check_frame(particles, frame)
    dissolved = Collector() if solvent else None
    residues, left_out, unknown, first = _match_beads(particles, library, dissolved)
    if unknown and not skip_unknown:
        rows = [f"{count} x {text}; first {first[text]}" for text, count in unknown.most_common()]
        raise UnknownBeadError(
            f"{particles.source}: {sum(unknown.values())} residues have beads that the mapping "
            f"({library.source}) does not know:\n{listing(rows)}\n  Hint: "
            + _advice(particles, library)
        )
    for text, count in unknown.items():
        left_out[f"unknown: {text}"] += count
    found = dissolved.solvent(particles) if dissolved else None
    if not residues:
        rest = {**left_out, **(found.counts() if found else {})}
        raise StructureError(
            f"{particles.source}: nothing to backmap; left out: "
            + (", ".join(f"{n} {k}" for k, n in rest.items()) or "the file is empty")
        )
    linked = _links_between_beads(residues, particles, frame)
    bridges = _bridges_between_beads(residues, particles, frame)
    system = _assemble(residues, linked, bridges, "beads", dict(left_out))
    return dataclasses.replace(system, solvent=found)


def from_atoms(
    particles: Particles, library: Library, frame: Frame, *, complete: bool = False
) -> System:
    """Lay out a system from an atomistic file; hydrogens are ignored, atoms may be missing.

    Atoms missing in the file have ``atom_source`` -1; residues no template knows are counted in
    ``left_out``. With ``complete``, so are residues with missing atoms.

    Raises
    ------
    StructureError
        No residue fits the mapping.
    """
    _check_frame(particles, frame)
    residue = split_residues(particles)
    bounds = np.flatnonzero(np.diff(residue, prepend=-1, append=residue[-1] + 1 if len(residue)
                                    else 0))  # fmt: skip
    residues: list[_Residue] = []
    left_out: Counter[str] = Counter()
    for start, stop in itertools.pairwise(bounds):
        resname = str(particles.resnames[start])
        found = particles.names[start:stop]
        template = library.match_atoms(resname, found.tolist())
        if template is None:
            known = library.candidates(resname)
            misfit = "does not fit" if any(t.has_atoms for t in known) else None
            left_out[f"{resname} ({misfit or (known[0].kind if known else 'unknown')})"] += 1
            continue
        if "OXT" in found or "OT2" in found or "OC2" in found:
            template = terminal_variant(template)
        where = _own_names(template, found.tolist())
        source = np.array(
            [start + where[name] if name in where else -1 for name in template.names.tolist()],
            dtype=np.int64,
        )
        if complete and (source < 0).any():
            left_out[f"{resname} (incomplete)"] += 1
            continue
        residues.append(
            _Residue(template, source, int(particles.resids[start]),
                     str(particles.segids[start]), int(residue[start]), resname)
        )  # fmt: skip
    if not residues:
        raise StructureError(
            f"{particles.source}: no residue fits the mapping ({library.source}); found "
            + (", ".join(f"{n} {k}" for k, n in left_out.most_common(8)) or "no atoms")
        )
    positions = frame.positions
    linked = _links_between_atoms(residues, positions, frame.box)
    bridges = _bridges_between_atoms(residues, positions, frame.box)
    return _assemble(residues, linked, bridges, "atoms", dict(left_out))


def one_molecule(template: Template) -> System:
    """Lay out a single molecule; its atoms and beads are those of its template, in order."""
    residue = _Residue(template, np.arange(template.n_atoms), 1, "", 0, template.residue)
    return _assemble([residue], np.zeros(1, dtype=bool), [], "atoms", {})


def _check_frame(particles: Particles, frame: Frame) -> None:
    if len(frame.positions) != len(particles):
        raise StructureError(
            f"{particles.source}: {len(particles)} particles, but frame {frame.index} has "
            f"{len(frame.positions)} positions"
        )


def _own_names(template: Template, names: list[str]) -> dict[str, int]:
    """Places of a template's atoms in a list of names; a name of its own is never an alias.

    One table of aliases serves a family: ``CD`` means ``CD1`` in isoleucine and itself in lysine.
    """
    alias = template.spec.atom_aliases
    own = set(template.names.tolist())
    places = {alias.get(name, name): k for k, name in enumerate(names) if name not in own}
    return places | {name: k for k, name in enumerate(names) if name in own}


def _match_beads(
    particles: Particles, library: Library, dissolved: Collector | None
) -> tuple[list[_Residue], Counter[str], Counter[str], dict[str, str]]:
    """Return residues, what was left out, what is unknown, and where that is met first.

    Water and ions go to the collector, where there is one.
    """
    residue = split_residues(particles)
    n = int(residue[-1]) + 1 if len(residue) else 0
    starts = np.searchsorted(residue, np.arange(n + 1))
    residues: list[_Residue] = []
    left_out: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    first: dict[str, str] = {}
    explained: dict[tuple[str, tuple[str, ...]], str] = {}
    cache: dict[tuple[str, tuple[str, ...]], tuple[Template, np.ndarray] | str | None] = {}
    for r in range(n):
        start, stop = starts[r], starts[r + 1]
        key = (str(particles.resnames[start]), tuple(particles.names[start:stop].tolist()))
        if key not in cache:
            match = library.match_beads(*key)
            cache[key] = (match[0], np.array(match[1])) if match else library.is_skipped(*key)
        found = cache[key]
        if found is None:
            segment = f", segment {particles.segids[start]}" if particles.segids[start] else ""
            if key not in explained:
                explained[key] = library.explain(*key)
            text = explained[key]
            first.setdefault(text, f"residue {particles.resids[start]}{segment}")
            unknown[text] += 1
        elif isinstance(found, str):
            left_out[found] += 1
        elif not found[0].has_atoms:
            if dissolved is None or not dissolved.add(*found, int(start)):
                left_out[f"{key[0]} ({found[0].kind})"] += 1
        else:
            template, order = found
            if len(order) < len(key[1]):
                for place in set(range(len(key[1]))) - set(order.tolist()):
                    left_out[template.spec.skip_beads[key[1][place]]] += 1
            residues.append(
                _Residue(template, start + order, int(particles.resids[start]),
                         str(particles.segids[start]), r, key[0])
            )  # fmt: skip
    return residues, left_out, unknown, first


def _advice(particles: Particles, library: Library) -> str:
    """Say what particles that a library does not know may be."""
    residue = split_residues(particles)
    names = np.split(particles.names, np.flatnonzero(np.diff(residue)) + 1)
    kinds = set(zip(particles.resnames[np.flatnonzero(np.diff(residue, prepend=-1))].tolist(),
                    (tuple(own.tolist()) for own in names), strict=True))  # fmt: skip
    lost = [kind for kind in kinds
            if not library.match_beads(*kind) and not library.is_skipped(*kind)]  # fmt: skip
    if 2 * sum(library.match_atoms(*kind) is not None for kind in lost) > len(lost):
        return "these look like atoms already; 'mdbackmap map' makes beads of atoms."
    for name in shipped():
        if name not in library.source and all(map(_knows(name), lost)):
            return f"mapping {name} knows them: --mapping {name}"
    return "add a mapping file with --mapping FILE, or leave them out with --skip-unknown."


def _knows(mapping: str) -> Callable[[tuple[str, tuple[str, ...]]], bool]:
    library = Library.load([mapping])
    return lambda kind: bool(library.match_beads(*kind) or library.is_skipped(*kind))


def _polymer_neighbours(residues: Sequence[_Residue]) -> np.ndarray:
    """Indices i where residue i could be bonded to i + 1: both polymers, next to each other."""
    return np.array(
        [
            i
            for i, (a, b) in enumerate(itertools.pairwise(residues))
            if b.file_index == a.file_index + 1
            and _link_atoms(a.template)[0] >= 0
            and _link_atoms(b.template)[1] >= 0
        ],
        dtype=np.int64,
    )


@functools.lru_cache(maxsize=512)
def _link_atoms(template: Template) -> tuple[int, int]:
    """Indices of the atoms that bond a residue to the next and to the previous one.

    -1 where it has no such atom: a cap, or what is no polymer.
    """
    if template.spec.link is None:
        return -1, -1
    first, second = template.spec.link.bonds[0][:2]
    index = {name: i for i, name in enumerate(template.names.tolist())}
    return index.get(first, -1), index.get(second.removeprefix("+"), -1)


def _links_between_beads(
    residues: list[_Residue], particles: Particles, frame: Frame
) -> np.ndarray:
    linked = np.zeros(len(residues), dtype=bool)
    near = _polymer_neighbours(residues)
    if len(near) == 0:
        return linked
    first = np.array([_bead_of(residues[i], _link_atoms(residues[i].template)[0]) for i in near])
    second = np.array(
        [_bead_of(residues[i + 1], _link_atoms(residues[i + 1].template)[1]) for i in near]
    )
    gap = minimum_image(frame.positions[second] - frame.positions[first], frame.box)
    distance = np.linalg.norm(gap, axis=1)
    if particles.bonds is not None:
        stated = _pair_in(first, second, particles.bonds, len(particles))
        stated &= (distance <= MAX_LINK) | (distance > MAX_NETWORK)
        # Files with some bonds (CONECT of a ligand) say nothing of the backbone.
        if stated.any():
            linked[near] = stated
            return linked
    same_segment = np.array([residues[i].segid == residues[i + 1].segid for i in near])
    step = np.array([residues[i + 1].resid - residues[i].resid for i in near])
    # Numbers go on, stay (insertion codes), or wrap after 9999 or 99999.
    goes_on = (step == 0) | (step == 1) | (step == -9999) | (step == -99999)
    linked[near] = (distance <= MAX_LINK) & same_segment & goes_on
    return linked


def _bead_of(residue: _Residue, atom: int) -> int:
    """Place in the file of the bead an atom of a residue is predicted from."""
    return int(residue.source[residue.template.atom_bead[atom]])


def _pair_in(first: np.ndarray, second: np.ndarray, bonds: np.ndarray, n: int) -> np.ndarray:
    low, high = np.minimum(first, second), np.maximum(first, second)
    key = np.sort(bonds, axis=1)
    return np.isin(low * n + high, key[:, 0] * n + key[:, 1])


def _bridge_sites(residues: Sequence[_Residue]) -> tuple[list[int], list[int]]:
    """Residues that can be bridged, and the atom each would be bridged at."""
    where, atoms = [], []
    for i, residue in enumerate(residues):
        if residue.template.spec.bridge:
            where.append(i)
            name = residue.template.spec.bridge.bonds[0][0]
            atoms.append(residue.template.names.tolist().index(name))
    return where, atoms


def _bridges_between_beads(
    residues: list[_Residue], particles: Particles, frame: Frame
) -> list[tuple[int, int]]:
    where, atoms = _bridge_sites(residues)
    if len(where) < 2:
        return []
    beads = np.array([_bead_of(residues[i], a) for i, a in zip(where, atoms, strict=True)])
    if particles.bonds is not None and len(particles.bonds):
        site = np.full(len(particles), -1)
        site[beads] = where
        pairs = np.sort(site[particles.bonds], axis=1)
        pairs = np.unique(pairs[(pairs[:, 0] >= 0) & (pairs[:, 0] != pairs[:, 1])], axis=0)
        if len(pairs):
            return [(int(i), int(j)) for i, j in pairs]
    return _closest_pairs(where, frame.positions[beads], frame.box, MAX_BRIDGE)


def _links_between_atoms(
    residues: list[_Residue], positions: np.ndarray, box: np.ndarray | None
) -> np.ndarray:
    linked = np.zeros(len(residues), dtype=bool)
    near = _polymer_neighbours(residues)
    for i in near:
        a = residues[i].source[_link_atoms(residues[i].template)[0]]
        b = residues[i + 1].source[_link_atoms(residues[i + 1].template)[1]]
        if a >= 0 and b >= 0:
            gap = minimum_image(positions[b] - positions[a], box)
            linked[i] = float(np.linalg.norm(gap)) < MAX_ATOM_BOND
    return linked


def _bridges_between_atoms(
    residues: list[_Residue], positions: np.ndarray, box: np.ndarray | None
) -> list[tuple[int, int]]:
    where, atoms = _bridge_sites(residues)
    sources = [residues[i].source[a] for i, a in zip(where, atoms, strict=True)]
    present = [(i, s) for i, s in zip(where, sources, strict=True) if s >= 0]
    if len(present) < 2:
        return []
    return _closest_pairs([i for i, _ in present], positions[[s for _, s in present]], box,
                          MAX_ATOM_BOND + 0.2)  # fmt: skip


def _closest_pairs(
    where: list[int], points: np.ndarray, box: np.ndarray | None, limit: float
) -> list[tuple[int, int]]:
    """Pair points within the limit, nearest first, each used once."""
    near: list[tuple[float, int, int]] = []
    for a in range(len(points) - 1):
        distance = np.linalg.norm(minimum_image(points[a + 1 :] - points[a], box), axis=1)
        near += [(distance[k], a, a + 1 + int(k)) for k in np.flatnonzero(distance <= limit)]
    used: set[int] = set()
    pairs = []
    for _, a, b in sorted(near):
        if not {a, b} & used:
            used |= {a, b}
            pairs.append((where[a], where[b]))
    return pairs


def _assemble(
    residues: list[_Residue],
    linked: np.ndarray,
    bridges: list[tuple[int, int]],
    source: str,
    left_out: dict[str, int],
) -> System:
    """Repeat the templates' arrays over the residues; no loop over atoms or beads."""
    if source == "beads":
        for i, residue in enumerate(residues):
            spec = residue.template.spec
            if spec.link and spec.termini.last and not linked[i]:
                residue.template = terminal_variant(residue.template)
    templates = list({id(r.template): r.template for r in residues}.values())
    number = {id(t): k for k, t in enumerate(templates)}
    which = np.array([number[id(r.template)] for r in residues], dtype=np.int64)
    atom_start = _starts([t.n_atoms for t in templates], which)
    bead_start = _starts([t.n_beads for t in templates], which)
    n_atoms, n_beads = int(atom_start[-1]), int(bead_start[-1])
    spread = _Spread(templates, which, atom_start, bead_start)

    bead_keys, bead_key = _keys([t.bead_keys for t in templates], spread.beads)
    atom_keys, atom_key = _keys([t.atom_keys for t in templates], spread.atoms)
    resids = np.array([r.resid for r in residues], dtype=np.int64)
    segids = np.array([r.segid for r in residues])
    bead_residue = np.repeat(np.arange(len(residues)), np.diff(bead_start))
    atom_residue = np.repeat(np.arange(len(residues)), np.diff(atom_start))
    resnames = np.array([t.residue for t in templates])[which]

    given = np.concatenate([r.source for r in residues])
    next_residue = np.where(linked, np.arange(len(residues)) + 1, -1)
    constraints, omegas, may_be_cis = _all_constraints(
        residues, templates, which, atom_start, linked, bridges
    )
    parent = _bead_tree(residues, templates, spread, bead_start, linked, bridges)
    names = spread.atoms([t.names for t in templates])
    atoms = AtomTable(
        names=names,
        elements=spread.atoms([t.elements for t in templates]),
        resnames=resnames[atom_residue],
        resids=resids[atom_residue],
        segids=segids[atom_residue],
        residue=atom_residue,
        bonds=constraints.bonds,
    )
    beads = Particles(
        names=spread.beads([np.array(t.bead_names) for t in templates]),
        resnames=resnames[bead_residue],
        resids=resids[bead_residue],
        segids=segids[bead_residue],
    )
    from_file = np.full(n_beads, -1, np.int64), np.full(n_atoms, -1, np.int64)
    return System(
        atoms=atoms,
        beads=beads,
        bead_source=given if source == "beads" else from_file[0],
        atom_source=given if source == "atoms" else from_file[1],
        templates=tuple(templates),
        residue_template=which,
        bead_residue=bead_residue,
        bead_molecule=_roots(parent),
        bead_parent=parent,
        bead_keys=bead_keys,
        bead_key=bead_key,
        atom_keys=atom_keys,
        atom_key=atom_key,
        next_residue=next_residue,
        atom_bead=spread.atoms([t.atom_bead for t in templates], shift=bead_start),
        anchors=spread.atoms([t.anchors for t in templates], shift=atom_start),
        levels=spread.atoms([t.levels for t in templates]),
        members=spread.rows([t.members for t in templates], (bead_start, atom_start)),
        weights=spread.rows([t.weights for t in templates]),
        constraints=constraints,
        omegas=omegas,
        omega_may_be_cis=may_be_cis,
        bridges=np.array(bridges, dtype=np.int64).reshape(-1, 2),
        given_names=np.array([r.given_name for r in residues]),
        left_out=left_out,
    )


def _starts(sizes: list[int], which: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.array(sizes, dtype=np.int64)[which])])


class _Spread:
    """Copies per-template arrays to every residue of that template."""

    def __init__(
        self,
        templates: list[Template],
        which: np.ndarray,
        atom_start: np.ndarray,
        bead_start: np.ndarray,
    ) -> None:
        self.which, self.atom_start, self.bead_start = which, atom_start, bead_start
        self.places = [np.flatnonzero(which == t) for t in range(len(templates))]

    def _fill(self, tables: list[np.ndarray], start: np.ndarray, shift: np.ndarray | None):
        result = np.zeros(int(start[-1]), dtype=np.result_type(*tables))
        for table, places in zip(tables, self.places, strict=True):
            target = (start[places][:, None] + np.arange(len(table))).ravel()
            values = np.broadcast_to(table, (len(places), len(table)))
            if shift is not None:
                # Negative entries mean "none" and stay as they are.
                values = np.where(values < 0, values, values + shift[places][:, None])
            result[target] = values.ravel()
        return result

    def atoms(self, tables: list[np.ndarray], shift: np.ndarray | None = None) -> np.ndarray:
        """One value per atom, optionally shifted to global indices."""
        return self._fill(tables, self.atom_start, shift)

    def beads(self, tables: list[np.ndarray]) -> np.ndarray:
        """One value per bead."""
        return self._fill(tables, self.bead_start, None)

    def rows(
        self, tables: list[np.ndarray], shifts: tuple[np.ndarray, ...] | None = None
    ) -> np.ndarray:
        """Any number of rows per residue; each column shifted by its own start."""
        pieces = []
        for table, places in zip(tables, self.places, strict=True):
            many = np.broadcast_to(table, (len(places), *table.shape))
            if shifts is not None:
                many = many + np.stack([s[places] for s in shifts], axis=1)[:, None, :]
            pieces.append(many.reshape(-1, *table.shape[1:]))
        return np.concatenate(pieces)


def _keys(tables: list[tuple[str, ...]], spread) -> tuple[tuple[str, ...], np.ndarray]:
    names = sorted({key for table in tables for key in table})
    index = {key: i for i, key in enumerate(names)}
    return tuple(names), spread([np.array([index[k] for k in t], dtype=np.int64) for t in tables])


def _all_constraints(residues, templates, which, atom_start, linked, bridges):
    """Constraints inside residues, then those of links and bridges per kind of pair."""
    pieces: list[Constraints] = []
    for t, template in enumerate(templates):
        pieces.append(template.constraints.repeated(atom_start[:-1][which == t]))
    omegas, may_be_cis = [], []
    groups: dict[tuple[int, int, bool], list[tuple[int, int]]] = {}
    for i in np.flatnonzero(linked):
        groups.setdefault((which[i], which[i + 1], False), []).append((i, i + 1))
    for i, j in bridges:
        groups.setdefault((which[i], which[j], True), []).append((i, j))
    for (a, b, is_bridge), pairs in groups.items():
        first, second = templates[a], templates[b]
        geometry = first.spec.bridge if is_bridge else first.spec.link
        local = link_constraints(first, second, geometry)
        i, j = np.array(pairs).T
        pieces.append(local.spread_over(first.n_atoms, atom_start[i], atom_start[j]))
        if not is_bridge and first.kind == "protein" and len(local.torsions):
            quads = local.torsions[local.torsion == 180.0]
            quad = next((q for q in quads if _is_omega(q, first, second)), None)
            if quad is not None:
                rows = np.where(
                    quad < first.n_atoms,
                    quad + atom_start[i][:, None],
                    quad - first.n_atoms + atom_start[j][:, None],
                )
                omegas.append(rows)
                may_be_cis.append(np.full(len(rows), second.residue == "PRO"))
    constraints = Constraints.joined(pieces)
    if not omegas:
        return constraints, np.zeros((0, 4), np.int64), np.zeros(0, bool)
    return constraints, np.concatenate(omegas), np.concatenate(may_be_cis)


def _is_omega(quad: np.ndarray, first: Template, second: Template) -> bool:
    names = [*first.names.tolist(), *second.names.tolist()]
    return [names[k] for k in quad] == ["CA", "C", "N", "CA"]


def _bead_tree(residues, templates, spread, bead_start, linked, bridges) -> np.ndarray:
    """Parent of every bead: a tree inside each residue, hung on the previous residue."""
    inner = [_template_tree(t) for t in templates]
    parent = spread._fill(inner, bead_start, bead_start)
    out_bead = np.array([t.atom_bead[_link_atoms(t)[0]] for t in templates])
    i = np.flatnonzero(linked)
    parent[bead_start[i + 1]] = bead_start[i] + out_bead[spread.which[i]]
    for a, b in bridges:
        roots = [_root(bead_start[r], parent) for r in (a, b)]
        if roots[0] == roots[1]:
            continue
        sites = []
        for r in (a, b):
            template = residues[r].template
            atom = template.names.tolist().index(template.spec.bridge.bonds[0][0])
            sites.append(int(bead_start[r] + template.atom_bead[atom]))
        # Turn the second molecule's tree round so that it hangs from the bridge.
        here, above = sites[1], sites[0]
        while here >= 0:
            parent[here], above, here = above, here, int(parent[here])
    return parent


def _root(bead: int, parent: np.ndarray) -> int:
    while parent[bead] >= 0:
        bead = int(parent[bead])
    return int(bead)


def _template_tree(template: Template) -> np.ndarray:
    """Spanning tree over a template's beads, from bead 0, along shared atoms and bonds."""
    n = template.n_beads
    touch = np.zeros((n, n), dtype=bool)
    owners: dict[int, list[int]] = {}
    for bead, atom in template.members:
        owners.setdefault(int(atom), []).append(int(bead))
    for i, j in [*template.constraints.bonds.tolist(), *((a, a) for a in owners)]:
        for a in owners[i]:
            for b in owners[j]:
                touch[a, b] = touch[b, a] = True
    parent = np.full(n, -1, dtype=np.int64)
    seen, front = {0}, [0]
    while len(seen) < n:
        reached = [(b, a) for a in front for b in range(n) if touch[a, b] and b not in seen]
        if not reached:
            # Nothing bonds the rest: hang it on the first bead.
            reached = [(next(b for b in range(n) if b not in seen), 0)]
        front = []
        for b, a in reached:
            if b not in seen:
                parent[b] = a
                seen.add(b)
                front.append(b)
    return parent


def _roots(parent: np.ndarray) -> np.ndarray:
    """Molecule number of every bead, by pointer jumping to the roots."""
    here = np.where(parent < 0, np.arange(len(parent)), parent)
    while True:
        above = here[here]
        if (above == here).all():
            break
        here = above
    return np.unique(here, return_inverse=True)[1].astype(np.int64)
