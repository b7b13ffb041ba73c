"""What a command says before it has a plan: soon, again, and from the first to the last step."""

import io
import os
import pty
import time
from pathlib import Path

import pytest

from batchrun.inputs.prompt_set import PromptSet, find_source
from batchrun.job.sections import InputJob
from batchrun.progress import planning
from batchrun.progress.planning import Planning
from tests.waiting import wait_until


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_FIRST_S", 0.01)
    monkeypatch.setattr(planning, "_START_S", 0.0)
    monkeypatch.setattr(planning, "_PLAIN_EVERY_S", 0.01)
    monkeypatch.setattr(planning, "_LOOK_EVERY_S", 0.01)


@pytest.mark.usefixtures("_soon")
def test_without_a_terminal_it_says_in_plain_lines_what_is_done() -> None:
    stream = io.StringIO()
    with Planning(stream) as said:
        wait_until(lambda: "planning: starting (0 s)\n" in stream.getvalue())
        said.doing("reading a\x1b[31m.jsonl, 1,000 rows so far")
        wait_until(lambda: "1,000 rows so far" in stream.getvalue())
    lines = stream.getvalue().splitlines()
    assert lines[-1].startswith(r"planning: reading a\x1b[31m.jsonl, 1,000 rows so far (")
    time.sleep(0.05)
    assert stream.getvalue().splitlines() == lines  # nothing after its end


@pytest.mark.usefixtures("_soon")
def test_on_a_terminal_it_is_one_line_that_is_gone_at_the_end() -> None:
    screen, terminal = pty.openpty()
    try:
        with open(terminal, "w") as stream, Planning(stream) as said:  # noqa: PTH123 - a number
            said.doing("reading " + "x" * 500)
            time.sleep(0.1)
            said.close()
            written = os.read(screen, 1 << 16).decode()
    finally:
        os.close(screen)
    assert "\n" not in written
    assert written.endswith("\r\x1b[K")
    assert max(map(len, written.split("\r\x1b[K"))) < 80


def test_what_ends_soon_says_nothing() -> None:
    stream = io.StringIO()
    with Planning(stream):
        pass
    with Planning(stream, is_quiet=True):
        pass
    assert stream.getvalue() == ""


@pytest.mark.usefixtures("_soon")
def test_a_stream_that_cannot_be_written_ends_nothing() -> None:
    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    with Planning(Closed()) as said:
        time.sleep(0.05)
        said.doing("reading")


def test_few_large_rows_are_told_of_as_many_small_ones_are(tmp_path: Path) -> None:
    line = '{"prompt": "%s"}\n' % ("x" * 4_000_000)
    (tmp_path / "large.jsonl").write_text(line * 12)
    made = InputJob(path=str(tmp_path / "large.jsonl"))
    seen: list[int] = []
    PromptSet(find_source(made), made, {"model": "m"}).survey(None, seen.append)
    assert seen == [5, 10]
