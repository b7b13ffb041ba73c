import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.errors import JobError
from batchrun.inputs.carried import check_types, make_column, unite
from batchrun.job.sections import InputJob
from batchrun.store.columns import name_columns, own_columns


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "A", "row", "Row", "row_input", "a_2", "", "model"])))
def test_no_two_names_are_alike_without_regard_to_case(columns: list[str]) -> None:
    names = [name.lower() for name in name_columns(columns)]
    assert len(set(names)) == len(columns)
    assert not set(names) & set(own_columns())
    assert all(names)


def test_names_that_batchrun_uses_get_a_suffix() -> None:
    columns = ["Model", "model", "question", "Question", "row"]
    assert name_columns(columns) == [
        "Model_input",
        "model_input_2",
        "question",
        "Question_2",
        "row_input",
    ]


def test_an_unknown_type_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(JobError, match=r"x = 'text'.*bool, int64, double, string, json"):
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


def test_types_are_told_as_a_person_reads_them() -> None:
    assert make_column("x", "x", pa.float64()).type == "double"
    assert make_column("x", "x", "json").type == "json"
    assert make_column("x", "x", pa.timestamp("us")).type == "timestamp[us]"
    wide = pa.struct([(f"field{at}", pa.int64()) for at in range(1_000)])
    assert len(make_column("x", "x", wide).type) <= 120
