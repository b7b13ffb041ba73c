"""Whether an answer is asked for once more, and how. Pure."""

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from batchrun.job import RetryJob
from batchrun.records import Request, Response

MOST_RAISES = 2


class Asks(Struct, frozen=True):
    """How often a row was asked again, and why."""

    for_length: int = 0
    for_fit: int = 0


def next_ask(
    asked: Request, answer: Response, asks: Asks, settings: RetryJob
) -> tuple[Request, Asks] | None:
    """The request to send instead, or null where the answer stands.

    A truncated answer is asked for with twice the limit, at most twice; one that does not fit its
    schema is asked for as it was. The request keeps its identity: only its body is another.
    """
    if answer.truncated:
        if settings.on_incomplete != "raise_limit" or asks.for_length >= MOST_RAISES:
            return None
        limit = asked.max_output_tokens or answer.usage.output_tokens
        if not limit:
            return None
        raised = replace(asks, for_length=asks.for_length + 1)
        return with_limit(asked, 2 * limit), raised
    if answer.output_parsed_ok is False and asks.for_fit < settings.on_invalid_output:
        return asked, replace(asks, for_fit=asks.for_fit + 1)
    return None


def with_limit(request: Request, limit: int) -> Request:
    """The request with another `max_output_tokens`; it keeps its identity."""
    fields = msgspec.json.decode(request.body, type=dict[str, Raw])
    fields["max_output_tokens"] = Raw(str(limit).encode())
    return replace(request, body=msgspec.json.encode(fields), max_output_tokens=limit)
