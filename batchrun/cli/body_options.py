"""What options for the request's body say: `--set`, `--vary`, `--prompt-file`, `--schema`."""

import json
from pathlib import Path
from typing import Any

import click

from batchrun.errors import JobError

_JSON_STARTS = ("{", "[", '"')
_TEMPLATE_STARTS = ("{{", "{%", "{#")


def body_fields(
    _context: click.Context, _option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, Any]:
    """Body fields by their job key; a value is read as JSON where it is JSON."""
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text}: write KEY=VALUE, such as reasoning.effort=low")
        if f"request.{key}" in settings:
            raise click.BadParameter(f"{key} is given twice; take one out")
        settings[f"request.{key}"] = _value(key, value)
    return settings


def varied_fields(
    _context: click.Context, _option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, list[Any]]:
    """Values by dotted key; each is read as JSON where it is JSON, or all of them as a list."""
    varied: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise click.BadParameter(f"{text}: write KEY=A,B, such as reasoning.effort=low,high")
        if key in varied:
            raise click.BadParameter(f"{key} is given twice; write all its values in one --vary")
        if value.startswith("["):
            varied[key] = _value(key, value)
        else:
            varied[key] = [_value(key, one.strip()) for one in value.split(",")]
    return varied


def _value(key: str, text: str) -> Any:
    where = ""
    if text.startswith("@"):
        where = f" in {text[1:]}"
        text = _read_text(text[1:], f"; for text that begins with @ write '{key}=\"{text}\"'")
    start = text.lstrip()
    try:
        return json.loads(start) if start else text
    except (ValueError, RecursionError) as error:
        if start.startswith(_JSON_STARTS) and not start.startswith(_TEMPLATE_STARTS):
            said = "nested too deeply"
            if isinstance(error, json.JSONDecodeError):
                said = f"{error.msg} (line {error.lineno}, column {error.colno})"
            raise click.BadParameter(
                f"{key}: the value{where} begins like JSON but is not JSON: {said}; correct it, or "
                "write the text as a JSON string"
            ) from None
        return text


def prompt_of_file(
    _context: click.Context, _option: click.Parameter, name: str | None
) -> str | None:
    """The template in the file, without the end of its last line."""
    if name is None:
        return None
    text = _read_text(name)
    return text.removesuffix("\n").removesuffix("\r")


def schema_of_file(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> dict[str, Any] | None:
    """The format of answers that the file describes."""
    from batchrun.job.schema_file import read_schema

    try:
        return None if text is None else read_schema(text)
    except JobError as error:
        raise click.BadParameter(str(error)) from None


def _read_text(name: str, hint: str = "") -> str:
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            said = f"it is not UTF-8 text (byte {error.start + 1}); save it as UTF-8"
        else:
            said = f"it cannot be read ({getattr(error, 'strerror', error)}); check the path{hint}"
        raise click.BadParameter(f"{name}: {said}") from None
