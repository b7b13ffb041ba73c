from typing import Any

import pytest

from batchrun.simulator.settings import SPREAD, Fault, Quirk, SimulatorSettings


def test_a_total_rate_is_spread_in_equal_parts_over_fifteen_kinds_that_end() -> None:
    rates = SimulatorSettings(faults=0.15).rates()
    assert list(rates) == list(SPREAD)
    assert len(SPREAD) == 15
    assert set(rates.values()) == {0.15 / len(SPREAD)}


def test_a_kind_by_name_wins_over_the_total_rate() -> None:
    rates = SimulatorSettings(faults=0.15, fault_rates={"500_html": 0, "stalled_body": 0.5}).rates()
    assert Fault.SERVER_ERROR_HTML not in rates
    assert rates[Fault.STALLED_BODY] == 0.5
    assert rates[Fault.RESET_WITHIN] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fault_rates": {"509_json": 0.1}}, "no fault is called '509_json'; there are 429_hint"),
        ({"fault_rates": {"500_json": 1.5}}, "fault 500_json is 1.5; a rate lies between 0 and 1"),
        ({"faults": 0.9, "fault_rates": {"quota": 0.2}}, "the rates of faults add up to 1.1"),
        ({"refusals": float("nan")}, "refusals is nan"),
        ({"latency_s": -1}, "latency_s is -1; it must be at least 0"),
        ({"requests_per_minute": 0}, "requests_per_minute is 0; it must be at least 0.001"),
        ({"tokens_per_minute": float("inf")}, "tokens_per_minute is inf"),
        ({"api_key": ""}, "api_key is empty"),
        ({"quirks": ("crfl",)}, "no quirk is called 'crfl'; there are no_event_lines, pings"),
        ({"quirks": ("no_usage", "null_usage")}, "no_usage, null_usage, zero_usage one can be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatorSettings(**settings)  # type: ignore[arg-type] # what the test is about


def test_quirks_may_be_named_as_text() -> None:
    quirks: Any = ("crlf", "nan")
    assert SimulatorSettings(quirks=quirks).quirks == (Quirk.CRLF, Quirk.NAN)
    assert all(isinstance(quirk, Quirk) for quirk in SimulatorSettings(quirks=quirks).quirks)


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(SimulatorSettings(api_key="secret"))
