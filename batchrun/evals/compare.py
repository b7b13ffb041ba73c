"""Two variants or runs against each other, question by question, and which answers flipped.

The pairs are questions scored in both; the formulas are those of `batchrun.scoring.statistics`.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.evals.means import Interval, read_means
from batchrun.evals.score_views import (
    AnswerGroups,
    Missing,
    NotScored,
    Scored,
    ScoredRun,
    answers_of,
    notes_of,
    sources_of,
    versions_of,
    with_scores,
)
from batchrun.formats.amounts import plural
from batchrun.formats.json_text import shown
from batchrun.formats.printable import listed, nearest
from batchrun.reports.export import check_target, replacing
from batchrun.scoring.statistics import (
    SEEN_WITH_POWER_80,
    holm,
    mcnemar_p,
    t_interval,
    two_sided_p,
    unpaired_p,
)

_SHOWN_FLIPS = 10
# The questions of one side, of its table of answers.
_SIDE = """
CREATE OR REPLACE TEMP TABLE {side} AS
SELECT question, min(row) AS row, any_value(category) AS category,
       coalesce('=' || any_value(cluster), '.' || question) AS cluster, any_value(target) AS target,
       count(DISTINCT coalesce('=' || category, '')) AS groups, count(value) AS counted,
       avg(value) AS score, count(*) FILTER (passed) AS "right",
       coalesce(bool_and(value IN (0, 1)), true) AS is_binary
FROM {answers} WHERE variant IS NOT DISTINCT FROM $variant GROUP BY question
"""
_PAIRS = """
CREATE OR REPLACE TEMP TABLE pairs AS
SELECT base.question, base.row, base.category, base.cluster, base.target,
       other.category AS other_category, other.target AS other_target,
       base.groups + other.groups AS groups,
       base.counted AS base_samples, other.counted AS other_samples,
       base."right" AS base_right, other."right" AS other_right,
       base.score AS base_score, other.score AS other_score,
       base.is_binary AND other.is_binary AS is_binary
FROM base JOIN other ON base.question = other.question;

CREATE OR REPLACE TEMP TABLE lines AS
SELECT row_number() OVER (ORDER BY category NULLS LAST) - 1 AS line, category
FROM pairs GROUP BY category;

CREATE OR REPLACE TEMP TABLE scored_pairs AS
SELECT line, pairs.*, base_right::DOUBLE / base_samples AS base_share,
       other_right::DOUBLE / other_samples AS other_share
FROM pairs JOIN lines ON pairs.category IS NOT DISTINCT FROM lines.category
WHERE base_samples > 0 AND other_samples > 0;
"""
_LINES = """
SELECT line, any_value(lines.category) AS category,
       corr(base_score, other_score) AS correlation,
       bool_and(is_binary) AND max(base_samples) = 1 AND max(other_samples) = 1 AS is_single,
       count(*) FILTER (other_score > base_score) AS gained,
       count(*) FILTER (other_score < base_score) AS lost,
       count(*) FILTER (base_share <> other_share) AS flips
FROM scored_pairs JOIN lines USING (line) GROUP BY line ORDER BY line
"""
_FLIPS = """
SELECT category, row, question AS custom_id, target, base_score, other_score,
       base_right, base_samples, other_right, other_samples, base_list.answers AS base_answers,
       other_list.answers AS other_answers
FROM (FROM scored_pairs WHERE base_share <> other_share) AS flipped
    LEFT JOIN (SELECT question, list(answer ORDER BY sample) AS answers FROM {base}
               WHERE variant IS NOT DISTINCT FROM $base AND question IN
               (SELECT question FROM scored_pairs WHERE base_share <> other_share)
               GROUP BY question) AS base_list USING (question)
    LEFT JOIN (SELECT question, list(answer ORDER BY sample) AS answers FROM {other}
               WHERE variant IS NOT DISTINCT FROM $other AND question IN
               (SELECT question FROM scored_pairs WHERE base_share <> other_share)
               GROUP BY question) AS other_list USING (question)
ORDER BY abs(other_share - base_share) DESC, row, question
"""
_FLIP_COLUMNS = (
    ("scorer", pa.string()),
    ("metric", pa.string()),
    ("base", pa.string()),
    ("other", pa.string()),
    ("by", pa.string()),
    ("row", pa.int64()),
    ("custom_id", pa.string()),
    ("target", pa.string()),
    ("base_score", pa.float64()),
    ("other_score", pa.float64()),
    ("base_right", pa.int64()),
    ("base_samples", pa.int64()),
    ("other_right", pa.int64()),
    ("other_samples", pa.int64()),
    ("base_answers", pa.list_(pa.string())),
    ("other_answers", pa.list_(pa.string())),
)
FLIP_SCHEMA = pa.schema(_FLIP_COLUMNS)


class Flip(Struct, frozen=True):
    """A question of which another share of the samples is right."""

    custom_id: str
    row: int
    target: str | None
    base_right: int
    base_samples: int
    other_right: int
    other_samples: int
    base_answers: tuple[str | None, ...]  # one for each sample, in their order
    other_answers: tuple[str | None, ...]


class Comparison(Struct, frozen=True):
    """One metric of one side against the first one, over the questions scored in both."""

    scorer: str
    metric: str
    by: str | None
    base: str  # the names of the sides
    other: str
    pairs: int
    clusters: int
    base_mean: float
    other_mean: float
    difference: float  # other - base
    se: float | None  # paired
    low: float | None
    high: float | None
    p: float | None  # of the paired t test
    p_holm: float | None  # corrected, where several are compared with the first
    unpaired_se: float | None
    unpaired_p: float | None
    correlation: float | None
    detectable: float | None  # the smallest difference seen with 80 % power
    gained: int | None  # right in the other alone; null with several samples, or other scores
    lost: int | None  # right in the base alone
    mcnemar_p: float | None
    flips: int
    first_flips: tuple[Flip, ...]

    @property
    def name(self) -> str:
        """The scorer's, with the metric where it has several."""
        return Scored(self.scorer, self.metric).name


class Comparisons(Struct, frozen=True):
    """The lines, and what they were asked with."""

    lines: tuple[Comparison, ...]
    level: float
    by: str | None
    cluster: str | None
    missing: Missing
    notes: tuple[str, ...]


class _Side(Struct, frozen=True):
    run: ScoredRun
    variant: str | None
    name: str


def compare(
    *runs: str | Path | pa.Table,
    variants: Sequence[str] = (),
    scorers: Sequence[str] = (),
    by: str | None = None,
    cluster: str | None = None,
    level: float = 0.95,
    missing: Missing = "leave",
    flips: str | Path | None = None,
) -> Comparisons:
    """Variants of one run, or runs, each against the first one.

    `variants`: of one run which ones, in this order, by default all; of several runs one that all
    of them have, or one for each, by default each with its like in the other runs. Runs, `scorers`,
    `by`, `cluster`, `level` and `missing` are as for `metrics`. `flips`: a Parquet file for all
    questions of which another share is right. Raises `JobError`, `StoreError`.
    """
    interval = Interval(level, "t", cluster is not None)
    interval.check()
    grouping = AnswerGroups(by, cluster, missing)

    def read(database: duckdb.DuckDBPyConnection, found: Sequence[ScoredRun]) -> Comparisons:
        groups = _groups(found, variants)
        sides = [side for group in groups for side in group]
        lines: list[Comparison] = []
        notes: dict[str, None] = {}
        tables: list[pa.Table] = []
        waiting: dict[int, NotScored] = {}
        for scored in _shared(found):
            for run in {side.run.number: side.run for side in sides}.values():
                own = next(one for one in run.scored if one.name == scored.name)
                count = answers_of(database, run, own, grouping, f"answers_{run.number}")
                waiting[run.number] = count.most(waiting.get(run.number, NotScored()))
            notes.update(dict.fromkeys(_notes_of_rules(database, scored, found)))
            of_scorer: list[Comparison] = []
            for base, *others in groups:
                _add_side(database, base, "base")
                for other in others:
                    _add_side(database, other, "other")
                    database.execute(_PAIRS)
                    notes.update(dict.fromkeys(_checked(database, base, other, scored, by)))
                    tables.append(_flips(database, base, other, scored))
                    of_scorer += _lines(database, base, other, scored, interval, tables[-1])
            notes.update((note, None) for line in of_scorer for note in _notes(line, interval))
            lines += _corrected(of_scorer)
        for run in found:
            where = f"{run.name}: " if len(found) > 1 else ""
            of_run = notes_of(run, waiting.get(run.number, NotScored()))
            notes.update((where + note, None) for note in of_run)
        if flips is not None:
            with replacing(Path(flips)) as temporary:
                pq.write_table(pa.concat_tables(tables), temporary, compression="zstd")
        return Comparisons(tuple(lines), level, by, cluster, missing, tuple(notes))

    with sources_of(runs) as sources:
        if flips is not None:
            for source in sources:
                if isinstance(source, Path):
                    check_target(source, Path(flips))
        return with_scores(sources, scorers, read)


def _groups(runs: Sequence[ScoredRun], variants: Sequence[str]) -> list[list[_Side]]:
    """What is compared with the first of each; of runs with the same variants, a group for each.

    Raises `JobError`.
    """
    names = runs[0].variants
    are_alike = all(set(run.variants) == set(names) for run in runs)
    if are_alike and len(runs) > 1 and len(names) > 1 and not variants:
        return [[_side(run, name, f"{run.name} {name}") for run in runs] for name in names]
    return [_sides(runs, variants)]


def _sides(runs: Sequence[ScoredRun], variants: Sequence[str]) -> list[_Side]:
    """What is compared, the first one first. Raises `JobError`."""
    if len(runs) == 1:
        (run,) = runs
        names: list[str | None] = [*dict.fromkeys(variants)] or [*run.variants]
        if len(names) < 2:
            raise JobError(
                f"{run.name}: one variant alone cannot be compared; give a second --variant, or a "
                f"second run ({_declared(run)})"
            )
        return [_side(run, name, name or "(no variant)") for name in names]
    if len(variants) not in (0, 1, len(runs)):
        raise JobError(
            f"{plural(len(runs), 'run')} and {plural(len(variants), 'variant')}: give one "
            "--variant that all runs have, or one for each run"
        )
    chosen: list[str | None] = [*variants] * (len(runs) if len(variants) == 1 else 1)
    for run in () if variants else runs:
        if len(run.variants) != 1:
            raise JobError(f"{run.name}: choose one with --variant; {_declared(run)}")
        chosen.append(run.variants[0])
    return [
        _side(run, name, run.name if len(run.variants) == 1 else f"{run.name} {name}")
        for run, name in zip(runs, chosen, strict=True)
    ]


def _side(run: ScoredRun, variant: str | None, name: str) -> _Side:
    """Raises `JobError` where the run has no such variant."""
    if variant not in run.variants:
        known = [one for one in run.variants if one is not None]
        raise JobError(
            f"{run.name}: there is no variant {variant}; "
            f"{nearest(str(variant), known, 'its variants')}"
        )
    return _Side(run, variant, name)


def _declared(run: ScoredRun) -> str:
    names = [name for name in run.variants if name is not None]
    return f"its variants are {listed(names)}" if names else "it has no variants"


def _shared(runs: Sequence[ScoredRun]) -> list[Scored]:
    """The metrics that all runs have. Raises `JobError` where there is none."""
    names = [{one.name for one in run.scored} for run in runs]
    shared = [one for one in runs[0].scored if all(one.name in some for some in names)]
    if not shared:
        had = "; ".join(f"{run.name}: {listed(one.name for one in run.scored)}" for run in runs)
        raise JobError(f"no scorer has scored all runs ({had}); score them with the same one")
    return shared


def _notes_of_rules(
    database: duckdb.DuckDBPyConnection, scored: Scored, runs: Sequence[ScoredRun]
) -> Iterator[str]:
    versions = {
        version
        for run in runs
        for one in run.scored
        if one.name == scored.name
        for version in versions_of(database, run, one)
    }
    if len(versions) > 1:
        yield (
            f"{scored.name}: scored by different versions of the rule "
            f"({listed(sorted(versions))}); score all with the same one"
        )


def _add_side(database: duckdb.DuckDBPyConnection, side: _Side, table: str) -> None:
    database.execute(
        _SIDE.format(side=table, answers=f"answers_{side.run.number}"), {"variant": side.variant}
    )


def _checked(
    database: duckdb.DuckDBPyConnection, base: _Side, other: _Side, scored: Scored, by: str | None
) -> Iterator[str]:
    """What is to be said of the pairs. Raises `JobError` where they cannot be compared."""
    names = f"{base.name} and {other.name}"
    sizes = {}
    for table, side in (("base", base), ("other", other)):
        (sizes[table],) = _row(database, f"SELECT count(*) FROM {table}")  # noqa: S608
        if not sizes[table]:
            raise JobError(f"{side.name} has no rows yet")
    pairs, scored_pairs = _row(
        database, "SELECT count(*), (SELECT count(*) FROM scored_pairs) FROM pairs"
    )
    if not pairs:
        ids = [
            _row(database, f"SELECT question FROM {table} ORDER BY row LIMIT 1")[0]  # noqa: S608
            for table in ("base", "other")
        ]
        raise JobError(
            f"{names} share no custom_id: the first are {shown(ids[0])} and {shown(ids[1])}; "
            "compare runs over the same prompts"
        )
    if not scored_pairs:
        raise JobError(
            f"{scored.name}: no question is scored in both {names}; --missing zero counts the "
            "others as 0"
        )
    differs = (
        "SELECT question, target, other_target FROM scored_pairs "
        "WHERE target IS DISTINCT FROM other_target ORDER BY row LIMIT 1"
    )
    for question, target, other_target in database.sql(differs).fetchall():
        raise JobError(
            f"{scored.name}: {shown(question)} has the target {shown(target)} in {base.name} and "
            f"{shown(other_target)} in {other.name}; score both against the same targets"
        )
    mixed = (
        "SELECT question FROM pairs WHERE groups > 2 "
        "OR category IS DISTINCT FROM other_category ORDER BY row LIMIT 1"
    )
    for (question,) in database.sql(mixed).fetchall() if by else ():
        raise JobError(
            f"{by} differs between the answers to {shown(question)}, so pairs cannot be "
            "grouped by it; name a column of the prompts"
        )
    for table, side in (("base", base), ("other", other)):
        if alone := sizes[table] - pairs:
            yield f"{plural(alone, 'question')} only in {side.name}, left out"
    if without := pairs - scored_pairs:
        said = plural(without, "question is", "questions are")
        yield f"{scored.name}: {said} not scored in both {names}, and left out"


def _lines(
    database: duckdb.DuckDBPyConnection,
    base: _Side,
    other: _Side,
    scored: Scored,
    interval: Interval,
    flips: pa.Table,
) -> Iterator[Comparison]:
    """A line for each group of the pairs."""
    means = [
        read_means(database, f"SELECT line, cluster, {x} AS x FROM scored_pairs", interval)  # noqa: S608
        for x in ("base_score", "other_score", "other_score - base_score")
    ]
    groups = database.sql(_LINES).to_arrow_table().to_pylist()
    for group in groups:
        first, second, difference = (found[group["line"]].error for found in means)
        se = difference.se or None  # 0 where all differences are one: nothing follows from that
        ends = t_interval(difference, interval.level) if se else None
        p = two_sided_p(difference.mean / se, difference.df) if se else None
        if se is None and difference.questions > 1 and not difference.mean:
            p = 1.0
        unpaired = unpaired_p(first, second)
        single = bool(group["is_single"])
        of_group = _of_group(flips, group["category"])
        yield Comparison(
            scorer=scored.scorer,
            metric=scored.metric,
            by=group["category"],
            base=base.name,
            other=other.name,
            pairs=difference.questions,
            clusters=difference.clusters,
            base_mean=first.mean,
            other_mean=second.mean,
            difference=difference.mean,
            se=difference.se,
            low=None if ends is None else ends[0],
            high=None if ends is None else ends[1],
            p=p,
            p_holm=None,
            unpaired_se=None if unpaired is None else unpaired[0],
            unpaired_p=None if unpaired is None else unpaired[1],
            correlation=_finite(group["correlation"]),
            detectable=None if se is None else SEEN_WITH_POWER_80 * se,
            gained=group["gained"] if single else None,
            lost=group["lost"] if single else None,
            mcnemar_p=mcnemar_p(group["gained"], group["lost"]) if single else None,
            flips=group["flips"],
            first_flips=of_group,
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _flips(
    database: duckdb.DuckDBPyConnection, base: _Side, other: _Side, scored: Scored
) -> pa.Table:
    """The questions of which another share is right, the largest changes first."""
    query = _FLIPS.format(base=f"answers_{base.run.number}", other=f"answers_{other.run.number}")
    given = {"base": base.variant, "other": other.variant}
    found = database.sql(query, params=given).to_arrow_table()
    names = {
        "scorer": scored.scorer,
        "metric": scored.metric,
        "base": base.name,
        "other": other.name,
    }
    arrays = [
        pa.array([names[field.name]] * found.num_rows, field.type)
        if field.name in names
        else found["category" if field.name == "by" else field.name].cast(field.type)
        for field in FLIP_SCHEMA
    ]
    return pa.table(arrays, schema=FLIP_SCHEMA)


def _of_group(flips: pa.Table, by: str | None) -> tuple[Flip, ...]:
    """The first flips of a group of the pairs."""
    chosen = flips.filter(pc.is_null(flips["by"]) if by is None else pc.equal(flips["by"], by))
    fields = Flip.__struct_fields__
    return tuple(
        msgspec.convert({name: row[name] for name in fields}, Flip)
        for row in chosen.slice(0, _SHOWN_FLIPS).select(fields).to_pylist()
    )


def _corrected(lines: Sequence[Comparison]) -> list[Comparison]:
    """With Holm's correction where, within a group, there are several comparisons."""
    groups: dict[str | None, list[int]] = {}
    for at, line in enumerate(lines):
        if line.p is not None:
            groups.setdefault(line.by, []).append(at)
    corrected = list(lines)
    for places in groups.values():
        p_values = [lines[at].p or 0.0 for at in places]
        if len(places) > 1:
            for at, p_holm in zip(places, holm(p_values), strict=True):
                corrected[at] = replace(lines[at], p_holm=p_holm)
    return corrected


def _notes(line: Comparison, interval: Interval) -> Iterator[str]:
    """What the figures of a line do not say."""
    where = ", ".join(filter(None, (line.name, f"{line.base} and {line.other}", line.by)))
    if line.pairs < 2:
        yield f"{where}: a single pair has no standard error"
    elif not line.se and not line.difference:
        unseen = 1 - (1 - interval.level) ** (1 / line.clusters)
        yield (
            f"{where}: no score differs; a difference in up to {unseen:.1%} of the questions may "
            "exist without being detected"
        )
    elif not line.se:
        yield f"{where}: every question differs by the same amount, so there is no standard error"


def _row(database: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] = database.sql(query).fetchall()[0]
    return row
