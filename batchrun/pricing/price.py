"""One model's price as rates, by which an answer is priced in less than a microsecond."""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import astuple, replace

from batchrun.records import NO_SEARCHES, Searches, Usage


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
    is_listed: bool = False  # the rates are those of the list, if times a factor

    def cost(self, usage: Usage, searches: Searches = NO_SEARCHES) -> float | None:
        """USD; null where the server did not count both input and output.

        Cached and cache-write tokens are a part of the input, reasoning is one of the output.
        """
        input_tokens, output_tokens = usage.input_tokens, usage.output_tokens
        if input_tokens is None or output_tokens is None:
            return None
        rates = self.rates[0]
        if len(self.rates) > 1:
            for longer in self.rates[1:]:
                if input_tokens > longer.above:
                    rates = longer
        cached, written = usage.cached_tokens or 0, usage.cache_write_tokens or 0
        fresh = input_tokens - cached - written
        if fresh < 0 or cached < 0 or written < 0 or output_tokens < 0:
            cached, written, output_tokens = max(0, cached), max(0, written), max(0, output_tokens)
            fresh = max(0, input_tokens - cached - written)
        dollars = (
            fresh * rates.input
            + cached * rates.cached_input
            + written * rates.cache_write
            + output_tokens * rates.output
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
        most = max(
            input_tokens * max(rates.input, rates.cached_input, rates.cache_write)
            + output_tokens * rates.output
            for rates in self.rates
            if input_tokens > rates.above
        )
        return most + self.request

    def _fees(self, searches: Searches) -> float:
        return searches.web * self.web_search + searches.file * self.file_search

    def times(self, factor: float) -> "Price":
        """The same price, all of it times `factor`."""
        fees = {name: getattr(self, name) * factor for name in _FEES}
        return replace(self, rates=_scaled(self.rates, factor), **fees)

    def in_batch(self, factor: float) -> "Price":
        """The price of a batch whose tokens cost `factor` of these; searches cost the same."""
        return replace(self, rates=_scaled(self.rates, factor), tier="batch")


_FEES = ("web_search", "file_search", "request")


def _scaled(rates: Sequence[Rates], factor: float) -> tuple[Rates, ...]:
    return tuple(
        Rates(each.above, *(rate * factor for rate in astuple(each)[1:])) for each in rates
    )


def sum_costs(costs: Sequence[float | None]) -> float | None:
    """What a row's attempts have cost as far as it is known; null where none may be known.

    A refused attempt costs 0, but does not make a row free whose answer has no price.
    """
    if len(costs) == 1:
        return costs[0]
    dollars = sum(cost for cost in costs if cost is not None)
    return dollars if dollars > 0 or (costs and None not in costs) else None
