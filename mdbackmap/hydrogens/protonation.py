"""Which protonation state every residue is in: decided once, for all frames.

What a file of choices says goes first, then bridges, then residue names of the input that are
names of a state (HSD, ASH), then the pH. Tautomers that the pH leaves open are decided by the
hydrogen bonds of one frame (`mdbackmap.hydrogens.tautomers`).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mdbackmap.errors import MappingFileError, ProtonationError, listing
from mdbackmap.hydrogens.alike import alike
from mdbackmap.mapping import strict_yaml
from mdbackmap.mapping.hydrogens import Place
from mdbackmap.mapping.schema import State
from mdbackmap.mapping.system import System

DEFAULT_PH = 7.4
_KEY = re.compile(r"(?:(?P<chain>[^:\s]+):)?(?P<name>[^:\s]+)(?:\s+(?P<number>-?\d+))?")
_NONE = -1

Choices = str | Path | Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Protonation:
    """States of all residues.

    Attributes
    ----------
    ph : float
    starts, ends, bridged : ndarray, shape=(n_residues,), bool
        Residues at the start and end of a chain, and those joined by a bridge.
    state, first, last : ndarray, shape=(n_residues,), int64
        Place among the ``states``, ``states_first`` and ``states_last`` of the mapping; -1: none.
    open : dict of int to tuple of int
        Residues whose tautomer nothing has decided yet, with the states it may have.
    why : dict of int to str
        What decided, for residues that are not simply as the pH has them.
    """

    ph: float
    starts: np.ndarray
    ends: np.ndarray
    bridged: np.ndarray
    state: np.ndarray
    first: np.ndarray
    last: np.ndarray
    open: dict[int, tuple[int, ...]]
    why: dict[int, str]

    def with_states(self, chosen: Mapping[int, int], why: str) -> Protonation:
        """Return this with other states of some residues, which are decided then."""
        state = self.state.copy()
        for residue, k in chosen.items():
            state[residue] = k
        still = {r: options for r, options in self.open.items() if r not in chosen}
        said = self.why | dict.fromkeys(chosen, why)
        return dataclasses.replace(self, state=state, open=still, why=said)

    def groups(self, system: System) -> Iterator[tuple[int, Place, np.ndarray]]:
        """Yield template, place and the residues that have both, shape (n,), int64."""
        columns = (system.residue_template, self.starts, self.ends, self.bridged)
        states = (self.state, self.first, self.last)
        for (k, starts, ends, bridged, *chosen), residues in alike(*columns, *states):
            tables = zip(_tables(system, k), chosen, strict=True)
            names = [None if n == _NONE else list(table)[n] for table, n in tables]
            yield k, Place(bool(starts), bool(ends), bool(bridged), *names), residues

    def names(self, system: System) -> list[tuple[str, ...]]:
        """Return the names of the states of every residue, none for most."""
        result: list[tuple[str, ...]] = [()] * len(self.state)
        for _, place, residues in self.groups(system):
            own = tuple(s for s in (place.state, place.first, place.last) if s)
            for residue in residues.tolist() if own else ():
                result[residue] = own
        return result

    def summary(self, system: System) -> str:
        """Say how many residues are in which state."""
        count: Counter[str] = Counter()
        for k, place, residues in self.groups(system):
            for name in (place.state, place.first, place.last):
                if name and (name != place.state or len(system.templates[k].spec.states) > 1):
                    count[name] += len(residues)
        parts = ", ".join(f"{n} {name}" for name, n in sorted(count.items()))
        return f"protonation at pH {self.ph:g}: {parts or 'nothing to decide'}"

    def details(self, system: System) -> list[str]:
        """Name the residues that are not simply as the pH has them, with why."""
        names = self.names(system)
        return [f"{describe(system, residue)}: {' '.join(names[residue])} ({self.why[residue]})"
                for residue in sorted(self.why)]  # fmt: skip


def _tables(system: System, template: int) -> tuple[dict[str, State], ...]:
    spec = system.templates[template].spec
    return tuple(table or {} for table in (spec.states, spec.states_first, spec.states_last))


def describe(system: System, residue: int) -> str:
    """Name a residue as a file of choices does, ``A:HIS 68``."""
    atom = int(np.searchsorted(system.atoms.residue, residue))
    atoms = system.atoms
    return f"{system.chain_letters[residue]}:{atoms.resnames[atom]} {atoms.resids[atom]}"


def decide(system: System, ph: float = DEFAULT_PH, choices: Choices | None = None) -> Protonation:
    """Decide on the state of every residue.

    Parameters
    ----------
    system : System
    ph : float
    choices : str, Path or mapping, optional
        A YAML file, or its content: residue → state, as in ``A:HIS 15: HIP``.

    Raises
    ------
    ProtonationError
        A pH that is none, a file that cannot be read, residues or states that do not exist.
    """
    if not 0 <= ph <= 14:
        raise ProtonationError(f"pH {ph:g}: expected a number from 0 to 14")
    n = len(system.residue_template)
    follows = np.zeros(n, dtype=bool)
    follows[system.next_residue[system.next_residue >= 0]] = True
    polymer = np.array([t.spec.link is not None for t in system.templates], dtype=bool)
    polymer = polymer[system.residue_template]
    bridged = np.zeros(n, dtype=bool)
    bridged[system.bridges.ravel()] = True
    state, first, last = np.full((3, n), _NONE)
    starts, ends = polymer & ~follows, polymer & (system.next_residue < 0)
    is_open: dict[int, tuple[int, ...]] = {}
    why: dict[int, str] = {}
    names, name = np.unique(system.given_names, return_inverse=True)
    for (k, joined, code), here in alike(system.residue_template, bridged, name):
        own, at_start, at_end = _tables(system, k)
        if own:
            given = str(names[code])
            given = given if given != system.templates[k].residue else ""
            options, reason = _options(own, ph, bool(joined), given)
            state[here] = options[0]
            why |= dict.fromkeys(here.tolist(), reason) if reason else {}
            is_open |= dict.fromkeys(here.tolist(), options) if len(options) > 1 else {}
        # A residue that has no atom to be bonded at is a cap.
        template = system.templates[k]
        first[here] = 0 if _all_atoms(at_start, template) else _NONE
        last[here] = 0 if _all_atoms(at_end, template) else _NONE
    first[~starts], last[~ends] = _NONE, _NONE
    result = Protonation(ph, starts, ends, bridged, state, first, last, is_open, why)
    return _overridden(result, system, choices) if choices is not None else result


def _all_atoms(states: dict[str, State], template) -> bool:
    """Whether there are states, and the residue has the atoms they are of."""
    atoms = {name for state in states.values() for name in state.hydrogens}
    return bool(states) and atoms <= set(template.names.tolist())


def _options(
    states: dict[str, State], ph: float, bridged: bool, given: str
) -> tuple[tuple[int, ...], str]:
    """Return the states a residue may have, and why, where it is not for the pH."""
    bridges = [k for k, s in enumerate(states.values()) if s.bridged == "yes"]
    if bridged and bridges:
        return tuple(bridges[:1]), "bridge"
    named = [k for k, (name, s) in enumerate(states.items())
             if given in (name, *s.names) and s.bridged == "no"]  # fmt: skip
    if named:
        return tuple(named[:1]), f"called {given}"
    free = [
        (k, s) for k, s in enumerate(states.values())
        if s.bridged == "no" and (s.below is None or ph < s.below)
        and (s.above is None or ph > s.above)
    ]  # fmt: skip
    ranged = [k for k, s in free if s.limited]
    return tuple(ranged or [k for k, _ in free]), ""


@dataclass(frozen=True)
class _Rule:
    """One line of a file of choices."""

    where: str
    chain: str | None
    name: str
    number: int | None
    states: tuple[str, ...]


def _rules(choices: Choices) -> list[_Rule]:
    """Read choices; those for single residues come last, so that they win."""
    if isinstance(choices, Mapping):
        source, table = "protonation", dict(choices)
        lines = dict.fromkeys(table, "")
    else:
        source = str(choices)
        try:
            located = strict_yaml.load(choices)
        except MappingFileError as error:
            raise ProtonationError(str(error)) from error
        table, lines = located, {k: f", line {n}" for k, n in located.lines.items()}
    rules, problems = [], []
    for key, value in table.items():
        where = f"{source}{lines[key]}: '{key}'"
        match = _KEY.fullmatch(str(key).strip())
        states = value if isinstance(value, (list, tuple)) else [value]
        if match is None:
            problems.append(f"{where}: expected a residue as in 'A:HIS 15', 'HIS 15' or 'HIS'")
        elif not states or not all(isinstance(s, str) and s for s in states):
            problems.append(f"{where}: expected the name of a state, or a list of names")
        else:
            number = int(match["number"]) if match["number"] else None
            rules.append(_Rule(where, match["chain"], match["name"], number, tuple(states)))
    if problems:
        raise ProtonationError(listing(problems, 20, indent=""))
    return sorted(rules, key=lambda rule: (rule.number is not None, rule.chain is not None))


def _overridden(given: Protonation, system: System, choices: Choices) -> Protonation:
    state, first, last = given.state.copy(), given.first.copy(), given.last.copy()
    is_open, why = dict(given.open), dict(given.why)
    problems: list[str] = []
    for rule in _rules(choices):
        residues = _chosen(rule, system)
        if not len(residues):
            problems.append(f"{rule.where}: no such residue{_near(rule, system)}")
            continue
        for name in rule.states:
            misfits = []
            for residue in residues.tolist():
                tables = _tables(system, int(system.residue_template[residue]))
                misfit = _misfit(name, residue, tables, given)
                if misfit:
                    misfits.append(f"{rule.where}: {describe(system, residue)} {misfit}")
                    continue
                for table, column in zip(tables, (state, first, last), strict=True):
                    if (k := _index(table, name)) is not None:
                        column[residue] = k
                is_open.pop(residue, None)
                why[residue] = "chosen"
            if rule.number is not None or len(misfits) == len(residues):
                problems += misfits[:3]
    if problems:
        raise ProtonationError(
            listing(problems, 20, indent="") + "\n  Hint: 'mdbackmap mapping show RESIDUE' names "
            "the states of a residue."
        )
    return dataclasses.replace(given, state=state, first=first, last=last, open=is_open, why=why)


def _chosen(rule: _Rule, system: System) -> np.ndarray:
    """Residues a rule is about."""
    start = np.searchsorted(system.atoms.residue, np.arange(len(system.residue_template)))
    fits = (system.residue_names == rule.name) | (system.given_names == rule.name)
    if rule.number is not None:
        fits &= system.atoms.resids[start] == rule.number
    if rule.chain is not None:
        fits &= (system.chain_letters == rule.chain) | (system.atoms.segids[start] == rule.chain)
    return np.flatnonzero(fits)


def _near(rule: _Rule, system: System) -> str:
    """Name residues that may have been meant."""
    alike = np.flatnonzero(system.residue_names == rule.name)
    if len(alike):
        return "; the system has " + ", ".join(describe(system, r) for r in alike[:10].tolist())
    names = np.unique(system.residue_names).tolist()
    near = difflib.get_close_matches(rule.name, names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"; the system has {' '.join(names[:30])}{hint}"


def _index(states: dict[str, State], name: str) -> int | None:
    """Place of a state, by its name or another name it has; None if there is none."""
    found = [k for k, (own, s) in enumerate(states.items()) if name in (own, *s.names)]
    return found[0] if found else None


def _misfit(
    name: str, residue: int, tables: tuple[dict[str, State], ...], given: Protonation
) -> str:
    """Say why a residue cannot be in a state; empty if it can."""
    own, at_start, at_end = tables
    at_start = at_start if given.first[residue] != _NONE else {}
    at_end = at_end if given.last[residue] != _NONE else {}
    known = [*own, *at_start, *at_end]
    if all(_index(table, name) is None for table in (own, at_start, at_end)):
        return f"has no state '{name}'; expected {' '.join(known) or 'nothing: it has no states'}"
    k = _index(own, name)
    if k is not None and (list(own.values())[k].bridged == "yes") != given.bridged[residue]:
        joined = "is" if given.bridged[residue] else "is not"
        return f"cannot be {name}: it {joined} joined by a bridge"
    return ""
