"""What runs cost, and what the same tokens would cost elsewhere, from the usage columns alone.

Each attempt whose tokens are known is priced as it is during the run (`batchrun.pricing`), at the
time it was sent, with the prices that are given today. What has no price is null and counted.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.formats.amounts import plural, usd
from batchrun.job.job_file import with_user_prices
from batchrun.job.sections import PriceJob
from batchrun.pricing.price import Price, sum_costs
from batchrun.pricing.price_list import TIERS
from batchrun.pricing.prices import Prices, tier_of
from batchrun.records import RunRecord, Searches, Usage
from batchrun.reports.cost_queries import UsageCounts, UsageSum, read_usage
from batchrun.store.reading import read_answered_usd, read_record, read_unknown_usd, state_now

STANDARD = "standard"
CAVEAT = (
    "what if: the same counts of tokens at today's prices. Another model counts the same text in "
    "other tokens and answers at another length"
)
_DIGITS = 12  # sums in another order differ in the last ones


class CostLine(UsageCounts, frozen=True):
    """Rows or attempts that are alike, and what they cost."""

    name: str | None  # null: the column is null
    cost_usd: float | None  # of the attempts that have a price; null where none has
    unpriced: int  # attempts whose tokens are known, of models without a price
    what_if_usd: tuple[float | None, ...]  # of the attempts whose tokens are known
    what_if_partly: tuple[bool, ...]  # whether there are others, or some that have no price
    priced_as: tuple[str, ...] = ()  # the names of the prices behind `cost_usd`


class RunCost(Struct, frozen=True):
    """One run: all of it, and by what."""

    run: str
    state: str  # as `run.json` says; running, killed
    simulated: bool  # nothing was paid
    total: CostLine
    by: dict[str, tuple[CostLine, ...]]  # model, tier, status, attempt, the column asked for
    recorded_usd: float | None  # as calculated during the run, at the prices given then
    reported_usd: float | None  # what the gateway said
    unknown_usd: float = 0.0  # at most so much more, for attempts that reported no usage
    notes: tuple[str, ...] = ()


class Costs(Struct, frozen=True):
    """Runs side by side."""

    runs: tuple[RunCost, ...]
    what_if: tuple[str, ...] = ()  # the names of `what_if_usd`, in their order
    caveat: str | None = None


class PricedUsage(Struct, frozen=True):
    """A sum of usage at its own price, and then at those that it is compared with."""

    usage: UsageSum
    prices: tuple[Price | None, ...]  # null: none is known
    tiers: tuple[str, ...]  # that each price was asked for
    costs_usd: tuple[float | None, ...]


def read_costs(
    paths: Sequence[Path],
    *,
    models: Sequence[str] = (),
    tier: str | None = None,
    by: str | None = None,
) -> Costs:
    """What each of these runs cost, also during the run.

    `models` and `tier` (one of `TIERS`, or `standard`) are compared with; `by` is a column
    of `responses`. Raises `JobError`, `StoreError`.
    """
    if tier not in (None, STANDARD, *TIERS):
        raise JobError(f"there is no tier {tier}; known are {', '.join((STANDARD, *TIERS))}")
    at = "" if tier is None else f" at {tier}"
    compared = (*([] if tier is None else [None]), *dict.fromkeys(models))
    names = tuple(f"{model or ''}{at}".strip() for model in compared)
    runs = tuple(_read_run(path, compared, tier, by) for path in paths)
    return Costs(runs, names, CAVEAT if compared else None)


def _read_run(
    path: Path, compared: Sequence[str | None], tier: str | None, by: str | None
) -> RunCost:
    """`compared`: models at the tier; None: each attempt's own model."""
    record = read_record(path)
    prices, now_at = _given_prices(path, record), time.time_ns() // 1000
    for model in compared:
        if model is not None and prices.find(model, None, now_at) is None:
            raise JobError(
                f'no price is known for {model}; give [pricing."{model}"] or an alias in '
                "~/.config/batchrun/prices.toml"
            )
    sums = read_usage(path, by)
    priced = [_priced(usage, compared, tier, prices, now_at) for usage in sums]
    names: dict[str, Callable[[UsageSum], str | None]] = {
        "model": lambda usage: usage.model or usage.model_requested,
        "tier": _tier_name,
        "status": lambda usage: usage.status,
        "attempt": lambda usage: usage.kind,
    }
    if by is not None:
        names[f"{by} (column)" if by in names else by] = lambda usage: usage.value
    tables = {
        title: _lines((one for one in priced if title != "attempt" or one.usage.attempts), name)
        for title, name in names.items()
    }
    run = RunCost(
        run=str(path),
        state=state_now(path, record),
        simulated=record.simulated,
        total=_line(None, priced, 1 + len(compared)),
        by=tables,
        recorded_usd=_sum_known(usage.recorded_usd for usage in sums),
        reported_usd=_sum_known(usage.reported_usd for usage in sums),
        unknown_usd=read_unknown_usd(path, record),
    )
    return replace(run, notes=tuple(_notes(run, record, priced, read_answered_usd(path))))


def _given_prices(path: Path, record: RunRecord) -> Prices:
    """The prices that the run was asked for with, and the user's of today."""
    try:
        pricing = msgspec.convert(record.job.get("pricing", {}), dict[str, PriceJob])
        aliases = msgspec.convert(record.job.get("aliases", {}), dict[str, str])
    except msgspec.ValidationError as error:
        raise JobError(f"{path}/run.json: its prices cannot be read ({error})") from error
    return Prices(*with_user_prices(pricing, aliases))


def _tier_name(usage: UsageSum) -> str:
    """The tier that an answer names, or `standard`."""
    if usage.via == "batch":
        return usage.via
    named = usage.service_tier
    return STANDARD if named in (None, "default", "auto") else str(named)


def _priced(
    usage: UsageSum,
    compared: Sequence[str | None],
    tier: str | None,
    prices: Prices,
    now_at: int,
) -> PricedUsage:
    count = 1 + len(compared)
    if not usage.counted:  # rows, and attempts that were refused, cost nothing
        cost_usd = None if usage.unknown else 0.0
        return PricedUsage(usage, (None,) * count, (STANDARD,) * count, (cost_usd,) * count)
    own_tier = tier_of(usage.service_tier, usage.via)
    own_models = (usage.model_requested, usage.model)
    tier = own_tier if tier is None else None if tier == STANDARD else tier
    found = [prices.find(*own_models, usage.at, own_tier)]
    for model in compared:
        models = own_models if model is None else (model, None)
        found.append(prices.find(*models, now_at, tier))
    tiers = (_tier_name(usage), *[tier or STANDARD] * len(compared))
    tokens = Usage(
        input_tokens=usage.input_tokens,
        cached_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
    )
    searches = Searches(usage.web_searches, usage.file_searches)
    costs_usd = tuple(
        None if price is None else price.cost_of_many(tokens, usage.above, searches, usage.counted)
        for price in found
    )
    return PricedUsage(usage, tuple(found), tiers, costs_usd)


def _lines(
    priced: Iterable[PricedUsage], name: Callable[[UsageSum], str | None]
) -> tuple[CostLine, ...]:
    """One line for each name, the most expensive first."""
    groups: dict[str | None, list[PricedUsage]] = {}
    for one in priced:
        groups.setdefault(name(one.usage), []).append(one)
    lines = [_line(called, group, len(group[0].prices)) for called, group in groups.items()]
    lines.sort(key=lambda line: (-(line.cost_usd or 0.0), -line.attempts, line.name or ""))
    return tuple(lines)


def _line(name: str | None, priced: Sequence[PricedUsage], prices: int) -> CostLine:
    """`prices`: how many each has."""
    fields = UsageCounts.__struct_fields__
    counts = {field: sum(getattr(one.usage, field) for one in priced) for field in fields}
    unpriced = [
        sum(one.usage.counted for one in priced if one.prices[at] is None) for at in range(prices)
    ]
    # None where only what cost 0 is known; 0 for no rows.
    sums = [sum_costs([one.costs_usd[at] for one in priced] or [0.0]) for at in range(prices)]
    cost_usd, *what_if_usd = (None if one is None else round(one, _DIGITS) for one in sums)
    own_prices = {price.priced_as for one in priced if (price := one.prices[0]) is not None}
    return CostLine(
        name=name,
        cost_usd=cost_usd,
        unpriced=unpriced[0],
        what_if_usd=tuple(what_if_usd),
        what_if_partly=tuple(bool(counts["unknown"] or count) for count in unpriced[1:]),
        priced_as=tuple(sorted(own_prices)),
        **counts,
    )


def _sum_known(costs: Iterable[float | None]) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return round(sum(known), _DIGITS) if known else None


def _notes(
    run: RunCost,
    record: RunRecord,
    priced: Sequence[PricedUsage],
    unfinished_usd: Sequence[float],
) -> Iterator[str]:
    """What the sums leave out or include."""
    if run.state in ("running", "killed"):
        why = "it is still running" if run.state == "running" else "its last command was killed"
        yield f"{why}, so these are the rows that are complete so far"
    for line in run.by["model"]:
        if line.unpriced:
            yield (
                f"no price for {line.name}, so the sum leaves out "
                f"{plural(line.unpriced, 'attempt')}; give "
                f'[pricing."{line.name}"], or an alias, in ~/.config/batchrun/prices.toml'
            )
    if run.total.unknown:
        yield f"{plural(run.total.unknown, 'attempt')} reported no usage, at an unknown cost"
    if run.unknown_usd:
        yield f"at most {usd(run.unknown_usd)} more for attempts that reported no usage"
    used = [
        (price, tier, one.usage)
        for one in priced
        for price, tier in zip(one.prices, one.tiers, strict=True)
        if price is not None
    ]
    for name in dict.fromkeys(
        price.priced_as
        for price, _, usage in used
        if (usage.web_searches and not price.web_search)
        or (usage.file_searches and not price.file_search)
    ):
        yield f"there is no price for the searches that {name} made, so they are not in the sum"
    for name, tier in dict.fromkeys(
        (price.priced_as, tier) for price, tier, _ in used if tier not in (STANDARD, price.tier)
    ):
        yield f"there is no {tier} price for {name}, so its standard one is used"
    if record.gone.rows:
        yield f"the sum includes {plural(record.gone.rows, 'row')} no longer in the input"
    if unfinished_usd:
        yield (
            f"{usd(sum(unfinished_usd))} more, in no sum here, for the answers of "
            f"{plural(len(unfinished_usd), 'unfinished row')}, which are asked for again"
        )
