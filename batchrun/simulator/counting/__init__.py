"""What the input of a request is billed as."""
