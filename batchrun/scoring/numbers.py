r"""Numbers in text, read and compared as decimals (`number`).

What is read: `42`, `1,234`, `1,00,000`, `3.14`, `.5`, `-5` (with any minus sign, also before a
currency's), `1.5e3`, `1.5*10^3`, `3/4`, `½`, `1½`, LaTeX's `1{,}234` and `\frac{3}{4}`; `60%` is
0.6. What is not: digits in a name such as `B12`, dates such as `1/2/2026`. The comma separates
thousands or nothing: `1,5` are two numbers. A hyphen after a digit, letter or bracket is no sign.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation
from math import gcd
from typing import Literal, NamedTuple

from batchrun.formats.json_text import shown
from batchrun.scoring.score import BadTarget, Score

_MOST_DIGITS = 1_000
# Wide enough that no product of two numbers as read is rounded.
_EXACT = Context(prec=4 * _MOST_DIGITS, Emax=99_999_999, Emin=-99_999_999)
_BRIEF = Context(prec=50, Emax=99_999_999, Emin=-99_999_999, traps=[Inexact, InvalidOperation])
_CURRENCIES = re.compile(r"(?:USD|EUR|GBP|CHF|JPY|CNY|RMB|INR|CAD|AUD|NZD|US|HK|Rs\.?|R)$")
_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_MINUS = "-\u2212\u2010\u2011\u2013\ufe63\uff0d"
_NUMBER = re.compile(
    rf"""
    (?= [\d.\\+\{_MINUS}{_VULGAR}] )                           # seven times as fast with it
    (?: (?<![\w)\]}}%]) (?P<sign>[+\{_MINUS}]) (?:\\?[$€£¥₹]\ ?)? )?
    (?:
        (?P<chain> \d+ (?: / \d+ ){{2,}} )                    # a date
      | (?P<whole>
            \d{{1,3}} (?P<by>,|\{{,\}}|\\,|['\u2019\u00a0\u2009\u202f]) \d{{3}}
                (?: (?P=by) \d{{3}} )* (?!\d)
          | \d{{1,2}} (?: ,\d{{2}} )+ ,\d{{3}} (?!\d)         # lakhs
          | \d+
        )
        (?P<part> \.\d+ )?
        (?: (?P<vulgar>[{_VULGAR}]) | / (?P<below>\d+) (?![\d.]) )?
      | (?<!\w) (?P<point> \.\d+ )
      | (?P<alone>[{_VULGAR}])
      | \\[dt]?frac \{{ (?P<top>-?\d+) \}} \{{ (?P<bottom>\d+) \}}
    )
    (?: [eE] (?P<exponent>[+\{_MINUS}]?\d{{1,6}}) (?!\w)
      | \ ? (?:[*x·\u00d7]|\\times|\\cdot) \ ? 10 \ ? (?:\^|\*\*)
            \{{? (?P<power>[+\{_MINUS}]?\d{{1,6}}) \}}?
    )?
    (?P<percent> \ ? \\? % )?
    """,
    re.VERBOSE,
)
_DIGIT = re.compile(rf"[\d{_VULGAR}]")
_MARK = "####"  # before the number of a target that explains its steps, as in GSM8K
_WINDOW = 28  # characters up to the last digit, in which the last number of most texts is; ...
_SURE = 10  # ... one that begins after so many of them is not cut by their beginning
_BEHIND = 8  # characters after the last digit that may be of its number


class ReadNumber(NamedTuple):
    """A number as a fraction of two decimals, which are exact."""

    above: Decimal
    below: Decimal

    def equals(self, other: "ReadNumber") -> bool:
        if self.below == other.below:
            return self.above == other.above
        times = _EXACT.multiply
        return times(self.above, other.below) == times(other.above, self.below)

    def is_near(self, other: "ReadNumber", abs_tol: Decimal, rel_tol: Decimal) -> bool:
        """Whether they differ by at most `abs_tol`, or `rel_tol` of the other one."""
        times = _EXACT.multiply
        scale = times(self.below, other.below)
        wanted = times(other.above, self.below)
        gap = abs(_EXACT.subtract(times(self.above, other.below), wanted))
        most = max(times(abs_tol, scale), times(rel_tol, abs(wanted)))
        return gap <= most

    def __str__(self) -> str:
        """The same text for the same number, however it was written."""
        if self.below != 1:
            try:
                return _plain(_BRIEF.divide(self.above, self.below))
            except (Inexact, InvalidOperation):
                above, below = self.above, self.below
                while above != above.to_integral_value(context=_EXACT):
                    above, below = _EXACT.scaleb(above, 1), _EXACT.scaleb(below, 1)
                if abs(above.adjusted()) > _MOST_DIGITS:
                    return f"{above}/{below}"
                common = gcd(int(above), int(below))
                return f"{int(above) // common}/{int(below) // common}"
        return _plain(self.above)


_ONE = Decimal(1)


def _plain(value: Decimal) -> str:
    if not value:
        return "0"
    value = value.normalize(_EXACT)
    return format(value, "f") if abs(value.adjusted()) < 50 else str(value)


def numbers_in(text: str, start: int = 0) -> Iterator[ReadNumber]:
    """All numbers of the text, in order."""
    for found in _NUMBER.finditer(text, start):
        number = _read(found)
        if number is not None:
            yield number


def _read(found: re.Match[str]) -> ReadNumber | None:
    """Null for what only looks like a number."""
    sign, chain, whole, _, part, vulgar, below, point, alone, top, bottom, *scale = found.groups()
    text, start = found.string, found.start()
    if chain is not None or found.end() - start > _MOST_DIGITS:
        return None
    if start and text[start - 1].isalpha() and not _is_currency(text, start):
        return None
    if whole is not None:
        if not whole.isdecimal():
            whole = "".join([one for one in whole if one.isdecimal()])
        above = Decimal(f"{whole}{part}" if part else whole)
    elif point is not None:
        above = Decimal(point)
    else:
        above = Decimal(top) if top is not None else Decimal(0)
    divisor = _ONE
    if below is not None or bottom is not None:
        divisor = Decimal(below or bottom)
        if not divisor:
            return None
    elif fraction := vulgar or alone:
        over, _, under = unicodedata.normalize("NFKC", fraction).partition("\u2044")
        divisor = Decimal(under)
        above = _EXACT.add(_EXACT.multiply(above, divisor), Decimal(over))
    exponent, power, percent = scale
    shift = int((exponent or power or "0").translate(_TO_HYPHEN)) - 2 * (percent is not None)
    if shift:
        above = _EXACT.scaleb(above, shift)
    return ReadNumber(above if sign is None or sign == "+" else above.copy_negate(), divisor)


_TO_HYPHEN = str.maketrans(dict.fromkeys(_MINUS, "-"))


def _is_currency(text: str, start: int) -> bool:
    return _CURRENCIES.search(text, max(0, start - 4), start) is not None


def number(
    text: str,
    targets: Sequence[str],
    *,
    after: re.Pattern[str] | None = None,
    which: Literal["last", "first", "only"] = "last",
    abs_tol: Decimal = Decimal(0),
    rel_tol: Decimal = Decimal(0),
) -> Score:
    """1 where the number that the text gives is one of the targets.

    The number is the last, first or only one of the text, or of what follows the last place where
    `after` matches. A target that is more than a number is read in the same way, or after its last
    `####`. Equal means equal as decimals, whatever their length, or within `abs_tol`, or `rel_tol`
    times the target. Raises `BadTarget` where a target has no number.
    """
    wanted = [_target(target, after, which) for target in targets]
    own = None  # a single target that is more than its number
    if len(wanted) == 1 and wanted[0][1]:
        own = str(wanted[0][0])
    start = 0
    if after is not None:
        start = _end_of_last(after, text)
        if start < 0:
            said = "the pattern of `after` is not in the text"
            return Score(0.0, None, "no_match", said, target=own)
    found = _chosen(text, start, which)
    if found is None:
        return Score(0.0, None, "no_number", target=own)
    if isinstance(found, str):
        return Score(0.0, None, "ambiguous", found, target=own)
    exactly = not abs_tol and not rel_tol
    for one, _ in wanted:
        if found.equals(one) if exactly else found.is_near(one, abs_tol, rel_tol):
            return Score(1.0, str(found), target=own)
    return Score(0.0, str(found), "different", target=own)


def _target(target: str, after: re.Pattern[str] | None, which: str) -> tuple[ReadNumber, bool]:
    """Its number, and whether it is more than that."""
    text = target.strip()
    whole = _NUMBER.fullmatch(text)
    number = _read(whole) if whole is not None else None
    is_more = number is None
    if number is None:
        start = -1 if after is None else _end_of_last(after, text)
        if start < 0:
            start = text.rfind(_MARK) + len(_MARK) if _MARK in text else 0
        chosen = _chosen(text, start, which)
        if isinstance(chosen, str):
            raise BadTarget(f"the target has several numbers: {shown(text, 80)}")
        number = chosen
    if number is None:
        raise BadTarget(f"the target has no number: {shown(text, 80)}")
    return number, is_more


def _end_of_last(pattern: re.Pattern[str], text: str) -> int:
    """-1 where it does not match."""
    end = -1
    for found in pattern.finditer(text):
        end = found.end()
    return end


def _chosen(text: str, start: int, which: str) -> ReadNumber | str | None:
    """Null where there is none; what to say where `only` finds several."""
    if which == "first":
        return next(numbers_in(text, start), None)
    if which == "last":
        return _last(text, start)
    values = list(numbers_in(text, start))
    if not values:
        return None
    other = next((one for one in values if not one.equals(values[0])), None)
    return values[0] if other is None else f"it has several numbers: {values[0]}, {other}"


def _last(text: str, start: int) -> ReadNumber | None:
    """Looks first around the last digit, which is mostly of the last number, and rarely at all."""
    digit = _DIGIT.search(text[::-1])
    if digit is None:
        return None
    at = len(text) - digit.start()
    near = max(start, at - _WINDOW)
    for begin in dict.fromkeys((near, start)):
        matches = list(_NUMBER.finditer(text, begin, at + _BEHIND))
        for found in reversed(matches):
            if begin > start and found.start() < begin + _SURE:
                break
            number = _read(found)
            if number is not None:
                return number
    return None
