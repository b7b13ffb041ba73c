"""50 rows in each mode against the litellm proxy, alone and with aimock behind it."""

import secrets
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any

import pytest

pytestmark = pytest.mark.servers

Run = Callable[..., subprocess.CompletedProcess[str]]
Teach = Callable[[Iterable[dict[str, Any]]], str]
Fixtures = Callable[[Sequence[str]], list[dict[str, Any]]]
Table = Callable[..., list[dict[str, Any]]]
Kinds = Callable[[dict[str, Any]], list[str | None]]

_MODES = ("plain", "stream", "background")

# What the first try of a row meets at aimock, and what is left of it when litellm has passed it on.
_FAULTS = {
    "": [],
    "drop": ["server_error"],
    "malformed": ["server_error"],
    "disconnect": ["server_error"],
    "rate_limit": ["rate_limit"],
    "hint": ["rate_limit"],
    "overloaded": ["overloaded"],
    "slow": [],
    "cut": ["server_error"],
}


@pytest.mark.parametrize("mode", ["plain", "background"])
def test_answers_of_its_own_come_at_once_also_in_background(
    mode: str, litellm: str, batchrun: Run, table: Table
) -> None:
    done = batchrun(litellm, mode, model="mocked")
    assert done.returncode == 0, done.stderr
    rows = table(mode)
    assert [row["output_text"] for row in rows] == ["A mocked answer."] * 50
    for row in rows:
        assert (row["ok"], row["via"], len(row["attempts"])) == (True, mode, 1)
        assert (row["input_tokens"], row["output_tokens"]) == (36, 87)
        assert row["reasoning_tokens"] is None  # it says null
        assert row["reported_cost_usd"] > 0
        assert row["request_id"]  # x-litellm-call-id


def test_its_own_streams_are_errors_and_stop_the_run_with_its_words(
    litellm: str, batchrun: Run
) -> None:
    done = batchrun(litellm, "stream", "--max-attempts", "1", model="mocked")
    assert done.returncode == 3, done.stderr
    assert "every request has failed for 60 s" in done.stderr
    assert "the last with: Error processing stream start" in done.stderr  # of the 500's stream


def test_each_row_is_answered_after_the_fault_behind_it(
    mode: str,
    litellm: str,
    aimock: Teach,
    fixtures: Fixtures,
    batchrun: Run,
    table: Table,
    kinds: Kinds,
    answer_of: Callable[[int], str],
) -> None:
    faults = list(islice(cycle(_FAULTS), 50))
    aimock(fixtures(faults))
    done = batchrun(litellm, mode, model="behind")
    assert done.returncode == 0, done.stderr
    rows = table(mode)
    for row in rows:
        assert (row["ok"], row["status"], row["via"]) == (True, "completed", mode)
        assert row["output_text"] == answer_of(row["row"])
        assert (row["input_tokens"], row["output_tokens"]) == (10 + row["row"], 20 + row["row"])
        assert (row["first_token_s"] is not None) == (mode == "stream")
    # aimock cuts streams alone.
    met = [
        [] if (fault, mode == "stream") == ("cut", False) else _FAULTS[fault] for fault in faults
    ]
    assert [kinds(row) for row in rows] == [[*before, None] for before in met]


@pytest.mark.timeout(600)
def test_its_limit_of_requests_a_minute_is_waited_out(
    litellm: str, aimock: Teach, fixtures: Fixtures, batchrun: Run, table: Table, kinds: Kinds
) -> None:
    aimock(fixtures([""] * 50))
    # It counts calendar minutes, and this one must not end amid the first requests.
    second = time.time() % 60
    if second > 40:
        time.sleep(60 - second)

    def run(mode: str) -> subprocess.CompletedProcess[str]:
        return batchrun(litellm, mode, model=f"limited-{mode}")

    with ThreadPoolExecutor() as at_once:
        for mode, done in zip(_MODES, at_once.map(run, _MODES), strict=True):
            assert done.returncode == 0, done.stderr
            limited = [row for row in table(mode) if kinds(row) != [None]]
            # 30 were in the first minute, where its headers told no limit in time.
            assert len(limited) <= 20
            # Renamed to llm_provider-retry-after, and waited for: else there would be more of them.
            assert [kinds(row) for row in limited] == [["rate_limit", None]] * len(limited)


def test_quota_used_up_behind_it_stops_the_run(
    mode: str, litellm: str, aimock: Teach, batchrun: Run, aimock_control: Callable[..., Any]
) -> None:
    said = {"message": "You exceeded your current quota.", "code": "insufficient_quota"}
    error = {**said, "type": "insufficient_quota"}
    aimock([{"match": {}, "response": {"error": error, "status": 429}}])
    done = batchrun(litellm, mode, model="behind")
    assert done.returncode == 3, done.stderr
    assert "money or quota is used up" in done.stderr
    assert len(aimock_control("GET", "journal")) == 1


def test_work_begun_in_background_that_nobody_behind_it_knows_stops_the_run(
    litellm: str, aimock: Teach, batchrun: Run
) -> None:
    aimock([{"match": {}, "response": {"content": "Later.", "finishReason": "queued"}}])
    done = batchrun(litellm, "background", model="behind")
    assert done.returncode == 3, done.stderr
    assert "it has no background mode; use --mode stream or plain" in done.stderr


def test_a_wrong_key_which_it_answers_with_400_stops_the_run_after_twenty_rows(
    mode: str, litellm: str, batchrun: Run
) -> None:
    done = batchrun(litellm, mode, model="mocked", key=f"sk-{secrets.token_hex(16)}")
    assert done.returncode == 3, done.stderr
    assert "the first 20 rows all failed the same way (bad_request)" in done.stderr


def test_connections_cut_amid_the_answer_cost_tries_and_no_row(
    mode: str,
    litellm: str,
    aimock: Teach,
    fixtures: Fixtures,
    cutting: Callable[[str], str],
    batchrun: Run,
    table: Table,
    kinds: Kinds,
) -> None:
    aimock(fixtures([""] * 50))
    done = batchrun(cutting(litellm), mode, model="behind")
    assert done.returncode == 0, done.stderr
    rows = table(mode)
    assert [row["ok"] for row in rows] == [True] * 50
    met = {kind for row in rows for kind in kinds(row)}
    assert {"cut", None} <= met <= {"connection", "cut", None}
