"""``mdbackmap prepare``: atomistic structures to a training set."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mdbackmap.cli.common import mapping_option, progress

if TYPE_CHECKING:
    from mdbackmap.mapping.library import Library
    from mdbackmap.training.simulated import BeadStatistics


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The .npz.")
@mapping_option
@click.option("--max-residues", default=0, help="Leave larger structures out (0: none).")
@click.option("--stride", default=1, show_default=True, help="Use every n-th frame.")
@click.option("--residue", default=None, help="Residue name of files whose own says nothing.")
@click.option("--exclude", multiple=True, metavar="NAME|FILE",
              help="Structure to leave out, or a file that lists them; repeatable.")  # fmt: skip
@click.option("--like", multiple=True, type=click.Path(exists=True, dir_okay=False),
              help="Coarse-grained trajectory; beads are moved to lie as there.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the moved beads.")
def prepare(inputs, output, mapping, max_residues, stride, residue, exclude, like, seed) -> None:
    """Turn atomistic structures into a training set.

    INPUTS are structures, 'STRUCTURE+TRAJECTORY' pairs given as two files with the same stem, or
    .tar archives of PDB files. Residues with occupancy 0 or missing atoms are not learnt from.
    """
    import numpy as np

    from mdbackmap.errors import MdbackmapError
    from mdbackmap.io.prepare import systems
    from mdbackmap.io.writing import check_place
    from mdbackmap.mapping.library import Library
    from mdbackmap.training.dataset import Builder
    from mdbackmap.training.simulated import Simulator

    check_place(output, map(Path, inputs))
    library = Library.load(mapping)
    statistics = _statistics(like, library) if like else None
    rng = np.random.default_rng(seed)
    exclude = _names(exclude)
    builder, left = Builder(simulated=bool(like)), []
    with tempfile.TemporaryDirectory() as folder:
        files = list(_files(inputs, Path(folder)))
        if strange := exclude - {name for name, *_ in files}:
            some = ", ".join(sorted(strange)[:10])
            raise click.UsageError(
                f"--exclude: neither a structure among the inputs nor a file: {some}"
            )
        for name, topology, trajectory in progress(files, "structures"):
            if name in exclude:
                continue
            try:
                simulator = None
                for system, positions, box, usable in systems(
                    topology, trajectory, library, stride=stride, residue=residue
                ):
                    if max_residues and len(system.next_residue) > max_residues:
                        left.append(f"{name}: {len(system.next_residue)} residues")
                        break
                    beads = None
                    if statistics:
                        simulator = simulator or Simulator(system, statistics)
                        positions, beads = simulator(positions, box, rng)
                    builder.add(name, system, positions, box, usable, beads)
            except MdbackmapError as error:
                left.append(f"{name}: {error}")
    builder.save(output, note=", ".join(Path(i).name for i in inputs)[:2000])
    click.echo(f"{output}: {len(builder.names)} systems; left out {len(left)}")
    for line in left[:20]:
        click.echo(f"  {line}")


def _names(exclude: tuple[str, ...]) -> set[str]:
    """Names given one by one, and those in files, one a line."""
    names = {name for name in exclude if not Path(name).is_file()}
    for path in set(exclude) - names:
        lines = Path(path).read_text().splitlines()
        names |= {line.strip() for line in lines if line.strip() and line[0] != "#"}
    return names


def _statistics(paths: tuple[str, ...], library: Library) -> BeadStatistics:
    """Measure how beads lie in coarse-grained trajectories."""
    from mdbackmap.io.source import CGSource
    from mdbackmap.mapping.system import from_beads
    from mdbackmap.training.simulated import BeadStatistics

    simulations = []
    for path in paths:
        source = CGSource.open(path)
        frames = source.sample(40)
        system = from_beads(source.particles, library, frames[0], skip_unknown=True)
        beads = [frame.positions[system.bead_source] for frame in frames]
        simulations.append((system, beads, [frame.box for frame in frames]))
    return BeadStatistics.measured(simulations)


def _files(inputs: tuple[str, ...], folder: Path) -> Iterator[tuple[str, Path, Path | None]]:
    stems: dict[str, list[Path]] = {}
    for item in map(Path, inputs):
        if ".tar" in item.name:
            for name in _unpack(item, folder):
                yield Path(name).stem, folder / name, None
        else:
            stems.setdefault(item.stem, []).append(item)
    for stem, paths in stems.items():
        trajectory = next((p for p in paths if p.suffix in (".xtc", ".trr", ".dcd")), None)
        structure = next((p for p in paths if p != trajectory), None)
        if structure is not None:
            yield stem, structure, trajectory


def _unpack(archive: Path, folder: Path) -> list[str]:
    from mdbackmap.errors import InputFileError

    try:
        with tarfile.open(archive) as handle:
            handle.extractall(folder, filter="data")
            return [m.name for m in handle.getmembers() if m.isfile()]
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise InputFileError(f"{archive}: cannot be read as a .tar archive: {reason}") from error
