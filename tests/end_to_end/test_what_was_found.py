"""A command that sends nothing leaves what it found as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]

_ASK = ("--prompt", "{{ text }}", "--model", "m", "--simulate", "--quiet")
_GOOD, _BAD = '{"id": "a", "text": "A"}\n', "no JSON\n"


def _files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize(
    ("source", "other", "text"),
    [
        ("input/prompts.jsonl", "input/other.txt", _BAD),
        ("prompts.jsonl", "input/stdin.jsonl", _GOOD),
        ("events.jsonl", "events.jsonl", _GOOD),  # its name is that of a file of runs
        ("responses/prompts.jsonl", "responses/other.txt", _BAD),
        ("input/prompts.jsonl", "lock", _GOOD),
        ("input/prompts.jsonl", ".notes.tmp", _BAD),
    ],
)
def test_a_folder_of_ones_own_is_no_run_directory(
    source: str, other: str, text: str, batchrun: Run, tmp_path: Path
) -> None:
    for name in (source, other):
        (tmp_path / "job" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "job" / name).write_text(2 * text)
    before = _files(tmp_path)
    for given, piped in ((f"job/{source}", ""), ("-", text)):
        done = batchrun("run", given, *_ASK, "-o", "job", text=piped)
        assert done.returncode == 2
        assert "job is not a run directory and not empty (it holds" in done.stderr
        assert _files(tmp_path) == before


def test_standard_input_that_a_killed_command_has_left_is_no_hindrance(
    batchrun: Run, tmp_path: Path
) -> None:
    for name, text in (("lock", "host 17\n"), ("input/.stdin.jsonl.unfinished", '{"id": "')):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(text)
    refused = batchrun("run", "-", *_ASK, "-o", "run", text=_BAD)
    assert refused.returncode == 2
    assert "not JSON" in refused.stderr
    done = batchrun("run", "-", *_ASK, "-o", "run", text=_GOOD)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/input/stdin.jsonl").read_text() == _GOOD


def test_an_appended_input_that_is_refused_changes_nothing(
    batchrun: Run, tmp_path: Path, verify: Callable[..., None]
) -> None:
    words = ("run", "-", *_ASK, "-o", "run")
    first = "".join(json.dumps({"id": f"a{row}", "text": "A"}) + "\n" for row in range(3))
    assert batchrun(*words, "--append", "--limit", "2", text=first).returncode == 0
    (tmp_path / "run/input/appended.jsonl").write_text(_BAD)  # of a command that was killed
    assert batchrun(*words).returncode == 0  # the row that was left
    before = _files(tmp_path / "run/input")
    assert before == {"stdin.jsonl": first.encode()}
    refused = batchrun(*words, "--append", text=_GOOD + _BAD)
    assert refused.returncode == 2
    assert "not JSON" in refused.stderr
    assert _files(tmp_path / "run/input") == before
    assert batchrun(*words).returncode == 0  # with no input: what is stored
    second = batchrun(*words, "--append", text=_GOOD)
    assert second.returncode == 0, second.stderr
    assert _files(tmp_path / "run/input") == {"stdin.jsonl": _GOOD.encode()}
    verify()
