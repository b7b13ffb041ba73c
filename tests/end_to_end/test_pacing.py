"""What a run may use, what it does when the endpoint is down, and what it says meanwhile."""

import itertools
import json
import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest

from tests.processes import free_port, read_rest, read_until
from tests.runs import read_record
from tests.waiting import HANG_S

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., "Popen[str]"]
Query = Callable[..., list[tuple[Any, ...]]]

_ROWS = 120
_ASK = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run")


@pytest.fixture
def source(write_rows: Any, questions: Any) -> Path:
    path: Path = write_rows(questions(_ROWS))
    return path


def _events(tmp_path: Path) -> list[dict[str, Any]]:
    text = (tmp_path / "run" / "events.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _serve(begin: Begin, port: int) -> "Popen[str]":
    words = ("--port", port, "--latency", "0.1", "--latency-spread", "0")
    process = begin("simulate", *words)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http")
    return process


def test_an_outage_in_the_middle_costs_no_row_and_no_try(
    write_rows: Any,
    questions: Any,
    tmp_path: Path,
    begin: Begin,
    wait_until: Callable[..., None],
    totals: Callable[..., tuple[Any, ...]],
    query: Query,
) -> None:
    rows = 600
    source = write_rows(questions(rows))
    port = free_port()
    server = _serve(begin, port)
    run = begin(
        "run", source, *_ASK, "--base-url", f"http://127.0.0.1:{port}/v1", "--concurrency", "8",
        "--max-attempts", "3",
    )  # fmt: skip
    live = tmp_path / "run" / "live.json"
    wait_until(lambda: live.exists() and json.loads(live.read_text())["ok"] >= 20, run)
    server.kill()
    server.wait(HANG_S)
    wait_until(lambda: "endpoint down" in (tmp_path / "run" / "events.jsonl").read_text(), run)
    time.sleep(4)  # longer than three tries of a row would take by themselves
    assert run.poll() is None
    _serve(begin, port)
    _, said = run.communicate(timeout=HANG_S)
    assert run.returncode == 0, said
    assert totals() == (rows, rows, rows)
    sql = "SELECT max(n) FROM (SELECT len(attempts) AS n FROM read_parquet(?))"
    assert query(sql)[0][0] > 1
    names = [event["event"] for event in _events(tmp_path)]
    assert names.index("endpoint down") < names.index("over")


def test_an_endpoint_that_stays_down_ends_the_run_and_keeps_every_row(
    source: Path, tmp_path: Path, batchrun: Run, simulator: Any, totals: Any
) -> None:
    port = free_port()
    dead = f"http://127.0.0.1:{port}/v1"
    done = batchrun("run", source, *_ASK, "--base-url", dead, "--give-up-after", "3")
    assert done.returncode == 3, done.stderr
    assert "nothing has answered within" in done.stderr
    assert read_record(tmp_path / "run")["totals"]["rows"] == 0
    again = batchrun("run", source, *_ASK, "--base-url", simulator())
    assert again.returncode == 0, again.stderr
    assert totals() == (_ROWS, _ROWS, _ROWS)


def test_a_hint_beyond_what_may_be_waited_for_ends_the_run(
    source: Path, batchrun: Run, simulator: Any
) -> None:
    base_url = simulator("--fault", "429_hint=1", "--retry-after", "4000")
    done = batchrun("run", source, *_ASK, "--base-url", base_url)
    assert done.returncode == 3, done.stderr
    assert "asks to wait 4000 s" in done.stderr


def test_a_row_that_is_refused_among_many_answers_waits_as_asked_and_the_others_go_on(
    write_rows: Any, questions: Any, batchrun: Run, simulator: Any, query: Query
) -> None:
    words = ("--fault", "429_float=0.02", "--retry-after", "0.3", "--no-hints", "--latency", "0.01")
    source, base_url = write_rows(questions(1_200)), simulator(*words)
    done = batchrun("run", source, *_ASK, "--base-url", base_url, "--concurrency", "16")
    assert done.returncode == 0, done.stderr
    sql = """
        SELECT [[epoch_us(one.started_at) / 1e6, one.latency_s] FOR one IN attempts]
        FROM read_parquet(?)
    """
    rows: list[list[tuple[float, float]]] = [row[0] for row in query(sql)]
    sent = sorted(began_s for row in rows for began_s, _ in row)
    refused = [began_s + took_s for row in rows for began_s, took_s in row[:-1]]
    again = [began_s for row in rows for began_s, _ in row[1:]]
    assert all(later - end_s > 0.29 for end_s, later in zip(refused, again, strict=True))
    # Before there are answers one refusal stops all, and at the end nothing else is left.
    judged = [end_s for end_s in refused if sent[100] < end_s < sent[-100] - 0.3]
    idle = [end_s for end_s in judged if not any(0.05 < at_s - end_s < 0.25 for at_s in sent)]
    assert len(judged) >= 5
    assert len(idle) <= len(judged) / 3


def test_the_cap_is_never_passed_and_a_higher_one_goes_on(
    source: Path, batchrun: Run, simulator: Any, stats: Any, query: Query, totals: Any
) -> None:
    base_url = simulator("--latency", "0.01")
    command = ("run", source, *_ASK, "--set", "max_output_tokens=200", "--base-url", base_url)
    first = batchrun(*command, "--max-cost", "0.01")
    assert first.returncode == 3, first.stderr
    spent = query("SELECT sum(cost_usd) FROM read_parquet(?)")[0][0]
    assert 0.005 < spent <= 0.01
    assert "--max-cost" in first.stderr
    settled = totals()[0]
    assert settled == stats(base_url)["completions"]
    left = f"{_ROWS - settled} rows remain"
    assert left in first.stderr
    nothing = batchrun(*command, "--max-cost", "0.01")
    assert nothing.returncode == 3
    assert stats(base_url)["requests"] - settled <= 10  # the rest of the cap may hold a few more
    *_, named = nothing.stderr.splitlines()
    assert named.startswith("next: batchrun run ")
    assert (
        named == "next: " + json.loads(batchrun("status", "run", "--json").stdout)["next_command"]
    )
    second = batchrun(*shlex.split(named)[2:])
    assert second.returncode in (0, 4), second.stderr
    assert totals()[:2] == (_ROWS, _ROWS)
    assert stats(base_url)["completions"] == _ROWS


def test_a_later_command_reserves_by_the_answers_to_the_one_before(
    source: Path, batchrun: Run, simulator: Any, totals: Any
) -> None:
    base_url = simulator("--latency", "0.01")
    command = ("run", source, *_ASK, "--base-url", base_url)  # nothing bounds an answer
    first = batchrun(*command, "--max-cost", "0.045")
    assert first.returncode == 3, first.stderr
    settled = totals()[0]
    assert 10 < settled < _ROWS
    *_, named = first.stderr.splitlines()
    second = batchrun(*shlex.split(named)[2:])
    assert totals()[0] > settled, second.stderr


def test_a_cap_with_an_unknown_price_sends_nothing_and_shows_how_to_give_one(
    source: Path, write_job: Any, batchrun: Run, simulator: Any, stats: Any, query: Query
) -> None:
    base_url = simulator()
    words = ("--model", "house-model-7", "--base-url", base_url, "--max-cost", "1", "-o", "run")
    refused = batchrun("run", source, "--prompt", "{{ question }}", *words)
    assert refused.returncode == 2
    assert '[pricing."house-model-7"]' in refused.stderr
    assert stats(base_url)["requests"] == 0
    shown = re.search(r'\[pricing\."house-model-7"\]\n(\s*\w+ = [\d.]+\n)+', refused.stderr)
    assert shown is not None
    write_job(f'[input]\npath = "{source}"\n[request]\ninput = "{{{{ question }}}}"\n{shown[0]}')
    done = batchrun("run", "job.toml", *words)
    assert done.returncode == 0, done.stderr
    priced = "SELECT DISTINCT priced_as, cost_usd > 0 FROM read_parquet(?)"
    assert query(priced) == [("house-model-7", True)]


def test_too_many_failures_stop_the_run(source: Path, batchrun: Run, simulator: Any) -> None:
    base_url = simulator("--fault", "400_policy=0.5", "--latency", "0.01")
    command = ("run", source, *_ASK, "--base-url", base_url, "--concurrency", "4")
    done = batchrun(*command, "--max-failures", "10")
    assert done.returncode == 3, done.stderr
    assert "10 rows failed (limits.max_failures = 10)" in done.stderr
    other = [*command]
    other[other.index("-o") + 1] = "other"
    share = batchrun(*other, "--max-failures", "20%")
    assert share.returncode == 3, share.stderr
    assert "of the last 100 rows failed" in share.stderr


def test_retries_go_before_fresh_rows_that_wait(
    write_rows: Any, questions: Any, batchrun: Run, simulator: Any, query: Query
) -> None:
    source = write_rows(questions(600))  # all of them wait at the gate from the start
    base_url = simulator("--rpm", "6000", "--fault", "500_json=0.1")
    done = batchrun("run", source, *_ASK, "--base-url", base_url)
    assert done.returncode == 0, done.stderr
    ((late, retried),) = query(
        "SELECT count(*) FILTER (second > first_s + (last_s - first_s) / 2), count(*) FROM ("
        "SELECT epoch(attempts[1].started_at) AS first_s, epoch(attempts[2].started_at) AS second, "
        "max(epoch(attempts[1].started_at)) OVER () AS last_s, len(attempts) AS tries "
        "FROM read_parquet(?)) WHERE tries > 1 AND first_s < last_s - 4"
    )
    assert retried > 10
    assert late == 0


def test_requests_a_minute_are_spread_evenly(
    source: Path, batchrun: Run, simulator: Any, query: Query
) -> None:
    done = batchrun("run", source, *_ASK, "--base-url", simulator(), "--rpm", "1200")
    assert done.returncode == 0, done.stderr
    sql = "SELECT epoch_us(attempts[1].started_at) / 1e6 FROM read_parquet(?) ORDER BY 1"
    starts = [float(start) for (start,) in query(sql)]
    for first, last in itertools.pairwise(starts[::25]):
        assert last - first >= 25 / 20 * 0.85
    assert starts[-1] - starts[0] >= (_ROWS - 1) / 20 * 0.9


def test_the_summary_says_what_binds(
    source: Path, tmp_path: Path, begin: Begin, batchrun: Run, simulator: Any, wait_until: Any
) -> None:
    base_url = simulator("--latency", "0.5")
    run = begin("run", source, *_ASK, "--base-url", base_url, "--concurrency", "2")
    live = tmp_path / "run" / "live.json"

    def binds() -> str:
        return str(json.loads(live.read_text())["binds"]) if live.exists() else ""

    wait_until(lambda: "requests in flight" in binds(), run)
    status = batchrun("status", "run")
    assert "requests in flight (2 of 2)" in status.stdout
    # In the first seconds there are several ticks, so that the report can say it of short runs too.
    wait_until(lambda: [one["event"] for one in _events(tmp_path)].count("tick") >= 3, run)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=HANG_S)
    assert run.returncode == 130
    ticks = [event for event in _events(tmp_path) if event["event"] == "tick"]
    assert all(tick["binds"] for tick in ticks)
    assert "of the time limited by" in batchrun("report", "run").stdout


def test_the_last_rows_are_named_while_they_are_waited_for(
    write_rows: Any, tmp_path: Path, begin: Begin, simulator: Any, wait_until: Any
) -> None:
    source = write_rows([{"id": "slow one", "question": "x"}])
    base_url = simulator("--latency", "20", "--latency-spread", "0")
    run = begin("run", source, *_ASK, "--base-url", base_url)
    live = tmp_path / "run" / "live.json"
    wait_until(lambda: live.exists() and json.loads(live.read_text())["oldest"][:1], run)
    named, age_s = json.loads(live.read_text())["oldest"][0]
    assert named == "slow one"
    assert age_s >= 0
    run.send_signal(signal.SIGINT)
    read_until(run, "Ctrl-C again drops them")  # two at once may come as one
    run.send_signal(signal.SIGINT)
    read_rest(run)
