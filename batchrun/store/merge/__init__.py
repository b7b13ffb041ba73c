"""Outcomes of the same rows from two machines, brought together."""
