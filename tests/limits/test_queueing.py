import math
import random
from itertools import pairwise

import pytest

from batchrun.errors import ErrorKind
from batchrun.limits import tuning
from batchrun.limits.queue_estimate import LevelEstimate, Sizes, Sums, enough, out_of_date
from batchrun.limits.queueing import Throughput
from batchrun.limits.rate import AdvertisedRate
from batchrun.limits.verdicts import GO
from batchrun.records import AdvertisedLimit, Finish, Need, Scope, Slot

NEED = Need(Scope("http://127.0.0.1/v1", "KEY", "m"), 100)
TIMED_OUT = Finish(ErrorKind.TIMEOUT, answered=False)


def _estimate(per_s: float, error: float = 0.01) -> LevelEstimate:
    return LevelEstimate(per_s, 1.0, error**2)


def test_the_latency_of_a_mean_answer_is_told_from_few_uneven_ones() -> None:
    """1 s of waiting and 10 ms a token; all that came back so far are short."""
    sizes, sums, draw = Sizes(), Sums(), random.Random(1)
    for _ in range(2000):
        sizes.add(draw.lognormvariate(5.0, 0.7))
    for size in (20.0, 60.0, 40.0, 90.0, 30.0, 70.0):
        sums.add(1.0 + 0.01 * size, size, 50)
    estimate = sums.measured(sizes)
    assert estimate.latency_s == pytest.approx(1.0 + 0.01 * sizes.mean)
    assert estimate.per_s == pytest.approx(50 / estimate.latency_s)


def test_what_is_waited_for_is_as_uneven_as_answers_are() -> None:
    sizes, waiting, working = Sizes(), Sums(), Sums()
    for size in (20.0, 60.0, 400.0, 90.0, 30.0, 70.0):
        sizes.add(size)
        waiting.add(10.0, size, 50)
        working.add(0.01 * size, size, 50)
    assert math.sqrt(waiting.measured(sizes).variance) > 0.3
    assert math.sqrt(working.measured(sizes).variance) < 0.02


@pytest.mark.parametrize("answers", [1, 2, 9])
def test_answers_within_one_tick_of_the_clock_are_fast_and_no_fault(answers: int) -> None:
    """A loop whose clock counts milliseconds says 0 of a server on the same machine."""
    sizes, sums = Sizes(), Sums()
    for size in range(1, answers + 1):
        sizes.add(float(size))
        sums.add(0.0, float(size), 1)
    assert 0.0 < sums.measured(sizes).latency_s < 0.01


def test_the_fewest_with_about_the_best_throughput_are_enough() -> None:
    assert enough({8: _estimate(8), 16: _estimate(16), 32: _estimate(16.1)}) == 16
    assert enough({8: _estimate(8), 16: _estimate(16), 32: _estimate(17)}) == 32


def test_noise_at_many_in_flight_is_no_reason_for_them() -> None:
    levels = {16: _estimate(16), 32: _estimate(17.5, 0.2), 64: _estimate(15, 0.1)}
    assert enough(levels) == 16


def test_more_in_flight_that_bring_less_than_fewer_are_out_of_date() -> None:
    levels = {8: _estimate(8), 16: _estimate(16), 32: _estimate(10), 4: _estimate(1)}
    assert out_of_date(levels, 16) == [32, 4]  # 4 could not bring a sixteenth


class Line:
    """A limit and a clock; answers take so long."""

    def __init__(self, most: int = 1000, timeout_s: float = 600.0, *rates: AdvertisedRate) -> None:
        self.limit = Throughput(most, timeout_s, *rates)
        self.now_s = 100.0
        self.slots: list[Slot] = []

    def fill(self) -> int:
        """As many as go in; how many are in flight then."""
        while self.limit.verdict(NEED, self.now_s) is GO and len(self.slots) < 2000:
            self.limit.started(NEED, self.now_s)
            self.slots.append(Slot(NEED, self.now_s))
        return len(self.slots)

    def end(self, finish: Finish, after_s: float = 0.0) -> None:
        self.now_s += after_s
        self.limit.finished(self.slots.pop(0), finish, self.now_s)


def _answers(line: Line, count: int, every_s: float) -> None:
    for _ in range(count):
        line.end(Finish(output_tokens=50), every_s)
        line.fill()


def _alone(answer_s: float) -> Line:
    """A line after its first answer, which took so long."""
    line = Line(timeout_s=30.0)
    line.limit.started(NEED, line.now_s)
    line.slots.append(Slot(NEED, line.now_s))
    line.end(Finish(output_tokens=50), answer_s)
    assert line.fill() == 16
    return line


def _allowed(line: Line) -> int:
    return round(line.limit.status(line.now_s).most or 0)


def test_a_time_out_of_who_waits_lowers_what_is_in_flight_once() -> None:
    line = _alone(0.5)
    _answers(line, 10, 0.5)
    assert line.limit.waits
    before = _allowed(line)
    line.end(TIMED_OUT, 20.0)
    lowered = _allowed(line)
    line.end(TIMED_OUT)
    assert lowered <= before / 2
    assert _allowed(line) == lowered  # one wave, one cut


def test_a_time_out_of_who_waited_among_more_lowers_nothing_again() -> None:
    line = _alone(0.5)
    late = line.slots[-3:]
    del line.slots[-3:]
    while _allowed(line) >= 16:
        _answers(line, 1, 0.5)
    lowered = _allowed(line)
    assert 1 < lowered <= 8
    for slot in late:
        line.limit.finished(slot, TIMED_OUT, line.now_s + 20.0)
    assert _allowed(line) == lowered


def test_what_is_in_flight_falls_by_half_at_most_at_a_time() -> None:
    line, numbers = _alone(0.125), [16]
    for _ in range(100):
        _answers(line, 1, 0.05)  # 2.5 times as many as alone
        numbers.append(_allowed(line))
    assert max(numbers) == 24
    assert next(m for n, m in pairwise(numbers) if m < n) == 8


def test_a_knee_is_measured_twice_before_fewer_are_tried() -> None:
    line, count = _alone(1.0), 0
    while _allowed(line) < 64:
        _answers(line, 1, 1.1 / 16)  # hardly later than alone
    while _allowed(line) == 64:
        _answers(line, 1, 3.2 / 64)  # a third more of them, and three times as late
        count += 1
    assert _allowed(line) == 32
    assert count > 64 - 16 + 2 * tuning.QUEUE_ANSWERS


def test_a_time_out_of_who_is_slow_by_itself_lowers_nothing() -> None:
    line = _alone(0.5)
    for _ in range(3):  # each as fast as the first alone
        sent, line.slots = line.slots, []
        line.now_s += 0.5
        for slot in sent:
            line.limit.finished(slot, Finish(output_tokens=50), line.now_s)
        line.fill()
    before = len(line.slots)
    assert not line.limit.waits
    line.end(TIMED_OUT, 0.1)
    assert line.fill() >= before


def test_a_server_that_advertises_limits_or_refuses_is_left_to_its_other_limits() -> None:
    rate = AdvertisedRate("requests")
    told = Line(1000, 600.0, rate)
    assert told.fill() == 16
    limit = AdvertisedLimit("x-ratelimit-limit-requests", "requests", 6000.0, 10.0, 1.0)
    slot, finish = told.slots[0], Finish(advertised=(limit,))
    rate.finished(slot, finish, told.now_s)
    assert told.fill() > 1000
    refused = Line()
    refused.fill()
    refused.end(Finish(ErrorKind.RATE_LIMIT, tokens=0), 0.1)
    refused.fill()
    assert refused.limit.verdict(NEED, refused.now_s) is not GO  # it may be chance
    for _ in range(5):
        refused.end(Finish(ErrorKind.RATE_LIMIT, tokens=0), 0.1)
    assert refused.fill() > 1000
    refused.now_s += tuning.QUEUE_REFUSED_S
    assert refused.limit.verdict(NEED, refused.now_s) is not GO  # and goes on from there
