# An environment of the package's own, from a folder of wheels, without a network.  The wheel stands in
# for the real one: it holds nothing but the way to the modules of the Python of these tests.

stand_in <- function(version = as.character(utils::packageVersion("ctmmFormula"))) {
  python <- reticulate::import("ctmm_formula", convert = TRUE)
  tree <- dirname(dirname(python$`__file__`))
  paths <- unique(c(tree, unlist(reticulate::import("site")$getsitepackages())))
  folder <- tempfile("wheel")
  info <- file.path(folder, sprintf("ctmm_formula-%s.dist-info", version))
  dir.create(info, recursive = TRUE)
  writeLines(paths, file.path(folder, "ctmm_formula.pth"))
  writeLines(c("Metadata-Version: 2.1", "Name: ctmm-formula", paste("Version:", version)),
             file.path(info, "METADATA"))
  writeLines(c("Wheel-Version: 1.0", "Generator: test", "Root-Is-Purelib: true", "Tag: py3-none-any"),
             file.path(info, "WHEEL"))
  files <- c("ctmm_formula.pth", file.path(basename(info), c("METADATA", "WHEEL", "RECORD")))
  writeLines(paste0(files, ",,"), file.path(info, "RECORD"))
  wheels <- tempfile("wheels")
  dir.create(wheels)
  wheel <- file.path(wheels, sprintf("ctmm_formula-%s-py3-none-any.whl", version))
  old <- setwd(folder)
  on.exit(setwd(old))
  made <- system2(reticulate::py_exe(), c("-m", "zipfile", "-c", shQuote(wheel), list.files()))
  stopifnot(made == 0)
  wheels
}

bare <- function(home) c(paste0("R_USER_DATA_DIR=", home), "RETICULATE_PYTHON=", "PYTHONPATH=",
                         "VIRTUAL_ENV=", "CTMM_REQUIRE_PYTHON=")

test_that("one call makes an environment, which later sessions find without its name", {
  need_python()
  skip_on_os("windows")
  home <- tempfile("home")
  wheels <- stand_in()
  first <- run_r(c(
    "library(ctmmFormula)",
    sprintf("ctmm_install('%s', python = '%s', compile = FALSE)", wheels, reticulate::py_exe())),
    bare(home))
  expect_identical(first$status, 0L, info = first$out)
  expect_match(first$out, "^Ready: .*python/bin/python$", all = FALSE)
  second <- run_r(c(
    "Sys.unsetenv('RETICULATE_PYTHON')",
    "library(ctmmFormula)",
    "fit <- ctmm(expr ~ celltype, data = pseudobulk, structure = 'hom', method = 'reml')",
    "cat(format(fit$vcomp, digits = 12), '\\n'); print(ctmm_check())",
    sprintf("ctmm_install('%s')", wheels)), bare(home))
  expect_identical(second$status, 0L, info = second$out)
  own <- ctmm(expr ~ celltype, data = pseudobulk, structure = "hom", method = "reml")
  expect_true(trimws(format(own$vcomp, digits = 12)) %in% trimws(second$out))
  expect_match(second$out, paste0("^Python +", normalizePath(home)), all = FALSE)
  expect_match(second$out, "is there already.*force = TRUE", all = FALSE)
  # what is asked for comes first
  third <- run_r(c("library(ctmmFormula)", "cat(ctmm_check()$python)"),
                 replace(bare(home), 2L, paste0("RETICULATE_PYTHON=", reticulate::py_exe())))
  expect_match(third$out, reticulate::py_exe(), fixed = TRUE, all = FALSE)
  # a failure leaves what was there
  empty <- tempfile("wheels")
  dir.create(empty)
  file.create(file.path(empty, "ctmm_formula-9.whl"))
  failed <- run_r(c(
    "library(ctmmFormula)",
    sprintf("r <- tryCatch(ctmm_install('%s', python = '%s', force = TRUE), ctmm_CTMMError = identity)",
            empty, reticulate::py_exe()),
    "cat(conditionMessage(r), '\\n'); cat(file.exists(ctmmFormula:::own_python()))"), bare(home))
  expect_match(failed$out, "could not be installed", all = FALSE)
  expect_identical(failed$out[length(failed$out)], "TRUE")
})

test_that("what cannot be installed, or started from, is told before anything is made", {
  expect_error(ctmm_install("nowhere"), "names nothing that is there: nowhere", class = "ctmm_CTMMError")
  folder <- tempfile()
  dir.create(folder)
  expect_error(ctmm_install(folder), "a wheel, a source archive, the folder with pyproject.toml")
  expect_error(ctmm_install(ask = NA), "ask = must be TRUE or FALSE")
  file.create(file.path(folder, "ctmm_formula-0.whl"))
  expect_error(ctmm_install(folder, python = "/nonexistent/python", force = TRUE), "does not exist")
  expect_length(unfit(Sys.which("sh")), 0L)  # says no version: nothing is known against it
  expect_match(unusable(Sys.which("sh")[[1]]), "cannot make environments")
})

test_that("dependencies are pinned to versions", {
  lines <- readLines(system.file("python", "constraints.txt", package = "ctmmFormula"))
  expect_match(lines, "^#|^[a-z-]+==[0-9.]+$")
  expect_identical(source_of(NULL, "1.2.3"), list(target = "ctmm-formula==1.2.3", offline = FALSE))
})
