"""Files to requests. The entry point is `prompt_set`."""
