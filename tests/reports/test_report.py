"""The figures of a report are those of its tables; the words are harmless and fit."""

import io
import json
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from rich.console import Console

from batchrun.errors import JobError
from batchrun.formats.amounts import usd
from batchrun.formats.text_tables import show_section
from batchrun.records import Outcome, Response
from batchrun.reports.report_queries import Report, read_report
from batchrun.reports.report_sections import headline, remarks, sections, show_report
from batchrun.reports.timeline import Gap, RunningTime, running_sql
from batchrun.store.reading import read_record
from batchrun.store.run_dir import RunDir


@pytest.fixture(scope="module")
def report(whole: Path) -> Report:
    return read_report(whole)


def _asked(whole: Path, sql: str, table: str = "responses") -> list[tuple[Any, ...]]:
    return duckdb.execute(sql, [f"{whole}/{table}/*.parquet"]).fetchall()


def _taken(report: Report, table: str, *heads: str) -> set[tuple[Any, ...]]:
    """The rows of a table, with these columns."""
    return {tuple(row[head] for head in heads) for row in report.tables[table]}


def _counted(report: Report) -> list[tuple[str, int, int]]:
    rows = report.tables["outcomes"]
    return [(row["outcome"], row["rows"], row["output tokens"]) for row in rows]


def test_outcomes_and_sums_are_those_of_the_tables(report: Report, whole: Path) -> None:
    sql = """SELECT count(*), count(*) FILTER (ok), count(*) FILTER (refusal IS NOT NULL),
             count(*) FILTER (status = 'no_answer'), round(sum(cost_usd), 9), sum(input_tokens),
             sum(reasoning_tokens),
             sum(len(list_filter(attempts, lambda a: a.cost_usd IS NULL)))::BIGINT,
             min(epoch_us(started_at))
             FROM read_parquet(?)"""
    of = {one["outcome"]: one["rows"] for one in report.tables["outcomes"]}
    cost = round(report.cost_usd or 0.0, 9)
    assert _asked(whole, sql) == [
        (
            *(report.rows, of["ok"], of["refused"], of["no_answer"], cost),
            *(report.tokens.input_tokens, report.tokens.reasoning_tokens),
            *(report.unknown_attempts, report.started_at),
        )
    ]
    assert sum(of.values()) == report.rows == 240
    assert report.left == 10
    assert report.state == "killed"
    assert sum(one["rows"] for one in report.tables["models"]) == 240


def test_attempts_errors_tools_and_percentiles_are_those_of_the_tables(
    report: Report, whole: Path
) -> None:
    unnested = "FROM (SELECT unnest(attempts) AS one FROM read_parquet(?))"
    attempts = _asked(
        whole, f"SELECT one.kind, count(*), count(one.error_kind) {unnested} GROUP BY 1"
    )
    assert _taken(report, "attempts", "kind", "attempts", "failed") == set(attempts)
    met = _asked(whole, f"SELECT one.error_kind, count(*) {unnested} GROUP BY 1")
    assert _taken(report, "errors", "kind", "attempts") == {m for m in met if m[0]}
    calls = _asked(
        whole,
        """SELECT name, count(*), count(*) FILTER (arguments_valid),
           count(*) FILTER (NOT arguments_valid) FROM read_parquet(?) GROUP BY 1""",
        "tool_calls",
    )
    assert _taken(report, "tools", "tool", "calls", "valid", "invalid") == set(calls)
    (latency,) = (one for one in report.spreads if one.name == "latency_s")
    sql = "SELECT count(latency_s), quantile_disc(latency_s, 0.9), max(latency_s) "
    found = _asked(whole, sql + "FROM read_parquet(?)")
    assert found == [(latency.rows, latency.p90, latency.max)]
    assert sum(one.rows for one in report.latency_bins) == latency.rows
    assert report.latency_bins[0].low <= latency.p50 <= report.latency_bins[-1].high


def test_slowest_and_most_expensive_rows_are_sorted_and_the_timeline_adds_up(
    report: Report, whole: Path
) -> None:
    costs = [one["cost"] or 0.0 for one in report.tables["most_expensive"]]
    sql = "SELECT cost_usd FROM read_parquet(?) ORDER BY cost_usd DESC NULLS LAST LIMIT 10"
    assert costs == [cost for (cost,) in _asked(whole, sql)]
    times = [one["time"] or 0.0 for one in report.tables["slowest"]]
    assert times == sorted(times, reverse=True)
    line = report.timeline
    assert line is not None
    assert sum(one.rows for one in line.moments) == 240
    assert line.moments[-1].cost_usd == pytest.approx(report.cost_usd)
    met = sum(sum(one.errors.values()) for one in line.moments)
    assert met == sum(one["attempts"] for one in report.tables["errors"])
    sql = "SELECT sum(one.latency_s) FROM (SELECT unnest(attempts) AS one FROM read_parquet(?))"
    in_flight_s = sum(one.in_flight for one in line.moments) * line.width_s
    assert in_flight_s == pytest.approx(_asked(whole, sql)[0][0], rel=1e-3)


def test_rows_in_the_journal_count(report: Report, run: Path) -> None:
    other = read_report(run)
    assert _counted(other) == _counted(report)
    assert other.cost_usd == pytest.approx(report.cost_usd)
    assert other.tokens == report.tokens
    assert other.tables["tools"] == report.tables["tools"]
    assert {one.outcome for one in other.samples} == {name for name, _, _ in _counted(other)}


def test_the_terminals_page_fits_and_is_harmless(report: Report, hostile: str) -> None:
    stream = io.StringIO()
    show_report(report, stream)
    text = stream.getvalue()
    first, *lines = text.splitlines()
    assert first == report.run
    assert lines[0].startswith("  killed: 240 rows, ")
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert "\x1b" not in text
    assert hostile not in text
    for title in ("Outcomes", "Models", "Tokens", "Per row", "Attempts", "Errors", "Tool calls"):
        assert any(line.startswith(title) for line in lines)


def test_time_between_two_commands_is_left_out_and_pauses_are_known(
    tmp_path: Path, write: Callable[..., Path], outcome: Callable[..., Outcome]
) -> None:
    path = write(tmp_path / "run", [outcome(0), outcome(1), outcome(100_000)])  # 5,000 s later
    begun_s = 1_790_000_000

    def event(at_s: float, name: str, **facts: object) -> str:
        at = datetime.fromtimestamp(begun_s + at_s, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"at": at, "event": name, **facts}) + "\n"

    events = [
        event(-1, "started"),
        event(0.5, "cooldown", binds="x"),
        event(0.9, "tick"),
        event(1.5, "over", of="cooldown"),
        '{"torn',
        "\n",
        event(3, "interrupted"),
        event(4_999, "started"),
        event(5_003, "finished"),
    ]
    (path / "events.jsonl").write_text("".join(events))
    line = read_report(path).timeline
    assert line is not None
    assert line.span_s < 20
    assert [(one.name, one.from_s, one.to_s) for one in line.pauses] == [("cooldown", 0.5, 1.5)]
    assert len(line.resumed) == 1
    assert sum(one.rows for one in line.moments) == 3


def _events(*events: tuple[float, str]) -> str:
    lines = []
    for at_s, name in events:
        at = datetime.fromtimestamp(1_790_000_000 + at_s, UTC).isoformat(timespec="milliseconds")
        lines.append(json.dumps({"at": at, "event": name}) + "\n")
    return "".join(lines)


def test_waits_between_commands_are_no_work_however_short_and_no_time_of_a_row(
    tmp_path: Path, write: Callable[..., Path], outcome: Callable[..., Outcome]
) -> None:
    """Three commands that send for 1 s, for 1 s until a kill, for 2 s; before, each has planned."""
    begun = 1_790_000_000_000_000
    base = outcome(0)
    one = msgspec.structs.replace(base.attempts[0], latency_s=1.0)
    later = msgspec.structs.replace(one, started_at=begun + 40_000_000)
    rows = [
        msgspec.structs.replace(base, attempts=(one,)),
        # Failed in the first command, sent again by the third, where a second try was needed.
        outcome(
            1,
            attempts=(
                one,
                later,
                msgspec.structs.replace(later, kind="retry", started_at=begun + 41_000_000),
            ),
        ),
        outcome(3, attempts=(msgspec.structs.replace(one, started_at=begun + 28_500_000),)),
    ]
    path = write(tmp_path / "run", rows)
    events = [(0.0, "started"), (2.0, "finished"), (28.0, "started"), (29.0, "tick")]
    events += [(39.5, "started"), (42.5, "finished")]
    (path / "events.jsonl").write_text(_events(*events))
    report = read_report(path)
    line = report.timeline
    assert line is not None
    assert list(line.resumed) == pytest.approx([1.0, 2.0])  # killed with its last answer, at 29.5 s
    assert line.span_s == pytest.approx(4.0)
    assert [row["id"] for row in report.tables["slowest"]] == ["q1", "q0", "q3"]
    times = [row["time"] for row in report.tables["slowest"]]
    assert times == pytest.approx([3.0, 1.0, 1.0])
    assert "resumed 2 times" in remarks(report)[0]


def test_running_time_is_the_same_in_sql() -> None:
    gaps = tuple(Gap(at, at + 7) for at in range(120, 400, 20))
    time = RunningTime(100, gaps)
    with duckdb.connect() as database:
        database.execute(f"CREATE MACRO running(t) AS greatest(0, {running_sql(time)})")
        found = database.execute("SELECT t, running(t) FROM range(90, 450) AS r(t)").fetchall()
    assert found == [(at, time.of(at)) for at in range(90, 450)]


def test_what_attempts_without_usage_may_have_cost_is_in_the_head(
    tmp_path: Path, write: Callable[..., Path], outcome: Callable[..., Outcome]
) -> None:
    path = write(tmp_path / "run", [outcome(0)])
    record = read_record(path)
    with closing(RunDir.open(path)) as run_dir:
        run_dir.save(msgspec.structs.replace(record, unknown_usd=0.0539))
    report = read_report(path)
    assert report.unknown_usd == 0.0539
    assert headline(report).endswith(f"; {usd(report.cost_usd or 0.0)}+?")
    assert "at most $0.0539 more for attempts whose cost is not known" in remarks(report)


def test_the_kind_and_counts_of_an_error_are_whole_and_its_example_is_cut(report: Report) -> None:
    example = "the answer had no body " * 9
    long = {"kind": "unreadable_response", "attempts": 12_345, "rows": 678, "example": example}
    for width in ("80", "50"):
        stream = io.StringIO()
        section = sections(
            msgspec.structs.replace(report, tables={**report.tables, "errors": [long]})
        )
        (errors,) = (one for one in section if one.name == "errors")
        show_section(errors, Console(file=stream, width=int(width)))
        head, row = stream.getvalue().splitlines()[-2:]
        assert head.split() == ["kind", "attempts", "rows", "example"]
        assert row.startswith("unreadable_response    12,345   678  the answer")
        assert row.endswith("…")
        assert len(row) == int(width)


def test_a_run_without_rows_has_a_report(tmp_path: Path, write: Callable[..., Path]) -> None:
    report = read_report(write(tmp_path / "run", []))
    assert (report.rows, report.left, report.timeline) == (0, 250, None)
    assert report.tables["outcomes"] == []
    stream = io.StringIO()
    show_report(report, stream)
    assert "0 rows, 0 ok, 250 remaining" in stream.getvalue()
    with pytest.raises(JobError, match="is not a run directory"):
        read_report(tmp_path)


def _ticks(path: Path, *events: tuple[float, str, str | None]) -> None:
    """Writes events: seconds after the first send, name, and what limits."""
    lines = []
    for at_s, name, binds in events:
        at = datetime.fromtimestamp(1_790_000_000 + at_s, UTC).isoformat(timespec="milliseconds")
        lines.append(json.dumps({"at": at, "event": name, **({"binds": binds} if binds else {})}))
    (path / "events.jsonl").write_text("\n".join(lines) + "\n")


def test_what_limited_the_run_most_of_the_time_is_said(
    tmp_path: Path, write: Callable[..., Path], outcome: Callable[..., Outcome]
) -> None:
    path = write(tmp_path / "run", [outcome(0), outcome(100)])
    bare = read_report(path).timeline
    assert bare is not None
    assert bare.limits == ()
    queue = "the server's throughput: {} requests/s at 64 in flight; more only makes them wait"
    said = ["the first answer (1 of 1)", queue.format(39), queue.format(41), "reading the input"]
    _ticks(path, *((at, "tick", one) for at, one in enumerate(said)), (4.0, "finished", None))
    report = read_report(path)
    assert report.timeline is not None
    first, *others = report.timeline.limits
    assert (first.name, first.words, first.share) == (
        "the server's throughput",
        queue.format(41),
        0.5,
    )
    assert [(one.name, one.share) for one in others] == [
        ("the first answer", 0.25),
        ("reading the input", 0.25),
    ]
    assert any(
        line == f"for 50.0 % of the time limited by {queue.format(41)}" for line in remarks(report)
    )


def test_of_what_limited_the_run_nothing_is_said_that_was_true_for_a_moment(
    tmp_path: Path, write: Callable[..., Path], outcome: Callable[..., Outcome]
) -> None:
    path = write(tmp_path / "run", [outcome(0), outcome(100)])
    said = "endpoint down, next request in 7.3 s, gives up in 29 min: overloaded, try later"
    _ticks(path, *((at, "tick", said) for at in (0.0, 1.0, 2.0)), (4.0, "finished", None))
    lines = remarks(read_report(path))
    words = "for 100.0 % of the time limited by endpoint down: overloaded, try later"
    assert words in lines


def test_an_incomplete_answer_says_why_and_names_of_samples_say_what_they_are(
    tmp_path: Path, write: Callable[..., Path], outcome: Callable[..., Outcome]
) -> None:
    cut = outcome(0)
    assert isinstance(cut.result, Response)
    ended = msgspec.structs.replace(
        cut.result, status="incomplete", incomplete_reason="content_filter"
    )
    cut = msgspec.structs.replace(
        cut, result=ended, request=msgspec.structs.replace(cut.request, sample=1)
    )
    report = read_report(write(tmp_path / "run", [cut]))
    (row,) = report.tables["slowest"]
    assert (row["id"], row["outcome"]) == ("q0||1", "incomplete: content_filter")
    assert [one.message for one in report.samples] == ["content_filter"]
    heads = {one.name: one.heads[0] for one in sections(report)}
    assert heads["slowest"] == heads["most_expensive"] == "id|variant|sample"


def test_limits_are_known_through_pauses_and_not_beyond_a_kill(
    tmp_path: Path, write: Callable[..., Path], outcome: Callable[..., Outcome]
) -> None:
    path = write(tmp_path / "run", [outcome(0), outcome(200)])
    _ticks(
        path,
        (0, "started", None),
        (0, "tick", "CPU (95% of a core)"),
        (2, "cooldown", "cooldown, next request in 3.0 s"),
        (5, "over", None),
        (6, "tick", "CPU (91% of a core)"),
        (8, "tick", "the rate (3 of 5)"),
        (9, "tick", "the rate (5 of 5)"),
        (500, "started", None),  # after a kill
    )
    line = read_report(path).timeline
    assert line is not None
    spans = {one.name: one.spans for one in line.limits}
    assert spans["CPU"] == ((0.0, 2.0), (5.0, 6.0), (6.0, 8.0))
    assert spans["cooldown"] == ((2.0, 5.0),)
    assert spans["the rate"][0] == (8.0, 9.0)
    assert [round(one.share, 3) for one in line.limits] == [0.556, 0.333, 0.111]


def test_the_worst_rows_say_their_tokens_and_their_error(report: Report, whole: Path) -> None:
    heads = ["id", "time", "input", "output", "reasoning", "cost", "unknown", "outcome"]
    for name in ("slowest", "most_expensive"):
        assert list(report.tables[name][0]) == heads
    sql = """SELECT custom_id, input_tokens, output_tokens, reasoning_tokens
             FROM read_parquet(?) ORDER BY cost_usd DESC NULLS LAST LIMIT 10"""
    found = [
        tuple(row[head] for head in ("id", "input", "output", "reasoning"))
        for row in report.tables["most_expensive"]
    ]
    assert found == _asked(whole, sql)
    every = read_report(whole, top=240).tables["slowest"]
    words = {row["outcome"] for row in every}
    assert "ok" in words
    assert "ok after 2 attempts" in words
    assert "failed: bad_request: no such thing" in words
    assert "no_answer after 3 attempts: connection: refused" in words
    assert "refused: the model refused" in words
    assert len(read_report(whole, top=3).tables["slowest"]) == 3


def test_a_table_that_is_cut_says_of_how_many(report: Report) -> None:
    models = [{"model": f"m{at}", "rows": 1, "in_all": 120} for at in range(50)]
    shown = sections(msgspec.structs.replace(report, tables={**report.tables, "models": models}))
    (section,) = (one for one in shown if one.name == "models")
    assert section.note == "input, cached and output in tokens; the first 50 of 120"
    assert section.heads == ("model", "rows")
