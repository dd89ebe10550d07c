# Fits without rows say what the whole fits say.

fits <- function(...) list(
  robust = ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = pseudobulk, ...),
  reml = ctmm(expr ~ celltype * sex, by = ~ sex, data = pseudobulk, method = "reml", ...),
  overall = ctmm(expr ~ sex + PC1, data = overall_pseudobulk, structure = "hom",
                 proportions = paste0("prop_day", 0:3), method = "ml", ...))

test_that("tables say what the whole fit says, and take less", {
  need_python()
  whole <- fits()
  small <- fits(keep = "tables")
  size <- function(x) length(serialize(x, NULL))
  for (name in names(whole)) {
    a <- whole[[name]]
    b <- small[[name]]
    for (says in list(coef, vcov, VarCorr, celltype_means, confint, tidy, glance, variance_explained, test_variance,
                      test_mean, isSingular, nobs, function(x) deparse(formula(x))))
      expect_identical(says(b), says(a))
    expect_identical(capture.output(print(summary(b)))[-(1:2)], capture.output(print(summary(a)))[-(1:2)])
    expect_identical(capture.output(print(b)), capture.output(print(a)))
    expect_lt(size(b), size(a) / 2)
  }
  expect_identical(logLik(small$reml), logLik(whole$reml))
})

test_that("their size does not depend on the number of rows, nor on where the formula was written", {
  need_python()
  size <- function(k) {
    beside <- rnorm(1e5)  # an environment that a formula would take along
    d <- do.call(rbind, lapply(seq_len(k), function(i) transform(pseudobulk, donor = paste(donor, i))))
    length(serialize(ctmm(expr ~ celltype + sex, data = d, keep = "tables"), NULL))
  }
  expect_lt(size(6), 1.02 * size(1))
  expect_lt(size(1), 50000)
})

test_that("what needs rows says so, by one class", {
  need_python()
  fit <- ctmm(expr ~ celltype + sex, data = pseudobulk, keep = "tables")
  for (needs in list(fitted, residuals, ranef, model.frame, model.matrix, jackknife, weights, update, augment,
                     function(x) effects(x, "sex"), function(x) test_variance(x, "jackknife"),
                     function(x) test_mean(x, "model"), function(x) summary(x, "jackknife"), outliers,
                     function(x) simulate(x, 1), influence, function(x) predict(x, pseudobulk),
                     function(x) x$y))
    expect_error(needs(fit), "keep = \"tables\"", class = "ctmm_DataError")
  again <- update(fit, . ~ . - sex, data = pseudobulk)
  expect_identical(again$kept, ctmm(expr ~ celltype, data = pseudobulk, keep = "tables")$kept)
  expect_error(ctmm(expr ~ celltype, data = pseudobulk, keep = "rows"), "\"all\" or \"tables\"",
               class = "ctmm_CTMMError")
  file <- tempfile(fileext = ".rds")
  saveRDS(fit, file)
  expect_identical(test_variance(readRDS(file)), test_variance(fit))
})

test_that("a kinship is not taken along in the call, heritability is", {
  need_python()
  donors <- levels(factor(pseudobulk$donor))
  family <- seq_along(donors) %/% 3
  K <- 0.5 * outer(family, family, `==`) + 0.5 * diag(length(donors))
  dimnames(K) <- list(donors, donors)
  ask <- function(keep) ctmm(expr ~ celltype + sex, kinship = K, structure = "iid", data = pseudobulk,
                             keep = keep)
  whole <- ask("all")
  small <- ask("tables")
  expect_identical(small$call$kinship, quote(K))
  expect_identical(heritability(small), heritability(whole))
  expect_error(heritability(small, level = 0.9), class = "ctmm_DataError")
  expect_error(test_heritability(small), class = "ctmm_DataError")
})
