"""TOML tables and the texts of options, checked against sections."""

import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from batchrun.errors import JobError
from batchrun.formats.nearest import nearest

Section = TypeVar("Section", bound=Struct)
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)")


def read_toml(path: Path, *, may_be_missing: bool = False) -> dict[str, Any]:
    """The file's tables. Raises `JobError`."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        if may_be_missing and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        raise JobError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path}: not TOML: {error}") from error


def check_tables(tree: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raises `JobError` unless the tree consists of tables with known names."""
    for name, table in tree.items():
        if name not in known:
            raise JobError(f"{where}: unknown section [{name}]; {nearest(name, known)}")
        if not isinstance(table, dict):
            raise JobError(f"{where}: {name} must be a table: write [{name}]")


def read_section(table: Mapping[str, Any], kind: type[Section], where: str) -> Section:
    """The table as a section of this kind. Raises `JobError`."""
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).rstrip("`").partition(" - at `$.")
        hint: Any = kind
        value: Any = table
        for key in path.partition("[")[0].split(".") if path else ():
            hint, value = _annotation(hint, key), value.get(key)
        if unknown := _UNKNOWN.match(problem):
            name = f"{path}.{unknown[1]}" if path else unknown[1]
            problem = f"unknown key {name}; {nearest(unknown[1], hint.__struct_fields__)}"
        elif expected := _expected(hint):
            problem = f"{path} is {value!r}; it must be {expected}"
        elif path:
            problem = f"{path}: {problem}"
        raise JobError(f"{where}: {problem}") from None


def read_setting(kind: type[Struct], dotted: str, text: str) -> Any:
    """The value of a key, from the text of its option. Raises `JobError`."""
    hint: Any = kind
    for key in dotted.split("."):
        hint = _annotation(hint, key)
    readers: tuple[Callable[[str], object], ...] = (str, int, float)
    for read in readers:
        with suppress(ValueError, msgspec.ValidationError):
            return msgspec.convert(read(text), hint)
    raise JobError(f"it must be {_expected(hint)}, not {text!r}")


def _annotation(kind: Any, key: str) -> Any:
    """That of a field; null within a table of any names."""
    return get_type_hints(kind, include_extras=True).get(key)


def _expected(hint: Any) -> str:
    """What a value must be, by the bounds and words of its annotation; empty where it has none."""
    kinds: list[str] = []
    for part in (hint, *get_args(hint)):
        if get_origin(part) is Literal:
            kinds += get_args(part)
        for meta in getattr(part, "__metadata__", ()):
            kinds.append(meta.description or f"a number from {meta.ge:g} up")
    return " or ".join(filter(None, (", ".join(kinds[:-1]), *kinds[-1:])))
