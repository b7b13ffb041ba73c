"""The panel: its colours say what is well, it fits its terminal, and its figures are the run's."""

import io
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from batchrun.progress.display import Progress
from batchrun.progress.panel import bar_cells, panel
from batchrun.progress.summary import RunCounters, Summary, WorkerState
from batchrun.progress.summary_text import (
    not_ok_counts,
    render_end,
    render_status,
    time_left_in_words,
)
from batchrun.records import Totals

GREEN, YELLOW, RED, GREY = "\x1b[32m", "\x1b[33m", "\x1b[1;31m", "\x1b[90m"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _summary(rows: int, done: Totals, **facts: Any) -> Summary:
    summary = RunCounters(done, 0.0).summary(run="r", state="running", rows=rows, now_s=1.0)
    return replace(summary, **facts)


def _drawn(summary: Summary, columns: int = 80, countdown: str | None = None) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="standard", width=columns)
    console.print(panel(summary, columns, countdown))
    return stream.getvalue()


def _lines(summary: Summary, columns: int = 80) -> list[str]:
    return [line.rstrip() for line in _ESCAPES.sub("", _drawn(summary, columns)).splitlines()]


def _bar(summary: Summary, columns: int = 80) -> list[tuple[str, int]]:
    """Its colours with their cells."""
    head = _drawn(summary, columns).splitlines()[0]
    return [(one[1], len(one[2])) for one in re.finditer(r"(\x1b\[[0-9;]*m)([━─]+)", head)]


WELL = Totals(rows=40, ok=40, statuses={"completed": 40}, attempts=40)


def test_the_bar_is_green_while_all_is_well() -> None:
    assert [colour for colour, _ in _bar(_summary(100, WELL))] == [GREEN, GREY]
    drawn = _drawn(_summary(100, WELL))
    assert RED not in drawn
    assert YELLOW not in drawn


def test_what_is_not_ok_is_coloured_however_little_it_is_and_counted_apart() -> None:
    done = Totals(
        rows=5_000,
        ok=4_995,
        truncated=1,
        statuses={"completed": 4_997, "incomplete": 1, "failed": 1, "no_answer": 1},
        error_kinds={"truncated": 1, "empty_output": 1, "invalid_output": 1, "timeout": 1}
        | {"bad_request": 1},
        attempts=5_000,
    )
    summary = _summary(10_000, done, error_examples={"bad_request": "no\nsuch \x1b[31mmodel"})
    (ok, _), (unusable, few), (no_answer, one), (rest, _) = _bar(summary)
    assert (ok, unusable, no_answer, rest) == (GREEN, YELLOW, RED, GREY)
    assert (few, one) == (1, 1)
    drawn = _drawn(summary, 200)
    for words in ("1 truncated", "1 empty", "1 not fitting the schema"):
        assert f"{YELLOW}{words}" in drawn
    for words in ("1 failed", "1 without an answer"):
        assert f"{RED}{words}" in drawn
    text = "\n".join(_lines(summary, 200))
    assert "  rows        5,000 of 10,000 rows: 4,995 ok, 1 truncated, 1 empty" in text
    assert "timeout 1" in text
    assert "no such" in text


def test_the_most_frequent_error_is_shown_with_what_was_said() -> None:
    done = Totals(rows=9, statuses={"failed": 9}, error_kinds={"bad_request": 8, "timeout": 1})
    summary = _summary(10, done, error_examples={"bad_request": "no\nsuch \x1b[31mmodel"})
    (line,) = [line for line in _lines(summary, 120) if line.startswith("  errors")]
    assert line.endswith(r"bad_request 8, timeout 1; bad_request: no such \x1b[31mmodel")


def test_a_pause_and_an_outage_are_coloured() -> None:
    for paused_by, start in (
        ("cooldown", "\x1b[1;33mrunning"),
        ("endpoint down", f"{RED}waiting"),
    ):
        summary = _summary(100, WELL, paused_by=paused_by, binds=f"{paused_by}, next in 3 s")
        drawn = _drawn(summary)
        assert drawn.startswith(start)
        assert re.search(rf"limited by.*\x1b\[[0-9;]*m{paused_by}", drawn)
    assert _drawn(_summary(100, WELL, binds="CPU")).startswith("\x1b[1mrunning")


def test_amounts_have_units_and_one_row_is_one_row() -> None:
    done = Totals(rows=0, attempts=0)
    lines = "\n".join(_lines(_summary(1, done, time_left_s=1_231.0, in_flight=1)))
    assert "0 of 1 row: 0 ok" in lines
    assert "21 min left" in lines
    assert "1 rows" not in lines
    late = _summary(3, done, oldest=(("id-7", 412.4),), in_flight=1)
    assert "  waiting for 3 rows, the oldest for 6 min 52 s (id-7)" in "\n".join(_lines(late))


@pytest.mark.parametrize(
    ("left_s", "words"),
    [
        (None, ""),
        (0.4, "0.4 s"),
        (45.2, "45 s"),
        (100.0, "1 min 40 s"),
        (599.0, "9 min 59 s"),
        (1_199.0, "20 min"),
        (3_599.0, "1 h"),
        (11_265.0, "3 h 8 min"),
        (200_000.0, "2 d 8 h"),
    ],
)
def test_the_time_left_is_in_words(left_s: float | None, words: str) -> None:
    assert time_left_in_words(_summary(9, WELL, time_left_s=left_s)) == words


def test_no_time_is_left_to_be_told_while_nothing_is_sent() -> None:
    for facts in ({"paused_by": "endpoint down"}, {"state": "stopping"}):
        summary = _summary(100, WELL, **{"time_left_s": 68.0, **facts})
        assert "68 s left" not in _lines(summary)[0]
    assert "68 s left" in _lines(_summary(100, WELL, time_left_s=68.0, paused_by="cooldown"))[0]


def test_a_speed_is_compared_with_limits_that_still_hold() -> None:
    facts = {"requests_per_s": 10.4, "tokens_per_s": 2_700.0, "most_tokens_per_s": 2_600.0}
    fast = _summary(100, WELL, most_requests_per_s=5.7, **facts)
    assert "  speed       10.4 requests/s, 2.7k of 2.6k tokens/s" in _lines(fast)
    bound = _summary(100, WELL, most_requests_per_s=14.8, **facts)
    assert "  speed       10.4 of 14.8 requests/s, 2.7k of 2.6k tokens/s" in _lines(bound)


def test_long_lines_end_after_a_comma() -> None:
    done = Totals(
        rows=138,
        ok=99,
        refused=9,
        statuses={"completed": 132, "failed": 6},
        error_kinds={"refusal": 9, "invalid_output": 24, "bad_request": 6},
    )
    lines = _lines(_summary(1_200, done))
    at = next(at for at, line in enumerate(lines) if line.startswith("  rows"))
    assert lines[at].endswith("24 not fitting the schema,")
    assert lines[at + 1].strip() == "6 failed"


def test_it_never_says_100_per_cent_before_the_end() -> None:
    done = Totals(rows=99_999, ok=99_999, statuses={"completed": 99_999})
    assert " 99%" in _lines(_summary(100_000, done))[0]
    assert [colour for colour, _ in _bar(_summary(100_000, done))] == [GREEN, GREY]
    assert " 100%" in _lines(_summary(99_999, done))[0]


def test_money_that_is_not_known_is_said() -> None:
    unpriced = Totals(rows=3, ok=3, statuses={"completed": 3}, unpriced=3, unpriced_model="mine")
    assert "  cost        no price for mine" in _lines(_summary(9, unpriced))
    spent = _summary(100, replace(WELL, cost_usd=1.5), cap_usd=20.0, unknown_usd=0.25)
    text = " ".join("\n".join(_lines(spent)).split())
    assert "cost $1.50+? spent, at most $0.25 more, about $3.75 in all, cap $20.00" in text


COUNTS = st.integers(0, 10**7)


@given(st.lists(COUNTS, min_size=3, max_size=3), COUNTS, st.integers(3, 300))
def test_cells_are_whole_and_full_only_at_the_end(parts: list[int], more: int, width: int) -> None:
    total = sum(parts) + more
    cells = bar_cells(parts, total, width)
    assert all(size > 0 if part else size == 0 for part, size in zip(parts, cells, strict=True))
    if sum(parts):
        assert (sum(cells) == width) == (more == 0) or (sum(map(bool, parts)) >= width)
        share = width * sum(parts) / total
        assert share - 1 <= sum(cells) <= max(share, sum(map(bool, parts)))


@settings(max_examples=30)
@given(st.data())
def test_it_fits_any_terminal_and_counts_every_row(data: st.DataObject) -> None:
    counts = {name: data.draw(st.integers(0, 9_999)) for name in ("ok", "failed", "invalid")}
    kinds = {name: data.draw(st.integers(0, 9_999)) for name in ("empty_output", "invalid_output")}
    truncated = data.draw(st.integers(0, 9_999))
    rows = sum(counts.values()) + sum(kinds.values()) + truncated
    done = Totals(
        rows=rows,
        ok=counts["ok"],
        truncated=truncated,
        statuses={"failed": counts["failed"], "invalid": counts["invalid"]},
        error_kinds={**kinds, "truncated": truncated, "timeout": counts["failed"]},
    )
    summary = _summary(
        rows + data.draw(st.integers(0, 9)),
        done,
        binds=data.draw(st.text(max_size=400)),
        in_flight=3,
        error_examples={"timeout": data.draw(st.text(max_size=400))},
    )
    columns = data.draw(st.integers(40, 220))
    drawn = _lines(summary, columns)
    assert len(drawn) < 24
    assert max(map(cell_len, drawn)) <= columns
    assert sum(not_ok_counts(summary).values()) == summary.not_ok


def test_a_console_that_knows_ascii_alone_gets_ascii() -> None:
    bytes_ = io.BytesIO()
    stream = io.TextIOWrapper(bytes_, encoding="ascii")
    console = Console(file=stream, force_terminal=True, width=60)
    console.print(panel(_summary(100, WELL), 60))
    stream.flush()
    assert re.search(rb"running.*#+.*-+.* 40%", bytes_.getvalue())


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("term", ["dumb", "xterm-256color"])
def test_only_a_terminal_that_can_erase_gets_a_panel(
    term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in many a CI
    terminal, log = _Terminal(), io.StringIO()
    for stream in (terminal, log):
        progress = Progress(stream)
        progress.show(_summary(100, WELL))
        progress.close()
    plain = "running: 40 of 100 rows; 40 ok, 0 in flight, 0 extra attempts"
    assert log.getvalue().startswith(plain)
    assert "\x1b" not in log.getvalue()
    assert ("\x1b" in terminal.getvalue()) == (term != "dumb")
    assert terminal.getvalue().startswith(plain) == (term == "dumb")


def test_what_a_limit_left_out_is_no_part_of_what_is_to_do_and_is_said() -> None:
    limited = _summary(50, WELL, source_rows=100)
    assert "  rows        40 of 50 rows (50 more not asked for): 40 ok" in _lines(limited)
    log = io.StringIO()
    Progress(log).show(limited)
    assert log.getvalue().startswith("running: 40 of 50 rows (50 more not asked for); 40 ok")
    assert render_end(limited, "r").startswith("running: 40 of 50 rows (50 more not asked for), 40")
    assert "rows:       40 of 50 (50 more not asked for)\n" in render_status(limited, "r")


def test_workers_have_lines_and_the_silent_come_first() -> None:
    workers = [
        WorkerState(f"w{at}", "gpu-3", 100 + at, "running", 10, 3, 1, 0.25) for at in range(1, 12)
    ]
    workers[0] = WorkerState("w1", "gpu-1", 7, "silent", 5, 2, silent_s=12.0)
    lines = _lines(_summary(100, Totals(), workers=tuple(workers)), 100)
    shown = [line.strip() for line in lines if line.strip().startswith("w")]
    assert shown[0].split(maxsplit=1) == ["workers", "1 silent, 10 running"]
    assert len(shown) == 9
    assert shown[1].split(maxsplit=1)[1] == (
        "silent, gpu-1 (process 7): 5 rows, 2 in flight, silent for 12 s"
    )
    assert shown[-1].split(maxsplit=1)[1] == (
        "running, gpu-3 (process 111): 10 rows, 3 in flight, 1 waiting, 25% of the limits"
    )
    assert not [line for line in _lines(_summary(100, Totals())) if "worker" in line]
