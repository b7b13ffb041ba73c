"""Several workers, each with the gate and limits of a process of its own, and their driver.

In virtual time and one loop; ticks and reports take their time on the way.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from batchrun.executors.fleet import Fleet
from batchrun.executors.messages import (
    FleetTick,
    Lease,
    WorkerReport,
    decode_report,
    decode_tick,
    encode,
)
from batchrun.job.sections import LimitsJob
from batchrun.limits.concurrency import FirstAlone
from batchrun.limits.pauses import Patience
from batchrun.limits.scopes import Scopes
from batchrun.limits.sharing.worker_share import WorkerShare
from batchrun.limits.verdicts import Limit
from tests.pacing.client import SCOPE, Client, Traffic
from tests.pacing.server_model import Server
from tests.pacing.virtual_loop import run

_TICK_S = 0.15
_WAY_S = 0.01


class NoRows:
    """Workers have their rows without leases."""

    left = 0

    def cut(self, requests: int) -> Lease | None:
        return None

    def rest(self, lease: Lease, done: Collection[int]) -> Lease | None:
        return None


class Worker(Client):
    """One worker; with `rows_per_s` it has no more rows to send than that."""

    def __init__(
        self,
        server: Server,
        rows: Sequence[tuple[int, int]],
        most: int,
        limits: LimitsJob,
        until_s: float,
        seed: int,
        rows_per_s: float | None,
        adapts_to_s: float | None,
    ) -> None:
        rpm, tpm = limits.requests_per_minute, limits.tokens_per_minute
        self.share = WorkerShare(
            requests_per_minute=rpm, tokens_per_minute=tpm, settle_s=2 * _TICK_S
        )
        given = [of for of, most_of in (("requests", rpm), ("tokens", tpm)) if most_of is not None]
        self.scopes = Scopes(most, Patience(1800.0, 60.0), {}, given, adapts_to_s)
        super().__init__(server, rows, most, self.share.limits, self._limits, until_s, seed)
        self._rows_per_s = rows_per_s
        self._number = 0

    def _limits(self) -> Sequence[Limit]:
        first = FirstAlone()
        if self.share.met(SCOPE, first):
            return self.scopes.limits(SCOPE)
        return [first, *self.scopes.limits(SCOPE)]

    def started(self) -> None:
        """Its gate is there."""
        self.share.join(self.gate, self.scopes)
        if self._rows_per_s is not None:
            self._trickle()

    def tick(self, tick: FleetTick) -> WorkerReport:
        now_s = self._loop.time()
        self.share.obey(tick.seq, tick.shares, tick.scopes, now_s)
        self._number += 1
        return WorkerReport(self._number, self.share.seq, used=self.share.used(now_s))

    def _admit(self) -> None:
        if self._rows_per_s is None:
            super()._admit()

    def _trickle(self) -> None:
        assert self._rows_per_s is not None
        super()._admit()
        self._loop.call_later(1 / self._rows_per_s, self._trickle)


@dataclass
class Fleets:
    """What came of it: the traffic of each worker."""

    traffic: list[Traffic]

    def accepted(self, from_s: float, until_s: float) -> int:
        return sum(one.between(one.accepted, from_s, until_s) for one in self.traffic)

    def refused(self, from_s: float, until_s: float) -> int:
        return sum(one.between(one.refused, from_s, until_s) for one in self.traffic)

    @property
    def share_refused(self) -> float:
        refused = sum(sum(one.refused) for one in self.traffic)
        return refused / (refused + sum(sum(one.accepted) for one in self.traffic))


def lead(
    server: Server,
    rows: Sequence[tuple[int, int]],
    workers: int,
    *,
    until_s: float,
    most: int = 1000,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    starved: dict[int, float] | None = None,
    seed: int = 0,
    adapts_to_s: float | None = None,
) -> Fleets:
    """`starved`: rows a second that a worker has, by its place."""
    limits = LimitsJob(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
    clients = [
        Worker(server, rows, most, limits, until_s, seed + at, (starved or {}).get(at), adapts_to_s)
        for at in range(workers)
    ]

    async def call(fleet: Fleet, at: int, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        while True:
            tick = encode(fleet.tick(at, loop.time()))
            await asyncio.sleep(_WAY_S)
            report = encode(worker.tick(decode_tick(tick)))
            await asyncio.sleep(_WAY_S)
            fleet.hear(at, decode_report(report), loop.time())
            await asyncio.sleep(_TICK_S)

    async def drive() -> list[Traffic]:
        loop = asyncio.get_running_loop()
        fleet = Fleet(NoRows(), limits, most)
        runs = [asyncio.ensure_future(one.run()) for one in clients]
        await asyncio.sleep(0)
        calls = []
        for at, one in enumerate(clients):
            one.started()
            fleet.add(at, loop.time())
            calls.append(asyncio.ensure_future(call(fleet, at, one)))
        traffic = [await one for one in runs]
        for calling in calls:
            calling.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        return traffic

    return Fleets(run(drive(), seed=seed, late_s=0.001))
