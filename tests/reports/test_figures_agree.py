"""What `sql`, `cost`, `report` and `status` say of a run, and what its tables hold, is the same.

The runs are random: all kinds of outcomes, rows sent again, rows gone from the input, parts and
journal, prices that are known and others that are not.
"""

import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from click.testing import CliRunner

from batchrun.cli.sql import sql
from batchrun.dialects.output_items import count_searches
from batchrun.errors import ErrorKind
from batchrun.formats.amounts import known_usd
from batchrun.job.sections import PriceJob
from batchrun.pricing.price import sum_costs
from batchrun.pricing.prices import Prices, tier_name, tier_of
from batchrun.progress.status import read_status
from batchrun.progress.summary import Summary
from batchrun.progress.summary_text import render_status
from batchrun.records import (
    Attempt,
    Failure,
    Layout,
    Outcome,
    Request,
    Response,
    ToolCall,
    Usage,
)
from batchrun.reports.bill.cost import CostLine, Costs, read_costs
from batchrun.reports.bill.cost_tables import show_costs
from batchrun.reports.report_queries import Report, read_report
from batchrun.reports.report_sections import headline
from batchrun.store.run_dir import RunDir
from batchrun.store.snapshot import read_snapshot
from tests.runs import column, response, run_record

AT = 1_795_000_000_000_000
PRICING: dict[str, Any] = {
    "house": {"input": 2.0, "output": 8.0, "cached_input": 0.5, "web_search": 7.0},
    "gpt-4.1-mini": {"factor": 0.5},
}
ALIASES = {"terra-prod": "gpt-6.1-terra"}
MODELS = ("gpt-4.1", "gpt-5.4", "gpt-4.1-mini", "house", "terra-prod", "nobody-knows-it", None)
LAYOUT = Layout(None, (column("team", pa.string()), column("night", pa.date32())))
STATUSES = ("completed", "completed", "completed", "incomplete", "failed", "cancelled")


class Maker:
    """Outcomes as a dispatcher makes them, at the same prices."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        pricing = msgspec.convert(PRICING, dict[str, PriceJob])
        self.prices = Prices(pricing, ALIASES)

    def outcome(self, row: int, before: Outcome | None = None) -> Outcome:
        """`before`: what it replaces."""
        draw = self.draw
        asked = draw.choice(MODELS)
        carried = (draw.choice(["a", "b", None]), draw.choice([20_775, 20_776, None]))
        request = Request(row, f"q{row}", "a.jsonl", b"{}", f"{row:016x}", asked, None, carried)
        if draw.random() < 0.06 and before is None:
            bad = Failure(ErrorKind.INVALID_ROW, "no", status="invalid")
            return Outcome(request, bad, (), "", "plain")
        model = draw.choice([asked, asked, "gpt-4.1", None])
        tier = draw.choice(["default", "flex", "priority", "scale", "auto", None])
        via = draw.choice(["plain", "stream", "background"])
        attempts = [] if before is None else list(before.attempts)
        kinds = ["first", *draw.choices(["retry", "hedge"], k=draw.choice([0, 0, 0, 1, 2]))]
        if draw.random() < 0.2:
            result: Response | Failure = self.failure()
            attempts += [self.lost(row, kind) for kind in kinds]
        else:
            attempts += [self.lost(row, kind) for kind in kinds[:-1]]
            if draw.random() < 0.15:  # an answer that was asked for again
                usage = self.usage()
                usage = msgspec.structs.replace(usage, cache_write_tokens=None)
                attempts.append(self.answered(row, kinds[-1], usage, (), asked, model, tier, via))
                kinds[-1] = "reask"
            calls = self.calls()
            usage = self.usage()
            result = self.response(row, usage, calls, model, tier)
            attempts.append(
                self.answered(row, kinds[-1], usage, calls, asked, model, tier, via, result)
            )
        return Outcome(
            request,
            result,
            tuple(attempts),
            "http://x",
            via,
            cost_usd=sum_costs([one.cost_usd for one in attempts]),
            counted=len(attempts) - 1,
            replaces=before is not None,
        )

    def failure(self) -> Failure:
        kind = self.draw.choice([ErrorKind.TIMEOUT, ErrorKind.BAD_REQUEST, ErrorKind.SERVER_ERROR])
        return Failure(kind, "no", status=self.draw.choice(["failed", "no_answer"]))

    def lost(self, row: int, kind: str) -> Attempt:
        error = self.draw.choice([ErrorKind.RATE_LIMIT, ErrorKind.TIMEOUT, ErrorKind.CONNECTION])
        cost = 0.0 if error is ErrorKind.RATE_LIMIT or self.draw.random() < 0.3 else None
        return Attempt(self.at(row), 0.5, kind, None, error, "no", cost_usd=cost)

    def at(self, row: int) -> int:
        return AT + row * 1_000_000 + self.draw.randrange(3) * 86_400_000_000

    def usage(self) -> Usage:
        draw = self.draw
        if draw.random() < 0.1:
            return Usage(*draw.choice([(None, None, None, None), (50, None, None, None)]))
        given = draw.choice([0, 12, 900, 250_000, 300_000])
        cached, written = (draw.choice([None, 0, given // 3]) for _ in range(2))
        output = draw.choice([0, 7, 400])
        reasoning = draw.choice([None, 0, output])
        return Usage(given, cached, written, output, reasoning, given + output)

    def calls(self) -> tuple[ToolCall, ...]:
        kinds = ("function_call", "web_search_call", "file_search_call")
        return tuple(
            ToolCall(at, kind, None, None, None, None, "completed", '{"action":{"type":"search"}}')
            for at, kind in enumerate(self.draw.choices(kinds, k=self.draw.choice([0, 0, 1, 3])))
        )

    def answered(
        self,
        row: int,
        kind: str,
        usage: Usage,
        calls: tuple[ToolCall, ...],
        asked: str | None,
        model: str | None,
        tier: str | None,
        via: str,
        response: Response | None = None,
    ) -> Attempt:
        at = self.at(row)
        price = self.prices.find(asked, model, at, tier_of(tier, via))
        said = [(call.type, call.status, call.item) for call in calls]
        json_text = response.usage_json if response else None
        return Attempt(
            at,
            1.0,
            kind,
            200,
            response_id=response.id if response else f"earlier_{row}",
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            cost_usd=price.cost(usage, count_searches(json_text, said)) if price else None,
        )

    def response(
        self,
        row: int,
        usage: Usage,
        calls: tuple[ToolCall, ...],
        model: str | None,
        tier: str | None,
    ) -> Response:
        draw = self.draw
        status = draw.choice(STATUSES)
        is_refused = status == "completed" and draw.random() < 0.1
        counts = {"tool_usage": {"web_search": {"num_requests": draw.choice([1, 4])}}}
        return response(
            id=f"resp_{row}_{draw.random()}",
            status=status,
            model=model,
            service_tier=tier,
            output_text=None if is_refused else "yes",
            refusal="no" if is_refused else None,
            tool_calls=calls,
            usage=usage,
            usage_json=json.dumps(draw.choice([{}, {}, counts])),
            truncated=status == "incomplete" or (status == "completed" and draw.random() < 0.1),
            incomplete_reason="max_output_tokens" if status == "incomplete" else None,
            reported_cost_usd=draw.choice([None, None, 0.25]),
            output_parsed_ok=draw.choice([None, None, True, False]),
            is_empty=status == "completed" and not is_refused and draw.random() < 0.1,
        )


def made(path: Path, seed: int) -> list[Outcome]:
    """Writes a run; its outcomes that count."""
    maker = Maker(seed)
    draw = maker.draw
    rows = draw.choice([0, 1, 2, 5, 12, 30])
    standing = [maker.outcome(row) for row in range(rows)]
    run_dir = RunDir.open(path)
    job = {"pricing": PRICING, "aliases": ALIASES}
    state = draw.choice(["finished", "limited", "running", "stopped"])
    ended = {"rows": rows + draw.choice([0, 3]), "state": state, "started_at": AT}
    run_dir.save(run_record(LAYOUT, job=job, **ended))
    run_dir.start(part_rows=draw.choice([1, 4, 50]), part_bytes=1 << 26)
    for outcome in standing:
        run_dir.store(outcome)
    if draw.random() < 0.5:
        run_dir.finish()
        run_dir.start(part_rows=4, part_bytes=1 << 26, replaces=True)
        for at, older in enumerate(standing):
            # What had no price then is priced as the row's answer is, whatever it was.
            lacks_price = any(
                one.cost_usd is None
                and one.input_tokens is not None
                and one.output_tokens is not None
                for one in older.attempts
            )
            if older.attempts and not lacks_price and draw.random() < 0.3:
                standing[at] = maker.outcome(at, older)
                run_dir.store(standing[at])
    run_dir.close(seal=draw.random() < 0.5)
    return standing


def counts(pairs: Mapping[Any, float | None]) -> dict[Any, Any]:
    """Without what is nothing, and sums in another order."""
    return {name: pytest.approx(cost or 0.0, rel=1e-9, abs=1e-12) for name, cost in pairs.items()}


def summed(outcomes: list[Outcome], name: Any) -> dict[Any, float]:
    found: defaultdict[Any, float] = defaultdict(float)
    for outcome in outcomes:
        found[name(outcome)] += outcome.cost_usd or 0.0
    return dict(found)


def of_lines(lines: tuple[CostLine, ...]) -> dict[Any, float]:
    return {line.name: line.cost_usd or 0.0 for line in lines}


def queried(path: Path, query: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(sql, [str(path), query, "--format", "json"])
    assert done.exit_code == 0, done.output
    rows: list[dict[str, Any]] = json.loads(done.output)
    return rows


_SQL = """
    SELECT count(*) AS rows, count(*) FILTER (ok) AS ok, coalesce(sum(cost_usd), 0) AS cost,
           coalesce(sum(input_tokens), 0) AS given, coalesce(sum(cached_tokens), 0) AS cached,
           coalesce(sum(output_tokens), 0) AS output,
           coalesce(sum(reasoning_tokens), 0) AS reasoning,
           coalesce(sum(len(attempts)), 0) AS attempts,
           (SELECT count(*) FROM attempts WHERE cost_usd IS NULL) AS unknown,
           (SELECT coalesce(sum(cost_usd), 0) FROM attempts) AS cost_of_attempts,
           (SELECT count(*) FROM tool_calls) AS calls
    FROM responses
"""


def truth(outcomes: list[Outcome]) -> dict[str, float]:
    """What `_SQL` asks, of the outcomes themselves."""
    answers = [one.result for one in outcomes if isinstance(one.result, Response)]
    attempts = [attempt for one in outcomes for attempt in one.attempts]

    def tokens(name: str) -> int:
        return sum(getattr(answer.usage, name) or 0 for answer in answers)

    return {
        "rows": len(outcomes),
        "ok": sum(one.ok for one in outcomes),
        "cost": sum(one.cost_usd or 0.0 for one in outcomes),
        "given": tokens("input_tokens"),
        "cached": tokens("cached_tokens"),
        "output": tokens("output_tokens"),
        "reasoning": tokens("reasoning_tokens"),
        "attempts": len(attempts),
        "unknown": sum(attempt.cost_usd is None for attempt in attempts),
        "cost_of_attempts": sum(attempt.cost_usd or 0.0 for attempt in attempts),
        "calls": sum(len(answer.tool_calls) for answer in answers),
    }


def check_status(status: Summary, expected: dict[str, float], outcomes: list[Outcome]) -> None:
    found = {
        "rows": status.ok + status.not_ok,
        "ok": status.ok,
        "cost": status.cost_usd or 0.0,
        "given": status.input_tokens,
        "cached": status.cached_tokens,
        "output": status.output_tokens,
        "reasoning": status.reasoning_tokens,
        "attempts": status.attempts,
        "unknown": status.unknown_attempts,
        "cost_of_attempts": status.cost_usd or 0.0,
        "calls": status.tool_calls,
    }
    assert counts(expected) == found
    assert status.statuses == Counter(status_of(one) for one in outcomes)


def status_of(outcome: Outcome) -> str:
    return outcome.result.status


def check_report(report: Report, expected: dict[str, float], outcomes: list[Outcome]) -> None:
    tables = report.tables
    found = {
        "rows": report.rows,
        "ok": sum(row["rows"] for row in tables["outcomes"] if row["outcome"] == "ok"),
        "cost": report.cost_usd or 0.0,
        "given": report.tokens.input_tokens,
        "cached": report.tokens.cached_tokens,
        "output": report.tokens.output_tokens,
        "reasoning": report.tokens.reasoning_tokens,
        "attempts": sum(row["attempts"] for row in tables["attempts"]),
        "unknown": report.unknown_attempts,
        "cost_of_attempts": sum(row["cost"] or 0.0 for row in tables["attempts"]),
        "calls": sum(row["calls"] for row in tables["tools"]),
    }
    assert counts(expected) == found
    for name in ("outcomes", "models"):
        assert sum(row["rows"] for row in tables[name]) == len(outcomes)
        assert sum(row["unknown"] for row in tables[name]) == expected["unknown"]
    by_model = {(row["model"], row["tier"]): row["cost"] for row in tables["models"]}
    assert counts(summed(outcomes, lambda one: (model_of(one), tier_of_row(one)))) == {
        name: cost or 0.0 for name, cost in by_model.items()
    }


def model_of(outcome: Outcome) -> str | None:
    answered = outcome.result.model if isinstance(outcome.result, Response) else None
    return answered or outcome.request.model


def tier_of_row(outcome: Outcome) -> str:
    tier = outcome.result.service_tier if isinstance(outcome.result, Response) else None
    return tier_name(tier, outcome.via)


def check_costs(costs: Costs, expected: dict[str, float], outcomes: list[Outcome]) -> None:
    total = costs.total
    assert (total.rows, total.ok) == (expected["rows"], expected["ok"])
    assert total.attempts == expected["attempts"]
    assert total.unknown + total.unpriced == expected["unknown"]
    assert (total.cost_usd or 0.0) == pytest.approx(expected["cost"], rel=1e-9, abs=1e-12)
    (run,) = costs.runs
    assert (run.recorded_usd or 0.0) == pytest.approx(expected["cost"], rel=1e-9, abs=1e-12)
    names = {"model": model_of, "tier": tier_of_row, "status": status_of}
    for title, name in names.items():
        assert of_lines(costs.by[title]) == counts(summed(outcomes, name))
        assert {line.name: line.rows for line in costs.by[title]} == Counter(map(name, outcomes))
    groups = {line.values: line.cost_usd or 0.0 for line in costs.groups}
    assert groups == counts(
        summed(outcomes, lambda one: (one.request.carried[0], f"{one.ok}".lower()))
    )
    kinds = of_lines(costs.by["attempt"])
    sums: defaultdict[str, float] = defaultdict(float)
    for outcome in outcomes:
        for attempt in outcome.attempts:
            sums[attempt.kind] += attempt.cost_usd or 0.0
    assert kinds == counts(dict(sums))


def check_words(costs: Costs, report: Report, status: Summary, path: Path) -> None:
    """Each says the same of the money, with the same mark."""
    is_partly = report.unknown_attempts > 0
    money = known_usd(report.cost_usd, is_partly=is_partly)
    stream = io.StringIO()
    show_costs(costs, stream)
    if report.cost_usd is None and not is_partly:  # nothing was ever sent
        money = "$0.00"
        assert "cost" not in headline(report)
        assert "cost:" not in render_status(status, path)
    else:
        said = "cost unknown" if money == "unknown" else money
        assert said in headline(report)
        assert f"cost:       {money}" in render_status(status, path)
    assert f"cost: {money}" in stream.getvalue()


def seeds() -> Iterator[Any]:
    """200 of them; a few are for each day."""
    for seed in range(200):
        yield pytest.param(seed, marks=[] if seed < 8 else [pytest.mark.long])


@pytest.mark.parametrize("seed", list(seeds()))
def test_all_commands_say_the_same_of_a_random_run(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "run"
    outcomes = made(path, seed)
    expected = truth(outcomes)
    (asked,) = queried(path, _SQL)
    assert asked == counts(expected)
    stored = read_snapshot(path, lambda now: sum(batch.num_rows for batch in now.batches(("row",))))
    assert stored == len(outcomes)
    status, report = read_status(path), read_report(path)
    costs = read_costs([path], by=["team", "ok"])
    check_status(status, expected, outcomes)
    check_report(report, expected, outcomes)
    check_costs(costs, expected, outcomes)
    check_words(costs, report, status, path)
