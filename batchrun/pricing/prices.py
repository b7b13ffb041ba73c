"""Finds what an answer costs: in `[pricing]` and `[aliases]` first, then in the price list.

A price is looked for by the model that answered, and by the model asked for where that has none;
`Prices.find` has the order. An unknown model has no price: null, never 0.
"""

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.formats.amounts import plural
from batchrun.job.sections import PriceJob
from batchrun.pricing.price import Price, Rates
from batchrun.pricing.price_list import MILLION, TIERS, Listed, find_listed, spellings

_MOST_NAMES = 4_096  # the names in answers are the server's to make up; then all are forgotten


def tier_of(service_tier: str | None, via: str) -> str | None:
    """The tier that an answer is billed in: the one it names, but `batch` if it came that way.

    Null for the standard price. A batch's answers call their tier `default`.
    """
    if via == "batch":
        return via
    return service_tier if service_tier in TIERS else None


class Prices:
    """Finds a model's price, and remembers it."""

    def __init__(
        self, pricing: Mapping[str, PriceJob], aliases: Mapping[str, str] | None = None
    ) -> None:
        self._pricing = pricing
        self._aliases = aliases or {}
        self._known: dict[tuple[str | None, str | None, str | None], Listed] = {}

    def find(
        self,
        model_requested: str | None,
        model_answered: str | None,
        at: int,
        tier: str | None = None,
    ) -> Price | None:
        """The price at `at` (µs since 1970); null where none is known.

        What [pricing] and [aliases] say of either model comes before the list, and the model that
        answered before the one asked for; each by the `spellings` of its name. A tier without a
        price of its own has the standard one, and a price in [pricing] is that of every tier.
        """
        if tier is not None and tier not in TIERS:
            tier = None
        key = (model_answered, model_requested, tier)
        known = self._known.get(key)
        if known is None or not known.from_at <= at < known.until_at:
            if len(self._known) >= _MOST_NAMES:
                self._known.clear()
            known = self._known[key] = self._look_up([n for n in key[:2] if n], at, tier)
        return known.price

    def bound(
        self, model: str | None, tier: str | None, at: int, input_tokens: int, output_tokens: int
    ) -> float:
        """USD that an answer costs at most, whether the tier asked for is granted or not.

        0 where no price is known; `check_prices` says so before anything is sent.
        """
        found = (self.find(model, None, at, each) for each in {None, tier})
        return max((p.bound(input_tokens, output_tokens) for p in found if p), default=0.0)

    def _look_up(self, names: list[str], at: int, tier: str | None) -> Listed:
        for name in (spelling for each in names for _, spelling in spellings(each)):
            if name in self._aliases:
                alias = self._aliases[name]
                return self._given(alias, [alias], at, tier)
            if name in self._pricing:
                return self._given(name, [name, *names], at, tier)
        return find_listed(names, at, tier)

    def _given(self, given: str, names: list[str], at: int, tier: str | None) -> Listed:
        """By the price in [pricing] for `given`, if there is one; else by the list."""
        price = self._pricing.get(given)
        if price is None or price.input is None or price.output is None:
            known = find_listed(names, at, tier)
            if price is None or known.price is None:
                return known
            return replace(known, price=known.price.times(price.factor))
        rates = Rates(
            above=-1,
            input=price.input / MILLION,
            cached_input=_or(price.cached_input, price.input) / MILLION,
            cache_write=_or(price.cache_write, price.input) / MILLION,
            output=price.output / MILLION,
        )
        return Listed(Price(given, (rates,)).times(price.factor))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def check_prices(prices: Prices, models: Iterable[str | None], at: int) -> None:
    """Raises `JobError` where a cap on dollars cannot be enforced, since a model has no price."""
    unknown = [model for model in models if prices.find(model, None, at) is None]
    if None in unknown:
        raise JobError(
            "limits.max_cost_usd needs to know each request's model, and some rows name none (a "
            "stored prompt has its own); name it with model in [request], or take the cap out"
        )
    if unknown:
        first = min(str(model) for model in unknown)
        others = len(unknown) - 1
        more = f" and for {plural(others, 'other model')}" if others else ""
        raise JobError(
            f"limits.max_cost_usd (--max-cost) needs a price for each model, and none is known for "
            f"{first}{more}. Give it in the job file or in ~/.config/batchrun/prices.toml, in USD "
            "for a million tokens:\n"
            f'  [pricing."{first}"]\n  input = 2.0\n  output = 8.0\n'
            "or take the cap out"
        )
