"""Finding, loading and asking mapping files.

A library is an ordered set of templates; files given later win over files given earlier, so a
user's file replaces a shipped one of the same residue and beads.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdbackmap.errors import MappingError, MappingFileError, listing
from mdbackmap.mapping import cgmap, strict_yaml
from mdbackmap.mapping.schema import Geometry, MappingSpec, State, parse
from mdbackmap.mapping.strict_yaml import Located
from mdbackmap.mapping.template import Template, compile_template

FAMILY_FILE = "_family.yaml"
NO_MAPPINGS = (FAMILY_FILE, "bead_types")
"""Starts of the names of files that lie beside mappings: ours, and CGmap's bead numbering."""
SOLVENT = "solvent"
"""Water and ions, recognised whatever the mapping."""


def mappings_root() -> Path:
    """Return the folder of the shipped mappings: in the package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "_mappings"
    return inside if inside.is_dir() else package.parent / "mappings"


def shipped() -> list[str]:
    """Return the names of the shipped mappings, as ``--mapping`` takes them."""
    return sorted(p.name for p in mappings_root().iterdir() if p.is_dir() and p.name != SOLVENT)


@dataclass(frozen=True, eq=False)
class _Shipped:
    """One shipped file: its names are cheap to know, its template is made when first asked for."""

    path: Path

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The residue name and its aliases."""
        head = _head(self.path)
        return (head["residue"], *head.get("aliases", ()))

    @functools.cached_property
    def template(self) -> Template:
        """What the file says, compiled."""
        return _compiled(self.path)


_Entry = Template | _Shipped


class Library:
    """Templates by residue name and beads; shipped ones are compiled when first asked for.

    Parameters
    ----------
    templates : sequence of Template
        In search order, the first match wins.
    source : str
        What was loaded, for messages.
    """

    def __init__(self, templates: Sequence[_Entry], source: str) -> None:
        self._entries = tuple(templates)
        self.source = source

    @functools.cached_property
    def templates(self) -> tuple[Template, ...]:
        """All templates, in search order."""
        return tuple(map(_template, self._entries))

    @classmethod
    def load(cls, mappings: Sequence[str | Path] = ("martini3",)) -> Library:
        """Load shipped mappings by name, and files or folders by path.

        Parameters
        ----------
        mappings : sequence of str or Path
            Later ones win. If only files are given, they are added to ``martini3``.

        Raises
        ------
        MappingError
            A name that is neither shipped nor a path; every bad file at once.
        """
        if isinstance(mappings, (str, Path)):
            mappings = [mappings]
        if all(_folder(m) is None for m in mappings):
            mappings = ["martini3", *mappings]
        templates: list[_Entry] = []
        problems: list[str] = []
        for mapping in (SOLVENT, *mappings):
            try:
                read = _load_shipped if mapping in (*shipped(), SOLVENT) else _load
                templates = [*read(str(mapping)), *templates]
            except MappingError as error:
                problems.append(str(error))
        if problems:
            raise MappingFileError("\n".join(problems))
        return cls(templates, " + ".join(str(m) for m in mappings))

    @functools.cached_property
    def _by_name(self) -> dict[str, list[_Entry]]:
        table: dict[str, list[_Entry]] = {}
        for entry in self._entries:
            for name in _names(entry):
                table.setdefault(name, []).append(entry)
        return table

    def candidates(self, resname: str) -> list[Template]:
        """Return the templates a residue name may mean."""
        return [_template(entry) for entry in self._by_name.get(resname, [])]

    def match_beads(self, resname: str, beads: Sequence[str]) -> tuple[Template, list[int]] | None:
        """Find the template of one CG residue.

        Returns
        -------
        template, order : Template, list of int
            ``order[b]`` is the place in ``beads`` of the template's bead ``b``. None without
            a match.
        """
        if resname == "ION" and list(beads) == ["BB"]:
            return None  # It may be any ion, and the first would be taken.
        for template in self.candidates(resname):
            spec = template.spec
            found = [spec.bead_aliases.get(b, b) if b not in spec.beads else b for b in beads]
            kept = [i for i, b in enumerate(found) if b in spec.beads]
            rest = [b for i, b in enumerate(found) if i not in set(kept)]
            names = [found[i] for i in kept]
            fits = set(names) == set(spec.beads) and len(names) == len(spec.beads)
            if fits and all(b in spec.skip_beads for b in rest):
                return template, [kept[names.index(b)] for b in spec.beads]
        return None

    def is_skipped(self, resname: str, beads: Sequence[str]) -> str | None:
        """Say why a residue made only of known empty beads is left out; None if it is not."""
        for template in self.candidates(resname):
            if beads and all(b in template.spec.skip_beads for b in beads):
                return template.spec.skip_beads[beads[0]]
        return None

    def match_atoms(self, resname: str, atoms: Iterable[str]) -> Template | None:
        """Find the template whose heavy atoms are among those of an atomistic residue.

        Of several that are complete, the one that explains most atoms.
        """
        found = set(atoms)
        best: tuple[float, int, Template] | None = None
        for template in self.candidates(resname):
            if not template.has_atoms:
                continue
            names = {template.spec.atom_aliases.get(a, a) for a in found} | found
            share = sum(name in names for name in template.names) / template.n_atoms
            if share > 0.5 and (best is None or (share, template.n_atoms) > best[:2]):
                best = (share, template.n_atoms, template)
        return best[2] if best else None

    def explain(self, resname: str, beads: Sequence[str]) -> str:
        """Say why a CG residue matches nothing, with the nearest template."""
        options = self.candidates(resname)
        if not options:
            near = difflib.get_close_matches(resname, list(self._by_name), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            return f"{resname} with beads {' '.join(beads)}: no mapping of that name{hint}"
        nearest = max(options, key=lambda option: len({*option.bead_names} & {*beads}))
        missing = [bead for bead in nearest.bead_names if bead not in beads]
        extra = [bead for bead in beads if bead not in nearest.bead_names]
        why = [f"bead {' '.join(missing)} is missing"] if missing else []
        why += [f"bead {' '.join(extra)} is not in the mapping"] if extra else []
        return (
            f"{resname}: {', '.join(why) or 'a bead stands twice'} "
            f"(expected {' '.join(nearest.bead_names)}; found {' '.join(beads)})"
        )


def _names(entry: _Entry) -> tuple[str, ...]:
    if isinstance(entry, _Shipped):
        return entry.names
    return (entry.residue, *entry.spec.aliases)


def _template(entry: _Entry) -> Template:
    return entry.template if isinstance(entry, _Shipped) else entry


@functools.lru_cache(maxsize=512)
def _terminal(template: Template) -> Template:
    if not template.spec.termini.last:
        return template
    return compile_template(template.spec, template.source, last=True)


def terminal_variant(template: Template) -> Template:
    """Return the variant of a template for the last residue of its chain."""
    return _terminal(template)


@functools.lru_cache(maxsize=512)
def inner_variant(template: Template) -> Template:
    """Return the variant of a template for residues within a chain."""
    return compile_template(template.spec, template.source)


def _folder(mapping: str | Path) -> Path | None:
    """Return a folder of mappings; shipped ones win over folders that happen to be here."""
    if mapping in (*shipped(), SOLVENT):
        return mappings_root() / mapping
    return Path(mapping) if str(mapping) and os.path.isdir(mapping) else None


@functools.cache
def _load_shipped(mapping: str) -> tuple[_Shipped, ...]:
    return tuple(map(_Shipped, _files(mapping)))


def _files(mapping: str) -> list[Path]:
    folder = _folder(mapping)
    if folder is not None:
        found = [*folder.rglob("*.yaml"), *folder.rglob("*.yml")]
        files = [p for p in sorted(found) if not p.name.startswith(NO_MAPPINGS)]
        if not files:
            raise MappingFileError(f"{folder}: holds no mapping file (*.yaml)")
        return files
    if mapping and os.path.exists(mapping):
        return [Path(mapping)]
    raise MappingError(
        f"mapping '{mapping}': neither a shipped mapping ({', '.join(shipped())}) nor a file or "
        "folder"
    )


def _load(mapping: str) -> tuple[Template, ...]:
    templates, problems = [], []
    for path in _files(mapping):
        try:
            templates.append(_compiled(path))
        except MappingError as error:
            problems.append(str(error))
    if problems:
        raise MappingFileError(listing(problems, 20, indent=""))
    return tuple(templates)


def _compiled(path: Path) -> Template:
    """Read and compile a file; what is wrong with its terminal variant is found here, too."""
    template = compile_template(load_spec(path), str(path))
    terminal_variant(template)
    return template


def load_templates(mapping: str | Path) -> tuple[Template, ...]:
    """Load and compile one mapping: a shipped name, a folder or a file."""
    return _load(str(mapping))


def load_spec(path: str | Path) -> MappingSpec:
    """Read one mapping file, of our own format or of CGmap/HEroBM's.

    Raises
    ------
    MappingFileError
        Names file, line, key, what was expected and what to do.
    """
    table = strict_yaml.load(path)
    if cgmap.is_cgmap(table):
        return _with_chemistry(cgmap.convert(table, str(path)))
    return parse(_inherit(table, Path(path)), str(path))


def _with_chemistry(spec: MappingSpec) -> MappingSpec:
    """Give a mapping without chemistry that of the shipped residue of its name and atoms.

    Rows that name an atom the mapping lacks are left out.
    """
    atoms = set(spec.atoms)
    named = (e.template.spec for e in _load_shipped("martini3") if spec.residue in e.names)
    known = next((s for s in named if atoms <= set(s.atoms)), None)
    if known is None:
        return spec

    def inside(rows: Any) -> Any:
        return [row for row in rows if atoms.issuperset(a for a in row if isinstance(a, str))]

    def of_atoms(states: dict[str, State] | None) -> dict[str, State] | None:
        held = atoms | set(last.atoms if last else ())
        return states and {
            name: state.model_copy(
                update={"hydrogens": {a: h for a, h in state.hydrogens.items() if a in held}}
            )
            for name, state in states.items()
        }

    def has_ends(pair: Geometry | None) -> bool:
        return pair is not None and all(a.removeprefix("+") in atoms for a in pair.bonds[0][:2])

    last = known.termini.last if has_ends(known.link) else None
    if last:
        # What the terminus adds sits in the bead of the atom it is bonded to.
        partner = {added: other for other, added, *_ in last.bonds}
        added = {
            name: atom.model_copy(update={"bead": spec.atoms[partner[name]].bead})
            for name, atom in last.atoms.items()
        }
        last = last.model_copy(update={"atoms": added})
    return spec.model_copy(
        update={
            "kind": known.kind,
            "source": f"{spec.source}; bonds and angles as shipped for {known.residue}",
            "atom_aliases": {**known.atom_aliases, **spec.atom_aliases},
            "atoms": {
                name: atom.model_copy(update={"hydrogens": known.atoms[name].hydrogens})
                for name, atom in spec.atoms.items()
            },
            **{key: inside(getattr(known, key))
               for key in ("bonds", "angles", "planar", "cis", "trans")},
            "chiral": {x: around for x, around in known.chiral.items() if inside([(x, *around)])},
            "symmetric": [s for s in known.symmetric if inside([(*s, *s.values())])],
            "link": known.link if has_ends(known.link) else None,
            "bridge": known.bridge if has_ends(known.bridge) else None,
            "termini": known.termini.model_copy(update={"last": last}),
            "methylenes": known.methylenes,
            **{key: of_atoms(getattr(known, key))
               for key in ("states", "states_first", "states_last")},
        }
    )  # fmt: skip


def _head(path: Path) -> dict[str, Any]:
    """What a shipped file says before its list of atoms, over that of the file it is ``like``."""
    text = path.read_text(encoding="utf-8")
    head = strict_yaml.loads(text.partition("\natoms:")[0], str(path))
    other = head.get("like")
    return {**_head(mappings_root() / f"{other}.yaml"), **head} if other else head


def _inherit(table: Located, path: Path, depth: int = 0) -> Located:
    """Lay a file over the file it is ``like``, over its family's defaults."""
    base = Located()
    family = path.parent / FAMILY_FILE
    if "like" in table:
        other = mappings_root() / f"{table['like']}.yaml"
        if depth > 3 or not os.path.isfile(other):
            raise MappingFileError(
                f"{path}, line {table.lines['like']}: like: {table['like']} names no shipped "
                "mapping (expected for example martini3/protein/ALA)"
            )
        base = _inherit(strict_yaml.load(other), other, depth + 1)
    if family.is_file():
        base = _merge(base, strict_yaml.load(family))
    return _merge(base, table)


def _merge(base: Located, over: Located) -> Located:
    over = Located({k: v for k, v in over.items() if k != "like"}, over.lines)
    result = _laid_over(base, over)
    before, atoms = base.get("atoms"), over.get("atoms")
    if isinstance(before, Located) and isinstance(atoms, Located):
        result["atoms"] = _laid_over(before, atoms)
        for name in before.keys() & atoms.keys():
            if isinstance(before[name], Located) and isinstance(atoms[name], Located):
                result["atoms"][name] = _laid_over(before[name], atoms[name])
    return result


def _laid_over(base: Located, over: Located) -> Located:
    return Located({**base, **over}, {**base.lines, **over.lines})
