"""From prompts to a table for a paper: run, score, metrics, compare, against a simulated model."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
_SCORER = '[[scorers]]\nname = "exact"\nkind = "exact"\n'


def _prompts(path: Path, count: int, salt: int = 0) -> None:
    rows = [
        {
            "id": f"q{at}",
            "question": f"How much is {at} and {at * 7 + salt}, in all?",
            "answer": str(at * 8 + salt),
        }
        for at in range(100, 100 + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _measured(batchrun: Run, folder: Path, count: int, right: str, salt: int = 0) -> dict[str, Any]:
    """The metrics of a new eval, with two models."""
    _prompts(folder / "p.jsonl", count, salt)
    (folder / "scorers.toml").write_text(_SCORER)
    words = ("--prompt", "{{ question }}", "--samples", "4", "--carry", "answer", "--quiet")
    models = ("--model", "base", "--model", "new")
    simulated = ("--simulate", "--answers", "p.jsonl", "--right", right)
    out = f"run{salt}"
    done = batchrun("run", "p.jsonl", *words, *models, *simulated, "-o", out)
    assert done.returncode == 0, done.stderr
    assert batchrun("score", out, "scorers.toml").returncode == 0
    found: dict[str, Any] = {
        command: json.loads(batchrun(command, out, "--format", "json").stdout)
        for command in ("metrics", "compare")
    }
    return found


def test_a_model_is_measured_to_be_what_it_is(batchrun: Run, tmp_path: Path) -> None:
    found = _measured(batchrun, tmp_path, 60, "0.7,0.2")
    lines = found["metrics"]["lines"]
    assert [line["variant"] for line in lines] == ["base", "new"]
    for line in lines:
        assert (line["questions"], line["samples"], line["scored"]) == (60, 240, 240)
        assert line["low"] <= 0.7 <= line["high"]
        assert line["between"] > 0
    (compared,) = found["compare"]["lines"]
    assert compared["pairs"] == 60
    assert compared["low"] <= 0 <= compared["high"]
    assert compared["correlation"] > 0  # what is hard for one is hard for the other


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
def test_intervals_hold_the_truth_200_times(batchrun: Run, tmp_path: Path, part: int) -> None:
    held = alarms = 0
    for at in range(50):
        found = _measured(batchrun, tmp_path, 30, "0.7,0.2", salt=1 + part * 50 + at)
        for line in found["metrics"]["lines"]:
            held += line["low"] <= 0.7 <= line["high"]
        alarms += found["compare"]["lines"][0]["p"] < 0.05
    assert held / 100 >= 0.88
    assert alarms / 50 <= 0.16


def test_answers_that_were_asked_for_again_count_once_they_are_scored(
    batchrun: Run, tmp_path: Path
) -> None:
    _prompts(tmp_path / "p.jsonl", 20)
    (tmp_path / "scorers.toml").write_text(_SCORER)

    def run(prompt: str, *more: str) -> None:
        words = ("--prompt", prompt, "--model", "m", "--samples", "2", "--carry", "answer")
        simulated = ("--simulate", "--answers", "p.jsonl", "--right", "0.5", "--quiet")
        assert batchrun("run", "p.jsonl", *words, *simulated, "-o", "run", *more).returncode == 0

    def line() -> dict[str, Any]:
        done = batchrun("metrics", "run", "--format", "json")
        found: dict[str, Any] = json.loads(done.stdout)["lines"][0]
        return {**found, "notes": " ".join(json.loads(done.stdout)["notes"])}

    run("{{ question }}")
    batchrun("score", "run", "scorers.toml")
    assert line()["scored"] == 40
    run("Now: {{ question }}", "--rerun-changed")
    stale = line()
    assert (stale["samples"], stale["scored"], stale["mean"]) == (40, 0, None)
    assert "40 scores are for an older answer and left out" in stale["notes"]
    batchrun("score", "run", "scorers.toml")
    assert line()["scored"] == 40
