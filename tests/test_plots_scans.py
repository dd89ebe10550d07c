"""Pictures of scans, p values and power: their numbers, what is drawn, and what they refuse."""

import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import images
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats

import ctmm_formula as ctmm
from ctmm_formula import plots
from ctmm_formula.plots.names import places
from ctmm_formula.plots.scans import OF_A_SCAN
from ctmm_formula.plots.style import shortened
from ctmm_formula.structures import resolve

matplotlib.use("Agg")

pytestmark = pytest.mark.slow

LONG = [
    "CD4 naive", "CD4 effector memory", "CD8 naive", "CD8 effector memory", "NK CD56 bright",
    "NK recruiting", "B naive", "B memory", "Plasma cells", "Monocyte classical",
    "Monocyte non-classical", "Dendritic cells", "CD4 SOX4", "CD8 S100B",
]  # fmt: skip


@pytest.fixture(scope="module")
def scan():
    genes = [f"gene{k:03d}" for k in (*range(1, 11), *range(101, 111))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.BoundaryWarning)
        return ctmm.fit_genes(
            "~ C(celltype) + sex", data=ctmm.load_genes(), random="batch", models=["full"],
            tests=["score", "mean"], genes=genes, progress=False, method="reml"
        )  # fmt: skip


@pytest.fixture(scope="module")
def everything(scan):
    """A scan that has all pictures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.BoundaryWarning)
        return ctmm.fit_genes(
            "~ C(celltype) + sex", data=ctmm.load_genes(), models=["full"], method="reml",
            tests=["score", "mean", "effects:sex"], genes=scan.genes[:4], shares=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def related():
    """A scan of genes with windows of their own, beside a kinship."""
    G = ctmm.simulate.simulate_genotypes(80, 300, family=2, rng=1)
    own = ctmm.simulate.Heredity(G, cis=0.4, cis_specific=0.3, window=50_000)
    genes = ctmm.simulate.simulate_genes(6, 80, 3, sigma2=0.1, heredity=own, rng=2)
    return ctmm.fit_genes(
        "~ C(celltype)", data=genes, structure="iid", genetic_structure="full", genotypes=G,
        window=50_000, positions=genes.positions, kinship={"trans": G.kinship()},
        tests=["heritability", "jackknife"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def scan_of(everything, related):
    """A scan that has a picture."""
    genetic = ("heritability", "genetic_correlations")
    return {kind: related if kind in genetic else everything for kind in OF_A_SCAN}


@pytest.fixture(scope="module")
def many():
    """Fourteen cell types with long names and known correlations, as a scan holds them."""
    rng = np.random.default_rng(14)
    lower = [(r, c) for r in range(14) for c in range(r)]
    genes = pd.Index([f"g{k}" for k in range(30)], name="gene")
    noise = rng.normal(0, 0.1, (30, 91))
    corr = pd.DataFrame(
        np.clip(np.array([0.9 ** (r - c) for r, c in lower]) + noise, -1, 1), genes,
        [f"corr[{LONG[r]},{LONG[c]}]" for r, c in lower],
    )  # fmt: skip
    corr.iloc[0] = np.nan
    corr.iloc[1, :3] = np.nan
    structure = resolve("full", LONG)
    vcomp = pd.DataFrame(rng.gamma(2, 0.2, (30, len(structure.labels))), genes, structure.labels)
    vcomp.iloc[0] = np.nan
    layout = SimpleNamespace(celltypes=tuple(LONG), structures=(structure,))
    return SimpleNamespace(table=pd.DataFrame(), layout=layout, vcomp=vcomp, corr=corr)


@pytest.fixture(scope="module")
def two_tests():
    """P values of 400 genes, two of them 0, three missing."""
    rng = np.random.default_rng(4)
    table = pd.DataFrame({"gene": [f"g{k}" for k in range(400)]})
    table["p_mean"] = rng.random(400) ** rng.choice([1, 8], 400)
    table["p_score"] = rng.random(400) ** rng.choice([1, 5], 400)
    table.loc[[0, 1], "p_mean"] = 0.0
    table.loc[[2, 3, 4], "p_score"] = np.nan
    return table


@pytest.fixture(scope="module")
def rates():
    rows = [
        (n, test, V, 0.1 * k + n / 400 + 0.3 * (V != 0), 0.02, 0.05)
        for n in (100, 25, 50)
        for k, test in enumerate(["score", "lrt"])
        for V in (0.0, (0.1, 0.0))
    ]
    return pd.DataFrame(rows, columns=["n_donors", "test", "V", "rate", "se", "alpha"])


def small():
    """Axes one column wide."""
    return Figure(figsize=(3.3, 2.8), layout="constrained").subplots()


def laid_out(ax):
    """Nothing that is drawn reaches beyond the page."""
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    box = ax.figure.get_tightbbox(canvas.get_renderer())
    width, height = ax.figure.get_size_inches()
    assert min(box.x0, box.y0) > -0.03
    assert box.x1 < width + 0.03
    assert box.y1 < height + 0.03


def notes(ax):
    return " ".join(text.get_text() for text in ax.texts)


# ---------------------------------------------------------------------------------------------
# variances


@pytest.mark.slow
def test_variances_are_those_of_the_scan(scan):
    data = scan.plot_data("variances")
    wide = data.pivot(index="gene", columns="component", values="variance")[scan.vcomp.columns]
    pd.testing.assert_frame_equal(
        wide.rename_axis(columns=None), scan.vcomp, check_column_type=False
    )


def test_medians_are_written_and_do_not_depend_on_the_clip(scan):
    middle = scan.vcomp.median()
    free, clipped = (plots.variances(scan, clip=clip) for clip in (1e6, 0.05))
    for ax in (free, clipped):
        written = [float(text.get_text()) for text in ax.texts if "clip" not in text.get_text()]
        np.testing.assert_allclose(written, middle, atol=0.0051)
    assert "clipped" not in notes(free)
    beyond = int((scan.vcomp.abs() > 0.05).sum().sum())
    assert f"{beyond} of {scan.vcomp.size} clipped at ±0.05" in notes(clipped)


def test_variances_leave_out_covariances_and_count_failed_genes(many):
    ax = plots.variances(many)
    assert [text.get_text() for text in ax.get_xticklabels()] == [f"V[{name}]" for name in LONG]
    assert "1 gene without estimates left out" in notes(ax)
    laid_out(ax)


@pytest.mark.parametrize("clip", [0, -1, np.inf, "2", True])
def test_clip_is_a_positive_number(scan, clip):
    with pytest.raises(ctmm.CTMMError, match="clip= must be a positive number"):
        plots.variances(scan, clip=clip)


# ---------------------------------------------------------------------------------------------
# correlations


def test_correlations_are_those_of_the_scan_with_their_distances(scan):
    data = scan.plot_data("correlations")
    assert len(data) == len(scan) * 6
    for (first, second), own in data.groupby(["first", "second"]):
        np.testing.assert_array_equal(own["correlation"], scan.corr[f"corr[{second},{first}]"])
        assert set(own["distance"]) == {int(second[-1]) - int(first[-1])}


def test_adjacent_pairs_come_first_and_look_different(scan):
    ax = scan.plot("correlations", ordered=True)
    assert [text.get_text() for text in ax.get_xticklabels()] == [
        "day0–day1", "day1–day2", "day2–day3", "day0–day2", "day1–day3", "day0–day3",
    ]  # fmt: skip
    fills = [tuple(body.get_facecolor()[0]) for body in ax.collections]
    assert len(set(fills[:3])) == len(set(fills[3:])) == 1
    assert fills[0] != fills[3]
    plain = {tuple(body.get_facecolor()[0]) for body in scan.plot("correlations").collections}
    assert len(plain) == 1


def test_heat_map_shows_medians_of_every_pair(many):
    ax = plots.correlations(many, ordered=True, ax=small())
    shown = ax.images[0].get_array()
    r, c = 5, 2
    expected = many.corr[f"corr[{LONG[r]},{LONG[c]}]"].median()
    assert shown[r - 1, c] == pytest.approx(expected)
    assert np.isnan(np.ma.filled(shown, np.nan)[0, 1])
    assert len(ax.patches) == 13  # one frame for each adjacent pair
    assert "1 of 30 genes without a covariance left out" in notes(ax)
    assert "1 gene with some of the pairs only" in notes(ax)
    laid_out(ax)


def test_one_correlation_for_all_pairs_is_refused(scan):
    hom = resolve("hom", list(scan.layout.celltypes))
    layout = SimpleNamespace(celltypes=scan.layout.celltypes, structures=(hom,))
    short = SimpleNamespace(table=scan.table, layout=layout, vcomp=scan.vcomp, corr=scan.corr)
    with pytest.raises(ctmm.CTMMError, match=r'models=\["full"\]'):
        plots.correlations(short)


# ---------------------------------------------------------------------------------------------
# means against variances


def test_differentiation_has_the_logarithms(two_tests):
    data = plots.differentiation_data(two_tests, "mean", "score")
    assert list(data) == ["gene", "p_mean", "p_score", "x", "y"]
    np.testing.assert_allclose(10.0 ** -data["x"], two_tests["p_mean"], rtol=1e-12)
    assert np.isinf(data["x"][:2]).all()
    assert data["y"][2:5].isna().all()


def test_thresholds_are_bonferroni_over_genes_that_were_tested(two_tests):
    ax = plots.differentiation(two_tests, "mean", "score", alpha=0.1)
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed[0].get_xdata()[0] == pytest.approx(-np.log10(0.1 / 400))
    assert dashed[1].get_ydata()[0] == pytest.approx(-np.log10(0.1 / 397))
    assert "3 of 400 genes without p left out" in notes(ax)
    assert "2 with p = 0 at the edge" in notes(ax)
    finite = np.isfinite(plots.differentiation_data(two_tests, "mean", "score")["x"])
    assert len(ax.collections[0].get_offsets()) == finite.sum() - 3
    assert len(ax.collections[1].get_offsets()) == 2


def test_genes_are_named_by_number_or_by_name(two_tests):
    best = two_tests.sort_values("p_score")["gene"][:3].tolist()
    said = notes(plots.differentiation(two_tests, "mean", "score", genes=3)).split()
    assert set(best) <= set(said)
    said = notes(plots.differentiation(two_tests, "mean", "score", genes=["g77", "g77"])).split()
    assert said.count("g77") == 1
    assert best[0] not in said
    with pytest.raises(ctmm.CTMMError, match="there is no gene 'g777'"):
        plots.differentiation(two_tests, "mean", "score", genes=["g777"])
    with pytest.raises(ctmm.CTMMError, match="g2 has no p value"):
        plots.differentiation(two_tests, "mean", "score", genes=["g2"])


@pytest.mark.slow
@pytest.mark.parametrize("size", [(3.3, 2.8), (6.0, 4.0)])
@pytest.mark.parametrize("spread", [0.6, 2.0])
def test_crowded_names_are_not_taken_for_each_others(size, spread):
    rng = np.random.default_rng(3)
    p = 10 ** -np.vstack([8 + spread * rng.standard_normal((12, 2)), rng.uniform(0, 3, (300, 2))])
    table = pd.DataFrame({"gene": [f"GENE{k}" for k in range(len(p))]})
    ax = small()
    table = table.assign(p_mean=p[:, 0], p_score=p[:, 1])
    plots.differentiation(table, genes=table["gene"][:12], ax=ax)
    ax.figure.set_size_inches(*size)  # what is known only when it is drawn
    laid_out(ax)
    named = [text for text in ax.texts if text.get_text().startswith("GENE")]
    assert len(named) == 12
    points = ax.transData.transform([text.xy for text in named]) / ax.figure.dpi * 72
    lined = 0
    for k, text in enumerate(named):
        low, high = Text.get_window_extent(text).get_points() / ax.figure.dpi * 72
        gaps = np.linalg.norm(np.maximum(np.maximum(low - points, points - high), 0.0), axis=1)
        assert gaps.min() > 2.5  # on no ring
        assert text.arrow_patch.get_visible() == (gaps[k] > 8)
        assert text.arrow_patch.get_visible() or gaps.argmin() == k
        lined += text.arrow_patch.get_visible()
        for other in named[:k]:
            assert not Text.get_window_extent(text).overlaps(Text.get_window_extent(other))
        inside = ax.get_window_extent().get_points() / ax.figure.dpi * 72
        assert (low >= inside[0] - 0.01).all()
        assert (high <= inside[1] + 0.01).all()
    assert 0 < lined < 12


@pytest.mark.slow
def test_names_that_cannot_all_stand_apart_are_all_there():
    corners, _ = places(np.full((40, 2), 20.0), np.full((40, 2), [35.0, 8.0]), np.full(2, 50.0))
    assert corners.shape == (40, 2)
    assert ((corners >= 0.0) & (corners <= [15.0, 42.0])).all()


def test_names_out_of_view_take_no_room(two_tests):
    """After zooming: what matplotlib does not draw pushes no name away."""
    chosen = two_tests.sort_values("p_score")["gene"][:30]
    data = plots.differentiation_data(two_tests, "mean", "score").set_index("gene")
    low = data.loc[chosen, "y"].sort_values().iloc[-4] - 0.01
    places = []
    for genes in (chosen, chosen[(data.loc[chosen, "y"] > low).to_numpy()]):
        ax = plots.differentiation(two_tests, y="score", genes=genes, ax=small())
        ax.set_ylim(low, data["y"].max() + 1)
        ax.figure.draw_without_rendering()
        named = {text.get_text(): text.xyann for text in ax.texts if text.get_text() in set(genes)}
        places.append(named)
    assert len(places[1]) == 4
    assert {name: places[0][name] for name in places[1]} == places[1]


def test_names_are_no_formulas():
    """A dollar in a name is a dollar."""
    table = pd.DataFrame({"gene": ["$a_b$", "x$\\no$y"], "p_mean": 0.1, "p_score": [1e-9, 1e-8]})
    ax = plots.differentiation(table, genes=table["gene"])
    laid_out(ax)
    named = [text for text in ax.texts if "$" in text.get_text()]
    assert [text.get_text() for text in named] == table["gene"].tolist()
    assert not any(text.get_parse_math() for text in named)


def test_default_tests_of_a_scan(scan):
    ax = scan.plot("differentiation")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("−log10 p (mean)", "−log10 p (score)")
    with pytest.raises(ctmm.CTMMError, match=r'tests=\["jackknife"\]'):
        scan.plot("differentiation", y="jackknife")
    with pytest.raises(ctmm.CTMMError, match="the same test"):
        scan.plot("differentiation", y="mean")


# ---------------------------------------------------------------------------------------------
# quantiles of p values


def test_quantiles_and_lambda_by_hand():
    p = np.array([0.2, np.nan, 0.01, 0.7, 0.4])
    data = plots.qq_data({"mine": p}, level=0.9)
    assert data["p"].tolist() == [0.01, 0.2, 0.4, 0.7]
    np.testing.assert_allclose(10 ** -data["expected"], [0.125, 0.375, 0.625, 0.875])
    # smallest of 4 uniforms is below t with probability 1 - (1 - t)^4
    np.testing.assert_allclose(10 ** -data["low"][0], 1 - 0.05**0.25)
    np.testing.assert_allclose(10 ** -data["high"][0], 1 - 0.95**0.25)
    assert data["lambda_gc"][0] == pytest.approx(stats.chi2.isf(0.3, 1) / stats.chi2.isf(0.5, 1))
    assert data.attrs["missing"] == 1
    assert "1 missing p left out" in notes(plots.qq({"mine": p}))


def test_quantiles_of_uniform_values_lie_on_the_line_and_in_the_band():
    n = 1000
    data = plots.qq_data((np.arange(n) + 0.5) / n)
    np.testing.assert_allclose(data["observed"], data["expected"])
    assert data["lambda_gc"][0] == pytest.approx(1.0, abs=1e-9)
    assert (data["low"] < data["observed"]).all()
    assert (data["observed"] < data["high"]).all()


def test_quantiles_of_a_scan(scan):
    data = scan.plot_data("qq")
    assert list(dict.fromkeys(data["test"])) == ["score", "mean", "score_cauchy", "lrt[free:full]"]
    own = scan.plot_data("qq", tests="mean")["p"]
    np.testing.assert_array_equal(own, scan.table["p_mean"].dropna().sort_values())
    with pytest.raises(ctmm.CTMMError, match=r'tests=\["bootstrap"\]'):
        scan.plot("qq", tests=["bootstrap"])
    with pytest.raises(ctmm.CTMMError, match=r"models="):
        scan.plot("qq", tests=["lrt[hom:free]"])


@pytest.mark.parametrize(
    ("values", "message"),
    [([0.1, 1.2], "between 0 and 1: 1.2 in row 1"), (["a"], "numbers"), ([np.nan], "missing")],
)
def test_no_p_values(values, message):
    with pytest.raises(ctmm.DataError, match=message):
        plots.qq({"mine": values})


# ---------------------------------------------------------------------------------------------
# power


def test_power_curves_sort_and_split(rates):
    data = plots.power_curves_data(rates)
    assert set(data["series"]) == {"score", "lrt"}
    assert set(data["line"]) == {"V 0", "V (0.1, 0)"}
    own = data[(data["series"] == "lrt") & (data["line"] == "V 0")]
    assert own["x"].tolist() == [25, 50, 100]
    np.testing.assert_allclose(own["y"], [0.1625, 0.225, 0.35])
    ax = plots.power_curves(rates)
    laid_out(ax)
    assert ax.get_legend_handles_labels()[1] == ["score", "lrt", "V 0", "V (0.1, 0)"]
    level = [line for line in ax.lines if list(line.get_ydata()) == [0.05, 0.05]]
    assert len(level) == 1


def points(ax):
    """Markers of every curve, in pixels; shape (curves, settings, 2)."""
    FigureCanvasAgg(ax.figure).draw()
    curves = [bars.lines[0] for bars in ax.containers]
    return np.array(
        [c.get_transform().transform(np.column_stack(c.get_data()).astype(float)) for c in curves]
    )


@pytest.mark.parametrize("step", [1, 25])
def test_curves_that_coincide_are_told_apart(rates, step):
    """Markers stand beside each other, those of one setting nearer than those of others."""
    alike = rates.assign(rate=0.4, n_donors=[step * (n // 25) for n in rates["n_donors"]])
    ax = plots.power_curves(alike, ax=small())
    place = points(ax)
    assert ax.bbox.x0 + 2 < place[..., 0].min() < place[..., 0].max() < ax.bbox.x1 - 2
    by_setting = np.sort(place[..., 0], axis=0)
    assert np.diff(by_setting, axis=0).min() > 1.0
    assert (by_setting[-1, :-1] < by_setting[0, 1:]).all()
    assert np.ptp(place[..., 1]) < 0.01  # no rate is moved


def test_numbers_of_settings_do_not_touch():
    table = pd.DataFrame({"n_donors": [20, 25, 50, 1000], "test": "score", "rate": 0.5, "se": 0.01})
    ax = Figure(figsize=(7, 5), layout="constrained").subplots(2, 3)[0, 0]
    plots.power_curves(table, ax=ax)
    FigureCanvasAgg(ax.figure).draw()
    boxes = [text.get_window_extent() for text in ax.get_xticklabels()]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["20", "1000"]
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_bars_of_rates_are_not_cut():
    table = pd.DataFrame({"n_donors": [20, 40] * 2, "test": ["a"] * 2 + ["b"] * 2,
                          "rate": [0.95, 1.0, 0.02, 0.0], "se": 0.06})  # fmt: skip
    for shown in (table, table[table["test"] == "b"]):
        ax = plots.power_curves(shown)
        low, high = ax.get_ylim()
        assert low < (shown["rate"] - shown["se"]).min()
        assert high > (shown["rate"] + shown["se"]).max()


def test_settings_that_are_no_numbers_stand_side_by_side(rates):
    some = rates[rates["n_donors"] == 25]
    ax = plots.power_curves(some, x="V", ax=small())
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "(0.1, 0)"]
    laid_out(ax)


def test_one_gene_is_drawn(scan):
    genes = scan.table["gene"].iloc[:1].tolist()
    one = SimpleNamespace(
        table=scan.table.iloc[:1], layout=scan.layout, vcomp=scan.vcomp.loc[genes],
        corr=scan.corr.loc[genes],
    )  # fmt: skip
    for ax in (plots.variances(one), plots.differentiation(one), plots.qq(one)):
        laid_out(ax)


def test_power_table_is_drawn_as_it_is():
    table = ctmm.power(n_donors=[20, 30], V=[0.0, 0.2], n_sim=4, tests="score", rng=1)
    data = plots.power_curves_data(table)
    np.testing.assert_array_equal(np.sort(data["y"]), np.sort(table["rate"]))
    assert set(data["line"]) == {"V 0", "V 0.2"}


def test_power_curves_refuse(rates):
    with pytest.raises(ctmm.CTMMError, match="there is no column 'noise_cv'"):
        plots.power_curves(rates, x="noise_cv")
    with pytest.raises(ctmm.CTMMError, match=r"there is no column \['n_donors'\]: name"):
        plots.power_curves(rates, x=["n_donors"])
    with pytest.raises(ctmm.CTMMError, match="there is no column True"):
        plots.power_curves(rates, split=True)
    for wrong in ({"rate": np.inf}, {"se": -0.1}):
        with pytest.raises(ctmm.CTMMError, match="'rate' and 'se' must be finite, and errors"):
            plots.power_curves(rates.assign(**wrong))
    with pytest.raises(ctmm.CTMMError, match="column 'alpha'"):
        plots.power_curves(rates.assign(alpha="five"))
    with pytest.raises(ctmm.DataError, match="several rows at n_donors 100"):
        plots.power_curves(rates, split=[])
    with pytest.raises(ctmm.CTMMError, match=r"what ctmm\.power returns, got dict"):
        plots.power_curves({})


# ---------------------------------------------------------------------------------------------
# effects


@pytest.fixture(scope="module")
def responses():
    """Genes of which the first responds in all types, the second in one."""
    data = ctmm.load_genes()
    expr, case = data.expr.copy(), (data.obs["sex"] == "M").to_numpy()
    expr["gene001"] += 2.0 * case
    expr["gene002"] -= 4.0 * (case & (data.obs["celltype"] == "day1").to_numpy())
    genes = ["gene001", "gene002", *(f"gene{k}" for k in range(101, 109))]
    return ctmm.fit_genes(
        "~ C(celltype) * sex", data=data._replace(expr=expr), genes=genes,
        tests=["score", "effects:sex"],
    )  # fmt: skip


def test_a_volcano_for_every_cell_type(responses):
    table = plots.volcano_data(responses)
    own = table[(table["celltype"] == "day1") & (table["gene"] == "gene002")].iloc[0]
    row = responses.table.set_index("gene").loc["gene002"]
    assert own["estimate"] == row["estimate_effects:sex[day1]"]
    assert own["y"] == pytest.approx(-np.log10(row["p_effects:sex[day1]"]))
    every = responses.plot("volcano", genes=1)
    assert [ax.get_title("left") for ax in every] == ["day0", "day1", "day2", "day3"]
    assert sum(len(c.get_offsets()) for c in every[1].collections) >= len(responses.table)
    FigureCanvasAgg(every[1].figure).draw()
    words = " ".join(text.get_text() for text in every[1].findobj(Text))
    assert "gene002" in words and "of 10 at 0.05" in words
    one = responses.plot("volcano", celltypes="day2", genes=["gene101"])
    assert one.get_title("left") == "day2"
    assert set(plots.volcano_data(responses, "sex", celltypes="mean")["celltype"]) == {"mean"}
    with pytest.raises(ctmm.CTMMError, match="unknown cell type 'T': choose from day0"):
        responses.plot("volcano", celltypes="T")
    with pytest.raises(ctmm.CTMMError, match="unknown effect 'age': choose from sex"):
        responses.plot("volcano", effect="age")
    with pytest.raises(ctmm.CTMMError, match="no effect of a gene 'x'"):
        responses.plot("volcano", genes=["x"])


def test_the_map_of_effects_has_stars_where_types_differ(responses):
    ax = responses.plot("effects", genes=["gene001", "gene002"])
    grid = ax.images[0].get_array()
    assert grid.shape == (2, 5)
    row = responses.table.set_index("gene").loc["gene001"]
    assert grid[0, 4] == pytest.approx(row["estimate_effects:sex_mean"])
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["gene001", "gene002 ★"]
    dots = {tuple(place) for place in ax.collections[0].get_offsets()}
    assert {(k, 0) for k in range(5)} <= dots and (1, 1) in dots
    first = plots.effects_data(responses, genes=2)
    assert set(first["gene"]) == {"gene001", "gene002"} and len(first) == 10
    with pytest.raises(ctmm.CTMMError, match="there is no gene 'gene9'"):
        responses.plot("effects", genes="gene9")


def test_shares_of_all_genes(everything):
    table = plots.shares_of_genes_data(everything)
    gene = everything.genes[1]
    own = table[table["gene"] == gene].set_index("part")["share"]
    want = everything.gene(gene).variance_explained()["share"]
    np.testing.assert_allclose(own, want[own.index], rtol=1e-9)
    assert own.sum() == pytest.approx(1.0)
    names = [text.get_text() for text in everything.plot("shares").get_xticklabels()]
    assert names[-1] == "noise" and set(names) == set(own.index)


def test_a_scan_without_effects_says_what_to_ask(many, two_tests):
    with pytest.raises(ctmm.CTMMError, match="expected a scan"):
        plots.effects(two_tests)
    scan = ctmm.fit_genes("~ C(celltype)", data=ctmm.load_genes(), genes=["gene001"], tests=[])
    with pytest.raises(ctmm.CTMMError, match=r'tests=\["effects:VARIABLE"\]'):
        scan.plot("volcano")
    with pytest.raises(ctmm.CTMMError, match="shares=True"):
        scan.plot("shares")


# ---------------------------------------------------------------------------------------------
# all of them


def test_methods_are_the_functions(everything, scan_of):
    for kind, (draw, data) in OF_A_SCAN.items():
        ax, own = small(), scan_of[kind]
        assert own.plot(kind, ax=ax) is ax
        pd.testing.assert_frame_equal(own.plot_data(kind), data(own))
        name = draw.__name__
        assert draw is getattr(plots, name) and data is getattr(plots, f"{name}_data")
    with pytest.raises(ctmm.CTMMError, match="unknown kind 'vulcano'"):
        everything.plot_data("vulcano")
    with pytest.raises(ctmm.CTMMError, match="expected a scan"):
        plots.variances(everything.table)


def test_heritabilities_and_genetic_correlations_are_those_of_the_scan(related, everything):
    table = plots.heritability_data(related)
    assert list(table["kinship"].unique()) == ["cis", "trans"]
    one = table[(table["kinship"] == "trans") & (table["part"] == "total")].set_index("gene")
    known = related.table.set_index("gene")
    np.testing.assert_array_equal(one["h2"], known["h2[trans:total]"])
    np.testing.assert_array_equal(one["std_error"], known["se_h2[trans:total]"])
    ax = plots.heritability(related, kinship="trans")
    assert [t.get_text() for t in ax.get_xticklabels()][:3] == ["shared", "specific", "total"]
    with pytest.raises(ctmm.CTMMError, match="kinship"):
        plots.heritability(related, kinship="gene")
    # every gene's covariance over its variance between donors, then their mean
    theta = related.vcomp
    of = [f"cis:V[{name}]" for name in related.layout.celltypes]
    trans = [name.replace("cis", "trans") for name in of]
    size = theta["hom"] + theta["V"] + (theta[of].mean(axis=1) + theta[trans].mean(axis=1))
    mean = theta.div(size, axis=0)[size > 0].mean()
    r = mean["cis:V[T2,T1]"] / np.sqrt(mean[of[0]] * mean[of[1]])
    found = plots.genetic_correlations_data(related)
    assert found["correlation"].iloc[0] == pytest.approx(np.clip(r, -1, 1), nan_ok=True)
    assert found[["kinship", "first", "second"]].iloc[0].tolist() == ["cis", "T1", "T2"]
    for draw in (plots.heritability, plots.genetic_correlations):
        with pytest.raises(ctmm.CTMMError, match="kinship"):
            draw(everything)


def test_what_is_no_axes_is_refused(scan_of, rates):
    """A figure or several axes, as plt.subplots returns them, in place of one."""
    draws = [partial(scan_of[kind].plot, kind) for kind in OF_A_SCAN]
    for draw in (*draws, lambda ax: plots.power_curves(rates, ax=ax)):
        for wrong in (Figure(), Figure().subplots(1, 2), "ax"):
            kind = type(wrong).__name__
            with pytest.raises(ctmm.CTMMError, match=f"one matplotlib Axes, got {kind}: .*ax="):
                draw(ax=wrong)


def test_nothing_is_shown_written_or_set(scan_of, many, two_tests, rates, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("shown"))
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: pytest.fail("written"))
    before, figures = dict(matplotlib.rcParams), plt.get_fignums()
    for kind in OF_A_SCAN:
        scan_of[kind].plot(kind)
    plots.correlations(many)
    plots.differentiation(two_tests, y="score")
    plots.power_curves(rates)
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == figures
    assert list(Path(tmp_path).iterdir()) == []


@pytest.mark.parametrize(
    "name", ["variances", "correlations", "heatmap", "differentiation", "qq", "power"]
)
def test_pictures_look_as_they_did(name, scan, two_tests, rates):
    draw = {
        "variances": lambda ax: plots.variances(scan, ax=ax),
        "correlations": lambda ax: plots.correlations(scan, ordered=True, ax=ax),
        "heatmap": lambda ax: plots.correlations(scan, kind="heatmap", ordered=True, ax=ax),
        "differentiation": lambda ax: plots.differentiation(two_tests, y="score", ax=ax),
        "qq": lambda ax: plots.qq(two_tests, ax=ax),
        "power": lambda ax: plots.power_curves(rates, ax=ax),
    }
    ax = draw[name](Figure(figsize=(4, 3)).add_axes((0.15, 0.2, 0.6, 0.7)))
    images.check(ax.figure, f"scan_{name}")


# ---------------------------------------------------------------------------------------------
# what users bring


def test_p_values_of_zero_lie_beyond_the_threshold():
    """Whatever the other p values are: a gene with p = 0 is not drawn as one without an effect."""
    table = pd.DataFrame({"gene": list("abcd"), "p_mean": [0.0, 0.5, 0.6, 0.7]})
    ax = plots.differentiation(table.assign(p_score=[0.0, 0.3, 0.4, 0.9]), alpha=1e-6)
    place = np.concatenate([np.asarray(part.get_offsets()) for part in ax.collections])
    cut = -np.log10(1e-6 / 4)
    assert (place.max(axis=0) > cut).all()
    assert (np.sort(place, axis=0)[:-1] < cut).all()


def test_p_values_of_zero_lie_beyond_the_band():
    p = np.zeros(20)
    ax = plots.qq(p)
    heights = np.concatenate([np.asarray(line.get_ydata()) for line in ax.lines[1:]])
    assert heights.min() > plots.qq_data(p)["high"].max()


def test_a_test_without_p_values_is_named_and_the_others_are_drawn():
    p = {"a": np.linspace(0.01, 0.99, 30), "b": np.full(5, np.nan)}
    ax = plots.qq(p)
    assert "no p at all of b" in notes(ax)
    assert "5 missing p left out" in notes(ax)
    assert set(plots.qq_data(p)["test"]) == {"a"}


@pytest.mark.parametrize("tail", [0.15, 1e-30])
@pytest.mark.parametrize("size", [(2.2, 1.8), (3.8, 3.6)])
def test_the_key_of_quantiles_does_not_cover_points(tail, size):
    """Signal in all genes alike, or growing with the rank."""
    p = {"a": np.linspace(0.001, 1, 999) ** 6} if tail == 0.15 else tail * np.arange(1, 51)
    ax = plots.qq(p, ax=Figure(figsize=size, layout="constrained").subplots())
    ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    points = ax.transData.transform(np.column_stack(ax.lines[1].get_data()))
    assert not any(box.contains(x, y) for x, y in points)


def test_few_genes_are_not_clipped(scan):
    few = SimpleNamespace(table=scan.table, layout=scan.layout, vcomp=scan.vcomp.iloc[:5])
    assert "clipped" not in notes(plots.variances(few))


def test_power_without_some_numbers(rates):
    """Settings that are missing stand as such; rates that all are, are refused."""
    mixed = rates[rates["V"] == 0.0].assign(kurtosis=[None, 0.0] * 3, n_donors=range(6))
    data = plots.power_curves_data(mixed, x="kurtosis", split="n_donors")
    assert set(data["x"]) == {"none", 0.0}
    plots.power_curves(mixed, x="kurtosis", split="n_donors")
    one = rates.assign(rate=rates["rate"].where(rates.index != 2))
    assert "1 setting without a rate left out" in notes(plots.power_curves(one))
    for table in (rates.assign(rate=np.nan), rates.iloc[:0]):
        with pytest.raises(ctmm.CTMMError, match="all of 'rate' are missing"):
            plots.power_curves(table)
    with pytest.raises(ctmm.CTMMError, match="column 'rate'"):
        plots.power_curves(rates.assign(rate="high"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes": True}, "genes= must be a whole number of at least 0, got True"),
        ({"genes": None}, "genes= must be a whole number of at least 0, got None"),
        ({"genes": -1}, "genes= must be a whole number"),
        ({"genes": ["zzz"]}, "there is no gene 'zzz'; there are 'g0', "),
        ({"alpha": 0}, "alpha must lie between 0 and 1, got 0"),
        ({"alpha": "a"}, "alpha must lie between 0 and 1, got 'a'"),
    ],
)
def test_wrong_options_of_differentiation(two_tests, options, message):
    with pytest.raises(ctmm.CTMMError, match=message):
        plots.differentiation(two_tests, **options)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [({}, {}, "there are no p values"), ([0.3], {"level": "a"}, "level= must lie between 0 and 1")],
)
def test_wrong_quantiles(values, options, message):
    with pytest.raises(ctmm.CTMMError, match=message):
        plots.qq(values, **options)


def test_longer_names_are_cut_where_they_still_differ():
    names = [f"CD4+ T, naive [{k}] (effector memory)" for k in range(14)]
    short = shortened(names, 0.5)
    assert len(set(short)) == 14
    assert max(map(len, short)) < len(names[0])
    assert shortened(["T", "B"], 0.1) == ["T", "B"]
    assert shortened(["CD14 Mono", "CD16 Mono"], 0.5) == ["CD14 Mo…", "CD16 Mo…"]


def test_names_lose_the_ends_of_words_first():
    """What tells names apart is mostly in every word of them, or in a number."""
    short = dict(zip(LONG, shortened(LONG, 0.9), strict=True))
    assert len(set(short.values())) == 14
    assert max(map(len, short.values())) <= 14
    assert short["CD4 effector memory"] == "CD4 eff. mem."
    assert short["Monocyte non-classical"] == "Mon. non-cla."
    assert short["B naive"] == "B naive"
    assert shortened(["V[CD8_effector_memory]", "V[NK CD56 bright]"], 1.1) == [
        "V[CD8_effe._memo.]", "V[NK CD56 bright]",
    ]  # fmt: skip
    numbered = [f"ENSG000001876{k:02d}" for k in range(9)]
    assert len(set(shortened(numbered, 0.5))) == 9


def test_no_names_are_no_names():
    assert shortened([], 1.0) == []


@pytest.mark.parametrize("draw", [plots.variances, plots.correlations])
def test_fourteen_longer_names_in_one_column_leave_room_for_the_picture(draw, many):
    ax = draw(many, ax=small())
    laid_out(ax)
    texts = [text.get_window_extent() for text in ax.get_xticklabels()]
    assert all(a.x1 < b.x0 + 2 for a, b in pairwise(texts))
    assert ax.get_position().height > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, 6])
@pytest.mark.parametrize("ordered", [False, True])
def test_labels_of_small_axes_stay_on_the_page(count, ordered, many):
    """Layouts do not count the length of a label: it is what `laid_out` cannot see."""
    pairs = [f"corr[{LONG[r]},{LONG[c]}]" for r in range(count) for c in range(r)]
    layout = SimpleNamespace(celltypes=LONG[:count], structures=(resolve("full", LONG[:count]),))
    some = SimpleNamespace(table=many.table, layout=layout, vcomp=many.vcomp, corr=many.corr[pairs])
    for ax in (
        plots.correlations(some, ordered=ordered, ax=small()), plots.variances(many, ax=small()),
        plots.correlations(some, kind="heatmap", ax=small()),
    ):  # fmt: skip
        FigureCanvasAgg(ax.figure).draw()
        page = ax.figure.bbox
        labels = [part.yaxis.label for part in ax.figure.axes]  # also of the bar of colours
        for box in [label.get_window_extent() for label in labels if label.get_text()]:
            assert min(box.x0, box.y0) >= 0
            assert box.x1 <= page.x1
            assert box.y1 <= page.y1


@pytest.mark.parametrize("size", [(3.3, 2.8), (4.5, 3.4)])
def test_medians_do_not_touch_violins_or_notes(size, many):
    axes = [Figure(figsize=size, layout="constrained").subplots() for _ in range(2)]
    wide = SimpleNamespace(table=many.table, layout=many.layout, vcomp=0.2 * many.vcomp)
    plots.variances(wide, clip=0.05, ax=axes[0])
    few = SimpleNamespace(celltypes=LONG, structures=many.layout.structures)
    alike = many.vcomp.iloc[:, :3].clip(-0.1, 0.1)
    plots.variances(SimpleNamespace(table=many.table, layout=few, vcomp=alike), ax=axes[1])
    for ax in axes:
        laid_out(ax)
        *medians, note = [text.get_window_extent() for text in ax.texts]
        tips = [body.get_paths()[0].get_extents(ax.transData).y1 for body in ax.collections]
        assert min(box.y0 for box in medians) > max(tips)
        assert max(box.y1 for box in medians) <= note.y0


@pytest.mark.slow
def test_the_key_stays_in_its_part_of_the_figure():
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    res = ctmm.fit("expr ~ C(celltype)", data=ctmm.load_example())
    for ax in axes:
        res.plot("gene", ax=ax)
    FigureCanvasAgg(figure).draw()
    boxes = [ax.get_legend().get_window_extent() for ax in axes]
    assert boxes[0].x0 > 0
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


@pytest.mark.parametrize("page", ["default", "dark_background"])
def test_genes_that_stand_alone_are_seen_on_any_page(page, two_tests):
    with plt.style.context(page):
        ax = plots.differentiation(two_tests, y="score")
    ax.figure.draw_without_rendering()
    shades = ax.collections[0].get_facecolors()[:, :3]
    assert np.abs(shades - matplotlib.colors.to_rgb(ax.get_facecolor())).max(axis=1).min() > 0.4


def test_points_and_notes_are_seen_on_dark_pages(scan):
    with plt.style.context("dark_background"):
        res = ctmm.fit("expr ~ C(celltype)", data=ctmm.load_example())
        points = res.plot("gene").lines[0].get_color()
        note = scan.plot("variances").texts[-1].get_color()
    assert matplotlib.colors.to_rgb(points) == matplotlib.colors.to_rgb(note) == (1.0, 1.0, 1.0)
