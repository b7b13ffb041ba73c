"""Odd streams: what is said where, how it ends, and how its events are written (items 1 and 2)."""

import copy
import json
import random
from collections.abc import Callable
from functools import partial

from tests.odd_servers.cases import BYTES, EVENTS, Case, Json, Table, to_json

table = Table(EVENTS)
STREAM = ("stream",)
_END_KINDS = ("completed", "incomplete", "failed", "done")


def kind_of(event: Json | bytes) -> str:
    return "" if isinstance(event, bytes) else str(event.get("type", ""))


def final_of(case: Case) -> Json:
    """The last event of the answer; its response is a copy, which may be changed."""
    event = case.events[final_place(case)]
    assert isinstance(event, dict)
    if "response" in event:
        event["response"] = copy.deepcopy(event["response"])
    return event


def final_place(case: Case) -> int:
    """Where it is, whatever follows it."""
    finals = [f"response.{name}" for name in _END_KINDS]
    places = [at for at, event in enumerate(case.events) if kind_of(event) in finals]
    return places[0]


def _keep(case: Case, holds: Callable[[str], bool]) -> None:
    case.events = [event for event in case.events if holds(kind_of(event))]


# 1. Where the text is said


def _is_delta(kind: str) -> bool:
    return kind.endswith(".delta")


def _is_text_done(kind: str) -> bool:
    return kind.endswith((".delta", ".done")) and not kind.endswith(("part.done", "item.done"))


def _empty(response: Json, draw: random.Random) -> None:
    if draw.random() < 0.5:
        response["output"] = []
    else:
        response.pop("output", None)


def _hollow(response: Json, _draw: random.Random) -> None:
    """Its items are there, but say nothing."""
    for item in response.get("output") or ():
        for name in ("content", "summary"):
            if isinstance(item.get(name), list):
                item[name] = []
        for name in ("arguments", "input"):
            if name in item:
                item[name] = ""


def _blank_texts(response: Json, _draw: random.Random) -> None:
    for item in response.get("output") or ():
        for name in ("content", "summary"):
            for part in item.get(name) if isinstance(item.get(name), list) else ():
                part["refusal" if part["type"] == "refusal" else "text"] = ""


def _shorter(response: Json, draw: random.Random) -> None:
    for item in response.get("output") or ():
        for name in ("content", "summary"):
            for part in item.get(name) if isinstance(item.get(name), list) else ():
                field = "refusal" if part["type"] == "refusal" else "text"
                part[field] = part[field][: draw.randint(0, len(part[field]))]


_FINALS = {"empty": _empty, "hollow": _hollow, "blank": _blank_texts, "shorter": _shorter}


def _final(case: Case, change: Callable[[Json, random.Random], None]) -> None:
    change(final_of(case).get("response", {}), case.draw)
    case.is_verbatim = False


for _name, _change in _FINALS.items():
    table.add(f"1.final={_name}", "final", partial(_final, change=_change), modes=STREAM)


def _without(case: Case, is_left_out: Callable[[str], bool], *, has_notes: bool) -> None:
    """The rest of the events; the last one is empty."""
    last = final_of(case)
    _keep(case, lambda kind: kind == last["type"] or not is_left_out(kind))
    _final(case, _empty)
    if not has_notes:
        case.is_unsaid("citations")


# Searches and items of other kinds are said in whole items alone.
_NEEDS = ("no search",)
_OUT = ("content", "item status", "no_final")
table.add(
    "1.only_deltas",
    "events",
    partial(_without, is_left_out=lambda kind: kind.endswith(".done"), has_notes=False),
    modes=STREAM,
    needs=_NEEDS,
    excludes=_OUT,
)
table.add(
    "1.only_done",
    "events",
    partial(
        _without,
        is_left_out=lambda kind: _is_delta(kind) or kind.endswith(("part.done", "item.done")),
        has_notes=False,
    ),
    modes=STREAM,
    needs=_NEEDS,
    excludes=_OUT,
)
table.add(
    "1.only_items",
    "events",
    partial(
        _without,
        is_left_out=lambda kind: not kind.endswith(("item.done", "created", "item.added")),
        has_notes=True,
    ),
    modes=STREAM,
)
table.add(
    "1.only_parts",
    "events",
    partial(
        _without,
        is_left_out=lambda kind: _is_text_done(kind) or kind.endswith("item.done"),
        has_notes=True,
    ),
    modes=STREAM,
    needs=("no search", "no call", "no custom"),
    excludes=(*_OUT, "calls"),
)


@table.named("1.no_deltas", "events", modes=STREAM)
def _(case: Case) -> None:
    _keep(case, lambda kind: not _is_delta(kind))


@table.named(
    "1.last_delta_says_all", "events", modes=STREAM, needs=("text",), excludes=("content",)
)
def _(case: Case) -> None:
    found: list[Json | bytes] = []
    for event in case.events:
        if kind_of(event) == "response.output_text.done":
            assert isinstance(event, dict)
            found.append({**event, "type": "response.output_text.delta", "delta": event["text"]})
            found[-1].pop("text")  # type: ignore[union-attr]
        found.append(event)
    case.events = found


_INDEXES = ("output_index", "content_index", "summary_index")


def _indexes(case: Case, change: Callable[[Json, str], None]) -> None:
    for event in case.events:
        for name in _INDEXES:
            if isinstance(event, dict) and name in event:
                change(event, name)


def _drop(event: Json, name: str) -> None:
    del event[name]


def _zero(event: Json, name: str) -> None:
    event[name] = 0 if name == "output_index" else event[name]


def _from_one(event: Json, name: str) -> None:
    event[name] += 1


def _as_text(event: Json, name: str) -> None:
    event[name] = f"n{event[name]}"


table.add("1.no_indexes", "indexes", partial(_indexes, change=_drop), modes=STREAM)
table.add("1.zero_indexes", "indexes", partial(_indexes, change=_zero), modes=STREAM)
table.add("1.indexes_from_one", "indexes", partial(_indexes, change=_from_one), modes=STREAM)
table.add("1.indexes_as_text", "indexes", partial(_indexes, change=_as_text), modes=STREAM)


@table.named("1.no_item_ids", "ids", modes=STREAM, excludes=("zero_indexes",))
def _(case: Case) -> None:
    for event in case.events:
        if isinstance(event, dict):
            event.pop("item_id", None)


@table.named("1.ids_of_their_own", "ids", modes=STREAM, excludes=("indexes",))
def _(case: Case) -> None:
    for number, event in enumerate(case.events):
        if isinstance(event, dict) and "item_id" in event:
            event["item_id"] = f"made_up_{number}"


# 2. How it ends


@table.named("2.response.done", "final name", modes=STREAM, excludes=("no_final",))
def _(case: Case) -> None:
    final_of(case)["type"] = "response.done"


@table.named("2.named_completed", "final name", modes=STREAM, excludes=("no_final",))
def _(case: Case) -> None:
    """The status within counts, not the event's name."""
    final_of(case)["type"] = "response.completed"


@table.named("2.final_without_response", "final", modes=STREAM, excludes=("usage", "status", "4."))
def _(case: Case) -> None:
    event = final_of(case)
    del event["response"]
    case.is_verbatim = False
    case.is_unsaid("usage")


# Only the last event says why an answer is incomplete, or what it cost.
_LOST = ("final", "final name", "status", "usage", "only_", "content", "error", "fields")


@table.named("2.no_final_but_mark", "final", modes=STREAM, excludes=_LOST)
def _(case: Case) -> None:
    del case.events[final_place(case)]
    case.events.append(b"data: [DONE]\n\n")
    case.is_unsaid("usage")


@table.named("2.done_mark", "mark", modes=STREAM)
def _(case: Case) -> None:
    case.events.append(b"data: [DONE]\n\n")


@table.named("2.final_twice", "mark", modes=STREAM, excludes=("no_final",))
def _(case: Case) -> None:
    case.events.append(final_of(case))


@table.named("2.created_often", "begin", modes=STREAM)
def _(case: Case) -> None:
    case.events[0:0] = [case.events[0]] * case.draw.randint(1, 30)


@table.named("2.created_missing", "begin", modes=STREAM, excludes=("no_final", "final"))
def _(case: Case) -> None:
    _keep(case, lambda kind: kind not in ("response.created", "response.in_progress"))


def _insert(case: Case, *events: Json | bytes) -> None:
    """Somewhere before the last event."""
    at = case.draw.randint(1, max(1, len(case.events) - 3))
    case.events[at:at] = events


_ERROR = {"type": "server_error", "code": None, "message": "a worker restarts", "param": None}


@table.named("2.error_key", "error event", modes=STREAM)
def _(case: Case) -> None:
    """In an event that has a type of its own and goes on."""
    for event in case.events[:-1]:
        if isinstance(event, dict) and case.draw.random() < 0.3:
            event["error"] = case.draw.choice((None, "", {}, _ERROR, "slow"))


@table.named("2.error_goes_on", "error event", modes=STREAM)
def _(case: Case) -> None:
    shape = case.draw.choice(
        (
            {"type": "error", "error": _ERROR},
            {"type": "error", "code": "server_error", "message": "x", "param": None},
            {"type": "response.error", "error": "slow"},
            {"type": "warning", "error": _ERROR},
        )
    )
    _insert(case, shape)


@table.named("2.words_between", "error event", modes=STREAM)
def _(case: Case) -> None:
    _insert(
        case, b"data: still working\n\n", b"data: {half\n\n", b"data: null\n\n", b"data: []\n\n"
    )


@table.named("2.unknown_events", "error event", modes=STREAM)
def _(case: Case) -> None:
    _insert(
        case,
        {"type": "ping"},
        {"type": "response.new_kind.delta", "delta": "not this", "output_index": 0},
        {"type": "keepalive", "response": None, "sequence_number": 3},
        {"object": "chat.completion.chunk", "choices": []},
    )


@table.named("12.usage_beside", "usage", modes=STREAM, excludes=("final", "no_final"))
def _(case: Case) -> None:
    event = final_of(case)
    event["usage"] = event["response"].pop("usage")


@table.named("12.usage_event", "usage", modes=STREAM, excludes=("final", "no_final"))
def _(case: Case) -> None:
    usage = final_of(case)["response"].pop("usage")
    case.events.insert(final_place(case), {"type": "response.usage", "usage": usage})


@table.named("2.untyped_whole", "whole", modes=STREAM, excludes=("1.", "2.", "12.", "6.", "final"))
def _(case: Case) -> None:
    """The whole response as an event without a type."""
    case.events = [to_whole(case), b"data: [DONE]\n\n"]


def to_whole(case: Case) -> bytes:
    return b"data: " + to_json(case.served, case.draw) + b"\n\n"


# How events are written

bytes_table = Table(BYTES)


@bytes_table.named("2.no_names", "names", modes=STREAM)
def _(case: Case) -> None:
    case.is_named = False


@bytes_table.named("2.crlf", "lines", modes=STREAM)
def _(case: Case) -> None:
    case.line_end = "\r\n"


@bytes_table.named("2.cr", "lines", modes=STREAM)
def _(case: Case) -> None:
    case.line_end = "\r"


def _comments(case: Case, lines: tuple[bytes, ...]) -> None:
    events: list[Json | bytes] = []
    for event in case.events:
        if case.draw.random() < 0.3:
            events.append(case.draw.choice(lines))
        events.append(event)
    case.events = events


table_of_lines: dict[str, tuple[bytes, ...]] = {
    "comments": (b": PING\n\n", b":\n", b": x\r\n\r\n", b":ok\n\n\n"),
    "fields": (b"id: 7\n", b"retry: 3000\n\n", b"event\n", b"unknown: x\n", b"data\n\n"),
}
for _name, _lines in table_of_lines.items():
    _apply = partial(_comments, lines=_lines)
    bytes_table.add(f"2.{_name}", "comments", _apply, modes=STREAM)


@bytes_table.named("2.several_data_lines", "data lines", modes=STREAM, excludes=("lines",))
def _(case: Case) -> None:
    def split(event: Json | bytes) -> bytes:
        if isinstance(event, bytes):
            return event
        lines = json.dumps(event, indent=1, ensure_ascii=False).split("\n")
        return b"".join(b"data: " + line.encode() + b"\n" for line in lines) + b"\n"

    case.events = [split(event) for event in case.events]


@bytes_table.named("2.no_space", "data lines", modes=STREAM, excludes=("lines",))
def _(case: Case) -> None:
    case.events = [
        event if isinstance(event, bytes) else b"data:" + to_json(event, case.draw) + b"\n\n"
        for event in case.events
    ]


@bytes_table.named("2.byte_order_mark", "begin bytes", modes=STREAM)
def _(case: Case) -> None:
    case.events.insert(0, b"\xef\xbb\xbf")


@bytes_table.named("2.blank_lines_first", "begin bytes", modes=STREAM)
def _(case: Case) -> None:
    case.events.insert(0, b"\n\n: hello\n\n")
