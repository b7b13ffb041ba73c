"""How one attempt ended: understood, timed and priced. What follows is decided elsewhere."""

import math

from msgspec import Struct
from msgspec.structs import replace

from batchrun.dialects.output_items import count_searches
from batchrun.dialects.responses import Unreadable, parse_response
from batchrun.errors import EndpointError, ErrorKind
from batchrun.pricing.prices import Prices, tier_of
from batchrun.records import (
    Attempt,
    Failure,
    Finish,
    Reply,
    Request,
    Response,
    UnreadableBody,
)
from batchrun.retry.error_kinds import (
    NO_WORDS,
    ErrorBody,
    OwnWords,
    classify,
    hint_in,
    kind_of,
    names_row,
    own_kind,
    parse_error,
)
from batchrun.retry.next_step import FACTS, endpoint_error

_SLOW_DOWN = "slow_down"


class AttemptResult(Struct, frozen=True, gc=False):
    """One attempt, ended."""

    result: Response | Failure
    failure: Failure | None  # the result, or why the response has failed
    attempt: Attempt
    reply: Reply | None = None
    priced_as: str | None = None
    unreadable: UnreadableBody | None = None  # what it brought, though it was paid for

    @property
    def hint_s(self) -> float | None:
        """How long the server asks to wait, in a header or in words."""
        if self.reply is not None and self.reply.retry_after_s is not None:
            return self.reply.retry_after_s
        return None if self.failure is None else hint_in(self.failure.message)

    def finish(self, row: int = -1, failing_since_s: float = math.inf) -> Finish:
        """What the limits are to know of the attempt; where it failed, of its row too."""
        attempt, failure, reply = self.attempt, self.failure, self.reply
        tokens: int | None = None
        output_tokens: int | None = None
        if isinstance(self.result, Response):
            usage = self.result.usage
            tokens, output_tokens = usage.total_tokens, usage.output_tokens
            if tokens is None and usage.input_tokens is not None:
                tokens = usage.input_tokens + (usage.output_tokens or 0)
        elif attempt.cost_usd == 0:  # refused: nothing was used up
            tokens = 0
        is_retry, advertised = attempt.kind == "retry", reply.advertised if reply else ()
        if failure is None:
            return Finish(
                is_retry=is_retry,
                advertised=advertised,
                tokens=tokens,
                dollars=attempt.cost_usd,
                output_tokens=output_tokens,
            )
        return Finish(
            kind=failure.kind,
            answered=reply is not None,
            is_retry=is_retry,
            hint_s=self.hint_s,
            slow_down=failure.code == _SLOW_DOWN,
            error=f"{failure.message} ({origin(failure)})",
            endpoint_error=endpoint_error(failure),
            row=row,
            failing_since_s=failing_since_s,
            advertised=advertised,
            tokens=tokens,
            dollars=attempt.cost_usd,
            output_tokens=output_tokens,
            is_begun=attempt.response_id is not None,
        )


def attempt_result(
    end: Reply | EndpointError,
    request: Request,
    begun: Attempt,
    latency_s: float,
    via: str,
    prices: Prices,
    words: OwnWords = NO_WORDS,
) -> AttemptResult:
    """The result of the attempt that `begun` describes so far and that ended with `end`.

    `words`: the job's own, of `[retry.words]`.
    """
    reply: Reply | None = None
    response_id: str | None = None
    was_sent = True
    result: Response | Failure
    if isinstance(end, Reply):
        reply, result, response_id = end, read_reply(end, request, words), end.response_id
    else:
        result = Failure(end.kind, end.message, http_status=end.http_status)
        response_id, was_sent = end.response_id, end.was_sent
    if isinstance(result, Failure):
        said = _said(end.said, request, result) if end.said else None
        # What a stream has said may be billed, whatever comes after it, and so may work that had
        # begun in background.
        is_free = not was_sent or FACTS[result.kind].is_free
        is_free = is_free and said is None and response_id is None
        attempt = replace(
            begun,
            latency_s=latency_s,
            http_status=result.http_status,
            error_kind=result.kind,
            error_message=result.message,
            request_id=end.request_id,
            response_id=response_id if said is None else said.id,
            cost_usd=0.0 if is_free else None,
        )
        priced_as = None
        if said is not None:
            price = prices.find(request.model, said.model, begun.started_at, None)
            priced_as = price.priced_as if price else None
        unreadable = _unreadable(end, result, request, attempt)
        return AttemptResult(said or result, result, attempt, reply, priced_as, unreadable)
    failure, usage = result.failure, result.usage
    tier = tier_of(result.service_tier, via)
    price = prices.find(request.model, result.model, begun.started_at, tier)
    calls = [(call.type, call.status, call.item) for call in result.tool_calls]
    attempt = Attempt(
        started_at=begun.started_at,
        latency_s=latency_s,
        kind=begun.kind,
        http_status=reply.http_status if reply else None,
        error_kind=failure.kind if failure else None,
        error_message=failure.message if failure else None,
        request_id=reply.request_id if reply else None,
        client_request_id=begun.client_request_id,
        response_id=result.id or response_id,
        input_tokens=usage.input_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        cost_usd=(
            None if price is None else price.cost(usage, count_searches(result.usage_json, calls))
        ),
    )
    return AttemptResult(result, failure, attempt, reply, price.priced_as if price else None)


def _unreadable(
    end: Reply | EndpointError, failure: Failure, request: Request, attempt: Attempt
) -> UnreadableBody | None:
    """The body of a paid answer that is no response; null where there is nothing to store."""
    is_paid = 200 <= (failure.http_status or 0) < 300 and not FACTS[failure.kind].is_free
    is_error = isinstance(end, Reply) and failure.kind is not ErrorKind.UNREADABLE  # it was read
    if not is_paid or is_error or not end.body.strip():
        return None
    return UnreadableBody(
        request.key,
        attempt.client_request_id,
        attempt.started_at,
        failure.http_status,
        end.content_type,
        end.body,
    )


def _said(body: bytes, request: Request, failure: Failure) -> Response | None:
    """What a stream said before it failed, as far as it can be read: no answer, whatever it is."""
    said = parse_response(body, request)
    if not isinstance(said, Response):
        return None
    return replace(
        said, status="no_answer", truncated=False, failure=failure, output_parsed_ok=None
    )


def read_reply(reply: Reply, request: Request, words: OwnWords = NO_WORDS) -> Response | Failure:
    """A whole answer, understood, and its error classified."""
    status = reply.http_status
    answer: Response | ErrorBody | Unreadable
    if 200 <= status < 300:
        answer = parse_response(reply.body, request, reply.reported_cost_usd)
    else:
        answer = parse_error(reply.body)
    if isinstance(answer, Response):
        failure = answer.failure
        if failure is None:
            return answer
        kind = failure.kind
        if kind is not ErrorKind.CANCELLED:
            said = classify(status, failure.code, None, failure.message, asked=request, words=words)
            kind = kind if said is ErrorKind.SERVER_ERROR else said
        # The server has worked on it: what is no outage is about the request.
        about_row = not FACTS[kind].is_outage
        failure = replace(failure, kind=kind, http_status=status, about_row=about_row)
        return replace(answer, failure=failure)
    if isinstance(answer, Unreadable):
        kind = own_kind(words, answer.message) or ErrorKind.UNREADABLE
        # A page, or nothing, comes from something in front of the API.
        is_answer = reply.body.lstrip()[:1] not in (b"", b"<")
        return Failure(kind, answer.message, http_status=status, about_row=is_answer)
    kind = kind_of(status, answer, reply.error_type, asked=request, words=words)
    message = f"{answer.message} ({reply.context})" if reply.context else answer.message
    # A 403 or 404 is a bad request where it is about something that the row names.
    about_row = kind is ErrorKind.BAD_REQUEST and (status in (403, 404) or names_row(answer))
    return Failure(kind, message, answer.code, status, about_row=about_row)


def origin(failure: Failure) -> str:
    """`HTTP 401, invalid_api_key`; a code that only repeats the status is left out."""
    status = f"HTTP {failure.http_status}" if failure.http_status else failure.kind.value
    is_said = failure.code is None or failure.code == str(failure.http_status)
    return status if is_said else f"{status}, {failure.code}"
