no_random <- function(re.form) {
  (length(re.form) == 1L && is.atomic(re.form) && is.na(re.form)) ||
    identical(re.form, "none") ||
    (inherits(re.form, "formula") && length(re.form) == 2L && identical(re.form[[2L]], 0))
}

# Names of the predicted effects that re.form asks for.
wanted <- function(object, re.form) {
  all <- names(object$effects)
  if (is.null(re.form) || identical(re.form, "all")) return(all)
  if (no_random(re.form)) return(character())
  if (inherits(re.form, "formula")) {
    terms <- random_sum(re.form[[length(re.form)]])
    label <- function(t) paste(t$groups, collapse = ":")
    labels <- vapply(terms, label, "")
    parts <- random_parts(object)
    known <- vapply(parts, function(part) label(part$term), "")
    donor <- labels == object$roles$donor
    asked <- c(if (any(donor)) intersect(c("shared", "specific"), all),
               names(parts)[known %in% labels[!donor]])
    absent <- setdiff(labels[!donor], known)
    if (length(absent)) fail("CTMMError", "the fit has no random effect ", listing(absent))
    return(asked)
  }
  if (!is.character(re.form) || !all(re.form %in% all))
    fail("CTMMError", "re.form must be NULL (all random effects), NA (none), a formula such as ",
         "~ (1 | batch), or names of ", listing(all, 20L))
  re.form
}

#' @rdname ctmm-methods
#' @export
predict.ctmm <- function(object, newdata = NULL, re.form = NULL, se.fit = FALSE,
                         allow.new.levels = FALSE, na.action = stats::na.pass,
                         interval = c("none", "confidence"), level = 0.95, covariance = NULL, ...) {
  no_more(...)
  interval <- match.arg(interval)
  if (!no_random(re.form) && is.null(object$effects)) fail("ConvergenceError", object$no_effects)
  names <- wanted(object, re.form)
  if ((se.fit || interval != "none") && length(names))
    fail("CTMMError", "standard errors are those of the fixed part: predict(..., re.form = NA)")
  if (is.null(newdata)) {
    X <- object$X
    offset <- object$offset %||% 0
    frame <- used_rows(object)
  } else {
    newdata <- as_table(newdata)
    X <- new_matrix(object, newdata, na.action)
    offset <- attr(X, "offset_values")
    gone <- match(rownames(X), rownames(newdata))
    frame <- newdata[gone, , drop = FALSE]
  }
  fit <- drop(X %*% object$beta) + offset
  for (name in names)
    fit <- fit + contribution(object, frame, name, allow.new.levels || is.null(newdata))
  fit <- named(fit, rownames(X))
  back <- function(x) if (is.null(newdata)) stats::napredict(object$na.action, x) else x
  if (!se.fit && interval == "none") return(back(fit))
  check_level(level)
  errors <- errors_of(object, covariance)
  own <- linear_of(object, X, errors, level)
  se <- named(own$se, rownames(X))
  if (interval == "confidence") {
    ends <- own$ends + drop(fit - X %*% object$beta)  # offsets
    fit <- cbind(fit = fit, lwr = ends[, 1L], upr = ends[, 2L])
  }
  if (!se.fit) return(back(fit))
  list(fit = back(fit), se.fit = back(se), df = own$df)
}

# Donor, cell type and groups of the rows of the fit.
used_rows <- function(object) {
  frame <- object$model
  out <- list(frame[["(donor)"]])
  names(out) <- object$roles$donor
  if (!is.null(object$roles$celltype)) out[[object$roles$celltype]] <- frame[["(celltype)"]]
  for (group in unlist(lapply(object$random, `[[`, "groups")))
    out[[group]] <- frame[[paste0("(random.", group, ")")]]
  for (role in CROSSED) if (!is.null(object$roles[[role]]))
    out[[object$roles[[role]]]] <- frame[[paste0("(", role, ")")]]
  if (object$kind == "op")
    out[object$proportion_columns] <- as.data.frame(frame[["(proportions)"]])
  as.data.frame(out, optional = TRUE, stringsAsFactors = FALSE)
}

# What one kind of predicted effect adds to rows; nothing for levels that are new, where allowed.
contribution <- function(object, frame, name, allow) {
  effect <- object$effects[[name]]
  column <- function(role) {
    if (!role %in% names(frame))
      fail("DataError", "newdata has no column '", role, "'; re.form = NA predicts without random ",
           "effects")
    as.character(frame[[role]])
  }
  found <- function(labels, known, what) {
    at <- match(labels, known)
    new <- unique(labels[is.na(at)])
    if (length(new) && !allow)
      fail("DataError", "column '", what, "' of newdata has levels the fit has not seen: ",
           listing(ifelse(is.na(new), "NA", new)), "; allow.new.levels = TRUE takes their effects as 0")
    at
  }
  zero <- function(x) ifelse(is.na(x), 0, x)
  if (name %in% c("shared", "specific", names(object$kinship))) {
    at <- found(column(object$roles$donor), object$donors, object$roles$donor)
    if (name == "shared" && is.null(object$crossing)) return(zero(effect[at, "estimate"]))
    H <- if (name == "shared") loads(object, frame) else effect_rows(object, frame, column)
    values <- effect$estimate[at, , drop = FALSE]
    values[is.na(values)] <- 0
    return(rowSums(values * H))
  }
  part <- random_parts(object)[[name]]
  labels <- crossed(lapply(part$term$groups, column))
  at <- found(labels, rownames(effect), paste(part$term$groups, collapse = ":"))
  values <- zero(effect[at, "estimate"])
  if (is.na(part$type)) return(values)
  values * observation(object, frame, column)[, part$type]
}

# By the name of each random effect: its term, and the place of its cell type (NA: all), in Python's
# order. Names may hold anything, they are not read.
random_parts <- function(object) {
  parts <- lapply(object$random, function(term) lapply(
    if (term$left == "1") NA_integer_ else seq_along(object$celltypes),
    function(type) list(term = term, type = type)))
  named(do.call(c, parts), object$random_names)
}

observation <- function(object, frame, column) {
  if (object$kind == "op") return(new_proportions(object, frame))
  outer(column(object$roles$celltype), object$celltypes, function(a, b) !is.na(a) & a == b) + 0
}

# What rows have of each copy of a donor's effects: its group or condition, or 1 and the root of x.
loads <- function(object, frame) {
  own <- object$crossing
  if (!own$column %in% names(frame))
    fail("DataError", "newdata has no column '", own$column, "'; re.form = NA predicts without random ",
         "effects")
  x <- frame[[own$column]]
  if (own$kind == "trend") {
    x <- (as.double(x) - own$span[1L]) / diff(own$span)
    return(ifelse(is.na(x), 0, 1) * cbind(1, sqrt(pmax(ifelse(is.na(x), 0, x), 0))))
  }
  outer(as.character(x), own$levels, function(a, b) !is.na(a) & a == b) + 0
}

# What rows have of every effect of a donor: cell types, or cell types in groups or conditions.
effect_rows <- function(object, frame, column) {
  H <- observation(object, frame, column)
  if (is.null(object$crossing)) return(H)
  z <- loads(object, frame)
  parts <- lapply(seq_len(ncol(z)), function(g) z[, g] * H)
  names <- lapply(object$crossing$levels, function(level)
    if (nzchar(level)) paste(object$celltypes, level, sep = "|") else object$celltypes)
  out <- do.call(cbind, parts)
  colnames(out) <- unlist(names)
  out[, object$effect_names, drop = FALSE]
}

#' @rdname ctmm-methods
#' @export
simulate.ctmm <- function(object, nsim = 1, seed = NULL, ...) {
  no_more(...)
  # as stats:::simulate.lm keeps and gives back the state of the random numbers
  if (!exists(".Random.seed", envir = globalenv(), inherits = FALSE)) stats::runif(1)
  if (is.null(seed)) {
    state <- get(".Random.seed", envir = globalenv())
  } else {
    before <- get(".Random.seed", envir = globalenv())
    set.seed(seed)
    state <- structure(seed, kind = as.list(RNGkind()))
    on.exit(assign(".Random.seed", before, envir = globalenv()))
  }
  nsim <- whole(nsim, "nsim", 1L)
  mean <- marginal(object)
  draw <- drawing(object)
  drawn <- vapply(seq_len(nsim), function(k) mean + draw(), numeric(length(mean)))
  out <- as.data.frame(matrix(drawn, length(mean)), optional = TRUE)
  names(out) <- paste0("sim_", seq_len(nsim))
  rownames(out) <- names(mean)
  attr(out, "seed") <- state
  out
}

# A function that draws from N(0, Sigma): random effects with a variance by level, the rest by
# blocks of rows: donors, or all rows where a random effect has a negative variance.
drawing <- function(object) {
  if (length(object$kinship))
    fail("CTMMError", "simulate() draws unrelated donors, and this fit has a kinship: draw in Python, ",
         "ctmm_formula.simulate")
  H <- row_types(object)
  donor <- match(as.character(used_rows(object)[[object$roles$donor]]), object$donors)
  g <- object$vcomp[object$random_names]
  Z <- lapply(named(names(g), names(g)), function(name) level_weights(object, name))
  negative <- names(g)[g < 0]
  blocks <- if (length(negative)) list(seq_len(object$n)) else split(seq_len(object$n), donor)
  roots <- lapply(blocks, function(rows) {
    S <- H[rows, , drop = FALSE] %*% object$A %*% t(H[rows, , drop = FALSE])
    S <- S * outer(donor[rows], donor[rows], `==`) + diag(object$nu[rows], length(rows))
    for (name in negative) {
      level <- Z[[name]]$level[rows]
      S <- S + g[[name]] * outer(level, level, `==`) * tcrossprod(Z[[name]]$weight[rows])
    }
    tryCatch(chol(S), error = function(e)
      fail("ConvergenceError", "the fitted covariance is not positive definite, there is nothing ",
           "to draw from: fit by method = \"reml\""))
  })
  function() {
    out <- numeric(object$n)
    for (name in setdiff(names(g), negative)) {
      u <- stats::rnorm(max(Z[[name]]$level), sd = sqrt(g[[name]]))
      out <- out + Z[[name]]$weight * u[Z[[name]]$level]
    }
    for (k in seq_along(blocks)) {
      rows <- blocks[[k]]
      out[rows] <- out[rows] + drop(crossprod(roots[[k]], stats::rnorm(length(rows))))
    }
    out
  }
}

row_types <- function(object) {
  frame <- used_rows(object)
  effect_rows(object, frame, function(role) as.character(frame[[role]]))
}

# Names of crossed levels as Python writes them: no two of them are alike.
crossed <- function(parts) {
  if (length(parts) == 1L) return(parts[[1L]])
  quoted <- lapply(parts, function(x) {
    odd <- grepl("[:\"]", x)
    ifelse(odd, paste0("\"", gsub("\"", "\"\"", x, fixed = TRUE), "\""), as.character(x))
  })
  do.call(paste, c(quoted, sep = ":"))
}

level_weights <- function(object, name) {
  frame <- used_rows(object)
  part <- random_parts(object)[[name]]
  labels <- crossed(lapply(part$term$groups, function(g) as.character(frame[[g]])))
  weight <- if (is.na(part$type)) rep(1, length(labels)) else row_types(object)[, part$type]
  list(level = match(labels, unique(labels)), weight = weight)
}

# A fit of the same model to another response (generic of lme4).
#' @rawNamespace S3method(lme4::refit, ctmm, refit_ctmm)
refit_ctmm <- function(object, newresp, ...) {
  no_more(...)
  if (is.data.frame(newresp) && length(newresp) == 1L)
    newresp <- named(newresp[[1L]], if (is.character(attr(newresp, "row.names"))) rownames(newresp))
  out <- object$na.action
  if (length(out) && length(newresp) == object$n + length(out)) newresp <- newresp[-out]
  if (!is.numeric(newresp) || length(newresp) != object$n || anyNA(newresp))
    fail("DataError", "newresp must hold ", object$n, " numbers, one per row of the fit")
  if (!is.null(names(newresp)) && !identical(names(newresp), names(object$y)))
    fail("DataError", "the names of newresp are not those of the rows of the fit in their order: ",
         "newresp[names(fitted(fit))]")
  object$y <- named(as.double(newresp), names(object$y))
  object$model[[1L]] <- object$y
  request <- object$request
  request$model$y <- f8(object$y - (object$offset %||% 0))
  request$model$notes <- list()
  described(object, request)
}

#' @rawNamespace S3method(lme4::isREML, ctmm, isREML_ctmm)
isREML_ctmm <- function(x, ...) {
  no_more(...)
  x$method == "reml"
}
