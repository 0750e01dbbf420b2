"""The page on mapping files says what the schema says, and its examples work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mdbackmap.mapping import schema, strict_yaml
from mdbackmap.mapping.library import Library, shipped

PAGE = Path(__file__).parents[1] / "docs" / "mapping-files.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
MODELS = (
    schema.MappingSpec, schema.ResidueGeometry, schema.Geometry, schema.BeadSpec, schema.AtomSpec,
    schema.Termini, schema.Patch, schema.State,
)  # fmt: skip


@pytest.mark.parametrize(
    ("key", "description"),
    sorted({(k, field.description) for model in MODELS for k, field in model.model_fields.items()}),
)
def test_every_key_is_documented(key, description):
    assert description, f"{key} has no description in the schema"
    rows = [line for line in TEXT.splitlines() if line.startswith(f"| `{key}` |")]
    assert any(line.endswith(f"| {description} |") for line in rows)


def test_every_documented_key_exists():
    keys = {key for model in MODELS for key in model.model_fields}
    tables = TEXT.split("## All keys")[1].split("## Families")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", tables, re.MULTILINE)) == keys


def test_every_family_is_named():
    families = TEXT.split("## Families")[1].split("## How")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", families, re.MULTILINE)) == set(shipped())


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_are_read(number, tmp_path: Path):
    path = tmp_path / "example.yaml"
    text = EXAMPLES[number]
    table = strict_yaml.loads(text)
    if not {"residue", "molecule"} & set(table):
        text = "residue: XYZ\nlike: martini3/protein/ALA\n" + text
    path.write_text(text)
    template = Library.load([path]).templates[0]
    assert template.source == str(path)
    assert template.n_atoms or template.spec.waters or template.ion


def test_the_ligand_of_the_example(tmp_path: Path):
    path = tmp_path / "PEA.yaml"
    path.write_text(EXAMPLES[0])
    template = Library.load([path]).templates[0]
    assert (template.residue, template.n_beads, template.n_atoms) == ("PEA", 4, 9)
    assert (template.constraints.volume > 0).sum() == 1
    bead = dict(zip(template.names, template.atom_bead, strict=True))
    hung = dict(zip(template.names, template.anchors, strict=True))
    # The stereocentre is the middle of its bead.
    assert hung["C7"] == -1
    assert bead["C7"] == 3
    assert template.names[hung["O"]] == template.names[hung["C8"]] == "C7"
