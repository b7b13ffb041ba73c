"""A run directory read from outside, also while it is written: no lock, no file changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from batchrun.errors import JobError, StoreError
from batchrun.records import JsonObject, RunRecord, Totals
from batchrun.store.columns import response_batch, tool_call_batch
from batchrun.store.disk import storing
from batchrun.store.lock import is_locked
from batchrun.store.missing import missing_parts
from batchrun.store.nested import with_flat
from batchrun.store.part_files import read_standing
from batchrun.store.run_record import RUN_FILE, read_live_file, read_run_record
from batchrun.store.schema import TOOL_CALLS, response_schema
from batchrun.store.settled import sum_totals
from batchrun.store.snapshot import Snapshot, read_snapshot, snapshot
from batchrun.store.storable import storable_text

if TYPE_CHECKING:
    import pyarrow.dataset as ds


def read_record(path: Path) -> RunRecord:
    """What `run.json` says. Raises `JobError` where `path` is no run directory; `StoreError`."""
    record = read_run_record(path)
    if record is None:
        what = f"it has no {RUN_FILE}" if path.is_dir() else "there is no such directory"
        what = "it is a file" if path.is_file() else what
        raise JobError(
            f"{path} is no run directory ({what}); give the directory that batchrun run wrote to"
        )
    return record


def read_live(path: Path) -> JsonObject | None:
    """The summary last written to `live.json`; null where there is none. Raises `StoreError`."""
    return read_live_file(path)


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
    return {} if missing and is_running(path) else missing


def is_running(path: Path) -> bool:
    """Whether a process has the directory open to write. Raises `StoreError`."""
    return is_locked(path)


def read_totals(path: Path) -> Totals:
    """What all settled rows add up to, in parts and journal, but for those that left the input.

    Raises `StoreError`.
    """
    record = read_run_record(path)
    totals = read_snapshot(path, sum_totals)
    return totals if record is None else totals.without(record.gone)


def find_row(path: Path, custom_id: str) -> list[JsonObject]:
    """The rows of this id, one for each sample, columns by name, their calls under `tool_calls`.

    Rows still in the journal too; empty where nothing has that id. Times finer than a
    microsecond come as text. Raises `JobError`, `StoreError`.
    """
    record = read_record(path)
    wanted = storable_text(custom_id)
    rows, calls = read_snapshot(path, lambda now: _found(now, record, wanted))
    rows.sort(key=lambda row: row["sample"])
    for row in rows:
        row["tool_calls"] = [call for call in calls if call["sample"] == row["sample"]]
    return rows


def _found(
    now: Snapshot, record: RunRecord, custom_id: str
) -> tuple[list[JsonObject], list[JsonObject]]:
    """The rows of this id in both tables. Raises `StoreError`."""
    same_id = pc.field("custom_id") == pa.scalar(custom_id, pa.string())
    rows = _plain_rows(_filtered(now.responses, response_schema(record.layout), same_id))
    calls = _plain_rows(_filtered(now.tool_calls, TOOL_CALLS, same_id)) if rows else []
    rows, calls = (
        [row for row in found if (custom_id, row["sample"]) not in now.replaced]
        for found in (rows, calls)
    )
    kept = [outcome for outcome in now.outcomes() if outcome.request.custom_id == custom_id]
    if kept:
        batch = response_batch(kept, record.layout, store_request=record.store_request)
        rows += _plain_rows(pa.Table.from_batches([batch]))
        calls += _plain_rows(pa.Table.from_batches([tool_call_batch(kept)]))
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
    schema = response_schema(read_record(path).layout)
    with snapshot(path) as now:
        return _dataset(now.responses, schema)


def tool_calls(path: Path) -> "ds.Dataset":
    """The `tool_calls` table as committed so far, lazily. Raises `JobError`, `StoreError`."""
    read_record(path)
    with snapshot(path) as now:
        return _dataset(now.tool_calls, TOOL_CALLS)


def _dataset(parts: tuple[Path, ...], schema: pa.Schema) -> "ds.Dataset":
    import pyarrow.dataset as ds  # noqa: PLC0415 - imports pandas where it is installed: 0.3 s

    return ds.dataset([str(part) for part in parts], schema=schema, format="parquet")


def _filtered(parts: tuple[Path, ...], schema: pa.Schema, wanted: pc.Expression) -> pa.Table:
    where = parts[0].parent if parts else "no parts"
    with storing(where, "read"):
        try:
            return _dataset(parts, schema).to_table(filter=wanted)
        except pa.ArrowException as error:
            raise StoreError(
                f"{where}: damaged ({error}); put back a copy, or start a new run directory"
            ) from error


def _plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as Python values, which know no nanoseconds."""
    fields = list(table.schema)
    plain = pa.schema([one.with_type(with_flat(one.type, _without_nanoseconds)) for one in fields])
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
    return kind
