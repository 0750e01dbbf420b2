"""Force fields that OpenMM ships: who is covered, how atoms are called there, and a System.

Residues are told by their bond graphs, not by names, so any naming of the input will do; names
only choose between residues of one graph. What a force field says of one molecule of a kind is
worked out once and repeated for its copies.
"""

from __future__ import annotations

import functools
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openmm as mm
import openmm.app as app

from mdbackmap.errors import ForceFieldError, InputFileError, listing
from mdbackmap.relax.kinds import Kind, find_kinds
from mdbackmap.relax.names import renamed
from mdbackmap.relax.templates import Templates, file_of, residues_of
from mdbackmap.relax.tiling import terms, tiled
from mdbackmap.relax.transfer import Transfer
from mdbackmap.structure import AtomTable

FILES: dict[str, tuple[tuple[str, ...], ...]] = {
    "charmm36": (
        ("charmm36.xml", "charmm36/water.xml"),
        ("charmm36_2024.xml", "charmm36_2024/water.xml"),
    ),
    "amber14": (("amber14-all.xml", "amber14/tip3p.xml"),),
}
"""Files of each force field; of several sets the first that covers a system is taken."""
WATER = {"O": 1, "H": 2}
_CULPRIT = re.compile(r"No template found for residue (\d+) \(\w+\)\.\s*([^.]*)")
_RECORD = "if 'record' in args: args['record'].update(templateForResidue, types=data.atomType)"


@dataclass(frozen=True, eq=False)
class Assignment:
    """A force field laid over an atom table.

    Attributes
    ----------
    name : str
    files : tuple of str
        What OpenMM was given.
    kinds : list of Kind
        The molecules it covers.
    others : list of Kind
        Those it does not.
    atoms : AtomTable
        With the force field's names of atoms and residues.
    missing : dict of str to int
        Residues without a template, and how many there are; of chains with number and reason.
    """

    name: str
    files: tuple[str, ...]
    kinds: list[Kind]
    others: list[Kind]
    atoms: AtomTable
    missing: dict[str, int]
    force_field: app.ForceField
    topology: app.Topology
    templates: dict[int, str]
    types: list[str]
    """Atom type of every atom of one molecule of each kind."""
    flexible: mm.System
    """One molecule of each kind without constraints."""
    residues: str
    """A force-field file with templates that the files lack, or that settle which of two is meant;
    empty where none are needed."""
    strange: tuple[str, ...]
    """Lone residues that got a template of another name."""

    @property
    def quality(self) -> tuple[int, int]:
        """Atoms not covered, and residues with templates of other names; less is better."""
        return sum(kind.atoms.size for kind in self.others), len(self.strange)

    def prototype(self, **options) -> mm.System:
        """Return the System of one molecule of each kind covered; options of createSystem."""
        residues = list(self.topology.residues())
        chosen = {residues[k]: name for k, name in self.templates.items()}
        box = options.get("nonbondedMethod") not in (None, app.NoCutoff, app.CutoffNonPeriodic)
        self.topology.setPeriodicBoxVectors(np.eye(3) * 10.0 if box else None)
        return self.force_field.createSystem(
            self.topology, residueTemplates=chosen, record={}, **options
        )

    @property
    def charge(self) -> float:
        """Of all atoms it covers, e."""
        forces = self.flexible.getForces()
        nonbonded = next(f for f in forces if isinstance(f, mm.NonbondedForce))
        charges = [nonbonded.getParticleParameters(i)[0]._value
                   for i in range(nonbonded.getNumParticles())]  # fmt: skip
        copies = np.repeat([len(k.atoms) for k in self.kinds], [len(k.first) for k in self.kinds])
        return float(np.dot(charges, copies))

    def require_all(self) -> None:
        """Refuse to go on where molecules are not covered.

        Raises
        ------
        ForceFieldError
            Names them.
        """
        if self.others:
            raise ForceFieldError(_not_covered(self))

    def system(self, **options) -> mm.System:
        """Return the System of all atoms; options of createSystem.

        Raises
        ------
        ForceFieldError
            Residues without a template, or terms without parameters.
        """
        self.require_all()
        return tiled(self.prototype(**options), [k.atoms for k in self.kinds], len(self.atoms))


def assign(atoms: AtomTable, name: str, files: Sequence[str | Path] = ()) -> Assignment:
    """Lay a force field over the molecules of an atom table.

    Parameters
    ----------
    atoms : AtomTable
        All atoms, with hydrogens; bonds tell residues apart.
    name : str
        One of `FILES`.
    files : sequence of str or Path
        More force-field files in OpenMM's format, for ligands.

    Raises
    ------
    ForceFieldError
        No such force field; a molecule whose bonds it has no parameters for.
    InputFileError
        A file that cannot be read, or is none.
    """
    if name not in FILES:
        raise ForceFieldError(f"force field '{name}': expected {', '.join(FILES)} or none")
    if not (atoms.elements == "H").any():
        raise ForceFieldError(
            f"force field {name}: the atoms have no hydrogens, which it needs\n"
            "  Hint: leave out --no-hydrogens."
        )
    kinds = find_kinds(atoms)
    extra = tuple(str(file) for file in files)
    best, failure = None, None
    for own in FILES[name]:
        if best is not None and not _worth_trying(own[0], best):
            continue
        try:
            found = _assign(atoms, kinds, name, (*own, *extra))
        except ForceFieldError as error:
            failure = error
            continue
        if best is None or found.quality < best.quality:
            best = found
        if not best.others and not best.strange:
            return best
    if best is None:
        raise failure
    return _completed(best, atoms, kinds)


def _completed(best: Assignment, atoms: AtomTable, kinds: list[Kind]) -> Assignment:
    """Add templates that can be put together from others, where residues have none."""
    transfer, made = Transfer(Templates(best.force_field)), {}
    for kind in best.others:
        for residue in residues_of(atoms, kind):
            text = transfer.residue(residue)
            if text is None:
                break
            made[residue.name] = text
    if not made:
        return best
    return _assign(atoms, kinds, best.name, best.files, tuple(made.values()))


def _worth_trying(file: str, so_far: Assignment) -> bool:
    """Whether a file, large and slow to load, names a residue that is missing yet."""
    text = (Path(app.__file__).parent / "data" / file).read_text(encoding="utf-8")
    names = [label.split()[0] for label in (*so_far.missing, *so_far.strange)]
    return any(f'<Residue name="{name}"' in text for name in names)


@functools.lru_cache(maxsize=4)
def load(files: tuple[str, ...], residues: tuple[str, ...] = ()) -> app.ForceField:
    """Read force-field files, and more templates given as text.

    Raises
    ------
    InputFileError
    """
    try:
        force_field = app.ForceField(*files)
    # OpenMM raises whatever its parser meets.
    except Exception as error:
        raise InputFileError(f"{', '.join(files)}: no force field ({error})") from error
    if residues:
        force_field.loadFile(io.StringIO(file_of(residues)))
    force_field.registerScript(_RECORD)
    return force_field


def _assign(
    atoms: AtomTable, kinds: list[Kind], name: str, files: tuple[str, ...],
    residues: tuple[str, ...] = (),
) -> Assignment:  # fmt: skip
    force_field = load(files, residues)
    templates = Templates(force_field)
    graphs = [list(residues_of(atoms, kind)) for kind in kinds]
    known = [[templates.template_of(graph) for graph in own] for own in graphs]
    # Lone residues without a template are not worth a search through patches, which takes long.
    covered = [k for k, names in enumerate(known) if len(names) > 1 or names[0]]
    reasons: dict[int, str] = {}
    # What has no template as it is may have one with patches, which OpenMM finds.
    system, record, types, _ = _created(atoms, kinds, known, covered, force_field)
    if system is None:
        for k in [k for k in covered if not all(known[k])]:
            alone, *_, why = _created(atoms, kinds, known, [k], force_field)
            if alone is None:
                covered.remove(k)
                reasons[k] = why
        system, record, types, why = _created(atoms, kinds, known, covered, force_field)
        if system is None:
            raise ForceFieldError(f"force field {name} ({', '.join(files)}): {why}")
    others = [kind for k, kind in enumerate(kinds) if k not in set(covered)]
    own = [kinds[k] for k in covered]
    chosen = [t for k in covered for t in known[k]]
    lone = [graphs[k][0] for k in covered if len(graphs[k]) == 1]
    settled = {rival: templates.as_xml(templates.template_of(graph), rival, override=True)
               for graph in lone for rival in templates.rivals(graph)}  # fmt: skip
    result = Assignment(
        name, files, own, others, renamed(atoms, own, chosen, record, templates),
        _missing(atoms, kinds, covered, reasons), force_field, openmm_topology(atoms, own),
        {i: t for i, t in enumerate(chosen) if t}, types, system,
        file_of([*residues, *settled.values()]),
        tuple(g.name for g in lone if templates.template_of(g) != g.name),
    )  # fmt: skip
    _check_terms(result)
    return result


def _missing(
    atoms: AtomTable, kinds: list[Kind], covered: list[int], reasons: dict[int, str]
) -> dict[str, int]:
    """Residues that keep a molecule from being covered, with their number."""
    missing: Counter[str] = Counter()
    for k in sorted(set(range(len(kinds))) - set(covered)):
        kind = kinds[k]
        found = _CULPRIT.search(reasons.get(k, ""))
        row = kind.first[kind.starts[int(found[1]) if found else 0]]
        label = str(atoms.resnames[row])
        if found:
            label += f" {atoms.resids[row]} of a chain ({found[2].strip()})"
        missing[label] += len(kind.atoms)
    return dict(missing)


def _created(atoms, kinds, known, covered, force_field):
    """System of one molecule of each kind, and what OpenMM found for every residue; or None."""
    topology = openmm_topology(atoms, [kinds[k] for k in covered])
    residues = list(topology.residues())
    names = [t for k in covered for t in known[k]]
    chosen = {r: t for r, t in zip(residues, names, strict=True) if t}
    found: dict = {}
    try:
        system = force_field.createSystem(
            topology, residueTemplates=chosen, record=found, constraints=None, rigidWater=False
        )
    # OpenMM raises ValueError, KeyError or Exception where no template fits.
    except Exception as error:  # noqa: BLE001
        return None, None, [], str(error)
    types = found.pop("types")
    return system, [found.get(residue) for residue in residues], [
        types[atom] for atom in topology.atoms()
    ], ""  # fmt: skip


def openmm_topology(atoms: AtomTable, kinds: Sequence[Kind] | None = None) -> app.Topology:
    """Return OpenMM's Topology of one molecule of each kind, or of all atoms in their order.

    Water is called HOH there, by which OpenMM knows that it is rigid.
    """
    topology = app.Topology()
    if kinds is None:
        order = np.arange(len(atoms))
        bonds, molecule = atoms.bonds, np.unique(atoms.segids, return_inverse=True)[1]
    else:
        order = np.concatenate([k.first for k in kinds] or [np.zeros(0, np.int64)])
        starts = np.cumsum([0, *(len(k.first) for k in kinds)])
        bonds = [k.bonds + s for k, s in zip(kinds, starts, strict=False)]
        bonds = np.concatenate(bonds or [np.zeros((0, 2), np.int64)])
        molecule = np.repeat(np.arange(len(kinds)), np.diff(starts))
    residue, made = atoms.residue[order], []
    n_in = np.bincount(residue, minlength=1)
    chain = here = None
    for k, i in enumerate(order.tolist()):
        new_chain = k == 0 or molecule[k] != molecule[k - 1]
        if new_chain:
            chain = topology.addChain(str(atoms.segids[i]) if kinds is None else None)
        if new_chain or residue[k] != residue[k - 1]:
            name = str(atoms.resnames[i])
            if n_in[residue[k]] == 3 and _is_water(atoms.elements[order[k : k + 3]]):
                name = "HOH"
            here = topology.addResidue(name, chain, str(atoms.resids[i]))
        element = app.Element.getBySymbol(str(atoms.elements[i]).capitalize())
        made.append(topology.addAtom(str(atoms.names[i]), element, here))
    for i, j in bonds.tolist():
        topology.addBond(made[i], made[j])
    return topology


def _is_water(elements: np.ndarray) -> bool:
    return Counter(elements.tolist()) == WATER


def _check_terms(found: Assignment) -> None:
    """Refuse molecules with bonds that the force field has no parameters for.

    OpenMM leaves them out without a word, and the molecule falls apart.
    """
    if not found.kinds:
        return
    system = found.flexible
    have = {tuple(sorted(system.getConstraintParameters(i)[:2]))
            for i in range(system.getNumConstraints())}  # fmt: skip
    for force in system.getForces():
        if isinstance(force, mm.HarmonicBondForce):
            have |= {tuple(sorted(row)) for row, _ in terms(force, "Bond", 2)}
    rows = []
    for first, second in found.topology.bonds():
        if tuple(sorted((first.index, second.index))) not in have:
            rows.append(f"{first.residue.name} {first.name}-{second.name}")
    if rows:
        raise ForceFieldError(
            f"force field {found.name} ({found.files[0]}): no parameters for {len(rows)} bonds\n"
            f"{listing(rows, 10)}\n"
            "  Hint: give them in a file of your own, --force-field-file FILE."
        )


def _not_covered(found: Assignment) -> str:
    rows = [f"{name}, {count} times" for name, count in found.missing.items()]
    return (
        f"force field {found.name}: no template for\n{listing(rows, 20)}\n"
        "  Hint: give a force field for them in OpenMM's format, --force-field-file FILE; "
        "--relax does without one."
    )
