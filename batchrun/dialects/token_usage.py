"""The tokens of an answer, however a server spells them, and what it says that they cost. No I/O.

Usage as the API spells it is decoded in one typed pass. Whatever departs from that is read by
name, at any place: the names of chat completions, Anthropic, Bedrock and gateways.
"""

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct
from msgspec.structs import replace

from batchrun.formats.json_text import count, decode
from batchrun.records import Usage

_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)] | None


class _Details(Struct, forbid_unknown_fields=True):
    cached_tokens: _Count = None
    cache_write_tokens: _Count = None
    cache_write_tokens_details: Any = None
    reasoning_tokens: _Count = None


class _Usage(Struct, forbid_unknown_fields=True):
    """Usage as the API spells it; a further name may be another server's for one of these."""

    input_tokens: _Count = None
    input_tokens_details: _Details | None = None
    output_tokens: _Count = None
    output_tokens_details: _Details | None = None
    total_tokens: _Count = None
    cost: Annotated[float, Meta(ge=0)] | None = None  # a gateway's own


_NO_DETAILS = _Details()
_decode = msgspec.json.Decoder(_Usage).decode

# Names of each count, with the API's own first.
_INPUT = ("input_tokens", "prompt_tokens", "input_token_count", "prompt_token_count")
_OUTPUT = (
    *("output_tokens", "completion_tokens", "output_token_count", "completion_token_count"),
    "candidates_token_count",
)
_TOTAL = ("total_tokens", "total_token_count")
_READ_APART = ("cache_read_input_tokens",)
_WRITTEN_APART = ("cache_creation_input_tokens", "cache_write_input_tokens")
_CACHED = (
    *("cached_tokens", *_READ_APART, "prompt_cache_hit_tokens", "cached_input_tokens"),
    *("cached_prompt_tokens", "cache_read_tokens", "cached_content_token_count", "cache_read"),
)
_WRITTEN = (*("cache_write_tokens", *_WRITTEN_APART, "cache_creation_tokens", "cache_creation"),)
_REASONING = ("reasoning_tokens", "thoughts_token_count", "reasoning")
_COST = ("cost", "cost_usd", "total_cost", "total_cost_usd", "estimated_cost")

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_DIGITS = re.compile(r"\d{1,18}(?:\.0+)?|\d{1,3}(?:,\d{3}){1,5}")


def read_usage(raw: Raw) -> tuple[Usage, float | None]:
    """The counts of a `usage`, and its cost in dollars; each may be missing (PROTOCOL A.3)."""
    try:
        usage = _decode(raw)
    except msgspec.ValidationError:
        return _by_name(decode(bytes(raw)))
    inputs = usage.input_tokens_details or _NO_DETAILS
    outputs = usage.output_tokens_details or _NO_DETAILS
    tokens = Usage(
        usage.input_tokens,
        inputs.cached_tokens,
        inputs.cache_write_tokens,
        usage.output_tokens,
        outputs.reasoning_tokens,
        usage.total_tokens,
    )
    return tokens, usage.cost


def without_zeros(usage: Usage) -> Usage:
    """The usage of an answer that says something: a count of 0 is none there."""
    if usage.input_tokens and usage.output_tokens:
        return usage
    if not usage.input_tokens and not usage.output_tokens:
        return Usage(total_tokens=usage.total_tokens or None)
    return replace(
        usage, input_tokens=usage.input_tokens or None, output_tokens=usage.output_tokens or None
    )


def _by_name(value: object) -> tuple[Usage, float | None]:
    found: dict[str, list[object]] = {}
    for name, one in _named(value if isinstance(value, dict) else {}):
        found.setdefault(name, []).append(one)

    def first(names: tuple[str, ...]) -> int | None:
        """Servers fill several spellings, some of them with zeros."""
        values = [_count(one) for name in names for one in found.get(name, ())]
        return next(filter(None, values), 0 if 0 in values else None)

    read, total, output = first(_INPUT), first(_TOTAL), first(_OUTPUT)
    cached, written = first(_CACHED), first(_WRITTEN)
    apart = (first(_READ_APART) or 0) + (first(_WRITTEN_APART) or 0)
    # Under these names cached tokens may be counted beside the input (Anthropic) and not in it.
    if apart and read is not None:
        whole = read + apart + (output or 0)
        if total == whole or apart > read:
            read += apart
    costs = (_dollars(one) for name in _COST for one in found.get(name, ()))
    usage = Usage(read, cached, written, output, first(_REASONING), total)
    return usage, next((cost for cost in costs if cost is not None), None)


def _named(fields: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """All fields, those of `..._details` too, by their names in snake case."""
    for key, value in fields.items():
        name = _HUMP.sub("_", key).replace("-", "_").lower()
        if isinstance(value, dict) and name.endswith("details"):
            yield from _named(value)
        else:
            yield name, value


def _count(value: object) -> int | None:
    if isinstance(value, str):
        digits = value.strip()
        return int(digits.partition(".")[0].replace(",", "")) if _DIGITS.fullmatch(digits) else None
    number = count(value)
    return number if number is None or number >= 0 else None


def _dollars(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        dollars = float(value.strip().removeprefix("$") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return dollars if math.isfinite(dollars) and dollars >= 0 else None
