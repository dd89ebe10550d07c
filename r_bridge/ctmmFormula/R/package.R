#' @keywords internal
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

# 'a', 'b', ... (5 in all)
listing <- function(values, limit = 5L) {
  shown <- paste0("'", values[seq_len(min(limit, length(values)))], "'", collapse = ", ")
  if (length(values) > limit) sprintf("%s, ... (%d in all)", shown, length(values)) else shown
}

`%||%` <- function(a, b) if (is.null(a)) b else a
