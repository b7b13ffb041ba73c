import pytest
from msgspec.structs import replace

from batchrun.limits.verdicts import LimitStatus
from batchrun.progress.bottleneck import (
    Activity,
    bottleneck,
    limit_in_words,
    limits_in_words,
    lowest_limit,
    paused_by,
)

FULL = LimitStatus("requests in flight", 64, 64)
DOWN = LimitStatus("endpoint down", 12, until_s=107.3, says="overloaded (HTTP 503)")
UP = LimitStatus("endpoint down")
LIMITED = Activity(in_flight=64, is_limited=True, limits=(FULL, UP), now_s=100.0)
PROBED = Activity(in_flight=1, is_limited=True, limits=(FULL, DOWN), now_s=100.0)
_DOWN = "endpoint down, next request in 7.3 s: overloaded (HTTP 503)"


@pytest.mark.parametrize(
    ("activity", "cpu", "disk", "says"),
    [
        (LIMITED, 0.2, 0.0, "requests in flight (64 of 64)"),
        (LIMITED, 0.95, 0.9, "CPU (95% of a core)"),
        (LIMITED, 0.2, 0.7, "the disk (70% of the time is spent writing outcomes)"),
        (Activity(in_flight=3, is_reading=True), 0.2, 0.0, "reading the input"),
        (Activity(in_flight=3), 0.2, 0.0, "the answers to requests in flight"),
        (Activity(retrying=3), 0.0, 0.0, "rows waiting for a retry"),
        (PROBED, 0.2, 0.0, _DOWN),
        (Activity(retrying=3, limits=(FULL, DOWN), now_s=100.0), 0.0, 0.0, _DOWN),
        (Activity(), 0.0, 0.0, "nothing"),
    ],
)
def test_what_binds_is_said_in_words(
    activity: Activity, cpu: float, disk: float, says: str
) -> None:
    assert bottleneck(activity, cpu, disk) == says


def test_a_limit_is_shown_with_how_much_of_it_is_used_and_when_it_opens() -> None:
    assert limit_in_words(DOWN, 100.0) == _DOWN
    assert limit_in_words(LimitStatus("tokens a minute", 81_234.5, 100_000), 0.0) == (
        "tokens a minute (81,234 of 100,000)"
    )
    dollars = LimitStatus("--max-cost", 0.0719, 0.08, of="dollars")
    assert limit_in_words(dollars, 0.0) == "--max-cost ($0.0719 of $0.08, reservations included)"
    header = LimitStatus("x-ratelimit-limit-requests", None, 1200, of="requests", per_s=20.0)
    words = "the server's x-ratelimit-limit-requests (1,200 a minute)"
    assert limit_in_words(header, 0.0) == words
    header = LimitStatus("ratelimit-policy", 3, 50, of="requests", per_s=50.0)
    assert (
        limit_in_words(header, 0.0) == "the server's ratelimit-policy (3 of 50 requests a second)"
    )
    inferred = LimitStatus("inferred rate", None, 97.25, of="requests", per_s=97.25 / 60)
    assert limit_in_words(inferred, 0.0) == "inferred rate (97.2 requests a minute)"
    queue = LimitStatus("the server's throughput", 64, 64, of="in flight", per_s=41.2)
    assert limit_in_words(queue, 0.0) == (
        "the server's throughput: 41.2 requests/s at 64 in flight; more only makes them wait"
    )
    grows = LimitStatus("the server's throughput", 16, 16, of="in flight")
    assert limit_in_words(grows, 0.0) == "the server's throughput (16 of 16)"
    mine = LimitStatus("requests a minute", 12, 600, of="requests", per_s=10.0)
    assert limit_in_words(mine, 0.0) == "requests a minute (12 of 600)"


def test_an_outage_says_when_the_run_gives_up() -> None:
    for ends_s, words in ((1_843.0, "29 min"), (145.5, "46 s"), (99.0, "")):
        given_up = f", gives up in {words}" if words else ""
        assert limit_in_words(replace(DOWN, ends_s=ends_s), 100.0) == _DOWN.replace(
            " s:", f" s{given_up}:"
        )


def test_limits_that_several_models_have_each_are_added_up() -> None:
    mine = LimitStatus("requests in flight", 9, 64, of="in flight")
    some = [LimitStatus("inferred limit", 1, most, of="in flight") for most in (1, 4)]
    assert lowest_limit((mine, *some), "in flight") == 5
    assert lowest_limit((mine, some[0]), "in flight") == 1
    free = LimitStatus("inferred limit", 1, None, of="in flight")
    assert lowest_limit((mine, *some, free), "in flight") == 64
    rates = [LimitStatus("inferred rate", of="requests", per_s=rate) for rate in (5.7, 9.0)]
    assert lowest_limit((mine, *rates), "requests") == pytest.approx(14.7)
    assert lowest_limit((mine, *rates), "tokens") is None


def test_limits_with_nothing_to_say_are_left_out() -> None:
    idle = LimitStatus("cooldown")
    assert limits_in_words(Activity(limits=(FULL, idle))) == ("requests in flight (64 of 64)",)


def test_only_what_stops_all_sending_is_a_pause() -> None:
    cooling, up = LimitStatus("cooldown", until_s=107.3), LimitStatus("endpoint down")
    assert paused_by(Activity(in_flight=64, is_limited=True, limits=(FULL, up))) is None
    assert paused_by(Activity(is_limited=True, limits=(cooling, FULL))) == "cooldown"
    assert paused_by(Activity(limits=(cooling, FULL))) is None


def test_an_endpoint_that_is_down_stays_so_while_it_is_probed() -> None:
    up = LimitStatus("endpoint down")
    assert paused_by(PROBED) == "endpoint down"  # a probe is in flight, and the others wait
    assert paused_by(Activity(retrying=9, limits=(FULL, DOWN))) == "endpoint down"
    assert paused_by(Activity(is_limited=True, limits=(FULL, DOWN, up))) is None  # of one model
    assert paused_by(Activity(is_limited=True, limits=(DOWN, up))) == "endpoint down"
