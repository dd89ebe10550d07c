# Formulas: response, fixed part, random terms. No data are seen here.

# list(fixed = formula without random terms, random = list of list(left, groups))
split_formula <- function(formula, random = NULL) {
  if (is.character(formula) && length(formula) == 1L)
    formula <- stats::as.formula(formula, env = parent.frame(2L))
  if (!inherits(formula, "formula"))
    fail("FormulaError", "formula must be a formula such as expr ~ celltype + sex, got ",
         class(formula)[1L])
  if (length(formula) < 3L)
    fail("FormulaError", "the formula has no response: write expr ~ ",
         paste(deparse(formula[[2L]]), collapse = " "))
  if (has_bar(formula[[2L]]))
    fail("FormulaError", "a random term stands left of the ~: write expr ~ ... + (1 | batch)")
  parts <- split_sum(formula[[3L]])
  if (length(parts$less)) no_summand(formula[[3L]])
  formula[[3L]] <- parts$fixed %||% 1
  terms <- c(parts$random, random_argument(random))
  check_twice(terms)
  list(fixed = formula, random = terms)
}

# Variables of an expression; what stands right of $ or @ is none.
variables <- function(e) {
  if (!is.call(e)) return(all.vars(e))
  attributes(e) <- NULL
  parts <- as.list(e)
  parts <- if (as_text(parts[[1L]]) %in% c("$", "@")) parts[2L] else parts[-1L]
  unique(unlist(lapply(parts[as.character(parts) != ""], variables)))  # x[, 1] has an empty part
}

SIGNS <- c("+", "-", "*", ":", "/", "^", "%in%", "(")

# A bar that stands in the language of formulas, not inside a function such as I(a | b).
has_bar <- function(e) {
  if (!is.call(e)) return(FALSE)
  head <- as.character(e[[1L]])[1L]
  if (head %in% c("|", "||")) return(TRUE)
  head %in% SIGNS && any(vapply(as.list(e)[-1L], has_bar, NA))
}

# Fixed part (NULL: nothing is left) of a sum, its random terms, and those that are subtracted.
split_sum <- function(e) {
  if (!has_bar(e)) return(list(fixed = e, random = list(), less = list()))
  head <- as.character(e[[1L]])
  if (head == "(" && is_bar(e[[2L]]))
    return(list(fixed = NULL, random = bar(e[[2L]]), less = list()))
  if (head == "(") return(split_sum(e[[2L]]))
  if (head == "+" && length(e) == 3L) {
    left <- split_sum(e[[2L]])
    right <- split_sum(e[[3L]])
    fixed <- if (is.null(left$fixed)) right$fixed
             else if (is.null(right$fixed)) left$fixed
             else call("+", left$fixed, right$fixed)
    return(list(fixed = fixed, random = c(left$random, right$random), less = c(left$less, right$less)))
  }
  if (head == "-" && length(e) == 3L) {
    left <- split_sum(e[[2L]])
    right <- split_sum(e[[3L]])
    if (length(right$less)) no_summand(e)
    left$less <- c(left$less, right$random)
    if (!is.null(right$fixed)) left$fixed <- call("-", left$fixed %||% 1, right$fixed)
    return(left)
  }
  no_summand(e)
}

no_summand <- function(e) {
  fail("FormulaError", "'", paste(deparse(e), collapse = " "), "': a random term is a summand in ",
       "parentheses, expr ~ celltype + (1 | batch); it can be neither subtracted nor crossed")
}

is_bar <- function(e) is.call(e) && as.character(e[[1L]])[1L] %in% c("|", "||")

# left | groups
bar <- function(e) {
  shown <- paste(deparse(e), collapse = " ")
  if (identical(e[[1L]], as.name("||")))
    fail("FormulaError", "'", shown, "': write one bar, (1 | batch); effects on several cell types ",
         "are independent here anyway")
  left <- e[[2L]]
  left <- if (identical(left, 1) || identical(left, 1L)) "1" else if (is.name(left)) as.character(left)
  if (is.null(left))
    fail("FormulaError", "'", shown, "': left of the | stands 1 or the cell type column")
  lapply(groupings(e[[3L]], shown), function(groups) list(left = left, groups = groups))
}

# Groups of one random term: a, a:b (crossed levels), a/b (a and a:b).
groupings <- function(e, shown) {
  if (is.name(e)) return(list(as.character(e)))
  head <- if (is.call(e)) as.character(e[[1L]])[1L] else ""
  if (head == "(") return(groupings(e[[2L]], shown))
  if (head %in% c(":", "/") && length(e) == 3L) {
    left <- groupings(e[[2L]], shown)
    right <- groupings(e[[3L]], shown)
    crossed <- list(unique(c(left[[length(left)]], right[[1L]])))
    if (head == ":" && length(left) == 1L && length(right) == 1L) return(crossed)
    if (head == "/" && length(right) == 1L) return(c(left, crossed))
  }
  fail("FormulaError", "'", shown, "': random effects are columns, crossed by : or nested by /: ",
       "(1 | site/batch); add a column for anything else")
}

# random = ~ batch, ~ batch + site, ~ 1 | batch, "batch", c("batch", "site"), "(1 | batch)",
# list(batch = "1"), list(batch = "celltype")
random_argument <- function(random) {
  if (is.null(random)) return(list())
  if (inherits(random, "formula")) {
    if (length(random) != 2L)
      fail("FormulaError", "random must have one side: random = ~ batch")
    return(random_sum(random[[2L]]))
  }
  if (is.list(random)) {
    if (is.null(names(random)) || any(names(random) == ""))
      return(do.call(c, lapply(random, random_argument)))
    one <- function(name, left) {
      left <- as.character(left)
      if (length(left) != 1L) fail("FormulaError", "random = list(", name, " = \"1\") or a column")
      list(left = left, groups = name)
    }
    return(unname(Map(one, names(random), random)))
  }
  if (is.data.frame(random) || !is.character(random) || anyNA(random))
    fail("FormulaError", "random must name columns, random = ~ batch or random = \"batch\", got ",
         class(random)[1L])
  do.call(c, lapply(random, function(text) {
    if (!grepl("[~|+:/()]", text)) return(list(list(left = "1", groups = text)))
    parsed <- tryCatch(str2lang(sub("^\\s*~", "", text)), error = function(e)
      fail("FormulaError", "random = \"", text, "\" cannot be read: ", conditionMessage(e)))
    random_sum(parsed)
  }))
}

random_sum <- function(e) {
  head <- if (is.call(e)) as.character(e[[1L]])[1L] else ""
  if (head == "+" && length(e) == 3L) return(c(random_sum(e[[2L]]), random_sum(e[[3L]])))
  if (head == "(") return(random_sum(e[[2L]]))
  if (is_bar(e)) return(bar(e))
  shown <- paste(deparse(e), collapse = " ")
  lapply(groupings(e, shown), function(groups) list(left = "1", groups = groups))
}

check_twice <- function(terms) {
  seen <- vapply(terms, term_label, "")
  if (anyDuplicated(seen))
    fail("FormulaError", "random effect ", seen[duplicated(seen)][1L], " is given twice")
}

term_label <- function(term) {
  paste0("(", term$left, " | ", paste(sort(term$groups), collapse = ":"), ")")
}

# A call's formula and random = by the changes of update(): terms that random = gave stay there.
updated_call <- function(call, given, change) {
  change <- stats::as.formula(change)
  parts <- split_sum(change[[length(change)]])
  change[[length(change)]] <- parts$fixed %||% 1
  if (length(change) == 2L) change <- stats::as.formula(call("~", quote(.), change[[2L]]))
  old <- split_formula(given)
  stays <- "." %in% all.vars(change[[3L]])
  outside <- random_argument(call$random)
  known <- c(if (stays) old$random, outside)
  gone <- vapply(parts$less, term_label, "")
  absent <- setdiff(gone, vapply(known, term_label, ""))
  if (length(absent))
    fail("FormulaError", "the fit has no random effect ", listing(absent), " to take out; it has ",
         if (length(known)) listing(vapply(known, term_label, "")) else "none")
  kept <- function(terms) Filter(function(term) !term_label(term) %in% gone, terms)
  fixed <- stats::update(old$fixed, change)
  call$formula <- join_formula(fixed, c(if (stays) kept(old$random), parts$random))
  if (length(kept(outside)) < length(outside))
    call$random <- if (length(kept(outside))) lapply(kept(outside), function(term)
      stats::as.formula(call("~", as_bar(term))))
  call
}

# The whole formula again, random terms included.
join_formula <- function(fixed, random) {
  for (term in random) fixed[[3L]] <- call("+", fixed[[3L]], as_bar(term))
  fixed
}

# (1 | a:b)
as_bar <- function(term) {
  left <- if (term$left == "1") 1 else as.name(term$left)
  groups <- Reduce(function(a, b) call(":", a, b), lapply(term$groups, as.name))
  call("(", call("|", left, groups))
}

as_text <- function(e) paste(trimws(deparse(e, width.cutoff = 500L)), collapse = " ")
