"""50 rows in each mode against aimock, alone and behind litellm: killed, and gone on with."""

import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

pytestmark = pytest.mark.servers

_IN_FLIGHT = 4


@pytest.mark.parametrize(("server", "model"), [("aimock", "gpt-4.1"), ("litellm", "behind")])
def test_a_killed_run_goes_on(
    mode: str,
    server: str,
    model: str,
    request: pytest.FixtureRequest,
    aimock: Callable[[Iterable[dict[str, Any]]], str],
    aimock_control: Callable[..., Any],
    fixtures: Callable[[Sequence[str]], list[dict[str, Any]]],
    begin: Callable[..., subprocess.Popen[str]],
    batchrun: Callable[..., subprocess.CompletedProcess[str]],
    table: Callable[..., list[dict[str, Any]]],
    wait_for: Callable[[str, str, int], None],
    answer_of: Callable[[int], str],
) -> None:
    base_url = aimock(fixtures(["slow"] * 50))
    if server == "litellm":
        base_url = request.getfixturevalue("litellm")
    killed = begin(base_url, mode, "--concurrency", str(_IN_FLIGHT), model=model)
    wait_for(mode, "ok", 3)
    killed.kill()
    assert killed.wait(20) == -signal.SIGKILL
    done = batchrun(base_url, mode, model=model)
    assert done.returncode == 0, done.stderr
    rows = table(mode)
    assert [row["row"] for row in rows] == list(range(50))
    assert [row["output_text"] for row in rows] == [answer_of(row) for row in range(50)]
    # only what was in flight was asked for twice
    assert len(aimock_control("GET", "journal?method=POST")) <= 50 + _IN_FLIGHT
