"""`--concurrency auto` against servers that queue, beside the best fixed number in flight."""

from collections.abc import Callable, Iterable

import pytest

from batchrun.progress.bottleneck import limit_in_words
from tests.pacing.queueing_client import play_auto
from tests.pacing.queueing_model import (
    MOST,
    Answers,
    Plan,
    best_fixed,
    draw_batching,
    draw_changing,
    draw_fixed,
    draw_unlimited,
)

TIMEOUT_S = 120.0
SETTLE_S = 60.0
LASTS_S = 180.0
_SHORT = 5  # one in so many servers of each kind in the short form


def _some(servers: Iterable[int]) -> list[object]:
    """All of them; the short form takes a few."""
    return [
        server if server % _SHORT == 0 else pytest.param(server, marks=pytest.mark.long)
        for server in servers
    ]


def _compared(plan: Plan, seed: int, until_s: float = LASTS_S) -> tuple[Answers, Answers]:
    """What auto did and what the best fixed number did, with what holds for all servers."""
    ours = play_auto(plan, until_s, seed, TIMEOUT_S).answers
    best = best_fixed(plan, SETTLE_S, until_s, seed, TIMEOUT_S)
    share = ours.rate(SETTLE_S, until_s) / best.rate(SETTLE_S, until_s)
    times = ours.latency_s(SETTLE_S, until_s) / best.latency_s(SETTLE_S, until_s)
    assert share >= 0.95, (seed, plan)
    assert times <= 2.0, (seed, plan)
    assert ours.timed_out <= best.timed_out, (seed, plan)
    return ours, best


@pytest.mark.parametrize("server", _some(range(20)))
def test_a_server_of_fixed_capacity_is_used_from_the_first_request_on(server: int) -> None:
    ours, best = _compared(draw_fixed(server), server)
    assert ours.rate(0, LASTS_S) >= 0.9 * best.rate(0, LASTS_S)


@pytest.mark.parametrize("server", _some(range(20)))
def test_a_batching_server_is_used(server: int) -> None:
    _compared(draw_batching(server), server)


@pytest.mark.parametrize("server", _some(range(10)))
def test_a_capacity_that_halves_and_returns_is_followed(server: int) -> None:
    _compared(draw_changing(server), server, until_s=360.0)


@pytest.mark.parametrize("server", _some(range(10)))
def test_slow_answers_of_an_unlimited_server_pass_for_no_queue(server: int) -> None:
    ours = play_auto(draw_unlimited(server), 420.0, server, 600.0).answers
    full_s = next(at_s for at_s, count in ours.in_flight if count >= 0.9 * MOST)
    assert full_s <= 240.0
    assert min(count for at_s, count in ours.in_flight if at_s > full_s) >= 0.9 * MOST


@pytest.mark.parametrize("draw", [draw_batching, pytest.param(draw_fixed, marks=pytest.mark.long)])
def test_a_server_that_says_no_tokens_is_used_too(draw: Callable[[int], Plan]) -> None:
    """Then the lengths are noise, and figures a little lower."""
    shares = []
    for server in range(6):
        plan = draw(server)
        ours = play_auto(plan, LASTS_S, server, TIMEOUT_S, says_tokens=False).answers
        best = best_fixed(plan, SETTLE_S, LASTS_S, server, TIMEOUT_S)
        shares.append(ours.rate(SETTLE_S, LASTS_S) / best.rate(SETTLE_S, LASTS_S))
    assert min(shares) >= 0.85
    assert sum(shares) / len(shares) >= 0.92


def test_no_more_are_in_flight_than_a_third_of_the_time_out_completes() -> None:
    plan = Plan(base_s=0.5, slots=256, slope_s=0.05)  # 18 a second of 256, which take 13 s
    ours = play_auto(plan, LASTS_S, 1, 24.0).answers
    late = [count for at_s, count in ours.in_flight if at_s > SETTLE_S]
    assert sum(late) / len(late) <= 1.15 * 18.3 * 24 / 3
    assert ours.timed_out <= 0.02 * len(ours.all)  # the tail of the lengths


def test_a_time_out_that_is_far_too_short_for_what_is_in_flight_lowers_it() -> None:
    plan = Plan(base_s=2.0, slots=8, changes=((60.0, 0.25, 1.0),))  # 4 a second, then 1
    ours = play_auto(plan, LASTS_S, 1, 15.0).answers
    assert sum(count for at_s, count in ours.in_flight if at_s > 120) <= 6 * 60
    timed_out_late = ours.timed_out / len(ours.all)
    assert timed_out_late <= 0.05


def test_what_binds_is_said_in_words() -> None:
    client = play_auto(Plan(base_s=1.0, slots=40), 61.0, 1, TIMEOUT_S)
    words = limit_in_words(client.statuses[0], 0.0)
    assert words.startswith("the server's throughput: ")
    assert words.endswith(" in flight; more only makes them wait")
    rate = float(words.removeprefix("the server's throughput: ").split(" requests/s")[0])
    assert 36 <= rate <= 44


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (play_auto(draw_fixed(1), 30.0, 1, TIMEOUT_S).answers for _ in range(2))
    assert first == second
