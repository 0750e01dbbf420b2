"""Mapping files as nobody would write them: used rightly or refused with a message, and soon."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mdbackmap.errors import MappingError
from mdbackmap.mapping.library import FAMILY_FILE, load_templates, mappings_root
from mdbackmap.mapping.strict_yaml import MAX_BYTES

from helpers_io import run

EXAMPLES = int(os.environ.get("MDBACKMAP_FUZZ", 0))
SOON = 5.0
"""Seconds that no file may take."""
CGMAP = """
molecule: ALA
atoms:
  N: BB P1A
  CA: BB P1B
  C: BB P1C
  O: BB P2CA
  CB: SC1 P1A
  HB1,HB2: SC1 !
"""
FOREIGN = """
residue: LIG
kind: molecule
beads: {A: , B: {on: C3}}
atoms:
  C1: {bead: A, hydrogens: [H1, H2, H3]}
  C2: {bead: {A: 2/3, B: 1/3}}
  C3: {bead: B, anchor: C2}
  O1: {bead: B, charge: -1}
bonds: [[C1, C2], [C2, C3, 2], [C3, O1, 1, 1.25]]
angles: [[C1, C2, C3, 120]]
planar: [[C1, C2, C3, O1]]
"""
SHIPPED = sorted(
    path for path in mappings_root().rglob("*.yaml") if not path.name.startswith(FAMILY_FILE)
)
TEXTS = [CGMAP, FOREIGN, *(path.read_text(encoding="utf-8") for path in SHIPPED)]
TOKENS = [
    "NO", "yes", "~", "null", "''", '""', "1e400", "-1", "0", "9" * 400, "0x10", "1_000", ".inf",
    ".nan", "1/0", "1/3", "a/b", "[]", "{}", "[[]]", "{a: }", "&a", "*a", "*b", "&a [*a]", "<<: *a",
    "!!python/object:os.system x", "!!binary aGk=", "!x", "---", "...", "- ", "? ", ": ", "|", ">",
    "%YAML 9.9", "# ", "\t", "\x00", "\x07", "\ufeff", "\u2028", "é",
    "\U0001f600", "BB", "CA", "+N", "like: martini3/protein/ALA",
    "like: ../../etc", "residue: X", "atoms: 5", "beads: [A]", "A" * 5000,
    "{" * 100, "[" * 100,
    "kind: ion", "kind: lipid", "charge: 1e9", "2147483648", "99999999999999999999",
]  # fmt: skip


@st.composite
def mutated(draw) -> str:
    """A mapping file with some words, lines or characters changed."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        lines = text.splitlines() or [""]
        k = draw(st.integers(0, len(lines) - 1))
        how = draw(st.integers(0, 8))
        if how == 0:
            del lines[k]
        elif how == 1:
            lines.insert(k, lines[draw(st.integers(0, len(lines) - 1))])
        elif how == 2:
            words = lines[k].split(" ")
            words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(TOKENS))
            lines[k] = " ".join(words)
        elif how == 3:
            lines.insert(k, draw(st.sampled_from(TOKENS)))
        elif how == 4:
            lines[k] = " " * draw(st.integers(0, 6)) + lines[k].lstrip()
        elif how == 5:
            at = draw(st.integers(0, len(lines[k])))
            lines[k] = lines[k][:at] + draw(st.text(max_size=3)) + lines[k][at:]
        elif how == 6:
            at = draw(st.integers(0, len(lines[k])))
            lines[k] = lines[k][:at] + lines[k][at + draw(st.integers(1, 8)) :]
        elif how == 7:
            other = draw(st.integers(0, len(lines) - 1))
            lines[k], lines[other] = lines[other], lines[k]
        else:
            words = sorted({word for line in lines for word in line.replace(",", " ").split()})
            chosen = [draw(st.sampled_from(words)) for _ in range(2)] if words else ["a", "b"]
            lines[k] = lines[k].replace(*chosen)
        text = "\n".join(lines) + "\n"
    return text


VALUES = st.recursive(
    st.sampled_from([*TOKENS[:12], "C1", "C2", "A", "B", "1", "0.5", "LIG", "molecule", "yes"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["A", "B", "C1", "C2", "bead", "bonds", "on"]), inner,
                        max_size=4),
    ),
    max_leaves=12,
)  # fmt: skip
KEYS = ["residue", "aliases", "kind", "centre", "hydrogens", "methylenes", "beads", "bead_aliases",
        "atom_aliases", "skip_beads", "atoms", "symmetric", "link", "bridge", "termini", "bonds",
        "angles", "planar", "cis", "trans", "chiral", "states", "states_first", "states_last",
        "like"]  # fmt: skip


def flow(value) -> str:
    """Write a value in YAML's one-line form."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return str(value)


@st.composite
def invented(draw) -> str:
    """A file of known keys with any values."""
    table = draw(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8))
    return FOREIGN * draw(st.booleans()) + "".join(f"{k}: {flow(v)}\n" for k, v in table.items())


def judge(content: str | bytes, folder: Path) -> bool:
    """Load a file; return whether it was accepted. It must be sound then, else named."""
    path = folder / "fuzzed.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    began = time.perf_counter()
    try:
        found = load_templates(path)
    except MappingError as error:
        said = str(error)
        assert "fuzzed.yaml" in said
        assert len(said) < 20_000
        return False
    finally:
        assert time.perf_counter() - began < SOON
    for template in found:
        sound(template)
    return True


def sound(template) -> None:
    """Check that a compiled mapping can be used."""
    n, beads = template.n_atoms, template.n_beads
    assert beads == len(set(template.bead_names)) > 0
    assert len(set(template.names.tolist())) == n
    assert template.has_atoms or template.kind in ("solvent", "ion")
    assert ((template.atom_bead >= 0) & (template.atom_bead < beads)).all()
    inner = template.anchors >= 0
    assert (template.levels[~inner] == 1).all()
    assert (template.levels[template.anchors[inner]] < template.levels[inner]).all()
    assert np.isfinite(template.weights).all()
    assert (template.weights >= 0).all()
    total = np.bincount(template.members[:, 0], template.weights, minlength=beads)
    np.testing.assert_allclose(total[total > 0], 1, atol=1e-6)
    terms = template.constraints
    assert terms.bonds.size == 0 or 0 <= terms.bonds.min() <= terms.bonds.max() < n
    assert (terms.bonds[:, 0] != terms.bonds[:, 1]).all()
    assert np.isfinite(terms.bond_length).all()
    assert (terms.bond_length > 0.5).all()


SLOWLY = settings(
    max_examples=EXAMPLES or 5000, deadline=None, suppress_health_check=list(HealthCheck),
    derandomize=not EXAMPLES,
)  # fmt: skip
QUICKLY = settings(SLOWLY, max_examples=100)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@QUICKLY
@given(text=mutated())
def test_changed_files(place, text):
    judge(text, place)


@QUICKLY
@given(text=invented())
def test_invented_files(place, text):
    judge(text, place)


@pytest.mark.slow
@SLOWLY
@given(text=mutated())
def test_thousands_of_changed_files(place, text):
    judge(text, place)


@pytest.mark.slow
@SLOWLY
@given(text=invented())
def test_thousands_of_invented_files(place, text):
    judge(text, place)


@settings(QUICKLY, max_examples=100)
@given(content=st.binary(max_size=400))
@example(content=b"\xff\xfe\x00")
def test_any_bytes(place, content):
    assert not judge(content, place)


def test_unchanged_files_are_accepted(place):
    assert judge(FOREIGN, place)
    assert judge(CGMAP, place)


def bomb(levels: int, width: int) -> str:
    """Aliases of aliases: few bytes, many values."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * width)}]" for k in range(1, levels)]
    return "\n".join(lines)


def chain(n: int) -> str:
    """A molecule of many atoms, one bonded to the next."""
    atoms = "\n".join(f"  C{k}: {{bead: A}}" for k in range(n))
    bonds = "\n".join(f"  - [C{k}, C{k + 1}]" for k in range(n - 1))
    return f"residue: LIG\nbeads:\n  A:\natoms:\n{atoms}\nbonds:\n{bonds}\n"


MANY = 30_000
HOSTILE = {
    "alias bomb": bomb(40, 10),
    "wide alias bomb": bomb(8, 400),
    "10,000 levels of anchors": "\n".join(
        [FOREIGN, "link: &a0 {}", *(f"x{k}: &a{k} {{k: *a{k - 1}}}" for k in range(1, 10_000))]
    ),
    "10,000 levels of lists": "a: " + "[" * 10_000,
    "10,000 closed levels": "a: " + "[" * 10_000 + "]" * 10_000,
    "10,000 levels of blocks": "\n".join(" " * k + "a:" for k in range(2_000)),
    "a cycle": "residue: &a\n  x: *a",
    "a cycle of two": "residue: &a [&b [*a, *b]]",
    "a cycle of keys": "&a {*a : 1}",
    "an alias of nothing": "residue: *nothing",
    "a huge number": FOREIGN + "angles: [[C1, C2, C3, " + "9" * 100_000 + "]]",
    "a huge fraction": FOREIGN.replace("2/3", "9" * 5000 + "/" + "1" * 5000),
    "a huge charge": FOREIGN.replace("-1", "9" * 5000),
    "a huge name": FOREIGN.replace("LIG", "L" * 1_000_000),
    "many unknown keys": "\n".join(f"key{k}: 1" for k in range(MANY)),
    "many keys given twice": "\n".join("key: 1" for k in range(MANY)),
    "many aliases": FOREIGN + f"aliases: [{', '.join(f'N{k}' for k in range(MANY))}]",
    "many equal aliases": FOREIGN + f"aliases: [{', '.join(['N'] * MANY)}]",
    "many atoms of a plane": FOREIGN.replace("[[C1, C2, C3, O1]]",
                                             f"[[{', '.join(f'C{k}' for k in range(MANY))}]]"),
    "many hydrogens": FOREIGN.replace("[H1, H2, H3]",
                                      f"[{', '.join(f'H{k}' for k in range(MANY))}]"),
    "many atoms": chain(MANY),
    "some thousand atoms": chain(2_000),
    "many beads": "residue: LIG\nbeads:\n" + "\n".join(f"  B{k}:" for k in range(MANY))
                  + "\natoms:\n" + "\n".join(f"  C{k}: {{bead: B{k}}}" for k in range(MANY)),
    "anchors in a ring": FOREIGN.replace("{bead: A, hyd", "{bead: A, anchor: C3, hyd"),
    "an anchor on itself": FOREIGN.replace("anchor: C2", "anchor: C3"),
    "10,000 anchors": "residue: LIG\nbeads:\n  A:\natoms:\n  C0: {bead: A}\n" + "\n".join(
        f"  C{k}: {{bead: A, anchor: C{k - 1}}}" for k in range(1, 10_000)),
    "a star of bonds": "residue: LIG\nbeads:\n  A:\natoms:\n" + "\n".join(
        f"  C{k}: {{bead: A}}" for k in range(3_000)) + "\nbonds:\n" + "\n".join(
        f"  - [C0, C{k}]" for k in range(1, 3_000)),
    "many rows of cgmap": "molecule: LIG\natoms:\n" + "\n".join(
        f"  C{k}: A P{k}A" for k in range(MANY)),
    "many columns of cgmap": "molecule: LIG\natoms:\n  C1: " + ",".join(["A"] * MANY),
    "many names of cgmap": "molecule: LIG\natoms:\n  " + ",".join(f"C{k}" for k in range(MANY))
                           + ": A P1A",
    "a long line": "residue: " + "x " * 1_000_000,
    "too many bytes": "#" * (MAX_BYTES + 1),
    "many documents": "a: 1\n---\n" * 10_000,
    "many comments": "#\n" * 1_000_000 + FOREIGN,
    "like itself": "like: martini3/protein/../protein/ALA",
    "like a folder": "like: martini3",
    "like a device": "like: ../../../../../../../../../../dev/zero",
    "a quantifier": FOREIGN + "aliases: ['" + "a" * 100_000 + "!']",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(place, name):
    judge(HOSTILE[name], place)


@pytest.mark.parametrize("name", ["alias bomb", "a cycle", "many atoms", "10,000 closed levels"])
def test_hostile_files_on_the_command_line(place, name):
    (place / "hostile.yaml").write_text(HOSTILE[name])
    result = run("mapping", "check", place / "hostile.yaml")
    assert result.code in (0, 1)
    assert "Traceback" not in result.err
    assert result.err.count("error:") == result.code


def test_a_pipe_is_no_mapping(tmp_path):
    os.mkfifo(tmp_path / "fuzzed.yaml")
    with pytest.raises(MappingError, match=r"fuzzed\.yaml: is no file"):
        load_templates(tmp_path / "fuzzed.yaml")
