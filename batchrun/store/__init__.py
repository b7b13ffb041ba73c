"""A run directory: what was asked, and each outcome stored; the entry point is `run_dir`."""
