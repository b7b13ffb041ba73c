"""Files that may not grow further, by `RLIMIT_FSIZE`, in a process of their own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from batchrun.records import RunRecord
from batchrun.store.reading import read_totals
from batchrun.store.run_dir import RunDir

KEEP = """
import resource, signal, sys
from pathlib import Path
from batchrun.errors import StoreError
from batchrun.records import *
from batchrun.store.run_dir import RunDir
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run_dir = RunDir.open(Path(sys.argv[1]))
first = len(run_dir.complete_rows().rows)
run_dir.start(part_rows=int(sys.argv[2]), part_bytes=1 << 30)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), -1))
kept = 0
try:
    for row in range(first, first + 1000):
        request = Request(row, f"id-{row}", "s", b"{}", f"{row:016x}", "m", None, ())
        text = "".join(chr(33 + (row * i * i + i) % 90) for i in range(1000))
        result = Response(None, "completed", "m", None, "[]", text, None, None, (), (), Usage(),
                          None, False, None)
        run_dir.store(Outcome(request, result, (), "e", "plain"))
        kept += 1
except StoreError as error:
    print("keep:", error)
try:
    run_dir.close(seal=True)
except StoreError as error:
    print("close:", error)
print(kept)
"""


def keep_until_full(path: Path, part_rows: int, limit: int) -> list[str]:
    child = subprocess.run(
        [sys.executable, "-c", KEEP, str(path), str(part_rows), str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.stderr == ""
    assert child.returncode == 0
    return child.stdout.splitlines()


def new_run(path: Path, record: Callable[..., RunRecord]) -> Path:
    run_dir = RunDir.open(path)
    run_dir.save(record())
    run_dir.close(seal=False)
    return path


def test_a_journal_that_may_not_grow_says_what_to_do_and_loses_nothing(
    tmp_path: Path, record: Callable[..., RunRecord]
) -> None:
    path = new_run(tmp_path / "run", record)
    said, *_, kept = keep_until_full(path, 10_000, 200_000)
    assert "keep: " in said
    assert "cannot write to the journal (File too large); raise the limit on file size" in said
    assert 50 < int(kept) < 200
    assert read_totals(path).rows == int(kept)
    run_dir = RunDir.open(path)
    assert run_dir.warnings == ()
    assert list(run_dir.complete_rows().rows) == list(range(int(kept)))
    run_dir.close(seal=True)
    assert read_totals(path).rows == int(kept)


def test_a_part_that_may_not_grow_leaves_the_journal_and_frees_the_rest(
    tmp_path: Path, record: Callable[..., RunRecord]
) -> None:
    path = new_run(tmp_path / "run", record)
    run_dir = RunDir.open(path)
    run_dir.close(seal=False)
    # many small segments of earlier processes make a part larger than any of them
    for turn in range(4):
        *said, kept = keep_until_full(path, 10_000, 120_000)
        assert "cannot write" in said[0], turn
    rows = read_totals(path).rows
    assert rows >= int(kept)
    assert not list(path.rglob("*.tmp"))
    run_dir = RunDir.open(path)
    assert sorted(run_dir.complete_rows().rows) == list(range(rows))
    run_dir.close(seal=True)
    assert read_totals(path).rows == rows
    assert not list((path / "journal").iterdir())
