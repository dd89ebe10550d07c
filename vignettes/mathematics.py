# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # The mathematics, formula by formula
#
# Each formula stands beside the function that computes it (module and function, below
# `ctmm_formula`).  Some are computed once more here, with dense matrices and in the open, and must
# agree with the package.
#
# Symbols: $N$ donors $i$, $C$ cell types $c$, $n$ rows (observed pairs of donor and cell type), $p$
# fixed effects, $K$ variance components $\theta_k$.

# %% [markdown]
# ## The model
#
# $$ y_{ic} = x_{ic}'b + \alpha_i + \Gamma_{ic} + \sum_k z_{ik}'u_k + \delta_{ic} $$
#
# $$ \alpha_i \sim N(0, \sigma^2), \quad \Gamma_i \sim N(0, V), \quad u_k \sim N(0, r_k I),
# \quad \delta_{ic} \sim N(0, \nu_{ic}) $$
#
# $y_{ic}$ is the mean expression of the $n_{ic}$ cells of a pair, $\nu_{ic}$ its known noise
# variance.  Let $H_i$ hold the rows of $I_C$ of the cell types seen in donor $i$; in overall
# pseudobulk it is the one row $P_i'$ of proportions.  Then, for both kinds of data and every
# structure,
#
# $$ y_i \sim N(X_i b, \Sigma_i), \quad \Sigma_i = H_i A H_i' + \mathrm{diag}(\nu_i), \quad
# A = \sigma^2 J + V = \sum_k \theta_k B_k $$
#
# and random effects add $r_k Z_k Z_k'$ over donors that share a level.
#
# | what | where |
# |---|---|
# | mean and noise of a pair, $\nu = s^2 / n$ | `cells.aggregate.Moments`, `cells.pseudobulk.pseudobulk` |
# | overall pseudobulk, $y_i = \sum_c P_{ic} y_{ic}$, $\nu_i = \sum_c P_{ic}^2 \nu_{ic}$ | `cells.standardize.overall` |
# | each gene to variance 1 of overall pseudobulk | `cells.standardize.standardize` |
# | basis matrices $B_k$ of a structure | `structures.STRUCTURES`, `structures.resolve` |
# | $A = \sum_k \theta_k B_k$ | `structures.Structure.covariance` |
# | $B_k$ as sums of rank-one factors $v v'$ | `engine.model.rank_one_factors` |
# | rows, donors, $H$, blocks | `engine.model.Model`, `engine.model.build_model` |
# | fixed part to $X$ | `design.matrix.ENGINES` |

# %%
import numpy as np
import pandas as pd
from patsy import dmatrix
from scipy.stats import norm

import ctmm_formula as ctmm

df = ctmm.load_example()
res = ctmm.fit("expr ~ C(celltype) + sex", data=df, structure="free", method="reml")

X = np.asarray(dmatrix("C(celltype) + sex", df))
y, nu = df["expr"].to_numpy(), df["nu"].to_numpy()
donor = pd.factorize(df["donor"])[0]
same = donor[:, None] == donor  # rows of one donor
H = pd.get_dummies(df["celltype"]).to_numpy(float)
n, p = X.shape

# Sigma = sum_k theta_k Sigma_k + diag(nu), for J and E_11 ... E_CC
parts = [same * 1.0] + [same * np.outer(h, h) for h in H.T]
theta = res.vcomp.to_numpy()
Sigma = sum(t * S for t, S in zip(theta, parts, strict=True)) + np.diag(nu)
print(f"{n} rows, {p} fixed effects, {len(theta)} variance components")


def agree(what, dense, package, tolerance=1e-7):
    """The largest relative difference must be rounding, or where two searches stop."""
    dense, package = np.atleast_1d(dense), np.atleast_1d(package)
    off = np.abs(dense - package).max() / np.abs(package).max()
    assert off < tolerance, (what, off)
    print(f"{what}: {np.round(dense[:3], 4)} agrees")


# %% [markdown]
# ## Likelihood
#
# With $e = y - Xb$, $b = (X'\Sigma^{-1}X)^{-1}X'\Sigma^{-1}y$ and
# $P = \Sigma^{-1} - \Sigma^{-1}X(X'\Sigma^{-1}X)^{-1}X'\Sigma^{-1}$:
#
# $$ \ell_{ML} = -\tfrac12 [ n \log 2\pi + \log|\Sigma| + e'\Sigma^{-1}e ] $$
#
# $$ \ell_{REML} = -\tfrac12 [ (n - p) \log 2\pi + \log|\Sigma| + \log|X'\Sigma^{-1}X|
# - \log|X'X| + y'Py ] $$
#
# All constants are there, also $\log|X'X|$, without which REML would depend on the coding of the
# fixed part (metafor has it, lme4 and glmmTMB leave it out).  Derivatives, for
# $\Sigma_k = \partial\Sigma / \partial\theta_k$:
#
# $$ \mathrm{score}_k = \tfrac12 ( y'P\Sigma_k Py - \mathrm{tr}\,P\Sigma_k ), \quad
# \mathrm{average}_{kl} = \tfrac12 y'P\Sigma_k P\Sigma_l Py, \quad
# \mathrm{expected}_{kl} = \tfrac12 \mathrm{tr}\,P\Sigma_k P\Sigma_l $$
#
# The observed information is twice the average less the expected.  Standard errors of variance
# components are from the inverse of the expected one.  No matrix of all rows is ever formed: donors
# go through one by one, and random effects by the Woodbury identity, so that the cost is linear in
# the number of donors.
#
# | what | where |
# |---|---|
# | $\ell$, score, average and expected information, $b$ | `engine.kernels.evaluate`, called by `engine.likelihood.evaluate` |
# | the same in plain numpy, for readers | `engine.plain.evaluate` |
# | $\log\lvert X'X\rvert$ | `engine.likelihood.coding_constant` |
# | the fit | `engine.likelihood.fit` |
# | Newton and Fisher steps, barrier towards an edge | `engine.optimize.newton`, `engine.search.race`, `engine.search.search` |
# | where climbs start | `engine.likelihood.centre`, `engine.search.corners` |
# | the domain: `bounds="noise"`, `"psd"`, `"nonnegative"` | `engine.domain.constrain` |
# | $P$ in numpy, for predictions and score tests | `engine.precision.Precision` |

# %%
S_inv = np.linalg.inv(Sigma)
XSX = X.T @ S_inv @ X
P = S_inv - S_inv @ X @ np.linalg.solve(XSX, X.T @ S_inv)
logdet = [np.linalg.slogdet(M)[1] for M in (Sigma, XSX, X.T @ X)]
llf = -0.5 * ((n - p) * np.log(2 * np.pi) + logdet[0] + logdet[1] - logdet[2] + y @ P @ y)
score = [0.5 * (y @ P @ S @ P @ y - np.trace(P @ S)) for S in parts]
expected = [[0.5 * np.trace(P @ S @ P @ T) for T in parts] for S in parts]

agree("restricted log-likelihood", llf, res.llf)
agree("fixed effects", np.linalg.solve(XSX, X.T @ S_inv @ y), res.fe_params.to_numpy())
errors = np.sqrt(np.diag(np.linalg.inv(expected)))
agree("standard errors of components", errors, res.bse[res.vcomp.index])
assert np.abs(score).max() < 1e-4  # the estimate is a maximum

# %% [markdown]
# ## Moments (Haseman-Elston)
#
# With $\Pi = I - X(X'X)^{-1}X'$ and $D = \mathrm{diag}(\nu)$, least squares of $\Pi(yy' - D)\Pi$ on
# the $\Pi\Sigma_k\Pi$:
#
# $$ G\theta = q, \quad G_{kl} = \mathrm{tr}(\Pi\Sigma_k\Pi\Sigma_l), \quad
# q_k = (\Pi y)'\Sigma_k(\Pi y) - \mathrm{tr}(\Pi\Sigma_k\Pi D) $$
#
# Unbiased whatever the distribution of the noise, as long as $\nu$ is unbiased.  $G$ holds neither
# $y$ nor $\nu$, so it is made once for all genes.
#
# | what | where |
# |---|---|
# | $G$, weights of $\nu$ | `engine.he.moments` |
# | $\theta$ | `engine.he.Moments.solve` |
# | $b$ after it: GLS where $\Sigma$ is positive definite, else OLS | `engine.he.complete` |
# | without each donor, by updates of $G$ and $q$ | `engine.left_out_moments.LeftOutMoments` |

# %%
he = ctmm.fit("expr ~ C(celltype) + sex", data=df, structure="free", method="he")
Pi = np.eye(n) - X @ np.linalg.solve(X.T @ X, X.T)
inside = [Pi @ S @ Pi for S in parts]
G = [[np.sum(A * B) for B in inside] for A in inside]
q = [y @ A @ y - np.diag(A) @ nu for A in inside]
agree("moment estimates", np.linalg.solve(G, q), he.vcomp.to_numpy())

# %% [markdown]
# ## Noise-robust moments
#
# The measured $\nu$ comes from the same cells as $y$ and rises with it where cells are counted, so
# whatever weighs by $\nu$ is biased.  `method="robust"` weighs by the working noise
# $w_{ic} = \bar s_c^2 / n_{ic}$ (as the score test, below) and takes the measured $\nu$, which is
# unbiased, to centre.  With $S$ the inverse of $\sum_k \theta^+_k \Sigma_k + \mathrm{diag}(w)$
# and $P = S - SX(X'SX)^{-1}X'S$:
#
# $$ b = (X'SX)^{-1}X'Sy, \quad F\theta = q - h, \quad F_{kl} = \mathrm{tr}(P\Sigma_kP\Sigma_l),
# \quad q_k = y'P\Sigma_kPy, \quad h_k = \mathrm{tr}(P\Sigma_kPD) $$
#
# unbiased at any fixed $S$.  $\theta$ may be negative; $\theta^+$ is its part that is a covariance and
# only serves the weights, which start equal (Haseman-Elston) and are made anew four times.
#
# Independent units $u$ are donors, or blocks of donors joined by random effects.  With
# $G_u = X_u'S_uX_u$, $K = (X'SX)^{-1}$ and scores $s_u = X_u'S_u(y_u - X_ub)$ the covariance of
# $Lb$ is the cluster-robust CR2,
#
# $$ V_L = \sum_u e_u's_us_u'e_u, \quad e_u = (I - KG_u)^{-1/2}KL' $$
#
# $t$ tests have Satterthwaite's degrees of freedom $2E(V)^2/\mathrm{Var}(V)$ under the working
# covariance.  $q$ rows with $E V_L = I$ are a factor $\mathrm{tr}V_L/q$ times a shape, with variances
#
# $$ \varphi = \frac{\mathrm{Var}(\mathrm{tr}V_L)}{q^2}, \quad
# \Lambda = \frac1q\sum_{st}\mathrm{Var}(V_{st}) - \varphi = \lambda + \kappa, \quad
# \kappa = \frac1q\sum_{kl} W_{kl}\Big(\mathrm{tr}M_kM_l - \frac{\mathrm{tr}M_k\,\mathrm{tr}M_l}{q}\Big) $$
#
# where $\kappa$ is what the model itself is off, as its components are estimates:
# $M_k = L\,\partial K/\partial\theta_k\,L'$, $W = 2F^{-1}$ of those that are not below zero.  $\lambda$ is
# left for how far the two are apart.  A matrix of $q$ rows from little more than $q$ units costs a joint
# test most of its power, so its shape moves towards the model's, as by some $q + 1$ more units that
# follow the model:
#
# $$ V_L \leftarrow (1 - w)V_L + w\,\frac{\mathrm{tr}V_L}{q} I, \quad w = \frac{\Lambda}{1 + \Lambda} $$
#
# By the law of Marchenko and Pastur for the eigenvalues of such a matrix (a regularised Hotelling's
# $T^2$: Chen, Paul, Prentice and Wang 2011), $T^2 = (Lb)'V_L^{-1}(Lb)$ has the mean and variance of
# $q\,c\,F(q, d)$ with
#
# $$ m = \frac{2}{1 + \kappa + \sqrt{(1 + \kappa)^2 + 4\lambda\Lambda}}, \quad
# a = \frac{(1 + \Lambda)m}{1 - \kappa}, \quad
# x = \frac{1 + \lambda m}{m(1 + \kappa + 2\lambda\Lambda m)(1 - \kappa)} - 1 $$
#
# $$ f = 4 + \frac{q + 2}{x}, \quad c = a\Big(1 - \frac2f\Big), \quad
# \frac1d = \frac1f + \frac{\varphi}{2} $$
#
# The noise of counts rises with their mean, so $V_L$ at the estimates is too small where a mean came
# out too small by chance, and too large where it is taken where $Lb = c$ is true.  Tests of $Lb = c$
# take the noise halfway, as a square root would of Poisson counts: the variance between cells moves
# with the mean by $\lambda = \sum nr(n\nu - \bar s^2) / \sum nr^2$, so
#
# $$ b_0 = b - ML'(LML')^{-1}(Lb - c), \quad
# M = K + KX'S\,\mathrm{diag}(\tfrac12 \lambda x_{ic}'(b_0 - b) / n_{ic})\,SXK $$
#
# three times from $M = K$, and of rows with $LKL' = I$ the covariance is
# $(LML')^{1/2}V_L(LML')^{1/2}$.  Intervals hold the values that are not rejected.
#
# Standard errors of $\theta$ are the larger of the jackknife's over units, at fixed weights, and of
# $2F^{-1}$; tests of them have units less rows as degrees of freedom.  Their intervals are by $t$ on
# the scale of $\log(\theta + c)$, on which the standard error does not rise with $\theta$; $t$ has
# Satterthwaite's degrees of freedom $2S^2 / \mathrm{Var}(S)$ of the jackknife's variance $S$, from
# the cumulants of its replicates, and no more than the components have on average: counts make
# donors' effects skewed, and few donors do not show how long their tails are.  Whether $V = 0$ is a
# question for the score test.
#
# | what | where |
# |---|---|
# | working noise | `engine.noise.working_noise` |
# | $b$, $\theta$ and their weights | `engine.robust.weigh` |
# | without each unit, by subtracting its sums | `engine.robust.RobustFit.replicates` |
# | CR2, Satterthwaite, Hotelling | `engine.sandwich.contrasts`, `engine.sandwich.hotelling` |
# | noise halfway to a hypothesis | `engine.moving_noise.MovingNoise` |
# | which of them a test uses | `inference.clustered.Clustered` |

# %%
robust = ctmm.fit("expr ~ C(celltype) + sex", data=df, structure="free", method="robust")
cells = df["n_cells"].to_numpy()
w = (H * (cells * nu)[:, None]).sum(axis=0) / H.sum(axis=0) @ H.T / cells
theta, S = None, np.eye(n)
for _ in range(5):
    if theta is not None:
        S = np.linalg.inv(np.tensordot(np.maximum(theta, 0), parts, axes=1) + np.diag(w))
    K = np.linalg.inv(X.T @ S @ X)
    P = S - S @ X @ K @ X.T @ S
    F = [[np.trace(P @ A @ P @ B) for B in parts] for A in parts]
    excess = [y @ P @ A @ P @ y - np.trace(P @ A @ P @ np.diag(nu)) for A in parts]
    theta = np.linalg.solve(F, excess)
agree("noise-robust components", theta, robust.vcomp.to_numpy())
agree("noise-robust fixed effects", K @ X.T @ S @ y, robust.fe_params.to_numpy())

# %% [markdown]
# ## Jackknife
#
# Leave out one donor, estimate everything anew, $t_{(i)} = (\theta_{(i)}, b_{(i)})$:
#
# $$ \mathrm{Cov} = \frac{N-1}{N} \sum_i (t_{(i)} - \bar t)(t_{(i)} - \bar t)' $$
#
# | what | where |
# |---|---|
# | the refits, from the full fit on | `inference.jackknife.jackknife`, `engine.left_out_fits.left_out_fits` |
# | those on the edge of the domain | `engine.left_out_edges.left_out_edges` |
# | the score without a donor, from quantities of the full fit | `engine.left_out_scores.left_out_scores` |
# | their covariance | `inference.jackknife.covariance` |
# | delete-block and one-step versions | `inference.jackknife.leave_out_groups`, `inference.jackknife.LikelihoodJackknife` |

# %%
refits = np.array(
    [
        ctmm.fit("expr ~ C(celltype) + sex", method="reml", data=df[df["donor"] != out]).vcomp
        for out in df["donor"].unique()
    ]
)
N = len(refits)
jackknife = (N - 1) / N * (refits - refits.mean(axis=0)).T @ (refits - refits.mean(axis=0))
bse = res.jackknife().bse[res.vcomp.index]
agree("jackknife standard errors", np.sqrt(np.diag(jackknife)), bse, tolerance=1e-5)

# %% [markdown]
# ## Few donors
#
# $\Phi = (X'\Sigma^{-1}X)^{-1}$ holds estimated components, whose covariance is $W$, the inverse
# expected information.  With $P_k = X'\Sigma^{-1}\Sigma_k\Sigma^{-1}X$ and
# $Q_{kl} = X'\Sigma^{-1}\Sigma_k\Sigma^{-1}\Sigma_l\Sigma^{-1}X$, a row $l$ has
#
# $$ df = \frac{2 (l'\Phi l)^2}{g'Wg}, \quad g_k = l'\Phi P_k \Phi l $$
#
# degrees of freedom (Satterthwaite).  For rows $u$ of $L$ orthonormal under $\Phi$,
# $M_k = u\Phi P_k\Phi u'$ and $A_2 = \sum_{kl} W_{kl}\,\mathrm{tr}(M_k M_l)$, $F$ tests of $q$ rows
# have $2q/A_2$: the $F$ with the mean $1/(1 - A_2/q)$ that the statistic has to first order.
# `covariance="kenward-roger"` has their (1997) covariance
#
# $$ \Phi_A = \Phi + 2\Phi\Big[\sum_{kl} W_{kl} (Q_{kl} - P_k\Phi P_l)\Big]\Phi $$
#
# and their scale and denominator, which match variance and mean.  On the edge of the domain $W$ is
# the covariance of components that move along it: $T(T'FT)^{-1}T'$ with the information $F$ and a
# basis $T$ of the directions in which no component on a bound moves, and no donor's covariance that
# is as small as the noise floor allows.
#
# | what | where |
# |---|---|
# | $P_k$, $Q_{kl}$ in coordinates where $\Phi = I$ | `engine.variation.Variation` |
# | degrees of freedom, $F$ | `inference.small_sample.Satterthwaite`, `inference.small_sample.KenwardRoger` |

# %%
W, Phi = np.linalg.inv(expected), np.linalg.inv(XSX)
SX = S_inv @ X
first = [SX.T @ S @ SX for S in parts]
middle = sum(
    W[k, h] * (SX.T @ S @ S_inv @ T @ SX - first[k] @ Phi @ first[h])
    for k, S in enumerate(parts)
    for h, T in enumerate(parts)
)
adjusted = Phi + 2 * Phi @ middle @ Phi
package = res.cov_params("kenward-roger").to_numpy()[:p, :p]
agree("Kenward and Roger's covariance", adjusted.ravel(), package.ravel())
gradient = [Phi[1] @ G @ Phi[1] for G in first]
df_of = 2 * Phi[1, 1] ** 2 / (gradient @ W @ gradient)
agree("Satterthwaite's df", df_of, res.wald_test(np.eye(p, res.df_model)[1:2], "model").df[1])

# %% [markdown]
# ## Tests
#
# Denominators of variance components and of jackknives are $N$ less all parameters:
# `inference.fit.Fit.df_resid`; of fixed effects, and of `method="robust"`, those of the sections
# above.
#
# | question | test | where |
# |---|---|---|
# | $L t = 0$ | $W = (Lt)'(L\,\mathrm{Cov}\,L')^{-1}(Lt)/q \sim F(q, df)$ | `inference.testing.wald` |
# | $V = 0$ | the same, $L$ of the structure | `structures.Structure.null_contrast` |
# | equal means | the same, contrasts of cell type means, whatever the coding | `inference.testing.mean_differentiation` |
# | one component $> 0$ | one-sided $t$ | `inference.testing.one_sided_t` |
# | nested structures | $2(\ell_1 - \ell_0) \sim \chi^2$ with df from the basis | `inference.testing.likelihood_ratio`, `inference.comparison.compare` |
# | the same, by simulation | parametric bootstrap | `inference.bootstrap.bootstrap_ratio` |
# | one component $= 0$, exactly | restricted likelihood ratio with known noise | `inference.rlrt.exact_rlrt` |
# | AIC, BIC | | `inference.fit.Fit.aic`, `inference.fit.Fit.bic` |
# | $V = 0$, robust to errors of $\nu$ | score test, below | `inference.score.score_test` |
#
# ### The score test
#
# The likelihood weighs donors by the measured $\nu$, so that its errors look like differences
# between cell types.  The score test weighs by something else and uses $\nu$ only where it is
# unbiased.
#
# 1. Working noise $w_{ic} = \bar s_c^2 / n_{ic}$ as above, with $\bar s_c^2$ the mean over donors of
#    $n_{ic} \nu_{ic}$.  The null model ($V = 0$, components not negative) is fitted by REML with $w$
#    for $\nu$; $P$ is its projection.
# 2. For cell type $c$ the efficient score matrix is
#    $A_c = P(\Sigma_c - \sum_m a_m \Sigma_m)P$, $a = I_{mm}^{-1} I_{mc}$ from the expected
#    information of the null's components $m$.  The statistic is
#    $T_c = y'A_c y - \mathrm{tr}(A_c \hat\Sigma)$, with the measured $\nu$ in $\hat\Sigma$.
# 3. Under the null $y'A_c y \sim \sum_j \lambda_j \chi^2_1$, $\lambda$ the eigenvalues of
#    $\hat\Sigma^{1/2} A_c \hat\Sigma^{1/2}$.  The omnibus test takes $\sum_c A_c$, or
#    $\sum_c \bar s_c^2 A_c$ where squares are known (step 4); the p values of the cell types are
#    also combined by Cauchy's rule.
# 4. $\hat\Sigma$ has $\nu$ where the law needs its square, and $E \nu^2$ lies above the square of
#    the true noise, far above where few cells have counts.  Pseudobulk of cells brings unbiased
#    squares $\widehat{\nu^2}$ (column `nu2`), and $T_c$ then counts in standard deviations by
#    $2\,\mathrm{tr}(A_c \hat\Sigma A_c \hat\Sigma) + 2 \sum_a A_{c,aa}^2 [\widehat{\nu^2}_a n_a / (n_a - 1) - \nu_a^2]$,
#    in which the law of step 3 gives the shape.  Exact whatever the distribution of the cells:
#    about the null mean $y_a^2 - \nu_a$ is the mean of $x_s x_t$ over pairs of different cells.
#    Two things are added.  The noise of counts moves with the donor's effect $\alpha_i$,
#    $\nu_{ic} = w_{ic}(1 + k_c \alpha_i)$ with $k_c$ the slope over pairs of $n\nu$ on $y$, next to
#    $\bar s_c^2$, so that $E\alpha_i^2\nu_{ic}$ is above $\sigma^2 w_{ic}$: by $3c + c^2$ of it,
#    $c = k_c^2\sigma^2$, donors' effects taken for normal on the logarithm.  And where a gene is low
#    $T_c$ and its measured variance come of the same few counts: products of the noise of two pairs
#    of a donor (and squares of one) are those measured only by $\rho_a\rho_b$,
#    $\rho = 1 / (1 + k^2 w)$, by the rest those of the pooled noise.
#    A cell type in which a gene is low has little noise and would weigh most in $\sum_c A_c$, but it
#    has little $V$ to show; $\bar s_c^2$ is the alternative of $V$ in proportion to the variance
#    between cells.  Where types are alike both sums are the same; where $\bar s_c^2$ does not rise
#    with their means, as on a logarithm, the plain one is taken.
#
# | what | where |
# |---|---|
# | working noise | `engine.noise.working_noise` |
# | upper tail of $\sum_j \lambda_j \chi^2_1$ | `inference.tails.tail` |
# | combination of p values | `inference.score.cauchy_combination` |

# %%
null = ctmm.fit(
    "expr ~ C(celltype) + sex", data=df.assign(w=w), noise="w", structure="hom",
    method="reml", bounds="nonnegative",
)  # fmt: skip
shared = float(null.vcomp.iloc[0])
W_inv = np.linalg.inv(shared * parts[0] + np.diag(w))
P = W_inv - W_inv @ X @ np.linalg.solve(X.T @ W_inv @ X, X.T @ W_inv)
PS = [P @ S for S in parts]
information = np.array([[0.5 * np.sum(A * B.T) for B in PS] for A in PS])
A = sum(PS[c] @ P - information[0, c] / information[0, 0] * PS[0] @ P for c in range(1, 5))
truth = shared * parts[0] + np.diag(nu)  # the null covariance with the measured noise
statistic = y @ A @ y - np.trace(A @ truth)
scale = np.sqrt(2 * np.trace(A @ truth @ A @ truth))
test = res.test_variance("score")
agree("score statistic, in standard deviations", statistic / scale, test.statistic, tolerance=1e-5)
print(f"p value {test.pvalue:.1e}; a normal tail would say {norm.sf(statistic / scale):.1e}")

# %% [markdown]
# ## Kinship
#
# With a kernel $K$ between donors (a kinship, or $GG'/m$ of a window of standardised genotypes) and
# $A_g = \sum_k \theta_k B_k$ between cell types
#
# $$ \mathrm{Cov}(y_i, y_j) = K_{ij} H_i A_g H_j' \quad (i \ne j), \qquad
# \Sigma_k = L (K \otimes B_k) L' $$
#
# where $L$ picks the observed pairs.  Moments are those above: of two factors $Z K Z'$, $Z$ with one
# entry a row, $T = Z'Q$ and $M = Z_f'Z_g$,
#
# $$ \mathrm{tr}(\Pi\Sigma_f\Pi\Sigma_g) = \mathrm{tr}(K_f M K_g M')
# - 2\langle K_f T_f, M K_g T_g\rangle + \langle T_f'K_fT_f, T_g'K_gT_g\rangle $$
#
# so that $N \times N$ kernels meet only $N \times p$ matrices, and $M$ between donors is diagonal.
# With $s$ the mean of $K_{ii}$ less that of $K_{ij}$, which a constant added to $K$ does not change,
# the heritability of a cell type is $s A_{g,cc} / (s A_{g,cc} + A_{cc})$, without noise; intervals
# of ratios are Fieller's.
#
# By REML and ML a kernel $K = GG'$ adds columns $B$ ($G$ by what rows have of the cell types, with
# the levels of random effects) to the block-diagonal $\Sigma_e = S^{-1}$ of donors, with $T = RsR'$
# their covariance, $s$ of signs, and $W = B'SB$:
#
# $$ \Sigma^{-1} = S - SB\,\Gamma B'S, \quad \Gamma = R(s + R'WR)^{-1}R', \quad
# \log|\Sigma| = \log|\Sigma_e| + \log|\det(s + R'WR)| $$
#
# so that the order of what is inverted is the rank of $K$ times the number of cell types.  Beyond 3,000
# donors are rotated, where no pair is missing: with $K = O\,\mathrm{diag}(k)\,O'$, the mean noise $D$ of
# every type, $A_e + D = LL'$ and $L^{-1}A_gL'^{-1} = V\mathrm{diag}(a)V'$, the rows of $O'Y L'^{-1}V$ ($Y$
# donors by types) are independent, with variances $1 + k_ja_c$.  What the noise has beside its mean,
# $E = \mathrm{diag}(\nu) - D$, centres: the score is half of
# $r'\Sigma_kr - \mathrm{tr}P\Sigma_k - \mathrm{tr}P\Sigma_kPE$.  Robust fits
# solve the equations of robust fits without a kinship, $F\theta = q - h$, with the $P$ of these
# weights and pooled noise, made anew from the part of $\theta$ that is a covariance; fixed effects are
# then columns of $B$ whose variance has no bounds, and the measured noise is one more component, whose
# traces are $h$.
#
# The test of heritability takes products of different donors: $r = Py$ under the null of unrelated
# donors and working noise, $s_i = v'H_i'r_i$ with $v = 1$ (shared) or $e_c$, $K_0$ the kernel
# without its diagonal,
#
# $$ T_v = s'K_0s, \quad M = L_v'P\hat\Sigma PL_v, \quad E\,T_v = \mathrm{tr}K_0M, \quad
# \mathrm{Var}\,T_v = 2\,\mathrm{tr}(K_0M)^2, $$
#
# with the law of the eigenvalues of $K_0M$.  What is specific is tested with donors as fixed effects,
# a cell type by its own rows; p values are combined by Cauchy's rule.
#
# | what | where |
# |---|---|
# | a kernel, its products and scale | `engine.relatedness.Kernel` |
# | $G$ with kernels | `engine.he.moment_matrix` |
# | likelihoods with kernels | `engine.related_joined.Joined` |
# | rotated donors | `engine.related_spectral.Rotated` |
# | weighted moments | `engine.related_moments.fit` |
# | what relatives add to errors of $b$ | `engine.he.between_donors` |
# | heritabilities and genetic correlations | `results.heritability.heritability` |
# | scores of different donors, and their laws | `inference.genetic_score.genetic_test` |
# | genetic values | `engine.blup.effects` |

# %%
donors = df["donor"].unique()
family = np.arange(len(donors)) // 3
K = pd.DataFrame(0.5 * (np.equal.outer(family, family) + np.eye(len(donors))), donors, donors)
kin = ctmm.fit("expr ~ C(celltype) + sex", kinship=K, data=df, structure="hom", method="he")
between = K.loc[df["donor"], df["donor"]].to_numpy()
two = [parts[0], between]  # hom, genetic:hom
Pi = np.eye(len(y)) - X @ np.linalg.pinv(X)
gram = np.array([[np.trace(Pi @ S @ Pi @ R) for R in two] for S in two])
right = [y @ Pi @ S @ Pi @ y - np.trace(Pi @ S @ Pi @ np.diag(nu)) for S in two]
agree("components with a kinship", np.linalg.solve(gram, right), kin.vcomp)
kin_reml = ctmm.fit(
    "expr ~ C(celltype) + sex", kinship=K, data=df, structure="hom", method="reml", bounds="noise"
)
joint = sum(t * S for t, S in zip(kin_reml.vcomp, two, strict=True)) + np.diag(nu)
inverse = np.linalg.inv(joint)
gls = np.linalg.solve(X.T @ inverse @ X, X.T @ inverse @ y)
resid = y - X @ gls
dense_llf = -0.5 * (
    (len(y) - X.shape[1]) * np.log(2 * np.pi)
    + np.linalg.slogdet(joint)[1]
    + np.linalg.slogdet(X.T @ inverse @ X)[1]
    - np.linalg.slogdet(X.T @ X)[1]
    + resid @ inverse @ resid
)
agree("its restricted likelihood", dense_llf, kin_reml.llf)
print(f"p value of heritability {kin.test_heritability().pvalue:.2f}, of sibs drawn by lot")

# %% [markdown]
# ## Predictions and shares
#
# With $r = Py$, the predicted shared effect of donor $i$ is $\sigma^2 1'H_i'r_i$, the cell
# type-specific ones $V H_i'r_i$.  Overall pseudobulk has the variance
#
# $$ m'Sm + \mathrm{var}(f) + \sigma^2 + \frac1N\sum_i P_i'VP_i + \sum_k r_k
# + \frac1N\sum_i \nu_i $$
#
# with $S$ the covariance of the proportions, $m$ the means of the cell types and $f$ the other fixed
# effects.
#
# | what | where |
# |---|---|
# | predicted effects and their standard errors | `engine.blup.effects` |
# | shares of variance | `results.shares.variance_explained`, `results.shares.icc` |
# | draws from a model | `engine.draws.draw` |

# %% [markdown]
# ## Single donors
#
# A variable $g$ of donors with an effect in every cell type has the columns $Z = \mathrm{diag}(g) H$.
# From one fit without it, with $P$ and $r = Py$ as above,
#
# $$ T = Z'r = \sum_i g_i H_i'r_i, \quad V = Z'PZ, \quad b = V^{-1}T $$
#
# and with $q$ cell types $T'V^{-1}T$ tests all effects, $T'V^{-1}T - (1'T)^2 / 1'V1$ their differences.
# The variance is that of the fit without $g$, which holds what $g$ explains: $x$ on $d$ degrees of
# freedom (rows less what the fixed effects take of them) becomes
#
# $$ F = \frac{x / q}{(d - x) / (d - q)} \sim F(q, d - q), $$
#
# exactly so for least squares.  A row's deletion residual is $r_a / \sqrt{P_{aa}}$, a donor's
# distance $r_i'(P_{ii})^{-1}r_i \sim \chi^2$; with noise $D$ the residual of predicted expression is
# $D r$, and its error has variance $D - DPD$.
#
# | what | where |
# |---|---|
# | $T$, $V$ of all variables by matrix products | `inference.donor_scores.scan_variables` |
# | deletion residuals | `inference.donor_scores.deletion` |
# | working noise in place of $\nu$, for robust fits | `inference.donor_scores.weighed_by` |

# %%
S_inv = np.linalg.inv(Sigma)
P = S_inv - S_inv @ X @ np.linalg.solve(X.T @ S_inv @ X, X.T @ S_inv)
g = pd.Series(
    np.random.default_rng(1).binomial(2, 0.3, df["donor"].nunique()), df["donor"].unique()
)
Z = df["donor"].map(g).to_numpy()[:, None] * pd.get_dummies(df["celltype"]).to_numpy(dtype=float)
b = np.linalg.solve(Z.T @ P @ Z, Z.T @ P @ y)
found = ctmm.scan_donors(res, pd.DataFrame({"g": g}))
agree("effects of a variable", b, found.filter(like="estimate[").to_numpy()[0])
agree("deletion residuals", P @ y / np.sqrt(np.diag(P)), res.outliers().rows["residual"])

# %% [markdown]
# ## Imputation
#
# Soft-impute: minimise $\tfrac12 \lVert Y - Z \rVert^2_{observed} + \lambda \lVert Z \rVert_*$ over
# $Z$, the penalty chosen on whole hidden pairs; or the conditional mean of a multivariate normal,
# by EM.
#
# | what | where |
# |---|---|
# | soft-impute, and a bound on its distance from the optimum | `cells.softimpute.complete`, `cells.softimpute.certificate` |
# | choice of $\lambda$ | `cells.softimpute.cross_validate` |
# | EM of the multivariate normal | `cells.mvn.fit_normal`, `cells.mvn.em_step` |

# %% [markdown]
# ## All genes
#
# | what | where |
# |---|---|
# | one design, many responses | `engine.model.Model.with_response` |
# | genes by their pattern of missing rows | `scan.patterns.Patterns` |
# | Bonferroni and Benjamini-Hochberg, missing p values left out | `scan.results.adjusted` |
#
# ## Source
#
# M. Chen and A. Dahl, A robust model for cell type-specific interindividual variation in
# single-cell RNA sequencing data, Nat Commun 15:5229 (2024): the model, REML, moments, jackknife,
# shares.  The score test, the domain and the optimiser are this package's own.
