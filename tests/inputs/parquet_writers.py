"""Parquet files by chance, as PyArrow, pandas, Polars, DuckDB and `datasets` write them."""

import datetime as dt
import json
import random
import string
import warnings
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

_UNITS = ("s", "ms", "us", "ns")
_TEXTS = ("", "a", "é漢字🙂", "42", "null", '{"a": 1}', "x" * 40, "a\nb", "\x00")
_BYTES = (b"", b"a", b"\xff\xfe", b"caf\xe9", bytes(range(20)))
_DOUBLES = (0.0, -0.0, 1.5, 1e300, 2.0**53, float("nan"), float("inf"), -3.0)

Value = Callable[[random.Random], Any]


def _flat_types(chance: random.Random) -> pa.DataType:
    digits = chance.choice((3, 9, 15, 18, 38))
    decimal = pa.decimal128 if chance.random() < 0.7 else pa.decimal256
    unit, zone = chance.choice(_UNITS), chance.choice((None, "UTC", "Europe/Berlin"))
    kinds: tuple[pa.DataType, ...] = (
        *(pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64()),
        *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64()),
        *(pa.string(), pa.large_string(), pa.string_view(), pa.string(), pa.string()),
        *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(5)),
        *(pa.date32(), pa.date64(), pa.timestamp(unit, zone), pa.timestamp("us")),
        *(pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns"), pa.duration(unit)),
        *(decimal(digits, chance.randrange(digits)), pa.null()),
        *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())),
    )
    return chance.choice(kinds)


def any_type(chance: random.Random, depth: int = 0) -> pa.DataType:
    """A type that Parquet has."""
    if depth == 0 and chance.random() < 0.03:
        return pa.uuid()
    if depth > 2 or chance.random() < 0.65:
        return _flat_types(chance)
    item = any_type(chance, depth + 1)
    nested: tuple[Callable[[], pa.DataType], ...] = (
        lambda: pa.list_(item),
        lambda: pa.large_list(item),
        lambda: pa.list_(item, 2),
        lambda: pa.map_(pa.string() if chance.random() < 0.8 else pa.int32(), item),
        lambda: pa.struct(
            [(name, any_type(chance, depth + 1)) for name in "kmn"[: chance.randrange(1, 4)]]
        ),
    )
    return chance.choice(nested)()


def _flat_value(kind: pa.DataType, chance: random.Random) -> Any:
    is_ = pa.types
    if is_.is_boolean(kind):
        return chance.random() < 0.5
    if is_.is_integer(kind):
        low = 0 if is_.is_unsigned_integer(kind) else -(1 << (kind.bit_width - 1))
        high = low + (1 << kind.bit_width) - 1
        return chance.choice((0, 1, 7, low, high, chance.randint(low, high)))
    if is_.is_floating(kind):
        return chance.choice(_DOUBLES if kind.bit_width == 64 else (0.0, 1.5, -3.0, float("nan")))
    if is_.is_decimal(kind):
        number = chance.randrange(10 ** min(kind.precision, 38))
        return Decimal(number).scaleb(-kind.scale)
    if is_.is_fixed_size_binary(kind):
        return bytes(chance.randrange(256) for _ in range(kind.byte_width))
    if is_.is_date(kind):
        return dt.date(1970, 1, 1) + dt.timedelta(days=chance.randrange(-9_000, 90_000))
    return None


def _value(kind: pa.DataType, chance: random.Random, nulls: float) -> Any:
    """A value for `pa.array`; times and durations as integers."""
    is_ = pa.types
    if is_.is_null(kind) or chance.random() < nulls:
        return None
    if is_.is_map(kind):
        names = chance.sample(_TEXTS if pa.types.is_string(kind.key_type) else range(9), 2)
        count = chance.randrange(3)
        return [(name, _value(kind.item_type, chance, nulls)) for name in names[:count]]
    if is_.is_fixed_size_list(kind):
        return [_value(kind.value_type, chance, nulls) for _ in range(kind.list_size)]
    if is_.is_list(kind) or is_.is_large_list(kind):
        return [_value(kind.value_type, chance, nulls) for _ in range(chance.randrange(4))]
    if is_.is_struct(kind):
        return {field.name: _value(field.type, chance, nulls) for field in kind.fields}
    if is_.is_timestamp(kind) or is_.is_duration(kind):
        most = 2**62 if kind.unit == "ns" or chance.random() < 0.1 else 4 * 10**9
        most = min(most, 2 * 10**11 * 10 ** (3 * _UNITS.index(kind.unit)))
        return chance.choice((0, 1, chance.randrange(-most // 2, most)))
    if is_.is_time(kind):
        return chance.randrange(86_400 * 10 ** (3 * _UNITS.index(kind.unit)))
    if isinstance(kind, pa.BaseExtensionType):
        return bytes(chance.randrange(256) for _ in range(16))
    if is_.is_dictionary(kind):
        return chance.choice(_TEXTS[:4])
    if any(test(kind) for test in (is_.is_string, is_.is_large_string, is_.is_string_view)):
        return chance.choice(_TEXTS)
    if any(test(kind) for test in (is_.is_binary, is_.is_large_binary, is_.is_binary_view)):
        return chance.choice(_BYTES)
    return _flat_value(kind, chance)


def any_array(kind: pa.DataType, rows: int, chance: random.Random) -> pa.Array:
    nulls = chance.choice((0.0, 0.2, 0.9))
    return pa.array([_value(kind, chance, nulls) for _ in range(rows)], kind)


def other_type(kind: pa.DataType, chance: random.Random) -> pa.DataType:
    """A type that another file of the same source may have for the column."""
    is_ = pa.types
    if is_.is_timestamp(kind):
        return pa.timestamp(chance.choice(_UNITS), chance.choice((kind.tz, None)))
    if is_.is_integer(kind) or is_.is_floating(kind):
        return chance.choice((pa.int64(), pa.float64(), pa.float64(), pa.int8(), pa.uint64()))
    if is_.is_string(kind) or is_.is_binary(kind):
        return chance.choice((pa.large_string(), pa.binary(), pa.string_view(), pa.int64()))
    if is_.is_struct(kind):
        return pa.struct([*kind.fields[1:], pa.field("added", pa.int64())])
    return chance.choice((pa.null(), kind, any_type(chance)))


def _with_pyarrow(table: pa.Table, path: Path, chance: random.Random) -> None:
    pq.write_table(
        table,
        path,
        compression=chance.choice(("none", "snappy", "zstd", "gzip", "lz4", "brotli")),
        row_group_size=chance.choice((None, 1, 7)),
        data_page_version=chance.choice(("1.0", "2.0")),
        version=chance.choice(("2.4", "2.6")),
        use_dictionary=chance.random() < 0.5,
        store_schema=chance.random() < 0.7,
        write_statistics=chance.random() < 0.5,
    )


def _with_datasets(table: pa.Table, path: Path, chance: random.Random) -> None:
    """Images as `datasets` writes them, with the same metadata; large strings as it has them."""
    images = [
        {"bytes": chance.choice((b"\x89PNG\r\n\x1a\n", None)), "path": f"{row}.png"}
        for row in range(table.num_rows)
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = table.append_column("image", pa.array(images, kind))
    features = {"image": {"_type": "Image"}, "prompt": {"dtype": "string", "_type": "Value"}}
    about = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": about}), path, row_group_size=100)


def _with_pandas(table: pa.Table, path: Path, chance: random.Random) -> None:
    rows = table.num_rows
    zone = chance.choice((None, "UTC", "Asia/Tokyo"))
    made: dict[str, Any] = {
        "ints": pd.array([chance.choice((1, 2**60 + 1, None)) for _ in range(rows)], "Int64"),
        "floats": [chance.choice((1.0, 2.5, None)) for _ in range(rows)],
        "category": pd.Categorical([chance.choice("abc") for _ in range(rows)]),
        "when": pd.Series(pd.date_range("2026-01-01", periods=rows, freq="s", tz=zone)),
        "passed": pd.Series(pd.to_timedelta([chance.randrange(9) for _ in range(rows)], "s")),
        "objects": [chance.choice(({"a": 1}, {"b": [1]}, None)) for _ in range(rows)],
        "texts": pd.array([chance.choice((*_TEXTS, None)) for _ in range(rows)], "string"),
        "bools": pd.array([chance.choice((True, None)) for _ in range(rows)], "boolean"),
        "dates": [dt.date(2026, 1, 1)] * rows,
    }
    names = chance.sample(sorted(made), chance.randrange(1, 5))
    frame = pd.DataFrame({"prompt": table["prompt"].to_pylist(), **{n: made[n] for n in names}})
    if chance.random() < 0.3:
        frame.index = pd.Index([f"i{row}" for row in range(rows)], name=chance.choice((None, "ix")))
    frame.to_parquet(path, engine="pyarrow")


def _with_polars(table: pa.Table, path: Path, chance: random.Random) -> None:
    rows = range(table.num_rows)
    zone = chance.choice((None, "UTC"))
    made: dict[str, pl.Series] = {
        "category": pl.Series([chance.choice("abc") for _ in rows], dtype=pl.Categorical),
        "enum": pl.Series([chance.choice("ab") for _ in rows], dtype=pl.Enum(["a", "b"])),
        "decimal": pl.Series([Decimal("1.25") for _ in rows], dtype=pl.Decimal(20, 2)),
        "list": pl.Series([[1, None], None] * len(rows), dtype=pl.List(pl.Int16))[: len(rows)],
        "array": pl.Series([[1.5, 2.0]] * len(rows), dtype=pl.Array(pl.Float32, 2)),
        "struct": pl.Series([{"a": chance.choice(_TEXTS), "b": [None]} for _ in rows]),
        "when": pl.Series([dt.datetime(2026, 1, 1)] * len(rows)).dt.replace_time_zone(zone),  # noqa: DTZ001
        "ns": pl.Series([2**62] * len(rows), dtype=pl.Int64).cast(pl.Datetime("ns")),
        "time": pl.Series([dt.time(1, 2, 3, 4)] * len(rows)),
        "took": pl.Series([dt.timedelta(seconds=-90.5)] * len(rows)),
        "binary": pl.Series([chance.choice(_BYTES) for _ in rows]),
        "text": pl.Series([chance.choice((*_TEXTS, None)) for _ in rows], dtype=pl.String),
        "null": pl.Series([None] * len(rows), dtype=pl.Null),
        "big": pl.Series([chance.choice((2**64 - 1, 0)) for _ in rows], dtype=pl.UInt64),
    }
    names = chance.sample(sorted(made), chance.randrange(1, 6))
    columns = {"prompt": pl.Series(table["prompt"].to_pylist(), dtype=pl.String)}
    frame = pl.DataFrame({**columns, **{name: made[name] for name in names}})
    frame.write_parquet(path, statistics=chance.random() < 0.5)


_SQL = {
    "huge": "170141183460469231731687303715884105727::HUGEINT - i",
    "uuid": "md5(i::VARCHAR)::UUID",
    "span": "INTERVAL (i) MONTH",
    "enum": "(['a', 'b'])[1 + i % 2]::ENUM('a', 'b')",
    "map": "MAP {'k' || i: [i, NULL]}",
    "struct": "{'a': i, 'b': {'c': NULL::INTEGER, 'd': 'x'}}",
    "list": "[[i], NULL, []]",
    "array": "[i, i]::INTEGER[2]",
    "time": "TIME '01:02:03.000004'",
    "zoned": "TIMESTAMPTZ '2026-01-01 00:00:00+00' + INTERVAL (i) HOUR",
    "ns": "TIMESTAMP_NS '2026-01-01 00:00:00.000000001'",
    "decimal": "(i + 0.25)::DECIMAL(38, 10)",
    "unsigned": "(18446744073709551615 - i)::UBIGINT",
    "blob": r"'\xFF\x00ab'::BLOB",
    "bits": "'0101'::BIT",
    "json": "('{\"a\": ' || i || '}')::JSON",
    "maybe": "CASE WHEN i % 2 = 0 THEN i::TINYINT END",
    "day": "DATE '2026-01-01' + i::INTEGER",
    "real": "(i / 3)::FLOAT",
}


def _with_duckdb(table: pa.Table, path: Path, chance: random.Random) -> None:
    names = chance.sample(sorted(_SQL), chance.randrange(1, 7))
    columns = ", ".join(f'{_SQL[name]} AS "{name}"' for name in names)
    prompts = "list_value(" + ", ".join("?" for _ in range(table.num_rows)) + ")"
    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as connection:
        rows = f"SELECT ({prompts})[1 + i] AS prompt, {columns} FROM range({table.num_rows}) t(i)"  # noqa: S608
        how = f"FORMAT parquet, PARQUET_VERSION {chance.choice(('v1', 'v2'))}"
        connection.execute(f"COPY ({rows}) TO '{path}' ({how})", table["prompt"].to_pylist())


_WRITERS = (_with_pyarrow, _with_pyarrow, _with_pandas, _with_polars, _with_duckdb, _with_datasets)


def write_source(folder: Path, seed: int) -> tuple[Path, int]:
    """A file, or a folder of several files and schemas: its path, and how many files it holds."""
    chance = random.Random(seed)
    write = chance.choice(_WRITERS)
    count = chance.choice((1, 1, 2, 3))
    kinds = {name: any_type(chance) for name in string.ascii_lowercase[: chance.randrange(1, 6)]}
    folder.mkdir()
    for number in range(count):
        rows = chance.choice((1, 3, 20))
        if chance.random() < 0.2:
            write = chance.choice(_WRITERS)
        of_file = {
            name: other_type(kind, chance) if number and chance.random() < 0.6 else kind
            for name, kind in kinds.items()
            if not number or chance.random() < 0.9
        }
        columns = {name: any_array(kind, rows, chance) for name, kind in of_file.items()}
        columns["prompt"] = pa.array([f"p{number}.{row}" for row in range(rows)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of writers, about types that have no future
            try:
                write(pa.table(columns), folder / f"{number}.parquet", chance)
            except pa.ArrowException:  # what Arrow cannot write yet
                write(pa.table({"prompt": columns["prompt"]}), folder / f"{number}.parquet", chance)
    return (folder, count) if count > 1 else (folder / "0.parquet", count)
