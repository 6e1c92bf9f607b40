"""Bootstrap over whole groups of rows, and percentile intervals from its draws."""
