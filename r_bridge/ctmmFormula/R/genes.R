#' Fit and Test All Genes
#'
#' Fits the model of \code{\link{ctmm}} to every gene and tests it, in one call to Python. The numbers
#' are those of single fits. A gene that fails is a row with a status and a reason.
#'
#' @details
#' Where numbers of cells are known, a noise variance of 0, which a pair of cells that are all alike has,
#' is taken as measured; \code{"reml"} and \code{"ml"}, which cannot weigh by it, take there the variance
#' between cells pooled over the cell type's pairs. Columns \code{mean} and \code{zero_noise} give the
#' gene's mean expression and its share of such pairs.
#'
#' @param formula a formula without response: \code{~ celltype + sex + PC1}.
#' @param data a table of samples, one row per donor and cell type (or per donor), or what
#' \code{\link{ctmm_pseudobulk}} returned.
#' @param expr,nu matrices of genes (rows) by samples (columns, in the order of \code{data}):
#' expression and its noise variance. Their names must be those of \code{data}, in its order, where
#' both have some. A gene uses the samples where both are there.
#' @param nu2 with them, unbiased estimates of the squares of the noise variances, \code{NA} where there is
#' none: for the score test of genes with few counts.
#' @param random,structure,method,donor,celltype,n_cells,proportions,within,kinship,genetic_structure,bounds,noise_floor,subset,na.action,contrasts,singular.ok as in \code{\link{ctmm}};
#' with \code{kinship} or \code{genotypes} \code{method} is \code{"he"} by default, one closed form for all genes.
#' @param genotypes genotypes by which every gene has a kinship \code{"cis"} of its own, that of the
#' variants around it: the name of a file of PLINK, \code{"cohort.bed"} or \code{"cohort.pgen"} (read window
#' by window, by the extra \code{genotypes} of the Python package), or a matrix of counts of an allele, donors
#' as row names and a column for every variant. Other kinships, \code{kinship = list(trans = K)}, go beside.
#' @param variants of a matrix of genotypes a data frame with columns \code{chromosome} and \code{position}
#' (base pairs), a row for every column of the matrix.
#' @param window base pairs before the start and after the end of a gene, or on both sides of its \code{tss}.
#' @param maf least frequency of the rarer allele, between the donors of the gene.
#' @param positions a data frame with genes as row names, \code{chromosome}, and \code{start} and \code{end}
#' or \code{tss}, in base pairs.
#' @param models a list of more structures to fit; each is compared to the next smaller one nested in
#' it.
#' @param tests by default \code{"score"}, with \code{by =} \code{"groups"}, with \code{within =}
#' \code{"response"} and with \code{kinship =} or \code{genotypes =} \code{"heritability"}, as \code{\link{test_heritability}} (of
#' several kinships \code{"heritability:trans"} for each); a test with the jackknife then adds columns
#' \code{h2[...]} and \code{se_h2[...]}. Some of \code{"score"}, \code{"jackknife"}, \code{"wald"}, \code{"lrt"} and
#' \code{"bootstrap"}, tests of V = 0 as in \code{\link{test_variance}}, and \code{"mean"}, as in
#' \code{\link{test_mean}}, or \code{"mean_jackknife"}, the published one; with \code{by =} also
#' \code{"groups"}, with \code{within =} \code{"response"}, as in \code{\link{test_groups}}. In words:
#' \code{"effects:sex"} (in every cell type, their mean, and whether types differ, as
#' \code{\link{effects.ctmm}}), \code{"component:batch"} (as \code{\link{test_component}}),
#' \code{"wald:V[T] = V[B]"} (linear hypotheses of parameters), \code{"contrast:T|M - T|F"} (of means of cell
#' types, \code{T}, and in them at levels of a factor, \code{T|M}, or \code{T|sex=M} where two factors have the
#' level; averaged over the rows of the gene).
#' @param genes only these.
#' @param one_step one-step jackknife in place of the exact one, for many donors.
#' @param n_bootstrap,seed draws of the bootstrap for every gene, and their seed.
#' @param threads number of threads; the table does not depend on it.
#' @param progress show a progress bar (the genes then cross in pieces; with \code{genotypes} they do not, and
#' there is none).
#' @param shares whether there are columns \code{share[...]}: shares of the variance of overall
#' pseudobulk, as \code{\link{variance_explained}}.
#' @param BPPARAM a parameter object of \pkg{BiocParallel} in place of \code{threads}: its number of workers
#' on this machine, and its seed and progress bar, where \code{seed} and \code{progress} say nothing.
#' The work stays in threads of this session, whatever kind it is.
#' @param x what \code{ctmm_genes} returned.
#' @param n number of rows.
#' @param effect a variable with effects, by default the first; of several comparisons with the level,
#' \code{"arm[severe]"}.
#' @param by as in \code{\link{ctmm}}; of \code{top_genes} a test, or a column: p values smallest first,
#' others largest first.
#' @param which a quantile plot of p values, or boxes of the variance components.
#' @param ... graphical parameters.
#' @return
#' A data frame of class \code{"ctmm_genes"}, genes in their order: \code{gene}, \code{status}
#' (\code{"ok"}, \code{"boundary"}, \code{"not converged"}, \code{"failed"}), \code{reason},
#' \code{n_obs}, \code{n_donors}, \code{mean}, \code{zero_noise}, \code{llf}, the variance components, means \code{mean[...]}, fixed
#' effects \code{b[...]}, standard errors \code{se[...]} (by the model or, after \code{method = "robust"}, by
#' independent units) and \code{se_jackknife[...]}, with
#' \code{one_step} the largest distance of the one-step jackknife's estimates from exact ones where it
#' was checked, in standard errors (\code{error_jackknife}), and for every test
#' \code{stat_}, \code{p_}, and p values adjusted over genes, \code{_bonferroni} and \code{_bh}; for
#' these p values their logarithms to base 10, \code{log10_p_}, which are there where p itself is below
#' the smallest number; for tests in words \code{df_}, of F tests \code{df1_}, and of one number \code{estimate_} and \code{se_}.
#' \code{\link[=tidy.ctmm_genes]{tidy}} makes it long, one row per gene and test.
#' \code{top_genes} gives the first rows by one column; \code{top_effects} is a data frame like
#' \code{topTable} of \pkg{limma}: \code{gene}, the \code{estimate} of the effect in a cell type (or
#' \code{"mean"}, their mean; a cell type of that name is \code{"celltype mean"}), \code{std.error}, \code{mean} of the gene, \code{statistic} (t), \code{df},
#' \code{p.value} and \code{p.adjusted} (Benjamini and Hochberg); without a cell type the estimates of
#' all of them, F of the omnibus test and \code{p.heterogeneity}.
#' @examplesIf !nzchar(ctmm_check()$problem)
#' # genes drawn from a fit
#' fit <- ctmm(expr ~ celltype + sex, data = pseudobulk)
#' expr <- t(as.matrix(simulate(fit, 10, seed = 1)))
#' nu <- matrix(pseudobulk$nu, 10, nrow(pseudobulk), byrow = TRUE)
#' found <- ctmm_genes(~ celltype + sex, data = pseudobulk, expr = expr, nu = nu)
#' top_genes(found, 3)[c("gene", "hom", "p_score", "p_score_bh")]
#' plot(found, "variance")
#' @aliases print.ctmm_genes
#' @export
ctmm_genes <- function(formula, data, expr = NULL, nu = NULL, nu2 = NULL, random = NULL,
                       structure = "free", models = list(), method = NULL, tests = NULL, genes = NULL,
                       donor = NULL, celltype = NULL, n_cells = NULL, proportions = NULL,
                       by = NULL, within = NULL, kinship = NULL, genetic_structure = NULL,
                       genotypes = NULL, variants = NULL, window = NULL, maf = 0, positions = NULL,
                       bounds = NULL, noise_floor = 0.1, subset, na.action, contrasts = NULL,
                       singular.ok = FALSE, one_step = FALSE, n_bootstrap = 999, seed = NULL, threads = 1,
                       progress = FALSE, shares = FALSE, BPPARAM = NULL) {
  call <- match.call()
  if (!is.null(BPPARAM)) {
    if (!missing(threads)) fail("CTMMError", "give threads = or BPPARAM =, not both")
    workers <- workers_of(BPPARAM)
    threads <- workers$threads
    seed <- seed %||% workers$seed
    if (missing(progress)) progress <- workers$progress
  }
  told <- few <- NULL
  if (!missing(data) && is_pseudobulk(data)) {
    data <- as_pseudobulk(data)
    if (!is.null(expr) || !is.null(nu) || !is.null(nu2))
      fail("DataError", "expr =, nu = and nu2 = belong to a table of samples; this pseudobulk has its ",
           "own")
    if (is.null(proportions)) proportions <- data$proportions
    expr <- data$expr
    nu <- data$nu
    nu2 <- data$nu2
    told <- c(level_notes(data$genes$level_ratio_low %||% data$genes$level_ratio),
              few_counts_note(data$genes$few_counts))
    few <- rownames(data$expr)[which(as.logical(data$genes$few_counts))]
    data <- data$obs
  }
  data <- as_table(data)
  if (is.null(tests))
    tests <- if (!is.null(kinship) || !is.null(genotypes)) "heritability" else if (!is.null(by)) "groups" else if (!is.null(within)) "response" else "score"
  values <- gene_matrices(list(expr = expr, nu = nu, nu2 = nu2), data, genes)
  if (length(stats::as.formula(formula)) > 2L)
    fail("FormulaError", "ctmm_genes takes a formula without response, every gene is one: ~ ",
         as_text(stats::as.formula(formula)[[3L]]))
  # the rules of ctmm() on a response and a noise that are there in every row
  data$.response <- 0
  data$.noise <- 1
  formula <- stats::as.formula(formula, env = parent.frame())
  formula[[3L]] <- formula[[2L]]
  formula[[2L]] <- quote(.response)
  spec <- split_formula(formula, random)
  spec$given <- formula
  roles <- find_roles(list(donor = donor, celltype = celltype, noise = ".noise", n_cells = n_cells,
                           proportions = proportions, by = by, within = within), data, spec)
  roles["nu2"] <- list(NULL)
  data <- with_outside(data, list(spec$fixed, call$subset), environment(spec$fixed))
  if (is.null(celltype) && is.null(proportions) && !roles$celltype %in% names(data))
    no_column(roles$celltype, "celltype", data)
  used <- !is.na(values$expr) & !is.na(values$nu)
  some <- colSums(used) > 0
  if (!any(some)) fail("DataError", "no gene has both an expression and a noise variance in any row")
  own <- data[some, , drop = FALSE]
  for (name in c("ctmm_roles", "outside")) attr(own, name) <- attr(data, name)
  made <- make_frame(spec, own, roles, call, contrasts)
  fit <- design(spec, own, roles, made, contrasts, singular.ok)
  rows <- which(some)[fit$rows]
  Y <- values$expr[, rows, drop = FALSE]
  NU <- values$nu[, rows, drop = FALSE]
  NU2 <- if (!is.null(values$nu2)) values$nu2[, rows, drop = FALSE]
  several <- if (is.null(roles$n_cells)) NA else data[[roles$n_cells]][rows] > 1
  bad <- bad_values(Y, NU, several, rownames(data)[rows])
  model <- fit$sent
  around <- windows_out(genotypes, variants, window, maf, positions)
  model$genotypes <- around$genotypes
  model <- with_kinship(model, kinship, genetic_structure, structure, fit$celltypes)
  model$y <- model$noise <- model$nu2 <- NULL
  model$rows <- i4(rows)
  model$formula <- sub("^\\.response ", "", model$formula)
  model$mean_rows <- f8(aperm(array(unlist(fit$type_rows), c(dim(fit$X), length(fit$celltypes))),
                              c(3L, 1L, 2L)))
  asked <- grep("^ *effects *:", tests, value = TRUE)
  model$effects <- lapply(unname(asked), function(test)
    differences(fit, trimws(sub("^[^:]*:", "", test)), every = TRUE))
  if (any(grepl("^ *contrast *:", tests))) model$cells <- means_by_level(fit)
  seed <- if (draws("tests", tests)) seed_of(seed) else 0L
  request <- list(
    model = model, structure = structure_out(structure, fit$celltypes),
    models = lapply(unname(as.list(models)), structure_out, celltypes = fit$celltypes),
    method = method_out(method), bounds = bounds_out(bounds),
    noise_floor = share_out(noise_floor), tests = as.list(tests), one_step = flag(one_step, "one_step"),
    n_bootstrap = whole(n_bootstrap, "n_bootstrap", 1L), seed = seed, shares = flag(shares, "shares"),
    n_jobs = threads_of(threads))
  request <- c(request, around[c("window", "maf", "positions")])
  Y[bad != "", ] <- NA_real_
  out <- once(run_genes(request, list(expr = Y, nu = NU, nu2 = NU2), progress && is.null(genotypes)))
  out$table$reason[bad != ""] <- bad[bad != ""]
  doubted <- out$table$gene %in% few & out$table$status != "failed"
  out$table$reason[doubted] <- sub("^; ", "", paste(out$table$reason[doubted], TOO_FEW, sep = "; "))
  table <- adjusted(out$table, out$tested)
  attr(table, "ctmm") <- list(
    formula = model$formula, structure = structure, method = out$method, tested = out$tested,
    terms = out$terms, components = out$components, celltypes = out$celltypes, bounds = out$bounds,
    notes = c(out$notes, told, unseen_note(out$table$zero_noise)))
  class(table) <- c("ctmm_genes", "data.frame")
  tell(table$status)
  table
}

# How many genes have too few counts for the tests of V.
unseen_note <- function(zero_noise) {
  low <- sum(zero_noise > UNSEEN, na.rm = TRUE)
  if (low) sprintf(paste("%d %s the same in all cells of most pairs (zero_noise > %g):",
                         "tests of V find large effects only"), low, if (low == 1L) "gene is" else "genes are", UNSEEN)
}

UNSEEN <- 0.5

# Genotypes, the window around genes and where these are, as they cross.
windows_out <- function(genotypes, variants, window, maf, positions) {
  if (is.null(genotypes)) {
    if (!is.null(variants) || !is.null(window) || !is.null(positions))
      fail("DataError", "variants =, window = and positions = belong to genotypes =: give it, too")
    return(NULL)
  }
  if (is.null(window) || is.null(positions))
    fail("DataError", "genotypes = takes a window around every gene: give window = 500000 and positions =, ",
         "a table of where genes are; of all variants as one kinship, kinship = genotypes")
  sent <- one_kinship(genotypes, "cis")
  if (is.null(sent$file)) {
    at <- places(variants, "variants", "position")
    if (nrow(at) != length(sent$columns))
      fail("DataError", sprintf("variants = has %d rows, genotypes = %d columns: a row for every column",
                                nrow(at), length(sent$columns)))
    sent <- c(sent, list(chromosome = as.list(as.character(at$chromosome)), position = f8(at$position)))
  } else if (!is.null(variants)) {
    fail("DataError", "variants = is of a matrix of genotypes; a file has its own")
  }
  ends <- if ("tss" %in% names(positions)) "tss" else c("start", "end")
  at <- places(positions, "positions", ends)
  if (!is.character(attr(at, "row.names")))
    fail("DataError", "positions = has no names of genes, its rows are numbered: set its row names")
  list(genotypes = sent, window = whole(window, "window", 0L),
       maf = as.double(single(maf, "maf", is.numeric)),
       positions = c(list(genes = as.list(rownames(at)),
                          chromosome = as.list(as.character(at$chromosome))), lapply(at[ends], f8)))
}

# A table of places on the genome, all of them there.
places <- function(table, name, numbers) {
  columns <- c("chromosome", numbers)
  if (!is.data.frame(table) || !all(columns %in% names(table)))
    fail("DataError", name, " = must be a data frame with columns ", listing(columns))
  bad <- numbers[!vapply(table[numbers], is.numeric, NA)]
  if (length(bad)) fail("DataError", "column ", listing(bad), " of ", name, " = is not numbers: give base pairs")
  if (anyNA(table[columns])) fail("DataError", name, " = has missing values: leave these rows out")
  table
}

# What a parameter object of BiocParallel asks for.
workers_of <- function(BPPARAM) {
  if (!inherits(BPPARAM, "BiocParallelParam"))
    fail("CTMMError", "BPPARAM = must be a parameter object of BiocParallel, such as MulticoreParam(4), ",
         "got ", class(BPPARAM)[1L])
  need_package("BiocParallel")
  workers <- BiocParallel::bpworkers(BPPARAM)
  if (is.character(workers) && !all(workers %in% c("localhost", "127.0.0.1")))
    fail("CTMMError", "BPPARAM = names other machines, ", listing(workers), ": genes are fitted by ",
         "threads of this session; send each machine a part of the genes by bplapply()")
  list(threads = max(1L, BiocParallel::bpnworkers(BPPARAM)), seed = BiocParallel::bpRNGseed(BPPARAM),
       progress = isTRUE(BiocParallel::bpprogressbar(BPPARAM)))
}

# Matrices of genes by samples, checked against each other and cut to the genes asked for.
gene_matrices <- function(given, data, genes) {
  rows <- nrow(data)
  if (is.null(given$expr) || is.null(given$nu))
    fail("DataError", "expr = and nu = are missing: matrices of genes (rows) by samples (columns)")
  given <- Filter(Negate(is.null), given)
  given <- Map(as_matrix, given, names(given))
  expr <- given$expr
  for (name in names(given)) {
    if (ncol(expr) != rows || !identical(dim(expr), dim(given[[name]])))
      fail("DataError", sprintf(paste0(
        "data has %d rows, expr is %d x %d and %s %d x %d: all need genes in rows and one column for ",
        "each row of data"), rows, nrow(expr), ncol(expr), name, nrow(given[[name]]),
        ncol(given[[name]])))
    if (!is.null(rownames(given[[name]])) && !identical(rownames(given[[name]]), rownames(expr)))
      fail("DataError", "rows of expr and ", name, " are of different genes")
    check_order(colnames(given[[name]]), data, paste("columns of", name), "data",
                sprintf("%s[, %%s]", name))
  }
  names <- rownames(expr) %||% paste0("gene", seq_len(nrow(expr)))
  if (anyDuplicated(names)) fail("DataError", "gene ", listing(unique(names[duplicated(names)])),
                                 " is there several times")
  absent <- setdiff(genes, names)
  if (length(absent)) fail("DataError", "there is no gene ", listing(absent))
  lapply(given, function(x) {
    rownames(x) <- names
    x[genes %||% names, , drop = FALSE]
  })
}

# Names of columns (or values) against those of the rows of a table: its row names, or a column of
# theirs. The fix puts the rows' names in place of %s.
check_order <- function(names, table, what, of, fix) {
  if (is.null(names)) return(invisible())
  known <- list(rownames(table))
  where <- sprintf("rownames(%s)", of)
  if (!is.character(attr(table, "row.names"))) {
    like <- Filter(function(name) !is.list(table[[name]]) && is.null(dim(table[[name]])) &&
                     setequal(table[[name]], names), names(table))
    known <- c(known, lapply(table[like], as.character))
    where <- c(where, sprintf("%s$%s", of, like))
  }
  same <- vapply(known, identical, NA, as.character(names))
  others <- vapply(known, setequal, NA, names)
  if (any(same) || !any(others) && !is.character(attr(table, "row.names"))) return(invisible())
  if (any(others))
    fail("DataError", what, " have another order than ", where[others][1L], ": ",
         sprintf(fix, where[others][1L]))
  fail("DataError", what, " and ", where[1L], " have different names (", listing(names, 2L), " and ",
       listing(known[[1L]], 2L), "): give both the same, or none")
}

as_matrix <- function(x, name) {
  x <- as.matrix(x)
  if (!is.numeric(x)) fail("DataError", name, " = must be a numeric matrix of genes by samples")
  storage.mode(x) <- "double"
  x
}

# What makes a gene fail before it is fitted, named by its sample.
bad_values <- function(Y, NU, several, samples) {
  there <- !is.na(Y) & !is.na(NU)
  y <- there & !is.finite(Y)
  # 0 is measured where there are several cells; Python judges zeros where numbers are missing
  zero <- NU == 0 & rep(is.na(several) | several, each = nrow(NU), length.out = length(NU))
  nu <- there & !((NU > 0 | zero) & is.finite(NU))
  say <- function(wrong, text, values) apply(wrong, 1L, function(w) {
    if (!any(w)) return("")
    at <- which(w)
    sprintf("%s in %s: correct it, or make it NA to leave the %s out", text,
            listing(samples[at], 3L), if (length(at) == 1L) "row" else "rows")
  })
  first <- say(y, "expression is not finite")
  ifelse(first != "", first, say(nu, "noise variance is not positive and finite"))
}

# One crossing, or some with a progress bar between them.
run_genes <- function(request, values, progress) {
  values <- Filter(Negate(is.null), values)
  count <- nrow(values$expr)
  step <- if (flag(progress, "progress")) max(50L, 50L * (count %/% 1000L)) else max(count, 1L)
  bar <- progress_bar(progress, count)
  on.exit(bar$close())
  parts <- list()
  for (start in seq(1L, count, by = step)) {
    stop <- min(start + step - 1L, count)
    at <- start:stop
    got <- ask("genes", c(request, lapply(values, function(x) f8(unname(x[at, , drop = FALSE]))),
                          list(genes = as.list(rownames(values$expr)[at]))))
    parts[[length(parts) + 1L]] <- gene_columns(got)
    bar$set(stop)
  }
  list(table = do.call(rbind, parts), tested = text(got$tested),
       terms = matrix(text(got$terms), ncol = 3L, byrow = TRUE), components = text(got$components),
       celltypes = text(got$celltypes), method = got$method, bounds = got$bounds, notes = in_r(text(got$notes)))
}

gene_columns <- function(got) {
  columns <- Map(function(x, kind) switch(
    kind, text = text(x), flag = array_in(x) == 1L, count = array_in(x), array_in(x)),
    got$columns, got$kinds[names(got$columns)])
  structure(columns, class = "data.frame", row.names = seq_along(columns$gene))
}

# P values and their logarithms to base 10 adjusted over genes, beside each; those that are missing do
# not count.
adjusted <- function(table, tested) {
  ways <- list(bonferroni = "bonferroni", bh = "BH")
  for (name in c(tested, sprintf("log10_%s", tested))) {
    at <- match(name, names(table))
    adjust <- if (name %in% tested) stats::p.adjust else adjust_logs
    more <- lapply(ways, function(way) adjust(table[[name]], way))
    names(more) <- paste0(name, "_", names(ways))
    table <- c(unclass(table)[seq_len(at)], more, unclass(table)[-seq_len(at)])
  }
  structure(table, class = "data.frame", row.names = seq_along(table$gene))
}

# The same of logarithms, where p itself may be below the smallest number.
adjust_logs <- function(logs, way) {
  there <- !is.na(logs)
  p <- logs[there]
  n <- length(p)
  if (way == "bonferroni") {
    p <- pmin(p + log10(max(n, 1)), 0)
  } else if (n) {
    down <- order(p, decreasing = TRUE)
    p[down] <- pmin(cummin(p[down] + log10(n / rev(seq_len(n)))), 0)
  }
  logs[there] <- p
  logs
}

# At most one warning for all genes.
tell <- function(status) {
  counts <- table(factor(status, c("boundary", "not converged", "failed")))
  counts <- counts[counts > 0]
  if (!length(counts)) return(invisible())
  words <- c(boundary = "on the edge of their domain (prefer the score test there)",
             `not converged` = "not converged", failed = "failed")
  class <- c(if (identical(names(counts), "boundary")) "ctmm_BoundaryWarning", "ctmm_CTMMWarning",
             "ctmm_warning")
  warning(condition(sprintf("of %d genes, %s: see columns status and reason", length(status),
                            paste(counts, words[names(counts)], collapse = ", ")), class, "warning"))
}

#' @rdname ctmm_genes
#' @export
top_genes <- function(x, n = 10, by = NULL) {
  if (!inherits(x, "ctmm_genes")) fail("CTMMError", "top_genes() takes what ctmm_genes() returned")
  tested <- attr(x, "ctmm")$tested
  if (is.null(by)) by <- tested[1L]
  if (length(by) != 1L || is.na(by))
    fail("CTMMError", "there are no tests: name a column, top_genes(x, by = \"hom\")")
  by <- trimws(sub("^ *(\\w+) *: *", "\\1:", by))  # as it was asked for
  if (paste0("p_", by) %in% names(x)) by <- paste0("p_", by)
  if (!by %in% names(x) || !is.numeric(x[[by]]))
    fail("CTMMError", "there is no column of numbers ", listing(by))
  x <- x[!is.na(x[[by]]), ]
  exact <- paste0("log10_", by)  # p values of 0 are in order, too
  key <- if (exact %in% names(x)) exact else by
  first <- order(x[[key]], decreasing = !grepl("^(log10_)?p_", key))
  as.data.frame(utils::head(x[first, ], n))
}

#' @rdname ctmm_genes
#' @export
top_effects <- function(x, effect = NULL, celltype = NULL, n = 10) {
  if (!inherits(x, "ctmm_genes")) fail("CTMMError", "top_effects() takes what ctmm_genes() returned")
  about <- attr(x, "ctmm")
  n <- whole(n, "n", 0L)
  tests <- sub("^p_effects:", "", grep("^p_effects:.*_mean", about$tested, value = TRUE))
  known <- sub("_mean", "", tests)  # "sex", or "arm[severe]" (and "arm" for all levels)
  known <- known[paste0("estimate_effects:", tests) %in% names(x)]
  if (!length(known))
    fail("CTMMError", "there are no effects: ctmm_genes(..., tests = \"effects:VARIABLE\")")
  effect <- effect %||% known[1L]
  if (length(effect) != 1L || !effect %in% known)
    fail("CTMMError", "there is no effect ", listing(effect), ": choose from ", listing(known, 20L),
         if (is.numeric(effect)) "; the number of rows is n =")
  variable <- sub("\\[[^[]*\\]$", "", effect)
  level <- substring(effect, nchar(variable) + 1L)
  column <- function(kind, end) x[[paste0(kind, "_effects:", variable, end)]]
  own <- about$celltypes
  end <- if (nzchar(level)) paste0(sub("\\]$", "", level), ",", own, "]") else paste0("[", own, "]")
  end <- c(end, paste0("_mean", level))
  names(end) <- c(ifelse(own == "mean", "celltype mean", own), "mean")
  end <- Filter(function(one) !is.null(column("estimate", one)), end)
  if (is.null(celltype)) {
    statistic <- column("stat", "")
    out <- data.frame(gene = x$gene, check.names = FALSE)
    for (type in names(end)) out[[type]] <- column("estimate", end[[type]])
    out$mean.expression <- x$mean
    out <- cbind(out, F = statistic, df1 = column("df1", ""), df2 = column("df", ""),
                 p.value = column("p", ""), p.adjusted = column("p", "_bh"))
    apart <- column("p", "_heterogeneity")
    if (!is.null(apart)) out$p.heterogeneity <- apart
  } else {
    if (length(celltype) != 1L || !celltype %in% names(end))
      fail("CTMMError", "there is no cell type ", listing(celltype), ": choose from ",
           listing(names(end), 20L))
    own <- end[[celltype]]
    out <- data.frame(gene = x$gene, estimate = column("estimate", own),
                      std.error = column("se", own), mean = x$mean, statistic = column("stat", own),
                      df = column("df", own), p.value = column("p", own))
    out$p.adjusted <- column("p", paste0(own, "_bh"))
  }
  out <- out[!is.na(out$p.value), ]
  out <- utils::head(out[order(out$p.value), ], n)
  rownames(out) <- NULL
  out
}

#' Results of Genes Beside Their Counts
#'
#' Puts the columns of \code{\link{ctmm_genes}} into the \code{rowData} of an experiment, by the names of
#' the genes.
#'
#' @param x a \code{SummarizedExperiment} (or \code{SingleCellExperiment}) whose rows are genes.
#' @param found what \code{\link{ctmm_genes}}, \code{\link{top_genes}} or \code{\link{top_effects}}
#' returned.
#' @param columns only these, by default all of them but \code{gene}.
#' @param prefix put before their names.
#' @return \code{x} with the columns in its \code{rowData}, in place of those of the same name;
#' \code{NA} for genes that were not fitted.
#' @examplesIf FALSE
#' found <- ctmm_genes(~ celltype, data = ctmm_pseudobulk(sce))
#' sce <- add_genes(sce, found, c("p_score_bh", "hom"))
#' SummarizedExperiment::rowData(sce)
#' @export
add_genes <- function(x, found, columns = NULL, prefix = "ctmm_") {
  need_package("SummarizedExperiment")
  if (!inherits(x, "SummarizedExperiment"))
    fail("DataError", "add_genes() takes a SummarizedExperiment, got ", class(x)[1L])
  if (!is.data.frame(found) || !"gene" %in% names(found))
    fail("CTMMError", "found = must be what ctmm_genes(), top_genes() or top_effects() returned")
  found <- as.data.frame(found)
  columns <- columns %||% setdiff(names(found), "gene")
  absent <- setdiff(columns, names(found))
  if (length(absent)) fail("CTMMError", "found has no column ", listing(absent))
  if (is.null(rownames(x))) fail("DataError", "rows of the experiment have no names: rownames(x)")
  gone <- setdiff(found$gene, rownames(x))
  if (length(gone))
    fail("DataError", "the experiment has no row ", listing(gone), ": take the one that was fitted")
  at <- match(rownames(x), found$gene)
  rows <- SummarizedExperiment::rowData(x)
  for (name in columns) rows[[paste0(prefix, name)]] <- found[[name]][at]
  SummarizedExperiment::`rowData<-`(x, value = rows)
}

#' @export
as.data.frame.ctmm_genes <- function(x, row.names = NULL, ...) {
  no_more(..., passed = TABLED)
  attr(x, "ctmm") <- NULL
  class(x) <- "data.frame"
  if (!is.null(row.names)) rownames(x) <- row.names
  x
}

#' @export
print.ctmm_genes <- function(x, n = 6, digits = 3, ...) {
  no_more(..., passed = setdiff(PRINTED, "row.names"))
  about <- attr(x, "ctmm")
  if (is.null(about)) return(print(as.data.frame(x), digits = digits, ...))
  counts <- table(x$status)
  cat(sprintf("%d genes, structure %s by %s: %s\n", nrow(x), structure_name(about$structure),
              if (about$method == "robust") METHODS[["robust"]] else toupper(about$method),
              paste(counts, names(counts), collapse = ", ")))
  cat(about$formula, "\n\n", sep = "")
  shown <- intersect(c("gene", "status", about$components, about$tested), names(x))
  best <- if (length(about$tested)) top_genes(x, n) else utils::head(as.data.frame(x), n)
  print(best[shown], row.names = FALSE, digits = digits, ...)
  if (nrow(x) > n) cat(sprintf("... %d columns; see top_genes() and as.data.frame()\n", ncol(x)))
  cat_notes(about$notes)
  invisible(x)
}

structure_name <- function(structure) {
  if (is.character(structure)) structure
  else if (inherits(structure, "ctmm_tree")) "tree" else "own matrices"
}

#' @rdname ctmm_genes
#' @export
plot.ctmm_genes <- function(x, which = c("pvalues", "variance"), ...) {
  no_more(..., passed = drawn())
  which <- match.arg(which)
  about <- attr(x, "ctmm")
  old <- graphics::par(mar = c(4.5, 4.5, 2, 1))
  on.exit(graphics::par(old))
  if (which == "variance") {
    graphics::boxplot(unclass(x)[about$components], ylab = "Variance", las = 2, ...)
    graphics::abline(h = 0, col = "grey")
    return(invisible(x))
  }
  tested <- setdiff(about$tested, "p_score_cauchy")
  if (!length(tested)) fail("CTMMError", "there are no tests to draw: plot(x, \"variance\")")
  p <- lapply(unclass(x)[tested], function(p) sort(p[!is.na(p)]))
  expected <- lapply(p, function(v) -log10(stats::ppoints(length(v))))
  observed <- lapply(p, function(v) -log10(pmax(v, 1e-300)))
  graphics::plot(range(unlist(expected)), range(unlist(observed)), type = "n",
                 xlab = "Expected -log10 p", ylab = "Observed -log10 p", ...)
  graphics::abline(0, 1, col = "grey")
  for (k in seq_along(p)) graphics::points(expected[[k]], observed[[k]], pch = 20, col = k)
  graphics::legend("topleft", sub("^p_", "", tested), pch = 20, col = seq_along(p), bty = "n")
  invisible(x)
}
