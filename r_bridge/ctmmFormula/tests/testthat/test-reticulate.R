# The Python package by reticulate alone, as scripts do that know nothing of this one.  Data go as
# lists of columns, which every reticulate can give to every numpy.

plain <- function() {
  need_python()
  python <- reticulate::import("ctmm_formula")
  probe <- tryCatch(python$fit("y ~ 1", data = list(y = 1:2)), error = conditionMessage)
  if (any(grepl("call stack", probe)))
    skip("this ctmm_formula.fit can be called by Python code only")
  python
}

FORMULA <- "expr ~ C(celltype) + sex + PC1"

test_that("fits, tables and texts come back as R values", {
  plain()
  # without conversion nothing is asked of numpy; py_to_r takes what is plain
  python <- reticulate::import("ctmm_formula", convert = FALSE)
  r <- reticulate::py_to_r
  fit <- python$fit(FORMULA, random = "batch", method = "reml", data = as.list(pseudobulk))
  expect_equal(r(fit$llf), as.numeric(logLik(example_fit())), tolerance = 1e-10)
  expect_identical(r(fit$structure), "free")
  expect_identical(unlist(r(fit$celltypes)), example_fit()$celltypes)
  expect_equal(unlist(r(fit$vcomp$to_dict())), example_fit()$vcomp, tolerance = 1e-8)
  table <- as.data.frame(r(fit$tidy()$to_dict("list")))
  expect_equal(table$estimate, unname(c(coef(example_fit()), example_fit()$vcomp)),
               tolerance = 1e-8)
  expect_equal(r(fit$test_mean()$pvalue), test_mean(example_fit())$p.value, tolerance = 1e-6)
  expect_type(r(fit$to_json()), "character")
  expect_match(r(fit$summary()$as_text()), "Cell type-specific mixed model")
})

test_that("a factor in a list loses the order of its levels, which is told; as a Categorical it does not", {
  plain()
  python <- reticulate::import("ctmm_formula", convert = FALSE)
  pandas <- reticulate::import("pandas", convert = FALSE)
  warnings <- reticulate::import("warnings")
  d <- transform(pseudobulk, celltype = relevel(celltype, "day2"))
  first <- function(columns) {
    fit <- python$fit("expr ~ celltype + sex", data = columns)
    unlist(reticulate::py_to_r(fit$celltypes))[1]
  }
  kept <- function(f) if (is.factor(f)) pandas$Categorical(as.character(f), levels(f)) else f
  with <- warnings$catch_warnings()
  with$`__enter__`()
  on.exit(with$`__exit__`(NULL, NULL, NULL))
  warnings$simplefilter("error")
  expect_error(first(as.list(d)), "factors arrive as text.*'day0' of 'celltype', 'F' of 'sex'")
  expect_identical(first(lapply(d, kept)), "day2")
})

test_that("R's ways of writing values are understood", {
  python <- plain()
  expected <- python$fit(FORMULA, random = "batch", method = "reml", data = as.list(pseudobulk))$llf
  llf <- function(d, ...) python$fit(FORMULA, method = "reml", data = as.list(d), ...)$llf
  expect_equal(llf(pseudobulk, random = list("batch")), expected)
  # a data frame as it is, in scripts like these
  frame <- tryCatch(reticulate::r_to_py(pseudobulk), error = function(e)
    skip(paste("this reticulate cannot convert data frames to this numpy:", conditionMessage(e))))
  expect_equal(python$fit(FORMULA, random = "batch", method = "reml", data = pseudobulk)$llf, expected)
  d <- transform(pseudobulk, sex = replace(sex, 3, NA))
  expect_equal(python$fit(FORMULA, data = d)$nobs, 274)
  expect_equal(llf(transform(pseudobulk, donor = as.character(donor)), random = "batch"), expected)
  expect_equal(llf(transform(pseudobulk, batch = as.integer(batch)), random = "batch"), expected)
  expect_equal(llf(transform(pseudobulk, n_cells = as.numeric(n_cells)), random = "batch"), expected)
  d <- pseudobulk
  d$count <- as.integer(d$n_cells)
  d$count[3] <- NA
  expect_error(python$fit("expr ~ C(celltype) + count", data = as.list(d)), "-2147483648")
  expect_error(python$fit("expr ~ C(celltype) + nobody", data = as.list(d)), "nobody")
  # what R's missing text becomes is refused, in texts and in factors that cross as lists
  for (name in c("sex", "donor", "celltype", "batch")) for (as in c(as.character, as.factor)) {
    d <- pseudobulk
    d[[name]] <- as(replace(d[[name]], 3, NA))
    expect_error(python$fit("expr ~ C(celltype) + sex", random = "batch", data = as.list(d)),
                 paste0("'", name, "' .* has the text 'NA' in row 2"))
  }
  # numbers of R are doubles, whole or not
  fit <- python$fit("expr ~ C(celltype) + sex", data = as.list(pseudobulk))
  expect_equal(fit$jackknife(blocks = 6)$groups, 6)
  expect_error(fit$bootstrap(5.5, rng = 1), "whole number")
})
