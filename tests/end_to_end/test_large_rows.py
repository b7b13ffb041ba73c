"""Rows of megabytes: what a run of them holds in memory, and the tokens that images take."""

import asyncio
import base64
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from tests.processes import COMMAND
from tests.raw_sockets import listening, read_head, text_answer
from tests.waiting import HANG_S

MB = 1_000_000


class SlowServer:
    """Reads each body whole, and answers when `may_answer` says so."""

    def __init__(self) -> None:
        self.base_url = ""
        self.waiting = self.most_waiting = self.answered = 0
        self.answer_s = 0.3
        self.least_waiting = 0  # so many must wait before the second answer
        self._is_ended = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(HANG_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ended.set()
        self._thread.join(HANG_S)

    async def _serve(self) -> None:
        async with listening(self._answer) as port:
            self.base_url = f"http://127.0.0.1:{port}/v1"
            self._ready.set()
            while not self._is_ended.is_set():
                await asyncio.sleep(0.05)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = text_answer("a cat", 1_100, 3)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                _, left = await read_head(reader)
                while left:
                    left -= len(await reader.read(min(left, 1 << 20)))
                self.waiting += 1
                self.most_waiting = max(self.waiting, self.most_waiting)
                while self.answered and self.most_waiting < self.least_waiting:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(self.answer_s)
                self.waiting -= 1
                self.answered += 1
                writer.write(answer)
                await writer.drain()


@pytest.fixture
def server() -> Iterator[SlowServer]:
    with SlowServer() as serving:
        yield serving


def resident_bytes(pid: int) -> int:
    """Of a process and its children, now."""
    total = 0
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        total = sum(resident_bytes(int(child)) for child in children)
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        total += pages * os.sysconf("SC_PAGE_SIZE")
    return total


def run_watched(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The most bytes that were resident at a time, and what was printed and said."""
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.02):
            most = max(most, resident_bytes(process.pid))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        out, said = process.communicate(timeout=HANG_S)
    finally:
        ended.set()
        watching.join()
    return most, out, said


def write_large(path: Path, rows: int, size: int, **fields: Any) -> None:
    filler = base64.b64encode(os.urandom(size * 3 // 4)).decode()
    with path.open("w") as file:
        for row in range(rows):
            file.write(json.dumps({"prompt": f"{row} {filler}", **fields}) + "\n")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    "options", [[], pytest.param(["--mode", "stream"], marks=pytest.mark.long)]
)
def test_rows_of_4_mb_have_a_budget_in_bytes(
    begin: Callable[..., subprocess.Popen[str]],
    server: SlowServer,
    tmp_path: Path,
    options: list[str],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    rows = 150
    write_large(tmp_path / "large.jsonl", rows, 4 * MB)
    most, _, said = run_watched(
        begin(
            *("run", "large.jsonl", "--model", "m", "--base-url", server.base_url, "-o", "run"),
            *("--concurrency", 200, "--api-key-env", "none", *options),
            command=COMMAND,  # a fork's memory is also that of what it was forked from
        )
    )
    assert totals() == (rows, rows, rows), said
    assert most < 600 * MB
    assert server.most_waiting >= 4  # and many at a time all the same


def test_images_take_the_tokens_that_answers_needed_not_a_fourth_of_their_bytes(
    begin: Callable[..., subprocess.Popen[str]],
    server: SlowServer,
    write_rows: Callable[..., Path],
    totals: Callable[..., tuple[Any, ...]],
) -> None:
    """By their bytes one row reserved 100,000 tokens, so that two were never in flight."""
    server.least_waiting = 8  # nothing is answered before so many are in flight, but the first
    image = f"data:image/png;base64,{'A' * 400_000}"
    part = {"type": "input_image", "image_url": image}
    write_rows({"input": [{"role": "user", "content": [part]}]} for _ in range(20))
    process = begin(
        *("run", "prompts.jsonl", "--model", "m", "--base-url", server.base_url, "-o", "run"),
        *("--tpm", 200_000, "--api-key-env", "none"),
    )
    said = process.communicate(timeout=HANG_S)[1]
    assert totals() == (20, 20, 20), said
