"""Finds what an answer costs: by prices that are given first, then by the list of genai-prices.

These are all the rules: what stands before a slash names a provider; a whole date at the end names
a snapshot; `-data` at the end is how a gateway marks that it may keep what is sent.

A question takes it 100 µs and its import 0.2 s, so its answer becomes a `Price`, once for each
model and tier.

A price is looked for by the model that answered, and by the model asked for where that leads to
none; `Prices.find` has the order. An unknown model has no price: null, never 0.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.job.sections import PriceJob
from batchrun.pricing.price import Price, Rates, scaled

_END = re.compile(r"([-@]\d{4}-\d{2}-\d{2}|[-@]\d{8}|-data)$")


def spellings(name: str) -> Iterator[tuple[str | None, str]]:
    """The provider, where one is named, and the model; first as it stands, then ever shorter.

    At each length: the whole name; what follows the first slash, of the provider before it; what
    follows the last slash, of any provider.
    """
    while name:
        yield None, name
        provider, slash, model = name.partition("/")
        if slash:
            if provider and model:
                yield provider, model
            last = name.rpartition("/")[2]
            if last:
                yield None, last
        shorter = _END.sub("", name)
        if shorter == name:
            return
        name = shorter


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


_MILLION = 1_000_000
_MOST_NAMES = 4_096  # the names in answers are the server's to make up; then they are left out


class Prices:
    """Finds a model's price, and remembers it."""

    def __init__(
        self, pricing: Mapping[str, PriceJob], aliases: Mapping[str, str] | None = None
    ) -> None:
        self._pricing = pricing
        self._aliases = aliases or {}
        self._known: dict[tuple[str | None, str | None, str | None], Known] = {}

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
        names = (model_answered, model_requested, tier)
        known = self._known.get(names)
        if known is not None and known.from_at <= at < known.until_at:
            return known.price
        if tier not in TIERS:
            names = (*names[:2], None)
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

    def _look_up(self, names: list[str], at: int, tier: str | None) -> Known:
        for name in names:
            for _, given in spellings(name):
                if given in self._aliases:
                    names = [self._aliases[given]]
                    return self._given(names[0], names, at, tier)
                if given in self._pricing:
                    return self._given(given, names, at, tier)
        return find_listed(names, at, tier)

    def _given(self, given: str, names: list[str], at: int, tier: str | None) -> Known:
        price = self._pricing.get(given)
        if price is None:
            return find_listed(names, at, tier)
        if price.input is not None and price.output is not None:
            own = Price(given, (_own_rates(price, price.input, price.output),))
            return Known(scaled(own, price.factor), -NEVER, NEVER)
        known = find_listed([given, *names], at, tier)
        if known.price is None:
            return known
        return replace(known, price=scaled(known.price, price.factor))


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
            f"{first}{more}. Give it in the job file or in ~/.config/batchrun/prices.toml, in USD "
            "for a million tokens:\n"
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
