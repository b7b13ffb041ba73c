"""The part of a report's page about scores: tables, intervals, a matrix of prompts and variants.

The matrix has one mark for each sample. A prompt opens to its outputs; radio buttons and styles
alone choose which prompts are seen.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import jinja2
from markupsafe import Markup, escape
from msgspec import Struct

from batchrun.evals.metrics import MetricLine, Metrics, metrics
from batchrun.evals.score_views import AnswerGroups, ScoredRun, answers_of, has_scores, with_scores
from batchrun.evals.tables.figure_tables import FigureTable
from batchrun.evals.tables.metrics_text import metrics_tables
from batchrun.formats.printable import brief, one_line, printable
from batchrun.reports.page.page_file import PagePart
from batchrun.reports.show import turns_of
from batchrun.reports.sql import pattern_of

MOST_PROMPTS = 500
_BYTES = 1_700_000  # of all outputs together; what is around them takes about a third of that
_PROMPT_BYTES = 300_000
_LEAST, _MOST = 60, 2_000  # bytes of one text
_MOST_BRIEF = 90  # characters of a prompt on its line
_TEMPLATE = Path(__file__).with_name("score_page.html")
# Wrong ones and those that variants disagree on come first.
_CHOSEN = """
CREATE OR REPLACE TEMP TABLE prompts AS
WITH shares AS (
    SELECT question, variant, min(row) AS row, any_value(target) AS target,
           count(*) FILTER (value IS NULL) AS unscored, count(value) AS scored,
           count(*) FILTER (passed) AS "right", avg(passed::INTEGER) FILTER (value IS NOT NULL) AS s
    FROM answers GROUP BY question, variant
)
SELECT question, min(row) AS row, any_value(target) AS target, sum(unscored) > 0 AS is_unscored,
       sum(scored) > sum("right") AS is_wrong, count(DISTINCT s) > 1 AS is_split
FROM shares GROUP BY question;

CREATE OR REPLACE TEMP TABLE chosen AS FROM prompts
ORDER BY is_split DESC, is_wrong DESC, is_unscored DESC, row, question LIMIT {most}
"""
_COUNTS = """
SELECT count(*), count(*) FILTER (is_wrong), count(*) FILTER (is_split),
       count(*) FILTER (is_unscored) FROM prompts
"""
# Rows may carry columns of any name, `question` and `target` too: each column says whose it is.
_PROMPTS = """
SELECT c.question, c.target, c.is_unscored, c.is_wrong, c.is_split,
       any_value(r.request) AS request
FROM chosen c JOIN responses_{number} r ON r.custom_id = c.question
GROUP BY ALL
ORDER BY c.is_split DESC, c.is_wrong DESC, c.is_unscored DESC, min(c.row), c.question
"""
_VERDICTS = """
SELECT a.question, a.sample, a.variant, a.value, a.passed, a.answer, a.reason, s.explanation
FROM answers a JOIN chosen USING (question) LEFT JOIN (
    SELECT custom_id, sample, variant, explanation
    FROM read_parquet($file, hive_partitioning = false) WHERE metric = $metric
) s ON a.question = s.custom_id AND a.sample = s.sample
    AND a.variant IS NOT DISTINCT FROM s.variant
"""
_OUTPUTS = """
SELECT r.custom_id, r.sample, r.variant, r.refusal, r.error_message,
       CASE WHEN length(r.output_text) <= 2 * {most} THEN r.output_text
       ELSE left(r.output_text, {most}) || right(r.output_text, {most}) END AS output_text
FROM responses_{number} r JOIN chosen c ON r.custom_id = c.question ORDER BY r.sample
"""
_CALLS = """
SELECT custom_id, sample, variant, name, left(arguments, {most}) AS arguments
FROM tool_calls_{number} JOIN chosen ON custom_id = question
WHERE name IS NOT NULL ORDER BY position
"""
_Key = tuple[str, int, str | None]
_KINDS = (("a", "all"), ("w", "any wrong"), ("d", "variants disagree"), ("n", "not scored"))
# One of these begins the second table.
_SECOND = ("majority", "var within", "var between", "cost", "p50 latency")


class Verdict(Struct, frozen=True):
    """What one scorer says of one sample."""

    scorer: str
    mark: str
    words: str  # answer and reason


class SampleMark(Struct, frozen=True):
    """One sample in the matrix, and what it opens to."""

    mark: str  # by the first scorer
    verdicts: tuple[Verdict, ...]
    number: int
    output: str
    calls: tuple[str, ...]


class PromptRow(Struct, frozen=True):
    """One prompt in the matrix."""

    name: str
    brief: str  # the beginning of the prompt
    prompt: str
    target: str
    kinds: str  # of w: a wrong sample, d: variants disagree, n: not scored
    samples: tuple[tuple[SampleMark, ...], ...]  # of each variant


class PromptKind(Struct, frozen=True):
    """Prompts that a button shows."""

    letter: str  # a: all
    words: str
    shown: int  # of `prompts`
    prompts: int


class IntervalLine(Struct, frozen=True):
    """One line of an interval chart, in hundredths of its width."""

    name: str
    words: str
    low: float
    width: float
    mean: float


class IntervalChart(Struct, frozen=True):
    """The means of one scorer."""

    title: str
    ends: tuple[str, str]  # of the axis
    lines: tuple[IntervalLine, ...]


class _Matrix(Struct, frozen=True):
    scorer: str
    others: tuple[str, ...]
    variants: tuple[str, ...]
    prompts: tuple[PromptRow, ...]
    kinds: tuple[PromptKind, ...]
    left_out: int


def score_parts(path: Path) -> list[PagePart]:
    """For `write_page`; empty where nothing is scored. Raises `JobError`, `StoreError`."""
    if not has_scores(path):
        return []
    found = metrics(path)
    matrix = with_scores([path], (), _matrix)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        tables=[
            (_halves(table), chart)
            for table, chart in zip(metrics_tables(found), _charts(found), strict=True)
        ],
        level=f"{100 * found.level:.4g} %",
        notes=list(map(one_line, found.notes)),
        matrix=matrix,
    )
    return [PagePart("scores", "Scores", Markup(text))]  # noqa: S704 - escaped by the template


def _charts(found: Metrics) -> Iterator[IntervalChart]:
    """One for each scorer, from 0 to 1 unless its values are others."""
    groups: dict[str, list[MetricLine]] = defaultdict(list)
    for line in found.lines:
        groups[line.name].append(line)
    for name, lines in groups.items():
        values = [
            end for line in lines for end in (line.low, line.high, line.mean) if end is not None
        ]
        low, high = min([0.0, *values]), max([1.0, *values])

        def place(value: float, low: float = low, high: float = high) -> float:
            return round(100 * (value - low) / (high - low), 2)

        drawn = []
        for line in lines:
            if line.mean is None:
                continue
            low_end = line.mean if line.low is None else line.low
            high_end = line.mean if line.high is None else line.high
            drawn.append(
                IntervalLine(
                    name=line.variant or "all",
                    words=f"{line.mean:.3f}, from {low_end:.3f} to {high_end:.3f}",
                    low=place(low_end),
                    width=round(place(high_end) - place(low_end), 2),
                    mean=place(line.mean),
                )
            )
        yield IntervalChart(name, (f"{low:g}", f"{high:g}"), tuple(drawn))


def _matrix(database: duckdb.DuckDBPyConnection, runs: Sequence[ScoredRun]) -> _Matrix:
    """Of the first scorer; what others say stands where a prompt opens."""
    (run,) = runs
    first, *others = run.scored
    verdicts: dict[_Key, list[Verdict]] = defaultdict(list)
    counts: tuple[int, ...] = ()
    for scored in (first, *others):
        answers_of(database, run, scored, AnswerGroups(), "answers")
        if scored is first:
            database.execute(_CHOSEN.format(most=MOST_PROMPTS))
            (counts,) = database.sql(_COUNTS).fetchall()
        assert scored.file is not None  # noqa: S101 - the page is of a run directory
        given = {"file": pattern_of(scored.file), "metric": scored.metric}
        for question, sample, variant, *said in database.execute(_VERDICTS, given).fetchall():
            verdicts[question, sample, variant].append(_verdict(scored.name, *said))
    prompts = _rows(database, _PROMPTS.format(number=run.number))
    most = min(_MOST, max(_LEAST, _BYTES // max(1, len(verdicts)) - 150))
    most_prompt = min(_MOST, max(2 * _LEAST, _PROMPT_BYTES // max(1, len(prompts))))
    calls: dict[_Key, list[str]] = defaultdict(list)
    for row in _rows(database, _CALLS.format(number=run.number, most=most)):
        calls[_key(row)].append(_cut(f"{row['name']}({row['arguments'] or ''})", most))
    samples: dict[tuple[str, str | None], list[SampleMark]] = defaultdict(list)
    for row in _rows(database, _OUTPUTS.format(number=run.number, most=most)):
        key = _key(row)
        output = row["output_text"] or row["refusal"] or row["error_message"] or ""
        own = verdicts.get(key) or [Verdict(first.name, _MARKS[None], "")]
        mark = SampleMark(own[0].mark, tuple(own), key[1], _cut(output, most), tuple(calls[key]))
        samples[key[0], key[2]].append(mark)
    shown: tuple[Mapping[str, bool], ...] = (
        {},
        {"is_wrong": True},
        {"is_split": True},
        {"is_unscored": True},
    )
    return _Matrix(
        scorer=first.name,
        others=tuple(one.name for one in others),
        variants=tuple(name or "all" for name in run.variants),
        kinds=tuple(
            PromptKind(letter, words, sum(wanted.items() <= row.items() for row in prompts), count)
            for (letter, words), wanted, count in zip(_KINDS, shown, counts, strict=True)
        ),
        prompts=tuple(
            PromptRow(
                name=one_line(row["question"]),
                brief=brief(text, _MOST_BRIEF),
                prompt=_cut(text, most_prompt),
                target=_cut(row["target"] or "", most_prompt),
                kinds="".join(
                    kind
                    for kind, name in (("w", "is_wrong"), ("d", "is_split"), ("n", "is_unscored"))
                    if row[name]
                ),
                samples=tuple(tuple(samples[row["question"], name]) for name in run.variants),
            )
            for row in prompts
            for text in [_prompt(row["request"])]
        ),
        left_out=counts[0] - len(prompts),
    )


def _halves(table: FigureTable) -> tuple[FigureTable, ...]:
    """As two tables that fit a page: how good, and at what price."""
    heads = table.heads[table.words :]
    at = next((n for n, head in enumerate(heads) if head in _SECOND), len(heads))
    halves = (table.with_figures(heads[:at]), table.with_figures(heads[at:]))
    return tuple(half for half in halves if len(half.heads) > half.words)


def _rows(database: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = database.sql(query).to_arrow_table().to_pylist()
    return rows


def _key(row: Mapping[str, Any]) -> _Key:
    return row["custom_id"], row["sample"], row["variant"]


_CALLS_BEGIN = '[{"name": '
_MARKS = {True: "✓", False: "✗", None: "–"}  # noqa: RUF001 - a sign for each


def _verdict(
    scorer: str,
    value: float | None,
    passed: bool,
    answer: str | None,
    reason: str | None,
    explanation: str | None,
) -> Verdict:
    words = [] if value in (None, 0, 1) else [f"{value:.3g}"]
    if answer and answer.startswith(_CALLS_BEGIN):  # they stand below
        answer = None
    words += [one_line(text) for text in (answer, reason, explanation) if text]
    return Verdict(scorer, _MARKS[None if value is None else passed], _cut(", ".join(words), 160))


def _prompt(request: str | None) -> str:
    """What was asked last."""
    turns = turns_of(request, None)
    return turns[-1].text if turns else ""


def _cut(text: str, most: int) -> str:
    """At most so many bytes of the page: of a longer text its beginning and, longer, its end.

    Answers stand at the end of outputs, and questions at that of prompts.
    """
    text = printable(text)
    shown, size = text, most
    while size and len(str(escape(shown)).encode("utf-8", "replace")) > most:
        head = size // 3
        shown = f"{text[:head]} … {text[len(text) - (size - head) :]}"
        size = size * 3 // 4
    return shown
