"""Numbers, words, sentences and texts for a pattern, drawn at random from a seed.

The same seed, body and purpose give the same value, in any order: nothing here has state, so
what one request draws never depends on another.
"""

import re
import warnings
from collections.abc import Callable
from hashlib import blake2b
from math import exp
from random import Random
from statistics import NormalDist
from string import ascii_letters, digits

BYTES_A_TOKEN = 4
_NORMAL = NormalDist()
_VOCABULARY = """
amber basin cedar delta ember fjord garnet harbor island jasmine kernel lantern meadow
nickel orchid pepper quartz river saffron timber umbra valley willow xenon yarrow zephyr
"""
_WORDS = _VOCABULARY.split()
_SENTENCES = (
    "The first figure follows from the second once both are written in the same unit.",
    "Nothing in the question rules this out, and two of its details speak for it.",
    "Taken step by step: 12 and 30 make 42, and a third of that is 14.",
    "A shorter way would be to count what is missing instead of what is there.",
    "In practice most people would round here, and the result would hardly change.",
    "That is why the order matters: what is heavy goes in last.",
    "Seen from the other side, the same rule gives the same answer.",
    "It helps to draw a line under what is known before asking for more.",
    "The café on the corner opens at seven, which settles the question of breakfast.",
    "One could object that the sample is small; the trend is clear all the same.",
    "先把已知的数量写下来,再看还缺什么。",
    "Each of the three parts can be checked without the other two.",
    "Half of it is habit, and the other half is patience 🙂.",
    'The word "about" carries more weight in this sentence than it seems to.',
    "If the price falls by 20%, the number sold has to grow by 25% to make up for it.",
    "So the answer holds, with the proviso that the doors stay open.\n\nNow to the second point.",
)
REASONING = (
    "Weighing what the question asks for against what it gives.",
    "Looking for the step that everything else depends on.",
    "Checking the result against a rough estimate.",
    "Considering whether a simpler reading was meant.",
)
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't assist with this request.",
    "Sorry, this is something I'm not able to do.",
)
_PRINTABLE = "".join(chr(code) for code in range(32, 127))
_WORD_LETTERS = ascii_letters + digits + "_"
_CLASSES = {"d": digits, "w": _WORD_LETTERS, "s": " "}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
_ESCAPE = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[dDwWsSntrfv]|[\W_])"
_ATOM = re.compile(
    rf"""
      (?P<anchor> [\^$] | \\[bAZz] )
    | (?P<escape> {_ESCAPE} )
    | (?P<group> \( (?: \?: | \?P?<(?![=!])[^>]*> | (?!\?) ) )
    | (?P<class> \[ \^? \]? (?: {_ESCAPE} | [^\\\]] )* \] )
    | (?P<any> \. )
    | (?P<literal> [^\\()\[*+?{{|] )
    """,
    re.VERBOSE,
)
_MEMBER = re.compile(rf"(\\[dDwWsS])|({_ESCAPE}|.)(?:-({_ESCAPE}|.))?", re.DOTALL)
_REPEAT = re.compile(
    r"(?:([*+?])|\{(\d{1,5})(,?)(\d{0,5})\})[?+]?"
)  # lazy ones match the same texts
_MORE = 4  # how many times above its least an open repeat goes
_REPEATS = {"*": (0, _MORE), "+": (1, 1 + _MORE), "?": (0, 1)}
_LONGEST_REPEATED = 400_000  # letters and steps of all repeats of a pattern together
_Make = Callable[[Random], str]


def uniform(seed: int, key: bytes, purpose: str, attempt: int = 0) -> float:
    """A number above 0 and below 1; `attempt` counts those at the same body, from 0."""
    digest = blake2b(key, digest_size=8, key=f"{seed}|{purpose}|{attempt}".encode()[:64]).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**64


def lognormal(share: float, median: float, spread: float) -> float:
    """The value below which `share` of a long-tailed distribution lies."""
    return median * exp(spread * _NORMAL.inv_cdf(min(share, 1 - 1e-12))) if spread else median


def random_source(seed: int, key: bytes, purpose: str) -> Random:
    """A stream of numbers for one body."""
    digest = blake2b(key, digest_size=16, key=f"{seed}|{purpose}".encode()[:64]).digest()
    return Random(int.from_bytes(digest, "big"))  # noqa: S311 - answers, not secrets


def token_count(text: str) -> int:
    """Tokens as this server counts them: one for each four bytes, rounded up."""
    return -(-len(text.encode()) // BYTES_A_TOKEN)


def first_tokens(text: str, tokens: int) -> str:
    """The beginning of the text, of so many tokens at most."""
    return text.encode()[: max(tokens, 0) * BYTES_A_TOKEN].decode(errors="ignore")


def prose(opening: str, tokens: float, rng: Random) -> str:
    """Sentences after an opening, of about so many tokens."""
    wished = tokens * BYTES_A_TOKEN - len(opening)
    count = max(int(wished / 75), 0)  # bytes of a sentence, on average
    return " ".join((opening, *rng.choices(_SENTENCES, k=count)))


def word(rng: Random) -> str:
    return rng.choice(_WORDS)


def words(rng: Random) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randint(1, 3)))


def other_tokens(token: str, count: int, rng: Random) -> list[str]:
    """So many different tokens that might have come instead of this one."""
    others = [f" {word}" for word in _WORDS if f" {word}" != token]
    return rng.sample(others, count)


def text_for_pattern(pattern: str, rng: Random) -> str | None:
    """A text in which the regular expression is found; None where it asks for more than is known.

    Literals, classes, groups, choices, repeats and anchors are known; lookarounds and
    back-references are not.
    """
    try:
        made = _PatternReader(pattern).read()(rng)
    except (_UnknownError, RecursionError):
        return None
    return made if is_match(pattern, made) else None


def is_match(pattern: str, text: str) -> bool:
    """The pattern is found in the text; false where Python cannot read the pattern."""
    try:
        with warnings.catch_warnings():
            # Python means to read `[[` otherwise some day, and says so each time
            warnings.simplefilter("ignore", FutureWarning)
            return re.search(pattern, text) is not None
    except (re.error, RecursionError):
        return False


class _UnknownError(Exception):
    """The pattern holds what is not known here."""


class _PatternReader:
    """Reads a pattern from left to right into a function that makes a text for it.

    `rstr` is no replacement: it draws from a set for `[^...]`, so that each process makes another
    text, and a nested repeat runs on without a bound.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._left = _LONGEST_REPEATED

    def read(self) -> _Make:
        make = self._choice()
        if self._at < len(self._pattern):
            raise _UnknownError
        return make

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _choice(self) -> _Make:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._sequence())
        return lambda rng: rng.choice(branches)(rng)

    def _sequence(self) -> _Make:
        parts: list[_Make] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeat(self._atom()))
        return lambda rng: "".join(part(rng) for part in parts)

    def _atom(self) -> _Make:
        found = _ATOM.match(self._pattern, self._at)
        if found is None:
            raise _UnknownError
        self._at = found.end()
        match found.lastgroup:
            case "anchor":
                return lambda _: ""
            case "escape":
                return _one_of(_letters(found[0]))
            case "class":
                return _one_of(_class_members(found[0][1:-1]))
            case "any":
                return _one_of(_WORD_LETTERS)
            case "literal":
                return lambda _: found[0]
        group = self._choice()
        if self._peek() != ")":
            raise _UnknownError
        self._at += 1
        return group

    def _repeat(self, make: _Make) -> _Make:
        found = _REPEAT.match(self._pattern, self._at)
        if found is None:
            return make
        self._at = found.end()
        sign, low, comma, high = found.groups()
        if sign:
            least, most = _REPEATS[sign]
        else:
            least = int(low)
            most = int(high or least + _MORE) if comma else least
        if most < least or most > 10_000:
            raise _UnknownError

        def make_all(rng: Random) -> str:
            made = []
            for _ in range(rng.randint(least, most)):
                made.append(make(rng))
                self._left -= 1 + len(made[-1])
                if self._left < 0:
                    raise _UnknownError
            return "".join(made)

        return make_all


def _one_of(letters: str) -> _Make:
    if not letters:
        raise _UnknownError
    return lambda rng: rng.choice(letters)


def _letters(text: str) -> str:
    """The letters that one letter or escape means."""
    if text[0] != "\\":
        return text
    letter, code = text[1], text[2:]
    if code:
        return chr(int(code, 16))
    if letter.lower() in _CLASSES:
        members = _CLASSES[letter.lower()]
        return members if letter.islower() else _without(members)
    return _CONTROLS.get(letter, letter)


def _class_members(inside: str) -> str:
    """The letters of a class, given the text between its brackets."""
    members = ""
    for shorthand, first, last in _MEMBER.findall(inside.removeprefix("^")):
        if not last:
            members += _letters(shorthand or first)
            continue
        low, high = _letters(first), _letters(last)
        if len(high) > 1:
            raise _UnknownError
        members += "".join(map(chr, range(ord(low), min(ord(high), ord(low) + 512) + 1)))
    return _without(members) if inside[:1] == "^" else members


def _without(letters: str) -> str:
    return "".join(letter for letter in _PRINTABLE if letter not in letters)
