"""Files to requests. The door is `read`."""
