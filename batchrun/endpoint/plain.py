"""Plain and stream mode: one exchange a request."""

from collections.abc import Coroutine
from typing import Any

from batchrun.endpoint.exchange import exchange
from batchrun.endpoint.wire import Wire
from batchrun.records import Reply, Request


def send_plain(wire: Wire, request: Request, client_request_id: str) -> Coroutine[Any, Any, Reply]:
    """The whole answer. Raises `EndpointError`."""
    body = with_fields(request.body, b'"stream":false')
    return exchange(wire, "POST", wire.url, body, client_request_id)


def send_stream(wire: Wire, request: Request, client_request_id: str) -> Coroutine[Any, Any, Reply]:
    """The answer that the stream's events carry. Raises `EndpointError`."""
    body = with_fields(request.body, b'"stream":true')
    return exchange(wire, "POST", wire.url, body, client_request_id)


def with_fields(body: bytes, fields: bytes) -> bytes:
    """The body as meant, with transport fields. Some servers stream when `stream` is absent."""
    return b"%b%b%b}" % (body[:-1], b"," if len(body) > 2 else b"", fields)
