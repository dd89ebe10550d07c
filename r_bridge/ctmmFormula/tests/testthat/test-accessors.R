# deviance, isSingular, influence, getME: against other programs and refits.

test_that("deviance is minus twice the log-likelihood, and nothing after moments", {
  need_python()
  fit <- example_fit()
  expect_equal(deviance(fit), -2 * as.numeric(logLik(fit)))
  expect_error(deviance(update(fit, method = "he")), class = "ctmm_ConvergenceError")
})

test_that("a fit is singular where a variance is zero, negative or on its edge", {
  need_python()
  expect_false(isSingular(example_fit()))
  d <- subset(pseudobulk, as.integer(donor) <= 25)
  d$expr <- d$expr - ave(d$expr, d$donor)  # nothing is shared
  d$nu <- 0.1
  inside <- ctmm(expr ~ celltype, data = d, structure = "hom", method = "he")
  expect_lt(inside$vcomp[["hom"]], 0)
  expect_true(isSingular(inside))
  edge <- suppressWarnings(update(inside, method = "reml", bounds = "nonnegative"))
  expect_true(edge$convergence$boundary)
  expect_true(isSingular(edge))
  full <- update(example_fit(), structure = "full", random = NULL)
  least <- min(eigen(full$A)$values)
  expect_identical(isSingular(full), full$convergence$boundary || least <= 1e-4 * max(diag(full$A)))
  # fits of lme4 go to lme4
  need("lme4")
  m <- lme4::lmer(Reaction ~ Days + (Days | Subject), lme4::sleepstudy)
  expect_identical(isSingular(m), lme4::isSingular(m))
})

test_that("influence is that of refits without each donor, Cook's distance that of metafor", {
  need_python()
  d <- droplevels(subset(pseudobulk, as.integer(donor) <= 12))
  fit <- ctmm(expr ~ celltype, data = d, structure = "hom", method = "reml", bounds = "nonnegative")
  found <- influence(fit)
  expect_identical(rownames(found$`fixed.effects[-donor]`), levels(d$donor))
  for (who in levels(d$donor)[c(1, 7)]) {
    own <- update(fit, data = droplevels(subset(d, donor != who)))
    expect_equal(found$`fixed.effects[-donor]`[who, ], coef(own), tolerance = 1e-6)
    expect_equal(found$`var.cov.comps[-donor]`[who, ], own$vcomp[[1]], tolerance = 1e-5)
  }
  distance <- cooks.distance(fit)
  expect_equal(distance, cooks.distance(found))
  expect_output(print(found), "without each of 12 levels of donor")
  expect_lt(max(abs(cooks.distance(fit, one_step = TRUE) - distance)), 0.1 * max(distance))
  expect_error(influence(fit, groups = "donor"), "no argument 'groups'")
  need("metafor")
  theirs <- metafor::rma.mv(expr, nu, mods = ~celltype, random = ~1 | donor, data = d)
  metafors <- cooks.distance(theirs, cluster = d$donor)  # not divided by p
  expect_equal(distance, metafors[names(distance)] / length(coef(fit)), tolerance = 1e-4,
               ignore_attr = TRUE)
})

test_that("getME gives the parts, and X b + Z u is what is fitted", {
  need_python()
  need("lme4")
  need("Matrix")
  get <- lme4::getME
  crossed <- ctmm(expr ~ celltype * sex, by = ~sex, data = pseudobulk, method = "reml")
  slopes <- suppressWarnings(  # on its edge
    ctmm(expr ~ celltype + sex, random = ~(celltype | batch), data = pseudobulk, method = "reml"))
  for (fit in list(example_fit(), overall_fit(), crossed, slopes)) {
    mu <- get(fit, "X") %*% get(fit, "beta") + get(fit, "Z") %*% get(fit, "b") + get(fit, "offset")
    expect_equal(drop(as.matrix(mu)), get(fit, "mu"), tolerance = 1e-10, ignore_attr = TRUE)
    expect_identical(dim(get(fit, "Zt")), rev(dim(get(fit, "Z"))))
    expect_identical(get(fit, "q"), ncol(get(fit, "Z")))
  }
  fit <- example_fit()
  expect_identical(get(fit, "theta"), fit$vcomp)
  expect_identical(get(fit, c("n", "p", "is_REML")), list(n = 275L, p = 6L, is_REML = TRUE))
  expect_identical(lme4::ngrps(fit), c(donor = 72L, batch = 24L))
  expect_identical(get(fit, "cnms")$donor, c("(Intercept)", fit$celltypes))
  expect_identical(names(get(fit, "flist")), c("donor", "batch"))
  expect_error(get(fit, "devcomp"), "choose from 'X', 'Z'")
})

test_that("tidiers give tibbles where tibble is loaded, data frames elsewhere", {
  need_python()
  need("tibble")
  loadNamespace("tibble")
  fit <- example_fit()
  for (table in list(tidy(fit), glance(fit), augment(fit), tidy(fit, "ran_vals")))
    expect_s3_class(table, "tbl_df")
  d <- pseudobulk
  rownames(d) <- paste0("row", seq_len(nrow(d)))
  expect_identical(augment(ctmm(expr ~ celltype, data = d, structure = "hom"), d)$.rownames, rownames(d))
  out <- run_r(c("library(ctmmFormula)",
                 "fit <- ctmm(expr ~ celltype, data = pseudobulk, structure = 'hom')",
                 "cat(class(tidy(fit)), class(glance(fit)), class(augment(fit)))"))
  expect_match(out$out[length(out$out)], "^data.frame data.frame data.frame$")
})

test_that("ctmm_genes takes the workers of BiocParallel", {
  need_python()
  expr <- t(as.matrix(simulate(example_fit(), 3, seed = 1)))
  nu <- matrix(pseudobulk$nu, 3, nrow(pseudobulk), byrow = TRUE)
  scan <- function(...) ctmm_genes(~ celltype + sex, data = pseudobulk, expr = expr, nu = nu,
                                   method = "reml", tests = "bootstrap", n_bootstrap = 9, ...)
  expect_error(scan(BPPARAM = 2), "parameter object of BiocParallel, such as MulticoreParam")
  need("BiocParallel")
  own <- scan(seed = 4)
  expect_identical(scan(BPPARAM = BiocParallel::SerialParam(RNGseed = 4)), own)
  expect_identical(scan(BPPARAM = BiocParallel::MulticoreParam(2), seed = 4), own)
  expect_identical(scan(BPPARAM = BiocParallel::SnowParam(2), seed = 4), own)
  param <- BiocParallel::MulticoreParam(2, progressbar = TRUE)
  expect_output(scan(BPPARAM = param, seed = 4), "100%")
  expect_error(scan(BPPARAM = param, threads = 2), "not both")
  expect_error(scan(BPPARAM = BiocParallel::SnowParam(c("a", "b"))), "names other machines, 'a', 'b'")
})

test_that("intervals of variances by profile likelihood are those of metafor", {
  need_python()
  d <- droplevels(subset(pseudobulk, as.integer(donor) <= 20))
  fit <- ctmm(expr ~ celltype, data = d, structure = "hom", method = "reml", bounds = "nonnegative")
  found <- confint(fit, "hom", method = "profile")
  expect_identical(dimnames(found), dimnames(confint(fit, "hom")))
  expect_identical(confint(fit, "beta_", method = "profile"), confint(fit, "beta_"))
  log <- confint(fit, "theta_", method = "log")
  expect_equal(sqrt(log[, 1] * log[, 2]), fit$vcomp[["hom"]], ignore_attr = TRUE)
  expect_error(confint(update(fit, method = "he"), method = "profile"), "no likelihood")
  expect_error(confint(fit, method = "boot"), "should be one of")
  need("metafor")
  theirs <- confint(metafor::rma.mv(expr, nu, mods = ~celltype, random = ~1 | donor, data = d), sigma2 = 1)
  expect_equal(unname(found[1, ]), unname(unlist(theirs$random[1, c("ci.lb", "ci.ub")])), tolerance = 1e-3)
})
