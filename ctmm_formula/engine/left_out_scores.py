"""Scores without each group of donors, from quantities of the full fit.

To leave out the rows I of a group of donors is to give each of them a mean of its own.  So at the
same theta, with P of the full data (see :mod:`ctmm_formula.engine.kernels`), v = P y and
Sigma_f the derivatives of Sigma,

    P(-I)               = P - P_:I P_II^-1 P_I:
    P(-I) y             = v - P_:I e,   e = P_II^-1 v_I
    tr(P(-I) Sigma_f)   = tr(P Sigma_f) - tr(P_II^-1 (P Sigma_f P)_II)
    b(-I)               = b - B_:I e,   B = (X'SX)^-1 X'S,   S = Sigma^-1
    db(-I) / dtheta_f   = -B(-I) Sigma_f P(-I) y,   B(-I) = B - B_:I P_II^-1 P_I:

(ML has S in place of P in the traces.)  P = D - Phi Omega Phi' with D = blockdiag(Sigma_i^-1),
Phi = [D Z, U] and Omega = blockdiag(K, I), and a row touches few levels: the cost of all groups is
linear in donors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .model import Model
from .precision import Precision, level_matrix

_AT_ONCE = 64
_ALIASED = 1e-9  # smallest eigenvalue of P_II, next to D_II


class Scores(NamedTuple):
    """Score at one theta without each of G groups of donors.

    grad (G, K); beta (G, p) fixed effects of the orthonormal X at this theta and slope (G, K, p)
    their derivatives; found (G,): the others determine the fixed effects.
    """

    grad: np.ndarray
    beta: np.ndarray
    slope: np.ndarray
    found: np.ndarray

    def part(self, which: np.ndarray) -> Scores:
        """Of some of the groups."""
        return Scores(*(values[which] for values in self))


class Groups(NamedTuple):
    """Groups of donors to leave out, as rows of padded matrices; made by :func:`grouped`.

    rows, real (G, a) rows of a group; donors, there (G, j) its donors among those in use; number
    (G, a) the donor of a row; columns, meant (G, k) columns of Phi that its rows have.
    """

    rows: np.ndarray
    real: np.ndarray
    donors: np.ndarray
    there: np.ndarray
    number: np.ndarray
    columns: np.ndarray
    meant: np.ndarray

    def parts(self) -> Iterator[Groups]:
        """Some at a time, whose matrices stay in the cache of a processor."""
        for start in range(0, len(self.rows), _AT_ONCE):
            yield Groups(*(values[start : start + _AT_ONCE] for values in self))


def grouped(model: Model, groups: Sequence[np.ndarray]) -> Groups:
    """Groups of donors (kernel numbers) of a model; the same for all responses."""
    ptr, used = model.row_ptr, np.flatnonzero(model.active)
    rows, real = _padded(
        [np.concatenate([np.arange(ptr[i], ptr[i + 1]) for i in group]) for group in groups]
    )
    donors, there = _padded([np.searchsorted(used, group) for group in groups])
    number = np.where(real, np.searchsorted(used, model.row_donor[rows]), -1)
    Z = level_matrix(model)[0]
    levels = ((Z[rows] != 0.0) & real[..., None]).any(axis=1)
    fixed = np.arange(Z.shape[1], Z.shape[1] + model.X.shape[1])
    columns, meant = _padded([np.append(np.flatnonzero(row), fixed) for row in levels])
    return Groups(rows, real, donors, there, number, columns, meant)


class _Sums(NamedTuple):
    """What all groups share, for F = R + Kr factors f.

    DW (n, R) columns D w, WP (N, R, q + p) w' Phi and tau (N, R) w'v of every donor; inside
    (q + p, q + p, F), through (q + p, F), across (q + p, F, p): parts of P Sigma_f P, P Sigma_f v,
    U' Sigma_f P that go through Phi; moment (F, p) U' Sigma_f v; square (F,) v' Sigma_f v; trace
    (F,) tr(P Sigma_f).
    """

    DW: np.ndarray
    WP: np.ndarray
    tau: np.ndarray
    inside: np.ndarray
    through: np.ndarray
    across: np.ndarray
    moment: np.ndarray
    square: np.ndarray
    trace: np.ndarray


def left_out_scores(model: Model, theta: np.ndarray, groups: Groups, reml: bool) -> Scores:
    """Score and fixed effects at `theta` (K,) without each group of donors."""
    pre = Precision(model, theta)
    sums = _sums(pre, reml)
    found = [_scores(pre, sums, part, reml) for part in groups.parts()]
    return Scores(*(np.concatenate(values) for values in zip(*found, strict=True)))


def _scores(pre: Precision, sums: _Sums, groups: Groups, reml: bool) -> Scores:
    """Those of some groups."""
    model, q, p, R = pre.model, pre.Z.shape[1], pre.X.shape[1], sums.DW.shape[1]
    rows, real, donors, there, number, columns, meant = groups
    (G, a), j = rows.shape, donors.shape[1]
    own = (donors[:, :, None] == number[:, None, :]) & there[:, :, None]
    pair = columns[:, :, None], columns[:, None, :]

    def of_factors(values: np.ndarray) -> np.ndarray:
        """Rows of factor and donor (G, R j, a) -> (G, a, R)."""
        return values.reshape(G, R, j, a).sum(axis=2).swapaxes(1, 2)

    def traces(inverse: np.ndarray, phi: np.ndarray, z: np.ndarray) -> np.ndarray:
        """tr(P_II^-1 (P Sigma_f P)_II), (G, F)."""
        low = (phi.swapaxes(1, 2) @ inverse @ phi).reshape(G, 1, -1)
        out = (low @ inside.reshape(G, low.shape[2], -1))[:, 0]
        out[:, :R] += (((dw - 2.0 * z) @ inverse) * dw).reshape(G, R, -1).sum(axis=2)
        return out

    phi = pre.phi[rows[:, :, None], columns[:, None, :]]
    phi *= real[..., None] & meant[:, None, :]
    omega, inside = pre.omega[pair], sums.inside[pair]  # (G, k, k), (G, k, k, F)
    U = np.where(real[..., None], pre.U[rows], 0.0)
    D = _inverses(pre, rows, number)
    dw = (sums.DW[rows].swapaxes(1, 2)[:, :, None, :] * own[:, None]).reshape(G, R * j, a)
    wp = sums.WP[donors[:, None, :, None], np.arange(R)[:, None, None], columns[:, None, None, :]]
    wp = (wp * (there[..., None] & meant[:, None])[:, None]).reshape(G, R * j, -1)
    low = omega @ phi.swapaxes(1, 2)
    z = wp @ low
    inverse, found = _inverted(D - phi @ low, D)
    e = inverse @ np.where(real, pre.Py[rows], 0.0)[..., None]

    # P_I: Sigma_f v and (P Sigma_f P)_II e, columns (G, a, F)
    phi_e, dw_e, z_e = phi.swapaxes(1, 2) @ e, dw @ e, z @ e
    tau = (sums.tau[donors] * there[..., None]).swapaxes(1, 2).reshape(G, R * j, 1)
    first = -(phi @ sums.through[columns])
    second = phi @ (phi_e[:, None].swapaxes(2, 3) @ inside)[:, :, 0]
    first[..., :R] += of_factors(dw * tau)
    second[..., :R] += of_factors(dw * (dw_e - z_e) - z * dw_e)
    if reml:
        trace = traces(inverse, phi, z)
    else:
        levels = columns < q
        phi = phi * levels[:, None]
        low = omega @ phi.swapaxes(1, 2)
        z = (wp * levels[:, None]) @ low
        S_inverse, _ = _inverted(D - phi @ low, D)
        trace = traces(S_inverse, phi, z)
    grad = sums.square - sums.trace + trace
    grad += (e.swapaxes(1, 2) @ (second - 2.0 * first))[:, 0]

    # b and its derivatives, in terms of U: Q = L U with L = Q'U
    root = np.linalg.inv(pre.X.T @ pre.U).T
    y = np.where(model.active_rows, model.y, 0.0)
    Ut = U.swapaxes(1, 2)
    beta = (pre.U.T @ y - (Ut @ e)[..., 0]) @ root.T
    slope = (Ut @ inverse @ (first - second)).swapaxes(1, 2) - sums.moment
    across = sums.across.reshape(-1, len(sums.moment) * p)[columns]
    slope -= (phi_e.swapaxes(1, 2) @ across).reshape(slope.shape)
    U_w = sums.WP[donors][..., q:].swapaxes(1, 2)  # (G, R, j, p)
    slope[:, :R] += (U_w * dw_e.reshape(G, R, j, 1)).sum(axis=2)
    return Scores(0.5 * grad @ model.S.T, beta, model.S @ (slope @ root.T), found)


def _sums(pre: Precision, reml: bool) -> _Sums:
    model, phi, omega = pre.model, pre.phi, pre.omega
    q, v = pre.Z.shape[1], pre.Py
    W = np.where(pre.mask[..., None], model.W[pre.rows], 0.0).swapaxes(1, 2)  # (N, R, m)
    tau = (W @ v[pre.rows][..., None])[..., 0]
    local = W @ pre.inverse
    DW = np.zeros((len(v), W.shape[1]))
    DW[pre.rows[pre.mask]] = local.swapaxes(1, 2)[pre.mask]
    WP = W @ phi[pre.rows]
    own = [pre.level_component == k for k in range(len(model.random))]
    Zv, PZ = pre.Z.T @ v, phi.T @ pre.Z  # PZ: Phi'Z
    T = [np.eye(len(omega), q)[:, mine] - omega @ PZ[:, mine] for mine in own]  # P Z = Phi T
    by_factor = np.ascontiguousarray(WP.swapaxes(0, 1))
    C = [part.T @ part for part in by_factor]  # Phi' Sigma_f Phi
    used = slice(None) if reml else slice(0, q)
    low = omega[used, used]
    levels = [part[used].T @ low @ part[used] for part in (PZ[:, mine] for mine in own)]
    through_w = [part.T @ t for part, t in zip(by_factor, tau.T, strict=True)]
    return _Sums(
        DW, WP, tau,
        inside=np.stack([omega @ c @ omega for c in C] + [t @ t.T for t in T], axis=-1),
        through=np.stack(
            [omega @ t for t in through_w]
            + [-t @ Zv[mine] for t, mine in zip(T, own, strict=True)], axis=-1,
        ),
        across=np.stack(
            [omega @ c[:, q:] for c in C]
            + [-t @ PZ[q:, mine].T for t, mine in zip(T, own, strict=True)], axis=1,
        ),
        moment=np.array([t[q:] for t in through_w] + [PZ[q:, mine] @ Zv[mine] for mine in own]),
        square=np.array([*np.square(tau).sum(axis=0), *(np.square(Zv[m]).sum() for m in own)]),
        trace=np.array(
            [total - np.sum(low * c[used, used])
             for total, c in zip((W * local).sum(axis=(0, 2)), C, strict=True)]
            + [np.trace(PZ[:q][np.ix_(m, m)]) - np.trace(part)
               for m, part in zip(own, levels, strict=True)]
        ),
    )  # fmt: skip


def _inverted(P: np.ndarray, D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverses (G, a, a), and which exist: not where the fixed effects rest on the group."""
    size = np.sqrt(np.diagonal(D, axis1=1, axis2=2))
    smallest = np.linalg.eigvalsh(P / size[:, :, None] / size[:, None, :])[:, 0]
    found = smallest > _ALIASED
    return np.linalg.inv(np.where(found[:, None, None], P, D)), found


def _inverses(pre: Precision, rows: np.ndarray, number: np.ndarray) -> np.ndarray:
    """blockdiag(Sigma_i^-1) of the rows of each group, (G, a, a); the identity where padded."""
    donor = np.maximum(number, 0)
    place = rows - pre.rows[donor, 0]
    same = (number[:, :, None] == number[:, None, :]) & (number >= 0)[:, :, None]
    part = pre.inverse[
        donor[:, :, None], np.where(same, place[:, :, None], 0), np.where(same, place[:, None], 0)
    ]
    return np.where(same, part, 0.0) + (number < 0)[:, :, None] * np.eye(rows.shape[1])


def _padded(lists: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Lists of numbers as rows of a matrix, padded by zeros; which entries are real."""
    size = np.array([len(part) for part in lists])
    real = np.arange(size.max(initial=0)) < size[:, None]
    out = np.zeros(real.shape, dtype=np.int64)
    out[real] = np.concatenate(lists)
    return out, real
