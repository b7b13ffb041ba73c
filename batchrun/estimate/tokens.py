"""The tokens of requests: their text as a model reads it, counted while the plan reads the source.

What a model reads besides text is noted and never guessed at: images, files, stored context, what
hosted tools bring in. Any body can be read.

The home of bpe-openai, whose vocabularies are in its package: nothing here touches the network.

Memory: 6 bytes a row, 4 more for a second vocabulary. Tools, schemas and instructions that many
rows share are counted once.
"""

import json
import re
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import compress
from typing import Any, NamedTuple

from msgspec import Struct, field

from batchrun.errors import InputError
from batchrun.formats.json_text import as_utf8
from batchrun.inputs.rows import encode
from batchrun.pricing.price_list import spellings
from batchrun.records import JsonObject

_TEXTS = ("text", "refusal")  # of a part of a message
_ITEM_TEXTS = ("name", "arguments", "input", "output")  # of a call or of its result
_STORED = ("prompt", "previous_response_id", "conversation")
_OWN_TOOLS = ("function", "custom")  # the others run, and read, at the provider
_PRIVATE = ("encrypted_content", "file_data", "image_url", "file_id", "file_url", "data")


class BodyText(Struct):
    """What a request says to the model; each text is counted by itself."""

    own: list[str] = field(default_factory=list)  # texts of this row
    shared: list[str] = field(default_factory=list)  # that many rows are likely to have
    messages: int = 0
    unseen: bool = False  # the model reads more than these texts
    hosted: bool = False  # it may use tools that are billed by the piece

    def add_item(self, item: Any) -> None:
        """An item of the input, or all of it as one text."""
        if type(item) is str:
            item = {"role": "user", "content": item}
        if type(item) is not dict:
            self.unseen = True
            return
        self.messages += 1
        kind = item.get("type")
        if kind == "item_reference":
            self.unseen = True
        elif "role" in item or kind == "message":
            texts = self.shared if item.get("role") in ("system", "developer") else self.own
            self._add_content(texts, item.get("content"))
        elif kind == "reasoning":
            self._add_content(self.own, item.get("summary"))
            self._add_content(self.own, item.get("content"))
            self.unseen |= item.get("encrypted_content") is not None
        elif any(name in item for name in _ITEM_TEXTS):
            for name in _ITEM_TEXTS:
                self._add_content(self.own, item.get(name))
        else:
            public = {name: value for name, value in item.items() if name not in _PRIVATE}
            self.unseen |= len(public) < len(item)
            self.own.append(_compact(public))

    def _add_content(self, texts: list[str], content: Any) -> None:
        """A text, or a list of parts."""
        for part in _listed(content):
            found = [part]
            if type(part) is not str:
                named = [part.get(name) for name in _TEXTS] if type(part) is dict else []
                found = [text for text in named if type(text) is str]
            texts += found
            self.unseen |= not found


def read_body_text(body: JsonObject) -> BodyText:
    """The texts of a request body."""
    found = BodyText()
    for item in _listed(body.get("input")):
        found.add_item(item)
    instructions = body.get("instructions")
    if type(instructions) is str:
        found.shared.append(instructions)
        found.messages += 1
    tools = body.get("tools")
    for tool in tools if type(tools) is list else ():
        if type(tool) is dict and tool.get("type") not in _OWN_TOOLS:
            found.unseen = found.hosted = True
        found.shared.append(_compact(tool))
    text = body.get("text")
    form = text.get("format") if type(text) is dict else None
    if type(form) is dict and form.get("schema") is not None:
        found.shared.append(_compact(form["schema"]))
    found.unseen |= any(body.get(name) is not None for name in _STORED)
    return found


def _listed(value: Any) -> list[Any]:
    """A list; a text as a list of one; anything else as an empty one."""
    return value if type(value) is list else [value] if type(value) is str else []


def _compact(value: Any) -> str:
    try:
        return encode(value).decode("utf-8", "replace")
    except RecursionError:
        return json.dumps(str(value)[:1000])


O200K, CL100K = "o200k_base", "cl100k_base"
BYTES = "bytes/4"  # the rule where the extra `tokens` is not installed
# Another maker's vocabulary is none of these; measured, texts are up to a fifth more in it.
OTHER_FACTOR = 1.2
_CL100K = re.compile(r"gpt-(4|3\.5|35)($|-)")
_O200K = re.compile(r"(chatgpt-|codex-|computer-use-|o\d($|-)|gpt-(?!(4|3\.5|35)($|-)))")

Count = Callable[[str], int]


class Vocabulary(NamedTuple):
    """What the texts of a model are counted in."""

    name: str
    factor: float  # what the count is multiplied by


def vocabulary_of(model: str | None) -> Vocabulary:
    """A model is known by the `spellings` of its name, as it is where its price is looked for."""
    for _, name in spellings(model or ""):
        if _CL100K.match(name):
            return Vocabulary(CL100K, 1.0)
        if _O200K.match(name):
            return Vocabulary(O200K, 1.0)
    return Vocabulary(O200K, OTHER_FACTOR)


def counter(vocabulary: str) -> Count:
    """Counts the tokens of a text; lone surrogates, which no tokenizer takes, as question marks."""
    if vocabulary == BYTES:
        return _by_bytes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its import reads data the old way
        from bpe_openai._bindings import (  # noqa: PLC0415 - its face refuses long texts
            tokenizer_for_encoding,
        )

    count: Count = tokenizer_for_encoding(vocabulary).count

    def counted(text: str) -> int:
        try:
            return count(text)
        except UnicodeEncodeError:
            return count(as_utf8(text))

    return counted


def _by_bytes(text: str) -> int:
    size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    return (size + 3) // 4


MESSAGE_TOKENS = 4  # around each message: its role, its begin and its end
REQUEST_TOKENS = 3  # before the answer
_MAX_KINDS = 2**16
_MAX_CACHED = 10_000  # shared texts and names of models
_MAX_TOKENS = 2**32 - 1
_MAX_OUTPUT = 2**40  # a limit above it is none
_NO_ROW = 0  # the kind of rows that cannot be sent
_INVERTED = bytes([1]) + bytes(255)  # marks of complete rows to marks of the others


class Kind(Struct, frozen=True):
    """What rows may have in common besides the length of their text."""

    model: str | None
    max_output_tokens: int | None = None
    service_tier: str | None = None
    messages: int = 0
    unseen: bool = False  # the model reads more than was counted
    hosted: bool = False  # tools that are billed by the piece
    reasons: bool = False  # the request says how the model is to reason

    @property
    def form_tokens(self) -> int:
        """Around the texts of a row."""
        return MESSAGE_TOKENS * self.messages + REQUEST_TOKENS


class CountedRows(NamedTuple):
    """Rows that are alike."""

    kind: Kind
    model: str | None  # that they are counted and priced for; null: they name none
    rows: int
    text_tokens: int  # of each, in the vocabulary
    input_tokens: int  # of each, as it will be billed


class TokenCounts:
    """The tokens of each request of a source, gathered while the plan reads it."""

    def __init__(self, models: Sequence[str] = (), *, by_bytes: bool | None = None) -> None:
        """Counts for `models`, whatever rows ask for; without any, for the model of each row.

        `by_bytes`: by the rule instead of a vocabulary; null: where there is no vocabulary.
        """
        self._by_bytes = find_spec("bpe_openai") is None if by_bytes is None else by_bytes
        self.vocabulary = lru_cache(_MAX_CACHED)(self._find_vocabulary)
        self._asked = tuple(dict.fromkeys(self.vocabulary(model).name for model in models))
        self._counters: dict[str, tuple[Count, Count]] = {}  # for own texts, for shared ones
        self._kinds = [Kind(None)]
        self._numbers: dict[Kind, int] = {}
        self._kind_of = array("H")
        self._tokens = tuple(array("I") for _ in self._asked or ("of each row",))
        self._last: JsonObject | None = None  # samples of a row may share their body

    def _find_vocabulary(self, model: str | None) -> Vocabulary:
        return Vocabulary(BYTES, 1.0) if self._by_bytes else vocabulary_of(model)

    def add(self, row: int, body: JsonObject) -> None:
        """Requests come in order; those that are left out cannot be sent. Raises `InputError`."""
        missing = [_NO_ROW] * (row - len(self._kind_of))
        for numbers in (self._kind_of, *self._tokens):
            numbers.extend(missing)
            if body is self._last:
                numbers.append(numbers[-1])
        if body is self._last:
            return
        self._last = body
        text = read_body_text(body)
        model, most, tier = map(body.get, ("model", "max_output_tokens", "service_tier"))
        reasoning = body.get("reasoning")
        kind = Kind(
            model if type(model) is str else None,
            most if type(most) is int and 0 <= most <= _MAX_OUTPUT else None,
            tier if type(tier) is str else None,
            text.messages,
            text.unseen,
            text.hosted,
            type(reasoning) is dict and bool(reasoning) and reasoning.get("effort") != "none",
        )
        self._kind_of.append(self._number(kind))
        asked = self._asked or (self.vocabulary(kind.model).name,)
        for tokens, vocabulary in zip(self._tokens, asked, strict=True):
            if vocabulary not in self._counters:
                count = counter(vocabulary)
                self._counters[vocabulary] = count, lru_cache(_MAX_CACHED)(count)
            count_own, count_shared = self._counters[vocabulary]
            total = sum(map(count_own, text.own)) + sum(map(count_shared, text.shared))
            tokens.append(min(total, _MAX_TOKENS))

    def _number(self, kind: Kind) -> int:
        number = self._numbers.setdefault(kind, len(self._kinds))
        if number == _MAX_KINDS:
            raise InputError(
                f"the rows differ in more than {_MAX_KINDS:,} combinations of model, "
                "max_output_tokens and number of messages, too many to estimate at once; split "
                "the source"
            )
        if number == len(self._kinds):
            self._kinds.append(kind)
        return number

    def rows(
        self, complete: bytes | bytearray, wanted: int, model: str | None = None
    ) -> list[CountedRows]:
        """The first `wanted` rows without those that `complete` marks, alike ones together.

        `model`: one of those to count for; else each row for its own.
        """
        at = self._asked.index(self.vocabulary(model).name) if self._asked else 0
        pairs = zip(self._kind_of, self._tokens[at], strict=True)
        remaining = Counter(compress(pairs, complete[:wanted].translate(_INVERTED)))
        return [
            self._counted(number, tokens, rows, model)
            for (number, tokens), rows in remaining.items()
            if number != _NO_ROW
        ]

    def row(self, number: int) -> CountedRows:
        """One request, for its own model."""
        return self._counted(self._kind_of[number], self._tokens[0][number], 1)

    def _counted(
        self, number: int, text_tokens: int, rows: int, model: str | None = None
    ) -> CountedRows:
        kind = self._kinds[number]
        model = model or kind.model
        tokens = round(text_tokens * self.vocabulary(model).factor) + kind.form_tokens
        return CountedRows(kind, model, rows, text_tokens, tokens)
