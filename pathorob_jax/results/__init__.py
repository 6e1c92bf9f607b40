"""Records of results, as files, tables and comparisons."""
