"""What runs cost, and what the same tokens would cost elsewhere, from the usage columns alone.

Each attempt whose tokens are known is priced as it is while a run goes on (`batchrun.pricing`), at
the time it was sent, with the prices that are given today. What has no price is null and counted.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import msgspec
from msgspec import Struct

from batchrun.errors import JobError
from batchrun.formats.amounts import usd
from batchrun.job.price_sections import PriceBook, with_user_prices
from batchrun.job.sections import PriceJob
from batchrun.pricing.price import Price, sum_costs
from batchrun.pricing.prices import TIERS, Prices, daily_changes, steps, tier_of
from batchrun.records import RunRecord, Searches, Usage
from batchrun.reports.usage_sums import Edges, UsageSum, sum_usage
from batchrun.store.files import is_locked
from batchrun.store.reading import read_answered_usd, read_record, read_unknown_usd

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


CAVEAT = (
    "what if: the same counts of tokens at today's prices. Another model counts the same text in "
    "other tokens and answers at another length"
)


class RunCost(Struct, frozen=True):
    """One run: all of it, and by what."""

    run: str
    state: str  # as `run.json` says; running, killed
    simulated: bool  # nothing was paid
    total: Line
    by: dict[str, tuple[Line, ...]]  # model, tier, status, attempt, the column asked for
    recorded_usd: float | None  # what was reckoned while it ran, at the prices given then
    reported_usd: float | None  # what the gateway said
    unknown_usd: float = 0.0  # at most so much more, for tries that never told what they cost
    notes: tuple[str, ...] = ()


class Costs(Struct, frozen=True):
    """Runs side by side."""

    runs: tuple[RunCost, ...]
    what_if: tuple[str, ...] = ()  # the names of `what_if_usd`, in their order
    caveat: str | None = None


def read_costs(
    paths: Sequence[Path],
    *,
    models: Sequence[str] = (),
    tier: str | None = None,
    by: str | None = None,
) -> Costs:
    """What each of these runs cost, also while it goes on.

    `models` and `tier` (one of `TIERS`, or `standard`) are what to compare with; `by` is a column
    of `responses`. Raises `JobError`, `StoreError`.
    """
    if tier not in (None, STANDARD, *TIERS):
        raise JobError(f"there is no tier {tier}; known are {', '.join((STANDARD, *TIERS))}")
    scenarios = _scenarios(models, tier)
    edges = Edges(steps(), daily_changes())
    runs = tuple(_read_run(path, scenarios, edges, by) for path in paths)
    names = tuple(scenario.name for scenario in scenarios)
    return Costs(runs, names, CAVEAT if scenarios else None)


def _scenarios(models: Sequence[str], tier: str | None) -> tuple[Scenario, ...]:
    meant = None if tier == STANDARD else tier
    own = [] if tier is None else [Scenario(f"at {tier}", None, meant, tier_asked=True)]
    at = "" if tier is None else f" at {tier}"
    named = dict.fromkeys(models)
    return (*own, *(Scenario(model + at, model, meant, tier is not None) for model in named))


def _read_run(path: Path, scenarios: Sequence[Scenario], edges: Edges, by: str | None) -> RunCost:
    record = read_record(path)
    given = _given(path, record)
    sums = sum_usage(path, record, edges, by)
    priced = Priced(Prices(given.pricing, given.aliases), scenarios, time.time_ns() // 1000)
    pairs = [(each, priced.line(each)) for each in sums]
    names: dict[str, Callable[[UsageSum], str | None]] = {
        "model": lambda each: each.model or each.model_requested,
        "tier": tier_name,
        "status": lambda each: each.status,
        "attempt": lambda each: each.kind,
    }
    if by is not None:
        names[f"{by} (column)" if by in names else by] = lambda each: each.value
    tables = {
        title: lines_by((p for p in pairs if title != "attempt" or p[0].attempts), name)
        for title, name in names.items()
    }
    state = record.state
    if state == "running" and not is_locked(path):
        state = "killed"
    unknown_usd = read_unknown_usd(path, record)
    return RunCost(
        run=str(path),
        state=state,
        simulated=record.simulated,
        total=added(None, [line for _, line in pairs], len(scenarios)),
        by=tables,
        recorded_usd=sum_known([each.recorded_usd for each in sums]),
        reported_usd=sum_known([each.reported_usd for each in sums]),
        unknown_usd=unknown_usd,
        notes=(
            *_notes(record, state, priced, tables["model"], unknown_usd),
            *_of_unfinished(read_answered_usd(path)),
        ),
    )


def _notes(
    record: RunRecord, state: str, priced: Priced, models: Sequence[Line], unknown_usd: float
) -> Iterator[str]:
    """What the dollars leave out or take in."""
    if state in ("running", "killed"):
        goes_on = "it goes on" if state == "running" else "its last command was killed"
        yield f"{goes_on}: this is what is settled so far"
    for line in models:
        if line.unpriced:
            yield (
                f"no price for {line.name}: what {_count(line.unpriced, 'try', 'tries')} cost is "
                f'not in the sum; give [pricing."{line.name}"], or an alias, in '
                "~/.config/batchrun/prices.toml"
            )
    unknown = sum(line.unknown for line in models)
    if unknown:
        tries = _count(unknown, "try", "tries")
        yield f"{tries} ended without a count of tokens: what they cost is not known"
    if unknown_usd:
        yield f"up to {usd(unknown_usd)} more for tries that never told what they cost"
    for priced_as in priced.searchless:
        yield f"there is no price for the searches that {priced_as} made: they are not in the sum"
    for priced_as, tier in priced.tierless:
        yield f"there is no {tier} price for {priced_as}: its standard one is taken"
    if record.gone.rows:
        rows = _count(record.gone.rows, "row", "rows")
        yield f"{rows} that left the input count too: they were paid"


def _of_unfinished(spent_usd: Sequence[float]) -> Iterator[str]:
    if spent_usd:
        answers = _count(len(spent_usd), "answer", "answers")
        yield (
            f"{usd(sum(spent_usd))} more, in no sum here, for {answers} of rows without an "
            "outcome: they are asked for again"
        )


def _count(number: int, one: str, many: str) -> str:
    return f"1 {one}" if number == 1 else f"{number:,} {many}"


def _given(path: Path, record: RunRecord) -> PriceBook:
    """The prices that the run was asked for with, and the user's of today."""
    try:
        pricing = msgspec.convert(record.job.get("pricing", {}), dict[str, PriceJob])
        aliases = msgspec.convert(record.job.get("aliases", {}), dict[str, str])
    except msgspec.ValidationError as error:
        raise JobError(f"{path}/run.json: its prices cannot be read ({error})") from error
    return with_user_prices(pricing, aliases)
