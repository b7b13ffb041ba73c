"""Which rows a DuckDB expression over their columns leaves out.

Parquet files are asked as they are, in their own types; of those that are not on this machine the
columns that the expression names are copied. Of JSON rows the columns that the
expression names are written into a temporary file, whose types DuckDB finds itself.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb

from batchrun.errors import InputError, JobError
from batchrun.formats.printable import cut, nearest
from batchrun.inputs.parquet import copy_columns, read_columns
from batchrun.inputs.rows import SourceFile, SourceRow, decode, encode_leniently

Span = tuple[SourceFile, int, int]  # a file, its first row, how many it has
_NUMBER = "batchrun_row"
_AT_ONCE = 50_000
_SHOWN = 300  # characters of what DuckDB says
_MOST_BYTES = 1 << 30  # of one row


class RowFilter:
    """One expression. Raises `JobError` where it cannot be read."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        with duckdb.connect() as self._database:
            self.columns = frozenset(_roots(self._parsed()))

    def _parsed(self) -> Any:
        query = f"SELECT 1 WHERE ({self._expression}\n)"
        found = self._database.execute("SELECT json_serialize_sql(?)", [query]).fetchone()
        tree = decode(found[0] if found else "{}")
        nodes = [one["node"] for one in tree.get("statements", ())]
        if tree.get("error") or [node.get("type") for node in nodes] != ["SELECT_NODE"]:
            raise JobError(
                f"--where (where in [input]) is not a condition in SQL: "
                f"{tree.get('error_message') or 'more than one'}; an example: "
                "--where \"level > 3 AND lang = 'de'\""
            )
        return nodes

    def excluded(self, spans: Iterable[Span], json_rows: Iterator[SourceRow]) -> bytearray:
        """A mark for each row that it does not hold for; rows that cannot be read stay.

        `json_rows`: all rows of the files that are not Parquet. Raises `InputError`.
        """
        spans = list(spans)
        marks = bytearray(b"\1") * sum(rows for _, _, rows in spans)
        known: set[str] = set()
        try:
            with duckdb.connect() as self._database:
                self._keep_json(json_rows, marks, known)
                for file, first, rows in spans:
                    if file.kind == "parquet" and rows:
                        self._keep_parquet(file, first, marks, known)
        except duckdb.Error as error:
            raise InputError(f"--where (where in [input]): {self._said(error, known)}") from error
        if unknown := sorted(name for name in self.columns if name.lower() not in _lower(known)):
            raise InputError(
                f"--where (where in [input]) names the column `{unknown[0]}`, which no row has; "
                f"{nearest(unknown[0], sorted(known), 'the columns')}"
            )
        return marks

    def _said(self, error: duckdb.Error, known: set[str]) -> str:
        for name in sorted(self.columns):
            if known and name.lower() not in _lower(known):
                columns = nearest(name, sorted(known), "the columns")
                return f"no row has a column `{name}`; {columns}"
        return cut(str(error).partition("\n")[0], _SHOWN)

    def _keep_json(self, rows: Iterator[SourceRow], marks: bytearray, known: set[str]) -> None:
        wanted = _lower(self.columns)
        with tempfile.TemporaryDirectory() as folder:
            path, is_empty = Path(folder) / "rows.jsonl", True
            with path.open("wb") as file:
                for row in rows:
                    if row.data is None:
                        marks[row.row] = 0
                        continue
                    known.update(row.data)
                    some = {n: value for n, value in row.data.items() if n.lower() in wanted}
                    file.write(encode_leniently({_NUMBER: row.row, **some}) + b"\n")
                    is_empty = False
            if is_empty:
                return
            missing = [name for name in self.columns if name.lower() not in _lower(known)]
            if not missing:
                source = (
                    "read_json(?, format='newline_delimited', sample_size=-1, "
                    f"maximum_object_size={_MOST_BYTES})"
                )
                self._keep(f"SELECT * FROM {source}", [str(path)], 0, marks)  # noqa: S608 - ours

    def _keep_parquet(
        self, file: SourceFile, first: int, marks: bytearray, known: set[str]
    ) -> None:
        types, _ = read_columns(file)
        known.update(types)
        if isinstance(file.path, Path):
            self._keep_rows(file, str(file.path), first, marks)
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "rows.parquet"
            copy_columns(file, copy, _lower(self.columns))
            self._keep_rows(file, str(copy), first, marks)

    def _keep_rows(self, file: SourceFile, path: str, first: int, marks: bytearray) -> None:
        own = self._database.execute("SELECT name FROM parquet_schema(?)", [path]).fetchall()
        names = _lower(name for (name,) in own)
        given = {name: value for name, value in file.partitions if name.lower() not in names}
        # A column that another file has is null here.
        given |= {n: None for n in self.columns if n.lower() not in names | _lower(given)}
        more = "".join(f", {_literal(value)} AS {_quoted(name)}" for name, value in given.items())
        source = "read_parquet(?, file_row_number=true, hive_partitioning=false)"
        self._keep(
            f"SELECT *, file_row_number AS {_NUMBER}{more} FROM {source}",  # noqa: S608 - quoted
            [path],
            first,
            marks,
        )

    def _keep(self, source: str, values: list[str], first: int, marks: bytearray) -> None:
        query = f"SELECT {_NUMBER} FROM ({source}) WHERE ({self._expression}\n)"  # noqa: S608 - the user's
        found = self._database.execute(query, values)
        while some := found.fetchmany(_AT_ONCE):
            for (number,) in some:
                marks[first + number] = 0


def _roots(tree: Any) -> Iterator[str]:
    """The names of columns in a parsed expression."""
    if isinstance(tree, dict):
        if tree.get("class") == "COLUMN_REF":
            yield tree["column_names"][0]
        for value in tree.values():
            yield from _roots(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _roots(value)


def _lower(names: Iterable[str]) -> set[str]:
    return {name.lower() for name in names}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str | int | None) -> str:
    if value is None:
        return "NULL::VARCHAR"
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
