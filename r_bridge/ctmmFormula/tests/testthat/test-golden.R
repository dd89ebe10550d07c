# Fits by lme4's kernel with the residual standard deviation held at 1, made without this package.

# absolute, log-likelihood: both stop within 1e-8 of the maximum; the file has 12 digits
LOGLIK <- 1e-6
# relative to the largest entry: equal to 1e-6 in log-likelihood is 1e-3 in standard errors
ESTIMATES <- 2e-3

close_to <- function(ours, theirs, label) {
  expect_lt(max(abs(ours - theirs)) / max(abs(theirs)), ESTIMATES, label = label)
}

check_against <- function(data, structure, method, batch, value) {
  label <- paste(structure, method, if (batch) "batch" else "no batch")
  random <- if (batch) ~ batch
  fit <- suppressWarnings(
    ctmm(y ~ 0 + celltype + sex + PC1, random = random, data = data, structure = structure,
         method = tolower(method), noise = "v", bounds = "nonnegative"),
    classes = "ctmm_BoundaryWarning")
  constant <- if (method == "REML") value[["logdetXtX"]] / 2 else 0
  expect_lt(abs(as.numeric(logLik(fit)) - value[["loglik"]] - constant), LOGLIK, label = label)
  beta <- value[grepl("^beta:", names(value))]
  expect_identical(names(coef(fit)), sub("beta:", "", names(beta)))
  close_to(coef(fit), beta, label)
  close_to(sqrt(diag(vcov(fit))), value[grepl("^se:", names(value))], label)
  theirs <- value[names(value) %in% c("hom", "batch") | grepl("^V", names(value))]
  if (structure == "hom") theirs <- theirs[names(theirs) != "V"]  # written as 0
  ours <- fit$vcomp
  if (structure == "full") {
    types <- levels(data$celltype)
    pairs <- grep("^V[.]", names(theirs), value = TRUE)
    at <- do.call(rbind, lapply(strsplit(pairs, ".", fixed = TRUE), function(p) as.integer(p[-1])))
    close_to(fit$A[at], theirs[pairs], label)
    if (batch) close_to(c(fit$vcomp[["batch"]], max(theirs)), c(theirs[["batch"]], max(theirs)), label)
  } else {
    expect_length(ours, length(theirs))
    close_to(ours, theirs, label)
  }
}

test_that("the golden file is met", {
  need_python()
  table <- read.csv(golden("golden.csv"))
  parts <- split(table, table[c("fixture", "structure", "method", "batch")], drop = TRUE)
  expect_length(parts, 32)
  for (part in parts) {
    data <- read.csv(golden(part$fixture[1]), stringsAsFactors = TRUE)
    check_against(data, part$structure[1], part$method[1], part$batch[1],
                  setNames(part$value, part$name))
  }
})

test_that("two more fixtures are met, fitted by lme4 here and now", {
  need_python()
  source <- golden("gold_lme4.R")
  need("lme4")
  suppressPackageStartupMessages(library(lme4))
  theirs <- new.env(parent = globalenv())
  sys.source(source, theirs)
  for (fixture in c("full.csv", "miss.csv")) {
    data <- read.csv(golden(fixture), stringsAsFactors = TRUE)
    X <- model.matrix(~ 0 + celltype + sex + PC1, data)
    logdet <- as.numeric(determinant(crossprod(X))$modulus)
    for (batch in c(FALSE, TRUE)) for (method in c("REML", "ML")) {
      for (structure in c("hom", "iid", "free", "full")) {
        fit <- suppressMessages(theirs$fit_lme4(data, structure, method, batch = batch))
        V <- if (is.matrix(fit$V)) {
          at <- which(lower.tri(fit$V, TRUE), arr.ind = TRUE)
          setNames(fit$V[at], sprintf("V.%d.%d", at[, 1], at[, 2]))
        } else if (structure == "free") setNames(fit$V, sprintf("V.%d.%d", 1:4, 1:4))
        else if (structure == "iid") c(V = fit$V)
        value <- c(loglik = fit$loglik, logdetXtX = logdet,
                   if (structure != "full") c(hom = fit$hom), V, if (batch) c(batch = fit$batch),
                   setNames(fit$beta, paste0("beta:", names(fit$beta))),
                   setNames(fit$se, paste0("se:", names(fit$beta))))
        check_against(data, structure, method, batch, value)
      }
    }
  }
})
