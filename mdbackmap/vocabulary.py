"""Fitting a system's beads and atoms to what a model has learnt.

Keys say what a bead is made of (``PO4:C11,O11,...``); equal keys mean the same thing in every
molecule, so a lipid built from known parts works without training. A bead whose key is new but
nearly a known one borrows its weights, and the user is told. A bead of an alkyl chain may borrow
those of any: its atoms are drawn anew (`mdbackmap.tails`), and only others see what it is like.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mdbackmap.errors import ModelError, listing
from mdbackmap.mapping.chains import chains_of
from mdbackmap.mapping.system import System
from mdbackmap.models.checkpoint import Checkpoint

ENOUGH_IN_COMMON = 0.5
"""Share of atoms (of both beads together) that a borrowed bead must have in common."""
_TAIL = re.compile(r"[CDT]\d[ABCD]?\d?")
HINT = "choose the mapping the model was trained with (mdbackmap models show), or train one."


@dataclass(frozen=True)
class Vocabulary:
    """Indices into a model's embeddings.

    Attributes
    ----------
    bead, residue : Tensor, shape=(n_beads,), int64
    atom : Tensor, shape=(n_atoms,), int64
    bead_distances : tuple of ndarray
        ``pairs`` (m, 2), ``kind`` (m,), and per kind the mean and spread in mapped structures and
        the mean in simulations (NaN: unknown), Å.
    borrowed : dict
        Bead keys the model does not know → the key whose weights they borrow.
    """

    bead: Tensor
    residue: Tensor
    atom: Tensor
    bead_distances: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    borrowed: dict[str, str]


def match(system: System, model: Checkpoint, hint: str = HINT) -> Vocabulary:
    """Fit a system to a model.

    Parameters
    ----------
    system : System
    model : Checkpoint
    hint : str
        What to do where it does not fit, for the message.

    Raises
    ------
    ModelError
        Lists every residue whose beads the model does not know, and residues whose mapping
        places beads otherwise than the one the model was trained with.
    """
    beads, atoms, borrowed = _tables(system, model)
    misfits = _misfits(system, model, beads, atoms, borrowed)
    if misfits:
        raise ModelError(
            f"model {model.card.get('name', '')} ({model.source}) does not fit the mapping of "
            f"these residues:\n{listing(sorted(set(misfits.values())), 20)}\n  Hint: {hint}"
        )
    residues = {name: k for k, name in enumerate(model.residues)}
    bead_table = np.array([beads[borrowed.get(key, key)] for key in system.bead_keys])
    atom_table = np.array(
        [_atom_index(key, atoms, borrowed) for key in system.atom_keys], dtype=np.int64
    )
    names = system.residue_names[system.bead_residue]
    residue_of = {name: residues.get(name, 0) for name in np.unique(names)}
    residue = np.array([residue_of[name] for name in names], dtype=np.int64)
    return Vocabulary(
        bead=torch.from_numpy(bead_table[system.bead_key].astype(np.int64)),
        residue=torch.from_numpy(residue),
        atom=torch.from_numpy(atom_table[system.atom_key]),
        bead_distances=_distances(system, model),
        borrowed=borrowed,
    )


def known_templates(system: System, model: Checkpoint) -> np.ndarray:
    """Return which templates of a system a model can place, shape (n_templates,), bool."""
    known = np.ones(len(system.templates), dtype=bool)
    known[list(_misfits(system, model, *_tables(system, model)))] = False
    return known


def _tables(
    system: System, model: Checkpoint
) -> tuple[dict[str, int], dict[str, int], dict[str, str]]:
    """The model's beads and atoms by key, and whose weights unknown beads of the system borrow."""
    beads = {key: k for k, key in enumerate(model.bead_keys)}
    atoms = {key: k for k, key in enumerate(model.atom_keys)}
    drawn = drawn_beads(system)
    near = {
        key: twin(key) if twin(key) in beads
        else _nearest(key, model.bead_keys) or (_like(key, model.bead_keys) if key in drawn else "")
        for key in system.bead_keys if key not in beads
    }  # fmt: skip
    return beads, atoms, {key: other for key, other in near.items() if other}


def drawn_beads(system: System) -> set[str]:
    """Keys of beads whose atoms all are of an alkyl chain, so that no network need place them."""
    return {
        template.bead_keys[bead]
        for template in system.templates for chain in chains_of(template)
        for bead in chain.beads.tolist()
    }  # fmt: skip


def _like(key: str, known: list[str]) -> str:
    """The known bead of a tail that is most like another: its place, kind and number of atoms."""

    def unlike(other: str) -> tuple[int, bool, bool, int]:
        bead, atoms = _parts(other)
        return (abs(int(bead[1]) - int(name[1])), bead[0] != name[0], bead[2:] != name[2:],
                abs(len(atoms) - len(own)))  # fmt: skip

    name, own = _parts(key)
    tails = [other for other in known if _TAIL.fullmatch(other.partition(":")[0])]
    return min(tails, key=unlike, default="") if _TAIL.fullmatch(name) else ""


def _parts(key: str) -> tuple[str, set[str]]:
    bead, _, atoms = key.partition(":")
    return bead, set(atoms.split(","))


def twin(key: str) -> str:
    """The same piece of the other tail: D2A:C26,C27 for D2B:C36,C37 (CHARMM names of lipids).

    The key itself where it is no piece of a tail.
    """
    bead, atoms = key.partition(":")[::2]
    tail = re.fullmatch(r"([CDT]\d)([AB])", bead)
    if not tail or not all(re.fullmatch(r"C[23]\d+", atom) for atom in atoms.split(",")):
        return key
    other = tail[1] + {"A": "B", "B": "A"}[tail[2]]
    return f"{other}:{','.join(sorted(map(_twin_atom, atoms.split(','))))}"


def _twin_atom(atom: str) -> str:
    """The atom of the other tail: C36 for C26."""
    return atom[0] + {"2": "3", "3": "2"}.get(atom[1:2], atom[1:2]) + atom[2:]


def _nearest(key: str, known: list[str]) -> str | None:
    """The known bead of the same name with most atoms in common, if it has enough."""
    bead, atoms = _parts(key)
    best, score = None, ENOUGH_IN_COMMON
    for other in known:
        name, theirs = _parts(other)
        common = len(atoms & theirs) / len(atoms | theirs)
        if name == bead and common >= score:
            best, score = other, common
    return best


def _atom_index(key: str, atoms: dict[str, int], borrowed: dict[str, str]) -> int | None:
    bead, _, atom = key.rpartition("/")
    if key in atoms:
        return atoms[key]
    lent = borrowed.get(bead, bead)
    if lent != bead and lent == twin(bead):
        atom = _twin_atom(atom)
    same = f"{lent}/{atom}"
    if same in atoms:
        return atoms[same]
    # A terminal atom is read as from the bead that counts it.
    longer = (index for key, index in atoms.items()
              if key.endswith(f",{atom}/{atom}") and key.startswith(f"{lent},"))  # fmt: skip
    found = next(longer, None)
    if found is not None:
        return found
    # An atom the lending bead does not have starts where its first atom is; idealisation
    # moves it to its bonds.
    first = (index for name, index in atoms.items() if name.startswith(f"{lent}/"))
    return next(first, None)


def _misfits(
    system: System, model: Checkpoint, beads: dict[str, int], atoms: dict[str, int],
    borrowed: dict[str, str],
) -> dict[int, str]:  # fmt: skip
    """Templates the model cannot place, and why."""
    rows = {}
    for number, template in enumerate(system.templates):
        who = f"{template.residue} ({template.source}):"
        # Atoms of small molecules are called C1, C2 whatever they are: equal keys say nothing.
        alone = template.kind == "molecule"
        if alone and template.residue not in model.digests:
            rows[number] = f"{who} a molecule it has not learnt"
            continue
        known = beads.keys() if alone else beads.keys() | borrowed.keys()
        unknown = [k for k in template.bead_keys if k not in known]
        unknown = unknown or [
            key.rpartition("/")[0]
            for key in template.atom_keys
            if _atom_index(key, atoms, borrowed) is None
        ]
        if unknown:
            names = ", ".join(dict.fromkeys(k.partition(":")[0] for k in unknown))
            rows[number] = f"{who} beads {names}"
            continue
        digest = model.digests.get(template.residue)
        if digest and template.placement and digest != template.placement:
            rows[number] = (
                f"{who} places its beads otherwise than the mapping the model was trained with"
            )
    return rows


def _distances(system: System, model: Checkpoint) -> tuple[np.ndarray, ...]:
    pairs, kinds, kind = system.bead_pairs()
    known = np.array([k in model.bead_distances for k in kinds], dtype=bool)
    # Across residues the distance depends on the fold, unless all beads are CA.
    inside = np.array([not k.startswith("|") for k in kinds], dtype=bool)
    known &= inside | ~(known & inside).any()
    keep = known[kind] if len(kind) else np.zeros(0, bool)
    place = np.cumsum(known) - 1
    table = np.array([model.bead_distances[k] for k in kinds[known]]).reshape(-1, 2)
    # The same two beads are as far from one another in other lipids.
    alike = {k.partition("|")[2]: pair for k, pair in model.simulated_distances.items()}
    simulated = [
        model.simulated_distances.get(k, alike.get(k.partition("|")[2], (np.nan, 0.0)))[0]
        for k in kinds[known]
    ]
    place = place[kind[keep]] if len(kind) else kind
    return pairs[keep], place, table[:, 0], table[:, 1], np.array(simulated, dtype=float)
