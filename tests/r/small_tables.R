# Rscript small_tables.R kang|airway|bcg [DATA.csv]: small real tables by metafor's REML, as csv.
# bcg is metadat's dat.bcg, whose log risk ratios and variances come along.
args <- commandArgs(TRUE)
d <- if (args[1] == "bcg") metafor::escalc("RR", ai = tpos, bi = tneg, ci = cpos, di = cneg,
                                           data = metadat::dat.bcg) else read.csv(args[2])
d$row <- seq_len(nrow(d))
control <- list(rel.tol = 1e-10)
fit <- switch(args[1],
  kang = metafor::rma.mv(y, nu, mods = ~ 0 + celltype + celltype:stim, data = d, control = control,
                         random = list(~ 1 | donor, ~ 1 | row, ~ 1 | ind)),
  airway = metafor::rma.mv(y, nu, mods = ~ 0 + celltype + celltype:Genotype, data = d, struct = "DIAG",
                           random = list(~ 1 | donor, ~ celltype | donor), control = control),
  bcg = metafor::rma.mv(yi, vi, random = ~ 1 | row, data = d, control = control))
theta <- c(fit$sigma2, if (args[1] == "airway") fit$tau2)
out <- list(theta = theta, beta = coef(fit), se = fit$se, llf = as.numeric(logLik(fit)))
if (args[1] == "bcg") out <- c(out, list(y = as.numeric(d$yi), nu = as.numeric(d$vi)))
cat("name,value\n")
for (name in names(out)) cat(sprintf("%s,%.15g\n", name, as.vector(out[[name]])), sep = "")
