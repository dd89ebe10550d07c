#' Generics of Other Packages
#'
#' Generics that come along with this package. See \code{\link[nlme]{fixef}}, \code{\link[nlme]{ranef}},
#' \code{\link[nlme]{VarCorr}} in \pkg{nlme} and \code{\link[generics]{tidy}},
#' \code{\link[generics]{glance}}, \code{\link[generics]{augment}} in \pkg{generics}; methods for fits
#' are in \code{\link{ctmm-methods}} and \code{\link{ctmm-tidiers}}.
#'
#' @keywords internal
#' @name reexports
#' @aliases fixef ranef VarCorr tidy glance augment
#' @importFrom nlme fixef ranef VarCorr
#' @importFrom generics tidy glance augment
#' @export fixef
#' @export ranef
#' @export VarCorr
#' @export tidy
#' @export glance
#' @export augment
NULL
