"""A run's rows through the real gate and the real limits, against a server that queues.

Rows of lognormal lengths wait at the gate without end; what times out comes back a second later.
"""

import asyncio
import math
from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import Any

from batchrun.dispatch.gate import Gate
from batchrun.errors import ErrorKind
from batchrun.limits.concurrency import FirstAlone
from batchrun.limits.scopes import scope_limits, user_limits
from batchrun.limits.verdicts import LimitStatus
from batchrun.records import Finish, Need, Scope, Slot
from tests.pacing.queueing_model import MOST, Answers, Plan, QueueingServer, lengths
from tests.pacing.virtual_loop import run

SCOPE = Scope("http://127.0.0.1/v1", "KEY", "m")
_WAITING = 64  # rows at the gate
_SWEEP_S = 0.25  # so late is a time-out noticed
_AGAIN_S = 1.0


class QueueingClient:
    """Sends rows with `--concurrency auto`."""

    def __init__(
        self, plan: Plan, until_s: float, seed: int, timeout_s: float, *, says_tokens: bool
    ) -> None:
        self.answers = Answers()
        self.statuses: list[LimitStatus] = []
        self._plan, self._until_s = plan, until_s
        self._timeout_s, self._says_tokens = timeout_s, says_tokens
        self._server, self._lengths = QueueingServer(plan), lengths(seed)
        self._sent: dict[int, tuple[float, Slot, int]] = {}  # by key
        self._oldest: deque[tuple[float, int]] = deque()  # when it was sent, and its key
        self._keys = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    async def run(self) -> Answers:
        self._loop = asyncio.get_running_loop()
        self._start_s = self._loop.time()
        self.gate = Gate(
            [*user_limits(MOST, None, None), FirstAlone()],
            lambda _scope: scope_limits(MOST, adapts_to_s=self._timeout_s),
        )
        self._more()
        self._loop.call_later(_SWEEP_S, self._sweep)
        await asyncio.sleep(self._until_s)
        self.statuses = self.gate.statuses()
        self._is_over = True
        self.gate.close()
        return self.answers

    def send(self, tokens: int, slot: Slot) -> None:
        """A row was let in."""
        self._keys += 1
        key, now_s = self._keys, self._now_s()
        self._sent[key] = now_s, slot, tokens
        self._oldest.append((now_s, key))
        self._loop.call_later(self._plan.way_s / 2, self._arrives, key, tokens)
        self._loop.call_soon(self._more)

    def _now_s(self) -> float:
        return self._loop.time() - self._start_s

    def _more(self) -> None:
        while not self._is_over and self.gate.waiting < _WAITING:
            WaitingRow(self, next(self._lengths)).enter()

    def _arrives(self, key: int, tokens: int) -> None:
        self._server.take(key, tokens, self._now_s())
        self._wait()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        next_s = self._server.next_s()
        if next_s < math.inf:
            self._timer = self._loop.call_at(self._start_s + next_s, self._made)

    def _made(self) -> None:
        for key in self._server.done(self._now_s()):
            self._loop.call_later(self._plan.way_s / 2, self._ends, key)
        self._wait()

    def _ends(self, key: int) -> None:
        if key not in self._sent or self._is_over:  # timed out meanwhile
            return
        sent_s, slot, tokens = self._sent.pop(key)
        now_s = self._now_s()
        self.answers.all.append((now_s, now_s - sent_s, tokens))
        self.answers.in_flight.append((now_s, self.gate.in_flight))
        self.gate.leave(slot, Finish(output_tokens=tokens if self._says_tokens else None))

    def _sweep(self) -> None:
        now_s = self._now_s()
        while self._oldest and self._oldest[0][0] <= now_s - self._timeout_s:
            key = self._oldest.popleft()[1]
            if key in self._sent:
                _, slot, tokens = self._sent.pop(key)
                self._server.drop(key, now_s)
                self.answers.timed_out += 1
                self.gate.leave(slot, Finish(ErrorKind.TIMEOUT, answered=False))
                self._loop.call_later(_AGAIN_S, partial(WaitingRow(self, tokens).enter, again=True))
        if not self._is_over:
            self._loop.call_later(_SWEEP_S, self._sweep)


class WaitingRow:
    """One row's way through the gate, driven by hand: a task for each would take far longer."""

    __slots__ = ("_client", "_need", "_tokens", "_way")

    def __init__(self, client: QueueingClient, tokens: int) -> None:
        self._client, self._tokens = client, tokens
        self._need = Need(SCOPE, tokens)
        self._way: Coroutine[Any, Any, Slot]

    def enter(self, *, again: bool = False) -> None:
        self._way = self._client.gate.enter(SCOPE, lambda: self._need, again=again)
        self._step()

    def _step(self, turn: "asyncio.Future[Any] | None" = None) -> None:
        if turn is not None and turn.exception() is not None:
            self._way.close()  # the run is over
            return
        try:
            awaited: Any = self._way.send(None)
        except StopIteration as entered:
            self._client.send(self._tokens, entered.value)
        else:
            awaited._asyncio_future_blocking = False  # what a task does with what it awaits
            awaited.add_done_callback(self._step)


def play_auto(
    plan: Plan, until_s: float, seed: int, timeout_s: float, *, says_tokens: bool = True
) -> QueueingClient:
    """A run in virtual time; timers are up to a millisecond late."""
    client = QueueingClient(plan, until_s, seed, timeout_s, says_tokens=says_tokens)
    run(client.run(), seed=seed, late_s=0.001)
    return client
