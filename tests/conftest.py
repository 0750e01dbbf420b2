"""Fixtures every test file may use.

``tiny_model``
    A `Checkpoint` with random weights that knows all of the martini3 mapping; small and fast.
``ubiquitin``, ``membrane``, ``insulin``
    Coarse-grained inputs as `CGSource`, opened anew for every test; ``ubiquitin`` and
    ``membrane`` are short trajectories, ``insulin`` has two chains and disulfides.
``ubiquitin_system``, ``membrane_system``, ``insulin_system``
    The same laid out as `System`; made once, not to be changed.
``peptide``, ``lipid``
    Sound atomistic structures as `(System, positions)`, positions float64 in Å, not writeable.
``library``
    The martini3 `Library`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mdbackmap.io import files
from mdbackmap.io.source import CGSource
from mdbackmap.io.transformation import lay_out
from mdbackmap.mapping.library import Library, terminal_variant
from mdbackmap.mapping.system import System, from_atoms
from mdbackmap.models.checkpoint import Checkpoint
from mdbackmap.models.encoder import EncoderConfig
from mdbackmap.models.hierarchical import HierarchicalVectors

DATA = Path(__file__).parent / "data"
TUTORIALS = Path(__file__).parents[1] / "tutorials" / "data"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Arrays of tests are small: threads would only wait for one another.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def library() -> Library:
    return Library.load("martini3")


@pytest.fixture(scope="session")
def tiny_model(library: Library) -> Checkpoint:
    templates = [t for t in library.templates if t.has_atoms]
    templates += [terminal_variant(t) for t in templates]
    bead_keys = sorted({key for t in templates for key in t.bead_keys})
    atom_keys = sorted({key for t in templates for key in t.atom_keys})
    residues = ["", *sorted({t.residue for t in templates})]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = EncoderConfig(scalars=16, vectors=8, radial=4)
        network = HierarchicalVectors(config, len(bead_keys), len(residues), len(atom_keys))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Linear):
                # As drawn, weights put atoms within 0.001 Å of their beads.
                module.weight *= 2.5
    return Checkpoint(
        network=network.eval(),
        bead_keys=bead_keys,
        atom_keys=atom_keys,
        residues=residues,
        digests={t.residue: t.placement for t in templates},
        bead_distances={},
        card={"name": "tiny", "licence": "MIT"},
        source="tests/conftest.py",
    )


@pytest.fixture
def ubiquitin() -> CGSource:
    return CGSource.open(TUTORIALS / "ubiquitin.xtc", TUTORIALS / "ubiquitin.tpr")


@pytest.fixture
def membrane() -> CGSource:
    return CGSource.open(DATA / "membrane.xtc", DATA / "membrane.gro")


@pytest.fixture
def insulin() -> CGSource:
    return CGSource.open(DATA / "insulin.gro", DATA / "insulin.tpr")


@pytest.fixture(scope="session")
def ubiquitin_system() -> System:
    return lay_out(CGSource.open(TUTORIALS / "ubiquitin.xtc", TUTORIALS / "ubiquitin.tpr"))


@pytest.fixture(scope="session")
def membrane_system() -> System:
    return lay_out(CGSource.open(DATA / "membrane.gro"))


@pytest.fixture(scope="session")
def insulin_system() -> System:
    return lay_out(CGSource.open(DATA / "insulin.gro", DATA / "insulin.tpr"))


@pytest.fixture(scope="session")
def peptide(library: Library) -> tuple[System, np.ndarray]:
    return _atomistic(DATA / "ubiquitin_12.pdb", library)


@pytest.fixture(scope="session")
def lipid(library: Library) -> tuple[System, np.ndarray]:
    return _atomistic(DATA / "popc.pdb", library)


def _atomistic(path: Path, library: Library) -> tuple[System, np.ndarray]:
    universe = files.open_universe(path)
    frame = files.frame(universe.trajectory.ts)
    system = from_atoms(files.particles(universe), library, frame)
    positions = system.take(frame.positions)
    positions.flags.writeable = False
    return system, positions
