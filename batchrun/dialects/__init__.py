"""Request bodies, answers and streams of an API. No I/O."""
