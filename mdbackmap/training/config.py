"""Every training option, its default and its meaning: the one place they are defined."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mdbackmap.errors import ConfigError, MappingFileError
from mdbackmap.mapping import strict_yaml


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSource(_Strict):
    """One prepared file."""

    path: Path = Field(description="A file written by 'mdbackmap prepare'.")
    share: float = Field(1.0, gt=0, description="Share of the training steps it gets.")
    surround: bool = Field(
        False,
        description="Put each system beside a random piece of the other data, so that a molecule "
        "known only from vacuum also learns to have neighbours.",
    )


class Network(_Strict):
    """Architecture of the network."""

    scalars: int = Field(64, ge=4, description="Scalar features per bead.")
    vectors: int = Field(32, ge=4, description="Vector features per bead.")
    radial: int = Field(8, ge=2, description="Radial functions.")
    layers: int = Field(3, ge=1, description="Message layers.")
    cutoff: float = Field(8.0, gt=1, description="Radius within which beads see one another, Å.")
    relations: Literal[5, 7, 9, 11] = Field(
        5, description="Kinds of neighbours told apart: same residue, next, previous, bridged and "
        "other; 7, 9, 11 also tell the second, third and fourth residue along the chain.",
    )  # fmt: skip
    alone: bool = Field(
        False, description="Beads see those of their own residue only: for lipids, which hang on "
        "their own beads. Many times faster, and it learns less by heart.",
    )  # fmt: skip


class Noise(_Strict):
    """Noise on the beads during training; real CG frames are not mapped structures."""

    clean: float = Field(0.35, ge=0, le=1, description="Share of steps without noise.")
    largest: float = Field(
        0.5, ge=0, description="Else the standard deviation per axis is drawn up to this, Å."
    )
    stretch: float = Field(
        0.0, ge=0, description="Relative standard deviation of bead-bead bond lengths, drawn per "
        "kind of bond and step, as a force field's equilibrium lengths differ from mapped ones.",
    )  # fmt: skip

    @property
    def used(self) -> bool:
        """Whether any step sees noise."""
        return self.clean < 1 and self.largest > 0


class Losses(_Strict):
    """Weights of the loss terms, and the error each tolerates."""

    positions: float = Field(1.0, ge=0, description="Mean squared distance, per Å^2.")
    bonds: float = Field(2.0, ge=0, description="Squared bond error beyond tolerance, per Å^2.")
    bond_tolerance: float = Field(0.02, ge=0, description="Å.")
    angles: float = Field(0.5, ge=0, description="Squared cosine error beyond tolerance.")
    angle_tolerance: float = Field(0.03, ge=0, description="In the cosine (0.03: 2 degrees).")
    volumes: float = Field(0.3, ge=0, description="Squared error of signed volumes, per 2.5 Å^3.")
    torsions: float = Field(0.1, ge=0, description="1 - cos of the error of cis/trans torsions.")


class TrainConfig(_Strict):
    """A training run."""

    name: str = Field("model", description="Name of the weights.")
    data: list[DataSource] = Field(min_length=1, description="Training sets.")
    validation: list[Path] = Field(
        default_factory=list, description="Prepared files to select the best checkpoint on."
    )
    test: list[Path] = Field(
        default_factory=list, description="Prepared files evaluated once, at the end."
    )
    output: Path = Field(Path("training"), description="Folder of checkpoints, log and plots.")
    network: Network = Network()
    noise: Noise = Noise()
    losses: Losses = Losses()
    minutes: float = Field(60.0, gt=0, description="Length of the run, wall-clock minutes.")
    steps: int = Field(
        0, ge=0, description="Stop after so many steps even if minutes are left; 0: no limit."
    )
    batch_beads: int = Field(600, ge=50, description="Beads per step; larger systems are cut.")
    learning_rate: float = Field(4e-3, gt=0, description="Peak of a warm-up and cosine schedule.")
    weight_decay: float = Field(
        1e-4, ge=0, description="Shrinks the matrices of linear layers at every step, times the "
        "learning rate; 0.1 holds back a network that learns its structures by heart.",
    )  # fmt: skip
    average: float = Field(0.999, ge=0, lt=1, description="Decay of the running mean of weights.")
    forget_residue: float = Field(
        0.1, ge=0, le=1, description="Share of residues shown without their name, so that beads "
        "of new residues are understood from what they are made of.",
    )  # fmt: skip
    validate_every: float = Field(5.0, gt=0, description="Minutes between evaluations.")
    start_from: Path | None = Field(None, description="Weights to start from.")
    keep: float = Field(
        0.0, ge=0, lt=1, description="Share of these weights that is mixed into the result: a "
        "short second training forgets less (Wortsman et al., arXiv 2109.01903).",
    )  # fmt: skip
    compile: bool = Field(False, description="Compile the network (needs a C++ compiler).")
    threads: int = Field(0, ge=0, description="CPU threads; 0: as many as torch finds.")
    workers: int = Field(
        0, ge=0, description="Processes that prepare steps ahead; a GPU waits for one alone. A run "
        "with them cannot be repeated to the last digit.",
    )  # fmt: skip
    device: str = Field("cpu", description="cpu or cuda.")
    seed: int = Field(1, description="Seed of weights, order and noise.")
    for_mapped_beads: str = Field(
        "", description="Name of the shipped model that is to be used in place of this one where "
        "beads lie at the centres of their atoms.",
    )  # fmt: skip
    beside: list[str] = Field(
        default_factory=list, description="Names of shipped models that are used together with "
        "this one; what they know they place.",
    )  # fmt: skip
    licence: str = Field("MIT", description="Licence of the weights.")
    sources: str = Field("", description="Where the training data came from, for the model card.")


def load(path: str | Path) -> TrainConfig:
    """Read a training configuration; relative paths start at the file's folder.

    Raises
    ------
    ConfigError
        Every unknown key and bad value at once.
    """
    path = Path(path)
    try:
        table = strict_yaml.load(path)
        config = TrainConfig.model_validate(table)
    except MappingFileError as error:
        raise ConfigError(str(error)) from error
    except ValidationError as error:
        rows = [_explain(issue, table, path) for issue in error.errors()]
        raise ConfigError("\n".join(rows) + "\n  Options: docs/training.md") from error
    base = path.parent
    return config.model_copy(
        update={
            "data": [d.model_copy(update={"path": base / d.path}) for d in config.data],
            "validation": [base / p for p in config.validation],
            "test": [base / p for p in config.test],
            "output": base / config.output,
            "start_from": base / config.start_from if config.start_from else None,
        }
    )


def _explain(issue: Any, table: strict_yaml.Located, path: Path) -> str:
    """One problem as a line: where, what, and what was found."""
    node: Any = table
    line = 1
    for part in issue["loc"]:
        is_table = isinstance(node, strict_yaml.Located) and part in node
        if is_table or (isinstance(node, strict_yaml.LocatedList) and isinstance(part, int)):
            line, node = node.lines[part], node[part]
    key = ".".join(map(str, issue["loc"]))
    if issue["type"] == "extra_forbidden":
        return f"{path}, line {line}: '{key}' is no option"
    found = "" if issue["type"] == "missing" else f", found {str(node)[:60]!r}"
    return f"{path}, line {line}: '{key}': {issue['msg']}{found}"
