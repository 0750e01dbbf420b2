"""Drafting the mapping file of a molecule: its chemistry from RDKit, its beads from a file."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from mdbackmap.errors import (
    MappingError,
    MappingFileError,
    OutputFileError,
    StructureError,
    listing,
)
from mdbackmap.io.bead_files import BeadTable, Member, read_beads
from mdbackmap.io.molecules import SEED, Molecule, conformers, read_molecule
from mdbackmap.io.writing import Parts, check_place
from mdbackmap.mapping.chemistry import element_of
from mdbackmap.mapping.conformers import embed
from mdbackmap.mapping.library import load_templates
from mdbackmap.mapping.schema import Name
from mdbackmap.mapping.template import Template

if TYPE_CHECKING:
    from rdkit.Chem import Atom, Bond, Mol

MOST_SWAPS = 4
"""Swaps of equivalent names that training keeps per residue."""
_PDB_NAME = 4
"""Letters of a residue name in a PDB file."""
_FLAT_CENTRE = 0.15
"""Å that a nitrogen may lie off the plane of its three neighbours and be called flat."""
_FLAT_GROUP = 0.2
"""Å that the atoms of an amide or ester may lie off their common plane."""
_LARGEST_FLAT_RING = 8
_MATCHES = 20_000
"""Symmetries of a molecule that are looked at."""


@dataclass
class Chemistry:
    """What a mapping file says of a molecule besides its beads; atoms are RDKit's indices.

    Attributes
    ----------
    bonds : list of (i, j, order, length in Å)
    angles : list of (i, centre, j, degrees)
    planar : list of tuple of int
    chiral : dict of int to (a, b, c)
    cis, trans : list of (i, j, k, l)
    symmetric : list of dict of int to int
    notes : dict of str to str
        What was found out how.
    """

    bonds: list[tuple[int, int, float, float]]
    angles: list[tuple[int, int, int, float]]
    planar: list[tuple[int, ...]]
    chiral: dict[int, tuple[int, int, int]]
    cis: list[tuple[int, int, int, int]]
    trans: list[tuple[int, int, int, int]]
    symmetric: list[dict[int, int]]
    notes: dict[str, str] = field(default_factory=dict)


def draft(
    ligand: str | Path,
    beads: Sequence[str | Path],
    output: str | Path,
    *,
    name: str = "",
    smiles: str = "",
    charge: int = 0,
    centre: Literal["geometry", "mass"] = "geometry",
    hydrogens: Literal["counted", "ignored"] | None = None,
    allow_open_stereo: bool = False,
    force: bool = False,
) -> tuple[Template, dict[str, str]]:
    """Write the mapping file of a molecule, and read it back.

    Parameters
    ----------
    ligand : str or Path
        The molecule; see `mdbackmap.io.molecules.read_molecule`.
    beads : sequence of str or Path
        Which atoms belong to which bead; see `mdbackmap.io.bead_files.read_beads`.
    output : str or Path
        The file to write.
    name : str
        Residue name. Default: what the bead files say, else the name of the ligand's file.
    smiles, charge
        For bond orders that the ligand's file lacks.
    centre : {"geometry", "mass"}
        Where a bead sits.
    hydrogens : {"counted", "ignored"}, optional
        Whether hydrogens place beads. Default: counted if the bead file lists any.
    allow_open_stereo : bool
        Take stereocentres nobody assigned as a conformer happens to have them.
    force : bool
        Replace a file.

    Returns
    -------
    template : Template
        The mapping as it was read back.
    notes : dict of str to str
        What was guessed, and how.

    Raises
    ------
    InputFileError, StructureError, MappingFileError, OutputFileError
        Nothing is written then.
    """
    inputs = [Path(ligand), *map(Path, beads)]
    check_place(output, (path for path in inputs if path.exists()))
    if Path(output).suffix.lower() not in (".yaml", ".yml"):
        raise OutputFileError(f"{output}: a mapping file is called .yaml or .yml")
    if Path(output).exists() and not force:
        raise OutputFileError(f"{output}: is there already; choose another name or give --force")
    stem = re.sub(r"[^!-~]|[,:/]", "", Path(ligand).stem)[:16]
    table = read_beads(beads, [name] if name else [stem, stem.upper()])
    molecule = read_molecule(ligand, smiles, charge)
    name = name or table.molecule or stem.upper()

    open_stereo = find_open_stereo(molecule)
    problems = _bad_names(molecule, table, name)
    shares, lost = _shares(molecule, table)
    problems += lost
    if open_stereo and not allow_open_stereo:
        problems += [f"{what}: its stereo is not said; say it in {molecule.source}, or give "
                     "--allow-open-stereo" for what in open_stereo]  # fmt: skip
    if problems:
        raise StructureError(f"{ligand}: no mapping can be drafted\n{listing(problems, 20)}")
    chemistry = describe(_settled(molecule) if open_stereo else molecule, shares)
    if open_stereo:
        chemistry.notes["left open, taken as it came"] = ", ".join(open_stereo)

    listed = _hydrogen_beads(molecule, table)
    hydrogens = hydrogens or ("counted" if listed else "ignored")
    notes = {**molecule.notes, **chemistry.notes,
             "beads": _say_beads(molecule, table, shares, centre, hydrogens)}  # fmt: skip
    strays = _strays(molecule, listed, shares)
    if strays and hydrogens == "counted":
        notes["hydrogens that count with their heavy atom, not where listed"] = " ".join(strays)
    if len(name) > _PDB_NAME:
        notes["residue"] = f"{name[:_PDB_NAME]} with the alias {name}, for PDB files hold 4 letters"
    text = _text(molecule, chemistry, table, shares, name, centre, hydrogens, notes)
    return _write(Path(output), text), notes


def _write(output: Path, text: str) -> Template:
    """Write beside, read back, rename: a file that cannot be read is never left."""
    with Parts() as parts:
        part = parts.add(output)
        try:
            part.write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputFileError(f"{output}: cannot be written ({error})") from error
        try:
            (template,) = load_templates(part)
        except MappingError as error:
            raise MappingFileError(str(error).replace(str(part), str(output))) from error
    return template


# Beads


def _bad_names(molecule: Molecule, table: BeadTable, residue: str) -> list[str]:
    """Names that no mapping file may hold."""
    adapter, problems = TypeAdapter(Name), []
    kinds = (("residue", [residue]), ("bead", table.beads), ("atom", molecule.names))
    for what, name in ((what, name) for what, names in kinds for name in names):
        try:
            adapter.validate_python(name)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            problems.append(f"{what} '{name[:40]}': {reason}")
    return problems


def _find(member: Member, molecule: Molecule, numbered: bool) -> int:
    """Return the atom a bead file means, -1 for none; names go before numbers."""
    if not numbered and member.atom in molecule.names:
        return molecule.names.index(member.atom)
    if member.atom.isdecimal() and 1 <= int(member.atom) <= molecule.n_numbered:
        return int(member.atom) - 1
    return -1


def _hydrogen_beads(molecule: Molecule, table: BeadTable) -> dict[int, set[str]]:
    """Return the beads of every hydrogen that is listed."""
    heavy, found = set(molecule.heavy), {}
    for bead, members in table.beads.items():
        for atom in {_find(member, molecule, table.numbered) for member in members} - heavy:
            found.setdefault(atom, set()).add(bead)
    return found


def _strays(
    molecule: Molecule, listed: dict[int, set[str]], shares: dict[int, dict[str, float]]
) -> list[str]:
    """Return hydrogens that are listed in none of the beads of their heavy atom."""
    found = []
    for i, beads in listed.items():
        (carrier, *_) = molecule.mol.GetAtomWithIdx(i).GetNeighbors()
        if not beads & shares[carrier.GetIdx()].keys():
            found.append(molecule.names[i])
    return found


def _shares(molecule: Molecule, table: BeadTable) -> tuple[dict[int, dict[str, float]], list[str]]:
    """Return bead → share of every heavy atom, and what is wrong with the beads."""
    heavy, problems = set(molecule.heavy), []
    found: dict[int, dict[str, float | None]] = {i: {} for i in sorted(heavy)}
    for bead, members in table.beads.items():
        atoms: set[int] = set()
        n_unknown = len(problems)
        for member in members:
            atom = _find(member, molecule, table.numbered)
            if atom < 0:
                problems.append(_unknown_atom(member, molecule, bead, table.numbered))
                continue
            atoms.add(atom)
            if atom in heavy:
                found[atom][bead] = member.weight
        if not members:
            problems.append(f"bead {bead} ({table.sources[0]}): holds no atom")
        elif not atoms & heavy and len(problems) == n_unknown:
            problems.append(f"bead {bead} ({table.sources[0]}): holds hydrogens only")
        if len(table.beads) > 1 and heavy <= atoms:
            problems.append(f"bead {bead} ({table.sources[0]}): holds all atoms; keep only the "
                            "groups that are beads")  # fmt: skip
    lost = [molecule.names[i] for i, beads in found.items() if not beads]
    if lost:
        problems.append(f"heavy atoms in no bead of {table.sources[0]}: {' '.join(lost)}; put each "
                        "into one (with weight 0 in a table, it does not place it)")  # fmt: skip
    return {
        i: {bead: 1 / len(beads) if weight is None else weight for bead, weight in beads.items()}
        for i, beads in found.items()
    }, problems


def _unknown_atom(member: Member, molecule: Molecule, bead: str, numbered: bool) -> str:
    where = f"{member.place}: bead {bead}: "
    if numbered or member.atom.isdecimal():
        return (f"{where}atom number {member.atom}, but {molecule.source} holds "
                f"{molecule.n_numbered} atoms")  # fmt: skip
    near = difflib.get_close_matches(member.atom.upper(), molecule.names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {' '.join(molecule.names)}"
    return f"{where}{molecule.source} has no atom {member.atom}; {hint[:200]}"


def _say_beads(
    molecule: Molecule, table: BeadTable, shares: dict[int, dict[str, float]], centre: str,
    hydrogens: str,
) -> str:  # fmt: skip
    shared = [molecule.names[i] for i, beads in shares.items() if len(beads) > 1]
    text = f"{len(table.beads)} from {' and '.join(table.sources)}; at the centre of {centre}, "
    text += f"hydrogens {hydrogens}"
    text += f"; shared evenly or as said there: {' '.join(shared)}" if shared else ""
    if table.skipped:
        text += f"; without atoms: {' '.join(table.skipped)}"
    return text


# Chemistry


def find_open_stereo(molecule: Molecule) -> list[str]:
    """Say which stereocentres and double bonds nobody assigned."""
    from rdkit import Chem

    mol, names, found = molecule.mol, molecule.names, []
    for centre in _centres(mol):
        if mol.GetAtomWithIdx(centre).GetChiralTag() == Chem.ChiralType.CHI_UNSPECIFIED:
            found.append(f"stereocentre {names[centre]}")
    for bond in _stereo_bonds(mol):
        if bond.GetStereo() <= Chem.BondStereo.STEREOANY:
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            found.append(f"double bond {names[i]}={names[j]}")
    return found


def _centres(mol: Mol) -> list[int]:
    """Stereocentres that three heavy neighbours can show.

    Phosphates and the like are none: their charge or hydrogen moves from oxygen to oxygen.
    """
    from rdkit import Chem

    return [
        info.centeredOn
        for info in Chem.FindPotentialStereo(mol)
        if info.type == Chem.StereoType.Atom_Tetrahedral
        and len(_around(mol, info.centeredOn)) >= 3
        and not _has_twins(mol.GetAtomWithIdx(info.centeredOn))
    ]


def _has_twins(atom: Atom) -> bool:
    """Whether two lone oxygens or sulphurs of one kind hang from an atom."""
    ends = Counter(
        other.GetSymbol() for other in atom.GetNeighbors()
        if other.GetSymbol() in ("O", "S") and len(_heavy(other)) == 1
    )  # fmt: skip
    return atom.GetSymbol() in ("P", "S") and max(ends.values(), default=0) > 1


def _stereo_bonds(mol: Mol) -> list[Bond]:
    """Double bonds that are cis or trans; those of amidines and guanidines turn."""
    from rdkit import Chem

    found = []
    for info in Chem.FindPotentialStereo(mol):
        if info.type != Chem.StereoType.Bond_Double:
            continue
        bond = mol.GetBondWithIdx(info.centeredOn)
        ends = (bond.GetBeginAtom(), bond.GetEndAtom())
        turns = any(
            a.GetSymbol() == "C" and b.GetSymbol() == "N"
            and sum(other.GetSymbol() == "N" for other in _heavy(a)) > 1
            for a, b in (ends, ends[::-1])
        )  # fmt: skip
        sp = any(end.GetHybridization() == Chem.HybridizationType.SP for end in ends)
        if not turns and not sp and all(len(_heavy(end)) > 1 for end in ends):
            found.append(bond)
    return found


def _settled(molecule: Molecule) -> Molecule:
    """Assign open stereo as one conformer has it."""
    from rdkit import Chem

    mol = Chem.Mol(molecule.mol)
    if not embed(mol, 1, SEED):
        raise StructureError(f"{molecule.source}: RDKit finds no conformer to take stereo from")
    Chem.AssignStereochemistryFrom3D(mol)
    return Molecule(mol, molecule.names, molecule.n_numbered, molecule.source, molecule.notes)


def _heavy(atom: Atom) -> list[Atom]:
    return [other for other in atom.GetNeighbors() if other.GetAtomicNum() != 1]


def _around(mol: Mol, centre: int) -> list[int]:
    return sorted(other.GetIdx() for other in _heavy(mol.GetAtomWithIdx(centre)))


def describe(molecule: Molecule, shares: dict[int, dict[str, float]]) -> Chemistry:
    """Work out bonds, angles, planes, stereo and symmetry of a molecule.

    Parameters
    ----------
    shares : dict of int to dict of str to float
        Bead → share of every heavy atom.
    """
    points, how = conformers(molecule)
    mol = molecule.mol
    orders = _orders(mol)
    bonds = [
        (i, j, order, float(np.median(np.linalg.norm(points[:, i] - points[:, j], axis=1))))
        for (i, j), order in sorted(orders.items())
    ]
    angles = []
    for centre in molecule.heavy:
        for i, j in itertools.combinations(_around(mol, centre), 2):
            angles.append((i, centre, j, float(np.median(_angle(points, i, centre, j)))))
    chiral = {centre: _right_handed(points, centre, _around(mol, centre))
              for centre in sorted(_centres(mol))}  # fmt: skip
    cis, trans = _stereo_rows(mol, points)
    double = _stereo_note(molecule, chiral)
    assumed = _assumed_cis(mol, points)
    result = Chemistry(
        bonds=bonds,
        angles=angles,
        planar=_planes(mol, points),
        chiral=chiral,
        cis=cis + assumed,
        trans=trans,
        symmetric=[],
        notes={"lengths and angles": how, **double},
    )
    if assumed:
        rows = [" ".join(molecule.names[i] for i in row) for row in assumed]
        result.notes["amides and esters taken as Z"] = ", ".join(rows)
    result.symmetric = _swaps(mol, result, points[0], shares)
    return result


def _orders(mol: Mol) -> dict[tuple[int, int], float]:
    """Orders of the bonds between heavy atoms; equivalent ends share theirs evenly."""
    from rdkit import Chem

    orders = {}
    for bond in mol.GetBonds():
        pair = tuple(sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())))
        if bond.GetBeginAtom().GetAtomicNum() == 1 or bond.GetEndAtom().GetAtomicNum() == 1:
            continue
        known = bond.GetIsAromatic() or bond.GetBondType() in (
            Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE
        )  # fmt: skip
        orders[pair] = bond.GetBondTypeAsDouble() if known else 1.0
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 1:
            continue
        ends: dict[tuple[str, int], list[int]] = {}
        for other in _heavy(atom):
            if len(_heavy(other)) == 1:
                kind = (other.GetSymbol(), other.GetTotalNumHs(includeNeighbors=True))
                ends.setdefault(kind, []).append(other.GetIdx())
        for twins in ends.values():
            pairs = [tuple(sorted((atom.GetIdx(), end))) for end in twins]
            mean = sum(orders[pair] for pair in pairs) / len(pairs)
            orders.update(dict.fromkeys(pairs, mean))
    return orders


def _angle(points: np.ndarray, i: int, centre: int, j: int) -> np.ndarray:
    a, b = points[:, i] - points[:, centre], points[:, j] - points[:, centre]
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def _volume(points: np.ndarray, centre: int, around: Sequence[int]) -> float:
    """Median of (a-x)·((b-x)×(c-x)), Å^3."""
    a, b, c = (points[:, k] - points[:, centre] for k in around)
    return float(np.median((a * np.cross(b, c)).sum(axis=1)))


def _right_handed(points: np.ndarray, centre: int, around: list[int]) -> tuple[int, int, int]:
    a, b, c = around[:3]
    return (a, b, c) if _volume(points, centre, (a, b, c)) > 0 else (a, c, b)


def _dihedral(points: np.ndarray, row: Sequence[int]) -> np.ndarray:
    """Size of a torsion in every conformer, degrees."""
    a, b, c, d = (points[:, k] for k in row)
    axis = (c - b) / np.linalg.norm(c - b, axis=1, keepdims=True)
    u, v = a - b, d - c
    u = u - (u * axis).sum(axis=1, keepdims=True) * axis
    v = v - (v * axis).sum(axis=1, keepdims=True) * axis
    cosine = (u * v).sum(axis=1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def _stereo_rows(mol: Mol, points: np.ndarray) -> tuple[list, list]:
    """Torsions about double bonds, as cis and as trans."""
    cis, trans = [], []
    for bond in _stereo_bonds(mol):
        j, k = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        for i, m in itertools.product(_around(mol, j), _around(mol, k)):
            if i != k and m != j:
                row = (i, j, k, m)
                (cis if np.median(_dihedral(points, row)) < 90 else trans).append(row)
    return cis, trans


def _stereo_note(molecule: Molecule, chiral: dict[int, tuple[int, int, int]]) -> dict[str, str]:
    """Say centres and double bonds with their CIP labels."""
    from rdkit import Chem
    from rdkit.Chem import rdCIPLabeler

    mol, names = Chem.Mol(molecule.mol), molecule.names
    rdCIPLabeler.AssignCIPLabels(mol)

    def label(item: Atom | Bond) -> str:
        return item.GetProp("_CIPCode") if item.HasProp("_CIPCode") else "as in the conformers"

    notes = {}
    if chiral:
        notes["stereocentres"] = ", ".join(
            f"{names[x]} {label(mol.GetAtomWithIdx(x))}" for x in chiral
        )
    if bonds := _stereo_bonds(mol):
        notes["double bonds"] = ", ".join(
            f"{names[b.GetBeginAtomIdx()]}={names[b.GetEndAtomIdx()]} {label(b)}" for b in bonds
        )
    return notes


# Planes


def _off_plane(points: np.ndarray, group: Sequence[int]) -> float:
    """Furthest any atom lies off the best plane of a group, Å, median over conformers."""
    inside = points[:, list(group)] - points[:, list(group)].mean(axis=1, keepdims=True)
    normal = np.linalg.svd(inside)[2][:, 2]
    return float(np.median(np.abs(np.einsum("kax,kx->ka", inside, normal)).max(axis=1)))


def _is_flat(mol: Mol, points: np.ndarray, centre: int) -> bool:
    """Whether an atom is sp2, and lies in the plane of its neighbours if it is a nitrogen."""
    from rdkit import Chem

    atom = mol.GetAtomWithIdx(centre)
    if atom.GetHybridization() != Chem.HybridizationType.SP2:
        return False
    around = [other.GetIdx() for other in atom.GetNeighbors()]
    if atom.GetSymbol() != "N" or len(around) < 3:
        return True
    a, b, c = (points[:, k] for k in around)
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    off = np.abs(((points[:, centre] - a) * normal).sum(axis=1))
    return float(np.median(off)) < _FLAT_CENTRE


def _planes(mol: Mol, points: np.ndarray) -> list[tuple[int, ...]]:
    """Aromatic rings, double bonds, amides, esters and lone flat centres, with what they hold."""
    groups: list[tuple[int, ...]] = []

    def add(group: Iterable[int]) -> None:
        group = tuple(dict.fromkeys(group))
        if len(group) > 3 and not any(set(group) <= set(other) for other in groups):
            groups.append(group)

    for ring in mol.GetRingInfo().AtomRings():
        bonds = [
            mol.GetBondBetweenAtoms(i, j) for i, j in zip(ring, (*ring[1:], ring[0]), strict=True)
        ]
        if len(ring) <= _LARGEST_FLAT_RING and all(bond.GetIsAromatic() for bond in bonds):
            add((*ring, *(k for i in ring for k in _around(mol, i))))
    for bond in mol.GetBonds():
        if bond.GetIsAromatic():
            continue
        pair = (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
        if bond.GetBondTypeAsDouble() == 2 and all(_is_flat(mol, points, i) for i in pair):
            add((*pair, *_around(mol, pair[0]), *_around(mol, pair[1])))
    for _, carbon, end in _acyls(mol):
        group = (carbon, end, *_around(mol, carbon), *_around(mol, end))
        if _is_flat(mol, points, end) and _off_plane(points, group) < _FLAT_GROUP:
            add(group)
    for atom in mol.GetAtoms():
        around = _around(mol, atom.GetIdx())
        if len(around) == 3 and _is_flat(mol, points, atom.GetIdx()):
            add((atom.GetIdx(), *around))
    largest = [g for g in groups if not any(set(g) < set(other) for other in groups)]
    return sorted(largest, key=lambda group: (-len(group), group))


def _acyls(mol: Mol) -> list[tuple[int, int, int]]:
    """Find O=C-N and O=C-O-C outside of aromatic rings: oxygen, carbon, nitrogen or oxygen."""
    from rdkit import Chem

    amide = Chem.MolFromSmarts("[O,S;X1]=[#6;X3]-!@,@;!:[$([#7;X3]),$([#8;X2][#6])]")
    return [tuple(match) for match in mol.GetSubstructMatches(amide)]


def _assumed_cis(mol: Mol, points: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Torsions R-N-C=O of secondary amides, and R-O-C=O of esters, outside of rings.

    They are Z but for a few in a hundred, which no bead tells; left out where most conformers
    say otherwise.
    """
    acyls = _acyls(mol)
    rows = []
    for oxygen, carbon, end in acyls:
        beyond = [k for k in _around(mol, end) if k != carbon]
        in_ring = mol.GetBondBetweenAtoms(carbon, end).IsInRing()
        acyl = any(k == other for k in beyond for _, other, _ in acyls)
        if len(beyond) != 1 or in_ring or acyl:
            continue
        row = (beyond[0], end, carbon, oxygen)
        if np.median(_dihedral(points, row)) < 40:
            rows.append(row)
    return rows


# Symmetry


def _swaps(
    mol: Mol, chemistry: Chemistry, points: np.ndarray, shares: dict[int, dict[str, float]]
) -> list[dict[int, int]]:
    """Exchanges of names of equivalent atoms, those within beads and of few atoms first.

    Those that touch every bead only turn the whole molecule round, and are left out.
    """
    heavy = sorted({i for row in chemistry.bonds for i in row[:2]})
    graph = _labelled(mol, chemistry, heavy)
    beads = {bead for held in shares.values() for bead in held}
    found = []
    for match in graph.GetSubstructMatches(graph, uniquify=False, maxMatches=_MATCHES):
        image = {heavy[i]: heavy[j] for i, j in enumerate(match)}
        if any(image[j] != i for i, j in image.items()) or all(i == j for i, j in image.items()):
            continue
        if _keeps_stereo(image, chemistry, points):
            pairs = {i: j for i, j in image.items() if i < j}
            within = all(shares[i] == shares[j] for i, j in pairs.items())
            touched = {bead for i, j in image.items() if i != j for bead in shares[i]}
            if within or touched != beads:
                found.append((not within, len(pairs), sorted(pairs.items())))
    kept: list[dict[int, int]] = []
    joined: set[tuple[int, int]] = set()
    for _, _, pairs in sorted(found):
        if len(kept) < MOST_SWAPS and not set(pairs) & joined:
            kept.append(dict(pairs))
            joined |= set(pairs)
    return kept


def _labelled(mol: Mol, chemistry: Chemistry, heavy: list[int]) -> Mol:
    """Heavy atoms with their kind as isotope and bonds with their order as type."""
    from rdkit import Chem

    kinds: dict[tuple[str, int], int] = {}
    graph, index = Chem.RWMol(), {}
    for i in heavy:
        atom = mol.GetAtomWithIdx(i)
        kind = (atom.GetSymbol(), atom.GetTotalNumHs(includeNeighbors=True))
        label = Chem.Atom(6)
        label.SetIsotope(kinds.setdefault(kind, len(kinds) + 1))
        label.SetNoImplicit(True)
        index[i] = graph.AddAtom(label)
    types = [Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE,
             Chem.BondType.QUADRUPLE, Chem.BondType.QUINTUPLE, Chem.BondType.HEXTUPLE]  # fmt: skip
    seen: dict[float, int] = {}
    for i, j, order, _ in chemistry.bonds:
        number = seen.setdefault(round(order, 2), len(seen))
        graph.AddBond(index[i], index[j], types[min(number, len(types) - 1)])
    Chem.FastFindRings(graph)
    return graph.GetMol()


def _keeps_stereo(image: dict[int, int], chemistry: Chemistry, points: np.ndarray) -> bool:
    for centre, around in chemistry.chiral.items():
        if image[centre] not in chemistry.chiral:
            return False
        if _volume(points[None], image[centre], [image[k] for k in around]) < 0:
            return False
    return all(
        (_dihedral(points[None], [image[k] for k in row])[0] < 90) == is_cis
        for rows, is_cis in ((chemistry.cis, True), (chemistry.trans, False))
        for row in rows
    )


# Text


def _text(
    molecule: Molecule, chemistry: Chemistry, table: BeadTable,
    shares: dict[int, dict[str, float]], name: str, centre: str, hydrogens: str,
    notes: dict[str, str],
) -> str:  # fmt: skip
    def row(atoms: Iterable[int], *values: float) -> str:
        return (
            f"[{', '.join((*(_plain(molecule.names[i]) for i in atoms), *map(_number, values)))}]"
        )

    def swapped(pair: tuple[int, int]) -> str:
        return ": ".join(_plain(molecule.names[i]) for i in pair)

    lines = ["# Drafted by 'mdbackmap mapping new'; read it before you use it."]
    lines += [f"# {' '.join(f'{what}: {how}'.split())}" for what, how in notes.items()]
    lines.append(f"residue: {_plain(name[:_PDB_NAME])}")
    if len(name) > _PDB_NAME:
        lines.append(f"aliases: [{_plain(name)}]")
    sources = " and ".join(table.sources)
    lines += [f"source: {json.dumps(f'drafted from {molecule.source} and {sources}')}",
              f"centre: {centre}", f"hydrogens: {hydrogens}", "beads:"]  # fmt: skip
    lines += [f"  {_plain(bead)}:" for bead in table.beads]
    if table.skipped:
        lines.append("skip_beads:")
        lines += [f"  {_plain(bead)}: {why}" for bead, why in table.skipped.items()]
    lines.append("atoms:")
    lines += [f"  {_plain(molecule.names[i])}: {{{_atom(molecule, i, shares[i])}}}"
              for i in molecule.heavy]  # fmt: skip
    sections = {
        "bonds": [row((i, j), order, round(length, 3)) for i, j, order, length in chemistry.bonds],
        "angles": [row((i, c, j), round(value, 1)) for i, c, j, value in chemistry.angles],
        "planar": [row(group) for group in chemistry.planar],
        "cis": [row(torsion) for torsion in chemistry.cis],
        "trans": [row(torsion) for torsion in chemistry.trans],
        "symmetric": [
            f"{{{', '.join(map(swapped, swap.items()))}}}" for swap in chemistry.symmetric
        ],
    }
    for key, rows in sections.items():
        if rows:
            lines += [f"{key}:", *(f"  - {text}" for text in rows)]
    if chemistry.chiral:
        lines.append("chiral:")
        lines += [f"  {_plain(molecule.names[x])}: {row(around)}"
                  for x, around in chemistry.chiral.items()]  # fmt: skip
    return "\n".join(lines) + "\n"


def _plain(name: str) -> str:
    """Return a name as YAML reads it back."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_+*'.-]*", name) and name != "null":
        return name
    return "'" + name.replace("'", "''") + "'"


def _number(value: float) -> str:
    return f"{round(value, 3):g}"


def _share(value: float) -> str:
    fraction = Fraction(value).limit_denominator(12)
    return str(fraction) if abs(fraction - value) < 2e-3 else f"{value:.4g}"


def _atom(molecule: Molecule, index: int, shares: dict[str, float]) -> str:
    """Return the entry of one atom, without its braces."""
    atom, name = molecule.mol.GetAtomWithIdx(index), molecule.names[index]
    beads = [_plain(bead) for bead in shares]
    if any(abs(share - 1 / len(shares)) > 2e-3 for share in shares.values()):
        pairs = (f"{_plain(bead)}: {_share(share)}" for bead, share in shares.items())
        parts = [f"bead: {{{', '.join(pairs)}}}"]
    else:
        parts = [f"bead: {beads[0] if len(beads) == 1 else '[' + ', '.join(beads) + ']'}"]
    if element_of(name) != atom.GetSymbol().upper():
        parts.append(f"element: {atom.GetSymbol()}")
    held = [other.GetIdx() for other in atom.GetNeighbors() if other.GetAtomicNum() == 1]
    if held:
        parts.append(f"hydrogens: [{', '.join(_plain(molecule.names[i]) for i in held)}]")
    if atom.GetFormalCharge():
        parts.append(f"charge: {atom.GetFormalCharge()}")
    return ", ".join(parts)
