"""What an error is, and what follows from it. No I/O."""
