#' @rdname ctmm-methods
#' @export
VarCorr.ctmm <- function(x, sigma = 1, ...) {
  no_more(...)
  if (!identical(as.double(sigma), 1)) fail("CTMMError", "sigma = must be 1: the noise is known")
  donor <- x$A
  attr(donor, "stddev") <- sqrt_or_na(diag(x$A))
  attr(donor, "correlation") <- x$corr
  out <- list(donor = donor)
  names(out) <- x$roles$donor
  for (name in x$random_names) {
    value <- matrix(x$vcomp[[name]], 1L, 1L, dimnames = list("(Intercept)", "(Intercept)"))
    attr(value, "stddev") <- sqrt_or_na(named(value[1L], "(Intercept)"))
    attr(value, "correlation") <- matrix(1, 1L, 1L, dimnames = dimnames(value))
    out[[name]] <- value
  }
  for (name in names(x$kinship)) {
    value <- x$kinship[[name]]
    sd <- sqrt_or_na(diag(value))
    attr(value, "stddev") <- sd
    attr(value, "correlation") <- x$kinship[[name]] / outer(sd, sd)
    out[[name]] <- value
  }
  structure(out, class = "VarCorr.ctmm", structure = x$structure, vcomp = x$vcomp)
}

# Negative variances are estimates like any other, but have no square root.
sqrt_or_na <- function(x) ifelse(x >= 0, sqrt(abs(x)), NA_real_)

#' @rdname ctmm-methods
#' @export
as.data.frame.VarCorr.ctmm <- function(x, row.names = NULL, optional = FALSE,
                                       order = c("cov.last", "lower.tri"), ...) {
  no_more(..., passed = TABLED)
  order <- match.arg(order)
  rows <- lapply(names(x), function(group) {
    value <- x[[group]]
    types <- rownames(value)
    cells <- which(lower.tri(value), arr.ind = TRUE)
    own <- data.frame(grp = group, var1 = types, var2 = NA_character_, vcov = diag(value),
                      sdcor = unname(attr(value, "stddev")), i = seq_along(types),
                      j = seq_along(types))
    between <- data.frame(grp = rep(group, nrow(cells)), var1 = types[cells[, 2L]],
                          var2 = types[cells[, 1L]], vcov = value[cells],
                          sdcor = attr(value, "correlation")[cells], i = cells[, 1L],
                          j = cells[, 2L])
    out <- rbind(own, between)
    if (order == "lower.tri") out <- out[order(out$j, out$i), ]
    out
  })
  out <- do.call(rbind, rows)
  out$i <- out$j <- NULL
  rownames(out) <- row.names
  out
}

#' @export
print.VarCorr.ctmm <- function(x, digits = max(3L, getOption("digits") - 3L), ...) {
  no_more(...)
  number <- function(v) ifelse(is.na(v), "", format(v, digits = digits))
  blocks <- lapply(names(x), function(group) {
    value <- x[[group]]
    size <- nrow(value)
    correlation <- attr(value, "correlation")
    lower <- matrix("", size, max(size - 1L, 0L))
    for (i in seq_len(size)[-1L]) for (j in seq_len(i - 1L))
      lower[i, j] <- if (is.na(correlation[i, j])) "NA" else sprintf("%.3f", correlation[i, j])
    list(group = c(group, rep("", size - 1L)), name = rownames(value), variance = diag(value),
         sd = attr(value, "stddev"), corr = lower)
  })
  width <- max(vapply(blocks, function(b) ncol(b$corr), 0L))
  corr <- do.call(rbind, lapply(blocks, function(b)
    cbind(b$corr, matrix("", nrow(b$corr), width - ncol(b$corr)))))
  out <- cbind(unlist(lapply(blocks, `[[`, "group")), unlist(lapply(blocks, `[[`, "name")),
               number(unlist(lapply(blocks, `[[`, "variance"))),
               number(unlist(lapply(blocks, `[[`, "sd"))), corr)
  dimnames(out) <- list(rep("", nrow(out)),
                        c("Groups", "Name", "Variance", "Std.Dev.", c("Corr", rep("", width))[seq_len(width)]))
  print(out, quote = FALSE, right = FALSE)
  cat(sprintf("Structure %s: %s\n", attr(x, "structure"),
              paste(names(attr(x, "vcomp")), format(attr(x, "vcomp"), digits = digits, trim = TRUE),
                    sep = " = ", collapse = ", ")))
  invisible(x)
}

#' @rdname ctmm-methods
#' @export
ranef.ctmm <- function(object, condVar = TRUE, ...) {
  no_more(...)
  if (is.null(object$effects)) fail("ConvergenceError", object$no_effects)
  effects <- object$effects
  frame <- function(x) as.data.frame(x, optional = TRUE)
  own <- list(estimate = NULL, std.error = NULL)
  for (what in names(own)) {
    parts <- list()
    if (is.list(effects$shared)) parts$shared <- effects$shared[[what]]
    else if (!is.null(effects$shared)) parts$shared <- effects$shared[, what, drop = FALSE]
    if (!is.null(effects$specific)) parts$specific <- effects$specific[[what]]
    levels <- object$crossing$levels
    first <- if (is.null(levels)) "(Intercept)" else
      ifelse(nzchar(levels), paste0("(Intercept)|", levels), "(Intercept)")
    columns <- c(if (!is.null(parts$shared)) first, colnames(parts$specific))
    joined <- do.call(cbind, unname(parts))
    colnames(joined) <- columns
    own[[what]] <- frame(joined)
  }
  if (condVar) attr(own$estimate, "std.error") <- own$std.error
  out <- named(list(own$estimate), object$roles$donor)
  for (name in names(object$kinship)) {
    one <- frame(effects[[name]]$estimate)
    if (condVar) attr(one, "std.error") <- frame(effects[[name]]$std.error)
    out[[name]] <- one
  }
  for (name in setdiff(names(effects), c("shared", "specific", names(object$kinship)))) {
    values <- effects[[name]]
    one <- data.frame(`(Intercept)` = values[, 1L], row.names = rownames(values),
                      check.names = FALSE)
    if (condVar) attr(one, "std.error") <-
      data.frame(`(Intercept)` = values[, 2L], row.names = rownames(values), check.names = FALSE)
    out[[name]] <- one
  }
  structure(out, class = "ranef.ctmm")
}

#' @rdname ctmm-methods
#' @export
as.data.frame.ranef.ctmm <- function(x, row.names = NULL, ...) {
  no_more(..., passed = TABLED)
  rows <- lapply(names(x), function(group) {
    value <- x[[group]]
    se <- attr(value, "std.error")
    terms <- names(value)
    data.frame(grpvar = group, term = rep(terms, each = nrow(value)),
               grp = rep(rownames(value), length(terms)), condval = unlist(value, use.names = FALSE),
               condsd = if (is.null(se)) NA_real_ else unlist(se, use.names = FALSE))
  })
  out <- do.call(rbind, rows)
  if (!is.null(row.names)) rownames(out) <- row.names
  out
}

#' @export
print.ranef.ctmm <- function(x, ...) {
  no_more(..., passed = PRINTED)
  for (group in names(x)) {
    cat("$", group, "\n", sep = "")
    value <- x[[group]]
    attr(value, "std.error") <- NULL
    print(value, ...)
    cat("\n")
  }
  invisible(x)
}
