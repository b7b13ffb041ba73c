import math

import pytest

from batchrun.errors import ErrorKind
from batchrun.limits.pauses import Cooldown
from batchrun.limits.verdicts import GO, Wait
from batchrun.records import Finish, Need, Scope, Slot

NEED = Need(Scope("http://127.0.0.1/v1", "KEY", "m"))


def starts(cooldown: Cooldown, from_s: float, until_s: float, rate: float) -> int:
    """How many go in where `rate` a second want to."""
    count = 0
    for number in range(int((until_s - from_s) * rate)):
        now_s = from_s + number / rate
        if cooldown.verdict(NEED, now_s) is GO:
            cooldown.started(NEED, now_s)
            count += 1
    return count


def refuse(
    cooldown: Cooldown,
    sent_s: float,
    now_s: float,
    hint_s: float,
    kind: ErrorKind = ErrorKind.RATE_LIMIT,
) -> None:
    cooldown.finished(Slot(NEED, sent_s), Finish(kind, hint_s=hint_s), now_s)


@pytest.mark.parametrize("kind", [ErrorKind.RATE_LIMIT, ErrorKind.OVERLOADED])
def test_a_hint_stops_new_requests_until_its_time(kind: ErrorKind) -> None:
    cooldown = Cooldown()
    cooldown.started(NEED, 9.0)
    refuse(cooldown, 9.0, 10.0, 5.0, kind)
    assert cooldown.verdict(NEED, 10.0) == Wait(15.0)
    assert cooldown.status(12.0).until_s == 15.0
    assert cooldown.verdict(NEED, 15.0) is GO
    assert cooldown.status(15.0).until_s is None


def test_other_errors_and_refusals_without_a_hint_stop_nothing() -> None:
    cooldown = Cooldown()
    cooldown.finished(Slot(NEED, 9.0), Finish(ErrorKind.RATE_LIMIT), 10.0)
    refuse(cooldown, 9.0, 10.0, 5.0, ErrorKind.SERVER_ERROR)
    refuse(cooldown, 9.0, 10.0, 0.0)
    assert cooldown.verdict(NEED, 10.0) is GO


def test_a_refusal_among_many_answers_stops_nothing_unless_a_limit_is_known() -> None:
    known = False
    cooldown = Cooldown(lambda _slot, _finish, _now_s: known)
    starts(cooldown, 0.0, 9.9, 100.0)
    refuse(cooldown, 9.5, 9.9, 5.0)
    assert cooldown.verdict(NEED, 9.9) is GO
    known = True
    refuse(cooldown, 9.5, 9.9, 5.0)
    assert cooldown.verdict(NEED, 9.9) == Wait(14.9)


def test_a_considerable_share_of_refusals_stops_all() -> None:
    cooldown = Cooldown(lambda _slot, _finish, _now_s: False)
    starts(cooldown, 0.0, 9.0, 100.0)
    for number in range(8):
        now_s = 9.0 + number / 10
        starts(cooldown, now_s, now_s + 0.02, 100.0)
        refuse(cooldown, now_s, now_s + 0.05, 5.0)
    assert isinstance(cooldown.verdict(NEED, 9.8), Wait)


def test_a_server_that_refuses_from_the_start_is_left_alone_at_once() -> None:
    cooldown = Cooldown(lambda _slot, _finish, _now_s: False)
    cooldown.started(NEED, 9.0)
    refuse(cooldown, 9.0, 10.0, 5.0)
    assert cooldown.verdict(NEED, 10.0) == Wait(15.0)


def test_a_wave_of_refusals_is_one_stop() -> None:
    cooldown = Cooldown()
    refuse(cooldown, 9.0, 10.0, 2.0)
    for number in range(50):  # sent before the first came back, back one after the other
        refuse(cooldown, 9.0 + number * 0.01, 10.0 + number * 0.03, 2.0)
    assert cooldown.verdict(NEED, 11.9) == Wait(12.0)
    assert cooldown.verdict(NEED, 12.0) is GO


def test_one_of_a_wave_may_ask_for_more() -> None:
    cooldown = Cooldown()
    refuse(cooldown, 9.0, 10.0, 1.0)
    refuse(cooldown, 9.5, 10.1, 20.0)
    assert cooldown.verdict(NEED, 11.0) == Wait(29.5)


def test_a_refusal_of_what_was_sent_afterwards_is_a_stop_of_its_own() -> None:
    cooldown = Cooldown()
    refuse(cooldown, 9.0, 10.0, 2.0)
    cooldown.started(NEED, 12.0)
    refuse(cooldown, 12.0, 12.1, 2.0)
    assert cooldown.verdict(NEED, 13.0) == Wait(14.1)


def test_after_a_long_stop_the_ramp_begins_below_where_it_was_and_ends() -> None:
    cooldown = Cooldown()
    starts(cooldown, 0.0, 5.0, 100.0)
    refuse(cooldown, 4.9, 5.0, 10.0)
    assert starts(cooldown, 5.0, 15.0, 100.0) == 0
    assert 60 <= starts(cooldown, 15.0, 16.0, 1000.0) <= 190
    assert starts(cooldown, 20.0, 21.0, 1000.0) == 1000


def test_tiny_hints_cost_no_more_than_they_say() -> None:
    cooldown = Cooldown()
    sent = 0
    for second in range(10):
        sent += starts(cooldown, float(second), second + 0.99, 200.0)
        refuse(cooldown, second + 0.9, second + 0.99, 0.005)
    assert sent >= 0.97 * 200 * 10


def test_slow_down_slows_the_ramp_to_half_more_in_fifteen_seconds() -> None:
    cooldown = Cooldown()
    starts(cooldown, 0.0, 5.0, 100.0)
    slow = Finish(ErrorKind.RATE_LIMIT, slow_down=True)
    cooldown.finished(Slot(NEED, 4.9), slow, 5.0)
    before = starts(cooldown, 5.0, 6.0, 1000.0)
    after = starts(cooldown, 20.0, 21.0, 1000.0)
    assert 90 <= before <= 110
    assert after <= 1.55 * before
    assert starts(cooldown, 100.0, 101.0, 1000.0) == 1000


def test_a_wait_always_has_an_end() -> None:
    cooldown = Cooldown()
    cooldown.finished(Slot(NEED, 0.0), Finish(ErrorKind.OVERLOADED, hint_s=3.0), 1.0)
    now_s, waits = 1.0, 0
    while (verdict := cooldown.verdict(NEED, now_s)) is not GO:
        assert isinstance(verdict, Wait)
        assert now_s < verdict.until_s < math.inf
        now_s, waits = verdict.until_s, waits + 1
    assert now_s == 4.0
    assert waits == 1
