"""When a request may start: concurrency, rates, pauses, budget. No I/O; the time is an argument."""
