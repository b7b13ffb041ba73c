import pytest

from batchrun.limits.verdicts import LimitStatus
from batchrun.progress.bottleneck import Pulse, binding, headroom, paused_by, told

FULL = LimitStatus("requests in flight", 64, 64)
DOWN = LimitStatus("endpoint down", 12, until_s=107.3)
HELD = Pulse(in_flight=64, is_held=True, statuses=(FULL, DOWN), now_s=100.0)


@pytest.mark.parametrize(
    ("pulse", "cpu", "disk", "says"),
    [
        (HELD, 0.2, 0.0, "requests in flight: 64 of 64"),
        (HELD, 0.95, 0.9, "CPU: 95% of a core"),
        (HELD, 0.2, 0.7, "the disk: 70% of the time is spent writing outcomes"),
        (Pulse(in_flight=3, is_reading=True), 0.2, 0.0, "reading the input"),
        (Pulse(in_flight=3), 0.2, 0.0, "the answers to what is in flight"),
        (Pulse(retrying=3), 0.0, 0.0, "rows between two tries"),
        (Pulse(), 0.0, 0.0, "nothing"),
    ],
)
def test_what_binds_is_said_in_words(pulse: Pulse, cpu: float, disk: float, says: str) -> None:
    assert binding(pulse, cpu, disk) == says


def test_a_limit_is_told_with_its_headroom_and_when_it_opens() -> None:
    assert told(DOWN, 100.0) == "endpoint down, next in 7.3 s"
    assert told(LimitStatus("tokens a minute", 81_234.5, 100_000), 0.0) == (
        "tokens a minute: 81,234 of 100,000"
    )
    dollars = LimitStatus("dollars (--max-cost)", 0.0719, 0.08, of="dollars")
    assert told(dollars, 0.0) == ("dollars (--max-cost): $0.0719 of $0.08, with what is reserved")
    header = LimitStatus("x-ratelimit-limit-requests", None, 1200, of="requests", per_s=20.0)
    assert told(header, 0.0) == "the server's x-ratelimit-limit-requests: 1,200"
    learnt = LimitStatus("learnt rate", None, 97.25, of="requests", per_s=97.25 / 60)
    assert told(learnt, 0.0) == "learnt rate: 97.2 requests a minute"
    mine = LimitStatus("requests a minute", 12, 600, of="requests", per_s=10.0)
    assert told(mine, 0.0) == "requests a minute: 12 of 600"


def test_limits_with_nothing_to_say_are_left_out() -> None:
    idle = LimitStatus("cooldown")
    assert headroom(Pulse(statuses=(FULL, idle))) == ["requests in flight: 64 of 64"]


def test_only_what_stops_all_sending_is_a_pause() -> None:
    cooling, up = LimitStatus("cooldown", until_s=107.3), LimitStatus("endpoint down")
    assert paused_by(Pulse(in_flight=64, is_held=True, statuses=(FULL, up))) is None
    assert paused_by(Pulse(is_held=True, statuses=(cooling, FULL))) == "cooldown"
    assert paused_by(Pulse(statuses=(cooling, FULL))) is None


def test_an_endpoint_that_is_down_stays_so_while_it_is_probed() -> None:
    up = LimitStatus("endpoint down")
    assert paused_by(HELD) == "endpoint down"  # a probe is out, and holds up the others
    assert paused_by(Pulse(retrying=9, statuses=(FULL, DOWN))) == "endpoint down"
    assert paused_by(Pulse(is_held=True, statuses=(FULL, DOWN, up))) is None  # of one model
    assert paused_by(Pulse(is_held=True, statuses=(DOWN, up))) == "endpoint down"
