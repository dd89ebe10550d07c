# Single donors: numbers are Python's, keys and adjusted p values are made here.

dosages <- function(fit) {
  set.seed(4)
  n <- length(fit$donors)
  matrix(rbinom(3 * n, 2, 0.3), n, dimnames = list(rev(fit$donors), c("rs1", "rs2", "rs3")))
}

test_that("a scan is that of least squares at the covariance of the fit", {
  need_python()
  fit <- ctmm(expr ~ celltype + sex, data = pseudobulk, method = "reml")
  G <- dosages(fit)
  found <- scan_donors(fit, G)
  expect_identical(rownames(found), colnames(G))
  frame <- pseudobulk
  H <- outer(as.character(frame$celltype), fit$celltypes, `==`) + 0
  S <- (H %*% fit$A %*% t(H)) * outer(frame$donor, frame$donor, `==`) + diag(frame$nu)
  Z <- G[as.character(frame$donor), "rs2"] * H
  W <- solve(S)
  X <- cbind(model.matrix(~ celltype + sex, frame), Z)
  cov <- solve(t(X) %*% W %*% X)
  b <- cov %*% t(X) %*% W %*% frame$expr
  at <- ncol(X) - 3:0
  expect_equal(unlist(found["rs2", sprintf("estimate[%s]", fit$celltypes)], use.names = FALSE), b[at],
               tolerance = 1e-7)
  expect_equal(unlist(found["rs2", sprintf("se[%s]", fit$celltypes)], use.names = FALSE),
               unname(sqrt(diag(cov)[at])), tolerance = 1e-7)
  expect_equal(found$p_omnibus_adjusted, p.adjust(found$p_omnibus, "BH"))
  table <- data.frame(donor = rownames(G), G, check.names = FALSE)
  expect_equal(scan_donors(fit, table), found)
})

test_that("tables that do not fit are refused, missing values filled where asked", {
  need_python()
  fit <- example_fit()
  G <- dosages(fit)
  expect_error(scan_donors(fit, G[-1, ]), "no row of 1 of the fit's 72 donors")
  expect_error(scan_donors(fit, data.frame(G, a = "b")), "must hold numbers")
  gap <- G
  gap[3, 1] <- NA
  expect_error(scan_donors(fit, gap), "missing values")
  found <- scan_donors(fit, cbind(gap, one = 1), missing = "mean")
  expect_identical(found$n_missing, c(1L, 0L, 0L, 0L))
  expect_match(found["one", "reason"], "all donors have the same value")
  expect_true(is.na(found["one", "p_omnibus"]))
  expect_error(scan_donors(fit, G, adjust = "more"), "adjust =")
  expect_error(scan_donors(3, G), "takes a fit")
})

test_that("outliers and predicted expression have the rows of the fit", {
  need_python()
  fit <- example_fit()
  found <- outliers(fit)
  shown <- c("donor", "celltype", "n_cells", "residual", "p.value", "p.adjusted")
  expect_identical(names(found$rows), shown)
  expect_equal(found$rows$n_cells, pseudobulk$n_cells)
  uncounted <- ctmm(expr ~ celltype, data = pseudobulk[setdiff(names(pseudobulk), "n_cells")])
  expect_identical(names(outliers(uncounted)$rows), shown[-3])
  expect_identical(nrow(found$rows), nrow(pseudobulk))
  expect_equal(found$rows$p.value, 2 * pnorm(-abs(found$rows$residual)), tolerance = 1e-9)
  expect_identical(rownames(found$donors), fit$donors)
  expect_equal(found$donors$df, as.vector(table(pseudobulk$donor)[fit$donors]), ignore_attr = TRUE)
  expect_equal(found$donors$p.adjusted, p.adjust(found$donors$p.value, "holm"))
  expect_warning(own <- predicted_expression(fit), "as a phenotype")
  expect_equal(own$predicted, unname(fitted(fit)), tolerance = 1e-9)
  expect_true(all(own$std.error < sqrt(pseudobulk$nu)))
})
