import re
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.errors import InputError
from batchrun.inputs.identity import find_duplicate, repeated_hashes
from batchrun.inputs.prompt_set import PromptSet, find_source
from batchrun.inputs.rows import SourceRow
from batchrun.job.sections import InputJob

Read = Callable[..., Any]
Write = Callable[..., Path]


def ids(rows: list[Any]) -> list[str]:
    return [row.custom_id for row in rows]


def test_custom_id_names_rows_and_is_not_carried_again(write: Write, read: Read) -> None:
    survey, rows = read(write({"prompt": "x", "custom_id": "a"}, {"prompt": "x", "custom_id": 7}))
    assert ids(rows) == ["a", "7"]
    assert survey.layout.id_column is None
    assert survey.carried == ()
    assert survey.warnings == ()


def test_id_names_rows_where_it_can_and_is_carried_too(write: Write, read: Read) -> None:
    survey, rows = read(write({"prompt": "x", "id": 5}, {"prompt": "x", "id": 6}))
    assert ids(rows) == ["5", "6"]
    assert survey.layout.id_column == "id"
    assert rows[0].carried == (5,)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1, 2, 1], r'not unique \("1" in prompts.jsonl:1 and prompts.jsonl:3\)'),
        ([1, "1", 2], "not unique"),
        ([1, None, 2], "prompts.jsonl:2"),
        ([1, 2.5, 3], "prompts.jsonl:2"),
        ([1.0, 2.0, 3.0], "`id` is 1.0 in prompts.jsonl:1, which is neither text nor an integer"),
        ([[1], [2], [3]], r"`id` is \[1\] in prompts.jsonl:1"),
        ([None, {"a": "b"}, None], r'`id` is {"a":"b"} in prompts.jsonl:2'),
        ([None, None, None], None),
    ],
)
def test_an_id_that_names_not_every_row_leaves_the_numbers_and_a_warning(
    write: Write, read: Read, values: list[Any], reason: str | None
) -> None:
    survey, rows = read(write(*({"prompt": "x", "id": value} for value in values), b"{"))
    assert ids(rows) == ["0", "1", "2", "3"]
    assert survey.ids is None
    assert survey.layout.id_column is None
    said = [text for text in survey.warnings if "known by their number" in text]
    assert len(said) == (1 if reason else 0)
    if reason:
        assert re.search(reason, said[0])


def test_without_ids_rows_are_known_by_number_without_a_warning(write: Write, read: Read) -> None:
    survey, rows = read(write({"prompt": "x"}, {"prompt": "x"}))
    assert ids(rows) == ["0", "1"]
    assert survey.warnings == ()


def test_rows_without_custom_id_go_by_number_with_a_warning(write: Write, read: Read) -> None:
    survey, rows = read(write({"prompt": "x", "custom_id": "a"}, {"prompt": "x"}))
    assert ids(rows) == ["a", "1"]
    assert survey.ids is not None
    assert survey.warnings == ("1 of 2 rows have no `custom_id` and are known by their number",)


def test_rows_without_custom_id_may_go_by_id(write: Write, read: Read) -> None:
    survey, rows = read(write({"prompt": "x", "custom_id": "a"}, {"prompt": "x", "id": "b"}))
    assert ids(rows) == ["a", "b"]
    assert survey.layout.id_column == "id"


def test_an_explicit_column_wins_and_custom_id_is_carried(write: Write, read: Read) -> None:
    path = write({"prompt": "x", "custom_id": "a", "key": 1}, {"prompt": "x", "key": "k"})
    survey, rows = read(path, id="key")
    assert ids(rows) == ["1", "k"]
    assert [column.name for column in survey.layout.columns] == ["custom_id_input", "key"]
    assert rows[0].carried == ("a", "1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "column `key`, which names the rows, is missing"),
        ({"prompt": "x", "key": None}, "`key` is null"),
        ({"prompt": "x", "key": 1.5}, "`key` is 1.5; it must be text or an integer"),
        ({"prompt": "x", "key": True}, "`key` is true"),
    ],
)
def test_a_row_that_an_explicit_column_does_not_name_is_bad(
    write: Write, read: Read, row: dict[str, Any], message: str
) -> None:
    survey, rows = read(write({"prompt": "x", "key": "a"}, row), id="key")
    assert survey.bad_rows == 1
    assert message in rows[1].message
    assert rows[1].custom_id == "1"


def test_a_custom_id_that_is_no_name_makes_the_row_bad(write: Write, read: Read) -> None:
    _, rows = read(write({"prompt": "x", "custom_id": [1]}))
    assert "`custom_id` is [1]" in rows[0].message


@pytest.mark.parametrize("column", ["custom_id", "key"])
def test_a_duplicate_is_an_error_that_names_both_rows(
    write: Write, read: Read, column: str
) -> None:
    rows = [{"prompt": "x", column: f"id-{number}"} for number in range(50)]
    rows[41][column] = "id-7"
    path = write(*rows)
    message = rf'duplicate {column} "id-7": prompts\.jsonl:8 and prompts\.jsonl:42'
    with pytest.raises(InputError, match=message):
        read(path, id="key" if column == "key" else None)


def test_a_number_and_its_text_are_the_same_name(write: Write, read: Read) -> None:
    with pytest.raises(InputError, match="duplicate"):
        read(write({"prompt": "x", "custom_id": 1}, {"prompt": "x", "custom_id": "1"}))


def test_names_are_compared_once_surrogates_are_replaced(write: Write, read: Read) -> None:
    lines = (rb'{"prompt": "x", "custom_id": "\ud800"}', rb'{"prompt": "x", "custom_id": "\udfff"}')
    with pytest.raises(InputError, match="duplicate"):
        read(write(*lines))


def test_a_name_that_is_another_rows_number_is_an_error(write: Write, read: Read) -> None:
    path = write({"prompt": "x", "custom_id": "1"}, {"prompt": "x"})
    with pytest.raises(InputError, match=r"prompts.jsonl:2 has no name and is known by its number"):
        read(path)


def test_a_bad_row_keeps_its_name(write: Write, read: Read) -> None:
    _, rows = read(write({"custom_id": "a"}, {"custom_id": "b", "prompt": "x"}))
    assert ids(rows) == ["a", "b"]


def test_a_pinned_rule_stays(write: Write, read: Read) -> None:
    survey, _ = read(write({"prompt": "x", "id": "a"}, {"prompt": "x", "id": "b"}))
    pinned = survey.layout
    for row, message in (
        ({"prompt": "x", "id": "a"}, "duplicate id|duplicate custom_id"),
        ({"prompt": "x"}, "this run has named its rows by that column"),
    ):
        path = write({"prompt": "x", "id": "a"}, {"prompt": "x", "id": "b"}, row)
        with pytest.raises(InputError, match=message):
            read(path, pinned=pinned)
    with pytest.raises(InputError, match=r"--id .* is `prompt`"):
        read(write({"prompt": "x", "id": "a"}), pinned=pinned, id="prompt")


def test_numbers_stay_numbers_once_pinned(write: Write, read: Read) -> None:
    survey, _ = read(write({"prompt": "x", "id": 1}, {"prompt": "x", "id": 1}))
    _, rows = read(write({"prompt": "x", "id": 1}, {"prompt": "x", "id": 2}), pinned=survey.layout)
    assert ids(rows) == ["0", "1"]


def test_ids_in_parquet_may_be_any_whole_numbers(tmp_path: Path, read: Read) -> None:
    for kind in (pa.int8(), pa.uint64(), pa.decimal128(20, 0)):
        table = pa.table({"prompt": ["x", "y"], "id": pa.array([1, 2]).cast(kind)})
        pq.write_table(table, tmp_path / "a.parquet")
        assert ids(read(tmp_path / "a.parquet")[1]) == ["1", "2"]


def lookup(names: list[str]) -> Callable[[set[int]], Iterator[tuple[SourceRow, str]]]:
    def read(numbers: set[int]) -> Iterator[tuple[SourceRow, str]]:
        for number in sorted(numbers):
            yield SourceRow(number, "f", number + 1, {}), names[number]

    return read


@settings(deadline=None)
@given(st.lists(st.integers(0, 8).map(str), max_size=12), st.integers(1, 20))
def test_the_first_repeated_name_is_found_even_where_hashes_collide(
    names: list[str], buckets: int
) -> None:
    hashes = array("q", [hash(name) % buckets for name in names])
    pair = find_duplicate(hashes, lookup(names))
    if len(set(names)) == len(names):
        assert pair is None
    else:
        assert pair is not None
        (one, name), (other, again) = pair
        first = next(at for at, name in enumerate(names) if name in names[:at])
        assert (one.row, other.row) == (names.index(names[first]), first)
        assert name == again == names[first]


def test_partitions_find_what_the_whole_would() -> None:
    names = [f"name {number}" for number in range(2_500_000)]
    names[2_400_000] = names[123_456]
    hashes = array("q", map(hash, names))
    assert repeated_hashes(hashes) == {hash(names[123_456])}


def test_a_broken_line_among_ids_from_one_to_n_takes_no_rows_name(tmp_path: Path) -> None:
    lines = [f'{{"id": {number}, "prompt": "p"}}' for number in range(1, 6)]
    lines[2] = "not JSON"
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    job = InputJob(str(path))
    prompts = PromptSet(find_source(job), job, {"model": "m"})
    survey = prompts.survey(None)
    assert (survey.bad_rows, survey.layout.id_column) == (1, "id")
    rows = list(prompts.requests(survey.layout, bytearray(5)))
    assert [row.custom_id for row in rows] == ["1", "2", "2 (bad row)", "4", "5"]
    assert survey.problems[0].custom_id == "2 (bad row)"
    again = PromptSet(find_source(job), job, {"model": "m"}).survey(survey.layout)
    assert again.ids == survey.ids


def test_a_broken_line_goes_by_its_number_where_no_id_is_that_number(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"id": "a", "prompt": "p"}\nnot JSON\n', encoding="utf-8")
    job = InputJob(str(path))
    prompts = PromptSet(find_source(job), job, {"model": "m"})
    survey = prompts.survey(None)
    assert [row.custom_id for row in prompts.requests(survey.layout, bytearray(2))] == ["a", "1"]
