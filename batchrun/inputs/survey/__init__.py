"""What one full pass over a source finds: its columns, problems and requests."""
