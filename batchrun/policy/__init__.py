"""When, whether, how much: pure decisions. Rooms stand on their own; no door."""
