# Rscript bench_r.R FOLDER genes TESTS THREADS: seconds of ctmm_genes on what bench_r.py wrote.
# Rscript bench_r.R FOLDER memory CALLS...: RSS of the R process after so many calls, MB.
suppressMessages(library(ctmmFormula))
given <- commandArgs(TRUE)
folder <- given[1L]
read <- function(name) {
  size <- scan(file.path(folder, "size.txt"), quiet = TRUE)
  matrix(readBin(file.path(folder, name), "double", prod(size), endian = "little"), size[1L],
         dimnames = list(sprintf("gene%04d", seq_len(size[1L])), NULL))
}
obs <- read.csv(file.path(folder, "obs.csv"), stringsAsFactors = TRUE)
expr <- read("expr.bin")
nu <- read("nu.bin")
genes <- function(rows, tests, threads = 1) suppressWarnings(ctmm_genes(
  ~ celltype + sex + PC1, data = obs, expr = expr[rows, ], nu = nu[rows, ], random = ~ batch,
  tests = tests, threads = threads))
if (given[2L] == "genes") {
  tests <- setdiff(strsplit(given[3L], ",")[[1L]], "none")
  threads <- as.integer(given[4L])
  invisible(genes(1:20, tests, threads))  # starts Python, loads what was compiled
  took <- system.time(found <- genes(seq_len(nrow(expr)), tests, threads))
  cat(sprintf("%.9g", c(took[["elapsed"]], sum(took[c("user.self", "sys.self")]),
                        sum(found$hom, na.rm = TRUE))), "\n")
} else {
  rss <- function() {
    gc(full = TRUE)
    line <- grep("^VmRSS", readLines("/proc/self/status"), value = TRUE)
    as.numeric(gsub("[^0-9]", "", line)) / 1024
  }
  one <- function() ctmm(expr ~ celltype + sex + PC1, random = ~ batch, data = pseudobulk)
  calls <- as.integer(given[-(1:2)])
  for (work in list(one, function() genes(1:20, c("score", "mean"))))
    for (k in seq_len(max(calls))) {
      work()
      if (k %in% calls) cat(k, rss(), "\n")
    }
}
