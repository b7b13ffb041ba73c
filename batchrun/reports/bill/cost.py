"""What runs cost, and what the same tokens would cost elsewhere, from the usage columns alone.

Each attempt whose tokens are known is priced as it is during the run (`batchrun.pricing`), at the
time it was sent, with the prices that are given today. What has no price is null and counted.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.formats.amounts import plural, usd
from batchrun.formats.printable import MOST_NAMED, listed, named, nearest, toml_name
from batchrun.job.job_file import with_user_prices
from batchrun.job.sections import PriceJob
from batchrun.pricing.price import Price, sum_costs
from batchrun.pricing.price_list import TIERS, warning_of_age
from batchrun.pricing.prices import STANDARD, Prices, how_to_price, tier_name, tier_of
from batchrun.progress.summary_text import so_far_in_words
from batchrun.records import RunRecord, Searches, Usage
from batchrun.remote.run_link import run_name
from batchrun.reports.bill.cost_queries import (
    Grouping,
    UsageCounts,
    UsageSum,
    grouping_of,
    read_usage,
)
from batchrun.store.columns import response_schema
from batchrun.store.reading import read_answered_usd, read_record, read_unknown_usd, state_now

CAVEAT = (
    "what if: the same counts of tokens at today's prices. Another model counts the same text in "
    "other tokens and answers at another length"
)
_DIGITS = 12  # sums in another order differ in the last ones
RUN = "run"
_Name = Callable[[UsageSum], str | None]
# What sums are always grouped by. `--by` takes these names too, unless a column has the name.
_BREAKDOWNS: Mapping[str, _Name] = {
    "variant": lambda usage: usage.variant,  # where there are any
    "model": lambda usage: usage.model or usage.model_requested,
    "tier": lambda usage: tier_name(usage.service_tier, usage.via),
    "status": lambda usage: usage.status,
    "attempt": lambda usage: usage.kind,
}
# Columns whose values are those of a breakdown.
_AS_BREAKDOWN = {"model": "model", "service_tier": "tier"}


class CostLine(UsageCounts, frozen=True):
    """Rows or attempts that are alike, and what they cost."""

    name: str | None  # null: the column is null, or it is a total
    cost_usd: float | None  # of the attempts that have a price; null where none has
    unpriced: int  # attempts whose tokens are known, of models without a price
    what_if_usd: tuple[float | None, ...]  # of the attempts whose tokens are known
    what_if_partly: tuple[bool, ...]  # whether there are others, or some that have no price
    priced_as: tuple[str, ...] = ()  # the names of the prices behind `cost_usd`
    usd_per_ok: float | None = None  # `cost_usd` for each row that is ok; null where none is
    values: tuple[str | None, ...] = ()  # of a group: in the order of `Costs.grouped_by`

    @property
    def is_partly(self) -> bool:
        """Whether the cost of some attempts is not known."""
        return bool(self.unpriced or self.unknown)


class RunCost(Struct, frozen=True):
    """One run: all of it, and by what."""

    run: str
    state: str  # as `run.json` says; running, killed
    simulated: bool  # nothing was paid
    total: CostLine
    # variant (where there are any), model, tier, status, attempt, each column asked for
    by: dict[str, tuple[CostLine, ...]]
    recorded_usd: float | None  # as calculated during the run, at the prices given then
    reported_usd: float | None  # what the gateway said
    unknown_usd: float = 0.0  # at most so much more, for attempts of unknown cost
    notes: tuple[str, ...] = ()


class Costs(Struct, frozen=True):
    """Runs, and all of them together."""

    runs: tuple[RunCost, ...]
    total: CostLine
    by: dict[str, tuple[CostLine, ...]]  # as of a run
    unknown_usd: float  # the sum of those of the runs
    simulated_usd: float | None  # what part of the total was not paid; null where no run is so
    grouped_by: tuple[str, ...] = ()  # as asked for
    groups: tuple[CostLine, ...] = ()  # by all of `grouped_by` together
    what_if: tuple[str, ...] = ()  # the names of `what_if_usd`, in their order
    caveat: str | None = None
    warnings: tuple[str, ...] = ()


class PricedUsage(Struct, frozen=True):
    """A sum of usage at its own price, and then at those that it is compared with."""

    usage: UsageSum
    prices: tuple[Price | None, ...]  # null: none is known
    tiers: tuple[str, ...]  # that each price was asked for
    costs_usd: tuple[float | None, ...]


class _Read(Struct, frozen=True):
    """A run, and its usage with what each sum is grouped by."""

    run: RunCost
    priced: Sequence[PricedUsage]
    names: Sequence[_Name]  # of the columns asked for, in their order
    is_listed: bool  # a price of the list was used


def read_costs(
    paths: Sequence[Path],
    *,
    models: Sequence[str] = (),
    tier: str | None = None,
    by: Sequence[str] = (),
) -> Costs:
    """What these runs cost, one by one and together, also while they go on.

    `models` and `tier` (one of `TIERS`, or `standard`) are compared with. `by`: columns of
    `responses`, times as `COLUMN:UNIT`, the breakdowns, or `run`. Raises `JobError`, `StoreError`.
    """
    if tier is not None:
        tier = tier_name(tier)
        if tier not in (STANDARD, *TIERS):
            raise JobError(f"there is no tier {tier}; known are {', '.join((STANDARD, *TIERS))}")
    at = "" if tier is None else f" at {tier}"
    compared = (*([] if tier is None else [None]), *dict.fromkeys(models))
    what_if = tuple(f"{model or ''}{at}".strip() for model in compared)
    records = [read_record(path) for path in paths]
    _check_once(paths)
    groupings = _groupings(tuple(dict.fromkeys(by)), records)
    now_at = time.time_ns() // 1000
    read = [
        _read_run(path, record, compared, tier, groupings, now_at)
        for path, record in zip(paths, records, strict=True)
    ]
    priced = [(one, run.names) for run in read for one in run.priced]
    everything = [one for one, _ in priced]
    width = 1 + len(compared)
    simulated = [one.run.total.cost_usd or 0.0 for one in read if one.run.simulated]
    age = warning_of_age(now_at) if any(one.is_listed for one in read) else None
    return Costs(
        runs=tuple(one.run for one in read),
        total=_line(None, everything, width),
        by=_tables(everything, _BREAKDOWNS),
        unknown_usd=round(sum(one.run.unknown_usd for one in read), _DIGITS),
        simulated_usd=round(sum(simulated), _DIGITS) if simulated else None,
        grouped_by=tuple(groupings),
        groups=_groups(priced, tuple(groupings), groupings, width) if groupings else (),
        what_if=what_if,
        caveat=CAVEAT if compared else None,
        warnings=() if age is None else (age,),
    )


def _check_once(paths: Sequence[Path]) -> None:
    """Raises `JobError` where a run would count twice."""
    places = [path.resolve() for path in paths]
    twice = {
        str(path) for path, place in zip(paths, places, strict=True) if places.count(place) > 1
    }
    if twice:
        raise JobError(f"given more than once: {listed(sorted(twice))}; give each run once")


def _groupings(by: Sequence[str], records: Sequence[RunRecord]) -> dict[str, Grouping | None]:
    """By the names asked for; null: `run`, or a breakdown. Raises `JobError` for unknown ones."""
    schemas = [response_schema(record.layout, record.schema_version) for record in records]
    columns = dict.fromkeys(name for schema in schemas for name in schema.names)
    carried = [column.name for record in records for column in record.layout.columns]
    found: dict[str, Grouping | None] = {}
    for text in by:
        one = grouping_of(text, columns)
        if one.unit is None and one.column in _AS_BREAKDOWN and one.column not in carried:
            found[text] = None
        elif one.column in columns or one.is_expression:
            found[text] = one
        elif one.unit is None and one.column in (RUN, *_BREAKDOWNS):
            found[text] = None
        else:
            known = dict.fromkeys((*carried, RUN, *_BREAKDOWNS, *columns))
            raise JobError(
                f"there is no column {one.column}; {nearest(one.column, known, 'columns')}"
            )
    return found


def _read_run(
    path: Path,
    record: RunRecord,
    compared: Sequence[str | None],
    tier: str | None,
    by: Mapping[str, Grouping | None],
    now_at: int,
) -> _Read:
    """`compared`: models at the tier; None: each attempt's own model."""
    prices = _given_prices(path, record)
    known = [model for model in compared if model is not None]
    if unknown := [model for model in known if prices.find(model, None, now_at) is None]:
        raise JobError(
            f"no price is known for {named(unknown)}. {how_to_price(prices, unknown, now_at)}\n"
            "or an alias in [aliases]"
        )
    columns = [one for one in by.values() if one is not None]
    sums = read_usage(path, columns)
    priced = [_priced(usage, compared, tier, prices, now_at) for usage in sums]
    names = [_name_of(text, one, columns, str(path)) for text, one in by.items()]
    tables = dict(_BREAKDOWNS)
    for text, name in zip(by, names, strict=True):
        is_other = text in _BREAKDOWNS and text != "variant" and by[text] is not None
        tables[f"{text} (column)" if is_other else text] = name
    run = RunCost(
        run=run_name(path),
        state=state_now(path, record),
        simulated=record.simulated,
        total=_line(None, priced, 1 + len(compared)),
        by=_tables(priced, tables),
        recorded_usd=_sum_known(usage.recorded_usd for usage in sums),
        reported_usd=_sum_known(usage.reported_usd for usage in sums),
        unknown_usd=read_unknown_usd(path, record),
    )
    schema = response_schema(record.layout, record.schema_version)
    missing = [
        one.column for one in columns if one.column not in schema.names and not one.is_expression
    ]
    notes = [
        *_notes(run, record, priced, prices, now_at, read_answered_usd(path)),
        *(f"it has no column {name}: all its rows are (null) there" for name in missing),
    ]
    is_listed = any(price is not None and price.is_listed for one in priced for price in one.prices)
    return _Read(replace(run, notes=tuple(notes)), priced, names, is_listed)


def _name_of(text: str, one: Grouping | None, columns: Sequence[Grouping], run: str) -> _Name:
    """What tells a group from others, by a name asked for."""
    if one is not None:
        at = columns.index(one)
        return lambda usage: usage.values[at]
    return (lambda _: run) if text == RUN else _BREAKDOWNS[_AS_BREAKDOWN.get(text, text)]


def _tables(
    priced: Sequence[PricedUsage], names: Mapping[str, _Name]
) -> dict[str, tuple[CostLine, ...]]:
    has_variants = any(one.usage.variant is not None for one in priced)
    return {
        title: _lines((one for one in priced if title != "attempt" or one.usage.attempts), name)
        for title, name in names.items()
        if title != "variant" or has_variants
    }


def _groups(
    priced: Iterable[tuple[PricedUsage, Sequence[_Name]]],
    titles: Sequence[str],
    by: Mapping[str, Grouping | None],
    width: int,
) -> tuple[CostLine, ...]:
    """The most expensive first; where there are several columns or times, in their order."""
    groups: dict[tuple[str | None, ...], list[PricedUsage]] = {}
    by_attempt = any(title == "attempt" and by[title] is None for title in titles)
    for one, names in priced:
        if one.usage.attempts or not by_attempt:
            groups.setdefault(tuple(name(one.usage) for name in names), []).append(one)
    lines = [replace(_line(None, some, width), values=key) for key, some in groups.items()]
    lines.sort(key=lambda line: [_order(value) for value in line.values])
    if len(titles) == 1 and all(one is None or one.unit is None for one in by.values()):
        lines.sort(key=lambda line: -(line.cost_usd or 0.0))
    return tuple(lines)


def _order(value: str | None) -> tuple[bool, int, str]:
    """Numbers by their size, null last."""
    text = value or ""
    return value is None, int(text) if text.isascii() and text.isdecimal() else 0, text


def _given_prices(path: Path, record: RunRecord) -> Prices:
    """The prices that the run was asked for with, and the user's of today."""
    try:
        pricing = msgspec.convert(record.job.get("pricing", {}), dict[str, PriceJob])
        aliases = msgspec.convert(record.job.get("aliases", {}), dict[str, str])
    except msgspec.ValidationError as error:
        raise JobError(f"{path}/run.json: its prices cannot be read ({error})") from error
    return Prices(*with_user_prices(pricing, aliases))


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
    tiers = (tier_name(usage.service_tier, usage.via), *[tier or STANDARD] * len(compared))
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
    if usage.is_older:
        costs_usd = (usage.attempts_usd, *costs_usd[1:])
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
        sum(one.usage.counted for one in priced if one.costs_usd[at] is None)
        for at in range(prices)
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
        usd_per_ok=None if cost_usd is None or not counts["ok"] else cost_usd / counts["ok"],
        **counts,
    )


def _sum_known(costs: Iterable[float | None]) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return round(sum(known), _DIGITS) if known else None


def _notes(
    run: RunCost,
    record: RunRecord,
    priced: Sequence[PricedUsage],
    prices: Prices,
    now_at: int,
    unfinished_usd: Sequence[float],
) -> Iterator[str]:
    """What the sums leave out or include."""
    said = so_far_in_words(record, run.state, run.total.rows)
    left, not_asked = record.left(run.total.rows)
    # Rows that were not asked for are nothing that a bill lacks.
    if said is not None and (left > not_asked or run.state in ("running", "killed")):
        yield said
    unpriced = [line for line in run.by["model"] if line.unpriced]
    for line in unpriced[:MOST_NAMED]:
        alias = prices.alias_of(line.name) if line.name else None
        name = alias or line.name  # a price for the alias would not be read
        near = prices.nearest(name, now_at) if name else None
        yield (
            f"no price for {line.name or 'rows that name no model'}"
            f"{f', an alias of {alias}' if alias else ''}"
            f"{f' ({near} has one)' if near else ''}, so the sum leaves "
            f"out {plural(line.unpriced, 'attempt')}; give [pricing.{toml_name(name or 'MODEL')}]"
            f"{'' if alias else ', or an alias,'} in ~/.config/batchrun/prices.toml"
        )
    if others := unpriced[MOST_NAMED:]:
        attempts = plural(sum(line.unpriced for line in others), "attempt")
        yield f"no price for {plural(len(others), 'more model')}: the sum leaves out {attempts}"
    if run.total.unknown:
        yield f"{plural(run.total.unknown, 'attempt')} reported no usage, at an unknown cost"
    if run.unknown_usd:
        yield f"at most {usd(run.unknown_usd)} more for attempts whose cost is not known"
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
            f"{usd(sum(unfinished_usd))} more, not included here, for the answers of "
            f"{plural(len(unfinished_usd), 'unfinished row')}, which are requested again"
        )
