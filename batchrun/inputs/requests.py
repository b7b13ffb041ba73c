"""One row to one request: which form it has, what of it is sent, defaults, name and hash.

The form is recognised row by row. A row of which no request can be made becomes a draft with a
problem; no other error is raised, whatever the row holds.
"""

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any

from msgspec import Struct

from batchrun.dialects.responses import INPUT_ALTERNATIVES, REQUEST_FIELDS, TRANSPORT_FIELDS
from batchrun.formats.printable import listed, nearest
from batchrun.inputs.chat import (
    BATCH_COLUMNS,
    CHAT_SETTINGS,
    batch_body,
    chat_settings,
    flat_choice,
    flat_tools,
    input_items,
    is_batch_line,
    read_structure,
)
from batchrun.inputs.identity import Identity
from batchrun.inputs.media import changed_file
from batchrun.inputs.rows import (
    NO_COLUMNS,
    MissingColumn,
    RowProblem,
    SourceRow,
    encode,
    encode_leniently,
    encode_sorted,
)
from batchrun.inputs.template import Defaults
from batchrun.job.sections import InputJob
from batchrun.records import JsonObject

# The first 8 bytes of SHA-256, for which processors have instructions (rule 1 was blake2b), over
# the body as JSON with sorted keys.
HASH_RULE = 2

_FIELDS = frozenset(REQUEST_FIELDS)
_MESSAGES = CHAT_SETTINGS | {"messages"}
_PROMPT = CHAT_SETTINGS | {"prompt"}
_NO_PROMPT = _FIELDS - {"prompt"}
_NO_INPUT = _FIELDS - {"input"}
_FORMS = (NO_COLUMNS, BATCH_COLUMNS, _MESSAGES, _PROMPT, _FIELDS, _NO_PROMPT, _NO_INPUT)

# How JSON text begins, and the fields that it is read for.
_STARTS = {"{": ("structure", "text or structure"), "[": ("structure",)}

Build = Callable[[JsonObject], JsonObject]


class Draft(Struct):
    """A request in the making, or the problem that keeps the row from being one."""

    custom_id: str
    named_by: int
    consumed: frozenset[str]  # columns that are not carried, unless [input] carry says so
    body: JsonObject | None  # as meant; None for a bad row
    written: bytes  # the body as JSON: as it is hashed, or as it is sent where the hash is known
    hash: int
    problem: str = ""


class RequestMaker:
    """Makes requests of rows as the job asks. Raises `JobError` for a bad template."""

    def __init__(self, request: JsonObject, input_job: InputJob, identity: frozenset[str]) -> None:
        self._defaults = Defaults(request)
        self.media = self._defaults.media
        self._send = input_job.send
        self.has_template = self._defaults.has_input  # which says all that is sent
        named = identity | frozenset(input_job.send)
        # With a template for `input` everything is carried, also what is sent besides.
        always = identity if self._defaults.has_input else named
        self._consumed = {columns: columns | always for columns in _FORMS}
        named |= self._defaults.columns
        if not self._defaults.has_input:
            named |= _FIELDS | CHAT_SETTINGS | BATCH_COLUMNS | {"messages"}
        # Columns that fill templates or are sent besides, and all that may be sent; None: any.
        filling = self._defaults.columns | frozenset(input_job.send)
        self.fills: frozenset[str] | None = None if self._defaults.reads_all else filling
        self.may_use: frozenset[str] | None = None if self._defaults.reads_all else named

    def draft(self, row: SourceRow, identity: Identity, known_hash: int | None = None) -> Draft:
        """The row's request. Raises `InputError` alone.

        A hash that is known from an earlier reading saves a third of the time.
        """
        columns, data, media = NO_COLUMNS, row.data or {}, self.media
        media.start_row(row.source)
        try:
            columns, build = self._form(row, data)
            body = self._body(data, build)
            name, named_by = identity.name(row)
            if known_hash is None:
                written = encode_sorted(body)
                known_hash = _digest(written)
            else:
                if media.has_path and _digest(encode_sorted(body)) != known_hash:
                    raise changed_file(row)
                written = encode(body)
            return Draft(name, named_by, self._consumed[columns], body, written, known_hash)
        except MissingColumn as missing:
            problem = _explained(missing, row)
        except RowProblem as error:
            problem = error.message
        except RecursionError:
            problem = "nested too deeply"
        name, named_by = identity.name_or_number(row)
        # A row of Parquet has no line; what may be sent of it is hashed.
        known = row.raw.strip() if row.line is not None else encode_leniently(data)
        key = _digest(known)
        if media.has_path and known_hash not in (None, key):
            raise changed_file(row)
        return Draft(name, named_by, self._consumed[columns], None, b"", key, problem)

    def _form(self, row: SourceRow, data: JsonObject) -> tuple[frozenset[str], Build]:
        """The columns that make up a row's form, and what makes a body of them."""
        if row.problem:
            raise RowProblem(row.problem)
        if self._defaults.has_input:
            return NO_COLUMNS, lambda _: {}
        if is_batch_line(data):
            return BATCH_COLUMNS, batch_body
        has_input, prompt = _is_input(data.get("input")), data.get("prompt")
        if data.get("messages") is not None:
            return _MESSAGES, partial(_from_chat, "messages")
        if type(prompt) is list:
            return _PROMPT, partial(_from_chat, "prompt")
        if type(prompt) is dict:
            return (_FIELDS if has_input else _NO_INPUT), _from_fields
        if has_input:
            return _NO_PROMPT, _from_fields
        if type(prompt) is str:
            return _PROMPT, partial(_from_chat, "prompt")
        if self._defaults.has_prompt:
            return NO_COLUMNS, lambda _: {}
        raise RowProblem(_no_form(data, row))

    def _body(self, data: JsonObject, build: Build) -> JsonObject:
        body = build(data)
        for name in self._send:
            if data.get(name) is not None:
                body[name] = _sent_besides(name, data[name])
        self._defaults.fill(body, data)
        for name in TRANSPORT_FIELDS:
            if name in body:
                del body[name]
        _check(body, data)
        return body


def _digest(data: bytes) -> int:
    return int.from_bytes(sha256(data).digest()[:8], "big")


def _from_chat(name: str, data: JsonObject) -> JsonObject:
    given = data[name]
    is_text = name == "prompt" and type(given) is str
    return {"input": given if is_text else input_items(given, name), **chat_settings(data)}


def _from_fields(data: JsonObject) -> JsonObject:
    body = {}
    for name, value in data.items():
        if name not in REQUEST_FIELDS or (name == "prompt" and type(value) is not dict):
            continue
        if name != "input" or _is_input(value):
            body[name] = _as_field(name, value)
    return body


def _is_input(value: Any) -> bool:
    return type(value) is str or type(value) is list


def _as_field(name: str, value: Any) -> Any:
    """The value of a request field as a column holds it: JSON as text becomes the structure."""
    if type(value) is str:
        start = value.lstrip()[:1]
        if start in _STARTS and REQUEST_FIELDS.get(name) in _STARTS[start]:
            return read_structure(value, name)
    elif type(value) is float and REQUEST_FIELDS.get(name) == "integer" and value.is_integer():
        return int(value)  # an integer column with nulls is one of floats to pandas
    return value


def _sent_besides(name: str, value: Any) -> Any:
    """A column that the job sends besides, as the field of its name."""
    if name in ("tools", "functions"):
        return flat_tools(value, name)
    return flat_choice(value) if name == "tool_choice" else _as_field(name, value)


def _check(body: JsonObject, data: JsonObject) -> None:
    """Raises `RowProblem` where the body lacks an input or a model."""
    given, model = body.get("input"), body.get("model")
    if given is None:
        if all(body.get(name) is None for name in INPUT_ALTERNATIVES):
            chat = "; it has `messages`: for a chat request put them at the top level of the row"
            hint = chat if "messages" in body else ""
            raise RowProblem(f"the request has neither `input` nor `prompt`{hint}")
    elif not _is_input(given):
        raise RowProblem(f"`input` is {type(given).__name__}; it must be text or a list of items")
    if model is None:
        if type(body.get("prompt")) is dict:
            return
        own = "; the row's column `model` is not sent unless [input] send names it"
        hint = own if data.get("model") is not None else ""
        raise RowProblem(f"no model: give --model NAME (model in [request]){hint}")
    if type(model) is not str or not model:
        raise RowProblem(f"`model` is {model!r:.60}; it must be a name")


def _no_form(data: JsonObject, row: SourceRow) -> str:
    for name in ("input", "prompt"):
        if data.get(name) is not None:
            return f"`{name}` is {data[name]!r:.60}; it must be text or a list"
    if type(data.get("body")) is str:
        return "`body` is text that holds no request; name the text with --prompt '{{ body }}'"
    for name in ("body", "messages", "input", "prompt"):
        if name in row.names:
            return f"no way to a request: `{name}` is null; fill it, or take the row out"
    there = f"its columns are {listed(row.names)}" if row.names else "it is empty"
    return (
        f"no way to a request: it has none of body, messages, input and prompt ({there}); "
        "say how with a template: --prompt '{{ COLUMN }}'"
    )


def _explained(missing: MissingColumn, row: SourceRow) -> str:
    column = missing.column
    if column in row.names:
        return (
            f"the template's column `{column}` is null; give a value for that case: "
            f"{{{{ {column} | default('…') }}}}"
        )
    return f"{missing.message}; {nearest(column, row.names, 'the columns')}"
