"""A run directory read from outside, also while it is written: no lock, no file changed."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from batchrun.errors import JobError, StoreError
from batchrun.formats.arrow import with_parts
from batchrun.formats.json_text import encode_json, valid_text
from batchrun.records import (
    Answered,
    JsonObject,
    Layout,
    Outcome,
    RowKey,
    RunRecord,
    Totals,
)
from batchrun.store.columns import (
    SCHEMA_VERSION,
    as_schema,
    new_names,
    response_batch,
    response_schema,
    tool_call_batch,
    tool_call_schema,
    version_of,
)
from batchrun.store.complete_rows import sum_totals
from batchrun.store.files import NAME as LOCK
from batchrun.store.files import is_locked, name_now, replace_file, storing
from batchrun.store.keys import KEY
from batchrun.store.snapshot import Snapshot, opened, read_snapshot, read_standing, snapshot
from batchrun.store.unfinished import known_in, read_open

RUN_FILE = "run.json"
LIVE_FILE = "live.json"


class _Version(msgspec.Struct):
    schema_version: int


def read_run_record(folder: Path) -> RunRecord | None:
    """What `run.json` says; null where there is none.

    Raises `StoreError` where it is damaged, `JobError` where a newer batchrun wrote it.
    """
    path = folder / RUN_FILE
    with storing(path, "read"):
        try:
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
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
            f"{path}: damaged ({error}); put back a copy of it, or give another directory with "
            "--output. The tables beside it can still be read"
        ) from error


def write_run_record(folder: Path, record: RunRecord) -> None:
    """On disk when this returns. Raises `StoreError`."""
    text = msgspec.json.format(encode_json(record), indent=2) + b"\n"
    path = folder / RUN_FILE
    with storing(path, "write"):
        replace_file(path, text, durable=True)


def write_live_file(folder: Path, summary: object) -> None:
    """Never seen half written; not synced, since the next one comes in a second. `StoreError`."""
    path = folder / LIVE_FILE
    with storing(path, "write"):
        replace_file(path, encode_json(summary) + b"\n", durable=False)


def read_live(folder: Path) -> JsonObject | None:
    """The summary as last written; null where there is none or none that can be read."""
    path = folder / LIVE_FILE
    with storing(path, "read"):
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
    try:
        summary = msgspec.json.decode(text, type=JsonObject)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None  # a loss of power may leave it empty; nothing hangs on it
    return summary


ENDED = ("finished", "limited", "stopped", "interrupted")  # states whose files are put in order


def missing_parts(path: Path, record: RunRecord, rows: Callable[[], int]) -> dict[str, int]:
    """The missing parts of both tables and the rows they held; for a run that does not go on.

    After a kill a part may also have gone by itself: its rows were sent again, and stand in
    another one. So they are missed only where there are fewer `rows` than there should be.
    Raises `StoreError` and what `rows` raises.
    """
    missing = {
        name: held
        for name, held in record.parts.items()
        if held and not any((path / now).exists() for now in (name, name_now(name)))
    }
    if missing and record.state not in ENDED and rows() >= expected_rows(path, record):
        return {}
    return missing


def expected_rows(path: Path, record: RunRecord) -> int:
    """How many rows the commands so far have said to be settled. Raises `StoreError`."""
    rows = record.totals.rows
    if record.state == "running":  # killed: only the live summary knows what it came to
        live = read_live(path) or {}
        ok, not_ok = live.get("ok"), live.get("not_ok")
        if isinstance(ok, int) and isinstance(not_ok, int):
            rows = max(rows, ok + not_ok)
    return rows + record.gone.rows


EVENTS_FILE = "events.jsonl"
_decode = msgspec.json.Decoder(JsonObject).decode


def read_events(folder: Path) -> Iterator[tuple[int, JsonObject]]:
    """Each event and its time in microseconds since 1970; none where there is no file.

    A line that is being written or was cut by a kill is left out. Raises `StoreError`.
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
                    event = _decode(line)
                    at = datetime.fromisoformat(str(event.get("at")))
                except (ValueError, RecursionError):
                    continue
                yield round(at.timestamp() * 1e6), event


if TYPE_CHECKING:
    import pyarrow.dataset as ds


def read_record(path: Path) -> RunRecord:
    """What `run.json` says. Raises `JobError` where `path` is no run directory; `StoreError`."""
    record = read_run_record(path)
    if record is None:
        what = f"it has no {RUN_FILE}" if path.is_dir() else "there is no such directory"
        what = "it is a file" if path.is_file() else what
        if path.is_dir() and is_locked(path):
            what = "a command plans it, and has not begun to send"
        raise JobError(
            f"{path} is no run directory ({what}); give the directory that batchrun run wrote to"
        )
    return record


def is_planning(path: Path) -> bool:
    """Whether the process that has the directory has not begun to send. Raises `StoreError`."""
    if not is_locked(path):
        return False
    with storing(path, "read"):
        try:
            return (path / LIVE_FILE).stat().st_mtime_ns < (path / LOCK).stat().st_mtime_ns
        except FileNotFoundError:  # it says how it stands as soon as it sends
            return True


def read_unknown_usd(path: Path, record: RunRecord) -> float:
    """USD reserved for tries of all commands that never told what they cost.

    After a kill `live.json` knows it, and what was in flight a second before at most.
    Raises `StoreError`.
    """
    live = read_live(path) or {}
    unknown, reserved = live.get("unknown_usd"), live.get("reserved_usd")
    known = max(record.unknown_usd, unknown) if isinstance(unknown, float) else record.unknown_usd
    is_killed = record.state == "running"
    return known + reserved if is_killed and isinstance(reserved, float) else known


def read_missing_parts(path: Path) -> dict[str, int]:
    """Parts of both tables that should be there, and the rows they held; none while it runs.

    Raises `JobError`, `StoreError`.
    """
    record = read_record(path)
    missing = missing_parts(path, record, lambda: read_snapshot(path, sum_totals).rows)
    return {} if missing and is_locked(path) else missing


def read_totals(path: Path) -> Totals:
    """What all settled rows add up to, in parts and journal, but for those that left the input.

    Raises `StoreError`.
    """
    record = read_run_record(path)
    totals = read_snapshot(path, sum_totals)
    return totals if record is None else totals.without(record.gone)


def find_row(path: Path, custom_id: str) -> list[JsonObject]:
    """The rows of this id, one for each sample and variant, with their calls under `tool_calls`.

    Rows still in the journal too; empty where nothing has that id. Times finer than a
    microsecond come as text. Raises `JobError`, `StoreError`.
    """
    record = read_record(path)
    wanted = valid_text(custom_id)
    rows, calls = read_snapshot(path, lambda now: _found(now, record, wanted))
    rows.sort(key=lambda row: (row["sample"], row["variant"] or ""))
    for row in rows:
        row["tool_calls"] = [call for call in calls if all(call[name] == row[name] for name in KEY)]
    return rows


def _found(
    now: Snapshot, record: RunRecord, custom_id: str
) -> tuple[list[JsonObject], list[JsonObject]]:
    """The rows of this id in both tables. Raises `StoreError`."""
    layout, version = record.layout, record.schema_version
    rows = _filtered(now.responses, custom_id, response_schema(layout, version), layout)
    calls = _filtered(now.tool_calls, custom_id, tool_call_schema(version), None) if rows else []
    rows, calls = (
        [row for row in found if tuple(row[name] for name in KEY) not in now.replaced]
        for found in (rows, calls)
    )
    kept = [outcome for outcome in now.outcomes() if outcome.request.custom_id == custom_id]
    if kept:
        new_rows, new_calls = outcome_rows(kept, record)
        rows += new_rows
        calls += new_calls
    return rows, calls


def find_answered(path: Path, custom_id: str) -> list[JsonObject]:
    """The same of rows of this id without an outcome: their answers that are asked for again.

    Raises `JobError`, `StoreError`.
    """
    record = read_record(path)
    wanted = valid_text(custom_id)
    last = {key: one for key, one in _answered(path).items() if key[0] == wanted}
    if not last:
        return []
    done = read_snapshot(path, lambda now: known_in(now, last))
    open_ones = [one.outcome for key, one in last.items() if key not in done]
    if not open_ones:
        return []
    rows, calls = outcome_rows(open_ones, record)
    for row in rows:
        row["tool_calls"] = [call for call in calls if all(call[n] == row[n] for n in KEY)]
    return rows


def read_answered_usd(path: Path) -> list[float]:
    """What each row without an outcome is known to have cost that has an answer. `StoreError`."""
    last = _answered(path)
    if not last:
        return []
    done = read_snapshot(path, lambda now: known_in(now, last))
    return [one.outcome.cost_usd or 0.0 for key, one in last.items() if key not in done]


def _answered(path: Path) -> dict[RowKey, Answered]:
    return {one.key: one for one in read_open(path) if isinstance(one, Answered)}


def outcome_rows(
    outcomes: Sequence[Outcome], record: RunRecord
) -> tuple[list[JsonObject], list[JsonObject]]:
    """Rows of both tables as they will be once these outcomes, at least one, are in parts."""
    version = record.schema_version
    batch = response_batch(
        outcomes, record.layout, store_request=record.store_request, version=version
    )
    tables = (pa.Table.from_batches([one]) for one in (batch, tool_call_batch(outcomes, version)))
    rows, calls = map(_plain_rows, tables)
    return rows, calls


def example_not_ok(path: Path) -> str | None:
    """The custom_id of some row that is not ok; null where all are. Raises `StoreError`."""
    return read_snapshot(path, _example_not_ok)


def _example_not_ok(now: Snapshot) -> str | None:
    for batch in read_standing(now, ("custom_id", "ok")):
        names = batch["custom_id"].filter(pc.invert(batch["ok"]))
        if len(names):
            return str(names[0].as_py())
    for outcome in now.outcomes():
        if not outcome.ok:
            return outcome.request.custom_id
    return None


def responses(path: Path) -> "ds.Dataset":
    """The `responses` table as committed so far, lazily. Raises `JobError`, `StoreError`."""
    record = read_record(path)
    schema = response_schema(record.layout, record.schema_version)
    with snapshot(path) as now:
        return _dataset(now.responses, schema)


def tool_calls(path: Path) -> "ds.Dataset":
    """The `tool_calls` table as committed so far, lazily. Raises `JobError`, `StoreError`."""
    schema = tool_call_schema(read_record(path).schema_version)
    with snapshot(path) as now:
        return _dataset(now.tool_calls, schema)


def _dataset(parts: tuple[Path, ...], schema: pa.Schema) -> "ds.Dataset":
    import pyarrow.dataset as ds  # noqa: PLC0415 - imports pandas where it is installed: 0.3 s

    return ds.dataset([str(part) for part in parts], schema=schema, format="parquet")


def _filtered(
    parts: tuple[Path, ...], custom_id: str, schema: pa.Schema, layout: Layout | None
) -> list[dict[str, Any]]:
    """The rows of this id, with the columns of `schema`; `layout` names what they carry."""
    same_id = pc.field("custom_id") == pa.scalar(custom_id, pa.string())
    rows = []
    for path in parts:
        with opened(path) as part:
            own = part.schema_arrow
        with storing(path, "read"):
            try:
                found = _dataset((path,), own).to_table(filter=same_id)
            except pa.ArrowException as error:
                raise StoreError(
                    f"{path}: damaged ({error}); put back a copy, or start a new run directory"
                ) from error
        if found.num_rows:
            names = new_names(layout, version_of(own) or 1) if layout is not None else {}
            rows += _plain_rows(as_schema(found, schema, names))
    return rows


def _plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as Python values, which know no nanoseconds."""
    fields = list(table.schema)
    plain = pa.schema([one.with_type(_without_nanoseconds(one.type)) for one in fields])
    rows: list[dict[str, Any]]
    try:
        rows = table.cast(plain).to_pylist()
    except (OverflowError, ValueError):  # a date that Python has no object for
        rows = table.cast(pa.schema([_as_text(field) for field in plain])).to_pylist()
    return rows


def _as_text(field: pa.Field) -> pa.Field:
    return field.with_type(pa.string()) if pa.types.is_temporal(field.type) else field


def _without_nanoseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind) or pa.types.is_time64(kind) or pa.types.is_duration(kind):
        return pa.string() if kind.unit == "ns" else kind
    return with_parts(kind, _without_nanoseconds)
