"""What a run will cost before it is sent; the entry point is `estimates`."""
