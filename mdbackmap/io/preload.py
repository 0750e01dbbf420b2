"""What the process imports that workers are copied from; see `mdbackmap.warm_start`."""

from mdbackmap.warm_start import quick_imports

with quick_imports():
    from mdbackmap.io import conversion, parallel

__all__ = ["conversion", "parallel"]
