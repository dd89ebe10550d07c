# Numbers as bytes: every reticulate carries them to every numpy.

f8 <- function(x) {
  list(dtype = "f8", shape = shape(x), data = writeBin(as.double(x), raw(), endian = "little"))
}

i4 <- function(x) {
  if (anyNA(x)) stop("a code is missing")
  list(dtype = "i4", shape = shape(x), data = writeBin(as.integer(x), raw(), endian = "little"))
}

shape <- function(x) as.list(as.integer(dim(x) %||% length(x)))

# A factor without missing values, codes from 0.
coded <- function(name, f) {
  list(name = name, codes = i4(as.integer(f) - 1L), levels = as.list(levels(f)))
}

array_in <- function(x) {
  size <- as.integer(unlist(x$shape))
  data <- as.raw(x$data)
  out <- if (x$dtype == "i4") readBin(data, "integer", prod(size), 4L, endian = "little")
         else readBin(data, "double", prod(size), 8L, endian = "little")
  if (length(size) > 1L) array(out, size) else out
}

table_in <- function(x) {
  data.frame(lapply(x$columns, array_in), row.names = text(x$index), check.names = FALSE)
}

text <- function(x) as.character(unlist(x))

named <- function(x, names) stats::setNames(x, names)

square <- function(x, names) {
  out <- array_in(x)
  dim(out) <- rep(length(names), 2L)
  dimnames(out) <- list(names, names)
  out
}
