"""Killed before anything was sent; kills at all later moments are in `tests/torture`."""

import time
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any


def test_kills_within_the_first_plan_leave_nothing_but_the_lock(
    tmp_path: Path,
    write_rows: Any,
    questions: Any,
    simulator: Any,
    begin: Callable[..., "Popen[str]"],
    stats: Callable[..., dict[str, Any]],
) -> None:
    source, base_url = write_rows(questions(1_500)), simulator()
    endless = "{% for one in range(90000) %}{% endfor %}{{ question }}"  # seconds, for all rows
    words = ("--prompt", endless, "--model", "gpt-4.1", "--base-url", base_url, "-o", "run")
    for pause_s in (0.05, 0.4, 0.8):
        process = begin("run", source, *words, stdout=DEVNULL, stderr=DEVNULL)
        time.sleep(pause_s)
        process.kill()
        process.wait()
        assert {path.name for path in tmp_path.glob("run/*")} <= {"lock"}
    assert stats(base_url)["requests"] == 0
