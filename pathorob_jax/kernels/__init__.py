"""Arrays in, arrays out: jitted, bounded in memory, without I/O and without pathology."""
