import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from batchrun.errors import InputError, Interrupted
from batchrun.inputs.prompt_set import PromptSet, find_source
from batchrun.job.sections import InputJob
from batchrun.records import BadRow

Read = Callable[..., Any]
Write = Callable[..., Path]


def prompt_set(path: Path, **job: Any) -> PromptSet:
    made = InputJob(path=str(path), **job)
    return PromptSet(find_source(made), made, {"model": "m"})


def test_the_survey_says_how_far_it_is_and_can_be_interrupted(write: Write) -> None:
    prompts = prompt_set(write(*({"prompt": str(at)} for at in range(2_500))))
    seen: list[int] = []
    prompts.survey(None, seen.append)
    assert seen == [1_000, 2_000]

    def interrupt(rows: int) -> None:
        raise Interrupted(f"at {rows}", 130)

    with pytest.raises(Interrupted, match="at 1000"):
        prompts.survey(None, interrupt)


def test_requests_are_lazy_and_skip_complete_rows(write: Write) -> None:
    prompts = prompt_set(write(*({"prompt": str(at)} for at in range(100))))
    layout = prompts.survey(None).layout
    complete = bytearray(100)
    complete[1:98] = b"\1" * 97
    assert [row.row for row in islice(prompts.requests(layout, complete), 2)] == [0, 98]
    assert [row.row for row in prompts.requests(layout, complete, 99)] == [0, 98]
    assert list(prompts.requests(layout, complete, 0)) == []
    assert list(prompts.requests(layout, bytearray(b"\1") * 100)) == []


def test_rows_count_through_all_files(write: Write, tmp_path: Path) -> None:
    write({"prompt": "a"}, {"prompt": "b"}, name="1.jsonl")
    write(name="2.jsonl")
    write(b"", {"prompt": "c"}, b"{", name="3.jsonl")
    prompts = prompt_set(tmp_path)
    survey = prompts.survey(None)
    assert (survey.rows, survey.bad_rows) == (4, 1)
    complete = bytearray(b"\1\1\0\0")
    rows = list(prompts.requests(survey.layout, complete))
    assert [(row.row, row.custom_id, row.source) for row in rows] == [
        (2, "2", "3.jsonl"),
        (3, "3", "3.jsonl"),
    ]
    assert isinstance(rows[1], BadRow)
    assert rows[1].line == 3


def test_a_file_that_changes_meanwhile_is_an_error(write: Write) -> None:
    rows = [{"prompt": "x" * 1_000} for _ in range(3_000)]
    path = write(*rows)
    prompts = prompt_set(path)
    layout = prompts.survey(None).layout
    reading = prompts.requests(layout, bytearray(3_000))
    next(reading)
    with path.open("ab") as file:
        file.write(b'{"prompt": "more"}\n')
    with pytest.raises(InputError, match="changed while it was being read"):
        list(reading)
    with pytest.raises(InputError, match="changed while it was being read"):
        list(prompts.requests(layout, bytearray(3_000)))


def test_a_file_that_grows_during_the_survey_is_an_error(write: Write) -> None:
    path = write(*({"prompt": "x"} for _ in range(1_500)))

    def grow(_: int) -> None:
        with path.open("ab") as file:
            file.write(b'{"prompt": "more"}\n')

    with pytest.raises(InputError, match="changed while it was being read"):
        prompt_set(path).survey(None, grow)


def test_a_file_that_is_missing_is_an_error(write: Write) -> None:
    path = write({"prompt": "x"})
    prompts = prompt_set(path)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        prompts.survey(None)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_that_may_not_be_read_is_an_error(write: Write) -> None:
    path = write({"prompt": "x"})
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        prompt_set(path).survey(None)


def test_the_first_ten_bad_rows_are_shown_and_all_are_counted(write: Write, read: Read) -> None:
    survey, _ = read(write(*([b"{"] * 15), {"prompt": "x"}))
    assert survey.bad_rows == 15
    assert [problem.line for problem in survey.problems] == list(range(1, 11))


def test_a_source_of_bad_rows_alone_is_surveyed_too(write: Write, read: Read) -> None:
    survey, _ = read(write(b"{", b"["), id="key", carry=("x",))
    assert (survey.rows, survey.bad_rows, survey.first) == (2, 2, None)


def test_the_sums_say_how_large_the_rows_are(write: Write, read: Read) -> None:
    survey, rows = read(write({"prompt": "x", "note": "four", "n": 1, "list": [1, 2]}))
    assert survey.body_bytes == len(rows[0].body)
    assert survey.carried_bytes == 4 + 8 + 5


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    with path.open("w") as file:
        for at in range(400_000):
            file.write(json.dumps({"prompt": f"question {at}", "id": f"id-{at}", "n": at}) + "\n")
    script = (
        "import sys\n"
        "from batchrun.inputs.prompt_set import PromptSet, find_source\n"
        "from batchrun.job.sections import InputJob\n"
        "def peak():\n"  # not `ru_maxrss`: a child's begins at what its parent had
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(l.split()[1]) for l in lines if l.startswith('VmHWM')) * 1024\n"
        "def go(path, rows):\n"
        "    job = InputJob(path=path)\n"
        "    prompts = PromptSet(find_source(job), job, {'model': 'm'})\n"
        "    survey = prompts.survey(None)\n"
        "    complete = bytearray(survey.rows)\n"
        "    assert sum(1 for _ in prompts.requests(survey.layout, complete)) == rows\n"
        "    assert survey.layout.id_column == 'id'\n"
        "go(sys.argv[1], 100_000)\n"
        "before = peak()\n"
        "go(sys.argv[2], 400_000)\n"
        "print(peak() - before)\n"
    )
    few = tmp_path / "few.jsonl"
    few.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:100_000]))
    grown = subprocess.run(
        [sys.executable, "-c", script, str(few), str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # 300,000 names as objects alone would be 18 MB and twice that in a set; the arrays are 5.
    assert int(grown) < 24 * 1024 * 1024
