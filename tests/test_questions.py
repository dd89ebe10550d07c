"""Tests asked for in words: the same in fit, scan, files and tidy tables."""

import numpy as np
import pandas as pd
import pytest

import ctmm_formula as ctmm
from ctmm_formula.inference.tests import TESTS
from ctmm_formula.results.questions import QUESTIONS

SAME = 1e-9
GENES = ["gene001", "gene002", "gene101", "gene102"]
FORMULA = "~ C(celltype) * sex + PC1"
NAMES = [
    "effects:sex", "effects: PC1", "component:batch", "wald: V[day1] = V[day0]",
    "wald:sex[T.M] = 0", "contrast:day0|M - day0|F = day1|M - day1|F", "contrast:day0 = day1 = 0.1",
]  # fmt: skip


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=SAME, equal_nan=True)


@pytest.fixture(scope="module")
def data():
    return ctmm.load_genes()


def scanned(data, tests, **options):
    settings = {"random": "batch", "genes": GENES, **options}
    return ctmm.fit_genes(FORMULA, data=data, tests=tests, **settings)


@pytest.fixture(scope="module")
def scan(data):
    return scanned(data, ["score", *NAMES])


def part(row, name):
    return [row.get(f"{kind}_{name}", np.nan) for kind in ("estimate", "se", "stat", "df", "p")]


def of(test):
    df = test.df[1] if isinstance(test.df, tuple) else test.df
    return [test.estimate, test.std_error, test.statistic, df, test.pvalue]


@pytest.mark.parametrize("method", [None, "reml", "ml", "he"])
def test_a_scan_asks_what_a_fit_is_asked(data, method):
    for drop in (False, True):
        own = data._replace(obs=data.obs.drop(columns="n_cells")) if drop else data
        options = {"method": method, "genes": GENES[:1]}
        scan = scanned(own, NAMES, **options)
        row, res = scan.table.iloc[0], scan.gene(GENES[0])
        effects = res.effects("sex")
        close(part(row, "effects:sex"), of(effects.omnibus))
        close(part(row, "effects:sex_heterogeneity"), of(effects.heterogeneity))
        close(part(row, "effects:sex_mean"), of(effects.mean_test))
        assert row["df1_effects:sex"] == 4 and row["df1_effects:sex_heterogeneity"] == 3
        for name in res.celltypes:
            close(part(row, f"effects:sex[{name}]"), of(effects.by_celltype[name]))
        assert "effects:PC1_mean" in " ".join(row.index) and "p_effects:PC1[day0]" not in row
        close(part(row, "effects:PC1_mean"), of(res.effects("PC1").mean_test))
        component = res.test_component("batch")
        close(part(row, "component:batch")[2:], of(component)[2:])
        close(row["estimate_component:batch"], res.vcomp["batch"])
        for words in ("V[day1] = V[day0]", "sex[T.M] = 0"):
            close(part(row, f"wald:{words}")[2:], of(res.wald_test(words))[2:])
        words = "day0|M - day0|F = day1|M - day1|F"
        kinds = ["estimate", "std_error", "statistic", "df", "p_value"]
        close(part(row, f"contrast:{words}"), res.contrast(words)[kinds].iloc[0])


def test_p_values_are_adjusted_over_genes_and_tidy_has_them_all(scan):
    p = scan.table["p_effects:sex[day2]"]
    close(scan.table["p_effects:sex[day2]_bonferroni"], np.minimum(4 * p, 1))
    tidy = scan.tidy()
    assert list(tidy.columns) == [
        "gene", "test", "term", "estimate", "std_error", "statistic", "df_num", "df", "p_value",
        "log10_p_value", "p_bonferroni", "p_bh",
    ]  # fmt: skip
    effects = scan.tidy("effects: sex")
    assert list(dict.fromkeys(effects["term"])) == [
        "", "heterogeneity", "mean", "day0", "day1", "day2", "day3"
    ]  # fmt: skip
    own = effects[effects["term"] == "day2"]
    close(own["p_value"], p)
    close(own["p_bh"], scan.table["p_effects:sex[day2]_bh"])
    score = tidy[tidy["test"] == "score"]
    assert list(dict.fromkeys(score["term"])) == ["", "cauchy", "day0", "day1", "day2", "day3"]
    assert score["df"].isna().all() and score["p_value"].notna().all()
    assert len(tidy) == len(GENES) * len(tidy[["test", "term"]].drop_duplicates())
    assert len(scan.tidy([])) == 0
    with pytest.raises(ctmm.CTMMError, match="unknown test 'mean': choose from score"):
        scan.tidy("mean")


def test_genes_can_be_sorted_by_every_part(scan):
    for by in ("effects:sex", "effects: sex", "effects:sex[day1]", "effects:sex_heterogeneity"):
        p = scan.table[f"p_{by.replace(' ', '')}"]
        assert scan.top(1, by=by)["gene"].iloc[0] == scan.table["gene"][p.idxmin()]
    assert "effects:sex[day0]" in scan.summary().index


def test_a_stored_scan_goes_on_only_with_the_same_questions(data, tmp_path):
    path = tmp_path / "scan.parquet"
    first = scanned(data, NAMES[:2], out=path)
    again = scanned(data, NAMES[:2], out=path)
    assert again.table.equals(first.table)
    read = ctmm.read_scan(path)
    assert read.table.equals(first.table) and read.tidy().equals(first.tidy())
    assert read.layout.parts == first.layout.parts
    with pytest.raises(ctmm.DataError, match=r"other settings \(tests\)"):
        scanned(data, ["effects:sex", "component:batch"], out=path)


def test_shares_of_variance_are_those_of_the_fits(data, tmp_path):
    path = tmp_path / "scan.parquet"
    scan = scanned(data, [], shares=True, out=path)
    for gene in GENES[:2]:
        want = scan.gene(gene).variance_explained()["share"].drop("total")
        row = scan.table.set_index("gene").loc[gene]
        close(row[[f"share[{name}]" for name in want.index]].astype(float), want)
    assert ctmm.read_scan(path).layout.shares == scan.layout.shares
    with pytest.raises(ctmm.DataError, match=r"other settings \(shares\)"):
        scanned(data, [], out=path)
    assert "share[noise]" not in scanned(data, []).table


def test_names_may_hold_signs_of_equations(data):
    named = {"day0": "a=b", "day1": "CD4+ T, x =y", "day2": "dose = 1"}
    own = data._replace(obs=data.obs.replace({"celltype": named}))
    asked = ["V[a=b] = V[CD4+ T, x =y]", "V[dose = 1]=V[day3]"]
    means = ["a=b - dose = 1", "CD4+ T, x =y|M - a=b|M = 0.1"]
    tests = [*(f"wald: {w}" for w in asked), *(f"contrast:{w}" for w in means)]
    scan = scanned(own, [*tests, "component:V[a=b]"], genes=GENES[:1], method="reml")
    row, res = scan.table.iloc[0], scan.gene(GENES[0])
    close(part(row, "component:V[a=b]")[2:], of(res.test_component("V[a=b]"))[2:])
    for words in asked:
        close(part(row, f"wald:{words}")[2:], of(res.wald_test(words))[2:])
    for words in means:
        close(row[f"p_contrast:{words}"], res.contrast(words)["p_value"].iloc[0])
    assert len(scan.top(1, by=tests[0])) == 1 and scan.tidy(tests)["p_value"].notna().all()
    # by numbers: the same names without signs
    plain = data._replace(obs=data.obs.replace({"celltype": {"day0": "k1", "day1": "CDT"}}))
    other = scanned(plain, ["wald:V[k1] = V[CDT]"], genes=GENES[:1], method="reml").table
    close(other["p_wald:V[k1] = V[CDT]"], row[f"p_{tests[0].replace(': ', ':')}"])


def test_a_cell_type_that_is_called_mean_has_a_term_of_its_own(data):
    named = data.obs.replace({"celltype": {"day1": "mean", "day2": "shared"}})
    own = data._replace(obs=named)
    scan = scanned(own, ["effects:sex", "groups"], by="sex", genes=GENES[:2])
    tidy = scan.tidy().set_index(["gene", "test", "term"]).sort_index()
    assert tidy.index.is_unique
    row = scan.table.iloc[0]
    for test, name in (("effects:sex", "mean"), ("groups", "shared")):
        both = tidy.loc[(GENES[0], test), "p_value"]
        close(both[f"celltype {name}"], row[f"p_{test}[{name}]"])
        close(both[name], row[f"p_{test}_{name}"])


def test_workers_find_what_one_finds(data):
    one, two = (scanned(data, NAMES, n_jobs=k).table for k in (1, 2))
    assert one.equals(two)


def test_a_gene_on_fewer_rows_has_the_numbers_of_its_own_fit(data):
    """Effects are averaged over the rows that the gene has."""
    lost = data.obs["donor"].isin(sorted(set(data.obs["donor"]))[:9]).to_numpy()
    expr = data.expr.copy()
    expr.loc[lost, GENES[1]] = np.nan
    own = data._replace(expr=expr)
    formula = "~ C(celltype) * sex + sex:PC1 + PC1"
    scan = ctmm.fit_genes(formula, data=own, genes=GENES[:2], tests=["effects:sex"])
    for k, gene in enumerate(GENES[:2]):
        close(part(scan.table.iloc[k], "effects:sex_mean"),
              of(scan.gene(gene).effects("sex").mean_test))  # fmt: skip
    assert scan.table["n_donors"].nunique() == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("effect:sex", r"unknown test 'effect:sex'.*score.*effects:VARIABLE.*component:NAME"),
        ("effects:", "unknown test 'effects:'"),
        ("effects:sx", "test 'effects:sx': unknown variable 'sx'.*'sex', 'PC1'"),
        ("component:btch", "test 'component:btch': .*hom, .*batch"),
        ("wald: V[T] = 0", r"test 'wald:V\[T\] = 0': cannot read.*V\[day0\]"),
        ("contrast: T - B", "test 'contrast:T - B': cannot read.*day0, .*day3|M"),
    ],
)
def test_what_is_misspelt_names_the_choices(data, name, words):
    with pytest.raises(ctmm.CTMMError, match=words):
        scanned(data, [name])


def test_rows_say_what_they_assert():
    for name, row in QUESTIONS.items():
        assert row.asserts and row.form.startswith(f"{name}:")
    assert not set(QUESTIONS) & {"score"} and "wald" in TESTS  # told apart by the colon


def test_contrasts_by_weights_and_words():
    df = ctmm.load_example()
    res = ctmm.fit("expr ~ C(celltype) * sex + PC1", data=df)
    means = res.means(at={"sex": ["F", "M"]})
    assert means.index.names == ["celltype", "sex"]
    by_weights = res.contrast({"day1|M": 1, "day1|F": -1, "day0|M": -1, "day0|F": 1})
    value = means["estimate"]
    own = value["day1", "M"] - value["day1", "F"] - value["day0", "M"] + value["day0", "F"]
    close(by_weights["estimate"], own)
    close(own, res.fe_params["C(celltype)[T.day1]:sex[T.M]"])
    close(by_weights["p_value"], res.t_test("C(celltype)[T.day1]:sex[T.M]").pvalue)
    words = res.contrast("day1|M - day1|F - day0|M + day0|F")
    close(words.to_numpy(), by_weights.to_numpy())
    assert list(by_weights.index) == ["day1|M - day1|F - day0|M + day0|F"]
    several = res.contrast({"a": {"day0": 1, "day1": -1}, "b": {"day3": 1, "day0": -1}})
    pairs = res.contrasts()
    close(
        several.loc["b", ["estimate", "p_value"]], pairs.loc["day3 - day0", ["estimate", "p_value"]]
    )
    shifted = res.contrast(f"day3 - day0 = {pairs.loc['day3 - day0', 'estimate']}")
    assert shifted["p_value"].iloc[0] > 0.999
    fifty = res.contrast({"day0": 1}, at={"PC1": 2.0, "sex": "M"})
    close(fifty["estimate"], res.predict({"celltype": ["day0"], "sex": ["M"], "PC1": [2.0]}))
    with pytest.raises(ctmm.CTMMError, match=r"parameters are day0, .*day3|M"):
        res.contrast({"T": 1})
    with pytest.raises(ctmm.CTMMError, match="not both"):
        res.contrast({"a": {"day0": 1}, "day1": 1})


def test_means_at_values_are_predictions():
    df = ctmm.load_example()
    res = ctmm.fit("expr ~ C(celltype) * sex + PC1", data=df)
    at = res.means(at={"sex": "M", "PC1": 1.5})
    new = {"celltype": list(res.celltypes), "sex": ["M"] * 4, "PC1": [1.5] * 4}
    found = res.get_prediction(new)
    close(at["estimate"], res.predict(new))
    close(found.predicted_mean, res.predict(new))
    close(found.se_mean, at["std_error"])
    close(found.conf_int(), at[["conf_low", "conf_high"]])
    close(found.conf_int(0.2), res.means(at={"sex": "M", "PC1": 1.5}, alpha=0.2).iloc[:, 2:])
    assert list(found.summary_frame().columns) == [
        "mean", "mean_se", "mean_ci_lower", "mean_ci_upper"
    ]  # fmt: skip
    assert res.means(at={}).equals(res.means())
    with_nan = res.get_prediction({**new, "PC1": [1.5, np.nan, 1.5, 1.5]})
    assert np.isnan(with_nan.se_mean).tolist() == [False, True, False, False]
    assert len(res.get_prediction().predicted_mean) == res.nobs
    pd.testing.assert_series_equal(res.get_prediction().predicted_mean, res.marginal,
                                   check_names=False)  # fmt: skip
