#' Aggregate Cells to Donors and Cell Types
#'
#' Means of the cells of each donor and cell type, their noise variances (sample variance over number of
#' cells) and numbers of cells. Pairs with too few cells are missing, never zero. This needs no Python.
#'
#' @param x one of
#' \itemize{
#' \item a matrix of genes (rows) by cells (columns), dense, sparse (\code{dgCMatrix}) or read as it is
#' used (\code{DelayedArray}, \code{HDF5Array}), with the logarithms of expression, and \code{cells}, the
#' table of the cells, a data frame or \code{DataFrame};
#' \item a \code{SingleCellExperiment} of cells (\code{assay = "logcounts"});
#' \item a \code{Seurat} object (\code{assay} its default, \code{layer = "data"});
#' \item an aggregate of \pkg{muscat} or \pkg{dreamlet} with one assay of means for each cell type, and
#' \code{sem}, one of their standard errors (\code{dreamlet::aggregateToPseudoBulk(fun = "sem")});
#' \item \code{dreamletProcessedData} of \code{dreamlet::aggregateNonCountSignal}.
#' }
#' @param ... arguments for cells:
#' \code{donor = "donor"} and \code{celltype = "celltype"}, columns of their table;
#' \code{normalize}, \code{"log_cp10k"} or \code{"log2_cpm"} for raw counts;
#' \code{summary}, \code{"mean"} of the logarithms of cells or \code{"log_mean"}, of raw counts, the
#' logarithm of their mean count per 10,000, on which a factor shared by all cell types is shared;
#' \code{min_cells = 10}, pairs must have more cells; \code{min_cells_donor = 100}, donors must have
#' more; \code{min_donor_share = 0}, cell types must be observed in a larger share of the donors;
#' \code{covariates}, columns to carry along (default all that do not vary within donors or pairs).
#' @param row.names,optional as in \code{\link{as.data.frame}}.
#' @param gene name of one gene.
#' @param i,j genes and pairs to keep.
#' @param drop must be \code{FALSE}.
#' @return
#' An object of class \code{"ctmm_pseudobulk"}: a list of \code{expr}, \code{nu} and, from cells,
#' \code{nu2} (unbiased estimates of the squares of the noise variances), genes by pairs;
#' \code{obs}, the table of pairs with \code{donor}, \code{celltype}, \code{n_cells}, \code{proportion}
#' and covariates; \code{notes} on what was left out; \code{summary}; \code{genes}, what is known of
#' each gene on this scale: \code{level_ratio}, the largest over the smallest share by which a common
#' factor moves cell types on log1p, and \code{level_ratio_low}, what the standard errors of the means
#' leave of it, or \code{min_counts}, counts of a pair in the cell type with the fewest, and
#' \code{few_counts}, too few for a logarithm. \code{\link{ctmm}} and \code{\link{ctmm_genes}} take it
#' as \code{data}; \code{as.data.frame} gives the table of one gene.
#' @examples
#' set.seed(1)
#' cells <- data.frame(donor = rep(paste0("d", 1:20), each = 60),
#'                     celltype = rep(c("B", "T", "NK"), 400))
#' x <- matrix(rexp(5 * 1200), 5, dimnames = list(paste0("gene", 1:5), NULL))
#' pb <- ctmm_pseudobulk(x, cells = cells, min_cells_donor = 50)
#' pb
#' head(as.data.frame(pb, gene = "gene1"))
#' @aliases print.ctmm_pseudobulk
#' @export
ctmm_pseudobulk <- function(x, ...) {
  if (inherits(x, "SingleCellExperiment") || inherits(x, "SummarizedExperiment"))
    return(pseudobulk_experiment(x, ...))
  if (inherits(x, "Seurat")) return(pseudobulk_seurat(x, ...))
  if (inherits(x, "dreamletProcessedData")) return(pseudobulk_processed(x, ...))
  if (inherits(x, "AnnDataR6") || inherits(x, "anndata._core.anndata.AnnData"))
    fail("DataError", "x is an AnnData: use ctmm.pseudobulk() in Python, or its matrix and obs")
  pseudobulk_cells(x, ...)
}

# A matrix of genes by cells (dense or sparse by columns) and a table of the cells.
pseudobulk_cells <- function(x, cells, donor = "donor", celltype = "celltype", normalize = NULL,
                             summary = "mean", min_cells = 10, min_cells_donor = 100,
                             min_donor_share = 0, covariates = NULL) {
  if (!is.character(summary) || length(summary) != 1L || !summary %in% c("mean", "log_mean"))
    fail("CTMMError", "summary must be one of ", listing(c("mean", "log_mean")))
  for (name in c("min_cells", "min_cells_donor", "min_donor_share"))
    single(get(name), name, is.numeric)
  if (summary == "log_mean") normalize <- normalize %||% "log_cp10k"
  if (missing(cells)) fail("DataError", "cells = must be the table of the cells, one row each")
  cells <- as_table(cells)
  x <- cell_matrix(x)
  if (ncol(x) != nrow(cells))
    fail("DataError", sprintf("x has %d cells in columns, the table of cells %d rows%s", ncol(x),
                              nrow(cells), if (nrow(x) == nrow(cells)) ": transpose x" else ""))
  check_order(colnames(x), cells, "columns of x", "cells", "x[, %s]")
  pairs <- find_pairs(cells, donor, celltype, min_cells, min_cells_donor, min_donor_share)
  library_size <- if (is_sparse(x)) Matrix::colSums(x) else colSums(x)
  if (!is.null(normalize)) x <- normalized(x, normalize, library_size, summary == "mean")
  judged <- c(judge_values(x, normalize), if (!is.null(normalize)) selection(x, library_size, pairs$place))
  place <- pairs$place
  place[!pairs$observed[place]] <- NA
  moments <- pair_moments(x, place, length(pairs$observed))
  n <- as.vector(pairs$n_cells)
  nu <- sweep(moments$squares, 2L, ifelse(pairs$observed, n * pmax(n - 1, 1), NA), `/`)
  nu2 <- square_noise(moments, ifelse(pairs$observed & n > 3, n, NA))
  notes <- c(judged, sampled_twice(cells, pairs, c(donor, celltype)))
  mean <- moments$mean
  mean[, !pairs$observed] <- NA_real_
  obs <- pair_table(pairs$donors, pairs$celltypes, t(pairs$counts))
  kept <- constant_columns(cells, pairs$place, obs, c(donor, celltype), covariates)
  by_type <- function(values)
    vapply(split(seq_along(n), obs$celltype), function(at)
      rowMeans(values[, at, drop = FALSE], na.rm = TRUE), numeric(nrow(values)))
  if (summary == "mean") {
    means <- matrix(by_type(mean), nrow(mean))
    squares <- matrix(by_type(mean^2), nrow(mean)) - means^2
    count <- tapply(as.vector(pairs$observed), obs$celltype, sum)
    errors <- sqrt(pmax(sweep(squares, 2L, ifelse(count > 1, count - 1, NA), `/`), 0))
    genes <- list(level_ratio = level_ratio(means), level_ratio_low = level_ratio(means, errors))
    if (is.null(normalize) && length(judged)) genes <- lapply(genes, `+`, NA)  # no logarithms
    return(new_pseudobulk(mean, nu, kept$obs,
                          c(pairs$notes, kept$notes, notes, level_notes(genes$level_ratio_low)),
                          summary, genes, nu2))
  }
  scale <- SCALES[[normalize]]
  half <- half_counts(scale[1L] / library_size, place, n)
  counts <- sweep(mean, 2L, 2 * half, `/`)
  top <- sweep(mean, 2L, half, `+`)
  nu2 <- ifelse(mean > 0, nu2 / (mean * top)^2, 0) + 0 * top
  nu <- ifelse(mean > 0, nu / (mean * top), 0) + 0 * top
  few <- matrix(by_type(counts), nrow(mean))
  genes <- list(min_counts = apply(few, 1L, min, na.rm = TRUE))
  genes$few_counts <- genes$min_counts < FEW_COUNTS
  y <- (log(top) + nu / 2) / scale[2L]
  never <- which(rowSums(counts, na.rm = TRUE) == 0)
  for (k in never) y[k, !is.na(y[k, ])] <- mean(y[k, ], na.rm = TRUE)
  none <- if (length(never)) sprintf(
    "%d of %d genes have no counts at all: they are constant, at half a count", length(never), nrow(y))
  new_pseudobulk(y, nu / scale[2L]^2, kept$obs,
                 c(pairs$notes, kept$notes, notes, none, few_counts_note(genes$few_counts)), summary, genes,
                 nu2 / scale[2L]^4)
}

# Unbiased sigma^4 / n^2 of every gene and pair from central moments m2, m4 of its n cells:
# E m2^2 = a11 mu4 + a12 sigma^4 and E m4 = a21 mu4 + a22 sigma^4.
square_noise <- function(moments, n) {
  a11 <- (n - 1)^2 / n^3
  a12 <- (n - 1) * (n^2 - 2 * n + 3) / n^3
  a21 <- (n - 1) * (n^2 - 3 * n + 3) / n^3
  a22 <- 3 * (n - 1) * (2 * n - 3) / n^3
  scale <- n^2 * (a21 * a12 - a11 * a22)
  sweep(sweep(moments$squares, 2L, n, `/`)^2, 2L, a21 / scale, `*`) -
    sweep(moments$fourth, 2L, a11 / (n * scale), `*`)
}

# What V means on which scale: see the Python module ctmm_formula.cells.scale, whose rules these are.
LARGE_RATIO <- 1.2
FEW_COUNTS <- 5
TOO_FEW <- sprintf(paste("fewer than %g counts a pair in some cell type, too few for their logarithm:",
                         "tests are no guide"), FEW_COUNTS)

REACH <- 2
level_ratio <- function(means, errors = 0 * means) {
  share <- function(means) -expm1(-pmax(means, 0))
  least <- function(means) apply(share(means), 1L, min, na.rm = TRUE)
  lowest <- least(means)
  low <- least(means + REACH * errors)
  high <- pmax(apply(share(means - REACH * errors), 1L, max, na.rm = TRUE), low)
  ifelse(lowest > 0 & is.finite(lowest), high / low, NA)
}

level_notes <- function(ratio) {  # that errors of the means leave
  large <- sum(ratio >= LARGE_RATIO, na.rm = TRUE)
  if (large) sprintf(paste(
    "in %d of %d genes cell types differ in level, %g-fold and more in what a factor does to their",
    "means; a factor shared by all types looks specific to the higher ones (V > 0) on the scale of",
    "log(1 + x): ctmm_pseudobulk(counts, summary = \"log_mean\") makes it shared"),
    large, length(ratio), LARGE_RATIO)
}

few_counts_note <- function(few) {
  if (any(few)) sprintf(paste(
    "%d of %d genes have fewer than %g counts a pair in some cell type, too few for their logarithm:",
    "genes$few_counts marks them"), sum(few), length(few), FEW_COUNTS)
}

# Half a count, spread over the cells of each pair, in units of their mean.
half_counts <- function(scale, place, n) {
  on <- which(!is.na(place) & is.finite(scale))
  total <- tapply(scale[on], factor(place[on], seq_along(n)), mean)
  0.5 * as.vector(total) / n
}

need_package <- function(package) {
  if (!requireNamespace(package, quietly = TRUE)) fail("DataError", "this needs the package ", package)
}

cell_matrix <- function(x) {
  if (inherits(x, "dgCMatrix")) return(x)
  if (is.data.frame(x)) x <- as.matrix(x)
  if (isS4(x)) {
    need_package("Matrix")
    if (length(dim(x)) == 2L && !inherits(x, "Matrix")) x <- in_memory(x)
    return(methods_as(x, "CsparseMatrix"))
  }
  if (!is.matrix(x) || !is.numeric(x))
    fail("DataError", "x must be a numeric matrix of genes (rows) by cells (columns), got ", class(x)[1L])
  x
}

# A matrix that is read as it is used (DelayedArray, HDF5Array): some cells at a time, kept sparse.
in_memory <- function(x, most = 1e7) {
  step <- max(1L, as.integer(most / max(nrow(x), 1L)))
  parts <- lapply(seq(1L, max(ncol(x), 1L), by = step), function(start) {
    at <- start:min(start + step - 1L, ncol(x))
    methods::as(as_matrix(x[, at, drop = FALSE], "x"), "CsparseMatrix")
  })
  do.call(cbind, parts)
}

methods_as <- function(x, class) {
  out <- tryCatch(methods::as(methods::as(x, "generalMatrix"), class), error = function(e)
    fail("DataError", "x of class ", class(x)[1L], " cannot be read as a sparse matrix: ",
         conditionMessage(e)))
  methods::as(out, "dMatrix")
}

is_sparse <- function(x) inherits(x, "dgCMatrix")

# Label of each cell, and which pairs have cells enough: donors by their cells, pairs by theirs, cell
# types by their donors.  counts is donors x cell types, place the pair of each cell by donors.
find_pairs <- function(cells, donor, celltype, min_cells, min_cells_donor, min_donor_share) {
  d <- cell_labels(cells, donor, "donor")
  t <- cell_labels(cells, celltype, "celltype")
  notes <- character()
  for (one in list(list(d, donor), list(t, celltype))) {
    lost <- sum(is.na(one[[1L]]))
    if (lost) notes <- c(notes, sprintf("%d of %d cells are left out, they have no label in column '%s'",
                                        lost, nrow(cells), one[[2L]]))
  }
  d[is.na(t)] <- NA
  counts <- unclass(table(d, t))
  total <- rowSums(counts)
  keep <- total > min_cells_donor
  observed <- counts > max(min_cells, 1) & keep
  types <- colSums(observed) / max(sum(keep), 1) > min_donor_share
  few <- !keep
  keep <- keep & rowSums(observed[, types, drop = FALSE]) > 0
  types <- types & colSums(observed[keep, , drop = FALSE]) > 0
  if (!any(keep) || !any(types))
    fail("DataError", sprintf(paste0(
      "no pair of donor and cell type is left of %d cells: %d of %d donors have at most ",
      "min_cells_donor = %g cells (the largest has %g), the largest pair has %g (min_cells = %g)"),
      nrow(cells), sum(few), length(few), min_cells_donor, max(total, 0), max(counts, 0), min_cells))
  if (any(few))
    notes <- c(notes, sprintf("%d of %d donors are left out, they have at most %g cells: %s", sum(few),
                              length(few), min_cells_donor, listing(names(total)[few])))
  if (any(!types))
    notes <- c(notes, paste("cell types are left out, too few donors have enough of their cells:",
                            listing(colnames(counts)[!types])))
  seen <- observed[keep, types, drop = FALSE]
  if (any(!seen))
    notes <- c(notes, sprintf(
      "%d of %d pairs of donor and cell type are missing, they have at most %g cells", sum(!seen),
      length(seen), max(min_cells, 1)))
  counts <- counts[keep, types, drop = FALSE]
  donor_at <- match(d, rownames(counts))
  type_at <- match(t, colnames(counts))
  list(donors = rownames(counts), celltypes = colnames(counts), counts = counts,
       n_cells = as.vector(t(counts)), observed = as.vector(t(seen)),
       place = (donor_at - 1L) * ncol(counts) + type_at, notes = notes)
}

cell_labels <- function(cells, name, role) {
  if (!name %in% names(cells)) no_column(name, role, cells)
  x <- cells[[name]]
  labels <- if (is.factor(x)) droplevels(x) else factor(x)
  levels(labels)[trimws(levels(labels)) %in% c("", "nan", "None", "<NA>", "NA")] <- NA
  labels
}

SCALES <- list(log_cp10k = c(1e4, 1), log2_cpm = c(1e6, log(2)))

normalized <- function(x, method, size, log) {
  scale <- if (is.character(method) && length(method) == 1L) SCALES[[method]]
  if (is.null(scale)) fail("CTMMError", "normalize must be one of ", listing(names(SCALES)))
  values <- if (is_sparse(x)) x@x else x
  if (any(values < 0, na.rm = TRUE)) fail("DataError", "counts are negative")
  if (any(values != round(values), na.rm = TRUE) && max(values) <= 20)
    fail("DataError", "normalize = \"", method, "\" is for counts, but the data look like logarithms ",
         "already: leave it out")
  if (is_sparse(x)) {
    x@x <- x@x * rep(scale[1L] / size, diff(x@p))
    if (log) x@x <- log1p(x@x) / scale[2L]
    return(x)
  }
  x <- sweep(x, 2L, ifelse(size > 0, scale[1L] / size, 0), `*`)
  if (log) log1p(x) / scale[2L] else x
}

# What is warned of is also noted.
warn_and_note <- function(text) {
  warn(text)
  text
}

# Values that no logarithm of expression can be; no log2(CPM + 1) is larger than 20.
judge_values <- function(x, normalize) {
  values <- if (is_sparse(x)) x@x else x
  if (any(!is.finite(values)))
    fail("DataError", "expression is missing or not finite: leave such cells or genes out")
  if (any(values < 0))
    fail("DataError", "expression is negative: scaled data? Take the logarithms before scaling")
  if (!is.null(normalize) || !length(values)) return(NULL)
  top <- max(values)
  if (top > 1 && all(values == round(values)))
    warn_and_note(paste0(
      "all values are whole numbers (the largest is ", format(top), "): raw counts? The ",
      "model is for logarithms: normalize = \"log_cp10k\" makes them"))
  else if (top > 20)
    warn_and_note(paste0(
      "the largest value is ", format(top, digits = 4L), ", too large for a logarithm of expression: ",
      "scaled counts (CP10K, CPM)? The model is for logarithms: normalize = \"log_cp10k\" makes them, of ",
      "counts or of these"))
}

# Cells whose counts in all genes cannot be seen: few genes with, in the middle, few counts.
selection <- function(x, library_size, place) {
  middle <- stats::median(library_size[!is.na(place)])
  if (nrow(x) < 1000 && middle < 200)
    warn_and_note(paste0(
      "cells are scaled by their counts in ", nrow(x), " genes, ", format(middle), " in half of the ",
      "cells or less: is this a selection? Normalise before genes are chosen (pb[genes, ] chooses ",
      "after that)"))
}

# Columns that look like conditions of which donors have several: few levels, several of them in most
# pairs, and not those of a finer cell type.
FEW_LEVELS <- 6
COMMON <- 0.1  # share of a pair's cells above which a level is one that the donor was sampled at
OF_CELLS <- c("phase", "leiden", "louvain", "cluster", "clusters", "seurat_clusters", "doublet",
              "predicted_doublet")

sampled_twice <- function(cells, pairs, taken) {
  on <- which(!is.na(pairs$place))
  total <- pairs$n_cells
  C <- length(pairs$celltypes)
  differs <- function(name) {
    x <- cells[[name]]
    other <- is.list(x) || !is.null(dim(x)) || inherits(x, c("Date", "POSIXct", "difftime"))
    if (other || tolower(name) %in% OF_CELLS) return(NULL)
    x <- x[on]
    if (is.numeric(x) && any(x != round(x), na.rm = TRUE)) return(NULL)
    levels <- sort(unique(as.character(x)))
    if (length(levels) < 2L || length(levels) > FEW_LEVELS) return(NULL)
    counts <- unclass(table(factor(pairs$place[on], seq_along(total)), factor(x, levels)))
    several <- rowSums(counts > COMMON * total) > 1
    by_type <- rowsum(counts, rep_len(seq_len(C), length(total)))
    finer <- colSums(by_type > COMMON * rep(colSums(by_type), each = C)) == 1
    if (sum(total[several]) > sum(total) / 2 && !(C > 1L && any(finer))) levels
  }
  names <- setdiff(names(cells), taken)
  found <- Filter(Negate(is.null), lapply(named(names, names), differs))
  own <- taken[1L] %in% c("donor", "celltype", "n_cells", "proportion")  # pairs have these themselves
  vapply(names(found), function(name) warn_and_note(sprintf(paste0(
    "cells of one donor differ in column '%s' (%s) and are pooled: if these are conditions, every ",
    "sample is a donor of its own, %scells$sample <- paste(cells$%s, cells$%s), ",
    "ctmm_pseudobulk(..., donor = \"sample\"), and fit with donor = \"%s\", within = ~ %s"),
    name, listing(found[[name]]), if (own) sprintf("cells$person <- cells$%s, ", taken[1L]) else "",
    taken[1L], name, if (own) "person" else taken[1L], name)), "", USE.NAMES = FALSE)
}

# Means and sums of squares and fourth powers about them, genes x pairs, in two passes: nothing cancels.
pair_moments <- function(x, place, size) {
  used <- which(!is.na(place))
  n <- tabulate(place[used], size)
  if (!is_sparse(x)) {
    mean <- squares <- fourth <- matrix(0, nrow(x), size, dimnames = list(rownames(x), NULL))
    for (part in split(used, place[used])) {
      k <- place[part[1L]]
      own <- x[, part, drop = FALSE]
      mean[, k] <- rowMeans(own)
      squares[, k] <- rowSums((own - mean[, k])^2)
      fourth[, k] <- rowSums((own - mean[, k])^4)
    }
    return(list(mean = mean, squares = squares, fourth = fourth))
  }
  x <- x[, used, drop = FALSE]
  H <- Matrix::sparseMatrix(i = seq_along(used), j = place[used], x = 1, dims = c(length(used), size))
  sum_by <- function(values) {
    x@x <- values
    as.matrix(x %*% H)
  }
  mean <- sweep(sum_by(x@x), 2L, pmax(n, 1), `/`)
  column <- rep(place[used], diff(x@p))
  distance <- x@x - mean[cbind(x@i + 1L, column)]
  stored <- sum_by(rep(1, length(x@x)))
  zeros <- sweep(-stored, 2L, n, `+`)  # cells that the matrix does not store
  list(mean = mean, squares = sum_by(distance^2) + zeros * mean^2,
       fourth = sum_by(distance^4) + zeros * mean^4)
}

# The full grid, all cell types of the first donor, then of the second.
pair_table <- function(donors, celltypes, counts) {
  C <- length(celltypes)
  share <- sweep(counts, 2L, pmax(colSums(counts), 1), `/`)
  data.frame(donor = factor(rep(donors, each = C), donors),
             celltype = factor(rep(celltypes, length(donors)), celltypes),
             n_cells = as.vector(counts), proportion = as.vector(share),
             row.names = paste(rep(donors, each = C), celltypes, sep = "|"))
}

# Columns of the cells that do not vary within donors (or within pairs).
constant_columns <- function(cells, place, obs, roles, covariates) {
  notes <- character()
  own <- setdiff(intersect(names(cells), names(obs)), roles)
  if (length(own) && is.null(covariates)) notes <- sprintf(
    "column %s of the cells is left out: its name is that of a column of the pairs", listing(own))
  names <- covariates %||% setdiff(names(cells), c(roles, names(obs)))
  C <- nlevels(obs$celltype)
  used <- which(!is.na(place))
  donor <- (place[used] - 1L) %/% C + 1L
  for (name in names) {
    if (!name %in% names(cells) || name %in% names(obs))
      fail("DataError", "covariates = names '", name, "', which ",
           if (name %in% names(obs)) "is a column that pairs have themselves: rename yours"
           else paste0("is no column of the cells (columns: ", listing(names(cells), 12L), ")"))
    value <- cells[[name]]
    plain <- is.atomic(value) && is.null(dim(value))
    value <- if (plain) value[used] else seq_along(used)  # what is no vector varies
    one <- function(group, size) {
      first <- match(seq_len(size), group)
      same <- value == value[first[group]]
      if (all(same | is.na(value), na.rm = TRUE)) first
    }
    at <- one(donor, nlevels(obs$donor))
    if (!is.null(at)) obs[[name]] <- value[at[as.integer(obs$donor)]]
    else if (!is.null(at <- one(place[used], nrow(obs)))) obs[[name]] <- value[at]
    else if (is.null(covariates))
      notes <- c(notes, sprintf("column '%s' of the cells is left out: it %s", name,
                                if (plain) "varies within pairs" else "is no vector"))
    else fail("DataError", "covariates = names '", name, "', which ",
              if (plain) "varies within pairs of donor and cell type" else "is no vector")
    if (is.factor(obs[[name]])) obs[[name]] <- droplevels(obs[[name]])
  }
  list(obs = obs, notes = notes)
}

new_pseudobulk <- function(expr, nu, obs, notes, summary = NULL, genes = NULL, nu2 = NULL) {
  both <- list(rownames(expr) %||% paste0("gene", seq_len(nrow(expr))), rownames(obs))
  values <- lapply(Filter(Negate(is.null), list(expr = expr, nu = nu, nu2 = nu2)), `dimnames<-`, both)
  if (length(genes)) genes <- data.frame(genes, row.names = rownames(expr))
  structure(c(values, list(obs = obs, notes = notes, summary = summary, genes = genes)),
            class = "ctmm_pseudobulk")
}

# SingleCellExperiment of cells, or an aggregate with one assay for each cell type.
pseudobulk_experiment <- function(x, ..., assay = "logcounts", sem = NULL, min_cells = 10) {
  need_package("SummarizedExperiment")
  by <- x@metadata$agg_pars$by
  if (length(by) == 2L) {
    if (!missing(assay)) fail("CTMMError", "assay = is for experiments of cells, this is an aggregate")
    return(pseudobulk_aggregate(x, sem, min_cells, ...))
  }
  if (!is.null(sem)) fail("CTMMError", "sem = is for aggregates, this is an experiment of cells")
  assays <- SummarizedExperiment::assayNames(x)
  if (!assay %in% assays)
    fail("DataError", "the experiment has no assay '", assay, "' (assays: ", listing(assays), ")")
  cells <- as.data.frame(SummarizedExperiment::colData(x), optional = TRUE)
  pseudobulk_cells(SummarizedExperiment::assay(x, assay), cells, ..., min_cells = min_cells)
}

# Aggregates of muscat or dreamlet: means by cell type, and standard errors in `sem`.  Pairs without
# cells are filled with 0 there; here they are missing.
pseudobulk_aggregate <- function(x, sem, min_cells) {
  if (is.null(sem))
    fail("DataError", "an aggregate has means only; give their standard errors too: sem = ",
         "dreamlet::aggregateToPseudoBulk(..., fun = \"sem\") of the same cells, and means by fun = ",
         "\"mean\"")
  types <- SummarizedExperiment::assayNames(x)
  donors <- colnames(x)
  if (!identical(dimnames(x), dimnames(sem)) ||
      !setequal(types, SummarizedExperiment::assayNames(sem)))
    fail("DataError", "x and sem are aggregates of different genes, samples or cell types")
  counts <- aggregate_counts(x, types)
  grid <- function(of) {
    parts <- lapply(types, function(type) as.matrix(SummarizedExperiment::assay(of, type)))
    all <- array(unlist(parts), c(nrow(of), length(donors), length(types)))
    matrix(aperm(all, c(1L, 3L, 2L)), nrow(of), dimnames = list(rownames(of), NULL))
  }
  obs <- pair_table(donors, types, counts)
  columns <- as.data.frame(SummarizedExperiment::colData(x), optional = TRUE)
  for (name in setdiff(names(columns), names(obs)))
    obs[[name]] <- columns[[name]][as.integer(obs$donor)]
  expr <- grid(x)
  nu <- grid(sem)^2
  missing <- obs$n_cells <= max(min_cells, 1)
  expr[, missing] <- nu[, missing] <- NA_real_
  note <- if (any(missing)) sprintf(
    "%d of %d pairs of donor and cell type are missing, they have at most %g cells", sum(missing),
    length(missing), max(min_cells, 1))
  new_pseudobulk(expr, nu, obs, as.character(note))
}

# Numbers of cells, cell types x samples.
aggregate_counts <- function(x, types) {
  found <- x@int_colData$n_cells
  if (is.null(found)) found <- x@metadata$n_cells
  if (is.null(found))
    fail("DataError", "the aggregate does not say how many cells its means are of (int_colData n_cells)")
  if (is.list(found)) found <- vapply(found, function(n) {
    out <- named(as.double(n[types]), types)
    ifelse(is.na(out), 0, out)
  }, numeric(length(types)))
  if (!identical(rownames(found), types)) found <- found[types, , drop = FALSE]
  found
}

# dreamletProcessedData of aggregateNonCountSignal: expression and weights 1 / sem^2 by cell type.
pseudobulk_processed <- function(x) {
  types <- names(x)
  parts <- lapply(types, function(type) x[[type]])
  donors <- unique(unlist(lapply(parts, function(part) colnames(part$E))))
  genes <- unique(unlist(lapply(parts, function(part) rownames(part$E))))
  C <- length(types)
  expr <- nu <- matrix(NA_real_, length(genes), C * length(donors), dimnames = list(genes, NULL))
  for (k in seq_along(types)) {
    E <- as.matrix(parts[[k]]$E)
    at <- (match(colnames(E), donors) - 1L) * C + k
    expr[rownames(E), at] <- E
    nu[rownames(E), at] <- 1 / as.matrix(parts[[k]]$weights)
  }
  nu[!(is.finite(nu) & nu > 0)] <- NA_real_  # a weight without end: no cell, or all alike
  expr[is.na(nu)] <- NA_real_
  data <- as.data.frame(attr(x, "data"), optional = TRUE)
  obs <- pair_table(donors, types, matrix(1, C, length(donors)))
  obs$n_cells <- obs$proportion <- NULL
  for (name in setdiff(names(data), names(obs)))
    obs[[name]] <- data[donors, name][as.integer(obs$donor)]
  new_pseudobulk(expr, nu, obs, paste(
    "the weights are taken as 1 / (standard error)^2, as they are where they come from",
    "aggregateNonCountSignal; weights of voom hold other variance too"))
}

pseudobulk_seurat <- function(x, ..., assay = NULL, layer = "data") {
  need_package("SeuratObject")
  assay <- assay %||% SeuratObject::DefaultAssay(x)
  # version 5 has layers, version 4 slots
  get <- if (utils::packageVersion("SeuratObject") >= "5.0.0")
    getExportedValue("SeuratObject", "LayerData") else SeuratObject::GetAssayData
  args <- if (utils::packageVersion("SeuratObject") >= "5.0.0")
    list(x, layer = layer, assay = assay) else list(x, slot = layer, assay = assay)
  pseudobulk_cells(do.call(get, args), x[[]], ...)
}

#' @rdname ctmm_pseudobulk
#' @export
as.data.frame.ctmm_pseudobulk <- function(x, row.names = NULL, optional = FALSE, gene, ...) {
  no_more(..., passed = TABLED)
  if (missing(gene) || length(gene) != 1L || !gene %in% rownames(x$expr))
    fail("DataError", "gene = must name one gene, such as ",
         listing(utils::head(rownames(x$expr), 3L)))
  taken <- intersect(c("expr", "nu", "nu2"), names(x$obs))
  if (length(taken))
    fail("DataError", "the pairs have a column '", taken[1L], "' of their own: rename it in obs")
  out <- gene_table(x, gene, "expr")
  if (gene %in% names(out) && gene != "expr")
    warn("'", gene, "' is also a column of the pairs, which stays: the gene's expression is the column ",
         "'expr'")
  else out[[gene]] <- out$expr
  if (!is.null(row.names)) rownames(out) <- row.names
  out
}

# The gene that is the response of a formula.
gene_of <- function(formula, data) {
  gene <- if (length(formula) == 3L) intersect(all.vars(formula[[2L]]), rownames(data$expr))
  if (length(gene) == 1L) return(gene)
  fail("DataError", "the response must name one gene of the pseudobulk, such as ",
       listing(utils::head(rownames(data$expr), 3L)))
}

# The table of the gene that is a formula's response.
gene_data <- function(x, formula) {
  x <- as_pseudobulk(x)
  gene_table(x, gene_of(formula, x))
}

# The pairs with one gene's expression in a column of its name; its noise takes names that are free.
gene_table <- function(x, gene, name = gene) {
  out <- x$obs
  roles <- list(donor = "donor", celltype = "celltype")
  out[[name]] <- x$expr[gene, ]
  for (own in intersect(c("nu", "nu2"), names(x))) {
    free <- own
    while (free %in% names(out)) free <- paste0(".", free)
    out[[free]] <- x[[own]][gene, ]
    roles[[if (own == "nu") "noise" else own]] <- free
  }
  attr(out, "ctmm_roles") <- Filter(function(column) column %in% names(out), roles)
  attr(out, "ctmm_scale") <- scale_out(x, gene)
  out
}

# A gene may have the name of a column of the pairs, as long as nothing asks for that column.
check_gene <- function(gene, spec, roles) {
  used <- c(unlist(roles), unlist(lapply(spec$random, `[[`, "groups")), all.vars(spec$fixed[[3L]]))
  if (length(gene) && gene %in% used)
    fail("DataError", "'", gene, "' is the gene and also a column of the pairs that the model asks for: ",
         "rename that column of obs")
}

is_pseudobulk <- function(x) inherits(x, "ctmm_pseudobulk") || inherits(x, "SummarizedExperiment")

# An experiment whose columns are pairs of donor and cell type.
as_pseudobulk <- function(x) {
  if (inherits(x, "ctmm_pseudobulk")) return(x)
  need_package("SummarizedExperiment")
  assays <- SummarizedExperiment::assayNames(x)
  if (!all(c("expr", "nu") %in% assays))
    fail("DataError", "an experiment as data needs the assays 'expr', means of each donor and cell ",
         "type, and 'nu', their noise variances (it has ", listing(assays %||% "none"),
         "): ctmm_pseudobulk() makes them of cells")
  value <- function(name)
    if (name %in% assays) as_matrix(SummarizedExperiment::assay(x, name), name)
  new_pseudobulk(value("expr"), value("nu"), as_table(SummarizedExperiment::colData(x)), character(),
                 nu2 = value("nu2"))
}

#' @rdname ctmm_pseudobulk
#' @export
`[.ctmm_pseudobulk` <- function(x, i, j, ..., drop = FALSE) {
  no_more(...)
  if (nargs() - (!missing(drop)) < 3L)
    fail("DataError", "a pseudobulk is cut by genes and pairs, x[genes, ] or x[, pairs]; x$expr, x$nu ",
         "and x$obs are its parts")
  if (!isFALSE(drop)) fail("DataError", "a pseudobulk stays one: drop = FALSE")
  if (missing(i)) i <- TRUE
  if (missing(j)) j <- TRUE
  cut <- function(m) tryCatch(m[i, j, drop = FALSE], error = function(e)
    fail("DataError", "there is no such gene or pair: ", conditionMessage(e)))
  for (name in intersect(c("expr", "nu", "nu2"), names(x))) x[[name]] <- cut(x[[name]])
  x$obs <- x$obs[colnames(x$expr), , drop = FALSE]
  if (!is.null(x$genes)) x$genes <- x$genes[rownames(x$expr), , drop = FALSE]
  x
}

# What the request of a fit says of the scale of its gene.
scale_out <- function(x, gene) {
  if (is.null(x$summary)) return(NULL)
  c(list(summary = x$summary), as.list(x$genes[gene, , drop = FALSE]))
}

#' @export
dim.ctmm_pseudobulk <- function(x) dim(x$expr)

#' @export
dimnames.ctmm_pseudobulk <- function(x) dimnames(x$expr)

#' @export
print.ctmm_pseudobulk <- function(x, ...) {
  no_more(...)
  cat(sprintf("Pseudobulk: %d genes, %d donors x %d cell types (%d pairs are missing)\n", nrow(x$expr),
              nlevels(x$obs$donor), nlevels(x$obs$celltype),
              sum(colSums(!is.na(x$expr)) == 0)))
  cat("Columns:", paste(names(x$obs), collapse = ", "), "\n")
  for (note in x$notes) cat(strwrap(paste("Note:", note), exdent = 2L), sep = "\n")
  invisible(x)
}
