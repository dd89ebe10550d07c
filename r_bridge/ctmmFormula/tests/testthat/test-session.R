# Sessions: no Python, another Python, a Python that runs already, files from elsewhere.

test_that("a fit is a list of plain values that another session can use without Python", {
  need_python()
  fit <- example_fit()
  plain <- function(x) {
    if (is.list(x)) return(all(vapply(x, plain, NA)))
    is.null(x) || is.atomic(x) || is.language(x)
  }
  expect_true(plain(unclass(fit)))
  file <- tempfile(fileext = ".rds")
  overall <- overall_fit()
  saveRDS(list(fit, overall, jackknife(fit)), file)
  new <- tempfile(fileext = ".rds")
  out <- run_r(c(
    "library(ctmmFormula); options(show.signif.stars = FALSE)",
    sprintf("kept <- readRDS('%s'); fit <- kept[[1]]", file),
    "text <- capture.output(print(fit), print(summary(fit)), print(VarCorr(fit)), print(ranef(fit)),",
    "                       print(summary(fit, kept[[3]])), print(kept[[2]]))",
    "got <- list(predict(fit, pseudobulk), AIC(fit), BIC(fit), coef(fit), vcov(fit), confint(fit),",
    "            residuals(fit), tidy(fit, conf.int = TRUE), glance(fit), celltype_means(fit),",
    "            simulate(fit, 2, seed = 1), predict(kept[[2]], overall_pseudobulk), text)",
    "failed <- tryCatch(test_variance(fit), ctmm_no_python = function(e) conditionMessage(e))",
    sprintf("saveRDS(list(got, reticulate::py_available(), failed), '%s')", new)),
    env = "RETICULATE_PYTHON=/nonexistent/python")
  expect_identical(out$status, 0L, info = out$out)
  kept <- readRDS(new)
  old <- options(show.signif.stars = FALSE)
  on.exit(options(old))
  text <- capture.output(print(fit), print(summary(fit)), print(VarCorr(fit)), print(ranef(fit)),
                         print(summary(fit, jackknife(fit))), print(overall))
  expected <- list(predict(fit, pseudobulk), AIC(fit), BIC(fit), coef(fit), vcov(fit), confint(fit),
                   residuals(fit), as.data.frame(tidy(fit, conf.int = TRUE)),  # else tibbles, here
                   as.data.frame(glance(fit)), celltype_means(fit),
                   simulate(fit, 2, seed = 1), predict(overall, overall_pseudobulk), text)
  expect_equal(kept[[1]], expected, tolerance = 1e-14)
  expect_false(kept[[2]])
  expect_match(kept[[3]], "Python cannot be started")
  # and what was stored can be asked again where there is Python
  back <- readRDS(file)[[1]]
  expect_equal(test_variance(back, "score"), test_variance(fit, "score"))
  expect_equal(as.numeric(logLik(update(back, structure = "hom"))),
               as.numeric(logLik(update(fit, structure = "hom"))))
})

test_that("loading the package starts nothing", {
  out <- run_r(c("library(ctmmFormula)", "cat(reticulate::py_available())"))
  expect_identical(out$out, "FALSE")
})

test_that("a Python that is not there, or lacks the module, is named with the way out", {
  ask <- c("library(ctmmFormula)",
           "r <- tryCatch(ctmm(expr ~ celltype, data = pseudobulk), ctmm_no_python = identity)",
           "cat(conditionMessage(r)); print(ctmm_check())")
  out <- paste(run_r(ask, "RETICULATE_PYTHON=/nonexistent/python")$out, collapse = "\n")
  expect_match(out, "Python cannot be started (RETICULATE_PYTHON is '/nonexistent/python')",
               fixed = TRUE)
  need_python()
  bare <- file.path(tempfile("bare"), "bin", "python3")
  made <- system2(reticulate::py_exe(), c("-m", "venv", "--without-pip", dirname(dirname(bare))))
  expect_identical(made, 0L)
  env <- c(paste0("RETICULATE_PYTHON=", bare), "PYTHONPATH=", "PYTHONHOME=")
  out <- paste(run_r(ask, env)$out, collapse = "\n")
  expect_match(out, "'?ctmm_formula'? is not installed in the Python that R is using")
  expect_match(out, "python3 -m venv ~/ctmm && ~/ctmm/bin/pip install .", fixed = TRUE)
  expect_match(out, "RETICULATE_PYTHON", fixed = TRUE)
})

test_that("a Python that runs already is used, also where it runs in another folder", {
  need_python()
  folder <- tempfile()
  dir.create(folder)
  writeLines("[tool.poetry]", file.path(folder, "pyproject.toml"))
  out <- run_r(c(
    sprintf("setwd('%s')", folder),
    "reticulate::py_run_string('started = True')",
    "library(ctmmFormula)",
    "fit <- ctmm(expr ~ celltype, data = pseudobulk, structure = 'hom', method = 'reml')",
    "cat(reticulate::py$started, round(fit$vcomp, 6), ctmm_check()$problem == '')"))
  expect_identical(out$status, 0L, info = out$out)
  expect_match(out$out[length(out$out)], "^TRUE [0-9.]+ TRUE$")
})

test_that("a forked process is told what to use instead, a process of its own works", {
  need_python()
  skip_on_os("windows")
  example_fit()
  forked <- parallel::mclapply(1:2, function(k)
    tryCatch(ctmm(expr ~ celltype, data = pseudobulk, method = "reml"), error = conditionMessage), mc.cores = 2)
  expect_match(unlist(forked), "fork of one in which Python runs.*makePSOCKcluster")
  cluster <- parallel::makePSOCKcluster(1)
  on.exit(parallel::stopCluster(cluster))
  parallel::clusterCall(cluster, function(paths) .libPaths(paths), .libPaths())
  own <- parallel::clusterCall(cluster, function()
    logLik(ctmmFormula::ctmm(expr ~ celltype, data = ctmmFormula::pseudobulk, method = "reml")))
  expect_equal(own[[1]], logLik(ctmm(expr ~ celltype, data = pseudobulk, method = "reml")), tolerance = 1e-12)
})

test_that("packages of different protocols say which one to update", {
  need_python()
  state <- ctmmFormula:::state
  module <- state$wire
  on.exit(state$wire <- module)
  state$wire <- NULL
  python <- reticulate::import("ctmm_formula.wire.calls")
  old <- python$PROTOCOL
  python$PROTOCOL <- 0L
  expect_error(ctmm(expr ~ celltype, data = pseudobulk, method = "reml"), "update the Python package, .*--upgrade \\.",
               class = "ctmm_no_python")
  python$PROTOCOL <- 99L
  expect_error(ctmm(expr ~ celltype, data = pseudobulk, method = "reml"), "update the R package",
               class = "ctmm_no_python")
  python$PROTOCOL <- old
})

test_that("memory is given back after many fits", {
  need_python()
  skip_if(!file.exists("/proc/self/status"), "memory is measured on Linux")
  out <- run_r(c(
    "library(ctmmFormula)",
    "used <- function() {",
    "  gc(full = TRUE)",
    "  line <- grep('^RssAnon', readLines('/proc/self/status'), value = TRUE)",
    "  as.numeric(gsub('[^0-9]', '', line)) / 1024",
    "}",
    "fit <- function() ctmm(expr ~ celltype + sex, data = pseudobulk)",
    "for (k in 1:100) fit()",
    "before <- used()",
    "for (k in 1:100) fit()",
    "cat(used() - before)"))
  # MB; one fit's arrays are 0.1 MB, so 100 that stayed would be 10 and more
  expect_lt(as.numeric(utils::tail(out$out, 1)), 5)
})

test_that("a pyproject.toml beside the work is not taken for one of Poetry", {
  need_python()
  folder <- tempfile()
  dir.create(folder)
  writeLines(c("[tool.other]", "x = 1"), file.path(folder, "pyproject.toml"))
  said <- run_r(c(sprintf("setwd(%s); options(warn = 1)", shQuote(folder)),
                  "Sys.unsetenv(c('RETICULATE_PYTHON', 'VIRTUAL_ENV'))",
                  "cat(ctmmFormula::ctmm_check()$problem, 'checked\n')"),
                paste0("RETICULATE_PYTHON_FALLBACK=", reticulate::py_config()$python))
  expect_identical(trimws(said$out), "checked")
})
