"""Proves a run from its files alone: each row once, tables that agree, no file too many.

It takes no lock and changes no file. It reads each part whole and checks each journal record, with
bounded memory for any number of rows.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import StoreError
from batchrun.formats.amounts import plural
from batchrun.records import Outcome, RunRecord, Totals
from batchrun.remote.part_stubs import part_file
from batchrun.remote.run_link import run_name
from batchrun.store.columns import (
    KEY,
    layout_of,
    response_batch,
    response_schema,
    score_schema,
    tool_call_schema,
    version_of,
)
from batchrun.store.complete_rows import REMOVED_FILE, read_removed_rows, sum_totals
from batchrun.store.files import (
    JOURNAL,
    RESPONSES,
    SCORES,
    SCORES_FILE,
    TABLES,
    TOOL_CALLS,
    is_locked,
    is_numbered,
    storing,
    temporaries,
)
from batchrun.store.journal import Damage, Torn, damaged_path, read_outcomes, scan
from batchrun.store.parts import DAMAGED, SLICE_ROWS, read_part
from batchrun.store.reading import ENDED, RUN_FILE, missing_parts, read_record, read_run_record
from batchrun.store.snapshot import Snapshot, snapshot

_ATTEMPTS = 20  # during a run, a seal may replace a part meanwhile
_SHOWN = 10  # problems of one kind that are shown
_DAMAGE = "; the next command moves them to a file of their own and sends their rows again"


class Proof(Struct):
    """What was checked, and what is wrong with it."""

    state: str  # as in run.json; live if a process has the directory; or unknown
    problems: list[str]  # by file and row
    notes: list[str]  # what a kill left and the next command repairs
    rows_in_parts: int = 0
    rows_in_journal: int = 0
    parts: int = 0  # of both tables
    tool_calls: int = 0
    totals_agree: bool = False  # false also if they cannot be compared


def verify(path: Path) -> Proof:
    """Raises `JobError` for what is not a run directory, or a newer batchrun's; `StoreError`."""
    try:
        record = read_record(path)
    except StoreError as error:
        return Proof("unknown", [str(error)], [])
    for remaining in reversed(range(_ATTEMPTS)):
        state = "live" if is_locked(path) else record.state
        proof = Proof(state, [], [])
        try:
            with snapshot(path) as now:
                _check(path, now, record, proof)
                if state != "live" or now.is_current():
                    return proof
        except StoreError:
            if state != "live" or not remaining:
                raise
        record = read_run_record(path) or record
    raise StoreError(f"{path}: its files change faster than they can be read; try again later")


def _check(path: Path, now: Snapshot, record: RunRecord, proof: Proof) -> None:
    proof.parts = len(now.responses) + len(now.tool_calls)
    with (
        tempfile.TemporaryDirectory(prefix="batchrun-verify-") as folder,
        closing(_Ledger(Path(folder))) as ledger,
    ):
        for table, parts in ((RESPONSES, now.responses), (TOOL_CALLS, now.tool_calls)):
            for part in parts:
                proof.problems += _wrong_in_part(path, part, record, ledger, table)
        _check_journal(path, now, ledger, proof)
        proof.problems += ledger.problems()
        proof.rows_in_parts, proof.tool_calls, proof.rows_in_journal = ledger.counts()
    if proof.state != "live":
        _check_parts(path, record, proof)
        _check_scores(path, proof)
        _check_leftovers(path, proof)
    if not proof.problems and proof.state in ENDED:  # else totals would only repeat them
        _check_totals(now, record, proof)


def _wrong_in_part(
    folder: Path, part: Path, record: RunRecord, ledger: "_Ledger", table: str
) -> Iterator[str]:
    """Reads every page of a part; its problems, by the rules of its own schema."""
    name = str(part.relative_to(folder))
    try:
        with pq.ParquetFile(part_file(part)) as file:
            found = file.schema_arrow
    except DAMAGED as error:
        yield f"{name}: cannot be read ({error})"
        return
    version = version_of(found)
    if version is None or version not in (record.schema_version, record.older_schema):
        yield f"{name}: its schema version is not {record.schema_version}"
    layout = layout_of(record.layout, version or 1)
    is_calls = table == TOOL_CALLS
    wanted = tool_call_schema(version or 1) if is_calls else response_schema(layout, version or 1)
    if not (found.equals(wanted) or _is_rewritten_later(found, wanted, record)):
        yield f"{name}: its columns are not those that run.json names"
        return
    file, first = ledger.add_file(name), 0
    try:
        for batch in read_part(part, None):
            ledger.add(table, file, first, {one: batch[one] for one in _COLUMNS[table]})
            if not is_calls:
                yield from _wrong_ok(name, first, batch)
            first += batch.num_rows
    except StoreError as error:
        yield f"{name}: {error}"


def _is_rewritten_later(found: pa.Schema, wanted: pa.Schema, record: RunRecord) -> bool:
    """Whether it only lacks new columns, since a kill interrupted the rewriting of parts."""
    return record.older_schema is not None and set(found).issubset(wanted)


def _wrong_ok(name: str, first: int, batch: pa.RecordBatch) -> Iterator[str]:
    # Up to 0.2 answers that are empty or do not fit their schema are ok, without an `error_kind`.
    is_good = pc.and_(pc.is_null(batch["refusal"]), pc.is_null(batch["error_kind"]))
    is_whole = pc.and_(pc.invert(batch["truncated"]), is_good)
    ok = pc.and_(pc.equal(batch["status"], "completed"), is_whole)
    for at in pc.indices_nonzero(pc.not_equal(ok, batch["ok"])).to_pylist():
        yield (
            f"{name}, row {first + at} of it: row {batch['row'][at]} ({batch['custom_id'][at]}): "
            "`ok` does not agree with status, truncated, refusal and error_kind"
        )


def _check_journal(path: Path, now: Snapshot, ledger: "_Ledger", proof: Proof) -> None:
    """Checks every record."""
    for file, count in now.segments:
        name = str(Path(file.name).relative_to(path))
        outcomes = _outcomes(name, path / name, file, proof)
        number, first = ledger.add_file(name), 0
        try:
            with storing(file.name, "read"):
                counted = islice(outcomes, count)
                while some := list(islice(counted, SLICE_ROWS)):
                    ledger.add_outcomes(number, first, some)
                    first += len(some)
                for _ in outcomes:  # to the end, for damage
                    pass
        except StoreError as error:
            proof.problems.append(str(error))


def _outcomes(name: str, path: Path, file: BinaryIO, proof: Proof) -> Iterator[Outcome]:
    """The outcomes of a segment; damage goes into the proof. As `read_outcomes`."""
    for piece in read_outcomes(file):
        match piece:
            case Outcome():
                yield piece
            case Damage(offset, size) if damaged_path(path, piece).exists():
                proof.notes.append(
                    f"{name}: {size} bytes at offset {offset} were damaged and set aside"
                )
            case Damage(offset, size):
                proof.problems.append(f"{name}: {size} damaged bytes at offset {offset}{_DAMAGE}")
            case Torn(offset) if proof.state != "live":
                proof.notes.append(
                    f"{name}: the record at offset {offset} was not written whole; the "
                    "next command drops it"
                )


def _check_parts(path: Path, record: RunRecord, proof: Proof) -> None:
    """Finds missing parts that `run.json` names, and checks the list of removed rows."""
    found = proof.rows_in_parts + proof.rows_in_journal
    missing = missing_parts(path, record, lambda: found)
    proof.problems += [
        f"{name}: missing; it held {plural(rows, 'row')}. Restore it"
        for name, rows in missing.items()
    ]
    try:
        removed = len(read_removed_rows(path))
    except StoreError:
        removed = 0
    if proof.state in ENDED and removed != record.gone.rows:
        proof.problems.append(
            f"{REMOVED_FILE}: names {plural(removed, 'row')} that were removed from the input, and "
            f"{RUN_FILE} counts {record.gone.rows:,}"
        )


def _check_scores(path: Path, proof: Proof) -> None:
    """Checks that each file of scores can be read; if not, a scorer can write it again."""
    for file in sorted((path / SCORES).glob(f"*/{SCORES_FILE}")):
        name = file.relative_to(path)
        again = f"batchrun score {run_name(path)} --again writes it again"
        try:
            for batch in read_part(file, None):
                if batch.schema.names != score_schema().names:
                    proof.problems.append(f"{name}: its columns are not those of scores; {again}")
                    break
        except StoreError as error:
            proof.problems.append(f"{name}: it cannot be read; {again} ({error})")


def _check_leftovers(path: Path, proof: Proof) -> None:
    """Finds files that an ended run should not have, and files that are not its own."""
    said = proof.problems if proof.state in ENDED else proof.notes
    names = temporaries(path, "", JOURNAL, *TABLES)
    said += [f"{name}: left by a write that was interrupted" for name in names]
    for entry in sorted((path / JOURNAL).glob("*")):
        name = entry.relative_to(path)
        if entry.suffix == ".intent":
            said.append(f"{name}: left when the writing of parts was interrupted")
        elif entry.suffix == ".log" and proof.state in ENDED:
            said.append(f"{name}: its rows should be in parts by now")
        elif entry.suffix in (".open", ".started"):
            _check_open(entry, name, proof)
        elif entry.suffix in (".lock", ".drained"):
            proof.notes.append(f"{name}: of a worker that has ended; the next command removes it")
        elif entry.name.startswith("damaged-"):
            proof.notes.append(f"{name}: damaged bytes set aside; their rows were sent again")
    proof.problems += [
        f"{entry.relative_to(path)}: not a part of this run, but read with its tables; move it away"
        for table in TABLES
        for entry in sorted((path / table).glob("*.parquet"))
        if not is_numbered(entry.name)
    ]


def _check_open(path: Path, name: Path, proof: Proof) -> None:
    """Checks that the records of rows without an outcome can be read."""
    with storing(path, "read"), path.open("rb") as file:
        pieces = list(scan(file))
    proof.problems += [
        f"{name}: {piece.size} damaged bytes at offset {piece.offset}{_DAMAGE}"
        for piece in pieces
        if isinstance(piece, Damage) and not damaged_path(path, piece).exists()
    ]
    proof.notes.append(f"{name}: what is known of rows that have no outcome yet")


def _check_totals(now: Snapshot, record: RunRecord, proof: Proof) -> None:
    found, said = sum_totals(now).without(record.gone), record.totals
    # Sums in another order differ in the last digits. No cost and 0 are the same: if models have no
    # price, rows that were refused at no cost may have been sent again.
    if math.isclose(said.cost_usd or 0.0, found.cost_usd or 0.0, abs_tol=1e-9):
        said = replace(said, cost_usd=found.cost_usd)
    wrong = [
        f"{RUN_FILE}: totals.{name} is {one}, the tables add up to {other}"
        for name in Totals.__struct_fields__
        if name not in ("unpriced_model", "unpriced_models")
        if (one := getattr(said, name)) != (other := getattr(found, name))
    ]
    if said.rows > record.rows:
        wrong.append(f"{RUN_FILE}: {said.rows} rows are complete, but the source has {record.rows}")
    remaining = record.rows - said.rows
    # Schema 1 called a run finished when its `--limit` was.
    if record.state == "finished" and remaining > 0 and record.schema_version > 1:
        wrong.append(
            f"{RUN_FILE}: the state is finished, yet {remaining:,} of {record.rows:,} rows have no "
            "outcome; the same command again sends them"
        )
    proof.problems += wrong
    proof.totals_agree = not wrong


_COLUMNS = {
    RESPONSES: ("row", *KEY, "response_id", "tool_call_count"),
    TOOL_CALLS: ("row", *KEY, "response_id", "position"),
    JOURNAL: ("row", *KEY, "tool_call_count"),
}
_ROW = (
    'file INTEGER, place BIGINT, "row" BIGINT, custom_id VARCHAR, sample INTEGER, variant VARCHAR'
)
_TABLES = f"""
CREATE TABLE responses ({_ROW}, response_id VARCHAR, tool_call_count INTEGER);
CREATE TABLE tool_calls ({_ROW}, response_id VARCHAR, position INTEGER);
CREATE TABLE journal ({_ROW}, tool_call_count INTEGER, replaces BOOLEAN);
SET memory_limit = '1GB';
SET preserve_insertion_order = false;
"""
# The rows of parts that count: those that the journal does not replace.
_COUNTED = """
CREATE TABLE replaced AS SELECT DISTINCT custom_id, sample, variant FROM journal WHERE replaces;
CREATE VIEW rows_in_parts AS SELECT * FROM responses
    ANTI JOIN replaced USING (custom_id, sample, variant);
CREATE VIEW calls_in_parts AS SELECT * FROM tool_calls
    ANTI JOIN replaced USING (custom_id, sample, variant);
CREATE VIEW places AS SELECT file, place, "row", custom_id, sample, variant FROM rows_in_parts
    UNION ALL SELECT file, place, "row", custom_id, sample, variant FROM journal;
"""
_COUNTS = """SELECT (SELECT count(*) FROM rows_in_parts), (SELECT count(*) FROM calls_in_parts)
    + (SELECT coalesce(sum(tool_call_count), 0) FROM journal), (SELECT count(*) FROM journal)"""
_CHECKS = {
    "it is stored {2} times, first in {file_3} (row {4} of it)": """
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


class _Ledger:
    """A database of all rows by key; filled file by file, then queried."""

    def __init__(self, folder: Path) -> None:
        """`folder`: for the database; may be deleted afterwards."""
        self._files: list[str] = []
        self._database = duckdb.connect(str(folder / "ledger.duckdb"))
        self._database.execute(_TABLES)
        self._database.execute("SET temp_directory = ?", [str(folder)])

    def close(self) -> None:
        self._database.close()

    def add_file(self, name: str) -> int:
        """A number for the file."""
        self._files.append(name)
        return len(self._files) - 1

    def add(self, table: str, file: int, first: int, columns: Mapping[str, pa.Array]) -> None:
        """Adds rows of a file, beginning with row `first` of it."""
        count = len(columns["row"])
        places = pa.array(range(first, first + count), pa.int64())
        batch = pa.table({"file": pa.repeat(file, count), "place": places, **columns})
        self._database.register("batch", batch)
        # SQL does not join nulls, so a null variant becomes an empty text.
        variant = "SELECT * REPLACE (coalesce(variant, '') AS variant) FROM batch"
        self._database.execute(f"INSERT INTO {table} {variant}")
        self._database.unregister("batch")

    def add_outcomes(self, file: int, first: int, outcomes: Iterable[Outcome]) -> None:
        """Adds outcomes of a journal segment."""
        outcomes = list(outcomes)
        batch = response_batch(outcomes, names=_COLUMNS[JOURNAL])
        replaces = pa.array([outcome.replaces for outcome in outcomes])
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        self.add(JOURNAL, file, first, {**columns, "replaces": replaces})

    def problems(self) -> Iterator[str]:
        """What does not agree, by file and row; the first ten of each kind."""
        self._database.execute(_COUNTED)
        for said, sql in _CHECKS.items():
            found = self._database.execute(f"{sql} ORDER BY 1, 2").fetchmany(_SHOWN + 1)
            for file, place, *numbers, row, custom_id in found[:_SHOWN]:
                words = {"file_3": self._files[numbers[1]]} if "file_3" in said else {}
                text = said.format(None, None, *numbers, **words)
                name = "without a name" if custom_id is None else custom_id[:60]
                yield f"{self._files[file]}, row {place} of it: row {row} ({name}): {text}"
            if len(found) > _SHOWN:
                count = self._database.execute(f"SELECT count(*) FROM ({sql})").fetchall()[0][0]  # noqa: S608 - our own words
                yield f"and {count - _SHOWN:,} more like the last one"

    def counts(self) -> tuple[int, int, int]:
        """Rows in parts that count, tool calls, rows in the journal; call `problems` before."""
        ((rows, calls, journal),) = self._database.execute(_COUNTS).fetchall()
        return rows, calls, journal
