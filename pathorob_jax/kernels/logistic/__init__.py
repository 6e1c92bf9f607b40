"""Many L2-regularised logistic regressions at once."""
