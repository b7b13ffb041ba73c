"""One request to its outcome. The entry point is `dispatcher`; only `gate` waits."""
