"""Durations as servers write them: `12ms`, `1s`, `6m0s`, `9.816s`, `6 seconds`. Pure."""

import re

PART = r"\d{1,15}(?:\.\d{1,15})? ?(?:ms|us|µs|ns|hours?|minutes?|seconds?|[hms])"

_whole = re.compile(rf"(?i)(?:{PART} ?)+")
_part = re.compile(r"(\d+(?:\.\d+)?) ?([a-zµ]+)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration_s(text: str) -> float | None:
    """Seconds; null where the text is no duration with units."""
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
