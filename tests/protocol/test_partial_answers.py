"""What arrived of an answer stands in the row when its attempts have run out (W.2, W.19)."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from batchrun.errors import ErrorKind
from batchrun.job.sections import RetryJob
from batchrun.records import Response, Usage

pytestmark = pytest.mark.usefixtures("transport")

Complete = Callable[..., Any]
Make = Callable[..., dict[str, Any]]
Events = Callable[[dict[str, Any]], list[dict[str, Any]]]

TWO = RetryJob(max_attempts=2, max_wait_s=0.01)
ID = {"x-request-id": "req_7"}


@pytest.mark.parametrize("end", ["clean", "cut", "reset", "open"])
async def test_what_a_stream_said_before_it_broke_off_stands_in_the_row(
    complete: Complete, answer: Make, events: Events, end: str
) -> None:
    step = {"events": events(answer())[:9], "end": end, "headers": ID}
    outcome = await complete([step], mode="stream", retry=TWO, idle_timeout_s=0.2)
    result = outcome.result
    assert isinstance(result, Response)
    assert (result.status, outcome.ok, result.ok, result.truncated) == (
        "no_answer",
        False,
        False,
        False,
    )
    assert (result.output_text, result.id, result.model) == ("forty", "resp_1", "m-2026")
    (item,) = json.loads(result.output)
    assert (item["type"], item["status"]) == ("message", "incomplete")
    assert (result.usage, result.usage_json) == (Usage(), None)
    kind = ErrorKind.TIMEOUT if end == "open" else ErrorKind.CUT
    assert result.failure is not None
    assert (outcome.failure.kind, result.failure.status) == (kind, "no_answer")
    assert outcome.cost_usd is None
    assert [attempt.cost_usd for attempt in outcome.attempts] == [None, None]
    assert [attempt.request_id for attempt in outcome.attempts] == ["req_7", "req_7"]


async def test_the_longest_piece_stands_beside_the_last_failure(
    complete: Complete, answer: Make, events: Events
) -> None:
    said = events(answer())
    script = [
        {"events": said[:7], "end": "cut"},
        {"events": said[:10], "end": "cut"},
        {"events": said[:2], "end": "cut"},
        {"status": 503, "body": {"error": {"message": "down"}}},
    ]
    retry = RetryJob(max_attempts=4, max_wait_s=0.01)
    outcome = await complete(script, mode="stream", retry=retry)
    assert outcome.result.output_text == "forty-"
    assert (outcome.result.status, outcome.failure.kind) == ("no_answer", ErrorKind.OVERLOADED)
    assert "down (4 attempts" in outcome.failure.message
    assert outcome.attempts[outcome.counted].http_status == 503


async def test_what_a_stream_said_before_an_error_stands_in_the_row_and_may_be_billed(
    complete: Complete, answer: Make, events: Events
) -> None:
    error = {"type": "error", "error": {"code": "server_is_overloaded", "message": "too much"}}
    step = {"events": [*events(answer())[:9], error]}
    outcome = await complete([step], mode="stream", retry=TWO)
    assert (outcome.result.status, outcome.result.output_text) == ("no_answer", "forty")
    assert (outcome.failure.kind, outcome.cost_usd) == (ErrorKind.OVERLOADED, None)
    # Before anything was said it is a refusal like any other.
    outcome = await complete([{"events": [error]}], mode="stream", retry=TWO)
    assert (outcome.cost_usd, isinstance(outcome.result, Response)) == (0.0, False)


async def test_finished_items_of_a_cut_stream_are_stored_as_they_came(complete: Complete) -> None:
    call = {"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": "{}"}
    place = {"output_index": 1, "item_id": "fc_2"}
    said = [
        {"type": "response.output_item.done", "output_index": 0, "item": call},
        {"type": "response.output_item.added", "output_index": 1, "item": {**call, "id": "fc_2"}},
        {"type": "response.function_call_arguments.delta", **place, "delta": '{"a'},
    ]
    outcome = await complete([{"events": said, "end": "cut"}], mode="stream", retry=TWO)
    items = json.loads(outcome.result.output)
    assert items[0] == call
    assert (items[1]["arguments"], items[1]["status"]) == ('{"a', "incomplete")


async def test_a_whole_answer_replaces_what_was_said_before(
    complete: Complete, answer: Make, events: Events
) -> None:
    long = events(answer("a much longer text than the answer"))[:-2]
    script = [{"events": long[:20], "end": "cut"}, {"events": events(answer())}]
    outcome = await complete(script, mode="stream", retry=TWO)
    assert (outcome.ok, outcome.result.output_text) == (True, "forty-two")


async def test_a_piece_never_replaces_an_answer_that_is_asked_for_again(
    complete: Complete, answer: Make, events: Events
) -> None:
    cut = answer("short", status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    script = [{"events": events(cut)}, {"events": events(answer("x" * 50))[:30], "end": "cut"}]
    retry = RetryJob(max_attempts=2, max_wait_s=0.01, on_incomplete="raise_limit")
    body = {"model": "m", "input": "x", "max_output_tokens": 18}
    outcome = await complete(script, body, mode="stream", retry=retry)
    assert (outcome.result.status, outcome.result.output_text) == ("incomplete", "short")


@pytest.mark.parametrize("mode", ["plain", "stream"])
async def test_a_failed_response_keeps_its_text_model_and_id_when_attempts_have_run_out(
    complete: Complete, answer: Make, mode: str
) -> None:
    failed = answer(status="failed", error={"code": "server_error", "message": "oops"})
    outcome = await complete([{"body": failed}], mode=mode, retry=TWO)
    result = outcome.result
    assert isinstance(result, Response)
    assert (result.status, result.output_text) == ("no_answer", "forty-two")
    assert (result.id, result.model, result.usage.total_tokens) == ("resp_1", "m-2026", 80)
    assert outcome.failure.message == "oops (2 attempts (retry.max_attempts))"
    assert not outcome.ok


@pytest.mark.parametrize("mode", ["plain", "stream"])
async def test_the_request_id_of_an_answer_that_breaks_off_is_stored(
    complete: Complete, answer: Make, mode: str
) -> None:
    piece = json.dumps(answer()).encode()[:60]
    step = {"pieces": [piece], "end": "cut", "headers": ID}
    outcome = await complete([step, {"body": answer()}], mode=mode)
    assert (outcome.ok, outcome.attempts[0].request_id) == (True, "req_7")
