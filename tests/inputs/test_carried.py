import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchrun.errors import InputError, JobError
from batchrun.inputs.carried import check_types, make_column, unite
from batchrun.inputs.prompt_set import PromptSet, find_source
from batchrun.job.sections import InputJob

Read = Callable[..., Any]
Write = Callable[..., Path]


def carried(read: Read, path: Path, **how: Any) -> tuple[str, list[Any]]:
    survey, rows = read(path, **how)
    (column,) = survey.layout.columns
    return column.type, [row.carried[0] for row in rows]


@pytest.mark.parametrize(
    ("values", "kind", "stored"),
    [
        ([True, None], "bool", [True, None]),
        ([1, -(2**63), 2**63 - 1], "int64", [1, -(2**63), 2**63 - 1]),
        ([1, 2.5], "double", [1.0, 2.5]),
        ([2**53, 0.5], "double", [2.0**53, 0.5]),
        ([2**53 + 1, 0.5], "json", ["9007199254740993", "0.5"]),
        ([2**63, 1], "json", ["9223372036854775808", "1"]),
        (["a", "ä"], "string", ["a", "ä"]),
        (["a", 1, 3.0, None], "string", ["a", "1", "3.0", None]),
        (["a", True, None], "json", ['"a"', "true", None]),
        ([True, 1], "json", ["true", "1"]),
        ([{"b": 1, "a": None}, []], "json", ['{"b":1,"a":null}', "[]"]),
        ([None, None], "string", [None, None]),
    ],
)
def test_one_type_is_found_for_the_whole_source(
    write: Write, read: Read, values: list[Any], kind: str, stored: list[Any]
) -> None:
    path = write(*({"prompt": "x", "x": value} for value in values))
    assert carried(read, path) == (kind, stored)


@pytest.mark.parametrize(
    ("kind", "values", "stored"),
    [
        ("string", ["a", 1, {"b": 1}, None], ["a", "1", '{"b":1}', None]),
        ("json", ["a", 1], ['"a"', "1"]),
        ("double", [1, 2], [1.0, 2.0]),
        ("int64", [1.0, 2], [1, 2]),
    ],
)
def test_a_type_that_the_job_names_is_made(
    write: Write, read: Read, kind: str, values: list[Any], stored: list[Any]
) -> None:
    path = write(*({"prompt": "x", "x": value} for value in values))
    assert carried(read, path, types={"x": kind}) == (kind, stored)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int64", "1"),
        ("int64", 1.5),
        ("int64", 2**63),
        ("double", "1.5"),
        ("double", 2**53 + 1),
        ("bool", 1),
    ],
)
def test_a_value_that_does_not_fit_makes_its_row_bad(
    write: Write, read: Read, kind: str, value: object
) -> None:
    path = write({"prompt": "x"}, {"prompt": "x", "x": value, "y": 1})
    survey, (_, row) = read(path, types={"x": kind})
    said = (
        f"column `x` holds {json.dumps(value)}, but it is carried as {kind}; say --type x=string, "
        "or leave the column out with --carry y"
    )
    assert (row.source, row.line, row.message) == ("prompts.jsonl", 2, said)
    assert (survey.bad_rows, row.carried) == (1, (None, 1))
    assert carried(read, path, types={"x": "string"}, carry=("x",))[1][1] == str(
        value if value is not True else "true"
    )
    assert read(path, carry=("y",))[0].bad_rows == 0


def test_a_pinned_type_is_obeyed(write: Write, read: Read) -> None:
    pinned = read(write({"prompt": "x", "x": 1.5}))[0].layout
    path = write({"prompt": "x", "x": 1.5}, {"prompt": "x", "x": 2}, {"prompt": "x"})
    assert carried(read, path, pinned=pinned) == ("double", [1.5, 2.0, None])
    path = write({"prompt": "x", "x": 1.5}, {"prompt": "x", "x": "two"})
    _, (_, row) = read(path, pinned=pinned)
    assert "start a new run directory with -o and --type x=string" in row.message
    assert read(path, types={"x": "string"})[0].bad_rows == 0
    # Or without the column, in the same run.
    assert "leave the column out with --carry ''" in row.message
    _, rows = read(path, pinned=pinned, carry=())
    assert [row.carried for row in rows] == [(None,), (None,)]


def test_a_pinned_text_column_takes_other_values_once_the_job_says_text(
    write: Write, read: Read
) -> None:
    pinned = read(write({"prompt": "x", "x": "a"}))[0].layout
    path = write({"prompt": "x", "x": 1}, {"prompt": "x", "x": [1]})
    _, (number, row) = read(path, pinned=pinned)
    assert number.carried == ("1",)
    assert "`x` holds [1], but it is carried as string; say --type x=string" in row.message
    assert carried(read, path, pinned=pinned, types={"x": "string"})[1] == ["1", "[1]"]
    with pytest.raises(
        InputError, match="says json for `x`, but this run has carried it as string"
    ):
        read(path, pinned=pinned, types={"x": "json"})


def test_a_column_that_appears_later_is_an_error_that_names_carry(write: Write, read: Read) -> None:
    pinned = read(write({"prompt": "x", "x": 1}))[0].layout
    path = write({"prompt": "x", "x": 1}, {"prompt": "x", "x": 1, "y": 2})
    with pytest.raises(InputError, match=r"prompts.jsonl:2: column `y` is new.*--carry x"):
        read(path, pinned=pinned)
    _, rows = read(path, pinned=pinned, carry=("x",))
    assert [row.carried for row in rows] == [(1,), (1,)]
    _, rows = read(write({"prompt": "x", "x": 1}, {"prompt": "x", "y": None}), pinned=pinned)
    assert [row.carried for row in rows] == [(1,), (None,)]


def test_only_the_columns_that_the_job_lists_are_carried(write: Write, read: Read) -> None:
    path = write({"prompt": "x", "a": 1, "b": 2, "c": 3})
    survey, rows = read(path, carry=("c", "prompt"))
    assert survey.carried == ("c", "prompt")
    assert rows[0].carried == (3, "x")
    assert read(path, carry=())[1][0].carried == ()


def test_a_column_sent_by_some_rows_is_carried_by_the_others(write: Write, read: Read) -> None:
    path = write(
        {"input": "x", "temperature": 1, "prompt": None},
        {"prompt": "x", "temperature": 2, "input": None},
    )
    survey, rows = read(path)
    assert survey.carried == ("temperature",)
    assert survey.sent == ("input", "temperature", "prompt")
    assert [row.carried for row in rows] == [(None,), (2,)]


def test_names_are_changed_where_batchrun_has_such_a_column(write: Write, read: Read) -> None:
    survey, rows = read(write({"prompt": "x", "Model": "a", "status": 1, "Tag": 2, "tag": 3}))
    assert [(column.column, column.name) for column in survey.layout.columns] == [
        ("Model", "Model_input"),
        ("status", "status_input"),
        ("Tag", "Tag"),
        ("tag", "tag_2"),
    ]
    assert rows[0].carried == ("a", 1, 2, 3)


@pytest.mark.parametrize(
    ("job", "option"),
    [
        ({"id": "quesion"}, r"--id \(id in \[input\]\)"),
        ({"carry": ("quesion",)}, r"--carry \(carry in \[input\]\)"),
        ({"send": ("quesion",)}, r"--send \(send in \[input\]\)"),
        ({"types": {"quesion": "json"}}, r"--type \(types in \[input\]\)"),
    ],
)
def test_a_column_that_no_row_has_is_an_error_with_the_nearest(
    write: Write, read: Read, job: dict[str, Any], option: str
) -> None:
    path = write({"prompt": "x", "question": 1})
    with pytest.raises(
        InputError, match=rf"{option} names the column `quesion`.*did you mean `question`"
    ):
        read(path, **job)


def test_an_unknown_type_is_an_error_of_the_job(write: Write) -> None:
    job = InputJob(path=str(write({"prompt": "x"})), types={"x": "text"})
    with pytest.raises(JobError, match="a type is one of"):
        PromptSet(find_source(job), job, {})


def test_an_unknown_type_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(JobError, match=r'`x` is "text" .*bool, int64, double, string, json'):
        check_types(InputJob(path="a", types={"x": "text"}))


@pytest.mark.parametrize(
    ("kinds", "united"),
    [
        (["string"], pa.string()),
        ([pa.int32(), pa.int64()], pa.int64()),
        ([pa.null(), pa.int8()], pa.int8()),
        ([pa.dictionary(pa.int8(), pa.string()), "string"], pa.string()),
        (["json", pa.int64()], "json"),
        ([pa.int64(), "string"], None),
    ],
)
def test_types_of_several_files_are_united_where_nothing_is_lost(
    kinds: list[pa.DataType | str], united: pa.DataType | str | None
) -> None:
    assert unite(kinds) == united


def test_types_are_shown_as_a_person_reads_them() -> None:
    assert make_column("x", "x", pa.float64()).type == "double"
    assert make_column("x", "x", "json").type == "json"
    assert make_column("x", "x", pa.timestamp("us")).type == "timestamp[us]"
    wide = pa.struct([(f"field{at}", pa.int64()) for at in range(1_000)])
    assert len(make_column("x", "x", wide).type) <= 120
