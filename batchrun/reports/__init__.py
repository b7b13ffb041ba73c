"""The results of runs: report, cost, export, one row. They only read."""
