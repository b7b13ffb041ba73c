import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from batchrun.errors import JobError, StoreError
from batchrun.store.files import is_locked, take_lock, try_lock
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


def test_a_lock_whose_owner_is_dead_is_waited_for(tmp_path: Path) -> None:
    """What the owner left running, and what has the lock with it, is about to end."""
    owner = subprocess.Popen([sys.executable, "-c", ""])
    owner.wait()
    handle = take_lock(tmp_path).handle
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(0.5)"], pass_fds=[handle]
    )
    os.close(handle)
    _leave(tmp_path, socket.gethostname(), owner.pid)
    os.close(take_lock(tmp_path).handle)
    assert left.poll() is not None
    left.wait()


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    run_dir = RunDir.open(tmp_path)
    with pytest.raises(JobError, match=f"process {os.getpid()} "):
        RunDir.open(tmp_path)
    run_dir.close(seal=False)


def test_a_holder_without_a_name_is_another_process(tmp_path: Path) -> None:
    handle = take_lock(tmp_path).handle
    (tmp_path / "lock").write_bytes(b"\xff\n")
    with pytest.raises(JobError, match="in use by another process"):
        take_lock(tmp_path)
    os.close(handle)


def test_asking_leaves_nothing_behind(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    os.close(take_lock(tmp_path).handle)
    assert not is_locked(tmp_path)


def _cannot_lock(_handle: int, _how: int) -> None:
    """What `flock` says where a file system has no locks."""
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def _leave(folder: Path, host: str, process: int) -> None:
    (folder / "lock").write_text(f"{host} {process}\n")


def test_where_nothing_can_lock_the_run_goes_on_with_a_warning(tmp_path: Path) -> None:
    lock = take_lock(tmp_path, _cannot_lock)
    assert lock.warning is not None
    assert f"{tmp_path} is on a file system that cannot lock" in lock.warning
    assert "--output" in lock.warning
    assert (tmp_path / "lock").read_text() == f"{socket.gethostname()} {os.getpid()}\n"
    os.close(lock.handle)


def test_where_nothing_can_lock_a_living_process_of_this_host_is_the_owner(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        _leave(tmp_path, socket.gethostname(), holder.pid)
        assert is_locked(tmp_path, _cannot_lock)
        with pytest.raises(JobError, match=f"in use by process {holder.pid} on"):
            take_lock(tmp_path, _cannot_lock)
    finally:
        holder.kill()
        holder.communicate()
    assert not is_locked(tmp_path, _cannot_lock)  # no stale lock
    os.close(take_lock(tmp_path, _cannot_lock).handle)


def test_a_dead_process_that_nobody_has_reaped_is_no_owner(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    os.kill(dead.pid, 0)  # its number still belongs to it
    _leave(tmp_path, socket.gethostname(), dead.pid)
    assert not is_locked(tmp_path, _cannot_lock)
    os.close(take_lock(tmp_path, _cannot_lock).handle)
    _leave(tmp_path, socket.gethostname(), dead.pid)
    lock = try_lock(tmp_path / "lock", _cannot_lock)
    assert lock is not None
    assert lock.warning is None  # it is dead for certain
    os.close(lock.handle)
    dead.wait()


def test_where_nothing_can_lock_the_last_owner_of_another_host_is_named(tmp_path: Path) -> None:
    _leave(tmp_path, "elsewhere", 17)
    assert not is_locked(tmp_path, _cannot_lock)
    lock = take_lock(tmp_path, _cannot_lock)
    assert lock.warning is not None
    assert "the last was process 17 on elsewhere" in lock.warning
    os.close(lock.handle)


def test_a_disk_error_is_no_missing_lock(tmp_path: Path) -> None:
    def breaks(_handle: int, _how: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for ask in (take_lock, is_locked):
        with pytest.raises(StoreError, match="cannot lock"):
            ask(tmp_path, breaks)


def test_a_new_run_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    run_dir = RunDir.open(path)
    assert path.stat().st_mode & 0o777 == 0o700
    run_dir.close()
