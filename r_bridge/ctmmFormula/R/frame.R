# From a table and a formula to numbers, by the rules of R: model.frame, terms, model.matrix.

ROLES <- c("donor", "celltype", "noise", "nu2", "n_cells")
CROSSED <- c("by", "within")
CROSSED_ROLES <- c(by = "groups of donors", within = "conditions of donors")
STANDARD <- c(donor = "donor", celltype = "celltype", noise = "nu", nu2 = "nu2", n_cells = "n_cells")

#' Remember Which Columns Hold What
#'
#' Notes the columns of donors, cell types, noise variances and numbers of cells with the table, so that
#' \code{\link{ctmm}} need not be told. Some verbs that make a new table lose the note.
#'
#' @param data a data frame.
#' @param donor,celltype,noise,nu2,n_cells,proportions as in \code{\link{ctmm}}.
#' @return The data frame with an attribute.
#' @examples
#' d <- setNames(pseudobulk, sub("^donor$", "individual", names(pseudobulk)))
#' d <- ctmm_data(d, donor = "individual")
#' @examplesIf !nzchar(ctmm_check()$problem)
#' ctmm(expr ~ celltype, data = d, structure = "hom")
#' @export
ctmm_data <- function(data, donor = "donor", celltype = NULL, noise = "nu", nu2 = NULL,
                      n_cells = NULL, proportions = NULL) {
  data <- as_table(data)
  roles <- list(donor = donor, celltype = celltype, noise = noise, nu2 = nu2, n_cells = n_cells,
                proportions = proportions)
  given <- unlist(roles)
  absent <- setdiff(given, names(data))
  if (length(absent)) no_column(absent[1L], names(roles)[match(absent[1L], given)], data)
  attr(data, "ctmm_roles") <- Filter(Negate(is.null), roles)
  data
}

# Any table as a plain data frame: grouping of tibbles and keys of data.tables are of no use here.
as_table <- function(data) {
  if (missing(data) || is.null(data))
    fail("DataError", "data is missing: ctmm(formula, data = table)")
  if (inherits(data, "DataFrame")) data <- as.data.frame(data, optional = TRUE)
  if (isS4(data) && !is.data.frame(data)) {
    fail("DataError", "data is a ", class(data)[1L], "; ctmm needs a data frame with one row per ",
         "donor and cell type: see ctmm_pseudobulk()")
  }
  if (!is.data.frame(data) && !is.list(data))
    fail("DataError", "data must be a data frame, got ", class(data)[1L])
  roles <- attr(data, "ctmm_roles")
  sizes <- if (!is.data.frame(data)) vapply(data, NROW, 0L)
  if (length(unique(sizes)) > 1L)
    fail("DataError", "columns of data have different lengths: ",
         paste0("'", names(data), "' ", sizes, collapse = ", "))
  data <- tryCatch(as.data.frame(data, stringsAsFactors = FALSE, optional = TRUE), error = function(e)
    fail("DataError", "data is no table: ", conditionMessage(e)))
  twice <- names(data)[duplicated(names(data))]
  if (length(twice)) fail("DataError", "data has several columns '", twice[1L], "'")
  data[] <- lapply(data, plain_column)
  attr(data, "ctmm_roles") <- roles
  data
}

# Classes that keep their values where the functions of stats do not look for them.
plain_column <- function(x) {
  if (inherits(x, "POSIXlt")) return(as.POSIXct(x))
  if (!inherits(x, "integer64")) return(x)
  if (!isNamespaceLoaded("bit64"))
    fail("DataError", "data has a column of class integer64: library(bit64) first, or as.numeric() it ",
         "where that package is")
  as.double(x)
}

# Variables of the caller with one value a row become columns, so that what cuts rows cuts them too.
with_outside <- function(data, expressions, env) {
  names <- setdiff(unlist(lapply(expressions, variables)), c(names(data), "."))
  values <- lapply(named(names, names), get0, envir = env)
  own <- Filter(function(x) (is.atomic(x) || is.data.frame(x)) && NROW(x) == nrow(data), values)
  for (name in names(own)) data[[name]] <- own[[name]]
  attr(data, "outside") <- names(own)
  data
}

no_column <- function(name, role, data) {
  what <- c(donor = "donors", celltype = "cell types", noise = "noise variances (squared standard
 errors of the means)", nu2 = "squares of the noise variances", n_cells = "numbers of cells", proportions = "proportions")[[role]]
  near <- agrep(name, names(data), ignore.case = TRUE, value = TRUE)
  hint <- if (length(near)) paste0("; did you mean ", listing(near), "?") else ""
  fail("DataError", "data has no column '", name, "' of ", gsub("\n", "", what), ": name it by ",
       role, " = , or once by ctmm_data()", hint, " (columns: ", listing(names(data), 12L), ")")
}

# Column names by role: the argument, else what ctmm_data() wrote down, else the usual name.
find_roles <- function(given, data, spec) {
  known <- attr(data, "ctmm_roles")
  for (role in ROLES) {
    name <- given[[role]] %||% known[[role]]
    if (is.null(name) && role %in% c("donor", "noise")) name <- STANDARD[[role]]
    if (!is.null(name) && !(is.character(name) && length(name) == 1L && !is.na(name)))
      fail("DataError", role, " = must be the name of one column, got ", as_text(name))
    if (!is.null(name) && !name %in% names(data)) no_column(name, role, data)
    given[role] <- list(name)
  }
  given["proportions"] <- list(given$proportions %||% known$proportions)
  for (role in CROSSED) given[role] <- list(crossed_column(given[[role]], role, data))
  if (!is.null(given$by) && !is.null(given$within))
    fail("DataError", "by = names groups of donors, within = conditions of the same donors: give one ",
         "of them")
  for (role in c("nu2", "n_cells"))
    if (is.null(given[[role]]) && STANDARD[[role]] %in% names(data)) given[[role]] <- STANDARD[[role]]
  given$overall <- !is.null(given$proportions) &&
    !(is.character(given$proportions) && length(given$proportions) == 1L)
  if (given$overall) {
    if (!is.null(given$celltype))
      fail("DataError", "celltype = is for one row per donor and cell type, proportions = for one ",
           "row per donor: give one of them")
  } else if (is.null(given$celltype)) {
    given$celltype <- find_celltype(data, spec, c(given$donor, given$within))
  }
  if (is.character(given$proportions)) {
    absent <- setdiff(given$proportions, names(data))
    if (length(absent)) no_column(absent[1L], "proportions", data)
  }
  given
}

# ~ status as "status"; what is no such formula as it is.
column_name <- function(given) {
  bare <- inherits(given, "formula") && length(given) == 2L && is.name(given[[2L]])
  if (bare) as.character(given[[2L]]) else given
}

# by = ~ status or "status": the name of a column.
crossed_column <- function(given, role, data) {
  if (is.null(given)) return(NULL)
  given <- column_name(given)
  if (!is.character(given) || length(given) != 1L || is.na(given))
    fail("DataError", role, " = must name one column, ", role, " = ~ status or \"status\", got ",
         as_text(given))
  if (!given %in% names(data))
    fail("DataError", "data has no column '", given, "' (", CROSSED_ROLES[[role]], ") (columns: ",
         listing(names(data), 12L), ")")
  given
}

# Whether groups are numbers of more than two values.
is_trend <- function(x, role) role == "by" && is.numeric(x) && length(unique(x)) > 2L

# "celltype", else the one factor of the formula that with the donor identifies the rows.
find_celltype <- function(data, spec, donor) {
  if ("celltype" %in% names(data)) return("celltype")
  variables <- intersect(all.vars(spec$fixed[[3L]]), names(data))
  variables <- Filter(function(v) is.factor(data[[v]]) || is.character(data[[v]]),
                      setdiff(variables, donor))
  fits <- Filter(function(v) {
    pairs <- stats::na.omit(data[c(donor, v)])
    anyDuplicated(pairs[donor]) && !anyDuplicated(pairs)
  }, variables)
  if (length(fits) == 1L) return(fits)
  if (!anyDuplicated(data[donor]))
    fail("DataError", "every donor has one row (column '", donor[1L], "') and there is no column ",
         "'celltype': for overall pseudobulk name the cell type proportions, proportions = ",
         "c(\"prop_T\", \"prop_B\", ...); else name the cell types by celltype =")
  fail("DataError", "which column holds the cell types? There is no column 'celltype' and ",
       if (length(fits)) paste(listing(fits), "would all do") else "no factor of the formula fits",
       ": name it by celltype =")
}

# The model frame: variables of the formula and, in columns "(donor)" ... , what else takes part,
# so that subset and na.action cut all of it together.
make_frame <- function(spec, data, roles, call, contrasts) {
  env <- environment(spec$fixed)
  groups <- unique(unlist(lapply(spec$random, `[[`, "groups")))
  absent <- setdiff(groups, names(data))
  if (length(absent))
    fail("DataError", "data has no column '", absent[1L], "' of the random effect (columns: ",
         listing(names(data), 12L), ")")
  own <- c(unlist(roles[ROLES]), groups, attr(data, "outside"),
           if (is.character(roles$proportions)) roles$proportions)
  # a dot stands for the covariates, not for donors or noise
  dot <- data[setdiff(names(data), setdiff(own, roles$celltype))]
  terms <- tryCatch(stats::terms(spec$fixed, data = dot), error = function(e)
    fail("FormulaError", conditionMessage(e)))
  if (!roles$overall && !length(attr(terms, "term.labels")) && !attr(terms, "intercept"))
    fail("FormulaError", "'", as_text(spec$fixed), "' has no fixed effect: keep at least the intercept")
  check_variables(terms, data, roles, env)
  fixed <- stats::formula(terms)
  environment(fixed) <- env
  if (roles$overall) {
    if (attr(terms, "intercept") == 0L) fixed <- stats::update(fixed, . ~ . + 1)
    environment(fixed) <- env
  }
  extra <- list(donor = as.name(roles$donor), noise = as.name(roles$noise))
  if (!is.null(roles$celltype)) extra$celltype <- as.name(roles$celltype)
  if (roles$overall) extra$proportions <- proportion_matrix(roles, data)
  for (role in CROSSED) if (!is.null(roles[[role]])) extra[[role]] <- as.name(roles[[role]])
  for (group in groups) extra[[paste0("random.", group)]] <- as.name(group)
  extra$row <- seq_len(nrow(data))
  kept <- intersect(c("subset", "offset"), names(call))
  check_subset(call$subset, data, env)
  ask <- function(na.action) {
    made <- c(list(quote(stats::model.frame), formula = fixed, data = data),
              as.list(call)[kept], list(na.action = na.action, drop.unused.levels = TRUE), extra)
    tryCatch(eval(as.call(made), env), error = function(e) fail("DataError", conditionMessage(e)))
  }
  na.action <- if ("na.action" %in% names(call)) eval(call$na.action, parent.frame(2L))
  na.action <- na.action %||% attr(data, "na.action") %||% getOption("na.action") %||% "na.omit"
  if (is.list(na.action) || is.numeric(na.action)) na.action <- stats::na.omit
  frame <- ask(na.action)
  if (!nrow(frame)) {
    counts <- missing_by(ask("na.pass"), roles)
    fail("DataError", "no row of ", nrow(data), " is complete",
         if (length(counts)) paste0(" (missing ", paste(names(counts), counts, sep = ": ",
                                                      collapse = ", "), ")"),
         ": correct these columns, or the subset")
  }
  dropped <- length(attr(frame, "na.action"))
  reasons <- if (dropped) missing_by(ask("na.pass"), roles) else integer()
  list(frame = frame, dropped = reasons)
}

# model.frame would recycle it.
check_subset <- function(subset, data, env) {
  chosen <- tryCatch(eval(subset, data, env), error = function(e)
    fail("DataError", "subset = ", as_text(subset), ": ", conditionMessage(e)))
  if (is.logical(chosen) && length(chosen) != nrow(data))
    fail("DataError", "subset = has ", length(chosen), " values for ", nrow(data), " rows of data")
}

check_variables <- function(terms, data, roles, env) {
  for (name in setdiff(variables(terms), names(data))) {
    if (exists(name, envir = env)) next
    hint <- if (roles$overall && grepl("type", name, ignore.case = TRUE))
      paste0("; with proportions = the cell type means are in the model already: leave the cell ",
             "type out of the formula") else ""
    near <- agrep(name, names(data), ignore.case = TRUE, value = TRUE)
    if (length(near)) hint <- paste0("; did you mean ", listing(near), "?")
    fail("DataError", "data has no column '", name, "'", hint, " (columns: ",
         listing(names(data), 12L), ")")
  }
}

# How many rows each column costs; a row counts for the first.
missing_by <- function(frame, roles) {
  taken <- is.na(frame[["(row)"]])  # a subset that is NA
  out <- if (any(taken)) c(subset = sum(taken)) else integer()
  for (name in names(frame)) {
    gone <- is.na(frame[[name]])
    if (is.matrix(gone)) gone <- rowSums(gone) > 0
    gone <- gone & !taken
    own <- sub("^\\((random\\.)?(.*)\\)$", "\\2", name)
    if (startsWith(name, "(") && own %in% names(roles) && own != "proportions") own <- roles[[own]]
    if (any(gone)) out[[own]] <- sum(gone)
    taken <- taken | gone
  }
  out
}

proportion_matrix <- function(roles, data) {
  given <- roles$proportions
  if (is.character(given)) {
    bad <- Filter(function(p) !is.numeric(data[[p]]), given)
    if (length(bad)) fail("DataError", "column '", bad[1L], "' (proportion) does not hold numbers")
    return(as.matrix(data[given]))
  }
  if (is.data.frame(given) && roles$donor %in% names(given)) {
    rows <- as.character(given[[roles$donor]])
    given <- given[setdiff(names(given), roles$donor)]
  } else {
    rows <- rownames(given)
  }
  given <- as.matrix(given)
  if (!is.numeric(given) || is.null(rows) || is.null(colnames(given)))
    fail("DataError", "proportions = must name columns of data, or be a numeric table of donors ",
         "(row names) by cell types (column names)")
  if (anyDuplicated(rows)) fail("DataError", "the table of proportions has several rows for one donor")
  where <- match(as.character(data[[roles$donor]]), rows)
  absent <- unique(as.character(data[[roles$donor]])[is.na(where) & !is.na(data[[roles$donor]])])
  if (length(absent))
    fail("DataError", "the table of proportions has no row for donors ", listing(absent))
  given[where, , drop = FALSE]
}

# A column of labels (donor, cell type, group) as a factor of the levels in use.
as_labels <- function(x, name, role, rows) {
  if (is.list(x) || is.matrix(x) || is.complex(x))
    fail("DataError", "column '", name, "' (", role, ") must hold labels, got ", class(x)[1L])
  labels <- if (is.factor(x)) droplevels(x) else factor(x)
  gone <- which(is.na(as.character(labels)))
  if (length(gone))
    fail("DataError", "column '", name, "' (", role, ") is missing in row ",
         paste(utils::head(rows[gone], 5L), collapse = ", "), ": correct it, or na.action = na.omit")
  levels(labels) <- enc2utf8(levels(labels))
  labels
}

as_numbers <- function(x, name, role) {
  if (!is.numeric(x) || is.matrix(x) || inherits(x, c("Date", "POSIXct", "difftime")))
    fail("DataError", "column '", name, "' (", role, ") must hold numbers, got ", class(x)[1L])
  as.double(x)
}

# Rows of the model matrix; of overall pseudobulk, proportions in place of the intercept.
matrix_rows <- function(terms, frame, contrasts, proportions = NULL, celltypes = NULL) {
  X <- stats::model.matrix(terms, frame, contrasts.arg = contrasts)
  if (is.null(proportions)) return(X)
  P <- proportions
  dimnames(P) <- list(rownames(X), paste0("celltype", celltypes))
  keep <- colnames(X) != "(Intercept)"
  out <- cbind(P, X[, keep, drop = FALSE])
  attr(out, "assign") <- c(rep(0L, ncol(P)), attr(X, "assign")[keep])
  attr(out, "contrasts") <- attr(X, "contrasts")
  out
}

# Names of cell types without a common prefix such as prop_.
celltype_names <- function(columns) {
  part <- regmatches(columns, regexpr("^(proportions?|props?|fractions?|frac|p)[_. -]+(?=.)",
                                      columns, perl = TRUE, ignore.case = TRUE))
  if (length(part) == length(columns) && length(unique(part)) == 1L)
    substring(columns, nchar(part[1L]) + 1L) else columns
}

# Columns that are combinations of earlier ones, as lm finds them.
aliased <- function(X) {
  q <- qr(X)
  colnames(X)[q$pivot[seq_len(ncol(X)) > q$rank]]
}

# One-level factors before model.matrix stumbles over them.
check_factors <- function(frame, terms) {
  classes <- attr(terms, "dataClasses")
  for (name in intersect(names(frame), rownames(attr(terms, "factors")))) {
    x <- frame[[name]]
    if (attr(terms, "response") && name == names(frame)[1L]) next
    if ((is.factor(x) || is.character(x) || is.logical(x)) && length(unique(x)) < 2L)
      fail("DataError", "'", name, "' has one level, '", as.character(x)[1L],
           "', in the rows that are used: it cannot be estimated; leave it out")
    if (is.numeric(x) && any(!is.finite(x))) {
      bad <- if (is.matrix(x)) which(rowSums(!is.finite(x)) > 0) else which(!is.finite(x))
      fail("DataError", "covariate '", name, "' is not finite in row ",
           paste(utils::head(frame[["(row)"]][bad], 5L), collapse = ", "),
           ": correct it, or make it NA to leave the rows out")
    }
  }
  invisible(classes)
}

# Matrices of all rows with the cell type set to each in turn; their column means are the rows L_c
# with L_c b = mean of the cell type.
type_rows <- function(fit, data, rows, X) {
  types <- fit$celltypes
  size <- length(types)
  if (fit$kind == "op")
    return(lapply(seq_len(size), function(k) {
      X[, seq_len(size)] <- rep(as.double(seq_len(size) == k), each = nrow(X))
      X
    }))
  column <- fit$roles$celltype
  if (!column %in% all.vars(stats::delete.response(fit$terms)))
    return(rep(list(X), size))
  own <- data[rows, , drop = FALSE]
  at <- match(types, as.character(data[[column]]))
  lapply(at, function(k) {
    own[[column]] <- rep(data[[column]][k], nrow(own))
    new_matrix(fit, own)
  })
}

# Model matrix of new data as lm does it: same bases, levels and contrasts; NA where one is missing.
# `full` has the effects that were dropped, too.
new_matrix <- function(object, newdata, na.action = stats::na.pass, full = FALSE) {
  terms <- stats::delete.response(object$terms)
  absent <- setdiff(intersect(object$outside, c(variables(terms), variables(object$call$offset))),
                    names(newdata))
  if (length(absent))
    fail("DataError", "newdata has no column '", absent[1L], "': at the fit it was a variable beside data")
  frame <- stats::model.frame(terms, newdata, na.action = na.action, xlev = object$xlevels)
  classes <- attr(terms, "dataClasses")
  if (!is.null(classes)) stats::.checkMFClasses(classes, frame)
  P <- NULL
  if (object$kind == "op") P <- new_proportions(object, newdata)
  X <- matrix_rows(terms, frame, object$contrasts, P, object$celltypes)
  if (length(object$dropped) && !full) X <- X[, colnames(object$X), drop = FALSE]
  given <- c(lapply(attr(terms, "offset"), function(i) attr(terms, "variables")[[i + 1L]]),
             object$call$offset)
  offset <- Reduce(`+`, lapply(given, new_offset, object, newdata), rep(0, nrow(newdata)))
  attr(X, "offset_values") <- offset[match(rownames(X), rownames(newdata))]  # na.action may drop rows
  X
}

new_offset <- function(given, object, newdata) {
  offset <- eval(given, newdata, environment(object$terms))
  if (length(offset) %in% c(1L, nrow(newdata))) return(offset)
  fail("DataError", "newdata has ", nrow(newdata), " rows, but the offset has ", length(offset),
       ": to predict for other rows, make it of columns of the data")
}

new_proportions <- function(object, newdata) {
  columns <- object$proportion_columns
  absent <- setdiff(columns, names(newdata))
  if (length(absent)) fail("DataError", "newdata has no column '", absent[1L], "' (proportion)")
  as.matrix(newdata[columns])
}
