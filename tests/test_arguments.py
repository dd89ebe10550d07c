"""Every door reads its whole numbers and seeds by the same rules."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

import ctmm_formula as ctmm
from ctmm_formula.errors import CTMMError


@pytest.fixture(scope="module")
def fits():
    df = ctmm.load_example()
    return {
        s: ctmm.fit("expr ~ C(celltype)", structure=s, data=df, method="reml")
        for s in ("hom", "free")
    }


@pytest.fixture(scope="module")
def pb():
    rng = np.random.default_rng(0)
    donor = [f"d{i}" for i in np.repeat(range(20), 60)]
    obs = pd.DataFrame({"donor": donor, "celltype": np.tile(list("BBBTTT"), 200)})
    cells = pd.DataFrame(rng.gamma(2.0, 1.0, (1200, 5)), columns=list("abcde"))
    few = (obs["donor"].isin(["d1", "d2"]) & (obs["celltype"] == "T")).to_numpy()
    return ctmm.pseudobulk(cells[~few], obs=obs[~few], min_cells=5.0, min_cells_donor=20.0)


DRAWS = {
    "exact": lambda fits, pb, rng: fits["hom"].test_component("hom", "exact", rng=rng, n=9.0),
    "bootstrap test": lambda fits, pb, rng: fits["free"].test_variance("bootstrap", rng=rng, n=2.0),
    "bootstrap": lambda fits, pb, rng: fits["hom"].bootstrap(2.0, rng=rng),
    "simulate": lambda fits, pb, rng: fits["hom"].simulate(rng, 2.0),
    "power": lambda fits, pb, rng: ctmm.power(20.0, 2.0, n_sim=2.0, rng=rng),
    "simulate_pseudobulk": lambda fits, pb, rng: ctmm.simulate_pseudobulk(20, 3, rng=rng),
    "scan": lambda fits, pb, rng: ctmm.fit_genes(
        "~ C(celltype)",
        data=pb,
        tests=["bootstrap"],
        n_bootstrap=2.0,
        genes=["a"],
        rng=rng,
        method="reml",
    ),
    "impute": lambda fits, pb, rng: ctmm.impute(pb, folds=3.0, rng=rng),
    "evaluate_imputation": lambda fits, pb, rng: ctmm.evaluate_imputation(
        pb, ["mean"], repeats=1.0, rng=rng
    ),
}


@pytest.mark.parametrize("door", DRAWS)
@pytest.mark.parametrize("rng", ["x", 1.5, -1, np.random.RandomState(0)], ids=str)
def test_what_is_no_seed_is_refused(fits, pb, door, rng):
    with pytest.raises(CTMMError, match=r"rng= must be a seed \(a whole number >= 0\)"):
        DRAWS[door](fits, pb, rng)


@pytest.mark.parametrize("door", DRAWS)
def test_a_whole_float_is_a_whole_number(fits, pb, door):
    """Ten is typed 10 in Python and is 10.0 when it comes from R."""
    DRAWS[door](fits, pb, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pb: ctmm.impute(pb, folds=1), "folds= must be a whole number of at least 2, got 1"),
        (lambda pb: ctmm.evaluate_imputation(pb, repeats=0.5), "repeats= must be a whole number"),
        (lambda pb: ctmm.principal_components(pb, 1.5), "n= must be a whole number"),
    ],
)
def test_what_is_no_whole_number_is_refused(pb, call, message):
    with pytest.raises(CTMMError, match=message):
        call(pb)


@pytest.mark.filterwarnings("ignore::ctmm_formula.errors.CTMMWarning")
def test_an_interval_of_all_values():
    res = ctmm.fit("expr ~ C(celltype) + sex", data=ctmm.load_example())
    ends = res.means(alpha=1e-300)[["conf_low", "conf_high"]].to_numpy()
    assert np.isneginf(ends[:, 0]).all() and np.isposinf(ends[:, 1]).all()
    assert np.isposinf(res.conf_int(1e-300)["conf_high"]).all()


def test_numbers_of_other_kinds_are_numbers():
    one = ctmm.power(20, 2, beta=Decimal("1.5"), n_sim=1, rng=1, tests=["score"])
    two = ctmm.power(20, 2, beta=1.5, n_sim=1, rng=1, tests=["score"])
    assert one["rate"].equals(two["rate"])
