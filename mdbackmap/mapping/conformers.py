"""Conformers of a molecule from its mapping's chemistry, made with RDKit (an optional package).

They place molecules that no model has learnt, and are what a small model of one is trained on.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

import numpy as np

from mdbackmap.errors import MappingError
from mdbackmap.mapping.chemistry import MASS
from mdbackmap.mapping.template import Template

if TYPE_CHECKING:
    from rdkit.Chem import Mol

SEED = 7
PATIENCE = 15
"""Seconds that RDKit may look for a conformer, and for every five more; then once more as long,
from random coordinates."""
MOST, LARGE, FEW = 40, 50, 10
"""Conformers of a molecule that are fitted to beads; of one with more heavy atoms, or in part,
fewer."""
TEMPERATURE = 300.0
"""K, of the dynamics that training frames come from."""
FRICTION = 0.01
"""1/fs, of the Langevin thermostat."""
STEP = 1.0
"""fs."""
HYDROGEN_MASS = 3.0
"""u; heavier hydrogens bear the step."""
SCREENED, HIDDEN = 80.0, 4.0
"""Dielectric constants: of molecules of several charges, whose conformers else curl up about them
or bend their rings; and of the dynamics."""
SPRAWLING = 100
"""Atoms, with hydrogens, beyond which coordinates from distances hardly ever come out."""
PUCKERED, UPRIGHT = 35.0, 120.0
"""Degrees: torsions of chairs are larger; those of axial substituents smaller."""
_BOLTZMANN = 0.0019872043
"""kcal/mol/K"""
_ACCELERATION = 4.184e-4
"""kcal/mol/Å/u in Å/fs^2."""


@functools.lru_cache(maxsize=256)
def conformers(template: Template, without: tuple[int, ...] = ()) -> np.ndarray:
    """Return low-energy conformers of a template, heavy atoms in its order.

    Parameters
    ----------
    template : Template
    without : tuple of int
        Atoms to leave out, as chains that are drawn later: hydrogens take the place of those
        next to the others. It makes conformers of a lipid's head a matter of a second.

    Returns
    -------
    ndarray, shape=(k, n_atoms, 3), float64, Å
        Not numbers for atoms left out.

    Raises
    ------
    MappingError
        RDKit is not installed, or cannot make sense of the bonds of the mapping.
    """
    mol = _molecule(template)
    rows = kept = np.setdiff1d(np.arange(template.n_atoms), without)
    if without:
        mol, left = _cut(mol, set(without))
        rows = np.searchsorted(left, kept)
    _embed(mol, template, MOST if len(kept) <= LARGE and not without else FEW)
    _minimise(mol)
    found = positions(mol)
    result = np.full((len(found), template.n_atoms, 3), np.nan)
    result[:, kept] = found[:, rows]
    return result


def _cut(mol: Mol, without: set[int]) -> tuple[Mol, list[int]]:
    """Take atoms out, and put hydrogens where bonds to them were cut; tells which are left."""
    from rdkit import Chem

    cut = Chem.RWMol(mol)
    gone, caps = [], []
    for k in without:
        near = [other.GetIdx() for other in mol.GetAtomWithIdx(k).GetNeighbors()]
        gone += [n for n in near if mol.GetAtomWithIdx(n).GetAtomicNum() == 1]
        (gone if without.issuperset(set(near) - set(gone)) else caps).append(k)
    for k in caps:
        # As hydrogens keep the order of neighbours, and with it the hands of centres.
        cut.ReplaceAtom(k, Chem.Atom(1), preserveProps=False)
    for k in sorted(gone, reverse=True):
        cut.RemoveAtom(k)
    Chem.SanitizeMol(cut)
    left = [k for k in range(mol.GetNumAtoms()) if k not in set(gone)]
    return cut.GetMol(), left


def dynamics(template: Template, starts: int, frames: int, every: int = 200) -> np.ndarray:
    """Return frames of short Langevin runs in vacuum (MMFF94) from several conformers.

    Parameters
    ----------
    starts : int
        Conformers to start from.
    frames : int
        Frames of each run.
    every : int
        Steps of 1 fs between frames, and twice as many before the first.

    Returns
    -------
    ndarray, shape=(starts, frames, n_atoms, 3), float64, Å
        Heavy atoms. A molecule with fewer conformers starts from each several times.

    Raises
    ------
    MappingError
        As `conformers`; MMFF94 has no parameters for the molecule.
    """
    from rdkit.Chem import rdForceFieldHelpers as helpers

    mol = _molecule(template)
    _embed(mol, template, starts)
    _minimise(mol)
    properties = helpers.MMFFGetMoleculeProperties(mol)
    if properties is None:
        raise MappingError(
            f"{template.source}: residue {template.residue}: MMFF94 has no parameters for it; give "
            "structures of your own (--conformers FILE)"
        )
    # Water around it hides its charges from one another.
    properties.SetMMFFDielectricConstant(HIDDEN)
    numbers = [atom.GetSymbol().upper() for atom in mol.GetAtoms()]
    mass = np.array([HYDROGEN_MASS if e == "H" else MASS.get(e, 12.0) for e in numbers])[:, None]
    runs = []
    rng = np.random.default_rng(SEED)
    for conformer in itertools.islice(itertools.cycle(mol.GetConformers()), starts):
        field = helpers.MMFFGetMoleculeForceField(mol, properties, confId=conformer.GetId())
        runs.append(_langevin(field, conformer.GetPositions(), mass, frames, every, rng))
    return np.array(runs)[:, :, : template.n_atoms]


def _langevin(field, position: np.ndarray, mass, frames: int, every: int, rng) -> np.ndarray:
    """BAOAB splitting (Leimkuhler and Matthews 2013, doi:10.1093/amrx/abs010)."""

    def pull(x: np.ndarray) -> np.ndarray:
        flat = x.ravel().tolist()
        # The gradient alone would be that of the last energy's distances.
        field.CalcEnergy(flat)
        return -np.array(field.CalcGrad(flat)).reshape(-1, 3) * _ACCELERATION / mass

    spread = np.sqrt(_BOLTZMANN * TEMPERATURE * _ACCELERATION / mass)
    speed = spread * rng.normal(size=position.shape)
    kept, keep = [], np.exp(-FRICTION * STEP)
    force = pull(position)
    for step in range(1, (frames + 1) * every + 1):
        speed = speed + 0.5 * STEP * force
        position = position + 0.5 * STEP * speed
        speed = keep * speed + np.sqrt(1 - keep**2) * spread * rng.normal(size=position.shape)
        position = position + 0.5 * STEP * speed
        force = pull(position)
        speed = speed + 0.5 * STEP * force
        if step % every == 0 and step > every:
            kept.append(position)
    return np.array(kept)


def _molecule(template: Template) -> Mol:
    """The template as a molecule of RDKit: its heavy atoms first and in order, then hydrogens."""
    try:
        from rdkit import Chem, rdBase
    except ImportError as error:
        raise MappingError(
            f"residue {template.residue}: conformers need RDKit; pip install rdkit"
        ) from error
    terms, mol = template.constraints, Chem.RWMol()
    charges = [template.spec.atoms[name].charge if name in template.spec.atoms else 0
               for name in template.names.tolist()]  # fmt: skip
    for element, charge in zip(template.elements.tolist(), charges, strict=True):
        atom = Chem.Atom(element.capitalize())
        atom.SetFormalCharge(charge)
        # A mapping that names no hydrogens does not mean that there are none.
        atom.SetNoImplicit(bool(template.n_hydrogens.any()))
        mol.AddAtom(atom)
    for (i, j), order in zip(terms.bonds.tolist(), terms.bond_order.tolist(), strict=True):
        mol.AddBond(i, j, _kind(order))
    for k, count in enumerate(template.n_hydrogens.tolist()):
        for _ in range(count):
            mol.AddBond(k, mol.AddAtom(Chem.Atom("H")), Chem.BondType.SINGLE)
    _localise(mol)
    try:
        with rdBase.BlockLogs():
            mol = Chem.AddHs(_with_orders(mol, Chem.GetFormalCharge(mol)))
        _set_hands(mol, template)
        _set_double_bonds(mol, template)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MappingError(
            f"{template.source}: residue {template.residue}: RDKit cannot make conformers of its "
            f"bonds, hydrogens and charges: {reason}"
        ) from error
    return mol


def _kind(order: float):
    from rdkit.Chem import BondType

    kinds = {1.0: BondType.SINGLE, 1.5: BondType.AROMATIC, 2.0: BondType.DOUBLE,
             3.0: BondType.TRIPLE}  # fmt: skip
    return kinds[min(kinds, key=lambda known: abs(known - order))]


def _localise(mol: Mol) -> None:
    """Give acids one double bond and oxygens with the charge, in place of bonds shared by all.

    And ammonium its charge, which mappings need not state.
    """
    from rdkit.Chem import BondType

    for atom in mol.GetAtoms():
        if atom.GetSymbol() == "N" and atom.GetDegree() == 4:
            atom.SetFormalCharge(1)
        shared = [
            bond for bond in atom.GetBonds()
            if atom.GetSymbol() in ("C", "P", "S") and bond.GetBondType() == BondType.AROMATIC
            and bond.GetOtherAtom(atom).GetSymbol() == "O"
            and bond.GetOtherAtom(atom).GetDegree() == 1
        ]  # fmt: skip
        for k, bond in enumerate(shared):
            bond.SetBondType(BondType.SINGLE if k else BondType.DOUBLE)
            bond.GetOtherAtom(atom).SetFormalCharge(-1 if k else 0)


def _with_orders(mol: Mol, charge: int) -> Mol:
    """Find bond orders that suit the valences, if those stated do not (aromatic 1.5s, say)."""
    from rdkit import Chem
    from rdkit.Chem import rdDetermineBonds

    stated = Chem.Mol(mol)
    try:
        Chem.SanitizeMol(stated)
    except ValueError:
        for atom in mol.GetAtoms():
            atom.SetFormalCharge(0)
            atom.SetIsAromatic(False)
        for bond in mol.GetBonds():
            bond.SetBondType(Chem.BondType.SINGLE)
            bond.SetIsAromatic(False)
        rdDetermineBonds.DetermineBondOrders(mol, charge=charge, embedChiral=False)
        Chem.SanitizeMol(mol)
        return mol
    return stated


def _set_hands(mol: Mol, template: Template) -> None:
    """Set the stereocentres of a molecule as the mapping's signed volumes say."""
    from rdkit import Chem

    terms = template.constraints
    for (x, *around), volume in zip(terms.volumes.tolist(), terms.volume.tolist(), strict=True):
        if abs(volume) < 0.5:
            continue
        atom = mol.GetAtomWithIdx(x)
        order = [bond.GetOtherAtomIdx(x) for bond in atom.GetBonds()]
        if len(order) != 4:
            continue
        # Seen from the first neighbour, the others turn counterclockwise where the signed volume
        # of these three is negative.
        first = next(k for k in order if k not in around)
        rest = [k for k in order if k != first]
        even = _is_even([around.index(k) for k in rest])
        negative = (volume < 0) == even
        moved = _is_even([order.index(k) for k in (first, *rest)])
        counterclockwise = negative == moved
        atom.SetChiralTag(Chem.ChiralType.CHI_TETRAHEDRAL_CCW if counterclockwise
                          else Chem.ChiralType.CHI_TETRAHEDRAL_CW)  # fmt: skip


def _is_even(permutation: list[int]) -> bool:
    pairs = ((a, b) for k, a in enumerate(permutation) for b in permutation[k + 1 :])
    return sum(a > b for a, b in pairs) % 2 == 0


def _set_double_bonds(mol: Mol, template: Template) -> None:
    """Set double bonds outside rings cis or trans as the mapping says."""
    from rdkit import Chem

    terms = template.constraints
    for (a, b, c, d), torsion in zip(terms.torsions.tolist(), terms.torsion.tolist(), strict=True):
        bond = mol.GetBondBetweenAtoms(b, c)
        if bond is None or bond.GetBondType() != Chem.BondType.DOUBLE or bond.IsInRing():
            continue
        bond.SetStereoAtoms(a, d)
        bond.SetStereo(Chem.BondStereo.STEREOCIS if torsion == 0 else Chem.BondStereo.STEREOTRANS)


def _embed(mol: Mol, template: Template, count: int) -> None:
    if not embed(mol, count, SEED, apart=0.2):
        raise MappingError(
            f"{template.source}: residue {template.residue}: RDKit finds no conformer; are its "
            "stereocentres and rings possible?"
        )


def _minimise(mol: Mol) -> None:
    """Minimise with MMFF94, or leave conformers as they were embedded where it knows no atoms.

    In either case only those are kept whose rings are as they should be.
    """
    from rdkit.Chem import rdForceFieldHelpers as helpers

    properties = helpers.MMFFGetMoleculeProperties(mol)
    if properties is not None:
        if sum(atom.GetFormalCharge() != 0 for atom in mol.GetAtoms()) > 1:
            properties.SetMMFFDielectricConstant(SCREENED)
        field = helpers.MMFFGetMoleculeForceField(mol, properties)
        helpers.OptimizeMoleculeConfs(mol, field, maxIters=500)
    _drop_strained_rings(mol)


def _drop_strained_rings(mol: Mol) -> None:
    """Drop boats of rings that can be chairs, and chairs with two more axial substituents.

    Energies would not tell: those of the rest of a molecule differ by more.
    """
    from rdkit.Chem.rdMolTransforms import GetDihedralDeg

    rings = [ring for ring in mol.GetRingInfo().AtomRings() if len(ring) == 6]
    corners = [(*(ring + ring)[k : k + 4], ring) for ring in rings for k in range(6)]
    inner = [corner[:4] for corner in corners]
    outer = [(*row, other.GetIdx()) for *row, _, ring in corners
             for other in mol.GetAtomWithIdx(row[2]).GetNeighbors()
             if other.GetIdx() not in ring and other.GetAtomicNum() > 1]  # fmt: skip
    found = []
    for conformer in mol.GetConformers():
        turns = np.array([GetDihedralDeg(conformer, *row) for row in inner]).reshape(-1, 6)
        puckered = (np.abs(turns) > PUCKERED) & (turns * np.roll(turns, 1, axis=1) < 0)
        axial = sum(abs(GetDihedralDeg(conformer, *row)) < UPRIGHT for row in outer)
        found.append((conformer.GetId(), int((~puckered.all(axis=1)).sum()), axial))
    bent = min(bent for _, bent, _ in found)
    fewest = min(axial for _, own, axial in found if own == bent)
    for k, own, axial in found:
        if own > bent or axial > fewest + 1:
            mol.RemoveConformer(k)


def embed(mol: Mol, count: int, seed: int, apart: float = -1.0) -> int:
    """Replace the conformers of a molecule of RDKit; return how many could be made.

    Parameters
    ----------
    mol : rdkit.Chem.Mol
        With its hydrogens.
    count : int
        The most that are made.
    seed : int
    apart : float, Å
        Conformers nearer to another one than this (RMSD) are left out.
    """
    from rdkit.Chem import rdDistGeom

    options = rdDistGeom.ETKDGv3()
    options.randomSeed = seed
    options.pruneRmsThresh = apart
    options.useSmallRingTorsions = True
    # Rings and stereocentres that cannot be together would be tried for hours.
    options.timeout = PATIENCE * (1 + count // 5)
    for anywhere in (mol.GetNumAtoms() > SPRAWLING, True):
        options.useRandomCoords = anywhere
        rdDistGeom.EmbedMultipleConfs(mol, count, options)
        if mol.GetNumConformers():
            break
    return mol.GetNumConformers()


def positions(mol: Mol) -> np.ndarray:
    """Return the positions of all conformers of a molecule of RDKit, shape (k, n_atoms, 3), Å."""
    return np.array([conformer.GetPositions() for conformer in mol.GetConformers()])
