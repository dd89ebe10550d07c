"""The evidence scripts count what they say, and stop and go on without changing a number."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ctmm_formula.inference.score import cauchy_combination

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "vignettes" / "evidence"


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """Modules of the scripts, with units of 25 replicates that write elsewhere."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("combinations", "experiments", "run", "report")
    modules = {name: importlib.import_module(name) for name in names}
    monkeypatch.setattr(modules["experiments"], "CHUNK", 25)
    for name in ("run", "report"):
        monkeypatch.setattr(modules[name], "HERE", tmp_path)
    yield modules
    for name in names:
        sys.modules.pop(name, None)


def small(scripts, name, settings, replicates=50):
    """An experiment cut down to some settings, every group 50 times."""
    whole = scripts["experiments"].EXPERIMENTS
    few = replace(whole[name], settings=settings, aim=lambda setting, group: replicates)
    return few


SETTING = {"n_donors": 15, "celltypes": 3, "noise_cv": 0.2, "fold": 3.0, "n_batches": 0,
           "kurtosis": 6.0}  # fmt: skip


def counts(scripts, monkeypatch, experiment, minutes=()):
    monkeypatch.setitem(scripts["experiments"].EXPERIMENTS, "calibration", experiment)
    for more in minutes or ["9"]:
        monkeypatch.setattr(sys, "argv", ["run.py", "calibration", "--minutes", more])
        scripts["run"].main()
    return scripts["run"].read("calibration").drop(columns="seconds")


def test_counts_go_on_where_they_stopped(scripts, monkeypatch):
    experiment = small(scripts, "calibration", [SETTING])
    whole = counts(scripts, monkeypatch, experiment)
    assert set(whole["group"]) == set(scripts["experiments"].GROUPS)
    assert (whole["chunks"] == 2).all() and ((whole["tested"] + whole["failed"]) == 50).all()
    by_hand = [experiment.pvalues(0, "score", chunk)["score"] for chunk in (0, 1)]
    row = whole[whole["test"] == "score"].iloc[0]
    assert row["positive"] == (np.concatenate(by_hand) < 0.05).sum()
    pd.testing.assert_frame_equal(counts(scripts, monkeypatch, experiment), whole)  # all is done
    path = scripts["run"].HERE / "calibration.csv"
    path.unlink()
    half = small(scripts, "calibration", [SETTING], 25)
    assert (counts(scripts, monkeypatch, half)["chunks"] == 1).all()
    order = ["setting", "group", "test"]
    again = counts(scripts, monkeypatch, experiment)
    pd.testing.assert_frame_equal(
        again.sort_values(order, ignore_index=True), whole.sort_values(order, ignore_index=True)
    )


def test_groups_see_the_same_data_and_settings_their_own(scripts):
    experiment = small(scripts, "calibration", [SETTING, SETTING | {"n_donors": 16}])
    jackknife = experiment.pvalues(0, "jackknife", 0)["jackknife"]
    step = experiment.pvalues(0, "one-step", 0)["jackknife, one step"]
    good = np.isfinite(jackknife) & np.isfinite(step)
    assert good.sum() > 15 and stats.spearmanr(jackknife[good], step[good]).statistic > 0.6
    first, other = (experiment.pvalues(k, "moments", 0)["he:jackknife"] for k in (0, 1))
    assert (first != other).all()


def test_every_experiment_can_be_drawn(scripts):
    rng = np.random.default_rng(0)
    for experiment in scripts["experiments"].EXPERIMENTS.values():
        assert len({repr(setting) for setting in experiment.settings}) == len(experiment.settings)
        for setting in experiment.settings[:: max(len(experiment.settings) // 7, 1)]:
            genes = experiment.draw(setting, 4, rng)
            assert np.isfinite(genes.expr.to_numpy()).all() and (genes.nu >= 0).all(axis=None)


def test_combinations_of_p_values(scripts):
    rules = scripts["combinations"].RULES
    rng = np.random.default_rng(1)
    p = rng.random((4, 20_000))
    plain = scripts["combinations"].cauchy_below(1 - 1e-16)
    np.testing.assert_allclose(
        rules["cauchy, p < .99"](p[:, :50]), [cauchy_combination(q) for q in p[:, :50].T], rtol=1e-9
    )
    rates = {name: (rule(p) < 0.05).mean() for name, rule in rules.items()}
    for name in ("half-Cauchy", "simes", "cauchy, p < .99"):
        assert rates[name] == pytest.approx(0.05, abs=0.007)
    assert rates["bonferroni"] == pytest.approx(1 - (1 - 0.0125) ** 4, abs=0.007)
    one = np.array([[0.002], [0.5], [0.6], [1 - 1e-6]])  # a p value near 1 undoes the plain one
    assert plain(one)[0] > 0.5
    for name, rule in rules.items():
        assert rule(one)[0] < 0.1, name


def test_report_reads_the_counts(scripts, monkeypatch):
    counts(scripts, monkeypatch, small(scripts, "calibration", [SETTING], 25))
    table = scripts["report"].rates("calibration")
    wide = scripts["report"].wide(table, ["n_donors", "kurtosis"], ["score", "lrt"])
    assert wide.columns.tolist() == ["n_donors", "kurtosis", "score", "LRT"]
    row = table[table["test"] == "lrt"].iloc[0]
    assert wide["LRT"].item().startswith(f"{row['positive'] / row['tested']:.3f} (")
    assert scripts["report"].cell(pd.Series({"tested": 0})) == "-"
    for page in ("figure1", "figure2", "calibration", "power", "bootstrap", "estimates"):
        assert len(scripts["report"].target(page)) == 1, page
