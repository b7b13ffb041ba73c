"""How streams end: with errors, early, late, or not at all (PROTOCOL 0.6, 0.8, A.5)."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from batchrun.errors import EndpointError, ErrorKind
from batchrun.records import Failure, Response
from tests.waiting import HANG_S

pytestmark = pytest.mark.usefixtures("transport")

Complete = Callable[..., Any]
Make = Callable[..., dict[str, Any]]
Events = Callable[[dict[str, Any]], list[dict[str, Any]]]

_FLAT = {
    "type": "error",
    "code": "rate_limit_exceeded",
    "message": "slower",
    "param": None,
    "sequence_number": 2,
}
_QUOTA = {
    "type": "error",
    "error": {
        "type": "insufficient_quota",
        "code": "credit_balance_exhausted",
        "message": "no credit",
        "param": None,
    },
    "sequence_number": 2,
}
_AZURE = {
    "type": "error",
    "sequence_number": 2,
    "error": {"type": "too_many_requests", "code": "too_many_requests", "message": "slower"},
}


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (_FLAT, ErrorKind.RATE_LIMIT),
        (_AZURE, ErrorKind.RATE_LIMIT),
        ({**_AZURE, "error": {"type": "too_many_requests", "code": None}}, ErrorKind.RATE_LIMIT),
        ({**_AZURE, "type": "response.error"}, ErrorKind.RATE_LIMIT),
        (b'data: {"error":{"message":"no type","code":"429"}}\n\n', ErrorKind.RATE_LIMIT),
        (b'event: error\ndata: {"message":"m","code":"slow_down"}\n\n', ErrorKind.RATE_LIMIT),
        (
            b'event: error\ndata: {"message":"m","type":"rate_limit_error"}\n\n',
            ErrorKind.RATE_LIMIT,
        ),
        (
            b'data: {"type":"error","code":"slow_down","error":{"message":"m"}}\n\n',
            ErrorKind.RATE_LIMIT,
        ),
        (b'data: {"type":"error","error":"oops","response":null}\n\n', ErrorKind.SERVER_ERROR),
        (b'data: {"type":"error","message":"oops","code":null}\n\n', ErrorKind.SERVER_ERROR),
    ],
)
async def test_errors_within_a_stream_are_reported_in_any_of_their_shapes(
    complete: Complete, answer: Make, events: Events, event: Any, kind: ErrorKind
) -> None:
    said = events(answer())
    script = [{"events": [*said[:6], event]}, {"events": said}]
    outcome = await complete(script, mode="stream")
    assert outcome.attempts[0].error_kind is kind
    assert outcome.attempts[0].http_status == 200
    assert outcome.ok


async def test_billing_within_a_stream_stops_the_run(
    complete: Complete, answer: Make, events: Events
) -> None:
    with pytest.raises(Exception, match=r"no credit \(HTTP 200, credit_balance_exhausted\)"):
        await complete([{"events": [*events(answer())[:6], _QUOTA]}], mode="stream")


async def test_a_failed_response_after_an_error_is_the_answer_and_keeps_its_tokens(
    complete: Complete, answer: Make
) -> None:
    error = {"code": "invalid_prompt", "message": "refused", "type": None}
    failed = answer(status="failed", output=[], error=error)
    for last in (failed, {**failed, "error": None}):
        said = [
            {"type": "error", "code": "invalid_prompt", "message": "refused"},
            {"type": "response.failed", "response": last},
        ]
        outcome = await complete([{"events": said}], mode="stream")
        failure = outcome.result
        if isinstance(failure, Response):
            assert failure.usage.total_tokens == 80
            assert failure.failure is not None
            failure = failure.failure
        assert isinstance(failure, Failure)
        assert (failure.kind, failure.message) == (ErrorKind.CONTENT_POLICY, "refused")
        assert len(outcome.attempts) == 1


@pytest.mark.parametrize("count", [0, 1, 5, -4])
async def test_a_clean_end_without_a_last_event_is_retried(
    complete: Complete, answer: Make, events: Events, count: int
) -> None:
    said = events(answer())
    script = [{"events": [*said[:count], b"data: [DONE]\n\n"]}, {"events": said}]
    outcome = await complete(script, mode="stream")
    assert outcome.attempts[0].error_kind is ErrorKind.CUT
    assert "without its last event" in outcome.attempts[0].error_message
    assert outcome.attempts[0].response_id == (None if count == 0 else "resp_1")
    assert outcome.ok


@pytest.mark.parametrize("end", ["cut", "reset"])
async def test_a_stream_that_breaks_off_is_retried(
    complete: Complete, answer: Make, events: Events, end: str
) -> None:
    said = events(answer())
    outcome = await complete([{"events": said[:7], "end": end}, {"events": said}], mode="stream")
    assert outcome.attempts[0].error_kind is ErrorKind.CUT
    assert outcome.attempts[0].response_id == "resp_1"
    assert outcome.ok


@pytest.mark.parametrize("end", ["cut", "reset", "open"])
async def test_how_a_connection_ends_after_the_last_event_does_not_matter(
    complete: Complete, answer: Make, events: Events, end: str
) -> None:
    outcome = await complete([{"events": events(answer()), "end": end}], mode="stream")
    assert outcome.ok
    assert len(outcome.attempts) == 1


async def test_pings_after_the_last_event_do_not_keep_a_stream_open(
    complete: Complete, answer: Make, events: Events
) -> None:
    pings = [piece for _ in range(200) for piece in (b": PING\n\n", 0.3)]
    said = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events(answer()))
    step = {"type": "text/event-stream", "pieces": [said, *pings]}
    async with asyncio.timeout(HANG_S):
        assert (await complete([step], mode="stream")).ok


async def test_a_last_event_without_its_blank_line_counts(complete: Complete, answer: Make) -> None:
    last = {"type": "response.completed", "response": answer()}
    line = b"data: " + json.dumps(last).encode()
    assert (await complete([{"events": [line]}], mode="stream")).ok


async def test_silence_before_the_first_delta_is_no_stall(
    complete: Complete, answer: Make, events: Events
) -> None:
    said = events(answer("x"))
    pieces: list[Any] = [0.3]
    for event in said[:4]:
        pieces += [b"data: " + json.dumps(event).encode() + b"\n\n", 0.3]
    empty = b'data: {"type":"response.output_text.delta","delta":""}\n\n'
    tool = b'data: {"type":"response.code_interpreter_call_code.delta","delta":"1"}\n\n'
    last = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in said[4:]]
    step = {"type": "text/event-stream", "pieces": [*pieces, empty, 0.3, tool, 0.3, *last]}
    outcome = await complete([step], mode="stream", idle_timeout_s=0.1)
    assert outcome.ok
    assert len(outcome.attempts) == 1
    # The deltas came after all the silences: seven, of 0.3 s.
    assert outcome.first_token_s >= 2.0
    assert outcome.attempts[0].latency_s >= outcome.first_token_s


@pytest.mark.parametrize(
    "what",
    [
        "output_text",
        "refusal",
        "function_call_arguments",
        "custom_tool_call_input",
        "reasoning_text",
        "reasoning_summary_text",
    ],
)
async def test_silence_after_the_first_delta_is_a_stall(
    endpoint: Callable[..., Any], request_of: Callable[..., Any], what: str
) -> None:
    said = {"type": f"response.{what}.delta", "delta": "x"}
    step = {"events": [said], "end": "open"}
    async with endpoint([step], mode="stream", idle_timeout_s=0.2) as connected:
        with pytest.raises(EndpointError, match=r"stalled .*endpoint.idle_timeout_s"):
            await connected.send(request_of())


async def test_a_stream_that_never_begins_ends_at_the_time_for_one_attempt(
    endpoint: Callable[..., Any], request_of: Callable[..., Any]
) -> None:
    step = {"events": [b": PING\n\n"], "end": "open"}
    async with endpoint([step], mode="stream", idle_timeout_s=0.1, timeout_s=0.5) as connected:
        with pytest.raises(EndpointError, match=r"not complete within 0.5 s") as caught:
            await connected.send(request_of())
    assert caught.value.kind is ErrorKind.TIMEOUT


async def test_pings_keep_a_stream_that_has_begun_alive(complete: Complete, answer: Make) -> None:
    delta = b'data: {"type":"response.output_text.delta","delta":"x"}\n\n'
    pings = [piece for _ in range(12) for piece in (b": PING\n\n", 0.1)]
    last = {"type": "response.completed", "response": answer()}
    end = b"data: " + json.dumps(last).encode() + b"\n\n"
    step = {"type": "text/event-stream", "pieces": [delta, *pings, end]}
    assert (await complete([step], mode="stream", idle_timeout_s=1.0)).ok
