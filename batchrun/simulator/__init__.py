"""A server that answers as the Responses API does, with faults on request; see `server`."""
