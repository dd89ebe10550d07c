"""Pictures of one fit: their numbers, what is drawn of them, and what they refuse."""

import pickle
import sys
import warnings
from itertools import pairwise
from types import SimpleNamespace

import dense
import images
import matplotlib
import numpy as np
import pandas as pd
import pytest
from conftest import quick_first
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

import ctmm_formula as ctmm
from ctmm_formula import plots
from ctmm_formula.plots import style
from ctmm_formula.plots.fits import OF_A_FIT

matplotlib.use("Agg")

pytestmark = pytest.mark.slow

LONG = [
    "CD4 naive", "CD4 effector memory", "CD8 naive", "CD8 effector memory", "NK CD56 bright",
    "NK recruiting", "B naive", "B memory", "Plasma cells", "Monocyte classical",
    "Monocyte non-classical", "Dendritic cells", "CD4 SOX4", "CD8 S100B",
]  # fmt: skip


@pytest.fixture(scope="module")
def table():
    return ctmm.load_example()


@pytest.fixture(scope="module")
def res(table):
    return ctmm.fit("expr ~ C(celltype) + sex", random="batch", data=table, method="reml")


@pytest.fixture(scope="module")
def op():
    table = ctmm.load_example(kind="op")
    proportions = [name for name in table if name.startswith("prop_")]
    return ctmm.fit(
        "expr ~ sex", data=table, proportions=proportions, structure="iid", method="reml"
    )


@pytest.fixture(scope="module")
def many():
    """Fourteen cell types with long names, a third of the pairs missing."""
    rng = np.random.default_rng(14)
    pairs = pd.MultiIndex.from_product([[f"d{i:02d}" for i in range(40)], LONG])
    frame = pd.DataFrame(list(pairs), columns=["donor", "celltype"])
    frame["n_cells"] = rng.poisson(200 / (1 + frame["celltype"].map(LONG.index)))
    frame["expr"] = rng.normal(size=len(frame)) + rng.normal(size=40).repeat(14)
    frame["nu"] = 2.0 / frame["n_cells"].clip(lower=1)
    return frame[frame["n_cells"] > 10].reset_index(drop=True)


def renamed(table, names):
    """The table with these names of its cell types."""
    new = dict(zip(dict.fromkeys(table["celltype"]), names, strict=True))
    return table.assign(celltype=table["celltype"].map(new))


def drawn(ax):
    """The picture as pixels: everything is laid out and drawn."""
    figure = np.ravel(np.asarray(ax, dtype=object))[0].figure
    FigureCanvasAgg(figure).draw()  # the canvas of a bare figure draws nothing
    return figure


# -------------------------------------------------------------------------------------------------
# numbers


def test_gene_numbers_are_those_of_the_fit(res, table):
    got = plots.gene_data(res)
    points = got[got["what"] == "pseudobulk"].set_index(["donor", "celltype"])["value"]
    given = table.set_index(["donor", "celltype"])["expr"]
    pd.testing.assert_series_equal(points.sort_index(), given.sort_index(), check_names=False)
    by = {what: part.set_index("celltype") for what, part in got.groupby("what")}
    means = res.means()
    assert (by["mean"]["value"] == means["estimate"]).all()
    assert (by["mean"][["low", "high"]].to_numpy() == means[["conf_low", "conf_high"]]).all(None)
    np.testing.assert_allclose(by["shared"]["value"] ** 2, res.vcomp["hom"])
    for name, sd in by["specific"]["value"].items():
        assert sd**2 == pytest.approx(res.vcomp[f"V[{name}]"])
        low, high = by["specific"].loc[name, ["low", "high"]]
        assert (low + high) / 2 == pytest.approx(means["estimate"][name])
        assert high - low == pytest.approx(2 * sd)


def test_gene_intervals_follow_covariance_and_alpha(res):
    both = [plots.gene_data(res, alpha=alpha) for alpha in (0.01, 0.5)]
    wide, narrow = (got[got["what"] == "mean"] for got in both)
    assert (wide["high"] > narrow["high"]).all()
    jack = plots.gene_data(res, covariance="jackknife").query("what == 'mean'")
    assert jack["low"].tolist() == res.means("jackknife")["conf_low"].tolist()


def test_gene_of_overall_pseudobulk_has_one_group_of_points(op):
    got = plots.gene_data(op)
    points = got[got["what"] == "pseudobulk"]
    assert set(points["celltype"]) == {"overall"}
    assert len(points) == op.n_donors
    names = [text.get_text() for text in plots.gene(op).get_xticklabels()]
    assert names == ["overall", *op.celltypes]


def test_negative_variances_have_a_cross_and_no_bar():
    data = ctmm.load_example("gene102")
    res = ctmm.fit("expr ~ C(celltype)", data=data, structure="free", method="he")
    assert res.vcomp.index[res.vcomp < 0].tolist() == ["V[day0]"]
    got = plots.gene_data(res)
    lost = got["value"].isna()
    assert got.loc[lost, ["what", "celltype"]].to_numpy().tolist() == [["specific", "day0"]]
    ax = plots.gene(res)
    assert "variance < 0" in ax.get_legend_handles_labels()[1]
    assert sum(len(bars) for bars in ax.containers if hasattr(bars, "patches")) == 7


def test_without_a_shared_component_there_is_one_bar_per_cell_type(table):
    res = ctmm.fit("expr ~ C(celltype)", data=table, structure="full", method="reml")
    got = plots.gene_data(res)
    assert got.loc[got["what"] == "shared", "value"].isna().all()
    specific = got.loc[got["what"] == "specific", "value"]
    np.testing.assert_allclose(specific**2, np.diag(res.A))
    labels = plots.gene(res).get_legend_handles_labels()[1]
    assert labels == ["pseudobulk", "SD between donors", "mean, 95 % CI"]


def test_shares_are_those_explained_and_the_bars_add_up(res):
    got = plots.shares_data(res).set_index("component")
    explained = res.variance_explained().drop(index="total")
    there = explained[explained["variance"] != 0]
    assert (got["share"] == there["share"]).all() and set(got.index) == set(there.index)
    assert got.index[-1] == "noise"
    assert got["share"].sum() == pytest.approx(1)
    ax = plots.shares(res)
    assert sum(bar.get_width() for bars in ax.containers for bar in bars) == pytest.approx(1)
    split = plots.shares_data(res, by_celltype=True).set_index("component")["variance"]
    own = split[split.index.str.startswith("specific[")]
    assert len(own) == 4 and own.sum() == pytest.approx(got["variance"]["specific"])


def test_negative_shares_lie_left_of_zero(table):
    proportions = [f"prop_{c}" for c in ("day0", "day1", "day2", "day3")]
    op = ctmm.load_example(kind="op")
    res = ctmm.fit("expr ~ sex", data=op, proportions=proportions, structure="free", method="reml")
    got = plots.shares_data(res)
    negative = got.loc[got["share"] < 0, "share"].sum()
    assert negative < 0
    edges = [bar.get_x() + bar.get_width() for bars in plots.shares(res).containers for bar in bars]
    assert min(edges) == pytest.approx(negative)


@pytest.mark.parametrize("draw", [plots.shares, plots.components])
def test_several_fits_are_told_apart(draw, table):
    fits = [
        ctmm.fit("expr ~ C(celltype)", data=table, structure=s, method="reml")
        for s in ("hom", "free")
    ]
    data = {"shares": plots.shares_data, "components": plots.components_data}[draw.__name__]
    assert data(fits)["fit"].unique().tolist() == ["hom", "free"]
    assert data(dict(zip("ab", fits, strict=True)))["fit"].unique().tolist() == ["a", "b"]
    assert data([fits[0], fits[0]])["fit"].unique().tolist() == ["fit 1", "fit 2"]
    assert data(fits[0])["fit"].unique().tolist() == ["expr"]
    drawn(draw(fits))


def test_components_have_the_intervals_of_the_fit(res):
    for covariance in ("model", "jackknife"):
        got = plots.components_data(res, covariance=covariance, alpha=0.1).set_index("component")
        expected = res.conf_int(0.1, covariance).loc[res.vcomp.index]
        assert (got["estimate"] == res.vcomp).all()
        assert (got[["conf_low", "conf_high"]].to_numpy() == expected.to_numpy()).all()


def test_residuals_agree_with_the_textbook(res):
    """Each row predicted by brute force from all others."""
    model = res.arrays
    a = dense.arrays(model)
    Sigma = dense.covariance(a, res.estimate.theta)
    got = plots.residuals_data(res)
    kernel = {label: k for k, label in enumerate(model.unsort(np.arange(len(a.y))))}
    for k in (0, 7, 100, len(a.y) - 1):
        rest = np.arange(len(a.y)) != k
        inverse = np.linalg.inv(Sigma[np.ix_(rest, rest)])
        information = a.X[rest].T @ inverse @ a.X[rest]
        b = np.linalg.solve(information, a.X[rest].T @ inverse @ a.y[rest])
        pull = Sigma[k, rest] @ inverse
        predicted = a.X[k] @ b + pull @ (a.y[rest] - a.X[rest] @ b)
        off = a.X[k] - pull @ a.X[rest]
        variance = Sigma[k, k] - pull @ Sigma[rest, k] + off @ np.linalg.solve(information, off)
        row = got.iloc[kernel[k]]
        assert row["predicted"] == pytest.approx(predicted, rel=1e-8)
        assert row["residual"] == pytest.approx((a.y[k] - predicted) / np.sqrt(variance), rel=1e-8)


@pytest.mark.parametrize("kind", ["ctp", "op"])
def test_residuals_of_the_model_are_standard_normal(kind, res, op):
    fit = {"ctp": res, "op": op}[kind]
    got = plots.residuals_data(fit)
    assert got.index.equals(fit.resid.index)
    assert stats.kstest(got["residual"], "norm").pvalue > 0.01
    assert abs(stats.spearmanr(got["residual"], got["predicted"]).statistic) < 0.2
    assert (got["residual"].rank() == got["quantile"].rank()).all()
    np.testing.assert_allclose(np.sort(got["quantile"]), -np.sort(got["quantile"])[::-1], atol=1e-9)


def test_rows_that_a_fixed_effect_fits_exactly_have_no_residual(table):
    alone = table.assign(flag=(np.arange(len(table)) == 5).astype(float))
    res = ctmm.fit("expr ~ C(celltype) + flag", data=alone, method="reml")
    got = plots.residuals_data(res)
    assert np.flatnonzero(got["residual"].isna()).tolist() == [5]
    left, _ = plots.residuals(res)
    assert any("1 row fitted exactly" in text.get_text() for text in left.texts)


def test_influence_is_the_change_without_a_donor(res):
    got = plots.influence_data(res)
    jack = res.jackknife()
    wide = got.pivot(index="donor", columns="component", values="difference")
    expected = res.vcomp - jack.estimates[res.vcomp.index]
    pd.testing.assert_frame_equal(
        wide.loc[expected.index, expected.columns], expected, check_names=False
    )
    own = got[got["component"] == "hom"]
    np.testing.assert_allclose(own["influence"] * jack.bse["hom"], own["difference"])
    # the jackknife's variance is that of the changes
    N = len(own)
    spread = own["difference"] - own["difference"].mean()
    assert np.sqrt((N - 1) / N * (spread**2).sum()) == pytest.approx(jack.bse["hom"])


def test_influence_finds_the_donor_that_was_made_an_outlier(table):
    odd = table.copy()
    mine = (odd["donor"] == "donor33") & (odd["celltype"] == "day0")
    odd.loc[mine, "expr"] += 8
    res = ctmm.fit("expr ~ C(celltype)", data=odd, method="reml")
    ax = plots.influence(res, label=1)
    assert ax.get_legend_handles_labels()[1] == ["donor33"]
    most = plots.influence_data(res).query("component == 'V[day0]'").nlargest(1, "influence")
    assert most["donor"].item() == "donor33"


def test_influence_takes_another_jackknife(res, many):
    blocks = res.jackknife(blocks=6)
    got = plots.influence_data(res, jackknife=blocks)
    assert len(got) == 6 * len(res.vcomp)
    drawn(plots.influence(res, jackknife=blocks))
    other = ctmm.fit("expr ~ C(celltype)", data=many, structure="hom", method="reml")
    with pytest.raises(ctmm.CTMMError, match="another fit"):
        plots.influence(other, jackknife=blocks)
    with pytest.raises(ctmm.CTMMError, match=r"res\.jackknife\(\)"):
        plots.influence(res, jackknife="one-step")


def test_missing_counts_pairs(table, res):
    for data in (table, res):
        got = plots.missing_data(data)
        assert len(got) == 72 * 4
        assert got["observed"].sum() == len(table)
        cells = got[got["observed"]].set_index(["donor", "celltype"])["n_cells"]
        given = table.set_index(["donor", "celltype"])["n_cells"]
        assert (cells == given.reindex(cells.index)).all()
        assert got.loc[~got["observed"], "n_cells"].isna().all()
    ax = plots.missing(table)
    assert f"{72 * 4 - len(table)} of 288 pairs missing (blank)" in ax.texts[0].get_text()


def test_missing_values_make_a_pair_missing(table):
    holes = table.assign(expr=table["expr"].mask(table.index < 3))
    assert plots.missing_data(holes)["observed"].sum() == len(table)
    assert plots.missing_data(holes, value="expr")["observed"].sum() == len(table) - 3


def test_missing_orders_donors_from_complete_to_incomplete(many):
    ax = plots.missing(many)
    shown = ax.collections[-1].get_array()
    there = ~np.ma.getmaskarray(np.ma.masked_invalid(shown))
    assert (np.diff(there.sum(axis=0)) <= 0).all()
    assert there.sum() == len(many)


def test_pseudobulk_is_drawn_as_it_is_made():
    rng = np.random.default_rng(3)
    n = 400
    obs = pd.DataFrame({
        "donor": rng.choice(["a", "b", "c"], n),
        "celltype": rng.choice(["B", "T"], n, p=[0.08, 0.92]),
    })  # fmt: skip
    cells = pd.DataFrame({"CD19": rng.gamma(2.0, size=n), "NKG7": rng.gamma(1.0, size=n)})
    with pytest.warns(ctmm.CTMMWarning, match="'B' is observed in one donor, 'a'"):
        pb = ctmm.pseudobulk(cells, obs=obs, min_cells=12, min_cells_donor=1)
    counts = obs.value_counts()
    got = plots.missing_data(pb).set_index(["donor", "celltype"])
    assert (got["observed"] == (counts > 12).reindex(got.index)).all()
    assert 0 < got["observed"].sum() < len(got)
    noise = plots.noise_data(pb, gene="CD19").set_index(["donor", "celltype"])
    by = cells["CD19"].groupby([obs["donor"], obs["celltype"]])
    expected = (by.var() / by.size()).reindex(noise.index).where(noise["nu"].notna())
    np.testing.assert_allclose(noise["nu"], expected)
    with pytest.raises(ctmm.DataError, match="gene="):
        plots.noise(pb)


def test_pooled_noise_is_the_pooled_variance_over_cells(table, res):
    got = plots.noise_data(table)
    for name, part in got.groupby("celltype", observed=True):
        own = table[table["celltype"] == name]
        n = own["n_cells"].to_numpy()
        s2 = np.average(own["nu"] * n, weights=n - 1)  # cell variances by degrees of freedom
        np.testing.assert_allclose(part["pooled"] * part["n_cells"], s2)
    fitted = plots.noise_data(res)
    assert (np.sort(fitted["pooled"]) == np.sort(got["pooled"])).all()


def test_noise_of_overall_pseudobulk_is_one_group(table):
    cells = table.groupby("donor")["n_cells"].sum()
    overall = ctmm.load_example(kind="op").drop(columns="n_cells", errors="ignore")
    overall["n_cells"] = overall["donor"].map(cells)
    got = plots.noise_data(overall, celltype=None)
    assert set(got["celltype"]) == {"overall"}
    n = got["n_cells"]
    expected = np.average(got["nu"] * n, weights=n - 1)
    np.testing.assert_allclose(got["pooled"] * n, expected)
    assert plots.noise(overall, celltype=None).get_legend() is None


def test_genes_as_they_are_loaded_are_drawn(table):
    """All genes share their pairs; noise is that of one gene."""
    genes = ctmm.load_genes()
    pd.testing.assert_frame_equal(plots.missing_data(genes), plots.missing_data(table))
    first = table.index[:3]
    genes.expr.loc[first, "gene002"] = np.nan
    assert plots.missing_data(genes)["observed"].sum() == len(table)
    assert plots.missing_data(genes, value="gene002")["observed"].sum() == len(table) - 3
    genes.expr.loc[first] = np.nan
    assert plots.missing_data(genes)["observed"].sum() == len(table) - 3
    got = plots.noise_data(genes, gene="gene001")
    pd.testing.assert_frame_equal(got, plots.noise_data(table))
    with pytest.raises(ctmm.DataError, match=r"noise is that of one gene: .* gene='gene001'"):
        plots.noise(genes)
    for draw in (lambda: plots.noise(genes, gene="gene"), lambda: plots.missing(genes, value="g")):
        with pytest.raises(ctmm.DataError, match="no column 'g"):
            draw()


def test_simulated_genes_are_drawn():
    genes = ctmm.simulate.simulate_genes(3, 20, ["T", "B"], rng=1)
    name = genes.expr.columns[1]
    got = plots.noise_data(genes, gene=name)
    assert (got["nu"].to_numpy() == genes.nu[name].to_numpy()).all()
    assert plots.missing_data(genes)["observed"].all()
    overall = genes.overall()
    got = plots.noise_data(overall, gene=name)
    assert set(got["celltype"]) == {"overall"}
    assert (got["nu"].to_numpy() == overall.nu[name].to_numpy()).all()
    with pytest.raises(ctmm.DataError, match="no pairs of donor and cell type"):
        plots.missing(overall)


def test_pairs_without_cells_are_there_all_the_same(table):
    """A number of cells that is 0 or unknown is no missing pair."""
    for odd in (0, np.nan):
        ax = plots.missing(table.assign(n_cells=table["n_cells"].where(table.index > 5, odd)))
        under, shades = (np.ma.masked_invalid(image.get_array()) for image in ax.collections)
        assert under.count() == len(table)
        assert shades.count() == len(table) - 6


# -------------------------------------------------------------------------------------------------
# what is drawn


@pytest.mark.parametrize("kind", quick_first(OF_A_FIT, 3))
def test_every_picture_draws_into_given_axes_and_changes_nothing_else(
    kind, res, tmp_path, monkeypatch
):
    import matplotlib.pyplot as plt

    def shown(*_, **__):
        raise AssertionError("a library does not show figures")

    monkeypatch.setattr(plt, "show", shown)
    monkeypatch.chdir(tmp_path)
    before = dict(matplotlib.rcParams)
    figure = Figure(figsize=(3.3, 2.6), layout="constrained")
    count = 2 if kind == "residuals" else 1
    given = figure.subplots(1, count)
    got = res.plot(kind, ax=given)
    assert list(np.ravel(got)) == list(np.ravel(given))
    drawn(got)
    fresh = np.ravel(res.plot(kind))
    assert fresh[0].figure is not figure
    drawn(fresh)
    assert dict(matplotlib.rcParams) == before
    assert list(tmp_path.iterdir()) == []
    assert plt.get_fignums() == []
    assert all(ax.get_xlabel() or kind == "gene" for ax in fresh)


@pytest.mark.parametrize("kind", OF_A_FIT)
def test_the_method_is_the_function(kind, res):
    draw, data = OF_A_FIT[kind]
    assert getattr(plots, kind) is draw and getattr(plots, f"{kind}_data") is data
    pd.testing.assert_frame_equal(res.plot_data(kind), data(res))


@pytest.mark.parametrize("kind", sorted(set(OF_A_FIT) - {"missing"}))
def test_overall_pseudobulk_is_drawn(kind, op):
    drawn(op.plot(kind))


@pytest.mark.parametrize("kind", ["gene", "shares", "components", "missing", "noise"])
def test_pictures_look_as_they_did(kind, res):
    images.check(res.plot(kind).figure, f"fit_{kind}")


def test_a_picture_that_lost_a_bar_is_found_out(res):
    ax = res.plot("gene")
    ax.patches[-1].remove()
    with pytest.raises(AssertionError, match="does not look like"):
        images.check(ax.figure, "fit_gene")
    ax = res.plot("gene")
    ax.set_ylabel("expression")
    with pytest.raises(AssertionError):
        images.check(ax.figure, "fit_gene")


def inside(figure, what):
    """Whether an artist lies within the figure."""
    box, page = what.get_window_extent(), figure.bbox
    return box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1


def on_axis(texts, axis, limits):
    """Labels of ticks that are drawn: those within the limits."""
    low, high = sorted(limits)
    shown = [text for text in texts if text.get_text() and low <= text.get_position()[axis] <= high]
    return sorted(shown, key=lambda text: text.get_position()[axis])


@pytest.mark.slow
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("kind", sorted(set(OF_A_FIT) - {"residuals"}))
def test_fourteen_long_names_stay_on_the_page_and_apart(kind, small, many):
    res = ctmm.fit("expr ~ C(celltype)", data=many, structure="free", method="reml")
    options = {"jackknife": res.jackknife(one_step=True)} if kind == "influence" else {}
    ax = Figure(figsize=(3.3, 2.8), layout="constrained").add_subplot() if small else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = res.plot(kind, ax=ax, **options)
        figure = drawn(ax)
    ticks = [on_axis(ax.get_xticklabels(), 0, ax.get_xlim()),
             on_axis(ax.get_yticklabels(), 1, ax.get_ylim())]  # fmt: skip
    labels = [label for label in (ax.xaxis.label, ax.yaxis.label) if label.get_text()]
    assert len({text.get_text() for text in ticks[1]}) == len(ticks[1])
    for text in (*ticks[0], *ticks[1], *ax.texts, *labels):
        assert inside(figure, text), text.get_text()
    if ax.get_legend() is not None:
        assert inside(figure, ax.get_legend())
    rows = [text.get_window_extent() for text in ticks[1]]
    assert rows and all(a.y1 < b.y0 + 2 or b.y1 < a.y0 + 2 for a, b in pairwise(rows))
    level = [text.get_window_extent() for text in ticks[0] if text.get_rotation() == 0]
    assert all(a.x1 < b.x0 for a, b in pairwise(level))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["constrained", "tight"])
def test_six_pictures_on_one_page_are_legible(layout, table):
    """Their own words are whole, names do not touch, no label is cut."""
    data = renamed(table, ["CD14 Mono", "CD16 Mono", "CD4 naive", "CD4 TCM"])
    res = ctmm.fit("expr ~ C(celltype)", data=data, random="batch", method="reml")
    for size in ((7, 5), (12, 7)):
        figure = Figure(figsize=size, layout=layout)
        axes = figure.subplots(2, 3).ravel()
        for ax, kind in zip(axes, sorted(set(OF_A_FIT) - {"residuals"}), strict=True):
            res.plot(kind, ax=ax)
        drawn(axes)
        drawn(axes)  # a second time the layout is that of what was drawn
        keys = {t.get_text() for ax in axes if ax.get_legend() for t in ax.get_legend().get_texts()}
        assert {"pseudobulk", "SD specific", "mean, 95 % CI"} <= keys
        assert any(text.startswith("shared ") for text in keys)
        for ax in axes:
            assert inside(figure, ax.xaxis.label)
            rows = on_axis(ax.get_yticklabels(), 1, ax.get_ylim())
            boxes = sorted((t.get_window_extent() for t in rows), key=lambda box: box.y0)
            assert all(a.y1 < b.y0 + 2 for a, b in pairwise(boxes))
            level = [t for t in on_axis(ax.get_xticklabels(), 0, ax.get_xlim())
                     if t.get_rotation() == 0]  # fmt: skip
            boxes = [text.get_window_extent() for text in level]
            assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


@pytest.mark.parametrize("kind", quick_first(OF_A_FIT))
def test_figures_are_pickled(kind, res):
    figure = np.ravel(res.plot(kind))[0].figure
    again = pickle.loads(pickle.dumps(figure))
    for one in (figure, again):
        FigureCanvasAgg(one)
    np.testing.assert_array_equal(*(images.pixels(one) for one in (figure, again)))


@pytest.mark.slow
def test_names_are_no_formulas(table):
    """And one that begins with an underscore stands in the key as others do."""
    names = ["CD4$a$", "NK_$b", "x$\\no$y", "_50% B"]
    res = ctmm.fit("expr ~ C(celltype)", data=renamed(table, names), method="reml")
    for kind in OF_A_FIT:
        drawn(res.plot(kind))
    ax = res.plot("noise")
    assert {text.get_text().strip() for text in ax.get_legend().get_texts()} == set(names)
    assert not any(text.get_parse_math() for text in ax.get_legend().get_texts())


def test_a_share_that_rounds_to_nothing_has_no_sign(table):
    class Fit:
        design, vcomp, estimate = SimpleNamespace(response_name="y"), None, None

        def variance_explained(self, by_celltype):
            index = pd.Index(["shared", "specific", "total"], name="component")
            return pd.DataFrame({"variance": [1.0, -1e-4, 1.0], "share": [1.0, -1e-4, 1.0]}, index)

    labels = plots.shares(Fit()).get_legend_handles_labels()[1]
    assert labels == ["shared 100 %", "specific 0 %"]


@pytest.mark.slow
def test_a_long_name_of_a_gene_stays_on_the_page(many):
    """Layouts do not count the length of labels: they break where the page ends."""
    name = "ENSG00000187608.10_interferon"
    res = ctmm.fit(
        f"Q('{name}') ~ C(celltype)",
        data=many.rename(columns={"expr": name}),
        structure="hom",
        method="reml",
    )
    ax = res.plot("gene", ax=Figure(figsize=(3.3, 2.8), layout="constrained").add_subplot())
    figure = drawn(ax)
    assert ax.get_ylabel().startswith("Q('ENSG0")
    assert inside(figure, ax.yaxis.label)
    ax = plots.components(res, ax=Figure(figsize=(3.3, 1.6), layout="constrained").subplots())
    style.finish(ax, "", "an axis with a label of many words")
    assert inside(drawn(ax), ax.yaxis.label)


# -------------------------------------------------------------------------------------------------
# what is refused


def test_what_is_no_fit_is_refused(table):
    for draw in (plots.gene, plots.shares, plots.components, plots.influence, plots.residuals):
        with pytest.raises(ctmm.CTMMError, match=r"expected a fit.*got DataFrame"):
            draw(table)
    for draw in (plots.shares, plots.components):
        for nothing in ([], {}):
            with pytest.raises(ctmm.CTMMError, match="no fit to draw"):
                draw(nothing)


def test_options_that_mean_nothing_are_refused(res):
    with pytest.raises(ctmm.CTMMError, match=r"unknown kind 'genes': choose from gene, shares"):
        res.plot("genes")
    with pytest.raises(ctmm.CTMMError, match="unknown kind"):
        res.plot_data("genes")
    with pytest.raises(ctmm.CTMMError, match="unknown scale"):
        plots.shares(res, scale="percent")
    with pytest.raises(ctmm.CTMMError, match="alpha"):
        plots.gene(res, alpha=95)
    for draw in (plots.influence, plots.residuals):
        for label in (-1, 1.5, True, "all"):
            with pytest.raises(ctmm.CTMMError, match="label="):
                draw(res, label=label)
    with pytest.raises(ctmm.CTMMError, match=r"2 Axes, one per panel, got 1: .*subplots\(1, 2\)"):
        plots.residuals(res, ax=Figure().add_subplot())


@pytest.mark.parametrize("kind", OF_A_FIT)
def test_what_is_no_axes_is_refused(kind, res):
    """A figure or several axes, as plt.subplots returns them, in place of one."""
    for wrong in (Figure(), Figure().subplots(1, 3), "ax", 3):
        with pytest.raises(ctmm.CTMMError, match=r"^ax= .* (Figure|ndarray|str|int|\d): .*ax="):
            res.plot(kind, ax=wrong)
    with pytest.raises(ctmm.CTMMError, match=r"^ax= takes one matplotlib Axes, got Figure"):
        plots.residuals(res, ax=[Figure(), Figure()])


def test_residuals_without_a_covariance_say_what_to_do():
    table = ctmm.load_example("gene003", kind="op")
    proportions = [name for name in table if name.startswith("prop_")]
    how = {"data": table, "proportions": proportions, "structure": "full"}
    with pytest.raises(ctmm.ConvergenceError, match=r"no standardised residuals.*method='reml'"):
        plots.residuals(ctmm.fit("expr ~ sex", method="he", **how))
    with pytest.warns(ctmm.BoundaryWarning):
        res = ctmm.fit("expr ~ sex", method="reml", **how)
    drawn(plots.residuals(res))
    for gene in ("gene025", "gene153"):  # donors' own covariances are fine, that of the batch not
        how |= {"data": ctmm.load_example(gene, kind="op"), "structure": "free"}
        res = ctmm.fit("expr ~ sex", random="batch", method="he", **how)
        assert res.vcomp["batch"] < 0
        with pytest.raises(ctmm.ConvergenceError, match=r"not positive definite; fit by method="):
            plots.residuals(res)


def test_one_is_no_plural(many):
    one = many[(many["donor"] == "d00") & (many["n_cells"] > 0)]
    assert plots.missing(one).get_xlabel() == "1 donor"
    assert plots.missing(many).get_xlabel() == "40 donors"
    none = many.assign(nu=many["nu"].where(many.index != 3))
    assert "; 1 row without noise or cells" in plots.noise(none).texts[0].get_text()


def test_blank_pairs_and_lines_have_the_colour_of_the_page(table):
    with matplotlib.style.context("dark_background"):
        ax = plots.missing(table)
        drawn(ax)
    grid = [tick.gridline.get_color() for tick in ax.yaxis.get_minor_ticks()]
    assert {matplotlib.colors.to_rgb(color) for color in grid} == {(0.0, 0.0, 0.0)}


@pytest.mark.slow
def test_names_of_donors_that_do_not_fit_are_left_out(many):
    for width, named in ((3.3, False), (9.0, True)):
        ax = plots.missing(many, ax=Figure(figsize=(width, 2.8), layout="constrained").subplots())
        drawn(ax)
        boxes = [text.get_window_extent() for text in ax.get_xticklabels()]
        assert bool(boxes) == named
        assert all(a.x1 < b.x0 + 1 for a, b in pairwise(boxes))


def test_tables_without_what_is_drawn_are_refused(table, op, many):
    with pytest.raises(ctmm.DataError, match="no column 'celltype'"):
        plots.missing(table.rename(columns={"celltype": "type"}))
    with pytest.raises(ctmm.DataError, match="no column 'cells'"):
        plots.missing(table, n_cells="cells")
    with pytest.raises(ctmm.DataError, match="several rows of cell type"):
        plots.missing(pd.concat([table, table.head(1)]))
    with pytest.raises(ctmm.DataError, match="no pairs of donor and cell type"):
        plots.missing(op)
    with pytest.raises(ctmm.DataError, match="missing in row 3"):
        plots.missing(table.assign(donor=table["donor"].mask(table.index == 3)))
    with pytest.raises(ctmm.DataError, match="no numbers of cells"):
        plots.noise(table.drop(columns="n_cells"))
    with pytest.raises(ctmm.DataError, match="no column 'nu'"):
        plots.noise(table.drop(columns="nu"))
    with pytest.raises(ctmm.DataError, match="no row has a noise variance above 0"):
        plots.noise(table.assign(nu=0.0))
    with pytest.raises(ctmm.DataError, match="must be a pandas DataFrame"):
        plots.noise(3)
    plots.missing(table.drop(columns="n_cells"))  # there or not


def test_without_matplotlib_the_pip_line_is_named(monkeypatch):
    table = ctmm.load_example()
    fit = ctmm.fit("expr ~ C(celltype)", data=table, structure="hom", method="he")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (fit.plot, lambda: ctmm.plots.missing(table), lambda: ctmm.plots.qq([0.5])):
        with pytest.raises(ctmm.CTMMError, match=r"pip install 'ctmm-formula\[plots\]'"):
            draw()
    assert len(fit.plot_data())
