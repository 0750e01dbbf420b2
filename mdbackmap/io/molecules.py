"""Reading one molecule of any chemistry with RDKit: every atom named, every hydrogen there.

Nothing of RDKit is imported before it is used: it is an optional dependency.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mdbackmap.errors import InputFileError, MdbackmapError, StructureError, listing
from mdbackmap.io.files import check_file
from mdbackmap.mapping.chemistry import MASS
from mdbackmap.mapping.conformers import embed, positions
from mdbackmap.mapping.template import MAX_ATOMS

if TYPE_CHECKING:
    from rdkit.Chem import Mol, RWMol

SEED = 2024
"""Of conformers."""
_CONFORMERS = 10
_ORDER_TRIALS = 100_000
"""Trials after which the search for bond orders is given up."""


@dataclass(frozen=True)
class Molecule:
    """One molecule with all its hydrogens.

    Attributes
    ----------
    mol : rdkit.Chem.Mol
        Sanitised, with stereo as far as it is known.
    names : list of str
        Of all atoms, in order.
    n_numbered : int
        Atoms the file counts; hydrogens that were added come after them.
    source : str
        Name of the file.
    notes : dict of str to str
        What was found out how.
    """

    mol: Mol
    names: list[str]
    n_numbered: int
    source: str
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def heavy(self) -> list[int]:
        """Atoms that are no hydrogens."""
        return [atom.GetIdx() for atom in self.mol.GetAtoms() if atom.GetAtomicNum() != 1]

    @property
    def has_coordinates(self) -> bool:
        """Whether the file placed the atoms in three dimensions."""
        return bool(self.mol.GetNumConformers()) and self.mol.GetConformer().Is3D()


def need_rdkit() -> None:
    """Refuse to go on without RDKit.

    Raises
    ------
    MdbackmapError
    """
    try:
        import rdkit.Chem  # noqa: F401
    except ImportError as error:
        raise MdbackmapError(
            "RDKit is not installed; molecules are read with it\n"
            "  Hint: pip install 'mdbackmap[ligands]'"
        ) from error


def read_molecule(path: str | Path, smiles: str = "", charge: int = 0) -> Molecule:
    """Read the one molecule of a file.

    Parameters
    ----------
    path : str or Path
        ``.sdf``, ``.mol``, ``.mol2``, ``.pdb`` or ``.smi``.
    smiles : str
        Gives bond orders and charges in place of the file's.
    charge : int
        Net charge, for a ``.pdb`` whose bond orders must be found.

    Raises
    ------
    InputFileError
        The file cannot be read.
    StructureError
        What it holds is no molecule that can be mapped; lists all offenders.
    """
    need_rdkit()
    readers: dict[str, Callable[[Path], _Draft]] = {
        ".sdf": _read_sdf, ".mol": _read_sdf, ".mol2": _read_mol2, ".pdb": _read_pdb,
        ".ent": _read_pdb, ".smi": _read_smiles, ".smiles": _read_smiles,
    }  # fmt: skip
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise InputFileError(
            f"{path}: no molecule is known by the suffix '{suffix}'; use "
            f"{', '.join(dict.fromkeys(readers))}"
        )
    if smiles and suffix in (".smi", ".smiles"):
        raise InputFileError(f"{path}: holds a SMILES already; leave out --smiles")
    check_file(path)
    with _quiet_rdkit():
        draft = readers[suffix](path)
        _check_atoms(draft)
        if smiles:
            _take_orders(draft, smiles)
        elif suffix in (".pdb", ".ent"):
            _find_orders(draft, charge)
        return _finished(draft, smiles)


@dataclass
class _Draft:
    """A molecule as a file gives it, not yet sanitised."""

    mol: RWMol
    names: list[str]
    path: Path
    notes: dict[str, str]


@contextlib.contextmanager
def _quiet_rdkit() -> Iterator[None]:
    """Keep RDKit from printing; messages say it in our words."""
    from rdkit import rdBase

    rdBase.LogToPythonStderr()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        rdBase.LogToCppStreams()


def _read(path: Path, build: Callable[[], Mol | None], hint: str = "") -> RWMol:
    """Run one of RDKit's readers, which answer None and print why."""
    from rdkit.Chem import RWMol

    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            mol = build()
        except (OSError, RuntimeError, ValueError) as error:
            raise InputFileError(
                f"{path}: RDKit cannot read it ({_short(str(error))}){hint}"
            ) from error
    if mol is None or not mol.GetNumAtoms():
        reason = _short(said.getvalue()) or "it holds no atoms"
        raise InputFileError(f"{path}: RDKit cannot read it ({reason}){hint}")
    return RWMol(mol)


def _short(text: str) -> str:
    """The first line of what RDKit says that says something, without time stamps."""
    lines = [re.sub(r"^\[\d\d:\d\d:\d\d\]\s*", "", line).strip() for line in text.splitlines()]
    return next((line for line in lines if re.search("[A-Za-z]{3}", line)), "")[:200]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path}: cannot be read as text ({error})") from error


def _read_sdf(path: Path) -> _Draft:
    from rdkit import Chem

    block = _text(path)
    n_records = len([part for part in re.split(r"^\$\$\$\$", block, flags=re.M) if part.strip()])
    if n_records > 1:
        raise StructureError(f"{path}: holds {n_records} molecules; give a file of one")
    mol = _read(path, lambda: Chem.MolFromMolBlock(block, sanitize=False, removeHs=False))
    if not mol.GetConformer().Is3D():
        # Wedges are all the stereo a drawing has; they are read before hydrogens are added.
        Chem.AssignChiralTypesFromBondDirs(mol)
        Chem.SetDoubleBondNeighborDirections(mol, mol.GetConformer())
    names = [f"{a.GetSymbol().upper()}{a.GetIdx() + 1}" for a in mol.GetAtoms()]
    notes = {"names": "element and number in the file", "bond orders": f"as in {path.name}"}
    return _Draft(mol, names, path, notes)


def _read_mol2(path: Path) -> _Draft:
    from rdkit import Chem

    n_records = _text(path).count("@<TRIPOS>MOLECULE")
    if n_records > 1:
        raise StructureError(f"{path}: holds {n_records} molecules; give a file of one")
    mol = _read(
        path,
        lambda: Chem.MolFromMol2File(str(path), sanitize=False, removeHs=False),
        "\n  Hint: atom types must be those of Tripos (C.ar, N.am), not of GAFF; else use an .sdf",
    )
    for atom in mol.GetAtoms():
        atom.SetNoImplicit(False)
    names = [atom.GetProp("_TriposAtomName") for atom in mol.GetAtoms()]
    notes = {"names": f"as in {path.name}", "bond orders": f"as in {path.name}"}
    return _Draft(mol, names, path, notes)


def _read_pdb(path: Path) -> _Draft:
    from rdkit import Chem
    from rdkit.Chem import rdDetermineBonds

    has_bonds = any(line.startswith("CONECT") for line in _text(path).splitlines())
    mol = _read(
        path,
        lambda: Chem.MolFromPDBFile(
            str(path), sanitize=False, removeHs=False, proximityBonding=False
        ),
    )
    told = [atom.GetPDBResidueInfo() for atom in mol.GetAtoms()]
    residues = {f"{t.GetResidueName().strip()} {t.GetResidueNumber()}" for t in told}
    if len(residues) > 1:
        raise StructureError(
            f"{path}: holds {len(residues)} residues ({', '.join(sorted(residues)[:10])}); "
            "give a file of the one molecule"
        )
    if not has_bonds:
        rdDetermineBonds.DetermineConnectivity(mol)
    for bond in mol.GetBonds():
        bond.SetBondType(Chem.BondType.SINGLE)
    for atom in mol.GetAtoms():
        atom.SetFormalCharge(0)
    notes = {
        "names": f"as in {path.name}",
        "bonds": "as its CONECT lines say" if has_bonds else "between atoms that are near",
    }
    return _Draft(mol, [t.GetName().strip() for t in told], path, notes)


def _read_smiles(path: Path) -> _Draft:
    from rdkit import Chem

    lines = [line for line in _text(path).splitlines() if line.strip() and line[0] != "#"]
    if len(lines) != 1:
        raise StructureError(f"{path}: expected one line with one SMILES, found {len(lines)}")
    text = lines[0].split()[0]
    mol = _read(path, lambda: Chem.MolFromSmiles(text, sanitize=False))
    count: Counter[str] = Counter()
    names = []
    for atom in mol.GetAtoms():
        symbol = atom.GetSymbol().upper()
        count[symbol] += 1
        names.append(f"{symbol}{count[symbol]}")
    notes = {"names": "numbered in the order of the SMILES", "bond orders": "as in the SMILES"}
    return _Draft(mol, names, path, notes)


def _check_atoms(draft: _Draft) -> None:
    """Refuse what is no single molecule of known elements."""
    from rdkit import Chem

    mol, names, path = draft.mol, draft.names, draft.path
    problems = []
    for atom in mol.GetAtoms():
        if atom.GetSymbol().upper() not in MASS:
            problems.append(f"atom {names[atom.GetIdx()]}: element {atom.GetSymbol()} is not known "
                            f"(known: {' '.join(MASS)})")  # fmt: skip
    for name, times in Counter(names).items():
        if times > 1:
            problems.append(f"atom {name}: the name is given to {times} atoms")
    n_heavy = sum(atom.GetAtomicNum() != 1 for atom in mol.GetAtoms())
    if n_heavy < 2:
        problems.append("fewer than two heavy atoms; there is nothing to map")
    if n_heavy > MAX_ATOMS:
        problems.append(f"{n_heavy} heavy atoms; a mapping may have {MAX_ATOMS}")
    parts = Chem.GetMolFrags(mol)
    if len(parts) > 1:
        problems.append(f"{len(parts)} molecules that no bond joins; give the one to map, without "
                        "its counterions and water:")  # fmt: skip
        problems += [f"  {' '.join(names[i] for i in part[:12])}{' ...' * (len(part) > 12)}"
                     for part in parts]  # fmt: skip
    if problems:
        raise StructureError(f"{path}: cannot be mapped\n{listing(problems, 20)}")


def _take_orders(draft: _Draft, smiles: str) -> None:
    """Give the atoms of a file the bond orders, charges and hydrogens of a SMILES."""
    from rdkit import Chem

    with contextlib.redirect_stderr(io.StringIO()) as said:
        template = Chem.MolFromSmiles(smiles)
    if template is None:
        raise StructureError(f"--smiles '{smiles[:60]}': {_short(said.getvalue())}")
    mol, names, path = draft.mol, draft.names, draft.path
    heavy = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() != 1]
    hydrogens = _hydrogens(mol)
    file, wanted = _skeleton(mol, heavy), _skeleton(template, range(template.GetNumAtoms()))
    sizes = [(m.GetNumAtoms(), m.GetNumBonds()) for m in (file, wanted)]
    matches = ()
    if sizes[0] == sizes[1]:
        matches = file.GetSubstructMatches(wanted, uniquify=False, maxMatches=10_000)
    if not matches:
        raise StructureError(
            f"{path} and --smiles are not the same molecule: the first has {sizes[0][0]} heavy "
            f"atoms and {sizes[0][1]} bonds between them ({_formula(file)}), the second "
            f"{sizes[1][0]} and {sizes[1][1]} ({_formula(wanted)})"
        )
    count = [atom.GetTotalNumHs() for atom in template.GetAtoms()]

    def excess(match: tuple[int, ...]) -> tuple[int, int]:
        gap = [len(hydrogens[heavy[m]]) - n for m, n in zip(match, count, strict=True)]
        return sum(g for g in gap if g > 0), sum(abs(g) for g in gap)

    best = min(matches, key=excess)
    if excess(best)[0]:
        rows = [f"atom {names[heavy[m]]}: {len(hydrogens[heavy[m]])} hydrogens in the file, {n} in "
                "the SMILES" for m, n in zip(best, count, strict=True)
                if len(hydrogens[heavy[m]]) > n]  # fmt: skip
        raise StructureError(f"{path}: --smiles has another protonation\n{listing(rows)}")
    place = [heavy[m] for m in best]
    Chem.Kekulize(template, clearAromaticFlags=True)
    for atom, i, n in zip(template.GetAtoms(), place, count, strict=True):
        own = mol.GetAtomWithIdx(i)
        own.SetFormalCharge(atom.GetFormalCharge())
        own.SetIsAromatic(False)
        own.SetNoImplicit(True)
        own.SetNumExplicitHs(n - len(hydrogens[i]))
    for bond in template.GetBonds():
        i, j = place[bond.GetBeginAtomIdx()], place[bond.GetEndAtomIdx()]
        own = mol.GetBondBetweenAtoms(i, j)
        own.SetIsAromatic(False)
        own.SetBondType(bond.GetBondType())
    draft.notes["bond orders"] = "as in the SMILES"


def _hydrogens(mol: Mol) -> list[list[int]]:
    """The hydrogens bonded to each atom."""
    return [
        [other.GetIdx() for other in atom.GetNeighbors() if other.GetAtomicNum() == 1]
        for atom in mol.GetAtoms()
    ]


def _skeleton(mol: Mol, atoms: list[int] | range) -> RWMol:
    """Elements and bonds alone."""
    from rdkit import Chem

    bare = Chem.RWMol()
    index = {i: bare.AddAtom(Chem.Atom(mol.GetAtomWithIdx(i).GetAtomicNum())) for i in atoms}
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if i in index and j in index:
            bare.AddBond(index[i], index[j], Chem.BondType.SINGLE)
    return bare


def _formula(mol: Mol) -> str:
    count = Counter(atom.GetSymbol() for atom in mol.GetAtoms())
    return "".join(f"{symbol}{count[symbol]}" for symbol in sorted(count))


def _find_orders(draft: _Draft, charge: int) -> None:
    """Find bond orders from valences; needs all hydrogens."""
    from rdkit.Chem import rdDetermineBonds

    hint = "  Hint: give the molecule's SMILES with --smiles, or its net charge with --charge."
    if not any(_hydrogens(draft.mol)):
        raise StructureError(
            f"{draft.path}: a .pdb has no bond orders, and without hydrogens they cannot be "
            f"found\n{hint}"
        )
    try:
        rdDetermineBonds.DetermineBondOrders(
            draft.mol, charge=charge, embedChiral=False, maxIterations=_ORDER_TRIALS
        )
    except (ValueError, RuntimeError) as error:
        raise StructureError(
            f"{draft.path}: no bond orders fit the atoms and a net charge of {charge} "
            f"({_short(str(error))})\n{hint}"
        ) from error
    draft.notes["bond orders"] = f"found from the valences, for a net charge of {charge}"


def _finished(draft: _Draft, smiles: str) -> Molecule:
    """Sanitise, add hydrogens, name them, read stereo from coordinates."""
    from rdkit import Chem

    mol, names, path = draft.mol, draft.names, draft.path
    _check_valence(mol, names, path)
    Chem.SanitizeMol(mol)
    radicals = [names[a.GetIdx()] for a in mol.GetAtoms() if a.GetNumRadicalElectrons()]
    if radicals:
        raise StructureError(
            f"{path}: unpaired electrons at atom {', '.join(radicals)}; a hydrogen or a charge is "
            "missing there"
        )
    n_numbered = mol.GetNumAtoms()
    placed = bool(mol.GetNumConformers()) and mol.GetConformer().Is3D()
    whole = Chem.AddHs(mol, addCoords=placed)
    added = whole.GetNumAtoms() - n_numbered
    names = [*names, *_new_names(names, added)]
    is_text = path.suffix.lower() in (".smi", ".smiles")
    if is_text:
        n_numbered = whole.GetNumAtoms()
    elif added:
        draft.notes["hydrogens"] = f"{added} that {path.name} lacks were added"
    if placed:
        Chem.AssignStereochemistryFrom3D(whole)
        _check_stereo(whole, smiles, path)
    else:
        Chem.AssignStereochemistry(whole, cleanIt=True, force=True)
    return Molecule(whole, names, n_numbered, path.name, draft.notes)


def _check_valence(mol: Mol, names: list[str], path: Path) -> None:
    from rdkit import Chem

    rows = []
    for problem in Chem.DetectChemistryProblems(mol):
        several = problem.GetType() == "KekulizeException"
        at = problem.GetAtomIndices() if several else [problem.GetAtomIdx()]
        text = re.sub(r"\s*atom # \d+", "", _short(problem.Message()))
        rows.append(f"atom {' '.join(names[i] for i in at)}: {text}")
    if rows:
        raise StructureError(
            f"{path}: bonds and charges make no valid molecule\n{listing(rows, 20)}\n"
            "  Hint: charged atoms need their charge, aromatic NH its hydrogen."
        )


def _new_names(names: list[str], number: int) -> list[str]:
    """Return so many names of hydrogens that are still free."""
    taken, result, k = set(names), [], 0
    while len(result) < number:
        k += 1
        if f"H{k}" not in taken:
            result.append(f"H{k}")
    return result


def _check_stereo(mol: Mol, smiles: str, path: Path) -> None:
    """Refuse coordinates of another stereoisomer than the SMILES."""
    from rdkit import Chem

    if not smiles:
        return
    found, wanted = Chem.RemoveHs(mol), Chem.MolFromSmiles(smiles)
    if not found.HasSubstructMatch(wanted, useChirality=True):
        raise StructureError(
            f"{path} is another stereoisomer than --smiles: the coordinates are "
            f"{Chem.MolToSmiles(found)}"
        )


def conformers(molecule: Molecule) -> tuple[np.ndarray, str]:
    """Make conformers and minimise them.

    Returns
    -------
    positions : ndarray, shape=(k, n_atoms, 3), Å
    how : str
        How they were made, in words.

    Raises
    ------
    StructureError
        No conformer could be made.
    """
    with _quiet_rdkit():
        return _conformers(molecule)


def _conformers(molecule: Molecule) -> tuple[np.ndarray, str]:
    from rdkit import Chem
    from rdkit.Chem import rdForceFieldHelpers as force_fields

    mol = Chem.Mol(molecule.mol)
    has_parameters = force_fields.MMFFHasAllMoleculeParams(mol)
    if not has_parameters and molecule.has_coordinates:
        return positions(mol), f"as in {molecule.source}, since MMFF94s has no parameters"
    if not embed(mol, _CONFORMERS, SEED):
        if not molecule.has_coordinates:
            raise StructureError(
                f"{molecule.source}: RDKit finds no conformer; are its rings and stereocentres "
                "possible together? If they are, give an .sdf with coordinates"
            )
        mol = Chem.Mol(molecule.mol)
    if has_parameters:
        done = force_fields.MMFFOptimizeMoleculeConfs(mol, maxIters=5000, mmffVariant="MMFF94s")
        name = "MMFF94s"
    elif force_fields.UFFHasAllMoleculeParams(mol):
        done = force_fields.UFFOptimizeMoleculeConfs(mol, maxIters=5000)
        name = "UFF (MMFF94s has no parameters)"
    else:
        return positions(mol), "of ETKDG conformers, not minimised: no force field knows the atoms"
    kept = [k for k, (failed, _) in enumerate(done) if not failed] or list(range(len(done)))
    kept.sort(key=lambda k: done[k][1])
    return positions(mol)[kept], f"medians over {len(kept)} conformers minimised with {name}"
