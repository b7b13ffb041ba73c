"""The HTML page of a report: one file with charts, no script, no network."""
