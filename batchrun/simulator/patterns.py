"""Text that a regular expression matches, for the expressions that schemas hold.

Literals, classes, groups, choices, repeats and anchors are understood; what a lookaround or a
back-reference asks for is not, and `matching` then answers null.
"""

import re
import warnings
from collections.abc import Callable
from random import Random
from string import ascii_letters, digits

_PRINTABLE = "".join(chr(code) for code in range(32, 127))
_WORD = ascii_letters + digits + "_"
_CLASSES = {"d": digits, "w": _WORD, "s": " "}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
_MORE = 4  # how many times above its least an open repeat goes

_Part = Callable[[Random], str]


def matching(pattern: str, rng: Random) -> str | None:
    """A text in which the pattern is found; null where it is beyond this."""
    try:
        made = _Reader(pattern).read()(rng)
    except (_BeyondError, RecursionError):
        return None
    return made if is_match(pattern, made) else None


def is_match(pattern: str, text: str) -> bool:
    """The pattern is found in the text; false where it is no expression of Python's."""
    try:
        with warnings.catch_warnings():
            # Python means to read `[[` otherwise some day, and says so each time
            warnings.simplefilter("ignore", FutureWarning)
            return re.search(pattern, text) is not None
    except (re.error, RecursionError):
        return False


class _BeyondError(Exception):
    """The pattern holds what is not understood here."""


class _Reader:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def read(self) -> _Part:
        part = self._choice()
        if self._at < len(self._pattern):
            raise _BeyondError
        return part

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _next(self) -> str:
        letter = self._peek()
        if not letter:
            raise _BeyondError
        self._at += 1
        return letter

    def _skip(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _choice(self) -> _Part:
        branches = [self._sequence()]
        while self._skip("|"):
            branches.append(self._sequence())
        return lambda rng: rng.choice(branches)(rng)

    def _sequence(self) -> _Part:
        parts: list[_Part] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeat(self._atom()))
        return lambda rng: "".join(part(rng) for part in parts)

    def _atom(self) -> _Part:
        letter = self._next()
        if letter in "^$":
            return lambda _: ""
        if letter == "(":
            return self._group()
        if letter == "[":
            return _one_of(self._class())
        if letter == ".":
            return _one_of(_WORD)
        if letter == "\\":
            return self._escape()
        if letter in "*+?{":
            raise _BeyondError
        return lambda _: letter

    def _group(self) -> _Part:
        if self._skip("?") and not self._skip(":"):
            if not (self._skip("P<") or self._skip("<")) or self._peek() in ("=", "!"):
                raise _BeyondError
            while self._next() != ">":
                pass
        part = self._choice()
        if not self._skip(")"):
            raise _BeyondError
        return part

    def _escape(self) -> _Part:
        letter = self._next()
        if letter in "bAZz":
            return lambda _: ""
        return _one_of(self._escaped(letter))

    def _escaped(self, letter: str) -> str:
        if letter in _CLASSES:
            return _CLASSES[letter]
        if letter.lower() in _CLASSES:
            return "".join(sign for sign in _PRINTABLE if sign not in _CLASSES[letter.lower()])
        if letter in "xu":
            length = 2 if letter == "x" else 4
            code = self._pattern[self._at : self._at + length]
            self._at += length
            try:
                return chr(int(code, 16))
            except ValueError:
                raise _BeyondError from None
        if letter.isalnum() and letter not in _CONTROLS:
            raise _BeyondError
        return _CONTROLS.get(letter, letter)

    def _class(self) -> str:
        inverse = self._skip("^")
        members = ""
        first = True
        while first or self._peek() != "]":
            first = False
            members += self._member()
        self._next()
        if not inverse:
            return members
        return "".join(sign for sign in _PRINTABLE if sign not in members)

    def _member(self) -> str:
        low = self._next()
        if low == "\\":
            low = self._escaped(self._next())
        if len(low) > 1 or self._peek() != "-" or self._pattern[self._at + 1 : self._at + 2] == "]":
            return low
        self._next()
        high = self._next()
        if high == "\\":
            high = self._escaped(self._next())
        if len(high) > 1:
            raise _BeyondError
        return "".join(chr(code) for code in range(ord(low), min(ord(high), ord(low) + 512) + 1))

    def _repeat(self, part: _Part) -> _Part:
        least, most = 1, 1
        if self._skip("*"):
            least, most = 0, _MORE
        elif self._skip("+"):
            least, most = 1, 1 + _MORE
        elif self._skip("?"):
            least, most = 0, 1
        elif found := re.match(r"\{(\d+)(,?)(\d*)\}", self._pattern[self._at :]):
            self._at += found.end()
            least = int(found[1])
            most = int(found[3] or least + _MORE) if found[2] else least
        else:
            return part
        if not self._skip("?"):  # a lazy repeat matches the same texts
            self._skip("+")
        if most < least or most > 10_000:
            raise _BeyondError
        return lambda rng: "".join(part(rng) for _ in range(rng.randint(least, most)))


def _one_of(letters: str) -> _Part:
    if not letters:
        raise _BeyondError
    return lambda rng: rng.choice(letters)
