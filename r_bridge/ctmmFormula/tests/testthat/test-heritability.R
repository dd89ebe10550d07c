# Kinships and heritability, as Python has them.
sibs_of <- function(donors, size = 3) {
  same <- outer((seq_along(donors) - 1) %/% size, (seq_along(donors) - 1) %/% size, `==`)
  matrix(0.5 * same + 0.5 * diag(length(donors)), length(donors), dimnames = list(donors, donors))
}

donors <- unique(as.character(pseudobulk$donor))
K <- sibs_of(donors)

related_fit <- function() {
  if (is.null(kept$related))
    kept$related <- ctmm(expr ~ celltype + sex, random = ~ batch, kinship = K, structure = "iid",
                         method = "he", data = pseudobulk)
  kept$related
}

test_that("a fit has components of the kinship, and donors are matched by name", {
  need_python()
  fit <- related_fit()
  expect_identical(names(fit$vcomp), c("hom", "V", "batch", "genetic:hom", "genetic:V"))
  expect_identical(fit$method, "he")
  expect_identical(update(fit, method = NULL)$method, "robust")
  set.seed(1)
  others <- paste0("other", 1:4)
  more <- sibs_of(c(donors, others))
  more <- more[sample(nrow(more)), sample(ncol(more))]
  expect_equal(update(fit, kinship = more)$vcomp, fit$vcomp, tolerance = 1e-8)
  expect_equal(diag(fit$kinship$genetic), named(rep(sum(fit$vcomp[4:5]), 4), fit$celltypes))
  expect_identical(names(VarCorr(fit)), c("donor", "batch", "genetic"))
  expect_output(print(summary(fit)), "genetic:hom")
  tidy <- generics::tidy(fit, effects = "ran_pars")
  expect_identical(tidy$group, c("donor", "donor", "batch", "genetic", "genetic"))
})

test_that("a kinship goes with REML as well", {
  need_python()
  fit <- suppressWarnings(ctmm(expr ~ celltype + sex, kinship = K, structure = "iid", method = "reml",
                               data = pseudobulk))
  expect_identical(fit$method, "reml")
  expect_true(is.finite(fit$loglik))
  expect_identical(names(fit$vcomp), c("hom", "V", "genetic:hom", "genetic:V"))
  expect_identical(dim(heritability(fit)$table), c(7L, 9L))
})

test_that("moments of a kinship are those of plain algebra", {
  need_python()
  d <- pseudobulk[order(pseudobulk$donor, pseudobulk$celltype), ]
  fit <- ctmm(expr ~ celltype, kinship = K, structure = "hom", method = "he", data = d)
  X <- model.matrix(~ celltype, d)
  Q <- qr.Q(qr(X))
  P <- diag(nrow(d)) - tcrossprod(Q)
  at <- match(d$donor, donors)
  parts <- list(outer(at, at, `==`) + 0, K[at, at])
  e <- drop(P %*% d$expr)
  gram <- outer(1:2, 1:2, Vectorize(function(i, j) sum((P %*% parts[[i]] %*% P) * parts[[j]])))
  right <- vapply(parts, function(S) sum(e * (S %*% e)) - sum(diag(P %*% S %*% P) * d$nu), 0)
  expect_equal(unname(fit$vcomp), solve(gram, right), tolerance = 1e-8)
})

test_that("heritability has tables, and test and values are Python's", {
  need_python()
  fit <- related_fit()
  found <- heritability(fit)
  expect_identical(found$table$part, c("shared", "specific", "total", paste0("day", 0:3)))
  expect_identical(names(found$table), c("kinship", "part", "genetic", "environment", "h2", "std.error",
                                         "conf.low", "conf.high", "note"))
  # the scale of a kinship: mean of its diagonal less that of the others
  scale <- mean(diag(K)) - mean(K[upper.tri(K)])
  v <- fit$vcomp
  total <- scale * sum(v[4:5]) + sum(v[1:2])
  h2 <- found$table$h2[found$table$part == "total"]
  if (is.finite(h2)) expect_equal(h2, unname(scale * sum(v[4:5]) / total), tolerance = 1e-8)
  expect_identical(nrow(found$correlations), 6L)
  expect_output(print(found), "Genetic correlations")
  wide <- heritability(fit, level = 0.99)$table
  ok <- is.finite(wide$conf.low) & is.finite(found$table$conf.low)
  expect_true(all(wide$conf.low[ok] < found$table$conf.low[ok]))
  expect_equal(heritability(fit, covariance = jackknife(fit))$table, found$table)
  test <- test_heritability(fit)
  expect_s3_class(test, "htest")
  expect_true(test$p.value > 0 && test$p.value <= 1)
  expect_identical(names(test$extra$celltype), fit$celltypes)
  expect_output(print(test), "cross-donor score")
  values <- genetic_values(fit)
  expect_identical(dim(values), c(72L, 6L))
  more <- sibs_of(c(donors, "brother"), 3)
  known <- genetic_values(fit, more)
  expect_equal(as.matrix(known[1:72, 3:6]), as.matrix(values[match(known$donor[1:72], values$donor), 3:6]),
               tolerance = 1e-6, ignore_attr = TRUE)
  expect_identical(known$donor[73L], "brother")
  expect_equal(unname(as.matrix(ranef(fit)$genetic)),
               unname(as.matrix(values[match(rownames(ranef(fit)$genetic), values$donor), 3:6])))
  expect_equal(unname(predict(fit, pseudobulk)), unname(fitted(fit)), tolerance = 1e-8)
})

test_that("several kinships, genotypes and files", {
  need_python()
  set.seed(2)
  G <- matrix(rbinom(72 * 15, 2, 0.3), 72, dimnames = list(donors, NULL))
  fit <- ctmm(expr ~ celltype, kinship = list(cis = G, trans = K), structure = "free",
              genetic_structure = "hom", data = pseudobulk)
  expect_identical(tail(names(fit$vcomp), 2L), c("cis:hom", "trans:hom"))
  expect_error(test_heritability(fit), "which kinship")
  expect_true(test_heritability(fit, "cis")$p.value > 0)
  Z <- scale(G) * sqrt(72 / 71)
  own <- ctmm(expr ~ celltype, kinship = tcrossprod(Z) / 15, structure = "hom", data = pseudobulk)
  low <- ctmm(expr ~ celltype, kinship = G, structure = "hom", data = pseudobulk)
  expect_equal(own$vcomp, low$vcomp, tolerance = 1e-6)
  file <- tempfile(fileext = ".csv")
  write.csv(K, file)
  expect_equal(ctmm(expr ~ celltype, kinship = file, structure = "hom", data = pseudobulk)$vcomp,
               ctmm(expr ~ celltype, kinship = K, structure = "hom", data = pseudobulk)$vcomp)
  need("Matrix")
  sparse <- Matrix::Matrix(K, sparse = TRUE)
  expect_equal(ctmm(expr ~ celltype, kinship = sparse, structure = "hom", data = pseudobulk)$vcomp,
               ctmm(expr ~ celltype, kinship = K, structure = "hom", data = pseudobulk)$vcomp)
})

test_that("all genes have the same numbers", {
  need_python()
  expr <- rbind(a = pseudobulk$expr, b = rev(pseudobulk$expr))
  nu <- matrix(pseudobulk$nu, 2, nrow(pseudobulk), byrow = TRUE)
  found <- ctmm_genes(~ celltype + sex, data = pseudobulk, expr = expr, nu = nu, random = ~ batch,
                      structure = "iid", kinship = K, tests = c("heritability", "jackknife"))
  fit <- related_fit()
  expect_equal(unlist(found[1L, names(fit$vcomp)]), fit$vcomp, tolerance = 1e-8)
  table <- heritability(fit)$table
  expect_equal(unname(unlist(found[1L, sprintf("h2[%s]", table$part)])), table$h2, tolerance = 1e-6)
  expect_equal(found$stat_heritability[1L], test_heritability(fit)$statistic[[1L]], tolerance = 1e-6)
  by_default <- ctmm_genes(~ celltype, data = pseudobulk, expr = expr, nu = nu, structure = "hom",
                           kinship = list(one = K, two = sibs_of(rev(donors), 4)))
  expect_true(all(c("p_heritability:one_bh", "p_heritability:two_shared") %in% names(by_default)))
})

test_that("every gene may have the kinship of the variants around it", {
  need_python()
  set.seed(3)
  G <- matrix(rbinom(72 * 40, 2, 0.3), 72, dimnames = list(donors, sprintf("rs%d", 1:40)))
  variants <- data.frame(chromosome = "1", position = 1000 * (1:40))
  positions <- data.frame(chromosome = c("chr1", "chr1", "chr2"), start = c(28000, 9000, 1),
                          end = c(30000, 10000, 9), row.names = c("a", "b", "c"))
  expr <- rbind(a = pseudobulk$expr, b = rev(pseudobulk$expr), c = pseudobulk$expr)
  nu <- matrix(pseudobulk$nu, 3, nrow(pseudobulk), byrow = TRUE)
  scan <- function(...) suppressWarnings(ctmm_genes(~ celltype + sex, data = pseudobulk, expr = expr, nu = nu,
                                                    structure = "hom", ...))
  found <- scan(genotypes = G, variants = variants, window = 5000, positions = positions, progress = TRUE)
  expect_identical(found$gene, c("a", "b", "c"))
  expect_identical(found$n_snps, c(13L, 12L, 0L))
  expect_match(found$reason[3L], "no genotypes of chromosome 2")
  own <- list(a = 23:35, b = 4:15)
  d <- pseudobulk
  for (gene in c("a", "b")) {
    d$expr <- expr[gene, ]
    d$nu <- nu[1L, ]
    fit <- ctmm(expr ~ celltype + sex, kinship = list(cis = G[, own[[gene]]]), structure = "hom",
                method = "he", data = d)
    expect_equal(unlist(found[found$gene == gene, names(fit$vcomp)]), fit$vcomp, tolerance = 1e-6)
    expect_equal(found$stat_heritability[found$gene == gene], test_heritability(fit)$statistic[[1L]],
                 tolerance = 1e-4)
  }
  tss <- data.frame(chromosome = 1, tss = c(29000, 9500), row.names = c("a", "b"))
  both <- scan(genotypes = G, variants = variants, window = 6000, positions = tss,
               kinship = list(trans = K), genetic_structure = "hom")
  expect_true(all(c("cis:hom", "trans:hom", "p_heritability:cis", "p_heritability:trans") %in% names(both)))
  expect_identical(both$n_snps, c(13L, 12L, 0L))
  bad <- list(
    list(list(genotypes = G), "give window = 500000 and positions ="),
    list(list(window = 5), "belong to genotypes ="),
    list(list(genotypes = G, window = 5000, positions = positions), "variants = must be a data frame"),
    list(list(genotypes = G, window = 5000, positions = positions, variants = variants[-1, ]), "39 rows"),
    list(list(genotypes = G, window = -1, positions = positions, variants = variants), "window = must be"),
    list(list(genotypes = G, window = 5000, positions = tss[0, ], variants = variants), "none of the genes"),
    list(list(genotypes = G, window = 5000, positions = positions["start"], variants = variants),
         "positions = must be"),
    list(list(genotypes = G, window = 5000, positions = data.frame(chromosome = 1, tss = 1),
              variants = variants), "its rows are numbered"),
    list(list(genotypes = G, window = 5000, positions = positions, variants = variants,
              kinship = list(cis = K)), "every gene's own window"),
    list(list(genotypes = "nowhere.bed", window = 5000, positions = positions), "there is no file"))
  for (one in bad) expect_error(do.call(scan, one[[1L]]), one[[2L]], class = "ctmm_error")
})

# A PLINK file of counts of the first allele (donors by variants), NA where missing.
write_bed <- function(G, variants, stem) {
  code <- matrix(c(3L, 2L, 0L)[G + 1L], nrow(G))
  code[is.na(code)] <- 1L
  code <- rbind(code, matrix(0L, -nrow(G) %% 4L, ncol(G)))
  bytes <- colSums(matrix(code * c(1L, 4L, 16L, 64L), 4L))
  writeBin(as.raw(c(0x6c, 0x1b, 0x01, bytes)), paste0(stem, ".bed"))
  table <- function(x, end)
    utils::write.table(x, paste0(stem, end), quote = FALSE, row.names = FALSE, col.names = FALSE)
  table(data.frame("f", rownames(G), 0, 0, 0, -9), ".fam")
  table(data.frame(variants$chromosome, colnames(G), 0, variants$position, "A", "C"), ".bim")
  paste0(stem, ".bed")
}

test_that("a file of PLINK is read by window, and missing genotypes are said", {
  need_python()
  set.seed(4)
  G <- matrix(rbinom(72 * 40, 2, 0.3), 72, dimnames = list(donors, sprintf("rs%d", 1:40)))
  G[c(3, 50), 30] <- NA
  variants <- data.frame(chromosome = "1", position = 1000 * (1:40))
  positions <- data.frame(chromosome = 1, tss = c(29000, 9500), row.names = c("a", "b"))
  expr <- rbind(a = pseudobulk$expr, b = rev(pseudobulk$expr))
  nu <- matrix(pseudobulk$nu, 2, nrow(pseudobulk), byrow = TRUE)
  scan <- function(...) ctmm_genes(~ celltype + sex, data = pseudobulk, expr = expr, nu = nu, structure = "hom",
                                   window = 6000, positions = positions, ...)
  matrix <- scan(genotypes = G, variants = variants)
  said <- grep("genotypes are missing and are the mean", attr(matrix, "ctmm")$notes, value = TRUE)
  expect_length(said, 1L)
  expect_output(print(matrix), "Note: window=6,000: 12.5 variants a gene", fixed = TRUE)
  expect_equal(matrix$share_imputed, c(2 / (72 * 13), 0))
  if (!reticulate::py_module_available("bed_reader"))
    skip("the Python package has no bed_reader, of the extra 'genotypes'")
  # other donors, in another order: matched by label
  more <- rbind(G, stranger = 0)[sample(73L), ]
  file <- write_bed(more, variants, tempfile())
  by_file <- scan(genotypes = file)
  expect_equal(by_file, matrix, ignore_attr = TRUE, tolerance = 1e-6)
  expect_true(said %in% attr(by_file, "ctmm")$notes)
})

test_that("kinships that are none are refused", {
  need_python()
  bad <- list(
    list(unname(K), "no names of donors"),
    list(`colnames<-`(K, NULL), "no column names"),
    list(K[-1, -1], "has no row for 1 of 72 donors"),
    list(`dimnames<-`(K, list(paste0("x", donors), paste0("x", donors))), "none of the donors"),
    list(K + upper.tri(K) * 0.2, "is not symmetric"),
    list(`[<-`(K, 2, 2, NA), "missing or infinite"),
    list(1 - K, "is no covariance"),
    list("nowhere.grm.bin", "there is no file"),
    list(c(1, 2), "must be a matrix of numbers"),
    list(`storage.mode<-`(K, "character"), "must be a matrix of numbers"),
    list(data.frame(a = letters[1:3]), "must be numbers"),
    list(as.data.frame(unname(K)), "its rows are numbered"),
    list(list(), "is an empty list"),
    list(list(K), "needs a name of its own"),
    list(list(a = K, a = K), "needs a name of its own"),
    list(list(batch = K), "has the name of a random effect"),
    list(rbind(K, K[1, , drop = FALSE]), "several rows for donor"),
    list(matrix(1, 72, 1, dimnames = list(donors, "rs1")), "do not vary"),
    list(`dimnames<-`(diag(72), list(donors, donors)), "multiple of the identity"))
  for (one in bad)
    expect_error(ctmm(expr ~ celltype, random = ~ batch, kinship = one[[1L]], structure = "hom",
                      data = pseudobulk), one[[2L]], class = "ctmm_error")
  fit <- example_fit()
  expect_error(heritability(fit), "there is no kinship", class = "ctmm_CTMMError")
  expect_error(genetic_values(fit), "there is no kinship", class = "ctmm_CTMMError")
  expect_match(test_heritability(fit)$note, "there is no kinship")
  expect_error(ctmm(expr ~ celltype, genetic_structure = "hom", data = pseudobulk), "give kinship")
  expect_error(simulate(related_fit()), "has a kinship")
  expect_error(genetic_values(related_fit(), K[-1, -1]), "has no row for 1 of 72 donors")
})
