"""Noise-robust moments of related donors: Haseman and Elston's of weighted rows.

As in :mod:`ctmm_formula.engine.robust` weights come from pooled noise w, and the measured noise nu
only centres.  With S_i = H_i A H_i' + diag(w_i) of every donor, A that of the robust fit without
the kinship (all that donors differ by, genetic or not), rows are taken to

    y*_i = O_i S_i^-1/2 y_i,     H*_i = O_i S_i^-1/2 H_i,     X*_i = O_i S_i^-1/2 X_i,

O_i the axes of S_i^-1/2 diag(nu_i) S_i^-1/2, whose values are nu*_i.  The same model holds for
them, with noise that rows do not share, so :mod:`ctmm_formula.engine.he` and its jackknife are all
it takes: estimates are unbiased at any weights, free in sign, one step from a working covariance.
Random effects that donors have several levels of leave S_i its diagonal.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from . import he
from .blup import covariance_part
from .domain import Domain
from .estimate import Estimate
from .model import Model, RandomComponent, build_model
from .noise import pooling, working_noise
from .robust import weigh


def weighted(model: Model) -> Model:
    """The model of the weighted rows, rows and donors in the same order.

    Raises
    ------
    ConvergenceError
        There is no robust fit without the kinship.
    """
    found = weigh(model.unrelated).estimate
    A = model.effect_covariance(covariance_part(found.theta, model.basis))
    rows, how = model.active_rows, pooling(model.types, model.n_cells, model.active_rows)
    apart = model.y - model.X @ found.beta
    noise = working_noise(model.nu, how, float(np.square(apart[rows]).mean()))
    spans = [slice(a, b) for a, b in pairwise(model.row_ptr)]
    shared = all(len(np.unique(c.codes[own])) < 2 for c in model.random for own in spans)
    nu = np.empty(len(model.y))
    columns = np.column_stack([model.y, model.X, model.H, *(c.values for c in model.random)])
    out = np.empty_like(columns)
    for own in spans:
        S = model.H[own] @ A @ model.H[own].T + np.diag(noise[own])
        size, axes = np.linalg.eigh(S if shared else np.diag(np.diag(S)))
        half = (axes / np.sqrt(size)) @ axes.T
        if shared:
            nu[own], axes = np.linalg.eigh(half @ (model.nu[own, None] * half))
            half = axes.T @ half
        else:
            nu[own] = model.nu[own] * np.diag(half) ** 2
        out[own] = half @ columns[own]
    p, C = model.X.shape[1], model.H.shape[1]
    values = out[:, 1 + p + C :].T
    random = [RandomComponent(c.codes, v) for c, v in zip(model.random, values, strict=True)]
    star = build_model(
        out[:, 0], np.maximum(nu, 0.0), out[:, 1 : 1 + p], out[:, 1 + p : 1 + p + C],
        model.row_donor, model.basis, random, kinship=model.kinship,
    )  # fmt: skip
    return replace(star, active=model.active)


def fit(model: Model, method: str = "robust", domain: Domain | None = None) -> Estimate:
    """Weighted moments of one response.

    Raises
    ------
    ConvergenceError
        The components cannot be told apart, or there is no robust fit without the kinship.
    """
    del method, domain  # moments know no bounds
    found = he.fit(weighted(model))
    how = replace(found.convergence, message="closed form at weights of a fit without the kinship")
    return replace(found, method="robust", convergence=how)
