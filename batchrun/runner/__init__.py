"""One run from its start to its end. The entry point is `runner`."""
