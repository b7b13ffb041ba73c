"""Columns as real files have them: carried exactly, or refused in the plan with what helps."""

import base64
import datetime as dt
import json
import math
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet import encryption

from tests.remedies import remedies, remedy

Run = Callable[..., CompletedProcess[str]]
Query = Callable[..., list[tuple[Any, ...]]]

_BIG = 2**60 + 1
_FAR = dt.datetime(9999, 12, 31)  # noqa: DTZ001 - a time without a zone


@pytest.fixture
def send(batchrun: Run) -> Run:
    """A run against the embedded simulator, into `run` or `into`."""

    def run(source: str, *words: object, into: str = "run") -> CompletedProcess[str]:
        return batchrun("run", source, "--model", "gpt-4.1", "--simulate", "-o", into, *words)

    return run


def _write(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(columns), path)


def _raw_text(*values: bytes | None) -> pa.Array:
    """A text column whose bytes nobody checked."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def _refused(done: CompletedProcess[str], tmp_path: Path, *says: str) -> str:
    assert done.returncode == 2, done.stderr
    for words in says:
        assert words in done.stderr
    assert not (tmp_path / "run").exists()  # nothing was begun, so nothing was sent
    return done.stderr


@pytest.mark.parametrize(
    ("first", "second", "value", "as_text"),
    [
        (
            pa.array([1.5, math.nan]),
            pa.array([7, _BIG]),
            str(_BIG),
            ["1.5", None, "7", str(_BIG)],
        ),
        (
            pa.array([1, 2], pa.timestamp("ns")),
            pa.array([dt.datetime(2026, 1, 1), _FAR], pa.timestamp("us")),  # noqa: DTZ001
            '"9999-12-31T00:00:00"',
            [
                "1970-01-01T00:00:00.000000001",
                "1970-01-01T00:00:00.000000002",
                "2026-01-01T00:00:00",
                "9999-12-31T00:00:00",
            ],
        ),
    ],
)
def test_shards_of_two_types_are_carried_exactly_or_refused_with_what_helps(
    first: pa.Array,
    second: pa.Array,
    value: str,
    as_text: list[str | None],
    tmp_path: Path,
    send: Run,
    query: Query,
) -> None:
    ids = {"id": ["a", "b"], "prompt": ["x", "y"]}
    _write(tmp_path / "data" / "a.parquet", {**ids, "x": first})
    _write(tmp_path / "data" / "b.parquet", {**ids, "id": ["c", "d"], "x": second})
    said = _refused(send("data"), tmp_path, f"b.parquet, row 3: column `x` holds {value}")
    assert sorted(words[0] for words in remedies(said)) == ["--carry", "--skip-bad-rows", "--type"]
    # Each of the three, as it stands in the message.
    assert send("data", *remedy(said, "--type")).returncode == 0
    assert query("SELECT x FROM read_parquet(?) ORDER BY row") == [(text,) for text in as_text]
    assert send("data", *remedy(said, "--carry"), into="without").returncode == 0
    columns = query("DESCRIBE SELECT * FROM read_parquet(?)", "without")
    assert "id" in {name for name, *_ in columns}
    assert "x" not in {name for name, *_ in columns}
    done = send("data", *remedy(said, "--skip-bad-rows"), into="skipped")
    assert done.returncode == 4
    found = query("SELECT status, x IS NULL FROM read_parquet(?) ORDER BY row", "skipped")
    assert found[2:] == [("completed", False), ("invalid", True)]


def test_shards_of_two_types_that_one_type_holds_are_carried_exactly(
    tmp_path: Path, send: Run, query: Query
) -> None:
    _write(tmp_path / "data" / "a.parquet", {"prompt": ["x"], "x": [1.5]})
    _write(tmp_path / "data" / "b.parquet", {"prompt": ["y"], "x": [2**53]})
    assert send("data").returncode == 0
    assert query("SELECT x FROM read_parquet(?) ORDER BY row") == [(1.5,), (float(2**53),)]


def test_lines_beside_parquet_are_held_against_the_type_of_both(
    tmp_path: Path, send: Run, query: Query
) -> None:
    _write(tmp_path / "data" / "a.parquet", {"prompt": ["x"], "x": [1.5]})
    (tmp_path / "data" / "b.jsonl").write_text(f'{{"prompt": "y", "x": {_BIG}}}\n')
    said = _refused(send("data"), tmp_path, f"b.jsonl:1: column `x` holds {_BIG}")
    assert send("data", *remedy(said, "--type")).returncode == 0
    assert query("SELECT x FROM read_parquet(?) ORDER BY row") == [("1.5",), (str(_BIG),)]


def test_one_byte_that_is_no_utf8_in_a_column_that_is_not_sent(
    tmp_path: Path, send: Run, query: Query
) -> None:
    notes = _raw_text(*[b"ok"] * 1_200, b"caf\xe9", None)
    prompts = [f"p{row}" for row in range(1_202)]
    _write(tmp_path / "a.parquet", {"prompt": prompts, "note": notes, "n": range(1_202)})
    says = "a.parquet, row 1200: column `note` holds text that is not UTF-8 (caf\\xe9)"
    said = _refused(send("a.parquet"), tmp_path, says)
    assert [words[0] for words in remedies(said)] == ["--carry", "--skip-bad-rows"]
    assert send("a.parquet", *remedy(said, "--skip-bad-rows")).returncode == 4
    found = query("SELECT row, note, n FROM read_parquet(?) WHERE status = 'invalid'")
    assert found == [(1_200, None, 1_200)]
    assert send("a.parquet", *remedy(said, "--carry"), into="without").returncode == 0


def test_text_in_binary_columns_and_views_are_read_like_any_column(
    tmp_path: Path, send: Run, query: Query
) -> None:
    view = pa.array(["v", None, "a long text that no view holds inline"], pa.string_view())
    _write(
        tmp_path / "a.parquet",
        {
            "custom_id": pa.array([b"a", b"b", b"c"]),
            "question": pa.array([b"hello", "grüß".encode(), b"x"], pa.binary_view()),
            "view": view,
            "inside": pa.StructArray.from_arrays([view], ["k"]),
            "bytes": pa.array([b"\xff", None, b""], pa.binary_view()),
        },
    )
    words = ("--prompt", "{{ question }} {{ inside.k | default('-') }}")
    assert send("a.parquet", *words, "--limit", 1).returncode == 0
    assert send("a.parquet", *words).returncode == 0  # the rest alone, of a batch in part
    rows = query(
        "SELECT custom_id, request->>'input', question, view, inside.k, bytes "
        "FROM read_parquet(?) ORDER BY row"
    )
    long = "a long text that no view holds inline"
    assert rows == [
        ("a", "hello v", b"hello", "v", "v", b"\xff"),
        ("b", "grüß -", "grüß".encode(), None, None, None),
        ("c", f"x {long}", b"x", long, long, b""),
    ]


def test_ids_that_are_floats_are_told(tmp_path: Path, send: Run, query: Query) -> None:
    _write(tmp_path / "a.parquet", {"id": [1.0, 2.0], "prompt": ["x", "y"], "key": ["k", "l"]})
    done = send("a.parquet")
    assert done.returncode == 0
    said = " ".join(done.stderr.split())
    assert "column `id` is 1.0 in a.parquet, row 0, which is neither text nor an integer" in said
    assert "known by their number" in said
    assert query("SELECT custom_id FROM read_parquet(?) ORDER BY row") == [("0",), ("1",)]
    assert "--id COLUMN" in done.stderr
    assert send("a.parquet", "--id", "key", into="named").returncode == 0
    found = query("SELECT custom_id FROM read_parquet(?) ORDER BY row", "named")
    assert found == [("k",), ("l",)]


class _NoSecret(encryption.KmsClient):  # type: ignore[misc] # pyarrow has no types
    """Keys that are wrapped in nothing."""

    def wrap_key(self, key: bytes, _name: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, wrapped: bytes, _name: str) -> bytes:
        return base64.b64decode(wrapped)


@pytest.mark.parametrize("plain", [True, False])
def test_a_column_that_is_encrypted_is_named(
    plain: bool, tmp_path: Path, send: Run, query: Query
) -> None:
    table = pa.table({"prompt": ["x"], "n": [1], "secret": ["s"]})
    how = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["secret"]}, plaintext_footer=plain
    )
    keys = encryption.CryptoFactory(lambda _: _NoSecret())
    encrypted = keys.file_encryption_properties(encryption.KmsConnectionConfig(), how)
    path = tmp_path / "a.parquet"
    with pq.ParquetWriter(path, table.schema, encryption_properties=encrypted) as file:
        file.write_table(table)
    done = send("a.parquet")
    if not plain:
        _refused(done, tmp_path, "a.parquet: the file is encrypted")
        return
    said = _refused(done, tmp_path, "a.parquet: column `secret` is encrypted and cannot be read")
    in_template = send("a.parquet", "--prompt", "{{ secret }}")
    assert "--carry" not in _refused(in_template, tmp_path, "column `secret` is encrypted")
    assert send("a.parquet", *remedy(said, "--carry")).returncode == 0
    assert query("SELECT prompt, n FROM read_parquet(?)") == [("x", 1)]


def test_two_columns_of_one_name_are_told_unless_neither_is_used(
    tmp_path: Path, send: Run, query: Query
) -> None:
    twice = pa.Table.from_arrays(
        [pa.array(["x"]), pa.array([1]), pa.array([2]), pa.array([3])], ["prompt", "n", "n", "m"]
    )
    pq.write_table(twice, tmp_path / "a.parquet")
    said = _refused(send("a.parquet"), tmp_path, "a.parquet: two columns are called `n`")
    assert send("a.parquet", *remedy(said, "--carry")).returncode == 0
    assert query("SELECT prompt, m FROM read_parquet(?)") == [("x", 3)]
    pq.write_table(twice.rename_columns(["prompt", "prompt", "n", "m"]), tmp_path / "b.parquet")
    done = send("b.parquet", into="other")
    assert done.returncode == 2
    assert "two columns are called `prompt`" in done.stderr


def test_folders_of_a_hive_layout_are_columns(tmp_path: Path, send: Run, query: Query) -> None:
    data = tmp_path / "data"
    _write(data / "lang=de" / "year=2024" / "a.parquet", {"prompt": ["x"], "id": [1]})
    _write(data / "lang=fr%20CA" / "year=2025" / "a.parquet", {"prompt": ["y"], "id": [2]})
    rows = [{"prompt": "z", "id": 3}, {"prompt": "own", "id": 4, "lang": "it"}]
    lines = data / "lang=__HIVE_DEFAULT_PARTITION__" / "year=007" / "b.jsonl"
    lines.parent.mkdir(parents=True)
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompt = "{{ prompt }} {{ lang | default('none') }} {{ year }}"
    assert send("data", "--prompt", prompt).returncode == 0
    sql = "SELECT id, lang, year, request->>'input' FROM read_parquet(?) ORDER BY id"
    assert query(sql) == [
        (1, "de", "2024", "x de 2024"),
        (2, "fr CA", "2025", "y fr CA 2025"),
        (3, None, "007", "z none 007"),
        (4, "it", "007", "own it 007"),
    ]
    lines.unlink()
    assert send("data", into="numbers").returncode == 0  # prompt rows; years are all integers
    found = query("SELECT lang, year FROM read_parquet(?) ORDER BY row", "numbers")
    assert found == [("de", 2024), ("fr CA", 2025)]


def test_links_are_followed_once_and_what_is_passed_over_is_counted(
    tmp_path: Path, send: Run, totals: Callable[..., tuple[Any, ...]]
) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    _write(data / "v2" / "a.parquet", {"custom_id": ["a"], "prompt": ["x"]})
    _write(elsewhere / "b.parquet", {"custom_id": ["b"], "prompt": ["y"]})
    (data / "latest").symlink_to("v2")  # the same folder by another name
    (data / "v2" / "up").symlink_to(data)  # a circle
    (data / "more").symlink_to(elsewhere)
    (data / "c.parquet").symlink_to(elsewhere / "gone.parquet")
    for name in ("README.md", "notes.csv", "_SUCCESS", ".hidden.parquet"):
        (data / name).write_text("")
    done = send("data")
    assert done.returncode == 0
    assert totals() == (2, 2, 2)
    said = "data: 3 files or run directories not read (README.md, c.parquet, notes.csv)"
    assert said in done.stderr


def test_nan_in_lines_is_harmless_where_it_is_not_sent(
    tmp_path: Path, send: Run, query: Query
) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"question": "a", "score": NaN}\n{"question": "b", "score": 0.5}\n'
        '{"question": "c", "score": -Infinity}\n'
    )
    assert send("a.jsonl", "--prompt", "{{ question }}").returncode == 0
    found = query("SELECT score FROM read_parquet(?) ORDER BY row")
    assert found == [(None,), (0.5,), (-math.inf,)]
    done = send("a.jsonl", "--prompt", "{{ score }}", into="sent")
    assert done.returncode == 2
    assert "a.jsonl:1: a value would be sent that is NaN" in done.stderr


def test_text_and_numbers_in_lines_are_plain_text(tmp_path: Path, send: Run, query: Query) -> None:
    values = (("Paris", "a"), ("42", "b"), (7, {"a": 1}), (3.0, "d"))
    rows = [{"prompt": "p", "x": x, "y": y} for x, y in values]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = send("a.jsonl")
    assert done.returncode == 0
    found = query("SELECT x FROM read_parquet(?) ORDER BY row")
    assert found == [("Paris",), ("42",), ("7",), ("3.0",)]
    said = " ".join(done.stderr.split())
    assert "`x` holds text (a.jsonl:1) and a number (a.jsonl:3): it is carried as text" in said
    assert "`y` holds text (a.jsonl:1) and an object (a.jsonl:3): it is carried as JSON" in said


def test_a_value_that_does_not_fit_a_run_that_has_begun(
    tmp_path: Path, send: Run, query: Query
) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"prompt": "a", "x": 1, "y": 1}\n')
    assert send("a.jsonl").returncode == 0
    with lines.open("a") as file:
        file.write('{"prompt": "b", "x": "two", "y": 2}\n')
    done = send("a.jsonl")
    assert done.returncode == 2
    assert 'a.jsonl:2: column `x` holds "two", but it is carried as int64' in done.stderr
    assert "start a new run directory with -o and --type x=string" in done.stderr
    assert send("a.jsonl", *remedy(done.stderr, "--carry")).returncode == 0
    assert query("SELECT x, y FROM read_parquet(?) ORDER BY row") == [(1, 1), (None, 2)]
    assert send("a.jsonl", *remedy(done.stderr, "--type"), into="new").returncode == 0
    assert query("SELECT x FROM read_parquet(?) ORDER BY row", "new") == [("1",), ("two",)]


def test_options_name_columns_as_the_job_file_does(
    tmp_path: Path, batchrun: Run, query: Query
) -> None:
    (tmp_path / "rows.txt").write_text(
        '{"key": "k", "prompt": "p", "top_p": 1, "a": 1, "a=b": 2}\n'
    )
    (tmp_path / "job.toml").write_text(
        "[input]\npath = 'rows.txt'\ntypes = { a = 'string', 'a=b' = 'int64' }\n"
        "[request]\nmodel = 'gpt-4.1'\n"
    )
    words = ("--format", "jsonl", "--id", "key", "--carry", "a", "--carry", "a=b", "--send")
    run = ("run", "job.toml", *words, "metadata", "--simulate", "-o", "run")
    done = batchrun(*run)
    assert done.returncode == 2
    assert "--send (send in [input]) names the column `metadata`" in done.stderr
    done = batchrun(*run[:-4], "top_p", *run[-3:], "--type", "a=b=double")
    assert done.returncode == 0, done.stderr
    sql = "SELECT custom_id, a, \"a=b\", request->>'top_p' FROM read_parquet(?)"
    assert query(sql) == [("k", "1", 2.0, "1")]
    done = batchrun("run", "job.toml", "--type", "a")
    assert done.returncode == 2
    assert "write COLUMN=TYPE" in done.stderr
    done = batchrun("run", "job.toml", "--format", "csv")
    assert done.returncode == 2
    assert "it must be jsonl or parquet" in done.stderr
