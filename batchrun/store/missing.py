"""Parts that `run.json` names and that are not there: somebody deleted them, or moved them away."""

from collections.abc import Callable
from pathlib import Path

from batchrun.records import RunRecord
from batchrun.store.names import name_now
from batchrun.store.run_record import read_live_file

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
        live = read_live_file(path) or {}
        ok, not_ok = live.get("ok"), live.get("not_ok")
        if isinstance(ok, int) and isinstance(not_ok, int):
            rows = max(rows, ok + not_ok)
    return rows + record.gone.rows
