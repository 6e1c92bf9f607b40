"""Command-line scripts: each turns flags into one library call.

Run them as ``python -m experiments.<name>``.
"""
