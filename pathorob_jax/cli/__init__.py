"""The command line: how scripts start, and ``pathorob-jax``, which calls them."""
