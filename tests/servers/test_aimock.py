"""50 rows in each mode against aimock: every row ends as it should, whatever the server does."""

import json
import subprocess
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice
from typing import Any

import pytest

pytestmark = pytest.mark.servers

Run = Callable[..., subprocess.CompletedProcess[str]]
Teach = Callable[[Iterable[dict[str, Any]]], str]
Fixtures = Callable[[Sequence[str]], list[dict[str, Any]]]
Table = Callable[..., list[dict[str, Any]]]
Kinds = Callable[[dict[str, Any]], list[str | None]]

# What the first try of a row meets, and what batchrun calls it.
_FAULTS = {
    "": [],
    "drop": ["server_error"],
    "malformed": ["unreadable"],
    "disconnect": ["connection"],
    "rate_limit": ["rate_limit"],
    "hint": ["rate_limit"],
    "overloaded": ["overloaded"],
    "slow": [],
    "cut": ["cut"],
}
# The same by the names that its journal has for them.
_CHAOS = {
    "drop": "server_error",
    "malformed": "unreadable",
    "disconnect": "connection",
    "rateLimit": "rate_limit",
}


def test_each_row_is_answered_after_the_fault_of_its_first_try(
    mode: str,
    aimock: Teach,
    fixtures: Fixtures,
    batchrun: Run,
    table: Table,
    kinds: Kinds,
    answer_of: Callable[[int], str],
) -> None:
    faults = list(islice(cycle(_FAULTS), 50))
    done = batchrun(aimock(fixtures(faults)), mode)
    assert done.returncode == 0, done.stderr
    rows = table(mode)
    for row in rows:
        assert (row["ok"], row["status"], row["via"]) == (True, "completed", mode)
        assert row["output_text"] == answer_of(row["row"])
        assert (row["input_tokens"], row["output_tokens"]) == (10 + row["row"], 20 + row["row"])
        assert (row["first_token_s"] is not None) == (mode == "stream")
    # It cuts streams alone.
    met = [
        [] if (fault, mode == "stream") == ("cut", False) else _FAULTS[fault] for fault in faults
    ]
    for row, before in zip(rows, met, strict=True):
        # A kept-alive connection that dies before any byte is no attempt; a new one is.
        expected = [[*before, None], [None]] if before == ["connection"] else [[*before, None]]
        assert kinds(row) in expected


def test_rows_end_as_the_journal_of_a_server_with_faults_by_chance_says(
    mode: str,
    aimock: Teach,
    aimock_control: Callable[..., Any],
    fixtures: Fixtures,
    batchrun: Run,
    table: Table,
    kinds: Kinds,
) -> None:
    base_url = aimock(fixtures([""] * 50))
    rates = {"dropRate": 0.1, "malformedRate": 0.1, "rateLimitRate": 0.1, "disconnectRate": 0.1}
    aimock_control("POST", "chaos", rates)
    done = batchrun(base_url, mode)
    met: dict[str, list[str | None]] = {f"Row {row} asks.": [] for row in range(50)}
    for entry in aimock_control("GET", "journal"):
        fault = entry["response"].get("chaosAction")
        met[entry["body"]["messages"][-1]["content"]].append(fault and _CHAOS[fault])
    rows = table(mode)
    # A kept-alive connection that dies before any byte is no attempt: its journal has more of them.
    lost = "connection"
    assert [[kind for kind in kinds(row) if kind != lost] for row in rows] == [
        [kind for kind in seen if kind != lost] for seen in met.values()
    ]
    for row in rows:
        seen = kinds(row)
        assert row["ok"] == (seen[-1] is None)
        # A server error of its own that comes back, or a third answer that cannot be read.
        # Else all tries were used up, which a rate limit never does.
        tries = [kind for kind in seen if kind != "rate_limit"]
        assert row["ok"] or tries.count(seen[-1]) == 3 or len(tries) == 6, seen
    assert done.returncode == (0 if all(row["ok"] for row in rows) else 4), done.stderr


def test_statuses_within_a_completed_event_are_told_apart(
    mode: str, aimock: Teach, batchrun: Run, table: Table, kinds: Kinds
) -> None:
    calls = [{"name": "add", "arguments": {"a": 1, "b": 2}}] * 2
    answers: list[tuple[dict[str, Any], tuple[str, bool, int | None]]] = [
        ({"content": "Whole."}, ("completed", False, 0)),
        ({"content": "Two calls.", "toolCalls": calls}, ("completed", False, 2)),
        ({"toolCalls": calls}, ("completed", False, 2)),
        ({"content": "Cut", "finishReason": "length"}, ("incomplete", True, 0)),
        # It fails and gives no error, which may pass: asked again, and no answer in the end; what
        # it said is kept.
        ({"content": "Failed", "finishReason": "content_filter"}, ("no_answer", False, 0)),
    ]
    asked = list(islice(cycle(answers), 50))
    taught = [
        {"match": {"userMessage": f"Row {row} asks"}, "response": answer}
        for row, (answer, _) in enumerate(asked)
    ]
    done = batchrun(aimock(taught), mode, "--max-attempts", "2")
    assert done.returncode == 4, done.stderr
    for row, (answer, ends) in zip(table(mode), asked, strict=True):
        assert (row["status"], row["truncated"], row["tool_call_count"]) == ends
        assert row["ok"] == (row["status"] == "completed")
        assert row["output_text"] == answer.get("content")
        if row["status"] == "no_answer":
            assert kinds(row) == ["server_error"] * 2
        else:
            assert row["output_tokens"] is None  # aimock says 0 unless it is told: it counts none
    called = table(mode, "tool_calls")
    assert len(called) == 40
    assert {json.loads(call["arguments"])["b"] for call in called} == {2}
    assert {(call["name"], call["status"]) for call in called} == {("add", "completed")}


def test_work_begun_in_background_that_the_server_does_not_know_stops_the_run(
    aimock: Teach, batchrun: Run, aimock_control: Callable[..., Any]
) -> None:
    queued = {"match": {}, "response": {"content": "Later.", "finishReason": "queued"}}
    done = batchrun(aimock([queued]), "background")
    assert done.returncode == 3, done.stderr
    assert "it has no background mode; use --mode stream or plain" in done.stderr
    posts = aimock_control("GET", "journal?method=POST")
    assert len(posts) == 1  # the first request goes out alone


def test_a_wrong_key_stops_the_run(mode: str, aimock: Teach, batchrun: Run) -> None:
    done = batchrun(aimock([]), mode, key="wrong")
    assert done.returncode == 3, done.stderr
    assert "the key is refused" in done.stderr


def test_quota_used_up_amid_a_run_stops_it_and_it_goes_on_later(
    mode: str, aimock: Teach, fixtures: Fixtures, batchrun: Run, table: Table
) -> None:
    said = {"message": "You exceeded your current quota.", "code": "insufficient_quota"}
    used_up = {
        "match": {"userMessage": "Row 30 asks"},
        "response": {"error": {**said, "type": "insufficient_quota"}, "status": 429},
    }
    done = batchrun(aimock([used_up, *fixtures([""] * 50)]), mode)
    assert done.returncode == 3, done.stderr
    assert "money or quota is used up" in done.stderr
    assert batchrun(aimock(fixtures([""] * 50)), mode).returncode == 0
    assert [row["ok"] for row in table(mode)] == [True] * 50


def test_connections_cut_amid_the_answer_cost_tries_and_no_row(
    mode: str,
    aimock: Teach,
    fixtures: Fixtures,
    cutting: Callable[[str], str],
    batchrun: Run,
    table: Table,
    kinds: Kinds,
) -> None:
    done = batchrun(cutting(aimock(fixtures([""] * 50))), mode)
    assert done.returncode == 0, done.stderr
    met = {kind for row in table(mode) for kind in kinds(row)}
    assert {"cut", None} <= met <= {"connection", "cut", None}
