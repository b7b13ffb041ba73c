"""The scores of runs as tables of a database: one row for each stored answer, scored or not.

Scores are in `RUN/scores/NAME/scores.parquet`, one row for each stored row and metric. A row of
the run that such a file lacks, or whose answer has changed since, counts as not scored.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import duckdb
import pyarrow as pa
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.formats.amounts import plural
from batchrun.formats.json_text import shown
from batchrun.formats.printable import listed, nearest
from batchrun.progress.summary_text import so_far_in_words
from batchrun.records import RunRecord
from batchrun.remote.run_link import run_name
from batchrun.remote.urls import is_store
from batchrun.reports.bill.cost_queries import MOST_VALUES
from batchrun.reports.sql import (
    Files,
    add_views,
    connected,
    own_names,
    quoted,
    read_all_files,
    scan_of,
    unreadable,
)
from batchrun.store.columns import KEY, score_schema
from batchrun.store.reading import run_folder, state_now

T = TypeVar("T")
Missing = Literal["leave", "zero"]
Source: TypeAlias = (
    Path | pa.Table
)  # a run directory, or a table with the columns of scores.parquet
SCORES = "scores.parquet"  # in the folder of its scorer, in `scores` of the run directory
ANSWERED = ("completed", "incomplete")  # statuses of rows that the model has answered
_VALUE = "value"  # the metric of a scorer that has only one
# The columns of a table of scores: type, and what stands for one that is not there; none: it must.
_COLUMNS = {
    "custom_id": ("VARCHAR", None),
    "value": ("DOUBLE", None),
    "sample": ("BIGINT", "0"),
    "variant": ("VARCHAR", "NULL"),
    "scorer": ("VARCHAR", "'scores'"),
    "metric": ("VARCHAR", "'value'"),
    "row": ("BIGINT", "row_number() OVER ()"),
    "passed": ("BOOLEAN", "value >= 1"),
    "answer": ("VARCHAR", "NULL"),
    "target": ("VARCHAR", "NULL"),
    "reason": ("VARCHAR", "NULL"),
    "scorer_version": ("VARCHAR", "NULL"),
    "cost_usd": ("DOUBLE", "NULL"),
    "latency_s": ("DOUBLE", "NULL"),
}


class Scored(Struct, frozen=True):
    """One metric of one scorer of a run."""

    scorer: str
    metric: str
    file: Path | None = None  # null: the rows are in a table of the caller

    @property
    def name(self) -> str:
        """As reports call it: the scorer's, with the metric where it has several."""
        return self.scorer if self.metric == _VALUE else f"{self.scorer}/{self.metric}"


class ScoredRun(Struct, frozen=True):
    """A run, or a table of scores, in the database."""

    name: str
    number: int  # of its tables in the database
    scored: tuple[Scored, ...]
    variants: tuple[str | None, ...]  # in the order in which they were declared
    columns: tuple[str, ...]  # that rows can be grouped by
    record: RunRecord | None = None
    path: Path | None = None
    stored: int = 0  # rows in its tables


class NotScored(Struct, frozen=True):
    """Answers that wait for `batchrun score`: nobody knows whether they are right."""

    older: int = 0  # whose score is for an older answer
    new: int = 0  # that no scoring has seen

    def most(self, others: "NotScored") -> "NotScored":
        """The larger one of both counts."""
        return NotScored(max(self.older, others.older), max(self.new, others.new))


class AnswerGroups(Struct, frozen=True):
    """Which columns the table `answers` has beside those of a score."""

    by: str | None = None
    cluster: str | None = None
    missing: Missing = "leave"


@contextmanager
def sources_of(runs: Sequence[str | Path | pa.Table]) -> Iterator[list[Source]]:
    """The folders of runs in a store are there while the block lasts.

    Raises `JobError` where no run is given, or one twice; as `run_folder`.
    """
    if not runs:
        raise JobError("no run is given; name a run directory")
    sources: list[Source] = []
    with ExitStack() as stack:
        for run in runs:
            if isinstance(run, pa.Table):
                sources.append(run)
            elif is_store(str(run)):
                sources.append(stack.enter_context(run_folder(str(run), scores=True)))
            else:
                sources.append(Path(run))
        names = [run_name(source) for source in sources if isinstance(source, Path)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise JobError(f"given more than once: {listed(sorted(twice))}; give each run once")
        yield sources


def with_scores(
    sources: Sequence[Source],
    scorers: Sequence[str],
    answer: Callable[[duckdb.DuckDBPyConnection, Sequence[ScoredRun]], T],
) -> T:
    """What `answer` returns for the runs; it is called again where a seal replaced a part.

    `scorers`: those that are asked for; empty: all. Raises `JobError`, `StoreError`.
    """
    paths = [source for source in sources if isinstance(source, Path)]

    def read(files: Sequence[Files]) -> T:
        of_paths = iter(files)
        with (
            tempfile.TemporaryDirectory(prefix="batchrun-") as folder,
            connected(Path(folder)) as database,
        ):
            runs: list[ScoredRun] = []
            try:
                for number, source in enumerate(sources):
                    run = (
                        _add_run(database, number, source, next(of_paths))
                        if isinstance(source, Path)
                        else _add_table(database, number, source)
                    )
                    runs.append(_chosen(run, scorers))
                return answer(database, runs)
            except duckdb.Error as error:
                path = next((run.path for run in reversed(runs) if run.path is not None), None)
                if path is None:
                    reason = str(error).partition("\n")[0]
                    raise JobError(f"the table of scores cannot be read ({reason})") from error
                raise unreadable(path, error) from error

    return read_all_files(paths, read)


def _add_run(
    database: duckdb.DuckDBPyConnection, number: int, path: Path, files: Files
) -> ScoredRun:
    """The run's rows as the views of `add_views`, with `_N`.

    Raises `JobError` where nothing is scored.
    """
    add_views(database, files, f"_{number}")
    name = run_name(path)
    found = tuple(
        Scored(file.parent.name, metric, file)
        for file in _score_files(path)
        for metric in _metrics_of(database, file)
    )
    if not found:
        raise JobError(f"{name}: nothing is scored yet; batchrun score {name} scores its rows")
    stored = [variant for (variant,) in _column(database, f"responses_{number}", "variant")]
    declared = [one["name"] for one in files.record.job.get("variants", ())]
    variants = tuple(sorted(stored, key=[*declared, *stored].index))
    columns = _plain(files.responses.schema)
    (rows,) = database.sql(f"SELECT count(*) FROM responses_{number}").fetchall()[0]  # noqa: S608
    return ScoredRun(name, number, found, variants, columns, files.record, path, rows)


def _plain(schema: pa.Schema) -> tuple[str, ...]:
    """The columns that rows can be grouped by."""
    return tuple(field.name for field in schema if not pa.types.is_nested(field.type))


def has_scores(path: Path) -> bool:
    """Whether anything of the run is scored."""
    return bool(_score_files(path))


def _score_files(path: Path) -> list[Path]:
    return sorted((path / "scores").glob(f"*/{SCORES}"))


def _metrics_of(database: duckdb.DuckDBPyConnection, file: Path) -> list[str]:
    """Those that any row has a value of, `value` first, else as the function gave them."""
    found = _column(database, _scan(database, file), "metric", "HAVING count(value) > 0")
    names = [name or _VALUE for (name,) in found]
    return sorted(names, key=lambda name: name != _VALUE) or [_VALUE]


def _column(
    database: duckdb.DuckDBPyConnection, table: str, column: str, having: str = ""
) -> list[tuple[str | None]]:
    """The different values of a column, in the order in which they first come."""
    return database.sql(
        f"SELECT {column} FROM {table} GROUP BY ALL {having} ORDER BY min(row), {column}"  # noqa: S608
    ).fetchall()


def _scan(database: duckdb.DuckDBPyConnection, file: Path) -> str:
    return scan_of(database, file, score_schema())


def _add_table(database: duckdb.DuckDBPyConnection, number: int, table: pa.Table) -> ScoredRun:
    """The caller's table as the view `scores_N`. Raises `JobError` where columns are missing."""
    known = table.column_names
    lacking = [name for name, (_, filler) in _COLUMNS.items() if not filler and name not in known]
    if lacking:
        raise JobError(
            f"a table of scores needs the column {listed(lacking)}; it has {listed(known)}"
        )
    database.register(f"given_{number}", table)
    columns = {name: quoted(name) for name in known} | {
        name: f"CAST({quoted(name) if name in known else filler} AS {kind})"
        for name, (kind, filler) in _COLUMNS.items()
    }
    selected = ", ".join(f"{source} AS {quoted(name)}" for name, source in columns.items())
    database.execute(
        f"CREATE TEMP VIEW scores_{number} AS SELECT {selected} FROM given_{number}"  # noqa: S608
    )
    scored = database.sql(
        f"SELECT DISTINCT scorer, metric FROM scores_{number}"  # noqa: S608
    ).fetchall()
    variants = tuple(name for (name,) in _column(database, f"scores_{number}", "variant"))
    scored.sort(key=lambda one: (one[0], one[1] != _VALUE, one[1]))
    found = tuple(Scored(scorer, metric) for scorer, metric in scored)
    return ScoredRun(f"table {number + 1}", number, found, variants, _plain(table.schema))


def _chosen(run: ScoredRun, scorers: Sequence[str]) -> ScoredRun:
    """With the scorers that are asked for. Raises `JobError` where the run has no such."""
    names = [*dict.fromkeys(one.scorer for one in run.scored)]
    for scorer in scorers:
        if scorer not in names:
            raise JobError(
                f"{run.name}: there is no scorer {scorer}; {nearest(scorer, names, 'scorers')}"
            )
    if not scorers:
        return run
    return replace(run, scored=tuple(one for one in run.scored if one.scorer in scorers))


def answers_of(
    database: duckdb.DuckDBPyConnection,
    run: ScoredRun,
    scored: Scored,
    grouping: AnswerGroups,
    table: str,
) -> NotScored:
    """Makes a table of the run's stored answers with this score; how many still wait for theirs.

    Columns: question, sample, variant, row, category (that of `by`), cluster, is_scored, value,
    passed, answer, target, reason, is_answered, is_older and is_new (see `NotScored`), cost_usd,
    is_unpriced (its cost is not known, or not all of it), latency_s. A value that is no finite
    number is null, and so is that of an answer that waits for its score, whatever `missing` says.
    Raises `JobError`.
    """
    for name in (grouping.by, grouping.cluster):
        if name is not None and name not in run.columns:
            raise JobError(
                f"{run.name}: there is no column {name} to group by; "
                f"{nearest(name, run.columns, 'columns')}"
            )
    key = ", ".join(KEY)
    groups = {"category": _as_text(grouping.by), "cluster": _as_text(grouping.cluster)}
    if scored.file is None or run.record is None:
        rows = f"scores_{run.number} AS r"
        where = "WHERE scorer = $scorer AND metric = $metric"
        score, is_answered, is_older, is_new = "r", "true", "false", "false"
        is_unpriced = "r.cost_usd IS NULL"
        given = {"scorer": scored.scorer, "metric": scored.metric}
    else:
        scan = _scan(database, scored.file)
        grouped = ", ".join(f"{column} AS {name}" for name, column in groups.items())
        groups = {name: f"r.{name}" for name in groups}
        rows = f"""(
            SELECT {own_names(run.record)}, {grouped} FROM all_responses_{run.number} AS r
        ) AS r LEFT JOIN (
            SELECT {key}, response_id, value, passed, answer, target, reason
            FROM {scan} WHERE metric = $metric
        ) AS s ON r.custom_id = s.custom_id AND r.sample = s.sample
            AND r.variant IS NOT DISTINCT FROM s.variant"""  # noqa: S608
        where, score = "", "s"
        is_answered = f"r.status IN {ANSWERED}"
        differs = "s.custom_id IS NOT NULL AND r.response_id IS DISTINCT FROM s.response_id"
        is_older = f"{differs} AND s.response_id IS NOT NULL"
        # What a function gave no score may stand in the file by another metric.
        is_new = f"""({differs} AND s.response_id IS NULL)
            OR ({is_answered} AND s.custom_id IS NULL AND NOT EXISTS (
                SELECT 1 FROM {scan} AS any_metric WHERE any_metric.custom_id = r.custom_id
                AND any_metric.sample = r.sample
                AND any_metric.variant IS NOT DISTINCT FROM r.variant
                AND any_metric.response_id IS NOT DISTINCT FROM r.response_id))"""  # noqa: S608
        # An attempt that timed out may be billed, whether another one answered or none did.
        is_unpriced = f"""({is_answered} AND r.cost_usd IS NULL) OR coalesce(len(list_filter(
            r.attempts, lambda one: one.cost_usd IS NULL)), 0) > 0"""
        given = {"metric": scored.metric}
    columns = {
        "question": "r.custom_id",
        "sample": "r.sample",
        "variant": "r.variant",
        "row": 'r."row"',
        **groups,
        "is_older": is_older,
        "is_new": is_new,
        "value": f"CASE WHEN isfinite({score}.value) AND NOT ({is_older}) THEN {score}.value END",
        "passed": f"coalesce({score}.passed, false)",
        "answer": f"{score}.answer",
        "target": f"{score}.target",
        "reason": f"{score}.reason",
        "is_answered": is_answered,
        "cost_usd": "r.cost_usd",
        "is_unpriced": is_unpriced,
        "latency_s": "r.latency_s",
    }
    selected = ", ".join(f'{source} AS "{name}"' for name, source in columns.items())
    value = "value"
    if grouping.missing == "zero":
        value = "CASE WHEN NOT (is_older OR is_new) THEN coalesce(value, 0) END"
    database.execute(
        f"""CREATE OR REPLACE TEMP TABLE {table} AS
        SELECT * REPLACE ({value} AS value, value IS NOT NULL AND passed AS passed,
                          CASE WHEN value IS NOT NULL THEN answer END AS answer),
               value IS NOT NULL AS is_scored
        FROM (SELECT {selected} FROM {rows} {where})""",  # noqa: S608
        given,
    )
    _check_groups(database, run, grouping, table)
    counts = database.sql(
        f"SELECT count(*) FILTER (is_older), count(*) FILTER (is_new) FROM {table}"  # noqa: S608
    ).fetchall()
    return NotScored(*counts[0])


def _as_text(column: str | None) -> str:
    return f"{'NULL' if column is None else f'r.{quoted(column)}'}::VARCHAR"


def _check_groups(
    database: duckdb.DuckDBPyConnection, run: ScoredRun, grouping: AnswerGroups, table: str
) -> None:
    """Raises `JobError` where there are too many groups, or a question is in several clusters."""
    if grouping.by is not None:
        (count,) = database.sql(
            f"SELECT count(DISTINCT category) FROM {table}"  # noqa: S608
        ).fetchall()[0]
        if count > MOST_VALUES:
            raise JobError(
                f"{run.name}: the column {grouping.by} has more than {MOST_VALUES:,} different "
                "values; name one with fewer"
            )
    if grouping.cluster is not None:
        split = database.sql(
            f"SELECT question FROM {table} GROUP BY question "  # noqa: S608
            "HAVING count(DISTINCT coalesce('=' || cluster, '')) > 1 ORDER BY min(row) LIMIT 1"
        ).fetchall()
        if split:
            raise JobError(
                f"{run.name}: {grouping.cluster} differs between the answers to "
                f"{shown(split[0][0])}, so it cannot be a cluster of questions; name another column"
            )


def versions_of(database: duckdb.DuckDBPyConnection, run: ScoredRun, scored: Scored) -> list[str]:
    """The versions of the rule by which rows are scored."""
    table = f"scores_{run.number}" if scored.file is None else _scan(database, scored.file)
    found = database.execute(
        f"SELECT DISTINCT scorer_version FROM {table} "  # noqa: S608
        "WHERE metric = ? AND scorer_version IS NOT NULL",
        [scored.metric],
    ).fetchall()
    return [version for (version,) in found]


def notes_of(run: ScoredRun, waiting: NotScored) -> Iterator[str]:
    """What a report of the run's scores must say beside its figures."""
    if waiting.older:
        yield (
            f"{plural(waiting.older, 'score is', 'scores are')} for an older answer and left out; "
            f"batchrun score {run.name} scores the new ones"
        )
    if waiting.new:
        yield (
            f"{plural(waiting.new, 'answer is', 'answers are')} not scored yet and left out; "
            f"batchrun score {run.name} scores them"
        )
    if run.record is None or run.path is None:
        return
    if run.record.simulated:
        yield "the answers are simulated"
    said = so_far_in_words(run.record, state_now(run.path, run.record), run.stored)
    if said is not None:
        yield said
    if run.record.gone.rows:
        yield f"includes {plural(run.record.gone.rows, 'row')} no longer in the input"
