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


@kept_exact
def number(codes, values, level, component, count):
    """Levels (R, n) of rows by number, -1 where they have no weight; how many.

    Of R components by codes and values (R, n), one after the other, without those that no row is
    in.  `component` (q,) of a level; `count` (codes,) is memory.
    """
    q = 0
    for r in range(len(codes)):
        for code in range(len(count)):
            count[code] = -1
        for row in range(codes.shape[1]):
            if values[r, row] != 0.0:
                count[codes[r, row]] = 0
        for code in range(len(count)):
            if count[code] == 0:
                count[code], component[q] = q, r
                q += 1
        for row in range(codes.shape[1]):
            level[r, row] = count[codes[r, row]] if values[r, row] != 0.0 else -1
    return q


@called_exact
def _first(parent, i):
    """The first donor of those that i belongs with."""
    while parent[i] != i:
        i = parent[i]
    return i


@kept_exact
def connect(level, donor, parent, head, of_donor, of_level):
    """Blocks of donors (N,) and of levels (q,) that levels (R, n) of rows join; how many there are.

    In the order of their first donors; `parent` (N,) and `head` (q,) are memory.
    """
    for i in range(len(parent)):
        parent[i] = i
    for own in range(len(head)):
        head[own] = -1
    for r in range(len(level)):
        for row in range(len(donor)):
            own = level[r, row]
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
    for own in range(len(head)):
        of_level[own] = of_donor[head[own]]
    return blocks


@kept_exact
def touched(level, donor, levels):
    """Levels of donors (N, most), of rows (R, n), in order and -1 beyond; the largest number."""
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
    return most


@kept_exact
def weigh(level, values, donor, levels, Z):
    """Add weights (R, n) of rows to Z (n, d), at the levels (N, d) of their donors."""
    for r in range(len(level)):
        for row in range(len(donor)):
            if level[r, row] >= 0:
                column = 0
                while levels[donor[row], column] != level[r, row]:
                    column += 1
                Z[row, column] += values[r, row]
