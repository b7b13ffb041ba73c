"""Streams over real sockets: framing, order, and which bytes are the answer (PROTOCOL A.5)."""

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest
from openai.types.responses import ResponseStreamEvent

from batchrun.errors import ErrorKind
from batchrun.records import Failure, Response

pytestmark = pytest.mark.usefixtures("transport")

Complete = Callable[..., Any]
Make = Callable[..., dict[str, Any]]
Events = Callable[[dict[str, Any]], list[dict[str, Any]]]


async def test_a_stream_is_asked_for_outright_and_its_last_event_is_the_answer(
    endpoint: Callable[..., Any], request_of: Callable[..., Any], answer: Make, events: Events
) -> None:
    async with endpoint([{"events": events(answer())}], mode="stream") as connected:
        outcome = await connected.outcome(request_of())
    (seen,) = connected.server.requests
    assert seen.body == {"model": "m", "input": "x", "stream": True}
    assert seen.headers["accept"] == "text/event-stream"
    assert (outcome.ok, outcome.via) == (True, "stream")
    assert outcome.result.output_text == "forty-two"
    assert outcome.result.usage.total_tokens == 80
    assert json.loads(outcome.result.output) == answer()["output"]
    assert outcome.attempts[0].response_id == "resp_1"


@pytest.mark.parametrize("cuts", [1, 2, 3, 5, 7, 64, 1021])
async def test_a_stream_cut_into_pieces_of_any_size_is_the_same(
    complete: Complete, answer: Make, events: Events, cuts: int
) -> None:
    whole = answer("grüße 中文 🙂")
    outcome = await complete([{"events": events(whole), "cuts": cuts}], mode="stream")
    assert outcome.result.output_text == "grüße 中文 🙂"
    assert outcome.ok


@pytest.mark.parametrize("end", [b"\r\n", b"\r", b"\n"])
@pytest.mark.parametrize("cuts", [1, 4096])
async def test_lines_of_a_stream_may_end_in_any_way(
    complete: Complete, answer: Make, events: Events, end: bytes, cuts: int
) -> None:
    framed = [
        b"event: %b%bdata: %b%b%b"
        % (event["type"].encode(), end, json.dumps(event).encode(), end, end)
        for event in events(answer())
    ]
    outcome = await complete([{"events": framed, "cuts": cuts}], mode="stream")
    assert outcome.result.output_text == "forty-two"


async def test_the_type_within_the_data_rules_where_no_event_line_is_sent(
    complete: Complete, answer: Make, events: Events
) -> None:
    outcome = await complete([{"events": events(answer()), "named": False}], mode="stream")
    assert outcome.result.output_text == "forty-two"


async def test_comments_done_marks_and_repeated_events_change_nothing(
    complete: Complete, answer: Make, events: Events
) -> None:
    said: list[Any] = events(answer())
    noisy = [b": PING\n\n", *[said[0]] * 150, b": PING\n\n"]
    for event in said:
        noisy += [event, event, b": PING\n\n"]
    outcome = await complete([{"events": [*noisy, b"data: [DONE]\n\n"]}], mode="stream")
    assert outcome.result.output_text == "forty-two"
    assert len(json.loads(outcome.result.output)) == 1


async def test_several_data_lines_are_one_event(complete: Complete, answer: Make) -> None:
    lines = json.dumps({"type": "response.completed", "response": answer()}, indent=1).split("\n")
    event = "".join(f"data: {line}\n" for line in lines) + "\n"
    outcome = await complete([{"events": [event.encode()]}], mode="stream")
    assert outcome.result.output_text == "forty-two"


async def test_events_without_sequence_numbers_are_read_too(
    complete: Complete, answer: Make, events: Events
) -> None:
    said = [
        {key: value for key, value in event.items() if key != "sequence_number"}
        for event in events(answer())
    ]
    assert (await complete([{"events": said}], mode="stream")).ok


async def test_an_event_of_several_megabytes_arrives_whole(
    complete: Complete, answer: Make, events: Events
) -> None:
    image = {"type": "image_generation_call", "id": "ig_1", "result": "iVBO" * 1_500_000}
    whole = answer()
    whole["output"].append({**image, "status": "completed"})
    outcome = await complete([{"events": events(whole), "cuts": 65_536}], mode="stream")
    assert json.loads(outcome.result.output)[1]["result"] == image["result"]
    assert len(outcome.result.tool_calls[0].item) == 64 * 1024


async def test_an_empty_output_in_the_last_event_is_filled_from_the_finished_items(
    complete: Complete, answer: Make, events: Events
) -> None:
    said = events(answer())
    said[-1] = {"type": "response.completed", "response": answer(output=[])}
    outcome = await complete([{"events": said}], mode="stream")
    assert (outcome.ok, outcome.result.output_text) == (True, "forty-two")
    said[-1] = {"type": "response.completed", "response": None}
    outcome = await complete([{"events": said}], mode="stream")
    assert (outcome.ok, outcome.result.output_text) == (True, "forty-two")


async def test_finished_items_without_an_index_or_without_an_item_are_accepted(
    complete: Complete, answer: Make
) -> None:
    done = {"type": "response.output_item.done"}
    items = [{"type": "message", "n": 0}, {"type": "new_kind", "n": 1}]
    said = [done, *({**done, "item": item} for item in (*items, *items)), {**done, "item": None}]
    last = {"type": "response.completed", "response": answer(output=[])}
    outcome = await complete([{"events": [*said, last]}], mode="stream")
    assert json.loads(outcome.result.output) == items


@pytest.mark.parametrize(
    ("name", "within", "status"),
    [
        ("completed", "incomplete", "incomplete"),
        ("completed", "failed", "failed"),
        ("incomplete", "incomplete", "incomplete"),
        ("failed", None, "failed"),
        ("completed", "in_progress", "completed"),
    ],
)
async def test_the_status_within_the_last_event_rules_where_it_is_an_end(
    complete: Complete, answer: Make, name: str, within: str | None, status: str
) -> None:
    error = {"code": "invalid_prompt", "message": "no"} if status == "failed" else None
    details = {"reason": "content_filter"} if status == "incomplete" else None
    whole = answer(status=within, error=error, incomplete_details=details)
    last = {"type": f"response.{name}", "response": whole}
    outcome = await complete([{"events": [last]}], mode="stream")
    assert isinstance(outcome.result, Response)
    assert outcome.result.status == status
    assert outcome.result.usage.total_tokens == 80


_THAT_END = {"error", "response.completed", "response.failed", "response.incomplete"}
_OF_THE_ANSWER = (
    *("output_text", "refusal", "function_call_arguments", "custom_tool_call_input"),
    *("reasoning_text", "reasoning_summary_text"),
)
_THAT_SAY_TEXT = {f"response.{what}.delta" for what in _OF_THE_ANSWER}


def _known_events() -> list[str]:
    """The types of all events that the openai SDK knows."""
    members = get_args(get_args(ResponseStreamEvent)[0])
    names = [get_args(member.model_fields["type"].annotation)[0] for member in members]
    assert len(names) >= 50
    return names


async def test_events_of_every_known_and_unknown_name_are_passed_over(
    complete: Complete, answer: Make, events: Events
) -> None:
    whole = answer()
    said = events(whole)
    others = [
        {"type": name, "item_id": "x", "output_index": 7, "delta": "d", "part": {}}
        for name in [*_known_events(), "response.some_new.delta"]
        if name not in _THAT_END | _THAT_SAY_TEXT
    ]
    outcome = await complete([{"events": [*said[:-1], *others, said[-1]]}], mode="stream")
    assert json.loads(outcome.result.output) == whole["output"]


async def test_padding_in_deltas_is_no_part_of_the_answer(complete: Complete, answer: Make) -> None:
    said = [
        {"type": "response.output_text.delta", "delta": "hi", "obfuscation": "zzzzzzzz"},
        {"type": "response.completed", "response": answer("hi")},
    ]
    assert (await complete([{"events": said}], mode="stream")).result.output_text == "hi"


async def test_an_answer_whole_as_json_is_taken_where_a_stream_was_asked_for(
    complete: Complete, answer: Make
) -> None:
    for kind in ("application/json", "text/event-stream", "text/plain"):
        outcome = await complete([{"body": answer(), "type": kind}], mode="stream")
        assert outcome.result.output_text == "forty-two"
        assert outcome.first_token_s is None


@pytest.mark.parametrize("cuts", [1, 4096])
@pytest.mark.parametrize("kind", ["text/event-stream", "application/json", "text/plain"])
async def test_a_stream_is_taken_where_json_was_asked_for(
    complete: Complete, answer: Make, events: Events, kind: str, cuts: int
) -> None:
    step = {"events": [b": PING\n\n", *events(answer())], "type": kind, "cuts": cuts}
    outcome = await complete([step])
    assert outcome.result.output_text == "forty-two"


async def test_blank_bytes_before_an_answer_keep_it_alive(complete: Complete, answer: Make) -> None:
    pieces = [part for _ in range(12) for part in (b"\n", 0.1)]
    step = {"pieces": [*pieces, json.dumps(answer()).encode()]}
    assert (await complete([step], idle_timeout_s=1.0)).ok


async def test_an_error_as_json_is_taken_where_a_stream_was_asked_for(
    complete: Complete, answer: Make, events: Events
) -> None:
    error = {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}
    for kind in ("application/json", "text/event-stream"):
        script = [{"status": 429, "body": error, "type": kind}, {"events": events(answer())}]
        outcome = await complete(script, mode="stream")
        assert outcome.ok
        assert outcome.attempts[0].error_kind is ErrorKind.RATE_LIMIT


@pytest.mark.parametrize("body", [b"", b"Too Many Requests", b": PING\n\n"])
async def test_an_error_status_counts_where_its_stream_says_nothing(
    complete: Complete, answer: Make, body: bytes
) -> None:
    limited = {"status": 429, "type": "text/event-stream", "body": body}
    outcome = await complete([limited, {"body": answer()}], mode="stream")
    assert outcome.attempts[0].error_kind is ErrorKind.RATE_LIMIT
    assert outcome.ok


async def test_an_error_status_with_a_stream_that_holds_the_error(complete: Complete) -> None:
    error = {"error": {"message": "bad tool", "type": "invalid_request_error", "code": "400"}}
    body = b"data: " + json.dumps(error).encode() + b"\n\ndata: [DONE]\n\n"
    step = {"status": 500, "type": "text/event-stream", "body": body}
    outcome = await complete([{**step, "status": 400}])
    assert isinstance(outcome.result, Failure)
    assert outcome.result.message == "bad tool"
    outcome = await complete([step], mode="stream")
    assert [attempt.http_status for attempt in outcome.attempts] == [500] * 6
    assert "bad tool" in outcome.result.message
