"""Limits that several workers have together: the part of each worker. No I/O."""
