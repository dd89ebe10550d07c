"""All genes: one design, many responses."""
