"""One row as a person reads it: what was said, the calls, and the attempts as a small time line."""

import json
from collections.abc import Iterator
from datetime import datetime

from batchrun.errors import ErrorKind
from batchrun.formats.amounts import plural, seconds, usd
from batchrun.formats.json_text import value_of
from batchrun.formats.printable import brief, one_line, printable
from batchrun.records import JsonObject
from batchrun.reports.conversation import turns_of
from batchrun.store.columns import own_columns

_IN_CONVERSATION = ("model", "input", "instructions", "prompt")
_FIELD = 200  # characters of one field of the request
_BAR = 24  # characters of the time line
_NOT_CARRIED = {*own_columns(), "tool_calls"}
# Columns that are not shown: others say the same, or nothing fills them yet.
LEFT_OUT = (
    *("output_text", "reasoning_summary", "reasoning_text", "citations", "tool_call_count"),
    *("total_tokens", "usage", "finished_at", "request_hash"),
    *("api", "endpoint_name", "embedding", "turn_count"),
)
_TOKENS = {
    "input_tokens": "in",
    "cached_tokens": "of it cached",
    "cache_write_tokens": "of it written to the cache",
    "output_tokens": "out",
    "reasoning_tokens": "of it reasoning",
}


def render_row(row: JsonObject) -> str:
    """The row as lines of text; `row` is as `reading.find_row` gives it."""
    return "\n".join([*_head(row), *_conversation(row), *_calls(row), *_attempts(row)])


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
        "endpoint": f"{row['endpoint']}, {row['via']}",
    }.items():
        if words:
            yield f"  {name + ':':<10}{one_line(words)}"
    carried = {name: value for name, value in row.items() if name not in _NOT_CARRIED}
    if carried:
        yield "  carried:"
    for name, value in carried.items():
        yield f"    {one_line(name)}: {'-' if value is None else one_line(str(value))}"


def _outcome(row: JsonObject) -> str:
    fits = {True: "fits its schema", False: "does not fit its schema"}
    words = (
        str(row["status"]),
        "ok" if row["ok"] else "",
        "truncated" if row["truncated"] else "",
        row["incomplete_reason"],
        "refused" if row["refusal"] is not None else "",
        fits.get(row["output_parsed_ok"]),
    )
    return ", ".join(filter(None, words))


def _error(row: JsonObject) -> str:
    kind, code, http = row["error_kind"], row["error_code"], row["http_status"]
    about = ", ".join(filter(None, (code, http and f"http {http}")))
    return f"{kind} ({about})" if kind and about else kind or ""


def _model(row: JsonObject) -> str:
    requested, tier = row["model_requested"], row["service_tier"]
    model = row["model"] or requested
    if not model:
        return ""
    asked = f"asked for as {requested}" if requested not in (model, None) else ""
    return ", ".join(filter(None, (model, asked, tier and f"tier {tier}")))


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
    words = [] if cost is None else [usd(cost) + (f", priced as {name}" if name else "")]
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
        if row["error_kind"] == ErrorKind.INVALID_ROW:
            yield "(there is no request: none can be made of the row)"
        else:
            yield "(the request is not stored: output.store_request)"


def _calls(row: JsonObject) -> Iterator[str]:
    calls = row["tool_calls"]
    if not calls:
        return
    wrong = sum(call["arguments_valid"] is False for call in calls)
    which = f", {wrong} with arguments that are no JSON or do not fit" if wrong else ""
    yield from ("", f"{plural(len(calls), 'tool call')}{which}:")
    for call in calls:
        words = {True: "valid", False: "INVALID", None: call["status"] or "-"}
        name = call["name"] or call["type"]
        said = one_line(f"{name}({call['arguments'] or ''})")
        yield f"  {words[call['arguments_valid']]:<9}{said}"


def _attempts(row: JsonObject) -> Iterator[str]:
    attempts = row["attempts"]
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


def _bar(at: float, lasted: float, end: float) -> str:
    """Where the attempt lies in the time of all of them."""
    scale = _BAR / end if end > 0 else 0.0
    begin = min(int(at * scale), _BAR - 1)
    size = max(1, min(round(lasted * scale), _BAR - begin))
    return "·" * begin + "━" * size + "·" * (_BAR - begin - size)
