"""One residue or molecule, compiled from its mapping file into index arrays.

Pure data after construction: `Template` is what the rest of the package sees of a mapping.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mdbackmap.errors import HierarchyError, MappingFileError, listing
from mdbackmap.geometry.constraints import Constraints
from mdbackmap.mapping import chemistry, hierarchy
from mdbackmap.mapping.schema import AtomSpec, Geometry, MappingSpec, ResidueGeometry

MAX_ATOMS = 2000
"""Heavy atoms of one residue or molecule."""
MAX_BONDS = 12
"""Bonds at one atom; the iron of ferrocene has ten."""


@dataclass(frozen=True, eq=False)
class Template:
    """One residue or molecule as arrays; atoms are heavy atoms in output order.

    Attributes
    ----------
    residue : str
        Residue name of the output.
    kind : str
        ``protein``, ``lipid``, ``molecule``, ``solvent`` or ``ion``.
    bead_names : tuple of str
    names, elements : ndarray, shape=(n,), str
    n_hydrogens : ndarray, shape=(n,), int64
    members : ndarray, shape=(k, 2), int64
        Rows of bead, atom; ``shares`` holds the atom's share and ``weights`` the normalised
        weight with which it places the bead (heavy atoms only).
    atom_bead : ndarray, shape=(n,), int64
        Bead each atom is predicted from.
    anchors, levels : ndarray, shape=(n,), int64
        Anchor atom (-1: the bead itself) and level (1 hangs from the bead).
    constraints : Constraints
    swaps : tuple of ndarray, shape=(n,), int64
        Permutations of atoms that change nothing but names.
    bead_keys, atom_keys : tuple of str
        What a bead is made of, and which atom of it; equal keys share learned weights.
    """

    residue: str
    kind: str
    spec: MappingSpec
    source: str
    bead_names: tuple[str, ...]
    names: np.ndarray
    elements: np.ndarray
    n_hydrogens: np.ndarray
    members: np.ndarray
    shares: np.ndarray
    weights: np.ndarray
    atom_bead: np.ndarray
    anchors: np.ndarray
    levels: np.ndarray
    constraints: Constraints
    swaps: tuple[np.ndarray, ...]
    bead_keys: tuple[str, ...]
    atom_keys: tuple[str, ...]
    placement: str = field(default="")
    """Hash of how beads are placed; weights trained with another placement do not fit."""

    @property
    def n_atoms(self) -> int:
        return len(self.names)

    @property
    def n_beads(self) -> int:
        return len(self.bead_names)

    @property
    def has_atoms(self) -> bool:
        """False for water and ions, which no model places (see `mdbackmap.mapping.solvent`)."""
        return self.n_atoms > 0

    @property
    def ion(self) -> tuple[str, AtomSpec] | None:
        """Name and description of the one atom of an ion; None of what is none."""
        single = self.kind == "ion" and len(self.spec.atoms) == 1
        return next(iter(self.spec.atoms.items())) if single else None


def compile_template(spec: MappingSpec, source: str, *, last: bool = False) -> Template:
    """Turn a validated mapping file into arrays.

    Parameters
    ----------
    spec : MappingSpec
    source : str
        Name of the file, for messages.
    last : bool
        Build the variant for the last residue of a chain (``termini.last``).

    Raises
    ------
    MappingFileError, HierarchyError
        Atoms or beads that do not exist, elements that cannot be guessed, cycles.
    """
    patch = spec.termini.last if last else None
    atoms = {**spec.atoms, **(patch.atoms if patch else {})}
    if spec.kind == "ion" or not atoms:
        return _without_model(spec, source)
    if spec.waters:
        raise MappingFileError(f"{source}: residue {spec.residue} has both 'waters' and 'atoms'")
    problems: list[str] = []
    where = f"{source}: residue {spec.residue}"
    index = {name: i for i, name in enumerate(atoms)}
    elements = _elements(atoms, problems)
    rows, atom_bead = _memberships(spec, atoms, problems)
    geometry = _Names(index, problems)
    pieces: list[ResidueGeometry] = [spec] + ([patch] if patch else [])
    bonds = _bond_table(pieces, geometry)
    _check_size(len(atoms), bonds[0], list(atoms), where)
    constraints = _constraints(pieces, geometry, bonds, elements, atoms)
    _check_references(spec, atoms, rows, problems)
    swaps = _swaps(spec, geometry)
    if problems:
        raise MappingFileError(f"{where}\n{listing(problems, 20)}")

    names = np.array(list(atoms))
    anchors = _anchors(spec, atoms, atom_bead, bonds[0], where)
    levels = hierarchy.levels(anchors, names, where)

    members = np.array([(bead, atom) for bead, atom, _ in rows], dtype=np.int64)
    shares_array = np.array([share for *_, share in rows], dtype=np.float64)
    n_hydrogens = np.array([len(atom.hydrogens) for atom in atoms.values()], dtype=np.int64)
    weights = bead_weights(
        spec, members, shares_array, names, elements,
        n_hydrogens if spec.hydrogens == "counted" else np.zeros_like(n_hydrogens),
    )  # fmt: skip
    light = [bead for b, bead in enumerate(spec.beads) if weights[members[:, 0] == b].sum() < 0.5]
    if light:
        raise MappingFileError(
            f"{where}: no atom has a weight in bead {', '.join(light)}; a bead needs at least one"
        )
    bead_keys = []
    for b, bead in enumerate(spec.beads):
        inside = sorted(
            names[a] + ("" if abs(s - 1) < 1e-6 else f"*{s:.3g}") for k, a, s in rows if k == b
        )
        bead_keys.append(f"{bead}:{','.join(inside)}")
    atom_keys = tuple(f"{bead_keys[b]}/{name}" for b, name in zip(atom_bead, names, strict=True))
    counted = [len(atom.hydrogens) for atom in spec.atoms.values()]
    rule = [spec.centre, spec.hydrogens, [bead and bead.on for bead in spec.beads.values()],
            counted if spec.hydrogens == "counted" else None]  # fmt: skip
    placement = hashlib.sha256(json.dumps(rule).encode()).hexdigest()[:16]
    return Template(
        residue=spec.residue,
        kind=spec.kind,
        spec=spec,
        source=source,
        bead_names=tuple(spec.beads),
        names=names,
        elements=elements,
        n_hydrogens=n_hydrogens,
        members=members,
        shares=shares_array,
        weights=weights,
        atom_bead=atom_bead,
        anchors=anchors,
        levels=levels,
        constraints=constraints,
        swaps=swaps,
        bead_keys=tuple(bead_keys),
        atom_keys=atom_keys,
        placement=placement,
    )


def _elements(atoms: dict[str, AtomSpec], problems: list[str]) -> np.ndarray:
    elements = []
    for name, atom in atoms.items():
        element = (atom.element or chemistry.element_of(name)).upper()
        if element not in chemistry.MASS or element == "H":
            problems.append(f"atom {name}: element {element[:20] or '?'} is no heavy element; give "
                            "'element:'")  # fmt: skip
        elements.append(element)
    return np.array(elements)


def _memberships(
    spec: MappingSpec, atoms: dict[str, AtomSpec], problems: list[str]
) -> tuple[list[tuple[int, int, float]], np.ndarray]:
    """Return rows of bead, atom, share, and the bead each atom is predicted from."""
    bead_index = {name: i for i, name in enumerate(spec.beads)}
    rows = []
    atom_bead = np.zeros(len(atoms), dtype=np.int64)
    for i, (name, atom) in enumerate(atoms.items()):
        shares = atom.bead
        if not isinstance(shares, dict):
            beads = [shares] if isinstance(shares, str) else shares
            shares = {bead: 1.0 / len(beads) for bead in beads}
        unknown = [bead for bead in shares if bead not in bead_index]
        if unknown:
            problems.append(f"atom {name}: bead {', '.join(unknown)} is not listed under 'beads' "
                            f"({', '.join(bead_index)})")  # fmt: skip
            continue
        rows += [(bead_index[bead], i, share) for bead, share in shares.items()]
        atom_bead[i] = bead_index[max(shares, key=lambda bead: shares[bead])]
    return rows, atom_bead


def _check_size(n_atoms: int, bonds: np.ndarray, names: list[str], where: str) -> None:
    """Refuse what is no residue before anything quadratic runs over it."""
    valence = np.bincount(bonds.ravel(), minlength=n_atoms)
    if n_atoms > MAX_ATOMS:
        raise MappingFileError(f"{where}: {n_atoms} atoms; split what has more than {MAX_ATOMS}")
    if valence.max() > MAX_BONDS:
        crowded = ", ".join(names[i] for i in np.flatnonzero(valence > MAX_BONDS)[:10])
        raise MappingFileError(f"{where}: more than {MAX_BONDS} bonds at atom {crowded}")


def _check_references(
    spec: MappingSpec,
    atoms: dict[str, AtomSpec],
    rows: list[tuple[int, int, float]],
    problems: list[str],
) -> None:
    """Collect names that point at nothing, or at too much."""
    inside = {(bead, atom) for bead, atom, _ in rows}
    order = list(atoms)
    for b, (bead, bead_spec) in enumerate(spec.beads.items()):
        held = [order[atom] for k, atom in inside if k == b]
        if not held:
            problems.append(f"bead {bead}: holds no atom; list it under 'skip_beads'")
        elif bead_spec and bead_spec.on and bead_spec.on not in held:
            problems.append(f"bead {bead}: sits on atom {bead_spec.on}, which is none of its atoms")
    for alias, bead in spec.bead_aliases.items():
        if bead not in spec.beads:
            problems.append(f"bead_aliases {alias}: {bead} is not listed under 'beads'")
    names = Counter([*order, *(h for atom in atoms.values() for h in atom.hydrogens)])
    for name, count in names.items():
        if count > 1:
            problems.append(f"atom {name}: the name is given to {count} atoms or hydrogens")
    _check_states(spec, order, names, problems)
    for key, pair in (("link", spec.link), ("bridge", spec.bridge)):
        if pair is None:
            continue
        first, second = pair.bonds[0][:2] if pair.bonds else ("", "")
        ends = {first, second.removeprefix("+")}
        if not second.startswith("+") or first.startswith("+") or not ends & set(order):
            problems.append(f"{key}: its first bond must go from an atom of this residue to "
                            "'+' and an atom of the other one, as [C, +N]")  # fmt: skip
        elif key == "bridge" and (len(ends) > 1 or first not in atoms):
            problems.append(f"bridge: its first bond must join an atom to its like, as [{first}, "
                            f"+{first}]")  # fmt: skip


def _check_states(
    spec: MappingSpec, atoms: list[str], names: Counter[str], problems: list[str]
) -> None:
    """Collect states whose atoms are not there, or that give a hydrogen a name in use."""
    patched = spec.termini.last.atoms if spec.termini.last else {}
    known = {*atoms, *patched}
    always = [s for s in (spec.states or {}).values() if s.bridged == "no" and not s.limited]
    if spec.states and not always:
        problems.append("states: one of them must be without 'below', 'above' and 'bridged'")
    for key in ("states", "states_first", "states_last"):
        for name, state in (getattr(spec, key) or {}).items():
            for atom, hydrogens in state.hydrogens.items():
                if atom not in known:
                    problems.append(f"{key} {name}: no atom {atom}")
                    continue
                own = spec.atoms[atom].hydrogens if atom in spec.atoms else ()
                taken = [h for h in hydrogens if h not in own and (h in names or h in known)]
                if taken:
                    problems.append(f"{key} {name}: the name {', '.join(taken)} is in use")


def _anchors(
    spec: MappingSpec,
    atoms: dict[str, AtomSpec],
    atom_bead: np.ndarray,
    bonds: np.ndarray,
    where: str,
) -> np.ndarray:
    """Return derived anchors with the given ones laid over; moves atoms to a given bead."""
    index = {name: i for i, name in enumerate(atoms)}
    beads = {name: i for i, name in enumerate(spec.beads)}
    anchors = hierarchy.derive_anchors(atom_bead, bonds)
    lost = []
    for name, atom in atoms.items():
        if not atom.anchor:
            continue
        if atom.anchor in index and (atom.anchor != name or name not in beads):
            anchors[index[name]] = index[atom.anchor]
        elif atom.anchor in beads:
            anchors[index[name]] = -1
            atom_bead[index[name]] = beads[atom.anchor]
        else:
            lost.append(f"atom {name}: anchor {atom.anchor} is neither an atom nor a bead")
    if lost:
        raise HierarchyError(f"{where}\n{listing(lost, 20)}")
    return anchors


def bead_weights(
    spec: MappingSpec,
    members: np.ndarray,
    shares: np.ndarray,
    names: np.ndarray,
    elements: np.ndarray,
    n_hydrogens: np.ndarray,
) -> np.ndarray:
    """Return normalised weights with which atoms place their beads.

    Parameters
    ----------
    n_hydrogens : ndarray, shape=(n_atoms,), int64
        Hydrogens that count at the position of each atom.

    Returns
    -------
    ndarray, shape=(k,), float64
        Sums to 1 over each bead.
    """
    mass = spec.centre == "mass"
    own = chemistry.masses(elements) if mass else np.ones(len(names))
    united = own + n_hydrogens * (chemistry.MASS["H"] if mass else 1.0)
    weights = shares * united[members[:, 1]]
    for b, bead in enumerate(spec.beads.values()):
        if bead and bead.on:
            inside = members[:, 0] == b
            weights[inside] = np.where(names[members[inside, 1]] == bead.on, 1.0, 0.0)
    total = np.bincount(members[:, 0], weights, minlength=len(spec.beads))
    return weights / np.where(total > 0, total, 1.0)[members[:, 0]]


class _Names:
    """Turns atom names into indices and collects the names that do not exist."""

    def __init__(self, index: dict[str, int], problems: list[str]) -> None:
        self.index, self.problems = index, problems

    def __call__(self, atoms: tuple[str, ...], where: str) -> tuple[int, ...] | None:
        unknown = [name for name in atoms if name not in self.index]
        if unknown:
            self.problems.append(f"{where} {' '.join(atoms)}: no atom {', '.join(unknown)}")
            return None
        return tuple(self.index[name] for name in atoms)


def _bond_table(
    pieces: Sequence[Geometry], names: _Names
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table: dict[tuple[int, int], tuple[float, float]] = {}
    for piece in pieces:
        for row in piece.bonds:
            pair = names(row[:2], "bond")
            if pair is None:
                continue
            key = (min(pair), max(pair))
            if key in table:
                names.problems.append(f"bond {row[0]} {row[1]}: given twice")
            table[key] = row[2:]
    pairs = np.array(sorted(table), dtype=np.int64).reshape(-1, 2)
    values = np.array([table[tuple(p)] for p in pairs], dtype=np.float64).reshape(-1, 2)
    return pairs, values[:, 0], values[:, 1]


def _rings(bonds: np.ndarray, n_atoms: int, largest: int = 7) -> dict[tuple[int, int, int], int]:
    """Size of the smallest ring each angle lies in, up to the largest looked for."""
    bonded = hierarchy.neighbours(n_atoms, bonds)
    result: dict[tuple[int, int, int], int] = {}
    for centre in range(n_atoms):
        for x, first in enumerate(bonded[centre]):
            reach = hierarchy.distances(first, bonded, without=centre, furthest=largest - 2)
            for last in bonded[centre][x + 1 :]:
                if last in reach:
                    result[(first, centre, last)] = reach[last] + 2
    return result


def _constraints(pieces, names, bond_table, elements, atoms) -> Constraints:
    bonds, order, length = bond_table
    n = len(elements)
    bonded = hierarchy.neighbours(n, bonds)
    for k, (i, j) in enumerate(bonds):
        if length[k] == 0:
            length[k] = chemistry.bond_length(elements[i], elements[j], order[k])

    planar_groups = [g for p in pieces for row in p.planar if (g := names(tuple(row), "planar"))]
    volumes: list[tuple[tuple[int, ...], float]] = []
    flat_centres: set[int] = set()
    for group in planar_groups:
        inside = set(group)
        for centre in group:
            around = [b for b in bonded[centre] if b in inside]
            if len(around) >= 3:
                volumes.append(((centre, *around[:3]), 0.0))
                flat_centres.add(centre)
            elif len(around) == 2:
                flat_centres.add(centre)
        for i, j, k, m in _paths(group, bonded):
            volumes.append(((i, j, k, m), 0.0))

    rings = _rings(bonds, n)
    given: dict[tuple[int, int, int], float] = {}
    for piece in pieces:
        for row in piece.angles:
            triple = names(row[:3], "angle")
            if triple is None:
                continue
            if not {triple[0], triple[2]} <= set(bonded[triple[1]]):
                names.problems.append(f"angle {' '.join(row[:3])}: atoms are not bonded in a row")
            given[_sorted_angle(triple)] = row[3]
    hydrogens = [len(atom.hydrogens) for atom in atoms.values()]
    angle_rows: dict[tuple[int, int, int], float] = {}
    for centre in range(n):
        for x, first in enumerate(bonded[centre]):
            for second in bonded[centre][x + 1 :]:
                key = _sorted_angle((first, centre, second))
                angle_rows[key] = given.get(key) or chemistry.angle(
                    len(bonded[centre]) + hydrogens[centre],
                    rings.get((first, centre, second), 0),
                    centre in flat_centres,
                )
    angles = np.array(list(angle_rows), dtype=np.int64).reshape(-1, 3)
    angle = np.array(list(angle_rows.values()), dtype=np.float64)

    lengths = {tuple(pair): value for pair, value in zip(bonds.tolist(), length, strict=True)}
    for piece in pieces:
        for centre, around in piece.chiral.items():
            quad = names((centre, *around), "chiral")
            if quad is None:
                continue
            near = bonded[quad[0]]
            strangers = [a for a, i in zip(around, quad[1:], strict=True) if i not in near]
            if strangers:
                names.problems.append(f"chiral {centre}: {', '.join(strangers)} not bonded to it")
                continue
            volumes.append((quad, _ideal_volume(quad, lengths, angle_rows)))

    torsions: list[tuple[tuple[int, ...], float]] = []
    for piece in pieces:
        for rows, value in ((piece.cis, 0.0), (piece.trans, 180.0)):
            for row in rows:
                quad = names(row, "torsion")
                if quad is None:
                    continue
                if any(b not in bonded[a] for a, b in itertools.pairwise(quad)):
                    names.problems.append(f"torsion {' '.join(row)}: atoms are not bonded in a row")
                torsions.append((quad, value))
    return Constraints(
        bonds=bonds,
        bond_order=order,
        bond_length=length,
        angles=angles,
        angle=angle,
        volumes=np.array([v[0] for v in volumes], dtype=np.int64).reshape(-1, 4),
        volume=np.array([v[1] for v in volumes], dtype=np.float64),
        torsions=np.array([t[0] for t in torsions], dtype=np.int64).reshape(-1, 4),
        torsion=np.array([t[1] for t in torsions], dtype=np.float64),
    )


def _sorted_angle(triple: tuple[int, ...]) -> tuple[int, int, int]:
    first, centre, last = triple
    return (first, centre, last) if first < last else (last, centre, first)


def _paths(group: tuple[int, ...], bonded: list[list[int]]) -> list[tuple[int, int, int, int]]:
    """Chains of four bonded atoms inside a planar group, each once."""
    inside = set(group)
    found = []
    for j in group:
        for k in bonded[j]:
            if k in inside and j < k:
                for i in bonded[j]:
                    for m in bonded[k]:
                        if i in inside and m in inside and len({i, j, k, m}) == 4:
                            found.append((i, j, k, m))
    return found


def _ideal_volume(quad, lengths, angles) -> float:
    """Signed volume of three bonds with known lengths and angles (always positive)."""
    centre, *around = quad
    r = [lengths[tuple(sorted((centre, a)))] for a in around]
    pairs = ((0, 1), (1, 2), (0, 2))
    cos = [
        np.cos(np.radians(angles[_sorted_angle((around[i], centre, around[j]))])) for i, j in pairs
    ]
    gram = 1 + 2 * cos[0] * cos[1] * cos[2] - cos[0] ** 2 - cos[1] ** 2 - cos[2] ** 2
    return float(np.prod(r) * np.sqrt(max(gram, 0.25)))


def _swaps(spec: MappingSpec, names: _Names) -> tuple[np.ndarray, ...]:
    result = []
    for swap in spec.symmetric:
        order = np.arange(len(names.index))
        for pair in swap.items():
            indices = names(pair, "symmetric")
            if indices is not None:
                order[list(indices)] = indices[::-1]
        result.append(order)
    return tuple(result)


@functools.lru_cache(maxsize=4096)
def _link_names(first: tuple[str, ...], second: tuple[str, ...]) -> dict[str, int]:
    index = {name: i for i, name in enumerate(first)}
    index.update({f"+{name}": len(first) + i for i, name in enumerate(second)})
    return index


def link_constraints(first: Template, second: Template, geometry: Geometry) -> Constraints:
    """Compile the geometry of a bond between two residues.

    Rows whose atoms are not there, or not bonded to one another, are left out, so that one table
    serves all residues (``+N +CD`` is a bond in proline, but not in lysine).

    Returns
    -------
    Constraints
        Over the atoms of ``first`` followed by those of ``second``.
    """
    index = _link_names(tuple(first.names.tolist()), tuple(second.names.tolist()))
    n = len(index)

    def known(rows):
        return [row for row in rows if all(a in index for a in row if isinstance(a, str))]

    bonds = known(geometry.bonds)
    order, length = [row[2] for row in bonds], [row[3] for row in bonds]
    new = np.array([[index[a] for a in row[:2]] for row in bonds], np.int64).reshape(-1, 2)
    elements = np.concatenate([first.elements, second.elements])
    lengths = np.array(
        [d or chemistry.bond_length(elements[i], elements[j], o)
         for (i, j), o, d in zip(new, order, length, strict=True)]
    )  # fmt: skip
    bonded = hierarchy.neighbours(
        n, np.concatenate([first.constraints.bonds, second.constraints.bonds + first.n_atoms, new])
    )
    angles = [
        row for row in known(geometry.angles)
        if index[row[0]] in bonded[index[row[1]]] and index[row[2]] in bonded[index[row[1]]]
    ]  # fmt: skip
    volumes: list[tuple[int, ...]] = []
    for row in known(geometry.planar):
        group = tuple(index[a] for a in row)
        inside = set(group)
        for centre in group:
            around = [b for b in bonded[centre] if b in inside]
            if len(around) >= 3:
                volumes.append((centre, *around[:3]))
        volumes += _paths(group, bonded)
    torsions = [(row, 0.0) for row in known(geometry.cis)]
    torsions += [(row, 180.0) for row in known(geometry.trans)]
    return Constraints(
        bonds=new,
        bond_order=np.array(order, dtype=np.float64),
        bond_length=lengths.astype(np.float64),
        angles=np.array([[index[a] for a in r[:3]] for r in angles], np.int64).reshape(-1, 3),
        angle=np.array([r[3] for r in angles], dtype=np.float64),
        volumes=np.array(volumes, dtype=np.int64).reshape(-1, 4),
        volume=np.zeros(len(volumes)),
        torsions=np.array([[index[a] for a in r] for r, _ in torsions], np.int64).reshape(-1, 4),
        torsion=np.array([v for _, v in torsions], dtype=np.float64),
    )


def _without_model(spec: MappingSpec, source: str) -> Template:
    """Return the template of water or an ion: beads, and no atoms that a model could place."""
    problems: list[str] = []
    if spec.kind not in ("solvent", "ion"):
        problems.append("lists no atoms; only kind 'solvent' or 'ion' may")
    if spec.waters and spec.kind != "solvent":
        problems.append(f"'waters' is for kind 'solvent', not '{spec.kind}'")
    if len(spec.atoms) > 1:
        problems.append(f"has {len(spec.atoms)} atoms, and an ion has one; use kind 'molecule'")
    for name, atom in spec.atoms.items():
        _elements({name: atom}, problems)
        _memberships(spec, {name: atom}, problems)
        if atom.hydrogens:
            problems.append(f"atom {name}: an ion has no hydrogens; use kind 'molecule'")
    if problems:
        raise MappingFileError(f"{source}: residue {spec.residue}\n{listing(problems, 20)}")
    none2, none = np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
    return Template(
        residue=spec.residue, kind=spec.kind, spec=spec, source=source,
        bead_names=tuple(spec.beads), names=np.zeros(0, "U4"), elements=np.zeros(0, "U2"),
        n_hydrogens=none, members=none2, shares=np.zeros(0), weights=np.zeros(0),
        atom_bead=none, anchors=none, levels=none, constraints=Constraints.none(), swaps=(),
        bead_keys=tuple(f"{b}:" for b in spec.beads), atom_keys=(),
    )  # fmt: skip
