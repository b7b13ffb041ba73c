"""`run.json` and `live.json`: written whole or not at all, read with plain messages."""

from pathlib import Path

import msgspec

from batchrun.errors import JobError, StoreError
from batchrun.records import JsonObject, RunRecord
from batchrun.store.disk import replace_file, storing
from batchrun.store.schema import SCHEMA_VERSION
from batchrun.store.storable import encode_json

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


def read_live_file(folder: Path) -> JsonObject | None:
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
