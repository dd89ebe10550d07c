# How donors are related, and what of their variance is genetic.

#' Heritability
#'
#' Of a fit with \code{kinship =}: \code{heritability} says how much of the variance between donors is
#' genetic, \code{test_heritability} whether any is, and \code{genetic_values} predicts genetic values, also
#' of donors without expression.
#'
#' @details
#' The noise of cells and random effects are in no denominator. By default estimates are moments that the
#' kinship and pooled noise weigh, unbounded; standard errors are by the delta method from the covariance of the
#' components, intervals by Fieller, \code{NaN} with a \code{note} where the variance between donors is not
#' clearly positive. They are those of the model's variances, for effects of variants drawn anew; after
#' \code{method = "he"}, and of \code{\link{jackknife}}, those of other donors of this population, in whom
#' variants have the effects that they have here.
#'
#' The test takes products of different donors only, so that noise, however measured, does not move it. It
#' is one-sided: \code{p.value} of anything genetic, \code{extra$shared} of what all cell types share,
#' \code{extra$specific} of what is specific to some, \code{extra$celltype} of expression in every type.
#'
#' @param object a fit of \code{\link{ctmm}} with \code{kinship =}.
#' @param covariance what \code{\link{jackknife}} returned, in place of that over single donors.
#' @param level confidence of the intervals.
#' @param kinship of \code{test_heritability} the name of one, where there are several; of
#' \code{genetic_values} as in \code{\link{ctmm}}, with more donors: values of all donors in it.
#' @param ... nothing: an argument that is not listed is an error.
#' @return
#' \code{heritability}: a list of class \code{"ctmm_heritability"} with data frames \code{table}
#' (\code{kinship}, \code{part}: shared, specific, total, then the cell types; \code{genetic} and
#' \code{environment}, variances between donors; \code{h2}, \code{std.error}, \code{conf.low},
#' \code{conf.high}, \code{note}) and \code{correlations} (genetic, of pairs of cell types), and
#' \code{target}, what the errors are about. \code{test_heritability}: as \code{\link{test_variance}}.
#' \code{genetic_values}: a data frame of \code{kinship}, \code{donor} and a column for every cell type.
#' @examplesIf !nzchar(ctmm_check()$problem)
#' donors <- unique(pseudobulk$donor)
#' sibs <- outer(seq_along(donors) %/% 3, seq_along(donors) %/% 3, `==`)
#' K <- matrix(0.5 * sibs + 0.5 * diag(length(donors)), length(donors), dimnames = list(donors, donors))
#' fit <- ctmm(expr ~ celltype + sex, kinship = K, structure = "iid", data = pseudobulk)
#' heritability(fit)
#' test_heritability(fit)
#' head(genetic_values(fit))
#' @rdname heritability
#' @export
heritability <- function(object, ...) UseMethod("heritability")

#' @rdname heritability
#' @export
test_heritability <- function(object, ...) UseMethod("test_heritability")

#' @rdname heritability
#' @export
genetic_values <- function(object, ...) UseMethod("genetic_values")

#' @rdname heritability
#' @export
heritability.ctmm <- function(object, covariance = NULL, level = 0.95, ...) {
  no_more(...)
  needs_kinship(object)
  check_level(level)
  got <- ask("heritability", list(fit = stored(object), covariance = covariance_out(covariance),
                                  alpha = 1 - level))
  frame <- function(sent) {
    numbers <- lapply(sent$columns, array_in)
    names(numbers) <- gsub("_", ".", names(numbers), fixed = TRUE)
    data.frame(lapply(sent$keys, text), numbers, note = in_r(text(sent$note)), check.names = FALSE)
  }
  structure(list(table = frame(got$table), correlations = frame(got$correlations), target = got$target),
            class = "ctmm_heritability")
}

#' @rdname heritability
#' @export
test_heritability.ctmm <- function(object, kinship = NULL, ...) {
  no_more(...)
  if (!is.null(kinship)) kinship <- single(kinship, "kinship", is.character)
  run_test(object, "heritability", name = kinship)
}

#' @rdname heritability
#' @export
genetic_values.ctmm <- function(object, kinship = NULL, ...) {
  no_more(...)
  needs_kinship(object)
  if (!is.null(kinship) && length(object$kinship) == 1L && !is_list(kinship))
    kinship <- named(list(kinship), names(object$kinship))
  got <- ask("genetic_values", list(fit = stored(object), kinship = kinship_out(kinship)))
  values <- array_in(got$values)
  dim(values) <- c(length(got$donors), length(got$celltypes))
  colnames(values) <- text(got$celltypes)
  data.frame(kinship = text(got$kinship), donor = text(got$donors), values, check.names = FALSE)
}

#' @export
print.ctmm_heritability <- function(x, digits = 4L, ...) {
  no_more(..., passed = PRINTED)
  show <- function(table) print(table, digits = digits, row.names = FALSE, ...)
  show(x$table)
  if (nrow(x$correlations)) {
    cat("\nGenetic correlations:\n")
    show(x$correlations)
  }
  cat(strwrap(x$target, initial = "\nErrors: ", exdent = 2L), sep = "\n")
  invisible(x)
}

needs_kinship <- function(object) {
  if (!length(object$kinship)) fail("CTMMError", "there is no kinship: fit with kinship =")
}

# A list of several, and no table, which is a list as well.
is_list <- function(x) is.list(x) && !is.data.frame(x)

# The request's model with kinships and the structure of genetic effects.
with_kinship <- function(model, kinship, genetic, structure, celltypes) {
  if (is.null(kinship) && is.null(model$genotypes)) {
    if (!is.null(genetic))
      fail("CTMMError", "genetic_structure = is that of a kinship: give kinship =, too")
    return(model)
  }
  model$kinship <- kinship_out(kinship)
  model$genetic_structure <- structure_out(if (is.null(genetic)) structure else genetic, celltypes)
  model
}

# Kinships as they cross: once for a fit or for all genes, as one block of numbers and its names.
kinship_out <- function(kinship) {
  if (is.null(kinship)) return(NULL)
  if (!is_list(kinship)) kinship <- list(genetic = kinship)
  if (!length(kinship))
    fail("DataError", "kinship = is an empty list: give kinships by name, list(cis = G, trans = K)")
  names <- names(kinship)
  if (is.null(names) || any(!nzchar(names)) || anyDuplicated(names))
    fail("DataError", "kinship = list(...): every kinship needs a name of its own, ",
         "list(cis = G, trans = K)")
  unname(Map(one_kinship, kinship, names))
}

one_kinship <- function(x, name) {
  said <- paste0("kinship '", name, "'")
  if (is.character(x) && length(x) == 1L && is.null(dim(x)))
    return(list(name = name, file = path.expand(x)))
  if (inherits(x, "Matrix") || is.data.frame(x)) {
    numeric <- !is.data.frame(x) || all(vapply(x, is.numeric, NA))
    if (!numeric) fail("DataError", said, " must be numbers; donors are its row names")
    if (is.data.frame(x) && !is.character(attr(x, "row.names")))
      fail("DataError", said, " has no names of donors, its rows are numbered: set its row names")
    x <- as.matrix(x)
  }
  if (!is.matrix(x) || !is.numeric(x))
    fail("DataError", said, " must be a matrix of numbers with donors as row names, or the name of a ",
         "file, got ", class(x)[1L])
  if (is.null(rownames(x)))
    fail("DataError", said, " has no names of donors, who are matched by name, never by position: ",
         "dimnames(K) <- list(donors, donors)")
  if (is.null(colnames(x))) {
    if (nrow(x) == ncol(x))
      fail("DataError", said, " has no column names: dimnames(K) <- list(donors, donors)")
    colnames(x) <- paste0("v", seq_len(ncol(x)))
  }
  list(name = name, rows = as.list(rownames(x)), columns = as.list(colnames(x)), values = f8(unname(x)))
}
