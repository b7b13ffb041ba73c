"""How long an answer may be silent, and which setting says so."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from batchrun.errors import ErrorKind
from batchrun.records import Failure, Outcome

pytestmark = pytest.mark.usefixtures("transport")
Make = Callable[..., dict[str, Any]]
Complete = Callable[..., Any]

_LONG_S = 0.6  # a silence; ...
_SHORT_S = 0.2  # ... and the longest that is allowed within text
_DELTA = {"type": "response.output_text.delta", "output_index": 0, "delta": "forty"}


def _framed(*events: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def _stream(*pieces: bytes | float) -> dict[str, Any]:
    return {"type": "text/event-stream", "pieces": pieces}


def _last(answer: Make) -> bytes:
    return _framed({"type": "response.completed", "response": answer()})


@pytest.mark.parametrize("mode", ["plain", "stream", "background"])
@pytest.mark.parametrize("before", [(), (b" ",), (b"\n", 0.1, b"\n")], ids=["none", "blank", "two"])
async def test_silence_before_a_body_is_no_stall(
    complete: Complete, answer: Make, mode: str, before: tuple[bytes | float, ...]
) -> None:
    step = {"pieces": (*before, _LONG_S, json.dumps(answer()).encode())}
    outcome = await complete([step], mode=mode, idle_timeout_s=_SHORT_S)
    assert outcome.ok, outcome
    assert len(outcome.attempts) == 1


@pytest.mark.parametrize("mode", ["plain", "stream"])
async def test_silence_within_a_body_is_a_stall(complete: Complete, mode: str) -> None:
    step = {"pieces": (b'{"id":', 600)}
    outcome = await complete([step], mode=mode, idle_timeout_s=_SHORT_S, timeout_s=60.0)
    _is_stalled(outcome, "--idle-timeout", "endpoint.idle_timeout_s")


async def test_a_body_that_never_comes_ends_at_the_time_for_one_attempt(complete: Complete) -> None:
    step = {"pieces": (b" ", 600)}
    outcome = await complete([step], idle_timeout_s=_SHORT_S, timeout_s=0.5)
    _is_stalled(outcome, "--timeout", "endpoint.timeout_s")


def _is_stalled(outcome: Outcome, option: str, setting: str) -> None:
    failure = outcome.failure
    assert failure is not None
    assert failure.kind is ErrorKind.TIMEOUT
    assert f"{option} ({setting})" in failure.message
    said = failure.message.partition(" (no third attempt")[0]
    assert said.count("--") == 1, "no other time-out is advised"
    assert len(outcome.attempts) == 2


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.reasoning_text.delta", "output_index": 1, "delta": "so"},
        {"type": "response.reasoning_summary_part.added", "output_index": 1},
        {"type": "response.output_item.added", "output_index": 1, "item": {"type": "reasoning"}},
        {"type": "response.output_item.done", "output_index": 1, "item": {"type": "mcp_call"}},
        {"type": "response.web_search_call.searching", "output_index": 1},
        {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{"},
        {"type": "response.code_interpreter_call.interpreting", "output_index": 1},
    ],
    ids=lambda event: str(event["type"]),
)
@pytest.mark.parametrize("has_text", [False, True], ids=["first", "after text"])
async def test_silence_after_reasoning_or_a_tools_work_is_no_stall(
    complete: Complete, answer: Make, event: dict[str, Any], has_text: bool
) -> None:
    said = _framed(*([_DELTA] if has_text else []), event)
    step = _stream(said, _LONG_S, _last(answer))
    outcome = await complete([step], mode="stream", idle_timeout_s=_SHORT_S)
    assert outcome.ok, outcome
    assert len(outcome.attempts) == 1


@pytest.mark.parametrize(
    "event",
    [
        _DELTA,
        {"type": "response.refusal.delta", "output_index": 0, "delta": "I"},
        {"type": "response.output_text.done", "output_index": 0, "text": "forty"},
        {"type": "response.in_progress", "response": {"id": "resp_1"}},
        {"type": "keepalive"},
    ],
    ids=lambda event: str(event["type"]),
)
async def test_silence_after_text_is_a_stall(complete: Complete, event: dict[str, Any]) -> None:
    reasoning = {"type": "response.reasoning_text.delta", "output_index": 0, "delta": "so"}
    step = _stream(_framed(reasoning, _DELTA, event), 600)
    outcome = await complete([step], mode="stream", idle_timeout_s=_SHORT_S, timeout_s=60.0)
    _is_stalled(outcome, "--idle-timeout", "endpoint.idle_timeout_s")


async def test_a_gateways_time_out_is_told_what_helps_against_it(complete: Complete) -> None:
    outcome = await complete([{"status": 504, "body": b""}])
    assert isinstance(outcome.result, Failure)
    assert "--mode stream or background" in outcome.result.message
    assert "--timeout" not in outcome.result.message
