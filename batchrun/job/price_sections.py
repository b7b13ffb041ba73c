"""`[pricing]` and `[aliases]`, checked, in a job file or in the user's own; a TOML file read.

The user's file is `~/.config/batchrun/prices.toml` (`XDG_CONFIG_HOME` is honoured). What a job says
of a name wins over it.
"""

import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from batchrun.errors import JobError
from batchrun.formats.nearest import nearest
from batchrun.job.sections import PriceJob


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The file's tables; `what` names its kind in messages. Raises `JobError`."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise JobError(f"{path}: no such {what}; check the path") from None
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path}: not TOML: {error}") from error


def readable(message: str) -> str:
    """A message of msgspec with the key first."""
    text, _, path = message.partition(" - at `$.")
    return f"{path.rstrip('`')}: {text}" if path else text


SECTIONS = ("pricing", "aliases")


class PriceBook(Struct, frozen=True, forbid_unknown_fields=True):
    """Prices and names that are given, not listed."""

    pricing: dict[str, PriceJob] = field(default_factory=dict)  # by the model's name
    aliases: dict[str, str] = field(default_factory=dict)  # a gateway's name to the list's


def user_file() -> Path | None:
    """Where the user's prices may stand; null where there is no home directory."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(base) if Path(base).is_absolute() else Path.home() / ".config"
    except RuntimeError:
        return None
    return folder / "batchrun" / "prices.toml"


def with_user_prices(
    pricing: Mapping[str, PriceJob], aliases: Mapping[str, str], path: Path | None = None
) -> PriceBook:
    """What a job says and what the user's file says besides. Raises `JobError`.

    `path` is the user's file, by default `user_file()`; there need be none.
    """
    path = user_file() if path is None else path
    if path is None or not _may_exist(path):
        return PriceBook(dict(pricing), dict(aliases))
    tree = read_toml(path, "file of prices")
    where = str(path)
    for section in tree:
        if section not in SECTIONS:
            raise JobError(f"{where}: unknown section [{section}]; {nearest(section, SECTIONS)}")
    refuse_unknown_prices(tree, where)
    try:
        book = msgspec.convert(tree, PriceBook)
    except msgspec.ValidationError as error:
        raise JobError(f"{where}: {readable(str(error))}") from error
    check_given(book.pricing, book.aliases, where)
    # A name that the job explains by an alias is not priced by the user's file, and vice versa.
    mine = {name: price for name, price in book.pricing.items() if name not in aliases}
    others = {name: target for name, target in book.aliases.items() if name not in pricing}
    return PriceBook({**mine, **pricing}, {**others, **aliases})


def _may_exist(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # reading it says what is wrong
    return True


def refuse_unknown_prices(tree: Mapping[str, Any], where: str) -> None:
    """Raises `JobError` where the two sections, not yet typed, hold what is not known."""
    for section in SECTIONS:
        if not isinstance(tree.get(section, {}), dict):
            raise JobError(f"{where}: {section} must be a table: write [{section}]")
    names = PriceJob.__struct_fields__
    for model, table in tree.get("pricing", {}).items():
        if not isinstance(table, dict):
            raise JobError(f'{where}: pricing.{model} is no table; write [pricing."MODEL"]')
        for key, value in table.items():
            if isinstance(value, dict):
                raise JobError(
                    f"{where}: [pricing.{model}.{key}]: a model's name stands in quotes, "
                    f'such as [pricing."{model}.{key}"]'
                )
            if key not in names:
                raise JobError(
                    f'{where}: unknown key {key} in [pricing."{model}"]; {nearest(key, names)}'
                )
    for name, target in tree.get("aliases", {}).items():
        if isinstance(target, dict):
            inner = next(iter(target), "NAME")
            raise JobError(
                f"{where}: [aliases] {name}.{inner}: a name stands in quotes, such as "
                f'"{name}.{inner}" = "gpt-4.1"'
            )
        if not isinstance(target, str):
            raise JobError(
                f'{where}: [aliases] "{name}" is {target!r}; it must be the name of a model in the '
                'price list, such as "gpt-4.1"'
            )


def check_given(pricing: Mapping[str, PriceJob], aliases: Mapping[str, str], where: str) -> None:
    """Raises `JobError` where a price is none, or an alias leads nowhere."""
    for model, price in pricing.items():
        _check_price(model, price, where)
    for name, target in aliases.items():
        if not target.strip():
            raise JobError(f'{where}: [aliases] "{name}" is empty; name a model of the price list')
        if name in pricing:
            raise JobError(
                f'{where}: "{name}" has a price in [pricing] and an alias; take one of them out'
            )


def _check_price(model: str, price: PriceJob, where: str) -> None:
    table = f'{where}: [pricing."{model}"]'
    for key in PriceJob.__struct_fields__:
        value = getattr(price, key)
        if value is not None and not 0 <= value < math.inf:  # also NaN
            raise JobError(f"{table} {key} is {value}; it must be a number from 0 up")
    given = [key for key in ("input", "output") if getattr(price, key) is not None]
    if len(given) == 1:
        missing = "output" if given == ["input"] else "input"
        raise JobError(f"{table} has {given[0]} but no {missing}; give both, in USD for a million")
    if not given and (price.cached_input is not None or price.cache_write is not None):
        raise JobError(f"{table} has neither input nor output; give both, in USD for a million")
