"""What runs cost, and what the same tokens would cost elsewhere, from the usage columns alone.

Each attempt whose tokens are known is priced as it is while a run goes on (`batchrun.pricing`), at
the time it was sent, with the prices that are given today. What has no price is null and counted.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from batchrun.errors import JobError
from batchrun.job import PriceJob
from batchrun.policy.budget import usd
from batchrun.price_sections import PriceBook, with_user_prices
from batchrun.pricing.price_list import TIERS, daily_changes, steps
from batchrun.pricing.prices import Prices
from batchrun.records import RunRecord
from batchrun.report.cost_lines import (
    STANDARD,
    Line,
    Priced,
    Scenario,
    added,
    lines_by,
    sum_known,
    tier_name,
)
from batchrun.store.tables import is_running, read_answered_usd, read_record, read_unknown_usd
from batchrun.store.usage_sums import Edges, UsageSum, sum_usage

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
    if state == "running" and not is_running(path):
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
