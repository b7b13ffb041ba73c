"""Scorers and statistics: functions on plain values, without I/O."""
