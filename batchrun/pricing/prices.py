"""Finds what an answer costs: in `[pricing]` and `[aliases]` first, then in the price list.

A price is looked for by the model that answered, and by the model asked for where that has none;
`Prices.find` has the order. An unknown model has no price: null, never 0.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from batchrun.errors import JobError
from batchrun.formats.printable import MOST_NAMED, named, one_line, toml_name
from batchrun.job.sections import PriceJob
from batchrun.pricing.price import Price, Rates
from batchrun.pricing.price_list import (
    MILLION,
    TIERS,
    Listed,
    find_listed,
    listed_names,
    spellings,
    warning_of_age,
)

STANDARD = "standard"  # what the tier without a name is called; servers call it `default`
STANDARD_NAMES = ("auto", "default", STANDARD)
BATCH_FACTOR = 0.5  # of prices in [pricing] that name none
_NEAR = 0.8  # how alike a name must be to be meant, ...
_NEAR_KIN = 0.7  # ... and one of the same family
_FAMILY = re.compile(r"(\D*)(\d+)")  # `gpt-6` of gpt-6.1-terra
_MOST_NAMES = 4_096  # the names in answers are the server's to make up; then all are forgotten


def tier_of(service_tier: str | None, via: str) -> str | None:
    """The tier that an answer is billed in: the one it names, but `batch` if it came that way.

    Null for the standard price. A batch's answers call their tier `default`.
    """
    if via == "batch":
        return via
    return service_tier if service_tier in TIERS else None


def tier_name(service_tier: str | None, via: str | None = None) -> str:
    """The tier as every command calls it."""
    if via == "batch":
        return via
    return STANDARD if not service_tier or service_tier in STANDARD_NAMES else service_tier


class Prices:
    """Finds a model's price, and remembers it."""

    def __init__(
        self, pricing: Mapping[str, PriceJob], aliases: Mapping[str, str] | None = None
    ) -> None:
        self._pricing = pricing
        self._aliases = aliases or {}
        self._sections = {"aliases": self._aliases, "pricing": pricing}
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

    def given_for(self, names: Iterable[str]) -> str | None:
        """The name in [pricing] or [aliases] by which these names are priced; null: by the list."""
        for name in (spelling for each in names for _, spelling in spellings(each)):
            if name in self._aliases or name in self._pricing:
                return name
        return None

    def alias_of(self, model: str) -> str | None:
        """What is looked up in place of the model, by an alias; null where it has none."""
        given = self.given_for([model])
        return None if given is None else self._aliases.get(given)

    def section_of(self, name: str) -> str | None:
        """Which section this very name stands in: aliases or pricing; null: in neither."""
        return next((one for one, names in self._sections.items() if name in names), None)

    def nearest(self, model: str, at: int) -> str | None:
        """The name with a price that was probably meant; null where none is near.

        One that goes on where the model's name ends comes before others of its family, and one
        that is being shut down comes last. Another number is no misspelling: gpt-5 is not gpt-7.
        """
        from difflib import get_close_matches  # noqa: PLC0415 - only where something is wrong

        asked, listed = model.lower(), listed_names()
        known = (*self._pricing, *self._aliases, *listed)
        series, number = _family(asked)
        kin = [name for name in known if number and _family(name) == (series, number)]
        longer = [name for name in kin if name.startswith(f"{asked}-")]
        others = [name for name in known if not number or _family(name)[0] != series]
        near = get_close_matches(asked, longer, n=5, cutoff=0)
        near += get_close_matches(asked, kin, n=5, cutoff=_NEAR_KIN)
        near += get_close_matches(asked, others, n=5, cutoff=_NEAR)
        near.sort(key=lambda name: listed.get(name, False))
        return next((name for name in near if self.find(name, None, at) is not None), None)

    def _look_up(self, names: list[str], at: int, tier: str | None) -> Listed:
        name = self.given_for(names)
        if name is None:
            return find_listed(names, at, tier)
        if name in self._aliases:
            alias = self._aliases[name]
            return self._given(alias, [alias], at, tier)
        return self._given(name, [name, *names], at, tier)

    def _given(self, given: str, names: list[str], at: int, tier: str | None) -> Listed:
        """By the price in [pricing] for `given`, if there is one; else by the list."""
        own = self._pricing.get(given)
        if own is None:
            return find_listed(names, at, tier)
        batch_factor = own.batch_factor
        if batch_factor is None and own.input is not None:
            batch_factor = BATCH_FACTOR
        is_batch = tier == "batch" and batch_factor is not None
        known = find_listed(names, at, None if is_batch else tier)
        price = _with_own(known.price, own, given)
        if price is None:
            return known
        if is_batch and batch_factor is not None:
            price = price.in_batch(batch_factor)
        return replace(known, price=price.times(own.factor))


def _family(model: str) -> tuple[str, str]:
    """What stands before the first number in a name, and the number; all of it and an empty one."""
    found = _FAMILY.match(model)
    return (found[1], found[2]) if found else (model, "")


def _with_own(listed: Price | None, own: PriceJob, given: str) -> Price | None:
    """The price of the list, and what is given in its place, before the factors."""
    price = listed
    if own.input is not None and own.output is not None:
        rates = Rates(
            above=-1,
            input=own.input / MILLION,
            cached_input=_or(own.cached_input, own.input) / MILLION,
            cache_write=_or(own.cache_write, own.input) / MILLION,
            output=own.output / MILLION,
        )
        price = Price(given, (rates,))
        if listed is not None:  # what a search costs, it costs whatever a token does
            price = replace(price, web_search=listed.web_search, file_search=listed.file_search)
    if price is None:
        return None
    return replace(
        price,
        web_search=price.web_search if own.web_search is None else own.web_search / 1_000,
        file_search=price.file_search if own.file_search is None else own.file_search / 1_000,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def age_warning(prices: Prices, models: Iterable[str | None], at: int) -> str | None:
    """What to say of an old list by which one of the models is priced; null where none is."""
    found = (prices.find(model, None, at) for model in models)
    return warning_of_age(at) if any(price and price.is_listed for price in found) else None


def check_prices(prices: Prices, models: Iterable[str | None], at: int) -> None:
    """Raises `JobError` where a cap on dollars cannot be enforced, since a model has no price."""
    unknown = [model for model in models if prices.find(model, None, at) is None]
    if None in unknown:
        raise JobError(
            "limits.max_cost_usd needs to know each request's model, and some rows name none (a "
            "stored prompt has its own); name it with model in [request], or take the cap out"
        )
    if unknown:
        names = sorted(map(str, unknown))
        raise JobError(
            f"limits.max_cost_usd (--max-cost) needs a price for each model, and none is known for "
            f"{named(names)}. {how_to_price(prices, names, at)}\nor take the cap out"
        )


def meant_by(prices: Prices, models: Sequence[str], at: int) -> dict[str, str]:
    """The first of these models with the names that were probably meant, where one is near."""
    near = {model: prices.nearest(model, at) for model in models[:MOST_NAMED]}
    return {model: name for model, name in near.items() if name is not None}


def how_to_price(prices: Prices, models: Sequence[str], at: int) -> str:
    """What to do for models without a price: the names that were meant, then what to paste.

    Of an alias what it stands for needs the price: one for the alias would not be read.
    """
    said, names = [], []
    for model in models[:MOST_NAMED]:
        alias = prices.alias_of(model)
        name = model if alias is None else alias
        if alias is not None:
            what = f"{one_line(model)} is an alias of {one_line(alias)}"
            said.append(f"{what}: if that is wrong, correct it in [aliases].")
        section = prices.section_of(name)
        if alias is not None and section == "aliases":
            said.append("That is an alias too, and an alias of an alias is not followed.")
        elif section == "pricing":
            said.append(f"[pricing.{toml_name(name)}] has no input and output: add both to it.")
        else:
            names.append(name)
    if names:
        said.append(_prices_to_paste(prices, list(dict.fromkeys(names)), at, of_alias=bool(said)))
    return " ".join(said)


def _prices_to_paste(prices: Prices, names: list[str], at: int, *, of_alias: bool) -> str:
    near, is_one = meant_by(prices, names, at), len(names) == 1
    where = "a price in the job file or in ~/.config/batchrun/prices.toml, in USD for a million"
    it = one_line(names[0]) if of_alias else "it"
    give = f"ive {it if is_one else 'each'} {where} tokens:"
    if near:
        words = near.values() if is_one else (f"{name} by {model}" for model, name in near.items())
        right = "the name is" if is_one else "the names are"
        give = f"Did you mean {', '.join(words)}? If {right} right, g{give}"
    else:
        give = f"G{give}"
    tables = [f"[pricing.{toml_name(name)}]" for name in names]
    return "\n  ".join([give, *(f"{one}\n  input = 2.0\n  output = 8.0" for one in tables)])
