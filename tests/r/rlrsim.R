# Rscript rlrsim.R DATA.csv NSIM: restricted likelihood ratio test of a donor effect by RLRsim.
# DATA has donor, x, y, nu.  Rows are divided by the standard deviation of their noise first, so
# that RLRsim's homogeneous, estimated noise variance is an estimate of 1.
# Writes name,value: the statistic, both estimates of that variance, and quantiles of the null.
suppressPackageStartupMessages({library(lme4); library(RLRsim)})
args <- commandArgs(TRUE)
d <- read.csv(args[1])
s <- 1 / sqrt(d$nu)
d$donor <- factor(d$donor)
X <- s * cbind(1, d$x)
Z <- s * model.matrix(~ 0 + donor, d)
d$yt <- s * d$y
d$x0 <- X[, 1]
d$x1 <- X[, 2]
d$s <- s
fit <- lmer(yt ~ 0 + x0 + x1 + (0 + s | donor), d, REML = TRUE,
            control = lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-10)))
test <- exactRLRT(fit, nsim = as.integer(args[2]), seed = 1)
null <- RLRTSim(X, Z, qr(X), diag(ncol(Z)), nsim = as.integer(args[2]), seed = 2)
probability <- c(0.8, 0.9, 0.95, 0.99)
out <- c(statistic = unname(test$statistic), pvalue = unname(test$p.value),
         sigma2 = sigma(fit)^2, sigma2_null = summary(lm(yt ~ 0 + x0 + x1, d))$sigma^2,
         zero = mean(null < 1e-8), setNames(quantile(null, probability), probability))
write.csv(data.frame(name = names(out), value = sprintf("%.15g", out)), row.names = FALSE,
          quote = FALSE)
