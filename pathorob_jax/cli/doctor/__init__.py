"""Whether this machine can do the work: one finding per thing that the work needs."""
