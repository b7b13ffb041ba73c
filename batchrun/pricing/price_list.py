"""The price list of genai-prices, which is data in its package: nothing here touches the network.

A question takes it 100 µs and its import 0.2 s, so its answer becomes a `Price`, once for each
model and tier.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING

from msgspec import Struct

from batchrun.pricing.model_names import spellings
from batchrun.pricing.price import Price, Rates

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

_MILLION = 1_000_000
_MINUTE = 60_000_000  # µs
DAY = 86_400_000_000
_FIRST_DAY = date(1970, 1, 1)
NEVER = 2**63  # µs
# Where a name alone does not say whose model it is: this is the API that all of them speak.
_MAKERS = (None, "openai")
# Tiers that have prices of their own somewhere in the list, and how they are asked for.
_CONTEXTS = {
    "batch": {"processing": "batch"},
    "fast": {"service_tier": "fast"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
}
TIERS = tuple(_CONTEXTS)
# Priced by what no usage of the Responses API counts apart.
_NOT_COUNTED = ("output_reasoning_mtok", "output_citation_mtok")


class Known(Struct, frozen=True):
    price: Price | None
    from_at: int  # at other times the list may say something else
    until_at: int


UNKNOWN = Known(None, -NEVER, NEVER)


def tier_of(service_tier: str | None, via: str) -> str | None:
    """The tier that an answer is billed in: the one it names, but a batch's is its way.

    Null for the standard price. A batch's answers call their tier `default`.
    """
    if via == "batch":
        return via
    return service_tier if service_tier in _CONTEXTS else None


def steps() -> tuple[int, ...]:
    """Every length of input, in tokens, above which some model of the list costs more, ascending.

    Above -1 there is everything.
    """
    found = {-1}
    for model in (model for provider in _list().providers for model in provider.models):
        listed = model.prices if isinstance(model.prices, list) else [model]
        for of_it in (*listed, *(model.price_variants or ())):
            for unit in vars(of_it.prices).values():
                found.update(step.start for step in getattr(unit, "tiers", ()))
    return tuple(sorted(found))


def _list() -> "DataSnapshot":
    from genai_prices.data_snapshot import (  # noqa: PLC0415 - 0.2 s that no --help should pay
        get_snapshot,
    )

    return get_snapshot()


def daily_changes() -> tuple[int, ...]:
    """Every time of the day (µs, UTC) from which some model of the list costs something else.

    Ascending from 0: prices may change from one day to the next.
    """
    found = {0}
    for model in (model for provider in _list().providers for model in provider.models):
        several = model.prices if isinstance(model.prices, list) else []
        for each in (*several, *(model.price_variants or ())):
            for edge in ("start_time", "end_time"):
                at: time | None = getattr(each.constraint, edge, None)
                if at is not None:
                    first = datetime.combine(_FIRST_DAY, at, at.tzinfo or UTC)
                    found.add(int(first.timestamp() * 1e6) % DAY)
    return tuple(sorted(found))


def find_listed(names: Sequence[str], at: int, tier: str | None) -> Known:
    """What the price list says of the first of the names that it knows."""
    moment = datetime.fromtimestamp(at / 1e6, UTC)
    context = _CONTEXTS.get(tier or "")
    for name in names:
        for model in _models(name):
            standard = model.get_prices(moment)
            prices = model.get_prices(moment, context)
            is_tier_s = context is not None and vars(prices) != vars(standard)
            price = _derived(model.id, prices, tier if is_tier_s else None)
            if price is None:
                continue
            if not _changes(model, context):
                return Known(price, -NEVER, NEVER)
            return Known(price, at - at % _MINUTE, at - at % _MINUTE + _MINUTE)
    return UNKNOWN


def _models(name: str) -> Iterator["ModelInfo"]:
    """What the list may know by this name, likeliest first."""
    snapshot = _list()
    for maker, model in spellings(name):
        for provider in _MAKERS if maker is None else (maker,):
            try:
                found = snapshot.find_provider_model(model, None, provider, None)[1]
            except LookupError:
                continue
            if found.prices:
                yield found


def _changes(model: "ModelInfo", context: Mapping[str, str] | None) -> bool:
    """Whether the price depends on the date or on the time of the day."""
    if isinstance(model.prices, list):
        return True
    return context is not None and any(
        variant.constraint is not None for variant in model.price_variants or ()
    )


def _derived(name: str, prices: "ModelPrice", tier: str | None) -> Price | None:
    """The list's price as rates; null where it is none for tokens, as of models for images."""
    per_input, per_output = prices.input_mtok, prices.output_mtok
    if per_input is None or per_output is None:
        return None
    if any(getattr(prices, unit) is not None for unit in _NOT_COUNTED):
        return None
    cached = prices.cache_read_mtok
    written = prices.cache_write_mtok
    units = [per_input, cached, written, per_output]
    starts = sorted({step.start for unit in units for step in getattr(unit, "tiers", ())})
    rates = tuple(
        Rates(
            above=above,
            input=_rate(per_input, above, _MILLION),
            cached_input=_rate(per_input if cached is None else cached, above, _MILLION),
            cache_write=_rate(per_input if written is None else written, above, _MILLION),
            output=_rate(per_output, above, _MILLION),
        )
        for above in (-1, *starts)
    )
    return Price(
        name,
        rates,
        tier,
        web_search=_rate(prices.web_searches_kcount, -1, 1_000),
        file_search=_rate(prices.storage_searches_kcount, -1, 1_000),
        request=_rate(prices.requests_kcount, -1, 1_000),
    )


def _rate(unit: "Decimal | TieredPrices | None", above: int, per: int) -> float:
    """USD for one of the unit, of which the list prices `per`, where the input is that long."""
    if unit is None:
        return 0.0
    if isinstance(unit, Decimal):
        return float(unit / per)
    rate = unit.base
    for step in unit.tiers:  # in ascending order
        if above >= step.start:
            rate = step.price
    return float(rate / per)
