import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.errors import ErrorKind
from batchrun.limits.rate import AdvertisedRate, MinuteLimit
from batchrun.limits.verdicts import GO, Wait
from batchrun.records import AdvertisedLimit, Finish, Need, Scope, Slot

SCOPE = Scope("http://127.0.0.1/v1", "KEY", "m")
ONE = Need(SCOPE, 100)
TICK_S = 0.001


def told(
    limit: float | None,
    remaining: float | None = None,
    reset_s: float | None = None,
    of: str = "requests",
    header: str = "x-ratelimit-limit-requests",
) -> Finish:
    return Finish(advertised=(AdvertisedLimit(header, of, limit, remaining, reset_s),))


def hear(limit: AdvertisedRate, finish: Finish, now_s: float) -> None:
    limit.started(ONE, now_s)
    limit.finished(Slot(ONE, now_s), finish, now_s)


def starts(
    limit: MinuteLimit | AdvertisedRate, from_s: float, until_s: float, need: Need
) -> list[float]:
    """When they come where everybody wants to, on a clock of milliseconds with late timers."""
    times = []
    now_s = from_s
    while now_s < until_s:
        verdict = limit.verdict(need, now_s)
        if verdict is GO:
            limit.started(need, now_s)
            times.append(now_s)
            continue
        assert isinstance(verdict, Wait)
        assert now_s < verdict.until_s < math.inf
        ticks = math.ceil(verdict.until_s / TICK_S) + len(times) % 5
        now_s = max(ticks * TICK_S, verdict.until_s)
    return times


def test_requests_a_minute_are_spread_evenly_and_used() -> None:
    times = starts(MinuteLimit("requests", 600), 100.0, 280.0, ONE)
    assert len(times) >= 0.985 * 1800
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) > 0.04
    assert max(gaps) < 0.2


@given(st.sampled_from([1, 2, 3, 10, 60, 601, 2400]), st.floats(0.0, 1000.0))
def test_no_sliding_minute_has_more_requests_than_allowed(most: int, from_s: float) -> None:
    times = starts(MinuteLimit("requests", most), from_s, from_s + 150.0, ONE)
    assert all(late - early > 60.25 for early, late in zip(times, times[most:], strict=False))
    assert len(times) >= min(2 * most, len(times[:1]) + int(149 / 60.5 * most))


def test_tokens_count_as_reserved_and_then_as_used() -> None:
    limit = MinuteLimit("tokens", 1000)
    large = Need(SCOPE, 600)
    limit.started(large, 0.0)
    waits = limit.verdict(large, 45.0)
    assert isinstance(waits, Wait)
    assert 60.0 < waits.until_s < 60.02
    limit.finished(Slot(large, 0.0), Finish(tokens=100), 45.0)
    assert limit.verdict(large, 45.0) is GO
    assert limit.status(45.0).used == 100


def test_a_reservation_stands_where_nobody_says_what_was_used() -> None:
    limit = MinuteLimit("tokens", 1000)
    limit.started(Need(SCOPE, 600), 0.0)
    limit.finished(Slot(Need(SCOPE, 600), 0.0), Finish(ErrorKind.TIMEOUT, answered=False), 30.0)
    assert limit.status(59.0).used == 600
    assert limit.status(60.1).used == 0


def test_a_need_above_the_limit_goes_alone_and_does_not_wait_for_ever() -> None:
    limit = MinuteLimit("tokens", 1000)
    huge, small = Need(SCOPE, 5000), Need(SCOPE, 10)
    limit.started(small, 0.0)
    waits = limit.verdict(huge, 1.0)
    assert isinstance(waits, Wait)
    assert 60.0 < waits.until_s < 60.02
    assert limit.verdict(huge, 61.0) == Wait()  # until the one in flight has ended
    limit.finished(Slot(small, 0.0), Finish(tokens=10), 70.0)
    assert limit.verdict(huge, 70.0) is GO
    limit.started(huge, 70.0)
    assert isinstance(limit.verdict(small, 71.0), Wait)
    limit.finished(Slot(huge, 70.0), Finish(tokens=5000), 100.0)
    assert limit.verdict(small, 131.0) is GO


def test_memory_stays_flat() -> None:
    limit = MinuteLimit("requests", 600_000)
    starts(limit, 0.0, 70.0, ONE)
    assert len(limit._log) <= 6031  # its size is what is promised


def test_nothing_told_limits_nothing() -> None:
    limit = AdvertisedRate("requests")
    for nothing in (told(None), told(-1.0), told(0.0, 0.0), Finish()):
        hear(limit, nothing, 0.0)
    assert limit.rate == math.inf
    assert limit.verdict(ONE, 0.0) is GO


def test_what_is_told_is_followed_at_once_both_ways() -> None:
    limit = AdvertisedRate("requests")
    for at_s, level in ((100.0, 600.0), (200.0, 300.0), (300.0, 1200.0)):
        hear(limit, told(level), at_s)
        got = len(starts(limit, at_s + 0.1, at_s + 60.1, ONE))
        assert 0.98 * level <= got <= 1.01 * level
        assert limit.status(0.0).name == "x-ratelimit-limit-requests"
        assert limit.status(0.0).most == level


def test_an_answer_to_an_older_request_tells_nothing_new() -> None:
    limit = AdvertisedRate("requests")
    limit.finished(Slot(ONE, 10.0), told(600.0), 11.0)
    limit.finished(Slot(ONE, 5.0), told(60.0), 12.0)
    assert limit.rate == 10.0


def test_the_tightest_of_several_headers_binds() -> None:
    limit = AdvertisedRate("tokens")
    headers = (
        AdvertisedLimit("x-ratelimit-limit-tokens", "tokens", 60_000.0),
        AdvertisedLimit("x-ratelimit-limit-tokens-usage-based", "tokens", 6_000.0),
        AdvertisedLimit("x-ratelimit-limit-requests", "requests", 60.0),
    )
    hear(limit, Finish(advertised=headers), 0.0)
    assert limit.rate == 100.0
    assert limit.status(0.0).name == "x-ratelimit-limit-tokens-usage-based"


def test_a_limit_by_the_day_is_not_spread_over_it() -> None:
    limit = AdvertisedRate("requests")
    hear(limit, told(10_000.0, 5_000.0, 43_200.0), 0.0)
    assert limit.rate == math.inf


def test_a_minute_that_is_overdrawn_is_still_a_minute() -> None:
    limit = AdvertisedRate("tokens")
    hear(limit, told(6_000.0, 0.0, 70.0, "tokens"), 0.0)
    assert limit.rate == 100.0


def test_a_limit_by_the_second_shows_by_how_fast_it_is_full_again() -> None:
    limit = AdvertisedRate("requests")
    for answer in range(40):
        hear(limit, told(50.0, 48.0, 0.04), answer * 0.2)
    assert limit.rate == 50.0


def test_a_short_bucket_of_a_minutes_limit_is_not_taken_for_one_by_the_second() -> None:
    limit = AdvertisedRate("requests")
    for answer in range(40):
        hear(limit, told(12_000.0, 0.0, 1.0), answer * 0.2)
    assert limit.rate == 200.0


def test_small_needs_do_not_overtake_a_large_one_for_ever() -> None:
    limit = AdvertisedRate("tokens")
    hear(limit, told(6_000.0, of="tokens"), 0.0)
    small, large = Need(SCOPE, 10), Need(SCOPE, 50_000)
    limit.started(small, 1.0)
    waits = limit.verdict(large, 1.0)
    assert isinstance(waits, Wait)
    assert waits == limit.verdict(small, 1.0)
    assert waits.until_s < 3.0


def test_refusals_that_come_in_spite_of_it_lower_the_rate_for_a_while() -> None:
    limit = AdvertisedRate("requests")
    hear(limit, told(6_000.0), 0.0)
    now_s = 0.0
    for _ in range(30):
        now_s += 0.1
        times = starts(limit, now_s, now_s + 0.05, ONE)
        limit.verdict(ONE, now_s + 0.05)
        refusal = Finish(ErrorKind.RATE_LIMIT, advertised=told(6_000.0).advertised)
        limit.finished(Slot(ONE, times[-1] if times else now_s), refusal, now_s + 0.06)
    lowered = len(starts(limit, now_s + 1, now_s + 2, ONE))
    assert 5 <= lowered <= 80
    for second in range(60):
        hear(limit, told(6_000.0), now_s + 3 + second)
    assert len(starts(limit, now_s + 70, now_s + 71, ONE)) >= 98


@pytest.mark.parametrize(("every", "is_lowered"), [(20, False), (2, True)])
def test_refusals_while_much_remains_lower_the_rate_only_if_they_are_many(
    every: int, is_lowered: bool
) -> None:
    limit = AdvertisedRate("requests")
    hear(limit, told(6_000.0, 5_000.0), 0.0)
    refusal = Finish(ErrorKind.RATE_LIMIT, hint_s=5.0)  # from a gateway that tells no limits
    for number in range(1, 400):
        now_s = number / 150
        limit.started(ONE, now_s)
        limit.verdict(ONE, now_s)
        slot = Slot(ONE, now_s)
        limit.finished(slot, refusal if number % every == 0 else told(6_000.0, 5_000.0), now_s)
    assert limit.has_room(slot, refusal)
    assert not limit.has_room(slot, told(6_000.0, 0.0))
    assert (len(starts(limit, 5.0, 6.0, ONE)) < 98) is is_lowered


def test_what_counts_in_a_minute_says_when_it_ceases_to() -> None:
    limit = MinuteLimit("tokens", 1000)
    for at_s, tokens in ((0.0, 100), (10.0, 200), (10.5, 50)):
        limit.started(Need(SCOPE, tokens), at_s)
    limit.finished(Slot(Need(SCOPE, 200), 10.0), Finish(tokens=80), 12.0)
    lapses = limit.lapses(20.0)
    assert {second: amount for second, amount in enumerate(lapses) if amount} == {40: 100, 50: 130}
    for second in range(len(lapses)):
        assert limit.counted(20.0 + second) <= sum(lapses[second:])


@pytest.mark.parametrize("of", ["requests", "tokens", "input tokens"])
def test_what_an_hour_has_left_holds_until_it_is_over_and_no_longer(of: str) -> None:
    limit = AdvertisedRate(of.rpartition(" ")[2])
    said = AdvertisedLimit("x-ratelimit-limit-hour", of, 10_000.0, 0.0, 5.0, 3600.0)
    limit.finished(Slot(ONE, 0.0), Finish(advertised=(said,)), 1.0)
    limit.started(ONE, 1.0)
    assert limit.verdict(ONE, 1.0) == Wait(6.0)
    assert limit.status(1.0).until_s == 6.0
    refused = Finish(ErrorKind.RATE_LIMIT, hint_s=100.0, advertised=(said,))
    limit.finished(Slot(ONE, 1.0), refused, 2.0)
    assert limit.verdict(ONE, 2.0) == Wait(7.0)
    times = starts(limit, 7.0, 30.0, ONE)
    assert times[0] == 7.0
    assert len(times) <= 70  # at the even rate of the hour that has begun
    said = AdvertisedLimit("x-ratelimit-limit-hour", of, 10_000.0, 9_990.0, 3600.0, 3600.0)
    limit.finished(Slot(ONE, 7.0), Finish(advertised=(said,)), 30.0)
    assert limit.rate == math.inf
    assert limit.verdict(ONE, 30.0) is GO
