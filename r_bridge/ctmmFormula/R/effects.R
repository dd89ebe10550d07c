# Effects of a variable on the mean of every cell type: rows are made here, tested in Python.

#' Effects of a Condition by Cell Type
#'
#' The effect of a variable of the fixed part on the mean of every cell type, the mean of these effects,
#' and two tests of all of them: that there is none (\code{omnibus}) and that cell types respond in the
#' same way (\code{heterogeneity}). Effects are differences of what the formula predicts, whatever its
#' parametrisation.
#'
#' @param object a fit of \code{\link{ctmm}}.
#' @param variable a name in the fixed part, \code{"status"} or \code{~ status}: a condition of any number
#' of levels, or a number.
#' @param values values to compare, the first is the reference; by default all levels in their order, and
#' of a number one unit more.
#' @param at a list of values of other variables, where the effect depends on them; else it is averaged
#' over the rows of the fit.
#' @param covariance as in \code{\link{test_mean}}: by default \code{"robust"} wherever numbers of cells
#' are known, whatever the fit (the estimates are the robust ones then), else \code{"kenward-roger"} after
#' REML and \code{"jackknife"} after ML and HE.
#' @param level of the confidence intervals.
#' @param x what \code{effects} returned.
#' @param digits significant digits.
#' @param ... nothing: an argument that is not listed is an error.
#' @return
#' A data frame of class \code{"ctmm_effects"}, one row per comparison and cell type: \code{comparison},
#' \code{celltype}, \code{estimate}, \code{std.error}, \code{df}, \code{statistic} (t), \code{p.value}
#' (two-sided), \code{conf.low}, \code{conf.high}; \code{NA} where the data do not tell an effect. Its
#' attribute \code{"mean"} is the same of the mean effects over cell types, its attribute \code{"tests"} a
#' list of tests as \code{\link{test_mean}} returns them: \code{omnibus}, \code{heterogeneity},
#' \code{mean} and, by name, every cell type (of several comparisons, all of them at once), its attribute
#' \code{"notes"} says where groups of donors differ in their variance (\code{\link{test_groups}},
#' p < .05), which robust errors allow for and those by the model do not: fit with \code{by =}.
#' @examplesIf !nzchar(ctmm_check()$problem)
#' fit <- ctmm(expr ~ celltype * sex, random = ~ batch, data = pseudobulk)
#' found <- effects(fit, "sex")
#' found
#' attr(found, "tests")$heterogeneity
#' @importFrom stats effects
#' @aliases print.ctmm_effects
#' @export
effects.ctmm <- function(object, variable, values = NULL, at = NULL, covariance = NULL, level = 0.95,
                         ...) {
  no_more(...)
  check_level(level)
  if (!missing(variable)) variable <- column_name(variable)
  sent <- differences(object, variable, values, at)
  own <- object$columns[[variable]]
  several <- !is.null(levels_of(object, variable)) || length(unique(own)) == 2
  groups <- if (several) coded(variable, droplevels(as.factor(own)))
  got <- ask("effects", list(fit = stored(object), effects = sent, alpha = 1 - level,
                             covariance = covariance_out(covariance), groups = groups))
  columns <- c("estimate", "std.error", "df", "statistic", "p.value", "conf.low", "conf.high")
  steps <- text(sent$steps)
  comparison <- if (nzchar(sent$reference)) paste(steps, "-", sent$reference) else steps
  numbers <- function(x) {
    out <- as.data.frame(matrix(array_in(x), ncol = length(columns)))
    out[] <- lapply(out, function(v) ifelse(is.nan(v), NA_real_, v))
    named(out, columns)
  }
  types <- object$celltypes
  key <- data.frame(comparison = rep(comparison, each = length(types)),
                    celltype = rep(types, length(steps)))
  tests <- lapply(got$tests, test_in, object)
  structure(cbind(key, numbers(got$table)), class = c("ctmm_effects", "data.frame"),
            mean = cbind(data.frame(comparison = comparison), numbers(got$mean)), tests = tests,
            variable = sent$name, method = got$method, at = sent$at, notes = in_r(text(got$notes)))
}

#' @rdname effects.ctmm
#' @export
print.ctmm_effects <- function(x, digits = 4L, ...) {
  no_more(..., passed = setdiff(PRINTED, "row.names"))
  tests <- attr(x, "tests")
  if (is.null(tests)) return(print(plain_effects(x), digits = digits, ...))
  cat("effects of ", attr(x, "variable"), "; ", attr(x, "method"), "\n", sep = "")
  mean <- attr(x, "mean")
  every <- rbind(plain_effects(x), cbind(mean["comparison"], celltype = "(mean)", mean[-1L]))
  every <- every[order(match(every$comparison, mean$comparison)), ]
  if (nrow(mean) == 1L && identical(mean$comparison, attr(x, "variable"))) every$comparison <- NULL
  print(every, digits = digits, row.names = FALSE, ...)
  for (test in tests[c("omnibus", "heterogeneity")]) {
    shown <- if (is.nan(test$p.value)) paste("no test,", test$note) else
      sprintf("F(%s) = %s, p = %s", paste(format(test$parameter, digits = digits, trim = TRUE),
                                          collapse = ", "),
              format(test$statistic[[1L]], digits = digits),
              shown_p(test$p.value, test$log.p.value, digits))
    note <- if (!is.nan(test$p.value) && length(test$note) && nzchar(test$note)) paste0(" (", test$note, ")")
    cat("  ", test$null, ": ", shown, note, "\n", sep = "")
  }
  if (nzchar(attr(x, "at"))) cat("  ", attr(x, "at"), "\n", sep = "")
  for (note in attr(x, "notes")) cat(strwrap(note, indent = 2L, exdent = 4L), sep = "\n")
  invisible(x)
}

plain_effects <- function(x) {
  for (name in c("mean", "tests", "variable", "method", "at", "notes")) attr(x, name) <- NULL
  structure(x, class = "data.frame")
}

# Rows L with L b = effect, as the wire takes them: steps x cell types x effects, of `every` row of the
# fit with one more dimension.
differences <- function(object, variable, values = NULL, at = NULL, every = FALSE) {
  own <- object$columns
  known <- setdiff(names(own), c(object$roles$celltype, object$proportion_columns))
  if (missing(variable) || !is.character(variable) || length(variable) != 1L || !variable %in% known)
    fail("CTMMError", if (missing(variable)) "name a variable" else
           paste("unknown variable", listing(as.character(variable))),
         " of the fixed part: choose from ", if (length(known)) listing(known, 20L)
         else "none, it has no covariates")
  if (!is.null(at) && (!is.list(at) || is.null(names(at))))
    fail("CTMMError", "at = takes a list of values by name: at = list(age = 50)")
  for (name in names(at)) {
    if (!name %in% setdiff(known, variable))
      fail("CTMMError", "at = cannot hold ", listing(name), ": choose from ",
           listing(setdiff(known, variable), 20L))
    own[[name]] <- set_to(own[[name]], at[[name]], name)
  }
  levels <- levels_of(object, variable)
  slope <- is.null(values) && is.null(levels)
  if (slope) values <- range(own[[variable]]) %*% matrix(c(1, 0, 0.5, 0.5, 0, 1), 2L)
  values <- as.vector(values %||% levels)
  if (length(values) < 2L || anyDuplicated(values))
    fail("CTMMError", "values = needs two or more different values, the first is the reference")
  rows <- lapply(values, function(value) {
    own[[variable]] <- set_to(own[[variable]], value, variable, levels)
    simplify2array(in_every_type(object, own))  # rows x effects x types
  })
  if (slope) {
    bend <- max(abs(rows[[3L]] - 2 * rows[[2L]] + rows[[1L]]), na.rm = TRUE)
    if (bend > 1e-9 * max(abs(unlist(rows)), na.rm = TRUE))
      fail("FormulaError", "the formula is no straight line in '", variable, "': name the values that are ",
           "compared, values = c(", paste(format(range(own[[variable]])), collapse = ", "), ")")
    steps <- list((rows[[3L]] - rows[[1L]]) / diff(range(object$columns[[variable]])))
  } else steps <- lapply(rows[-1L], `-`, rows[[1L]])
  shown <- if (slope) variable else as.character(values[-1L])
  L <- simplify2array(steps)  # rows x effects x types x steps
  mean <- apply(L, c(4L, 3L, 2L), mean)
  gone <- apply(is.na(mean), 2L, any)
  seen <- function(type) {
    there <- as.character(object$columns[[variable]][as.character(
      object$columns[[object$roles$celltype]]) == type])
    lost <- setdiff(as.character(values), there)
    if (length(lost) && !slope) paste0("no rows with ", variable, " = ", listing(lost))
    else "some combinations of the covariates have no rows"
  }
  missing <- lapply(object$celltypes[gone], seen)
  names(missing) <- object$celltypes[gone]
  spread <- apply(L, 2:4, function(x) if (anyNA(x)) 0 else diff(range(x)))
  varies <- any(spread > 1e-9 * max(abs(mean), na.rm = TRUE))
  said <- c(if (length(at)) paste("at", paste(names(at), "=", vapply(at, format, ""), collapse = ", ")),
            if (varies) "averaged over the rows of the fit")
  list(name = variable, reference = if (slope) "" else as.character(values[[1L]]),
       steps = as.list(shown), rows = f8(unname(if (every) aperm(L, c(4L, 3L, 1L, 2L)) else mean)),
       missing = if (length(missing)) missing else reticulate_dict(),
       at = paste(said, collapse = ", "))
}

# Means of the cell types at every level of a factor, T|case, that contrasts of genes can name.
means_by_level <- function(object) {
  variables <- setdiff(names(object$columns), c(object$roles$celltype, object$proportion_columns))
  factors <- Filter(Negate(is.null), sapply(variables, levels_of, object = object, simplify = FALSE))
  every <- unlist(lapply(factors, as.character))
  of_level <- function(name, value) {
    own <- object$columns
    own[[name]] <- set_to(own[[name]], value, name, factors[[name]])
    end <- if (sum(every == value) > 1L) paste0(name, "=", value) else as.character(value)
    rows <- simplify2array(in_every_type(object, own))  # rows x effects x types
    list(names = as.list(paste0(object$celltypes, "|", end)), rows = f8(aperm(rows, c(3L, 1L, 2L))))
  }
  out <- lapply(names(factors), function(name) lapply(as.list(factors[[name]]), of_level, name = name))
  do.call(c, out)
}

# Levels of a factor that the rows have, in their order; NULL of a number.
levels_of <- function(object, variable) {
  x <- object$columns[[variable]]
  if (is.factor(x)) return(levels(droplevels(x)))
  if (is.character(x) || is.logical(x)) return(sort(unique(x)))
  as_factor <- paste0(c("factor(", "as.factor(", "ordered("), variable, ")")
  if (any(as_factor %in% names(object$xlevels))) sort(unique(x))
}

# A column of one value, as the column was.
set_to <- function(x, value, name, levels = NULL) {
  known <- levels %||% if (is.factor(x)) levels(x) else if (!is.numeric(x)) unique(x)
  if (length(value) != 1L || is.na(value) || !is.null(known) && !as.character(value) %in% known)
    fail("CTMMError", "'", name, "' has no value ", listing(as.character(value)),
         if (!is.null(known)) paste0(": choose from ", listing(known, 20L)))
  if (is.null(known) && !is.numeric(value))
    fail("CTMMError", "'", name, "' holds numbers, and one is needed here")
  if (!is.factor(x)) return(rep(value, length(x)))
  factor(rep(as.character(value), length(x)), levels(x), ordered = is.ordered(x))
}

# Model matrices of the rows in every cell type; NA in rows that the data do not tell.
in_every_type <- function(object, own) {
  types <- seq_along(object$celltypes)
  column <- object$roles$celltype
  told <- object$told
  lapply(types, function(k) {
    if (object$kind == "op")
      own[object$proportion_columns] <- as.list(as.double(types == k))
    else if (column %in% names(own)) {
      at <- match(object$celltypes[k], as.character(object$columns[[column]]))
      own[[column]] <- rep(object$columns[[column]][at], nrow(own))
    }
    X <- new_matrix(object, own, full = TRUE)
    attr(X, "offset_values") <- NULL
    if (is.null(told)) return(unname(X))
    lost <- rowSums(abs(X %*% told$null) > 1e-8 * max(abs(X))) > 0
    X <- X[, told$kept, drop = FALSE]
    X[lost, ] <- NA
    unname(X)
  })
}

# What effects() needs of a design to make other rows: columns of the fixed part, and where effects were
# dropped, the directions that the data do not tell.
for_effects <- function(fit, data, rows) {
  names <- c(all.vars(stats::delete.response(fit$terms)), fit$proportion_columns)
  fit$columns <- data[rows, intersect(names, names(data)), drop = FALSE]
  column <- fit$roles$celltype
  if (!is.null(column) && column %in% names(data)) fit$columns[[column]] <- data[[column]][rows]
  if (length(fit$dropped)) {
    kept <- match(colnames(fit$X), colnames(fit$X_full))
    gone <- setdiff(seq_len(ncol(fit$X_full)), kept)
    null <- matrix(0, ncol(fit$X_full), length(gone))
    null[kept, ] <- -qr.coef(qr(fit$X_full[, kept, drop = FALSE]), fit$X_full[, gone, drop = FALSE])
    null[cbind(gone, seq_along(gone))] <- 1
    fit$told <- list(null = null, kept = kept)
  }
  fit
}
