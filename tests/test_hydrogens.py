"""Which hydrogens there are, and where they are put."""

from __future__ import annotations

import dataclasses
import itertools
import pickle

import numpy as np
import pytest
from mdbackmap.errors import MappingFileError
from mdbackmap.graph.neighbours import close_pairs
from mdbackmap.hydrogens.atoms import AllAtoms
from mdbackmap.hydrogens.nearby import Nearby
from mdbackmap.hydrogens.place import REACH, HydrogenPlacer
from mdbackmap.hydrogens.protonation import decide
from mdbackmap.hydrogens.recipes import LENGTH, recipes_for
from mdbackmap.io.source import CGSource
from mdbackmap.mapping.hydrogens import Place, free_valence, hydrogen_names
from mdbackmap.mapping.library import Library, load_templates, shipped
from mdbackmap.mapping.schema import MappingSpec
from mdbackmap.mapping.system import System, from_atoms, from_beads
from mdbackmap.mapping.template import Template, compile_template
from mdbackmap.pipeline import Backmapper, Options
from mdbackmap.structure import Frame, Particles
from mdbackmap.validation.measures import torsions

from helpers_io import DATA, load, ok

AMINO_ACIDS = [
    "ALA",
    "ARG",
    "ASN",
    "ASP",
    "CYS",
    "GLN",
    "GLU",
    "GLY",
    "HIS",
    "ILE",
    "LEU",
    "LYS",
    "MET",
    "PHE",
    "PRO",
    "SER",
    "THR",
    "TRP",
    "TYR",
    "VAL",
]


class Placed:
    """A system of atoms with its hydrogens in place."""

    def __init__(self, system: System, heavy: np.ndarray, box=None, **options) -> None:
        self.system, self.heavy, self.box = system, heavy.astype(np.float32), box
        self.atoms = AllAtoms.of(system, decide(system, **options))
        self.recipes = recipes_for(system, self.atoms)
        self.placer = HydrogenPlacer(self.recipes)
        self.hydrogens = self(self.heavy, box)

    def __call__(self, heavy: np.ndarray, box=None) -> np.ndarray:
        return self.placer(heavy, Nearby(*close_pairs(heavy, box, REACH)))

    @property
    def names(self) -> np.ndarray:
        return self.atoms.table.names[self.atoms.hydrogens]

    def of(self, residue: int) -> dict[str, np.ndarray]:
        """Hydrogens of a residue by name."""
        rows = np.flatnonzero(self.system.atoms.residue[self.atoms.bearers] == residue)
        return dict(zip(self.names[rows].tolist(), self.hydrogens[rows], strict=True))

    def close_hydrogens(self, limit: float) -> int:
        """Pairs of hydrogens of different atoms nearer than a limit."""
        first, second, _ = close_pairs(self.hydrogens, self.box, limit)
        return int((self.atoms.bearers[first] != self.atoms.bearers[second]).sum())


def known(name: str) -> tuple[Placed, CGSource]:
    """A structure with known hydrogens, and its own hydrogens placed anew."""
    source = CGSource.open(DATA / f"{name}.pdb")
    frame = source.usable_frame()
    system = from_atoms(source.particles, Library.load(), frame)
    return Placed(system, system.take(frame.positions), frame.box), source


def molecule(residue: str, atoms: dict, bonds: list) -> Template:
    """A molecule of one bead, from its atoms."""
    spec = MappingSpec.model_validate(
        {"residue": residue, "beads": {"A": None}, "bonds": bonds,
         "atoms": {name: {"bead": "A", **value} for name, value in atoms.items()}}
    )  # fmt: skip
    return compile_template(spec, "test")


def single(template, positions) -> Placed:
    """A system of one molecule."""
    n = template.n_atoms
    table = Particles(template.names, np.full(n, template.residue), np.ones(n, np.int64),
                      np.full(n, "A"))  # fmt: skip
    positions = np.array(positions, dtype=float)
    system = from_atoms(table, Library((template,), "test"), Frame(positions))
    return Placed(system, positions)


# Which there are


def peptide_of(residues, library, length=1000) -> System:
    """Residues as chains of a length, from beads along a line."""
    rows = [(bead, name, k) for k, name in enumerate(residues, 1)
            for bead in library.candidates(name)[0].bead_names]  # fmt: skip
    names, resnames, resids = (np.array(column) for column in zip(*rows, strict=True))
    resids += 10 * ((resids - 1) // length)
    place = np.stack([3.5 * resids, 0.1 * (np.arange(len(rows)) % 7), 0 * resids], axis=1)
    return from_beads(
        Particles(names, resnames, resids, np.full(len(rows), "A")), library,
        Frame(place.astype(np.float32)),
    )  # fmt: skip


def openmm_topology(table):
    """The atom list as OpenMM sees it."""
    app = pytest.importorskip("openmm.app")
    topology = app.Topology()
    chain, atoms, residues = topology.addChain(), [], {}
    for name, element, residue, resname in zip(
        table.names, table.elements, table.residue, table.resnames, strict=True
    ):
        if residue not in residues:
            residues[residue] = topology.addResidue(str(resname), chain)
        symbol = app.Element.getBySymbol(str(element).capitalize())
        atoms.append(topology.addAtom(str(name), symbol, residues[residue]))
    for i, j in table.bonds.tolist():
        topology.addBond(atoms[i], atoms[j])
    return topology


@pytest.fixture(scope="module")
def force_fields():
    app = pytest.importorskip("openmm.app")
    return [app.ForceField(f"{name}.xml") for name in ("charmm36", "amber14-all")]


def fit(table, force_fields):
    """Force fields have templates with exactly these atoms and bonds, or raise."""
    for field in force_fields:
        assert field.createSystem(openmm_topology(table)).getNumParticles() == len(table)


STATES = [
    ({"ASP": "ASH", "GLU": "GLH", "HIS": "HIP", "LYS": "LYN"}, {}),
    ({"HIS": "HSD", "CYS": "CYM"}, {}),
    ({}, {"ph": 2.0}),
]


@pytest.mark.parametrize(
    ("family", "choices", "options"),
    [(family, {}, {}) for family in shipped()] + [("martini3", *rest) for rest in STATES],
)
def test_counts_of_proteins_are_those_of_force_fields(family, choices, options, force_fields):
    order = ["MET", *AMINO_ACIDS, "GLY"]
    system = peptide_of(order, Library.load(family))
    atoms = AllAtoms.of(system, decide(system, **options, choices=choices or None))
    fit(atoms.table, force_fields)


def test_either_end_of_a_chain_is_that_of_force_fields(library, force_fields):
    system = peptide_of([name for each in AMINO_ACIDS for name in (each, "ALA", each)], library, 3)
    atoms = AllAtoms.of(system, decide(system))
    names = [" ".join(own) for own in atoms.protonation.names(system)]
    assert sum("NH3+" in own or "NH2+" in own for own in names) == len(AMINO_ACIDS)
    fit(atoms.table, force_fields)


def test_bridged_cysteines_have_no_hydrogen_there(insulin_system, force_fields):
    states = decide(insulin_system)
    atoms = AllAtoms.of(insulin_system, states)
    assert [n for n in states.names(insulin_system) if "CYX" in n] == [("CYX",)] * 6
    fit(atoms.table, force_fields)


def test_lipids_have_the_names_of_charmm():
    app = pytest.importorskip("openmm.app")
    field = app.ForceField("charmm36_2024.xml")
    compared = 0
    for template in itertools.chain(load_templates("martini3"), load_templates("martini2")):
        reference = field._templates.get(template.residue)
        if template.kind != "lipid" or reference is None:
            continue
        symbols = [a.element.symbol if a.element else "" for a in reference.atoms]
        expected = set()
        for pair in reference.bonds:
            for i, j in (pair, pair[::-1]):
                if symbols[i] == "H":
                    expected.add((reference.atoms[i].name, reference.atoms[j].name))
        names = hydrogen_names(template, Place())
        found = {(h, a) for a, own in zip(template.names.tolist(), names, strict=True) for h in own}
        assert found == expected, template.residue
        compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    ("element", "orders", "charge", "count"),
    [("C", 3, 0, 1), ("C", 3.0, 0, 1), ("C", 4.5, 0, 0), ("N", 1, 1, 3), ("N", 3, 0, 0),
     ("N", 1.5, 0, 2), ("O", 1, -1, 0), ("O", 1.5, 0, 0), ("O", 1, 0, 1), ("S", 1, 0, 1),
     ("S", 6, 0, 0), ("P", 5, 0, 0), ("F", 1, 0, 0), ("FE", 2, 0, 0), ("B", 2, 0, 1)],
)  # fmt: skip
def test_valences(element, orders, charge, count):
    assert free_valence(element, orders, charge) == count


def test_hydrogens_that_no_file_names_fill_valences():
    # Aminoethanoic acid, as an ion: +H3N-CH2-COO-.
    template = molecule(
        "GLX", {"N1": {"charge": 1}, "C1": {}, "C2": {}, "O1": {}, "O2": {}},
        [["N1", "C1"], ["C1", "C2"], ["C2", "O1", 1.5], ["C2", "O2", 1.5]],
    )  # fmt: skip
    names = dict(zip(template.names.tolist(), hydrogen_names(template, Place()), strict=True))
    assert {atom: len(own) for atom, own in names.items()} == {
        "N1": 3, "C1": 2, "C2": 0, "O1": 0, "O2": 0,
    }  # fmt: skip
    every = [*names, *(h for own in names.values() for h in own)]
    assert len(set(every)) == len(every) == 10
    assert max(map(len, every)) <= 4


def test_a_mapping_without_bonds_has_no_hydrogens():
    template = molecule("XXX", {"C1": {}, "C2": {}}, [])
    assert hydrogen_names(template, Place()) == ((), ())


@pytest.mark.parametrize("family", shipped())
def test_names_are_distinct_and_fit_a_pdb_file(family):
    for template in load_templates(family):
        if template.has_atoms:
            for place in (Place(), Place(starts=True, ends=True)):
                names = [h for own in hydrogen_names(template, place) for h in own]
                assert len({*names, *template.names.tolist()}) == len(names) + template.n_atoms
                if max(map(len, template.names.tolist())) <= 4:
                    assert max(map(len, names), default=0) <= 4


# The atom list


def test_hydrogens_follow_their_atom(peptide):
    system, _ = peptide
    atoms = AllAtoms.of(system, decide(system))
    table = atoms.table
    assert len(table) == system.n_atoms + len(atoms.hydrogens)
    assert (table.names[atoms.heavy] == system.atoms.names).all()
    assert (table.elements[atoms.hydrogens] == "H").all()
    assert (np.diff(table.residue) >= 0).all()
    assert table.names[:9].tolist() == ["N", "H", "H2", "H3", "CA", "HA", "C", "O", "CB"]
    bonds = {tuple(sorted(pair)) for pair in table.bonds.tolist()}
    assert len(bonds) == len(system.atoms.bonds) + len(atoms.hydrogens)
    for hydrogen, bearer in zip(atoms.hydrogens, atoms.bearers, strict=True):
        assert (atoms.heavy[bearer], hydrogen) in bonds
        last = atoms.heavy[bearer + 1] if bearer + 1 < system.n_atoms else len(table)
        assert atoms.heavy[bearer] < hydrogen < last


# Where they are


@pytest.fixture(scope="module", params=["1l2y", "1ans"])
def structure(request) -> tuple[Placed, CGSource]:
    return known(request.param)


def test_fixed_hydrogens_are_where_they_were_seen(structure):
    placed, source = structure
    frame = source.usable_frame()
    table = source.particles
    seen = {
        (int(resid), name): point
        for resid, name, point in zip(table.resids, table.names, frame.positions, strict=True)
    }
    system, recipes = placed.system, placed.recipes
    turned = np.isin(recipes.owner, np.concatenate([t.bearers for t in recipes.turning]))
    gaps = []
    for k, (bearer, name) in enumerate(zip(placed.atoms.bearers, placed.names, strict=True)):
        point = seen.get((int(system.atoms.resids[bearer]), name))
        if point is not None and not turned[k]:
            gaps.append(placed.hydrogens[k] - point)
    assert len(gaps) > 90
    # The names tell which of two hydrogens is which: exchanged ones would be 1.8 Å off.
    distance = np.linalg.norm(gaps, axis=1)
    assert distance.max() < 0.6
    assert np.sqrt(np.mean(distance**2)) < 0.15


@pytest.mark.parametrize("residues", [AMINO_ACIDS, ["POPC"], ["PSM"], ["POPE"]])
def test_lengths_are_within_three_percent_of_force_fields(residues, library, force_fields):
    openmm = pytest.importorskip("openmm")
    system = peptide_of(residues, library)
    atoms = AllAtoms.of(system, decide(system))
    recipes = recipes_for(system, atoms)
    length = np.zeros(len(atoms.table))
    length[atoms.hydrogens] = np.linalg.norm(recipes.coefficients, axis=1)
    for field in force_fields if residues is AMINO_ACIDS else force_fields[:1]:
        made = field.createSystem(openmm_topology(atoms.table))
        bonds = next(f for f in made.getForces() if isinstance(f, openmm.HarmonicBondForce))
        # Urey-Bradley terms of CHARMM are among them.
        known, compared = {tuple(sorted(pair)) for pair in atoms.table.bonds.tolist()}, 0
        for k in range(bonds.getNumBonds()):
            i, j, nm, _ = bonds.getBondParameters(k)
            if (length[[i, j]] > 0).sum() == 1 and tuple(sorted((i, j))) in known:
                assert length[[i, j]].max() / (10 * nm._value) == pytest.approx(1, abs=0.03)
                compared += 1
        assert compared == len(atoms.hydrogens)


def test_bonds_have_their_length(structure):
    placed, _ = structure
    elements = placed.system.atoms.elements[placed.atoms.bearers]
    length = np.linalg.norm(placed.hydrogens - placed.heavy[placed.atoms.bearers], axis=1)
    expected = np.array([LENGTH[e] for e in elements])
    assert np.abs(length / expected - 1).max() < 0.03


def test_angles_are_sound(structure):
    placed, _ = structure
    heavy, hydrogens, bearers = placed.heavy, placed.hydrogens, placed.atoms.bearers
    bonds = placed.system.constraints.bonds
    for k, bearer in enumerate(bearers):
        near = [j if i == bearer else i for i, j in bonds if bearer in (i, j)]
        rows = [heavy[i] for i in near] + [hydrogens[m] for m in np.flatnonzero(bearers == bearer)
                                           if m != k]  # fmt: skip
        for point in rows:
            a, b = hydrogens[k] - heavy[bearer], point - heavy[bearer]
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert 85 < np.degrees(np.arccos(cosine)) < 140


def test_hydrogens_do_not_meet(structure):
    assert structure[0].close_hydrogens(1.5) == 0


def test_turning_and_moving_the_structure_moves_the_hydrogens_along(structure):
    placed, _ = structure
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    shift = np.array([10.0, -7.0, 3.0])
    moved = placed((placed.heavy @ turn.T + shift).astype(np.float32))
    np.testing.assert_allclose(moved, placed.hydrogens @ turn.T + shift, atol=2e-3)


def test_a_periodic_box_changes_nothing_but_what_is_near(structure):
    placed, _ = structure
    box = np.diag([60.0, 60, 60])
    inside = placed(placed.heavy, box)
    np.testing.assert_allclose(inside, placed.hydrogens, atol=1e-4)
    # The same molecule across the faces of the box: every residue in another image.
    scatter = np.random.default_rng(1).integers(-1, 2, (2, 3)) @ box
    two = np.concatenate([placed.heavy, placed.heavy[::-1]])
    assert np.isfinite(two).all()
    shifted = placed((placed.heavy + scatter[0]).astype(np.float32), box)
    np.testing.assert_allclose(shifted, inside + scatter[0], atol=1e-3)


def test_mirrored_structures_have_mirrored_hydrogens_of_other_names(structure):
    placed, _ = structure
    mirror = np.array([-1, 1, 1], dtype=np.float32)
    other = placed(placed.heavy * mirror) * mirror
    first = np.linalg.norm(other - placed.hydrogens, axis=1)
    pairs = np.flatnonzero(
        (placed.recipes.count[placed.atoms.bearers] == 2)
        & (placed.recipes.kind[placed.recipes.owner] == 2)
    )
    assert np.median(first[pairs]) > 1.5


SHAPES = {
    "methane": ({"C1": 4}, [], [[0, 0, 0]]),
    "ethane": ({"C1": 3, "C2": 3}, [["C1", "C2"]], [[0, 0, 0], [1.53, 0, 0]]),
    "ethyne": ({"C1": 1, "C2": 1}, [["C1", "C2", 3]], [[0, 0, 0], [1.2, 0, 0]]),
    "ethene": ({"C1": 2, "C2": 2}, [["C1", "C2", 2]], [[0, 0, 0], [1.34, 0, 0]]),
    "water": ({"O1": 2}, [], [[0, 0, 0]]),
    "methanol": ({"C1": 3, "O1": 1}, [["C1", "O1"]], [[0, 0, 0], [1.43, 0, 0]]),
    "acetonitrile": (
        {"C1": 3, "C2": 0, "N1": 0}, [["C1", "C2"], ["C2", "N1", 3]],
        [[0, 0, 0], [1.46, 0, 0], [2.62, 0, 0]],
    ),
    "dimethylamine": (
        {"C1": 3, "N1": 1, "C2": 3}, [["C1", "N1"], ["N1", "C2"]],
        [[0, 0, 0], [1.45, 0, 0], [1.95, 1.35, 0]],
    ),
    "methylamine": ({"C1": 3, "N1": 2}, [["C1", "N1"]], [[0, 0, 0], [1.47, 0, 0]]),
    "formic acid": (
        {"C1": 1, "O1": 0, "O2": 1}, [["C1", "O1", 2], ["C1", "O2"]],
        [[0, 0, 0], [1.2, 0, 0], [-0.7, 1.15, 0]],
    ),
    "trimethylammonium": (
        {"N1": 1, "C1": 3, "C2": 3, "C3": 3}, [["N1", "C1"], ["N1", "C2"], ["N1", "C3"]],
        [[0, 0, 0], [1.4, 0, 0.5], [-0.7, 1.21, 0.5], [-0.7, -1.21, 0.5]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_small_molecules_get_sound_hydrogens(name):
    counts, bonds, points = SHAPES[name]
    numbers = itertools.count(1)
    atoms = {atom: {"hydrogens": [f"H{next(numbers)}" for _ in range(n)],
                    "charge": int(name.endswith("ammonium") and atom == "N1")}
             for atom, n in counts.items()}  # fmt: skip
    template = molecule("XXX", atoms, bonds)
    placed = single(template, points)
    assert len(placed.hydrogens) == sum(counts.values())
    every = np.concatenate([placed.heavy, placed.hydrogens])
    gaps = np.linalg.norm(every[:, None] - every[None], axis=2)[np.triu_indices(len(every), 1)]
    assert gaps.min() > 0.9
    n = len(placed.hydrogens)
    own = np.linalg.norm(placed.hydrogens[:, None] - placed.hydrogens[None], axis=2)
    assert own[np.triu_indices(n, 1)].min(initial=9) > 1.5
    # Unnamed, the valences give the same ones.
    bare = molecule("XXX", {a: {"charge": v["charge"]} for a, v in atoms.items()}, bonds)
    assert [len(own) for own in hydrogen_names(bare, Place())] == list(counts.values())


def test_methyls_are_staggered():
    # Propane: of each methyl, one hydrogen is anti to the other methyl.
    template = molecule(
        "PRO", {"C1": {"hydrogens": ["H1", "H2", "H3"]}, "C2": {"hydrogens": ["H4", "H5"]},
                "C3": {"hydrogens": ["H6", "H7", "H8"]}}, [["C1", "C2"], ["C2", "C3"]],
    )  # fmt: skip
    placed = single(template, [[0, 0, 0], [1.53, 0, 0], [2.04, 1.44, 0]])
    points = np.concatenate([placed.heavy, placed.hydrogens])
    found = [float(torsions(points, np.array([[k, 0, 1, 2]]), None)[0]) for k in (3, 4, 5)]
    assert sorted(round(abs(t)) for t in found) == [60, 60, 180]


def test_an_acid_turns_its_hydrogen_to_the_other_oxygen():
    _, bonds, points = SHAPES["formic acid"]
    atoms = {"C1": {"hydrogens": ["H1"]}, "O1": {}, "O2": {"hydrogens": ["H2"]}}
    placed = single(molecule("FOR", atoms, bonds), points)
    assert np.linalg.norm(placed.of(0)["H2"] - np.array(points[1])) < 2.5


def two(first, second) -> Placed:
    """Two molecules side by side, given as (template, positions)."""
    names = np.concatenate([t.names for t, _ in (first, second)])
    resnames = np.repeat([t.residue for t, _ in (first, second)],
                         [t.n_atoms for t, _ in (first, second)])  # fmt: skip
    resids = np.repeat([1, 2], [t.n_atoms for t, _ in (first, second)])
    points = np.concatenate([np.array(p, float) for _, p in (first, second)])
    templates = tuple({id(t): t for t, _ in (first, second)}.values())
    system = from_atoms(Particles(names, resnames, resids, np.full(len(names), "A")),
                        Library(templates, "test"), Frame(points))  # fmt: skip
    return Placed(system, points)


ETHANOL = {
    "C1": {"hydrogens": ["H1", "H2", "H3"]}, "C2": {"hydrogens": ["H4", "H5"]},
    "O1": {"hydrogens": ["HO"]},
}  # fmt: skip
ETHANOL_BONDS = [["C1", "C2"], ["C2", "O1"]]
ETHANOL_POINTS = np.array([[0, 0, 0], [1.53, 0, 0], [2.03, 1.34, 0]])


@pytest.mark.parametrize("angle", [0, 45, 90, 200, 300])
def test_a_hydroxyl_turns_to_an_acceptor(angle):
    template = molecule("ETO", ETHANOL, ETHANOL_BONDS)
    acceptor = molecule("KET", {"O9": {"charge": -2}}, [])
    axis = np.array([0.5, 1.34, 0]) / np.linalg.norm([0.5, 1.34])
    across = np.array([axis[1], -axis[0], 0])
    turn = np.radians(angle)
    side = across * np.cos(turn) + np.cross(axis, across) * np.sin(turn)
    place = ETHANOL_POINTS[2] + 2.8 * (0.3 * axis + 0.954 * side)
    placed = two((template, ETHANOL_POINTS), (acceptor, [place]))
    assert np.linalg.norm(placed.of(0)["HO"] - place) < 2.0


def test_a_hydroxyl_turns_away_from_a_clash():
    template = molecule("ETO", ETHANOL, ETHANOL_BONDS)
    other = molecule(
        "MET", {"C9": {"hydrogens": []}, "C8": {"hydrogens": ["H9"]}}, [["C9", "C8", 3]]
    )
    alone = two((template, ETHANOL_POINTS), (other, [[50, 0, 0], [51.2, 0, 0]]))
    there = alone.of(0)["HO"]
    direction = there - ETHANOL_POINTS[2]
    place = ETHANOL_POINTS[2] + 3.0 * direction / np.linalg.norm(direction)
    crowded = two((template, ETHANOL_POINTS), (other, [place, place + np.array([0, 0, 1.2])]))
    assert np.linalg.norm(crowded.of(0)["HO"] - place) > 2.3


def test_hydrogens_across_a_box_face_turn_to_one_another():
    template = molecule("ETO", ETHANOL, ETHANOL_BONDS)
    acceptor = molecule("KET", {"O9": {"charge": -2}}, [])
    box = np.diag([30.0, 30, 30])
    place = ETHANOL_POINTS[2] + np.array([1.2, 1.2, 2.2])
    near = two((template, ETHANOL_POINTS), (acceptor, [place]))
    far = near(np.float32(np.vstack([ETHANOL_POINTS, place + np.array([30, -30, 0])])), box)
    np.testing.assert_allclose(far, near.hydrogens, atol=1e-4)


def test_too_many_hydrogens_are_an_error_that_names_the_atom():
    template = molecule(
        "BAD", {"C1": {"hydrogens": ["H1", "H2", "H3"]}, "C2": {}, "C3": {}},
        [["C1", "C2"], ["C1", "C3"]],
    )  # fmt: skip
    with pytest.raises(MappingFileError, match=r"residue BAD, atom C1: 2 bonds.*and 3 hydrogens"):
        single(template, [[0, 0, 0], [1.5, 0, 0], [0, 1.5, 0]])


# In the pipeline


def test_heavy_atoms_are_those_without_hydrogens(ubiquitin, ubiquitin_system, tiny_model):
    beads = ubiquitin.frame().positions[ubiquitin_system.bead_source]
    box = ubiquitin.frame().box
    bare = Backmapper(ubiquitin_system, tiny_model, Options(hydrogens=False))
    full = Backmapper(ubiquitin_system, tiny_model)
    assert bare.atoms is ubiquitin_system.atoms
    assert len(full.atoms) == 1231
    heavy, every = bare(beads, box), full(beads, box)
    assert heavy.shape == (602, 3)
    assert every.shape == (1231, 3)
    assert np.array_equal(every[full.all_atoms.heavy], heavy)
    again = pickle.loads(pickle.dumps(full))  # noqa: S301 (made on this line)
    assert np.array_equal(again(beads, box), every)


def test_molecules_that_cross_the_box_have_whole_hydrogens(membrane, membrane_system, tiny_model):
    frame = membrane.frame()
    backmapper = Backmapper(membrane_system, tiny_model)
    every = backmapper(frame.positions[membrane_system.bead_source], frame.box)
    bonds = backmapper.atoms.bonds
    assert np.linalg.norm(every[bonds[:, 0]] - every[bonds[:, 1]], axis=1).max() < 4


def test_shipped_model_puts_no_hydrogens_on_one_another(ubiquitin, ubiquitin_system):
    frames = ubiquitin.sample(3)
    backmapper = Backmapper(ubiquitin_system, "martini3")
    place = ubiquitin_system.bead_source
    backmapper.inspect([f.positions[place] for f in frames], [f.box for f in frames])
    atoms = backmapper.all_atoms
    for frame in frames:
        hydrogens = backmapper(frame.positions[place], frame.box)[atoms.hydrogens]
        first, second, _ = close_pairs(hydrogens, frame.box, 1.5)
        assert (atoms.bearers[first] != atoms.bearers[second]).sum() <= 1


def test_convert_writes_all_atoms_or_heavy_ones(folder, weights):
    said = ok("convert", folder / "cg.xtc", "-o", folder / "aa.pdb", "--model", weights,
              "--stop", 1)  # fmt: skip
    assert "of 1231 atoms" in said
    assert "protonation at pH 7.4" in said
    full = load(folder / "aa.pdb")
    assert len(full.select_atoms("element H")) == 629
    said = ok("convert", folder / "cg.xtc", "-o", folder / "heavy.pdb", "--model", weights,
              "--stop", 1, "--no-hydrogens")  # fmt: skip
    assert "heavy atoms, no hydrogens" in said
    heavy = load(folder / "heavy.pdb")
    assert len(heavy.atoms) == 602
    np.testing.assert_allclose(
        full.select_atoms("not element H").positions, heavy.atoms.positions, atol=1e-3
    )
    assert "1 frame" in ok("validate", folder / "aa.pdb")


def test_a_system_of_part_of_the_residues_keeps_names_of_the_file(insulin_system):
    part, *_ = insulin_system.of_residues(np.arange(len(insulin_system.residue_template)) < 5)
    assert part.given_names.tolist() == insulin_system.given_names[:5].tolist()
    assert dataclasses.is_dataclass(part)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 0.5])
def test_heavy_atoms_in_disorder_give_finite_hydrogens(structure, spread):
    placed, _ = structure
    heavy = np.random.default_rng(2).normal(scale=spread, size=placed.heavy.shape)
    assert np.isfinite(placed(heavy.astype(np.float32))).all()


def test_neighbours_in_a_line_give_hydrogens_of_the_right_length():
    template = molecule(
        "XXX", {"C1": {"hydrogens": ["H1", "H2", "H3"]}, "C2": {"hydrogens": ["H4", "H5"]},
                "C3": {"hydrogens": ["H6", "H7", "H8"]}}, [["C1", "C2"], ["C2", "C3"]],
    )  # fmt: skip
    placed = single(template, [[-1.5, 0, 0], [0, 0, 0], [1.5, 0, 0]])
    length = np.linalg.norm(placed.hydrogens - placed.heavy[placed.atoms.bearers], axis=1)
    assert length == pytest.approx(1.09, abs=1e-3)
