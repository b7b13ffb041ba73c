"""Limits that several workers have together, as each of them keeps its part. No I/O."""
