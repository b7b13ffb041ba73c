"""The simulator as a model to be measured: it knows a prompt set's targets, and often says them.

A row of the answers belongs to a request whose input holds its question. Whether an answer is right
is drawn from the seed, the body and how often that body was answered before, with a probability
that may differ from question to question.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from batchrun.simulator import random_values
from batchrun.simulator.knowledge.known_calls import call_parts, calls_of, changed_leaf

Item = dict[str, Any]
_TARGETS = ("target", "answer", "ground_truth", "expected", "answers", "label")
_QUESTIONS = ("question", "prompt", "input", "messages", "problem", "text", "instruction", "query")
_START = 32  # letters of a question that it is found by; shorter ones by all of theirs
_DIFFICULTY = "difficulty"
_MARKS = (  # how a prompt asks for the end of an answer, and how that end looks
    (re.compile(r"####"), "#### {}"),
    (re.compile(r"\\boxed"), "\\boxed{{{}}}"),
    (re.compile(r"answer\s*:", re.IGNORECASE), "Answer: {}"),
)
_EXPLAINED = re.compile(r"####|^answer\s*:", re.IGNORECASE | re.MULTILINE)
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)
_ANSWER_KEYS = ("answer", "final_answer", "target", "label", "result", "value")
_UNKNOWN = "I do not know."
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Ability(Struct, frozen=True):
    """How often a model is right, and how much that differs between questions."""

    right: float  # mean of the probability over questions
    spread: float = 0.0  # standard deviation of it


class _Known(Struct, frozen=True):
    question: str
    target: Any


class Draw(Struct, frozen=True):
    """What an answer is drawn from."""

    seed: int
    key: bytes  # of the body
    number: int  # how often the body was answered before
    model: str


def read_abilities(texts: Sequence[str]) -> dict[str, Ability]:
    """`0.7`, `0.7,0.2` or `MODEL=0.7,0.2`; the name is empty for all other models.

    Raises `ValueError`.
    """
    found = {"": Ability(1.0)}
    for text in texts:
        model, _, numbers = text.rpartition("=")
        try:
            right, *rest = map(float, numbers.split(","))
            (spread,) = rest or (0.0,)
        except ValueError:
            raise ValueError(
                f"right is {text!r}; write a probability such as 0.7, 0.7,0.2 with its spread "
                "between questions, or MODEL=0.7"
            ) from None
        if not 0 <= right <= 1:
            raise ValueError(f"right is {text!r}; a probability lies between 0 and 1")
        most = math.sqrt(right * (1 - right))
        if spread and not 0 < spread < most:
            raise ValueError(
                f"right is {text!r}; around {right:g} the spread must be below {most:.3f}"
            )
        found[model] = Ability(right, spread)
    return found


class KnownAnswers:
    """The targets of a prompt set, and how often they are said."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], abilities: Mapping[str, Ability]) -> None:
        """Raises `ValueError` where no row has a question and a target."""
        self._abilities = abilities
        self._by_start: defaultdict[int, defaultdict[str, list[_Known]]] = defaultdict(
            lambda: defaultdict(list)
        )
        targets: dict[str, None] = {}
        for row in rows:
            known = _known_of(row)
            if known is None:
                continue
            start = known.question[:_START]
            self._by_start[len(start)][start].append(known)
            if not isinstance(known.target, dict | list):
                targets[final_text(known.target)] = None
        if not self._by_start:
            raise ValueError(
                f"no row of the answers has a question and a target; the target is in a column "
                f"{', '.join(_TARGETS[:2])}, ..., the question in {', '.join(_QUESTIONS[:2])}, ..."
            )
        self._targets = list(targets)  # wrong answers are those to other questions

    def parts(self, fields: Item, draw: Draw, tokens: float) -> list[Item] | None:
        """What the model says to a request, about so long where it explains; None: not known."""
        known = self._find(fields.get("input"))
        if known is None:
            return None
        ability = self._abilities.get(draw.model) or self._abilities[""]
        chance = _chance(ability, known.question, draw.seed)
        is_right = random_values.uniform(draw.seed, draw.key, "right", draw.number) < chance
        purpose = f"said {draw.number}"
        rng = random_values.random_source(draw.seed, draw.key, purpose)
        calls = calls_of(known.target)
        functions = [tool for tool in fields.get("tools", []) if tool["type"] == "function"]
        if calls is not None and functions:
            return call_parts(calls, functions, rng, is_right=is_right)
        if isinstance(known.target, dict) or calls is not None:
            value = known.target if is_right else changed_leaf(known.target, rng)
            return [{"type": "output_text", "text": _encode(value).decode()}]
        rights = [final_text(one) for one in _listed(known.target)]
        said = rng.choice(rights) if is_right else self._wrong_text(rights, rng)
        text = _in_words(said, fields, tokens, rng)
        if not is_right and any(right.casefold() in text.casefold() for right in rights):
            text = said  # an explanation may hold any word
        return [{"type": "output_text", "text": text}]

    def _find(self, given: Any) -> _Known | None:
        """The longest question that the input holds."""
        best: _Known | None = None
        for text in _texts(given):
            for length, starts in self._by_start.items():
                for at in range(len(text) - length + 1):
                    for known in starts.get(text[at : at + length], ()):
                        is_longer = best is None or len(known.question) > len(best.question)
                        if is_longer and text.startswith(known.question, at):
                            best = known
        return best

    def _wrong_text(self, rights: Sequence[str], rng: Random) -> str:
        """An answer to another question that no rule takes for one of this one's."""
        for _ in range(20):
            other = rng.choice(self._targets) if self._targets else ""
            if other and not any(_alike(other, right) for right in rights):
                return other
        number = _number_of(rights[0])
        if number is None:
            return _UNKNOWN
        return next(
            text
            for text in (f"{number + step:.12g}" for step in range(1, 1_000))
            if not any(_alike(text, right) for right in rights)
        )


def read_answers(paths: Sequence[str], abilities: Mapping[str, Ability]) -> KnownAnswers:
    """Of JSON Lines, JSON arrays or Parquet; rows of one `id` in several files are one.

    Raises `ValueError` where a file cannot be read or holds no answers.
    """
    rows: dict[Any, Item] = {}
    for path in paths:
        try:
            for number, row in enumerate(_rows(Path(path))):
                name = row.get("id", row.get("custom_id", row.get("task_id")))
                key = number if name is None else str(name)
                rows[key] = {**rows.get(key, {}), **row}
        except (OSError, ValueError) as error:
            raise ValueError(f"the answers {path} cannot be read ({error})") from error
    return KnownAnswers(rows.values(), abilities)


def _rows(path: Path) -> Iterator[Item]:
    """Raises `OSError`, `ValueError`."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq  # noqa: PLC0415 - seldom needed, and large

        yield from pq.read_table(path).to_pylist()
        return
    text = path.read_bytes()
    is_array = text.lstrip()[:1] == b"["
    found = _decode(text) if is_array else map(_decode, filter(bytes.strip, text.splitlines()))
    for row in found:
        if not isinstance(row, dict):
            raise ValueError("a row is not a JSON object")  # noqa: TRY004 - of the file, not of a call
        yield row


def _known_of(row: Mapping[str, Any]) -> _Known | None:
    """The question and the target of a row."""
    target = next((row[name] for name in _TARGETS if row.get(name) is not None), None)
    named = next((row[name] for name in _QUESTIONS if row.get(name)), None)
    if named is None:
        named = [value for name, value in row.items() if name not in ("id", *_TARGETS)]
    question = max(_texts(named), key=len, default="").strip()
    return None if target in (None, "", []) or not question else _Known(question, target)


def _texts(value: Any) -> Iterator[str]:
    """All texts within an input, but for roles and types."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if name not in ("role", "type", "id"):
                yield from _texts(one)


def _chance(ability: Ability, question: str, seed: int) -> float:
    """The probability for one question, whatever else a body holds: of a beta distribution."""
    mean, spread = ability.right, ability.spread
    if not spread:
        return mean
    size = mean * (1 - mean) / spread**2 - 1
    rng = random_values.random_source(seed, question.encode(), _DIFFICULTY)
    return rng.betavariate(mean * size, (1 - mean) * size)


def final_text(target: Any) -> str:
    """The target as a model would write it; of an explained one, what comes after `####`."""
    if isinstance(target, str):
        return _EXPLAINED.split(target)[-1].strip()
    return _encode(target).decode()


def _listed(target: Any) -> list[Any]:
    """Any of a list is right."""
    return target if isinstance(target, list) else [target]


def _alike(some: str, other: str) -> bool:
    """Whether a rule might take one for the other."""
    number, other_number = _number_of(some), _number_of(other)
    if number is not None and other_number is not None and number == other_number:
        return True
    some, other = some.casefold(), other.casefold()
    return some in other or other in some


def _number_of(text: str) -> float | None:
    if _NUMBER.fullmatch(text) is None:
        return None
    return float(text.replace(",", ""))


def _in_words(said: str, fields: Item, tokens: float, rng: Random) -> str:
    """As JSON where that is asked for; after an explanation where a mark is; else by itself."""
    format_ = fields.get("text", {}).get("format") or {"type": "text"}
    if format_["type"] != "text":
        return _as_object(said, format_.get("schema") or {})
    asked = " ".join(_texts([fields.get("instructions"), fields.get("input")]))
    for mark, end in _MARKS:
        if mark.search(asked):
            words = max(1, round(tokens * random_values.BYTES_A_TOKEN / 14))
            explained = ", then ".join(random_values.words(rng) for _ in range(words))
            return f"First {explained}.\n{end.format(said)}"
    return said


def _as_object(said: str, schema: Item) -> str:
    """In the property that is called like an answer, or the last one; others are of their type."""
    properties: Item = schema.get("properties") or {"answer": {}}
    place = next((name for name in _ANSWER_KEYS if name in properties), list(properties)[-1])
    made = {name: _of_type(said if name == place else "", of) for name, of in properties.items()}
    return _encode(made).decode()


def _of_type(said: str, schema: Item) -> Any:
    """The text as a value of the type that a schema asks for, as far as that can be."""
    kind = schema.get("type")
    number = _number_of(said)
    if kind in ("number", "integer"):
        return 0 if number is None else int(number) if kind == "integer" else number
    if kind == "boolean":
        return said.casefold() in ("true", "yes")
    return [] if kind == "array" else {} if kind == "object" else said
