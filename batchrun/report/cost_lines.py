"""Sums of usage to lines with dollars, at the prices of their time and at others."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from msgspec import Struct

from batchrun.errors import JobError
from batchrun.pricing.price import Price, sum_costs
from batchrun.pricing.price_list import tier_of
from batchrun.pricing.prices import Prices
from batchrun.records import Searches, Usage
from batchrun.store.usage_sums import UsageSum

STANDARD = "standard"


class Line(Struct, frozen=True):
    """Rows or attempts that are alike, and what they cost."""

    name: str | None  # null: the column is null
    rows: int
    attempts: int
    input_tokens: int  # as far as they are known, here and below
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    web_searches: int
    file_searches: int
    cost_usd: float | None  # of the attempts that have a price; null where none has
    unpriced: int  # attempts whose tokens are known, of models without a price
    unknown: int  # attempts that may be billed, whose tokens nobody told
    what_if_usd: tuple[float | None, ...]  # of the attempts whose tokens are known
    what_if_partly: tuple[bool, ...]  # whether there are others, or some that have no price
    priced_as: tuple[str, ...] = ()  # the names of the prices behind `cost_usd`


class Scenario(Struct, frozen=True):
    name: str
    model: str | None  # null: the model of each attempt
    tier: str | None  # null: the tier of each attempt
    tier_asked: bool


def tier_name(each: UsageSum) -> str:
    """The tier that an answer names, or `standard`."""
    if each.via == "batch":
        return each.via
    named = each.service_tier
    return STANDARD if named in (None, "default", "auto") else str(named)


class Priced:
    """Sums of usage to lines with dollars; remembers what could not be priced as asked."""

    def __init__(self, prices: Prices, scenarios: Sequence[Scenario], now_at: int) -> None:
        """Raises `JobError` where a model to compare with has no price."""
        self._prices, self._scenarios, self._now_at = prices, scenarios, now_at
        self.tierless: dict[tuple[str, str], None] = {}  # the price, the tier that it is not of
        self.searchless: dict[str, None] = {}  # prices that have none for the searches made
        for model in dict.fromkeys(one.model for one in scenarios if one.model is not None):
            if prices.find(model, None, now_at) is None:
                raise JobError(
                    f'no price is known for {model}; give [pricing."{model}"] or an alias in '
                    "~/.config/batchrun/prices.toml"
                )

    def line(self, each: UsageSum) -> Line:
        tier = tier_of(each.service_tier, each.via)
        price = None
        if each.counted:
            price = self._prices.find(each.model_requested, each.model, each.at, tier)
        if price is not None:
            self._note(price, tier_name(each), each)
        cost = _cost(price, each)
        if cost is None and not each.counted and not each.unknown:
            cost = 0.0  # rows, and refusals
        what_if = tuple(self._what_if(each, tier, one) for one in self._scenarios)
        return Line(
            name=None,
            rows=each.rows,
            attempts=each.attempts,
            input_tokens=each.input_tokens,
            cached_tokens=each.cached_tokens,
            cache_write_tokens=each.cache_write_tokens,
            output_tokens=each.output_tokens,
            reasoning_tokens=each.reasoning_tokens,
            web_searches=each.web,
            file_searches=each.file,
            cost_usd=cost,
            unpriced=each.counted if price is None else 0,
            unknown=each.unknown,
            what_if_usd=what_if,
            what_if_partly=tuple(
                bool(each.unknown or (each.counted and usd is None)) for usd in what_if
            ),
            priced_as=(price.priced_as,) if price is not None else (),
        )

    def _what_if(self, each: UsageSum, tier: str | None, what: Scenario) -> float | None:
        if not each.counted:
            return None if each.unknown else 0.0  # rows, and refusals
        tier = what.tier if what.tier_asked else tier
        asked, answered = (each.model_requested, each.model)
        if what.model is not None:
            asked, answered = what.model, None
        price = self._prices.find(asked, answered, self._now_at, tier)
        if price is not None:
            self._note(price, tier or STANDARD, each)
        return _cost(price, each)

    def _note(self, price: Price, tier: str, each: UsageSum) -> None:
        if tier not in (STANDARD, price.tier):
            self.tierless[price.priced_as, tier] = None
        if (each.web and not price.web_search) or (each.file and not price.file_search):
            self.searchless[price.priced_as] = None


def _cost(price: Price | None, each: UsageSum) -> float | None:
    if price is None or not each.counted:
        return None
    usage = Usage(
        input_tokens=each.input_tokens,
        cached_tokens=each.cached_tokens,
        cache_write_tokens=each.cache_write_tokens,
        output_tokens=each.output_tokens,
    )
    return price.cost_of_many(usage, each.above, Searches(each.web, each.file), each.counted)


def lines_by(
    pairs: Iterable[tuple[UsageSum, Line]], name: Callable[[UsageSum], str | None]
) -> tuple[Line, ...]:
    """One line for each name, the dearest first."""
    named = sorted(((name(each), line) for each, line in pairs), key=_by_name)
    lines = [
        added(called, [line for _, line in group], len(group[0][1].what_if_usd))
        for called, group in ((key, list(found)) for key, found in groupby(named, _first))
    ]
    lines.sort(key=lambda line: (-(line.cost_usd or 0.0), -line.attempts, line.name or ""))
    return tuple(lines)


def _first(named: tuple[str | None, Line]) -> str | None:
    return named[0]


def _by_name(named: tuple[str | None, Line]) -> tuple[bool, str]:
    return (named[0] is None, named[0] or "")


def added(name: str | None, lines: Sequence[Line], scenarios: int) -> Line:
    def total(field: str) -> int:
        return sum(getattr(line, field) for line in lines)

    sums = {field: total(field) for field in _COUNTS}
    prices = dict.fromkeys(priced_as for line in lines for priced_as in line.priced_as)
    return Line(
        name=name,
        cost_usd=_dollars([line.cost_usd for line in lines]),
        what_if_usd=tuple(
            _dollars([line.what_if_usd[at] for line in lines]) for at in range(scenarios)
        ),
        what_if_partly=tuple(
            any(line.what_if_partly[at] for line in lines) for at in range(scenarios)
        ),
        priced_as=tuple(sorted(prices)),
        **sums,
    )


_DIGITS = 12  # sums in another order differ in the last ones
_COUNTS = (
    *("rows", "attempts", "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens"),
    *("reasoning_tokens", "web_searches", "file_searches", "unpriced", "unknown"),
)


def _dollars(costs: Sequence[float | None]) -> float | None:
    """As far as it is known; null where only what cost nothing is."""
    total = sum_costs(costs) if costs else 0.0
    return total if total is None else round(total, _DIGITS)


def sum_known(costs: Sequence[float | None]) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return round(sum(known), _DIGITS) if known else None
