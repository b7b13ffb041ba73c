"""A worker in a process of its own, that a test drives over its standard streams.

Frames of four bytes of length and so many of payload. An empty one says that it is ready. A pickled
path and token are answered by a greeting, in which it says of itself what its command line says;
pickled setup and servers by an empty frame, once the worker has started. Then ticks are answered by
reports.
"""

import asyncio
import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from msgspec.structs import replace

from batchrun.executors.messages import (
    FleetTick,
    WorkerReport,
    decode_report,
    decode_tick,
    encode,
)
from batchrun.executors.worker_process import encode_greeting, greeting
from batchrun.job.credentials import Server
from batchrun.runner.cluster.worker import Worker, WorkerSetup
from batchrun.runner.start import new_event_loop


class WorkerProcess:
    """As a test sees it."""

    def __init__(
        self,
        writer: int,
        says: Mapping[str, object] | None = None,
        before: Sequence[str] = (),
    ) -> None:
        """`says`: fields of its greeting that are not so."""
        self.writer = writer
        self.process = subprocess.Popen(
            [
                *before,
                *(sys.executable, "-m", "tests.runner.worker_process", json.dumps(says or {})),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to, self._from = self.process.stdin, self.process.stdout

    def wait(self) -> None:
        """Until it is ready for its setup."""
        assert _read(self._from) == b""

    def greet(self, path: str, token: str) -> bytes:
        _write(self._to, pickle.dumps((path, token)))
        return _read(self._from)

    def start(self, setup: WorkerSetup, servers: Mapping[str | None, Server]) -> None:
        _write(self._to, pickle.dumps((setup, servers)))
        assert _read(self._from) == b""

    def tick(self, tick: FleetTick) -> WorkerReport:
        """Raises `EOFError` where the process has ended."""
        return decode_report(self.answer(encode(tick)))

    def answer(self, message: bytes) -> bytes:
        """The same of what travels."""
        try:
            _write(self._to, message)
        except BrokenPipeError:
            raise EOFError from None
        return _read(self._from)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        with suppress(BrokenPipeError):  # it has not read all
            self._to.close()
        self._from.close()


def _write(stream: IO[bytes], payload: bytes) -> None:
    stream.write(struct.pack("!I", len(payload)) + payload)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    (size,) = struct.unpack("!I", _exactly(stream, 4))
    return _exactly(stream, size)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


async def _serve() -> None:
    reader = asyncio.StreamReader(1 << 30)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer
    )

    async def read() -> bytes:
        (size,) = struct.unpack("!I", await reader.readexactly(4))
        return await reader.readexactly(size)

    _write(sys.stdout.buffer, b"")
    given = pickle.loads(await read())  # noqa: S301 - of the test that started it
    while isinstance(given[0], str):
        said = await asyncio.to_thread(greeting, *given)
        said = replace(said, **json.loads(sys.argv[1]))
        _write(sys.stdout.buffer, encode_greeting(said))
        given = pickle.loads(await read())  # noqa: S301 - the same
    setup, servers = given
    worker = Worker(setup, servers)
    await worker.start()
    _write(sys.stdout.buffer, b"")
    ended = asyncio.create_task(worker.is_over.wait())
    while True:
        asked = asyncio.create_task(read())
        await asyncio.wait((asked, ended), return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            # The last report tells that it has ended; a driver that is gone asks for none.
            await asyncio.wait((asked,), timeout=1)
            if not asked.done() or asked.exception() is not None:
                os._exit(0)
        if asked.exception() is not None:  # the driver is gone: nobody ticks any more
            await ended
            os._exit(0)
        report = await worker.tick(decode_tick(asked.result()))
        _write(sys.stdout.buffer, encode(report))


if __name__ == "__main__":
    with suppress(asyncio.IncompleteReadError):  # its driver is gone
        new_event_loop().run_until_complete(_serve())
