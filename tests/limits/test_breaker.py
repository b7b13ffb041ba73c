import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from batchrun.errors import ErrorKind, StopCause
from batchrun.limits import tuning
from batchrun.limits.pauses import Breaker, Patience
from batchrun.limits.verdicts import Go, Stop, Wait
from batchrun.records import Finish, Need, Scope, Slot

NEED = Need(Scope("http://127.0.0.1/v1", "KEY", "m"))
ANSWER = Finish()
DOWN = Finish(ErrorKind.OVERLOADED, error="no server is ready", endpoint_error="overloaded")
REFUSED = Finish(ErrorKind.FORBIDDEN, error="not today", endpoint_error="forbidden")
LIMITED = Finish(ErrorKind.RATE_LIMIT, error="slower (HTTP 429)")
TOO_LONG = Finish(ErrorKind.TOO_LONG, error="too many tokens")  # a gateway says so itself


class Line:
    """A breaker and a clock."""

    def __init__(
        self,
        give_up_after_s: float = 1800.0,
        *,
        unanswered_s: float = 60.0,
        answered: bool = True,
        met_before: str | None = None,
    ) -> None:
        self.recovered_s: list[float] = []
        self.in_flight = 0
        patience = Patience(give_up_after_s, unanswered_s, met_before=met_before)
        self.breaker = Breaker(patience, self.recovered_s.append, lambda: self.in_flight)
        self.now_s = 1000.0
        self.rows = 0
        if answered:
            self.ends(ANSWER)

    def ends(self, finish: Finish, sent_s: float | None = None, *, row: int | None = None) -> None:
        """An attempt has ended, of a row that did not fail before, if no other is given."""
        self.rows += 1
        if finish.kind is not None:
            row = self.rows if row is None else row
            finish = replace(finish, row=row, failing_since_s=self.now_s)
        self.breaker.finished(
            Slot(NEED, self.now_s if sent_s is None else sent_s), finish, self.now_s
        )

    def fails(self, count: int, over_s: float, finish: Finish = DOWN) -> None:
        for _ in range(count):
            self.ends(finish)
            self.now_s += over_s / count

    def may_go(self) -> bool:
        return isinstance(self.breaker.verdict(NEED, self.now_s), Go)

    def probe(self, finish: Finish, after_s: float = 0.01) -> None:
        self.breaker.started(NEED, self.now_s)
        sent_s = self.now_s
        self.now_s += after_s
        self.ends(finish, sent_s)


def test_single_failures_between_answers_pause_nothing() -> None:
    line = Line()
    for _ in range(100):
        line.fails(tuning.OUTAGE_ROWS - 1, 5.0)
        line.ends(ANSWER)
        assert line.may_go()
    assert not line.recovered_s


def test_a_burst_of_failures_within_a_moment_is_a_pause_of_a_moment() -> None:
    line = Line()
    line.fails(200, tuning.OUTAGE_LEAST_S / 2)
    assert not line.may_go()
    assert not line.breaker.is_open
    verdict = line.breaker.verdict(NEED, line.now_s)
    assert verdict == Wait(1000.0 + tuning.OUTAGE_LEAST_S)
    line.now_s = 1000.0 + tuning.OUTAGE_LEAST_S
    for _ in range(50):  # all that wait may go, and no answer has to be waited for
        assert line.may_go()
        line.breaker.started(NEED, line.now_s)
    assert not line.recovered_s


def test_rows_that_fail_again_and_again_while_others_are_answered_are_no_outage() -> None:
    line = Line()
    for _ in range(100):
        for row in range(3):
            line.ends(DOWN, row=-1 - row)
            line.now_s += 1
        assert line.may_go()
    assert not line.breaker.is_open


def test_a_row_that_failed_before_others_were_answered_is_no_sign_of_an_outage() -> None:
    line = Line()
    since_s = line.now_s
    line.now_s += 1
    line.ends(ANSWER)
    for row in range(3 * tuning.OUTAGE_ROWS):
        line.now_s += 1
        known = replace(DOWN, row=row, failing_since_s=since_s)
        line.breaker.finished(Slot(NEED, line.now_s), known, line.now_s)
    assert line.may_go()
    assert line.breaker.is_rows_own(since_s, "overloaded")
    assert not line.breaker.is_rows_own(line.now_s, "overloaded")


def test_an_answer_to_what_was_sent_before_a_failure_says_nothing_about_it() -> None:
    line = Line()
    sent_s, line.now_s = line.now_s, line.now_s + 5
    failed_s = line.now_s
    line.ends(DOWN)
    line.now_s += 1
    line.ends(ANSWER, sent_s)
    assert not line.breaker.is_rows_own(failed_s, "overloaded")
    line.now_s += 1
    line.ends(ANSWER)
    assert line.breaker.is_rows_own(failed_s, "overloaded")


def test_twenty_rows_that_fail_in_the_same_way_are_held_until_a_probe_is_answered() -> None:
    line = Line()
    line.fails(tuning.SAME_ROWS - 1, 1.0, REFUSED)
    assert line.may_go()
    line.ends(REFUSED)
    assert line.breaker.is_open
    assert line.breaker.excuses(1000.1)
    line.ends(ANSWER, sent_s=999.0)  # of a request that was sent before
    assert line.breaker.is_open
    line.now_s += 10
    line.probe(REFUSED)
    assert not line.recovered_s
    line.now_s += 10
    line.probe(ANSWER)
    assert line.recovered_s
    assert line.breaker.excuses(1000.1)


def test_rows_that_fail_in_ways_of_their_own_are_not_held() -> None:
    line = Line()
    for number in range(100):
        line.ends(replace(REFUSED, endpoint_error=f"forbidden {number}"))
    assert line.may_go()


def test_a_held_run_stops_with_the_servers_words_and_the_next_command_is_not_held() -> None:
    line = Line(give_up_after_s=100.0)
    line.fails(tuning.SAME_ROWS, 1.0, REFUSED)
    line.now_s += 100
    verdict = line.breaker.verdict(NEED, line.now_s)
    assert isinstance(verdict, Stop)
    assert "20 consecutive rows failed in the same way" in verdict.reason
    assert "not today" in verdict.reason
    assert verdict.endpoint_error == "forbidden"
    second = Line(met_before=verdict.endpoint_error)
    second.fails(100, 1.0, REFUSED)
    assert second.may_go()
    assert second.breaker.is_rows_own(second.now_s, "forbidden")


def test_a_refused_key_is_not_waited_for() -> None:
    line = Line()
    refused = replace(REFUSED, kind=ErrorKind.UNAUTHORIZED)
    line.fails(tuning.SAME_ROWS, 1.0, refused)
    verdict = line.breaker.verdict(NEED, line.now_s)
    assert isinstance(verdict, Stop)
    assert verdict.cause is StopCause.KEY


def test_a_server_that_fails_from_the_start_is_told_as_what_it_says() -> None:
    line = Line(answered=False, unanswered_s=7.0)
    line.fails(tuning.OUTAGE_ROWS + 1, 1.0)
    line.now_s = 1007.0
    verdict = line.breaker.verdict(NEED, line.now_s)
    assert isinstance(verdict, Stop)
    assert "every request has failed for 7 s" in verdict.reason
    assert "no server is ready" in verdict.reason


def test_what_the_server_says_is_in_the_status_while_it_is_down() -> None:
    line = Line()
    assert line.breaker.status(line.now_s).says is None
    line.fails(tuning.OUTAGE_ROWS + 1, 1.0)
    status = line.breaker.status(line.now_s)
    assert status.says == "no server is ready"
    assert status.ends_s is not None


def test_failures_of_the_row_are_none_of_the_endpoint() -> None:
    line = Line()
    for kind in (ErrorKind.BAD_REQUEST, ErrorKind.RATE_LIMIT, ErrorKind.CONTENT_POLICY):
        for _ in range(50):
            line.ends(Finish(kind))
            line.now_s += 1
    assert line.may_go()


def test_an_outage_lets_one_probe_at_a_time_through_until_an_answer_comes() -> None:
    line = Line()
    line.fails(tuning.OUTAGE_ROWS, 1.0)
    line.ends(DOWN)
    assert line.breaker.is_open
    assert line.may_go()
    line.breaker.started(NEED, line.now_s)
    assert not line.may_go()  # one at a time
    sent_s = line.now_s
    line.now_s += 0.2
    line.ends(DOWN, sent_s)
    assert not line.may_go()
    line.now_s += 60
    line.probe(ANSWER)
    assert line.may_go()
    assert line.recovered_s == [line.now_s]


def test_what_was_in_flight_before_the_outage_is_no_probe() -> None:
    line = Line()
    line.fails(tuning.OUTAGE_ROWS + 1, 1.0)
    line.now_s += 1
    line.breaker.started(NEED, line.now_s)
    line.now_s += 0.1
    line.ends(DOWN, sent_s=900.0)
    assert not line.may_go()


def test_a_probe_that_says_nothing_does_not_block_for_ever() -> None:
    line = Line()
    line.fails(tuning.OUTAGE_ROWS + 1, 1.0)
    line.now_s += 1
    line.breaker.started(NEED, line.now_s)
    assert not line.may_go()
    line.now_s += tuning.PROBE_PATIENCE_S
    assert line.may_go()


@given(st.floats(0, 1500), st.floats(0.001, 5))
def test_probes_come_at_most_a_twentieth_of_the_age_apart(age_s: float, probe_s: float) -> None:
    line = Line()
    line.fails(tuning.OUTAGE_ROWS + 1, 1.0)
    began_s = 1000.0
    line.now_s += age_s
    line.probe(DOWN, probe_s)
    verdict = line.breaker.verdict(NEED, line.now_s)
    assert isinstance(verdict, Wait)
    gap_s = verdict.until_s - line.now_s
    assert gap_s <= max(tuning.OUTAGE_LEAST_S, tuning.OUTAGE_SHARE * (line.now_s - began_s)) + 1e-6
    assert gap_s >= tuning.OUTAGE_LEAST_S - 1e-6


def test_an_outage_that_lasts_too_long_ends_the_run_with_words() -> None:
    line = Line(give_up_after_s=100.0)
    line.fails(tuning.OUTAGE_ROWS + 1, 1.0)
    while line.now_s < 1100.0:
        verdict = line.breaker.verdict(NEED, line.now_s)
        if isinstance(verdict, Wait):
            assert verdict.until_s <= 1100.0
            line.now_s = verdict.until_s
        else:
            assert isinstance(verdict, Go)
            line.probe(DOWN)
    verdict = line.breaker.verdict(NEED, line.now_s)
    assert isinstance(verdict, Stop)
    assert "limits.give_up_after_s" in verdict.reason
    assert "no server is ready" in verdict.reason


def test_an_endpoint_that_never_answered_is_given_up_sooner() -> None:
    line = Line(answered=False)
    line.fails(tuning.OUTAGE_ROWS + 1, 1.0, replace(DOWN, answered=False))
    assert line.breaker.is_open
    line.now_s = 1000.0 + 60.0
    verdict = line.breaker.verdict(NEED, line.now_s)
    assert isinstance(verdict, Stop)
    assert "--base-url" in verdict.reason


def test_an_endpoint_that_hangs_from_the_start_is_the_rows_own_business() -> None:
    line = Line(answered=False)
    for _ in range(5 * tuning.OUTAGE_ROWS):
        line.ends(Finish(ErrorKind.TIMEOUT, answered=False))
        line.now_s += 1
    assert line.may_go()


def test_a_server_that_refuses_everything_for_too_long_ends_the_run() -> None:
    line = Line(give_up_after_s=100.0)
    refused = Finish(ErrorKind.RATE_LIMIT, error="slower (HTTP 429)")
    line.ends(refused)
    line.now_s += 99
    line.ends(refused)
    assert line.may_go()
    line.ends(ANSWER)
    line.ends(refused)
    line.now_s += 99
    assert line.may_go()
    line.now_s += 1
    verdict = line.breaker.verdict(NEED, line.now_s)
    assert isinstance(verdict, Stop)
    assert "refused every request for 100 s" in verdict.reason
    assert "slower (HTTP 429)" in verdict.reason


def test_failures_of_an_outage_are_excused_and_others_are_not() -> None:
    line = Line()
    line.ends(DOWN)
    line.ends(ANSWER)
    single_s, line.now_s = line.now_s, line.now_s + 10
    first_s = line.now_s
    line.fails(tuning.OUTAGE_ROWS + 1, 1.0)
    assert line.breaker.excuses(first_s)
    assert line.breaker.excuses(line.now_s)
    assert not line.breaker.excuses(single_s)
    line.now_s += 30
    line.probe(ANSWER)
    assert line.breaker.excuses(first_s)
    assert not line.breaker.excuses(line.now_s + 1)


def test_what_batchrun_dropped_itself_says_nothing() -> None:
    line = Line()
    for _ in range(50):
        line.ends(Finish(answered=False))
        line.now_s += 1
    assert line.may_go()


def test_time_outs_while_others_are_answered_are_no_outage() -> None:
    line = Line()
    late = Finish(
        ErrorKind.TIMEOUT, answered=False, error="no answer", endpoint_error="timeout", dollars=None
    )
    sent_s = line.now_s
    line.now_s += 15.0
    line.ends(ANSWER, sent_s)
    for _ in range(3 * tuning.OUTAGE_ROWS):
        line.now_s += 0.1
        line.ends(late, sent_s)
    assert not line.breaker.is_open
    sent_s = line.now_s  # nothing is answered any more: it hangs
    line.now_s += 15.0
    for _ in range(3 * tuning.OUTAGE_ROWS):
        line.now_s += 0.1
        line.ends(late, sent_s)
    assert line.breaker.is_open


def test_what_other_processes_were_answered_counts_here() -> None:
    line = Line(answered=False)
    line.fails(tuning.SAME_ROWS, 2.0, REFUSED)
    assert not line.breaker.is_open  # nothing says that it is not the rows
    line = Line(answered=False)
    line.breaker.others_answered(line.now_s)
    assert line.breaker.may_hold
    line.fails(tuning.SAME_ROWS, 2.0, REFUSED)
    assert line.breaker.is_open
    assert line.breaker.down is None  # it answers, but refuses these
    line.now_s += 100.0  # longer than where nothing has ever answered
    assert not isinstance(line.breaker.verdict(NEED, line.now_s), Stop)


def test_a_long_outage_is_over_soon_after_others_are_answered() -> None:
    line = Line()
    line.fails(tuning.OUTAGE_ROWS, 1.0)
    assert line.breaker.down == "no server is ready"
    line.now_s += 1000.0
    line.probe(DOWN)
    failed_s = line.now_s
    line.now_s += 10.0
    line.breaker.others_answered(failed_s - 1.0)  # before it failed here
    assert not line.may_go()
    line.breaker.others_answered(failed_s + 1.0)
    assert line.may_go()
    line.probe(DOWN)
    line.breaker.others_answered(line.now_s + 0.1)
    line.now_s += 0.5 * tuning.PROBE_AS_OTHERS_S
    assert not line.may_go()
    line.now_s += 0.5 * tuning.PROBE_AS_OTHERS_S
    line.probe(ANSWER)
    assert line.may_go()
    assert line.breaker.answered_s(line.now_s) == 0.0


@pytest.mark.parametrize(
    ("among", "every"), [(LIMITED, 5), (LIMITED, 15), (LIMITED, 40), (TOO_LONG, 5), (REFUSED, 5)]
)
def test_an_outage_is_one_though_something_in_front_of_it_refuses_some(
    among: Finish, every: int
) -> None:
    line, sent = Line(), 0
    while not isinstance(verdict := line.breaker.verdict(NEED, line.now_s), Stop):
        if isinstance(verdict, Wait):
            line.now_s = verdict.until_s
            continue
        sent += 1
        assert sent < 250
        line.probe(DOWN if sent % every else among, 0.05)
    assert "down for 18" in verdict.reason
    assert "no server is ready" in verdict.reason
    assert not line.recovered_s


def test_a_probe_that_a_limiter_refuses_is_followed_by_a_later_one() -> None:
    line = Line()
    line.fails(tuning.OUTAGE_ROWS + 1, 1.0)
    line.now_s += 100
    line.probe(LIMITED)
    assert line.breaker.is_open
    verdict = line.breaker.verdict(NEED, line.now_s)
    assert isinstance(verdict, Wait)
    assert verdict.until_s - line.now_s >= 100 * tuning.OUTAGE_SHARE


@pytest.mark.parametrize("refused", [TOO_LONG, REFUSED])
def test_rows_that_are_refused_one_after_the_other_show_that_an_outage_is_over(
    refused: Finish,
) -> None:
    line = Line()
    line.fails(tuning.OUTAGE_ROWS + 1, 1.0)
    for _ in range(3 * tuning.OWN_ROWS):
        line.ends(refused, sent_s=900.0)  # before it
    for _ in range(2):
        for _ in range(tuning.OWN_ROWS - 1):
            line.now_s += 10
            line.probe(refused)
        assert line.breaker.is_open
        line.now_s += 10
        line.probe(DOWN)
    for _ in range(tuning.OWN_ROWS):
        assert line.breaker.is_open
        line.now_s += 10
        line.probe(refused)
    assert not line.breaker.is_open
    assert line.may_go()


def test_failures_between_rows_that_are_refused_for_what_they_ask_pause_nothing() -> None:
    line = Line()
    for _ in range(100):
        line.fails(tuning.OUTAGE_ROWS - 1, 5.0)
        for _ in range(tuning.OWN_ROWS):
            line.ends(TOO_LONG)
        assert line.may_go()


def test_refusals_with_failures_among_them_are_refusals_of_every_request() -> None:
    line = Line(give_up_after_s=100.0)
    for _ in range(50):
        line.ends(LIMITED)
        line.ends(DOWN, row=1)
        line.now_s += 2
    verdict = line.breaker.verdict(NEED, line.now_s)
    assert isinstance(verdict, Stop)
    assert "refused every request for 100 s" in verdict.reason


def test_work_that_has_begun_ends_an_outage() -> None:
    line = Line()
    line.fails(tuning.OUTAGE_ROWS + 1, 1.0)
    before, line.now_s = Slot(NEED, 900.0), line.now_s + 10
    line.breaker.accepted(before, line.now_s)
    assert not line.recovered_s
    line.breaker.started(NEED, line.now_s)
    line.breaker.accepted(Slot(NEED, line.now_s), line.now_s)
    assert not line.breaker.is_open
    assert line.recovered_s == [line.now_s]
    line.fails(tuning.OUTAGE_ROWS - 1, 5.0)
    line.breaker.accepted(Slot(NEED, line.now_s), line.now_s)
    line.fails(tuning.OUTAGE_ROWS - 1, 5.0)
    assert not line.breaker.is_open


def test_that_work_begins_says_nothing_where_work_that_had_begun_failed() -> None:
    line = Line()
    line.fails(tuning.OUTAGE_ROWS + 1, 1.0, replace(DOWN, is_begun=True))
    line.now_s += 10
    line.breaker.accepted(Slot(NEED, line.now_s), line.now_s)
    assert line.breaker.is_open


@pytest.mark.parametrize("patience_s", [10.0, 1800.0])
def test_a_server_that_works_has_not_refused_every_request(patience_s: float) -> None:
    line = Line(give_up_after_s=patience_s)
    line.ends(LIMITED)
    line.now_s += 0.01 * patience_s
    line.breaker.started(NEED, line.now_s)
    sent_s, line.in_flight = line.now_s, 1
    line.now_s += 2 * patience_s
    assert line.may_go()
    assert line.breaker.ends_s(line.now_s) == float("inf")
    line.breaker.started(NEED, line.now_s)  # these are refused soon
    line.in_flight = 2
    line.ends(LIMITED, sent_s)  # the first is refused in the end
    line.in_flight = 1
    assert isinstance(line.breaker.verdict(NEED, line.now_s), Stop)


def test_when_a_run_will_be_stopped_is_known_before() -> None:
    line = Line(give_up_after_s=100.0)
    assert line.breaker.ends_s(line.now_s) == float("inf")
    line.ends(LIMITED)
    line.now_s += 10
    assert line.breaker.ends_s(line.now_s) == 1100.0
    line.ends(ANSWER)
    assert line.breaker.ends_s(line.now_s) == float("inf")
    line.fails(tuning.OUTAGE_ROWS + 1, 1.0)
    assert line.breaker.ends_s(line.now_s) == 1110.0
