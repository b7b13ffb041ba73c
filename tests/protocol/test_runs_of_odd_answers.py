"""Whole runs whose answers are empty, do not fit or have no price: counted, sent again, proved."""

import asyncio
import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

import batchrun
from batchrun.progress.status import read_status
from batchrun.progress.summary_text import render_end, render_status
from batchrun.reports.report_queries import read_report
from batchrun.reports.report_sections import show_report
from batchrun.reports.show import render_row
from batchrun.store.reading import find_row
from batchrun.store.verify import verify
from tests.raw_sockets import listening, read_body
from tests.waiting import HANG_S

SCHEMA = {"type": "object", "required": ["a"]}
FORMAT = {"type": "json_schema", "name": "n", "schema": SCHEMA}
Reply = Callable[[str], tuple[int, Any]]  # of an input: status and body


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")


@asynccontextmanager
async def _answering(reply: Reply) -> AsyncIterator[tuple[str, list[str]]]:
    """A server's base URL, and the inputs that it was asked, in order."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = json.loads(await read_body(reader))
        asked.append(body["input"])
        status, said = reply(body["input"])
        if "model" in said:
            said["model"] = body["model"]
        data = json.dumps(said).encode()
        length = f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{length}".encode())
        writer.write(data)
        await writer.drain()

    async with listening(answer) as port:
        yield f"http://127.0.0.1:{port}/v1", asked


def _answer(*items: Any, **fields: Any) -> tuple[int, Any]:
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    return 200, {
        "id": "r",
        "object": "response",
        "status": "completed",
        "model": "gpt-4.1",
        "output": list(items),
        "usage": usage,
        **fields,
    }


def _said(text: str, kind: str = "output_text", **fields: Any) -> dict[str, Any]:
    part = {"type": kind, ("refusal" if kind == "refusal" else "text"): text}
    return {"type": "message", "content": [part], **fields}


def _by_word(text: str) -> tuple[int, Any]:
    """An answer of the kind that the input names first."""
    match text.partition(" ")[0]:
        case "empty":
            return _answer({"type": "reasoning", "summary": []})
        case "unfit":
            return _answer(_said("no JSON"))
        case "refuse":
            return _answer(_said("I will not.", "refusal"))
        case "cut":
            reason = {"reason": "max_output_tokens"}
            return _answer(_said('{"a"'), status="incomplete", incomplete_details=reason)
        case "filter":
            reason = {"reason": "content_filter"}
            return _answer(_said('{"a"'), status="incomplete", incomplete_details=reason)
        case "wrong":
            return 400, {"error": {"message": "no such thing", "code": "bad"}}
    return _answer(_said('{"a": 1}'))


async def _run(folder: Path, base_url: str, inputs: list[str], **options: Any) -> Any:
    source = folder / "prompts.jsonl"
    source.write_text("".join(json.dumps({"question": text}) + "\n" for text in inputs))
    settings = {
        "request.model": options.pop("model", "gpt-4.1"),
        "request.input": "{{ question }}",
        "request.text": {"format": FORMAT},
        "endpoint.base_url": base_url,
        "output.path": str(folder / "run"),
        "limits.concurrency": 1,
        **options.pop("settings", {}),
    }
    kinds = options.pop("again", None)
    resend = batchrun.Resend(failed=kinds is not None, kinds=frozenset(kinds or ()))
    job = batchrun.load_job(source, settings)
    async with asyncio.timeout(HANG_S):
        return await batchrun.run_async(job, resend=resend, **options)


def _rows(run: Path) -> list[tuple[Any, ...]]:
    sql = "SELECT ok, status, error_kind, len(attempts) FROM read_parquet(?) ORDER BY row"
    return duckdb.execute(sql, [f"{run}/responses/*.parquet"]).fetchall()


INPUTS = ["fine 1", "empty 2", "empty 3", "unfit 4", "refuse 5", "cut 6", "filter 7", "wrong 8"]


async def test_each_kind_is_counted_apart_and_sent_again_by_its_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    async with _answering(_by_word) as (base_url, asked):
        summary = await _run(tmp_path, base_url, INPUTS)
        assert (summary.exit_code, summary.ok, summary.not_ok) == (4, 1, 7)
        assert _rows(run) == [
            (True, "completed", None, 1),
            *[(False, "completed", "empty_output", 1)] * 2,
            (False, "completed", "invalid_output", 1),
            (False, "completed", "refusal", 1),
            (False, "incomplete", "truncated", 1),
            (False, "incomplete", None, 1),
            (False, "failed", "bad_request", 1),
        ]
        counts = "1 truncated, 1 refused, 2 empty_output, 1 invalid_output, 1 incomplete, 1 failed"
        end = render_end(summary, run)
        assert f"done: 8 of 8 rows, 1 ok, {counts}\n" in end
        assert "\n  empty_output 2: the answer has no text" in end
        assert "\n  invalid_output 1: the text does not fit" in end
        assert "\n  bad_request 1: no such thing" in end
        assert "  refusal 1" not in end
        assert f"not ok:     7 ({counts}; bad_request 1)" in render_status(read_status(run), run)
        report = read_report(run)
        outcomes = {row["outcome"]: row["rows"] for row in report.tables["outcomes"]}
        assert outcomes == {
            **dict.fromkeys(("ok", "invalid_output", "refused", "truncated", "incomplete"), 1),
            "failed": 1,
            "empty_output": 2,
        }
        assert [row["kind"] for row in report.tables["errors"]] == ["bad_request"]
        page = io.StringIO()
        show_report(report, page)
        assert "empty_output" in page.getvalue()
        assert "invalid_output" in page.getvalue()
        (row,) = find_row(run, "1")
        shown = render_row(row)
        assert "outcome:  completed, empty\n  error:    empty_output\n" in shown
        assert verify(run).problems == []

        for kinds, sent in (
            (["empty_output"], ["empty 2", "empty 3"]),
            (["invalid_output"], ["unfit 4"]),
            (["refusal"], ["refuse 5"]),
            (["truncated"], ["cut 6"]),
            (["incomplete"], ["cut 6", "filter 7"]),
            ([], ["wrong 8"]),  # `--retry-failed` alone never pays for an answer again
        ):
            asked.clear()
            await _run(tmp_path, base_url, INPUTS, again=kinds)
            assert asked == sent, kinds
            assert verify(run).problems == []


async def test_a_run_whose_first_rows_are_all_empty_stops(tmp_path: Path) -> None:
    inputs = [f"{number}" for number in range(60)]
    word = "empty"
    async with _answering(lambda text: _by_word(f"{word} {text}")) as (base_url, asked):
        summary = await _run(tmp_path, base_url, inputs)
        assert (summary.state, summary.exit_code, len(asked)) == ("stopped", 3, 20)
        assert "--retry-failed=empty_output" in summary.message
        assert verify(tmp_path / "run").problems == []
        assert (await _run(tmp_path, base_url, inputs)).exit_code == 3  # twenty more
        assert asked == inputs[:40]
        word = "fine"  # the cause is fixed: what the message names sends them again
        summary = await _run(tmp_path, base_url, inputs, again=["empty_output"])
        assert (summary.exit_code, summary.ok, len(asked)) == (0, 60, 100)


@pytest.mark.parametrize("word", ["unfit", "refuse", "cut"])
async def test_a_run_whose_first_rows_have_answers_goes_on(tmp_path: Path, word: str) -> None:
    async with _answering(_by_word) as (base_url, asked):
        inputs = [f"{word} {number}" for number in range(50)]
        settings = {"limits.max_failures": 5}
        summary = await _run(tmp_path, base_url, inputs, settings=settings)
        assert (summary.state, summary.exit_code, summary.not_ok) == ("finished", 4, 50)
        assert len(asked) == 50


async def test_empty_answers_count_as_failures_of_the_run(tmp_path: Path) -> None:
    async with _answering(_by_word) as (base_url, asked):
        inputs = ["fine 0", *(f"empty {number}" for number in range(50))]
        settings = {"limits.max_failures": 5}
        summary = await _run(tmp_path, base_url, inputs, settings=settings)
        assert (summary.state, summary.exit_code, len(asked)) == ("stopped", 3, 6)
        assert "limits.max_failures = 5" in summary.message


STRAY = {
    "hermes": '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
    "deepseek": "<｜tool▁calls▁begin｜>f",  # noqa: RUF001 - as the model writes it
    "kimi": "<|tool_calls_section_begin|>f",
    "mistral": '[TOOL_CALLS][{"name": "f"}]',
    "llama": "<|python_tag|>f()",
    "qwen": "<function=f><parameter=a>1</parameter></function>",
    "minimax": '<minimax:tool_call><invoke name="f">',
    "harmony": "<|channel|>commentary to=functions.f <|constrain|>json",
}


async def test_calls_inside_text_stay_text_and_the_report_says_how_many(tmp_path: Path) -> None:
    chat = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]

    def reply(text: str) -> tuple[int, Any]:
        if text in STRAY:
            return _answer(_said(STRAY[text]))
        if text == "beside":
            return _answer(_said("Let me look.", tool_calls=chat))
        if text == "as text":
            return _answer(_said(json.dumps({"tool_calls": chat})))
        return _answer(_said('A tool call, "tool_calls": none; if a < b the tool may call.'))

    inputs = [*STRAY, "beside", "as text", "prose"]
    run = tmp_path / "run"
    async with _answering(reply) as (base_url, _):
        plain = {"request.text": {"format": {"type": "text"}}}
        summary = await _run(tmp_path, base_url, inputs, settings=plain)
    assert (summary.ok, summary.tool_calls) == (len(inputs), 0)
    report = read_report(run)
    assert (report.calls_in_text, report.chat_calls) == (len(STRAY), 2)
    page = io.StringIO()
    show_report(report, page)
    said = " ".join(page.getvalue().split())
    assert f"{len(STRAY)} rows with what looks like tool calls inside the text" in said
    assert "2 rows with `tool_calls` as chat completions have them" in said


async def test_a_report_without_such_calls_does_not_speak_of_them(tmp_path: Path) -> None:
    async with _answering(_by_word) as (base_url, _):
        await _run(tmp_path, base_url, ["fine 1"])
    page = io.StringIO()
    show_report(read_report(tmp_path / "run"), page)
    assert "tool calls" not in page.getvalue()


async def test_costs_that_are_not_known_are_marked_in_the_report(tmp_path: Path) -> None:
    run, asked = tmp_path / "run", Counter[str]()

    def reply(text: str) -> tuple[int, Any]:
        asked[text] += 1
        if text == "twice" and asked[text] == 1:
            return 200, {"object": "chat.completion", "choices": []}
        return _answer(_said("x"), usage=None) if text == "silent" else _answer(_said("x"))

    plain = {"request.text": {"format": {"type": "text"}}, "retry.max_wait_s": 0.01}
    async with _answering(reply) as (base_url, _):
        await _run(tmp_path, base_url, ["fine", "twice", "silent"], settings=plain)
    page = io.StringIO()
    show_report(read_report(run), page)
    lines = page.getvalue().splitlines()
    assert "+?" in next(line for line in lines if "finished: 3 rows" in line)
    cells = {line.split()[0]: line.split()[-1] for line in lines if line.split()}
    assert cells["ok"].endswith("+?")
    assert cells["gpt-4.1"].endswith("+?")
    assert cells["retry"].startswith("$")
    assert not cells["retry"].endswith("?")


async def test_a_cost_of_which_nothing_is_known_is_unknown_in_the_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    async with _answering(_by_word) as (base_url, _):
        await _run(tmp_path, base_url, ["fine 1", "fine 2"], model="no-such-price")
    page = io.StringIO()
    show_report(read_report(run), page)
    lines = page.getvalue().splitlines()
    assert next(line for line in lines if "finished: 2 rows" in line).endswith("; cost unknown")
    assert next(line for line in lines if line.startswith("ok ")).endswith("unknown")


@pytest.mark.parametrize("first", [(400, "bad"), (500, "server_error"), (200, None)])
async def test_verify_believes_a_run_of_unpriced_models_whose_rows_were_sent_again(
    tmp_path: Path, first: tuple[int, str | None]
) -> None:
    """Refused at no cost, failed at an unknown one, or no answer at all; then answered."""
    run, asked = tmp_path / "run", Counter[str]()
    status, code = first

    def reply(text: str) -> tuple[int, Any]:
        asked[text] += 1
        if text == "fine 0" or asked[text] > 2:
            return _answer(_said('{"a": 1}'))
        return status, {"error": {"message": f"no {text}", "code": code}} if code else {}

    settings = {"retry.max_attempts": 1, "retry.max_wait_s": 0.01}
    async with _answering(reply) as (base_url, _):
        options: dict[str, Any] = {"model": "no-such-price", "settings": settings}
        inputs = [f"fine {number}" for number in range(4)]
        summary = await _run(tmp_path, base_url, inputs, **options)
        assert verify(run).problems == []
        for limit in (1, 2, 3, None, None):
            options["limit"] = limit
            summary = await _run(tmp_path, base_url, inputs, again=[], **options)
            proof = verify(run)
            assert proof.problems == []
            assert proof.totals_agree
    assert (summary.ok, summary.cost_usd) == (4, None)
