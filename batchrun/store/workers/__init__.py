"""Several writers in one run directory: a worker's side, and what becomes of a dead worker's."""
