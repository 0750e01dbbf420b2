"""Heads of lipids whose parts come from one another."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from mdbackmap.mapping.library import Library
from mdbackmap.training import recombine
from mdbackmap.training.dataset import PreparedSet
from mdbackmap.training.recombine import Part, Recombiner, parts_of
from mdbackmap.validation.checks import Checker
from mdbackmap.validation.measures import torsions

from helpers_io import DATA, ok

BONDS = ("C2-C1-O11-P", "P-O12-C11-C12", "O12-C11-C12-N")
"""Torsions about the bonds of POPC that are cut."""


@pytest.fixture
def template(lipid):
    return lipid[0].templates[0]


def rows_of(system, words):
    return np.array([[system.atoms.names.tolist().index(a) for a in w.split("-")] for w in words])


def turned(template, positions, part: Part, degrees):
    """A conformer with another torsion about the bond before a part."""
    _, i, j = part.frame
    axis = positions[j] - positions[i]
    axis /= np.linalg.norm(axis)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    matrix = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    result = positions.copy()
    result[part.beyond] = (positions[part.beyond] - positions[j]) @ matrix.T + positions[j]
    return result


@pytest.fixture
def conformers(lipid, template):
    _, positions = lipid
    found = []
    for angles in ((0, 0, 0), (30, 0, -40), (-25, 35, 0), (15, -30, 50)):
        here = positions
        for part, angle in zip(parts_of(template), angles, strict=True):
            here = turned(template, here, part, angle)
        found.append(here)
    return found


@pytest.fixture
def everything(lipid, conformers):
    everywhere = np.ones(lipid[0].n_atoms, dtype=bool)
    return Recombiner((lipid[0], one, everywhere) for one in conformers)


def test_parts_of_popc(template):
    names = template.names

    def words(rows):
        return "-".join(names[rows].tolist())

    parts = parts_of(template)
    assert [words(p.frame) for p in parts] == ["C2-C1-O11", "P-O12-C11", "O12-C11-C12"]
    assert [set(names[p.atoms].tolist()) for p in parts] == [
        {"P", "O12", "O13", "O14", "C11"}, {"C12"}, {"N", "C13", "C14", "C15"}
    ]  # fmt: skip
    assert [len(p.beyond) for p in parts] == [10, 5, 4]
    assert [names[p.centres[:, 0]].tolist() for p in parts] == [["P"], [], ["N"]]


def test_what_lipids_share_and_what_has_no_parts():
    templates = {t.residue: t for t in Library.load(["martini3"]).templates}
    first = {name: parts_of(templates[name])[0] for name in ("POPC", "POPE", "POPS", "DPPG")}
    assert len({part.label for part in first.values()}) == 1
    assert parts_of(templates["POPC"])[1].label != parts_of(templates["POPE"])[1].label
    assert not any(parts_of(templates[name]) for name in ("CHL1", "TLCL2", "LYS", "PHE"))


def test_every_torsion_is_that_of_some_molecule(lipid, conformers, everything, monkeypatch):
    monkeypatch.setattr(recombine, "SHARE", 1.0)
    monkeypatch.setattr(recombine, "NEAREST", 0.0)
    system, positions = lipid
    rows, rng = rows_of(system, BONDS), np.random.default_rng(0)
    there = np.array([torsions(one, rows, None) for one in conformers])
    met = set()
    for _ in range(60):
        made = torsions(everything(system, positions, rng), rows, None)
        off = np.abs((made - there + 180) % 360 - 180)
        assert off.min(axis=0) == pytest.approx(0, abs=1e-3)
        met.add(tuple(off.argmin(axis=0).tolist()))
    assert len(met) > 20, "parts are taken independently of one another"


def test_chemistry_and_tails_stay(lipid, template, everything):
    system, positions = lipid
    before = Checker(system)(positions).counts
    head = np.unique(np.concatenate([part.beyond for part in parts_of(template)]))
    tails = np.setdiff1d(np.arange(system.n_atoms), head)
    rng, moved = np.random.default_rng(1), 0
    for _ in range(20):
        made = everything(system, positions, rng)
        assert np.array_equal(made[tails], positions[tails])
        moved += not np.allclose(made[head], positions[head], atol=0.1)
        counts = Checker(system)(made).counts
        for name in ("bonds", "angles", "stereocentres", "double_bonds", "overlaps"):
            assert counts[name].wrong == before[name].wrong
    assert moved > 10


def test_names_mean_the_same_in_both(lipid, conformers, monkeypatch):
    """A molecule whose O13 and O14 are exchanged gives its phosphate to no other."""
    monkeypatch.setattr(recombine, "SHARE", 1.0)
    monkeypatch.setattr(recombine, "NEAREST", 0.0)
    system, positions = lipid
    one, other = rows_of(system, ["O13-O14"])[0]
    exchanged = conformers[1].copy()
    exchanged[[one, other]] = exchanged[[other, one]]
    everywhere = np.ones(system.n_atoms, dtype=bool)
    pool = Recombiner([(system, exchanged, everywhere)])
    made = pool(system, positions, np.random.default_rng(0))
    rows = rows_of(system, BONDS)
    mine, theirs, found = (torsions(p, rows, None) for p in (positions, exchanged, made))
    assert found[0] == pytest.approx(mine[0], abs=1e-3)
    assert found[1:] == pytest.approx(theirs[1:], abs=1e-3)


def test_what_is_not_usable_is_taken_by_none(lipid, conformers):
    system, positions = lipid
    none = Recombiner([(system, conformers[1], np.zeros(system.n_atoms, dtype=bool))])
    assert np.array_equal(none(system, positions, np.random.default_rng(0)), positions)


def test_crowded_molecules_stay_as_they_are(lipid, conformers, everything, monkeypatch):
    monkeypatch.setattr(recombine, "NEAREST", 50.0)
    system, positions = lipid
    # No two of these conformers keep all distances.
    for seed in range(5):
        made = everything(system, positions, np.random.default_rng(seed))
        assert made == pytest.approx(positions, abs=1e-3)


def test_prepare_recombined(tmp_path):
    out = tmp_path / "set.npz"
    said = ok("prepare", DATA / "popc.pdb", "--recombine", 3, "-o", out)
    assert said == f"{out}: 3 systems; left out 0\n"
    one, *others = PreparedSet(out)
    # A molecule that is alone takes its parts from itself.
    for other in others:
        assert other.offset == pytest.approx(one.offset, abs=0.02)
    assert dataclasses.asdict(one).keys() == dataclasses.asdict(others[0]).keys()
