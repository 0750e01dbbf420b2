"""Reading CGmap/HEroBM mapping files.

Only the grammar is known here; the result is an ordinary `MappingSpec`. The format: a molecule
name, then ``NAMES: BEADS [cells]`` per atom, where NAMES and every cell are comma-separated
(names are alternatives, cells follow the beads): ``!`` weight 0, ``CM`` the bead sits on this
atom, ``n/m`` or a number the weight, ``P<level>[anchor]<letter>`` the hierarchy label.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

from mdbackmap.errors import MappingFileError, listing
from mdbackmap.mapping.chemistry import element_of
from mdbackmap.mapping.schema import MappingSpec
from mdbackmap.mapping.strict_yaml import Located

_LABEL = re.compile(r"P(\d+)([A-Z]?)([A-Z])$")
_WEIGHT = re.compile(r"\d+/\d+$|\d*\.?\d+$")


@dataclass
class _Atom:
    names: list[str]
    line: int
    weights: dict[str, float] = field(default_factory=dict)
    centre: set[str] = field(default_factory=set)
    labels: dict[str, tuple[int, str, str]] = field(default_factory=dict)


def is_cgmap(table: Located) -> bool:
    """Tell a CGmap/HEroBM file from one of ours by its two top-level keys."""
    return "molecule" in table and "atoms" in table


def convert(table: Located, source: str) -> MappingSpec:
    """Turn a CGmap/HEroBM file into a mapping.

    Bonds are not part of that format: the anchors it gives stand in for them, which keeps the
    molecule connected but gives no ideal geometry beyond bond lengths.

    Raises
    ------
    MappingFileError
        Malformed cells, and labels used twice, each with its line.
    """
    problems: list[str] = []
    molecule = table["molecule"]
    resnames = [part.strip() for part in str(molecule).split(",") if part.strip()]
    body = table["atoms"]
    if not resnames or not isinstance(body, Located) or not body:
        raise MappingFileError(f"{source}: expected 'molecule: NAME' and a table 'atoms:'")
    atoms = [_atom(names, text, body.lines[names], problems) for names, text in body.items()]
    beads: dict[str, None] = {}
    for atom in atoms:
        beads.update(dict.fromkeys(atom.weights))
    heavy = [a for a in atoms if element_of(a.names[0]) != "H"]
    anchors = _anchors(heavy, problems)
    if problems:
        raise MappingFileError(f"{source}: {len(problems)} problem(s)\n{listing(problems, 20)}")

    spec_atoms: dict[str, dict] = {}
    bonds = []
    for atom in heavy:
        name = atom.names[0]
        shares = {bead: weight for bead, weight in atom.weights.items() if weight > 0}
        spec_atoms[name] = {"bead": shares or dict.fromkeys(atom.weights, 0.0)}
        if name in anchors:
            spec_atoms[name]["anchor"] = anchors[name]
            if anchors[name] not in beads:
                bonds.append((anchors[name], name))
    centres = {bead: {"on": a.names[0]} for a in heavy for bead in a.centre}
    return MappingSpec.model_validate(
        {
            "residue": resnames[0],
            "aliases": resnames[1:],
            "source": f"CGmap/HEroBM file {source}",
            "centre": "mass",
            "hydrogens": "ignored",
            "beads": {bead: centres.get(bead) for bead in beads},
            "atoms": spec_atoms,
            "bonds": bonds,
            "atom_aliases": {other: a.names[0] for a in heavy for other in a.names[1:]},
        }
    )


def _atom(names: str, text: object, line: int, problems: list[str]) -> _Atom:
    atom = _Atom([n.strip() for n in str(names).split(",") if n.strip()], line)
    columns = str(text if text is not None else "").split()
    if not columns or not atom.names:
        problems.append(f"line {line}: atom '{names}' names no bead")
        return _Atom(["?"], line)
    beads = columns[0].split(",")
    atom.weights = {bead: 1.0 / len(beads) for bead in beads}
    for column in columns[1:]:
        cells = column.split(",")
        if len(cells) not in (1, len(beads)):
            problems.append(f"line {line}: atom {atom.names[0]}: '{column}' has {len(cells)} cells "
                            f"for {len(beads)} beads")  # fmt: skip
            continue
        for bead, cell in zip(beads, cells * (len(beads) if len(cells) == 1 else 1), strict=False):
            _cell(atom, bead, cell, problems)
    return atom


def _cell(atom: _Atom, bead: str, cell: str, problems: list[str]) -> None:
    label = _LABEL.match(cell)
    if cell == "!":
        atom.weights[bead] = 0.0
    elif cell == "CM":
        atom.centre.add(bead)
    elif label:
        level, anchor, letter = int(label[1]), label[2], label[3]
        if level == 1 and anchor:
            problems.append(f"line {atom.line}: atom {atom.names[0]}: label '{cell}' of level 1 "
                            "has an anchor; only deeper levels have one")  # fmt: skip
        atom.labels[bead] = (level, anchor, letter)
    elif _WEIGHT.match(cell) and not cell.endswith("/0"):
        atom.weights[bead] = float(Fraction(cell))
    elif cell:
        problems.append(f"line {atom.line}: atom {atom.names[0]}: cannot read '{cell}'; expected "
                        "!, CM, a weight such as 1/3, or a label such as P1A or P2AB")  # fmt: skip


def _anchors(atoms: list[_Atom], problems: list[str]) -> dict[str, str]:
    """Resolve labels to anchor names; a missing anchor falls back to the bead."""
    owner: dict[tuple[str, int, str], _Atom] = {}
    for atom in atoms:
        for bead, (level, _, letter) in atom.labels.items():
            other = owner.setdefault((bead, level, letter), atom)
            if other is not atom:
                problems.append(
                    f"line {atom.line}: atom {atom.names[0]}: label P{level}..{letter} of bead "
                    f"{bead} is already that of {other.names[0]} (line {other.line})"
                )
    result = {}
    for atom in atoms:
        for bead, (level, anchor, _) in atom.labels.items():
            found = owner.get((bead, level - 1, anchor)) if level > 1 else None
            result[atom.names[0]] = found.names[0] if found else bead
            break
    return result
