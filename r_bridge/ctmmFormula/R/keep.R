# Small fits: tables without rows.

# What is as long as the table, or as wide as its donors are many.
ROWS <- c("X", "X_full", "y", "nu", "model", "rows", "columns", "na.action", "offset", "donors", "effects",
          "fitted_values", "request", "data_rows")

# What is said where rows are asked for.
forgotten <- function()
  fail("DataError", "this needs rows of the fit, which keep = \"tables\" has forgotten: fit with keep = \"all\"")

# The fit without rows, and what Python says when these are called without more arguments.
without_rows <- function(fit, asked) {
  state$heard <- list()
  on.exit(state$heard <- NULL)
  for (default in c(confint.ctmm, celltype_means, test_variance, test_mean, heritability))
    tryCatch(suppressWarnings(default(fit)), ctmm_error = identity)
  # tables that the call was made with stay where they were
  for (name in intersect(c("kinship", "proportions"), names(fit$call)))
    if (!is.character(fit$call[[name]])) fit$call[name] <- list(asked[[name]])
  # nor does a formula take along what else there was where it was written
  at_home <- function(x) {
    if (inherits(x, "formula")) environment(x) <- globalenv()
    x
  }
  for (name in c("given", "formula", "terms")) fit[[name]] <- at_home(fit[[name]])
  for (k in seq_along(fit$call)) fit$call[k] <- list(at_home(fit$call[[k]]))
  left <- unclass(fit)[setdiff(names(fit), ROWS)]
  structure(c(left, list(said = state$heard)), class = c("ctmm_tables", "ctmm"))
}

#' @export
`$.ctmm_tables` <- function(x, name) if (name %in% ROWS) forgotten() else .subset2(x, name)

# A question about a fit, and what Python said.
without_fit <- function(name, request, reply)
  list(name = name, request = request[names(request) != "fit"], reply = reply)

recalled <- function(name, request) {
  now <- without_fit(name, request, NULL)
  for (one in request$fit$said)
    if (identical(one[c("name", "request")], now[c("name", "request")])) return(one$reply)
  forgotten()
}
