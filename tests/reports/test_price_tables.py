"""`batchrun prices`: what is used, where it comes from, and how old the list is."""

import csv
import io
import json
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from batchrun.cli.prices import prices
from batchrun.errors import JobError
from batchrun.pricing.price_list import read_price_list
from batchrun.reports.bill.price_tables import read_prices, show_prices

LIST = f"genai-prices {version('genai-prices')}"
AT = 1_795_000_000_000_000  # in November 2026
OWN = """
[pricing."house-model"]
input = 2.0
output = 8.5
cached_input = 0.5
web_search = 5.0
batch_factor = 0.25

[pricing."o3"]
factor = 0.8

[aliases]
"terra-prod" = "gpt-6.1-terra"
"""


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "batchrun").mkdir()
    file = tmp_path / "batchrun" / "prices.toml"
    file.write_text(OWN)
    return file


def test_each_price_is_shown_by_tier_with_where_it_comes_from(
    own_file: Path, tmp_path: Path
) -> None:
    job = tmp_path / "job.toml"
    job.write_text('[input]\npath = "a.jsonl"\n[pricing.team]\ninput = 1\noutput = 3\n')
    models = ["house-model", "o3", "terra-prod", "gpt-6-luna", "team"]
    known = read_prices(models, job, AT)
    sources = {line.model: line.source for line in known.prices}
    assert sources == {
        "house-model": str(own_file),
        "o3": f"{own_file}: 0.8 times {LIST}",
        "terra-prod": f"{own_file}, alias of gpt-6.1-terra: {LIST}",
        "gpt-6-luna": LIST,
        "team": str(job),
    }
    lines = {(line.model, line.tier, line.above_tokens): line for line in known.prices}
    house = lines["house-model", "standard", 0]
    assert (house.input, house.cached_input, house.cache_write, house.output) == (2, 0.5, 2, 8.5)
    assert (house.web_search, house.checked_on) == (5.0, None)
    assert lines["house-model", "batch", 0].output == 2.125
    assert ("house-model", "flex", 0) not in lines
    assert lines["team", "batch", 0].output == 1.5
    assert lines["o3", "standard", 0].output == 6.4
    assert lines["gpt-6-luna", "standard", 0].cache_write == 0.125
    assert lines["gpt-6-luna", "standard", 272_000].output == 0.75
    assert lines["gpt-6-luna", "standard", 0].checked_on is not None
    assert lines["terra-prod", "standard", 0].priced_as == "gpt-6.1-terra"


def test_the_command_shows_digits_that_count_and_the_age(own_file: Path) -> None:
    said = CliRunner().invoke(prices, ["gpt-6-luna", "house-model"])
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    assert max(map(len, lines)) <= max(80, len(str(own_file)) + 60)
    words = [line.split() for line in lines]
    assert ["standard", "$0.10", "$0.01", "$0.125", "$0.50"] in words
    assert ["standard", "$2.00", "$0.50", "$2.00", "$8.50"] in words
    newest = read_price_list(2**52).checked_on
    assert lines[0].startswith(f"{LIST}: ")
    assert str(newest) in " ".join(lines[:2])
    assert "web searches $10.00, file searches $2.50" in said.stdout
    mine = CliRunner().invoke(prices).stdout
    assert "house-model, o3, terra-prod" in mine


def test_prices_are_given_to_other_programs(own_file: Path) -> None:
    assert own_file.exists()
    said = CliRunner().invoke(prices, ["house-model", "--format", "csv"]).stdout
    rows = list(csv.DictReader(io.StringIO(said.removeprefix("\ufeff"))))
    assert [(row["tier"], row["input"], row["output"]) for row in rows] == [
        ("standard", "2.0", "8.5"),
        ("batch", "0.5", "2.125"),
    ]
    known = json.loads(CliRunner().invoke(prices, ["o3", "--format", "json"]).stdout)
    assert known["prices"][0]["priced_as"] == "o3"
    assert known["age_days"] >= 0
    table = CliRunner().invoke(prices, ["o3", "--format", "markdown"]).stdout
    assert "| o3 | standard | 0 |" in table


def test_a_model_without_a_price_is_named_with_the_one_that_was_meant(own_file: Path) -> None:
    assert own_file.exists()
    for form in ("table", "csv", "json", "markdown"):
        words = ["o3", "hose-model", "gpt-6", "house-model", "--format", form]
        said = CliRunner().invoke(prices, words)
        assert "o3" in said.stdout
        assert "house-model" in said.stdout
        assert isinstance(said.exception, JobError)
        assert said.exception.exit_code == 2
        first, second = str(said.exception).split("\nno price ")
        assert first.startswith("no price is known for hose-model. Did you mean house-model?")
        assert second.startswith("is known for gpt-6. Did you mean gpt-6-")
    assert [*read_prices(["gpt-6"], None, AT).unknown] == ["gpt-6"]


def test_an_old_list_is_warned_of(own_file: Path) -> None:
    assert own_file.exists()
    known = read_prices(["o3"], None, 2**52)
    assert known.age_days is not None
    assert known.age_days > 90
    assert "days old: no price in it was checked after" in known.warnings[0]
    stream = io.StringIO()
    show_prices(known, stream)
    assert f"{known.age_days:,} days ago" in " ".join(stream.getvalue().split())
