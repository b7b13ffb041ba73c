"""Processes killed with SIGKILL while they keep and seal: each acknowledged row stands once."""

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from batchrun.records import RunRecord
from batchrun.store.run_dir import RunDir
from batchrun.store.tables import read_totals

# It goes on from the highest row settled, prints each row once `keep` has returned, and never ends.
KEEP = """
import sys
from pathlib import Path
from batchrun.records import *
from batchrun.store.run_dir import RunDir
run_dir = RunDir.open(Path(sys.argv[1]))
settled = run_dir.settled()
assert len(set(settled.rows)) == len(settled.rows), "doubled"
assert sorted(settled.rows) == list(range(len(settled.rows))), "lost"
assert run_dir.warnings == ()
run_dir.start(part_rows=60, part_bytes=1 << 20)
row = len(settled.rows)
print("from", row, flush=True)
while True:
    call = ToolCall(0, "function_call", "c", "n", "{}", True, None, "{}")
    request = Request(row, f"id-{row}", "s", b"{}", f"{row:016x}", "m", None, ())
    result = Response(None, "completed", "m", None, "[]", "t" * (row % 500), None, None, (),
                      (call,), Usage(), None, False, None)
    if row % 5 == 0:
        result = Failure("bad_request", "no")
    run_dir.keep(Outcome(request, result, (), "e", "plain"))
    print(row, flush=True)
    row += 1
"""


def test_kills_at_any_moment_lose_and_double_nothing(
    tmp_path: Path,
    record: Callable[..., RunRecord],
    query: Callable[..., list[tuple[int, ...]]],
) -> None:
    path = tmp_path / "run"
    run_dir = RunDir.open(path)
    run_dir.save(record())
    run_dir.close(seal=False)
    dice = random.Random(3)
    acknowledged = 0
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", KEEP, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        first = child.stdout.readline().split()
        assert first[0] == "from"
        assert int(first[1]) >= acknowledged
        lines = dice.randrange(400)
        for _ in range(lines):
            acknowledged = int(child.stdout.readline()) + 1
        time.sleep(dice.random() * 0.02)
        child.kill()
        for line in child.stdout:
            if line.endswith("\n"):
                acknowledged = int(line) + 1
        child.wait()
        child.stdout.close()
        assert read_totals(path).rows >= acknowledged
    run_dir = RunDir.open(path)
    assert run_dir.warnings == ()
    run_dir.close(seal=True)
    assert not list((path / "journal").iterdir())
    rows = [row for (row,) in query("select row from read_parquet(?)", path)]
    assert max(Counter(rows).values()) == 1
    assert sorted(rows) == list(range(len(rows)))
    assert acknowledged <= len(rows)
    calls = query("select row from read_parquet(?) order by row", path, "tool_calls")
    assert [row for (row,) in calls] == [row for row in range(len(rows)) if row % 5]
