"""One row as a person reads it: what was said, the calls, and the attempts as a small time line."""

import json
from collections.abc import Iterator
from datetime import datetime

from batchrun.errors import ErrorKind
from batchrun.formats.amounts import seconds, usd
from batchrun.formats.printable import brief, one_line, printable
from batchrun.records import JsonObject
from batchrun.reports.conversation import as_value, turns_of
from batchrun.store.columns import own_columns

_SAID = ("model", "input", "instructions", "prompt")
_ASKED = 200  # characters of one field
_BAR = 24  # characters of the time line
_TOLD = {
    *own_columns(),
    "tool_calls",
}  # by the head, the conversation or the attempts; the rest is carried


def render_row(row: JsonObject) -> str:
    """The row as lines of text; `row` is as `tables.find_row` gives it."""
    return "\n".join(
        [
            *_head(row),
            *_conversation(row),
            *_calls(row),
            *_attempts(row["attempts"] or []),
        ]
    )


def _head(row: JsonObject) -> Iterator[str]:
    of = f", sample {row['sample']}" if row["sample"] else ""
    of += f", variant {row['variant']}" if row["variant"] is not None else ""
    yield one_line(f"{row['custom_id']}: row {row['row']} of {row['source']}{of}")
    for name, words in (
        ("outcome", _outcome(row)),
        ("model", _model(row)),
        ("asked", _asked(row["request"])),
        ("tokens", _tokens(row)),
        ("cost", _cost(row)),
        ("times", _times(row)),
        ("ids", _ids(row)),
        ("endpoint", f"{row['endpoint']}, {row['via']}"),
    ):
        if words:
            yield f"  {name + ':':<10}{one_line(words)}"
    carried = {name: value for name, value in row.items() if name not in _TOLD}
    if carried:
        yield "  carried:"
    for name, value in carried.items():
        yield f"    {one_line(name)}: {'-' if value is None else one_line(str(value))}"


def _outcome(row: JsonObject) -> str:
    words = [str(row["status"])]
    if row["ok"]:
        words.append("ok")
    if row["truncated"]:
        words.append("truncated")
    if row["incomplete_reason"]:
        words.append(row["incomplete_reason"])
    if row["refusal"] is not None:
        words.append("refused")
    if row["output_parsed_ok"] is not None:
        words.append("fits its schema" if row["output_parsed_ok"] else "does not fit its schema")
    said = ", ".join(words)
    if row["error_kind"] is None:
        return said
    code = f" ({row['error_code']})" if row["error_code"] else ""
    http = f" http {row['http_status']}" if row["http_status"] else ""
    return f"{said}: {row['error_kind']}{code}{http}: {row['error_message']}"


def _model(row: JsonObject) -> str:
    model, asked = row["model"] or row["model_requested"], row["model_requested"]
    words = [str(model)] + ([f"asked for as {asked}"] if asked not in (model, None) else [])
    if row["service_tier"]:
        words.append(f"tier {row['service_tier']}")
    return ", ".join(words) if model else ""


def _asked(request: str | None) -> str:
    """What the request says besides what was said: tools by name, other fields as JSON."""
    body = as_value(request)
    words = []
    for name, value in body.items() if isinstance(body, dict) else ():
        if name == "tools" and isinstance(value, list):
            named = [_tool(tool) for tool in value if isinstance(tool, dict)]
            words.append(f"tools {', '.join(named)}")
        elif name not in _SAID:
            words.append(f"{name} {brief(json.dumps(value, ensure_ascii=False), _ASKED)}")
    return "; ".join(words)


def _tool(tool: JsonObject) -> str:
    return str(tool.get("name") or tool.get("type"))


def _tokens(row: JsonObject) -> str:
    if row["input_tokens"] is None and row["output_tokens"] is None:
        return ""
    kinds = [
        f"{row[name]:,} {word}"
        for name, word in (
            ("input_tokens", "in"),
            ("cached_tokens", "of it cached"),
            ("cache_write_tokens", "of it written to the cache"),
            ("output_tokens", "out"),
            ("reasoning_tokens", "of it reasoning"),
        )
        if row[name] or (row[name] == 0 and word in ("in", "out"))
    ]
    return ", ".join(kinds)


def _cost(row: JsonObject) -> str:
    words = []
    if row["cost_usd"] is not None:
        by = f", priced as {row['priced_as']}" if row["priced_as"] is not None else ""
        words.append(usd(row["cost_usd"]) + by)
    if row["reported_cost_usd"] is not None:
        words.append(f"{usd(row['reported_cost_usd'])} as the gateway says")
    return "; ".join(words)


def _times(row: JsonObject) -> str:
    if row["started_at"] is None:
        return ""
    words = [f"from {_when(row['started_at'])} UTC"]
    if row["latency_s"] is not None:
        words.append(f"answered in {seconds(row['latency_s'])}")
    if row["first_token_s"] is not None:
        words.append(f"first token after {seconds(row['first_token_s'])}")
    return ", ".join(words)


def _ids(row: JsonObject) -> str:
    named = (("response", row["response_id"]), ("request", row["request_id"]))
    return ", ".join(f"{name} {value}" for name, value in named if value)


def _when(time: object) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S") if isinstance(time, datetime) else str(time)


def _conversation(row: JsonObject) -> Iterator[str]:
    for turn in turns_of(row["request"], row["output"]):
        yield ""
        yield f"{one_line(turn.who)}:"
        yield from _indented(turn.text)
    if row["request"] is None:
        yield ""
        if row["error_kind"] == ErrorKind.INVALID_ROW:
            yield "(there is no request: none can be made of the row)"
        else:
            yield "(the request is not stored: output.store_request)"


def _calls(row: JsonObject) -> Iterator[str]:
    wrong = [call for call in row["tool_calls"] if call["arguments_valid"] is False]
    if not row["tool_calls"]:
        return
    yield ""
    count = len(row["tool_calls"])
    yield f"{count} tool call{'s' if count > 1 else ''}" + (
        f", {len(wrong)} with arguments that are no JSON or do not fit:" if wrong else ":"
    )
    for call in row["tool_calls"]:
        valid = {True: "valid", False: "INVALID"}.get(
            call["arguments_valid"], call["status"] or "-"
        )
        name = call["name"] or call["type"]
        said = one_line(f"{name}({call['arguments'] or ''})")
        yield f"  {valid:<9}{said}"


def _attempts(attempts: list[JsonObject]) -> Iterator[str]:
    if not attempts:
        yield ""
        yield "never sent"
        return
    first = attempts[0]["started_at"]
    begins = [(attempt["started_at"] - first).total_seconds() for attempt in attempts]
    end = max(at + attempt["latency_s"] for at, attempt in zip(begins, attempts, strict=True))
    yield ""
    count = f"{len(attempts)} attempts" if len(attempts) > 1 else "1 attempt"
    yield f"{count} in {seconds(end)}:"
    for at, attempt in zip(begins, attempts, strict=True):
        bar = _bar(at, attempt["latency_s"], end)
        yield f"  {bar}  {one_line(_attempt(at, attempt))}"


def _attempt(at: float, attempt: JsonObject) -> str:
    when = f" at {seconds(at)}" if at else ""
    words = f"{attempt['kind']}{when}, {seconds(attempt['latency_s'])}"
    status = attempt["http_status"]
    words += f", {status}" if status else ""
    if attempt["error_kind"]:
        words += f" {attempt['error_kind']}: {' '.join((attempt['error_message'] or '').split())}"
    return words


def _bar(at: float, lasted: float, end: float) -> str:
    """Where the attempt lies in the time of all of them."""
    scale = _BAR / end if end > 0 else 0.0
    begin = min(int(at * scale), _BAR - 1)
    size = max(1, min(round(lasted * scale), _BAR - begin))
    return "·" * begin + "━" * size + "·" * (_BAR - begin - size)


def _indented(text: str) -> Iterator[str]:
    for line in printable(text).split("\n"):
        yield f"  {line}" if line else ""
