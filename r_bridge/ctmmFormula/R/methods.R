# Methods for the generics of stats and nlme.  Everything here works without Python.

#' Methods for Fits
#'
#' What can be asked of a fit of \code{\link{ctmm}}, mostly by the names and arguments of \pkg{lme4}.
#'
#' @details
#' \code{coef} and \code{fixef} are the vector of fixed effects, so that functions of \pkg{car},
#' \pkg{lmtest} and \pkg{emmeans} work on fits. There are also methods for \code{nobs},
#' \code{df.residual} (donors less parameters, the denominator of tests of variance components and by the
#' jackknife; of robust fits independent units less one; fixed effects by the model have Satterthwaite's),
#' \code{terms},
#' \code{model.frame}, \code{model.matrix}, \code{weights} (one over the noise variance), \code{sigma}
#' (1, as the noise is known), \code{family}, \code{extractAIC} (so \code{drop1} and \code{step} work
#' after ML), \code{update} (with the data of the fit, where \code{data} is not given), and, where \pkg{lme4} is loaded, \code{refit} and \code{isREML}.
#'
#' Log-likelihoods have all constants; the restricted one has \eqn{\frac12 \log|X'X|}{1/2 log|X'X|}
#' among them, so that it does not depend on the coding of the fixed part (\pkg{lme4} leaves it out).
#' Their \code{df} counts fixed effects and variance components; their \code{nobs}, which \code{BIC}
#' uses, is the number of rows, less that of fixed effects after REML, as in \pkg{nlme}.
#'
#' \code{anova} of several fits orders them by their numbers of parameters, compares neighbours by
#' likelihood ratios, and refuses fits that are not nested, of other data, by different methods, or by
#' REML with different fixed parts. Of one fit it gives Wald F tests of the terms in sequence.
#'
#' \code{VarCorr} shows the covariance of true expression between donors by cell type, with standard
#' deviations and correlations. Negative variances, which the default \code{bounds} allow, have no
#' standard deviation (\code{NA}).
#'
#' @param object,x a fit.
#' @param covariance where standard errors come from: \code{"model"} (default for ML and REML),
#' \code{"kenward-roger"} (adjusted for few donors, after REML),
#' \code{"jackknife"} (default for Haseman-Elston moments), \code{"robust"} (default for, and only for,
#' \code{method = "robust"}, with degrees of freedom for each coefficient), or what
#' \code{\link{jackknife}} returned.
#' @param full the covariance of the variance components too.
#' @param parm names of parameters, \code{"beta_"} for the fixed effects or \code{"theta_"} for the
#' variance components; default all.
#' @param level of confidence.
#' @param method how intervals of variance components are made: \code{"wald"}, by t about the estimate
#' (after \code{method = "robust"} on the scale of log(component + noise), with the degrees of freedom of the
#' jackknife's variances); \code{"log"}, by t on the scale of the logarithm, \code{NA} where the estimate is
#' not positive; \code{"profile"}, by profile likelihood, as in \pkg{lme4} and \pkg{metafor}, after ML and
#' REML. Fixed effects have those by
#' \code{"wald"}.
#' @param fixed.only leave the random terms out.
#' @param newdata a table with the covariates and, for random effects, the columns of donors, cell types
#' and groups.
#' @param re.form random effects to add: \code{NULL} all, \code{NA} none, \code{~ (1 | batch)} some, or
#' their names (\code{"shared"} and \code{"specific"} are the donors' own).
#' @param se.fit,interval standard errors or intervals of the fixed part (with \code{re.form = NA}).
#' @param allow.new.levels take the effects of unknown donors and levels as 0 instead of stopping.
#' @param na.action for missing covariates in \code{newdata}.
#' @param type \code{"pearson"} residuals are divided by the standard deviation of their noise.
#' @param nsim,seed number of draws, and seed as in \code{\link{simulate}}.
#' @param sigma must be 1: the noise is known.
#' @param row.names,optional,order as for \code{VarCorr} of \pkg{lme4}.
#' @param condVar attach prediction standard errors as attribute \code{"std.error"}.
#' @param which what to draw: variance components or means with their intervals, residuals, or predicted
#' effects of donors.
#' @param ... more fits for \code{anova}, arguments of \code{\link{ctmm}} for \code{update}, graphical
#' parameters for \code{plot}; else nothing: an argument that a method has not is an error.
#' @return
#' What the generics say. \code{ranef} gives a list with a data frame of donors (column
#' \code{(Intercept)} for the shared effect and one for each cell type) and one for each random effect.
#' @examplesIf !nzchar(ctmm_check()$problem)
#' fit <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = pseudobulk)
#' confint(fit, "theta_")
#' head(ranef(fit)$donor)
#' as.data.frame(VarCorr(fit))
#' new <- data.frame(celltype = c("day0", "day3"), sex = "F", PC1 = 0)
#' predict(fit, new, re.form = NA, se.fit = TRUE)
#' head(simulate(fit, 2, seed = 1))
#' plot(fit)
#' @name ctmm-methods
NULL

#' @export
coef.ctmm <- function(object, ...) {
  no_more(..., passed = "complete")
  object$beta
}

#' @export
fixef.ctmm <- function(object, ...) {
  no_more(...)
  object$beta
}

#' @rdname ctmm-methods
#' @export
vcov.ctmm <- function(object, covariance = NULL, full = FALSE, ...) {
  no_more(..., passed = "complete")
  cov <- errors_of(object, covariance)$cov
  if (full) cov else cov[names(object$beta), names(object$beta), drop = FALSE]
}

# Covariance of all parameters, what it is called, the degrees of freedom of each (one number for
# all by the jackknife), and where combinations get theirs from: slopes, or Python (own = TRUE).
errors_of <- function(object, covariance = NULL) {
  names <- c(names(object$beta), names(object$vcomp))
  if (is.null(covariance)) covariance <- object$cov_type
  came <- identical(covariance, object$cov_type)
  if (came && covariance == "jackknife")  # for moments the jackknife came with the fit
    return(list(cov = object$cov_all, name = covariance, df = object$df.residual))
  if (came)
    return(list(cov = object$cov_all, name = covariance, df = named(object$df, names),
                slopes = object$slopes, own = covariance == "robust"))
  if (is.character(covariance) && !identical(covariance, "jackknife")) {
    if (length(covariance) != 1L || is.na(covariance))
      fail("CTMMError", "covariance must be one word, got ", listing(covariance))
    got <- ask("errors", list(fit = stored(object), covariance = covariance))
    return(list(cov = square(got$cov, names), name = covariance, df = named(array_in(got$df), names),
                slopes = slopes_in(got$slopes)))
  }
  if (identical(covariance, "jackknife")) covariance <- jackknife(object)
  if (!inherits(covariance, "ctmm_jackknife"))
    fail("CTMMError", "covariance must be \"model\", after method = \"reml\" \"kenward-roger\", ",
         "\"jackknife\", after method = \"robust\" \"robust\", or what jackknife() returned")
  if (!identical(unname(covariance$params), unname(c(object$beta, object$vcomp))))
    fail("CTMMError", "covariance = is the jackknife of another fit: use this fit's own")
  cov <- covariance$cov
  dimnames(cov) <- list(names, names)
  list(cov = cov, name = covariance$name, df = min(object$df.residual, covariance$groups - 1))
}

slopes_in <- function(sent)
  if (!is.null(sent)) list(root = array_in(sent$root), slopes = array_in(sent$slopes))

# Combinations L b of the fixed effects: standard errors, degrees of freedom, t, p and intervals.
linear_of <- function(object, L, errors, level = 0.95) {
  if (isTRUE(errors$own)) {
    got <- ask("linear", list(fit = stored(object), L = f8(unname(L)), joint = FALSE,
                              alpha = 1 - level))
    out <- array_in(got$table)
    return(list(se = out[, 2L], df = array_in(got$df), t = out[, 3L], p = out[, 4L],
                ends = out[, 5:6, drop = FALSE]))
  }
  p <- names(object$beta)
  se <- sqrt(rowSums((L %*% errors$cov[p, p]) * L))
  df <- if (is.null(errors$slopes)) errors$df[[1L]] else satterthwaite(L, errors$slopes)
  value <- drop(L %*% object$beta)
  t <- value / se
  list(se = se, df = df, t = t, p = 2 * stats::pt(-abs(t), ifelse(df > 0, df, NA_real_)),
       ends = intervals(value, se, df, level))
}

# 2 V^2 / Var(V) of the variance V of every row of L b; slopes are its derivatives by components in
# which the estimates of the components have the covariance I.
satterthwaite <- function(L, slopes) {
  z <- unname(L) %*% slopes$root
  spread <- 0
  for (k in seq_len(dim(slopes$slopes)[1L])) {
    slope <- matrix(slopes$slopes[k, , ], ncol(z))
    spread <- spread + rowSums((z %*% slope) * z)^2
  }
  2 * rowSums(z^2)^2 / spread
}

#' @export
nobs.ctmm <- function(object, ...) {
  no_more(..., passed = "use.fallback")
  object$n
}

#' @export
df.residual.ctmm <- function(object, ...) {
  no_more(...)
  object$df.residual
}

#' @rdname ctmm-methods
#' @export
formula.ctmm <- function(x, fixed.only = FALSE, ...) {
  no_more(...)
  if (fixed.only) stats::formula(x$terms) else x$formula
}

#' @export
terms.ctmm <- function(x, ...) {
  no_more(...)
  x$terms
}

#' @export
model.frame.ctmm <- function(formula, ...) {
  no_more(...)
  formula$model
}

#' @export
model.matrix.ctmm <- function(object, ...) {
  no_more(...)
  object$X
}

#' @export
family.ctmm <- function(object, ...) {
  no_more(...)
  stats::gaussian()
}

#' @export
sigma.ctmm <- function(object, ...) {
  no_more(..., passed = "use.fallback")
  1
}

#' @export
weights.ctmm <- function(object, ...) {
  no_more(...)
  stats::naresid(object$na.action, named(1 / object$nu, names(object$y)))
}

#' @rdname ctmm-methods
#' @export
logLik.ctmm <- function(object, ...) {
  no_more(...)
  if (is.na(object$loglik))
    fail("ConvergenceError", "method = \"", object$method, "\" matches moments and has no ",
         "likelihood: for logLik, AIC, BIC and anova fit by method = \"reml\" or \"ml\"")
  structure(object$loglik, df = length(object$beta) + length(object$vcomp), nall = object$n,
            nobs = object$n - (object$method == "reml") * length(object$beta), class = "logLik")
}

#' @export
extractAIC.ctmm <- function(fit, scale = 0, k = 2, ...) {
  no_more(...)
  if (!identical(as.double(scale), 0))
    fail("CTMMError", "scale = must be 0: the noise is known, no scale of it is estimated")
  if (fit$method == "reml")
    fail("CTMMError", "restricted likelihoods of different fixed parts are not comparable: fit by ",
         "method = \"ml\" before drop1() or step()")
  value <- stats::logLik(fit)
  df <- attr(value, "df")
  c(df, -2 * as.numeric(value) + k * df)
}

# The scope of the default method would count random effects among the terms to add.
#' @export
add1.ctmm <- function(object, scope, ...) {
  if (!is.character(scope))
    scope <- stats::add.scope(object$terms, stats::update.formula(stats::formula(object$terms), scope))
  utils::getS3method("add1", "default")(object, scope = scope, ...)
}

#' @rdname ctmm-methods
#' @export
fitted.ctmm <- function(object, re.form = NULL, ...) {
  no_more(...)
  out <- if (no_random(re.form)) marginal(object) else conditional(object)
  stats::naresid(object$na.action, out)
}

marginal <- function(object)
  named(drop(object$X %*% object$beta) + (object$offset %||% 0), names(object$y))

conditional <- function(object) {
  if (is.null(object$fitted_values)) fail("ConvergenceError", object$no_effects)
  object$fitted_values
}

#' @rdname ctmm-methods
#' @export
residuals.ctmm <- function(object, type = c("response", "pearson"), re.form = NULL, ...) {
  no_more(...)
  type <- match.arg(type)
  out <- object$y - if (no_random(re.form)) marginal(object) else conditional(object)
  if (type == "pearson") out <- out / sqrt(object$nu)
  stats::naresid(object$na.action, out)
}

#' @export
update.ctmm <- function(object, formula., ..., evaluate = TRUE) {
  call <- object$call
  if (!missing(formula.)) call <- updated_call(call, object$given, formula.)
  extra <- match.call(expand.dots = FALSE)$...
  for (name in names(extra)) call[[name]] <- extra[[name]]
  here <- parent.frame()
  if ("data" %in% names(extra)) return(if (evaluate) eval(call, here) else call)
  shown <- call$data
  found <- data_of(object, here)
  # what is found here may stay a name; else the table itself stands in the call
  if (evaluate || !found$here) call["data"] <- list(found$data)
  if (!evaluate) return(call)
  fit <- eval(call, here)
  fit$call$data <- shown
  fit
}

# The data of a fit: what its call names where the formula was written, or here, and is what was
# fitted. A table that has changed since is taken with a warning.
data_of <- function(object, here) {
  force(object$data_rows)
  given <- object$call$data
  places <- list(environment(object$given), here)
  found <- lapply(places, function(place) tryCatch({
    table <- eval(given, place)
    if (is.list(table) || isS4(table)) table  # a function may have that name
  }, error = function(e) NULL))
  there <- !vapply(found, is.null, NA)
  if (!any(there))
    fail("DataError", "the data of the fit, ", as_text(given), ", are not found any more: name them, ",
         "update(fit, data = ...)")
  same <- vapply(found, is_table_of, NA, object = object)
  if (any(same)) return(list(data = found[[which(same)[1L]]], here = same[2L]))
  warn("'", as_text(given), "' is not what it was when the fit was made: update() takes it as it is now; ",
       "update(fit, data = ...) says which")
  list(data = found[[which(there)[1L]]], here = !is.null(found[[2L]]))
}

# Whether the rows of the fit stand in a table as they were fitted: response, plain covariates, donors,
# cell types, noise.
is_table_of <- function(data, object) {
  tryCatch({
    if (is_pseudobulk(data)) data <- gene_data(data, object$given)
    frame <- object$model
    data <- as_table(data)
    if (nrow(data) != object$data_rows) return(FALSE)
    kept <- function(x) if (is.matrix(x) || is.data.frame(x)) x[object$rows, ] else x[object$rows]
    alike <- function(a, b) {
      if (is.factor(a) || is.factor(b)) { a <- as.character(a); b <- as.character(b) }
      isTRUE(all.equal(a, b, check.attributes = FALSE, tolerance = 0))
    }
    names <- intersect(names(frame), names(data))
    own <- object$roles[intersect(c("donor", "celltype", "noise"), names(object$roles))]
    columns <- c(named(names, names), named(unlist(own), paste0("(", names(unlist(own)), ")")))
    response <- eval(object$given[[2L]], data, environment(object$given))
    alike(kept(response), frame[[1L]]) &&
      all(mapply(function(of, name) alike(kept(data[[name]]), frame[[of]]), names(columns), columns))
  }, error = function(e) FALSE)
}

#' @rdname ctmm-methods
#' @export
confint.ctmm <- function(object, parm, level = 0.95, covariance = NULL,
                         method = c("wald", "log", "profile"), ...) {
  no_more(...)
  check_level(level)
  method <- match.arg(method)
  errors <- errors_of(object, covariance)
  value <- c(object$beta, object$vcomp)
  out <- intervals(value, sqrt(diag(errors$cov)), errors$df, level)
  if (identical(errors$name, "robust")) {
    out[names(object$beta), ] <- linear_of(object, diag(length(object$beta)), errors, level)$ends
    at <- names(object$vcomp)
    out[at, ] <- variance_intervals(value[at], sqrt(diag(errors$cov))[at], object$df.residual,
                                    object$error_df, level)
  }
  at <- names(object$vcomp)
  if (method == "profile")
    out[at, ] <- array_in(ask("profiles", list(fit = stored(object), alpha = 1 - level)))
  if (method == "log") {
    df <- if (length(errors$df) > 1L) errors$df[at] else errors$df
    ends <- log(ifelse(value[at] > 0, value[at], NA_real_))
    part <- stats::qt((1 + level) / 2, ifelse(df > 0, df, NA_real_)) * sqrt(diag(errors$cov))[at] / value[at]
    out[at, ] <- exp(ends + cbind(-part, part))
  }
  if (missing(parm)) return(out)
  if (identical(parm, "beta_")) parm <- names(object$beta)
  if (identical(parm, "theta_")) parm <- names(object$vcomp)
  if (is.character(parm) && !all(parm %in% rownames(out)))
    fail("CTMMError", "there is no parameter ", listing(setdiff(parm, rownames(out))),
         ": choose from ", listing(rownames(out), 20L))
  out[parm, , drop = FALSE]
}

intervals <- function(value, se, df, level) {
  tail <- (1 - level) / 2
  df <- ifelse(df > 0, df, NA_real_)
  reach <- stats::qt(1 - tail, df) * se
  columns <- paste(format(100 * c(tail, 1 - tail), trim = TRUE, digits = 3), "%")
  matrix(c(value - reach, value + reach), ncol = 2L, dimnames = list(names(value), columns))
}

# By t on the scale of log(value + c), where the standard error is (2 / df)^1/2 (value + c); t has the
# degrees of freedom of the standard error.
variance_intervals <- function(value, se, df, df_se, level) {
  if (!isTRUE(df > 0)) return(NA_real_)
  whole <- pmax(value, se * sqrt(df / 2))
  reach <- stats::qt((1 + level) / 2, df_se) * se / whole
  value + whole * cbind(expm1(-reach), expm1(reach))
}

check_level <- function(level) {
  if (!is.numeric(level) || length(level) != 1L || !isTRUE(level > 0 && level < 1))
    fail("CTMMError", "level must lie between 0 and 1")
}

# Estimates, standard errors, t and p; variances are tested one-sidedly.
estimates <- function(object, covariance = NULL) {
  errors <- errors_of(object, covariance)
  value <- c(object$beta, object$vcomp)
  se <- sqrt(diag(errors$cov))
  t <- value / se
  df <- errors$df
  variance <- seq_along(value) > length(object$beta)
  given <- ifelse(df > 0, df, NA_real_)
  p <- ifelse(variance, stats::pt(t, given, lower.tail = FALSE), 2 * stats::pt(-abs(t), given))
  if (!object$convergence$converged) p[variance] <- NA_real_
  if (isTRUE(errors$own)) {
    own <- linear_of(object, diag(length(object$beta)), errors)
    t[!variance] <- own$t
    p[!variance] <- own$p
  }
  out <- cbind(Estimate = value, `Std. Error` = se, `t value` = t, p = p)
  list(fixed = `colnames<-`(out[!variance, , drop = FALSE],
                            c("Estimate", "Std. Error", "t value", "Pr(>|t|)")),
       variance = `colnames<-`(out[variance, , drop = FALSE],
                               c("Estimate", "Std. Error", "t value", "Pr(>t)")),
       df = df, name = errors$name)
}

#' Means of Cell Types and Shares of Variance
#'
#' \code{celltype_means} gives the mean of each cell type at the observed covariates (their mean over
#' all rows, offsets left out); \code{variance_explained} splits the variance of overall pseudobulk into
#' means, other fixed effects, what all cell types share, what is specific to each, random effects and
#' noise; \code{icc} is the variance between donors over that of one row, by cell type.
#'
#' @param object a fit of \code{\link{ctmm}}.
#' @param level of the confidence intervals.
#' @param covariance \code{"model"}, \code{"kenward-roger"}, \code{"jackknife"}, \code{"robust"}, or what
#' \code{\link{jackknife}} returned.
#' @return Data frames.
#' @examplesIf !nzchar(ctmm_check()$problem)
#' fit <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = pseudobulk)
#' celltype_means(fit)
#' variance_explained(fit)
#' icc(fit)
#' @rdname means
#' @export
celltype_means <- function(object, level = 0.95, covariance = NULL) {
  check_fit(object)
  check_level(level)
  errors <- errors_of(object, covariance)
  L <- object$mean_rows
  value <- drop(L %*% object$beta)
  own <- linear_of(object, L, errors, level)
  data.frame(celltype = object$celltypes, estimate = value, std.error = own$se,
             conf.low = own$ends[, 1L], conf.high = own$ends[, 2L], row.names = NULL)
}

#' @rdname means
#' @export
variance_explained <- function(object) {
  check_fit(object)
  data.frame(component = rownames(object$shares), object$shares, row.names = NULL)
}

#' @rdname means
#' @export
icc <- function(object) {
  check_fit(object)
  if (is.null(object$icc))
    fail("CTMMError", "the variances change with '", object$crossing$column, "', so there is no one icc")
  data.frame(celltype = rownames(object$icc), object$icc, row.names = NULL)
}

check_fit <- function(object) {
  if (!inherits(object, "ctmm"))
    fail("CTMMError", "this needs a fit of ctmm(), got ", class(object)[1L])
}

METHODS <- c(ml = "ML", reml = "REML", he = "HE (method of moments)",
             robust = "robust moments")
KINDS <- c(ctp = "cell type-specific pseudobulk", op = "overall pseudobulk")

#' @export
print.ctmm <- function(x, digits = max(3L, getOption("digits") - 3L), ...) {
  no_more(..., passed = PRINTED)
  cat(sprintf("Cell type-specific mixed model fit by %s, structure %s\n", METHODS[[x$method]],
              x$structure))
  cat("Formula: ", as_text(x$formula), "\n", sep = "")
  cat_sizes(x)
  cat("\nFixed effects:\n")
  print(x$beta, digits = digits, ...)
  cat("\nVariance components:\n")
  print(x$vcomp, digits = digits, ...)
  cat_state(x)
  invisible(x)
}

cat_sizes <- function(x) {
  if (!is.na(x$loglik)) {
    value <- stats::logLik(x)
    cat(sprintf("logLik: %.4f (df = %d)  AIC: %.2f  BIC: %.2f\n", x$loglik, attr(value, "df"),
                stats::AIC(value), stats::BIC(value)))
  }
  cat(sprintf("Rows: %d of %d possible, donors: %d, cell types: %d\n", x$n, x$n_possible,
              x$n_donors, length(x$celltypes)))
}

cat_notes <- function(notes)
  for (note in notes) cat(strwrap(note, exdent = 2L, prefix = "\n", initial = "Note: "), "\n", sep = "")

# The domain of the variance components; moments know no bounds.
bounds_of <- function(x) if (x$method %in% c("he", "robust")) "none" else x$bounds

cat_state <- function(x) {
  if (!x$convergence$converged)
    cat("\nThe optimisation did not converge: ", x$convergence$message, "\n", sep = "")
  else if (x$convergence$boundary)
    cat(sprintf("\nThe estimate lies on the edge of its domain (bounds = \"%s\").\n", x$bounds))
}

#' @rdname ctmm-methods
#' @export
summary.ctmm <- function(object, covariance = NULL, ...) {
  no_more(...)
  tables <- estimates(object, covariance)
  out <- object[c("call", "formula", "method", "structure", "bounds", "noise_floor", "kind", "n",
                  "n_possible", "n_donors", "celltypes", "loglik", "df.residual", "convergence",
                  "notes", "versions", "beta", "vcomp")]
  out$coefficients <- tables$fixed
  out$varcomp <- tables$variance
  out$covariance <- tables$name
  out$df <- tables$df
  out$shares <- variance_explained(object)
  out$criteria <- if (is.na(object$loglik)) NULL else
    c(logLik = object$loglik, AIC = stats::AIC(object), BIC = stats::BIC(object))
  structure(out, class = "summary.ctmm")
}

#' @export
coef.summary.ctmm <- function(object, ...) {
  no_more(...)
  object$coefficients
}

#' @export
print.summary.ctmm <- function(x, digits = max(3L, getOption("digits") - 3L),
                               signif.stars = getOption("show.signif.stars"), ...) {
  no_more(...)
  cat(sprintf("Cell type-specific mixed model fit by %s\n", METHODS[[x$method]]))
  cat("Formula:   ", as_text(x$formula), "\n", sep = "")
  bounds <- bounds_of(x)
  if (bounds == "noise") bounds <- sprintf("noise (floor %g)", x$noise_floor)
  cat("Structure: ", x$structure, ", bounds: ", bounds, "\n", sep = "")
  cat("Data:      ", KINDS[[x$kind]], "\n", sep = "")
  cat(sprintf("Rows: %d of %d possible, donors: %d, cell types: %d, residual df: %d\n", x$n,
              x$n_possible, x$n_donors, length(x$celltypes), x$df.residual))
  if (!is.null(x$criteria))
    cat(sprintf("logLik: %.4f  AIC: %.4f  BIC: %.4f\n", x$criteria[[1L]], x$criteria[[2L]],
                x$criteria[[3L]]))
  cat("\nVariance components:\n")
  stats::printCoefmat(x$varcomp, digits = digits, signif.stars = signif.stars, signif.legend = FALSE,
                      P.values = TRUE, has.Pvalue = TRUE, na.print = "NA")
  cat("\nFixed effects:\n")
  stats::printCoefmat(x$coefficients, digits = digits, signif.stars = signif.stars,
                      P.values = TRUE, has.Pvalue = TRUE, na.print = "NA")
  cat("\nShares of the variance of overall pseudobulk:\n")
  shares <- x$shares
  print(data.frame(variance = shares$variance, share = sprintf("%.1f %%", 100 * shares$share),
                   row.names = shares$component), digits = digits)
  what <- switch(
    x$covariance, robust = "robust (CR2; of variances the larger of jackknife and working model)",
    `kenward-roger` = "Kenward and Roger's, of variances by the model",
    model = "model (inverse expected information, as if the noise variances were known)", x$covariance)
  if (length(x$df) > 1L)
    cat("\nStandard errors: ", what, ";",
        "\np values by t with Satterthwaite's degrees of freedom, of variances with the residual df,",
        "\none-sided.\n", sep = "")
  else
    cat(sprintf("\nStandard errors: %s; p values by t on %g df, one-sided for variances.\n", what, x$df))
  if (x$covariance == "robust")
    cat("t of fixed effects takes the noise that counts have halfway to the tested value, so it is",
        "\nnot quite estimate / error, and intervals hold the values that it does not reject.\n", sep = "")
  cat_notes(x$notes)
  cat_state(x)
  invisible(x)
}
