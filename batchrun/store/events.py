"""What happened when: `events.jsonl`, read."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from batchrun.records import JsonObject
from batchrun.store.disk import storing

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
