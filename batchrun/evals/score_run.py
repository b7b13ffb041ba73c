"""`batchrun score`: the answers of a run scored, and scored again where something changed.

Scoring reads what the run has stored and sends nothing; the run may still be going on. All files
are written before the first takes the place of an older one.
"""

import fcntl
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from batchrun.errors import JobError
from batchrun.evals.answer_sources import AnswerSource, Batches, RunAnswers, TableAnswers
from batchrun.evals.answers import Answer, ScoringInputs
from batchrun.evals.rules import (
    Scorer,
    make_scorer,
    may_hang,
    rule_version,
    with_target,
    written_target,
)
from batchrun.evals.score_files import OF_ROW, OldScores, ScoreFile, Tally
from batchrun.evals.scoring_worker import VALUE, Scores, failed
from batchrun.evals.worker_pool import WorkerPool
from batchrun.formats.json_text import encode_json, shown
from batchrun.formats.printable import nearest
from batchrun.job.job_file import load_scorers, read_scorers
from batchrun.job.scorer_sections import PythonJob, ScorerJob
from batchrun.records import RunRecord
from batchrun.remote.run_link import run_name
from batchrun.remote.urls import is_store
from batchrun.scoring.score import BadTarget, Score
from batchrun.store.columns import score_schema
from batchrun.store.files import SCORES, SCORES_FILE, storing
from batchrun.store.reading import read_record, run_folder

Scorers = str | Path | Sequence[Mapping[str, Any]]  # a file, or tables as it has them
_LOCK = "lock"
_SENT_ROWS = 256  # to a process at a time, ...
_SENT_BYTES = 1 << 20  # ... or so many bytes
_HASH_DIGITS = 16


class ScorerResult(Struct, frozen=True):
    """What one scorer made of a run."""

    name: str
    path: Path | str  # of its scores; of a run in a store their URL
    metrics: Mapping[str, Tally]
    fresh: int  # rows that were scored now
    raised: int  # of these, rows whose scorer raised
    corrections: str = ""  # what a file with some of the targets has changed, in words


@overload
def score(run: pa.Table, scorers: Scorers) -> pa.Table: ...


@overload
def score(
    run: str | Path,
    scorers: Scorers | None = None,
    *,
    only: Sequence[str] = (),
    again: bool = False,
    doing: Callable[[str], None] = ...,
) -> list[ScorerResult]: ...


def score(
    run: str | Path | pa.Table,
    scorers: Scorers | None = None,
    *,
    only: Sequence[str] = (),
    again: bool = False,
    doing: Callable[[str], None] = lambda _what: None,
) -> list[ScorerResult] | pa.Table:
    """Scores the rows of a run that are stored so far, or those of a table of answers.

    A run is a run directory, or the URL of one in a store.

    `scorers`: a file with `[[scorers]]`, or tables as such a file has; null: those of the run's job
    file, read again, or as they were if it is gone. `only`: the scorers of these names. Rows whose
    rule and input are the same as before keep their scores, unless `again`. `doing` is told in
    words what is done.

    A table has `custom_id`, `output_text` and the columns that the scorers name, and perhaps
    `sample`, `variant` and `status`; its scores are returned, with the columns of scores.parquet.

    Raises `JobError` (nothing is overwritten then), `InputError`, `StoreError`.
    """
    if isinstance(run, pa.Table):
        jobs = _chosen(_declared(scorers or ()), only)
        with tempfile.TemporaryDirectory(prefix="batchrun-") as folder:
            results = _score(jobs, TableAnswers(run), Path(folder), doing, again=True)
            tables = [pq.read_table(one.path) for one in results]
        return pa.concat_tables(tables) if tables else score_schema().empty_table()
    if is_store(str(run)):
        with run_folder(str(run), scores=True) as folder:
            return score(folder, scorers, only=only, again=again, doing=doing)
    path = Path(run)
    record = read_record(path)
    jobs = _chosen(_scorers_of(record, scorers, path), only)
    with _alone(path / SCORES):
        return _score(jobs, RunAnswers(path, record), path / SCORES, doing, again=again, run=path)


def _score(
    jobs: Sequence[ScorerJob],
    source: AnswerSource,
    folder: Path,
    doing: Callable[[str], None],
    *,
    again: bool,
    run: Path | None = None,
) -> list[ScorerResult]:
    with ExitStack() as stack:
        # What cannot be is known before anything is scored.
        made = [
            stack.enter_context(_Scoring(one, source, folder, doing, again=again)) for one in jobs
        ]
        changed = [one.score() for one in made]
        results = [
            one.result(run, is_new=is_new) for one, is_new in zip(made, changed, strict=True)
        ]
        for one, is_new in zip(made, changed, strict=True):
            if is_new:
                one.file.commit(run)
        return results


def _declared(given: Scorers) -> tuple[ScorerJob, ...]:
    """Raises `JobError`."""
    if isinstance(given, str | Path):
        return load_scorers(Path(given))
    return read_scorers([*map(dict, given)], "scorers", Path())


def _scorers_of(record: RunRecord, given: Scorers | None, run: Path) -> tuple[ScorerJob, ...]:
    """Raises `JobError` where there are none."""
    if given is not None:
        found = _declared(given)
        where = str(given) if isinstance(given, str | Path) else "the list"
    else:
        file = record.job.get("file")
        where = str(file) if file else f"the job of {run_name(run)}"
        if file and Path(file).is_file():
            found = load_scorers(Path(file))
        else:
            found = read_scorers(record.job.get("scorers") or [], where, Path())
    if not found:
        raise JobError(
            f"{where}: it has no [[scorers]]; add some there, or name a file: "
            f"batchrun score {run_name(run)} FILE.toml"
        )
    return found


def _chosen(jobs: Sequence[ScorerJob], only: Sequence[str]) -> list[ScorerJob]:
    names = [one.name for one in jobs]
    for name in only:
        if name not in names:
            raise JobError(f"there is no scorer {shown(name)}; {nearest(name, names, 'scorers')}")
    return [one for one in jobs if not only or one.name in only]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other command scores this run. Raises `JobError` where one does, `StoreError`."""
    with storing(folder, "make this directory"):
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = (folder / _LOCK).open("wb")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError(
                f"{run_name(folder.parent)}: another command scores it; wait until that has ended"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


class _Scoring:
    """One scorer at work on a run. Raises `JobError` where it cannot be."""

    def __init__(
        self,
        job: ScorerJob,
        source: AnswerSource,
        folder: Path,
        doing: Callable[[str], None],
        *,
        again: bool,
    ) -> None:
        self._doing = doing
        self._seen = 0  # rows
        self._job, self._source = with_target(job), source
        self._reader = ScoringInputs(job, source)
        self._version = rule_version(job)
        self._again = again
        self._is_grouped = isinstance(job, PythonJob) and job.rows != "one"
        path, now_at = folder / job.name / SCORES_FILE, time.time_ns() // 1000
        self.file = ScoreFile(path, job.name, self._version, job.threshold, now_at)
        self._pool: WorkerPool | None = None
        self._score = None if may_hang(job) else make_scorer(job)

    def __enter__(self) -> Self:
        if self._score is None:
            self._pool = WorkerPool(self._job)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()
        self.file.drop()

    def score(self) -> bool:
        """Whether there is a new file, which does not count yet. `JobError`, `StoreError`."""
        if self._is_grouped:
            assert isinstance(self._job, PythonJob)  # noqa: S101 - no other kind is
            by = ("custom_id", "variant", "sample")
            if self._job.rows == "variants":
                by = ("custom_id", "sample", "variant")
            return self._source.read_groups(by, self._scored_in_groups)
        return self._source.read(self._reader.schema, self._scored)

    def result(self, run: Path | None, *, is_new: bool) -> ScorerResult:
        path: Path | str = self.file.path
        if run is not None and run_name(run) != str(run):
            path = f"{run_name(run)}/{self.file.path.relative_to(run)}"
        return ScorerResult(
            self._job.name,
            path,
            self.file.tallies(is_new=is_new),
            self.file.fresh,
            self.file.raised,
            self._reader.corrections,
        )

    def _scored(self, batches: Batches) -> bool:
        old = self._begin()
        if self._pool is None:
            assert self._score is not None  # noqa: S101 - made where there is no pool
            for batch in batches:
                self._score_here(self._changed(self._piece(batch), old), self._score)
            return self.file.finish(old)
        small = (piece for batch in batches for piece in _small(batch))
        pieces = (self._changed(self._piece(batch), old) for batch in small)
        self._score_in_processes(self._pool, ((piece, piece.to_score()) for piece in pieces))
        return self.file.finish(old)

    def _scored_in_groups(self, groups: Batches) -> bool:
        old = self._begin()
        assert self._pool is not None  # noqa: S101 - functions run in processes
        pieces = (self._changed_group(self._piece(group), old) for group in groups)
        self._score_in_processes(
            self._pool, ((piece, [piece.to_score()] if piece.answered else []) for piece in pieces)
        )
        return self.file.finish(old)

    def _begin(self) -> OldScores:
        """Also where it begins again, since a seal has replaced a part meanwhile."""
        self.file.begin()
        self._seen = 0
        if self._pool is not None and self._pool.is_closed:
            self._pool = WorkerPool(self._job)
        old = OldScores(self.file.path, "" if self._again else self._version)
        self.file.know(old.metrics)
        return old

    def _piece(self, batch: pa.RecordBatch) -> "_Piece":
        self._doing(f"{self._job.name}, {self._seen:,} rows so far")
        self._seen += batch.num_rows
        answers = self._reader.answers(batch)
        unscored = zip(batch["status"].to_pylist(), batch["error_kind"].to_pylist(), strict=True)
        items = [
            Score(None, None, status, kind) if answer is None else answer
            for answer, (status, kind) in zip(answers, unscored, strict=True)
        ]
        return _Piece(batch.select(OF_ROW), items, list(map(_input_hash, items)))

    def _changed(self, piece: "_Piece", old: OldScores) -> "_Piece":
        """The rows that have no score in `old`."""
        if not old.is_current:
            return piece
        new = [at for at, key in enumerate(piece.keys()) if not old.keep(key)]
        return piece if len(new) == len(piece.items) else piece.take(new)

    def _changed_group(self, piece: "_Piece", old: OldScores) -> "_Piece":
        """The rows of a group, or none where all of them are as they were."""
        together = hashlib.sha256("".join(piece.hashes).encode()).hexdigest()[:_HASH_DIGITS]
        piece = piece._replace(hashes=[together] * len(piece.hashes))
        keys = list(piece.keys())
        if old.is_current and all(map(old.has, keys)):
            for key in keys:
                old.keep(key)
            return piece.take([])
        return piece

    def _score_here(self, piece: "_Piece", score: Scorer) -> None:
        scores: list[Score] = []
        for item in piece.items:
            if type(item) is Score:
                scores.append(item)
                continue
            try:
                scores.append(score(*item))
            except BadTarget as error:
                raise self._bad_target(piece, len(scores), error) from None
            except Exception as error:  # noqa: BLE001 - whatever it is costs one row
                scores.append(failed(f"{type(error).__name__}: {error}"))
        self.file.add_single(piece.rows, scores, piece.targets(), piece.hashes)

    def _score_in_processes(
        self, pool: WorkerPool, lists: Iterable[tuple["_Piece", Sequence[Any]]]
    ) -> None:
        for piece, made in pool.scores(lists):
            if self._is_grouped and made:  # one result for each, or one that is for all
                (of_group,) = made
                made = [of_group] * piece.answered if isinstance(of_group, dict) else of_group  # noqa: PLW2901
            results = iter(made)
            scores: list[Scores] = []
            for item in piece.items:
                one = {VALUE: item} if type(item) is Score else next(results)
                if isinstance(one, BadTarget):
                    raise self._bad_target(piece, len(scores), one)
                scores.append(one)
            self.file.add(piece.rows, scores, piece.targets(), piece.hashes)

    def _bad_target(self, piece: "_Piece", at: int, error: BadTarget) -> JobError:
        row = piece.rows["custom_id"][at].as_py()
        return JobError(
            f"scorer {self._job.name}: row {shown(row, 80)}: {error}. Nothing is scored; correct "
            'it, or give targets from a file: targets = { file = "labels.jsonl", id = "id", '
            'column = "answer" }'
        )


def _small(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in pieces that are sent to a process at once."""
    rows = max(1, min(_SENT_ROWS, _SENT_BYTES * batch.num_rows // max(batch.nbytes, 1)))
    for at in range(0, batch.num_rows, rows):
        yield batch.slice(at, rows)


class _Piece(NamedTuple):
    """Some rows, with what is scored of each; rows without an answer have their score already."""

    rows: pa.RecordBatch  # the columns `OF_ROW`
    items: Sequence[Answer | Score]
    hashes: Sequence[str]

    def keys(self) -> Iterator[tuple[Any, ...]]:
        """By which a score is found again."""
        return zip(*(column.to_pylist() for column in self.rows.columns), self.hashes, strict=True)

    def take(self, places: Sequence[int]) -> "_Piece":
        return _Piece(
            self.rows.take(pa.array(places, pa.int64())),
            [self.items[at] for at in places],
            [self.hashes[at] for at in places],
        )

    def to_score(self) -> list[Any]:
        """What is sent to a process."""
        return [tuple(item) for item in self.items if type(item) is not Score]

    def targets(self) -> list[str | None]:
        return [None if type(item) is Score else written_target(item.target) for item in self.items]

    @property
    def answered(self) -> int:
        """Of rows with an answer."""
        return sum(type(item) is not Score for item in self.items)


def _input_hash(item: Answer | Score) -> str:
    """Of what is scored, or of why it is not."""
    if type(item) is Score:
        said = f"{item.reason} {item.explanation}"
    else:
        text, target, extra = item  # type: ignore[misc] # an answer
        written = target if type(target) is str else encode_json(target).decode()
        said = f"{len(text)} {text}{written}"
        if extra is not None:
            said = f"{said}\0{encode_json(extra).decode()}"
    return hashlib.sha256(said.encode("utf-8", "replace")).hexdigest()[:_HASH_DIGITS]
