"""`RUN/scores/NAME/scores.parquet`: one row for each stored row and metric of a scorer.

A new file is written beside the old one and renamed. What of the old one still holds is copied.
Of a run in a store the new file goes there, and a stub takes its place here.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct

from batchrun.errors import StoreError
from batchrun.evals.scoring_worker import ERROR, VALUE, Scores
from batchrun.remote.run_upload import put_file
from batchrun.scoring.score import Score
from batchrun.store.columns import KEY, score_schema
from batchrun.store.files import storing, sync_path
from batchrun.store.parts import read_part

_GROUP_ROWS = 16_384
_REPEATING = ["scorer", "scorer_version", "metric", "reason", "variant", "scored_at"]
OF_ROW = ("row", *KEY, "response_id")  # columns that are as the row of `responses` says


class OldScores:
    """The scores of a file by what was scored; 17 bytes a row of it in memory."""

    def __init__(self, path: Path, version: str) -> None:
        """Of another version, or of a file that cannot be read, nothing holds."""
        self._path = path
        self._hashes = array("q")  # of each row of the file, in its order
        self.metrics: dict[str, None] = {}  # names, in the order of the file
        try:
            self.is_current = path.is_file() and self._read(version)
        except StoreError:
            self.is_current = False
        if not self.is_current:
            self._hashes, self.metrics = array("q"), {}
        self._sorted = array("q", sorted(self._hashes))
        self._kept = bytearray(len(self._sorted))

    def _read(self, version: str) -> bool:
        for batch in read_part(
            self._path, (*OF_ROW, "input_hash", "reason", "metric", "value", "scorer_version")
        ):
            versions = batch["scorer_version"].unique().to_pylist()
            if versions not in ([version], []):
                return False
            reasons = batch["reason"].to_pylist()
            hashes = map(
                hash, zip(*(batch[one].to_pylist() for one in (*OF_ROW, "input_hash")), strict=True)
            )
            # A row whose scorer raised is scored again.
            self._hashes.extend(
                0 if reason == ERROR else one for one, reason in zip(hashes, reasons, strict=True)
            )
            metrics = batch["metric"].filter(pc.is_valid(batch["value"]))
            self.metrics |= dict.fromkeys(metrics.unique().to_pylist())
        return True

    def has(self, key: tuple[Any, ...]) -> bool:
        """Whether the file has a score of this: `OF_ROW` and the hash of the input."""
        wanted = hash(key)
        at = bisect_left(self._sorted, wanted)
        return at < len(self._sorted) and self._sorted[at] == wanted != 0

    def keep(self, key: tuple[Any, ...]) -> bool:
        """The same; then it stays."""
        wanted = hash(key)
        at = bisect_left(self._sorted, wanted)
        found = at < len(self._sorted) and self._sorted[at] == wanted != 0
        while at < len(self._sorted) and self._sorted[at] == wanted:
            self._kept[at] = 1
            at += 1
        return found

    @property
    def all_kept(self) -> bool:
        return self._kept.count(0) == 0

    def kept_batches(self) -> Iterator[pa.RecordBatch]:
        """The rows that stay. Raises `StoreError`."""
        if not self._kept.count(1):
            return
        first = 0
        for batch in read_part(self._path, None):
            hashes = self._hashes[first : first + batch.num_rows]
            mask = [bool(self._kept[bisect_left(self._sorted, one)]) for one in hashes]
            first += batch.num_rows
            yield batch.filter(pa.array(mask))


class Tally(Struct):
    """What the scores of one metric add up to."""

    rows: int = 0
    scored: int = 0
    passed: int = 0
    total: float = 0.0  # of the values
    in_bounds: bool = True  # no value is below 0 or above 1

    @property
    def mean(self) -> float | None:
        """Of the rows that have a score."""
        return self.total / self.scored if self.scored else None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The mean if all rows without a score were wrong, and if all were right.

        Null where values are not all from 0 to 1.
        """
        if not self.in_bounds or not self.rows:
            return None
        return self.total / self.rows, (self.total + self.rows - self.scored) / self.rows


class ScoreFile:
    """The new file of one scorer; `begin` comes first, `commit` makes it count."""

    def __init__(
        self, path: Path, scorer: str, version: str, threshold: float, scored_at: int
    ) -> None:
        """`scored_at`: microseconds since 1970."""
        self.path = path
        self.raised = 0  # rows whose scorer raised
        self.fresh = 0  # rows that were scored now
        self._new = path.with_name(".scores.parquet.tmp")
        self._pending = path.with_name(".pending.parquet.tmp")  # rows without a score
        self._constant = {"scorer": scorer, "scorer_version": version}
        self._threshold, self._scored_at = threshold, scored_at
        self._schema = score_schema()
        self._metrics: dict[str, None] = {}
        self._writers: dict[Path, tuple[pq.ParquetWriter, list[pa.RecordBatch]]] = {}

    def begin(self) -> None:
        """Anew, where it was begun before. Raises `StoreError`."""
        self.drop()
        self.raised = self.fresh = 0
        self._metrics = {}
        with storing(self.path.parent, "make this directory"):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def drop(self) -> None:
        """What was written and does not count is gone, unless it cannot be removed."""
        for writer, _ in self._writers.values():
            with suppress(OSError, pa.ArrowException):
                writer.close()
        self._writers = {}
        for path in (self._new, self._pending):
            with suppress(OSError):
                path.unlink()

    def know(self, metrics: Iterable[str]) -> None:
        """Metrics of scores that are copied."""
        self._metrics |= dict.fromkeys(metrics)

    def add_single(
        self,
        rows: pa.RecordBatch,
        scores: Sequence[Score],
        targets: Sequence[str | None],
        hashes: Sequence[str],
    ) -> None:
        """The scores of these rows, by the one metric that there is."""
        self._metrics = self._metrics or {VALUE: None}
        self.fresh += len(scores)
        self._add(self._new, rows, VALUE, scores, targets, hashes)

    def add(
        self,
        rows: pa.RecordBatch,
        scores: Sequence[Scores],
        targets: Sequence[str | None],
        hashes: Sequence[str],
    ) -> None:
        """The same by the metrics that a function names, which are the same for all rows."""
        by_metric: dict[str, list[tuple[int, Score]]] = {}
        missing: list[tuple[int, Score]] = []
        for at, one in enumerate(scores):
            if all(score.value is None for score in one.values()):
                missing.append((at, next(iter(one.values()))))
                continue
            self._metrics = self._metrics or dict.fromkeys(one)
            if one.keys() != self._metrics.keys():
                named, known = ", ".join(one), ", ".join(self._metrics)
                said = f"it named the metrics {named}, and for other rows {known}"
                missing.append((at, Score(None, None, ERROR, said)))
                continue
            for metric, score in one.items():
                by_metric.setdefault(metric, []).append((at, score))
        self.fresh += len(scores)
        pieces = [(self._new, metric, some) for metric, some in by_metric.items()]
        for path, metric, some in (*pieces, (self._pending, VALUE, missing)):
            if some:
                places = [at for at, _ in some]
                self._add(
                    path,
                    rows.take(pa.array(places)),
                    metric,
                    [score for _, score in some],
                    [targets[at] for at in places],
                    [hashes[at] for at in places],
                )

    def _add(
        self,
        path: Path,
        rows: pa.RecordBatch,
        metric: str,
        scores: Sequence[Score],
        targets: Sequence[str | None],
        hashes: Sequence[str],
    ) -> None:
        if not scores:
            return
        count = len(scores)
        values, answers, reasons, explanations, metadata, parts = zip(*scores, strict=True)
        if any(parts):
            targets = [
                all_of_it if part is None else part
                for all_of_it, part in zip(targets, parts, strict=True)
            ]
        self.raised += reasons.count(ERROR)
        value = pa.array(values, pa.float64())
        made = {
            **{name: rows[name] for name in OF_ROW},
            **{name: pa.repeat(text, count) for name, text in self._constant.items()},
            "metric": pa.repeat(metric, count),
            "value": value,
            "passed": pc.greater_equal(value, self._threshold),
            "answer": pa.array(answers, pa.string()),
            "target": pa.array(targets, pa.string()),
            "reason": pa.array(reasons, pa.string()),
            "explanation": pa.array(explanations, pa.string()),
            "metadata": pa.array(metadata, pa.string()),
            "input_hash": pa.array(hashes, pa.string()),
            "scored_at": pa.repeat(
                pa.scalar(self._scored_at, self._schema.field("scored_at").type), count
            ),
        }
        arrays = [
            made[one.name] if one.name in made else pa.nulls(count, one.type)
            for one in self._schema
        ]
        self._write(path, pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def _write(self, path: Path, batch: pa.RecordBatch) -> None:
        with storing(path, "write"):
            if path not in self._writers:
                writer = pq.ParquetWriter(
                    path,
                    self._schema,
                    compression="zstd",
                    compression_level=1,
                    use_dictionary=_REPEATING,
                    write_page_checksum=True,
                )
                self._writers[path] = writer, []
            writer, batches = self._writers[path]
            batches.append(batch)
            if sum(one.num_rows for one in batches) >= _GROUP_ROWS:
                self._flush(path)

    def _flush(self, path: Path) -> None:
        writer, batches = self._writers[path]
        if batches:
            writer.write_table(pa.Table.from_batches(batches), row_group_size=2 * _GROUP_ROWS)
            batches.clear()

    def finish(self, old: OldScores) -> bool:
        """The file is whole and on disk, with what stays of `old`. Raises `StoreError`.

        False where there is nothing new: then there is no file either.
        """
        if not self.fresh and old.is_current and old.all_kept:
            return False
        for batch in old.kept_batches():
            self._write(self._new, batch)
        if self._pending in self._writers:
            with storing(self._pending, "write"):
                self._flush(self._pending)
                self._writers.pop(self._pending)[0].close()
            for metric in self._metrics or (VALUE,):
                for batch in read_part(self._pending, None):
                    at = self._schema.get_field_index("metric")
                    named = batch.set_column(at, "metric", pa.repeat(metric, batch.num_rows))
                    self._write(self._new, named)
        if self._new not in self._writers:
            self._write(self._new, pa.RecordBatch.from_pylist([], self._schema))
        with storing(self._new, "write"):
            self._flush(self._new)
            self._writers.pop(self._new)[0].close()
            sync_path(self._new)
        return True

    def tallies(self, *, is_new: bool) -> dict[str, Tally]:
        """What the scores add up to, of the new file before `commit`. Raises `StoreError`."""
        return read_tallies(self._new if is_new else self.path)

    def commit(self, run: Path | None) -> None:
        """The new file is in place of the old one. Raises `StoreError`.

        `run`: the run directory; null: the scores are of none.
        """
        with storing(self.path, "write"):
            if run is not None:
                put_file(run, str(self.path.relative_to(run)), self._new)
            self._new.replace(self.path)
            sync_path(self.path.parent)


def read_tallies(path: Path) -> dict[str, Tally]:
    """What a file adds up to, by metric. Raises `StoreError`."""
    found: dict[str, Tally] = {}
    for batch in read_part(path, ("metric", "value", "passed")):
        for metric in batch["metric"].unique().to_pylist():
            some = batch.filter(pc.equal(batch["metric"], metric))
            values = some["value"].drop_null()
            tally = found.setdefault(metric, Tally())
            tally.rows += some.num_rows
            tally.scored += len(values)
            tally.passed += pc.sum(some["passed"]).as_py() or 0
            tally.total += pc.sum(values).as_py() or 0.0
            if len(values):
                least, most = pc.min_max(values).as_py().values()
                tally.in_bounds = tally.in_bounds and least >= 0 and most <= 1
    return found
