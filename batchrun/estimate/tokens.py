"""The tokens of requests: their text as a model reads it, counted while the plan reads the source.

What is read but does not stand in the request as text is told and never guessed at: images, files,
stored context, what hosted tools bring in. Total over any body.

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
from importlib.util import find_spec
from itertools import compress
from typing import Any

from msgspec import Struct, field

from batchrun.errors import InputError
from batchrun.inputs.rows import encode
from batchrun.pricing.price_list import spellings
from batchrun.records import JsonObject

_TEXTS = ("text", "refusal")  # of a part of a message
_ITEM_TEXTS = ("name", "arguments", "input", "output")  # of a call, or of what came of one
_STORED = frozenset({"prompt", "previous_response_id", "conversation"})
_OWN_TOOLS = ("function", "custom")  # the others run, and read, at the provider
_PRIVATE = ("encrypted_content", "file_data", "image_url", "file_id", "file_url", "data")


class BodyText(Struct):
    """What a request says to the model."""

    own: list[str] = field(default_factory=list)  # texts of this row
    shared: list[str] = field(default_factory=list)  # that many rows are likely to have
    messages: int = 0
    unseen: bool = False  # the model reads more than these texts
    hosted: bool = False  # it may use tools that are billed by the piece


def read_body_text(body: JsonObject) -> BodyText:
    """The pieces of a body; each is counted by itself."""
    found = BodyText()
    given = body.get("input")
    if type(given) is str:
        found.own.append(given)
        found.messages += 1
    elif type(given) is list:
        for item in given:
            _add_item(found, item)
    instructions = body.get("instructions")
    if type(instructions) is str:
        found.shared.append(instructions)
        found.messages += 1
    tools = body.get("tools")
    if type(tools) is list:
        for tool in tools:
            _add_tool(found, tool)
    form = body.get("text")
    if type(form) is dict and type(form.get("format")) is dict:
        schema = form["format"].get("schema")
        if schema is not None:
            found.shared.append(_compact(schema))
    if not _STORED.isdisjoint(body) and any(body.get(name) is not None for name in _STORED):
        found.unseen = True
    return found


def _add_item(found: BodyText, item: Any) -> None:
    if type(item) is str:
        found.own.append(item)
        found.messages += 1
        return
    if type(item) is not dict:
        found.unseen = True
        return
    found.messages += 1
    kind = item.get("type")
    if kind == "item_reference":
        found.unseen = True
    elif "role" in item or kind == "message":
        texts = found.shared if item.get("role") in ("system", "developer") else found.own
        _add_content(found, texts, item.get("content"))
    elif kind == "reasoning":
        _add_content(found, found.own, item.get("summary"))
        _add_content(found, found.own, item.get("content"))
        if item.get("encrypted_content") is not None:
            found.unseen = True
    elif any(name in item for name in _ITEM_TEXTS):
        for name in _ITEM_TEXTS:
            _add_content(found, found.own, item.get(name))
    else:
        found.own.append(_compact(_without_private(found, item)))


def _add_content(found: BodyText, texts: list[str], content: Any) -> None:
    """Text, or a list of parts."""
    if type(content) is str:
        texts.append(content)
        return
    for part in content if type(content) is list else ():
        if type(part) is str:
            texts.append(part)
            continue
        said = (
            [part[name] for name in _TEXTS if type(part.get(name)) is str]
            if (type(part) is dict)
            else []
        )
        texts += said
        if not said:
            found.unseen = True


def _add_tool(found: BodyText, tool: Any) -> None:
    if type(tool) is dict and tool.get("type") not in _OWN_TOOLS:
        found.unseen = found.hosted = True
    found.shared.append(_compact(tool))


def _without_private(found: BodyText, item: JsonObject) -> JsonObject:
    """The item without what is no text to the model."""
    kept = {name: value for name, value in item.items() if name not in _PRIVATE}
    if len(kept) < len(item):
        found.unseen = True
    return kept


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


def vocabulary_of(model: str | None) -> tuple[str, float]:
    """The vocabulary that a model's texts are counted in, and what the count is multiplied by.

    A model is known by the `spellings` of its name, as it is where its price is looked for.
    """
    for _, name in spellings(model or ""):
        if _CL100K.match(name):
            return CL100K, 1.0
        if _O200K.match(name):
            return O200K, 1.0
    return O200K, OTHER_FACTOR


def is_installed() -> bool:
    """Whether texts can be counted in a vocabulary."""
    return find_spec("bpe_openai") is not None


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
            return count(text.encode("utf-8", "replace").decode())

    return counted


def _by_bytes(text: str) -> int:
    size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    return (size + 3) // 4


MESSAGE_TOKENS = 4  # around each message: its role, its begin and its end
REQUEST_TOKENS = 3  # before the answer
_MOST_KINDS = 2**16
_MOST_KNOWN = 10_000  # shared texts whose counts are kept
_MOST_TOKENS = 2**32 - 1
_MOST_OUTPUT = 2**40  # a limit above it is none
_TOLD = ("model", "max_output_tokens", "service_tier")
_NO_ROW = 0  # the kind of rows that cannot be sent
_TURNED = bytes([1]) + bytes(255)  # marks of what is settled to marks of what is left


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


class TokenCounts:
    """What `make_plan` tells of each body, as numbers."""

    def __init__(self, models: Sequence[str] = (), *, by_bytes: bool = False) -> None:
        """Counts for `models`, whatever rows ask for; without any, for the model of each row.

        `by_bytes`: by the rule instead of a vocabulary.
        """
        self.by_bytes = by_bytes
        self._vocabularies: dict[str | None, str] = {}
        self._asked = tuple(dict.fromkeys(self.vocabulary(model) for model in models))
        self._counters: dict[str, Count] = {}
        self._known: dict[tuple[str, str], int] = {}
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._kinds = [Kind(None)]
        self._kind_of = array("H")
        self._tokens = tuple(array("I") for _ in self._asked or ("of each row",))

    def vocabulary(self, model: str | None) -> str:
        """What texts for the model are counted in."""
        known = self._vocabularies.get(model)
        if known is None:
            known = BYTES if self.by_bytes else vocabulary_of(model)[0]
            if len(self._vocabularies) < _MOST_KNOWN:
                self._vocabularies[model] = known
        return known

    def add(self, row: int, body: JsonObject) -> None:
        """Rows come in order; those that are left out cannot be sent. Raises `InputError`."""
        missing = row - len(self._kind_of)
        if missing:
            self._kind_of.extend([_NO_ROW] * missing)
            for tokens in self._tokens:
                tokens.extend([0] * missing)
        said = read_body_text(body)
        model, most, tier = (body.get(name) for name in _TOLD)
        kind = (
            model if type(model) is str else None,
            most if type(most) is int and 0 <= most <= _MOST_OUTPUT else None,
            tier if type(tier) is str else None,
            said.messages,
            said.unseen,
            said.hosted,
            _asks_to_reason(body.get("reasoning")),
        )
        number = self._numbers.get(kind)
        if number is None:
            number = self._numbers[kind] = self._new_kind(Kind(*kind))
        self._kind_of.append(number)
        asked = self._asked or (self.vocabulary(kind[0]),)
        for tokens, vocabulary in zip(self._tokens, asked, strict=True):
            count = self._counters.get(vocabulary)
            if count is None:
                count = self._counters[vocabulary] = counter(vocabulary)
            total = 0
            for text in said.own:
                total += count(text)
            for text in said.shared:
                total += self._shared(text, vocabulary, count)
            tokens.append(min(total, _MOST_TOKENS))

    def of_rows(
        self, settled: bytes | bytearray, wanted: int, vocabulary: str = ""
    ) -> Counter[tuple[Kind, int]]:
        """(kind, text tokens) to rows, of the first `wanted` rows that `settled` does not mark.

        `vocabulary`: of a model that was asked for; else each row in that of its own.
        """
        pairs = zip(self._kind_of, self._array(vocabulary), strict=True)
        numbers = Counter(compress(pairs, settled[:wanted].translate(_TURNED)))
        return Counter(
            {
                (self._kinds[number], tokens): rows
                for (number, tokens), rows in numbers.items()
                if number != _NO_ROW
            }
        )

    def of_row(self, row: int) -> tuple[Kind, int]:
        """The kind and the text tokens of one row."""
        return self._kinds[self._kind_of[row]], self._tokens[0][row]

    def _array(self, vocabulary: str) -> "array[int]":
        return self._tokens[self._asked.index(vocabulary) if self._asked else 0]

    def _shared(self, text: str, vocabulary: str, count: Count) -> int:
        known = self._known.get((vocabulary, text))
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = self._known[vocabulary, text] = count(text)
        return known

    def _new_kind(self, kind: Kind) -> int:
        if len(self._kinds) == _MOST_KINDS:
            raise InputError(
                f"the rows differ in more than {_MOST_KINDS:,} combinations of model, "
                "max_output_tokens and number of messages, too many to estimate at once; split "
                "the source"
            )
        self._kinds.append(kind)
        return len(self._kinds) - 1


def _asks_to_reason(said: object) -> bool:
    return isinstance(said, dict) and bool(said) and said.get("effort") != "none"
