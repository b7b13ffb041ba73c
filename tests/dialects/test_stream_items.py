"""Whatever ways a stream takes to say its items, they are understood as they were meant."""

import json
import random
from typing import Any

import pytest

from batchrun.dialects.responses import StreamAnswer, parse_response
from batchrun.dialects.sse import Event
from batchrun.records import Request, Response

CASES, SHARES = 4_000, 4
_REQUEST = Request(0, "0", "f", b'{"model":"m","input":"x"}', "0" * 16, "m", None, ())
_LETTERS = 'ab \n"\\é中🙂{}'
_WHAT = {"output_text": "text", "refusal": "refusal", "function_call_arguments": "arguments"}


def _text(draw: random.Random, number: int) -> str:
    """A text that no other one contains, without blanks at its ends."""
    return f"<{number}{''.join(draw.choices(_LETTERS, k=draw.randrange(12)))}>"


def _items(draw: random.Random) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    count = 0
    for number in range(draw.randint(1, 4)):
        kind = draw.choice(("message", "message", "function_call", "reasoning"))
        item: dict[str, Any] = {"type": kind, "id": f"item_{number}", "status": "completed"}
        texts = [_text(draw, count + part) for part in range(draw.randint(1, 3))]
        count += len(texts)
        if kind == "message":
            types = [draw.choice(("output_text", "output_text", "refusal")) for _ in texts]
            named = zip(types, texts, strict=True)
            item["content"] = [{"type": what, _WHAT[what]: text} for what, text in named]
        elif kind == "reasoning":
            item["summary"] = [{"type": "summary_text", "text": text} for text in texts]
        else:
            item |= {"call_id": f"call_{number}", "name": "f", "arguments": texts[0]}
        items.append(item)
    return items


def _parts(item: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is said, the field of a `.done` event, and the text."""
    if item["type"] == "function_call":
        return [("function_call_arguments", "arguments", item["arguments"])]
    if item["type"] == "reasoning":
        return [("reasoning_summary_text", "text", part["text"]) for part in item["summary"]]
    return [(p["type"], _WHAT[p["type"]], p[_WHAT[p["type"]]]) for p in item["content"]]


def _with_texts(item: dict[str, Any], change: Any) -> dict[str, Any]:
    new: dict[str, Any] = json.loads(json.dumps(item))
    for part in (*new.get("content", ()), *new.get("summary", ())):
        field = _WHAT.get(part["type"], "text")
        part[field] = change(part[field])
    if "arguments" in new:
        new["arguments"] = change(new["arguments"])
    return new


def _stream(draw: random.Random, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events; each text is said whole in at least one way."""
    has_index = draw.random() < 0.8
    events: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        where: dict[str, Any] = {"output_index": index} if has_index else {}
        # Without an index, an id and the item itself, nothing would tell one item from the next.
        ids = {"item_id": item["id"]} if not has_index or draw.random() < 0.5 else {}
        is_call = item["type"] == "function_call"
        if is_call or draw.random() < 0.5:
            added = {**_with_texts(item, lambda _: ""), "status": "in_progress"}
            added |= {name: [] for name in ("content", "summary") if name in added}
            events.append({"type": "response.output_item.added", **where, "item": added})
        ways = draw.sample(("deltas", "done", "part", "item"), draw.randint(1, 4))
        if is_call and ways == ["part"]:
            ways = ["deltas"]
        for place, (what, field, text) in enumerate(_parts(item)):
            at = {**where, **ids, "content_index": place, "summary_index": place}
            size = draw.randint(1, 5)
            if "deltas" in ways:
                events += [
                    {"type": f"response.{what}.delta", **at, "delta": text[start : start + size]}
                    for start in range(0, len(text), size)
                ]
            if "done" in ways:
                events.append({"type": f"response.{what}.done", **at, field: text})
            if "part" in ways and not is_call:
                kind = {"reasoning_summary_text": "summary_text"}.get(what, what)
                part = {"type": kind, field: text}
                events.append({"type": "response.content_part.done", **at, "part": part})
        if "item" in ways:
            events.append({"type": "response.output_item.done", **where, "item": item})
    return events


def _last(draw: random.Random, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output in the last event: whole or less."""
    match draw.randrange(6):
        case 0:
            return items
        case 1:
            return []
        case 2:
            return [_with_texts(item, lambda _: "") for item in items]
        case 3:
            return [_with_texts(item, lambda text: text[: len(text) // 2]) for item in items]
        case 4:
            return [_with_texts(item, lambda text: f" {text}\n") for item in items]
        case _:
            return [item for item in items if draw.random() < 0.5]


def _read(output: list[dict[str, Any]]) -> Any:
    answer = {"object": "response", "status": "completed", "output": output}
    response = parse_response(json.dumps(answer).encode(), _REQUEST)
    assert isinstance(response, Response)
    calls = [
        (call.call_id, call.name, (call.arguments or "").strip()) for call in response.tool_calls
    ]
    texts = (response.output_text, response.refusal, response.reasoning_summary)
    return [" ".join((text or "").split()) for text in texts], calls


@pytest.mark.parametrize("share", range(SHARES))
def test_what_was_said_is_what_is_understood(share: int) -> None:
    for seed in range(share, CASES, SHARES):
        draw = random.Random(seed)
        items = _items(draw)
        last = _last(draw, items)
        answer = StreamAnswer()
        events = _stream(draw, items)
        for event in events:
            answer.take(Event("", json.dumps(event).encode()))
        response = {"object": "response", "status": "completed", "output": last}
        end = {"type": "response.completed", "response": response}
        answer.take(Event("", json.dumps(end).encode()))
        body = answer.body()
        assert body is not None
        understood = json.loads(body)["output"]
        shown = json.dumps([*events, end], ensure_ascii=False)
        pads = _with_texts  # white space at the ends of a text is as the last event has it
        as_meant = [pads(item, lambda text: f" {text}\n") for item in items]
        options = [_read(items), _read(as_meant)]
        assert _read(understood) in options, f"seed {seed}: {shown}\n{understood}"
        if last == items:
            assert understood == items, f"seed {seed}"
