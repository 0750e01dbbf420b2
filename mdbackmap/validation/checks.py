"""What is wrong with the heavy atoms of one frame, counted against what its mappings say.

Only measuring and counting: nothing here mends a structure, reads a file or adds frames up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mdbackmap.errors import StructureError
from mdbackmap.geometry import ramachandran
from mdbackmap.geometry.boxes import heights, minimum_image
from mdbackmap.geometry.rings import pierced_rings
from mdbackmap.mapping.system import System
from mdbackmap.structure import FAR, AtomTable
from mdbackmap.validation import measures
from mdbackmap.validation.contacts import BondGraph, close_pairs, find_rings
from mdbackmap.validation.equivalence import name_swaps

BOND_TOLERANCE = 0.10
"""Share of the ideal length a bond may be off."""
ANGLE_TOLERANCE = 15.0
"""Degrees an angle may be off."""
STEREO_VOLUME = 0.5
"""Å^3; rows of the table of volumes with a larger ideal one are stereocentres."""
FLAT = 0.25
"""Å an atom may lie outside its planar group; sound structures rarely pass 0.2."""
FLAT_RING = 0.05
"""Å an atom of an aromatic ring may lie outside the ring's plane."""
CIS, TWIST = 90.0, 30.0
"""Degrees: below CIS a peptide is cis; further than TWIST from both 0 and 180 it is twisted."""
OVERLAP, CLASH = 1.2, 2.2
"""Å between atoms more than three bonds apart; the closest hydrogen bonds are 2.4."""
PROCHIRAL = {"VAL": "CB", "LEU": "CG"}
"""Centres whose two methyls have names but no chemistry of their own."""
SMALLEST_BOX = 6.0
"""Å between opposite faces; below it two images of a bonded pair cannot be told apart."""
BOND_ERROR_EDGES = np.linspace(-25.0, 25.0, 51)
"""Bins of the bond error histogram, % of the ideal length; the outer bins take the rest."""

TERMS = {
    "bonds": "bonds more than 10 % off",
    "angles": "angles more than 15° off",
    "stereocentres": "stereocentres inverted",
    "d_residues": "amino acids turned D",
    "prochiral": "methyls of VAL, LEU exchanged",
    "double_bonds": "double bonds, esters on the wrong side",
    "cis_peptides": "cis peptides, not before proline",
    "cis_proline": "cis peptides before proline",
    "twisted_peptides": "peptides twisted by more than 30°",
    "planar": "planar groups bent by more than 0.25 Å",
    "flat_rings": "flat rings bent by more than 0.05 Å",
    "overlaps": "non-bonded pairs below 1.2 Å",
    "clashes": "non-bonded pairs below 2.2 Å",
    "pierced_rings": "rings with a bond through them",
    "ramachandran": "Ramachandran outliers (beyond 99.8 %)",
    "missing": "atoms missing in the input",
    "not_a_number": "atoms whose position is no number",
}
"""Every term with its label. ``d_residues`` are also ``stereocentres``, ``overlaps`` also
``clashes``; a peptide can be both cis and twisted."""
PER_ATOM = frozenset({"overlaps", "clashes"})
"""Terms counted in pairs, given per 1000 atoms rather than in %."""


class Count(NamedTuple):
    """How many are wrong, of how many that could be measured."""

    wrong: int
    of: int

    @property
    def percent(self) -> float:
        """100 x wrong / of; NaN where nothing could be measured."""
        return 100.0 * self.wrong / self.of if self.of else float("nan")


@dataclass(frozen=True, eq=False)
class FrameReport:
    """What is wrong with one frame.

    Attributes
    ----------
    atoms : AtomTable
        Of the system, for names.
    counts : dict of str to Count
        By term, see `TERMS`. Terms of `PER_ATOM` count pairs against atoms.
    residues : dict of str to dict of str to Count
        The same by residue name, without terms that have nothing to measure there. What spans
        two residues counts for the residue of its first atom (bonds), central atom (angles,
        stereocentres, double bonds), nitrogen (peptides); a close pair counts once for each of
        the two residue names.
    offenders : dict of str to ndarray, shape=(n, k), int64
        Atoms of everything wrong, by term; for rings the bond, then one atom of the ring.
    planarity_max : float, Å
        Largest distance from a plane; NaN without planar groups.
    bond_errors : ndarray, shape=(50,), int64
        Histogram over `BOND_ERROR_EDGES`.
    phi_psi : ndarray, shape=(n, 2), degrees; outlier : ndarray, shape=(n,), bool
    bead_distances : ndarray, shape=(n_beads,), Å, or None
        From beads of the answer to beads given, where they were given.
    """

    atoms: AtomTable
    counts: dict[str, Count]
    residues: dict[str, dict[str, Count]]
    offenders: dict[str, np.ndarray] = field(repr=False)
    planarity_max: float
    bond_errors: np.ndarray = field(repr=False)
    phi_psi: np.ndarray = field(repr=False)
    outlier: np.ndarray = field(repr=False)
    bead_distances: np.ndarray | None = field(default=None, repr=False)

    def where(self, term: str, limit: int = 5) -> list[str]:
        """Name the first offenders of a term, such as ``A LEU 15 CB-CG``."""
        return [_describe(self.atoms, row) for row in self.offenders[term][:limit]]


def _describe(atoms: AtomTable, row: np.ndarray) -> str:
    parts: list[str] = []
    last = -1
    for atom in row:
        residue = int(atoms.residue[atom])
        if residue == last:
            parts[-1] += f"-{atoms.names[atom]}"
        else:
            segment = f"{atoms.segids[atom]} " if atoms.segids[atom] not in ("", "SYSTEM") else ""
            parts.append(
                f"{segment}{atoms.resnames[atom]} {atoms.resids[atom]} {atoms.names[atom]}"
            )
        last = residue
    return " / ".join(parts)


def check(
    system: System,
    positions: np.ndarray,
    box: np.ndarray | None = None,
    beads: np.ndarray | None = None,
) -> FrameReport:
    """Check one frame; for several, keep a `Checker`, which this is a thin wrapper of."""
    return Checker(system)(positions, box, beads)


class Checker:
    """Checks frames of one system; what does not change between frames is laid out once.

    Parameters
    ----------
    system : System

    Examples
    --------
    >>> checker = Checker(system)                                       # doctest: +SKIP
    >>> report = checker(positions, box)                                # doctest: +SKIP
    >>> report.counts["stereocentres"], report.where("stereocentres")   # doctest: +SKIP
    (Count(wrong=1, of=130), ['A LEU 15 CA-N-C-CB'])
    """

    def __init__(self, system: System) -> None:
        self.system = system
        atoms, ideal = system.atoms, system.constraints
        self._names, code = np.unique(system.residue_names, return_inverse=True)
        self._code = code[atoms.residue]
        self._graph = BondGraph(ideal.bonds, system.n_atoms)
        self._rings, are_flat = find_rings(system)
        self._from_atoms = bool((system.atom_source >= 0).any())

        self._stereo = ideal.volumes[ideal.volume > STEREO_VOLUME]
        centre = self._stereo[:, 0]
        self._prochiral = np.zeros(len(centre), dtype=bool)
        for resname, name in PROCHIRAL.items():
            self._prochiral |= (atoms.resnames[centre] == resname) & (atoms.names[centre] == name)
        protein = system.residue_kinds[atoms.residue[centre]] == "protein"
        self._alpha = protein & (atoms.names[centre] == "CA")

        flat = ideal.volumes[ideal.volume == 0]
        around = [self._graph.bonded(flat[:, 0], flat[:, k]) for k in (1, 2, 3)]
        is_centre = np.all(around, axis=0)
        self._flat_centres = flat[is_centre]
        # A twist about the peptide bond has terms of its own.
        chains = flat[~is_centre]
        self._flat_chains = chains[~self._about(chains, system.omegas)]
        self._flat_rings = self._rings[are_flat]
        self._torsions, self._torsion = self._double_bonds()
        self._backbone = system.backbone

    def _about(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Whether the central bond of each row is that of any of the others."""
        return np.isin(self._central_bond(rows), self._central_bond(others))

    def _central_bond(self, rows: np.ndarray) -> np.ndarray:
        pair = np.sort(rows[:, 1:3], axis=1)
        return pair[:, 0] * self.system.n_atoms + pair[:, 1]

    def _double_bonds(self) -> tuple[np.ndarray, np.ndarray]:
        """One torsion per bond that has a right side: no peptides, no equivalent ends (ARG)."""
        rows, value = self.system.constraints.torsions, self.system.constraints.torsion
        keep = ~self._about(rows, self.system.omegas)
        for order in name_swaps(self.system):
            for end, centre in ((0, 1), (3, 2)):
                twin = order[rows[:, end]]
                keep &= (twin == rows[:, end]) | ~self._graph.bonded(twin, rows[:, centre])
        rows, value = rows[keep], value[keep]
        _, first = np.unique(self._central_bond(rows), return_index=True)
        return rows[first], value[first]

    def __call__(
        self,
        positions: np.ndarray,
        box: np.ndarray | None = None,
        beads: np.ndarray | None = None,
    ) -> FrameReport:
        """Check one frame.

        Parameters
        ----------
        positions : ndarray, shape=(n_atoms, 3), Å
            NaN for atoms missing in the atomistic file the system came from: they are counted
            as ``missing``, and whatever touches them is left out.
        box : ndarray, shape=(3, 3), Å, or None
            With a box, molecules may be broken or in any image.
        beads : ndarray, shape=(n_beads, 3), Å, optional
            The beads the answer should have.

        Raises
        ------
        StructureError
            Wrong shape of an array, or a box too small to be one.
        """
        system = self.system
        positions = _rows("positions", positions, system.n_atoms, "heavy atom")
        _check_box(box)
        tally = _Tally(self._code, len(self._names))
        known = (np.abs(positions) < FAR).all(axis=1)
        positions = np.where(known[:, None], positions, np.nan)
        atoms = np.arange(system.n_atoms)[:, None]
        # Without any atom from a file, the answer was to hold them all.
        missing = ~known & (system.atom_source < 0) & self._from_atoms
        tally.add("missing", atoms, np.ones(len(atoms)), missing)
        tally.add("not_a_number", atoms, np.where(missing, np.nan, 1.0), ~known)

        bond_errors = self._covalent(tally, positions, box)
        self._stereochemistry(tally, positions, box)
        highest = self._planes(tally, positions, box)
        self._contacts(tally, positions, box, known)
        rows = self._backbone.phi_psi
        phi = measures.torsions(positions, rows[:, :4], box)
        psi = measures.torsions(positions, rows[:, 1:], box)
        share = ramachandran.percentile(phi, psi, self._backbone.kind)
        outlier = share > ramachandran.ALLOWED
        tally.add("ramachandran", rows[:, 2:3], share, outlier)
        seen = np.isfinite(phi + psi)
        return FrameReport(
            atoms=system.atoms,
            counts={term: tally.overall(term) for term in TERMS},
            residues={
                str(name): {t: c for t in TERMS if (c := tally.of_residue(t, k)).of}
                for k, name in enumerate(self._names)
            },
            offenders=tally.offenders,
            planarity_max=highest,
            bond_errors=bond_errors,
            phi_psi=np.stack([phi, psi], axis=1)[seen],
            outlier=outlier[seen],
            bead_distances=(
                None if beads is None else bead_distances(system, positions, beads, box)
            ),
        )

    def _covalent(self, tally: _Tally, positions: np.ndarray, box: np.ndarray | None) -> np.ndarray:
        ideal = self.system.constraints
        error = measures.lengths(positions, ideal.bonds, box) / ideal.bond_length - 1
        tally.add("bonds", ideal.bonds, error, np.abs(error) > BOND_TOLERANCE)
        off = measures.angles(positions, ideal.angles, box) - ideal.angle
        tally.add("angles", ideal.angles, off, np.abs(off) > ANGLE_TOLERANCE, owner=1)
        percent = np.clip(100 * error[np.isfinite(error)], -24.999, 24.999)
        return np.histogram(percent, BOND_ERROR_EDGES)[0]

    def _stereochemistry(
        self, tally: _Tally, positions: np.ndarray, box: np.ndarray | None
    ) -> None:
        rows, prochiral, alpha = self._stereo, self._prochiral, self._alpha
        volume = measures.volumes(positions, rows, box)
        for term, chosen in (
            ("stereocentres", ~prochiral), ("d_residues", alpha), ("prochiral", prochiral)
        ):  # fmt: skip
            tally.add(term, rows[chosen], volume[chosen], volume[chosen] <= 0)

        torsion = measures.torsions(positions, self._torsions, box)
        wrong = np.cos(np.radians(torsion - self._torsion)) < 0
        tally.add("double_bonds", self._torsions, torsion, wrong, owner=1)

        omegas, before_proline = self.system.omegas, self.system.omega_may_be_cis
        omega = np.abs(measures.torsions(positions, omegas, box))
        for term, chosen in (("cis_peptides", ~before_proline), ("cis_proline", before_proline)):
            tally.add(term, omegas[chosen], omega[chosen], omega[chosen] < CIS, owner=2)
        twisted = (omega > TWIST) & (omega < 180 - TWIST)
        tally.add("twisted_peptides", omegas, omega, twisted, owner=2)

    def _planes(self, tally: _Tally, positions: np.ndarray, box: np.ndarray | None) -> float:
        height = np.concatenate(
            [
                measures.heights_of_centres(positions, self._flat_centres, box),
                measures.heights_of_ends(positions, self._flat_chains, box),
            ]
        )
        rows = np.concatenate([self._flat_centres, self._flat_chains])
        tally.add("planar", rows, height, height > FLAT)
        bent = measures.heights_of_rings(positions, self._flat_rings, box)
        tally.add("flat_rings", self._flat_rings, bent, bent > FLAT_RING)
        return float(np.nanmax(height)) if np.isfinite(height).any() else float("nan")

    def _contacts(
        self, tally: _Tally, positions: np.ndarray, box: np.ndarray | None, known: np.ndarray
    ) -> None:
        at = np.flatnonzero(known)
        first, second, distance = close_pairs(positions[at], box, CLASH)
        first, second = at[first], at[second]
        apart = ~self._graph.within_three_bonds(first, second) & (first != second)
        pairs, distance = np.stack([first, second], axis=1)[apart], distance[apart]
        tally.add_pairs("overlaps", pairs[distance < OVERLAP], known)
        tally.add_pairs("clashes", pairs, known)

        bonds = self.system.constraints.bonds
        measured, ring, bond = pierced_rings(positions, self._rings, bonds, box)
        pierced = np.isin(np.arange(len(self._rings)), ring)
        tally.add("pierced_rings", self._rings, np.where(measured, 1.0, np.nan), pierced)
        tally.offenders["pierced_rings"] = np.concatenate(
            [bonds[bond], self._rings[ring, :1]], axis=1
        )


class _Tally:
    """Counts by term and residue name."""

    def __init__(self, code: np.ndarray, n_names: int) -> None:
        self._code, self._n = code, n_names
        self._wrong: dict[str, np.ndarray] = {}
        self._of: dict[str, np.ndarray] = {}
        self._pairs: dict[str, int] = {}
        self.offenders: dict[str, np.ndarray] = {}

    def add(
        self, term: str, rows: np.ndarray, measured: np.ndarray, wrong: np.ndarray, owner: int = 0
    ) -> None:
        """Count rows by the residue of their ``owner`` column; NaN was not measured."""
        code, seen = self._code[rows[:, owner]], np.isfinite(measured)
        self._of[term] = np.bincount(code[seen], minlength=self._n)
        self._wrong[term] = np.bincount(code[seen & wrong], minlength=self._n)
        self.offenders[term] = rows[seen & wrong]

    def add_pairs(self, term: str, pairs: np.ndarray, known: np.ndarray) -> None:
        """Count pairs once for each of the residue names they join."""
        first, second = self._code[pairs].T
        self._of[term] = np.bincount(self._code[known], minlength=self._n)
        self._wrong[term] = np.bincount(first, minlength=self._n)
        self._wrong[term] += np.bincount(second[first != second], minlength=self._n)
        self._pairs[term] = len(pairs)
        self.offenders[term] = pairs

    def overall(self, term: str) -> Count:
        wrong = self._pairs.get(term, self._wrong[term].sum())
        return Count(int(wrong), int(self._of[term].sum()))

    def of_residue(self, term: str, code: int) -> Count:
        return Count(int(self._wrong[term][code]), int(self._of[term][code]))


def bead_distances(
    system: System, positions: np.ndarray, beads_given: np.ndarray, box: np.ndarray | None = None
) -> np.ndarray:
    """Return the distance of each bead of the answer from the bead given.

    Parameters
    ----------
    system : System
    positions : ndarray, shape=(n_atoms, 3), Å
    beads_given : ndarray, shape=(n_beads, 3), Å
        In the order of ``system.beads``.
    box : ndarray, shape=(3, 3), Å, optional
        Each atom then counts at its image nearest the bead given.

    Returns
    -------
    ndarray, shape=(n_beads,), Å
        NaN where an atom of the bead is.
    """
    positions = _rows("positions", positions, system.n_atoms, "heavy atom")
    beads_given = _rows("beads", beads_given, system.n_beads, "bead")
    bead, atom = system.members.T
    # The weights of a bead sum to one: the weighted mean of (atom - bead) is the bead's shift.
    gap = system.weights[:, None] * minimum_image(positions[atom] - beads_given[bead], box)
    shift = np.stack([np.bincount(bead, gap[:, k], minlength=system.n_beads) for k in range(3)])
    return np.linalg.norm(shift, axis=0)


def bead_shift(
    system: System, positions: np.ndarray, beads_given: np.ndarray, box: np.ndarray | None = None
) -> dict[str, float]:
    """Summarise `bead_distances`.

    Returns
    -------
    dict
        ``n_beads`` compared; ``median``, ``p95`` and ``max`` of their distances, Å, NaN where
        none was compared.
    """
    distance = bead_distances(system, positions, beads_given, box)
    distance = distance[np.isfinite(distance)]
    if not len(distance):
        return {"n_beads": 0, "median": np.nan, "p95": np.nan, "max": np.nan}
    median, p95 = np.percentile(distance, [50, 95])
    return {
        "n_beads": len(distance), "median": float(median), "p95": float(p95),
        "max": float(distance.max()),
    }  # fmt: skip


def _rows(what: str, array: np.ndarray, n: int, of: str) -> np.ndarray:
    array = np.asarray(array, dtype=np.float64)
    if array.shape != (n, 3):
        raise StructureError(
            f"validation: {what} have shape {array.shape}, expected ({n}, 3): one row per {of} "
            "of the system"
        )
    return array


def _check_box(box: np.ndarray | None) -> None:
    if box is None:
        return
    box = np.asarray(box, dtype=np.float64)
    fits = box.shape == (3, 3) and np.isfinite(box).all() and abs(np.linalg.det(box)) > 1e-9
    if not fits or heights(box).min() < SMALLEST_BOX:
        raise StructureError(
            f"validation: box {np.array2string(box, precision=3).replace(chr(10), '')} is no "
            f"periodic box: three vectors with at least {SMALLEST_BOX} Å between opposite faces "
            "are expected.\n  Hint: pass None for a structure without a box."
        )
