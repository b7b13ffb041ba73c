"""A response as server-sent events: which events, as which bytes, sent when.

No I/O. The terminal event carries the response as it is; all events before it follow from it.
"""

import re
from collections.abc import Iterator
from random import Random
from typing import Any

from batchrun.simulator.faults import change_events, encode, unfinished
from batchrun.simulator.settings import Fault, Quirk

Item = dict[str, Any]
CONTENT_TYPE = "text/event-stream; charset=utf-8"
PING = b": PING\n\n"
_DONE = b"data: [DONE]\n\n"
_OPENING = 2  # events that come at once: the request is accepted
_PIECE = re.compile(r"\s*\S{1,12}|\s+")  # about a word
_PADDED_TO = 16  # characters of a delta and its padding
_PADDING = "hT3sQ9vLx0aRk7Wd"
_SEARCH_STEPS = ("in_progress", "searching", "completed")
_MOST_BURSTS = 20
_LEAST_BURST_S = 0.01  # shorter steps are not worth a timer
_LONGEST_CUT = 60


def render_stream(
    response: Item, options: Item, quirks: tuple[Quirk, ...], fault: Fault | None
) -> list[bytes]:
    """The bytes of each event, in order; `options` are the `stream_options` of the request."""
    events = make_events(response, padded=options.get("include_obfuscation") is not False)
    if quirks or fault is not None:
        events = change_events(events, quirks, fault)
    return render_events(events, quirks, is_whole=fault is None)


def make_events(response: Item, *, padded: bool = True) -> list[Item]:
    """All events in order; `padded` adds `obfuscation` to deltas, as the API does unasked."""
    events = list(_events(response, padded=padded))
    for number, event in enumerate(events):
        event["sequence_number"] = number
    return events


def split_text(text: str) -> list[str]:
    """The text in deltas, each of which is one token for logprobs; joined they are the text."""
    return _PIECE.findall(text)


def render_events(
    events: list[Item], quirks: tuple[Quirk, ...], *, is_whole: bool = True
) -> list[bytes]:
    """The bytes of each event, in order; what ends a whole stream goes with the last."""
    made = [_render_event(event, quirks) for event in events]
    if not quirks:
        return made
    if is_whole and Quirk.NO_LAST_BLANK in quirks:
        made[-1] = made[-1][:-1]
    elif is_whole and Quirk.DONE in quirks:
        made[-1] += _DONE
    if Quirk.PINGS in quirks:
        made = [PING + data for data in made]
    if Quirk.CRLF in quirks:
        made = [data.replace(b"\n", b"\r\n") for data in made]  # JSON escapes its own line ends
    return made


def bursts(
    events: list[bytes], latency_s: float, opening: int = _OPENING, first: int = 0
) -> Iterator[tuple[float, bytes, bool]]:
    """What is sent, in how many seconds from the start, and whether it is the last.

    The opening comes at once, the last burst with the latency. Of a stream that is taken up in the
    middle, `first` is the number of its first event; the others keep their times.
    """
    count = len(events) - opening
    steps = min(count, _MOST_BURSTS, int(latency_s / _LEAST_BURST_S))
    if steps < 2:
        if first < len(events):
            yield latency_s, b"".join(events[first:]), True
        return
    ends = [opening + step * count // steps for step in range(steps + 1)]
    for step, end in enumerate(ends):
        begin = max(ends[step - 1] if step else 0, first)
        if begin < end:
            yield latency_s * (step / steps), b"".join(events[begin:end]), step == steps


def cut_anywhere(data: bytes, rng: Random) -> Iterator[bytes]:
    """The bytes in short pieces that end anywhere."""
    at = 0
    while at < len(data):
        size = rng.randint(1, _LONGEST_CUT)
        yield data[at : at + size]
        at += size


def _render_event(event: Item, quirks: tuple[Quirk, ...]) -> bytes:
    data = encode(event, quirks)
    field = b"data:" if Quirk.NO_SPACE in quirks else b"data: "
    if Quirk.SPLIT_DATA in quirks:
        parts = (data[:1], data[1:-1], data[-1:])  # between two tokens a line may end
        lines = b"".join(field + part + b"\n" for part in parts)
    else:
        lines = field + data + b"\n"
    if Quirk.NO_EVENT_LINES in quirks:
        return lines + b"\n"
    return b"event: %b\n%b\n" % (event["type"].encode(), lines)


def _events(response: Item, *, padded: bool) -> Iterator[Item]:
    begun = unfinished(response, "in_progress")
    if response["background"]:
        queued = unfinished(response, "queued")
        yield {"type": "response.created", "response": queued}
        yield {"type": "response.queued", "response": queued}
    else:
        yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(response["output"]):
        begun = {"output_index": index, "item": _begun_item(item)}
        yield {"type": "response.output_item.added", **begun}
        yield from _item_events(item, {"item_id": item.get("id"), "output_index": index}, padded)
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": f"response.{response['status']}", "response": response}


def _begun_item(item: Item) -> Item:
    """The item when it begins."""
    empty = {"content": [], "summary": [], "arguments": "", "status": "in_progress"}
    return {**item, **{name: value for name, value in empty.items() if name in item}}


def _item_events(item: Item, at: Item, padded: bool) -> Iterator[Item]:
    """What comes between the beginning and the end of an item; `at` says where it is."""
    match item["type"]:
        case "message":
            for index, part in enumerate(item["content"]):
                yield from _content_events(part, {**at, "content_index": index}, padded)
        case "reasoning":
            kind = "response.reasoning_summary"
            for index, part in enumerate(item["summary"]):
                here = {**at, "summary_index": index}
                yield {"type": f"{kind}_part.added", **here, "part": {**part, "text": ""}}
                yield from _deltas(f"{kind}_text", part["text"], here, padded)
                yield {"type": f"{kind}_text.done", **here, "text": part["text"]}
                yield {"type": f"{kind}_part.done", **here, "part": part}
        case "function_call":
            kind = "response.function_call_arguments"
            yield from _deltas(kind, item["arguments"], at, padded)
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield {"type": f"{kind}.done", **at, **done}
        case "web_search_call":
            for step in _SEARCH_STEPS:
                yield {"type": f"response.web_search_call.{step}", **at}


def _content_events(part: Item, at: Item, padded: bool) -> Iterator[Item]:
    empty: Item
    extra: Item
    if part["type"] == "refusal":
        name, kind, empty, extra = "refusal", "response.refusal", {"refusal": ""}, {}
    else:
        name, kind = "text", "response.output_text"
        empty = {"text": "", "annotations": [], "logprobs": []}
        extra = {"logprobs": part["logprobs"]}  # of a delta: those of its one token
    yield {"type": "response.content_part.added", **at, "part": {**part, **empty}}
    marks = list(enumerate(part.get("annotations", ())))
    sent = 0
    for number, event in enumerate(_deltas(kind, part[name], at, padded)):
        if extra:
            event["logprobs"] = part["logprobs"][number : number + 1]
        yield event
        sent += len(event["delta"])
        while marks and marks[0][1]["end_index"] <= sent:
            index, mark = marks.pop(0)
            added = {"annotation_index": index, "annotation": mark}
            yield {"type": "response.output_text.annotation.added", **at, **added}
    yield {"type": f"{kind}.done", **at, **extra, name: part[name]}
    yield {"type": "response.content_part.done", **at, "part": part}


def _deltas(kind: str, text: str, at: Item, padded: bool) -> Iterator[Item]:
    for piece in split_text(text):
        event: Item = {"type": f"{kind}.delta", **at, "delta": piece}
        if padded:
            event["obfuscation"] = _PADDING[: _PADDED_TO - len(piece) % _PADDED_TO]
        yield event
