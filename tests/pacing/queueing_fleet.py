"""Several workers with `--concurrency auto` before one server that queues, in virtual time."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from batchrun.dispatch.gate import Gate
from batchrun.executors.fleet import Fleet
from batchrun.executors.messages import FleetTick, WorkerReport
from batchrun.job.sections import LimitsJob
from batchrun.limits.concurrency import FirstAlone
from batchrun.limits.pauses import Patience
from batchrun.limits.scopes import Scopes
from batchrun.limits.sharing.worker_share import WorkerShare
from batchrun.limits.verdicts import Limit
from batchrun.records import Scope, Slot
from tests.pacing.fleet_client import NoRows
from tests.pacing.queueing_client import QueueingClient
from tests.pacing.queueing_model import MOST, Answers, Plan, QueueingServer
from tests.pacing.virtual_loop import run

_TICK_S = 0.15
_WAY_S = 0.01


@dataclass
class _Shared:
    """The server of all workers, and whose requests it has."""

    server: QueueingServer
    owners: list["_Worker"] = field(default_factory=list)  # by key
    timer: asyncio.TimerHandle | None = None


class _Worker(QueueingClient):
    def __init__(
        self, plan: Plan, until_s: float, seed: int, timeout_s: float, shared: _Shared
    ) -> None:
        super().__init__(plan, until_s, seed, timeout_s, says_tokens=True)
        self._server, self._shared = shared.server, shared
        self._share = WorkerShare(settle_s=2 * _TICK_S)
        self._scopes = Scopes(MOST, Patience(1800.0, 60.0), adapts_to_s=timeout_s)
        self._number = 0

    async def run(self) -> Answers:
        self._loop = asyncio.get_running_loop()
        self._start_s = self._loop.time()
        self.gate = Gate(self._share.limits, self._limits)
        self._share.join(self.gate, self._scopes)
        self._more()
        await asyncio.sleep(self._until_s)
        self._is_over = True
        self.gate.close()
        return self.answers

    def tick(self, tick: FleetTick) -> WorkerReport:
        now_s = self._loop.time()
        self._share.obey(tick.seq, tick.shares, tick.scopes, now_s)
        self._number += 1
        return WorkerReport(self._number, self._share.seq, used=self._share.used(now_s))

    def send(self, tokens: int, slot: Slot) -> None:
        key, now_s = len(self._shared.owners), self._now_s()
        self._shared.owners.append(self)
        self._sent[key] = now_s, slot, tokens
        self._loop.call_later(self._plan.way_s / 2, self._arrives, key, tokens)
        self._loop.call_soon(self._more)

    def _limits(self, scope: Scope) -> Sequence[Limit]:
        first = FirstAlone()
        limits = self._scopes.limits(scope)
        return limits if self._share.met(scope, first) else [first, *limits]

    def _wait(self) -> None:
        shared = self._shared
        if shared.timer is not None:
            shared.timer.cancel()
        next_s = shared.server.next_s()
        if next_s < math.inf:
            shared.timer = self._loop.call_at(self._start_s + next_s, self._made)

    def _made(self) -> None:
        for key in self._server.done(self._now_s()):
            self._loop.call_later(self._plan.way_s / 2, self._shared.owners[key]._ends, key)
        self._wait()


def lead_auto(plan: Plan, workers: int, until_s: float, timeout_s: float) -> list[Answers]:
    """The answers of each worker."""
    shared = _Shared(QueueingServer(plan))
    clients = [_Worker(plan, until_s, seed, timeout_s, shared) for seed in range(workers)]

    async def call(fleet: Fleet, at: int, worker: _Worker) -> None:
        loop = asyncio.get_running_loop()
        while True:
            tick = fleet.tick(at, loop.time())
            await asyncio.sleep(_WAY_S)
            report = worker.tick(tick)
            await asyncio.sleep(_WAY_S)
            fleet.hear(at, report, loop.time())
            await asyncio.sleep(_TICK_S)

    async def drive() -> list[Answers]:
        fleet = Fleet(NoRows(), LimitsJob(), MOST)
        runs = [asyncio.ensure_future(one.run()) for one in clients]
        await asyncio.sleep(0)
        calls = []
        for at, one in enumerate(clients):
            fleet.add(at, asyncio.get_running_loop().time())
            calls.append(asyncio.ensure_future(call(fleet, at, one)))
        answers = [await one for one in runs]
        for calling in calls:
            calling.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        return answers

    return run(drive(), late_s=0.001)
