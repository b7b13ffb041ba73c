"""The events that a stream tells a response in, from `response.created` to the terminal one.

Pure: the terminal event carries the response as it is; all before it follows from it.
"""

import re
from collections.abc import Iterator
from typing import Any

from batchrun.simulator.standing import unfinished

Item = dict[str, Any]
OPENING = 2  # events that come at once: the request is accepted
_PIECE = re.compile(r"\s*\S{1,12}|\s+")  # about a word
_PADDED_TO = 16  # characters of a delta and its padding
_PADDING = "hT3sQ9vLx0aRk7Wd"
_TERMINAL = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "failed": "response.failed",
}
_SEARCH_STEPS = ("in_progress", "searching", "completed")


def make_events(response: Item, *, padded: bool = True) -> list[Item]:
    """All events in order; `padded` adds `obfuscation` to deltas, as the API does unasked."""
    events = list(_all(response, padded=padded))
    for number, event in enumerate(events):
        event["sequence_number"] = number
    return events


def pieces(text: str) -> list[str]:
    """The text in deltas; joined they are the text."""
    return _PIECE.findall(text)


def _all(response: Item, *, padded: bool) -> Iterator[Item]:
    begun = unfinished(response, "in_progress")
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for place, item in enumerate(response["output"]):
        yield from _item_events(item, place, padded=padded)
    yield {"type": _TERMINAL[response["status"]], "response": response}


def _item_events(item: Item, place: int, *, padded: bool) -> Iterator[Item]:
    at: Item = {"item_id": item.get("id"), "output_index": place}
    yield {"type": "response.output_item.added", "output_index": place, "item": _empty(item)}
    if item["type"] == "message":
        for index, part in enumerate(item["content"]):
            yield from _part_events(part, {**at, "content_index": index}, padded=padded)
    elif item["type"] == "reasoning":
        for index, part in enumerate(item["summary"]):
            yield from _summary_events(part, {**at, "summary_index": index}, padded=padded)
    elif item["type"] == "function_call":
        kind = "response.function_call_arguments"
        yield from _deltas(kind, item["arguments"], at, padded=padded)
        done = {"arguments": item["arguments"], "name": item["name"]}
        yield {"type": f"{kind}.done", **at, **done}
    elif item["type"] == "web_search_call":
        for step in _SEARCH_STEPS:
            yield {"type": f"response.web_search_call.{step}", **at}
    yield {"type": "response.output_item.done", "output_index": place, "item": item}


def _empty(item: Item) -> Item:
    """As it is when it begins."""
    begun = {**item, "status": "in_progress"} if "status" in item else dict(item)
    for name, nothing in (("content", []), ("summary", []), ("arguments", "")):
        if name in begun:
            begun[name] = nothing
    return begun


def _part_events(part: Item, at: Item, *, padded: bool) -> Iterator[Item]:
    refuses = part["type"] == "refusal"
    name = "refusal" if refuses else "text"
    kind = "response.refusal" if refuses else "response.output_text"
    besides: Item = {} if refuses else {"logprobs": []}
    empty = {**part, name: ""} if refuses else {**part, name: "", "annotations": []}
    yield {"type": "response.content_part.added", **at, "part": empty}
    marks = list(enumerate(part.get("annotations", ())))
    told = 0
    for event in _deltas(kind, part[name], {**at, **besides}, padded=padded):
        yield event
        told += len(event["delta"])
        while marks and marks[0][1]["end_index"] <= told:
            index, mark = marks.pop(0)
            yield {
                "type": "response.output_text.annotation.added",
                **at,
                "annotation_index": index,
                "annotation": mark,
            }
    yield {"type": f"{kind}.done", **at, **besides, name: part[name]}
    yield {"type": "response.content_part.done", **at, "part": part}


def _summary_events(part: Item, at: Item, *, padded: bool) -> Iterator[Item]:
    kind = "response.reasoning_summary"
    yield {"type": f"{kind}_part.added", **at, "part": {**part, "text": ""}}
    yield from _deltas(f"{kind}_text", part["text"], at, padded=padded)
    yield {"type": f"{kind}_text.done", **at, "text": part["text"]}
    yield {"type": f"{kind}_part.done", **at, "part": part}


def _deltas(kind: str, text: str, at: Item, *, padded: bool) -> Iterator[Item]:
    for piece in pieces(text):
        event: Item = {"type": f"{kind}.delta", **at, "delta": piece}
        if padded:
            event["obfuscation"] = _PADDING[: _PADDED_TO - len(piece) % _PADDED_TO]
        yield event
