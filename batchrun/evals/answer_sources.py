"""Where answers come from: the rows of a run, in parts and journal, or a table of the caller."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import duckdb
import pyarrow as pa

from batchrun.errors import JobError
from batchrun.formats.printable import listed
from batchrun.records import RunRecord
from batchrun.remote.run_link import run_name
from batchrun.reports.ordered_rows import in_order
from batchrun.reports.sql import Files, connected, read_files, select_of, unreadable
from batchrun.store.columns import NO_COLUMNS, new_names, response_batch, response_schema
from batchrun.store.parts import opened, slices
from batchrun.store.snapshot import Snapshot, read_snapshot

T = TypeVar("T")
Batches = Iterator[pa.RecordBatch]
_BATCH_ROWS = 256  # of whole rows in memory
_BATCH_BYTES = 8 << 20  # in memory, of the columns that are asked for
_TABLE_ROWS = 16_384  # of a table's columns as Python values


class AnswerSource(Protocol):
    """Rows with the columns of `responses`, carried ones included."""

    name: str  # as messages call it
    schema: pa.Schema
    of_json: Collection[str]  # carried columns that hold JSON text

    def read(self, schema: pa.Schema, use: Callable[[Batches], T]) -> T:
        """What `use` makes of all rows, with these columns; it may be called again."""

    def read_groups(self, by: Sequence[str], use: Callable[[Batches], T]) -> T:
        """The same of whole rows, in batches whose rows have the first columns of `by` in common.

        In the order of all of them.
        """


class RunAnswers:
    """The rows that a run directory holds so far. Raises `JobError` where it is none."""

    def __init__(self, run: Path, record: RunRecord) -> None:
        self.name = f"the run {run_name(run)}"
        self.schema = response_schema(record.layout, record.schema_version)
        json_columns = (one.name for one in record.layout.columns if one.type == "json")
        self.of_json: Collection[str] = frozenset(json_columns)
        self._run, self._record = run, record

    def read(self, schema: pa.Schema, use: Callable[[Batches], T]) -> T:
        """Raises `StoreError` and what `use` raises."""
        return read_snapshot(self._run, lambda now: use(self._batches(now, schema)))

    def read_groups(self, by: Sequence[str], use: Callable[[Batches], T]) -> T:
        """Raises `JobError`, `StoreError` and what `use` raises."""

        def read(files: Files) -> T:
            with connected(files.temporary) as database:
                try:
                    if not _are_apart(files, database):
                        return use(_whole_groups(_by_row(files, by), by[:-1]))
                    return use(_whole_groups(_sorted(files, database, by), by[:-1]))
                except duckdb.Error as error:
                    raise unreadable(self._run, error) from error

        return read_files(self._run, read)

    def _batches(self, now: Snapshot, schema: pa.Schema) -> Batches:
        """First those in parts, then those in the journal. Raises `StoreError`."""
        record, layout = self._record, self._record.layout
        for path in now.responses:
            with opened(path) as part:
                renamed = new_names(part.schema_arrow, layout)
                of_part = {renamed.get(name, name): name for name in part.schema_arrow.names}
            wanted = [of_part[name] for name in schema.names if name in of_part]
            for batch in now.part_batches(path, wanted, _BATCH_BYTES):
                arrays = [
                    batch[of_part[one.name]].cast(one.type)
                    if one.name in of_part
                    else pa.nulls(batch.num_rows, one.type)
                    for one in schema
                ]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        for some in slices(now.outcomes()):
            yield response_batch(
                some,
                layout,
                record.schema_version,
                store_request=record.store_request,
                names=schema.names,
            )


def _are_apart(files: Files, database: duckdb.DuckDBPyConnection) -> bool:
    """Whether rows of one id have several numbers: the input's order changed between commands."""
    rows = select_of(files.responses, database)
    found = database.sql(
        f'SELECT 1 FROM ({rows}) GROUP BY custom_id HAVING min("row") <> max("row") LIMIT 1'  # noqa: S608
    )
    return bool(found.fetchall())


def _by_row(files: Files, by: Sequence[str]) -> Batches:
    """All rows by number, a window of the input at a time, and within it in the order of `by`."""
    order = [(name, "ascending") for name in ("row", *by)]
    for window in in_order(files.responses):
        yield from window.sort_by(order).combine_chunks().to_batches()


def _sorted(files: Files, database: duckdb.DuckDBPyConnection, by: Sequence[str]) -> Batches:
    """All rows in the order of `by`, on disk where they do not fit. Raises `duckdb.Error`."""
    database.execute("SET TimeZone = 'UTC'")
    rows = f"({select_of(files.responses, database)}) ORDER BY {', '.join(by)}"
    result = database.sql(f"SELECT * FROM {rows}")  # noqa: S608 - our own words
    # Releases of DuckDB know the one or the other.
    read: Any = getattr(result, "to_arrow_reader", None) or result.fetch_arrow_reader
    yield from read(_BATCH_ROWS)


class TableAnswers:
    """A table of answers: `custom_id`, `output_text`, and whatever a scorer asks for.

    Without `sample`, `variant` and `status` its rows are the only, completed answers.
    """

    def __init__(self, table: pa.Table) -> None:
        """Raises `JobError` where there is no `custom_id`."""
        if "custom_id" not in table.column_names:
            raise JobError(
                "a table of answers needs the column custom_id; it has "
                f"{listed(table.column_names)}"
            )
        count = table.num_rows
        own = _own_schema(("row", "sample", "variant", "status", "error_kind", "response_id"))
        fillers = {
            "row": pa.array(range(count), pa.int64()),
            "sample": pa.repeat(pa.scalar(0, pa.int32()), count),
            "status": pa.repeat("completed", count),
        }
        for field in own:
            if field.name not in table.column_names:
                column = fillers.get(field.name, pa.nulls(count, field.type))
                table = table.append_column(field, column)
        at = table.column_names.index("custom_id")
        self._table = table.set_column(at, "custom_id", table["custom_id"].cast(pa.string()))
        for field in own:
            at = self._table.column_names.index(field.name)
            self._table = self._table.set_column(
                at, field, self._table[field.name].cast(field.type)
            )
        self.name = "the table"
        self.schema = self._table.schema
        self.of_json: Collection[str] = ()

    def read(self, schema: pa.Schema, use: Callable[[Batches], T]) -> T:
        """Raises what `use` raises."""
        return use(iter(self._table.select(schema.names).to_batches(_TABLE_ROWS)))

    def read_groups(self, by: Sequence[str], use: Callable[[Batches], T]) -> T:
        """Raises what `use` raises."""
        ordered = self._table.sort_by([(name, "ascending") for name in by])
        return use(_whole_groups(ordered.to_batches(_BATCH_ROWS), by[:-1]))


def _own_schema(names: Sequence[str]) -> pa.Schema:
    """Columns of `responses` that every run has."""
    schema = response_schema(NO_COLUMNS)
    return pa.schema([schema.field(name) for name in names])


def _whole_groups(batches: Iterable[pa.RecordBatch], by: Sequence[str]) -> Batches:
    """The rows with the same values of these columns, which stand together, as a batch each."""
    rest: pa.RecordBatch | None = None
    for batch in batches:
        whole = batch if rest is None else pa.concat_batches([rest, batch])
        keys = list(zip(*(whole[name].to_pylist() for name in by), strict=True))
        start = 0
        for at in range(1, len(keys)):
            if keys[at] != keys[start]:
                yield whole.slice(start, at - start)
                start = at
        rest = whole.slice(start)
    if rest is not None and rest.num_rows:
        yield rest
