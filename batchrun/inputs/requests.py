"""One row to one request: which form it has, what of it is sent, defaults, name and hash.

The form is recognised row by row. A row of which no request can be made becomes a draft with a
problem; no other error is raised, whatever the row holds.
"""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from msgspec import Struct

from batchrun.dialects.responses import INPUT_ALTERNATIVES, REQUEST_FIELDS, TRANSPORT_FIELDS
from batchrun.dialects.setting_names import SETTINGS
from batchrun.formats.json_text import kind_in_words, shown
from batchrun.formats.printable import listed, nearest
from batchrun.inputs.forms.chat import (
    BATCH_COLUMNS,
    CHAT_SETTINGS,
    OLDER_SETTINGS,
    URL,
    batch_body,
    chat_line_body,
    chat_settings,
    has_chat_messages,
    input_items,
    is_batch_line,
    is_chat_line,
    with_settings,
)
from batchrun.inputs.forms.datasets import (
    ALPACA_COLUMNS,
    SHAREGPT_COLUMNS,
    XLAM_COLUMNS,
    from_alpaca,
    from_sharegpt,
    from_xlam_row,
    is_alpaca,
    is_xlam,
)
from batchrun.inputs.forms.tools import (
    flat_choice,
    flat_tools,
    has_other_tools,
    read_structure,
)
from batchrun.inputs.identity import FALLBACK, Identity
from batchrun.inputs.jsonl import COMPRESSIONS
from batchrun.inputs.media import changed_file
from batchrun.inputs.rows import (
    NO_COLUMNS,
    MissingColumn,
    RowProblem,
    SourceFile,
    SourceRow,
    encode,
    encode_leniently,
    encode_sorted,
)
from batchrun.inputs.template import Defaults
from batchrun.job.sections import InputJob, VariantJob
from batchrun.records import JsonObject

# The first 8 bytes of SHA-256, for which processors have instructions (rule 1 was blake2b), over
# the body as JSON with sorted keys. Rule 2 made other bodies of some rows: settings of chat rows
# were not converted, objects of the job's defaults not merged, and fewer forms known. A run that
# was begun with it keeps it for its hashes, so that no row is taken for a changed one.
HASH_RULE = 3
OLDER_HASH_RULE = 2

_FIELDS = frozenset(REQUEST_FIELDS)

# How JSON text begins, and the fields that it is read for.
_STARTS = {"{": ("structure", "text or structure"), "[": ("structure",)}

Build = Callable[[JsonObject], JsonObject]


class Form(Struct, frozen=True):
    """A form of rows: what it is called, and the columns that make up the request."""

    number: int  # its place in `FORMS`
    name: str
    columns: frozenset[str]
    has_settings: bool = False  # chat settings among its columns are converted


TEMPLATE = Form(0, "rows for a template", NO_COLUMNS)
BATCH = Form(1, "Batch lines", BATCH_COLUMNS)
CHAT_BATCH = Form(2, "Batch lines with chat requests, converted", BATCH_COLUMNS)
CHAT = Form(3, "chat rows (`messages`), converted", CHAT_SETTINGS | {"messages"}, has_settings=True)
PROMPTS = Form(4, "chat rows (`prompt` as a list)", CHAT_SETTINGS | {"prompt"}, has_settings=True)
TEXT_PROMPT = Form(5, "prompt rows", CHAT_SETTINGS | {"prompt"}, has_settings=True)
STORED_PROMPT = Form(6, "Responses bodies with a prompt object", _FIELDS - {"input"})
BOTH = Form(7, "Responses bodies with a prompt object and input", _FIELDS)
RESPONSES = Form(8, "Responses bodies", _FIELDS - {"prompt"})
ALPACA = Form(
    9,
    "Alpaca rows (`instruction`, and `input` below it)",
    CHAT_SETTINGS | ALPACA_COLUMNS,
    has_settings=True,
)
SHAREGPT = Form(
    10,
    "ShareGPT rows (`conversations`), converted",
    CHAT_SETTINGS | SHAREGPT_COLUMNS,
    has_settings=True,
)
XLAM = Form(
    11,
    "xLAM rows (`query` as input, with its `tools`)",
    CHAT_SETTINGS | XLAM_COLUMNS,
    has_settings=True,
)
PROMPT_OF_JOB = Form(12, "rows for the job's prompt object", NO_COLUMNS)
UNKNOWN = Form(13, "rows of no known form", NO_COLUMNS)
FORMS = (
    *(TEMPLATE, BATCH, CHAT_BATCH, CHAT, PROMPTS, TEXT_PROMPT, STORED_PROMPT, BOTH, RESPONSES),
    *(ALPACA, SHAREGPT, XLAM, PROMPT_OF_JOB, UNKNOWN),
)
# Columns by which forms are recognised.
_FORMS_BY = frozenset(
    {"body", "messages", "prompt", "input", "instruction", "conversations", "query"}
)
_READ = frozenset().union(*(form.columns for form in FORMS)) | {"instruction"}
_READ_BEFORE = _FIELDS | OLDER_SETTINGS | BATCH_COLUMNS | {"messages"}


class Draft(Struct):
    """A request in the making, or the problem that keeps the row from being one."""

    custom_id: str
    named_by: int
    consumed: frozenset[str]  # columns that are not carried, unless [input] carry says so
    body: JsonObject | None  # as meant; None for a bad row
    written: bytes  # the body as JSON: as it is hashed, or as it is sent where the hash is known
    hash: int
    form: Form
    problem: str = ""
    is_changed: bool = False  # an older hash rule, and the body is not as that had it
    lacks_column: bool = False  # the template's, which the row's file may have in no row


class Asked(Struct, frozen=True):
    """What is asked of a row in one of its requests, where it has several or a variant."""

    sample: int  # the first of those that are alike
    variant: str | None
    values: JsonObject  # of these, as templates see them
    defaults: Defaults  # what the variant says
    drop: tuple[str, ...] = ()


class RequestMaker:
    """Makes requests of rows as the job asks. Raises `JobError` for a bad template."""

    def __init__(
        self,
        request: JsonObject,
        input_job: InputJob,
        identity: frozenset[str],
        rule: int = HASH_RULE,
        *,
        older: bool = False,
        samples: int = 1,
        variants: Sequence[VariantJob] = (),
    ) -> None:
        """`rule`: by which the requests are hashed; `older`: they are made by rule 2 as well.

        `samples`, `variants`: what each row is asked; see `asked`.
        """
        self._older = older
        self._paths: dict[str, Path] = {}  # of the source's files, by name
        self._hashing: RequestMaker | None = None
        if rule == OLDER_HASH_RULE:
            self._hashing = RequestMaker(
                request, input_job, identity, older=True, samples=samples, variants=variants
            )
        base = self._defaults = Defaults(request, merges=not older)
        of_variants = [Defaults(one.request, merges=False, beside=base) for one in variants]
        every = [base, *of_variants]
        self.asked: list[Asked] = []  # of each row, in order; empty where it is one plain request
        self.alike = samples  # samples that one `Asked` stands for
        self.overridden: Counter[str] = Counter()  # variant to rows of which it overrode something
        self.dropped: set[str] = set()  # fields that variants took out of some row
        self._filled: tuple[JsonObject, JsonObject, JsonObject] | None = None  # see `_varied`
        if samples > 1 or variants:
            self._expand(samples, variants, of_variants)
        has_input = any(one.has_input for one in every)
        self._has_prompt = any(one.has_prompt for one in every)
        columns = frozenset[str]().union(*(one.columns for one in every))
        if self.asked:
            columns -= {"sample", "variant"} - frozenset[str]().union(*(d.of_row for d in every))
        reads_all = any(one.reads_all for one in every)
        self.media = base.media
        self._send = input_job.send
        self.has_template = has_input  # which says all that is sent
        self._sent_settings = CHAT_SETTINGS & frozenset(input_job.send)
        named = identity | frozenset(input_job.send)
        # With a template for `input` everything is carried, also what is sent besides.
        always = identity if has_input else named
        late = CHAT_SETTINGS - OLDER_SETTINGS if older else NO_COLUMNS
        self._consumed = [(form.columns - late) | always for form in FORMS]
        named |= columns
        # Columns that would be sent by their names, had the row another form or the job said so.
        data = frozenset(input_job.carry or ())
        told = named | data if not reads_all else SETTINGS
        self.unsent = [SETTINGS - form.columns - told for form in FORMS]
        if not has_input:
            named |= _READ_BEFORE if older else _READ
        # An object with one of these is a row and no wrapper around rows; None: any object is.
        own = columns if has_input else columns | _FORMS_BY
        self.row_columns: frozenset[str] | None = None if reads_all else own
        # Columns that fill templates or are sent besides, and all that may be sent; None: any.
        filling = columns | frozenset(input_job.send)
        self.fills: frozenset[str] | None = None if reads_all else filling
        self.may_use: frozenset[str] | None = None if reads_all else named
        names = {"custom_id", FALLBACK, input_job.id or FALLBACK}
        self._hashed = None if self.may_use is None else self.may_use | names  # of a bad row
        self.template_columns = columns

    def _expand(
        self, samples: int, variants: Sequence[VariantJob], defaults: Sequence[Defaults]
    ) -> None:
        base = self._defaults
        of_variants: list[tuple[str | None, Defaults, tuple[str, ...]]] = [
            (one.name, made, one.drop) for one, made in zip(variants, defaults, strict=True)
        ]
        if any("sample" in one.reads for one in (base, *defaults)):
            self.alike = 1
        self.asked = [
            Asked(sample, name, _values(sample, name), made, drop)
            for name, made, drop in of_variants or [(None, Defaults({}, beside=base), ())]
            for sample in range(0, samples, self.alike)
        ]
        for one in (base, *(asked.defaults for asked in self.asked)):
            one.is_expanded = True

    def look_beside(self, files: Sequence[SourceFile]) -> None:
        """Paths of images and documents are relative to these files."""
        self._paths = {file.name: file.path for file in files if isinstance(file.path, Path)}
        self.media.look_beside(files)
        if self._hashing is not None:
            self._hashing.look_beside(files)

    def draft(
        self,
        row: SourceRow,
        identity: Identity,
        known_hash: int | None = None,
        asked: Asked | None = None,
    ) -> Draft:
        """The row's request, or one of them. Raises `InputError` alone.

        A hash that is known from an earlier reading saves a third of the time.
        """
        form, data, media, lacks = UNKNOWN, row.data or {}, self.media, False
        media.start_row(row.source)
        hashing = self._hashing
        before = hashing.draft(row, identity, known_hash, asked) if hashing is not None else None
        try:
            form, build = self._form(row, data)
            body = self._body(data, form, build, asked)
            name, named_by = identity.name(row)
            consumed, is_changed = self._consumed[form.number], False
            if known_hash is None:
                written = encode_sorted(body)
                known_hash = _digest(written)
            else:
                if media.has_path and before is None and _digest(encode_sorted(body)) != known_hash:
                    raise changed_file(row)
                written = encode(body)
            if before is not None:
                is_changed = before.hash != known_hash
                consumed, known_hash = before.consumed, before.hash
            return Draft(name, named_by, consumed, body, written, known_hash, form, "", is_changed)
        except MissingColumn as missing:
            problem = _explained(missing, row)
            problem += self._rows_within(row, missing.column)
            lacks = missing.column not in row.names
        except RowProblem as error:
            problem = error.message
        except RecursionError:
            problem = "nested too deeply"
        if before is not None and before.body is not None:
            return before
        if asked is not None and asked.variant and self._filled and self._filled[0] is data:
            problem = f"variant {asked.variant}: {problem}"
        name, named_by = identity.name_or_number(row)
        # A row of Parquet has no line; what may be sent of it is hashed.
        known = row.raw.strip() if row.line is not None else encode_leniently(self._part(data))
        key = _digest(known) if before is None else before.hash
        if media.has_path and before is None and known_hash not in (None, key):
            raise changed_file(row)
        consumed = self._consumed[form.number]
        return Draft(name, named_by, consumed, None, b"", key, form, problem, lacks_column=lacks)

    def _part(self, data: JsonObject) -> JsonObject:
        """What may be sent of a row, or names it."""
        names = self._hashed
        return data if names is None else {name: data[name] for name in data if name in names}

    def _form(self, row: SourceRow, data: JsonObject) -> tuple[Form, Build]:
        """The row's form, and what makes a body of it."""
        if row.problem:
            raise RowProblem(row.problem)
        older = self._older
        if self.has_template:
            return TEMPLATE, lambda _: {}
        if is_batch_line(data):
            if data.get("url") != URL and not older and is_chat_line(data):
                return CHAT_BATCH, partial(chat_line_body, send=self._send)
            return BATCH, batch_body
        has_input, prompt = _is_input(data.get("input")), data.get("prompt")
        if data.get("messages") is not None:
            return CHAT, partial(_from_chat, "messages", older)
        if type(prompt) is list:
            return PROMPTS, partial(_from_chat, "prompt", older)
        if not older and data.get("instruction") is not None and is_alpaca(data):
            return ALPACA, from_alpaca
        if type(prompt) is dict:
            return (BOTH if has_input else STORED_PROMPT), _from_fields
        if has_input:
            return RESPONSES, _from_fields
        if type(prompt) is str:
            return TEXT_PROMPT, partial(_from_chat, "prompt", older)
        if self._has_prompt:
            return PROMPT_OF_JOB, lambda _: {}
        if not older and data.get("conversations") is not None:
            return SHAREGPT, from_sharegpt
        if not older and is_xlam(data):
            return XLAM, from_xlam_row
        raise RowProblem(_no_form(data, row) + self._rows_within(row))

    def _rows_within(self, row: SourceRow, column: str | None = None) -> str:
        """What to do where the one object of a file has several lists that may be the rows."""
        path = self._paths.get(row.source)
        if row.line != 1 or row.data is None or path is None or column in row.data:
            return ""
        if _has_more(path, row.raw):
            return ""
        lists = {n: v for n, v in row.data.items() if type(v) is list and v and type(v[0]) is dict}
        for name in sorted(lists, key=lambda name: -len(lists[name])):
            if column is not None and column not in lists[name][0]:
                continue
            program = (
                "import json; [print(json.dumps(row)) for row in "
                f'json.load(open({json.dumps(str(path))}, "rb"))[{json.dumps(name)}]]'
            )
            unpacked = " (unpack the file first)" if path.suffix in COMPRESSIONS else ""
            return (
                f"; if the rows are in its list `{name}`, give them as a file of their own"
                f"{unpacked}: python -c {shlex.quote(program)} > rows.jsonl"
            )
        return ""

    def _body(
        self, data: JsonObject, form: Form, build: Build, asked: Asked | None = None
    ) -> JsonObject:
        if asked is not None:
            body = self._varied(data, form, build, asked)
        else:
            body = build(data)
            if self._send:
                self._send_besides(body, data, form)
            self._defaults.fill(body, data)
        for name in TRANSPORT_FIELDS:
            if name in body:
                del body[name]
        if form is TEMPLATE and not self._older:
            given = body.get("input")
            if type(given) is list and has_chat_messages(given):
                body["input"] = input_items(given, "input", takes_items=True)
            tools = body.get("tools")
            if type(tools) is list and has_other_tools(tools):
                body["tools"] = flat_tools(tools)
        _check(body, data)
        return body

    def _varied(self, data: JsonObject, form: Form, build: Build, asked: Asked) -> JsonObject:
        """The body with what a variant says; what its requests have in common is made once."""
        base, filled = self._defaults, self._filled
        if base.reads or filled is None or filled[0] is not data:
            base.asked = asked.values
            common = build(data)
            if self._send:
                self._send_besides(common, data, form)
            own = {**common}
            base.fill(common, data)
            filled = self._filled = data, own, common
        _, own, common = filled
        body = {**common}
        for path in asked.drop:
            if _drop(body, path):
                self.dropped.add(path)
        asked.defaults.asked = asked.values
        asked.defaults.override(body, data)
        if own and asked.sample == 0 and asked.variant is not None:
            self.overridden[asked.variant] += any(
                _is_overridden(value, body.get(name)) for name, value in own.items()
            )
        return body

    def _send_besides(self, body: JsonObject, data: JsonObject, form: Form) -> None:
        """Adds the columns that the job sends besides; those of chat requests are converted."""
        settings = self._sent_settings if not self._older else NO_COLUMNS
        for name in self._send:
            if name in settings or data.get(name) is None:
                continue
            value = _sent_besides(name, data[name])
            if self._older:
                body[name] = value
            else:
                with_settings(body, {name: value})
        if settings and not form.has_settings:
            asked = {name: data[name] for name in settings if name in data}
            with_settings(body, chat_settings(asked))


def _values(sample: int, variant: str | None) -> JsonObject:
    return {"sample": sample} if variant is None else {"sample": sample, "variant": variant}


def _drop(body: JsonObject, path: str) -> bool:
    """Takes a dotted field out of a body, whose objects stay as they are; whether it was there."""
    name, _, rest = path.partition(".")
    if name not in body:
        return False
    if not rest:
        del body[name]
        return True
    inner = body[name]
    if type(inner) is not dict:
        return False
    body[name] = inner = {**inner}
    return _drop(inner, rest)


def _is_overridden(own: Any, made: Any) -> bool:
    """Whether what a row asks for is not asked for: a null asks for nothing."""
    if type(own) is dict and type(made) is dict:
        return any(_is_overridden(inner, made.get(name)) for name, inner in own.items())
    return own is not None and own is not made and bool(own != made)


TRANSPORT_COLUMNS = frozenset(TRANSPORT_FIELDS)


def _digest(data: bytes) -> int:
    return int.from_bytes(sha256(data).digest()[:8], "big")


def _from_chat(name: str, older: bool, data: JsonObject) -> JsonObject:
    given = data[name]
    is_text = name == "prompt" and type(given) is str
    items = given if is_text else input_items(given, name)
    return {"input": items, **chat_settings(data, older=older)}


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
        what = kind_in_words(given)
        raise RowProblem(f"`input` is {what}, {shown(given)}; it must be text or a list of items")
    elif type(given) is list and any(type(one) is list for one in given):
        raise RowProblem(
            "`input` is a list of lists; it must be a list of items: {{ COLUMN | sum(start=[]) }} "
            "makes one list of the turns in a column"
        )
    if model is None:
        if type(body.get("prompt")) is dict:
            return
        own = "; the row's column `model` is not sent unless [input] send names it"
        hint = own if data.get("model") is not None else ""
        raise RowProblem(f"no model: give --model NAME (model in [request]){hint}")
    if type(model) is not str or not model:
        raise RowProblem(f"`model` is {shown(model)}; it must be a name")


def _no_form(data: JsonObject, row: SourceRow) -> str:
    for name in ("input", "prompt"):
        if data.get(name) is not None:
            return f"`{name}` is {shown(data[name])}; it must be text or a list"
    if type(data.get("body")) is str:
        return "`body` is text that holds no request; name the text with --prompt '{{ body }}'"
    for name in ("body", "messages", "input", "prompt"):
        if name in row.names:
            return f"no request can be made of it: `{name}` is null; fill it, or take the row out"
    there = f"its columns are {listed(row.names)}" if row.names else "it is empty"
    return (
        f"no request can be made of it without a template: it has none of body, messages, input "
        f"and prompt ({there}); give a template, such as --prompt '{{{{ {_meant(data)} }}}}'"
    )


def _meant(data: JsonObject) -> str:
    """What a template may say: the column of messages or of turns of these, or the longest text."""
    texts = {"COLUMN": 0}
    for name, value in data.items():
        if not name.isidentifier():
            continue
        if type(value) is str:
            texts[name] = len(value) + 1
        for path, items in ((name, value), (f"{name} | sum(start=[])", _first(value))):
            first = _first(items)
            if type(first) is dict and "role" in first and "content" in first:
                return path
    return max(texts, key=texts.__getitem__)


def _first(value: Any) -> Any:
    return value[0] if type(value) is list and value else None


def _has_more(path: Path, raw: bytes) -> bool:
    """Whether a further row follows this one, the first of a file that is not packed."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(raw) + 64)
    except OSError:
        return False
    return begin.startswith(raw.strip()) and begin[len(raw.strip()) :].lstrip()[:1] == b"{"


def _explained(missing: MissingColumn, row: SourceRow) -> str:
    column = missing.column
    if column in row.names:
        return (
            f"the template's column `{column}` is null; give a value for that case: "
            f"{{{{ {column} | default('…') }}}}"
        )
    return f"{missing.message}; {nearest(column, row.names, 'the columns')}"
