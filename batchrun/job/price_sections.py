"""`[pricing]` and `[aliases]`, checked, in a job file and in the user's own file of prices.

The user's file is `~/.config/batchrun/prices.toml` (`XDG_CONFIG_HOME` is honoured). For a name that
a job mentions, the job wins.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from batchrun.errors import JobError
from batchrun.job.sections import PriceJob
from batchrun.job.tables import check_tables, read_section, read_toml

SECTIONS = ("pricing", "aliases")


class PriceBook(Struct, frozen=True):
    """Prices and names that are given, not listed."""

    pricing: Mapping[str, PriceJob]  # by the model's name
    aliases: Mapping[str, str]  # a gateway's name to the list's


def with_user_prices(
    pricing: Mapping[str, PriceJob], aliases: Mapping[str, str], path: Path | None = None
) -> PriceBook:
    """What a job says, and besides what the user's file says. Raises `JobError`.

    `path` is the user's file, by default `user_file()`; it need not exist.
    """
    path = path or user_file()
    tree = read_toml(path, may_be_missing=True) if path else {}
    check_tables(tree, SECTIONS, str(path))
    book = read_prices(tree, str(path))
    # A name that the job explains by an alias is not priced by the user's file, and vice versa.
    own = {name: price for name, price in book.pricing.items() if name not in aliases}
    others = {name: target for name, target in book.aliases.items() if name not in pricing}
    return PriceBook({**own, **pricing}, {**others, **aliases})


def user_file() -> Path | None:
    """Where the user's prices are looked for; null where there is no home directory."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(base) if Path(base).is_absolute() else Path.home() / ".config"
    except RuntimeError:
        return None
    return folder / "batchrun" / "prices.toml"


def read_prices(tree: Mapping[str, Any], where: str) -> PriceBook:
    """The two sections, checked. Raises `JobError` where a price or a name is wrong."""
    pricing: dict[str, PriceJob] = {}
    for model, table in tree.get("pricing", {}).items():
        if not isinstance(table, dict):
            raise JobError(f'{where}: pricing.{model} is no table; write [pricing."MODEL"]')
        for key in (key for key, value in table.items() if isinstance(value, dict)):
            raise JobError(
                f"{where}: [pricing.{model}.{key}]: put the model's name in quotes, such as "
                f'[pricing."{model}.{key}"]'
            )
        pricing[model] = read_section(table, PriceJob, f'{where}: [pricing."{model}"]')
    aliases = tree.get("aliases", {})
    for name, target in aliases.items():
        if isinstance(target, dict):
            whole = f"{name}.{next(iter(target), 'NAME')}"
            example = f'"{whole}" = "gpt-6-luna"'
            raise JobError(f"{where}: [aliases] {whole}: put the name in quotes, such as {example}")
        if not isinstance(target, str) or not target.strip():
            raise JobError(
                f'{where}: [aliases] "{name}" is {target!r}; it must be the name of a model in the '
                'price list, such as "gpt-6-luna"'
            )
        if name in pricing:
            raise JobError(f'{where}: "{name}" has a price and an alias; take one out')
    return PriceBook(pricing, aliases)
