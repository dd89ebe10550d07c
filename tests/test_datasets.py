"""The embedded example: reproducible, consistent, and drawn with the parameters it claims."""

import numpy as np
import pandas as pd
import pytest

from ctmm_formula.datasets import (
    CELLTYPES,
    EXPRESSION,
    PCS,
    TRUTH,
    generate,
    load_example,
    load_genes,
    load_truth,
)
from ctmm_formula.errors import CTMMError

# Files are written with 5 significant digits, expression with 4 decimals: a last digit may move
# with the rounding of another LAPACK or libm.
LAST_DIGIT = 1.1e-4
# Identities recomputed from the same table in double precision.
EXACT = 1e-12
# Averages over genes against the truth, in standard errors over genes; the data are fixed.
Z_MAX = 4.0


@pytest.fixture(scope="module")
def genes():
    return load_genes()


@pytest.fixture(scope="module")
def truth():
    return load_truth()


@pytest.mark.slow
def test_regenerating_gives_the_same_numbers(genes, truth):
    expression, parameters = generate.make()
    obs, expr, nu = genes
    pd.testing.assert_frame_equal(expression[list(obs)], obs, rtol=LAST_DIGIT, check_dtype=False)
    np.testing.assert_allclose(expression[list(expr)], expr, rtol=LAST_DIGIT, atol=LAST_DIGIT)
    np.testing.assert_allclose(expression[[f"{g}.nu" for g in nu]], nu, rtol=LAST_DIGIT)
    pd.testing.assert_frame_equal(parameters, truth, rtol=LAST_DIGIT, check_dtype=False)


@pytest.mark.slow
def test_writing_gives_the_same_bytes_twice_and_small_files(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        generate.write(tmp_path / name)
    for name in (EXPRESSION, TRUTH):
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert len(content) < 1_000_000


def test_sizes_and_filters(genes):
    obs, expr, nu = genes
    assert expr.shape == nu.shape == (len(obs), 200)
    assert list(obs) == ["donor", "celltype", "batch", "sex", *PCS, "n_cells"]
    assert obs["donor"].nunique() == 72 and obs["batch"].nunique() == 24
    assert sorted(obs["celltype"].unique()) == CELLTYPES
    assert not obs.duplicated(["donor", "celltype"]).any()
    assert 0.03 < 1 - len(obs) / (72 * 4) < 0.05
    assert obs["n_cells"].min() > 10
    assert (obs.groupby("donor")[["batch", "sex", *PCS]].nunique() == 1).all(axis=None)
    assert (nu > 0).all(axis=None)


def test_example_is_one_gene_of_all(genes):
    obs, expr, nu = genes
    df = load_example("gene042")
    assert list(df) == [*obs, "expr", "nu"]
    pd.testing.assert_frame_equal(df[list(obs)], obs)
    pd.testing.assert_series_equal(df["expr"], expr["gene042"], check_names=False)
    pd.testing.assert_series_equal(df["nu"], nu["gene042"], check_names=False)
    pd.testing.assert_frame_equal(load_example(), load_example("gene001"))


def test_overall_example_matches_and_is_standardised():
    ctp, op = load_example("gene007"), load_example("gene007", kind="op")
    P = ctp["n_cells"] / ctp.groupby("donor")["n_cells"].transform("sum")
    P_wide = ctp.assign(P=P).pivot(index="donor", columns="celltype", values="P").fillna(0.0)
    np.testing.assert_allclose(
        op.set_index("donor")[[f"prop_{c}" for c in CELLTYPES]], P_wide[CELLTYPES], rtol=EXACT
    )
    expr, nu = ((w * ctp[c]).groupby(ctp["donor"]).sum() for w, c in [(P, "expr"), (P**2, "nu")])
    np.testing.assert_allclose(op["expr"], expr[op["donor"]], atol=EXACT)
    np.testing.assert_allclose(op["nu"], nu[op["donor"]], rtol=EXACT)
    assert len(op) == 72
    assert abs(op["expr"].mean()) < LAST_DIGIT and abs(op["expr"].std() - 1) < LAST_DIGIT


def test_noise_is_about_a_tenth_of_the_variance(genes):
    obs, _, nu = genes
    P = obs["n_cells"] / obs.groupby("donor")["n_cells"].transform("sum")
    share = nu.mul(P**2, axis=0).groupby(obs["donor"]).sum().mean()  # overall variance is 1
    assert 0.08 < share.mean() < 0.11


def test_truth_table_says_what_is_zero(truth):
    V = truth[[f"V[{c}]" for c in CELLTYPES]]
    assert truth["structure"].value_counts().to_dict() == {"free": 100, "hom": 60, "iid": 40}
    assert ((V == 0).all(axis=1) == (truth["structure"] == "hom")).all()
    assert (V[truth["structure"] != "hom"] > 0).all(axis=None)
    assert ((V.nunique(axis=1) == 1) == (truth["structure"] != "free")).all()
    equal = truth[[f"mean[{c}]" for c in CELLTYPES]].nunique(axis=1) == 1
    assert equal.sum() == 50 and pd.crosstab(equal, truth["structure"]).loc[True].min() == 10
    assert (truth["batch"] == 0).sum() == 100 and (truth["sex[M]"] == 0).sum() == 160
    V_demonstration = V.loc["gene001"].to_numpy()
    assert (np.diff(V_demonstration) > 0).all() and truth.loc["gene001", "batch"] > 0


@pytest.fixture(scope="module")
def residuals(genes, truth):
    """Expression minus its true mean, complete donors only: arrays (donors, C, genes)."""
    obs, expr, nu = genes
    fixed = truth[[f"mean[{c}]" for c in CELLTYPES]].T.set_axis(CELLTYPES)
    mean = fixed.loc[obs["celltype"]].to_numpy()
    mean = mean + np.outer(obs["sex"] == "M", truth["sex[M]"]) + obs[PCS] @ truth[PCS].T.to_numpy()
    complete = (obs.groupby("donor")["donor"].transform("size") == 4).to_numpy()
    shape = (-1, 4, 200)
    e = (expr.to_numpy() - mean.to_numpy())[complete].reshape(shape)
    return e, nu.to_numpy()[complete].reshape(shape)


def assert_zero_mean(per_gene):
    se = per_gene.std(axis=0, ddof=1) / np.sqrt(len(per_gene))
    assert np.abs(per_gene.mean(axis=0) / se).max() < Z_MAX


def test_data_have_the_true_means(residuals):
    e, _ = residuals
    assert_zero_mean(e.mean(axis=0).T)


@pytest.mark.parametrize("structure", ["hom", "iid", "free"])
def test_data_have_the_true_variances(residuals, truth, structure):
    """Method of moments: E e_c e_d = hom + batch, E e_c^2 - nu_c = hom + batch + V_c."""
    e, nu = residuals
    chosen = (truth["structure"] == structure).to_numpy()
    C = len(CELLTYPES)
    products = np.einsum("icg,idg->gcd", e, e)[chosen] / len(e)
    diagonal = np.diagonal(products, axis1=1, axis2=2)
    shared = (products.sum(axis=(1, 2)) - diagonal.sum(axis=1)) / (C * (C - 1))
    specific = diagonal - nu.mean(axis=0).T[chosen] - shared[:, None]
    table = truth[chosen]
    assert_zero_mean(shared - (table["hom"] + table["batch"]).to_numpy())
    assert_zero_mean(specific - table[[f"V[{c}]" for c in CELLTYPES]].to_numpy())


def test_tables_are_copies(genes):
    one, all_genes, reference = load_example(), load_genes().expr, genes.expr["gene001"].copy()
    one["expr"] = 0.0
    all_genes.iloc[:] = 0.0
    pd.testing.assert_series_equal(load_genes().expr["gene001"], reference)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gene": "POU5F1"}, "unknown gene 'POU5F1': choose from gene001, ..., gene200"),
        ({"kind": "cells"}, "unknown kind 'cells': choose from ctp, op"),
    ],
)
def test_unknown_gene_or_kind(arguments, message):
    with pytest.raises(CTMMError, match=message):
        load_example(**arguments)


def test_genes_show_their_sizes():
    shown = repr(load_genes())
    assert shown == "<Genes: obs, expr, nu; 200 genes, 275 rows, 72 donors, 4 cell types>"
