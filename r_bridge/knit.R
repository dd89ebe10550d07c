# Rscript r_bridge/knit.R [FOLDER]: the vignette with output and pictures, as ctmm-in-r.md there (or
# here), and as the page and its index that R CMD INSTALL takes from the source, for vignette("ctmm").
here <- dirname(normalizePath(sub("^--file=", "", grep("^--file=", commandArgs(FALSE), value = TRUE))))
to <- c(commandArgs(TRUE), here)[1L]
setwd(to)
stopifnot("Python must be ready: ctmm_check()" = !nzchar(ctmmFormula::ctmm_check()$problem))
knitr::opts_knit$set(base.dir = paste0(normalizePath(to), "/"))
knitr::opts_chunk$set(fig.path = "ctmm-in-r_files/", dpi = 80, dev = "png")
file <- knitr::knit(file.path(here, "ctmmFormula", "vignettes", "ctmm.Rmd"), "ctmm-in-r.md",
                    quiet = TRUE, envir = new.env())
lines <- readLines(file)
body <- lines[-seq_len(which(lines == "---")[2L])]
writeLines(sub("[ \t]+$", "", c("# CTMM in R", "", body[cumsum(nzchar(body)) > 0])), file)

package <- file.path(to, "ctmmFormula")
for (folder in file.path(package, c("inst/doc", "build"))) dir.create(folder, FALSE, TRUE)
rmarkdown::pandoc_convert(
  normalizePath(file), from = "markdown", to = "html", wd = normalizePath(to),
  output = file.path(normalizePath(package), "inst", "doc", "ctmm.html"),
  options = c("--standalone", "--self-contained", "--mathml", "--metadata", "pagetitle=CTMM in R"))
index <- data.frame(File = "ctmm.Rmd", Title = "CTMM in R", PDF = "ctmm.html", R = "")
index$Depends <- index$Keywords <- list(character())
saveRDS(index, file.path(package, "build", "vignette.rds"), version = 2)
