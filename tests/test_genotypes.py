"""Genotypes by file and table, windows of genes in scans, against tables made by hand."""

import builtins
import pickle

import numpy as np
import pandas as pd
import pytest
from test_he import close
from test_heritability import FORMULA
from test_kinship import family

import ctmm_formula as ctmm
from ctmm_formula.design.genotype_sources import chromosome_name
from ctmm_formula.design.genotypes import Genotypes, scaled
from ctmm_formula.scan.windows import Read, Walk

M = 60


@pytest.fixture(scope="module")
def df():
    return ctmm.load_example()


@pytest.fixture(scope="module")
def donors(df):
    return list(df["donor"].unique())


@pytest.fixture(scope="module")
def table(donors):
    """Counts of an allele, with holes, one constant and one rare variant."""
    rng = np.random.default_rng(4)
    G = rng.binomial(2, rng.uniform(0.1, 0.5, M), (len(donors) + 3, M)).astype(float)
    G[rng.random(G.shape) < 0.02] = np.nan
    G[:, 7], G[:, 9] = 0.0, 0.0
    G[:2, 9] = 1.0
    labels = [*donors[::-1], "x1", "x2", "x3"]
    return pd.DataFrame(G, labels, [f"rs{k}" for k in range(M)])


@pytest.fixture(scope="module")
def variants(table):
    """Two chromosomes, 1,000 base pairs apart, the last ten not in order."""
    position = 1000 * (np.arange(M) % 40 + 1)
    position[-10:] = position[-10:][::-1]
    chromosome = np.where(np.arange(M) < 40, "chr1", "chr2")
    return pd.DataFrame({"chromosome": chromosome, "position": position}, table.columns)


@pytest.fixture(scope="module")
def G(table, variants):
    return Genotypes(table, variants)


def write_bed(folder, table, variants, stem="c"):
    """PLINK 1: two bits a genotype, donors of a variant together, of the second allele."""
    code = {0.0: 0b11, 1.0: 0b10, 2.0: 0b00}  # bed_reader counts the first allele
    lines = [b"l\x1b\x01"]
    for values in table.to_numpy().T:
        bits = [0b01 if np.isnan(v) else code[v] for v in values]
        bits += [0] * (-len(bits) % 4)
        lines.append(bytes(sum(b << 2 * k for k, b in enumerate(bits[i : i + 4]))
                           for i in range(0, len(bits), 4)))  # fmt: skip
    path = folder / f"{stem}.bed"
    path.write_bytes(b"".join(lines))
    path.with_suffix(".fam").write_text(
        "".join(f"fam{k // 3} {donor} 0 0 0 -9\n" for k, donor in enumerate(table.index))
    )
    rows = zip(variants["chromosome"], variants.index, variants["position"], strict=True)
    path.with_suffix(".bim").write_text(
        "".join(f"{c.removeprefix('chr')}\t{name}\t0\t{at}\tA\tC\n" for c, name, at in rows)
    )
    return path


def write_pgen(folder, table, variants):
    pgenlib = pytest.importorskip("pgenlib")
    path = folder / "c.pgen"
    values = table.to_numpy()
    writer = pgenlib.PgenWriter(str(path).encode(), len(values), values.shape[1], False)
    for column in values.T:
        writer.append_biallelic(np.where(np.isnan(column), -9, column).astype(np.int8))
    writer.close()
    path.with_suffix(".psam").write_text("#IID\tSEX\n" + "".join(f"{d}\t0\n" for d in table.index))
    rows = zip(variants["chromosome"], variants["position"], variants.index, strict=True)
    path.with_suffix(".pvar").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\n"
        + "".join(f"{c}\t{at}\t{name}\tC\tA\n" for c, at, name in rows)
    )
    return path


# ---------------------------------------------------------------------------------------------
# sources


@pytest.mark.parametrize("write", [write_bed, write_pgen])
@pytest.mark.parametrize("stem", [True, False])
def test_files_are_the_table(write, stem, table, variants, tmp_path):
    if write is write_bed:
        pytest.importorskip("bed_reader")
    path = write(tmp_path, table, variants)
    found = Genotypes(str(path.with_suffix("")) if stem else path)
    pd.testing.assert_frame_equal(found.frame(), table, check_names=False)
    assert found.variants["chromosome"].tolist() == ["1"] * 40 + ["2"] * 20
    part = found.window("chr2", 5000, 9000)
    pd.testing.assert_frame_equal(part.frame(), table[part.variants.index], check_names=False)
    rows = found.rows_of(["x2", table.index[0]])
    close(np.nan_to_num(part.read(rows)), np.nan_to_num(part.frame().to_numpy()[rows]), 1e-12)
    again = pickle.loads(pickle.dumps(found))
    pd.testing.assert_frame_equal(again.frame(), table, check_names=False)


def test_windows(G, variants):
    def names(*at):
        return set(G.window(*at).variants.index)

    on2 = variants[variants["chromosome"] == "chr2"]["position"]
    assert names("2", 3000, 12_500) == set(on2[(on2 >= 3000) & (on2 <= 12_500)].index)
    assert names(1, 1000, 3000) == {"rs0", "rs1", "rs2"}
    assert names("chr1", 1500, 1600) == set()
    assert (
        len(G.window("1", 0, np.inf)) == 40 and len(G.window("1", 0, 1e9).window(1, 0, 2000)) == 2
    )


def test_an_array_has_labels_of_its_own(table, variants):
    found = Genotypes(table.to_numpy(), variants, donors=list(table.index))
    assert found.variants.index[:2].tolist() == ["v1", "v2"]
    close(np.nan_to_num(found.read()), np.nan_to_num(table.to_numpy()), 1e-12)
    shuffled = variants.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(
        Genotypes(table, shuffled).variants, Genotypes(table, variants).variants
    )


def test_standardised_by_hand(table):
    values = table.to_numpy()[:40]
    found = scaled(values, 0.05)
    mean = np.nanmean(values, axis=0)
    frequency = np.minimum(mean, 2 - mean) / 2
    keep = (np.nanstd(values, axis=0) > 0) & (frequency >= 0.05)
    Z = np.where(np.isnan(values), mean, values)[:, keep]
    Z = (Z - Z.mean(axis=0)) / Z.std(axis=0) / np.sqrt(keep.sum())
    close(found.root, Z, 1e-12)
    constant = int((np.nanstd(values, axis=0) == 0).sum())
    assert (found.constant, found.rare) == (constant, M - constant - keep.sum())
    assert found.missing == np.isnan(values[:, keep]).sum()


@pytest.mark.parametrize("few", [False, True])
def test_windows_one_after_another_are_those_of_each(table, few):
    """Forwards, apart, backwards, and between other donors; thin ones have no matrix yet."""
    step = 3 if few else 30
    starts = [0, 4, 9, 11, 11, 29, 20, 3]
    at = [np.arange(start, start + step) for start in starts]
    read = Read(table.to_numpy(dtype=np.float32), (*at, "none", np.array([7, 9])), 0.05)
    walk, N = Walk(read), len(table)
    for donors in (np.arange(N)[::-1], np.arange(N), np.arange(5, N)):
        for k, columns in enumerate(at):
            own, known = walk.of(k, donors), scaled(table.to_numpy()[donors][:, columns], 0.05)
            close(own.kernel.whole, known.root @ known.root.T, 1e-12)
            close(own.kernel.root, known.root, 1e-12)
            assert (own.kernel.matrix is None) == few and own.variants == known.root.shape[1]
            assert own[2:] == (known.constant, known.rare, known.missing)
    with pytest.raises(ctmm.DataError, match="no kinship of its own: none"):
        walk.of(len(at), donors)
    with pytest.raises(ctmm.DataError, match="of 2 variants 2 do not vary"):
        walk.of(len(at) + 1, donors)


def test_a_kinship_of_all_variants(G, table, donors, df):
    K = G.kinship(donors, maf=0.05)
    Z = scaled(table.loc[donors].to_numpy(), 0.05).root
    close(K.to_numpy(), Z @ Z.T, 1e-6)
    own = ctmm.fit(FORMULA, structure="hom", kinship=G, data=df)
    frame = ctmm.fit(FORMULA, structure="hom", kinship=table, data=df)
    pd.testing.assert_series_equal(own.vcomp, frame.vcomp, rtol=1e-5)
    note = next(note for note in own.notes if note.startswith("kinship 'genetic'"))
    assert "59 columns" in note and "1 that do not vary" in note and "missing genotypes" in note
    assert own.genetic_values(G).shape == (len(table), 4)


@pytest.mark.parametrize("given", ["chr1", "Chr1", 1, "1", 1.0])
def test_chromosomes_have_one_name(given):
    assert chromosome_name(given) == "1"


# ---------------------------------------------------------------------------------------------
# scans


@pytest.fixture(scope="module")
def genes(df):
    """The example and the same with other responses, one with missing pairs."""
    rng = np.random.default_rng(2)
    E = pd.DataFrame({"g1": df["expr"], "g2": rng.permutation(df["expr"])})
    E["g3"] = df["expr"] + rng.normal(size=len(df))
    E["g4"], E["g5"] = E["g1"], E["g2"]
    E.loc[rng.choice(len(df), 20, replace=False), "g3"] = np.nan
    E.loc[df["donor"] == df["donor"].iloc[0], "g2"] = np.nan
    nu = pd.DataFrame({name: df["nu"] for name in E})
    return {"data": df.drop(columns=["expr", "nu"]), "expr": E, "nu": nu}


@pytest.fixture(scope="module")
def positions():
    """Genes on two chromosomes, one where no variant is, one without a place."""
    return pd.DataFrame(
        {"chromosome": ["chr2", "chr1", "chr1", "chr1"], "start": [8000, 20_000, 30_000, 900_000],
         "end": [9000, 21_000, 35_000, 900_100]}, ["g1", "g2", "g3", "g4"],
    )  # fmt: skip


WINDOW = {"window": 6000, "maf": 0.05}


@pytest.mark.parametrize(
    ("trans", "method"), [(False, "he"), (True, "he"), (True, "robust")],
    ids=["alone", "beside K", "weighted"],
)  # fmt: skip
def test_a_scan_has_the_numbers_of_fits_by_hand(
    trans, method, df, genes, table, variants, positions, G, donors, tmp_path
):
    K = pd.DataFrame(family(len(donors), 3), donors, donors)
    beside = {"kinship": {"trans": K}} if trans else {}
    names = ["cis", "trans"] if trans else ["cis"]
    path = tmp_path / "scan.parquet"
    options = {"genotypes": G, "positions": positions, **WINDOW, **beside}
    fixed = {"structure": "iid", "genetic_structure": "hom", "method": method}
    tests = ["heritability", *(["jackknife"] if method == "he" else [])]
    with pytest.warns(ctmm.CTMMWarning, match="of 5 genes, 2 failed"):
        scan = ctmm.fit_genes(
            "~ C(celltype) + sex", **genes, **options, **fixed, tests=tests, out=path
        )
    rows = scan.table.set_index("gene")
    assert rows.index.tolist() == ["g1", "g2", "g3", "g4", "g5"]
    assert "no variant from 894000 to 906100 of chromosome 1" in rows.loc["g4", "reason"]
    assert rows.loc["g5", "reason"] == "no kinship of its own: positions= has no such gene"
    assert np.isnan(rows.loc["g4", "cis:hom"]) and rows.loc["g4", "n_snps"] == 0
    for name, place in positions.iloc[:3].iterrows():
        at = variants["position"].between(place["start"] - 6000, place["end"] + 6000)
        window = table.loc[:, at & (variants["chromosome"] == place["chromosome"])]
        data = df.assign(expr=genes["expr"][name]).dropna(subset="expr")
        own = window.loc[data["donor"].unique()]
        common = np.minimum(own.mean(), 2 - own.mean()) / 2 >= 0.05
        window = window.loc[:, common & (own.std() > 0)]
        given = {"cis": window, **beside.get("kinship", {})}
        res = ctmm.fit(FORMULA, kinship=given, data=data, **fixed)
        row = rows.loc[name]
        assert row["n_snps"] == window.shape[1]
        assert row["n_snps"] + row["snps_constant"] + row["snps_rare"] == len(own.T)
        missing = own[window.columns].isna().to_numpy().mean()
        assert row["share_imputed"] == pytest.approx(missing)
        close(row[list(res.vcomp.index)].to_numpy(float), res.vcomp, 1e-6)
        close(scan.gene(name).vcomp, res.vcomp, 1e-6)
        for one in names:
            test = res.test_heritability(one)
            end = f":{one}" if trans else ""
            assert row[f"stat_heritability{end}"] == pytest.approx(test.statistic, rel=1e-4)
            parts = res.heritability().table.loc[one]
            for part in parts.index:
                column = f"{one}:{part}" if trans else part
                known = parts.loc[part, ["h2", "std_error"]].to_numpy(float)
                found = row[[f"h2[{column}]", f"se_h2[{column}]"]].to_numpy(float)
                np.testing.assert_allclose(found, known, rtol=1e-4)
    note = scan.notes[-1]
    assert note.startswith("window=6,000: ") and "2 genes have none" in note
    missing = (rows["share_imputed"] * rows["n_snps"]).sum() / rows["n_snps"].sum()
    assert f"{missing:.2%} of the genotypes are missing" in note
    # blocks, workers and files make no difference
    with pytest.warns(ctmm.CTMMWarning):
        again = ctmm.fit_genes(
            "~ C(celltype) + sex", **genes, **options, **fixed, tests=tests, n_jobs=2
        )
    pd.testing.assert_frame_equal(again.table, scan.table)
    read = ctmm.read_scan(path)
    pd.testing.assert_frame_equal(read.table, scan.table)
    with pytest.raises(ctmm.DataError, match="the scan took genotypes"):
        ctmm.read_scan(path, **genes, **beside)
    moved = positions.assign(end=positions["end"] + 2000)
    with pytest.raises(ctmm.DataError, match="not those of the scan"):
        ctmm.read_scan(path, **genes, **beside, genotypes=G, positions=moved)
    more = {"genotypes": G, "positions": positions, **beside}
    close(ctmm.read_scan(path, **genes, **more).gene("g3").vcomp, scan.gene("g3").vcomp, 1e-12)
    pickle.loads(pickle.dumps(scan))
    # the file knows its genotypes
    with pytest.warns(ctmm.CTMMWarning):
        ctmm.fit_genes("~ C(celltype) + sex", **genes, **options, **fixed, tests=tests, out=path)
    other = table.copy()
    other.loc[donors[3], "rs45"] = 2 - np.nan_to_num(other.loc[donors[3], "rs45"])
    changes = {
        "or genotypes": {"genotypes": Genotypes(other, variants)},
        "other settings .*window": {"window": 7000},
        "settings .*maf": {"maf": 0.1},
    }
    for message, change in changes.items():
        with pytest.raises(ctmm.DataError, match=message):
            ctmm.fit_genes(
                "~ C(celltype) + sex", **genes, **{**options, **change}, **fixed, tests=tests,
                out=path,
            )  # fmt: skip


def test_a_scan_by_file_in_other_processes(genes, table, variants, positions, G, tmp_path):
    pytest.importorskip("bed_reader")
    import joblib

    options = {"positions": positions, **WINDOW, "structure": "hom"}
    with pytest.warns(ctmm.CTMMWarning):
        scan = ctmm.fit_genes("~ C(celltype)", **genes, **options, genotypes=G)
    by_file = Genotypes(write_bed(tmp_path, table, variants))
    with joblib.parallel_config("loky", n_jobs=2), pytest.warns(ctmm.CTMMWarning):
        again = ctmm.fit_genes("~ C(celltype)", **genes, **options, genotypes=by_file)
    pd.testing.assert_frame_equal(again.table, scan.table)


def test_a_scan_with_a_structure_of_its_own_is_read(df, genes, donors, tmp_path):
    K = pd.DataFrame(family(len(donors), 3), donors, donors)
    own = {"all": np.ones((4, 4)), "own": np.eye(4)}
    path = tmp_path / "scan.parquet"
    options = {"kinship": K, "structure": own, "genetic_structure": own}
    some = {name: part[["g1", "g3"]] for name, part in genes.items() if name != "data"}
    scan = ctmm.fit_genes("~ C(celltype)", data=genes["data"], **some, **options, out=path)
    read = ctmm.read_scan(path, data=genes["data"], **some, kinship=K)
    close(read.gene("g3").vcomp, scan.vcomp.loc["g3"], 1e-9)
    with pytest.raises(ctmm.DataError, match="kinships 'genetic'"):
        ctmm.read_scan(path, data=genes["data"], **some, kinship={"trans": K})


def test_several_kinships_in_a_scan(df, genes, table, donors):
    K = pd.DataFrame(family(len(donors), 3), donors, donors)
    some = {name: part[["g1", "g3"]] for name, part in genes.items() if name != "data"}
    scan = ctmm.fit_genes(
        "~ C(celltype)", data=genes["data"], **some, kinship={"cis": table, "trans": K},
        structure="iid",
    )  # fmt: skip
    assert scan.layout.tests.keys() == {"heritability:cis", "heritability:trans"}
    res = scan.gene("g1")
    row = scan.table.iloc[0]
    for name in ("cis", "trans"):
        test = res.test_heritability(name)
        assert row[f"stat_heritability:{name}"] == pytest.approx(test.statistic, rel=1e-6)
        assert f"p_heritability:{name}_specific_bh" in scan.table
        assert f"p_heritability:{name}[day1]" in scan.table
    assert scan.top(1, by="heritability:trans")["gene"].tolist()[0] in ("g1", "g3")
    with pytest.raises(ctmm.CTMMError, match="kinship"):
        ctmm.fit_genes("~ C(celltype)", data=genes["data"], **some, kinship={"a": K},
                       tests="heritability:b")  # fmt: skip
    with pytest.raises(ctmm.CTMMError, match="there is no kinship"):
        ctmm.fit_genes("~ C(celltype)", data=genes["data"], **some, tests="heritability:b")


# ---------------------------------------------------------------------------------------------
# bad input


def bad_file(edit):
    """Files of genotypes, one of which was changed."""

    def make(folder, table, variants):
        path = write_bed(folder, table, variants)
        edit(path)
        return Genotypes(path).frame()

    return make


def text_of(path, ending, change):
    file = path.with_suffix(ending)
    file.write_text(change(file.read_text()))


BAD_FILES = {
    "no .fam": (lambda p: p.with_suffix(".fam").unlink(), r"no file '.*c.fam', which belongs to"),
    "no .bim": (lambda p: p.with_suffix(".bim").unlink(), r"no file '.*c.bim', which belongs to"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-9]), "are the three of one run, and whole"),
    "donors gone from .fam": (lambda p: text_of(p, ".fam", lambda t: t[: len(t) // 2]),
                              "are the three of one run|has no individual ID"),
    "an empty .fam": (lambda p: text_of(p, ".fam", lambda t: ""), "has no donors"),
    "variants gone from .bim": (lambda p: text_of(p, ".bim", lambda t: t[t.index("\n") + 1 :]),
                                "are the three of one run"),
    "no .bed": (lambda p: p.write_bytes(b"PK" + p.read_bytes()[2:]), "is no PLINK 1 .bed file"),
    "by donor": (lambda p: p.write_bytes(b"l\x1b\x00" + p.read_bytes()[3:]), "but by donor"),
    "one ID twice": (lambda p: text_of(p, ".fam", lambda t: t.replace(" x1 ", " x2 ")),
                     "several donors with the individual ID 'x2'"),
    "one word a line": (lambda p: text_of(p, ".fam", lambda t: "a\n" * t.count("\n")),
                        "donor number 1 has no individual ID"),
    "no positions": (lambda p: text_of(p, ".bim", lambda t: t.replace("\t1000\t", "\tNA\t")),
                     "no position .*rs0"),
    "columns gone": (lambda p: text_of(p, ".bim", lambda t: t.replace("\t1000\tA\tC", "")),
                     "variant number 1 has 3 of 4"),
    "no text": (lambda p: p.with_suffix(".bim").write_bytes(b"\xff\xfe\x00"), "could not be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_says_what_is_wrong(case, table, variants, tmp_path):
    edit, message = BAD_FILES[case]
    with pytest.raises(ctmm.DataError, match=message):
        bad_file(edit)(tmp_path, table, variants)


BAD_TABLES = {
    "nothing": (lambda G, v: ("nowhere.bed",), "there is no file 'nowhere.bed'"),
    "no ending": (lambda G, v: ("nowhere",), "is no file of genotypes"),
    "VCF": (lambda G, v: ("a.vcf.gz",), "plink2 --vcf a.vcf.gz --make-pgen"),
    "a list": (lambda G, v: ([1, 2], v), "genotypes are the name of a file"),
    "no variants": (lambda G, v: (G,), "takes variants="),
    "numbered rows": (lambda G, v: (G.reset_index(drop=True), v), "rows are numbered"),
    "an array without labels": (lambda G, v: (G.to_numpy(), v), "give donors="),
    "labels of some": (lambda G, v: (G.to_numpy(), v, ["a"]), "has 1 labels for"),
    "a donor twice": (lambda G, v: (pd.concat([G, G.iloc[:1]]), v), "several rows for donor "),
    "other variants": (lambda G, v: (G, v.rename(lambda name: name + "_A")), "no row for variants"),
    "no chromosome": (lambda G, v: (G, v.rename(columns={"chromosome": "chrom"})),
                      "no column 'chromosome', did you mean 'chrom'|no column 'chromosome'"),
    "positions in words": (lambda G, v: (G, v.assign(position="p")), "no position"),
    "in megabases": (lambda G, v: (G, v.assign(position=v["position"] / 1e6)),
                     "parts of a base pair"),
    "probabilities": (lambda G, v: (G * 3, v), "no counts of an allele, from 0 to 2"),
    "1e150": (lambda G, v: (G.assign(rs3=1e150), v), "no counts of an allele"),
    "complex": (lambda G, v: (G.assign(rs3=1j), v), "columns 'rs3' of genotypes are not numbers"),
    "a dict": (lambda G, v: (G, v.assign(position=[{}] * len(v))), "no position"),
    "letters": (lambda G, v: (G.assign(rs3="AC"), v), "columns 'rs3' of genotypes are not numbers"),
    "a variant twice": (lambda G, v: (G, pd.concat([v, v.iloc[:1]])), "several variants 'rs0'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_says_what_is_wrong(case, table, variants):
    make, message = BAD_TABLES[case]
    with pytest.raises(ctmm.DataError, match=message):
        Genotypes(*make(table, variants))


BAD_SCANS = {
    "a file": ({"genotypes": "cohort.bed"}, r"takes Genotypes\('cohort.bed'\), got str"),
    "no window": ({"window": None}, "takes a window around every gene"),
    "no positions": ({"positions": None}, "takes a window around every gene"),
    "window in words": ({"window": "500kb"}, "window="),
    "maf": ({"maf": 0.5}, "maf= is a frequency"),
    "maf alone": ({"maf": 0.1, "genotypes": None, "window": None, "positions": None},
                  r"genotypes= takes Genotypes\('cohort.bed'\), got NoneType"),
    "other genes": ({"positions": lambda p: p.rename(lambda g: f"ENSG{g}")},
                    "has none of the genes .*'ENSGg1'"),
    "other chromosomes": ({"positions": lambda p: p.assign(chromosome="7")},
                          "genes on chromosomes '7', and genotypes are of '1', '2'"),
    "another build": ({"positions": lambda p: p.assign(start=10**8, end=10**8)},
                      "of the genome build of genotypes"),
    "one column": ({"positions": lambda p: p[["chromosome", "start"]]}, "no column 'end'"),
    "no columns": ({"positions": lambda p: p[["start", "end"]]}, "no column 'chromosome'"),
    "numbered": ({"positions": lambda p: p.rename_axis("gene").reset_index()},
                 r"rows are numbered: set_index\('gene'\)"),
    "a gene twice": ({"positions": lambda p: pd.concat([p, p.iloc[:1]])},
                     "several rows for genes 'g1'"),
    "text": ({"positions": lambda p: p.assign(start="8,000")}, "'start' of positions= is not num"),
    "no place": ({"positions": lambda p: p.assign(start=np.nan)}, "no place of genes 'g1'"),
    "megabases": ({"positions": lambda p: p.assign(start=1.25, end=1.5)},
                  r"'g1'.* at parts of a base pair \(1.25\)"),
    "backwards": ({"positions": lambda p: p.assign(end=1)}, "end before they start"),
    "the name of its own": ({"kinship": lambda K: {"cis": K}}, "give another name"),
    "donors without": ({"genotypes": lambda G, v: Genotypes(G.iloc[5:], v)},
                       "no row for 5 of 72 donors"),
    "other donors": ({"genotypes": lambda G, v: Genotypes(G.rename(lambda d: f"s{d}"), v)},
                     "none of the donors .* never by position"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SCANS)
def test_a_bad_scan_says_what_is_wrong(case, genes, table, variants, positions, G, donors):
    change, message = BAD_SCANS[case]
    own = {"genotypes": (table, variants), "positions": (positions,)}
    own["kinship"] = (pd.DataFrame(family(len(donors)), donors, donors),)
    change = {
        name: value(*own[name]) if callable(value) else value for name, value in change.items()
    }
    options = {"genotypes": G, "positions": positions, **WINDOW, **change}
    with pytest.raises(ctmm.CTMMError, match=message):
        ctmm.fit_genes("~ C(celltype)", **genes, structure="hom", **options)


def test_family_ids_and_windows_that_are_none(table, variants, G, tmp_path, df):
    pytest.importorskip("bed_reader")
    found = Genotypes(write_bed(tmp_path, table, variants))
    with pytest.raises(ctmm.DataError, match="'fam1' is a family ID there"):
        found.rows_of(["fam1"])
    first = f"fam0_{table.index[0]}"
    with pytest.raises(ctmm.DataError, match="is family and individual ID there"):
        found.rows_of([first])
    with pytest.raises(ctmm.DataError, match="no genotypes of chromosome '9'"):
        G.window(9, 1, 2)
    with pytest.raises(ctmm.DataError, match="ends after it starts"):
        G.window(1, 5, 2)
    with pytest.raises(ctmm.DataError, match="base pairs, got 'a'"):
        G.window(1, "a", 2)
    with pytest.raises(ctmm.DataError, match=r"holds genotypes: Genotypes\('c.bed'\)"):
        ctmm.fit(FORMULA, kinship="c.bed", data=df)
    rare = G.window(1, 10_000, 10_000, maf=0.2)
    with pytest.raises(ctmm.DataError, match="or are rarer than maf"):
        ctmm.fit(FORMULA, kinship=rare, data=df)


@pytest.mark.parametrize("write", [write_bed, write_pgen])
def test_what_reads_is_named_where_it_is_not_installed(
    write, table, variants, tmp_path, monkeypatch
):
    path = write(tmp_path, table, variants)
    real = builtins.__import__

    def without(name, *given, **named):
        if name in ("bed_reader", "pgenlib"):
            raise ImportError(name)
        return real(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ctmm.DataError, match=r"pip install 'ctmm-formula\[genotypes\]'"):
        Genotypes(path).read()
