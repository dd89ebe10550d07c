"""What each independent unit contributes to the information about the fixed effects.

With K = (X'SX)^-1 = root root', a unit's share of X'SX is G = root'(X_u'S_u X_u)root = T T' with
T'T = diag(l).  Whatever is asked of I - G, its inverse for the estimate without the unit, its
inverse root for an unbiased covariance, is I + T f(l) T': T has as many columns as the unit has
rows, at most p.  Where l = 1 a fixed effect rests on the unit alone.
"""

from __future__ import annotations

import math

from .kernels import empty
from .lanes import aligned, load, spread, store
from .model import LANES
from .options import called, kept
from .symmetric import rotate_lanes

_ALONE = 1e-9  # 1 - leverage where a fixed effect rests on one unit
_NOTHING = 1e-15  # diagonal of what is left of a matrix, in units of its trace, where it is done


@kept
def leverages(unit_gram, root, share, axes):
    """l and T of every unit: B turned by the axes of B'B.

    B = root'C, where C is a Cholesky factor of X_u'S_u X_u with pivots.

    Parameters
    ----------
    unit_gram : (U, p, p); root : (p, p), upper triangular
    share : (T, k, LANES) out, l; axes : (T, p, k, LANES) out, T; zero where there is no unit
    """
    p, most, units = len(root), share.shape[1], len(unit_gram)
    G, C = empty((p, p)), empty((p, most))
    factors, B = aligned((p, most, LANES)), aligned((p, most, LANES))
    inner, rows = aligned((most, most, LANES)), aligned((most, most, LANES))
    for t in range(len(share)):
        first = t * LANES
        used = min(LANES, units - first)
        for a in range(most):
            for j in range(p):
                store(factors, (j, a), spread(0.0))
        for lane in range(used):
            for j in range(p):
                for k in range(p):
                    G[j, k] = unit_gram[first + lane, j, k]
            for a in range(_pivoted(G, C)):
                for j in range(p):
                    factors[j, a, lane] = C[j, a]
        for a in range(most):
            for j in range(p):
                s = spread(0.0)
                for i in range(j + 1):  # root is upper triangular
                    s += root[i, j] * load(factors, (i, a))
                store(B, (j, a), s)
            for b in range(a + 1):
                s = spread(0.0)
                for j in range(p):
                    s += load(B, (j, a)) * load(B, (j, b))
                store(inner, (a, b), s)
        rotate_lanes(inner, rows)
        for a in range(most):
            for j in range(p):
                s = spread(0.0)
                for b in range(most):
                    s += load(B, (j, b)) * load(rows, (a, b))
                store(axes, (t, j, a), s)
            for lane in range(LANES):
                size = max(inner[a, a, lane], 0.0)
                share[t, a, lane] = 1.0 if size > 1.0 - _ALONE else size


@called
def _pivoted(G, B):
    """Columns B with G = B B', by Cholesky's method with pivots; their number, G's rank."""
    p = len(G)
    whole = 0.0
    for j in range(p):
        whole += G[j, j]
    for a in range(B.shape[1]):
        pivot = 0
        for j in range(p):
            if G[j, j] > G[pivot, pivot]:
                pivot = j
        size = G[pivot, pivot] if p > 0 else 0.0
        if not size > _NOTHING * whole:
            return a
        scale = 1.0 / math.sqrt(size)
        for j in range(p):
            B[j, a] = G[pivot, j] * scale
        for j in range(p):
            for k in range(p):
                G[j, k] -= B[j, a] * B[k, a]
    return B.shape[1]
