"""From names of encoders and datasets to a report: what there is, what is left, and doing it."""
