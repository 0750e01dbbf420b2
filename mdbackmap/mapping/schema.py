"""What a mapping file may say: one typed model, unknown keys refused.

This is the only place where the keys of a mapping file, their defaults and their meaning are
defined; ``docs/mapping-files.md`` is written from it.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)

from mdbackmap.errors import MappingFileError, listing
from mdbackmap.mapping.strict_yaml import Located, LocatedList


def _name(value: str) -> str:
    if not re.fullmatch(r"[!-~]{1,16}", value) or set(value) & set(",:/"):
        raise ValueError("expected a name: 1 to 16 ASCII characters, none of them space , : /")
    return value


def read_weight(value: Any) -> Any:
    """Turn ``2/3`` or ``0.5`` into a number; leaves what is no text to the caller."""
    if not isinstance(value, str):
        return value
    try:
        top, bottom = map(float, value.split("/")) if "/" in value else (float(value), 1.0)
        return top / bottom
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError("expected a number or a fraction such as 1/3") from error


def _distinct(row: Sequence[Any]) -> Sequence[Any]:
    names = Counter(cell for cell in row if isinstance(cell, str))
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise ValueError(f"{', '.join(twice[:10])} stands there twice")
    return row


def _distinct_centres(table: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    for centre, around in table.items():
        _distinct((centre, *around))
    return table


def _distinct_swap(table: dict[str, str]) -> dict[str, str]:
    _distinct((*table, *table.values()))
    return table


def _full_bond(row: Any) -> Any:
    if isinstance(row, (list, tuple)) and 2 <= len(row) < 4:
        return (*row, *(1, 0)[len(row) - 2 :])
    return row


def _shape(value: Any) -> str:
    return "list" if isinstance(value, list) else "table" if isinstance(value, dict) else "name"


Name = Annotated[str, AfterValidator(_name)]
Names = Annotated[list[Name], Field(min_length=1), AfterValidator(_distinct)]
Weight = Annotated[float, BeforeValidator(read_weight), Field(ge=0, le=1e6, allow_inf_nan=False)]
Shares = Annotated[dict[Name, Weight], Field(min_length=1)]
Order = Annotated[float, Field(gt=0, le=3, allow_inf_nan=False)]
Length = Annotated[float, Field(ge=0, lt=4, allow_inf_nan=False)]
Degrees = Annotated[float, Field(gt=0, le=180, allow_inf_nan=False)]
Bond = Annotated[
    tuple[Name, Name, Order, Length], BeforeValidator(_full_bond), AfterValidator(_distinct)
]
Angle = Annotated[tuple[Name, Name, Name, Degrees], AfterValidator(_distinct)]
Torsion = Annotated[tuple[Name, Name, Name, Name], AfterValidator(_distinct)]
Plane = Annotated[list[Name], Field(min_length=4), AfterValidator(_distinct)]
HydrogenNames = Annotated[list[Name], AfterValidator(_distinct)]
PH = Annotated[float, Field(ge=0, le=14, allow_inf_nan=False)]
Centres = Annotated[dict[Name, tuple[Name, Name, Name]], AfterValidator(_distinct_centres)]
Swap = Annotated[dict[Name, Name], AfterValidator(_distinct_swap)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BeadSpec(_Strict):
    """One bead; an empty entry takes every default."""

    on: Name | None = Field(None, description="The bead sits on this one atom.")


class AtomSpec(_Strict):
    """One heavy atom."""

    bead: Annotated[
        Annotated[Name, Tag("name")]
        | Annotated[Names, Tag("list")]
        | Annotated[Shares, Tag("table")],
        Discriminator(_shape),
    ] = Field(
        description="Its bead, or several, or several with the share each takes of the atom. "
        "Without shares an atom is split evenly. The first bead with the largest share is the "
        "one the atom is predicted from."
    )
    element: str | None = Field(
        None,
        description="Default: guessed from the name (CL, BR, FE ... with any digits, else the "
        "first letter).",
    )
    anchor: Name | None = Field(
        None,
        description="The atom, or the bead, it hangs from; where both have that name, the atom. "
        "Default: derived from the bonds.",
    )
    hydrogens: list[Name] = Field(default_factory=list, description="Names of its hydrogens.")
    charge: int = Field(0, description="Formal charge.")


class Geometry(_Strict):
    """Chemistry that holds between atoms; ``+X`` means atom X of the other residue."""

    bonds: list[Bond] = Field(
        default_factory=list,
        description="Atom, atom, order (default 1), length in Å (default 0: from the elements).",
    )
    angles: list[Angle] = Field(
        default_factory=list,
        description="Atom, centre, atom, degrees, where it differs from the hybridisation's.",
    )
    planar: list[Plane] = Field(
        default_factory=list, description="Groups of four or more atoms in one plane."
    )
    cis: list[Torsion] = Field(default_factory=list, description="Torsions of 0 degrees.")
    trans: list[Torsion] = Field(default_factory=list, description="Torsions of 180 degrees.")


class ResidueGeometry(Geometry):
    """Chemistry inside one residue."""

    chiral: Centres = Field(
        default_factory=dict,
        description="Stereocentre x: three of its neighbours a, b, c, in an order with "
        "(a-x)·((b-x)×(c-x)) > 0.",
    )


class Patch(ResidueGeometry):
    """What a terminal residue has more than an inner one."""

    atoms: dict[Name, AtomSpec] = Field(default_factory=dict, description="The atoms it adds.")


class Termini(_Strict):
    """Terminal variants of a polymer's residues."""

    last: Patch | None = Field(None, description="Added to the last residue of a chain.")


class State(_Strict):
    """One protonation state, or tautomer."""

    hydrogens: dict[Name, HydrogenNames] = Field(
        default_factory=dict,
        description="Heavy atom → names of its hydrogens, where they are not those under 'atoms'.",
    )
    below: PH | None = Field(None, description="The pH below which the residue is in this state.")
    above: PH | None = Field(None, description="The pH above which the residue is in this state.")
    bridged: Literal["yes", "no"] = Field(
        "no", description="Whether this is the state of residues joined by a 'bridge'."
    )
    names: list[Name] = Field(
        default_factory=list,
        description="Other names of the state; a residue of such a name is in it at any pH.",
    )

    @property
    def limited(self) -> bool:
        """Whether the pH must be below or above a limit."""
        return self.below is not None or self.above is not None


States = Annotated[dict[Name, State], Field(min_length=1)]


class MappingSpec(ResidueGeometry):
    """One residue or molecule."""

    residue: Name = Field(description="Residue name of the atomistic structure.")
    name: str = Field("", description="What it is, in words.")
    aliases: list[Name] = Field(
        default_factory=list, description="Other residue names of the same molecule."
    )
    kind: Literal["protein", "lipid", "molecule", "solvent", "ion"] = Field(
        "molecule",
        description="Only a solvent or an ion may have no atoms: a solvent stands for 'waters', or "
        "is left out. An ion has one atom.",
    )
    waters: int | None = Field(
        None,
        ge=1,
        le=4,
        description="Water molecules that a solvent stands for, 1 to 4, placed about its first "
        "bead.",
    )
    source: str = Field("", description="Where the table was taken from.")
    licence: str = Field("", description="Licence of that source.")
    centre: Literal["mass", "geometry"] = Field(
        "geometry", description="A bead sits at the centre of mass or of geometry of its atoms."
    )
    hydrogens: Literal["counted", "ignored"] = Field(
        "counted",
        description="Whether hydrogens place a bead; one that counts but is missing in a "
        "structure counts at its heavy atom.",
    )
    methylenes: Literal["left", "right"] = Field(
        "left",
        description="Which of two hydrogens of an atom x is named first; a and b are its "
        "neighbours, in the order of the atoms. Left: (h-x)·((a-x)×(b-x)) > 0.",
    )
    beads: dict[Name, BeadSpec | None] = Field(min_length=1, description="The beads in file order.")
    bead_aliases: dict[Name, Name] = Field(
        default_factory=dict, description="Other bead names: found name → name used here."
    )
    atom_aliases: dict[Name, Name] = Field(
        default_factory=dict, description="Other atom names: found name → name used here."
    )
    skip_beads: dict[Name, str] = Field(
        default_factory=dict, description="Beads without atoms that may be present, with why."
    )
    atoms: dict[Name, AtomSpec] = Field(
        default_factory=dict, description="Every heavy atom, in output order."
    )
    symmetric: list[Swap] = Field(
        default_factory=list, description="Swaps of names that change nothing: {CD1: CD2, ...}."
    )
    link: Geometry | None = Field(
        None, description="Geometry of the bond to the next residue; that bond comes first."
    )
    bridge: Geometry | None = Field(
        None,
        description="Geometry of a bond to another residue of this kind (disulfide); that bond "
        "comes first.",
    )
    termini: Termini = Field(default_factory=Termini, description="Variants at chain ends.")
    states: States | None = Field(
        None,
        description="Protonation states. Where the pH leaves several, hydrogen bonds decide, else "
        "the first.",
    )
    states_first: States | None = Field(
        None, description="Those of the start of a chain; the first one, unless chosen otherwise."
    )
    states_last: States | None = Field(
        None, description="Those of the end of a chain; the first one, unless chosen otherwise."
    )


def parse(table: Located, source: str) -> MappingSpec:
    """Validate one file's content.

    Raises
    ------
    MappingFileError
        Every problem of the file at once, with line and key.
    """
    try:
        return MappingSpec.model_validate(table)
    except ValidationError as error:
        raise MappingFileError(_explain(error, table, source)) from error


_SHOWN = 20
"""Problems of a file that are shown."""
_EXPECTED = {
    "missing": "is missing",
    "string_type": "expected text",
    "dict_type": "expected a table of 'name: value'",
    "model_type": "expected a table of 'key: value'",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "int_parsing": "expected a whole number",
    "finite_number": "expected a finite number",
}


def _explain(error: ValidationError, table: Located, source: str) -> str:
    rows: dict[str, None] = {}
    for issue in error.errors():
        node: Any = table
        line, path = 1, []
        for part in issue["loc"]:
            if isinstance(node, Located) and part in node:
                line, node = node.lines.get(str(part), line), node[part]
                path.append(str(part))
            elif isinstance(node, (list, tuple)) and isinstance(part, int) and part < len(node):
                line = node.lines[part] if isinstance(node, LocatedList) else line
                node = node[part]
                path.append(str(part + 1))
            elif part == "[key]":
                node = path[-1]
            elif issue["type"] == "missing":
                path.append(str(part))
        message = issue["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        message = _EXPECTED.get(issue["type"], message)
        if issue["type"] == "extra_forbidden":
            # Nearness takes a millisecond; only the first rows are shown.
            near = _near(path[-1]) if len(rows) < _SHOWN else ""
            message = f"is not a key of a mapping file{near} (docs: mapping-files)"
        elif issue["type"] != "missing":
            message = f"{message}, found {str(node)[:60]!r}"
        rows[f"{source}, line {line}: '{'.'.join(path)}' {message}"] = None
    return listing(rows, _SHOWN, indent="")


def _near(key: str) -> str:
    models = (MappingSpec, AtomSpec, BeadSpec, Patch, Termini, State)
    known = [name for model in models for name in model.model_fields]
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
