"""Where each row and each tool call stands, in a database on disk, and what of it does not agree.

Memory is bounded whatever the number of rows.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from batchrun.records import Outcome, Response
from batchrun.store.keys import KEY

ANSWERS = ("row", *KEY, "response_id", "tool_call_count")
CALLS = ("row", *KEY, "response_id", "position")
_SHOWN = 10  # of each thing that does not hold
_AT_ONCE = 10_000  # rows of a journal
_MEMORY = "1GB"
_TABLES = f"""
CREATE TABLE answers (file INTEGER, place BIGINT, "row" BIGINT, custom_id VARCHAR, sample INTEGER,
                      variant VARCHAR, response_id VARCHAR, tool_call_count INTEGER);
CREATE TABLE calls (file INTEGER, place BIGINT, "row" BIGINT, custom_id VARCHAR, sample INTEGER,
                    variant VARCHAR, response_id VARCHAR, position INTEGER);
CREATE TABLE kept (file INTEGER, place BIGINT, "row" BIGINT, custom_id VARCHAR, sample INTEGER,
                   variant VARCHAR, replaces BOOLEAN);
SET memory_limit = '{_MEMORY}';
SET preserve_insertion_order = false;
"""
# A variant of null is kept as empty text: SQL joins no nulls.
# The rows of parts that count: those that no record of the journal replaces.
_STANDING = """
CREATE TABLE replaced AS SELECT DISTINCT custom_id, sample, variant FROM kept WHERE replaces;
CREATE VIEW rows_in_parts AS SELECT * FROM answers
    ANTI JOIN replaced USING (custom_id, sample, variant);
CREATE VIEW calls_in_parts AS SELECT * FROM calls
    ANTI JOIN replaced USING (custom_id, sample, variant);
CREATE VIEW places AS SELECT file, place, "row", custom_id, sample, variant FROM rows_in_parts
    UNION ALL SELECT file, place, "row", custom_id, sample, variant FROM kept;
"""
_CHECKS = {
    "it stands {2} times, first in {file_3} (row {4} of it)": """
        SELECT max(file), arg_max(place, file * 1000000000000 + place), count(*),
               min(file), arg_min(place, file * 1000000000000 + place), any_value("row"), custom_id
        FROM places GROUP BY custom_id, sample, variant HAVING count(*) > 1""",
    "`row` or its key is missing or negative": """
        SELECT file, place, 0, 0, 0, "row", custom_id FROM places
        WHERE "row" IS NULL OR "row" < 0 OR custom_id IS NULL OR sample IS NULL OR sample < 0""",
    "tool_call_count is {2}, and tool_calls has {3}": """
        SELECT file, place, coalesce(tool_call_count, 0), coalesce(found, 0), 0, "row", custom_id
        FROM rows_in_parts LEFT JOIN
            (SELECT custom_id, sample, variant, count(*) AS found FROM calls_in_parts GROUP BY ALL)
            USING (custom_id, sample, variant)
        WHERE coalesce(tool_call_count, 0) <> coalesce(found, 0)""",
    "this tool call belongs to no row of responses": """
        SELECT file, place, 0, 0, 0, "row", custom_id
        FROM calls_in_parts ANTI JOIN rows_in_parts USING (custom_id, sample, variant)""",
    "`row` or response_id of this tool call is not that of its row": """
        SELECT c.file, c.place, 0, 0, 0, c."row", c.custom_id
        FROM calls_in_parts c JOIN rows_in_parts r USING (custom_id, sample, variant)
        WHERE c."row" IS DISTINCT FROM r."row" OR c.response_id IS DISTINCT FROM r.response_id""",
    "{2} tool calls of this row have the position {3}": """
        SELECT min(file), min(place), count(*), position, 0, any_value("row"), custom_id
        FROM calls_in_parts GROUP BY custom_id, sample, variant, position HAVING count(*) > 1""",
}


class Ledger:
    """Filled part by part and segment by segment, then asked."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes the database; it may be deleted afterwards."""
        self._files: list[str] = []
        self._database = duckdb.connect(str(folder / "ledger.duckdb"))
        self._database.execute(_TABLES)
        self._database.execute("SET temp_directory = ?", [str(folder)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()

    def add_file(self, name: str) -> int:
        """The number that stands for a file from now on."""
        self._files.append(name)
        return len(self._files) - 1

    def add_batch(self, file: int, first: int, batch: pa.RecordBatch, *, calls: bool) -> None:
        """Rows of a part, the first of them at place `first`."""
        if not batch.num_rows:
            return
        columns = CALLS if calls else ANSWERS
        places = pa.array(range(first, first + batch.num_rows), pa.int64())
        self._insert(
            "calls" if calls else "answers",
            [
                pa.repeat(pa.scalar(file, pa.int32()), batch.num_rows),
                places,
                *(
                    pc.fill_null(batch[name], "") if name == "variant" else batch[name]
                    for name in columns
                ),
            ],
        )

    def add_outcomes(self, file: int, outcomes: Iterable[Outcome]) -> None:
        """Rows of a journal segment."""
        rows: list[tuple[Any, ...]] = []
        for place, outcome in enumerate(outcomes):
            request = outcome.request
            custom_id, sample, variant = request.key
            key = (request.row, custom_id, sample, variant or "")
            rows.append((file, place, *key, outcome.replaces))
            if len(rows) == _AT_ONCE:
                self._insert("kept", [pa.array(column) for column in zip(*rows, strict=True)])
                rows = []
        if rows:
            self._insert("kept", [pa.array(column) for column in zip(*rows, strict=True)])

    def problems(self) -> Iterator[str]:
        """What does not agree, by file and row; the first ten of each."""
        self._database.execute(_STANDING)
        for said, sql in _CHECKS.items():
            counted = self._database.execute(f"SELECT count(*) FROM ({sql})").fetchone()  # noqa: S608 - our own words
            count = counted[0] if counted else 0
            found = self._database.execute(f"{sql} ORDER BY 1, 2 LIMIT {_SHOWN}").fetchall()
            for file, place, *numbers, row, custom_id in found:
                words = {"file_3": self._files[numbers[1]]} if "file_3" in said else {}
                text = said.format(None, None, *numbers, **words)
                where = f"{self._files[file]}, row {place} of it"
                yield f"{where}: row {row} ({_short(custom_id)}): {text}"
            if count > len(found):
                yield f"and {count - len(found):,} more of the last"

    def counts(self) -> tuple[int, int, int]:
        """Rows that stand in parts, tool calls that do, rows in the journal; after `problems`."""
        counted = self._database.execute(
            "SELECT (SELECT count(*) FROM rows_in_parts), (SELECT count(*) FROM calls_in_parts), "
            "(SELECT count(*) FROM kept)"
        ).fetchone()
        assert counted is not None  # noqa: S101 - it has one row whatever the tables hold
        return counted[0], counted[1], counted[2]

    def _insert(self, table: str, columns: list[pa.Array]) -> None:
        batch = pa.table(columns, names=[str(at) for at in range(len(columns))])
        self._database.register("batch", batch)
        self._database.execute(f"INSERT INTO {table} SELECT * FROM batch")  # noqa: S608 - our own words
        self._database.unregister("batch")


def calls_of(outcome: Outcome) -> int:
    return len(outcome.result.tool_calls) if isinstance(outcome.result, Response) else 0


def _short(custom_id: str | None) -> str:
    return "without a name" if custom_id is None else custom_id[:60]
