#' Cell Type-Specific Mixed Models of Expression Between Donors
#'
#' Does the expression of a gene vary between people, and does it vary more in some cell types than in
#' others? The package answers from pseudobulk of single-cell RNA sequencing: one mean and its noise
#' variance for each donor and cell type. It fits the model CTMM of Chen and Dahl (2024) by a formula
#' and gives objects that behave like fits of \pkg{lme4} and \pkg{mmrm}.
#'
#' @details
#' For donor \eqn{i} and cell type \eqn{c}, with the mean expression \eqn{y} of the cells and the known
#' noise variance \eqn{\nu}{nu} of that mean,
#' \deqn{y_{ic} = x_{ic}'b + \alpha_i + \Gamma_{ic} + \mbox{(batch, ...)} + \delta_{ic}}{%
#' y_ic = x_ic'b + alpha_i + Gamma_ic + (batch, ...) + delta_ic}
#' \deqn{\alpha_i \sim N(0, \sigma^2),\ \Gamma_i \sim N(0, V),\ \delta_{ic} \sim N(0, \nu_{ic})}{%
#' alpha_i ~ N(0, sigma^2), Gamma_i ~ N(0, V), delta_ic ~ N(0, nu_ic)}
#'
#' Start with \code{\link{ctmm}}; \code{\link{ctmm_genes}} fits all genes in one call,
#' \code{\link{ctmm_pseudobulk}} makes pseudobulk from cells. The numbers are computed by the Python
#' package \code{ctmm_formula}, which \pkg{reticulate} finds when it is first needed; see
#' \code{\link{ctmm_check}}. Fits are plain R lists: what has been fitted can be saved, printed and
#' predicted from in a session without Python. \code{vignette("ctmm")} is a tour.
#'
#' @references
#' Chen, M. and Dahl, A. (2024). A robust model for cell type-specific interindividual variation in
#' single-cell RNA sequencing data. \emph{Nature Communications} 15, 5229.
#' \doi{10.1038/s41467-024-49242-9}
#'
#' @importFrom stats add1 anova coef confint df.residual extractAIC family fitted formula logLik
#'   model.frame model.matrix nobs predict residuals sigma simulate terms update vcov weights
"_PACKAGE"

# What the session knows of Python; never part of a fit.
state <- new.env(parent = emptyenv())

# Errors and warnings of the package, in the tree of the Python package: catch ctmm_error, or the
# narrower ctmm_FormulaError, ctmm_DataError, ctmm_ConvergenceError.
condition <- function(message, class, kind, ...) {
  structure(class = c(class, paste0("ctmm_", kind), kind, "condition"),
            list(message = message, call = NULL, ...))
}

fail <- function(kind, ...) {
  class <- unique(paste0("ctmm_", c(kind, "CTMMError")))
  stop(condition(paste0(...), class, "error"))
}

warn <- function(...) warning(condition(paste0(...), "ctmm_CTMMWarning", "warning"))

# An argument that a method has not is an error: every function whose dots go nowhere calls
# no_more(...). `passed` are names that callers of its generic hand on whether they matter or not.
no_more <- function(..., passed = character()) {
  given <- as.list(substitute(list(...)))[-1L]
  names <- names(given) %||% rep("", length(given))
  names[!nzchar(names)] <- vapply(given[!nzchar(names)], as_text, "")
  wrong <- setdiff(names, passed)
  if (!length(wrong)) return(invisible())
  head <- sys.call(-1L)[[1L]]
  caller <- if (is.function(head)) "the function" else
    paste0(sub("[._](summary|VarCorr|ranef|ctmm).*$", "", as_text(head)), "()")
  known <- setdiff(names(formals(sys.function(-1L)))[-1L], "...")
  fail("CTMMError", caller, " has no argument ", listing(wrong), " here",
       if (length(known)) paste0("; it takes ", paste(known, collapse = ", ")))
}

PRINTED <- c("digits", "quote", "na.print", "print.gap", "right", "max", "width", "row.names")
TABLED <- c("optional", "stringsAsFactors", "make.names", "check.names")

# Arguments of graphics.
drawn <- function() {
  graphical <- list(graphics::plot.default, graphics::bxp, graphics::boxplot.default)
  c(names(graphics::par(no.readonly = TRUE)), unlist(lapply(graphical, function(f) names(formals(f)))))
}

# 'a', 'b', ... (5 in all)
listing <- function(values, limit = 5L) {
  shown <- paste0("'", values[seq_len(min(limit, length(values)))], "'", collapse = ", ")
  if (length(values) > limit) sprintf("%s, ... (%d in all)", shown, length(values)) else shown
}

`%||%` <- function(a, b) if (is.null(a)) b else a
