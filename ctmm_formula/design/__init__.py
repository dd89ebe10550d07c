"""From a formula and a table to labelled arrays."""
