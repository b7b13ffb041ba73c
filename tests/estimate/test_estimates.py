"""Estimates of real sources, and pilots against the embedded simulator."""

import io
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchrun.errors import InputError
from batchrun.estimate.cost_lines import Estimate
from batchrun.estimate.estimate_text import show_estimate
from batchrun.estimate.estimates import make_estimate
from batchrun.estimate.tokens import MESSAGE_TOKENS, O200K, REQUEST_TOKENS, counter
from batchrun.formats.amounts import usd
from batchrun.job.job_file import load_job
from batchrun.job.sections import Job
from batchrun.records import Resend
from batchrun.reports.report_queries import read_report
from batchrun.reports.report_sections import remarks
from batchrun.runner.asked_rows import RowSelection
from batchrun.runner.start import run_job
from batchrun.store.reading import read_run_record

FORM = MESSAGE_TOKENS + REQUEST_TOKENS
QUESTIONS = [
    f"What is {number} times {number * 7}, and why? " * (1 + number % 4) for number in range(60)
]


def job_of(folder: Path, rows: list[dict[str, Any]] | None = None, **settings: Any) -> Job:
    path = folder / "prompts.jsonl"
    rows = (
        [{"id": f"q{at}", "input": text} for at, text in enumerate(QUESTIONS)]
        if rows is None
        else rows
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    given = {"request.model": "gpt-4.1", "output.path": str(folder / "run"), **dotted}
    return load_job(path, {key: value for key, value in given.items() if value is not None})


def shown(estimate: Estimate) -> str:
    stream = io.StringIO()
    show_estimate(estimate, stream)
    return stream.getvalue()


def test_text_is_counted_exactly_as_the_tokenizer_counts_it(tmp_path: Path) -> None:
    made = make_estimate(job_of(tmp_path))
    (line,) = made.inputs
    counts = sorted(map(counter(O200K), QUESTIONS))
    assert line.text_tokens == sum(counts)
    assert (line.min, line.max) == (counts[0] + FORM, counts[-1] + FORM)
    assert line.median == counts[29] + FORM
    assert line.p95 == counts[56] + FORM
    assert line.total == sum(counts) + FORM * len(counts)
    assert not (tmp_path / "run").exists()


def test_dollars_are_those_of_the_price_given(tmp_path: Path) -> None:
    prices = {"m": {"input": 1_000_000.0, "output": 2_000_000.0}}
    made = make_estimate(job_of(tmp_path, request__model="m", pricing=prices), expect_output=10)
    (line,) = made.answers
    assert line.output_tokens == 600
    assert line.usd["standard"] == pytest.approx(made.inputs[0].total + 1_200)
    assert line.usd["batch"] == pytest.approx(0.5 * (made.inputs[0].total + 1_200))
    assert line.usd["flex"] is None  # a price that is given has no other tiers


def test_tiers_have_the_list_s_prices_or_none(tmp_path: Path) -> None:
    made = make_estimate(job_of(tmp_path, request__model="gpt-5-mini"), expect_output=10)
    usd = made.answers[0].usd
    assert usd["standard"] is not None
    assert usd["batch"] == pytest.approx(usd["standard"] / 2)
    assert usd["flex"] == pytest.approx(usd["standard"] / 2)
    made = make_estimate(job_of(tmp_path, request__model="gpt-4.1"), expect_output=10)
    assert made.answers[0].usd["flex"] is None
    assert "no flex price is known for gpt-4.1" in made.notes


def test_each_row_is_counted_in_the_tier_that_it_asks_for(tmp_path: Path) -> None:
    def made(cap_usd: float | None = None, **settings: Any) -> Estimate:
        rows = [{"input": "Hi"}, {"input": "Hi", "service_tier": "default"}]
        given = {"request__model": "gpt-5", "limits__max_cost_usd": cap_usd, **settings}
        return make_estimate(job_of(tmp_path, rows[:1] * 3 + rows[1:], **given))

    def stops(estimate: Estimate) -> bool:
        return any("before its end" in said for said in estimate.warnings)

    standard = [line.usd["standard"] or 0.0 for line in made().answers]
    for tier, factor in (("priority", (3 * 2 + 1) / 4), ("flex", (3 * 0.5 + 1) / 4)):
        found = made(request__service_tier=tier)
        assert [line.usd["standard"] for line in found.answers] == standard
        asked = [line.asked_usd or 0.0 for line in found.answers]
        assert asked == pytest.approx([factor * one for one in standard])
        said = " ".join(shown(found).split())
        assert f"cost: {usd(asked[0])} to {usd(asked[-1])}, of it" in said
        assert "as asked standard batch flex" in said
        assert f"the service tier {tier} is asked for in 3 rows, and its price is counted" in said
        # The cap is compared with what will be paid.
        assert stops(made(0.99 * asked[-1], request__service_tier=tier))
        assert not stops(made(1.01 * asked[-1], request__service_tier=tier))
    told = made(request__model="gpt-4.1", request__service_tier="flex")
    assert [line.asked_usd for line in told.answers] == [
        line.usd["standard"] for line in told.answers
    ]
    assert "no flex price is known for gpt-4.1, so the standard one is counted" in told.notes
    assert "as asked" not in shown(told)
    wide = job_of(tmp_path, request__service_tier="flex", limits__requests_per_minute=60)
    compared = shown(make_estimate(wide, models=["gpt-5-2025-08-07", "gpt-5-mini-2025-08-07"]))
    assert "as asked" in compared
    assert all(len(line) <= 80 for line in compared.splitlines())


def test_a_model_without_a_price_has_none_and_is_named(tmp_path: Path) -> None:
    rows = [{"input": "Hi"}, {"input": "Hi", "model": "no-such-model"}]
    made = make_estimate(job_of(tmp_path, rows))
    assert all(set(line.usd.values()) == {None} for line in made.answers)
    said = shown(made)
    assert "unknown" in said
    assert "$0" not in said
    assert '[pricing."no-such-model"]' in said
    assert "no-such-model: the vocabulary is not known" in said
    assert "Did you mean" not in said
    misspelt = make_estimate(job_of(tmp_path, [{"input": "Hi", "model": "gpt-6-lunna"}]))
    words = " ".join(shown(misspelt).split())
    assert "no price is known for gpt-6-lunna. Did you mean gpt-6-luna by gpt-6-lunna?" in words


def test_three_assumptions_are_stated_and_stay_below_each_row_s_own_limit(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"input": "Hi"}, {"input": "Hi", "max_output_tokens": 300}]
    made = make_estimate(job_of(tmp_path, rows))
    found = {line.name: line.output_tokens for line in made.answers}
    assert "capped: no answer is longer than its row's max_output_tokens" in shown(made)
    assert found == {
        "short: 100 tokens each": 200,
        "medium: 500 each, capped": 800,
        "long: 4,000 each, capped": 4_300,
    }
    bounded = make_estimate(job_of(tmp_path, rows, request__max_output_tokens=2_000)).answers
    assert bounded[-1].name == "all at max_output_tokens"
    assert bounded[-1].output_tokens == 2_300


def test_models_that_may_reason_are_named_with_what_the_lengths_leave_out(tmp_path: Path) -> None:
    def told(*models: str, **settings: Any) -> list[str]:
        made = make_estimate(job_of(tmp_path, **settings), models=models)
        return [note for note in made.notes if "may reason" in note]

    (said,) = told("o3", "openai/gpt-5-mini", "gpt-5-chat-latest", "gpt-4.1", "gpt-4o", "o3-pro")
    assert said.startswith("o3, o3-pro, openai/gpt-5-mini may reason before an answer, which is")
    assert told("gpt-4.1", "gpt-5-chat-latest") == []
    assert told() == []
    assert len(told(request__reasoning={"effort": "low"})) == 1
    assert told(request__reasoning={"effort": "none"}) == []


def test_inputs_above_a_step_of_the_price_list_cost_more(tmp_path: Path) -> None:
    rows = [{"input": "word " * 210_000}]
    one = make_estimate(job_of(tmp_path, rows, request__model="claude-sonnet-4-5"), expect_output=0)
    (line,) = one.answers
    assert one.inputs[0].total > 200_000
    assert line.usd["standard"] == pytest.approx(one.inputs[0].total * 6e-6, rel=1e-6)


def test_a_cap_below_what_is_estimated_is_warned_of(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    dear = max(line.usd["standard"] or 0.0 for line in make_estimate(job).answers)
    capped = job_of(tmp_path, limits__max_cost_usd=0.99 * dear)
    told = [said for said in make_estimate(capped).warnings if "--max-cost" in said]
    assert len(told) == 1
    assert "long: 4,000 each" in told[0]
    assert "medium" not in told[0]
    held = job_of(tmp_path, limits__max_cost_usd=1.01 * dear)
    assert not [said for said in make_estimate(held).warnings if "before its end" in said]


def test_time_is_that_of_the_limit_that_binds(tmp_path: Path) -> None:
    job = job_of(tmp_path, limits__requests_per_minute=30)
    assert [line.least_s for line in make_estimate(job).answers] == [120.0] * 3
    job = job_of(tmp_path, limits__requests_per_minute=30, limits__tokens_per_minute=1_000)
    made = make_estimate(job, expect_output=1_000)
    assert made.answers[0].least_s == pytest.approx((60_000 + made.inputs[0].total) * 0.06)
    unknown = make_estimate(job_of(tmp_path))
    assert {line.least_s for line in unknown.answers} == {None}
    assert "how long it takes is not known" in unknown.notes[-1]


def test_models_are_compared_without_one_in_the_job(tmp_path: Path) -> None:
    made = make_estimate(
        job_of(tmp_path, request__model=None), models=["gpt-4.1", "gpt-4", "gpt-4.1"]
    )
    assert [line.model for line in made.inputs] == ["gpt-4.1", "gpt-4"]
    assert [line.model for line in made.answers] == ["gpt-4.1"] * 3 + ["gpt-4"] * 3
    assert made.inputs[0].counted_in != made.inputs[1].counted_in
    assert all(len(line) <= 80 for line in shown(made).splitlines())


def test_without_a_vocabulary_it_says_that_it_guesses(tmp_path: Path) -> None:
    made = make_estimate(job_of(tmp_path), by_bytes=True)
    assert made.inputs[0].counted_in == "bytes/4"
    assert made.inputs[0].text_tokens == sum((len(text) + 3) // 4 for text in QUESTIONS)
    assert "tokens are guessed at one for 4 bytes; pip install 'batchrun[tokens]'" in made.notes[0]


def test_a_limit_that_no_model_has_is_no_limit(tmp_path: Path) -> None:
    made = make_estimate(job_of(tmp_path, [{"input": "Hi", "max_output_tokens": 10**30}]))
    assert made.answers[-1].output_tokens == 4_000


def test_what_is_not_counted_is_said(tmp_path: Path) -> None:
    part = {"type": "input_image", "image_url": "https://x.test/a.png"}
    rows: list[dict[str, Any]] = [
        {"input": [{"role": "user", "content": [part]}]},
        {"input": "Look.", "tools": [{"type": "web_search"}], "service_tier": "flex"},
    ]
    notes = "\n".join(make_estimate(job_of(tmp_path, rows)).notes)
    assert "in 2 rows the model reads more than text" in notes
    assert "in 1 row hosted tools may be used" in notes
    assert "the service tier flex is asked for in 1 row" in notes


def test_bad_rows_stop_it_as_they_stop_a_run_or_are_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"input": "Hi"}, {"nothing": 1}]
    with pytest.raises(InputError, match="cannot be sent"):
        make_estimate(job_of(tmp_path, rows))
    made = make_estimate(job_of(tmp_path, rows, input__skip_bad_rows=True))
    assert (made.to_send, made.bad_rows, made.inputs[0].rows) == (1, 1, 1)


def test_the_range_comes_first_with_what_decides(tmp_path: Path) -> None:
    def head(*rows: dict[str, Any], **settings: Any) -> str:
        made = make_estimate(job_of(tmp_path, list(rows), **settings))
        text = " ".join(shown(made).partition("\n\n")[0].split())
        assert text.index("cost: ") < len(text)
        return text

    short = [{"input": "Hi"}] * 3
    said = head(*short)
    made = make_estimate(job_of(tmp_path, short))
    low, high = (usd(made.answers[at].usd["standard"] or 0.0) for at in (0, -1))
    assert f"cost: {low} to {high}, of it $0.000048 for the input; the length of the" in said
    assert "answers decides: 100 to 4,000 tokens each" in said
    assert "say how long they are with --expect-output N; --pilot N measures it" in said
    assert "decides: 100 to max_output_tokens each" in head(
        *short, request__max_output_tokens=2_000
    )
    long = {"input": "word " * 60_000, "max_output_tokens": 200}
    assert re.search(
        r"cost: \$0.12 to \$0.12, of it \$0.12 for the input, which decides", head(long)
    )
    assert "cost: unknown" in head(*short, request__model="house")
    known = shown(make_estimate(job_of(tmp_path, short), expect_output=10))
    assert "decides" not in known
    compared = shown(make_estimate(job_of(tmp_path, short), models=["gpt-4.1", "o3"]))
    assert "  gpt-4.1: $" in compared.partition("\n\n")[0]
    assert "--pilot" not in compared.partition("\n\n")[0]  # it cannot be given with --models


async def test_a_pilot_is_stored_paid_once_and_compared_with_what_it_was(tmp_path: Path) -> None:
    job, path = job_of(tmp_path), tmp_path / "run"
    summary = await run_job(job, RowSelection(pilot=20), simulate=True)
    assert (summary.exit_code, summary.rows) == (0, 20)
    made = make_estimate(job, simulate=True, store=True)
    pilot, estimated = made.pilot, made.estimated
    assert pilot is not None
    assert estimated is not None
    assert (made.settled, made.to_send, pilot.rows, pilot.ok) == (20, 40, 20, 20)
    for figure in (pilot.input_tokens, pilot.output_tokens, pilot.cost_usd):
        assert figure is not None
        assert figure.so_far < figure.low < figure.total < figure.high
    (line,) = made.answers
    assert line.name.startswith("as measured: ")
    # There is one total: what is spent, and what the rest will cost.
    cost = pilot.cost_usd
    assert cost is not None
    assert line.usd["standard"] == pytest.approx(cost.total - cost.so_far)
    assert line.usd["batch"] == pytest.approx((cost.total - cost.so_far) / 2)
    said = " ".join(shown(made).split())
    assert f"cost: {usd(cost.total)} in all, 90% between {usd(cost.low)} and" in said
    assert f"the 40 rows to come would cost {usd((cost.total - cost.so_far) / 2)} at batch" in said
    assert said.count("if answers are") == 0
    partly = " ".join(shown(msgspec.structs.replace(made, unknown_attempts=2)).split())
    assert f"20 complete for {usd(cost.so_far)}+?; simulated" in partly
    assert f"cost: {usd(cost.total)}+? in all" in partly
    assert "+?" not in said
    assert "interval may well be too narrow" in shown(made)
    (said,) = (line for line in remarks(read_report(path)) if line.startswith("estimated"))
    assert said.startswith("estimated for 60 rows by a pilot of 20: $")
    assert "; so far it is $" in said

    rest = await run_job(job, simulate=True)
    assert (rest.exit_code, rest.rows, rest.attempts) == (0, 60, 60)  # no row was sent twice
    record = read_run_record(path)
    assert record is not None
    assert record.estimated == estimated
    assert record.pilot is not None
    assert len(record.pilot.rows) == 20
    report = read_report(path)
    assert report.cost_usd is not None
    (said,) = (line for line in remarks(report) if line.startswith("estimated"))
    assert said.endswith(f"; it was {usd(report.cost_usd)}")
    grown = msgspec.structs.replace(report, rows=61)
    assert any(line.endswith(" for 61 rows") for line in remarks(grown))
    unpriced = msgspec.structs.replace(report, cost_usd=None)
    assert any(
        line.endswith(f"it was {report.tokens.output_tokens:,}") for line in remarks(unpriced)
    )
    after = make_estimate(job, simulate=True)
    assert (after.to_send, after.answers, after.pilot) == (0, (), None)
    shown(after)


async def test_a_pilot_in_another_tier_says_what_the_rest_costs_there(tmp_path: Path) -> None:
    job = job_of(tmp_path, request__model="gpt-5", request__service_tier="flex")
    await run_job(job, RowSelection(pilot=20), simulate=True)
    made = make_estimate(job, simulate=True)
    (line,) = made.answers
    assert made.pilot is not None
    assert made.pilot.cost_usd is not None
    to_come = made.pilot.cost_usd.total - made.pilot.cost_usd.so_far
    assert line.asked_usd == line.usd["flex"] == pytest.approx(to_come)
    assert line.usd["standard"] == pytest.approx(2 * to_come)
    said = " ".join(shown(made).split())
    assert f"would cost {usd(2 * to_come)} at standard and {usd(to_come)} at batch prices" in said


async def test_a_pilot_gives_no_estimate_until_it_has_ended(
    tmp_path: Path,
) -> None:
    capped = job_of(tmp_path, limits__max_cost_usd=0.02, request__max_output_tokens=400)
    summary = await run_job(capped, RowSelection(pilot=50), simulate=True)
    assert summary.exit_code == 3
    made = make_estimate(capped, simulate=True)
    assert made.pilot is None
    assert "have no outcome yet" in made.notes[0]
    freed = job_of(tmp_path, request__max_output_tokens=400)
    summary = await run_job(freed, RowSelection(pilot=50), simulate=True)
    assert (summary.exit_code, summary.rows) == (0, 50)
    assert make_estimate(freed, simulate=True).pilot is not None


async def test_a_larger_pilot_sends_only_what_is_missing(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    await run_job(job, RowSelection(pilot=10), simulate=True)
    summary = await run_job(job, RowSelection(pilot=30), simulate=True)
    assert (summary.rows, summary.attempts) == (30, 30)
    made = make_estimate(job, simulate=True)
    assert made.pilot is not None
    assert made.pilot.rows == 30


async def test_rows_that_would_be_sent_again_are_estimated_where_that_is_asked_for(
    tmp_path: Path,
) -> None:
    rows: list[dict[str, Any]] = [{"input": "Hi"}, {"input": "Hi", "temperature": 99}]
    job = job_of(tmp_path, rows)
    assert (await run_job(job, simulate=True)).exit_code == 4
    assert make_estimate(job, simulate=True).to_send == 0
    made = make_estimate(job, RowSelection(resend=Resend(failed=True)), simulate=True)
    assert (made.settled, made.to_send, made.inputs[0].rows) == (1, 1, 1)


async def test_models_are_compared_over_all_rows_whatever_is_complete(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    await run_job(job, RowSelection(pilot=5), simulate=True)
    made = make_estimate(job, simulate=True, models=["gpt-5"])
    assert (made.to_send, made.settled, made.pilot) == (60, 0, None)
