"""What is wrong with a structure, counted; reports."""

from mdbackmap.validation.checks import Checker, bead_shift, check
from mdbackmap.validation.report import Summary
from mdbackmap.validation.rmsd import rmsd

__all__ = ["Checker", "Summary", "bead_shift", "check", "rmsd"]
