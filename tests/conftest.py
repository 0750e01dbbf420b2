"""Fixtures every test file may use.

``tiny_model``, ``weights``
    A `Checkpoint` with random weights that knows all of the martini3 mapping, small and fast; and
    a file of it, not to be changed.
``folder``, ``converted``
    A folder that holds the ubiquitin trajectory and its topology, new for every test; and one of
    the whole trajectory as ``convert`` writes it with ``weights``, not to be changed.
``ubiquitin``, ``membrane``, ``insulin``
    Coarse-grained inputs as `CGSource`, opened anew for every test; ``ubiquitin`` and
    ``membrane`` are short trajectories, ``insulin`` has two chains and disulfides.
``ubiquitin_system``, ``membrane_system``, ``insulin_system``
    The same laid out as `System`; made once, not to be changed.
``peptide``, ``lipid``, ``crowd``
    Sound atomistic structures as `(System, positions)`, positions float64 in Å, not writeable; a
    crowd is two of each, too far apart to meet.
``library``
    The martini3 `Library`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
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
from mdbackmap.structure import Frame, Particles

from helpers_io import DATA, GRO, MEMBRANE, TPR, XTC, ok, save


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Arrays of tests are small: threads would only wait for one another.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    # The command line sets loggers up for its process; a test must not do so for the next.
    loggers = [logging.getLogger(name) for name in ("mdbackmap", "py.warnings")]
    before = [(log.handlers[:], log.propagate, log.level) for log in loggers]
    yield
    for log, (handlers, propagate, level) in zip(loggers, before, strict=True):
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)


@pytest.fixture(scope="session")
def library() -> Library:
    return Library.load("martini3")


LIPIDS = [
    "CHL1",
    "DLPC",
    "DLPE",
    "DMPC",
    "DOPC",
    "DOPE",
    "DOPG",
    "DOPS",
    "DPPC",
    "DPPE",
    "DSPC",
    "DSPE",
    "PLPC",
    "POPA",
    "POPC",
    "POPE",
    "POPG",
    "POPS",
    "PSM",
    "SLPE",
    "SSM",
]
"""Lipids of the untrained model: a new mapping must not change its random weights."""


@pytest.fixture(scope="session")
def tiny_model(library: Library) -> Checkpoint:
    templates = [
        t for t in library.templates if t.has_atoms and (t.kind != "lipid" or t.residue in LIPIDS)
    ]
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


@pytest.fixture(scope="session")
def weights(tiny_model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model, tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(XTC, tmp_path / "cg.xtc")
    shutil.copy(TPR, tmp_path / "cg.tpr")
    return tmp_path


@pytest.fixture(scope="session")
def converted(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted")
    ok("convert", XTC, "-o", out / "aa.xtc", "--model", weights)
    return out


@pytest.fixture
def ubiquitin() -> CGSource:
    return CGSource.open(XTC, TPR)


@pytest.fixture
def membrane() -> CGSource:
    return CGSource.open(MEMBRANE, GRO)


@pytest.fixture
def insulin() -> CGSource:
    return CGSource.open(DATA / "insulin.gro", DATA / "insulin.tpr")


@pytest.fixture(scope="session")
def ubiquitin_system() -> System:
    return lay_out(CGSource.open(XTC, TPR))


@pytest.fixture(scope="session")
def membrane_system() -> System:
    return lay_out(CGSource.open(GRO))


@pytest.fixture(scope="session")
def insulin_system() -> System:
    return lay_out(CGSource.open(DATA / "insulin.gro", DATA / "insulin.tpr"))


PEPTIDE, LIPID = DATA / "ubiquitin_12.pdb", DATA / "popc.pdb"


@pytest.fixture(scope="session")
def peptide(library: Library) -> tuple[System, np.ndarray]:
    return _atomistic(library, (PEPTIDE, (0, 0, 0)))


@pytest.fixture(scope="session")
def lipid(library: Library) -> tuple[System, np.ndarray]:
    return _atomistic(library, (LIPID, (0, 0, 0)))


@pytest.fixture(scope="session")
def crowd(library: Library) -> tuple[System, np.ndarray]:
    return _atomistic(
        library, (PEPTIDE, (0, 0, 0)), (LIPID, (60, 0, 0)), (PEPTIDE, (0, 60, 0)),
        (LIPID, (60, 60, 0)),
    )  # fmt: skip


@pytest.fixture(scope="session")
def lipids(library: Library) -> tuple[System, np.ndarray]:
    """Nineteen of a kind in a row, so near that they touch."""
    return _atomistic(library, *((LIPID, (5.0 * k, 0, 0)) for k in range(19)))


def _atomistic(
    library: Library, *pieces: tuple[Path, tuple[float, float, float]]
) -> tuple[System, np.ndarray]:
    """Lay out files moved by so many Å as one system without a box."""
    tables, points = [], []
    for path, shift in pieces:
        universe = files.open_universe(path)
        tables.append(files.particles(universe))
        points.append(files.frame(universe.trajectory.ts).positions + np.float32(shift))
    table = Particles(
        *(np.concatenate([getattr(t, name) for t in tables])
          for name in ("names", "resnames", "resids", "segids"))
    )  # fmt: skip
    box = files.frame(universe.trajectory.ts).box if len(pieces) == 1 else None
    frame = Frame(np.concatenate(points), box)
    system = from_atoms(table, library, frame)
    positions = system.take(frame.positions)
    positions.flags.writeable = False
    return system, positions
