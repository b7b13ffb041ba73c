"""Rows that two machines have completed: which outcome stays, and what both have cost."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from batchrun.errors import ErrorKind, StoreError
from batchrun.records import Attempt, Failure, Outcome, Request, ToolCall
from batchrun.remote.part_stubs import part_file
from batchrun.store.parts import count_rows
from batchrun.store.reading import read_totals
from batchrun.store.run_dir import RunDir
from batchrun.store.snapshot import snapshot
from batchrun.store.verify import verify as verify_run
from tests.processes import ForkServer
from tests.remote.object_server import Bucket
from tests.runs import response, run_record
from tests.waiting import HANG_S

_CALL = ToolCall(0, "function_call", "call_1", "look_up", "{}", None, "completed", "{}")
_BEFORE_S, _HERE_S, _THERE_S = 100, 200, 300  # when attempts began


def attempt(began_s: int) -> Attempt:
    """One that cost a dollar."""
    return Attempt(began_s * 1_000_000, 0.5, "first", 200, cost_usd=1.0)


def outcome(
    row: int, text: str | None, *began_s: int, prompt: int = 0, replaces: bool = False
) -> Outcome:
    """`text`: of the answer; null: there is none. `prompt`: which one it was asked with."""
    attempts = tuple(map(attempt, began_s))
    request = Request(row, f"q{row}", "prompts.jsonl", b"{}", f"{prompt:016x}", "m", None, ())
    answer = response(output_text=text, tool_calls=(replace(_CALL, name=text or ""),))
    return Outcome(
        request=request,
        result=Failure(ErrorKind.SERVER_ERROR, "no") if text is None else answer,
        attempts=attempts,
        endpoint="https://example.test/v1",
        via="plain",
        cost_usd=float(len(attempts)),
        replaces=replaces,
    )


@pytest.fixture
def begin(
    bucket: Bucket, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[str], RunDir]]:
    """The run, opened and begun in a machine's folder of this name."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    opened: list[RunDir] = []

    def make(name: str) -> RunDir:
        run_dir = RunDir.open(tmp_path / name, f"{bucket.url}/run")
        opened.append(run_dir)
        if run_dir.record is None:
            run_dir.save(run_record())
        run_dir.start(part_rows=100, part_bytes=1 << 26, replaces=True)
        return run_dir

    yield make
    for one in opened:
        with suppress(StoreError):
            one.close()


def end(run_dir: RunDir) -> None:
    """As a command that stops ends."""
    run_dir.finish()
    assert run_dir.record is not None
    totals, parts = read_totals(run_dir.path), count_rows(run_dir.path)
    run_dir.save(replace(run_dir.record, state="stopped", totals=totals, parts=parts))
    run_dir.close()


def rows_of(folder: Path) -> dict[int, tuple[str | None, list[int], float, list[str]]]:
    """By row: the answer, when its attempts began, their cost, and the names of its calls."""
    with snapshot(folder) as now:
        calls = [row for part in now.tool_calls for row in _read(part)]
        rows = [row for part in now.responses for row in _read(part)]
    assert len({row["row"] for row in rows}) == len(rows)
    for row in rows:
        assert row["started_at"] == row["attempts"][0]["started_at"]
        assert row["finished_at"].timestamp() == row["attempts"][-1]["started_at"].timestamp() + 0.5
    return {
        row["row"]: (
            row["output_text"],
            [round(one["started_at"].timestamp()) for one in row["attempts"]],
            row["cost_usd"],
            [call["name"] for call in calls if call["row"] == row["row"]],
        )
        for row in rows
    }


def _read(part: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(part_file(part)).to_pylist())


def test_the_outcome_in_the_store_stays_and_an_answer_never_gives_way_to_a_failure(
    begin: Callable[[str], RunDir], bucket: Bucket
) -> None:
    here = begin("here")
    for row, text in ((6, "old"), (7, None), (8, None)):
        here.store(outcome(row, text, _BEFORE_S))
    end(here)
    here = begin("here")
    first = [
        outcome(0, None, _HERE_S),
        outcome(1, "here", _HERE_S),
        outcome(2, "here", _HERE_S),
        outcome(3, "here", _HERE_S),
        outcome(4, "here", _HERE_S),
        outcome(5, "here", _HERE_S),
        outcome(6, "here", _BEFORE_S, _HERE_S, prompt=1, replaces=True),
        outcome(7, None, _BEFORE_S, _HERE_S, replaces=True),
        outcome(8, "here", _BEFORE_S, _HERE_S, replaces=True),
        outcome(9, None, _HERE_S),
    ]
    assert here.store_some(first) == len(first)
    here.close()  # as if it was killed: the rows are in the journal
    there = begin("there")
    second = [
        outcome(0, "there", _THERE_S),
        outcome(1, None, _THERE_S),
        outcome(2, "there", _THERE_S),
        outcome(3, None, _THERE_S, prompt=1),  # the prompt has changed meanwhile
        outcome(5, "here", _HERE_S),  # it came into the store before
        outcome(7, "there", _BEFORE_S, _THERE_S, replaces=True),
        outcome(9, None, _THERE_S),
    ]
    assert there.store_some(second) == len(second)
    end(there)
    back = begin("here")
    back.close()
    expected = {
        0: ("there", [_HERE_S, _THERE_S], 2.0, ["there"]),
        1: ("here", [_HERE_S, _THERE_S], 2.0, ["here"]),
        2: ("there", [_HERE_S, _THERE_S], 2.0, ["there"]),
        3: (None, [_HERE_S, _THERE_S], 2.0, []),
        4: ("here", [_HERE_S], 1.0, ["here"]),
        5: ("here", [_HERE_S], 1.0, ["here"]),
        6: ("here", [_BEFORE_S, _HERE_S], 2.0, ["here"]),
        7: ("there", [_BEFORE_S, _HERE_S, _THERE_S], 3.0, ["there"]),
        8: ("here", [_BEFORE_S, _HERE_S], 2.0, ["here"]),
        9: (None, [_HERE_S, _THERE_S], 2.0, []),
    }
    assert rows_of(back.path) == expected
    assert verify_run(back.path).problems == []
    record = json.loads(bucket.get("run/run.json") or b"")
    assert (record["state"], record["totals"]["cost_usd"]) == ("stopped", 19.0)
    assert rows_of(begin("there").path) == expected


@pytest.fixture
def serve(
    fork_server: ForkServer, environment: dict[str, str], tmp_path: Path
) -> Iterator[Callable[..., str]]:
    """Starts a simulator; its base URL."""
    started = []

    def start(*words: object) -> str:
        words = ("simulate", "--port", 0, "--latency", 0, *words)
        started.append(fork_server.start(tmp_path, environment, *words))
        assert started[-1].stdout is not None
        return started[-1].stdout.readline().strip()

    yield start
    for one in started:
        one.kill()
        one.communicate(HANG_S)
        with closing(one):
            for stream in filter(None, (one.stdout, one.stderr)):
                stream.close()


def test_a_machine_that_comes_back_replaces_no_answer_that_another_one_has_paid_for(
    bucket: Bucket,
    s3: dict[str, str],
    killed_at: Callable[..., bool],
    batchrun: Callable[..., CompletedProcess[str]],
    verify: Callable[..., None],
    serve: Callable[..., str],
    questions: Callable[[int], str],
    tmp_path: Path,
) -> None:
    (tmp_path / "prompts.jsonl").write_text(questions(20))
    words = ["run", "prompts.jsonl", "--prompt", "{{ question }}", "--model", "m", "--quiet"]
    words += ["-o", f"{bucket.url}/run", "--max-attempts", "1", "--base-url"]
    faulty, good = serve("--fault", "500_json=0.5"), serve()
    assert killed_at(1, "before", *words, faulty, counts="/responses/")
    for claim in bucket.names("run/claims/"):
        bucket.delete(claim)  # as if a minute had passed
    other = {**s3, "XDG_STATE_HOME": str(tmp_path / "other")}
    done = batchrun(*words, good, env=other)
    assert done.returncode == 0, done.stderr

    def answers() -> dict[str, tuple[bool, str, int]]:
        sql = "SELECT custom_id, ok, response_id, len(attempts) AS sent FROM responses"
        asked = batchrun("sql", f"{bucket.url}/run", sql, "--format", "json", env=other)
        rows = json.loads(asked.stdout)
        return {row["custom_id"]: (row["ok"], row["response_id"], row["sent"]) for row in rows}

    before = answers()
    assert len(before) == 20
    looked = batchrun(*words, good, "--dry-run", env=s3)
    assert looked.returncode == 0, looked.stderr
    assert answers() == {name: (ok, known, sent + 1) for name, (ok, known, sent) in before.items()}
    verify(f"{bucket.url}/run", env=other)
