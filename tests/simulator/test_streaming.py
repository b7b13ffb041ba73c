"""The events of a stream, made from a response: pure, and judged by the SDK's own models."""

import json
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from batchrun.simulator import streaming
from batchrun.simulator.replies import make_answer
from batchrun.simulator.requests import check_request, read_body
from batchrun.simulator.settings import Quirk, SimulatorSettings
from batchrun.simulator.streaming import make_events, split_text

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_CLOCK: dict[str, Any] = {"type": "function", "name": "get_time", "parameters": None}
_SEARCH: dict[str, Any] = {"type": "web_search"}
_FIELDS = {
    "output_text": "text",
    "refusal": "refusal",
    "function_call_arguments": "arguments",
    "reasoning_summary_text": "text",
}


def _response(behavior: SimulatorSettings | None = None, **fields: Any) -> dict[str, Any]:
    body = {"model": "gpt-4.1", "input": "hello", **fields}
    asked = check_request(read_body(json.dumps(body).encode()))
    return make_answer(asked, behavior or SimulatorSettings(), 0, 1_700_000_000.5, 0.7).response


def _kinds(response: dict[str, Any]) -> list[str]:
    """The types of the events in order, runs of deltas counted once."""
    kinds: list[str] = []
    for event in make_events(response):
        kind = event["type"].removeprefix("response.")
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
    return kinds


@settings(max_examples=80, deadline=None)
@given(
    st.text(max_size=10),
    st.sampled_from(["gpt-4.1", "o3"]),
    st.none() | st.integers(16, 200),
    st.sampled_from([[], [_CLOCK], [_SEARCH], [_CLOCK, _SEARCH]]),
    st.floats(0, 0.5),
    st.booleans(),
)
def test_the_sdk_takes_every_event_and_the_parts_come_to_the_response(
    text: str, model: str, most: int | None, tools: list[Any], refusals: float, padded: bool
) -> None:
    response = _response(
        SimulatorSettings(refusals=refusals),
        input=text,
        model=model,
        max_output_tokens=most,
        tools=tools,
        reasoning={"summary": "auto"},
    )
    events = make_events(response, padded=padded)
    for event in events:
        _EVENT.validate_json(json.dumps(event), strict=True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    first, second, *_, last = events
    assert (first["type"], second["type"]) == ("response.created", "response.in_progress")
    assert first["response"]["status"] == "in_progress"
    assert (first["response"]["output"], first["response"]["usage"]) == ([], None)
    assert last["type"] == f"response.{response['status']}"
    assert last["response"] == response
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == response["output"]
    assert padded is any("obfuscation" in event for event in events) or not any(
        event["type"].endswith(".delta") for event in events
    )
    sent = ""
    for event in events:
        kind, _, step = event["type"].removeprefix("response.").rpartition(".")
        if step == "delta":
            sent += event["delta"]
        elif step == "done" and kind in _FIELDS:
            assert event[_FIELDS[kind]] == sent
            sent = ""


def test_a_text_is_sent_in_this_order() -> None:
    assert _kinds(_response()) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


def test_thoughts_and_calls_are_sent_in_this_order() -> None:
    response = _response(
        model="o3",
        reasoning={"summary": "auto"},
        tools=[{**_CLOCK, "parameters": {"type": "object"}}],
        tool_choice={"type": "function", "name": "get_time"},
    )
    assert _kinds(response) == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]


def test_a_refusal_is_sent_in_this_order() -> None:
    assert _kinds(_response(SimulatorSettings(refusals=1)))[2:-1] == [
        "output_item.added",
        "content_part.added",
        "refusal.delta",
        "refusal.done",
        "content_part.done",
        "output_item.done",
    ]


def test_a_search_is_sent_step_by_step_and_each_citation_after_its_text() -> None:
    response = _response(tools=[_SEARCH], tool_choice=_SEARCH)
    kinds = _kinds(response)
    assert kinds[2:7] == [
        "output_item.added",
        "web_search_call.in_progress",
        "web_search_call.searching",
        "web_search_call.completed",
        "output_item.done",
    ]
    sent = ""
    marks: list[dict[str, Any]] = []
    for event in make_events(response):
        if event["type"] == "response.output_text.delta":
            sent += event["delta"]
        elif event["type"] == "response.output_text.annotation.added":
            mark = event["annotation"]
            assert event["annotation_index"] == len(marks)
            assert sent[mark["start_index"] : mark["end_index"]].endswith(f"({mark['url']}))")
            marks.append(mark)
    assert marks == response["output"][-1]["content"][0]["annotations"]
    assert marks


@given(st.text())
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(split_text(text)) == text
    assert all(split_text(text))


_FRAMES = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=80)


@given(_FRAMES, st.integers(0, 3), st.floats(0, 2))
def test_bursts_hold_everything_in_order_and_end_with_the_latency(
    frames: list[bytes], opening: int, latency_s: float
) -> None:
    planned = list(streaming.bursts(frames, latency_s, opening))
    assert b"".join(data for _, data, _ in planned) == b"".join(frames)
    times = [at_s for at_s, _, _ in planned]
    assert times == sorted(times)
    assert times[-1] == latency_s
    assert [is_last for _, _, is_last in planned] == [False] * (len(planned) - 1) + [True]
    assert len(planned) <= 21


@given(_FRAMES, st.integers(0, 90), st.floats(0, 2))
def test_bursts_taken_up_in_the_middle_keep_their_times(
    frames: list[bytes], first: int, latency_s: float
) -> None:
    whole = {at_s: is_last for at_s, _, is_last in streaming.bursts(frames, latency_s)}
    planned = list(streaming.bursts(frames, latency_s, first=first))
    assert b"".join(data for _, data, _ in planned) == b"".join(frames[first:])
    assert all(whole[at_s] is is_last for at_s, _, is_last in planned)
    assert bool(planned) is (first < len(frames))


def test_deltas_carry_the_logprobs_of_their_tokens() -> None:
    asked: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    response = _response(**asked)
    whole = response["output"][0]["content"][0]["logprobs"]
    events = make_events(response)
    for event in events:
        _EVENT.validate_json(json.dumps(event), strict=True)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [event["logprobs"][0]["token"] for event in deltas] == [e["delta"] for e in deltas]
    assert [one for event in deltas for one in event["logprobs"]] == whole
    (done,) = (event for event in events if event["type"] == "response.output_text.done")
    assert done["logprobs"] == whole
    unasked = make_events(_response())
    assert all(not event["logprobs"] for event in unasked if "logprobs" in event)


def test_work_in_background_is_queued_first() -> None:
    created, queued, begun = make_events(_response(background=True))[:3]
    assert (created["type"], queued["type"]) == ("response.created", "response.queued")
    assert created["response"]["status"] == queued["response"]["status"] == "queued"
    assert (begun["type"], begun["response"]["status"]) == ("response.in_progress", "in_progress")


@given(st.binary(), st.integers(0, 9))
def test_cuts_joined_are_what_was_cut(data: bytes, seed: int) -> None:
    pieces = list(streaming.cut_anywhere(data, Random(seed)))
    assert b"".join(pieces) == data
    assert all(pieces)


def test_an_event_is_a_name_a_line_of_data_and_a_blank_line() -> None:
    event = {"type": "response.queued", "sequence_number": 1}
    assert streaming.render_events([event], ()) == [
        b'event: response.queued\ndata: {"type":"response.queued","sequence_number":1}\n\n'
    ]


def test_what_ends_a_stream_is_left_out_where_a_fault_ends_it() -> None:
    event = {"type": "a"}
    whole = b'event: a\ndata: {"type":"a"}\n\n'
    assert streaming.render_events([event], (Quirk.DONE,)) == [whole + b"data: [DONE]\n\n"]
    assert streaming.render_events([event], (Quirk.DONE,), is_whole=False) == [whole]
    assert streaming.render_events([event], (Quirk.NO_LAST_BLANK,)) == [whole[:-1]]
