"""Names, checks, files, processes and devices that every other wing uses."""
