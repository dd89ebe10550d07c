# Many genes in one call, and pseudobulk from cells.

# Genes drawn from the example's fit, with noise variances that differ between genes.
genes <- function(count = 6) {
  Y <- t(as.matrix(simulate(example_fit(), count, seed = 1)))
  rownames(Y) <- paste0("g", seq_len(count))
  nu <- outer(seq(0.8, 1.2, length.out = count), pseudobulk$nu)
  list(Y = Y, nu = `dimnames<-`(nu, dimnames(Y)))
}

scan <- function(g, ..., method = "reml") {
  ctmm_genes(~ celltype + sex + PC1, data = pseudobulk, expr = g$Y, nu = g$nu, random = ~ batch, ..., method = method)
}

one <- function(g, gene, ..., method = "reml") {
  d <- pseudobulk
  d$expr <- g$Y[gene, ]
  d$nu <- g$nu[gene, ]
  ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = d, ..., method = method)
}

EXACT <- 1e-9  # relative: the same optimiser from the same start

test_that("every gene has the numbers of a fit of its own", {
  need_python()
  g <- genes()
  g$Y["g3", 5] <- NA
  g$nu["g4", 1:2] <- NA
  found <- scan(g, tests = c("score", "jackknife", "mean"), models = list("hom"))
  expect_s3_class(found, c("ctmm_genes", "data.frame"))
  expect_identical(found$gene, rownames(g$Y))
  for (k in c(1, 3, 4)) {
    fit <- suppressWarnings(one(g, k))
    row <- found[k, ]
    expect_equal(unlist(as.data.frame(row)[names(fit$vcomp)]), fit$vcomp, tolerance = EXACT)
    expect_equal(row$llf, as.numeric(logLik(fit)), tolerance = EXACT)
    expect_equal(unlist(row[paste0("b[", names(coef(fit)), "]")]), coef(fit), ignore_attr = TRUE,
                 tolerance = EXACT)
    expect_equal(unlist(row[paste0("mean[", fit$celltypes, "]")]), celltype_means(fit)$estimate,
                 ignore_attr = TRUE, tolerance = EXACT)
    expect_equal(row$p_score, test_variance(fit, "score")$p.value, tolerance = 1e-6)
    expect_equal(row$p_jackknife, test_variance(fit, "jackknife")$p.value, tolerance = 1e-6)
    expect_equal(row$p_mean, test_mean(fit)$p.value, tolerance = 1e-6)
    expect_equal(row[["p_lrt[hom:free]"]], test_variance(fit, "lrt")$p.value, tolerance = 1e-6)
    expect_identical(row$n_obs, nobs(fit))
  }
  expect_equal(found$p_score_bh, p.adjust(found$p_score, "BH"))
  expect_output(pieces <- scan(g, tests = c("score", "jackknife", "mean"), models = list("hom"),
                               progress = TRUE), "100%")
  expect_equal(pieces, found)
})

test_that("squares of the noise travel with it, and zeros of the noise stay", {
  need_python()
  g <- genes(3)
  g$nu[2, c(4, 9)] <- 0
  nu2 <- g$nu^2 * seq(0.3, 1.6, length.out = ncol(g$nu))[col(g$nu)]
  nu2[3, 2] <- NA
  found <- scan(g, nu2 = nu2, tests = "score", method = "robust")
  plain <- scan(g, tests = "score", method = "robust")
  for (k in 1:3) {
    d <- pseudobulk
    d$expr <- g$Y[k, ]
    d$nu <- g$nu[k, ]
    d$nu2 <- nu2[k, ]
    fit <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = d, method = "robust")
    expect_equal(found$p_score[k], test_variance(fit, "score")$p.value, tolerance = 1e-6)
    expect_equal(found$stat_score[k], test_variance(fit, "score")$statistic, ignore_attr = TRUE,
                 tolerance = 1e-6)
    expect_gt(abs(found$stat_score[k] - plain$stat_score[k]), 1e-3)
    names(d)[names(d) == "nu2"] <- "square"
    again <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = d, method = "robust",
                  nu2 = "square")
    expect_equal(test_variance(again, "score")$p.value, found$p_score[k], tolerance = 1e-6)
  }
  expect_equal(found$zero_noise, c(0, 2 / ncol(g$nu), 0))
  expect_null(unseen_note(found$zero_noise))
  expect_equal(found$mean, rowMeans(g$Y), ignore_attr = TRUE)
  expect_error(scan(g, nu2 = nu2[, -1]), "nu2 3 x 274", class = "ctmm_DataError")
  reml <- suppressWarnings(one(g, 2))
  expect_match(reml$notes, "2 rows have noise variance 0", all = FALSE)
  g$nu[2, seq_len(0.6 * ncol(g$nu))] <- 0
  expect_output(print(scan(g, method = "robust", tests = "score")),
                "1 gene is the same in all cells of most\\s+pairs \\(zero_noise > 0.5\\)")
})

test_that("robust fits of genes are those of single fits", {
  need_python()
  g <- genes(2)
  found <- scan(g, method = "robust", tests = "mean")
  fit <- one(g, 2, method = "robust")
  expect_equal(found$p_mean[2], test_mean(fit)$p.value, tolerance = 1e-6)
  expect_equal(found[["se[hom]"]][2], summary(fit)$varcomp["hom", "Std. Error"], tolerance = 1e-6)
  expect_false(any(grepl("jackknife", names(found))))
  expect_output(print(found), "by robust moments")
})

test_that("genes that cannot be fitted are rows with a reason, and one warning", {
  need_python()
  g <- genes()
  g$Y[2, ] <- 1
  g$nu[3, 4] <- 0
  g$nu[4, 7] <- -1
  g$Y[5, 9] <- Inf
  g$Y[6, -(1:20)] <- NA
  expect_warning(found <- scan(g), "of 6 genes, 4 failed", class = "ctmm_CTMMWarning")
  expect_identical(found$status, c("ok", "failed", "ok", "failed", "failed", "failed"))
  expect_match(found$reason[2], "expression is constant")
  expect_equal(found$zero_noise[3], 1 / ncol(g$nu))
  expect_match(found$reason[4], "noise variance is not positive and finite in '7'")
  expect_match(found$reason[5], "expression is not finite in '9'")
  expect_true(all(is.na(found$p_score[found$status == "failed"])))
  expect_equal(found$p_score_bonferroni, p.adjust(found$p_score, "bonferroni"))
  expect_identical(top_genes(found, 5)$gene, found$gene[order(found$p_score)][1:2])
  expect_identical(nrow(top_genes(found, 1, "hom")), 1L)
  expect_error(top_genes(found, by = "wald"), "no column of numbers 'wald'")
  expect_output(print(found), "4 failed, 2 ok")
  pdf(NULL)
  on.exit(dev.off())
  expect_invisible(plot(found))
  expect_invisible(plot(found, "variance"))
})

test_that("what fits no gene is an error before any is fitted", {
  need_python()
  g <- genes(2)
  refused <- function(text, ..., class = "ctmm_DataError")
    expect_error(ctmm_genes(...), text, class = class)
  refused("without response", expr ~ celltype, pseudobulk, g$Y, g$nu, class = "ctmm_FormulaError")
  refused("expr = and nu = are missing", ~ celltype, pseudobulk)
  refused("data has 275 rows, expr is 275 x 2", ~ celltype, pseudobulk, t(g$Y), t(g$nu))
  refused("no gene 'nobody'", ~ celltype, pseudobulk, g$Y, g$nu, genes = "nobody")
  refused("unknown test", ~ celltype, pseudobulk, g$Y, g$nu, tests = "luck", class = "ctmm_CTMMError")
  refused("of different genes", ~ celltype, pseudobulk, g$Y, g$nu[2:1, ])
  g$Y[] <- NA
  refused("no gene has both", ~ celltype, pseudobulk, g$Y, g$nu)
})

test_that("one-step jackknives say how far they are from exact ones", {
  need_python()
  g <- genes(2)
  found <- scan(g, tests = "jackknife", one_step = TRUE)
  fit <- suppressWarnings(one(g, 2))
  jack <- jackknife(fit, one_step = TRUE)
  expect_equal(found$error_jackknife[2], jack$error, tolerance = 1e-6)
  expect_gt(jack$error, 0)
  expect_equal(found$p_jackknife[2], test_variance(fit, jack)$p.value, tolerance = 1e-6)
  expect_false("error_jackknife" %in% names(scan(g, tests = "jackknife")))
  own <- lapply(levels(pseudobulk$celltype), function(type) diag(4) * (levels(pseudobulk$celltype) == type))
  expect_error(scan(g, structure = own, models = list(own[1:2])), "two structures called",
               class = "ctmm_CTMMError")
})

test_that("missing covariates and a subset leave samples out", {
  need_python()
  g <- genes(2)
  d <- pseudobulk
  d$PC1[3] <- NA
  found <- ctmm_genes(~ celltype + sex + PC1, data = d, expr = g$Y, nu = g$nu, random = ~ batch,
                      subset = donor != "donor01", method = "reml")
  d <- transform(pseudobulk, expr = g$Y[2, ], nu = g$nu[2, ])[-3, ]
  fit <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = d, subset = donor != "donor01", method = "reml")
  expect_equal(found$llf[2], as.numeric(logLik(fit)), tolerance = EXACT)
  expect_identical(found$n_obs[2], nobs(fit))
})

test_that("overall pseudobulk of many genes", {
  need_python()
  Y <- t(as.matrix(simulate(overall_fit(), 2, seed = 1)))
  nu <- rbind(overall_pseudobulk$nu, overall_pseudobulk$nu)
  shares <- paste0("prop_day", 0:3)
  found <- suppressWarnings(ctmm_genes(~ sex + PC1, data = overall_pseudobulk, expr = Y, nu = nu,
                                       structure = "hom", proportions = shares, tests = character(), method = "reml"))
  d <- transform(overall_pseudobulk, expr = Y[2, ])
  fit <- ctmm(expr ~ sex + PC1, data = d, structure = "hom", proportions = shares, method = "reml")
  expect_equal(found$hom[2], fit$vcomp[["hom"]], tolerance = EXACT)
  expect_equal(unlist(found[2, paste0("mean[day", 0:3, "]")]), celltype_means(fit)$estimate,
               ignore_attr = TRUE, tolerance = EXACT)
})

# ---- cells

# 12 donors, 3 cell types; one pair has 4 cells, one donor 9, and two cells have no label.
cells <- function() {
  set.seed(3)
  size <- matrix(15 + (1:36) %% 7, 12)
  size[2, 3] <- 4
  size[12, ] <- 3
  d <- data.frame(donor = rep(rep(sprintf("d%02d", 1:12), 3), size),
                  celltype = rep(rep(c("B", "NK", "T"), each = 12), size))
  d$sex <- c("F", "M")[as.integer(substring(d$donor, 2)) %% 2 + 1]
  d$day <- paste(d$donor, d$celltype)
  d$depth <- seq_len(nrow(d))
  d <- d[sample(nrow(d)), ]
  d$celltype[c(5, 9)] <- c(NA, "")
  rownames(d) <- paste0("cell", seq_len(nrow(d)))
  x <- matrix(rexp(8 * nrow(d)) * (runif(8 * nrow(d)) < 0.5), 8,
              dimnames = list(paste0("g", 1:8), rownames(d)))
  x[8, ] <- x[8, ] + 1e6  # what E[x^2] - E[x]^2 cannot bear
  list(x = x, d = d)
}

# Some genes are huge, and few are there: that is told, see test-doors.R.
pool <- function(...) suppressWarnings(ctmm_pseudobulk(...), classes = "ctmm_warning")

test_that("means and noise variances are those of the cells, dense and sparse", {
  all <- cells()
  pb <- pool(all$x, cells = all$d, min_cells_donor = 20)
  expect_identical(dim(pb), c(8L, 33L))
  expect_identical(pb$obs$n_cells[pb$obs$donor == "d02" & pb$obs$celltype == "T"], 4L)
  for (pair in c("d01|B", "d11|T")) {
    at <- which(paste(all$d$donor, all$d$celltype, sep = "|") == pair)
    expect_equal(pb$expr[, pair], rowMeans(all$x[, at]), tolerance = 1e-12)
    expect_equal(pb$nu[, pair], apply(all$x[, at], 1, var) / length(at), tolerance = 1e-9)
    # squares of differences of two pairs of cells without a cell in common
    n <- length(at)
    two <- t(utils::combn(n, 2))
    apart <- outer(seq_len(nrow(two)), seq_len(nrow(two)), Vectorize(function(a, b)
      !any(two[a, ] %in% two[b, ])))
    half <- (all$x[2, at][two[, 1]] - all$x[2, at][two[, 2]])^2 / 2
    expect_equal(pb$nu2[2, pair], mean(outer(half, half)[apart]) / n^2, ignore_attr = TRUE,
                 tolerance = 1e-9)
  }
  expect_true(all(is.na(pb$nu2[, "d02|T"])))
  expect_true(all(is.na(pb$expr[, "d02|T"])) && all(is.na(pb$nu[, "d02|T"])))
  expect_equal(sum(is.na(pb$expr[1, ])), 1)
  expect_true("sex" %in% names(pb$obs) && !"depth" %in% names(pb$obs))
  expect_equal(pb$obs$proportion[1:3], pb$obs$n_cells[1:3] / sum(pb$obs$n_cells[1:3]))
  expect_match(pb$notes, "2 of [0-9]+ cells are left out", all = FALSE)
  expect_match(pb$notes, "'d12'", all = FALSE)
  expect_match(pb$notes, "'depth' of the cells is left out", all = FALSE)
  expect_output(print(pb), "8 genes, 11 donors x 3 cell types \\(1 pairs are missing\\)")
  need("Matrix")
  sparse <- as(all$x, "CsparseMatrix")
  expect_equal(pool(sparse, cells = all$d, min_cells_donor = 20), pb, tolerance = 1e-9)
  counts <- round(all$x[1:7, ] * 3)
  a <- pool(counts, cells = all$d, min_cells_donor = 20, normalize = "log_cp10k")
  b <- pool(log1p(1e4 * sweep(counts, 2, pmax(colSums(counts), 1), "/")), cells = all$d,
                       min_cells_donor = 20)
  expect_equal(a$expr, b$expr)
  expect_equal(pool(as(counts, "CsparseMatrix"), cells = all$d, min_cells_donor = 20,
                               normalize = "log_cp10k")$nu, a$nu)
})

test_that("logarithms of means are those of the counts, and the scale is named", {
  all <- cells()
  counts <- round(all$x[1:7, ] * c(0.2, 1:6))
  pb <- pool(counts, cells = all$d, min_cells_donor = 20, summary = "log_mean")
  pair <- "d01|B"
  at <- which(paste(all$d$donor, all$d$celltype, sep = "|") == pair)
  n <- length(at)
  scale <- 1e4 / colSums(counts)[at]
  scaled <- sweep(counts[, at], 2, ifelse(is.finite(scale), scale, 0), "*")
  m <- rowMeans(scaled)
  half <- 0.5 * mean(scale[is.finite(scale)]) / n
  nu <- apply(scaled, 1, var) / n / (m * (m + half))
  expect_equal(pb$nu[, pair], nu, tolerance = 1e-9)
  expect_equal(pb$expr[, pair], log(m + half) + nu / 2, tolerance = 1e-12)
  expect_identical(pb$genes$few_counts, pb$genes$min_counts < 5)
  expect_true(any(pb$genes$few_counts) && !all(pb$genes$few_counts))
  expect_match(pb$notes, "too few for their logarithm", all = FALSE)
  fit <- suppressWarnings(ctmm(g7 ~ celltype, data = pb))
  expect_match(fit$notes, "beyond a factor shared by all", all = FALSE)
  scan <- suppressWarnings(ctmm_genes(~ celltype, data = pb, genes = c("g1", "g7")))
  expect_match(attr(scan, "ctmm")$notes, "too few for their logarithm", all = FALSE)
  need("Matrix")
  expect_equal(pool(as(counts, "CsparseMatrix"), cells = all$d, min_cells_donor = 20,
                               summary = "log_mean"), pb, tolerance = 1e-9)
  expect_error(ctmm_pseudobulk(counts, cells = all$d, summary = "median"), "summary must be one of")
  low <- counts
  low[, all$d$celltype %in% "B"] <- round(low[, all$d$celltype %in% "B"] * 0.3)
  low <- rbind(low, rest = 20000)  # a library beside them
  logs <- pool(low, cells = all$d, min_cells_donor = 20, normalize = "log_cp10k")
  expect_true(max(logs$genes$level_ratio, na.rm = TRUE) > 1.5)
  expect_true(all(logs$genes$level_ratio_low <= logs$genes$level_ratio, na.rm = TRUE))
  gene <- rownames(low)[which.max(logs$genes$level_ratio)]
  fit <- suppressWarnings(ctmm(reformulate("celltype", gene), data = logs))
  expect_match(fit$notes, "differ in level", all = FALSE)
})

test_that("cells that cannot be aggregated are refused", {
  all <- cells()
  refused <- function(text, ...) expect_error(ctmm_pseudobulk(...), text, class = "ctmm_DataError")
  refused("table of cells", all$x, cells = all$d[-1, ])
  refused("another order", all$x, cells = all$d[rev(seq_len(nrow(all$d))), ])
  refused("cells = must be", all$x)
  refused("no column 'who'", all$x, cells = all$d, donor = "who")
  refused("expression is negative", -all$x, cells = all$d, min_cells_donor = 20)
  refused("no pair of donor and cell type is left", all$x, cells = all$d, min_cells_donor = 1e4)
  expect_warning(ctmm_pseudobulk(round(all$x), cells = all$d, min_cells_donor = 20), "raw counts",
                 class = "ctmm_warning")
})

test_that("containers of single cells give the same pseudobulk", {
  all <- cells()
  pb <- pool(all$x, cells = all$d, min_cells_donor = 20)
  need("SingleCellExperiment")
  sce <- SingleCellExperiment::SingleCellExperiment(
    assays = list(counts = all$x, logcounts = all$x), colData = all$d)
  expect_equal(pool(sce, min_cells_donor = 20), pb)
  expect_error(ctmm_pseudobulk(sce, assay = "scaled"), "no assay 'scaled'", class = "ctmm_DataError")
  need("SeuratObject")
  seurat <- suppressWarnings(SeuratObject::CreateSeuratObject(all$x, meta.data = all$d))
  found <- pool(seurat, min_cells_donor = 20)
  expect_equal(found$expr, pb$expr)
  expect_equal(found$nu, pb$nu)

  # an aggregate as muscat and dreamlet make it: one assay per cell type, pairs without cells are 0
  grid <- function(values) lapply(stats::setNames(levels(pb$obs$celltype), levels(pb$obs$celltype)),
                                  function(type) {
    out <- values[, pb$obs$celltype == type]
    out[is.na(out)] <- 0
    colnames(out) <- levels(pb$obs$donor)
    out
  })
  n <- matrix(pb$obs$n_cells, 3, dimnames = list(levels(pb$obs$celltype), levels(pb$obs$donor)))
  aggregate <- function(values) {
    out <- SingleCellExperiment::SingleCellExperiment(
      assays = grid(values),
      colData = data.frame(sex = pb$obs$sex[match(levels(pb$obs$donor), pb$obs$donor)],
                           row.names = levels(pb$obs$donor)))
    S4Vectors::metadata(out)$agg_pars <- list(assay = "logcounts", by = c("celltype", "donor"))
    SingleCellExperiment::int_colData(out)$n_cells <- lapply(
      stats::setNames(colnames(n), colnames(n)), function(donor) n[, donor])
    out
  }
  found <- pool(aggregate(pb$expr), sem = aggregate(sqrt(pb$nu)))
  expect_equal(found$expr, pb$expr)
  expect_equal(found$nu, pb$nu)
  expect_identical(as.character(found$obs$sex), as.character(pb$obs$sex))
  expect_error(ctmm_pseudobulk(aggregate(pb$expr)), "means only", class = "ctmm_DataError")

  processed <- lapply(grid(pb$expr), function(E) list(E = E))
  weights <- lapply(grid(pb$nu), function(nu) 1 / nu)
  for (type in names(processed)) processed[[type]]$weights <- weights[[type]]
  attr(processed, "data") <- data.frame(sex = rep("F", 11), row.names = levels(pb$obs$donor))
  class(processed) <- "dreamletProcessedData"
  found <- pool(processed)
  there <- !is.na(pb$nu)
  expect_equal(found$nu[there], pb$nu[there])
  expect_true(is.na(found$nu[1, "d02|T"]))
})

test_that("a pseudobulk is fitted by naming a gene, and scanned as it is", {
  need_python()
  all <- cells()
  pb <- ctmm_pseudobulk(all$x[1:7, ], cells = all$d, min_cells_donor = 20)
  fit <- suppressWarnings(ctmm(g2 ~ celltype + sex, data = pb, structure = "hom", method = "reml"))
  expect_identical(nobs(fit), 32L)
  long <- as.data.frame(pb, gene = "g2")
  expect_equal(suppressWarnings(ctmm(expr ~ celltype + sex, data = long, structure = "hom", method = "reml"))$vcomp,
               fit$vcomp)
  found <- suppressWarnings(ctmm_genes(~ celltype + sex, data = pb, structure = "hom",
                                       tests = character(), method = "reml"))
  expect_equal(found$hom[2], fit$vcomp[["hom"]], tolerance = EXACT)
  expect_error(ctmm(nobody ~ celltype, data = pb, method = "reml"), "must name one gene", class = "ctmm_DataError")
  expect_error(as.data.frame(pb, gene = "nobody"), "must name one gene", class = "ctmm_DataError")
})

test_that("shares of variance are those of each fit", {
  need_python()
  g <- genes(3)
  found <- scan(g, tests = character(), shares = TRUE)
  fit <- one(g, 2)
  own <- variance_explained(fit)
  shown <- own$share[own$component != "total"]
  columns <- sprintf("share[%s]", c("means", "fixed", "shared", "specific", "batch", "noise"))
  expect_true(all(columns %in% names(found)))
  expect_equal(sum(unlist(as.data.frame(found)[2L, columns])), 1, tolerance = 1e-9)
  expect_equal(found[["share[shared]"]][2L], own$share[own$component == "shared"], tolerance = 1e-9)
  expect_equal(found[["share[noise]"]][2L], own$share[own$component == "noise"], tolerance = 1e-9)
  expect_false(any(grepl("^share", names(scan(g, tests = character())))))
})

test_that("columns of a scan go into the rows of an experiment", {
  need_python()
  need("SummarizedExperiment")
  g <- genes(4)
  se <- SummarizedExperiment::SummarizedExperiment(list(expr = g$Y))
  SummarizedExperiment::rowData(se)$length <- 1:4
  found <- scan(g)
  out <- SummarizedExperiment::rowData(add_genes(se, found[c(3, 1), ], c("hom", "p_score")))
  expect_identical(colnames(out), c("length", "ctmm_hom", "ctmm_p_score"))
  expect_equal(out$ctmm_hom, c(found$hom[1L], NA, found$hom[3L], NA))
  every <- SummarizedExperiment::rowData(add_genes(se, found, prefix = ""))
  expect_equal(every$p_score_bh, found$p_score_bh)
  expect_error(add_genes(se[1:2, ], found), "no row 'g3', 'g4'")
  expect_error(add_genes(se, found, "none"), "no column 'none'")
  expect_error(add_genes(g$Y, found), "takes a SummarizedExperiment")
  expect_error(add_genes(se, 1), "found =")
})

test_that("a scan may drop columns of a fixed part that is not of full rank", {
  need_python()
  d <- subset(pseudobulk, !(celltype == "day3" & sex == "M"))
  expr <- rbind(a = d$expr, b = rev(d$expr))
  nu <- rbind(a = d$nu, b = d$nu)
  scan <- function(...) ctmm_genes(~ celltype * sex, data = d, expr = expr, nu = nu,
                                   tests = "effects:sex", ...)
  expect_error(scan(), "let singular.ok = TRUE drop the columns", class = "ctmm_DataError")
  expect_message(found <- scan(singular.ok = TRUE), "dropping 'celltypeday3:sexM'")
  expect_match(attr(found, "ctmm")$notes, "dropped from the fixed part", all = FALSE)
  fit <- suppressMessages(ctmm(expr ~ celltype * sex, data = d, singular.ok = TRUE))
  one <- effects(fit, "sex")
  expect_equal(found[1, "p_sex"], one$omnibus$p.value, tolerance = 1e-8)
  kept <- names(coef(fit))
  expect_equal(unlist(found[1, sprintf("b[%s]", kept)], use.names = FALSE), unname(coef(fit)), tolerance = 1e-8)
  expect_error(top_effects(found, 3), "there is no effect '3': choose from 'sex'; the number of rows is n =")
})

test_that("genes have the tables of broom", {
  need_python()
  Y <- t(as.matrix(simulate(example_fit(), 4, seed = 5)))
  rownames(Y) <- paste0("g", 1:4)
  nu <- matrix(pseudobulk$nu, 4, nrow(pseudobulk), byrow = TRUE)
  tests <- c("score", "effects: sex", "wald:V[day1] = V[day0]")
  found <- ctmm_genes(~ celltype * sex, data = pseudobulk, expr = Y, nu = nu, tests = tests)
  table <- as.data.frame(generics::tidy(found))
  types <- attr(found, "ctmm")$celltypes
  expect_identical(unique(table$test), c("score", "effects:sex", "wald:V[day1] = V[day0]"))
  of_effects <- c("", types, "mean", "heterogeneity")
  expect_setequal(table$term[table$test == "effects:sex"], of_effects)
  expect_identical(sum(table$test == "effects:sex"), 4L * length(of_effects))
  own <- table[table$test == "effects:sex" & table$term == "day1", ]
  top <- top_effects(found, "sex", "day1")
  at <- match(top$gene, own$gene)
  for (name in c("estimate", "std.error", "statistic", "df", "p.value"))
    expect_identical(own[[name]][at], top[[name]])
  expect_equal(own$p.bh[at], top$p.adjusted)
  joint <- table[table$test == "effects:sex" & table$term == "", ]
  expect_identical(joint$df1, rep(as.double(length(types)), 4L))
  expect_identical(joint$p.value, found[["p_effects:sex"]])
  expect_identical(table$p.value[table$test == "score" & table$term == "day1"], found[["p_score[day1]"]])
  one <- as.data.frame(glance(found))
  expect_identical(c(one$n_genes, one$ok + one$boundary), c(4L, 4L))
  expect_identical(c(one$method, one$bounds), c("robust", "none"))
  none <- ctmm_genes(~ celltype, data = pseudobulk, expr = Y, nu = nu, tests = character())
  expect_identical(dim(tidy(none)), c(0L, ncol(table)))
  expect_error(tidy(as.data.frame(found)), "tidy")
  expect_error(tidy(found, conf.int = TRUE), "has no argument")
  expect_error(tidy(found[c("gene", "status")]), "with all its columns")
})
