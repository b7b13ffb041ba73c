"""Every `next:` line, typed in a shell, does what the line before it says."""

import itertools
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import HANG_S

Batchrun = Callable[..., subprocess.CompletedProcess[str]]
Query = Callable[..., list[tuple[Any, ...]]]

ROWS = 12
GOES_ON = {"exit_code": None, "message": None}
OUT = "runs/of a 'night'"
# What a shell would take for its own, what cannot be seen, and a line break.
PROMPT = (
    'it\'s "$HOME" `id` \\n \\ !! {{ question }} \U0001f469\u200d\U0001f4bb \x1b[0m\nand & so; on'
)
MODELS = ("--model", "gpt-6-luna", "--model", "gpt-6.1-terra")
BASE = ("--set", "metadata.note=a 'b', c", "--set", 'reasoning={"effort": "low"}', "-o", OUT)
PARTS = {
    "limit": ("--limit", "5"),
    "limit=": ("--limit=12",),
    "sample": ("--sample-rows", "4"),
    "variant": ("--variant", "gpt-6-luna"),
    "where": ("--where", "level <> 1 AND question <> 'it''s'"),
}
SHORT = [("limit",), ("limit=", "where"), ("sample", "variant", "where")]
ALL = [
    names
    for count in range(1, len(PARTS) + 1)
    for names in itertools.combinations(PARTS, count)
    if not {"limit", "limit="} <= {*names}
]


@pytest.fixture
def source(tmp_path: Path) -> str:
    rows = [{"question": f"question {at}", "level": at % 3} for at in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "it's a prompt.txt").write_text(PROMPT)
    return "rows.jsonl"


def _next(said: str) -> tuple[str, str]:
    """The step and the command; empty where there is none."""
    found = re.search(
        r"^ *next step: +(.*)\n *next: +(batchrun .*)\Z", said.rstrip(), re.MULTILINE | re.DOTALL
    )
    assert (found is None) == ("next:" not in said), said
    return ("", "") if found is None else (found[1], found[2])


def _typed(command: str) -> list[str]:
    """The words that a shell makes of it."""
    script = f"batchrun() {{ printf '%s\\0' \"$@\"; }}\n{command}"
    done = subprocess.run(
        ["/bin/bash", "-c", script], capture_output=True, text=True, check=True, timeout=HANG_S
    )
    assert not done.stderr
    return done.stdout.split("\0")[:-1]


@pytest.fixture
def follow(batchrun: Batchrun, query: Query) -> Callable[..., int]:
    """Types each command that the one before it names, and checks what that said of it.

    Ends where none is named, or after `most` of them; how many there were.
    """

    def counts() -> tuple[int, int]:
        (found,) = query("SELECT count(*), sum(len(attempts)) FROM read_parquet(?)", OUT)
        return found[0], int(found[1])

    def types(done: subprocess.CompletedProcess[str], most: int = 4) -> int:
        for typed in range(most):
            step, command = _next(done.stderr)
            if not step.startswith("send the other"):  # of an estimate, which knows its pilot
                assert _next(batchrun("status", OUT).stdout) == (step, command)
            if not step:
                return typed
            rows, attempts = counts()
            done = batchrun(*_typed(command))
            more, tried = counts()[0] - rows, counts()[1] - attempts
            number = int((re.findall(r"\d+", step) or ["0"])[0])
            if step == "finish the run; no row remains":
                assert (done.returncode, more, tried) == (0, 0, 0), done.stderr
            elif step == "look at a row that is not ok":
                assert (done.returncode, more) == (0, 0), done.stderr
                assert done.stdout
                return typed + 1
            elif "failed" in step:
                assert (more, tried) == (0, number or tried), step
                assert tried
            elif number:
                assert more == number, step
            else:
                assert more > 0, step
        return most

    return types


def _checked(
    batchrun: Batchrun, query: Query, follow: Callable[..., int], ask: tuple[str, ...]
) -> None:
    done = batchrun(*ask)
    assert done.returncode == 0, done.stderr
    assert follow(done) < 4
    fitting = ROWS - ROWS // 3 if "--where" in ask else ROWS
    assert query("SELECT count(*) FROM read_parquet(?)", OUT) == [(2 * fitting,)]


@pytest.mark.parametrize("parts", SHORT, ids="-".join)
def test_what_a_command_left_is_sent_by_the_one_that_it_names(
    batchrun: Batchrun,
    query: Query,
    follow: Callable[..., int],
    source: str,
    parts: tuple[str, ...],
) -> None:
    options = [word for name in parts for word in PARTS[name]]
    prompt = ("--prompt", PROMPT) if "limit" in parts else ("--prompt-file", "it's a prompt.txt")
    ask = ("run", source, "--simulate", *prompt, *MODELS, *BASE, *options, "--json")
    _checked(batchrun, query, follow, ask)


@pytest.mark.long
@pytest.mark.parametrize("parts", ALL, ids="-".join)
@pytest.mark.parametrize("kind", ["run", "pilot"])
def test_all_options_that_leave_rows_together(
    batchrun: Batchrun,
    query: Query,
    follow: Callable[..., int],
    source: str,
    parts: tuple[str, ...],
    kind: str,
) -> None:
    options = [word for name in parts for word in PARTS[name]]
    ask = (source, "--simulate", "--prompt", PROMPT, *MODELS, *BASE, *options)
    if kind == "run":
        _checked(batchrun, query, follow, ("run", *ask))
    elif "variant" not in parts:
        _checked(batchrun, query, follow, ("estimate", *ask, "--pilot", "2"))


def test_a_pilot_of_all_rows_within_its_limit_leads_to_the_rest(
    batchrun: Batchrun, query: Query, follow: Callable[..., int], source: str
) -> None:
    ask = ("estimate", source, "--simulate", "--prompt", PROMPT, *MODELS, *BASE)
    _checked(batchrun, query, follow, (*ask, "--limit", "5", "--pilot", "9"))


def test_a_command_that_was_killed_after_its_last_row_is_not_typed_for_nothing(
    batchrun: Batchrun,
    query: Query,
    follow: Callable[..., int],
    source: str,
    tmp_path: Path,
) -> None:
    def kill() -> subprocess.CompletedProcess[str]:
        """As `run.json` is where the process was killed between the last row and its end."""
        path = tmp_path / OUT / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "running", **GOES_ON}))
        said = batchrun("status", OUT)
        assert "killed" in said.stdout
        said.stderr = said.stdout
        return said

    ask = ("run", source, "--simulate", "--prompt", PROMPT, *MODELS, *BASE)
    assert batchrun(*ask, "--limit", "5").returncode == 0
    assert follow(kill()) == 1
    assert query("SELECT count(*) FROM read_parquet(?)", OUT) == [(2 * ROWS,)]
    assert _next(kill().stdout)[0] == "finish the run; no row remains"
    assert follow(kill()) == 1


def test_the_where_of_a_job_file_and_standard_input(
    batchrun: Batchrun, query: Query, follow: Callable[..., int], source: str, tmp_path: Path
) -> None:
    job = f"[input]\npath = '{source}'\nwhere = 'level = 1'\n[request]\nmodel = 'gpt-6-luna'\n"
    (tmp_path / "my job.toml").write_text(f"{job}input = '{{{{ question }}}}'\n")
    ask = ("run", "my job.toml", "--simulate", "-o", OUT)
    assert follow(batchrun(*ask, "--limit", "1")) == 1
    assert query("SELECT count(*) FROM read_parquet(?)", OUT) == [(4,)]
    piped = ("run", "-", "--prompt", "{{ question }}", "--model", "gpt-6-luna", "--simulate")
    text = (tmp_path / source).read_text()
    done = batchrun(*piped, "-o", "piped", "--limit", "5", text=text)
    assert batchrun(*_typed(_next(done.stderr)[1])).returncode == 0
    assert query("SELECT count(*) FROM read_parquet(?)", "piped") == [(ROWS,)]


def test_rows_that_failed_are_sent_again_and_others_shown(
    batchrun: Batchrun,
    follow: Callable[..., int],
    source: str,
    simulator: Callable[..., str],
    tmp_path: Path,
) -> None:
    base_url = simulator("--fault", "400_policy=0.5", "--seed", 3)
    ask = ("run", source, "--prompt", PROMPT, *MODELS, "-o", OUT, "--api-key-env", "none")
    done = batchrun(*ask, "--base-url", base_url)
    assert done.returncode == 4, done.stderr
    assert follow(done, most=2) > 0
    rows = [{"custom_id": "-5 'x' \u200d", "level": 1}, {"custom_id": "b", "question": "c"}]
    (tmp_path / source).write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = batchrun(*ask[:-4], "--skip-bad-rows", "--simulate", "-o", "bad")
    assert done.returncode == 4, done.stderr
    step, command = _next(done.stderr)
    assert step == "look at a row that is not ok"
    shown = batchrun(*_typed(command))
    assert shown.returncode == 0, shown.stderr
    assert "question" in shown.stdout
