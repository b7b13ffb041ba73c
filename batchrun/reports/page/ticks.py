"""Where an axis has ticks, and their words: round figures, and no two alike. No I/O."""

import math
from collections.abc import Iterable, Sequence

from msgspec import Struct

_STEPS = (1.0, 2.0, 5.0, 10.0)
_HALVES = (0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0)  # of minutes
_QUARTERS = (0.5, 1.0, 2.0, 3.0, 6.0, 12.0, 24.0)  # of hours
_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
_SIZES = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))  # from where on: divisor, letter
_WITHIN = (  # a factor of ten
    *((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7)),
    *((1, 2, 5), (1, 3), (1,)),
)
_FEWEST, _MOST = 3, 6  # ticks on a log scale


class Tick(Struct, frozen=True):
    """One tick, in the unit of the axis."""

    at: float
    words: str


def amount_ticks(most: float, *, sign: str = "", whole: bool = False) -> list[Tick]:
    """From 0 up to the first that is not below `most`; about five steps.

    `sign`: in front of each but 0, as `$`. `whole`: there are no halves of what is counted.
    """
    step = _step(most / 5, 1.0 if whole else 0.0)
    steps = max(1, math.ceil(most / step - 1e-9))
    top = steps * step
    size, letter = next(((size, name) for least, size, name in _SIZES if top >= least), (1.0, ""))
    digits = max(0, -math.floor(math.log10(step / size) + 1e-9))
    digits = 2 if sign and digits == 1 and not letter else digits  # cents
    return [
        Tick(at * step, f"{sign}{at * step / size:,.{digits}f}{letter}" if at else "0")
        for at in range(steps + 1)
    ]


def _step(least: float, smallest: float) -> float:
    """The round number that is not below."""
    if least <= 0:
        return smallest or 1.0
    size = 10.0 ** math.floor(math.log10(least))
    step = next(one * size for one in _STEPS if one * size >= least * (1 - 1e-9))
    return max(step, smallest)


def time_unit(span_s: float) -> tuple[int, str]:
    """What a time axis counts in, so that its figures are short: seconds, and the unit's name."""
    return next((size, f"{name}s") for size, name in _UNITS if span_s >= 3 * size or size == 1)


def time_ticks(span_s: float) -> list[Tick]:
    """From 0 to at most `span_s`, in the unit of `time_unit`; about six steps."""
    size, name = time_unit(span_s)
    span = span_s / size
    least = span / 6
    known = {"minutes": _HALVES, "hours": _QUARTERS}.get(name, ())
    step = next((one for one in known if one >= least), None) or _step(least, 0.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    steps = math.floor(span / step + 1e-9)
    return [Tick(at * step, f"{at * step:,.{digits}f}" if at else "0") for at in range(steps + 1)]


def log_ticks(low: float, high: float) -> list[Tick]:
    """On a log scale between both, `low` above 0."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = range(first, last + 1)
    found: list[float] = []
    for within in _WITHIN:
        found = _between(low, high, (one * 10.0**power for power in powers for one in within))
        if len(found) <= _MOST:
            break
    # Over many powers of ten, every second one or fewer.
    found = found[:: math.ceil(len(found) / _MOST)] if len(found) > _MOST else found
    if len(found) < _FEWEST:
        every = (one * 10.0**power for power in powers for one in _WITHIN[0])
        found = _between(low, high, every)[:_MOST]
    return [Tick(at, f"{at:,.12g}") for at in found]


def _between(low: float, high: float, values: Iterable[float]) -> list[float]:
    return [value for value in values if low <= value <= high]


def placed(ticks: Sequence[Tick], end: float) -> list[tuple[float, str]]:
    """The same as shares of the axis, in percent."""
    return [(100 * tick.at / end, tick.words) for tick in ticks] if end else []
