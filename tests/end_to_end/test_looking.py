"""`status` and `show` on runs that go on, were killed or have ended; and what a terminal shows."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess, Popen
from typing import Any

import pytest

from batchrun.store.snapshot import snapshot

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
        assert "is no run directory" in done.stderr


def test_without_a_terminal_lines_come_at_changes_of_state_alone(
    source: Path, batchrun: Run
) -> None:
    done = batchrun("run", source, *_ASK, "--simulate")
    assert done.returncode == 0
    assert len([line for line in done.stderr.splitlines() if "in flight" in line]) == 1
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr


@pytest.mark.parametrize("columns", [80, 50])
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
