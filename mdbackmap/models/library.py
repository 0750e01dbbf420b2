"""The models that ship with the package."""

from __future__ import annotations

from pathlib import Path

from mdbackmap.errors import ModelError

SUFFIX = ".safetensors"
DEFAULT_MODEL = "martini3"
"""The model that is tried first."""


def weights_root() -> Path:
    """Return the folder of the shipped weights."""
    return Path(__file__).parents[1] / "weights"


def shipped() -> list[str]:
    """Return the names of the shipped models."""
    return sorted(path.stem for path in weights_root().glob(f"*{SUFFIX}"))


def resolve(model: str | Path) -> Path:
    """Return the file of a model given by name or path.

    Raises
    ------
    ModelError
        Neither a shipped model nor a file.
    """
    path = Path(model)
    if path.is_file():
        return path
    named = weights_root() / f"{model}{SUFFIX}"
    if len(path.parts) == 1 and named.is_file():
        return named
    raise ModelError(
        f"model '{model}': neither a shipped model ({', '.join(shipped()) or 'none'}) nor a file"
    )
