"""A server that answers as the Responses API does, and fails as told; the door is `server`."""
