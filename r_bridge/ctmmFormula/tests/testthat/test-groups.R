# Groups of donors and conditions of the same donors, as Python fits them.
groups_table <- function(seed = 1, donors = 50, within = FALSE) {
  set.seed(seed)
  grid <- expand.grid(celltype = c("B", "NK", "T"), group = c("case", "ctrl"), donor = seq_len(donors))
  if (!within) grid <- grid[(grid$donor %% 2 == 0) == (grid$group == "case"), ]
  sd <- if (within) 1 else ifelse(grid$group == "case", 1.5, 0.7)
  nu <- 0.2 * 10^runif(nrow(grid), -1, 0)
  y <- sd * rnorm(donors)[grid$donor] + 0.4 * sd * rnorm(nrow(grid)) + sqrt(nu) * rnorm(nrow(grid))
  if (within) y <- y + 0.5 * rnorm(2 * donors)[2 * grid$donor - (grid$group == "case")]
  data.frame(donor = sprintf("d%02d", grid$donor), celltype = grid$celltype, group = grid$group,
             age = 20 + grid$donor, expr = y, nu = nu, n_cells = 20 + seq_len(nrow(grid)) %% 60)
}

test_that("groups are as if each were fitted alone", {
  need_python()
  d <- groups_table()
  fit <- ctmm(expr ~ 0 + celltype:group, by = ~ group, method = "reml", data = d)
  expect_identical(names(fit$vcomp)[c(1L, 5L, 6L)], c("hom[case]", "hom[ctrl]", "V[B|ctrl]"))
  parts <- lapply(split(d, d$group), function(own) ctmm(expr ~ 0 + celltype, data = own, method = "reml"))
  expect_equal(fit$loglik, sum(vapply(parts, `[[`, 0, "loglik")), tolerance = 1e-9)
  expect_equal(unname(fit$vcomp), unname(unlist(lapply(parts, `[[`, "vcomp"))), tolerance = 1e-3)
  expect_identical(colnames(fit$A), c("B|case", "NK|case", "T|case", "B|ctrl", "NK|ctrl", "T|ctrl"))
  again <- update(fit, by = "group")
  expect_equal(again$vcomp, fit$vcomp)
})

test_that("predictions and effects know the group", {
  need_python()
  for (within in c(FALSE, TRUE)) {
    d <- groups_table(within = within)
    fit <- if (within) ctmm(expr ~ celltype * group, within = ~ group, data = d, method = "reml")
           else ctmm(expr ~ celltype * group, by = ~ group, data = d, method = "reml")
    expect_equal(predict(fit, d), fitted(fit), tolerance = 1e-9)
    effects <- ranef(fit)$donor
    expect_identical(dim(effects), c(50L, 8L))
    expect_identical(anyNA(effects), !within)
    expect_identical(dim(simulate(fit, 2, seed = 1)), c(nrow(d), 2L))
    expect_identical(nrow(icc(fit)), 6L)
    expect_output(print(summary(fit)), if (within) "V\\[T\\]:group" else "V\\[T\\|case\\]")
  }
})

test_that("a trend has the components of its two ends", {
  need_python()
  fit <- ctmm(expr ~ celltype, by = ~ age, data = groups_table(), structure = "hom")
  expect_identical(names(fit$vcomp), c("hom", "hom:age"))
  expect_error(icc(fit), "no one icc")
  expect_equal(predict(fit, groups_table()), fitted(fit), tolerance = 1e-9)
})

test_that("tests of groups and responses are Python's", {
  need_python()
  fit <- ctmm(expr ~ celltype * group, by = ~ group, data = groups_table())
  test <- test_groups(fit)
  expect_s3_class(test, "htest")
  expect_lt(test$p.value, 0.01)
  expect_equal(test$p.value, max(test$extra$law[["overall"]], test$extra$empirical[["overall"]]))
  expect_identical(names(test$extra$celltype), c("B", "NK", "T"))
  expect_output(print(test), "variance by groups")
  expect_true(is.nan(test_response(fit)$p.value))
  within <- ctmm(expr ~ celltype * group, within = ~ group, data = groups_table(within = TRUE))
  expect_lt(test_response(within)$p.value, 1e-6)
  expect_match(test_groups(within)$note, "by=")
  expect_error(test_groups(fit, 1), class = "ctmm_CTMMError")
})

test_that("groups that cannot be are refused", {
  need_python()
  d <- groups_table(within = TRUE)
  expect_error(ctmm(expr ~ celltype * group, data = d), "within", class = "ctmm_DataError")
  expect_error(ctmm(expr ~ celltype, by = ~ group, data = d), "within=", class = "ctmm_DataError")
  expect_error(ctmm(expr ~ celltype, by = ~ a + b, data = d), "one column", class = "ctmm_DataError")
  expect_error(ctmm(expr ~ celltype, by = ~ nothing, data = d), "no column", class = "ctmm_DataError")
  expect_error(ctmm(expr ~ celltype, by = "group", within = "group", data = d), "give one",
               class = "ctmm_DataError")
})

test_that("all genes have the same tests of groups", {
  need_python()
  d <- groups_table()
  expr <- rbind(a = d$expr, b = rev(d$expr))
  colnames(expr) <- rownames(d)
  nu <- matrix(d$nu, 2, nrow(d), byrow = TRUE, dimnames = dimnames(expr))
  found <- ctmm_genes(~ celltype * group, data = d, expr = expr, nu = nu, by = ~ group, tests = "groups")
  test <- test_groups(ctmm(expr ~ celltype * group, by = ~ group, data = d))
  expect_equal(found$p_groups[1L], test$p.value)
  expect_equal(found$`p_groups[T]`[1L], test$extra$celltype[["T"]])
})
