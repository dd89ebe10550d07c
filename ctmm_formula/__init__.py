"""ctmm_formula: expression variance between donors, cell type by cell type."""
