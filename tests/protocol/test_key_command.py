"""Keys that expire while a run goes on: a command says them (DESIGN 3.1, `--api-key-command`)."""

import asyncio
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from batchrun.errors import ErrorKind, RunStopped, StopCause
from batchrun.records import Request
from tests.waiting import HANG_S

pytestmark = pytest.mark.usefixtures("transport")

Connect = Callable[..., Any]
Make = Callable[..., dict[str, Any]]

OLD, NEW = "old-key-1234567890", "new-key-1234567890"
REFUSED = {"status": 401, "body": {"error": {"message": "the token has expired"}}}
_SAYS = """
import pathlib, sys
asked = pathlib.Path(sys.argv[1])
number = len(asked.read_text()) if asked.exists() else 0
asked.write_text("x" * (number + 1))
keys = sys.argv[2:]
key = keys[min(number, len(keys) - 1)]
if key == "fail":
    sys.exit(3)
print(key + "\\nsecond line")
"""


class Command(NamedTuple):
    """A command that says one key after the other, the last one for ever."""

    line: str
    asked: Path

    @property
    def times(self) -> int:
        return len(self.asked.read_text()) if self.asked.exists() else 0


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Command]:
    def make(*keys: str) -> Command:
        script, asked = tmp_path / "key of.py", tmp_path / "asked"
        script.write_text(_SAYS, encoding="utf-8")
        return Command(shlex.join([sys.executable, str(script), str(asked), *keys]), asked)

    return make


def _keys(connected: Any) -> list[str]:
    """What each request was sent with."""
    bearers = [seen.headers["authorization"] for seen in connected.server.requests]
    return [bearer.removeprefix("Bearer ") for bearer in bearers]


@pytest.mark.parametrize("mode", ["plain", "stream", "background"])
@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_asked_for_again_and_costs_the_row_no_attempt(
    endpoint: Connect,
    request_of: Callable[..., Request],
    answer: Make,
    command: Callable[..., Command],
    mode: str,
    status: int,
) -> None:
    says = command(NEW)
    script = [{**REFUSED, "status": status}, {"body": answer(text=f"I saw {NEW}")}]
    async with endpoint(script, mode=mode, key=OLD, api_key_command=says.line) as connected:
        outcome = await connected.outcome(request_of())
    assert _keys(connected) == [OLD, NEW]
    assert (outcome.ok, len(outcome.attempts), says.times) == (True, 1, 1)
    assert outcome.result.output_text == "I saw ***"  # the new key is hidden too


async def test_a_key_refused_at_a_poll_is_asked_for_again(
    endpoint: Connect,
    request_of: Callable[..., Request],
    answer: Make,
    command: Callable[..., Command],
) -> None:
    settings = {"mode": "background", "key": OLD, "api_key_command": command(NEW).line}
    async with endpoint([REFUSED, {"body": answer()}], **settings) as connected:
        outcome = await connected.outcome(request_of(resume_id="resp_9"))
    assert connected.server.asked == ["GET /v1/responses/resp_9"] * 2
    assert (outcome.ok, len(outcome.attempts)) == (True, 1)


async def test_of_many_rows_that_are_refused_at_once_one_asks(
    endpoint: Connect,
    request_of: Callable[..., Request],
    answer: Make,
    command: Callable[..., Command],
) -> None:
    says = command(NEW)
    rows = [replace(request_of(), row=row, custom_id=str(row)) for row in range(8)]
    script = [*[{**REFUSED, "pieces": [0.3, b"{}"]}] * 8, {"body": answer()}]
    async with endpoint(script, key=OLD, api_key_command=says.line) as connected:
        outcomes = await asyncio.gather(*map(connected.outcome_beside_others, rows))
    assert [(outcome.ok, len(outcome.attempts)) for outcome in outcomes] == [(True, 1)] * 8
    assert (says.times, _keys(connected)) == (1, [*[OLD] * 8, *[NEW] * 8])


async def test_a_key_that_is_refused_again_is_not_asked_for_once_more(
    endpoint: Connect, request_of: Callable[..., Request], command: Callable[..., Command]
) -> None:
    for keys, sent in (((OLD,), [OLD]), ((NEW,), [OLD, NEW])):
        says = command(*keys)
        async with endpoint([REFUSED], key=OLD, api_key_command=says.line) as connected:
            with pytest.raises(RunStopped, match="has expired") as stopped:
                await connected.outcome(request_of())
        assert stopped.value.cause is StopCause.KEY
        assert (says.times, _keys(connected)) == (1, sent)
        says.asked.unlink()


async def test_a_command_that_fails_once_the_key_is_refused_stops_the_run(
    endpoint: Connect,
    request_of: Callable[..., Request],
    answer: Make,
    command: Callable[..., Command],
) -> None:
    settings = {"key": OLD, "api_key_command": command("fail").line}
    async with endpoint([{"body": answer()}, REFUSED], **settings) as connected:
        assert (await connected.outcome(request_of())).ok
        with pytest.raises(RunStopped, match=r"is refused, and the command .* \(exit code 3\)"):
            await connected.outcome(request_of())


async def test_a_key_is_asked_for_again_when_it_is_old(
    endpoint: Connect,
    request_of: Callable[..., Request],
    answer: Make,
    command: Callable[..., Command],
) -> None:
    says = command(NEW, "fail")
    settings = {"key": OLD, "api_key_command": says.line, "api_key_ttl_s": 0.2}
    async with endpoint([{"body": answer()}], **settings) as connected:
        for pause_s in (0.0, 0.3, 0.3):
            await asyncio.sleep(pause_s)
            assert (await connected.outcome(request_of())).ok
    # Where the command fails for a key that is only old, the key goes on.
    assert (says.times, _keys(connected)) == (2, [OLD, NEW, NEW])


async def test_an_error_that_is_not_about_the_key_asks_for_none(
    endpoint: Connect, request_of: Callable[..., Request], command: Callable[..., Command]
) -> None:
    says = command(NEW)
    refused = {"status": 400, "body": {"error": {"message": "no such parameter"}}}
    async with endpoint([refused], key=OLD, api_key_command=says.line) as connected:
        outcome = await connected.outcome(request_of())
    assert (outcome.result.kind, says.times) == (ErrorKind.BAD_REQUEST, 0)


async def _run(folder: Path, base_url: str, *options: str) -> tuple[int | None, str]:
    environment = {name: value for name, value in os.environ.items() if "OPENAI" not in name}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "batchrun", "run", "prompts.jsonl", "-o", "run"),
        *("--model", "m", "--base-url", base_url, *options),
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), HANG_S)
    return process.returncode, said.decode()


def _files(folder: Path) -> Sequence[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


async def test_a_run_outlives_its_first_key_and_no_file_holds_any(
    serve: Callable[..., Any], answer: Make, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{OLD}\n", encoding="utf-8")
    (tmp_path / "prompts.jsonl").write_text('{"input": "x"}\n' * 3, encoding="utf-8")
    echo = {"body": answer(text=f"{OLD} {NEW}")}
    first = {"body": answer(text=OLD)}
    async with serve([first, {**REFUSED, "pieces": [0.5, b"{}"]}, echo]) as server:
        options = ("--api-key-command", "cat keys.txt", "--concurrency", "1")
        running = asyncio.create_task(_run(tmp_path, server.base_url, *options))
        async with asyncio.timeout(HANG_S):
            while not server.requests:
                await asyncio.sleep(0.01)
        keys.write_text(f"{NEW}\n", encoding="utf-8")
        code, said = await running
    assert code == 0, said
    bearers = {seen.headers["authorization"] for seen in server.requests}
    assert bearers == {f"Bearer {OLD}", f"Bearer {NEW}"}
    for text in (said.encode(), *_files(tmp_path / "run")):
        assert OLD.encode() not in text
        assert NEW.encode() not in text


async def test_a_command_that_says_no_key_or_writes_it_down_starts_nothing(
    serve: Callable[..., Any], answer: Make, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"input": "x"}\n', encoding="utf-8")
    async with serve([{"body": answer()}]) as server:
        for line, words in (
            ("false", "failed (exit code 1)"),
            ("true", "printed nothing in its first line"),
            ("no-such-program-here", "cannot be run"),
            ("echo 'a", "cannot be run (No closing quotation)"),
            (f"echo {OLD}", "which is a secret and would be written"),
        ):
            code, said = await _run(tmp_path, server.base_url, "--api-key-command", line)
            assert (code, words in said) == (2, True), said
        assert not server.requests
    assert not (tmp_path / "run").exists()
