"""The charts show what the figures say."""

from pathlib import Path
from typing import Any

import pytest

from batchrun.records import JsonObject
from batchrun.reports.page.charts import charts
from batchrun.reports.report_queries import Report, read_report


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return read_report(run)


@pytest.fixture(scope="module")
def specs(report: Report) -> dict[str, JsonObject]:
    return {chart.name: chart.spec for chart in charts(report)}


def _values(spec: JsonObject) -> list[dict[str, Any]]:
    layers = spec.get("layer", [spec])
    return [value for layer in layers for value in layer["data"]["values"] if "value" in value]


def test_each_chart_is_there(specs: dict[str, JsonObject]) -> None:
    assert list(specs) == [
        *("throughput", "in_flight", "errors_over_time", "cost"),
        *("latency", "first_token", "tokens", "tool_calls"),
    ]


def test_bars_add_up_to_the_figures(report: Report, specs: dict[str, JsonObject]) -> None:
    line = report.timeline
    assert line is not None
    rows = sum(value["value"] for value in _values(specs["throughput"])) * line.width_s
    assert rows == pytest.approx(240)
    failed = sum(value["value"] for value in _values(specs["errors_over_time"]))
    assert failed == sum(one["attempts"] for one in report.tables["errors"])
    assert _values(specs["cost"])[-1]["value"] == pytest.approx(report.cost_usd)
    latencies = sum(value["value"] for value in _values(specs["latency"]))
    assert latencies == sum(one.rows for one in report.spreads if one.name == "latency_s")
    both = report.tokens.input_tokens + report.tokens.output_tokens
    assert sum(value["value"] for value in _values(specs["tokens"])) == both
    calls = sum(value["value"] for value in _values(specs["tool_calls"]))
    assert calls == sum(one["calls"] for one in report.tables["tools"])


def test_names_that_models_made_are_harmless_and_short(
    specs: dict[str, JsonObject], hostile: str
) -> None:
    names = {value["name"] for value in _values(specs["tool_calls"])}
    assert len(names) == 2
    assert max(map(len, names)) <= 24
    assert all(name.isprintable() for name in names)
    assert hostile not in names
