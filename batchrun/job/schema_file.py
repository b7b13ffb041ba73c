"""A schema of answers from a file, as `text.format` of a request: JSON Schema, or a pydantic model.

Raises `JobError`.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

from batchrun.errors import JobError
from batchrun.formats.json_text import kind_in_words

_UNFIT = re.compile(r"[^A-Za-z0-9_-]")  # in the name of a format
_MOST_NAME = 64
_HOW = 'give a JSON Schema such as {"type": "object", …}, or file.py:Model for a pydantic model'


def read_schema(text: str) -> dict[str, Any]:
    """The format that `FILE` or `FILE.py:MODEL` describes."""
    before, colon, model = text.rpartition(":")
    if colon and before.endswith(".py"):
        return _format(_strict(_schema_of_model(Path(before), model)), model)
    path = Path(text)
    if path.suffix == ".py":
        raise JobError(f"{text}: which model of it? Write {text}:Model")
    try:
        said = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise JobError(f"{text}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise JobError(
            f"{text}: not UTF-8 text (byte {error.start + 1}); save it as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise JobError(f"{text}: not JSON: {error.msg} ({place}); {_HOW}") from None
    except RecursionError:
        raise JobError(f"{text}: nested too deeply; {_HOW}") from None
    if not isinstance(said, dict):
        raise JobError(f"{text}: it holds {kind_in_words(said)}; {_HOW}")
    return _as_format(said, path.stem)


def _as_format(said: dict[str, Any], name: str) -> dict[str, Any]:
    """A schema, or what other requests wrap around one: `text.format` or `response_format`."""
    if said.get("type") == "json_schema" and isinstance(said.get("json_schema"), dict):
        said = said["json_schema"]
    if isinstance(said.get("schema"), dict) and (
        "name" in said or said.get("type") == "json_schema"
    ):
        return {"name": name, **said, "type": "json_schema"}
    return _format(said, name)


def _format(schema: dict[str, Any], name: str) -> dict[str, Any]:
    fit = _UNFIT.sub("_", name)[:_MOST_NAME] or "answer"
    strict = {"strict": True} if _is_strict(schema) else {}
    return {"type": "json_schema", "name": fit, "schema": schema, **strict}


def _schema_of_model(path: Path, model: str) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location(_UNFIT.sub("_", path.stem), path)
    if spec is None or spec.loader is None or not path.is_file():
        raise JobError(f"{path}: no such file; check the path")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks annotations up
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
        schema = getattr(module, model).model_json_schema()
    except AttributeError as error:
        known = [n for n, one in vars(module).items() if hasattr(one, "model_json_schema")]
        there = ", ".join(name for name in known if name != "BaseModel") or "none"
        raise JobError(
            f"{path}: it has no pydantic model {model} ({error}); its models are {there}"
        ) from None
    except Exception as error:  # noqa: BLE001 - the user's own file may raise anything
        raise JobError(
            f"{path}: it cannot be imported ({type(error).__name__}: {error}); run it by hand"
        ) from None
    finally:
        sys.path.remove(folder)
    return dict(schema)


def _strict(value: Any) -> Any:
    """The schema as strict outputs want it: all properties required, and no others."""
    if isinstance(value, list):
        return [_strict(one) for one in value]
    if not isinstance(value, dict):
        return value
    made: dict[str, Any] = {}
    for key, one in value.items():
        if key in ("properties", "$defs") and isinstance(one, dict):
            made[key] = {name: _strict(inner) for name, inner in one.items()}
        elif key != "default":
            made[key] = _strict(one)
    properties = made.get("properties")
    if isinstance(properties, dict) and made.get("type") == "object":
        made |= {"required": list(properties), "additionalProperties": False}
    return made


def _is_strict(value: Any) -> bool:
    """Whether the endpoint takes the schema with `strict`."""
    if isinstance(value, list):
        return all(map(_is_strict, value))
    if not isinstance(value, dict):
        return True
    if value.get("type") == "object":
        names = value.get("properties", {})
        closed = value.get("additionalProperties") is False
        if not closed or not isinstance(names, dict):
            return False
        if set(value.get("required", ())) != set(names):
            return False
    return all(map(_is_strict, value.values()))
