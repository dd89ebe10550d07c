"""Heritabilities by moments and jackknife against the authors' program, on the same genes.

    python tests/benchmarks/authors_heritability.py --python peer/bin/python [--genes 20]

`--python` is the interpreter of an environment of its own: ``pip install cigma==1.1.0``.  20 genes
of 100 donors and 4 cell types, each with a window of 100 variants of its own and a covariate, all
pairs there (the authors' program takes no other): estimates, p values and heritabilities side by
side.  Then the time of one gene, from arrays to the jackknife's covariance: of their program for
the estimate with its jackknife and p values, of this one for the same.  Both on one thread, one
after the other.  Prints the tables and writes ``authors_heritability.md`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from heritability_levels import Setting, model_of

import ctmm_formula as ctmm
from ctmm_formula.engine import he
from ctmm_formula.engine.model import Model, build_model
from ctmm_formula.engine.relatedness import Kernel, KernelTerm
from ctmm_formula.inference.jackknife import jackknife

HERE = Path(__file__).parent
DONORS, SIZES = 100, (100, 300, 1000)
THEIRS = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import numpy as np
from cigma import fit
flat = lambda value: [float(x) for x in np.ravel(value)]
for name in sys.argv[1:]:
    data = np.load(name)
    begin = time.perf_counter()
    out, p = fit.free_HE(
        data["Y"], data["K"], data["nu"], data["P"], fixed_covars={"x": data["x"]}, jk=True
    )
    took = time.perf_counter() - begin
    V, W = (np.diag(m) if np.ndim(m) == 2 else m for m in (out["V"], out["W"]))
    print("RESULT" + json.dumps({
        "took": took, "theta": flat([out["hom_g2"], *V, out["hom_e2"], *W]),
        "p": {k: flat(v) for k, v in p.items()},
        "h2": flat([out["shared_h2"], out["specific_h2"]]),
    }), flush=True)
"""


def gene(donors: int, seed: int) -> Model:
    """One gene: two covariates are simulated, of which one is in the fit."""
    return model_of(Setting(donors, g=0.13, V=0.04), np.random.default_rng([17, donors, seed]))


def arrays(model: Model) -> dict[str, np.ndarray]:
    """As their program takes it: donors x cell types."""
    order = np.argsort(model.order)
    C = model.H.shape[1]
    Y, nu = model.y[order].reshape(-1, C), model.nu[order].reshape(-1, C)
    K = model.kinship[0].kernel.whole
    back = np.argsort(model.donors)
    x = model.X[order][::C, C : C + 1]
    P = np.full(Y.shape, 1.0 / C)
    return {"Y": Y, "nu": nu, "K": K[np.ix_(back, back)], "x": x, "P": P}


def theirs(python: str, genes: list[dict[str, np.ndarray]]) -> list[dict]:
    """What their program says of these genes."""
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for k, one in enumerate(genes):
            names.append(str(Path(folder, f"{k}.npz")))
            np.savez(names[-1], **one)
        call = [python, "-c", THEIRS, *names]
        out = subprocess.run(call, check=True, capture_output=True, text=True, cwd=folder).stdout
    lines = [line for line in out.splitlines() if line.startswith("RESULT")]
    return [json.loads(line.removeprefix("RESULT")) for line in lines]


def ours(one: dict[str, np.ndarray]) -> dict:
    """The same by `fit` and the methods of its results."""
    N, C = one["Y"].shape
    names, types = [f"d{i:03d}" for i in range(N)], list("ABCD")
    data = pd.DataFrame(
        {
            "donor": np.repeat(names, C), "celltype": np.tile(types, N), "y": one["Y"].ravel(),
            "nu": one["nu"].ravel(), "x": np.repeat(one["x"].ravel(), C),
        }
    )  # fmt: skip
    K = pd.DataFrame(one["K"], names, names)
    res = ctmm.fit("y ~ 0 + C(celltype) + x", kinship=K, data=data)
    labels = [
        "genetic:hom",
        *(f"genetic:V[{c}]" for c in types),
        "hom",
        *(f"V[{c}]" for c in types),
    ]
    T, scale = res.heritability().table.loc["genetic"], res.design.kinship[0].kernel.scale
    total = T.loc["total", "genetic"] / scale + T.loc["total", "environment"]
    V = ", ".join(f"{name} = 0" for name in labels[1:5])
    return {
        "theta": res.vcomp[labels].tolist(),
        "p": {
            "hom_g2": [res.test_component("genetic:hom").pvalue],
            "hom_e2": [res.test_component("hom").pvalue],
            "vc": [res.test_component(name).pvalue for name in labels[1:5]],
            "V": [res.wald_test(V).pvalue], "W": [res.test_variance("jackknife").pvalue],
        },
        "h2": [T.loc[part, "genetic"] / scale / total for part in ("shared", "specific")],
    }  # fmt: skip


def seconds(model: Model) -> float:
    """Best of five: moments and jackknife with a kernel that nothing is known of."""
    took = []
    for _ in range(5):
        kernel = Kernel(None, model.kinship[0].kernel.root.copy())
        X = model.X[:, : model.H.shape[1] + 1]
        begin = time.perf_counter()
        own = build_model(
            model.y, model.nu, X, model.H, model.row_donor, model.basis,
            kinship=[KernelTerm(kernel, model.kinship[0].basis)],
        )  # fmt: skip
        jackknife(own, he.fit(own))
        took.append(time.perf_counter() - begin)
    return min(took)


def apart(a: list[float], b: list[float]) -> float:
    """Largest difference, relative to the largest of b."""
    return float(np.abs(np.subtract(a, b)).max() / np.abs(b).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True)
    parser.add_argument("--genes", type=int, default=20)
    options = parser.parse_args()
    probe = [options.python, "-c", "import cigma"]
    try:
        there = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError:
        there = False
    if not there:
        sys.exit(f"skipped: {options.python} has no cigma: pip install cigma==1.1.0 there")
    genes = [arrays(gene(DONORS, k)) for k in range(options.genes)]
    found = list(zip(theirs(options.python, genes), map(ours, genes), strict=True))
    what = {"components": [apart(b["theta"], a["theta"]) for a, b in found]}
    for name in found[0][1]["p"]:
        own = [apart(b["p"][name], a["p"][name]) for a, b in found if name in a["p"]]
        what |= {f"p of {name}": own} if own else {}
    what["shared and specific h2"] = [apart(b["h2"], a["h2"]) for a, b in found]
    lines = [
        "# Heritabilities: the authors' program and this one\n",
        f"Written by `authors_heritability.py`: cigma 1.1.0 and this package on {len(genes)} genes "
        f"of {DONORS} donors and 4 cell types.\n",
        "| | largest relative difference |",
        "|---|---|",
        *(f"| {name} | {max(values):.1e} |" for name, values in what.items()),
        "\nMoments with the exact jackknife, a window of 100 variants of its own, one gene, one "
        "thread:\n",
        "| donors | cigma, s | this package, s | ratio |",
        "|---|---|---|---|",
    ]
    for N in SIZES:
        model = gene(N, 0)
        mine, their = seconds(model), theirs(options.python, [arrays(model)])[0]["took"]
        lines.append(f"| {N} | {their:.3g} | {mine:.3g} | {their / mine:.0f} |")
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    (HERE / "authors_heritability.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
