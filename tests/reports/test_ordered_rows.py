"""Rows come back in the order of the input, each once, from parts and journal."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.errors import JobError, StoreError
from batchrun.records import Outcome
from batchrun.reports.ordered_rows import read_rows
from batchrun.store.run_dir import RunDir

Make = Callable[..., Outcome]


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_rows(path, lambda _record, rows: list(rows))


def _fill(run_dir: RunDir, outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        run_dir.store(outcome)


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(40)), sealed=st.integers(0, 40), part_rows=st.integers(1, 50))
def test_any_order_of_arrival_becomes_the_order_of_the_input(
    order: list[int],
    sealed: int,
    part_rows: int,
    begin: Callable[..., RunDir],
    answered: Make,
    failed: Make,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("orders") / "run"
    made = [failed(row) if row % 7 == 3 else answered(row, calls=row % 3) for row in order]
    run_dir = begin(path, part_rows=part_rows)
    _fill(run_dir, made[:sealed])
    run_dir.close(seal=True)
    run_dir = begin(path)
    _fill(run_dir, made[sealed:])  # these stay in the journal
    try:
        rows = _rows(path)
    finally:
        run_dir.close()
    assert [row["row"] for row in rows] == list(range(40))
    for row in rows:
        expected = 0 if row["row"] % 7 == 3 else row["row"] % 3
        assert [call["position"] for call in row["tool_calls"]] == list(range(expected))


def test_a_row_that_was_sent_again_comes_once_and_is_the_new_one(
    tmp_path: Path, begin: Callable[..., RunDir], answered: Make, failed: Make
) -> None:
    path = tmp_path / "run"
    run_dir = begin(path)
    _fill(run_dir, [answered(0, calls=1), failed(1), answered(2, calls=1)])
    run_dir.close(seal=True)
    run_dir = RunDir.open(path)
    run_dir.start(part_rows=100, part_bytes=1 << 20, replaces=True)
    run_dir.store(msgspec.structs.replace(answered(1, calls=2), replaces=True))
    rows = _rows(path)
    run_dir.close()
    assert [(row["row"], row["ok"], len(row["tool_calls"])) for row in rows] == [
        (0, True, 1),
        (1, True, 2),
        (2, True, 1),
    ]


def test_rows_of_the_same_number_have_their_own_calls(
    tmp_path: Path, begin: Callable[..., RunDir], answered: Make
) -> None:
    run_dir = begin(tmp_path / "run")
    twice = [answered(5, custom_id=name, calls=calls) for name, calls in (("a", 2), ("b", 1))]
    _fill(run_dir, [answered(9), *twice, answered(0)])
    run_dir.close(seal=True)
    rows = _rows(tmp_path / "run")
    assert [(row["custom_id"], len(row["tool_calls"])) for row in rows] == [
        ("id-0", 0),
        ("a", 2),
        ("b", 1),
        ("id-9", 0),
    ]


def test_rows_far_apart_in_the_input_are_read_window_by_window(
    tmp_path: Path, begin: Callable[..., RunDir], answered: Make
) -> None:
    numbers = [row * 1_000_003 for row in range(300)]
    shuffled = random.Random(7).sample(numbers, len(numbers))
    run_dir = begin(tmp_path / "run", part_rows=20)
    _fill(run_dir, [answered(row) for row in shuffled])
    run_dir.close(seal=True)
    assert [row["row"] for row in _rows(tmp_path / "run")] == numbers


def test_a_run_without_rows_has_none_and_no_run_is_said_so(
    tmp_path: Path, begin: Callable[..., RunDir]
) -> None:
    begin(tmp_path / "run").close()
    assert _rows(tmp_path / "run") == []
    with pytest.raises(JobError, match="is not a run directory"):
        _rows(tmp_path)


def test_a_damaged_part_is_named(
    tmp_path: Path, begin: Callable[..., RunDir], answered: Make
) -> None:
    run_dir = begin(tmp_path / "run")
    _fill(run_dir, [answered(row) for row in range(50)])
    run_dir.close(seal=True)
    (part,) = (tmp_path / "run" / "responses").glob("*.parquet")
    whole = part.read_bytes()
    part.write_bytes(whole[:100] + bytes(200) + whole[300:])
    with pytest.raises(StoreError, match=rf"{part.name}: damaged"):
        _rows(tmp_path / "run")
