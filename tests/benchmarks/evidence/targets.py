"""What the pages say of the published targets and of the differences."""

TEXTS: dict[str, list[str]] = {}
