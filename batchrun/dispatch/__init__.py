"""One request to its outcome. The door is `attempts`; `gate` is the only place that waits."""
