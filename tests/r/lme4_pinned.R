# lme4's penalised least squares with the residual standard deviation held at 1 and weights 1 / nu:
#   -2 l = log|L|^2 (+ log|R_X|^2) + penalised RSS + (n [- p]) log 2 pi + sum log nu
# fit.R sources it; the benchmark of speed runs it, see the end.  `timing`: seconds of optimising.
suppressMessages(library(lme4))

pinned_fit <- function(d, structure, reml, batch, covariates = character(), fast = FALSE) {
  C <- nlevels(d$celltype)
  z <- paste0("z", seq_len(C))
  for (k in seq_len(C)) d[[z[k]]] <- as.numeric(as.integer(d$celltype) == k)
  d$row <- factor(seq_len(nrow(d)))
  d$w <- 1 / d$nu
  random <- switch(structure,
    hom = "(1|donor)", iid = "(1|donor) + (1|row)",
    free = paste(c("(1|donor)", sprintf("(0+%s|donor)", z)), collapse = " + "),
    full = sprintf("(0+%s|donor)", paste(z, collapse = "+")))
  if (batch) random <- paste(random, "+ (1|batch)")
  formula <- as.formula(paste("expr ~ 0 +", paste(c("celltype", covariates, random), collapse = " + ")))
  quiet <- lmerControl(check.nobs.vs.nlev = "ignore", check.nobs.vs.nRE = "ignore",
                       check.nobs.vs.rankZ = "ignore", check.nlev.gtr.1 = "ignore")
  parts <- lFormula(formula, data = d, weights = w, REML = reml, control = quiet)
  deviance <- do.call(mkLmerDevfun, parts)
  env <- environment(deviance)
  n <- nrow(d)
  p <- ncol(parts$X)
  constant <- (n - reml * p) * log(2 * pi) + sum(log(d$nu))
  criterion <- function(theta) {
    deviance(theta)
    env$pp$ldL2() + reml * env$pp$ldRX2() + env$resp$wrss() + env$pp$sqrL(1) + constant
  }
  theta <- env$pp$theta * 0.5
  lower <- env$lower
  begin <- proc.time()[["elapsed"]]
  if (fast) {  # lme4's own default optimiser, one start
    end <- nloptwrap(theta, criterion, lower = lower, upper = rep(Inf, length(theta)))
    best <- list(par = end$par, objective = end$fval)
  } else {
    best <- NULL
    # theta = 0 is stationary on the scale of standard deviations: one start can stick there
    for (start in list(theta, 2 * theta, theta * rep_len(c(0.4, 1.5, 0.8), length(theta)))) {
      end <- nlminb(start, criterion, lower = lower,
                    control = list(eval.max = 5000, iter.max = 2000, rel.tol = 1e-12))
      if (is.null(best) || end$objective < best$objective) best <- end
    }
  }
  timing <- proc.time()[["elapsed"]] - begin
  criterion(best$par)
  groups <- names(parts$reTrms$cnms)
  labels <- vapply(parts$reTrms$cnms, paste, "", collapse = "+")
  vc <- mkVarCorr(1, parts$reTrms$cnms, lengths(parts$reTrms$cnms), best$par, groups)
  of <- function(group, label) vc[[which(groups == group & labels == label)]]
  V <- switch(structure, hom = NULL, iid = of("row", "(Intercept)")[1],
              free = vapply(z, function(k) of("donor", k)[1], 0),
              full = { G <- of("donor", paste(z, collapse = "+")); t(G)[upper.tri(G, TRUE)] })
  list(llf = -best$objective / 2, beta = env$pp$beta(1), se = sqrt(diag(env$pp$unsc())),
       theta = c(if (structure != "full") of("donor", "(Intercept)")[1], V,
                 if (batch) of("batch", "(Intercept)")[1]),
       timing = timing)
}

# Rscript lme4_pinned.R DATA.csv BATCH COVARIATES REPEATS: free REML.  Prints per repeat: seconds of
# the whole fit (formula, set-up, optimisation), of the optimisation alone, and the log-likelihood.
# Loading R, lme4 and the table is not counted.
if (sys.nframe() == 0L) {
  args <- commandArgs(TRUE)
  d <- read.csv(args[1], stringsAsFactors = TRUE)
  covariates <- sprintf("x%d", seq_len(as.integer(args[3])))
  cat("total,optimise,llf\n")
  for (i in 0:as.integer(args[4])) {
    total <- system.time(
      f <- pinned_fit(d, "free", TRUE, args[2] == "1", covariates, fast = TRUE))[["elapsed"]]
    X <- model.matrix(reformulate(c("0", "celltype", covariates)), d)
    llf <- f$llf + 0.5 * as.numeric(determinant(crossprod(X))$modulus)
    if (i > 0) cat(sprintf("%.5f,%.5f,%.8f\n", total, f$timing, llf))  # the first one warms up
  }
}
