"""YAML as mapping files need it: no surprises and every value knows its line.

Plain YAML reads an atom called ``NO`` as false and drops duplicate keys without a word. Here
every scalar is a string unless it is a plain number, duplicate keys are errors, aliases and
depth are bounded, and the line of every key is kept.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mdbackmap.errors import MappingFileError

MAX_NODES = 200_000
MAX_DEPTH = 32
MAX_BYTES = 4_000_000

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?$")


class Located(dict):
    """A mapping that remembers the line of each of its keys (1-based)."""

    lines: dict[str, int]


def _problem(source: str, line: int, text: str) -> MappingFileError:
    return MappingFileError(f"{source}, line {line}: {text}")


def _scalar(node: yaml.ScalarNode) -> str | int | float | None:
    if not node.style:
        if node.value in ("", "~", "null"):
            return None
        if len(node.value) < 32 and _NUMBER.match(node.value):
            return int(node.value) if re.fullmatch(r"[-+]?\d+", node.value) else float(node.value)
    return node.value


def _build(node: yaml.Node, source: str, budget: list[int], depth: int = 0) -> Any:
    budget[0] -= 1
    line = node.start_mark.line + 1
    if budget[0] < 0 or depth > MAX_DEPTH:
        raise _problem(source, line, "the file is nested or repeated beyond any real mapping")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_build(child, source, budget, depth + 1) for child in node.value]
    table = Located()
    table.lines = {}
    for key_node, value_node in node.value:
        key_line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise _problem(source, key_line, "a key must be a plain name")
        key = key_node.value
        if key in table:
            raise _problem(
                source,
                key_line,
                f"key '{key}' was already given on line {table.lines[key]}; keep one of the two",
            )
        table.lines[key] = key_line
        table[key] = _build(value_node, source, budget, depth + 1)
    return table


def load(path: str | Path) -> Located:
    """Read one YAML file.

    Returns
    -------
    Located
        The top-level mapping; nested mappings are ``Located`` too.

    Raises
    ------
    MappingFileError
        Unreadable file, YAML syntax, duplicate key, or a top level that is no mapping.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise MappingFileError(f"{path}: larger than {MAX_BYTES} bytes; no mapping file is")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MappingFileError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise MappingFileError(f"{path}: is not UTF-8 text; is it a mapping file?") from error
    return loads(text, str(path))


def loads(text: str, source: str = "<text>") -> Located:
    """Read YAML from a string; see `load`."""
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise _problem(source, line, f"not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise MappingFileError(f"{source}: not valid YAML: {error}") from error
    if not isinstance(node, yaml.MappingNode):
        raise MappingFileError(f"{source}: expected 'key: value' lines, found something else")
    return _build(node, source, [MAX_NODES])
