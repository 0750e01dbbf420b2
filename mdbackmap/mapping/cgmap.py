"""Reading CGmap/HEroBM mapping files.

Only the grammar is known here; the result is an ordinary `MappingSpec`. The format: a molecule
name, then ``NAMES: BEADS [columns]`` per atom, where NAMES are comma-separated alternatives and
every column has one comma-separated cell per bead: ``!`` weight 0, ``CM`` the bead sits on this
atom, ``n/m`` or a number the weight, ``P<level>[anchor]<letter>`` the hierarchy label. A label's
anchor is the atom with that letter one level above in the same bead, and the bead where there is
none. Labels say what is predicted: with any label in a file, heavy atoms without one are left
out. Hydrogens are read for their names only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from mdbackmap.errors import MappingFileError, listing
from mdbackmap.mapping.chemistry import element_of
from mdbackmap.mapping.schema import MappingSpec, parse, read_weight
from mdbackmap.mapping.strict_yaml import Located

_LABEL = re.compile(r"P([0-9]{1,3})([A-Z]?)([A-Z])")
_NO_ATOM = "bead without predicted atoms"


@dataclass
class _Atom:
    """One line of the file."""

    names: list[str]
    line: int
    weights: dict[str, float] = field(default_factory=dict)
    centre: list[str] = field(default_factory=list)
    labels: dict[str, tuple[int, str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.names[0]

    def anchored_in(self) -> str | None:
        """The labelled bead with the largest weight, the first of equals."""
        return max(self.labels, key=lambda bead: self.weights[bead], default=None)


class _Problems(list[str]):
    """What is wrong with a file, a line each."""

    def add(self, line: int, text: str) -> None:
        self.append(f"line {line}: {text}")


def is_cgmap(table: Located) -> bool:
    """Tell a CGmap/HEroBM file from one of ours, which has ``residue`` in place of ``molecule``."""
    return "molecule" in table and "residue" not in table


def convert(table: Located, source: str) -> MappingSpec:
    """Turn a CGmap/HEroBM file into a mapping.

    Bonds are not part of that format. Anchors stand in for them, which is a guess and need not
    connect the molecule; `library.load_spec` knows better where a shipped residue has the atoms.

    Returns
    -------
    MappingSpec
        Heavy atoms that are not predicted are not among its ``atoms``; beads left without atoms
        are its ``skip_beads``.

    Raises
    ------
    MappingFileError
        Malformed cells, and names and labels used twice, each with its line.
    """
    molecule, body = table.get("molecule"), table.get("atoms")
    names = _split(molecule) if isinstance(molecule, str) else []
    if not names or not isinstance(body, Located) or not body:
        raise MappingFileError(f"{source}: expected 'molecule: NAME' and a table 'atoms:'")
    problems = _Problems()
    for key in table.keys() - {"molecule", "atoms"}:
        problems.add(table.lines[key], f"key '{key}' is none of this format (molecule, atoms)")
    lines = [_read(key, text, body.lines[key], problems) for key, text in body.items()]
    heavy = [atom for atom in lines if atom and element_of(atom.name) != "H"]
    _check_names(heavy, problems)
    anchors = _anchors(heavy, problems)
    labelled = any(atom.labels for atom in lines if atom)
    predicted = [atom for atom in heavy if atom.labels or not labelled]
    centres = _centres([atom for atom in lines if atom], predicted, problems)
    if not predicted and not problems:
        problems.append("no heavy atom is predicted")
    if problems:
        raise MappingFileError(f"{source}: {len(problems)} problem(s)\n{listing(problems, 20)}")

    beads = list(dict.fromkeys(bead for atom in lines if atom for bead in atom.weights))
    held = {bead for atom in predicted for bead in atom.weights}
    atoms = Located(lines={atom.name: atom.line for atom in predicted})
    for atom in predicted:
        shares = {bead: weight for bead, weight in atom.weights.items() if weight > 0}
        atoms[atom.name] = {"bead": shares or atom.weights}
        if atom.name in anchors:
            atoms[atom.name]["anchor"] = anchors[atom.name]
    content = {
        "residue": names[0],
        "aliases": names[1:],
        "source": f"CGmap/HEroBM file {Path(source).name}",
        "centre": "mass",
        "hydrogens": "ignored",
        "beads": {bead: centres.get(bead) for bead in beads if bead in held},
        "skip_beads": {bead: _NO_ATOM for bead in beads if bead not in held},
        "atoms": atoms,
        "bonds": [(anchor, name) for name, anchor in anchors.items() if anchor in atoms
                  and anchor != name],
        "atom_aliases": {other: atom.name for atom in predicted for other in atom.names[1:]},
    }  # fmt: skip
    return parse(Located(content, dict.fromkeys(content, table.lines["atoms"])), source)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _read(key: str, text: object, line: int, problems: _Problems) -> _Atom | None:
    """Read one line; None where it cannot be told what it is."""
    atom = _Atom(_split(key), line)
    columns = text.split() if isinstance(text, str) else []
    beads = columns[0].split(",") if columns else []
    if not atom.names or not all(beads) or not beads:
        problems.add(line, f"'{key}': expected NAMES: BEADS [columns], as 'CA: BB P1A'")
        return None
    if len(set(beads)) < len(beads):
        problems.add(line, f"atom {atom.name}: a bead stands twice in '{columns[0][:60]}'")
    atom.weights = dict.fromkeys(beads, 1.0 / len(beads))
    for column in columns[1:]:
        cells = column.split(",")
        if len(cells) != len(beads):
            problems.add(line, f"atom {atom.name}: '{column}' has {len(cells)} cell(s) for "
                               f"{len(beads)} bead(s)")  # fmt: skip
            continue
        for bead, cell in zip(beads, cells, strict=True):
            _read_cell(atom, bead, cell, problems)
    return atom


def _read_cell(atom: _Atom, bead: str, cell: str, problems: _Problems) -> None:
    label = _LABEL.fullmatch(cell)
    if label and bead in atom.labels:
        problems.add(atom.line, f"atom {atom.name}: '{cell}' is its second label in bead {bead}")
    elif label:
        atom.labels[bead] = (int(label[1]), label[2], label[3])
    elif cell == "!":
        atom.weights[bead] = 0.0
    elif cell == "CM":
        atom.centre.append(bead)
    elif re.fullmatch(r"[0-9.]+(/[0-9.]+)?", cell):
        try:
            atom.weights[bead] = read_weight(cell)
        except ValueError as error:
            problems.add(atom.line, f"atom {atom.name}: weight '{cell}': {error}")
    elif cell:
        problems.add(atom.line, f"atom {atom.name}: cannot read '{cell}'; expected !, CM, a weight "
                                "such as 1/3, or a label such as P1A or P2AB")  # fmt: skip


def _check_names(atoms: list[_Atom], problems: _Problems) -> None:
    owner: dict[str, _Atom] = {}
    for atom in atoms:
        for name in atom.names:
            other = owner.setdefault(name, atom)
            if other is not atom:
                problems.add(atom.line, f"atom name {name} was already given on line {other.line}")


def _anchors(atoms: list[_Atom], problems: _Problems) -> dict[str, str]:
    """Resolve labels to names of anchors; empty where the file has no labels."""
    owner: dict[tuple[str, int, str], _Atom] = {}
    for atom in atoms:
        for bead, (level, anchor, letter) in atom.labels.items():
            other = owner.setdefault((bead, level, letter), atom)
            if other is not atom:
                problems.add(atom.line, f"atom {atom.name}: label P{level}{anchor}{letter} of bead "
                                        f"{bead}: letter {letter} of level {level} is already that "
                                        f"of {other.name} (line {other.line})")  # fmt: skip
    result = {}
    for atom in atoms:
        bead = atom.anchored_in()
        if bead is not None:
            level, anchor, _ = atom.labels[bead]
            found = owner.get((bead, level - 1, anchor))
            result[atom.name] = found.name if found else bead
    return result


def _centres(
    atoms: list[_Atom], predicted: list[_Atom], problems: _Problems
) -> dict[str, dict[str, str]]:
    """Return the atoms that beads sit on."""
    owner: dict[str, _Atom] = {}
    for atom in atoms:
        for bead in atom.centre:
            other = owner.setdefault(bead, atom)
            if other is not atom:
                problems.add(atom.line, f"atom {atom.name}: bead {bead} already sits on "
                                        f"{other.name} (line {other.line})")  # fmt: skip
            if atom not in predicted:
                problems.add(atom.line, f"atom {atom.name}: bead {bead} sits on it (CM), but it "
                                        "is not predicted; give it a label")  # fmt: skip
    return {bead: {"on": atom.name} for bead, atom in owner.items()}
