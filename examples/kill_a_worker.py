"""Starts a run with workers on this machine, kills one on the way, and says what came of it.

    python examples/kill_a_worker.py RUN batchrun run ... --executor ray --workers 3 -o RUN

RUN is the run directory that the command writes. It needs the extra `ray`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb

_AFTER_ROWS = 300  # of all workers; then one is killed

run, command = Path(sys.argv[1] if len(sys.argv) > 2 else ""), sys.argv[2:]
if not command:
    sys.exit("usage: kill_a_worker.py RUN COMMAND...")


def workers() -> list[dict[str, object]]:
    """As `live.json` has them."""
    try:
        found: list[dict[str, object]] = json.loads((run / "live.json").read_bytes())["workers"]
    except OSError:
        return []
    return found


process = subprocess.Popen(command)  # noqa: S603 - the user's own
while process.poll() is None:
    now = [one for one in workers() if one["state"] == "running"]
    if len(now) > 1 and sum(int(str(one["completed"])) for one in now) >= _AFTER_ROWS:
        killed = max(now, key=lambda one: int(str(one["in_flight"])))
        os.kill(int(str(killed["pid"])), signal.SIGKILL)
        print(
            f"killed worker {killed['id']}, process {killed['pid']}, with {killed['in_flight']} in "
            "flight"
        )
        break
    time.sleep(0.2)
code = process.wait()

print("\nwhat happened (events.jsonl)")
for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines():
    event = json.loads(line)
    if event["event"].startswith("worker_"):
        facts = ", ".join(
            f"{name} {event[name]}" for name in ("pid", "rows", "why") if name in event
        )
        print(f"  {event['at'][11:19]}  {event['event']:<15} {event['worker']}: {facts}")

print("\nrows by the writer of their part (DuckDB)")
print(
    duckdb.sql(
        r"""
        SELECT regexp_extract(filename, '(w\d+)-\d+[^/]*$', 1) AS writer, count(*) AS "rows",
            count(DISTINCT (custom_id, sample, variant)) AS distinct_rows, sum(ok::INT) AS ok
        FROM read_parquet($parts, filename = true, union_by_name = true) GROUP BY ALL ORDER BY ALL
        """,
        params={"parts": f"{run}/responses/*.parquet"},
    )
)
sys.exit(code)
