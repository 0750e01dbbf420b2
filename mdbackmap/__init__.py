"""mdbackmap: coarse-grained trajectories back in atoms.

The public names are here; torch and MDAnalysis are imported when one of them is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Backmap": "mdbackmap.io.transformation",
    "BackmapReader": "mdbackmap.io.reader",
    "Backmapper": "mdbackmap.pipeline",
    "Library": "mdbackmap.mapping.library",
    "MdbackmapError": "mdbackmap.errors",
    "Options": "mdbackmap.pipeline",
    "backmap": "mdbackmap.io.conversion",
    "carrier": "mdbackmap.io.transformation",
    "universe": "mdbackmap.io.transformation",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mdbackmap' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
