"""Workers that share a server's limits use them as one process would."""

import pytest

from tests.pacing.fleet_client import Fleets, lead
from tests.pacing.queueing_fleet import lead_auto
from tests.pacing.queueing_model import Plan as Queueing
from tests.pacing.queueing_model import best_fixed, draw_batching, draw_fixed
from tests.pacing.server_model import BARE, HEADERS, MESSAGE, SECONDS, Plan, Server

ROWS = ((0, 0),) * 40_000
LASTS_S = 120.0
PER_S = 100
BUSY_SERVERS = (draw_fixed(3), draw_batching(1))
STARVED = {0: 5.0}  # a worker that has no more rows than that


def led(workers: int, hints: str, starved: dict[int, float] | None = None, seed: int = 1) -> Fleets:
    plan = Plan(requests=PER_S, hints=hints, latency_s=0.2)
    return lead(Server(plan, seed), ROWS, workers, until_s=LASTS_S, starved=starved, seed=seed)


def used(fleets: Fleets) -> float:
    """Of what the server takes in that time."""
    return fleets.accepted(0, LASTS_S) / (PER_S * LASTS_S)


@pytest.mark.parametrize("workers", [3, 8, pytest.param(1, marks=pytest.mark.long)])
def test_a_limit_told_in_headers_is_used_and_nothing_refused(workers: int) -> None:
    fleets = led(workers, HEADERS)
    assert used(fleets) >= 0.97
    assert fleets.refused(0, LASTS_S) == 0


@pytest.mark.parametrize("workers", [3, 8, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "hints", [BARE, *(pytest.param(one, marks=pytest.mark.long) for one in (MESSAGE, SECONDS))]
)
def test_a_hidden_limit_is_used_and_little_refused(workers: int, hints: str) -> None:
    fleets = led(workers, hints)
    assert used(fleets) >= (0.97 if hints == BARE else 0.95)
    assert fleets.share_refused <= 0.015


@pytest.mark.parametrize("workers", [3, 8])
def test_a_hidden_limit_is_used_from_the_start_as_by_one_process(workers: int) -> None:
    for seed in range(1, 4):
        plan = Plan(requests=PER_S, hints=BARE, latency_s=0.5, spread=0.2, refusal_s=0.01)
        one, together = (
            lead(Server(plan, seed), ROWS, count, until_s=20.0, most=256, seed=seed)
            for count in (1, workers)
        )
        assert together.accepted(0, 20) >= one.accepted(0, 20) - 0.02 * 20 * PER_S
        assert together.share_refused <= max(0.015, one.share_refused + 0.002)


@pytest.mark.parametrize("workers", [1, 8, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(one, marks=pytest.mark.long) for one in range(2, 10))]
)
def test_a_hidden_limit_is_used_from_the_start_while_what_is_in_flight_adapts(
    workers: int, seed: int
) -> None:
    plan = Plan(requests=PER_S, hints=BARE, latency_s=0.5, spread=0.17, refusal_s=0.01)
    fleets = lead(Server(plan, seed), ROWS, workers, until_s=25.0, seed=seed, adapts_to_s=600.0)
    assert fleets.accepted(0, 25) >= 0.955 * 25 * PER_S
    assert fleets.share_refused <= 0.015


@pytest.mark.parametrize("hints", [BARE, HEADERS])
def test_what_a_worker_that_stands_still_leaves_of_a_servers_limit_goes_to_the_others(
    hints: str,
) -> None:
    plan = Plan(requests=PER_S, hints=hints, latency_s=0.2)
    fleets = lead(Server(plan, 1), ROWS, 3, until_s=65.0, still={1: (40.0, 55.0)}, seed=1)
    assert fleets.accepted(42, 55) >= 0.93 * 13 * PER_S
    assert fleets.accepted(55, 65) >= 0.93 * 10 * PER_S
    assert fleets.refused(40, 65) <= 0.015 * 25 * PER_S


@pytest.mark.parametrize("hints", [BARE, HEADERS])
def test_what_a_starved_worker_leaves_goes_to_the_others(hints: str) -> None:
    fleets = led(3, hints, STARVED)
    assert used(fleets) >= 0.93
    assert fleets.share_refused <= (0.015 if hints == BARE else 0.0)


@pytest.mark.long
@pytest.mark.parametrize("workers", [3, 8])
@pytest.mark.parametrize("seed", range(2, 8))
def test_that_holds_for_other_servers_of_the_kind(workers: int, seed: int) -> None:
    fleets = led(workers, BARE, seed=seed)
    assert used(fleets) >= 0.97
    assert fleets.share_refused <= 0.02


@pytest.mark.parametrize(
    ("workers", "starved"),
    [
        (3, STARVED),
        pytest.param(3, None, marks=pytest.mark.long),
        pytest.param(8, STARVED, marks=pytest.mark.long),
    ],
)
def test_the_users_own_limit_is_never_passed_and_used(
    workers: int, starved: dict[int, float] | None
) -> None:
    plan = Plan(latency_s=0.2)
    fleets = lead(
        Server(plan, 1), ROWS, workers, until_s=200.0, requests_per_minute=6000, starved=starved
    )
    starts = [fleets.accepted(second / 2, second / 2 + 60) for second in range(280)]
    assert max(starts) <= 6000
    assert fleets.accepted(80, 200) >= 0.97 * 2 * 6000


def test_what_a_worker_that_stands_still_leaves_of_the_users_limit_goes_to_the_others() -> None:
    still = {0: (20.0, 35.0), 1: (95.0, 110.0)}  # before a minute is full, and after it
    fleets = lead(
        Server(Plan(latency_s=0.2), 1),
        ROWS,
        3,
        until_s=115.0,
        requests_per_minute=6000,
        still=still,
    )
    assert max(fleets.accepted(second / 2, second / 2 + 60) for second in range(112)) <= 6000
    for from_s, until_s in still.values():
        assert fleets.accepted(from_s + 2, until_s) >= 0.93 * (until_s - from_s - 2) * PER_S
    assert fleets.accepted(35, 95) >= 0.97 * 60 * PER_S


def test_tokens_that_a_worker_that_stands_still_leaves_go_to_the_others() -> None:
    rows = ((700, 500), (1500, 900), (300, 100)) * 4000
    fleets = lead(
        Server(Plan(latency_s=1.0), 1),
        rows,
        3,
        until_s=110.0,
        tokens_per_minute=600_000,
        still={1: (85.0, 105.0)},
    )
    starts = [
        sum(one.between(one.tokens, second, second + 60) for one in fleets.traffic)
        for second in range(51)
    ]
    assert max(starts) <= 600_000
    used_tokens = sum(one.between(one.tokens, 87, 105) for one in fleets.traffic)
    assert used_tokens >= 0.85 * 18 * 10_000


def test_tokens_a_minute_are_used_and_never_passed() -> None:
    rows = ((700, 500), (1500, 900), (300, 100)) * 4000
    fleets = lead(Server(Plan(latency_s=1.0), 1), rows, 3, until_s=240.0, tokens_per_minute=600_000)
    for second in range(170):
        assert (
            sum(one.between(one.tokens, second, second + 60) for one in fleets.traffic) <= 600_000
        )
    used_tokens = sum(one.between(one.tokens, 120, 240) for one in fleets.traffic)
    assert used_tokens >= 0.9 * 2 * 600_000


@pytest.mark.parametrize(
    ("workers", "in_flight"), [(3, 32), (8, 32), pytest.param(3, 12, marks=pytest.mark.long)]
)
def test_requests_in_flight_that_a_server_takes_are_found_together(
    workers: int, in_flight: int
) -> None:
    plan = Plan(in_flight=in_flight, hints=BARE, latency_s=1.0, spread=0.0)
    fleets = lead(Server(plan, 1), ROWS, workers, until_s=60.0)
    assert fleets.accepted(10, 60) >= 0.97 * in_flight * 50
    assert fleets.share_refused <= 0.015


@pytest.mark.parametrize("workers", [3, pytest.param(8, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "plan",
    [draw_fixed(0), *(pytest.param(one, marks=pytest.mark.long) for one in BUSY_SERVERS)],
)
def test_a_server_that_queues_is_used_by_all_together(plan: Queueing, workers: int) -> None:
    answers = lead_auto(plan, workers, 180.0, timeout_s=120.0)
    best = best_fixed(plan, 60.0, 180.0, 0, 120.0)
    assert sum(one.rate(60, 180) for one in answers) >= 0.92 * best.rate(60, 180)
    latency_s = sum(one.latency_s(60, 180) for one in answers) / workers
    assert latency_s <= 2.0 * best.latency_s(60, 180)
