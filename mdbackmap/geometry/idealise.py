"""Putting local geometry right: bonds, angles, stereocentres, planes, cis/trans.

A network trained on squared errors answers with means: bonds a little short, rings puckered,
on real frames worse. Here every atom is moved as little as possible so that bond lengths, 1-3
distances, signed volumes and fixed torsions hold, by position-based projection (Jacobi sweeps
with momentum; `mdbackmap.geometry.sweeps` has the compiled loops). Distances alone would create
mirror images; the signed volumes do not allow it.

After Müller et al., "Position based dynamics", J. Vis. Commun. Image Represent. 18, 109 (2007),
doi:10.1016/j.jvcir.2007.01.005.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mdbackmap.geometry import ramachandran
from mdbackmap.geometry.constraints import Backbone, Constraints
from mdbackmap.geometry.contacts import Contacts
from mdbackmap.geometry.sweeps import LANES, Apart, Terms, sweep, targets, unsettled
from mdbackmap.threads import spread

CLOSEST_14, CLOSEST_SATURATED = 2.6, 2.75
"""Å; atoms three bonds apart come no closer, the second about bonds of saturated atoms (a gauche
butane has 3.0, one turned to 40 degrees 2.75, an eclipsed one 2.6)."""
GIVE_13 = 0.08
"""Å the ends of an angle may be off (4 degrees); angles of sound structures scatter by as much."""
SLACK = 0.3
"""Å^3 the volume of a stereocentre may be off; planes have none."""
CROWDED, PLANES = 0.4, 4.0
"""An atom goes the sum of the ways it is asked to go, over the number of terms that ask, to this
power: the full number is safe, but slow, for terms rarely all pull one way. Those that keep a plane
do: of fused rings 50 hold one atom, and a share of more than 5 over their number throws it out of
the plane again and again."""
DRIFT = 1.5
"""Share of the way of phi and psi that one sweep asks for."""
ROUNDS = 6
"""Rounds of sweeps at most; a second one is needed where a torsion had far to turn."""
LOOSER = 0.1
"""Factor of the hold on beads from round to round."""
EASIER = 0.7
"""Factor of the pull on phi and psi from round to round."""
SETTLED = math.cos(math.radians(30))
"""Cosine of the error of a fixed torsion that calls for another round."""
MANY = 64
"""Bundles, fewer than which threads take one by one."""
IMAGE = 0.1
"""Å; what is nearer than by this much to an atom is that atom, and not an image of it."""


@dataclass(frozen=True, eq=False)
class Staggered:
    """Torsions that are turned to the nearest of 60, 180 and 300 degrees.

    Attributes
    ----------
    torsions : ndarray, shape=(m, 4), int64
    slant : ndarray, shape=(m,), degrees
        By which they may be off.
    gauche : ndarray, shape=(m,), float
        1 or -1: not to 180 degrees, but to 60 or -60 in its stead; 0: to all three.
    """

    torsions: np.ndarray
    slant: np.ndarray
    gauche: np.ndarray

    @classmethod
    def none(cls) -> Staggered:
        """No such torsions."""
        return cls(np.zeros((0, 4), dtype=np.int64), np.zeros(0), np.zeros(0))


class Idealiser:
    """Restores the local geometry of molecules of one kind; static arrays are built once.

    Parameters
    ----------
    constraints : Constraints
        Over the atoms of one molecule, or of several that are taken for one.
    n_atoms : int
    members : ndarray, shape=(k, 2), int64; weights : ndarray, shape=(k,)
        Bead-atom rows and normalised weights, to keep beads where they are.
    n_beads : int
    backbone : Backbone
        Peptide bonds are made trans; where cis is allowed the prediction decides. Phi and psi
        that hardly any protein has are turned to the nearest that many have.
    sweeps : int
        Jacobi sweeps per round; rounds are added while a fixed torsion is far off.
    rounds : int
        Rounds at least. Each holds on to beads `LOOSER`, so that fewer angles are left strained.
    hold : float
        How strongly beads are kept where they were given, 0 to 1 per sweep.
    contour : float
        Phi and psi beyond this contour (see `mdbackmap.geometry.ramachandran`) are turned to it.
    momentum : float or ndarray, shape=(n_atoms,)
        Share of a sweep's step that the next one takes again; converges further, moves more.
    staggered : Staggered, optional
    """

    def __init__(
        self, constraints: Constraints, n_atoms: int, members: np.ndarray, weights: np.ndarray,
        n_beads: int, backbone: Backbone, *, sweeps: int = 32, rounds: int = 1, hold: float = 0.1,
        contour: float = ramachandran.ALLOWED, momentum: float | np.ndarray = 0.6,
        staggered: Staggered | None = None,
    ) -> None:  # fmt: skip
        self.n_atoms, self.n_beads = n_atoms, n_beads
        self.sweeps, self.rounds, self.hold = sweeps, rounds, hold
        pairs, distance = _exact_pairs(constraints)
        apart, closest = _pairs_14(constraints, pairs)
        n_exact, pairs = len(pairs), np.concatenate([pairs, apart])
        give = np.where(np.arange(n_exact) < len(constraints.bonds), 0.0, GIVE_13)

        torsions, torsion, may_be_cis = _fixed_torsions(constraints, backbone)
        # Both sides of a fixed torsion are flat, so its plane must not hold it on the wrong one.
        loose = ~np.isin(_middle(constraints.volumes, n_atoms), _middle(torsions, n_atoms))
        staggered = staggered or Staggered.none()
        free = np.arange(len(torsions) + len(staggered.torsions)) >= len(torsions)
        torsions = np.concatenate([torsions, staggered.torsions])
        more = np.zeros(len(staggered.torsions))
        self.gauche = _reals(np.append(np.zeros(len(torsion)), staggered.gauche))

        quads, volume = constraints.volumes[loose], constraints.volume[loose]
        slack = np.where(volume > 0.5, SLACK, 0.0)
        count = np.bincount(pairs[:n_exact].ravel(), minlength=n_atoms)
        count += np.bincount(quads.ravel(), minlength=n_atoms)
        count += np.bincount(torsions[~free].ravel(), minlength=n_atoms)
        planes = np.bincount(quads[volume < 0.5].ravel(), minlength=n_atoms)
        rate = np.minimum(np.maximum(count, 1) ** -CROWDED, PLANES / np.maximum(planes, 1))
        share = np.bincount(members[:, 1], minlength=n_atoms)
        self.way_back = ramachandran.way_back(contour)
        self.terms = Terms(
            pairs=_whole(pairs),
            nearest=_reals(np.append(distance - give, closest)),
            furthest=_reals(np.append(distance + give, np.full(len(apart), np.inf))),
            quads=_whole(quads), smallest=_reals(volume - slack), largest=_reals(volume + slack),
            least=_reals(np.where(volume > 0.5, 0.3 * volume, -np.inf)),
            torsions=_whole(torsions), torsion=_reals(np.append(torsion, more)),
            give=_reals(np.radians(np.append(np.zeros(len(torsion)), staggered.slant))),
            may_be_cis=np.append(may_be_cis, more > 0), free=free,
            phi_psi=_whole(backbone.phi_psi), kind=_whole(backbone.kind),
            members=_whole(members), weights=_reals(weights),
            share=_reals(1.0 / share[members[:, 1]]),
            rate=_reals(rate),
            momentum=_reals(np.broadcast_to(momentum, n_atoms)),
        )  # fmt: skip

    def __call__(
        self, positions: np.ndarray, beads: np.ndarray, apart: Apart | None = None,
        gauche: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Return positions with ideal local geometry.

        Parameters
        ----------
        positions : ndarray, shape=(n_atoms, 3), float32, Å
            Or of several molecules, shape (m, n_atoms, 3); each comes out as it would alone.
        beads : ndarray, shape=(n_beads, 3), float32, Å
            Where the beads of the answer should be; of as many molecules.
        apart : Apart, optional
            Atoms to be kept apart.
        gauche : ndarray, shape=(m, s), optional
            `Staggered.gauche` of every molecule, where they differ.

        Returns
        -------
        ndarray, of the shape of ``positions``, float32, Å
            Bond lengths and angles within a few per cent, stereocentres and fixed torsions on
            their side, few contacts too close. Torsions about other single bonds are left to
            the rest.
        """
        points = _reals(positions).reshape(-1, self.n_atoms, 3)
        many = len(points)
        # Lanes to spare do what the first molecule does.
        lanes = np.append(np.arange(many), np.zeros(-many % LANES, np.int64))
        sides = None if gauche is None else gauche[lanes]
        goal = _reals(beads).reshape(many, self.n_beads, 3)[lanes]
        work = self.begun(points[lanes], goal, np.arange(len(lanes)) < many, sides)
        apart = apart or kept_apart(len(lanes))
        while work.go_on(apart):
            pass
        return work.positions[:many].reshape(np.shape(positions))

    def begun(
        self, positions: np.ndarray, beads: np.ndarray, asked: np.ndarray,
        gauche: np.ndarray | None = None,
    ) -> Work:  # fmt: skip
        """Return the work on whole bundles of molecules before its first round; see `Work`."""
        sides = np.repeat(self.gauche[None], len(positions), axis=0)
        if gauche is not None:
            sides[:, sides.shape[1] - gauche.shape[1] :] = gauche
        return Work(self, positions, targets(positions, sides, self.terms), beads, asked)


@dataclass(eq=False)
class Work:
    """Molecules of a kind on their way to ideal geometry; a multiple of `LANES`.

    Attributes
    ----------
    idealiser : Idealiser
    positions : ndarray, shape=(m, n_atoms, 3), float32, Å
        Changed in place.
    target : ndarray, shape=(m, t), float32, radians
        What torsions are turned to.
    beads : ndarray, shape=(m, n_beads, 3), float32, Å
    left : ndarray, shape=(m,), bool
        Molecules that need another round.
    done : int
        Rounds there have been.
    """

    idealiser: Idealiser
    positions: np.ndarray
    target: np.ndarray
    beads: np.ndarray
    left: np.ndarray
    done: int = 0

    def go_on(self, apart: Apart) -> bool:
        """Do one more round of sweeps; tell whether another is needed."""
        own, k = self.idealiser, self.done
        sweep(
            self.positions, self.target, self.beads, self.left, own.terms, apart, own.way_back,
            own.sweeps, own.hold * LOOSER**k, DRIFT * EASIER**k,
        )  # fmt: skip
        self.done += 1
        if self.done >= own.rounds:
            self.left = unsettled(self.positions, self.target, self.left, own.terms, SETTLED)
        return self.done < ROUNDS and bool(self.left.any())


def kept_apart(
    many: int, pairs: np.ndarray | None = None, nearest: np.ndarray | None = None,
    still: np.ndarray | None = None, n_atoms: int = 0,
) -> Apart:  # fmt: skip
    """Return what keeps atoms of the first of some molecules apart.

    Parameters
    ----------
    many : int
        Molecules there are, a multiple of `LANES`.
    pairs : ndarray, shape=(k, 2), int64
        Atoms; the second may be one of ``still``, numbered on from ``n_atoms``.
    nearest : ndarray, shape=(k,), Å
    still : ndarray, shape=(s, 3), Å
        Points that do not move.
    """
    if pairs is None or nearest is None:
        pairs, nearest = np.zeros((0, 2), np.int64), np.zeros(0)
    inside = pairs[:, 1] < n_atoms
    seen = np.zeros((0, 3)) if still is None else still[pairs[~inside, 1] - n_atoms]
    # All of them are of the first bundle.
    starts = [
        np.append(0, np.full(many // LANES, np.count_nonzero(own))) for own in (inside, ~inside)
    ]
    return Apart(
        _whole(pairs[inside] * LANES), _reals(nearest[inside]), starts[0],
        _whole(pairs[~inside, 0] * LANES), _reals(seen), _reals(nearest[~inside]), starts[1],
    )  # fmt: skip


def _reals(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)


def _whole(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.int32)


def _exact_pairs(constraints: Constraints) -> tuple[np.ndarray, np.ndarray]:
    """Bonds and the ends of angles, each pair once, bonds first; and their distances, Å."""
    bonds, angles = constraints.bonds, constraints.angles
    n = 1 + max(int(bonds.max(initial=0)), int(angles.max(initial=0)))
    key = _pair_key(bonds, n)
    order = np.argsort(key)

    def length(pairs: np.ndarray) -> np.ndarray:
        return constraints.bond_length[order[np.searchsorted(key[order], _pair_key(pairs, n))]]

    a, b = length(angles[:, :2]), length(angles[:, 1:])
    across = np.sqrt(a**2 + b**2 - 2 * a * b * np.cos(np.radians(constraints.angle)))
    pairs = np.concatenate([bonds, angles[:, [0, 2]]])
    distance = np.concatenate([constraints.bond_length, across])
    _, first = np.unique(_pair_key(pairs, n), return_index=True)
    first = np.sort(first)
    return pairs[first], distance[first]


def _fixed_torsions(
    constraints: Constraints, backbone: Backbone
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Torsions held cis or trans with their angles, radians, and which may be cis all the same."""
    n = 1 + int(constraints.bonds.max(initial=0))
    other = ~np.isin(_middle(constraints.torsions, n), _middle(backbone.omegas, n))
    torsion = np.radians(constraints.torsion[other])
    return (
        np.concatenate([constraints.torsions[other], backbone.omegas]),
        np.concatenate([torsion, np.where(backbone.cis, 0.0, math.pi)]),
        np.concatenate([np.zeros(len(torsion), dtype=bool), backbone.may_be_cis]),
    )


def _pairs_14(constraints: Constraints, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Atoms three bonds apart that no other pair fixes, and how close they may come, Å."""
    bonds, angles = constraints.bonds, constraints.angles
    n = 1 + int(bonds.max(initial=0))
    both = np.concatenate([bonds, bonds[:, ::-1]])
    order = np.argsort(both[:, 0], kind="stable")
    start = np.searchsorted(both[order, 0], np.arange(n + 1))
    triples = np.concatenate([angles, angles[:, ::-1]])
    count = start[triples[:, 2] + 1] - start[triples[:, 2]]
    rows = np.repeat(np.arange(len(triples)), count)
    column = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    last = both[order, 1][start[triples[rows, 2]] + column]
    pairs = np.stack([triples[rows, 0], last], axis=1)
    middle, third = triples[rows, 1:].T
    flat = np.zeros(n, dtype=bool)
    flat[bonds[constraints.bond_order > 1]] = True
    flat[constraints.volumes[constraints.volume < 0.5, 0]] = True
    ends = (last != middle) & (pairs[:, 0] != last)
    saturated = ~(flat[middle] | flat[third])[ends]
    # A pair that is joined in several ways may come as close as any of them allows.
    key, which = np.unique(_pair_key(pairs[ends], n), return_inverse=True)
    closest = np.full(len(key), CLOSEST_SATURATED)
    np.minimum.at(closest, which, np.where(saturated, CLOSEST_SATURATED, CLOSEST_14))
    new = ~np.isin(key, _pair_key(known, n))
    return np.stack([key // n, key % n], axis=1)[new], closest[new]


def _pair_key(pairs: np.ndarray, n: int) -> np.ndarray:
    pairs = pairs.astype(np.int64)
    return np.minimum(pairs[:, 0], pairs[:, 1]) * n + np.maximum(pairs[:, 0], pairs[:, 1])


def _middle(rows: np.ndarray, n: int) -> np.ndarray:
    """One number per central bond of rows of four."""
    return _pair_key(rows[:, 1:3], n)


@dataclass(frozen=True, eq=False)
class _Kind:
    """Molecules that are alike.

    Attributes
    ----------
    idealiser : Idealiser
    atoms : ndarray, shape=(m, n_atoms), int64; beads : ndarray, shape=(m, n_beads), int64
        Those of every molecule.
    gauche : ndarray, shape=(m, s), float
        See `Staggered`.
    """

    idealiser: Idealiser
    atoms: np.ndarray
    beads: np.ndarray
    gauche: np.ndarray

    def bundles(self, n_frames: int) -> int:
        """How many bundles those of some frames make, one frame behind the other."""
        return -(-n_frames * len(self.atoms) // LANES)


class SystemIdealiser:
    """An `Idealiser` for all molecules of a system; what is alike is worked out together.

    Parameters as in `Idealiser`, over all atoms of the system.

    Parameters
    ----------
    piece : int
        Bundles of molecules that a thread works out at a time.
    **options
        As of `Idealiser`.
    """

    def __init__(
        self, constraints: Constraints, n_atoms: int, members: np.ndarray, weights: np.ndarray,
        n_beads: int, backbone: Backbone, *, momentum: float | np.ndarray = 0.6,
        staggered: Staggered | None = None, piece: int = 8, **options: float,
    ) -> None:  # fmt: skip
        self.piece = piece
        momentum = np.broadcast_to(momentum, n_atoms).astype(np.float32)
        staggered = staggered or Staggered.none()
        cuts = _cuts(constraints.bonds, members, n_atoms)
        # Beads lie in the order of their atoms' molecules.
        bead_cuts = np.append(np.searchsorted(_first_atoms(members, n_beads), cuts[:-1]), n_beads)
        molecules = _Molecules(cuts, bead_cuts, constraints, members, weights, backbone, momentum,
                               staggered)  # fmt: skip
        self.kinds: list[_Kind] = []
        # Of every atom: kind of molecule, number among its like, place in it.
        self._kind, self._molecule, self._place = (np.empty(n_atoms, np.int64) for _ in range(3))
        for number, alike in enumerate(molecules.kinds()):
            own = molecules.parts(alike[0])
            atoms = cuts[alike][:, None] + np.arange(own["n_atoms"])
            beads = bead_cuts[alike][:, None] + np.arange(own["n_beads"])
            self.kinds.append(
                _Kind(Idealiser(**own, **options), atoms, beads, molecules.gauche(alike))
            )
            self._kind[atoms], self._place[atoms] = number, np.arange(own["n_atoms"])
            self._molecule[atoms] = np.arange(len(alike))[:, None]

    def __call__(
        self, positions: np.ndarray, beads: np.ndarray, contacts: Sequence[Contacts] = ()
    ) -> np.ndarray:
        """Return positions with ideal local geometry, float32, Å, in the shape given.

        Parameters
        ----------
        positions : ndarray, shape=(n_frames, n_atoms, 3), Å
            Every frame comes out as it would alone.
        beads : ndarray, shape=(n_frames, n_beads, 3), Å
        contacts : sequence of Contacts, optional
            Of every frame, pairs of the given positions to be kept apart, also between molecules
            and images.
        """
        result = np.array(positions, dtype=np.float32)
        beads, n_frames = _reals(beads), len(result)
        pieces = spread(lambda one: self._begun(result, beads, *one), self._pieces(n_frames))
        seen = self._sorted(contacts, result) if contacts else None
        while pieces:
            apart = seen.look(result) if seen else None

            def go_on(piece: _Piece, apart: Apart | None = apart) -> bool:
                near = (
                    _of_bundles(apart, piece.first, piece.stop) if apart
                    else kept_apart(len(piece.used))
                )  # fmt: skip
                again = piece.work.go_on(near)
                rows = piece.frame[piece.used, None], piece.atoms[piece.used]
                result[rows] = piece.work.positions[piece.used]
                return again

            pieces = list(itertools.compress(pieces, spread(go_on, pieces)))
        return result

    def _pieces(self, n_frames: int) -> list[tuple[_Kind, int, int, int]]:
        """Kinds, some of their bundles, and how many bundles other kinds have before."""
        counts = [kind.bundles(n_frames) for kind in self.kinds]
        size = self.piece if sum(counts) >= MANY else 1
        before = np.cumsum([0, *counts])
        return [
            (kind, int(first), k, min(k + size, count))
            for kind, first, count in zip(self.kinds, before, counts, strict=False)
            for k in range(0, count, size)
        ]

    def _begun(
        self, positions: np.ndarray, beads: np.ndarray, kind: _Kind, before: int, start: int,
        stop: int,
    ) -> _Piece:  # fmt: skip
        lanes = np.arange(start * LANES, stop * LANES)
        used = lanes < len(positions) * len(kind.atoms)
        # Lanes to spare do what the first one does.
        frame, molecule = np.divmod(np.where(used, lanes, start * LANES), len(kind.atoms))
        atoms = kind.atoms[molecule]
        work = kind.idealiser.begun(
            positions[frame[:, None], atoms], beads[frame[:, None], kind.beads[molecule]], used,
            kind.gauche[molecule],
        )  # fmt: skip
        return _Piece(work, frame, atoms, used, before + start, before + stop)

    def _sorted(self, contacts: Sequence[Contacts], positions: np.ndarray) -> _Seen:
        """Contacts by bundle; what a molecule sees of others and of images stands still."""
        frame = np.repeat(np.arange(len(contacts)), [len(c.first) for c in contacts])
        first, second, vectors, nearest = (
            np.concatenate(column)
            for column in zip(*(vars(c).values() for c in contacts), strict=True)
        )
        jump = positions[frame, first] + vectors - positions[frame, second]
        inside = self._kind[first] == self._kind[second]
        inside &= self._molecule[first] == self._molecule[second]
        inside &= np.abs(jump).max(axis=1) < IMAGE
        own, across = np.flatnonzero(inside), np.flatnonzero(~inside)
        n_bundles = sum(kind.bundles(len(positions)) for kind in self.kinds)

        bundle, slot = self._slots(frame[own], first[own], len(positions))
        own = own[np.argsort(bundle, kind="stable")]
        pairs = np.stack([
            self._slots(frame[own], atoms[own], len(positions))[1] for atoms in (first, second)
        ], axis=1)  # fmt: skip
        # Each end of what goes across sees the other one.
        ends, others = (
            np.concatenate([first[across], second[across]]),
            np.concatenate([second[across], first[across]]),
        )
        frame, jump = np.tile(frame[across], 2), np.concatenate([jump[across], -jump[across]])
        of, slot = self._slots(frame, ends, len(positions))
        order = np.argsort(of, kind="stable")
        starts = [np.append(0, np.cumsum(np.bincount(rows, minlength=n_bundles)))
                  for rows in (bundle, of)]  # fmt: skip
        limits = np.tile(nearest[across], 2)[order]
        apart = Apart(
            _whole(pairs), _reals(nearest[own]), starts[0], _whole(slot[order]),
            np.empty((len(order), 3), np.float32), _reals(limits), starts[1],
        )  # fmt: skip
        n_atoms = positions.shape[1]
        return _Seen(apart, frame[order] * n_atoms + ends[order],
                     frame[order] * n_atoms + others[order], _reals(jump[order]))  # fmt: skip

    def _slots(
        self, frame: np.ndarray, atoms: np.ndarray, n_frames: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bundle of atoms of frames, and their slots in it; see `Apart`."""
        kind = self._kind[atoms]
        before = np.cumsum([0, *(k.bundles(n_frames) for k in self.kinds)])
        count = np.array([len(k.atoms) for k in self.kinds])
        lane = frame * count[kind] + self._molecule[atoms]
        return before[kind] + lane // LANES, self._place[atoms] * LANES + lane % LANES


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some bundles of molecules of a kind: work, where its lanes belong, and bundles' numbers."""

    work: Work
    frame: np.ndarray
    atoms: np.ndarray
    used: np.ndarray
    first: int
    stop: int


@dataclass(frozen=True, eq=False)
class _Seen:
    """Contacts of some frames, whose points are where others are now.

    Attributes
    ----------
    apart : Apart
        Its points are written by `look`.
    ends, others : ndarray, shape=(m,), int64
        Rows of the atoms that see points, and of those that are seen, among those of all frames.
    jump : ndarray, shape=(m, 3), float32, Å
        From the seen atom to its image that is near.
    """

    apart: Apart
    ends: np.ndarray
    others: np.ndarray
    jump: np.ndarray

    def look(self, positions: np.ndarray) -> Apart:
        """Return contacts with points as far away as if the other had done its half already."""
        flat = positions.reshape(-1, 3)
        here = flat.take(self.ends, axis=0)
        ways = flat.take(self.others, axis=0)
        ways += self.jump
        ways -= here
        length = np.sqrt(np.einsum("mx,mx->m", ways, ways))
        grown = 0.5 * np.maximum(self.apart.nearest / np.maximum(length, 0.1) - 1, 0)
        ways *= (1 + grown)[:, None]
        np.add(here, ways, out=self.apart.points)
        return self.apart


def _of_bundles(apart: Apart, first: int, stop: int) -> Apart:
    """What is kept apart in some bundles, numbered from the first of them."""
    pair_start, start = apart.pair_start[first : stop + 1], apart.start[first : stop + 1]
    own, rows = slice(pair_start[0], pair_start[-1]), slice(start[0], start[-1])
    return Apart(
        apart.pairs[own], apart.pair_nearest[own], pair_start - pair_start[0],
        apart.ends[rows], apart.points[rows], apart.nearest[rows], start - start[0],
    )  # fmt: skip


class _Molecules:
    """Everything that holds of the atoms of a system, molecule by molecule.

    Parameters
    ----------
    cuts, bead_cuts : ndarray, shape=(molecules + 1,), int64
        Where the atoms and beads of each begin, and their numbers.
    """

    def __init__(
        self, cuts: np.ndarray, bead_cuts: np.ndarray, constraints: Constraints,
        members: np.ndarray, weights: np.ndarray, backbone: Backbone, momentum: np.ndarray,
        staggered: Staggered,
    ) -> None:  # fmt: skip
        self.cuts, self.bead_cuts = cuts, bead_cuts
        c, b = constraints, backbone
        of_bead = np.column_stack([members[:, 1], members[:, 1]])
        self._columns: list[tuple[np.ndarray, list[int]]] = []
        for index, values in (
            (c.bonds, (c.bond_order, c.bond_length)), (c.angles, (c.angle,)),
            (c.volumes, (c.volume,)), (c.torsions, (c.torsion,)),
            (b.omegas, (b.cis, b.may_be_cis)), (b.phi_psi, (b.kind,)),
            (of_bead, (members[:, 0], weights)),
            (np.arange(cuts[-1])[:, None], (momentum,)),
            (staggered.torsions, (staggered.slant, staggered.gauche)),
        ):  # fmt: skip
            self._columns += self._split(index, values)

    def _split(
        self, index: np.ndarray, values: tuple[np.ndarray, ...]
    ) -> list[tuple[np.ndarray, list[int]]]:
        """Rows of atoms, numbered within each molecule, and what belongs to them, by molecule.

        With each table where the rows of every molecule begin.
        """
        molecule = np.repeat(np.arange(len(self.cuts) - 1), np.diff(self.cuts))[index[:, 0]]
        order = np.argsort(molecule, kind="stable")
        starts = np.append(0, np.cumsum(np.bincount(molecule, minlength=len(self.cuts) - 1)))
        local = (index - self.cuts[molecule][:, None])[order]
        return [(table, starts.tolist()) for table in (local, *(v[order] for v in values))]

    def _rows(self, number: int) -> list[np.ndarray]:
        """All that holds of one molecule; only sides of staggered torsions, at the end, differ."""
        rows = [table[starts[number] : starts[number + 1]] for table, starts in self._columns]
        rows[_OWNER] = rows[_OWNER] - self.bead_cuts[number]
        return rows

    def kinds(self) -> list[np.ndarray]:
        """Return the numbers of molecules that are alike, one array for each kind."""
        alike: dict[bytes, list[int]] = {}
        for number in range(len(self.cuts) - 1):
            size = self.cuts[number : number + 2], self.bead_cuts[number : number + 2]
            rows = [np.diff(ends) for ends in size] + self._rows(number)[:-1]
            alike.setdefault(b"|".join(a.tobytes() for a in rows), []).append(number)
        return [np.array(numbers) for numbers in alike.values()]

    def gauche(self, numbers: np.ndarray) -> np.ndarray:
        """Return the sides of staggered torsions of molecules of a kind, shape (m, s)."""
        table, starts = self._columns[-1]
        first = np.array(starts)[numbers]
        count = starts[numbers[0] + 1] - starts[numbers[0]]
        return table[first[:, None] + np.arange(count)].astype(np.float32)

    def parts(self, number: int) -> dict[str, object]:
        """Return what an `Idealiser` of one molecule is made from."""
        rows = self._rows(number)
        bonds, order, length, angles, angle, volumes, volume, torsions, torsion = rows[:9]
        omegas, cis, may_be_cis, phi_psi, kind, atom, bead, weights, _, momentum = rows[9:19]
        return {
            "constraints": Constraints(bonds, order, length, angles, angle, volumes, volume,
                                       torsions, torsion),
            "n_atoms": int(np.diff(self.cuts[number : number + 2])[0]),
            "n_beads": int(np.diff(self.bead_cuts[number : number + 2])[0]),
            "members": np.stack([bead, atom[:, 0]], axis=1), "weights": weights,
            "backbone": Backbone(omegas, cis, may_be_cis, phi_psi, kind), "momentum": momentum,
            "staggered": Staggered(*rows[19:]),
        }  # fmt: skip


_OWNER = 15
"""Place of the beads in `_Molecules._rows`."""


def _first_atoms(members: np.ndarray, n_beads: int) -> np.ndarray:
    first = np.full(n_beads, np.iinfo(np.int64).max)
    np.minimum.at(first, members[:, 0], members[:, 1])
    return np.maximum.accumulate(first)


def _cuts(bonds: np.ndarray, members: np.ndarray, n_atoms: int) -> np.ndarray:
    """Atoms at which molecules start, and ``n_atoms``; no bond and no bead reaches across."""
    reach = np.arange(n_atoms)
    ends = np.sort(bonds, axis=1)
    np.maximum.at(reach, ends[:, 0], ends[:, 1])
    order = np.lexsort((members[:, 1], members[:, 0]))
    bead, atom = members[order].T
    same = bead[1:] == bead[:-1]
    np.maximum.at(reach, atom[:-1][same], atom[1:][same])
    free = np.flatnonzero(np.maximum.accumulate(reach)[:-1] < np.arange(1, n_atoms)) + 1
    return np.array([0, *free, n_atoms])
