"""Pictures of fits and scans: matplotlib Axes in and out, nothing shown, nothing written."""
