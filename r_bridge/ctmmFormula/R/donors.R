# Single donors: outliers, predicted expression, and scans of variables of donors.

#' Single Donors
#'
#' \code{outliers} says which rows and donors do not fit the others, \code{predicted_expression} what
#' expression is without its noise, and \code{scan_donors} tests many variables of donors (dosages of
#' variants, polygenic scores, laboratory values) from one fit without them.
#'
#' @details
#' A row's residual is its distance from what all other rows say of it over the standard error of that
#' distance, at the variance components of the whole fit; raw z scores find pairs with few cells.
#'
#' Predicted expression is shrunk towards the mean and borrows from other cell types: good for pictures,
#' but as a phenotype it loses power, shrinks effects and finds those of one cell type in others. A warning
#' says so each time.
#'
#' In \code{scan_donors} every variable by itself has an effect in every cell type. Effects are those that
#' the fit would have with the variable, at the variance components of the fit without it; refit what is
#' found, and see \code{\link{effects.ctmm}}, for robust errors. The variance holds for variables that are
#' independent of the noise and of how much donors vary.
#'
#' @param object a fit of \code{\link{ctmm}}.
#' @param table numbers: a data frame or a matrix with donors as row names, or a data frame with a column
#' of the name of the fit's donors; columns are variables. Other donors may be there too, and do not count.
#' @param missing what to do with missing values: \code{"refuse"} them, or put the \code{"mean"} of the
#' donors that have one.
#' @param adjust a method of \code{\link[stats]{p.adjust}}: over rows, over donors, or over variables.
#' @param ... nothing: an argument that is not listed is an error.
#' @return
#' \code{outliers}: a list of two data frames, \code{rows} (donor, cell type, \code{n_cells} where
#' numbers of cells are known, \code{residual}, \code{p.value}, \code{p.adjusted}) and \code{donors} (\code{statistic}, chi-squared, \code{df},
#' \code{p.value}, \code{p.adjusted}). \code{predicted_expression}: a data frame of donor, cell type,
#' \code{observed}, \code{predicted} and \code{std.error}, of predicted less true expression.
#' \code{scan_donors}: a data frame with a row per variable: \code{estimate[T]}, \code{se[T]} and
#' \code{p[T]} of every cell type, \code{estimate_mean}, \code{se_mean} and \code{p_mean} of the mean
#' effect, \code{p_omnibus} (no effect at all), \code{p_heterogeneity} (the same in all types), these three
#' adjusted, \code{n_missing}, and a \code{reason} where there is no test.
#' @examplesIf !nzchar(ctmm_check()$problem)
#' fit <- ctmm(expr ~ celltype + sex, random = ~ batch, data = pseudobulk)
#' found <- outliers(fit)
#' head(found$rows[order(found$rows$p.value), ], 3)
#' set.seed(1)
#' snps <- matrix(rbinom(144, 2, 0.3), 72, dimnames = list(fit$donors, c("rs1", "rs2")))
#' scan_donors(fit, snps)[c("estimate[day0]", "p_omnibus", "p_heterogeneity")]
#' @rdname donors
#' @export
outliers <- function(object, adjust = "holm", ...) {
  no_more(...)
  needs_fit(object, "outliers")
  got <- ask("outliers", list(fit = stored(object)))
  p_values <- function(p) {
    p <- array_in(p)
    p[is.nan(p)] <- NA_real_
    list(p.value = p, p.adjusted = stats::p.adjust(p, adjust_out(adjust)))
  }
  na <- function(x) ifelse(is.nan(x), NA_real_, x)
  rows <- row_keys(object)
  counted <- object$request$model$n_cells
  rows$n_cells <- if (!is.null(counted)) array_in(counted$values)
  rows <- data.frame(rows, residual = na(array_in(got$residual)), p_values(got$row_p), check.names = FALSE)
  donors <- data.frame(statistic = na(array_in(got$chi2)), df = array_in(got$df), p_values(got$donor_p),
                       row.names = object$donors)
  list(rows = rows, donors = donors)
}

#' @rdname donors
#' @export
predicted_expression <- function(object, ...) {
  no_more(...)
  needs_fit(object, "predicted_expression")
  got <- ask("predicted", list(fit = stored(object)))
  data.frame(row_keys(object), observed = unname(object$y), predicted = array_in(got$predicted),
             std.error = array_in(got$std_error), check.names = FALSE)
}

#' @rdname donors
#' @export
scan_donors <- function(object, table, missing = c("refuse", "mean"), adjust = "BH", ...) {
  no_more(...)
  needs_fit(object, "scan_donors")
  missing <- match.arg(missing)
  if (is.matrix(table)) {
    if (is.null(colnames(table))) colnames(table) <- paste0("V", seq_len(ncol(table)))
    table <- as.data.frame(table, optional = TRUE)
  } else table <- as_table(table)
  own <- object$roles$donor
  donors <- if (own %in% names(table)) as.character(table[[own]]) else rownames(table)
  table <- table[setdiff(names(table), own)]
  bad <- names(table)[!vapply(table, function(x) is.numeric(x) || is.logical(x), NA)]
  if (length(bad))
    fail("DataError", "table: ", listing(bad), " must hold numbers: give a factor as columns of 0 and 1")
  got <- ask("scan_donors", list(
    fit = stored(object), donors = as.list(donors), names = as.list(names(table)), missing = missing,
    values = f8(unname(data.matrix(table)))))
  out <- structure(lapply(got$columns, array_in), class = "data.frame", row.names = text(got$index))
  out[] <- lapply(out, function(x) ifelse(is.nan(x), NA_real_, x))
  for (name in c("p_mean", "p_omnibus", "p_heterogeneity"))
    out[[paste0(name, "_adjusted")]] <- stats::p.adjust(out[[name]], adjust_out(adjust))
  out$n_missing <- as.integer(array_in(got$n_missing))
  out$reason <- text(got$reason)
  out
}

needs_fit <- function(object, what) {
  if (!inherits(object, "ctmm")) fail("CTMMError", what, "() takes a fit of ctmm()")
}

adjust_out <- function(adjust) {
  if (length(adjust) == 1L && adjust %in% stats::p.adjust.methods) return(adjust)
  fail("CTMMError", "adjust = must be one of ", listing(stats::p.adjust.methods, 20L))
}

# Donor, cell type and condition of the rows of a fit.
row_keys <- function(object) {
  frame <- used_rows(object)
  names <- unique(c(object$roles$donor, object$roles$celltype, object$crossing$column))
  frame[intersect(names, names(frame))]
}
