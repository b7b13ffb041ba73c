"""Reads a run directory from outside, also while it is written; takes no lock, changes no file."""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from batchrun.errors import BatchrunError, JobError, StoreError
from batchrun.formats.arrow import with_parts
from batchrun.formats.json_text import valid_text
from batchrun.job.expansion import recorded_expansion
from batchrun.records import (
    JsonObject,
    Largest,
    Layout,
    Outcome,
    RowKey,
    RunRecord,
    Totals,
    joined_key,
    shown_key,
)
from batchrun.remote.claims import owner_now
from batchrun.remote.object_stores import RemoteError
from batchrun.remote.part_stubs import dataset_of
from batchrun.remote.run_link import Link, place_of, read_link, scratch_of
from batchrun.remote.run_mirror import is_current, pull, pull_scores
from batchrun.remote.urls import store_url
from batchrun.store.columns import (
    CALLS,
    KEY,
    NO_COLUMNS,
    SCHEMA_VERSION,
    as_schema,
    put_beside,
    response_batch,
    response_schema,
    score_schema,
    tool_call_batch,
    tool_call_schema,
)
from batchrun.store.complete_rows import sum_totals
from batchrun.store.files import (
    JOURNAL,
    LOCK,
    SCORES,
    SCORES_FILE,
    current_name,
    is_driven,
    is_locked,
    storing,
)
from batchrun.store.parts import keys_of, opened, read_part
from batchrun.store.snapshot import Snapshot, read_snapshot, snapshot
from batchrun.store.unfinished import read_answered

if TYPE_CHECKING:
    import pyarrow.dataset as ds

RUN_FILE = "run.json"
LIVE_FILE = "live.json"
EVENTS_FILE = "events.jsonl"
ENDED = ("finished", "limited", "stopped", "interrupted")  # states in which no write is unfinished

_OVER = ("adopted", "ended")  # states of workers that have nothing in flight
_decode_object = msgspec.json.Decoder(JsonObject).decode


class _Version(msgspec.Struct):
    schema_version: int


@contextmanager
def run_folder(url: str, *, scores: bool = False) -> Iterator[Path]:
    """The folder to read a run in a store from, during the block.

    If the run was last written from this machine, it is the folder that it is written from; else a
    temporary one that shows the run as the store has it.
    `scores`: also look for scores. Errors of the block name the URL, not the folder.
    Raises `JobError` if there is no run, or if the store cannot be read; `StoreError`.
    """
    full = store_url(url).full
    with ExitStack() as stack:
        with storing(full, "read"):
            try:
                own = scratch_of(full)
                if not _is_ours(own, full):
                    name = stack.enter_context(tempfile.TemporaryDirectory(prefix="batchrun-"))
                    own = _seen_from_here(Path(name) / "run", url, stack)
                if scores:
                    pull_scores(own)
            except RemoteError as error:
                raise JobError(str(error)) from error
        try:
            yield own
        except BatchrunError as error:
            error.args = (str(error).replace(str(own), url),)
            raise


def _seen_from_here(copy: Path, url: str, stack: ExitStack) -> Path:
    """The folder for a run in a store: made at `copy`, unless this machine writes the run."""
    full = store_url(url).full
    copy.mkdir()
    link = pull(copy, Link(full))
    record = read_run_record(copy)
    if record is None:
        raise JobError(
            f"{url} is not a run in a store (it has no {RUN_FILE}); give the URL that "
            "batchrun run wrote to"
        )
    own = scratch_of(full, record.job.get("cluster", {}).get("scratch"))
    if _is_ours(own, full):
        return own
    if owner_now(*place_of(link, is_first=True), time.time_ns()) is not None:  # on another machine
        lock = stack.enter_context((copy / LOCK).open("wb"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(lock.fileno(), (0, 0))  # it has finished planning
    return copy


def _is_ours(folder: Path, url: str) -> bool:
    link = read_link(folder)
    return link is not None and (is_locked(folder) or is_current(folder, url))


def read_record(path: Path) -> RunRecord:
    """Reads `run.json`. Raises `JobError` if `path` is not a run directory; `StoreError`."""
    record = read_run_record(path)
    if record is None:
        what = f"it has no {RUN_FILE}" if path.is_dir() else "there is no such directory"
        what = "it is a file" if path.is_file() else what
        if path.is_dir() and is_locked(path):
            what = "a command is planning it and has sent nothing yet"
        raise JobError(
            f"{path} is not a run directory ({what}); give the directory that batchrun run wrote to"
        )
    return record


def read_run_record(folder: Path) -> RunRecord | None:
    """Reads `run.json`; None if there is none.

    Raises `StoreError` if it is damaged, `JobError` if a newer batchrun wrote it.
    """
    path = folder / RUN_FILE
    text = _read_file(path)
    if text is None:
        return None
    try:
        version = msgspec.json.decode(text, type=_Version).schema_version
        if version > SCHEMA_VERSION:
            raise JobError(
                f"{path}: written by a newer batchrun (schema {version}, this one knows "
                f"{SCHEMA_VERSION}); upgrade, or give another directory with --output"
            )
        return msgspec.json.decode(text, type=RunRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path}: damaged ({error}); restore a copy of it, or give another directory with "
            "--output. The tables beside it can still be read"
        ) from error


def read_live(folder: Path) -> JsonObject | None:
    """The latest summary in `live.json`; None if there is none that can be read.

    A loss of power may leave it empty; nothing depends on it. Raises `StoreError`.
    """
    try:
        return _decode_object(_read_file(folder / LIVE_FILE) or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _read_file(path: Path) -> bytes | None:
    with storing(path, "read"):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


def read_events(folder: Path) -> Iterator[tuple[int, JsonObject]]:
    """Each event with its time in microseconds since 1970; none if there is no file.

    A line that is still being written, or that a kill has cut, is left out. Raises `StoreError`.
    """
    path = folder / EVENTS_FILE
    with storing(path, "read"):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return
        with file:
            for line in file:
                try:
                    event = _decode_object(line)
                    at = datetime.fromisoformat(str(event.get("at")))
                except (ValueError, RecursionError):
                    continue
                yield round(at.timestamp() * 1e6), event


def is_planning(path: Path) -> bool:
    """Whether the command that has the directory is still planning. Raises `StoreError`."""
    if not is_driven(path):
        return False
    with storing(path, "read"):
        try:
            return (path / LIVE_FILE).stat().st_mtime_ns < (path / LOCK).stat().st_mtime_ns
        except FileNotFoundError:  # it is written when sending begins
            return True


def read_totals(path: Path) -> Totals:
    """The totals of all complete rows except those removed from the input. `StoreError`."""
    record = read_run_record(path)
    totals = read_snapshot(path, sum_totals)
    return totals if record is None else totals.without(record.gone)


def state_now(path: Path, record: RunRecord) -> str:
    """The state in `run.json`; `killed` if it says `running` and no process writes to the run."""
    return "killed" if record.state == "running" and not is_locked(path) else record.state


def read_largest(path: Path) -> dict[str, Largest]:
    """The most tokens of answers, by the requested model. Raises `StoreError`."""
    model, tokens = "model_requested", ("input_tokens", "output_tokens")

    def largest(rows: pa.Table) -> pa.Table:
        found = rows.group_by(model).aggregate([(name, "max") for name in tokens])
        return found.rename_columns([name.removesuffix("_max") for name in found.column_names])

    def read(now: Snapshot) -> list[pa.Table]:
        batches = (batch.select([model, *tokens]) for batch in now.batches((model, *tokens)))
        return [largest(pa.Table.from_batches([batch])) for batch in batches]

    tables = read_snapshot(path, read)
    rows = largest(pa.concat_tables(tables)).to_pylist() if tables else []
    return {row[model] or "": Largest(*(row[name] or 0 for name in tokens)) for row in rows}


def read_unknown_usd(path: Path, record: RunRecord) -> float:
    """USD reserved for attempts of all commands that reported no usage.

    After a kill it comes from `live.json`, with what was in flight at most a second before, and
    from the workers that have ended since. Raises `StoreError`.
    """
    live = read_settled_live(path)
    known = max(record.unknown_usd, _usd(live, "unknown_usd"))
    return known + _usd(live, "reserved_usd") if record.state == "running" else known


def may_have_lost(path: Path) -> bool:
    """Whether a killed command may have had something in flight that is lost. `StoreError`."""
    workers = _workers(read_settled_live(path))
    return not workers or any(one.get("state") not in _OVER for one in workers)


def read_settled_live(path: Path) -> JsonObject:
    """`live.json`, with what workers said that ended by themselves after it was written.

    What they had in flight is in the tables, so nothing is reserved for it any more. Empty if there
    is no such file. Raises `StoreError`.
    """
    live, drained = read_live(path) or {}, _read_drained(path)
    if not drained:
        return live
    unknown, reserved = _usd(live, "unknown_usd"), _usd(live, "reserved_usd")
    workers: list[JsonObject] = []
    for one in _workers(live):
        usd = drained.pop(str(one.get("id")), None)
        if usd is None or one.get("state") in _OVER:  # the sums have it
            workers.append(one)
            continue
        unknown += usd - _usd(one, "unknown_usd")
        reserved -= _usd(one, "reserved_usd")
        ended = {"state": "ended", "in_flight": 0, "unknown_usd": 0.0, "reserved_usd": 0.0}
        workers.append({**one, **ended})
    unknown += sum(drained.values())  # they began later
    sums = {"unknown_usd": _rounded(unknown), "reserved_usd": _rounded(reserved)}
    return {**live, **sums, "workers": workers}


def _read_drained(path: Path) -> dict[str, float]:
    """Workers that have ended by themselves, to the USD that may be spent and are in no table."""
    with storing(path / JOURNAL, "list"):
        marks = sorted((path / JOURNAL).glob("w*.drained"))
    found = {}
    for mark in marks:
        try:
            usd = _decode_object(_read_file(mark) or b"").get("unknown_usd")
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if isinstance(usd, float):  # else it was adopted, or an older batchrun's
            found[mark.stem] = usd
    return found


def _workers(live: JsonObject) -> list[JsonObject]:
    found = live.get("workers")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _usd(facts: JsonObject, name: str) -> float:
    found = facts.get(name)
    return found if isinstance(found, float) else 0.0


def _rounded(usd: float) -> float:
    """Sums of differences, without what floats leave of them."""
    return max(0.0, round(usd, 12))


def read_missing_parts(path: Path) -> dict[str, int]:
    """As `missing_parts`; none while it runs. Raises `JobError`, `StoreError`."""
    record = read_record(path)
    missing = missing_parts(path, record, lambda: read_snapshot(path, sum_totals).rows)
    return {} if missing and is_locked(path) else missing


def missing_parts(path: Path, record: RunRecord, rows: Callable[[], int]) -> dict[str, int]:
    """The missing parts of both tables and the rows that they held; not for a running run.

    After a kill, a part may be missing correctly: its rows were sent again and are in another
    part. So missing parts count only if there are fewer `rows` than expected. Raises `StoreError`
    and what `rows` raises.
    """
    missing = {
        name: held
        for name, held in record.parts.items()
        if held and not any((path / one).exists() for one in (name, current_name(name)))
    }
    if missing and record.state not in ENDED and rows() >= expected_rows(path, record):
        return {}
    return missing


def expected_rows(path: Path, record: RunRecord) -> int:
    """How many rows are complete, as the commands so far recorded it. Raises `StoreError`."""
    rows = record.totals.rows
    if record.state == "running":  # killed: only the live summary has the number
        live = read_live(path) or {}
        ok, not_ok = live.get("ok"), live.get("not_ok")
        if isinstance(ok, int) and isinstance(not_ok, int):
            rows = max(rows, ok + not_ok)
    return rows + record.gone.rows


def example_not_ok(path: Path) -> str | None:
    """The name of a row that is not ok; None if all are. Raises `StoreError`."""

    def read(now: Snapshot) -> str | None:
        for batch in now.batches((*KEY, "ok")):
            rows = batch.filter(pc.invert(batch["ok"]))
            if rows.num_rows:
                return shown_key(next(keys_of(rows)))
        return None

    return read_snapshot(path, read)


def keys_vary(record: RunRecord, paths: Sequence[Path]) -> bool:
    """Whether rows differ in sample or variant, so that an id alone does not identify them.

    `paths`: of all parts of `responses`. Raises `StoreError`.
    """
    if recorded_expansion(record).width > 1:
        return True
    for name in KEY[1:]:
        found: set[int | str | None] = set()
        for path in paths:  # rows that are no longer asked for stay in the tables
            for batch in read_part(path, (name,)):
                found.update(pc.unique(batch[name]).to_pylist())
        if len(found) > 1:
            return True
    return False


def find_row(path: Path, name: str) -> list[JsonObject]:
    """The rows of this id, for each sample and variant, with their calls as `tool_calls`.

    `name` may also be `ID|VARIANT|SAMPLE`, for a single row. Includes rows in the journal; empty
    if nothing has that name. Times finer than a microsecond are text. Raises `JobError`,
    `StoreError`.
    """
    record = read_record(path)

    def find(now: Snapshot, custom_id: str) -> list[JsonObject]:
        return _with_calls(*_found(now, record, custom_id))

    return _named(name, lambda one: read_snapshot(path, lambda now: find(now, one)))


_OF_SCORE = ("scorer", "metric", "value", "passed", "answer", "target", "reason", "explanation")


def find_scores(path: Path, custom_id: str) -> list[JsonObject]:
    """All scores of the rows of this id, with their key columns. Raises `StoreError`."""
    found: list[JsonObject] = []
    same_id = pc.field("custom_id") == pa.scalar(valid_text(custom_id), pa.string())
    with storing(path / SCORES, "read"):
        files = sorted((path / SCORES).glob(f"*/{SCORES_FILE}"))
    for file in files:
        with opened(file):  # turns its errors into `StoreError`
            rows = _dataset((file,), score_schema())
            found += rows.to_table([*KEY, *_OF_SCORE], filter=same_id).to_pylist()
    return found


def find_answered(path: Path, name: str) -> list[JsonObject]:
    """The same for rows without an outcome: the answers that are requested again."""
    record, answered = read_record(path), read_answered(path)

    def find(custom_id: str) -> list[JsonObject]:
        outcomes = [one.outcome for one in answered if one.key[0] == custom_id]
        return _with_calls(*_outcome_rows(outcomes, record))

    return _named(name, find)


def _named(name: str, find: Callable[[str], list[JsonObject]]) -> list[JsonObject]:
    """The rows of this id; if there are none, the row with this name as of `joined_key`."""
    name = valid_text(name)
    custom_id, *rest = name.rsplit("|", 2)
    rows = find(name)
    if rows or len(rest) < 2:
        return rows
    return [row for row in find(custom_id) if joined_key(_key_of(row)) == name]


def _key_of(row: JsonObject) -> RowKey:
    return row["custom_id"], row["sample"], row["variant"]


def read_answered_usd(path: Path) -> list[float]:
    """The known cost of each row without an outcome that has an answer. `StoreError`."""
    return [one.outcome.cost_usd or 0.0 for one in read_answered(path)]


def _with_calls(rows: list[JsonObject], calls: list[JsonObject]) -> list[JsonObject]:
    rows.sort(key=lambda row: (row["variant"] or "", row["sample"]))
    for row in rows:
        own = [call for call in calls if all(call[name] == row[name] for name in KEY)]
        put_beside(row, CALLS, own)
    return rows


def _found(
    now: Snapshot, record: RunRecord, custom_id: str
) -> tuple[list[JsonObject], list[JsonObject]]:
    """The rows of this id in both tables. Raises `StoreError`."""
    layout, version = record.layout, record.schema_version
    rows = _filtered(now.responses, custom_id, response_schema(layout, version), layout)
    calls: list[JsonObject] = []
    if rows:
        calls = _filtered(now.tool_calls, custom_id, tool_call_schema(version), NO_COLUMNS)
    rows, calls = (
        [row for row in found if tuple(row[name] for name in KEY) not in now.replaced]
        for found in (rows, calls)
    )
    outcomes = [outcome for outcome in now.outcomes() if outcome.request.custom_id == custom_id]
    new_rows, new_calls = _outcome_rows(outcomes, record)
    return rows + new_rows, calls + new_calls


def _filtered(
    parts: tuple[Path, ...], custom_id: str, schema: pa.Schema, layout: Layout
) -> list[JsonObject]:
    """The rows of this id, with the columns of `schema`; `layout`: their carried columns."""
    same_id = pc.field("custom_id") == pa.scalar(custom_id, pa.string())
    rows = []
    for path in parts:
        with opened(path) as part:
            found = _dataset((path,), part.schema_arrow).to_table(filter=same_id)
        if found.num_rows:
            rows += _plain_rows(as_schema(found, schema, layout))
    return rows


def _outcome_rows(
    outcomes: Sequence[Outcome], record: RunRecord
) -> tuple[list[JsonObject], list[JsonObject]]:
    """The rows of both tables as they will be when these outcomes are in parts."""
    version = record.schema_version
    rows = response_batch(outcomes, record.layout, version, store_request=record.store_request)
    calls = tool_call_batch(outcomes, version)
    return (
        _plain_rows(pa.Table.from_batches([rows])),
        _plain_rows(pa.Table.from_batches([calls])),
    )


def _plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as Python values, which have no nanoseconds."""
    plain = pa.schema([one.with_type(_without_nanoseconds(one.type)) for one in table.schema])
    rows: list[dict[str, Any]]
    try:
        rows = table.cast(plain).to_pylist()
    except (OverflowError, ValueError):  # a date that Python cannot represent
        text = [
            one.with_type(pa.string()) if pa.types.is_temporal(one.type) else one for one in plain
        ]
        rows = table.cast(pa.schema(text)).to_pylist()
    return rows


def _without_nanoseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind) or pa.types.is_time64(kind) or pa.types.is_duration(kind):
        return pa.string() if kind.unit == "ns" else kind
    return with_parts(kind, _without_nanoseconds)


def responses(path: Path) -> "ds.Dataset":
    """The `responses` table as of now, read lazily. Raises `JobError`, `StoreError`."""
    record = read_record(path)
    with snapshot(path) as now:
        return _dataset(now.responses, response_schema(record.layout, record.schema_version))


def tool_calls(path: Path) -> "ds.Dataset":
    """The `tool_calls` table as of now, read lazily. Raises `JobError`, `StoreError`."""
    record = read_record(path)
    with snapshot(path) as now:
        return _dataset(now.tool_calls, tool_call_schema(record.schema_version))


def _dataset(parts: tuple[Path, ...], schema: pa.Schema) -> "ds.Dataset":
    with storing(parts[0].parent if parts else "the tables", "read"):
        return dataset_of(parts, schema)
