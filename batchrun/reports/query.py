"""The user's own SQL over the tables of one run or several: it reads, and changes nothing.

The query is run as a subquery of ours, where DuckDB allows nothing that writes; extensions cannot
be loaded, so nothing reaches the network. Files of this machine can be read, to join them. The
result is written to a temporary file first: a seal may replace a part while the query reads it,
and then it is run again.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from batchrun.errors import JobError
from batchrun.formats.arrow import has_map, is_number, json_values
from batchrun.formats.printable import listed, nearest
from batchrun.formats.result_text import ResultColumn, result_text
from batchrun.remote.run_link import run_name
from batchrun.reports.sql import (
    Files,
    TableFiles,
    connected,
    pattern_of,
    quoted,
    read_all_files,
    scan_of,
    select_of,
    unreadable,
)
from batchrun.store.columns import (
    KEY,
    NO_COLUMNS,
    own_columns,
    response_schema,
    score_schema,
)
from batchrun.store.files import RESPONSES, SCORES, SCORES_FILE, TABLES

_MEMORY = "400MB"  # what goes beyond is written to disk
_LOCKED = ("python_enable_replacements = false", "lock_configuration = true")
# Without these the missing extensions alone keep a query off the network. Before 1.5 they would
# also refuse all names of files that do not begin with a slash.
_LOCAL = ("allowed_directories = ['/']", "enable_external_access = false")
_KNOWS_LOCAL = tuple(map(int, duckdb.__version__.split(".")[:2])) >= (1, 5)
_BATCH_ROWS = 8_192
_PIECE = 1 << 16  # characters that are written at a time
_RUN = "run"  # the column that names the run
# Types that DuckDB can write as text, and Arrow cannot.
_AS_TEXT = re.compile(
    r"\b(INTERVAL|BIT|UNION|TIME WITH|TIME_NS|UHUGEINT|BIGNUM|VARIANT|GEOMETRY)\b"
)
# DuckDB's messages: a name that it does not know, and that a file is damaged.
_UNKNOWN_COLUMN = re.compile(r'(?:Referenced column|column named|Column) "([^"]+)"')
_UNKNOWN_TABLE = re.compile(r'(?:Table with name|Referenced table) "?([^" ]+)"?')
_DAMAGE = re.compile("magic bytes|decompress|thrift|corrupt", re.IGNORECASE)
# Functions that write a log, or run SQL that is hidden in text.
_REFUSED = frozenset({"enable_logging", "json_execute_serialized_sql", "query"})
_NAME = re.compile(r'\w+|"[^"]*"')
# The table of attempts has one row for each element of `attempts`, and its place there, from 1.
_ATTEMPTS = """
SELECT run, "row", custom_id, "sample", variant,
    unnest(range(1, len(attempts) + 1))::INTEGER AS attempt, unnest(attempts, max_depth := 2)
FROM responses
"""


def _later_tables() -> Mapping[str, pa.Schema]:
    """Tables that runs do not have yet, or lack: empty, with the columns that they will have."""
    known = {field.name: field for field in response_schema(NO_COLUMNS)}
    run = pa.field(_RUN, pa.string())
    key = [run, *(known[name] for name in ("row", *KEY))]
    tokens = [name for name in known if name.endswith("_tokens")]
    times = ["started_at", "finished_at", "latency_s", "first_token_s"]
    answer = ["response_id", "status", "output", "output_text", "tool_call_count", *tokens]
    answer += ["usage", "cost_usd", "priced_as", "attempts", *times, "request_hash"]
    turns = [*key, pa.field("turn", pa.int32()), *(known[name] for name in answer)]
    return {"turns": pa.schema(turns), SCORES: pa.schema([run, *score_schema()])}


def query_runs(
    paths: Sequence[Path], query: str, form: str, width: int, write: Callable[[str], object]
) -> None:
    """Writes the result of the query as text, in a form of `result_text`.

    Raises `JobError` where the query is at fault, `StoreError`.
    """
    wrapped = _checked(query)
    with tempfile.TemporaryDirectory(prefix="batchrun-") as folder:
        stored = Path(folder) / "result.arrow"
        read_all_files(paths, lambda files: _run(paths, files, wrapped, stored))
        with pa.OSFile(str(stored)) as file:
            reader = pa.ipc.open_file(file)
            columns = [ResultColumn(field.name, is_number(field.type)) for field in reader.schema]
            try:
                for piece in _joined(result_text(form, columns, lambda: _rows(reader), width)):
                    write(piece)
            except (pa.ArrowException, OverflowError) as error:
                raise JobError(
                    f"a value of the result cannot be shown as text ({error}); CAST its column AS "
                    "VARCHAR"
                ) from error


def _joined(pieces: Iterable[str]) -> Iterator[str]:
    some: list[str] = []
    size = 0
    for piece in pieces:
        some.append(piece)
        size += len(piece)
        if size >= _PIECE:
            yield "".join(some)
            some, size = [], 0
    yield "".join(some)


def _checked(query: str) -> str:
    """The query as a subquery. Raises `JobError` where it is not one that only reads."""
    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise JobError(_said(error, query, {})) from error
    if len(statements) != 1:
        raise JobError(f"the query holds {len(statements)} statements; give a single SELECT")
    (statement,) = statements
    if statement.type != duckdb.StatementType.SELECT:
        raise JobError(
            f"batchrun sql only reads, but this is {statement.type.name}. Begin with SELECT, "
            "FROM, WITH, DESCRIBE or SUMMARIZE; PIVOT goes as FROM (PIVOT … ON … IN (…) USING …); "
            "batchrun export writes files"
        )
    if refused := _REFUSED & set(_called(query)):
        raise JobError(f"batchrun sql only reads, and does not call {listed(sorted(refused))}")
    return f"FROM (\n{statement.query.rstrip().rstrip(';')}\n)"


def _called(query: str) -> Iterator[str]:
    """Names before a bracket, in small letters."""
    text = query.encode()
    starts = [at for at, _ in duckdb.tokenize(query)]
    words = [text[start:end].decode() for start, end in pairwise([*starts, len(text)])]
    words = [word for word in words if not word.startswith(("--", "/*"))]
    for word, following in pairwise(words):
        name = _NAME.match(word)
        if name and following.startswith("("):
            yield name[0].strip('"').lower()


def _run(paths: Sequence[Path], files: Sequence[Files], wrapped: str, stored: Path) -> None:
    names = _run_names(paths)
    with connected(files[0].temporary) as database:
        database.execute(f"SET memory_limit = '{_MEMORY}'")
        database.execute("SET TimeZone = 'UTC'")
        try:
            columns = _add_views(database, paths, files, names)
        except duckdb.Error as error:
            raise unreadable(_damaged(error, paths, files) or paths[0], error) from error
        # From here on nothing can be set, loaded, or reached but the files of this machine.
        for setting in (*(_LOCAL if _KNOWS_LOCAL else ()), *_LOCKED):
            database.execute(f"SET {setting}")
        try:
            _store(database, wrapped, stored)
        except duckdb.Error as error:
            damaged = _damaged(error, paths, files)
            if damaged is not None:
                raise unreadable(damaged, error) from error
            raise JobError(_said(error, wrapped, columns)) from error


def _store(database: duckdb.DuckDBPyConnection, wrapped: str, stored: Path) -> None:
    """Writes the result as an Arrow file. Raises `duckdb.Error`."""
    result = database.sql(wrapped)
    names = [quoted(name) for name in result.columns]
    texts = [
        f"CAST({name} AS VARCHAR) AS {name}"
        for name, kind in zip(names, map(str, result.types), strict=True)
        if _AS_TEXT.search(kind)
    ]
    if texts:
        result = database.sql(f"SELECT * REPLACE ({', '.join(texts)}) {wrapped}")
    # Releases of DuckDB know the one or the other.
    read = getattr(result, "to_arrow_reader", None) or result.fetch_arrow_reader
    reader = read(_BATCH_ROWS)
    try:
        with pa.ipc.new_file(stored, reader.schema) as file:
            for batch in reader:
                file.write_batch(batch)
    except pa.ArrowException as error:  # what DuckDB said, on its way through Arrow
        raise duckdb.Error(str(error)) from error


def _rows(reader: pa.RecordBatchFileReader) -> Iterator[tuple[Any, ...]]:
    for number in range(reader.num_record_batches):
        table = pa.Table.from_batches([reader.get_batch(number)])
        yield from zip(*map(_values, table.columns), strict=True)


def _values(column: pa.ChunkedArray) -> list[Any]:
    values = json_values(column, decimals=True)
    if pa.types.is_timestamp(column.type):
        return [value and value.replace(".000000", "") for value in values]
    return list(map(_with_objects, values)) if has_map(column.type) else values


def _with_objects(value: Any) -> Any:
    """Arrow's maps are lists of pairs."""
    if isinstance(value, dict):
        return {key: _with_objects(one) for key, one in value.items()}
    if isinstance(value, list) and value and all(isinstance(one, tuple) for one in value):
        return {str(key): _with_objects(one) for key, one in value}
    return list(map(_with_objects, value)) if isinstance(value, list) else value


def _run_names(paths: Sequence[Path]) -> list[str]:
    """As given, without a slash at the end; the same run twice is one that counts twice."""
    names = [run_name(path) for path in paths]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise JobError(f"given more than once: {listed(sorted(twice))}; give each run once")
    return names


def _add_views(
    database: duckdb.DuckDBPyConnection,
    paths: Sequence[Path],
    files: Sequence[Files],
    names: Sequence[str],
) -> dict[str, list[str]]:
    """The tables, each with the column `run`; their names and columns. Raises `duckdb.Error`."""
    as_text = _disagreeing([one.responses.schema for one in files])
    for table in TABLES:
        pieces = []
        for at, (one, name) in enumerate(zip(files, names, strict=True)):
            own: TableFiles = getattr(one, table)
            select = select_of(own, database, f"_{at}")
            every = _every(own.schema.names, as_text if table == RESPONSES else ())
            pieces.append(f"SELECT {_text(name)} AS {_RUN}, {every} FROM ({select})")  # noqa: S608
        database.execute(f"CREATE TEMP VIEW {table} AS {' UNION ALL BY NAME '.join(pieces)}")
    database.execute(f"CREATE TEMP VIEW attempts AS {_ATTEMPTS}")
    for table, schema in _later_tables().items():
        database.register(table, schema.empty_table())
    scores = [
        f"SELECT {_text(name)} AS {_RUN}, * FROM "  # noqa: S608
        + scan_of(database, file, score_schema())
        for path, name in zip(paths, names, strict=True)
        for file in sorted((path / SCORES).glob(f"*/{SCORES_FILE}"))
    ]
    if scores:
        database.unregister(SCORES)
        database.execute(f"CREATE TEMP VIEW {SCORES} AS {' UNION ALL BY NAME '.join(scores)}")
    tables = (*TABLES, "attempts", *_later_tables())
    return {table: database.sql(f"SELECT * FROM {table}").columns for table in tables}  # noqa: S608


def _text(name: str) -> str:
    """The name as text in SQL."""
    return "'" + name.encode("utf-8", "replace").decode().replace("'", "''") + "'"


def _every(names: Sequence[str], as_text: Sequence[str]) -> str:
    """All columns; one that is called as that of the run is gets another name."""
    taken = {name.lower() for name in names}
    texts = [f"CAST({quoted(name)} AS VARCHAR) AS {quoted(name)}" for name in as_text]
    replaced = f" REPLACE ({', '.join(texts)})" if texts else ""
    renamed = ""
    for name in names:
        if name.lower() == _RUN:
            other, count = f"{name}_input", 1
            while other.lower() in taken:
                count += 1
                other = f"{name}_input_{count}"
            renamed = f" RENAME ({quoted(name)} AS {quoted(other)})"
    return f"*{replaced}{renamed}"


def _disagreeing(schemas: Sequence[pa.Schema]) -> list[str]:
    """Columns whose types differ between the runs, and not only as numbers do: they are text."""
    kinds: dict[str, set[pa.DataType]] = {}
    for schema in schemas:
        for field in schema:
            if field.name.lower() != _RUN:
                kinds.setdefault(field.name, set()).add(field.type)
    # What all runs have has one type, but that a later schema has more in its structs.
    own = set(own_columns())
    return [
        name
        for name, found in kinds.items()
        if name not in own and len(found) > 1 and not all(map(is_number, found))
    ]


def _damaged(error: duckdb.Error, paths: Sequence[Path], files: Sequence[Files]) -> Path | None:
    """The run that has the file which the error is about."""
    said = str(error)
    for path, one in zip(paths, files, strict=True):
        parts = (*one.responses.parts, *one.tool_calls.parts, one.temporary)
        if any(str(part) in said or pattern_of(part) in said for part in parts):
            return path
    return paths[0] if len(paths) == 1 and _DAMAGE.search(said) else None


def _said(error: duckdb.Error, query: str, tables: Mapping[str, Sequence[str]]) -> str:
    """What is wrong with the query, where, and which names there are."""
    said, _, place = str(error).partition("\n\nLINE ")
    text = said.partition("\n")[
        0
    ].strip()  # its own guesses follow, of which some name nothing here
    if "must be at the top level" in text:
        text = "batchrun sql only reads: no COPY, INSERT, UPDATE or DELETE, not even in a WITH"
    elif "file system operations are disabled" in text or "requires the extension" in text:
        text = f"{text.partition(' - ')[0]}: a query reads files of this machine, never the network"
    elif found := _UNKNOWN_TABLE.search(text):
        text = f"{text.rstrip('.!')}; {nearest(found[1], tables, 'the tables')}"
    elif found := _UNKNOWN_COLUMN.search(text):
        columns = dict.fromkeys(name for names in tables.values() for name in names)
        text = f"{text.rstrip('.!')}; {nearest(found[1], columns, 'columns')}"
        if f'"{found[1]}"' in query:
            text += f". If it is meant as text, write it in single quotes: '{found[1]}'"
    elif "with name" in text and "Did you mean" in said:
        text += said.partition("\n")[2].partition("\n")[0].replace("Did", " Did")
    return f"the query cannot be answered: {text}" + _shown_place(place)


def _shown_place(place: str) -> str:
    """The line of the query, and below it a mark where it is wrong."""
    before, colon, rest = place.partition(": ")
    line, _, marks = rest.partition("\n")
    if not colon or not before.isdigit():
        return ""
    width = len("LINE : ") + len(before)
    return f"\n  {line}\n  {marks[width:].rstrip()}"
