"""Processes that score, with a time limit for each answer.

A process that takes too long is killed, and one that ended is replaced; either costs one answer.
"""

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from batchrun.errors import JobError
from batchrun.evals.rules import time_limit_s
from batchrun.evals.scoring_worker import VALUE, failed
from batchrun.job.scorer_sections import PythonJob, ScorerJob

T = TypeVar("T")
_MAIN = "from batchrun.evals.scoring_worker import serve; serve()"
_MOST = 8  # processes
_START_S = 60.0  # to import what there is to import
_LATE_S = 0.5  # beyond the limit, for what is on its way


class _Gone(Exception):  # noqa: N818 - the caller knows what to do then
    """The process has ended, or was killed for being late."""


class _Worker:
    """One process; for one thread at a time."""

    def __init__(self, job: ScorerJob) -> None:
        """Raises `JobError` where the scorer cannot be made."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and this code
                [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
                pass_fds=(theirs.fileno(),),
                process_group=0,  # what the terminal sends is for our process
            )
        self._pipe = Connection(ours.detach())
        try:
            self.send(job)
            problem = self.receive(max(_START_S, time_limit_s(job)))
        except _Gone as error:
            raise JobError(f"scorer {job.name}: its process ended at once: {error}") from None
        if problem is not None:
            self.kill()
            raise JobError(f"scorer {job.name}: {problem}")

    def send(self, value: object) -> None:
        with suppress(BrokenPipeError):  # the next `receive` finds out
            self._pipe.send(value)

    def receive(self, within_s: float) -> Any:
        """Raises `_Gone`."""
        try:
            if self._pipe.poll(within_s):
                return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise _Gone(f"its process ended (exit code {self._process.wait()})") from None
        self.kill()
        raise _Gone("it took too long")

    def kill(self) -> None:
        """Whoever waits for it hears that it is gone."""
        self._process.kill()
        self._process.wait()


class WorkerPool:
    """Scores lists of answers, in their order. The first process is made at once.

    Raises `JobError` where the scorer cannot be made.
    """

    def __init__(self, job: ScorerJob) -> None:
        self._job = job
        self._limit_s = time_limit_s(job) + _LATE_S
        self._costs_a_row = isinstance(job, PythonJob) or job.kind == "math"
        self._most = min(_MOST, len(os.sched_getaffinity(0)))
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._all: list[_Worker] = []
        self.is_closed = False
        self._idle.put(self._new())

    def close(self) -> None:
        self.is_closed = True
        for worker in list(self._all):
            worker.kill()

    def scores(self, lists: Iterable[tuple[T, Sequence[Any]]]) -> Iterator[tuple[T, list[Any]]]:
        """What comes of each list; what is given with it comes back. Raises `JobError`."""
        with ThreadPoolExecutor(self._most) as threads:
            waiting: deque[tuple[T, Future[list[Any]]]] = deque()
            try:
                for given, answers in lists:
                    waiting.append((given, threads.submit(self._of, answers)))
                    if len(waiting) > 2 * self._most:
                        one, future = waiting.popleft()
                        yield one, future.result()
                while waiting:
                    one, future = waiting.popleft()
                    yield one, future.result()
            except BaseException:
                for _, future in waiting:
                    future.cancel()
                self.close()
                raise

    def _new(self) -> _Worker:
        worker = _Worker(self._job)
        self._all.append(worker)
        return worker

    def _of(self, answers: Sequence[Any]) -> list[Any]:
        try:
            worker = self._idle.get_nowait()
        except Empty:
            worker = self._new()
        made: list[Any] = []
        is_single = False  # the next one that ends the process is known
        while len(made) < len(answers):
            worker.send((is_single, answers[len(made) :]))
            try:
                while len(made) < len(answers):
                    made += worker.receive(self._limit_s)
            except _Gone as error:
                self._all.remove(worker)
                if self.is_closed:
                    raise JobError("scoring was stopped") from None
                if is_single:
                    made.append(self._lost(str(error)))
                is_single = not is_single
                worker = self._new()
        self._idle.put(worker)
        return made

    def _lost(self, said: str) -> Any:
        if "too long" in said:
            said = f"it took longer than {self._limit_s - _LATE_S:g} s"
        if self._costs_a_row:
            return {VALUE: failed(said)}
        raise JobError(
            f"scorer {self._job.name}: its pattern took longer than {self._limit_s - _LATE_S:g} s "
            "for one answer; write one that does not try the same text in many ways (nested `*` or "
            "`+`), or set timeout_s"
        )
