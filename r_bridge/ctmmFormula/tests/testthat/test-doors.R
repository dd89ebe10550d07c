# Nothing is misread, swallowed or left out in silence: what R users give is used, refused or told.

warned <- function(code) {
  seen <- character()
  value <- withCallingHandlers(code, ctmm_warning = function(w) {
    seen <<- c(seen, conditionMessage(w))
    invokeRestart("muffleWarning")
  })
  list(value = value, said = seen)
}

# 30 donors of 3 cell types with 20 cells each.
many_cells <- function(genes = c("APOE", "CD4", "nu")) {
  set.seed(1)
  d <- data.frame(donor = rep(sprintf("d%02d", 1:30), each = 60), celltype = c("B", "T", "NK"))
  x <- matrix(rexp(length(genes) * nrow(d)), length(genes), dimnames = list(genes, NULL))
  list(x = x, d = d)
}

test_that("an argument that a method has not is refused by every method", {
  need_python()
  fit <- example_fit()
  objects <- list(
    ctmm = fit, summary.ctmm = summary(fit), VarCorr.ctmm = VarCorr(fit), ranef.ctmm = ranef(fit),
    ctmm_test = test_mean(fit), ctmm_jackknife = jackknife(fit, blocks = 6), ctmm_check = ctmm_check(),
    ctmm_bootstrap = bootstrap(fit, 2, seed = 1),
    ctmm_pseudobulk = ctmm_pseudobulk(many_cells()$x, cells = many_cells()$d, min_cells_donor = 50),
    ctmm_genes = ctmm_genes(~ celltype, data = pseudobulk, expr = rbind(a = pseudobulk$expr),
                            nu = rbind(a = pseudobulk$nu), method = "reml"))
  methods <- getNamespaceInfo("ctmmFormula", "S3methods")
  pdf(NULL)
  on.exit(dev.off())
  tried <- 0
  for (k in seq_len(nrow(methods))) {
    name <- methods[k, 3]
    method <- get(name, asNamespace("ctmmFormula"))
    # emmeans hands all of its own arguments to these
    if (!"..." %in% names(formals(method)) || grepl("emm_basis|recover_data", name)) next
    args <- c(list(objects[[methods[k, 2]]]), if (methods[k, 1] == "add1") "PC2", list(no_such = 1))
    text <- switch(methods[k, 1], update = "unused argument", anova = "compares fits",
                   "no argument 'no_such' here")
    found <- tryCatch({ do.call(method, args); "nothing" }, error = conditionMessage)
    expect_match(found, text, info = name)
    tried <- tried + 1
  }
  expect_gt(tried, 50)
  expect_error(confint(fit, quiet = TRUE), "confint\\(\\) has no argument 'quiet' here; it takes parm")
  expect_error(predict(fit, type = "response"), "'type'")
  expect_error(summary(fit, ddf = "Kenward-Roger"), "'ddf'")
  expect_error(VarCorr(fit, sigma = 2), "the noise is known")
  expect_error(extractAIC(update(fit, method = "ml"), scale = 2), "scale = must be 0")
  expect_error(confint(fit, "hom", 0.9, NULL, "wald", 5), "no argument '5'")
  expect_error(ctmm(expr ~ celltype, data = pseudobulk, weights = nu), "unused argument")
  expect_error(ctmm_pseudobulk(many_cells()$x, cells = many_cells()$d, colour = 2), "unused argument")
})

test_that("columns of expr are those of the rows of data, or refused", {
  need_python()
  p <- pseudobulk
  rownames(p) <- paste0("s", seq_len(nrow(p)))
  X <- rbind(a = p$expr, b = p$expr)
  N <- rbind(a = p$nu, b = p$nu)
  colnames(X) <- colnames(N) <- rownames(p)
  back <- rev(seq_len(nrow(p)))
  scan <- function(...) ctmm_genes(~ celltype, ..., method = "reml")
  expected <- scan(data = p, expr = X, nu = N)$hom
  refused <- function(text, ...) expect_error(scan(...), text, class = "ctmm_DataError", fixed = TRUE)
  refused("columns of expr have another order than rownames(data): expr[, rownames(data)]", data = p,
          expr = X[, back], nu = N[, back])
  refused("columns of nu have another order", data = p, expr = X, nu = N[, back])
  other <- X
  colnames(other) <- paste0("t", seq_len(ncol(X)))
  refused("columns of expr and rownames(data) have different names ('t1', 't2'", data = p, expr = other,
          nu = N)
  # a table without row names may name its rows in a column
  named <- cbind(pseudobulk, sample = rownames(p))
  refused("another order than data$sample: expr[, data$sample]", data = named, expr = X[, back],
          nu = N[, back])
  expect_equal(scan(data = named, expr = X, nu = N)$hom, expected)
  expect_equal(scan(data = pseudobulk, expr = X, nu = N)$hom, expected)
  expect_equal(scan(data = p, expr = unname(X), nu = unname(N))$hom, expected)
  # cells likewise
  all <- many_cells()
  colnames(all$x) <- paste0("c", seq_len(ncol(all$x)))
  all$d$barcode <- rev(colnames(all$x))
  expect_error(ctmm_pseudobulk(all$x, cells = all$d), "another order than cells$barcode", fixed = TRUE)
  fit <- example_fit()
  turned <- rev(setNames(pseudobulk$expr, rownames(pseudobulk)))
  if (requireNamespace("lme4", quietly = TRUE))
    expect_error(lme4::refit(fit, turned), "names of newresp", class = "ctmm_DataError")
})

test_that("settings, subsets and lists that would be recycled or read otherwise are refused", {
  need_python()
  fit <- example_fit()
  expect_error(jackknife(fit, one_step = 1), "one_step = must be TRUE or FALSE", class = "ctmm_CTMMError")
  expect_error(bootstrap(fit, 2, progress = "yes"), "progress = must be", class = "ctmm_CTMMError")
  refused <- function(text, ...) expect_error(ctmm(expr ~ celltype, ...), text, class = "ctmm_DataError")
  refused("subset = has 2 values for 275 rows", data = pseudobulk, subset = c(TRUE, FALSE))
  expect_error(ctmm(expr ~ celltype, data = pseudobulk, subset = nobody > 1),
               "subset = nobody > 1: object 'nobody' not found", class = "ctmm_DataError")
  short <- c(as.list(pseudobulk[c("expr", "celltype", "donor")]), list(nu = c(0.1, 0.2)))
  refused("different lengths: 'expr' 275, .* 'nu' 2", data = short)
  odd <- as.list(setNames(pseudobulk, sub("PC1", "body mass", names(pseudobulk))))
  expect_identical(names(coef(ctmm(expr ~ `body mass`, data = odd, structure = "hom")))[2], "`body mass`")
  expect_error(augment(fit, pseudobulk[275:1, ]), "not the table of the fit", class = "ctmm_DataError")
  expect_error(augment(fit, transform(pseudobulk, sex = rev(sex))), "not the table of the fit")
  expect_identical(augment(fit, transform(pseudobulk, PC6 = 0))$PC6, rep(0, 275))
  all <- many_cells()
  expect_error(ctmm_pseudobulk(all$x, cells = all$d, min_cells = "9"), "min_cells = must be one number",
               class = "ctmm_CTMMError")
})

test_that("matrices of a structure are labelled by the cell types, or not at all", {
  need_python()
  wrong <- matrix(1, 4, 4, dimnames = rep(list(c("B", "NK", "T", "day3")), 2))
  expect_error(ctmm(expr ~ celltype, data = pseudobulk, structure = list(wrong)), "labelled by the cell types",
               class = "ctmm_CTMMError")
})

test_that("a gene may have the name of a column of the donors", {
  need_python()
  all <- many_cells()
  all$d$APOE <- rep(rnorm(30, 1), each = 60)
  all$d$batch <- rep(rep(c("x", "y", "z"), 10), each = 60)
  pb <- ctmm_pseudobulk(all$x, cells = all$d, min_cells_donor = 50)
  fit <- function(formula, ...) suppressWarnings(ctmm(formula, data = pb, structure = "hom", ...))
  for (gene in rownames(all$x)) {
    m <- fit(reformulate("celltype", gene))
    expect_equal(unname(m$y), unname(pb$expr[gene, ]), label = gene)
    expect_equal(m$nu, unname(pb$nu[gene, ]), label = gene)
  }
  expect_error(fit(APOE ~ celltype + APOE), "'APOE' is the gene and also a column", class = "ctmm_DataError")
  expect_error(fit(APOE ~ celltype, random = ~ APOE), "'APOE' is the gene and also a column")
  expect_error(fit(APOE ~ celltype, n_cells = "APOE"), "'APOE' is the gene and also a column")
  expect_equal(fit(CD4 ~ celltype + APOE)$X[, "APOE"], pb$obs$APOE, ignore_attr = TRUE)
  expect_warning(long <- as.data.frame(pb, gene = "APOE"), "is also a column of the pairs, which stays",
                 class = "ctmm_warning")
  expect_equal(long$expr, unname(pb$expr["APOE", ]))
  expect_equal(long$APOE, pb$obs$APOE)
  pb$obs$expr <- 1
  expect_error(as.data.frame(pb, gene = "CD4"), "have a column 'expr' of their own", class = "ctmm_DataError")
  all$d$n_cells <- 3
  notes <- ctmm_pseudobulk(all$x, cells = all$d, min_cells_donor = 50)$notes
  expect_match(notes, "'n_cells' of the cells is left out: its name is", all = FALSE)
})

test_that("update() takes the data of the fit, from wherever it is called", {
  need_python()
  d <- pseudobulk
  fits <- lapply(split(d, d$sex), function(d) ctmm(expr ~ celltype, data = d, method = "reml"))
  again <- update(fits[[1]], method = "ml")
  expect_identical(nobs(again), nobs(fits[[1]]))
  expect_identical(nobs(update(again, structure = "hom")), nobs(fits[[1]]))
  expect_identical(again$call$data, quote(d))
  # settings that the maker named are those it gave
  make <- function(table, which, how) ctmm(expr ~ celltype, data = table, structure = which, method = how)
  which <- "free"
  expect_identical(update(make(d, "hom", "ml"), . ~ . + sex)$structure, "hom")
  # drop1() and step() evaluate the call elsewhere
  made <- local({
    d <- subset(pseudobulk, sex == "F")
    ctmm(expr ~ celltype + PC1 + PC2, data = d, structure = "hom", method = "ml")
  })
  expect_equal(drop1(made)["PC2", "AIC"], AIC(update(made, . ~ . - PC2)), tolerance = 1e-6)
  expect_identical(nobs(step(made, trace = 0)), nobs(made))
  # one call for all: its data are gone
  each <- lapply(split(d, d$sex), ctmm, formula = expr ~ celltype, method = "reml")
  expect_error(update(each[[1]], method = "ml"), "not found any more.*update\\(fit, data = ",
               class = "ctmm_DataError")
  expect_identical(nobs(update(each[[1]], data = split(d, d$sex)[[1]])), nobs(each[[1]]))
  # a table that was changed since is taken, and told
  changed <- d
  fit <- ctmm(expr ~ celltype, data = changed, method = "reml")
  changed$expr <- 2 * changed$expr
  expect_warning(twice <- update(fit), "'changed' is not what it was", class = "ctmm_CTMMWarning")
  expect_equal(unname(twice$y), 2 * unname(fit$y))
})

test_that("update() takes random effects in and out, wherever they were given", {
  need_python()
  d <- transform(pseudobulk, site = factor(as.integer(batch) %% 5))
  fit <- function(formula, random = NULL)
    suppressWarnings(ctmm(formula, random = random, data = d, structure = "hom", method = "reml"))
  of <- function(fit) suppressWarnings(fit)$random_names
  beside <- fit(expr ~ celltype, ~ batch)
  expect_identical(of(update(beside, . ~ . - (1 | batch))), character())
  expect_identical(of(update(beside, . ~ . + sex)), "batch")
  expect_identical(of(update(beside, . ~ . + (1 | site))), c("site", "batch"))
  both <- fit(expr ~ celltype, ~ batch + site)
  less <- suppressWarnings(update(both, . ~ . - (1 | batch)))
  expect_identical(less$random_names, "site")
  expect_identical(of(update(less, . ~ . + sex)), "site")
  inside <- fit(expr ~ celltype + (1 | site / batch))
  expect_identical(of(update(inside, . ~ . - (1 | site:batch))), "site")
  expect_identical(of(update(inside, . ~ . - (1 | site / batch) + PC1)), character())
  expect_identical(of(update(inside, . ~ celltype)), character())
  expect_error(update(beside, . ~ . - (1 | site)), "no random effect '\\(1 \\| site\\)' to take out",
               class = "ctmm_FormulaError")
  expect_error(update(beside, . ~ . + (1 | batch)), "given twice", class = "ctmm_FormulaError")
  expect_identical(deparse1(formula(update(beside, ~ . - celltype + sex))), "expr ~ sex + (1 | batch)")
})

test_that("labels may hold brackets, colons and quotes", {
  need_python()
  d <- pseudobulk
  levels(d$celltype) <- c("B", "NK [x]", "T [CD8+]", "T) [CD4+]")
  names(d)[names(d) == "batch"] <- "batch[1]"
  with_own <- function(d, batch) suppressWarnings(ctmm(
    expr ~ celltype, random = setNames(list("celltype"), batch), data = d, method = "reml"))
  fit <- with_own(d, "batch[1]")
  expect_false(anyNA(predict(fit)))
  expect_equal(predict(fit), fitted(fit), tolerance = 1e-10)
  expect_equal(predict(fit, d), fitted(fit), tolerance = 1e-10)
  plain <- with_own(pseudobulk, "batch")
  expect_equal(unname(fit$vcomp), unname(plain$vcomp), tolerance = 1e-8)
  expect_equal(simulate(fit, 2, seed = 1), simulate(plain, 2, seed = 1), tolerance = 1e-6)
  expect_equal(predict(fit, re.form = ~ (1 | `batch[1]`)), predict(plain, re.form = ~ (1 | batch)), tolerance = 1e-8)
})

test_that("variables beside the data lose the rows that the data lose", {
  need_python()
  set.seed(2)
  z <- rnorm(nrow(pseudobulk))
  beside <- data.frame(w = rev(z))
  women <- pseudobulk$sex == "F"
  d <- pseudobulk
  d$expr[5] <- NA
  inside <- transform(d, z = z, w = beside$w)
  same <- function(a, b) expect_equal(coef(a), coef(b), ignore_attr = TRUE)
  fit <- ctmm(expr ~ celltype + z, data = d)
  same(fit, ctmm(expr ~ celltype + z, data = inside))
  expect_equal(model.matrix(fit), model.matrix(lm(expr ~ celltype + z, d)), ignore_attr = TRUE)
  same(ctmm(expr ~ celltype + log(abs(z)) + beside$w, data = d, subset = women),
       ctmm(expr ~ celltype + log(abs(z)) + w, data = inside, subset = sex == "F"))
  same(ctmm(expr ~ celltype, data = d, offset = z / 9), ctmm(expr ~ celltype + offset(z / 9), data = inside))
  same(update(fit, subset = women), update(fit, data = inside[women, ]))
  dot <- pseudobulk[c("donor", "celltype", "sex", "expr", "nu")]
  expect_identical(names(coef(ctmm(expr ~ ., data = dot, subset = women | z > -9, method = "reml"))),
                   c("(Intercept)", paste0("celltypeday", 1:3), "sexM"))
  expect_error(predict(fit, d[1:9, ], re.form = NA), "newdata has no column 'z'", class = "ctmm_DataError")
  # as many rows are no reason to take the values of others
  expect_error(predict(fit, rev(d), re.form = NA), "newdata has no column 'z'", class = "ctmm_DataError")
  expect_equal(predict(fit, inside[1:9, ], re.form = NA)[-5], predict(fit, re.form = NA)[1:8])
  Y <- rbind(a = d$expr, b = d$expr)
  N <- rbind(a = d$nu, b = d$nu)
  scans <- list(
    ctmm_genes(~ celltype + z, data = d, expr = Y, nu = N, subset = women, method = "reml"),
    ctmm_genes(~ celltype + z, data = inside, expr = Y, nu = N, subset = sex == "F", method = "reml"))
  expect_equal(scans[[1]]$hom, scans[[2]]$hom)
})

test_that("matrices and tables of Bioconductor are read", {
  need_python()
  all <- many_cells(c("a", "b"))
  pb <- ctmm_pseudobulk(all$x, cells = all$d, min_cells_donor = 50)
  need("S4Vectors")
  need("DelayedArray")
  need("SummarizedExperiment")
  table <- S4Vectors::DataFrame(donor = S4Vectors::Rle(all$d$donor), celltype = factor(all$d$celltype))
  delayed <- DelayedArray::DelayedArray(all$x) * 2 / 2
  found <- ctmm_pseudobulk(delayed, cells = table, min_cells_donor = 50)
  expect_equal(found, pb, tolerance = 1e-9)
  # as read in pieces
  expect_equal(ctmmFormula:::in_memory(delayed, most = 500), as(all$x, "CsparseMatrix"))
  suppressWarnings({
    expected <- ctmm(a ~ celltype, data = pb)
    scan <- ctmm_genes(~ celltype, data = pb, tests = character())
    rows <- as.data.frame(pb, gene = "a")
    same <- function(found) expect_equal(found$vcomp, expected$vcomp)
    same(ctmm(expr ~ celltype, data = S4Vectors::DataFrame(rows)))
    values <- list(expr = pb$expr, nu = DelayedArray::DelayedArray(pb$nu), nu2 = pb$nu2)
    se <- SummarizedExperiment::SummarizedExperiment(values, colData = S4Vectors::DataFrame(pb$obs))
    same(ctmm(a ~ celltype, data = se))
    same(update(ctmm(a ~ celltype, data = se), formula = a ~ celltype))
    for (data in list(se, S4Vectors::DataFrame(pb$obs))) {
      own <- if (methods::is(data, "DataFrame")) values
      found <- ctmm_genes(~ celltype, data = data, expr = own$expr, nu = own$nu, nu2 = own$nu2,
                          tests = character())
      expect_equal(found$hom, scan$hom)
    }
  })
  expect_error(ctmm(a ~ celltype, data = SummarizedExperiment::SummarizedExperiment(list(logcounts = all$x))),
               "needs the assays 'expr'.*it has 'logcounts'", class = "ctmm_DataError")
  expect_error(ctmm_pseudobulk(SummarizedExperiment::SummarizedExperiment(list(logcounts = all$x)), sem = 1),
               "sem = is for aggregates", class = "ctmm_CTMMError")
})

test_that("matrices in HDF5 files are read", {
  need_python()
  need("HDF5Array")
  all <- many_cells(c("a", "b"))
  file <- tempfile(fileext = ".h5")
  on.exit(unlink(file))
  expected <- ctmm_pseudobulk(all$x, cells = all$d, min_cells_donor = 50)
  cells <- HDF5Array::writeHDF5Array(as.matrix(all$x), file, "cells", with.dimnames = TRUE)
  expect_s4_class(cells, "HDF5Matrix")
  expect_equal(ctmm_pseudobulk(cells, cells = all$d, min_cells_donor = 50), expected, tolerance = 1e-9)
  se <- SummarizedExperiment::SummarizedExperiment(list(logcounts = cells), colData = all$d)
  expect_equal(ctmm_pseudobulk(se, min_cells_donor = 50)$expr, expected$expr, tolerance = 1e-9)
  values <- lapply(list(expr = expected$expr, nu = expected$nu), HDF5Array::writeHDF5Array)
  suppressWarnings({
    scan <- ctmm_genes(~ celltype, data = expected$obs, expr = expected$expr, nu = expected$nu,
                       tests = character())
    found <- ctmm_genes(~ celltype, data = expected$obs, expr = values$expr, nu = values$nu,
                        tests = character())
  })
  expect_equal(found$hom, scan$hom)
})

test_that("a pseudobulk is cut by genes and pairs", {
  all <- many_cells()
  pb <- ctmm_pseudobulk(all$x, cells = all$d, min_cells_donor = 50)
  one <- pb["CD4", ]
  expect_s3_class(one, "ctmm_pseudobulk")
  expect_identical(dim(one), c(1L, 90L))
  expect_equal(as.data.frame(one, gene = "CD4"), as.data.frame(pb, gene = "CD4"))
  few <- pb[, pb$obs$celltype != "NK"]
  expect_identical(few$obs$donor, pb$obs$donor[pb$obs$celltype != "NK"])
  expect_identical(dim(few$nu2), c(3L, 60L))
  expect_identical(rownames(pb[-1, 1:2]$genes), c("CD4", "nu"))
  expect_error(pb["nobody", ], "no such gene or pair", class = "ctmm_DataError")
  expect_error(pb["CD4"], "x\\[genes, \\] or x\\[, pairs\\]", class = "ctmm_DataError")
})

test_that("a formula without means of the cell types is told, once, and stays with the scan", {
  need_python()
  once <- warned(ctmm(expr ~ sex, data = pseudobulk))
  expect_identical(sum(grepl("add celltype to the formula", once$said)), 1L)
  g <- t(as.matrix(simulate(example_fit(), 120, seed = 1)))
  rownames(g) <- paste0("g", 1:120)
  nu <- matrix(pseudobulk$nu, 120, nrow(pseudobulk), byrow = TRUE)
  # in pieces, too
  scan <- NULL
  capture.output(once <- warned(scan <- ctmm_genes(
    ~ sex, data = pseudobulk, expr = g, nu = nu, tests = character(), progress = TRUE)))
  expect_identical(sum(grepl("add celltype to the formula", once$said)), 1L)
  expect_output(print(scan), "Note: no cell type in the fixed part")
  expect_length(warned(ctmm(expr ~ sex, data = pseudobulk, structure = "hom"))$said, 0L)
  odd <- setNames(pseudobulk, sub("celltype", "cell type", names(pseudobulk)))
  once <- warned(ctmm(expr ~ sex, data = odd, celltype = "cell type"))
  expect_match(once$said, "add `cell type` to the formula", all = FALSE, fixed = TRUE)
})

test_that("donors that were sampled twice are told, with the way in R", {
  all <- many_cells()
  all$d$time <- rep(c("pre", "post"), each = 30)
  all$d$age <- rep(20 + 1:30, each = 60)
  all$d$phase <- sample(c("G1", "S"), nrow(all$d), TRUE)
  all$d$quality <- runif(nrow(all$d))
  pool <- function(...) warned(ctmm_pseudobulk(all$x, cells = all$d, min_cells_donor = 10, min_cells = 3, ...))
  pooled <- pool()
  expect_length(pooled$said, 1L)
  expect_match(pooled$said, "differ in column 'time' ('post', 'pre') and are pooled", fixed = TRUE)
  expect_match(pooled$said, paste0("cells$person <- cells$donor, cells$sample <- paste(cells$donor, ",
                                   "cells$time)"), fixed = TRUE)
  expect_match(pooled$value$notes, "donor = \"person\", within = ~ ", all = FALSE)
  # as it says
  all$d$person <- all$d$donor
  all$d$sample <- paste(all$d$donor, all$d$time)
  apart <- pool(donor = "sample")
  expect_length(apart$said, 0L)
  expect_identical(nlevels(apart$value$obs$donor), 60L)
  expect_true(all(c("person", "time") %in% names(apart$value$obs)))
  # finer cell types are no conditions
  all$d$time <- paste0(all$d$celltype, rep(1:2, 900))
  expect_length(pool()$said, 0L)

  need_python()
  twice <- rbind(cbind(pseudobulk, time = "pre"), cbind(pseudobulk, time = "post"))
  expect_error(ctmm(expr ~ celltype + time, data = twice), "within.*time.*ctmm_pseudobulk\\(\\)",
               class = "ctmm_DataError")
})

test_that("what is no logarithm is told, and totals of chosen genes", {
  all <- many_cells(paste0("g", 1:5))
  pool <- function(x, ...) warned(ctmm_pseudobulk(x, cells = all$d, min_cells_donor = 50, ...))
  scaled <- pool(100 * all$x)
  expect_match(scaled$said, "too large for a logarithm of expression: scaled counts")
  expect_match(scaled$value$notes, "too large for a logarithm", all = FALSE)
  expect_true(all(is.na(scaled$value$genes$level_ratio)))
  expect_length(pool(all$x)$said, 0L)
  counts <- round(10 * all$x)
  expect_match(pool(counts)$said, "raw counts?", fixed = TRUE)
  view <- pool(counts, normalize = "log_cp10k")
  expect_length(view$said, 1L)
  expect_match(view$said, "scaled by their counts in 5 genes.*pb\\[genes, \\] chooses after that")
  expect_length(pool(rbind(counts, rest = 1000), normalize = "log_cp10k")$said, 0L)
  expect_error(pool(all$x, covariates = "nobody"), "no column of the cells", class = "ctmm_DataError")
  all$d$depth <- seq_len(nrow(all$d))
  expect_error(pool(all$x, covariates = "depth"), "varies within pairs", class = "ctmm_DataError")
})

test_that("a Python that this reticulate cannot start is named with those that work", {
  fake <- function(version) {
    file <- tempfile()
    writeLines(c("#!/bin/sh", sprintf("echo Python %s", version)), file)
    Sys.chmod(file, "755")
    file
  }
  skip_on_os("windows")
  unfit <- ctmmFormula:::unfit
  expect_match(unfit(fake("3.13.0"), numeric_version("1.28")),
               "is Python 3.13, which reticulate 1.28 cannot start .*imp, .*take Python 3.11, or reticulate 1.34")
  expect_match(unfit(fake("3.9.2"), numeric_version("1.40")), "needs 3.11 or later")
  expect_length(unfit(fake("3.12.1"), numeric_version("1.34")), 0L)
  expect_length(unfit(fake("3.11.2"), numeric_version("1.28")), 0L)
  expect_length(unfit("/nonexistent/python", numeric_version("1.28")), 0L)
  out <- paste(run_r(c("library(ctmmFormula)", "print(ctmm_check())"),
                     paste0("RETICULATE_PYTHON=", fake("2.7.18")))$out, collapse = "\n")
  expect_match(out, "is Python 2.7: ctmm_formula needs 3.11 or later")
})
