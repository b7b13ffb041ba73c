"""Servers that fail in every way: rows end well where that can be, and as documented elsewhere."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.waiting import HANG_S

Run = Callable[..., CompletedProcess[str]]
Query = Callable[..., list[tuple[Any, ...]]]

_PASSING = (
    ("429_hint", "429_bare"),
    ("500_json",),
    ("502_json",),
    ("503_json",),
    ("500_html", "502_html", "503_html"),
    ("500_empty", "502_empty", "503_empty"),
    ("error_200",),
    ("reset_before",),
    ("reset_within",),
)
_ROWS = 1_319
_FEW = 8  # fewer than make an outage
_JOB = """
[input]
path = "prompts.jsonl"
[request]
model = "gpt-4.1"
input = "{{ question }}"
[retry]
RETRY
[endpoint]
timeout_s = TIMEOUT
connect_timeout_s = CONNECT
idle_timeout_s = IDLE
[output]
path = "run"
"""


@pytest.fixture
def run_few(
    tmp_path: Path, write_rows: Any, questions: Any, batchrun: Run
) -> Callable[..., CompletedProcess[str]]:
    """Runs few rows that are tried so often, with short waits."""

    def run(
        base_url: str,
        retry: str,
        rows: int = _FEW,
        *,
        timeout_s: float = HANG_S,
        connect_timeout_s: float = HANG_S,
        idle_timeout_s: float = HANG_S,
    ) -> CompletedProcess[str]:
        write_rows(questions(rows))
        text = _JOB.replace("RETRY", f"max_wait_s = 0.02\n{retry}")
        text = text.replace("TIMEOUT", str(timeout_s)).replace("IDLE", str(idle_timeout_s))
        (tmp_path / "job.toml").write_text(text.replace("CONNECT", str(connect_timeout_s)))
        return batchrun("run", "job.toml", "--base-url", base_url)

    return run


def test_a_tenth_of_faults_costs_no_row_and_no_answer_but_those_destroyed(
    write_rows: Any,
    questions: Any,
    batchrun: Run,
    simulator: Any,
    stats: Callable[..., dict[str, Any]],
    totals: Callable[..., tuple[Any, ...]],
    query: Query,
) -> None:
    base_url = simulator("--faults", "0.1", "--seed", "7", "--retry-after", "0.3")
    source = write_rows(questions(_ROWS))
    options = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run")
    done = batchrun("run", source, *options, "--base-url", base_url)
    assert done.returncode == 0, done.stderr
    assert totals() == (_ROWS, _ROWS, _ROWS)
    counts = stats(base_url)
    assert set(counts["faults"]) >= {*chain(*_PASSING), "truncated_json"}
    assert counts["destroyed"] > 0
    assert set(counts["destroyed_by"]) >= {"reset_within", "truncated_json"}
    assert counts["completions"] == _ROWS + counts["destroyed"]
    attempts = query("SELECT sum(len(attempts)) FROM read_parquet(?)")[0][0]
    assert counts["requests"] == _ROWS + sum(counts["faults"].values())
    # A kept connection that is reset at once is replaced within the attempt.
    assert 0 <= counts["requests"] - attempts <= counts["faults"]["reset_before"]


@pytest.mark.parametrize("faults", _PASSING, ids=" ".join)
def test_each_kind_of_fault_that_may_pass_is_outlived(
    faults: tuple[str, ...],
    run_few: Callable[..., CompletedProcess[str]],
    simulator: Any,
    stats: Callable[..., dict[str, Any]],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    named = (word for fault in faults for word in ("--fault", f"{fault}={0.5 / len(faults)}"))
    base_url = simulator(*named, "--retry-after", "0.01", "--seed", "5")
    done = run_few(base_url, "max_attempts = 30")
    assert done.returncode == 0, done.stderr
    assert totals() == (_FEW, _FEW, _FEW)
    counts = stats(base_url)
    assert set(counts["faults"]) == set(faults)
    assert counts["completions"] == _FEW + counts["destroyed"]


@pytest.mark.parametrize("fault", ["429_hint", "429_bare"])
def test_a_429_never_uses_up_a_try(
    fault: str,
    run_few: Callable[..., CompletedProcess[str]],
    simulator: Any,
    totals: Callable[..., tuple[Any, ...]],
    query: Query,
) -> None:
    base_url = simulator("--fault", f"{fault}=0.5", "--retry-after", "0.01")
    assert run_few(base_url, "max_attempts = 1").returncode == 0
    assert totals() == (_FEW, _FEW, _FEW)
    assert query("SELECT max(len(attempts)) > 2 FROM read_parquet(?)") == [(True,)]


@pytest.mark.parametrize(
    ("fault", "retry", "kind", "attempts", "says"),
    [
        ("500_json", "max_attempts = 3", "server_error", 3, "3 attempts (retry.max_attempts)"),
        ("502_html", "max_attempts = 2", "server_error", 2, "2 attempts (retry.max_attempts)"),
        ("503_empty", "max_attempts = 2", "overloaded", 2, "2 attempts (retry.max_attempts)"),
        ("reset_before", "max_attempts = 2", "connection", 2, "2 attempts"),
        ("reset_within", "max_attempts = 2", "cut", 2, "the answer broke off"),
        ("truncated_json", "", "unreadable", 3, '{"id":"resp_'),
        ("error_200", "max_attempts = 2", "server_error", 2, "The upstream answered with an error"),
        ("429_bare", "max_elapsed_s = 0.05", "rate_limit", None, "(retry.max_elapsed_s)"),
    ],
)
def test_what_never_passes_ends_as_no_answer_with_its_reason(
    fault: str,
    retry: str,
    kind: str,
    attempts: int | None,
    says: str,
    run_few: Callable[..., CompletedProcess[str]],
    simulator: Any,
    stats: Callable[..., dict[str, Any]],
    query: Query,
) -> None:
    base_url = simulator("--fault", f"{fault}=1")
    done = run_few(base_url, retry)
    assert done.returncode == 4, done.stderr
    assert f"{kind} {_FEW}: " in done.stderr
    rows = query("SELECT ok, status, error_kind, error_message, len(attempts) FROM read_parquet(?)")
    assert len(rows) == _FEW
    for ok, status, error_kind, message, tries in rows:
        assert (ok, status, error_kind) == (False, "no_answer", kind)
        assert says in message
        assert attempts in (None, tries)
    assert stats(base_url)["requests"] == sum(row[-1] for row in rows)


@pytest.mark.parametrize(
    ("behavior", "limits", "kind", "says"),
    [
        (
            ("--never-accept",),
            {"connect_timeout_s": 0.6},
            "connection",
            "no connection within 0.6 s",
        ),
        (("--fault", "no_headers=1"), {"timeout_s": 0.5}, "timeout", "no answer within 0.5 s"),
        pytest.param(
            *(("--fault", "endless_body=1"), {"timeout_s": 3.0}),
            *("timeout", "not complete within 3 s"),
            marks=pytest.mark.long,
        ),
        (
            ("--fault", "stalled_body=1"),
            {"idle_timeout_s": 0.4},
            "timeout",
            "stalled for 0.4 s",
        ),
    ],
    ids=["never accepts", "headers never", "body never ends", "stalls within"],
)
def test_a_dead_server_ends_each_row_within_its_limits(
    behavior: tuple[str, ...],
    limits: dict[str, float],
    kind: str,
    says: str,
    run_few: Callable[..., CompletedProcess[str]],
    simulator: Any,
    query: Query,
) -> None:
    base_url = simulator(*behavior)
    done = run_few(base_url, "max_attempts = 2", 3, **limits)
    assert done.returncode == 4, done.stderr
    rows = query("SELECT status, error_kind, error_message, len(attempts) FROM read_parquet(?)")
    assert len(rows) == 3
    for status, error_kind, message, tries in rows:
        assert (status, error_kind, tries) == ("no_answer", kind, 2)
        assert says in message
        assert ("background mode" in message) is ("endpoint.timeout_s" in message)
        assert kind != "timeout" or message.count(") allows more") == 1


def test_requests_that_never_end_hold_up_no_others(
    run_few: Callable[..., CompletedProcess[str]],
    simulator: Any,
    stats: Callable[..., dict[str, Any]],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    never = ("no_headers=0.04", "endless_body=0.04", "stalled_body=0.04")
    base_url = simulator(*(word for kind in never for word in ("--fault", kind)), "--seed", "2")
    done = run_few(base_url, "", 100, timeout_s=3.0, idle_timeout_s=1.0)
    assert done.returncode in (0, 4), done.stderr
    rows, different, ok = totals()
    assert (rows, different) == (100, 100)
    assert ok >= 95
    assert len(stats(base_url)["faults"]) == 3
