"""What the options of `run` change, and what running again does."""

import json
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.waiting import HANG_S

Run = Callable[..., CompletedProcess[str]]
Query = Callable[..., list[tuple[Any, ...]]]

_ASK = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run")


@pytest.fixture
def source(write_rows: Any, questions: Any) -> Path:
    path: Path = write_rows(questions(200))
    return path


def test_results_go_to_standard_output_and_the_rest_to_standard_error(
    source: Path, batchrun: Run
) -> None:
    plain = batchrun("run", source, *_ASK, "--simulate")
    assert (plain.returncode, plain.stdout) == (0, "")
    for said in ("plan: 200 rows", "sent: question", "carried: question, answer, level"):
        assert said in plain.stderr
    assert "duckdb.read_parquet('run/responses/*.parquet')" in plain.stderr
    assert "pandas.read_parquet('run/responses')" in plain.stderr
    counted = batchrun("run", source, *_ASK, "--simulate", "--json")
    assert counted.returncode == 0
    summary = json.loads(counted.stdout)
    assert len(counted.stdout.splitlines()) == 1
    assert (summary["rows"], summary["ok"], summary["left"], summary["exit_code"]) == (
        200,
        200,
        0,
        0,
    )


def test_the_lines_that_the_end_offers_read_the_tables(
    source: Path, batchrun: Run, tmp_path: Path, environment: dict[str, str]
) -> None:
    done = batchrun("run", source, *_ASK, "--simulate")
    lines = re.findall(r'python -c "(.*)"', done.stderr)
    assert len(lines) == 2
    shown = [
        subprocess.run(
            [sys.executable, "-c", line],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=HANG_S,
        ).stdout
        for line in lines
    ]
    assert "200 rows" in shown[0]
    assert "[200 rows x" in shown[1]


def test_quiet_shows_no_progress(source: Path, batchrun: Run) -> None:
    done = batchrun("run", source, *_ASK, "--simulate", "--quiet")
    assert done.returncode == 0
    assert "in flight" not in done.stderr
    assert "plan:" not in done.stderr


def test_a_dry_run_writes_nothing_and_sends_nothing(
    source: Path, batchrun: Run, tmp_path: Path, simulator: Any, stats: Any
) -> None:
    base_url = simulator()
    done = batchrun("run", source, *_ASK, "--base-url", base_url, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "input": "A shelf has 0 books and 0 vases: how many things?",
        "model": "gpt-4.1",
    }
    where = f"POST to {base_url}/responses"
    for said in ("plan: 200 rows", "200 to send", "sent: question", where):
        assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    assert stats(base_url)["requests"] == 0


def test_a_dry_run_of_a_run_begun_changes_no_file_of_it(
    source: Path, batchrun: Run, tmp_path: Path
) -> None:
    assert batchrun("run", source, *_ASK, "--simulate", "--limit", "50").returncode == 0

    def files() -> dict[str, bytes]:
        below = sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in below if path.name != "lock"}

    before = files()
    done = batchrun("run", source, *_ASK, "--simulate", "--dry-run")
    assert done.returncode == 0
    assert "50 complete, 150 to send" in done.stderr
    assert files() == before


def test_a_dry_run_of_standard_input_leaves_nothing(batchrun: Run, tmp_path: Path) -> None:
    done = batchrun("run", "-", *_ASK, "--simulate", "--dry-run", text='{"question": "What?"}\n')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["input"] == "What?"
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_a_limit_goes_on_without_it(
    source: Path,
    batchrun: Run,
    simulator: Any,
    stats: Any,
    query: Query,
    totals: Any,
    tmp_path: Path,
) -> None:
    base_url = simulator()
    command = ("run", source, *_ASK, "--base-url", base_url)
    done = batchrun(*command, "--limit", "30")
    assert done.returncode == 0
    assert "\nlimited: 30 of 30 rows (170 more not asked for), 30 ok\n" in done.stderr
    (rate,) = re.findall(r"retries; ([\d,.]+ rows/\w+) over [\d.]+ s\n", done.stderr)
    assert query("SELECT count(*), max(row) FROM read_parquet(?)") == [(30, 29)]
    assert stats(base_url)["requests"] == 30
    again = batchrun(*command, "--limit", "30", "--json")
    assert again.returncode == 0
    summary = json.loads(again.stdout)
    assert (summary["rows"], summary["left"], summary["state"]) == (30, 170, "limited")
    stand = batchrun("status", "run").stdout
    assert "rows:       30 of 30 (170 more not asked for)\n" in stand
    told = json.loads(batchrun("status", "run", "--json").stdout)
    assert (told["rows"], told["left"], told["source_rows"]) == (30, 170, 200)
    metrics = batchrun("status", "run", "--format", "prometheus").stdout
    for name, value in (("rows", 200), ("rows_asked", 30), ("rows_remaining", 170)):
        assert re.search(rf"^batchrun_{name}{{.*}} {value}$", metrics, re.MULTILINE)
    report = batchrun("report", "run").stdout
    assert "limited: 30 rows, 30 ok, 170 remaining (not asked for)" in report
    assert batchrun("report", "run", "--html", "page.html").returncode == 0
    page = (tmp_path / "page.html").read_text()
    assert "170 of 200 remaining, not asked for" in page
    assert f">{rate}<" in page
    assert "limit:      first 30 of 200 rows done" in stand
    assert shlex.split(stand.splitlines()[-1])[1:] == ["batchrun", *map(str, command), "--json"]
    assert stats(base_url)["requests"] == 30
    assert batchrun(*command).returncode == 0
    assert totals() == (200, 200, 200)
    assert stats(base_url)["requests"] == 200


def test_rows_that_are_added_are_sent_and_no_others(
    source: Path,
    tmp_path: Path,
    batchrun: Run,
    simulator: Any,
    stats: Any,
    questions: Any,
    totals: Any,
) -> None:
    base_url = simulator()
    command = ("run", source, *_ASK, "--base-url", base_url)
    assert batchrun(*command).returncode == 0
    with (tmp_path / source).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in questions(40, first=200))
    assert batchrun(*command).returncode == 0
    assert totals() == (240, 240, 240)
    counts = stats(base_url, by="body")
    assert [body["requests"] for body in counts.values()] == [1] * 240


def test_rows_with_ids_may_change_their_places(
    batchrun: Run, simulator: Any, stats: Any, questions: Any, write_rows: Any, totals: Any
) -> None:
    base_url = simulator()
    rows = [{"id": f"q{number}", **row} for number, row in enumerate(questions(60))]
    source = write_rows(rows[:40])
    command = ("run", source, *_ASK, "--base-url", base_url)
    assert batchrun(*command).returncode == 0
    write_rows(rows[::-1])
    assert batchrun(*command).returncode == 0
    assert totals()[0] == 60
    assert stats(base_url)["requests"] == 60


@pytest.mark.parametrize("change", ["another question", "a row less", "a row between"])
def test_an_input_that_changed_under_settled_rows_is_refused(
    change: str, batchrun: Run, simulator: Any, stats: Any, questions: Any, write_rows: Any
) -> None:
    base_url = simulator()
    rows = questions(30)
    source = write_rows(rows)
    command = ("run", source, *_ASK, "--base-url", base_url)
    assert batchrun(*command).returncode == 0
    match change:
        case "another question":
            rows[7]["question"] += " Really?"
        case "a row less":
            rows.pop()
        case "a row between":
            rows.insert(7, {"question": "And another one?", "answer": "-", "level": 0})
    write_rows(rows)
    done = batchrun(*command)
    assert done.returncode == 2
    assert "not agree with the input any more" in done.stderr
    assert stats(base_url)["requests"] == 30


def test_a_run_that_has_ended_says_so_sends_nothing_and_exits_as_it_did(
    source: Path, batchrun: Run, simulator: Any, stats: Any
) -> None:
    base_url = simulator()
    command = ("run", source, *_ASK, "--base-url", base_url, "--json")
    first, again = batchrun(*command), batchrun(*command)
    assert (first.returncode, again.returncode) == (0, 0)
    assert "nothing left to send" in again.stderr
    one, other = json.loads(first.stdout), json.loads(again.stdout)
    assert one["completed"] == 200
    of_command = ("elapsed_s", "sent_s", "completed", "p50_s", "p99_s")
    for name in (*of_command, "rows_per_s", "requests_per_s", "tokens_per_s"):
        del one[name], other[name]
    assert one == other
    assert stats(base_url)["requests"] == 200


def test_rows_that_are_not_ok_end_with_4_and_a_command_that_sends_them_again(
    batchrun: Run, write_rows: Any, questions: Any, simulator: Any, stats: Any
) -> None:
    base_url = simulator()
    rows = [{"custom_id": f"the row {number}", **row} for number, row in enumerate(questions(9))]
    for number, row in enumerate(rows):
        row["heat"] = 7 if number == 4 else 1
    source = write_rows(rows)
    command = ("run", source, *_ASK, "--base-url", base_url, "--set", "temperature={{ heat }}")
    done, again = batchrun(*command), batchrun(*command)
    assert (done.returncode, again.returncode) == (4, 4)
    assert stats(base_url)["requests"] == 9
    for end in (done, again):
        last = end.stderr.splitlines()[-1]
        assert last == f"next: {shlex.join(['batchrun', *map(str, command)])} --retry-failed"
    shown = batchrun("show", "run", "the row 4")
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert lines[0] == "the row 4: row 4 of prompts.jsonl"
    assert any(re.match(r"  outcome: +failed$", line) for line in lines)
    assert any(re.match(r"  error: +bad_request \(.*http 400\)$", line) for line in lines)
    assert any(re.match(r"  message: +\S", line) for line in lines)
    assert "    heat: 7" in lines


def test_bad_rows_become_rows_of_their_own_kind_on_demand(
    tmp_path: Path, batchrun: Run, query: Query, simulator: Any, stats: Any
) -> None:
    base_url = simulator()
    lines = ['{"question": "One?"}', "not JSON", '{"other": 1}', '{"question": "Two?"}', "[]"]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    command = ("run", "prompts.jsonl", *_ASK, "--base-url", base_url)
    assert batchrun(*command).returncode == 2
    assert not (tmp_path / "run").exists()
    done = batchrun(*command, "--skip-bad-rows")
    assert done.returncode == 4
    rows = query("SELECT row, status, error_kind, len(attempts) FROM read_parquet(?) ORDER BY row")
    assert rows == [
        (0, "completed", None, 1),
        (1, "invalid", "invalid_row", 0),
        (2, "invalid", "invalid_row", 0),
        (3, "completed", None, 1),
        (4, "invalid", "invalid_row", 0),
    ]
    assert stats(base_url)["requests"] == 2


def test_a_simulation_needs_no_key_no_network_and_no_proxy(
    source: Path, batchrun: Run, totals: Any
) -> None:
    nowhere = "http://127.0.0.1:9"
    env = {"HTTP_PROXY": nowhere, "http_proxy": nowhere, "HTTPS_PROXY": nowhere, "NO_PROXY": ""}
    done = batchrun("run", source, *_ASK, "--simulate", "--max-attempts", "1", env=env)
    assert done.returncode == 0, done.stderr
    assert totals() == (200, 200, 200)


def test_a_closed_standard_stream_is_no_socket(
    source: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    ask = (*_ASK[:-2], "--simulate")  # each in a directory of its own
    words = shlex.join([sys.executable, "-m", "batchrun", "run", str(source), *ask])
    for number, closed in enumerate(("<&-", ">&-", "2>&-")):
        done = subprocess.run(
            ["/bin/sh", "-c", f"{words} -o run{number} --limit 5 {closed}"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=False,
            timeout=HANG_S,
        )
        assert done.returncode == 0, (closed, done.stderr)


def test_a_full_standard_output_is_said_and_no_traceback(
    source: Path, batchrun: Run, tmp_path: Path, environment: dict[str, str]
) -> None:
    batchrun("run", source, *_ASK, "--simulate")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "batchrun", "show", "run", "0"],
            cwd=tmp_path,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=HANG_S,
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr


def test_settings_that_rows_carry_and_do_not_send_are_warned_of(
    tmp_path: Path, batchrun: Run
) -> None:
    row = {"model": "m2", "temperature": 0, "messages": [{"role": "user", "content": "x"}]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(row) + "\n")
    done = batchrun("run", "chat.jsonl", "--model", "gpt-4.1", "--dry-run", "-o", "run")
    assert "warning: model, temperature (1 row): named like settings of a request" in done.stderr
    assert "--send model --send temperature sends them" in done.stderr
    assert "carried: model (as model_input), temperature" in done.stderr
    assert json.loads(done.stdout)["model"] == "gpt-4.1"


def test_a_run_directory_that_was_moved_still_knows_its_source(
    source: Path, batchrun: Run, tmp_path: Path
) -> None:
    batchrun("run", source, *_ASK, "--simulate", "--limit", "50")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "run").rename(tmp_path / "deep" / "er" / "run")
    ask = [word if word != "run" else "deep/er/run" for word in _ASK]
    done = batchrun("run", source, *ask, "--simulate")
    assert done.returncode == 0
    assert "50 complete, 150 to send" in done.stderr


def test_a_limit_on_open_files_that_is_too_low_is_said_and_kept_to(
    write_rows: Any, questions: Any, begin: Any, simulator: Any, stats: Any, totals: Any
) -> None:
    source, base_url = write_rows(questions(400)), simulator("--latency", "0.05")
    asked = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "--concurrency", "1000")
    run = begin(
        "run", source, *asked, "--base-url", base_url, "-o", "run",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)),
    )  # fmt: skip
    _, said = run.communicate(timeout=HANG_S)
    assert run.returncode == 0, said
    warned = re.search(r"warning: the limit on open files allows (\d+) requests in flight", said)
    assert warned is not None, said
    assert 1 < stats(base_url)["most_in_flight"] <= int(warned[1]) < 100
    assert totals() == (400, 400, 400)
