#' @rdname ctmm-methods
#' @export
plot.ctmm <- function(x, which = c("variance", "means", "residuals", "ranef"), ...) {
  no_more(..., passed = drawn())
  which <- match.arg(which)
  switch(which, variance = plot_variance(x, ...), means = plot_means(x, ...),
         residuals = plot_residuals(x, ...), ranef = plot_ranef(x, ...))
  invisible(x)
}

plot_variance <- function(x, xlab = "Variance between donors", main = "Variance components", ...) {
  table <- estimates(x)$variance
  ends <- stats::confint(x, "theta_")
  dots(table[, 1L], ends, rownames(table), xlab, main, ...)
}

plot_means <- function(x, xlab = "Mean expression", main = "Means of the cell types", ...) {
  means <- celltype_means(x)
  dots(means$estimate, as.matrix(means[c("conf.low", "conf.high")]), means$celltype, xlab, main, ...)
}

plot_ranef <- function(x, xlab = "Predicted effect", main = NULL, ...) {
  values <- as.data.frame(ranef.ctmm(x))
  values <- values[values$grpvar == x$roles$donor & values$term == values$term[1L], ]
  values <- values[order(values$condval), ]
  reach <- stats::qnorm(0.975) * values$condsd
  title <- main %||% paste("Donors:", values$term[1L])
  dots(values$condval, cbind(values$condval - reach, values$condval + reach), values$grp, xlab,
       title, ...)
}

plot_residuals <- function(x, xlab = "Fitted", ylab = "Pearson residual", main = "", ...) {
  graphics::plot(conditional(x), (x$y - conditional(x)) / sqrt(x$nu), xlab = xlab, ylab = ylab,
                 main = main, ...)
  graphics::abline(h = 0, col = "grey")
}

# Estimates with intervals, the first on top.
dots <- function(value, ends, names, xlab, main, ...) {
  at <- rev(seq_along(value))
  old <- graphics::par(mar = c(4.5, max(4, 0.6 * max(nchar(names)) + 1), 2.5, 1))
  on.exit(graphics::par(old))
  graphics::plot(value, at, xlim = range(ends, value, 0, na.rm = TRUE),
                 ylim = c(0.5, length(at) + 0.5), yaxt = "n", ylab = "",
                 xlab = xlab, main = main, pch = 19, ...)
  graphics::abline(v = 0, col = "grey")
  drawn <- which(is.finite(ends[, 1L]))
  graphics::segments(ends[drawn, 1L], at[drawn], ends[drawn, 2L], at[drawn])
  graphics::axis(2L, at, names, las = 1L)
}
