"""When a run is to stop, as people write it."""

from datetime import datetime

import pytest

from batchrun.job.stop_time import date_and_time, stop_time

_NOW = datetime(2026, 11, 30, 22, 15)  # noqa: DTZ001 - local


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("06:30", datetime(2026, 12, 1, 6, 30)),  # noqa: DTZ001
        ("6:30", datetime(2026, 12, 1, 6, 30)),  # noqa: DTZ001
        ("22:15", datetime(2026, 12, 1, 22, 15)),  # noqa: DTZ001 - now is past
        ("22:15:01", datetime(2026, 11, 30, 22, 15, 1)),  # noqa: DTZ001
        ("23:00", datetime(2026, 11, 30, 23, 0)),  # noqa: DTZ001
        ("2026-12-02 06:30", datetime(2026, 12, 2, 6, 30)),  # noqa: DTZ001
        ("2026-12-02T06:30:00", datetime(2026, 12, 2, 6, 30)),  # noqa: DTZ001
        ("2020-01-01 00:00", datetime(2020, 1, 1)),  # noqa: DTZ001
        ("8h", datetime(2026, 12, 1, 6, 15)),  # noqa: DTZ001
        ("1h30m", datetime(2026, 11, 30, 23, 45)),  # noqa: DTZ001
        ("90 min", datetime(2026, 11, 30, 23, 45)),  # noqa: DTZ001
        ("45 minutes", datetime(2026, 11, 30, 23, 0)),  # noqa: DTZ001
    ],
)
def test_a_time_is_understood(text: str, moment: datetime) -> None:
    assert stop_time(text, _NOW) == moment.timestamp()


def test_a_date_may_name_its_offset() -> None:
    assert stop_time("2026-12-01T06:30+09:00", _NOW) == stop_time("2026-11-30T21:30Z", _NOW)
    assert date_and_time("06:30") is None


@pytest.mark.parametrize(
    "text", ["", "8", "24:00", "6:3", "06:60", "tomorrow", "2026-02-30 06:30", "0h", "1e9h", "-2h"]
)
def test_anything_else_is_an_error_that_shows_how_to_write_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"write a time of day \(06:30\)"):
        stop_time(text, _NOW)
