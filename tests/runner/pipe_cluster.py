"""A cluster without an engine: each worker is a process of this machine, called over pipes."""

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from batchrun.executors.worker_process import Greeting, WorkerFailed, decode_greeting
from batchrun.runner.cluster.worker import WorkerSetup
from tests.runner.worker_process import WorkerProcess

_WORKERS = 16  # at most, so that each can be waited for by a thread
Result = TypeVar("Result")


class PipedWorker:
    """A worker's process, as a driver calls it."""

    def __init__(self, process: WorkerProcess, pool: ThreadPoolExecutor) -> None:
        self.process, self._pool = process, pool
        self._is_ready = False
        self.called_s: list[float] = []  # when, by `time.monotonic`
        self.is_cut = False  # nothing comes from it any more, and nothing kills it

    async def greet(self, path: str, token: str, _access: object) -> Greeting:
        await self._do(self.wait)
        return decode_greeting(await self._do(self.process.greet, path, token))

    async def begin(self, _make: object, settings: WorkerSetup, secrets: Any) -> str | None:
        self.process.writer = settings.writer
        await self._do(self.process.start, settings, secrets)
        return None

    async def tick(self, message: bytes) -> bytes:
        self.called_s.append(time.monotonic())
        answer = await self._do(self.process.answer, message)
        if self.is_cut:
            await asyncio.Event().wait()
        return answer

    def wait(self) -> None:
        """Until its process can be greeted. Raises `EOFError` if it has ended."""
        if not self._is_ready:
            self.process.wait()
            self._is_ready = True

    def kill(self) -> None:
        if not self.is_cut:
            self.process.process.kill()

    async def _do(self, work: Callable[..., Result], *arguments: object) -> Result:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, work, *arguments)
        except (EOFError, BrokenPipeError) as error:
            raise WorkerFailed("its process has ended", is_over=True) from error


class PipeCluster:
    """Where workers are started, as the driver has it."""

    def __init__(self, before_start: Callable[[int], object] = lambda _number: None) -> None:
        """`before_start`: called in the thread that starts a worker, with its number, from 1."""
        self.workers: list[PipedWorker] = []
        self.says: Mapping[str, object] = {}  # of the greetings of the next ones: what is not so
        self.before: Sequence[str] = ()  # words before the command of the next ones
        self._spare: list[PipedWorker] = []
        self._before_start, self._numbers = before_start, itertools.count(1)
        self._pool = ThreadPoolExecutor(_WORKERS)

    def prepare(self, workers: int) -> "PipeCluster":
        """Has so many more processes ready, as a cluster has that starts them quickly."""
        made = [self._make() for _ in range(workers)]
        for worker in made:
            worker.wait()
        self._spare += made
        return self

    def start(self, _name: str) -> PipedWorker:
        self._before_start(next(self._numbers))
        worker = self._spare.pop(0) if self._spare else self._make()
        self.workers.append(worker)
        return worker

    def _make(self) -> PipedWorker:
        return PipedWorker(WorkerProcess(0, self.says, self.before), self._pool)

    def problem(self) -> str | None:
        return None

    def free_in_words(self) -> str:
        return "no CPU is free"

    def close(self) -> None:
        for worker in (*self.workers, *self._spare):
            worker.process.end()
        self._pool.shutdown()
