"""What the page begins with says what the tables say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchrun.errors import ErrorKind
from batchrun.records import Failure, Outcome, Response
from batchrun.reports.page.overview import (
    key_figures,
    limit_lines,
    outcome_shares,
    time_places,
    title_words,
)
from batchrun.reports.page.palette import COLOURS, OUTCOMES
from batchrun.reports.report_queries import Report, read_report
from batchrun.reports.timeline import LimitedBy, Moment, Timeline

Write = Callable[..., Path]
Make = Callable[..., Outcome]


def _answer(one: Outcome, **changes: Any) -> Outcome:
    assert isinstance(one.result, Response)
    return msgspec.structs.replace(one, result=msgspec.structs.replace(one.result, **changes))


@pytest.fixture
def every_end(tmp_path: Path, write: Write, outcome: Make) -> Report:
    """A run with a row of each outcome; 236 of its 250 rows remain."""
    ok = [outcome(row) for row in (0, 1, 3, 8)]
    base = outcome(9)
    ends = [
        _answer(base, is_empty=True, output_text=None),
        _answer(base, output_parsed_ok=False),
        _answer(base, truncated=True),
        _answer(base, refusal="I cannot."),
        _answer(base, status="incomplete", incomplete_reason="content_filter"),
        _answer(base, status="cancelled"),
        msgspec.structs.replace(base, result=Failure(ErrorKind.BAD_REQUEST, "no", status="failed")),
        msgspec.structs.replace(
            base, result=Failure(ErrorKind.CONNECTION, "no", status="no_answer")
        ),
        msgspec.structs.replace(
            base, attempts=(), result=Failure(ErrorKind.INVALID_ROW, "no", status="invalid")
        ),
    ]
    named = [
        msgspec.structs.replace(
            one, request=msgspec.structs.replace(one.request, row=20 + at, custom_id=f"end{at}")
        )
        for at, one in enumerate(ends)
    ]
    return read_report(write(tmp_path / "run", [*ok, *named]))


def test_the_bar_has_each_end_apart_also_empty_and_invalid_output(every_end: Report) -> None:
    shares = outcome_shares(every_end)
    assert {one.name: one.rows for one in shares} == {
        **dict.fromkeys(OUTCOMES, "1"),
        "ok": "4",
        "remaining": "237",
    }
    assert [one.name for one in shares] == [*OUTCOMES, "remaining"]
    assert sum(one.weight for one in shares) == pytest.approx(1)
    assert shares[0].colour == COLOURS[0]
    assert (shares[0].share, shares[-1].share) == ("30.8 %", "")


def test_the_key_figures_are_those_of_the_report(every_end: Report, whole: Path) -> None:
    found = {one.name: one for one in key_figures(every_end)}
    assert list(found) == ["Rows", "Ok", "Cost", "Tokens", "Time", "Throughput"]
    assert (found["Rows"].value, found["Rows"].note) == ("13", "237 of 250 remaining")
    assert (found["Ok"].value, found["Ok"].note) == ("30.8 %", "4 ok, 9 not")
    report = read_report(whole)
    line = report.timeline
    assert line is not None
    found = {one.name: one for one in key_figures(report)}
    assert found["Cost"].value.endswith("+?")
    assert found["Cost"].note == "not all of it is known"
    assert found["Throughput"].value == f"{240 / line.span_s:,.1f} rows/s"


def test_a_run_without_answers_has_figures_too(tmp_path: Path, write: Write, outcome: Make) -> None:
    empty = read_report(write(tmp_path / "empty", []))
    assert [one.value for one in key_figures(empty)] == ["0", "-", "$0.00", "-", "-", "-"]
    assert [one.name for one in outcome_shares(empty)] == ["remaining"]
    failure = Failure(ErrorKind.SERVER_ERROR, "down", status="no_answer")
    ended = [msgspec.structs.replace(outcome(row), result=failure) for row in (0, 1)]
    attempts = tuple(msgspec.structs.replace(a, cost_usd=None) for a in ended[0].attempts)
    ended = [msgspec.structs.replace(one, attempts=attempts, cost_usd=None) for one in ended]
    found = {one.name: one for one in key_figures(read_report(write(tmp_path / "run", ended)))}
    assert (found["Ok"].value, found["Ok"].note) == ("0.0 %", "0 ok, 2 not")
    assert found["Cost"].value == "unknown"
    assert (found["Tokens"].value, found["Tokens"].note) == ("-", "no answer reported any")


def test_the_title_names_prompt_set_model_and_date(
    tmp_path: Path, write: Write, outcome: Make, hostile: str
) -> None:
    path = write(tmp_path / "run", [outcome(0)])
    assert title_words(read_report(path)) == ["prompts.jsonl", "gpt-4.1", "2026-09-21"]
    ask = outcome(1).request
    other = msgspec.structs.replace(outcome(1), request=msgspec.structs.replace(ask, model=hostile))
    several = read_report(write(tmp_path / "several", [outcome(0), other]))
    assert title_words(several) == ["prompts.jsonl", "2 models", "2026-09-21"]
    words = title_words(msgspec.structs.replace(several, models=1, model=hostile))
    assert all(word.isprintable() for word in words)
    record = json.loads((path / "run.json").read_bytes())
    (path / "run.json").write_text(json.dumps({**record, "source": "-", "source_path": ""}))
    assert title_words(read_report(path))[0] == "standard input"


def _line(*limits: LimitedBy, span_s: float = 100.0) -> Timeline:
    return Timeline(10.0, span_s, (Moment(90.0, {}, 0.0, 0.0, {}),), (), (), limits)


def test_lines_of_limits_are_few_in_percent_and_wide_enough_to_be_seen() -> None:
    names = "abcdefghij"
    limits = [
        LimitedBy(name, f"{name} (1 of 2)", 0.1, ((at * 10.0, at * 10.0 + 10.0),))
        for at, name in enumerate(names)
    ]
    lines = limit_lines(_line(*limits))
    assert [one.name for one in lines] == [*names[:7], "others"]
    assert lines[0].spans == ((0.0, 10.0),)
    assert lines[-1].spans == ((70.0, 30.0),)
    assert lines[-1].share == "30.0 %"
    assert len({one.colour for one in lines}) == 8
    short = limit_lines(
        _line(LimitedBy("a", "a", 1.0, ((5.0, 5.001), (50.0, 50.0), (99.0, 900.0))))
    )
    assert short[0].spans == ((5.0, 0.15), (50.0, 0.15), (99.0, 1.0))
    assert limit_lines(_line()) == limit_lines(None) == []


def test_many_looks_that_say_the_same_are_one_span() -> None:
    looks = tuple((at * 10.0, at * 10.0 + 10.0) for at in range(60_000))
    line = _line(LimitedBy("a", "a", 1.0, looks))
    every_second = LimitedBy("b", "b", 0.5, looks[::2])
    assert limit_lines(line)[0].spans == ((0.0, 100.0),)
    wide = msgspec.structs.replace(
        line,
        limits=(every_second,),
        moments=(msgspec.structs.replace(line.moments[0], at_s=599_990.0),),
    )
    assert len(limit_lines(wide)[0].spans) == 1


def test_the_axis_below_the_limits_is_in_percent() -> None:
    name, places = time_places(_line(span_s=100.0))
    assert name == "seconds of work"
    assert places == [(float(at), str(at)) for at in range(0, 101, 20)]
