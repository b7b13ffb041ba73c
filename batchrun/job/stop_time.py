"""When a run is to stop, as people write it: a time of day, a date and time, or a duration."""

import re
from datetime import datetime, time, timedelta

from batchrun.formats.amounts import duration_s
from batchrun.formats.json_text import shown

_MOST_S = 10 * 365 * 86_400.0
_MINUTES = re.compile(r"min\b")
_HOW = (
    "write a time of day (06:30), a date and time (2026-12-01 06:30) or a duration with its unit "
    "(8h, 90min)"
)


def stop_time(text: str, now: datetime) -> float:
    """Seconds since 1970 of what a command means that begins `now`, in local time.

    A time of day is the next one. A date and time may be past. Raises `ValueError` where it is
    none of these.
    """
    text = text.strip()
    if (given := time_of_day(text)) is not None:
        today = datetime.combine(now.date(), given)
        return (today if today > now else today + timedelta(days=1)).timestamp()
    if (moment := date_and_time(text)) is not None:
        return moment.timestamp()
    seconds = duration_s(_MINUTES.sub("m", text.lower()))
    if seconds is None or not 0 < seconds <= _MOST_S:
        raise ValueError(f"stop_at is {shown(text)}; {_HOW}")
    return now.timestamp() + seconds


def time_of_day(text: str) -> time | None:
    """`06:30` or `06:30:15`; null where the text is something else."""
    if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", text) is None:
        return None
    try:
        return time.fromisoformat(text.rjust(text.count(":") * 3 + 2, "0"))
    except ValueError:
        raise ValueError(f"stop_at is {shown(text)}, which is not a time of day; {_HOW}") from None


def date_and_time(text: str) -> datetime | None:
    """ISO 8601, local unless it names its offset; null where the text is something else."""
    if re.match(r"\d{4}-\d{2}-\d{2}[T ]\d", text) is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"stop_at is {shown(text)}, which is not a date and time; {_HOW}"
        ) from None
