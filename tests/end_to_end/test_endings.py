"""Two things happen at once, and what the run says of its end is true all the same."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest

import batchrun as package
from batchrun.records import Answered, Begun
from batchrun.store import reading
from batchrun.store.files import is_locked
from batchrun.store.snapshot import snapshot
from batchrun.store.unfinished import read_open
from tests.processes import frozen, read_rest, read_until
from tests.runs import read_record
from tests.waiting import HANG_S

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., "Popen[str]"]
Stats = Callable[..., dict[str, Any]]
Query = Callable[..., list[tuple[Any, ...]]]

_ASK = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run")
# Answers that are cut at their first limit, and asked for again with twice as much.
_CUT = """
[input]
path = "prompts.jsonl"
[request]
model = "gpt-4.1"
input = "{{ question }}"
max_output_tokens = 16
[retry]
on_incomplete = "raise_limit"
max_wait_s = 0.2
[endpoint]
base_url = "BASE_URL"
[limits]
concurrency = 8
[output]
path = "run"
"""
# No text fits this schema, so every answer is asked for twice more.
_UNFIT = _CUT.replace('on_incomplete = "raise_limit"', "on_invalid_output = 2").replace(
    "max_output_tokens = 16",
    "[request.text.format]\n"
    'type = "json_schema"\nname = "n"\n'
    'schema = { type = "object", properties = { a = { type = "string", pattern = "^(?!x)x" } }, '
    'required = ["a"], additionalProperties = false }',
)


def _failing(name: str, seconds: float) -> tuple[str, ...]:
    script = Path(__file__).parent / "failing_disk.py"
    return (sys.executable, str(script), name, str(seconds))


def _stored_keys(run: Path) -> list[str]:
    """The ids of all rows in parts and journal."""
    with snapshot(run) as now:
        names = [outcome.request.custom_id for outcome in now.outcomes()]
    responses = reading.responses(run).to_table(columns=["custom_id"]) if run.exists() else None
    return names + (responses["custom_id"].to_pylist() if responses is not None else [])


def test_the_tests_run_this_checkout(tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import batchrun; print(batchrun.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=HANG_S,
    )
    checkout = Path(__file__).parents[2] / "batchrun" / "__init__.py"
    assert Path(done.stdout.strip()) == Path(package.__file__) == checkout


@pytest.mark.parametrize("job", [_CUT, _UNFIT], ids=["cut", "unfit"])
def test_a_quota_that_is_used_up_at_a_re_ask_stops_the_run(
    tmp_path: Path,
    write_job: Any,
    write_rows: Any,
    questions: Any,
    batchrun: Run,
    simulator: Any,
    stats: Stats,
    job: str,
) -> None:
    rows = 120
    write_rows(questions(rows))
    base_url = simulator("--quota", "90", "--latency", "0.02", "--output-tokens", "60")
    write_job(job, base_url)
    done = batchrun("run", "job.toml")
    assert done.returncode == 3, done.stderr
    assert "money or quota is used up" in done.stderr
    assert done.stderr.splitlines()[-1] == "next: batchrun run job.toml"
    record = read_record(tmp_path / "run")
    complete = record["totals"]["rows"]
    assert record["state"] == "stopped"
    assert 0 < complete < rows
    stand = json.loads(batchrun("status", "run", "--json").stdout)
    assert (stand["state"], stand["left"], stand["exit_code"]) == ("stopped", rows - complete, 3)
    assert batchrun("verify", "run").returncode == 0
    # Every answer that arrived is on disk: in a table, or to be asked for again.
    attempts = reading.responses(tmp_path / "run").to_table(columns=["attempts"])["attempts"]
    in_tables = sum(len(one) for one in attempts.to_pylist())
    waiting = {one.key: one for one in read_open(tmp_path / "run") if isinstance(one, Answered)}
    answered = sum(len(one.outcome.attempts) for one in waiting.values())
    assert stats(base_url)["completions"] == in_tables + answered
    assert stand["unfinished"] == len(waiting) > 0
    # The same command goes on where it was, and pays for no answer twice.
    rich = simulator("--output-tokens", "60")
    write_job(job, rich)
    ended = batchrun("run", "job.toml")
    assert ended.returncode in (0, 4), ended.stderr
    assert read_record(tmp_path / "run")["state"] == "finished"
    found = reading.responses(tmp_path / "run").to_table(columns=["custom_id", "attempts"])
    assert found.num_rows == len(set(found["custom_id"].to_pylist())) == rows
    attempts = sum(len(one) for one in found["attempts"].to_pylist())
    assert attempts == in_tables + answered + stats(rich)["completions"]
    assert batchrun("verify", "run").returncode == 0
    assert not list((tmp_path / "run" / "journal").iterdir())


def test_a_second_ctrl_c_during_a_re_ask_keeps_the_answer_and_its_cost(
    tmp_path: Path,
    write_job: Any,
    write_rows: Any,
    questions: Any,
    begin: Begin,
    batchrun: Run,
    processes: "list[Popen[str]]",
    simulator: Any,
    stats: Stats,
    wait_until: Callable[..., None],
    query: Query,
) -> None:
    write_rows([{"id": "one", **questions(1)[0]}])
    base_url = simulator("--latency", "0.5", "--latency-spread", "0", "--output-tokens", "60")
    server = processes[-1]
    write_job(_CUT, base_url)
    run = begin("run", "job.toml")
    wait_until(lambda: stats(base_url)["requests"] == 2, run)
    with frozen(server):
        shutil.copytree(tmp_path / "run", tmp_path / "live")
        run.send_signal(signal.SIGINT)
        read_until(run, "Ctrl-C again drops them")  # two at once may come as one
        run.send_signal(signal.SIGINT)
        said = read_rest(run)
    shown = batchrun("show", "live", "one")  # while the run went on
    assert shown.returncode == 0, shown.stderr
    assert "unfinished: this answer is requested again" in shown.stdout
    assert run.returncode == 130, said
    assert "for the answers of 1 unfinished row" in said
    row = json.loads(batchrun("show", "run", "one", "--json").stdout)
    assert (row["unfinished"], row["truncated"], len(row["attempts"])) == (True, True, 1)
    assert row["cost_usd"] > 0
    stand = json.loads(batchrun("status", "run", "--json").stdout)
    assert (stand["left"], stand["unfinished"]) == (1, 1)
    assert stand["unfinished_usd"] == pytest.approx(row["cost_usd"])
    assert batchrun("run", "job.toml").returncode in (0, 4)
    limits = "SELECT len(attempts), attempts[1].response_id, response_id FROM read_parquet(?)"
    ((attempts, first, last),) = query(limits)
    assert first == row["response_id"] != last
    assert stats(base_url)["requests"] == attempts + 1  # the one that was dropped has no record


@pytest.mark.parametrize("moment", ["begun", "answered"])
def test_a_kill_while_an_answer_is_asked_for_again_in_background_pays_for_nothing_twice(
    tmp_path: Path,
    write_job: Any,
    write_rows: Any,
    questions: Any,
    begin: Begin,
    batchrun: Run,
    simulator: Any,
    stats: Stats,
    wait_until: Callable[..., None],
    query: Query,
    moment: str,
) -> None:
    write_rows(questions(1))
    base_url = simulator("--latency", "2", "--latency-spread", "0", "--output-tokens", "60")
    write_job(_CUT.replace("[endpoint]", '[endpoint]\nmode = "background"'), base_url)
    run = begin("run", "job.toml")
    wanted = 1 if moment == "answered" else 2

    def records() -> list[Answered | Begun]:
        return list(read_open(tmp_path / "run"))

    wait_until(lambda: len(records()) > wanted, run)
    run.kill()
    run.wait(HANG_S)
    assert batchrun("run", "job.toml").returncode in (0, 4)
    said = "SELECT list_transform(attempts, lambda a: a.response_id) FROM read_parquet(?)"
    (ids,) = query(said)[0]
    assert len(ids) == len(set(ids)) > 1  # it was really asked for again
    in_flight = stats(base_url)["background"]["created"] - len(ids)
    assert in_flight in ((0, 1) if moment == "answered" else (0,))
    assert not list((tmp_path / "run" / "journal").iterdir())


def test_an_answer_on_record_stands_where_nothing_is_asked_again_any_more(
    tmp_path: Path,
    write_job: Any,
    write_rows: Any,
    questions: Any,
    batchrun: Run,
    simulator: Any,
    stats: Stats,
) -> None:
    write_rows(questions(20))
    write_job(_CUT, simulator("--quota", "20", "--output-tokens", "60"))
    assert batchrun("run", "job.toml").returncode == 3
    waiting = len(list(read_open(tmp_path / "run")))
    left = 20 - read_record(tmp_path / "run")["totals"]["rows"]
    assert 0 < waiting <= left
    rich = simulator("--output-tokens", "60")
    write_job(_CUT.replace('on_incomplete = "raise_limit"', ""), rich)
    assert batchrun("run", "job.toml").returncode == 4
    assert read_record(tmp_path / "run")["state"] == "finished"
    assert stats(rich)["requests"] == left - waiting


def test_a_disk_that_fails_during_a_stop_takes_what_arrived_once_it_can(
    tmp_path: Path,
    write_rows: Any,
    questions: Any,
    begin: Begin,
    batchrun: Run,
    simulator: Any,
    stats: Stats,
    wait_until: Callable[..., None],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    source = write_rows(questions(300))
    base_url = simulator("--latency", "0.5", "--latency-spread", "0.5")
    command = ("run", source, *_ASK, "--base-url", base_url, "--concurrency", "40")
    run = begin(*command)
    wait_until(lambda: stats(base_url)["completions"] > 50, run)
    with frozen(run):
        run.send_signal(signal.SIGINT)
        size = max(path.stat().st_size for path in (tmp_path / "run" / "journal").glob("*.log"))
        resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    said = read_until(run, "waiting for the disk")
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    said += read_rest(run)
    assert run.returncode == 1, said
    assert "all answers that had arrived are stored" in said
    assert read_record(tmp_path / "run")["state"] == "failed"
    paid = stats(base_url)["completions"]
    assert stats(base_url)["destroyed"] == 0
    assert len(_stored_keys(tmp_path / "run")) == len(set(_stored_keys(tmp_path / "run"))) == paid
    assert batchrun(*command).returncode == 0
    assert totals() == (300, 300, 300)
    assert stats(base_url)["completions"] == 300


def test_of_two_commands_that_start_a_run_at_once_one_alone_sends(
    tmp_path: Path,
    write_rows: Any,
    questions: Any,
    begin: Begin,
    batchrun: Run,
    simulator: Any,
    stats: Stats,
    wait_until: Callable[..., None],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    source, base_url = write_rows(questions(2_000)), simulator()
    endless = "{% for one in range(4000) %}{% endfor %}{{ question }}"  # seconds, for all rows
    command = ("run", source, "--prompt", endless, *_ASK[2:], "--base-url", base_url)
    first = begin(*command, "--limit", "10")
    wait_until(lambda: is_locked(tmp_path / "run"), first)
    with frozen(first):
        second = batchrun(*command, "--limit", "30")
        planned = batchrun("status", "run")
    assert second.returncode == 2
    assert f"in use by process {first.pid}" in second.stderr
    assert "a command is planning it and has sent nothing yet" in planned.stderr
    _, said = first.communicate(timeout=HANG_S)
    assert first.returncode == 0, said
    assert totals() == (10, 10, 10)
    assert stats(base_url)["requests"] == 10
    again = begin(*command)
    wait_until(lambda: is_locked(tmp_path / "run"), again)
    with frozen(again):
        stand = json.loads(batchrun("status", "run", "--json").stdout)
    assert (stand["state"], stand["exit_code"], stand["left"]) == ("planning", None, 1_990)


def test_a_plan_that_finds_a_problem_leaves_no_directory_behind(
    tmp_path: Path, write_rows: Any, batchrun: Run
) -> None:
    source = write_rows([{"question": "What?"}, {"nothing": 1}])
    words = ("run", source, "--prompt", "{{ question }}", "--model", "gpt-4.1", "--simulate")
    (tmp_path / "there").mkdir()
    for path in ("new", "a/b/c", "there"):
        assert batchrun(*words, "-o", path).returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl", "there"]
    assert list((tmp_path / "there").iterdir()) == []
    assert batchrun("run", "-", *words[2:], "-o", "new", text='{"nothing": 1}\n').returncode == 2
    assert not (tmp_path / "new").exists()


def test_a_segment_that_cannot_be_made_writes_no_row_twice(
    tmp_path: Path,
    write_job: Any,
    write_rows: Any,
    questions: Any,
    begin: Begin,
    batchrun: Run,
    simulator: Any,
    stats: Stats,
    wait_until: Callable[..., None],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    """No descriptor is free for the next one when this one is full."""
    write_rows(questions(40))
    base_url = simulator("--latency", "0.4", "--latency-spread", "0.2")
    text = '[input]\npath = "prompts.jsonl"\n[request]\nmodel = "gpt-4.1"\n'
    text += f'input = "{{{{ question }}}}"\n[endpoint]\nbase_url = "{base_url}"\n'
    text += '[limits]\nconcurrency = 4\n[output]\npath = "run"\npart_rows = 10\n'
    write_job(text)
    run = begin("run", "job.toml")
    wait_until(lambda: stats(base_url)["completions"] >= 5, run)
    with frozen(run):
        taken = {int(entry.name) for entry in Path(f"/proc/{run.pid}/fd").iterdir()}
        lowest_free = min(set(range(len(taken) + 1)) - taken)
        hard = resource.prlimit(run.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(run.pid, resource.RLIMIT_NOFILE, (lowest_free, hard))
    _, said = run.communicate(timeout=HANG_S)
    assert run.returncode == 1, said
    assert "raise the limit on open files" in said
    stored = _stored_keys(tmp_path / "run")
    assert len(stored) == len(set(stored)) == stats(base_url)["completions"]
    assert batchrun("run", "job.toml").returncode == 0
    assert totals() == (40, 40, 40)
    assert stats(base_url)["completions"] == 40
    assert batchrun("verify", "run").returncode == 0


def test_a_run_of_unpriced_models_whose_failed_rows_were_sent_again_is_verified(
    write_rows: Any, questions: Any, batchrun: Run, simulator: Any
) -> None:
    source = write_rows(questions(12))
    command = ("run", source, "--prompt", "{{ question }}", "--model", "my-model", "-o", "run")
    first = simulator("--model", "my-model", "--fault", "422_detail=0.7")
    assert batchrun(*command, "--base-url", first).returncode == 4
    again = simulator("--model", "my-model")
    assert batchrun(*command, "--base-url", again, "--retry-failed").returncode == 0
    proved = batchrun("verify", "run")
    assert proved.returncode == 0, proved.stdout
    assert "the totals agree" in proved.stdout


def test_a_response_begun_whose_id_the_disk_does_not_take_is_waited_for(
    write_rows: Any,
    questions: Any,
    begin: Begin,
    batchrun: Run,
    simulator: Any,
    stats: Stats,
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    source = write_rows(questions(6))
    base_url = simulator("--latency", "1.5", "--latency-spread", "0")
    command = ("run", source, *_ASK, "--base-url", base_url, "--mode", "background")
    run = begin(*command, command=_failing("w0.open", 1.0))
    _, said = run.communicate(timeout=HANG_S)
    assert run.returncode == 1, said
    assert "w0.open: cannot write" in said
    assert "Traceback" not in said
    created = stats(base_url)["background"]["created"]
    assert batchrun(*command).returncode == 0
    assert totals() == (6, 6, 6)
    assert stats(base_url)["background"]["created"] == max(created, 6) == 6


def test_an_answer_that_cannot_be_recorded_is_held_and_not_asked_for_again(
    tmp_path: Path,
    write_job: Any,
    write_rows: Any,
    questions: Any,
    begin: Begin,
    batchrun: Run,
    simulator: Any,
    stats: Stats,
) -> None:
    write_rows(questions(60))
    base_url = simulator("--latency", "0.05", "--output-tokens", "60")
    write_job(_CUT, base_url)
    run = begin("run", "job.toml", command=_failing("w0.open", 1.0))
    _, said = run.communicate(timeout=HANG_S)
    assert run.returncode == 1, said
    assert "w0.open: cannot write" in said
    with snapshot(tmp_path / "run") as now:
        stored = [len(outcome.attempts) for outcome in now.outcomes()]
    waiting = {one.key: one for one in read_open(tmp_path / "run") if isinstance(one, Answered)}
    on_disk = sum(stored) + sum(len(one.outcome.attempts) for one in waiting.values())
    assert on_disk == stats(base_url)["completions"]
    assert "all answers that had arrived are stored" in said
    assert batchrun("run", "job.toml").returncode in (0, 4)
    assert batchrun("verify", "run").returncode == 0
    found = reading.responses(tmp_path / "run").to_table(columns=["attempts"])["attempts"]
    attempts = [len(one) for one in found.to_pylist()]
    assert sum(attempts) == stats(base_url)["completions"]  # none was asked for from the start


def test_finished_with_rows_left_is_what_verify_finds(
    tmp_path: Path, write_rows: Any, questions: Any, batchrun: Run
) -> None:
    source = write_rows(questions(10))
    assert batchrun("run", source, *_ASK, "--simulate", "--limit", "4").returncode == 0
    proved = batchrun("verify", "run")
    assert proved.returncode == 0, proved.stdout
    path = tmp_path / "run" / "run.json"
    text = path.read_text()
    path.write_text(text.replace('"limited"', '"finished"'))
    wrong = batchrun("verify", "run")
    assert wrong.returncode == 1
    assert "the state is finished, yet 6 of 10 rows have no outcome" in wrong.stdout
    path.write_text(text)


def test_damage_in_what_is_known_of_unfinished_rows_is_named_and_set_aside(
    tmp_path: Path, write_job: Any, write_rows: Any, questions: Any, batchrun: Run, simulator: Any
) -> None:
    write_rows(questions(40))
    base_url = simulator("--quota", "40", "--latency", "0.02", "--output-tokens", "60")
    write_job(_CUT, base_url)
    assert batchrun("run", "job.toml").returncode == 3
    waiting = list(read_open(tmp_path / "run"))
    path = tmp_path / "run" / "journal" / "w0.open"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    proved = batchrun("verify", "run")
    assert proved.returncode == 1
    assert "journal/w0.open: " in proved.stdout
    assert "damaged bytes at offset" in proved.stdout
    write_job(_CUT, simulator("--output-tokens", "60"))
    done = batchrun("run", "job.toml")
    assert done.returncode in (0, 4), done.stderr
    assert "warning: " in done.stderr
    assert "damaged bytes at offset" in done.stderr
    assert len(list((tmp_path / "run" / "journal").glob("damaged-w0.open-*"))) == 1
    assert len(waiting) > 1
    assert batchrun("verify", "run").returncode == 0


def test_changed_rows_beyond_the_limit_are_left(
    tmp_path: Path, write_rows: Any, questions: Any, batchrun: Run, simulator: Any, stats: Stats
) -> None:
    rows = [{"id": f"q{number}", **row} for number, row in enumerate(questions(10))]
    base_url = simulator()
    command = ("run", write_rows(rows), *_ASK, "--base-url", base_url)
    assert batchrun(*command).returncode == 0
    write_rows([{**row, "question": "How?"} if row["id"] in ("q3", "q7") else row for row in rows])
    done = batchrun(*command, "--rerun-changed", "--limit", "5", "--json")
    assert done.returncode == 0, done.stderr
    summary, stand = json.loads(done.stdout), json.loads(batchrun("status", "run", "--json").stdout)
    for said in (summary, stand):
        assert (said["state"], said["left"], said["again"]) == ("limited", 1, 1)
        assert said["next_command"].endswith("--rerun-changed --json")
    assert batchrun("verify", "run").returncode == 0
    assert batchrun(*command, "--rerun-changed").returncode == 0
    assert stats(base_url)["requests"] == 12
    assert read_record(tmp_path / "run")["state"] == "finished"


def test_status_says_of_an_interrupted_resend_what_its_end_said(
    tmp_path: Path,
    write_rows: Any,
    questions: Any,
    begin: Begin,
    batchrun: Run,
    simulator: Any,
    stats: Stats,
    wait_until: Callable[..., None],
) -> None:
    command = ("run", write_rows(questions(20)), *_ASK, "--concurrency", 2, "--json")
    assert batchrun(*command, "--base-url", simulator("--fault", "422_detail=1")).returncode == 3
    base_url = simulator("--latency", "0.4")
    run = begin(*command, "--retry-failed", "--base-url", base_url)
    wait_until(lambda: stats(base_url)["completions"] >= 4, run)
    run.send_signal(signal.SIGINT)
    out, said = run.communicate(timeout=HANG_S)
    assert run.returncode == 130, said
    end, stand = json.loads(out), json.loads(batchrun("status", "run", "--json").stdout)
    live = json.loads((tmp_path / "run" / "live.json").read_bytes())
    for name in ("state", "left", "again", "ok", "not_ok", "exit_code", "message", "next_command"):
        assert end[name] == stand[name] == live[name], name
    assert end["again"] > 0


def test_a_run_that_failed_says_its_summary_too(
    tmp_path: Path,
    write_rows: Any,
    questions: Any,
    begin: Begin,
    batchrun: Run,
    simulator: Any,
    stats: Stats,
    wait_until: Callable[..., None],
) -> None:
    source = write_rows(questions(100))
    base_url = simulator("--latency", "0.2")
    run = begin("run", source, *_ASK, "--base-url", base_url, "--concurrency", 4, "--json")
    wait_until(lambda: stats(base_url)["completions"] > 4, run)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    read_until(run, "waiting for the disk")
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    said = read_rest(run)
    assert run.returncode == 1, said
    assert run.stdout is not None
    end, stand = (
        json.loads(run.stdout.read()),
        json.loads(batchrun("status", "run", "--json").stdout),
    )
    live = json.loads((tmp_path / "run" / "live.json").read_bytes())
    for name in ("state", "left", "ok", "exit_code", "message", "next_command"):
        assert end[name] == stand[name] == live[name], name
    assert (end["state"], end["exit_code"]) == ("failed", 1)
    assert said.splitlines()[-1] == f"next: {end['next_command']}"
