"""What stops a run early, by itself or by a signal, and how the same command goes on."""

import json
import os
import pty
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, CompletedProcess, Popen
from typing import Any

import pytest

from batchrun.store.files import is_locked
from tests.processes import free_port, frozen, read_rest, read_until
from tests.waiting import HANG_S

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., "Popen[str]"]
Query = Callable[..., list[tuple[Any, ...]]]

_ROWS = 80
_IN_FLIGHT = 8
_ASK = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run")
_LONG_DRAIN = (sys.executable, str(Path(__file__).parent / "long_drain.py"), "3600")
_SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


def _signals(short: signal.Signals, *others: signal.Signals) -> list[Any]:
    """Signals and their exit codes; the others are for the long form."""
    codes = dict(_SIGNALS)
    more = [pytest.param(one, codes[one], marks=pytest.mark.long) for one in others]
    return [(short, codes[short]), *more]


@pytest.fixture
def source(write_rows: Any, questions: Any) -> Path:
    path: Path = write_rows(questions(_ROWS))
    return path


def _next(done: CompletedProcess[str] | str, base_url: str | None = None) -> list[str]:
    """The words of the command that the last line names, with another base URL if one is given."""
    text = done if isinstance(done, str) else done.stderr
    last = text.splitlines()[-1]
    assert last.startswith("next: batchrun "), text
    words = shlex.split(last)[2:]
    if base_url is not None:
        words[words.index("--base-url") + 1] = base_url
    return words


def test_a_wrong_key_costs_one_call(
    source: Path,
    tmp_path: Path,
    batchrun: Run,
    simulator: Any,
    stats: Callable[..., dict[str, Any]],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    base_url = simulator("--require-key-env", "THE_KEY", env={"THE_KEY": "right-key-1234"})
    command = ("run", source, *_ASK, "--base-url", base_url)
    done = batchrun(*command, env={"OPENAI_API_KEY": "wrong-key-5678"})
    assert done.returncode == 3
    assert stats(base_url)["requests"] == 1
    assert "the key is refused" in done.stderr
    assert "next: batchrun run prompts.jsonl" in done.stderr.splitlines()[-1]
    none = batchrun(*_next(done))
    assert none.returncode == 3
    assert stats(base_url)["requests"] == 2
    right = batchrun(*_next(done), env={"OPENAI_API_KEY": "right-key-1234"})
    assert right.returncode == 0, right.stderr
    assert totals() == (_ROWS, _ROWS, _ROWS)
    assert stats(base_url)["requests"] == _ROWS + 2
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert b"right-key" not in path.read_bytes()


def test_an_unknown_model_costs_one_call(
    source: Path,
    batchrun: Run,
    simulator: Any,
    stats: Callable[..., dict[str, Any]],
    query: Query,
) -> None:
    base_url = simulator("--model", "gpt-5")
    done = batchrun("run", source, *_ASK, "--base-url", base_url)
    assert done.returncode == 3
    assert stats(base_url)["requests"] == 1
    assert "no such model or path" in done.stderr
    assert _next(done)[0] == "run"
    stand = json.loads(batchrun("status", "run", "--json").stdout)
    assert (stand["state"], stand["left"], stand["exit_code"]) == ("stopped", _ROWS, 3)
    with pytest.raises(Exception, match="No files found"):
        query("SELECT * FROM read_parquet(?)")


def test_a_used_up_quota_stops_the_run_and_more_of_it_goes_on(
    source: Path,
    batchrun: Run,
    simulator: Any,
    stats: Callable[..., dict[str, Any]],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    poor, rich = simulator("--quota", "30", "--latency", "0.02"), simulator()
    command = ("run", source, *_ASK, "--concurrency", _IN_FLIGHT, "--base-url")
    done = batchrun(*command, poor)
    assert done.returncode == 3
    assert "money or quota is used up" in done.stderr
    paid = stats(poor)["completions"]
    assert 30 <= paid <= 30 + _IN_FLIGHT
    assert totals() == (paid, paid, paid)
    again = batchrun(*command, poor)
    assert again.returncode == 3
    assert stats(poor)["refused"]["quota"] <= 2 * _IN_FLIGHT
    assert batchrun(*command, rich).returncode == 0
    assert totals() == (_ROWS, _ROWS, _ROWS)
    assert stats(rich)["requests"] == _ROWS - paid


def test_twenty_refusals_in_a_row_stop_a_run_that_went_well(
    source: Path,
    begin: Begin,
    batchrun: Run,
    processes: "list[Popen[str]]",
    simulator: Any,
    wait_until: Callable[..., None],
    stats: Callable[..., dict[str, Any]],
    totals: Callable[..., tuple[Any, ...]],
    query: Query,
) -> None:
    port = free_port()
    base_url = simulator("--port", port, "--latency", "0.03")
    server = processes[-1]
    command = ("run", source, *_ASK, "--base-url", base_url, "--concurrency", "1")
    process = begin(*command)
    wait_until(lambda: stats(base_url)["completions"] > 5, process)
    server.terminate()
    server.wait(HANG_S)
    key = {"THE_KEY": "another-key"}
    assert simulator("--port", port, "--require-key-env", "THE_KEY", env=key) == base_url
    _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 3, said
    assert "20 consecutive rows failed in the same way" in said
    assert stats(base_url)["requests"] == 20
    assert query("SELECT count(*) FROM read_parquet(?) WHERE NOT ok") == [(0,)]  # nothing is ended
    ended = batchrun(*_next(said), env={"OPENAI_API_KEY": "another-key"})
    assert ended.returncode == 0
    assert totals() == (_ROWS, _ROWS, _ROWS)


@pytest.mark.parametrize(("number", "code"), _SIGNALS)
def test_the_first_signal_lets_what_is_in_flight_land(
    number: signal.Signals,
    code: int,
    source: Path,
    begin: Begin,
    batchrun: Run,
    processes: "list[Popen[str]]",
    simulator: Any,
    wait_until: Callable[..., None],
    stats: Callable[..., dict[str, Any]],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    base_url = simulator("--latency", "0.5", "--latency-spread", "0")
    server = processes[-1]
    process = begin("run", source, *_ASK, "--base-url", base_url, "--concurrency", _IN_FLIGHT)

    def is_full() -> bool:
        counts = stats(base_url)
        return counts["completions"] > 0 and bool(counts["in_flight"] == _IN_FLIGHT)

    wait_until(is_full, process)
    with frozen(server):
        process.send_signal(number)
        said = read_until(process, "waiting up to 20 s for requests in flight")
    said += read_rest(process)
    assert process.returncode == code, said
    assert "Traceback" not in said
    counts = stats(base_url)
    paid = counts["completions"]
    assert counts["destroyed"] == 0
    assert totals() == (paid, paid, paid)
    assert _IN_FLIGHT < paid < _ROWS
    ended = batchrun(*_next(said, simulator()))
    assert ended.returncode == 0, ended.stderr
    assert totals() == (_ROWS, _ROWS, _ROWS)
    assert stats(base_url)["requests"] == paid


@pytest.mark.parametrize(("number", "code"), _signals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
def test_the_second_signal_drops_what_never_ends(
    number: signal.Signals,
    code: int,
    source: Path,
    begin: Begin,
    simulator: Any,
    wait_until: Callable[..., None],
    stats: Callable[..., dict[str, Any]],
) -> None:
    base_url = simulator("--fault", "stalled_body=1")
    process = begin("run", source, *_ASK, "--base-url", base_url, command=_LONG_DRAIN)
    wait_until(lambda: stats(base_url)["in_flight"] > 0, process)
    process.send_signal(number)
    read_until(process, "waiting up to 3600 s for requests in flight")
    said = read_until(process, " s left; Ctrl-C again drops them")
    assert re.search(r"stopping: [1-9][0-9]* in flight, 3[56][0-9]{2} s left; Ctrl-C again", said)
    process.send_signal(number)
    rest = read_rest(process)
    assert process.returncode == code
    assert "dropping requests in flight" in rest
    assert _next(rest)[0] == "run"


@pytest.mark.parametrize(("number", "code"), _signals(signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
def test_a_signal_ends_a_plan_and_names_the_command_that_goes_on(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    source: Path,
    begin: Begin,
    simulator: Any,
    batchrun: Run,
    wait_until: Callable[..., None],
    stats: Callable[..., dict[str, Any]],
    questions: Any,
) -> None:
    base_url = simulator()
    slow = "{% for one in range(LOOPS) %}{% endfor %}{{ question }}"
    command = ("run", source, "--model", "gpt-4.1", "-o", "run", "--base-url", base_url)
    first = (*command, "--prompt", slow.replace("LOOPS", "3000"))
    assert batchrun(*first, "--limit", "3").returncode == 0
    with (tmp_path / source).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in questions(9_000, first=_ROWS))
    process = begin(*first)
    wait_until(lambda: is_locked(tmp_path / "run"), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == code, said
    assert "plan:" not in said
    assert "Traceback" not in said
    assert stats(base_url)["requests"] == 3
    assert _next(said)[0] == "run"


def test_a_plan_that_does_not_listen_ends_with_the_third_signal(
    tmp_path: Path, source: Path, begin: Begin, batchrun: Run, wait_until: Callable[..., None]
) -> None:
    loops = "{% for one in range(99999) %}{% endfor %}" * 9  # a plan looks up now and then
    command = ("run", source, "--model", "m", "-o", "run", "--simulate", "--prompt")
    assert batchrun(*command, "{{ question }}", "--limit", "1").returncode == 0
    with (tmp_path / source).open("a") as file:
        file.writelines(
            json.dumps({"question": "?", "answer": "!", "level": 1}) + "\n" for _ in range(900)
        )
    process = begin(*command, loops + "{{ question }}")
    wait_until(lambda: is_locked(tmp_path / "run"), process)
    assert process.stderr is not None
    for said in ("stopping", "stopping: the next Ctrl-C ends it at once"):
        process.send_signal(signal.SIGTERM)
        line = process.stderr.readline()
        while line.startswith("planning: "):  # on a slow machine it is said by then
            line = process.stderr.readline()
        assert line.strip() == said
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG_S) == 143
    assert batchrun(*command, "{{ question }}", "--limit", "1").returncode == 0


@pytest.mark.parametrize(("number", "code"), _SIGNALS[::2])
def test_a_signal_ends_the_wait_for_standard_input(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    begin: Begin,
    batchrun: Run,
    wait_until: Callable[..., None],
    questions: Any,
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in questions(_ROWS))
    process = begin("run", "-", *_ASK, "--simulate", stdin=PIPE)
    assert process.stdin is not None
    process.stdin.write(rows[: len(rows) // 2])
    process.stdin.flush()
    wait_until((tmp_path / "run/input/.stdin.jsonl.unfinished").exists, process)
    process.send_signal(number)
    process.wait(HANG_S)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.returncode == code, said
    assert "nothing was sent" in said
    ended = batchrun(*_next(said), text=rows)
    assert ended.returncode == 0, ended.stderr
    assert totals() == (_ROWS, _ROWS, _ROWS)


def _resumes(batchrun: Run, said: str, base_url: str) -> None:
    ended = batchrun(*_next(said, base_url))
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(("number", "code"), _signals(signal.SIGTERM))
def test_a_signal_ends_backoffs_at_once(
    number: signal.Signals,
    code: int,
    source: Path,
    begin: Begin,
    batchrun: Run,
    simulator: Any,
    wait_until: Callable[..., None],
    stats: Callable[..., dict[str, Any]],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    base_url = simulator("--fault", "500_json=0.9")
    command = ("run", source, *_ASK, "--base-url", base_url, "--max-attempts", "50")
    process = begin(*command, command=_LONG_DRAIN)

    def backs_off() -> bool:
        counts = stats(base_url)
        return counts["completions"] > 3 and not counts["in_flight"]

    wait_until(backs_off, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=HANG_S)  # the drain alone would take 3,600
    assert process.returncode == code, said
    assert "Traceback" not in said
    paid = stats(base_url)["completions"]
    quick = simulator()
    _resumes(batchrun, said, quick)
    assert totals() == (_ROWS, _ROWS, _ROWS)
    assert stats(quick)["requests"] == _ROWS - paid


@pytest.mark.parametrize(("number", "code"), _signals(signal.SIGINT, signal.SIGHUP))
def test_signals_without_end_neither_hang_a_run_nor_break_its_seals(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    write_job: Any,
    source: Path,
    begin: Begin,
    batchrun: Run,
    simulator: Any,
    wait_until: Callable[..., None],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    write_job(
        f"[input]\npath = '{source}'\n[request]\nmodel = 'm'\ninput = '{{{{ question }}}}'\n"
        "[output]\npath = 'run'\npart_rows = 3\n"
    )
    base_url = simulator("--latency", "0.5")
    process = begin("run", "job.toml", "--base-url", base_url, "--concurrency", _IN_FLIGHT)
    wait_until(lambda: any((tmp_path / "run").glob("responses/*.parquet")), process)
    end_s = time.monotonic() + HANG_S
    while process.poll() is None:
        assert time.monotonic() < end_s
        process.send_signal(number)
        time.sleep(0.002)
    said = process.communicate(timeout=HANG_S)[1]
    assert process.returncode == code, said
    assert "Traceback" not in said
    settled = totals()
    assert settled[0] == settled[1]
    assert not list((tmp_path / "run/journal").glob("*.log"))
    _resumes(batchrun, said, simulator())
    assert totals() == (_ROWS, _ROWS, _ROWS)


@pytest.mark.skipif(shutil.which("setsid") is None, reason="it gives a process a terminal")
def test_a_terminal_that_goes_away_leaves_a_run_that_resumes(
    source: Path,
    begin: Begin,
    batchrun: Run,
    simulator: Any,
    wait_until: Callable[..., None],
    stats: Callable[..., dict[str, Any]],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    base_url = simulator("--latency", "0.5")
    screen, terminal = pty.openpty()
    process = begin(
        *("run", source, *_ASK, "--base-url", base_url, "--concurrency", _IN_FLIGHT),
        before=("setsid", "--ctty", "--wait"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    wait_until(lambda: stats(base_url)["completions"] > 2, process)
    os.close(screen)
    assert process.wait(HANG_S) == 129
    stand = json.loads(batchrun("status", "run", "--json").stdout)
    assert (stand["state"], stand["exit_code"]) == ("interrupted", 129)
    _resumes(batchrun, f"next: {stand['next_command']}", simulator())
    assert totals() == (_ROWS, _ROWS, _ROWS)


@pytest.mark.parametrize(("name", "number"), [("INT", signal.SIGINT), ("HUP", signal.SIGHUP)])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(
    name: str,
    number: signal.Signals,
    source: Path,
    begin: Begin,
    simulator: Any,
    wait_until: Callable[..., None],
    stats: Callable[..., dict[str, Any]],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    base_url = simulator("--latency", "0.1")
    process = begin(
        *("run", source, *_ASK, "--base-url", base_url, "--concurrency", _IN_FLIGHT),
        before=("sh", "-c", f"trap '' {name}; exec \"$@\"", "sh"),
    )
    wait_until(lambda: stats(base_url)["completions"] > 2, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, said
    assert "stopping" not in said
    assert totals() == (_ROWS, _ROWS, _ROWS)
