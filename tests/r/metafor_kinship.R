# REML with a kinship by metafor, all components >= 0: Rscript metafor_kinship.R DATA.csv K.csv
# Prints the log-likelihood, then genetic and environmental variance shared by the cell types and
# genetic variance of every type, then fixed effects.

suppressPackageStartupMessages(library(metafor))
args <- commandArgs(trailingOnly = TRUE)
data <- read.csv(args[1])
K <- as.matrix(read.csv(args[2], row.names = 1, check.names = FALSE))
types <- sort(unique(data$celltype))

# an effect on one cell type: other rows belong to a level "none", which has no variance
K0 <- rbind(cbind(K, none = 0), none = 0)
R <- list(id = K)
random <- list(~ 1 | id, ~ 1 | donor)
data$id <- data$donor
for (type in types) {
  name <- paste0("g_", type)
  data[[name]] <- ifelse(data$celltype == type, data$donor, "none")
  R[[name]] <- K0
  random <- c(random, as.formula(paste("~ 1 |", name)))
}
fit <- rma.mv(
  expr, nu, mods = ~ 0 + celltype, random = random, R = R, Rscale = FALSE, method = "REML",
  data = data, sparse = TRUE, control = list(optimizer = "optim", optmethod = "BFGS")
)
cat(format(c(logLik(fit), fit$sigma2, coef(fit)), digits = 15), sep = "\n")
