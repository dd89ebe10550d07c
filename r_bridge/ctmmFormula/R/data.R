# The example data, of `ctmm_formula.load_example()`.

#' A Simulated Gene of 72 Donors and 4 Cell Types
#'
#' Pseudobulk of one gene, simulated in the likeness of a differentiation experiment with induced
#' pluripotent stem cells. \code{pseudobulk} has one row per donor and cell type (275 of 288 pairs),
#' \code{overall_pseudobulk} one row per donor.
#'
#' @format Data frames with columns
#' \describe{
#' \item{donor}{72 donors}
#' \item{celltype}{day0, day1, day2, day3 (\code{pseudobulk})}
#' \item{batch}{24 batches, each donor in one}
#' \item{sex}{F, M}
#' \item{PC1, PC2, PC3, PC4, PC5, PC6}{covariates of the donor}
#' \item{prop_day0, prop_day1, prop_day2, prop_day3}{proportions (\code{overall_pseudobulk})}
#' \item{n_cells}{number of cells}
#' \item{expr}{mean expression of the cells}
#' \item{nu}{noise variance: squared standard error of that mean}
#' }
#' @source Simulated.
#' @examples
#' str(pseudobulk)
#' @rdname pseudobulk
"pseudobulk"

#' @rdname pseudobulk
#' @format NULL
"overall_pseudobulk"
