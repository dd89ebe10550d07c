# What is asked of Python about a fit: tests, jackknife, bootstrap, comparisons.

#' Tests of Variances and Means
#'
#' \code{test_variance} asks whether donors differ alike in all cell types (V = 0), \code{test_mean}
#' whether all cell types have the same mean, \code{test_component} whether one variance is positive.
#'
#' @param object a fit of \code{\link{ctmm}}.
#' @param method of \code{test_variance}: \code{"score"}, the noise-robust score test;
#' \code{"jackknife"} or \code{"wald"}, an F test with the jackknife's or the model's covariance;
#' \code{"lrt"} or \code{"bootstrap"}, the likelihood ratio to the structure \code{"hom"} against
#' chi-squared or a parametric bootstrap. \code{NULL} leaves the choice to the Python package, and the
#' result names it. After ML and REML the jackknife rejects too often near V = 0: confirm what
#' it finds by the score test. Of \code{test_component}: \code{"wald"} (default after ML and REML) or
#' \code{"jackknife"} (after HE), a one-sided t test by the same covariances (robust fits have by default
#' the same test with their own), or \code{"exact"}, the
#' exact restricted likelihood ratio test where the component is the model's only one.
#' @param covariance what \code{\link{jackknife}} returned, for \code{method = "jackknife"}; of
#' \code{test_mean} also \code{"robust"} (an approximate Hotelling test of the robust estimate, default
#' wherever numbers of cells are known, whatever the fit), \code{"kenward-roger"} (default elsewhere after
#' REML), \code{"jackknife"} (default elsewhere after ML and HE, and published) or \code{"model"}.
#' @param name a name of the variance components, such as \code{"hom"} or \code{"V[T]"}.
#' @param n,seed draws of the bootstrap or the exact test, and their seed; by default one that
#' \code{\link{set.seed}} governs.
#' @param threads number of threads; the numbers do not depend on it.
#' @param ... nothing: an argument that is not listed is an error.
#' @return
#' An object of classes \code{"ctmm_test"} and \code{"htest"}: \code{statistic}, \code{parameter},
#' \code{p.value} (\code{NaN} where the test cannot be had), \code{note} with the reason or a caution,
#' and \code{extra}, for example p values by cell type. \code{log.p.value} and \code{log.extra} are natural
#' logarithms of p values, which are there where the p values are too small for a number.
#' @examplesIf !nzchar(ctmm_check()$problem)
#' fit <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = pseudobulk)
#' test_variance(fit, "jackknife")
#' test_variance(fit, "score")$extra$celltype
#' test_mean(fit)
#' test_component(fit, "batch")
#' @rdname tests
#' @export
test_variance <- function(object, ...) UseMethod("test_variance")

#' @rdname tests
#' @export
test_mean <- function(object, ...) UseMethod("test_mean")

#' @rdname tests
#' @export
test_component <- function(object, ...) UseMethod("test_component")

#' Tests of Groups and of Responses
#'
#' \code{test_groups} asks whether donors vary alike in all groups of a fit with \code{by =},
#' \code{test_response} whether donors respond alike to the conditions of a fit with \code{within =}.
#' Both are noise-robust score tests: that cells of a group are fewer, or noisier, is no reason for a small
#' p value.
#'
#' @param object a fit of \code{\link{ctmm}} with \code{by =} or \code{within =}.
#' @param ... nothing: an argument that is not listed is an error.
#' @return
#' As \code{\link{test_variance}}. Of groups, two-sided: \code{p.value} of all variances being scaled,
#' \code{extra$shared} of the shared variance, \code{extra$celltype} of the whole variance of each cell
#' type; \code{extra$law} and \code{extra$empirical} have those by the law of normal donors and by the
#' differences between donors: where a group has fewer than 40 donors the larger counts, else the
#' empirical. Of responses, one-sided: any, \code{extra$shared} by all cell types, \code{extra$specific} to
#' some, and \code{extra$celltype} in each by its own rows alone.
#' @examplesIf !nzchar(ctmm_check()$problem)
#' fit <- ctmm(expr ~ celltype * sex, by = ~ sex, data = pseudobulk)
#' fit$vcomp
#' test_groups(fit)
#' @rdname groups
#' @export
test_groups <- function(object, ...) UseMethod("test_groups")

#' @rdname groups
#' @export
test_response <- function(object, ...) UseMethod("test_response")

#' @rdname groups
#' @export
test_groups.ctmm <- function(object, ...) {
  no_more(...)
  run_test(object, "groups")
}

#' @rdname groups
#' @export
test_response.ctmm <- function(object, ...) {
  no_more(...)
  run_test(object, "response")
}

#' Jackknife over Donors and Parametric Bootstrap
#'
#' Covariances of all parameters without trust in the model's information matrix.
#'
#' @param object a fit of \code{\link{ctmm}}.
#' @param blocks leave out this many groups of donors in turn instead of single donors.
#' @param one_step one step from the full fit in place of complete refits, for many donors.
#' @param n,seed number of draws and their seed.
#' @param threads number of threads; the numbers do not depend on it.
#' @param progress show a progress bar.
#' @param ... nothing: an argument that is not listed is an error.
#' @return
#' Objects with methods for \code{print}, \code{vcov} and \code{confint}. A jackknife has the leave-out
#' \code{estimates} and can be given as \code{covariance} to \code{vcov}, \code{confint},
#' \code{summary}, \code{predict} and the tests of the same fit; a bootstrap has its
#' \code{replicates}.
#' @examplesIf !nzchar(ctmm_check()$problem)
#' fit <- ctmm(expr ~ celltype + sex, data = pseudobulk, structure = "hom")
#' jack <- jackknife(fit)
#' jack
#' coef(summary(fit, covariance = jack))
#' bootstrap(fit, n = 20, seed = 1)
#' @rdname jackknife
#' @export
jackknife <- function(object, ...) UseMethod("jackknife")

#' @rdname jackknife
#' @export
bootstrap <- function(object, ...) UseMethod("bootstrap")

#' @rdname tests
#' @export
test_variance.ctmm <- function(object, method = NULL, covariance = NULL, n = 999, seed = NULL,
                               threads = 1, ...) {
  no_more(...)
  if (inherits(method, "ctmm_jackknife")) covariance <- method
  if (inherits(covariance, "ctmm_jackknife")) method <- "jackknife"
  else if (!is.null(method)) method <- single(method, "method", is.character)
  run_test(object, "variance", method = method, covariance = covariance, n = n,
           seed = if (draws("tests", method)) seed_of(seed), threads = threads)
}

# Whether one of these tests draws random numbers, by the registry of the Python package.
draws <- function(registry, names) {
  if (!length(names)) return(FALSE)
  if (is.null(state$tests)) state$tests <- ask("tests", list())
  any(vapply(state$tests[[registry]][as.character(names)], function(needs) "draws" %in% unlist(needs), NA))
}

#' @rdname tests
#' @export
test_mean.ctmm <- function(object, covariance = NULL, ...) {
  no_more(...)
  run_test(object, "mean", covariance = covariance)
}

#' @rdname tests
#' @export
test_component.ctmm <- function(object, name, method = NULL, covariance = NULL, n = 10000,
                                seed = NULL, ...) {
  no_more(...)
  if (inherits(method, "ctmm_jackknife")) covariance <- method
  if (inherits(covariance, "ctmm_jackknife")) method <- "jackknife"
  else if (!is.null(method)) method <- single(method, "method", is.character)
  if (missing(name) || !is.character(name) || length(name) != 1L)
    fail("CTMMError", "name one variance component: ", listing(names(object$vcomp), 20L))
  run_test(object, "component", name = name, method = method, covariance = covariance, n = n,
           seed = if (draws("component", method)) seed_of(seed))
}

run_test <- function(object, what, name = NULL, method = NULL, covariance = NULL, n = NULL,
                     seed = NULL, threads = 1) {
  out <- ask("test", list(
    fit = stored(object), what = what, name = name, method = method,
    covariance = covariance_out(covariance), seed = seed, n = whole(n, "n", 1L),
    n_jobs = threads_of(threads)))
  test_in(out, object)
}

# A test as Python sends it.
test_in <- function(out, object) {
  df <- as.double(unlist(out$df))
  parameter <- if (length(df) == 2L) c(`num df` = df[1L], `denom df` = df[2L])
               else if (!is.na(df)) c(df = df)
  symbol <- c(F = "F", t = "t", chi2 = "X-squared")
  statistic <- named(as.double(out$statistic), if (out$distribution %in% names(symbol))
    symbol[[out$distribution]] else "statistic")
  structure(list(
    statistic = statistic, parameter = parameter, p.value = as.double(out$pvalue),
    log.p.value = as.double(out$log_pvalue),
    method = paste0(out$name, ": ", out$method), null = out$null, distribution = out$distribution,
    note = in_r(out$note), extra = lapply(out$extra, function(x) if (is.list(x)) unlist(x) else x),
    log.extra = lapply(out$log_details, function(x) if (is.list(x)) unlist(x) else x),
    data.name = as_text(object$formula)), class = c("ctmm_test", "htest"))
}

covariance_out <- function(covariance) {
  if (!inherits(covariance, "ctmm_jackknife")) return(covariance)
  covariance[c("run", "kind", "error")]
}

#' @export
print.ctmm_test <- function(x, digits = 4L, ...) {
  no_more(...)
  cat(x$method, "\n  null hypothesis: ", x$null, "\n", sep = "")
  df <- if (length(x$parameter)) sprintf("(%s)", paste(format(x$parameter, digits = digits, trim = TRUE),
                                                       collapse = ", ")) else ""
  symbol <- if (nzchar(df)) x$distribution else "statistic"
  cat(sprintf("  %s%s = %s, p = %s\n", symbol, df, format(x$statistic[[1L]], digits = digits),
              shown_p(x$p.value, x$log.p.value, digits)))
  if (nzchar(x$note)) cat(strwrap(paste("note:", x$note), indent = 2L, exdent = 4L), sep = "\n")
  for (name in names(x$extra)) {
    value <- x$extra[[name]]
    shown <- if (is.numeric(value)) shown_p(value, x$log.extra[[name]], digits) else value
    if (!is.null(names(value))) shown <- paste(names(value), shown, sep = " = ")
    cat("  ", name, ": ", paste(shown, collapse = ", "), "\n", sep = "")
  }
  invisible(x)
}

# P values as text, by their logarithms where they are too small for a number.
shown_p <- function(p, log, digits) {
  out <- format(p, digits = digits, trim = TRUE)
  if (length(log) != length(p)) return(out)
  small <- is.finite(log) & log < base::log(1e-300)
  power <- floor(log[small] / base::log(10))
  out[small] <- sprintf("%.*ge%.0f", digits, 10^(log[small] / base::log(10) - power), power)
  out
}

seed_of <- function(seed) {
  if (is.null(seed)) return(sample.int(.Machine$integer.max, 1L))
  whole(seed, "seed", 0L)
}

flag <- function(x, name) {
  if (isTRUE(x) || isFALSE(x)) return(x)
  fail("CTMMError", name, " = must be TRUE or FALSE, got ", as_text(x))
}

whole <- function(x, name, low) {
  if (is.null(x)) return(NULL)
  if (!is.numeric(x) || length(x) != 1L || is.na(x) || x != round(x) || x < low ||
      x > .Machine$integer.max)
    fail("CTMMError", name, " = must be a whole number of at least ", low)
  as.integer(x)
}

threads_of <- function(threads) {
  if (identical(as.double(threads), -1)) -1L else whole(threads, "threads", 1L)
}

#' @rdname jackknife
#' @export
jackknife.ctmm <- function(object, blocks = NULL, one_step = FALSE, threads = 1, progress = FALSE,
                           ...) {
  no_more(...)
  blocks <- whole(blocks, "blocks", 2L)
  bar <- progress_bar(progress, blocks %||% length(object$donors))
  on.exit(bar$close())
  out <- ask("jackknife", list(fit = stored(object), blocks = blocks, one_step = flag(one_step, "one_step"),
                               n_jobs = threads_of(threads)))
  bar$set(blocks %||% length(object$donors))
  names <- c(names(object$beta), names(object$vcomp))
  run <- out$run
  out$params <- c(object$beta, object$vcomp)
  out$estimates <- array_in(out$estimates)
  dimnames(out$estimates) <- list(text(out$left_out), names)
  out$cov <- square(out$cov, names)
  out$failed <- vapply(out$failed, as.character, "")
  out$run <- run[c("theta", "beta", "cov", "left_out", "failed")]
  out$left_out <- out$names <- NULL
  structure(out, class = "ctmm_jackknife")
}

#' @export
vcov.ctmm_jackknife <- function(object, ...) {
  no_more(...)
  object$cov
}

#' @export
coef.ctmm_jackknife <- function(object, ...) {
  no_more(...)
  object$params
}

#' @export
confint.ctmm_jackknife <- function(object, parm, level = 0.95, ...) {
  no_more(...)
  check_level(level)
  out <- intervals(object$params, sqrt(diag(object$cov)), min(object$df_resid, object$groups - 1),
                   level)
  if (missing(parm)) out else out[parm, , drop = FALSE]
}

#' @export
print.ctmm_jackknife <- function(x, digits = max(3L, getOption("digits") - 3L), ...) {
  no_more(..., passed = PRINTED)
  failed <- if (length(x$failed)) paste(length(x$failed), "failed") else "none failed"
  cat(sprintf("Jackknife over donors (%s): %d refits, %s\n", x$name, x$groups, failed))
  print(cbind(Estimate = x$params, `Std. Error` = sqrt(diag(x$cov)), stats::confint(x)),
        digits = digits, ...)
  for (who in names(x$failed)) cat("  without ", who, ": ", x$failed[[who]], "\n", sep = "")
  invisible(x)
}

#' @rdname jackknife
#' @export
bootstrap.ctmm <- function(object, n = 200, seed = NULL, threads = 1, progress = FALSE, ...) {
  no_more(...)
  n <- whole(n, "n", 1L)
  seed <- seed_of(seed)
  bar <- progress_bar(progress, n)
  on.exit(bar$close())
  step <- if (progress) max(1L, n %/% 20L) else n
  parts <- list()
  start <- 0L
  fit <- stored(object)
  while (start < n) {
    stop <- min(start + step, n)
    parts[[length(parts) + 1L]] <- ask("bootstrap", list(
      fit = fit, seed = seed, start = start, stop = stop, n_jobs = threads_of(threads)))
    bar$set(stop)
    start <- stop
  }
  names <- c(names(object$beta), names(object$vcomp))
  replicates <- do.call(rbind, lapply(parts, function(part) array_in(part$replicates)))
  dimnames(replicates) <- list(NULL, names)
  failed <- unlist(lapply(parts, function(part)
    vapply(part$failed, function(one) as.character(one[[2L]]), "")))
  structure(list(params = c(object$beta, object$vcomp), replicates = replicates,
                 failed = as.character(failed), seed = seed), class = "ctmm_bootstrap")
}

#' @export
vcov.ctmm_bootstrap <- function(object, ...) {
  no_more(...)
  stats::cov(object$replicates, use = "complete.obs")
}

#' @export
confint.ctmm_bootstrap <- function(object, parm, level = 0.95, ...) {
  no_more(...)
  check_level(level)
  tail <- c((1 - level) / 2, (1 + level) / 2)
  out <- t(apply(object$replicates, 2L, stats::quantile, tail, na.rm = TRUE))
  colnames(out) <- paste(format(100 * tail, trim = TRUE, digits = 3), "%")
  if (missing(parm)) out else out[parm, , drop = FALSE]
}

#' @export
print.ctmm_bootstrap <- function(x, digits = max(3L, getOption("digits") - 3L), ...) {
  no_more(..., passed = PRINTED)
  failed <- if (length(x$failed)) paste(length(x$failed), "failed") else "none failed"
  cat(sprintf("Parametric bootstrap: %d refits, %s\n", nrow(x$replicates), failed))
  print(cbind(Estimate = x$params, `Std. Error` = sqrt(diag(stats::vcov(x))), stats::confint(x)),
        digits = digits, ...)
  invisible(x)
}

progress_bar <- function(show, total) {
  if (!flag(show, "progress")) return(list(set = function(k) NULL, close = function() NULL))
  bar <- utils::txtProgressBar(0, total, style = 3)
  list(set = function(k) utils::setTxtProgressBar(bar, k), close = function() close(bar))
}

#' @rdname ctmm-methods
#' @export
anova.ctmm <- function(object, ...) {
  na <- function(x) ifelse(is.nan(x), NA_real_, x)
  fits <- list(object, ...)
  given <- as.list(match.call())[-1L]
  if (length(fits) == 1L) return(anova_terms(object))
  wrong <- Filter(function(fit) !inherits(fit, "ctmm"), fits)
  if (length(wrong))
    fail("CTMMError", "anova compares fits of ctmm(), got ", class(wrong[[1L]])[1L])
  # names of variables; else structures; else numbers
  labels <- if (all(vapply(given, is.name, NA))) vapply(unname(given), as.character, "")
            else vapply(fits, function(fit) fit$structure, "")
  if (anyDuplicated(labels)) labels <- paste("fit", seq_along(fits))
  got <- ask("anova", list(fits = unname(lapply(fits, stored)), labels = as.list(labels)))
  table <- table_in(got)
  from <- match(rownames(table), labels)
  out <- data.frame(
    npar = table$n_params, AIC = table$aic, BIC = table$bic, logLik = table$llf,
    Chisq = na(table$statistic), Df = na(table$df), `Pr(>Chisq)` = na(table$pvalue), check.names = FALSE,
    row.names = rownames(table))
  models <- vapply(fits[from], function(fit)
    paste0(as_text(fit$formula), "; structure ", fit$structure), "")
  notes <- text(got$notes)
  heading <- c(sprintf("Likelihood ratio tests of nested fits (%s)", METHODS[[object$method]]),
               paste0(rownames(out), ": ", models),
               paste0("Note: ", notes[nzchar(notes)])[any(nzchar(notes))])
  structure(out, heading = c(heading, ""), class = c("anova", "data.frame"))
}

# One fit: F tests of the terms of the fixed part, each given all others before it.
anova_terms <- function(object) {
  resampled <- object$cov_type == "jackknife"
  assign <- object$assign
  labels <- attr(object$terms, "term.labels")
  cov <- stats::vcov(object)
  rows <- lapply(seq_along(labels), function(k) {
    # sequential: drop the coefficients of later terms from the Cholesky factor of the information
    use <- which(assign <= k)
    own <- which(assign[use] == k)
    information <- solve(cov)
    sub <- solve(information[use, use, drop = FALSE])
    score <- information[use, , drop = FALSE] %*% object$beta
    b <- drop(sub %*% score)
    if (!resampled) {
      L <- (sub %*% information[use, , drop = FALSE])[own, , drop = FALSE]
      test <- ask("linear", list(fit = stored(object), L = f8(unname(L)), joint = TRUE))$test
      return(c(as.double(test$statistic), as.double(unlist(test$df))[2L]))
    }
    c(drop(b[own] %*% solve(sub[own, own, drop = FALSE], b[own])) / length(own), object$df.residual)
  })
  q <- vapply(seq_along(labels), function(k) sum(assign == k), 0L)
  f <- vapply(rows, `[`, 0, 1L)
  df <- vapply(rows, `[`, 0, 2L)
  p <- stats::pf(f, q, df, lower.tail = FALSE)
  if (!resampled) {
    out <- data.frame(Df = q, `Denom. df` = df, `F value` = f, `Pr(>F)` = p, check.names = FALSE,
                      row.names = labels)
    heading <- sprintf("Wald tests of the fixed part, terms in sequence (%s)\n", object$cov_type)
    return(structure(out, heading = heading, class = c("anova", "data.frame")))
  }
  out <- data.frame(Df = q, `F value` = f, `Pr(>F)` = p, check.names = FALSE, row.names = labels)
  structure(out, heading = c("Wald tests of the fixed part, terms in sequence",
                             sprintf("Denominator: %d residual df\n", object$df.residual)),
            class = c("anova", "data.frame"))
}
