"""The tokens of each row's text, gathered while the plan reads the source.

Memory: 6 bytes a row, 4 more for a second vocabulary. Tools, schemas and instructions that many
rows share are counted once.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import compress
from typing import Any

from msgspec import Struct

from batchrun.errors import InputError
from batchrun.estimate.body_text import read_body_text
from batchrun.estimate.tokens import BYTES, Count, counter, vocabulary_of
from batchrun.records import JsonObject

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
