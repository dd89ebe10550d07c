"""Arguments of every door: one of a good call is exchanged for something else.

DOORS is the table: what is called, and its arguments by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import ctmm_formula as ctmm

from .harness import Try
from .pseudobulks import cells
from .tables import SHARES, VALUES, pick, table

Rng = np.random.Generator


def _doors(folder: Path) -> dict[str, tuple[Callable[..., Any], Mapping[str, Any]]]:
    df, overall = table(np.random.default_rng(1)), table(np.random.default_rng(2), True)
    fits = {
        structure: ctmm.fit(
            "expr ~ C(celltype)", "batch", structure=structure, data=df, method="reml"
        )
        for structure in ("hom", "free")
    }
    res = fits["free"]
    res_sex = ctmm.fit("expr ~ C(celltype) * sex", data=df)
    donors = sorted(set(df["donor"]))
    dosages = pd.DataFrame(
        np.random.default_rng(5).binomial(2, 0.4, (len(donors), 2)), donors, ["rs1", "rs2"]
    )
    sibs = np.arange(len(donors)) // 3
    K = pd.DataFrame(0.5 * (np.equal.outer(sibs, sibs) + np.eye(len(donors))), donors, donors)
    related = ctmm.fit("expr ~ C(celltype)", data=df, kinship=K, structure="hom")
    G = ctmm.simulate.simulate_genotypes(20, 60, rng=1)
    many = ctmm.simulate.simulate_genes(2, 20, 2, heredity=ctmm.simulate.Heredity(G), rng=1)
    K.to_csv(folder / "K.csv")
    kept = folder / "fit.json"
    res.to_json(kept)
    pb = ctmm.pseudobulk(cells(np.random.default_rng(3)), min_cells=2, min_cells_donor=2)
    scan = ctmm.fit_genes("~ C(celltype)", data=pb, genes=["A", "C"], tests=["score", "mean"])
    held = folder / "scan.parquet"
    scan.to_parquet(held)
    return {
        "fit": (ctmm.fit, {
            "formula": "expr ~ C(celltype) + sex", "random": "batch", "structure": "hom",
            "method": "he", "data": df, "donor": "donor", "celltype": "celltype", "noise": "nu",
            "nu2": "nu2", "n_cells": "n_cells", "bounds": "noise", "noise_floor": 0.1,
            "proportions": None, "formula_engine": "patsy",
        }),
        "fit groups": (ctmm.fit, {
            "formula": "expr ~ C(celltype)", "structure": "hom", "data": df, "by": "sex",
            "within": None, "method": "robust", "nu2": None,
        }),
        "fit overall": (ctmm.fit, {
            "formula": "expr ~ sex", "random": "batch", "structure": "hom", "data": overall,
            "proportions": SHARES, "bounds": "psd",
        }),
        "fit_genes": (ctmm.fit_genes, {
            "formula": "~ C(celltype)", "random": "batch", "data": pb, "genes": ["A"],
            "structure": "hom", "models": ["free"], "method": "he", "tests": ["score"],
            "donor": "donor", "celltype": "celltype", "noise": "nu", "n_cells": "n_cells",
            "proportions": None, "bounds": None, "noise_floor": 0.1, "formula_engine": "patsy",
            "one_step": False, "n_bootstrap": 3, "rng": 1, "n_jobs": 1, "overwrite": False,
            "progress": False, "expr": None, "nu": None, "nu2": None, "out": None,
        }),
        "read_scan": (ctmm.read_scan, {
            "path": held, "data": pb, "expr": None, "nu": None, "nu2": None, "proportions": None,
            "trust": False, "functions": None,
        }),
        "from_json": (ctmm.CTMMResults.from_json, {"source": kept, "trust": False}),
        "to_json": (res.to_json, {"path": folder / "out.json"}),
        "to_parquet": (scan.to_parquet, {"path": folder / "out.parquet"}),
        "gene": (scan.gene, {"name": "A"}),
        "top": (scan.top, {"n": 1, "by": "p_score"}),
        "scan plot_data": (lambda kind: scan.plot_data(kind), {"kind": "variances"}),
        "anova": (lambda one, two, labels: ctmm.anova(one, two, labels=labels), {
            "one": fits["hom"], "two": res, "labels": ["a", "b"],
        }),
        "banded": (ctmm.banded, {"width": 1}),
        "load_example": (ctmm.load_example, {"gene": "gene001", "kind": "ctp"}),
        "power": (ctmm.power, {
            "n_donors": 12, "celltypes": 2, "V": 0.1, "sigma2": 0.25, "beta": 0.0, "cells": 50,
            "cell_variance": 4.0, "cell_cv": 0.0, "noise_cv": 0.0, "kurtosis": 0.0,
            "missing": 0.1, "n_batches": 3, "batch_variance": 0.1, "kind": "ctp",
            "structure": "hom", "tests": "score", "alpha": 0.05, "n_sim": 2, "one_step": False,
            "n_bootstrap": 3, "rng": 1, "progress": False,
        }),
        "power of conditions": (ctmm.power, {
            "n_donors": 12, "celltypes": 2, "effect": 0.5, "cases": 0.5, "case_cells": 0.5,
            "case_variance": 2.0, "response": 0.0, "paired": False, "counts": 2.0, "fold": 2.0,
            "dispersion": 0.5, "cells": 30, "tests": ["effects"], "n_sim": 2, "rng": 1,
        }),
        "simulate_pseudobulk": (ctmm.simulate_pseudobulk, {
            "n_donors": 10, "celltypes": 2, "sigma2": 0.2, "V": 0.1, "beta": 0.0, "n_pcs": 1,
            "effects": {"sex": 1.0}, "n_batches": 2, "batch_variance": 0.1, "cells": 50,
            "min_cells": 2, "cell_variance": 4.0, "noise_error": None, "missing": 0.1, "rng": 1,
        }),
        "simulate_genes": (ctmm.simulate.simulate_genes, {
            "n_genes": 2, "n_donors": 10, "celltypes": 2, "kind": "ctp", "gene_variance": 1.0,
            "cell_cv": 0.0, "cell_noise": None, "noise_error": None, "counts": None, "rng": 1,
        }),
        "simulate_design": (ctmm.simulate.simulate_design, {
            "name": "published/hom", "n_genes": 2, "n_donors": 10, "kind": "ctp", "rng": 1,
        }),
        "simulate_cells": (ctmm.simulate.simulate_cells, {
            "n_genes": 2, "n_donors": 5, "celltypes": 2, "scale": "expression", "kurtosis": 0.0,
            "baseline": 4.0, "depth": 2.0, "dispersion": 0.5, "rng": 1,
        }),
        "pseudobulk": (ctmm.pseudobulk, {
            "data": cells(np.random.default_rng(4)), "donor": "donor", "celltype": "celltype",
            "obs": None, "layer": None, "raw": False, "genes": None, "normalize": None,
            "summary": "mean", "min_cells": 2, "min_cells_donor": 2, "min_donor_share": 0.0,
            "experiment": None, "replicate": "largest", "covariates": None, "negative": "error",
            "block_size": None,
        }),
        "impute": (ctmm.impute, {
            "pb": pb, "method": "softimpute", "by": None, "engine": "native", "penalty": None,
            "holdout": "pairs", "folds": 2, "scale": True, "negative": "max", "prior": 1.0,
            "rng": 1,
        }),
        "evaluate_imputation": (ctmm.evaluate_imputation, {
            "pb": pb, "methods": ["mean"], "hide": "random", "fraction": 0.1, "repeats": 1,
            "rng": 1,
        }),
        "filter_genes": (ctmm.filter_genes, {
            "pb": pb, "min_share": 0.1, "celltypes": "every", "above": 0.0,
        }),
        "overall": (ctmm.overall, {"pb": pb, "missing": "observed"}),
        "standardize": (ctmm.standardize, {"pb": pb, "missing": "observed"}),
        "principal_components": (ctmm.principal_components, {
            "pb": pb, "n": 2, "missing": "observed",
        }),
        "to_frame": (ctmm.to_frame, {"pb": pb, "genes": ["A"]}),
        "to_long": (ctmm.to_long, {"pb": pb, "gene": "A", "name": None, "zero_noise": "keep"}),
        "bootstrap": (res.bootstrap, {"n": 2, "rng": 1, "n_jobs": 1}),
        "jackknife": (res.jackknife, {
            "blocks": 3, "one_step": True, "n_jobs": 1, "progress": False,
        }),
        "simulate": (res.simulate, {"rng": 1, "n": 1}),
        "conf_int": (res.conf_int, {"alpha": 0.05, "covariance": "model"}),
        "contrasts": (res.contrasts, {
            "kind": "pairwise", "adjust": "holm", "covariance": None, "alpha": 0.05,
        }),
        "means": (res.means, {"covariance": None, "alpha": 0.05}),
        "cov_params": (res.cov_params, {"covariance": "model"}),
        "summary": (res.summary, {"covariance": None, "alpha": 0.05}),
        "variance_explained": (res.variance_explained, {"by_celltype": False, "ddof": 1}),
        "test_component": (res.test_component, {
            "name": "hom", "method": "wald", "covariance": None, "rng": 1, "n": 20,
        }),
        "test_variance": (res.test_variance, {
            "method": "bootstrap", "covariance": None, "rng": 1, "n": 2, "n_jobs": 1,
        }),
        "test_mean": (res.test_mean, {"covariance": None}),
        "wald_test": (res.wald_test, {"hypotheses": "hom = 0", "covariance": None}),
        "t_test": (res.t_test, {"hypotheses": "hom = 0", "covariance": None}),
        "effects": (res_sex.effects, {
            "name": "sex", "values": ["F", "M"], "at": None, "covariance": None, "alpha": 0.05,
        }),
        "contrast": (res_sex.contrast, {
            "weights": "T|M = T|F", "at": None, "covariance": None, "alpha": 0.05,
        }),
        "means at": (res_sex.means, {"at": {"sex": "M"}, "covariance": None, "alpha": 0.05}),
        "outliers": (res.outliers, {"adjust": "holm"}),
        "scan_donors": (ctmm.scan_donors, {
            "res": res, "table": dosages, "missing": "refuse", "adjust": "fdr_bh",
        }),
        "kinship": (ctmm.fit, {
            "formula": "expr ~ C(celltype)", "kinship": K, "genetic_structure": "hom",
            "structure": "hom", "data": df, "method": None, "bounds": None,
        }),
        "windows": (ctmm.fit_genes, {
            "formula": "~ C(celltype)", "data": many, "structure": "hom", "genotypes": G,
            "window": 10**6, "maf": 0.01, "positions": many.positions, "kinship": None,
            "genetic_structure": "hom", "tests": ["heritability"],
        }),
        "Genotypes": (ctmm.Genotypes, {
            "source": G.frame().to_numpy(), "variants": G.variants, "donors": list(G.donors),
        }),
        "window": (lambda **given: G.window(**given).frame(), {
            "chromosome": 1, "start": 1, "end": 10**6, "maf": 0.1,
        }),
        "G.kinship": (G.kinship, {"donors": list(G.donors[:9]), "maf": 0.05}),
        "read_kinship": (ctmm.read_kinship, {"path": folder / "K.csv"}),
        "simulate_genotypes": (ctmm.simulate.simulate_genotypes, {
            "n_donors": 6, "n_variants": 10, "chromosomes": 2, "block": 5, "ld": 0.5,
            "spacing": 100, "family": 2, "populations": 2, "fst": 0.1, "missing": 0.1, "rng": 1,
        }),
        "heredity": (
            lambda **given: ctmm.simulate.simulate_genes(
                1, 20, 2, heredity=ctmm.simulate.Heredity(**given), rng=1
            ),
            {"genotypes": G, "cis": 0.1, "cis_specific": 0.1, "polygenic": 0.1,
             "polygenic_specific": 0.1, "causal": 5, "window": 10**5, "stratified": 0.1},
        ),
        "heritability": (related.heritability, {"covariance": None, "alpha": 0.05}),
        "test_heritability": (related.test_heritability, {"kinship": "genetic"}),
        "genetic_values": (related.genetic_values, {"kinship": K}),
        "f_test": (res.f_test, {"hypotheses": "Intercept = 0"}),
        "wald_test_terms": (res.wald_test_terms, {"skip_single": False, "covariance": None}),
        "t_test_pairwise": (res.t_test_pairwise, {
            "term_name": "C(celltype)", "method": "hs", "alpha": 0.05, "factor_labels": None,
            "covariance": None,
        }),
        "from_ctmm": (ctmm.from_ctmm, {
            "y": np.ones((4, 2)), "P": np.full((4, 2), 0.5), "nu": np.ones((4, 2)),
            "fixed": {"x": np.arange(4.0)}, "random": {"b": np.eye(4)}, "celltypes": ["B", "T"],
            "donors": list("abcd"),
        }),
        "condition": (
            lambda **given: ctmm.simulate.simulate_genes(
                1, 10, 2, condition=ctmm.simulate.Condition(**given), rng=1
            ),
            {"effect": 0.1, "share": 0.5, "cells": 1.0, "variance": 1.0, "response": 0.1,
             "paired": True},
        ),
        "tree": (ctmm.tree, {"clades": {"lymphoid": ["B", "T"]}}),
        "predict": (res.predict, {"newdata": df.head(3), "random": "all"}),
        "compare_lr_test": (res.compare_lr_test, {"restricted": fits["hom"]}),
        "plot_data": (res.plot_data, {"kind": "gene"}),
    }  # fmt: skip


def arguments(folder: Path) -> Callable[[Rng], Try]:
    """One argument of one door."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.CTMMWarning)
        doors = _doors(folder)
        for function, good in doors.values():
            function(**good)  # the calls are good, and compiled
    names = list(doors)

    def attempt(rng: Rng) -> Try:
        door = str(pick(rng, names))
        function, good = doors[door]
        name = str(pick(rng, list(good)))
        value = pick(rng, VALUES)
        if rng.random() < 0.15:
            value = [value]
        elif rng.random() < 0.1:
            value = good[str(pick(rng, list(good)))]

        def work() -> str:
            str(function(**{**good, name: value}))
            return ""

        return Try("argument", work, (door, name, value))

    return attempt
