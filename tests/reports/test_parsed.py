"""Structured output as typed columns: 300 generated schemas, answers that fit and that do not."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.errors import JobError
from batchrun.records import Outcome, Response
from batchrun.reports.export import Wanted, export_run

Make = Callable[..., Outcome]
Write = Callable[..., Path]
PARSED = Wanted(columns=("custom_id", "output_text"), parsed=True)


class Made(NamedTuple):
    """A schema, the type that its values must have, and how answers are made."""

    schema: dict[str, Any]
    kind: pa.DataType
    draw: Callable[[random.Random], tuple[str, Any]]  # JSON text, and what the column must hold


class AsJson(NamedTuple):
    """The column must hold JSON text that means this."""

    value: Any


MISFITS = [
    '{"a": 1}',
    "[true]",
    '"\\ud800"',
    "1e400",
    "1.5",
    "true",
    '"text"',
    "12345678901234567890",
]
FLAT: Mapping[str, tuple[pa.DataType, Sequence[Any], Sequence[int]]] = {
    # The type, values that fit, and which of the misfits are none.
    "string": (pa.string(), ["", "a\0b", "ü\U0001f600", 'a "b"\n', "null", "=1"], [6]),
    "integer": (pa.int64(), [0, -1, 2**63 - 1, -(2**63), 2**53 + 1], []),
    "number": (pa.float64(), [0.1, -1e300, 5e-324, 2.0**60, 1.0], [4]),
    "boolean": (pa.bool_(), [True, False], [5]),
}


def flat(draw: random.Random) -> Made:
    name = draw.choice(list(FLAT))
    kind, values, fine = FLAT[name]
    schema: dict[str, Any] = {"type": name}
    if draw.random() < 0.2:
        schema = {"enum": list(values)} if name != "number" else {"const": 0.1}

    def one(draw: random.Random) -> tuple[str, Any]:
        if draw.random() < 0.25:
            wrong = [at for at in range(len(MISFITS)) if at not in fine]
            if name == "number":
                wrong = [at for at in wrong if at != 7]  # a double holds it, or not: see below
            return MISFITS[draw.choice(wrong)], None
        value = draw.choice(values)
        return json.dumps(value), value

    return Made(schema, kind, one)


def free(draw: random.Random) -> Made:
    """What no type holds."""
    schema: dict[str, Any] = draw.choice(
        [
            {},
            {"type": "object", "additionalProperties": {"type": "integer"}},
            {"type": ["string", "integer"]},
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
            {"oneOf": [{"properties": {"a": {"type": "null"}}}, {"properties": {"b": {}}}]},
            {"enum": ["a", 1]},
        ]
    )

    def one(draw: random.Random) -> tuple[str, Any]:
        value = draw.choice(["x", 1, [1, "ü"], {"a": {"b": None}}, 0.5, {"k": 10**30}])
        return json.dumps(value), AsJson(value)

    return Made(schema, pa.string(), one)


def nullable(draw: random.Random, depth: int) -> Made:
    inner = make(draw, depth)
    schema: dict[str, Any] = {"anyOf": [inner.schema, {"type": "null"}]}
    if "type" in inner.schema and isinstance(inner.schema["type"], str) and draw.random() < 0.5:
        schema = {**inner.schema, "type": [inner.schema["type"], "null"]}
    if "enum" in inner.schema and draw.random() < 0.5:
        schema = {"enum": [*inner.schema["enum"], None]}
    if inner.schema == {}:
        schema = {}
    return Made(
        schema, inner.kind, lambda draw: ("null", None) if draw.random() < 0.4 else inner.draw(draw)
    )


def array(draw: random.Random, depth: int) -> Made:
    inner = make(draw, depth)

    def one(draw: random.Random) -> tuple[str, Any]:
        if draw.random() < 0.1:
            return '"no list"', None
        items = [inner.draw(draw) for _ in range(draw.randrange(4))]
        return "[" + ", ".join(text for text, _ in items) + "]", [value for _, value in items]

    return Made({"type": "array", "items": inner.schema}, pa.list_(inner.kind), one)


def struct(draw: random.Random, depth: int, *, is_root: bool = False) -> Made:
    names = draw.sample(["name", "Größe", "a b", "x.y", "status", "row", "tool_calls", "items"], 3)
    inner = {name: make(draw, depth) for name in names}

    def one(draw: random.Random) -> tuple[str, Any]:
        if draw.random() < 0.1 and not is_root:
            return "[1]", None
        pairs = {name: one.draw(draw) for name, one in inner.items() if draw.random() < 0.9}
        text = ", ".join(f"{json.dumps(name)}: {text}" for name, (text, _) in pairs.items())
        return f"{{{text}}}", {name: pairs[name][1] if name in pairs else None for name in names}

    schema = {
        "type": "object",
        "properties": {name: one.schema for name, one in inner.items()},
        "required": names,
        "additionalProperties": False,
    }
    return Made(schema, pa.struct([(name, one.kind) for name, one in inner.items()]), one)


def tree(_: random.Random) -> Made:
    """A schema that contains itself."""
    kind = pa.struct({"label": pa.string(), "children": pa.list_(pa.string())})

    def one(draw: random.Random) -> tuple[str, Any]:
        leaf = {"label": "leaf", "children": []}
        children = [leaf, {"label": "inner", "children": [leaf, leaf]}][: draw.randrange(3)]
        value = {"label": "root", "children": children}
        return json.dumps(value), {**value, "children": [AsJson(each) for each in children]}

    return Made({"$ref": "#/$defs/tree"}, kind, one)


def make(draw: random.Random, depth: int) -> Made:
    if depth == 0 or draw.random() < 0.4:
        return draw.choice([flat, flat, free, tree])(draw)
    return draw.choice([nullable, array, struct])(draw, depth - 1)


DEFS = {
    "tree": {
        "type": "object",
        "properties": {
            "label": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
        },
    }
}


def asking(outcome: Outcome, schema: Any, text: str | None) -> Outcome:
    """An outcome whose request asks for the schema, and whose answer is the text."""
    assert isinstance(outcome.result, Response)
    body: dict[str, Any] = {"model": "m", "input": "?"}
    if schema is not None:
        body["text"] = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    request = msgspec.structs.replace(outcome.request, body=msgspec.json.encode(body))
    result = msgspec.structs.replace(outcome.result, output_text=text)
    return msgspec.structs.replace(outcome, request=request, result=result)


ROWS = (0, 1, 2, 3, 8, 9)  # of the made outcomes, those that have an answer


def agrees(found: Any, expected: Any) -> bool:
    """Whether a reader's value is the expected one, of the same type."""
    if expected is None:
        return found is None or found is pd.NA
    if isinstance(expected, AsJson):
        return isinstance(found, str) and json.loads(found) == expected.value
    if isinstance(expected, dict):
        return set(found) == set(expected) and all(
            agrees(found[name], one) for name, one in expected.items()
        )
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(agrees, found, expected))
    return type(found) is type(expected) and bool(found == expected)


@pytest.mark.parametrize(
    "first", [0, 50, *(pytest.param(one, marks=pytest.mark.long) for one in range(100, 300, 50))]
)
def test_generated_schemas_give_their_types_and_exact_values(
    first: int, tmp_path: Path, outcome: Make, write: Write
) -> None:
    for seed in range(first, first + 50):
        draw = random.Random(seed)
        made = struct(draw, 3, is_root=True)
        schema = {**made.schema, "$defs": DEFS}
        answers = [made.draw(draw) for _ in ROWS]
        texts = [text for text, _ in answers]
        texts[-1] = texts[-1][:-1]  # cut short: no JSON
        made_rows = [
            asking(outcome(row), schema, text) for row, text in zip(ROWS, texts, strict=True)
        ]
        run = write(tmp_path / f"run{seed}", [], made_rows)
        target = tmp_path / f"{seed}.parquet"
        done = export_run(run, target, "parquet", PARSED)
        own = ("status", "row", "tool_calls")
        names = [f"{one.name}_parsed" if one.name in own else one.name for one in made.kind]
        expected = [
            dict(zip(names, value.values() if at < len(ROWS) - 1 else [None] * 3, strict=True))
            for at, (_, value) in enumerate(answers)
        ]
        stored = pq.read_schema(target)
        assert stored.names == ["custom_id", "output_text", *names], seed
        assert [stored.field(name).type for name in names] == [one.type for one in made.kind], seed
        assert 1 <= done.misfits <= len(ROWS)
        frame = pd.read_parquet(target, dtype_backend="pyarrow")
        readers = {
            "DuckDB": duckdb.read_parquet(str(target)).fetchall(),
            "pandas": list(zip(*(frame[name].tolist() for name in frame), strict=True)),
            "Polars": pl.read_parquet(target).rows(),
        }
        for reader, rows in readers.items():
            for row, text, values in zip(rows, texts, expected, strict=True):
                assert row[1] == text, (seed, reader)
                for found, (name, value) in zip(row[2:], values.items(), strict=True):
                    assert agrees(found, value), (seed, reader, name, found, value)


def _export(run: Path, target: Path, wanted: Wanted = PARSED) -> list[dict[str, Any]]:
    export_run(run, target, "parquet", wanted)
    rows: list[dict[str, Any]] = pq.read_table(target).to_pylist()
    return rows


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def test_several_schemas_are_one_table_and_what_they_disagree_about_is_json(
    tmp_path: Path, outcome: Make, write: Write
) -> None:
    whole, number, text = {"type": "integer"}, {"type": "number"}, {"type": "string"}
    one, other = _object(n=whole, x=whole, a=text), _object(n=number, x=text, b=text)
    answers = [
        (one, '{"n": 1, "x": 1, "a": "a", "b": "not asked for"}'),
        (other, '{"n": 0.5, "x": "1", "b": "b"}'),
        (None, '{"n": 7}'),
        (one, None),
    ]
    rows = [asking(outcome(row), *answer) for row, answer in enumerate(answers)]
    found = _export(write(tmp_path / "run", rows), tmp_path / "rows.parquet")
    values = [tuple(row[name] for name in ("n", "x", "a", "b")) for row in found]
    nothing = (None,) * 4
    assert values == [(1.0, "1", "a", None), (0.5, '"1"', None, "b"), nothing, nothing]


def test_the_last_piece_of_the_text_and_answers_that_are_no_objects(
    tmp_path: Path, outcome: Make, write: Write
) -> None:
    first = asking(outcome(0), {"type": "array", "items": {"type": "integer"}}, "Let me see.[1, 2]")
    assert isinstance(first.result, Response)
    parts = [{"type": "output_text", "text": text} for text in ("Let me see.", "[1, 2]")]
    output = json.dumps([{"type": "reasoning"}, {"type": "message", "content": parts}])
    result = msgspec.structs.replace(first.result, output=output)
    rows = [
        msgspec.structs.replace(first, result=result),
        asking(outcome(1), {"type": "array", "items": {"type": "integer"}}, "7"),
    ]
    found = _export(write(tmp_path / "run", rows), tmp_path / "rows.parquet")
    assert [row["parsed"] for row in found] == [[1, 2], None]


def test_csv_and_json_lines_have_the_typed_columns_too(
    tmp_path: Path, outcome: Make, write: Write
) -> None:
    schema = _object(n={"type": "integer"}, marks={"type": "array", "items": {"type": "string"}})
    run = write(tmp_path / "run", [asking(outcome(0), schema, '{"n": 1, "marks": ["a", "=b"]}')])
    wanted = Wanted(("custom_id",), parsed=True)
    export_run(run, tmp_path / "rows.csv", "csv", wanted)
    export_run(run, tmp_path / "rows.jsonl", "jsonl", wanted)
    table = (tmp_path / "rows.csv").read_text("utf-8-sig")
    assert table == '"custom_id","n","marks"\n"q0",1,"[""a"",""=b""]"\n'
    line = json.loads((tmp_path / "rows.jsonl").read_text())
    assert line == {"custom_id": "q0", "n": 1, "marks": ["a", "=b"]}


def test_where_no_row_asked_for_a_schema_nothing_is_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no row asked for a JSON schema"):
        export_run(run, tmp_path / "rows.parquet", "parquet", Wanted(parsed=True))
    assert not list(tmp_path.iterdir())
