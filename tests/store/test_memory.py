import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchrun.records import Outcome, RunRecord
from batchrun.store.run_dir import RunDir
from batchrun.store.verify import verify

# Peaks are read as VmHWM: `ru_maxrss` of a child begins at what its parent had.
KEEP = """
import sys
from pathlib import Path
from batchrun.records import *
from batchrun.store.run_dir import RunDir
run_dir = RunDir.open(Path(sys.argv[1]))
run_dir.start(part_rows=10_000, part_bytes=1 << 30)
def most_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
for row in range(200_000):
    request = Request(row, f"id-{row}", "s", b"x" * 200, f"{row:016x}", "m", None, ())
    result = Response(None, "completed", "m", None, "[]", "t" * 200, None, None, (), (), Usage(),
                      None, False, None)
    run_dir.store(Outcome(request, result, (), "e", "plain"))
    if row == 50_000:
        before = most_kb()
run_dir.close(seal=True)
print(before, most_kb())
"""
SETTLED = """
import sys
from pathlib import Path
from batchrun.store.run_dir import RunDir
run_dir = RunDir.open(Path(sys.argv[1]))
print(len(run_dir.complete_rows().rows))
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
"""


def run(script: str, path: Path) -> list[int]:
    child = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    return [int(word) for word in child.stdout.split()]


def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, record: Callable[..., RunRecord]
) -> None:
    path = tmp_path / "run"
    run_dir = RunDir.open(path)
    run_dir.save(record())
    run_dir.close(seal=False)
    before_kb, after_kb = run(KEEP, path)
    # 150,000 rows of some 700 bytes; the allowance is the allocators' unrest, not the rows
    assert after_kb - before_kb < 48_000
    rows, settled_kb = run(SETTLED, path)
    assert rows == 200_000
    assert settled_kb < 300_000


@pytest.fixture
def uncollected() -> Iterator[Callable[[], set[str]]]:
    """The types of the objects in memory, with garbage."""
    gc.collect()
    gc.disable()

    def find() -> set[str]:
        return {type(one).__name__ for one in gc.get_objects()}

    yield find
    gc.enable()


def test_parts_that_were_read_leave_nothing_to_the_garbage_collector(
    tmp_path: Path,
    begin: Callable[..., RunDir],
    answered: Callable[..., Outcome],
    uncollected: Callable[[], set[str]],
) -> None:
    # A run collects its garbage seldom: 0.3 MB a part were ten bytes a row of a resume.
    run_dir = begin(tmp_path, part_rows=2)
    for row in range(6):
        run_dir.store(answered(row))
    run_dir.close(seal=True)
    assert len(run_dir.complete_rows().rows) == 6
    assert not verify(tmp_path).problems
    assert not uncollected() & {"FileMetaData", "ParquetSchema", "ColumnSchema"}
