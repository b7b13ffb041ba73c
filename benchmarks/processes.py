"""Real processes: a fresh lean server, and a client run against it until it ends or is ended."""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
from msgspec import Struct

from benchmarks.lean_limits import Settings
from benchmarks.lean_stats import Stats

_ROOT = Path(__file__).parent.parent
_WHOLE_S = 1200.0  # a client that has to do all its rows
_LANDING_S = 40.0  # a client that was told to stop has this long


class Load(Struct, frozen=True):
    """The rows of an input file."""

    rows: int
    input_chars: float = 300.0  # median; lengths are lognormal
    sigma: float = 0.3
    most_chars: int = 8000


class Ended(Struct, frozen=True):
    """One client's run, and what its server saw."""

    settings: Settings
    stats: Stats
    exit_code: int
    total_s: float  # from the first request to the end of the process
    directory: Path  # of the run; empty after a plain loop
    lost: int  # rows that it gave up, as the client itself tells; -1 where it told nothing


def write_rows(path: Path, load: Load) -> None:
    """JSON Lines of Responses bodies, the same each time."""
    draw = random.Random(7)
    with path.open("w") as file:
        for row in range(load.rows):
            chars = int(load.input_chars * draw.lognormvariate(0, load.sigma))
            text = f"Row {row}: {'word ' * (chars // 5)}"[: load.most_chars]
            body = {"custom_id": f"r{row}", "model": "m", "input": text, "stream": False}
            file.write(json.dumps(body) + "\n")


async def run_batchrun(
    place: Path, load: Load, settings: Settings, options: Sequence[str], seconds: float | None
) -> Ended:
    """`batchrun run` in a process; stopped by SIGINT after so many seconds of requests, if any."""
    source = place / "rows.jsonl"
    write_rows(source, load)
    command = [sys.executable, "-m", "batchrun", "run", str(source), "--json", "--quiet"]
    command += ["-o", str(place / "run"), *options]
    async with _lean_server(settings) as url:
        return await _run([*command, "--base-url", url], url, settings, place, seconds)


async def run_plain_loop(
    place: Path, load: Load, settings: Settings, concurrency: int, seconds: float | None
) -> Ended:
    """The same for the plain loop."""
    source = place / "rows.jsonl"
    write_rows(source, load)
    command = [sys.executable, "-m", "benchmarks.plain_loop", str(source)]
    async with _lean_server(settings) as url:
        return await _run([*command, url, str(concurrency)], url, settings, place, seconds)


@asynccontextmanager
async def _lean_server(settings: Settings) -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks.lean_server", msgspec.json.encode(settings).decode()),
        cwd=_ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        await process.wait()


async def _run(
    command: list[str], url: str, settings: Settings, place: Path, seconds: float | None
) -> Ended:
    errors = place / "stderr.txt"
    with errors.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=_ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    async with aiohttp.ClientSession(url.removesuffix("v1")) as session:
        try:
            out = asyncio.create_task(process.communicate())
            await _watch(process, session, out, seconds)
            ended_s = time.monotonic()
            said = (await out)[0]
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        async with session.get("stats") as answer:
            saw = await answer.read()
    (place / "stats.json").write_bytes(saw)  # for whoever wants to know more (--keep)
    stats = msgspec.json.decode(saw, type=Stats)
    code = process.returncode or 0
    if code not in (0, 130) or stats.first_s is None:
        what = f"{' '.join(command)}\nended with {code}:\n{errors.read_text()[-2000:]}"
        if stats.first_s is None:
            raise SystemExit(f"{what}\nand sent nothing")
        print(what)
    return Ended(
        settings=settings,
        stats=stats,
        exit_code=code,
        total_s=ended_s - stats.first_s,
        directory=place / "run",
        lost=_lost(said),
    )


async def _watch(
    process: asyncio.subprocess.Process,
    session: aiohttp.ClientSession,
    out: asyncio.Task[tuple[bytes, bytes]],
    seconds: float | None,
) -> None:
    """Until the process has ended; it is asked to when its requests have come for long enough."""
    if seconds is None:
        await asyncio.wait([out], timeout=_WHOLE_S)
        return
    first_s: float | None = None
    while first_s is None and not out.done():
        await asyncio.sleep(0.1)
        async with session.get("first") as answer:
            first_s = await answer.json()
    if first_s is not None:
        await asyncio.wait([out], timeout=first_s + seconds + 0.3 - time.monotonic())
    if not out.done():
        process.send_signal(signal.SIGINT)
        await asyncio.wait([out], timeout=_LANDING_S)


def _lost(said: bytes) -> int:
    """From the summary of batchrun or the tally of the plain loop, whichever it is."""
    try:
        told = json.loads(said)
    except ValueError:
        return -1
    return int(told.get("lost", told.get("not_ok", -1)))
