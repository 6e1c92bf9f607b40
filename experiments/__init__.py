"""Command-line scripts: each turns flags into one library call.

Run them as ``python -m experiments.<name>`` from a clone, or as ``pathorob-jax <command>``.
"""

from pathorob_jax.cli import interruption

interruption.watch_script()
