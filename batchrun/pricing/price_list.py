"""What the list of genai-prices says of models: the home of that library.

A look-up takes it 100 µs and its import 0.2 s, so what it says becomes a `Price`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from batchrun.pricing.price import Price, Rates

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

MILLION = 1_000_000
NEVER = 2**63  # µs
DAY = 86_400_000_000  # µs
_MINUTE = 60_000_000  # µs
_FIRST_DAY = date(1970, 1, 1)
TIERS = ("batch", "fast", "flex", "priority")  # with prices of their own somewhere in the list
# Where a name alone does not say whose model it is: this is the API that all of them speak.
_PROVIDERS = (None, "openai")
# Models that are priced by what the usage of the Responses API does not count separately.
_NOT_COUNTED = ("output_reasoning_mtok", "output_citation_mtok")
# The list has no date of its own. Its comments say when prices were checked.
_CHECKED = re.compile(
    r"\b(?:checked|verified|updated|as of)(?: on)?:? (\d{4}-\d{2}-\d{2})\b", re.IGNORECASE
)
OLD = timedelta(days=90)
_SUFFIX = re.compile(r"([-@]\d{4}-\d{2}-\d{2}|[-@]\d{8}|-data)$")


class Listed(Struct, frozen=True):
    """What is known of a price, and from when until when (µs since 1970) that holds."""

    price: Price | None
    from_at: int = -NEVER
    until_at: int = NEVER


class PriceList(Struct, frozen=True):
    """The list that is installed."""

    version: str
    models: int
    checked_on: date | None  # the newest check that it names; null: it names none


def find_listed(names: Sequence[str], at: int, tier: str | None) -> Listed:
    """The price of the first of the names that the list knows."""
    moment = datetime.fromtimestamp(at / 1e6, UTC)
    context = {"processing" if tier == "batch" else "service_tier": tier} if tier else None
    for name in names:
        for model in _models(name):
            prices = model.get_prices(moment, context)
            has_own = context is not None and vars(prices) != vars(model.get_prices(moment))
            price = _as_price(model.id, prices, tier if has_own else None)
            if price is None:
                continue
            if not _changes(model, context):
                return Listed(price)
            minute_at = at - at % _MINUTE
            return Listed(price, minute_at, minute_at + _MINUTE)
    return Listed(None)


def spellings(name: str) -> Iterator[tuple[str | None, str]]:
    """The names that a model may have in the list, each with its provider where one is named.

    First the whole name; then, where it has slashes, what follows the first slash, with the
    part before it as provider, and what follows the last slash. Then the same for the name
    without its suffix: a date, which marks a snapshot, or `-data`, with which a gateway marks that
    it may store what is sent.
    """
    while name:
        yield None, name
        provider, slash, model = name.partition("/")
        if slash:
            if provider and model:
                yield provider, model
            if last := name.rpartition("/")[2]:
                yield None, last
        name, whole = _SUFFIX.sub("", name), name
        if name == whole:
            return


def _models(name: str) -> Iterator["ModelInfo"]:
    """What the list may know by this name, the most likely first."""
    snapshot = _snapshot()
    for named, model in spellings(name):
        for provider in _PROVIDERS if named is None else (named,):
            try:
                found = snapshot.find_provider_model(model, None, provider, None)[1]
            except LookupError:
                continue
            if found.prices:
                yield found


def _snapshot() -> "DataSnapshot":
    from genai_prices.data_snapshot import (  # noqa: PLC0415 - 0.2 s that no --help should pay
        get_snapshot,
    )

    return get_snapshot()


def _changes(model: "ModelInfo", context: Mapping[str, str] | None) -> bool:
    """Whether the price depends on the date or on the time of the day."""
    if isinstance(model.prices, list):
        return True
    variants = model.price_variants or ()
    return context is not None and any(variant.constraint is not None for variant in variants)


def _as_price(name: str, prices: "ModelPrice", tier: str | None) -> Price | None:
    """Null where the list has no price for tokens, as for models that make images."""
    per_input, per_output = prices.input_mtok, prices.output_mtok
    if per_input is None or per_output is None:
        return None
    if any(getattr(prices, unit) is not None for unit in _NOT_COUNTED):
        return None
    cached = per_input if prices.cache_read_mtok is None else prices.cache_read_mtok
    written = per_input if prices.cache_write_mtok is None else prices.cache_write_mtok
    units = (per_input, cached, written, per_output)
    starts = sorted({step.start for unit in units for step in getattr(unit, "tiers", ())})
    return Price(
        name,
        tuple(
            Rates(above, *(_rate(unit, above, MILLION) for unit in units))
            for above in (-1, *starts)
        ),
        tier,
        web_search=_rate(prices.web_searches_kcount, -1, 1_000),
        file_search=_rate(prices.storage_searches_kcount, -1, 1_000),
        request=_rate(prices.requests_kcount, -1, 1_000),
        is_listed=True,
    )


def _rate(unit: "Decimal | TieredPrices | None", above: int, per: int) -> float:
    """USD for one of the unit, of which the list prices `per`, where the input is that long."""
    if unit is None or isinstance(unit, Decimal):
        return float((unit or 0) / per)
    # Steps are in ascending order.
    passed = [step.price for step in unit.tiers if above >= step.start]
    return float((passed or [unit.base])[-1] / per)


def steps() -> tuple[int, ...]:
    """Every length of input, in tokens, above which some model of the list costs more, ascending.

    The first is -1: each input is longer.
    """
    units = (unit for entry in _entries() for unit in vars(entry.prices).values())
    starts = (step.start for unit in units for step in getattr(unit, "tiers", ()))
    return tuple(sorted({-1, *starts}))


def daily_changes() -> tuple[int, ...]:
    """Every time of the day (µs, UTC) from which some model of the list costs something else.

    Ascending from 0: prices may change from one day to the next.
    """
    found = {0}
    for entry in _entries():
        for edge in ("start_time", "end_time"):
            at: time | None = getattr(getattr(entry, "constraint", None), edge, None)
            if at is not None:
                first = datetime.combine(_FIRST_DAY, at, at.tzinfo or UTC)
                found.add(int(first.timestamp() * 1e6) % DAY)
    return tuple(sorted(found))


def _entries() -> Iterator[Any]:
    """Whatever has prices in the list: models, and the dates, hours and tiers of models."""
    for provider in _snapshot().providers:
        for model in provider.models:
            yield from model.prices if isinstance(model.prices, list) else (model,)
            yield from model.price_variants or ()


def listed_names() -> dict[str, bool]:
    """The models of the list, each name once, and whether every provider is to shut it down."""
    names: dict[str, bool] = {}
    for provider in _snapshot().providers:
        for model in provider.models:
            if model.prices:
                names[model.id] = names.get(model.id, True) and bool(model.deprecated)
    return names


def checked_on(model: str, at: int) -> date | None:
    """When the prices of a model were last checked, as far as the list says it by then."""
    found = next(_models(model), None)
    return _newest_check([found.price_comments] if found else [], at)


def read_price_list(at: int) -> PriceList:
    """What the installed list is, at `at` (µs since 1970)."""
    providers = _snapshot().providers
    comments = [one.price_comments for one in providers]
    comments += [model.price_comments for provider in providers for model in provider.models]
    return PriceList(
        version("genai-prices"),
        sum(len(provider.models) for provider in providers),
        _newest_check(comments, at),
    )


def _newest_check(comments: Sequence[str | None], at: int) -> date | None:
    today = datetime.fromtimestamp(at / 1e6, UTC).date()
    found = []
    for text in (text for comment in comments for text in _CHECKED.findall(comment or "")):
        try:
            day = date.fromisoformat(text)
        except ValueError:
            continue
        if day <= today:
            found.append(day)
    return max(found, default=None)


def warning_of_age(at: int) -> str | None:
    """What to say of a list that is old at `at` (µs since 1970); null where it is not."""
    known = read_price_list(at)
    if known.checked_on is None:
        return None
    age = datetime.fromtimestamp(at / 1e6, UTC).date() - known.checked_on
    if age <= OLD:
        return None
    return (
        f"the price list (genai-prices {known.version}) is {age.days:,} days old: no price in it "
        f"was checked after {known.checked_on}. pip install -U genai-prices gets a newer one"
    )
