"""Finds what an answer costs: by prices that are given first, then by the price list.

A price is looked for by the model that answered, and by the model asked for where that leads to
none; `Prices.find` has the order. An unknown model has no price: null, never 0.
"""

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.job import PriceJob
from batchrun.pricing.model_names import spellings
from batchrun.pricing.price import Price, Rates, scaled
from batchrun.pricing.price_list import NEVER, TIERS, Known, find_listed

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
