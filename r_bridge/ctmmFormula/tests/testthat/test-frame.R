# The model matrix is that of model.matrix, and predict() follows the rules of lm.

EXACT <- 1e-10  # relative: the same matrix times the same numbers

# The example with columns of every kind that formulas meet.
wide <- function() {
  d <- pseudobulk
  donor <- as.integer(d$donor)
  d$age <- 20 + (donor * 7) %% 50
  d$smoker <- donor %% 4 == 0
  d$site <- c("Leeds", "Oslo", "Pisa")[donor %% 3 + 1]
  d$dose <- factor(c("low", "mid", "high")[(donor %/% 2) %% 3 + 1], c("low", "mid", "high"),
                   ordered = TRUE)
  d$visit <- as.Date("2024-01-01") + donor
  d$ancestry <- cbind(a = sin(donor), b = cos(donor))
  d$odd <- factor(c("z", "a", "m")[donor %% 3 + 1], levels = c("unused", "z", "m", "a"))
  d[["body mass"]] <- 18 + (donor * 5) %% 17
  d$positive <- d$expr + 10
  d
}

FORMULAS <- list(
  expr ~ celltype,
  expr ~ 0 + celltype,
  expr ~ celltype - 1 + sex,
  expr ~ celltype + sex + PC1,
  expr ~ celltype * sex,
  expr ~ 0 + celltype:sex + PC1,
  expr ~ sex / celltype,
  expr ~ celltype + sex %in% celltype,
  expr ~ (celltype + sex + PC1)^2,
  expr ~ celltype * sex - celltype:sex,
  expr ~ celltype + poly(PC1, 2),
  expr ~ celltype + poly(age, 3, raw = TRUE),
  expr ~ celltype + I(PC1^2),
  expr ~ celltype + I(PC1 / 10) * sex,
  expr ~ celltype + splines::ns(age, df = 3),
  expr ~ celltype + splines::ns(age, knots = c(30, 50)),
  expr ~ celltype + splines::bs(age, degree = 2, knots = 40),
  expr ~ celltype + scale(PC1) + scale(PC2, scale = FALSE),
  expr ~ celltype + log(age) + sqrt(abs(PC2)) + exp(PC3 / 100),
  expr ~ celltype + cut(age, c(0, 35, 50, 80)),
  expr ~ celltype + factor(age > 40),
  expr ~ celltype + ifelse(PC1 > 0, 1, 0),
  expr ~ celltype + smoker,
  expr ~ celltype + site,
  expr ~ celltype + dose,
  expr ~ celltype + C(dose, contr.treatment),
  expr ~ C(celltype, contr.sum) + sex,
  expr ~ C(celltype, contr.helmert) * PC1,
  expr ~ relevel(celltype, ref = "day3") + sex,
  expr ~ celltype + visit,
  expr ~ celltype + ancestry,
  expr ~ celltype + odd,
  expr ~ celltype + `body mass` + I(`body mass`^2),
  log(positive) ~ celltype + offset(PC1 / 100) + sex,
  expr ~ celltype + interaction(sex, smoker),
  expr ~ celltype + age + I(age * smoker) + site:age,
  celltype == "day0" ~ celltype
)

# What lm would predict with these coefficients.
by_lm <- function(formula, data, beta, newdata, ...) {
  model <- lm(formula, data, ...)
  model$coefficients[] <- beta
  suppressWarnings(predict(model, newdata))
}

same <- function(a, b) expect_equal(unname(a), unname(b), tolerance = EXACT)

test_that("36 formulas make the matrix of model.matrix and predict as lm does", {
  need_python()
  d <- wide()
  new <- d[c(3, 50, 120, 7, 200), ]
  new$PC1[2] <- NA
  new$age[3] <- new$age[3] + 1.5
  for (formula in FORMULAS[-length(FORMULAS)]) {
    label <- deparse1(formula)
    fit <- suppressWarnings(ctmm(formula, data = d, structure = "hom", method = "reml"))
    expected <- model.matrix(lm(formula, d))
    expect_identical(dimnames(model.matrix(fit)), dimnames(expected), label = label)
    expect_equal(model.matrix(fit), expected, ignore_attr = TRUE, label = label)
    expect_identical(attr(model.matrix(fit), "assign"), attr(expected, "assign"), label = label)
    # lm warns as well where a contrast of C() meets new data
    expect_equal(suppressWarnings(predict(fit, new, re.form = NA)),
                 by_lm(formula, d, coef(fit), new), tolerance = EXACT, label = label)
    expect_equal(predict(fit, re.form = NA), by_lm(formula, d, coef(fit), d), tolerance = EXACT,
                 label = label)
  }
  expect_error(ctmm(FORMULAS[[length(FORMULAS)]], data = d, method = "reml"), "must be one column of numbers",
               class = "ctmm_DataError")
})

test_that("contrasts set in three ways are those of lm", {
  need_python()
  d <- wide()
  by_argument <- list(celltype = "contr.sum")
  fit <- ctmm(expr ~ celltype + sex, data = d, contrasts = by_argument, method = "reml")
  same(model.matrix(fit), model.matrix(lm(expr ~ celltype + sex, d, contrasts = by_argument)))
  reference <- fit
  contrasts(d$celltype) <- contr.sum(4)
  fit <- ctmm(expr ~ celltype + sex, data = d, method = "reml")
  expect_equal(model.matrix(fit), model.matrix(reference), ignore_attr = TRUE)
  # lm warns here as well
  expect_warning(new <- predict(fit, d[5:9, ], re.form = NA), "contrasts dropped from factor")
  same(new, predict(reference, pseudobulk[5:9, ], re.form = NA))
  d <- wide()
  old <- options(contrasts = c("contr.helmert", "contr.poly"))
  on.exit(options(old))
  fit <- ctmm(expr ~ celltype + sex, data = d, method = "reml")
  expected <- model.matrix(lm(expr ~ celltype + sex, d))
  options(old)
  same(model.matrix(fit), expected)
  # what was fitted under other options is predicted as it was fitted
  same(predict(fit, d, re.form = NA), drop(expected %*% coef(fit)))
  # the fit does not depend on the coding
  same(as.numeric(logLik(fit)), as.numeric(logLik(reference)))
  same(celltype_means(fit)$estimate, celltype_means(reference)$estimate)
})

test_that("subset, na.action and offset work as in lm", {
  need_python()
  d <- wide()
  fit <- ctmm(expr ~ celltype + sex, data = d, subset = age > 30, method = "reml")
  expect_identical(nobs(fit), sum(d$age > 30))
  same(model.matrix(fit), model.matrix(lm(expr ~ celltype + sex, d, subset = age > 30)))
  unsure <- ctmm(expr ~ celltype + sex, data = d, subset = ifelse(age > 30, TRUE, NA), method = "reml")
  expect_equal(unsure$vcomp, fit$vcomp)
  expect_match(unsure$notes, sprintf("%d rows dropped: missing subset", sum(d$age <= 30)), all = FALSE)
  few <- c("day1", "day3")
  fit <- ctmm(expr ~ celltype, data = d, subset = celltype %in% few, method = "reml")
  expect_identical(fit$celltypes, few)

  d$PC1[c(4, 9)] <- NA
  d$nu[20] <- NA
  omit <- ctmm(expr ~ celltype + PC1, data = d, method = "reml")
  exclude <- ctmm(expr ~ celltype + PC1, data = d, na.action = na.exclude, method = "reml")
  expect_identical(nobs(omit), nrow(d) - 3L)
  expect_length(residuals(omit), nrow(d) - 3L)
  expect_length(residuals(exclude), nrow(d))
  expect_identical(unname(which(is.na(fitted(exclude)))), c(4L, 9L, 20L))
  same(c(na.omit(residuals(exclude))), residuals(omit))
  expect_match(omit$notes, "3 rows dropped: missing PC1 (2), nu (1)", fixed = TRUE, all = FALSE)
  expect_error(ctmm(expr ~ celltype + PC1, data = d, na.action = na.fail, method = "reml"), "missing values")
  expect_error(ctmm(expr ~ celltype + PC1, data = d, na.action = na.pass, method = "reml"), "not finite in row 4")

  d <- wide()
  half <- ctmm(expr ~ celltype, data = d, offset = PC1 / 50, method = "reml")
  inside <- ctmm(expr ~ celltype + offset(PC1 / 50), data = d, method = "reml")
  moved <- ctmm(I(expr - PC1 / 50) ~ celltype, data = d, method = "reml")
  same(coef(half), coef(moved))
  same(coef(inside), coef(moved))
  same(fitted(half), fitted(moved) + d$PC1 / 50)
  same(residuals(half), residuals(moved))
  same(predict(half, d[1:9, ], re.form = NA), predict(inside, d[1:9, ], re.form = NA))
  new <- transform(d[1:9, ], celltype = replace(celltype, 4, NA))
  same(predict(half, new, re.form = NA, na.action = na.omit), predict(half, re.form = NA)[c(1:3, 5:9)])
  outside <- d$PC1 / 50
  half <- ctmm(expr ~ celltype, data = d, offset = outside, method = "reml")
  same(coef(half), coef(moved))
  expect_error(predict(half, d[1:9, ], re.form = NA), "newdata has no column 'outside'", class = "ctmm_DataError")
})

test_that("functions and values of the caller are found where the formula was written", {
  need_python()
  made <- local({
    halve <- function(x) x / 2
    knots <- c(-5, 5)
    ctmm(expr ~ celltype + halve(PC1) + splines::ns(PC2, knots = knots), data = pseudobulk, method = "reml")
  })
  expect_true("halve(PC1)" %in% names(coef(made)))
  new <- pseudobulk[1:5, ]
  same(predict(made, new, re.form = NA), predict(made, re.form = NA)[1:5])
})

test_that("a dot stands for the covariates, not for donors, noise or numbers of cells", {
  need_python()
  d <- pseudobulk[c("donor", "celltype", "batch", "sex", "PC1", "n_cells", "expr", "nu")]
  fit <- ctmm(expr ~ ., random = ~ batch, data = d, method = "reml")
  expect_setequal(attr(terms(fit), "term.labels"), c("celltype", "sex", "PC1"))
  same(as.numeric(logLik(fit)), as.numeric(logLik(example_fit())))
})

test_that("tables of any kind and factors of any order give the same fit", {
  need_python()
  like <- function(data, ...) {
    fit <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = data, ..., method = "reml")
    same(as.numeric(logLik(fit)), as.numeric(logLik(example_fit())))
    same(fit$vcomp, example_fit()$vcomp)
    same(predict(fit), predict(example_fit()))
    fit
  }
  like(as.list(pseudobulk))
  d <- pseudobulk
  rownames(d) <- paste0("sample ", seq_len(nrow(d)))
  expect_identical(names(fitted(like(d))), rownames(d))
  for (name in c("donor", "celltype", "batch", "sex")) d[[name]] <- as.character(d[[name]])
  like(d)
  d <- pseudobulk
  d$donor <- factor(d$donor, rev(c("nobody", levels(d$donor))))
  d$batch <- as.integer(d$batch)
  like(d)
  d$donor <- as.numeric(d$donor) + 0.5
  like(d)
  need("tibble")
  need("dplyr")
  like(tibble::as_tibble(pseudobulk))
  like(dplyr::group_by(pseudobulk, donor))
  d <- pseudobulk
  d$celltype <- factor(d$celltype, rev(levels(d$celltype)))
  fit <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = d, method = "reml")
  expect_identical(names(fit$vcomp), c("hom", paste0("V[day", 3:0, "]"), "batch"))
  expect_equal(fit$vcomp[names(example_fit()$vcomp)], example_fit()$vcomp, tolerance = 1e-6)
})

test_that("columns are named by arguments, by ctmm_data, or by their usual names", {
  need_python()
  d <- pseudobulk
  names(d)[match(c("donor", "celltype", "nu", "n_cells"), names(d))] <- c("id", "cell", "v", "count")
  by_name <- ctmm(expr ~ cell + sex + PC1, random = ~ batch, data = d, donor = "id",
                  celltype = "cell", noise = "v", n_cells = "count", method = "reml")
  same(logLik(by_name), logLik(example_fit()))
  same(variance_explained(by_name)$share, variance_explained(example_fit())$share)
  noted <- ctmm_data(d, "id", "cell", "v", n_cells = "count")
  same(logLik(ctmm(expr ~ cell + sex + PC1, random = ~ batch, data = noted, method = "reml")), logLik(by_name))
  # the one factor that with the donor identifies the rows
  found <- ctmm(expr ~ cell + sex + PC1, random = ~ batch, data = d, donor = "id", noise = "v", method = "reml")
  expect_identical(found$roles$celltype, "cell")
  expect_error(ctmm_data(d, "nobody"), "no column 'nobody' of donors", class = "ctmm_DataError")
})

test_that("random effects are read alike wherever they stand", {
  need_python()
  d <- pseudobulk
  d$site <- factor(as.integer(d$batch) %% 5)
  d$pool <- factor(as.integer(d$batch) %/% 5)  # numbered anew in every site
  fit <- function(formula, random = NULL) {
    suppressWarnings(ctmm(formula, random = random, data = d, structure = "hom", method = "reml"))
  }
  expected <- fit(expr ~ celltype, ~ batch)
  for (random in list("batch", "~ batch", "(1 | batch)", ~ 1 | batch, ~ (1 | batch),
                      list(batch = "1"), list(~ batch)))
    same(fit(expr ~ celltype, random)$vcomp, expected$vcomp)
  same(fit(expr ~ (1 | batch) + celltype)$vcomp, expected$vcomp)
  same(fit(expr ~ (celltype + (1 | batch)))$vcomp, expected$vcomp)
  both <- fit(expr ~ celltype + (1 | batch), ~ site)
  expect_identical(both$random_names, c("batch", "site"))
  nested <- fit(expr ~ celltype + (1 | site / pool))
  expect_identical(nested$random_names, c("site", "site:pool"))
  same(fit(expr ~ celltype, ~ site + site:pool)$vcomp, nested$vcomp)
  own <- fit(expr ~ celltype + (celltype | batch))
  expect_identical(own$random_names, paste0("batch[day", 0:3, "]"))
  same(fit(expr ~ celltype, list(batch = "celltype"))$vcomp, own$vcomp)
  # a bar inside a function is R's own
  expect_length(fit(expr ~ celltype + I(PC1 > 0 | sex == "M"))$random_names, 0)

  refused <- function(formula, text, random = NULL)
    expect_error(fit(formula, random), text, fixed = TRUE, class = "ctmm_FormulaError")
  refused(expr ~ celltype + (1 || batch), "write one bar")
  refused(expr ~ celltype - (1 | batch), "neither subtracted nor crossed")
  refused(expr ~ celltype:(1 | batch), "neither subtracted nor crossed")
  refused(expr ~ celltype + 1 | batch, "a summand in parentheses")
  refused(expr ~ celltype + (1 | batch), "is given twice", ~ batch)
  refused(expr ~ celltype + (PC1 | batch), "left of the |")
  refused(expr ~ celltype + (0 + celltype | batch), "left of the |")
  refused(expr ~ celltype + (1 | log(PC1)), "random effects are columns")
  refused(~ celltype, "the formula has no response")
  expect_error(fit(expr ~ celltype, ~ nobody), "no column 'nobody' of the random effect",
               class = "ctmm_DataError")
  expect_error(fit(expr ~ celltype, ~ donor), "the donor's effects are the model itself",
               class = "ctmm_FormulaError")
  expect_error(fit(expr ~ celltype + batch, ~ batch), "is a fixed effect and a random effect",
               class = "ctmm_FormulaError")
})

test_that("a fixed part that is not of full rank is refused, or cut down on request", {
  need_python()
  d <- subset(pseudobulk, !(celltype == "day3" & sex == "M"))
  expect_error(ctmm(expr ~ celltype * sex, data = d, method = "reml"), "'celltypeday3:sexM' \\(is zero in every row",
               class = "ctmm_DataError")
  expect_error(ctmm(expr ~ celltype * sex, data = d, method = "reml"),
               "leave these terms out, or let singular.ok = TRUE drop the columns")
  expect_message(fit <- ctmm(expr ~ celltype * sex, data = d, singular.ok = TRUE, method = "reml"),
                 "dropping 'celltypeday3:sexM'")
  model <- lm(expr ~ celltype * sex, d)
  kept <- names(which(!is.na(coef(model))))
  expect_identical(names(coef(fit)), kept)
  new <- d[c(1, 60, 90), ]
  model$coefficients[kept] <- coef(fit)
  expect_equal(predict(fit, new, re.form = NA), suppressWarnings(predict(model, new)),
               tolerance = EXACT)
})
