# The way to Python: found when first needed, never when the package is loaded.

PROTOCOL <- 2L
MODULE <- "ctmm_formula"

# The Python end of the wire.
wire <- function() {
  module <- state$wire
  if (!identical(state$process %||% Sys.getpid(), Sys.getpid()))
    fail("CTMMError", "this R process is a fork of one in which Python runs, where calls would hang: ",
         "use threads =, or processes of their own (parallel::makePSOCKcluster, future::multisession)")
  if (!is.null(module) && !reticulate::py_is_null_xptr(module)) return(module)
  start_python()
  if (!reticulate::py_module_available(MODULE)) no_python(missing_module())
  module <- tryCatch(
    reticulate::import("ctmm_formula.wire.calls", convert = TRUE),
    error = function(e) no_python(paste0(
      "The Python package ", MODULE, " cannot be imported by ", python_in_use(), ":\n  ",
      conditionMessage(e))))
  theirs <- module$PROTOCOL
  if (!identical(as.integer(theirs), PROTOCOL)) {
    update <- if (theirs < PROTOCOL) paste0("the Python package, in a newer copy of its repository: ",
                                            python_in_use(), " -m pip install --upgrade .")
              else "the R package ctmmFormula"
    no_python(sprintf(paste0(
      "The R package speaks version %d of the protocol and the Python package ctmm_formula ",
      "version %d: update %s"), PROTOCOL, as.integer(theirs), update))
  }
  state$wire <- module
  state$process <- Sys.getpid()
  module
}

start_python <- function() {
  own <- own_python()
  # taken where nothing else is asked for
  if (file.exists(own)) Sys.setenv(RETICULATE_PYTHON_FALLBACK = own)
  # older ones take any pyproject.toml, as the repository of this package has, for one of Poetry
  no_poetry <- function(w) if (grepl("Poetry", conditionMessage(w))) invokeRestart("muffleWarning")
  found <- tryCatch(withCallingHandlers(reticulate::py_available(initialize = TRUE), warning = no_poetry),
                    error = function(e) e)
  if (isTRUE(found)) return(invisible())
  asked <- Sys.getenv("RETICULATE_PYTHON")
  why <- c(if (inherits(found, "error")) conditionMessage(found), unfit(asked))
  asked <- if (nzchar(asked)) sprintf(" (RETICULATE_PYTHON is '%s')", asked) else ""
  no_python(paste0("Python cannot be started", asked, ".", paste0("\n  ", why, collapse = ""), "\n",
                   "ctmm_install() makes an environment that is found without being named.\n",
                   choose_python()))
}

# Why this reticulate cannot start that Python, or nothing: reticulate before 1.34 imports the module
# imp, which Python 3.12 has not.
unfit <- function(asked, reticulate = utils::packageVersion("reticulate")) {
  python <- Filter(nzchar, c(path.expand(asked), unname(Sys.which(c("python3", "python")))))[1L]
  if (is.na(python) || !file.exists(python)) return(character())
  said <- tryCatch(suppressWarnings(system2(python, "--version", stdout = TRUE, stderr = TRUE)),
                   error = function(e) "")
  version <- regmatches(said[1L], regexpr("[0-9]+[.][0-9]+", said[1L]))
  if (!length(version)) return(character())
  version <- numeric_version(version)
  if (version < "3.11")
    return(sprintf("%s is Python %s: ctmm_formula needs 3.11 or later", python, version))
  if (version < "3.12" || reticulate >= "1.34") return(character())
  sprintf(paste("%s is Python %s, which reticulate %s cannot start (it imports the module imp, gone",
                "since Python 3.12): take Python 3.11, or reticulate 1.34 or later"),
          python, version, reticulate)
}

# What installs the package, from a copy of its repository.
missing_module <- function() {
  paste0("The Python package ", MODULE, " is not installed in the Python that R is using,\n  ",
         python_in_use(), "\nctmm_install(), in a new R session, makes an environment with it that is found without being ",
         "named.\nOr make one yourself, in a copy of its repository (the folder with pyproject.toml):\n",
         "  python3 -m venv ~/ctmm && ~/ctmm/bin/pip install .\n", choose_python())
}

choose_python <- function() {
  paste0("Choose the Python in a new R session, before anything uses Python, by one of\n",
         "  Sys.setenv(RETICULATE_PYTHON = \"~/ctmm/bin/python\")\n",
         "  reticulate::use_virtualenv(\"~/ctmm\")\n",
         "ctmm_check() shows what R has found.")
}

python_in_use <- function() {
  path <- tryCatch(reticulate::py_config()$python, error = function(e) NULL)
  path %||% "(no Python)"
}

no_python <- function(message) stop(condition(message, "ctmm_no_python", "error"))

# Ask Python; its errors and warnings become conditions of R with their message and class.
ask <- function(name, request) {
  reply <- if (is.null(request$fit$said)) wire()$call(name, request) else recalled(name, request)
  if (is.list(state$heard)) state$heard <- c(state$heard, list(without_fit(name, request, reply)))
  for (note in reply$warnings) {
    class <- c(paste0("ctmm_", unlist(note$classes)), "ctmm_warning")
    warning(condition(in_r(note$message), class, "warning"))
  }
  if (isTRUE(reply$ok)) return(reply$value)
  if (identical(reply$type, "KeyboardInterrupt")) {
    signalCondition(structure(class = c("interrupt", "condition"),
                              list(message = "interrupted", call = NULL)))
    fail("interrupted", "interrupted in Python")
  }
  class <- paste0("ctmm_", unlist(reply$classes))
  stop(condition(in_r(reply$message), class, "error", python_traceback = reply$traceback))
}

# What Python's messages call otherwise than R.
WORDS <- c("(?<![[:alnum:]_])pseudobulk\\(" = "ctmm_pseudobulk(", "Q\\(['\"]([^'\"]*)['\"]\\)" = "`\\1`",
           "(not of full rank: .*; leave these terms out)" = "\\1, or let singular.ok = TRUE drop the columns")

in_r <- function(texts) {
  for (python in names(WORDS)) texts <- gsub(python, WORDS[[python]], texts, perl = TRUE)
  texts
}

# The same warning, of every piece that is asked for, once.
once <- function(code) {
  said <- character()
  withCallingHandlers(code, ctmm_warning = function(w) {
    if (conditionMessage(w) %in% said) invokeRestart("muffleWarning")
    said <<- c(said, conditionMessage(w))
  })
}

#' Is Everything There?
#'
#' Starts Python if it has not started, and lists versions and what is missing.
#'
#' @details
#' \code{\link{ctmm_install}} makes a Python environment for this package, which is found without being
#' named. \pkg{reticulate} takes the Python that the environment variable \code{RETICULATE_PYTHON} names,
#' else that of \code{reticulate::use_virtualenv()} and its like, else that environment, else the one on
#' the path. The choice is made once in a session. To install the Python package yourself, in a copy of
#' its repository (Python 3.11; later ones need \pkg{reticulate} 1.34 or later):
#' \preformatted{python3 -m venv ~/ctmm
#' ~/ctmm/bin/pip install .}
#' and in R, before anything uses Python,
#' \preformatted{Sys.setenv(RETICULATE_PYTHON = "~/ctmm/bin/python")}
#' The first fit of a fresh installation compiles for about half a minute; later sessions do not.
#'
#' Work is shared among threads. Do not fork a session (\code{parallel::mclapply}) after the first fit;
#' clusters of new sessions (\code{parallel::makePSOCKcluster}) are fine.
#'
#' @return
#' A list of class \code{"ctmm_check"}: versions; \code{missing}, packages of Python that are not there
#' (\code{anndata} is not needed from R); \code{problem}, empty when all is well.
#' @examples
#' ctmm_check()
#' @export
ctmm_check <- function() {
  out <- list(
    r = as.character(getRversion()),
    ctmmFormula = as.character(utils::packageVersion("ctmmFormula")),
    reticulate = as.character(utils::packageVersion("reticulate")),
    asked = Sys.getenv("RETICULATE_PYTHON"),
    python = NA_character_, versions = list(), missing = character(), problem = "")
  problem <- tryCatch({ start_python(); "" }, error = conditionMessage)
  if (!nzchar(problem)) {
    out$python <- python_in_use()
    hello <- tryCatch(wire()$hello(), error = identity)
    if (inherits(hello, "error")) {
      problem <- conditionMessage(hello)
    } else {
      out$python <- sprintf("%s (%s)", out$python, hello$python)
      out$versions <- hello$versions
      out$missing <- as.character(unlist(hello$missing))
    }
  }
  out$problem <- problem
  structure(out, class = "ctmm_check")
}

#' @export
print.ctmm_check <- function(x, ...) {
  no_more(...)
  line <- function(name, value) cat(sprintf("%-14s %s\n", name, value))
  line("R", x$r)
  line("ctmmFormula", x$ctmmFormula)
  line("reticulate", x$reticulate)
  if (nzchar(x$asked)) line("asked for", sprintf("%s (RETICULATE_PYTHON)", x$asked))
  line("Python", if (is.na(x$python)) "none" else x$python)
  for (name in setdiff(names(x$versions), x$missing)) line(name, x$versions[[name]])
  if (length(x$missing)) line("not there", paste(x$missing, collapse = ", "))
  cat(if (nzchar(x$problem)) paste0("\n", x$problem, "\n") else "Ready.\n")
  invisible(x)
}
