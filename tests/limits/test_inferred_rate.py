import math

import pytest

from batchrun.errors import ErrorKind
from batchrun.limits.inferred_rate import InferredRate
from batchrun.limits.rate import AdvertisedRate, Spacing
from batchrun.limits.rate_estimate import SentLog
from batchrun.limits.verdicts import GO, Wait
from batchrun.records import AdvertisedLimit, Finish, Need, Scope, Slot

NEED = Need(Scope("http://127.0.0.1/v1", "KEY", "m"))
REFUSED = Finish(ErrorKind.RATE_LIMIT)
LAG_S = 0.05


def play(limit: InferredRate, from_s: float, until_s: float, rate: float) -> tuple[int, int]:
    """Let in and refused by a server that takes `rate` a second and holds a tenth of that."""
    now_s, level, at_s = from_s, 0.1 * rate, from_s
    let_in = refused = 0
    back: list[float] = []
    while now_s < until_s:
        while back and back[0] + LAG_S <= now_s:
            sent_s = back.pop(0)
            limit.finished(Slot(NEED, sent_s), REFUSED, sent_s + LAG_S)
        verdict = limit.verdict(NEED, now_s)
        if verdict is not GO:
            assert isinstance(verdict, Wait)
            assert now_s < verdict.until_s < math.inf
            now_s = min(verdict.until_s, back[0] + LAG_S if back else math.inf)
            continue
        limit.started(NEED, now_s)
        level, at_s = min(0.1 * rate, level + (now_s - at_s) * rate), now_s
        if level >= 1:
            level, let_in = level - 1, let_in + 1
        else:
            back.append(now_s)
            refused += 1
    return let_in, refused


@pytest.mark.parametrize("rate", [30.0, 200.0, 2000.0])
def test_a_rate_is_found_kept_and_found_again(rate: float) -> None:
    limit = InferredRate()
    play(limit, 0.0, 10.0, rate)
    for from_s, level in ((10.0, rate), (70.0, rate / 2), (130.0, rate)):
        play(limit, from_s, from_s + 30, level)
        let_in, refused = play(limit, from_s + 30, from_s + 60, level)
        assert let_in >= 0.95 * 30 * level
        assert refused <= 0.02 * let_in


def test_where_nothing_is_refused_it_is_no_bottleneck_after_seconds() -> None:
    limit = InferredRate()
    play(limit, 0.0, 3.0, 1e9)
    assert limit.rate > 50_000
    assert limit.status(3.0).most is None


def test_it_does_not_grow_where_it_is_not_used() -> None:
    limit = InferredRate()
    for second in range(100):
        limit.started(NEED, float(second))
    assert limit.rate < 100


def test_other_errors_do_not_lower_it() -> None:
    limit = InferredRate()
    play(limit, 0.0, 1.0, 1e9)
    before = limit.rate
    for number in range(20):
        limit.started(NEED, 1.0)
        limit.finished(Slot(NEED, 1.0), Finish(ErrorKind.OVERLOADED), 1.1 + number)
    assert limit.rate >= before


def test_what_the_server_tells_comes_first() -> None:
    told = AdvertisedRate("requests")
    limit = InferredRate(told)
    header = AdvertisedLimit("x-ratelimit-limit-requests", "requests", 6000.0)
    slot = Slot(NEED, 0.0)
    told.finished(slot, Finish(advertised=(header,)), 0.1)
    limit.finished(slot, Finish(advertised=(header,)), 0.1)
    assert limit.rate > 100.0
    for number in range(20):
        limit.finished(Slot(NEED, 0.2 + number), REFUSED, 0.3 + number)
    assert limit.rate > 100.0


@pytest.mark.parametrize(
    ("limit", "remaining", "reset_s", "least"),
    [
        (60_000.0, 59_999.0, 0.001, 1000.0),  # a bucket of a minute, in milliseconds
        (60_000.0, 59_999.0, 1.0, 1000.0),  # the same in seconds, or a window of a second
        (50.0, 49.0, 1.0, 0.0),  # less than it begins with
        (86_400.0, 86_399.0, 2.0, 0.0),  # a bucket of a day, or of an hour
        (86_400.0, 86_399.0, 3600.0, 0.0),  # a window of an hour
    ],
)
def test_it_begins_at_what_a_header_allows_at_least(
    limit: float, remaining: float, reset_s: float, least: float
) -> None:
    advertised = AdvertisedRate("requests")
    inferred = InferredRate(advertised)
    before = inferred.rate
    finish = Finish(
        answered=True,
        advertised=(AdvertisedLimit("x-limit", "requests", limit, remaining, reset_s),),
    )
    for one in (advertised, inferred):
        one.finished(Slot(NEED, 0.0), finish, 0.1)
    assert advertised.rate == math.inf
    assert inferred.rate == pytest.approx(max(before, 0.99 * least), rel=0.02)


def test_time_in_which_nobody_comes_is_not_saved_up() -> None:
    spacing = Spacing(10.0)
    spacing.start(1, 100.0)
    spacing.start(1, 200.0)
    assert 200.0 < spacing.next_s <= 200.1


def test_what_was_given_back_is_not_lost() -> None:
    spacing = Spacing(10.0)
    spacing.next_s = 100.0
    spacing.start(50, 100.0)
    spacing.give_back(40)
    spacing.start(1, 103.0)
    assert spacing.next_s == pytest.approx(101.1)


def test_a_debt_is_paid_at_the_new_rate() -> None:
    spacing = Spacing(1.0)
    spacing.next_s = 110.0
    spacing.change(10.0, 100.0)
    assert spacing.next_s == pytest.approx(101.0)


def test_the_log_knows_what_was_sent_and_refused_later() -> None:
    log = SentLog()
    for number in range(100):
        log.add(number * 0.1)
    log.refuse(9.5)
    log.refuse(2.0)
    assert log.until(5.05) == (51, 1)
    assert (log.sent, log.refused) == (100, 2)


def test_the_first_refusals_of_what_others_have_measured_lower_it_a_little() -> None:
    limit = InferredRate()
    limit.set_part(0.5, 0.0)
    limit.follow(100.0, 0.0)
    assert limit.rate == pytest.approx(50.0)
    play(limit, 0.0, 3.0, 45.0)
    assert 40.0 < limit.rate < 46.0


def test_a_rate_is_settled_once_nothing_is_refused_below_it_for_a_while() -> None:
    limit, now_s = InferredRate(), 0.0
    while not limit.is_settled(now_s):
        let_in, refused = play(limit, now_s, now_s + 1.0, 200.0)
        now_s += 1.0
    assert 3.0 <= now_s <= 15.0
    assert abs(let_in - 200) <= 20
    assert refused == 0
    assert limit.in_all == pytest.approx(200.0, rel=0.08)


def test_a_rate_that_will_soon_be_higher_again_is_not_settled() -> None:
    limit = InferredRate()
    for second in range(12):
        play(limit, second, second + 1.0, 50.0)
    for half in range(24, 47):  # it rises far above what it knows, ...
        play(limit, half / 2, (half + 1) / 2, 400.0)
    assert limit.is_settled(23.5)
    for half in range(47, 55):  # ... and is refused there
        play(limit, half / 2, (half + 1) / 2, 100.0)
    assert limit.rate < 115.0
    assert not limit.is_settled(27.5)
    for half in range(55, 70):
        play(limit, half / 2, (half + 1) / 2, 100.0)
    assert limit.is_settled(35.0)
    assert limit.rate > 110.0
