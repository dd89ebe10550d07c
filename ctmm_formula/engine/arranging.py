"""How rows, donors and levels lie in the arrays of a model, as loops.

Genes that miss pairs of their own have as many designs as there are genes.
"""

from __future__ import annotations

from .options import called_exact, kept_exact


@kept_exact
def places(row_ptr, m, lanes, out):
    """Where every row (n,) lies in an array (tiles, m, lanes), of donors from row_ptr (N + 1,)."""
    for i in range(len(row_ptr) - 1):
        first = (i // lanes * m - row_ptr[i]) * lanes + i % lanes
        for row in range(row_ptr[i], row_ptr[i + 1]):
            out[row] = first + row * lanes


@kept_exact
def put(values, place, out):
    """Values (n, k) at the places of their rows in `out` (tiles, k, m, lanes)."""
    m, lanes = out.shape[2], out.shape[3]
    for row in range(len(values)):
        t = place[row] // (m * lanes)
        inside = place[row] - t * m * lanes
        a = inside // lanes
        for j in range(values.shape[1]):
            out[t, j, a, inside - a * lanes] = values[row, j]


@called_exact
def _first(parent, i):
    """The first donor of those that i belongs with."""
    while parent[i] != i:
        i = parent[i]
    return i


@kept_exact
def connect(donors, levels, parent, head, of_donor, of_level):
    """Blocks of donors (N,) and of levels (q,) that entries (e,) join; how many there are.

    In the order of their first donors; `parent` (N,) and `head` (q,) are memory.
    """
    for i in range(len(parent)):
        parent[i] = i
    for level in range(len(head)):
        head[level] = -1
    for e in range(len(donors)):
        one = _first(parent, donors[e])
        other = one if head[levels[e]] < 0 else _first(parent, head[levels[e]])
        first = min(one, other)
        parent[one] = parent[other] = parent[donors[e]] = head[levels[e]] = first
    blocks = 0
    for i in range(len(parent)):
        first = _first(parent, i)
        of_donor[i] = of_donor[first] if first < i else blocks
        blocks += first == i
    for level in range(len(head)):
        of_level[level] = of_donor[head[level]]
    return blocks


@kept_exact
def touched(donor, level, levels):
    """Levels of donors (N, most), of entries (e,), in order and -1 beyond; the largest number."""
    most = 0
    for e in range(len(donor)):
        own, at = levels[donor[e]], 0
        while own[at] >= 0 and own[at] < level[e]:
            at += 1
        new = level[e]
        while own[at] != new and new >= 0:  # all that follow move up by one
            own[at], new = new, own[at]
            at += 1
        most = max(most, at)
    return most


@kept_exact
def weigh(donor, level, row, weight, levels, Z):
    """Add weights of entries (e,) to Z (n, d), at the levels (N, d) of their donors."""
    for e in range(len(row)):
        column = 0
        while levels[donor[e], column] != level[e]:
            column += 1
        Z[row[e], column] += weight[e]
