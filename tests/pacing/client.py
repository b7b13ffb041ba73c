"""A run's rows through the real gate and the real limits, against a server model.

Rows wait at the gate as they do in a run, four for each that may be in flight; what is refused
comes back after its hint, or after a backoff.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchrun.dispatch.gate import Gate
from batchrun.limits.concurrency import FirstAlone
from batchrun.limits.scopes import scope_limits, user_limits
from batchrun.limits.verdicts import Limit
from batchrun.records import Finish, Need, Scope, Slot
from tests.pacing.server_model import Server
from tests.pacing.virtual_loop import run

SCOPE = Scope("http://127.0.0.1/v1", "KEY", "m")
_PLACES = 4  # rows in memory for each request that may be in flight
_FIRST_WAIT_S = 0.5
_MOST_WAIT_S = 60.0


@dataclass
class Traffic:
    """What was sent in each span of the run, by the time of sending."""

    span_s: float = 0.5
    accepted: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # used by what was accepted
    full_s: float = 0.0  # until the last row was there to be sent
    end_s: float = 0.0

    def note(self, series: list[int], at_s: float, amount: int = 1) -> None:
        place = int(at_s / self.span_s)
        if place >= len(series):
            series.extend([0] * (place + 1 - len(series)))
        series[place] += amount

    def between(self, series: list[int], from_s: float, until_s: float) -> int:
        return sum(series[round(from_s / self.span_s) : round(until_s / self.span_s)])


class Client:
    """Sends `rows`; a row is what it reserves and what it will use, in tokens."""

    def __init__(
        self,
        server: Server,
        rows: Sequence[tuple[int, int]],
        most: int,
        shared: Sequence[Limit],
        of_scope: Callable[[], Sequence[Limit]],
        until_s: float,
        seed: int,
    ) -> None:
        self.traffic = Traffic()
        self._server = server
        self._rows = rows
        self._next = 0
        self._left = len(rows)
        self._until_s = until_s
        self._most = most
        self._shared = shared
        self._of_scope = of_scope
        self._draw = random.Random(seed).random

    async def run(self) -> Traffic:
        self._loop = asyncio.get_running_loop()
        self._start_s = self._loop.time()
        self.gate = Gate(self._shared, lambda _scope: self._of_scope())
        self._done = self._loop.create_future()
        self._loop.call_at(self._start_s + self._until_s, self._stop)
        for _ in range(min(_PLACES * self._most, len(self._rows))):
            self._admit()
        await self._done
        self.traffic.end_s = self._now_s()
        self.gate.close()
        return self.traffic

    def send(self, visit: "RowVisit", slot: Slot) -> None:
        """A row was let in."""
        now_s = self._now_s()
        latency_s, finish = self._server.take(visit.used, now_s)
        traffic = self.traffic
        if finish.kind is None:
            traffic.note(traffic.accepted, now_s)
            traffic.note(traffic.tokens, now_s, visit.used)
        else:
            traffic.note(traffic.refused, now_s)
        self._loop.call_later(latency_s, self._ends, visit, slot, finish)

    def _ends(self, visit: "RowVisit", slot: Slot, finish: Finish) -> None:
        if self._done.done():
            return
        if finish.kind is None:
            self._server.answered()
            self.gate.leave(slot, finish)
            self._left -= 1
            if self._left:
                self._admit()
            else:
                self._done.set_result(None)
            return
        self.gate.leave(slot, finish)
        visit.failures += 1
        wait_s = finish.hint_s
        if wait_s is None:
            longest_s = min(_FIRST_WAIT_S * 2.0**visit.failures, _MOST_WAIT_S)
            wait_s = longest_s * (0.5 + 0.5 * self._draw())
        self._loop.call_later(wait_s, visit.enter)

    def _admit(self) -> None:
        if self._next < len(self._rows):
            self._next += 1
            if self._next == len(self._rows):
                self.traffic.full_s = self._now_s()
            RowVisit(self, self._rows[self._next - 1]).enter()

    def _now_s(self) -> float:
        return self._loop.time() - self._start_s

    def _stop(self) -> None:
        if not self._done.done():
            if self._next < len(self._rows):
                self.traffic.full_s = self._until_s
            self._done.set_result(None)


class RowVisit:
    """One row's way through the gate, driven by hand: a task for each would take far longer."""

    __slots__ = ("_client", "_need", "_way", "failures", "used")

    def __init__(self, client: Client, row: tuple[int, int]) -> None:
        self._client = client
        self._need = Need(SCOPE, row[0])
        self._way: Coroutine[Any, Any, Slot]
        self.used = row[1]
        self.failures = 0

    def enter(self) -> None:
        self._way = self._client.gate.enter(SCOPE, self._needed, again=self.failures > 0)
        self._step()

    def _needed(self) -> Need:
        return self._need

    def _step(self, turn: "asyncio.Future[Any] | None" = None) -> None:
        if turn is not None and turn.exception() is not None:
            self._way.close()  # the run is over
            return
        try:
            awaited: Any = self._way.send(None)
        except StopIteration as entered:
            self._client.send(self, entered.value)
        else:
            awaited._asyncio_future_blocking = False  # what a task does with what it awaits
            awaited.add_done_callback(self._step)


def play(
    server: Server,
    rows: Sequence[tuple[int, int]],
    *,
    most: int = 1000,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
    until_s: float = 1e6,
    seed: int = 0,
    adapts_to_s: float | None = None,
) -> Traffic:
    """A whole run in virtual time; timers are up to a millisecond late.

    `adapts_to_s`: the time-out, with `--concurrency auto`.
    """
    shared = [*user_limits(most, requests_per_minute, tokens_per_minute), FirstAlone()]

    def of_scope() -> list[Limit]:
        return scope_limits(most, adapts_to_s=adapts_to_s)

    client = Client(server, rows, most, shared, of_scope, until_s, seed)
    return run(client.run(), seed=seed, late_s=0.001)
