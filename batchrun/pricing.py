"""What an answer costs: prices that are given first, then the price list of genai-prices.

A price is looked for by the model that answered, and by the model asked for where that leads to
none; `Prices.find` has the order. An unknown model has no price: null, never 0. The list is asked
once for each pair of names and tier, since that takes 100 µs and its import 0.2 s; what it says
becomes `Rates`, by which an answer is priced in less than a microsecond. Nothing here touches the
network.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.job import PriceJob
from batchrun.model_names import spellings
from batchrun.records import NO_SEARCHES, Searches, Usage

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

_MILLION = 1_000_000
_MINUTE = 60_000_000  # µs
_NEVER = 2**63
_MOST_NAMES = 4_096  # the names in answers are the server's to make up; then they are left out
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


class Rates(Struct, frozen=True):
    """USD for one token, where the whole input is longer than `above` tokens."""

    above: int
    input: float
    cached_input: float
    cache_write: float
    output: float


class Price(Struct, frozen=True):
    """What one model costs in one tier; all of it with the factor of `[pricing]`."""

    priced_as: str  # the name in [pricing], or in the price list
    rates: tuple[Rates, ...]  # the first for any input, the others for longer and longer ones
    tier: str | None = None  # whose price it is; null: the standard one, or one that is given
    web_search: float = 0.0  # USD each; 0 where the list has none
    file_search: float = 0.0
    request: float = 0.0  # USD for each answer

    def cost(self, usage: Usage, searches: Searches = NO_SEARCHES) -> float | None:
        """USD; null where the server did not count both input and output.

        Cached and cache-write tokens are a part of the input, reasoning is one of the output.
        """
        input_tokens, output_tokens = usage.input_tokens, usage.output_tokens
        if input_tokens is None or output_tokens is None:
            return None
        rates = self.rates[0]
        for longer in self.rates[1:]:
            if input_tokens > longer.above:
                rates = longer
        cached = max(0, usage.cached_tokens or 0)
        written = max(0, usage.cache_write_tokens or 0)
        dollars = (
            max(0, input_tokens - cached - written) * rates.input
            + cached * rates.cached_input
            + written * rates.cache_write
            + max(0, output_tokens) * rates.output
            + self.request
        )
        return dollars if searches is NO_SEARCHES else dollars + self._fees(searches)

    def cost_of_many(self, usage: Usage, above: int, searches: Searches, answers: int) -> float:
        """USD for the summed usage of so many answers whose inputs are longer than `above` tokens.

        `above` is the last of all `steps` that the inputs pass, or -1; for each answer cached and
        cache-write tokens are at most its input.
        """
        first, *longer = self.rates
        rates = next((rates for rates in reversed(longer) if rates.above <= above), first)
        one = Price(self.priced_as, (replace(rates, above=-1),))
        return (one.cost(usage) or 0.0) + answers * self.request + self._fees(searches)

    def bound(self, input_tokens: int, output_tokens: int) -> float:
        """USD that so many tokens cost at most, whatever of them is cached or written."""
        dearest = max(
            input_tokens * max(rates.input, rates.cached_input, rates.cache_write)
            + output_tokens * rates.output
            for rates in self.rates
            if input_tokens > rates.above
        )
        return dearest + self.request

    def _fees(self, searches: Searches) -> float:
        return searches.web * self.web_search + searches.file * self.file_search


class _Known(Struct, frozen=True):
    price: Price | None
    from_at: int  # at other times the list may say something else
    until_at: int


_UNKNOWN = _Known(None, -_NEVER, _NEVER)


class Prices:
    """Finds a model's price, and remembers it."""

    def __init__(
        self, pricing: Mapping[str, PriceJob], aliases: Mapping[str, str] | None = None
    ) -> None:
        self._pricing = pricing
        self._aliases = aliases or {}
        self._known: dict[tuple[str | None, str | None, str | None], _Known] = {}

    def find(
        self,
        model_requested: str | None,
        model_answered: str | None,
        at: int,
        tier: str | None = None,
    ) -> Price | None:
        """The price of what is asked for at `at` (µs since 1970); null where none is known.

        What [pricing] and [aliases] say of either model comes before the list, and the model that
        answered before the one asked for; each by the `spellings` of its name. A tier without a
        price of its own has the standard one, and a price in [pricing] is that of every tier.
        """
        names = (model_answered, model_requested, tier if tier in _CONTEXTS else None)
        known = self._known.get(names)
        if known is None and len(self._known) >= _MOST_NAMES:
            names = (None, *names[1:])
            known = self._known.get(names)
        if known is None or not known.from_at <= at < known.until_at:
            called = [name for name in names[:2] if name]
            known = self._known[names] = self._look_up(called, at, names[2])
        return known.price

    def bound(
        self, model: str | None, tier: str | None, at: int, input_tokens: int, output_tokens: int
    ) -> float:
        """USD that an answer costs at most, where the tier asked for may be given or not.

        0 where no price is known; `check_prices` says so before anything is sent.
        """
        found = (self.find(model, None, at, each) for each in {None, tier})
        return max((p.bound(input_tokens, output_tokens) for p in found if p), default=0.0)

    def _look_up(self, names: list[str], at: int, tier: str | None) -> _Known:
        for name in names:
            for _, given in spellings(name):
                if given in self._aliases:
                    names = [self._aliases[given]]
                    return self._given(names[0], names, at, tier)
                if given in self._pricing:
                    return self._given(given, names, at, tier)
        return _listed(names, at, tier)

    def _given(self, given: str, names: list[str], at: int, tier: str | None) -> _Known:
        price = self._pricing.get(given)
        if price is None:
            return _listed(names, at, tier)
        if price.input is not None and price.output is not None:
            own = Price(given, (_own_rates(price, price.input, price.output),))
            return _Known(_scaled(own, price.factor), -_NEVER, _NEVER)
        known = _listed([given, *names], at, tier)
        if known.price is None:
            return known
        return replace(known, price=_scaled(known.price, price.factor))


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


def sum_costs(costs: Sequence[float | None]) -> float | None:
    """What a row's attempts have cost as far as it is known; null where none may be known.

    A refused attempt costs 0, but does not make a row free whose answer has no price.
    """
    dollars = sum(cost for cost in costs if cost is not None)
    return dollars if dollars > 0 or (costs and None not in costs) else None


def check_prices(prices: Prices, models: Iterable[str | None], at: int) -> None:
    """Raises `JobError` where a cap on dollars cannot be kept, since a model has no price."""
    unknown = [model for model in models if prices.find(model, None, at) is None]
    if None in unknown:
        raise JobError(
            "limits.max_cost_usd needs to know each request's model, and some rows name none (a "
            "stored prompt has its own); name it with model in [request], or take the cap out"
        )
    if unknown:
        first = min(str(model) for model in unknown)
        others = len(unknown) - 1
        more = f" and for {others:,} other model" + "s" * (others > 1) if others else ""
        raise JobError(
            f"limits.max_cost_usd (--max-cost) needs a price for each model, and none is known for "
            f"{first}{more}. Give it in the job file, in USD for a million tokens:\n"
            f'  [pricing."{first}"]\n  input = 2.0\n  output = 8.0\n'
            "or take the cap out"
        )


def _own_rates(price: PriceJob, per_input: float, per_output: float) -> Rates:
    return Rates(
        above=-1,
        input=per_input / _MILLION,
        cached_input=(per_input if price.cached_input is None else price.cached_input) / _MILLION,
        cache_write=(per_input if price.cache_write is None else price.cache_write) / _MILLION,
        output=per_output / _MILLION,
    )


def _scaled(price: Price, factor: float) -> Price:
    if factor == 1.0:
        return price
    rates = tuple(
        Rates(
            above=rates.above,
            input=rates.input * factor,
            cached_input=rates.cached_input * factor,
            cache_write=rates.cache_write * factor,
            output=rates.output * factor,
        )
        for rates in price.rates
    )
    return replace(
        price,
        rates=rates,
        web_search=price.web_search * factor,
        file_search=price.file_search * factor,
        request=price.request * factor,
    )


def _list() -> "DataSnapshot":
    from genai_prices.data_snapshot import (  # noqa: PLC0415 - 0.2 s that no --help should pay
        get_snapshot,
    )

    return get_snapshot()


def _listed(names: list[str], at: int, tier: str | None) -> _Known:
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
                return _Known(price, -_NEVER, _NEVER)
            return _Known(price, at - at % _MINUTE, at - at % _MINUTE + _MINUTE)
    return _UNKNOWN


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
