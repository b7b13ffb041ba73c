"""Good answers at random: texts, refusals, calls, reasoning, searches, in each mode."""

import copy
import json
import random
from collections.abc import Iterable
from typing import Any

from tests.odd_servers.cases import Case, Json, Wire, to_json

MODEL = "m"
_WORDS = (
    *("forty-two", "the", "answer", "is", "naïve", "Grüße", "中文字", "日本語", "🙂🚀", "שלום"),
    *("\u2028", "\x85", "\t", "\n", "\n\n", '"', "\\", "\\n", "{", "}", "</html>", "null", "0"),
    *("data: [DONE]", "event: error", "\r\n", "e\u0301", "\x00", "\x1b[31m", "'", ",", ": ", " "),
    *("error", "429", "rate limit exceeded", "insufficient balance", "余额不足", "<b>", "&amp;"),
)
TOOLS: list[Json] = [
    {
        "type": "function",
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"key": {"type": "string"}},
            "required": ["key"],
        },
    },
    {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}},
    {"type": "custom", "name": "shell"},
]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
    "required": ["a"],
}
FEATURES = ("text", "texts", "refusal", "call", "custom", "reasoning", "summary", "search")


def words(draw: random.Random, most: int = 12) -> str:
    return " ".join(draw.choice(_WORDS) for _ in range(draw.randint(1, most)))


def good_case(draw: random.Random, mode: str, name: str, needs: set[str]) -> Case:
    """A row and its good answer, which has what is needed."""
    features = needs & {*FEATURES, "schema"}
    if not features & {"text", "texts", "refusal", "call", "custom"}:
        kinds = ("text", "text", "text", "texts", "refusal", "call", "custom")
        features.add(draw.choice([kind for kind in kinds if f"no {kind}" not in needs]))
    for feature, share in (("reasoning", 0.2), ("summary", 0.2), ("search", 0.1), ("call", 0.1)):
        if draw.random() < share and f"no {feature}" not in needs:
            features.add(feature)
    if features & {"text", "texts"} and draw.random() < 0.2 and not features & {"call", "custom"}:
        features.add("schema")
    row: Json = {"custom_id": name, "user": name, "input": f"{name} {words(draw)}"}
    if features & {"call", "custom"}:
        row["tools"] = TOOLS
    if "schema" in features:
        row["text"] = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}
    if draw.random() < 0.3:
        row["max_output_tokens"] = 100_000
    answer = {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": draw.choice((1_756_108_120, 1_756_108_120.5)),
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": draw.choice((MODEL, "m-2026-11-01", "上游/m")),
        "output": _output(draw, features, name),
        "usage": _usage(draw),
    }
    if draw.random() < 0.3:
        answer |= {"instructions": None, "tools": row.get("tools", []), "metadata": {"error": "x"}}
    return Case(draw, mode, row, answer, copy.deepcopy(answer))


def _usage(draw: random.Random) -> Json:
    read, written = draw.randint(10, 2000), draw.randint(20, 4000)
    cached, reasoned = draw.randint(1, read), draw.randint(1, written)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": reasoned},
        "total_tokens": read + written,
    }


def _output(draw: random.Random, features: set[str], name: str) -> list[Json]:
    output: list[Json] = []
    if features & {"reasoning", "summary"}:
        item: Json = {"id": f"rs_{name}", "type": "reasoning", "summary": []}
        if "summary" in features:
            count = draw.randint(1, 2)
            parts = [{"type": "summary_text", "text": f"I {words(draw)}."} for _ in range(count)]
            item["summary"] = parts
        if "reasoning" in features:
            item["content"] = [{"type": "reasoning_text", "text": f"Hm: {words(draw)}."}]
        output.append(item)
    if "search" in features:
        action = {"type": "search", "query": "weather", "queries": ["weather", "中文"]}
        item = {"id": f"ws_{name}", "type": "web_search_call", "status": "completed"}
        output.append({**item, "action": action})
    if features & {"text", "texts"}:
        is_json = "schema" in features
        most = 1 if is_json else draw.randint(1, 2)
        for number in range(2 if "texts" in features and not is_json else 1):
            content = [_text_part(draw, is_json=is_json) for _ in range(most)]
            output.append(_message(f"msg_{name}_{number}", content))
    if "refusal" in features:
        part = {"type": "refusal", "refusal": f"No: {words(draw)}."}
        output.append(_message(f"msg_{name}_r", [part]))
    calls = draw.randint(1, 3) if "call" in features else 0
    output += [_call(draw, f"{name}_{number}") for number in range(calls)]
    if "custom" in features:
        item = {"id": f"ctc_{name}", "type": "custom_tool_call", "call_id": f"call_c_{name}"}
        output.append(
            {**item, "name": "shell", "input": f"run {words(draw)};", "status": "completed"}
        )
    return output


def _message(item_id: str, content: list[Json]) -> Json:
    base = {"id": item_id, "type": "message", "role": "assistant", "status": "completed"}
    return {**base, "content": content}


def _text_part(draw: random.Random, *, is_json: bool) -> Json:
    if is_json:
        text = json.dumps({"a": draw.randint(0, 99), "b": words(draw)}, ensure_ascii=False)
    elif draw.random() < 0.02:
        text = words(draw, 4) + "long 長い " * draw.randint(1000, 20_000) + "."
    else:
        text = "So: " + words(draw) + "."  # never blank
    note: Json = {"type": "url_citation", "url": "https://x/é", "title": "X"}
    note |= {"start_index": 0, "end_index": 2}
    return {"type": "output_text", "text": text, "annotations": [note] * (draw.random() < 0.2)}


def _call(draw: random.Random, name: str) -> Json:
    tool = draw.choice(("look_up", "look_up", "now"))
    arguments = draw.choice(('{"key": "中文 🙂"}', '{"key":"x"}', '{"key": 1}', '{"key"'))
    return {
        "id": f"fc_{name}",
        "type": "function_call",
        "call_id": f"call_{name}",
        "name": tool,
        "arguments": "{}" if tool == "now" else arguments,
        "status": "completed",
    }


# The kinds of text that events say: item, list of parts, part, field, event.
_TEXTS = {
    "output_text": ("content", "text", "response.output_text"),
    "refusal": ("content", "refusal", "response.refusal"),
    "reasoning_text": ("content", "text", "response.reasoning_text"),
    "summary_text": ("summary", "text", "response.reasoning_summary_text"),
}
_FIELDS = {
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
}


def events_of(answer: Json, status: str, draw: random.Random) -> list[Json]:
    """The events of an answer that ends with this status, in order."""
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    begun |= {"error": None, "incomplete_details": None}
    events: list[Json] = [{"type": "response.created", "response": begun}]
    if draw.random() < 0.7:
        events.append({"type": "response.in_progress", "response": begun})
    for index, item in enumerate(answer["output"]):
        events += _item_events(item, index, draw)
    events.append({"type": f"response.{status}", "response": answer})
    if draw.random() < 0.6:
        events = [{**event, "sequence_number": at} for at, event in enumerate(events)]
    return events


def _item_events(item: Json, index: int, draw: random.Random) -> list[Json]:
    at = {"output_index": index, "item_id": item["id"]}
    kind = item["type"]
    bare = {**item, "status": "in_progress"} if "status" in item else dict(item)
    for name in ("content", "summary"):
        if isinstance(bare.get(name), list):
            bare[name] = []
    for name in ("arguments", "input"):
        if name in bare:
            bare[name] = ""
    events: list[Json] = [
        {"type": "response.output_item.added", "output_index": index, "item": bare}
    ]
    for name in ("summary", "content"):
        parts = item.get(name)
        for place, part in enumerate(parts if isinstance(parts, list) else ()):
            events += _part_events(part, place, at, draw)
    if kind in _FIELDS:
        name, event = _FIELDS[kind]
        for piece in pieces(item[name], draw):
            events.append({"type": f"{event}.delta", **at, "delta": piece})
        events.append({"type": f"{event}.done", **at, name: item[name]})
    elif kind == "web_search_call":
        for state in ("in_progress", "searching", "completed"):
            events.append({"type": f"response.web_search_call.{state}", **at})
    events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    return events


def _part_events(part: Json, place: int, at: Json, draw: random.Random) -> list[Json]:
    name, text, event = _TEXTS[part["type"]]
    index = "summary_index" if name == "summary" else "content_index"
    at = {**at, index: place}
    around = "reasoning_summary_part" if name == "summary" else "content_part"
    events: list[Json] = [{"type": f"response.{around}.added", **at, "part": {**part, text: ""}}]
    for piece in pieces(part[text], draw):
        more = {"obfuscation": "x7Kp"} if draw.random() < 0.1 else {}
        events.append({"type": f"{event}.delta", **at, "delta": piece, **more})
    events.append({"type": f"{event}.done", **at, text: part[text]})
    events.append({"type": f"response.{around}.done", **at, "part": part})
    return events


def pieces(text: str, draw: random.Random) -> list[str]:
    """A text cut anywhere."""
    if len(text) > 2000:
        size = len(text) // 7
        return [text[start : start + size] for start in range(0, len(text), size)]
    found: list[str] = []
    while text:
        size = draw.choice((1, 1, 2, 3, 5, 40))
        found.append(text[:size])
        text = text[size:]
    return found


def written(case: Case, events: Iterable[Json | bytes]) -> bytes:
    """Events as the server of a case writes them."""
    end, lines = case.line_end, b""
    for event in events:
        if isinstance(event, bytes):
            lines += event
            continue
        named = case.is_named and event.get("type")
        name = f"event: {event['type']}{end}".encode() if named else b""
        lines += name + b"data: " + to_json(event, case.draw) + (end + end).encode()
    return lines


def answer_wire(case: Case, answer: Any) -> Wire:
    """An answer as JSON."""
    return Wire(to_json(answer, case.draw), cost="usage")
