"""Eigenvalues of small symmetric matrices, compiled, and what is made of them."""

from __future__ import annotations

import math

from .kernels import empty
from .options import called, kept

_SWEEPS = 30  # most of these: each squares what is off the diagonal
_SMALL = 1e-30  # sum of squares off the diagonal, in units of that on it, where they are done


@called
def rotate(B, axes):
    """Eigenvalues of symmetric B on its diagonal, eigenvectors as rows, by Jacobi's rotations."""
    p = len(B)
    for j in range(p):
        for k in range(p):
            axes[j, k] = 1.0 if j == k else 0.0
    for _ in range(_SWEEPS):
        off, on = 0.0, 0.0
        for j in range(p):
            on += B[j, j] * B[j, j]
            for k in range(j):
                off += B[j, k] * B[j, k]
        if not off > _SMALL * on:
            return
        for j in range(p - 1):
            for k in range(j + 1, p):
                both = B[j, k]
                if both == 0.0:
                    continue
                h = 0.5 * (B[k, k] - B[j, j]) / both
                t = 1.0 / (abs(h) + math.sqrt(1.0 + h * h))
                if h < 0.0:
                    t = -t
                c = 1.0 / math.sqrt(1.0 + t * t)
                s = t * c
                first, second = B[j, j] - t * both, B[k, k] + t * both
                for i in range(p):
                    left, right = B[j, i], B[k, i]
                    B[j, i] = c * left - s * right
                    B[k, i] = s * left + c * right
                    left, right = axes[j, i], axes[k, i]
                    axes[j, i] = c * left - s * right
                    axes[k, i] = s * left + c * right
                for i in range(p):
                    B[i, j], B[i, k] = B[j, i], B[k, i]
                B[j, j], B[k, k] = first, second
                B[j, k] = B[k, j] = 0.0


@kept
def squared_distance(S, d):
    """d' S^-1 d of symmetric S (q, q), and its smallest eigenvalue."""
    q = len(S)
    B, axes = empty((q, q)), empty((q, q))
    for j in range(q):
        for k in range(q):
            B[j, k] = 0.5 * (S[j, k] + S[k, j])
    rotate(B, axes)
    out, least = 0.0, math.inf
    for j in range(q):
        along = 0.0
        for k in range(q):
            along += axes[j, k] * d[k]
        out += along * along / B[j, j]
        least = min(least, B[j, j])
    return out, least
