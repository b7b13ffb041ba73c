"""Text against targets: equal (`exact`), contained (`includes`), matched by a pattern (`regex`).

Each function gets the answer's text and the texts of the target, of which any may be met.
"""

import re
import string
import unicodedata
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

from batchrun.formats.json_text import shown
from batchrun.scoring.score import BadTarget, Score

Normalise = Callable[[str], str]
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_MINUS_SIGNS = "\u2212\u2010\u2011\u2013\ufe63\uff0d"  # that stand for `-`
_SIGNS = "+-" + _MINUS_SIGNS
_MINUS = tuple("-" + _MINUS_SIGNS)
_GROUP = re.compile(r",\d{3}(?!\d)")


def normaliser(
    *,
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    normalize: Literal["none", "nfkc", "squad"] = "none",
) -> Normalise:
    """What makes texts comparable.

    White space at both ends never counts. `nfkc` is Unicode's compatibility form. `squad` is lower
    case without punctuation and the articles a, an, the, white space as single blanks, after
    https://rajpurkar.github.io/SQuAD-explorer; but as `ignore_punctuation` it leaves what makes
    numbers different: signs, decimal points, `%`, and marks between digits.
    """
    steps: list[Normalise] = []
    if normalize == "nfkc":
        steps.append(lambda text: unicodedata.normalize("NFKC", text))
    if ignore_case:
        steps.append(str.casefold)
    if normalize == "squad":
        steps += [str.lower, without_punctuation, lambda text: _ARTICLES.sub(" ", text)]
    elif ignore_punctuation:
        steps.append(without_punctuation)
    if normalize == "squad" or ignore_punctuation:
        steps.append(lambda text: " ".join(text.split()))
    if not steps:
        return str.strip

    def normalised(text: str) -> str:
        for step in steps:
            text = step(text)
        return text.strip()

    return normalised


def without_punctuation(text: str) -> str:
    """The text without punctuation, but for what makes numbers different.

    What stays: a sign before a number, a mark between two digits (`3.14`, `1/2`, `10:30`; the comma
    of `1,000` goes), a point before digits, `%` after a digit. Signs of any kind become `-`.
    """
    if text.isalnum():
        return text
    return "".join([_kept(text, at) if _is_mark(one) else one for at, one in enumerate(text)])


@cache
def _is_mark(letter: str) -> bool:
    if letter.isascii():
        return letter in string.punctuation
    return unicodedata.category(letter)[0] == "P" or letter in _MINUS_SIGNS


def _kept(text: str, at: int) -> str:
    """What is left of the mark at this place."""
    mark, before, after = text[at], text[at - 1 : at], text[at + 1 : at + 2]
    if before.isdigit():
        if mark == "%":
            return mark
        if mark == "," and _GROUP.match(text, at):
            return ""
        return ("-" if mark in _MINUS_SIGNS else mark) if after.isdigit() else ""
    if after.isdigit() or (after in ".$€£" and after and text[at + 2 : at + 3].isdigit()):
        if mark in _SIGNS and not before.isalpha() and before not in (")", "]"):
            return mark if mark == "+" else "-"
        if mark == ".":
            return mark
    return ""


def exact(text: str, targets: Sequence[str], normalise: Normalise = str.strip) -> Score:
    """1 where the text is one of the targets, both as `normalise` makes them.

    Raises `BadTarget` for a target of which nothing is left.
    """
    answer = normalise(text)
    found = False
    for target in targets:
        wanted = normalise(target)
        if not wanted:
            raise BadTarget(f"the target {shown(target, 80)} is empty once it is normalised")
        found = found or wanted == answer
    return Score(1.0, answer) if found else Score(0.0, answer, "different")


def includes(
    text: str,
    targets: Sequence[str],
    *,
    ignore_case: bool = True,
    every: bool = False,
    word: bool = False,
) -> Score:
    """1 where the text contains one of the targets, or with `every` all of them.

    A number is never found within a longer one: `5` is not in `25`, `5.2`, `1,500` or `-5`. `word`:
    whatever the target, no letter or digit may stand directly before or after it.
    """
    searched = text.casefold() if ignore_case else text
    found = None
    missing = ""
    for target in targets:
        wanted = (target.casefold() if ignore_case else target).strip()
        if not wanted:
            raise BadTarget("the target is empty")
        if _contains(searched, wanted, word=word):
            found = found or target
            if not every:
                break
        else:
            missing = missing or target
    if found is not None and not (every and missing):
        return Score(1.0, found)
    return Score(
        0.0, None, "not_included", f"{shown(missing, 200)} is not in it" if every else None
    )


def _contains(text: str, wanted: str, *, word: bool) -> bool:
    at = text.find(wanted)
    while at >= 0:
        if _stands_alone(text, at, at + len(wanted), word=word):
            return True
        at = text.find(wanted, at + 1)
    return False


def _stands_alone(text: str, start: int, end: int, *, word: bool) -> bool:
    """Whether what stands here is no part of a longer word or number."""
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    if word and (_is_of_word(before[-1:]) or _is_of_word(after[:1])):
        return False
    first, last = text[start], text[end - 1]
    if first.isdigit() or (first == "." and text[start + 1 : start + 2].isdigit()):
        near, far = before[-1:], before[:-1]
        if near.isdigit() or (near == "." and not far.isalpha()):
            return False
        if far.isdigit() and (near == "/" or (near == "," and _GROUP.match(text, start - 1))):
            return False
        if near in _MINUS and not (far.isalnum() or far in (")", "]")):
            return False
    if last.isdigit():
        near, far = after[:1], after[1:]
        if near.isdigit() or near == "%" or (near in (".", "/") and far.isdigit()):
            return False
        if near == "," and _GROUP.match(text, end):
            return False
    return True


def _is_of_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"


def regex(
    text: str,
    targets: Sequence[str] | None,
    pattern: re.Pattern[str],
    *,
    group: int | str = 1,
    which: Literal["last", "first"] = "last",
    normalise: Normalise = str.strip,
) -> Score:
    """What the pattern's group holds, compared as `exact` does; null targets: 1 where it matches.

    A pattern without groups gives its whole match.
    """
    found = pattern.search(text)
    if which == "last":
        found = deque(pattern.finditer(text), 1).pop() if found else None
    if found is None:
        return Score(0.0, None, "no_match")
    answer = found[group if pattern.groups else 0] or ""
    return Score(1.0, answer.strip()) if targets is None else exact(answer, targets, normalise)
