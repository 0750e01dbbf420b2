"""YAML as mapping files need it: no surprises and every value knows its line.

Plain YAML reads an atom called ``NO`` as false, one called ``01`` as 1, and drops duplicate keys
without a word. Here every scalar is a string (the schema decides what is a number), duplicate
keys are errors, aliases and depth are bounded, and the line of every key is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mdbackmap.errors import MappingFileError, listing

MAX_NODES = 100_000
MAX_DEPTH = 32
MAX_BYTES = 2_000_000

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Located(dict):
    """A mapping that remembers the line of each of its keys (1-based)."""

    lines: dict[str, int]

    def __init__(self, items: Any = (), lines: dict[str, int] | None = None) -> None:
        super().__init__(items)
        self.lines = lines or {}


class LocatedList(list):
    """A list that remembers the line of each of its items (1-based)."""

    lines: list[int]


def _problem(source: str, line: int, text: str) -> MappingFileError:
    return MappingFileError(f"{source}, line {line}: {text}")


class _Builder:
    """Turns YAML nodes into strings, lists and `Located`; collects what is given twice."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[str] = []
        self.nodes = 0

    def build(self, node: yaml.Node, depth: int = 0) -> Any:
        """Return the value of a node; aliased nodes are built, and counted, each time."""
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise _too_deep(self.source, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            nothing = not node.style and node.value in ("", "~", "null")
            return None if nothing else node.value
        if isinstance(node, yaml.SequenceNode):
            items = LocatedList(self.build(child, depth + 1) for child in node.value)
            items.lines = [child.start_mark.line + 1 for child in node.value]
            return items
        table = Located()
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise _problem(self.source, line, "a key must be a plain name")
            if key in table:
                self.problems.append(
                    f"{self.source}, line {line}: key '{key}' was already given on line "
                    f"{table.lines[key]}; keep one of the two"
                )
            table.lines[key] = line
            table[key] = self.build(value_node, depth + 1)
        return table


def _too_deep(source: str, line: int) -> MappingFileError:
    return _problem(source, line, "the file is nested or repeated beyond any real mapping")


def load(path: str | Path) -> Located:
    """Read one YAML file.

    Returns
    -------
    Located
        The top-level mapping; nested mappings are ``Located`` too.

    Raises
    ------
    MappingFileError
        Unreadable file, YAML syntax, duplicate keys, or a top level that is no mapping.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise MappingFileError(f"{path}: is no file")
        if path.stat().st_size > MAX_BYTES:
            raise MappingFileError(f"{path}: larger than {MAX_BYTES} bytes; no mapping file is")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MappingFileError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise MappingFileError(f"{path}: is not UTF-8 text; is it a mapping file?") from error
    return loads(text, str(path))


def loads(text: str, source: str = "<text>") -> Located:
    """Read YAML from a string; see `load`."""
    try:
        # libyaml composes by recursion in C: depth is checked on the flat events first.
        depth = nodes = 0
        for event in yaml.parse(text, Loader=_LOADER):
            nodes += isinstance(event, yaml.NodeEvent)
            if nodes > MAX_NODES:
                raise _too_deep(source, event.start_mark.line + 1)
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise _too_deep(source, event.start_mark.line + 1)
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        # Some versions of libyaml count brackets themselves, before they hand out events.
        if "nesting depth" in (error.problem or ""):
            raise _too_deep(source, line) from error
        raise _problem(source, line, f"not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise MappingFileError(f"{source}: not valid YAML: {error}") from error
    if not isinstance(node, yaml.MappingNode):
        raise MappingFileError(f"{source}: expected 'key: value' lines, found something else")
    builder = _Builder(source)
    table = builder.build(node)
    if builder.problems:
        raise MappingFileError(listing(builder.problems, 20, indent=""))
    return table
