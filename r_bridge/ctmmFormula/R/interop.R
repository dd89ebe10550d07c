# emmeans: registered when that package is loaded.

#' @exportS3Method emmeans::recover_data
recover_data.ctmm <- function(object, ...) {
  columns <- setdiff(names(object$model), grep("^\\(", names(object$model), value = TRUE))
  emmeans::recover_data(object$call, stats::delete.response(object$terms), object$na.action,
                        frame = object$model[columns], ...)
}

#' @exportS3Method emmeans::emm_basis
emm_basis.ctmm <- function(object, trms, xlev, grid, covariance = NULL, ...) {
  if (object$kind == "op")
    fail("CTMMError", "in overall pseudobulk the cell types are no factor: see celltype_means()")
  frame <- stats::model.frame(trms, grid, na.action = stats::na.pass, xlev = xlev)
  X <- stats::model.matrix(trms, frame, contrasts.arg = object$contrasts)
  errors <- errors_of(object, covariance)
  p <- names(object$beta)
  beta <- object$beta
  nbasis <- matrix(NA)
  if (length(object$dropped)) {
    beta <- named(rep(NA_real_, ncol(X)), colnames(X))
    beta[p] <- object$beta
    nbasis <- estimability::nonest.basis(qr(object$X_full))
  }
  list(X = X, bhat = unname(beta), nbasis = nbasis, V = errors$cov[p, p],
       dffun = own_df,
       dfargs = list(object = object, errors = errors, columns = match(p, colnames(X)),
                     of = linear_of),  # emmeans takes own_df out of this package
       misc = list())
}

# Degrees of freedom of one combination of the fixed effects.
own_df <- function(k, dfargs) {
  errors <- dfargs$errors
  if (is.null(errors$slopes) && !isTRUE(errors$own)) return(errors$df[[1L]])
  if (length(k) != length(dfargs$columns)) k <- k[dfargs$columns]  # effects were dropped
  dfargs$of(dfargs$object, matrix(k, nrow = 1L), errors)$df
}
