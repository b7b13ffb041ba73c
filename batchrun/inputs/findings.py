"""What the survey notices about rows that can be sent and perhaps should not be, in words.

Settings that nothing sends, empty inputs, answers that are sent along, templates that say the same
for every row. Nothing here grows with the rows.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from msgspec import Struct, field

from batchrun.dialects.responses import REQUEST_FIELDS
from batchrun.dialects.setting_names import SAME, unknown_fields
from batchrun.formats.amounts import plural
from batchrun.formats.json_text import shown
from batchrun.formats.printable import listed
from batchrun.inputs.forms.chat import CHAT_SETTINGS, CONVERTED, read_body, unsent_fields
from batchrun.inputs.forms.tools import fit_name, read_structure, tool_shape
from batchrun.inputs.requests import (
    BATCH,
    CHAT,
    CHAT_BATCH,
    FORMS,
    PROMPTS,
    RESPONSES,
    SHAREGPT,
    TEMPLATE,
    TRANSPORT_COLUMNS,
    XLAM,
    Draft,
    RequestMaker,
)
from batchrun.inputs.rows import RowProblem, SourceRow
from batchrun.job.sections import InputJob, VariantJob
from batchrun.records import JsonObject

_SHORT = 60  # characters of a value that may stand in metadata
_SEVERAL = 3  # rows that a column of the template is the same in, others not
_INPUTS = ("input", "prompt", "messages", "contents", "conversation")
_AS_INSTRUCTIONS = {name for name, same in SAME.items() if same == "instructions"}
# `{name}`, `${name}`, `<name>`, `[name]` or `%(name)s` where a template has no braces of its own.
_HOLES = re.compile(r"\{([^{}\n]{1,80})\}|<([^<>\n]{1,80})>|\[([^\[\]\n]{1,80})\]|%\(([^()\n]+)\)s")
_JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)


# Forms of rows with chat messages, to the column that holds them.
_CHATS = {CHAT.number: "messages", PROMPTS.number: "prompt", SHAREGPT.number: "conversations"}
_MESSAGES = _CHATS | {
    CHAT_BATCH.number: "body.messages",
    BATCH.number: "body.input",
    RESPONSES.number: "input",
}
_PARTS = {
    "data_url": ("input_image", "image_url"),
    "file_data": ("input_file", "file_data"),
}
_AS_TEXT = re.compile(r"\|\s*(data_url|file_data)\b")


class _Seen(Struct):
    rows: int = 0
    first: str = ""  # the first of these rows: file and line, or number

    def note(self, row: SourceRow) -> None:
        self.rows += 1
        if self.rows == 1:
            self.first = str(row)


class Findings(Struct):
    """Counts row by row; `warnings` and `refusal` say what was found."""

    request: JsonObject
    maker: RequestMaker
    ids: frozenset[str]  # columns that name rows
    send: frozenset[str]
    forms: bytearray = field(default_factory=bytearray)  # the number of each good row's form
    columns: tuple[str, ...] = ()  # of the first row
    sample: JsonObject = field(default_factory=dict)  # the first row
    unsent: dict[str, _Seen] = field(default_factory=dict)  # by column
    of_bodies: dict[str, _Seen] = field(default_factory=dict)  # by field of a chat Batch line
    transport: dict[str, _Seen] = field(default_factory=dict)
    of_messages: dict[str, _Seen] = field(default_factory=dict)  # fields that are not sent
    body_fields: set[str] = field(default_factory=set)  # that chat Batch lines have
    shapes: dict[str, _Seen] = field(default_factory=dict)  # of tools, by whose they are
    renamed: dict[str, str] = field(default_factory=dict)  # one tool whose name was changed
    is_text: bool = False  # some input is
    empty: _Seen = field(default_factory=_Seen)
    answered: _Seen = field(default_factory=_Seen)
    answered_in: str = ""  # what holds the messages of the first such row, as a template says it
    changed: _Seen = field(default_factory=_Seen)
    same: int | None = None  # the hash of all requests so far; None: they differ
    differ: bool = False  # the rows themselves

    def add(self, row: SourceRow, draft: Draft) -> None:
        """Counts a row in."""
        body, form, data = draft.body, draft.form, row.data
        if body is None:
            return
        if data is not None:
            names = self.maker.unsent[form.number]
            if not names.isdisjoint(data):
                self._note_unsent(row, data, names)
            if form.number in _CHATS:
                self._note_messages(row, data.get(_CHATS[form.number]))
            elif form is TEMPLATE:
                self._note_template(row, data, body)
            if form is CHAT_BATCH:
                self._note_body(row, data)
            elif form is not BATCH and "tools" in data and "tools" in body:
                self._note_tools(row, data, is_xlam=form is XLAM)
        given = body.get("input")
        if type(given) is str:
            self.is_text = True
            if not given or given.isspace():
                self.empty.note(row)
        elif type(given) is list:
            if not any(map(_holds_anything, given)):
                self.empty.note(row)
            elif _is_answer(given[-1]):
                self.answered.note(row)
                if not self.answered_in and form.number in _MESSAGES:
                    self.answered_in = _MESSAGES[form.number]
        if draft.is_changed:
            self.changed.note(row)
        if form is TEMPLATE and (self.same is not None or len(self.forms) == 1):
            self._compare(row, draft.hash)

    def _compare(self, row: SourceRow, key: int) -> None:
        """Whether all rows so far came to the same request, and whether they are the same."""
        known = {name: one for name, one in (row.data or {}).items() if name not in self.ids}
        if len(self.forms) == 1:
            self.same, self.sample, self.columns = key, known, row.names
        elif key != self.same:
            self.same = None
        elif not self.differ:
            unread = set(row.columns) - self.ids - (self.maker.may_use or set())
            self.differ = bool(unread) or known != self.sample

    def _note_unsent(self, row: SourceRow, data: JsonObject, names: frozenset[str]) -> None:
        for name, value in data.items():
            if name not in names or value is None:
                continue
            if name not in TRANSPORT_COLUMNS:
                self.unsent.setdefault(name, _Seen()).note(row)
            elif value:
                self.transport.setdefault(name, _Seen()).note(row)

    def _note_body(self, row: SourceRow, data: JsonObject) -> None:
        body = read_body(data)
        self._note_messages(row, body.get("messages"))
        self.body_fields.update(body)
        for name, value in body.items():
            if name in TRANSPORT_COLUMNS and value:
                self.transport.setdefault(name, _Seen()).note(row)
            elif name == "logprobs" and type(value) is bool:
                continue
            elif value is not None and name not in CONVERTED and name not in self.send:
                self.of_bodies.setdefault(name, _Seen()).note(row)
        if "tools" in body:
            self._note_tools(row, body, is_xlam=False)

    def _note_messages(self, row: SourceRow, messages: Any, sent: Collection[str] = ()) -> None:
        """`sent`: fields that are sent all the same."""
        if type(messages) is str:
            if not messages[:20].lstrip().startswith("["):
                return  # any text that fills a template comes here
            try:
                messages = read_structure(messages, "messages")
            except RowProblem:
                return
        for name in unsent_fields(messages):
            if name not in sent:
                self.of_messages.setdefault(name, _Seen()).note(row)

    def _note_template(self, row: SourceRow, data: JsonObject, body: JsonObject) -> None:
        """Messages and tools in columns that fill a template which gives a list."""
        items, has_tools = body.get("input"), type(body.get("tools")) is list
        if type(items) is list:
            sent = {name for item in items if type(item) is dict for name in item}
            for name in self.maker.template_columns:
                self._note_messages(row, data.get(name), sent)
        for name in self.maker.template_columns if has_tools else ():
            if type(data.get(name)) is list:
                self._note_tools(row, {"tools": data[name]}, is_xlam=False)

    def _note_tools(self, row: SourceRow, data: JsonObject, *, is_xlam: bool) -> None:
        try:
            tools = read_structure(data["tools"], "tools")
        except RowProblem:
            return
        is_noted = False
        for tool in tools if type(tools) is list else ():
            shape = tool_shape(tool)
            if shape is None:
                continue
            if not is_noted:
                self.shapes.setdefault(shape, _Seen()).note(row)
                is_noted = True
            if self.renamed:
                break
            name = tool["name"]
            if (is_xlam or "parameters" in tool) and fit_name(name) != name:
                self.renamed[name] = fit_name(name)

    @property
    def rows(self) -> int:
        """Those that can be sent."""
        return len(self.forms)

    def forms_in_words(self) -> dict[str, int]:
        """What the rows were taken for, to their number."""
        counts = Counter(self.forms)
        return {form.name: counts[form.number] for form in FORMS if counts[form.number]}

    def refusal(self) -> str | None:
        """Why a template cannot be meant; None where it can."""
        if not self.maker.has_template or not self.rows:
            return None
        others = [name for name in self.columns if name not in self.ids]
        if self.empty.rows == self.rows:
            what = "every row has an empty input"
        elif self._says_the_same(others):
            what = f"all {self.rows:,} rows make the same request"
        else:
            return None
        meant = self._meant(others)
        how = f"write {meant} where its column belongs" if meant else "name a column in {{ }}"
        apart = "" if "empty" in what else self._how_to_differ(others)
        return (
            f"request.input is {shown(self.request.get('input'))}: {what}. In --prompt (input in "
            f"[request]) {how}; the columns are {listed(self.columns)}{apart}"
        )

    def _how_to_differ(self, others: list[str]) -> str:
        """What makes requests of one prompt differ; empty where no short column is known."""
        names = sorted(self.ids & set(self.columns))
        for name in others:  # other values may be none that JSON can express
            value = self.sample.get(name)
            if type(value) is int or (type(value) is str and 0 < len(value) <= _SHORT):
                names.append(name)
        if not names:
            return ""
        return (
            "; to send the same prompt for every row, make the requests different: "
            f"--set metadata.row='row {_reference(names[0])}'"
        )

    def _says_the_same(self, others: list[str]) -> bool:
        """Whether the template makes one request of rows that are not the same themselves."""
        if self.rows < 2 or self.same is None:
            return False
        if self.maker.template_columns.isdisjoint(self.columns):
            return bool(others)
        return self.differ and self.rows >= _SEVERAL  # a few may be meant so

    def _meant(self, columns: list[str]) -> str:
        """The `{{ column }}` that was probably meant; empty where there is none."""
        text = " ".join(_texts(self.request.get("input")))
        columns = [name for name in columns if name not in self.maker.template_columns] or columns
        for hole in (*_holes(text), *self.maker.template_columns):
            if near := get_close_matches(hole, columns, n=1, cutoff=0.7):
                return _reference(near[0])
        for name in columns:
            if re.search(rf"\b{re.escape(name)}\b", text):
                return _reference(name)
        texts = {n: len(v) for n in columns if type(v := self.sample.get(n)) is str}
        named = max(texts, key=texts.__getitem__, default=columns[0] if columns else "")
        return _reference(named) if named else ""

    def warnings(self) -> Iterator[str]:
        """What is sent in another way than somebody might expect."""
        yield from unknown_fields(list(self.request))
        yield from self._holes_left()
        yield from self._settings_left()
        template = self.request.get("input")
        if self.is_text and type(template) is str and (found := _AS_TEXT.search(template)):
            part, key = _PARTS[found[1]]
            yield (
                f"request.input is text that holds the output of {found[1]}: the model reads it as "
                f"text, which costs as many tokens. Put it into the {key} of an {part}, in a list "
                "(examples/captions.toml)"
            )
        for name, seen in self.transport.items():
            yield (
                f"`{name}` ({self._rows(seen)}) is set by batchrun itself; --mode says how "
                "requests are made"
            )
        if self.of_bodies:
            yield (
                f"{self._counted(self.of_bodies)}: fields of chat requests that the Responses API "
                f"does not have, not sent; {_send(self.of_bodies)} sends them as they are"
            )
        if self.of_messages:
            yield (
                f"{self._counted(self.of_messages)}: fields of chat messages that the Responses "
                "API does not have, not sent; write what the model must know of them into the "
                "content"
            )
        for shape, seen in self.shapes.items():
            if XLAM.number in self.forms:
                continue
            yield f"{self._rows(seen)}: tools in the form of {shape} are converted"
        for name, fit in self.renamed.items():
            yield (
                f"names of tools are sent with _ for characters that the API refuses, such as "
                f"{shown(fit)} for {shown(name)}"
            )
        if self.empty.rows:
            yield f"{self._rows(self.empty)}, the first {self.empty.first}: the input is empty"
        if self.answered.rows:
            # A Batch line has its model beside its messages.
            model = " --set model='{{ body.model }}'" if "body." in self.answered_in else ""
            yield (
                f"{self._rows(self.answered)}, the first {self.answered.first}: the last message "
                "is the assistant's, as in files for fine-tuning, and is sent along. To leave it "
                f"out: --prompt '{{{{ {self.answered_in or 'messages'}[:-1] }}}}'{model}, with "
                "--send COLUMN for each tool or setting that the rows have"
            )
        if self.same is not None and self.differ and self.rows > 1 and self.refusal() is None:
            yield f"all {self.rows:,} rows make the same request, though their columns differ"
        if self.changed.rows:
            yield (
                f"{self._rows(self.changed)} would be sent in another way than by the version that "
                "began this run directory (settings converted, objects of [request] merged); "
                "complete rows stay as they are"
            )

    def _settings_left(self) -> Iterator[str]:
        columns = {name: seen for name, seen in self.unsent.items() if name not in _INPUTS}
        known = {n: s for n, s in columns.items() if n in REQUEST_FIELDS or n in CHAT_SETTINGS}
        said = {n: s for n, s in columns.items() if n in _AS_INSTRUCTIONS and n not in known}
        others = {n: s for n, s in columns.items() if n not in known and n not in said}
        data = "if they are data, list them in --carry, with all other columns to carry"
        if known:
            yield (
                f"{self._counted(known)}: named like settings of a request, and not sent; "
                f"{_send(known)} sends them, or {data}"
            )
        for name, seen in said.items():
            yield (
                f"{self._counted({name: seen})}: not sent; --instructions "
                f"'{_reference(name)}' sends it, or {data.replace('them', 'it', 1)}"
            )
        if others:
            yield (
                f"{self._counted(others)}: named like settings of other APIs, and not sent; the "
                f"Responses API has no such fields, {_send(others)} sends them as they are, or "
                f"{data}"
            )
        for name in _INPUTS:
            if name in self.unsent:
                yield (
                    f"{self._counted({name: self.unsent[name]})}: not sent; use it in --prompt "
                    f"as {_reference(name)}, or {data.replace('them', 'it', 1)}"
                )

    def _holes_left(self) -> Iterator[str]:
        columns = set(self.columns)
        for key, value in self.request.items():
            for hole in dict.fromkeys(h for text in _texts(value) for h in _holes(text, "{")):
                if hole in columns:
                    yield (
                        f"request.{key} holds {{{hole}}}, which is sent as it is; for the value of "
                        f"the column write {_reference(hole)}"
                    )

    def _counted(self, seen: dict[str, _Seen]) -> str:
        counts = {one.rows for one in seen.values()}
        if len(counts) == 1:
            return f"{', '.join(seen)} ({self._rows(next(iter(seen.values())))})"
        return ", ".join(f"{name} ({self._rows(one)})" for name, one in seen.items())

    def _rows(self, seen: _Seen) -> str:
        is_all = seen.rows == self.rows and self.rows > 1
        return f"all {self.rows:,} rows" if is_all else plural(seen.rows, "row")


def _send(names: Iterable[str]) -> str:
    return " ".join(f"--send {name}" for name in names)


def _reference(name: str) -> str:
    inner = name if name.isidentifier() else f"row[{shown(name)}]"
    return f"{{{{ {inner} }}}}"


def _texts(value: Any) -> Iterator[str]:
    """The strings of a default, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _holes(text: str, start: str = "") -> Iterator[str]:
    """Names in brackets outside of the template's own; `start`: in these brackets alone."""
    for found in _HOLES.finditer(_JINJA.sub(" ", text)):
        if found[0].startswith(start):
            yield next(filter(None, found.groups()), "").strip()


def _holds_anything(item: Any) -> bool:
    """Whether an item of an input is more than a message without content."""
    if type(item) is not dict or "content" not in item or item.get("type") not in (None, "message"):
        return True
    content = item["content"]
    if type(content) is list:
        return any(type(part) is not dict or part.get("text") != "" for part in content)
    return bool(content) and not (type(content) is str and content.isspace())


def _is_answer(item: Any) -> bool:
    if type(item) is not dict:
        return False
    return item.get("role") == "assistant" or item.get("type") in (
        "function_call",
        "custom_tool_call",
    )


def make_findings(request: JsonObject, maker: RequestMaker, job: InputJob) -> Findings:
    """For one pass over the rows."""
    ids = frozenset({"custom_id", "id", *filter(None, (job.id,))})
    return Findings(request, maker, ids, frozenset(job.send))


class VariantFindings:
    """What is noticed about the requests of a row beside each other: samples and variants."""

    def __init__(self, maker: RequestMaker, samples: int, variants: Sequence[VariantJob]) -> None:
        self._maker, self._samples, self._variants = maker, samples, variants
        maker.overridden.clear()  # rows may have been drafted before
        self._per_variant = samples // maker.alike  # drafts
        self._rows = 0  # that can be sent in some variant
        self._cold = 0  # requests, samples that are alike counted once
        self._requests = 0  # the same
        # Pairs of variants whose requests have all been the same so far.
        self._same = [
            (one, other)
            for other in range(len(variants))
            for one in range(other)
            if variants[one].endpoint == variants[other].endpoint
        ]

    def add(self, drafts: Sequence[Draft]) -> None:
        """All drafts of a row: of each variant one for each sample, or one for all of them."""
        bodies = [draft.body for draft in drafts if draft.body is not None]
        if not bodies:
            return
        self._rows += 1
        self._requests += len(bodies)
        if self._samples > 1:
            self._cold += sum([body.get("temperature") == 0 for body in bodies])
        if self._same:
            each = self._per_variant
            self._same = [
                (one, other)
                for one, other in self._same
                if drafts[one * each].hash == drafts[other * each].hash
            ]

    def warnings(self) -> Iterator[str]:
        """What may be meant otherwise."""
        names = [variant.name for variant in self._variants]
        known = set[str]()
        for variant in self._variants:
            unknown = [key for key in variant.request if key not in known]
            known.update(unknown)
            for said in unknown_fields(unknown):
                yield f"variant {variant.name}: {said}"
        if self._cold:
            share = "" if self._cold == self._requests else f" of {self._cold / self._requests:.0%}"
            yield (
                f"{self._samples:,} samples are asked{share} at temperature 0, at which they are "
                "mostly the same"
            )
        for one, other in self._same if self._rows else ():
            yield (
                f"the variants {names[one]} and {names[other]} send the same requests to the same "
                "endpoint"
            )
        for name in names:
            if rows := self._maker.overridden[name]:
                of = f"{plural(rows, 'row')} of {self._rows:,}"
                yield f"variant {name} overrides settings of {of}"
        for variant in self._variants:
            for path in variant.drop:
                if path not in self._maker.dropped:
                    yield f"variant {variant.name} drops {path}, which no request has"
