# Bad and odd input: the right answer or an error that names column, rows and the fix.

refused <- function(data, text, class = "ctmm_DataError", ..., method = "reml") {
  expect_error(ctmm(expr ~ celltype + sex + PC1, data = data, ..., method = method), text, class = class)
}

test_that("missing values of every type in every column leave their rows out", {
  need_python()
  d <- pseudobulk
  d$expr_i <- as.integer(round(100 * d$expr))
  d$flag <- d$PC2 > 0
  d$day <- as.Date("2024-01-01") + as.integer(d$donor)
  d$text <- as.character(d$sex)
  gone <- c(3L, 40L, 111L)
  formula <- expr ~ celltype + text + PC1 + flag + day
  expected <- ctmm(formula, data = d[-gone, ], random = ~ batch, method = "reml")
  columns <- c("expr", "celltype", "text", "PC1", "flag", "day", "batch", "donor", "nu")
  for (name in columns) {
    holes <- d
    holes[[name]][gone] <- NA
    fit <- ctmm(formula, data = holes, random = ~ batch, method = "reml")
    expect_identical(unname(fit$rows), setdiff(seq_len(nrow(d)), gone), label = name)
    expect_equal(fit$vcomp, expected$vcomp, tolerance = 1e-12, label = name)
    expect_equal(predict(fit), predict(expected), tolerance = 1e-12, label = name)
  }
  # NA of integers, characters, and NaN
  holes <- d
  holes$expr <- holes$expr_i
  holes$expr[gone] <- NA_integer_
  whole <- d[-gone, ]
  whole$expr <- whole$expr_i
  expect_equal(ctmm(expr ~ celltype, data = holes, method = "reml")$vcomp, ctmm(expr ~ celltype, data = whole, method = "reml")$vcomp)
  holes <- transform(d, celltype = as.character(celltype), donor = as.character(donor))
  holes$celltype[gone] <- NA_character_
  holes$PC1[gone] <- NaN
  expect_equal(ctmm(formula, data = holes, random = ~ batch, method = "reml")$vcomp, expected$vcomp)
  # a number of cells that is not known costs no row
  holes <- pseudobulk
  holes$n_cells[gone] <- NA
  fit <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = holes, method = "reml")
  expect_identical(nobs(fit), nrow(pseudobulk))
  expect_match(fit$notes, "'n_cells' is missing in rows 3, 40, 111", all = FALSE)
})

test_that("an NA level of a factor is missing as a label and a level as a covariate", {
  need_python()
  d <- pseudobulk
  d$sex[c(1, 5)] <- NA
  d$sex <- addNA(d$sex)
  fit <- ctmm(expr ~ celltype + sex, data = d, method = "reml")
  expect_equal(model.matrix(fit), model.matrix(lm(expr ~ celltype + sex, d)), ignore_attr = TRUE)
  d <- pseudobulk
  d$donor[1:2] <- NA
  d$donor <- addNA(d$donor)
  refused(d, "column 'donor' \\(donor\\) is missing in row 1, 2")
})

test_that("values that cannot be are named with their rows as R counts them", {
  need_python()
  with <- function(name, rows, value) {
    d <- pseudobulk
    d[[name]][rows] <- value
    d
  }
  refused(with("nu", c(2, 7), c(0, -1)), "'nu' \\(noise variance\\) must be.*row 7, donor")
  # 0 is measured where the cells were counted
  refused(transform(with("nu", c(2, 7), 0), n_cells = NULL), "'nu' .*rows 2, 7, donors")
  refused(with("nu", 9, -1), "row 9")
  refused(with("nu", 9, Inf), "row 9")
  refused(with("expr", 5, Inf), "response 'expr' is inf in row 5")
  refused(with("PC1", 6, -Inf), "'PC1' is not finite in row 6")
  refused(with("n_cells", 4, -2), "number of cells\\) must hold whole numbers of 2 or more.*found -2 in row 4")
  refused(transform(pseudobulk, expr = 1), "is constant")
  refused(transform(pseudobulk, expr = "a"), "one column of numbers, got character")
  refused(transform(pseudobulk, nu = as.character(nu)), "'nu' \\(noise\\) must hold numbers")
  refused(transform(pseudobulk, nu = Sys.Date()), "must hold numbers, got Date")
  refused(transform(pseudobulk, expr = NA_real_), "no row of 275 is complete \\(missing expr: 275\\)")
  refused(transform(pseudobulk, sex = "F"), "'sex' has one level, 'F'")
  refused(pseudobulk[1, ], "one level")
  refused(pseudobulk[1:3, ], "one level")
  refused(pseudobulk[0, ], "no row of 0")
  refused(rbind(pseudobulk, pseudobulk[8, ]), "several rows for one donor and cell type.*rows 8, 276")
  refused(subset(pseudobulk, donor == "donor02"), "one level|one donor")
  refused(pseudobulk[rep(1:275, 20), ], "cells are aggregated by ctmm_pseudobulk\\(\\)")
  d <- pseudobulk
  d$PC2 <- NULL
  d$PC1 <- lapply(d$PC1, identity)
  expect_error(ctmm(expr ~ celltype + PC1, data = d, method = "reml"), "invalid type", class = "ctmm_DataError")
  refused(with("expr", 5, 1e300), "response 'expr' has values up to 1e\\+300: rescale it")
  expect_error(ctmm(expr ~ 0, data = pseudobulk, method = "reml"), "keep at least the intercept",
               class = "ctmm_FormulaError")
})

test_that("large integers and long labels cross whole", {
  need_python()
  d <- pseudobulk
  d$expr <- d$expr * 1e9
  d$nu <- d$nu * 1e18
  d$n_cells <- rep(.Machine$integer.max, nrow(d))
  fit <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = d, method = "reml")
  expect_equal(fit$vcomp / 1e18, example_fit()$vcomp, tolerance = 1e-6)
  expect_equal(fit$shares, example_fit()$shares * c(1e18, 1)[col(fit$shares)], tolerance = 1)
  levels(d$donor) <- paste0("donor \u00e9\u00df\u4e2d 'quoted' ", seq_along(levels(d$donor)))
  fit <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = d, method = "reml")
  expect_identical(rownames(ranef(fit)$donor), levels(d$donor))
})

test_that("dates are labels and 64-bit integers numbers", {
  need_python()
  expected <- example_fit()$vcomp
  d <- pseudobulk
  d$donor <- as.POSIXlt(as.Date("2024-01-01") + as.integer(d$donor))
  expect_s3_class(d$donor, "POSIXlt")
  expect_equal(ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = d, method = "reml")$vcomp, expected)
  d <- pseudobulk
  # what bit64 makes: integers in the bytes of doubles
  whole <- function(x) {
    low <- writeBin(as.integer(x), raw(), endian = "little")
    bytes <- rbind(matrix(low, 4L), matrix(as.raw(0L), 4L, length(x)))
    structure(readBin(as.raw(bytes), "double", length(x), endian = "little"), class = "integer64")
  }
  d$n_cells <- whole(d$n_cells)
  if (isNamespaceLoaded("bit64")) {
    fit <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = d, method = "reml")
    expect_equal(fit$shares, example_fit()$shares)
  } else {
    refused(d, "class integer64")
  }
})

test_that("settings that cannot be are refused with what can be", {
  need_python()
  refused(pseudobulk, "unknown method 'gls': choose from ml, reml, he", "ctmm_CTMMError",
          method = "gls")
  refused(pseudobulk, "unknown structure 'us'", "ctmm_CTMMError", structure = "us")
  refused(pseudobulk, "unknown bounds", "ctmm_CTMMError", bounds = "box")
  refused(pseudobulk, "noise_floor must lie", "ctmm_CTMMError", noise_floor = 2)
  refused(pseudobulk, "noise_floor = must be one number", "ctmm_CTMMError", noise_floor = NULL)
  refused(pseudobulk, "noise_floor = must be one number", "ctmm_CTMMError", noise_floor = c(0.1, 0.2))
  refused(pseudobulk, "bounds = must be one name", "ctmm_CTMMError", bounds = NA)
  refused(pseudobulk, "method = must be one name, got NA", "ctmm_CTMMError", method = NA)
  refused(pseudobulk, "must be 4 x 4", "ctmm_CTMMError", structure = list(diag(3)))
  refused(pseudobulk, "linearly dependent", "ctmm_CTMMError", structure = list(diag(4), 2 * diag(4)))
  refused(pseudobulk, "no column 'individual' of donors", donor = "individual")
  refused(NULL, "data is missing")
  refused("df", "data must be a data frame")
  expect_error(ctmm(expr ~ celltype + age, data = pseudobulk, method = "reml"), "no column 'age'")
  expect_error(ctmm("expr", data = pseudobulk, method = "reml"), class = "error")
  expect_error(ctmm(pseudobulk, expr ~ celltype, method = "reml"), "got formula", class = "ctmm_DataError")
  caught <- tryCatch(ctmm(expr ~ celltype, data = pseudobulk, method = "x"), error = identity)
  expect_s3_class(caught, c("ctmm_CTMMError", "ctmm_error"), exact = FALSE)
  expect_match(caught$python_traceback, "CTMMError")
})

test_that("a fit on the edge warns with a class, once", {
  need_python()
  d <- subset(pseudobulk, donor %in% levels(donor)[1:14])
  d$expr <- with(d, ave(expr, donor) * 0 + sin(seq_along(expr)) / 50)
  seen <- list()
  fit <- withCallingHandlers(
    ctmm(expr ~ celltype, data = d, method = "reml"),
    warning = function(w) {
      seen[[length(seen) + 1L]] <<- w
      invokeRestart("muffleWarning")
    })
  expect_length(seen, 1L)
  expect_s3_class(seen[[1L]], "ctmm_BoundaryWarning")
  expect_s3_class(seen[[1L]], "ctmm_warning")
  expect_true(glance(fit)$boundary)
  expect_output(print(fit), "edge of its domain")
})

test_that("structures may be banded or matrices of one's own", {
  need_python()
  fit <- function(structure) ctmm(expr ~ celltype, data = pseudobulk, structure = structure)
  free <- fit("free")
  types <- levels(pseudobulk$celltype)
  own <- c(list(hom = matrix(1, 4, 4)), lapply(seq_along(types), function(k) diag(4) * (1:4 == k)))
  names(own) <- names(free$vcomp)
  expect_equal(fit(own)$vcomp, free$vcomp, tolerance = 1e-8)
  back <- rev(types)
  turned <- lapply(own, function(m) `dimnames<-`(m, list(types, types))[back, back])
  expect_equal(fit(turned)$vcomp, free$vcomp, tolerance = 1e-8)
  near <- fit(banded(1))
  expect_identical(near$structure, "banded(1)")
  expect_length(near$vcomp, 8L)
  expect_error(banded(-1), class = "ctmm_CTMMError")
})

test_that("a tree gives clades a variance", {
  need_python()
  fit <- function(structure) ctmm(expr ~ celltype, data = pseudobulk, structure = structure)
  types <- levels(pseudobulk$celltype)
  clades <- tree(list(early = c("day0", "day1"), late = factor(c("day3", "day2"))))
  expect_identical(tree(early = c("day0", "day1"), late = c("day3", "day2")), clades)
  ones <- function(names) outer(types %in% names, types %in% names) * 1
  own <- c(list(hom = ones(types), "V[early]" = ones(types[1:2]), "V[late]" = ones(types[3:4])),
           lapply(types, ones))
  names(own)[4:7] <- sprintf("V[%s]", types)
  found <- fit(clades)
  expect_identical(names(found$vcomp), names(own))
  expect_equal(found$vcomp, fit(own)$vcomp, tolerance = 1e-8)
  expect_output(print(clades), "early: day0, day1\nlate: day3, day2")
  expect_equal(outliers(found)$rows$residual, outliers(fit(own))$rows$residual, tolerance = 1e-8)
  deep <- tree(list(all3 = list(pair = c("day0", "day1"), rest = c("day2", "day3"))))
  expect_output(print(deep), "all3\n  pair: day0, day1")
  expect_identical(ctmmFormula:::structure_out(deep, types)[[2]]$all3$rest, list("day2", "day3"))
  mixed <- tree(late = list("day0", pair = c("day1", "day2")))
  expect_output(print(mixed), "late: day0\n  pair: day1, day2")
  expect_identical(names(fit(mixed)$vcomp)[1:4], c("hom", "V[late]", "V[pair]", "V[day0]"))
  expect_equal(fit(mixed)$vcomp, fit(tree(late = list(pair = c("day1", "day2"), c("day0"))))$vcomp)
  expect_error(fit(tree(list(a = c("day0", "day9")))), "'day9', which is no cell type", class = "ctmm_CTMMError")
  expect_error(fit(tree(list(a = "day0"))), "two different cell types", class = "ctmm_CTMMError")
  expect_error(tree(c("day0", "day1"), c("day2", "day3")), "needs a name", class = "ctmm_CTMMError")
  expect_error(tree("day0"), "have names", class = "ctmm_CTMMError")
  expect_error(tree(list(a = 1:2)), "names of cell types", class = "ctmm_CTMMError")
  values <- matrix(pseudobulk$expr, 1, dimnames = list("g", NULL))
  nu <- matrix(pseudobulk$nu, 1)
  scan <- ctmm_genes(~ celltype, data = pseudobulk, expr = values, nu = nu, structure = clades)
  expect_equal(unlist(scan[names(own)]), found$vcomp, tolerance = 1e-8)
  expect_output(print(scan), "structure tree")
})

test_that("overall pseudobulk takes its proportions by columns or as a table", {
  need_python()
  fit <- overall_fit()
  expect_identical(names(coef(fit)), c(paste0("celltypeday", 0:3), "sexM", "PC1"))
  expect_identical(fit$celltypes, paste0("day", 0:3))
  expect_identical(fit$bounds, "psd")
  shares <- overall_pseudobulk[paste0("prop_day", 0:3)]
  rownames(shares) <- overall_pseudobulk$donor
  again <- ctmm(expr ~ sex + PC1, data = overall_pseudobulk, structure = "hom",
                proportions = shares[rev(seq_len(nrow(shares))), ], method = "reml")
  expect_equal(again$vcomp, fit$vcomp, tolerance = 1e-12)
  X <- cbind(as.matrix(shares), model.matrix(~ sex + PC1, overall_pseudobulk)[, -1])
  expect_equal(model.matrix(fit), X, ignore_attr = TRUE)
  new <- overall_pseudobulk[4:6, ]
  expect_equal(unname(predict(fit, new, re.form = NA)), unname(drop(X[4:6, ] %*% coef(fit))))
  expect_equal(predict(fit, overall_pseudobulk), predict(fit), tolerance = 1e-10)
  expect_error(ctmm(expr ~ celltype + sex, data = overall_pseudobulk, proportions = names(shares), method = "reml"),
               "leave the cell type out of the formula")
  bad <- transform(overall_pseudobulk, prop_day0 = prop_day0 + 0.1)
  expect_error(ctmm(expr ~ sex, data = bad, proportions = names(shares), method = "reml"), "must sum to one")
})
