"""A run's rows through the real gate and limits, against a server that queues."""

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any

from batchrun.dispatch.gate import Gate
from batchrun.errors import ErrorKind
from batchrun.limits.concurrency import FirstAlone
from batchrun.limits.scopes import scope_limits, user_limits
from batchrun.records import Finish, Need, Scope, Slot
from tests.pacing.queueing_model import Plan, QueueingServer, Traffic, lengths
from tests.pacing.virtual_loop import run

SCOPE = Scope("http://127.0.0.1/v1", "KEY", "m")
MOST = 1_000  # as `--concurrency auto` has it
_WAITING = 64  # rows at the gate
_SWEEP_S = 0.25
_RETRY_S = 1.0


class _Client:
    def __init__(self, plan: Plan, until_s: float, seed: int, timeout_s: float, counts: bool) -> None:
        self.traffic = Traffic([])
        self.in_flight: list[tuple[float, int]] = []
        self._server, self._sizes = QueueingServer(plan), lengths(seed)
        self._plan, self._until_s, self._timeout_s = plan, until_s, timeout_s
        self._counts = counts
        self._sent: dict[int, tuple[float, Slot, int]] = {}
        self._open: deque[tuple[float, int]] = deque()
        self._keys = 0
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> Traffic:
        self._loop = asyncio.get_running_loop()
        self._start_s = self._loop.time()
        self.gate = Gate(
            [*user_limits(MOST, None, None), FirstAlone()],
            lambda _scope: scope_limits(MOST, adapts_to_s=self._timeout_s),
        )
        for _ in range(_WAITING):
            self._enter(next(self._sizes))
        self._loop.call_later(_SWEEP_S, self._sweep)
        await asyncio.sleep(self._until_s)
        self._is_over = True
        if self._timer:
            self._timer.cancel()
        self.gate.close()
        return self.traffic

    def _now_s(self) -> float:
        return self._loop.time() - self._start_s

    def _enter(self, tokens: int, *, again: bool = False) -> None:
        _Row(self, tokens).enter(again=again)

    def send(self, tokens: int, slot: Slot) -> None:
        self._keys += 1
        self._sent[self._keys] = (self._now_s(), slot, tokens)
        self._open.append((self._now_s(), self._keys))
        self._loop.call_later(self._plan.way_s / 2, self._arrive, self._keys, tokens)
        self._loop.call_soon(self._more)

    def _more(self) -> None:
        if not self._is_over and self.gate.waiting < _WAITING:
            self._enter(next(self._sizes))

    _is_over = False

    def _arrive(self, key: int, tokens: int) -> None:
        self._server.take(key, tokens, self._now_s())
        self._again()

    def _again(self) -> None:
        if self._timer:
            self._timer.cancel()
        at_s = self._server.next_s() + self._start_s
        if at_s < 1e9:
            self._timer = self._loop.call_at(at_s, self._done)

    def _done(self) -> None:
        self._timer = None
        for key in self._server.done(self._now_s()):
            self._loop.call_later(self._plan.way_s / 2, self._ends, key)
        self._again()

    def _ends(self, key: int) -> None:
        if key not in self._sent:
            return
        began_s, slot, tokens = self._sent.pop(key)
        now_s = self._now_s()
        self.traffic.answers.append((now_s, now_s - began_s, tokens))
        self.in_flight.append((now_s, self.gate.in_flight))
        self.gate.leave(slot, Finish(output_tokens=tokens if self._counts else None))

    def _sweep(self) -> None:
        now_s = self._now_s()
        while self._open and self._open[0][0] <= now_s - self._timeout_s:
            key = self._open.popleft()[1]
            if key in self._sent:
                _, slot, tokens = self._sent.pop(key)
                self._server.drop(key, now_s)
                self.traffic.timed_out += 1
                self.gate.leave(slot, Finish(ErrorKind.TIMEOUT, answered=False))
                self._loop.call_later(_RETRY_S, lambda tokens=tokens: self._enter(tokens, again=True))
        self._loop.call_later(_SWEEP_S, self._sweep)


class _Row:
    """One row's way through the gate, driven by hand: a task for each would take far longer."""

    __slots__ = ("_client", "_need", "_tokens", "_way")

    def __init__(self, client: _Client, tokens: int) -> None:
        self._client, self._tokens = client, tokens
        self._way: Coroutine[Any, Any, Slot]
        self._need = Need(SCOPE, tokens)

    def enter(self, *, again: bool) -> None:
        self._way = self._client.gate.enter(SCOPE, lambda: self._need, again=again)
        self._step()

    def _step(self, turn: "asyncio.Future[Any] | None" = None) -> None:
        if turn is not None and turn.exception() is not None:
            self._way.close()
            return
        try:
            awaited: Any = self._way.send(None)
        except StopIteration as entered:
            self._client.send(self._tokens, entered.value)
        else:
            awaited._asyncio_future_blocking = False
            awaited.add_done_callback(self._step)


def auto(
    plan: Plan, until_s: float, seed: int, timeout_s: float = 600.0, *, counts: bool = True
) -> Traffic:
    client = _Client(plan, until_s, seed, timeout_s, counts)
    traffic = run(client.run(), seed=seed, late_s=0.001)
    traffic.in_flight = client.in_flight
    return traffic
