"""One script per arrow: flags -> one library call. Run as ``python -m experiments.<name>``."""
