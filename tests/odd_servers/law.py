"""The law: every row ends, what was understood is what was said, nothing paid is dropped.

What a run directory holds is compared with what the server said and with how often it was asked.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from batchrun import Summary
from batchrun.store.unreadable import read_unreadable
from batchrun.store.verify import verify
from tests.odd_servers.attempt_deviations import FREE
from tests.odd_servers.cases import Case, Json
from tests.odd_servers.row_server import RowServer, Served

# USD for a token, of the runs of this folder.
READ, CACHED, WRITTEN = 3e-6, 1e-6, 5e-6
PRICES = {"input": 3.0, "cached_input": 1.0, "output": 5.0}
_COUNTS = ("input", "cached", "cache_write", "output", "reasoning", "total")


def broken(summary: Summary, run: Path, cases: Sequence[Case], server: RowServer) -> list[str]:
    """Where the law does not hold, in words; nothing where it does."""
    found = [*_of_run(summary, run, cases, server)]
    rows, calls = _tables(run)
    for case in cases:
        row = rows.get(case.id)
        if row is None:
            found.append(f"{case.id} {case.names}: no row")
            continue
        row["calls"] = calls.get(case.id, [])
        log = server.log[case.id]
        wrong = [
            *_of_row(case, row),
            *_of_attempts(case, row, log),
            *_of_bodies(case, row, run, log),
        ]
        found += [f"{case.id} {case.mode} {case.names}: {what}" for what in wrong]
    return found


def _of_run(summary: Summary, run: Path, cases: Sequence[Case], server: RowServer) -> Iterator[str]:
    ok = sum(_kind(case) is None and _status(case) == "completed" for case in cases)
    if summary.state != "finished":
        yield f"the run {summary.state}: {summary.message}"
    if (summary.ok, summary.not_ok, summary.left) != (ok, len(cases) - ok, 0):
        yield f"summary: {summary.ok} ok, {summary.not_ok} not, {summary.left} left; {ok} are ok"
    if summary.exit_code != (0 if ok == len(cases) else 4):
        yield f"exit code {summary.exit_code}"
    if server.strangers:
        yield f"asked besides: {server.strangers[:3]}"
    yield from verify(run).problems


def _tables(run: Path) -> tuple[dict[str, Json], dict[str, list[Json]]]:
    def read(table: str) -> list[Json]:
        parts = sorted((run / table).glob("*.parquet"))
        rows: list[Json] = [row for part in parts for row in pq.read_table(part).to_pylist()]
        return rows

    rows = {row["custom_id"]: row for row in read("responses")}
    calls: dict[str, list[Json]] = {}
    for call in sorted(read("tool_calls"), key=lambda one: (one["row"], one["position"])):
        calls.setdefault(call["custom_id"], []).append(call)
    return rows, calls


# What must come out, read from the answer as it is meant


def _status(case: Case) -> str:
    return case.status if case.status is not None else str(case.meant["status"])


def _kind(case: Case) -> str | None:
    if case.instead:
        return case.kind
    if _texts(case.meant)["refusal"] is not None:
        return "refusal"
    reason = (case.meant["incomplete_details"] or {}).get("reason") or ""
    if case.meant["status"] == "incomplete" and reason.lower() in _AT_LIMIT:
        return "truncated"
    return case.kind


_AT_LIMIT = ("max_output_tokens", "max_tokens", "length")


def _texts(answer: Json) -> Json:
    texts: list[str] = []
    refusals: list[str] = []
    summaries: list[str] = []
    reasons: list[str] = []
    for item in answer["output"]:
        content = item.get("content") or ()
        if item["type"] == "reasoning":
            summaries += [part["text"] for part in item.get("summary") or ()]
            is_text = isinstance(content, str)
            reasons += [str(content)] if is_text else [part["text"] for part in content]
        elif item["type"] == "message":
            for part in content:
                field = "refusal" if part["type"] == "refusal" else "text"
                (refusals if field == "refusal" else texts).append(part[field])
    return {
        "output_text": "".join(texts) if any(texts) else None,
        "refusal": "".join(refusals) if refusals else None,
        "reasoning_summary": "\n\n".join(summaries) if any(summaries) else None,
        "reasoning_text": "\n\n".join(reasons) if any(reasons) else None,
    }


def _usage(answer: Json) -> Json:
    usage = answer["usage"] or {}
    read, written = (usage.get(f"{side}put_tokens_details") or {} for side in ("in", "out"))
    counts = (
        *(usage.get("input_tokens"), read.get("cached_tokens"), read.get("cache_write_tokens")),
        *(usage.get("output_tokens"), written.get("reasoning_tokens"), usage.get("total_tokens")),
    )
    return {f"{name}_tokens": count for name, count in zip(_COUNTS, counts, strict=True)}


def cost_of(usage: Json) -> float | None:
    """USD of canonical usage; None where it does not say both counts."""
    read, written = usage["input_tokens"], usage["output_tokens"]
    if read is None or written is None:
        return None
    cached = usage["cached_tokens"] or 0
    return float((read - cached) * READ + cached * CACHED + written * WRITTEN)


def _calls(case: Case) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for position, item in enumerate(case.meant["output"]):
        if item["type"] == "function_call":
            written = item["arguments"]
            is_valid = _is_valid(item["name"], written)
            found.append((position, item["call_id"], item["name"], written, is_valid))
        elif item["type"] == "custom_tool_call":
            found.append((position, item["call_id"], item["name"], item["input"], None))
    return found


def _is_valid(name: str, arguments: str) -> bool:
    if name == "now":
        return arguments in ("", "{}")
    try:
        value = json.loads(arguments)
    except ValueError:
        return False
    return name == "look_up" and isinstance(value.get("key"), str)


def _of_row(case: Case, row: Json) -> Iterator[str]:
    expected: Json = {"status": _status(case), "error_kind": _kind(case)}
    expected["ok"] = expected["status"] == "completed" and expected["error_kind"] is None
    if case.instead:
        nothing: Json = {"output": [], "usage": None, "id": None, "model": None}
        said = case.piece or nothing
        expected |= _texts(said) | _usage(said)
        expected |= {"model": said["model"], "response_id": said["id"]}
    else:
        expected |= _texts(case.meant) | _usage(case.meant)
        expected |= {"model": case.meant["model"], "response_id": case.meant["id"]}
        expected["reported_cost_usd"] = case.meant.get("reported_cost")
    yield from _differ(expected, row)
    for word in case.says:
        if word not in (row["error_message"] or ""):
            yield f"error_message {row['error_message']!r} without {word!r}"
    if case.instead:
        return
    own = ("function_call", "custom_tool_call")
    columns = ("position", "call_id", "name", "arguments", "arguments_valid")
    calls = [tuple(call[name] for name in columns) for call in row["calls"] if call["type"] in own]
    if calls != _calls(case):
        yield f"calls {calls} instead of {_calls(case)}"
    if case.is_verbatim and json.loads(row["output"] or "null") != case.meant["output"]:
        yield "output is not as served"
    notes = sum(
        len(part.get("annotations") or ())
        for item in case.meant["output"]
        if isinstance(item.get("content"), list)
        for part in item["content"]
    )
    if notes != len(row["citations"] or ()):
        yield f"{len(row['citations'] or ())} citations instead of {notes}"
    if case.is_verbatim and "usage" in case.served:
        stored = None if row["usage"] is None else json.loads(row["usage"])
        if stored != case.served["usage"]:
            yield f"usage {stored} instead of {case.served['usage']}"


def _differ(expected: Json, found: Json) -> Iterator[str]:
    for name, value in expected.items():
        if found[name] != value:
            yield f"{name} {_short(found[name])} instead of {_short(value)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:90]} ... {text[-90:]} ({len(text)})"


# What the row was asked, and what its attempts say of that


def _of_attempts(case: Case, row: Json, log: Sequence[Served]) -> Iterator[str]:
    # A request on a connection that dies before any byte is sent again in the same attempt.
    asked = [
        (client_id, list(requests))
        for client_id, requests in groupby(
            sorted(log, key=lambda one: int(one.client_request_id.rpartition("-")[2], 16)),
            key=lambda one: one.client_request_id,
        )
    ]
    ends = [
        [one for one in requests if one.method == "POST"][-1] for _, requests in asked if requests
    ]
    kinds = list(case.kinds)
    resent = sum(
        one.method == "POST" and one.wire.is_silent for _, requests in asked for one in requests
    ) - sum(end.wire.is_silent for end in ends)
    for _ in range(resent):
        if "connection" in kinds:
            kinds.remove("connection")
    posts = len(kinds) + case.forgets + case.posts
    if len(ends) != posts:
        yield f"asked {len(ends)} times instead of {posts}"
    attempts = row["attempts"]
    if [attempt["client_request_id"] for attempt in attempts] != [one for one, _ in asked]:
        yield f"{len(attempts)} attempts stand for {len(asked)}"
        return
    said = [attempt["error_kind"] for attempt in attempts]
    expected: list[str | None] = ["gone"] * case.forgets
    # Deviations are applied in any order: which kind comes first does not matter.
    if case.instead:
        expected += [*kinds, *[case.kind] * case.posts]
    else:
        expected += [*kinds, None]
    if sorted(map(str, said)) != sorted(map(str, expected)) or said[-1] != expected[-1]:
        yield f"attempts ended {said} instead of {expected}"
    yield from _of_costs(case, row, ends)
    if case.mode == "background":
        return
    for attempt, end in zip(attempts, ends, strict=True):
        request_id = None if end.wire.is_silent else end.request_id
        if attempt["request_id"] != request_id:
            yield f"request_id {attempt['request_id']} instead of {request_id}"


def _of_bodies(case: Case, row: Json, run: Path, log: Sequence[Served]) -> Iterator[str]:
    """What was paid for and could not be read is stored."""
    if case.mode == "background":
        return
    kinds = {one["client_request_id"]: one["error_kind"] for one in row["attempts"]}
    paid = [
        one
        for one in log
        if kinds.get(one.client_request_id) == "unreadable" and one.wire.body.strip()
    ]
    stored = [line.get("body") for line in read_unreadable(run, case.id)]
    for one in paid:
        if one.wire.status == 200 and one.wire.body.decode() not in stored:
            yield f"a body that could not be read is not stored: {one.wire.body[:60]!r}"


def _of_costs(case: Case, row: Json, ends: Sequence[Served]) -> Iterator[str]:
    """An attempt whose usage was said is priced; one that may have been paid is never free."""
    answered = cost_of(_usage(case.meant))
    costs: list[float | None] = []
    for attempt, end in zip(row["attempts"], ends, strict=True):
        kind, cost = attempt["error_kind"], attempt["cost_usd"]
        costs.append(cost)
        expected: float | None = 0.0
        if kind is None:
            expected = answered
        elif end.wire.cost == "18 tokens":
            expected = 11 * READ + 7 * WRITTEN
        elif end.wire.cost != "free" or kind not in FREE:
            expected = None
        if (cost is None) != (expected is None) or abs((cost or 0) - (expected or 0)) > 1e-12:
            yield f"an attempt ({kind}) costs {cost} instead of {expected}"
    known = [cost for cost in costs if cost is not None]
    whole = sum(known) if None not in costs or sum(known) > 0 else None
    if (row["cost_usd"] is None) != (whole is None) or abs(
        (row["cost_usd"] or 0) - (whole or 0)
    ) > 1e-9:
        yield f"cost_usd {row['cost_usd']} instead of {whole}"
