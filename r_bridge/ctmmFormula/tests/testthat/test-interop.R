# What other packages do with a fit, through their own functions.

test_that("car tests terms and linear hypotheses", {
  need_python()
  need("car")
  fit <- example_fit()
  table <- car::Anova(fit, test.statistic = "F")
  expect_equal(table["PC1", "F"], coef(summary(fit))["PC1", "t value"]^2, tolerance = 1e-9)
  one <- car::linearHypothesis(fit, c("celltypeday1 = 0", "celltypeday2 = 0", "celltypeday3 = 0"),
                               test = "F")
  expect_equal(one[2, "F"], test_mean(fit, "model")$statistic[[1]], tolerance = 1e-9)
  expect_equal(one[2, "Res.Df"], 60)
})

test_that("lmtest tests coefficients and nested models", {
  need_python()
  need("lmtest")
  fit <- example_fit()
  # coeftest takes one df.residual() for all
  expect_equal(unclass(lmtest::coeftest(fit))[, 1:3], coef(summary(fit))[, 1:3], ignore_attr = TRUE,
               tolerance = 1e-10)
  ml <- update(fit, method = "ml")
  small <- update(ml, structure = "hom")
  expect_equal(lmtest::lrtest(small, ml)[2, "Chisq"], anova(small, ml)$Chisq[2], tolerance = 1e-9)
  expect_equal(lmtest::waldtest(ml, "sex")[2, "Chisq"], coef(summary(ml))["sexM", "t value"]^2,
               tolerance = 1e-9)
})

test_that("emmeans makes marginal means, pairs and trends", {
  need_python()
  need("emmeans")
  fit <- example_fit()
  means <- as.data.frame(emmeans::emmeans(fit, "celltype", weights = "proportional"))
  own <- ctmmFormula:::linear_of(fit, fit$mean_rows, ctmmFormula:::errors_of(fit))
  expect_equal(means$df, own$df, tolerance = 1e-8)
  at <- data.frame(celltype = fit$celltypes, sex = rep(c("F", "M"), each = 4),
                   PC1 = mean(pseudobulk$PC1))
  by_sex <- matrix(predict(fit, at, re.form = NA), 4)
  flat <- as.data.frame(emmeans::emmeans(fit, "celltype"))
  expect_equal(flat$emmean, rowMeans(by_sex), tolerance = 1e-10)
  pairs <- as.data.frame(pairs(emmeans::emmeans(fit, "celltype"), adjust = "none"))
  row <- pairs[pairs$contrast == "day0 - day1", ]
  expect_equal(row$estimate, -coef(fit)[["celltypeday1"]], tolerance = 1e-10)
  expect_equal(row$SE, sqrt(vcov(fit)["celltypeday1", "celltypeday1"]), tolerance = 1e-10)
  slope <- as.data.frame(emmeans::emtrends(fit, ~ 1, var = "PC1"))
  expect_equal(slope$PC1.trend, coef(fit)[["PC1"]], tolerance = 1e-6)
  # what cannot be estimated is not
  d <- subset(pseudobulk, !(celltype == "day3" & sex == "M"))
  short <- suppressMessages(ctmm(expr ~ celltype * sex, data = d, singular.ok = TRUE, method = "reml"))
  cells <- as.data.frame(emmeans::emmeans(short, ~ celltype * sex))
  expect_identical(which(is.na(cells$emmean)), which(cells$celltype == "day3" & cells$sex == "M"))
})

test_that("broom finds the methods", {
  need_python()
  need("broom")
  expect_identical(broom::tidy(example_fit()), tidy(example_fit()))
  expect_identical(broom::glance(example_fit()), glance(example_fit()))
})

test_that("generics of lme4 work where it is loaded", {
  need_python()
  need("lme4")
  fit <- example_fit()
  expect_true(lme4::isREML(fit))
  expect_false(lme4::isREML(update(fit, method = "ml")))
  again <- lme4::refit(fit, 2 * pseudobulk$expr)
  direct <- update(fit, data = transform(pseudobulk, expr = 2 * expr))
  expect_equal(again$vcomp, direct$vcomp, tolerance = 1e-10)
  expect_equal(fitted(again), fitted(direct), tolerance = 1e-10)
  expect_equal(logLik(again), logLik(direct), tolerance = 1e-10)
  expect_identical(lme4::fixef(fit), coef(fit))
  expect_error(lme4::refit(fit, 1:3), "275 numbers")
  holes <- replace(pseudobulk$expr, 7, NA)
  expect_error(lme4::refit(fit, holes), "275 numbers")
  short <- update(fit, data = transform(pseudobulk, expr = holes))
  expect_equal(lme4::refit(short, pseudobulk$expr)$vcomp, short$vcomp, tolerance = 1e-12)
})
