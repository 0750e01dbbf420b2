"""What a mapping file may say: one typed model, unknown keys refused.

This is the only place where the keys of a mapping file, their defaults and their meaning are
defined; ``docs/mapping-files.md`` is written from it.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mdbackmap.errors import MappingFileError, listing
from mdbackmap.mapping.strict_yaml import Located


def _name(value: Any) -> Any:
    return str(value) if isinstance(value, int) else value


def _weight(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return float(Fraction(value))
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError("expected a number or a fraction such as 1/3") from error
    return value


Name = Annotated[str, BeforeValidator(_name), Field(min_length=1, max_length=16)]
Weight = Annotated[float, BeforeValidator(_weight), Field(ge=0, le=1e6, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BeadSpec(_Strict):
    """One bead; an empty entry takes every default."""

    on: Name | None = Field(None, description="The bead sits on this one atom.")


class AtomSpec(_Strict):
    """One heavy atom."""

    bead: Name | list[Name] | dict[Name, Weight] = Field(
        description="Its bead, or several, or several with the share each takes of the atom. "
        "Without shares an atom is split evenly. The first bead with the largest share is the "
        "one the atom is predicted from."
    )
    element: str | None = Field(None, description="Default: the first letter of the name.")
    anchor: Name | None = Field(
        None, description="The earlier atom, or the bead, it hangs from. Default: derived."
    )
    hydrogens: list[Name] = Field(default_factory=list, description="Names of its hydrogens.")
    charge: int = Field(0, description="Formal charge.")


Bond = tuple[Name, Name] | tuple[Name, Name, float] | tuple[Name, Name, float, float]
Angle = tuple[Name, Name, Name, float]
Torsion = tuple[Name, Name, Name, Name]


class Geometry(_Strict):
    """Chemistry that holds between atoms; ``+X`` means atom X of the next residue."""

    bonds: list[Bond] = Field(
        default_factory=list, description="Atom, atom, order (1), length in Å (from elements)."
    )
    angles: list[Angle] = Field(
        default_factory=list,
        description="Atom, centre, atom, degrees, where it differs from the hybridisation's.",
    )
    chiral: dict[Name, tuple[Name, Name, Name]] = Field(
        default_factory=dict,
        description="Stereocentre: three neighbours a, b, c with (a-x)·((b-x)×(c-x)) > 0.",
    )
    planar: list[Annotated[list[Name], Field(min_length=4)]] = Field(
        default_factory=list, description="Groups of atoms in one plane."
    )
    cis: list[Torsion] = Field(default_factory=list, description="Torsions of 0 degrees.")
    trans: list[Torsion] = Field(default_factory=list, description="Torsions of 180 degrees.")


class Patch(Geometry):
    """What a terminal residue has more than an inner one."""

    atoms: dict[Name, AtomSpec] = Field(default_factory=dict)


class Termini(_Strict):
    """Terminal variants of a polymer's residues."""

    last: Patch | None = Field(None, description="Added to the last residue of a chain.")


class MappingSpec(Geometry):
    """One residue or molecule."""

    residue: Name = Field(description="Residue name of the atomistic structure.")
    name: str = Field("", description="What it is, in words.")
    aliases: list[Name] = Field(
        default_factory=list, description="Other residue names of the same molecule."
    )
    kind: Literal["protein", "lipid", "molecule", "solvent", "ion"] = "molecule"
    source: str = Field("", description="Where the table was taken from.")
    licence: str = Field("", description="Licence of that source.")
    centre: Literal["mass", "geometry"] = Field(
        "geometry", description="A bead sits at the centre of mass or of geometry of its atoms."
    )
    hydrogens: Literal["counted", "ignored", "if_present"] = Field(
        "counted",
        description="Whether hydrogens place a bead: always (a missing one counts at its heavy "
        "atom), never, or where the structure has them.",
    )
    beads: dict[Name, BeadSpec | None] = Field(
        min_length=1, description="The beads in file order."
    )
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
    symmetric: list[dict[Name, Name]] = Field(
        default_factory=list, description="Swaps of names that change nothing: {CD1: CD2, ...}."
    )
    link: Geometry | None = Field(None, description="Geometry of the bond to the next residue.")
    bridge: Geometry | None = Field(
        None, description="Geometry of a bond to another residue of this kind (disulfide)."
    )
    termini: Termini = Field(default_factory=Termini)


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


def _explain(error: ValidationError, table: Located, source: str) -> str:
    rows: dict[str, None] = {}
    for issue in error.errors():
        node: Any = table
        line, path = 1, []
        for part in issue["loc"]:
            if isinstance(node, Located) and part in node:
                line, node = node.lines.get(str(part), line), node[part]
                path.append(str(part))
            elif isinstance(node, list) and isinstance(part, int) and part < len(node):
                node = node[part]
                path.append(str(part + 1))
            elif issue["type"] in ("missing", "extra_forbidden"):
                path.append(str(part))
        message = issue["msg"].removeprefix("Value error, ")
        if issue["type"] == "extra_forbidden":
            message = "is not a key of a mapping file (docs: mapping-files)"
        elif issue["type"] == "missing":
            message = "is missing"
        else:
            message = f"{message}, found {str(node)[:60]!r}"
        rows[f"{source}, line {line}: '{'.'.join(path)}' {message}"] = None
    return listing(rows, 8, indent="")
