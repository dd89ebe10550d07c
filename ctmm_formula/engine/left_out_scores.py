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

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .model import Model
from .precision import Precision, level_matrix

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

    def part(self, which: np.ndarray) -> Groups:
        """Some of them."""
        return Groups(*(values[which] for values in self))


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

    DW (R, n) rows of D w, WP (R, N, q + p) w' Phi and tau (R, N) w'v of every donor; inside
    (F, q + p, q + p), through (F, q + p), across (F, p, q + p): parts of P Sigma_f P, P Sigma_f v,
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
    q, R = pre.Z.shape[1], len(sums.DW)
    rows, real, donors, there, number, columns, meant = groups
    own = (donors[:, :, None] == number[:, None, :]) & there[:, :, None]
    pair = columns[:, :, None], columns[:, None, :]

    phi = np.take_along_axis(pre.phi[rows], columns[:, None], axis=2)
    phi *= real[..., None] & meant[:, None, :]
    omega = pre.omega[pair]
    U = np.where(real[..., None], pre.U[rows], 0.0)
    D = _inverses(pre, rows, number)
    dw = sums.DW[:, rows][:, :, None, :] * own
    wp = np.take_along_axis(sums.WP[:, donors], columns[None, :, None], axis=3)
    wp = wp * (there[..., None] & meant[:, None])
    z = wp @ omega @ phi.swapaxes(1, 2)  # (R, G, j, a)
    inside = sums.inside[:, *pair]
    inverse, found = _inverted(D - phi @ omega @ phi.swapaxes(1, 2), D)
    e = (inverse @ np.where(real, pre.Py[rows], 0.0)[..., None])[..., 0]

    # P_I: Sigma_f v and (P Sigma_f P)_II e, rows (F, G, a)
    phi_e = np.einsum("gak,ga->gk", phi, e)
    dw_e, z_e = np.einsum("rgja,ga->rgj", dw, e), np.einsum("rgja,ga->rgj", z, e)
    tau = sums.tau[:, donors] * there
    first = -np.einsum("gak,fgk->fga", phi, sums.through[:, columns])
    second = np.einsum("gak,fgkl,gl->fga", phi, inside, phi_e, optimize=True)
    first[:R] += np.einsum("rgja,rgj->rga", dw, tau)
    second[:R] += np.einsum("rgja,rgj->rga", dw, dw_e - z_e) - np.einsum("rgja,rgj->rga", z, dw_e)
    if reml:
        trace = _traces(inverse, phi, inside, dw, z)
    else:
        levels = columns < q
        phi = phi * levels[:, None]
        z = (wp * levels[:, None]) @ omega @ phi.swapaxes(1, 2)
        S_inverse, _ = _inverted(D - phi @ omega @ phi.swapaxes(1, 2), D)
        trace = _traces(S_inverse, phi, inside, dw, z)
    grad = sums.square - sums.trace + trace
    grad += np.einsum("ga,fga->gf", e, second - 2.0 * first)

    # b and its derivatives, in terms of U: Q = L U with L = Q'U
    root = np.linalg.inv(pre.X.T @ pre.U).T
    y = np.where(model.active_rows, model.y, 0.0)
    beta = (pre.U.T @ y - np.einsum("gap,ga->gp", U, e)) @ root.T
    slope = np.einsum("gap,gab,fgb->gfp", U, inverse, first - second, optimize=True)
    slope -= sums.moment + np.einsum("fpgk,gk->gfp", sums.across[:, :, columns], phi_e)
    slope[:, :R] += np.einsum("rgjp,rgj->grp", sums.WP[:, donors][..., q:], dw_e)
    return Scores(
        0.5 * grad @ model.S.T, beta, np.einsum("kf,gfp->gkp", model.S, slope @ root.T), found
    )


def _sums(pre: Precision, reml: bool) -> _Sums:
    model, phi, omega = pre.model, pre.phi, pre.omega
    q, v = pre.Z.shape[1], pre.Py
    W = np.where(pre.mask, model.W[pre.rows].transpose(2, 0, 1), 0.0)  # (R, N, m)
    tau = np.einsum("rnm,nm->rn", W, v[pre.rows])
    local = np.einsum("nab,rnb->rna", pre.inverse, W)
    DW = np.zeros((len(W), len(v)))
    DW[:, pre.rows[pre.mask]] = local[:, pre.mask]
    WP = np.einsum("rnm,nmk->rnk", W, phi[pre.rows], optimize=True)
    own = [pre.level_component == k for k in range(len(model.random))]
    Zv, PZ = pre.Z.T @ v, phi.T @ pre.Z  # PZ: Phi'Z
    T = [np.eye(len(omega), q)[:, mine] - omega @ PZ[:, mine] for mine in own]  # P Z = Phi T
    C = [part.T @ part for part in WP]  # Phi' Sigma_f Phi
    used = slice(None) if reml else slice(0, q)
    low = omega[used, used]
    levels = [part[used].T @ low @ part[used] for part in (PZ[:, mine] for mine in own)]
    through_w = [part.T @ t for part, t in zip(WP, tau, strict=True)]
    return _Sums(
        DW, WP, tau,
        inside=np.array([omega @ c @ omega for c in C] + [t @ t.T for t in T]),
        through=np.array(
            [omega @ t for t in through_w] + [-t @ Zv[mine] for t, mine in zip(T, own, strict=True)]
        ),
        across=np.array(
            [c[q:] @ omega for c in C]
            + [-PZ[q:, mine] @ t.T for t, mine in zip(T, own, strict=True)]
        ),
        moment=np.array([t[q:] for t in through_w] + [PZ[q:, mine] @ Zv[mine] for mine in own]),
        square=np.array([*np.square(tau).sum(axis=1), *(np.square(Zv[m]).sum() for m in own)]),
        trace=np.array(
            [np.sum(a * b) - np.sum(low * c[used, used])
             for a, b, c in zip(W, local, C, strict=True)]
            + [np.trace(PZ[:q][np.ix_(m, m)]) - np.trace(part)
               for m, part in zip(own, levels, strict=True)]
        ),
    )  # fmt: skip


def _traces(
    inverse: np.ndarray, phi: np.ndarray, inside: np.ndarray, dw: np.ndarray, z: np.ndarray
) -> np.ndarray:
    """tr(P_II^-1 (P Sigma_f P)_II), shape (G, F)."""
    low = phi.swapaxes(1, 2) @ inverse @ phi
    out = np.einsum("gkl,fgkl->gf", low, inside)
    out[:, : len(dw)] += np.einsum("rgja,gab,rgjb->gr", dw - 2.0 * z, inverse, dw, optimize=True)
    return out


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
