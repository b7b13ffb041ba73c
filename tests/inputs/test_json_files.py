"""JSON in whatever way it stands in a file: read exactly, or refused with line and reason."""

import bz2
import json
import lzma
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchrun.errors import InputError
from batchrun.inputs import jsonl
from batchrun.inputs.rows import SourceFile

_FILES, _LOTS = 500, 40  # 20,000 in all
_SHORT = 4  # lots of them that `make test` reads

ROWS: list[dict[str, Any]] = [
    {"id": number, "q": 'a "[]{},\\ \u00e9', "n": {"x": [1, 2, {"y": None}], "z": []}}
    for number in range(3)
]
_LINES = [json.dumps(row).encode() for row in ROWS]
_PRETTY = json.dumps(ROWS, indent=2).encode()
_OLD = b"".join(line + b"\r" for line in _LINES)

Read = Callable[..., list[Any]]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """The rows of a file with these bytes, read in pieces of so many."""

    def read(data: bytes, name: str = "prompts.json", buffer: int = 1 << 18) -> list[Any]:
        monkeypatch.setattr(jsonl, "_BUFFER", buffer)
        path = tmp_path / name
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        return list(jsonl.read_rows(SourceFile(path, name, "jsonl"), 0, None))

    return read


@pytest.mark.parametrize("buffer", [1, 7, 1 << 18])
@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (json.dumps(ROWS).encode(), [1, 1, 1]),
        (_PRETTY, [2, 16, 30]),
        (b"\n".join(json.dumps(row, indent=2).encode() for row in ROWS), [1, 15, 29]),
        (b"\n".join(_LINES), [1, 2, 3]),
        (b"\r\n".join(_LINES), [1, 2, 3]),
        (_OLD, [1, 2, 3]),
        (_PRETTY.replace(b"\n", b"\r"), [2, 16, 30]),
        (b"\xef\xbb\xbf\xef\xbb\xbf" + _PRETTY + b"\r\n\x1a", [2, 16, 30]),
        (b"\n".join(b"\xef\xbb\xbf" + line for line in _LINES) + b"\x1a", [1, 2, 3]),
        (b"\n".join(_LINES) + b"\n\x1a", [1, 2, 3]),
        (b" \n[\n" + b"\n,".join(_LINES) + b"]\n\n", [3, 4, 5]),
    ],
)
def test_it_is_read_exactly_in_every_form(
    read: Read, data: bytes, lines: list[int], buffer: int
) -> None:
    for name in ("prompts.json", "prompts.jsonl"):
        rows = read(data, name, buffer)
        assert [row.data for row in rows] == ROWS
        assert [row.line for row in rows] == lines


def test_bz2_and_xz_are_read_and_what_is_cut_is_named(read: Read) -> None:
    for name, pack in (("a.jsonl.bz2", bz2.compress), ("a.json.xz", lzma.compress)):
        assert [row.data for row in read(pack(_PRETTY), name)] == ROWS
        twice = pack(_LINES[0] + b"\n") + pack(_LINES[1] + b"\n")
        assert [row.data for row in read(twice, name)] == ROWS[:2]
        for damaged in (pack(_PRETTY)[:-9], _PRETTY):
            with pytest.raises(InputError, match=r"a\.json.*cut short, damaged or not (bzip2|xz)"):
                read(damaged, name)


def test_an_object_of_columns_as_pandas_writes_it_gives_its_rows(read: Read) -> None:
    table = {"q": {"0": "a", "1": "b"}, "n": {"0": 1, "1": None}}
    rows = read(json.dumps(table).encode())
    assert [row.data for row in rows] == [{"q": "a", "n": 1}, {"q": "b", "n": None}]
    assert [row.data for row in read(b'{"q": {"x": "a"}}')] == [{"q": {"x": "a"}}]


def test_an_array_is_read_in_pieces(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long file is never in memory as a whole."""
    longest = 0
    load = jsonl._Values._load

    def noted(self: Any, keep: int) -> bool:
        nonlocal longest
        is_last = load(self, keep)
        longest = max(longest, len(self._buffer))
        return is_last

    monkeypatch.setattr(jsonl._Values, "_load", noted)
    rows = [{"q": f"{number} " + "x" * 200} for number in range(5_000)]
    assert [row.data for row in read(json.dumps(rows).encode(), buffer=4_096)] == rows
    assert longest < 50_000


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'[{"q": 1},]', ":1: not JSON: a comma before it"),
        (b'[{"q": 1}\n{"q": 2}]', ":2: not JSON: a comma is missing before it"),
        (b'[{"q": 1},\n{"q": ', ":2: not JSON: the file ends before this value does"),
        (b'[{"q": 1},\n{"q": 2}] x', ":2: not JSON: text after the end of the array"),
        (b'{\n"q": 1\n},\n{\n"q": 2}', ":3: not JSON: values with commas between them"),
        ('[{"q": 1}]'.encode("utf-16"), "the file is UTF-16, not UTF-8"),
    ],
)
def test_a_file_that_is_no_json_is_refused_by_its_line(read: Read, data: bytes, said: str) -> None:
    with pytest.raises(InputError) as raised:
        read(data)
    assert said in str(raised.value)


def test_a_bad_row_of_an_array_is_one_row(read: Read) -> None:
    rows = read(b'[{"q": tru},\n{"q": 1}, 5, "x"]')
    assert [row.data for row in rows] == [None, {"q": 1}, None, None]
    assert [row.problem.partition(";")[0] for row in rows] == [
        "not JSON: Expecting value (column 7)",
        "",
        "not an object but a number",
        "not an object but text",
    ]


def test_lone_carriage_returns_between_rows_are_named(read: Read) -> None:
    rows = read(b'{"q": 1}\n{"q": 2}\r{"q": 3}\n')
    assert "it holds 2 rows with lone carriage returns between them" in rows[1].problem


_VALUES: tuple[Any, ...] = (
    *(
        "",
        "plain",
        'quote " and \\',
        "[{]},:",
        "é漢🙂",
        "\u2028",
        "line\nbreak\r",
        "\x1a",
        "\ufeff",
    ),
    *(0, -1, 2**53, 0.5, 1e300, True, False, None),
)


class _Maker:
    """Files by chance; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def value(self, depth: int = 0) -> Any:
        kind = self.chance.random()
        if depth < 3 and kind < 0.15:
            return [self.value(depth + 1) for _ in range(self.chance.randrange(4))]
        if depth < 3 and kind < 0.3:
            return {self.name(): self.value(depth + 1) for _ in range(self.chance.randrange(4))}
        return self.chance.choice(_VALUES)

    def name(self) -> str:
        return self.chance.choice(("q", "answer", 'a "b"', "x,y", "{", "é", ""))

    def file(self) -> tuple[bytes, list[Any], bool]:
        """Its bytes, its rows, and whether something in it was broken."""
        rows: list[Any] = [
            {"n": number, **{self.name(): self.value() for _ in range(self.chance.randrange(4))}}
            for number in range(self.chance.randrange(1, 6))
        ]
        ascii_only, indent = self.chance.random() < 0.5, self.chance.choice((None, 1, 2, "\t"))

        def write(value: Any, indent: Any = indent) -> str:
            return json.dumps(value, ensure_ascii=ascii_only, indent=indent)

        form = self.chance.randrange(4)
        if form == 0:
            text = write(rows)
        elif form == 1:
            text = "\n".join(map(write, rows))
        elif form == 2:
            text = "[" + self.chance.choice((",", ",\n", " ,")).join(map(write, rows)) + "]"
        else:
            text = "\n".join(write(row, None) for row in rows)
        end = self.chance.choice(("\n", "\r\n", "\r"))
        data = (text + self.chance.choice(("", "\n", "\n\n"))).replace("\n", end).encode()
        data = b"\xef\xbb\xbf" * self.chance.choice((0, 0, 1, 2)) + data
        data += self.chance.choice((b"", b"", b"\x1a"))
        if self.chance.random() < 0.6:
            return data, rows, False
        at = self.chance.randrange(len(data))
        broken = self.chance.choice((b"", b"\xff", b",", b"]", b"{", b'"', b"x", b"\x00"))
        return data[:at] + broken + data[at + self.chance.randrange(2) :], rows, True


def _is_equal(one: Any, other: Any) -> bool:
    return json.dumps(one) == json.dumps(other)


@pytest.mark.parametrize(
    "lot",
    [
        *range(_SHORT),
        *(pytest.param(lot, marks=pytest.mark.long) for lot in range(_SHORT, _LOTS)),
    ],
)
def test_any_json_file_is_read_exactly_or_refused_with_line_and_reason(
    read: Read, lot: int
) -> None:
    ends = {"read": 0, "refused": 0}
    for number in range(lot * _FILES, (lot + 1) * _FILES):
        maker = _Maker(number)
        data, rows, is_broken = maker.file()
        name = maker.chance.choice(("a.json", "a.jsonl", "a.ndjson"))
        buffer = maker.chance.choice((1, 5, 64, 1 << 18))
        said = ""
        try:
            found = read(data, name, buffer)
        except InputError as error:
            found, said = [], str(error)
        if said:
            assert is_broken, (number, data, said)
            assert re.search(r":\d+: not JSON: \w|UTF-16", said), said
            ends["refused"] += 1
            continue
        if not is_broken:
            assert _is_equal([row.data for row in found], rows), (number, data)
            ends["read"] += 1
        for row in found:
            assert row.problem or type(row.data) is dict
            assert row.line >= 1
    assert ends["read"] > _FILES / 3
    assert ends["refused"] > _FILES / 50
