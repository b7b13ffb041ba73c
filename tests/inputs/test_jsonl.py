import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.errors import InputError
from batchrun.inputs import jsonl
from batchrun.inputs.jsonl import read_lines

Read = Callable[..., Any]
Write = Callable[..., Path]


def texts(rows: list[Any]) -> list[str]:
    return [json.loads(row.body)["input"] for row in rows]


@settings(deadline=None)
@given(
    values=st.lists(st.text(max_size=30)),
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\r\n"]), min_size=1),
    last=st.booleans(),
    bom=st.booleans(),
    buffer=st.integers(1, 50),
)
def test_line_ends_and_buffers_do_not_change_the_lines(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[str],
    ends: list[str],
    last: bool,
    bom: bool,
    buffer: int,
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    lines = [json.dumps(value, ensure_ascii=False) for value in values]
    ended = [line + ends[at % len(ends)] for at, line in enumerate(lines)]
    if ended and not last:
        ended[-1] = lines[-1]
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + "".join(ended).encode("utf-8"))
    read = list(read_lines(path, buffer))
    assert [json.loads(line) for _, line in read] == values
    places = path.read_bytes().split(b"\n")
    assert all(line.rstrip(b"\n") in places[number - 1] for number, line in read)


def test_blank_lines_are_no_rows_but_count_as_lines(write: Write, read: Read) -> None:
    path = write(b"", {"prompt": "a"}, b"  ", b"\r", {"prompt": "b"}, b"no json")
    survey, rows = read(path)
    assert survey.rows == 3
    assert rows[2].line == 6


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_compressed_files_give_the_same_rows(tmp_path: Path, read: Read, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    lines = b"".join(b'{"prompt": "%d \xc3\xa4"}\n' % number for number in range(3_000))
    if ending.endswith("gz"):
        lines = gzip.compress(lines)
    elif ending.endswith("zst"):
        lines = pa.compress(lines, codec="zstd", asbytes=True)
    path.write_bytes(lines)
    _, rows = read(path)
    assert texts(rows) == [f"{number} ä" for number in range(3_000)]


def test_members_of_gzip_and_frames_of_zstd_are_read_on_and_on(tmp_path: Path, read: Read) -> None:
    pieces = [b'{"prompt": "a"}\n{"pro', b"", b'mpt": "b"}\n', b'{"prompt": "c"}']
    many = tmp_path / "a.jsonl.gz"
    many.write_bytes(b"".join(gzip.compress(piece) for piece in pieces))
    assert texts(read(many)[1]) == ["a", "b", "c"]
    frames = tmp_path / "a.jsonl.zst"
    frames.write_bytes(b"".join(pa.compress(p, codec="zstd", asbytes=True) for p in pieces if p))
    assert texts(read(frames)[1]) == ["a", "b", "c"]


def test_a_gzip_file_of_very_many_small_members_is_read_whole(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(b'{"prompt": "%d"}\n' % at) for at in range(5_000)))
    assert texts(read(path)[1]) == [str(at) for at in range(5_000)]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_compressed_file_cut_short_is_an_error(tmp_path: Path, read: Read, ending: str) -> None:
    whole = b'{"prompt": "a"}\n' * 10_000
    packed = (
        gzip.compress(whole) if ending == ".gz" else pa.compress(whole, codec="zstd", asbytes=True)
    )
    path = tmp_path / f"a.jsonl{ending}"
    for bytes_ in (packed[:-3], packed[: len(packed) // 2], whole):
        path.write_bytes(bytes_)
        with pytest.raises(InputError, match="cut short, damaged or not"):
            read(path)


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_an_empty_file_has_no_rows(tmp_path: Path, read: Read, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(b"")
    with pytest.raises(InputError, match="no rows"):
        read(path)


def test_a_line_of_thirty_megabytes_is_one_row(write: Write, read: Read) -> None:
    text = "x" * 30_000_000
    _, rows = read(write({"prompt": "a"}, {"prompt": text}, {"prompt": "b"}))
    assert [len(text) for text in texts(rows)] == [1, len(text), 1]


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        list(jsonl.read_lines(tmp_path / "gone.jsonl"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON: .*column 2"),
        (b'{"prompt": "a"} x', "not JSON: Extra data"),
        (b"[1]", "not an object but a list"),
        (b'"text"', "not an object but text"),
        (b"1", "not an object but a number"),
        (b"null", "not an object but null"),
        (b'{"prompt": "\xff"}', "not UTF-8 .byte 13"),
        (b'{"body": {"input": "a", "temperature": NaN}}', "a value would be sent that is NaN"),
        (
            b'{"input": "a", "text": {"x": -Infinity}}',
            "sent that is -Infinity; JSON cannot express",
        ),
        (b'{"prompt": "a", "x": 1e400}', "1e400 is out of range"),
        (b'{"prompt": "a", "x": ' + b"1" * 5_000 + b"}", "an integer of 5,000 digits"),
        (b'{"prompt": "a", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (
            b'{"prompt": "a", "x": ' + b'{"a":' * 200_000 + b"1" + b"}" * 200_001,
            "nested too deeply",
        ),
    ],
)
def test_a_bad_line_says_what_is_wrong_with_it(
    write: Write, read: Read, line: bytes, message: str
) -> None:
    survey, rows = read(write({"prompt": "a"}, line, {"prompt": "b"}))
    assert survey.bad_rows == 1
    assert (rows[1].row, rows[1].line, rows[1].custom_id) == (1, 2, "1")
    assert rows[1].carried == ()
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(rows[1].message)


def test_lone_surrogates_are_replaced_and_pairs_joined(write: Write, read: Read) -> None:
    text = rb'"prompt": "a\ud83d b\ude00 \ud83d\ude00"'
    line = b"{" + text + rb', "note": "\ud800", "\udfff": [{"x": "\ud800"}]}'
    _, rows = read(write(line))
    assert texts(rows) == ["a\ufffd b\ufffd \U0001f600"]
    assert rows[0].carried == ("\ufffd", '[{"x":"\ufffd"}]')


def test_the_last_of_two_equal_keys_wins(write: Write, read: Read) -> None:
    _, rows = read(write(b'{"prompt": "a", "prompt": "b"}'))
    assert texts(rows) == ["b"]


def test_integers_beyond_64_bits_stay_exact(write: Write, read: Read) -> None:
    number = 2**80 + 1
    _, rows = read(write({"prompt": "a", "x": number}, {"input": "b", "metadata": {"n": number}}))
    assert rows[0].carried == (str(number),)
    assert f'"n":{number}'.encode() in rows[1].body
