# Rscript small_samples.R DATA.csv L.csv BATCH: Kenward and Roger's covariance, degrees of freedom
# and F test of L b = 0 by pbkrtest, Satterthwaite's by lmerTest, of
#   expr ~ 0 + celltype + celltype:cond + (1 | donor) (+ (1 | batch)), residual variance estimated,
# as csv: name, value (matrices by column).
args <- commandArgs(TRUE)
d <- read.csv(args[1])
L <- as.matrix(read.csv(args[2], header = FALSE))
formula <- expr ~ 0 + celltype + celltype:cond + (1 | donor)
if (args[3] == "1") formula <- update(formula, . ~ . + (1 | batch))
control <- lme4::lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-10, maxfun = 1e5),
                             calc.derivs = FALSE)
fit <- lmerTest::lmer(formula, d, control = control)
vc <- as.data.frame(lme4::VarCorr(fit))
test <- pbkrtest::KRmodcomp(fit, L)$stats
one <- lapply(seq_len(nrow(L)), function(i) lmerTest::contest1D(fit, L[i, ]))
many <- lmerTest::contestMD(fit, L)
out <- list(theta = setNames(vc$vcov, vc$grp)[c("donor", "Residual", if (args[3] == "1") "batch")],
            beta = lme4::fixef(fit), adjusted = as.matrix(pbkrtest::vcovAdj(fit)),
            df = apply(L, 1, function(row) pbkrtest::get_Lb_ddf(fit, row)),
            F = c(test$Fstat, test$ddf, test$F.scaling),
            satterthwaite = vapply(one, function(x) x$df, 0),
            joint = c(many[["F value"]], many$DenDF))
cat("name,value\n")
for (name in names(out)) cat(sprintf("%s,%.15g\n", name, as.vector(out[[name]])), sep = "")
