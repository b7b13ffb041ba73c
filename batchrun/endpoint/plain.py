"""Plain and stream mode: one exchange a request."""

from batchrun.endpoint.exchange import exchange
from batchrun.endpoint.wire import Wire
from batchrun.records import Reply, Request


async def send_plain(wire: Wire, request: Request) -> Reply:
    """The whole answer. Raises `EndpointError`."""
    return await exchange(wire, "POST", wire.url, with_fields(request.body, b'"stream":false'))


def with_fields(body: bytes, fields: bytes) -> bytes:
    """The body as meant, with transport fields. Some servers stream when `stream` is absent."""
    return b"%b%b%b}" % (body[:-1], b"," if len(body) > 2 else b"", fields)
