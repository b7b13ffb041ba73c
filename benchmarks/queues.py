"""Throughput of a server that queues: `python -m benchmarks.queues` runs all and writes a table.

The servers are vLLM for CPUs and llama.cpp, each with a tiny model, as `make bench-queues` installs
them. Each client sends the same rows, with a time-out that is short for the speed of this machine:
`--concurrency auto`, fixed numbers in flight, and the openai SDK behind a semaphore. Exit code 1
when a goal is missed.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pyarrow.dataset
from msgspec import Struct

from benchmarks.pages import write_lines
from benchmarks.sdk_loop import Tally

_ROOT = Path(__file__).parent.parent
_VLLM = _ROOT / ".servers" / "vllm"
_LLAMA = _ROOT / ".servers" / "llama"
_SLOTS = 32  # that llama.cpp works on at once
# For each client and round: more than a minute, so that the first seconds count for as little as in
# a real run. A few in flight get a third.
_ROWS = {"vllm": 8000, "llama": 2400}
_FEW = ("8", "16")
_WARM_ROWS = 500
_FIXED = (8, 16, 32, 64, 128, 256)
_SDK = 256  # in flight
_SHARE = 0.95  # of the best fixed number, that auto has to reach
_TOKENS, _SIGMA, _MOST_TOKENS = 60, 0.7, 600  # of output: median, of the logarithm, at most
_START_S = 400.0
_CLIENT_S = 300.0
_SERVER_S = 2400  # for the server, should this be killed


class Sent(Struct, frozen=True):
    """What one client did with the rows."""

    tokens: int  # of output
    seconds: float
    lost: int
    attempts: int | None = None

    @property
    def per_s(self) -> float:
        return self.tokens / self.seconds


def main() -> int:
    options = _options()
    servers = [options.server] if options.server else list(_SERVERS)
    for name in servers:
        if not (_ROOT / ".servers" / name / "installed").exists():
            print(f"{name} is not installed: make .servers/{name}/installed does it")
            return 1
    measured = {name: _measure(name, options) for name in servers}
    lines = [line for name, sums in measured.items() for line in _lines(name, sums)]
    print("\n".join(lines))
    if not options.dry and not options.server:
        head = ["| server | in flight | tokens/s | to the best fixed | rows lost | attempts |"]
        head += ["| --- | --- | --- | --- | --- | --- |"]
        write_lines("queues", ["", *head, *lines, ""])
    is_missed = [
        sums["auto"].per_s < _SHARE * _best(sums) or sums["auto"].lost > 0
        for sums in measured.values()
    ]
    return int(any(is_missed))


def _measure(server: str, options: argparse.Namespace) -> dict[str, Sent]:
    """What each client did with one server."""
    names = ["auto", *map(str, _FIXED), f"openai SDK, {_SDK}"]
    found: dict[str, list[Sent]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="batchrun-queues-") as place_name:
        place = Path(place_name)
        source = place / "rows.jsonl"
        with _served(server, place) as url:
            _write_rows(source, _WARM_ROWS, "warm")  # its kernels for many at once too
            _batchrun(place / "warm", source, url, "128", options.timeout)

            def send(name: str, number: int) -> None:
                run = place / f"{name}-{number}"
                rows = options.rows or _ROWS[server]
                _write_rows(source, rows // 3 if name in _FEW else rows, run.name)
                if name.startswith("openai"):
                    sent = _sdk(source, url, options.timeout)
                else:
                    sent = _batchrun(run, source, url, name, options.timeout)
                found[name].append(sent)
                print(f"{server}, {name}: {sent}", flush=True)

            for number in range(options.rounds):
                for name in names if number % 2 == 0 else reversed(names):
                    send(name, number)
            # The best of six is also the luckiest: it and auto are measured again, side by side.
            best = max(map(str, _FIXED), key=lambda name: _added(found[name]).per_s)
            for name in (best, "auto"):
                send(name, options.rounds)
    return {name: _added(all_sent) for name, all_sent in found.items()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--server", choices=_SERVERS, help="only this one; the page is left")
    parser.add_argument("--rows", type=int, help="for each client and round")
    parser.add_argument(
        "--rounds", type=int, default=1, help="of all clients; every second in reverse order"
    )
    parser.add_argument("--timeout", type=float, default=15.0, help="of an attempt, in seconds")
    parser.add_argument("--dry", action="store_true", help="print the table and leave the page")
    return parser.parse_args()


def _write_rows(path: Path, rows: int, word: str) -> None:
    """Bodies with lognormal lengths of answers: random weights mostly go on to the limit.

    `word` begins each, so that the server has cached nothing of another client's.
    """
    draw = random.Random(7)
    with path.open("w") as file:
        for row in range(rows):
            tokens = min(_MOST_TOKENS, max(16, round(_TOKENS * draw.lognormvariate(0, _SIGMA))))
            body = {
                "custom_id": f"r{row}",
                "model": "tiny",
                "input": f"{word}, row {row}: {'word ' * draw.randint(5, 60)}",
                "max_output_tokens": tokens,
            }
            file.write(json.dumps(body) + "\n")


def _batchrun(run: Path, source: Path, url: str, concurrency: str, timeout_s: float) -> Sent:
    words = [sys.executable, "-m", "batchrun", "run", source, "-o", run, "--base-url", url]
    words += ["--json", "--quiet", "--concurrency", concurrency, "--timeout", timeout_s]
    _ended([*words, "--give-up-after", "120"])
    columns = ["status", "output_tokens", "attempts"]
    rows = pyarrow.dataset.dataset(run / "responses").to_table(columns=columns).to_pylist()
    attempts = [one for row in rows for one in row["attempts"]]
    starts = [one["started_at"].timestamp() for one in attempts]
    ends = [one["started_at"].timestamp() + one["latency_s"] for one in attempts]
    answered = [row for row in rows if row["status"] in ("completed", "incomplete")]
    return Sent(
        sum(row["output_tokens"] or 0 for row in answered),
        max(ends) - min(starts),
        sum(1 for _ in source.open()) - len(answered),
        len(attempts),
    )


def _sdk(source: Path, url: str, timeout_s: float) -> Sent:
    words = [sys.executable, "-m", "benchmarks.sdk_loop", source, url, _SDK, timeout_s]
    tally = msgspec.json.decode(_ended(words), type=Tally)
    return Sent(tally.tokens, tally.seconds, tally.lost)


def _ended(words: list[object]) -> bytes:
    """What a client prints; rows that were lost are no reason to stop."""
    done = subprocess.run(
        [*map(str, words)],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=_CLIENT_S,
    )
    return done.stdout


def _added(all_sent: list[Sent]) -> Sent:
    attempts = [sent.attempts for sent in all_sent if sent.attempts is not None]
    return Sent(
        sum(sent.tokens for sent in all_sent),
        sum(sent.seconds for sent in all_sent),
        sum(sent.lost for sent in all_sent),
        sum(attempts) if attempts else None,
    )


def _best(sums: dict[str, Sent]) -> float:
    return max(sums[str(fixed)].per_s for fixed in _FIXED)


def _lines(server: str, sums: dict[str, Sent]) -> list[str]:
    lines = []
    for name, sent in sums.items():
        attempts = "" if sent.attempts is None else f"{sent.attempts:,}"
        client = name if name.startswith("openai") else f"batchrun, {name}"
        share = sent.per_s / _best(sums)
        lines.append(
            f"| {server} | {client} | {sent.per_s:,.0f} | {share:.2f} | {sent.lost:,} "
            f"| {attempts} |"
        )
    return lines


def _vllm_command(port: int) -> list[object]:
    return [
        *(_VLLM / "bin/vllm", "serve", _VLLM / "tiny", "--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", port),
        *("--max-model-len", "2048", "--dtype", "float32", "--enforce-eager"),
    ]


def _llama_command(port: int) -> list[object]:
    return [
        *(_LLAMA / "llama-server", "--model", _LLAMA / "tiny.gguf", "--alias", "tiny"),
        *("--host", "127.0.0.1", "--port", port),
        *("--parallel", _SLOTS, "--ctx-size", _SLOTS * 1024, "--threads", 2, "--jinja"),
    ]


_SERVERS = {"vllm": _vllm_command, "llama": _llama_command}


@contextmanager
def _served(server: str, place: Path) -> Iterator[str]:
    """The server with its tiny model; its base URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    settings = {
        "HF_HOME": str(place),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "2",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    words = ["timeout", "--kill-after=5", _SERVER_S, *_SERVERS[server](port)]
    with (place / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*map(str, words)],
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, place / "server.log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end_s = time.monotonic() + _START_S
    while True:
        with suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - loopback
            return
        if process.poll() is not None or time.monotonic() > end_s:
            raise SystemExit(
                f"the server does not listen:\n{log.read_text(errors='replace')[-2000:]}"
            )
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
