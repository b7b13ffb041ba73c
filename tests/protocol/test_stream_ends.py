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


@pytest.mark.parametrize("what", ["output_text", "refusal"])
async def test_silence_after_the_first_delta_of_text_is_a_stall(
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


@pytest.mark.parametrize("within", ["completed", "incomplete", "failed", None])
async def test_done_is_an_end_and_its_status_rules(
    complete: Complete, answer: Make, events: Events, within: str | None
) -> None:
    error = {"code": "invalid_prompt", "message": "no"} if within == "failed" else None
    whole = answer(status=within, error=error)
    last = {"type": "response.done", "response": whole}
    for said in ([last], [*events(answer())[:-1], last]):
        outcome = await complete([{"events": said, "end": "open"}], mode="stream")
        assert outcome.result.status == (within or "completed")
        assert outcome.result.output_text == "forty-two"
        assert outcome.result.usage.total_tokens == 80


async def test_done_without_a_response_does_not_undo_the_event_before(
    complete: Complete, answer: Make, events: Events
) -> None:
    said = [*events(answer(status="incomplete")), {"type": "response.done"}]
    outcome = await complete([{"events": said}], mode="stream")
    assert (outcome.result.status, outcome.result.usage.total_tokens) == ("incomplete", 80)


@pytest.mark.parametrize(
    ("mark", "end"),
    [(b"data: [DONE]\n\n", "clean"), (b"data: [DONE]\n\n", "open"), (b"", "clean")],
)
@pytest.mark.parametrize("last", ["response.output_item.done", "response.output_text.done"])
async def test_an_answer_without_a_last_event_is_whole_once_all_its_items_are_done(
    complete: Complete, answer: Make, events: Events, mark: bytes, end: str, last: str
) -> None:
    said = events(answer())
    count = next(at for at, event in enumerate(said) if event["type"] == last) + 1
    outcome = await complete([{"events": [*said[:count], mark], "end": end}], mode="stream")
    result = outcome.result
    assert (outcome.ok, result.output_text, len(outcome.attempts)) == (True, "forty-two", 1)
    assert (result.id, result.model) == ("resp_1", "m-2026")
    assert (result.usage_json, outcome.cost_usd) == (None, None)


async def test_a_server_whose_streams_have_a_last_event_has_cut_one_that_lacks_it(
    endpoint: Any, request_of: Any, answer: Make, events: Events
) -> None:
    """Of two items the second was still to come when the first was done."""
    whole = {"events": events(answer())}
    short = {"events": whole["events"][:-1]}
    done = {"events": [*short["events"], b"data: [DONE]\n\n"]}
    async with endpoint([whole, short, whole, done], mode="stream") as connected:
        rows = [await connected.outcome_beside_others(request_of(row=row)) for row in range(3)]
    kinds = [[attempt.error_kind for attempt in outcome.attempts] for outcome in rows]
    assert kinds == [[None], [ErrorKind.CUT, None], [None]]
    assert all(outcome.ok for outcome in rows)


async def test_a_part_that_was_begun_and_never_came_is_no_end(
    complete: Complete, answer: Make, events: Events
) -> None:
    said = events(answer())
    count = next(at for at, one in enumerate(said) if one["type"] == "response.content_part.done")
    second = {"type": "response.content_part.added", "output_index": 0, "content_index": 1}
    outcome = await complete(
        [{"events": [*said[: count + 1], second]}, {"events": said}], mode="stream"
    )
    assert outcome.attempts[0].error_kind is ErrorKind.CUT
    assert (outcome.ok, len(outcome.attempts)) == (True, 2)


@pytest.mark.parametrize("last", [{}, {"response": None}])
async def test_a_last_event_without_a_response_keeps_what_the_first_ones_said(
    complete: Complete, answer: Make, events: Events, last: dict[str, Any]
) -> None:
    said = events(answer())[:-1]
    script = [{"events": [*said, {"type": "response.completed", **last}]}]
    outcome = await complete(script, mode="stream")
    result = outcome.result
    assert (outcome.ok, result.id, result.model) == (True, "resp_1", "m-2026")
    assert (result.output_text, result.usage_json) == ("forty-two", None)


@pytest.mark.parametrize("kind", ["reasoning", "web_search_call"])
async def test_an_end_after_reasoning_or_a_search_is_no_answer(
    complete: Complete, answer: Make, events: Events, kind: str
) -> None:
    item = {"type": kind, "summary": [{"type": "summary_text", "text": "hm"}]}
    said = [{"type": "response.output_item.done", "output_index": 0, "item": item}]
    script = [{"events": [*said, b"data: [DONE]\n\n"]}, {"events": events(answer())}]
    outcome = await complete(script, mode="stream")
    assert outcome.attempts[0].error_kind is ErrorKind.CUT
    assert outcome.ok


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "message": "a passing problem"},
        {"type": "error", "error": {"message": "a passing problem", "code": "server_error"}},
        {"type": "response.some_progress", "error": {"message": "a passing problem"}},
        {"type": "response.in_progress", "error": "a passing problem"},
        b'data: {"detail":"a passing problem"}\n\n',
        b"event: error\ndata: a passing problem\n\n",
    ],
)
async def test_a_stream_that_goes_on_after_an_error_is_not_ended_by_it(
    complete: Complete, answer: Make, events: Events, event: Any
) -> None:
    said: list[Any] = events(answer())
    for stop in (len(said), len(said) - 1):  # with its last event, and without
        outcome = await complete([{"events": [*said[:6], event, *said[6:stop]]}], mode="stream")
        assert (outcome.ok, outcome.result.output_text) == (True, "forty-two")
        assert len(outcome.attempts) == 1
    # Where it does not go on, the error is what it says.
    script = [{"events": [*said[:6], event]}, {"events": said}]
    outcome = await complete(script, mode="stream")
    assert outcome.attempts[0].error_message == "a passing problem"


async def test_a_cut_after_an_error_that_did_not_end_the_stream_is_a_cut(
    complete: Complete, answer: Make, events: Events
) -> None:
    said: list[Any] = events(answer())
    error = {"type": "error", "message": "a passing problem"}
    for odd in (error, b"data: a passing problem\n\n"):
        script = [{"events": [*said[:6], odd, *said[6:9]]}, {"events": said}]
        first = (await complete(script, mode="stream")).attempts[0]
        assert first.error_kind is ErrorKind.CUT
        assert "without its last event; the server said: a passing problem" in first.error_message


async def test_a_failed_event_may_have_its_error_beside_the_response(
    complete: Complete, answer: Make
) -> None:
    last = {"type": "response.failed", "error": {"code": "invalid_prompt", "message": "no"}}
    last["response"] = answer(status="failed", output=[])
    outcome = await complete([{"events": [last]}], mode="stream")
    assert (outcome.failure.kind, outcome.failure.message) == (ErrorKind.CONTENT_POLICY, "no")


async def test_a_stream_may_go_on_some_seconds_after_an_error(
    complete: Complete, answer: Make, events: Events
) -> None:
    said = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events(answer())]
    error = b'data: {"type":"error","message":"a passing problem"}\n\n'
    pieces = [*said[:6], error, 1.5, *said[6:8], 0.3, *said[8:]]
    step = {"type": "text/event-stream", "pieces": pieces}
    outcome = await complete([step], mode="stream")
    assert (outcome.ok, len(outcome.attempts)) == (True, 1)


@pytest.mark.parametrize(
    ("body", "message", "kind"),
    [
        (b"upstream connect error", "upstream connect error", ErrorKind.SERVER_ERROR),
        (b"data: upstream connect error\n\n", "upstream connect error", ErrorKind.SERVER_ERROR),
        (b"event: error\ndata: Rate limit reached\n\n", "Rate limit reached", ErrorKind.RATE_LIMIT),
        (b'data: {"detail":"no worker"}\n\n', "no worker", ErrorKind.SERVER_ERROR),
        (b'{"detail":"no worker"}', "no worker", ErrorKind.SERVER_ERROR),
        (
            b'data: {"object":"error","message":"no worker","code":503}\n\ndata: [DONE]\n\n',
            "no worker",
            ErrorKind.OVERLOADED,
        ),
    ],
)
async def test_errors_in_plain_text_and_in_other_shapes_keep_the_servers_words(
    complete: Complete, answer: Make, body: bytes, message: str, kind: ErrorKind
) -> None:
    step = {"type": "text/event-stream", "body": body}
    outcome = await complete([step, {"body": answer()}], mode="stream")
    assert outcome.ok
    first = outcome.attempts[0]
    assert (first.error_kind, first.error_message) == (kind, message)


@pytest.mark.parametrize("missing", ["metadata", "object"])
async def test_a_whole_response_without_a_type_is_an_end(
    complete: Complete, answer: Make, missing: str
) -> None:
    whole = {name: value for name, value in answer().items() if name != missing}
    outcome = await complete([{"events": [b"data: %b\n\n" % _json(whole)]}], mode="stream")
    assert (outcome.ok, outcome.result.output_text) == (True, "forty-two")


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
