import datetime as dt
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.errors import InputError
from batchrun.formats.arrow import own_type, plain_values, unpack
from batchrun.inputs.parquet import sendable
from batchrun.inputs.prompt_set import PromptSet, find_source
from batchrun.job.sections import InputJob
from batchrun.records import BadRow

Read = Callable[..., Any]
Table = Callable[..., Path]

USER = {"role": "user", "content": "hi"}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    def table(columns: dict[str, Any] | pa.Table, name: str = "a.parquet", **how: Any) -> Path:
        made = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(made, tmp_path / name, **how)
        return tmp_path / name

    return table


def bodies(rows: list[Any]) -> list[Any]:
    return [json.loads(row.body) for row in rows]


def test_nulls_where_a_field_was_absent_are_not_sent(table: Table, read: Read) -> None:
    tools = [
        [{"type": "function", "name": "f", "parameters": {"type": "object", "a": None}}],
        [{"type": "web_search", "name": None, "parameters": None}],
        None,
    ]
    path = table({"input": ["x", "y", "z"], "tools": tools, "temperature": [None, 0.5, None]})
    _, rows = read(path, {"model": "m", "temperature": 1})
    assert bodies(rows) == [
        {
            "input": "x",
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
            "model": "m",
            "temperature": 1,
        },
        {"input": "y", "tools": [{"type": "web_search"}], "temperature": 0.5, "model": "m"},
        {"input": "z", "model": "m", "temperature": 1},
    ]


def test_nulls_in_json_text_are_sent(table: Table, read: Read) -> None:
    body = {"input": "x", "model": "m", "metadata": {"a": None}}
    _, rows = read(table({"body": [json.dumps(body)]}))
    assert bodies(rows) == [body]


def test_every_form_may_come_from_parquet(table: Table, read: Read) -> None:
    path = table(
        {
            "messages": [[USER], None, None, None],
            "input": [None, [USER], None, None],
            "prompt": [None, None, "text", "text"],
            "max_tokens": [5.0, None, None, None],
            "body": [None, None, None, {"input": "x", "unknown": None}],
        }
    )
    survey, rows = read(path)
    assert bodies(rows) == [
        {"input": [USER], "max_output_tokens": 5, "model": "m"},
        {"input": [USER], "model": "m"},
        {"input": "text", "model": "m"},
        {"input": "x", "model": "m"},
    ]
    assert survey.carried == ("prompt",)
    assert [row.carried for row in rows] == [(None,), (None,), (None,), ("text",)]


def test_maps_times_and_decimals_are_sent_as_json_knows_them(table: Table, read: Read) -> None:
    metadata = pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string()))
    path = table(
        {
            "input": ["x"],
            "metadata": metadata,
            "temperature": [Decimal("0.50")],
            "user": [dt.datetime(2026, 1, 2, tzinfo=dt.UTC)],
            "max_output_tokens": [16.0],
        }
    )
    _, rows = read(path)
    assert bodies(rows) == [
        {
            "input": "x",
            "metadata": {"a": "b"},
            "temperature": 0.5,
            "user": "2026-01-02T00:00:00+00:00",
            "max_output_tokens": 16,
            "model": "m",
        }
    ]
    assert b'"temperature":0.50' in rows[0].body


@pytest.mark.parametrize(("value", "word"), [(b"\xff", "binary"), (math.inf, "inf")])
def test_what_json_has_no_word_for_is_a_bad_row(
    table: Table, read: Read, value: object, word: str
) -> None:
    path = table({"question": ["a", "b"], "user": [{"x": None}, {"x": value}]})
    for template in ("{{ question }} {{ user }}", "{{ [user] }}"):
        _, rows = read(path, {"input": template, "model": "m"})
        assert "JSON cannot express it" in rows[1].message
        assert word in rows[1].message
    _, rows = read(path, {"input": "{{ row.question }}", "model": "m"})
    assert [body["input"] for body in bodies(rows)] == ["a", "b"]
    _, rows = read(table({"input": ["a", "b"], "user": [None, value]}))
    assert [type(row) is BadRow for row in rows] == [False, True]


def test_templates_see_plain_values(table: Table, read: Read) -> None:
    path = table(
        {
            "day": [dt.date(2026, 1, 2)],
            "price": [Decimal("1.50")],
            "tags": [["a", "b"]],
            "meta": [{"k": None, "v": 1}],
            "kind": pa.array(["x"]).dictionary_encode(),
        }
    )
    template = "{{ day }} {{ price }} {{ tags }} {{ meta.k | default('-') }} {{ meta }} {{ kind }}"
    _, rows = read(path, {"input": template, "model": "m"})
    assert bodies(rows)[0]["input"] == '2026-01-02 1.50 ["a", "b"] - {"v": 1} x'


def test_a_missing_template_column_is_a_problem_that_lists_them_all(
    table: Table, read: Read
) -> None:
    path = table({"question": ["a", None], "other": [1, 2]})
    said = r"did you mean `question`\? \(the columns are question, other\)"
    with pytest.raises(InputError, match=said):
        read(path, {"input": "{{ quetsion }}", "model": "m"})
    _, rows = read(path, {"input": "{{ quetsion }}", "model": "m"}, skip_bad_rows=True)
    assert re.search(said, rows[0].message)
    _, rows = read(path, {"input": "{{ question }}", "model": "m"})
    assert rows[1].message.startswith("the template's column `question` is null")
    assert rows[1].line is None
    assert rows[1].carried == (None, 2)


def test_carried_columns_come_back_with_their_types(table: Table, read: Read) -> None:
    carried = pa.table(
        {
            "when": pa.array([1, None, 3]).cast(pa.timestamp("ns", "Asia/Tokyo")),
            "price": pa.array([Decimal("1.50"), None, Decimal("2.25")]),
            "deep": pa.array(
                [{"a": [1, None], "b": {"c": dt.date(2026, 1, 1)}}, None, {"a": None}]
            ),
            "blob": pa.array([b"\x00\xff", None, b""]),
            "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
            "small": pa.array([1, 2, None], pa.int8()),
            "nothing": pa.nulls(3),
        }
    )
    path = table(carried.append_column("prompt", pa.array(["x", "y", "z"])))
    survey, rows = read(path)
    assert survey.carried == tuple(carried.column_names)
    values = msgspec.msgpack.decode(msgspec.msgpack.encode([row.carried for row in rows]))
    source = pq.read_table(path)
    for at, column in enumerate(survey.layout.columns):
        kind, stored = unpack(column.arrow)
        array = pa.array([row[at] for row in values], stored).cast(kind)
        if column.name not in ("kind", "nothing"):
            assert kind == source.schema.field(column.name).type
        assert array.to_pylist() == source[column.name].cast(kind).to_pylist()
    types = {column.name: column.type for column in survey.layout.columns}
    assert types["when"] == "timestamp[ns, tz=Asia/Tokyo]"
    assert (types["kind"], types["nothing"], types["small"]) == ("string", "string", "int8")


def test_the_types_that_the_job_names_are_made(table: Table, read: Read) -> None:
    path = table({"prompt": ["x"], "n": ["5"], "when": [dt.date(2026, 1, 1)], "s": [{"a": 1}]})
    types = {"n": "int64", "when": "string", "s": "json"}
    survey, rows = read(path, types=types)
    assert {column.name: column.type for column in survey.layout.columns} == types
    assert rows[0].carried == (5, "2026-01-01", '{"a":1}')
    with pytest.raises(InputError, match=r"a\.parquet: column `when` .*--type when=string"):
        read(path, types={"when": "bool"})


def test_files_of_a_folder_are_read_as_one_table(table: Table, tmp_path: Path, read: Read) -> None:
    table({"prompt": ["a"], "n": pa.array([1], pa.int32()), "only": [1.5]}, "1.parquet")
    table({"prompt": ["b"], "n": pa.array([2], pa.int64()), "s": [{"x": 1}]}, "2.parquet")
    table({"prompt": ["c"], "n": pa.nulls(1), "s": [{"y": "z"}]}, "3.parquet")
    (tmp_path / "4.jsonl").write_text('{"prompt": "d", "n": 4, "only": 2}\n')
    survey, rows = read(tmp_path)
    types = {column.name: column.type for column in survey.layout.columns}
    assert types == {"n": "int64", "only": "double", "s": "struct<x: int64, y: string>"}
    assert [row.carried for row in rows] == [
        (1, 1.5, None),
        (2, None, {"x": 1, "y": None}),
        (None, None, {"x": None, "y": "z"}),
        (4, 2.0, None),
    ]
    assert [row.source for row in rows] == ["1.parquet", "2.parquet", "3.parquet", "4.jsonl"]
    assert [row.line for row in rows if isinstance(row, BadRow)] == []


def test_types_that_do_not_go_together_are_an_error(
    table: Table, tmp_path: Path, read: Read
) -> None:
    table({"prompt": ["a"], "n": [1]}, "1.parquet")
    table({"prompt": ["b"], "n": ["x"]}, "2.parquet")
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    said = (
        "`n` has types that do not fit into one column (int64 (1.parquet), string (2.parquet)); "
        "say --type n=string, or leave the column out with --carry ''"
    )
    assert said in str(caught.value)
    assert [row.carried for row in read(tmp_path, types={"n": "string"})[1]] == [("1",), ("x",)]
    assert [row.carried for row in read(tmp_path, carry=())[1]] == [(), ()]
    _, rows = read(tmp_path, types={"n": "json"})
    assert [row.carried for row in rows] == [("1",), ('"x"',)]


def test_a_pinned_type_stays_where_nothing_is_lost(table: Table, read: Read) -> None:
    pinned = read(table({"prompt": ["a"], "n": [1]}))[0].layout
    _, rows = read(table({"prompt": ["a"], "n": pa.array([1], pa.int8())}), pinned=pinned)
    assert rows[0].carried == (1,)
    _, rows = read(table({"prompt": ["a", "b", "c"], "n": [2.0, None, math.nan]}), pinned=pinned)
    assert [row.carried for row in rows] == [(2,), (None,), (None,)]
    _, rows = read(table({"prompt": ["a"], "n": [1.5]}), pinned=pinned)
    assert "`n` holds 1.5, but it is carried as int64" in rows[0].message
    path = table({"prompt": ["a"], "n": ["1"]})
    with pytest.raises(
        InputError, match=r"holds string, but it is carried as int64; leave .* with"
    ):
        read(path, pinned=pinned)
    assert read(path, pinned=pinned, carry=())[1][0].carried == (None,)
    with pytest.raises(InputError, match="column `new` is new; this run carries n since"):
        read(table({"prompt": ["a"], "n": [1], "new": [1]}), pinned=pinned)


def test_complete_rows_are_passed_over(table: Table) -> None:
    path = table(
        {"prompt": [f"p{at}" for at in range(1_000)], "n": list(range(1_000))}, row_group_size=100
    )
    job = InputJob(path=str(path))
    prompts = PromptSet(find_source(job), job, {"model": "m"})
    layout = prompts.survey(None).layout
    complete = bytearray(b"\1") * 1_000
    wanted = [0, 99, 100, 555, 556, 999]
    for row in wanted:
        complete[row] = 0
    assert [row.row for row in prompts.requests(layout, complete)] == wanted
    assert [row.carried for row in prompts.requests(layout, complete, 556)] == [
        (0,),
        (99,),
        (100,),
        (555,),
    ]
    assert list(prompts.requests(layout, bytearray(b"\1") * 1_000)) == []
    assert len(list(prompts.requests(layout, bytearray(1_000), 250))) == 250


def test_a_file_cut_short_or_of_another_kind_is_an_error(table: Table, read: Read) -> None:
    path = table({"prompt": ["a"] * 1_000})
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[4:60] = bytes(56)
    for data in (whole[:-20], whole[:50], b"", b"{}\n" * 100, bytes(damaged)):
        path.write_bytes(data)
        with pytest.raises(InputError, match="cannot be read as Parquet"):
            read(path)


def test_bytes_that_are_no_utf8_make_their_rows_bad(tmp_path: Path, read: Read) -> None:
    raw = pa.array([b"a", b"caf\xe9", None, b"b"])
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    numbers = list(range(4))
    pq.write_table(pa.table({"prompt": text, "n": numbers}), tmp_path / "sent.parquet")
    _, rows = read(tmp_path / "sent.parquet")
    assert "`prompt` is text that is not UTF-8 (caf\\xe9)" in rows[1].message
    nested = pa.StructArray.from_arrays([text], ["k"])
    for note in (text, nested):
        table = pa.table({"prompt": list("abcd"), "note": note, "n": numbers})
        pq.write_table(table, tmp_path / "carried.parquet")
        survey, rows = read(tmp_path / "carried.parquet")
        assert survey.bad_rows == 1
        assert "column `note` holds text that is not UTF-8 (caf\\xe9)" in rows[1].message
        assert rows[1].message.endswith("leave the column out with --carry n")
        assert rows[1].carried == (None, 1)
        assert rows[3].carried == (("b" if note is text else {"k": "b"}), 3)
        survey, rows = read(tmp_path / "carried.parquet", carry=("n",))
        assert [row.carried for row in rows] == [(0,), (1,), (2,), (3,)]


def test_a_file_without_rows_has_none(table: Table, read: Read) -> None:
    with pytest.raises(InputError, match="no rows"):
        read(table({"prompt": pa.array([], pa.string())}))


def test_rows_of_which_no_column_is_used_are_rows_too(table: Table, read: Read) -> None:
    path = table({"x": list(range(1_500))})
    _, rows = read(path, {"input": "say hello", "model": "m"}, carry=())
    assert len(rows) == 1_500
    assert rows[0].carried == ()


def test_large_rows_come_in_small_batches(table: Table, read: Read) -> None:
    texts = ["x" * 3_000_000 + str(at) for at in range(12)]
    _, rows = read(table({"prompt": texts}))
    assert [body["input"][-2:] for body in bodies(rows)] == [text[-2:] for text in texts]


def test_columns_whose_names_hold_dots_are_columns(table: Table, read: Read) -> None:
    path = table({"prompt": ["a"], "a": [1], "a.b": [2]})
    survey, rows = read(path, carry=("a.b",))
    assert survey.carried == ("a.b",)
    assert rows[0].carried == (2,)


def test_nan_is_no_value_to_a_template_and_stays_nan_where_it_is_carried(
    table: Table, read: Read
) -> None:
    path = table({"question": ["a", "b"], "score": [0.5, math.nan]})
    _, rows = read(path, {"input": "{{ question }} {{ score }}", "model": "m"})
    assert "`score` is null" in rows[1].message
    with_default = "{{ question }} {{ score | default('none') }}"
    _, rows = read(path, {"input": with_default, "model": "m"})
    assert [body["input"] for body in bodies(rows)] == ["a 0.5", "b none"]
    assert math.isnan(rows[1].carried[1])


def test_only_the_columns_that_row_is_asked_for_count_as_sent(table: Table, read: Read) -> None:
    path = table({"my question": ["a"], "secret": ["b"]})
    survey, rows = read(path, {"input": "{{ row['my question'] }}", "model": "m"})
    assert bodies(rows)[0]["input"] == "a"
    assert survey.sent == ("my question",)
    survey, _ = read(path, {"input": "{{ row | length }}", "model": "m"})
    assert survey.sent == ("my question", "secret")


def sent(array: pa.Array) -> list[Any]:
    make = sendable(own_type(array.type)) or (lambda value: value)
    return [None if value is None else make(value) for value in plain_values(array)]


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (pa.array([1_500_000_001], pa.timestamp("ns")), ["1970-01-01T00:00:01.500000001"]),
        (pa.array([-1], pa.timestamp("ms", "Asia/Tokyo")), ["1969-12-31T23:59:59.999+00:00"]),
        (pa.array([0], pa.timestamp("s")), ["1970-01-01T00:00:00"]),
        (pa.array([dt.date(2026, 2, 3)]), ["2026-02-03"]),
        (pa.array([dt.date(2026, 2, 3)], pa.date64()), ["2026-02-03"]),
        (pa.array([dt.time(1, 2, 3, 500)]), ["01:02:03.0005"]),
        (pa.array([dt.timedelta(seconds=-90.5)]), ["-PT90.5S"]),
        (pa.array([Decimal("1.50")]), [Decimal("1.50")]),
        (pa.array([[("a", 1), ("b", None)]], pa.map_(pa.string(), pa.int64())), [{"a": 1}]),
        (pa.array([{"a": None, "b": [{"c": None}, None]}]), [{"b": [{}, None]}]),
    ],
)
def test_values_are_sent_as_json_knows_them(array: pa.Array, values: list[Any]) -> None:
    assert sent(array) == values


def test_a_time_beyond_the_calendar_is_still_text() -> None:
    (text,) = sent(pa.array([1 << 60], pa.timestamp("s")))
    assert text == f"{1 << 60} s since 1970"
