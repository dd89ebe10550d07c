# Rscript r_bridge/knit.R: the vignette with output and pictures, as ctmm-in-r.md.
here <- dirname(normalizePath(sub("^--file=", "", grep("^--file=", commandArgs(FALSE), value = TRUE))))
setwd(here)
knitr::opts_knit$set(base.dir = paste0(here, "/"))
knitr::opts_chunk$set(fig.path = "ctmm-in-r_files/", dpi = 80, dev = "png")
knitr::knit("ctmmFormula/vignettes/ctmm.Rmd", "ctmm-in-r.md", quiet = TRUE, envir = new.env())
lines <- readLines("ctmm-in-r.md")
body <- lines[-seq_len(which(lines == "---")[2L])]
writeLines(sub("[ \t]+$", "", c("# CTMM in R", "", body[cumsum(nzchar(body)) > 0])), "ctmm-in-r.md")
