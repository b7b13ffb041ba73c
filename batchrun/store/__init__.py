"""A run directory: what was asked, and each outcome kept; `run_dir.py` is the door."""
