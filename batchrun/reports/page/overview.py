"""What the page begins with: title, key figures, how the rows ended, what limited the run."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePath

from msgspec import Struct

from batchrun.formats.amounts import duration, known_usd, plural, rate, seconds, short_count, usd
from batchrun.formats.printable import brief
from batchrun.reports.page.palette import COLOURS, OUTCOMES, REST, colour_of
from batchrun.reports.page.ticks import placed, time_ticks, time_unit
from batchrun.reports.report_queries import Report
from batchrun.reports.report_sections import not_asked_in_words, ok_rows, share_in_words
from batchrun.reports.timeline import LimitedBy, Timeline

_NAME = 60  # characters of a name in the title
_MOST_LIMITS = 7  # lines; the rest is one line more
_LEAST_PERCENT = 0.15  # of the time line: what is shorter would not be seen
_SHORT_FROM = 10_000  # tokens


class KeyFigure(Struct, frozen=True):
    """One of the figures at the top."""

    name: str
    value: str
    note: str


class Share(Struct, frozen=True):
    """A piece of the bar of outcomes."""

    name: str
    rows: str
    share: str  # of the complete rows; empty for those that remain
    weight: float  # in the bar
    colour: str


class LimitLine(Struct, frozen=True):
    """One limit along the time of the run; places are in percent of it."""

    name: str
    words: str  # the latest about it
    share: str
    spans: tuple[tuple[float, float], ...]  # where it begins, how wide it is
    colour: str


def title_words(report: Report) -> list[str]:
    """`prompts.jsonl`, `gpt-6.1-terra` and `2026-11-30`."""
    name = "standard input" if report.source == "-" else PurePath(report.source).name
    at = report.started_at if report.started_at is not None else report.begun_at
    words = [brief(name, _NAME) or "run"]
    if report.models > 1:
        words.append(plural(report.models, "model"))
    elif report.model is not None:
        words.append(brief(report.model, _NAME))
    words.append(f"{datetime.fromtimestamp(at / 1e6, UTC):%Y-%m-%d}")
    return words


def key_figures(report: Report) -> list[KeyFigure]:
    """Rows, ok, cost, tokens, time, throughput."""
    return [_rows(report), _ok(report), _cost(report), _tokens(report), *_times(report)]


def _rows(report: Report) -> KeyFigure:
    in_input = report.rows - report.not_in_input
    note = "all of the input"
    if report.left:
        note = f"{report.left:,} of {in_input + report.left:,} remaining"
        note += f", {not_asked_in_words(report)}" if report.not_asked else ""
    elif report.not_in_input:
        note = f"{report.not_in_input:,} no longer in the input"
    return KeyFigure("Rows", f"{report.rows:,}", note)


def _ok(report: Report) -> KeyFigure:
    ok = ok_rows(report)
    if not report.rows:
        return KeyFigure("Ok", "-", "no row is complete")
    bad = report.rows - ok
    note = (
        f"{ok:,} ok, {bad:,} not" if bad else "every complete row" if report.left else "every row"
    )
    return KeyFigure("Ok", share_in_words(ok / report.rows), note)


def _cost(report: Report) -> KeyFigure:
    is_partly = bool(report.unknown_attempts or report.unknown_usd)
    cost = report.cost_usd if is_partly else report.cost_usd or 0.0
    if report.simulated:
        note = "simulated, so nothing is paid"
    elif is_partly:
        note = "not all of it is known" if cost else "no price, or no usage reported"
    elif report.timeline is None:
        note = "nothing was sent"
    else:
        note = f"{usd(1000 * (cost or 0.0) / report.rows)} for 1,000 rows"
    return KeyFigure("Cost", known_usd(cost, is_partly=is_partly), note)


def _tokens(report: Report) -> KeyFigure:
    given, made = report.tokens.input_tokens, report.tokens.output_tokens
    if not given + made:
        return KeyFigure("Tokens", "-", "no answer reported any")
    note = f"{_count(given)} in, {_count(made)} out"
    return KeyFigure("Tokens", _count(given + made), note)


def _count(tokens: int) -> str:
    """`1,047`, `54.9M`."""
    return f"{tokens:,}" if tokens < _SHORT_FROM else short_count(tokens)


def _times(report: Report) -> list[KeyFigure]:
    span_s = report.timeline.span_s if report.timeline else 0.0
    if report.timeline is None or not span_s:
        none = "nothing was sent"
        return [KeyFigure("Time", "-", none), KeyFigure("Throughput", "-", none)]
    latency = next((one.p50 for one in report.spreads if one.name == "latency_s"), None)
    note = "of work" if latency is None else f"of work; median latency {seconds(latency)}"
    per_s = report.tokens.output_tokens / span_s
    out = f"{short_count(round(per_s) if per_s >= 100 else per_s)} output tokens/s"
    return [
        KeyFigure("Time", duration(span_s), note),
        KeyFigure("Throughput", rate(report.rows / span_s), out if per_s else "no output tokens"),
    ]


def outcome_shares(report: Report) -> list[Share]:
    """How the rows ended, and those that remain; none where there is no row at all."""
    counts = {row["outcome"]: row["rows"] for row in report.tables["outcomes"]}
    places = list(OUTCOMES)
    names = sorted(counts, key=lambda n: places.index(n) if n in OUTCOMES else len(places))
    all_rows = report.rows + report.left
    shares = [
        Share(
            name,
            f"{counts[name]:,}",
            share_in_words(counts[name] / report.rows),
            counts[name] / all_rows,
            colour_of(name),
        )
        for name in names
    ]
    if report.left:
        left = Share("remaining", f"{report.left:,}", "", report.left / all_rows, "var(--paper)")
        shares.append(left)
    return shares


def limit_lines(line: Timeline | None) -> list[LimitLine]:
    """What limited the run, most of the time first; the rare ones together are `others`."""
    if line is None or not line.limits:
        return []
    end_s = line.moments[-1].at_s + line.width_s
    found = list(line.limits[:_MOST_LIMITS])
    if rest := line.limits[_MOST_LIMITS:]:
        spans = tuple(sorted(span for one in rest for span in one.spans))
        names = ", ".join(one.name for one in rest)
        found.append(LimitedBy("others", names, sum(one.share for one in rest), spans))
    colours = [*COLOURS[1:], REST]
    return [
        LimitLine(
            brief(one.name, _NAME),
            brief(one.words, 2 * _NAME),
            share_in_words(one.share),
            tuple(_within(one.spans, end_s)),
            colour,
        )
        for one, colour in zip(found, colours, strict=False)
    ]


def _within(spans: Sequence[tuple[float, float]], end_s: float) -> list[tuple[float, float]]:
    """In percent of the time; spans that touch are one, and none is too narrow to be seen."""
    joined: list[list[float]] = []
    for begin_s, last_s in spans:
        begin, end = 100 * begin_s / end_s, 100 * min(last_s, end_s) / end_s
        if joined and begin - joined[-1][1] < _LEAST_PERCENT:
            joined[-1][1] = max(end, joined[-1][1])
        elif begin < 100:
            joined.append([begin, end])
    return [(round(begin, 2), round(max(_LEAST_PERCENT, end - begin), 2)) for begin, end in joined]


def time_places(line: Timeline) -> tuple[str, list[tuple[float, str]]]:
    """What the axis below the limits counts, and its ticks in percent."""
    unit, name = time_unit(line.span_s)
    end = (line.moments[-1].at_s + line.width_s) / unit
    return f"{name} of work", placed(time_ticks(line.span_s), end)
