"""The results object: labels and accessors over the floors below."""
