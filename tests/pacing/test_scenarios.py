import random

import pytest

from batchrun.errors import ErrorKind
from batchrun.records import Finish
from tests.pacing.client import Traffic, play
from tests.pacing.server_model import BARE, HEADERS, MESSAGE, SECONDS, Plan, Server

MINUTE_S = 60.0
ROWS = ((0, 0),) * 40_000


def share_refused(traffic: Traffic) -> float:
    refused = sum(traffic.refused)
    return refused / (refused + sum(traffic.accepted))


def sized_rows() -> tuple[tuple[int, int], ...]:
    """Lengths mixed; a third more is reserved than is used."""
    draw = random.Random(5)
    used = (int(min(20_000, draw.lognormvariate(6.5, 0.8))) + 1 for _ in range(20_000))
    return tuple((int(size * 1.33), size) for size in used)


@pytest.mark.parametrize("burst_s", [0.05, 1.0])
def test_a_rate_told_in_headers_is_filled_without_refusals(burst_s: float) -> None:
    plan = Plan(requests=200, burst_s=burst_s, hints=HEADERS, latency_s=0.2)
    traffic = play(Server(plan, 1), ROWS, until_s=MINUTE_S)
    assert sum(traffic.accepted) >= 0.98 * 200 * MINUTE_S
    assert share_refused(traffic) <= 0.005


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("is_rounded", [True, False])
@pytest.mark.parametrize("level", [10, 50, pytest.param(400, marks=pytest.mark.long)])
def test_a_limit_by_the_second_is_not_taken_for_one_by_the_minute(
    level: int, is_rounded: bool, is_named: bool
) -> None:
    plan = Plan(
        requests=level,
        window_s=1.0,
        said_s=1.0,
        is_named=is_named,
        is_rounded=is_rounded,
        hints=HEADERS,
        latency_s=0.2,
    )
    traffic = play(Server(plan, 1), ROWS, until_s=MINUTE_S)
    assert sum(traffic.accepted) >= (0.93 if is_named else 0.88) * level * MINUTE_S
    assert share_refused(traffic) <= (0.002 if is_named else 0.02)


@pytest.mark.parametrize("is_rounded", [True, False])
@pytest.mark.parametrize("level", [2, 10, pytest.param(200, marks=pytest.mark.long)])
def test_a_minutes_limit_is_known_by_its_bucket_and_by_its_window(
    level: int, is_rounded: bool
) -> None:
    for window_s in (None, 60.0):
        plan = Plan(
            requests=level,
            window_s=window_s,
            burst_s=60.0,
            hints=HEADERS,
            is_rounded=is_rounded,
            latency_s=0.2,
        )
        traffic = play(Server(plan, 1), ROWS, until_s=3 * MINUTE_S)
        assert sum(traffic.accepted) >= 0.97 * level * 3 * MINUTE_S
        # A bucket whose times are rounded shows itself only once much of it is used.
        assert sum(traffic.refused) <= 30 + 0.005 * sum(traffic.accepted)


def test_a_days_limit_is_no_rate_and_an_hours_is_spread_once_half_of_it_is_used() -> None:
    day = Plan(
        requests=14_400 / 86_400, burst_s=86_400.0, said_s=86_400.0, hints=HEADERS, latency_s=0.2
    )
    traffic = play(Server(day, 1), ROWS[:10_000], until_s=2 * MINUTE_S)
    assert sum(traffic.accepted) == 10_000  # in 10 s a minute's limit would have allowed 2,400
    hour = Plan(
        requests=1.0, window_s=3600.0, said_s=3600.0, is_named=True, hints=HEADERS, latency_s=0.2
    )
    traffic = play(Server(hour, 1), ROWS[:5000], until_s=2 * 3600.0)
    assert traffic.between(traffic.accepted, 0, 60) >= 1700
    assert traffic.between(traffic.accepted, 0, 3500) <= 3600
    assert sum(traffic.accepted) >= 4500
    assert share_refused(traffic) <= 0.01


@pytest.mark.parametrize("hints", [BARE, MESSAGE])
@pytest.mark.parametrize("burst_s", [0.05, 0.2, 1.0])
def test_a_hidden_rate_is_found_and_kept(hints: str, burst_s: float) -> None:
    plan = Plan(requests=200, burst_s=burst_s, hints=hints, latency_s=0.2)
    traffic = play(Server(plan, 1), ROWS, until_s=MINUTE_S)
    assert sum(traffic.accepted) >= 0.94 * 200 * MINUTE_S
    assert share_refused(traffic) <= 0.02


@pytest.mark.parametrize("hints", [BARE, SECONDS])
def test_requests_in_flight_are_found_and_kept(hints: str) -> None:
    plan = Plan(in_flight=32, hints=hints, latency_s=1.0)
    told = play(Server(plan, 1), ROWS, most=32, until_s=MINUTE_S)
    traffic = play(Server(plan, 1), ROWS, until_s=MINUTE_S)
    assert sum(traffic.accepted) >= 0.95 * sum(told.accepted)
    assert share_refused(traffic) <= 0.02


@pytest.mark.parametrize("burst_s", [1.0, 60.0])
def test_tokens_told_in_headers_are_used(burst_s: float) -> None:
    plan = Plan(tokens=10_000, burst_s=burst_s, hints=HEADERS, latency_s=0.5)
    traffic = play(Server(plan, 1), sized_rows(), until_s=MINUTE_S)
    assert sum(traffic.tokens) >= 0.95 * 10_000 * MINUTE_S
    assert share_refused(traffic) <= 0.01


def test_hidden_tokens_with_bare_refusals_are_used_as_far_as_requests_can_tell() -> None:
    plan = Plan(tokens=10_000, burst_s=1.0, hints=BARE, latency_s=0.5)
    traffic = play(Server(plan, 1), sized_rows(), until_s=2 * MINUTE_S)
    assert sum(traffic.tokens) >= 0.85 * 10_000 * 2 * MINUTE_S
    assert share_refused(traffic) <= 0.05


def test_a_told_limit_that_halves_and_comes_back_is_followed_within_five_seconds() -> None:
    changes = ((20.0, 0.5), (40.0, 1.0))
    plan = Plan(requests=200, hints=HEADERS, latency_s=0.2, changes=changes)
    traffic = play(Server(plan, 1), ROWS, until_s=MINUTE_S)
    for from_s, level in ((5, 200), (25, 100), (45, 200)):
        got = traffic.between(traffic.accepted, from_s, from_s + 15) / 15
        assert 0.95 * level <= got <= 1.05 * level
    assert share_refused(traffic) <= 0.01


@pytest.mark.parametrize("most", [256, 1000])
@pytest.mark.parametrize("latency_s", [1.0, 10.0])
def test_where_nothing_is_refused_the_own_limit_is_full_in_seconds(
    most: int, latency_s: float
) -> None:
    plan = Plan(latency_s=latency_s, spread=0.0)
    from_s, until_s = 5 + 2 * latency_s, 5 + 5 * latency_s
    traffic = play(Server(plan, 1), ROWS, most=most, until_s=until_s + 1)
    got = traffic.between(traffic.accepted, from_s, until_s)
    assert got >= 0.98 * most * 3


def test_a_limit_shared_with_others_is_shared() -> None:
    class Shared(Server):
        """Half of what comes in is others'."""

        def take(self, tokens: int, now_s: float) -> tuple[float, Finish]:
            latency_s, finish = super().take(tokens, now_s)
            if finish.kind is None:
                super().take(tokens, now_s)
            return latency_s, finish

    plan = Plan(requests=100, hints=HEADERS, latency_s=0.2)
    traffic = play(Shared(plan, 1), ROWS, until_s=3 * MINUTE_S)
    got = traffic.between(traffic.accepted, 30, 180)
    refused = traffic.between(traffic.refused, 30, 180)
    assert got >= 0.85 * 50 * 150
    assert refused <= 0.05 * got


def test_slow_refusals_and_errors_of_other_kinds_do_not_stall_a_run() -> None:
    class Broken(Server):
        """One in fifty fails in a way that says nothing about load."""

        def take(self, tokens: int, now_s: float) -> tuple[float, Finish]:
            if self._random.random() < 0.02:
                return 0.1, Finish(ErrorKind.SERVER_ERROR)
            return super().take(tokens, now_s)

    plan = Plan(in_flight=100, latency_s=1.0, refusal_s=2.0)
    traffic = play(Broken(plan, 1), ROWS, until_s=MINUTE_S)
    assert traffic.between(traffic.accepted, 20, 60) >= 0.9 * 95 * 40


@pytest.mark.parametrize("share", [0.05, 0.1])
@pytest.mark.parametrize("kind", [ErrorKind.RATE_LIMIT, ErrorKind.OVERLOADED])
def test_refusals_by_chance_cost_little_more_than_the_stops_they_ask_for(
    kind: ErrorKind, share: float
) -> None:
    class Fickle(Server):
        """A gateway with some bad keys: a share is refused with a hint, whatever is sent."""

        def take(self, tokens: int, now_s: float) -> tuple[float, Finish]:
            if self._random.random() < share:
                return self._refused(kind, 8.0)
            return super().take(tokens, now_s)

    plan = Plan(hints=SECONDS, latency_s=0.3)
    traffic = play(Fickle(plan, 1), ROWS[:1000], until_s=10_000.0)
    assert sum(traffic.accepted) == 1000
    assert traffic.end_s <= 1.5 * 8.0 * sum(traffic.refused) + 2 * MINUTE_S


@pytest.mark.parametrize("most", [1, 2, 10, 600, 3000])
def test_requests_a_minute_are_used_from_the_start(most: int) -> None:
    traffic = play(Server(Plan(latency_s=0.3), 1), ROWS, requests_per_minute=most, until_s=60.0)
    assert 0.98 * most <= sum(traffic.accepted) <= most


def test_tokens_a_minute_are_used_from_the_start() -> None:
    plan = Plan(latency_s=0.5)
    traffic = play(Server(plan, 1), sized_rows(), tokens_per_minute=100_000, until_s=180.0)
    assert sum(traffic.tokens) >= 0.98 * 300_000


def test_many_thousand_rows_leave_nothing_waiting() -> None:
    plan = Plan(requests=150, burst_s=0.3, hints=BARE, latency_s=0.4)
    traffic = play(Server(plan, 2), ROWS[:3000])
    assert sum(traffic.accepted) == 3000
    assert traffic.end_s <= 3000 / 150 / 0.9 + 10
