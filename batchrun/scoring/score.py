"""What a scorer finds of one answer, and the texts of targets."""

from collections.abc import Iterable
from datetime import date, time
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from batchrun.errors import BatchrunError


class Score(NamedTuple):
    """Of one answer. `value` is null where there is none; `answer` is what was compared."""

    value: float | None
    answer: str | None = None
    reason: str | None = None  # a word: why it is not the best value; null where it is
    explanation: str | None = None  # for a person
    metadata: str | None = None  # JSON text
    target: str | None = None  # what was compared, where that is a part of the target


class BadTarget(BatchrunError):  # noqa: N818 - what is wrong is the target, not the scorer
    """A target that nothing can be compared with, such as an empty one."""

    exit_code = 2


class MissingLibrary(BatchrunError):  # noqa: N818 - as above
    """A scorer needs a library that is not installed; the message says how to install it."""

    exit_code = 2


_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode


def text_of(value: Any) -> str:
    """The text that stands for a plain value: text itself, `42` for 42 and 42.0, `true`, JSON."""
    match value:
        case str():
            return value
        case float() if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        case Decimal():
            return format(value, "f")
        case date() | time():
            return value.isoformat()
    return _encode(value).decode()


def target_texts(value: Any) -> tuple[str, ...]:
    """The texts of a target, of which any may be met: those of a list, or the one of all else.

    Raises `BadTarget` where there is none, or one is empty: it would match everything.
    """
    if value is None:
        raise BadTarget("the target is null")
    if type(value) is str and value and not value.isspace():
        return (value,)
    texts = tuple(map(text_of, value)) if isinstance(value, list | tuple) else (text_of(value),)
    if not texts:
        raise BadTarget("the target is an empty list")
    refuse_blank(texts)
    return texts


def refuse_blank(texts: Iterable[str]) -> None:
    """Raises `BadTarget` where one of the texts is empty or blank."""
    for text in texts:
        if not text.strip():
            raise BadTarget("the target is empty")
