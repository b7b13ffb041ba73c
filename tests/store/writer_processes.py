"""One run directory, a driver and three workers, killed at random: what is left of their rows.

Run as a program, it forks all of them from a process that has imported the store and done nothing
else, so that no thread is lost in a fork. The driver gives rows to workers over sockets, adopts the
dead, and starts others; when it is killed the workers land what they have and end. Each process
notes each row before it is sent, so to speak, and after it is stored, in one file that all append
to. A watcher counts what is stored, and reads and verifies the directory all the time.

Prints what came of it as JSON.
"""

import json
import os
import random
import select
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from msgspec.structs import replace

from batchrun.errors import ErrorKind
from batchrun.records import Failure, Outcome, Request, Resend, ToolCall
from batchrun.store.reading import read_run_record, read_totals
from batchrun.store.run_dir import RunDir
from batchrun.store.verify import verify
from batchrun.store.workers.worker_dir import WorkerDir
from tests.runs import response, run_record

WORKERS = 3
LEASE = 10  # rows
PART_ROWS = 8
_LOOK_S = 0.01


def outcome_of(row: int, *, again: bool) -> Outcome:
    """Of each row; every third fails the first time."""
    call = ToolCall(
        0, "function_call", "c", "n", "{}", arguments_valid=True, status=None, item="{}"
    )
    request = Request(row, f"id-{row}", "s", b"{}", f"{row:016x}", "m", None, ())
    answer = response(id=f"resp_{row}", output_text="t" * (row % 500), tool_calls=(call,))
    result = Failure(ErrorKind.BAD_REQUEST, "no") if row % 3 == 0 and not again else answer
    return Outcome(request, result, (), "e", "plain", replaces=again)


class Notes:
    """Lines of what happened, in order; each survives a kill of who wrote it."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, *words: object) -> None:
        os.write(self._handle, (" ".join(map(str, words)) + "\n").encode())


def work(
    run: Path, worker: int, pipe: socket.socket, notes: Notes, *, again: bool, in_process: bool
) -> None:
    """A worker: rows in, a line for each lease that is done; at the end of the pipe it drains."""
    lines = lines_of(pipe)
    record = read_run_record(run)
    assert record is not None
    mine = WorkerDir.open(run, worker, record)
    mine.start(part_rows=PART_ROWS, part_bytes=1 << 26, replaces=again, seal_in_process=in_process)
    with suppress(OSError):
        pipe.sendall(b"[]\n")
    for line in lines:
        for row in json.loads(line):
            if is_at_end(pipe):  # the driver is gone: no further row is begun
                break
            notes.add("begun", row, worker)
            mine.store(outcome_of(row, again=again))
            notes.add("stored", row, worker)
        else:
            with suppress(OSError):
                pipe.sendall(line)
            continue
        break
    mine.close(has_drained=True)


def lines_of(pipe: socket.socket) -> Iterator[bytes]:
    with suppress(ConnectionResetError):  # a driver that was killed had not read all
        yield from pipe.makefile("rb")


def is_at_end(pipe: socket.socket) -> bool:
    try:
        return pipe.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@dataclass
class Colleague:
    """A worker, as the driver sees it."""

    pipe: socket.socket
    leases: list[list[int]] = field(default_factory=list)
    said: bytes = b""
    has_begun: bool = False
    is_gone: bool = False


def drive(run: Path, control: socket.socket, notes: Notes, rows: int, *, again: bool) -> None:
    """The driver, to the end of the run."""
    waited: list[str] = []
    run_dir = RunDir.open(run, waiting=waited.append)
    for what in dict.fromkeys(waited):
        notes.add("waited", what)
    if run_dir.record is None:
        run_dir.save(run_record(rows=rows))
    if again:
        run_dir.finish()
    found = run_dir.complete_rows(Resend(failed=True) if again else None)
    complete = Counter(found.rows)
    assert max(complete.values(), default=1) == 1, "doubled"
    if again:
        remaining = [row for row, mark in zip(found.rows, found.again, strict=True) if mark]
        assert len(complete) == rows, "lost"
    else:
        remaining = [row for row in range(rows) if row not in complete]
    leases = [remaining[at : at + LEASE] for at in range(0, len(remaining), LEASE)]
    workers: dict[int, Colleague] = {}
    while leases or any(one.leases for one in workers.values()):
        while leases and sum(not one.is_gone for one in workers.values()) < WORKERS:
            number = run_dir.new_writer()
            control.sendall(f"{number}\n".encode())
            _, (handle,), _, _ = socket.recv_fds(control, 1, 1)
            workers[number] = Colleague(socket.socket(fileno=handle))
        for one in workers.values():
            while leases and not one.is_gone and len(one.leases) < 2:
                lease = leases.pop(0)
                one.leases.append(lease)
                with suppress(OSError):
                    one.pipe.sendall(json.dumps(lease).encode() + b"\n")
        hear(workers)
        for number, one in list(workers.items()):  # also of those that live, or are frozen
            if (one.is_gone or one.has_begun) and adopt(run_dir, number, one, leases):
                del workers[number]
        run_dir.seal_full_segments()
    for one in workers.values():
        one.pipe.shutdown(socket.SHUT_WR)
    while workers:
        hear(workers)
        for number, one in list(workers.items()):
            if one.is_gone and adopt(run_dir, number, one, leases):
                del workers[number]
    assert not leases
    run_dir.finish()
    assert run_dir.warnings == ()
    assert run_dir.record is not None
    totals = read_totals(run)
    run_dir.save(replace(run_dir.record, state="finished", totals=totals))
    run_dir.close()


def hear(workers: dict[int, Colleague]) -> None:
    """What workers say, and whether they are gone."""
    open_pipes = {one.pipe: one for one in workers.values() if not one.is_gone}
    ready, _, _ = select.select(list(open_pipes), [], [], _LOOK_S)
    for pipe in ready:
        one = open_pipes[pipe]
        try:
            data = pipe.recv(1 << 16)
        except OSError:
            data = b""
        one.is_gone = not data
        one.said += data
        *done, one.said = one.said.split(b"\n")
        for line in done:
            if lease := json.loads(line):
                one.leases.remove(lease)
            one.has_begun = True


def adopt(run_dir: RunDir, number: int, one: Colleague, leases: list[list[int]]) -> bool:
    """Whether it is dead; what of its rows remains is given to others."""
    rows = [row for lease in one.leases for row in lease]
    adopted = run_dir.adopt(number, rows)
    if adopted is None:
        return False
    assert adopted.warnings == ()
    complete = {row for row, _, _ in adopted.complete}
    if remaining := [row for row in rows if row not in complete]:
        leases.append(remaining)
    one.pipe.close()
    return True


def watch(run: Path, path: Path, notes: Notes) -> None:
    """Whatever is stored is there, and there once, at any moment."""
    while True:
        stored = stored_rows(path)
        if (run / "run.json").exists():
            rows = read_totals(run).rows
            if rows < len(stored):
                notes.add("wrong", f"{len(stored)} are stored, {rows} are found")
            for problem in verify(run).problems:
                notes.add("wrong", problem)
        notes.add("watched")
        time.sleep(_LOOK_S)


def stored_rows(path: Path) -> set[int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {int(words[1]) for words in lines if words[0] == "stored"}


class Stage:
    """The process that forks all others and kills them."""

    def __init__(self, folder: Path, seed: int, *, in_process: bool) -> None:
        self.run, self.notes_path = folder / "run", folder / "notes"
        self.notes = Notes(self.notes_path)
        self.dice = random.Random(seed)
        self.in_process = in_process
        self.alive: dict[int, str] = {}
        self.kills = Counter[str]()
        self.frozen: dict[int, float] = {}  # until when

    def fork(self, role: str, main: Callable[[], None], *others: socket.socket) -> int:
        """`others`: what the new process must not hold."""
        pid = os.fork()
        if not pid:
            self._become(main, others)
        self.alive[pid] = role
        return pid

    def _become(self, main: Callable[[], None], others: tuple[socket.socket, ...]) -> NoReturn:
        code = 1
        try:
            for one in others:
                one.close()
            main()
            code = 0
        except BaseException:  # noqa: BLE001 - as the interpreter ends with it
            traceback.print_exc()
            self.notes.add("wrong", traceback.format_exc().replace("\n", " | "))
        os._exit(code)

    def reap(self) -> Iterator[tuple[str, int]]:
        """Who has ended, and how."""
        while self.alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            yield self.alive.pop(pid), os.waitstatus_to_exitcode(status)

    def freeze_one(self) -> None:
        """A worker does nothing for a moment, and goes on."""
        workers = [pid for pid, role in self.alive.items() if role == "worker"]
        if workers:
            pid = self.dice.choice(workers)
            os.kill(pid, signal.SIGSTOP)
            self.frozen[pid] = time.monotonic() + self.dice.random() * 0.2

    def thaw(self) -> None:
        for pid, until_s in list(self.frozen.items()):
            if time.monotonic() > until_s:
                del self.frozen[pid]
                if pid in self.alive:
                    os.kill(pid, signal.SIGCONT)

    def kill_one(self) -> None:
        by_role: dict[str, list[int]] = {"driver": [], "worker": []}
        for pid, role in self.alive.items():
            by_role.get(role, []).append(pid)
        # Mostly workers; of drivers few before they have begun, so that there is an end.
        roles = ["worker", "worker", "driver"] if by_role["worker"] else ["driver", "", "", ""]
        role = self.dice.choice(roles)
        if pids := by_role.get(role):
            os.kill(self.dice.choice(pids), signal.SIGKILL)
            self.kills[role] += 1

    def play(self, rows: int, kills: int, *, again: bool) -> None:
        """To the end of a run, whoever is killed on the way."""
        left = self.kills.total() + kills
        while True:
            ours, theirs = socket.socketpair()
            driver = self.fork(
                "driver",
                lambda theirs=theirs: drive(  # type: ignore[misc]
                    self.run, theirs, self.notes, rows, again=again
                ),
                ours,
            )
            theirs.close()
            code = self._attend(driver, ours, left, again=again)
            ours.close()
            if code == 0:
                return
            if code != -signal.SIGKILL:
                raise SystemExit(f"the driver ended with {code}")

    def _attend(self, driver: int, control: socket.socket, left: int, *, again: bool) -> int:
        """Starts workers as the driver asks, and kills, until it has ended: how."""
        next_s = time.monotonic() + self.dice.random() * 0.2
        code: int | None = None
        while code is None:
            ready, _, _ = select.select([control], [], [], _LOOK_S)
            asked = b""
            with suppress(ConnectionResetError):
                asked = control.recv(100) if ready else b""
            if asked:
                self._start_worker(int(asked), control, again=again)
            elif ready:
                time.sleep(_LOOK_S)
            if self.kills.total() < left and time.monotonic() > next_s:
                next_s = time.monotonic() + self.dice.random() * 0.15
                self.kill_one()
                self.freeze_one()
            self.thaw()
            for role, how in self.reap():
                if role == "driver":
                    code = how
                elif how not in (0, -signal.SIGKILL):
                    self.notes.add("wrong", f"a {role} ended with {how}")
        return code

    def _start_worker(self, number: int, control: socket.socket, *, again: bool) -> None:
        ours, theirs = socket.socketpair()
        self.fork(
            "worker",
            lambda: work(
                *(self.run, number, theirs, self.notes), again=again, in_process=self.in_process
            ),
            ours,
            control,
        )
        theirs.close()
        with suppress(OSError):
            socket.send_fds(control, [b"w"], [ours.fileno()])
        ours.close()

    def end(self) -> None:
        """Nobody is left, once all but the watcher have ended."""
        while any(role != "watcher" for role in self.alive.values()):
            self.thaw()
            list(self.reap())
            time.sleep(_LOOK_S)
        self.kill_all()

    def kill_all(self) -> None:
        for pid in self.alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.alive.clear()


def main(folder: Path, seed: int, rows: int, kills: int, *, in_process: bool) -> None:
    stage = Stage(folder, seed, in_process=in_process)
    stage.fork("watcher", lambda: watch(stage.run, stage.notes_path, stage.notes))
    try:
        for again in (False, True):
            stage.play(rows, kills, again=again)
            stage.notes.add("ended")
        stage.end()
    finally:
        stage.kill_all()
    sys.stdout.write(json.dumps(dict(stage.kills)))


if __name__ == "__main__":
    given = [*map(int, sys.argv[2:5])]
    main(Path(sys.argv[1]), *given, in_process=sys.argv[5:] == ["in_process"])
