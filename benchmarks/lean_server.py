"""A server for benchmarks: an asyncio protocol, one process, hidden limits, and a record of it all.

`python -m benchmarks.lean_server '{"requests_per_s": 200}'` prints its port and serves until it is
ended; the keys are those of `Settings`. POST /v1/responses is answered as they say, GET /stats with
what happened (`Stats`), GET /first with `first_s` alone. Clients that send a second request on a
connection before the first is answered are not provided for.
"""

import asyncio
import math
import random
import re
import sys
import time
import zlib
from typing import cast

import msgspec
import uvloop

from benchmarks.lean_limits import Limits, Refusal, Settings
from benchmarks.lean_stats import Stats

_MAX_OUTPUT = re.compile(rb'"max_output_tokens":\s*(\d+)')
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:\s*(\d+)")
_REASONS = {200: "OK", 404: "Not Found", 429: "Too Many Requests", 503: "Service Unavailable"}
_ANSWER = (
    '{"id":"resp_%d","object":"response","created_at":1,"status":"completed","error":null,'
    '"incomplete_details":null,"model":"m","output":[{"type":"message","id":"msg_%d",'
    '"status":"completed","role":"assistant","content":[{"type":"output_text","text":'
    '"A short answer.","annotations":[]}]}],"usage":{"input_tokens":%d,"input_tokens_details":'
    '{"cached_tokens":0},"output_tokens":%d,"output_tokens_details":{"reasoning_tokens":0},'
    '"total_tokens":%d}}'
)
_ERROR = '{"error":{"message":"%s","type":"%s","param":null,"code":"%s"}}'
_DOWN = _ERROR % ("Service unavailable.", "server_error", "server_error")
_FULL = _ERROR % ("Overloaded.", "service_unavailable_error", "server_is_overloaded")


class Service:
    """Decides on each request and keeps the record."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limits = Limits(settings)
        self._stats = Stats(None, 0.0, [], [], [], [], [], [])
        self._first_s: float | None = None
        self._in_flight = 0
        self._attempts = random.Random(settings.seed)
        mu = math.log(settings.output_tokens)
        rows = random.Random(settings.seed + 1)
        lengths = [round(rows.lognormvariate(mu, settings.output_sigma)) for _ in range(4096)]
        self._lengths = [max(1, min(settings.output_most, length)) for length in lengths]

    def arrive(self, body: bytes) -> tuple[int, float, bytes]:
        """Number and delay of the answer, and the answer where it is a refusal, else nothing."""
        if self._first_s is None:
            self._first_s = time.monotonic()
        settings, now_s = self._settings, time.monotonic() - self._first_s
        found = _MAX_OUTPUT.search(body)
        most = int(found[1]) if found else None
        inputs = len(body) // 4
        reserved = inputs + (most or settings.default_output_tokens)
        refused = self._refused(reserved, now_s)
        length = self._lengths[zlib.crc32(body) & 4095]
        output = length if most is None else max(1, min(length, most - 1))
        stats = self._stats
        stats.arrived.append(now_s)
        stats.ended.append(-1.0)
        stats.statuses.append(refused[0] if refused else 200)
        stats.inputs.append(inputs)
        stats.reserved.append(reserved)
        stats.used.append(0 if refused else inputs + output)
        number = len(stats.arrived) - 1
        if refused:
            return number, settings.refusal_s, refused[1]
        self._in_flight += 1
        delay_s = settings.latency_s * (1 + settings.spread * self._attempts.uniform(-1, 1))
        if settings.slow_every and self._attempts.random() < 1 / settings.slow_every:
            delay_s *= settings.slow_factor
        return number, delay_s, b""

    def end(self, number: int) -> bytes:
        """Books that a request is answered now, and makes the answer where it was accepted."""
        stats, now_s = self._stats, self._now_s()
        stats.ended[number] = now_s
        if stats.statuses[number] != 200:
            return b""
        self._release(number)
        inputs, used = stats.inputs[number], stats.used[number]
        answer = _ANSWER % (number, number, inputs, used - inputs, used)
        headers = self._limits.headers(now_s) if self._settings.hints else ""
        return _message(200, answer, headers)

    def drop(self, number: int) -> None:
        """Its client has gone; what was being made is used all the same."""
        if self._stats.statuses[number] == 200:
            self._release(number)

    def get(self, path: bytes) -> bytes:
        if path == b"/first":
            return _message(200, msgspec.json.encode(self._first_s).decode())
        if path != b"/stats":
            return _message(404, "{}")
        now = msgspec.structs.replace(self._stats, first_s=self._first_s, now_s=self._now_s())
        return _message(200, msgspec.json.encode(now).decode())

    def _now_s(self) -> float:
        return 0.0 if self._first_s is None else time.monotonic() - self._first_s

    def _release(self, number: int) -> None:
        self._in_flight -= 1
        self._limits.settle(self._stats.reserved[number], self._stats.used[number])

    def _refused(self, reserved: int, now_s: float) -> tuple[int, bytes] | None:
        settings = self._settings
        if settings.outage is not None and settings.outage[0] <= now_s < settings.outage[1]:
            return 503, _message(503, _DOWN)
        if settings.in_flight is not None and self._in_flight >= settings.in_flight:
            return 503, _message(503, _FULL)
        refusal = self._limits.admit(reserved, now_s)
        if refusal is None:
            return None
        if not settings.hints:
            error = _ERROR % ("Rate limit reached.", refusal.of, "rate_limit_exceeded")
            return 429, _message(429, error)
        error = _ERROR % (_explained(refusal), refusal.of, "rate_limit_exceeded")
        headers = (
            f"retry-after-ms: {max(1, math.ceil(refusal.wait_s * 1000))}\r\n"
            f"retry-after: {max(1, math.ceil(refusal.wait_s))}\r\n"
        )
        return 429, _message(429, error, headers + self._limits.headers(now_s))


def _explained(refusal: Refusal) -> str:
    short = "RPM" if refusal.of == "requests" else "TPM"
    return (
        f"Rate limit reached for m on {refusal.of} per min ({short}): Limit {refusal.limit:.0f}, "
        f"Used {refusal.used:.0f}, Requested {refusal.asked:.0f}. "
        f"Please try again in {max(1, math.ceil(refusal.wait_s * 1000))}ms."
    )


def _message(status: int, body: str, headers: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\n{headers}"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode()


class Connection(asyncio.Protocol):
    """One client's connection, kept alive."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._data = b""
        self._pending: tuple[int, asyncio.TimerHandle] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data = data = self._data + data if self._data else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = data[:end]
        found = _LENGTH.search(head)
        whole = end + 4 + (int(found[1]) if found else 0)
        if len(data) < whole:
            return
        self._data = data[whole:]
        if head.startswith(b"GET "):
            self._transport.write(self._service.get(head.split(b" ", 2)[1]))
            return
        number, delay_s, refusal = self._service.arrive(data[end + 4 : whole])
        timer = self._loop.call_later(delay_s, self._answer, number, refusal)
        self._pending = number, timer

    def _answer(self, number: int, refusal: bytes) -> None:
        self._pending = None
        self._transport.write(self._service.end(number) or refusal)

    def connection_lost(self, _error: Exception | None) -> None:
        if self._pending is not None:
            number, timer = self._pending
            timer.cancel()
            self._service.drop(number)


async def serve(settings: Settings) -> None:
    """Prints the port, then serves for ever."""
    service = Service(settings)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(service), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(msgspec.json.decode(sys.argv[1] if sys.argv[1:] else "{}", type=Settings)))
