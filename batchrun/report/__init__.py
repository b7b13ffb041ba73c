"""What came of a run. `summary` counts, `terminal` shows; neither changes anything."""
