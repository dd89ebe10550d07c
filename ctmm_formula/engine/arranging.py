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
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@kept_exact
def connect(codes, values, donor, level, component, of_level, of_donor, memory):
    """Levels (R, n) of rows of R random components, by codes and weights (R, n); how many, q.

    By number, one component after the other, without levels that no row is in; -1 where a row has
    no weight.  `component` and `of_level` (q or more,), `of_donor` (N,): the component of a level,
    and blocks of levels and donors, joined by the levels they share, in the order of their first
    donors.  Of `memory` is as much as of codes, of levels and of donors.
    """
    number, head, parent = memory
    for own in range(len(head)):
        head[own] = -1
    for i in range(len(parent)):
        parent[i] = i
    q = 0
    for r in range(len(codes)):
        for code in range(len(number)):
            number[code] = -1
        for row in range(len(donor)):
            if values[r, row] != 0.0:
                number[codes[r, row]] = 0
        for code in range(len(number)):
            if number[code] == 0:
                number[code], component[q] = q, r
                q += 1
        for row in range(len(donor)):
            level[r, row] = own = number[codes[r, row]] if values[r, row] != 0.0 else -1
            if own < 0:
                continue
            one = _first(parent, donor[row])
            other = one if head[own] < 0 else _first(parent, head[own])
            parent[one] = parent[other] = head[own] = min(one, other)
    blocks = 0
    for i in range(len(parent)):
        first = _first(parent, i)
        of_donor[i] = of_donor[first] if first < i else blocks
        blocks += first == i
    for own in range(q):
        of_level[own] = of_donor[head[own]]
    return q


@kept_exact
def touched(level, values, donor, levels, Z):
    """Levels of donors (N, d or more) in order, and -1 beyond, and weights Z (n, d or more); d.

    By levels and weights (R, n) of rows.
    """
    most = 0
    for r in range(len(level)):
        for row in range(len(donor)):
            new, at, own = level[r, row], 0, levels[donor[row]]
            while own[at] >= 0 and own[at] < new:
                at += 1
            while new >= 0 and own[at] != new:  # all that follow move up by one
                own[at], new = new, own[at]
                at += 1
            most = max(most, at)
    for r in range(len(level)):
        for row in range(len(donor)):
            if level[r, row] >= 0:
                column = 0
                while levels[donor[row], column] != level[r, row]:
                    column += 1
                Z[row, column] += values[r, row]
    return most
