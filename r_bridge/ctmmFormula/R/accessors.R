# What lme4's users ask of a fit beside its estimates.

#' Deviance, Singular Fits, Influence and Parts of a Fit
#'
#' By the names of \pkg{stats} and \pkg{lme4}. \code{deviance} is minus twice the log-likelihood,
#' \code{isSingular} says whether a variance is not positive, \code{influence} gives the estimates
#' without each donor in turn, \code{cooks.distance} how far each donor moves the fixed effects.
#'
#' @details
#' After REML \code{deviance} is the REML criterion, with all constants. Where \pkg{lme4} is loaded,
#' \code{getME} gives a part of a fit by its name: \code{"X"}, \code{"Z"} and \code{"Zt"} (sparse, by
#' \pkg{Matrix}), \code{"b"} (predicted effects, in the order of the columns of \code{Z}), \code{"y"},
#' \code{"offset"}, \code{"mu"} (equal to \code{X beta + Z b + offset}), \code{"beta"}, \code{"fixef"},
#' \code{"theta"} (the variance components as they are: not \pkg{lme4}'s relative Cholesky factors),
#' \code{"nu"} (noise variances), \code{"flist"}, \code{"cnms"}, \code{"n_rtrms"}, \code{"l_i"},
#' \code{"n"}, \code{"p"}, \code{"q"}, \code{"is_REML"}; there \code{ngrps} counts levels, too.
#'
#' Cook's distance of a donor is \eqn{(b - b_{-i})' C^{-1} (b - b_{-i}) / p}{(b - b_-i)' C^-1 (b - b_-i) / p}
#' with \eqn{p} fixed effects and their covariance \eqn{C}, \code{vcov} of the fit. All of them come from
#' complete refits (\code{\link{jackknife}}); \code{\link{outliers}} needs none.
#'
#' @param object,x,model a fit of \code{\link{ctmm}}, or what \code{influence} returned.
#' @param tol a variance below this share of the largest variance of true expression counts as 0.
#' @param one_step,threads as in \code{\link{jackknife}}.
#' @param ... nothing: an argument that is not listed is an error.
#' @return
#' \code{isSingular}: \code{TRUE} where the estimate lies on the edge of its domain, a variance component
#' is zero or negative (which the default \code{bounds} allow), or the covariance of a structure with
#' covariances is not positive definite. \code{influence}: an object of class \code{"ctmm_influence"}, a
#' list of \code{fixed.effects}, \code{var.cov.comps}, and the same without each donor in turn (matrices,
#' one row per donor, named as in \pkg{lme4}), with methods for \code{cooks.distance} and \code{dfbeta}.
#' @examplesIf !nzchar(ctmm_check()$problem)
#' fit <- ctmm(expr ~ celltype + sex, data = pseudobulk, structure = "hom", method = "reml")
#' deviance(fit)
#' isSingular(fit)
#' found <- influence(fit)
#' head(sort(cooks.distance(found), decreasing = TRUE), 3)
#' if (requireNamespace("lme4", quietly = TRUE)) lme4::getME(fit, "theta")
#' @name accessors
#' @rdname accessors
#' @importFrom stats deviance
#' @export
deviance.ctmm <- function(object, ...) {
  no_more(...)
  -2 * as.numeric(stats::logLik(object))
}

#' @rdname accessors
#' @export
isSingular <- function(x, ...) UseMethod("isSingular")

# lme4's function of this name is no generic: its fits go there.
#' @export
isSingular.default <- function(x, tol = 1e-4, ...) {
  no_more(...)
  need_package("lme4")
  lme4::isSingular(x, tol)
}

#' @rdname accessors
#' @export
isSingular.ctmm <- function(x, tol = 1e-4, ...) {
  no_more(...)
  pairs <- outer(x$celltypes, x$celltypes, function(a, b) sprintf("V[%s,%s]", a, b))
  covariances <- sub("[|].*\\]", "]", names(x$vcomp)) %in% pairs
  least <- tol * max(diag(x$A), x$vcomp, 0)
  if (x$convergence$boundary || any(x$vcomp[!covariances] <= least)) return(TRUE)
  any(covariances) &&
    min(eigen(x$A, symmetric = TRUE, only.values = TRUE)$values) <= least
}

#' @rdname accessors
#' @importFrom stats influence
#' @export
influence.ctmm <- function(model, one_step = FALSE, threads = 1, ...) {
  no_more(...)
  left <- jackknife(model, one_step = one_step, threads = threads)$estimates
  out <- list(
    model$beta, left[, names(model$beta), drop = FALSE],
    model$vcomp, left[, names(model$vcomp), drop = FALSE], stats::vcov(model))
  group <- sprintf("[-%s]", model$roles$donor)
  names(out) <- c("fixed.effects", paste0("fixed.effects", group), "var.cov.comps",
                  paste0("var.cov.comps", group), "vcov")
  structure(out, class = "ctmm_influence", group = model$roles$donor)
}

#' @rdname accessors
#' @importFrom stats dfbeta
#' @export
dfbeta.ctmm_influence <- function(model, ...) {
  no_more(...)
  without <- model[[sprintf("fixed.effects[-%s]", attr(model, "group"))]]
  sweep(without, 2L, model$fixed.effects)
}

#' @rdname accessors
#' @importFrom stats cooks.distance
#' @export
cooks.distance.ctmm_influence <- function(model, ...) {
  no_more(...)
  moved <- dfbeta.ctmm_influence(model)
  rowSums((moved %*% solve(model$vcov)) * moved) / ncol(moved)
}

#' @rdname accessors
#' @export
cooks.distance.ctmm <- function(model, one_step = FALSE, threads = 1, ...) {
  no_more(...)
  cooks.distance.ctmm_influence(influence.ctmm(model, one_step, threads))
}

#' @export
print.ctmm_influence <- function(x, digits = max(3L, getOption("digits") - 3L), ...) {
  no_more(..., passed = PRINTED)
  distance <- sort(cooks.distance.ctmm_influence(x), decreasing = TRUE)
  cat(sprintf("Estimates without each of %d levels of %s; Cook's distances:\n", length(distance),
              attr(x, "group")))
  print(utils::head(distance), digits = digits, ...)
  invisible(x)
}

#' @rawNamespace S3method(lme4::getME, ctmm, getME_ctmm)
getME_ctmm <- function(object, name, ...) {
  no_more(...)
  if (length(name) > 1L) return(lapply(named(name, name), getME_ctmm, object = object))
  parts <- list(
    X = function() object$X,
    Z = function() random_matrix(object)$Z,
    Zt = function() Matrix::t(random_matrix(object)$Z),
    b = function() random_matrix(object)$b,
    y = function() object$y,
    nu = function() named(object$nu, names(object$y)),
    offset = function() named(rep_len(object$offset %||% 0, object$n), names(object$y)),
    mu = function() conditional(object),
    beta = function() unname(object$beta),
    fixef = function() object$beta,
    theta = function() object$vcomp,
    flist = function() grouping(object),
    cnms = function() lapply(ranef.ctmm(object), names),
    n_rtrms = function() length(grouping(object)),
    l_i = function() ngrps_ctmm(object),
    n = function() object$n,
    p = function() length(object$beta),
    q = function() ncol(random_matrix(object)$Z),
    is_REML = function() object$method == "reml")
  if (!is.character(name) || !name %in% names(parts))
    fail("CTMMError", "there is no part ", listing(name), " of a fit: choose from ",
         listing(names(parts), 20L))
  parts[[name]]()
}

#' @rawNamespace S3method(lme4::ngrps, ctmm, ngrps_ctmm)
ngrps_ctmm <- function(object, ...) {
  no_more(...)
  vapply(grouping(object), nlevels, 0L)
}

# The factors of the random effects: donors, and every other one.
grouping <- function(object) {
  frame <- used_rows(object)
  parts <- random_parts(object)
  levels <- lapply(parts, function(part)
    crossed(lapply(part$term$groups, function(g) as.character(frame[[g]]))))
  own <- named(list(factor(frame[[object$roles$donor]], object$donors)), object$roles$donor)
  c(own, lapply(levels, factor))
}

# Rows by predicted effects, sparse, and the effects; by the order of `effects`, then of their levels.
random_matrix <- function(object) {
  need_package("Matrix")
  if (is.null(object$effects)) fail("ConvergenceError", object$no_effects)
  frame <- used_rows(object)
  at <- match(as.character(frame[[object$roles$donor]]), object$donors)
  block <- function(levels, at, weights, name)
    Matrix::sparseMatrix(seq_along(at), at, x = weights, dims = c(length(at), length(levels)),
                         dimnames = list(names(object$y), paste(name, levels)))
  Z <- b <- list()
  for (name in names(object$effects)) {
    effect <- object$effects[[name]]
    if (!name %in% c("shared", "specific")) {
      own <- level_weights(object, name)
      labels <- crossed(lapply(random_parts(object)[[name]]$term$groups,
                               function(g) as.character(frame[[g]])))
      Z[[name]] <- block(rownames(effect), match(labels, rownames(effect)), own$weight, name)
      b[[name]] <- effect[, 1L]
    } else if (name == "shared" && is.null(object$crossing)) {
      Z[[name]] <- block(object$donors, at, rep(1, length(at)), name)
      b[[name]] <- effect[, "estimate"]
    } else {
      H <- if (name == "shared") loads(object, frame) else row_types(object)
      labels <- colnames(effect$estimate)
      for (k in seq_along(labels))
        Z[[paste(name, labels[k])]] <- block(object$donors, at, H[, k], paste(name, labels[k]))
      b[[name]] <- as.vector(effect$estimate)
    }
  }
  b <- unlist(b, use.names = FALSE)
  b[is.na(b)] <- 0  # pairs that no row has
  Z <- do.call(cbind, unname(Z))
  list(Z = Z, b = named(b, colnames(Z)))
}
