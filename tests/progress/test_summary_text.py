"""The words that the end of a run and `status` share: costs, attempts, rows that are not ok."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from batchrun.errors import ErrorKind
from batchrun.progress.summary import RunCounters, Summary, cost_of_remaining, remaining_in_words
from batchrun.progress.summary_text import (
    not_ok_in_words,
    progress_in_words,
    render_end,
    render_status,
)
from batchrun.records import Attempt, Failure, Outcome, Request, Response, Totals, Usage
from tests.runs import response

RESPONSE = response(model="m-2026", usage=Usage(10, output_tokens=5))
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
    counters = RunCounters(Totals(), 0.0)
    counters.count(outcomes)
    return counters.summary(
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
        '(add [pricing."my-model"] to ~/.config/batchrun/prices.toml, for an alias the name that '
        "it stands for, then batchrun cost recalculates it)"
    )
    assert said(summary) == f"unknown; no price for 3 attempts {words}"
    some = summed(ended(RESPONSE, 0.5, "m"), unpriced, unpriced)
    assert said(some) == f"$0.50+?; no price for 2 attempts {words}"


def test_all_models_without_a_price_are_named_up_to_a_handful() -> None:
    two = summed(*(ended(RESPONSE, None, None, name) for name in ("b", "a", "b")))
    assert (two.unpriced_model, two.unpriced_models) == ("b", ("a", "b"))
    assert 'no price for 3 attempts (add [pricing."a"], [pricing."b"] to ~/' in (said(two) or "")
    assert "no price for a, b" in progress_in_words(two)[-1]
    many = summed(*(ended(RESPONSE, None, None, f"m{at}") for at in range(150)))
    assert '[pricing."m101"] and 145 more to ~/' in (said(many) or "")
    older = msgspec.structs.replace(two, unpriced_models=())
    assert 'attempts (add [pricing."b"] to ~/' in (said(older) or "")


def test_attempts_that_reported_no_usage_are_counted_however_the_row_ended() -> None:
    late = Attempt(0, 9.0, "first", None, ErrorKind.TIMEOUT)
    refused = Attempt(0, 0.1, "first", 429, ErrorKind.RATE_LIMIT, cost_usd=0.0)
    summary = summed(ended(RESPONSE, 0.5, "m"), ended(FAILURE, None, None))
    assert said(summary) == "$0.50+?; 1 attempt reported no usage"
    summary = summed(ended(RESPONSE, 0.5, "m", before=(late, refused, late)))
    assert said(summary) == "$0.50+?; 2 attempts reported no usage"


def test_a_response_that_reported_no_usage_is_not_said_to_have_no_price() -> None:
    silent = msgspec.structs.replace(RESPONSE, status="failed", usage=Usage())
    assert said(summed(ended(silent, None, None))) == "unknown; 1 attempt reported no usage"


def test_the_remedy_for_a_model_without_a_price_is_toml_whatever_its_name() -> None:
    name = "</td>&'\"\\ \x1b\n"
    words = said(summed(ended(RESPONSE, None, None, name))) or ""
    table = re.search(r"add (\[pricing\..*\]) to", words)
    assert table is not None
    assert tomllib.loads(table[1]) == {"pricing": {name: {}}}


def test_what_attempts_without_usage_may_have_cost_is_said() -> None:
    summary = summed(ended(RESPONSE, 0.5, "m"), unknown_usd=0.25)
    assert said(summary) == "$0.50+?, at most $0.25 more; the cost of some attempts is not known"


def test_a_simulated_run_says_that_nothing_is_paid() -> None:
    assert said(summed(ended(RESPONSE, 0.5, "m"), simulated=True)) == (
        "$0.50; simulated, so nothing is paid"
    )


def test_without_an_attempt_there_is_no_cost() -> None:
    assert said(summed()) is None


def test_a_model_s_name_does_not_reach_the_terminal_as_an_escape_sequence() -> None:
    assert "\x1b" not in (said(summed(ended(RESPONSE, None, None, "\x1b[31mred"))) or "")


def test_costs_go_on_from_what_earlier_commands_spent() -> None:
    counters = RunCounters(Totals(rows=2, cost_usd=1.5, unpriced=1, unpriced_model="first"), 0.0)
    counters.count((ended(RESPONSE, 0.25, "m"), ended(RESPONSE, None, None, "second")))
    totals = counters.totals()
    assert (totals.cost_usd, totals.unpriced, totals.unpriced_model) == (1.75, 2, "first")


@pytest.mark.parametrize(
    ("totals", "cost", "words"),
    [
        (Totals(rows=4, cost_usd=1.0), 2.5, "10 rows remain, about $2.50 at the mean cost"),
        (Totals(rows=5, cost_usd=1.0, unpriced=1), 2.5, "10 rows remain, about $2.50"),
        (Totals(rows=5, cost_usd=1.0, statuses={"invalid": 1}), 2.5, "10 rows remain, about"),
        (Totals(), None, "10 rows remain"),
        (Totals(rows=4, unpriced=4), None, "10 rows remain"),
    ],
)
def test_what_remains_is_estimated_at_the_mean_cost_of_what_is_done(
    totals: Totals, cost: float | None, words: str
) -> None:
    assert cost_of_remaining(totals, 10) == cost
    assert remaining_in_words(totals, 10).startswith(words)
    assert remaining_in_words(Totals(), 1) == "1 row remains"


def test_attempts_beyond_the_first_are_counted_by_kind() -> None:
    def sent(*kinds: str) -> Outcome:
        outcome = ended(RESPONSE, 0.5, "m")
        return msgspec.structs.replace(
            outcome, attempts=tuple(Attempt(0, 1.0, kind, cost_usd=0.5) for kind in kinds)
        )

    assert "attempts: 2, of them 1 retry;" in render_end(
        summed(sent("first", "retry")), Path("run")
    )
    summary = summed(sent("first", "retry", "reask"), sent("first", "hedge"), sent("first"))
    again = summed(sent("first", "retry", "first"))
    assert (again.attempts, again.retries, again.resent) == (3, 1, 1)
    for render in (render_end, render_status):
        assert "of the answers that counted" in render(again, Path("run"))
        assert "that counted" not in render(summed(sent("first", "retry")), Path("run"))
    summary = msgspec.structs.replace(summary, left=3, more_tries=4)
    assert (
        "6 of complete rows, of them 1 retry, 1 reask, 1 hedge; 4 more for rows without an outcome"
        in render_status(summary, Path("run"))
    )


@pytest.mark.parametrize(
    ("totals", "said"),
    [
        (Totals(rows=9, ok=9, statuses={"completed": 9}), []),
        (
            Totals(
                rows=300,
                ok=164,
                truncated=53,
                refused=27,
                statuses={"completed": 191, "incomplete": 67, "failed": 40, "no_answer": 2},
            ),
            ["53 truncated", "27 refused", "14 incomplete", "40 failed", "2 no_answer"],
        ),
    ],
)
def test_all_rows_that_are_not_ok_are_counted(totals: Totals, said: list[str]) -> None:
    summary = RunCounters(totals, 0.0).summary(
        run="r", state="finished", rows=totals.rows, now_s=1.0
    )
    assert not_ok_in_words(summary) == said
    assert sum(int(words.split()[0]) for words in said) == summary.not_ok
