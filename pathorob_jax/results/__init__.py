"""Records of what was measured, as files, tables and comparisons."""
