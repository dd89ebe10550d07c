"""What each independent unit contributes to the information about the fixed effects.

With K = (X'SX)^-1 = root root', a unit's share of X'SX is G = root'(X_u'S_u X_u)root = T T' with
T'T = diag(l).  Whatever is asked of I - G, its inverse for the estimate without the unit, its
inverse root for an unbiased covariance, is I + T f(l) T': T has as many columns as the unit has
rows, at most p.  Where l = 1 a fixed effect rests on the unit alone.
"""

from __future__ import annotations

import math

from .kernels import empty
from .lanes import spread, store
from .options import called, kept
from .symmetric import rotate

_ALONE = 1e-9  # 1 - leverage where a fixed effect rests on one unit
_NOTHING = 1e-15  # diagonal of what is left of a matrix, in units of its trace, where it is done


@kept
def leverages(unit_gram, root, share, axes):
    """l and T of every unit: B turned by the axes of B'B.

    B = root'C, where C is a Cholesky factor of X_u'S_u X_u with pivots.

    Parameters
    ----------
    unit_gram : (U, p, p); root : (p, p)
    share : (U, k) out, l; axes : (U, p, k) out, T
    """
    p, most = len(root), share.shape[1]
    G, C, B = empty((p, p)), empty((p, most)), empty((p, most))
    inner, rows = empty((most, most)), empty((most, most))
    for u in range(len(unit_gram)):
        for j in range(p):
            for k in range(p):
                G[j, k] = unit_gram[u, j, k]
        rank = _pivoted(G, C)
        for j in range(p):
            for a in range(rank):
                s = 0.0
                for i in range(p):
                    s += root[i, j] * C[i, a]
                B[j, a] = s
        for a in range(most):
            for b in range(most):
                s = 0.0
                if a < rank and b < rank:
                    for j in range(p):
                        s += B[j, a] * B[j, b]
                inner[a, b] = s
        rotate(inner, rows)
        for a in range(most):
            size = max(inner[a, a], 0.0)
            share[u, a] = 1.0 if size > 1.0 - _ALONE else size
            for j in range(p):
                s = 0.0
                for b in range(rank):
                    s += B[j, b] * rows[a, b]
                axes[u, j, a] = s


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


@called
def without(share, turned, root, K):
    """K (p, p, LANES) = (X'SX - X_u'S_u X_u)^-1 of some units; of the whole where there are none.

    It is root root' + turned (1 - l)^-1 turned' with turned = root T, generalised where l = 1.
    """
    p = len(root)
    for j in range(p):
        for k in range(p):
            s = 0.0
            for i in range(p):
                s += root[j, i] * root[k, i]
            store(K, (j, k), spread(s))
    for lane in range(len(share)):
        for i in range(share.shape[1]):
            left = 1.0 - share[lane, i]
            scale = 1.0 / left if left > 0.0 else -1.0
            for j in range(p):
                f = scale * turned[lane, j, i]
                for k in range(p):
                    K[j, k, lane] += f * turned[lane, k, i]
