"""Rows sent again: the older outcome stands until the new one does, through kills as well."""

import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess, Popen
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from batchrun.store.snapshot import snapshot
from batchrun.store.unfinished import read_open
from tests.runs import read_record

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., "Popen[str]"]
Query = Callable[..., list[tuple[Any, ...]]]
Stats = Callable[..., dict[str, Any]]

_PROMPT = ("--prompt", "{{ question }}", "--model", "gpt-4.1")
_RUN = ("run", "prompts.jsonl", *_PROMPT, "-o", "run")
_JOB = """
[input]
path = "prompts.jsonl"

[request]
model = "gpt-4.1"
input = "{{ question }}"

[[request.tools]]
type = "function"
name = "count_things"
[request.tools.parameters]
type = "object"
[request.tools.parameters.properties]
number = { type = "integer" }

[endpoint]
base_url = "BASE_URL"

[limits]
concurrency = 16

[output]
path = "run"
part_rows = 20
"""


def _key(body: str | bytes) -> str:
    """How the simulator's table of bodies names a request."""
    fields = json.loads(body)
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()


def _stands(run: Path) -> dict[int, tuple[int, bool, str]]:
    """Attempts, whether it is ok, and the body of each row, each of which stands once."""
    found: dict[int, tuple[int, bool, str]] = {}
    with snapshot(run) as now:
        for part in now.responses:
            columns = ["row", "custom_id", "sample", "attempts", "ok", "request"]
            for row in pq.read_table(part, columns=columns).to_pylist():
                if (row["custom_id"], row["sample"], None) not in now.replaced:
                    assert row["row"] not in found
                    found[row["row"]] = (len(row["attempts"]), row["ok"], _key(row["request"]))
        for outcome in now.outcomes():
            request = outcome.request
            assert request.row not in found
            found[request.row] = (len(outcome.attempts), outcome.ok, _key(request.body))
    return found


def _is_replacing(run: Path) -> bool:
    """Whether a seal is under way that replaces parts."""
    try:
        names = {entry.name for entry in (run / "responses").iterdir()}
    except FileNotFoundError:
        return False
    return any(name.startswith(".") and name[1:-4] in names for name in names)


def _next(done: CompletedProcess[str]) -> Sequence[str]:
    """The words after `batchrun` of the command that the last line names."""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("next: batchrun "), done.stderr
    return shlex.split(last)[2:]


def test_failed_rows_are_sent_again_until_all_are_ok(
    tmp_path: Path,
    write_rows: Any,
    questions: Any,
    simulator: Any,
    batchrun: Run,
    stats: Stats,
    query: Query,
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    write_rows(questions(60))
    base_url = simulator("--fault", "422_detail=0.2", "--fault", "400_policy=0.15")
    done = batchrun(*_RUN, "--base-url", base_url)
    assert done.returncode == 4
    only = batchrun(*_RUN, "--base-url", base_url, "--retry-failed=content_policy")
    (left,) = query("SELECT count(*) FROM read_parquet(?) WHERE error_kind = 'bad_request'")
    assert left[0] > 0
    assert "of them again)" in only.stderr
    words = _next(only)
    assert words == [*_RUN, "--base-url", base_url, "--retry-failed"]
    for _ in range(12):
        done = batchrun(*words)
        assert totals()[:2] == (60, 60)
        if done.returncode == 0:
            break
        assert _next(done) == words
    assert totals() == (60, 60, 60)
    assert batchrun("verify", "run").returncode == 0
    requests = stats(base_url)["requests"]
    (sums,) = query(
        "SELECT sum(len(attempts)), sum(cost_usd), "
        "sum(list_sum([a.cost_usd FOR a IN attempts])), count(*) FILTER (len(attempts) > 1), "
        "count(*) FILTER (attempts[1].started_at <> started_at) FROM read_parquet(?)"
    )
    assert sums[0] == requests
    assert sums[1] == pytest.approx(sums[2])
    assert sums[3] > 0
    assert sums[4] == 0
    told = read_record(tmp_path / "run")["totals"]
    assert (told["attempts"], told["rows"], told["ok"]) == (requests, 60, 60)
    assert told["statuses"] == {"completed": 60}
    assert told["error_kinds"] == {}
    assert told["cost_usd"] == pytest.approx(sums[1])
    proved = batchrun("verify", "run")
    assert "60 rows, each once" in proved.stdout
    assert "the totals agree" in proved.stdout
    again = batchrun(*words)
    assert "nothing left to send" in again.stderr
    assert (again.returncode, stats(base_url)["requests"]) == (0, requests)


def test_the_next_word_is_never_taken_for_a_kind(
    write_rows: Any, questions: Any, batchrun: Run
) -> None:
    write_rows(questions(3))
    words = ("prompts.jsonl", *_PROMPT, "--simulate", "-o", "run")
    assert batchrun("run", "--retry-failed", *words).returncode == 0
    wrong = batchrun("run", "--retry-failed=timeout,nonsense", *words)
    assert wrong.returncode == 2
    assert "'nonsense' is not an error kind that can be sent again; known are bad_request," in (
        " ".join(wrong.stderr.split())
    )
    meant = batchrun("run", "--retry-failed=refused", *words)
    assert "did you mean `refusal`?" in " ".join(meant.stderr.split())
    assert "refusal" in wrong.stderr
    assert "invalid_row" not in wrong.stderr


def test_what_no_option_sends_again_is_shown(
    write_rows: Any, questions: Any, simulator: Any, batchrun: Run, totals: Any
) -> None:
    write_rows(questions(10))
    base_url = simulator("--refusals", "1")
    done = batchrun(*_RUN, "--base-url", base_url)
    assert done.returncode == 4
    assert _next(done)[:2] == ["show", "run"]
    dry = batchrun(*_RUN, "--base-url", base_url, "--retry-failed=refusal", "--dry-run")
    assert "10 rows, 10 complete, 10 to send (10 of them again)" in dry.stderr
    again = batchrun(*_RUN, "--base-url", simulator(), "--retry-failed=refusal")
    assert again.returncode == 0, again.stderr
    assert totals() == (10, 10, 10)


def test_a_budget_counts_what_older_attempts_cost_once(
    tmp_path: Path, write_rows: Any, questions: Any, simulator: Any, batchrun: Run, query: Query
) -> None:
    write_rows(questions(20))
    base_url = simulator("--refusals", "1")
    words = (*_RUN, "--base-url", base_url, "--set", "max_output_tokens=500", "--concurrency", 1)
    assert batchrun(*words).returncode == 4
    spent = read_record(tmp_path / "run")["totals"]["cost_usd"]
    again = ("--retry-failed=refusal", "--max-cost")
    stopped = batchrun(*words, *again, spent + 1e-6)
    assert stopped.returncode == 3
    assert query("SELECT max(len(attempts)) FROM read_parquet(?)") == [(1,)]
    some = batchrun(*words, *again, spent + 0.0045)
    assert some.returncode == 3
    assert "rows remain, about $" in some.stderr
    (sums,) = query("SELECT sum(cost_usd), max(len(attempts)) FROM read_parquet(?)")
    assert spent < sums[0] <= spent + 0.0045
    assert sums[1] == 2
    assert read_record(tmp_path / "run")["totals"]["cost_usd"] == pytest.approx(sums[0])
    proved = batchrun("verify", "run")
    assert proved.returncode == 0, proved.stdout


@pytest.mark.parametrize(
    ("rows", "moments"),
    [
        (300, ("sending", "replacing")),
        pytest.param(500, ("sending", "replacing", "replacing"), marks=pytest.mark.long),
    ],
)
def test_kills_while_rows_are_sent_again_keep_each_row_once(
    rows: int,
    moments: Sequence[str],
    tmp_path: Path,
    write_job: Any,
    write_rows: Any,
    questions: Any,
    simulator: Any,
    begin: Begin,
    batchrun: Run,
    stats: Stats,
    wait_until: Callable[..., None],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    write_rows(questions(rows))
    base_url = simulator("--latency", "0.02", "--latency-spread", "0", "--fault", "422_detail=0.8")
    write_job(_JOB, base_url)
    assert batchrun("run", "job.toml").returncode == 4
    run = tmp_path / "run"
    before = _stands(run)
    paid: dict[str, int] = {}  # requests for each body that is answered, counted at the kill
    replacing = 0
    for moment in moments:
        completions = stats(base_url)["requests"]
        process = begin("run", "job.toml", "--retry-failed", stdout=DEVNULL, stderr=DEVNULL)
        wait_until(lambda c=completions: stats(base_url)["requests"] > c + 20, process)
        if moment == "replacing":
            wait_until(lambda: _is_replacing(run), process)
        process.kill()
        process.wait()
        replacing += _is_replacing(run)
        now = _stands(run)
        assert sorted(now) == list(range(rows))
        assert all(now[row][0] >= attempts for row, (attempts, _, _) in before.items())
        assert all(now[row][1] for row, (_, ok, _) in before.items() if ok)
        assert batchrun("verify", "run").returncode == 0
        status = batchrun("status", "run", "--json")
        stand = json.loads(status.stdout)
        assert stand["ok"] + stand["not_ok"] == rows
        assert stand["ok"] == sum(ok for _, ok, _ in now.values())
        bodies = stats(base_url, by="body")
        for key, requests in paid.items():
            assert bodies[key]["requests"] == requests
        paid = {key: bodies[key]["requests"] for _, ok, key in now.values() if ok}
        before = now
    assert replacing > 0
    requests = stats(base_url)["requests"]
    plain = batchrun("run", "job.toml")  # without the option the others stay as they are
    assert plain.returncode == 4
    assert stats(base_url)["requests"] == requests
    assert _stands(run) == before
    assert totals() == (rows, rows, sum(ok for _, ok, _ in before.values()))
    proved = batchrun("verify", "run")
    assert "the totals agree" in proved.stdout
    assert not list((run / "journal").iterdir())
    assert not list(run.rglob("*.tmp"))


def test_a_response_begun_to_replace_an_outcome_is_taken_up(
    tmp_path: Path,
    write_rows: Any,
    questions: Any,
    simulator: Any,
    begin: Begin,
    batchrun: Run,
    stats: Stats,
    wait_until: Callable[..., None],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    write_rows(questions(6))
    assert batchrun(*_RUN, "--base-url", simulator("--fault", "422_detail=1")).returncode == 4
    base_url = simulator("--latency", "2", "--latency-spread", "0")
    words = (*_RUN, "--base-url", base_url, "--mode", "background", "--retry-failed")
    process = begin(*words, stdout=DEVNULL, stderr=DEVNULL)
    wait_until(lambda: len(list(read_open(tmp_path / "run"))) == 6, process)
    process.kill()
    process.wait()
    assert stats(base_url)["background"]["created"] == 6
    assert batchrun(*words).returncode == 0
    assert stats(base_url)["background"]["created"] == 6
    assert totals() == (6, 6, 6)
    assert batchrun("verify", "run").returncode == 0
    assert not list((tmp_path / "run" / "journal").iterdir())


def test_changed_rows_are_sent_again_and_gone_rows_leave_the_totals(
    tmp_path: Path,
    write_rows: Any,
    questions: Any,
    batchrun: Run,
    query: Query,
) -> None:
    rows = [{"id": f"q{number}", **row} for number, row in enumerate(questions(12))]
    write_rows(rows)
    words = ("run", "prompts.jsonl", *_PROMPT, "-o", "run", "--simulate")
    assert batchrun(*words).returncode == 0
    kept = [{**row, "question": "How now?"} if row["id"] == "q5" else row for row in rows[3:]]
    write_rows([*kept, {"id": "new", **rows[0]} | {"id": "new"}])
    refused = batchrun(*words)
    assert refused.returncode == 2
    assert "q5 (row 5): its request has changed" in refused.stderr
    assert "q0 (row 0): removed" in refused.stderr
    assert "--rerun-changed" in refused.stderr
    done = batchrun(*words, "--rerun-changed")
    assert done.returncode == 0, done.stderr
    assert "3 complete rows are not in the input any more" in done.stderr
    assert "q0 (row 0), q1 (row 1), q2 (row 2)" in done.stderr
    assert "done: 10 of 10 rows, 10 ok" in done.stderr
    found = query(
        "SELECT custom_id, row, len(attempts), request LIKE '%How now%' FROM read_parquet(?) "
        "WHERE custom_id IN ('q0', 'q4', 'q5', 'new') ORDER BY custom_id"
    )
    assert found == [("new", 9, 1, False), ("q0", 0, 1, False), ("q4", 4, 1, False),
                     ("q5", 2, 2, True)]  # fmt: skip
    assert query("SELECT count(*) FROM read_parquet(?)") == [(13,)]
    record = read_record(tmp_path / "run")
    assert (record["totals"]["rows"], record["gone"]["rows"], record["rows"]) == (10, 3, 10)
    proved = batchrun("verify", "run")
    assert proved.returncode == 0, proved.stdout
    assert "rows:       10" in batchrun("status", "run").stdout
    assert batchrun(*words, "--rerun-changed").returncode == 0
    assert batchrun(*words).returncode == 0  # that they are gone was meant, and still is


def test_a_run_that_goes_on_can_be_verified(
    write_rows: Any,
    questions: Any,
    simulator: Any,
    begin: Begin,
    batchrun: Run,
    stats: Stats,
    wait_until: Callable[..., None],
) -> None:
    write_rows(questions(200))
    base_url = simulator("--latency", "0.3")
    process = begin(*_RUN, "--base-url", base_url, "--concurrency", 2, stderr=DEVNULL)
    wait_until(lambda: stats(base_url)["requests"] > 10, process)
    proved = batchrun("verify", "run")
    assert proved.returncode == 0, proved.stdout
    assert "totals not compared, since it is still running" in proved.stdout
    assert "live: a process writes to this run" in proved.stdout


def test_what_does_not_hold_is_listed_and_ends_with_one(
    tmp_path: Path, write_rows: Any, questions: Any, batchrun: Run
) -> None:
    write_rows(questions(5))
    assert batchrun(*_RUN, "--simulate").returncode == 0
    part = tmp_path / "run" / "responses" / "w0-000001.parquet"
    part.with_name("w0-000002.parquet").write_bytes(part.read_bytes())
    wrong = batchrun("verify", "run")
    assert wrong.returncode == 1
    assert "5 problems" in wrong.stdout
    assert "responses/w0-000002.parquet, row 0 of it: row" in wrong.stdout
    assert batchrun("verify", "nowhere").returncode == 2


def test_a_deleted_part_is_paid_again_only_where_that_is_asked_for(
    tmp_path: Path,
    write_job: Any,
    write_rows: Any,
    questions: Any,
    simulator: Any,
    batchrun: Run,
    stats: Stats,
) -> None:
    base_url = simulator()
    write_rows(questions(60))
    write_job(_JOB, base_url)
    assert batchrun("run", "job.toml").returncode == 0
    lost = min((tmp_path / "run" / "responses").iterdir())
    lost.unlink()
    named = f"responses/{lost.name}"
    assert named in batchrun("verify", "run").stdout
    refused = batchrun("run", "job.toml")
    assert refused.returncode == 2
    assert f"{named} (20 rows)" in refused.stderr
    assert stats(base_url)["requests"] == 60
    again = batchrun("run", "job.toml", "--rerun-changed")
    assert again.returncode == 0, again.stderr
    assert stats(base_url)["requests"] == 80
    proved = batchrun("verify", "run")
    assert proved.returncode == 0, proved.stdout
    assert batchrun("run", "job.toml").returncode == 0
    assert stats(base_url)["requests"] == 80
