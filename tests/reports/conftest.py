"""A run of some hundred rows of all outcomes, hostile names among them, in parts and journal."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from batchrun.errors import ErrorKind
from batchrun.records import (
    Attempt,
    Failure,
    Layout,
    Outcome,
    Request,
    ToolCall,
    Usage,
)
from batchrun.store.run_dir import RunDir
from tests.runs import column, response, run_record
from tests.store.conftest import answered, begin, failed

__all__ = ["answered", "begin", "failed"]  # fixtures

HOSTILE = "<script>alert(1)</script></style>\x1b[2J\u202e javascript:alert(2) & \"'"
_START = 1_790_000_000_000_000


_LAYOUT = Layout(
    None,
    (
        column("=formula", pa.string()),
        msgspec.structs.replace(column("tags", pa.string()), type="json"),
        column("level", pa.int64()),
    ),
)


def make_outcome(row: int, **changes: Any) -> Outcome:
    """What a row came to, by its number."""
    draw = random.Random(row)
    text = HOSTILE if row == 11 else f"An answer to {row}."
    body = {"model": "gpt-4.1", "instructions": "Be brief.", "input": f"Question {row}?"}
    request = Request(
        row=row,
        custom_id=HOSTILE if row == 11 else f"q{row}",
        source="prompts.jsonl",
        body=msgspec.json.encode(body),
        hash=f"{row:016x}",
        model="gpt-4.1",
        max_output_tokens=None,
        carried=(f"=1+{row}", '["a",\n"b"]', -row),
    )
    begun = _START + row * 50_000
    first = Attempt(begun, 0.1 + draw.random(), "first", 200, request_id=f"req_{row}", cost_usd=0.5)
    attempts: tuple[Attempt, ...] = (first,)
    if row % 5 == 2:
        lost = Attempt(begun, 0.2, "first", 429, ErrorKind.RATE_LIMIT, f"Wait, {HOSTILE}")
        attempts = (lost, msgspec.structs.replace(first, kind="retry", started_at=begun + 10**6))
    if row % 11 == 5:
        lost = Attempt(begun, 0.3, "first", 400, ErrorKind.BAD_REQUEST, "no")
        failure = Failure(ErrorKind.BAD_REQUEST, "no such thing", "bad", 400)
        return Outcome(request, failure, (lost,), "https://x.test/v1", "plain")
    if row % 17 == 6:
        lost = Attempt(begun, 0.3, "first", None, ErrorKind.CONNECTION, "refused")
        failure = Failure(ErrorKind.CONNECTION, "refused", status="no_answer")
        return Outcome(request, failure, (lost,) * 3, "https://x.test/v1", "plain")
    calls = tuple(
        ToolCall(
            position=at + 1,
            type="function_call",
            call_id=f"call_{row}_{at}",
            name=HOSTILE if row == 11 else "look_up",
            arguments='{"a": 1}',
            arguments_valid=(row + at) % 4 > 0,
            status="completed",
            item='{"type": "function_call"}',
        )
        for at in range(row % 3)
    )
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
    part = {"type": "output_text", "text": text, "annotations": []}
    refusal = "I cannot." if row % 13 == 4 else None
    if refusal:
        part = {"type": "refusal", "refusal": refusal}
    answer = response(
        id=f"resp_{row}",
        model="gpt-4.1-2025",
        service_tier="default",
        output=msgspec.json.format(msgspec.json.encode([{**message, "content": [part]}])).decode(),
        output_text=None if refusal else text,
        refusal=refusal,
        tool_calls=calls,
        usage=Usage(100 + row, 40, None, 20 + row, 7, 120 + 2 * row),
        usage_json=f'{{"input_tokens": {100 + row}, "tool_usage": {{"web_search": 1}}}}',
        truncated=row % 19 == 7,
    )
    cost = sum(attempt.cost_usd or 0.0 for attempt in attempts) + row / 1000
    outcome = Outcome(
        request, answer, attempts, "https://x.test/v1", "plain", 0.05 + row / 1e4, cost, "gpt-4.1"
    )
    return msgspec.structs.replace(outcome, **changes)


def write_run(path: Path, in_parts: Iterable[Outcome], in_journal: Iterable[Outcome] = ()) -> Path:
    run_dir = RunDir.open(path)
    run_dir.save(run_record(_LAYOUT, rows=250))
    for at, outcomes in enumerate((in_parts, in_journal)):
        run_dir.start(part_rows=90, part_bytes=64 << 20)
        run_dir.log_event("started", rows=250, to_send=250)
        for outcome in outcomes:
            run_dir.store(outcome)
        if at == 0:
            run_dir.finish()
    run_dir.close()
    return path


@pytest.fixture(scope="session")
def outcome() -> Callable[..., Outcome]:
    return make_outcome


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    return write_run


@pytest.fixture(scope="session")
def hostile() -> str:
    return HOSTILE


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 of 250 rows, 200 of them in parts; its last command was killed."""
    made = [make_outcome(row) for row in range(240)]
    random.Random(3).shuffle(made)
    return write_run(tmp_path_factory.mktemp("made") / "run", made[:200], made[200:])


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows, all in parts, so that other tools can be asked for the figures."""
    made = [make_outcome(row) for row in range(240)]
    return write_run(tmp_path_factory.mktemp("made") / "run", made)
