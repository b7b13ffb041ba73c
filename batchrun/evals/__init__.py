"""Eval runs: answers scored, measured, compared and imported."""
