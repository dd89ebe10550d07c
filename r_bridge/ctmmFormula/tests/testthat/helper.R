# Tests that need Python are skipped where it lacks the module; CTMM_REQUIRE_PYTHON=true makes that
# a failure.
need_python <- function() {
  problem <- ctmm_check()$problem
  if (!nzchar(problem)) return(invisible())
  if (identical(Sys.getenv("CTMM_REQUIRE_PYTHON"), "true")) stop(problem)
  testthat::skip(problem)
}

need <- function(package) {
  if (identical(Sys.getenv("CTMM_REQUIRE_R"), "1")) loadNamespace(package)
  testthat::skip_if_not_installed(package)
}

# The folder of golden numbers of the Python package's tests; not there in an installed package.
golden <- function(file) {
  folder <- Sys.getenv("CTMM_GOLDEN")
  if (!nzchar(folder)) testthat::skip("CTMM_GOLDEN does not name the folder of golden numbers")
  file.path(folder, file)
}

kept <- new.env()

# The fit of the examples, made once.
example_fit <- function() {
  if (is.null(kept$fit))
    kept$fit <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = pseudobulk, method = "reml")
  kept$fit
}

overall_fit <- function() {
  if (is.null(kept$overall))
    kept$overall <- ctmm(expr ~ sex + PC1, data = overall_pseudobulk, structure = "hom",
                         proportions = paste0("prop_day", 0:3), method = "reml")
  kept$overall
}

# R in a process of its own; stops where that stops.
run_r <- function(code, env = character()) {
  file <- tempfile(fileext = ".R")
  writeLines(c(sprintf(".libPaths(c(%s))", paste(shQuote(.libPaths()), collapse = ", ")), code), file)
  out <- suppressWarnings(system2(file.path(R.home("bin"), "Rscript"), c("--vanilla", file),
                                  stdout = TRUE, stderr = TRUE, env = env))
  status <- attr(out, "status")
  list(out = as.character(out), status = if (is.null(status)) 0L else status)
}
