"""Grouping what is alike, so that work is done once for each kind."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def alike(*columns: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Yield every combination of values that occurs, with the rows that have it, ascending.

    Parameters
    ----------
    *columns : ndarray, shape=(n,), of whole numbers or bool

    Examples
    --------
    >>> [(values, rows.tolist()) for values, rows in alike(np.array([1, 0, 1]), np.ones(3, bool))]
    [((0, 1), [1]), ((1, 1), [0, 2])]
    """
    if not len(columns[0]):
        return
    code = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        column = column.astype(np.int64)
        low = column.min()
        code = code * (column.max() - low + 1) + (column - low)
    order = np.argsort(code, kind="stable")
    bounds = np.flatnonzero(np.diff(code[order], prepend=code[order[0]] - 1))
    for rows in np.split(order, bounds[1:]):
        yield tuple(int(column[rows[0]]) for column in columns), rows
