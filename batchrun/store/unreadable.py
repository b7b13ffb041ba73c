"""Bodies of paid answers that could not be read: `unreadable.jsonl`, a line for each.

It is for a person who wants to see what was paid for; no table is made from it. The file is made
with the first such body. Each worker of a run has a file of its own, `unreadable-wN.jsonl`.
"""

import os
from base64 import b64encode
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from batchrun.formats.json_text import encode_json
from batchrun.records import STORED_BODY_BYTES, JsonObject, UnreadableBody
from batchrun.remote.run_link import OF_WORKERS
from batchrun.store.files import storing, sync_data, write_whole

UNREADABLE_FILE = "unreadable.jsonl"
# Most bytes of the file: a gateway that answers all requests with pages must not fill the disk.
_MOST_BYTES = 256 * 1024 * 1024
_LONGEST_LETTER = 4  # bytes of a character in UTF-8


class UnreadableBodies:
    """The file, for its writer: the directory's owner, or a worker."""

    def __init__(self, folder: Path, worker: int | None = None) -> None:
        self._path = folder / (UNREADABLE_FILE if worker is None else f"unreadable-w{worker}.jsonl")
        self._handle: int | None = None
        self._size = 0

    def add(self, body: UnreadableBody) -> None:
        """Adds a body, which then survives SIGKILL. Raises `StoreError`."""
        line = encode_json(_line(body)) + b"\n"
        with storing(self._path, "write"):
            if self._handle is None:
                self._handle = self._open()
            if self._size + len(line) > _MOST_BYTES:
                return
            try:
                write_whole(self._handle, line)
            except OSError:
                self._close()  # what was written is ended before the next line
                raise
            self._size += len(line)

    def close(self) -> None:
        """Syncs the file. Raises `StoreError`."""
        if self._handle is not None:
            with storing(self._path, "sync"):
                try:
                    sync_data(self._handle)
                finally:
                    self._close()

    def _open(self) -> int:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(handle).st_size
        if self._size and os.pread(handle, 1, self._size - 1) != b"\n":
            self._size += os.write(handle, b"\n")
        return handle

    def _close(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            os.close(handle)


def read_unreadable(folder: Path, custom_id: str) -> list[JsonObject]:
    """The lines of the attempts of one row, in order. Raises `StoreError`."""
    lines = []
    quoted = encode_json(custom_id)
    for path in (folder / UNREADABLE_FILE, *sorted(folder.glob(OF_WORKERS))):
        with storing(path, "read"), suppress(FileNotFoundError), path.open("rb") as file:
            for line in file:
                if quoted not in line:
                    continue
                with suppress(msgspec.DecodeError):  # a kill may have cut the last line
                    value = msgspec.json.decode(line)
                    if isinstance(value, dict) and value.get("custom_id") == custom_id:
                        lines.append(value)
    return sorted(lines, key=lambda line: str(line.get("at")))


def _line(body: UnreadableBody) -> JsonObject:
    custom_id, sample, variant = body.key
    at = datetime.fromtimestamp(body.at / 1e6, UTC)
    return {
        "custom_id": custom_id,
        "sample": sample,
        "variant": variant,
        "client_request_id": body.client_request_id,
        "at": at.isoformat(timespec="milliseconds"),
        "http_status": body.http_status,
        "content_type": body.content_type,
        "truncated": len(body.body) > STORED_BODY_BYTES,
        **_content(body.body),
    }


def _content(body: bytes) -> dict[str, str]:
    """As `body` if it is text, else as `body_base64`."""
    stored = body[:STORED_BODY_BYTES]
    # The limit may cut a character.
    ends = range(len(stored), max(-1, len(stored) - _LONGEST_LETTER), -1)
    for end in ends if len(stored) < len(body) else ends[:1]:
        with suppress(UnicodeDecodeError):
            return {"body": stored[:end].decode()}
    return {"body_base64": b64encode(stored).decode()}
