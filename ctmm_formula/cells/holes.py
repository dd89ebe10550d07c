"""Which observed entries to hide, so that imputing them says how well the real holes are filled.

Pairs (donor, cell type) are missing together for all genes, and rare cell types more often than
others.  Hiding random entries asks for something easier: the other genes of the same pair give
them away.  Therefore whole pairs are hidden, in the patterns that occur.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..arguments import generator
from ..errors import CTMMError

DRAWS_PER_DONOR = 50
"""Copies tried before a mask is taken as it is: holes in few cell types cannot hide 10 %."""


def copied_holes(
    observed: np.ndarray, fraction: float = 0.1, rng: np.random.Generator | int | None = None
) -> np.ndarray:
    """Hide pairs by copying the holes of random donors onto other random donors.

    A copy is passed over that would leave a donor without any pair, or a cell type with less than
    half of its donors.

    Parameters
    ----------
    observed : array of bool, shape (N, C)
        Pairs seen.
    fraction : float, default 0.1
        Stop when this share of all N C pairs is hidden; fewer when copying cannot reach it.
    rng : Generator, seed, optional

    Returns
    -------
    ndarray of bool, shape (N, C)
        True for the observed pairs to hide.

    Raises
    ------
    CTMMError
        A fraction outside (0, 1).

    Examples
    --------
    >>> observed = np.ones((40, 3), bool)
    >>> observed[:4, 2] = False
    >>> hidden = copied_holes(observed, 0.1, rng=0)
    >>> hidden.sum(axis=0).tolist(), bool((hidden & ~observed).any())
    ([0, 0, 12], False)
    """
    if not 0.0 < fraction < 1.0:
        raise CTMMError(f"the fraction of pairs to hide must be between 0 and 1, got {fraction}")
    rng = generator(rng)
    N, C = observed.shape
    hidden = np.zeros((N, C), dtype=bool)
    sources = np.flatnonzero(~observed.all(axis=1) & observed.any(axis=1))
    if not len(sources):
        return hidden
    keep = np.ceil(observed.sum(axis=0) / 2)
    for _ in range(DRAWS_PER_DONOR * N):
        if hidden.sum() >= fraction * N * C:
            break
        to, source = rng.integers(N), rng.choice(sources)
        left = observed & ~hidden
        new = left[to] & ~observed[source]
        if new.any() and (left[to] & ~new).any() and (left.sum(axis=0) - new >= keep)[new].all():
            hidden[to] |= new
    return hidden


def split(
    observed: np.ndarray, folds: int, rng: np.random.Generator | int | None = None
) -> Iterator[np.ndarray]:
    """Masks that split the observed entries at random, each entry hidden in one of them.

    >>> masks = list(split(np.ones((4, 5), bool), 3, rng=0))
    >>> sum(masks).tolist() == np.ones((4, 5)).tolist(), [int(m.sum()) for m in masks]
    (True, [7, 7, 6])
    """
    rng = generator(rng)
    places = rng.permutation(np.flatnonzero(observed))
    for fold in range(folds):
        mask = np.zeros(observed.size, dtype=bool)
        mask[places[fold::folds]] = True
        yield mask.reshape(observed.shape)
