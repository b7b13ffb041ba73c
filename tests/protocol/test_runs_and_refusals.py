"""Whole runs that meet refusals: what stops them, with which exit code, and what is left."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import batchrun
from tests.waiting import HANG_S

Serve = Callable[..., Any]
Make = Callable[..., dict[str, Any]]
ROWS = 30


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")


def _refusal(status: int, message: str, **fields: Any) -> dict[str, Any]:
    return {"status": status, "body": {"error": {"message": message, **fields}}}


@pytest.fixture
def job_of(tmp_path: Path) -> Callable[..., batchrun.Job]:
    """A job of `ROWS` rows from a job file, against a base URL."""
    rows = "".join(json.dumps({"q": f"row {row}"}) + "\n" for row in range(ROWS))
    (tmp_path / "prompts.jsonl").write_text(rows)

    def make(base_url: str, more: str = "") -> batchrun.Job:
        (tmp_path / "job.toml").write_text(
            f"[input]\npath = 'prompts.jsonl'\n[output]\npath = 'run'\n"
            f"[request]\nmodel = 'm'\ninput = '{{{{ q }}}}'\n"
            f"[endpoint]\nbase_url = '{base_url}'\n[limits]\nconcurrency = 8\n{more}"
        )
        return batchrun.load_job(tmp_path / "job.toml")

    return make


async def _run(job: batchrun.Job) -> batchrun.Summary:
    async with asyncio.timeout(HANG_S):
        return await batchrun.run_async(job)


MONEY = {
    "by its words": (_refusal(400, "Your credit balance is too low to access the API."), ""),
    "in a gateway's words": (
        _refusal(418, "Cost centre 7 is closed"),
        "[retry.words]\nquota = ['cost centre']\n",
    ),
}


@pytest.mark.parametrize("name", MONEY)
async def test_a_run_without_money_stops_with_all_its_answers_and_goes_on_later(
    serve: Serve, answer: Make, job_of: Callable[..., batchrun.Job], name: str
) -> None:
    gone, words = MONEY[name]
    async with serve([{"body": answer()}] * 10 + [gone]) as server:
        stopped = await _run(job_of(server.base_url, words))
        # Those that were in flight, and no more.
        assert 11 <= len(server.requests) <= 10 + 8
    assert (stopped.exit_code, stopped.state) == (3, "stopped")
    assert (stopped.ok, stopped.settled, stopped.left) == (10, 10, ROWS - 10)
    assert gone["body"]["error"]["message"] in (stopped.message or "")
    async with serve([{"body": answer()}]) as server:
        done = await _run(job_of(server.base_url, words))
        assert len(server.requests) == ROWS - 10
    assert (done.exit_code, done.ok, done.left) == (0, ROWS, 0)


async def test_the_first_rows_refusal_costs_that_row_and_no_other(
    serve: Serve, answer: Make, job_of: Callable[..., batchrun.Job]
) -> None:
    moderated = _refusal(403, "m requires moderation. Your input was flagged", code=403)
    unknown = _refusal(404, "Conversation with id 'conv_12' not found.")
    async with serve([moderated, unknown, {"body": answer()}]) as server:
        summary = await _run(job_of(server.base_url))
        assert len(server.requests) == ROWS
    assert (summary.exit_code, summary.ok, summary.not_ok) == (4, ROWS - 2, 2)
    assert summary.error_kinds == {"content_policy": 1, "bad_request": 1}


async def test_a_model_that_litellm_does_not_know_costs_one_request(
    serve: Serve, job_of: Callable[..., batchrun.Job]
) -> None:
    message = "/responses: Invalid model name passed in model=m. Call `/v1/models` to view models"
    async with serve([_refusal(400, message, code="400", type="None")]) as server:
        stopped = await _run(job_of(server.base_url))
        assert len(server.requests) == 1
    assert (stopped.exit_code, stopped.settled) == (3, 0)
    assert message in (stopped.message or "")
