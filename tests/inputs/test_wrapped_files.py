"""A file that is one object around its rows: they are read, or the remedy that is named works."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchrun.records import Request
from tests.inputs.conftest import Read
from tests.waiting import HANG_S

ROWS: list[dict[str, Any]] = [
    {"question": f'"[{number}]" \u00e9?', "n": number} for number in range(3)
]
ASK = {"model": "m", "input": "{{ question }}"}
CHATS = [{"messages": [{"role": "user", "content": str(number)}]} for number in range(3)]


def _write(folder: Path, value: object, name: str = "set.json", indent: int | None = 1) -> Path:
    path = folder / name
    path.write_text(json.dumps(value, indent=indent), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"data": ROWS}, "the rows are the objects in its list `data`"),
        ({"version": "1.1", "data": ROWS}, "its list `data`; `version` beside it: not read"),
        ({"data": ROWS, "tags": ["a"], "meta": {"n": 3}}, "`tags`, `meta` beside it: not read"),
        ({"data": {"items": ROWS}}, "its list `data.items`"),
        ({"took": 3, "hits": {"total": 3, "hits": ROWS}}, "its list `hits.hits`; `took` beside it"),
        # Two lists: the one with a column of the template.
        ({"features": [{"name": "question"}], "rows": ROWS}, "its list `rows`; `features` beside"),
        ({"schema": {"fields": [{"name": "n"}]}, "data": ROWS}, "its list `data`; `schema` beside"),
    ],
)
@pytest.mark.parametrize("name", ["set.json", "set.jsonl"])
def test_its_one_list_of_objects_is_read(
    tmp_path: Path, read: Read, value: object, words: str, name: str
) -> None:
    for indent in (None, 1):
        survey, rows = read(_write(tmp_path, value, name, indent), ASK)
        inputs = [json.loads(row.body)["input"] for row in rows if isinstance(row, Request)]
        assert inputs == [row["question"] for row in ROWS]
        assert any(f"{name}: " in line and words in line for line in survey.warnings)


def test_chat_rows_in_a_list_are_read_and_bad_ones_named_by_their_lines(
    tmp_path: Path, read: Read
) -> None:
    path = _write(tmp_path, {"model": "x", "examples": [*CHATS, {"messages": []}]})
    survey, rows = read(path, {"model": "m"})
    assert [row.row for row in rows if isinstance(row, Request)] == [0, 1, 2]
    bad = survey.problems[0]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert bad.line is not None
    assert "".join("".join(lines[bad.line - 1 :]).split()) == '{"messages":[]}]}'


def test_values_of_a_list_stay_exact(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "set.json"
    path.write_text('\ufeff{"data": [{"question": 1.50, "n": 12345678901234567890}]}', "utf-8")
    _, rows = read(path, ASK, carry=("n",))
    assert isinstance(rows[0], Request)
    assert (json.loads(rows[0].body)["input"], rows[0].carried) == (
        "1.5",
        ("12345678901234567890",),
    )
    path.write_text('{"data": [{"question": "a", "n": NaN}]}', "utf-8")
    _, rows = read(path, ASK)
    assert isinstance(rows[0], Request)


@pytest.mark.parametrize(
    ("value", "request_"),
    [
        ({"messages": CHATS[0]["messages"], "data": ROWS}, {"model": "m"}),
        ({"conversations": [{"from": "human", "value": "x"}]}, {"model": "m"}),
        ({"input": [{"role": "user", "content": "x"}]}, {"model": "m"}),
        ({"data": ROWS}, {"model": "m", "input": "{% for one in data %}{{ one.n }}{% endfor %}"}),
        ({"question": "a", "data": ROWS}, ASK),
        ({"data": ROWS}, {"model": "m", "input": "{{ row['data'] | tojson }}"}),
    ],
)
def test_an_object_that_the_job_uses_is_a_row_itself(
    tmp_path: Path, read: Read, value: object, request_: dict[str, Any]
) -> None:
    survey, rows = read(_write(tmp_path, value), request_)
    assert [type(row) for row in rows] == [Request]
    assert not any("the rows are" in line for line in survey.warnings)


@pytest.mark.parametrize("request_", [ASK, {"model": "m"}])
def test_of_several_lists_none_is_guessed_and_the_command_that_is_named_works(
    tmp_path: Path, read: Read, request_: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = CHATS if len(request_) == 1 else ROWS
    survey, _ = read(_write(tmp_path, {"train": rows, "test": rows[:1]}, "it's.json"), request_)
    (problem,) = survey.problems
    assert "if the rows are in its list `train`" in problem.message
    command = problem.message.partition(": python ")[2]
    assert command
    monkeypatch.chdir(tmp_path)
    *typed, sign, name = shlex.split(command)
    assert (sign, name) == (">", "rows.jsonl")
    with Path(name).open("wb") as file:
        subprocess.run([sys.executable, *typed], stdout=file, check=True, timeout=HANG_S)
    survey, found = read(tmp_path / "rows.jsonl", request_)
    assert survey.rows == len(rows)
    assert all(isinstance(row, Request) for row in found)
