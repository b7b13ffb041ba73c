"""The wire: bytes out, a `Reply` or an `EndpointError` back. The door is `client`."""
