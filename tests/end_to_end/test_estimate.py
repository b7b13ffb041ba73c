"""`batchrun estimate` from the command line."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

Run = Callable[..., CompletedProcess[str]]


def test_an_estimate_then_a_pilot_then_the_rest(
    tmp_path: Path, write_rows: Any, questions: Any, batchrun: Run
) -> None:
    source = write_rows(questions(80))
    ask = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run", "--simulate")

    told = batchrun("estimate", source, *ask, "--rpm", "60000")
    assert told.returncode == 0, told.stderr
    assert "80 rows to send of 80" in told.stdout
    assert "short: 100 tokens each" in told.stdout
    assert not (tmp_path / "run").exists()

    done = batchrun("estimate", source, *ask, "--pilot", "30", "--expect-output=5")
    assert done.returncode == 2
    assert "leave --models and --expect-output out" in done.stderr
    done = batchrun("estimate", source, *ask, "--pilot=30", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["settled"], made["to_send"], made["pilot"]["rows"]) == (30, 50, 30)
    following = done.stderr.splitlines()[-1]
    assert following.startswith(f"next: batchrun run {source} --prompt")
    assert "pilot" not in following

    assert batchrun("run", source, *ask, "--quiet").returncode == 0
    assert "remaining:  0" in batchrun("status", "run").stdout
    assert "; it was $" in " ".join(batchrun("report", "run").stdout.split())


def test_a_pilot_stops_at_the_cap_and_says_how_to_go_on(
    write_rows: Any, questions: Any, batchrun: Run
) -> None:
    source = write_rows(questions(40))
    ask = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run", "--simulate")
    done = batchrun("estimate", source, *ask, "--pilot", "40", "--max-cost", "0.0001", "--quiet")
    assert done.returncode == 3
    assert "the pilot did not end, so there is no estimate yet" in done.stderr
    assert done.stdout == ""
    (named,) = [line for line in done.stderr.splitlines() if line.startswith("next: ")]
    assert named.startswith("next: batchrun estimate ")
    assert "--pilot 40" in named
    done = batchrun(*shlex.split(named)[2:], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["settled"] == 40


def test_standard_input_is_estimated_and_nothing_is_left_behind(
    tmp_path: Path, batchrun: Run
) -> None:
    rows = "".join(json.dumps({"input": f"Say {number}."}) + "\n" for number in range(5))
    done = batchrun("estimate", "-", "--models", "gpt-4.1,gpt-5", "-o", "run", text=rows)
    assert done.returncode == 0, done.stderr
    assert "5 rows to send of 5" in done.stdout
    assert list(tmp_path.iterdir()) == []
