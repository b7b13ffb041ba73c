"""The prices that are used: of a model in each tier, where each comes from, how old the list is."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TextIO

from msgspec import Struct
from msgspec.structs import astuple
from rich.console import Console

from batchrun.formats.csv_text import csv_line
from batchrun.formats.printable import one_line
from batchrun.formats.result_text import ResultColumn, result_text
from batchrun.formats.text_tables import Section, show_section, show_text
from batchrun.job.job_file import load_job, user_file, with_user_prices
from batchrun.pricing.price import Price, Rates
from batchrun.pricing.price_list import (
    MILLION,
    TIERS,
    PriceList,
    checked_on,
    read_price_list,
    warning_of_age,
)
from batchrun.pricing.prices import STANDARD, Prices, how_to_price

_DIGITS = 9
_PRICES = ("input", "cached_input", "cache_write", "output")


class PriceLine(Struct, frozen=True):
    """What a model costs in one tier, for inputs of more than so many tokens; USD."""

    model: str  # as asked for
    tier: str
    above_tokens: int  # 0: any input
    input: float  # for a million tokens, and so on
    cached_input: float
    cache_write: float
    output: float
    web_search: float  # for a thousand; 0: there is no price
    file_search: float
    priced_as: str  # the name in [pricing], or in the list
    source: str  # the file or the list that has it
    checked_on: date | None  # by the list; null: it does not say, or the price is not its


class KnownPrices(Struct, frozen=True):
    """The prices of some models, and the list."""

    prices: tuple[PriceLine, ...]
    price_list: PriceList
    age_days: int | None  # of the list: since the newest check that it names
    own: tuple[str, ...]  # names in [pricing] and [aliases]
    own_file: str  # the user's, whether it exists or not
    warnings: tuple[str, ...] = ()
    unknown: dict[str, str] = {}  # models without a price, and what to do


def read_prices(models: Sequence[str], job_file: Path | None, at: int) -> KnownPrices:
    """The prices of these models, or of all in [pricing] and [aliases], at `at` (µs since 1970).

    Raises `JobError` where a file cannot be read.
    """
    job = None if job_file is None else load_job(job_file)
    pricing, aliases = with_user_prices(job.pricing if job else {}, job.aliases if job else {})
    prices, known = Prices(pricing, aliases), read_price_list(at)
    of_list = f"genai-prices {known.version}"
    of_job = {*job.pricing, *job.aliases} if job else set()

    def source(model: str) -> tuple[str, date | None]:
        given = prices.given_for([model])
        if given is None:
            return of_list, checked_on(model, at)
        place = str(job_file) if given in of_job else _from_home(user_file())
        target = aliases.get(given)
        own = pricing.get(given if target is None else target)
        alias = "" if target is None else f", alias of {target}"
        if own is None:
            return f"{place}{alias}: {of_list}", checked_on(str(target), at)
        if own.input is None:
            return f"{place}{alias}: {own.factor:g} times {of_list}", checked_on(given, at)
        return place + alias, None

    lines: list[PriceLine] = []
    unknown = {}
    for model in models or (*pricing, *aliases):
        own_lines = list(_lines(model, prices, at, *source(model)))
        if not own_lines and models:
            unknown[model] = how_to_price(prices, [model], at)
        lines += own_lines
    today = datetime.fromtimestamp(at / 1e6, UTC).date()
    age = warning_of_age(at)
    return KnownPrices(
        tuple(lines),
        known,
        None if known.checked_on is None else (today - known.checked_on).days,
        (*pricing, *aliases),
        _from_home(user_file()),
        () if age is None else (age,),
        unknown,
    )


def _from_home(path: Path | None) -> str:
    """As people write it."""
    if path is None:
        return "no home directory"
    with suppress(RuntimeError, ValueError):
        return f"~/{path.relative_to(Path.home()).as_posix()}"
    return str(path)


def _lines(
    model: str, prices: Prices, at: int, source: str, checked: date | None
) -> Iterator[PriceLine]:
    for tier in (STANDARD, *TIERS):
        price = prices.find(model, None, at, None if tier == STANDARD else tier)
        if price is None or tier not in (STANDARD, price.tier):
            continue
        for rates in price.rates:
            yield _line(model, tier, price, rates, source, checked)


def _line(
    model: str, tier: str, price: Price, rates: Rates, source: str, checked: date | None
) -> PriceLine:
    def rounded(dollars: float) -> float:
        return round(dollars, _DIGITS)

    return PriceLine(
        model=model,
        tier=tier,
        above_tokens=max(0, rates.above),
        input=rounded(rates.input * MILLION),
        cached_input=rounded(rates.cached_input * MILLION),
        cache_write=rounded(rates.cache_write * MILLION),
        output=rounded(rates.output * MILLION),
        web_search=rounded(price.web_search * 1_000),
        file_search=rounded(price.file_search * 1_000),
        priced_as=price.priced_as,
        source=source,
        checked_on=checked,
    )


def price_text(form: str, known: KnownPrices) -> Iterator[str]:
    """Pieces of CSV or Markdown: a line for each model, tier and length of input."""
    heads = PriceLine.__struct_fields__
    rows = [[_plain(value) for value in astuple(line)] for line in known.prices]
    if form == "csv":
        for row in (heads, *rows):
            yield csv_line(row, for_sheets=True)
        return
    figures = {"above_tokens", "web_search", "file_search", *_PRICES}
    columns = [ResultColumn(head, head in figures) for head in heads]
    yield from result_text("markdown", columns, lambda: rows, 0)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value


def show_prices(known: KnownPrices, stream: TextIO) -> None:
    """A table for each model, and what the list is."""
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    listed = known.price_list
    words = f"genai-prices {listed.version}: {listed.models:,} models"
    if listed.checked_on is not None:
        words += f", newest check {listed.checked_on}, {known.age_days:,} days ago"
    show_text(words, console, "")
    own = ", ".join(known.own) or "none"
    show_text(f"prices of your own ({known.own_file}): {own}", console, "")
    by_model: dict[str, list[PriceLine]] = {}
    for line in known.prices:
        by_model.setdefault(line.model, []).append(line)
    for model, lines in by_model.items():
        show_section(_section(model, lines), console)
        first = lines[0]
        about = f"from {first.source}"
        if first.priced_as != model:
            about += f", as {first.priced_as}"
        if first.checked_on is not None:
            about += f", checked {first.checked_on}"
        show_text(one_line(about), console)
        if fees := ", ".join(_fees(first)):
            show_text(f"besides, USD for a thousand: {fees}", console)


def _section(model: str, lines: Sequence[PriceLine]) -> Section:
    rows = []
    for line in lines:
        name = f"  above {line.above_tokens:,} in" if line.above_tokens else line.tier
        rows.append((name, *(dollars(getattr(line, price)) for price in _PRICES)))
    heads = ("tier", "input", "cached", "cache write", "output")
    return Section(model, one_line(model), heads, tuple(rows), note="USD for a million tokens")


def _fees(line: PriceLine) -> Iterator[str]:
    fees: Mapping[str, float] = {"web searches": line.web_search, "file searches": line.file_search}
    return (f"{name} {dollars(fee)}" for name, fee in fees.items() if fee)


def dollars(price: float) -> str:
    """A price with all its digits: `$0.125`, `$2.00`."""
    whole, _, rest = f"{price:.{_DIGITS}f}".rstrip("0").partition(".")
    return f"${whole}.{rest.ljust(2, '0')}"
