"""How the noise of counts adds to the variances of scores, compiled.

The noise of counts moves with what it is the noise of: with the donor's effect alpha_i, which is
what a form squares, and with the error of the pair's own mean, which is what makes a form large.
So products of what was measured do not estimate the variance of a form: where a gene is low the
form and they come of the same few counts.  Pooled over the pairs of a cell type they do not, and
the variance between cells, s_c^2, moves with the mean by the slope of n nu on y over pairs:

    nu_ic = w_ic (1 + k_c alpha_i),   w_ic = s_c^2 / n_ic,   k_c = slope / s_c^2

(of counts of which a cell has none or one it is 1 over the mean; next to nothing of normal cells).
Donors' effects are taken for normal on the logarithm, as folds are, so that with c = k_c^2 sigma^2

    E nu_ic^2 = w_ic^2 (1 + c),     E nu_ia nu_ib = w_ia w_ib (1 + k_a k_b sigma^2),
    E alpha_i^2 nu_ic = sigma^2 w_ic (1 + 3 c + c^2)

Cells of some donors may vary more for other reasons, which only the pair itself shows.  k_c^2 w_ic
is the part of the variance of nu^ / nu that its own mean brings; as products of two pairs count
what is measured by rho_a rho_b, rho = 1 / (1 + k^2 w), and what is pooled by the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..engine.kernels import empty, zeros
from ..engine.model import LANES
from ..engine.options import called, kept, kept_exact


class CountedNoise(NamedTuple):
    """Noise of rows, (n,) each.

    measured nu^; pooled w; slope k; own rho; square: that of the noise, times n / (n - 1), half
    the variance of y^2 - nu^; with_effect: E alpha^2 nu less sigma^2 w.
    """

    measured: np.ndarray
    pooled: np.ndarray
    slope: np.ndarray
    own: np.ndarray
    square: np.ndarray
    with_effect: np.ndarray


@kept_exact
def counted_noise(code, groups, y, nu, nu2, weight, n, shared):
    """:class:`CountedNoise` of rows (n,) by their group, of which there are `groups`.

    Their mean y, noise nu, unbiased square nu2 of it (NaN where there is none), weight (cells, or
    ones where these are not known), number of cells n (infinite there), and variance between
    donors `shared`.

    The square of k is without the square of its error; that of s^2 is the mean of the products of
    different pairs.
    """
    size, total, squares = zeros(groups), zeros(groups), zeros(groups)
    cells, centre = zeros(groups), zeros(groups)
    for a in range(len(code)):
        c, between = code[a], weight[a] * nu[a]
        size[c] += 1.0
        total[c] += between
        squares[c] += between * between
        cells[c] += weight[a]
        centre[c] += weight[a] * y[a]
    along, spread, error = zeros(groups), zeros(groups), zeros(groups)
    for a in range(len(code)):
        c = code[a]
        r = weight[a] * (y[a] - centre[c] / cells[c])
        along[c] += r * (weight[a] * nu[a] - total[c] / size[c])
        spread[c] += r * r / weight[a]
    for a in range(len(code)):
        c = code[a]
        if spread[c] > 0.0:
            r = y[a] - centre[c] / cells[c]
            rest = weight[a] * nu[a] - total[c] / size[c] - along[c] / spread[c] * r
            error[c] += (weight[a] * r * rest / spread[c]) ** 2
    out = empty((6, len(code)))
    for a in range(len(code)):
        c = code[a]
        mean, slope, square, product = total[c] / size[c], 0.0, 0.0, 0.0
        if mean > 0.0 and spread[c] > 0.0 and size[c] > 1.0:
            slope = along[c] / spread[c] / mean
            square = slope * slope - error[c] / mean**2
            product = (total[c] ** 2 - squares[c]) / (size[c] * (size[c] - 1.0))
        w, moved = mean / weight[a], square * shared
        own = 1.0 / (1.0 + max(square, 0.0) * w)
        pooled = product / weight[a] ** 2 * (1.0 + moved)
        if n[a] > 1.0:
            part = own * own if np.isfinite(nu2[a]) else 0.0
            known = nu2[a] if np.isfinite(nu2[a]) else 0.0
            out[4, a] = (part * known + (1.0 - part) * pooled) * (1.0 + 1.0 / (n[a] - 1.0))
        else:
            out[4, a] = nu[a] * nu[a]
        out[0, a], out[1, a], out[2, a], out[3, a] = nu[a], w, slope, own
        out[5, a] = shared * w * moved * (3.0 + moved)
    return CountedNoise(out[0], out[1], out[2], out[3], out[4], out[5])


@called
def _between(solved, at, KX, inner, left):
    """With P = S - S B K B'S, K of a block's levels and the fixed effects; P Z = S B `left`."""
    q, p = KX.shape
    G, GX = solved.G[at], solved.GX[at]
    for k in range(q):
        for r in range(p):
            KX[k, r] = 0.0
            for s in range(q):
                KX[k, r] += solved.K[at, k, s] * GX[s, r]
    for r in range(p):
        for s in range(p):
            inner[q + r, q + s] = solved.inverse[r, s]
        for k in range(q):
            total = 0.0
            for s in range(p):
                total += solved.inverse[r, s] * KX[k, s]
            inner[q + r, k] = inner[k, q + r] = -total
    for k in range(q):
        for r in range(q):
            inner[k, r] = solved.K[at, k, r]
            for s in range(p):
                inner[k, r] -= KX[k, s] * inner[q + s, r]
    for k in range(q + p):
        for r in range(q):
            left[k, r] = 1.0 if k == r else 0.0
            for s in range(q):
                left[k, r] -= inner[k, s] * G[s, r]
            for s in range(p):
                left[k, r] -= inner[k, q + s] * GX[r, s]


@kept
def moved_variances(layout, found, solved, a, weights, noise, shared):
    """What the variances of the forms of the types and of their sum have beyond products of nu^.

    Of pairs of a donor, whose part of the form is B:

        2 sum_{a != b} B_ab^2 (E nu_a nu_b - nu^_a nu^_b)
        + 4 sum_b (sum_a B_ab h_a)^2 (E alpha^2 nu_b - sigma^2 w_b),

    h the load of the donor's effect, (C + 1,).  In place of sum_j P_ij Delta_j P_ji, half of
    P_ii Delta_i S_i and its transpose, which is the same where donors are alike; levels that the
    donor has not are left out.
    """
    C = len(weights)
    q, (N, d), b = layout.component.shape[1], layout.slot.shape, layout.design.shape[1] - C - 1
    p = b - d
    most = 1
    for i in range(N):
        most = max(most, layout.ptr[i + 1] - layout.ptr[i])
    out, inner, left = zeros(C + 1), empty((q + p, q + p)), empty((q + p, q))
    KX, near, right = empty((q, p)), zeros((b, b)), zeros(b)
    U, SH, Z = empty((C + 1, most)), empty((C + 1, most)), empty((d, most))
    own, whole, more = empty((most, most)), empty((most, most)), empty((most, most))
    load, row, before = empty(most), np.empty(b, dtype=np.int64), -1
    for i in range(N):
        at, start = layout.block[i], layout.ptr[i]
        m, t, lane = layout.ptr[i + 1] - start, i // LANES, i % LANES
        if at != before:
            _between(solved, at, KX, inner, left)
            before = at
        for k in range(b):
            row[k] = layout.slot[i, k] if k < d else q + k - d
        for k in range(b):
            for r in range(b):
                near[k, r] = inner[row[k], row[r]] if row[k] >= 0 and row[r] >= 0 else 0.0
        for c in range(C + 1):
            for k in range(b):
                total = 0.0
                for r in range(d):
                    total += near[k, r] * found.HB[i, c, d + r]
                for r in range(d, b):
                    total += near[k, r] * found.HB[i, c, d + p + r]
                right[k] = total
            for s in range(m):
                total = SH[c, s] = found.columns[t, c, s, lane]
                for k in range(b):
                    total -= found.columns[t, C + 1 + k, s, lane] * right[k]
                U[c, s] = total
        for k in range(d):
            for s in range(m):
                Z[k, s] = 0.0
                for r in range(b):
                    if row[k] >= 0 and row[r] >= 0:
                        Z[k, s] += found.columns[t, C + 1 + r, s, lane] * left[row[r], row[k]]
        for s in range(m):
            load[s], u = layout.design[t, C, s, lane], start + s
            for r in range(m):
                v = start + r
                moved = 1.0 + shared * noise.slope[u] * noise.slope[v]
                product = noise.pooled[u] * noise.pooled[v] * moved
                product -= noise.measured[u] * noise.measured[v]
                more[s, r] = 2.0 * (1.0 - noise.own[u] * noise.own[v]) * product
                own[s, r] = 0.5 * (U[C, s] * SH[C, r] + SH[C, s] * U[C, r])
                whole[s, r] = 0.0
            more[s, s] = 0.0
        for c in range(C + 1):
            for s in range(m):
                moved = shift = 0.0
                for r in range(m):
                    if c < C:
                        one = 0.5 * (U[c, s] * SH[c, r] + SH[c, s] * U[c, r]) - a[0, c] * own[s, r]
                        for k in range(d):
                            if row[k] >= 0:
                                one -= a[1 + layout.component[at, row[k]], c] * Z[k, s] * Z[k, r]
                        whole[s, r] += weights[c] * one
                    else:
                        one = whole[s, r]
                    shift += one * load[r]
                    moved += one * one * more[s, r]
                out[c] += moved + 4.0 * shift * shift * noise.with_effect[start + s]
    return out
