import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from batchrun.errors import JobError
from batchrun.store.lock import is_locked, take_lock
from batchrun.store.run_dir import RunDir

HOLD = """
import sys
from pathlib import Path
from batchrun.store.run_dir import RunDir
run_dir = RunDir.open(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_with_the_names_of_the_first(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"open\n"
        assert is_locked(tmp_path)
        with pytest.raises(JobError) as refused:
            RunDir.open(tmp_path)
        assert f"in use by process {holder.pid} on {socket.gethostname()}" in str(refused.value)
    finally:
        holder.kill()
        holder.communicate()
    assert not is_locked(tmp_path)  # no stale lock after SIGKILL
    RunDir.open(tmp_path).close(seal=False)


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    run_dir = RunDir.open(tmp_path)
    with pytest.raises(JobError, match=f"process {os.getpid()} "):
        RunDir.open(tmp_path)
    run_dir.close(seal=False)


def test_a_holder_without_a_name_is_another_process(tmp_path: Path) -> None:
    handle = take_lock(tmp_path)
    (tmp_path / "lock").write_bytes(b"\xff\n")
    with pytest.raises(JobError, match="in use by another process"):
        take_lock(tmp_path)
    os.close(handle)


def test_asking_leaves_nothing_behind(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    handle = take_lock(tmp_path)
    os.close(handle)
    assert not is_locked(tmp_path)
