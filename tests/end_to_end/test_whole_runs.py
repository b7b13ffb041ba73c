"""Prompt sets in every form, to their tables."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import pytest

Run = Callable[..., CompletedProcess[str]]
Rows = list[dict[str, Any]]
Query = Callable[..., list[tuple[Any, ...]]]

_ASK = ("--prompt", "{{ question }}", "--model", "gpt-4.1")
_COUNT = 300
_GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k_test.jsonl"
_WHOLE = """
    SELECT row, custom_id, question, answer, level, request FROM read_parquet(?)
    WHERE ok AND status = 'completed' AND output_text <> '' ORDER BY row
"""


def _compressed(source: Path, target: Path, compression: str) -> None:
    with pa.CompressedOutputStream(str(target), compression) as stream:
        stream.write(source.read_bytes())


def _parquet(source: Path, target: Path) -> None:
    pq.write_table(pyarrow.json.read_json(source), target, row_group_size=64)


@pytest.fixture
def source(tmp_path: Path, write_rows: Any, questions: Any) -> Path:
    path: Path = tmp_path / write_rows(questions(_COUNT))
    return path


def _expected(source: Path) -> list[tuple[Any, ...]]:
    """What `_WHOLE` selects when all went well."""
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    return [
        (
            number,
            str(number),
            row["question"],
            row["answer"],
            row["level"],
            json.dumps({"model": "gpt-4.1", "input": row["question"]}, separators=(",", ":")),
        )
        for number, row in enumerate(rows)
    ]


@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "parquet", "jsonl.gz", "ndjson.zst"])
def test_every_file_format_gives_the_same_rows(
    ending: str, tmp_path: Path, batchrun: Run, query: Query, source: Path
) -> None:
    target = tmp_path / f"copy.{ending}"
    match ending.rpartition(".")[2]:
        case "gz":
            _compressed(source, target, "gzip")
        case "zst":
            _compressed(source, target, "zstd")
        case "parquet":
            _parquet(source, target)
        case _:
            shutil.copy(source, target)
    done = batchrun("run", target.name, *_ASK, "--simulate")
    assert done.returncode == 0, done.stderr
    assert query(_WHOLE, "runs/copy-simulated") == _expected(source)


@pytest.mark.parametrize("spec", ["shards", "shards/**/*.*"])
def test_a_folder_and_a_glob_are_read_in_the_order_of_their_names(
    spec: str, tmp_path: Path, batchrun: Run, query: Query, source: Path
) -> None:
    lines = source.read_bytes().splitlines(keepends=True)
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"".join(lines[:100]))
    (tmp_path / "rest").write_bytes(b"".join(lines[200:]))
    _compressed(tmp_path / "rest", folder / "c.jsonl.gz", "gzip")
    (tmp_path / "rest").write_bytes(b"".join(lines[100:200]))
    _parquet(tmp_path / "rest", folder / "b.parquet")
    done = batchrun("run", spec, *_ASK, "--simulate", "-o", "run")
    assert done.returncode == 0, done.stderr
    assert query(_WHOLE) == _expected(source)
    sources = query("SELECT source, count(*), min(row) FROM read_parquet(?) GROUP BY 1 ORDER BY 1")
    assert sources == [("a.jsonl", 100, 0), ("b.parquet", 100, 100), ("c.jsonl.gz", 100, 200)]


def test_a_job_file_gives_the_same_rows_as_the_options(
    tmp_path: Path, batchrun: Run, query: Query, source: Path
) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "shelves.toml").write_text(
        """
        [input]
        path = "../prompts.jsonl"
        [request]
        model = "overruled"
        input = "{{ question }}"
        [output]
        path = "../run"
        part_rows = 70
        """
    )
    done = batchrun("run", "jobs/shelves.toml", "--model", "gpt-4.1", "--simulate")
    assert done.returncode == 0, done.stderr
    assert query(_WHOLE) == _expected(source)
    assert len(list((tmp_path / "run" / "responses").iterdir())) == 5


def test_bytes_that_editors_leave_are_no_rows_and_no_part_of_rows(
    tmp_path: Path, batchrun: Run, query: Query, source: Path
) -> None:
    text = source.read_bytes().rstrip(b"\n")
    (tmp_path / "odd.jsonl").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n\r\n \n"))
    assert batchrun("run", "odd.jsonl", *_ASK, "--simulate", "-o", "run").returncode == 0
    assert query(_WHOLE) == _expected(source)


def test_all_forms_of_rows_stand_side_by_side_in_one_file(
    batchrun: Run, query: Query, write_rows: Any, simulator: Any, stats: Any
) -> None:
    tool = {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    }
    base_url = simulator()
    source = write_rows(
        [
            {
                "custom_id": "batch",
                "method": "POST",
                "url": "/v1/responses",
                "body": {"model": "gpt-4.1-mini", "input": "From a Batch line."},
            },
            {
                "custom_id": "chat",
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": "From a chat."}]},
                ],
                "tools": [{"type": "function", "function": tool}],
                "tool_choice": "required",
                "max_tokens": 400,
                "note": "carried",
            },
            {"custom_id": "body", "input": "From a body.", "temperature": 0.5, "note": "also"},
            {
                "custom_id": "items",
                "input": [{"role": "user", "content": "From a body's items. 你好"}],
                "tools": [{"type": "function", **tool}],
                "tool_choice": "required",
            },
            {"custom_id": "prompt", "prompt": "From a prompt row."},
            {
                "custom_id": "messages as text",
                "messages": json.dumps([{"role": "user", "content": "From text."}]),
            },
        ]
    )
    options = ("--base-url", base_url, "--model", "gpt-4.1", "-o", "run")
    done = batchrun("run", source, *options)
    assert done.returncode == 0, done.stderr
    counts = stats(base_url)
    assert (counts["requests"], counts["completions"], counts["rejected"]) == (6, 6, {})
    rows = query("SELECT custom_id, model_requested, note, request FROM read_parquet(?)")
    bodies = {name: (model, note, json.loads(body)) for name, model, note, body in rows}
    assert bodies["batch"] == (
        "gpt-4.1-mini",
        None,
        {"model": "gpt-4.1-mini", "input": "From a Batch line."},
    )
    model, note, chat = bodies["chat"]
    assert (model, note, chat["max_output_tokens"]) == ("gpt-4.1", "carried", 400)
    assert chat["tools"][0]["name"] == "get_weather"
    assert "messages" not in chat
    assert bodies["body"][1:] == (
        "also",
        {"input": "From a body.", "temperature": 0.5, "model": "gpt-4.1"},
    )
    assert bodies["prompt"][2] == {"input": "From a prompt row.", "model": "gpt-4.1"}
    calls = query(
        "SELECT custom_id, name, arguments_valid FROM read_parquet(?) ORDER BY custom_id, position",
        table="tool_calls",
    )
    assert {call[0] for call in calls} == {"chat", "items"}
    assert {call[1:] for call in calls} == {("get_weather", True)}
    counted = query("SELECT sum(tool_call_count) FROM read_parquet(?)")
    assert counted == [(len(calls),)]


@pytest.mark.skipif(not _GSM8K.exists(), reason=f"{_GSM8K} is not there")
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_real_prompt_set_becomes_tables(
    ending: str, tmp_path: Path, batchrun: Run, query: Query, totals: Any
) -> None:
    source = _GSM8K
    if ending == "parquet":
        source = tmp_path / "gsm8k_test.parquet"
        _parquet(_GSM8K, source)
    done = batchrun("run", source, *_ASK, "--simulate", "--json")
    assert done.returncode == 0, done.stderr
    run = "runs/gsm8k_test-simulated"
    assert totals(run) == (1319, 1319, 1319)
    carried = query("SELECT question, answer FROM read_parquet(?) ORDER BY row", run)
    given = [json.loads(line) for line in _GSM8K.read_text("utf-8").splitlines()]
    assert carried == [(row["question"], row["answer"]) for row in given]
    assert json.loads(done.stdout)["ok"] == 1319


def test_what_comes_from_standard_input_is_kept_and_known_again(
    batchrun: Run, query: Query, source: Path
) -> None:
    text = source.read_text("utf-8")
    command = ("run", "-", *_ASK, "--simulate", "-o", "run")
    first = batchrun(*command, "--limit", "100", text=text)
    assert first.returncode == 0, first.stderr
    same = batchrun(*command, "--limit", "200", text=text)
    assert same.returncode == 0, same.stderr
    other = batchrun(*command, text=text.replace("vases", "cups"))
    assert other.returncode == 2
    assert "standard input differs" in other.stderr
    assert query("SELECT count(*) FROM read_parquet(?)") == [(200,)]
    none = batchrun(*command)
    assert none.returncode == 0, none.stderr
    assert query(_WHOLE) == _expected(source)
    again = batchrun(*command, text=text)
    assert again.returncode == 0
    assert "nothing left to send" in again.stderr


def test_standard_input_needs_a_run_directory_to_be_kept_in(batchrun: Run, tmp_path: Path) -> None:
    done = batchrun("run", "-", *_ASK, "--simulate", text='{"question": "What?"}\n')
    assert done.returncode == 2
    assert "give -o DIR" in done.stderr
    assert list(tmp_path.iterdir()) == []
