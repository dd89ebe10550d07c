# Effects of a condition by cell type: rows made in R, tests of Python.

EXACT <- 1e-9  # relative: the same algebra

crossed_fit <- function(...) {
  ctmm(expr ~ celltype * sex + PC1, random = ~ batch, data = pseudobulk, ...)
}

test_that("effects are those of the coefficients, whatever the parametrisation", {
  need_python()
  fit <- crossed_fit()
  found <- effects(fit, "sex")
  expect_s3_class(found, c("ctmm_effects", "data.frame"))
  b <- coef(fit)
  expect_equal(found$estimate, unname(b["sexM"] + c(0, b[paste0("celltypeday", 1:3, ":sexM")])),
               tolerance = EXACT)
  expect_identical(effects(fit, ~ sex), found)
  expect_identical(found$celltype, fit$celltypes)
  expect_identical(unique(found$comparison), "M - F")
  expect_equal(attr(found, "mean")$estimate, mean(found$estimate), tolerance = EXACT)
  other <- ctmm(expr ~ 0 + celltype + celltype:sex + PC1, random = ~ batch, data = pseudobulk)
  again <- effects(other, "sex")
  expect_equal(again$p.value, found$p.value, tolerance = 1e-6)
  for (name in c("omnibus", "heterogeneity", "mean", "day2"))
    expect_equal(attr(again, "tests")[[name]]$p.value, attr(found, "tests")[[name]]$p.value,
                 tolerance = 1e-6)
  tests <- attr(found, "tests")
  expect_equal(unname(tests$omnibus$parameter[[1L]]), 4)
  expect_equal(unname(tests$heterogeneity$parameter[[1L]]), 3)
  expect_equal(tests$day1$p.value, found$p.value[2L], tolerance = EXACT)
  expect_output(print(found), "the same in all cell types: F")
})

test_that("effects are the contrasts of emmeans", {
  need_python()
  need("emmeans")
  fit <- crossed_fit(method = "reml")
  found <- effects(fit, "sex", covariance = "model")
  theirs <- as.data.frame(emmeans::contrast(emmeans::emmeans(fit, ~ sex | celltype), "revpairwise"))
  expect_equal(found$estimate, theirs$estimate, tolerance = 1e-7)
  expect_equal(found$std.error, theirs$SE, tolerance = 1e-7)
  expect_equal(found$df, theirs$df, tolerance = 1e-6)
  expect_equal(found$p.value, theirs$p.value, tolerance = 1e-6)
})

test_that("levels, numbers and other values", {
  need_python()
  d <- pseudobulk
  d$arm <- c("control", "mild", "severe")[as.integer(d$donor) %% 3L + 1L]
  d$stage <- as.integer(d$donor) %% 3L
  d$age <- 30 + (7 * as.integer(d$donor)) %% 41
  fit <- ctmm(expr ~ celltype * arm + age + age:sex, data = d)
  found <- effects(fit, "arm")
  expect_identical(unique(found$comparison), c("mild - control", "severe - control"))
  expect_equal(unname(attr(found, "tests")$mean$parameter[[1L]]), 2)
  pair <- effects(fit, "arm", values = c("severe", "control"))
  expect_equal(pair$estimate, -found$estimate[found$comparison == "severe - control"],
               tolerance = EXACT)
  slope <- effects(fit, "age", at = list(sex = "F"))
  expect_equal(slope$estimate[1L], coef(fit)[["age"]], tolerance = EXACT)
  expect_true(is.nan(attr(slope, "tests")$heterogeneity$p.value))
  expect_equal(effects(fit, "age", values = c(30, 60), at = list(sex = "F"))$p.value, slope$p.value,
               tolerance = 1e-6)
  expect_match(attr(effects(fit, "age"), "at"), "averaged over the rows")
  expect_output(print(slope), "at sex = F")
  staged <- ctmm(expr ~ celltype * factor(stage), data = d)
  expect_equal(effects(staged, "stage")$estimate, effects(ctmm(expr ~ celltype * arm, data = d), "arm")$estimate,
               tolerance = EXACT)
  bent <- ctmm(expr ~ celltype + poly(age, 2), data = d)
  expect_error(effects(bent, "age"), "no straight line in 'age'", class = "ctmm_FormulaError")
  both <- predict(bent, data.frame(celltype = "day0", age = c(40, 60)), re.form = NA)
  expect_equal(effects(bent, "age", values = c(40, 60))$estimate[1L], unname(diff(both)), tolerance = 1e-7)
})

test_that("a type without cases is NA with its reason", {
  need_python()
  d <- subset(pseudobulk, !(celltype == "day2" & sex == "M"))
  expect_message(fit <- ctmm(expr ~ celltype * sex, data = d, singular.ok = TRUE), "dropping")
  expect_silent(found <- effects(fit, "sex"))
  expect_identical(is.na(found$estimate), fit$celltypes == "day2")
  tests <- attr(found, "tests")
  expect_identical(tests$day2$note, "no rows with sex = 'M'")
  expect_output(print(found), "p = [0-9.e-]+ \\(without day2: no rows with sex = 'M'\\)")
  expect_equal(unname(tests$omnibus$parameter[[1L]]), 3)
  expect_match(tests$omnibus$note, "without day2")
})

test_that("overall pseudobulk has one effect where the formula has", {
  need_python()
  fit <- overall_fit()
  found <- effects(fit, "sex", covariance = "model")
  expect_equal(found$estimate, rep(coef(fit)[["sexM"]], length(fit$celltypes)), tolerance = 1e-6)
  expect_true(is.nan(attr(found, "tests")$heterogeneity$p.value))
})

test_that("what cannot be asked names the choices", {
  need_python()
  fit <- crossed_fit()
  expect_error(effects(fit, "sx"), "unknown variable 'sx'.*'sex', 'PC1'", class = "ctmm_CTMMError")
  expect_error(effects(fit), "name a variable of the fixed part")
  expect_error(effects(fit, "celltype"), "unknown variable 'celltype'")
  expect_error(effects(fit, "sex", values = c("F", "X")), "'sex' has no value 'X': choose from 'F', 'M'")
  expect_error(effects(fit, "sex", values = c("F", "F")), "two or more different values")
  expect_error(effects(fit, "sex", at = list(sex = "F")), "at = cannot hold 'sex'")
  expect_error(effects(fit, "sex", at = 50), "a list of values by name")
  expect_error(effects(fit, "sex", band = 1), "has no argument")
})

test_that("genes are asked in words, and have a table like limma's", {
  need_python()
  Y <- t(as.matrix(simulate(example_fit(), 5, seed = 2)))
  rownames(Y) <- paste0("g", 1:5)
  nu <- outer(seq(0.8, 1.2, length.out = 5), pseudobulk$nu)
  dimnames(nu) <- dimnames(Y)
  Y["g2", 7] <- NA
  found <- ctmm_genes(~ celltype * sex + sex:PC1, data = pseudobulk, expr = Y, nu = nu, random = ~ batch,
                      tests = c("effects: sex", "component:batch", "wald:V[day1] = V[day0]"))
  for (gene in c("g1", "g2")) {
    d <- pseudobulk
    d$expr <- Y[gene, ]
    d$nu <- nu[gene, ]
    fit <- ctmm(expr ~ celltype * sex + sex:PC1, random = ~ batch, data = d)
    one <- effects(fit, "sex")
    row <- found[match(gene, found$gene), ]
    expect_equal(row[["p_effects:sex"]], attr(one, "tests")$omnibus$p.value, tolerance = 1e-6)
    expect_equal(row[["p_effects:sex_heterogeneity"]], attr(one, "tests")$heterogeneity$p.value,
                 tolerance = 1e-6)
    expect_equal(unlist(unclass(row)[paste0("estimate_effects:sex[", fit$celltypes, "]")]), one$estimate,
                 ignore_attr = TRUE, tolerance = 1e-7)
    expect_equal(row[["p_component:batch"]], test_component(fit, "batch")$p.value, tolerance = 1e-6)
  }
  top <- top_effects(found, "sex", "day1", n = 3)
  expect_identical(names(top), c("gene", "estimate", "std.error", "mean", "statistic", "df", "p.value",
                                 "p.adjusted"))
  expect_false(is.unsorted(top$p.value))
  expect_equal(top$p.adjusted, p.adjust(found[["p_effects:sex[day1]"]], "BH")[match(top$gene, found$gene)])
  all <- top_effects(found)
  expect_identical(nrow(all), 5L)
  expect_true(all(c("day0", "mean", "F", "p.heterogeneity") %in% names(all)))
  for (asked in c("effects:sex", "effects: sex"))
    expect_identical(top_genes(found, 1, by = asked)$gene, all$gene[1L])
  expect_error(top_effects(found, "age"), "there is no effect 'age': choose from 'sex'")
  expect_error(top_effects(found, "sex", "T"), "there is no cell type 'T'")
  expect_error(ctmm_genes(~ celltype, data = pseudobulk, expr = Y, nu = nu, tests = "effects:sx"),
               "unknown variable 'sx'")
  expect_error(ctmm_genes(~ celltype, data = pseudobulk, expr = Y, nu = nu, tests = "efects:sex"),
               "unknown test 'efects:sex'.*effects:VARIABLE")
  plain <- ctmm_genes(~ celltype, data = pseudobulk, expr = Y, nu = nu)
  expect_error(top_effects(plain), "there are no effects")
  called <- pseudobulk
  called$celltype <- sub("day1", "mean", as.character(called$celltype))
  called <- ctmm_genes(~ celltype * sex + sex:PC1, data = called, expr = Y, nu = nu, random = ~ batch,
                       tests = "effects:sex")
  expect_equal(top_effects(called, celltype = "celltype mean", n = 3)[-4L], top[-4L], tolerance = 1e-6)
  expect_equal(top_effects(called)[["mean"]], all$mean, tolerance = 1e-6)
})

test_that("contrasts of genes name cell types at levels", {
  need_python()
  d <- pseudobulk
  d$arm <- c("M", "x", "y")[as.integer(factor(d$donor)) %% 3 + 1]
  Y <- t(as.matrix(simulate(example_fit(), 2, seed = 4)))
  rownames(Y) <- c("g1", "g2")
  Y["g2", 1:9] <- NA
  nu <- matrix(d$nu, 2, nrow(d), byrow = TRUE)
  asked <- c("contrast:day1|sex=M - day1|F", "contrast: day0|y = day3|y", "contrast:day1 - day0")
  found <- ctmm_genes(~ celltype * sex + celltype * arm, data = d, expr = Y, nu = nu, tests = asked)
  for (gene in rownames(Y)) {
    d$expr <- Y[gene, ]
    fit <- ctmm(expr ~ celltype * sex + celltype * arm, data = d[!is.na(d$expr), ])
    row <- found[found$gene == gene, ]
    sex <- effects(fit, "sex")
    expect_equal(row[["p_contrast:day1|sex=M - day1|F"]], sex$p.value[sex$celltype == "day1"],
                 tolerance = 1e-6)
    means <- fixef(fit)
    of <- means[["celltypeday3"]] + means[["celltypeday3:army"]]
    sexes <- mean(d$sex[!is.na(d$expr)] == "M")
    of <- of + sexes * means[["celltypeday3:sexM"]]
    expect_equal(row[["estimate_contrast:day0|y = day3|y"]], -of, tolerance = 1e-6)
  }
  expect_error(ctmm_genes(~ celltype * sex, data = d, expr = Y, nu = nu, tests = "contrast:day0|X"),
               "day0|M, day1|M", fixed = TRUE)
})

test_that("groups that vary unlike are said", {
  need_python()
  set.seed(2)
  donors <- 60
  case <- seq_len(donors) > 42
  d <- expand.grid(celltype = c("B", "NK", "T"), donor = seq_len(donors))
  d$status <- ifelse(case, "case", "control")[d$donor]
  d$n_cells <- 20 + seq_len(nrow(d)) %% 60
  d$nu <- 4 / d$n_cells
  sd <- ifelse(case, 1.5, 0.5)[d$donor]
  d$expr <- sd * rnorm(donors)[d$donor] + 0.4 * sd * rnorm(nrow(d)) + sqrt(d$nu) * rnorm(nrow(d))
  found <- effects(ctmm(expr ~ celltype * status, data = d), "status")
  expect_match(attr(found, "notes"), "donors of control vary less than those of case")
  expect_match(attr(found, "notes"), "by='status'", fixed = TRUE)
  expect_output(print(found), "vary less")
  expect_length(attr(effects(ctmm(expr ~ celltype * status, by = ~ status, data = d), "status"), "notes"), 0)
})
