"""`status` and `show` on runs that go on, were killed or have ended; and what a terminal shows."""

import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess, Popen
from typing import Any

import pytest

from batchrun.store.snapshot import snapshot
from tests.processes import frozen
from tests.progress.exposition import samples_of
from tests.waiting import HANG_S

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., "Popen[str]"]

_ROWS = 400
_ASK = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def source(write_rows: Any, questions: Any) -> Path:
    path: Path = write_rows(questions(_ROWS))
    return path


def test_a_run_tells_how_it_stands_while_it_goes_on_when_killed_and_at_its_end(
    tmp_path: Path,
    source: Path,
    begin: Begin,
    batchrun: Run,
    simulator: Any,
    wait_until: Callable[..., None],
    stats: Callable[..., dict[str, Any]],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    slow = simulator("--latency", "0.6", "--latency-spread", "0")
    command = ("run", source, *_ASK, "--concurrency", "16", "--base-url")
    process = begin(*command, slow, stdout=DEVNULL, stderr=DEVNULL)
    wait_until(lambda: stats(slow)["completions"] > 16, process)

    live = batchrun("status", "run", "--json")
    stand = json.loads(live.stdout)
    assert (live.returncode, stand["state"], stand["rows"]) == (0, "running", _ROWS)
    assert "in flight:" in batchrun("status", "run").stdout
    busy = batchrun(*command, slow)
    assert busy.returncode == 2
    assert f"in use by process {process.pid}" in busy.stderr
    assert process.poll() is None
    with snapshot(tmp_path / "run") as now:
        row = next(now.outcomes()).request.row
    shown_live = batchrun("show", "run", row)
    assert shown_live.returncode == 0, shown_live.stderr
    assert shown_live.stdout.splitlines()[0] == f"{row}: row {row} of prompts.jsonl"
    process.kill()
    process.wait()

    with snapshot(tmp_path / "run") as now:
        stored = sum(1 for _ in now.outcomes())
    stand = json.loads(batchrun("status", "run", "--json").stdout)
    assert (stand["state"], stand["ok"], stand["left"]) == ("killed", stored, _ROWS - stored)
    status = batchrun("status", "run").stdout
    assert re.search(r"^ +next: +batchrun run prompts\.jsonl --prompt .*$", status, re.MULTILINE)

    quick = simulator()
    assert batchrun(*command, quick).returncode == 0
    assert totals() == (_ROWS, _ROWS, _ROWS)
    assert stats(quick)["requests"] == _ROWS - stored
    ended = json.loads(batchrun("status", "run", "--json").stdout)
    assert (ended["state"], ended["left"], ended["exit_code"]) == ("finished", 0, 0)
    assert ended["next_command"] is None
    assert batchrun("show", "run", row).stdout == shown_live.stdout


def test_what_is_no_run_and_no_row_is_said_so(source: Path, batchrun: Run) -> None:
    words = ("run", source, *_ASK, "--simulate")
    assert batchrun(*words, "--limit", "5").returncode == 0
    assert shlex.split(json.loads(batchrun("status", "run", "--json").stdout)["next_command"]) == [
        "batchrun",
        *map(str, words),
    ]
    missing = batchrun("show", "run", "17")
    assert missing.returncode == 2
    assert 'no complete row has the id "17"' in missing.stderr
    for command in (("status", "nowhere"), ("show", "nowhere", "1"), ("status", ".")):
        done = batchrun(*command)
        assert done.returncode == 2
        assert "is not a run directory" in done.stderr


def test_without_a_terminal_lines_come_at_changes_of_state_alone(
    source: Path, batchrun: Run
) -> None:
    done = batchrun("run", source, *_ASK, "--simulate")
    assert done.returncode == 0
    assert len([line for line in done.stderr.splitlines() if "in flight" in line]) == 1
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr


@pytest.mark.parametrize("columns", [pytest.param(80, marks=pytest.mark.long), 50])
def test_a_terminal_shows_a_bar_whose_lines_fit_and_are_gone_at_the_end(
    columns: int, source: Path, on_terminal: Callable[..., str], simulator: Any
) -> None:
    base_url = simulator("--latency", "0.1", "--fault", "500_json=0.05")
    command = ("run", source, *_ASK, "--base-url", base_url, "--concurrency", "30")
    shown = on_terminal(*command, code=0, columns=columns)
    assert "Traceback" not in shown
    bars = [line for line in _drawn(shown) if "━" in line]
    assert len(bars) > 2
    assert any(re.search(r"running ━+.* \d+%", line) for line in bars)
    assert any("in flight" in line and "extra attempts" in line for line in _drawn(shown))
    drawn = [line for line in _drawn(shown) if "━" in line or "in flight" in line]
    assert max(map(len, drawn)) <= columns
    rows = _screen(shown, columns)
    assert not any("━" in row or "in flight" in row for row in rows)
    text = "".join(rows)
    assert f"done: {_ROWS} of {_ROWS} rows, {_ROWS} ok" in text


def test_a_run_is_watched_from_another_shell_and_read_by_prometheus(
    tmp_path: Path,
    source: Path,
    begin: Begin,
    batchrun: Run,
    simulator: Any,
    wait_until: Callable[..., None],
    stats: Callable[..., dict[str, Any]],
    processes: "list[Popen[str]]",
) -> None:
    base_url = simulator("--latency", "0.2", "--fault", "500_json=0.02")
    server = processes[-1]
    words = ("run", source, *_ASK, "--limit", "60", "--concurrency", "8", "--base-url", base_url)
    process = begin(*words, stdout=DEVNULL, stderr=DEVNULL)
    wait_until(lambda: stats(base_url)["completions"] > 8, process)

    with frozen(server):  # so that the run cannot end before all have looked
        live_file = tmp_path / "run/live.json"
        wait_until(lambda: json.loads(live_file.read_bytes())["in_flight"] > 0, process)
        screen, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        env = {"TERM": "xterm-256color"}
        on_terminal = begin(
            "status", "run", "--watch", env=env, stdin=terminal, stdout=terminal, stderr=terminal
        )
        os.close(terminal)
        shown = b""
        while b" in flight" not in shown:
            shown += os.read(screen, 65536)
        in_lines, interrupted = begin("status", "run", "--watch"), begin("status", "run", "--watch")
        for watching in (in_lines, interrupted):
            assert watching.stdout is not None
            shown_line = watching.stdout.readline()
            assert re.match(r"running: \d+ of 60 rows \(340 more not asked for\); ", shown_line)
        interrupted.send_signal(signal.SIGINT)
        assert interrupted.wait(HANG_S) == 130
        _, said = interrupted.communicate(timeout=HANG_S)
        assert not said.strip()
        live = _metrics(batchrun("status", "run", "--format", "prometheus").stdout, tmp_path)
        assert process.poll() is None
    assert live["batchrun_state", "running"] == 1
    assert live["batchrun_requests_in_flight", None] > 0
    assert live["batchrun_requests_in_flight_limit", None] == 8

    with suppress(OSError):  # nobody holds the terminal any more
        while piece := os.read(screen, 65536):
            shown += piece
    os.close(screen)
    assert on_terminal.wait(HANG_S) == 0
    assert process.wait(HANG_S) == 0
    out, _ = in_lines.communicate(timeout=HANG_S)
    assert in_lines.returncode == 0
    assert re.search(r"^  state: +limited$", out, re.MULTILINE)
    assert "\x1b" not in out
    assert any(re.search(r"running ━+─* \d+%", line) for line in _drawn(shown.decode()))
    rows = _screen(shown.decode(), 80)
    assert not any("━" in row for row in rows)
    assert any(re.match(r"  ok: +60", row) for row in rows)

    _check_metrics_of_the_end(batchrun, tmp_path)
    assert batchrun("status", "run", "--watch").stdout == batchrun("status", "run").stdout


def _check_metrics_of_the_end(batchrun: Run, folder: Path) -> None:
    ended = _metrics(batchrun("status", "run", "--format", "prometheus").stdout, folder)
    summary = json.loads(batchrun("status", "run", "--format", "json").stdout)
    assert ended["batchrun_state", "limited"] == 1
    assert ended["batchrun_exit_code", None] == 0
    assert ended["batchrun_rows", None] == _ROWS
    assert ended["batchrun_rows_remaining", None] == summary["left"] == _ROWS - 60
    assert ended["batchrun_rows_complete", "ok"] == summary["ok"] == 60
    assert ended["batchrun_cost_usd_total", None] == summary["cost_usd"]
    attempts = ("first", "retry", "reask", "hedge")
    assert sum(ended["batchrun_attempts_total", kind] for kind in attempts) == summary["attempts"]
    assert ("batchrun_requests_in_flight", None) not in ended


def test_formats_that_exclude_each_other_are_refused(batchrun: Run) -> None:
    for words in (
        ("--json", "--format", "prometheus"),
        ("--watch", "--json"),
        ("--watch", "--format", "prometheus"),
    ):
        done = batchrun("status", "run", *words)
        assert done.returncode == 2
        assert not done.stdout
    missing = batchrun("status", "nowhere", "--watch")
    assert missing.returncode == 2
    assert "is not a run directory" in missing.stderr
    metrics = batchrun("status", "nowhere", "--format", "prometheus")
    assert (metrics.returncode, metrics.stdout) == (2, "")


def _metrics(text: str, folder: Path) -> dict[tuple[str, str | None], float]:
    """Samples by name and the value of their one label beside `run`."""
    found: dict[tuple[str, str | None], float] = {}
    for (name, labels), value in samples_of(text.encode()).items():
        others = dict(labels)
        assert others.pop("run") == str(folder / "run")
        found[name, next(iter(others.values()), None)] = value
    return found


def _drawn(shown: str) -> list[str]:
    """All lines that were ever drawn, without colours."""
    return [line.strip("\r") for line in _ESCAPES.sub("", shown).replace("\r", "\n").split("\n")]


def _screen(shown: str, columns: int) -> list[str]:
    """What stands on the screen in the end: a small terminal that wraps, moves and erases."""
    rows, y, x = [""], 0, 0
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.|\n", shown, re.DOTALL):
        if piece.startswith("\x1b"):
            count = int(piece[2:-1] or 1) if piece[2:-1].isdigit() or not piece[2:-1] else 0
            match piece[-1]:
                case "A":
                    y = max(0, y - count)
                case "K":
                    rows[y] = "" if count == 2 else rows[y][:x]
            continue
        if piece == "\r":
            x = 0
            continue
        if piece != "\n":
            if x == columns:
                y, x = y + 1, 0
            rows += [""] * (y + 1 - len(rows))
            rows[y] = rows[y][:x].ljust(x) + piece + rows[y][x + 1 :]
            x += 1
            continue
        y += 1
        rows += [""] * (y + 1 - len(rows))
    return rows


def test_a_terminal_shows_the_words_of_a_plan_whole(write_rows: Any, begin: Begin) -> None:
    source = write_rows({"id": f"q{at}", "input": "Say a."} for at in range(3))
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    words = ("run", source, "--model", "gpt-4.1", "--samples", 2, "--simulate", "-o", "run")
    process = begin(*words, "--dry-run", stdin=DEVNULL, stdout=DEVNULL, stderr=terminal)
    os.close(terminal)
    shown = b""
    with suppress(OSError):
        while piece := os.read(screen, 65536):
            shown += piece
    assert process.wait(HANG_S) == 0
    os.close(screen)
    at = shown.index(b"plan:")
    first, second, *_ = shown[at:].decode().replace("\r", "").split("\n")
    assert first == "plan: 3 rows x 2 samples = 6 requests, 0 complete, 6 to"
    assert second == "  send, 0 bad; run directory run"
