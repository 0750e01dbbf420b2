"""``mdbackmap mapping``: list, show, check and draft mapping files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mdbackmap.cli.common import counted, wrapped

if TYPE_CHECKING:
    from mdbackmap.mapping.schema import State
    from mdbackmap.mapping.template import Template


@click.group()
def mapping() -> None:
    """List, show, check and draft mappings."""


@mapping.command("list")
def list_() -> None:
    """List the shipped mappings and their residues."""
    from mdbackmap.mapping.library import SOLVENT, Library, shipped

    for name in [*shipped(), SOLVENT]:
        library = Library.load([name])
        kinds: dict[str, list[str]] = {}
        for template in library.templates:
            if template.has_atoms != (name == SOLVENT):
                kinds.setdefault(template.kind, []).append(template.residue)
        click.echo(name + (" (always loaded)" if name == SOLVENT else ""))
        for kind, residues in sorted(kinds.items()):
            click.echo(wrapped(f"{kind}: {' '.join(sorted(set(residues)))}"))


@mapping.command()
@click.argument("residue")
@click.option("--mapping", "names", multiple=True, default=("martini3",), show_default=True,
              metavar="NAME|PATH")  # fmt: skip
def show(residue: str, names: tuple[str, ...]) -> None:
    """Show how RESIDUE (name or alias) is mapped: beads, atoms, anchors, levels, hydrogens, states.

    Hydrogens are those of the first state, inside a chain; states say what differs.
    """
    from mdbackmap.errors import MappingError
    from mdbackmap.mapping.hydrogens import Place, hydrogen_names
    from mdbackmap.mapping.library import Library

    library = Library.load(names)
    found = library.candidates(residue)
    if not found:
        raise MappingError(f"residue '{residue}': not in {library.source}; "
                           "'mdbackmap mapping list' names all")  # fmt: skip
    for template in found:
        spec = template.spec
        click.echo(f"{template.residue}  {spec.name}  ({template.kind}; beads at the centre of "
                   f"{spec.centre}, hydrogens {spec.hydrogens})")  # fmt: skip
        hydrogens = hydrogen_names(template, Place(state=next(iter(spec.states or ()), None)))
        if spec.aliases:
            click.echo(f"  also called {' '.join(spec.aliases)}")
        if spec.source:
            click.echo(f"  source: {spec.source}")
        for b, bead in enumerate(template.bead_names):
            click.echo(f"  {bead}")
            for (k, atom), share in zip(template.members, template.shares, strict=True):
                if k != b:
                    continue
                own = template.atom_bead[atom] == b
                anchor = template.anchors[atom]
                text = f"share {share:.3g}" if share < 0.999 else ""
                if own:
                    hung = template.names[anchor] if anchor >= 0 else f"bead {bead}"
                    text += f"  level {template.levels[atom]}, hangs from {hung}"
                    text += f"; bears {' '.join(hydrogens[atom])}" if hydrogens[atom] else ""
                click.echo(f"    {template.names[atom]:5s}{template.elements[atom]:3s}{text}")
        stands_for = _without_model(template)
        if stands_for:
            click.echo(f"  stands for {stands_for}")
        for key, where in (("states", ""), ("states_first", " at the start of a chain"),
                           ("states_last", " at the end of a chain")):  # fmt: skip
            states = getattr(spec, key) or {}
            if states:
                told = ", ".join(_limits(name, state) for name, state in states.items())
                click.echo(f"  states{where}: {told}")


def _without_model(template: Template) -> str:
    """What water or an ion stands for; empty for anything else."""
    if template.spec.waters:
        return counted(template.spec.waters, "water")
    return f"{template.ion[0]}, charge {template.ion[1].charge:+d}" if template.ion else ""


def _limits(name: str, state: State) -> str:
    """A protonation state with what it needs."""
    limits = [f"{word} pH {limit:g}" for word, limit in (("below", state.below),
              ("above", state.above)) if limit is not None]  # fmt: skip
    limits += ["bridged"] if state.bridged == "yes" else []
    limits += [f"{atom}: {' '.join(own) or 'no hydrogen'}" for atom, own in state.hydrogens.items()]
    return f"{name} ({', '.join(limits)})" if limits else name


@mapping.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True))
def check(paths: tuple[str, ...]) -> None:
    """Check mapping files (or folders of them) and say what they hold."""
    from mdbackmap.errors import MappingError, MappingFileError
    from mdbackmap.mapping.library import load_templates

    problems = []
    for path in paths:
        try:
            templates = load_templates(path)
        except MappingError as error:
            problems.append(str(error))
            continue
        for template in templates:
            terms = template.constraints
            if not template.has_atoms:
                stands_for = _without_model(template) or "nothing, and left out"
                click.echo(f"{template.source}: {template.residue}, stands for {stands_for}: good")
                continue
            click.echo(
                f"{template.source}: {template.residue}, {template.n_beads} beads, "
                f"{template.n_atoms} heavy atoms, {len(terms.bonds)} bonds, "
                f"{int((terms.volume > 0.5).sum())} stereocentres, "
                f"{int(template.levels.max(initial=0))} levels: good"
            )
    if problems:
        raise MappingFileError("\n".join(problems))


@mapping.command()
@click.argument("ligand", type=click.Path())
@click.option("--beads", required=True, multiple=True, type=click.Path(), metavar="FILE",
              help="Which atoms belong to which bead: GROMACS .ndx, backward .map, or a table of "
              "bead and atom (.tsv, .csv). A CG .itp beside it names the beads.")  # fmt: skip
@click.option("-o", "--output", required=True, type=click.Path(), help="Mapping file to write.")
@click.option("--name", default="", help="Residue name. Default: that of the .itp or .map, else "
              "the name of LIGAND.")  # fmt: skip
@click.option("--smiles", default="", help="Bond orders and charges, for files that lack them.")
@click.option("--charge", default=0, show_default=True, help="Net charge, to find the bond orders "
              "of a .pdb without --smiles.")  # fmt: skip
@click.option("--centre", type=click.Choice(["geometry", "mass"]), default="geometry",
              show_default=True, help="A bead sits at this centre of its atoms.")  # fmt: skip
@click.option("--hydrogens", type=click.Choice(["counted", "ignored"]), default=None,
              help="Whether hydrogens place beads. Default: counted if listed.")  # fmt: skip
@click.option("--allow-open-stereo", is_flag=True, help="Take stereo that LIGAND does not say as "
              "it comes.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace OUTPUT.")
def new(ligand, beads, output, name, smiles, charge, centre, hydrogens, allow_open_stereo,
        force) -> None:  # fmt: skip
    """Draft the mapping of LIGAND (.sdf, .mol, .mol2, .pdb or .smi), to be read and corrected.

    Chemistry comes from RDKit, the beads from FILE.
    """
    from mdbackmap.io.draft import draft

    template, notes = draft(
        ligand, beads, output, name=name, smiles=smiles, charge=charge, centre=centre,
        hydrogens=hydrogens, allow_open_stereo=allow_open_stereo, force=force,
    )  # fmt: skip
    terms = template.constraints
    click.echo(
        f"{output}: {template.residue}, {counted(template.n_beads, 'bead')}, "
        f"{counted(template.n_atoms, 'heavy atom')}, {counted(len(terms.bonds), 'bond')}, "
        f"{counted(int((terms.volume > 0.5).sum()), 'stereocentre')}, "
        f"{counted(len(template.swaps), 'swap')}"
    )
    for what, how in notes.items():
        click.echo(wrapped(f"{what}: {how}"))
