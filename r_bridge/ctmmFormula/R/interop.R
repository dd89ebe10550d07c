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
       dffun = if (is.null(errors$own)) function(k, dfargs) dfargs$df else own_df,
       dfargs = if (is.null(errors$own)) list(df = errors$df) else list(object = object, own = p),
       misc = list())
}

# Degrees of freedom of one combination of the fixed effects of a robust fit.
own_df <- function(k, dfargs) {
  L <- matrix(k, nrow = 1L)
  if (ncol(L) != length(dfargs$own)) return(NA_real_)  # effects were dropped
  linear_of(dfargs$object, L, list(own = TRUE))$df
}
