"""50 rows in each mode against vLLM, which has real background mode and forgets it when it ends."""

import json
import signal
import subprocess
from collections.abc import Callable
from typing import Any, Protocol

import pytest

pytestmark = [pytest.mark.servers, pytest.mark.timeout(1200)]

Run = Callable[..., subprocess.CompletedProcess[str]]
Begin = Callable[..., subprocess.Popen[str]]
Table = Callable[..., list[dict[str, Any]]]

# The weights are random: only a grammar makes an answer that ends, and that can be judged.
_SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {"enum": ["yes", "no"]},
        "digits": {
            "type": "array",
            "items": {"enum": [0, 1, 2]},
            "minItems": 20,
            "maxItems": 20,
        },
    },
    "required": ["answer", "digits"],
    "additionalProperties": False,
}
_FORMAT = {"type": "json_schema", "name": "answer", "strict": True, "schema": _SCHEMA}
_OPTIONS = (
    "--set",
    f"text.format={json.dumps(_FORMAT)}",
    "--set",
    "max_output_tokens=1500",
)


class Server(Protocol):
    """The fixture `vllm`."""

    base_url: str

    def start(self) -> None: ...

    def kill(self) -> None: ...


def _check(rows: list[dict[str, Any]], mode: str) -> None:
    assert [row["row"] for row in rows] == list(range(50))
    for row in rows:
        assert (row["ok"], row["status"], row["via"]) == (True, "completed", mode)
        assert len(json.loads(row["output_text"])["digits"]) == 20
        assert row["output_parsed_ok"]
        assert row["input_tokens"] > 0
        assert row["output_tokens"] > 0
        assert (row["first_token_s"] is not None) == (mode == "stream")


def test_each_row_is_answered_in_one_attempt(
    mode: str, vllm: Server, batchrun: Run, table: Table
) -> None:
    done = batchrun(vllm.base_url, mode, *_OPTIONS, model="tiny")
    assert done.returncode == 0, done.stderr
    rows = table(mode)
    _check(rows, mode)
    assert [len(row["attempts"]) for row in rows] == [1] * 50


def test_a_killed_run_goes_on(
    mode: str,
    vllm: Server,
    begin: Begin,
    batchrun: Run,
    table: Table,
    wait_for: Callable[[str, str, int], None],
) -> None:
    killed = begin(vllm.base_url, mode, *_OPTIONS, "--concurrency", "4", model="tiny")
    wait_for(mode, "ok", 3)
    killed.kill()
    assert killed.wait(20) == -signal.SIGKILL  # in the middle, not after its end
    done = batchrun(vllm.base_url, mode, *_OPTIONS, model="tiny")
    assert done.returncode == 0, done.stderr
    _check(table(mode), mode)


def test_a_server_that_ends_and_starts_again_costs_no_row(
    mode: str,
    vllm: Server,
    begin: Begin,
    ended: Callable[[subprocess.Popen[str]], subprocess.CompletedProcess[str]],
    table: Table,
    wait_for: Callable[[str, str, int], None],
) -> None:
    run = begin(vllm.base_url, mode, *_OPTIONS, "--concurrency", "8", model="tiny")
    wait_for(mode, "ok", 3)
    vllm.kill()
    vllm.start()
    done = ended(run)
    assert done.returncode == 0, done.stderr
    rows = table(mode)
    _check(rows, mode)
    assert any(len(row["attempts"]) > 1 for row in rows)  # what was in flight was sent again
