"""Streams that say their text in deltas or `.done` events, and less in their last event (W.1)."""

import json
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("transport")

Complete = Callable[..., Any]
Make = Callable[..., dict[str, Any]]

_TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
# What is said; its item; the item's field with the parts and their type; the text's field.
_KINDS = {
    "output_text": ("message", "content", "output_text", "text"),
    "refusal": ("message", "content", "refusal", "refusal"),
    "function_call_arguments": ("function_call", None, None, "arguments"),
    "custom_tool_call_input": ("custom_tool_call", None, None, "input"),
    "reasoning_text": ("reasoning", "content", "reasoning_text", "text"),
    "reasoning_summary_text": ("reasoning", "summary", "summary_text", "text"),
}
_SAID = '{"answer": "forty-two"}'


def _item(what: str, text: str) -> dict[str, Any]:
    kind, parts, part, field = _KINDS[what]
    item: dict[str, Any] = {"type": kind, "id": "item_1", "status": "completed"}
    if kind == "message":
        item["role"] = "assistant"
    if kind.endswith("_call"):
        item |= {"call_id": "call_1", "name": "f"}
    said = {"type": part, field: text}
    return {**item, parts: [said]} if parts is not None else {**item, field: text}


def _empty(what: str) -> dict[str, Any]:
    item = {**_item(what, ""), "status": "in_progress"}
    parts = _KINDS[what][1]
    return {**item, parts: []} if parts is not None else item


def _events(what: str, ways: str) -> list[dict[str, Any]]:
    """Those of one item; `ways`: which of them say its text."""
    place = {"output_index": 0, "content_index": 0, "summary_index": 0, "item_id": "item_1"}
    _, _, part, field = _KINDS[what]
    events: list[dict[str, Any]] = []
    if "added" in ways:
        events.append({"type": "response.output_item.added", **place, "item": _empty(what)})
    if "deltas" in ways:
        events += [{"type": f"response.{what}.delta", **place, "delta": one} for one in _SAID]
    if "done" in ways:
        events.append({"type": f"response.{what}.done", **place, field: _SAID})
    if "part" in ways and part is not None:
        said = {"type": part, field: _SAID}
        events.append({"type": "response.content_part.done", **place, "part": said})
    if "item" in ways:
        events.append(
            {"type": "response.output_item.done", **place, "item": _item(what, _SAID)},
        )
    return events


def _read(outcome: Any, what: str) -> Any:
    result = outcome.result
    return {
        "output_text": result.output_text,
        "refusal": result.refusal,
        "reasoning_text": result.reasoning_text,
        "reasoning_summary_text": result.reasoning_summary,
    }.get(what) or result.tool_calls[0].arguments


_LASTS: dict[str, Callable[[str], list[Any]]] = {
    "empty": lambda _: [],
    "empty item": lambda what: [_empty(what)],
    "empty text": lambda what: [_item(what, "")],
    "partial text": lambda what: [_item(what, _SAID[:9])],
}


@pytest.mark.parametrize("last", [*_LASTS, "missing", "null", "no response"])
@pytest.mark.parametrize("ways", ["deltas", "added deltas", "done", "added done", "part", "item"])
@pytest.mark.parametrize("what", _KINDS)
async def test_what_was_said_is_the_answer_where_the_last_event_says_less(
    complete: Complete, answer: Make, what: str, ways: str, last: str
) -> None:
    if "part" in ways and _KINDS[what][2] is None:
        return
    whole = answer(output=_LASTS[last](what) if last in _LASTS else None)
    if last == "missing":
        del whole["output"]
    end = {"type": "response.completed", "response": None if last == "no response" else whole}
    script = [{"events": [*_events(what, ways), end]}]
    outcome = await complete(script, mode="stream")
    assert outcome.result.status == "completed"
    assert _read(outcome, what) == _SAID
    assert len(json.loads(outcome.result.output)) == 1
    assert len(outcome.attempts) == 1
    assert outcome.result.usage.total_tokens == (None if last == "no response" else 80)


@pytest.mark.parametrize("what", _KINDS)
async def test_a_whole_last_event_is_stored_as_it_is(
    complete: Complete, answer: Make, what: str
) -> None:
    output = [_item(what, _SAID)]
    for ways in ("deltas", "added deltas done part item", "item"):
        events = [*_events(what, ways), {"type": "response.completed", "response": answer()}]
        events[-1]["response"]["output"] = output
        outcome = await complete([{"events": events}], mode="stream")
        assert json.loads(outcome.result.output) == output


async def test_several_items_and_parts_are_put_together_in_their_order(
    complete: Complete, answer: Make
) -> None:
    def delta(what: str, item: int, part: int, said: str) -> dict[str, Any]:
        place = {"output_index": item, "content_index": part, "summary_index": part}
        return {"type": f"response.{what}.delta", **place, "delta": said}

    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": ""}
    said = [
        {"type": "response.output_item.added", "output_index": 2, "item": call},
        delta("output_text", 1, 1, "C"),
        delta("function_call_arguments", 2, 0, "{"),
        delta("output_text", 1, 0, "A"),
        delta("reasoning_summary_text", 0, 0, "think"),
        delta("output_text", 1, 0, "B"),
        delta("function_call_arguments", 2, 0, "}"),
        {"type": "response.completed", "response": answer(output=[])},
    ]
    body = {"model": "m", "input": "x", "tools": _TOOLS}
    result = (await complete([{"events": said}], body, mode="stream")).result
    assert [item["type"] for item in json.loads(result.output)] == [
        "reasoning",
        "message",
        "function_call",
    ]
    assert (result.output_text, result.reasoning_summary) == ("ABC", "think")
    (called,) = result.tool_calls
    assert (called.call_id, called.name, called.arguments) == ("call_1", "f", "{}")
    assert called.arguments_valid


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"output_index": None, "content_index": None},
        {"output_index": "0", "content_index": "x"},
        {"output_index": 5, "content_index": 3},
        {"output_index": -1, "content_index": -1},
        {"output_index": 0, "content_index": 0, "item_id": "never_seen"},
        {"item_id": "item_1"},
        {"output_index": [1], "item_id": {}},
    ],
)
@pytest.mark.parametrize("output", ["whole", "partial", "empty"])
async def test_indexes_may_be_missing_or_odd(
    complete: Complete, answer: Make, index: dict[str, Any], output: str
) -> None:
    done = {"type": "response.output_text.done", **index, "text": "forty-two"}
    part = {"type": "output_text", "text": "forty-two"}
    said = [
        {"type": "response.output_item.added", "item": {"type": "message", "id": "item_1"}},
        *({"type": "response.output_text.delta", **index, "delta": one} for one in "forty-two"),
        done,
        {"type": "response.content_part.done", **index, "part": part},
    ]
    outputs = {"whole": [_item("output_text", "forty-two")], "empty": []}
    outputs["partial"] = [_item("output_text", "for")]
    end = {"type": "response.completed", "response": answer(output=outputs[output])}
    outcome = await complete([{"events": [*said, end]}], mode="stream")
    assert outcome.result.output_text == "forty-two"
    assert len(json.loads(outcome.result.output)) == 1


@pytest.mark.parametrize("final", ["hollow", "blank", "shorter"])
async def test_parts_that_are_counted_from_one_are_neither_doubled_nor_exchanged(
    complete: Complete, answer: Make, final: str
) -> None:
    texts = ("first", "the second")
    whole = _item("output_text", "")
    whole["content"] = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    said: list[dict[str, Any]] = [
        {"type": "response.output_text.done", "output_index": 0, "content_index": at, "text": text}
        for at, text in enumerate(texts, 1)
    ]
    said.append({"type": "response.output_item.done", "output_index": 0, "item": whole})
    shown = {"hollow": (), "blank": ("", ""), "shorter": ("fir", "the")}[final]
    parts = [{"type": "output_text", "text": text, "annotations": []} for text in shown]
    last = answer(output=[{**whole, "content": parts}])
    events = [*said, {"type": "response.completed", "response": last}]
    outcome = await complete([{"events": events}], mode="stream")
    assert outcome.result.output_text == "firstthe second"


async def test_a_call_of_which_nothing_but_its_name_was_said_has_no_arguments(
    complete: Complete, answer: Make
) -> None:
    call = {**_item("function_call_arguments", ""), "status": "in_progress"}
    added = {"type": "response.output_item.added", "output_index": 0, "item": call}
    last = {"type": "response.completed", "response": answer(output=[])}
    body = {"model": "m", "input": "x", "tools": _TOOLS}
    outcome = await complete([{"events": [added, last]}], body, mode="stream")
    (found,) = outcome.result.tool_calls
    assert (outcome.ok, found.name, found.arguments, found.status) == (True, "f", "", "completed")


async def test_calls_that_share_an_index_are_told_apart_by_their_ids(
    complete: Complete, answer: Make
) -> None:
    said: list[dict[str, Any]] = []
    for number in (1, 2):
        ids = {"id": f"fc_{number}", "call_id": f"call_{number}", "name": "f"}
        place = {"output_index": 0, "item_id": f"fc_{number}"}
        arguments = f'{{"n": {number}}}'
        added = {"type": "function_call", **ids, "arguments": ""}
        said += [
            {"type": "response.output_item.added", "output_index": 0, "item": added},
            *(
                {"type": "response.function_call_arguments.delta", **place, "delta": one}
                for one in arguments
            ),
        ]
    for output in ([], [{**_item("function_call_arguments", '{"n": 2}'), "call_id": "call_2"}]):
        end = {"type": "response.completed", "response": answer(output=output)}
        outcome = await complete([{"events": [*said, end]}], mode="stream")
        calls = {call.call_id: call.arguments for call in outcome.result.tool_calls}
        assert calls == {"call_1": '{"n": 1}', "call_2": '{"n": 2}'}


async def test_finished_calls_that_the_last_event_lacks_are_part_of_the_answer(
    complete: Complete, answer: Make
) -> None:
    """Also without arguments, and those of hosted tools, which are billed by the piece."""
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    items = [search, *(_item("function_call_arguments", ""), _item("output_text", "so"))]
    said: list[dict[str, Any]] = [
        {"type": "response.output_item.done", "output_index": index, "item": item}
        for index, item in enumerate(items)
    ]
    said += [{"type": "response.completed", "response": answer(output=items[2:])}]
    outcome = await complete([{"events": said}], mode="stream")
    assert json.loads(outcome.result.output) == items


async def test_a_last_event_that_says_the_same_otherwise_is_not_doubled(
    complete: Complete, answer: Make
) -> None:
    """Trimmed, joined, moved, or with other ids: nothing of it is missing."""
    delta = {"type": "response.output_text.delta", "item_id": "a"}
    said = [
        {**delta, "output_index": 1, "delta": " forty"},
        {**delta, "output_index": 1, "delta": "-two\n"},
        {**delta, "output_index": 2, "item_id": "b", "delta": "and more"},
    ]
    for texts in (["forty-two", "and more"], ["forty-two and more"]):
        output = [{**_item("output_text", text), "id": text} for text in texts]
        end = {"type": "response.completed", "response": answer(output=output)}
        outcome = await complete([{"events": [*said, end]}], mode="stream")
        assert json.loads(outcome.result.output) == output


async def test_text_that_is_sent_twice_is_stored_once(complete: Complete, answer: Make) -> None:
    delta = {"type": "response.output_text.delta", "output_index": 0}
    done = {"type": "response.output_text.done", "output_index": 0, "text": "haha"}
    whole = [{**delta, "delta": "ha"}, {**delta, "delta": "ha"}, {**delta, "delta": "haha"}, done]
    numbered = [{**delta, "delta": "ha", "sequence_number": number} for number in (0, 1, 1, 2, 2)]
    end = {"type": "response.completed", "response": answer(output=[])}
    outcome = await complete([{"events": [*whole, end]}], mode="stream")
    assert outcome.result.output_text == "haha"
    outcome = await complete([{"events": [*numbered, end]}], mode="stream")
    assert outcome.result.output_text == "hahaha"


async def test_a_failed_response_has_the_text_that_its_stream_said(
    complete: Complete, answer: Make
) -> None:
    error = {"code": "invalid_prompt", "message": "stopped"}
    failed = answer(status="failed", output=[], error=error)
    said = [*_events("output_text", "deltas"), {"type": "response.failed", "response": failed}]
    outcome = await complete([{"events": said}], mode="stream")
    assert (outcome.result.status, outcome.ok) == ("failed", False)
    assert (outcome.result.output_text, outcome.result.id) == (_SAID, "resp_1")
