"""Type names, checks, files, processes and devices, which every other subpackage uses."""
