"""One row to one request: which form it has, what of it is sent, defaults, name and hash.

The forms are told apart row by row. A row of which no request can be made raises `RowProblem`;
nothing else escapes, whatever the row holds.
"""

from array import array
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from msgspec import Struct

from batchrun.dialects.responses import INPUT_ALTERNATIVES, REQUEST_FIELDS, TRANSPORT_FIELDS
from batchrun.formats.nearest import listed, nearest
from batchrun.inputs.chat import COLUMNS as BATCH
from batchrun.inputs.chat import (
    SETTINGS,
    batch_body,
    chat_settings,
    flat_choice,
    flat_tools,
    input_items,
    is_batch_line,
    read_structure,
)
from batchrun.inputs.identity import Identity
from batchrun.inputs.rows import (
    NOTHING,
    NoColumn,
    Row,
    RowProblem,
    encode,
    encode_anyhow,
    encode_sorted,
)
from batchrun.inputs.template import Defaults
from batchrun.job.sections import InputJob
from batchrun.records import BadRow, JsonObject

# The first 8 bytes of SHA-256, for which processors have instructions (rule 1 was blake2b), over
# the body as JSON with sorted keys.
HASH_RULE = 2

FIELDS = frozenset(REQUEST_FIELDS)
Build = Callable[[JsonObject], JsonObject]


class RequestMaker:
    """Makes the body of a row's request as the job asks. Raises `JobError` for a bad template."""

    def __init__(self, request: JsonObject, input_job: InputJob, identity: frozenset[str]) -> None:
        self._defaults = Defaults(request)
        self._send = input_job.send
        self._consumed: dict[frozenset[str], frozenset[str]] = {}
        self._template_mode = self._defaults.has_input
        # With a template everything is carried, also what is sent besides.
        self._always = identity if self._template_mode else identity | frozenset(input_job.send)
        named = identity | frozenset(input_job.send) | self._defaults.columns
        if not self._template_mode:
            named |= FIELDS | SETTINGS | BATCH | {"messages"}
        # Columns that may be sent or fill a template; null: any.
        self.may_use: frozenset[str] | None = None if self._defaults.reads_all else named

    def consumed(self, form: frozenset[str]) -> frozenset[str]:
        """The columns that rows of the form do not carry."""
        known = self._consumed.get(form)
        if known is None:
            known = self._consumed[form] = form | self._always
        return known

    def in_templates(self, columns: list[str]) -> set[str]:
        """Those of the columns that fill templates, or are sent besides."""
        if self._defaults.reads_all:
            return set(columns)
        return set(columns) & (self._defaults.columns | set(self._send))

    def make(self, row: Row) -> tuple[JsonObject, frozenset[str]]:
        """The body as meant, and the columns that are sent. Raises `RowProblem`."""
        data = row.data
        if data is None:
            raise RowProblem(row.problem)
        form = NOTHING
        try:
            form, build = self._form(data, row)
            body = build(data)
            for name in self._send:
                if data.get(name) is not None:
                    body[name] = _field(name, data[name])
            self._defaults.fill(body, data)
            _check(body, data)
        except RecursionError:
            problem = RowProblem("nested too deeply")
            problem.consumed = self.consumed(form)
            raise problem from None
        except NoColumn as missing:
            problem = RowProblem(_explained(missing, row))
            problem.consumed = self.consumed(form)
            raise problem from None
        except RowProblem as problem:
            problem.consumed = self.consumed(form)
            raise
        return body, self.consumed(form)

    def _form(self, data: JsonObject, row: Row) -> tuple[frozenset[str], Build]:
        if self._template_mode:
            return NOTHING, _empty
        if is_batch_line(data):
            return BATCH, batch_body
        text, prompt = data.get("input"), data.get("prompt")
        if data.get("messages") is not None:
            return _MESSAGES, _from_messages
        if type(prompt) is list:
            return _PROMPT, _from_prompt_list
        if type(prompt) is dict:
            return (FIELDS if _is_input(text) else _NO_INPUT), _from_fields
        if _is_input(text):
            return _NO_PROMPT, _from_fields
        if type(prompt) is str:
            return _PROMPT, _from_prompt
        if self._defaults.has_prompt:
            return NOTHING, _empty
        raise RowProblem(_no_way(data, row))


def canonical(body: JsonObject) -> bytes:
    """The body with its keys sorted, of the same length as `as_sent` gives. Raises `RowProblem`."""
    try:
        return encode_sorted(body)
    except RecursionError:
        raise RowProblem("nested too deeply") from None


def as_sent(body: JsonObject) -> bytes:
    """The body with its keys in the row's order. Raises `RowProblem`."""
    try:
        return encode(body)
    except RecursionError:
        raise RowProblem("nested too deeply") from None


def digest(data: bytes) -> int:
    """A number of eight bytes over a canonical body, or over a row that cannot be sent."""
    return int.from_bytes(sha256(data).digest()[:8], "big")


_MESSAGES = SETTINGS | {"messages"}
_PROMPT = SETTINGS | {"prompt"}
_NO_PROMPT = FIELDS - {"prompt"}
_NO_INPUT = FIELDS - {"input"}


def _empty(_: JsonObject) -> JsonObject:
    return {}


def _from_messages(data: JsonObject) -> JsonObject:
    return {"input": input_items(data["messages"]), **chat_settings(data)}


def _from_prompt_list(data: JsonObject) -> JsonObject:
    return {"input": input_items(data["prompt"], "prompt"), **chat_settings(data)}


def _from_prompt(data: JsonObject) -> JsonObject:
    return {"input": data["prompt"], **chat_settings(data)}


def _from_fields(data: JsonObject) -> JsonObject:
    body = {}
    for name, value in data.items():
        if name not in FIELDS:
            continue
        if (name == "prompt" and type(value) is not dict) or (
            name == "input" and not _is_input(value)
        ):
            continue
        body[name] = _read(name, value)
    return body


def _is_input(value: Any) -> bool:
    return type(value) is str or type(value) is list


def _read(name: str, value: Any) -> Any:
    """The value of a request field as a column holds it: JSON as text becomes the structure."""
    takes = REQUEST_FIELDS.get(name)
    if type(value) is str:
        start = value.lstrip()[:1]
        if (start in ("{", "[") and takes == "structure") or (
            start == "{" and takes == "text or structure"
        ):
            return read_structure(value, name)
    elif type(value) is float and takes == "integer" and value.is_integer():
        return int(value)  # an integer column with nulls is one of floats to pandas
    return value


def _field(name: str, value: Any) -> Any:
    """A column that the job sends besides, as the field of its name."""
    if name in ("tools", "functions"):
        return flat_tools(value, name)
    return flat_choice(value) if name == "tool_choice" else _read(name, value)


def _check(body: JsonObject, data: JsonObject) -> None:
    for name in TRANSPORT_FIELDS:
        if name in body:
            del body[name]
    given = body.get("input")
    if given is None:
        if all(body.get(name) is None for name in INPUT_ALTERNATIVES):
            hint = (
                "; it has `messages`: for a chat request put them at the top level of the row"
                if "messages" in body
                else ""
            )
            raise RowProblem(f"the request has neither `input` nor `prompt`{hint}")
    elif not _is_input(given):
        raise RowProblem(f"`input` is {type(given).__name__}; it must be text or a list of items")
    model = body.get("model")
    if model is None:
        if type(body.get("prompt")) is dict:
            return
        hint = (
            "; the row's column `model` is not sent unless [input] send names it"
            if data.get("model") is not None
            else ""
        )
        raise RowProblem(f"no model: give --model NAME (model in [request]){hint}")
    if type(model) is not str or not model:
        raise RowProblem(f"`model` is {model!r:.60}; it must be a name")


def _no_way(data: JsonObject, row: Row) -> str:
    for name in ("input", "prompt"):
        if data.get(name) is not None:
            return f"`{name}` is {data[name]!r:.60}; it must be text or a list"
    if type(data.get("body")) is str:
        return "`body` is text that holds no request; name the text with --prompt '{{ body }}'"
    names = row.names
    empty = [name for name in ("body", "messages", "input", "prompt") if name in names]
    if empty:
        return f"no way to a request: `{empty[0]}` is null; fill it, or take the row out"
    there = f"its columns are {listed(names)}" if names else "it is empty"
    return (
        f"no way to a request: it has none of body, messages, input and prompt ({there}); "
        "say how with a template: --prompt '{{ COLUMN }}'"
    )


def _explained(missing: NoColumn, row: Row) -> str:
    column = missing.column
    if column in row.names:
        return (
            f"the template's column `{column}` is null; give a value for that case: "
            f"{{{{ {column} | default('…') }}}}"
        )
    return (
        f"the template's column `{column}` is missing; {nearest(column, row.names, 'the columns')}"
    )


class Draft(Struct):
    """A request in the making, or the problem that stands in its way."""

    custom_id: str
    named_by: int
    consumed: frozenset[str]  # columns that are not carried, unless [input] carry says so
    body: JsonObject | None
    written: bytes  # the body as JSON: as it is hashed, or as it is sent where the hash is known
    hash: int
    problem: str = ""


def drafter(
    maker: RequestMaker, identity: Identity, hashes: "array[int] | None" = None
) -> Callable[[Row], Draft]:
    """What makes drafts; they raise `InputError` alone.

    `hashes` are known from an earlier reading: to make them anew takes a third of the time.
    """
    make, name_of = maker.make, identity.of
    nothing = maker.consumed(NOTHING)

    def draft(row: Row) -> Draft:
        consumed = nothing
        try:
            body, consumed = make(row)
            name, named_by = name_of(row)
            if hashes is not None:
                return Draft(name, named_by, consumed, body, as_sent(body), hashes[row.row])
            data = canonical(body)
            return Draft(name, named_by, consumed, body, data, digest(data))
        except RowProblem as error:
            problem = error
        try:
            name, named_by = name_of(row)
        except RowProblem:
            name, named_by = identity.nameless(row.row)
        consumed = problem.consumed or consumed
        # Of a row without lines, what may be sent tells it from others.
        data = row.raw.strip() if row.line is not None else encode_anyhow(row.data)
        return Draft(name, named_by, consumed, None, b"", digest(data), problem.message)

    return draft


def bad_row(row: Row, draft: Draft, carried: tuple[Any, ...] = ()) -> BadRow:
    """The row as one that is never sent."""
    return BadRow(
        row=row.row,
        custom_id=draft.custom_id,
        source=row.source,
        line=row.line,
        message=draft.problem,
        hash=hash_text(draft.hash),
        carried=carried,
    )


def hash_text(number: int) -> str:
    """16 hex digits."""
    return f"{number:016x}"
