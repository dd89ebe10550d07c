# Rscript r_bridge/knit.R [FOLDER]: the vignette with output and pictures, as ctmm-in-r.md there (or
# here).
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
