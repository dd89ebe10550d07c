# Rscript lme4_pinned.R DATA.csv BATCH COVARIATES REPEATS: free REML by lme4's kernel, residual sd 1.
# Prints per repeat: seconds of the whole fit (formula, set-up, optimisation), of the optimisation
# alone, and the log-likelihood.  Loading R, lme4 and the table is not counted.
here <- dirname(sub("^--file=", "", grep("^--file=", commandArgs(FALSE), value = TRUE)))
source(file.path(here, "..", "r", "lme4_pinned.R"))
args <- commandArgs(TRUE)
d <- read.csv(args[1], stringsAsFactors = TRUE)
covariates <- if (as.integer(args[3]) > 0) paste0("x", seq_len(as.integer(args[3]))) else character()
batch <- args[2] == "1"
cat("total,optimise,llf\n")
for (i in 0:as.integer(args[4])) {
  total <- system.time(f <- pinned_fit(d, "free", TRUE, batch, covariates, fast = TRUE))[["elapsed"]]
  X <- model.matrix(as.formula(paste("~ 0 +", paste(c("celltype", covariates), collapse = " + "))), d)
  llf <- f$llf + 0.5 * as.numeric(determinant(crossprod(X))$modulus)
  if (i > 0) cat(sprintf("%.5f,%.5f,%.8f\n", total, f$timing, llf))  # the first one warms up
}
