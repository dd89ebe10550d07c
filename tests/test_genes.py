"""The scan of all genes: the numbers of single fits, and no gene that can stop it."""

import pickle
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import quick_first
from scipy.sparse import csr_matrix

import ctmm_formula as ctmm
from ctmm_formula.datasets import CELLTYPES
from ctmm_formula.design.formula import parse
from ctmm_formula.engine.estimators import ESTIMATORS
from ctmm_formula.engine.likelihood import LIKELIHOODS
from ctmm_formula.inference.fit import JACKKNIFE
from ctmm_formula.inference.tests import LIKELIHOOD, TESTS
from ctmm_formula.results.estimates import adjusted
from ctmm_formula.scan import job, patterns
from ctmm_formula.scan.patterns import FromTable
from ctmm_formula.scan.worker import gene_seed
from ctmm_formula.simulate import overall_table
from ctmm_formula.structures import ARGUMENTS, STRUCTURES

SAME = 1e-10  # relative: the same arithmetic on the same arrays, but for the order of some sums
GENES = ["gene001", "gene101", "gene150"]
DRAWS = 2
NAMES = [f"{name}(1)" if name in ARGUMENTS else name for name in STRUCTURES]


@pytest.fixture(scope="module")
def small():
    """24 donors; the last gene lacks rows that the others have."""
    obs, expr, nu = ctmm.load_genes()
    rows = obs["donor"].isin(obs["donor"].unique()[:24])
    obs, expr, nu = (frame[rows].reset_index(drop=True) for frame in (obs, expr, nu))
    expr, nu = expr[GENES].copy(), nu[GENES].copy()
    expr.loc[[3, 17], GENES[2]] = np.nan
    nu.loc[[40], GENES[2]] = np.nan
    return obs, expr, nu


@pytest.fixture(scope="module")
def overall(small):
    obs, expr, nu = small
    full = {g: obs.assign(expr=expr[g].fillna(0.1), nu=nu[g].fillna(0.2)) for g in GENES}
    tables = {gene: overall_table(table, CELLTYPES) for gene, table in full.items()}
    expr = pd.DataFrame({gene: table["expr"] for gene, table in tables.items()})
    nu = pd.DataFrame({gene: table["nu"] for gene, table in tables.items()})
    expr.loc[[2], GENES[2]] = np.nan
    return tables[GENES[0]].drop(columns=["expr", "nu"]), expr, nu


def quietly(call, *args, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.CTMMWarning)
        return call(*args, **settings)


def single(results, test, gene):
    """The same test of a single fit."""
    if TESTS[test].question == "mean":
        return results.test_mean("jackknife" if JACKKNIFE in TESTS[test].needs else None)
    rng = np.random.default_rng(gene_seed(7, gene)) if test == "bootstrap" else None
    return results.test_variance(test, rng=rng, n=DRAWS)


def close(value, expected):
    np.testing.assert_allclose(value, expected, rtol=SAME, atol=0, equal_nan=True)


def close_p(value, expected):
    """p values of score tests: those of a scan have four digits above .06, else all."""
    value, expected = np.atleast_1d(value), np.atleast_1d(expected).astype(float)
    rough = expected > 0.06
    np.testing.assert_allclose(value[rough], expected[rough], rtol=1e-4, atol=0)
    close(value[~rough], expected[~rough])


@pytest.mark.parametrize("method", quick_first(sorted(ESTIMATORS, reverse=True)))
@pytest.mark.parametrize("structure", quick_first(sorted(NAMES, key=lambda name: name != "free")))
@pytest.mark.parametrize("kind", ["ctp", "op"])
def test_a_scan_has_the_numbers_of_single_fits(small, overall, kind, structure, method):
    obs, expr, nu = small if kind == "ctp" else overall
    fixed = "~ C(celltype) + sex" if kind == "ctp" else "~ sex"
    more = {} if kind == "ctp" else {"proportions": [f"prop_{name}" for name in CELLTYPES]}
    more |= {"structure": structure, "method": method, "random": "batch" if kind == "ctp" else None}
    tests = [t for t in TESTS if method in LIKELIHOODS or LIKELIHOOD not in TESTS[t].needs]
    genes = GENES[::2] if kind == "ctp" else GENES[2:]
    scan = quietly(
        ctmm.fit_genes, fixed, data=obs, expr=expr, nu=nu, tests=tests, genes=genes, rng=7,
        n_bootstrap=DRAWS, **more,
    )  # fmt: skip
    assert scan.genes == genes
    for k, gene in enumerate(genes):
        row = scan.table.iloc[k]
        table = obs.assign(expr=expr[gene], nu=nu[gene])
        results = quietly(ctmm.fit, f"expr {fixed}", data=table, **more)
        assert row["n_obs"] == results.nobs and row["n_donors"] == results.n_donors
        assert (row["converged"], row["boundary"]) == (results.converged, results.boundary)
        close(scan.vcomp.loc[gene], results.vcomp)
        close(row[[f"b[{name}]" for name in results.design.names]].astype(float), results.fe_params)
        means = row[[f"mean[{name}]" for name in CELLTYPES]].astype(float)
        close(means, results.means()["estimate"])
        jack = results.jackknife().bse
        close(row[[f"se_jackknife[{name}]" for name in results.vcomp.index]].astype(float),
              jack[results.vcomp.index])  # fmt: skip
        if method in LIKELIHOODS:
            close(row["llf"], results.llf)
        if method != "he":
            close(row[[f"se[{name}]" for name in results.vcomp.index]].astype(float),
                  results.bse[results.vcomp.index])  # fmt: skip
            means = row[[f"se[mean[{name}]]" for name in CELLTYPES]].astype(float)
            close(means, results.means()["std_error"])
        for test in tests:
            expected = single(results, test, gene)
            (close_p if test == "score" else close)(row[f"p_{test}"], expected.pvalue)
            close(row[f"stat_{test}"], expected.statistic)
            if np.isnan(expected.pvalue):
                assert f"{test}: {expected.note}" in row["reason"]
        if "score" in tests:
            extra = single(results, "score", gene).extra
            close_p(row["p_score_cauchy"], extra["cauchy"])
            close_p(row[[f"p_score[{c}]" for c in CELLTYPES]].astype(float),
                  list(extra["celltype"].values()))  # fmt: skip
        again = scan.gene(gene)
        close(again.params, results.params)
        close(again.marginal, results.marginal)


def test_several_structures_are_compared_as_anova_does(small):
    obs, expr, nu = small
    scan = quietly(
        ctmm.fit_genes, "~ C(celltype)", data=obs, expr=expr, nu=nu, tests=[],
        models=["hom", "full", "free"], structure="free", method="reml",
    )  # fmt: skip
    assert [s.name for s in scan.layout.structures] == ["free", "hom", "full"]
    for k, gene in enumerate(GENES):
        table = obs.assign(expr=expr[gene], nu=nu[gene])
        fits = [
            quietly(ctmm.fit, "expr ~ C(celltype)", data=table, structure=s, method="reml")
            for s in ("hom", "free", "full")
        ]
        rows, row = ctmm.anova(*fits).table, scan.table.iloc[k]
        close(row["hom.llf"], fits[0].llf)
        close(row[[f"full.{name}" for name in fits[2].vcomp.index]].astype(float), fits[2].vcomp)
        close(row["p_lrt[hom:free]"], rows.loc["free", "pvalue"])
        close(row["p_lrt[free:full]"], rows.loc["full", "pvalue"])
        close(row["stat_lrt[free:full]"], rows.loc["full", "statistic"])
        lower = np.tril_indices(4, -1)
        close(scan.corr.loc[gene], fits[2].corr.to_numpy()[lower])
    assert list(scan.corr)[:2] == ["corr[day1,day0]", "corr[day2,day0]"]


@pytest.mark.filterwarnings("ignore::ctmm_formula.CTMMWarning")
def test_a_function_of_the_caller_serves_all_patterns(small):
    def doubled(x):
        return 2 * x

    obs, expr, nu = small
    formula = "C(celltype) + doubled(PC1)"
    scan = ctmm.fit_genes(f"~ {formula}", data=obs, expr=expr, nu=nu, tests=[])
    table = obs.assign(expr=expr[GENES[2]], nu=nu[GENES[2]])
    expected = ctmm.fit(f"expr ~ {formula}", data=table).params["doubled(PC1)"]
    close(scan.table["b[doubled(PC1)]"].iloc[2], expected)
    close(scan.gene(GENES[2]).params["doubled(PC1)"], expected)


def broken(expr, nu, obs):
    """Name -> (expression, noise) that no fit can use, and a word of the reason."""
    y, v = expr.iloc[:, 0].to_numpy(), nu.iloc[:, 0].to_numpy()
    one = (obs["donor"] == obs["donor"].iloc[0]).to_numpy()
    day = (obs["celltype"] == "day3").to_numpy()
    single = pd.factorize(obs["donor"])[0] % 4 == pd.factorize(obs["celltype"])[0]
    return {
        "constant": (np.full_like(y, 3.0), v, "constant"),
        "nothing": (np.full_like(y, np.nan), v, "no row"),
        "no noise": (y, np.zeros_like(v), "noise variance is 0 in every pair"),
        "negative noise": (y, np.where(one, -v, v), "noise variance must be positive"),
        "infinite": (np.where(one, np.inf, y), v, "expression is inf"),
        "one donor": (np.where(one, y, np.nan), v, "one donor"),
        "one type each": (np.where(single, y, np.nan), v, "told apart"),
        "lost day": (np.where(day, np.nan, y), v, "day3"),
        "huge": (y * 1e200, v, "rescale"),
        "tiny": (y * 1e-200, v * 1e-200, "rescale"),
    }


def test_broken_genes_are_rows_with_a_reason():
    obs, expr, nu = ctmm.load_genes()
    bad = broken(expr, nu, obs)
    good = pd.concat([expr, expr.add_suffix("b")], axis=1).iloc[:, : 300 - 20]
    noise = pd.concat([nu, nu.add_suffix("b")], axis=1).iloc[:, : 300 - 20]
    names = [*bad, *(f"{name} again" for name in bad), "constant 3", "nothing 3"][:20]
    columns = {name: bad[name.removesuffix(" again").removesuffix(" 3")] for name in names}
    good = pd.concat([good, pd.DataFrame({k: c[0] for k, c in columns.items()})], axis=1)
    noise = pd.concat([noise, pd.DataFrame({k: c[1] for k, c in columns.items()})], axis=1)
    order = np.random.default_rng(0).permutation(300)
    with pytest.warns(ctmm.CTMMWarning, match=r"of 300 genes.* 20 failed") as caught:
        scan = ctmm.fit_genes(
            "~ C(celltype)", data=obs, expr=good.iloc[:, order], nu=noise.iloc[:, order],
            tests=["lrt"], method="reml",
        )  # fmt: skip
    assert len(caught) == 1
    table = scan.table.set_index("gene")
    failed = table[table["status"] == "failed"]
    assert sorted(failed.index) == sorted(names)
    for name, (_, _, word) in columns.items():
        assert word in failed.loc[name, "reason"], name
    assert failed[["p_lrt", "p_lrt_bh", "hom", "mean[day0]"]].isna().all(axis=None)
    fine = table.drop(index=names)
    assert np.isfinite(fine[["p_lrt", "p_lrt_bonferroni", "p_lrt_bh"]]).all(axis=None)
    expected = np.minimum(fine["p_lrt"] * 280, 1.0)
    close(fine["p_lrt_bonferroni"], expected)
    assert scan.counts()["failed"] == 20
    with pytest.raises(ctmm.DataError, match="constant"):
        scan.gene("constant")


def test_adjusted_p_values_pass_over_missing_ones():
    p = np.array([0.01, np.nan, 0.04, 0.03, np.nan])
    assert np.array_equal(adjusted(p, "bonferroni"), [0.03, np.nan, 0.12, 0.09, np.nan], True)
    np.testing.assert_allclose(adjusted(p, "fdr_bh")[[0, 2, 3]], [0.03, 0.04, 0.04])
    assert np.isnan(adjusted(np.full(3, np.nan), "fdr_bh")).all()


def test_the_published_rule_is_one_line():
    """As the docstring of ``Scan.top`` has it: the words there are run here."""
    obs, expr, nu = ctmm.load_genes()
    names = ["gene001", "gene034", "gene050", "gene120", "gene180"]
    rows = {"data": obs, "expr": expr, "nu": nu, "genes": names, "random": "batch"}
    reml = quietly(
        ctmm.fit_genes, "~ C(celltype)", tests=["score", "jackknife", "mean"], **rows, method="reml"
    )
    he = quietly(ctmm.fit_genes, "~ C(celltype)", tests="jackknife", method="he", **rows)
    notes = re.sub(r"\s+", " ", ctmm.Scan.top.__doc__)
    rule, both = re.findall(r"(?:scan|reml)\.table(?:\.query\(.*?\)|\[.*?\])(?=``| They)", notes)
    p = reml.table.set_index("gene")
    for text, other in ((rule, p["p_score"]), (both, he.table.set_index("gene")["p_jackknife"])):
        found = eval(text, {"scan": reml, "reml": reml, "he": he})
        expected = (p["p_jackknife"] * 5 < 0.05) & (other * 5 < 0.05) & (p["p_mean"] > 0.01)
        assert found["gene"].tolist() == expected.index[expected].tolist()
        assert 0 < expected.sum() < 5


def test_no_p_value_is_lost(tmp_path):
    """Genes whose p values are too small for numbers have logarithms, and are ranked by them."""
    rng = np.random.default_rng(3)
    donor, celltype = np.divmod(np.arange(600 * 3), 3)
    size = np.array([8.0, 20.0, 12.0, 0.0])  # of effects specific to cell types
    names = [f"g{k}" for k in range(len(size))]
    y = rng.normal(size=(len(donor), len(size))) * (0.05 + size)
    data = pd.DataFrame({"donor": donor, "celltype": celltype, "n_cells": 50.0}).astype(str)
    data["n_cells"] = 50.0
    expr = pd.DataFrame(y, columns=names)
    nu = pd.DataFrame(np.full(y.shape, 0.0025), columns=names)
    run = {"data": data, "expr": expr, "nu": nu, "tests": ["score", "mean"], "n_jobs": 1}
    path = tmp_path / "scan.parquet"
    scan = ctmm.fit_genes("~ C(celltype)", out=path, **run)
    table = scan.table.set_index("gene")
    strong = [names[k] for k in np.argsort(-size)[:3]]
    assert (table.loc[strong, "p_score"] == 0.0).all()
    logs = table["log10_p_score"]
    assert (logs[strong] < -320).all()
    assert np.isfinite(logs).all()
    assert scan.top(3)["gene"].tolist() == logs.sort_values().index[:3].tolist()
    assert scan.top(3, by="p_score_bh")["gene"].tolist() == scan.top(3)["gene"].tolist()
    for name in [c for c in table if c.startswith("log10_")]:
        p = table[name.removeprefix("log10_")]
        there = p > 1e-290
        np.testing.assert_allclose(10.0 ** table[name][there], p[there], rtol=1e-10)
    bonferroni = np.minimum(logs + np.log10(4.0), 0.0)
    np.testing.assert_allclose(table["log10_p_score_bonferroni"], bonferroni, rtol=1e-12)
    single = scan.gene("g1").test_variance()
    assert single.log_pvalue == pytest.approx(logs["g1"] * np.log(10.0), rel=1e-12)
    assert single.log_details["cauchy"] < -320 * np.log(10.0)
    # and it is shown by its logarithm, alone and of the cell types
    digits, _, power = str(single).split("p = ")[1].split()[0].partition("e")
    assert float(power) + np.log10(float(digits)) == pytest.approx(logs["g1"], abs=1e-3)
    assert not re.search(r" 0[,\n]", str(single)) and str(single) == str(
        type(single).from_dict(single.to_dict())
    )
    shown = scan.plot_data("qq", tests="score")
    assert np.isfinite(shown["observed"]).all()
    assert shown["observed"].is_monotonic_decreasing
    assert ctmm.read_scan(path).table.equals(scan.table)


def test_top_sorts_p_values_up_and_estimates_down(small):
    obs, expr, nu = small
    scan = quietly(ctmm.fit_genes, "~ C(celltype)", data=obs, expr=expr, nu=nu, tests=["score"])
    for by in (None, "score", "p_score", "p_score_bh"):
        assert scan.top(3, by=by)["p_score"].is_monotonic_increasing
    assert scan.top(2, by="V[day3]")["V[day3]"].is_monotonic_decreasing
    assert len(scan.top(2)) == 2
    with pytest.raises(ctmm.CTMMError, match="unknown column 'reason'"):
        scan.top(by="reason")
    for n in (-1, 2.5):
        with pytest.raises(ctmm.CTMMError, match="n= must be a whole number"):
            scan.top(n)
    assert scan.summary().loc["score", "tested"] == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formula": "y ~ C(celltype)"}, "formula without response"),
        ({"tests": ["nonsense"]}, "unknown test 'nonsense'"),
        ({"tests": "lrt", "method": "he"}, "no likelihood"),
        (
            {"tests": "lrt", "method": None},
            "'robust' .the default .* no likelihood .* method='reml'",
        ),
        ({"models": ["hom"], "method": None}, "models= are compared by likelihood ratios"),
        ({"genes": ["gene1"]}, "there is no gene 'gene1'"),
        ({"genes": "gene001"}, "list of names"),
        ({"genes": []}, "genes= is empty"),
        ({"tests": 3}, "tests= must be a list"),
        ({"models": None}, "models= must be a list"),
        ({"out": 3}, "no name of a file"),
        ({"genes": ["gene001", "gene001"]}, "twice"),
        ({"expr": None}, "needs the expression and the noise"),
        ({"nu": np.ones((3, 3))}, "nu has 3 rows"),
        ({"structure": "nonsense"}, "unknown structure"),
        ({"models": ["nonsense"]}, "unknown structure"),
        ({"one_step": 1}, "one_step= must be True or False"),
        ({"n_jobs": 0}, "n_jobs= must be"),
        ({"n_bootstrap": 0, "tests": ["bootstrap"]}, "n_bootstrap= must be"),
        ({"rng": "seed", "tests": ["bootstrap"]}, "rng= must be"),
        ({"formula": "~ C(celltype) + no_such"}, "no_such"),
        ({"formula": "~ C(celltype) + C(donor)"}, "cannot be told apart .* 'hom'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_what_no_gene_could_use_is_an_error_at_once(small, settings, message):
    obs, expr, nu = small
    given = {"formula": "~ C(celltype)", "data": obs, "expr": expr, "nu": nu, "method": "reml"}
    given |= settings
    with pytest.raises(ctmm.CTMMError, match=message):
        ctmm.fit_genes(given.pop("formula"), **given)


@pytest.mark.parametrize("name", ["status", "gene", "mean", "llf"])
def test_a_random_effect_has_no_name_of_a_column_of_the_table(small, name):
    obs, expr, nu = small
    obs = obs.rename(columns={"batch": name})
    with pytest.raises(ctmm.DataError, match=f"several columns '{name}': rename"):
        ctmm.fit_genes(f"~ C(celltype) + (1|{name})", data=obs, expr=expr, nu=nu)


@pytest.mark.parametrize("end", ["mean", "heterogeneity", "bh"])
def test_tests_of_variables_whose_names_go_on_have_columns_of_their_own(small, end):
    """The mean effect of `sex` and the effect of `sex_mean` are both ``effects:sex_mean``."""
    obs, expr, nu = small
    other = f"sex_{end}"
    given = {"data": obs.assign(**{other: obs["PC1"] ** 2}), "expr": expr, "nu": nu}
    formula, tests = f"~ C(celltype) * (sex + {other})", ["effects:sex", f"effects:{other}"]
    with pytest.raises(ctmm.DataError, match=f"several columns .*effects:{other}"):
        ctmm.fit_genes(formula, tests=tests, **given)
    for test in tests:
        assert f"p_{test}" in ctmm.fit_genes(formula, tests=[test], **given).table


def test_tables_must_fit_together(small):
    obs, expr, nu = small
    with pytest.raises(ctmm.DataError, match="index of expr"):
        ctmm.fit_genes("~ C(celltype)", data=obs, expr=expr.iloc[::-1], nu=nu, method="reml")
    twice = pd.concat([expr, expr], axis=1)
    with pytest.raises(ctmm.DataError, match="more than once"):
        ctmm.fit_genes("~ C(celltype)", data=obs, expr=twice, nu=twice)
    with pytest.raises(ctmm.DataError, match="nu has no column for genes 'gene150'"):
        ctmm.fit_genes("~ C(celltype)", data=obs, expr=expr, nu=nu[GENES[:2]])
    with pytest.raises(ctmm.DataError, match="more than once in nu"):
        ctmm.fit_genes("~ C(celltype)", data=obs, expr=expr, nu=twice)
    with pytest.raises(ctmm.DataError, match=r"columns are: give expr\.T"):
        ctmm.fit_genes("~ C(celltype)", data=obs, expr=expr.T, nu=nu.T)
    for nobody in (np.nan, None, pd.NA, ""):
        names = [GENES[0], nobody, GENES[2]]
        with pytest.raises(ctmm.DataError, match="gene number 2 has no name"):
            ctmm.fit_genes("~ C(celltype)", data=obs, expr=expr.set_axis(names, axis=1), nu=nu)
    settings = {"formula": "~ C(celltype)", "data": obs, "tests": [], "method": "reml"}
    numbered = [frame.set_axis([7, 8, 9], axis=1) for frame in (expr, nu)]
    scan = quietly(ctmm.fit_genes, expr=numbered[0], nu=numbered[1], **settings)
    assert scan.genes == ["7", "8", "9"] and scan.gene(8).llf == scan.gene("8").llf
    turned = quietly(ctmm.fit_genes, expr=expr, nu=nu[GENES[::-1]], **settings)
    plain = quietly(ctmm.fit_genes, expr=expr.to_numpy(), nu=nu.to_numpy(), **settings)
    assert plain.genes == ["gene1", "gene2", "gene3"]
    close(turned.vcomp, plain.vcomp)
    sparse = [frame.fillna(0.0).to_numpy() for frame in (expr, nu + 1)]
    packed = quietly(
        ctmm.fit_genes, expr=csr_matrix(sparse[0]), nu=csr_matrix(sparse[1]), **settings
    )
    close(packed.vcomp, quietly(ctmm.fit_genes, expr=sparse[0], nu=sparse[1], **settings).vcomp)
    foreign = quietly(ctmm.fit_genes, expr=expr.astype(">f8"), nu=nu.astype(">f8"), **settings)
    close(foreign.vcomp, scan.vcomp)
    text = expr.astype(object)
    text.iloc[0, 0] = "high"
    for wrong in (text, expr + 1j):
        with pytest.raises(ctmm.DataError, match="do not hold numbers"):
            ctmm.fit_genes("~ C(celltype)", data=obs, expr=wrong, nu=nu)


def pseudobulk(obs, expr, nu, shuffle=False):
    """The pseudobulk AnnData of format 1: the full grid, missing pairs as NaN."""
    anndata = pytest.importorskip("anndata")
    donors = list(dict.fromkeys(obs["donor"]))
    grid = pd.MultiIndex.from_product([donors, CELLTYPES], names=["donor", "celltype"])
    keys = pd.MultiIndex.from_frame(obs[["donor", "celltype"]])
    place = keys.get_indexer(grid)
    known = obs.groupby("donor", sort=False)[["sex", "batch", "PC1"]].first()
    rows = grid.to_frame(index=False).join(known, on="donor")
    rows["n_cells"] = np.where(place >= 0, obs["n_cells"].to_numpy()[place], 3).astype(int)
    rows["proportion"] = rows["n_cells"] / rows.groupby("donor")["n_cells"].transform("sum")
    rows["celltype"] = pd.Categorical(rows["celltype"], CELLTYPES)
    rows["donor"] = pd.Categorical(rows["donor"], donors)
    rows.index = [f"{d}|{c}" for d, c in grid]
    X, layer = (np.where(place[:, None] >= 0, f.to_numpy()[place], np.nan) for f in (expr, nu))
    var = pd.DataFrame(index=list(expr.columns))
    uns = {"ctmm": {"format": 1, "kind": "ctp", "filters": {}}}
    return anndata.AnnData(X, obs=rows, var=var, layers={"nu": layer}, uns=uns)


@pytest.mark.parametrize("how", quick_first(["h5ad", "memory", "backed", "zarr", "sparse"]))
def test_a_pseudobulk_anndata_is_read_wherever_it_is(small, tmp_path, how):
    obs, expr, nu = small
    anndata = pytest.importorskip("anndata")
    pb = pseudobulk(obs, expr, nu)
    settings = {"formula": "~ C(celltype) + sex", "random": "batch", "tests": ["score"]}
    settings["method"] = "reml"
    expected = quietly(ctmm.fit_genes, data=obs, expr=expr, nu=nu, **settings).table
    data = pb
    if how == "sparse":
        pb.X, pb.layers["nu"] = csr_matrix(pb.X), csr_matrix(pb.layers["nu"])
    elif how == "zarr":
        pytest.importorskip("zarr")
        data = tmp_path / "pb.zarr"
        with warnings.catch_warnings():  # of zarr about its own formats
            warnings.simplefilter("ignore")
            pb.write_zarr(data)
    elif how != "memory":
        pb.write_h5ad(tmp_path / "pb.h5ad")
        data = str(tmp_path / "pb.h5ad")
        data = anndata.read_h5ad(data, backed="r") if how == "backed" else data
    scan = quietly(ctmm.fit_genes, data=data, **settings)
    numbers = expected.select_dtypes("number").columns
    close(scan.table[numbers], expected[numbers])
    some = quietly(ctmm.fit_genes, data=data, genes=GENES[::-2], **settings)
    close(some.table["p_score"], expected["p_score"].iloc[::-2])
    close(scan.gene(GENES[2]).llf, expected["llf"].iloc[2])


def test_overall_pseudobulk_finds_its_proportions(overall):
    anndata = pytest.importorskip("anndata")
    obs, expr, nu = overall
    shares = obs[[f"prop_{name}" for name in CELLTYPES]].set_axis(CELLTYPES, axis=1)
    rows = obs.drop(columns=[f"prop_{name}" for name in CELLTYPES]).set_index("donor", drop=False)
    rows.index.name = None
    pb = anndata.AnnData(
        expr.to_numpy(), obs=rows, var=pd.DataFrame(index=GENES), layers={"nu": nu.to_numpy()},
        obsm={"proportions": shares.set_axis(rows.index)},
        uns={"ctmm": {"format": 1, "kind": "op"}},
    )  # fmt: skip
    scan = quietly(ctmm.fit_genes, "~ sex", data=pb, tests=["mean"])
    names = [f"prop_{name}" for name in CELLTYPES]
    expected = quietly(
        ctmm.fit_genes, "~ sex", data=obs, expr=expr, nu=nu, proportions=names, tests=["mean"]
    )
    close(scan.table["p_mean"], expected.table["p_mean"])
    assert scan.gene(GENES[0]).kind == "op"


def test_pairs_of_equal_cells_get_the_noise_of_single_fits(small):
    obs, expr, nu = small
    nu = nu.copy()
    nu.iloc[[4, 9, 20], 0] = 0.0
    pb = pseudobulk(obs, expr, nu)
    scan = quietly(ctmm.fit_genes, "~ C(celltype)", data=pb, tests=["score"])
    single = quietly(ctmm.fit, f"{GENES[0]} ~ C(celltype)", data=pb)
    close(scan.table["zero_noise"], np.array([3, 0, 0]) / len(obs))
    close(scan.table["mean"], expr.where(nu.notna()).mean().to_numpy())
    close(scan.table["p_score"].iloc[0], single.test_variance("score").pvalue)
    close(scan.gene(GENES[0]).params, single.params)


@pytest.mark.parametrize("how", ["table", "arrays", "AnnData", "file"])
def test_squares_of_the_noise_reach_the_score_test(small, how, tmp_path):
    """By every door the numbers of a single fit of the table with a column nu2."""
    obs, expr, nu = small
    nu = nu.copy()
    nu.iloc[[4, 9, 20], 0] = 0.0
    nu2 = nu**2 * np.linspace(0.2, 1.8, len(obs))[:, None]
    nu2.iloc[[1, 11]] = np.nan
    settings = {"formula": "~ C(celltype)", "method": "robust", "tests": ["score"]}
    data = {"data": obs, "expr": expr, "nu": nu, "nu2": nu2}
    if how == "arrays":
        data = {name: obs if name == "data" else part.to_numpy() for name, part in data.items()}
    elif how != "table":
        pb = pseudobulk(obs, expr, nu)
        pb.layers["nu2"] = pseudobulk(obs, expr, nu2).layers["nu"]
        data = {"data": pb}
        if how == "file":
            pb.write_h5ad(tmp_path / "pb.h5ad")
            data = {"data": str(tmp_path / "pb.h5ad")}
    scan = quietly(ctmm.fit_genes, **settings, **data)
    for k, gene in enumerate(GENES):
        table = obs.assign(y=expr[gene], nu=nu[gene], square=nu2[gene])
        single = ctmm.fit("y ~ C(celltype)", data=table, method="robust", nu2="square")
        test = single.test_variance("score")
        close_p(scan.table["p_score"].iloc[k], test.pvalue)
        assert not test.note
        plain = ctmm.fit("y ~ C(celltype)", data=table, method="robust").test_variance("score")
        assert abs(plain.pvalue / test.pvalue - 1.0) > 1e-3
        assert ("test is cautious" in plain.note) == (k == 0)
        again = scan.gene(scan.genes[k])
        close(again.test_variance("score").pvalue, test.pvalue)
        same = ctmm.CTMMResults.from_json(single.to_json())
        close(same.test_variance("score").pvalue, test.pvalue)
    if how == "AnnData":
        fit = ctmm.fit(f"{GENES[0]} ~ C(celltype)", data=pb, method="robust")
        close(fit.test_variance("score").pvalue, scan.table["p_score"].iloc[0])
        assert not any("noise variance 0" in note for note in fit.notes)


def test_a_scan_says_how_many_genes_are_low(small):
    obs, expr, nu = small
    nu = nu.copy()
    nu.iloc[: int(0.6 * len(nu)), 1] = 0.0
    data = {"data": obs, "expr": expr, "nu": nu}
    with pytest.warns(ctmm.CTMMWarning, match=r"1 gene is the same .* \(zero_noise > 0.5\)"):
        scan = ctmm.fit_genes("~ C(celltype)", method="robust", tests=["score"], **data)
    assert (scan.table["zero_noise"] > 0.5).tolist() == [False, True, False]
    assert scan.notes[-1].startswith("1 gene is the same in all cells of most pairs")
    assert f"note: {scan.notes[-1]}" in str(scan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: part.iloc[:, :2], "nu2 has no column for genes"),
        (lambda part: part.iloc[:, :2].to_numpy(), "expr has 3 genes and nu2 2"),
        (lambda part: part.iloc[1:], "nu2 has .* rows and data"),
        (lambda part: part[::-1], "the index of nu2 is not that of data"),
    ],
)
def test_squares_that_do_not_fit_the_noise(small, change, message):
    obs, expr, nu = small
    with pytest.raises(ctmm.DataError, match=message):
        ctmm.fit_genes("~ C(celltype)", data=obs, expr=expr, nu=nu, nu2=change(nu**2))


def test_an_anndata_without_noise_says_so(small):
    obs, expr, nu = small
    pb = pseudobulk(obs, expr, nu)
    with pytest.raises(ctmm.DataError, match=r"no layer 'noise'.*'nu'"):
        ctmm.fit_genes("~ C(celltype)", data=pb, noise="noise")
    with pytest.raises(ctmm.DataError, match="leave expr=, nu= and nu2= out"):
        ctmm.fit_genes("~ C(celltype)", data=pb, expr=expr)
    lost = pb.copy()
    del lost.obs["n_cells"]
    with pytest.raises(ctmm.DataError, match=r"has lost .*n_cells"):
        ctmm.fit_genes("~ C(celltype)", data=lost)
    lost = pb.copy()
    lost.X = None
    with pytest.raises(ctmm.DataError, match="has no X"):
        ctmm.fit_genes("~ C(celltype)", data=lost)
    with pytest.raises(ctmm.DataError, match="no file"):
        ctmm.fit_genes("~ C(celltype)", data="absent.h5ad")


def test_rows_that_few_genes_have_are_rows_of_the_scan(small, monkeypatch):
    """The design is that of all rows with values, wherever in the data the genes are that have."""
    obs, expr, nu = small
    monkeypatch.setattr(job, "BLOCK", 1)
    day = (obs["celltype"] == "day3").to_numpy()
    names = [f"g{k}" for k in range(30)]
    some = pd.DataFrame(np.repeat(expr[GENES[:1]].to_numpy(), 30, axis=1), columns=names)
    noise = pd.DataFrame(np.repeat(nu[GENES[:1]].to_numpy(), 30, axis=1), columns=names)
    some.loc[day, names[:28] + names[29:]] = np.nan
    scan = quietly(ctmm.fit_genes, "~ C(celltype)", data=obs, expr=some, nu=noise, tests=[])
    assert scan.counts() == {"ok": 1, "failed": 29}
    assert scan.table["status"][28] == "ok" and "day3" in scan.table["reason"][0]


@pytest.mark.slow
def test_a_one_step_jackknife_says_how_far_it_is_from_the_exact_one(small, tmp_path):
    obs, expr, nu = small
    settings = {"data": obs, "expr": expr, "nu": nu, "tests": ["jackknife"], "one_step": True}
    settings["method"] = "reml"
    scan = quietly(ctmm.fit_genes, "~ C(celltype)", **settings)
    for k, gene in enumerate(GENES):
        single = scan.gene(gene).jackknife(one_step=True)
        close(scan.table["error_jackknife"][k], single.error)
        close(scan.table["se_jackknife[hom]"][k], single.bse["hom"])
    assert (scan.table["error_jackknife"] > 0).all()
    for more in ({"one_step": False}, {"method": "he"}):
        table = quietly(ctmm.fit_genes, "~ C(celltype)", **settings | more).table
        assert "error_jackknife" not in table
    pytest.importorskip("pyarrow")
    scan.to_parquet(tmp_path / "scan.parquet")
    assert ctmm.read_scan(tmp_path / "scan.parquet").table.equals(scan.table)


@pytest.mark.parametrize("method", ["reml", "he"])
def test_a_jackknife_that_no_gene_can_have_is_a_reason(small, monkeypatch, method):
    def fail(*arguments, **settings):
        raise ctmm.DataError("no donor can be left out")

    for name in ("LikelihoodJackknife", "MomentJackknife"):
        monkeypatch.setattr(patterns, name, fail)
    obs, expr, nu = small
    settings = {"data": obs, "expr": expr, "nu": nu, "tests": ["jackknife"], "method": method}
    table = quietly(ctmm.fit_genes, "~ C(celltype)", **settings).table
    assert np.isfinite(table["hom"]).all() and table["p_jackknife"].isna().all()
    assert table["reason"].str.contains("no donor can be left out").all()


@pytest.mark.parametrize("method", ["reml", "he"])
def test_a_gene_of_a_one_step_scan_has_the_p_values_of_the_table(small, tmp_path, method):
    """Its jackknife is the one-step version too, and it says so, also after JSON and pickle."""
    obs, expr, nu = small
    path = tmp_path / "scan.parquet"
    scan = quietly(
        ctmm.fit_genes, "~ C(celltype) + sex", data=obs, expr=expr, nu=nu, one_step=True,
        tests=["jackknife", "mean_jackknife"], method=method, genes=GENES[:1], out=path,
    )  # fmt: skip
    row = scan.table.iloc[0]
    again = ctmm.read_scan(path, data=obs, expr=expr, nu=nu)
    results = scan.gene(GENES[0])
    stored = [ctmm.CTMMResults.from_json(results.to_json()), pickle.loads(pickle.dumps(results))]
    for one in (results, again.gene(GENES[0]), *stored):
        variance, mean = one.test_variance("jackknife"), one.test_mean("jackknife")
        close(variance.pvalue, row["p_jackknife"])
        close(mean.pvalue, row["p_mean_jackknife"])
        close(one.cov_params("jackknife").loc["hom", "hom"] ** 0.5, row["se_jackknife[hom]"])
        step = ", one step" if method == "reml" else ""  # moments have a closed form
        assert variance.method == mean.method == f"wald (jackknife{step})"
    if method == "reml":
        exact = results.jackknife()
        assert results.test_mean(exact).pvalue != mean.pvalue


@pytest.mark.parametrize("name", ["nu", "nu_", "expr", "sex"])
def test_a_gene_may_have_the_name_of_anything(small, name):
    """Its expression, noise and the covariates stay apart when it is fitted again."""
    obs, expr, nu = small
    expr, nu = expr.rename(columns={GENES[0]: name}), nu.rename(columns={GENES[0]: name})
    scan = quietly(ctmm.fit_genes, "~ C(celltype) + sex", data=obs, expr=expr, nu=nu, genes=[name])
    close(scan.gene(name).vcomp, scan.vcomp.loc[name])


def test_a_scan_without_means_of_the_cell_types_says_so_once(small, tmp_path):
    """Habit of other packages: with V = 0 and different means nearly all genes are significant."""
    data = ctmm.load_genes()
    path = tmp_path / "scan.parquet"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scan = ctmm.fit_genes("~ sex", data=data, genes=GENES, tests=["score"], out=path)
    said = [w for w in caught if "no cell type in the fixed part" in str(w.message)]
    assert len(said) == 1
    assert issubclass(said[0].category, ctmm.CTMMWarning)
    assert "add celltype to the formula" in str(said[0].message)
    for one in (scan, ctmm.read_scan(path), ctmm.read_scan(path, data)):
        assert sum("add celltype to the formula" in line for line in str(one).split("\n")) == 1
    assert sum("add celltype" in note for note in scan.gene(GENES[0]).notes) == 1
    scan = ctmm.fit_genes("~ C(celltype)", data=data, genes=GENES, method="he")
    assert "no cell type in" not in str(scan)


def test_a_cell_type_in_one_donor_is_left_out_of_a_scan(tmp_path):
    """Once with a warning; single fits, and the scan read again, are those of the rest."""
    data = ctmm.load_genes()
    lone = (data.obs["celltype"] != "day0") | (data.obs["donor"] == data.obs["donor"].iloc[0])
    rest = data.obs["celltype"] != "day0"
    options = {"genes": ["gene001", "gene002"], "method": "he"}

    def scan(rows, **more):
        parts = {"data": data.obs[rows], "expr": data.expr[rows], "nu": data.nu[rows]}
        return ctmm.fit_genes("~ C(celltype)", **parts, **options, **more)

    path = tmp_path / "scan.parquet"
    with pytest.warns(ctmm.CTMMWarning, match="'day0' is observed in one donor") as got:
        part = scan(lone, out=path)
    assert len(got) == 1 and "'day0' is observed in one donor" in " ".join(str(part).split())
    pd.testing.assert_frame_equal(part.table, scan(rest).table)
    again = ctmm.read_scan(path, data.obs[lone], data.expr[lone], data.nu[lone])
    assert again.notes == part.notes
    for one in (part, again):
        assert one.gene("gene001").vcomp["hom"] == pytest.approx(part.table["hom"][0], rel=1e-12)


ASKED = {
    "donor": "donor", "n_cells": "n_cells", "proportions": None, "kinship": None,
    "genetic_structure": "free", "engine": "patsy",
}  # fmt: skip


@pytest.mark.parametrize(
    ("formula", "options"),
    [
        ("~ C(celltype)", {}),
        ("~ C(celltype) * sex + age", {"random": "batch"}),
        ("~ C(celltype) + bs(age, df=3) + np.log(age)", {"random": "(celltype|batch)"}),
        ("~ C(celltype, Sum) + C(year)", {"random": "batch"}),
        ("~ C(celltype) + sex", {"by": "sex"}),
        ("~ C(celltype) + age", {"engine": "formulaic"}),
    ],
)
def test_designs_of_a_clean_table_are_those_of_its_rows(formula, options):
    pytest.importorskip("formulaic")
    rng = np.random.default_rng(11)
    donor, celltype = np.divmod(np.arange(72), 3)
    table = pd.DataFrame(
        {
            "donor": [f"d{k:02d}" for k in donor], "celltype": np.array(list("BTX"))[celltype],
            "sex": np.array(["F", "M"])[donor % 2], "age": 20.0 + donor, "year": 2000 + donor % 3,
            "batch": [f"b{k}" for k in donor % 6], "unused": 1.0,
            "n_cells": rng.integers(10, 90, 72).astype(float),
        }
    )  # fmt: skip
    table.loc[[5, 40], "age"] = np.nan
    table.loc[[7, 8], "n_cells"] = np.nan
    options = dict(options)
    spec = parse(formula, options.pop("random", None), response_required=False)
    make = FromTable(spec, table, ASKED | {"env": {"np": np}} | options)
    every = np.arange(len(table))
    clean = make.less(make(every))
    for k in range(12):
        rows = every[rng.random(len(table)) >= 0.1 * (k % 4)]
        if k >= 8:  # levels and donors that are gone
            rows = np.setdiff1d(every[donor % 6 != k % 2], [0, 30])
        one, two = make(rows), clean(rows)
        for field in ("rows", "donor_codes", "X", "H", "n_cells", "mean_rows", "E", "proportions"):
            np.testing.assert_array_equal(getattr(one, field), getattr(two, field), field)
        for field in ("names", "donors", "celltypes", "random_names", "random_levels", "alone"):
            assert getattr(one, field) == getattr(two, field), field
        assert one.index.equals(two.index) and one.effects == two.effects
        for own, other in zip(one.random, two.random, strict=True):
            np.testing.assert_array_equal(own.codes, other.codes)
            np.testing.assert_array_equal(own.values, other.values)
        pd.testing.assert_frame_equal(one.frame[two.frame.columns], two.frame)


def test_a_table_with_rows_that_cannot_be_is_cleaned_row_by_row():
    table = pd.DataFrame({"donor": list("aabbccd"), "celltype": list("BTBTBTB"), "n_cells": 20.0})
    table.loc[6, "n_cells"] = -1.0
    make = FromTable(parse("~ C(celltype)", response_required=False), table, ASKED | {"env": {}})
    rows = np.arange(6)
    clean = make.less(make(rows))
    np.testing.assert_array_equal(clean(rows).X, make(rows).X)
