test_that("methods dispatch from outside the package", {
  generics <- list(
    stats = c("anova", "coef", "confint", "df.residual", "extractAIC", "family", "fitted", "formula",
              "logLik", "model.frame", "model.matrix", "nobs", "predict", "residuals", "sigma",
              "simulate", "terms", "update", "vcov", "weights"),
    base = c("print", "summary", "plot"), nlme = c("fixef", "ranef", "VarCorr"),
    generics = c("tidy", "glance", "augment"))
  for (package in names(generics)) for (name in generics[[package]]) {
    found <- getS3method(name, "ctmm", optional = TRUE, envir = asNamespace(package))
    expect_type(found, "closure")
  }
})

test_that("coefficients, covariances and sizes agree with each other", {
  need_python()
  fit <- example_fit()
  expect_identical(coef(fit), fixef(fit))
  expect_identical(dimnames(vcov(fit)), list(names(coef(fit)), names(coef(fit))))
  expect_identical(dim(vcov(fit, full = TRUE)), c(12L, 12L))
  expect_identical(nobs(fit), nrow(pseudobulk))
  expect_equal(df.residual(fit), 72 - 12)
  table <- coef(summary(fit))
  expect_equal(table[, "Std. Error"], sqrt(diag(vcov(fit))))
  expect_equal(table[, "Pr(>|t|)"], 2 * pt(-abs(table[, "t value"]), fit$df[1:6]))
  expect_identical(fit$df[7:12], rep(60, 6))
  limits <- confint(fit)
  expect_identical(rownames(limits), c(names(coef(fit)), names(fit$vcomp)))
  expect_equal(limits[names(coef(fit)), 2],
               coef(fit) + qt(0.975, fit$df[1:6]) * sqrt(diag(vcov(fit))))
  expect_identical(rownames(confint(fit, "theta_", level = 0.9)), names(fit$vcomp))
  expect_identical(colnames(confint(fit, level = 0.9)), c("5 %", "95 %"))
  expect_error(confint(fit, "nothing"), class = "ctmm_CTMMError")
  expect_equal(as.numeric(formula(fit)[[3]][[1]] == as.name("+")), 1)
  expect_identical(deparse1(formula(fit)), "expr ~ celltype + sex + PC1 + (1 | batch)")
  expect_identical(deparse1(formula(fit, fixed.only = TRUE)), "expr ~ celltype + sex + PC1")
  expect_equal(weights(fit), setNames(1 / pseudobulk$nu, 1:275))
  # the table of Python is that of R's own distributions
  expect_equal(as.matrix(fit$table[c("estimate", "std_error", "statistic", "p_value")]),
               rbind(table, summary(fit)$varcomp), ignore_attr = TRUE, tolerance = 1e-12)
})

test_that("likelihood, AIC and BIC count as documented", {
  need_python()
  fit <- example_fit()
  value <- logLik(fit)
  expect_identical(attr(value, "df"), 12L)
  expect_equal(AIC(fit), -2 * as.numeric(value) + 24)
  expect_equal(BIC(fit), -2 * as.numeric(value) + 12 * log(275 - 6))
  ml <- update(fit, method = "ml")
  expect_equal(BIC(ml), -2 * as.numeric(logLik(ml)) + 12 * log(275))
  expect_equal(extractAIC(ml), c(12, AIC(ml)))
  expect_error(extractAIC(fit), "method = \"ml\"")
  # the restricted likelihood does not depend on the coding of the fixed part
  expect_equal(as.numeric(logLik(update(fit, . ~ . - 1))), as.numeric(value), tolerance = 1e-9)
})

test_that("update changes what it is told and drop1 and step follow it", {
  need_python()
  fit <- example_fit()
  less <- update(fit, . ~ . - sex)
  expect_identical(deparse1(formula(less)), "expr ~ celltype + PC1 + (1 | batch)")
  inside <- ctmm(expr ~ celltype + sex + (1 | batch), data = pseudobulk, method = "reml")
  more <- update(inside, . ~ . + PC1)
  expect_equal(as.numeric(logLik(more)), as.numeric(logLik(fit)), tolerance = 1e-9)
  expect_identical(update(fit, structure = "hom")$structure, "hom")
  expect_true(is.call(update(fit, structure = "hom", evaluate = FALSE)))
  ml <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = pseudobulk, method = "ml")
  table <- suppressWarnings(drop1(ml))  # without means of the cell types
  expect_equal(table["sex", "AIC"], AIC(update(ml, . ~ . - sex)), tolerance = 1e-6)
  table <- add1(ml, ~ . + PC2 + PC3)
  expect_identical(rownames(table), c("<none>", "PC2", "PC3"))
  expect_equal(table["PC2", "AIC"], AIC(update(ml, . ~ . + PC2)), tolerance = 1e-6)
  chosen <- suppressWarnings(step(ml, trace = 0))
  expect_true("celltype" %in% attr(terms(chosen), "term.labels"))
})

test_that("a fit that a function made is updated where it was made, with what is here", {
  need_python()
  make <- function(table, low)
    ctmm(expr ~ celltype + sex, data = table, subset = PC1 > low, method = "reml")
  fit <- make(pseudobulk, -1)
  same <- ctmm(expr ~ celltype, data = pseudobulk, subset = PC1 > -1, structure = "hom", method = "reml")
  expect_equal(update(make(pseudobulk, -1), . ~ . - sex, structure = "hom")$vcomp, same$vcomp)
  by_call <- do.call(ctmm, list(expr ~ celltype, data = pseudobulk, random = ~ batch, method = "reml"))
  expect_identical(names(update(by_call, random = NULL)$vcomp), names(fit$vcomp))
  formulas <- lapply(c("PC1", "PC2"), function(name) reformulate(c("celltype", name), "expr"))
  fits <- lapply(formulas, ctmm, data = pseudobulk, method = "reml")
  expect_equal(as.numeric(logLik(fits[[2]])),
               as.numeric(logLik(ctmm(expr ~ celltype + PC2, data = pseudobulk, method = "reml"))))
})

test_that("anova compares nested fits in any order and refuses the others", {
  need_python()
  free <- example_fit()
  hom <- update(free, structure = "hom")
  iid <- update(free, structure = "iid")
  table <- anova(free, hom, iid)
  expect_s3_class(table, "anova")
  expect_identical(rownames(table), c("hom", "iid", "free"))
  expect_equal(table$Chisq[2:3], 2 * diff(c(logLik(hom), logLik(iid), logLik(free))),
               tolerance = 1e-10)
  expect_equal(table[["Pr(>Chisq)"]][2:3], pchisq(table$Chisq[2:3], c(1, 3), lower.tail = FALSE))
  expect_equal(table$AIC, c(AIC(hom), AIC(iid), AIC(free)))
  expect_output(print(table), "free: expr ~ celltype")
  refused <- function(text, ...) expect_error(anova(...), text, class = "ctmm_CTMMError")
  refused("different fixed parts", free, update(hom, . ~ . - sex))
  refused("same method", free, update(hom, method = "ml"))
  refused("different data", free, update(hom, subset = donor != "donor01"))
  refused("no likelihood", free, update(hom, method = "he"))
  refused("lacks the random effect batch", hom, update(free, structure = "full", random = NULL))
  refused("compares fits of ctmm", free, 1)
})

test_that("anova of one fit is sequential and ends at the Wald test of the last term", {
  need_python()
  fit <- example_fit()
  table <- anova(fit)
  expect_identical(rownames(table), c("celltype", "sex", "PC1"))
  expect_equal(table["PC1", "F value"], coef(summary(fit))["PC1", "t value"]^2, tolerance = 1e-9)
})

test_that("VarCorr has variances, standard deviations and correlations", {
  need_python()
  fit <- example_fit()
  vc <- VarCorr(fit)
  expect_identical(names(vc), c("donor", "batch"))
  A <- unclass(vc$donor)
  expect_equal(A[2, 1], fit$vcomp[["hom"]])
  expect_equal(A[4, 4], fit$vcomp[["hom"]] + fit$vcomp[["V[day3]"]])
  expect_equal(attr(vc$donor, "stddev"), sqrt(diag(A)), ignore_attr = TRUE)
  expect_equal(attr(vc$donor, "correlation"), cov2cor(fit$A), tolerance = 1e-12)
  table <- as.data.frame(vc)
  expect_identical(names(table), c("grp", "var1", "var2", "vcov", "sdcor"))
  expect_identical(nrow(table), 11L)
  expect_equal(table$sdcor[table$grp == "batch"], sqrt(fit$vcomp[["batch"]]))
  expect_output(print(vc), "donor +day0 +0.3349 +0.5787")
  # a negative variance has no standard deviation
  negative <- fit
  negative$A[1, 1] <- -0.1
  expect_true(is.na(attr(VarCorr(negative)$donor, "stddev")[1]))
})

test_that("predicted effects add up to the fitted values", {
  need_python()
  fit <- example_fit()
  effects <- ranef(fit)
  d <- pseudobulk
  sum <- predict(fit, re.form = NA) + effects$donor[as.character(d$donor), "(Intercept)"] +
    as.matrix(effects$donor)[cbind(as.character(d$donor), as.character(d$celltype))] +
    effects$batch[as.character(d$batch), 1]
  expect_equal(unname(sum), unname(fitted(fit)), tolerance = 1e-10)
  expect_equal(predict(fit, d), fitted(fit), tolerance = 1e-10)
  expect_equal(residuals(fit), setNames(d$expr, 1:275) - fitted(fit))
  expect_equal(residuals(fit, "pearson"), residuals(fit) / sqrt(d$nu))
  expect_equal(fitted(fit, re.form = NA), predict(fit, re.form = NA))
  long <- as.data.frame(effects)
  expect_identical(names(long), c("grpvar", "term", "grp", "condval", "condsd"))
  expect_identical(nrow(long), 72L * 5L + 24L)
  expect_true(all(long$condsd > 0))
  parts <- lapply(list(~ (1 | batch), "shared", c("shared", "specific"), ~ (1 | donor)),
                  function(form) predict(fit, re.form = form))
  expect_equal(unname(parts[[1]] - predict(fit, re.form = NA)),
               effects$batch[as.character(d$batch), 1], tolerance = 1e-10)
  expect_equal(parts[[3]], parts[[4]])
  expect_error(predict(fit, re.form = ~ (1 | site)), "no random effect 'site'")
  expect_error(predict(fit, re.form = "nothing"), class = "ctmm_CTMMError")
})

test_that("predictions for new donors, levels and missing values follow lme4", {
  need_python()
  fit <- example_fit()
  new <- pseudobulk[c(1, 50), ]
  levels(new$donor)[1] <- "stranger"
  expect_error(predict(fit, new), "levels the fit has not seen: 'stranger'", class = "ctmm_DataError")
  allowed <- predict(fit, new, allow.new.levels = TRUE)
  expect_equal(allowed[[1]], predict(fit, new, re.form = ~ (1 | batch))[[1]])
  expect_equal(allowed[[2]], fitted(fit)[[50]])
  new <- data.frame(celltype = "day1", sex = c("F", "M"), PC1 = c(0, NA))
  at <- predict(fit, new, re.form = NA)
  expect_identical(unname(is.na(at)), c(FALSE, TRUE))
  expect_equal(at[[1]], sum(coef(fit)[c("(Intercept)", "celltypeday1")]))
  expect_error(predict(fit, new), "no column 'donor'")
  expect_error(predict(fit, transform(new, sex = "X"), re.form = NA), "new level")
  expect_error(predict(fit, new["sex"], re.form = NA), "celltype")
  with_se <- predict(fit, new, re.form = NA, se.fit = TRUE)
  X <- c(1, 1, 0, 0, 0, 0)
  expect_equal(with_se$se.fit[[1]], sqrt(drop(X %*% vcov(fit) %*% X)))
  band <- predict(fit, new[1, ], re.form = NA, interval = "confidence")
  expect_equal(band[1, "upr"], at[[1]] + qt(0.975, with_se$df[1]) * with_se$se.fit[[1]], ignore_attr = TRUE)
  expect_error(predict(fit, se.fit = TRUE), "re.form = NA")
})

test_that("simulate draws from the fitted model and keeps the state of the random numbers", {
  need_python()
  fit <- example_fit()
  set.seed(7)
  before <- .Random.seed
  a <- simulate(fit, 3, seed = 1)
  expect_identical(.Random.seed, before)
  expect_identical(a, simulate(fit, 3, seed = 1))
  expect_identical(dim(a), c(275L, 3L))
  expect_false(is.null(attr(a, "seed")))
  many <- as.matrix(simulate(fit, 2000, seed = 2))
  d <- pseudobulk
  i <- which(d$donor == "donor02")
  S <- fit$A[as.character(d$celltype[i]), as.character(d$celltype[i])] + diag(d$nu[i]) +
    fit$vcomp[["batch"]]
  # 5 standard errors of a covariance of 2000 draws
  expect_lt(max(abs(cov(t(many[i, ])) - S)), 5 * max(S) * sqrt(2 / 2000))
  expect_lt(max(abs(rowMeans(many[i, ]) - predict(fit, re.form = NA)[i])), 5 * sqrt(max(S) / 2000))
  expect_error(simulate(fit, 0), "nsim = must be a whole number", class = "ctmm_CTMMError")
  again <- update(fit, data = transform(pseudobulk, expr = a$sim_1))
  expect_true(again$convergence$converged)
  # a negative variance of a random effect can be drawn from too
  fit$vcomp[["batch"]] <- -0.02
  expect_true(all(is.finite(simulate(fit, 1, seed = 1)$sim_1)))
})

test_that("tests, jackknife and bootstrap speak for themselves", {
  need_python()
  fit <- example_fit()
  jack <- jackknife(fit)
  test <- test_variance(fit, "jackknife")
  expect_s3_class(test, "htest")
  expect_equal(test_variance(fit, jack)$p.value, test$p.value, tolerance = 1e-12)
  expect_output(print(test), "null hypothesis: no cell type-specific variance")
  expect_equal(unname(test$parameter), c(4, 60))
  score <- test_variance(fit, "score")
  expect_error(test_variance(fit, "luck"), "unknown method 'luck': choose from", class = "ctmm_CTMMError")
  expect_error(test_variance(fit, c("score", "lrt")), "must be one name", class = "ctmm_CTMMError")
  expect_named(score$extra$celltype, fit$celltypes)
  expect_equal(c(log(score$p.value), log(score$extra$celltype)), c(score$log.p.value, score$log.extra$celltype),
               tolerance = 1e-10)
  rough <- pseudobulk
  rough$expr <- rough$expr + rep(c(-50, 50, 50), length.out = nrow(rough))
  small <- test_variance(ctmm(expr ~ celltype, data = rough))
  expect_true(small$p.value == 0 && is.finite(small$log.p.value) && all(is.finite(small$log.extra$celltype)))
  shown <- sub(".*p = ([0-9.]+)e(-[0-9]+)$", "\\2", utils::capture.output(print(small))[3L])
  expect_equal(as.numeric(shown), floor(small$log.p.value / log(10)))
  lrt <- test_variance(fit, "lrt")
  expect_equal(lrt$statistic[[1]], anova(update(fit, structure = "hom"), fit)$Chisq[2],
               tolerance = 1e-8)
  expect_equal(test_mean(fit, "model")$p.value, anova(update(fit, . ~ sex + PC1 + celltype))[3, "Pr(>F)"],
               tolerance = 1e-6)
  expect_equal(test_component(fit, "batch")$p.value, summary(fit)$varcomp["batch", 4])
  expect_error(test_component(fit, "site"), "unknown variance component 'site'")
  expect_error(test_component(fit), "name one variance component")
  boot <- test_variance(fit, "bootstrap", n = 19, seed = 3)
  expect_identical(boot$p.value, 1 / 20)
  set.seed(5)
  a <- test_variance(update(fit, structure = "iid"), "bootstrap", n = 9)
  set.seed(5)
  expect_identical(test_variance(update(fit, structure = "iid"), "bootstrap", n = 9), a)

  expect_identical(dim(jack$estimates), c(72L, 12L))
  G <- 72
  centred <- scale(jack$estimates, scale = FALSE)
  expect_equal(vcov(jack), (G - 1) / G * crossprod(centred), tolerance = 1e-10, ignore_attr = TRUE)
  expect_equal(vcov(fit, jack), vcov(jack)[1:6, 1:6])
  expect_equal(vcov(fit, "jackknife"), vcov(fit, jack), tolerance = 1e-10)
  expect_equal(coef(summary(fit, jack))[, 2], sqrt(diag(vcov(jack)))[1:6])
  expect_output(print(jack), "72 refits, none failed")
  expect_output(jackknife(fit, blocks = 6, progress = TRUE), "100%")
  blocks <- jackknife(fit, blocks = 6)
  expect_equal(test_mean(fit, blocks)$parameter[[2]], 3)
  expect_error(vcov(update(fit, structure = "hom"), jack), "another fit")
  expect_error(test_mean(update(fit, structure = "hom"), jack), "another fit")
  expect_error(jackknife(fit, blocks = 2.5), "whole number")

  whole <- bootstrap(fit, 12, seed = 4)
  expect_output(pieces <- bootstrap(fit, 12, seed = 4, progress = TRUE), "100%")
  expect_equal(pieces, whole)
  expect_identical(dim(confint(whole)), c(12L, 2L))
  expect_output(print(whole), "12 refits, none failed")
})

test_that("moments have a jackknife and no likelihood", {
  need_python()
  he <- update(example_fit(), method = "he")
  expect_error(logLik(he), "no likelihood", class = "ctmm_ConvergenceError")
  expect_true(is.na(glance(he)$AIC))
  expect_identical(c(glance(he)$bounds, glance(example_fit())$bounds), c("none", "noise"))
  expect_equal(vcov(he), vcov(he, jackknife(he)), tolerance = 1e-10)
  expect_output(print(summary(he)), "Standard errors: jackknife")
  expect_true(is.nan(test_variance(he, "lrt")$p.value))
  expect_match(test_variance(he, "lrt")$note, "HE has no likelihood")
  expect_equal(fitted(he), predict(he))
})

test_that("fixed effects by REML have degrees of freedom of their own", {
  need_python()
  fit <- example_fit()
  L <- rbind(diag(6)[2, ], c(0, 1, -1, 0, 0, 0))
  colnames(L) <- names(coef(fit))
  own <- ctmmFormula:::linear_of(fit, L, ctmmFormula:::errors_of(fit))
  expect_equal(own$df[[1]], fit$df[[2]], tolerance = 1e-10)
  asked <- ctmmFormula:::ask("linear", list(fit = ctmmFormula:::stored(fit),
                                            L = ctmmFormula:::f8(unname(L)), joint = FALSE))
  expect_equal(own$df, ctmmFormula:::array_in(asked$df), tolerance = 1e-10)

  adjusted <- coef(summary(fit, "kenward-roger"))
  plain <- coef(summary(fit))
  expect_true(all(adjusted[, "Std. Error"] > plain[, "Std. Error"]))
  expect_equal(unname(adjusted[, 4]), unname(2 * pt(-abs(adjusted[, 3]), fit$df[1:6])),
               tolerance = 1e-8)
  expect_equal(unname(sqrt(diag(vcov(fit, "kenward-roger")))), unname(adjusted[, 2]))
  means <- celltype_means(fit, covariance = "kenward-roger")
  expect_true(all(means$std.error > celltype_means(fit)$std.error))
  expect_match(test_mean(fit, "kenward-roger")$method, "wald \\(kenward-roger\\)")
  expect_output(print(summary(fit, "kenward-roger")), "Kenward and Roger")
  expect_error(vcov(update(fit, method = "ml"), "kenward-roger"), "adjusts fits by REML")
})

test_that("robust fits have errors of their own", {
  need_python()
  fit <- update(example_fit(), method = "robust")
  df <- fit$df[seq_along(coef(fit))]
  table <- coef(summary(fit))
  expect_equal(unname(sqrt(diag(vcov(fit)))), unname(table[, "Std. Error"]))
  expect_equal(unname(table[, 4]), unname(2 * pt(-abs(table[, "t value"]), df)), tolerance = 1e-10)
  expect_equal(unname(rbind(table, `colnames<-`(summary(fit)$varcomp, colnames(table)))[, 4]),
               fit$table$p_value, tolerance = 1e-10)
  expect_equal(unname(confint(fit)), unname(as.matrix(fit$table[c("conf_low", "conf_high")])),
               tolerance = 1e-10)
  expect_true(length(unique(df)) > 1L && all(fit$df[-seq_along(df)] == df.residual(fit)))
  expect_identical(df.residual(fit), 23L)
  expect_equal(vcov(fit), vcov(fit, "robust"))
  expect_error(vcov(example_fit(), "robust"), "another estimate than that by 'reml'")

  test <- test_mean(fit)
  expect_match(test$method, "wald \\(robust\\)")
  expect_equal(test$p.value, test_mean(fit, "robust")$p.value)
  expect_match(test_mean(fit, "jackknife")$method, "24 blocks")
  terms <- anova(fit)
  expect_equal(terms["PC1", "Pr(>F)"], coef(summary(fit))["PC1", 4], tolerance = 1e-8)
  means <- celltype_means(fit)
  new <- data.frame(celltype = c("day0", "day3"), sex = "F", PC1 = 0)
  own <- predict(fit, new, re.form = NA, se.fit = TRUE)
  expect_equal(own$se.fit[[1]], table["(Intercept)", "Std. Error"])
  expect_equal(own$df[[1]], df[[1]])
  expect_true(all(means$conf.low < means$estimate))
  expect_output(print(summary(fit)), "Satterthwaite")
  expect_output(print(fit), "fit by robust moments")
  expect_output(print(summary(fit)), "not quite estimate / error")
  expect_identical(glance(fit)$bounds, "none")
  expect_match(test_variance(fit, "lrt")$note, "method='robust' has no likelihood")
  expect_equal(nrow(vcov(fit, jackknife(fit), full = TRUE)), 12L)
  expect_lt(test_component(fit, "hom")$p.value, 0.05)
})

test_that("broom's verbs give its columns", {
  need_python()
  fit <- example_fit()
  table <- tidy(fit, conf.int = TRUE)
  expect_identical(names(table), c("effect", "group", "term", "estimate", "std.error", "statistic",
                                   "p.value", "conf.low", "conf.high"))
  expect_identical(table$group[7:12], c(rep("donor", 5), "batch"))
  sd <- tidy(fit, "ran_pars", scales = "sdcor")
  expect_identical(sd$term[c(1, 5)], c("sd__day0", "cor__day0.day1"))
  expect_identical(nrow(tidy(fit, "ran_vals", conf.int = TRUE)), 72L * 5L + 24L)
  expect_error(tidy(fit, "random"), class = "ctmm_CTMMError")
  expect_identical(nrow(glance(fit)), 1L)
  expect_equal(glance(fit)$logLik, as.numeric(logLik(fit)))
  full <- augment(fit, pseudobulk)
  expect_identical(names(full), c(names(pseudobulk), ".fitted", ".resid", ".fixed"))
  expect_equal(full$.fitted + full$.resid, pseudobulk$expr, ignore_attr = TRUE)
  expect_true(all(c("expr", ".donor", ".batch") %in% names(augment(fit))))
})

test_that("means and shares are those of the model matrix", {
  need_python()
  fit <- example_fit()
  means <- celltype_means(fit)
  at <- data.frame(celltype = fit$celltypes, sex = rep(c("F", "M"), each = 4),
                   PC1 = mean(pseudobulk$PC1))
  by_sex <- matrix(predict(fit, at, re.form = NA), 4)
  share <- mean(pseudobulk$sex == "M")
  expect_equal(means$estimate, drop(by_sex %*% c(1 - share, share)), tolerance = 1e-10)
  shares <- variance_explained(fit)
  expect_equal(sum(shares$share[shares$component != "total"]), 1)
  expect_equal(icc(fit)$donor, unname(diag(fit$A)))
  expect_error(icc(lm(expr ~ sex, pseudobulk)), class = "ctmm_CTMMError")
})

test_that("pictures are drawn", {
  need_python()
  pdf(NULL)
  on.exit(dev.off())
  for (which in c("variance", "means", "residuals", "ranef"))
    expect_invisible(plot(example_fit(), which))
  expect_invisible(plot(overall_fit(), "ranef"))
})

test_that("the method is robust by default where numbers of cells are known", {
  fit <- ctmm(expr ~ celltype, data = pseudobulk)
  expect_identical(fit$method, "robust")
  expect_match(fit$notes[1L], "robust by default, as there are numbers of cells")
  expect_error(AIC(fit), "fit by method = \"reml\"", class = "ctmm_ConvergenceError")
  uncounted <- pseudobulk[setdiff(names(pseudobulk), "n_cells")]
  plain <- suppressWarnings(ctmm(expr ~ celltype, data = uncounted))
  expect_identical(plain$method, "reml")
  expect_match(plain$notes[1L], "reml by default, as there are no numbers of cells")
  expect_identical(test_mean(ctmm(expr ~ celltype, data = pseudobulk, method = "reml"))$p.value,
                   test_mean(fit)$p.value)
})
