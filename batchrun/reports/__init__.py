"""The results of runs: report, cost, export, one row. Changes nothing."""
