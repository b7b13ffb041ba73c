import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, time, timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pytest
from genai_prices import Usage as ListUsage
from genai_prices import calc_price
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.errors import JobError
from batchrun.job.job_file import load_job
from batchrun.job.sections import PriceJob
from batchrun.pricing.price import Price, sum_costs
from batchrun.pricing.price_list import (
    DAY,
    daily_changes,
    read_price_list,
    steps,
    warning_of_age,
)
from batchrun.pricing.prices import Prices, age_warning, check_prices, tier_name, tier_of
from batchrun.records import NO_SEARCHES, Searches, Usage
from tests.waiting import HANG_S

AT = 1_790_000_000_000_000  # in September 2026
USAGE = Usage(input_tokens=1_000_000, output_tokens=1_000_000)


CONTEXTS = {
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "fast": {"service_tier": "fast"},
    "default": {"service_tier": "default"},
    "scale": {"service_tier": "scale"},
    None: None,
}


@cache
def listed() -> tuple[str, ...]:
    """All names in the list that are found without saying whose they are."""
    prices = Prices({})
    names = {model.id for provider in get_snapshot().providers for model in provider.models}
    return tuple(
        sorted(
            name
            for name in names
            if "/" not in name and prices.find(name, None, AT) is not None and _is_found(name)
        )
    )


def _is_found(name: str) -> bool:
    for provider in (None, "openai"):
        with suppress(LookupError):
            get_snapshot().find_provider_model(name, None, provider, None)
            return True
    return False


def of_the_list(
    name: str,
    usage: Usage,
    at: int,
    tier: str | None = None,
    searches: Searches = NO_SEARCHES,
) -> float:
    """What the library itself says."""
    tokens = ListUsage(
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
        web_searches=searches.web,
        storage_searches=searches.file,
    )
    known: dict[str, Any] = {
        "genai_request_timestamp": datetime.fromtimestamp(at / 1e6, UTC),
        "price_context": CONTEXTS[tier],
    }
    try:
        cost = calc_price(tokens, name, **known)
    except LookupError:
        cost = calc_price(tokens, name, provider_id="openai", **known)
    return float(cost.total_price)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    longest = draw(st.sampled_from([2_000, 150_000, 300_000, 1_100_000]))
    fresh, cached, written = draw(st.tuples(*[st.integers(0, longest)] * 3))
    output = draw(st.integers(0, 200_000))
    reasoning = draw(st.none() | st.integers(0, output))
    total = fresh + cached + written
    return Usage(total, cached or None, written or None, output, reasoning, total + output)


searched = st.builds(Searches, st.integers(0, 50), st.integers(0, 50))


@settings(max_examples=500, deadline=None)
@given(
    st.data(),
    usages(),
    st.integers(1_700_000_000, 1_900_000_000),
    st.sampled_from(list(CONTEXTS)),
    st.just(NO_SEARCHES) | searched,
)
def test_the_cost_is_what_the_price_list_says(
    data: st.DataObject, usage: Usage, at_s: int, tier: str | None, searches: Searches
) -> None:
    name = data.draw(st.sampled_from(listed()))
    at = at_s * 1_000_000
    price = Prices({}).find(name, None, at, tier)
    assert price is not None
    expected = of_the_list(name, usage, at, tier, searches)
    assert price.cost(usage, searches) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@settings(deadline=None)
@given(st.data(), st.lists(usages(), min_size=1, max_size=8), st.sampled_from(list(CONTEXTS)))
def test_many_answers_cost_what_each_of_them_costs(
    data: st.DataObject, several: list[Usage], tier: str | None
) -> None:
    """Summed by the step that their inputs pass, as `batchrun cost` does."""
    name = data.draw(st.sampled_from(listed()))
    price = Prices({}).find(name, None, AT, tier)
    assert price is not None
    groups: dict[int, list[Usage]] = {}
    for usage in several:
        above = [step for step in steps() if step < (usage.input_tokens or 0)]
        groups.setdefault(max(above, default=-1), []).append(usage)
    together = sum(
        price.cost_of_many(
            Usage(
                *[
                    sum(getattr(one, field) or 0 for one in group)
                    for field in Usage.__struct_fields__
                ]
            ),
            above,
            Searches(len(group), 2 * len(group)),
            len(group),
        )
        for above, group in groups.items()
    )
    apart = sum(price.cost(usage, Searches(1, 2)) or 0 for usage in several)
    assert together == pytest.approx(apart, rel=1e-9, abs=1e-15)


@settings(deadline=None)
@given(st.sampled_from(["deepseek-chat", "deepseek-reasoner", "o3", "gpt-5.6-sol"]), st.data())
def test_between_two_changes_of_a_day_a_price_stays(name: str, data: st.DataObject) -> None:
    edges = [*daily_changes(), DAY]
    day = data.draw(st.integers(19_700, 21_500)) * DAY
    part = data.draw(st.integers(0, len(edges) - 2))
    tier = data.draw(st.sampled_from(list(CONTEXTS)))
    times = [edges[part], edges[part + 1] - 1, data.draw(st.integers(*edges[part : part + 2])) - 1]
    found = [Prices({}).find(name, None, day + max(at, edges[part]), tier) for at in times]
    assert found[0] is not None
    assert found[1:] == [found[0]] * 2


def test_every_step_of_the_list_is_known() -> None:
    assert steps()[0] == -1
    assert {199_999, 200_000, 272_000} <= set(steps())
    prices = Prices({})
    for name in listed():
        price = prices.find(name, None, AT)
        assert price is not None
        assert {rates.above for rates in price.rates} <= set(steps())


@pytest.mark.parametrize(
    "name",
    [
        *("gpt-4.1", "gpt-4o-mini", "gpt-5-mini", "gpt-5.6-sol", "gpt-oss-20b", "o3", "o4-mini"),
        *("claude-sonnet-4-5", "gemini-2.5-pro", "deepseek-chat", "mistral-large-latest", "grok-4"),
    ],
)
@pytest.mark.parametrize("at", [1_735_700_000_000_000, AT, AT + 12 * 3_600_000_000])
def test_steps_dates_and_hours_of_the_list_are_followed(name: str, at: int) -> None:
    price = Prices({}).find(name, None, at)
    assert price is not None
    for tokens in (0, 1, 199_999, 200_000, 200_001, 272_000, 272_001):
        usage = Usage(tokens, tokens // 2, tokens // 4, tokens, tokens // 3)
        expected = of_the_list(name, usage, at)
        assert price.cost(usage) == pytest.approx(expected, rel=1e-12)


def test_a_price_that_changes_during_a_run_is_followed() -> None:
    prices = Prices({})
    night, day = AT - AT % 86_400_000_000, AT - AT % 86_400_000_000 + 3 * 3_600_000_000
    costs = []
    for at in (night, day, night + 86_400_000_000):
        price = prices.find("deepseek-chat", None, at)
        assert price is not None
        costs.append(price.cost(USAGE))
        assert costs[-1] == pytest.approx(of_the_list("deepseek-chat", USAGE, at))
    assert costs[0] == costs[2] != costs[1]


@given(usages(), st.integers(0, 100), st.integers(0, 100))
def test_a_bound_is_never_below_the_cost(usage: Usage, more: int, more_output: int) -> None:
    for name in ("gpt-4.1", "gpt-5.6-sol", "gemini-2.5-pro"):
        price = Prices({}).find(name, None, AT)
        assert price is not None
        assert usage.input_tokens is not None
        assert usage.output_tokens is not None
        cost = price.cost(usage)
        assert cost is not None
        bound = price.bound(usage.input_tokens + more, usage.output_tokens + more_output)
        assert bound >= cost * (1 - 1e-12)


def test_the_job_s_own_price_wins_over_the_list() -> None:
    prices = Prices({"gpt-4.1": PriceJob(input=1.0, output=2.0)})
    price = prices.find("gpt-4.1", "gpt-4.1-2025-04-14", AT)
    assert price is not None
    assert price.priced_as == "gpt-4.1"
    assert price.cost(USAGE) == 3.0


def test_the_model_that_answered_is_looked_up_before_the_one_asked_for() -> None:
    prices = Prices({"asked": PriceJob(input=1, output=1), "answered": PriceJob(input=9, output=9)})
    assert _name(prices.find("asked", "answered", AT)) == "answered"
    assert _name(prices.find("asked", "other", AT)) == "asked"
    assert _name(prices.find("gpt-4.1", "o3", AT)) == "o3"
    assert _name(prices.find("gpt-4.1", "house-model", AT)) == "gpt-4.1"
    assert _name(prices.find("my-deployment", "gpt-4.1-2025-04-14", AT)) == "gpt-4.1"
    assert _name(prices.find(None, "o3", AT)) == "o3"
    # A price in the job for either name comes before anything that the list says.
    assert _name(prices.find("asked", "o3", AT)) == "asked"


@pytest.mark.parametrize(
    ("name", "priced_as"),
    [
        ("gpt-4.1-data", "gpt-4.1"),
        ("openai/gpt-4.1", "gpt-4.1"),
        ("openai/gpt-4.1-data", "gpt-4.1"),
        ("gpt-4.1-2025-04-14", "gpt-4.1"),
        ("gpt-4.1-2027-01-01", "gpt-4.1"),  # a snapshot that the list does not know
        ("gpt-4.1-2027-01-01-data", "gpt-4.1"),
        ("gpt-4.1-20270101", "gpt-4.1"),
        ("GPT-4.1", "gpt-4.1"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),  # one that costs something else
        ("openai/gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
        ("openrouter/openai/gpt-4.1", "openai/gpt-4.1"),
        ("anthropic/claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("house/gpt-4.1-mini", "gpt-4.1-mini"),
        ("gpt-4.1-turbo-ultra", None),  # no rule leaves out what it does not know
        ("gpt-4.1-mini-2", None),
    ],
)
def test_a_gateway_s_name_is_resolved_by_the_stated_rules(name: str, priced_as: str | None) -> None:
    assert _name(Prices({}).find(None, name, AT)) == priced_as
    assert _name(Prices({}).find(name, None, AT)) == priced_as
    # What cannot be resolved has the price of the model asked for.
    assert _name(Prices({}).find("o3", name, AT)) == (priced_as or "o3")


def test_a_provider_before_the_slash_has_its_own_prices() -> None:
    for provider, name in (("groq", "openai/gpt-oss-120b"), ("azure", "gpt-4.1")):
        listed_as = get_snapshot().find_provider_model(name, None, provider, None)[1]
        price = Prices({}).find(f"{provider}/{name}", None, AT)
        assert price is not None
        tokens = ListUsage(input_tokens=1_000_000, output_tokens=1_000_000)
        moment = datetime.fromtimestamp(AT / 1e6, UTC)
        expected = listed_as.get_prices(moment).calc_price(tokens)["total_price"]
        assert price.cost(USAGE) == pytest.approx(float(expected), rel=1e-12)


def test_given_prices_are_found_by_the_same_rules() -> None:
    prices = Prices({"gpt-4.1": PriceJob(input=1, output=1)}, {"house-model": "o3"})
    for name in ("gpt-4.1-2025-04-14", "gpt-4.1-data", "openai/gpt-4.1"):
        price = prices.find("o3", name, AT)
        assert price is not None
        assert price.cost(USAGE) == 2.0
    assert _name(prices.find("gpt-5", "vendor/house-model-data", AT)) == "o3"


def test_an_alias_says_what_a_name_means_and_nothing_else_is_tried() -> None:
    aliases = {"gpt-4": "gpt-4.1-mini", "house": "my-price", "lost": "no-such-model"}
    prices = Prices({"my-price": PriceJob(input=1, output=2)}, aliases)
    assert _name(prices.find("gpt-4", None, AT)) == "gpt-4.1-mini"
    assert _name(prices.find("gpt-4", "gpt-4-0613", AT)) == "gpt-4.1-mini"
    assert _name(prices.find("house", None, AT)) == "my-price"
    assert prices.find("gpt-4.1", "lost", AT) is None


def test_a_tier_has_its_price_and_the_standard_one_where_it_has_none() -> None:
    def cost(model: str, tier: str | None) -> tuple[float | None, str | None]:
        price = Prices({}).find(model, None, AT + 4_000_000_000_000, tier)
        return (price.cost(USAGE), price.tier) if price else (None, None)

    assert cost("gpt-4.1", None) == (10.0, None)
    assert cost("gpt-4.1", "batch") == (5.0, "batch")
    assert cost("gpt-4.1", "flex") == (10.0, None)
    assert cost("gpt-4.1", "scale") == (10.0, None)
    assert cost("gpt-4.1", "priority") == (17.5, "priority")
    assert cost("o3", "flex") == (5.0, "flex")
    assert cost("my-model", "flex") == (None, None)


def test_a_batch_is_billed_as_one_whatever_tier_its_answers_name() -> None:
    assert tier_of("default", "batch") == "batch"
    assert tier_of("priority", "batch") == "batch"
    assert tier_of("flex", "plain") == "flex"
    assert tier_of(None, "stream") is None
    assert tier_of("default", "background") is None
    assert tier_of("ultrafast", "plain") is None


def test_a_price_that_is_given_is_that_of_every_tier_and_a_factor_scales_each() -> None:
    prices = Prices({"m": PriceJob(input=1, output=1), "o3": PriceJob(factor=2.0)})
    given, scaled = prices.find("m", None, AT, "flex"), prices.find("o3", None, 2 * AT, "flex")
    assert given is not None
    assert scaled is not None
    assert given.cost(USAGE) == 2.0
    assert scaled.cost(USAGE) == 10.0
    assert scaled.cost(USAGE, Searches(web=1)) == pytest.approx(10.02)


def test_searches_are_paid_besides_where_the_list_has_their_price() -> None:
    price = Prices({}).find("gpt-4.1", None, AT)
    own = Prices({"m": PriceJob(input=2, output=8)}).find("m", None, AT)
    assert price is not None
    assert own is not None
    assert price.cost(USAGE, Searches(web=3, file=4)) == pytest.approx(10 + 0.03 + 0.01)
    assert own.cost(USAGE, Searches(web=3, file=4)) == 10.0
    assert price.cost(Usage(), Searches(web=3)) is None


def test_the_reservation_is_that_of_the_most_expensive_tier_that_may_be_given() -> None:
    prices, at = Prices({}), AT + 4_000_000_000_000
    standard = prices.bound("gpt-4.1", None, at, 1_000_000, 1_000_000)
    assert standard == 10.0
    assert prices.bound("gpt-4.1", "priority", at, 1_000_000, 1_000_000) == 17.5
    assert prices.bound("o3", "flex", at, 1_000_000, 1_000_000) == 10.0
    assert prices.bound("my-model", "priority", at, 1, 1) == 0.0


def _name(price: Price | None) -> str | None:
    return price.priced_as if price else None


@pytest.mark.parametrize(
    "name",
    ["my-model", "", None, "whisper-1", "/", "openai/", "-data", "\ud800", "a" * 9_000],
)
def test_an_unknown_model_has_no_price(name: str | None) -> None:
    assert Prices({}).find(name, None, AT) is None
    assert Prices({}).find(name, name, AT) is None


def test_cached_and_written_tokens_cost_as_input_where_the_job_says_nothing_else() -> None:
    usage = Usage(1_000_000, 500_000, 250_000, 0)
    plain = Prices({"m": PriceJob(input=4, output=8)}).find("m", None, AT)
    apart = Prices({"m": PriceJob(input=4, output=8, cached_input=1, cache_write=5)})
    assert plain is not None
    assert plain.cost(usage) == 4.0
    price = apart.find("m", None, AT)
    assert price is not None
    assert price.cost(usage) == 0.25 * 4 + 0.5 * 1 + 0.25 * 5


def test_a_factor_alone_scales_the_list() -> None:
    prices = Prices({"gpt-4.1": PriceJob(factor=0.25), "my-model": PriceJob(factor=2.0)})
    full, scaled = Prices({}).find("gpt-4.1", None, AT), prices.find("gpt-4.1", None, AT)
    assert full is not None
    assert scaled is not None
    assert scaled.cost(USAGE) == pytest.approx(2.5, rel=1e-12)
    assert full.cost(USAGE) == 10.0
    assert prices.find("my-model", None, AT) is None
    assert _name(prices.find("my-model", "gpt-4.1", AT)) == "gpt-4.1"
    own = Prices({"m": PriceJob(input=1, output=1, factor=3)}).find("m", None, AT)
    assert own is not None
    assert own.cost(USAGE) == 6.0
    assert own.bound(1_000_000, 0) == 3.0


@pytest.mark.parametrize("usage", [Usage(), Usage(input_tokens=5), Usage(output_tokens=5)])
def test_without_a_count_of_tokens_no_cost_is_known(usage: Usage) -> None:
    price = Prices({}).find("gpt-4.1", None, AT)
    assert price is not None
    assert price.cost(usage) is None


@given(st.tuples(*[st.none() | st.integers(-(2**63), 2**63 - 1)] * 5))
def test_no_count_of_tokens_makes_a_negative_cost(tokens: tuple[int | None, ...]) -> None:
    price = Prices({}).find("gpt-5.6-sol", None, AT)
    assert price is not None
    cost = price.cost(Usage(*tokens))
    assert cost is None or cost >= 0


def test_names_that_a_server_makes_up_are_not_all_remembered() -> None:
    prices = Prices({})
    for number in range(5_000):
        assert prices.find("my-model", f"made-up-{number}", AT, f"tier-{number}") is None
    assert _name(prices.find("gpt-4.1", "made-up", AT)) == "gpt-4.1"


@pytest.mark.parametrize(
    ("costs", "cost"),
    [
        ([], None),  # never sent
        ([0.25, 0.5], 0.75),
        ([None, 0.5], 0.5),  # a timeout, then an answer
        ([0.0], 0.0),  # refused
        ([None], None),
        ([0.0, None], None),  # refused, then an answer without a price
    ],
)
def test_a_row_costs_what_its_attempts_are_known_to_cost(
    costs: list[float | None], cost: float | None
) -> None:
    assert sum_costs(costs) == cost


def test_a_cap_wants_a_price_for_each_model_and_shows_how_to_give_one() -> None:
    check_prices(Prices({}), ["gpt-4.1", "o3"], AT)
    with pytest.raises(JobError, match=r"my-model, other\. Give each a price") as raised:
        check_prices(Prices({}), ["gpt-4.1", "other", "my-model"], AT)
    for name in ("my-model", "other"):
        assert f'[pricing."{name}"]\n  input = 2.0\n  output = 8.0\n' in str(raised.value)
    assert "Did you mean" not in str(raised.value)
    many = [*(f"own-{at}" for at in range(7)), "gpt-6-lunna"]
    with pytest.raises(
        JobError, match="gpt-6-lunna, own-0, own-1, own-2, own-3 and 3 more"
    ) as told:
        check_prices(Prices({}), many, AT)
    assert "Did you mean gpt-6-luna by gpt-6-lunna? If the names are right" in str(told.value)
    assert str(told.value).count("input = 2.0") == 5
    with pytest.raises(JobError, match="name none"):
        check_prices(Prices({}), ["gpt-4.1", None], AT)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("gpt-6-lunna", "gpt-6-luna"),
        ("GPT-6-Lunna", "gpt-6-luna"),
        ("gpt-4.1-mimi", "gpt-4.1-mini"),
        ("claude-sonet-4-5", "claude-sonnet-4-5"),
        ("gpt-6", "gpt-6-sol"),  # not gpt-5, which is nearer
        ("gpt-7", None),
        ("gpt-6-mini", "gpt-6-luna"),
        ("openai/gpt-6", "openai/gpt-6-sol"),
        ("o4", "o4-mini"),
        ("gemini-2.0-flsh", "gemini-2.5-flash"),  # 2.0 is being shut down
        ("gpt-6-of-the-house", None),
        ("house-modle", "house-model"),  # of your own
        ("terra-prdo", "terra-prod"),  # an alias
        ("no-alias-prcie", None),  # what it stands for has no price either
    ],
)
def test_a_misspelt_model_gets_the_name_that_was_meant_before_a_price_to_paste(
    asked: str, meant: str | None
) -> None:
    own = {"house-model": PriceJob(input=1.0, output=1.0)}
    prices = Prices(own, {"terra-prod": "gpt-6.1-terra", "no-alias-price": "nothing-known"})
    with pytest.raises(JobError, match=f"none is known for {asked}") as raised:
        check_prices(prices, [asked], AT)
    said = str(raised.value)
    if meant is None:
        assert "Did you mean" not in said
    else:
        assert 0 < said.index(f"Did you mean {meant}?") < said.index(f'[pricing."{asked}"]')


def test_an_alias_without_a_price_is_told_what_to_price_instead() -> None:
    aliases = {"house": "no-such", "near": "gpt-6-lunna", "chain": "house", "self": "self"}
    prices = Prices({"half": PriceJob(factor=0.5)}, aliases)

    def told(*models: str) -> str:
        with pytest.raises(JobError) as raised:
            check_prices(prices, models, AT)
        return str(raised.value)

    for name in ("house", "openai/house", "house-2026-11-01"):
        said = told(name)
        assert f"{name} is an alias of no-such: if that is wrong, correct it in [aliases]." in said
        assert "Give no-such a price in the job file" in said
        assert '[pricing."no-such"]\n  input = 2.0' in said
        assert f'[pricing."{name}"]' not in said
    said = told("near")
    assert "Did you mean gpt-6-luna? If the name is right, give gpt-6-lunna a price" in said
    # A table for what has an alias, or a table already, would be refused.
    for name, why in (
        ("chain", "an alias of an alias is not followed"),
        ("self", "an alias of an alias is not followed"),
        ("half", '[pricing."half"] has no input and output: add both to it.'),
    ):
        said = told(name)
        assert why in said
        assert "input = 2.0" not in said
    said = told("house", "other", "chain")
    assert said.count("input = 2.0") == 2
    assert "Give each a price" in said
    given = {"no-such": PriceJob(input=2.0, output=8.0)}
    check_prices(Prices(given, aliases), ["house", "openai/house"], AT)


def test_a_batch_of_a_price_that_is_given_costs_half_or_what_is_said() -> None:
    def cost(price: PriceJob, tier: str | None, searches: Searches) -> float | None:
        at = AT + 4_000_000_000_000  # in November: the list has batch prices from October on
        found = Prices({"gpt-4.1": price}).find("gpt-4.1", None, at, tier)
        return None if found is None else found.cost(USAGE, searches)

    none, one = Searches(), Searches(web=1)
    given = PriceJob(input=4.0, output=4.0)
    assert (cost(given, None, none), cost(given, "batch", none)) == (8.0, 4.0)
    assert cost(given, "flex", none) == 8.0
    assert cost(given, "batch", one) == pytest.approx(4.01)  # the list's search, at its price
    fees = msgspec.structs.replace(given, web_search=20.0, factor=0.5, batch_factor=0.25)
    assert cost(fees, None, one) == pytest.approx(0.5 * (8.0 + 0.02))
    assert cost(fees, "batch", one) == pytest.approx(0.5 * (2.0 + 0.02))
    # Without prices, the list's own batch price, unless a factor is given.
    assert cost(PriceJob(factor=0.5), "batch", none) == pytest.approx(2.5)
    assert cost(PriceJob(factor=0.5, batch_factor=0.1), "batch", none) == pytest.approx(0.5)
    assert cost(PriceJob(web_search=20.0), None, one) == pytest.approx(10.02)


@pytest.mark.parametrize(
    ("tier", "via", "name"),
    [
        (None, "plain", "standard"),
        ("default", "plain", "standard"),
        ("auto", "stream", "standard"),
        ("standard", "plain", "standard"),
        ("default", "batch", "batch"),
        ("flex", "plain", "flex"),
        ("scale", "plain", "scale"),
    ],
)
def test_a_tier_has_one_name(tier: str | None, via: str, name: str) -> None:
    assert tier_name(tier, via) == name


def test_the_list_says_how_old_it_is() -> None:
    newest = read_price_list(2**52).checked_on  # as read in a hundred years
    assert newest is not None
    earlier = read_price_list(AT).checked_on
    assert earlier is not None
    assert earlier <= datetime.fromtimestamp(AT / 1e6, UTC).date() < newest
    day = datetime.combine(newest, time(12), UTC)
    at = [int((day + timedelta(days=days)).timestamp() * 1e6) for days in (0, 90, 91)]
    # Of the dates of its comments only those of checks count, and none that is still to come.
    assert read_price_list(at[2]).checked_on == newest
    assert [warning_of_age(one) is None for one in at] == [True, True, False]
    said = str(warning_of_age(at[2]))
    assert f"(genai-prices {version('genai-prices')}) is 91 days old" in said
    assert "pip install -U genai-prices" in said
    models = ["gpt-4.1", "house-model"]
    own = Prices({"house-model": PriceJob(input=1.0, output=1.0)})
    assert age_warning(own, models, at[2]) == said
    assert age_warning(own, models[1:], at[2]) is None  # the list says nothing about it
    assert age_warning(own, models, at[0]) is None


def _load(path: Path, text: str) -> dict[str, PriceJob]:
    file = path / "job.toml"
    file.write_text('[input]\npath = "a.jsonl"\n' + text)
    return dict(load_job(file).pricing)


def test_prices_stand_in_the_job_file(tmp_path: Path) -> None:
    text = '[pricing."gpt-4.1-data"]\ninput = 2\noutput = 8.5\ncached_input = 0.5\n'
    more = "[pricing.other]\nfactor = 0.5\n"
    assert _load(tmp_path, text + more) == {
        "gpt-4.1-data": PriceJob(input=2.0, output=8.5, cached_input=0.5),
        "other": PriceJob(factor=0.5),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[pricing."m"]\ninput = -1\noutput = 1', r'\[pricing."m"\]: input is -1'),
        ('[pricing."m"]\ninput = nan\noutput = 1', r'\[pricing."m"\]: input is nan'),
        ('[pricing."m"]\ninput = 1\noutput = inf', r'\[pricing."m"\]: output is inf'),
        ('[pricing."m"]\nfactor = -0.5', r"factor is -0.5; it must be a number from 0 up"),
        ('[pricing."m"]\ninput = 1', r"has input but no output; give both"),
        ('[pricing."m"]\noutput = 1', r"has output but no input; give both"),
        ('[pricing."m"]\ncached_input = 1', r"neither input nor output"),
        (
            '[pricing."m"]\ninputs = 1',
            r'\[pricing."m"\]: unknown key inputs; did you mean `input`',
        ),
        ("[pricing.gpt-4.1]\ninput = 1\noutput = 1", r'in quotes, such as \[pricing."gpt-4.1"\]'),
        ("[pricing]\ninput = 1", r'pricing.input is not a table; write \[pricing."MODEL"\]'),
        ("pricing = 1", r"pricing must be a table|unknown key input.pricing"),
        (
            '[pricing."m"]\ninput = "1"\noutput = 1',
            r"""\[pricing."m"\]: input is "1"; it must be a number from 0""",
        ),
    ],
)
def test_a_wrong_price_is_named_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        _load(tmp_path, text + "\n")


def test_the_price_list_is_loaded_when_it_is_asked_and_not_before() -> None:
    said = (
        "import sys, batchrun.cli, batchrun.runner.start, batchrun.pricing.prices as pricing\n"
        "assert 'genai_prices' not in sys.modules\n"
        "pricing.Prices({}).find('gpt-4.1', None, 0)\n"
        "assert 'genai_prices' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", said], check=True, timeout=HANG_S)
