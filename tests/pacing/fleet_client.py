"""Several workers, each with the gate and limits of a process of its own, and their driver.

In virtual time and one loop; ticks and reports take their time on the way.
"""

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
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
from batchrun.limits.verdicts import GO, Limit, LimitStatus, Verdict, Wait
from batchrun.records import Finish, Need, Slot
from tests.pacing.client import SCOPE, Client, RowVisit, Traffic
from tests.pacing.server_model import Server
from tests.pacing.virtual_loop import FIRST_S, run

_TICK_S = 0.15
_WAY_S = 0.01


class NoRows:
    """Workers have their rows without leases."""

    left = 0

    def cut(self, requests: int) -> Lease | None:
        return None

    def rest(self, lease: Lease, done: Collection[int]) -> Lease | None:
        return None


class Standstill:
    """The time in which a worker's process does nothing, as after SIGSTOP: a limit on starts."""

    def __init__(self, from_s: float, until_s: float) -> None:
        self._from_s, self._until_s = from_s, until_s

    def left_s(self, now_s: float) -> float:
        return self._until_s - now_s if self._from_s <= now_s < self._until_s else 0.0

    def verdict(self, need: Need, now_s: float) -> Verdict:
        return Wait(self._until_s) if self.left_s(now_s) else GO

    def started(self, need: Need, now_s: float) -> None:
        return

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        return

    def status(self, now_s: float) -> LimitStatus:
        return LimitStatus("standstill")


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
        still: Standstill,
    ) -> None:
        rpm, tpm = limits.requests_per_minute, limits.tokens_per_minute
        self.share = WorkerShare(
            requests_per_minute=rpm, tokens_per_minute=tpm, settle_s=2 * _TICK_S
        )
        given = [of for of, most_of in (("requests", rpm), ("tokens", tpm)) if most_of is not None]
        self.scopes = Scopes(most, Patience(1800.0, 60.0), {}, given, adapts_to_s)
        self.still = still
        shared = [*self.share.limits, still]
        super().__init__(server, rows, most, shared, self._limits, until_s, seed)
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

    def _ends(self, visit: RowVisit, slot: Slot, finish: Finish) -> None:
        if left_s := self.still.left_s(self._loop.time()):
            self._loop.call_later(left_s, self._ends, visit, slot, finish)
        else:
            super()._ends(visit, slot, finish)

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
    starved: Mapping[int, float] | None = None,
    still: Mapping[int, tuple[float, float]] | None = None,
    seed: int = 0,
    adapts_to_s: float | None = None,
) -> Fleets:
    """By the place of a worker: `starved`: rows a second that it has; `still`: it stands still."""
    limits = LimitsJob(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
    clients = [
        Worker(
            server,
            rows,
            most,
            limits,
            until_s,
            seed + at,
            (starved or {}).get(at),
            adapts_to_s,
            Standstill(*(FIRST_S + one for one in (still or {}).get(at, (math.inf, math.inf)))),
        )
        for at in range(workers)
    ]

    async def call(fleet: Fleet, at: int, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        while True:
            tick = encode(fleet.tick(at, loop.time()))
            await asyncio.sleep(_WAY_S)
            await asyncio.sleep(worker.still.left_s(loop.time()))
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
