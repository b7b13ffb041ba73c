"""Amounts as people and servers write them: sizes, counts, durations, dollars."""

import math
import re

PART = r"\d{1,15}(?:\.\d{1,15})? ?(?:ms|us|µs|ns|hours?|minutes?|seconds?|[hms])"

_whole = re.compile(rf"(?i)(?:{PART} ?)+")
_part = re.compile(r"(\d+(?:\.\d+)?) ?([a-zµ]+)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


_THOUSANDS = re.compile(r"\d{1,3}(?:([,'_ \u00a0\u202f])\d{3})(?:\1\d{3})*(?:\.\d*)?")


def number_of(text: str | None) -> float | None:
    """A finite number from zero up, also with separators (`150,000`); None where it is none."""
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        found = _THOUSANDS.fullmatch(text.strip())
        if found is None:
            return None
        number = float(text.replace(found[1], ""))
    return number if math.isfinite(number) and number >= 0 else None


def duration_s(text: str) -> float | None:
    """Seconds; None where the text is no duration with units."""
    if len(text) <= 16 and text[-1:] == "s" and text[:1].isdecimal():  # most are a number of s, ms
        number, factor = (text[:-2], 0.001) if text[-2] == "m" else (text[:-1], 1.0)
        if number[-1].isdecimal() and number.replace(".", "", 1).isdecimal():
            return float(number) * factor
    text = text.strip().lower()
    if _whole.fullmatch(text) is None:
        return None
    return sum(float(number) * _factor(unit) for number, unit in _part.findall(text))


def _factor(unit: str) -> float:
    return _UNITS.get(unit) or _UNITS[unit[0]]


def size_in_words(size: int) -> str:
    """`312 kB`, `1.3 MB`."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


_SCALES = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def duration(seconds: float) -> str:
    """`1.2 s`, `45 s`, `12 min 5 s`, `3 h 8 min`, `2 d 4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    for large, unit, small, small_unit in _SCALES:
        count, rest = divmod(round(seconds / small), large // small)
        if count:
            return f"{count:,} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{seconds:.0f} s"


_EXACT_S = 600.0  # a longer time to come is no matter of seconds


def time_left(seconds: float) -> str:
    """`45 s`, `9 min 59 s`, `20 min`."""
    return duration(seconds if seconds < _EXACT_S else round(seconds / 60) * 60)


def seconds(value: float) -> str:
    """`0.012 s`, `1.24 s`, `12 min 5 s`."""
    if value < 9.995:
        return f"{value:.3f} s" if value < 0.9995 else f"{value:.2f} s"
    return duration(value)


_RATES = ((1, "s"), (60, "min"), (3_600, "h"), (86_400, "day"))


def rate(per_s: float) -> str:
    """`83.0 rows/s`, `1.2 rows/min`: in the first unit where it is not below 1."""
    if not per_s:
        return "0 rows/s"
    size, unit = next((one for one in _RATES if per_s * one[0] >= 1), _RATES[-1])
    rows = per_s * size
    return f"{rows:,.0f} rows/{unit}" if rows >= 100 else f"{rows:,.1f} rows/{unit}"


def short_count(count: float) -> str:
    """`42`, `7.5`, `1.2k`, `3.4M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    if isinstance(count, int):
        return str(count)
    return f"{count:.1f}" if 0 < count < 100 else f"{count:.0f}"


def plural(count: int, one: str, several: str = "") -> str:
    """`1 row`, `1,319 rows`; the words for one and, unless it is that with an s, for several."""
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def usd(dollars: float) -> str:
    """`$12.30`, `$0.0498`: cents, or three digits that say something."""
    if not 0 < dollars < 0.1:
        return f"${dollars:,.2f}"
    digits = f"{dollars:.{min(12, 2 - math.floor(math.log10(dollars)))}f}".rstrip("0")
    return f"${digits.ljust(4, '0')}"


UNKNOWN = "unknown"  # a cost


def known_usd(dollars: float | None, *, is_partly: bool) -> str:
    """A cost as every command shows it: `$12.30`, with `+?` where a part is unknown, `unknown`.

    That some attempts have cost nothing says nothing of the others.
    """
    if dollars is None or (is_partly and not dollars):
        return UNKNOWN
    return usd(dollars) + ("+?" if is_partly else "")
