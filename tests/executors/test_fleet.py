"""Workers of one run together, whatever befalls them: no limit is passed, and every row is done."""

import random
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.errors import BatchrunError, RunStopped
from batchrun.executors.fleet import Fleet
from batchrun.executors.lease_book import MOST_DEATHS
from batchrun.executors.messages import StopOrder, WorkerReport, WorkerStop
from batchrun.job.sections import LimitsJob
from batchrun.limits.concurrency import FirstAlone
from batchrun.limits.pauses import Patience
from batchrun.limits.scopes import Scopes
from batchrun.limits.sharing.shares import ScopeNews, SharesUsed
from batchrun.limits.sharing.worker_share import WorkerShare
from tests.executors.fleet_world import MINUTE_S, SCOPE, Caps, FakeGate, Row, Rows, World

MOST_S = 3 * 3600.0  # rows at the lowest rates


@dataclass(frozen=True)
class Weather:
    """How likely what is, of each message or in each turn."""

    lost: float
    late: float
    repeated: float
    killed: float
    still: float
    adopted: float
    longest_s: float  # of a turn


WEATHER = st.builds(
    Weather,
    lost=st.sampled_from((0.0, 0.1, 0.5)),
    late=st.sampled_from((0.0, 0.1, 0.5)),
    repeated=st.sampled_from((0.0, 0.1, 0.5)),
    killed=st.sampled_from((0.0, 0.01, 0.1)),
    still=st.sampled_from((0.0, 0.02, 0.1)),
    adopted=st.sampled_from((1.0, 0.05)),
    longest_s=st.sampled_from((0.3, 0.3, 5.0)),
)
CAPS = st.builds(
    Caps,
    in_flight=st.integers(4, 12),
    requests=st.none() | st.integers(4, 80),
    tokens=st.none() | st.integers(50, 400),
    dollars=st.none() | st.sampled_from((0.5, 2.0, 1000.0)),
)


def draw_rows(draw: random.Random, count: int, longest_s: float) -> list[Row]:
    rows = []
    for _ in range(count):
        tokens, dollars = draw.randint(1, 80), draw.choice((0.0, 0.01, 0.05, 0.3))
        used, spent = draw.randint(0, tokens), draw.choice((None, 0.0, dollars / 3, dollars))
        rows.append(Row(tokens, used, dollars, spent, draw.uniform(0.0, longest_s)))
    return rows


def storm(world: World, weather: Weather, turns: int) -> None:
    """So many times: each worker gets a tick, perhaps, and time goes on."""
    draw = world.draw
    for _ in range(turns):
        for at, machine in list(world.machines.items()):
            if machine.is_alive and draw.random() < weather.killed:
                world.kill(at)
            if draw.random() < weather.still:
                world.stand_still(at, draw.uniform(0.5, 90.0))
            if not machine.is_alive and draw.random() < weather.adopted:
                world.adopt(at)
        for at in world.machines:
            world.tick(at)
        for bag, deliver in (
            (world.ticks, world.deliver_tick),
            (world.reports, world.deliver_report),
        ):
            while bag and draw.random() >= weather.late:
                place = draw.randrange(len(bag))
                if draw.random() < weather.lost:
                    del bag[place]
                else:
                    deliver(place, keep=draw.random() < weather.repeated)
            del bag[: max(0, len(bag) - 20)]
        world.move(draw.uniform(0.02, weather.longest_s))
        world.check_dollars()


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 100),
    lasts_s=st.sampled_from((0.2, 2.0, 30.0)),
    caps=CAPS,
    workers=st.integers(1, 4),
    weather=WEATHER,
    turns=st.integers(0, 200),
    seed=st.integers(0, 1 << 16),
)
def test_no_limit_is_passed_and_every_row_is_leased_until_it_is_complete(
    count: int,
    lasts_s: float,
    caps: Caps,
    workers: int,
    weather: Weather,
    turns: int,
    seed: int,
) -> None:
    world = World(draw_rows(random.Random(seed), count, lasts_s), caps, workers, seed)
    storm(world, weather, turns)
    if world.settle(MOST_S):
        assert sorted(world.witness.stored) == list(range(count))
        return
    # What waits does not fit into what is left of the budget, or rows seem to kill workers.
    reason = world.fleet.stop_reason(world.now_s)
    assert isinstance(reason, RunStopped if world.kills < MOST_DEATHS else BatchrunError)
    assert caps.dollars is not None or world.kills >= MOST_DEATHS


def test_what_a_dead_worker_started_and_never_reported_counts_for_a_minute() -> None:
    """And so does what it was allowed and may have started."""
    row, caps = Row(tokens=5, used=5, dollars=0.0, spent=0.0, lasts_s=0.1), Caps(12, 20, 90, None)
    world = World([row] * 60, caps, 2)

    def turns(count: int, *workers: int, hears: bool = True) -> int:
        """So many of these workers, of which the driver hears or not; what they start."""
        before = len(world.witness.starts)
        for _ in range(count):
            for at in workers:
                world.tick(at)
            while world.ticks:
                world.deliver_tick(0)
            while world.reports:
                world.deliver_report(0) if hears else world.reports.pop(0)
            world.move(0.15)
        return len(world.witness.starts) - before

    turns(40, 1, 2)
    assert world.witness.is_answered
    assert turns(40, 1, hears=False) > 0
    world.kill(1)
    died_s = world.now_s
    world.adopt(1)
    assert world.settle(MOST_S)  # the witness sees each start
    starts_s = [one.at_s for one in world.witness.starts]
    within = [sum(1 for at_s in starts_s if 0 <= end_s - at_s < MINUTE_S) for end_s in starts_s]
    assert max(within) == 90 // 5  # no less is used than may be
    assert [at_s for at_s in starts_s if died_s < at_s < died_s + MINUTE_S]


def test_every_worker_knows_that_one_was_answered_also_after_its_death() -> None:
    fleet = Fleet(Rows(10), LimitsJob(), 4)
    for worker in (1, 2):
        fleet.add(worker, 0.0)
    used = SharesUsed(scopes=(ScopeNews(SCOPE, is_answered=True, answered_s=0.5),))
    fleet.hear(1, WorkerReport(number=1, seq=0, used=used), 1.0)
    fleet.adopted(1, lambda _: (), 2.0)
    tick = fleet.tick(2, 3.0)
    share, scopes = WorkerShare(), Scopes(4, Patience(1800.0, 60.0))
    share.join(FakeGate(), scopes)
    assert share.obey(tick.seq, tick.shares, tick.scopes, 3.0)
    share.met(SCOPE, FirstAlone())
    state = scopes.of(SCOPE)
    assert state.health.has_succeeded
    assert state.breaker.may_hold


def test_an_endpoint_is_down_for_a_worker_alone_once_it_has_answered_others_for_a_while() -> None:
    fleet, numbers = Fleet(Rows(1000), LimitsJob(), 4), dict.fromkeys((1, 2), 0)
    for worker in numbers:
        fleet.add(worker, 0.0)

    def hear(worker: int, now_s: float, down: str | None = None) -> list[int]:
        numbers[worker] += 1
        news = ScopeNews(SCOPE, is_answered=True, down=down, answered_s=None if down else 0.0)
        used = SharesUsed(started=1, scopes=(news,))
        fleet.hear(worker, WorkerReport(number=numbers[worker], seq=0, used=used), now_s)
        return list(fleet.cut_off(now_s, 60.0))

    hear(2, 10.0)
    for now_s in range(11, 1800):  # down for both, as far as is known
        assert hear(1, now_s, "reset") == []
    assert hear(2, 1800.0) == []  # it is up again
    assert hear(1, 1800.5, "reset") == []
    assert hear(2, 1860.0) == []
    assert hear(1, 1860.6, "reset") == [1]
    assert hear(1, 1861.0) == []  # now for both
    assert hear(1, 1862.0, "reset") == []
    assert hear(2, 1863.0, "reset") == []
    assert hear(1, 1990.0, "reset") == []
    assert hear(2, 1991.0) == []
    assert hear(1, 1992.0, "reset") == []
    assert hear(1, 2052.0, "reset") == [1]


def test_others_send_at_once_if_the_disk_of_the_first_worker_fails() -> None:
    fleet, at_s = Fleet(Rows(1000), LimitsJob(), 4), 0.0
    for worker in (1, 2):
        fleet.add(worker, 0.0)
        fleet.hear(worker, WorkerReport(number=1, seq=0, used=SharesUsed(waiting=5)), 0.1)
    assert fleet.tick(1, 0.2).shares.in_flight == 1
    stops = (WorkerStop("the disk is full", kind="StoreError"),)
    news = ScopeNews(SCOPE, is_answered=True, answered_s=0.0)
    shares = []
    for number in range(2, 6):
        at_s = 0.2 * number
        seq = fleet.tick(1, at_s).seq
        used = SharesUsed(started=1, scopes=(news,))
        fleet.hear(1, WorkerReport(number=number, seq=seq, used=used, stops=stops), at_s)
        tick = fleet.tick(2, at_s)
        shares.append(tick.shares.in_flight)
        used = SharesUsed(waiting=5, for_slots=True)
        fleet.hear(2, WorkerReport(number=number, seq=tick.seq, used=used), at_s)
    assert shares[-1] >= 2


def test_rows_of_a_worker_that_was_told_to_end_seem_to_kill_none() -> None:
    fleet = Fleet(Rows(10), LimitsJob(), 4)
    for worker in range(1, 2 * MOST_DEATHS):
        fleet.add(worker, 0.0)
        fleet.hear(worker, WorkerReport(number=1, seq=0), 0.1)
        assert fleet.tick(worker, 0.2).leases
        order = StopOrder("the endpoint answers others")
        fleet.stop(order, worker)
        assert fleet.tick(worker, 0.3).stop == order
        fleet.hear(worker, WorkerReport(number=2, seq=2, is_drained=True), 0.4)
        fleet.adopted(worker, lambda _: (), 0.5)
    assert fleet.stop_reason(1.0) is None


def test_a_worker_whose_rows_wait_for_the_server_leaves_the_others_theirs() -> None:
    fleet = Fleet(Rows(5000), LimitsJob(), 1000)
    for writer in (1, 2):
        fleet.add(writer, 0.0)
    leased = 0
    for number in range(1, 100):
        now_s = 0.15 * number
        leased += sum(lease.rows for lease in fleet.tick(1, now_s).leases)
        waiting = max(0, leased - 20)
        used = SharesUsed(20, waiting, 20, for_rate=True, scopes=(ScopeNews(SCOPE),))
        fleet.hear(1, WorkerReport(number, number, used=used), now_s)
    assert 64 <= leased <= 400
