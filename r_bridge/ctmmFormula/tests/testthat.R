library(testthat)
library(ctmmFormula)

test_check("ctmmFormula")
