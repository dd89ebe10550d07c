# A Python of the package's own: made by one call, found again without being named.

#' Install the Python Package
#'
#' Makes a Python environment for this package alone, with the versions that it was tested with, and
#' nothing else changed. Later sessions find it without \code{RETICULATE_PYTHON}.
#'
#' @details
#' The environment lies in \code{tools::R_user_dir("ctmmFormula", "data")}, takes about 600 MB, and is
#' made by \code{uv} where that is on the path (it can fetch a Python, too), else by
#' \code{\link[reticulate]{virtualenv_create}} from a Python that is there: 3.11 or later, and before
#' \pkg{reticulate} 1.34 below 3.12. A Python that is chosen by \code{RETICULATE_PYTHON} or
#' \code{reticulate::use_virtualenv()} comes before it. To remove it, delete the folder.
#'
#' Without a network, \code{from} is a folder of wheels, filled where there is one, by the same Python
#' version and kind of machine, from a wheel or a copy of the repository:
#' \preformatted{pip wheel --wheel-dir wheels ctmm_formula-0.1.0-py3-none-any.whl}
#'
#' @param from where the Python package comes from: by default PyPI, in the version of this package; else
#' a wheel or a source archive, a copy of its repository (the folder with \file{pyproject.toml}), or a
#' folder of wheels, which holds everything, so that nothing is downloaded.
#' @param python the Python to start from, a path; by default the newest one on the path that
#' \pkg{reticulate} can use.
#' @param pinned whether dependencies have the versions that this package was tested with; from a folder of
#' wheels they are those of the folder.
#' @param compile compile now, for some two minutes, what the first fits else wait for.
#' @param force make an environment anew that is there already.
#' @param ask ask before anything is done.
#' @return The path of the Python, invisibly; \code{NULL} where the answer was no.
#' @seealso \code{\link{ctmm_check}}
#' @examplesIf FALSE
#' ctmm_install()                       # from PyPI
#' ctmm_install("~/src/ctmm_formula")   # from a copy of the repository
#' ctmm_install("wheels")               # from a folder of wheels, without a network
#' @export
ctmm_install <- function(from = NULL, python = NULL, pinned = TRUE, compile = TRUE, force = FALSE,
                         ask = interactive()) {
  for (name in c("pinned", "compile", "force", "ask")) flag(get(name), name)
  version <- as.character(utils::packageVersion("ctmmFormula"))
  source <- source_of(from, version)
  home <- own_environment()
  made <- installed_version()
  if (identical(made, version) && !force) {
    message("ctmm_formula ", made, " is there already, in ", home,
            ": ctmm_install(force = TRUE) makes it anew")
    return(invisible(own_python()))
  }
  starter <- starter(python)
  question <- sprintf("Make a Python environment for ctmmFormula in %s (%s, about 600 MB%s)?", home,
                      starter$name, if (source$offline) "" else ", downloaded")
  if (ask && !isTRUE(utils::askYesNo(question))) return(invisible())
  old <- paste0(home, ".old")
  unlink(old, recursive = TRUE)
  if (dir.exists(home)) file.rename(home, old)
  done <- FALSE
  on.exit({
    if (!done) {
      unlink(home, recursive = TRUE)
      if (dir.exists(old)) file.rename(old, home)
    }
    unlink(old, recursive = TRUE)
  })
  dir.create(dirname(home), FALSE, TRUE)
  make_environment(home, starter)
  own <- own_python()
  if (!file.exists(own)) fail("CTMMError", "no environment could be made by ", starter$name)
  message("Installing ", source$target)
  pins <- system.file("python", "constraints.txt", package = "ctmmFormula")
  install <- if (starter$uv) c(Sys.which("uv")[[1L]], "pip", "install", "--python", own) else
    c(own, "-m", "pip", "install", "--disable-pip-version-check")
  said <- run(c(install, "--quiet", source$options, if (pinned && !source$offline) c("-c", pins),
                source$target))
  if (said$status)
    fail("CTMMError", "the Python package could not be installed:\n  ",
         paste(utils::tail(said$output, 8L), collapse = "\n  "), if (is.null(from)) paste0(
           "\nFrom elsewhere than PyPI: ctmm_install(\"FOLDER\"), a copy of its repository or a folder of ",
           "wheels"))
  said <- run(c(own, "-c", "import ctmm_formula.wire.calls as c; print(c.PROTOCOL)"))
  if (said$status || !identical(utils::tail(said$output, 1L), as.character(PROTOCOL)))
    fail("CTMMError", "what was installed is not the Python package of this version:\n  ",
         paste(utils::tail(said$output, 4L), collapse = "\n  "))
  if (compile) {
    message("Compiling, once")
    run(c(own, "-m", "ctmm_formula", "compile"))
  }
  done <- TRUE
  other <- Sys.getenv("RETICULATE_PYTHON")
  message("Ready: ", own, if (nzchar(other)) paste0(
    ". RETICULATE_PYTHON is '", other, "' and comes before it: remove that to use it") else
      if (reticulate::py_available()) ". Start a new R session to use it")
  invisible(own)
}

own_environment <- function() file.path(tools::R_user_dir("ctmmFormula", "data"), "python")

own_python <- function() file.path(
  own_environment(), if (.Platform$OS.type == "windows") "Scripts/python.exe" else "bin/python")

# What is installed in the environment of the package's own, or nothing.
installed_version <- function() {
  metadata <- Sys.glob(file.path(own_environment(), c("lib/python*", "Lib"), "site-packages",
                                 "ctmm_formula-*.dist-info"))
  if (!file.exists(own_python()) || !length(metadata)) return(NULL)
  sub("^ctmm_formula-(.*)[.]dist-info$", "\\1", basename(metadata[1L]))
}

# What to install, and where it and its dependencies are looked for.
source_of <- function(from, version) {
  named <- paste0("ctmm-formula==", version)
  if (is.null(from)) return(list(target = named, offline = FALSE))
  from <- single(from, "from", is.character)
  if (!file.exists(from)) fail("CTMMError", "from = names nothing that is there: ", from)
  from <- normalizePath(from)
  if (!dir.exists(from) || file.exists(file.path(from, "pyproject.toml")))
    return(list(target = from, offline = FALSE))
  if (!length(list.files(from, "^ctmm_formula-.*[.]whl$")))
    fail("CTMMError", "from = must be a wheel, a source archive, the folder with pyproject.toml, or a ",
         "folder of wheels with that of ctmm_formula: ", from)
  list(target = named, options = c("--no-index", "--find-links", from), offline = TRUE)
}

# The Python that the environment starts from.
starter <- function(python) {
  uv <- nzchar(Sys.which("uv"))
  if (!is.null(python)) {
    python <- path.expand(single(python, "python", is.character))
    why <- c(if (!file.exists(python)) paste(python, "does not exist"), unusable(python))
    if (length(why)) fail("CTMMError", "python = cannot be used: ", why[1L])
    return(list(python = python, name = python, uv = uv))
  }
  names <- c(sprintf("python3.%d", 19:11), "python3", "python")
  found <- unique(c(Filter(nzchar, unname(Sys.which(names))),
                    Sys.glob("~/.pyenv/versions/3.1[1-9]*/bin/python")))
  for (one in found) if (!length(unusable(one))) return(list(python = one, name = one, uv = uv))
  version <- if (utils::packageVersion("reticulate") < "1.34") "3.11" else "3.13"
  if (uv) return(list(python = version, name = paste("Python", version, "by uv"), uv = TRUE))
  why <- unlist(lapply(found, unusable))
  fail("no_python", "there is no Python to start from.", paste0("\n  ", why),
       "\nInstall Python ", version, " (or uv, which fetches one), or name one: ",
       "ctmm_install(python = \"...\")")
}

# Why an environment cannot start from that Python, or nothing.
unusable <- function(python) {
  why <- unfit(python)
  if (length(why)) return(why)
  probe <- paste("import sys, sysconfig, venv, ensurepip;",
                 "print(sys.platform != 'linux' or sysconfig.get_config_var('Py_ENABLE_SHARED'))")
  said <- run(c(python, "-c", probe))
  if (said$status) return(paste(python, "cannot make environments:", utils::tail(said$output, 1L)))
  if (utils::tail(said$output, 1L) %in% c("0", "None"))
    paste(python, "has no shared library, which reticulate needs")
}

make_environment <- function(home, starter) {
  if (starter$uv) {
    said <- run(c(Sys.which("uv")[[1L]], "venv", "--python", starter$python, home))
    if (said$status) fail("CTMMError", "uv could not make an environment:\n  ",
                          paste(utils::tail(said$output, 4L), collapse = "\n  "))
    return(invisible())
  }
  alone(utils::capture.output(suppressMessages(reticulate::virtualenv_create(
    home, python = starter$python, packages = FALSE, module = "venv"))))
}

# Programs of Python see neither the libraries that R puts first nor another Python's modules.
alone <- function(code) {
  names <- c("LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
  before <- Filter(Negate(is.na), Sys.getenv(names, NA))
  Sys.unsetenv(names)
  on.exit(if (length(before)) do.call(Sys.setenv, as.list(before)))
  force(code)
}

run <- function(command) {
  output <- tryCatch(
    alone(suppressWarnings(system2(command[1L], shQuote(command[-1L]), stdout = TRUE, stderr = TRUE))),
    error = function(e) structure(conditionMessage(e), status = 127L))
  status <- attr(output, "status")
  list(output = as.character(output), status = if (is.null(status)) 0L else status)
}
