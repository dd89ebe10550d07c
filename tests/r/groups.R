# Rscript groups.R DATA.csv METHOD KIND: a free structure by groups of donors (KIND by) or of the same
# donors under conditions (within), by metafor, as csv: name, value.
# DATA has donor, celltype, group, expr, nu.  Variance components are held >= 0.
args <- commandArgs(TRUE)
d <- read.csv(args[1], stringsAsFactors = TRUE)
d$type_group <- interaction(d$celltype, d$group, sep = "|")
d$donor_group <- interaction(d$donor, d$group, drop = TRUE)
call <- list(yi = d$expr, V = d$nu, mods = ~ 0 + celltype:group, data = d, method = toupper(args[2]))
control <- list(iter.max = 2000, eval.max = 4000, rel.tol = 1e-10)
if (args[3] == "by") {
  fit <- do.call(metafor::rma.mv, c(call, list(
    random = list(~ group | donor, ~ type_group | donor), struct = c("DIAG", "DIAG"),
    control = control)))
  theta <- c(setNames(fit$tau2, paste0("hom[", fit$g.levels.f[[1]], "]")),
             setNames(fit$gamma2, paste0("V[", fit$h.levels.f[[1]], "]")))
} else {
  fit <- do.call(metafor::rma.mv, c(call, list(
    random = list(~ 1 | donor, ~ 1 | donor_group, ~ celltype | donor, ~ celltype | donor_group),
    struct = c("DIAG", "DIAG"), control = control)))
  theta <- c(hom = fit$sigma2[1], "hom:group" = fit$sigma2[2],
             setNames(fit$tau2, paste0("V[", fit$g.levels.f[[1]], "]")),
             setNames(fit$gamma2, paste0("V[", fit$h.levels.f[[1]], "]:group")))
}
out <- c(llf = as.numeric(logLik(fit)), theta, setNames(as.numeric(coef(fit)), names(coef(fit))))
write.csv(data.frame(name = names(out), value = format(out, digits = 15)), row.names = FALSE, quote = TRUE)
