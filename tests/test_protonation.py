"""Which protonation states residues are in."""

from __future__ import annotations

import logging
from pathlib import Path

import mdbackmap
import numpy as np
import pytest
from mdbackmap.errors import MappingFileError, ProtonationError, StructureError
from mdbackmap.graph.neighbours import close_pairs
from mdbackmap.hydrogens.atoms import AllAtoms
from mdbackmap.hydrogens.nearby import Nearby
from mdbackmap.hydrogens.place import REACH
from mdbackmap.hydrogens.protonation import decide
from mdbackmap.hydrogens.tautomers import settle
from mdbackmap.mapping.library import Library
from mdbackmap.mapping.system import System, from_beads
from mdbackmap.structure import Frame, Particles

from helpers_io import TPR, XTC, fails, load, ok


def chain(*residues: str, bonded: bool = True, mapping=("martini3",)) -> System:
    """Residues as one chain, or as many, from beads along a line."""
    library = Library.load(mapping)
    rows = [(bead, name, k) for k, name in enumerate(residues, 1)
            for bead in library.candidates(name)[0].bead_names]  # fmt: skip
    names, resnames, resids = (np.array(column) for column in zip(*rows, strict=True))
    step = 3.5 if bonded else 20.0
    place = np.stack([step * resids, 0.1 * (np.arange(len(rows)) % 7), 0 * resids], axis=1)
    table = Particles(names, resnames, resids, np.full(len(rows), "A"))
    return from_beads(table, library, Frame(place.astype(np.float32)))


def states(system: System, **options) -> list[str]:
    """State of every residue of the middle of a chain."""
    return [" ".join(own) for own in decide(system, **options).names(system)]


MIDDLE = chain("ALA", "ASP", "GLU", "HIS", "CYS", "LYS", "TYR", "ALA")


@pytest.mark.parametrize(
    ("ph", "expected"),
    [(7.4, "ASP GLU HIE CYS LYS"), (6.4, "ASP GLU HIP CYS LYS"), (4.0, "ASH GLH HIP CYS LYS"),
     (9.0, "ASP GLU HIE CYM LYS"), (11.0, "ASP GLU HIE CYM LYN"), (0, "ASH GLH HIP CYS LYS"),
     (14, "ASP GLU HIE CYM LYN")],
)  # fmt: skip
def test_the_ph_decides(ph, expected):
    assert states(MIDDLE, ph=ph)[1:6] == expected.split()


def test_ends_are_charged():
    assert states(MIDDLE)[0] == "NH3+"
    assert states(MIDDLE)[-1] == "COO-"
    assert states(chain("PRO", "ALA"))[0] == "NH2+"
    assert states(chain("GLY", "GLY", bonded=False)) == ["NH3+ COO-"] * 2


def test_only_ring_nitrogens_of_the_tautomer_bear_hydrogens():
    for name, bearing in (("HIE", ["NE2"]), ("HID", ["ND1"]), ("HIP", ["ND1", "NE2"])):
        atoms = AllAtoms.of(MIDDLE, decide(MIDDLE, choices={"HIS": name}))
        bearers = set(MIDDLE.atoms.names[atoms.bearers[MIDDLE.atoms.residue[atoms.bearers] == 3]])
        assert sorted(bearers & {"ND1", "NE2"}) == bearing


@pytest.mark.parametrize(
    ("name", "state"),
    [("HSD", "HID"), ("HSE", "HIE"), ("HSP", "HIP"), ("HID", "HID"), ("ASH", "ASH"),
     ("GLUP", "GLH"), ("LYN", "LYN"), ("LSN", "LYN"), ("HIS", "HIE"), ("ASP", "ASP")],
)  # fmt: skip
def test_names_of_the_input_that_are_states_are_kept(name, state):
    system = chain("ALA", name, "ALA")
    assert states(system)[1] == state
    assert decide(system).open.keys() == ({1} if name == "HIS" else set())


def test_bridges_win_over_the_ph(insulin_system):
    own = states(insulin_system, ph=12)
    assert sum("CYX" in state for state in own) == 6


def test_choices_for_all_residues_of_a_name_and_for_single_ones():
    system = chain("HIS", "HIS", "HIS")
    assert states(system, choices={"HIS": "HID", "HIS 2": "HIP", "A:HIS 3": "HSE"}) == [
        "HID NH3+", "HIP", "HIE COO-",
    ]  # fmt: skip
    # Single ones win, wherever they stand.
    assert states(system, choices={"HIS 2": "HIP", "HIS": "HID"})[1] == "HIP"


def test_ends_can_be_chosen():
    own = states(chain("ASP", "ALA"), choices={"ASP 1": ["ASH", "NH2"], "ALA": "COOH"})
    assert own == ["ASH NH2", "COOH"]


def test_neutral_ends_have_one_hydrogen_less_and_one_more():
    system = chain("ALA", "ALA")
    names = AllAtoms.of(system, decide(system)).table.names.tolist()
    other = AllAtoms.of(system, decide(system, choices={"ALA 1": "NH2", "ALA 2": "COOH"}))
    assert set(names) - set(other.table.names) == {"H3"}
    assert other.table.names.tolist().count("HXT") == 1


def write(folder: Path, text: str) -> Path:
    path = folder / "states.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HIS 4: HIX", "states.yaml, line 1: 'HIS 4': A:HIS 4 has no state 'HIX'; "
                       "expected HIE HID HIP"),
        ("HIS 40: HID", "states.yaml, line 1: 'HIS 40': no such residue; the system has A:HIS 4"),
        ("B:HIS 4: HID", "'B:HIS 4': no such residue; the system has A:HIS 4"),
        ("\nHIT 4: HID", "states.yaml, line 2: 'HIT 4': no such residue; the system has ALA ASP "
                         "CYS GLU HIS LYS TYR (did you mean HIS?)"),
        ("CYS: CYX", "A:CYS 5 cannot be CYX: it is not joined by a bridge"),
        ("TYR: TYM", "A:TYR 7 has no state 'TYM'; expected nothing: it has no states"),
        ("ALA 1: COOH", "A:ALA 1 has no state 'COOH'; expected NH3+ NH2"),
        ("HIS x y: HID", "'HIS x y': expected a residue as in 'A:HIS 15', 'HIS 15' or 'HIS'"),
        ("HIS: ", "'HIS': expected the name of a state, or a list of names"),
        ("HIS: {a: b}", "'HIS': expected the name of a state, or a list of names"),
        ("HIS: HID\nHIS: HIE", "key 'HIS' was already given on line 1"),
        ("HIS: [HID", "not valid YAML"),
        ("- HIS", "expected 'key: value' lines"),
    ],
)  # fmt: skip
def test_choices_that_cannot_be(tmp_path, text, expected):
    with pytest.raises(ProtonationError) as caught:
        decide(MIDDLE, choices=write(tmp_path, text))
    assert expected in str(caught.value)


def test_all_problems_are_told_at_once(tmp_path):
    path = write(tmp_path, "HIS 4: HIX\nASP 3: ASH\nGLU 3: GLH\n")
    with pytest.raises(ProtonationError) as caught:
        decide(MIDDLE, choices=path)
    assert str(caught.value).count("states.yaml, line") == 2
    assert "Hint" in str(caught.value)


@pytest.mark.parametrize("ph", [-1, 15, float("nan"), float("inf")])
def test_a_ph_that_is_none(ph):
    with pytest.raises(ProtonationError, match="expected a number from 0 to 14"):
        decide(MIDDLE, ph=ph)


def test_a_bridge_cannot_be_chosen_away(insulin_system):
    with pytest.raises(ProtonationError, match="cannot be CYS: it is joined by a bridge"):
        decide(insulin_system, choices={"CYS": "CYS"})


# Tautomers

IMIDAZOLE = {
    "CB": (-1.3, -0.8, 0), "CG": (0, 0, 0), "ND1": (1.35, -0.3, 0), "CE1": (1.95, 0.88, 0),
    "NE2": (1.05, 1.85, 0), "CD2": (-0.2, 1.32, 0),
}  # fmt: skip


@pytest.mark.parametrize(
    ("beside", "other", "tautomer"),
    [("ND1", "O", "HID"), ("NE2", "O", "HIE"), ("ND1", "NZ", "HIE"), ("NE2", "NZ", "HID"),
     (None, "O", "HIE")],
)  # fmt: skip
def test_tautomers_follow_hydrogen_bonds(beside, other, tautomer):
    # A histidine, and a lysine or the oxygen of another residue near one of its nitrogens.
    system = chain("ALA", "HIS", "ALA", "LYS", "GLY", "GLY")
    names, residue = system.atoms.names, system.atoms.residue
    rng = np.random.default_rng(0)
    heavy = (
        rng.uniform(-1, 1, (system.n_atoms, 3)) + 30.0 * (1 + np.arange(system.n_atoms))[:, None]
    )
    for name, place in IMIDAZOLE.items():
        heavy[(residue == 1) & (names == name)] = place
    if beside:
        ring = np.mean(list(IMIDAZOLE.values())[1:], axis=0)
        away = np.array(IMIDAZOLE[beside]) - ring
        place = ring + away * (1 + 2.8 / np.linalg.norm(away))
        row = (residue == 3) & (names == other)
        if other == "NZ":
            heavy[(residue == 3) & (names == "CE")] = place + away / np.linalg.norm(away) * 1.5
        heavy[row] = place
    heavy = heavy.astype(np.float32)
    settled = settle(system, decide(system), heavy, Nearby(*close_pairs(heavy, None, REACH)))
    assert settled.names(system)[1] == (tautomer,)
    assert not settled.open
    assert settled.details(system) == [f"A:HIS 2: {tautomer} (hydrogen bonds)"]


def test_the_log_says_what_was_decided(ubiquitin, ubiquitin_system, tiny_model, caplog):
    frames = ubiquitin.sample(2)
    backmapper = mdbackmap.Backmapper(ubiquitin_system, tiny_model)
    place = ubiquitin_system.bead_source
    with caplog.at_level(logging.INFO, logger="mdbackmap"):
        backmapper.inspect([f.positions[place] for f in frames], [f.box for f in frames])
    said = "\n".join(caplog.messages)
    assert "protonation at pH 7.4: 5 ASP, 1 COO-, 6 GLU, 1 HI" in said
    assert ":HIS 68: HI" in said
    before = backmapper.atoms.names.tolist()
    backmapper(frames[0].positions[place], frames[0].box)
    assert backmapper.atoms.names.tolist() == before


# From the outside


def test_convert_takes_a_ph_and_a_file(folder, weights):
    choices = write(folder, "HIS 68: HIP\n")
    said = ok("convert", folder / "cg.xtc", "-o", folder / "aa.gro", "--model", weights, "--stop",
              1, "--ph", 3, "--protonation", choices)  # fmt: skip
    assert "protonation at pH 3: 5 ASH, 1 COO-, 6 GLH, 1 HIP, 7 LYS, 1 NH3+" in said
    assert len(load(folder / "aa.gro").atoms) == 1231 + 12


def test_convert_refuses_what_cannot_be(folder, weights):
    words = ("convert", folder / "cg.xtc", "-o", folder / "aa.xtc", "--model", weights)
    assert "pH 20: expected a number from 0 to 14" in fails(*words, "--ph", 20)
    assert "nowhere.yaml" in fails(*words, "--protonation", folder / "nowhere.yaml")
    choices = write(folder, "HIS 68: HIPS\n")
    assert "has no state 'HIPS'" in fails(*words, "--protonation", choices)
    assert not (folder / "aa.xtc").exists()


def test_a_carrier_settles_the_atoms(weights):
    u = mdbackmap.carrier(TPR, XTC, solvent="drop", ph=3.0, protonation={"HIS": "HID"})
    assert len(u.atoms) == 1231 + 5 + 6
    assert "HD1" in u.select_atoms("resname HIS").names
    u.trajectory.add_transformations(mdbackmap.Backmap(model=weights))
    assert np.isfinite(u.atoms.positions).all()
    assert len(mdbackmap.carrier(TPR, XTC, solvent="drop", hydrogens=False).atoms) == 602


@pytest.mark.parametrize("options", [{"ph": 3.0}, {"hydrogens": False}, {"protonation": {}}])
def test_a_transformation_cannot_change_the_atoms_of_a_carrier(weights, options):
    u = mdbackmap.carrier(TPR, XTC, solvent="drop")
    with pytest.raises(StructureError, match=r"mdbackmap.carrier\(\)"):
        u.trajectory.add_transformations(mdbackmap.Backmap(model=weights, **options))


# What a mapping may say

STATES = """
residue: XXX
beads: {A: }
atoms:
  C1: {bead: A, hydrogens: [H1, H2, H3]}
  O1: {bead: A, hydrogens: [HO]}
bonds: [[C1, O1]]
"""


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ("states: {N: {hydrogens: {O9: []}}}", "states N: no atom O9"),
        ("states: {N: {hydrogens: {O1: [H1]}}}", "states N: the name H1 is in use"),
        ("states: {N: {below: 4}}", "states: one of them must be without 'below', 'above'"),
        ("states: {N: {below: 40}}", "line 8: 'states.N.below'"),
        ("states: {N: {abov: 4}}", "did you mean 'above'"),
    ],
)
def test_states_that_cannot_be(tmp_path, states, expected):
    path = tmp_path / "XXX.yaml"
    path.write_text(STATES + states)
    with pytest.raises(MappingFileError) as caught:
        Library.load([path])
    assert expected in str(caught.value)


def test_a_molecule_may_have_states(tmp_path):
    path = tmp_path / "XXX.yaml"
    path.write_text(STATES + "states: {XXX: {}, XXM: {above: 9, hydrogens: {O1: []}}}")
    library = Library.load([path])
    table = Particles(np.array(["A"]), np.array(["XXX"]), np.ones(1, np.int64), np.array(["A"]))
    system = from_beads(table, library, Frame(np.zeros((1, 3), np.float32)))
    assert states(system) == ["XXX"]
    assert states(system, ph=10) == ["XXM"]
    assert len(AllAtoms.of(system, decide(system, ph=10)).hydrogens) == 3


CAPS = {
    "ACE": "{CH3: {bead: BB, hydrogens: [H1, H2, H3]}, C: {bead: BB}, O: {bead: BB}}\n"
           "bonds: [[CH3, C], [C, O, 2]]",
    "NME": "{N: {bead: BB, hydrogens: [H]}, C: {bead: BB, hydrogens: [H1, H2, H3]}}\n"
           "bonds: [[N, C]]",
    "NH2": "{N: {bead: BB, hydrogens: [HN1, HN2]}}",
}  # fmt: skip


@pytest.mark.parametrize("last", ["NME", "NH2"])
def test_caps_take_the_charge_from_the_ends(tmp_path, last):
    for name, atoms in CAPS.items():
        # The carbon of NME is no carbonyl: its link says what is bonded to the residue before.
        link = "[[X, +N]]" if name != "ACE" else "[[C, +N, 1, 1.331]]"
        (tmp_path / f"{name}.yaml").write_text(
            f"residue: {name}\nkind: protein\nbeads: {{BB: }}\natoms: {atoms}\n"
            f"link: {{bonds: {link}}}\n"
        )
    system = chain("ACE", "ALA", "LYS", last, mapping=["martini3", tmp_path])
    assert states(system) == ["", "", "LYS", ""]
    table = AllAtoms.of(system, decide(system)).table
    counts = [int(((table.residue == k) & (table.elements == "H")).sum()) for k in range(4)]
    assert counts == [3, 5, 13, 4 if last == "NME" else 2]
