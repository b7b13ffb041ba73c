"""Files as five tools write them: read exactly, or refused in the plan with what then works."""

import random
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.errors import InputError
from batchrun.formats.arrow import has_map, map_plain, unpack
from batchrun.job.job_file import load_job
from batchrun.records import BadRow, Column, Request
from batchrun.runner.plan import Plan, dry_run
from tests.inputs.parquet_writers import write_source
from tests.remedies import remedies

_FILES = 2_000
_SHORT = 200
_WITH_ALL_TYPES = pytest.mark.skipif(
    int(pa.__version__.partition(".")[0]) < 26,
    reason="older Arrow cannot make or read some of the types that these files have",
)
_PER_SECOND = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def _plain(value: pa.Scalar) -> Any:
    """What a value says, whatever type says it: numbers as fractions, times as nanoseconds."""
    kind = value.type
    is_ = pa.types
    if not value.is_valid:
        return None
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(value.value)
    if is_.is_dictionary(kind):
        return _plain(value.value)
    if is_.is_map(kind):
        return [(_plain(pair["key"]), _plain(pair["value"])) for pair in value.values]
    if is_.is_struct(kind):
        inner = {name: _plain(value[name]) for name in (field.name for field in kind.fields)}
        return {name: one for name, one in inner.items() if one is not None}
    if is_.is_nested(kind):
        return [_plain(one) for one in value.values]
    if is_.is_date(kind):
        return value.as_py()
    if is_.is_temporal(kind):
        return value.value * _PER_SECOND[kind.unit]
    plain = value.as_py()
    if isinstance(plain, str):
        return plain.encode()
    if isinstance(plain, bool | bytes):
        return plain
    return str(plain) if plain != plain or abs(plain) == float("inf") else Fraction(plain)  # noqa: PLR0124 - NaN


def _equal(found: Any, stored: Any) -> bool:
    if isinstance(stored, list) and isinstance(found, list):
        return len(found) == len(stored) and all(map(_equal, found, stored))
    if isinstance(stored, dict) and isinstance(found, dict):
        return found.keys() == stored.keys() and all(_equal(found[n], stored[n]) for n in stored)
    if isinstance(stored, tuple) and isinstance(found, tuple):
        return all(map(_equal, found, stored))
    if isinstance(stored, Fraction) and isinstance(found, bytes):  # decimals of many digits
        return Fraction(Decimal(found.decode())) == stored
    return type(found) is type(stored) and bool(found == stored)


def _column(values: list[Any], column: Column) -> pa.Array:
    """The column again, as a part has it."""
    kind, stored = unpack(column.arrow)
    if has_map(stored):
        values = [map_plain(value, stored, lambda flat, _: flat) for value in values]
    return pa.array(values, stored).cast(kind)


def _stored(path: Path) -> Iterator[dict[str, Any]]:
    """The rows as another reader sees them."""
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        read = pq.ParquetFile(file)
        for group in range(read.num_row_groups):
            table = read.read_row_group(group)
            columns = {name: table.column(name) for name in table.column_names}
            for row in range(table.num_rows):
                yield {name: _plain(column[row]) for name, column in columns.items()}


def _planned(path: Path, settings: dict[str, Any], chance: random.Random) -> tuple[Plan, int]:
    """The plan, once each remedy that a message names was followed; and how many were."""
    for followed in range(20):
        try:
            return dry_run(load_job(path, settings), simulate=True), followed
        except InputError as error:
            said = str(error)
        ways = remedies(said)
        assert ways, said
        assert len(said) < 4_000
        words = chance.choice(ways)
        if words[0] == "--type":
            column, _, kind = words[1].rpartition("=")
            assert settings.setdefault("input.types", {}).get(column) != kind, said
            settings["input.types"] = {**settings["input.types"], column: kind}
        elif words[0] == "--carry":
            settings["input.carry"] = [name for name in words[1::2] if name]
            kept = {n: k for n, k in settings.get("input.types", {}).items() if n in words}
            settings["input.types"] = kept
        else:
            assert "input.skip_bad_rows" not in settings
            settings["input.skip_bad_rows"] = True
    raise AssertionError("its messages go in circles")


def _check(path: Path, seed: int) -> int:
    """Each value of the source against what is carried; how many remedies were followed."""
    chance = random.Random(seed)
    settings: dict[str, Any] = {"request.model": "m", "request.input": "{{ prompt }}"}
    plan, followed = _planned(path, settings, chance)
    stored = list(_stored(path))
    rows = list(plan.prompts.requests(plan.layout, bytearray(plan.rows)))
    assert plan.rows == len(rows) == len(stored)
    bad = [row for row in rows if isinstance(row, BadRow)]
    assert len(bad) == plan.bad_rows
    assert not bad or settings.get("input.skip_bad_rows")
    assert all("holds" in row.message for row in bad)
    assert all(
        f'"input":"{one["prompt"].decode()}"'.encode() in row.body
        for row, one in zip(rows, stored, strict=True)
        if isinstance(row, Request)
    )
    carry = settings.get("input.carry")
    there = {name for row in stored for name in row}
    assert set(plan.carried) == (there if carry is None else set(carry))
    types = settings.get("input.types", {})
    for at, column in enumerate(plan.layout.columns):
        values = [row.carried[at] for row in rows]
        again = _column(values, column)
        for row, one, found in zip(rows, stored, again, strict=True):
            value = one.get(column.column)
            if isinstance(row, BadRow) and f"`{column.column}`" in row.message:
                assert not found.is_valid
            elif column.column in types:
                assert found.is_valid == (value not in (None, "nan")), (column, value)
            elif not (isinstance(row, BadRow) and not found.is_valid):
                assert _equal(_plain(found), value), (column.column, column.type, value, found)
    # Rows of a batch that are read in part.
    some = bytearray(chance.randrange(2) for _ in rows)
    wanted = [repr(row) for row, done in zip(rows, some, strict=True) if not done]
    assert [repr(row) for row in plan.prompts.requests(plan.layout, some)] == wanted
    return followed


def _try_each(folder: Path, seeds: range) -> tuple[int, int]:
    """How many files there were, and how many remedies were followed."""
    files = followed = 0
    seed = seeds.start
    while files < len(seeds):
        path, count = write_source(folder / str(seed), seed)
        try:
            followed += _check(path, seed)
        except Exception as error:
            raise AssertionError(f"source {seed}") from error
        files += count
        seed += 1
    return files, followed


@_WITH_ALL_TYPES
def test_files_of_other_tools_are_read_exactly_or_refused_with_what_helps(tmp_path: Path) -> None:
    files, followed = _try_each(tmp_path, range(_SHORT))
    assert files >= _SHORT
    assert followed > _SHORT / 25


@_WITH_ALL_TYPES
@pytest.mark.long
@pytest.mark.parametrize("lot", range(4))
def test_2000_files_of_other_tools_are_read_exactly_or_refused_with_what_helps(
    lot: int, tmp_path: Path
) -> None:
    each = _FILES // 4
    files, followed = _try_each(tmp_path, range(10_000 * (lot + 1), 10_000 * (lot + 1) + each))
    assert files >= each
    assert followed > each / 25
