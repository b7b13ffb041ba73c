"""Whether what a model wrote fits the JSON Schemas of its request."""

import json
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

import msgspec
from jsonschema_rs import ReferencingError, ValidationError, validator_for
from msgspec import Raw, Struct

from batchrun.parse.json_text import decode

_NULL = Raw(b"null")


class _Tool(Struct):
    type: Any = None
    name: Any = None
    parameters: Raw = _NULL
    tools: Raw = _NULL  # of a namespace


class _Format(Struct):
    type: Any = None
    schema: Raw = _NULL


class _Text(Struct):
    format: _Format | None = None


class _Tools(Struct):
    tools: list[Raw] | None = None


class _Formatted(Struct):
    text: _Text | None = None


def arguments_fit(
    arguments: str | None, name: str | None, namespace: str | None, body: bytes
) -> bool | None:
    """Whether a call's arguments are JSON and fit; null where the schema is unusable."""
    return _fits(arguments or "", _parameters_of(name, namespace, body))


def output_fits(output_text: str | None, body: bytes) -> bool | None:
    """Whether the output parses and fits; null where no schema was asked for, or nothing came."""
    if output_text is None or b'"json_schema"' not in body:
        return None
    try:
        asked = msgspec.json.decode(body, type=_Formatted).text
    except msgspec.DecodeError:
        return None
    if asked is None or asked.format is None or asked.format.type != "json_schema":
        return None
    return _fits(output_text, bytes(asked.format.schema))


def _fits(written: str, schema: bytes) -> bool | None:
    try:
        value = json.loads(written, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    if schema == b"null":
        return True
    validator = _validator(schema)
    if validator is None:
        return None
    try:
        return bool(validator.is_valid(value))
    except (ValueError, RecursionError):
        return False


def _parameters_of(name: str | None, namespace: str | None, body: bytes) -> bytes:
    tools = list(_tools_in(body))
    if namespace is not None:
        within = (tool for tool in tools if tool.type == "namespace" and tool.name == namespace)
        tools = [inner for tool in within for inner in _tools_in(b'{"tools":%b}' % tool.tools)]
    for tool in tools:
        if tool.name == name and tool.type == "function":
            return bytes(tool.parameters)
    return b"null"


def _tools_in(body: bytes) -> Iterator[_Tool]:
    try:
        tools = msgspec.json.decode(body, type=_Tools).tools or []
    except msgspec.DecodeError:
        return
    for raw in tools:
        with suppress(msgspec.DecodeError):
            yield msgspec.json.decode(raw, type=_Tool)


@lru_cache(maxsize=256)
def _validator(schema: bytes) -> Any | None:
    """A compiled schema; null where it is none. Compiling takes far longer than checking."""
    try:
        return validator_for(decode(schema), retriever=_fetch_nothing)
    except (ValidationError, ReferencingError, ValueError, TypeError):
        return None


def _fetch_nothing(uri: str) -> Any:
    """A schema that points elsewhere must not make us open a connection."""
    raise ValueError(uri)


def _refuse(constant: str) -> float:
    raise ValueError(constant)
