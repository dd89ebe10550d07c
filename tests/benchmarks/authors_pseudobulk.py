"""Pseudobulk and standardisation against the authors' package, on the same cells.

    python tests/benchmarks/authors_pseudobulk.py --python peer/bin/python

`--python` is the interpreter of an environment of its own: ``pip install 'ctmm==1.1.0'``.  R is not
needed, these steps do not call it.  Prints the largest differences and writes
``authors_pseudobulk.md`` beside this file.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

import ctmm_formula as ctmm

HERE = Path(__file__).parent
DONORS, CELLS, GENES, TYPES = 40, 9000, 60, ["B", "Mono", "NK", "T"]
SHARES = [0.3, 0.4, 0.04, 0.26]
THEIRS = """
import sys
from unittest.mock import MagicMock
for name in ("rpy2", "rpy2.robjects", "rpy2.robjects.packages", "rpy2.robjects.conversion",
             "rpy2.rinterface_lib", "rpy2.rinterface_lib.callbacks",
             "rpy2.rinterface_lib.embedded"):
    sys.modules[name] = MagicMock()  # no R in what follows
import pandas as pd
from scipy import sparse
from ctmm import preprocess
folder = sys.argv[1]
obs = pd.read_csv(f"{folder}/obs.csv", index_col=0)
X = sparse.load_npz(f"{folder}/X.npz")
var = pd.DataFrame(index=[f"g{k}" for k in range(X.shape[1])])
by_matrix = preprocess.pseudobulk(X=X, obs=obs, var=var, ind_cut=100, ct_cut=10)
counts = pd.DataFrame(X.toarray().T, index=var.index, columns=obs.index)
by_table = preprocess.pseudobulk(
    counts=counts, meta=obs.assign(cell=obs.index), ind_cut=100, ct_cut=10
)
for way, parts in (("matrix", by_matrix), ("table", by_table)):
    for name, part in zip(("mean", "nu", "P", "n"), parts):
        part.to_csv(f"{folder}/{way}_{name}.csv", float_format="%.17g")
mean, nu, P = by_matrix[:3]
types = list(P.columns[:2]) + list(P.columns[3:])  # without the type that is missing somewhere
P = P[types].div(P[types].sum(axis=1), axis=0)
keep = mean.index.get_level_values("ct").isin(types)
std = preprocess.std(mean[keep].sort_index(), nu[keep].sort_index(), P.sort_index())
for name, part in zip(("op", "op_nu", "ctp", "ctnu"), std):
    part.to_csv(f"{folder}/std_{name}.csv", float_format="%.17g")
"""


def cells() -> ad.AnnData:
    """Logarithms of counts; one cell type scarce, some donors small."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "ind": rng.choice(
                [f"d{k:02d}" for k in range(DONORS)], CELLS, p=rng.dirichlet(np.full(DONORS, 4.0))
            ),
            "ct": rng.choice(TYPES, CELLS, p=SHARES),
        },
        index=[f"c{k}" for k in range(CELLS)],
    )
    X = np.log1p(rng.poisson(rng.gamma(1.0, 1.0, (CELLS, GENES))))
    var = pd.DataFrame(index=[f"g{k}" for k in range(GENES)])
    return ad.AnnData(sparse.csr_matrix(X), obs=obs, var=var)


def compare(folder: Path, adata: ad.AnnData) -> list[str]:
    """Largest absolute difference of each result."""

    def theirs(name: str, index: list[object], depth: int = 1) -> np.ndarray:
        table = pd.read_csv(folder / f"{name}.csv", index_col=list(range(depth)))
        return table.reindex(index).to_numpy()

    def far(a: np.ndarray, b: object) -> str:
        b = np.asarray(b, dtype=float)
        assert a.shape == b.shape and (np.isnan(a) == np.isnan(b)).all()
        return f"{np.nanmax(np.abs(a - b)):.1e}"

    pb = ctmm.pseudobulk(adata, donor="ind", celltype="ct", min_cells=10, min_cells_donor=100)
    donors = list(pb.obs["donor"].cat.categories)
    pairs = list(zip(pb.obs["donor"], pb.obs["celltype"], strict=True))
    shape = (len(donors), len(TYPES))
    lines = [
        f"{len(donors)} of {DONORS} donors, {int(np.isnan(pb.X[:, 0]).sum())} pairs missing.",
        "",
    ]
    lines += ["| result | their way in | largest difference |", "|---|---|---|"]
    for way in ("matrix", "table"):
        lines.append(f"| mean | {way} | {far(theirs(f'{way}_mean', pairs, 2), pb.X)} |")
        lines.append(f"| ν | {way} | {far(theirs(f'{way}_nu', pairs, 2), pb.layers['nu'])} |")
    for name, column in (("P", "proportion"), ("n", "n_cells")):
        ours = pb.obs[column].to_numpy().reshape(shape)
        lines.append(f"| {name} | matrix | {far(theirs(f'matrix_{name}', donors), ours)} |")
    part = pb[pb.obs["celltype"] != "NK"].copy()
    assert not np.isnan(part.X).any()
    scaled = ctmm.standardize(part)
    op = ctmm.overall(scaled)
    pairs = list(zip(part.obs["donor"], part.obs["celltype"], strict=True))
    for name, index, depth, ours in (
        ("op", donors, 1, op.X), ("op_nu", donors, 1, op.layers["nu"]),
        ("ctp", pairs, 2, scaled.X), ("ctnu", pairs, 2, scaled.layers["nu"]),
    ):  # fmt: skip
        lines.append(
            f"| standardised {name} | | {far(theirs(f'std_{name}', index, depth), ours)} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="with the authors' package")
    python = parser.parse_args().python
    adata = cells()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adata.obs.to_csv(folder / "obs.csv")
        sparse.save_npz(folder / "X.npz", adata.X)
        subprocess.run([python, "-c", THEIRS, name], check=True, capture_output=True)
        lines = compare(folder, adata)
    text = [
        "# Pseudobulk against the authors' package", "",
        f"ctmm 1.1.0 and this package on the same {CELLS:,} cells, {GENES} genes, "
        f"{len(TYPES)} cell types: more than 100 cells per donor, more than 10 per pair; "
        "then standardised, without the scarce type, as theirs takes no missing pairs.", "",
        *lines, "",
        "Where the two differ: their table leaves pairs of one cell out of P and n, their matrix "
        "and this package keep them; with a missing pair their standardisation adds zero for it, "
        "this package rescales the proportions.", "",
    ]  # fmt: skip
    print("\n".join(text))
    (HERE / "authors_pseudobulk.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
