# Rscript fit.R TOOL DATA.csv METHOD BATCH: hom, iid, free and full fits of one table, as csv.
# DATA has donor, celltype, batch, expr, nu.  Variance components are held >= 0 by all tools.
# Log-likelihoods carry all constants, for REML with 1/2 log det X'X.
args <- commandArgs(TRUE)
here <- dirname(sub("^--file=", "", grep("^--file=", commandArgs(FALSE), value = TRUE)))
tool <- args[1]
d <- read.csv(args[2], stringsAsFactors = TRUE)
reml <- args[3] == "reml"
batch <- args[4] == "1"
d$row <- factor(seq_len(nrow(d)))
C <- nlevels(d$celltype)
n <- nrow(d)
logdet <- as.numeric(determinant(crossprod(model.matrix(~ 0 + celltype, d)))$modulus)

with_metafor <- function(structure) {
  random <- switch(structure,
    hom = list(~ 1 | donor), iid = list(~ 1 | donor, ~ 1 | row),
    free = list(~ 1 | donor, ~ celltype | donor), full = list(~ celltype | donor))
  if (batch) random <- c(random, list(~ 1 | batch))
  call <- list(yi = d$expr, V = d$nu, mods = ~ 0 + celltype, random = random, data = d,
               method = toupper(args[3]))
  if (structure %in% c("free", "full")) call$struct <- c(free = "DIAG", full = "UN")[[structure]]
  f <- do.call(metafor::rma.mv, call)
  k <- if (structure == "full") 0 else if (structure == "iid") 2 else 1
  V <- switch(structure, hom = NULL, iid = f$sigma2[2], free = f$tau2,
              full = t(f$G)[upper.tri(f$G, TRUE)])
  list(llf = as.numeric(logLik(f)), beta = as.numeric(coef(f)), se = f$se,
       theta = c(if (structure != "full") f$sigma2[1], V, if (batch) f$sigma2[k + 1]))
}

with_lme4 <- function(structure) {
  f <- pinned_fit(d, structure, reml, batch)
  f$llf <- f$llf + reml * 0.5 * logdet
  f
}

with_glmmTMB <- function(structure) {
  # 1.1.9 moved the Gaussian dispersion from the variance to the standard deviation
  d$lv <- log(d$nu) * if (packageVersion("glmmTMB") >= "1.1.9") 0.5 else 1
  random <- c(hom = "(1|donor)", iid = "(1|donor) + (1|row)",
              free = "(1|donor) + diag(0+celltype|donor)", full = "us(0+celltype|donor)")
  formula <- paste("expr ~ 0 + celltype +", random[[structure]], if (batch) "+ (1|batch)")
  f <- glmmTMB::glmmTMB(as.formula(formula), dispformula = ~ 0 + offset(lv), data = d, REML = reml,
                        control = glmmTMB::glmmTMBControl(list(iter.max = 3000, eval.max = 4000)))
  list(llf = as.numeric(logLik(f)) + reml * 0.5 * logdet)
}

if (tool == "lme4") source(file.path(here, "lme4_pinned.R"))
fit <- list(metafor = with_metafor, lme4 = with_lme4, glmmTMB = with_glmmTMB)[[tool]]
cat("structure,name,value\n")
for (structure in c("hom", "iid", "free", "full")) {
  f <- suppressMessages(fit(structure))
  for (name in c("llf", "theta", "beta", "se"))
    for (value in f[[name]]) cat(sprintf("%s,%s,%.15g\n", structure, name, value))
}
