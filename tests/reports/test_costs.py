import re
from pathlib import Path

import msgspec
import pytest

from batchrun.errors import ErrorKind
from batchrun.progress.display import render_end
from batchrun.progress.status import render_status
from batchrun.progress.summary import RunCounters, Summary, cost_of_left, left_in_words
from batchrun.records import Attempt, Failure, Outcome, Request, Response, Totals, Usage

RESPONSE = Response(
    id="resp_1",
    status="completed",
    model="m-2026",
    service_tier=None,
    output="[]",
    output_text="",
    refusal=None,
    reasoning_summary=None,
    citations=(),
    tool_calls=(),
    usage=Usage(10, output_tokens=5),
    usage_json=None,
    truncated=False,
    incomplete_reason=None,
)
FAILURE = Failure(ErrorKind.TIMEOUT, "too long", status="no_answer")


def ended(
    result: Response | Failure,
    cost_usd: float | None,
    priced_as: str | None,
    model: str = "m",
    before: tuple[Attempt, ...] = (),
) -> Outcome:
    request = Request(0, "0", "a.jsonl", b"{}", "0" * 16, model, None, ())
    attempts = (*before, Attempt(0, 1.0, "first", cost_usd=cost_usd))
    return Outcome(request, result, attempts, "http://x", "plain", None, cost_usd, priced_as)


def summed(*outcomes: Outcome, simulated: bool = False, unknown_usd: float = 0.0) -> Summary:
    tally = RunCounters(Totals(), 0.0)
    tally.count(outcomes)
    return tally.summary(
        run="run",
        state="finished",
        rows=len(outcomes),
        now_s=1.0,
        exit_code=0,
        simulated=simulated,
        unknown_usd=unknown_usd,
    )


def said(summary: Summary) -> str | None:
    """The line about cost, which the end and `status` share."""
    found = re.search(r"^ *cost: +(.*)$", render_end(summary, Path("run")), re.MULTILINE)
    other = re.search(r"^ *cost: +(.*)$", render_status(summary, Path("run")), re.MULTILINE)
    assert (found and found[1]) == (other and other[1])
    return found[1] if found else None


def test_what_was_spent_is_said() -> None:
    summary = summed(ended(RESPONSE, 1.0, "m"), ended(RESPONSE, 0.23, "m"))
    assert summary.cost_usd == 1.23
    assert said(summary) == "$1.23"


def test_a_model_without_a_price_is_said_and_never_costs_nothing() -> None:
    unpriced = ended(RESPONSE, None, None, "my-model")
    summary = summed(*[unpriced] * 3)
    assert summary.cost_usd is None
    words = (
        '(no price for my-model; batchrun cost reckons it once [pricing."my-model"] stands in '
        "~/.config/batchrun/prices.toml)"
    )
    assert said(summary) == f"unknown for 3 attempts {words}"
    some = summed(ended(RESPONSE, 0.5, "m"), unpriced, unpriced)
    assert said(some) == f"$0.50, without 2 attempts of unknown cost {words}"


def test_attempts_that_ended_without_a_count_of_tokens_are_said_whatever_became_of_the_row() -> (
    None
):
    why = "of unknown cost (they ended without a count of tokens)"
    late = Attempt(0, 9.0, "first", None, ErrorKind.TIMEOUT)
    refused = Attempt(0, 0.1, "first", 429, ErrorKind.RATE_LIMIT, cost_usd=0.0)
    summary = summed(ended(RESPONSE, 0.5, "m"), ended(FAILURE, None, None))
    assert said(summary) == f"$0.50, without 1 attempt {why}"
    summary = summed(ended(RESPONSE, 0.5, "m", before=(late, refused, late)))
    assert said(summary) == f"$0.50, without 2 attempts {why}"


def test_what_tries_may_have_cost_is_said() -> None:
    summary = summed(ended(RESPONSE, 0.5, "m"), unknown_usd=0.25)
    assert said(summary) == "$0.50, up to $0.25 for tries that never told what they cost"


def test_a_simulated_run_says_that_nothing_is_paid() -> None:
    assert said(summed(ended(RESPONSE, 0.5, "m"), simulated=True)) == (
        "$0.50; simulated, so nothing is paid"
    )


def test_without_an_attempt_there_is_no_cost() -> None:
    assert said(summed()) is None


def test_a_model_s_name_does_not_reach_the_terminal_as_an_escape_sequence() -> None:
    assert "\x1b" not in (said(summed(ended(RESPONSE, None, None, "\x1b[31mred"))) or "")


def test_costs_go_on_from_what_earlier_commands_spent() -> None:
    tally = RunCounters(Totals(rows=2, cost_usd=1.5, unpriced=1, unpriced_model="first"), 0.0)
    tally.count((ended(RESPONSE, 0.25, "m"), ended(RESPONSE, None, None, "second")))
    totals = tally.totals()
    assert (totals.cost_usd, totals.unpriced, totals.unpriced_model) == (1.75, 2, "first")


@pytest.mark.parametrize(
    ("totals", "cost", "words"),
    [
        (Totals(rows=4, cost_usd=1.0), 2.5, "10 rows are left, about $2.50 at the mean cost"),
        (Totals(rows=5, cost_usd=1.0, unpriced=1), 2.5, "10 rows are left, about $2.50"),
        (Totals(rows=5, cost_usd=1.0, statuses={"invalid": 1}), 2.5, "10 rows are left, about"),
        (Totals(), None, "10 rows are left"),
        (Totals(rows=4, unpriced=4), None, "10 rows are left"),
    ],
)
def test_what_is_left_is_told_at_the_mean_cost_of_what_is_done(
    totals: Totals, cost: float | None, words: str
) -> None:
    assert cost_of_left(totals, 10) == cost
    assert left_in_words(totals, 10).startswith(words)
    assert left_in_words(Totals(), 1) == "1 row is left"


def test_tries_beyond_the_first_are_told_apart_by_their_kind() -> None:
    def tried(*kinds: str) -> Outcome:
        outcome = ended(RESPONSE, 0.5, "m")
        return msgspec.structs.replace(
            outcome, attempts=tuple(Attempt(0, 1.0, kind, cost_usd=0.5) for kind in kinds)
        )

    assert "attempts: 2, of them 1 retries;" in render_end(
        summed(tried("first", "retry")), Path("run")
    )
    summary = summed(tried("first", "retry", "reask"), tried("first", "hedge"), tried("first"))
    again = summed(tried("first", "retry", "first"))
    assert (again.attempts, again.retries, again.resent) == (3, 1, 1)
    for render in (render_end, render_status):
        assert "of the answers that count" in render(again, Path("run"))
        assert "that count" not in render(summed(tried("first", "retry")), Path("run"))
    summary = msgspec.structs.replace(summary, left=3, more_tries=4)
    assert (
        "6 of settled rows, of them 1 retries, 1 reasks, 1 hedges; 4 more by rows not settled yet"
        in render_status(summary, Path("run"))
    )
