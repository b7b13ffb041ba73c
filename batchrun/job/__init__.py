"""What is asked for: a job file and options, read, checked, frozen."""
