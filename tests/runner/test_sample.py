from hypothesis import given
from hypothesis import strategies as st

from batchrun.records import Pilot
from batchrun.runner.plan import draw_pilot

MARKS = st.lists(st.integers(0, 1), min_size=1, max_size=60)


@given(MARKS, st.data(), st.integers(1, 80))
def test_a_pilot_holds_rows_that_can_be_sent_each_once(
    settled: list[int], data: st.DataObject, rows: int
) -> None:
    is_bad = data.draw(st.lists(st.integers(0, 1), min_size=len(settled), max_size=len(settled)))
    pilot = draw_pilot(None, rows, settled, is_bad)
    free = [row for row, marks in enumerate(zip(settled, is_bad, strict=True)) if marks == (0, 0)]
    assert len(set(pilot.rows)) == len(pilot.rows) == min(rows, len(free))
    assert set(pilot.rows) <= set(free)
    assert draw_pilot(None, rows, settled, is_bad) == pilot


def test_a_larger_pilot_holds_the_smaller_one() -> None:
    none = bytes(500)
    small = draw_pilot(None, 20, none, none)
    settled = bytearray(none)
    for row in small.rows:
        settled[row] = 1
    large = draw_pilot(small, 50, settled, none)
    assert large.rows[:20] == small.rows
    assert len(set(large.rows)) == 50
    assert draw_pilot(large, 20, settled, none) == large


def test_a_source_that_has_grown_is_picked_from_anew() -> None:
    before = Pilot((1, 2, 3), of=10)
    settled = bytearray(100)
    settled[1:4] = b"\1\1\1"
    pilot = draw_pilot(before, 3, settled, bytes(100))
    assert pilot.of == 100
    assert not set(pilot.rows) & set(before.rows)


def test_rows_are_picked_from_everywhere() -> None:
    none = bytes(1_000)
    picked = draw_pilot(None, 200, none, none).rows
    assert 60 < sum(row < 500 for row in picked) < 140
    assert list(picked) != sorted(picked)
