"""Ideal local geometry as index arrays: what a molecule must keep whatever the network says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Constraints:
    """Ideal local geometry over atom indices.

    Attributes
    ----------
    bonds : ndarray, shape=(nb, 2), int64; bond_length : shape=(nb,), Å; bond_order : shape=(nb,)
    angles : ndarray, shape=(na, 3), int64; angle : shape=(na,), degrees
    volumes : ndarray, shape=(nv, 4), int64; volume : shape=(nv,), Å^3
        Signed volume (a-x)·((b-x)×(c-x)) of rows x, a, b, c; 0 where the four are planar.
    torsions : ndarray, shape=(nt, 4), int64; torsion : shape=(nt,), degrees, 0 or 180
    """

    bonds: np.ndarray
    bond_order: np.ndarray
    bond_length: np.ndarray
    angles: np.ndarray
    angle: np.ndarray
    volumes: np.ndarray
    volume: np.ndarray
    torsions: np.ndarray
    torsion: np.ndarray

    def repeated(self, starts: np.ndarray) -> Constraints:
        """Return these constraints once per start, indices shifted by it."""
        return self._shifted(lambda index: index[None] + starts[:, None, None], len(starts))

    def spread_over(self, n_first: int, first: np.ndarray, second: np.ndarray) -> Constraints:
        """Repeat constraints between two residues: indices from ``n_first`` on are the second's."""

        def place(index: np.ndarray) -> np.ndarray:
            is_first = (index < n_first)[None]
            return np.where(
                is_first,
                index[None] + first[:, None, None],
                index[None] - n_first + second[:, None, None],
            )

        return self._shifted(place, len(first))

    def _shifted(self, place: Callable[[np.ndarray], np.ndarray], times: int) -> Constraints:
        def rows(index: np.ndarray) -> np.ndarray:
            return place(index).reshape(-1, index.shape[1])

        return Constraints(
            rows(self.bonds), np.tile(self.bond_order, times), np.tile(self.bond_length, times),
            rows(self.angles), np.tile(self.angle, times),
            rows(self.volumes), np.tile(self.volume, times),
            rows(self.torsions), np.tile(self.torsion, times),
        )  # fmt: skip

    def of_atoms(self, number: np.ndarray) -> Constraints:
        """Return those among some atoms alone.

        Parameters
        ----------
        number : ndarray, shape=(n_atoms,), int64
            New index of every atom, -1 for those left out.
        """
        pieces = []
        for index, *values in (
            (self.bonds, self.bond_order, self.bond_length), (self.angles, self.angle),
            (self.volumes, self.volume), (self.torsions, self.torsion),
        ):  # fmt: skip
            kept = (number[index] >= 0).all(axis=1)
            pieces += [number[index[kept]], *(value[kept] for value in values)]
        return Constraints(*pieces)

    @staticmethod
    def none() -> Constraints:
        """Return no constraints at all."""
        index = [np.zeros((0, width), np.int64) for width in (2, 3, 4, 4)]
        value = np.zeros(0)
        return Constraints(
            index[0], value, value, index[1], value, index[2], value, index[3], value
        )

    @staticmethod
    def joined(pieces: Sequence[Constraints]) -> Constraints:
        """Concatenate constraints."""
        return Constraints(
            *(np.concatenate([getattr(p, f.name) for p in pieces]) for f in fields(Constraints))
        )


@dataclass(frozen=True)
class Backbone:
    """Torsions of protein backbones over atom indices.

    Attributes
    ----------
    omegas : ndarray, shape=(m, 4), int64
        CA C N CA of every peptide bond.
    cis : ndarray, shape=(m,), bool
        Those that are cis whatever is predicted.
    may_be_cis : ndarray, shape=(m,), bool
        Those for which the prediction decides; all others are trans.
    phi_psi : ndarray, shape=(r, 5), int64
        C N CA C N of every residue with both neighbours: phi is the first four, psi the last.
    kind : ndarray, shape=(r,), int64
        Of residue, into `mdbackmap.geometry.ramachandran.KINDS`.
    """

    omegas: np.ndarray
    cis: np.ndarray
    may_be_cis: np.ndarray
    phi_psi: np.ndarray
    kind: np.ndarray

    @classmethod
    def none(cls) -> Backbone:
        """No protein."""
        flags, index = np.zeros(0, dtype=bool), np.zeros(0, dtype=np.int64)
        return cls(index.reshape(0, 4), flags, flags, index.reshape(0, 5), index)

    def within(self, start: int, stop: int) -> Backbone:
        """Return what lies within a range of atoms, counted from its start."""
        own = (self.omegas[:, 0] >= start) & (self.omegas[:, 0] < stop)
        mine = (self.phi_psi[:, 0] >= start) & (self.phi_psi[:, 0] < stop)
        return Backbone(self.omegas[own] - start, self.cis[own], self.may_be_cis[own],
                        self.phi_psi[mine] - start, self.kind[mine])  # fmt: skip
