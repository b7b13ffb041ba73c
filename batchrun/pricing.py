"""What tokens cost: the job's own prices first, then the price list of genai-prices.

An unknown model has no price: null, never 0. Prices are the standard ones, whatever service tier
answered. The list is looked up once for each pair of names, since a look-up takes 100 µs and the
library 0.2 s to import; nothing here touches the network.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.job import PriceJob
from batchrun.records import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice, TieredPrices

_MILLION = 1e6
_MINUTE = 60_000_000  # µs
_NEVER = 2**63
_MOST_NAMES = 4_096  # the names in answers are the server's to make up; then they are left out
# Where a name alone does not say whose model it is: this is the API that all of them speak.
_MAKERS = (None, "openai")


class Rates(Struct, frozen=True):
    """USD for a million tokens, where the whole input is longer than `above` tokens."""

    above: int
    input: float
    cached_input: float
    cache_write: float
    output: float


class Price(Struct, frozen=True):
    """What one model costs."""

    priced_as: str  # the name in the job's [pricing], or in the price list
    rates: tuple[Rates, ...]  # the first for any input, the others for longer and longer ones
    factor: float = 1.0

    def cost(self, usage: Usage) -> float | None:
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
        ) / _MILLION
        return dollars * self.factor

    def bound(self, input_tokens: int, output_tokens: int) -> float:
        """USD that so many tokens cost at most, whatever of them is cached or written."""
        dearest = max(
            input_tokens * max(rates.input, rates.cached_input, rates.cache_write)
            + output_tokens * rates.output
            for rates in self.rates
            if input_tokens > rates.above
        )
        return dearest / _MILLION * self.factor


class _Known(Struct, frozen=True):
    price: Price | None
    until_at: int  # the list may say something else from then on


class Prices:
    """Finds a model's price, and remembers it."""

    def __init__(self, pricing: Mapping[str, PriceJob]) -> None:
        self._pricing = pricing
        self._known: dict[tuple[str | None, str | None], _Known] = {}

    def find(
        self, model_requested: str | None, model_answered: str | None, at: int
    ) -> Price | None:
        """The price of what is asked for at `at` (µs since 1970); null where none is known.

        The job's [pricing] before the list, the model asked for before the one that answered.
        """
        names = (model_requested, model_answered)
        known = self._known.get(names)
        if known is None and len(self._known) >= _MOST_NAMES:
            names = (model_requested, None)
            known = self._known.get(names)
        if known is None or at >= known.until_at:
            known = self._known[names] = self._look_up([name for name in names if name], at)
        return known.price

    def _look_up(self, names: list[str], at: int) -> _Known:
        given = next((name for name in names if name in self._pricing), None)
        if given is None:
            return _listed(names, at)
        price = self._pricing[given]
        if price.input is not None and price.output is not None:
            return _Known(_given(given, price, price.input, price.output), _NEVER)
        known = _listed(names, at)
        if known.price is None:
            return known
        factor = known.price.factor * price.factor
        return replace(known, price=replace(known.price, factor=factor))


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


def _given(name: str, price: PriceJob, per_input: float, per_output: float) -> Price:
    rates = Rates(
        above=-1,
        input=per_input,
        cached_input=per_input if price.cached_input is None else price.cached_input,
        cache_write=per_input if price.cache_write is None else price.cache_write,
        output=per_output,
    )
    return Price(name, (rates,), price.factor)


def _listed(names: list[str], at: int) -> _Known:
    """What the price list says of the first of the names that it knows."""
    if not names:
        return _Known(None, _NEVER)
    from genai_prices.data_snapshot import (  # noqa: PLC0415 - 0.2 s that no --help should pay
        get_snapshot,
    )

    snapshot = get_snapshot()
    for name in names:
        for maker in _MAKERS:
            try:
                _, model = snapshot.find_provider_model(name, None, maker, None)
            except LookupError:
                continue
            if not model.prices:
                continue
            price = _derived(model.id, model.get_prices(datetime.fromtimestamp(at / 1e6, UTC)))
            if price is not None:
                changes = isinstance(model.prices, list)  # by date or by the time of day
                return _Known(price, at - at % _MINUTE + _MINUTE if changes else _NEVER)
    return _Known(None, _NEVER)


def _derived(name: str, prices: "ModelPrice") -> Price | None:
    """The list's price as rates; null where it is none for tokens, as of models for images."""
    per_input, per_output = prices.input_mtok, prices.output_mtok
    if per_input is None or per_output is None:
        return None
    cached = prices.cache_read_mtok
    written = prices.cache_write_mtok
    units = [per_input, cached, written, per_output]
    starts = sorted({tier.start for unit in units for tier in getattr(unit, "tiers", ())})
    rates = tuple(
        Rates(
            above=above,
            input=_rate(per_input, above),
            cached_input=_rate(per_input if cached is None else cached, above),
            cache_write=_rate(per_input if written is None else written, above),
            output=_rate(per_output, above),
        )
        for above in (-1, *starts)
    )
    return Price(name, rates)


def _rate(unit: "Decimal | TieredPrices", above: int) -> float:
    """The unit's price where the input is longer than `above` tokens."""
    if isinstance(unit, Decimal):
        return float(unit)
    rate = unit.base
    for tier in unit.tiers:  # in ascending order
        if above >= tier.start:
            rate = tier.price
    return float(rate)
