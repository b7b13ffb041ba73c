"""Processes killed with SIGKILL while they store and seal: each acknowledged row is there once."""

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from batchrun.records import RunRecord
from batchrun.store.reading import read_totals
from batchrun.store.run_dir import RunDir

# It goes on from the last complete row, prints each row once `store` has returned, and never ends.
KEEP = """
import sys
from pathlib import Path
from batchrun.records import *
from batchrun.store.run_dir import RunDir
run_dir = RunDir.open(Path(sys.argv[1]))
settled = run_dir.complete_rows()
assert len(set(settled.rows)) == len(settled.rows), "doubled"
assert sorted(settled.rows) == list(range(len(settled.rows))), "lost"
assert run_dir.warnings == ()
run_dir.start(part_rows=int(sys.argv[2]), part_bytes=1 << 26, seal_in_process=sys.argv[3] == "True")
row = len(settled.rows)
print("from", row, flush=True)
while True:
    call = ToolCall(0, "function_call", "c", "n", "{}", True, None, "{}")
    request = Request(row, f"id-{row}", "s", b"{}", f"{row:016x}", "m", None, ())
    result = Response(None, "completed", "m", None, "[]", "t" * (row % 500), None, None, (),
                      (call,), Usage(), None, False, None)
    if row % 5 == 0:
        result = Failure("bad_request", "no")
    run_dir.store(Outcome(request, result, (), "e", "plain"))
    print(row, flush=True)
    row += 1
"""


@pytest.mark.parametrize(
    ("in_process", "part_rows", "kills", "longest_s"),
    [
        (False, 60, 6, 0.02),
        (True, 1_000, 4, 0.8),
        pytest.param(False, 60, 12, 0.02, marks=pytest.mark.long),
        pytest.param(True, 1_000, 8, 0.8, marks=pytest.mark.long),
    ],
)
def test_kills_at_any_moment_lose_and_double_nothing(
    tmp_path: Path,
    record: Callable[..., RunRecord],
    query: Callable[..., list[tuple[int, ...]]],
    seal_processes: Callable[[Path], list[int]],
    in_process: bool,
    part_rows: int,
    kills: int,
    longest_s: float,
) -> None:
    path = tmp_path / "run"
    run_dir = RunDir.open(path)
    run_dir.save(record())
    run_dir.close(seal=False)
    dice = random.Random(3)
    acknowledged = seen = 0
    for _ in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", KEEP, str(path), str(part_rows), str(in_process)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        first = child.stdout.readline().split()
        assert first[0] == "from"
        assert int(first[1]) >= acknowledged
        lines = dice.randrange(400)
        for _ in range(lines):
            acknowledged = int(child.stdout.readline()) + 1
        time.sleep(dice.random() * longest_s)
        seen += len(seal_processes(path))
        child.kill()
        for line in child.stdout:
            if line.endswith("\n"):
                acknowledged = int(line) + 1
        child.wait()
        child.stdout.close()
        assert read_totals(path).rows >= acknowledged
    assert bool(seen) is in_process
    run_dir = RunDir.open(path)  # which waits for the process that sealed for the one killed last
    assert not seal_processes(path)
    assert run_dir.warnings == ()
    run_dir.close(seal=True)
    assert not list((path / "journal").iterdir())
    rows = [row for (row,) in query("select row from read_parquet(?)", path)]
    assert max(Counter(rows).values()) == 1
    assert sorted(rows) == list(range(len(rows)))
    assert acknowledged <= len(rows)
    calls = query("select row from read_parquet(?) order by row", path, "tool_calls")
    assert [row for (row,) in calls] == [row for row in range(len(rows)) if row % 5]
