# Tables as broom and broom.mixed make them.

#' Tables in the Style of broom
#'
#' \code{tidy} has one row per parameter, \code{glance} one row per fit, \code{augment} one row per row
#' of the data. Of all genes \code{tidy} has one row per gene and test, \code{glance} one row per scan.
#'
#' @param x a fit of \code{\link{ctmm}}, or what \code{\link{ctmm_genes}} returned.
#' @param effects some of \code{"fixed"}, \code{"ran_pars"} (variance components) and \code{"ran_vals"}
#' (predicted effects).
#' @param scales variance components as they are, tested one-sidedly, or standard deviations and
#' correlations of the cell types under the names of \pkg{broom.mixed} (\code{sd__}, \code{cor__}).
#' @param conf.int,conf.level add intervals, and their level.
#' @param covariance \code{"model"}, \code{"kenward-roger"}, \code{"jackknife"}, \code{"robust"}, or what
#' \code{\link{jackknife}} returned.
#' @param data the table of the fit; by default the model frame, with a dot before columns that are not
#' in the formula.
#' @param ... nothing: an argument that is not listed is an error.
#' @return Data frames; tibbles where \pkg{tibble} is loaded, with row names as column
#' \code{.rownames}. Of all genes \code{test} is a test as it was asked for and \code{term} what it is
#' of: a cell type (one of such a name is \code{"celltype mean"}), \code{"mean"}, \code{"heterogeneity"}, or
#' \code{""} for all; \code{df1} is of F tests, \code{p.bonferroni} and \code{p.bh} are adjusted over genes.
#' @examplesIf !nzchar(ctmm_check()$problem)
#' fit <- ctmm(expr ~ celltype + sex, data = pseudobulk)
#' tidy(fit, conf.int = TRUE)
#' glance(fit)
#' head(augment(fit, pseudobulk))
#' @name ctmm-tidiers
#' @rdname tidiers
#' @export
tidy.ctmm <- function(x, effects = c("fixed", "ran_pars"), scales = c("vcov", "sdcor"),
                      conf.int = FALSE, conf.level = 0.95, covariance = NULL, ...) {
  no_more(...)
  known <- c("fixed", "ran_pars", "ran_vals")
  if (!all(effects %in% known))
    fail("CTMMError", "effects must be some of ", listing(known))
  scales <- match.arg(scales)
  tables <- estimates(x, covariance)
  ends <- if (conf.int) stats::confint(x, level = conf.level, covariance = covariance)
  out <- list()
  if ("fixed" %in% effects) out$fixed <- tidy_rows("fixed", NA_character_, tables$fixed, ends)
  if ("ran_pars" %in% effects) {
    n <- x$n_labels
    genetic <- nrow(tables$variance) - n - length(x$random_names)
    group <- c(rep(x$roles$donor, n), x$random_names,
               rep(names(x$kinship), each = genetic %/% max(length(x$kinship), 1L)))
    out$variance <- if (scales == "vcov") tidy_rows("ran_pars", group, tables$variance, ends)
                    else sd_rows(x, !is.null(ends))
  }
  if ("ran_vals" %in% effects) out$values <- value_rows(x, !is.null(ends), conf.level)
  out <- do.call(rbind, unname(out))
  rownames(out) <- NULL
  as_loaded(out)
}

#' @rdname tidiers
#' @export
tidy.ctmm_genes <- function(x, ...) {
  no_more(...)
  terms <- about_genes(x, "tidy")$terms
  name <- paste0(terms[, 1L], terms[, 2L])
  column <- function(kind, end = "") as.double(unlist(lapply(sprintf("%s%s%s", kind, name, end), function(one)
    x[[one]] %||% rep(NA_real_, nrow(x)))))
  as_loaded(data.frame(
    gene = rep(x$gene, length(name)), test = rep(terms[, 1L], each = nrow(x)),
    term = rep(terms[, 3L], each = nrow(x)), estimate = column("estimate_"), std.error = column("se_"),
    statistic = column("stat_"), df1 = column("df1_"), df = column("df_"), p.value = column("p_"),
    log10.p.value = column("log10_p_"), p.bonferroni = column("p_", "_bonferroni"),
    p.bh = column("p_", "_bh")))
}

# What a scan says of itself.
about_genes <- function(x, what)
  attr(x, "ctmm") %||% fail("CTMMError", what, "() takes what ctmm_genes() returned, with all its columns")

# A tibble in sessions that work with tibbles.
as_loaded <- function(table) {
  if (!isNamespaceLoaded("tibble")) return(table)
  names <- attr(table, "row.names")
  if (is.character(names)) table <- cbind(.rownames = names, table)
  tibble::as_tibble(table)
}

tidy_rows <- function(effect, group, table, ends) {
  out <- data.frame(effect = effect, group = group, term = rownames(table),
                    estimate = table[, 1L], std.error = table[, 2L], statistic = table[, 3L],
                    p.value = table[, 4L])
  if (!is.null(ends)) {
    out$conf.low <- ends[rownames(table), 1L]
    out$conf.high <- ends[rownames(table), 2L]
  }
  out
}

# Standard deviations and correlations of the cell types, terms as in broom.mixed.
sd_rows <- function(x, ends) {
  table <- as.data.frame(VarCorr.ctmm(x))
  term <- ifelse(is.na(table$var2), paste0("sd__", table$var1),
                 paste0("cor__", table$var1, ".", table$var2))
  out <- data.frame(effect = "ran_pars", group = table$grp, term = term, estimate = table$sdcor,
                    std.error = NA_real_, statistic = NA_real_, p.value = NA_real_)
  if (ends) out$conf.low <- out$conf.high <- NA_real_
  out
}

value_rows <- function(x, ends, level) {
  values <- as.data.frame(ranef.ctmm(x))
  out <- data.frame(effect = "ran_vals", group = values$grpvar,
                    term = paste0(values$term, "[", values$grp, "]"), estimate = values$condval,
                    std.error = values$condsd, statistic = NA_real_, p.value = NA_real_)
  if (ends) {
    reach <- stats::qnorm((1 + level) / 2) * out$std.error
    out$conf.low <- out$estimate - reach
    out$conf.high <- out$estimate + reach
  }
  out
}

#' @rdname tidiers
#' @export
glance.ctmm <- function(x, ...) {
  no_more(...)
  likelihood <- !is.na(x$loglik)
  as_loaded(data.frame(
    structure = x$structure, method = x$method, bounds = bounds_of(x), kind = x$kind, nobs = x$n,
    n_donors = x$n_donors, n_celltypes = length(x$celltypes),
    logLik = x$loglik, AIC = if (likelihood) stats::AIC(x) else NA_real_,
    BIC = if (likelihood) stats::BIC(x) else NA_real_, df = length(x$beta) + length(x$vcomp),
    df.residual = x$df.residual, converged = x$convergence$converged,
    boundary = x$convergence$boundary))
}

#' @rdname tidiers
#' @export
glance.ctmm_genes <- function(x, ...) {
  no_more(...)
  about <- about_genes(x, "glance")
  counts <- table(factor(x$status, c("ok", "boundary", "not converged", "failed")))
  as_loaded(data.frame(
    structure = structure_name(about$structure), method = about$method, bounds = bounds_of(about),
    n_genes = nrow(x), ok = counts[["ok"]], boundary = counts[["boundary"]],
    not.converged = counts[["not converged"]], failed = counts[["failed"]],
    n_celltypes = length(about$celltypes), n_tests = length(about$tested)))
}

#' @rdname tidiers
#' @export
augment.ctmm <- function(x, data = NULL, ...) {
  no_more(...)
  frame <- x$model
  frame <- frame[!names(frame) %in% c("(row)", "(proportions)")]
  names(frame) <- sub("^\\((random\\.)?(.*)\\)$", ".\\2", names(frame))
  base <- if (is.null(data)) frame else {
    if (is_pseudobulk(data)) data <- gene_data(data, x$given)
    data <- as_table(data)
    if (!is_table_of(data, x))
      fail("DataError", "data is not the table of the fit: augment(fit) does without")
    data[x$rows, , drop = FALSE]
  }
  attr(base, "terms") <- NULL
  base$.fitted <- conditional(x)
  base$.resid <- x$y - base$.fitted
  base$.fixed <- marginal(x)
  as_loaded(base)
}
