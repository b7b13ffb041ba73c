"""Several writers in one run directory: what a worker writes, and how a dead one is adopted."""
