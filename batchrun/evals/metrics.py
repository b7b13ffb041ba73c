"""What the scores of runs add up to: means with errors, pass@k, and what a right answer costs.

The database adds up by question; the formulas are those of `batchrun.scoring.statistics`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from msgspec import Struct

from batchrun.errors import JobError
from batchrun.evals.means import Interval, Measure, QuestionMean, measured, read_means
from batchrun.evals.score_views import (
    AnswerGroups,
    Missing,
    NotScored,
    Scored,
    ScoredRun,
    answers_of,
    notes_of,
    sources_of,
    with_scores,
)
from batchrun.formats.amounts import plural
from batchrun.formats.printable import listed, nearest
from batchrun.scoring.statistics import (
    BOOTSTRAP_DRAWS,
    BOOTSTRAP_SEED,
    pass_at_k,
    pass_hat_k,
    variance_of,
)

# Tables of the database: the lines of the result, and each line's questions.
_QUESTIONS = """
CREATE OR REPLACE TEMP TABLE lines AS
SELECT row_number() OVER (ORDER BY position, category NULLS LAST) - 1 AS line, variant, category
FROM (SELECT variant, category FROM answers GROUP BY ALL)
    LEFT JOIN declared ON variant IS NOT DISTINCT FROM name;

CREATE OR REPLACE TEMP VIEW placed AS
SELECT line, answers.* FROM answers JOIN lines ON answers.variant IS NOT DISTINCT FROM lines.variant
    AND answers.category IS NOT DISTINCT FROM lines.category;

CREATE OR REPLACE TEMP TABLE questions AS
SELECT line, question, coalesce('=' || any_value(cluster), '.' || question) AS cluster,
       count(*) AS samples, count(*) FILTER (is_scored) AS scored, count(value) AS counted,
       coalesce(sum(value), 0) AS total, avg(value) AS score, var_samp(value) AS variance,
       count(*) FILTER (passed) AS "right", min(value) AS least, max(value) AS most,
       count(*) FILTER (value NOT IN (0, 1)) AS fractions,
       count(*) FILTER (is_older OR is_new) AS waiting
FROM placed GROUP BY line, question
"""
_COUNTS = """
SELECT count(*) AS questions, sum(samples)::BIGINT AS samples, sum(scored)::BIGINT AS scored,
       sum(counted)::BIGINT AS counted, max(counted) AS most_samples,
       sum("right")::BIGINT AS "right", sum(waiting)::BIGINT AS waiting,
       min(least) AS least, max(most) AS most, sum(fractions)::BIGINT AS fractions,
       avg(total / samples) AS if_wrong, avg((total + samples - counted) / samples) AS if_right,
       avg(variance) AS within, avg(1 / counted) FILTER (counted > 0) AS inverse_samples
FROM questions GROUP BY line ORDER BY line
"""
_SPENDING = """
SELECT any_value(variant) AS variant, any_value(category) AS category, sum(cost_usd) AS cost_usd,
       count(*) FILTER (is_unpriced) AS unpriced,
       quantile_cont(latency_s, 0.5) FILTER (is_answered) AS latency_p50_s
FROM placed GROUP BY line ORDER BY line
"""
_SCORES = "SELECT line, cluster, score AS x FROM questions WHERE counted > 0"
_PASSED = """
SELECT line, cluster, {name} AS x FROM questions JOIN passes
    ON questions.counted = passes.samples AND questions."right" = passes."right" WHERE k = {k}
"""
# Each question's most frequent answers, whose ties share the credit; none is an answer too.
_MAJORITY = """
WITH votes AS (
    SELECT line, question, answer, count(*) AS votes, avg(value) AS score FROM placed
    WHERE value IS NOT NULL GROUP BY ALL
), most AS (SELECT line, question, max(votes) AS votes FROM votes GROUP BY ALL)
SELECT line, any_value(questions.cluster) AS cluster, avg(votes.score) AS x
FROM votes JOIN most USING (line, question, votes) JOIN questions USING (line, question)
GROUP BY line, question
"""
_NOTHING = Measure(None)
_REQUIREMENT = re.compile(r"(.+?)\s*(>=|<=|>|<)([^<>=]+)", re.DOTALL)
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda value, bound: value >= bound,
    "<=": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound,
    "<": lambda value, bound: value < bound,
}


class PassRate(Struct, frozen=True):
    """How often at least one, and all, of k samples are right."""

    k: int
    at: Measure | None  # pass@k; null where no question has k samples
    hat: Measure | None  # pass^k
    left_out: int  # questions that have fewer than k scored samples, or none


class MetricLine(Struct, frozen=True):
    """One metric of one variant of one run, or of its rows with one value of a column."""

    run: str
    scorer: str
    metric: str
    variant: str | None
    by: str | None
    questions: int  # with a score; the mean is over these
    clusters: int
    samples: int  # stored answers
    scored: int  # of these
    mean: float | None  # null where nothing is scored
    se: float | None  # null where there are fewer than two clusters, as is the interval
    low: float | None
    high: float | None
    method: str | None  # of the interval: t, wilson, bootstrap
    if_rest_wrong: float | None  # the mean if the others were 0, and 1; null where scores are
    if_rest_right: float | None  # not from 0 to 1
    within: float | None  # two variances and an error: see `statistics.Variance`
    between: float | None
    se_of_many: float | None
    passes: tuple[PassRate, ...]
    majority: Measure | None  # null where there are no answers to count
    right: int  # stored answers at or above their scorer's threshold
    cost_usd: float | None
    unpriced: int  # stored rows whose cost is not known, or not all of it
    usd_per_1000: float | None  # requests; null unless all their costs are known, as below
    usd_per_right: float | None
    latency_p50_s: float | None
    waiting: int  # of the samples, those that are newer than their score; none counts as 0

    @property
    def name(self) -> str:
        """The scorer's, with the metric where it has several."""
        return Scored(self.scorer, self.metric).name


class Metrics(Struct, frozen=True):
    """The lines, and what they were asked with."""

    lines: tuple[MetricLine, ...]
    level: float
    by: str | None
    cluster: str | None
    missing: Missing
    notes: tuple[str, ...]


def metrics(
    *runs: str | Path | pa.Table,
    scorers: Sequence[str] = (),
    by: str | None = None,
    cluster: str | None = None,
    at: Sequence[int] = (),
    level: float = 0.95,
    method: str = "auto",
    missing: Missing = "leave",
) -> Metrics:
    """What the scores of runs add up to, in lines for each scorer, metric and variant.

    A run is a run directory, or a table with the columns of `scores.parquet` (`custom_id` and
    `value` are needed). `by` is a column whose values get lines of their own; `cluster` one whose
    values belong together, such as the document that questions are about. `at`: the k of pass@k
    and pass^k, by default the samples of a question where there are several. `level`: of the
    intervals, a share; `method`: t, wilson, bootstrap, or auto (Wilson's for scores of 0 and 1, t
    for others). `missing`: rows without a score leave the mean, or are 0. Raises `JobError`,
    `StoreError`.
    """
    interval = Interval(level, method, cluster is not None)
    interval.check()
    if any(k < 1 for k in at):
        raise JobError(f"k of pass@k is a number of samples, from 1; {min(at)} is not")
    grouping = AnswerGroups(by, cluster, missing)

    def read(database: duckdb.DuckDBPyConnection, found: Sequence[ScoredRun]) -> Metrics:
        lines: list[MetricLine] = []
        notes: dict[str, None] = {}
        for run in found:
            of_run: list[MetricLine] = []
            waiting = NotScored()
            for scored in run.scored:
                waiting = waiting.most(answers_of(database, run, scored, grouping, "answers"))
                of_run += _lines(database, run, scored, interval, at)
            where = f"{run.name}: " if len(found) > 1 else ""
            for note in (*notes_of(run, waiting), *_notes(of_run, by, missing)):
                notes[where + note] = None
            lines += of_run
        if method == "bootstrap":
            notes[f"bootstrap: {BOOTSTRAP_DRAWS:,} draws, seed {BOOTSTRAP_SEED}"] = None
        return Metrics(tuple(lines), level, by, cluster, missing, tuple(notes))

    with sources_of(runs) as sources:
        return with_scores(sources, scorers, read)


def _lines(
    database: duckdb.DuckDBPyConnection,
    run: ScoredRun,
    scored: Scored,
    interval: Interval,
    at: Sequence[int],
) -> Iterator[MetricLine]:
    """Of the table `answers`, in the order of the variants. Raises `JobError`."""
    names = pa.array(run.variants, pa.string())
    database.register("declared", pa.table({"name": names, "position": range(len(names))}))
    database.execute(_QUESTIONS)
    counts, spending = _rows(database, _COUNTS), _rows(database, _SPENDING)
    most = {one["most_samples"] for one in counts if one["most_samples"] > 1}
    at = sorted(set(at or most))
    means = read_means(database, _SCORES, interval)
    passes = _read_passes(database, at, interval)
    answered = "SELECT 1 FROM answers WHERE answer IS NOT NULL LIMIT 1"
    majorities: dict[int, QuestionMean] = {}
    if most and database.sql(answered).fetchall():
        majorities = read_means(database, _MAJORITY, interval)
    for line, (count, spent) in enumerate(zip(counts, spending, strict=True)):
        mean = means.get(line)
        is_share = mean is None or (count["least"] >= 0 and count["most"] <= 1)
        if interval.method == "wilson" and not is_share:
            raise JobError(
                f"{scored.name} has scores outside of 0 to 1, for which there is no Wilson "
                "interval; give --method t"
            )
        kinds = {"is_binary": is_share and not count["fractions"], "is_share": is_share}
        samples, cost_usd = count["counted"], spent["cost_usd"]
        variance = None
        if mean is not None and count["within"] is not None:
            variance = variance_of(mean.error, count["within"], count["inverse_samples"])
        questions = 0 if mean is None else mean.error.questions
        own = measured(mean, interval, samples, **kinds) or _NOTHING
        known_usd = None if spent["unpriced"] else cost_usd
        yield MetricLine(
            run=run.name,
            scorer=scored.scorer,
            metric=scored.metric,
            variant=spent["variant"],
            by=spent["category"],
            questions=questions,
            clusters=0 if mean is None else mean.error.clusters,
            samples=count["samples"],
            scored=count["scored"],
            mean=own.value,
            se=own.se,
            low=own.low,
            high=own.high,
            method=own.method,
            if_rest_wrong=count["if_wrong"] if is_share else None,
            if_rest_right=count["if_right"] if is_share else None,
            within=None if variance is None else variance.within,
            between=None if variance is None else variance.between,
            se_of_many=None if variance is None else variance.se_of_many,
            passes=tuple(
                _pass_rate(k, line, passes[k], interval, samples, count["questions"]) for k in at
            ),
            majority=measured(majorities.get(line), interval, samples, **kinds),
            right=count["right"],
            cost_usd=cost_usd,
            unpriced=spent["unpriced"],
            usd_per_1000=None if known_usd is None else 1000 * known_usd / count["samples"],
            usd_per_right=known_usd / count["right"] if known_usd and count["right"] else None,
            latency_p50_s=spent["latency_p50_s"],
            waiting=count["waiting"],
        )


def _pass_rate(
    k: int,
    line: int,
    means: tuple[dict[int, QuestionMean], dict[int, QuestionMean]],
    interval: Interval,
    samples: int,
    questions: int,
) -> PassRate:
    """`questions`: all of the line, scored or not."""
    at, hat = (of_kind.get(line) for of_kind in means)
    counted = 0 if at is None else at.error.questions
    return PassRate(
        k, measured(at, interval, samples), measured(hat, interval, samples), questions - counted
    )


def _rows(database: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = database.sql(query).to_arrow_table().to_pylist()
    return rows


def _read_passes(
    database: duckdb.DuckDBPyConnection, at: Sequence[int], interval: Interval
) -> dict[int, tuple[dict[int, QuestionMean], dict[int, QuestionMean]]]:
    """Of each k: pass@k and pass^k of the lines, by way of the few counts that there are."""
    found = database.sql('SELECT DISTINCT counted, "right" FROM questions').fetchall()
    rows = [
        (samples, right, k, pass_at_k(samples, right, k), pass_hat_k(samples, right, k))
        for samples, right in found
        for k in at
        if k <= samples
    ]
    columns = list(zip(*rows, strict=True)) or [()] * 5
    types = (pa.int64(), pa.int64(), pa.int64(), pa.float64(), pa.float64())
    arrays = [pa.array(values, kind) for values, kind in zip(columns, types, strict=True)]
    names = ["samples", "right", "k", "at_least_one", "all_of_them"]
    database.register("passes", pa.table(arrays, names))
    return {
        k: (
            read_means(database, _PASSED.format(k=k, name="at_least_one"), interval),
            read_means(database, _PASSED.format(k=k, name="all_of_them"), interval),
        )
        for k in at
    }


def _notes(lines: Sequence[MetricLine], by: str | None, missing: Missing) -> Iterator[str]:
    """What the figures leave out."""
    for line in lines:
        group = "(null)" if by is not None and line.by is None else line.by
        where = ", ".join(filter(None, (line.name, line.variant, group)))
        if line.scored < line.samples:
            yield f"{where}: {said_of_missing(line, missing)}"
        for rate in line.passes:
            if rate.left_out:
                yield (
                    f"{where}: pass@{rate.k} leaves out "
                    f"{plural(rate.left_out, 'question')} with fewer scored samples"
                )
        if line.mean is not None and line.se is None:
            one = "question" if line.clusters == line.questions else "cluster"
            yield f"{where}: a single {one} has no standard error; an interval needs two"
        for method, names in _without_width(line).items():
            yield (
                f"{where}: all questions have the same {listed(names)}, so the {method} interval "
                "has no width; that does not mean that there is no error"
            )
        if line.cost_usd and line.unpriced:
            whose = ", ".join(filter(None, (line.variant, group)))
            said = f"the cost of {plural(line.unpriced, 'row')} is not known, or not all of it"
            yield f"{whose}: {said}" if whose else said


def _without_width(line: MetricLine) -> dict[str, list[str]]:
    """By method the figures whose interval says nothing, since no question differs from others."""
    measures = {"score": Measure(line.mean, line.se, line.low, line.high, line.method)}
    for rate in line.passes:
        measures[f"pass@{rate.k}"] = rate.at or _NOTHING
        if rate.k > 1:  # else they are the same
            measures[f"pass^{rate.k}"] = rate.hat or _NOTHING
    measures["majority"] = line.majority or _NOTHING
    found: dict[str, list[str]] = {}
    for name, one in measures.items():
        if one.method is not None and one.has_no_width:
            found.setdefault(one.method, []).append(name)
    return found


def said_of_missing(line: MetricLine, missing: Missing) -> str:
    """How many answers are scored, and what the others could change."""
    said = f"{line.scored:,} of {line.samples:,} scored"
    if missing == "zero":
        left_out = f"{line.waiting:,} left out until they are scored, " if line.waiting else ""
        return f"{said}; {left_out}the others count as 0"
    if line.if_rest_wrong is None or line.if_rest_right is None:
        return said
    ends = f"the mean is between {line.if_rest_wrong:.3f} and {line.if_rest_right:.3f}"
    return f"{said}; {ends} if the rest were all wrong or all right"


class Requirement(Struct, frozen=True):
    """What a mean must be, such as `gsm8k.mini>=0.8`."""

    text: str
    name: str  # of one mean, or of those of all variants
    sign: str
    bound: float


def read_requirement(text: str) -> Requirement:
    """Splits at the last operator. Raises `JobError`."""
    found = _REQUIREMENT.fullmatch(text.strip())
    try:
        bound = float(found[3]) if found else None
    except ValueError:
        bound = None
    if found is None or bound is None:
        raise JobError(
            f"--require {text}: write SCORER>=NUMBER or SCORER.VARIANT>=NUMBER, with >=, >, <= or <"
        )
    return Requirement(text, found[1], found[2], bound)


def unmet(found: Metrics, requirements: Sequence[Requirement]) -> list[str]:
    """A message for each mean that is not as required. Raises `JobError` where nothing fits one."""
    messages = []
    for one in requirements:
        # Scorers, metrics and variants have dots in their names, so none is split at one.
        fitting = [line for line in found.lines if one.name in (line.name, _whole_name(line))]
        if not fitting:
            known = dict.fromkeys(map(_whole_name, found.lines))
            near = nearest(one.name, known, "means")
            raise JobError(f"--require {one.text}: there is no mean {one.name}; {near}")
        for line in fitting:
            where = " ".join(filter(None, (line.run, line.name, line.variant, line.by)))
            if line.mean is None:
                messages.append(f"{one.text} does not hold: {where} has no scores")
            elif not _HOLDS[one.sign](line.mean, one.bound):
                messages.append(f"{one.text} does not hold: the mean of {where} is {line.mean:.6g}")
    return messages


def _whole_name(line: MetricLine) -> str:
    return line.name if line.variant is None else f"{line.name}.{line.variant}"
