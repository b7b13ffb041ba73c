"""Which of several choices a text names (`choice`)."""

import re
from collections.abc import Sequence
from functools import lru_cache
from string import ascii_uppercase
from typing import NamedTuple

from batchrun.formats.json_text import shown
from batchrun.scoring.score import BadTarget, Score
from batchrun.scoring.text_match import normaliser

LETTERS = "ABCD"
_plain = normaliser(ignore_case=True, ignore_punctuation=True)


class _Patterns(NamedTuple):
    """Of one set of letters."""

    stated: re.Pattern[str]  # `Answer: X`, `the answer is X`
    boxed: re.Pattern[str]
    further: re.Pattern[str]  # ` or Y` after either
    marked: re.Pattern[str]  # `(X)`, or a line that is or begins with `X`


@lru_cache(64)
def _patterns(letters: str) -> _Patterns:
    one = f"[{re.escape(letters.upper() + letters.lower())}]"
    upper = f"[{re.escape(letters)}]"
    fill = r"(?:[\s*_\"'`$({\[]|\\(?:boxed|text|mathbf|textbf|mathrm)\b)*"
    link = r"(?:(?:is|are|be)\b[\s*_]*[:\uff1a]?|[:=\uff1a])"
    noun = r"(?:(?:option|choice|answer|letter)\b)?"
    return _Patterns(
        re.compile(
            rf"(?i:\b(?:answer|choice|option)s?\b[\s*_]*(?:(?:should|would|must|will)\s+)?{link})"
            rf"{fill}(?i:{noun}){fill}(?P<letter>{one})(?![\w'\u2019])"
        ),
        re.compile(
            rf"\\boxed\s*\{{\s*(?:\\(?:text|mathrm|mathbf|textbf)\s*\{{\s*)?\(?\s*"
            rf"(?P<letter>{one})\s*\)?\s*\}}"
        ),
        re.compile(
            rf"[\s)\]}}*_\"'`$.]*(?:,|/|&|\b(?:and|or)\b)[\s(\[*_\"'`$]*"
            rf"(?P<letter>{upper})(?![\w'\u2019])"
        ),
        re.compile(
            rf"\((?P<bracketed>{one})\)"
            rf"|^[\s*_\"'`#>-]*(?P<alone>{one})[*_\"'`]*"
            rf"(?=[).:\]]*\s*$|[).:\]][*_]*\s|\s*(?:,|/|&|\b(?:and|or)\b)\s*{upper}(?![\w'\u2019]))",
            re.MULTILINE,
        ),
    )


def choice(
    text: str, targets: Sequence[str], *, letters: str = LETTERS, choices: Sequence[str] = ()
) -> Score:
    r"""1 where the text chooses one of the targets.

    What it chooses is, in this order: what the last `answer: X`, `the answer is X` or `\boxed{X}`
    says; the `(X)` of the last line that has any, or the letter that such a line is or begins with
    (`X`, `X)`, `X.`); with `choices`, the one that the text, or what follows its last `answer:`, is
    word for word. Two different letters in that place are `ambiguous`. Small letters count where
    nothing else of a sentence follows. A target is a letter, the text of a choice, or the place of
    one from 0. Raises `BadTarget` for others.
    """
    if choices:
        letters = ascii_uppercase[: len(choices)]
    letters = letters.upper()
    wanted = {_letter_of(target, letters, choices) for target in targets}
    found = _chosen(text, letters) or _by_text(text, letters, choices)
    if not found:
        return Score(0.0, None, "no_choice")
    if len(found) > 1:
        return Score(0.0, None, "ambiguous", f"it names {' and '.join(found)}")
    return Score(1.0, found) if found in wanted else Score(0.0, found, "different")


def _letter_of(target: str, letters: str, choices: Sequence[str]) -> str:
    plain = target.strip()
    letter = plain.strip("().").upper()
    if len(letter) == 1 and letter in letters:
        return letter
    for at, one in enumerate(choices):
        if _plain(one) == _plain(plain):
            return letters[at]
    if plain.isdecimal() and int(plain) < len(letters):
        return letters[int(plain)]
    raise BadTarget(f"the target {shown(plain, 80)} is none of the choices {', '.join(letters)}")


def _chosen(text: str, letters: str) -> str:
    """The letters named in the place that counts, each once; empty: there is none."""
    patterns = _patterns(letters)
    last = None
    for pattern in (patterns.stated, patterns.boxed):
        for found in pattern.finditer(text):
            is_small = found["letter"].islower()
            if is_small and not _ends_here(text, found.end("letter")):
                continue
            if last is None or found.end() > last.end():
                last = found
    if last is not None:
        named = last["letter"].upper() + _further(patterns, text, last.end())
        return "".join(dict.fromkeys(named))
    line, named = -1, ""
    for found in patterns.marked.finditer(text):
        start = text.rfind("\n", 0, found.end()) + 1
        if start != line:
            line, named = start, ""
        named += (found["bracketed"] or found["alone"]).upper()
        named += _further(patterns, text, found.end())
    return "".join(dict.fromkeys(named))


def _further(patterns: _Patterns, text: str, end: int) -> str:
    """The letters that are named with the one that ends here: ` or B`."""
    named = ""
    while found := patterns.further.match(text, end):
        named, end = named + found["letter"], found.end()
    return named


_REST = re.compile(r"[\s)\]}*_\"'`$]*(?:[.,;:!?]|$)", re.MULTILINE)


def _ends_here(text: str, at: int) -> bool:
    """Whether no further word follows in this line, or a bracket closes at once."""
    return text[at : at + 1] in (")", "}", "]") or _REST.match(text, at) is not None


_ANSWER = re.compile(r"answer[\s*_]*(?:is\b[\s*_]*:?|[:=\uff1a])", re.IGNORECASE)


def _by_text(text: str, letters: str, choices: Sequence[str]) -> str:
    if not choices:
        return ""
    rest = text
    for found in _ANSWER.finditer(text):
        rest = text[found.end() :]
    said = {_plain(text), _plain(rest), _plain(rest.strip().partition("\n")[0])} - {""}
    return "".join(letters[at] for at, one in enumerate(choices) if _plain(one) in said)
