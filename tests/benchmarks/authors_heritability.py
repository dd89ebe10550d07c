"""Heritabilities by moments and jackknife against the authors' program, on the same genes.

    python tests/benchmarks/authors_heritability.py --python peer/bin/python [--only moments]

`--python` is the interpreter of an environment of its own: ``pip install cigma==1.1.0``.  Genes of
4 cell types, each with a window of 100 variants of its own and a covariate, all pairs there (the
authors' program takes no other), both programs on one thread, one after the other.  Parts, each of
which may be run by itself (and its times for some numbers of donors only) and writes its section of
``authors_heritability.md`` beside this file:

moments   20 genes of 100 donors: estimates, p values and heritabilities side by side; then the
          time of one gene, from arrays to the jackknife's covariance and p values
power     60 genes of 200 donors with g = .13 and V = .04 each: how often tests find something
reml      single genes by their R engine (which needs R with optparse), and by this program; it is
          stopped after `--limit` seconds of a processor, and what it found is kept in a file
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from heritability_levels import Setting, model_of

import ctmm_formula as ctmm
from ctmm_formula.engine import he
from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.model import Model, build_model
from ctmm_formula.engine.related_likelihood import evaluate
from ctmm_formula.engine.relatedness import Kernel, KernelTerm
from ctmm_formula.inference.genetic_score import genetic_design, genetic_test
from ctmm_formula.inference.jackknife import jackknife

HERE = Path(__file__).parent
DONORS, SIZES = 100, (100, 300, 1000)
GENES, POWER = 20, 60
TITLE = """# Heritabilities: the authors' program and this one

Written by `authors_heritability.py`: cigma 1.1.0, run as a black box, and this package.
"""
BEGIN = """
import json, resource, sys, warnings
warnings.filterwarnings("ignore")
import numpy as np
from cigma import fit
flat = lambda value: [float(x) for x in np.ravel(value)]
def cpu():
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)
for name in sys.argv[1:]:
    data = np.load(name)
    begin = cpu()
"""
THEIRS = """
    out, p = fit.free_HE(
        data["Y"], data["K"], data["nu"], data["P"], fixed_covars={"x": data["x"]}, jk=True
    )
    took = cpu() - begin
    V, W = (np.diag(m) if np.ndim(m) == 2 else m for m in (out["V"], out["W"]))
    print("RESULT" + json.dumps({
        "took": took, "theta": flat([out["hom_g2"], *V, out["hom_e2"], *W]),
        "p": {k: flat(v) for k, v in p.items()},
        "h2": flat([out["shared_h2"], out["specific_h2"]]),
    }), flush=True)
"""
BY_REML = """
    out, _ = fit.free_REML(
        data["Y"], data["K"], data["P"], data["nu"], fixed_covars={"x": data["x"]}, R=True
    )
    took = cpu() - begin
    V, W = (np.diag(m) if np.ndim(m) == 2 else m for m in (out["V"], out["W"]))
    print("RESULT" + json.dumps(
        {"took": took, "theta": flat([out["hom_e2"], *W, out["hom_g2"], *V])}
    ), flush=True)
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


def theirs(
    python: str, genes: list[dict[str, np.ndarray]], code: str = THEIRS, limit: int | None = None
) -> list[dict]:
    """What their program says of these genes; its R engine is looked for in ``src/cigma``.

    No process of it takes more than `limit` seconds of a processor: then nothing is said.
    """

    def bound() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))

    where = [python, "-c", "import importlib.util as i; print(i.find_spec('cigma').origin)"]
    origin = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "src").mkdir()
        Path(folder, "src", "cigma").symlink_to(Path(origin).parent)
        names = []
        for k, one in enumerate(genes):
            names.append(str(Path(folder, f"{k}.npz")))
            np.savez(names[-1], **one)
        call = [python, "-c", BEGIN + code, *names]
        begin = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        run = subprocess.run(call, capture_output=True, text=True, cwd=folder, preexec_fn=bound)
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begin
    if run.returncode and (limit is None or used < 0.9 * limit):
        sys.exit(run.stderr)
    lines = [line for line in run.stdout.splitlines() if line.startswith("RESULT")]
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
    res = ctmm.fit("y ~ 0 + C(celltype) + x", kinship=K, method="he", data=data)
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
        begin = time.process_time()
        own = build_model(
            model.y, model.nu, X, model.H, model.row_donor, model.basis,
            kinship=[KernelTerm(kernel, model.kinship[0].basis)],
        )  # fmt: skip
        jackknife(own, he.fit(own))
        took.append(time.process_time() - begin)
    return min(took)


def apart(a: list[float], b: list[float]) -> float:
    """Largest difference, relative to the largest of b."""
    return float(np.abs(np.subtract(a, b)).max() / np.abs(b).max())


def moments(options: argparse.Namespace, sizes: Sequence[int]) -> Iterator[str]:
    """Their numbers and times beside these."""
    genes = [arrays(gene(DONORS, k)) for k in range(GENES)]
    found = list(zip(theirs(options.python, genes), map(ours, genes), strict=True))
    what = {"components": [apart(b["theta"], a["theta"]) for a, b in found]}
    for name in found[0][1]["p"]:
        own = [apart(b["p"][name], a["p"][name]) for a, b in found if name in a["p"]]
        what |= {f"p of {name}": own} if own else {}
    what["shared and specific h2"] = [apart(b["h2"], a["h2"]) for a, b in found]
    yield f'Moments (`method="he"`) of {GENES} genes of {DONORS} donors and 4 cell types.\n'
    yield from ("| | largest relative difference |", "|---|---|")
    yield from (f"| {name} | {max(values):.1e} |" for name, values in what.items())
    yield "\nWith the exact jackknife, a window of its own, one gene; seconds of a processor:\n"
    yield from ("| donors | cigma, s | this package, s | ratio |", "|---|---|---|---|")
    for N in sizes:
        model = gene(N, 0)
        mine, their = seconds(model), theirs(options.python, [arrays(model)])[0]["took"]
        yield f"| {N} | {their:.3g} | {mine:.3g} | {their / mine:.0f} |"


def power(options: argparse.Namespace, sizes: Sequence[int]) -> Iterator[str]:
    """How often tests of both find what is there."""
    del sizes
    models = [gene(200, 1000 + k) for k in range(POWER)]
    wald = [one["p"] for one in theirs(options.python, [arrays(model) for model in models])]
    p: dict[str, list[float]] = {
        "cigma, shared (`hom_g2`)": [one["hom_g2"][0] for one in wald],
        "cigma, specific (`V`)": [one["V"][0] for one in wald],
    }
    both = zip(*p.values(), strict=True)
    p["cigma, the smaller of both times 2"] = [2.0 * min(pair) for pair in both]
    scores = [genetic_test(model, genetic_design(model, 0, whole=False)) for model in models]
    p["this package, score, shared"] = [math.exp(one.shared.log) for one in scores]
    p["this package, score, specific"] = [math.exp(one.specific) for one in scores]
    p["this package, score, any"] = [math.exp(one.any) for one in scores]
    yield f"Power at .05 of {POWER} genes of 200 donors, g = .13, V = .04 each, noise measured.\n"
    yield from ("| test | rejects |", "|---|---|")
    yield from (f"| {name} | {np.mean(np.array(own) < 0.05):.2f} |" for name, own in p.items())


def reml(options: argparse.Namespace, sizes: Sequence[int]) -> Iterator[str]:
    """Times and maxima of REML."""
    yield (
        "REML of one gene, seconds of a processor; their R engine with its default arguments and "
        'this package (`bounds="psd"`, the covariances of both parts positive semidefinite).  The '
        "difference is that of the log-likelihood here and at their estimate; theirs knows no "
        "bounds.  What they had not finished after so many seconds is >.\n"
    )
    yield "| donors | cigma, s | this package, s | ratio | difference | theirs is a covariance |"
    yield "|---|---|---|---|---|---|"
    kept = json.loads(options.keep.read_text()) if options.keep.exists() else {}
    for N in sizes:
        model = gene(N, 0)
        if str(N) not in kept:
            said = theirs(options.python, [arrays(model)], BY_REML, options.limit)
            kept[str(N)] = said[0] if said else {"took": options.limit, "theta": None}
            options.keep.write_text(json.dumps(kept))
        their = kept[str(N)]
        X = model.X[:, : model.H.shape[1] + 1]
        own = build_model(
            model.y, model.nu, X, model.H, model.row_donor, model.basis, kinship=model.kinship
        )
        took = []
        for _ in range(5):
            begin = time.process_time()
            found = estimate(own, "reml", Domain("psd"))
            took.append(time.process_time() - begin)
        ratio, more, inside = their["took"] / min(took), "", ""
        if their["theta"] is not None:
            theta = np.array(their["theta"])
            parts = [np.tensordot(part, own.basis, axes=1) for part in np.split(theta, 2)]
            inside = "yes" if all(np.linalg.eigvalsh(A)[0] >= 0.0 for A in parts) else "no"
            at = evaluate(own, theta, True)
            more = "" if at is None else f"{found.llf - at.llf:.1e}"
        at_least = "> " if their["theta"] is None else ""
        cells = f"{at_least}{their['took']:.3g} | {min(took):.3g} | {at_least}{ratio:.0f}"
        yield f"| {N} | {cells} | {more} | {inside} |"


PARTS = {"moments": (moments, SIZES), "power": (power, ()), "reml": (reml, (50, 100, 200))}


def rows_of(text: str) -> dict[int, str]:
    """Lines of numbers of donors."""
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:1] == "|"}
    return {int(name): line for name, line in rows.items() if name.isdigit()}


def sections(text: str) -> dict[str, str]:
    """Parts of the file that is there, by name."""
    found = [part.split("\n", 1) for part in text.split("\n## ")[1:]]
    return {name.strip().lower(): body.strip() for name, body in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True)
    parser.add_argument("--limit", type=int, default=2400, help="seconds of one REML of theirs")
    parser.add_argument("--keep", type=Path, default=HERE / "authors_heritability.reml.json")
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--donors", type=int, nargs="*", help="times of these, others as they are")
    options = parser.parse_args()
    probe = [options.python, "-c", "import cigma"]
    try:
        there = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError:
        there = False
    if not there:
        sys.exit(f"skipped: {options.python} has no cigma: pip install cigma==1.1.0 there")
    path = HERE / "authors_heritability.md"
    done = sections(path.read_text()) if path.exists() else {}
    for name, (part, sizes) in PARTS.items():
        if options.only in (None, name):
            some = [N for N in sizes if options.donors is None or N in options.donors]
            text = "\n".join(part(options, some))
            rows = {**rows_of(done.get(name, "")), **rows_of(text)}
            kept = [line for line in text.splitlines() if line not in rows.values()]
            done[name] = "\n".join([*kept, *(rows[N] for N in sizes if N in rows)])
            print(done[name], flush=True)
    own = [f"## {name.capitalize()}\n\n{done[name]}\n" for name in PARTS if name in done]
    path.write_text("\n".join([TITLE, *own]))


if __name__ == "__main__":
    main()
