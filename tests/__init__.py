"""A package, because torchstain's wheel installs a package ``tests`` that would hide it."""
