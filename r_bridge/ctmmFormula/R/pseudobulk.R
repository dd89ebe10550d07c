#' Aggregate Cells to Donors and Cell Types
#'
#' Means of the cells of each donor and cell type, their noise variances (sample variance over number of
#' cells) and numbers of cells. Pairs with too few cells are missing, never zero. This needs no Python.
#'
#' @param x one of
#' \itemize{
#' \item a matrix of genes (rows) by cells (columns), dense or sparse (\code{dgCMatrix}), with the
#' logarithms of expression, and \code{cells}, the table of the cells;
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
#' @param row.names,optional not used.
#' @param gene name of one gene.
#' @return
#' An object of class \code{"ctmm_pseudobulk"}: a list of \code{expr}, \code{nu} and, from cells,
#' \code{nu2} (unbiased estimates of the squares of the noise variances), genes by pairs;
#' \code{obs}, the table of pairs with \code{donor}, \code{celltype}, \code{n_cells}, \code{proportion}
#' and covariates; \code{notes} on what was left out; \code{summary}; \code{genes}, what is known of
#' each gene on this scale: \code{level_ratio}, the largest over the smallest share by which a common
#' factor moves cell types on log1p, or \code{min_counts}, counts of a pair in the cell type with the
#' fewest, and \code{few_counts}, too few for a logarithm. \code{\link{ctmm}} and \code{\link{ctmm_genes}}
#' take it as \code{data}; \code{as.data.frame} gives the table of one gene.
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
  if (summary == "log_mean") normalize <- normalize %||% "log_cp10k"
  if (missing(cells)) fail("DataError", "cells = must be the table of the cells, one row each")
  cells <- as_table(cells)
  x <- cell_matrix(x)
  if (ncol(x) != nrow(cells))
    fail("DataError", sprintf("x has %d cells in columns, the table of cells %d rows%s", ncol(x),
                              nrow(cells), if (nrow(x) == nrow(cells)) ": transpose x" else ""))
  if (!is.null(colnames(x)) && !is.null(attr(cells, "row.names")) && is.character(attr(cells, "row.names")) &&
      !identical(colnames(x), rownames(cells)))
    fail("DataError", "columns of x and rows of the table of cells have different names, or another ",
         "order: cells[colnames(x), ]")
  pairs <- find_pairs(cells, donor, celltype, min_cells, min_cells_donor, min_donor_share)
  library_size <- if (is_sparse(x)) Matrix::colSums(x) else colSums(x)
  if (!is.null(normalize)) x <- normalized(x, normalize, library_size, summary == "mean")
  judge_values(x, normalize, pairs$place)
  place <- pairs$place
  place[!pairs$observed[place]] <- NA
  moments <- pair_moments(x, place, length(pairs$observed))
  n <- as.vector(pairs$n_cells)
  nu <- sweep(moments$squares, 2L, ifelse(pairs$observed, n * pmax(n - 1, 1), NA), `/`)
  nu2 <- square_noise(moments, ifelse(pairs$observed & n > 3, n, NA))
  mean <- moments$mean
  mean[, !pairs$observed] <- NA_real_
  obs <- pair_table(pairs$donors, pairs$celltypes, t(pairs$counts))
  kept <- constant_columns(cells, pairs$place, obs, c(donor, celltype), covariates)
  by_type <- function(values)
    vapply(split(seq_along(n), obs$celltype), function(at)
      rowMeans(values[, at, drop = FALSE], na.rm = TRUE), numeric(nrow(values)))
  if (summary == "mean") {
    ratio <- level_ratio(matrix(by_type(mean), nrow(mean)))
    return(new_pseudobulk(mean, nu, kept$obs, c(pairs$notes, kept$notes, level_notes(ratio)),
                          summary, list(level_ratio = ratio), nu2))
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
                 c(pairs$notes, kept$notes, none, few_counts_note(genes$few_counts)), summary, genes,
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

level_ratio <- function(means) {
  share <- -expm1(-means)
  low <- apply(share, 1L, min, na.rm = TRUE)
  ifelse(low > 0 & is.finite(low), apply(share, 1L, max, na.rm = TRUE) / low, NA)
}

level_notes <- function(ratio) {
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

cell_matrix <- function(x) {
  if (inherits(x, "dgCMatrix")) return(x)
  if (is.data.frame(x)) x <- as.matrix(x)
  if (isS4(x)) {
    if (!requireNamespace("Matrix", quietly = TRUE))
      fail("DataError", "a sparse matrix needs the package Matrix")
    return(methods_as(x, "CsparseMatrix"))
  }
  if (!is.matrix(x) || !is.numeric(x))
    fail("DataError", "x must be a numeric matrix of genes (rows) by cells (columns), got ", class(x)[1L])
  x
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

# Values that no logarithm of expression can be.
judge_values <- function(x, normalize, place) {
  values <- if (is_sparse(x)) x@x else x
  if (any(!is.finite(values)))
    fail("DataError", "expression is missing or not finite: leave such cells or genes out")
  if (any(values < 0))
    fail("DataError", "expression is negative: scaled data? Take the logarithms before scaling")
  if (is.null(normalize) && length(values) && max(values) > 1 && all(values == round(values)))
    warning(condition(paste0(
      "all values are whole numbers (the largest is ", format(max(values)), "): raw counts? The ",
      "model is for logarithms: normalize = \"log_cp10k\" makes them"),
      c("ctmm_CTMMWarning", "ctmm_warning"), "warning"))
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
  names <- covariates %||% setdiff(names(cells), c(roles, names(obs)))
  C <- nlevels(obs$celltype)
  used <- which(!is.na(place))
  donor <- (place[used] - 1L) %/% C + 1L
  for (name in names) {
    if (!name %in% names(cells)) no_column(name, "proportions", cells)
    value <- cells[[name]][used]
    if (is.list(value) || is.matrix(value)) next
    one <- function(group, size) {
      first <- match(seq_len(size), group)
      same <- value == value[first[group]]
      if (all(same | is.na(value), na.rm = TRUE)) first
    }
    at <- one(donor, nlevels(obs$donor))
    if (!is.null(at)) obs[[name]] <- value[at[as.integer(obs$donor)]]
    else if (!is.null(at <- one(place[used], nrow(obs)))) obs[[name]] <- value[at]
    else notes <- c(notes, sprintf("column '%s' of the cells is left out: it varies within pairs", name))
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
  if (!requireNamespace("SummarizedExperiment", quietly = TRUE))
    fail("DataError", "this needs the package SummarizedExperiment")
  by <- x@metadata$agg_pars$by
  if (length(by) == 2L) return(pseudobulk_aggregate(x, sem, min_cells))
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
pseudobulk_processed <- function(x, min_cells = 10) {
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
  if (!requireNamespace("SeuratObject", quietly = TRUE))
    fail("DataError", "this needs the package SeuratObject")
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
  if (missing(gene) || length(gene) != 1L || !gene %in% rownames(x$expr))
    fail("DataError", "gene = must name one gene, such as ",
         listing(utils::head(rownames(x$expr), 3L)))
  out <- x$obs
  nu <- x$nu[gene, , drop = FALSE]
  out$expr <- x$expr[gene, ]
  out$nu <- drop(nu)
  if (!is.null(x$nu2)) out$nu2 <- x$nu2[gene, ]
  if (gene != "expr" && !gene %in% names(out)) out[[gene]] <- out$expr
  attr(out, "ctmm_roles") <- list(donor = "donor", celltype = "celltype", noise = "nu")
  attr(out, "ctmm_scale") <- scale_out(x, gene)
  out
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
  cat(sprintf("Pseudobulk: %d genes, %d donors x %d cell types (%d pairs are missing)\n", nrow(x$expr),
              nlevels(x$obs$donor), nlevels(x$obs$celltype),
              sum(colSums(!is.na(x$expr)) == 0)))
  cat("Columns:", paste(names(x$obs), collapse = ", "), "\n")
  for (note in x$notes) cat(strwrap(paste("Note:", note), exdent = 2L), sep = "\n")
  invisible(x)
}
