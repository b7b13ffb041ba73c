"""What is wrong is said in a few words before anything is sent, and leaves nothing behind."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Run = Callable[..., CompletedProcess[str]]

_LINE = '{"question": "What?", "id": 1}\n'
_MANY = "".join(json.dumps({"question": f"What is {n}?", "id": n}) + "\n" for n in range(2_000))
_JOB = """
[input]
path = "prompts.jsonl"
[request]
model = "gpt-4.1"
input = "{{ question }}"
"""


def _job(more: str) -> dict[str, str | bytes]:
    return {"prompts.jsonl": _LINE, "job.toml": _JOB + more}


def _parquet(count: int) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"question": [f"What is {number}?" for number in range(count)]})
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


_P = ("--prompt", "{{ question }}")
_M = ("--model", "gpt-4.1")
# What files there are, what is asked for, what is said.
_CASES: dict[str, tuple[dict[str, str | bytes], tuple[str, ...], str]] = {
    "a missing file": ({}, ("prompts.jsonl", *_P, *_M), "prompts.jsonl: no such file"),
    "a missing job file": (
        {},
        ("job.toml",),
        "job.toml: cannot be read (No such file or directory); check the path",
    ),
    "an empty file": ({"a.jsonl": ""}, ("a.jsonl", *_P, *_M), "a.jsonl"),
    "blank lines alone": ({"a.jsonl": "\n \r\n\n"}, ("a.jsonl", *_P, *_M), "a.jsonl"),
    "an unknown ending": ({"a.dat": "a,b\n"}, ("a.dat", *_P, *_M), "a.dat: the ending"),
    "a folder without prompt sets": (
        {"folder/a.dat": "a,b\n"},
        ("folder", *_P, *_M),
        "folder: no prompt set in this folder",
    ),
    "a glob that matches nothing": (
        {},
        ("no/*.jsonl", *_P, *_M, "-o", "run"),
        "no/*.jsonl: no file matches",
    ),
    "a glob without a run directory": ({"a.jsonl": _LINE}, ("*.jsonl", *_P, *_M), "give -o DIR"),
    "a line that is not JSON": (
        {"a.jsonl": _LINE + "what?\n"},
        ("a.jsonl", *_P, *_M),
        "a.jsonl:2: ",
    ),
    "a line that is no object": (
        {"a.jsonl": _LINE + "[1, 2]\n"},
        ("a.jsonl", *_P, *_M),
        "a.jsonl:2: not an object but a list",
    ),
    "bytes that are no UTF-8": (
        {"a.jsonl": _LINE.encode() + b'{"question": "caf\xe9"}\n'},
        ("a.jsonl", *_P, *_M),
        "a.jsonl:2: ",
    ),
    "a Parquet file cut short": (
        {"a.parquet": _parquet(1_000)[:-100]},
        ("a.parquet", *_P, *_M),
        "a.parquet",
    ),
    "a Parquet file that is none": ({"a.parquet": _LINE}, ("a.parquet", *_P, *_M), "a.parquet"),
    "a Parquet file damaged within": (
        {"a.parquet": _parquet(9_000)[:500] + b"\0" * 400 + _parquet(9_000)[900:]},
        ("a.parquet", *_P, *_M),
        "a.parquet",
    ),
    "a gzip file cut short": (
        {"a.jsonl.gz": gzip.compress(_MANY.encode())[:-200]},
        ("a.jsonl.gz", *_P, *_M),
        "a.jsonl.gz: cannot be read",
    ),
    "a gzip file that is none": (
        {"a.jsonl.gz": _MANY},
        ("a.jsonl.gz", *_P, *_M),
        "a.jsonl.gz: cannot be read",
    ),
    "an unknown template column": (
        {"a.jsonl": _LINE},
        ("a.jsonl", "--prompt", "{{ qestion }}", *_M),
        "column `qestion` is missing",
    ),
    "a template that is none": (
        {"a.jsonl": _LINE},
        ("a.jsonl", "--prompt", "{{ question", *_M),
        "request.input: the template cannot be read",
    ),
    "a row without a way to a request": (
        {"a.jsonl": _LINE},
        ("a.jsonl", *_M),
        "a.jsonl:1: ",
    ),
    "no model": ({"a.jsonl": _LINE}, ("a.jsonl", *_P), "model"),
    "another address in a Batch line": (
        {
            "a.jsonl": '{"custom_id": "a", "url": "/v1/embeddings", "method": "POST", '
            '"body": {"model": "m", "input": "x"}}\n'
        },
        ("a.jsonl",),
        '`url` is "/v1/embeddings", but batchrun sends to /v1/responses alone',
    ),
    "a duplicate custom_id": (
        {"a.jsonl": '{"custom_id": "a", "prompt": "One?"}\n{"custom_id": "a", "prompt": "Two?"}\n'},
        ("a.jsonl", *_M),
        'duplicate custom_id "a": ',
    ),
    "a duplicate in input.id": (
        {
            "a.jsonl": _LINE + _LINE,
            "job.toml": _JOB.replace("prompts", "a").replace("[request]", 'id = "id"\n[request]'),
        },
        ("job.toml",),
        'duplicate id "1": ',
    ),
    "a job file that is not TOML": (_job("[output\n"), ("job.toml",), "job.toml: not TOML"),
    "a job file with an unknown key": (
        _job("[endpoint]\ntimeout = 5\n"),
        ("job.toml",),
        "unknown key endpoint.timeout; did you mean `timeout_s`?",
    ),
    "a job file with an unknown section": (
        _job("[limit]\nconcurrency = 5\n"),
        ("job.toml",),
        "unknown section [limit]; did you mean `limits`?",
    ),
    "a job file with a mistyped key": (
        _job('[limits]\nconcurrency = "many"\n'),
        ("job.toml",),
        "job.toml: limits.concurrency is ",
    ),
    "a job file with a number out of range": (
        _job("[retry]\nmax_attempts = 0\n"),
        ("job.toml",),
        "retry.max_attempts is 0; it must be a number from 1 up",
    ),
    "a key written into the job file": (
        _job('[endpoint]\napi_key = "sk-made-up-and-long-enough"\n'),
        ("job.toml",),
        "endpoint.api_key holds what looks like a key",
    ),
    "a key in a header of the job file": (
        _job('[endpoint.headers]\nAuthorization = "Bearer made-up"\n'),
        ("job.toml",),
        "endpoint.headers.Authorization holds what looks like a key",
    ),
    "a header from a variable that is not set": (
        _job('[endpoint.headers]\nX-Team = "env:SURELY_NOT_SET"\n'),
        ("job.toml",),
        "the environment variable SURELY_NOT_SET is not set",
    ),
    "no key for a host that is not loopback": (
        {"a.jsonl": _LINE},
        ("a.jsonl", *_P, *_M, "--base-url", "https://api.example.invalid/v1"),
        "the environment variable OPENAI_API_KEY is not set",
    ),
    "a URL without a scheme": (
        {"a.jsonl": _LINE},
        ("a.jsonl", *_P, *_M, "--base-url", "localhost:8000"),
        "is not an http or https URL",
    ),
    "a URL that is none": (
        {"a.jsonl": _LINE},
        ("a.jsonl", *_P, *_M, "--base-url", "http://[::1"),
        "the base URL is not a URL",
    ),
    "a URL with a query": (
        {"a.jsonl": _LINE},
        ("a.jsonl", *_P, *_M, "--base-url", "http://127.0.0.1/v1?a=1"),
        "put it in [endpoint.query]",
    ),
    "--set without an equals sign": (
        {"a.jsonl": _LINE},
        ("a.jsonl", *_P, *_M, "--set", "temperature"),
        "write KEY=VALUE",
    ),
    "--set of what batchrun sets": (
        {"a.jsonl": _LINE},
        ("a.jsonl", *_P, *_M, "--set", "stream=true"),
        "request.stream is set by batchrun itself",
    ),
    "an unknown option": (
        {"a.jsonl": _LINE},
        ("a.jsonl", *_P, *_M, "--concurency", "5"),
        "No such option",
    ),
    "an option out of range": (
        {"a.jsonl": _LINE},
        ("a.jsonl", *_P, *_M, "--concurrency", "0"),
        "--concurrency",
    ),
    "a run directory that is a file": (
        {"a.jsonl": _LINE, "run": "mine"},
        ("a.jsonl", *_P, *_M, "-o", "run"),
        "run is a file",
    ),
    "a run directory that holds other things": (
        {"a.jsonl": _LINE, "mine/thesis.txt": "mine"},
        ("a.jsonl", *_P, *_M, "-o", "mine"),
        "is not a run directory and not empty",
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[str]:
    """One simulator for all of these: nothing may ever reach it."""
    with subprocess.Popen(
        [sys.executable, "-m", "batchrun", "simulate", "--port", "0"],
        cwd=tmp_path_factory.mktemp("server"),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("case", _CASES)
def test_bad_input_is_a_short_message_and_exit_2(
    case: str, tmp_path: Path, batchrun: Run, server: str, stats: Callable[..., dict[str, Any]]
) -> None:
    files, words, says = _CASES[case]
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = _tree(tmp_path)
    done = batchrun("run", *words, env={"OPENAI_BASE_URL": server})
    assert done.returncode == 2, done.stderr
    assert says in " ".join(done.stderr.split()), done.stderr
    assert len(done.stderr) < 1_000
    assert len(done.stderr.splitlines()) < 10
    assert "made-up" not in done.stderr
    assert done.stdout == ""
    assert _tree(tmp_path) == before
    assert stats(server)["requests"] == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_message(
    tmp_path: Path, batchrun: Run, server: str, stats: Callable[..., dict[str, Any]]
) -> None:
    (tmp_path / "a.jsonl").write_text(_LINE)
    (tmp_path / "a.jsonl").chmod(0)
    done = batchrun("run", "a.jsonl", *_P, *_M, "--base-url", server)
    assert done.returncode == 2
    assert "a.jsonl: cannot be read" in done.stderr
    assert stats(server)["requests"] == 0


def test_the_first_ten_bad_rows_are_named(tmp_path: Path, batchrun: Run) -> None:
    bad = "".join(_LINE + f"bad {number}\n" for number in range(25))
    (tmp_path / "a.jsonl").write_text(bad)
    done = batchrun("run", "a.jsonl", *_P, *_M, "--simulate")
    assert done.returncode == 2
    named = re.findall(r"^  a\.jsonl:(\d+): ", done.stderr, re.MULTILINE)
    assert named == [str(place) for place in range(2, 21, 2)]
    assert "25 rows of 50 cannot be sent" in done.stderr
    assert "and 15 more" in done.stderr


def test_a_run_directory_belongs_to_one_prompt_set_and_one_kind_of_endpoint(
    tmp_path: Path, batchrun: Run, server: str, stats: Callable[..., dict[str, Any]]
) -> None:
    (tmp_path / "a.jsonl").write_text(_LINE)
    (tmp_path / "b.jsonl").write_text(_LINE.replace("What", "Why"))
    command = ("run", "a.jsonl", *_P, *_M, "-o", "run")
    assert batchrun(*command, "--simulate").returncode == 0
    before = {name: text for name, text in _tree(tmp_path).items() if name != "run/lock"}
    other = batchrun("run", "b.jsonl", *_P, *_M, "-o", "run", "--simulate")
    real = batchrun(*command, "--base-url", server)
    assert (other.returncode, real.returncode) == (2, 2)
    assert "1 complete row does not agree with the input" in other.stderr
    assert "holds simulated answers, and the run asked for is real" in real.stderr
    after = {name: text for name, text in _tree(tmp_path).items() if name != "run/lock"}
    assert after == before
    assert stats(server)["requests"] == 0
    record = tmp_path / "run" / "run.json"
    record.write_text(record.read_text().replace('"hash_rule": 3', '"hash_rule": 1'))
    older = batchrun(*command, "--simulate")
    assert older.returncode == 2
    assert "hashed by rule 1 of batchrun" in older.stderr


def test_no_arguments_show_help_and_wrong_ones_the_way_to_it(batchrun: Run) -> None:
    bare, help_, wrong = batchrun(), batchrun("run", "--help"), batchrun("rum")
    assert "Usage:" in bare.stdout + bare.stderr
    assert help_.returncode == 0
    for part in ("Examples:", "Exit codes:", "--dry-run", "--concurrency"):
        assert part in help_.stdout
    assert wrong.returncode == 2
    assert "No such command" in wrong.stderr
