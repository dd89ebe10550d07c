"""From cells to pseudobulk, and its way to a fit: filters, standardisation, tables."""
