"""One row as a person reads it: what was said, the calls, and the attempts as a small time line."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import chain
from typing import Any

from msgspec import Struct

from batchrun.errors import ErrorKind
from batchrun.formats.amounts import known_usd, plural, seconds, usd
from batchrun.formats.json_text import value_of
from batchrun.formats.printable import brief, one_line, printable
from batchrun.pricing.prices import tier_name
from batchrun.records import SHORTFALLS, JsonObject
from batchrun.store.columns import CALLS, own_columns

_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_SHOWN = 200  # characters of a URL or of data in a part that is no text


class Turn(Struct, frozen=True):
    """Who said, called or returned what."""

    who: str  # instructions, user, assistant, "assistant calls look_up", ...
    text: str


def turns_of(request: str | None, output: str | None) -> list[Turn]:
    """The whole conversation, the answer last; both are JSON as the tables hold it."""
    body, items = value_of(request), value_of(output)
    turns = list(_asked_turns(body)) if isinstance(body, dict) else []
    for item in items if isinstance(items, list) else []:
        turns += _item(item)
    return turns


def _asked_turns(body: JsonObject) -> Iterator[Turn]:
    if body.get("instructions") is not None:
        yield Turn("instructions", _content(body["instructions"]))
    if body.get("prompt") is not None:
        yield Turn("prompt", _json(body["prompt"]))
    given = body.get("input")
    if isinstance(given, list):
        for item in given:
            yield from _item(item, "user")
    elif given is not None:
        yield Turn("user", _content(given))


def _item(item: Any, role: str = "assistant") -> Iterator[Turn]:
    if not isinstance(item, dict):
        yield Turn(role, _content(item))
        return
    kind = item.get("type") or "message"
    if kind == "message":
        yield from _message(item, role)
    elif kind == "reasoning":
        said = [*_listed(item.get("summary")), *_listed(item.get("content"))]
        if text := "\n\n".join(filter(None, (_content([part]) for part in said))):
            yield Turn("reasoning", text)
    elif kind in ("function_call", "custom_tool_call"):
        call_id = item.get("call_id")
        name = f"{item.get('name')}" + (f" ({call_id})" if call_id else "")
        yield Turn(f"assistant calls {name}", _content(item.get("arguments", item.get("input"))))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        yield Turn(f"result of {item.get('call_id')}", _content(item.get("output")))
    else:
        yield Turn(str(kind), _json(item))


def _message(item: JsonObject, role: str) -> Iterator[Turn]:
    who = str(item.get("role") or role)
    content = item.get("content")
    refused = [p for p in _listed(content) if isinstance(p, dict) and p.get("type") == "refusal"]
    said = [part for part in _listed(content) if part not in refused]
    if said or not refused:
        yield Turn(who, _content(said if refused else content))
    if refused:
        yield Turn(f"{who} refuses", _content(refused))


def _content(content: Any) -> str:
    """Text as it is, parts that are none as JSON."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return "" if content is None else _json(content)
    return "\n".join(_part(part) for part in content)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        kind = part.get("type")
        field = _PARTS.get(kind, "text") if isinstance(kind, str) else "text"
        if isinstance(part.get(field), str):
            return str(part[field])
    return f"[{_json(_short(part))}]"


def _short(value: Any) -> Any:
    """The same with an end to texts, which may be images of a megabyte."""
    if isinstance(value, str) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]}… ({len(value):,} characters)"
    if isinstance(value, dict):
        return {name: _short(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_short(inner) for inner in value]
    return value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_IN_CONVERSATION = ("model", "input", "instructions", "prompt")
_FIELD = 200  # characters of one field of the request
_SCORED = 80  # characters of an answer or a target that was scored
_BAR = 24  # characters of the time line
_NOT_CARRIED = {*own_columns(), CALLS}
_TOKENS = {
    "input_tokens": "in",
    "cached_tokens": "of it cached",
    "cache_write_tokens": "of it written to the cache",
    "output_tokens": "out",
    "reasoning_tokens": "of it reasoning",
}


def render_row(
    row: JsonObject, unreadable: Sequence[JsonObject] = (), scores: Sequence[JsonObject] = ()
) -> str:
    """The row as lines of text; `row` is as `reading.find_row` gives it.

    `unreadable`: the lines of `unreadable.jsonl` about its attempts.
    """
    parts = (_head(row), _conversation(row), _calls(row), _scores(scores), _attempts(row))
    return "\n".join([*chain(*parts), *_unreadable(row, unreadable)])


def _head(row: JsonObject) -> Iterator[str]:
    of = f", sample {row['sample']}" if row["sample"] else ""
    of += f", variant {row['variant']}" if row["variant"] is not None else ""
    yield one_line(f"{row['custom_id']}: row {row['row']} of {row['source']}{of}")
    ids = {"response": row["response_id"], "request": row["request_id"]}
    for name, words in {
        "outcome": _outcome(row),
        "error": _error(row),
        "message": row["error_message"],
        "model": _model(row),
        "asked": _asked(row["request"]),
        "tokens": _tokens(row),
        "cost": _cost(row),
        "times": _times(row),
        "ids": ", ".join(f"{name} {value}" for name, value in ids.items() if value),
        "endpoint": "" if _is_imported(row) else f"{row['endpoint']}, {row['via']}",
    }.items():
        if words:
            yield f"  {name + ':':<10}{one_line(words)}"
    carried = {name: value for name, value in row.items() if name not in _NOT_CARRIED}
    if carried:
        yield "  carried:"
    for name, value in carried.items():
        yield f"    {one_line(name)}: {'-' if value is None else one_line(str(value))}"


def _is_imported(row: JsonObject) -> bool:
    """Whether the answer was produced elsewhere: nothing was sent, and nowhere."""
    return row["endpoint"] is None


def _outcome(row: JsonObject) -> str:
    fits = {True: "fits its schema", False: "does not fit its schema"}
    words = (
        str(row["status"]),
        "ok" if row["ok"] else "",
        "truncated" if row["truncated"] else "",
        row["incomplete_reason"],
        "refused" if row["refusal"] is not None else "",
        "empty" if row["error_kind"] == ErrorKind.EMPTY_OUTPUT else "",
        fits.get(row["output_parsed_ok"]),
    )
    return ", ".join(filter(None, words))


def _error(row: JsonObject) -> str:
    kind, code, http = row["error_kind"], row["error_code"], row["http_status"]
    if kind in SHORTFALLS:  # an answer, whose status says nothing
        return str(kind)
    about = ", ".join(filter(None, (code, http and f"http {http}")))
    return f"{kind} ({about})" if kind and about else kind or ""


def _model(row: JsonObject) -> str:
    requested, tier = row["model_requested"], row["service_tier"]
    model = row["model"] or requested
    if not model:
        return ""
    asked = f"requested as {requested}" if requested not in (model, None) else ""
    return ", ".join(filter(None, (model, asked, tier and f"tier {tier_name(tier, row['via'])}")))


def _asked(request: str | None) -> str:
    """The other fields of the request: tools by name, the rest as JSON."""
    body = value_of(request)
    words = []
    for name, value in body.items() if isinstance(body, dict) else ():
        if name == "tools" and isinstance(value, list):
            tools = [str(t.get("name") or t.get("type")) for t in value if isinstance(t, dict)]
            words.append(f"tools {', '.join(tools)}")
        elif name not in _IN_CONVERSATION:
            words.append(f"{name} {brief(json.dumps(value, ensure_ascii=False), _FIELD)}")
    return "; ".join(words)


def _tokens(row: JsonObject) -> str:
    """Empty where the server said nothing; zeros are shown of input and output alone."""
    ends = {name for name in ("input_tokens", "output_tokens") if row[name] is not None}
    shown = {name: row[name] for name in _TOKENS if name in ends or (ends and row[name])}
    return ", ".join(f"{count:,} {_TOKENS[name]}" for name, count in shown.items())


def _cost(row: JsonObject) -> str:
    cost, reported, name = row["cost_usd"], row["reported_cost_usd"], row["priced_as"]
    attempts = row["attempts"] or ()
    is_partly = any(one["cost_usd"] is None for one in attempts)
    words = []
    if cost is not None or is_partly:
        known = known_usd(cost, is_partly=is_partly)
        words.append(known + (f", priced as {name}" if name else ""))
    words += [] if reported is None else [f"{usd(reported)} according to the gateway"]
    return "; ".join(words)


def _times(row: JsonObject) -> str:
    at, latency_s, first_token_s = row["started_at"], row["latency_s"], row["first_token_s"]
    if at is None:
        return ""
    words = [f"from {at:%Y-%m-%d %H:%M:%S} UTC" if isinstance(at, datetime) else f"from {at} UTC"]
    words += [] if latency_s is None else [f"answered in {seconds(latency_s)}"]
    words += [] if first_token_s is None else [f"first token after {seconds(first_token_s)}"]
    return ", ".join(words)


def _conversation(row: JsonObject) -> Iterator[str]:
    for turn in turns_of(row["request"], row["output"]):
        yield from ("", f"{one_line(turn.who)}:")
        for line in printable(turn.text).split("\n"):
            yield f"  {line}" if line else ""
    if row["request"] is None:
        yield ""
        if _is_imported(row):
            yield "(imported: the answer was produced elsewhere)"
        elif row["error_kind"] == ErrorKind.INVALID_ROW:
            yield "(there is no request: none can be made of the row)"
        else:
            yield "(the request is not stored: output.store_request)"


def _calls(row: JsonObject) -> Iterator[str]:
    calls = row[CALLS]
    if not calls:
        return
    wrong = sum(call["arguments_valid"] is False for call in calls)
    which = (
        f", {wrong} of a tool that was not offered, or with arguments that do not fit"
        if wrong
        else ""
    )
    yield from ("", f"{plural(len(calls), 'tool call')}{which}:")
    for call in calls:
        words = {True: "valid", False: "INVALID", None: call["status"] or "-"}
        name = call["name"] or call["type"]
        said = one_line(f"{name}({call['arguments'] or ''})")
        yield f"  {words[call['arguments_valid']]:<9}{said}"


def _scores(scores: Sequence[JsonObject]) -> Iterator[str]:
    if not scores:
        return
    yield from ("", "scores:")
    for one in scores:
        name = one["scorer"] + ("" if one["metric"] == "value" else f".{one['metric']}")
        value = "-" if one["value"] is None else f"{one['value']:.4g}"
        passed = {True: "passed", False: "not passed", None: ""}[one["passed"]]
        texts = {"answer": one["answer"], "target": one["target"]}
        said = [
            f"{word} {brief(text, _SCORED)}" for word, text in texts.items() if text is not None
        ]
        words = [passed, one["reason"], one["explanation"], *said]
        yield one_line(f"  {name} {value}: {'; '.join(filter(None, words))}".rstrip(": "))


def _attempts(row: JsonObject) -> Iterator[str]:
    attempts = row["attempts"]
    if _is_imported(row):
        return
    yield ""
    if not attempts:
        yield "never sent"
        return
    first = attempts[0]["started_at"]
    begins = [(attempt["started_at"] - first).total_seconds() for attempt in attempts]
    end = max(at + attempt["latency_s"] for at, attempt in zip(begins, attempts, strict=True))
    yield f"{plural(len(attempts), 'attempt')} in {seconds(end)}:"
    for at, attempt in zip(begins, attempts, strict=True):
        lasted, status, kind = attempt["latency_s"], attempt["http_status"], attempt["error_kind"]
        words = f"{attempt['kind']}{f' at {seconds(at)}' if at else ''}, {seconds(lasted)}"
        words += f", {status}" if status else ""
        if kind:
            words += f" {kind}: {' '.join((attempt['error_message'] or '').split())}"
        yield f"  {_bar(at, lasted, end)}  {one_line(words)}"


def _unreadable(row: JsonObject, bodies: Sequence[JsonObject]) -> Iterator[str]:
    """What attempts brought that were paid for and could not be read."""
    for number, attempt in enumerate(row["attempts"] or (), 1):
        for body in bodies:
            if body.get("client_request_id") != attempt["client_request_id"]:
                continue
            facts = [body.get("content_type"), "base64" if "body_base64" in body else None]
            facts.append("its first 64 kB" if body.get("truncated") else None)
            said = ", ".join(filter(None, facts))
            of = f" ({said})" if said else ""
            yield from ("", f"the answer to attempt {number} could not be read{of}:")
            for line in printable(str(body.get("body", body.get("body_base64", "")))).split("\n"):
                yield f"  {line}" if line else ""


def _bar(at: float, lasted: float, end: float) -> str:
    """Where the attempt lies in the time of all of them."""
    scale = _BAR / end if end > 0 else 0.0
    begin = min(int(at * scale), _BAR - 1)
    size = max(1, min(round(lasted * scale), _BAR - begin))
    return "·" * begin + "━" * size + "·" * (_BAR - begin - size)
