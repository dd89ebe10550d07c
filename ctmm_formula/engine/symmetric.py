"""Eigenvalues of small symmetric matrices, compiled, and what is made of them."""

from __future__ import annotations

import math

from .kernels import empty
from .lanes import aligned, load, root, signed, spread, store
from .model import LANES
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


@called
def rotate_lanes(B, axes):
    """The same of LANES matrices, B and axes (p, p, LANES): all make the same rotations.

    B is given by its lower triangle.
    """
    p = len(B)
    for j in range(p):
        for k in range(p):
            store(axes, (j, k), spread(1.0 if j == k else 0.0))
    size = aligned((2, LANES))
    for _ in range(_SWEEPS if p > 1 else 0):
        off, on = spread(0.0), spread(0.0)
        for j in range(p):
            on += load(B, (j, j)) * load(B, (j, j))
            for k in range(j):
                off += load(B, (j, k)) * load(B, (j, k))
        store(size, 0, off)
        store(size, 1, on)
        done = True
        for lane in range(LANES):
            done = done and not size[0, lane] > _SMALL * size[1, lane]
        if done:
            return
        for j in range(p - 1):
            for k in range(j + 1, p):
                both = load(B, (k, j))
                gap = load(B, (k, k)) - load(B, (j, j))
                way = root(gap * gap + 4.0 * both * both) + signed(gap, spread(1.0)) + 1e-300
                t = signed(2.0 * both / way, gap) * signed(spread(1.0), both)
                c = 1.0 / root(1.0 + t * t)
                s = t * c
                first, second = load(B, (j, j)) - t * both, load(B, (k, k)) + t * both
                for i in range(p):
                    if i not in (j, k):
                        up, low = (max(j, i), min(j, i)), (max(k, i), min(k, i))
                        left, right = load(B, up), load(B, low)
                        store(B, up, c * left - s * right)
                        store(B, low, s * left + c * right)
                    left, right = load(axes, (j, i)), load(axes, (k, i))
                    store(axes, (j, i), c * left - s * right)
                    store(axes, (k, i), s * left + c * right)
                store(B, (j, j), first)
                store(B, (k, k), second)
                store(B, (k, j), spread(0.0))


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
