#' Fit the Cell Type-Specific Mixed Model
#'
#' Fits the model to one gene, from one row per donor and cell type, or from overall pseudobulk, one
#' row per donor and the proportions of its cell types.
#'
#' @section Conditions:
#' Errors are of class \code{ctmm_error} and, more narrowly, \code{ctmm_FormulaError},
#' \code{ctmm_DataError}, \code{ctmm_ConvergenceError} or \code{ctmm_no_python}; warnings of class
#' \code{ctmm_warning} (\code{ctmm_BoundaryWarning} where the estimate lies on the edge of its domain).
#'
#' @param formula a formula such as \code{expr ~ celltype + sex + PC1}, read by the rules of R
#' (\code{\link{model.frame}}, \code{\link{model.matrix}}): \code{poly}, \code{splines::ns}, \code{I()},
#' interactions and contrasts work as in \code{\link{lm}}. Random effects may stand in it as
#' \code{(1 | batch)}, nested as \code{(1 | site/batch)}, or with one variance for each cell type as
#' \code{(celltype | batch)}. A dot stands for all columns but those named below.
#' @param data a data frame (or tibble, \code{DataFrame}, list of columns), or what
#' \code{\link{ctmm_pseudobulk}} returned, of which the response names a gene; likewise a
#' \code{SummarizedExperiment} of donors and cell types with assays \code{expr} and \code{nu}
#' (and \code{nu2}). Variables of the formula that are not there are looked for where it was written.
#' @param random more random effects: \code{~ batch}, \code{~ batch + site}, \code{~ site/batch},
#' \code{"batch"}, or a list that maps each column to what it acts on,
#' \code{list(batch = "celltype")}.
#' @param structure covariance between cell types: \code{"hom"} (a variance that all share),
#' \code{"iid"} (and one for each cell type, all equal), \code{"free"} (and one for each cell type),
#' \code{"full"} (any covariance), \code{\link{banded}(width)}, \code{\link{tree}(clades)}, or a list of
#' symmetric matrices.
#' @param method \code{"robust"} (noise-robust moments with cluster-robust errors, which hold on counts of
#' cells, whose measured noise rises with expression, and for few donors), \code{"reml"}, \code{"ml"} or
#' \code{"he"} (Haseman-Elston moments). By default \code{"robust"} where numbers of cells are known and with
#' \code{kinship}, else \code{"reml"}; a note says which, and why.
#' @param donor,celltype,noise,nu2,n_cells names of columns: donors, cell types, noise variances (squared
#' standard errors of the means; 0, all cells of the pair being alike, needs the number of cells),
#' unbiased estimates of their squares (for the score test where cells are few) and numbers of cells. By default what \code{\link{ctmm_data}}
#' remembers, else \code{"donor"}, \code{"celltype"} (or the one factor of the formula that with the
#' donor identifies the rows), \code{"nu"}, and \code{"nu2"} and \code{"n_cells"} where there are such
#' columns.
#' @param proportions for overall pseudobulk: names of the columns of cell type proportions, or a table
#' of donors (row names) by cell types. The formula then has covariates only, every cell type gets a
#' mean. One name alone is, in cell type-specific data, each row's share of the donor's cells.
#' @param by a column of groups of donors, \code{by = ~ status} or \code{"status"}: every group has variance
#' components of its own, \code{V[T|case]}, and all share the fixed part. Numbers of more than two values
#' are a trend: the covariance is that at the least value plus x times what it gains up to the largest,
#' \code{V[T]:age}.
#' @param within a column of conditions that the same donors were seen under, \code{within = ~ stim}, one
#' row per donor, cell type and condition: components of what a donor has under all of them
#' (\code{V[T]}) and of its responses (\code{V[T]:stim}).
#' @param kinship how donors are related, which splits the variance between them into what is genetic and
#' the environment: a symmetric matrix with the donors as row and column names (it may have more donors,
#' in any order), a matrix of genotypes with donors as row names (counts of an allele, a column for every
#' variant), the name of a file (\code{"cohort.grm.bin"} of GCTA, \code{"cohort.rel"} of PLINK, a csv), or a
#' list of several, \code{list(cis = G, trans = K)}. See \code{\link{heritability}}.
#' @param genetic_structure covariance of genetic effects between cell types, by default
#' \code{structure}, which is then that of the environment.
#' @param bounds domain of the variance components: \code{"noise"} (they may be negative as long as
#' every covariance keeps the share \code{noise_floor} of its noise), \code{"psd"} or
#' \code{"nonnegative"} (as \pkg{lme4}). By default \code{"noise"}, for overall pseudobulk
#' \code{"psd"}.
#' @param noise_floor share of the noise below which no variance may fall.
#' @param keep \code{"tables"} leaves a fit of some tens of kilobytes, however many rows there were, for
#' thousands of fits: estimates and their covariance, shares of variance, and what \code{summary},
#' \code{tidy}, \code{glance}, \code{VarCorr} and, without more arguments, \code{confint},
#' \code{\link{celltype_means}}, \code{\link{test_variance}}, \code{\link{test_mean}} and
#' \code{\link{heritability}} say. What needs rows is an error of class \code{ctmm_DataError}.
#' \code{"all"} forgets nothing.
#' @param subset,na.action,contrasts,offset as in \code{\link{lm}}. A row is left out where anything
#' that takes part is missing, but for numbers of cells and squares of noise variances.
#' @param singular.ok what to do when the fixed part is not of full rank: stop and name the columns, or
#' drop them with a message.
#' @return
#' An object of class \code{"ctmm"}, a plain list, with the methods in \code{\link{ctmm-methods}}.
#' @seealso \code{\link{test_variance}}, \code{\link{test_groups}}, \code{\link{jackknife}},
#' \code{\link{ctmm_genes}}
#' @examplesIf !nzchar(ctmm_check()$problem)
#' fit <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, method = "reml", data = pseudobulk)
#' fit
#' summary(fit)
#' VarCorr(fit)
#' anova(update(fit, structure = "hom"), fit)
#'
#' # overall pseudobulk
#' ctmm(expr ~ sex + PC1, data = overall_pseudobulk, structure = "hom",
#'      proportions = c("prop_day0", "prop_day1", "prop_day2", "prop_day3"))
#' @export
ctmm <- function(formula, data, random = NULL, structure = "free", method = NULL,
                 donor = NULL, celltype = NULL, noise = NULL, nu2 = NULL, n_cells = NULL,
                 proportions = NULL, by = NULL, within = NULL, kinship = NULL,
                 genetic_structure = NULL, bounds = NULL, noise_floor = 0.1, keep = "all",
                 subset, na.action, contrasts = NULL, offset, singular.ok = FALSE) {
  call <- asked <- match.call()
  if (!single(keep, "keep", is.character) %in% c("all", "tables"))
    fail("CTMMError", "keep = must be \"all\" or \"tables\", got ", as_text(keep))
  # update() asks again with these values, wherever that is
  if (!identical(call[[1L]], quote(ctmm))) call[[1L]] <- quote(ctmmFormula::ctmm)
  for (name in setdiff(names(call), c("", "data", "subset", "offset", "na.action")))
    call[name] <- list(get(name))
  gene <- NULL
  if (!missing(data) && is_pseudobulk(data)) {
    data <- as_pseudobulk(data)
    gene <- gene_of(stats::as.formula(formula), data)
    if (is.null(proportions)) proportions <- data$proportions
    data <- gene_table(data, gene)
  }
  data <- as_table(data)
  spec <- split_formula(formula, random)
  spec$given <- stats::as.formula(formula, env = parent.frame())
  data <- with_outside(data, list(spec$fixed, call$subset, call$offset), environment(spec$fixed))
  roles <- find_roles(list(donor = donor, celltype = celltype, noise = noise, nu2 = nu2,
                           n_cells = n_cells, proportions = proportions, by = by,
                           within = within), data, spec)
  check_gene(gene, spec, roles)
  made <- make_frame(spec, data, roles, call, contrasts)
  fit <- design(spec, data, roles, made, contrasts, singular.ok)
  fit$call <- call
  fit$sent <- with_kinship(fit$sent, kinship, genetic_structure, structure, fit$celltypes)
  request <- list(model = fit$sent, structure = structure_out(structure, fit$celltypes),
                  method = method_out(method), bounds = bounds_out(bounds),
                  noise_floor = share_out(noise_floor))
  fit <- finish(described(fit, request))
  if (keep == "all") fit else without_rows(fit, asked)
}

method_out <- function(method) if (!is.null(method)) tolower(single(method, "method", is.character))

bounds_out <- function(bounds) if (!is.null(bounds)) single(bounds, "bounds", is.character)

share_out <- function(share) as.double(single(share, "noise_floor", is.numeric))

# A setting that is one value.
single <- function(x, name, is) {
  if (length(x) == 1L && is(x) && !is.na(x)) return(x)
  fail("CTMMError", name, " = must be one ", if (identical(is, is.numeric)) "number" else "name",
       ", got ", as_text(x))
}

# A structure by name; matrices as a named list.
structure_out <- function(structure, celltypes) {
  if (is.character(structure) && length(structure) == 1L) return(structure)
  if (inherits(structure, "ctmm_tree")) return(list("tree", unclass(structure)))
  if (is.matrix(structure)) structure <- list(structure)
  if (!is.list(structure) || !length(structure))
    fail("CTMMError", "structure must be a name (hom, iid, free, full, banded(width)), tree(clades) or a ",
         "list of matrices, got ", class(structure)[1L])
  size <- length(celltypes)
  for (matrix in structure)
    if (!is.matrix(matrix) || !is.numeric(matrix) || any(dim(matrix) != size))
      fail("CTMMError", "with cell types ", listing(celltypes), " every matrix of structure must be ",
           size, " x ", size)
  labels <- names(structure) %||% rep("", length(structure))
  ones <- vapply(structure, function(m) all(m == 1), NA)
  labels <- ifelse(labels != "", labels, ifelse(ones, "hom", paste0("V", seq_along(structure))))
  if (anyDuplicated(labels)) fail("CTMMError", "structure has two matrices '",
                                  labels[duplicated(labels)][1L], "'")
  # matrices that are labelled by cell types are put in the order of the fit
  structure <- lapply(structure, function(m) {
    if (is.null(rownames(m)) && is.null(colnames(m))) return(f8(m))
    if (!setequal(rownames(m), celltypes) || !setequal(colnames(m), celltypes))
      fail("CTMMError", "rows and columns of a matrix of structure are labelled by the cell types ",
           listing(celltypes), ", or not at all")
    f8(m[celltypes, celltypes])
  })
  named(structure, labels)
}

#' A Banded Structure
#'
#' Covariance of cell types that are near in order, such as time points, is free; that of others is what
#' all share.
#'
#' @param width cell types at most so many places apart have a covariance of their own.
#' @return The structure's name, for \code{\link{ctmm}}.
#' @examples
#' banded(1)
#' @export
banded <- function(width) {
  if (!is.numeric(width) || length(width) != 1L || is.na(width) || width < 0 || width != round(width))
    fail("CTMMError", "banded(width): width must be a whole number >= 0")
  sprintf("banded(%d)", as.integer(width))
}

#' Cell Types on a Tree
#'
#' A variance that all cell types share, one for every clade and one for every cell type: types of a clade
#' have what they share with each other beyond what all share.
#'
#' @param ... clades by name: cell types of a clade, \code{lymphoid = c("T", "B")}, or a list of the
#' clades inside it, with types beside them where these have no name; or one such list of all. Types in
#' no clade stand by themselves.
#' @param x a tree.
#' @return The structure, for \code{\link{ctmm}}; components are \code{hom}, \code{V[lymphoid]} and
#' \code{V[T]}.
#' @examples
#' tree(early = c("day0", "day1"), late = c("day2", "day3"))
#' tree(early = list("day0", next_two = c("day1", "day2")))
#' @export
tree <- function(...) {
  clades <- list(...)
  if (length(clades) == 1L && is.null(names(clades))) clades <- clades[[1L]]
  structure(inside_clade(clades, "clades"), class = "ctmm_tree")
}

inside_clade <- function(x, name) {
  if (is.factor(x)) x <- as.character(x)
  if (is.character(x) && name != "clades") return(as.list(x))
  if (!is.list(x) || !length(x))
    fail("CTMMError", "tree: ", name, if (name == "clades") " have names, tree(lymphoid = c(\"T\", \"B\"))"
         else " must be names of cell types, or a list of clades")
  keys <- if (is.null(names(x))) character(length(x)) else names(x)
  bare <- !nzchar(keys) & name != "clades" & vapply(x, is.character, NA)
  if (!all(nzchar(keys) | bare) || anyDuplicated(keys[!bare]))
    fail("CTMMError", "tree: every clade of ", name, " needs a name of its own")
  parts <- Map(inside_clade, x, keys)
  if (!any(bare)) return(parts)
  parts[!bare] <- lapply(which(!bare), function(k) list(parts[k]))
  unlist(unname(parts), recursive = FALSE)
}

#' @rdname tree
#' @export
print.ctmm_tree <- function(x, ...) {
  no_more(...)
  show <- function(x, indent) for (name in names(x)) {
    own <- x[[name]]
    types <- if (is.null(names(own))) unlist(Filter(is.character, own))
    cat(indent, name, if (length(types)) paste0(": ", paste(types, collapse = ", ")), "\n", sep = "")
    inner <- if (is.null(names(own))) unlist(Filter(is.list, own), recursive = FALSE) else own
    show(inner, paste0(indent, "  "))
  }
  show(unclass(x), "")
  invisible(x)
}

# What lm keeps of the design, and the model as it crosses to Python.
design <- function(spec, data, roles, made, contrasts, singular.ok) {
  frame <- made$frame
  terms <- attr(frame, "terms")
  rows <- frame[["(row)"]]
  y <- stats::model.response(frame, "any")
  name <- as_text(spec$fixed[[2L]])
  if (!is.numeric(y) || is.matrix(y) && ncol(y) > 1L)
    fail("DataError", "the response '", name, "' must be one column of numbers, got ",
         class(y)[1L])
  y <- as.double(y)
  check_factors(frame, terms)
  fit <- list(
    given = spec$given, formula = join_formula(stats::formula(terms), spec$random), terms = terms, roles = roles,
    random = spec$random, outside = attr(data, "outside"), data_rows = nrow(data),
    kind = if (roles$overall) "op" else "ctp")
  P <- frame[["(proportions)"]]
  if (fit$kind == "op") {
    fit$proportion_columns <- colnames(P)
    fit$celltypes <- celltype_names(colnames(P))
  }
  X <- matrix_rows(terms, frame, contrasts, P, fit$celltypes)
  fit$contrasts <- attr(X, "contrasts")
  fit$xlevels <- stats::.getXlevels(terms, frame)
  fit$assign <- attr(X, "assign")
  if (singular.ok && length(out <- aliased(X))) {
    message("the fixed part is not of full rank, dropping ", listing(out))
    keep <- !colnames(X) %in% out
    fit$dropped <- out
    fit$X_full <- X
    fit$assign <- fit$assign[keep]
    X <- structure(X[, keep, drop = FALSE], assign = fit$assign, contrasts = fit$contrasts)
  }
  fit$na.action <- attr(frame, "na.action")
  fit$X <- X
  fit$offset <- stats::model.offset(frame)
  fit$y <- named(y, rownames(frame))
  labels <- labels_in(frame, roles, spec$random, rows)
  if (is.null(fit$celltypes)) fit$celltypes <- levels(labels[[roles$celltype]])
  fit$donors <- levels(labels[[roles$donor]])
  fit$n_donors <- length(fit$donors)
  fit$labels <- labels
  fit$frame <- frame
  fit$rows <- rows
  fit$nu <- as_numbers(frame[["(noise)"]], roles$noise, "noise")
  fit$type_rows <- type_rows(fit, data, rows, X)
  fit <- for_effects(fit, data, rows)
  means <- do.call(rbind, lapply(fit$type_rows, colMeans))
  fit$mean_rows <- matrix(means, length(fit$celltypes), dimnames = list(fit$celltypes, colnames(X)))
  fit$sent <- model_out(fit, data, made$dropped)
  fit
}

labels_in <- function(frame, roles, random, rows) {
  out <- list()
  out[[roles$donor]] <- as_labels(frame[["(donor)"]], roles$donor, "donor", rows)
  if (!is.null(roles$celltype))
    out[[roles$celltype]] <- as_labels(frame[["(celltype)"]], roles$celltype, "cell type", rows)
  for (role in CROSSED) {
    x <- frame[[paste0("(", role, ")")]]
    if (!is.null(x) && is.null(out[[roles[[role]]]]) && !is_trend(x, role))
      out[[roles[[role]]]] <- as_labels(x, roles[[role]], CROSSED_ROLES[[role]], rows)
  }
  for (group in unlist(lapply(random, `[[`, "groups")))
    if (is.null(out[[group]]))
      out[[group]] <- as_labels(frame[[paste0("(random.", group, ")")]], group, "random effect", rows)
  out
}

# The request's model; see the Python module ctmm_formula.wire.
model_out <- function(fit, data, dropped) {
  roles <- fit$roles
  optional <- function(name, role) {
    if (is.null(name)) return(NULL)
    list(name = name, values = f8(as_numbers(data[[name]], name, role)[fit$rows]))
  }
  fixed <- plain_factors(fit)
  notes <- if (length(fit$dropped)) paste("dropped from the fixed part, which is not of full rank:",
                                          listing(fit$dropped))
  if (length(dropped)) notes <- c(notes, sprintf(
    "%d %s dropped: missing %s", sum(dropped), if (sum(dropped) == 1L) "row" else "rows",
    paste0(names(dropped), " (", dropped, ")", collapse = ", ")))
  factors <- c(fit$labels, fixed[setdiff(names(fixed), names(fit$labels))])
  P <- fit$frame[["(proportions)"]]
  trend <- if (!is.null(roles$by) && is.null(fit$labels[[roles$by]]))
    list(name = roles$by, values = f8(as.double(fit$frame[["(by)"]])))
  list(
    formula = as_text(fit$formula), response = as_text(fit$formula[[2L]]),
    fixed = as_text(stats::delete.response(fit$terms)[[2L]]),
    rows = i4(fit$rows), y = f8(fit$y - (fit$offset %||% 0)), X = f8(unname(fit$X)),
    names = as.list(colnames(fit$X)), donor = roles$donor, celltype = roles$celltype,
    noise = list(name = roles$noise, values = f8(fit$nu)),
    nu2 = optional(roles$nu2, "square of the noise variance"),
    n_cells = optional(roles$n_cells, "number of cells"),
    by = roles$by, within = roles$within, trend = trend,
    share = if (!roles$overall) optional(roles$proportions, "proportion"),
    proportions = if (roles$overall) list(names = as.list(colnames(P)), values = f8(unname(P))),
    factors = unname(Map(coded, names(factors), factors)),
    fixed_factors = as.list(names(fixed)),
    random = lapply(fit$random, function(term)
      list(left = term$left, groups = as.list(term$groups))),
    mean_rows = f8(unname(fit$mean_rows)),
    dropped = if (length(dropped)) as.list(dropped) else reticulate_dict(),
    scale = attr(data, "ctmm_scale"), notes = as.list(notes))
}

# A named list without entries crosses as a dict, an unnamed one as a list.
reticulate_dict <- function() named(list(), character())

# Factors of the formula that are columns by themselves.
plain_factors <- function(fit) {
  variables <- setdiff(rownames(attr(fit$terms, "factors")), names(fit$frame)[1L])
  out <- list()
  for (name in intersect(variables, names(fit$frame))) {
    x <- fit$frame[[name]]
    bare <- gsub("^`|`$", "", name)
    if ((is.factor(x) || is.character(x)) && !anyNA(x) && !anyNA(levels(x)))
      out[[bare]] <- droplevels(factor(x))
  }
  out
}

# The reply of Python, with R's names.
described <- function(fit, request) {
  got <- ask("fit", request)
  fit$request <- request
  record <- got$estimate
  at <- function(name) array_in(record[[name]])
  terms <- colnames(fit$X)
  vc <- text(got$names)[-seq_len(got$n_fixed)]
  fit$method <- record$method
  fit$structure <- got$structure
  fit$bounds <- got$bounds
  fit$noise_floor <- request$noise_floor
  fit$cov_type <- got$cov_type
  fit$beta <- named(at("beta"), terms)
  fit$vcomp <- named(at("theta"), vc)
  fit$vcov <- matrix(at("cov_beta"), length(terms), dimnames = list(terms, terms))
  fit$cov_all <- square(got$cov, c(terms, vc))
  fit$table <- table_in(got$table)
  rownames(fit$table) <- c(terms, vc)
  fit$loglik <- if (is.nan(record$llf)) NA_real_ else record$llf
  fit$df.residual <- got$df_resid
  fit$df <- array_in(got$df)
  fit$slopes <- slopes_in(got$slopes)
  if (!is.null(got$error_df)) fit$error_df <- array_in(got$error_df)
  fit$convergence <- record$convergence
  fit$n_possible <- got$n_possible
  fit$n_labels <- length(got$labels)
  fit$random_names <- text(got$random_names)
  fit["crossing"] <- list(crossing_in(got$crossing))
  fit$effect_names <- text(got$effect_names)
  fit$kinship <- lapply(got$kinship, square, names = fit$effect_names)
  for (name in c("A", "V", "corr")) fit[[name]] <- square(got[[name]], fit$effect_names)
  fit$shares <- table_in(got$shares)
  fit$icc <- if (!is.null(got$icc)) table_in(got$icc)
  fit$notes <- in_r(text(got$notes))
  fit$versions <- got$versions
  fit$estimate <- record
  fit$no_effects <- got$no_effects
  effects_in(fit, got)
}

# Groups of donors or conditions: kind, column, levels and the ends of a trend.
crossing_in <- function(sent) {
  if (is.null(sent)) return(NULL)
  list(kind = sent$kind, column = sent$column, levels = text(sent$levels),
       span = as.double(unlist(sent$span)))
}

# Predicted random effects: shared by donor, specific by donor and cell type, each group by level.
# With groups or conditions both are matrices of donors, NA for groups a donor is not in.
effects_in <- function(fit, got) {
  if (is.null(got$effects)) return(fit)
  columns <- c("estimate", "std.error")
  pair <- function(x, rows) matrix(array_in(x), ncol = 2L, dimnames = list(rows, columns))
  fit$effects <- lapply(named(names(got$effects), names(got$effects)), function(name) {
    sent <- got$effects[[name]]
    if (name %in% c("shared", "specific") && !is.null(fit$crossing)) {
      columns <- if (name == "shared") fit$crossing$levels else fit$effect_names
      as <- function(k) matrix(array_in(sent[[k]]), length(fit$donors),
                               dimnames = list(fit$donors, columns))
      return(list(estimate = as("estimate"), std.error = as("std_error")))
    }
    if (name == "shared") return(pair(sent, fit$donors))
    if (name %in% c("specific", names(fit$kinship))) {
      values <- matrix(array_in(sent), ncol = 2L)  # donor by donor
      size <- list(fit$donors, fit$celltypes)
      as <- function(k) matrix(values[, k], length(fit$donors), byrow = TRUE, dimnames = size)
      return(list(estimate = as(1L), std.error = as(2L)))
    }
    pair(sent, text(got$levels[[name]]))
  })
  fit$fitted_values <- named(array_in(got$fitted) + (fit$offset %||% 0), names(fit$y))
  fit
}

# The object of the user: numbers and R's own records, in a class.
finish <- function(fit) {
  fit$n <- length(fit$y)
  fit$sent <- fit$labels <- fit$type_rows <- NULL
  fit$model <- fit$frame
  fit$frame <- NULL
  structure(fit, class = "ctmm")
}

# The fit as Python wants it back.
stored <- function(object) {
  if (inherits(object, "ctmm_tables")) return(list(said = object$said))
  r <- object$request
  list(model = r$model, structure = r$structure, bounds = object$bounds,
       noise_floor = object$noise_floor, estimate = object$estimate)
}
