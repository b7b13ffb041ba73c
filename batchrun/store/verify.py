"""A run proved from its files alone: each row once, tables that agree, nothing left over.

Memory is bounded whatever the number of rows.

It takes no lock and changes no file. Each part is read whole, each journal record checked.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import StoreError
from batchrun.records import Outcome, Response, RunRecord, Totals
from batchrun.store.columns import layout_of, response_schema, tool_call_schema, version_of
from batchrun.store.complete_rows import REMOVED_FILE, read_removed_rows, sum_totals
from batchrun.store.files import (
    JOURNAL,
    RESPONSES,
    TOOL_CALLS,
    id_of,
    is_locked,
    storing,
    temporaries,
)
from batchrun.store.journal import Damage, Torn, is_set_aside, read_outcomes, scan
from batchrun.store.keys import KEY
from batchrun.store.reading import (
    ENDED,
    RUN_FILE,
    missing_parts,
    read_record,
    read_run_record,
)
from batchrun.store.snapshot import DAMAGED, Snapshot, read_part, snapshot

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


_TRIES = 20  # on a run that goes on, a seal may replace a part meanwhile


class Proof(Struct):
    """What was looked at, and what of it does not hold."""

    state: str  # as run.json says; live where a process has the directory; unknown
    problems: list[str]  # by file and row
    notes: list[str]  # what a kill leaves and the next command puts right
    rows_in_parts: int = 0
    rows_in_journal: int = 0
    parts: int = 0  # of both tables
    tool_calls: int = 0
    totals_agree: bool = False  # false also where they cannot be compared


def verify(path: Path) -> Proof:
    """Raises `JobError` where `path` is no run directory, or a newer batchrun's; `StoreError`."""
    try:
        record = read_record(path)
    except StoreError as error:
        return Proof("unknown", [str(error)], [])
    for left in reversed(range(_TRIES)):
        state = "live" if is_locked(path) else record.state
        proof = Proof(state, [], [])
        try:
            with snapshot(path) as now:
                _check(path, now, record, proof)
                if state != "live" or now.holds():
                    return proof
        except StoreError:
            if state != "live" or not left:
                raise
        record = read_run_record(path) or record
    raise StoreError(f"{path}: its files change faster than they can be read; try again later")


def _check(path: Path, now: Snapshot, record: RunRecord, proof: Proof) -> None:
    proof.parts = len(now.responses) + len(now.tool_calls)
    with (
        tempfile.TemporaryDirectory(prefix="batchrun-verify-") as folder,
        Ledger(Path(folder)) as ledger,
    ):
        for part in now.responses:
            proof.problems += _read_whole(path, part, record, ledger, calls=False)
        for part in now.tool_calls:
            proof.problems += _read_whole(path, part, record, ledger, calls=True)
        in_journal = _check_journal(path, now, ledger, proof)
        proof.problems += ledger.problems()
        proof.rows_in_parts, calls, proof.rows_in_journal = ledger.counts()
        proof.tool_calls = calls + in_journal
    _check_parts(path, record, proof)
    _check_leftovers(path, proof)
    if not proof.problems:  # else it says again what is wrong, in sums
        _check_totals(now, record, proof)


def _read_whole(
    folder: Path, part: Path, record: RunRecord, ledger: Ledger, *, calls: bool
) -> Iterator[str]:
    """Every page of a part; what is wrong with it by the rules of its own schema."""
    name = str(part.relative_to(folder))
    try:
        found = pq.read_schema(part)
    except DAMAGED as error:
        yield f"{name}: cannot be read ({error})"
        return
    version = version_of(found)
    if version is None or version not in (record.schema_version, record.older_schema):
        yield f"{name}: its schema version is not {record.schema_version}"
    layout = layout_of(record.layout, version or 1)
    wanted = tool_call_schema(version or 1) if calls else response_schema(layout, version or 1)
    if not found.equals(wanted):
        yield f"{name}: its columns are not those that run.json has pinned"
        return
    file, place = ledger.add_file(name), 0
    try:
        for batch in read_part(part, None):
            ledger.add_batch(file, place, batch, calls=calls)
            if not calls:
                yield from _wrong_ok(name, place, batch)
            place += batch.num_rows
    except StoreError as error:
        yield f"{name}: {error}"


def _wrong_ok(name: str, first: int, batch: pa.RecordBatch) -> Iterator[str]:
    is_whole = pc.and_(pc.invert(batch["truncated"]), pc.is_null(batch["refusal"]))
    ok = pc.and_(pc.equal(batch["status"], "completed"), is_whole)
    for at in pc.indices_nonzero(pc.not_equal(ok, batch["ok"])).to_pylist():
        yield (
            f"{name}, row {first + at} of it: row {batch['row'][at]} ({batch['custom_id'][at]}): "
            "`ok` does not agree with status, truncated and refusal"
        )


def _check_journal(path: Path, now: Snapshot, ledger: Ledger, proof: Proof) -> int:
    """Every record; how many tool calls they hold."""
    calls = 0

    def outcomes(name: str, pieces: Iterator[Outcome | Damage | Torn]) -> Iterator[Outcome]:
        nonlocal calls
        for piece in pieces:
            match piece:
                case Outcome():
                    calls += calls_of(piece)
                    yield piece
                case Damage(offset, size) if is_set_aside(path / name, piece):
                    proof.notes.append(
                        f"{name}: {size} bytes at offset {offset} were damaged and set aside"
                    )
                case Damage(offset, size):
                    proof.problems.append(
                        f"{name}: {size} damaged bytes at offset {offset}; the next command "
                        "sets them aside and sends the rows again that they held"
                    )
                case Torn(offset) if proof.state != "live":
                    proof.notes.append(
                        f"{name}: the record at offset {offset} was not written whole; the "
                        "next command drops it"
                    )

    for file, count in zip(now.segments, now.counts, strict=True):
        name = str(Path(file.name).relative_to(path))
        try:
            with storing(file.name, "read"):
                pieces = read_outcomes(file)
                ledger.add_outcomes(ledger.add_file(name), _first(outcomes(name, pieces), count))
        except StoreError as error:
            proof.problems.append(str(error))
    return calls


def _first(outcomes: Iterator[Outcome], count: int | None) -> Iterator[Outcome]:
    """So many, and on to the end for what else there is, unless it is being written."""
    for at, outcome in enumerate(outcomes):
        if count is None or at < count:
            yield outcome


def _check_parts(path: Path, record: RunRecord, proof: Proof) -> None:
    """Parts that `run.json` names and that are not there, and the list of rows that are gone."""
    if proof.state == "live":
        return
    found = proof.rows_in_parts + proof.rows_in_journal
    missing = missing_parts(path, record, lambda: found)
    proof.problems += [
        f"{name}: missing; it held {rows:,} rows. Put it back" for name, rows in missing.items()
    ]
    if proof.state in ENDED and (removed := _removed_rows(path)) != record.gone.rows:
        proof.problems.append(
            f"{REMOVED_FILE}: names {removed:,} rows that left the input, and {RUN_FILE} counts "
            f"{record.gone.rows:,}"
        )


def _removed_rows(path: Path) -> int:
    """As far as the file can be read."""
    try:
        return len(read_removed_rows(path))
    except StoreError:
        return 0


def _check_leftovers(path: Path, proof: Proof) -> None:
    """Files that an ended run does not have, and files that are none of its own."""
    if proof.state == "live":
        return
    said = proof.problems if proof.state in ENDED else proof.notes
    for folder in (path, path / JOURNAL, path / RESPONSES, path / TOOL_CALLS):
        said += [
            f"{left.relative_to(path)}: left by a write that did not end"
            for left in temporaries(folder)
        ]
    for entry in sorted((path / JOURNAL).iterdir()) if (path / JOURNAL).is_dir() else ():
        if entry.suffix == ".intent":
            said.append(f"{entry.relative_to(path)}: left by a seal that did not end")
        elif entry.suffix == ".log" and proof.state in ENDED:
            said.append(f"{entry.relative_to(path)}: its rows should be in parts by now")
        elif entry.suffix in (".open", ".started"):
            _check_open(entry, entry.relative_to(path), proof)
        elif entry.name.startswith("damaged-"):
            proof.notes.append(
                f"{entry.relative_to(path)}: damaged bytes set aside; their rows were sent again"
            )
    for table in (RESPONSES, TOOL_CALLS):
        proof.problems += [
            f"{entry.relative_to(path)}: no part of this run, yet read with its tables; move it"
            for entry in sorted((path / table).glob("*.parquet"))
            if id_of(entry.name) is None
        ]


def _check_open(path: Path, name: Path, proof: Proof) -> None:
    """What is known of rows without an outcome can be read."""
    with storing(path, "read"), path.open("rb") as file:
        pieces = list(scan(file))
    proof.problems += [
        f"{name}: {piece.size} damaged bytes at offset {piece.offset}; the next command sets them "
        "aside and sends the rows anew that they told of"
        for piece in pieces
        if isinstance(piece, Damage) and not is_set_aside(path, piece)
    ]
    proof.notes.append(f"{name}: what is known of rows that have no outcome yet")


def _check_totals(now: Snapshot, record: RunRecord, proof: Proof) -> None:
    if proof.state not in ENDED:
        return
    found, said = sum_totals(now).without(record.gone), record.totals
    if record.schema_version == 1 and found.cost_usd is None and said.cost_usd == 0.0:
        said = replace(said, cost_usd=None)  # of unpriced models, whose failed rows were sent again
    wrong = [
        f"{RUN_FILE}: totals.{name} is {getattr(said, name)}, the tables add up to "
        f"{getattr(found, name)}"
        for name in Totals.__struct_fields__
        if name != "unpriced_model" and not _is_same(getattr(said, name), getattr(found, name))
    ]
    if said.rows > record.rows:
        wrong.append(f"{RUN_FILE}: {said.rows} rows are settled of {record.rows} in the source")
    left = record.rows - said.rows
    # Schema 1 called a run finished when its `--limit` was.
    if record.state == "finished" and left > 0 and record.schema_version > 1:
        wrong.append(
            f"{RUN_FILE}: the state is finished, yet {left:,} of {record.rows:,} rows have no "
            "outcome; the same command again sends them"
        )
    proof.problems += wrong
    proof.totals_agree = not wrong


def _is_same(said: object, found: object) -> bool:
    if isinstance(said, float) and isinstance(found, float):  # sums in another order
        return math.isclose(said, found, rel_tol=1e-9, abs_tol=1e-9)
    return said == found
