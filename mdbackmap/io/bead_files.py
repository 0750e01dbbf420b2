"""Reading which atoms belong to which bead, from the files people share.

Only grammar is known here: atoms are numbers or names, and whether they exist is for
`mdbackmap.io.draft` to say.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mdbackmap.errors import InputFileError, listing
from mdbackmap.io.files import check_file
from mdbackmap.mapping.schema import read_weight

SUFFIXES = (".ndx", ".map", ".tsv", ".csv", ".txt", ".itp")
_TABLES = (".tsv", ".csv", ".txt")
_COLUMNS = ("id", "bead", "atom", "weight")
_VIRTUAL = "virtual site"


@dataclass(frozen=True)
class Member:
    """One atom of a bead.

    Attributes
    ----------
    atom : str
        Name, or number from 1.
    weight : float or None
        Share the bead takes of it; None: it is split evenly over its beads.
    place : str
        File and line, for messages.
    """

    atom: str
    weight: float | None
    place: str


@dataclass
class BeadTable:
    """Beads in order, each with its atoms.

    Attributes
    ----------
    beads : dict of str to list of Member
    numbered : bool
        Atoms are numbers, not names.
    molecule : str
        Name of the molecule or residue, if the files say one.
    skipped : dict of str to str
        Beads that may be there but hold no atoms, with why.
    sources : list of str
        Names of the files.
    """

    beads: dict[str, list[Member]]
    numbered: bool = False
    molecule: str = ""
    skipped: dict[str, str] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)


def read_beads(paths: Sequence[str | Path], names: Iterable[str] = ()) -> BeadTable:
    """Read the atoms of every bead.

    Parameters
    ----------
    paths : sequence of str or Path
        One ``.ndx``, ``.map`` or table of columns (``.tsv``, ``.csv``, ``.txt``), and at most one
        coarse-grained ``.itp`` that says what its beads are called.
    names : iterable of str
        What the molecule may be called in a table of several.

    Raises
    ------
    InputFileError
        Every problem of a file at once, each with its line.
    """
    paths = [Path(path) for path in paths]
    strange = [str(path) for path in paths if path.suffix.lower() not in SUFFIXES]
    if strange:
        raise InputFileError(
            f"{', '.join(strange)}: no bead file by its suffix; expected {', '.join(SUFFIXES)}"
        )
    topologies = [path for path in paths if path.suffix.lower() == ".itp"]
    tables = [path for path in paths if path not in topologies]
    if len(tables) != 1 or len(topologies) > 1:
        raise InputFileError(_wrong_number(tables, topologies))
    for path in paths:
        check_file(path)
    table = _read_one(tables[0], names)
    return _named_by(table, topologies[0]) if topologies else table


def _wrong_number(tables: list[Path], topologies: list[Path]) -> str:
    given = ", ".join(map(str, (*tables, *topologies))) or "nothing"
    if topologies and not tables:
        return (
            f"{given}: names beads, but does not say which atoms belong to them\n"
            "  Hint: add the index file that is shared with it: --beads mapping.ndx"
        )
    return (
        f"--beads: expected one .ndx, .map or table, and at most one .itp beside it; found {given}"
    )


def _read_one(path: Path, names: Iterable[str]) -> BeadTable:
    problems: list[str] = []
    suffix = path.suffix.lower()
    if suffix == ".ndx":
        table = _read_ndx(path, problems)
    elif suffix == ".map":
        table = _read_map(path, problems)
    else:
        table = _read_columns(path, names, problems)
    if not table.beads and not problems:
        problems.append(f"{path}: holds no bead")
    for bead, members in table.beads.items():
        seen: dict[str, str] = {}
        for member in members:
            if member.atom in seen:
                problems.append(f"{member.place}: atom {member.atom} stands twice in bead {bead}")
            seen[member.atom] = member.place
    if problems:
        raise InputFileError(listing(problems, 20, indent=""))
    table.sources.append(path.name)
    return table


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield place and text of the lines that hold something, without comments."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path}: cannot be read as text ({error})") from error
    for number, line in enumerate(text.splitlines(), 1):
        content = re.split(r";|(?:^|\s)#", line, maxsplit=1)[0].strip()
        if content:
            yield f"{path}, line {number}", content


def _header(text: str) -> str | None:
    found = re.fullmatch(r"\[\s*(.*?)\s*\]", text)
    return found[1] if found else None


def _read_ndx(path: Path, problems: list[str]) -> BeadTable:
    table = BeadTable({}, numbered=True)
    members: list[Member] | None = None
    for place, text in _lines(path):
        name = _header(text)
        if name is not None:
            if name in table.beads:
                problems.append(f"{place}: two groups are called {name}; beads need distinct names")
            members = table.beads[name] = []
        elif members is None:
            problems.append(f"{place}: '{text[:40]}' stands before the first [ group ]")
            members = []
        else:
            words = text.split()
            wrong = [word for word in words if not word.isdecimal() or int(word) < 1]
            if wrong:
                problems.append(f"{place}: expected atom numbers from 1, found "
                                f"{' '.join(wrong[:5])[:60]}")  # fmt: skip
            members += [Member(str(int(w)), None, place) for w in words if w not in wrong]
    return table


def _read_map(path: Path, problems: list[str]) -> BeadTable:
    """Read a backward/vermouth file; a bead that stands twice takes twice the share."""
    table = BeadTable({})
    section, seen = "", False
    for place, text in _lines(path):
        header = _header(text)
        words = text.split()
        if header is not None:
            if header == "molecule" and seen:
                problems.append(f"{place}: a second molecule; give a file of one")
            section = header
        elif section == "molecule":
            table.molecule, seen = words[0], True
        elif section == "martini":
            for bead in words:
                table.beads.setdefault(bead, [])
        elif section == "atoms":
            if len(words) < 2 or not words[0].isdecimal():
                problems.append(f"{place}: expected 'number atom bead ...', found '{text[:40]}'")
                continue
            # A leading ! says that the atom belongs to the bead, but does not place it.
            beads = [word.lstrip("!") for word in words[2:]]
            weighty = [word for word in words[2:] if not word.startswith("!")]
            for bead in dict.fromkeys(beads):
                share = weighty.count(bead) / max(len(weighty), 1)
                table.beads.setdefault(bead, []).append(Member(words[1], share, place))
    for bead in [bead for bead, members in table.beads.items() if not members]:
        problems.append(f"{path}: bead {bead} is listed under [ martini ], but holds no atom")
    return table


def _read_columns(path: Path, names: Iterable[str], problems: list[str]) -> BeadTable:
    """Read columns bead, atom and perhaps weight, or whatever a header says."""
    rows = [(place, _cells(text)) for place, text in _lines(path)]
    columns = _COLUMNS[1:]
    if rows and {"bead", "atom"} <= {cell.lower() for cell in rows[0][1]}:
        columns = tuple(cell.lower() for cell in rows[0][1])
        rows = rows[1:]
    table = BeadTable({})
    records = []
    for place, cells in rows:
        if not 2 <= len(cells) <= len(columns):
            problems.append(f"{place}: expected the columns {' '.join(columns)}, found "
                            f"{len(cells)} cells; other columns need a header line")  # fmt: skip
        else:
            records.append((place, dict(zip(columns, cells, strict=False))))
    if "id" in columns:
        records, table.molecule = _of_one(path, records, list(names), problems)
    for place, record in records:
        try:
            weight = read_weight(record["weight"]) if record.get("weight") else None
        except ValueError as error:
            problems.append(f"{place}: weight {record['weight']}: {error}")
            continue
        atoms = re.findall(r"[^,\s]+", record.get("atom", ""))
        if not record.get("bead") or not atoms:
            problems.append(f"{place}: the bead or the atom is missing")
            continue
        if weight is not None and not 0 <= weight <= 1e6:
            problems.append(f"{place}: weight {record['weight']}: expected 0 or more")
        members = table.beads.setdefault(record["bead"], [])
        members += [Member(atom, weight, place) for atom in atoms]
    return table


def _cells(text: str) -> list[str]:
    words = text.split()
    if len(words) == 2 and "," not in words[0] and "," in words[1]:
        return words  # a bead and a list of its atoms
    for mark in ("\t", ","):
        if mark in text:
            return [cell.strip() for cell in text.split(mark)]
    return text.split()


def _of_one(
    path: Path, records: list[tuple[str, dict[str, str]]], names: list[str], problems: list[str]
) -> tuple[list[tuple[str, dict[str, str]]], str]:
    """Return the rows of one molecule out of a table of many, and its id."""
    known = list(dict.fromkeys(record["id"] for _, record in records))
    name = next((name for name in names if name in known), known[0] if len(known) == 1 else "")
    if not name:
        near = difflib.get_close_matches(names[0] if names else "", known, n=3) or known[:10]
        problems.append(f"{path}: holds {len(known)} molecules, none with the id "
                        f"{' or '.join(names)}; say --name, as {', '.join(near)}")  # fmt: skip
    return [row for row in records if row[1]["id"] == name], name


@dataclass
class _Topology:
    beads: list[str]
    virtual: list[str]
    residue: str


def _named_by(table: BeadTable, path: Path) -> BeadTable:
    """Give the beads of a table the names, in the order, of a coarse-grained topology."""
    topology = _read_itp(path)
    skipped: dict[str, str] = {}
    if table.numbered:
        groups = list(table.beads.values())
        named = topology.beads
        if len(groups) != len(named):
            named = [bead for bead in named if bead not in topology.virtual]
        if len(groups) != len(named):
            raise InputFileError(
                f"{table.sources[0]} holds {len(groups)} groups, but {path} names "
                f"{len(topology.beads)} beads ({' '.join(topology.beads)}), "
                f"{len(topology.virtual)} of them virtual sites; expected a group per bead, in the "
                "same order"
            )
        beads = dict(zip(named, groups, strict=True))
        for bead in topology.virtual:
            if not beads.get(bead):
                beads.pop(bead, None)
                skipped[bead] = _VIRTUAL
    else:
        skipped = {
            b: _VIRTUAL for b in topology.beads if b in topology.virtual and b not in table.beads
        }
        missing = [b for b in topology.beads if b not in table.beads and b not in skipped]
        strange = [bead for bead in table.beads if bead not in topology.beads]
        if missing or strange:
            raise InputFileError(
                f"{path} and {table.sources[0]} do not name the same beads: only the first has "
                f"{' '.join(missing) or 'none'}, only the second {' '.join(strange) or 'none'}"
            )
        beads = {bead: table.beads[bead] for bead in topology.beads if bead in table.beads}
    return BeadTable(
        beads, table.numbered, topology.residue, skipped, [*table.sources, path.name]
    )  # fmt: skip


def _read_itp(path: Path) -> _Topology:
    problems: list[str] = []
    topology, residues, numbers = _Topology([], [], ""), set(), {}
    section = ""
    virtual: list[tuple[str, str]] = []
    for place, text in _lines(path):
        header = _header(text)
        words = text.split()
        if header is not None:
            if header == "moleculetype" and topology.beads:
                problems.append(f"{place}: a second molecule; give a file of one")
                break
            section = header
        elif section == "atoms":
            if len(words) < 5:
                problems.append(f"{place}: expected 'nr type resnr residue atom ...', found "
                                f"'{text[:40]}'")  # fmt: skip
                continue
            if words[4] in topology.beads:
                problems.append(f"{place}: two beads are called {words[4]}")
            topology.beads.append(words[4])
            numbers[words[0]] = words[4]
            residues.add(words[3])
        elif section.startswith("virtual_sites"):
            virtual.append((place, words[0]))
    for place, number in virtual:
        if number not in numbers:
            problems.append(f"{place}: virtual site {number} is not in [ atoms ]")
        topology.virtual.append(numbers.get(number, number))
    if not topology.beads:
        problems.append(f"{path}: holds no [ atoms ]; expected the topology of the beads")
    if len(residues) > 1:
        problems.append(f"{path}: beads of {len(residues)} residues ({', '.join(sorted(residues))})"
                        "; a mapping is of one residue")  # fmt: skip
    if problems:
        raise InputFileError(listing(problems, 20, indent=""))
    topology.residue = residues.pop()
    return topology
