"""HTTP: bytes out, a `Reply` or an `EndpointError` back. The entry point is `client`."""
